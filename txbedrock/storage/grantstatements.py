"""
The SQL of what is granted.

Where SQLite and PostgreSQL differ there are two of a statement: a list of values is
bound as one parameter, in JSON, and PostgreSQL locks rows that will be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar, cast

from dbxs import accessor, maybe, query, statement
from dbxs.async_dbapi import AsyncConnection, AsyncCursor

from txbedrock.core.grants import Budget, Customer, Grant, Key, Tag, Team, User
from txbedrock.interfaces import GrantSearch
from txbedrock.storage.database import Rows

__all__ = [
    "KINDS",
    "IGrants",
    "IOthers",
    "Kind",
    "Row",
    "grants",
    "others",
    "page",
]

T = TypeVar("T")
Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """Where and how grants of one kind are kept."""

    type: type[Grant]
    name: str
    columns: tuple[str, ...]
    """The fields that have a column of their own, besides those that all have."""

    @property
    def table(self) -> str:
        return f"txbedrock_{self.name}s"

    @property
    def filters(self) -> Mapping[str, str]:
        """The conditions on what is searched for, by name; a question mark for the value."""
        found = {name: f"g.{name} = ?" for name in (*self.columns, "created_by")}
        return {**found, **_BY_MEMBERS.get(self.name, {})}


# Who is a member of what.
_BY_MEMBERS = {
    "team": {"user_id": "g.id IN (SELECT team_id FROM txbedrock_members WHERE user_id = ?)"},
    "user": {"team_id": "g.id IN (SELECT user_id FROM txbedrock_members WHERE team_id = ?)"},
}

KINDS: Mapping[type[Any], Kind] = {
    kind.type: kind
    for kind in (
        Kind(Key, "key", ("alias", "user_id", "team_id", "budget_id")),
        Kind(User, "user", ("alias", "email", "budget_id")),
        Kind(Team, "team", ("alias", "budget_id")),
        Kind(Customer, "customer", ("alias", "budget_id")),
        Kind(Budget, "budget", ()),
        Kind(Tag, "tag", ("budget_id",)),
    )
}

_HAVE_BUDGETS = [kind for kind in KINDS.values() if "budget_id" in kind.columns]


_Loader = Callable[[object, AsyncCursor], Coroutine[object, object, T]]


async def _all(db: object, cursor: AsyncCursor) -> list[Row]:
    """Loader of a query: all rows in one trip to the thread."""
    return [tuple(row) for row in await cursor.fetchall()]


_document: _Loader[str | None] = maybe(lambda _, document: document)


def _listed(dialect: str, name: str) -> str:
    """The texts of a JSON list, as a subquery."""
    if dialect == "postgres":
        return f"(SELECT json_array_elements_text(CAST({{{name}}} AS JSON)))"
    return f"(SELECT value FROM json_each({{{name}}}))"


# Of one kind.


class IGrants(Protocol):
    """The statements that there are for each kind."""

    async def document(self, id: str) -> str | None: ...

    async def locked(self, id: str) -> str | None:
        """The same, to be changed or removed: until then nobody else can."""

    async def referred(self, id: str) -> str | None:
        """The same, so that it is not removed before the end of the transaction."""

    async def insert(self, rows: Rows) -> None: ...

    async def replace(self, rows: Rows) -> None: ...

    async def remove(self, ids: str) -> None:
        """:param ids: a JSON list."""


def _grants(kind: Kind, dialect: str) -> Callable[[AsyncConnection], IGrants]:
    columns = ("id", *kind.columns, "created_us", "created_by", "updated_us", "document")
    for_update, for_share = (
        (" FOR UPDATE", " FOR KEY SHARE") if dialect == "postgres" else ("", "")
    )
    select = f"SELECT document FROM {kind.table} WHERE id = {{id}}"
    add = f"INSERT INTO {kind.table} ({', '.join(columns)}) VALUES {{rows}}"
    changes = ", ".join(f"{column} = excluded.{column}" for column in columns[1:])

    class Statements(Protocol):
        @query(sql=select, load=_document)
        async def document(self, id: str) -> str | None:
            raise NotImplementedError

        @query(sql=select + for_update, load=_document)
        async def locked(self, id: str) -> str | None:
            raise NotImplementedError

        @query(sql=select + for_share, load=_document)
        async def referred(self, id: str) -> str | None:
            raise NotImplementedError

        @statement(sql=add)
        async def insert(self, rows: Rows) -> None: ...

        @statement(sql=f"{add} ON CONFLICT (id) DO UPDATE SET {changes}")
        async def replace(self, rows: Rows) -> None: ...

        @statement(sql=f"DELETE FROM {kind.table} WHERE id IN {_listed(dialect, 'ids')}")
        async def remove(self, ids: str) -> None: ...

    return cast(Callable[[AsyncConnection], IGrants], accessor(Statements))


# Across kinds.


class IOthers(Protocol):
    """All other statements. A parameter in the plural is a JSON list of texts."""

    async def key_of_hash(self, hash: str) -> str | None:
        """A key's document by a token."""

    async def key_named(self, name: str) -> str | None:
        """A key's document by its id, or else its alias."""

    async def keys_of_user(self, user_id: str) -> list[Row]:
        """Documents, to be removed."""

    async def keys_of_team(self, team_id: str) -> list[Row]:
        """Documents, to be removed."""

    async def taken(self, id: str, alias: str, hashes: str, access_key_ids: str) -> list[Row]:
        """What of a key belongs to another one: ``alias``, ``hash``, ``access_key_id``."""

    async def with_budget(self, id: str) -> list[Row]:
        """How many refer to a budget: kind, count."""

    async def forget_tokens(self, key_id: str) -> None: ...

    async def add_tokens(self, rows: Rows) -> None:
        """:param rows: hash, key id, access key id, expiry."""

    async def members(self, ids: str) -> list[Row]:
        """Of teams, in order: team, user, document."""

    async def teams_of(self, user_id: str) -> list[Row]:
        """Ids of the teams in which a user is."""

    async def remove_members(self, team_id: str, ids: str) -> None: ...

    async def put_members(self, rows: Rows) -> None:
        """:param rows: team, user, place, document."""

    async def add_audit(self, rows: Rows) -> None: ...

    async def audit(
        self, kind: str | None, id: str | None, before_us: int, limit: int
    ) -> list[Row]:
        """Time, actor, action, kind, id, before, after."""

    async def audit_of(self, kind: str, id: str, before_us: int, limit: int) -> list[Row]:
        """The same of one grant."""

    async def notify(self, payload: str) -> None:
        """Tell other processes, at the end of the transaction. PostgreSQL only."""

    async def records(self, names: str, configured: str) -> list[Row]:
        """
        All there is to know of who holds some keys: name, and the documents of key,
        user, team, member, and of the budgets of the first three.

        :param names: hashes of secrets, and access key ids.
        :param configured: name, user, team and budget of keys that are not in the
            database, a JSON list of lists.
        """

    async def customers(self, ids: str) -> list[Row]:
        """Id, document, that of the budget."""

    async def tags(self, ids: str) -> list[Row]:
        """Id, document, that of the budget."""

    async def populated(self) -> list[Row]:
        """One row: are there customers, are there tags?"""


