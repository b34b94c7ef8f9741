"""
The journal: what is appended outlives the process, and nothing blocks it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from tests.storage.helpers import StorageTestCase, entry, run_child
from txbedrock.core.entries import LedgerEntry
from txbedrock.storage import journal as module
from txbedrock.storage.journal import (
    Folder,
    Journal,
    JournalFull,
    JournalInUse,
    JournalUnwritable,
    Position,
    SegmentGone,
    set_aside,
)


def entries_of(folder: Folder) -> list[LedgerEntry]:
    """All that it holds."""
    return folder.span(Position(0, 0), folder.end).read(1_000_000).entries


class JournalTestCase(StorageTestCase):
    """Journals that are closed after the test."""

    def open(self, **options: Any) -> Journal:
        journal = self.journal(**options)
        journal.open()
        self.addCleanup(journal.close, False)
        return journal

    def killed(self, lines: bytes) -> Folder:
        """The folder of a process that left these bytes, adopted."""
        folder = Path(self.path("journal", "4711-dead"))
        folder.mkdir(parents=True)
        (folder / "lock").touch()
        (folder / "00000001.jsonl").write_bytes(lines)
        [adopted] = self.open().adopted
        return adopted


class AppendTests(JournalTestCase):
    """Writing."""

    def test_line(self) -> None:
        """An entry is one line of JSON, in the file when append returns."""
        journal = self.open()
        journal.append(entry(1))
        journal.append(entry(2, cost_picousd=None, tags=("a", "b"), end_user="Zoë\n"))
        data = Path(journal.folder.segment(1)).read_bytes()
        lines = data.splitlines()
        self.assertEqual(len(lines), 2)
        self.assertEqual(msgspec.json.decode(lines[0])["request_id"], "request-00000001")
        self.assertEqual(msgspec.json.decode(lines[1], type=LedgerEntry).end_user, "Zoë\n")
        self.assertEqual(journal.position, Position(1, len(data)))
        self.assertEqual(journal.bytes, len(data))

    def test_private(self) -> None:
        """Who spent what is nobody else's business."""
        journal = self.open()
        journal.append(entry())
        for path in (journal.directory, journal.folder.path, journal.folder.segment(1)):
            self.assertEqual(os.stat(path).st_mode & 0o077, 0, path)

    def test_one_write(self) -> None:
        """An entry is one call of write."""
        journal = self.open()
        writes = []
        real = os.write
        self.patch(module.os, "write", lambda fd, data: writes.append(data) or real(fd, data))
        journal.append(entry())
        self.assertEqual(len(writes), 1)

    def test_unstorable_text(self) -> None:
        """What a client has sent cannot make an entry that a database refuses."""
        journal = self.open()
        kept = journal.append(
            entry(1, end_user="nul\0 and \ud800", session_id="x" * 100_000, tags=("t",) * 1000)
        )
        self.assertEqual(kept.end_user, "nul\ufffd and ?")
        self.assertEqual(len(kept.session_id), 512)
        self.assertEqual(len(kept.tags), 64)
        self.assertEqual(kept.cost_picousd, 8_400_001)
        [read] = journal.folder.span(Position(0, 0), journal.position).read(10).entries
        self.assertEqual(read, kept)
        self.assertEqual(journal.append(entry(2, end_user="\0")).end_user, "\ufffd")

    def test_after_a_longer_one(self) -> None:
        """Nothing of a line is in the next one, and what is no NUL stays as it is."""
        journal = self.open()
        texts = ("x" * 400, "", r"\u0000", "\n\\" * 50, "a", "\ud800", "b")
        written = [
            journal.append(entry(number, end_user=text)) for number, text in enumerate(texts)
        ]
        span = journal.folder.span(Position(0, 0), journal.position)
        self.assertEqual(span.read(100).entries, written)
        self.assertEqual([one.end_user for one in written], [*texts[:5], "?", "b"])

    def test_segments(self) -> None:
        """A segment that has grown is followed by another; those done with go."""
        journal = self.open(segment_bytes=2000)
        positions = []
        for number in range(20):
            journal.append(entry(number))
            positions.append(journal.position)
        last = journal.position.segment
        self.assertGreater(last, 4)
        journal.forget(positions[10])
        job = journal.housekeeping()
        assert job is not None
        job()
        names = sorted(os.listdir(journal.folder.path))
        left = [f"{number:08d}.jsonl" for number in range(positions[10].segment, last + 1)]
        self.assertEqual(names, [*left, "lock"])
        self.assertEqual(
            journal.bytes,
            sum(os.path.getsize(os.path.join(journal.folder.path, name)) for name in left),
        )
        span = journal.folder.span(positions[10], journal.position)
        self.assertEqual(span.read(100).entries, [entry(number) for number in range(11, 20)])

    def test_age(self) -> None:
        """A quiet gateway leaves little to replay: an old segment goes when it is done with."""
        now = [0.0]
        journal = self.open(segment_age_s=300, monotonic=lambda: now[0])
        journal.append(entry())
        journal.forget(journal.position)
        now[0] = 301
        job = journal.housekeeping()
        assert job is not None
        job()
        self.assertEqual(sorted(os.listdir(journal.folder.path)), ["00000002.jsonl", "lock"])
        self.assertEqual(journal.bytes, 0)
        self.assertIsNone(journal.housekeeping())

    def test_flush(self) -> None:
        """What was written is brought to the disk, and only then is there work to do."""
        journal = self.open()
        synced: list[int] = []
        self.patch(module.os, "fdatasync", synced.append)
        for _ in range(2):
            journal.append(entry())
            job = journal.housekeeping()
            assert job is not None
            self.assertIsNone(journal.housekeeping())
            job()
        self.assertEqual(len(synced), 2)

    def test_flush_of_full_segment(self) -> None:
        """A segment that is full is flushed and closed by the next housekeeping."""
        journal = self.open(segment_bytes=100)
        for number in range(5):
            journal.append(entry(number))
        before = len(os.listdir("/proc/self/fd"))
        job = journal.housekeeping()
        assert job is not None
        job()
        self.assertEqual(len(os.listdir("/proc/self/fd")), before - 4)

    def test_flush_fails(self) -> None:
        """A disk that cannot flush is reported once, and when it can again."""
        journal = self.open()

        def fail(fd: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        patch = self.patch(module.os, "fdatasync", fail)
        for _ in range(3):
            journal.append(entry())
            job = journal.housekeeping()
            assert job is not None
            error = self.assertRaises(OSError, job)
            journal.flushed(error)
        assert journal.failure is not None
        self.assertEqual(journal.failure.errno, errno.EIO)
        self.assertEqual(len(self.messages()), 1)
        patch.restore()
        job = journal.housekeeping()
        assert job is not None
        job()
        journal.flushed(None)
        self.assertIsNone(journal.failure)

    def test_full(self) -> None:
        """At its bound it is full; an eighth more is taken for what is on its way."""
        journal = self.open(max_bytes=4000, segment_bytes=1000)
        count = 0
        while not journal.full:
            journal.append(entry(count))
            count += 1
        self.assertLessEqual(4000, journal.bytes)
        error = self.assertRaises(JournalFull, lambda: [journal.append(entry()) for _ in range(9)])
        self.assertEqual(error.status, 503)
        self.assertLess(journal.bytes, 4501)
        journal.forget(journal.position)
        self.assertFalse(journal.full)
        journal.append(entry())


class DiskTests(JournalTestCase):
    """A disk that is full or broken."""

    def fail(self, journal: Journal, number: int, written: int = 0) -> Callable[[], None]:
        """
        Let writes to the journal fail.

        :param written: bytes that get there before.
        :returns: what mends it.
        """
        real = os.write
        left = [written]

        def write(fd: int, data: bytes) -> int:
            if fd != journal._fd:
                return real(fd, data)
            if left[0]:
                count, left[0] = left[0], 0
                return real(fd, data[:count])
            raise OSError(number, os.strerror(number))

        return self.patch(module.os, "write", write).restore

    def test_no_space(self) -> None:
        """Nothing of the entry stays; when there is space again, the next one is whole."""
        for number, written in ((errno.ENOSPC, 0), (errno.ENOSPC, 100), (errno.EIO, 1)):
            journal = self.open()
            journal.append(entry(1))
            position = journal.position
            mend = self.fail(journal, number, written)
            error = self.assertRaises(JournalUnwritable, journal.append, entry(2))
            self.assertEqual((error.errno, error.status), (number, 503))
            self.assertIn(os.strerror(number), error.detail)
            self.assertNotIn("journal", error.message)
            self.assertEqual(journal.position, position)
            self.assertIs(journal.failure, error)
            self.assertRaises(JournalUnwritable, journal.append, entry(3))
            mend()
            journal.append(entry(4))
            self.assertIsNone(journal.failure)
            read = journal.folder.span(Position(0, 0), journal.position).read(10)
            self.assertEqual((read.entries, read.corrupt), ([entry(1), entry(4)], []))
        self.assertEqual(len(self.messages()), 3)

    def test_short_write(self) -> None:
        """A write that took only a part is completed."""
        journal = self.open()
        real = os.write
        self.patch(module.os, "write", lambda fd, data: real(fd, data[:100]))
        journal.append(entry(1))
        read = journal.folder.span(Position(0, 0), journal.position).read(10)
        self.assertEqual(read.entries, [entry(1)])

    def test_torn_and_cannot_truncate(self) -> None:
        """A torn line that cannot be taken back is never written behind."""
        journal = self.open()
        journal.append(entry(1))
        mend = self.fail(journal, errno.EIO, 50)
        patch = self.patch(module.os, "ftruncate", lambda fd, size: os.close(-1))
        self.assertRaises(JournalUnwritable, journal.append, entry(2))
        patch.restore()
        mend()
        journal.append(entry(3))
        self.assertEqual(journal.position.segment, 2)
        read = journal.folder.span(Position(0, 0), journal.position).read(10)
        self.assertEqual((read.entries, read.corrupt), ([entry(1), entry(3)], []))
        journal.close(False)
        [adopted] = self.open().adopted
        self.assertEqual(entries_of(adopted), [entry(1), entry(3)])

    def test_found_mended(self) -> None:
        """Without an entry to write, housekeeping finds that there is space again."""
        journal = self.open()
        mend = self.fail(journal, errno.ENOSPC)
        self.assertRaises(JournalUnwritable, journal.append, entry(1))
        journal.housekeeping()
        self.assertIsNotNone(journal.failure)
        mend()
        journal.housekeeping()
        self.assertIsNone(journal.failure)
        self.assertEqual(os.path.getsize(journal.folder.segment(1)), 0)

    def test_no_new_segment(self) -> None:
        """Without a file descriptor for a new segment, the old one goes on."""
        journal = self.open(segment_bytes=100)
        journal.append(entry(1))

        def refuse(*arguments: Any) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

        self.patch(module.os, "open", refuse)
        journal.append(entry(2))
        self.assertEqual(journal.position.segment, 1)
        self.assertIn("Too many open files", self.messages()[0])

    def test_file_size_limit(self) -> None:
        """Where files may not grow any more, an entry is refused and the next is kept."""
        child = run_child("limited", self.path("journal"))
        output = child.communicate(timeout=30)[0].decode().splitlines()
        self.assertEqual(child.returncode, 0)
        kept = {line.split()[0] for line in output if not line.startswith("refused")}
        refused = [line for line in output if line.startswith("refused")]
        self.assertEqual(len(kept) + len(refused), 1000)
        self.assertGreater(len(refused), 5)
        self.assertLess(len(refused), 100)
        self.assertIn("File too large", refused[0])
        [adopted] = self.open().adopted
        self.assertEqual({one.request_id for one in entries_of(adopted)}, kept)


class ReplayTests(JournalTestCase):
    """What a process left that was killed."""

    def test_torn_line(self) -> None:
        """A line that was cut at any byte is no entry; the others are."""
        good = b"".join(module.encode(entry(number)) + b"\n" for number in range(3))
        last = module.encode(entry(3))
        for cut in (1, 10, len(last) // 2, len(last) - 1):
            adopted = self.killed(good + last[:cut])
            read = adopted.span(Position(0, 0), adopted.end).read(100)
            self.assertEqual(read.entries, [entry(number) for number in range(3)])
            self.assertEqual((read.corrupt, read.end), ([], adopted.end))
            adopted.remove()

    def test_only_newline_missing(self) -> None:
        """An entry that is whole but for its newline counts."""
        adopted = self.killed(module.encode(entry(1)))
        self.assertEqual(entries_of(adopted), [entry(1)])

    def test_corrupt_lines(self) -> None:
        """Lines in a row that are no entries are one finding, with file, offset and bytes."""
        good = [module.encode(entry(number)) + b"\n" for number in range(3)]
        bad = b'{"request_id": 1}\n\0\0\0\0\n\xff\n'
        adopted = self.killed(good[0] + bad + good[1] + b"[]\n\n  \n" + good[2])
        read = adopted.span(Position(0, 0), adopted.end).read(100)
        self.assertEqual(read.entries, [entry(0), entry(1), entry(2)])
        self.assertEqual([one.data for one in read.corrupt], [bad, b"[]\n"])
        self.assertEqual(read.corrupt[0].offset, len(good[0]))
        self.assertEqual(read.corrupt[0].path, adopted.segment(1))
        self.assertIn("expected `str`", read.corrupt[0].reason.lower())

    def test_garbage(self) -> None:
        """A segment that is nothing but zeros, as after a power failure, is passed over."""
        adopted = self.killed(b"\0" * 3_000_000)
        read = adopted.span(Position(0, 0), adopted.end).read(100)
        self.assertEqual((read.entries, read.end), ([], adopted.end))

    def test_set_aside(self) -> None:
        """The same bytes are set aside once, however often they are found."""
        path = set_aside(self.folder, "found.txt", b"bytes")
        assert path is not None
        self.assertEqual(Path(path).read_bytes(), b"bytes")
        self.assertIsNone(set_aside(self.folder, "found.txt", b"bytes"))

    def test_any_batch_size(self) -> None:
        """Entries come out the same however many are read at once."""
        journal = self.open(segment_bytes=1500)
        entries = [entry(number, session_id="x" * (number * 31 % 400)) for number in range(50)]
        for one in entries:
            journal.append(one)
        for size in (1, 2, 7, 50, 51):
            start, found = Position(0, 0), []
            span = whole = journal.folder.span(start, journal.position)
            while start != journal.position:
                batch = journal.folder.span(start, journal.position).read(size)
                found += batch.entries
                start = batch.end
            self.assertEqual(found, entries)
            found = []
            while span.pieces:
                batch = span.read(size)
                found += batch.entries
                span = span.after(batch.end)
            self.assertEqual(found, entries)
            self.assertEqual(whole.after(journal.position).pieces, ())

    def test_long_line(self) -> None:
        """A line longer than what is read at once."""
        line = module.encode(entry(1, session_id="x" * 2_500_000)) + b"\n"
        adopted = self.killed(line + module.encode(entry(2)) + b"\n")
        self.assertEqual([one.request_id[-1] for one in entries_of(adopted)], ["1", "2"])

    def test_future_fields(self) -> None:
        """A line that a newer version wrote is read as far as it is known."""
        line = module.encode(entry(1))[:-1] + b',"colour":"blue"}\n'
        self.assertEqual(entries_of(self.killed(line)), [entry(1)])

    def test_segment_gone(self) -> None:
        """Whoever reads a segment that was removed is told so."""
        journal = self.open(segment_bytes=100)
        for number in range(3):
            journal.append(entry(number))
        span = journal.folder.span(Position(0, 0), journal.position)
        journal.forget(journal.position)
        job = journal.housekeeping()
        assert job is not None
        job()
        self.assertRaises(SegmentGone, span.read, 10)


class FolderTests(JournalTestCase):
    """Each process has a folder, and a dead one's is taken over."""

    def test_live(self) -> None:
        """Two processes in one directory do not touch each other's folder."""
        first, second = self.open(), self.open()
        first.append(entry(1))
        self.assertNotEqual(first.folder.path, second.folder.path)
        self.assertEqual(second.adopt(), 0)
        error = self.assertRaises(JournalInUse, Folder.take, first.folder.path)
        self.assertIn(f"in use by the process {os.getpid()}", str(error))

    def test_dead(self) -> None:
        """A folder that is left is adopted by one process only, and goes with its entries."""
        first = self.open()
        first.append(entry(1))
        path = first.folder.path
        first.close(False)
        second, third = self.open(), self.open()
        self.assertEqual(third.adopted, [])
        [adopted] = second.adopted
        self.assertEqual(adopted.path, path)
        self.assertEqual(second.bytes, adopted.bytes)
        self.assertEqual(entries_of(adopted), [entry(1)])
        second.forget_adopted(adopted, adopted.end)
        self.assertEqual((second.adopted, second.bytes), ([], 0))
        self.assertFalse(os.path.exists(path))

    def test_adopted_gone(self) -> None:
        """A folder that another one has removed meanwhile is not adopted."""
        first = self.open()
        path = first.folder.path
        first.close(False)
        taken = Folder.take(path)
        lock = os.open(os.path.join(path, "lock"), os.O_RDWR)
        taken.remove()
        self.patch(module.os, "open", lambda *arguments: os.dup(lock))
        self.assertRaises(FileNotFoundError, Folder.take, path)
        os.close(lock)

    def test_clean(self) -> None:
        """When all is in the database, nothing is left but the directory."""
        journal = self.open()
        journal.append(entry(1))
        journal.forget(journal.position)
        journal.close(True)
        self.assertEqual(os.listdir(journal.directory), [])

    def test_mended_lines(self) -> None:
        """Lines that a human has put into a folder of their own are adopted."""
        folder = Path(self.path("journal", "mended"))
        folder.mkdir(parents=True)
        (folder / "00000001.jsonl").write_bytes(module.encode(entry(1)) + b"\n")
        Path(self.path("journal", "aside")).mkdir()
        [adopted] = self.open().adopted
        self.assertEqual(entries_of(adopted), [entry(1)])

    def test_cannot_open(self) -> None:
        """A directory that cannot be had is a clear error."""
        Path(self.path("file")).touch()
        journal = Journal(self.path("file", "journal"))
        error = self.assertRaises(JournalUnwritable, journal.open)
        self.assertIn("cannot open the journal in", error.detail)
        self.assertRaises(JournalUnwritable, journal.append, entry())
