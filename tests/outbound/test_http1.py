"""
The engine of the forward path, over real sockets, with servers that misbehave.
"""

from __future__ import annotations

import gc
import random
import time
import weakref
from itertools import pairwise
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web._newclient import ParseError, RequestGenerationFailed, RequestTransmissionFailed
from twisted.web.client import ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests.fakes import (
    GatewayTestCase,
    Received,
    ScriptedUpstream,
    UpstreamConnection,
    answer,
    chunk,
    pause,
    until,
)
from txbedrock.inbound.body import Body
from txbedrock.outbound.agent import ExactAgent, Pool, https_policy
from txbedrock.outbound.http1 import Chunks, Connection, Request, Response

HOST = [(b"Host", b"h")]
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MB = 1_000_000


class Receiver(Protocol):
    """Takes a body."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.reason: Failure | None = None
        self.over: Deferred[None] = Deferred()
        self.transport: Any

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.reason = reason
        self.over.callback(None)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


@implementer(IBodyProducer)
class Producer:
    """Produces pieces, all at once or when told to, and notes what it is asked."""

    def __init__(self, pieces: list[bytes], length: object = None, now: bool = True) -> None:
        self.length = sum(map(len, pieces)) if length is None else length
        self.pieces = pieces
        self.now = now
        self.asked: list[str] = []
        self.done: Deferred[None] = Deferred()
        self.consumer: Any = None

    def startProducing(self, consumer: Any) -> Deferred[None]:
        self.consumer = consumer
        if self.now:
            self.go()
        return self.done

    def go(self) -> None:
        """Produce everything."""
        for piece in self.pieces:
            self.consumer.write(piece)
        self.done.callback(None)

    def pauseProducing(self) -> None:
        self.asked.append("pause")

    def resumeProducing(self) -> None:
        self.asked.append("resume")

    def stopProducing(self) -> None:
        self.asked.append("stop")


class EngineTestCase(GatewayTestCase):
    """An agent, and a server that does as it is told."""

    upstream: ScriptedUpstream

    async def prepare(self, **limits: Any) -> None:
        self.upstream = await self.start_upstream()
        self.agent, self.pool = self.new_agent(**limits)

    def new_agent(self, **limits: Any) -> tuple[ExactAgent, Pool]:
        limits.setdefault("max_idle", 10)
        limits.setdefault("connect_timeout_s", 5.0)
        pool = Pool(reactor, **limits)
        self.addCleanup(pool.closeCachedConnections)
        return ExactAgent(pool, https_policy(None)), pool

    def send(
        self, method: bytes = b"POST", producer: Any = None, headers: Any = HOST
    ) -> Deferred[Response]:
        url = b"http://127.0.0.1:%d/x" % self.upstream_port
        return self.agent.request(method, url, headers, producer)

    async def get(self, method: bytes = b"POST") -> tuple[Response, Receiver]:
        """Ask, and take the answer to its end."""
        response = await self.send(method)
        receiver = Receiver()
        response.deliverBody(receiver)
        await receiver.over
        return response, receiver

    def says(self, data: bytes, then: str = "") -> None:
        """The server's answer to everything, and what it does to the connection."""

        def script(up: UpstreamConnection, _: Received) -> None:
            up.write(data)
            if then == "close":
                up.close()
            elif then == "reset":
                # After the data has left.
                Deferred.fromCoroutine(pause(0.05)).addCallback(lambda _: up.reset())

        self.upstream.script = script


