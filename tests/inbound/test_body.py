"""
A request's body on its way through memory or disk.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from typing import IO, Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.fakes import GatewayTestCase, answer, request, until
from txbedrock.inbound import body as body_module
from txbedrock.inbound.body import Body

MIB = 1024 * 1024


def pattern(length: int) -> bytes:
    """Bytes of which no two pieces are alike."""
    block = hashlib.sha256(str(length).encode()).digest()
    return b"".join(n.to_bytes(4, "big") + block for n in range(length // 36 + 1))[:length]


def unnamed_files() -> int:
    """How many files this process has open that have no name."""
    count = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{number}").endswith("(deleted)")
        except FileNotFoundError:
            pass  # The one that the folder itself was listed with.
    return count


def full_disk(**options: object) -> IO[bytes]:
    """A temporary file for which there is no room."""
    return open("/dev/full", "w+b", buffering=0)


@implementer(IConsumer)
class Sink:
    """
    What an upstream's connection is to a producer: written to. That it registers
    is the business of who sends.
    """

    def __init__(self, on_write: Callable[[], object] = lambda: None) -> None:
        self.pieces: list[bytes] = []
        self._on_write = on_write

    def write(self, data: bytes) -> None:
        self.pieces.append(data)
        self._on_write()

    def registerProducer(self, producer: object, streaming: bool) -> None:
        raise NotImplementedError

    def unregisterProducer(self) -> None:
        raise NotImplementedError

    @property
    def data(self) -> bytes:
        return b"".join(self.pieces)


class SlowDisk:
    """Threads that do their work when the test says so."""

    def __init__(self) -> None:
        self._held: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def __call__(self, work: Callable[..., Any], *args: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self._held.append((done, work, args))
        return done

    @property
    def busy(self) -> int:
        """Pieces of work under way."""
        return len(self._held)

    def work(self) -> None:
        """Finish the oldest."""
        done, work, args = self._held.pop(0)
        try:
            result = work(*args)
        except Exception:
            done.errback(Failure())
        else:
            done.callback(result)

    def work_all(self) -> None:
        while self.busy:
            self.work()


class ThreadsTests(TestCase):
    """Bodies with real threads and real files."""

    timeout = 60

    def setUp(self) -> None:
        self.files = unnamed_files()

    async def take(self, *pieces: bytes) -> Body:
        """A whole body; it is closed after the test."""
        body = Body()
        self.addCleanup(body.close)
        for piece in pieces:
            body.write(piece)
        await body.complete()
        return body

    async def give(self, body: Body) -> bytes:
        """All that a new producer gives."""
        producer = body.producer()
        if producer is None:
            return b""
        verifyObject(IBodyProducer, producer)
        sink = Sink()
        await producer.startProducing(sink)
        self.assertEqual(producer.length, len(sink.data))
        return sink.data

    async def test_every_size(self) -> None:
        """A body of any size comes out as it came in, with its length and hash."""
        for length in (0, 1, 1000, MIB - 1, MIB, MIB + 1, 5 * MIB + 17):
            data = pattern(length)
            body = await self.take(data)
            self.assertEqual(body.length, length)
            self.assertEqual(body.sha256, hashlib.sha256(data).hexdigest())
            self.assertEqual(await self.give(body), data)

    async def test_empty(self) -> None:
        """A request without a body has nothing to produce."""
        body = await self.take()
        self.assertIsNone(body.producer())
        self.assertEqual((body.start(), body.length), (b"", 0))

    async def test_memory_up_to_one_mib(self) -> None:
        """Up to exactly 1 MiB no file is opened; one byte more opens one."""
        body = await self.take(pattern(MIB))
        self.assertEqual(unnamed_files(), self.files)
        self.assertEqual(body.start(), pattern(MIB))
        longer = await self.take(pattern(MIB + 1))
        self.assertEqual(unnamed_files(), self.files + 1)
        self.assertEqual(longer.start()[:1000], pattern(MIB + 1)[:1000])

    async def test_pieces(self) -> None:
        """How a body is cut on its way does not matter."""
        for length, size in ((1000, 1), (MIB, 4096), (MIB + 1, 65536), (3 * MIB, 100_003)):
            data = pattern(length)
            body = await self.take(*(data[at : at + size] for at in range(0, length, size)))
            self.assertEqual(body.sha256, hashlib.sha256(data).hexdigest())
            self.assertEqual(await self.give(body), data)

    async def test_several_attempts(self) -> None:
        """Each attempt gets the whole body, one after the other and side by side."""
        for length in (1000, 3 * MIB):
            data = pattern(length)
            body = await self.take(data)
            self.assertEqual(await self.give(body), data)
            self.assertEqual(await self.give(body), data)
            first, second = body.producer(), body.producer()
            assert first is not None and second is not None
            one, other = Sink(), Sink()
            both = first.startProducing(one), second.startProducing(other)
            for finished in both:
                await finished
            self.assertEqual((one.data == data, other.data == data), (True, True))

    async def test_edited(self) -> None:
        """A copy can be changed; that of a long one in a thread, as it takes a while."""
        for length, aside in ((1000, False), (65536, False), (65537, True), (MIB + 1, True)):
            threads: list[bool] = []

            def reversed_(data: bytes) -> bytes:
                threads.append(threading.current_thread() is not threading.main_thread())  # noqa: B023
                return data[::-1]

            body = await self.take(pattern(length))
            edited = await body.edited(reversed_)
            self.assertEqual(await self.give(edited), pattern(length)[::-1])
            self.assertEqual(edited.sha256, hashlib.sha256(pattern(length)[::-1]).hexdigest())
            self.assertEqual(threads, [aside])

    async def test_closed(self) -> None:
        """A closed body has no file open, and can be closed again."""
        body = await self.take(pattern(2 * MIB))
        self.assertEqual(unnamed_files(), self.files + 1)
        body.close()
        body.close()
        await until(lambda: unnamed_files() == self.files)
        self.assertEqual(body.start(), b"")

    async def test_closed_while_writing(self) -> None:
        """A client that leaves while its body is written leaves no file open."""
        body = Body()
        for _ in range(8):
            body.write(pattern(MIB))
        body.close()
        await until(lambda: unnamed_files() == self.files and not body._writing)

    async def test_closed_while_reading(self) -> None:
        """A client that leaves while its body goes up leaves no file open."""
        body = await self.take(pattern(4 * MIB))
        producer = body.producer()
        assert producer is not None
        sink = Sink()
        producer.startProducing(sink).addErrback(lambda failure: failure.trap(OSError))
        body.close()
        producer.stopProducing()
        await until(lambda: unnamed_files() == self.files)

    async def test_full_disk(self) -> None:
        """A disk that takes nothing is an error when the body is complete, no hang."""
        self.patch(
            body_module.tempfile,
            "TemporaryFile",
            full_disk,
        )
        body = Body()
        for _ in range(4):
            body.write(pattern(MIB))
        with self.assertRaises(OSError) as caught:
            await body.complete()
        self.assertIn("No space left", str(caught.exception))
        body.close()

    async def test_no_temporary_folder(self) -> None:
        """The same when no file can be made."""
        self.patch(tempfile, "tempdir", "/no/such/folder")
        body = Body()
        body.write(pattern(2 * MIB))
        with self.assertRaises(OSError):
            await body.complete()
        body.close()
        self.assertEqual(unnamed_files(), self.files)


class BackpressureTests(SynchronousTestCase):
    """A disk that is slower than both ends."""

    def setUp(self) -> None:
        self.disk = SlowDisk()
        self.patch(body_module, "deferToThread", self.disk)
        self.told: list[str] = []
        self.body = Body(lambda: self.told.append("pause"), lambda: self.told.append("resume"))
        self.addCleanup(self.disk.work_all)
        self.addCleanup(self.body.close)

    def complete(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self.body.complete())

    def spool(self, data: bytes) -> None:
        """The whole body at once."""
        self.body.write(data)
        self.disk.work_all()
        self.successResultOf(self.complete())

    def test_client_waits_for_the_disk(self) -> None:
        """More than 1 MiB that waits for the disk stops the client, once, until it is less."""
        self.body.write(pattern(MIB))
        self.assertEqual((self.told, self.disk.busy), ([], 0))
        self.body.write(b"x")
        self.assertEqual(self.told, ["pause"])
        self.body.write(pattern(MIB))
        self.body.write(pattern(MIB))
        self.assertEqual((self.told, self.disk.busy), (["pause"], 1))
        self.disk.work()
        # Two more wait.
        self.assertEqual((self.told, self.disk.busy), (["pause"], 1))
        self.disk.work()
        self.assertEqual((self.told, self.disk.busy), (["pause", "resume"], 0))
        self.body.write(b"y")
        self.disk.work()
        self.assertEqual(self.told, ["pause", "resume"])
        self.successResultOf(self.complete())

    def test_disk_keeps_up(self) -> None:
        """A client that is slower than the disk is never stopped."""
        self.body.write(pattern(MIB))
        for _ in range(100):
            self.body.write(pattern(10_000))
            if self.told:
                self.assertEqual(self.told, ["pause"])
                self.told.clear()
            self.disk.work_all()
            self.told = [word for word in self.told if word != "resume"]
        self.assertEqual(self.told, [])

    def test_complete_waits_for_the_disk(self) -> None:
        """A body is complete when its last byte is on the disk."""
        self.body.write(pattern(2 * MIB))
        self.body.write(b"end")
        done = self.complete()
        self.assertNoResult(done)
        self.disk.work()
        self.assertNoResult(done)
        self.disk.work()
        self.successResultOf(done)

    def test_left_before_complete(self) -> None:
        """A client that leaves then is no error of anybody's."""
        files = unnamed_files()
        self.body.write(pattern(2 * MIB))
        done = self.complete()
        self.body.close()
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.disk.work_all()
        self.assertEqual(unnamed_files(), files)
        self.assertEqual(self.told, ["pause"])

    def test_full_disk_lets_the_client_go_on(self) -> None:
        """A client that was stopped is not left so when the disk fails."""
        self.patch(body_module.tempfile, "TemporaryFile", lambda **options: 1 / 0)
        self.body.write(pattern(2 * MIB))
        self.body.write(b"more")
        self.disk.work()
        self.assertEqual(self.told, ["pause", "resume"])
        self.body.write(b"and more")
        self.disk.work_all()
        self.failureResultOf(self.complete(), ZeroDivisionError)

    def test_disk_fails_in_the_middle(self) -> None:
        """What failed once is not taken for whole, although the rest was written."""
        self.body.write(pattern(2 * MIB))
        self.disk.work()
        append, self.body._append = self.body._append, lambda data: 1 // 0  # type: ignore
        self.body.write(b"lost")
        self.disk.work()
        self.body._append = append  # type: ignore[method-assign]
        self.body.write(b"kept")
        done = self.complete()
        self.disk.work()
        self.failureResultOf(done, ZeroDivisionError)

    def start(self, sink: Sink) -> tuple[Any, Deferred[None]]:
        producer: Any = self.body.producer()
        verifyObject(IPushProducer, producer)
        return producer, producer.startProducing(sink)

    def test_upstream_waits(self) -> None:
        """An upstream that takes no more is given no more, and goes on where it was."""
        data = pattern(3 * MIB)
        self.spool(data)
        sink = Sink()
        producer, done = self.start(sink)
        self.disk.work()
        producer.pauseProducing()
        self.disk.work()
        given = len(sink.pieces)
        self.assertEqual((given, self.disk.busy), (2, 0))
        producer.resumeProducing()
        producer.resumeProducing()
        self.assertEqual(self.disk.busy, 1)
        producer.pauseProducing()
        producer.resumeProducing()
        self.assertEqual(self.disk.busy, 1)
        self.disk.work_all()
        self.successResultOf(done)
        self.assertEqual(sink.data, data)

    def test_upstream_waits_inside_a_write(self) -> None:
        """The same when it says so while it is being written to, each time."""
        data = pattern(3 * MIB)
        self.spool(data)
        producer: Any = None
        sink = Sink(lambda: producer.pauseProducing())
        producer, done = self.start(sink)
        for _ in range(200):
            self.disk.work_all()
            producer.resumeProducing()
        self.successResultOf(done)
        self.assertEqual(sink.data, data)

    def test_stopped(self) -> None:
        """An upstream that is gone is given nothing more, and told nothing."""
        self.spool(pattern(3 * MIB))
        sink = Sink()
        producer, done = self.start(sink)
        self.disk.work()
        producer.stopProducing()
        given = len(sink.pieces)
        self.disk.work_all()
        producer.resumeProducing()
        self.assertEqual((len(sink.pieces), self.disk.busy), (given, 0))
        self.assertNoResult(done)

    def test_stopped_while_reading_fails(self) -> None:
        """A read that fails when nobody waits for it is no error."""
        self.spool(pattern(3 * MIB))
        producer, done = self.start(Sink())
        producer.stopProducing()
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.patch(body_module.os, "pread", lambda *_: 1 / 0)
        self.disk.work_all()

    def test_cancelled(self) -> None:
        """A cancelled attempt reads no further."""
        self.spool(pattern(3 * MIB))
        sink = Sink()
        _, done = self.start(sink)
        done.cancel()
        self.failureResultOf(done, CancelledError)
        self.disk.work_all()
        self.assertEqual(sink.pieces, [])

    def test_read_fails(self) -> None:
        """A disk that gives nothing back fails the attempt."""
        self.spool(pattern(3 * MIB))
        _, done = self.start(Sink())
        os.truncate(self.body._file.fileno(), 1000)  # type: ignore[union-attr]
        self.disk.work_all()
        failure = self.failureResultOf(done, OSError)
        self.assertIn("shorter", str(failure.value))

    def test_client_leaves_while_its_body_goes_up(self) -> None:
        """An attempt that outlives its client fails, and its file is closed."""
        files = unnamed_files()
        self.spool(pattern(3 * MIB))
        sink = Sink()
        producer, done = self.start(sink)
        self.disk.work()
        producer.pauseProducing()
        self.body.close()
        self.assertEqual(unnamed_files(), files + 1)
        self.disk.work_all()
        self.assertEqual(unnamed_files(), files)
        producer.resumeProducing()
        self.failureResultOf(done, OSError)


