"""
A client that speaks HTTP/2 frame by frame, well formed or not.

Frames are bytes, made here octet by octet and not by the library that the server
uses, so that a mistake in it is not made on both sides. Only HPACK is borrowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from hpack import Decoder, Encoder
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

__all__ = [
    "ACK",
    "DEFAULT_WINDOW",
    "END_HEADERS",
    "END_STREAM",
    "MAX_WINDOW",
    "PADDED",
    "PREFACE",
    "PRIORITY",
    "Answer",
    "Code",
    "Field",
    "Frame",
    "FrameClient",
    "Kind",
    "Setting",
    "block",
    "continuation",
    "data",
    "frame",
    "goaway",
    "headers",
    "integer",
    "ping",
    "priority",
    "priority_fields",
    "request",
    "request_fields",
    "rst_stream",
    "settings",
    "until",
    "window_update",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65535

# Flags.
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY = 0x20

Field = tuple[bytes, bytes]


class Kind(IntEnum):
    """Types of frames."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Code(IntEnum):
    """Error codes of RST_STREAM and GOAWAY."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class Setting(IntEnum):
    """Identifiers of settings."""

    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


# Frames to send.


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """
    Any frame, right or wrong.

    :param stream: 32 bits, the reserved one with them.
    """
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


def integer(value: int, prefix_bits: int, pattern: int = 0) -> bytes:
    """HPACK's integer, with the bits of its representation before it."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((pattern | value,))
    octets = [pattern | limit]
    value -= limit
    while value >= 128:
        octets.append(value % 128 | 128)
        value //= 128
    return bytes([*octets, value])


def block(*fields: Field) -> bytes:
    """A field block that refers to nothing that came before it on the connection."""
    encoded: bytes = Encoder().encode(list(fields))
    return encoded


def request_fields(
    *more: Field, method: bytes = b"GET", path: bytes = b"/fixed"
) -> tuple[Field, ...]:
    """A request's fields, the pseudo-header fields first."""
    return (
        (b":method", method),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"gateway.test"),
        *more,
    )


def headers(stream: int, fragment: bytes, flags: int = END_HEADERS | END_STREAM) -> bytes:
    """HEADERS with any payload."""
    return frame(Kind.HEADERS, flags, stream, fragment)


def request(
    stream: int = 1,
    *more: Field,
    method: bytes = b"GET",
    path: bytes = b"/fixed",
    end: bool = True,
) -> bytes:
    """A request in one HEADERS frame; ``end``: it has no body."""
    fields = request_fields(*more, method=method, path=path)
    return headers(stream, block(*fields), END_HEADERS | (END_STREAM if end else 0))


def continuation(stream: int, fragment: bytes, end: bool = True) -> bytes:
    """``end``: of the field block."""
    return frame(Kind.CONTINUATION, END_HEADERS if end else 0, stream, fragment)


def data(stream: int, content: bytes, end: bool = True, padding: int | None = None) -> bytes:
    """
    A piece of a body.

    :param padding: octets of it; None: not padded.
    """
    flags = END_STREAM if end else 0
    if padding is None:
        return frame(Kind.DATA, flags, stream, content)
    return frame(Kind.DATA, flags | PADDED, stream, bytes((padding,)) + content + bytes(padding))


def priority(stream: int, depends_on: int = 0, weight: int = 16, exclusive: bool = False) -> bytes:
    """``weight``: 1 to 256."""
    return frame(Kind.PRIORITY, 0, stream, priority_fields(depends_on, weight, exclusive))


def priority_fields(depends_on: int, weight: int = 16, exclusive: bool = False) -> bytes:
    """The five octets of a priority, as in PRIORITY and in HEADERS."""
    return (depends_on | (exclusive << 31)).to_bytes(4, "big") + bytes((weight - 1,))


def rst_stream(stream: int, code: int = Code.CANCEL) -> bytes:
    return frame(Kind.RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def settings(*pairs: tuple[int, int]) -> bytes:
    """Settings in this order."""
    payload = b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in pairs)
    return frame(Kind.SETTINGS, 0, 0, payload)


def ping(opaque: bytes = b"pingpong", flags: int = 0, stream: int = 0) -> bytes:
    return frame(Kind.PING, flags, stream, opaque)