class AnswerTests(EngineTestCase):
    """What comes is what the server sent."""

    async def test_response(self) -> None:
        """The parts of an answer, as they are and as twisted.web tells them."""
        await self.prepare()
        self.says(
            b"HTTP/1.1 203 Odd One\r\nx-ODD: a\r\nX-Other:  b \r\nx-odd: c\r\n"
            b"Content-Length: 2\r\nKeep-Alive: x\r\n\r\nhi"
        )
        response, receiver = await self.get()
        self.assertEqual((response.code, response.phrase), (203, b"Odd One"))
        self.assertEqual((response.version, response.length), ((b"HTTP", 1, 1), 2))
        self.assertEqual(
            response.raw_headers,
            [
                *[(b"x-ODD", b"a"), (b"X-Other", b"b"), (b"x-odd", b"c")],
                *[(b"Content-Length", b"2"), (b"Keep-Alive", b"x")],
            ],
        )
        self.assertEqual(response.headers, Headers({b"x-odd": [b"a", b"c"], b"x-other": [b"b"]}))
        self.assertEqual(response.request.method, b"POST")
        self.assertEqual(response.request.headers, Headers({b"host": [b"h"]}))
        self.assertTrue(response.request.absoluteURI.endswith(b"/x"))
        self.assertEqual(receiver.body, b"hi")
        self.assertIsNone(response.previousResponse)
        response.setPreviousResponse(response)
        self.assertIs(response.previousResponse, response)

    async def test_framings(self) -> None:
        """Bodies of all kinds, in one piece or byte by byte."""
        await self.prepare()
        nothing = b"HTTP/1.1 %b\r\nContent-Length: 5\r\n\r\n"
        for data, method, body, length, kept in (
            (answer(b"four"), b"POST", b"four", 4, True),
            (answer(b""), b"POST", b"", 0, True),
            (CHUNKED + chunk(b"ab") + chunk(b"c" * 300) + b"0\r\n\r\n", b"GET", None, None, True),
            (CHUNKED + chunk(b"ab") + b"0\r\nX-Sum: 1\r\n\r\n", b"GET", b"ab", None, True),
            (CHUNKED + b"0\r\n\r\n", b"GET", b"", None, True),
            (nothing % b"204 No Content", b"POST", b"", 0, True),
            (nothing % b"304 Not Modified", b"GET", b"", 0, True),
            (nothing % b"200 OK", b"HEAD", b"", 0, True),
            (b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"x"), b"POST", b"x", 1, True),
            (b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n" * 9 + answer(b"x"), b"POST", b"x", 1, True),
            (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", b"POST", b"x", 1, False),
            (answer(b"x", headers=b"Connection: Close\r\n"), b"POST", b"x", 1, False),
            (answer(b"x", headers=b"Connection: a, close\r\n"), b"POST", b"x", 1, False),
        ):
            for slowly in (False, True):

                def script(up: UpstreamConnection, _: Received, data: bytes = data) -> None:
                    up.write(data)

                async def drip(up: UpstreamConnection, data: bytes) -> None:
                    for at in range(len(data)):
                        up.write(data[at : at + 1])
                        await pause(0)

                def drips(up: UpstreamConnection, _: Received, data: bytes = data) -> None:
                    Deferred.fromCoroutine(drip(up, data))

                self.upstream.script = drips if slowly else script
                accepted = self.upstream.accepted
                response, receiver = await self.get(method)
                expected = b"ab" + b"c" * 300 if body is None else body
                self.assertEqual(receiver.body, expected, data)
                told = UNKNOWN_LENGTH if length is None else length
                self.assertEqual(response.length, told, data)
                assert receiver.reason is not None
                self.assertTrue(receiver.reason.check(ResponseDone), data)
                self.assertEqual(self.pool.idle, int(kept), data)
                # The one before may have closed its connection.
                self.assertLessEqual(self.upstream.accepted, accepted + 1)

    async def test_until_close(self) -> None:
        """A body without a length may be whole when the server closes, never when it resets."""
        await self.prepare()
        for then, error in (("close", PotentialDataLoss), ("reset", ResponseFailed)):
            self.says(b"HTTP/1.1 200 OK\r\n\r\nall there is", then)
            response, receiver = await self.get()
            self.assertIs(response.length, UNKNOWN_LENGTH)
            assert receiver.reason is not None
            self.assertTrue(receiver.reason.check(error), then)
            self.assertEqual(receiver.body, b"all there is")

    async def test_late_taker(self) -> None:
        """Who takes the body late gets all of it; the server waits meanwhile."""
        await self.prepare()
        size = 40 * MB
        self.says(answer(bytes(size)))
        response = await self.send()
        await pause(0.2)
        waiting = len(self.upstream.connections[0].transport.dataBuffer)
        self.assertGreater(waiting, size // 4)
        receiver = Receiver()
        response.deliverBody(receiver)
        await receiver.over
        self.assertEqual(len(receiver.body), size)
        with self.assertRaises(RuntimeError):
            response.deliverBody(Receiver())

    async def test_ended_before_it_is_taken(self) -> None:
        """An answer that broke while nobody took it says so to who does."""
        await self.prepare()
        self.says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        response = await self.send()
        self.upstream.connections[0].reset()
        await pause(0.05)
        receiver = Receiver()
        response.deliverBody(receiver)
        await receiver.over
        assert receiver.reason is not None
        self.assertTrue(receiver.reason.check(ResponseFailed))
        self.assertEqual(receiver.body, b"half")

    async def test_pausing(self) -> None:
        """A receiver that pauses from the start, or later, gets no more till it resumes."""
        await self.prepare()
        self.says(answer(bytes(8 * MB)))
        response = await self.send()

        class Pausing(Receiver):
            def connectionMade(self) -> None:
                self.transport.pauseProducing()

        receiver = Pausing()
        response.deliverBody(receiver)
        await pause(0.1)
        # What came with the head, and nothing more.
        self.assertLess(len(receiver.body), 200_000)
        receiver.transport.resumeProducing()
        await receiver.over
        self.assertEqual(len(receiver.body), 8 * MB)

    async def test_stopping(self) -> None:
        """To stop a body closes its connection, paused or not."""
        await self.prepare()
        for paused in (False, True):
            self.says(answer(bytes(20 * MB)))
            response = await self.send()
            receiver = Receiver()
            response.deliverBody(receiver)
            if paused:
                receiver.transport.pauseProducing()
            receiver.transport.stopProducing()
            await receiver.over
            assert receiver.reason is not None
            self.assertTrue(receiver.reason.check(ResponseFailed))
            await until(lambda: not self.upstream.connections)

    async def test_handle_of_an_ended_answer(self) -> None:
        """What is left of an answer has no hold on the connection, which is another's."""
        await self.prepare()
        _, first = await self.get()
        self.says(answer(b"second")[:-1])
        response = await self.send()
        second = Receiver()
        response.deliverBody(second)
        first.transport.pauseProducing()
        first.transport.stopProducing()
        await pause(0.02)
        self.upstream.connections[0].write(b"d")
        await second.over
        self.assertEqual((second.body, self.upstream.accepted), (b"second", 1))

    async def test_receiver_that_fails(self) -> None:
        """A receiver that raises loses its answer, and nobody else does."""
        await self.prepare()

        class Failing(Receiver):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                if data == failing:
                    raise RuntimeError("a bug of the receiver's")

        for failing in (b"a", b"b"):
            self.says(answer(b"abc")[:-2])
            response = await self.send()
            receiver = Failing()
            if failing == b"a":
                with self.assertRaises(RuntimeError):
                    response.deliverBody(receiver)
            else:
                response.deliverBody(receiver)
                self.upstream.connections[0].write(b"b")
            await receiver.over
            assert receiver.reason is not None
            self.assertTrue(receiver.reason.check(ResponseFailed))
            await until(lambda: not self.upstream.connections)
            self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), int(failing == b"b"))

        class FailingAtTheEnd(Receiver):
            def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
                super().connectionLost(reason)
                raise RuntimeError("another bug")

        self.says(answer(b"ab")[:-1])
        response = await self.send()
        last = FailingAtTheEnd()
        response.deliverBody(last)
        self.upstream.connections[-1].write(b"b")
        await last.over
        await pause(0)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.says(answer(b"fine"))
        self.assertEqual((await self.get())[1].body, b"fine")
        self.assertEqual(self.upstream.accepted, 3)

    async def test_concurrent(self) -> None:
        """A hundred at once, each with an answer of its own."""
        await self.prepare(max_idle=7)

        def script(up: UpstreamConnection, received: Received) -> None:
            name = received.get(b"x-name")[0]
            Deferred.fromCoroutine(pause(int(name) % 5 / 100)).addCallback(
                lambda _: up.write(answer(name * 1000))
            )

        self.upstream.script = script

        async def one(name: bytes) -> bytes:
            response = await self.send(headers=[*HOST, (b"X-Name", name)])
            receiver = Receiver()
            response.deliverBody(receiver)
            await receiver.over
            return receiver.body

        for _ in range(3):
            names = [b"%d" % number for number in range(100)]
            asked = [Deferred.fromCoroutine(one(name)) for name in names]
            self.assertEqual([await each for each in asked], [name * 1000 for name in names])
            self.assertEqual(self.pool.idle, 7)
        self.assertEqual(self.pool.opened + self.pool.reused, 300)
        await until(lambda: len(self.upstream.connections) == 7)


