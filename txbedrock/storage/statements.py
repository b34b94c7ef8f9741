"""
The ledger's SQL.

Where SQLite and PostgreSQL differ there are two of a statement. Filters that are
NULL filter nothing; since a planner cannot know which they are, there is one
statement for each that has an index, and the rest is checked row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Protocol, TypeVar

import msgspec
from dbxs import accessor, query, statement
from dbxs.async_dbapi import AsyncCursor

from txbedrock.core.entries import LedgerEntry
from txbedrock.storage.database import Rows

__all__ = [
    "COLUMNS",
    "END_OF_TIME",
    "Row",
    "overall",
    "pages",
    "postgres_entries",
    "postgres_totals",
    "sqlite_entries",
    "sqlite_totals",
    "sums",
]

T = TypeVar("T")
Row = tuple[str | int | None, ...]

COLUMNS = LedgerEntry.__struct_fields__
"""The columns of a row of the ledger, in order; the fields of an entry."""

END_OF_TIME = 2**63 - 1

_Loader = Callable[[object, AsyncCursor], Coroutine[object, object, list[T]]]


def _all(make: Callable[..., T]) -> _Loader[T]:
    """Loader of a query: all rows in one trip to the thread."""

    async def load(db: object, cursor: AsyncCursor) -> list[T]:
        return [make(*row) for row in await cursor.fetchall()]

    return load


def _row(*values: str | int | None) -> Row:
    return values


def _first(value: str) -> str:
    return value


# Writing.

_COLUMNS = ", ".join(COLUMNS)

_ADD_TO_TOTALS = """
    ON CONFLICT (kind, name, day) DO UPDATE SET
        label = CASE WHEN excluded.label <> '' THEN excluded.label ELSE old.label END,
        requests = old.requests + excluded.requests,
        failed = old.failed + excluded.failed,
        unpriced = old.unpriced + excluded.unpriced,
        cost_picousd = old.cost_picousd + excluded.cost_picousd,
        input_tokens = old.input_tokens + excluded.input_tokens,
        output_tokens = old.output_tokens + excluded.output_tokens,
        cache_read_tokens = old.cache_read_tokens + excluded.cache_read_tokens,
        cache_write_5m_tokens = old.cache_write_5m_tokens + excluded.cache_write_5m_tokens,
        cache_write_1h_tokens = old.cache_write_1h_tokens + excluded.cache_write_1h_tokens
"""
_TOTALS_COLUMNS = """
    kind, name, day, label, requests, failed, unpriced, cost_picousd, input_tokens,
    output_tokens, cache_read_tokens, cache_write_5m_tokens, cache_write_1h_tokens
