"""
A line of the ledger, and what is asked of many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

__all__ = ["DAY_US", "By", "Filters", "LedgerEntry", "Page", "Total", "dimensions", "storable"]

DAY_US = 86_400_000_000
"""Microseconds of a day. A day of the ledger is one of UTC's."""


class LedgerEntry(msgspec.Struct, frozen=True, omit_defaults=True):
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


@dataclass(frozen=True, slots=True)
class Filters:
    """
    Which entries are asked for: those that fulfil all that is not None.
    """

    key_hash: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    end_user: str | None = None

    model: str | None = None
    """A model group's name or Bedrock's id."""

    tag: str | None = None
    deployment: str | None = None
    request_id: str | None = None

    since_us: int | None = None
    """Started at this time or later; microseconds since 1970, UTC."""

    until_us: int | None = None
    """Started before this time."""

    def match(self, entry: LedgerEntry) -> bool:
        """Is it one of them?"""
        return (
            (self.key_hash is None or entry.key_hash == self.key_hash)
            and (self.user_id is None or entry.user_id == self.user_id)
            and (self.team_id is None or entry.team_id == self.team_id)
            and (self.end_user is None or entry.end_user == self.end_user)
            and (self.model is None or self.model in (entry.model_name, entry.model_id))
            and (self.tag is None or self.tag in entry.tags)
            and (self.deployment is None or entry.deployment == self.deployment)
            and (self.request_id is None or entry.request_id == self.request_id)
            and (self.since_us is None or entry.started_us >= self.since_us)
            and (self.until_us is None or entry.started_us < self.until_us)
        )


@dataclass(frozen=True, slots=True)
class Page:
    """Some entries of many, the newest first."""

    entries: tuple[LedgerEntry, ...]

    cursor: str | None
    """What to ask the next page with; None: there is no more."""


By = Literal[
    "all", "day", "key", "user", "team", "end_user", "tag", "model_group", "model", "deployment"
]
"""
What is added up: ``model_group`` is the name that clients use, ``model`` Bedrock's
id. An entry with three tags counts for each of them; one without a user for none.
"""


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of entries."""

    name: str
    """Of the key (its hash), the user, the tag ...; a day is ``2026-11-22``;
    empty for ``all``."""

    label: str = ""
    """A key's alias, as it was last."""

    requests: int = 0
    failed: int = 0
    """Of these, how many were refused by the gateway or got no answer."""

    unpriced: int = 0
    """Of these, how many are billed, and nobody knows at what price."""

    cost_picousd: int = 0
    """Of all whose price is known."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0


def dimensions(entry: LedgerEntry) -> Iterator[tuple[By, str]]:
    """All that an entry counts for, days apart, each with its name."""
    yield "all", ""
    if entry.key_hash:
        yield "key", entry.key_hash
    if entry.user_id:
        yield "user", entry.user_id
    if entry.team_id:
        yield "team", entry.team_id
    if entry.end_user:
        yield "end_user", entry.end_user
    if entry.model_name:
        yield "model_group", entry.model_name
    if entry.model_id:
        yield "model", entry.model_id
    if entry.deployment:
        yield "deployment", entry.deployment
    for tag in dict.fromkeys(entry.tags):
        if tag:
            yield "tag", tag


_MAX_TEXT = 512
_MAX_ITEMS = 64


def storable(entry: LedgerEntry) -> LedgerEntry:
    """
    The same entry, fit for every database whatever a client has put into it:
    texts of at most 512 characters (an index of PostgreSQL's takes 2,700 bytes),
    at most 64 tags and units, no NUL, nothing that is not Unicode.
    """

    def text(value: str) -> str:
        value = value[:_MAX_TEXT].replace("\0", "\ufffd")
        return value.encode("utf-8", "replace").decode("utf-8")

    changes: dict[str, object] = {}
    for name in entry.__struct_fields__:
        value = getattr(entry, name)
        if isinstance(value, str):
            changes[name] = text(value)
    changes["tags"] = tuple(text(tag) for tag in entry.tags[:_MAX_ITEMS])
    changes["units"] = {
        text(unit): count for unit, count in list(entry.units.items())[:_MAX_ITEMS]
    }
    return msgspec.structs.replace(entry, **changes)
