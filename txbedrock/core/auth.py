"""
Headers -> the key that a client presents.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec

from txbedrock.core.grants import KeyType, Level, Role
from txbedrock.core.headers import HeaderList, first_values, header
from txbedrock.core.permissions import EVERYTHING, Access

__all__ = [
    "CERTIFICATE_NAMES",
    "ClientCertificate",
    "PresentedKey",
    "Principal",
    "hash_key",
    "presented_key",
    "same_key",
    "signing_scope_of",
]

# Note [Where a client puts its key]
# ----------------------------------
# The first that is there counts; all of them are kept from going upstream.
#
# 1. x-litellm-api-key, x-api-key: a header of its own.
# 2. Authorization: Bearer KEY (also Basic, as LiteLLM reads it).
# 3. Authorization: AWS4-HMAC-SHA256 Credential=KEY/date/region/service/...,
#    also Credential=Bearer KEY/...: an AWS SDK whose access key id is the key.
#    It is the only way for the services that know no bearer tokens, and for
#    boto3 >= 1.44 over plain http.
# 4. x-amz-security-token: an AWS SDK whose session token is the key, its other
#    credentials being dummies.

_DEDICATED = (b"x-litellm-api-key", b"x-api-key")
_SIGV4 = b"aws4-hmac-sha256"


class PresentedKey(msgspec.Struct, frozen=True):
    """What the client says it is. Not believed yet."""

    secret: bytes
    carrier: str
    """``header``, ``bearer``, ``sigv4`` or ``session-token``."""

    candidates: tuple[bytes, ...] = ()
    """Further values to try: the session token beside dummy credentials."""

    def __repr__(self) -> str:
        return f"PresentedKey(carrier={self.carrier!r})"


CERTIFICATE_NAMES = ("sha256", "uri", "dns", "email", "common_name")
"""The kinds of names that a client's certificate may be known by, the best first."""


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """
    The certificate of a TLS client, verified. It is an identity only if the settings
    say so, and if the client presents no key.
    """

    names: tuple[str, ...]
    """As :meth:`name` has them, the best first."""

    expires: float
    """POSIX seconds. A connection, or a session that is resumed, may live longer."""

    @staticmethod
    def name(kind: str, value: str) -> str:
        """
        A name of a certificate, to be compared with others.

        :param kind: of :data:`CERTIFICATE_NAMES`. No kind can be taken for another.
        :param value: of ``sha256``, the fingerprint, in hex, with or without colons.
        """
        if kind == "sha256":
            value = value.replace(":", "").lower()
        elif kind in ("dns", "email"):
            value = value.lower()
        return f"{kind}:{value}"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request is made for, and in whose name it is accounted."""

    alias: str
    """A name for logs. Never the key."""

    key_hash: str = ""
    """SHA-256 of the key, hex; of one whose secret has changed that of its first.
    Empty when there is no key."""

    user_id: str = ""
    team_id: str = ""
    role: Role = Role.INTERNAL_USER
    key_type: KeyType = KeyType.DEFAULT

    access: Access = EVERYTHING
    """What it may ask for."""

    levels: tuple[Level, ...] = ()
    """What its requests must find room in."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """Model names of its own: what its client says -> what is meant."""

    tags: tuple[str, ...] = ()
    """Added to those of its requests."""

    team_admin: bool = False
    """May it change its team's members and keys?"""

    @property
    def admin(self) -> bool:
        """May it change what belongs to others?"""
        return self.role is Role.PROXY_ADMIN

    @property
    def sees_all(self) -> bool:
        """May it see what belongs to others?"""
        return self.role in (Role.PROXY_ADMIN, Role.PROXY_ADMIN_VIEWER)


def hash_key(key: bytes) -> bytes:
    """SHA-256 of a key: what is kept and compared."""
    return sha256(key).digest()


def same_key(presented: bytes, expected_hash: bytes) -> bool:
    """Compare in constant time, whatever the lengths."""
    return hmac.compare_digest(hash_key(presented), expected_hash)


def _strip_bearer(value: bytes) -> bytes:
    return value[7:].strip() if value[:7].lower() == b"bearer " else value


def signing_scope_of(headers: HeaderList) -> tuple[bytes, bytes, bytes] | None:
    """
    What a SigV4 client says in its credential scope.

    :returns: access key id (a leading ``Bearer`` removed), region and signing
        name; None when the request is not signed or the scope is not readable.
    """
    value = header(headers, b"authorization")
    if value is None or value[:7] == b"Bearer ":
        return None
    scheme, _, rest = value.strip().partition(b" ")
    if scheme.lower() != _SIGV4:
        return None
    for part in rest.split(b","):
        label, _, text = part.strip().partition(b"=")
        if label == b"Credential":
            # The key may not hold a slash; the scope has four more parts.
            pieces = text.rsplit(b"/", 4)
            if len(pieces) == 5:
                return _strip_bearer(pieces[0].strip()), pieces[2], pieces[3]
    return None


def presented_key(headers: HeaderList) -> PresentedKey | None:
    """
    Find the key. See Note [Where a client puts its key].

    :returns: None when there is none at all.
    """
    first = first_values(headers)
    for name in _DEDICATED:
        if name in first and (dedicated := first[name].strip()):
            return PresentedKey(_strip_bearer(dedicated), "header")
    authorization = first.get(b"authorization", b"").strip()
    scheme, _, rest = authorization.partition(b" ")
    if scheme.lower() in (b"bearer", b"basic") and (secret := rest.strip()):
        return PresentedKey(secret, "bearer")
    token = first.get(b"x-amz-security-token", b"").strip()
    scope = signing_scope_of(headers)
    if scope is not None:
        return PresentedKey(scope[0], "sigv4", (token,) if token else ())
    if token:
        return PresentedKey(token, "session-token")
    return None