"""


class ISqliteEntries(Protocol):
    """
    The write transaction keeps all others out, so what is not known at its
    beginning is new.
    """

    @query(
        sql="""
            SELECT request_id FROM txbedrock_ledger
            WHERE request_id IN (SELECT value FROM json_each({ids}))
        """,
        load=_all(_first),
    )
    async def known(self, ids: str) -> list[str]:
        """:param ids: a JSON list."""
        raise NotImplementedError

    @statement(sql=f"INSERT INTO txbedrock_ledger ({_COLUMNS}) VALUES {{rows}}")
    async def insert(self, rows: Rows) -> None: ...

    @statement(sql="INSERT INTO txbedrock_ledger_tags (tag, started_us, request_id) VALUES {rows}")
    async def tag(self, rows: Rows) -> None: ...

    @statement(
        sql=f"""
            INSERT INTO txbedrock_totals AS old ({_TOTALS_COLUMNS}) VALUES {{rows}}
            {_ADD_TO_TOTALS}
        """
    )
    async def add(self, rows: Rows) -> None: ...


def _column_of_json(name: str) -> tuple[str, str]:
    """
    A column as PostgreSQL takes it out of an entry's JSON, which leaves out what
    has its default.

    :returns: the expression, and the type.
    """
    [field] = (field for field in msgspec.structs.fields(LedgerEntry) if field.name == name)
    if name == "tags":
        return "coalesce(tags, '[]')", "TEXT"
    if name == "units":
        return "coalesce(units, '{{}}')", "TEXT"
    kind = "TEXT" if field.type is str else "BIGINT"
    if field.required or field.default is None:
        return name, kind
    default = f"'{field.default}'" if kind == "TEXT" else str(field.default)
    return f"coalesce({name}, {default})", kind


_JSON_VALUES = ", ".join(_column_of_json(name)[0] for name in COLUMNS)
_JSON_TYPES = ", ".join(f"{name} {_column_of_json(name)[1]}" for name in COLUMNS)


class IPostgresEntries(Protocol):
    """
    Another process may write the same entry at the same time: only what the
    database returns was new. Rows go in one value, as JSON, which costs 3 us of
    our CPU for each; bound one by one they cost 25 us.
    """

    @query(
        sql="""
            SELECT request_id FROM txbedrock_ledger
            WHERE request_id IN (SELECT json_array_elements_text(CAST({ids} AS JSON)))
        """,
        load=_all(_first),
    )
    async def known(self, ids: str) -> list[str]:
        """:param ids: a JSON list."""
        raise NotImplementedError

    @query(
        sql=f"""
            INSERT INTO txbedrock_ledger ({_COLUMNS})
            SELECT {_JSON_VALUES}
            FROM json_to_recordset(CAST({{entries}} AS JSON)) AS entry ({_JSON_TYPES})
            ON CONFLICT DO NOTHING
            RETURNING request_id
        """,
        load=_all(_first),
    )
    async def insert(self, entries: str) -> list[str]:
        """
        :param entries: a JSON list.
        :returns: the request ids of those that were not there.
        """
        raise NotImplementedError

    @statement(
        sql="""
            INSERT INTO txbedrock_ledger_tags (tag, started_us, request_id)
            SELECT row ->> 0, CAST(row ->> 1 AS BIGINT), row ->> 2
            FROM json_array_elements(CAST({rows} AS JSON)) AS row
        """
    )
    async def tag(self, rows: str) -> None:
        """:param rows: a JSON list of lists."""

    @statement(
        sql=f"""
            INSERT INTO txbedrock_totals AS old ({_TOTALS_COLUMNS})
            SELECT row ->> 0, row ->> 1, CAST(row ->> 2 AS BIGINT), row ->> 3,
                CAST(row ->> 4 AS BIGINT), CAST(row ->> 5 AS BIGINT), CAST(row ->> 6 AS BIGINT),
                CAST(row ->> 7 AS NUMERIC), CAST(row ->> 8 AS BIGINT), CAST(row ->> 9 AS BIGINT),
                CAST(row ->> 10 AS BIGINT), CAST(row ->> 11 AS BIGINT), CAST(row ->> 12 AS BIGINT)
            FROM json_array_elements(CAST({{rows}} AS JSON)) WITH ORDINALITY AS list (row, place)
            ORDER BY place
            {_ADD_TO_TOTALS}
        """
    )
    async def add(self, rows: str) -> None:
        """:param rows: a JSON list of lists, sorted: two processes then never wait for
        each other in a circle."""


# Reading.

_LEDGER_COLUMNS = ", ".join(f"l.{name}" for name in COLUMNS)

_FILTERS_BUT_TAG = """
    l.started_us >= {since_us} AND l.started_us < {until_us}
    AND (CAST({request_id} AS TEXT) IS NULL OR l.request_id = {request_id})
    AND (CAST({key_hash} AS TEXT) IS NULL OR l.key_hash = {key_hash})
    AND (CAST({user_id} AS TEXT) IS NULL OR l.user_id = {user_id})
    AND (CAST({team_id} AS TEXT) IS NULL OR l.team_id = {team_id})
    AND (CAST({end_user} AS TEXT) IS NULL OR l.end_user = {end_user})
    AND (CAST({model} AS TEXT) IS NULL OR l.model_name = {model} OR l.model_id = {model})
    AND (CAST({deployment} AS TEXT) IS NULL OR l.deployment = {deployment})
"""
_FILTERS = f"""
    {_FILTERS_BUT_TAG}
    AND (CAST({{tag}} AS TEXT) IS NULL OR EXISTS (
        SELECT 1 FROM txbedrock_ledger_tags t
        WHERE t.tag = {{tag}} AND t.started_us = l.started_us AND t.request_id = l.request_id
    ))
"""
_BEFORE = """
    l.started_us <= {before_us}
    AND (l.started_us < {before_us} OR l.request_id < {before_id})