_AUDIT = "SELECT at_us, actor, action, kind, grant_id, before_document, after_document"
_LATEST = "at_us < {before_us} ORDER BY at_us DESC, number DESC LIMIT {limit}"


def _others(dialect: str) -> Callable[[AsyncConnection], IOthers]:
    postgres = dialect == "postgres"
    for_update = " FOR UPDATE" if postgres else ""
    listed = partial(_listed, dialect)

    if postgres:
        configured = """
            SELECT row ->> 0, row ->> 1, row ->> 2, row ->> 3, NULL
            FROM json_array_elements(CAST({configured} AS JSON)) AS row
        """
    else:
        configured = """
            SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'),
                json_extract(value, '$[2]'), json_extract(value, '$[3]'), NULL
            FROM json_each({configured})
        """

    def with_budgets(kind: str) -> str:
        return f"""
            SELECT g.id, g.document,
                (SELECT document FROM txbedrock_budgets WHERE id = g.budget_id)
            FROM txbedrock_{kind}s g WHERE g.id IN {listed("ids")}
        """

    class Statements(Protocol):
        @query(
            sql="""
                SELECT k.document FROM txbedrock_tokens t JOIN txbedrock_keys k ON k.id = t.key_id
                WHERE t.hash = {hash}
            """,
            load=_document,
        )
        async def key_of_hash(self, hash: str) -> str | None:
            raise NotImplementedError

        @query(
            sql="""
                SELECT document FROM txbedrock_keys
                WHERE id = {name} OR (alias = {name} AND alias <> '')
                ORDER BY CASE WHEN id = {name} THEN 0 ELSE 1 END LIMIT 1
            """,
            load=_document,
        )
        async def key_named(self, name: str) -> str | None:
            raise NotImplementedError

        @query(
            sql="SELECT document FROM txbedrock_keys WHERE user_id = {user_id} ORDER BY id"
            + for_update,
            load=_all,
        )
        async def keys_of_user(self, user_id: str) -> list[Row]:
            raise NotImplementedError

        @query(
            sql="SELECT document FROM txbedrock_keys WHERE team_id = {team_id} ORDER BY id"
            + for_update,
            load=_all,
        )
        async def keys_of_team(self, team_id: str) -> list[Row]:
            raise NotImplementedError

        @query(
            sql=f"""
                SELECT 'alias' FROM txbedrock_keys
                WHERE alias = {{alias}} AND alias <> '' AND id <> {{id}}
                UNION ALL
                SELECT 'hash' FROM txbedrock_tokens
                WHERE hash IN {listed("hashes")} AND key_id <> {{id}}
                UNION ALL
                SELECT 'access_key_id' FROM txbedrock_tokens
                WHERE access_key_id IN {listed("access_key_ids")} AND access_key_id <> ''
                    AND key_id <> {{id}}
            """,
            load=_all,
        )
        async def taken(self, id: str, alias: str, hashes: str, access_key_ids: str) -> list[Row]:
            raise NotImplementedError

        @query(
            sql=" UNION ALL ".join(
                f"SELECT '{kind.name}', count(*) FROM {kind.table} WHERE budget_id = {{id}}"
                for kind in _HAVE_BUDGETS
            ),
            load=_all,
        )
        async def with_budget(self, id: str) -> list[Row]:
            raise NotImplementedError

        @statement(sql="DELETE FROM txbedrock_tokens WHERE key_id = {key_id}")
        async def forget_tokens(self, key_id: str) -> None: ...

        @statement(
            sql="""
                INSERT INTO txbedrock_tokens (hash, key_id, access_key_id, expires_us)
                VALUES {rows}
            """
        )
        async def add_tokens(self, rows: Rows) -> None: ...

        @query(
            sql=f"""
                SELECT team_id, user_id, document FROM txbedrock_members
                WHERE team_id IN {listed("ids")} ORDER BY team_id, place
            """,
            load=_all,
        )
        async def members(self, ids: str) -> list[Row]:
            raise NotImplementedError

        @query(
            sql="""
                SELECT team_id FROM txbedrock_members WHERE user_id = {user_id} ORDER BY team_id
            """,
            load=_all,
        )
        async def teams_of(self, user_id: str) -> list[Row]:
            raise NotImplementedError

        @statement(
            sql=f"""
                DELETE FROM txbedrock_members
                WHERE team_id = {{team_id}} AND user_id IN {listed("ids")}
            """
        )
        async def remove_members(self, team_id: str, ids: str) -> None: ...

        @statement(
            sql="""
                INSERT INTO txbedrock_members (team_id, user_id, place, document) VALUES {rows}
                ON CONFLICT (team_id, user_id) DO UPDATE SET
                    place = excluded.place, document = excluded.document
            """
        )
        async def put_members(self, rows: Rows) -> None: ...

        @statement(
            sql="""
                INSERT INTO txbedrock_audit (
                    at_us, actor, action, kind, grant_id, before_document, after_document
                ) VALUES {rows}
            """
        )
        async def add_audit(self, rows: Rows) -> None: ...

        @query(
            sql=f"""
                {_AUDIT} FROM txbedrock_audit
                WHERE (CAST({{kind}} AS TEXT) IS NULL OR kind = {{kind}})
                    AND (CAST({{id}} AS TEXT) IS NULL OR grant_id = {{id}}) AND {_LATEST}
            """,
            load=_all,
        )
        async def audit(
            self, kind: str | None, id: str | None, before_us: int, limit: int
        ) -> list[Row]:
            raise NotImplementedError

        @query(
            sql=f"{_AUDIT} FROM txbedrock_audit WHERE kind = {{kind}} AND grant_id = {{id}} "
            f"AND {_LATEST}",
            load=_all,
        )
        async def audit_of(self, kind: str, id: str, before_us: int, limit: int) -> list[Row]:
            raise NotImplementedError

        @query(sql="SELECT pg_notify('txbedrock_grants', {payload})", load=_all)
        async def notify(self, payload: str) -> list[Row]:
            raise NotImplementedError

        @query(
            sql=f"""
                WITH named (name, key_id) AS (
                    SELECT hash, key_id FROM txbedrock_tokens WHERE hash IN {listed("names")}
                    UNION ALL
                    SELECT access_key_id, key_id FROM txbedrock_tokens
                    WHERE access_key_id IN {listed("names")} AND access_key_id <> ''
                ),
                held (name, user_id, team_id, budget_id, document) AS (
                    SELECT n.name, k.user_id, k.team_id, k.budget_id, k.document
                    FROM named n JOIN txbedrock_keys k ON k.id = n.key_id
                    UNION ALL {configured}
                )
                -- Subqueries, not joins: whatever the planner thinks of the numbers of
                -- rows, it looks each of them up.
                SELECT k.name, k.document,
                    (SELECT document FROM txbedrock_users WHERE id = k.user_id),
                    (SELECT document FROM txbedrock_teams WHERE id = k.team_id),
                    (SELECT document FROM txbedrock_members
                        WHERE team_id = k.team_id AND user_id = k.user_id),
                    (SELECT document FROM txbedrock_budgets WHERE id = k.budget_id),
                    (SELECT b.document FROM txbedrock_users u
                        JOIN txbedrock_budgets b ON b.id = u.budget_id WHERE u.id = k.user_id),
                    (SELECT b.document FROM txbedrock_teams t
                        JOIN txbedrock_budgets b ON b.id = t.budget_id WHERE t.id = k.team_id)
                FROM held k
            """,
            load=_all,
        )
        async def records(self, names: str, configured: str) -> list[Row]:
            raise NotImplementedError

        @query(sql=with_budgets("customer"), load=_all)
        async def customers(self, ids: str) -> list[Row]:
            raise NotImplementedError

        @query(sql=with_budgets("tag"), load=_all)
        async def tags(self, ids: str) -> list[Row]:
            raise NotImplementedError

        @query(
            sql="""
                SELECT EXISTS (SELECT 1 FROM txbedrock_customers),
                    EXISTS (SELECT 1 FROM txbedrock_tags)
            """,
            load=_all,
        )
        async def populated(self) -> list[Row]:
            raise NotImplementedError

    return cast(Callable[[AsyncConnection], IOthers], accessor(Statements))


