"""
What is granted, in the database: keys, users, teams, customers, budgets, tags.

Note [Who hears of a change]
============================

A change and its audit record are one transaction. When it is committed, those who
have subscribed are told which grant it was. Other processes hear of it on a channel
of PostgreSQL's: the transaction notifies, so that nobody hears of what was rolled
back. On SQLite, and where listening is not possible, they see it when what they
have cached has reached its age.

Note [Keys of the configuration]
================================

They are found like all others, and come first; their names and secrets are taken.
They are not in the database and not changed here. A team, a user or a budget that
one of them refers to is not removed before it is changed there.

Note [What goes with what]
==========================

With a team or a user go its keys, as in LiteLLM; with a user its memberships. A
budget that something refers to stays. A key's user need not be there; its team and
all budgets must. In PostgreSQL a reference locks what it refers to against being
removed; in SQLite one transaction writes at a time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from typing import Any, TypeVar, cast

import msgspec
from dbxs.async_dbapi import AsyncConnection
from twisted.logger import Logger

from txbedrock.core.grants import (
    Budget,
    Customer,
    Grant,
    Key,
    Member,
    Tag,
    Team,
    Token,
    User,
)
from txbedrock.errors import GrantExists, GrantNotFound, InvalidRequest
from txbedrock.interfaces import AuditRecord, GrantSearch
from txbedrock.storage import grantstatements as statements
from txbedrock.storage.database import (
    Contention,
    Database,
    DatabaseUnavailable,
    Duplicate,
    Rows,
    Unstorable,
)
from txbedrock.storage.grantstatements import KINDS

__all__ = ["CHANNEL", "Directory", "KeyRecord", "Listener"]

R = TypeVar("R")
_G = TypeVar("_G", bound=Grant)
_B = TypeVar("_B", Customer, Tag)
_S = TypeVar("_S", bound=msgspec.Struct)

Listener = Callable[[str, str], None]
"""Called with the kind (``key``, ``user`` ...) and the id of what was changed; with
two empty texts when it is not known what was."""

CHANNEL = "txbedrock_grants"
"""Of PostgreSQL's: what the processes tell each other on."""

_TRIES = 3
_MAX_CHARS = 256
_MAX_PAYLOAD_BYTES = 7900
_ORDERS = ("created_us", "updated_us", "alias", "id")
_END_OF_TIME = 2**63 - 1
_MAX_ROWS = 2**31

_encode = msgspec.json.Encoder().encode
_decode_member = msgspec.json.Decoder(Member).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_decode_changes = msgspec.json.Decoder(list[tuple[str, str]]).decode


