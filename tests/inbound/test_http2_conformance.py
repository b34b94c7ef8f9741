"""
HTTP/2 as RFC 9113 and RFC 7541 have it, against a listening site.

What h2spec tries is said here again, each case with h2spec's name for it
(``suite/section/number``); :class:`CompletenessTests` holds the list. h2spec follows RFC 7540.
Where RFC 9113 asks for something else, the case asks for that, and says so:

- priorities are deprecated: their frames are taken and checked for form, no more;
- what comes on a closed stream may be thrown away as well as refused;
- the upgrade from HTTP/1.1 is gone, and a request for it is answered in HTTP/1.1.

Who may refuse a stream may also refuse the connection (section 5.4.1). This server should not,
because one client's mistake would end the streams beside it; a case allows it only where it
says why.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from hpack import Encoder
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from tests.inbound.http2_frames import (
    ACK,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    MAX_WINDOW,
    PADDED,
    PREFACE,
    PRIORITY,
    Answer,
    Code,
    Field,
    FrameClient,
    Kind,
    Setting,
    block,
    continuation,
    data,
    frame,
    goaway,
    headers,
    integer,
    ping,
    priority,
    priority_fields,
    request,
    request_fields,
    rst_stream,
    settings,
    until,
    window_update,
)
from txbedrock.inbound.request import Request
from txbedrock.inbound.site import ClientLimits, Site

BODY = b"the fixed answer\n"
MAX_FRAME = 16384

PROTOCOL_ERROR = Code.PROTOCOL_ERROR
STREAM_CLOSED = Code.STREAM_CLOSED
FRAME_SIZE_ERROR = Code.FRAME_SIZE_ERROR
COMPRESSION_ERROR = Code.COMPRESSION_ERROR
FLOW_CONTROL_ERROR = Code.FLOW_CONTROL_ERROR

H2SPEC = {
    "generic/1": 1, "generic/2": 5, "generic/3.1": 3, "generic/3.2": 3, "generic/3.3": 5,
    "generic/3.4": 1, "generic/3.5": 1, "generic/3.7": 1, "generic/3.8": 1, "generic/3.9": 2,
    "generic/3.10": 2, "generic/4": 4, "generic/5": 15,
    "http2/3.5": 2, "http2/4.1": 3, "http2/4.2": 3, "http2/4.3": 3, "http2/5.1": 13,
    "http2/5.1.1": 2, "http2/5.1.2": 1, "http2/5.3.1": 2, "http2/5.4.1": 2, "http2/5.5": 2,
    "http2/6.1": 3, "http2/6.2": 4, "http2/6.3": 2, "http2/6.4": 3, "http2/6.5": 3,
    "http2/6.5.2": 5, "http2/6.5.3": 2, "http2/6.7": 4, "http2/6.8": 1, "http2/6.9": 3,
    "http2/6.9.1": 3, "http2/6.9.2": 3, "http2/6.10": 6, "http2/7": 2, "http2/8.1": 1,
    "http2/8.1.2": 1, "http2/8.1.2.1": 4, "http2/8.1.2.2": 2, "http2/8.1.2.3": 7,
    "http2/8.1.2.6": 2, "http2/8.2": 1,
    "hpack/2.3.3": 2, "hpack/4.2": 1, "hpack/5.2": 3, "hpack/6.1": 1, "hpack/6.3": 1,
}  # fmt: skip
"""How many cases h2spec has in each section."""

_restated: list[str] = []


# The server.


class Fixed(Resource):
    """Answers all with the same body, and counts."""

    isLeaf = True
    requests = 0

    def render_GET(self, request: Request) -> bytes:
        self.requests += 1
        return BODY

    render_POST = render_GET


class Length(Resource):
    """Says how long the request's body was."""

    isLeaf = True

    def render_POST(self, request: Request) -> bytes:
        return b"%d" % request.content.length


