"""
The sandbox on a socket: what is recorded and counted, and every fault as bytes.
"""

from __future__ import annotations

import json
import time
import zlib
from base64 import b64decode

import trustme
from treq.testing import RequestTraversalAgent
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer
from twisted.internet.ssl import (
    Certificate,
    PrivateCertificate,
    optionsForClientTLS,
    trustRootFromCertificates,
)
from twisted.internet.task import deferLater
from twisted.web.client import readBody
from twisted.web.http_headers import Headers
from twisted.web.iweb import IBodyProducer
from zope.interface import implementer

from tests.sandbox.wire import CONVERSE, HAIKU, SandboxTestCase, Wire, parse, plain, signed
from txbedrock.core.eventstream import Decoder, EventStreamError
from txbedrock.sandbox.models import Usage

PATH = f"/model/{HAIKU}/converse"
STREAM = f"/model/{HAIKU}/converse-stream"


def faulty(path: str, fault: str) -> bytes:
    return signed(path, unsigned=((b"x-sandbox-fault", fault.encode()),))


def head(method: str, name: str) -> bytes:
    return plain(f"/_sandbox/{name}", method=method, headers=((b"Host", b"x"),))


class RecordTests(SandboxTestCase):
    """What the sandbox remembers."""

    async def test_as_on_the_wire(self) -> None:
        """Target, header names and their order, and body are kept byte for byte."""
        path = "/model/a%2fB%3A%c3%a9/converse?z=1&a=%20&z=0"
        await self.ask(signed(path, unsigned=((b"X-oDD-nAme", b"a  b"), (b"x-odd-name", b"c"))))
        (recorded,) = self.sandbox.requests
        self.assertEqual(recorded.method, b"POST")
        self.assertEqual(recorded.target, path.encode())
        names = [name for name, _ in recorded.headers]
        self.assertEqual(names[0], b"Host")
        self.assertEqual(names[-3:], [b"X-oDD-nAme", b"x-odd-name", b"Content-Length"])
        self.assertIn((b"X-oDD-nAme", b"a  b"), recorded.headers)
        self.assertEqual(recorded.body, CONVERSE)
        self.assertEqual(recorded.service, "bedrock-runtime")
        self.assertEqual(recorded.operation, "Converse")
        self.assertEqual(recorded.model, "a/B:é")
        self.assertEqual(recorded.region, "us-east-1")
        self.assertEqual(recorded.signing_name, "bedrock")
        self.assertEqual(recorded.access_key_id, "AKIDSANDBOX")
        self.assertEqual((recorded.status, recorded.ended), (200, "whole"))

    async def test_connections(self) -> None:
        """Requests on one connection have its number; pipelined ones are answered in order."""
        wire = await self.connect()
        wire.transport.write(signed(PATH) + signed("/nothing") + signed(STREAM))
        statuses = [(await wire.reply()).status for _ in "123"]
        self.assertEqual(statuses, [200, 404, 200])
        self.assertEqual([each.connection for each in self.sandbox.requests], [1, 1, 1])
        await self.ask(signed(PATH))
        self.assertEqual(self.sandbox.requests[-1].connection, 2)

    async def test_counts(self) -> None:
        """Open connections and streams are exact, also after a client left."""
        wire = await self.connect()
        wire.transport.write(faulty(STREAM, "hang;at=body"))
        await wire.until(lambda wire: b"messageStart" in wire.data)
        stats = self.sandbox.stats
        self.assertEqual(
            (stats.open_connections, stats.active_streams, stats.active_requests), (1, 1, 1)
        )
        wire.transport.abortConnection()
        await self.settled()
        self.assertEqual((stats.active_streams, stats.active_requests), (0, 0))
        self.assertEqual(self.sandbox.requests[0].ended, "left")

    async def test_bounded(self) -> None:
        """Only so many requests, and so many bytes of them, are remembered."""
        self.start(remember=3, remember_bytes=2 * len(CONVERSE))
        for _ in range(5):
            await self.ask(signed(PATH))
        self.assertEqual(len(self.sandbox.requests), 2)
        for _ in range(5):
            await self.ask(signed("/guardrails", b"", method="GET"))
        self.assertEqual(len(self.sandbox.requests), 3)
        self.assertEqual(self.sandbox.stats.requests, 10)

    async def test_billed(self) -> None:
        """What was billed is kept by request id, and summed by model; errors cost nothing."""
        reply = await self.ask(signed(PATH))
        usage = reply.json["usage"]
        await self.ask(faulty(PATH, "throttle"))
        await self.ask(faulty(STREAM, "drop;at=body;after=3"))
        billed = self.sandbox.billed
        self.assertEqual(len(billed), 2)
        first = billed[reply.headers["x-amzn-requestid"]]
        self.assertEqual(first.usage, Usage(usage["inputTokens"], usage["outputTokens"]))
        self.assertEqual(first.model, HAIKU)
        self.assertEqual([each.whole for each in billed.values()], [True, False])
        totals = self.sandbox.billed_totals[HAIKU]
        self.assertEqual((totals["requests"], totals["output"]), (2, 2 * usage["outputTokens"]))

    async def test_big_body(self) -> None:
        """A body of 25 MB is verified, remembered and answered."""
        blocks = [{"text": "x" * 25_000_000}]
        body = json.dumps({"messages": [{"role": "user", "content": blocks}]}).encode()
        reply = await self.ask(signed(PATH, body))
        self.assertEqual(reply.status, 200)
        self.assertEqual(len(self.sandbox.requests[0].body), len(body))

    async def test_chunked_body(self) -> None:
        """A chunked request is verified over what was in the chunks."""
        data = signed(PATH).replace(
            b"Content-Length: %d" % len(CONVERSE), b"Transfer-Encoding: chunked"
        )
        start, _, body = data.partition(b"\r\n\r\n")
        parts = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:5], body[5:]))
        reply = await self.ask(start + b"\r\n\r\n" + parts + b"0\r\n\r\n")
        self.assertEqual(reply.status, 200)

    async def test_http_1_0(self) -> None:
        """An HTTP/1.0 client gets no chunks, and the end of the connection."""
        wire = await self.connect()
        wire.transport.write(signed(STREAM, version=b"HTTP/1.0"))
        await wire.cut()
        reply = parse(wire.data)
        assert reply is not None
        self.assertNotIn("transfer-encoding", reply.headers)
        self.assertEqual(reply.frames[-1].headers[":event-type"], "metadata")

    async def test_close(self) -> None:
        """All connections can be reset at once."""
        wires = [await self.connect() for _ in range(3)]
        wires[0].transport.write(faulty(PATH, "hang"))
        await self.eventually(lambda: self.sandbox.stats.active_requests)
        await self.sandbox.close()
        self.assertEqual(self.sandbox.stats.open_connections, 0)
        for wire in wires:
            await wire.cut()


