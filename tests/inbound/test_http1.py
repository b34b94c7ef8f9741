"""
A client's HTTP/1.1 connection: what it may send, how long it may take, and what it gets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from tests.inbound.http1_wire import LIMITS, Answer, Peer, answers, content, cut, engine
from txbedrock.errors import BadHttp, BodyTooLarge
from txbedrock.inbound.request import Request

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"POST /c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
EXPECT = b"POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def with_headers(*lines: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    """A request without a body."""
    return b"\r\n".join([b"%b /h HTTP/%b" % (method, version), b"Host: a", *lines, b"", b""])


class Http1TestCase(SynchronousTestCase):
    """A connection in memory."""

    peer: Peer

    def connect(self, respond: Callable[[Any], object] | None = None, **limits: Any) -> Peer:
        """:param respond: answers a request; None: each is answered at once."""
        self.peer = engine(respond, replace(LIMITS, **limits))
        self.addCleanup(self.peer.leave)
        return self.peer

    def hold(self, **limits: Any) -> Peer:
        """Nothing is answered until the test does it."""
        return self.connect(lambda request: None, **limits)

    def targets(self) -> list[bytes]:
        """Of the requests that the resource was asked."""
        return [seen.target for seen in self.peer.seen]

    def answer(self, index: int, body: bytes = b"ok") -> None:
        """Answer a request of those held."""
        request = self.peer.recorder.requests[index]
        request.setHeader(b"content-length", b"%d" % len(body))
        request.write(body)
        request.finish()
        self.peer.turn()

    def answers(self, *methods: bytes) -> list[Answer]:
        return answers(self.peer.received, methods)

    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers()]

    def assert_refused(self, status: int, words: str) -> None:
        """The last answer refuses, says why, and the connection goes."""
        last = self.answers()[-1]
        self.assertEqual(last.status, status, last)
        self.assertIn(words.encode(), last.body)
        self.assertEqual(last.headers[b"connection"], b"close")
        self.assertTrue(self.peer.channel.refused)
        self.assertTrue(self.peer.wire.half_closed)

    def assert_open(self) -> None:
        self.assertFalse(self.peer.wire.disconnecting)
        self.assertFalse(self.peer.channel.refused)

    def assert_closed(self) -> None:
        """Without a refusal."""
        self.assertTrue(self.peer.wire.disconnecting)
        self.assertFalse(self.peer.channel.refused)


class TimeTests(Http1TestCase):
    """Each phase has a limit of its own."""

    def test_silent(self) -> None:
        """Who never sends anything is let go without a word."""
        peer = self.connect()
        peer.advance(9.9)
        self.assert_open()
        peer.advance(0.2)
        self.assert_closed()
        self.assertEqual(peer.received, b"")

    def test_blank(self) -> None:
        """An empty line is no request either."""
        peer = self.connect()
        peer.send(b"\r\n")
        peer.advance(10.1)
        self.assert_closed()
        self.assertEqual(peer.received, b"")

    def test_header(self) -> None:
        """A header has one limit for all of it, however steadily it comes."""
        peer = self.connect()
        peer.advance(9)
        for byte in GET[:9]:
            peer.send(bytes([byte]))
            self.assert_open()
            peer.advance(1.1)
        peer.advance(0.2)
        self.assert_refused(408, "The header of the request did not arrive in time.")

    def test_next_header(self) -> None:
        """The limit of the next one begins with its first byte."""
        peer = self.connect()
        peer.send(GET)
        peer.advance(25)
        peer.send(GET[:5])
        peer.advance(9.9)
        self.assert_open()
        peer.send(GET[5:])
        self.assertEqual(self.statuses(), [200, 200])
        peer.send(GET[:5])
        peer.advance(10.1)
        self.assert_refused(408, "header")

    def test_body(self) -> None:
        """A body may take long, if only it gets on."""
        for framing, pieces in (
            (b"Content-Length: 6", [b"x"] * 5),
            (b"Transfer-Encoding: chunked", [b"5", b"\r\n", b"h", b"e", b"l"]),
        ):
            peer = self.connect()
            peer.send(with_headers(framing, method=b"POST"))
            for piece in pieces:
                peer.advance(19)
                self.assert_open()
                peer.send(piece)
            peer.advance(20.1)
            self.assert_refused(408, "The body of the request did not arrive in time.")
            self.assertEqual(peer.seen, [])

    def test_answer(self) -> None:
        """We may take as long as we want, and have it counted anew afterwards."""
        peer = self.hold()
        peer.send(POST)
        peer.advance(10_000)
        self.assert_open()
        self.answer(0)
        peer.advance(29.9)
        self.assert_open()

    def test_idle(self) -> None:
        """Between two requests it is another limit; then the connection closes."""
        peer = self.connect()
        peer.send(GET)
        peer.advance(29)
        peer.send(GET)
        peer.advance(29.9)
        self.assert_open()
        peer.advance(0.2)
        self.assert_closed()
        self.assertEqual(self.statuses(), [200, 200])

    def test_cut(self) -> None:
        """A closed connection whose client takes nothing is cut at last."""
        peer = self.connect()
        peer.send(with_headers(b"Connection: close"))
        self.assert_closed()
        peer.advance(29.9)
        self.assertFalse(peer.wire.aborted)
        peer.advance(0.2)
        self.assertTrue(peer.wire.aborted)

    def test_waiting(self) -> None:
        """The time in line does not count against a request."""
        peer = self.hold()
        peer.send(GET + POST[:-2])
        peer.advance(1000)
        self.assert_open()
        self.answer(0)
        peer.advance(19)
        peer.send(POST[-2:])
        self.answer(1)
        self.assertEqual(self.statuses(), [200, 200])


class ContinueTests(Http1TestCase):
    """``Expect: 100-continue``"""

    def test_continue(self) -> None:
        """It is said when the head is here, once."""
        peer = self.connect()
        peer.send(EXPECT[:-1])
        self.assertEqual(peer.received, b"")
        peer.send(EXPECT[-1:])
        self.assertEqual(peer.received, CONTINUE)
        peer.send(b"he", b"llo")
        self.assertEqual(self.statuses(), [100, 200])
        self.assertEqual(peer.seen[0].body, b"hello")

    def test_chunked(self) -> None:
        """Likewise for a body of unknown length, and in any case."""
        peer = self.connect()
        peer.send(CHUNKED.replace(b"\r\n\r\n", b"\r\nEXPECT: 100-Continue\r\n\r\n"))
        self.assertEqual(peer.received, CONTINUE)

    def test_not(self) -> None:
        """Nothing is said to who does not wait, or has nothing to send."""
        for data in (
            EXPECT + b"h",
            EXPECT + b"hello",
            EXPECT.replace(b"HTTP/1.1", b"HTTP/1.0"),
            EXPECT.replace(b": 5", b": 0"),
            EXPECT.replace(b"Content-Length: 5\r\n", b""),
            EXPECT.replace(b"100-continue", b"200-ok"),
        ):
            peer = self.connect()
            peer.send(data)
            self.assertNotIn(CONTINUE, peer.received, data)
            self.assert_unrefused()

    def assert_unrefused(self) -> None:
        self.assertFalse(self.peer.channel.refused)

    def test_too_large(self) -> None:
        """A body that will not be taken is not asked for."""
        peer = self.connect(max_request_body=4)
        peer.send(EXPECT)
        self.assertEqual(self.statuses(), [413])
        self.assert_refused(413, "longer than the 4 bytes")

    def test_late(self) -> None:
        """Behind another request it is said when that one is answered."""
        peer = self.hold()
        peer.send(GET + EXPECT)
        self.assertEqual(peer.received, b"")
        self.answer(0)
        self.assertEqual(self.statuses(), [200, 100])
        peer.send(b"hello")
        self.answer(1)
        self.assertEqual(self.statuses(), [200, 100, 200])


class PipelineTests(Http1TestCase):
    """A client that does not wait for answers. See Note [One request at a time]."""

    def test_order(self) -> None:
        """One request is answered after the other, in whatever pieces they come."""
        data = GET + POST + CHUNKED + b"2\r\nhi\r\n0\r\n\r\n" + GET.replace(b"/a", b"/z")
        for pieces in ([data], cut(data, range(len(data))), cut(data, range(0, len(data), 60))):
            peer = self.hold()
            peer.send(*pieces)
            for index, target in enumerate((b"/a", b"/p", b"/c", b"/z")):
                self.assertEqual(self.targets()[index:], [target])
                self.answer(index, target)
            self.assertEqual([answer.body for answer in self.answers()], self.targets())
            self.assertEqual([seen.body for seen in peer.seen], [b"", b"hello", b"hi", b""])

    def test_garbage(self) -> None:
        """What is no HTTP is refused when all before it is answered, not sooner."""
        peer = self.hold()
        peer.send(GET + POST + b"nonsense\r\n\r\n")
        self.assertEqual(peer.received, b"")
        self.answer(0)
        self.assertEqual(self.statuses(), [200])
        self.assert_open()
        self.answer(1)
        self.assertEqual(self.statuses(), [200, 200, 400])
        self.assert_refused(400, "not valid HTTP/1.1")

    def test_too_large_behind(self) -> None:
        """The same for a body that is too long."""
        peer = self.hold(max_request_body=4)
        peer.send(GET + POST)
        self.answer(0)
        self.assertEqual(self.statuses(), [200, 413])

    def test_bound(self) -> None:
        """One piece waits; then the connection is not read until its turn has come."""
        peer = self.hold()
        peer.send(GET, GET * 2, GET, GET)
        self.assertEqual(peer.unread, 2)
        for index in range(5):
            self.assertEqual(len(peer.seen), index + 1)
            self.answer(index)
        self.assertEqual(peer.unread, 0)
        self.assertEqual(self.statuses(), [200] * 5)
        self.assertTrue(peer.wire.reads)

    def test_not_ahead(self) -> None:
        """Who waits for the answer is read on, or nobody would see it leave."""
        peer = self.hold()
        peer.send(GET)
        self.assertTrue(peer.wire.reads)

    def test_many(self) -> None:
        """However many a piece has, they are bytes until it is their turn, each in its own."""
        peer = self.connect()
        count = 60_000 // len(GET)
        peer.channel.dataReceived(GET * count)
        for done in range(1, 6):
            self.assertEqual(len(peer.seen), done)
            [turn] = [call for call in peer.clock.calls if call.getTime() == 0]
            peer.clock.calls.remove(turn)
            turn.func()
        peer.turn()
        self.assertEqual(self.statuses(), [200] * count)

    def test_stalled(self) -> None:
        """A client that asks and asks and takes no answer gets no more of them."""
        body = b"x" * 20_000

        def respond(request: Request) -> None:
            request.setHeader(b"content-length", b"%d" % len(body))
            request.write(body)
            request.finish()

        peer = self.connect(respond)
        peer.wire.stalled = True
        peer.send(*[GET * 10] * 20)
        self.assertEqual(len(peer.seen), 4)
        self.assertFalse(peer.channel.idle)
        self.assertFalse(peer.wire.reads)
        peer.wire.take()
        peer.turn()
        self.assertEqual(len(self.statuses()), 200)
        self.assertTrue(peer.channel.idle)

    def test_stalled_alone(self) -> None:
        """Nor does one that sends a request at a time; and it is cut off at last."""
        peer = self.connect(lambda request: (request.write(b"x" * 70_000), request.finish()))
        peer.wire.stalled = True
        peer.send(GET, GET)
        self.assertEqual((len(peer.seen), peer.unread), (1, 1))
        peer.advance(30.1)
        self.assert_closed()
        peer.advance(30.1)
        self.assertTrue(peer.wire.aborted)


class UpgradeTests(Http1TestCase):
    """Who asks for another protocol is answered in this one."""

    FIELDS = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"

    def test_upgrade(self) -> None:
        """With and without a body, the next request behind it, cut anywhere."""
        last = b"GET /z HTTP/1.1\r\nHost: a\r\n\r\n"
        for request, body in (
            (GET, b""),
            (POST, b"hello"),
            (CHUNKED + b"2;x=y\r\nhi\r\n0\r\nX-T: 1\r\n\r\n", b"hi"),
            (POST.replace(b"5\r\n\r\nhello", b"0\r\n\r\n"), b""),
        ):
            data = request.replace(b"Host", self.FIELDS + b"Host") * 2 + last
            for at in range(len(data)):
                peer = self.connect()
                peer.send(*cut(data, [at]))
                self.assertEqual([seen.body for seen in peer.seen], [body, body, b""])
                self.assertEqual(self.targets()[2], b"/z")
                self.assert_open()
            peer = self.connect()
            peer.send(*cut(data, range(len(data))))
            self.assertEqual([seen.body for seen in peer.seen], [body, body, b""])

    def test_many(self) -> None:
        """As many in one piece as there is room for."""
        upgrade = GET.replace(b"Host", self.FIELDS + b"Host")
        count = 60_000 // len(upgrade)
        peer = self.connect()
        peer.send(upgrade * count)
        self.assertEqual(self.statuses(), [200] * count)

    def test_close(self) -> None:
        """Close is close, also with an upgrade."""
        peer = self.connect()
        peer.send(POST.replace(b"Host", b"Connection: upgrade, close\r\nUpgrade: x\r\nHost") + GET)
        self.assertEqual(self.targets(), [b"/p"])
        self.assert_closed()

    def test_connect(self) -> None:
        """There are no tunnels."""
        peer = self.connect()
        peer.send(b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
        self.assert_refused(400, "no CONNECT")
        self.assertEqual(peer.seen, [])


class VersionTests(Http1TestCase):
    """HTTP/1.0, and what is neither."""

    def test_old(self) -> None:
        """One request a connection, with or without Host, whatever it asks for."""
        for lines in (b"", b"Host: a\r\n", b"Connection: keep-alive\r\n"):
            peer = self.connect()
            peer.send(b"GET /old HTTP/1.0\r\n" + lines + b"\r\n" + GET)
            self.assertEqual(self.targets(), [b"/old"])
            [answer] = self.answers()
            self.assertEqual(answer.headers[b"connection"], b"close")
            self.assert_closed()

    def test_old_length(self) -> None:
        """The end of an answer of unknown length is that of the connection."""
        peer = self.connect(lambda request: (request.write(b"a"), request.write(b"b")))
        peer.send(b"GET / HTTP/1.0\r\n\r\n")
        self.assert_open()
        peer.recorder.requests[0].finish()
        [answer] = self.answers()
        self.assertEqual(answer.body, b"ab")
        self.assertNotIn(b"transfer-encoding", answer.headers)
        self.assert_closed()

    def test_others(self) -> None:
        """All other versions and protocols are refused."""
        for line in (
            b"GET /", b"GET / HTTP/0.9", b"GET / HTTP/1.2", b"GET / HTTP/2.0", b"GET / RTSP/1.0",
            b"GET / RTSP/1.1", b"SOURCE / ICE/1.0", b"GET / HTTP/1.1 ", b"GET / HTTP/1.1\t",
            b"GET / http/1.1",
        ):  # fmt: skip
            peer = self.connect()
            peer.send(line + b"\r\nHost: a\r\n\r\n")
            self.assertEqual(self.statuses(), [400], line)
            self.assertEqual(peer.seen, [], line)


class HeadTests(Http1TestCase):
    """What a request must be. The differential test has more."""

    def test_bad(self) -> None:
        """It is refused with a 400, and nothing behind it is looked at."""
        host = b"Host: a\r\n"
        for head in (
            b"GET  / HTTP/1.1\r\n" + host,
            b"GET /  HTTP/1.1\r\n" + host,
            b"GET\t/ HTTP/1.1\r\n" + host,
            b"GET / HTTP/1.1\r\n",
            b"GET / HTTP/1.1\r\n" + host * 2,
            b"GET / HTTP/1.1\n" + host,
            b"GET / HTTP/1.1\r\nHost: a\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n",
            b"GET / HTTP/1.1\r\nHost : a\r\n",
            b"GET / HTTP/1.1\r\n Host: a\r\n",
            b"GET / HTTP/1.1\r\n" + host + b"X: a\rb\r\n",
            b"GET / HTTP/1.1\r\n" + host + b"X: a\x00b\r\n",
            b"\r\n\r\nGET / HTTP/1.1\r\n" + host,
            b"\nGET / HTTP/1.1\r\n" + host,
            b"\rGET / HTTP/1.1\r\n" + host,
            b" GET / HTTP/1.1\r\n" + host,
            b"\r\n\nGET / HTTP/1.1\r\n" + host,
            b"POST / HTTP/1.1\r\n" + host + b"Content-Length: 1\r\nContent-Length: 1\r\n",
            b"POST / HTTP/1.1\r\n" + host + b"Content-Length: +1\r\n",
            b"POST / HTTP/1.1\r\n" + host + b"Content-Length: 1, 1\r\n",
            b"POST / HTTP/1.1\r\n" + host + b"Content-Length:\r\n",
            b"POST / HTTP/1.1\r\n" + host + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            b"POST / HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n",
            b"POST / HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n" * 2,
            b"POST / HTTP/1.1\r\n" + host + b"Transfer-Encoding: gzip, chunked\r\n",
            b"POST / HTTP/1.1\r\n" + host + b"Transfer-Encoding: xchunked\r\n",
            b"POST / HTTP/1.1\r\n" + host + b"Transfer-Encoding: identity\r\n",
            b"POST / HTTP/1.0\r\n" + host + b"Transfer-Encoding: chunked\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        ):
            data = head + b"\r\n0\r\n\r\n" + GET
            for pieces in ([data], cut(data, range(len(data)))):
                peer = self.connect()
                peer.send(*pieces)
                self.assertEqual(self.statuses(), [400], head)
                self.assertEqual(peer.seen, [], head)
                self.assert_refused(400, "message")

    def test_blank(self) -> None:
        """One empty line before a request is passed over, on the first and on the next."""
        data = b"\r\n" + GET + b"\r\n" + POST + b"\r\n"
        for pieces in ([data], cut(data, range(len(data)))):
            peer = self.connect()
            peer.send(*pieces)
            self.assertEqual(self.targets(), [b"/a", b"/p"])
            self.assert_open()

    def test_tls(self) -> None:
        """Who speaks TLS to the wrong port is told at once."""
        peer = self.connect()
        peer.send(b"\x16\x03\x01")
        self.assert_refused(400, "not valid HTTP/1.1")

    def test_fields(self) -> None:
        """Names and values come as they were sent, without the blanks around them."""
        peer = self.connect()
        peer.send(with_headers(b"X-A:", b"x-a: \t b\t c \t", b"X-\xc3: d"[:2] + b"B:\xe9"))
        self.assertEqual(
            peer.recorder.requests[0].headers,
            [(b"Host", b"a"), (b"X-A", b""), (b"x-a", b"b\t c"), (b"X-B", b"\xe9")],
        )

    def test_targets(self) -> None:
        """The target is as it was sent."""
        for target in (b"/", b"/a%2Fb?c=%20&d", b"http://h:1/p?q", b"//x/../y", b"/?"):
            peer = self.connect()
            peer.send(b"OPTIONS %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
            self.assertEqual(self.targets(), [target])


class LimitTests(Http1TestCase):
    """How much a head and a body may be, to the byte."""

    def check(self, good: bytes, bad: bytes, status: int, words: str) -> None:
        """One is taken, the other not, in one piece and in several."""
        for data, is_good in ((good, True), (bad, False)):
            for places in ([], [1], range(0, len(data), 7000), [len(data) - 1]):
                peer = self.connect(max_request_body=20, max_requests_per_connection=1)
                peer.send(*cut(data, places))
                if is_good:
                    self.assertEqual(self.statuses(), [200])
                    self.assertEqual(len(peer.seen), 1)
                else:
                    self.assertEqual(peer.seen, [])
                    self.assert_refused(status, words)

    def test_line(self) -> None:
        """A line of a header is at most 16 KiB."""
        self.check(
            with_headers(b"X-L: " + b"v" * (16 * 1024 - 5)),
            with_headers(b"X-L: " + b"v" * (16 * 1024 - 4)),
            431,
            "16384 bytes a line",
        )

    def test_request_line(self) -> None:
        """So is the first one."""
        get = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n"
        fits = 16 * 1024 - len(b"GET / HTTP/1.1")
        self.check(get % (b"v" * fits), get % (b"v" * (fits + 1)), 431, "16384 bytes a line")

    def test_total(self) -> None:
        """All of it is at most 64 KiB, line ends and blanks included."""
        lines = [b"X-L: " + b"v" * 13_000] * 4
        missing = 64 * 1024 - len(with_headers(*lines, b"X-M:"))
        self.check(
            with_headers(*lines, b"X-M:" + b" " * missing),
            with_headers(*lines, b"X-M:" + b" " * (missing + 1)),
            431,
            "65536 bytes",
        )

    def test_count(self) -> None:
        """At most 500 lines."""
        self.check(
            with_headers(*[b"X: y"] * 499), with_headers(*[b"X: y"] * 500), 431, "500 lines"
        )

    def test_endless(self) -> None:
        """A head without an end is refused before it is more."""
        for piece in (b"x" * 1000, b"X: y\r\n", b"X: " + b"y" * 1000 + b"\r\n"):
            peer = self.connect()
            peer.send(b"GET / HTTP/1.1\r\n" if piece[:1] == b"X" else b"GET /")
            sent = 0
            while not peer.channel.refused:
                peer.send(piece)
                sent += len(piece)
                self.assertLess(sent, 68_000)
            self.assert_refused(431, "too large")

    def test_length(self) -> None:
        """A body may be as long as it may be; one that says more is refused at its head."""
        post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b"
        self.check(post % (20, b"x" * 20), post % (21, b""), 413, "longer than the 20 bytes")

    def test_overflow(self) -> None:
        """No length is too large to be refused."""
        for digits in (10, 18, 19, 20, 21, 400, 5000):
            peer = self.connect()
            peer.send(with_headers(b"Content-Length: " + b"9" * digits, method=b"POST"))
            self.assertIn(self.statuses(), ([413], [400]))
            self.assertEqual(peer.seen, [])

    def test_chunked(self) -> None:
        """One that does not say how long it is is refused when it is longer."""
        good = b"".join([b"1\r\nx\r\n"] * 20)
        self.check(
            CHUNKED + good + b"0\r\n\r\n",
            CHUNKED + good + b"1\r\nx\r\n",
            413,
            "longer than the 20 bytes",
        )

    def test_requests(self) -> None:
        """After its last request a connection closes, and says so."""
        peer = self.connect(max_requests_per_connection=2)
        peer.send(GET * 3)
        first, second = self.answers()
        self.assertNotIn(b"connection", first.headers)
        self.assertEqual(second.headers[b"connection"], b"close")
        self.assert_closed()


class ChunkedTests(Http1TestCase):
    """Bodies in the chunked coding. The differential test has more."""

    def check(self, body: bytes, expected: bytes | None) -> None:
        """:param expected: None: it is refused."""
        data = CHUNKED + body + (b"0\r\n\r\n" if expected is None else b"") + GET
        for pieces in ([data], cut(data, range(len(data))), cut(data, [len(CHUNKED)])):
            peer = self.connect()
            peer.send(*pieces)
            if expected is None:
                self.assertEqual(peer.seen, [], body)
                self.assertEqual(self.statuses(), [400], body)
            else:
                self.assertEqual(self.targets(), [b"/c", b"/a"], body)
                self.assertEqual(peer.seen[0].body, expected, body)

    def test_good(self) -> None:
        """Extensions and trailers are thrown away."""
        for body, expected in (
            (b"0\r\n\r\n", b""),
            (b"00000000\r\n\r\n", b""),
            (b"A\r\n0123456789\r\n1\r\n\n\r\n0\r\n\r\n", b"0123456789\n"),
            (b"a;x\r\n0123456789\r\n0;y=\"z\"\r\n\r\n", b"0123456789"),
            (b"1\r\nx\r\n0\r\nX-T: 1\r\nContent-Length: 9\r\nHost: b\r\n\r\n", b"x"),
            (b"2\r\n\r\n\r\n0\r\n\r\n", b"\r\n"),
        ):  # fmt: skip
            self.check(body, expected)
        headers = self.peer.seen[-1].headers
        self.assertEqual(headers, [(b"host", b"a")])

    def test_bad(self) -> None:
        """Anything else is refused, and nothing behind it is a request."""
        for body in (
            b"\r\n\r\n", b"g\r\n", b"+1\r\nx\r\n", b"-1\r\nx\r\n", b"0x1\r\nx\r\n", b"1_0\r\n",
            b" 1\r\nx\r\n", b"1 \r\nx\r\n", b"1 ;a\r\nx\r\n", b"1\nx\r\n", b"1\r\nx\n0\r\n\r\n",
            b"1\r\nxy\r\n0\r\n\r\n", b"1\r\nx0\r\n\r\n", b"1\r\nx\r0\r\n\r\n",
            b"00000000000000001\r\nx\r\n", b"1;\x00\r\nx\r\n", b"1;a\nb\r\nx\r\n",
            b"1;a\rb\r\nx\r\n", b"0\r\nx\r\n\r\n", b"0\r\n x: y\r\n\r\n", b"0\r\nx: \x00\r\n\r\n",
            b"0\r\nx : y\r\n\r\n", b"0\r\nx: a\nb\r\n\r\n", b"0\r\n\rx: y\r\n\r\n",
        ):  # fmt: skip
            self.check(body, None)

    def test_extensions(self) -> None:
        """They are bounded, a line and in all, and so are trailers."""
        line = b"1;" + b"e" * 998 + b"\r\nx\r\n"
        kib = 1 << 10
        for body, is_good in (
            (line, True),
            (line.replace(b"1;", b"1;e"), False),
            (b"1;" + b"e" * 20_000, False),
            (line * 16, True),
            (line * 16 + b"1;" + b"e" * 399 + b"\r\nx\r\n", True),
            (line * 16 + b"1;" + b"e" * 400 + b"\r\nx\r\n", False),
            (b"0\r\n" + (b"x:" + b"t" * (kib - 2) + b"\r\n") * 16, True),
            (b"0\r\n" + (b"x:" + b"t" * (kib - 2) + b"\r\n") * 16 + b"x:y\r\n", False),
            (b"0\r\nx:" + b"t" * (16 * kib - 2) + b"\r\n", True),
            (b"0\r\nx:" + b"t" * (16 * kib - 1) + b"\r\n", False),
            (b"0\r\nx:" + b"t" * 20_000, False),
        ):
            for pieces in ([body], cut(body, range(0, len(body), 999))):
                peer = self.connect()
                peer.send(CHUNKED, *pieces)
                if is_good:
                    self.assert_open()
                else:
                    self.assert_refused(400, "extensions")

    def test_small(self) -> None:
        """Many small chunks are a body as any other."""
        peer = self.connect()
        peer.send(CHUNKED, b"1\r\nx\r\n" * 20_000, b"0\r\n\r\n")
        self.assertEqual(peer.seen[0].body, b"x" * 20_000)
        # A piece of what came, not of what was a chunk.
        self.assertEqual(len(peer.recorder.requests[0].content._pieces), 0)


class CloseTests(Http1TestCase):
    """``Connection``"""

    def test_close(self) -> None:
        """What is behind the last request is not looked at, be it one or not."""
        for lines in (
            [b"Connection: close"], [b"connection: Keep-Alive, CLOSE"], [b"Connection: x close"],
            [b"Connection: x", b"Connection: close"], [b"Connection:\tclose\t"],
        ):  # fmt: skip
            for behind in (GET, b"nonsense", b"\r\n"):
                for pieces in ([with_headers(*lines) + behind], [with_headers(*lines), behind]):
                    peer = self.hold()
                    peer.send(*pieces)
                    self.answer(0)
                    self.assertEqual(self.targets(), [b"/h"])
                    [answer] = self.answers()
                    self.assertEqual(answer.headers[b"connection"], b"close")
                    self.assert_closed()

    def test_read_on(self) -> None:
        """What came with the last request does not keep us from seeing the client leave."""
        peer = self.hold()
        peer.send(with_headers(b"Connection: close") + b"\r\n")
        self.assertTrue(peer.wire.reads)

    def test_keep(self) -> None:
        """Everything else is none."""
        for line in (b"keep-alive", b"", b",", b"closed", b"Upgrade", b"not-close", b"x"):
            peer = self.connect()
            peer.send(with_headers(b"Connection: " + line) + GET)
            self.assertEqual(self.targets(), [b"/h", b"/a"])
            self.assertNotIn(b"connection", self.answers()[1].headers)
            self.assert_open()


class AnswerTests(Http1TestCase):
    """How an answer is framed."""

    def ask(self, respond: Callable[[Request], object], data: bytes = GET) -> Answer:
        """The answer to a request, with which the next one must agree."""
        peer = self.connect(respond)
        peer.send(data)
        first = peer.received
        if not peer.wire.disconnecting:
            peer.send(data)
            self.assertEqual(peer.received, first * 2)
        method = data.partition(b" ")[0]
        found = self.answers(method, method)
        self.assertEqual(found[0], found[-1])
        return found[0]

    def test_chunked(self) -> None:
        """Of unknown length: in chunks, the first together with the head."""
        sizes = (1, 70_000, 32 * 1024, 32 * 1024 - 1)

        def respond(request: Request) -> None:
            request.head(200, b"OK", [(b"X-A", b"b")], b"first")
            for size in sizes:
                request.write(b"z" * size)
            request.write(b"")
            request.finish()

        answer = self.ask(respond)
        self.assertEqual(answer.headers, {b"x-a": b"b", b"transfer-encoding": b"chunked"})
        self.assertEqual(answer.body, b"first" + b"z" * sum(sizes))
        self.assertIn(b"first", self.peer.wire.writes[0])

    def test_writer(self) -> None:
        """What a stream is written with: an event of no bytes is not the end of it."""

        def respond(request: Request) -> None:
            self.assertEqual(request.writer, request.write)
            request.head(200, b"OK", [], b"first")
            write = request.writer
            write(b"")
            write(b"second")
            request.finish()

        self.assertEqual(self.ask(respond).body, b"firstsecond")
        head = GET.replace(b"GET", b"HEAD")
        self.assertEqual(self.ask(respond, head).body, b"")

    def test_empty(self) -> None:
        """Nothing at all is an empty answer."""
        self.assertEqual(self.ask(lambda request: request.finish()).body, b"")

    def test_length(self) -> None:
        """Of a length that is told, in any case: as it is, in one write."""

        def respond(request: Request) -> None:
            request.head(200, b"OK", [(b"CONTENT-LENGTH", b"2")], b"ok")
            request.finish()

        answer = self.ask(respond)
        self.assertEqual((answer.headers, answer.body), ({b"content-length": b"2"}, b"ok"))
        self.assertEqual(len(self.peer.wire.writes), 2)

    def test_bodiless(self) -> None:
        """HEAD, 204 and 304 have no body, whatever the resource writes, and no chunks."""
        for method, status in ((b"HEAD", 200), (b"GET", 204), (b"GET", 304), (b"HEAD", 404)):

            def respond(request: Request, status: int = status) -> None:
                request.setResponseCode(status)
                request.write(b"some")
                request.write(b"more")
                request.finish()

            answer = self.ask(respond, with_headers(method=method))
            self.assertEqual((answer.status, set(answer.headers)), (status, {b"date"}))

    def test_head_length(self) -> None:
        """HEAD keeps the length that GET would have."""

        def respond(request: Request) -> None:
            request.head(200, b"OK", [(b"Content-Length", b"4")], b"some")
            request.finish()

        answer = self.ask(respond, with_headers(method=b"HEAD"))
        self.assertEqual(answer.headers, {b"content-length": b"4"})

    def test_sanitised(self) -> None:
        """No header of an answer becomes two, nor an answer, whatever is in it."""
        for evil in (b"a\r\nX-Evil: 1", b"a\nX-Evil: 1", b"a\rX-Evil: 1",
                     b"a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", b"\n", b"\r", b"a\r\n\r\n"):  # fmt: skip
            for phrase, name, value in ((evil, b"X", b"v"), (b"OK", b"X" + evil, b"v"),
                                        (b"OK", b"X", evil)):  # fmt: skip

                def respond(
                    request: Request, args: tuple[bytes, bytes, bytes] = (phrase, name, value)
                ) -> None:
                    phrase, name, value = args
                    headers = [(name, value), (b"Content-Length", b"0")]
                    request.head(200, phrase, headers)
                    request.finish()

                peer = self.connect(respond)
                peer.send(GET)
                head, end, rest = peer.received.partition(b"\r\n\r\n")
                self.assertEqual((end, rest), (b"\r\n\r\n", b""), evil)
                lines = head.split(b"\r\n")
                self.assertEqual(len(lines), 3, head)
                for line in lines:
                    self.assertNotIn(b"\n", line)
                    self.assertNotIn(b"\r", line)

    def test_set_header(self) -> None:
        """The same for headers that are set."""

        def respond(request: Request) -> None:
            request.setHeader(b"x-a", b"a\r\nX-Evil: 1")
            request.finish()

        self.assertEqual(self.ask(respond).headers[b"x-a"].count(b"X-Evil"), 1)

    def test_fault(self) -> None:
        """A fault of ours is a 500 if it can be, else the answer is cut."""

        def respond(request: Request) -> None:
            if request.uri == b"/p":
                request.write(b"some")
            raise RuntimeError("planted")

        peer = self.connect(respond)
        peer.send(GET)
        self.assertEqual(self.statuses(), [500])
        self.assertNotIn(b"planted", peer.received)
        self.assertFalse(peer.wire.aborted)
        peer.send(POST)
        self.assertTrue(peer.wire.aborted)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_cut_off(self) -> None:
        """What was written just now goes out before the cut."""
        peer = self.connect(lambda request: request.write(b"some"))
        peer.send(GET)
        for _ in range(2):
            peer.recorder.requests[0].channel.cut_off()
        self.assertFalse(peer.wire.aborted)
        peer.advance(0.06)
        self.assertTrue(peer.wire.aborted)


class DrainTests(Http1TestCase):
    """The site drains."""

    def drain(self) -> list[None]:
        """:returns: has one item when the last connection is closed."""
        done: list[None] = []
        self.peer.channel.site.drain().addCallback(done.append)
        return done

    def test_idle(self) -> None:
        """Who waits for nothing is let go at once."""
        peer = self.connect()
        peer.send(GET)
        self.assertTrue(peer.channel.idle)
        done = self.drain()
        self.assert_closed()
        self.assertEqual(done, [])
        peer.leave()
        self.assertEqual(done, [None])

    def test_arriving(self) -> None:
        """A request that has begun is answered; then the connection closes, and says so."""
        for request in (GET, POST):
            for at in (1, len(request) - 1):
                peer = self.connect()
                peer.send(request[:at])
                self.drain()
                self.assert_open()
                peer.send(request[at:], GET)
                [answer] = self.answers()
                self.assertEqual(answer.headers[b"connection"], b"close")
                self.assert_closed()

    def test_answering(self) -> None:
        """An answer is brought to its end, and what waits behind it is not begun."""
        peer = self.hold()
        peer.send(GET + GET)
        request = peer.recorder.requests[0]
        request.write(b"some")
        self.drain()
        self.assert_open()
        request.write(b"more")
        request.finish()
        peer.turn()
        self.assertEqual([answer.body for answer in self.answers()], [b"somemore"])
        self.assertEqual(len(peer.seen), 1)
        self.assert_closed()

    def test_stalled(self) -> None:
        """An answer that the client has not taken yet is not cut."""
        peer = self.connect(lambda request: (request.write(b"x" * 70_000), request.finish()))
        peer.wire.stalled = True
        peer.send(GET)
        self.drain()
        self.assert_open()
        peer.wire.take()
        self.assert_closed()


class RefuseTests(Http1TestCase):
    """A refusal below the level of a request."""

    def test_linger(self) -> None:
        """What the client still sends is thrown away for a while, so that it reads why."""
        peer = self.connect(max_request_body=4)
        peer.send(POST[:-5])
        self.assert_refused(413, "longer")
        received = peer.received
        for _ in range(4):
            self.assertTrue(peer.wire.reads)
            peer.send(b"x" * 1000, GET)
            peer.advance(1.2)
        self.assertFalse(peer.wire.aborted)
        self.assertEqual((peer.received, peer.seen), (received, []))
        peer.advance(0.3)
        self.assertTrue(peer.wire.aborted)

    def test_left(self) -> None:
        """Nothing is left when the client closes."""
        peer = self.connect()
        peer.send(b"nonsense\r\n\r\n")
        peer.leave()
        self.assertEqual(peer.clock.getDelayedCalls(), [])
        self.assertEqual(peer.channel.site.refusals, {"header": 1})
        self.assertEqual(peer.channel.site.connections, 0)

    def test_secure(self) -> None:
        """TLS cannot be closed in one direction."""
        peer = self.connect()
        peer.channel.secure = True
        peer.send(b"nonsense\r\n\r\n")
        self.assertEqual(self.statuses(), [400])
        self.assertFalse(peer.wire.half_closed)
        peer.advance(5.1)
        self.assertTrue(peer.wire.aborted)

    def test_paused(self) -> None:
        """Who was not read because of the disk is read again."""
        peer = self.connect()
        peer.send(CHUNKED)
        peer.channel.pause_upload()
        peer.channel.refuse(BadHttp("no"))
        self.assertTrue(peer.wire.reads)
        peer.channel.resume_upload()
        peer.channel.refuse(BodyTooLarge("no"))
        self.assertEqual(self.statuses(), [400])

    def test_shape(self) -> None:
        """It is in the shape that the path's clients read, if the path is known."""
        for target, word in (
            (b"/openai/v1/chat", b'"param"'),
            (b"/anthropic/v1/messages", b'"type": "error"'),
            (b"/model/m", b'{"message"'),
        ):
            head = b"POST %b HTTP/1.1\r\nHost: a\r\n" % target
            for data in (
                head + b"Content-Length: 99999999\r\n\r\n",
                head + b"X: " + b"y" * 17_000 + b"\r\n\r\n",
                head + b"Bad Header: 1\r\n\r\n",
                head + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
            ):
                peer = self.connect()
                peer.send(data)
                self.assertIn(word, peer.received)

    def test_log(self) -> None:
        """A line in the log has the peer and the reason, and nothing that was sent."""
        events: list[Any] = []
        peer = self.connect()
        log = peer.channel._log
        self.patch(type(log), "info", lambda self, text, **values: events.append(values))
        peer.send(b"GET / HTTP/1.1\r\nAuthorization: Bearer planted\r\n\r\n")
        [event] = events
        self.assertEqual((event["peer"], event["status"]), ("192.168.1.1", 400))
        self.assertNotIn("planted", repr(events))