class CycleTests(EngineTestCase):
    """What is over is gone, without Python having to look for it."""

    async def test_answer(self) -> None:
        """Neither an answer nor who took its body waits for the collector."""
        await self.prepare()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"

        def later(up: UpstreamConnection, _: Received) -> None:
            up.write(head)
            Deferred.fromCoroutine(pause(0.05)).addCallback(lambda _: up.write(b"hi"))

        gc.disable()
        self.addCleanup(gc.enable)
        for whole in (True, False):
            if whole:
                self.says(head + b"hi")
            else:
                self.upstream.script = later
            response, receiver = await self.get()
            self.assertIs(receiver.transport, response)
            gone = weakref.ref(receiver)
            del response, receiver
            await pause(0.01)
            self.assertIsNone(gone(), whole)

    async def test_delivered_once(self) -> None:
        """A body that is over cannot be delivered again."""
        await self.prepare()
        self.says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        response, _ = await self.get()
        self.assertRaises(RuntimeError, response.deliverBody, Receiver())


class BrokenAnswerTests(EngineTestCase):
    """What is no whole, well-formed answer is never taken for one."""

    async def test_before_the_head(self) -> None:
        """Nothing, or half a head, fails the request; its connection is closed."""
        await self.prepare()
        for data, then, error in (
            (b"", "close", ResponseNeverReceived),
            (b"", "reset", ResponseNeverReceived),
            (b"HTTP/1.1 200 OK\r\nContent-", "close", ResponseFailed),
            (b"HTTP/1.1 100 Continue\r\n\r\n", "close", ResponseFailed),
        ):
            self.says(data, then)
            failure = await self.failure(self.send())
            self.assertIs(failure.type, error, data)

    async def failure(self, asked: Deferred[Response]) -> Failure:
        failures: list[Failure] = []
        asked.addErrback(failures.append)
        await asked
        [failure] = failures
        await until(lambda: not self.upstream.connections)
        return failure

    async def test_refused(self) -> None:
        """Nobody listens."""
        await self.prepare()
        self.upstream_port = 1
        failure = await self.failure(self.send())
        self.assertIs(failure.type, ConnectionRefusedError)

    async def test_malformed_heads(self) -> None:
        """No HTTP is refused at once, though the server says no more and stays."""
        await self.prepare()
        line = b"HTTP/1.1 200 OK\r\n"
        for data in (
            b"220 smtp.example.com ESMTP\r\n",
            b"\r\n" + line,
            b"HTTP/2.0 200 OK\r\n\r\n",
            b"RTSP/1.0 200 OK\r\n\r\n",
            b"HTTP/1.1 +200 OK\r\n\r\n",
            b"HTTP/1.1 099 OK\r\n\r\n",
            b"HTTP/1.1 200 O\0K\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            line + b"A: b\nC: d\r\n",
            line + b"A: b\n\n",
            line + b"A: b\r\n c\r\n\r\n",
            line + b"A : b\r\n\r\n",
            line + b"A: b\0\r\n\r\n",
            line + b"A: b\rc\r\n\r\n",
            line + b"no colon\r\n\r\n",
            line + b"Content-Length: -1\r\n\r\n",
            line + b"Content-Length: 1, 1\r\n\r\n",
            line + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n",
            line + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            line + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            line + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
            line + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            line + b"A: " + b"b" * 17_000,
            line + (b"A: " + b"b" * 1000 + b"\r\n") * 70,
            b"HTTP/1.1 100 Continue\r\nA: bbbbbbb\r\n\r\n" * 2500,
        ):
            self.says(data)
            failure = await self.failure(self.send())
            self.assertIs(failure.type, ResponseFailed, data[:100])
            [reason] = failure.value.reasons  # type: ignore[union-attr]
            self.assertIs(reason.type, ParseError, data[:100])
            # Nothing of what came is in what may be logged.
            self.assertEqual(reason.value.data, b"")
        self.assertEqual(self.pool.idle, 0)

    async def test_broken_bodies(self) -> None:
        """A body that breaks off, or is malformed, ends in a failure after what was good."""
        await self.prepare()
        length = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
        for data, then, good in (
            (length + b"half", "close", b"half"),
            (length + b"half", "reset", b"half"),
            (CHUNKED, "close", b""),
            (CHUNKED + chunk(b"ab"), "close", b"ab"),
            (CHUNKED + chunk(b"ab") + b"5\r\ncd", "close", b"abcd"),
            (CHUNKED + chunk(b"ab") + b"0\r\n", "close", b"ab"),
            (CHUNKED + chunk(b"ab") + b"0\r\nX: ", "reset", b"ab"),
            (CHUNKED + b"zz\r\n", "", b""),
            (CHUNKED + b"0x2\r\nab\r\n", "", b""),
            (CHUNKED + b"-2\r\n", "", b""),
            (CHUNKED + b"2\nab\r\n", "", b""),
            (CHUNKED + b"2 \r\nab\r\n", "", b""),
            (CHUNKED + b"2\r\nabc\r\n", "", b""),
            (CHUNKED + b"2;\x01\r\nab\r\n", "", b""),
            (CHUNKED + b"f" * 16 + b"\r\n", "", b""),
            (CHUNKED + b"2;" + b"x" * 1100, "", b""),
            (CHUNKED + b"0\r\nno trailer\r\n\r\n", "", b""),
            (CHUNKED + b"0\r\nA: b\nC: d\r\n\r\n", "", b""),
            (CHUNKED + b"0\r\n" + b"A: b\r\n" * 12_000, "", b""),
        ):
            self.says(data, then)
            _, receiver = await self.get()
            assert receiver.reason is not None
            self.assertTrue(receiver.reason.check(ResponseFailed), data[:100])
            self.assertEqual(receiver.body, good, data[:100])
            await until(lambda: not self.upstream.connections)
        self.assertEqual(self.pool.idle, 0)

    async def test_more_than_the_answer(self) -> None:
        """What follows an answer is not the next one: its connection is closed."""
        await self.prepare()
        planted = answer(b"of somebody else")
        for data in (
            answer(b"mine") + planted,
            answer(b"mine") + b"\r\n",
            CHUNKED + chunk(b"mine") + b"0\r\n\r\n" + planted,
            CHUNKED + chunk(b"mine") + b"0\r\n\r\n\r\n",
            CHUNKED + chunk(b"mine") + b"0\r\nA: b\r\n\r\nx",
        ):
            self.says(data)
            accepted = self.upstream.accepted
            self.assertEqual((await self.get())[1].body, b"mine")
            self.assertEqual(self.pool.idle, 0)
            self.assertEqual(self.upstream.accepted, accepted + 1)
        self.says(b"HTTP/1.1 204 No Content\r\n\r\n" + planted)
        self.assertEqual((await self.get())[1].body, b"")
        self.says(answer(b"four") + planted)
        self.assertEqual((await self.get(b"HEAD"))[1].body, b"")
        self.assertEqual(self.pool.idle, 0)

    async def test_answer_to_nothing(self) -> None:
        """What comes on an idle connection is no answer to the next request."""
        await self.prepare()
        await self.get()
        self.upstream.connections[0].write(answer(b"of somebody else"))
        await until(lambda: self.pool.idle == 0)
        self.says(answer(b"mine"))
        self.assertEqual((await self.get())[1].body, b"mine")
        self.assertEqual(self.upstream.accepted, 2)

    async def test_cancelled(self) -> None:
        """To cancel closes the connection, and says that it was no fault of the server's."""
        await self.prepare()
        self.says(b"HTTP/1.1 200 OK\r\n")
        for wait in (False, True):
            asked = self.send()
            if wait:
                await until(lambda: len(self.upstream.requests) == 1)
                await pause(0.02)
            asked.cancel()
            failure = await self.failure(asked)
            if failure.check(CancelledError) is None:
                [reason] = failure.value.reasons  # type: ignore[union-attr]
                self.assertTrue(reason.check(CancelledError))
        self.assertEqual(self.pool.connections, 0)


