"""
AWS event-stream frames (``application/vnd.amazon.eventstream``).

Note [Frame]
------------
All integers are big-endian::

    total length   u32   of the whole frame
    headers length u32
    prelude CRC    u32   CRC-32 of the 8 bytes before
    headers
    payload
    message CRC    u32   CRC-32 of everything before

A header is: name length u8, name, type u8, value. Types: 0 true, 1 false,
2 i8, 3 i16, 4 i32, 5 i64, 6 bytes with u16 length, 7 string with u16 length,
8 timestamp (i64, milliseconds since 1970), 9 UUID (16 bytes).

Source: Smithy, "Amazon Event Stream Specification"; the limits are botocore's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from struct import Struct
from struct import error as _StructError
from typing import Protocol, TypeAlias
from uuid import UUID
from zlib import crc32

__all__ = [
    "MAX_HEADERS_BYTES",
    "MAX_PAYLOAD_BYTES",
    "Decoder",
    "Digest",
    "EventStreamError",
    "Frame",
    "FrameScanner",
    "HeaderValue",
    "Selection",
    "encode",
    "error_frame",
    "exception_frame",
]

MAX_HEADERS_BYTES = 128 * 1024
MAX_PAYLOAD_BYTES = 24 * 1024 * 1024

HeaderValue: TypeAlias = bool | int | bytes | str | UUID
"""A header's value; a timestamp is an int, milliseconds since 1970."""

_PRELUDE = Struct(">III")
_LENGTHS = Struct(">II")
_U32 = Struct(">I")
_U16 = Struct(">H")
_INTEGERS = {2: Struct(">b"), 3: Struct(">h"), 4: Struct(">i"), 5: Struct(">q"), 8: Struct(">q")}
_OVERHEAD = 16  # prelude and message CRC
_MAX_STRING = 0x7FFF  # AWS's C and Java decoders read the length as signed


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame."""

    headers: dict[str, HeaderValue]
    payload: bytes = field(repr=False)


class EventStreamError(ValueError):
    """
    Bytes that are not an event stream, or a frame that cannot be encoded.

    :param frames: what the same call of :meth:`Decoder.feed` had decoded before.
    """

    def __init__(self, message: str, frames: tuple[Frame, ...] = ()) -> None:
        super().__init__(message)
        self.frames = frames


# Encoding


def encode(headers: Mapping[str, str], payload: bytes) -> bytes:
    """
    One frame with string headers.

    :raises EventStreamError: if a name, a value, the headers or the payload
        are too long.
    """
    parts = []
    for name, value in headers.items():
        raw_name, raw_value = name.encode(), value.encode()
        if not 0 < len(raw_name) < 256:
            raise EventStreamError("a header's name must have 1 to 255 bytes")
        if len(raw_value) > _MAX_STRING:
            raise EventStreamError(f"header {name!r} has more than {_MAX_STRING} bytes")
        parts.append(
            b"%c%b\x07%b%b" % (len(raw_name), raw_name, _U16.pack(len(raw_value)), raw_value)
        )
    block = b"".join(parts)
    if len(block) > MAX_HEADERS_BYTES:
        raise EventStreamError(f"the headers have more than {MAX_HEADERS_BYTES} bytes")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise EventStreamError(f"the payload has more than {MAX_PAYLOAD_BYTES} bytes")
    lengths = _LENGTHS.pack(_OVERHEAD + len(block) + len(payload), len(block))
    message = b"%b%b%b%b" % (lengths, _U32.pack(crc32(lengths)), block, payload)
    return message + _U32.pack(crc32(message))


def exception_frame(exception_type: str, message: str) -> bytes:
    """
    A modelled exception in a stream.

    :param exception_type: as the service model spells it, as in
        ``throttlingException``; SDKs give an unknown one an empty code.
    """
    return encode(
        {
            ":message-type": "exception",
            ":exception-type": exception_type,
            ":content-type": "application/json",
        },
        json.dumps({"message": message}).encode(),
    )


def error_frame(code: str, message: str) -> bytes:
    """
    An error in a stream, with any code: SDKs raise it as it is.

    :param message: cut where it is longer than a header can hold.
    """
    cut = message.encode("utf-8", "replace")[:_MAX_STRING].decode("utf-8", "ignore")
    return encode({":message-type": "error", ":error-code": code, ":error-message": cut}, b"")


# Decoding


def _lengths_are_possible(total: int, headers_length: int) -> bool:
    return (
        headers_length <= MAX_HEADERS_BYTES
        and 0 <= total - headers_length - _OVERHEAD <= MAX_PAYLOAD_BYTES
    )


@lru_cache(maxsize=1024)
def _lengths(prelude: bytes) -> tuple[int, int] | None:
    """
    What a prelude says: the length of the whole frame and of its headers. Many frames of
    a stream have the same one.

    :returns: None if its checksum is wrong, or the lengths are impossible.
    """
    total, headers_length, checksum = _PRELUDE.unpack(prelude)
    if crc32(prelude[:8]) != checksum or not _lengths_are_possible(total, headers_length):
        return None
    return total, headers_length


class Decoder:
    """
    Event-stream bytes to frames, both checksums checked.

    Holds at most one incomplete frame.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed = _PRELUDE.size
        self._headers_length = 0
        self._failed: str | None = None
        self._last_block = b""
        self._last_headers: dict[str, HeaderValue] = {}

    @property
    def at_boundary(self) -> bool:
        """True before the first frame and exactly between two."""
        return not self._buffer and self._failed is None

    def feed(self, data: bytes) -> list[Frame]:
        """
        Decode what is complete.

        :raises EventStreamError: if this is no event stream; ``frames`` holds
            those before the fault. Every later call raises the same.
        """
        if self._failed is not None:
            raise EventStreamError(self._failed)
        buffer = self._buffer
        buffer += data
        frames: list[Frame] = []
        position = 0
        try:
            while len(buffer) - position >= self._needed:
                if self._needed == _PRELUDE.size:
                    self._read_prelude(position)
                else:
                    end = position + self._needed
                    frames.append(self._read_frame(position, end))
                    position = end
                    self._needed = _PRELUDE.size
        except EventStreamError as error:
            self._failed = str(error)
            buffer.clear()
            raise EventStreamError(self._failed, tuple(frames)) from None
        del buffer[:position]
        return frames

    def _read_prelude(self, start: int) -> None:
        total, headers_length, checksum = _PRELUDE.unpack_from(self._buffer, start)
        if crc32(self._buffer[start : start + 8]) != checksum:
            raise EventStreamError("the prelude's checksum is wrong")
        if not _lengths_are_possible(total, headers_length):
            raise EventStreamError("a frame's lengths are impossible or beyond the limits")
        self._needed = total  # at least 16, so never taken for a prelude
        self._headers_length = headers_length

    def _read_frame(self, start: int, end: int) -> Frame:
        with memoryview(self._buffer) as view:
            if crc32(view[start : end - 4]) != _U32.unpack_from(view, end - 4)[0]:
                raise EventStreamError("a frame's checksum is wrong")
            middle = start + _PRELUDE.size + self._headers_length
            block = bytes(view[start + _PRELUDE.size : middle])
            payload = bytes(view[middle : end - 4])
        # The frames of one stream mostly have one of few header blocks.
        if block != self._last_block:
            self._last_headers = _decode_headers(block)
            self._last_block = block
        return Frame(dict(self._last_headers), payload)