class LeaveTests(Http1TestCase):
    """The client closes in the middle."""

    def test_phases(self) -> None:
        """Wherever: nothing is asked of the resource, and no timer is left."""
        for data in (b"", b"\r", b"\r\n", GET[:9], POST[:-1], CHUNKED, CHUNKED + b"5\r\nhe",
                     GET + POST[:-1], EXPECT, GET, GET + b"\r\n"):  # fmt: skip
            peer = self.connect()
            peer.send(*([data] if data else []))
            answered = len(peer.seen)
            peer.leave()
            self.assertEqual(peer.clock.getDelayedCalls(), [], data)
            peer.channel.dataReceived(GET)
            self.assertEqual(len(peer.seen), answered)
            self.assertEqual(peer.channel.site.connections, 0)

    def test_answering(self) -> None:
        """Who answers is told, once; what it does afterwards does no harm."""
        peer = self.hold()
        lost: list[object] = []
        peer.send(GET + GET)
        request = peer.recorder.requests[0]
        request.when_lost(lambda: lost.append("lost"))
        finished: Deferred[None] = request.notifyFinish()
        request.write(b"some")
        peer.leave()
        self.assertEqual(lost, ["lost"])
        self.failureResultOf(finished, ConnectionDone)
        received = peer.received
        request.write(b"more")
        request.finish()
        peer.turn()
        self.assertEqual((peer.received, len(peer.seen)), (received, 1))
        self.assertEqual(peer.clock.getDelayedCalls(), [])

    def test_body(self) -> None:
        """What there is of a body is given up."""
        peer = self.connect()
        peer.send(POST[:-2])
        request = peer.channel._arriving
        self.assertEqual(content(request), b"hel")
        peer.leave()
        self.assertTrue(request.disconnected)

    def test_late(self) -> None:
        """A turn that was due when the client left comes to nothing."""
        peer = self.connect()
        peer.channel.dataReceived(GET * 3)
        self.assertEqual(len(peer.seen), 1)
        peer.leave()
        peer.turn()
        self.assertEqual(len(peer.seen), 1)


