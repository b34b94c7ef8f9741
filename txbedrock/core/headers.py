"""
Which headers go up to AWS, which come down to the client.

Everything passes except what belongs to one connection, what authenticated
the client, and what the gateway sets itself.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = [
    "NO_HEADERS",
    "HeaderList",
    "Indexed",
    "downstream_headers",
    "first_values",
    "header",
    "signed_headers",
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


_KEPT, _DROPPED, _CONNECTION = range(3)


class _Kinds(dict[bytes, int]):
    """
    What becomes of a header by its name as it was written, remembered: clients and AWS
    use few names, each in one way of writing it.
    """

    def __init__(self, dropped: frozenset[bytes], prefix: bytes | None = None) -> None:
        super().__init__()
        self._dropped = dropped
        self._prefix = prefix

    def __missing__(self, name: bytes) -> int:
        lower = name.lower()
        kind = _KEPT
        if lower == b"connection":
            kind = _CONNECTION
        elif lower in self._dropped or (self._prefix and lower.startswith(self._prefix)):
            kind = _DROPPED
        if len(self) < _REMEMBERED:
            self[name] = kind
        return kind


# Whoever invents names fills it once.
_REMEMBERED = 4096

_UP = _Kinds(_NOT_UPSTREAM, _OWN_PREFIX)
_DOWN = _Kinds(_HOP_BY_HOP | {b"content-length"})


def _passed(headers: HeaderList, kinds: _Kinds) -> HeaderList:
    """Those that go on."""
    kept: HeaderList = []
    connection: list[bytes] = []
    for pair in headers:
        kind = kinds[pair[0]]
        if kind == _KEPT:
            kept.append(pair)
        elif kind == _CONNECTION:
            connection.append(pair[1])
    if connection and not _USUAL_TOKENS.issuperset(connection):
        # What it names is hop-by-hop, too (RFC 9110, 7.6.1).
        named = {token.strip().lower() for token in b",".join(connection).split(b",")}
        if named - _USUAL_TOKENS:
            kept = [pair for pair in kept if pair[0].lower() not in named]
    return kept


_USUAL_TOKENS = frozenset((b"", b"close", b"keep-alive", b"Close", b"Keep-Alive"))


def upstream_headers(headers: HeaderList, extra_secret: bytes | None = None) -> HeaderList:
    """
    The client's headers as they go to AWS, before host and signature are added.

    :param extra_secret: lower-case name of one more header that carries keys.
    """
    kept = _passed(headers, _UP)
    if extra_secret is not None:
        return [pair for pair in kept if pair[0].lower() != extra_secret]
    return kept


def downstream_headers(headers: HeaderList) -> HeaderList:
    """AWS's headers as they go to the client, without the framing."""
    return _passed(headers, _DOWN)


class _Signed(dict[bytes, bool]):
    """Whether the signature covers a header, by its name as it was written."""

    def __missing__(self, name: bytes) -> bool:
        lower = name.lower()
        signed = lower in (b"host", b"content-type") or lower.startswith(b"x-amz")
        if len(self) < _REMEMBERED:
            self[name] = signed
        return signed


_SIGNED = _Signed()


def signed_headers(headers: HeaderList) -> HeaderList:
    """
    Those of the upstream headers that the signature covers.

    Host and ``x-amz*`` must be, ``content-type`` should be. Nothing else is:
    a proxy on the way out may touch it, and the signature would break.
    """
    return [pair for pair in headers if _SIGNED[pair[0]]]


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
