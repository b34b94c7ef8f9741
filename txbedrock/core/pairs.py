"""
AWS-style key pairs: with one, a client signs, and its secret never crosses the wire.

Both halves are derived from the SHA-256 of a virtual key; nothing is stored that is
secret. What is verified here is verified strictly.

Note [What a signature does not cover]
--------------------------------------
Signature Version 4 protects what is in its canonical request, and of the headers only
those that the client chose to sign. Whoever stands between client and gateway can
change all the rest, so that what is left open must not matter:

- ``//`` and ``/`` in a path are signed alike, and are not the same to the gateway:
  ``//`` is refused. Dot segments are, too.
- Headers that say what is to be done must be signed: ``X-Amz-*``, the modelled ones of
  Bedrock's operations, and the gateway's own. ``Content-Type`` may be left out, as some
  signers do (aws4fetch, in the AI SDK) and AWS takes it: nothing here goes by it, and
  Bedrock's operations take one type each.
- ``Connection`` takes away the headers that it names: it must not name a signed one.
- A run of white space in a value counts as one space, and botocore takes more for
  white space than HTTP does: in a signed value there may be spaces and tabs only.
- A method is signed in upper case: it must be so.
- A second ``Authorization``, ``Host``, ``X-Amz-Date`` ... makes it a matter of taste
  which one counts. Other signed headers may be repeated: they are joined by commas in
  the order that they have, as AWS says.

The order of a query's parameters, empty values without their ``=``, the case of
headers' names and optional white space are not covered either, and mean nothing.
A query is verified as it came: unlike AWS, nothing in it is decoded and encoded anew.
"""

from __future__ import annotations

import re
from base64 import b32encode, b64encode
from hashlib import sha256
from hmac import digest
from urllib.parse import quote, unquote_to_bytes

from txbedrock.core.headers import HeaderList
from txbedrock.core.sigv4 import (
    BadSignature,
    Mismatch,
    SigningKeys,
    canonical_path,
    parse_authorization,
)
from txbedrock.core.sigv4 import verify as _verify
from txbedrock.errors import InvalidSignature

__all__ = [
    "PRESIGNED",
    "SIGNING_NAMES",
    "access_key_id",
    "is_derived",
    "presigned",
    "secret_access_key",
    "verify",
]

SIGNING_NAMES = frozenset(("bedrock", "bedrock-agentcore"))
"""What AWS SDKs sign for when they call a service of Bedrock's."""

PRESIGNED = (
    "Presigned URLs are not accepted: sign the request with an Authorization header, and"
    " leave X-Amz-Signature and the other parameters of a signature out of the query."
)
"""What to tell a client whose query is :func:`presigned`."""

# AWS's ids begin with AKIA, ASIA and other four letters, none of them these.
_PREFIX = "TXBK"
_DERIVED = re.compile(rb"TXBK[A-Z2-7]{16}\Z")
_ID_LABEL = b"txbedrock access key id 1\0"
_SECRET_LABEL = b"txbedrock secret access key 1\0"


def access_key_id(token_hash: str) -> str:
    """
    The public half of a key's pair.

    :param token_hash: SHA-256 of the key, hex. It cannot be found from the id.
    :returns: 20 characters of ``A-Z2-7``, never one of AWS's own ids.
    """
    return _PREFIX + b32encode(sha256(_ID_LABEL + token_hash.encode()).digest()[:10]).decode()


def is_derived(access_key_id: bytes) -> bool:
    """Is this an id as :func:`access_key_id` makes them? Nobody need have it."""
    return _DERIVED.match(access_key_id) is not None


def secret_access_key(salt: bytes, token_hash: str) -> str:
    """
    The secret half of a key's pair.

    :param salt: the server's secret. With another one all pairs change.
    :param token_hash: SHA-256 of the key, hex.
    :returns: 40 characters of ``A-Za-z0-9+/``.
    :raises ValueError: the salt is empty, and so anyone could derive secrets.
    """
    if not salt:
        raise ValueError("no secrets without a salt")
    return b64encode(digest(salt, _SECRET_LABEL + token_hash.encode(), "sha256")[:30]).decode()


_OF_PRESIGNED = frozenset((b"x-amz-algorithm", b"x-amz-credential", b"x-amz-signature"))


def presigned(raw_query: bytes | None) -> bool:
    """
    Is this the query of a presigned URL?

    :param raw_query: as sent, without the question mark; None when there is none.
    """
    if not raw_query:
        return False
    names = (pair.partition(b"=")[0] for pair in raw_query.split(b"&"))
    return any(unquote_to_bytes(name).lower() in _OF_PRESIGNED for name in names)


# See Note [What a signature does not cover].
_ONCE = (
    b"authorization",
    b"content-type",
    b"host",
    b"x-amz-content-sha256",
    b"x-amz-date",
)
_STEERING = (
    b"mcp-",
    b"x-amzn-bedrock-",
    b"x-amzn-browser-",
    b"x-amzn-code-interpreter-",
    b"x-litellm-",
)
_UNCOVERED = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f\x85\xa0]").search
_REGION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")
_MAX_REGION_CHARS = 32

_INVALID = "InvalidSignatureException"
_INCOMPLETE = "IncompleteSignatureException"