class RequestTests(EngineTestCase):
    """What is asked for is what the server gets."""

    async def test_producers(self) -> None:
        """Bodies with and without a length, at once or later."""
        await self.prepare()
        body = Body()
        body.write(b"from memory")
        await body.complete()
        late = Producer([b"a" * 70_000, b"b"], now=False)
        for producer, expected in (
            (None, b""),
            (body.producer(), b"from memory"),
            (Producer([b"in ", b"pieces"]), b"in pieces"),
            (late, b"a" * 70_000 + b"b"),
        ):
            asked = self.send(producer=producer)
            if producer is late:
                await until(lambda: late.consumer is not None)
                await pause(0.02)
                late.go()
            response = await asked
            response.deliverBody(Receiver())
            received = self.upstream.requests[-1]
            self.assertEqual(received.body, expected)
            self.assertEqual(received.get(b"content-length"), [b"%d" % len(expected)])
        self.assertEqual(self.upstream.accepted, 1)

    async def test_body_is_not_held(self) -> None:
        """While an answer lasts its request's body takes no memory."""
        await self.prepare()
        self.says(CHUNKED)
        body = Body()
        body.write(bytes(MB))
        await body.complete()
        response = await self.send(producer=body.producer())
        self.assertEqual(response.request.wire, b"")
        await until(lambda: bool(self.upstream.requests))
        self.assertEqual(len(self.upstream.requests[0].body), MB)
        response.stopProducing()

    async def test_spooled_body(self) -> None:
        """A big body goes up from its file, no faster than the server takes it."""
        await self.prepare()
        body = Body()
        for number in range(60):
            body.write(b"%04d" % number * 25_000)
        await body.complete()
        self.addCleanup(body.close)
        self.upstream.on_connect = lambda up: up.transport.pauseProducing()
        reads = 0
        read = body.read

        def counted(position: int) -> Deferred[bytes]:
            nonlocal reads
            reads += 1
            return read(position)

        body.read = counted  # type: ignore[method-assign]
        asked = self.send(producer=body.producer())
        await pause(0.3)
        self.assertLess(reads, 40)
        self.upstream.connections[0].transport.resumeProducing()
        response = await asked
        response.deliverBody(Receiver())
        expected = b"".join(b"%04d" % number * 25_000 for number in range(60))
        self.assertTrue(self.upstream.requests[0].body == expected)
        self.assertEqual(self.pool.idle, 1)

    async def test_chunked_request(self) -> None:
        """A body of unknown length is chunked."""
        await self.prepare()
        got = b""

        def on_connect(up: UpstreamConnection) -> None:
            def collect(data: bytes) -> None:
                nonlocal got
                got += data
                if got.endswith(b"0\r\n\r\n"):
                    up.write(answer(b""))

            up.dataReceived = collect  # type: ignore[method-assign]

        self.upstream.on_connect = on_connect
        producer = Producer([b"ab", b"", b"c" * 20], UNKNOWN_LENGTH)
        (await self.send(producer=producer)).deliverBody(Receiver())
        head, _, body = got.partition(b"\r\n\r\n")
        self.assertIn(b"\r\nTransfer-Encoding: chunked\r\n", head + b"\r\n")
        self.assertEqual(body, chunk(b"ab") + chunk(b"c" * 20) + b"0\r\n\r\n")

    async def test_early_answer(self) -> None:
        """An answer that comes before the request is whole is had, and ends the upload."""
        await self.prepare()
        self.upstream.on_connect = lambda up: up.write(answer(b"too long", b"413 Too Long"))
        producer = Producer([b"x"], 10 * MB, now=False)
        response = await self.send(producer=producer)
        receiver = Receiver()
        response.deliverBody(receiver)
        await receiver.over
        self.assertEqual((response.code, receiver.body), (413, b"too long"))
        self.assertEqual((producer.asked, self.pool.idle), (["stop"], 0))
        await until(lambda: not self.upstream.connections)
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_answer_while_sending(self) -> None:
        """An answer may begin before the request is whole, and end after it."""
        await self.prepare()
        self.upstream.on_connect = lambda up: up.write(CHUNKED + chunk(b"a"))
        self.upstream.script = lambda up, _: up.write(chunk(b"b") + b"0\r\n\r\n")
        producer = Producer([b"x" * 10], now=False)
        response = await self.send(producer=producer)
        receiver = Receiver()
        response.deliverBody(receiver)
        producer.go()
        await receiver.over
        self.assertEqual((receiver.body, self.pool.idle), (b"ab", 1))

    async def test_uploads_that_fail(self) -> None:
        """A producer that fails or miscounts, a server that leaves, a cancelled upload."""
        await self.prepare()

        class Raising(Producer):
            def startProducing(self, consumer: Any) -> Deferred[None]:
                raise OSError("the file is gone")

        failing = Producer([], 5, now=False)
        left = Producer([], 5, now=False)
        cancelled = Producer([], 5, now=False)
        for producer, error, act in (
            (Producer([b"too long"], 3), RequestGenerationFailed, None),
            (Producer([b"short"], 10), RequestGenerationFailed, None),
            (Raising([b"x"]), RequestGenerationFailed, None),
            (failing, RequestGenerationFailed, lambda: failing.done.errback(OSError("disk"))),
            (
                left,
                RequestTransmissionFailed,
                lambda: self.upstream.connections[0].reset(),
            ),
            (cancelled, ResponseNeverReceived, None),
        ):
            failures: list[Failure] = []
            asked = self.send(producer=producer)
            asked.addErrback(failures.append)
            if act is not None or producer is cancelled:
                await until(lambda: len(self.upstream.connections) == 1)
                await until(lambda: producer.consumer is not None)  # noqa: B023
            if act is not None:
                act()
            if producer is cancelled:
                asked.cancel()
            await asked
            self.assertIs(failures[0].type, error, failures)
            await until(lambda: not self.upstream.connections)
        self.assertIn("stop", left.asked)
        self.assertIn("stop", cancelled.asked)
        self.assertEqual((self.pool.idle, self.upstream.requests), (0, []))


