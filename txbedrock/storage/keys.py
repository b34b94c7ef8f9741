"""
Who is behind a key.
"""

from __future__ import annotations

from collections.abc import Sequence

from txbedrock.core.auth import Principal, hash_key, presented_key, same_key
from txbedrock.core.grants import Level, Role
from txbedrock.errors import UnrecognizedKey
from txbedrock.interfaces import InboundRequest

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
        self._principal = Principal(
            alias="master_key", key_hash=self._hash.hex(), role=Role.PROXY_ADMIN
        )

    async def principal(self, request: InboundRequest) -> Principal:
        """:raises UnrecognizedKey: no key, or another one."""
        presented = presented_key(request.headers)
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

    async def levels(self, end_user: str, tags: Sequence[str]) -> Sequence[Level]:
        """Nothing is kept of end users and tags, and so nothing is limited."""
        return ()


class AnyKey:
    """No key is configured: everyone who can reach the gateway may use it."""

    _principal = Principal(alias="anyone", role=Role.PROXY_ADMIN)

    async def principal(self, request: InboundRequest) -> Principal:
        """Never refuses."""
        return self._principal

    async def levels(self, end_user: str, tags: Sequence[str]) -> Sequence[Level]:
        """Nothing is kept of end users and tags, and so nothing is limited."""
        return ()
