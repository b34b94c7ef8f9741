"""
``/key``: virtual keys.

Note [Who may do what with a key]
---------------------------------
An admin everything. Whoever sees all sees every key, and whoever holds a key sees
that. For the others there are two ways to have a say:

- a key of one's own (its ``user_id`` is one's own): to see it, to give it another
  name, other metadata or another secret, to block and to delete it. What it may do and
  spend is settled when it is made, and so is its end;
- a key of a team that one leads (``admin`` among its members): all of that, and to
  change and unblock it, within what the team has.

They make keys for themselves, or for members of a team that they lead; in a team only
if they are in it; with no higher limits and no other models than their user has, or
the team of a key that is in one. ``operations`` and an increase of a budget are for
admins to grant: whoever names operations may name unusual ones.

What such a key makes or changes must not be a way out of what holds for itself. One
with limits or permissions of its own makes and changes no other. One in a team makes
and changes keys of that team only; one that expires none that live longer. Its tags
are those of the keys that it makes, too.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import Any

from msgspec.structs import replace
from twisted.web.resource import IResource, Resource

from txbedrock.core.auth import hash_key
from txbedrock.core.budgets import Duration
from txbedrock.core.grantfields import (
    Changes,
    Form,
    Problem,
    duration,
    flag,
    key_secret,
    later,
    many,
    text,
)
from txbedrock.core.grants import Key, Limits, Permissions, Team, Token, User
from txbedrock.core.models import bare_id
from txbedrock.core.pairs import access_key_id, secret_access_key
from txbedrock.core.permissions import Access
from txbedrock.errors import AccessDenied, GrantExists, GrantNotFound, InvalidRequest
from txbedrock.inbound.admin.answering import (
    Answering,
    Branch,
    Call,
    Endpoint,
    changers,
    everyone,
    refused,
)
from txbedrock.inbound.admin.backing import Backing, Row, applied
from txbedrock.interfaces import GrantSearch

__all__ = ["NEW_KEY", "Keys"]

_MOST_TOKENS = 8
_ADMINS_ONLY = ("operations", "temp_budget_increase", "temp_budget_expiry")
_OWNERS_MAY = ("key_alias", "metadata", "blocked")
_WORDS = ("all-team-models", "no-default-models")
"""In a list of models, LiteLLM's: they add nothing."""

NEW_KEY = {"key": key_secret, "aws_credentials": flag}
"""What /key/generate takes besides the fields of a key."""

_PAGING = ("page", "size", "sort_by", "sort_order")
_ORDERS = {
    "created_at": "created_us",
    "updated_at": "updated_us",
    "key_alias": "alias",
    "token": "id",
}


@dataclass(frozen=True, slots=True)
class _Made:
    """A secret, seen once."""

    token: Token
    answer: Row = field(repr=False)
    """What is said of it."""


