"""
Credentials as values. Their representation never shows a secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["BearerToken", "Credentials"]


@dataclass(frozen=True, slots=True)
class Credentials:
    """An AWS key pair, as a SigV4 signature needs it."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class BearerToken:
    """A Bedrock API key: sent as ``Authorization: Bearer``, nothing is signed."""

    token: str = field(repr=False)
