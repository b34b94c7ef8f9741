"""
HTTP/2 of a client's connection, and the channel of each request on it.

Note [What h2 does, and what is done here]
------------------------------------------
h2 takes frames apart, knows the states of connection and streams, SETTINGS and the
windows. :class:`_Connection` is h2's connection with what a gateway needs otherwise:

- A client's GOAWAY says that it wants no streams from us, which it never gets. h2 takes
  it for the end of everything; the AWS SDK for JavaScript sends it with its request.
- What is wrong with one request is an error of its stream, and is answered like a bad
  request of HTTP/1.1. To h2 most of it is an error of the connection, which would end the
  requests of others. So heads are checked in :func:`_parse_head`, once, and not by h2.
- Frames are handled one by one, so that what h2 knows is so when an event is seen, and
  no more in one turn of the reactor than there is time for (:mod:`txbedrock.inbound.turns`).
- Heads of answers are written by :class:`_PlainHpack`, DATA frames in ``Stream``: what
  h2 would do for each of them again is known to be right there, and costs several times more.

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
from struct import Struct
from typing import TYPE_CHECKING, Any, ClassVar

from h2.config import H2Configuration
from h2.connection import AllowedStreamIDs, ConnectionInputs, H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import (
    FrameDataMissingError,
    NoSuchStreamError,
    ProtocolError,
    StreamClosedError,
)
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings
from h2.stream import StreamClosedBy, StreamState
from hpack import HPACKError, OversizedHeaderListError
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import (
    DataFrame,
    ExtensionFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
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
from txbedrock.inbound.request import Request, new_request_id
from txbedrock.inbound.turns import Left, Turns
from txbedrock.writing import write_now

if TYPE_CHECKING:
    from txbedrock.inbound.site import ClientLimits, Site

__all__ = ["PREFACE", "Http2Channel", "Http2Limits", "Stream"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a connection begins with."""

_LAST_WRITES_S = 0.05

# How long a client that has said that it goes may take to do so.
_FAREWELL_S = 1.0

# Every client takes frames of this size, and smaller ones would make streams fairer only.
_MAX_FRAME = 16 * 1024
_ANY_STREAM = 2**31 - 1