class Keys:
    """The paths below ``/key``."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing
        self._directory = backing.directory

    # Making them.

    async def generate(self, call: Call) -> Row:
        """``/key/generate``"""
        form = call.form(Key, NEW_KEY)
        key = await self._allowed(call, form.changes)
        await self._backing.check_references(form.changes)
        return await self.make(call, form, key)

    async def make(self, call: Call, form: Form, key: Key) -> Row:
        """
        Keep a new key, and tell its secret.

        :param form: with what :data:`NEW_KEY` takes.
        :param key: as it is to be, without a secret.
        """
        made = self._secret(form.get("key"), form.get("aws_credentials", False))
        if made.token.hash == call.principal.key_hash:
            raise GrantExists("The key is the one that asks: think of another one, or of none.")
        key = replace(key, id=made.token.hash, tokens=(made.token,))
        key = await self._backing.add(call, key)
        return {**await self._row(call, key), **made.answer}

    def _secret(self, chosen: str | None, pair: bool) -> _Made:
        """
        A new secret.

        :param pair: whether it comes with an AWS-style key pair.
        :raises InvalidRequest: there are no pairs here.
        """
        secret = chosen or f"sk-{secrets.token_urlsafe(32)}"
        token = Token(hash=hash_key(secret.encode()).hex(), shown=f"sk-...{secret[-4:]}")
        answer: Row = {"key": secret, "key_name": token.shown}
        if pair:
            if not self._backing.salt:
                reason = (
                    "this gateway has nothing to derive key pairs with; set the environment "
                    "variable TXBEDROCK_SALT_KEY, or a master key"
                )
                raise refused(Problem("aws_credentials", reason))
            token = replace(token, access_key_id=access_key_id(token.hash))
            answer["aws_access_key_id"] = token.access_key_id
            answer["aws_secret_access_key"] = secret_access_key(self._backing.salt, token.hash)
        return _Made(token, answer)

    async def _allowed(self, call: Call, changes: Changes) -> Key:
        """
        The key that is asked for, if whoever asks may have it.
        See Note [Who may do what with a key].
        """
        key = applied(changes, Key(id=""), call.now_us)
        principal = call.principal
        if principal.admin:
            return key
        if "team_id" not in changes and principal.team_id:
            key = replace(key, team_id=principal.team_id)
        leads = await self._backing.leads(principal, key.team_id)
        if not principal.user_id and not leads:
            raise AccessDenied("This key belongs to no user and so makes no keys: ask an admin.")
        asking = await self._backing.asking(principal, key.team_id)
        if key.user_id != principal.user_id:
            if not key.user_id and not leads:
                key = replace(key, user_id=principal.user_id)
            elif not leads:
                raise AccessDenied("Only a proxy admin makes keys for other users.")
        if key.team_id and not (leads or await self._backing.belongs(principal, key.team_id)):
            raise AccessDenied("Only its members and proxy admins make keys of a team.")
        if key.team_id and key.user_id and key.user_id != principal.user_id:
            await self._check_member(key.team_id, key.user_id)
        await self._check_bounds(call, changes, key)
        if asking is not None:
            if asking.expires_us and "duration" not in changes:
                key = replace(key, expires_us=asking.expires_us)
            key = replace(key, tags=tuple(dict.fromkeys((*asking.tags, *key.tags))))
            _check_end(asking, key)
        return key

    async def _check_member(self, team_id: str, user_id: str) -> None:
        team = await self._directory.get(Team, team_id)
        if user_id not in {member.user_id for member in team.members}:
            raise AccessDenied("Keys of a team are for its members: add the user first.")

    async def _check_bounds(self, call: Call, changes: Changes, key: Key) -> None:
        """:raises AccessDenied: more than those have who make it."""
        granted = [name for name in _ADMINS_ONLY if name in changes]
        if granted:
            raise AccessDenied(f"Only a proxy admin may set {', '.join(granted)}.")
        for whose, owner in await self._owners(key):
            over = _over(key.limits, owner.limits)
            if _beyond(key.permissions, owner.permissions):
                over.append("models")
            over = [name for name in over if name in changes]
            if over:
                raise AccessDenied(
                    f"This is more than the key's {whose} has: {', '.join(over)}. Ask for less, "
                    "or a proxy admin for more."
                )

    async def _owners(self, key: Key) -> list[tuple[str, User | Team]]:
        """Its user and its team, as far as anything is kept of them."""
        owners: list[tuple[str, User | Team]] = []
        user = await self._backing.get(User, key.user_id) if key.user_id else None
        if user is not None:
            owners.append(("user", user))
        if key.team_id:
            owners.append(("team", await self._directory.get(Team, key.team_id)))
        return owners

    # Seeing them.

    async def info(self, call: Call) -> Row:
        """``/key/info?key=``; without it the key that asks."""
        name = call.query.text("key")
        if name is None:
            own = await self._backing.get(Key, call.principal.key_hash)
            if own is None:
                raise GrantNotFound(
                    "The key that asks is not a virtual key, so there is nothing to tell. Name "
                    "one: /key/info?key=..."
                )
            return {"key": own.id, "info": await self._row(call, own)}
        key = await self._sought(call, name)
        return {"key": key.id, "info": await self._row(call, key)}

    async def infos(self, call: Call) -> Row:
        """``/v2/key/info``: of many."""
        form = call.form(None, {"keys": many(_name, 100)}, required=("keys",))
        keys = [await self._sought(call, name) for name in form["keys"]]
        return {"key": [key.id for key in keys], "info": await self._rows(call, keys)}

    async def listed(self, call: Call) -> Row:
        """``/key/list``"""
        query = call.query
        page = query.number("page", 1, 1, 10**9)
        size = query.number("size", 10, 1, 100)
        order_by = query.word("sort_by", _ORDERS, "created_us")
        order = query.word("sort_order", {"asc": "asc", "desc": "desc"}, "desc")
        keys, total = await self._found(
            call, GrantSearch({}, order_by, order == "desc", (page - 1) * size, size)
        )
        whole = query.flag("return_full_object")
        return {
            "keys": await self._rows(call, keys) if whole else [key.id for key in keys],
            "total_count": total,
            "current_page": page,
            "total_pages": -(-total // size),
        }

    async def aliases(self, call: Call) -> Row:
        """``/key/aliases``: the names of all that may be seen."""
        names: list[str] = []
        offset, size = 0, 500
        while True:
            keys, _ = await self._found(call, GrantSearch({}, "alias", False, offset, size))
            names += [key.alias for key in keys if key.alias]
            if len(keys) < size:
                return {"aliases": names}
            offset += size

    async def _found(self, call: Call, search: GrantSearch) -> tuple[list[Key], int]:
        """Keys by the query's filters, of those that may be seen."""
        query, principal = call.query, call.principal
        given = {
            "alias": query.text("key_alias"),
            "user_id": query.text("user_id"),
            "team_id": query.text("team_id"),
        }
        filters = {name: value for name, value in given.items() if value is not None}
        key_hash = query.text("key_hash")
        if not principal.sees_all and not await self._backing.leads(
            principal, filters.get("team_id", "")
        ):
            if not principal.user_id:
                key_hash = key_hash or principal.key_hash
            elif filters.setdefault("user_id", principal.user_id) != principal.user_id:
                raise AccessDenied("Only a proxy admin sees keys of other users.")
        if key_hash is None:
            return await self._directory.find(Key, replaced(search, filters=filters))
        try:
            key = await self._sought(call, key_hash)
        except GrantNotFound:
            return [], 0
        fits = all(getattr(key, name) == value for name, value in filters.items())
        return ([key] if not search.offset else [], 1) if fits else ([], 0)

    async def _sought(self, call: Call, name: str) -> Key:
        """
        A key by what a client calls it, if it may see it.

        :raises GrantNotFound: there is none. The message does not repeat the name.
        """
        key = await self._named(name)
        principal = call.principal
        if not (
            principal.sees_all
            or key.id == principal.key_hash
            or (key.user_id and key.user_id == principal.user_id)
            or await self._backing.leads(principal, key.team_id)
        ):
            raise AccessDenied(
                "This key is not yours: only its user, an admin of its team and those who see "
                "all may see it."
            )
        return key

    async def _named(self, name: str) -> Key:
        hashed = hash_key(name.encode()).hex() if name.startswith("sk-") else name
        try:
            return await self._directory.key(hashed)
        except GrantNotFound:
            which = f" Its SHA-256 begins with {hashed[:8]}." if hashed != name else ""
            raise GrantNotFound(f"Key not found in database.{which}") from None

    async def _row(self, call: Call, key: Key) -> Row:
        [row] = await self._rows(call, [key])
        return row

    async def _rows(self, call: Call, keys: list[Key]) -> list[Row]:
        return [{**row, "token_id": row["token"]} for row in await self._backing.rows(call, keys)]

    # Changing them.

    async def update(self, call: Call) -> Row:
        """``/key/update``"""
        form = call.form(Key, {"key": _name}, required=("key",))
        key = await self._yours(call, form["key"], form.changes)
        key = await self._change(call, key, lambda key: form.changes.apply(key, call.now_us))
        return {"key": key.id, **await self._row(call, key)}

    async def _change(
        self, call: Call, seen: Key, change: Callable[[Key], Key], action: str = "update"
    ) -> Key:
        """Change a key, if it is still the one of which it was said that this is allowed."""

        def changed(key: Key) -> Key:
            if not call.principal.admin and _whose(key) != _whose(seen):
                raise GrantExists("The key has changed in the same moment: try again.")
            return change(key)

        return await self._backing.change(call, Key, seen.id, changed, action)

    async def delete(self, call: Call) -> Row:
        """``/key/delete``: all of them, or none."""
        names = many(_name)
        form = call.form(None, {"keys": names, "key_aliases": names})
        sought = [*form.get("keys", ()), *form.get("key_aliases", ())]
        if not sought:
            raise InvalidRequest("Say which: keys, or key_aliases, with at least one of them.")
        # Everything that could be refused comes before anything that is done.
        keys = {key.id: key for key in [await self._yours(call, name) for name in sought]}
        for key in keys.values():
            try:
                await self._directory.remove(Key, key.id, call.actor)
            except GrantNotFound:
                pass  # Somebody else was faster.
        return {"deleted_keys": list(keys)}

    async def block(self, call: Call) -> Row:
        """``/key/block``"""
        return await self._set_blocked(call, True)

    async def unblock(self, call: Call) -> Row:
        """``/key/unblock``"""
        return await self._set_blocked(call, False)

    async def _set_blocked(self, call: Call, blocked: bool) -> Row:
        form = call.form(None, {"key": _name}, required=("key",))
        asked = replaced(call, fields={"blocked": blocked}).form(Key)
        key = await self._yours(call, form["key"], asked.changes)
        action = "block" if blocked else "unblock"
        key = await self._change(call, key, lambda key: replace(key, blocked=blocked), action)
        return await self._row(call, key)

    async def regenerate(self, call: Call) -> Row:
        """``/key/regenerate``, ``/key/{key}/regenerate``: another secret for the same key."""
        others = {"new_key": key_secret, "grace_period": duration, "aws_credentials": flag}
        if not call.named:
            others["key"] = _name
        form = call.form(Key, others, required=() if call.named else ("key",))
        key = await self._yours(call, call.named or form["key"], form.changes)
        pair = form.get("aws_credentials", bool(key.tokens and key.tokens[0].access_key_id))
        made = self._secret(form.get("new_key"), pair)

        def changed(key: Key) -> Key:
            if any(token.hash == made.token.hash for token in key.tokens):
                raise refused(Problem("new_key", "is a secret that this key has already"))
            old = _ending(key.tokens, call.now_us, form.get("grace_period"))
            if len(old) >= _MOST_TOKENS:
                reason = f"this key has {len(old)} secrets that still work; wait, or give none"
                raise refused(Problem("grace_period", reason))
            key = form.changes.apply(key, call.now_us)
            return replace(key, tokens=(made.token, *old))

        key = await self._change(call, key, changed, "regenerate")
        return {**await self._row(call, key), **made.answer}

    async def _yours(self, call: Call, name: str, changes: Changes | None = None) -> Key:
        """
        A key by what a client calls it, if it may change it so.
        See Note [Who may do what with a key].

        :param changes: None: it is to go.
        """
        principal = call.principal
        key = await (self._named(name) if principal.admin else self._sought(call, name))
        if changes is not None:
            applied(changes, key, call.now_us)
        if not principal.admin:
            await self._check_yours(call, key, changes)
        if changes is not None:
            await self._backing.check_references(changes)
        return key

    async def _check_yours(self, call: Call, key: Key, changes: Changes | None) -> None:
        principal = call.principal
        # Whoever leads a team does not lift the limits of the very key that asks.
        itself = key.id == principal.key_hash
        leads = not itself and await self._backing.leads(principal, key.team_id)
        if not leads and not (key.user_id and key.user_id == principal.user_id):
            raise AccessDenied(
                "This key is not yours: only its user, an admin of its team and a proxy admin "
                "may change it."
            )
        asking = None if itself else await self._backing.asking(principal, key.team_id)
        if asking is not None:
            _check_end(asking, key)
        if changes is None:
            return
        if not leads:
            forbidden = [name for name in changes if name not in _OWNERS_MAY]
            if forbidden:
                raise AccessDenied(
                    f"Of your own key you may change {', '.join(_OWNERS_MAY)}, and not "
                    f"{', '.join(forbidden)}: ask a proxy admin."
                )
            if changes.get("blocked") is False and key.blocked:
                raise AccessDenied("Only a proxy admin, or an admin of its team, unblocks a key.")
            return
        changed = changes.apply(key, call.now_us)
        if asking is not None:
            _check_end(asking, changed)
        if changed.team_id != key.team_id:
            raise AccessDenied("Only a proxy admin moves a key to another team.")
        if changed.user_id and changed.user_id != key.user_id:
            await self._check_member(key.team_id, changed.user_id)
        await self._check_bounds(call, changes, changed)

    # The tree.

    def resources(self) -> Mapping[bytes, Resource]:
        """What belongs at the root."""
        keys = self._backing.keys
        filters = ("user_id", "team_id", "key_hash", "key_alias")

        def get(name: str, answer: Answering, *query: str) -> Endpoint:
            return Endpoint(keys, b"GET", answer, route=f"/key/{name}", may=everyone, query=query)

        def post(name: str, answer: Answering) -> Endpoint:
            return Endpoint(keys, b"POST", answer, route=f"/key/{name}", may=changers)

        def regenerate_one(name: str) -> Endpoint:
            return Endpoint(
                keys,
                b"POST",
                self.regenerate,
                route="/key/{key}/regenerate",
                may=changers,
                named=name,
            )

        tree = _KeyBranch(
            {
                b"generate": post("generate", self.generate),
                b"info": get("info", self.info, "key"),
                b"update": post("update", self.update),
                b"delete": post("delete", self.delete),
                b"list": get("list", self.listed, *filters, *_PAGING, "return_full_object"),
                b"aliases": get("aliases", self.aliases, *filters),
                b"block": post("block", self.block),
                b"unblock": post("unblock", self.unblock),
                b"regenerate": post("regenerate", self.regenerate),
            },
            regenerate_one,
        )
        infos = Endpoint(keys, b"POST", self.infos, route="/v2/key/info", may=everyone)
        return {
            b"key": tree,
            b"v2": Branch("/v2", {b"key": Branch("/v2/key", {b"info": infos})}),
        }