def _json(value: object) -> str:
    return _encode(value).decode()


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key, and all that decides what it may do."""

    key: Key
    token: Token
    """The secret by which it was found."""

    user: User | None
    team: Team | None
    """Without its members."""

    member: Member | None
    """The key's user in the key's team."""

    budgets: Mapping[str, Budget]
    """Those that the three refer to, by id."""


class Directory:
    """
    Implements :class:`~txbedrock.interfaces.IDirectory`.

    :param wall_clock: POSIX seconds.
    :param configured: keys of the configuration. See Note [Keys of the configuration].
    """

    _log = Logger()

    def __init__(
        self,
        database: Database,
        *,
        wall_clock: Callable[[], float],
        configured: Sequence[Key] = (),
    ) -> None:
        self._database = database
        self._now = wall_clock
        self._configured = {key.id: key for key in configured}
        self._tokens = {
            name: (key, token)
            for key in configured
            for token in key.tokens
            for name in (token.hash, token.access_key_id)
            if name
        }
        self._aliases = {key.alias: key for key in configured if key.alias}
        self._grants = statements.grants[database.dialect]
        self._others = statements.others[database.dialect]
        self._listeners: list[Listener] = []

    # Hearing of changes. See Note [Who hears of a change].

    def subscribe(self, listener: Listener) -> None:
        """Be told of each change of this process's, and of what :meth:`heard` is given."""
        self._listeners.append(listener)

    def heard(self, payload: str) -> None:
        """What was said on :data:`CHANNEL`, by whatever process."""
        try:
            changes = _decode_changes(payload)
        except msgspec.DecodeError:
            changes = [("", "")]
        self._announce(changes)

    def _announce(self, changes: Iterable[tuple[str, str]]) -> None:
        for kind, id in changes:
            for listener in self._listeners:
                try:
                    listener(kind, id)
                except Exception:
                    # What was changed is changed, whatever they make of it.
                    self._log.failure("telling of a change")

    # Reading.

    async def get(self, kind: type[_G], id: str) -> _G:
        """:raises GrantNotFound: there is none."""
        if kind is Key and id in self._configured:
            return cast(_G, self._configured[id])
        if _is_text(id):
            async with self._database.transaction(write=False) as connection:
                document = await self._grants[kind](connection).document(id)
                if document is not None:
                    [grant] = await self._whole(connection, kind, [document])
                    return grant
        raise _not_found(KINDS[kind].name, id)

    async def key(self, name: str) -> Key:
        """
        A key by one of its secrets, the SHA-256 of one (hex), its id or its alias; in
        this order, when one is another key's.

        :raises GrantNotFound: there is none.
        """
        if not _is_text(name):
            raise _not_found("key", "")
        # The database does not see what may be a secret before it is known to be none.
        hashed = sha256(name.encode()).hexdigest()
        for hash in (hashed, name):
            if hash in self._tokens:
                return self._tokens[hash][0]
        configured = self._configured.get(name) or self._aliases.get(name)
        async with self._database.transaction(write=False) as connection:
            find = self._others(connection)
            document = await find.key_of_hash(hashed) or await find.key_of_hash(name)
            if document is None and configured is None:
                document = await find.key_named(name)
        if document is not None:
            return msgspec.json.decode(document, type=Key)
        if configured is not None:
            return configured
        raise _not_found("key", "")

    async def find(self, kind: type[_G], search: GrantSearch) -> tuple[list[_G], int]:
        """
        A page of what fulfils all of a search's filters.

        Besides those of :attr:`~txbedrock.interfaces.GrantSearch.filters` there are
        ``email`` and ``team_id`` of users: the team is one that they are in.

        :returns: a page, and how many there are in all.
        :raises InvalidRequest: there is no such filter or order.
        """
        of = KINDS[kind]
        for name in search.filters:
            if name not in of.filters:
                raise InvalidRequest(
                    f"{of.name}s cannot be searched by {name!r}. Use one of: "
                    f"{', '.join(sorted(of.filters))}."
                )
        if search.order_by not in _ORDERS:
            raise InvalidRequest(
                f"Nothing is sorted by {search.order_by!r}. Use one of: {', '.join(_ORDERS)}."
            )
        if not (0 <= search.offset < _MAX_ROWS and 0 <= search.limit < _MAX_ROWS):
            raise InvalidRequest("A page begins at 0 or later, and has a length of 0 or more.")
        if not all(map(_is_text, search.filters.values())):
            return [], 0
        if search.order_by == "alias" and "alias" not in of.columns:
            search = replace(search, order_by="id")
        ours = [
            cast(_G, key)
            for key in (self._configured.values() if kind is Key else ())
            if all(getattr(key, name) == value for name, value in search.filters.items())
        ]
        # So many before the page may be pushed into it.
        ahead = min(search.offset, len(ours))
        wider = replace(search, offset=search.offset - ahead, limit=search.limit + ahead)
        async with self._database.transaction(write=False) as connection:
            documents, total = await statements.page(connection, of, wider)
            found = await self._whole(connection, kind, documents)
        if ours:
            found = sorted(
                [*ours, *found],
                key=lambda grant: (getattr(grant, search.order_by), grant.id),
                reverse=search.descending,
            )
        return found[ahead : ahead + search.limit], total + len(ours)

    async def audit(
        self, kind: str | None, id: str | None, before_us: int | None, limit: int
    ) -> list[AuditRecord]:
        """
        The latest changes, the newest first.

        What is before and after leaves out hashes of secrets, and of a team that was
        changed the members that were not.

        :param before_us: only what was earlier; None: up to now.
        """
        if not all(_is_text(text or "") for text in (kind, id)):
            return []
        until = _END_OF_TIME if before_us is None else before_us
        async with self._database.transaction(write=False) as connection:
            find = self._others(connection)
            if kind is not None and id is not None:
                rows = await find.audit_of(kind, id, until, limit)
            else:
                rows = await find.audit(kind, id, until, limit)
        return [
            AuditRecord(
                at_us=at_us,
                actor=actor,
                action=action,
                kind=of,
                id=of_id,
                before=None if before is None else _decode_object(before),
                after=None if after is None else _decode_object(after),
            )
            for at_us, actor, action, of, of_id, before, after in rows
        ]

    async def _whole(
        self, connection: AsyncConnection, kind: type[_G], documents: Sequence[str]
    ) -> list[_G]:
        """Grants from their documents; teams get their members."""
        found = [msgspec.json.decode(document, type=kind) for document in documents]
        if kind is Team and found:
            ids = [team.id for team in found]
            members: dict[str, list[Member]] = {id: [] for id in ids}
            for team_id, _, document in await self._others(connection).members(_json(ids)):
                members[team_id].append(_decode_member(document))
            found = [
                msgspec.structs.replace(team, members=tuple(members[team.id])) for team in found
            ]
        return found

    # For those who cache it.

    async def records(self, names: Sequence[str]) -> dict[str, KeyRecord | DatabaseUnavailable]:
        """
        All that decides about some keys, in one query.

        :param names: SHA-256 of secrets (hex), and access key ids.
        :returns: those that there are; an error where it cannot be found out.
        """
        ours = {name: self._tokens[name] for name in names if name in self._tokens}
        referring = [
            (name, key.user_id, key.team_id, key.budget_id)
            for name, (key, _) in ours.items()
            if key.user_id or key.team_id or key.budget_id
        ]
        found: dict[str, KeyRecord | DatabaseUnavailable] = {
            name: KeyRecord(key, token, None, None, None, {})
            for name, (key, token) in ours.items()
        }
        asked = [name for name in names if name not in ours and _is_text(name)]
        if not asked and not referring:
            return found
        try:
            async with self._database.transaction(write=False) as connection:
                rows = await self._others(connection).records(_json(asked), _json(referring))
        except DatabaseUnavailable as error:
            failed = [*asked, *(name for name, *_ in referring)]
            return {**found, **dict.fromkeys(failed, error)}
        # Many keys may be of one team.
        read = cache(_read)
        for name, document, user, team, member, *budgets in rows:
            try:
                key, token = ours[name] if name in ours else _named(name, document)
                found[name] = KeyRecord(
                    key=key,
                    token=token,
                    user=read(User, user),
                    team=read(Team, team),
                    member=read(Member, member),
                    budgets={one.id: one for one in (read(Budget, one) for one in budgets) if one},
                )
            except (msgspec.DecodeError, ValueError) as error:
                found[name] = self._unreadable("key", error)
        return found

    async def customers(
        self, ids: Sequence[str]
    ) -> dict[str, tuple[Customer, Budget | None] | DatabaseUnavailable]:
        """Those that there are, with their budgets; an error where it cannot be found out."""
        return await self._with_budgets(Customer, ids)

    async def tags(
        self, ids: Sequence[str]
    ) -> dict[str, tuple[Tag, Budget | None] | DatabaseUnavailable]:
        """Those that there are, with their budgets; an error where it cannot be found out."""
        return await self._with_budgets(Tag, ids)

    async def populated(self) -> tuple[bool, bool]:
        """Are there customers, are there tags?"""
        async with self._database.transaction(write=False) as connection:
            [(customers, tags)] = await self._others(connection).populated()
        return bool(customers), bool(tags)

    async def _with_budgets(
        self, kind: type[_B], ids: Sequence[str]
    ) -> dict[str, tuple[_B, Budget | None] | DatabaseUnavailable]:
        asked = [id for id in ids if _is_text(id)]
        try:
            async with self._database.transaction(write=False) as connection:
                ask = self._others(connection)
                rows = await (ask.customers if kind is Customer else ask.tags)(_json(asked))
        except DatabaseUnavailable as error:
            return dict.fromkeys(asked, error)
        found: dict[str, tuple[_B, Budget | None] | DatabaseUnavailable] = {}
        for id, document, budget in rows:
            try:
                grant = msgspec.json.decode(document, type=kind)
                found[id] = grant, _read(Budget, budget)
            except msgspec.DecodeError as error:
                found[id] = self._unreadable(KINDS[kind].name, error)
        return found

    def _unreadable(self, kind: str, error: Exception) -> DatabaseUnavailable:
        """Perhaps a newer version has written it."""
        self._log.error("a {kind} in the database cannot be read: {error}", kind=kind, error=error)
        return DatabaseUnavailable(f"a {kind} cannot be read: {error}")

    # Writing.

    async def add(self, grant: Grant, actor: str, action: str = "create") -> None:
        """
        Keep something new.

        :param actor: who does it, for the record.
        :raises GrantExists: its id, or a key's alias or secret, is taken.
        :raises InvalidRequest: it refers to a team or a budget that is not there.
        """

        async def work(change: _Change) -> None:
            kind = KINDS[type(grant)]
            if grant.id in self._configured or await change.locked(type(grant), grant.id):
                raise GrantExists(f"There is a {kind.name} with the id {grant.id!r} already.")
            await change.put(None, grant, action)

        await self._write(actor, work)

    async def change(
        self,
        kind: type[_G],
        id: str,
        change: Callable[[_G], _G],
        actor: str,
        action: str = "update",
    ) -> _G:
        """
        Read, change and write, with nothing in between.

        :param change: gets what is kept now; it may raise, then nothing is changed. It
            may be called more than once, if another process was in the way.
        :returns: what is kept now.
        :raises GrantNotFound: there is none.
        :raises GrantExists: its new alias or secret is taken.
        :raises InvalidRequest: it stands in the configuration, or refers to a team or
            a budget that is not there.
        """
        self._refuse_configured(kind, id)

        async def work(transaction: _Change) -> _G:
            before = await transaction.locked(kind, id)
            if before is None:
                raise _not_found(KINDS[kind].name, id)
            return await transaction.put(before, change(before), action)

        return await self._write(actor, work)

    async def remove(self, kind: type[_G], id: str, actor: str) -> _G:
        """
        Remove it, and what goes with it. See Note [What goes with what].

        :returns: what it was.
        :raises GrantNotFound: there is none.
        :raises GrantExists: something still refers to it that does not go with it.
        :raises InvalidRequest: it stands in the configuration.
        """
        self._refuse_configured(kind, id)

        async def work(change: _Change) -> _G:
            grant = await change.locked(kind, id)
            if grant is None:
                raise _not_found(KINDS[kind].name, id)
            if isinstance(grant, Team):
                await change.remove_keys(await change.ask.keys_of_team(id))
            elif isinstance(grant, User):
                await change.remove_keys(await change.ask.keys_of_user(id))
                await change.leave_teams(id)
            elif isinstance(grant, Budget):
                await change.refuse_to_orphan(id)
            await change.remove([grant])
            return grant

        self._refuse_to_orphan_configured(KINDS[kind].name, id)
        return await self._write(actor, work)

    async def _write(self, actor: str, work: Callable[[_Change], Awaitable[R]]) -> R:
        """Do something in a transaction, again if another one was in the way."""
        for tries_left in reversed(range(_TRIES)):
            try:
                async with self._database.transaction() as connection:
                    change = _Change(
                        connection,
                        self._grants,
                        self._others(connection),
                        actor,
                        int(self._now() * 1_000_000),
                        self._taken_by_configuration,
                    )
                    result = await work(change)
                    await change.finish(notify=self._database.dialect == "postgres")
            except Contention:
                if not tries_left:
                    raise
            except Duplicate as error:
                # It was made by a transaction beside this one, and could not be seen.
                # The next time it can.
                if not tries_left:
                    raise GrantExists(
                        "Something just like this was made at this moment."
                    ) from error
            except Unstorable as error:
                raise InvalidRequest(
                    "Some value cannot be stored: a character, or a number beyond 64 bits.",
                    detail=str(error),
                ) from error
            else:
                self._announce(change.touched)
                return result
        raise AssertionError

    def _refuse_configured(self, kind: type[Any], id: str) -> None:
        if not _is_text(id):
            raise _not_found(KINDS[kind].name, id)
        if kind is Key and id in self._configured:
            name = self._configured[id].alias or id
            raise InvalidRequest(f"The key {name!r} stands in config.yaml; change it there.")

    def _refuse_to_orphan_configured(self, kind: str, id: str) -> None:
        if kind not in ("user", "team", "budget"):
            return
        count = sum(getattr(key, f"{kind}_id") == id for key in self._configured.values())
        if count:
            raise GrantExists(
                f"{_counted(count, 'key')} of config.yaml {'have' if count > 1 else 'has'} the "
                f"{kind} {id!r}. Take it out there first."
            )

    def _taken_by_configuration(self, key: Key) -> str | None:
        """What of a key belongs to one of the configuration: ``alias``, ``hash`` ..."""
        if key.alias in self._aliases:
            return "alias"
        for token in key.tokens:
            if token.hash in self._tokens:
                return "hash"
            if token.access_key_id in self._tokens:
                return "access_key_id"
        return None


