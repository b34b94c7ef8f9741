"""
A connection in memory, with the engine or with plain twisted.web at its server end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from txbedrock.inbound.http1 import Channel
from txbedrock.inbound.request import Request
from txbedrock.inbound.site import ClientLimits, Site

LIMITS = ClientLimits(
    max_request_body=1024 * 1024,
    header_timeout_s=10.0,
    upload_idle_timeout_s=20.0,
    keep_alive_timeout_s=30.0,
    linger_s=5.0,
)


class Seen(NamedTuple):
    """A request as a resource got it. Header names are in lower case."""

    method: bytes
    target: bytes
    version: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        """Every value of a header."""
        return [value for key, value in self.headers if key == name]


class Wire(StringTransport):
    """
    A transport that closes and stalls as a socket does.

    :ivar stalled: the client takes nothing, and the buffer is full after ``room`` bytes.
    """

    room = 64 * 1024

    def __init__(self) -> None:
        StringTransport.__init__(self)
        self.half_closed = False
        self.aborted = False
        self.stalled = False
        self.unsent = 0
        self.writes: list[bytes] = []
        self._told = False

    def write(self, data: bytes) -> None:
        if self.disconnecting:
            return
        StringTransport.write(self, data)
        self.writes.append(data)
        if self.stalled:
            self.unsent += len(data)
            if self.unsent > self.room and self.producer is not None:
                self._told = True
                self.producer.pauseProducing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def take(self) -> None:
        """The client takes all that was written."""
        self.stalled = False
        self.unsent = 0
        if self._told and self.producer is not None:
            self._told = False
            self.producer.resumeProducing()

    def loseWriteConnection(self) -> None:
        self.half_closed = True

    def abortConnection(self) -> None:
        self.aborted = True
        StringTransport.abortConnection(self)

    # Like a socket's: whoever calls them late, or twice, is not told off.

    def unregisterProducer(self) -> None:
        self.producer = self.streaming = None

    def pauseProducing(self) -> None:
        self.producerState = "paused"

    def resumeProducing(self) -> None:
        self.producerState = "producing"

    @property
    def reads(self) -> bool:
        """Whether the server wants more."""
        return self.producerState == "producing" and not self.disconnecting


class Recorder(Resource):
    """
    Keeps what it is asked, and answers it.

    :param respond: how, with a request of the server it is on.
    """

    isLeaf = True

    def __init__(self, respond: Callable[[Any], object] | None = None) -> None:
        Resource.__init__(self)
        self.seen: list[Seen] = []
        self.requests: list[Any] = []
        self._respond = respond

    def render(self, request: Any) -> bytes | int:
        if isinstance(request, Request):
            body = content(request)
            version = request.clientproto
        else:
            body = request.content.read()
            version = request.clientproto
        headers = [
            (name.lower(), value)
            for name, values in request.requestHeaders.getAllRawHeaders()
            for value in values
        ]
        self.seen.append(Seen(request.method, request.uri, version, headers, body))
        self.requests.append(request)
        if self._respond is not None:
            self._respond(request)
            return NOT_DONE_YET
        return b"%d\n" % len(self.seen)


def content(request: Request) -> bytes:
    """The body of a request, which must be in memory."""
    body = request.content
    return body._whole or b"".join(body._pieces)


class Peer:
    """A client's side of a connection."""

    def __init__(self, clock: Clock, channel: Any, recorder: Recorder) -> None:
        self.clock = clock
        self.channel = channel
        self.recorder = recorder
        self.wire = Wire()
        self.lost = False
        self._unsent: deque[bytes] = deque()
        channel.makeConnection(self.wire)

    @property
    def seen(self) -> list[Seen]:
        return self.recorder.seen

    @property
    def received(self) -> bytes:
        return self.wire.value()

    def send(self, *pieces: bytes) -> None:
        """Each piece is one read of the server's, as soon as it wants one."""
        self._unsent.extend(piece for piece in pieces if piece)
        self.turn()

    def turn(self) -> None:
        """Let happen what happens without anybody waiting."""
        while True:
            if self._unsent and self.wire.reads:
                self.channel.dataReceived(self._unsent.popleft())
            elif any(call.getTime() <= self.clock.seconds() for call in self.clock.calls):
                self.clock.advance(0)
            else:
                return

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.turn()

    def leave(self) -> None:
        """The client closes."""
        if not self.lost:
            self.lost = True
            self.wire.disconnecting = True
            self.channel.connectionLost(Failure(ConnectionDone()))

    @property
    def unread(self) -> int:
        """Pieces that the server does not want yet."""
        return len(self._unsent)


