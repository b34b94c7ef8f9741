"""
Of a JSON document of any length, the few members that are wanted.

An answer of 20 MB holds its usage in some hundred bytes, often at the very end.
This finds them while the document passes, in bounded memory, and gives back a
small document of the same shape, to be decoded in the ordinary way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import TypeAlias

import msgspec

__all__ = ["Excerpt", "Take", "Wanted"]


class Take(Enum):
    """What is kept of a member."""

    WHOLE = 1
    """The value as it is."""

    KINDS = 2
    """Of a list only how many values there are: ``""`` for each string, ``0`` for
    any other."""


Wanted: TypeAlias = Mapping[bytes, "Wanted | Take"]
"""Names of the members of an object. A mapping for a name goes further down: into
the object, or into every object of the list."""

_MAX_KEPT_BYTES = 128 * 1024
_MAX_NAME_BYTES = 16 * 1024
_MAX_DEPTH = 512

# Note [Speed]
#
# Nearly all of a long document is skipped, in C: one match of _SKIPPED runs over
# everything up to a bracket that is not closed in this piece, or that is nested
# more than eight deep. The quantifiers are possessive: nothing is remembered for
# going back. What a bracket without its end holds is scanned again from inside of
# it, so no match goes further than _WINDOW. For 64 KiB that is 0.6 ms of dense
# JSON, 0.3 ms of text, next to nothing of base64.
_WINDOW = 8192
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_PLAIN = rb'[^"{}\[\]]*+(?:%b[^"{}\[\]]*+)*+' % _STRING
_LEVEL = _PLAIN
for _ in range(8):
    _LEVEL = rb"%b(?:[{\[]%b[}\]]%b)*+" % (_PLAIN, _LEVEL, _PLAIN)
_SKIPPED = re.compile(_LEVEL, re.DOTALL)
_TEXT = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_SCALAR = re.compile(rb'[^\s,"{}\[\]]*+')
_SPACE = re.compile(rb"\s*+")
_SEPARATORS = re.compile(rb"[\s,]*+")
_NAME = re.compile(rb'[\s,]*+(?:("[^"\\]*+(?:\\.[^"\\]*+)*+")\s*+:|(\}))', re.DOTALL)


class _State(Enum):
    VALUE = 1  # a value comes
    MEMBER = 2  # in an object that is looked into: a name or its end
    ELEMENT = 3  # in a list that is looked into: a value or its end
    NESTED = 4  # in an object or list that is skipped or kept
    TEXT = 5  # in a string that is
    SCALAR = 6  # in a number, true, false or null that is
    OVER = 7


class Excerpt:
    """
    Picks the wanted members out of a document that comes in pieces.

    It is no validator: what is skipped may be anything with balanced brackets.
    Never raises.

    :param wanted: the members of the outermost object.
    """

    __slots__ = (
        "_depth",
        "_escaped",
        "_keeps",
        "_mark",
        "_node",
        "_out",
        "_rest",
        "_stack",
        "_state",
        "complete",
        "problem",
    )

    def __init__(self, wanted: Wanted) -> None:
        self.complete = False
        """The end of the document was seen."""
        self.problem = ""
        """Why something that was wanted is missing."""
        self._out = bytearray()
        self._mark = 0  # of _out: where what is not read to its end begins
        self._stack: list[tuple[bytes, Wanted | Take]] = []  # what is looked into
        self._state = _State.VALUE
        self._node: Wanted | Take | None = wanted  # for the value that comes
        self._keeps = False
        self._depth = 0
        self._escaped = False  # a string was cut behind a backslash
        self._rest = b""  # a name that was cut

    def feed(self, data: bytes) -> None:
        """Read the next piece."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        position, size = 0, len(data)
        while position < size:
            state = self._state
            if state is _State.MEMBER:
                position = self._read_name(data, position)
            elif state is _State.VALUE:
                position = self._begin_value(data, position)
            elif state is _State.ELEMENT:
                position = self._begin_element(data, position)
            elif state is _State.OVER:
                return
            else:
                start = position
                if state is _State.NESTED:
                    position = self._skip_nested(data, position)
                elif state is _State.TEXT:
                    position = self._skip_text(data, position)
                else:
                    position = self._skip_scalar(data, position)
                if self._keeps:
                    self._keep(data[start:position])
                if self._state is _State.VALUE:  # its end
                    self._end_value()

    def result(self) -> bytes:
        """
        What is wanted of what was read, as JSON. A member that was not read to
        its end is not in it.
        """
        out = self._out[: self._mark]
        for closer, _ in reversed(self._stack):
            out = out.removesuffix(b",") + closer
        return bytes(out.removesuffix(b",")) or b"{}"

    # Where values begin

    def _read_name(self, data: bytes, position: int) -> int:
        match = _NAME.match(data, position)
        if match is None:
            rest = data[position:]
            begun = rest.lstrip(b" \t\r\n,")[:1]
            if begun not in b'"' or len(rest) > _MAX_NAME_BYTES:
                self._fail("the answer is not JSON")
            else:
                self._rest = rest
            return len(data)
        if match[2]:
            self._leave()
        else:
            name = match[1]
            wanted = self._stack[-1][1]
            assert not isinstance(wanted, Take)
            self._node = wanted.get(_unescaped(name))
            if self._node is not None:
                self._out += name + b":"
            self._state = _State.VALUE
        return match.end()

    def _begin_element(self, data: bytes, position: int) -> int:
        match = _SEPARATORS.match(data, position)
        assert match is not None
        position = match.end()
        first = data[position : position + 1]
        if not first:
            return position
        if first == b"]":
            self._leave()
            return position + 1
        self._node = self._stack[-1][1]
        self._state = _State.VALUE
        return position

    def _begin_value(self, data: bytes, position: int) -> int:
        match = _SPACE.match(data, position)
        assert match is not None
        position = match.end()
        first = data[position : position + 1]
        if not first:
            return position
        if first in b",:]}":
            self._fail("the answer is not JSON")
            return position
        node, self._keeps = self._node, False
        if node is Take.WHOLE:
            self._keeps = True
        elif node is Take.KINDS and self._stack and self._stack[-1][1] is node:
            self._out += b'"",' if first == b'"' else b"0,"
            if len(self._out) > _MAX_KEPT_BYTES:
                self._fail("a list of the answer is too long to be counted")
                return position
        elif node is not None:
            if first == b"[" or (first == b"{" and node is not Take.KINDS):
                if len(self._stack) >= _MAX_DEPTH:
                    self._fail("the answer is nested too deeply")
                else:
                    self._enter(first, node)
                return position + 1
            # Not what it should be: then neither is it in the excerpt.
            self._out += b"null," if first == b"n" else b"0,"
        if first == b'"':
            self._state, self._escaped, self._depth = _State.TEXT, False, 0
        elif first in b"{[":
            self._state, self._depth = _State.NESTED, 1
        else:
            self._state = _State.SCALAR
            return position
        if self._keeps:
            self._keep(first)
        return position + 1

    def _enter(self, first: bytes, node: Wanted | Take) -> None:
        self._out += first
        self._mark = len(self._out)
        if first == b"{":
            self._stack.append((b"}", node))
            self._state = _State.MEMBER
        else:
            self._stack.append((b"]", node))
            self._state = _State.ELEMENT
        if len(self._out) > _MAX_KEPT_BYTES:
            self._fail("the answer has too many parts")

    def _leave(self) -> None:
        closer, _ = self._stack.pop()
        if self._out.endswith(b","):
            del self._out[-1:]
        self._out += closer + b","
        self._await_next()

    def _end_value(self) -> None:
        if self._keeps:
            self._out += b","
            self._keeps = False
        self._await_next()

    def _await_next(self) -> None:
        self._mark = len(self._out)
        if not self._stack:
            self.complete = True
            self._state = _State.OVER
        elif self._stack[-1][0] == b"}":
            self._state = _State.MEMBER
        else:
            self._state = _State.ELEMENT

    # What is skipped or kept. Each leaves the state at VALUE when the value is over.

    def _skip_nested(self, data: bytes, position: int) -> int:
        size, depth = len(data), self._depth
        while True:
            window = position + _WINDOW
            match = _SKIPPED.match(data, position, window)
            assert match is not None
            position = match.end()
            if position == size:
                break
            if position == window:
                continue
            byte = data[position]
            position += 1
            if byte == 0x22:  # a string that does not end in this piece
                self._state, self._escaped = _State.TEXT, False
                break
            if byte in b"{[":
                depth += 1
                if depth > _MAX_DEPTH:
                    self._fail("the answer is nested too deeply")
                    break
            else:
                depth -= 1
                if not depth:
                    self._state = _State.VALUE
                    break
        self._depth = depth
        return position

    def _skip_text(self, data: bytes, position: int) -> int:
        if self._escaped:
            position += 1
            self._escaped = False
        end = data.find(b'"', position)
        backslash = data.find(b"\\", position, end if end >= 0 else len(data))
        if backslash >= 0:
            match = _TEXT.match(data, backslash)
            assert match is not None
            end = match.end()
            if data[end : end + 1] != b'"':  # the end of the piece, or a backslash there
                self._escaped = end < len(data)
                return len(data)
        elif end < 0:
            return len(data)
        self._state = _State.NESTED if self._depth else _State.VALUE
        return end + 1

    def _skip_scalar(self, data: bytes, position: int) -> int:
        match = _SCALAR.match(data, position)
        assert match is not None
        end = match.end()
        if end < len(data):
            if data[end] in b'"{[':
                self._fail("the answer is not JSON")
            else:
                self._state = _State.VALUE
        return end

    def _keep(self, data: bytes) -> None:
        if len(self._out) + len(data) > _MAX_KEPT_BYTES:
            name = bytes(self._out[self._mark : self._mark + 40]).partition(b":")[0]
            self.problem = (
                f"{name.decode('utf-8', 'replace')} of the answer is too long to be read"
            )
            del self._out[self._mark :]
            self._keeps = False
        else:
            self._out += data

    def _fail(self, problem: str) -> None:
        self.problem = self.problem or problem
        del self._out[self._mark :]
        self._keeps = False
        self._state = _State.OVER


def _unescaped(name: bytes) -> bytes:
    if b"\\" not in name:
        return name[1:-1]
    try:
        return msgspec.json.decode(name, type=str).encode("utf-8", "replace")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return b""
