"""
The fields of LiteLLM's management API <-> what is kept of them (:mod:`.grants`).

One table for each kind of grant says which field goes where and what it may be.
Fields come as plain values, out of JSON (numbers with a point as
:class:`~decimal.Decimal`) or out of YAML; everything that is wrong with them is
said at once, and never with a value that could be a secret.

Note [What null means]
----------------------
A field that is not there changes nothing. LiteLLM takes null for the same, and so
nothing can be taken away again. Here null takes away a limit, a budget or an end
(``max_budget``, ``rpm_limit``, ``budget_id``, ``duration`` ...). Of everything else it
changes nothing: a script that sends all fields and null for most of them must not
open what ``models`` has closed. Lists and texts are taken away with ``[]`` and ``""``.

Note [When a budget begins]
---------------------------
With its first amount, and anew when its ``budget_duration`` changes. What was spent
before does not count. Another amount changes nothing about the period.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from calendar import monthrange
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import reduce
from typing import Any, NamedTuple, TypeVar

import msgspec

from txbedrock.core.addresses import parse_network
from txbedrock.core.budgets import Duration, iso_time, parse_duration
from txbedrock.core.grants import (
    NO_LIMITS,
    Budget,
    Customer,
    Grant,
    Key,
    KeyType,
    Limits,
    Member,
    ModelLimits,
    Role,
    Tag,
    Team,
    Token,
    User,
)
from txbedrock.core.money import PICO, as_decimal
from txbedrock.core.permissions import (
    parse_model_pattern,
    parse_operation_pattern,
    parse_route_pattern,
)

__all__ = [
    "BadFields",
    "Changes",
    "Form",
    "Problem",
    "duration",
    "flag",
    "identifier",
    "key_from_config",
    "key_secret",
    "later",
    "many",
    "member",
    "one_of",
    "read",
    "roster",
    "shown",
    "shown_member",
    "tag_name",
    "team_identifier",
    "text",
]

Kind = type[Grant] | type[Member]
G = TypeVar("G", Key, User, Team, Customer, Budget, Tag, Member)
Check = Callable[[object], Any]
"""A value as it was sent -> what is kept. Raises :class:`BadFields`."""


class Problem(NamedTuple):
    """Something that is wrong with what was sent."""

    field: str
    """``max_budget``, ``models[2]``, ``model_max_budget.haiku.budget_limit``."""

    reason: str
    """``found text, expected ...``"""

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class BadFields(ValueError):
    """
    Fields cannot be used.

    :param problems: all of them. None of them holds a secret.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))


# Values.

_HIGHEST_USD = 10**9
_HIGHEST_COUNT = 10**12
_MOST_DIGITS = 40
_LONGEST_TEXT = 256
_LONGEST_MODEL = 2048
_MOST_ITEMS = 1000
_MOST_TAGS = 32
_METADATA_BYTES = 64 * 1024
_METADATA_DEPTH = 16

_LIKE_A_SECRET = re.compile(r"sk-|[A-Za-z0-9+/]{40}")
_HASH = re.compile(r"[0-9a-f]{64}")
# What no header, no credential scope and no shell takes for something else.
_SECRET = re.compile(r"sk-[A-Za-z0-9!#$%&()*+.:;<=>?@^_{|}~\[\]-]*")
_SHORTEST_SECRET = 16


def _wrong(value: object, expected: str) -> BadFields:
    return BadFields([Problem("", f"found {_kind_of(value)}, expected {expected}")])


def _kind_of(value: object) -> str:
    """What a value is, without showing it."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float() | Decimal():
            return "a number"
        case str():
            return "text" if value else "empty text"
        case Mapping():
            return "an object"
        case list() | tuple():
            return "a list"
    return "something else"


def _within(path: str, error: BadFields) -> list[Problem]:
    """The problems of a part, as those of the whole."""
    return [Problem(path + name, reason) for name, reason in error.problems]


def _number(value: object) -> Decimal | None:
    """A finite number; None: it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    # The shortest decimal that is this float is what somebody has written.
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    return number if number.is_finite() else None