def _decode_headers(block: bytes) -> dict[str, HeaderValue]:
    headers: dict[str, HeaderValue] = {}
    position = 0
    try:
        while position < len(block):
            length = block[position]
            name = _take(block, position + 1, length).decode()
            kind = block[position + 1 + length]
            position += 2 + length
            value: HeaderValue
            if kind < 2:
                value = kind == 0
            elif kind in _INTEGERS:
                (value,) = _INTEGERS[kind].unpack_from(block, position)
                position += _INTEGERS[kind].size
            elif kind in (6, 7):
                (length,) = _U16.unpack_from(block, position)
                raw = _take(block, position + 2, length)
                value = raw if kind == 6 else raw.decode()
                position += 2 + length
            elif kind == 9:
                value = UUID(bytes=_take(block, position, 16))
                position += 16
            else:
                raise EventStreamError(f"header type {kind} does not exist")
            if not name or name in headers:
                raise EventStreamError("a header's name is empty or comes twice")
            headers[name] = value
    except (IndexError, _StructError):
        raise EventStreamError("a header is cut off") from None
    except UnicodeDecodeError:
        raise EventStreamError("a header is not UTF-8") from None
    return headers


def _take(block: bytes, start: int, length: int) -> bytes:
    end = start + length
    if end > len(block):
        raise IndexError
    return block[start:end]


# Scanning


_MAX_KNOWN = 256
_MAX_KNOWN_BYTES = 1024


class Selection:
    """
    The events of a stream that are wanted, by their type.

    It remembers whole header blocks, of which a service has few: share one
    between all streams of an operation.
    """

    __slots__ = ("_types", "known")

    def __init__(self, *event_types: str) -> None:
        self._types = frozenset(event_types)
        self.known: dict[bytes, bool] = {}

    def decide(self, block: bytes) -> bool:
        """Is the frame with this header block wanted? One that cannot be read is not."""
        try:
            headers = _decode_headers(block)
        except EventStreamError:
            return False
        wanted = (
            headers.get(":event-type") in self._types
            and headers.get(":message-type", "event") == "event"
        )
        if len(self.known) < _MAX_KNOWN and len(block) <= _MAX_KNOWN_BYTES:
            self.known[block] = wanted
        return wanted


