"""
What has been charged and is not in the database yet: lines in local files.

A journal's directory holds a folder for each process that writes, and in it
numbered segments::

    txbedrock-journal/
        4711-18d3f2a91c-7a/       the process 4711
            lock                  held (flock) as long as that process lives
            00000001.jsonl        an entry a line
            00000002.jsonl        the one that is written to
        aside/                    what could not be read or stored, for a human

A folder whose lock can be had belongs to nobody any more: whoever finds it
adopts it, moves its entries to the database and removes it. So the next start
replays what a ``kill -9`` left behind, whatever the new process's number is.

Nothing here knows a reactor or a thread. :meth:`Journal.append` is called on the
reactor's thread; what may take long is handed out as a function by
:meth:`Journal.housekeeping`, to be called in another one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
from twisted.logger import Logger

from txbedrock.core.entries import LedgerEntry, storable
from txbedrock.errors import ProxyError

__all__ = [
    "Batch",
    "Corrupt",
    "Folder",
    "Journal",
    "JournalError",
    "JournalFull",
    "JournalInUse",
    "JournalUnwritable",
    "Position",
    "SegmentGone",
    "Span",
    "encode",
    "refused_name",
    "set_aside",
]

_LOCK = "lock"
_ASIDE = "aside"
_SUFFIX = ".jsonl"
_READ_SIZE = 256 * 1024

# A line as long as this may hold a text that no index takes.
_LONG_LINE = 2048

# What must fit on the disk before a journal that could not be written to is
# taken for mended.
_PROBE = b"\n" * 16384

_encode = msgspec.json.Encoder().encode
_encode_into = msgspec.json.Encoder().encode_into
_decode = msgspec.json.Decoder(LedgerEntry).decode


class JournalError(ProxyError):
    """The journal does not take an entry. SDKs retry it."""

    status = 503
    code = "ServiceUnavailableException"


class JournalUnwritable(JournalError):
    """
    The disk is full, or broken; the entry is not in the journal.

    :ivar errno: of :mod:`errno`; 0 when the journal is not open.
    """

    def __init__(self, detail: str, number: int = 0) -> None:
        super().__init__("The gateway cannot keep its records at the moment.", detail=detail)
        self.errno = number


class JournalFull(JournalError):
    """The journal has grown to its bound, because the database takes nothing."""

    def __init__(self, detail: str) -> None:
        super().__init__("The gateway cannot keep its records at the moment.", detail=detail)


class JournalInUse(Exception):
    """A folder belongs to another process, which is alive."""


class SegmentGone(Exception):
    """A segment was removed: all that was in it is in the database."""


class Position(NamedTuple):
    """Between two lines of a folder."""

    segment: int
    offset: int
    """Bytes from the beginning of the segment."""


@dataclass(frozen=True, slots=True)
class Corrupt:
    """Bytes of a segment that are not entries."""

    path: str
    offset: int
    data: bytes
    reason: str

    @property
    def name(self) -> str:
        """The same bytes have the same name, however often they are found."""
        folder = os.path.basename(os.path.dirname(self.path))
        segment = os.path.basename(self.path).removesuffix(_SUFFIX)
        return f"{folder}-{segment}-{self.offset}.txt"


class Batch(NamedTuple):
    """Entries read from a folder."""

    entries: list[LedgerEntry]

    end: Position
    """After the last of them."""

    corrupt: list[Corrupt]


class Piece(NamedTuple):
    """A part of a segment."""

    segment: int
    path: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Span:
    """Lines of a folder, as they were when it was made."""

    pieces: tuple[Piece, ...]
    end: Position

    def read(self, max_entries: int) -> Batch:
        """
        The first entries. It may take a while: call it in a thread.

        The last line of a process that was killed may be torn. No answer has
        gone out for it: it is passed over.

        :raises SegmentGone: a segment was removed since.
        """
        entries: list[LedgerEntry] = []
        corrupt: list[Corrupt] = []
        for piece in self.pieces:
            try:
                with open(piece.path, "rb") as file:
                    offset = _read_lines(file.fileno(), piece, max_entries, entries, corrupt)
            except FileNotFoundError:
                raise SegmentGone(piece.path) from None
            if offset < piece.end:
                return Batch(entries, Position(piece.segment, offset), corrupt)
            if len(entries) >= max_entries and piece is not self.pieces[-1]:
                return Batch(entries, Position(piece.segment, offset), corrupt)
        return Batch(entries, self.end, corrupt)

    def after(self, position: Position) -> Span:
        """What is left of it."""
        pieces = tuple(
            piece._replace(start=max(piece.start, position.offset))
            if piece.segment == position.segment
            else piece
            for piece in self.pieces
            if (piece.segment, piece.end) > position and self.end > position
        )
        return Span(pieces, self.end)


def set_aside(directory: str, name: str, data: bytes) -> str | None:
    """
    Keep what nobody here can use, for a human.

    :param directory: the journal's.
    :returns: the file's path; None if it is there already.

    Mended lines are replayed at the next start when they are put into a new
    folder of the journal's directory, as ``00000001.jsonl``.
    """
    folder = os.path.join(directory, _ASIDE)
    os.makedirs(folder, 0o700, exist_ok=True)
    path = os.path.join(folder, name)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return None
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)
    return path


def refused_name(line: bytes) -> str:
    """What an entry is set aside as, that the database does not take."""
    return f"refused-{hashlib.sha256(line).hexdigest()[:24]}{_SUFFIX}"


def encode(entry: LedgerEntry) -> bytes:
    """An entry as it stands in a line, without the line's end."""
    return _encode(entry)


