"""
``/spend`` and ``/global/spend``: what was used, by whom, and what it cost.

Paths and fields are LiteLLM's. Sums of money are decimal numbers in US dollars,
exact to the pico-USD.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.web.resource import Resource
from zope.interface import implementer

from txbedrock.core.auth import Principal, hash_key
from txbedrock.core.entries import By, Filters, LedgerEntry, Page, Total
from txbedrock.core.money import as_decimal, picousd_as_usd
from txbedrock.core.pricing import Cost
from txbedrock.core.replies import Reply
from txbedrock.core.usage import Source, Usage
from txbedrock.errors import GrantNotFound, InvalidRequest, LedgerUnavailable, UnknownModel
from txbedrock.inbound.admin.answering import AdminResource, Query, everyone, json_reply
from txbedrock.inbound.replying import Node
from txbedrock.inbound.request import Request
from txbedrock.interfaces import IDirectory, IKeyStore, ILedger

__all__ = ["spend_resources"]

_FILTERS = (
    "api_key", "user_id", "team_id", "end_user", "model", "tag", "request_id",
    "start_date", "end_date",
)  # fmt: skip
_MAX_LIMIT = 1000

# So many lines are read and written in one turn of the reactor.
_LINES_A_TURN = 100


def _filters(query: Query, key_hash: str | None) -> Filters:
    return Filters(
        key_hash=key_hash,
        user_id=query.text("user_id"),
        team_id=query.text("team_id"),
        end_user=query.text("end_user"),
        model=query.text("model"),
        tag=query.text("tag"),
        request_id=query.text("request_id"),
        since_us=_time(query, "start_date", end=False),
        until_us=_time(query, "end_date", end=True),
    )


def _time(query: Query, name: str, end: bool) -> int | None:
    """
    ``2026-11-22`` (as an end: that day included), or a time with or without zone.

    :returns: microseconds since 1970, UTC.
    """
    value = query.text(name)
    if value is None:
        return None
    try:
        if len(value) == 10:
            day = date.fromisoformat(value) + timedelta(days=1 if end else 0)
            moment = datetime(day.year, day.month, day.day, tzinfo=UTC)
        else:
            # A plus in a query is a space.
            moment = datetime.fromisoformat(value.replace(" ", "+") if "T" in value else value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1e6)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{name} must be a day such as 2026-11-22, or a time such as 2026-11-22T17:30:00Z."
        ) from None


def _iso(microseconds: int) -> str | None:
    if not microseconds:
        return None
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat().replace("+00:00", "Z")


def _row(entry: LedgerEntry) -> dict[str, Any]:
    """A row of ``/spend/logs``."""
    prompt = (
        entry.input_tokens
        + entry.cache_read_tokens
        + entry.cache_write_5m_tokens
        + entry.cache_write_1h_tokens
    )
    spend = entry.cost_picousd
    return {
        "request_id": entry.request_id,
        "call_type": f"{entry.service}:{entry.operation}" if entry.operation else "",
        "api_key": entry.key_hash,
        # Null: it is billed, and the price is not known.
        "spend": None if spend is None else as_decimal(spend),
        "total_tokens": prompt + entry.output_tokens,
        "prompt_tokens": prompt,
        "completion_tokens": entry.output_tokens,
        "startTime": _iso(entry.started_us),
        "endTime": _iso(entry.ended_us),
        "completionStartTime": _iso(entry.first_byte_us),
        "model": entry.model_id,
        "model_id": entry.deployment,
        "model_group": entry.model_name,
        "custom_llm_provider": "bedrock",
        "user": entry.user_id,
        "team_id": entry.team_id,
        "end_user": entry.end_user,
        "request_tags": list(entry.tags),
        "session_id": entry.session_id,
        "requester_ip_address": entry.client,
        "status": "success" if entry.outcome == "complete" and entry.status < 400 else "failure",
        "cache_hit": "False",
        "metadata": {
            "user_api_key_alias": entry.key_alias,
            "aws_request_id": entry.aws_request_id,
            "region": entry.region,
            "attempts": entry.attempts,
            "status_code": entry.status,
            "outcome": entry.outcome,
            "error": entry.error,
            "input_tokens": entry.input_tokens,
            "cache_read_input_tokens": entry.cache_read_tokens,
            "cache_creation_5m_input_tokens": entry.cache_write_5m_tokens,
            "cache_creation_1h_input_tokens": entry.cache_write_1h_tokens,
            "units": entry.units,
            "service_tier": entry.tier,
            "usage_source": entry.usage_source,
            "problem": entry.problem,
            "price_id": entry.price_id,
            "price_version": entry.price_version,
            "bytes_up": entry.bytes_up,
            "bytes_down": entry.bytes_down,
        },
    }


@implementer(IPushProducer)
class _Pace:
    """Waits for a client that reads slowly."""

    def __init__(self) -> None:
        self._paused: Deferred[None] | None = None

    def pauseProducing(self) -> None:
        self._paused = self._paused or Deferred()

    def resumeProducing(self) -> None:
        paused, self._paused = self._paused, None
        if paused is not None:
            paused.callback(None)

    def stopProducing(self) -> None:
        """The request's own cancellation ends what is written to it."""

    async def ready(self) -> None:
        if self._paused is not None:
            await self._paused