class ControlTests(SandboxTestCase):
    """``/_sandbox/``, over HTTP and without a signature."""

    async def test_what_it_is(self) -> None:
        """It says in one sentence what it is, and that it is no model."""
        for name in ("", "?x"):
            reply = await self.ask(head("GET", name))
            self.assertEqual(reply.status, 200)
            self.assertIn(b"stand-in for Amazon Bedrock", reply.body)
            self.assertIn(b"no model", reply.body)
            self.assertEqual(reply.body.count(b"\n"), 1)

    async def test_requests(self) -> None:
        await self.ask(signed(PATH))
        await self.ask(signed("/guardrails", b"", method="GET"))
        (first, second) = (await self.control("GET", "requests"))["requests"]
        self.assertEqual(first["target"], PATH)
        self.assertEqual(b64decode(first["body"]), CONVERSE)
        self.assertIn(["Host", "sandbox.test"], first["headers"])
        (last,) = (await self.control("GET", "requests?last=1"))["requests"]
        self.assertEqual(last, second)
        await self.control("DELETE", "requests")
        self.assertEqual((await self.control("GET", "requests"))["requests"], [])

    async def test_stats(self) -> None:
        await self.ask(signed(PATH))
        stats = await self.control("GET", "stats")
        self.assertEqual(stats["requests"], 1)
        self.assertEqual(stats["billed"][HAIKU]["requests"], 1)
        self.assertGreater(stats["bytes_sent"], 100)
        (billed,) = (await self.control("GET", "billed"))["billed"]
        self.assertEqual(billed["usage"]["input"], 4)

    async def test_faults(self) -> None:
        """Faults come by POST, one or several, and go by DELETE."""
        value = await self.control("POST", "faults", {"kind": "throttle", "times": 2})
        self.assertEqual(value, {"faults": [{"kind": "throttle", "times": 2}]})
        self.assertEqual((await self.ask(signed(PATH))).status, 429)
        await self.control("POST", "faults", [{"kind": "error", "status": 503}, {"kind": "hang"}])
        self.assertEqual((await self.ask(signed(PATH))).status, 429)
        self.assertEqual((await self.ask(signed(PATH))).status, 503)
        kinds = [each["kind"] for each in (await self.control("GET", "faults"))["faults"]]
        self.assertEqual(kinds, ["hang"])
        await self.control("DELETE", "faults")
        self.assertEqual((await self.ask(signed(PATH))).status, 200)

    async def test_wrong(self) -> None:
        """A fault that cannot be played is refused, and so is what there is not."""
        for body in (b"{", b'{"kind": "explode"}', b"[3]", b'"x"'):
            data = plain("/_sandbox/faults", body, headers=((b"Host", b"x"),))
            reply = await self.ask(data)
            self.assertEqual(reply.status, 400, body)
            self.assertIn("message", reply.json)
        self.assertEqual((await self.ask(head("GET", "nothing"))).status, 404)
        reply = await self.ask(faulty(PATH, "explode"))
        self.assertEqual((reply.status, reply.code), (400, "ValidationException"))

    async def test_head(self) -> None:
        reply = await self.ask(head("HEAD", "stats") + head("GET", ""))
        self.assertTrue(reply.body.startswith(b"HTTP/1.1 200"), reply.body)


