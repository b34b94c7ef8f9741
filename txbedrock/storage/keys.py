"""
Who is behind a key.
"""

from __future__ import annotations

from txbedrock.core.auth import PresentedKey, Principal, hash_key, same_key
from txbedrock.errors import UnrecognizedKey

__all__ = ["AnyKey", "MasterKey"]

_HOW = (
    "Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY', or give it to an AWS SDK "
    "as the access key id (any secret access key)."
)


class MasterKey:
    """
    The one key of the configuration. Only its hash is kept.
    """

    def __init__(self, key: str) -> None:
        self._hash = hash_key(key.encode())
        self._principal = Principal(alias="master_key", key_hash=self._hash.hex(), admin=True)

    async def principal(self, presented: PresentedKey | None) -> Principal:
        """:raises UnrecognizedKey: no key, or another one."""
        if presented is None:
            raise UnrecognizedKey(f"This gateway needs a key and the request has none. {_HOW}")
        for secret in (presented.secret, *presented.candidates):
            if same_key(secret, self._hash):
                return self._principal
        if presented.carrier == "sigv4":
            raise UnrecognizedKey(
                "The access key id of the request's signature is not a key of this gateway. "
                "Give your AWS SDK the gateway's key as access key id (any secret access key)."
            )
        raise UnrecognizedKey(f"The key is not one of this gateway's. {_HOW}")


class AnyKey:
    """No key is configured: everyone who can reach the gateway may use it."""

    _principal = Principal(alias="anyone", admin=True)

    async def principal(self, presented: PresentedKey | None) -> Principal:
        """Never refuses."""
        return self._principal
