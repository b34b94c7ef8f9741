"""
Answers on their way back, over real sockets: whole, cut, slow, stalled, left.
"""

from __future__ import annotations

import json

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone

from tests.fakes import (
    CONVERSE,
    EVENT_STREAM,
    FRAME,
    STREAM,
    GatewayTestCase,
    Received,
    UpstreamConnection,
    answer,
    chunk,
    pause,
    request,
    until,
)
from txbedrock.config import Limits
from txbedrock.core.eventstream import Decoder
from txbedrock.interfaces import Outcome


class WholeTests(GatewayTestCase):
    """Answers that arrive whole."""

    async def test_unary(self) -> None:
        """Status, headers and body come back as Bedrock sent them."""
        await self.start()
        self.upstream.script = lambda up, _: up.write(
            answer(
                b'{ "odd":  1}', headers=b"X-Amzn-Requestid: up-9\r\nX-Thing: a\r\nX-Thing: b\r\n"
            )
        )
        client = await self.ask(request())
        self.assertEqual((client.status, client.body), (200, b'{ "odd":  1}'))
        for line in (b"x-amzn-requestid: up-9", b"x-thing: a", b"x-thing: b"):
            self.assertIn(line, client.head)
        self.assertNotIn(b"server:", client.head)
        [record] = self.records.records
        self.assertEqual(
            (record.status, record.outcome, record.upstream_request_id, record.bytes_down),
            (200, Outcome.COMPLETE, "up-9", 12),
        )

    async def test_what_bedrock_gets(self) -> None:
        """Path, query and body go up byte for byte, signed, without the client's key."""
        await self.start()
        body = b'{"messages":\t[ ],  "x": "\xc3\xa9"}'
        await self.ask(request(f"{CONVERSE}?a=1&&b=%20?&", body, headers=("X-Other: 1",)))
        [got] = self.upstream.requests
        self.assertEqual(got.target, b"/model/anthropic.claude-v1%3A0/converse?a=1&&b=%20?&")
        self.assertEqual(got.body, body)
        self.assertEqual(got.get(b"host"), [b"127.0.0.1:%d" % self.upstream_port])
        self.assertEqual(got.get(b"content-length"), [b"%d" % len(body)])
        [authorization] = got.get(b"authorization")
        self.assertIn(b"AWS4-HMAC-SHA256 Credential=AKIAEXAMPLEEXAMPLE/", authorization)
        self.assertEqual(got.get(b"x-other"), [b"1"])
        self.assertNotIn(b"planted-master", repr(got.headers).encode())

    async def test_upstream_errors_pass(self) -> None:
        """What Bedrock refuses comes back unchanged, on streams too."""
        await self.start()
        self.upstream.script = lambda up, _: up.write(
            answer(
                b'{"message":"slow down"}',
                b"429 Too Many",
                b"x-amzn-ErrorType: ThrottlingException:http://x\r\nRetry-After: 3\r\n",
            )
        )
        for path in (CONVERSE, STREAM):
            client = await self.ask(request(path))
            self.assertEqual((client.status, client.body), (429, b'{"message":"slow down"}'))
            self.assertIn(b"x-amzn-errortype: throttlingexception:http://x", client.head)
            self.assertIn(b"retry-after: 3", client.head)
        self.assertEqual(self.records.records[-1].error, "ThrottlingException")

    async def test_stream(self) -> None:
        """A stream's frames come back unchanged, and its end is its end."""
        await self.start()
        self.upstream.script = lambda up, _: up.write(
            EVENT_STREAM + chunk(FRAME * 3) + chunk(FRAME) + b"0\r\n\r\n"
        )
        client = await self.ask(request(STREAM))
        self.assertEqual(client.dechunked(), FRAME * 4)
        self.assertIn(b"content-type: application/vnd.amazon.eventstream", client.head)
        self.assertIn(b"x-amzn-requestid: up-1", client.head)

    async def test_no_content(self) -> None:
        """Answers without a body keep their connection."""
        await self.start()
        self.upstream.script = lambda up, _: up.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        client = await self.connect()
        for count in (1, 2):
            client.write(request())
            await until(lambda: client.received.count(b"HTTP/1.1 204") == count)  # noqa: B023
        self.assertEqual(self.upstream.accepted, 1)

    async def test_encoded_answer(self) -> None:
        """A compressed answer is relayed as it is."""
        await self.start()
        self.upstream.script = lambda up, _: up.write(
            answer(b"\x1f\x8bnot really", headers=b"Content-Encoding: gzip\r\n")
        )
        client = await self.ask(request())
        self.assertEqual(client.body, b"\x1f\x8bnot really")
        self.assertIn(b"content-encoding: gzip", client.head)

    async def test_incremental(self) -> None:
        """Each event arrives when Bedrock sends it, not when the next comes."""
        await self.start()
        connection: list[UpstreamConnection] = []
        self.upstream.script = lambda up, _: (up.write(EVENT_STREAM), connection.append(up))[0]
        client = await self.connect()
        client.write(request(STREAM))
        await until(lambda: bool(connection))
        for count in range(1, 4):
            connection[0].write(chunk(FRAME))
            await until(lambda: client.dechunked() == FRAME * count)  # noqa: B023

    async def test_requests_behind_a_stream(self) -> None:
        """A connection whose answer takes long reads what comes after it all the same."""
        await self.start()
        streams: list[UpstreamConnection] = []

        def script(up: UpstreamConnection, asked: Received) -> None:
            if b"-stream" in asked.target:
                streams.append(up)
                up.write(EVENT_STREAM + chunk(FRAME))
            else:
                up.write(answer(b'{"second": true}'))

        self.upstream.script = script
        first, second = request(STREAM), request()
        for sent_with_it in (0, 10, 60, len(second)):
            client = await self.connect()
            client.write(first + second[:sent_with_it])
            await until(lambda: client.dechunked() == FRAME)  # noqa: B023
            client.write(second[sent_with_it:])
            await pause(0.05)
            self.assertNotIn(b"second", client.received)
            streams.pop().write(chunk(FRAME) + b"0\r\n\r\n")
            await until(lambda: client.received.endswith(b'{"second": true}'))  # noqa: B023
            self.assertEqual(client.received.count(b"HTTP/1.1 200"), 2)


