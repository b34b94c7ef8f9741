"""
HTTP/2 of clients: each request is one, whatever happens to the others.

No socket and no time of its own: the client is the h2 library's, see also
:mod:`tests.inbound.test_http2_conformance` for what is not HTTP/2, and
:mod:`tests.loopback.test_http2` for the whole gateway.
"""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from twisted.web.static import File
from zope.interface import implementer

from tests.fakes import pause
from tests.http2client import Answer, Http2Client, fields
from tests.inbound.test_turns import Reactor
from txbedrock.errors import InvalidRequest
from txbedrock.inbound.http1 import Channel
from txbedrock.inbound.http2 import PREFACE, Http2Channel, Http2Limits
from txbedrock.inbound.request import Request
from txbedrock.inbound.site import ClientLimits, Site

BIG = bytes(range(256)) * 4096  # 1 MiB


class FakeTransport(StringTransport):
    """A TCP transport whose buffer is full when a test says so."""

    negotiatedProtocol: bytes | None = None

    def __init__(self) -> None:
        StringTransport.__init__(self)
        self.half_closed = False
        self.reading = True
        self.room: int | None = None
        self.paused = False

    def write(self, data: bytes) -> None:
        assert not self.half_closed, "written after the end"
        StringTransport.write(self, data)
        if self.room is not None:
            self.room -= len(data)
            if self.room <= 0 and not self.paused and self.producer is not None:
                self.paused = True
                self.producer.pauseProducing()

    def drain(self, room: int | None = None) -> None:
        """The socket took it all, and takes so much more."""
        self.room = room
        if self.paused:
            self.paused = False
            self.producer.resumeProducing()

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True


@implementer(IPushProducer)
class Source:
    """Produces when a test says so, and notes what it is told."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.told: list[str] = []
        request.registerProducer(self, True)

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


class Root(Resource):
    """Keeps requests for the test, or answers by path."""

    isLeaf = True

    def __init__(self) -> None:
        Resource.__init__(self)
        self.requests: list[Request] = []
        self.lost: list[str] = []
        self.finished: list[str] = []
        self.takes_s = 0.0

    def render(self, request: Request) -> Any:
        path = request.path.decode()
        self.requests.append(request)
        if self.takes_s:
            request.site.clock.spend(self.takes_s)
        request.notifyFinish().addCallbacks(
            lambda _: self.finished.append(path), lambda _: self.lost.append(path)
        )
        if path == "/echo":
            self.successful(request.content.complete())
            return request.content.start() or b"nothing"
        if path == "/seen":
            seen = [
                [name.decode().lower(), value.decode()]
                for name, values in request.requestHeaders.getAllRawHeaders()
                for value in values
            ]
            about = {
                "method": request.method.decode(),
                "uri": request.uri.decode(),
                "protocol": request.clientproto.decode(),
                "secure": request.isSecure(),
                "peer": request.client.host,  # type: ignore[union-attr]
                "headers": seen,
            }
            request.setHeader(b"Connection", b"close")
            request.setHeader(b"Keep-Alive", b"timeout=5")
            request.setHeader(b"X-Mixed-Case", b"Yes")
            return json.dumps(about).encode()
        if path.startswith("/status/"):
            request.setResponseCode(int(path.rpartition("/")[2]))
            return b""
        if path == "/big":
            return BIG
        if path == "/broken":
            raise ValueError("planted")
        return NOT_DONE_YET

    def successful(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Nothing here is so big that it goes to the disk."""
        done: list[None] = []
        Deferred.fromCoroutine(coroutine).addCallback(done.append)
        assert done

    @property
    def last(self) -> Request:
        """The latest request."""
        return self.requests[-1]


class Http2TestCase(SynchronousTestCase):
    """A site, and clients without sockets."""

    limits = ClientLimits(max_request_body=1024 * 1024)
    http2_limits = Http2Limits()

    def setUp(self) -> None:
        self.clock = Clock()
        self.root = Root()
        self.wires: list[Wire] = []
        self.site = self.make_site()

    def make_site(self, **changes: Any) -> Site:
        """A site of its own, with other limits of HTTP/2."""
        site = Site(self.root, self.clock, self.limits, wall_seconds=self.clock.seconds)
        site.http2_limits = replace(self.http2_limits, **changes)
        return site

    def connect(self, window: int = 65535, begin: bool = True) -> Wire:
        """A new connection."""
        wire = Wire(self.site, window)
        self.wires.append(wire)
        if begin:
            wire.client.begin()
            wire.move()
        return wire

    def tearDown(self) -> None:
        """Whatever happened, nothing is left behind when the connections are gone."""
        for wire in self.wires:
            wire.lose()
        self.clock.advance(0)
        self.assertEqual(self.site.connections, 0)
        self.assertEqual([call.func for call in self.clock.getDelayedCalls()], [])
        self.assertEqual(len(self.site.bounds), 0)
        for request in self.root.requests:
            self.assertTrue(request.finished or request.disconnected, request)


class Wire:
    """A client and a connection of the site's, and what is between them."""

    def __init__(self, site: Site, window: int) -> None:
        self.client = Http2Client(window)
        self.up = StringTransport()
        self.client.transport = self.up
        self.down = FakeTransport()
        self.protocol: Any = site.buildProtocol(None)
        self.protocol.makeConnection(self.down)
        self.open = True

    def move(self) -> None:
        """Let bytes travel until there are none."""
        while self.up.value() or self.down.value():
            data = self.up.value()
            self.up.clear()
            if data and self.open:
                self.protocol.dataReceived(data)
            self.receive()

    def receive(self) -> None:
        """What the server has written."""
        data = self.down.value()
        self.down.clear()
        if data:
            self.client.dataReceived(data)

    def send(self, *frames: Frame) -> None:
        """Frames that h2 would not send."""
        self.up.write(b"".join(frame.serialize() for frame in frames))
        self.move()

    def ask(self, *args: Any, **options: Any) -> Answer:
        """A request, and what comes of it at once."""
        answer = self.client.ask(*args, **options)
        self.move()
        return answer

    def lose(self) -> None:
        """The connection is gone."""
        if self.open:
            self.open = False
            if self.down.producer is not None:
                self.down.producer.stopProducing()
            self.protocol.connectionLost(Failure(ConnectionDone()))

    @property
    def channel(self) -> Http2Channel:
        """What the connection has become."""
        owner = self.protocol.dataReceived.__self__
        assert isinstance(owner, Http2Channel)
        return owner