class UploadTests(Http1TestCase):
    """The disk is slower than the client."""

    def test_pause(self) -> None:
        """The client is not read meanwhile, and the time does not count against it."""
        peer = self.connect()
        peer.send(POST[:-3])
        peer.channel.pause_upload()
        peer.send(POST[-3:-1])
        self.assertEqual(peer.unread, 1)
        peer.advance(1000)
        self.assert_open()
        peer.channel.resume_upload()
        peer.turn()
        self.assertEqual(peer.unread, 0)
        peer.advance(19.9)
        self.assert_open()
        peer.advance(0.2)
        self.assert_refused(408, "body")

    def test_resumed(self) -> None:
        """From then on it does count, whether or not anything comes."""
        peer = self.connect()
        peer.send(POST[:-3])
        peer.channel.pause_upload()
        peer.advance(1000)
        peer.channel.resume_upload()
        peer.advance(20.1)
        self.assert_refused(408, "body")

    def test_whole(self) -> None:
        """Paused at its last piece, a request goes on; so does reading, afterwards."""
        peer = self.hold()
        peer.send(POST[:-3])
        request = peer.channel._arriving
        write = request.content.write
        request.content.write = lambda data: (write(data), peer.channel.pause_upload())
        peer.send(POST[-3:])
        self.assertEqual(self.targets(), [b"/p"])
        self.assertFalse(peer.wire.reads)
        peer.channel.resume_upload()
        self.assertTrue(peer.wire.reads)
        peer.advance(1000)
        self.assert_open()

    def test_ahead(self) -> None:
        """The disk does not have a client read that sent ahead."""
        peer = self.hold()
        peer.send(GET + GET)
        peer.channel.pause_upload()
        peer.channel.resume_upload()
        self.assertFalse(peer.wire.reads)


