"""
``/user``: who has keys.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace
from twisted.web.resource import Resource

from txbedrock.core.grantfields import BadFields, Form, Problem, flag, identifier, many, read
from txbedrock.core.grants import Key, Member, Team, User
from txbedrock.errors import AccessDenied, GrantNotFound, ProxyError
from txbedrock.inbound.admin.answering import Call, everyone, refused
from txbedrock.inbound.admin.backing import Backing, Row, applied
from txbedrock.inbound.admin.kept import Kept, changes, new_id, reads
from txbedrock.inbound.admin.keys import NEW_KEY, Keys
from txbedrock.interfaces import GrantSearch

__all__ = ["Users"]

_OF_ITS_KEY = frozenset(("aliases", "duration", "key_alias", "key_type", "tags", *NEW_KEY))
"""Fields of ``/user/new`` that mean the key that is made with a user."""

_OTHERS = {
    "user_id": identifier,
    "auto_create_key": flag,
    "teams": many(identifier, 100),
}

_MOST_SHOWN = 500
_ORDERS = {"created_at": "created_us", "updated_at": "updated_us", "user_alias": "alias",
           "user_id": "id"}  # fmt: skip


class Users(Kept[User]):
    """The paths below ``/user``."""

    def __init__(self, backing: Backing, keys: Keys) -> None:
        Kept.__init__(self, backing, User, "user_id", identifier)
        self._keys = keys

    async def new_with_key(self, call: Call) -> Row:
        """``/user/new``: a user and, unless ``auto_create_key`` is false, a key."""
        form, of_key = _forms(call.fields)
        user = applied(form.changes, User(id=form.get("user_id") or new_id()), call.now_us)
        key = applied(of_key.changes, Key(id="", user_id=user.id), call.now_us)
        await self._backing.check_references(form.changes)
        teams = form.get("teams", ())
        for id in teams:
            await self._directory.get(Team, id)
        user = await self._backing.add(call, user)
        answer: Row = {}
        try:
            for id in teams:
                await self._backing.change(call, Team, id, lambda team: _with(team, user.id))
            if form.get("auto_create_key", True):
                answer = await self._keys.make(call, of_key, key)
        except ProxyError:
            # The alias of its key is taken, for one. Then nothing has been done.
            await self._directory.remove(User, user.id, call.actor)
            raise
        return {**answer, **await self._backing.row(call, user), "teams": list(teams)}

    async def info(self, call: Call) -> Row:
        """``/user/info?user_id=``; without it the user of the key that asks."""
        principal = call.principal
        id = call.query.text("user_id") or principal.user_id
        if not id:
            raise GrantNotFound("This key belongs to no user. Name one: /user/info?user_id=...")
        if id != principal.user_id and not principal.sees_all:
            raise AccessDenied("Only a proxy admin or a proxy_admin_viewer sees other users.")
        user = await self._backing.get(User, id)
        if user is None:
            if id != principal.user_id:
                raise GrantNotFound("User not found in database.")
            # A key may name a user of whom nothing else is kept.
            user = User(id=id, role=principal.role)
        mine = {"user_id": id}
        keys, _ = await self._directory.find(Key, GrantSearch(mine, limit=_MOST_SHOWN))
        teams, _ = await self._directory.find(Team, GrantSearch(mine, "id", limit=_MOST_SHOWN))
        return {
            "user_id": id,
            "user_info": await self._backing.row(call, user),
            "keys": await self._backing.rows(call, keys),
            "teams": await self._backing.rows(call, teams),
        }

    async def found(self, call: Call) -> Row:
        """``/user/list``"""
        query = call.query
        page = query.number("page", 1, 1, 10**9)
        size = query.number("page_size", 25, 1, 100)
        order_by = query.word("sort_by", _ORDERS, "created_us")
        order = query.word("sort_order", {"asc": "asc", "desc": "desc"}, "desc")
        named = query.text("user_ids")
        if named is None:
            users, total = await self._directory.find(
                User, GrantSearch({}, order_by, order == "desc", (page - 1) * size, size)
            )
        else:
            ids = [id.strip() for id in named.split(",")[:100]]
            some = [await self._backing.get(User, id) for id in ids]
            users = [user for user in some if user is not None]
            total = len(users)
            users = users[(page - 1) * size : page * size]
        rows = await self._backing.rows(call, users)
        for row in rows:
            search = GrantSearch({"user_id": row["user_id"]}, limit=1)
            _, row["key_count"] = await self._directory.find(Key, search)
        return {
            "users": rows,
            "total": total,
            "page": page,
            "page_size": size,
            "total_pages": -(-total // size),
        }

    async def delete(self, call: Call) -> Row:
        """``/user/delete``: with their keys."""
        return {"deleted_users": await self.remove(call, self.ids(call, "user_ids"))}

    def resources(self) -> Mapping[bytes, Resource]:
        """What belongs at the root."""
        paging = ("page", "page_size", "sort_by", "sort_order", "user_ids")
        paths = {
            "new": changes(self.new_with_key),
            "info": reads(self.info, "user_id", may=everyone),
            "list": reads(self.found, *paging),
            "update": changes(self.update),
            "delete": changes(self.delete),
        }
        return {b"user": self.branch("/user", paths)}


def _forms(fields: Mapping[str, object]) -> tuple[Form, Form]:
    """The user's and the key's, out of one body."""
    of_key = {name: value for name, value in fields.items() if name in _OF_ITS_KEY}
    of_user = {name: value for name, value in fields.items() if name not in _OF_ITS_KEY}
    forms: list[Form] = []
    problems: list[Problem] = []
    try:
        forms.append(read(User, of_user, _OTHERS))
    except BadFields as error:
        problems += error.problems
    try:
        forms.append(read(Key, of_key, NEW_KEY))
    except BadFields as error:
        problems += error.problems
    if of_user.get("auto_create_key") is False:
        problems += [
            Problem(name, "is for a key, and auto_create_key is false")
            for name, value in of_key.items()
            if value
        ]
    if problems:
        raise refused(*problems)
    user, key = forms
    return user, key


def _with(team: Team, user_id: str) -> Team:
    if user_id in {member.user_id for member in team.members}:
        return team
    return replace(team, members=(*team.members, Member(user_id=user_id)))