def goaway(last_stream: int = 0, code: int = Code.NO_ERROR, stream: int = 0) -> bytes:
    return frame(Kind.GOAWAY, 0, stream, last_stream.to_bytes(4, "big") + code.to_bytes(4, "big"))


def window_update(stream: int, increment: int) -> bytes:
    return frame(Kind.WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


async def until(condition: Callable[[], bool], seconds: float = 4.0) -> None:
    """Wait for something that no frame tells of; :raises AssertionError: it did not come."""
    for _ in range(int(seconds * 500)):
        if condition():
            return
        await deferLater(reactor, 0.002)
    raise AssertionError(f"still not so after {seconds} s")


# What comes back.


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame received."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    def __str__(self) -> str:
        name = Kind(self.kind).name if self.kind in set(Kind) else f"type {self.kind}"
        shown = self.payload[:24].hex() + ("..." if len(self.payload) > 24 else "")
        return f"{name} stream={self.stream} flags={self.flags:#x} {len(self.payload)}: {shown}"

    @property
    def content(self) -> bytes:
        """The payload without its padding; for DATA and HEADERS."""
        if not self.flags & PADDED:
            return self.payload
        return self.payload[1 : len(self.payload) - self.payload[0]]

    @property
    def code(self) -> int:
        """The error code; for RST_STREAM and GOAWAY."""
        return int.from_bytes(self.payload[4:8] if self.kind == Kind.GOAWAY else self.payload)

    @property
    def settings(self) -> dict[int, int]:
        """For SETTINGS."""
        pieces = [self.payload[at : at + 6] for at in range(0, len(self.payload), 6)]
        return {int.from_bytes(piece[:2]): int.from_bytes(piece[2:]) for piece in pieces}


@dataclass
class Answer:
    """What came on one stream."""

    heads: list[list[Field]] = field(default_factory=list)
    """Field sections: informational ones, the answer's, trailers."""

    sizes: list[int] = field(default_factory=list)
    """Of the DATA frames, padding counted."""

    body: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    @property
    def status(self) -> int:
        """Of the final head; 0: there is none."""
        statuses = [
            int(value) for head in self.heads for name, value in head if name == b":status"
        ]
        return next((status for status in statuses if status >= 200), 0)

    def get(self, name: bytes) -> list[bytes]:
        """A header of the answer, by its name in lower case."""
        return [value for head in self.heads for key, value in head if key == name]


class FrameClient(Protocol):
    """
    A connection to the server; says and answers nothing by itself.

    :ivar frames: all that came, in order.
    :ivar rest: what came and is not, or not yet, a frame.
    :ivar closed: the server, or this client, has closed the connection.
    """

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.answers: dict[int, Answer] = {}
        self.rest = b""
        self.closed = False
        self.cleanly = False
        self._decoder = Decoder()
        self._fragments = b""
        self._credit: dict[int, int] = {}
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []
        self._pings = 0

    @classmethod
    async def connect(cls, port: int) -> FrameClient:
        """To 127.0.0.1; nothing is sent."""
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
        client: FrameClient = await connectProtocol(endpoint, cls())
        return client

    async def handshake(self, *own: tuple[int, int]) -> None:
        """
        Exchange prefaces and have both sides' settings acknowledged.

        :param own: settings of the client.
        """
        self.send(PREFACE, settings(*own))
        await self.until(lambda: self.count(Kind.SETTINGS) > 0, "the server's SETTINGS")
        self.send(frame(Kind.SETTINGS, ACK, 0))
        await self.until(lambda: self.acknowledged(1), "the ACK of the client's SETTINGS")

    def send(self, *pieces: bytes) -> None:
        """In one write, so that the server has all of it at once if it fits."""
        assert self.transport is not None
        self.transport.write(b"".join(pieces))

    async def change(self, *pairs: tuple[int, int]) -> None:
        """Send SETTINGS and wait until the server has applied them."""
        before = self._acknowledgements()
        self.send(settings(*pairs))
        await self.until(lambda: self.acknowledged(before + 1), "the ACK of new SETTINGS")

    async def barrier(self) -> None:
        """Wait until the server has taken in all that was sent, and answered to it."""
        self._pings += 1
        opaque = self._pings.to_bytes(8, "big")
        self.send(ping(opaque))
        await self.until(lambda: self.ponged(opaque), "the ACK of a PING")

    async def until(self, condition: Callable[[], bool], what: str, seconds: float = 4.0) -> None:
        """
        :raises AssertionError: it did not become so in time, or cannot any more.
        """
        if not condition() and not self.closed:
            waiting: Deferred[None] = Deferred()
            self._waiting.append((condition, waiting))
            await waiting.addTimeout(seconds, reactor, onTimeoutCancel=lambda _, __: None)
        if not condition():
            raise AssertionError(f"{what} did not come; {self}")

    def allow_table(self, size: int) -> None:
        """Take HPACK tables of this size only, in octets; the server has to know already."""
        self._decoder.max_allowed_table_size = size

    def abort(self) -> None:
        assert self.transport is not None
        self.transport.abortConnection()  # type: ignore[attr-defined]

    # What came.

    def __str__(self) -> str:
        state = "closed" if self.closed else "open"
        rest = f"\n  no frame: {self.rest[:200]!r}" if self.rest else ""
        return f"the connection is {state}, received:\n  " + (
            "\n  ".join(map(str, self.frames)) + rest
        )

    def answer(self, stream: int = 1) -> Answer:
        return self.answers.setdefault(stream, Answer())

    def of(self, kind: Kind) -> list[Frame]:
        return [each for each in self.frames if each.kind == kind]

    def count(self, kind: Kind) -> int:
        return len(self.of(kind))

    def credit(self, stream: int) -> int:
        """How much WINDOW_UPDATE has given in all."""
        return self._credit.get(stream, 0)

    def acknowledged(self, times: int) -> bool:
        return self._acknowledgements() >= times

    def _acknowledgements(self) -> int:
        return sum(each.flags & ACK for each in self.of(Kind.SETTINGS))

    def ponged(self, opaque: bytes) -> bool:
        return any(each.flags & ACK and each.payload == opaque for each in self.of(Kind.PING))

    @property
    def farewell(self) -> int | None:
        """The error code of the last GOAWAY."""
        codes = [each.code for each in self.of(Kind.GOAWAY)]
        return codes[-1] if codes else None

    @property
    def server_settings(self) -> dict[int, int]:
        merged: dict[int, int] = {}
        for each in self.of(Kind.SETTINGS):
            merged.update(each.settings)
        return merged

    # Protocol.

    def dataReceived(self, data: bytes) -> None:
        self.rest += data
        while len(self.rest) >= 9 and not self.rest.startswith(b"HTTP/"):
            length = int.from_bytes(self.rest[:3])
            if len(self.rest) < 9 + length:
                break
            stream = int.from_bytes(self.rest[5:9])
            self._received(Frame(self.rest[3], self.rest[4], stream, self.rest[9 : 9 + length]))
            self.rest = self.rest[9 + length :]
        self._look()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed = True
        self.cleanly = reason.check(ConnectionDone) is not None
        self._look()

    def _look(self) -> None:
        for pair in list(self._waiting):
            condition, waiting = pair
            if condition() or self.closed:
                self._waiting.remove(pair)
                if not waiting.called:
                    waiting.callback(None)

    def _received(self, frame: Frame) -> None:
        self.frames.append(frame)
        if frame.kind == Kind.WINDOW_UPDATE:
            increment = int.from_bytes(frame.payload, "big")
            self._credit[frame.stream] = self.credit(frame.stream) + increment
        answer = self.answer(frame.stream) if frame.stream else None
        if answer is None:
            return
        if frame.kind == Kind.DATA:
            answer.body += frame.content
            answer.sizes.append(len(frame.payload))
        elif frame.kind == Kind.RST_STREAM:
            answer.reset = frame.code
        elif frame.kind in (Kind.HEADERS, Kind.CONTINUATION):
            self._fragments += frame.content
            if frame.flags & END_HEADERS:
                answer.heads.append(self._decode())
        if frame.kind in (Kind.DATA, Kind.HEADERS) and frame.flags & END_STREAM:
            answer.ended = True

    def _decode(self) -> list[Field]:
        fragments, self._fragments = self._fragments, b""
        decoded: Iterable[tuple[bytes, bytes]] = self._decoder.decode(fragments, raw=True)
        return [(bytes(name), bytes(value)) for name, value in decoded]