"""
# The second half is for the planner: the index leaves out what has none.
_LEADS = {
    "time": "1 = 1",
    "request": "l.request_id = {request_id}",
    "key": "l.key_hash = {key_hash} AND l.key_hash <> ''",
    "user": "l.user_id = {user_id} AND l.user_id <> ''",
    "team": "l.team_id = {team_id} AND l.team_id <> ''",
    "end_user": "l.end_user = {end_user} AND l.end_user <> ''",
    "model_name": "l.model_name = {model} AND l.model_name <> ''",
    "model_id": "l.model_id = {model} AND l.model_id <> ''",
}


def _rows(lead: str) -> str:
    return f"""
        SELECT {_LEDGER_COLUMNS} FROM txbedrock_ledger l
        WHERE {_LEADS[lead]} AND {_FILTERS} AND {_BEFORE}
        ORDER BY l.started_us DESC, l.request_id DESC LIMIT {{limit}}
    """


# Both halves in the order of an index, so that a page is read and not all of a model.
_ROWS_BY_MODEL = f"""
    SELECT * FROM ({_rows("model_name")}) AS by_name
    UNION SELECT * FROM ({_rows("model_id")}) AS by_id
    ORDER BY started_us DESC, request_id DESC LIMIT {{limit}}
"""

_ROWS_BY_TAG = f"""
    SELECT {_LEDGER_COLUMNS} FROM txbedrock_ledger_tags tagged
    CROSS JOIN txbedrock_ledger l -- in this order, says CROSS to SQLite
    WHERE l.request_id = tagged.request_id
        AND tagged.tag = {{tag}} AND tagged.started_us <= {{before_us}}
        AND tagged.started_us >= {{since_us}} AND {_FILTERS_BUT_TAG} AND {_BEFORE}
    ORDER BY tagged.started_us DESC, tagged.request_id DESC LIMIT {{limit}}
"""

# The cost in two numbers, which together count whole thousandths of a dollar and
# the pico-USD above them: the sum of many may be beyond SQLite's 64 bits.
_SUMS = """
    count(*),
    sum(CASE WHEN l.outcome IN ('refused', 'failed') THEN 1 ELSE 0 END),
    sum(CASE WHEN l.cost_picousd IS NULL THEN 1 ELSE 0 END),
    coalesce(sum(l.cost_picousd / 1000000000), 0),
    coalesce(sum(l.cost_picousd - l.cost_picousd / 1000000000 * 1000000000), 0),
    sum(l.input_tokens), sum(l.output_tokens), sum(l.cache_read_tokens),
    sum(l.cache_write_5m_tokens), sum(l.cache_write_1h_tokens)
"""


def _totals(lead: str) -> str:
    return f"""
        SELECT
            CASE CAST({{by}} AS TEXT)
                WHEN 'day' THEN CAST(l.started_us / 86400000000 AS TEXT)
                WHEN 'key' THEN l.key_hash
                WHEN 'user' THEN l.user_id
                WHEN 'team' THEN l.team_id
                WHEN 'end_user' THEN l.end_user
                WHEN 'model_group' THEN l.model_name
                WHEN 'model' THEN l.model_id
                WHEN 'deployment' THEN l.deployment
                ELSE ''
            END,
            max(CASE CAST({{by}} AS TEXT) WHEN 'key' THEN l.key_alias ELSE '' END),
            {_SUMS}
        FROM txbedrock_ledger l WHERE {_LEADS[lead]} AND {_FILTERS} GROUP BY 1
    """


# Without groups: SQLite would first sort all rows by nothing, at four times the price.
def _total(lead: str) -> str:
    return f"""
        SELECT '', '', {_SUMS} FROM txbedrock_ledger l
        WHERE CAST({{by}} AS TEXT) = 'all' AND {_LEADS[lead]} AND {_FILTERS}
    """


_TOTAL_OF_TAG = f"""
    SELECT '', '', {_SUMS} FROM txbedrock_ledger_tags tagged
    CROSS JOIN txbedrock_ledger l -- in this order, says CROSS to SQLite
    WHERE CAST({{by}} AS TEXT) = 'all' AND l.request_id = tagged.request_id
        AND tagged.tag = {{tag}} AND tagged.started_us >= {{since_us}}
        AND tagged.started_us < {{until_us}} AND {_FILTERS_BUT_TAG}
