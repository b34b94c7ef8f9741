"""
What an operator grants, as it is kept: keys, users, teams, customers, budgets, tags.

Plain values. Money is an integer of pico-USD (10^-12 US dollars), times are
microseconds since 1970, UTC; an empty tuple or None means that nothing is
restricted. Nothing here holds a secret: of a key only its SHA-256 is kept.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Literal, NamedTuple

import msgspec

__all__ = [
    "NO_LIMITS",
    "Budget",
    "Customer",
    "Grant",
    "Key",
    "KeyType",
    "Level",
    "LevelKind",
    "Limits",
    "Member",
    "ModelLimits",
    "Permissions",
    "Role",
    "Tag",
    "Team",
    "Token",
    "User",
    "with_budget",
]


class Role(Enum):
    """What a user may do with the management API (LiteLLM's names)."""

    PROXY_ADMIN = "proxy_admin"
    PROXY_ADMIN_VIEWER = "proxy_admin_viewer"
    """Sees everything, changes nothing."""

    INTERNAL_USER = "internal_user"
    """Makes, sees and changes keys of its own."""

    INTERNAL_USER_VIEWER = "internal_user_viewer"
    """Sees its own."""


class KeyType(Enum):
    """Which side of the gateway a key opens (LiteLLM's names)."""

    DEFAULT = "default"
    """Bedrock, and of the management API what its user's role allows."""

    LLM_API = "llm_api"
    """Bedrock only."""

    MANAGEMENT = "management"
    """The management API only."""

    READ_ONLY = "read_only"
    """Of the management API what reads; not Bedrock."""


class _Frozen(msgspec.Struct, frozen=True, omit_defaults=True):
    """Small when encoded: what is as usual is left out."""


class ModelLimits(_Frozen, frozen=True, kw_only=True):
    """Limits of one model within those of a key, a team ..."""

    rpm: int | None = None
    tpm: int | None = None
    max_budget: int | None = None
    """Pico-USD."""

    budget_duration: str = ""
    """As :attr:`Limits.budget_duration`."""


class Limits(_Frozen, frozen=True, kw_only=True):
    """Caps at one level. None: there is none."""

    rpm: int | None = None
    """Requests a minute."""

    tpm: int | None = None
    """Tokens a minute, counted as Bedrock counts its own quota."""

    max_parallel: int | None = None
    """Requests at the same time."""

    max_budget: int | None = None
    """Pico-USD that may be spent in a budget's period."""

    soft_budget: int | None = None
    """Pico-USD from which on there is a warning, and nothing else."""

    budget_duration: str = ""
    """The period: ``30s``, ``10m``, ``2h``, ``7d``, ``2w`` from
    :attr:`budget_start_us` on, again and again; ``1mo``: a calendar month, UTC.
    Empty: for ever."""

    budget_start_us: int = 0
    """When the first period begins; what was spent before does not count."""

    budget_increase: int = 0
    """Pico-USD that may be spent on top of :attr:`max_budget` for a while."""

    budget_increase_until_us: int = 0
    """Until then."""

    models: dict[str, ModelLimits] = {}
    """By a model's name, as clients use it, or Bedrock's id."""


NO_LIMITS = Limits()


class Permissions(_Frozen, frozen=True, kw_only=True):
    """What may be asked for. Empty: as usual, or everything where nothing is usual."""

    models: tuple[str, ...] = ()
    """Names of model groups, Bedrock's ids, patterns with ``*``, access groups.
    Empty: every model."""

    allowed_routes: tuple[str, ...] = ()
    """Paths as the client sees them, with ``*``; or groups of routes in LiteLLM's
    style (``llm_api_routes``, ``management_routes``, ``info_routes`` ...).
    Empty: every route."""

    operations: tuple[str, ...] = ()
    """What is allowed in IAM's manner: ``bedrock:Converse``, ``bedrock:InvokeModel*``,
    ``bedrock-agent:Get*``, ``*``. Empty: the usual (inference and the catalogue)."""

    denied_operations: tuple[str, ...] = ()
    """What is denied, in the same manner. It wins."""

    allowed_ips: tuple[str, ...] = ()
    """Addresses and networks (``10.0.0.0/8``). Empty: from everywhere."""


class _Kept(_Frozen, frozen=True, kw_only=True):
    """What all that is kept has in common."""

    created_us: int = 0
    created_by: str = ""
    updated_us: int = 0
    updated_by: str = ""
    blocked: bool = False
    metadata: dict[str, Any] = {}
    """The operator's own; never sent to anybody but who may see the rest."""


class Token(_Frozen, frozen=True, kw_only=True):
    """One secret that a key answers to. After a rotation there may be two for a while."""

    hash: str
    """SHA-256 of the secret, hex."""

    shown: str = ""
    """Its end, to tell it from others: ``sk-...aB3x``."""

    access_key_id: str = ""
    """Of the AWS-style pair that was derived from it; empty: none was asked for."""

    expires_us: int = 0
    """0: never."""


class Key(_Kept, frozen=True, kw_only=True):
    """A virtual key."""

    id: str
    """SHA-256 of its first secret, hex. It stays when the secret changes: spend is kept by it."""

    tokens: tuple[Token, ...] = ()
    """The newest first."""

    alias: str = ""
    """Unique, unless empty."""

    user_id: str = ""
    team_id: str = ""
    budget_id: str = ""
    """A :class:`Budget` whose limits hold where the key has none of its own."""

    type: KeyType = KeyType.DEFAULT
    expires_us: int = 0
    """0: never."""

    tags: tuple[str, ...] = ()
    """Added to those of each request."""

    aliases: dict[str, str] = {}
    """Model names of the key's own: what its client says -> what is meant."""

    limits: Limits = NO_LIMITS
    permissions: Permissions = Permissions()


class User(_Kept, frozen=True, kw_only=True):
    id: str
    alias: str = ""
    email: str = ""
    role: Role = Role.INTERNAL_USER
    budget_id: str = ""
    limits: Limits = NO_LIMITS
    permissions: Permissions = Permissions()


class Member(_Frozen, frozen=True, kw_only=True):
    """A user in a team."""

    user_id: str
    role: str = "user"
    """``admin``: may change the team's members and keys; ``user``."""

    limits: Limits = NO_LIMITS


class Team(_Kept, frozen=True, kw_only=True):
    id: str
    alias: str = ""
    members: tuple[Member, ...] = ()
    aliases: dict[str, str] = {}
    """Model names of the team's own; a key's come first."""

    budget_id: str = ""
    limits: Limits = NO_LIMITS
    member_limits: Limits = NO_LIMITS
    """Of each member that has none of its own."""

    permissions: Permissions = Permissions()


class Customer(_Kept, frozen=True, kw_only=True):
    """An end user: who the holder of a key says that a request is for."""

    id: str
    alias: str = ""
    budget_id: str = ""
    limits: Limits = NO_LIMITS


class Budget(_Kept, frozen=True, kw_only=True):
    """Limits with a name, for many to have. Each spends its own."""

    id: str
    limits: Limits = NO_LIMITS


def with_budget(limits: Limits, budget: Budget | None) -> Limits:
    """
    Limits, and those of a budget where they leave something open.

    Who has a maximum of its own has its period, too: without one it is for ever.
    """
    if budget is None or budget.limits == NO_LIMITS:
        return limits
    other = budget.limits
    filled = {
        name: getattr(other, name)
        for name in ("rpm", "tpm", "max_parallel", "soft_budget")
        if getattr(limits, name) is None
    }
    if limits.max_budget is None:
        filled["max_budget"] = other.max_budget
        filled["budget_duration"] = limits.budget_duration or other.budget_duration
        filled["budget_start_us"] = limits.budget_start_us or other.budget_start_us
    if not limits.budget_increase:
        filled["budget_increase"] = other.budget_increase
        filled["budget_increase_until_us"] = other.budget_increase_until_us
    return msgspec.structs.replace(limits, **filled, models={**other.models, **limits.models})


class Tag(_Kept, frozen=True, kw_only=True):
    """What requests are marked with."""

    id: str
    """The tag itself."""

    description: str = ""
    budget_id: str = ""
    limits: Limits = NO_LIMITS


Grant = Key | User | Team | Customer | Budget | Tag


LevelKind = Literal["key", "team_member", "team", "user", "end_user", "tag", "deployment"]


class Level(NamedTuple):
    """
    Limits, and whose they are: what a request has to find room in.

    Two levels with the same kind and id share what is used, also when their limits
    differ because they were changed meanwhile.
    """

    kind: LevelKind
    id: str
    """Of the key, the user ...; of a team member ``TEAM/USER``."""

    label: str
    """For messages: an alias, or the id."""

    limits: Limits
