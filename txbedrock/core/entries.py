"""
A line of the ledger.
"""

from __future__ import annotations

import msgspec

__all__ = ["LedgerEntry"]


class LedgerEntry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """
    One exchange, as it is charged and kept. Its key is :attr:`request_id`:
    writing it twice is writing it once.

    Times are microseconds since 1970, UTC; money is an integer of pico-USD
    (10^-12 US dollars). Nothing in it is a secret, a prompt or an answer.
    """

    request_id: str
    """Ours, as ``x-litellm-call-id`` told the client."""

    started_us: int
    """The head of the request was complete."""

    first_byte_us: int = 0
    """The head of Bedrock's answer was here; 0: there was none."""

    ended_us: int = 0
    aws_request_id: str = ""

    key_hash: str = ""
    """SHA-256 of the key, hex; empty: it is not known, or there is none."""

    key_alias: str = ""
    user_id: str = ""
    team_id: str = ""
    end_user: str = ""
    tags: tuple[str, ...] = ()
    session_id: str = ""
    client: str = ""
    """The client's address."""

    service: str = ""
    operation: str = ""
    model_name: str = ""
    """The model group: the name that the client used."""

    model_id: str = ""
    """Bedrock's id or ARN that served it."""

    deployment: str = ""
    region: str = ""
    attempts: int = 0
    status: int = 0
    """What the client was told; 0: nothing."""

    outcome: str = "complete"
    """``complete``, ``partial``, ``refused``, ``failed``, ``client_gone``."""

    error: str = ""
    """AWS's error code, or what cut the answer."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    units: dict[str, int] = {}
    tier: str = ""
    usage_source: str = "unknown"
    """``body``, ``headers``, ``metrics``, ``unknown``."""

    problem: str = ""
    """Why metering stopped, when it did."""

    cost_picousd: int | None = None
    """None: it is billed, and its price is not known. 0: it costs nothing."""

    price_id: str = ""
    """The entry of the price table that was used."""

    price_version: str = ""
    bytes_up: int = 0
    bytes_down: int = 0