class WireTests(SynchronousTestCase):
    """The bytes of a request."""

    def wire(self, headers: Any = HOST, method: bytes = b"GET", producer: Any = None) -> bytes:
        return Request(method, b"http://h/x", b"/x", headers, producer).wire

    def test_order_and_case(self) -> None:
        """A list of headers goes out as it is, a ``Headers`` as twisted.web writes it."""
        headers = [(b"x-b", b"1"), (b"HOST", b"h"), (b"X-B", b"2 \xff"), (b"Empty", b"")]
        self.assertEqual(
            self.wire(headers),
            b"GET /x HTTP/1.1\r\nx-b: 1\r\nHOST: h\r\nX-B: 2 \xff\r\nEmpty: \r\n\r\n",
        )
        self.assertEqual(
            self.wire(Headers({b"host": [b"h"], b"x-b": [b"1", b"2"]}), b"POST"),
            b"POST /x HTTP/1.1\r\nContent-Length: 0\r\nHost: h\r\nX-B: 1\r\nX-B: 2\r\n\r\n",
        )

    def test_head_and_body(self) -> None:
        """Head and body of a small request are one write."""

        class Whole:
            length = 6
            whole = b"\r\n\r\nxy"

        request = Request(b"PUT", b"http://h/x", b"/x", HOST, Whole())  # type: ignore[arg-type]
        self.assertEqual(
            request.wire, b"PUT /x HTTP/1.1\r\nContent-Length: 6\r\nHost: h\r\n\r\n\r\n\r\nxy"
        )
        self.assertIsNone(request.producer)
        self.assertFalse(request.repeatable)

    def test_refused(self) -> None:
        """What would be another request than it seems is not sent."""
        for extra in (
            (b"X", b"a\r\nY: b"),
            (b"X", b"a\nb"),
            (b"X", b"a\rb"),
            (b"X", b"\r\n"),
            (b"X", b"a\0"),
            (b"X\r\nY", b"a"),
            (b"X:", b"a"),
            (b"X Y", b"a"),
            (b"", b"a"),
            (b"X\xff", b"a"),
            (b"Content-Length", b"5"),
            (b"content-length", b"0"),
            (b"Transfer-Encoding", b"chunked"),
            (b"host", b"another"),
        ):
            # Twice: what is remembered of names is only what is good.
            for _ in range(2):
                with self.assertRaises(ValueError, msg=extra):
                    self.wire([*HOST, extra])
        for headers in ([], [(b"Hos", b"h")]):
            with self.assertRaises(ValueError):
                self.wire(headers)
        for method in (b"", b"GE T", b"GET\r\n", b"G\xff"):
            with self.assertRaises(ValueError):
                self.wire(method=method)
        for target in (b"/a b", b"/a\r\n", b"/\xff", b""):
            with self.assertRaises(ValueError):
                Request(b"GET", b"http://h", target, HOST, None)

    def test_many_names(self) -> None:
        """Names that clients invent are forgotten."""
        from txbedrock.outbound import http1

        for number in range(3000):
            self.wire([*HOST, (b"x-%d" % number, b"")])
        self.assertLessEqual(len(http1._names), http1._MOST_NAMES)