class OpeningTests(Http2TestCase):
    """Which protocol it is."""

    def opened(self, pieces: list[bytes], agreed: bytes | None = None) -> Any:
        """What a connection became that began with these bytes, and what it wrote."""
        wire = self.connect(begin=False)
        wire.down.negotiatedProtocol = agreed
        for piece in pieces:
            wire.protocol.dataReceived(piece)
        owner = wire.protocol.dataReceived.__self__
        return type(owner).__name__, wire.down.value()

    def test_first_bytes(self) -> None:
        """The preface is HTTP/2, in whatever pieces; all else is HTTP/1.1."""
        settings = SettingsFrame(0).serialize()
        hello = b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n"
        one = [bytes([byte]) for byte in PREFACE + settings]
        for pieces, name, begin in (
            ([PREFACE + settings], "Http2Channel", b"\x00\x00"),
            (one, "Http2Channel", b"\x00\x00"),
            ([PREFACE[:-1]], "Opening", b""),
            ([b"P"], "Opening", b""),
            ([b""], "Opening", b""),
            ([hello], "Channel", b"HTTP/1.1 200"),
            ([bytes([byte]) for byte in hello], "Channel", b"HTTP/1.1 200"),
            (
                [b"P", b"OST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"],
                "Channel",
                b"HTTP/1.1 200",
            ),
            ([b"PRI", b" /echo HTTP/1.1\r\nHost: x\r\n\r\n"], "Channel", b"HTTP/1.1 400"),
            ([b"\x16\x03\x01\r\n\r\n"], "Channel", b"HTTP/1.1 400"),
        ):
            became, written = self.opened(pieces)
            self.assertEqual(became, name, pieces)
            self.assertTrue(written.startswith(begin), written)
            self.assertEqual(bool(written), bool(begin))

    def test_agreed(self) -> None:
        """What was agreed upon by ALPN counts, whatever the first bytes are."""
        for agreed, pieces, name in (
            (b"h2", [b"P"], "Http2Channel"),
            (b"h2", [b"GET / HTTP/1.1\r\n\r\n"], "Http2Channel"),
            (b"http/1.1", [PREFACE], "Channel"),
            (b"http/1.1", [b"P"], "Channel"),
            (None, [PREFACE], "Http2Channel"),
        ):
            self.assertEqual(self.opened(pieces, agreed)[0], name)
        self.assertEqual(self.site.acceptableProtocols(), [b"h2", b"http/1.1"])

    def test_nothing_in_between(self) -> None:
        """After the choice the transport speaks to the channel itself."""
        wire = self.connect(begin=False)
        wire.protocol.dataReceived(b"GET ")
        self.assertIsInstance(wire.protocol.dataReceived.__self__, Channel)
        self.assertIsInstance(wire.protocol.connectionLost.__self__, Channel)

    def test_counted_once(self) -> None:
        """A connection is one from its first moment to its last, in either protocol."""
        for data in (b"", PREFACE[:5], PREFACE + SettingsFrame(0).serialize(), b"GET / HT"):
            wire = self.connect(begin=False)
            self.assertEqual((self.site.connections, len(self.site.bounds)), (1, 1))
            wire.protocol.dataReceived(data)
            self.assertEqual((self.site.connections, len(self.site.bounds)), (1, 1))
            self.assertEqual(self.site.in_flight, int(data.startswith(b"GET")))
            wire.lose()
            self.assertEqual((self.site.connections, len(self.site.bounds)), (0, 0))

    def test_waits_for_a_time(self) -> None:
        """Half a preface is waited for as long as for a header."""
        for data in (b"", PREFACE[:10]):
            wire = self.connect(begin=False)
            wire.protocol.dataReceived(data)
            self.clock.advance(self.limits.header_timeout_s - 1)
            self.assertFalse(wire.down.disconnecting)
            self.clock.advance(2)
            self.assertTrue(wire.down.disconnecting)
            # What still comes is nobody's.
            wire.protocol.dataReceived(PREFACE)
            self.assertEqual(wire.down.value(), b"")

    def test_drained(self) -> None:
        """A stop closes what has not begun."""
        wire = self.connect(begin=False)
        drained = self.site.drain()
        self.assertTrue(wire.down.disconnecting)
        self.assertNoResult(drained)
        wire.lose()
        self.successResultOf(drained)

    def test_aborted(self) -> None:
        """So does an abort."""
        wire = self.connect(begin=False)
        self.site.abort()
        self.assertTrue(wire.down.disconnected)