_NOTHING = Filters(until_us=0)


def _narrowed(filters: Filters, principal: Principal) -> Filters:
    """
    Of what is asked for, what is for somebody to see: everything, what the team spent
    that it leads, what its user spent, or else what the key itself did.
    """
    if principal.sees_all or (principal.team_admin and filters.team_id == principal.team_id):
        return filters
    if principal.user_id:
        if filters.user_id in (None, principal.user_id):
            return replace(filters, user_id=principal.user_id)
    elif filters.key_hash in (None, principal.key_hash):
        return replace(filters, key_hash=principal.key_hash)
    return _NOTHING


class _OfLedger(AdminResource):
    """
    A path on which everybody sees what is theirs.

    :param directory: knows the key by a secret that is not its first; None: nobody does.
    """

    def __init__(self, keys: IKeyStore, ledger: ILedger, directory: IDirectory | None) -> None:
        AdminResource.__init__(self, keys)
        self._ledger = ledger
        self._directory = directory

    def may(self, principal: Principal) -> None:
        everyone(principal)

    async def _filters(self, query: Query, principal: Principal) -> Filters:
        key = query.text("api_key")
        if key is not None and key.startswith("sk-"):
            key = await self._id_of(hash_key(key.encode()).hex())
        return _narrowed(_filters(query, key), principal)

    async def _id_of(self, key_hash: str) -> str:
        """What the ledger knows a key by: the hash of its first secret."""
        if self._directory is None:
            return key_hash
        try:
            return (await self._directory.key(key_hash)).id
        except GrantNotFound:
            return key_hash


class _Logs(_OfLedger):
    """``/spend/logs``: the lines themselves, the newest first."""

    async def answer(self, request: Request, principal: Principal) -> Reply | None:
        known = (*_FILTERS, "limit", "cursor", "format", "summarize")
        query = Query(request.uri.partition(b"?")[2], known)
        filters = await self._filters(query, principal)
        form = query.text("format") or "json"
        if form not in ("json", "csv"):
            raise InvalidRequest("format must be json or csv.")
        if query.text("summarize") == "true":
            days = await self._ledger.totals("day", filters)
            return json_reply(
                [{"startTime": day.name, "spend": as_decimal(day.cost_picousd)} for day in days]
            )
        if form == "csv":
            await self._stream(request, filters)
            return None
        limit = query.number("limit", 100, 1, _MAX_LIMIT)
        cursor, first = query.text("cursor"), True
        parts: list[bytes] = []
        while limit and (first or cursor is not None):
            page = await self._ledger.rows(filters, min(limit, _LINES_A_TURN), cursor)
            if page.entries:
                parts.append(json_reply([_row(entry) for entry in page.entries]).body[1:-1])
            cursor, first = page.cursor, False
            limit -= len(page.entries)
        reply = replace(json_reply([]), body=b"[%b]" % b",".join(parts))
        if cursor is not None:
            reply.headers.append((b"x-next-cursor", cursor.encode()))
        return reply

    async def _stream(self, request: Request, filters: Filters) -> None:
        """All lines, as CSV, page by page: never all of them in memory."""
        names = LedgerEntry.__struct_fields__
        request.setHeader(b"Content-Type", b"text/csv; charset=utf-8")
        pace, cursor, first = _Pace(), None, True
        request.registerProducer(pace, True)
        try:
            while first or cursor is not None:
                page: Page = await self._ledger.rows(filters, _LINES_A_TURN, cursor)
                text = io.StringIO()
                writer = csv.writer(text)
                if first:
                    writer.writerow([*names, "cost_usd"])
                for entry in page.entries:
                    writer.writerow([*_cells(entry), _usd(entry)])
                request.write(text.getvalue().encode())
                cursor, first = page.cursor, False
                await pace.ready()
        finally:
            if not request.disconnected:
                request.unregisterProducer()
        request.finish()


