"""
HPACK, the compression of headers in HTTP/2 (RFC 7541): of requests as clients write them, of
answers as plainly as it can be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from hpack import HPACKError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

from txbedrock.core.headers import HeaderList

__all__ = ["OF_A_CONNECTION", "BadBlock", "BlockTooLarge", "Decoder", "Encoder"]

OF_A_CONNECTION = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
"""What HTTP/2 has no headers for (RFC 9113, 8.2.2)."""

# What a field takes of a table or of a list, beside its bytes.
_FIELD_SIZE = 32
_TABLE_SIZE = 4096
_FieldLine = tuple[bytes, bytes]

# By index, which begins with 1.
_STATIC: tuple[_FieldLine, ...] = ((b"", b""), *HeaderTable.STATIC_TABLE)
_DYNAMIC = len(_STATIC)


class BadBlock(Exception):
    """A header block that is none. What follows on its connection cannot be decoded."""


class BlockTooLarge(Exception):
    """A header block with too much in it, of which the rest was not decoded."""


class Decoder:
    """
    The header blocks of one side of a connection.

    :param max_size: of a list of headers in bytes, with 32 for each.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._table: deque[_FieldLine] = deque()
        self._held = 0
        self._room = _TABLE_SIZE

    def decode(self, block: bytes) -> tuple[HeaderList, int]:
        """
        :returns: the headers, and their size as ``max_size`` counts it.
        :raises BadBlock:
        :raises BlockTooLarge:
        """
        try:
            return self._decode(block)
        except (HPACKError, IndexError):
            raise BadBlock from None

    def _decode(self, block: bytes) -> tuple[HeaderList, int]:
        # Strings that are short and plain, which most are, are taken here: a call for each
        # would be half of it.
        fields: HeaderList = []
        size = at = 0
        end = len(block)
        while at < end:
            first = block[at]
            at += 1
            if first >= 0x80:
                index = first & 0x7F
                if index == 0x7F:
                    index, at = _integer_from(block, at, 0x7F)
                field = _STATIC[index] if 0 < index < _DYNAMIC else self._field(index)
            else:
                limit = 0x3F if first >= 0x40 else 0x1F if first >= 0x20 else 0x0F
                index = first & limit
                if index == limit:
                    index, at = _integer_from(block, at, limit)
                if limit == 0x1F:
                    if fields:
                        raise BadBlock  # Another size is told before all fields.
                    self._resize(index)
                    continue
                if index:
                    name = (_STATIC[index] if index < _DYNAMIC else self._field(index))[0]
                elif (length := block[at]) < 0x7F:
                    begin = at + 1
                    at = begin + length
                    name = block[begin:at]
                else:
                    name, at = _string_from(block, at)
                if (length := block[at]) < 0x7F:
                    begin = at + 1
                    at = begin + length
                    value = block[begin:at]
                else:
                    value, at = _string_from(block, at)
                field = name, value
                if limit == 0x3F:
                    self._add(field)
            fields.append(field)
            size += _FIELD_SIZE + len(field[0]) + len(field[1])
            if size > self._max_size:
                raise BlockTooLarge
        if at > end:
            raise BadBlock  # The last string is not whole.
        return fields, size

    def _field(self, index: int) -> _FieldLine:
        """Of the table that its client fills."""
        if not index:
            raise BadBlock
        return self._table[index - _DYNAMIC]

    def _add(self, field: _FieldLine) -> None:
        self._table.appendleft(field)
        self._held += _FIELD_SIZE + len(field[0]) + len(field[1])
        self._shrink()

    def _resize(self, room: int) -> None:
        if room > _TABLE_SIZE:
            raise BadBlock
        self._room = room
        self._shrink()

    def _shrink(self) -> None:
        while self._held > self._room:
            name, value = self._table.pop()
            self._held -= _FIELD_SIZE + len(name) + len(value)


def _integer_from(block: bytes, at: int, value: int) -> tuple[int, int]:
    """
    RFC 7541, 5.1: the octets after the first, of which all bits are 1.

    :returns: the number, and where it ends.
    """
    for shift in range(0, 35, 7):
        octet = block[at]
        at += 1
        value += (octet & 0x7F) << shift
        if octet < 0x80:
            return value, at
    raise BadBlock


def _string_from(block: bytes, at: int) -> tuple[bytes, int]:
    """RFC 7541, 5.2: a string, and where it ends, be it after the block."""
    first = block[at]
    at += 1
    size = first & 0x7F
    if size == 0x7F:
        size, at = _integer_from(block, at, size)
    end = at + size
    text = block[at:end]
    return (decode_huffman(text) if first >= 0x80 else text), end


# Answers.


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


_STATUSES = {
    status: bytes((0x80 | index,))
    for index, status in enumerate((200, 204, 206, 304, 400, 404, 500), 8)
}
_INDICES = {name: index for index, (name, _) in reversed(list(enumerate(_STATIC[1:], 1)))}
_LENGTHS = [_integer(length, 127) for length in range(256)]
_MAX_NAMES = 1000


class _Starts(dict[bytes, bytes]):
    """
    How a field begins, by its name in any case; empty if there is no such field in HTTP/2.
    Remembered: answers have few names.
    """

    def __missing__(self, name: bytes) -> bytes:
        lower = name.lower()
        index = _INDICES.get(lower)
        if lower in OF_A_CONNECTION:
            start = b""
        elif index is not None:
            start = _integer(index, 15)
        else:
            start = b"\x00" + _integer(len(lower), 127) + lower
        if len(self) < _MAX_NAMES:
            self[name] = start
        return start


_starts = _Starts()


class Encoder:
    """
    Heads of answers without a table: every field as it is.

    The table would save some bytes of an answer and take longer than all the rest of
    its head: most values are there once, and each is looked for in all of it.

    Source: RFC 7541, 6.2.2 (fields), 6.3 and 4.2 (a table that has no room).
    """

    def __init__(self) -> None:
        self._begin = b"\x20"

    def encode(self, status: int, headers: Iterable[_FieldLine]) -> bytes:
        """
        The first block of a connection says that the table has no room.

        :param headers: as in HTTP/1.1, names in any case.
        """
        block = [self._begin, _STATUSES.get(status) or b"\x08\x03%d" % status]
        self._begin = b""
        for name, value in headers:
            start = _starts[name]
            if start:
                length = len(value)
                block.append(start)
                block.append(_LENGTHS[length] if length < 256 else _integer(length, 127))
                block.append(value)
        return b"".join(block)