class RequestTests(Http2TestCase):
    """Requests and answers."""

    def test_seen(self) -> None:
        """A resource sees what it would over HTTP/1.1, the path byte for byte."""
        wire = self.connect()
        path = "/seen?a=%2F&b&&c=%3a#:\u00fc"
        answer = wire.ask(
            path,
            b"x",
            ("cookie", "a=1"),
            ("x-one", "1"),
            ("cookie", "b=2"),
            ("x-one", ""),
            ("te", "trailers"),
        )
        self.assertEqual((answer.status, answer.ended, answer.reset), (200, True, None))
        seen = json.loads(answer.body)
        self.assertEqual(seen["uri"], path)
        self.assertEqual(
            (seen["method"], seen["protocol"], seen["secure"], seen["peer"]),
            ("POST", "HTTP/2", False, "192.168.1.1"),
        )
        headers = seen["headers"]
        self.assertIn(["host", "localhost:4000"], headers)
        self.assertIn(["cookie", "a=1; b=2"], headers)
        self.assertEqual([v for n, v in headers if n == "x-one"], ["1", ""])
        self.assertFalse([n for n, v in headers if n.startswith(":")])

    def test_answer_headers(self) -> None:
        """An answer has the headers that a resource sets, but none of HTTP/1.1's framing."""
        answer = self.connect().ask("/seen")
        names = set(answer.headers)
        self.assertLessEqual({b"x-mixed-case", b"content-length", b"date"}, names)
        self.assertFalse(names & {b"connection", b"keep-alive", b"transfer-encoding"})
        self.assertEqual(answer.headers[b"content-length"], b"%d" % len(answer.body))

    def test_one_write(self) -> None:
        """A short answer is one write, its end included; so is what comes after in one."""
        wire = self.connect()
        writes: list[bytes] = []
        wire.down.write = writes.append  # type: ignore[method-assign]
        wire.client.ask("/echo", b"hi")
        wire.client.ask("/echo", b"hi")
        wire.protocol.dataReceived(wire.up.value())
        [both] = writes
        wire.client.dataReceived(both)
        for answer in wire.client.answers.values():
            self.assertEqual((bytes(answer.body), answer.ended, answer.frames), (b"hi", True, 1))

    def test_host(self) -> None:
        """A host header stands in for :authority; the two must not differ."""
        wire = self.connect()
        head = [(":method", "GET"), (":scheme", "http"), (":path", "/seen"), ("host", "h:1")]
        for extra, status in (
            ((), 200),
            (((":authority", "h:1"),), 200),
            (((":authority", "i"),), 400),
        ):
            answer = wire.client.head([*extra, *head], end=True)
            wire.move()
            self.assertEqual(answer.status, status)
            if status == 200:
                hosts = [v for n, v in json.loads(answer.body)["headers"] if n == "host"]
                self.assertEqual(hosts, ["h:1"])

    def test_bodies(self) -> None:
        """A body arrives whole, in whatever frames, padded or not."""
        wire = self.connect()
        for pieces in ([], [b"one"], [b"o", b"", b"n", b"e"], [b"x" * 16000] * 5):
            answer = wire.client.head(fields("/echo"))
            for index, piece in enumerate(pieces):
                wire.client.h2.send_data(answer.id, piece, pad_length=index * 50 or None)
            wire.client.h2.end_stream(answer.id)
            wire.client.flush()
            wire.move()
            self.assertEqual(bytes(answer.body), b"".join(pieces) or b"nothing")
            self.assertTrue(answer.ended)

    def test_trailers(self) -> None:
        """Trailers are taken, and nobody's."""
        wire = self.connect()
        answer = wire.client.head(fields("/echo"))
        wire.client.h2.send_data(answer.id, b"body")
        wire.client.h2.send_headers(answer.id, [("x-checksum", "1")], end_stream=True)
        wire.client.flush()
        wire.move()
        self.assertEqual((answer.status, bytes(answer.body)), (200, b"body"))
        self.assertFalse(self.root.last.requestHeaders.hasHeader(b"x-checksum"))

    def test_without_body(self) -> None:
        """What has no body ends with its header."""
        wire = self.connect()
        for path, method, length in (
            ("/echo", "HEAD", b"7"),
            ("/status/204", "GET", None),
            ("/status/304", "GET", None),
            ("/status/200", "GET", b"0"),
        ):
            answer = wire.ask(path, b"", method=method)
            self.assertTrue(answer.ended, path)
            self.assertEqual((answer.frames, bytes(answer.body)), (0, b""), path)
            if length is not None:
                self.assertEqual(answer.headers[b"content-length"], length)
        self.assertEqual(wire.channel.idle, True)

    def test_expect(self) -> None:
        """Who asks whether to go on is told so at once, unless the answer is no."""
        wire = self.connect()
        answer = wire.client.head(fields("/echo", "POST", ("expect", "100-continue")))
        wire.move()
        self.assertEqual((answer.informational, answer.status), ([100], 0))
        wire.client.h2.send_data(answer.id, b"body", end_stream=True)
        wire.client.flush()
        wire.move()
        self.assertEqual((answer.status, bytes(answer.body)), (200, b"body"))
        big = ("content-length", "99999999")
        answer = wire.client.head(fields("/echo", "POST", ("expect", "100-continue"), big))
        wire.move()
        self.assertEqual((answer.informational, answer.status), ([], 413))

    def test_too_large_before_it_is_read(self) -> None:
        """
        A body announced as too long is refused at once, its client told to stop,
        and the connection goes on.
        """
        wire = self.connect()
        answer = wire.client.head(fields("/echo", "POST", ("content-length", "1048577")))
        wire.move()
        self.assertEqual((answer.status, answer.ended, answer.reset), (413, True, 0))
        self.assertEqual(answer.headers[b"content-type"], b"application/json")
        self.assertIn("1048576", json.loads(answer.body)["message"])
        self.assertEqual(self.root.requests, [])
        # What was sent meanwhile is thrown away without a word.
        wire.send(*[DataFrame(answer.id, b"x" * 16384) for _ in range(4)])
        self.assertEqual((answer.reset, wire.client.goaways), (0, []))
        self.assertEqual(wire.ask("/echo").status, 200)

    def test_too_large_without_a_word(self) -> None:
        """One that turns out too long is refused then."""
        wire = self.connect()
        answer = wire.ask("/echo", bytes(2 * 1024 * 1024))
        self.assertEqual((answer.status, answer.ended, answer.reset), (413, True, 0))
        self.assertEqual(self.root.requests, [])
        self.assertEqual(wire.ask("/echo").status, 200)

    def test_malformed(self) -> None:
        """
        A request that is none is answered with what is wrong, in the shape that SDKs
        read, and the streams beside it go on.
        """
        wire = self.connect()
        beside = wire.ask("/held")
        good = fields("/echo", "GET")
        for head, word in (
            ([*good, ("connection", "close")], "connection"),
            ([*good, ("transfer-encoding", "chunked")], "transfer-encoding"),
            ([*good, ("keep-alive", "1")], "keep-alive"),
            ([*good, ("upgrade", "x")], "upgrade"),
            ([*good, ("te", "gzip")], "te"),
            ([*good, ("x y", "1")], "name"),
            ([*good, ("x:y", "1")], "name"),
            ([*good, ("", "1")], "name"),
            ([*good, ("x", "a\nb")], "value"),
            ([*good, ("x", "a\0b")], "value"),
            ([*good, ("content-length", "1, 2")], "content-length"),
            ([*good, ("content-length", "+1")], "content-length"),
            ([*good, ("content-length", "1"), ("content-length", "2")], "content-length"),
            ([*good, ("host", "other")], ":authority"),
            ([*good, ("host", "localhost:4000"), ("host", "localhost:4000")], "host"),
            ([*good, (":path", "/b")], ":path"),
            ([*good, ("x", "1"), (":method", "GET")], ":method"),
            ([*good[:3], ("x", "1"), (":path", "/")], "before"),
            ([*good, (":status", "200")], "pseudo"),
            ([*good, (":protocol", "websocket")], "pseudo"),
            (good[1:], ":method"),
            ([*good[:1], *good[2:]], ":scheme"),
            (good[:3], ":path"),
            ([*good[:3], (":path", "")], ":path"),
            ([*good[:3], (":path", "echo")], ":path"),
            ([*good[:3], (":path", "/echo HTTP/1.1")], ":path"),
            ([(":method", "G T"), *good[1:]], ":method"),
            ([(":method", "CONNECT"), (":authority", "x:443")], "CONNECT"),
            ([*good[:2], (":authority", "user@host"), good[3]], ":authority"),
        ):
            for end in (True, False):
                answer = wire.client.head(head, end=end)
                wire.move()
                self.assertEqual((answer.status, answer.ended), (400, True), head)
                self.assertEqual(answer.headers[b"x-amzn-errortype"], b"ValidationException")
                self.assertIn(word, json.loads(answer.body)["message"])
                if not end:
                    self.assertEqual(answer.reset, ErrorCodes.PROTOCOL_ERROR, head)
        self.assertEqual(len(self.root.requests), 1)
        self.root.last.finish()
        wire.move()
        self.assertTrue(beside.ended)
        self.assertEqual(wire.client.goaways, [])

    def test_wrong_length(self) -> None:
        """A body that is not as long as was said is no request."""
        wire = self.connect()
        for said, body in (("3", b"four"), ("5", b"four"), ("5", b""), ("0", b"x")):
            answer = wire.client.head(fields("/echo", "POST", ("content-length", said)))
            wire.client.h2.streams[answer.id]._expected_content_length = None
            wire.client.h2.send_data(answer.id, body, end_stream=True)
            wire.client.flush()
            wire.move()
            self.assertEqual((answer.status, answer.ended), (400, True), (said, body))
        self.assertEqual(self.root.requests, [])

    def test_large_headers(self) -> None:
        """A header that is too large is a 431 that names the limit."""
        wire = self.connect()
        for headers in (
            [("x-a", "v" * 20000), ("x-b", "v" * 20000), ("x-c", "v" * 30000)],
            [(f"x-{n}", "v") for n in range(600)],
        ):
            answer = wire.ask("/echo", b"", *headers)
            self.assertEqual((answer.status, answer.ended), (431, True))
            self.assertIn("65536", json.loads(answer.body)["message"])
        self.assertEqual(self.site.refusals["header_list"], 2)
        self.assertEqual(wire.ask("/echo").status, 200)

    def test_far_too_large_headers(self) -> None:
        """One that is far too large is not read to its end, which is the connection's."""
        wire = self.connect()
        wire.ask("/echo", b"", *[(f"x-{n}", "v" * 10000) for n in range(15)])
        [(_, code, text)] = wire.client.goaways
        self.assertEqual(code, ErrorCodes.ENHANCE_YOUR_CALM)
        self.assertIn(b"header", text)
        self.assertEqual(self.site.refusals["header_list"], 1)
        self.assertTrue(wire.down.half_closed)

    def test_broken_resource(self) -> None:
        """A fault of ours is a 500, or a reset when there is an answer already."""
        wire = self.connect()
        answer = wire.ask("/broken")
        self.assertEqual(answer.status, 500)
        self.assertNotIn(b"planted", answer.body)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        answer = wire.ask("/held")
        self.root.last.write(b"some")
        self.root.last.failed(Failure(KeyError("planted")))
        wire.move()
        self.clock.advance(0)
        self.assertEqual((bytes(answer.body), answer.ended), (b"some", False))
        self.assertEqual(answer.reset, ErrorCodes.INTERNAL_ERROR)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    def test_refusal_by_a_resource(self) -> None:
        """A request that is refused when it is whole is answered like any other."""
        wire = self.connect()
        answer = wire.ask("/held")
        request = self.root.last
        request.channel.refuse(InvalidRequest("No."))
        wire.move()
        self.assertEqual((answer.status, answer.ended, answer.reset), (400, True, None))
        self.assertEqual(self.root.lost, ["/held"])