class ChunksTests(SynchronousTestCase):
    """The framing of chunked bodies."""

    BODY = chunk(b"a" * 300) + b"0A;x=y\r\n0123456789\r\n" + chunk(b"\r\n0\r\n\r\n")
    END = b"0\r\nA: b\r\n\r\n"

    def test_any_pieces(self) -> None:
        """However it comes, the same comes out, and what follows is counted."""
        data = self.BODY + self.END + b"xyz"
        expected = b"a" * 300 + b"0123456789" + b"\r\n0\r\n\r\n"
        for size in (1, 2, 3, 7, 100, 301, 1000):
            chunks, got, after = Chunks(), b"", -1
            pieces = [data[at : at + size] for at in range(0, len(data), size)]
            while after < 0:
                whole, part, after = chunks.feed(pieces.pop(0))
                got += whole + part
            self.assertEqual(got, expected)
            self.assertEqual(after + len(b"".join(pieces)), 3)

    def test_not_copied(self) -> None:
        """What lies inside a chunk is passed on as it is."""
        chunks = Chunks()
        chunks.feed(b"%x\r\n" % MB)
        piece = bytes(65_536)
        self.assertIs(chunks.feed(piece)[1], piece)

    def test_ends_of_chunks(self) -> None:
        """Where a server's chunks end can be seen: most put whole events into them."""
        self.assertEqual(
            Chunks().feed(chunk(b"one") + chunk(b"two") + b"9\r\nthr"), (b"onetwo", b"thr", -1)
        )

    def test_many_small(self) -> None:
        """Runs of tiny chunks among others, cut anywhere, are what they are one by one."""
        chance = random.Random(7)
        look_alike = b"1\r\na\r\n5\r\n\r\n0\r\n\r\n"
        for _ in range(500):
            bodies = []
            for _ in range(chance.randrange(1, 60)):
                size = chance.choice((1, 1, 1, 2, 9, 10, 15, 16, 17, 40))
                bodies.append(chance.choice((chance.randbytes(size), look_alike[:size])))
            data = b"0\r\n\r\n"
            for body in reversed(bodies):
                line = (b"%x", b"%X", b"0%x", b"%x;a=b")[chance.choice((0, 0, 0, 0, 1, 2, 3))]
                data = line % len(body) + b"\r\n" + body + b"\r\n" + data
            cuts = sorted(chance.randrange(1, len(data)) for _ in range(chance.randrange(4)))
            chunks, got, after = Chunks(), b"", -1
            for begin, end in pairwise([0, *cuts, len(data)]):
                if begin < end:
                    whole, part, after = chunks.feed(data[begin:end])
                    got += whole + part
            self.assertEqual((b"".join(bodies), 0), (got, after))

    def test_small_and_wrong(self) -> None:
        """What is no chunk is refused among tiny ones too."""
        for wrong in (b"1\r\nab\r\n", b"1\na\r\n", b"g\r\na\r\n", b"\r\n"):
            with self.assertRaises(ParseError):
                Chunks().feed(chunk(b"a") * 20 + wrong + chunk(b"a") * 20)

    def test_as_quick(self) -> None:
        """
        A piece full of the tiniest chunks takes a few times the CPU of one with chunks of
        64 bytes, not thirteen times.
        """

        def cost(data: bytes) -> float:
            best = 1.0
            for _ in range(20):
                began = time.thread_time()
                Chunks().feed(data)
                best = min(best, time.thread_time() - began)
            return best

        tiny, usual = chunk(b"a") * 10_000, chunk(b"a" * 64) * 860
        self.assertLess(cost(tiny), cost(usual) * 6)


