"""
The server's side of an HTTP/2 connection without its I/O: frames, the states of streams,
SETTINGS, windows (RFC 9113).

Note [What ends what]
---------------------
What is wrong with one stream is an error of that stream, wherever the RFC leaves the choice:
an error of the connection would end the requests of others. What a header means is not
looked at here, so a malformed request is none of these errors.

A frame for a stream that is over may have been on its way when it ended:

================  =============================  ==========================================
stream            DATA                           HEADERS
================  =============================  ==========================================
we have reset it  nothing                        RST_STREAM(STREAM_CLOSED)
its client has    RST_STREAM(STREAM_CLOSED)      RST_STREAM(STREAM_CLOSED)
ended by both     RST_STREAM(STREAM_CLOSED)      the connection ends with STREAM_CLOSED
long forgotten    RST_STREAM(STREAM_CLOSED)      the connection ends with PROTOCOL_ERROR
never begun       the connection ends with PROTOCOL_ERROR; for HEADERS it begins
================  =============================  ==========================================

PRIORITY is checked for its form only, there are no priorities any more (5.3.2). RST_STREAM and
WINDOW_UPDATE for a stream that is over are nothing. A client's GOAWAY says that it wants no
streams from us, which it never gets; it is no end of anything (the AWS SDK for JavaScript
sends it with its request).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from typing import Protocol

from txbedrock.core.headers import HeaderList
from txbedrock.inbound.http2_hpack import BadBlock, BlockTooLarge, Decoder, Encoder

__all__ = [
    "HEADERS",
    "MAX_FRAME",
    "PREFACE",
    "Connection",
    "ErrorCode",
    "Excess",
    "Flow",
    "Http2Error",
    "Receiver",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a connection begins with."""

MAX_FRAME = 16 * 1024
"""What every client takes, and all that we take."""

_DEFAULT_WINDOW = 2**16 - 1
_MAX_WINDOW = 2**31 - 1
_MAX_FRAGMENTS = 32
# There are not ten of them.
_MAX_SETTINGS = 64
# Of so many closed streams it is remembered how they ended.
_MAX_CLOSED = 1024

(
    _DATA, HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS,
    _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION,
) = range(10)  # fmt: skip

_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
_PADDED = 0x8
_PRIORITIZED = 0x20

_ENABLE_PUSH = 2
_MAX_CONCURRENT_STREAMS = 3
_INITIAL_WINDOW_SIZE = 4
_MAX_FRAME_SIZE = 5
_MAX_HEADER_LIST_SIZE = 6
_ENABLE_CONNECT_PROTOCOL = 8

# Length (in two parts), type, flags, stream.
_header = Struct(">HBBBL")
_pack_header, _unpack_header = _header.pack, _header.unpack_from
_pair = Struct(">LL").pack
_setting = Struct(">HL")


class ErrorCode(IntEnum):
    """Of RST_STREAM and GOAWAY (RFC 9113, 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Http2Error(Exception):
    """
    An error of the connection: it ends.

    :param text: for the client.
    """

    kind = "protocol_error"
    """As it is counted."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class Excess(Http2Error):
    """
    Too much of something.

    :param kind: as it is counted.
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(ErrorCode.ENHANCE_YOUR_CALM, text)
        self.kind = kind


def _protocol_error(text: str) -> Http2Error:
    return Http2Error(ErrorCode.PROTOCOL_ERROR, text)


def _wrong_size() -> Http2Error:
    return Http2Error(ErrorCode.FRAME_SIZE_ERROR, "A frame has not the size of its type.")


class Receiver(Protocol):
    """Who is told what frames mean, when the connection already is as they want it."""

    def request_received(self, id: int, headers: HeaderList, size: int, ended: bool) -> None:
        """
        :param size: of the headers, with 32 bytes for each.
        :param ended: there is no body.
        """

    def data_received(self, id: int, data: bytes, size: int, ended: bool) -> None:
        """:param size: what it took of the window, padding included."""

    def trailers_received(self, id: int, headers: HeaderList) -> None:
        """The request has ended."""

    def stream_reset(self, id: int) -> None:
        """By the client, or because of an error of its."""

    def window_opened(self, id: int) -> None:
        """Of a stream; 0: of the connection."""

    def settings_changed(self) -> None:
        """The client's; windows of streams may be others."""

    def settings_acknowledged(self) -> None: ...

    def ping_answered(self, data: bytes) -> None: ...

    def client_leaves(self) -> None:
        """It has sent GOAWAY."""

    def count_reset(self) -> None:
        """What is counted is counted before it is handled, to be refused."""

    def count_ping(self) -> None: ...

    def count_settings(self) -> None: ...

    def count_control(self) -> None:
        """Any other frame that carries nothing."""


