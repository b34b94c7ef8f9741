"""
What the management API rests on: what is granted, what was spent, who may do what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

from msgspec.structs import replace

from txbedrock.core.auth import Principal
from txbedrock.core.budgets import period_at, resets_at
from txbedrock.core.entries import By, Filters
from txbedrock.core.grantfields import BadFields, Changes, Problem, shown
from txbedrock.core.grants import (
    NO_LIMITS,
    Budget,
    Customer,
    Grant,
    Key,
    Limits,
    Permissions,
    Tag,
    Team,
    User,
    with_budget,
)
from txbedrock.core.money import as_decimal
from txbedrock.errors import AccessDenied, GrantNotFound, ProxyError
from txbedrock.inbound.admin.answering import Call, refused
from txbedrock.interfaces import IDirectory, IKeyStore, ILedger

__all__ = ["Backing", "NoDirectory", "Row", "applied", "is_restricted"]

G = TypeVar("G", Key, User, Team, Customer, Budget, Tag)
Row = dict[str, Any]

_SPENT: Mapping[type[Grant], tuple[By, str]] = {
    Key: ("key", "key_hash"),
    User: ("user", "user_id"),
    Team: ("team", "team_id"),
    Customer: ("end_user", "end_user"),
    Tag: ("tag", "tag"),
}
"""Whose spend the ledger knows, by what, and the filter for one of them."""

_BUDGET_FIELDS = (
    "budget_id", "max_budget", "soft_budget", "budget_duration", "rpm_limit", "tpm_limit",
    "max_parallel_requests", "model_max_budget",
)  # fmt: skip


class NoDirectory(ProxyError):
    """There is nowhere to keep keys, users ... SDKs retry it."""

    status = 503
    code = "ServiceUnavailableException"


def is_restricted(limits: Limits, permissions: Permissions) -> bool:
    """May a key do less than its user and its team? Routes do not count."""
    return limits != NO_LIMITS or any(
        (
            permissions.models,
            permissions.operations,
            permissions.denied_operations,
            permissions.allowed_ips,
        )
    )


def applied(changes: Changes, grant: G, now_us: int) -> G:
    """
    A grant with what was asked for.

    :raises InvalidRequest: together it makes no sense.
    """
    try:
        return changes.apply(grant, now_us)
    except BadFields as error:
        raise refused(*error.problems) from None


@dataclass(frozen=True, slots=True)
class Backing:
    """
    :param ledger: None: nothing is kept, and what was spent is not known.
    :param salt: what AWS-style key pairs are derived with; None: there are none.
    """

    keys: IKeyStore
    directory: IDirectory
    ledger: ILedger | None
    salt: bytes | None = field(default=None, repr=False)

    # What is granted.

    async def add(self, call: Call, grant: G) -> G:
        """Keep something new."""
        made = replace(
            grant,
            created_us=call.now_us,
            created_by=call.by,
            updated_us=call.now_us,
            updated_by=call.by,
        )
        await self.directory.add(made, call.actor)
        return made

    async def change(
        self,
        call: Call,
        kind: type[G],
        id: str,
        change: Callable[[G], G],
        action: str = "update",
    ) -> G:
        """
        Change something.

        :raises InvalidRequest: what it would be makes no sense.
        """

        def changed(grant: G) -> G:
            try:
                found = change(grant)
            except BadFields as error:
                raise refused(*error.problems) from None
            return replace(found, updated_us=call.now_us, updated_by=call.by)

        return await self.directory.change(kind, id, changed, call.actor, action)

    async def get(self, kind: type[G], id: str) -> G | None:
        """None: there is none."""
        try:
            return await self.directory.get(kind, id)
        except GrantNotFound:
            return None

    async def check_references(self, changes: Changes) -> None:
        """
        Do the budget and the team exist that something is to refer to?

        :raises InvalidRequest: one does not.
        """
        budget_id, team_id = changes.get("budget_id"), changes.get("team_id")
        problems = []
        if budget_id and await self.get(Budget, budget_id) is None:
            problems.append(_missing("budget"))
        if team_id and await self.get(Team, team_id) is None:
            problems.append(_missing("team"))
        if problems:
            raise refused(*problems)

    # What was spent.

    async def rows(self, call: Call, grants: Sequence[G]) -> list[Row]:
        """
        Grants as the API shows them: with what was spent in the budget's period, when
        the next one begins, and the named budget.
        """
        budgets: dict[str, Budget | None] = {}
        for id in {getattr(grant, "budget_id", "") for grant in grants} - {""}:
            budgets[id] = await self.get(Budget, id)
        named = [budgets.get(getattr(grant, "budget_id", "")) for grant in grants]
        filled = [
            with_budget(grant.limits, budget) for grant, budget in zip(grants, named, strict=True)
        ]
        spent = await self._spent(list(zip(grants, filled, strict=True)), call.now_us)
        rows = []
        for grant, budget, limits, spend in zip(grants, named, filled, spent, strict=True):
            row: Row = shown(grant)
            if type(grant) in _SPENT:
                row["spend"] = spend
            row["budget_reset_at"] = resets_at(
                limits.budget_duration, limits.budget_start_us, call.now_us
            )
            if not isinstance(grant, Budget):
                row["litellm_budget_table"] = None if budget is None else _table(budget)
            rows.append(row)
        return rows

    async def row(self, call: Call, grant: G) -> Row:
        """One of them."""
        [row] = await self.rows(call, [grant])
        return row

    async def _spent(
        self, grants: Sequence[tuple[Grant, Limits]], now_us: int
    ) -> list[Decimal | None]:
        """US dollars of each in its period; None: nobody knows."""
        if self.ledger is None or not grants or type(grants[0][0]) not in _SPENT:
            return [None] * len(grants)
        by, only = _SPENT[type(grants[0][0])]
        begun = [_since(grant, limits, now_us) for grant, limits in grants]
        sums: dict[int | None, dict[str, int]] = {}
        for since in dict.fromkeys(begun):
            ids = [grant.id for (grant, _), begin in zip(grants, begun, strict=True)
                   if begin == since]  # fmt: skip
            one: dict[str, Any] = {only: ids[0]} if len(ids) == 1 else {}
            totals = await self.ledger.totals(by, Filters(since_us=since, **one))
            sums[since] = {total.name: total.cost_picousd for total in totals}
        return [
            as_decimal(sums[since].get(grant.id, 0))
            for (grant, _), since in zip(grants, begun, strict=True)
        ]

    # Who may do what.

    async def leads(self, principal: Principal, team_id: str) -> bool:
        """Does it administer a team?"""
        if not team_id:
            return False
        if principal.team_admin and principal.team_id == team_id:
            return True
        return await self._role_in(principal, team_id) == "admin"

    async def belongs(self, principal: Principal, team_id: str) -> bool:
        """Is its user in a team?"""
        return bool(await self._role_in(principal, team_id))

    async def _role_in(self, principal: Principal, team_id: str) -> str:
        if not principal.user_id:
            return ""
        team = await self.get(Team, team_id)
        members = () if team is None else team.members
        return next((one.role for one in members if one.user_id == principal.user_id), "")

    async def asking(self, principal: Principal, team_id: str) -> Key | None:
        """
        The key that asks, if it may give what belongs to a team, or to none.

        Whoever has only a restricted key must not get an unrestricted one with it.

        :returns: None: it is no virtual key.
        :raises AccessDenied: it is restricted itself, or belongs to another team.
        """
        own = await self.get(Key, principal.key_hash)
        if own is None:
            return None
        if own.budget_id or is_restricted(own.limits, own.permissions):
            raise AccessDenied(
                "This key has limits of its own, and so neither makes keys nor changes others: "
                "use one of your keys that has none, or ask a proxy admin."
            )
        if own.team_id and own.team_id != team_id:
            raise AccessDenied(
                "This key belongs to a team, and so neither makes nor changes what does not: "
                "use one of your keys that is in no team, or ask a proxy admin."
            )
        return own


def _missing(kind: str) -> Problem:
    return Problem(f"{kind}_id", f"there is no such {kind}; make it with /{kind}/new")


def _since(grant: Grant, limits: Limits, now_us: int) -> int | None:
    """When the budget's period began; None: everything counts."""
    begin_us, _ = period_at(limits.budget_duration, limits.budget_start_us, now_us)
    # A key has spent nothing before it was there, and sums of everything are at hand.
    if begin_us <= 0 or (isinstance(grant, Key) and begin_us <= grant.created_us):
        return None
    return begin_us


def _table(budget: Budget) -> Row:
    row = shown(budget)
    return {name: row[name] for name in _BUDGET_FIELDS}