class Seen(Resource):
    """Says what the request looked like."""

    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        seen = {
            name.decode().lower(): [value.decode() for value in values]
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        uri = request.uri.decode()
        return json.dumps({"method": request.method.decode(), "uri": uri, **seen}).encode()

    render_POST = render_GET


class Big(Resource):
    """Answers ``/big/N`` with N bytes, all of them written at once."""

    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        return big(int(request.path.rpartition(b"/")[2]))


class Wide(Resource):
    """Answers with a header that is longer than a frame, and has what only HTTP/1.1 may have."""

    isLeaf = True

    def render_GET(self, request: Request) -> bytes:
        request.setHeader(b"Connection", b"close")
        request.setHeader(b"Keep-Alive", b"timeout=5")
        request.setHeader(b"X-Upper-Case", b"1")
        for number in range(100):
            request.setHeader(b"x-wide-%d" % number, b"%d" % number * 200)
        return BODY


class Held(Resource):
    """Answers when the test says so."""

    isLeaf = True

    def __init__(self) -> None:
        Resource.__init__(self)
        self.requests: list[Request] = []
        self.left = 0
        """Clients that did not wait for the answer."""

    def render_GET(self, request: Request) -> int:
        self.requests.append(request)
        request.notifyFinish().addErrback(self._gone, request)
        return NOT_DONE_YET

    render_POST = render_GET

    def _gone(self, _: object, request: Request) -> None:
        self.requests.remove(request)
        self.left += 1

    def write(self) -> None:
        """Give all the whole answer, but not its end."""
        for each in self.requests:
            each.write(BODY)

    def finish(self) -> None:
        """End all answers."""
        for each in list(self.requests):
            each.finish()
        self.requests.clear()

    def release(self) -> None:
        """Answer all."""
        self.write()
        self.finish()


@implementer(IPushProducer)
class Source:
    """Writes an answer as fast as it is taken, and stops when told to."""

    piece = b"p" * 1024

    def __init__(self, request: Request, length: int) -> None:
        self.written = 0
        self.gone = False
        self._request = request
        self._length = length
        self._flowing = self._running = False
        request.notifyFinish().addErrback(self._left)
        request.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self._flowing = True
        if self._running:
            return
        self._running = True
        while self._flowing and self.written < self._length:
            self.written += len(self.piece)
            self._request.write(self.piece)
        self._running = False
        if self._flowing:
            self._flowing = False
            self._request.unregisterProducer()
            self._request.finish()

    def pauseProducing(self) -> None:
        self._flowing = False

    def stopProducing(self) -> None:
        self._flowing = False

    def _left(self, _: object) -> None:
        self._flowing = False
        self.gone = True


class Streamed(Resource):
    """Answers ``/streamed/N`` with N KiB from a producer."""

    isLeaf = True

    def __init__(self) -> None:
        Resource.__init__(self)
        self.sources: list[Source] = []

    def render_GET(self, request: Request) -> int:
        kib = int(request.path.rpartition(b"/")[2])
        self.sources.append(Source(request, kib * 1024))
        return NOT_DONE_YET


def big(length: int) -> bytes:
    """Of which no two pieces of a length are alike."""
    return b"".join(b"%08d" % number for number in range(length // 8 + 1))[:length]


# Cases.


class Outcome(NamedTuple):
    """What a case came to."""

    what: str
    code: int = 0

    def __str__(self) -> str:
        if self.what == "answer":
            return f"answer {self.code}"
        known = self.code in set(Code)
        return f"{self.what} {Code(self.code).name if known else self.code}"


NOTHING = Outcome("nothing")
"""Neither stream nor connection takes notice."""

CLOSED = Outcome("closed without GOAWAY")
ANSWERED = Outcome("answer", 200)
BAD_REQUEST = Outcome("answer", 400)


def connection_error(code: Code) -> Outcome:
    """GOAWAY with this code, then the connection is closed."""
    return Outcome("connection error", code)


def stream_error(code: Code) -> Outcome:
    """RST_STREAM with this code; the connection goes on."""
    return Outcome("stream error", code)


def malformed(case: str, restates: str, rule: str, send: bytes) -> Case:
    """
    A malformed request, which is a stream error; section 8.1.1 allows a 400 just before it.
    """
    return Case(case, restates, rule, send, stream_error(PROTOCOL_ERROR), BAD_REQUEST)


class Case:
    """
    What is sent after the handshake, and what may follow.

    :param name: of the test, in words.
    :param restates: h2spec's name of it; empty: it has none.
    :param rule: what holds, with the section if it is not the class's.
    :param allowed: any one of these.
    :param first: a request on stream 1 that is answered before.
    :param own: settings of the client.
    """

    def __init__(
        self,
        name: str,
        restates: str,
        rule: str,
        send: bytes,
        *allowed: Outcome,
        first: bytes = b"",
        own: tuple[tuple[int, int], ...] = (),
        stream: int = 1,
    ) -> None:
        self.name = "test_" + name.replace(" ", "_").replace("-", "_")
        self.restates = restates
        self.rule = rule
        self.send = send
        self.allowed = allowed
        self.first = first
        self.own = own
        self.stream = stream


T = TypeVar("T", bound="type[ConformanceTestCase]")
Method = Callable[["ConformanceTestCase"], Awaitable[None]]


def cases(*table: Case) -> Callable[[T], T]:
    """Give a test class a method for each case."""

    def add(cls: T) -> T:
        for case in table:
            assert case.name.isidentifier() and case.name not in vars(cls), case.name
            setattr(cls, case.name, restates(case.restates)(_method(case)))
        return cls

    return add


def _method(case: Case) -> Method:
    async def test(self: ConformanceTestCase) -> None:
        await self.check(case)

    test.__name__ = case.name
    test.__doc__ = case.rule
    return test


F = TypeVar("F")


def restates(*names: str) -> Callable[[F], F]:
    """Say which of h2spec's cases a test is."""
    _restated.extend(name for name in names if name)
    return lambda method: method


class ConformanceTestCase(TestCase):
    """A listening site, and clients that say what they like to it."""

    timeout = 30

    def setUp(self) -> None:
        self.fixed = Fixed()
        self.held = Held()
        self.streamed = Streamed()
        root = Resource()
        for name, resource in {
            b"fixed": self.fixed,
            b"length": Length(),
            b"seen": Seen(),
            b"big": Big(),
            b"wide": Wide(),
            b"held": self.held,
            b"streamed": self.streamed,
        }.items():
            root.putChild(name, resource)
        self.site = Site(root, reactor, ClientLimits(), wall_seconds=reactor.seconds)
        self.listening = reactor.listenTCP(0, self.site, interface="127.0.0.1")  # type: ignore
        self.port: int = self.listening.getHost().port  # type: ignore[attr-defined]
        self.clients: list[FrameClient] = []

    async def tearDown(self) -> None:  # type: ignore[override]
        """Whatever a client did, the next one is served."""
        try:
            client = await self.connect()
            client.send(request())
            await self.answered(client)
        finally:
            for each in self.clients:
                each.abort()
            await maybeDeferred(self.listening.stopListening)
            await until(lambda: self.site.connections == 0)

    async def raw(self) -> FrameClient:
        """A connection on which nothing was said."""
        client = await FrameClient.connect(self.port)
        self.clients.append(client)
        return client

    async def connect(self, *own: tuple[int, int]) -> FrameClient:
        """After the handshake."""
        client = await self.raw()
        await client.handshake(*own)
        return client

    async def over(self, client: FrameClient, stream: int = 1) -> Answer:
        """Wait until a stream has ended."""
        answer = client.answer(stream)
        await client.until(lambda: answer.over, f"the end of stream {stream}")
        return answer

    async def answered(
        self, client: FrameClient, stream: int = 1, body: bytes = BODY, status: int = 200
    ) -> Answer:
        """Wait for a whole answer, which has to be this."""
        answer = await self.over(client, stream)
        self.assertEqual((answer.reset, answer.status), (None, status), str(client))
        self.assertEqual(answer.body == body, True, f"{len(answer.body)} bytes; {client}")
        return answer

    async def received(self, client: FrameClient, length: int, stream: int = 1) -> None:
        """Wait for exactly so much of a body; more does not follow."""
        answer = client.answer(stream)
        await client.until(
            lambda: len(answer.body) >= length, f"{length} bytes of stream {stream}"
        )
        await client.barrier()
        self.assertEqual(len(answer.body), length)

    async def outcome(self, client: FrameClient, stream: int, silent: bool = False) -> Outcome:
        """
        What happens to a stream or its connection.

        :param silent: it may well be nothing.
        """
        answer = client.answer(stream)
        opaque = b"nothing?"
        if silent:
            client.send(ping(opaque))
        await client.until(
            lambda: (
                client.closed
                or answer.over
                or client.farewell is not None
                or (silent and client.ponged(opaque))
            ),
            "a reaction",
        )
        if client.farewell is not None:
            await client.until(lambda: client.closed, "the end of the connection after GOAWAY")
        if client.closed:
            code = client.farewell
            return CLOSED if code is None else Outcome("connection error", code)
        if answer.ended:
            return Outcome("answer", answer.status)
        if answer.reset is not None:
            return Outcome("stream error", answer.reset)
        return NOTHING

    async def check(self, case: Case) -> None:
        """Play a case, and see that the connection is usable if it is left open."""
        client = await self.connect(*case.own)
        if case.first:
            client.send(case.first)
            await self.over(client)
            client.answers.clear()
        client.send(case.send)
        came = await self.outcome(client, case.stream, silent=NOTHING in case.allowed)
        expected = " or ".join(map(str, case.allowed))
        self.assertIn(came, case.allowed, f"expected {expected}, came {came}; {client}")
        if came == ANSWERED:
            self.assertEqual(client.answer(case.stream).body, BODY)
        else:
            self.assertEqual(self.fixed.requests, bool(case.first), "a bad request was carried")
        if not client.closed:
            client.send(request(101))
            await self.answered(client, 101)
        if came == BAD_REQUEST:
            self.assertEqual(client.answer(case.stream).reset, PROTOCOL_ERROR, str(client))


class CompletenessTests(SynchronousTestCase):
    """Nothing of h2spec's list is left out."""

    def test_all_restated(self) -> None:
        """Each of h2spec's cases is one test here."""
        names = {
            f"{section}/{number}"
            for section, count in H2SPEC.items()
            for number in range(1, count + 1)
        }
        self.assertEqual(set(_restated), names)
        self.assertEqual(len(_restated), len(names))


# Pieces of cases.

HELD = request(path=b"/held")
"""A stream that is half-closed (remote) until the test is over."""

OPEN = request(method=b"POST", path=b"/fixed", end=False)
"""A stream that is open, as its request has more to come."""

POST_FIELDS = request_fields(method=b"POST")


def get(*more: Field) -> bytes:
    """A request with more fields, on stream 1."""
    return request(1, *more)


def get_of(*fields: Field) -> bytes:
    """A request of exactly these fields."""
    return headers(1, block(*fields))


def get_with(representation: bytes) -> bytes:
    """A request whose field block ends with these octets."""
    return headers(1, block(*request_fields()) + representation)


def without(name: bytes) -> tuple[Field, ...]:
    """A request's fields without one of them."""
    return tuple(each for each in request_fields() if each[0] != name)


def instead(name: bytes, value: bytes) -> tuple[Field, ...]:
    """A request's fields with another value for one of them."""
    return tuple((key, value if key == name else old) for key, old in request_fields())


def pieces(fragment: bytes, count: int) -> list[bytes]:
    """Cut into so many pieces, of which some may be empty."""
    size = -(-len(fragment) // count)
    return [fragment[at * size : (at + 1) * size] for at in range(count)]


def string(value: bytes, huffman: bool = False) -> bytes:
    """HPACK's string."""
    if not huffman:
        return integer(len(value), 7) + value
    encoded: bytes = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(value)
    return integer(len(encoded), 7, 0x80) + encoded


USER_AGENT = 58
"""Of HPACK's static table."""


@cases(
    Case(
        "priority of an idle stream",
        "generic/2/1",
        "Section 6.3: PRIORITY may come for a stream in any state; idle.",
        priority(1),
        NOTHING,
    ),
    Case(
        "priority of a half-closed stream",
        "generic/2/3",
        "Section 6.3: PRIORITY may come for a stream in any state; half-closed.",
        HELD + priority(1),
        NOTHING,
    ),
    Case(
        "rst stream of a half-closed stream",
        "generic/2/4",
        "Section 5.1: a client may cancel while it waits for the answer.",
        HELD + rst_stream(1),
        NOTHING,
    ),
    Case(
        "priority of a closed stream",
        "generic/2/5",
        "Section 6.3: PRIORITY may come for a stream in any state; closed.",
        priority(1),
        NOTHING,
        first=get(),
    ),
    Case("data", "generic/3.1/1", "A body in one frame.", OPEN + data(1, b"test"), ANSWERED),
    Case(
        "data twice",
        "generic/3.1/2",
        "A body in two frames.",
        OPEN + data(1, b"test", end=False) + data(1, b"test"),
        ANSWERED,
    ),
    Case(
        "data padded",
        "generic/3.1/3",
        "A body in a frame with padding.",
        OPEN + data(1, b"test", padding=6),
        ANSWERED,
    ),
    Case("headers", "generic/3.2/1", "A request in one frame.", get(), ANSWERED),
    Case(
        "headers padded",
        "generic/3.2/2",
        "A request in a frame with padding.",
        headers(
            1,
            bytes((6,)) + block(*request_fields()) + bytes(6),
            END_HEADERS | END_STREAM | PADDED,
        ),
        ANSWERED,
    ),
    Case(
        "headers with priority",
        "generic/3.2/3",
        "A request in a frame with a priority.",
        headers(
            1,
            priority_fields(0, 256) + block(*request_fields()),
            END_HEADERS | END_STREAM | PRIORITY,
        ),
        ANSWERED,
    ),
    Case(
        "priority of least weight",
        "generic/3.3/1",
        "PRIORITY with weight 1, then a request.",
        priority(1, weight=1) + get(),
        ANSWERED,
    ),
    Case(
        "priority of greatest weight",
        "generic/3.3/2",
        "PRIORITY with weight 256, then a request.",
        priority(1, weight=256) + get(),
        ANSWERED,
    ),
    Case(
        "priority with a dependency",
        "generic/3.3/3",
        "PRIORITY that depends on another idle stream, then a request.",
        priority(3, depends_on=1) + get(),
        ANSWERED,
    ),
    Case(
        "priority exclusive",
        "generic/3.3/4",
        "PRIORITY with the exclusive bit, then a request.",
        priority(1, exclusive=True) + get(),
        ANSWERED,
    ),
    Case(
        "priority of a higher stream than the next",
        "generic/3.3/5",
        "PRIORITY does not open a stream: a lower one may be opened after it.",
        priority(3, weight=256) + get(),
        ANSWERED,
    ),
    Case("rst stream", "generic/3.4/1", "A request is cancelled.", OPEN + rst_stream(1), NOTHING),
    Case(
        "settings",
        "generic/3.5/1",
        "SETTINGS in the middle of a connection.",
        settings((Setting.MAX_CONCURRENT_STREAMS, 100)),
        NOTHING,
    ),
    Case("ping", "generic/3.7/1", "PING is answered.", ping(), NOTHING),
    Case(
        "window update of the connection",
        "generic/3.9/1",
        "WINDOW_UPDATE on stream 0, then a request.",
        window_update(0, 1) + get(),
        ANSWERED,
    ),
    Case(
        "window update of a stream",
        "generic/3.9/2",
        "WINDOW_UPDATE on a stream.",
        get() + window_update(1, 1),
        ANSWERED,
    ),
    Case(
        "continuation",
        "generic/3.10/1",
        "A request in HEADERS and CONTINUATION.",
        headers(1, block(*request_fields()), END_STREAM)
        + continuation(1, block((b"x-test", b"1"))),
        ANSWERED,
    ),
    Case(
        "continuation twice",
        "generic/3.10/2",
        "A request in HEADERS and two CONTINUATIONs.",
        headers(1, block(*request_fields()), END_STREAM)
        + continuation(1, block((b"x-test", b"1")), end=False)
        + continuation(1, block((b"x-test", b"2"))),
        ANSWERED,
    ),
    Case("get", "generic/4/1", "GET is answered.", get(), ANSWERED),
    Case(
        "post",
        "generic/4/3",
        "POST is answered.",
        OPEN + data(1, b"a body"),
        ANSWERED,
    ),
    Case(
        "post with trailers",
        "generic/4/4",
        "A request may end with a field section (section 8.1).",
        OPEN + data(1, b"a body", end=False) + headers(1, block((b"x-test", b"1"))),
        ANSWERED,
    ),
)
class AcceptedTests(ConformanceTestCase):
    """What every server takes: each kind of frame and message."""

    @restates("generic/1/1")
    async def test_preface(self) -> None:
        """
        Section 3.4: the server's SETTINGS come first, unasked, and the client's are acknowledged.
        """
        client = await self.raw()
        client.send(PREFACE, settings())
        await client.until(lambda: client.acknowledged(1), "ACK")
        first = client.frames[0]
        self.assertEqual((first.kind, first.flags, first.stream), (Kind.SETTINGS, 0, 0))

    @restates("generic/2/2")
    async def test_window_update_of_a_half_closed_stream(self) -> None:
        """Section 5.1: WINDOW_UPDATE on a half-closed stream gives its answer room."""
        client = await self.connect((Setting.INITIAL_WINDOW_SIZE, 0))
        client.send(get(), window_update(1, 1))
        await self.received(client, 1)

    @restates("generic/3.8/1")
    async def test_goaway(self) -> None:
        """Section 6.8: a client's GOAWAY ends the connection, without an error."""
        client = await self.connect()
        client.send(goaway(), ping())
        await client.until(lambda: client.closed or client.ponged(b"pingpong"), "an end, or PING")
        self.assertIn(client.farewell, (None, Code.NO_ERROR))

    @restates("generic/4/2")
    async def test_head(self) -> None:
        """HEAD is answered with GET's header and no body."""
        client = await self.connect()
        client.send(request(1, method=b"HEAD"), request(3))
        got = await self.answered(client, 3)
        answer = await self.answered(client, 1, body=b"")
        self.assertEqual(answer.get(b"content-length"), [b"%d" % len(BODY)])
        self.assertEqual(answer.get(b"content-length"), got.get(b"content-length"))
        self.assertEqual(sum(answer.sizes), 0)


@cases(
    *(
        Case(
            f"{what} {name}{' huffman' if huffman else ''}",
            f"generic/5/{number}",
            f"RFC 7541, {section}: a literal {what}, {name}"
            f"{', with Huffman coding' if huffman else ''}.",
            get_with(
                (
                    integer(USER_AGENT, bits, pattern)
                    if indexed
                    else bytes((pattern,)) + string(b"x-test", huffman)
                )
                + string(b"conformance", huffman)
            ),
            ANSWERED,
        )
        for number, (what, section, pattern, bits, indexed, name, huffman) in enumerate(
            (
                (what, section, pattern, bits, indexed, name, huffman)
                for what, section, pattern, bits in (
                    ("with indexing", "6.2.1", 0x40, 6),
                    ("without indexing", "6.2.2", 0x00, 4),
                    ("never indexed", "6.2.3", 0x10, 4),
                )
                for indexed, name in ((True, "indexed name"), (False, "new name"))
                for huffman in (False, True)
            ),
            start=2,
        )
    ),
    Case(
        "indexed",
        "generic/5/1",
        "RFC 7541, 6.1: a field that is in the static table.",
        headers(1, block(*request_fields()) + integer(USER_AGENT, 7, 0x80)),
        ANSWERED,
    ),
    Case(
        "table size update",
        "generic/5/14",
        "RFC 7541, 6.3: the table's size is changed before the first field.",
        headers(1, integer(0, 5, 0x20) + block(*request_fields())),
        ANSWERED,
    ),
    Case(
        "table size update twice",
        "generic/5/15",
        "RFC 7541, 4.2: it is changed twice, to nothing and back.",
        headers(1, integer(0, 5, 0x20) + integer(4096, 5, 0x20) + block(*request_fields())),
        ANSWERED,
    ),
    Case(
        "index outside the tables",
        "hpack/2.3.3/1",
        "RFC 7541, 2.3.3: an index above both tables is a decoding error.",
        get_with(integer(126, 7, 0x80)),
        connection_error(COMPRESSION_ERROR),
    ),
    Case(
        "index of a name outside the tables",
        "hpack/2.3.3/2",
        "RFC 7541, 2.3.3: an index above both tables is a decoding error, of a name too.",
        get_with(integer(126, 6, 0x40) + string(b"value")),
        connection_error(COMPRESSION_ERROR),
    ),
    Case(
        "table size update at the end",
        "hpack/4.2/1",
        "RFC 7541, 4.2: a change of the table's size is only at the beginning of a block.",
        get_with(integer(1, 5, 0x20)),
        connection_error(COMPRESSION_ERROR),
    ),
    Case(
        "huffman padding of an octet",
        "hpack/5.2/1",
        "RFC 7541, 5.2: Huffman padding of more than 7 bits is a decoding error.",
        get_with(b"\0" + string(b"x-test") + b"\x82\x1f\xff"),
        connection_error(COMPRESSION_ERROR),
    ),
    Case(
        "huffman padding of zeros",
        "hpack/5.2/2",
        "RFC 7541, 5.2: Huffman padding that is not of ones is a decoding error.",
        get_with(b"\0" + string(b"x-test") + b"\x81\x18"),
        connection_error(COMPRESSION_ERROR),
    ),
    Case(
        "huffman end of string",
        "hpack/5.2/3",
        "RFC 7541, 5.2: the EOS symbol in a string is a decoding error.",
        get_with(b"\0" + string(b"x-test") + b"\x84\xff\xff\xff\xff"),
        connection_error(COMPRESSION_ERROR),
    ),
    Case(
        "index zero",
        "hpack/6.1/1",
        "RFC 7541, 6.1: index 0 is a decoding error.",
        get_with(b"\x80"),
        connection_error(COMPRESSION_ERROR),
    ),
    Case(
        "table size update above the limit",
        "hpack/6.3/1",
        "RFC 7541, 6.3: a size above SETTINGS_HEADER_TABLE_SIZE is a decoding error.",
        headers(1, integer(1 << 24, 5, 0x20) + block(*request_fields())),
        connection_error(COMPRESSION_ERROR),
    ),
    Case(
        "block cut in a field",
        "",
        "RFC 7541, 5: a block that ends within a field is a decoding error.",
        headers(1, block(*request_fields())[:-2]),
        connection_error(COMPRESSION_ERROR),
    ),
    Case(
        "integer without an end",
        "",
        "RFC 7541, 5.1: an integer too long to be meant is a decoding error.",
        get_with(b"\xff" + b"\xff" * 20 + b"\x01"),
        connection_error(COMPRESSION_ERROR),
    ),
)
class HpackTests(ConformanceTestCase):
    """RFC 7541; what cannot be decoded is a connection error (RFC 9113, 4.3)."""

    async def test_dynamic_table(self) -> None:
        """Fields that were sent once are sent as an index from then on."""
        encoder = Encoder()
        client = await self.connect()
        fields = list(request_fields((b"x-once", b"a value of some length"), path=b"/seen"))
        sizes = []
        for stream in (1, 3, 5):
            fragment = encoder.encode(fields)
            sizes.append(len(fragment))
            client.send(headers(stream, fragment))
            answer = await self.over(client, stream)
            self.assertEqual(json.loads(answer.body)["x-once"], ["a value of some length"])
        self.assertEqual(sizes[1:], [5, 5])

    async def test_table_after_a_refused_request(self) -> None:
        """
        RFC 9113, 4.3: a refused request's block changes the table as any other, or what follows
        on the connection would be misread.
        """
        encoder = Encoder()
        client = await self.connect()
        bad = [*request_fields(path=b"/seen"), (b"x-once", b"kept"), (b"connection", b"close")]
        client.send(headers(1, encoder.encode(bad)))
        came = await self.outcome(client, 1)
        self.assertIn(came, (stream_error(PROTOCOL_ERROR), BAD_REQUEST), str(client))
        client.send(headers(3, encoder.encode(bad[:-1])))
        answer = await self.over(client, 3)
        self.assertEqual(json.loads(answer.body)["x-once"], ["kept"])

    async def test_no_table_for_answers(self) -> None:
        """A client that takes no table gets answers that use none."""
        client = await self.connect((Setting.HEADER_TABLE_SIZE, 0))
        client.allow_table(0)
        for stream in (1, 3):
            client.send(request(stream))
            await self.answered(client, stream)

    async def test_table_taken_away(self) -> None:
        """The same when it says so only after the first answers, and then gives it back."""
        client = await self.connect()
        client.send(request(1), request(3))
        await self.answered(client, 3)
        await client.change((Setting.HEADER_TABLE_SIZE, 0))
        client.allow_table(0)
        client.send(request(5))
        await self.answered(client, 5)
        await client.change((Setting.HEADER_TABLE_SIZE, 4096))
        client.allow_table(4096)
        for stream in (7, 9):
            client.send(request(stream))
            await self.answered(client, stream)


class PrefaceTests(ConformanceTestCase):
    """RFC 9113, 3.4: how a connection begins. (h2spec: 3.5)"""

    @restates("http2/3.5/1")
    async def test_preface_and_request_at_once(self) -> None:
        """A client need not wait for the server's preface before it asks."""
        client = await self.raw()
        client.send(PREFACE, settings(), get())
        await self.answered(client)
        self.assertEqual(client.frames[0].kind, Kind.SETTINGS)

    @restates("http2/3.5/2")
    async def test_invalid(self) -> None:
        """
        What begins as neither HTTP/2 nor HTTP/1.1 is refused and the connection ended.

        GOAWAY may be left out, since the peer does not speak HTTP/2. The port speaks HTTP/1.1
        too, so the refusal may be one of its own.
        """
        for text in (b"INVALID CONNECTION PREFACE\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"):
            client = await self.raw()
            client.send(text)
            await client.until(lambda: client.closed, "the end of the connection")  # noqa: B023
            refused = client.rest.startswith(b"HTTP/1.1 4")
            self.assertTrue(refused or client.farewell in (None, PROTOCOL_ERROR), str(client))
            self.assertEqual(client.count(Kind.HEADERS), 0)

    async def test_no_settings(self) -> None:
        """The client's first frame is SETTINGS; another is a connection error."""
        for first in (ping(), get(), window_update(0, 1)):
            client = await self.raw()
            client.send(PREFACE, first)
            came = await self.outcome(client, 1)
            self.assertEqual(came, connection_error(PROTOCOL_ERROR), str(client))

    async def test_octet_by_octet(self) -> None:
        """Nothing depends on how TCP cuts what is sent."""
        client = await self.raw()
        sent = PREFACE + settings() + OPEN + data(1, b"a body", padding=3) + request(3)
        assert client.transport is not None
        client.transport.setTcpNoDelay(True)  # type: ignore[attr-defined]
        for at in range(len(sent)):
            client.send(sent[at : at + 1])
            await deferLater(reactor, 0)
        await self.answered(client, 1)
        await self.answered(client, 3)

    async def test_http1_on_the_same_port(self) -> None:
        """HTTP/1.1 is answered as such, and so is a request that would upgrade to h2c."""
        upgrade = b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
        for more in (b"", upgrade + b"Connection: Upgrade, HTTP2-Settings\r\n"):
            client = await self.raw()
            client.send(b"GET /fixed HTTP/1.1\r\nHost: gateway.test\r\n" + more + b"\r\n")
            await until(lambda: client.rest.endswith(BODY))  # noqa: B023
            self.assertTrue(client.rest.startswith(b"HTTP/1.1 200"), client.rest)


@cases(
    Case(
        "frame of unknown type",
        "http2/4.1/1",
        "Section 4.1: a frame of unknown type is ignored.",
        frame(0xFF, 0, 0, b"\0" * 8),
        NOTHING,
    ),
    Case(
        "flag without meaning",
        "http2/4.1/2",
        "Section 4.1: flags that a frame does not have are ignored.",
        ping(flags=0xFE & ~ACK),
        NOTHING,
    ),
    Case(
        "reserved bit",
        "http2/4.1/3",
        "Section 4.1: the bit before the stream identifier is ignored.",
        ping(stream=1 << 31),
        NOTHING,
    ),
    Case(
        "data of 2 to the 14 octets",
        "http2/4.2/1",
        "Section 4.2: every server takes frames of 16,384 octets.",
        OPEN + data(1, bytes(MAX_FRAME)),
        ANSWERED,
    ),
    Case(
        "block that cannot be decoded",
        "http2/4.3/1",
        "Section 4.3: a field block that cannot be decoded is a connection error.",
        headers(1, b"\x40\xff"),
        connection_error(COMPRESSION_ERROR),
    ),
    Case(
        "priority within a field block",
        "http2/4.3/2",
        "Section 4.3: nothing may come between the frames of a field block.",
        headers(1, block(*request_fields()), END_STREAM) + priority(1),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "headers of another stream within a field block",
        "http2/4.3/3",
        "Section 4.3: nothing may come between the frames of a field block, of no stream.",
        headers(1, block(*request_fields()), END_STREAM) + request(3),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "ping within a field block",
        "",
        "Section 4.3: nothing may come between the frames of a field block, not even PING.",
        headers(1, block(*request_fields()), END_STREAM) + ping(),
        connection_error(PROTOCOL_ERROR),
    ),
)
class FrameTests(ConformanceTestCase):
    """RFC 9113, 4: frames and field blocks."""

    async def too_long(self, make: Callable[[int], bytes], *allowed: Outcome) -> None:
        """
        Send what is above the server's SETTINGS_MAX_FRAME_SIZE.

        :param make: given the limit, what to send.
        """
        client = await self.connect()
        client.send(make(client.server_settings.get(Setting.MAX_FRAME_SIZE, MAX_FRAME)))
        self.assertIn(await self.outcome(client, 1), allowed, str(client))

    @restates("http2/4.2/2")
    async def test_data_above_the_frame_size(self) -> None:
        """
        Section 4.2: DATA above SETTINGS_MAX_FRAME_SIZE is an error of its stream, or of the
        connection: who does not read a frame cannot tell what it would have changed.
        """
        await self.too_long(
            lambda limit: OPEN + data(1, bytes(limit + 1)),
            stream_error(FRAME_SIZE_ERROR),
            connection_error(FRAME_SIZE_ERROR),
        )

    @restates("http2/4.2/3")
    async def test_headers_above_the_frame_size(self) -> None:
        """Section 4.2: HEADERS above SETTINGS_MAX_FRAME_SIZE is a connection error."""
        await self.too_long(
            lambda limit: headers(1, bytes(limit + 1)), connection_error(FRAME_SIZE_ERROR)
        )

    async def test_settings_above_the_frame_size(self) -> None:
        """Section 4.2: and so is what changes the connection's state."""
        await self.too_long(
            lambda limit: settings(*((0xFF00, 0) for _ in range(limit // 6 + 1))),
            connection_error(FRAME_SIZE_ERROR),
        )

    async def test_unknown_frame_above_the_frame_size(self) -> None:
        """Section 4.2: the limit is for frames of unknown type too."""
        await self.too_long(
            lambda limit: frame(0xFF, 0, 0, bytes(limit + 1)), connection_error(FRAME_SIZE_ERROR)
        )


_DISCARDED = (NOTHING, stream_error(STREAM_CLOSED), connection_error(STREAM_CLOSED))


@cases(
    Case(
        "idle data",
        "http2/5.1/1",
        "Idle: DATA is a connection error.",
        data(1, b"test"),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "idle rst stream",
        "http2/5.1/2",
        "Idle: RST_STREAM is a connection error.",
        rst_stream(1),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "idle window update",
        "http2/5.1/3",
        "Idle: WINDOW_UPDATE is a connection error.",
        window_update(1, 100),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "idle continuation",
        "http2/5.1/4",
        "Idle: CONTINUATION is a connection error.",
        continuation(1, block(*request_fields())),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "half-closed data",
        "http2/5.1/5",
        "Half-closed (remote): DATA is a stream error.",
        HELD + data(1, b"test"),
        stream_error(STREAM_CLOSED),
    ),
    Case(
        "half-closed headers",
        "http2/5.1/6",
        "Half-closed (remote): HEADERS is a stream error.",
        HELD + request(1),
        stream_error(STREAM_CLOSED),
    ),
    Case(
        "half-closed continuation",
        "http2/5.1/7",
        "Half-closed (remote): CONTINUATION after a whole block is a connection error of type "
        "PROTOCOL_ERROR (section 6.10), whatever the stream's state asks for.",
        HELD + continuation(1, block((b"x-test", b"1"))),
        connection_error(PROTOCOL_ERROR),
        connection_error(STREAM_CLOSED),
        stream_error(STREAM_CLOSED),
    ),
    Case(
        "data after rst stream",
        "http2/5.1/8",
        "Closed by RST_STREAM: DATA is refused, or thrown away. RFC 7540 wanted a stream error, "
        "RFC 9113 leaves it open.",
        OPEN + rst_stream(1) + data(1, b"test"),
        *_DISCARDED,
    ),
    Case(
        "headers after rst stream",
        "http2/5.1/9",
        "Closed by RST_STREAM: HEADERS is refused, or thrown away. RFC 9113 leaves it open, and "
        "section 5.1.1 allows PROTOCOL_ERROR for an identifier that was used.",
        OPEN + rst_stream(1) + request(1),
        connection_error(PROTOCOL_ERROR),
        *_DISCARDED,
    ),
    Case(
        "continuation after rst stream",
        "http2/5.1/10",
        "Closed by RST_STREAM: CONTINUATION without HEADERS is a connection error (section 6.10).",
        OPEN + rst_stream(1) + continuation(1, block((b"x-test", b"1"))),
        connection_error(PROTOCOL_ERROR),
        connection_error(STREAM_CLOSED),
        stream_error(STREAM_CLOSED),
    ),
    Case(
        "data after the end",
        "http2/5.1/11",
        "Closed by END_STREAM of both sides: DATA is refused, or thrown away. RFC 7540 wanted a "
        "connection error, RFC 9113 leaves it open.",
        data(1, b"test"),
        *_DISCARDED,
        first=get(),
    ),
    Case(
        "headers after the end",
        "http2/5.1/12",
        "Closed by END_STREAM of both sides: HEADERS does not open the stream again; section "
        "5.1.1 wants PROTOCOL_ERROR, RFC 7540's section 5.1 STREAM_CLOSED.",
        get(),
        connection_error(PROTOCOL_ERROR),
        connection_error(STREAM_CLOSED),
        first=get(),
    ),
    Case(
        "continuation after the end",
        "http2/5.1/13",
        "Closed by END_STREAM of both sides: CONTINUATION without HEADERS is a connection error "
        "(section 6.10).",
        continuation(1, block((b"x-test", b"1"))),
        connection_error(PROTOCOL_ERROR),
        connection_error(STREAM_CLOSED),
        first=get(),
    ),
    Case(
        "window update after the end",
        "",
        "Closed: WINDOW_UPDATE may have been under way, and is ignored.",
        window_update(1, 100),
        NOTHING,
        first=get(),
    ),
    Case(
        "rst stream after the end",
        "",
        "Closed: RST_STREAM may have been under way, and is ignored.",
        rst_stream(1),
        NOTHING,
        first=get(),
    ),
    Case(
        "rst stream twice",
        "",
        "Closed: a second RST_STREAM is ignored.",
        HELD + rst_stream(1) + rst_stream(1),
        NOTHING,
    ),
    Case(
        "even identifier",
        "http2/5.1.1/1",
        "Section 5.1.1: a client's streams have odd identifiers.",
        request(2),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "lower identifier",
        "http2/5.1.1/2",
        "Section 5.1.1: a new stream's identifier is above all before it.",
        request(5, path=b"/held") + request(3),
        connection_error(PROTOCOL_ERROR),
        stream=3,
    ),
    Case(
        "headers depending on itself",
        "http2/5.3.1/1",
        "RFC 7540 made this a stream error. RFC 9113, 5.3.2, has no such rule, as the dependency "
        "has no meaning any more; but either may be met.",
        headers(
            1,
            priority_fields(1) + block(*request_fields()),
            END_HEADERS | END_STREAM | PRIORITY,
        ),
        ANSWERED,
        stream_error(PROTOCOL_ERROR),
    ),
    Case(
        "priority depending on itself",
        "http2/5.3.1/2",
        "RFC 7540 made this a stream error. RFC 9113, 5.3.2, has no such rule, as the dependency "
        "has no meaning any more; but either may be met.",
        priority(1, depends_on=1),
        NOTHING,
        stream_error(PROTOCOL_ERROR),
    ),
    Case(
        "unknown frame",
        "http2/5.5/1",
        "Section 5.5: frames of unknown type are ignored.",
        frame(0x16, 0, 1, bytes(8)) + get(),
        ANSWERED,
    ),
    Case(
        "unknown frame within a field block",
        "http2/5.5/2",
        "Section 5.5: an unknown frame within a field block is a connection error all the same.",
        headers(1, block(*request_fields()), END_STREAM)
        + frame(0x16, 0, 0, bytes(8))
        + continuation(1, block((b"x-test", b"1"))),
        connection_error(PROTOCOL_ERROR),
    ),
)
class StreamTests(ConformanceTestCase):
    """RFC 9113, 5: states and identifiers of streams, errors, extensions."""

    @restates("http2/5.1.2/1")
    async def test_too_many_streams(self) -> None:
        """
        Section 5.1.2: a stream above SETTINGS_MAX_CONCURRENT_STREAMS is refused; those before
        it are answered, and then there is room again.
        """
        client = await self.connect()
        limit = client.server_settings[Setting.MAX_CONCURRENT_STREAMS]
        self.assertGreaterEqual(limit, 100, "section 6.5.2: not smaller than 100")
        streams = [1 + 2 * number for number in range(limit)]
        client.send(*(request(stream, path=b"/held") for stream in streams))
        beyond = streams[-1] + 2
        client.send(request(beyond))
        came = await self.outcome(client, beyond)
        refused = (stream_error(Code.REFUSED_STREAM), stream_error(PROTOCOL_ERROR))
        self.assertIn(came, refused, str(client))
        self.assertEqual(len(self.held.requests), limit)
        self.held.release()
        for stream in streams:
            await self.answered(client, stream)
        client.send(request(beyond + 2))
        await self.answered(client, beyond + 2)

    @restates("http2/5.4.1/1", "http2/5.4.1/2")
    async def test_connection_error(self) -> None:
        """
        Section 5.4.1: after an error of the connection there is GOAWAY, which says up to which
        stream requests were taken, and then the connection is closed.
        """
        client = await self.connect()
        client.send(request(1), request(3))
        await self.answered(client, 3)
        client.send(frame(Kind.PING, 0, 0, b"\0" * 6))
        self.assertEqual(await self.outcome(client, 1), ANSWERED)
        await client.until(lambda: client.closed, "the end of the connection")
        self.assertEqual(client.farewell, FRAME_SIZE_ERROR)
        last = client.of(Kind.GOAWAY)[-1].payload[:4]
        self.assertEqual(int.from_bytes(last, "big"), 3)
        self.assertTrue(client.cleanly)

    async def test_greatest_identifier_answered(self) -> None:
        """Section 5.1.1: the last stream that a connection can have gets its answer."""
        client = await self.connect()
        client.send(request(2**31 - 1))
        await self.answered(client, 2**31 - 1)

    async def test_cancelled(self) -> None:
        """Section 5.4.2: who cancels a stream hears no more of it, and its request ends."""
        client = await self.connect()
        client.send(request(1, path=b"/streamed/10000"), request(3, path=b"/held"))
        await self.received(client, DEFAULT_WINDOW)
        await until(lambda: len(self.held.requests) == 1)
        client.send(rst_stream(1), rst_stream(3), window_update(0, 2**20))
        await client.barrier()
        self.assertEqual(len(client.answer(1).body), DEFAULT_WINDOW)
        self.assertTrue(self.streamed.sources[0].gone)
        self.assertEqual((self.held.left, self.held.requests), (1, []))
        client.send(request(5))
        await self.answered(client, 5)

    async def test_cancelled_streams_make_room(self) -> None:
        """Section 5.1.2: a cancelled stream does not count against the limit."""
        client = await self.connect()
        limit = client.server_settings[Setting.MAX_CONCURRENT_STREAMS]
        opened = range(1, limit + 1, 2)
        client.send(*(request(each, path=b"/held") for each in opened))
        client.send(*(rst_stream(each) for each in opened))
        held = range(limit + 1, 3 * limit - 1, 2)
        client.send(*(request(each, path=b"/held") for each in held))
        client.send(request(3 * limit - 1))
        await self.answered(client, 3 * limit - 1)


@cases(
    Case(
        "data on stream 0",
        "http2/6.1/1",
        "DATA belongs to a stream.",
        data(0, b"test"),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "data on a half-closed stream",
        "http2/6.1/2",
        "DATA on a stream that the client has ended is a stream error.",
        HELD + data(1, b"test"),
        stream_error(STREAM_CLOSED),
    ),
    Case(
        "data with all padding",
        "http2/6.1/3",
        "DATA whose padding is as long as its payload is a connection error.",
        OPEN + frame(Kind.DATA, PADDED | END_STREAM, 1, b"\x05test"),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "data padded without a length",
        "",
        "DATA with PADDED and no payload is too short to say how much: FRAME_SIZE_ERROR "
        "(section 4.2), or PROTOCOL_ERROR (section 6.1).",
        OPEN + frame(Kind.DATA, PADDED | END_STREAM, 1),
        connection_error(PROTOCOL_ERROR),
        connection_error(FRAME_SIZE_ERROR),
    ),
    Case(
        "data of padding only",
        "",
        "DATA may be nothing but padding.",
        OPEN + data(1, b"", padding=255),
        ANSWERED,
    ),
    Case(
        "empty data",
        "",
        "DATA may be empty, with END_STREAM and without.",
        OPEN + data(1, b"", end=False) + data(1, b""),
        ANSWERED,
    ),
)
class DataTests(ConformanceTestCase):
    """RFC 9113, 6.1: DATA."""


@cases(
    Case(
        "priority after open headers",
        "http2/6.2/1",
        "HEADERS without END_HEADERS is followed by CONTINUATION and not by PRIORITY.",
        headers(1, block(*request_fields()), END_STREAM) + priority(1),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "another stream after open headers",
        "http2/6.2/2",
        "HEADERS without END_HEADERS is followed by nothing of another stream.",
        headers(1, block(*request_fields()), END_STREAM) + request(3),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "headers on stream 0",
        "http2/6.2/3",
        "HEADERS belongs to a stream.",
        request(0),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "headers with too much padding",
        "http2/6.2/4",
        "HEADERS whose padding is longer than its payload is a connection error.",
        headers(
            1,
            b"\xff" + block(*request_fields()),
            END_HEADERS | END_STREAM | PADDED,
        ),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "headers too short for a priority",
        "",
        "HEADERS with PRIORITY and less than five octets: FRAME_SIZE_ERROR (section 4.2).",
        headers(1, b"\0\0\0", END_HEADERS | END_STREAM | PRIORITY),
        connection_error(FRAME_SIZE_ERROR),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "priority on stream 0",
        "http2/6.3/1",
        "Section 6.3: PRIORITY belongs to a stream.",
        priority(0),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "priority of four octets",
        "http2/6.3/2",
        "Section 6.3: PRIORITY of another length than five octets is a stream error.",
        OPEN + frame(Kind.PRIORITY, 0, 1, bytes(4)),
        stream_error(FRAME_SIZE_ERROR),
    ),
    Case(
        "rst stream on stream 0",
        "http2/6.4/1",
        "Section 6.4: RST_STREAM belongs to a stream.",
        rst_stream(0),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "rst stream on an idle stream",
        "http2/6.4/2",
        "Section 6.4: RST_STREAM on an idle stream is a connection error.",
        rst_stream(1),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "rst stream of three octets",
        "http2/6.4/3",
        "Section 6.4: RST_STREAM of another length than four octets is a connection error.",
        OPEN + frame(Kind.RST_STREAM, 0, 1, bytes(3)),
        connection_error(FRAME_SIZE_ERROR),
    ),
)
class HeadersTests(ConformanceTestCase):
    """RFC 9113, 6.2 to 6.4: HEADERS, PRIORITY, RST_STREAM."""


@cases(
    Case(
        "ack with a payload",
        "http2/6.5/1",
        "ACK has no payload.",
        frame(Kind.SETTINGS, ACK, 0, b"\0"),
        connection_error(FRAME_SIZE_ERROR),
    ),
    Case(
        "ack with settings",
        "",
        "ACK has no payload, well-formed or not.",
        frame(Kind.SETTINGS, ACK, 0, bytes(6)),
        connection_error(FRAME_SIZE_ERROR),
    ),
    Case(
        "on a stream",
        "http2/6.5/2",
        "SETTINGS are of the connection.",
        frame(Kind.SETTINGS, 0, 1, b"\0\x03\0\0\0\x64"),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "of eight octets",
        "http2/6.5/3",
        "SETTINGS have six octets each.",
        frame(Kind.SETTINGS, 0, 0, b"\0\x03\0\0\0\x64\0\x02"),
        connection_error(FRAME_SIZE_ERROR),
    ),
    Case(
        "enable push of 2",
        "http2/6.5.2/1",
        "SETTINGS_ENABLE_PUSH is 0 or 1.",
        settings((Setting.ENABLE_PUSH, 2)),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "window above the greatest",
        "http2/6.5.2/2",
        "SETTINGS_INITIAL_WINDOW_SIZE is below 2^31.",
        settings((Setting.INITIAL_WINDOW_SIZE, 2**31)),
        connection_error(FLOW_CONTROL_ERROR),
    ),
    Case(
        "frame size below the least",
        "http2/6.5.2/3",
        "SETTINGS_MAX_FRAME_SIZE is at least 2^14.",
        settings((Setting.MAX_FRAME_SIZE, 2**14 - 1)),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "frame size above the greatest",
        "http2/6.5.2/4",
        "SETTINGS_MAX_FRAME_SIZE is below 2^24.",
        settings((Setting.MAX_FRAME_SIZE, 2**24)),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "unknown setting",
        "http2/6.5.2/5",
        "An unknown setting is ignored.",
        settings((0xFF, 1)),
        NOTHING,
    ),
)
class SettingsTests(ConformanceTestCase):
    """RFC 9113, 6.5: SETTINGS."""

    @restates("http2/6.5.3/1")
    async def test_in_order(self) -> None:
        """Section 6.5.3: values are taken in the order in which they stand; the last holds."""
        client = await self.connect()
        await client.change((Setting.INITIAL_WINDOW_SIZE, 100), (Setting.INITIAL_WINDOW_SIZE, 1))
        client.send(get())
        await self.received(client, 1)

    @restates("http2/6.5.3/2")
    async def test_acknowledged(self) -> None:
        """Section 6.5.3: each SETTINGS is acknowledged, and by an empty one."""
        client = await self.connect()
        for _ in range(3):
            await client.change()
        acks = [each for each in client.of(Kind.SETTINGS) if each.flags & ACK]
        self.assertEqual([each.payload for each in acks], [b""] * 4)

    async def test_greatest_values(self) -> None:
        """
        Each setting may have the greatest value that it can have. The table of 4 GiB that the
        client offers for answers is not filled: it would be the server's memory (section 10.5).
        """
        client = await self.connect(
            (Setting.HEADER_TABLE_SIZE, 2**32 - 1),
            (Setting.MAX_CONCURRENT_STREAMS, 2**32 - 1),
            (Setting.INITIAL_WINDOW_SIZE, MAX_WINDOW),
            (Setting.MAX_FRAME_SIZE, 2**24 - 1),
            (Setting.MAX_HEADER_LIST_SIZE, 2**32 - 1),
        )
        client.allow_table(64 * 1024)
        client.send(window_update(0, 2**20), request(1), request(3, path=b"/big/500000"))
        await self.answered(client)
        await self.answered(client, 3, big(500_000))

    async def test_of_the_server(self) -> None:
        """What the server sets is valid: no push, at least 100 streams, a bound to headers."""
        client = await self.connect()
        own = client.server_settings
        self.assertEqual(own.get(Setting.ENABLE_PUSH, 0), 0)
        self.assertGreaterEqual(own[Setting.MAX_CONCURRENT_STREAMS], 100)
        self.assertIn(own.get(Setting.MAX_FRAME_SIZE, MAX_FRAME), range(2**14, 2**24))
        self.assertLessEqual(own.get(Setting.INITIAL_WINDOW_SIZE, 0), MAX_WINDOW)
        self.assertGreaterEqual(own[Setting.MAX_HEADER_LIST_SIZE], 16 * 1024)


@cases(
    Case(
        "ping on a stream",
        "http2/6.7/3",
        "PING is of the connection.",
        ping(stream=1),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "ping of six octets",
        "http2/6.7/4",
        "PING has eight octets.",
        ping(bytes(6)),
        connection_error(FRAME_SIZE_ERROR),
    ),
    Case(
        "goaway on a stream",
        "http2/6.8/1",
        "Section 6.8: GOAWAY is of the connection.",
        goaway(stream=1),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "goaway of four octets",
        "",
        "Section 4.2: a GOAWAY too short for its code is a connection error.",
        frame(Kind.GOAWAY, 0, 0, bytes(4)),
        connection_error(FRAME_SIZE_ERROR),
    ),
    Case(
        "rst stream of unknown code",
        "http2/7/2",
        "Section 7: an unknown error code means no more than that.",
        OPEN + rst_stream(1, 0xFF),
        NOTHING,
    ),
    Case(
        "push promise",
        "http2/8.2/1",
        "Section 8.4: a client cannot push.",
        frame(Kind.PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\x02" + block(*request_fields())),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "push promise on an open stream",
        "",
        "Section 8.4: a client cannot push, on no stream.",
        OPEN + frame(Kind.PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\x02" + block(*request_fields())),
        connection_error(PROTOCOL_ERROR),
    ),
)
class ControlTests(ConformanceTestCase):
    """RFC 9113, 6.7 to 7 and 8.4: PING, GOAWAY, error codes, PUSH_PROMISE."""

    @restates("http2/6.7/1")
    async def test_ping(self) -> None:
        """Section 6.7: PING comes back with ACK and the same eight octets."""
        client = await self.connect()
        client.send(ping(b"01234567"))
        await client.until(lambda: client.ponged(b"01234567"), "the ACK of PING")

    @restates("http2/6.7/2")
    async def test_ping_ack(self) -> None:
        """Section 6.7: a PING with ACK is not answered, even if none was asked for."""
        client = await self.connect()
        client.send(ping(b"not-sent", flags=ACK), ping(b"01234567"))
        await client.until(lambda: client.ponged(b"01234567"), "the ACK of PING")
        self.assertFalse(client.ponged(b"not-sent"))

    @restates("http2/7/1")
    async def test_goaway_of_unknown_code(self) -> None:
        """Section 7: an unknown error code in GOAWAY means no more than that."""
        client = await self.connect()
        client.send(goaway(code=0xFF), ping())
        await client.until(lambda: client.closed or client.ponged(b"pingpong"), "an end, or PING")
        self.assertIn(client.farewell, (None, Code.NO_ERROR))

    async def test_answer_after_goaway(self) -> None:
        """
        Section 6.8: a client that says it opens no more streams still gets the answers to those
        that it has opened, whole, and may use WINDOW_UPDATE for it; then the connection is closed.
        """
        client = await self.connect()
        client.send(request(1, path=b"/big/200000"), request(3, path=b"/held"))
        await self.received(client, DEFAULT_WINDOW)
        client.send(goaway())
        client.send(window_update(0, 200_000), window_update(1, 200_000))
        await self.answered(client, 1, big(200_000))
        self.held.release()
        await self.answered(client, 3)
        await client.until(lambda: client.closed, "the end of the connection")
        self.assertIn(client.farewell, (None, Code.NO_ERROR))

    async def test_upload_after_goaway(self) -> None:
        """Section 6.8: a request that had begun when the client said GOAWAY may be finished."""
        client = await self.connect()
        client.send(request(1, method=b"POST", path=b"/length", end=False), goaway())
        client.send(data(1, b"four", end=False), data(1, b"more"))
        await self.answered(client, 1, b"8")


@cases(
    Case(
        "increment of 0",
        "http2/6.9/1",
        "WINDOW_UPDATE of 0 for the connection is a connection error.",
        window_update(0, 0),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "increment of 0 for a stream",
        "http2/6.9/2",
        "WINDOW_UPDATE of 0 for a stream is a stream error.",
        OPEN + window_update(1, 0),
        stream_error(PROTOCOL_ERROR),
    ),
    Case(
        "of three octets",
        "http2/6.9/3",
        "WINDOW_UPDATE has four octets.",
        frame(Kind.WINDOW_UPDATE, 0, 0, bytes(3)),
        connection_error(FRAME_SIZE_ERROR),
    ),
    Case(
        "connection window above the greatest",
        "http2/6.9.1/2",
        "Section 6.9.1: a connection's window above 2^31-1 is a connection error.",
        window_update(0, MAX_WINDOW) + window_update(0, MAX_WINDOW),
        connection_error(FLOW_CONTROL_ERROR),
    ),
    Case(
        "stream window above the greatest",
        "http2/6.9.1/3",
        "Section 6.9.1: a stream's window above 2^31-1 is a stream error.",
        OPEN + window_update(1, MAX_WINDOW) + window_update(1, MAX_WINDOW),
        stream_error(FLOW_CONTROL_ERROR),
    ),
    Case(
        "initial window above the greatest",
        "http2/6.9.2/3",
        "Section 6.9.2: an initial window above 2^31-1 is a connection error.",
        settings((Setting.INITIAL_WINDOW_SIZE, 2**32 - 1)),
        connection_error(FLOW_CONTROL_ERROR),
    ),
    Case(
        "initial window that overflows that of a stream",
        "",
        "Section 6.9.2: a change that brings any stream's window above 2^31-1 is a connection "
        "error.",
        HELD + window_update(1, 1) + settings((Setting.INITIAL_WINDOW_SIZE, MAX_WINDOW)),
        connection_error(FLOW_CONTROL_ERROR),
    ),
    Case(
        "greatest window",
        "",
        "Section 6.9.1: a window of 2^31-1 is allowed.",
        window_update(0, MAX_WINDOW - DEFAULT_WINDOW)
        + get()
        + window_update(1, MAX_WINDOW - DEFAULT_WINDOW),
        ANSWERED,
    ),
)
class WindowTests(ConformanceTestCase):
    """RFC 9113, 6.9: WINDOW_UPDATE and the flow control of answers."""

    @restates("http2/6.9.1/1")
    async def test_window_of_one(self) -> None:
        """Section 6.9.1: no frame is longer than the window, be it one octet."""
        client = await self.connect()
        await client.change((Setting.INITIAL_WINDOW_SIZE, 1))
        client.send(get())
        await self.received(client, 1)
        self.assertEqual(client.answer().sizes, [1])

    @restates("http2/6.9.2/1")
    async def test_initial_window_of_open_streams(self) -> None:
        """Section 6.9.2: a new initial window changes the windows of open streams too."""
        client = await self.connect((Setting.INITIAL_WINDOW_SIZE, 0))
        client.send(get())
        await client.until(lambda: client.answer().status == 200, "the header of the answer")
        await self.received(client, 0)
        client.send(settings((Setting.INITIAL_WINDOW_SIZE, 1)))
        await self.received(client, 1)

    @restates("http2/6.9.2/2")
    async def test_negative_window(self) -> None:
        """Section 6.9.2: a window may become negative, and has to be filled up from there."""
        client = await self.connect((Setting.INITIAL_WINDOW_SIZE, 3))
        client.send(get())
        await self.received(client, 3)
        client.send(settings((Setting.INITIAL_WINDOW_SIZE, 2)), window_update(1, 2))
        await self.received(client, 4)

    async def test_end_with_a_negative_window(self) -> None:
        """Section 6.9.1: the end of an answer, an empty DATA, needs no window."""
        client = await self.connect((Setting.INITIAL_WINDOW_SIZE, len(BODY)))
        client.send(HELD)
        await until(lambda: len(self.held.requests) == 1)
        self.held.write()
        await self.received(client, len(BODY))
        await client.change((Setting.INITIAL_WINDOW_SIZE, 0))
        self.held.finish()
        await self.answered(client)

    async def test_end_with_no_connection_window(self) -> None:
        """Section 6.9.1: neither of the stream's nor of the connection's."""
        client = await self.connect((Setting.INITIAL_WINDOW_SIZE, 1_000_000))
        client.send(request(1, path=b"/held"))
        await until(lambda: len(self.held.requests) == 1)
        self.held.write()
        await self.received(client, len(BODY))
        client.send(request(3, path=b"/big/100000"))
        await self.received(client, DEFAULT_WINDOW - len(BODY), 3)
        self.held.finish()
        await self.answered(client)

    async def test_far_negative_window(self) -> None:
        """Section 6.9.2: as long as it is not above 0, nothing is sent."""
        client = await self.connect((Setting.INITIAL_WINDOW_SIZE, 10_000))
        for stream, path in ((1, b"/big/50000"), (3, b"/streamed/50")):
            client.send(request(stream, path=path))
            await self.received(client, 10_000, stream)
        client.send(settings((Setting.INITIAL_WINDOW_SIZE, 0)))
        for stream in (1, 3):
            client.send(window_update(stream, 9_999))
            await self.received(client, 10_000, stream)
            client.send(window_update(stream, 1))
            await self.received(client, 10_000, stream)
            client.send(window_update(stream, 5))
            await self.received(client, 10_005, stream)
        client.send(settings((Setting.INITIAL_WINDOW_SIZE, 60_000)), window_update(0, 60_000))
        await self.answered(client, 1, big(50_000))
        await self.answered(client, 3, Source.piece * 50)

    async def test_stops_at_the_window(self) -> None:
        """
        Section 6.9: an answer stops at exactly its window, and goes on from there. When all is
        sent END_STREAM needs no window; only a paused producer needs some to be asked for its end.
        """
        for path, rest in ((b"/big/102400", 0), (b"/streamed/100", 1)):
            client = await self.connect((Setting.INITIAL_WINDOW_SIZE, 5_000))
            client.send(request(1, path=path))
            await self.received(client, 5_000)
            for more in (1, 4_999, 20_000):
                before = len(client.answer().body)
                client.send(window_update(1, more))
                await self.received(client, before + more)
            client.send(window_update(0, 100_000), window_update(1, 72_400 + rest))
            answer = await self.over(client)
            self.assertEqual(len(answer.body), 102_400)

    async def test_both_windows(self) -> None:
        """Section 6.9.1: the connection's window holds for all streams together."""
        client = await self.connect((Setting.INITIAL_WINDOW_SIZE, 1_000_000))
        streams = (1, 3, 5)
        client.send(*(request(stream, path=b"/big/40000") for stream in streams))

        def total() -> int:
            return sum(len(client.answer(stream).body) for stream in streams)

        await client.until(lambda: total() >= DEFAULT_WINDOW, "a window of body")
        client.send(*(window_update(stream, 1_000) for stream in streams))
        await client.barrier()
        self.assertEqual(total(), DEFAULT_WINDOW)
        client.send(window_update(0, 100))
        await client.until(lambda: total() >= DEFAULT_WINDOW + 100, "100 bytes more")
        await client.barrier()
        self.assertEqual(total(), DEFAULT_WINDOW + 100)
        client.send(window_update(0, 120_000))
        for stream in streams:
            await self.answered(client, stream, big(40_000))

    async def test_control_frames_with_no_window(self) -> None:
        """Section 6.9: only DATA is held back; headers, PING and bodiless answers are not."""
        client = await self.connect()
        client.send(request(1, path=b"/big/100000"))
        await self.received(client, DEFAULT_WINDOW)
        client.send(request(3), request(5, method=b"HEAD"))
        await client.until(lambda: client.answer(3).status == 200, "the header of an answer")
        await self.answered(client, 5, b"")
        await self.received(client, 0, 3)

    async def test_a_blocked_stream_blocks_no_other(self) -> None:
        """Section 5.2.1: streams of which one has no window are answered beside it."""
        client = await self.connect((Setting.INITIAL_WINDOW_SIZE, 0))
        client.send(window_update(0, MAX_WINDOW - DEFAULT_WINDOW))
        client.send(request(1, path=b"/streamed/5000"), request(3, path=b"/big/5000000"))
        for stream in range(5, 45, 2):
            client.send(request(stream, path=b"/big/30000"), window_update(stream, 30_000))
            await self.answered(client, stream, big(30_000))
        self.assertEqual((client.answer(1).body, client.answer(3).body), (b"", b""))

    async def test_source_is_paused(self) -> None:
        """A producer is paused when the window is used up: memory is not what takes its answer."""
        client = await self.connect()
        client.send(request(1, path=b"/streamed/2048"))
        await self.received(client, DEFAULT_WINDOW)
        source = self.streamed.sources[0]
        self.assertLess(source.written, DEFAULT_WINDOW + 256 * 1024)
        client.send(window_update(0, 2**24), window_update(1, 2**24))
        await self.answered(client, 1, Source.piece * 2048)

    async def test_frame_size_of_answers(self) -> None:
        """Section 4.2: no frame is longer than the client takes, whatever it says in between."""
        client = await self.connect((Setting.INITIAL_WINDOW_SIZE, 2**20))
        client.send(window_update(0, 2**24))
        for stream, size in ((1, MAX_FRAME), (3, 40_000), (5, MAX_FRAME)):
            if stream > 1:
                await client.change((Setting.MAX_FRAME_SIZE, size))
            client.send(request(stream, path=b"/big/500000"))
            answer = await self.answered(client, stream, big(500_000))
            self.assertLessEqual(max(answer.sizes), size)

    async def test_long_header_of_an_answer(self) -> None:
        """Section 4.3: a header above the frame size comes in CONTINUATIONs, each within it."""
        client = await self.connect()
        client.send(request(1, path=b"/wide"), request(3))
        answer = await self.answered(client)
        self.assertEqual(answer.get(b"x-wide-99"), [b"99" * 200])
        blocks = client.of(Kind.HEADERS) + client.of(Kind.CONTINUATION)
        self.assertLessEqual(max(len(each.payload) for each in blocks), MAX_FRAME)
        self.assertGreater(client.count(Kind.CONTINUATION), 0)
        await self.answered(client, 3)


class UploadTests(ConformanceTestCase):
    """RFC 9113, 6.9: the flow control of requests."""

    def setUp(self) -> None:
        ConformanceTestCase.setUp(self)
        self.used = 0
        """Of the connection's window."""

    async def upload(self, client: FrameClient, stream: int, frames: list[bytes]) -> None:
        """Send a request whose DATA frames go out as the windows allow."""
        client.send(request(stream, method=b"POST", path=b"/length", end=False))
        used = 0
        for each in frames:
            length = len(each) - 9
            used += length
            await client.until(
                lambda: self.window(client, stream) >= used,  # noqa: B023
                "WINDOW_UPDATE of the stream",
            )
            await self.send(client, each)

    async def send(self, client: FrameClient, frame: bytes) -> None:
        """Send DATA as the connection's window allows."""
        self.used += len(frame) - 9
        await client.until(
            lambda: self.window(client, 0) >= self.used, "WINDOW_UPDATE of the connection"
        )
        client.send(frame)

    def window(self, client: FrameClient, stream: int) -> int:
        """How much the server has ever allowed, of a stream or of all."""
        initial = client.server_settings.get(Setting.INITIAL_WINDOW_SIZE, DEFAULT_WINDOW)
        return client.credit(stream) + (initial if stream else DEFAULT_WINDOW)

    async def start(self) -> tuple[FrameClient, int]:
        """A connection, and more frames than its window takes."""
        client = await self.connect()
        return client, self.window(client, 0) * 5 // 4 // MAX_FRAME + 1

    async def test_windows_are_opened(self) -> None:
        """A body of many windows is taken, and a second one on the same connection."""
        client, count = await self.start()
        for stream in (1, 3):
            await self.upload(client, stream, [data(stream, bytes(MAX_FRAME), end=False)] * count)
            client.send(data(stream, b""))
            await self.answered(client, stream, b"%d" % (count * MAX_FRAME))

    async def test_padding_counts(self) -> None:
        """Section 6.9.1: padding and its length use up both windows, and are given back too."""
        client, count = await self.start()
        count *= MAX_FRAME // 257
        await self.upload(client, 1, [data(1, b"x", end=False, padding=255)] * count)
        client.send(data(1, b""))
        await self.answered(client, 1, b"%d" % count)

    async def test_cancelled_uploads_use_no_window(self) -> None:
        """Section 6.9: what was sent on a stream that is cancelled is given back."""
        client, count = await self.start()
        each = self.window(client, 1) // MAX_FRAME
        for number in range(count // each + 1):
            stream = 1 + 2 * number
            await self.upload(client, stream, [data(stream, bytes(MAX_FRAME), end=False)] * each)
            client.send(rst_stream(stream))
        await self.upload(client, 1001, [data(1001, bytes(MAX_FRAME))])
        await self.answered(client, 1001, b"%d" % MAX_FRAME)

    async def test_refused_uploads_use_no_window(self) -> None:
        """
        Section 5.1: DATA that was under way when the server reset its stream is thrown away,
        and given back to the connection.
        """
        client, count = await self.start()
        each = self.window(client, 1) // MAX_FRAME
        for number in range(count // each + 1):
            stream = 1 + 2 * number
            client.send(request(stream, (b"content-length", b"1"), method=b"POST", end=False))
            for _ in range(each):
                await self.send(client, data(stream, bytes(MAX_FRAME), end=False))
        await self.upload(client, 1001, [data(1001, bytes(MAX_FRAME))])
        await self.answered(client, 1001, b"%d" % MAX_FRAME)

    async def test_beside_each_other(self) -> None:
        """Bodies whose frames alternate do not mix."""
        client = await self.connect()
        streams = (1, 3, 5)
        client.send(
            *(request(each, method=b"POST", path=b"/length", end=False) for each in streams)
        )
        for _ in range(10):
            client.send(*(data(each, bytes(each * 10), end=False) for each in streams))
        client.send(*(data(each, b"") for each in streams))
        for each in streams:
            await self.answered(client, each, b"%d" % (each * 100))


@cases(
    Case(
        "many continuations",
        "http2/6.10/1",
        "Many CONTINUATIONs may follow HEADERS, the last of them empty. Any number may, but a "
        "server has to bound it (section 10.5): 64 KiB of fields need no more than a few.",
        headers(1, b"", END_STREAM)
        + b"".join(
            continuation(1, piece, end=False) for piece in pieces(block(*request_fields()), 30)
        )
        + continuation(1, b""),
        ANSWERED,
    ),
    Case(
        "data after continuation",
        "http2/6.10/2",
        "CONTINUATION without END_HEADERS is followed by CONTINUATION.",
        headers(1, block(*POST_FIELDS), 0)
        + continuation(1, block((b"x-test", b"1")), end=False)
        + data(1, b"test"),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "continuation on stream 0",
        "http2/6.10/3",
        "CONTINUATION belongs to a stream.",
        headers(1, block(*request_fields()), END_STREAM)
        + continuation(0, block((b"x-test", b"1"))),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "continuation after a whole headers",
        "http2/6.10/4",
        "CONTINUATION does not follow HEADERS with END_HEADERS.",
        HELD + continuation(1, block((b"x-test", b"1"))),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "continuation after a whole continuation",
        "http2/6.10/5",
        "CONTINUATION does not follow CONTINUATION with END_HEADERS.",
        headers(1, block(*request_fields(path=b"/held")), END_STREAM)
        + continuation(1, block((b"x-test", b"1")))
        + continuation(1, block((b"x-test", b"2"))),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "continuation after data",
        "http2/6.10/6",
        "CONTINUATION does not follow DATA.",
        OPEN + data(1, b"test", end=False) + continuation(1, block((b"x-test", b"1"))),
        connection_error(PROTOCOL_ERROR),
    ),
    Case(
        "continuation of another stream",
        "",
        "CONTINUATION is of the same stream as its HEADERS.",
        headers(1, block(*request_fields()), END_STREAM)
        + continuation(3, block((b"x-test", b"1"))),
        connection_error(PROTOCOL_ERROR),
    ),
)
class ContinuationTests(ConformanceTestCase):
    """RFC 9113, 6.10: CONTINUATION."""

    async def test_long_header(self) -> None:
        """A header of several frames is taken as one."""
        client = await self.connect()
        fields = request_fields(
            *((b"x-%d" % number, bytes((97 + number % 26,)) * 300) for number in range(80)),
            path=b"/seen",
        )
        fragment = block(*fields)
        cut = [fragment[at : at + 4000] for at in range(0, len(fragment), 4000)]
        client.send(headers(1, cut[0], END_STREAM))
        client.send(*(continuation(1, piece, piece is cut[-1]) for piece in cut[1:]))
        answer = await self.over(client)
        self.assertEqual(answer.status, 200, str(client))
        seen = json.loads(answer.body)
        self.assertEqual([seen[f"x-{number}"][0][0] for number in (0, 25, 79)], ["a", "z", "b"])

    async def test_one_by_one(self) -> None:
        """As many CONTINUATIONs are taken when each comes by itself."""
        client = await self.connect()
        client.send(headers(1, b"", END_STREAM))
        for piece in pieces(block(*request_fields()), 30):
            await deferLater(reactor, 0)
            client.send(continuation(1, piece, end=False))
        client.send(continuation(1, b""))
        await self.answered(client)

    async def test_above_the_limit(self) -> None:
        """
        Section 10.5.1: a header above SETTINGS_MAX_HEADER_LIST_SIZE is answered with 431, and
        decoded all the same, so that the connection goes on.
        """
        client = await self.connect()
        limit = client.server_settings[Setting.MAX_HEADER_LIST_SIZE]
        fields = ((b"x-%d" % number, b"v" * 1000) for number in range(limit // 1000 + 1))
        fragment = block(*request_fields(*fields))
        cut = [fragment[at : at + MAX_FRAME] for at in range(0, len(fragment), MAX_FRAME)]
        client.send(headers(1, cut[0], END_STREAM))
        client.send(*(continuation(1, piece, end=piece is cut[-1]) for piece in cut[1:]))
        self.assertEqual(await self.outcome(client, 1), Outcome("answer", 431), str(client))
        client.send(request(3))
        await self.answered(client, 3)

    async def test_flood(self) -> None:
        """
        Section 10.5: a field block without an end, of nothing or of much, is not waited for; the
        connection is ended, with the code that the server finds fit.
        """
        much = b"\x10" + string(b"x") + string(b"v" * 16_000)
        for piece, count in ((b"", 10_000), (much, 200)):
            client = await self.connect()
            client.send(headers(1, block(*request_fields()), END_STREAM))
            client.send(*[continuation(1, piece, end=False)] * count)
            await client.until(lambda: client.closed, "the end of the connection")  # noqa: B023
            allowed = (None, PROTOCOL_ERROR, Code.ENHANCE_YOUR_CALM)
            self.assertIn(client.farewell, allowed, str(client))
            self.assertEqual(client.answer().status, 0)


@cases(
    malformed(
        "second headers without end",
        "http2/8.1/1",
        "Section 8.1: a second field section ends the request.",
        OPEN + data(1, b"test", end=False) + headers(1, block((b"x-test", b"ok")), END_HEADERS),
    ),
    malformed(
        "upper case name",
        "http2/8.1.2/1",
        "Section 8.2: names of fields are in lower case.",
        get((b"X-TEST", b"ok")),
    ),
    malformed(
        "unknown pseudo-header",
        "http2/8.1.2.1/1",
        "Section 8.3: there are no other pseudo-header fields than the RFC's.",
        get_of((b":test", b"ok"), *request_fields()),
    ),
    malformed(
        "pseudo-header of answers",
        "http2/8.1.2.1/2",
        "Section 8.3: an answer's pseudo-header field is not a request's.",
        get_of((b":status", b"200"), *request_fields()),
    ),
    malformed(
        "pseudo-header in trailers",
        "http2/8.1.2.1/3",
        "Section 8.1: trailers have no pseudo-header fields.",
        OPEN + data(1, b"test", end=False) + headers(1, block((b":method", b"200"))),
    ),
    *(
        malformed(
            f"{what} in trailers",
            "",
            "Section 8.2: what no field may be, none of the trailers may be.",
            OPEN + data(1, b"test", end=False) + headers(1, block(wrong)),
        )
        for what, wrong in (
            ("upper case name", (b"X-Test", b"1")),
            ("connection header", (b"connection", b"close")),
            ("value with lf", (b"x-test", b"a\nb")),
        )
    ),
    malformed(
        "pseudo-header after a regular field",
        "http2/8.1.2.1/4",
        "Section 8.3: pseudo-header fields come first.",
        get_of(*without(b":path"), (b"x-test", b"ok"), (b":path", b"/fixed")),
    ),
    malformed(
        "connection header",
        "http2/8.1.2.2/1",
        "Section 8.2.2: fields that are of an HTTP/1.1 connection are malformed.",
        get((b"connection", b"keep-alive")),
    ),
    *(
        malformed(
            f"{name} header",
            "",
            "Section 8.2.2: fields that are of an HTTP/1.1 connection are malformed.",
            get((name.encode(), value)),
        )
        for name, value in (
            ("keep-alive", b"timeout=5"),
            ("proxy-connection", b"close"),
            ("transfer-encoding", b"chunked"),
            ("upgrade", b"h2c"),
        )
    ),
    malformed(
        "te other than trailers",
        "http2/8.1.2.2/2",
        "Section 8.2.2: TE has no other value than trailers.",
        get((b"trailers", b"test"), (b"te", b"trailers, deflate")),
    ),
    Case(
        "te trailers",
        "",
        "Section 8.2.2: TE may say trailers.",
        get((b"te", b"trailers")),
        ANSWERED,
    ),
    malformed(
        "empty path",
        "http2/8.1.2.3/1",
        "Section 8.3.1: a path is not empty.",
        get_of(*instead(b":path", b"")),
    ),
    *(
        malformed(
            f"no {name}",
            f"http2/8.1.2.3/{number}",
            "Section 8.3.1: method, scheme and path have to be there.",
            get_of(*without(b":" + name.encode())),
        )
        for number, name in ((2, "method"), (3, "scheme"), (4, "path"))
    ),
    *(
        malformed(
            f"{name} twice",
            f"http2/8.1.2.3/{number}",
            "Section 8.3.1: method, scheme and path are there once.",
            get_of(*request_fields(), (b":" + name.encode(), value)),
        )
        for number, name, value in (
            (5, "method", b"GET"),
            (6, "scheme", b"http"),
            (7, "path", b"/fixed"),
        )
    ),
    malformed(
        "authority twice",
        "",
        "Section 8.3: a pseudo-header field is there once.",
        get_of((b":authority", b"other.test"), *request_fields()),
    ),
    malformed(
        "content-length too long",
        "http2/8.1.2.6/1",
        "Section 8.1.1: a body has the length that was announced; it is shorter.",
        request(1, (b"content-length", b"10"), method=b"POST", end=False) + data(1, b"test"),
    ),
    malformed(
        "content-length too short",
        "http2/8.1.2.6/2",
        "Section 8.1.1: a body has the length that was announced; two frames are longer.",
        request(1, (b"content-length", b"4"), method=b"POST", end=False)
        + data(1, b"test", end=False)
        + data(1, b"test"),
    ),
    malformed(
        "content-length exceeded",
        "",
        "Section 8.1.1: a body that is longer than announced is refused before it ends. (The RFC "
        "does not say when; what is wrong already is not worth waiting for.)",
        request(1, (b"content-length", b"4"), method=b"POST", end=False)
        + data(1, b"test too long", end=False),
    ),
    malformed(
        "content-length without a body",
        "",
        "Section 8.1.1: a body has the length that was announced; there is none.",
        request(1, (b"content-length", b"4"), method=b"POST"),
    ),
    malformed(
        "content-length with trailers",
        "",
        "Section 8.1.1: a body has the length that was announced; trailers end it early.",
        request(1, (b"content-length", b"10"), method=b"POST", end=False)
        + data(1, b"test", end=False)
        + headers(1, block((b"x-test", b"ok"))),
    ),
    *(
        malformed(
            f"content-length {name}",
            "",
            "Section 8.1.1: a length is a decimal number, once.",
            request(1, *values, method=b"POST", end=False) + data(1, b"test"),
        )
        for name, values in (
            ("not a number", ((b"content-length", b"four"),)),
            ("with a sign", ((b"content-length", b"+4"),)),
            ("negative", ((b"content-length", b"-4"),)),
            ("empty", ((b"content-length", b""),)),
            ("twice", ((b"content-length", b"4"), (b"content-length", b"5"))),
        )
    ),
    Case(
        "content-length right",
        "",
        "Section 8.1.1: padding and empty frames do not count.",
        request(1, (b"content-length", b"8"), method=b"POST", end=False)
        + data(1, b"test", end=False, padding=9)
        + data(1, b"", end=False)
        + data(1, b"test"),
        ANSWERED,
    ),
    *(
        malformed(
            f"value with {what}",
            "",
            "Section 8.2.1: a value has no NUL, CR or LF, and no space around it.",
            get((b"x-test", value)),
        )
        for what, value in (
            ("nul", b"a\0b"),
            ("cr", b"a\rb"),
            ("lf", b"a\nb"),
            ("crlf", b"a\r\nx-smuggled: 1"),
            ("space before", b" a"),
            ("space after", b"a "),
            ("tab before", b"\ta"),
        )
    ),
    *(
        malformed(
            f"name {what}",
            "",
            "Section 8.2.1: a name is of visible ASCII, and only a pseudo-header's has a colon.",
            get((name, b"ok")),
        )
        for what, name in (
            ("with a space", b"x test"),
            ("with a colon", b"x:test"),
            ("with lf", b"x\ntest"),
            ("above ascii", b"x-t\xe9st"),
            ("with del", b"x\x7ftest"),
            ("that is empty", b""),
        )
    ),
    *(
        malformed(
            f"{what} in {name}",
            "",
            "Section 8.2.1: no value has what would end a line of HTTP/1.1, and section 8.3.1: "
            "method, path and authority are what HTTP allows there.",
            get_of(*instead(b":" + name.encode(), value)),
        )
        for what, name, value in (
            ("crlf", "path", b"/fixed HTTP/1.1\r\nx-smuggled: 1"),
            ("space", "path", b"/fixed HTTP/1.1"),
            ("no slash", "path", b"fixed"),
            ("space", "method", b"GET /other HTTP/1.1"),
            ("crlf", "authority", b"a.test\r\nx-smuggled: 1"),
            ("space", "authority", b"a test"),
            ("userinfo", "authority", b"user@gateway.test"),
        )
    ),
    malformed(
        "host that is not the authority",
        "",
        "Section 8.3.1: a Host that differs from :authority should be taken as malformed, since "
        "who routes by one may check by the other.",
        get((b"host", b"other.test")),
    ),
)
class MessageTests(ConformanceTestCase):
    """RFC 9113, 8: requests; a malformed one is a stream error, and is never carried."""

    async def test_as_seen(self) -> None:
        """Method, target, fields and their order come to the Resource as they were sent."""
        client = await self.connect()
        more = ((b"x-one", b"1"), (b"x-two", b"2"), (b"x-one", b"3"), (b"x-empty", b""))
        path = b"/seen/a%2Fb%3Ac:d?x=%20&y"
        client.send(request(1, *more, method=b"POST", path=path))
        seen = json.loads((await self.over(client)).body)
        self.assertEqual((seen["method"], seen["uri"]), ("POST", path.decode()))
        self.assertEqual((seen["x-one"], seen["x-two"]), (["1", "3"], ["2"]))
        self.assertEqual((seen["x-empty"], seen["host"]), ([""], ["gateway.test"]))
        self.assertEqual([name for name in seen if name.startswith(":")], [])

    async def test_host(self) -> None:
        """Section 8.3.1: a Host that is the authority, or stands for it, is Host once."""
        client = await self.connect()
        host = (b"host", b"gateway.test")
        client.send(request(1, host, path=b"/seen"))
        fields = request_fields(host, path=b"/seen")
        client.send(headers(3, block(*(each for each in fields if each[0] != b":authority"))))
        for stream in (1, 3):
            seen = json.loads((await self.over(client, stream)).body)
            self.assertEqual(seen["host"], ["gateway.test"])

    async def test_cookies(self) -> None:
        """Section 8.2.3: cookies that came in several fields go on as one."""
        client = await self.connect()
        client.send(request(1, (b"cookie", b"a=1"), (b"cookie", b"b=2; c=3"), path=b"/seen"))
        seen = json.loads((await self.over(client)).body)
        self.assertEqual(seen["cookie"], ["a=1; b=2; c=3"])

    async def test_answer(self) -> None:
        """Section 8.2: an answer's fields are in lower case, and none is of a connection."""
        client = await self.connect()
        client.send(request(1, path=b"/wide"))
        head = (await self.answered(client)).heads[0]
        self.assertEqual(head[0], (b":status", b"200"))
        names = [name for name, _ in head]
        self.assertIn(b"x-upper-case", names)
        self.assertEqual([name.lower() for name in names], names)
        for name in (b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"):
            self.assertNotIn(name, names)

    async def test_continue(self) -> None:
        """Section 8.1: who expects 100 gets it before it has sent its body, and one final head."""
        client = await self.connect()
        expect = ((b"expect", b"100-continue"), (b"content-length", b"4"))
        client.send(request(1, *expect, method=b"POST", path=b"/length", end=False))
        await client.until(lambda: bool(client.answer().heads), "100")
        self.assertEqual(client.answer().heads, [[(b":status", b"100")]])
        self.assertFalse(client.answer().over)
        client.send(data(1, b"test"))
        answer = await self.answered(client, 1, b"4")
        self.assertEqual(len(answer.heads), 2)

    async def test_continue_not_waited_for(self) -> None:
        """The same when its body was under way already."""
        client = await self.connect()
        expect = (b"expect", b"100-continue")
        client.send(request(1, expect, method=b"POST", path=b"/length", end=False))
        client.send(data(1, b"test"))
        await self.answered(client, 1, b"4")

    async def test_streams_beside_a_malformed_one(self) -> None:
        """Section 8.1.1: a malformed request ends its own stream, and none beside it."""
        client = await self.connect()
        client.send(request(1, path=b"/held"), request(3, (b"connection", b"close")))
        came = await self.outcome(client, 3)
        self.assertIn(came, (stream_error(PROTOCOL_ERROR), BAD_REQUEST), str(client))
        await until(lambda: len(self.held.requests) == 1)
        self.held.release()
        await self.answered(client, 1)

    async def test_answers_out_of_order(self) -> None:
        """Section 5.1: a slow answer does not hold up those behind it."""
        client = await self.connect()
        client.send(request(1, path=b"/held"), request(3), request(5, path=b"/big/1000"))
        await self.answered(client, 3)
        await self.answered(client, 5, big(1000))
        self.assertFalse(client.answer(1).over)
        self.held.release()
        await self.answered(client, 1)