class MemoryTests(SynchronousTestCase):
    """A connection without a socket."""

    def test_chunks(self) -> None:
        """A piece that looks like a chunk is one only where a chunk can begin."""
        alike = chunk(b"abcde")
        cases = (
            ([alike, alike], b"abcdeabcde"),
            # In a chunk, after the first byte of one, where one ends.
            ([alike, b"14\r\n", alike, alike, b"\r\n"], b"abcde" + alike * 2),
            ([alike, b"1", alike, b"z" * 14, b"\r\n"], b"abcde" + b"abcde\r\n" + b"z" * 14),
            ([alike, alike[:-1], b"\n", alike], b"abcde" * 3),
            ([alike, alike[:-2], b"\r", b"\n", alike], b"abcde" * 3),
            # Of another length than it says, and without its end.
            ([alike, b"5\r\nabcdefg", alike], None),
            ([alike, b"5\r\nabcdeXY", alike], None),
            ([alike, alike[:-2], alike], None),
            # Among the trailers.
            ([alike, b"0\r\n", alike], None),
        )
        for pieces, expected in cases:
            self.assertEqual(self.received(pieces), expected, pieces)

    def received(self, pieces: list[bytes]) -> bytes | None:
        """The body that comes of pieces and an end; None: it is refused."""

        class Owner:
            def released(self, connection: Connection) -> None: ...

            def lost(self, connection: Connection) -> None: ...

        connection = Connection(Owner())
        connection.makeConnection(StringTransport())
        receiver = Receiver()
        answer = connection.send(Request(b"GET", b"http://h/", b"/", HOST, None))
        connection.dataReceived(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.successResultOf(answer).deliverBody(receiver)
        for piece in (*pieces, b"0\r\n", b"A: b\r\n", b"\r\n"):
            connection.dataReceived(piece)
        assert receiver.reason is not None
        return receiver.body if receiver.reason.check(ResponseDone) else None

    def test_interfaces(self) -> None:
        """It is what Twisted takes it for."""
        from twisted.internet.interfaces import IHandshakeListener, IProtocol

        class Owner:
            def released(self, connection: Connection) -> None: ...

            def lost(self, connection: Connection) -> None: ...

        connection = Connection(Owner())
        verifyObject(IProtocol, connection)
        verifyObject(IHandshakeListener, connection)
        transport = StringTransport()
        connection.makeConnection(transport)
        answers: list[Any] = []
        connection.send(Request(b"GET", b"http://h/", b"/", HOST, None)).addBoth(answers.append)
        self.assertEqual(transport.value(), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        connection.connectionLost(Failure(ConnectionLost()))
        self.assertTrue(answers[0].check(ResponseNeverReceived))
        self.assertFalse(connection.usable)