class Folder:
    """
    One process's segments, held by a lock.

    :ivar sizes: bytes of each segment, by number, in order.
    """

    def __init__(self, path: str, lock: int) -> None:
        self.path = path
        self._lock = lock
        self.sizes: dict[int, int] = {}
        for name in sorted(os.listdir(path)):
            number = name.removesuffix(_SUFFIX)
            if name.endswith(_SUFFIX) and number.isascii() and number.isdigit():
                self.sizes[int(number)] = os.path.getsize(os.path.join(path, name))
        self.sizes = dict(sorted(self.sizes.items()))

    @classmethod
    def create(cls, directory: str) -> Folder:
        """A new folder of this process's own."""
        name = f"{os.getpid()}-{time.time_ns() // 1_000_000:x}-{secrets.token_hex(2)}"
        hidden = os.path.join(directory, f".{name}")
        path = os.path.join(directory, name)
        os.mkdir(hidden, 0o700)
        lock = os.open(os.path.join(hidden, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(lock, b"%d\n" % os.getpid())
        # Seen by others only now, when it is locked.
        os.rename(hidden, path)
        return cls(path, lock)

    @classmethod
    def take(cls, path: str) -> Folder:
        """
        The folder of a process that has ended.

        :raises JournalInUse: it lives.
        :raises FileNotFoundError: another one was faster, and has removed it.
        """
        name = os.path.join(path, _LOCK)
        lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                pid = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
                raise JournalInUse(
                    f"{path}: is in use by the process {pid}. Each process needs a folder of its "
                    "own, and a journal's directory must not be shared between machines."
                ) from None
            # Whoever had the lock before may have removed the folder.
            if not os.path.samestat(os.fstat(lock), os.stat(name)):
                raise FileNotFoundError(errno.ENOENT, "No such folder any more", path)
            os.pwrite(lock, b"%-19d\n" % os.getpid(), 0)
            return cls(path, lock)
        except BaseException:
            os.close(lock)
            raise

    @property
    def bytes(self) -> int:
        """Of all segments that are still there."""
        return sum(self.sizes.values())

    @property
    def end(self) -> Position:
        """Of a folder that is not written to."""
        number = max(self.sizes, default=0)
        return Position(number, self.sizes.get(number, 0))

    def segment(self, number: int) -> str:
        """The path of a segment."""
        return os.path.join(self.path, f"{number:08d}{_SUFFIX}")

    def forget(self, before: Position, keep: int | None = None) -> list[str]:
        """
        Everything before a position is in the database.

        :param keep: a segment that is still written to.
        :returns: the segments that nobody needs any more, to be removed.
        """
        done = [
            number
            for number, size in self.sizes.items()
            if number != keep and (number, size) <= before
        ]
        for number in done:
            del self.sizes[number]
        return [self.segment(number) for number in done]

    def span(self, start: Position, end: Position) -> Span:
        """The lines between two positions, those apart that are forgotten."""
        pieces = []
        for number, size in self.sizes.items():
            if start.segment <= number <= end.segment:
                first = start.offset if number == start.segment else 0
                last = end.offset if number == end.segment else size
                if first < last:
                    pieces.append(Piece(number, self.segment(number), first, last))
        return Span(tuple(pieces), end)

    def remove(self) -> None:
        """Nothing in it is needed any more."""
        for number in list(self.sizes):
            _unlink(self.segment(number))
        self.sizes.clear()
        _unlink(os.path.join(self.path, _LOCK))
        try:
            os.rmdir(self.path)
        except OSError:
            pass  # Somebody has put something into it.
        self.release()

    def release(self) -> None:
        """Leave it to whoever comes next."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _read_lines(
    fd: int,
    piece: Piece,
    max_entries: int,
    entries: list[LedgerEntry],
    corrupt: list[Corrupt],
) -> int:
    """
    Read entries from a segment; several corrupt lines in a row are one region.

    :returns: the offset of what has not been read.
    """
    bad: list[bytes] = []
    bad_at, reason = 0, ""

    def end_of_bad() -> None:
        if bad:
            corrupt.append(Corrupt(piece.path, bad_at, b"".join(bad), reason))
            bad.clear()

    offset, rest = piece.start, b""
    while len(entries) < max_entries:
        at = offset + len(rest)
        data = os.pread(fd, min(_READ_SIZE, piece.end - at), at) if at < piece.end else b""
        if not data:
            if rest:
                # The write was torn, perhaps just before the end of the line.
                try:
                    entries.append(_decode(rest))
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    pass
            offset = piece.end
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line and not line.isspace():
                try:
                    entries.append(_decode(line))
                    end_of_bad()
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    if not bad:
                        bad_at, reason = offset, str(error)
                    bad.append(line + b"\n")
            offset += len(line) + 1
            if len(entries) >= max_entries:
                break
    end_of_bad()
    return offset


class Journal:
    """
    This process's part of a journal: it appends entries, and counts bytes.

    Each :meth:`append` is one ``write`` of one line, on the reactor's thread.
    That takes 1.5 us, less than it would cost to collect the entries of a reactor
    turn, hold their answers back with a Deferred each, and write them together.
    After a ``kill -9`` the line is there, since the kernel has it. Against power
    loss, :meth:`housekeeping` brings it to the disk, once a second by default.

    :param directory: made if need be; on a local disk.
    :param segment_bytes: a segment that has grown to this is followed by another.
    :param segment_age_s: and so is one that is this old, so that a quiet gateway
        has little to replay.
    :param max_bytes: above it the journal is :attr:`full`. An eighth more is taken
        all the same, for requests that are already on their way.
    :param monotonic: seconds.
    """

    _log = Logger()

    def __init__(
        self,
        directory: str,
        *,
        segment_bytes: int = 8 * 1024 * 1024,
        segment_age_s: float = 300.0,
        max_bytes: int = 1024 * 1024 * 1024,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.directory = os.path.abspath(directory)
        self._segment_bytes = segment_bytes
        self._segment_age_s = segment_age_s
        self._max_bytes = max_bytes
        self._hard_bytes = max_bytes + max_bytes // 8
        self._now = monotonic
        self._folder: Folder | None = None
        self.adopted: list[Folder] = []
        """Folders of processes that have ended; their entries are to be moved."""

        self._line = bytearray()
        """The last line; there to be written over."""

        self._fd = -1
        self.segment = 0
        """The one that is written to."""
        self.offset = 0
        """Bytes in it so far."""
        self._opened_at = 0.0
        # Of the segments before the one that is written to, and of the adopted.
        self._other_bytes = 0
        self._committed = Position(0, 0)
        self._torn = False
        self._dirty = False
        self._new_names = False
        self._to_close: list[int] = []
        self._to_remove: list[str] = []
        self._failure: JournalUnwritable | None = None
        self._flush_failure: JournalUnwritable | None = None

    # Where it is, and how it is.

    @property
    def position(self) -> Position:
        """After the last line that was written."""
        return Position(self.segment, self.offset)

    @property
    def bytes(self) -> int:
        """On disk and not yet in the database, with what was adopted."""
        return self._other_bytes + self.offset

    @property
    def full(self) -> bool:
        """Has it grown to its bound?"""
        return self.bytes >= self._max_bytes

    @property
    def failure(self) -> JournalUnwritable | None:
        """Why it cannot be written or flushed to the disk; None: it can."""
        return self._failure or self._flush_failure

    @property
    def folder(self) -> Folder:
        """Its own.

        :raises JournalUnwritable: it is not open.
        """
        if self._folder is None:
            raise JournalUnwritable(f"{self.directory}: the journal is not open")
        return self._folder

    # Opening and closing.

    def open(self) -> None:
        """
        Make a folder, and adopt those that nobody holds. Call it after a fork.

        :raises JournalUnwritable: the directory cannot be had.
        """
        try:
            os.makedirs(self.directory, 0o700, exist_ok=True)
            self._folder = Folder.create(self.directory)
            self._begin(1)
            self.adopt()
        except OSError as error:
            raise self._cannot(error, "open") from error

    def adopt(self) -> int:
        """
        Take over the folders of processes that have ended.

        :returns: how many.
        """
        count = 0
        for name in sorted(os.listdir(self.directory)):
            path = os.path.join(self.directory, name)
            if name.startswith(".") or name == _ASIDE or not os.path.isdir(path):
                continue
            if path == self.folder.path or any(path == one.path for one in self.adopted):
                continue
            try:
                folder = Folder.take(path)
            except (JournalInUse, FileNotFoundError):
                continue
            except OSError as error:
                self._log.warn("cannot take over {path}: {error}", path=path, error=error)
                continue
            if folder.bytes:
                self._log.info(
                    "taking over {bytes} bytes that another process left in {path}",
                    bytes=folder.bytes,
                    path=path,
                )
                self.adopted.append(folder)
                count += 1
            else:
                folder.remove()
        self._count()
        return count

    def close(self, committed: bool) -> None:
        """
        End. Nothing that :meth:`housekeeping` handed out may still be running.

        :param committed: whether everything is in the database.
        """
        job = self.housekeeping()
        if job is not None:
            try:
                job()
            except OSError as error:
                self.flushed(error)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._folder is not None:
            if committed:
                self._folder.remove()
            else:
                self._folder.release()
            self._folder = None
        for folder in self.adopted:
            folder.release()
        self.adopted.clear()

    # Writing.

    def append(self, entry: LedgerEntry) -> LedgerEntry:
        """
        Keep an entry: when this returns, it outlives this process.

        :returns: the entry as it was written: what no database could store in it
            is gone.
        :raises JournalFull: the journal is beyond its bound.
        :raises JournalUnwritable: the disk is full or broken. Nothing of the entry
            stays in the journal.
        """
        line = self._line
        try:
            _encode_into(entry, line)
        except UnicodeEncodeError:
            entry = storable(entry)
            _encode_into(entry, line)
        # Looking for one byte is much cheaper than for six, and "in" would make an error first.
        if len(line) > _LONG_LINE or (line.find(b"\\") >= 0 and b"\\u0000" in line):
            entry = storable(entry)
            _encode_into(entry, line)
        line += b"\n"
        size = len(line)
        if self._other_bytes + self.offset + size > self._hard_bytes:
            raise JournalFull(f"{self.directory}: holds more than {self._max_bytes} bytes")
        if self.offset >= self._segment_bytes or self._torn:
            self._rotate()
        try:
            written = os.write(self._fd, line)
            while written < size:
                written += os.write(self._fd, line[written:])
        except OSError as error:
            self._take_back()
            if error.errno == errno.EFBIG:
                self._torn = True
            raise self._failed(error, "write to") from error
        self.offset += size
        self._dirty = True
        if self._failure is not None:
            self._mended()
        return entry

    def forget(self, before: Position) -> None:
        """Everything that was appended before a position is in the database."""
        self._committed = before
        self._to_remove += self.folder.forget(before, keep=self.segment)
        self._count()

    def forget_adopted(self, folder: Folder, before: Position) -> None:
        """The same for a folder that was adopted. It goes with its last segment."""
        for path in folder.forget(before):
            _unlink(path)
        if not folder.sizes:
            folder.remove()
            self.adopted.remove(folder)
        self._count()

    def housekeeping(self) -> Callable[[], None] | None:
        """
        To be called on the reactor's thread, about once a second.

        :returns: what brings the last lines to the disk and removes segments; to
            be called in another thread, its result to be told to :meth:`flushed`
            before this method is called again. It raises ``OSError``. None: there
            is nothing to do.
        """
        if self._fd >= 0:
            if self._failure is not None:
                self._probe()
            if self.offset and self._now() - self._opened_at >= self._segment_age_s:
                self._rotate()
                self.forget(self._committed)
        if not (self._dirty or self._to_close or self._to_remove or self._new_names):
            return None
        fd = self._fd if self._dirty else -1
        to_close, self._to_close = self._to_close, []
        to_remove, self._to_remove = self._to_remove, []
        names, self._new_names = self._new_names, False
        self._dirty = False
        path = self.folder.path

        def job() -> None:
            try:
                for one in (fd, *to_close):
                    if one >= 0:
                        os.fdatasync(one)
                if names:
                    _sync_names(path)
            finally:
                for one in to_close:
                    os.close(one)
                for name in to_remove:
                    _unlink(name)

        return job

    def flushed(self, error: OSError | None) -> None:
        """
        How what :meth:`housekeeping` handed out has ended.

        After an error, entries of the last seconds are lost if the power fails
        now; a ``kill -9`` they survive.
        """
        if error is not None:
            self._dirty = True
            if self._flush_failure is None:
                self._flush_failure = self._cannot(error, "flush")
                self._log.error("{problem}", problem=self._flush_failure.detail)
        elif self._flush_failure is not None:
            self._flush_failure = None
            self._log.info("the journal in {directory} is flushed", directory=self.directory)

    def _begin(self, number: int) -> None:
        """Go on in a new segment."""
        path = self.folder.segment(number)
        fd = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        if self._fd >= 0:
            # Only housekeeping closes: it may be in the middle of flushing it.
            self._to_close.append(self._fd)
            self.folder.sizes[self.segment] = self.offset
        self._fd, self.segment, self.offset = fd, number, 0
        self.folder.sizes[number] = 0
        self._opened_at = self._now()
        self._torn = False
        self._new_names = True
        self._count()

    def _count(self) -> None:
        own = sum(size for number, size in self.folder.sizes.items() if number != self.segment)
        self._other_bytes = own + sum(folder.bytes for folder in self.adopted)

    def _rotate(self) -> None:
        try:
            self._begin(self.segment + 1)
        except OSError as error:
            if self._torn:
                raise self._failed(error, "make a segment in") from error
            # No file descriptor left, no inode left: this one can grow.
            self._log.warn(
                "no new segment in {directory}: {reason}",
                directory=self.directory,
                reason=error.strerror,
            )

    def _take_back(self) -> None:
        """Remove what a failed write has left, or else never write there again."""
        try:
            os.ftruncate(self._fd, self.offset)
        except OSError:
            self._torn = True

    def _probe(self) -> None:
        """Can it be written to again?"""
        try:
            if self._torn:
                self._begin(self.segment + 1)
            written = os.write(self._fd, _PROBE)
            os.ftruncate(self._fd, self.offset)
        except OSError:
            self._take_back()
            return
        if written == len(_PROBE):
            self._mended()

    def _failed(self, error: OSError, what: str) -> JournalUnwritable:
        failure = self._cannot(error, what)
        if self._failure is None:
            self._log.error("{problem}", problem=failure.detail)
        self._failure = failure
        return failure

    def _cannot(self, error: OSError, what: str) -> JournalUnwritable:
        reason = error.strerror or type(error).__name__
        return JournalUnwritable(
            f"cannot {what} the journal in {self.directory}: {reason}", error.errno or 0
        )

    def _mended(self) -> None:
        self._failure = None
        self._log.info(
            "the journal in {directory} can be written to again", directory=self.directory
        )


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _sync_names(path: str) -> None:
    """Bring a folder's list of files to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
