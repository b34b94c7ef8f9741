"""
Which headers go up to AWS, which come down to the client.

Everything passes except what belongs to one connection, what authenticated
the client, and what the gateway sets itself.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["HeaderList", "downstream_headers", "header", "signed_headers", "upstream_headers"]

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


def _named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Names that the ``Connection`` header makes hop-by-hop (RFC 9110, 7.6.1)."""
    names: set[bytes] = set()
    for name, value in headers:
        if name.lower() == b"connection":
            names.update(token.strip().lower() for token in value.split(b","))
    return frozenset(names)


def upstream_headers(headers: HeaderList, extra_secret: bytes | None = None) -> HeaderList:
    """
    The client's headers as they go to AWS, before host and signature are added.

    :param extra_secret: lower-case name of one more header that carries keys.
    """
    dropped = _NOT_UPSTREAM | _named_by_connection(headers)
    kept: HeaderList = []
    for name, value in headers:
        lower = name.lower()
        if lower in dropped or lower == extra_secret or lower.startswith(_OWN_PREFIX):
            continue
        kept.append((name, value))
    return kept


def downstream_headers(headers: HeaderList) -> HeaderList:
    """AWS's headers as they go to the client, without the framing."""
    dropped = _HOP_BY_HOP | _named_by_connection(headers)
    return [
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in dropped and lower != b"content-length"
    ]


def signed_headers(headers: HeaderList) -> HeaderList:
    """
    Those of the upstream headers that the signature covers.

    Host and ``x-amz*`` must be, ``content-type`` should be. Nothing else is:
    a proxy on the way out may touch it, and the signature would break.
    """
    return [
        pair
        for pair in headers
        if (lower := pair[0].lower()) in (b"host", b"content-type") or lower.startswith(b"x-amz")
    ]


def header(headers: HeaderList, name: bytes) -> bytes | None:
    """
    The first value of a header.

    :param name: in lower case.
    """
    for candidate, value in headers:
        if candidate.lower() == name:
            return value
    return None