class Producer:
    """What an answer comes from."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pauseProducing(self) -> None:
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        self.calls.append("resume")

    def stopProducing(self) -> None:
        self.calls.append("stop")


class ProducerTests(Http1TestCase):
    """Backpressure of an answer."""

    def test_interface(self) -> None:
        """Between answers the channel is the producer."""
        peer = self.connect()
        verifyObject(IPushProducer, peer.channel)
        self.assertIs(peer.wire.producer, peer.channel)

    def test_streaming(self) -> None:
        """A producer is told when the client is slow, and when it is not any more."""
        peer = self.hold()
        peer.send(GET)
        request = peer.recorder.requests[0]
        producer = Producer()
        request.registerProducer(producer, True)
        peer.wire.stalled = True
        request.write(b"x" * 100_000)
        self.assertEqual(producer.calls, ["pause"])
        peer.wire.take()
        self.assertEqual(producer.calls, ["pause", "resume"])
        request.unregisterProducer()
        self.assertIs(peer.wire.producer, peer.channel)
        request.finish()
        self.assertTrue(peer.channel.idle)

    def test_full(self) -> None:
        """One that comes when the client is slow already is told so."""
        peer = self.hold()
        peer.send(GET)
        request = peer.recorder.requests[0]
        peer.wire.stalled = True
        request.write(b"x" * 100_000)
        producer = Producer()
        request.registerProducer(producer, True)
        self.assertEqual(producer.calls, ["pause"])
        peer.wire.take()
        self.assertEqual(producer.calls, ["pause", "resume"])

    def test_pull(self) -> None:
        """One that is asked for each piece is the transport's own affair."""
        peer = self.hold()
        peer.send(GET)
        request = peer.recorder.requests[0]
        producer = Producer()
        request.registerProducer(producer, False)
        self.assertIs(peer.wire.producer, producer)
        self.assertFalse(peer.wire.streaming)
        request.unregisterProducer()
        self.assertIs(peer.wire.producer, peer.channel)
        self.assertTrue(peer.wire.streaming)