class FullDiskTests(GatewayTestCase):
    """A gateway whose disk is full."""

    async def test_answered(self) -> None:
        """A body too big for memory is answered with 500; the others are served."""
        await self.start()
        self.patch(
            body_module.tempfile,
            "TemporaryFile",
            full_disk,
        )
        client = await self.ask(request(body=bytes(3 * MIB)))
        self.assertEqual(client.status, 500)
        self.assertIn(b"x-amzn-errortype: internalserverexception", client.head)
        self.assertNotIn(b"No space", client.received)
        self.assertEqual(self.upstream.requests, [])
        [failure] = self.flushLoggedErrors(OSError)
        self.assertIn("No space left", str(failure.value))
        client = await self.ask(request(body=bytes(1000)))
        self.assertEqual(client.status, 200)

    async def test_answered_before_the_body_is_up(self) -> None:
        """An upstream that answers before it has read the body is heard, and let go."""
        await self.start()

        def refuse(up: Any) -> None:
            up.transport.pauseProducing()
            up.write(answer(b"{}", b"429 Too Many Requests"))

        self.upstream.on_connect = refuse
        client = await self.ask(request(body=pattern(20 * MIB)))
        self.assertEqual(client.status, 429)
        [up] = self.upstream.connections
        up.transport.resumeProducing()
        await until(lambda: not self.upstream.connections)
        self.assertEqual(self.flushLoggedErrors(), [])
