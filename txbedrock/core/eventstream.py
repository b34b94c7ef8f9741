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
from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import Struct
from struct import error as _StructError
from typing import TypeAlias
from uuid import UUID
from zlib import crc32

__all__ = [
    "MAX_HEADERS_BYTES",
    "MAX_PAYLOAD_BYTES",
    "Decoder",
    "EventStreamError",
    "Frame",
    "FrameScanner",
    "HeaderValue",
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


def _is_prelude(lengths: bytes, total: int, headers_length: int, checksum: int) -> bool:
    return crc32(lengths) == checksum and _lengths_are_possible(total, headers_length)


class FrameScanner:
    """
    Where frames begin and end, for a stream that passes through untouched.

    Reads lengths and prelude checksums only, keeps at most 11 bytes, and never
    raises: after a wrong prelude it is :attr:`desynced` for good.
    """

    __slots__ = ("_partial", "_skip", "at_boundary", "desynced", "frames")

    def __init__(self) -> None:
        self.frames = 0
        """Complete frames seen."""
        self.at_boundary = True
        """True at the start and exactly between two frames."""
        self.desynced = False
        """True once these bytes turned out to be no event stream."""
        self._skip = 0  # bytes to come of the current frame
        self._partial = b""  # of the next prelude

    def feed(self, data: bytes) -> None:
        """Note the next bytes of the stream."""
        if self.desynced:
            return
        size = len(data)
        position = self._skip
        if position > size:
            self._skip = position - size
            return
        if position:
            self.frames += 1
            self._skip = 0
        elif self._partial:
            kept = len(self._partial)
            head = self._partial + data[: 12 - kept]
            if len(head) < 12:
                self._partial = head
                return
            total, headers_length, checksum = _PRELUDE.unpack(head)
            if not _is_prelude(head[:8], total, headers_length, checksum):
                self._desync()
                return
            self._partial = b""
            position = total - kept
            if position > size:
                self._skip = position - size
                return
            self.frames += 1
        # Here ``position`` is where a frame begins.
        frames = 0
        while size - position >= 12:
            total, headers_length, checksum = _PRELUDE.unpack_from(data, position)
            if crc32(data[position : position + 8]) != checksum or not _lengths_are_possible(
                total, headers_length
            ):
                self.frames += frames
                self._desync()
                return
            position += total
            if position > size:
                self.frames += frames
                self.at_boundary = False
                self._skip = position - size
                return
            frames += 1
        self.frames += frames
        self._partial = data[position:]
        self.at_boundary = not self._partial

    def _desync(self) -> None:
        self.desynced = True
        self.at_boundary = False
        self._partial = b""
