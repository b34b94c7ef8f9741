"""
Who calls: the signature or the bearer token of a request, checked without mercy.

Bedrock forgives some of what is refused here. The sandbox stands behind a gateway,
and what is refused is what a gateway must not let through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hmac import compare_digest

from txbedrock.core.credentials import Credentials
from txbedrock.core.sigv4 import BadSignature, SigningKeys, parse_authorization, verify
from txbedrock.errors import InvalidRequest
from txbedrock.sandbox.faults import Refused

__all__ = ["BEARER_SERVICES", "Caller", "authenticate", "check_headers", "check_scope"]

BEARER_SERVICES = frozenset(("bedrock", "bedrock-runtime"))
"""The services whose models have ``smithy.api#httpBearerAuth``."""

_ONCE = frozenset(
    (
        b"authorization",
        b"content-length",
        b"content-type",
        b"host",
        b"transfer-encoding",
        b"x-amz-content-sha256",
        b"x-amz-date",
        b"x-amz-security-token",
    )
)

_HOP_BY_HOP = frozenset(
    (
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
        b"http2-settings",
    )
)

_KEYS = frozenset((b"api-key", b"x-api-key", b"x-goog-api-key", b"ocp-apim-subscription-key"))


def _shown(name: bytes) -> str:
    return name.decode("latin-1")


def check_headers(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """
    Refuse what must not arrive at AWS.

    :returns: the headers by lower-case name, the last value of each.
    :raises InvalidRequest: naming the header.
    """
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        lower = name.lower()
        if lower in fields and lower in _ONCE:
            raise InvalidRequest(f"Several {_shown(name)} headers.")
        if lower in _KEYS or lower.startswith(b"x-litellm-"):
            raise InvalidRequest(f"The header {_shown(name)} is not AWS's: it must not come here.")
        if lower in _HOP_BY_HOP:
            raise InvalidRequest(f"The hop-by-hop header {_shown(name)} must not be passed on.")
        fields[lower] = value
    for token in fields.get(b"connection", b"").lower().split(b","):
        if token.strip() not in (b"", b"close", b"keep-alive"):
            raise InvalidRequest(f"The Connection header must not be passed on: {_shown(token)}.")
    if b"host" not in fields:
        raise InvalidRequest("The Host header is missing.")
    if fields.get(b"authorization", b"")[:7].lower() == b"bearer ":
        for name in (b"x-amz-date", b"x-amz-security-token", b"x-amz-content-sha256"):
            if name in fields:
                raise InvalidRequest(f"Both a bearer token and the SigV4 header {_shown(name)}.")
    return fields


@dataclass(frozen=True, slots=True)
class Caller:
    """Who was found to call; nothing of it is a secret."""

    access_key_id: str | None = field(default=None, repr=False)
    region: str | None = None
    signing_name: str | None = None
    """None with a bearer token."""


def authenticate(
    *,
    method: bytes,
    target: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    fields: Mapping[bytes, bytes],
    payload_sha256: str,
    credentials: Mapping[str, Credentials],
    api_key: str | None,
    now: float,
    keys: SigningKeys,
) -> Caller:
    """
    Check who sent exactly these bytes.

    :param target: path and query as on the wire.
    :param fields: as :func:`check_headers` gave them.
    :raises Refused: with AWS's status and code.
    """
    authorization = fields.get(b"authorization")
    if not authorization:
        raise Refused(403, "MissingAuthenticationTokenException", "Missing Authentication Token")
    scheme, _, rest = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        if api_key is None or not compare_digest(rest.strip(), api_key.encode()):
            message = "Authentication failed: Please make sure your API Key is valid."
            raise Refused(403, "AccessDeniedException", message)
        return Caller()
    try:
        signature = parse_authorization(authorization)
    except BadSignature as error:
        raise Refused(403, error.code, error.message) from None
    known = credentials.get(signature.access_key_id)
    token = fields.get(b"x-amz-security-token")
    expected = None if known is None or not known.session_token else known.session_token.encode()
    if known is None or token != expected:
        message = "The security token included in the request is invalid."
        raise Refused(403, "UnrecognizedClientException", message)
    raw_path, _, raw_query = target.partition(b"?")
    if fields.get(b"x-amz-content-sha256", payload_sha256.encode()) != payload_sha256.encode():
        message = "The X-Amz-Content-SHA256 header does not match what was computed of the body."
        raise InvalidRequest(message)
    try:
        verify(
            signature,
            known.secret_access_key,
            method=method,
            raw_path=raw_path,
            raw_query=raw_query,
            headers=headers,
            payload_sha256=payload_sha256,
            timestamp=fields.get(b"x-amz-date", b"").decode("latin-1"),
            now=now,
            keys=keys,
        )
    except BadSignature as error:
        raise Refused(403, error.code, error.message) from None
    return Caller(signature.access_key_id, signature.region, signature.service)


def check_scope(
    caller: Caller, *, service: str, signing_name: str, regions: Sequence[str | None]
) -> None:
    """
    Check that what was signed is for this service, and in one of its regions.

    :param regions: what the region must be equal to; None for any.
    :raises Refused: with AWS's status and code.
    """
    if caller.signing_name is None:
        if service not in BEARER_SERVICES:
            message = f"{service} does not accept bearer tokens: sign the request."
            raise Refused(403, "AccessDeniedException", message)
        return
    if caller.signing_name != signing_name:
        message = f"Credential should be scoped to correct service: '{signing_name}'."
        raise Refused(403, "InvalidSignatureException", message)
    for region in regions:
        if region is not None and caller.region != region:
            message = f"Credential should be scoped to a valid region: '{region}'."
            raise Refused(403, "InvalidSignatureException", message)