class CutTests(GatewayTestCase):
    """Answers that break never look whole."""

    async def broken(self, data: bytes, how: str = "reset", limits: Limits | None = None) -> bytes:
        """
        :returns: what the client got when an upstream breaks off after ``data``.
        """
        await self.start(limits)

        def script(up: UpstreamConnection, _: Received) -> None:
            up.write(data)
            if how == "reset":
                # After the data has left.
                Deferred.fromCoroutine(pause(0.05)).addCallback(lambda _: up.reset())
            elif how == "close":
                up.close()

        self.upstream.script = script
        client = await self.ask(request(STREAM))
        self.assertEqual(len(self.records.records), 1)
        self.client = client
        return client.dechunked() if client.head.startswith(b"http/1.1 200") else client.body

    async def assert_exception(self, got: bytes, frames: int) -> None:
        decoded = Decoder().feed(got)
        self.assertEqual(len(decoded), frames + 1)
        last = decoded[-1]
        self.assertEqual(last.headers[":message-type"], "exception")
        self.assertEqual(last.headers[":exception-type"], "internalServerException")
        self.assertIn("message", json.loads(last.payload))
        self.assertTrue(self.client.whole())
        self.assertIs(self.records.records[0].outcome, Outcome.PARTIAL)

    async def test_between_frames(self) -> None:
        """Cut between two frames: a valid exception frame ends the stream."""
        await self.assert_exception(await self.broken(EVENT_STREAM + chunk(FRAME * 2)), 2)

    async def test_closed_between_frames(self) -> None:
        """The same when the upstream closes politely."""
        await self.assert_exception(await self.broken(EVENT_STREAM + chunk(FRAME), how="close"), 1)

    async def test_before_the_first_frame(self) -> None:
        """Cut before the first frame: nothing was sent, so it is an error that SDKs retry."""
        await self.broken(EVENT_STREAM)
        self.assertEqual(self.client.status, 503)
        self.assertIn(b"serviceunavailableexception", self.client.head)

    async def test_with_a_length(self) -> None:
        """A stream whose length was told takes no frame of ours; it is cut."""
        head = EVENT_STREAM.replace(b"Transfer-Encoding: chunked", b"Content-Length: 100000")
        await self.start()

        def script(up: UpstreamConnection, _: Received) -> None:
            up.write(head + FRAME * 2)
            # After the data has left.
            Deferred.fromCoroutine(pause(0.05)).addCallback(lambda _: up.close())

        self.upstream.script = script
        client = await self.ask(request(STREAM))
        self.assertEqual(client.body, FRAME * 2)
        assert client.lost is not None
        self.assertFalse(client.lost.check(ConnectionDone))

    async def test_inside_a_frame(self) -> None:
        """Cut inside a frame: the connection is reset, nothing is made up."""
        got = await self.broken(EVENT_STREAM + chunk(FRAME + FRAME[:7]))
        self.assertEqual(got, FRAME + FRAME[:7])
        self.assertFalse(self.client.whole())
        assert self.client.lost is not None
        self.assertFalse(self.client.lost.check(ConnectionDone))

    async def test_ended_inside_a_frame(self) -> None:
        """An upstream that ends its chunks well but inside a frame is cut all the same."""
        await self.broken(EVENT_STREAM + chunk(FRAME + FRAME[:7]) + b"0\r\n\r\n", how="")
        self.assertFalse(self.client.whole())

    async def test_unary(self) -> None:
        """A long unary answer that breaks is never ended as if it were whole."""
        await self.start()

        def script(up: UpstreamConnection, _: Received) -> None:
            up.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n{half")
            up.close()

        self.upstream.script = script
        client = await self.ask(request())
        self.assertEqual(client.body, b"{half")
        assert client.lost is not None
        self.assertFalse(client.lost.check(ConnectionDone))

    async def test_short_unary(self) -> None:
        """A short one that breaks is an error that SDKs retry: nothing of it was sent."""
        await self.start()

        def script(up: UpstreamConnection, _: Received) -> None:
            up.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{half")
            up.close()

        self.upstream.script = script
        client = await self.ask(request())
        self.assertEqual(client.status, 503)
        self.assertIn(b"serviceunavailableexception", client.head)
        [entry] = self.records.entries
        self.assertEqual((entry.outcome, entry.cost_picousd), ("failed", None))

    async def test_silence(self) -> None:
        """An upstream that falls silent in a stream is given up, and says so."""
        got = await self.broken(
            EVENT_STREAM + chunk(FRAME), how="", limits=Limits(idle_timeout_s=0.2)
        )
        await self.assert_exception(got, 1)
        self.assertEqual(self.records.records[0].error, "idle")
        await until(lambda: not self.upstream.connections)


class BackpressureTests(GatewayTestCase):
    """A slow side slows the other side down."""

    async def test_stalled_client_stops_the_upstream(self) -> None:
        """A client that does not read stops the upstream, then is cut after a while."""
        await self.start(Limits(stalled_client_timeout_s=1.0, shutdown_grace_s=0.2))
        size = 64 * 1024 * 1024
        sent = [0]

        def script(up: UpstreamConnection, _: Received) -> None:
            up.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            piece = bytes(65536)

            class Pump:
                def resumeProducing(self) -> None:
                    if up.transport.connected and sent[0] < size:
                        sent[0] += len(piece)
                        up.transport.write(piece)

                def stopProducing(self) -> None:
                    pass

            up.transport.registerProducer(Pump(), False)

        self.upstream.script = script
        client = await self.connect()
        client.transport.pauseProducing()
        client.write(request())
        await pause(0.6)
        stopped_at = sent[0]
        # Socket buffers on the way take some megabytes; the rest waits.
        self.assertLess(stopped_at, 24 * 1024 * 1024)
        await pause(0.2)
        self.assertEqual(sent[0], stopped_at)
        await until(lambda: bool(self.records.records))
        self.assertEqual(self.records.records[0].error, "stalled")
        await until(lambda: not self.upstream.connections)

    async def test_slow_client_gets_everything(self) -> None:
        """A client that stops and goes on gets every byte."""
        await self.start()
        body = bytes(range(256)) * 64 * 1024
        self.upstream.script = lambda up, _: up.write(answer(body))
        client = await self.connect()
        client.write(request())
        for _ in range(4):
            client.transport.pauseProducing()
            await pause(0.05)
            client.transport.resumeProducing()
            await pause(0.01)
        await until(lambda: client.whole())
        self.assertEqual(client.body, body)


class LeavingTests(GatewayTestCase):
    """Clients that leave."""

    async def test_before_the_head(self) -> None:
        """The upstream is closed at once, and nothing is called a failure."""
        await self.start()
        self.upstream.script = lambda up, _: None
        client = await self.connect()
        client.write(request())
        await until(lambda: len(self.upstream.requests) == 1)
        client.transport.abortConnection()
        await until(lambda: not self.upstream.connections)
        [record] = self.records.records
        self.assertIs(record.outcome, Outcome.CLIENT_GONE)

    async def leave(self, on_disconnect: str) -> UpstreamConnection:
        from txbedrock.core.deployments import OnDisconnect

        self.upstream = await self.start_upstream()
        await self.start_gateway(
            self.settings(
                deployments=(self.deployment(on_disconnect=OnDisconnect(on_disconnect)),),
                limits=Limits(drain_max_bytes=100_000, drain_max_s=20, shutdown_grace_s=0.2),
            )
        )
        connection: list[UpstreamConnection] = []

        def script(up: UpstreamConnection, _: Received) -> None:
            up.write(EVENT_STREAM + chunk(FRAME))
            connection.append(up)

        self.upstream.script = script
        client = await self.connect()
        client.write(request(STREAM))
        await until(lambda: client.dechunked() == FRAME)
        client.transport.abortConnection()
        await until(lambda: client.lost is not None)
        await pause(0.05)
        return connection[0]

    async def test_drain(self) -> None:
        """With drain the rest is read, so that its cost is known."""
        up = await self.leave("drain")
        self.assertEqual(self.records.records, [])
        up.write(chunk(FRAME * 5))
        await pause(0.05)
        up.write(b"0\r\n\r\n")
        await until(lambda: len(self.records.records) == 1)
        [record] = self.records.records
        self.assertEqual(
            (record.outcome, record.bytes_down, record.error),
            (Outcome.CLIENT_GONE, len(FRAME) * 6, ""),
        )

    async def test_drain_is_bounded(self) -> None:
        """A flood is not drained without end."""
        up = await self.leave("drain")
        for _ in range(20):
            up.write(chunk(bytes(10_000)))
        await until(lambda: len(self.records.records) == 1)
        self.assertEqual(self.records.records[0].error, "capped")
        await until(lambda: not self.upstream.connections)

    async def test_cancel(self) -> None:
        """With cancel the upstream is closed at once."""
        await self.leave("cancel")
        await until(lambda: not self.upstream.connections)
        self.assertIs(self.records.records[0].outcome, Outcome.CLIENT_GONE)

    async def test_drain_of_a_paused_stream(self) -> None:
        """A client that stalls and then leaves does not leave the upstream paused."""
        await self.start(Limits(drain_max_bytes=10**9, shutdown_grace_s=0.2))
        body = bytes(16 * 1024 * 1024)
        self.upstream.script = lambda up, _: up.write(answer(body))
        client = await self.connect()
        client.transport.pauseProducing()
        client.write(request())
        await pause(0.4)
        client.transport.abortConnection()
        await until(lambda: len(self.records.records) == 1)
        [record] = self.records.records
        self.assertEqual((record.outcome, record.bytes_down), (Outcome.CLIENT_GONE, len(body)))

    async def test_many(self) -> None:
        """200 clients that leave in the body leave no upstream connection behind."""
        await self.start(Limits(drain_max_s=0.3, shutdown_grace_s=0.2))
        self.upstream.script = lambda up, _: up.write(EVENT_STREAM + chunk(FRAME))
        clients = [await self.connect() for _ in range(200)]
        for client in clients:
            client.write(request(STREAM))
        await until(lambda: all(client.dechunked() == FRAME for client in clients))
        for client in clients:
            client.transport.abortConnection()
        await until(lambda: not self.upstream.connections)
        await until(lambda: len(self.records.records) == 200)
        self.assertEqual(self.flushLoggedErrors(), [])