class FaultTests(SandboxTestCase):
    """Each fault as a client sees it on the wire."""

    async def broken(self, path: str, fault: str) -> Wire:
        """A request that ends with its connection."""
        wire = await self.connect()
        wire.transport.write(faulty(path, fault))
        await wire.cut()
        return wire

    async def test_throttle_then_answer(self) -> None:
        """So many requests are throttled, the next one is answered."""
        self.sandbox.faults.add("throttle", times=2, retry_after_s=1, model="anthropic.*")
        replies = [await self.ask(signed(PATH)) for _ in "123"]
        self.assertEqual([reply.status for reply in replies], [429, 429, 200])
        self.assertEqual(replies[0].code, "ThrottlingException")
        self.assertEqual(replies[0].headers["retry-after"], "1")

    async def test_reason(self) -> None:
        """The status line has the phrase that belongs to the status."""
        wire = await self.connect()
        wire.transport.write(faulty(PATH, "throttle"))
        await wire.until(lambda wire: b"\r\n" in wire.data)
        self.assertEqual(wire.data.partition(b"\r\n")[0], b"HTTP/1.1 429 Too Many Requests")
        wire.transport.loseConnection()

    async def test_error(self) -> None:
        """Any status with any code; on the paths of other vendors in their shape."""
        reply = await self.ask(
            faulty(PATH, "error;status=424;code=ModelErrorException;message=Oh")
        )
        self.assertEqual((reply.status, reply.code), (424, "ModelErrorException"))
        self.assertEqual(reply.json, {"message": "Oh"})
        body = b'{"model": "m", "messages": []}'
        for path in ("/openai/v1/chat/completions", "/anthropic/v1/messages"):
            data = signed(path, body, unsigned=((b"x-sandbox-fault", b"throttle"),))
            self.assertEqual((await self.ask(data)).json["error"]["type"], "rate_limit_error")

    async def test_hang_before_head(self) -> None:
        """Nothing comes for the seconds given, then the answer."""
        started = time.monotonic()
        reply = await self.ask(faulty(PATH, "hang;seconds=0.3"))
        self.assertGreaterEqual(time.monotonic() - started, 0.3)
        self.assertEqual(reply.status, 200)

    async def test_hang_for_ever(self) -> None:
        """Nothing comes at all, and nothing is left when the client goes."""
        wire = await self.connect()
        wire.transport.write(faulty(PATH, "hang"))
        await self.eventually(lambda: self.sandbox.stats.active_requests)
        await deferLater(reactor, 0.1)
        self.assertEqual(wire.data, b"")
        self.assertEqual(self.sandbox.stats.active_requests, 1)
        wire.transport.loseConnection()
        await self.settled()
        self.assertEqual(self.sandbox.stats.active_requests, 0)
        self.assertIsNone(self.sandbox.requests[0].status)

    async def test_hang_in_body(self) -> None:
        """So many events or bytes come, then nothing."""
        for fault, size in (("hang;at=body;after=2", None), ("hang;at=body;after_bytes=50", 50)):
            wire = await self.connect()
            wire.transport.write(faulty(STREAM, fault))
            await wire.until(lambda wire: b"\r\n\r\n" in wire.data)
            await deferLater(reactor, 0.1)
            reply = parse(wire.data)
            assert reply is not None
            self.assertFalse(reply.whole)
            if size is None:
                self.assertEqual(len(reply.frames), 2)
            else:
                self.assertEqual(len(reply.body), size)
            self.assertIsNone(wire.lost)

    async def test_drop_before_head(self) -> None:
        """The connection is reset without a byte."""
        wire = await self.broken(PATH, "drop")
        self.assertEqual(wire.data, b"")
        wire.lost.trap(ConnectionLost)
        self.assertEqual(self.sandbox.requests[0].ended, "cut")

    async def test_close_before_head(self) -> None:
        """The connection ends without an answer, cleanly."""
        wire = await self.broken(PATH, "close")
        self.assertEqual(wire.data, b"")
        wire.lost.trap(ConnectionDone)

    async def test_drop_at_boundary(self) -> None:
        """So many whole frames arrive, then a reset."""
        wire = await self.broken(STREAM, "drop;at=body;after=3")
        wire.lost.trap(ConnectionLost)
        reply = parse(wire.data)
        assert reply is not None
        decoder = Decoder()
        self.assertEqual(len(decoder.feed(reply.body)), 3)
        self.assertTrue(decoder.at_boundary)
        self.assertFalse(reply.whole)

    async def test_drop_in_frame(self) -> None:
        """The last frame is not whole."""
        wire = await self.broken(STREAM, "drop;at=frame;after=3")
        wire.lost.trap(ConnectionLost)
        reply = parse(wire.data)
        assert reply is not None
        decoder = Decoder()
        self.assertEqual(len(decoder.feed(reply.body)), 3)
        self.assertFalse(decoder.at_boundary)

    async def test_drop_plain_body(self) -> None:
        """Half of a plain body arrives."""
        wire = await self.broken(PATH, "drop;at=body")
        reply = parse(wire.data)
        assert reply is not None
        self.assertEqual(len(reply.body), int(reply.headers["content-length"]) // 2)

    async def test_fin_without_last_chunk(self) -> None:
        """The connection ends cleanly, but the chunks do not."""
        wire = await self.broken(STREAM, "close;at=body;after=2")
        wire.lost.trap(ConnectionDone)
        reply = parse(wire.data)
        assert reply is not None
        self.assertEqual(len(reply.frames), 2)
        self.assertFalse(reply.whole)

    async def test_exception(self) -> None:
        """After so many events comes an exception frame, then the end as it should be."""
        reply = await self.ask(faulty(STREAM, "exception;code=throttlingException;after=2"))
        self.assertTrue(reply.whole)
        frames = reply.frames
        self.assertEqual(len(frames), 3)
        self.assertEqual(frames[2].headers[":message-type"], "exception")
        self.assertEqual(frames[2].headers[":exception-type"], "throttlingException")

    async def test_exception_in_events(self) -> None:
        """Server-sent events have errors of their own."""
        body = b'{"model": "m", "max_tokens": 9, "messages": [], "stream": true}'
        fault = ((b"x-sandbox-fault", b"exception;status=503;after=1"),)
        reply = await self.ask(signed("/anthropic/v1/messages", body, unsigned=fault))
        last = reply.body.strip().split(b"\n\n")[-1]
        self.assertTrue(last.startswith(b"event: error\ndata: "))
        self.assertIn(b"overloaded_error", last)

    async def test_drip(self) -> None:
        """Events come apart, no faster than asked for."""
        started = time.monotonic()
        wire = await self.connect()
        wire.transport.write(faulty(STREAM, "drip;interval_ms=20"))
        reply = await wire.reply()
        frames = len(reply.frames)
        self.assertGreaterEqual(time.monotonic() - started, 0.02 * frames)
        self.assertGreaterEqual(len(wire.times), frames)
        sent = self.sandbox.requests[0].sent_times
        self.assertGreaterEqual(len(sent), frames)
        self.assertGreaterEqual(sent[-1] - sent[0], 0.02 * (frames - 1))

    async def test_delay(self) -> None:
        """The general delay is before every answer, and between the events of every stream."""
        self.start(delay_ms=20.0, words=5)
        started = time.monotonic()
        await self.ask(signed(PATH))
        self.assertGreaterEqual(time.monotonic() - started, 0.02)
        started = time.monotonic()
        self.assertEqual(len((await self.ask(signed(STREAM))).frames), 9)
        self.assertGreaterEqual(time.monotonic() - started, 0.2)

    async def test_flood(self) -> None:
        """So many megabytes of valid frames come, and are counted."""
        before = self.sandbox.stats.bytes_sent
        reply = await self.ask(faulty(STREAM, "flood;megabytes=3"))
        self.assertGreaterEqual(len(reply.body), 3_000_000)
        frames = reply.frames
        self.assertGreater(len(frames), 10_000)
        self.assertEqual(frames[-1].headers[":event-type"], "metadata")
        self.assertGreaterEqual(self.sandbox.stats.bytes_sent - before, len(reply.body))

    async def test_flood_of_big_frames(self) -> None:
        """The size of the frames of a flood can be chosen."""
        fault = "flood;megabytes=1;frame_bytes=50000"
        for verb in ("converse-stream", "invoke-with-response-stream"):
            reply = await self.ask(faulty(f"/model/{HAIKU}/{verb}", fault))
            sizes = sorted(len(frame.payload) for frame in reply.frames)
            self.assertApproximates(sizes[-1], 50_000, 1_000)

    async def test_flood_stops_for_a_stalled_reader(self) -> None:
        """A client that does not read stops a flood of 500 MB; when it leaves, it is over."""
        wire = await self.connect()
        wire.transport.pauseProducing()
        wire.transport.write(faulty(STREAM, "flood;megabytes=500"))
        sizes: list[int] = []

        def stands_still() -> bool:
            sizes.append(self.sandbox.stats.bytes_sent)
            return sizes[-1] > 0 and sizes[-20:] == 20 * sizes[-1:]

        # It sends what the kernel's two socket buffers take, and one block of ours.
        await self.eventually(stands_still)
        self.assertGreater(sizes[-1], 64 * 1024)
        self.assertLess(sizes[-1], 50_000_000)
        self.assertEqual(self.sandbox.stats.active_streams, 1)
        wire.transport.resumeProducing()
        seen = len(wire.data)
        await wire.until(lambda wire: len(wire.data) > seen + 10_000_000)
        wire.transport.abortConnection()
        await self.settled()
        self.assertEqual(self.sandbox.stats.active_streams, 0)
        self.assertLess(self.sandbox.stats.bytes_sent, 200_000_000)

    async def test_rubbish(self) -> None:
        wire = await self.broken(PATH, "rubbish")
        self.assertFalse(wire.data.startswith(b"HTTP"))
        self.assertTrue(wire.data)

    async def test_wrong_length(self) -> None:
        """Content-Length is more, or less, than what comes before the end."""
        for by in (10, -10):
            wire = await self.broken(PATH, f"length;by={by}")
            head, _, body = wire.data.partition(b"\r\n\r\n")
            self.assertIn(b"\r\nContent-Length: %d" % (len(body) + by), head)
            self.assertNotIn(b"Transfer-Encoding", head)

    async def test_slow_head(self) -> None:
        """The head comes in pieces, then the answer at once."""
        started = time.monotonic()
        wire = await self.connect()
        wire.transport.write(faulty(STREAM, "slow_head;interval_ms=20"))
        reply = await wire.reply()
        self.assertGreaterEqual(time.monotonic() - started, 0.2)
        self.assertGreaterEqual(len(wire.times), 10)
        self.assertEqual(reply.frames[-1].headers[":event-type"], "metadata")

    async def test_bad_crc(self) -> None:
        reply = await self.ask(faulty(STREAM, "bad_crc;after=2"))
        self.assertTrue(reply.whole)
        error = self.assertRaises(EventStreamError, Decoder().feed, reply.body)
        self.assertEqual(len(error.frames), 2)

    async def test_gzip(self) -> None:
        """A compressed answer is whole once it is unpacked."""
        for path in (PATH, STREAM):
            reply = await self.ask(faulty(path, "gzip"))
            self.assertTrue(reply.whole)
            self.assertEqual(reply.headers["content-encoding"], "gzip")
            self.assertTrue(zlib.decompress(reply.body, wbits=31))

    async def test_keep_alive_afterwards(self) -> None:
        """After a fault that leaves the connection whole it serves the next request."""
        wire = await self.connect()
        for fault in ("throttle", "drip;interval_ms=1", "slow_head;interval_ms=1", "gzip"):
            wire.transport.write(faulty(STREAM, fault) + signed(PATH))
            await wire.reply()
            self.assertEqual((await wire.reply()).status, 200, fault)
        self.assertEqual(self.sandbox.stats.connections, 1)


class TlsTests(SandboxTestCase):
    """The same over TLS."""

    async def test_faults(self) -> None:
        """Answers come whole; a dropped connection is gone, with what came before."""
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        certificate = PrivateCertificate.loadPEM(
            issued.private_key_pem.bytes() + issued.cert_chain_pems[0].bytes()
        )
        port = reactor.listenSSL(
            0, self.sandbox.site, certificate.options(), interface="127.0.0.1"
        )
        self.addCleanup(port.stopListening)
        trust = trustRootFromCertificates([Certificate.loadPEM(authority.cert_pem.bytes())])
        endpoint = wrapClientTLS(
            optionsForClientTLS("localhost", trust),
            TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port),
        )
        wire = await connectProtocol(endpoint, Wire())
        wire.transport.write(signed(STREAM))
        self.assertEqual((await wire.reply()).frames[-1].headers[":event-type"], "metadata")
        wire.transport.write(faulty(STREAM, "drop;at=frame;after=2"))
        await wire.cut()
        reply = parse(wire.data)
        assert reply is not None
        self.assertEqual(len(reply.frames), 2)
        self.assertFalse(reply.whole)
        await self.settled()