class FlowTests(Http2TestCase):
    """Windows and buffers."""

    def window(self, wire: Wire, answer: Answer) -> int:
        """What the client may send on a stream."""
        return wire.client.h2.streams[answer.id].outbound_flow_control_window

    def test_upload_that_is_taken(self) -> None:
        """A body of any size arrives: its window is opened as it is taken."""
        wire = self.connect()
        answer = wire.ask("/echo", BIG[: 1024 * 1024])
        self.assertEqual((answer.status, len(answer.body)), (200, 1024 * 1024))

    def test_upload_that_waits_for_the_disk(self) -> None:
        """
        While the disk is slower a stream's window stays shut, at most a window's worth is
        taken in, and the others go on.
        """
        window = self.http2_limits.stream_window
        wire = self.connect()
        answer = wire.client.head(fields("/echo"))
        wire.move()
        [stream] = wire.channel._streams.values()
        stream.pause_upload()
        wire.client._uploads[answer.id] = bytes(3 * window)
        wire.client._upload()
        wire.client.flush()
        wire.move()
        self.assertEqual(self.window(wire, answer), 0)
        self.assertEqual(wire.client.uploading, 2 * window)
        # The connection's window is not held by it.
        self.assertGreater(wire.client.h2.outbound_flow_control_window, window)
        self.assertEqual(len(wire.ask("/echo", BIG).body), len(BIG))
        self.assertEqual(wire.client.uploading, 2 * window)
        # Nor is it late meanwhile.
        self.clock.advance(self.limits.upload_idle_timeout_s * 3)
        wire.move()
        self.assertFalse(answer.over)
        stream.resume_upload()
        wire.move()
        self.assertEqual((answer.status, len(answer.body)), (200, 3 * window))

    def test_connection_window(self) -> None:
        """The connection's window is opened again, whatever becomes of the streams."""
        wire = self.connect()
        connection = self.http2_limits.connection_window
        least = connection
        for _ in range(8):
            wire.ask("/echo", bytes(1024 * 1024))
            least = min(least, wire.client.h2.outbound_flow_control_window)
            refused = wire.client.head(fields("/echo", "POST", ("content-length", "99999999")))
            wire.client.h2.send_data(refused.id, bytes(16384))
            wire.client.flush()
            wire.move()
        self.assertGreaterEqual(least, connection // 2 - 65536)

    def test_producer_and_stream_window(self) -> None:
        """An answer's producer stops when its window is shut, and goes on when it opens."""
        wire = self.connect(window=10_000)
        answer = wire.ask("/held", hold=True)
        source = Source(self.root.last)
        limit = self.http2_limits.max_buffered
        self.root.last.write(bytes(10_000 + limit))
        wire.move()
        self.assertEqual((len(answer.body), source.told), (10_000, []))
        self.root.last.write(b"x")
        self.assertEqual(source.told, ["pause"])
        wire.client.open(answer, limit // 2)
        wire.move()
        self.assertEqual((len(answer.body), source.told), (10_000 + limit // 2, ["pause"]))
        wire.client.open(answer, 1)
        wire.move()
        self.assertEqual(source.told, ["pause", "resume"])
        wire.client.open(answer, limit)
        self.root.last.unregisterProducer()
        self.root.last.finish()
        wire.move()
        self.assertEqual((len(answer.body), answer.ended), (10_001 + limit, True))

    def test_window_of_the_connection(self) -> None:
        """All streams wait when the connection's window is shut, and share what opens."""
        wire = self.connect(window=2**20)
        wire.client.h2.acknowledge_received_data = lambda size, id: None  # type: ignore[method-assign]
        wire.channel.h2.window = 50_000
        answers = [wire.ask("/big", hold=True) for _ in range(3)]
        self.assertEqual(sum(len(answer.body) for answer in answers), 50_000)
        self.assertEqual(len(answers[0].body), 50_000)
        for _ in range(6):
            wire.send(WindowUpdateFrame(0, window_increment=16384))
        self.assertEqual([len(answer.body) - 50_000 for answer in answers[:1]], [2 * 16384])
        self.assertEqual([len(answer.body) for answer in answers[1:]], [2 * 16384] * 2)
        wire.send(WindowUpdateFrame(0, window_increment=2**24))
        for answer in answers:
            self.assertEqual((bytes(answer.body), answer.ended), (BIG, True))

    def test_take_turns(self) -> None:
        """Streams that can all send take turns, a frame each."""
        wire = self.connect(window=2**20)
        wire.down.room = 0
        wire.send(PingFrame(0, opaque_data=b"12345678"))
        answers = [wire.ask("/big", hold=True) for _ in range(4)]
        self.assertEqual(wire.client.order, [])
        wire.channel.h2.window = 2**24
        wire.down.drain()
        wire.move()
        self.assertEqual(wire.client.order[:8], [a.id for a in answers] * 2)
        for answer in answers:
            self.assertEqual((bytes(answer.body), answer.ended), (BIG, True))
        self.assertEqual(max(answer.frames for answer in answers), len(BIG) // 16384)

    def test_stalled_stream_beside_live_ones(self) -> None:
        """Who does not read one answer gets the others, and holds little of it."""
        wire = self.connect(window=1000)
        stalled = wire.ask("/held", hold=True)
        source = Source(self.root.last)
        held = self.root.last
        for _ in range(100):
            if not source.told:
                held.write(bytes(8192))
        self.assertEqual(source.told, ["pause"])
        [stream] = wire.channel._streams.values()
        self.assertLessEqual(stream.waiting, self.http2_limits.max_buffered + 8192)
        for _ in range(5):
            self.assertEqual(bytes(wire.ask("/big").body), BIG)
        self.assertEqual(len(stalled.body), 1000)
        wire.client.reset(stalled)
        wire.move()
        self.assertEqual(source.told, ["pause", "stop"])

    def test_stalled_socket(self) -> None:
        """When the socket takes no more every producer is paused; then all goes on."""
        wire = self.connect(window=2**20)
        sources = []
        answers = []
        for _ in range(3):
            answers.append(wire.ask("/held"))
            sources.append(Source(self.root.last))
        wire.down.room = 20_000
        for source in sources:
            while not source.told:
                source.request.write(bytes(10_000))
        waiting = [stream.waiting for stream in wire.channel._streams.values()]
        self.assertLessEqual(max(waiting), self.http2_limits.max_buffered + 10_000)
        self.assertLess(len(wire.down.value()), 60_000)
        wire.down.drain()
        wire.move()
        for source in sources:
            self.assertEqual(source.told, ["pause", "resume"])
            source.request.unregisterProducer()
            source.request.finish()
        wire.move()
        self.assertTrue(all(answer.ended for answer in answers))

    def test_registered_late(self) -> None:
        """A producer that registers when too much waits is paused at once."""
        wire = self.connect(window=0)
        wire.ask("/held")
        self.root.last.write(bytes(100_000))
        source = Source(self.root.last)
        self.assertEqual(source.told, ["pause"])

    def test_window_changed_by_settings(self) -> None:
        """A client may open all its windows at once."""
        wire = self.connect(window=10)
        answer = wire.ask("/big", hold=True)
        self.assertEqual(len(answer.body), 10)
        wire.client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: len(BIG)})
        wire.client.flush()
        wire.move()
        self.assertEqual((bytes(answer.body), answer.ended), (BIG, True))

    def test_events_are_not_held(self) -> None:
        """Each write of an answer is there at once, in a frame of its own."""
        wire = self.connect()
        answer = wire.ask("/held")
        for n in range(1, 5):
            self.root.last.write(b"x" * 200)
            wire.receive()
            self.assertEqual((len(answer.body), answer.frames), (200 * n, n))


class EndTests(Http2TestCase):
    """How requests and connections end."""

    def test_client_gives_up(self) -> None:
        """A reset is the end of its request and of no other."""
        wire = self.connect()
        one, other = wire.ask("/one"), wire.ask("/other")
        wire.client.reset(one)
        wire.move()
        self.assertEqual(self.root.lost, ["/one"])
        self.root.requests[1].write(b"whole")
        self.root.requests[1].finish()
        wire.move()
        self.assertEqual((bytes(other.body), other.ended), (b"whole", True))
        self.assertEqual(self.root.finished, ["/other"])
        self.assertEqual(wire.client.goaways, [])

    def test_cut_when_it_was_whole(self) -> None:
        """An answer may be cut when its end is out already and its request, too, is whole."""
        wire = self.connect()
        answer = wire.ask("/held")
        request = self.root.last
        request.setResponseCode(204)
        request.write(b"")
        wire.receive()
        self.assertTrue(answer.ended)
        request.channel.abort()
        self.clock.advance(0)
        wire.move()
        self.assertEqual(self.root.lost, ["/held"])
        self.assertTrue(wire.channel.idle)
        self.assertEqual(wire.ask("/echo").status, 200)

    def test_client_gives_up_its_upload(self) -> None:
        """A reset before the body is whole leaves nothing behind."""
        wire = self.connect()
        answer = wire.client.head(fields("/echo"))
        wire.client.h2.send_data(answer.id, b"x")
        wire.client.reset(answer)
        wire.move()
        self.assertTrue(wire.channel.idle)
        self.assertEqual(self.root.requests, [])

    def test_client_gives_up_what_is_sent(self) -> None:
        """A reset of an answer that is over and waits for its window frees it."""
        wire = self.connect(window=10)
        answer = wire.ask("/big", hold=True)
        self.assertFalse(wire.channel.idle)
        wire.client.reset(answer)
        wire.move()
        self.assertTrue(wire.channel.idle)
        self.assertEqual(wire.ask("/echo").status, 200)

    def test_connection_lost(self) -> None:
        """All requests of a connection that is lost are lost, once."""
        wire = self.connect()
        wire.ask("/one")
        wire.ask("/two")
        source = Source(self.root.last)
        wire.lose()
        self.assertEqual(self.root.lost, ["/one", "/two"])
        self.assertEqual(source.told, ["stop"])

    def test_abort(self) -> None:
        """An answer that is cut is reset, never ended; its request is lost, not at once."""
        wire = self.connect(window=10)
        answer, other = wire.ask("/one", hold=True), wire.ask("/other")
        request = self.root.requests[0]
        request.write(bytes(100))
        request.channel.abort()
        wire.move()
        self.assertEqual((answer.reset, answer.ended), (ErrorCodes.INTERNAL_ERROR, False))
        self.assertEqual(self.root.lost, [])
        request.write(b"nowhere")
        self.clock.advance(0)
        self.assertEqual(self.root.lost, ["/one"])
        self.assertFalse(other.over)

    def test_cut_off(self) -> None:
        """What was written last comes before the reset."""
        wire = self.connect()
        answer = wire.ask("/one")
        self.root.last.write(b"last words")
        self.root.last.channel.cut_off()
        self.root.last.channel.cut_off()
        wire.move()
        self.assertEqual((bytes(answer.body), answer.over), (b"last words", False))
        self.clock.advance(0.1)
        wire.move()
        self.assertEqual((answer.reset, answer.ended), (ErrorCodes.INTERNAL_ERROR, False))
        self.clock.advance(0)
        self.assertEqual(self.root.lost, ["/one"])

    def test_abort_and_lost(self) -> None:
        """A request is lost once, though it is cut and its connection is gone, too."""
        wire = self.connect()
        wire.ask("/one")
        self.root.last.channel.abort()
        wire.lose()
        self.clock.advance(0)
        self.assertEqual(self.root.lost, ["/one"])

    def test_client_goes_away(self) -> None:
        """
        A client that has said that it goes, as the AWS SDK for JavaScript does with its
        request, gets its answers whole; then the connection is closed.
        """
        wire = self.connect()
        answer, big = wire.client.ask("/held"), wire.client.ask("/big")
        wire.client.go_away()
        wire.move()
        self.assertEqual((bytes(big.body), big.ended), (BIG, True))
        self.assertFalse(wire.down.half_closed)
        for _ in range(3):
            self.root.requests[0].write(b"event")
            wire.send(PingFrame(0, opaque_data=b"12345678"))
        self.root.requests[0].finish()
        wire.move()
        self.assertEqual((bytes(answer.body), answer.ended), (b"event" * 3, True))
        self.clock.advance(2)
        self.assertTrue(wire.down.half_closed)
        wire.receive()
        self.assertEqual([code for _, code, _ in wire.client.goaways], [ErrorCodes.NO_ERROR])

    def test_client_goes_away_from_nothing(self) -> None:
        """
        Without a request that is soon the end, but one may follow: Node says that it
        goes before it says what it wants.
        """
        wire = self.connect()
        wire.client.go_away()
        wire.move()
        answer = wire.ask("/held")
        self.clock.advance(100)
        self.root.last.write(b"whole")
        self.root.last.finish()
        wire.move()
        self.assertEqual((bytes(answer.body), answer.ended), (b"whole", True))
        self.assertFalse(wire.down.half_closed)
        self.clock.advance(2)
        self.assertTrue(wire.down.half_closed)

    def test_drain(self) -> None:
        """
        A server that stops says so, answers what was on its way when it said it, and
        refuses what comes after so that clients try elsewhere.
        """
        wire = self.connect()
        answer = wire.ask("/held")
        drained = self.site.drain()
        late = wire.client.ask("/echo")
        wire.move()
        self.assertEqual((late.status, late.ended), (200, True))
        first, second = wire.client.goaways
        self.assertEqual(first[:2], (2**31 - 1, ErrorCodes.NO_ERROR))
        self.assertEqual(second[:2], (late.id, ErrorCodes.NO_ERROR))
        refused = wire.ask("/echo")
        self.assertEqual((refused.status, refused.reset), (0, ErrorCodes.REFUSED_STREAM))
        self.assertEqual(self.site.in_flight, 1)
        self.assertFalse(wire.down.half_closed)
        self.root.requests[0].write(b"whole")
        self.root.requests[0].finish()
        wire.move()
        self.assertEqual((bytes(answer.body), answer.ended), (b"whole", True))
        self.assertTrue(wire.down.half_closed)
        self.assertNoResult(drained)
        wire.lose()
        self.successResultOf(drained)

    def test_drain_of_idle_ones(self) -> None:
        """A connection without a request goes at once; one that stays is closed in time."""
        wire = self.connect()
        wire.ask("/echo")
        self.site.drain()
        self.assertTrue(wire.down.half_closed)
        wire.receive()
        self.assertEqual(wire.client.goaways[-1][:2], (1, ErrorCodes.NO_ERROR))
        # What still comes is read, so that the last word is not lost in a reset.
        wire.send(PingFrame(0, opaque_data=b"12345678"))
        self.assertFalse(wire.down.disconnecting)
        self.clock.advance(self.limits.linger_s + 1)
        self.assertTrue(wire.down.disconnecting)

    def test_opened_while_draining(self) -> None:
        """A connection accepted at the last moment is told, too."""
        wire = self.connect(begin=False)
        self.site.draining = True
        wire.client.begin()
        wire.move()
        self.assertEqual(wire.client.goaways[-1][:2], (0, ErrorCodes.NO_ERROR))

    def test_abort_of_the_site(self) -> None:
        """Every connection is cut."""
        wire = self.connect()
        wire.ask("/held")
        self.site.abort()
        self.assertTrue(wire.down.disconnected)

    def test_requests_of_a_connection(self) -> None:
        """After so many requests a connection is closed, the last of them answered."""
        self.limits = replace(self.limits, max_requests_per_connection=3)
        self.site = self.make_site()
        wire = self.connect()
        for _ in range(3):
            self.assertEqual(wire.ask("/echo").status, 200)
        self.assertTrue(wire.down.half_closed)
        self.assertEqual(wire.client.goaways[-1][1], ErrorCodes.NO_ERROR)


class TimeTests(Http2TestCase):
    """What takes too long."""

    def test_idle(self) -> None:
        """A connection is closed some time after its last request, not before."""
        wire = self.connect()
        wire.ask("/held")
        self.clock.advance(1000)
        self.assertFalse(wire.down.half_closed)
        self.root.last.finish()
        wire.move()
        self.clock.advance(self.limits.keep_alive_timeout_s - 1)
        # Only requests count.
        wire.send(PingFrame(0, opaque_data=b"12345678"))
        self.assertFalse(wire.down.half_closed)
        self.clock.advance(2)
        self.assertTrue(wire.down.half_closed)
        wire.receive()
        self.assertEqual(wire.client.goaways[-1][1], ErrorCodes.NO_ERROR)

    def test_no_request(self) -> None:
        """A connection without any request is closed when a header would be late."""
        wire = self.connect()
        self.clock.advance(self.limits.header_timeout_s - 1)
        self.assertFalse(wire.down.half_closed)
        self.clock.advance(2)
        self.assertTrue(wire.down.half_closed)

    def test_slow_body(self) -> None:
        """A body that stops coming is a 408 of its request; a slow one is none."""
        wire = self.connect()
        late, slow = wire.client.head(fields("/echo")), wire.client.head(fields("/echo"))
        wire.move()
        for _ in range(4):
            wire.send(DataFrame(slow.id, b"x"))
            self.clock.advance(self.limits.upload_idle_timeout_s / 3)
            wire.receive()
        self.assertEqual((late.status, late.ended, late.reset), (408, True, 0))
        self.assertIn("body", json.loads(late.body)["message"])
        wire.client.h2.end_stream(slow.id)
        wire.client.flush()
        wire.move()
        self.assertEqual((slow.status, bytes(slow.body)), (200, b"xxxx"))

    def test_no_body_on_an_old_connection(self) -> None:
        """A body is waited for as long on a connection that has been kept for a while."""
        wire = self.connect()
        self.clock.advance(self.limits.header_timeout_s / 2)
        wire.ask("/echo", b"hi")
        self.clock.advance(self.limits.header_timeout_s * 2 / 3)
        late = wire.client.head(fields("/echo"))
        wire.move()
        self.clock.advance(self.limits.upload_idle_timeout_s - 1)
        wire.receive()
        self.assertEqual(late.status, 0)
        self.clock.advance(2)
        wire.receive()
        self.assertEqual(late.status, 408)

    def test_late_after_a_pause(self) -> None:
        """A body that was held up by our disk may be late again afterwards."""
        wire = self.connect()
        answer = wire.client.head(fields("/echo"))
        wire.move()
        [stream] = wire.channel._streams.values()
        stream.pause_upload()
        self.clock.advance(self.limits.upload_idle_timeout_s * 3)
        stream.resume_upload()
        self.clock.advance(self.limits.upload_idle_timeout_s - 1)
        wire.receive()
        self.assertEqual(answer.status, 0)
        self.clock.advance(2)
        wire.receive()
        self.assertEqual(answer.status, 408)

    def test_slow_header(self) -> None:
        """
        A header that comes byte by byte is given up, with or without other requests,
        which are answered first.
        """
        for beside in (False, True):
            wire = self.connect()
            answer = wire.ask("/held") if beside else None
            block = wire.client.h2.encoder.encode(fields("/echo"))
            frame = HeadersFrame(9, block).serialize() + b"\0\0\x50\x09\0\0\0\0\x09"
            for byte in frame:
                wire.protocol.dataReceived(bytes([byte]))
                self.clock.advance(0.1)
            for _ in range(30):
                self.clock.advance(self.limits.header_timeout_s / 25)
                if wire.open and not wire.down.half_closed:
                    wire.protocol.dataReceived(b"\x00")
            wire.receive()
            if answer is not None:
                self.assertIn(b"in time", wire.client.goaways[-1][2])
                self.assertFalse(wire.down.half_closed)
                self.root.last.write(b"whole")
                self.root.last.finish()
                wire.receive()
                self.assertTrue(answer.ended)
            self.assertTrue(wire.down.half_closed)

    def test_settings_never_acknowledged(self) -> None:
        """Who does not acknowledge our settings does not know them."""
        wire = self.connect(begin=False)
        wire.protocol.dataReceived(PREFACE + SettingsFrame(0).serialize())
        channel = wire.channel
        block = wire.client.h2.encoder.encode(fields("/held", "GET"))
        frame = HeadersFrame(1, block, flags=["END_HEADERS", "END_STREAM"])
        wire.protocol.dataReceived(frame.serialize())
        self.assertFalse(channel.idle)
        self.clock.advance(self.limits.header_timeout_s + 1)
        self.assertTrue(channel.refused)
        self.assertIn(b"acknowledged", wire.down.value())
        self.assertEqual(self.root.lost, ["/held"])

    def test_answer_that_nobody_takes(self) -> None:
        """An answer that is over waits for its client for a time, from its last move on."""
        wire = self.connect(window=10)
        answer = wire.ask("/big", hold=True)
        limit = self.http2_limits.flush_timeout_s
        self.clock.advance(limit - 1)
        wire.client.open(answer, 10)
        wire.move()
        self.clock.advance(limit - 1)
        wire.receive()
        self.assertEqual((len(answer.body), answer.over), (20, False))
        self.clock.advance(2)
        wire.receive()
        self.assertEqual(answer.reset, ErrorCodes.INTERNAL_ERROR)
        self.assertTrue(wire.channel.idle)

    def test_last_answer_to_a_slow_client(self) -> None:
        """A connection that ends with its socket full waits until that has gone out."""
        wire = self.connect(window=2**20)
        wire.ask("/held")
        wire.down.room = 300
        self.root.last.write(bytes(1000))
        self.root.last.finish()
        wire.client.go_away()
        wire.move()
        self.clock.advance(2)
        self.assertTrue(wire.down.half_closed)
        self.clock.advance(self.limits.linger_s + 1)
        self.assertFalse(wire.down.disconnecting or wire.down.disconnected)
        wire.down.drain()
        self.clock.advance(self.limits.linger_s + 1)
        self.assertTrue(wire.down.disconnecting)


class PullTests(TestCase):
    """Producers that wait until they are asked."""

    async def test_file(self) -> None:
        """They are asked as fast as the client reads, and no faster."""
        path = self.mktemp()
        with open(path, "wb") as file:
            file.write(BIG)
        root = Resource()
        root.putChild(b"file", File(path))
        site = Site(root, Clock(), ClientLimits(), wall_seconds=lambda: 0.0)
        wire = Wire(site, 10_000)
        wire.client.begin()
        wire.move()
        answer = wire.ask("/file", b"", method="GET", hold=True)
        for _ in range(50):
            await pause(0)
            wire.move()
        self.assertEqual(len(answer.body), 10_000)
        [stream] = wire.channel._streams.values()
        self.assertLess(stream.waiting, 2 * Http2Limits().max_buffered)
        wire.client.open(answer, 2**24)
        for _ in range(1000):
            await pause(0)
            wire.move()
        self.assertEqual((bytes(answer.body), answer.ended), (BIG, True))
        wire.lose()


def _flood(frame: Frame) -> Callable[[Wire, int], None]:
    def send(wire: Wire, count: int) -> None:
        wire.up.write(frame.serialize() * count)
        wire.move()

    return send


def _reset(wire: Wire, count: int) -> None:
    for _ in range(count):
        if not wire.client.goaways:
            wire.client.reset(wire.client.ask("/held"))
    wire.move()


def _malformed(wire: Wire, count: int) -> None:
    for _ in range(count):
        if not wire.client.goaways:
            wire.client.head([(":method", "GET")], end=True)
            wire.move()


def _empty_data(wire: Wire, count: int) -> None:
    answer = wire.client.head(fields("/echo"))
    _flood(DataFrame(answer.id))(wire, count)


def _data_of_the_dead(wire: Wire, count: int) -> None:
    answer = wire.client.head(fields("/echo", "POST", ("content-length", "99999999")))
    _flood(DataFrame(answer.id, b"x"))(wire, count)


def _continuations(wire: Wire, count: int) -> None:
    if not wire.channel.h2.continued:
        wire.up.write(HeadersFrame(3, b"").serialize())
    wire.up.write(b"\0\0\0\x09\0\0\0\0\x03" * count)
    wire.move()


FLOODS: dict[str, tuple[str, int, Callable[[Wire, int], None]]] = {
    "resets": ("rapid_reset", 100, _reset),
    "malformed": ("rapid_reset", 100, _malformed),
    "pings": ("ping_flood", 200, _flood(PingFrame(0, opaque_data=b"12345678"))),
    "ping answers": ("ping_flood", 200, _flood(PingFrame(0, b"12345678", flags=["ACK"]))),
    "settings": ("settings_flood", 48, _flood(SettingsFrame(0))),
    "priorities": ("control_flood", 1999, _flood(PriorityFrame(7))),
    "unknown": ("control_flood", 1999, _flood(ExtensionFrame(0x55, 0))),
    "farewells": ("control_flood", 1999, _flood(GoAwayFrame(0))),
    "windows": ("control_flood", 1999, _flood(WindowUpdateFrame(0, window_increment=1))),
    "empty data": ("control_flood", 1999, _empty_data),
    "data of the dead": ("control_flood", 1999, _data_of_the_dead),
    "continuations": ("control_flood", 31, _continuations),
}


class FloodTests(Http2TestCase):
    """Who does too much of anything."""

    def test_floods(self) -> None:
        """
        So much is let through; more ends the connection, says why, and is counted.
        What was asked there before is lost; others are not touched.
        """
        for name, (kind, allowed, flood) in FLOODS.items():
            self.site = self.make_site()
            self.root.lost.clear()
            beside = self.connect()
            held = beside.ask("/held")
            wire = self.connect()
            wire.ask("/mine")
            flood(wire, allowed)
            while wire.channel._behind:
                self.clock.advance(0)
            wire.move()
            self.assertEqual(wire.client.goaways, [], name)
            flood(wire, allowed)
            while wire.channel._behind:
                self.clock.advance(0)
            wire.move()
            [(_, code, text)] = wire.client.goaways
            self.assertEqual(code, ErrorCodes.ENHANCE_YOUR_CALM, name)
            self.assertTrue(text)
            self.assertEqual(dict(self.site.refusals), {kind: 1}, name)
            self.assertTrue(wire.down.half_closed)
            self.assertIn("/mine", self.root.lost)
            self.assertFalse(held.over)
            self.assertFalse(wire.down.reading, name)
            self.clock.advance(1)
            self.assertTrue(wire.down.disconnected, name)
            for each in (beside, wire):
                each.lose()

    def test_one_piece(self) -> None:
        """A header block in too many frames ends the connection at the first of them."""
        wire = self.connect()
        end = b"\0\0\0\x09\x04\0\0\0\x01"
        wire.up.write(HeadersFrame(1, b"").serialize() + b"\0\0\0\x09\0\0\0\0\x01" * 40 + end)
        wire.move()
        [(_, code, _)] = wire.client.goaways
        self.assertEqual(code, ErrorCodes.ENHANCE_YOUR_CALM)
        self.assertEqual(dict(self.site.refusals), {"control_flood": 1})
        self.assertLess(wire.channel.h2.continued, 34)

    def test_thrown_out(self) -> None:
        """
        Who is thrown out is read no more and gone within a second; when there are many
        of them, at once. What comes from there next waits, and then is served.
        """
        wires = [self.connect() for _ in range(120)]
        for wire in wires:
            _flood(PingFrame(0, opaque_data=b"12345678"))(wire, 201)
            while wire.channel._behind:
                self.clock.advance(0)
            self.assertFalse(wire.down.reading)
        gone = [wire.down.disconnected for wire in wires]
        self.assertEqual(gone, [False] * 100 + [True] * 20)
        self.clock.advance(1)
        self.assertTrue(all(wire.down.disconnected for wire in wires))
        self.site.turns.box("192.168.1.1")
        wire = self.connect(begin=False)
        wire.client.begin()
        answer = wire.ask("/echo", b"hi")
        self.assertFalse(answer.over)
        self.assertFalse(wire.down.reading)
        self.clock.advance(0)
        wire.move()
        self.assertEqual((answer.status, wire.down.reading), (200, True))

    def test_burst(self) -> None:
        """
        Requests that come together are begun a few a turn of the reactor, in their order, and
        nothing is read meanwhile; those that take long one a turn.
        """
        self.clock = reactor = Reactor()
        self.site = self.make_site()
        wire = self.connect()
        for takes_s, most in ((0.0007, 3), (0.0045, 1)):
            self.root.takes_s = takes_s
            begun = len(self.root.requests)
            answers = []
            for at in range(40):
                answers.append(wire.client.ask("/echo", b"%d" % at))
                # A record of TLS each.
                wire.protocol.dataReceived(wire.up.value())
                wire.up.clear()
            for _ in range(90):
                before, begun = begun, len(self.root.requests)
                self.assertLessEqual(begun - before, most)
                self.assertEqual(wire.down.reading, not wire.channel._behind)
                reactor.turn()
            self.assertTrue(wire.down.reading)
            wire.move()
            self.assertEqual([b"%d" % at for at in range(40)], [each.body for each in answers])

    def test_leaving(self) -> None:
        """
        The requests of a client that leaves are told a few a turn of the reactor, whatever one
        of them makes of it, and none of their answers is written meanwhile.
        """

        def broken() -> None:
            raise ValueError("planted")

        self.clock = reactor = Reactor()
        self.site = self.make_site()
        wire = self.connect()
        for _ in range(40):
            wire.ask("/held")
            self.root.last.when_lost(lambda: reactor.spend(0.0007))
        self.root.requests[5].when_lost(broken)
        sent = wire.down.value()
        wire.lose()
        for at in range(1, 20):
            self.assertLessEqual(len(self.root.lost), 3 * at)
            if at == 2:
                self.root.last.write(b"too late")
            reactor.turn()
        self.assertEqual(len(self.root.lost), 39)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertEqual(wire.down.value(), sent)
        self.assertEqual(self.site.connections, 0)

    def test_late(self) -> None:
        """What was sent too fast was too fast, however late it is looked at."""
        wire = self.connect()
        self.site.turns.box("192.168.1.1")
        wire.up.write(PingFrame(0, opaque_data=b"12345678").serialize() * 201)
        wire.move()
        while wire.channel._behind:
            self.clock.advance(0.1)
        wire.move()
        self.assertEqual(len(wire.client.goaways), 1)

    def test_over_time(self) -> None:
        """What comes slowly enough may go on for ever."""
        wire = self.connect()
        wire.ask("/held")
        for _ in range(50):
            for _ in range(20):
                wire.client.reset(wire.client.ask("/one"))
            wire.send(*[PingFrame(0, opaque_data=b"12345678")] * 10, SettingsFrame(0))
            self.clock.advance(1)
        self.assertEqual(wire.client.goaways, [])

    def test_windows_of_a_busy_client(self) -> None:
        """A client that opens its windows for each frame it gets is none that floods."""
        wire = self.connect()
        answer = wire.ask("/held")
        for _ in range(3000):
            self.root.last.write(b"event")
        wire.receive()
        update = WindowUpdateFrame(answer.id, window_increment=5)
        wire.send(*[update, WindowUpdateFrame(0, window_increment=5)] * 3000)
        while wire.channel._behind:
            self.clock.advance(0)
        self.assertEqual(wire.client.goaways, [])

    def test_garbage(self) -> None:
        """What a connection was is gone with it, and no work for the garbage collector."""
        self.addCleanup(gc.enable)
        gc.disable()
        for wrong in (b"", b"\0\0\0\x05\0\0\0\0\x01"):
            wire = self.connect()
            wire.ask("/echo", b"hi")
            wire.client.head(fields("/echo"))
            wire.up.write(wrong)
            wire.move()
            self.assertEqual(len(wire.client.goaways), bool(wrong))
            held = weakref.ref(wire.channel), weakref.ref(wire.channel.h2)
            if wire.down.producer is not None:
                wire.down.unregisterProducer()  # As a socket does it.
            wire.lose()
            self.clock.advance(1)
            self.wires.clear()
            self.root.requests.clear()
            del wire
            self.assertEqual([ref() for ref in held], [None, None])

    def test_too_many_streams(self) -> None:
        """More requests at a time than allowed are refused, so that they are sent again."""
        self.site = self.make_site(max_concurrent_streams=3)
        wire = self.connect()
        wire.client.h2.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 1000
        wire.client.h2.remote_settings.acknowledge()
        answers = [wire.ask("/held") for _ in range(5)]
        resets = [answer.reset for answer in answers]
        self.assertEqual(resets, [None] * 3 + [ErrorCodes.REFUSED_STREAM] * 2)
        self.assertEqual(dict(self.site.refusals), {"too_many_streams": 2})
        self.root.requests[0].finish()
        wire.move()
        self.assertEqual(wire.ask("/echo").status, 200)

    def test_work_is_spread_for_split_heads(self) -> None:
        """A head in two frames is as much work as one in one."""
        wire = self.connect()
        head = wire.client.h2.encoder.encode(fields("/held", "GET"))
        for at in range(1, 40, 2):
            wire.up.write(HeadersFrame(at, head[:3], flags=["END_STREAM"]).serialize())
            wire.up.write(ContinuationFrame(at, head[3:], flags=["END_HEADERS"]).serialize())
            head = wire.client.h2.encoder.encode(fields("/held", "GET"))
        wire.protocol.dataReceived(wire.up.value())
        self.assertLess(len(self.root.requests), 10)

    def test_work_is_spread(self) -> None:
        """One client's frames are handled in turns, so that others come in between."""
        wire = self.connect()
        for _ in range(100):
            wire.client.ask("/echo", b"")
        data = wire.up.value()
        wire.up.clear()
        wire.protocol.dataReceived(data)
        self.assertLess(len(self.root.requests), 20)
        self.assertFalse(wire.down.reading)
        self.clock.advance(0)
        self.assertTrue(wire.down.reading)
        wire.move()
        self.assertEqual(len(self.root.requests), 100)
        self.assertTrue(all(answer.ended for answer in wire.client.answers.values()))

    def test_client_that_reads_nothing(self) -> None:
        """What is written for a client that does not read is bounded; then it is cut."""
        wire = self.connect()
        wire.down.room = 0
        wire.protocol.dataReceived(PingFrame(0, opaque_data=b"12345678").serialize())
        block = wire.client.h2.encoder.encode(fields("/status/204", "GET"))
        sent = 0
        while not wire.down.disconnected:
            sent += 1
            frame = HeadersFrame(2 * sent - 1, block, flags=["END_HEADERS", "END_STREAM"])
            wire.protocol.dataReceived(frame.serialize())
            self.clock.advance(0.01)
        self.assertTrue(wire.down.disconnected)
        self.assertLess(len(wire.down.value()), self.http2_limits.max_backlog + 1000)
        self.assertGreater(sent, 100)
        self.assertEqual(dict(self.site.refusals), {"control_flood": 1})

    def test_secrets_are_not_told(self) -> None:
        """What ends a connection is told without what the client sent."""
        wire = self.connect()
        block = b"\x00\x03abc\x7f\xff\xff\xff\xff\xff\x7fplanted"
        wire.send(HeadersFrame(1, block, flags=["END_HEADERS"]))
        [(_, code, text)] = wire.client.goaways
        self.assertEqual(code, ErrorCodes.COMPRESSION_ERROR)
        self.assertNotIn(b"planted", text)