# A connection's share of the reactor's time, in frames; a request is worth many.
_QUANTUM = 128
_HEADERS_COST = 32
_MAX_CONTINUATIONS = 32


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
    """WINDOW_UPDATE beyond two for each frame of data that it got, PRIORITY, unknown
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


class _Excess(ProtocolError):
    """
    Too much of something.

    :param kind: as it is counted.
    """

    error_code = ErrorCodes.ENHANCE_YOUR_CALM

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class _BadCompression(ProtocolError):
    error_code = ErrorCodes.COMPRESSION_ERROR


class _Frames(FrameBuffer):
    """What h2 does for many frames of a header block in one go is bounded in each."""

    def _update_header_buffer(self, f: Frame | None) -> Frame | None:
        whole = super()._update_header_buffer(f)
        if len(self._headers_buffer) > _MAX_CONTINUATIONS:
            raise _Excess("control_flood", "A header block is in too many frames.")
        return whole


class _Connection(H2Connection):
    """See Note [What h2 does, and what is done here]."""

    # Of each closed stream it is remembered how it was closed.
    MAX_CLOSED_STREAMS = 1024

    def __init__(self, limits: Http2Limits) -> None:
        super().__init__(
            H2Configuration(
                client_side=False,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: limits.max_concurrent_streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: limits.max_header_list,
                SettingCodes.INITIAL_WINDOW_SIZE: limits.stream_window,
                SettingCodes.ENABLE_CONNECT_PROTOCOL: 0,
            },
        )
        # A list that is longer than allowed can be answered; one that is much longer is
        # not decoded to its end, and so nothing after it can be.
        self.decoder.max_header_list_size = 2 * limits.max_header_list
        self.encoder = _PlainHpack()  # type: ignore[assignment]
        self.incoming_buffer = _Frames(server=True)
        self._greeted = False

    @property
    def incomplete(self) -> bool:
        """Is there a part of a frame or of a header block?"""
        buffer = self.incoming_buffer
        return bool(buffer._data or buffer._headers_buffer)

    @property
    def continued(self) -> int:
        """Frames of a header block that has not ended."""
        return len(self.incoming_buffer._headers_buffer)

    def frames(self) -> Iterator[Frame]:
        """Take the whole frames out of what was received."""
        buffer = self.incoming_buffer
        buffer.max_frame_size = self.max_inbound_frame_size
        while True:
            try:
                frame = next(buffer)
            except StopIteration:
                return
            except ProtocolError as error:
                frame = self._malformed_frame(error)
            if not self._greeted:
                if not isinstance(frame, SettingsFrame) or "ACK" in frame.flags:
                    raise ProtocolError("The first frame must be SETTINGS.") from None
                self._greeted = True
            yield frame

    def _malformed_frame(self, error: ProtocolError) -> Frame:
        """
        A frame that could not be taken apart.

        :returns: what is left of it, if that is its stream's error only.
        :raises ProtocolError: it is the connection's.
        """
        buffer = self.incoming_buffer
        if not isinstance(error, _Excess) and len(buffer._data) >= 9:
            head = memoryview(bytes(buffer._data[:9]))
            try:
                frame, size = Frame.parse_frame_header(head)
            except HyperframeError:
                raise ProtocolError("A frame is on a stream that it cannot be on.") from None
            if frame.stream_id and (
                (isinstance(frame, WindowUpdateFrame) and size == 4)
                or isinstance(frame, PriorityFrame)
            ):
                if not buffer._headers_buffer:
                    del buffer._data[: 9 + size]
                    return frame
            elif isinstance(frame, SettingsFrame) and "ACK" in frame.flags and size:
                raise FrameDataMissingError("An acknowledgement of SETTINGS has no payload.")
        raise error

    def events(self, frame: Frame) -> list[Event]:
        """What a frame means. What h2 answers is in :meth:`data_to_send`."""
        return self._receive_frame(frame)

    def reset(self, stream_id: int, code: ErrorCodes) -> None:
        """Reset a stream, even one that has ended on both sides."""
        if self.streams[stream_id].closed:
            self._prepare_for_sending([RstStreamFrame(stream_id, error_code=code)])
        else:
            self.reset_stream(stream_id, code)

    def _stream_error(
        self, stream_id: int, code: ErrorCodes = ErrorCodes.PROTOCOL_ERROR
    ) -> tuple[list[Frame], list[Event]]:
        try:
            stream = self._get_stream_by_id(stream_id)
        except StreamClosedError:
            return [], []
        events: list[Event] = [
            StreamReset(stream_id=stream_id, error_code=code, remote_reset=False)
        ]
        return stream.reset_stream(code), events

    def close(self) -> None:
        """
        No frame comes any more. The table of what to call for each refers to the connection:
        without it, it is gone at once and no work for the garbage collector.
        """
        self._frame_dispatch_table.clear()

    def forget(self, stream_id: int) -> None:
        """A stream is closed."""
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            self._closed_streams[stream_id] = stream.closed_by

    def _receive_headers_frame(self, frame: HeadersFrame) -> tuple[list[Frame], list[Event]]:
        try:
            headers = list(self.decoder.decode(bytes(frame.data), raw=True))
        except OversizedHeaderListError:
            raise _Excess("header_list", "The header of a request is far too large.") from None
        except (HPACKError, IndexError):
            raise _BadCompression("A header block could not be decoded.") from None
        ended = "END_STREAM" in frame.flags
        stream = self.streams.get(frame.stream_id)
        if not ended and stream is not None and stream.state_machine.state is StreamState.OPEN:
            return self._stream_error(frame.stream_id)  # Trailers are the end.
        self.state_machine.process_input(ConnectionInputs.RECV_HEADERS)
        stream = self._get_or_create_stream(frame.stream_id, AllowedStreamIDs.ODD)
        frames, events = stream.receive_headers((), ended, None)
        events[0].headers = headers  # type: ignore[attr-defined]
        return frames, events

    def _receive_window_update_frame(
        self, frame: WindowUpdateFrame
    ) -> tuple[list[Frame], list[Event]]:
        if frame.stream_id and not frame.window_increment:
            return self._stream_error(frame.stream_id)
        return super()._receive_window_update_frame(frame)

    def _receive_priority_frame(
        self, frame: HeadersFrame | PriorityFrame
    ) -> tuple[list[Frame], list[Event]]:
        if frame.body_len != 5:
            return self._stream_error(frame.stream_id, ErrorCodes.FRAME_SIZE_ERROR)
        return [], []  # RFC 9113, 5.3.2: there are no priorities any more.

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        return [], [ConnectionTerminated()]

    def _receive_rst_stream_frame(self, frame: RstStreamFrame) -> tuple[list[Frame], list[Event]]:
        if frame.stream_id > self.highest_inbound_stream_id or not frame.stream_id % 2:
            raise ProtocolError(f"RST_STREAM for stream {frame.stream_id}, which is not open.")
        return super()._receive_rst_stream_frame(frame)

    def _handle_data_on_closed_stream(
        self, events: list[Event], exc: StreamClosedError, frame: DataFrame
    ) -> tuple[list[Frame], list[Event]]:
        frames, events = super()._handle_data_on_closed_stream(events, exc, frame)
        closed_by = self._closed_streams.get(frame.stream_id)
        if closed_by is StreamClosedBy.SEND_RST_STREAM and not exc._events:
            # Sent before the client knew; it has been told once.
            frames = [each for each in frames if not isinstance(each, RstStreamFrame)]
        return frames, events


_STATUSES = {
    status: bytes([0x80 | index])
    for index, status in enumerate((b"200", b"204", b"206", b"304", b"400", b"404", b"500"), 8)
}
_STATIC_NAMES = {
    name: index
    for index, name in (
        (8, b":status"),
        (18, b"accept-ranges"),
        (20, b"access-control-allow-origin"),
        (21, b"age"),
        (22, b"allow"),
        (24, b"cache-control"),
        (25, b"content-disposition"),
        (26, b"content-encoding"),
        (27, b"content-language"),
        (28, b"content-length"),
        (29, b"content-location"),
        (30, b"content-range"),
        (31, b"content-type"),
        (33, b"date"),
        (34, b"etag"),
        (36, b"expires"),
        (44, b"last-modified"),
        (45, b"link"),
        (46, b"location"),
        (53, b"retry-after"),
        (54, b"server"),
        (55, b"set-cookie"),
        (56, b"strict-transport-security"),
        (59, b"vary"),
        (60, b"via"),
        (61, b"www-authenticate"),
    )
}
_MAX_NAMES = 1000


class _PlainHpack:
    """
    Heads of answers as HPACK without a table: every field as it is.

    The table would save some bytes of an answer and take longer than all the rest of
    its head: most values are there once, and each is looked for in all of it.

    Source: RFC 7541, 6.2.2 (fields), 6.3 and 4.2 (a table that has no room).
    """

    # How a field with this name begins.
    _names: ClassVar[dict[bytes, bytes]] = {}

    # What h2 sets when the client allows another size: none is less.
    header_table_size = 0

    def __init__(self) -> None:
        self._begin = b"\x20"

    def encode(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The first block of a connection says that the table has no room."""
        block = [self._begin]
        self._begin = b""
        names = self._names
        for name, value in headers:
            if name == b":status" and value in _STATUSES:
                block.append(_STATUSES[value])
                continue
            start = names.get(name)
            if start is None:
                start = _name(name)
                if len(names) < _MAX_NAMES:
                    names[name] = start
            block.append(start)
            block.append(_integer(len(value), 127))
            block.append(value)
        return b"".join(block)


