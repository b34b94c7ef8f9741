"""
A request's body: bounded, hashed as it arrives, on disk when it is big.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from typing import IO, TypeVar

from twisted.internet.defer import Deferred, DeferredLock, fail, succeed
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

__all__ = ["Body"]

_IN_MEMORY = 1024 * 1024
_READ_SIZE = 128 * 1024

# How much may wait for the disk before the client is asked to stop sending.
_WRITE_BACKLOG = 1024 * 1024

# A longer one takes milliseconds, and everything else would wait for it.
_EDITED_AT_ONCE = 64 * 1024

_one_edits = DeferredLock()

T = TypeVar("T")


class Body:
    """
    Takes a body piece by piece, then gives it out any number of times.

    Up to 1 MiB stays in memory; a longer one goes to an unnamed temporary
    file, written and read in threads.

    :param pause: called when the client sends faster than the disk writes.
    :param resume: called when it may go on.
    """

    _log = Logger()

    def __init__(
        self,
        pause: Callable[[], object] = lambda: None,
        resume: Callable[[], object] = lambda: None,
    ) -> None:
        self._pause = pause
        self._resume = resume
        self._hash: hashlib._Hash | None = hashlib.sha256()
        self._pieces: list[bytes] = []
        self._whole = b""
        self._file: IO[bytes] | None = None
        self._spooled = False
        self._unwritten: list[bytes] = []
        self._unwritten_bytes = 0
        self._writing = False
        self._paused = False
        self._closed = False
        self._reads = 0
        self._edits: tuple[Body, ...] = ()
        self._ended: Deferred[None] | None = None
        self._failure: Failure | None = None
        self.length = 0

    # While it arrives.

    def write(self, data: bytes) -> None:
        """Take the next piece."""
        assert self._hash is not None
        self.length += len(data)
        self._hash.update(data)
        if not self._spooled:
            self._pieces.append(data)
            if self.length <= _IN_MEMORY:
                return
            self._spooled = True
            self._whole = b"".join(self._pieces)
            self._pieces.clear()
            data = self._whole
        self._unwritten.append(data)
        self._unwritten_bytes += len(data)
        if self._unwritten_bytes > _WRITE_BACKLOG and not self._paused:
            self._paused = True
            self._pause()
        if not self._writing:
            self._write_on()

    def ended(self) -> bool:
        """
        No more pieces will come.

        :returns: all are where they belong; if not, :meth:`complete` waits for them.
        """
        if self._spooled:
            return False
        self._whole = b"".join(self._pieces)
        self._pieces.clear()
        return True

    async def complete(self) -> None:
        """
        No more pieces will come; wait until all are where they belong.

        :raises OSError: the disk did not take them.
        """
        if self.ended():
            return
        if self._writing:
            self._ended = Deferred()
            await self._ended
        if self._failure is not None:
            self._failure.raiseException()

    def _write_on(self) -> None:
        self._writing = True
        data = b"".join(self._unwritten)
        self._unwritten.clear()
        deferToThread(self._append, data).addCallbacks(self._written, self._unwritable)

    def _append(self, data: bytes) -> int:
        if self._file is None:
            # Closed by close(); unnamed, so nothing is left behind by a crash.
            # Without a buffer, which a full disk would leave for close() to write.
            self._file = tempfile.TemporaryFile(prefix="txbedrock-", buffering=0)  # noqa: SIM115
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        return len(data)

    def _written(self, count: int) -> None:
        self._unwritten_bytes -= count
        self._writing = False
        if self._closed:
            self._close_file()
            return
        if self._unwritten:
            self._write_on()
        if self._paused and self._unwritten_bytes <= _WRITE_BACKLOG // 2:
            self._paused = False
            self._resume()
        if not self._writing and self._ended is not None:
            self._ended.callback(None)

    def _unwritable(self, failure: Failure) -> None:
        self._failure = failure
        self._unwritten.clear()
        self._written(self._unwritten_bytes)

    # When it is whole.

    @property
    def sha256(self) -> str:
        """Lower-case hex."""
        assert self._hash is not None
        return self._hash.hexdigest()

    def start(self) -> bytes:
        """The whole body if it is small (at most 1 MiB), else its beginning."""
        return self._whole

    def producer(self) -> IBodyProducer | None:
        """A new producer of the whole body; None when it is empty."""
        if not self.length:
            return None
        if self._file is None:
            return _BytesProducer(self._whole)
        return _FileProducer(self, self.length)

    async def edited(self, edit: Callable[[bytes], bytes]) -> Body:
        """
        A copy that something was changed in. It is given back with this one.

        A spooled one is in memory meanwhile, one at a time in the whole process.

        :raises OSError: the disk did not take it.
        """
        body = Body()
        if self._file is None:
            whole = self._whole
            long = len(whole) > _EDITED_AT_ONCE
            body.write(await deferToThread(edit, whole) if long else edit(whole))
            await body.complete()
        else:
            await _one_edits.run(self._edit_in_thread, edit, body)
        self._edits += (body,)
        if self._closed:
            body.close()
        return body

    def _edit_in_thread(self, edit: Callable[[bytes], bytes], body: Body) -> Deferred[None]:
        if self._file is None or self._closed:
            return fail(OSError("the request body is gone: its client has left"))
        self._reads += 1
        file = self._file.fileno()

        def in_thread() -> None:
            data = edit(os.pread(file, self.length, 0))
            body._hash = hashlib.sha256(data)
            body.length = len(data)
            body._spooled = True
            body._whole = data[:_IN_MEMORY]
            body._append(data)

        # The client may leave meanwhile; the file stays open until the thread is back.
        edited: Deferred[None] = Deferred()
        deferToThread(in_thread).addBoth(self._read_done).addCallbacks(
            edited.callback, edited.errback
        )
        return edited

    def read(self, position: int) -> Deferred[bytes]:
        """The next piece of a spooled body, read in a thread."""
        if self._file is None or self._closed:
            return fail(OSError("the request body is gone: its client has left"))
        self._reads += 1
        # pread keeps no position: attempts that overlap do not disturb each other.
        return deferToThread(os.pread, self._file.fileno(), _READ_SIZE, position).addBoth(
            self._read_done
        )

    def _read_done(self, result: T) -> T:
        self._reads -= 1
        if self._closed:
            self._close_file()
        return result

    def let_go(self) -> None:
        """
        Give back memory, up to a megabyte: nobody will ask for the body again.

        Who has a producer of it may go on: that holds what it needs, or reads the file.
        """
        for body in self._edits:
            body.let_go()
        self._whole = b""
        self._pause = self._resume = _nothing
        self._hash = None

    def close(self) -> None:
        """Give back memory and disk."""
        self._closed = True
        for body in self._edits:
            body.close()
        self._whole = b""
        self._pieces.clear()
        self._unwritten.clear()
        if self._file is not None:
            self._close_file()

    def _close_file(self) -> None:
        # A thread may still be at it; the last one to come back closes.
        if self._file is not None and not self._writing and not self._reads:
            # It has no name: with it goes all that it holds, 7 ms for 25 MB.
            closing, self._file = self._file, None
            deferToThread(closing.close).addErrback(self._unclosable)

    def _unclosable(self, failure: Failure) -> None:
        self._log.failure("a spooled request body could not be closed", failure)


def _nothing() -> None:
    """The whole body is here."""


@implementer(IBodyProducer)
class _BytesProducer:
    """Everything at once: the transport buffers what the socket does not take."""

    def __init__(self, body: bytes) -> None:
        self.length = len(body)
        self.whole = body
        """For who can send it with the head, and needs no producer."""

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self.whole)
        return succeed(None)

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        pass


@implementer(IBodyProducer, IPushProducer)
class _FileProducer:
    """Reads in a thread, one piece ahead of the socket."""

    def __init__(self, body: Body, length: int) -> None:
        self._body = body
        self.length = length
        self._position = 0
        self._consumer: IConsumer | None = None
        self._done: Deferred[None] | None = None
        self._paused = False
        self._reading = False

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        self._consumer = consumer
        self._done = Deferred(lambda _: self.stopProducing())
        self._read_on()
        return self._done

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._read_on()

    def stopProducing(self) -> None:
        self._consumer = None

    def _read_on(self) -> None:
        if self._reading or self._paused or self._consumer is None:
            return
        if self._position >= self.length:
            self._finish(None)
            return
        self._reading = True
        self._body.read(self._position).addCallbacks(self._got, self._finish)

    def _got(self, data: bytes) -> None:
        self._reading = False
        if self._consumer is None:
            return
        if not data:
            self._finish(Failure(OSError("the spooled request body is shorter than it was")))
            return
        self._position += len(data)
        self._consumer.write(data)
        self._read_on()

    def _finish(self, failure: Failure | None) -> None:
        self._reading = False
        done, self._done = self._done, None
        if done is None or self._consumer is None:
            return
        self._consumer = None
        if failure is None:
            done.callback(None)
        else:
            done.errback(failure)