def _cells(entry: LedgerEntry) -> list[object]:
    """The fields of an entry; nothing that a spreadsheet would take for a formula."""
    cells: list[object] = []
    for value in msgspec.structs.astuple(entry):
        if isinstance(value, tuple):
            value = ",".join(value)
        elif isinstance(value, dict):
            value = " ".join(f"{name}={count}" for name, count in value.items())
        if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
            value = "'" + value
        cells.append("" if value is None else value)
    return cells


def _usd(entry: LedgerEntry) -> str:
    return "" if entry.cost_picousd is None else picousd_as_usd(entry.cost_picousd)


class _Totals(_OfLedger):
    """
    Sums by one thing.

    :param shape: a total as LiteLLM shows it on this path.
    """

    def __init__(
        self,
        keys: IKeyStore,
        ledger: ILedger,
        directory: IDirectory | None,
        by: By,
        shape: Callable[[Total], dict[str, Any]],
        methods: tuple[bytes, ...] = (b"GET",),
    ) -> None:
        _OfLedger.__init__(self, keys, ledger, directory)
        self._by, self._shape = by, shape
        self.methods = methods

    async def answer(self, request: Request, principal: Principal) -> Reply:
        query = Query(request.uri.partition(b"?")[2], (*_FILTERS, "limit"))
        limit = query.number("limit", _MAX_LIMIT, 1, _MAX_LIMIT)
        totals = await self._ledger.totals(self._by, await self._filters(query, principal))
        return json_reply([self._shape(total) for total in totals[:limit]])


class _Sum(_Totals):
    """``/global/spend``: all in one."""

    async def answer(self, request: Request, principal: Principal) -> Reply:
        query = Query(request.uri.partition(b"?")[2], _FILTERS)
        totals = await self._ledger.totals("all", await self._filters(query, principal))
        total = totals[0] if totals else Total("")
        return json_reply({"spend": as_decimal(total.cost_picousd), **_counts(total)})


def _counts(total: Total) -> dict[str, Any]:
    """What there is to say besides money, beyond LiteLLM's fields."""
    return {
        "requests": total.requests,
        "failed": total.failed,
        "unpriced": total.unpriced,
        "prompt_tokens": total.input_tokens
        + total.cache_read_tokens
        + total.cache_write_5m_tokens
        + total.cache_write_1h_tokens,
        "completion_tokens": total.output_tokens,
    }


class _Calculation(msgspec.Struct):
    """What ``/spend/calculate`` is asked."""

    model: str
    usage: dict[str, int] | None = None
    completion_response: dict[str, Any] | None = None


_decode_calculation = msgspec.json.Decoder(_Calculation).decode