def _read(kind: type[_S], document: str | None) -> _S | None:
    """:raises msgspec.DecodeError: it cannot be read."""
    return None if document is None else msgspec.json.decode(document, type=kind)


def _named(name: str, document: str) -> tuple[Key, Token]:
    """
    A key, and the secret that is meant by a hash or an access key id.

    :raises ValueError: it has none such.
    """
    key = msgspec.json.decode(document, type=Key)
    [token] = (one for one in key.tokens if name in (one.hash, one.access_key_id))
    return key, token


class _Change:
    """
    A transaction that changes what is granted.

    :ivar ask: the statements.
    :ivar touched: kind and id of what was changed.
    """

    def __init__(
        self,
        connection: AsyncConnection,
        grants: Mapping[type[Any], Callable[[AsyncConnection], statements.IGrants]],
        ask: statements.IOthers,
        actor: str,
        now_us: int,
        taken_elsewhere: Callable[[Key], str | None],
    ) -> None:
        self._connection = connection
        self._grants = grants
        self.ask = ask
        self._actor = actor
        self._now_us = now_us
        self._taken_elsewhere = taken_elsewhere
        self._audit: list[tuple[object, ...]] = []
        self.touched: list[tuple[str, str]] = []

    async def locked(self, kind: type[_G], id: str) -> _G | None:
        """What is kept now. Nobody else changes it before the end."""
        if not _is_text(id):
            return None
        document = await self._grants[kind](self._connection).locked(id)
        if document is None:
            return None
        grant = msgspec.json.decode(document, type=kind)
        if isinstance(grant, Team):
            rows = await self.ask.members(_json([id]))
            members = tuple(_decode_member(document) for _, _, document in rows)
            grant = cast(_G, msgspec.structs.replace(grant, members=members))
        return grant

    async def put(self, before: _G | None, after: _G, action: str) -> _G:
        """
        Keep something new, or changed.

        :returns: as it is kept.
        """
        kind = KINDS[type(after)]
        if before is not None and (type(before), before.id) != (type(after), after.id):
            raise ValueError("a change has to be of the same thing")
        if after == before:
            return after
        created = before or msgspec.structs.replace(
            after, created_us=self._now_us, created_by=self._actor
        )
        after = _as_kept(
            msgspec.structs.replace(
                after,
                created_us=created.created_us,
                created_by=created.created_by,
                updated_us=self._now_us,
                updated_by=self._actor,
            )
        )
        await self._check(before, after)
        grants = self._grants[type(after)](self._connection)
        bare = msgspec.structs.replace(after, members=()) if isinstance(after, Team) else after
        columns = ("id", *kind.columns, "created_us", "created_by", "updated_us")
        row = (*(getattr(after, column) for column in columns), _json(bare))
        await (grants.insert if before is None else grants.replace)(Rows(len(row), [row]))
        if isinstance(after, Key):
            await self._put_tokens(cast("Key | None", before), after)
        elif isinstance(after, Team):
            await self._put_members(cast("Team | None", before), after)
        self._record(action, before, after)
        return after

    async def _check(self, before: Grant | None, after: Grant) -> None:
        """:raises ProxyError: it cannot be kept with what there is besides."""
        kind = KINDS[type(after)]
        for name in ("id", *kind.columns):
            _check_text(kind.name, name, getattr(after, name))
        budget_id = getattr(after, "budget_id", "")
        if budget_id and budget_id != getattr(before, "budget_id", ""):
            await self._refer(Budget, budget_id)
        if isinstance(after, Team):
            users = [member.user_id for member in after.members]
            for user in users:
                _check_text("member", "user_id", user)
            if len(users) != len(set(users)):
                twice = next(user for user in users if users.count(user) > 1)
                raise InvalidRequest(f"The user {twice!r} is twice among the team's members.")
        if not isinstance(after, Key):
            return
        assert before is None or isinstance(before, Key)
        if after.team_id and (before is None or after.team_id != before.team_id):
            await self._refer(Team, after.team_id)
        hashes = [token.hash for token in after.tokens]
        access_key_ids = [token.access_key_id for token in after.tokens if token.access_key_id]
        for names in (hashes, access_key_ids):
            if len(names) != len(set(names)):
                raise InvalidRequest("A key cannot have the same secret twice.")
        taken = (
            self._taken_elsewhere(after)
            or next(
                iter(
                    await self.ask.taken(
                        after.id, after.alias, _json(hashes), _json(access_key_ids)
                    )
                ),
                (None,),
            )[0]
        )
        if taken == "alias":
            raise GrantExists(
                f"Another key has the alias {after.alias!r}. Choose another one, or leave it out."
            )
        if taken is not None:
            raise GrantExists("Another key has this secret. Choose another one.")

    async def _refer(self, kind: type[Budget] | type[Team], id: str) -> None:
        """Make sure that something is there, and stays until the end."""
        if await self._grants[kind](self._connection).referred(id) is None:
            name = KINDS[kind].name
            raise InvalidRequest(f"There is no {name} {id!r}. Create it first, with /{name}/new.")

    async def _put_tokens(self, before: Key | None, after: Key) -> None:
        if before is not None:
            if before.tokens == after.tokens:
                return
            await self.ask.forget_tokens(after.id)
        rows = [(t.hash, after.id, t.access_key_id, t.expires_us) for t in after.tokens]
        if rows:
            await self.ask.add_tokens(Rows(4, rows))

    async def _put_members(self, before: Team | None, after: Team) -> None:
        """Only those that are others, or in other places, are written."""
        old = set(enumerate(map(_json, before.members))) if before is not None else set()
        here = {member.user_id for member in after.members}
        gone = [
            one.user_id for one in (before.members if before else ()) if one.user_id not in here
        ]
        if gone:
            await self.ask.remove_members(after.id, _json(gone))
        rows = [
            (after.id, member.user_id, place, document)
            for place, member in enumerate(after.members)
            for document in [_json(member)]
            if (place, document) not in old
        ]
        if rows:
            await self.ask.put_members(Rows(4, rows))

    async def remove(self, gone: Sequence[_G]) -> None:
        """Remove some of one kind. Tokens and members go with them, by foreign keys."""
        if gone:
            grants = self._grants[type(gone[0])](self._connection)
            await grants.remove(_json([grant.id for grant in gone]))
        for grant in gone:
            self._record("delete", grant, None)

    async def remove_keys(self, rows: Sequence[statements.Row]) -> None:
        """:param rows: their documents."""
        await self.remove([msgspec.json.decode(document, type=Key) for (document,) in rows])

    async def leave_teams(self, user_id: str) -> None:
        """Take a user out of all teams."""
        for (team_id,) in await self.ask.teams_of(user_id):
            team = await self.locked(Team, team_id)
            if team is not None:
                members = tuple(one for one in team.members if one.user_id != user_id)
                await self.put(team, msgspec.structs.replace(team, members=members), "update")

    async def refuse_to_orphan(self, budget_id: str) -> None:
        """:raises GrantExists: something has this budget."""
        counts = [(kind, count) for kind, count in await self.ask.with_budget(budget_id) if count]
        if counts:
            those = ", ".join(_counted(count, kind) for kind, count in counts)
            raise GrantExists(
                f"The budget {budget_id!r} is still in use, by {those}. Give them another "
                "one, or none, first."
            )

    def _record(self, action: str, before: Grant | None, after: Grant | None) -> None:
        grant = after or before
        assert grant is not None
        kind = KINDS[type(grant)].name
        # One after the other, so that a page of the audit log can begin between them.
        at_us = self._now_us + len(self._audit)
        self._audit.append(
            (
                at_us,
                self._actor,
                action,
                kind,
                grant.id,
                _shown(before, after),
                _shown(after, before),
            )
        )
        self.touched.append((kind, grant.id))

    async def finish(self, *, notify: bool) -> None:
        """Write the record of what was done, and tell the other processes."""
        if self._audit:
            await self.ask.add_audit(Rows(len(self._audit[0]), self._audit))
        for payload in _payloads(self.touched) if notify else ():
            await self.ask.notify(payload)