def verify(
    *,
    method: bytes,
    raw_path: bytes,
    raw_query: bytes | None,
    headers: HeaderList,
    payload_sha256: str,
    secret: str,
    now: float,
    keys: SigningKeys,
) -> None:
    """
    Check that a request was signed with a pair's secret, within five minutes.

    :param raw_path: as received, with the gateway's prefix.
    :param raw_query: as received, without the question mark; None when there is none.
    :param headers: all, as received; of HTTP/2 with ``:authority`` as ``Host``.
    :param payload_sha256: of the body as received, lower-case hex.
    :param secret: of the pair whose id the request names.
    :param now: POSIX seconds.
    :param keys: kept from one request to the next, and used for nothing else.
    :raises InvalidSignature: it was not, or not so that everything is covered which
        has to be. The message says what to change; the code is AWS's.
    """
    if presigned(raw_query):
        raise InvalidSignature(PRESIGNED, _INCOMPLETE)
    found = _check_headers(headers)
    _check_payload(found.get(b"x-amz-content-sha256"), payload_sha256)
    if method != method.upper():
        raise InvalidSignature("The method must be in upper case.", _INVALID)
    if b"//" in raw_path:
        raise InvalidSignature(
            "The path must not hold '//', which is signed as '/'. Check the base URL and the ids"
            " in the path for a slash too many.",
            _INVALID,
        )
    try:
        signature = parse_authorization(found.get(b"authorization", b""))
        if not is_derived(signature.access_key_id.encode()):
            raise BadSignature("Credential must begin with the access key id of a key pair.")
        _check_scope(signature.region, signature.service)
        if ":authority" in signature.signed_headers and b"host" in found:
            # HTTP/2's name for Host, and what a client signs there. It comes here as Host.
            headers = [*headers, (b":authority", found[b"host"])]
        _check_signed(headers, frozenset(name.encode() for name in signature.signed_headers))
        _verify(
            signature,
            secret,
            method=method,
            raw_path=raw_path,
            raw_query=raw_query or b"",
            headers=headers,
            payload_sha256=payload_sha256,
            timestamp=found.get(b"x-amz-date", b"").strip(b" \t").decode("latin-1"),
            now=now,
            keys=keys,
        )
    except Mismatch as error:
        raise InvalidSignature(error.message + _advice(raw_path, raw_query), error.code) from None
    except BadSignature as error:
        raise InvalidSignature(error.message, error.code) from None


def _check_headers(headers: HeaderList) -> dict[bytes, bytes]:
    """
    Refuse what cannot be verified, whatever was signed.

    :returns: those that may be there only once, by lower-case name.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        lower = name.lower()
        if lower in _ONCE:
            if lower in found:
                raise InvalidSignature(f"Send one {_shown(name)} header, not several.", _INVALID)
            found[lower] = value
        elif lower == b"x-amz-security-token":
            raise InvalidSignature(
                "A key pair of this gateway has no session token: unset AWS_SESSION_TOKEN and"
                " send no X-Amz-Security-Token.",
                "UnrecognizedClientException",
            )
    return found


def _check_payload(stated: bytes | None, payload_sha256: str) -> None:
    if stated is None:
        return
    stated = stated.strip(b" \t")
    if stated == b"UNSIGNED-PAYLOAD" or stated.startswith(b"STREAMING-"):
        raise InvalidSignature(
            "The payload must be signed: UNSIGNED-PAYLOAD and STREAMING-... are not accepted as"
            " X-Amz-Content-SHA256. Send the SHA-256 of the body, or leave the header out.",
            _INVALID,
        )
    if stated != payload_sha256.encode():
        raise InvalidSignature(
            "The X-Amz-Content-SHA256 header does not match what was computed of the body.",
            _INVALID,
        )


def _check_scope(region: str, service: str) -> None:
    if service not in SIGNING_NAMES:
        names = "' or '".join(sorted(SIGNING_NAMES))
        raise BadSignature(f"Credential should be scoped to correct service: '{names}'.")
    if len(region) > _MAX_REGION_CHARS or not _REGION.match(region):
        raise BadSignature("Credential should be scoped to a valid region, as 'us-east-1'.")


def _check_signed(headers: HeaderList, signed: frozenset[bytes]) -> None:
    """Is everything covered that has to be? See Note [What a signature does not cover]."""
    for name, value in headers:
        lower = name.lower()
        if lower in signed:
            if _UNCOVERED(value):
                raise BadSignature(
                    f"The value of the signed header {_shown(name)} may hold no control"
                    " characters and no white space but spaces and tabs."
                )
        elif lower.startswith(_STEERING):
            raise BadSignature(
                f"'{_shown(lower)}' must be a 'SignedHeader' in the AWS Authorization."
            )
        elif lower == b"connection":
            for token in value.lower().split(b","):
                if token.strip() in signed:
                    raise BadSignature("The Connection header must not name a signed header.")


def _shown(name: bytes) -> str:
    return name.decode("latin-1")


def _advice(raw_path: bytes, raw_query: bytes | None) -> str:
    """What often goes wrong with a request like this one."""
    advice = ""
    if raw_path != canonical_path(raw_path):
        advice += (
            " The path is verified as sent, with the gateway's prefix, and escaped once more;"
            " older versions of curl do not escape it: use a newer one, or a model name of"
            " letters, digits and '-._~' only."
        )
    if raw_query and raw_query != _as_sdks_send(raw_query):
        advice += (
            " The query is verified as sent: percent-encode everything in its names and values"
            " but letters, digits and '-._~', as in '%3A', before it is signed. For older"
            " versions of curl sort the parameters by name, and write 'a=' for 'a'."
        )
    return advice


def _as_sdks_send(raw_query: bytes) -> bytes:
    """The same query, each character escaped that should be and no other, and sorted."""
    pairs = (pair.partition(b"=") for pair in raw_query.split(b"&"))
    return b"&".join(
        sorted(b"%b=%b" % (_escaped(name), _escaped(value)) for name, _, value in pairs)
    )


def _escaped(text: bytes) -> bytes:
    return quote(unquote_to_bytes(text), safe="-._~").encode()
