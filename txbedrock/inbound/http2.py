"""
HTTP/2 of a client's connection, and the channel of each request on it.

Frames, the states of streams and the windows are :class:`Connection`'s, which tells
:class:`Http2Channel` what came, frame by frame: no more in one turn of the reactor than there
is time for (:mod:`txbedrock.inbound.turns`). What is wrong with one request is answered like a
bad request of HTTP/1.1, so heads are checked in :func:`_parse_head`, and only there.

A write to a socket costs more than all that is done for a frame, so there are few: a short
answer is one, and what is answered to frames that came together is one.

Note [Windows]
--------------
What arrives is the connection's window at once, as one stream must not hold up others,
and the stream's when its body has taken it. While the disk is slower than the client
the stream's window stays shut, so that at most ``stream_window`` bytes come after.

Answers wait in their stream: for its window, for the connection's, or for the socket.
More than ``max_buffered`` bytes pause the stream's producer. Streams that could send
take turns, a frame each.

Note [Ends]
-----------
============================  ==================================================
what                          how
============================  ==================================================
answer is whole               END_STREAM
... before the request is     END_STREAM, then RST_STREAM(NO_ERROR)
... to a malformed request    END_STREAM, then RST_STREAM(PROTOCOL_ERROR)
answer is cut                 RST_STREAM(INTERNAL_ERROR)
client leaves a request       its RST_STREAM; to the request a lost connection
too many requests at once     RST_STREAM(REFUSED_STREAM), which clients retry
client sends GOAWAY           its requests are answered, later ones too; the end
server drains                 GOAWAY for any stream, and when the client has seen
                              it for those to come; requests are answered
too much of anything          GOAWAY(ENHANCE_YOUR_CALM), the end
not HTTP/2                    GOAWAY with what was wrong, the end
============================  ==================================================

The end of a connection is half of it first: closed over what the client still sends,
it would be reset, and the last answers be lost. Whoever is thrown out has no answers; it
is not read any more, which costs nothing however much it sends, and cut off soon.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twisted.internet._producer_helpers import _PullToPush
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IPushProducer,
    ISSLTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from txbedrock.core.headers import HeaderList
from txbedrock.core.replies import render
from txbedrock.errors import BadHttp, BodyTimeout, HeadersTooLarge, ProxyError
from txbedrock.inbound.http2_connection import (
    HEADERS,
    MAX_FRAME,
    PREFACE,
    Connection,
    ErrorCode,
    Excess,
    Http2Error,
)
from txbedrock.inbound.http2_hpack import OF_A_CONNECTION
from txbedrock.inbound.request import Request, new_request_id
from txbedrock.inbound.turns import Left, Turns
from txbedrock.writing import write_now

if TYPE_CHECKING:
    from txbedrock.inbound.site import ClientLimits, Site

__all__ = ["PREFACE", "Http2Channel", "Http2Limits", "Stream"]

_LAST_WRITES_S = 0.05

# How long a client that has said that it goes may take to do so.
_FAREWELL_S = 1.0

_ANY_STREAM = 2**31 - 1

# Comes back in a PING when all has arrived that was on its way.
_DRAIN = b"draining"

# A connection's share of the reactor's time, in frames; a request is worth many.
_QUANTUM = 128
_HEADERS_COST = 32
# Of an answer, what others wait for: as much as is read of one at a time.
_MAX_PIECE = 64 * 1024
_LENGTH_NAME = len(b"content-length")


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """
    What a client may do on one connection. Times are :class:`ClientLimits`'s.

    What comes in numbers may come at once up to the burst, and then at the rate.
    """

    max_concurrent_streams: int = 128
    max_header_list: int = 64 * 1024
    """As HTTP/2 counts it: 32 bytes more a field. Twice as much ends the connection."""

    max_header_fields: int = 500
    stream_window: int = 256 * 1024
    connection_window: int = 4 * 1024 * 1024
    max_buffered: int = 64 * 1024
    """Of an answer, before its producer is paused."""

    max_backlog: int = 128 * 1024
    """Heads and control frames, bytes, while the client reads nothing."""

    flush_timeout_s: float = 120.0
    """How long an answer that is over may wait for a client that takes none of it."""

    resets_burst: float = 100.0
    resets_per_s: float = 50.0
    """Requests that the client gives up, or that are malformed, or too many at once."""

    pings_burst: float = 200.0
    pings_per_s: float = 20.0
    settings_burst: float = 50.0
    settings_per_s: float = 5.0
    control_burst: float = 2000.0
    control_per_s: float = 500.0
    """WINDOW_UPDATE beyond two for each frame of data that it got, PRIORITY, GOAWAY, unknown
    frames, DATA without data, and DATA for a stream that is over."""


class _Leak:
    """A bucket that leaks: what comes too fast runs over."""

    __slots__ = ("_burst", "_rate", "_when", "level")

    def __init__(self, burst: float, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._when = 0.0
        self.level = 0.0

    def runs_over(self, now: float, cost: float = 1.0) -> bool:
        self.level = max(0.0, self.level - (now - self._when) * self._rate) + cost
        self._when = now
        return self.level > self._burst


@dataclass(slots=True)
class _Head:
    """The head of a request, as HTTP/1.1 would have it."""

    method: bytes
    path: bytes
    fields: HeaderList
    length: int | None
    expects: bool


_is_name = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+").fullmatch
_is_method = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}").fullmatch
# No space and nothing that ends a line: the path goes into lines of HTTP/1.1.
_is_path = re.compile(rb"/[\x21-\x7e\x80-\xff]*|\*").fullmatch
_is_authority = re.compile(rb"[\x21-\x3f\x41-\x7e]*").fullmatch
_is_value = re.compile(rb"(?:[^\0\r\n\t ](?:[^\0\r\n]*[^\0\r\n\t ])?)?").fullmatch
_is_length = re.compile(rb"[0-9]{1,18}").fullmatch

_BAD_NAME = "A header's name must be of letters, digits and '-', in lower case."
_BAD_VALUE = "A header's value must not hold a line's end or begin or end with white space."

# By its name: a header is passed on, looked at, or one of RFC 9113's own.
_FIELD, _SPECIAL, _PSEUDO = range(3)


class _Kinds(dict[bytes, int]):
    """The kinds of names, remembered: clients use few."""

    def __missing__(self, name: bytes) -> int:
        """
        :raises BadHttp: it is no name (RFC 9113, 8.2.1).
        """
        if name[:1] == b":":
            return _PSEUDO
        if not _is_name(name):
            raise BadHttp(_BAD_NAME)
        if len(self) < _MAX_NAMES and len(name) <= _USUAL_NAME:
            self[name] = _FIELD
        return _FIELD


_PSEUDO_NAMES = frozenset((b":method", b":scheme", b":authority", b":path"))
_MAX_NAMES = 4096
_USUAL_NAME = 64
_kinds = _Kinds(
    dict.fromkeys(_PSEUDO_NAMES, _PSEUDO)
    | dict.fromkeys(OF_A_CONNECTION, _SPECIAL)
    | dict.fromkeys((b"content-length", b"cookie", b"expect", b"host", b"te"), _SPECIAL)
)


def _check_trailers(fields: HeaderList) -> None:
    """
    :raises BadHttp: they are malformed (RFC 9113, 8.1 and 8.2).
    """
    for name, value in fields:
        if _kinds[name] == _PSEUDO:
            raise BadHttp(_BAD_NAME)
        if not _is_value(value):
            raise BadHttp(_BAD_VALUE)
        _check_of_a_connection(name, value)


def _check_of_a_connection(name: bytes, value: bytes) -> None:
    """
    :raises BadHttp: it is, and HTTP/2 has no such headers (RFC 9113, 8.2.2).
    """
    if name in OF_A_CONNECTION or (name == b"te" and value.lower() != b"trailers"):
        raise BadHttp(f"HTTP/2 has no {name.decode()} header: leave it out.")


def _parse_head(headers: HeaderList) -> _Head:
    """
    :raises BadHttp: it is malformed (RFC 9113, 8.1.1 to 8.3.1).
    """
    pseudo: dict[bytes, bytes] = {}
    fields: HeaderList = []
    cookies: list[bytes] = []
    host: bytes | None = None
    length: int | None = None
    expects = False
    for field in headers:
        name, value = field
        kind = _kinds[name]
        if not _is_value(value):
            raise BadHttp(_BAD_VALUE)
        if kind == _FIELD:
            fields.append(field)
            continue
        if kind == _PSEUDO:
            if name not in _PSEUDO_NAMES:
                raise BadHttp("A request's only pseudo-headers are those of RFC 9113, 8.3.1.")
            if name in pseudo:
                raise BadHttp(f"The pseudo-header {name.decode()} must be there once.")
            if fields or cookies:
                raise BadHttp("Pseudo-headers must come before all other headers.")
            pseudo[name] = value
            continue
        if name == b"cookie":
            cookies.append(value)
            continue
        if name == b"host":
            if host is not None:
                raise BadHttp("There must be one host header.")
            host = value
        elif name == b"content-length":
            if not _is_length(value) or length not in (None, int(value)):
                raise BadHttp("The content-length header must be one number.")
            if length is not None:
                continue
            length = int(value)
        elif name == b"expect":
            expects = value.lower() == b"100-continue"
        else:
            _check_of_a_connection(name, value)
        fields.append(field)
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    if method == b"CONNECT":
        raise BadHttp("This is not a proxy for CONNECT: send the request itself.")
    if not _is_method(method):
        raise BadHttp("A request needs a :method pseudo-header with an HTTP method.")
    if b":scheme" not in pseudo:
        raise BadHttp("A request needs a :scheme pseudo-header.")
    if not _is_path(path):
        raise BadHttp("A request needs a :path pseudo-header that begins with '/'.")
    authority = pseudo.get(b":authority")
    if authority is not None:
        if not _is_authority(authority):
            raise BadHttp("The :authority pseudo-header must be a host and a port.")
        if host is None:
            fields.insert(0, (b"host", authority))
        elif host != authority:
            raise BadHttp("The host header must be the same as :authority, or left out.")
    if cookies:
        fields.append((b"cookie", b"; ".join(cookies)))
    return _Head(method, path, fields, length, expects)


class Stream:
    """
    The channel of one request: what :class:`Request` and whoever answers it see of the
    connection.

    What this calls of a request: ``begin``, ``feed`` for each piece, ``whole`` when it is
    here or ``connectionLost`` when it will not be answered. What a request calls: all
    that is public here; ``requestDone`` is the end of an answer.
    """

    __slots__ = (
        "_arrived",
        "_buffer",
        "_channel",
        "_cut",
        "_end_sent",
        "_flow",
        "_head",
        "_paused",
        "_producer",
        "_pulls",
        "_request",
        "_unopened",
        "closed",
        "finished",
        "id",
        "last_progress",
        "limits",
        "peer_host",
        "queued",
        "refused",
        "reset_with",
        "secure",
        "site",
        "transport",
        "upload_paused",
        "uploading",
        "whole",
    )

    factory = None

    def __init__(self, channel: Http2Channel, id: int, head: _Head) -> None:
        self.id = id
        self.site = channel.site
        self.limits = channel.site.limits
        self.refused = False
        self.finished = False
        self.closed = False
        self.uploading = True
        self.whole = False
        self.upload_paused = False
        self.queued = False
        self.reset_with: ErrorCode | None = None
        self.last_progress = channel.arrived
        # To see who the client is; what ends the stream is here.
        self.transport = channel.tcp
        self.secure = channel.secure
        self.peer_host = channel.peer_host
        self._channel = channel
        self._head = head
        self._flow = channel.h2.streams[id]
        self._request: Request | None = None
        self._cut: IDelayedCall | None = None
        # The request.
        self._arrived = 0
        self._unopened = 0
        # Its answer.
        self._buffer = bytearray()
        self._producer: IPushProducer | None = None
        self._pulls = False
        self._paused = False
        self._end_sent = False

    # What a request asks for.

    def getPeer(self) -> IAddress:
        return self._channel.tcp.getPeer()

    def getHost(self) -> IAddress:
        return self._channel.tcp.getHost()

    def isSecure(self) -> bool:
        return self._channel.secure

    @property
    def idle(self) -> bool:
        """A stream is a request."""
        return False

    # A request on its way.

    def begin(self, ended: bool) -> None:
        """
        The head is here.

        :param ended: it is all.
        """
        head = self._head
        request = self._request = Request(self, head.method, head.path, b"HTTP/2", head.fields)
        request.begin(0 if ended and head.length is None else head.length)
        if head.expects and not ended and not self.refused:
            self._channel.h2.send_head(self.id, 100, [], False)
            self._channel.flush_soon()
        if ended:
            self.ended()

    def received(self, data: bytes, size: int, ended: bool) -> None:
        """
        A piece of the body.

        :param size: what it takes of the window, padding included.
        :param ended: it is the last one.
        """
        self.last_progress = self._channel.arrived
        self.uploading = not ended
        request = self._request
        if request is None:
            return  # Refused: its window stays shut.
        self._arrived += len(data)
        if self._head.length is not None and self._arrived > self._head.length:
            self.malformed(BadHttp("The body is longer than the content-length header says."))
            return
        if data:
            request.feed(data)
        if ended:
            self.ended()
        else:
            self._unopened += size
            self._open_window()

    def ended(self) -> None:
        """The request is whole."""
        self.uploading = False
        request, length = self._request, self._head.length
        if request is None:
            return
        if length is not None and self._arrived != length:
            self.malformed(BadHttp("The body is shorter than the content-length header says."))
            return
        self._channel.answering(self)
        request.whole()

    def lost(self, reason: Failure) -> None:
        """The client has left, or there is no answer to be had."""
        self.closed = True
        self._buffer.clear()
        if self._cut is not None and self._cut.active():
            self._cut.cancel()
        producer = self._drop_producer()
        if producer is not None:
            producer.stopProducing()
        self._drop_request(reason)

    def _drop_request(self, reason: Failure) -> None:
        request, self._request = self._request, None
        if request is not None:
            request.connectionLost(reason)

    def pause_upload(self) -> None:
        """The disk is slower than the client."""
        self.upload_paused = True

    def resume_upload(self) -> None:
        self.upload_paused = False
        self.last_progress = self._channel.now()
        self._open_window()
        if self.uploading and not self.closed:
            self._channel.flush()
            self._channel.watch_upload(self)

    def _open_window(self) -> None:
        if self.upload_paused or not self.uploading or self.refused or self.closed:
            return
        if self._unopened * 2 >= self.site.http2_limits.stream_window:
            size, self._unopened = self._unopened, 0
            self._channel.h2.open_window(self.id, size)

    # Its answer.

    def writeHeaders(
        self, version: bytes, code: int, reason: bytes, headers: HeaderList, data: bytes
    ) -> None:
        """
        Send a head, and the first piece of the body after it.

        :param data: empty if there is none yet, or never.
        """
        if not self.closed:
            self._send_answer(code, headers, data)

    def _send_answer(self, status: int, headers: HeaderList, data: bytes) -> None:
        length = None
        for name, value in headers:
            if len(name) == _LENGTH_NAME and name.lower() == b"content-length":
                length = value
        channel = self._channel
        whole = self._head.method == b"HEAD" or status in (204, 304) or length == b"0"
        self._end_sent = whole
        channel.h2.send_head(self.id, status, headers, whole)
        if data and not whole and length == b"%d" % len(data) and self._can_send(len(data)):
            # All there is: its end goes with it.
            self._end_sent = True
            channel.h2.send_data(self.id, self._flow, data, True)
        else:
            self.write(data)
        channel.flush_soon()

    def write(self, data: bytes) -> None:
        if self.closed or self._end_sent or not data:
            return
        channel, buffer = self._channel, self._buffer
        if self._can_send(len(data)):
            channel.h2.send_data(self.id, self._flow, data)
            channel.flush()
            return
        if not buffer:
            self.last_progress = channel.now()
        buffer += data
        channel.ready(self)
        if (
            len(buffer) > self.site.http2_limits.max_buffered
            and self._producer is not None
            and not self._paused
        ):
            self._paused = True
            self._producer.pauseProducing()

    def _can_send(self, size: int) -> bool:
        """At once?"""
        channel = self._channel
        return (
            not (self._buffer or channel.stalled)
            and size <= _MAX_PIECE
            and size <= self._flow.window
            and size <= channel.h2.window
        )

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    @property
    def waiting(self) -> int:
        """Bytes that could not be sent yet."""
        return len(self._buffer)

    def send_some(self) -> bool:
        """
        Send one frame of what waits.

        :returns: whether another one could follow, as far as this stream is concerned.
        """
        buffer = self._buffer
        channel = self._channel
        size = min(
            len(buffer),
            MAX_FRAME,
            self._flow.window,
            channel.h2.window,
        )
        if size <= 0 or self.closed:
            return False
        data = bytes(buffer[:size])
        del buffer[:size]
        self.last_progress = channel.now()
        if self.finished and not buffer:
            self._end_sent = True
            channel.h2.send_data(self.id, self._flow, data, True)
            channel.flush()
            channel.answered(self)
            return False
        channel.h2.send_data(self.id, self._flow, data)
        channel.flush()
        if self._paused and len(buffer) * 2 <= self.site.http2_limits.max_buffered:
            self._paused = False
            if self._producer is not None:
                self._producer.resumeProducing()
        return bool(buffer)

    def requestDone(self, request: object) -> None:
        """The answer is whole."""
        self._request = None
        self._finish()

    def _finish(self) -> None:
        self.finished = True
        channel = self._channel
        if self.closed:
            return
        if self._buffer:
            self.last_progress = channel.now()
            channel.watch_answer()
            return
        if not self._end_sent:
            self._end_sent = True
            channel.h2.send_data(self.id, self._flow, b"", True)
            channel.flush_soon()
        channel.answered(self)

    def let_go(self) -> None:
        """The answer will take a while: keep nothing of the request."""
        self._head.fields = []

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self._producer is not None:
            raise ValueError("another producer is registered")
        if self.closed:
            producer.stopProducing()
            return
        self._pulls = not streaming
        self._paused = False
        if streaming:
            self._producer = producer
        else:
            pulling = self._producer = _PullToPush(producer, self)
            pulling.startStreaming()
        if len(self._buffer) > self.site.http2_limits.max_buffered:
            self._paused = True
            self._producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self._drop_producer()

    def _drop_producer(self) -> IPushProducer | None:
        producer, self._producer = self._producer, None
        if producer is not None and self._pulls:
            producer.stopStreaming()  # type: ignore[attr-defined]
        return producer

    def abort(self) -> None:
        """Reset the stream now, so that nothing sent so far looks whole."""
        if self.closed:
            return
        self.closed = True
        self._channel.reset(self, ErrorCode.INTERNAL_ERROR)
        # As a transport does it: not in the caller's own call.
        self.site.clock.callLater(0, self.lost, Failure(ConnectionAborted()))

    def cut_off(self) -> None:
        """
        The same after a moment: a reset makes clients drop what they have not read, so
        that what was written just now would be lost, the head with it.
        """
        if self._cut is None and not self.closed:
            self._cut = self.site.clock.callLater(_LAST_WRITES_S, self.abort)

    def loseConnection(self) -> None:
        """What has no end of its own has none."""
        self.cut_off()

    def refuse(self, error: ProxyError) -> None:
        """Answer now, and take nothing more of the request."""
        if self.refused or self.closed:
            return
        self.refused = True
        reply = render(error, new_request_id(), self.site.shape_of(self._head.path))
        self._channel.log_refusal(reply.status, error)
        headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
        self._send_answer(reply.status, headers, reply.body)
        self._drop_request(Failure(ConnectionDone()))
        self._finish()

    def malformed(self, error: BadHttp) -> None:
        """Refuse a request that is none."""
        if not self.refused:
            self.reset_with = ErrorCode.PROTOCOL_ERROR
            self._channel.count_reset()
            self.refuse(error)


@implementer(IPushProducer)
class Http2Channel(Protocol):
    """
    An HTTP/2 connection of a client.

    Each request is a :class:`Stream`; what is public here is for them or for the site.
    """

    site: Site
    secure = False
    tcp: Any
    _log = Logger()

    def __init__(self, site: Site) -> None:
        limits = site.http2_limits
        self.site = site
        self.refused = False
        self.stalled = False
        self.h2 = Connection(
            limits.max_concurrent_streams,
            limits.max_header_list,
            limits.stream_window,
            limits.connection_window,
        )
        self._streams: dict[int, Stream] = {}
        self._ring: deque[Stream] = deque()
        self._backlog = 0
        self._credited = 0
        # Whether it is going to be closed when there is no stream, or is being closed.
        self._leaving = False
        self._last_stream = _ANY_STREAM
        self._closing = False
        self._close_by = 0.0
        self._lost = False
        self.address = ""
        """Under which it is counted."""

        self._behind = self._taking = False
        # Whose bodies have not come with their heads.
        self._begun: list[Stream] = []
        self._quantum = _QUANTUM
        self._acknowledged = False
        self._timer: IDelayedCall | None = None
        self._began = self._idle_since = self.arrived = self.now()
        self._idle_s = site.limits.header_timeout_s
        self._keep_alive_s = site.limits.keep_alive_timeout_s
        self._incomplete_since: float | None = None
        self._resets = _Leak(limits.resets_burst, limits.resets_per_s)
        self._pings = _Leak(limits.pings_burst, limits.pings_per_s)
        self._settings = _Leak(limits.settings_burst, limits.settings_per_s)
        self._control = _Leak(limits.control_burst, limits.control_per_s)

    def now(self) -> float:
        """Seconds, monotonic."""
        return self.site.clock.seconds()

    # What the transport calls.

    def connectionMade(self) -> None:
        self.tcp = self.transport
        self.secure = ISSLTransport.providedBy(self.transport)
        self.peer_host = getattr(self.tcp.getPeer(), "host", None) or "-"
        set_no_delay = getattr(self.transport, "setTcpNoDelay", None)
        if set_no_delay is not None:
            set_no_delay(True)
        self.address = self.site.bounds.counted(self.peer_host)
        self.site.connected(self)
        self.tcp.registerProducer(self, True)
        self.flush()
        self._watch_by(self._began + self._idle_s)
        if self.site.draining:
            self.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        if self._closing:
            return  # Read so that the last answer is not lost in a reset.
        # What is too fast was sent too fast, however late there is time for it.
        self.arrived = self.now()
        try:
            self.h2.add_data(data)
        except Http2Error as error:
            self._fail(error)
            return
        if not self._behind and not self.site.turns.do(self) and not self._lost:
            self._behind = True
            self.tcp.pauseProducing()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = self._closing = True
        self._ring.clear()
        self._begun.clear()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._lose_streams(reason)
        self.site.disconnected(self)
        if self.secure:
            self.tcp.unregisterProducer()

    def pauseProducing(self) -> None:
        self.stalled = True

    def resumeProducing(self) -> None:
        self.stalled = False
        self._backlog = 0
        if self._closing:
            self._close_by = self.now() + self.site.limits.linger_s
            self._watch_by(self._close_by)
        self._pump()

    def stopProducing(self) -> None:
        pass  # connectionLost follows.

    # What the site calls.

    @property
    def limits(self) -> ClientLimits:
        return self.site.limits

    @property
    def idle(self) -> bool:
        """No request, and no answer, is under way."""
        return not self._streams

    def isSecure(self) -> bool:
        """Is this TLS?"""
        return self.secure

    def loseConnection(self) -> None:
        """Answer what has been asked, take nothing more, and close."""
        if self._closing or self._leaving:
            return
        self._leaving = True
        if not self._streams:
            self._close()
            return
        # First for any stream, as some may be on their way; see ping_answered.
        self._go_away(_ANY_STREAM, ErrorCode.NO_ERROR, "This server is being stopped.")
        self.h2.ping(_DRAIN)
        self.flush()

    def abort(self) -> None:
        """Cut the connection now, so that nothing sent so far looks whole."""
        self.tcp.abortConnection()

    # Frames.

    def work(self) -> Left:
        """Handle frames, and no more of them than others can wait for."""
        left = Left.NOTHING if self._closing else self._take_frames()
        if left is Left.NOTHING:
            self._quantum = _QUANTUM
            if self._behind:
                self._behind = False
                if not self.refused and not self._lost:
                    self.tcp.resumeProducing()
        return left

    def _take_frames(self) -> Left:
        h2, turns, whole = self.h2, self.site.turns, False
        left = Left.NOTHING
        self._taking = True
        try:
            while (kind := h2.take(self)) is not None:
                whole = True
                if self._closing:
                    break
                self._quantum -= _HEADERS_COST if kind == HEADERS else 1
                if self._quantum <= 0:
                    self._quantum = _QUANTUM
                    left = Left.MUCH
                    break
                if turns.is_over:
                    left = Left.TIME
                    break
        except Http2Error as error:
            self._fail(error)
            return Left.NOTHING
        finally:
            self._taking = False
        if self._lost:
            return Left.NOTHING
        self.flush()
        while self._begun:
            stream = self._begun.pop()
            if stream.uploading:
                self.watch_upload(stream)
        if not h2.incomplete:
            self._incomplete_since = None
            return Left.NOTHING
        if whole or self._incomplete_since is None:
            self._incomplete_since = self.now()
            self._watch_by(self._incomplete_since + self.limits.header_timeout_s)
        return left

    def _fail(self, error: Http2Error) -> None:
        """What the client sends makes no sense, or is too much."""
        code, text = error.code, str(error)
        self.site.refused(error.kind)
        self.site.turns.box(self.address)
        self.refused = True
        self._log.info(
            "{peer} cut off with {code}: {message}",
            peer=self.peer_host,
            code=code.name,
            message=text,
        )
        self._close(code, text)
        self._lose_streams(Failure(ConnectionLost(text)))

    # What frames mean, see Receiver. What comes too fast raises Excess.

    def count_reset(self, cost: float = 1.0) -> None:
        if self._resets.runs_over(self.arrived, cost):
            raise Excess("rapid_reset", "Too many requests were given up or refused at once.")

    def count_ping(self) -> None:
        if self._pings.runs_over(self.arrived):
            raise Excess("ping_flood", "Too many PING frames.")

    def count_settings(self) -> None:
        if self._settings.runs_over(self.arrived):
            raise Excess("settings_flood", "Too many SETTINGS frames.")

    def count_control(self) -> None:
        if self._control.runs_over(self.arrived):
            # Each frame that it got lets a client open two windows.
            sent = self.h2.data_frames
            self._control.level -= 2 * (sent - self._credited)
            self._credited = sent
            if self._control.runs_over(self.arrived, 0):
                raise Excess("control_flood", "Too many frames that carry nothing.")

    def request_received(self, id: int, headers: HeaderList, size: int, ended: bool) -> None:
        limits = self.site.http2_limits
        if id > self._last_stream:
            self._refuse_stream(id)
            return
        if len(self._streams) >= limits.max_concurrent_streams:
            self._refuse_stream(id)
            self.site.refused("too_many_streams")
            # A client that has not heard of the limit cannot keep it.
            self.count_reset(1.0 if self._acknowledged else 0.1)
            return
        try:
            head = _parse_head(headers)
        except BadHttp as error:
            head = _Head(b"", b"/", [], None, False)
            wrong: ProxyError | None = error
        else:
            wrong = None
        stream = self._streams[id] = Stream(self, id, head)
        if self.site.is_last(self.site.bounds.begun(self)):
            self.loseConnection()
        if size > limits.max_header_list or len(headers) > limits.max_header_fields:
            self.site.refused("header_list")
            stream.refuse(
                HeadersTooLarge(
                    f"The request's header is too large: at most {limits.max_header_list} bytes,"
                    f" with 32 for each field, and {limits.max_header_fields} fields."
                )
            )
        elif isinstance(wrong, BadHttp):
            stream.malformed(wrong)
        else:
            if not ended:
                self._begun.append(stream)
            self._guard(stream, stream.begin, ended)

    def data_received(self, id: int, data: bytes, size: int, ended: bool) -> None:
        stream = self._streams.get(id)
        if stream is not None:
            self._guard(stream, stream.received, data, size, ended)

    def trailers_received(self, id: int, headers: HeaderList) -> None:
        stream = self._streams.get(id)
        if stream is None:
            return
        try:
            _check_trailers(headers)
        except BadHttp as error:
            stream.malformed(error)
        self._guard(stream, stream.ended)

    def stream_reset(self, id: int) -> None:
        stream = self._streams.get(id)
        if stream is not None:
            self._forget(stream)
            stream.lost(Failure(ConnectionLost("The client has reset the stream.")))
        else:
            self.h2.forget(id)

    def window_opened(self, id: int) -> None:
        if id:
            stream = self._streams.get(id)
            if stream is not None and stream.waiting:
                self.ready(stream)
        else:
            self._pump()

    def settings_changed(self) -> None:
        # A client counts with its new windows from the acknowledgement on.
        self.flush()
        for stream in list(self._streams.values()):
            if stream.waiting:
                self.ready(stream)

    def settings_acknowledged(self) -> None:
        self._acknowledged = True

    def client_leaves(self) -> None:
        """
        The client is about to close the connection.

        Node says so even before the request for which it has opened it.
        """
        self._keep_alive_s = self._idle_s = _FAREWELL_S
        if not self._streams:
            self._idle_since = self.now()
            self._watch_by(self._idle_since + self._idle_s)

    def ping_answered(self, data: bytes) -> None:
        if data == _DRAIN and self._last_stream == _ANY_STREAM and not self._closing:
            # What was on its way when the client was told has arrived.
            self._go_away(self.h2.last_id, ErrorCode.NO_ERROR, "This server is being stopped.")

    def _guard(self, stream: Stream, call: Callable[..., None], *args: Any) -> None:
        """One request's fault is not that of the others."""
        try:
            call(*args)
        except Http2Error:
            raise
        except Exception:
            self._log.failure("a request of HTTP/2 failed")
            stream.abort()

    # What streams call.

    def answered(self, stream: Stream) -> None:
        """All of an answer is sent."""
        code = stream.reset_with
        if code is None and self.h2.streams[stream.id].receiving:
            code = ErrorCode.NO_ERROR
        if code is not None:
            self.h2.reset(stream.id, code)
            self.flush_soon()
        stream.closed = True
        self._forget(stream)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        self.h2.reset(stream.id, code)
        self.flush_soon()
        self._forget(stream)

    def ready(self, stream: Stream) -> None:
        """A stream has something to send."""
        if not stream.queued:
            stream.queued = True
            self._ring.append(stream)
        self._pump()

    def answering(self, stream: Stream) -> None:
        """A request is whole."""
        stream.whole = True
        self.site.bounds.whole(self)

    def watch_upload(self, stream: Stream) -> None:
        """A request waits for its body."""
        self._watch_by(stream.last_progress + self.limits.upload_idle_timeout_s)

    def watch_answer(self) -> None:
        """An answer that is over waits for its client."""
        self._watch_by(self.now() + self.site.http2_limits.flush_timeout_s)

    def flush_soon(self) -> None:
        """Write what there is to send, with what the frames at hand may add to it."""
        if not self._taking:
            self.flush()

    def flush(self) -> None:
        """Write what there is to send."""
        out = self.h2.out
        if not out:
            return
        data = b"".join(out)
        out.clear()
        if self._lost:
            return
        if self.stalled:
            self._backlog += len(data)
            if self._backlog > self.site.http2_limits.max_backlog:
                if not self.refused:
                    self.refused = True
                    self.site.refused("control_flood")
                    self.abort()
                return
        write_now(self.tcp, data)

    def log_refusal(self, status: int, error: ProxyError) -> None:
        self._log.info(
            "{peer} refused with {status} {code}: {message}",
            peer=self.peer_host,
            status=status,
            code=error.code,
            message=error.message,
        )

    def _pump(self) -> None:
        """Let those who can send take turns."""
        ring, h2 = self._ring, self.h2
        while ring and not self.stalled and h2.window > 0:
            stream = ring.popleft()
            if stream.send_some():
                ring.append(stream)
            else:
                stream.queued = False

    def _refuse_stream(self, id: int) -> None:
        self.h2.reset(id, ErrorCode.REFUSED_STREAM)
        self.h2.forget(id)

    def _forget(self, stream: Stream) -> None:
        self.h2.forget(stream.id)
        if self._streams.pop(stream.id, None) is not None:
            self.site.bounds.over(self, whole=stream.whole)
        if self._streams or self._closing:
            return
        if self._leaving:
            self._close()
        else:
            self._idle_since = self.now()
            self._idle_s = self._keep_alive_s
            self._watch_by(self._idle_since + self._idle_s)

    def _lose_streams(self, reason: Failure) -> None:
        streams = deque(self._streams.values())
        self._streams.clear()
        for stream in streams:
            stream.closed = True

        def tell(stream: Stream) -> None:
            self._guard(stream, stream.lost, reason)

        if streams:
            self.site.turns.do(_Lost(streams, tell, self.site.turns))

    # The end.

    def _go_away(self, last: int, code: ErrorCode, text: str) -> None:
        self._last_stream = last
        self.flush()
        self.h2.go_away(last, code, text)
        write_now(self.tcp, self.h2.out.pop())

    def _close(self, code: ErrorCode = ErrorCode.NO_ERROR, text: str = "") -> None:
        """Send no more, and wait until the client has read it all."""
        if self._closing:
            return
        self._closing = True
        self._ring.clear()
        self._go_away(self.h2.last_id, code, text)
        if self.refused:
            self._throw_out()
            return
        wait_s = self.limits.linger_s
        if self.stalled:
            wait_s = self.site.http2_limits.flush_timeout_s
        self._close_by = self.now() + wait_s
        self._watch_by(self._close_by)
        half = getattr(self.transport, "loseWriteConnection", None)
        if half is not None and not self.secure:
            half()
        else:
            # TLS has no half of a connection; it waits for the client's word by itself.
            self.tcp.unregisterProducer()
            self.tcp.loseConnection()

    def _throw_out(self) -> None:
        """See Note [Ends]."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self.tcp.unregisterProducer()
        self.tcp.pauseProducing()
        half = getattr(self.transport, "loseWriteConnection", None)
        if half is not None and not self.secure:
            half()
        self.site.cut_off(self)

    # Time.

    def _watch_by(self, deadline: float) -> None:
        """Have a look at the time then, or before."""
        if self._lost:
            return
        timer = self._timer
        if timer is None or not timer.active():
            self._timer = self.site.clock.callLater(max(0.0, deadline - self.now()), self._look)
        elif deadline < timer.getTime():
            timer.reset(max(0.0, deadline - self.now()))

    def _look(self) -> None:
        """What is late? What will be?"""
        self._timer = None
        now = self.now()
        for deadline, late in list(self._deadlines()):
            if self._lost:
                return
            if deadline <= now:
                late()
        if not self._lost:
            rest = [deadline for deadline, _ in self._deadlines()]
            if rest:
                self._watch_by(max(min(rest), now + 0.001))

    def _deadlines(self) -> Iterator[tuple[float, Callable[[], None]]]:
        if self._closing:
            yield self._close_by, self._give_up
            return
        limits = self.limits
        if not self._acknowledged:
            yield self._began + limits.header_timeout_s, self._unacknowledged
        if self._incomplete_since is not None:
            yield self._incomplete_since + limits.header_timeout_s, self._too_slow
        if not self._streams:
            yield self._idle_since + self._idle_s, self._unused
        for stream in self._streams.values():
            if stream.finished:
                flush_s = self.site.http2_limits.flush_timeout_s
                yield stream.last_progress + flush_s, stream.abort
            elif stream.uploading and not stream.upload_paused:
                yield (
                    stream.last_progress + limits.upload_idle_timeout_s,
                    lambda stream=stream: stream.refuse(  # type: ignore[misc]
                        BodyTimeout("The body of the request did not arrive in time.")
                    ),
                )

    def _give_up(self) -> None:
        if self.refused or self.secure or self.stalled:
            self.abort()
        else:
            # The kernel may still have something for a slow client.
            self.refused = True
            self.tcp.unregisterProducer()
            self.tcp.loseConnection()
        self._close_by = self.now() + self.limits.linger_s

    def _unused(self) -> None:
        self._close(ErrorCode.NO_ERROR, "There was no request for a while.")

    def _unacknowledged(self) -> None:
        self._acknowledged = True
        self._fail(
            Http2Error(ErrorCode.SETTINGS_TIMEOUT, "SETTINGS were not acknowledged in time.")
        )

    def _too_slow(self) -> None:
        """A frame is not whole. What has been asked is answered, and nothing more taken."""
        self._incomplete_since = None
        self.site.refused("header")
        self._go_away(
            self.h2.last_id,
            ErrorCode.NO_ERROR,
            "A request did not arrive in time.",
        )
        self._leaving = True
        if not self._streams:
            self._close()


class _Lost:
    """
    Streams of a connection that is lost: their requests are told so one after the other, as
    there is time for it, and nothing of them is sent meanwhile.
    """

    # Each of them costs us or somebody something, so they wait in no line of an address.
    address = ""

    def __init__(
        self, streams: deque[Stream], tell: Callable[[Stream], None], turns: Turns
    ) -> None:
        self._streams = streams
        self._tell = tell
        self._turns = turns

    def work(self) -> Left:
        while True:
            self._tell(self._streams.popleft())
            if not self._streams:
                return Left.NOTHING
            if self._turns.is_over:
                return Left.TIME