def _money(value: object) -> int:
    """US dollars -> pico-USD, exactly."""
    expected = f"an amount in US dollars, 0 to {_HIGHEST_USD}, with at most 12 decimals"
    number = _number(value)
    # The digits come first: an integer of millions of them takes its time.
    if number is None or len(number.as_tuple().digits) > _MOST_DIGITS:
        raise _wrong(value, expected)
    if not 0 <= number <= _HIGHEST_USD or (number and number.adjusted() < -12):
        raise _wrong(value, expected)
    numerator, denominator = number.as_integer_ratio()
    pico, rest = divmod(numerator * PICO, denominator)
    if rest:
        raise _wrong(value, expected)
    return pico


def _count(value: object) -> int:
    number = _number(value)
    if number is None or not 0 <= number <= _HIGHEST_COUNT or number != int(number):
        raise _wrong(value, f"a whole number from 0 to {_HIGHEST_COUNT}")
    return int(number)


def flag(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise _wrong(value, "true or false")
    return value


def text(value: object, longest: int = _LONGEST_TEXT) -> str:
    """One line of text, which may be empty."""
    if not isinstance(value, str) or len(value) > longest or not value.isprintable():
        raise _wrong(value, f"one line of text, at most {longest} characters")
    return value


def identifier(value: object) -> str:
    """The id of something."""
    if not (found := text(value)) or found != found.strip():
        raise _wrong(value, "an id: text that does not begin or end with a space")
    return found


def _reference(value: object) -> str:
    """An id, or empty: of nothing."""
    return "" if value == "" else identifier(value)


def team_identifier(value: object) -> str:
    """A team's id. Its members are known as ``TEAM/USER``."""
    found = identifier(value)
    if "/" in found:
        raise _wrong(value, "an id without a slash")
    return found


def _alias(value: object) -> str:
    """A name that nobody can take for a key or its hash."""
    found = text(value)
    if found.startswith("sk-") or _HASH.fullmatch(found):
        raise _wrong(value, "a name, which neither begins with sk- nor is a SHA-256")
    return found


def _model(value: object) -> str:
    if not (found := text(value, _LONGEST_MODEL)):
        raise _wrong(value, "the name of a model")
    return found


def tag_name(value: object) -> str:
    if "," in (found := identifier(value)):
        raise _wrong(value, "a tag without a comma")
    return found


def key_secret(value: object) -> str:
    """A key that somebody has thought of."""
    if not isinstance(value, str) or not _SECRET.fullmatch(value):
        raise _wrong(
            value,
            "a key: it begins with sk- and has no space, comma, slash, quote or backslash",
        )
    if not _SHORTEST_SECRET <= len(value) <= _LONGEST_TEXT:
        raise _wrong(value, f"a key of {_SHORTEST_SECRET} to {_LONGEST_TEXT} characters")
    return value


def _hash(value: object) -> str:
    if not isinstance(value, str) or not _HASH.fullmatch(value.lower()):
        raise _wrong(value, "the SHA-256 of the key, 64 hexadecimal digits")
    return value.lower()


def one_of(*words: str) -> Check:
    """One of some words."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in words:
            raise _wrong(value, f"one of {', '.join(words)}")
        return value

    return check


def _member_of(enum: type[Enum]) -> Check:
    word = one_of(*(member.value for member in enum))
    return lambda value: enum(word(value))


def _parsed(parse: Callable[[str], object]) -> Check:
    """Text that something else can read; it is kept as it was written."""

    def check(value: object) -> str:
        written = text(value, _LONGEST_MODEL)
        try:
            parse(written)
        except ValueError as error:
            reason = str(error)
            if not reason.startswith("expected"):
                # It may quote what it read.
                if _LIKE_A_SECRET.search(written):
                    reason = "found what looks like a key"
                raise BadFields([Problem("", reason)]) from None
            raise BadFields([Problem("", f"found {_kind_of(value)}, {reason}")]) from None
        return written

    return check


_period = _parsed(parse_duration)


def duration(value: object) -> Duration:
    """A time from now on: ``30d``."""
    return parse_duration(_period(value))


def _lifetime(value: object) -> Duration | None:
    """The same; LiteLLM's ``-1`` is for ever."""
    return None if value == "-1" else duration(value)


def _time(value: object) -> int:
    """A time or a day -> microseconds since 1970. Without a zone it is UTC."""
    expected = "a time such as 2026-12-01T00:00:00Z, or a day such as 2026-12-01"
    if not isinstance(value, str):
        raise _wrong(value, expected)
    try:
        moment = datetime.fromisoformat(value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        since = (moment - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise _wrong(value, expected) from None
    if since <= 0:
        raise _wrong(value, expected)
    return since


def _time_or_duration(value: object) -> int | Duration:
    try:
        return _time(value)
    except BadFields:
        pass
    try:
        return duration(value)
    except BadFields:
        raise _wrong(
            value, "a time such as 2026-12-01T00:00:00Z, or a duration from now such as 7d"
        ) from None


def _elements(value: object, item: Check, most: int) -> list[Any]:
    if not isinstance(value, list | tuple) or len(value) > most:
        raise _wrong(value, f"a list of at most {most}")
    found: list[Any] = []
    problems: list[Problem] = []
    for index, element in enumerate(value):
        try:
            found.append(item(element))
        except BadFields as error:
            problems += _within(f"[{index}]", error)
    if problems:
        raise BadFields(problems)
    return found


def many(item: Check, most: int = _MOST_ITEMS) -> Check:
    """A list; what is in it twice is kept once."""
    return lambda value: tuple(dict.fromkeys(_elements(value, item, most)))


def _mapping(item: Check) -> Check:
    """An object of models."""

    def check(value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping) or len(value) > _MOST_ITEMS:
            raise _wrong(value, f"an object with at most {_MOST_ITEMS} members")
        found: dict[str, Any] = {}
        problems: list[Problem] = []
        for name, element in value.items():
            try:
                found[_model(name)] = item(element)
            except BadFields as error:
                problems += _within(f".{_shown_name(name)}", error)
        if problems:
            raise BadFields(problems)
        return found

    return check


def _model_budget(value: object) -> ModelLimits:
    """An amount, or one with its period."""
    if not isinstance(value, Mapping):
        return ModelLimits(max_budget=_money(value))
    amounts = [name for name in ("budget_limit", "max_budget") if name in value]
    periods = [name for name in ("time_period", "budget_duration") if name in value]
    problems = [
        Problem(f".{_shown_name(name)}", "unknown field; expected budget_limit and time_period")
        for name in value
        if name not in (*amounts[:1], *periods[:1])
    ]
    limits = ModelLimits()
    try:
        amount = value[amounts[0]] if amounts else None
        limits = msgspec.structs.replace(limits, max_budget=_money(amount))
    except BadFields as error:
        problems += _within(f".{amounts[0] if amounts else 'budget_limit'}", error)
    if periods and value[periods[0]] is not None:
        try:
            period = _period(value[periods[0]])
            limits = msgspec.structs.replace(limits, budget_duration=period)
        except BadFields as error:
            problems += _within(f".{periods[0]}", error)
    if problems:
        raise BadFields(problems)
    return limits


def roster(value: object) -> tuple[Member, ...]:
    """``[{"user_id": "u", "role": "admin"}]``: the members of a team, each once."""
    members: tuple[Member, ...] = tuple(_elements(value, member, _MOST_ITEMS))
    if len({one.user_id for one in members}) < len(members):
        raise _wrong(value, "a list in which each user is once")
    return members


def member(value: object) -> Member:
    """``{"user_id": "u", "role": "admin"}``; without a role an ordinary member."""
    if not isinstance(value, Mapping):
        raise _wrong(value, 'an object such as {"user_id": "u", "role": "user"}')
    table = {"role": _MEMBER["role"]}
    try:
        form = _read(table, Member, value, {"user_id": identifier}, ("user_id",))
    except BadFields as error:
        raise BadFields(_within(".", error)) from None
    return form.changes.apply(Member(user_id=form["user_id"]), 0)


def _metadata(value: object) -> dict[str, Any]:
    """An object of anything."""
    if not isinstance(value, Mapping):
        raise _wrong(value, "an object")
    found: dict[str, Any] = _plain(value, _METADATA_DEPTH)
    if len(json.dumps(found)) > _METADATA_BYTES:
        raise _wrong(value, f"an object of at most {_METADATA_BYTES} bytes")
    return found


def _plain(value: object, depth: int) -> Any:
    """What every database and every JSON can hold."""
    if depth < 0:
        raise _wrong(value, f"objects and lists at most {_METADATA_DEPTH} deep")
    if isinstance(value, Mapping):
        return {_plain_text(name): _plain(each, depth - 1) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, depth - 1) for each in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, float | Decimal) and math.isfinite(number := float(value)):
        return number
    if isinstance(value, str):
        return _plain_text(value)
    raise _wrong(value, "text, a number that a computer can hold, true, false or null")


def _plain_text(value: object) -> str:
    if (
        not isinstance(value, str)
        or "\0" in value
        or any("\ud800" <= c <= "\udfff" for c in value)
    ):
        raise _wrong(value, "text without NUL and halves of surrogate pairs")
    return value


# Where a value goes.

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def later(now_us: int, duration: Duration) -> int:
    """
    A moment from another one on. A month later is the same day of the next month,
    or its last one.

    :returns: microseconds since 1970.
    """
    if not duration.months:
        return now_us + duration.microseconds
    now = _EPOCH + timedelta(microseconds=now_us)
    year, month = divmod(now.year * 12 + now.month - 1 + duration.months, 12)
    day = min(now.day, monthrange(year, month + 1)[1])
    moved = now.replace(year=year, month=month + 1, day=day)
    return (moved - _EPOCH) // timedelta(microseconds=1)


Put = Callable[[Any, Any, int], Any]
"""A grant, a value and the time in microseconds -> the grant with it."""


def _same(value: Any) -> Any:
    return value


_KEEP = object()


@dataclass(frozen=True, slots=True)
class _Field:
    """
    One field of the API.

    :param null: what null stands for; see Note [What null means].
    :param show: what is kept -> as the API shows it; None: it is not shown by this name.
    """

    check: Check
    put: Put
    get: Callable[[Any], Any]
    null: Any = _KEEP
    show: Callable[[Any], object] | None = _same


def _to(
    path: str, check: Check, *, null: Any = _KEEP, show: Callable[[Any], object] = _same
) -> _Field:
    """A field that goes to an attribute."""
    names = path.split(".")

    def get(grant: Any) -> Any:
        return reduce(getattr, names, grant)

    def put(grant: Any, value: Any, now_us: int) -> Any:
        return _replaced(grant, names, value)

    return _Field(check, put, get, null, show)


def _replaced(struct: Any, names: list[str], value: Any) -> Any:
    name, *rest = names
    if rest:
        value = _replaced(getattr(struct, name), rest, value)
    return msgspec.structs.replace(struct, **{name: value})


def _of_models(
    check: Check, names: tuple[str, ...], show: Callable[[ModelLimits], object]
) -> _Field:
    """A field that goes to some of the limits of each model, in place of all it said."""

    def get(grant: Any) -> dict[str, ModelLimits]:
        models: dict[str, ModelLimits] = grant.limits.models
        return {
            model: limits
            for model, limits in models.items()
            if getattr(limits, names[0]) is not None
        }

    def put(grant: Any, value: dict[str, ModelLimits], now_us: int) -> Any:
        nothing = ModelLimits()
        models = {}
        for model in {**grant.limits.models, **value}:
            said = value.get(model, nothing)
            limits = msgspec.structs.replace(
                grant.limits.models.get(model, nothing),
                **{name: getattr(said, name) for name in names},
            )
            if limits != nothing:
                models[model] = limits
        return _replaced(grant, ["limits", "models"], models)

    def shown_by_model(models: dict[str, ModelLimits]) -> object:
        return {model: show(limits) for model, limits in models.items()}

    return _Field(check, put, get, {}, shown_by_model)


def _until(grant: Any, value: int | Duration, now_us: int) -> Any:
    moment = later(now_us, value) if isinstance(value, Duration) else value
    return _replaced(grant, ["limits", "budget_increase_until_us"], moment)


def _expiring(grant: Key, value: Duration | None, now_us: int) -> Key:
    moment = 0 if value is None else later(now_us, value)
    return msgspec.structs.replace(grant, expires_us=moment)


def _usd(picousd: int | None) -> Decimal | None:
    return None if picousd is None else as_decimal(picousd)


def _iso(microseconds: int) -> str | None:
    return iso_time(microseconds) if microseconds else None


def _or_null(value: Any) -> object:
    return value or None


def _model_budget_shown(limits: ModelLimits) -> object:
    return {
        "budget_limit": _usd(limits.max_budget),
        "time_period": limits.budget_duration or None,
    }


_Fields = dict[str, _Field]

_CAPS: _Fields = {
    "max_budget": _to("limits.max_budget", _money, null=None, show=_usd),
    "budget_duration": _to("limits.budget_duration", _period, null="", show=_or_null),
    "rpm_limit": _to("limits.rpm", _count, null=None),
    "tpm_limit": _to("limits.tpm", _count, null=None),
    "max_parallel_requests": _to("limits.max_parallel", _count, null=None),
}

_LIMITS: _Fields = {
    **_CAPS,
    "soft_budget": _to("limits.soft_budget", _money, null=None, show=_usd),
    "model_max_budget": _of_models(
        _mapping(_model_budget), ("max_budget", "budget_duration"), _model_budget_shown
    ),
    "model_rpm_limit": _of_models(
        _mapping(lambda value: ModelLimits(rpm=_count(value))), ("rpm",), lambda one: one.rpm
    ),
    "model_tpm_limit": _of_models(
        _mapping(lambda value: ModelLimits(tpm=_count(value))), ("tpm",), lambda one: one.tpm
    ),
    "temp_budget_increase": _to(
        "limits.budget_increase", _money, null=0, show=lambda pico: _usd(pico or None)
    ),
    "temp_budget_expiry": _Field(
        _time_or_duration,
        _until,
        lambda grant: grant.limits.budget_increase_until_us,
        0,
        _iso,
    ),
}

_MODELS: _Fields = {
    "models": _to("permissions.models", many(_parsed(parse_model_pattern)), show=list)
}

_PERMISSIONS: _Fields = {
    **_MODELS,
    "allowed_routes": _to(
        "permissions.allowed_routes", many(_parsed(parse_route_pattern)), show=list
    ),
    "operations": _to("permissions.operations", many(_parsed(parse_operation_pattern)), show=list),
    "denied_operations": _to(
        "permissions.denied_operations", many(_parsed(parse_operation_pattern)), show=list
    ),
    "allowed_ips": _to("permissions.allowed_ips", many(_parsed(parse_network)), show=list),
}

_BUDGET_ID: _Fields = {"budget_id": _to("budget_id", _reference, null="", show=_or_null)}

_COMMON: _Fields = {
    "metadata": _to("metadata", _metadata),
    "blocked": _to("blocked", flag),
}

_KEY: _Fields = {
    "key_alias": _to("alias", _alias, show=_or_null),
    "user_id": _to("user_id", _reference, show=_or_null),
    "team_id": _to("team_id", _reference, show=_or_null),
    "key_type": _to("type", _member_of(KeyType), show=lambda kind: kind.value),
    "duration": _Field(_lifetime, _expiring, lambda key: key.expires_us, None, None),
    "tags": _to("tags", many(tag_name, _MOST_TAGS), show=list),
    "aliases": _to("aliases", _mapping(_model)),
    **_PERMISSIONS,
    **_LIMITS,
    **_BUDGET_ID,
    **_COMMON,
}

_KEY_IN_CONFIG: _Fields = {
    **{name: field for name, field in _KEY.items() if name != "duration"},
    "expires": _to("expires_us", _time, null=0, show=_iso),
    "temp_budget_expiry": _to("limits.budget_increase_until_us", _time, null=0, show=_iso),
}
"""Nothing that counts from now on: the file says the same at each start."""

_USER: _Fields = {
    "user_alias": _to("alias", text, show=_or_null),
    "user_email": _to("email", text, show=_or_null),
    "user_role": _to("role", _member_of(Role), show=lambda role: role.value),
    **_PERMISSIONS,
    **_LIMITS,
    **_BUDGET_ID,
    **_COMMON,
}

_TEAM: _Fields = {
    "team_alias": _to("alias", text, show=_or_null),
    "model_aliases": _to("aliases", _mapping(_model)),
    **_PERMISSIONS,
    **_LIMITS,
    "team_member_budget": _to("member_limits.max_budget", _money, null=None, show=_usd),
    "team_member_budget_duration": _to(
        "member_limits.budget_duration", _period, null="", show=_or_null
    ),
    "team_member_rpm_limit": _to("member_limits.rpm", _count, null=None),
    "team_member_tpm_limit": _to("member_limits.tpm", _count, null=None),
    **_BUDGET_ID,
    **_COMMON,
}

_CUSTOMER: _Fields = {
    "alias": _to("alias", text, show=_or_null),
    **_LIMITS,
    **_BUDGET_ID,
    **_COMMON,
}

_TAG: _Fields = {
    "description": _to("description", lambda value: text(value, 1000), show=_or_null),
    **_LIMITS,
    **_BUDGET_ID,
    "blocked": _COMMON["blocked"],
}

_MEMBER: _Fields = {
    "role": _to("role", one_of("admin", "user")),
    "max_budget_in_team": _CAPS["max_budget"],
    **{name: _CAPS[name] for name in _CAPS if name != "max_budget"},
}

_TABLES: Mapping[Kind, _Fields] = {
    Key: _KEY,
    User: _USER,
    Team: _TEAM,
    Customer: _CUSTOMER,
    Budget: _LIMITS,
    Tag: _TAG,
    Member: _MEMBER,
}

_IDS: Mapping[Kind, str] = {
    Key: "token",
    User: "user_id",
    Team: "team_id",
    Customer: "user_id",
    Budget: "budget_id",
    Tag: "name",
}

_LITELLMS = frozenset(
    {
        "access_group_ids", "agent_id", "allowed_cache_controls", "allowed_model_region",
        "allowed_passthrough_routes", "allowed_vector_store_indexes", "auto_rotate",
        "budget_reset_at", "config", "default_model", "disable_global_guardrails",
        "enforced_params", "guardrails", "model_info", "object_permission",
        "object_permission_id", "organization_id", "organizations", "password",
        "permissions", "policies", "project_id", "prompts", "rotation_interval",
        "router_settings", "rpm_limit_type", "secret_manager_settings",
        "send_invite_email", "soft_budget_cooldown", "spend", "sso_user_id",
        "team_member_key_duration", "team_member_permissions", "tpm_limit_type",
        "user_email", "allowed_routes", "tags", "models", "model_aliases", "aliases",
    }
)  # fmt: skip
"""Fields that LiteLLM knows. Where we do not, they ask for nothing when they are empty."""


# Reading.


@dataclass(frozen=True, slots=True)
class Changes:
    """
    What is to become of a grant.

    :param values: by field, as they are kept.
    """

    values: Mapping[str, Any] = field(repr=False)
    fields: _Fields = field(repr=False)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def get(self, name: str) -> Any:
        """A field's value; None: it is not there, or it is taken away."""
        return self.values.get(name)

    def apply(self, grant: G, now_us: int) -> G:
        """
        :param grant: as it is, or as it is when nobody says anything.
        :param now_us: microseconds since 1970; 0: a budget that begins now counts
            everything.
        :raises BadFields: together with what there is it makes no sense.
        """
        changed: Any = grant
        for name, value in self.values.items():
            changed = self.fields[name].put(changed, value, now_us)
        for name in ("limits", "member_limits"):
            limits = getattr(changed, name, NO_LIMITS)
            if _begins(getattr(grant, name, NO_LIMITS), limits):
                changed = _replaced(changed, [name, "budget_start_us"], now_us)
        limits = changed.limits
        if limits.budget_increase and not limits.budget_increase_until_us:
            raise BadFields(
                [Problem("temp_budget_increase", "needs temp_budget_expiry: until when it holds")]
            )
        return changed


def _has_budget(limits: Limits) -> bool:
    return (
        limits.max_budget is not None
        or limits.soft_budget is not None
        or any(model.max_budget is not None for model in limits.models.values())
    )


def _begins(old: Limits, new: Limits) -> bool:
    """See Note [When a budget begins]."""
    return _has_budget(new) and (
        not _has_budget(old) or old.budget_duration != new.budget_duration
    )


@dataclass(frozen=True, slots=True)
class Form:
    """
    What was sent, read.

    :param changes: the fields of a grant.
    :param asked: the others, by name.
    """

    changes: Changes
    asked: Mapping[str, Any] = field(repr=False)

    def __getitem__(self, name: str) -> Any:
        return self.asked[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Another field; the default: it is not there, or null."""
        return self.asked.get(name, default)


def read(
    kind: Kind | None,
    fields: Mapping[str, object],
    others: Mapping[str, Check] | None = None,
    *,
    required: Sequence[str] = (),
) -> Form:
    """
    Read fields as they were sent.

    :param kind: what they are to change; None: nothing.
    :param others: further fields, which say what is to be done.
    :param required: which of these must be there.
    :raises BadFields: with all that is wrong.
    """
    table = {} if kind is None else _TABLES[kind]
    return _read(table, kind, fields, others or {}, required)


def _read(
    table: _Fields,
    kind: Kind | None,
    fields: Mapping[str, object],
    others: Mapping[str, Check],
    required: Sequence[str],
) -> Form:
    values: dict[str, Any] = {}
    asked: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in fields.items():
        known = table.get(name)
        try:
            if name in others:
                if value is not None:
                    asked[name] = others[name](value)
            elif known is None:
                problems += _unknown(name, value, (*others, *table), kind)
            elif value is not None:
                values[name] = known.check(value)
            elif known.null is not _KEEP:
                values[name] = known.null
        except BadFields as error:
            problems += _within(name, error)
    problems += [
        Problem(name, "is missing")
        for name in required
        if name not in asked and fields.get(name) is None
    ]
    if problems:
        raise BadFields(problems)
    return Form(Changes(values, table), asked)


def _unknown(
    name: object, value: object, known: Iterable[str], kind: Kind | None
) -> list[Problem]:
    """A field that nobody asked for."""
    if name in _LITELLMS:
        if not value:
            return []
        whom = f" for a {kind.__name__.lower()}" if kind is not None else ""
        return [Problem(str(name), f"has no meaning{whom} in this gateway; leave it out")]
    alike = difflib.get_close_matches(str(name)[:64], list(known), 1)
    hint = f"; did you mean {alike[0]}?" if alike else ""
    return [Problem(_shown_name(name), f"unknown field{hint}")]


def _shown_name(name: object) -> str:
    """A name that was sent, where that is harmless."""
    harmless = isinstance(name, str) and name.isprintable() and not _LIKE_A_SECRET.search(name)
    return str(name)[:64] if harmless else "(a name that is not shown)"


def key_from_config(fields: Mapping[str, object]) -> Key:
    """
    A key of ``config.yaml``: ``key_hash``, the SHA-256 of its secret in hex, and the
    fields of ``/key/generate``; ``expires``, a time, in place of ``duration``.

    Its budget counts everything that the ledger knows, in periods from 1970 on.

    :raises BadFields: with all that is wrong.
    """
    form = _read(_KEY_IN_CONFIG, Key, fields, {"key_hash": _hash}, ("key_hash",))
    key_hash = form["key_hash"]
    return form.changes.apply(Key(id=key_hash, tokens=(Token(hash=key_hash),)), 0)


# Showing.


def shown(grant: Grant) -> dict[str, object]:
    """
    What is kept, in LiteLLM's fields; money as decimal US dollars, times in ISO 8601.

    Nothing in it is a secret.
    """
    found: dict[str, object] = {_IDS[type(grant)]: grant.id}
    if isinstance(grant, Key):
        found["key_name"] = grant.tokens[0].shown or None if grant.tokens else None
        found["expires"] = _iso(grant.expires_us)
    if isinstance(grant, Team):
        found["members_with_roles"] = [
            {"user_id": one.user_id, "role": one.role} for one in grant.members
        ]
    for name, known in _TABLES[type(grant)].items():
        if known.show is not None:
            found[name] = known.show(known.get(grant))
    return {
        **found,
        "created_at": _iso(grant.created_us),
        "created_by": grant.created_by or None,
        "updated_at": _iso(grant.updated_us),
        "updated_by": grant.updated_by or None,
    }


def shown_member(member: Member) -> dict[str, object]:
    """A member of a team, in LiteLLM's fields."""
    found: dict[str, object] = {"user_id": member.user_id}
    for name, known in _MEMBER.items():
        if known.show is not None:
            found[name] = known.show(known.get(member))
    return found