def engine(
    respond: Callable[[Any], object] | None = None,
    limits: ClientLimits = LIMITS,
    site: Site | None = None,
) -> Peer:
    """A connection to the engine."""
    clock = Clock()
    recorder = Recorder(respond)
    if site is None:
        site = Site(recorder, clock, limits, wall_seconds=lambda: 1_700_000_000.0)
    return Peer(clock, Channel(site), recorder)


class PlainChannel(http.HTTPChannel):
    """
    Twisted.web's connection, with as much room for headers as the engine has.

    :ivar heads: of all requests, whole or not, whatever became of them: the lines as they came.
    """

    requestFactory = server.Request
    totalHeadersSize = 64 * 1024
    timeOut = None

    def __init__(self, site: server.Site) -> None:
        http.HTTPChannel.__init__(self)
        self.site = self.factory = site
        self.heads: list[list[bytes]] = []
        self._in_head = False

    def lineReceived(self, line: bytes) -> None:
        if not self._in_head and line:
            self.heads.append([line])
        elif line:
            self.heads[-1].append(line)
        self._in_head = bool(line)
        http.HTTPChannel.lineReceived(self, line)

    def head(self, index: int) -> list[bytes]:
        """With a line that is not whole yet."""
        if index < len(self.heads):
            if index == len(self.heads) - 1 and self._in_head:
                return [*self.heads[index], self._buffer]
            return self.heads[index]
        return [self._buffer]


def plain() -> Peer:
    """A connection to twisted.web."""
    clock = Clock()
    recorder = Recorder()
    site = server.Site(recorder, timeout=None, reactor=clock, parsePOSTFormSubmission=False)
    channel = PlainChannel(site)
    return Peer(clock, channel, recorder)


class Answer(NamedTuple):
    """An answer as a client reads it."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


def answers(data: bytes, methods: Iterable[bytes] = ()) -> list[Answer]:
    """
    Read all that a server wrote, strictly.

    :param methods: of the requests, when some were HEAD.
    :raises AssertionError: it is not a row of whole answers.
    """
    asked = iter(methods)
    found: list[Answer] = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, "a head is not whole"
        lines = head.split(b"\r\n")
        assert not any(b"\n" in line or b"\r" in line for line in lines), head
        version, status, _phrase = lines[0].split(b" ", 2)
        assert version in (b"HTTP/1.1", b"HTTP/1.0"), lines[0]
        headers: dict[bytes, bytes] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(b": ")
            assert colon and name.lower() not in headers, line
            headers[name.lower()] = value
        if int(status) == 100:
            found.append(Answer(100, headers, b""))
            continue
        body = b""
        if next(asked, b"GET") == b"HEAD" or int(status) in (204, 304):
            pass
        elif headers.get(b"transfer-encoding") == b"chunked":
            assert b"content-length" not in headers
            while True:
                size, end, data = data.partition(b"\r\n")
                assert end, "a chunk is not whole"
                count = int(size, 16)
                assert data[count : count + 2] == b"\r\n", "a chunk has no end"
                body += data[:count]
                data = data[count + 2 :]
                if not count:
                    break
        elif b"content-length" in headers:
            count = int(headers[b"content-length"])
            assert len(data) >= count, "a body is not whole"
            body, data = data[:count], data[count:]
        else:
            body, data = data, b""
        found.append(Answer(int(status), headers, body))
    return found


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """In pieces."""
    ends = sorted({place for place in places if 0 < place < len(data)})
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]