def _as_kept(grant: _G) -> _G:
    """
    As it will be read again.

    :raises InvalidRequest: it cannot be written as JSON.
    """
    try:
        return msgspec.json.decode(_encode(grant), type=type(grant))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidRequest(
            f"This cannot be stored: {error}. Use plain JSON values, and text without "
            "broken characters."
        ) from error


def _shown(grant: Grant | None, other: Grant | None) -> str | None:
    """For the audit log: without hashes of secrets, and members that did not change."""
    if grant is None:
        return None
    shown = msgspec.to_builtins(grant)
    if isinstance(grant, Key):
        for token in shown.get("tokens", ()):
            token.pop("hash", None)
    if isinstance(grant, Team) and isinstance(other, Team):
        same = {member.user_id: member for member in other.members}
        changed = [one for one in grant.members if same.get(one.user_id) != one]
        shown["members"] = msgspec.to_builtins(changed)
    return _json(shown)


def _payloads(changes: Iterable[tuple[str, str]]) -> list[str]:
    """Kinds and ids in JSON, each text short enough for a notification."""
    found: list[str] = []
    some: list[str] = []
    length = 2
    for change in changes:
        one = _json(change)
        size = len(one.encode()) + 1
        if some and length + size > _MAX_PAYLOAD_BYTES:
            found.append(f"[{','.join(some)}]")
            some, length = [], 2
        some.append(one)
        length += size
    if some:
        found.append(f"[{','.join(some)}]")
    return found


def _is_text(text: str) -> bool:
    """Can it be in a database at all?"""
    if "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_text(kind: str, name: str, value: str) -> None:
    if not value and name in ("id", "user_id") and kind != "key":
        raise InvalidRequest(f"The {name} of a {kind} must not be empty.")
    if len(value) > _MAX_CHARS:
        raise InvalidRequest(f"The {name} of a {kind} has at most {_MAX_CHARS} characters.")
    if not _is_text(value):
        raise InvalidRequest(f"The {name} of a {kind} holds a character that cannot be stored.")


def _not_found(kind: str, id: str) -> GrantNotFound:
    """What was asked for may be a secret, if it is a key."""
    named = "" if kind == "key" else f" {id!r}"
    return GrantNotFound(f"There is no such {kind}{':' if named else ''}{named}.")


def _counted(count: int, kind: str) -> str:
    return f"{count} {kind}{'s' if count > 1 else ''}"