def _name(name: bytes) -> bytes:
    index = _STATIC_NAMES.get(name)
    if index is not None:
        return _integer(index, 15)
    return b"\x00" + _integer(len(name), 127) + name


def _integer(value: int, limit: int) -> bytes:
    """RFC 7541, 5.1, where the bits before are 0."""
    if value < limit:
        return bytes((value,))
    octets = [limit]
    value -= limit
    while value >= 128:
        octets.append(value & 127 | 128)
        value >>= 7
    octets.append(value)
    return bytes(octets)


@dataclass(slots=True)
class _Head:
    """The head of a request, as HTTP/1.1 would have it."""

    method: bytes
    path: bytes
    fields: list[tuple[bytes, bytes]]
    length: int | None
    expects: bool


_is_name = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+").fullmatch
_is_method = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}").fullmatch
# No space and nothing that ends a line: the path goes into lines of HTTP/1.1.
_is_path = re.compile(rb"/[\x21-\x7e\x80-\xff]*|\*").fullmatch
_is_authority = re.compile(rb"[\x21-\x3f\x41-\x7e]*").fullmatch
_is_bad_value = re.compile(rb"[\0\r\n]|\A[ \t]|[ \t]\Z").search
_is_length = re.compile(rb"[0-9]{1,18}").fullmatch

