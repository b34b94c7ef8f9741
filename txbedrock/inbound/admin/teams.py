"""
``/team``: users who share limits.

An admin of a team (``role`` among its members) changes its members. What the team
itself may do and spend is for proxy admins to say. Its members see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec.structs import replace
from twisted.web.resource import Resource

from txbedrock.core.budgets import period_at
from txbedrock.core.entries import Filters
from txbedrock.core.grantfields import (
    identifier,
    member,
    roster,
    shown_member,
    team_identifier,
)
from txbedrock.core.grants import NO_LIMITS, Key, Member, Team
from txbedrock.core.money import as_decimal
from txbedrock.errors import AccessDenied, GrantExists, GrantNotFound
from txbedrock.inbound.admin.answering import Call, Listed, changers, everyone
from txbedrock.inbound.admin.backing import Backing, Row
from txbedrock.inbound.admin.kept import Kept, changes, reads
from txbedrock.interfaces import GrantSearch

__all__ = ["Teams"]

_MOST_SHOWN = 500


class Teams(Kept[Team]):
    """The paths below ``/team``."""

    def __init__(self, backing: Backing) -> None:
        Kept.__init__(self, backing, Team, "team_id", team_identifier)

    async def new_with_members(self, call: Call) -> Row:
        """``/team/new``"""
        form, team = await self.make(call, {"members_with_roles": roster})
        team = replace(team, members=form.get("members_with_roles", ()))
        return await self._backing.row(call, await self._backing.add(call, team))

    async def info(self, call: Call) -> Row:
        """``/team/info?team_id=``; without it the team of the key that asks."""
        principal = call.principal
        id = call.query.text("team_id") or principal.team_id
        if not id:
            raise GrantNotFound("This key is in no team. Name one: /team/info?team_id=...")
        leads = principal.sees_all or await self._backing.leads(principal, id)
        inside = leads or principal.team_id == id or await self._backing.belongs(principal, id)
        if not inside:
            raise AccessDenied("Only its members and those who see all may see a team.")
        team = await self._directory.get(Team, id)
        filters = {"team_id": id}
        if not leads:
            # Whoever is only a member sees the keys of nobody else.
            filters["user_id"] = principal.user_id
        keys: list[Key] = []
        if leads or principal.user_id:
            keys, _ = await self._directory.find(Key, GrantSearch(filters, limit=_MOST_SHOWN))
        return {
            "team_id": id,
            "team_info": await self._backing.row(call, team),
            "keys": await self._backing.rows(call, keys),
            "team_memberships": await self._memberships(call, team, team.members),
        }

    async def _memberships(self, call: Call, team: Team, members: tuple[Member, ...]) -> list[Row]:
        """Members with what they have spent in the team, in the period of their budget."""
        sums: dict[int, dict[str, int]] = {}
        rows = []
        for one in members:
            limits = one.limits if one.limits != NO_LIMITS else team.member_limits
            since, _ = period_at(limits.budget_duration, limits.budget_start_us, call.now_us)
            row: Row = {"team_id": team.id, **shown_member(one), "spend": None}
            if self._backing.ledger is not None:
                if since not in sums:
                    totals = await self._backing.ledger.totals(
                        "user", Filters(team_id=team.id, since_us=since or None)
                    )
                    sums[since] = {total.name: total.cost_picousd for total in totals}
                row["spend"] = as_decimal(sums[since].get(one.user_id, 0))
            rows.append(row)
        return rows

    async def found(self, call: Call) -> Listed:
        """``/team/list``: all, those of one user, or one's own."""
        principal = call.principal
        user_id = call.query.text("user_id")
        if not principal.sees_all:
            if user_id not in (None, principal.user_id):
                raise AccessDenied("Only those who see all see the teams of other users.")
            user_id = principal.user_id
            if not user_id:
                ids = (principal.team_id,) if principal.team_id else ()
                return Listed(await self.infos(call, ids), len(ids))
        return await self.page(call, {} if user_id is None else {"user_id": user_id})

    async def delete(self, call: Call) -> Row:
        """``/team/delete``: with their keys."""
        return {"deleted_teams": await self.remove(call, self.ids(call, "team_ids"))}

    async def block(self, call: Call) -> Row:
        """``/team/block``"""
        return await self._blocked(call, True)

    async def unblock(self, call: Call) -> Row:
        """``/team/unblock``"""
        return await self._blocked(call, False)

    async def _blocked(self, call: Call, blocked: bool) -> Row:
        form = call.form(None, {"team_id": identifier}, required=("team_id",))
        return await self._backing.row(
            call, await self.set_blocked(call, form["team_id"], blocked)
        )

    # Members.

    async def member_add(self, call: Call) -> Row:
        """``/team/member_add``: one, or several."""
        form = call.form(
            Member, {"team_id": identifier, "member": _members}, required=("team_id", "member")
        )
        added = tuple(form.changes.apply(one, call.now_us) for one in form["member"])

        def change(team: Team) -> Team:
            here = {one.user_id for one in team.members}
            twice = [one.user_id for one in added if one.user_id in here]
            if twice:
                raise GrantExists(f"In the team already: {', '.join(twice)}.")
            return replace(team, members=(*team.members, *added))

        team = await self._change_members(call, form["team_id"], change, "member_add")
        row = await self._backing.row(call, team)
        return {**row, "updated_team_memberships": await self._memberships(call, team, added)}

    async def member_update(self, call: Call) -> Row:
        """``/team/member_update``"""
        form = call.form(
            Member,
            {"team_id": identifier, "user_id": identifier},
            required=("team_id", "user_id"),
        )

        def change(team: Team) -> Team:
            _find(team, form["user_id"])
            members = [
                form.changes.apply(one, call.now_us) if one.user_id == form["user_id"] else one
                for one in team.members
            ]
            return replace(team, members=tuple(members))

        team = await self._change_members(call, form["team_id"], change, "member_update")
        [row] = await self._memberships(call, team, (_find(team, form["user_id"]),))
        return row

    async def member_delete(self, call: Call) -> Row:
        """``/team/member_delete``"""
        form = call.form(
            None,
            {"team_id": identifier, "user_id": identifier},
            required=("team_id", "user_id"),
        )

        def change(team: Team) -> Team:
            gone = _find(team, form["user_id"])
            return replace(team, members=tuple(one for one in team.members if one != gone))

        team = await self._change_members(call, form["team_id"], change, "member_delete")
        return await self._backing.row(call, team)

    async def _change_members(
        self, call: Call, team_id: str, change: Callable[[Team], Team], action: str
    ) -> Team:
        principal = call.principal
        if not principal.admin:
            if not await self._backing.leads(principal, team_id):
                raise AccessDenied(
                    "Only an admin of the team and a proxy admin change its members."
                )
            await self._backing.asking(principal, team_id)
        return await self._backing.change(call, Team, team_id, change, action)

    def resources(self) -> Mapping[bytes, Resource]:
        """What belongs at the root."""
        paths = {
            "new": changes(self.new_with_members),
            "info": reads(self.info, "team_id", may=everyone),
            "list": reads(self.found, "user_id", "page", "size", may=everyone),
            "update": changes(self.update),
            "delete": changes(self.delete),
            "block": changes(self.block),
            "unblock": changes(self.unblock),
            "member_add": changes(self.member_add, may=changers),
            "member_update": changes(self.member_update, may=changers),
            "member_delete": changes(self.member_delete, may=changers),
        }
        return {b"team": self.branch("/team", paths)}


def _members(value: object) -> tuple[Member, ...]:
    """One member, or a list of them."""
    return roster(value) if isinstance(value, list) else (member(value),)


def _find(team: Team, user_id: str) -> Member:
    for one in team.members:
        if one.user_id == user_id:
            return one
    raise GrantNotFound(f"The user {user_id!r} is not in the team.")