class _KeyBranch(Branch):
    """
    ``/key``, with a branch for every key there may be.

    :param regenerate: makes the resource for a key by what the path calls it.
    """

    def __init__(
        self, children: Mapping[bytes, Resource], regenerate: Callable[[str], Resource]
    ) -> None:
        Branch.__init__(self, "/key", children)
        self._regenerate = regenerate

    def getChild(self, path: bytes, request: Any) -> IResource:
        if request.postpath[:1] == [b"regenerate"]:
            node = Resource()
            name = path.decode("utf-8", "replace")
            node.putChild(b"regenerate", self._regenerate(name))
            return node
        return Branch.getChild(self, path, request)


def _name(value: object) -> str:
    """What a client calls a key: its secret, its hash or its alias."""
    return text(value)


def _check_end(asking: Key, key: Key) -> None:
    """:raises AccessDenied: a key lives longer than the one that asks for it."""
    if asking.expires_us and not 0 < key.expires_us <= asking.expires_us:
        raise AccessDenied(
            "This key expires, and so neither makes nor changes keys that live longer: use one "
            "of your keys that does not, or ask a proxy admin."
        )


def _whose(key: Key) -> tuple[str, str, bool]:
    """What decides who may change it."""
    return key.user_id, key.team_id, key.blocked