@implementer(IBodyProducer)
class _Body:
    """A request body that is sent at once."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._data)
        return succeed(None)

    def stopProducing(self) -> None:
        """Already done."""

    pauseProducing = resumeProducing = stopProducing


class UnderAnotherSiteTests(SandboxTestCase):
    """The Resource alone, in memory, as behind ``treq.testing``."""

    async def test_traversal(self) -> None:
        """AWS's own host names can be used; they tell service and region."""
        agent = RequestTraversalAgent(self.sandbox.resource)
        host = b"bedrock-runtime.us-east-1.amazonaws.com"
        lines = signed(STREAM, host=host).partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
        headers = Headers()
        for name, _, value in (line.partition(b": ") for line in lines):
            if name != b"Content-Length":
                headers.addRawHeader(name, value)
        url = b"https://" + host + STREAM.encode()
        asked = agent.request(b"POST", url, headers, _Body(CONVERSE))
        agent.flush()
        response = self.successResultOf(asked)
        self.assertEqual(response.code, 200)
        body: Deferred[bytes] = readBody(response)
        agent.flush()
        frames = Decoder().feed(self.successResultOf(body))
        self.assertEqual(frames[-1].headers[":event-type"], "metadata")
        self.assertEqual(self.sandbox.requests[0].called_as, "bedrock-runtime")
        self.assertEqual(self.sandbox.requests[0].ended, "whole")