class Digest(Protocol):
    """Takes a payload that is too long to be held, and stands for it. Never raises."""

    def feed(self, data: bytes) -> None:
        """The next piece of the payload."""

    def result(self) -> bytes:
        """What is given in the payload's place."""


class FrameScanner:
    """
    Where frames begin and end, for a stream that passes through untouched; and
    the payloads of those that are wanted.

    Reads lengths and prelude checksums, and header blocks if something is wanted;
    all else is skipped without a copy. Holds at most one header block and a wanted
    payload of ``longest`` bytes. Never raises: after a wrong prelude it is
    :attr:`desynced` for good.

    :param selection: whose payloads are wanted; None: nobody's.
    :param digest: makes what a payload of more than ``longest`` bytes goes
        through; without it such a payload is passed over.
    """

    __slots__ = (
        "_digest",
        "_left",
        "_longest",
        "_make_digest",
        "_partial",
        "_pieces",
        "_selection",
        "at_boundary",
        "desynced",
        "frames",
    )

    def __init__(
        self,
        selection: Selection | None = None,
        digest: Callable[[], Digest] | None = None,
        longest: int = 32 * 1024,
    ) -> None:
        self.frames = 0
        """Complete frames seen."""
        self.at_boundary = True
        """True at the start and exactly between two frames."""
        self.desynced = False
        """True once these bytes turned out to be no event stream."""
        self._selection = selection
        self._make_digest = digest
        self._longest = longest
        self._partial = b""  # of the next prelude, or of prelude and headers
        self._left = 0  # bytes to come of the current frame
        self._pieces: list[bytes] | None = None  # of its payload, if it is wanted
        self._digest: Digest | None = None  # instead of the pieces

    def feed(self, data: bytes) -> list[bytes]:
        """
        Note the next bytes of the stream.

        :returns: the wanted payloads that are complete now, in their order.
        """
        if self.at_boundary and len(data) >= _OVERHEAD:
            # Is it exactly one frame whose payload nobody wants? Most pieces are.
            lengths = _lengths(data[:12])
            if lengths is not None and lengths[0] == len(data):
                selection = self._selection
                if selection is None or selection.known.get(data[12 : 12 + lengths[1]]) is False:
                    self.frames += 1
                    return []
        payloads: list[bytes] = []
        if self.desynced or not data:
            return payloads
        position = self._left
        if position:
            if position > len(data):
                if self._pieces is not None or self._digest is not None:
                    self._take(data)
                self._left = position - len(data)
                return payloads
            if self._pieces is not None or self._digest is not None:
                payloads.append(self._take_last(data[:position]))
            self._left = 0
            self.frames += 1
        elif self._partial:
            data = self._partial + data
            self._partial = b""
        # Here ``position`` is where a frame begins.
        size = len(data)
        selection = self._selection
        frames = 0
        while size - position >= 12:
            lengths = _lengths(data[position : position + 12])
            if lengths is None:
                self.frames += frames
                self._desync()
                return payloads
            total, headers_length = lengths
            end = position + total
            if selection is not None:
                start = position + 12 + headers_length
                if start > size:
                    break
                block = data[position + 12 : start]
                wanted = selection.known.get(block)
                if wanted is None:
                    wanted = selection.decide(block)
                if wanted:
                    if end <= size and end - start - 4 <= self._longest:
                        payloads.append(data[start : end - 4])
                    elif self._begin(end - start - 4):
                        self._left = end - start
                        if end <= size:
                            payloads.append(self._take_last(data[start:end]))
                            self._left = 0
                        else:
                            self._take(data[start:])
            if end > size:
                self.frames += frames
                self.at_boundary = False
                self._left = end - size
                return payloads
            position = end
            frames += 1
        self.frames += frames
        self._partial = data[position:]
        self.at_boundary = not self._partial
        return payloads

    # The payload of a wanted frame that is not in one piece, or too long for one.
    # _left is what was to come of the frame before the piece that is taken.

    def _begin(self, length: int) -> bool:
        if length <= self._longest:
            self._pieces = []
        elif self._make_digest is not None:
            self._digest = self._make_digest()
        else:
            return False
        return True

    def _take(self, data: bytes) -> None:
        of_payload = self._left - 4
        if of_payload < len(data):
            data = data[: max(0, of_payload)]
        if self._digest is not None:
            self._digest.feed(data)
        elif self._pieces is not None:
            self._pieces.append(data)

    def _take_last(self, data: bytes) -> bytes:
        self._take(data)
        payload = b"".join(self._pieces or ())
        if self._digest is not None:
            payload = self._digest.result()
        self._digest = self._pieces = None
        return payload

    def _desync(self) -> None:
        self.desynced = True
        self.at_boundary = False
        self._partial = b""