class _Calculate(AdminResource):
    """
    ``/spend/calculate``: what some usage of a model would cost.

    :param cost: of a model name or id and what it used.
    """

    methods = (b"POST",)

    def __init__(self, keys: IKeyStore, cost: Callable[[str, Usage], Cost]) -> None:
        AdminResource.__init__(self, keys)
        self._cost = cost

    def may(self, principal: Principal) -> None:
        everyone(principal)

    async def answer(self, request: Request, principal: Principal) -> Reply:
        try:
            asked = _decode_calculation(request.content.start())
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"The body is not as expected: {error}.") from None
        usage = asked.usage or (asked.completion_response or {}).get("usage")
        if not isinstance(usage, dict):
            raise InvalidRequest(
                'The body needs "usage", or a "completion_response" that has one, with '
                "prompt_tokens and completion_tokens, or inputTokens and outputTokens."
            )

        def count(*names: str) -> int:
            for name in names:
                value = usage.get(name)
                if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                    return value
            return 0

        cost = self._cost(
            asked.model,
            Usage(
                input_tokens=count("prompt_tokens", "inputTokens", "input_tokens"),
                output_tokens=count("completion_tokens", "outputTokens", "output_tokens"),
                cache_read_tokens=count("cacheReadInputTokens", "cache_read_input_tokens"),
                cache_write_5m_tokens=count(
                    "cacheWriteInputTokens", "cache_creation_input_tokens"
                ),
                source=Source.BODY,
            ),
        )
        if cost.picousd is None:
            raise UnknownModel(
                f"There is no price of {', '.join(cost.missing) or 'anything'} for "
                f"{asked.model[:200]!r}."
            )
        return json_reply({"cost": as_decimal(cost.picousd), "price_id": cost.price_id})


class _NoLedger(AdminResource):
    """In place of all of them, when nothing is kept."""

    def getChild(self, path: bytes, request: object) -> Resource:
        return self

    def may(self, principal: Principal) -> None:
        everyone(principal)

    async def answer(self, request: Request, principal: Principal) -> Reply:
        raise LedgerUnavailable(
            "This gateway keeps no spend (general_settings.disable_spend_logs)."
        )


def spend_resources(
    keys: IKeyStore,
    ledger: ILedger | None,
    cost: Callable[[str, Usage], Cost],
    hint: str,
    directory: IDirectory | None = None,
) -> dict[bytes, Resource]:
    """
    :param ledger: None: nothing is kept.
    :param cost: of a model name or id and what it used.
    :param directory: knows keys by all of their secrets; None: there are no such keys.
    :returns: what belongs at the root, by name.
    """
    if ledger is None:
        return {b"spend": _NoLedger(keys), b"global": _NoLedger(keys)}

    def by(what: By, shape: Callable[[Total], dict[str, Any]], *methods: bytes) -> _Totals:
        return _Totals(keys, ledger, directory, what, shape, (b"GET", *methods))

    spend = Node(hint)
    spend.putChild(b"logs", _Logs(keys, ledger, directory))
    spend.putChild(b"calculate", _Calculate(keys, cost))
    for name, what, shape in (
        (b"keys", "key", lambda t: {"token": t.name, "key_alias": t.label, **_money(t, "spend")}),
        (b"users", "user", lambda t: {"user_id": t.name, **_money(t, "spend")}),
        (
            b"tags",
            "tag",
            lambda t: {
                "individual_request_tag": t.name,
                "log_count": t.requests,
                **_money(t, "total_spend"),
            },
        ),
    ):
        spend.putChild(name, by(what, shape))  # type: ignore[arg-type]

    everything = _Sum(keys, ledger, directory, "all", lambda t: {})
    for name, what, shape in (
        (
            b"keys",
            "key",
            lambda t: {"api_key": t.name, "key_alias": t.label, **_money(t, "total_spend")},
        ),
        (b"models", "model_group", lambda t: {"model": t.name, **_money(t, "total_spend")}),
        (b"teams", "team", lambda t: {"team_id": t.name, **_money(t, "total_spend")}),
        (
            b"end_users",
            "end_user",
            lambda t: {
                "end_user": t.name,
                "total_count": t.requests,
                **_money(t, "total_spend"),
            },
        ),
        (b"tags", "tag", lambda t: {"tag": t.name, **_money(t, "total_spend")}),
    ):
        everything.putChild(name, by(what, shape, b"POST"))  # type: ignore[arg-type]
    whole = Node(hint)
    whole.putChild(b"spend", everything)
    return {b"spend": spend, b"global": whole}


def _money(total: Total, name: str) -> dict[str, Any]:
    return {name: as_decimal(total.cost_picousd), **_counts(total)}