_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path"))
_OF_A_CONNECTION = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)


_BAD_VALUE = "A header's value must not hold a line's end or begin or end with white space."


def _check_field(name: bytes, value: bytes) -> None:
    """
    :raises BadHttp: it is malformed, in a header or in trailers (RFC 9113, 8.2).
    """
    if not _is_name(name):
        raise BadHttp("A header's name must be of letters, digits and '-', in lower case.")
    if _is_bad_value(value):
        raise BadHttp(_BAD_VALUE)
    if name in _OF_A_CONNECTION or (name == b"te" and value.lower() != b"trailers"):
        raise BadHttp(f"HTTP/2 has no {name.decode()} header: leave it out.")


def _parse_head(headers: Iterable[tuple[bytes, bytes]]) -> _Head:
    """
    :raises BadHttp: it is malformed (RFC 9113, 8.1.1 to 8.3.1).
    """
    pseudo: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    cookies: list[bytes] = []
    host: bytes | None = None
    length: int | None = None
    expects = False
    for name, value in headers:
        if name[:1] == b":":
            if _is_bad_value(value):
                raise BadHttp(_BAD_VALUE)
            if name not in _PSEUDO:
                raise BadHttp("A request's only pseudo-headers are those of RFC 9113, 8.3.1.")
            if name in pseudo:
                raise BadHttp(f"The pseudo-header {name.decode()} must be there once.")
            if fields or cookies:
                raise BadHttp("Pseudo-headers must come before all other headers.")
            pseudo[name] = value
            continue
        _check_field(name, value)
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
        fields.append((name, value))
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
        self.reset_with: ErrorCodes | None = None
        self.last_progress = channel.now()
        # To see who the client is; what ends the stream is here.
        self.transport = channel.tcp
        self.secure = channel.secure
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

    @property
    def peer_host(self) -> str:
        """Of the connection."""
        return self._channel.peer_host

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
            self._channel.send_head(self, [(b":status", b"100")])

    def received(self, data: bytes, size: int) -> None:
        """
        A piece of the body.

        :param size: what it takes of the window, padding included.
        """
        self.last_progress = self._channel.now()
        if self._request is None:
            return  # Refused: its window stays shut.
        self._arrived += len(data)
        if self._head.length is not None and self._arrived > self._head.length:
            self.malformed(BadHttp("The body is longer than the content-length header says."))
            return
        self._unopened += size
        if data:
            self._request.feed(data)
        self._open_window()

    def ended(self) -> None:
        """The request is whole."""
        self.uploading = False
        request = self._request
        if request is None:
            return
        head = self._head
        if head.length is not None and self._arrived != head.length:
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
            self._channel.h2.increment_flow_control_window(size, self.id)

    # Its answer.

    def writeHeaders(
        self, version: bytes, code: int, reason: bytes, headers: HeaderList, data: bytes
    ) -> None:
        """
        Send a head, and the first piece of the body after it.

        :param data: empty if there is none yet, or never.
        """
        if self.closed:
            return
        head = [(b":status", b"%d" % code)]
        whole = self._head.method == b"HEAD" or code in (204, 304)
        for name, value in headers:
            lower = name.lower()
            if lower in _OF_A_CONNECTION:
                continue
            head.append((lower, value))
            if lower == b"content-length" and value == b"0":
                whole = True
        self._end_sent = whole
        self._channel.send_head(self, head, self._end_sent)
        self.write(data)

    def write(self, data: bytes) -> None:
        if self.closed or self._end_sent or not data:
            return
        channel, buffer = self._channel, self._buffer
        size = len(data)
        if (
            not buffer
            and size <= _MAX_FRAME
            and not channel.stalled
            and size <= self._flow.outbound_flow_control_window
            and size <= channel.h2.outbound_flow_control_window
        ):
            self._send(data)
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
            _MAX_FRAME,
            self._flow.outbound_flow_control_window,
            channel.h2.outbound_flow_control_window,
        )
        if size <= 0 or self.closed:
            return False
        data = bytes(buffer[:size])
        del buffer[:size]
        self.last_progress = channel.now()
        if self.finished and not buffer:
            self._end_sent = True
            channel.send_last(self, data)
            return False
        self._send(data)
        if self._paused and len(buffer) * 2 <= self.site.http2_limits.max_buffered:
            self._paused = False
            if self._producer is not None:
                self._producer.resumeProducing()
        return bool(buffer)

    def _send(self, data: bytes) -> None:
        # As h2 would do it, see Note [What h2 does, and what is done here].
        size = len(data)
        self._flow.outbound_flow_control_window -= size
        self._channel.send_data(self.id, data, size)

    def requestDone(self, request: object) -> None:
        """The answer is whole."""
        self._request = None
        self._finish()

    def _finish(self) -> None:
        self.finished = True
        self.last_progress = self._channel.now()
        if self.closed:
            return
        if self._end_sent:
            self._channel.answered(self)
        elif not self._buffer:
            self._end_sent = True
            self._channel.send_last(self, b"")
        else:
            self._channel.watch_answer()

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
        self._channel.reset(self, ErrorCodes.INTERNAL_ERROR)
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
        head = [(b":status", b"%d" % reply.status)]
        head += [(name.lower(), value) for name, value in reply.headers]
        head.append((b"content-length", b"%d" % len(reply.body)))
        self._end_sent = self._head.method == b"HEAD" or not reply.body
        self._channel.log_refusal(reply.status, error)
        self._channel.send_head(self, head, self._end_sent)
        self.write(reply.body)
        self._drop_request(Failure(ConnectionDone()))
        self._finish()

    def malformed(self, error: BadHttp) -> None:
        """Refuse a request that is none."""
        if not self.refused:
            self.reset_with = ErrorCodes.PROTOCOL_ERROR
            self._channel.count_reset()
            self.refuse(error)


