"""
Which headers go up to AWS, which come down to the client.

Everything passes except what belongs to one connection, what authenticated
the client, and what the gateway sets itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = [
    "NO_HEADERS",
    "HeaderList",
    "Indexed",
    "downstream_headers",
    "first_values",
    "header",
    "read_answer",
    "upstream_headers",
]

HeaderList = list[tuple[bytes, bytes]]
"""Headers in order, names in any case, one entry a line on the wire."""

_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)

_NOT_UPSTREAM = _HOP_BY_HOP | frozenset(
    (
        # Set anew for the connection to AWS.
        b"host",
        b"content-length",
        b"expect",
        b"http2-settings",
        # Whatever may carry the client's key or signature.
        b"authorization",
        b"api-key",
        b"x-api-key",
        b"x-goog-api-key",
        b"ocp-apim-subscription-key",
        b"x-amz-security-token",
        b"x-amz-date",
        b"x-amz-content-sha256",
        b"x-amz-region-set",
        b"cookie",
    )
)

# The gateway's own vocabulary on requests: it speaks to us, not to AWS.
_OWN_PREFIX = b"x-litellm-"


_KEPT, _SIGNED, _DROPPED, _CONNECTION = range(4)


class _Kinds(dict[bytes, int]):
    """
    What becomes of a header by its name as it was written, remembered: clients and AWS
    use few names, each in one way of writing it.
    """

    def __init__(
        self, dropped: frozenset[bytes], prefix: bytes | None = None, signs: bool = False
    ) -> None:
        super().__init__()
        self._dropped = dropped
        self._prefix = prefix
        self._signs = signs

    def __missing__(self, name: bytes) -> int:
        lower = name.lower()
        kind = _KEPT
        if lower == b"connection":
            kind = _CONNECTION
        elif lower in self._dropped or (self._prefix and lower.startswith(self._prefix)):
            kind = _DROPPED
        elif self._signs and _is_signed(lower):
            kind = _SIGNED
        if len(self) < _REMEMBERED:
            self[name] = kind
        return kind


# Whoever invents names fills it once.
_REMEMBERED = 4096

_UP = _Kinds(_NOT_UPSTREAM, _OWN_PREFIX, signs=True)
_DOWN = _Kinds(_HOP_BY_HOP | {b"content-length"})


def _named(connection: list[bytes]) -> set[bytes]:
    """What ``Connection`` names is hop-by-hop, too (RFC 9110, 7.6.1). In lower case."""
    if _USUAL_TOKENS.issuperset(connection):
        return set()
    named = {token.strip().lower() for token in b",".join(connection).split(b",")}
    return named if named - _USUAL_TOKENS else set()


_USUAL_TOKENS = frozenset((b"", b"close", b"keep-alive", b"Close", b"Keep-Alive"))


def upstream_headers(
    headers: HeaderList, extra_secret: bytes | None = None
) -> tuple[HeaderList, HeaderList]:
    """
    The client's headers as they go to AWS, before host and signature are added.

    :param extra_secret: lower-case name of one more header that carries keys.
    :returns: they, and those of them that the signature covers; neither is to be changed.
    """
    kept: HeaderList = []
    signed: HeaderList = []
    connection: list[bytes] = []
    for pair in headers:
        kind = _UP[pair[0]]
        if kind == _DROPPED:
            continue
        if kind == _CONNECTION:
            connection.append(pair[1])
            continue
        kept.append(pair)
        if kind == _SIGNED:
            signed.append(pair)
    named = _named(connection) if connection else set()
    if extra_secret is not None:
        named.add(extra_secret)
    if named:
        kept = [pair for pair in kept if pair[0].lower() not in named]
        signed = [pair for pair in signed if pair[0].lower() not in named]
    return kept, signed


def downstream_headers(headers: HeaderList) -> HeaderList:
    """
    AWS's headers as they go to the client, without the framing.

    :returns: not to be changed.
    """
    if isinstance(headers, _Answer):
        return headers.passing
    kept: HeaderList = []
    connection: list[bytes] = []
    for pair in headers:
        kind = _DOWN[pair[0]]
        if kind == _KEPT:
            kept.append(pair)
        elif kind == _CONNECTION:
            connection.append(pair[1])
    named = _named(connection) if connection else ()
    return [pair for pair in kept if pair[0].lower() not in named] if named else kept


def _is_signed(lower: bytes) -> bool:
    # x-amz* must be, as must the Host that is set anew; content-type should be. Nothing
    # else is: a proxy on the way out may touch it, and the signature would break.
    return lower == b"content-type" or lower.startswith(b"x-amz")


def header(headers: HeaderList, name: bytes) -> bytes | None:
    """
    The first value of a header.

    :param name: in lower case.
    """
    if isinstance(headers, Indexed):
        return headers.first.get(name)
    for candidate, value in headers:
        if candidate.lower() == name:
            return value
    return None


class Indexed(list[tuple[bytes, bytes]]):
    """
    Headers in which many names are looked for.

    Not to be changed: the index would not know.
    """

    __slots__ = ("first",)

    def __init__(self, headers: HeaderList) -> None:
        list.__init__(self, headers)
        self.first = {name.lower(): value for name, value in reversed(headers)}
        """The first value of each name, in lower case."""


NO_HEADERS = Indexed([])
"""In place of some that are not needed any more; not to be changed."""


def first_values(headers: HeaderList) -> Mapping[bytes, bytes]:
    """The first value of each name, in lower case."""
    return headers.first if isinstance(headers, Indexed) else Indexed(headers).first


# Reading. It is known of each line what becomes of it, so nobody has to go through the
# headers again.


class _Answer(Indexed):
    """Headers of an answer that were read here."""

    __slots__ = ("passing",)

    def __init__(self) -> None:
        self.first = {}
        self.passing: HeaderList = []
        """Those that go down."""


_Line = tuple[tuple[bytes, bytes], bytes, bool]
"""Of an answer's head: a header, its name in lower case, and whether it goes down."""


class _Lines(dict[bytes, _Line | None]):
    """
    Lines that were read: most of an answer's are those of the one before.

    None stands for a line that is not as plain as nearly all are, or that says of others
    what becomes of them.
    """

    def __missing__(self, line: bytes) -> _Line | None:
        name, _, value = line.partition(b": ")
        value = value.strip(b" \t")
        read = None
        if (
            value
            and line.find(b"\n") < 0
            and line.find(b"\r") < 0
            and _TOKEN.fullmatch(name) is not None
        ):
            kind = _DOWN[name]
            if kind != _CONNECTION or value in _USUAL_TOKENS:
                read = (name, value), name.lower(), kind == _KEPT
        if len(line) <= _LONGEST_KEPT:
            if len(self) >= _MOST_LINES:
                self.clear()
            self[line] = read
        return read


_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_MOST_LINES = 1024
_LONGEST_KEPT = 256
_answer_lines = _Lines()


def read_answer(lines: Sequence[bytes]) -> Indexed | None:
    """
    The headers of an answer.

    :param lines: of its head, which is known to be one of HTTP's.
    :returns: None: it takes a parser to read them.
    """
    headers = _Answer()
    first, passing = headers.first, headers.passing
    known, append = _answer_lines, headers.append
    for line in lines:
        read = known[line]
        if read is None:
            return None
        pair, lower, passes = read
        append(pair)
        if lower not in first:
            first[lower] = pair[1]
        if passes:
            passing.append(pair)
    return headers