# Searching.


async def page(
    connection: AsyncConnection, kind: Kind, search: GrantSearch
) -> tuple[list[str], int]:
    """
    The documents of a page, and how many there are in all.

    This one is put together for each search, from texts of this module only: so the
    planner sees what is asked for, and takes the index.

    :param search: names only filters and an order that the kind has.
    """
    conditions = [kind.filters[name] for name in search.filters]
    where = " AND ".join(conditions) or "1 = 1"
    direction = "DESC" if search.descending else "ASC"
    values: Sequence[object] = list(search.filters.values())
    cursor = await connection.cursor()
    mark = "?" if connection.paramstyle == "qmark" else "%s"

    async def rows(sql: str, *more: object) -> Sequence[Sequence[Any]]:
        await cursor.execute(sql.replace("?", mark), [*values, *more])
        return await cursor.fetchall()

    [[total]] = await rows(f"SELECT count(*) FROM {kind.table} g WHERE {where}")
    found = await rows(
        f"SELECT g.document FROM {kind.table} g WHERE {where} "
        f"ORDER BY g.{search.order_by} {direction}, g.id {direction} LIMIT ? OFFSET ?",
        search.limit,
        search.offset,
    )
    return [document for (document,) in found], total


grants: Mapping[str, Mapping[type[Any], Callable[[AsyncConnection], IGrants]]] = {
    dialect: {kind.type: _grants(kind, dialect) for kind in KINDS.values()}
    for dialect in ("sqlite", "postgres")
}
"""By dialect and kind."""

others: Mapping[str, Callable[[AsyncConnection], IOthers]] = {
    dialect: _others(dialect) for dialect in ("sqlite", "postgres")
}
"""By dialect."""