# Length (in two parts), type, flags, stream.
_data_header = Struct(">HBBBL").pack


@implementer(IPushProducer)
class Http2Channel(Protocol):
    """
    An HTTP/2 connection of a client.

    Each request is a :class:`Stream`; what is public here is for them or for the site.
    """

    site: Site
    refused = False
    stalled = False
    secure = False
    tcp: Any
    _log = Logger()

    def __init__(self, site: Site) -> None:
        limits = site.http2_limits
        self.site = site
        self.h2 = _Connection(limits)
        self._streams: dict[int, Stream] = {}
        self._ring: deque[Stream] = deque()
        self._backlog = 0
        self._sent = 0
        self._credited = 0
        self._unopened = 0
        # Whether it is going to be closed when there is no stream, or is being closed.
        self._leaving = False
        self._last_stream = _ANY_STREAM
        self._closing = False
        self._close_by = 0.0
        self._lost = False
        self.address = ""
        """Under which it is counted."""

        self._behind = False
        self._quantum = _QUANTUM
        self._acknowledged = False
        self._timer: IDelayedCall | None = None
        self._began = self._idle_since = self._arrived = self.now()
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
        self.h2.initiate_connection()
        more = self.site.http2_limits.connection_window - self.h2.inbound_flow_control_window
        if more > 0:
            self.h2.increment_flow_control_window(more)
        self.flush()
        self._watch_by(self._began + self._idle_s)
        if self.site.draining:
            self.loseConnection()

    def dataReceived(self, data: bytes) -> None:
        if self._closing:
            return  # Read so that the last answer is not lost in a reset.
        # What is too fast was sent too fast, however late there is time for it.
        self._arrived = self.now()
        try:
            self.h2.incoming_buffer.add_data(data)
        except ProtocolError as error:
            self._fail(error)
            return
        if not self._behind and not self.site.turns.do(self) and not self._lost:
            self._behind = True
            self.tcp.pauseProducing()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost = self._closing = True
        self._ring.clear()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._lose_streams(reason)
        self.site.disconnected(self)
        self.h2.close()
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
        # First for any stream, as some may be on their way; see _drained.
        self._go_away(_ANY_STREAM, ErrorCodes.NO_ERROR, "This server is being stopped.")
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
        try:
            for frame in h2.frames():
                whole = True
                kind = frame.__class__
                count = _COUNTED.get(kind)
                if count is not None:
                    count(self, frame)
                for event in h2.events(frame):
                    take = _TAKEN.get(event.__class__)
                    if take is not None:
                        take(self, event)
                if self._closing:
                    break
                self._quantum -= _HEADERS_COST if kind is HeadersFrame else 1
                if self._quantum <= 0:
                    self._quantum = _QUANTUM
                    left = Left.MUCH
                    break
                if turns.is_over:
                    left = Left.TIME
                    break
        except (ProtocolError, HyperframeError) as error:
            self._fail(error)
            return Left.NOTHING
        if self._lost:
            return Left.NOTHING
        self.flush()
        if not h2.incomplete:
            self._incomplete_since = None
            return Left.NOTHING
        if whole or self._incomplete_since is None:
            self._incomplete_since = self.now()
            self._watch_by(self._incomplete_since + self.limits.header_timeout_s)
        return left

    def _fail(self, error: ProtocolError | HyperframeError) -> None:
        """What the client sends makes no sense, or is too much."""
        if isinstance(error, ProtocolError):
            code = ErrorCodes(error.error_code)
        else:
            code = ErrorCodes.PROTOCOL_ERROR
        text = str(error) or "This is not HTTP/2."
        kind = error.kind if isinstance(error, _Excess) else "protocol_error"
        if isinstance(error, NoSuchStreamError):
            text = f"A frame for stream {error.stream_id}, which is not open."
        self.site.refused(kind)
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

    def count_reset(self, cost: float = 1.0) -> None:
        """:raises _Excess: there were too many."""
        if self._resets.runs_over(self._arrived, cost):
            raise _Excess("rapid_reset", "Too many requests were given up or refused at once.")

    def _count_reset_frame(self, frame: Frame) -> None:
        self.count_reset()

    def _count_ping(self, frame: Frame) -> None:
        if self._pings.runs_over(self._arrived):
            raise _Excess("ping_flood", "Too many PING frames.")

    def _count_settings(self, frame: Frame) -> None:
        if self._settings.runs_over(self._arrived):
            raise _Excess("settings_flood", "Too many SETTINGS frames.")

    def _count_control(self, frame: Frame) -> None:
        if self._control.runs_over(self._arrived):
            # Each frame that it got lets a client open two windows.
            self._control.level -= 2 * (self._sent - self._credited)
            self._credited = self._sent
            if self._control.runs_over(self._arrived, 0):
                raise _Excess("control_flood", "Too many frames that carry nothing.")

    def _count_data(self, frame: Frame) -> None:
        assert isinstance(frame, DataFrame)
        if frame.stream_id not in self._streams or (
            not frame.data and "END_STREAM" not in frame.flags
        ):
            self._count_control(frame)

    # Events.

    def _request_received(self, event: RequestReceived) -> None:
        id, headers = event.stream_id, event.headers
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
        size = 32 * len(headers)
        for name, value in headers:
            size += len(name) + len(value)
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
            self._guard(stream, stream.begin, event.stream_ended is not None)
            if event.stream_ended is None:
                self.watch_upload(stream)

    def _data_received(self, event: DataReceived) -> None:
        size = event.flow_controlled_length
        self._unopened += size
        if self._unopened * 2 >= self.site.http2_limits.connection_window:
            size, self._unopened = self._unopened, 0
            self.h2.increment_flow_control_window(size)
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            self._guard(stream, stream.received, event.data, event.flow_controlled_length)

    def _trailers_received(self, event: TrailersReceived) -> None:
        stream = self._streams.get(event.stream_id)
        try:
            for name, value in event.headers:
                _check_field(name, value)
        except BadHttp as error:
            if stream is not None:
                stream.malformed(error)

    def _stream_ended(self, event: StreamEnded) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            self._guard(stream, stream.ended)

    def _stream_reset(self, event: StreamReset) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            self._forget(stream)
            stream.lost(Failure(ConnectionLost("The client has reset the stream.")))
        else:
            self.h2.forget(event.stream_id)

    def _window_updated(self, event: WindowUpdated) -> None:
        if event.stream_id:
            stream = self._streams.get(event.stream_id)
            if stream is not None and stream.waiting:
                self.ready(stream)
        else:
            self._pump()

    def _settings_changed(self, event: RemoteSettingsChanged) -> None:
        # A client counts with its new windows from the acknowledgement on.
        self.flush()
        if SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
            for stream in list(self._streams.values()):
                if stream.waiting:
                    self.ready(stream)

    def _settings_acknowledged(self, event: SettingsAcknowledged) -> None:
        self._acknowledged = True

    def _terminated(self, event: ConnectionTerminated) -> None:
        """
        The client is about to close the connection.

        Node says so even before the request for which it has opened it.
        """
        self._keep_alive_s = self._idle_s = _FAREWELL_S
        if not self._streams:
            self._idle_since = self.now()
            self._watch_by(self._idle_since + self._idle_s)

    def _ping_answered(self, event: PingAckReceived) -> None:
        if event.ping_data == _DRAIN and self._last_stream == _ANY_STREAM and not self._closing:
            # What was on its way when the client was told has arrived.
            self._go_away(
                self.h2.highest_inbound_stream_id,
                ErrorCodes.NO_ERROR,
                "This server is being stopped.",
            )

    def _guard(self, stream: Stream, call: Callable[..., None], *args: Any) -> None:
        """One request's fault is not that of the others."""
        try:
            call(*args)
        except ProtocolError:
            raise
        except Exception:
            self._log.failure("a request of HTTP/2 failed")
            stream.abort()

    # What streams call.

    def send_head(
        self, stream: Stream, head: list[tuple[bytes, bytes]], end: bool = False
    ) -> None:
        self.h2.send_headers(stream.id, head, end_stream=end)
        self.flush()

    def send_data(self, id: int, data: bytes, size: int) -> None:
        """A frame for which there is room in both windows; the stream has taken its own."""
        self.h2.outbound_flow_control_window -= size
        self._sent += 1
        self.tcp.write(_data_header(size >> 8, size & 255, 0, 0, id) + data)

    def send_last(self, stream: Stream, data: bytes) -> None:
        if data:
            self.h2.send_data(stream.id, data, end_stream=True)
        else:
            self.h2.end_stream(stream.id)
        self._sent += 1
        self.answered(stream)

    def answered(self, stream: Stream) -> None:
        """All of an answer is sent."""
        code = stream.reset_with
        if code is None and not self.h2.streams[stream.id].closed:
            code = ErrorCodes.NO_ERROR
        if code is not None:
            self.h2.reset(stream.id, code)
        stream.closed = True
        self.flush()
        self._forget(stream)

    def reset(self, stream: Stream, code: ErrorCodes) -> None:
        self.h2.reset_stream(stream.id, code)
        self.flush()
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

    def flush(self) -> None:
        """Write what h2 has."""
        data = self.h2.data_to_send()
        if not data or self._lost:
            return
        if self.stalled:
            self._backlog += len(data)
            if self._backlog > self.site.http2_limits.max_backlog:
                if not self.refused:
                    self.refused = True
                    self.site.refused("control_flood")
                    self.abort()
                return
        self.tcp.write(data)

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
        while ring and not self.stalled and h2.outbound_flow_control_window > 0:
            stream = ring.popleft()
            if stream.send_some():
                ring.append(stream)
            else:
                stream.queued = False

    def _refuse_stream(self, id: int) -> None:
        self.h2.reset_stream(id, ErrorCodes.REFUSED_STREAM)
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

    def _go_away(self, last: int, code: ErrorCodes, text: str) -> None:
        frame = GoAwayFrame(0, last_stream_id=last, error_code=code)
        frame.additional_data = text.encode()
        self._last_stream = last
        self.flush()
        write_now(self.tcp, frame.serialize())

    def _close(self, code: ErrorCodes = ErrorCodes.NO_ERROR, text: str = "") -> None:
        """Send no more, and wait until the client has read it all."""
        if self._closing:
            return
        self._closing = True
        self._ring.clear()
        self._go_away(self.h2.highest_inbound_stream_id, code, text)
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
        self._close(ErrorCodes.NO_ERROR, "There was no request for a while.")

    def _unacknowledged(self) -> None:
        self._acknowledged = True
        error = ProtocolError("SETTINGS were not acknowledged in time.")
        error.error_code = ErrorCodes.SETTINGS_TIMEOUT
        self._fail(error)

    def _too_slow(self) -> None:
        """A frame is not whole. What has been asked is answered, and nothing more taken."""
        self._incomplete_since = None
        self.site.refused("header")
        self._go_away(
            self.h2.highest_inbound_stream_id,
            ErrorCodes.NO_ERROR,
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


_DRAIN = b"draining"

_COUNTED: dict[type[Frame], Callable[[Http2Channel, Frame], None]] = {
    DataFrame: Http2Channel._count_data,
    RstStreamFrame: Http2Channel._count_reset_frame,
    PingFrame: Http2Channel._count_ping,
    SettingsFrame: Http2Channel._count_settings,
    WindowUpdateFrame: Http2Channel._count_control,
    PriorityFrame: Http2Channel._count_control,
    ExtensionFrame: Http2Channel._count_control,
}

_TAKEN: dict[type[Event], Callable[[Http2Channel, Any], None]] = {
    RequestReceived: Http2Channel._request_received,
    DataReceived: Http2Channel._data_received,
    TrailersReceived: Http2Channel._trailers_received,
    StreamEnded: Http2Channel._stream_ended,
    StreamReset: Http2Channel._stream_reset,
    WindowUpdated: Http2Channel._window_updated,
    RemoteSettingsChanged: Http2Channel._settings_changed,
    SettingsAcknowledged: Http2Channel._settings_acknowledged,
    ConnectionTerminated: Http2Channel._terminated,
    PingAckReceived: Http2Channel._ping_answered,
}