"""
_TOTALS_BY_TAG = f"""
    SELECT tagged.tag, '', {_SUMS}
    FROM txbedrock_ledger_tags tagged
    JOIN txbedrock_ledger l ON l.request_id = tagged.request_id
    WHERE CAST({{by}} AS TEXT) = 'tag'
        AND tagged.started_us >= {{since_us}} AND tagged.started_us < {{until_us}}
        AND (CAST({{tag}} AS TEXT) IS NULL OR tagged.tag = {{tag}}) AND {_FILTERS_BUT_TAG}
    GROUP BY 1
"""


def _page(sql: str) -> Callable[..., Coroutine[object, object, list[Row]]]:
    @query(sql=sql, load=_all(_row))
    async def page(
        self: object,
        request_id: str | None,
        key_hash: str | None,
        user_id: str | None,
        team_id: str | None,
        end_user: str | None,
        model: str | None,
        tag: str | None,
        deployment: str | None,
        since_us: int,
        until_us: int,
        before_us: int,
        before_id: str,
        limit: int,
    ) -> list[Row]:
        raise NotImplementedError

    return page


def _sums(sql: str) -> Callable[..., Coroutine[object, object, list[Row]]]:
    @query(sql=sql, load=_all(_row))
    async def sums(
        self: object,
        by: str,
        request_id: str | None,
        key_hash: str | None,
        user_id: str | None,
        team_id: str | None,
        end_user: str | None,
        model: str | None,
        tag: str | None,
        deployment: str | None,
        since_us: int,
        until_us: int,
    ) -> list[Row]:
        raise NotImplementedError

    return sums


class Pages:
    """Rows, the newest first, from a cursor on. A method for each filter."""

    time = _page(_rows("time"))
    request = _page(_rows("request"))
    key = _page(_rows("key"))
    user = _page(_rows("user"))
    team = _page(_rows("team"))
    end_user = _page(_rows("end_user"))
    model = _page(_ROWS_BY_MODEL)
    tag = _page(_ROWS_BY_TAG)
    deployment = time


class Sums:
    """
    Sums of rows: name, label, requests, failed, unpriced, cost in 10^-3 USD and the
    rest of it in pico-USD, five kinds of tokens. A method for each index.
    """

    time = _sums(_totals("time"))
    key = _sums(_totals("key"))
    user = _sums(_totals("user"))
    team = _sums(_totals("team"))
    end_user = _sums(_totals("end_user"))
    tag = _sums(_TOTALS_BY_TAG)


class Overall:
    """The same sums of all rows together; of none they are NULL."""

    time = _sums(_total("time"))
    key = _sums(_total("key"))
    user = _sums(_total("user"))
    team = _sums(_total("team"))
    end_user = _sums(_total("end_user"))
    tag = _sums(_TOTAL_OF_TAG)


_OF_DAYS = """
    SELECT
        CASE CAST({{by}} AS TEXT)
            WHEN 'day' THEN CAST(day AS TEXT) WHEN 'all' THEN '' ELSE name
        END,
        max(label), sum(requests), sum(failed), sum(unpriced), {cost},
        sum(input_tokens), sum(output_tokens), sum(cache_read_tokens),
        sum(cache_write_5m_tokens), sum(cache_write_1h_tokens)
    FROM txbedrock_totals
    WHERE kind = {{kind}} AND day >= {{first_day}} AND day < {{end_day}}
        AND (CAST({{name}} AS TEXT) IS NULL OR name = {{name}})
    GROUP BY 1
"""


class ISqliteTotals(Protocol):
    @query(
        sql=_OF_DAYS.format(
            cost="sum(cost_picousd / 1000000000), "
            "sum(cost_picousd - cost_picousd / 1000000000 * 1000000000)"
        ),
        load=_all(_row),
    )
    async def of_days(
        self, by: str, kind: str, name: str | None, first_day: int, end_day: int
    ) -> list[Row]:
        """The same sums, of whole days, from the running totals."""
        raise NotImplementedError


class IPostgresTotals(Protocol):
    @query(sql=_OF_DAYS.format(cost="0, sum(cost_picousd)"), load=_all(_row))
    async def of_days(
        self, by: str, kind: str, name: str | None, first_day: int, end_day: int
    ) -> list[Row]:
        """The same sums, of whole days, from the running totals."""
        raise NotImplementedError


sqlite_entries = accessor(ISqliteEntries)
postgres_entries = accessor(IPostgresEntries)
sqlite_totals = accessor(ISqliteTotals)
postgres_totals = accessor(IPostgresTotals)
pages = accessor(Pages)
sums = accessor(Sums)
overall = accessor(Overall)