class _End(IntEnum):
    """How a stream that is over has ended."""

    WHOLE = 0
    RESET = 1
    """By its client."""

    ABANDONED = 2
    """By us."""


class Flow:
    """
    A stream: which sides of it have not ended, and what each may send.

    :ivar receiving: the client has not ended its side.
    :ivar sending: we have not ended ours.
    :ivar room: bytes that the client may send.
    :ivar window: bytes that we may send; below 0 when the client has made it smaller.
    """

    __slots__ = ("end", "receiving", "room", "sending", "window")

    def __init__(self, receiving: bool, room: int, window: int) -> None:
        self.receiving = receiving
        self.sending = True
        self.room = room
        self.window = window
        self.end = _End.WHOLE


class Connection:
    """
    One connection.

    :param max_streams: announced; who keeps it is not looked at here.
    :param max_header_list: announced. Twice as much ends the connection: a list that is too
        long can be answered, but one that is not decoded to its end is the end.
    :param connection_window: bytes that may be under way.
    :ivar out: frames to be sent; who sends them clears it.
    :ivar window: bytes that we may send.
    :ivar last_id: of the streams that the client has begun.
    :ivar data_frames: how many were sent.
    """

    def __init__(
        self, max_streams: int, max_header_list: int, stream_window: int, connection_window: int
    ) -> None:
        self.streams: dict[int, Flow] = {}
        self.window = _DEFAULT_WINDOW
        self.last_id = 0
        self.data_frames = 0
        self._decoder = Decoder(2 * max_header_list)
        self._encoder = Encoder()
        self._data = b""
        self._at = 0
        self._preface = PREFACE
        self._greeted = False
        # A header block in several frames, whose it is, and the flags of its first.
        self._fragments: list[bytes] = []
        self._fragments_id = self._fragments_flags = 0
        self._closed: dict[int, _End] = {}
        self._stream_room = stream_window
        self._stream_window = _DEFAULT_WINDOW
        self._room = max(connection_window, _DEFAULT_WINDOW)
        self._max_room = self._room
        self._taken = 0
        self.out: list[bytes] = []
        self._send_frame(
            _SETTINGS,
            0,
            0,
            _setting.pack(_ENABLE_PUSH, 0)
            + _setting.pack(_MAX_CONCURRENT_STREAMS, max_streams)
            + _setting.pack(_INITIAL_WINDOW_SIZE, stream_window)
            + _setting.pack(_MAX_HEADER_LIST_SIZE, max_header_list),
        )
        if self._room > _DEFAULT_WINDOW:
            self._update_window(0, self._room - _DEFAULT_WINDOW)

    # What comes.

    def add_data(self, data: bytes) -> None:
        """
        Something was received; :meth:`take` handles it.

        :raises Http2Error: it does not begin like HTTP/2.
        """
        if self._preface:
            begun = min(len(data), len(self._preface))
            if data[:begun] != self._preface[:begun]:
                raise _protocol_error("This is not HTTP/2.")
            self._preface = self._preface[begun:]
            data = data[begun:]
        rest = self._data[self._at :]
        self._data = rest + data if rest else data
        self._at = 0

    @property
    def incomplete(self) -> bool:
        """Is there a part of a frame or of a header block?"""
        return self._at < len(self._data) or bool(self._fragments)

    @property
    def continued(self) -> int:
        """Frames of a header block that has not ended."""
        return len(self._fragments)

    def take(self, receiver: Receiver) -> int | None:
        """
        Handle one frame, or all of a header block.

        :returns: its type, ``HEADERS`` for a header block; None if there is no whole one.
        :raises Http2Error:
        """
        while True:
            data, at = self._data, self._at
            begin = at + 9
            if begin > len(data):
                self._data, self._at = data[at:], 0
                return None
            high, low, kind, flags, id = _unpack_header(data, at)
            id &= 0x7FFFFFFF
            end = begin + (high << 8 | low)
            if end > begin + MAX_FRAME:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "A frame is too long.")
            handle, of_stream = _KINDS[kind] if kind < len(_KINDS) else _UNKNOWN
            if of_stream is not None and of_stream != (id > 0):
                raise _protocol_error("A frame is on a stream that it cannot be on.")
            if self._fragments and (kind != _CONTINUATION or id != self._fragments_id):
                raise _protocol_error("A header block has not ended.")
            if end > len(data):
                self._data, self._at = data[at:], 0
                return None
            if not self._greeted:
                if kind != _SETTINGS or flags & _ACK:
                    raise _protocol_error("The first frame must be SETTINGS.")
                self._greeted = True
            self._at = end
            handle(self, receiver, flags, id, data[begin:end])
            if not self._fragments:
                return HEADERS if kind == _CONTINUATION else kind

    def _data_frame(self, receiver: Receiver, flags: int, id: int, payload: bytes) -> None:
        size = len(payload)
        data = _unpadded(payload) if flags & _PADDED else payload
        ended = bool(flags & _END_STREAM)
        flow = self.streams.get(id)
        if flow is None or not (data or ended):
            receiver.count_control()
        self._take_room(size)
        if flow is None or not flow.receiving:
            if flow is None:
                self._must_have_begun(id)
            if flow is not None and flow.sending:
                self._stream_error(receiver, id, ErrorCode.STREAM_CLOSED)
            elif self._closed.get(id) is not _End.ABANDONED:
                self._send_reset(id, ErrorCode.STREAM_CLOSED)
            return
        flow.room -= size
        if flow.room < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "More than a stream's window.")
        if ended:
            flow.receiving = False
        receiver.data_received(id, data, size, ended)

    def _take_room(self, size: int) -> None:
        """
        The connection's window is open again at once, as one stream must not hold up
        others; the client is told when it is half of it.
        """
        self._room -= size
        if self._room < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "More than the window.")
        self._taken += size
        if self._taken * 2 >= self._max_room:
            self._room += self._taken
            self._update_window(0, self._taken)
            self._taken = 0

    def _headers_frame(self, receiver: Receiver, flags: int, id: int, payload: bytes) -> None:
        if flags & _PADDED:
            payload = _unpadded(payload)
        if flags & _PRIORITIZED:
            if len(payload) < 5:
                raise _wrong_size()
            payload = payload[5:]
        if flags & _END_HEADERS:
            self._header_block(receiver, flags, id, payload)
        else:
            self._fragments.append(payload)
            self._fragments_id, self._fragments_flags = id, flags

    def _continuation_frame(self, receiver: Receiver, flags: int, id: int, payload: bytes) -> None:
        fragments = self._fragments
        if not fragments:
            raise _protocol_error("CONTINUATION continues no header block.")
        fragments.append(payload)
        if len(fragments) > _MAX_FRAGMENTS:
            raise Excess("control_flood", "A header block is in too many frames.")
        if flags & _END_HEADERS:
            block = b"".join(fragments)
            fragments.clear()
            self._header_block(receiver, self._fragments_flags, id, block)

    def _header_block(self, receiver: Receiver, flags: int, id: int, block: bytes) -> None:
        # First of all, or no other block could be decoded.
        try:
            headers, size = self._decoder.decode(block)
        except BlockTooLarge:
            raise Excess("header_list", "The header of a request is far too large.") from None
        except BadBlock:
            raise Http2Error(
                ErrorCode.COMPRESSION_ERROR, "A header block could not be decoded."
            ) from None
        ended = bool(flags & _END_STREAM)
        flow = self.streams.get(id)
        if flow is not None:
            self._more_headers(receiver, id, flow, headers, ended)
            return
        if id <= self.last_id or not id & 1:
            self._late_headers(id)
            return
        self.last_id = id
        self.streams[id] = Flow(not ended, self._stream_room, self._stream_window)
        receiver.request_received(id, headers, size, ended)

    def _more_headers(
        self, receiver: Receiver, id: int, flow: Flow, headers: HeaderList, ended: bool
    ) -> None:
        if flow.receiving:
            if ended:
                flow.receiving = False
                receiver.trailers_received(id, headers)
            else:
                self._stream_error(receiver, id, ErrorCode.PROTOCOL_ERROR)
        elif flow.sending:
            self._stream_error(receiver, id, ErrorCode.STREAM_CLOSED)
        else:
            raise Http2Error(ErrorCode.STREAM_CLOSED, f"HEADERS on stream {id}, which is over.")

    def _late_headers(self, id: int) -> None:
        end = self._closed.get(id)
        if end is None:
            raise _protocol_error(f"Stream {id} cannot begin.")
        if end is _End.WHOLE:
            raise Http2Error(ErrorCode.STREAM_CLOSED, f"HEADERS on stream {id}, which is over.")
        self._send_reset(id, ErrorCode.STREAM_CLOSED)

    def _priority_frame(self, receiver: Receiver, flags: int, id: int, payload: bytes) -> None:
        receiver.count_control()
        if len(payload) != 5:
            self._stream_error(receiver, id, ErrorCode.FRAME_SIZE_ERROR)

    def _rst_stream_frame(self, receiver: Receiver, flags: int, id: int, payload: bytes) -> None:
        receiver.count_reset()
        if len(payload) != 4:
            raise _wrong_size()
        flow = self.streams.get(id)
        if flow is None:
            self._must_have_begun(id)
        elif flow.receiving or flow.sending:
            flow.receiving = flow.sending = False
            flow.end = _End.RESET
            receiver.stream_reset(id)

    def _settings_frame(self, receiver: Receiver, flags: int, id: int, payload: bytes) -> None:
        receiver.count_settings()
        if flags & _ACK:
            if payload:
                raise _wrong_size()
            receiver.settings_acknowledged()
            return
        if len(payload) % _setting.size:
            raise _wrong_size()
        if len(payload) > _MAX_SETTINGS * _setting.size:
            # A window that changes does so for all streams, each time.
            raise Excess("settings_flood", "Too many settings in one frame.")
        for key, value in _setting.iter_unpack(payload):
            self._apply(key, value)
        self._send_frame(_SETTINGS, _ACK, 0)
        receiver.settings_changed()

    def _apply(self, key: int, value: int) -> None:
        if key == _INITIAL_WINDOW_SIZE:
            more = value - self._stream_window
            self._stream_window = value
            if value > _MAX_WINDOW or any(
                flow.window + more > _MAX_WINDOW for flow in self.streams.values()
            ):
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "A window is too large.")
            for flow in self.streams.values():
                flow.window += more
        elif (key in (_ENABLE_PUSH, _ENABLE_CONNECT_PROTOCOL) and value > 1) or (
            key == _MAX_FRAME_SIZE and not 2**14 <= value < 2**24
        ):
            raise _protocol_error("A setting has a value that it cannot have.")

    def _push_promise_frame(self, receiver: Receiver, flags: int, id: int, payload: bytes) -> None:
        raise _protocol_error("A client cannot push.")

    def _ping_frame(self, receiver: Receiver, flags: int, id: int, payload: bytes) -> None:
        receiver.count_ping()
        if len(payload) != 8:
            raise _wrong_size()
        if flags & _ACK:
            receiver.ping_answered(payload)
        else:
            self._send_frame(_PING, _ACK, 0, payload)

    def _goaway_frame(self, receiver: Receiver, flags: int, id: int, payload: bytes) -> None:
        receiver.count_control()
        if len(payload) < 8:
            raise _wrong_size()
        receiver.client_leaves()

    def _window_update_frame(
        self, receiver: Receiver, flags: int, id: int, payload: bytes
    ) -> None:
        receiver.count_control()
        if len(payload) != 4:
            raise _wrong_size()
        more = int.from_bytes(payload, "big") & _MAX_WINDOW
        if not id:
            self.window += more
            if not more or self.window > _MAX_WINDOW:
                raise Http2Error(
                    ErrorCode.FLOW_CONTROL_ERROR if more else ErrorCode.PROTOCOL_ERROR,
                    "A window cannot be opened so far.",
                )
            receiver.window_opened(0)
            return
        flow = self.streams.get(id)
        if flow is None or not more:
            self._stream_error(receiver, id, ErrorCode.PROTOCOL_ERROR)
        elif flow.window + more > _MAX_WINDOW:
            self._stream_error(receiver, id, ErrorCode.FLOW_CONTROL_ERROR)
        else:
            flow.window += more
            receiver.window_opened(id)

    def _unknown_frame(self, receiver: Receiver, flags: int, id: int, payload: bytes) -> None:
        receiver.count_control()

    def _must_have_begun(self, id: int) -> None:
        if id > self.last_id or not id & 1:
            raise _protocol_error(f"A frame for stream {id}, which is not open.")

    def _stream_error(self, receiver: Receiver, id: int, code: ErrorCode) -> None:
        flow = self.streams.get(id)
        if flow is None:
            self._must_have_begun(id)
        elif flow.receiving or flow.sending:
            self.reset(id, code)
            receiver.stream_reset(id)

    # What goes.

    def send_head(self, id: int, status: int, headers: HeaderList, end: bool) -> None:
        """
        The head of an answer, or an informational one.

        :param headers: as in HTTP/1.1; what HTTP/2 has not is left out.
        :param end: there is nothing after it.
        """
        block = self._encoder.encode(status, headers)
        flags = 0
        if end:
            flags = _END_STREAM
            self.streams[id].sending = False
        if len(block) <= MAX_FRAME:
            self._send_frame(HEADERS, flags | _END_HEADERS, id, block)
            return
        kind = HEADERS
        while len(block) > MAX_FRAME:
            self._send_frame(kind, flags, id, block[:MAX_FRAME])
            block = block[MAX_FRAME:]
            kind, flags = _CONTINUATION, 0
        self._send_frame(kind, _END_HEADERS, id, block)

    def send_data(self, id: int, flow: Flow, data: bytes, end: bool = False) -> None:
        """A piece for which there is room in both windows, in as few frames as it takes."""
        while len(data) > MAX_FRAME:
            self.send_data(id, flow, data[:MAX_FRAME])
            data = data[MAX_FRAME:]
        size = len(data)
        flow.window -= size
        self.window -= size
        self.data_frames += 1
        if end:
            flow.sending = False
        # A flag of it is the same as True.
        self.out.append(_pack_header(size >> 8, size & 255, _DATA, end, id) + data)

    def reset(self, id: int, code: ErrorCode) -> None:
        """Reset a stream, even one that has ended on both sides."""
        flow = self.streams[id]
        if flow.receiving or flow.sending:
            flow.receiving = flow.sending = False
            flow.end = _End.ABANDONED
        self._send_reset(id, code)

    def forget(self, id: int) -> None:
        """A stream is over."""
        flow = self.streams.pop(id, None)
        if flow is not None:
            closed = self._closed
            closed[id] = flow.end
            if len(closed) > _MAX_CLOSED:
                del closed[next(iter(closed))]

    def open_window(self, id: int, size: int) -> None:
        """So much of a stream has been taken."""
        self.streams[id].room += size
        self._update_window(id, size)

    def ping(self, data: bytes) -> None:
        """:param data: 8 bytes, which come back."""
        self._send_frame(_PING, 0, 0, data)

    def go_away(self, last_id: int, code: ErrorCode, text: str) -> None:
        """Say that no streams after one will be answered."""
        self._send_frame(_GOAWAY, 0, 0, _pair(last_id, code) + text.encode())

    def _send_reset(self, id: int, code: ErrorCode) -> None:
        self._send_frame(_RST_STREAM, 0, id, code.to_bytes(4, "big"))

    def _update_window(self, id: int, size: int) -> None:
        self._send_frame(_WINDOW_UPDATE, 0, id, size.to_bytes(4, "big"))

    def _send_frame(self, kind: int, flags: int, id: int, payload: bytes = b"") -> None:
        size = len(payload)
        self.out.append(_pack_header(size >> 8, size & 255, kind, flags, id) + payload)


def _unpadded(payload: bytes) -> bytes:
    if not payload:
        raise _wrong_size()
    end = len(payload) - payload[0]
    if end < 1:
        raise _protocol_error("A frame has more padding than it is long.")
    return payload[1:end]


_Handle = Callable[[Connection, Receiver, int, int, bytes], None]

# By type: what handles it, and whether it belongs to a stream (None: as it likes).
_KINDS: tuple[tuple[_Handle, bool | None], ...] = (
    (Connection._data_frame, True),
    (Connection._headers_frame, True),
    (Connection._priority_frame, True),
    (Connection._rst_stream_frame, True),
    (Connection._settings_frame, False),
    (Connection._push_promise_frame, True),
    (Connection._ping_frame, False),
    (Connection._goaway_frame, False),
    (Connection._window_update_frame, None),
    (Connection._continuation_frame, True),
)
_UNKNOWN: tuple[_Handle, bool | None] = (Connection._unknown_frame, None)