def _ending(tokens: Iterable[Token], now_us: int, grace: Duration | None) -> list[Token]:
    """The secrets that go on for a while, when there is a new one."""
    if grace is None:
        # Perhaps one of them has leaked: none of them goes on.
        return []
    until = later(now_us, grace)
    return [
        replace(token, expires_us=min(token.expires_us or until, until))
        for token in tokens
        if not token.expires_us or token.expires_us > now_us
    ]


def _over(asked: Limits, granted: Limits) -> list[str]:
    """The fields in which something is more than there is."""
    pairs = [
        ("rpm_limit", asked.rpm, granted.rpm),
        ("tpm_limit", asked.tpm, granted.tpm),
        ("max_parallel_requests", asked.max_parallel, granted.max_parallel),
    ]
    if granted.budget_duration in ("", asked.budget_duration):
        # Of other periods nobody can say which is more; both hold anyway.
        pairs.append(("max_budget", asked.max_budget, granted.max_budget))
    return [name for name, want, have in pairs if None not in (want, have) and want > have]  # type: ignore[operator]


def _beyond(asked: Permissions, granted: Permissions) -> bool:
    """Are there models that are not granted? Names of access groups count as they are."""
    if not granted.models:
        return False
    access = Access([Permissions(models=granted.models)], {})
    return not all(
        model in _WORDS or access.allows_model(model, model, (bare_id(model)[0],))
        for model in asked.models
    )
