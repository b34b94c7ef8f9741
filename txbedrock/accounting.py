"""
What an exchange used and what it costs -> one line of the ledger.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.logger import Logger

from txbedrock.core.entries import LedgerEntry
from txbedrock.core.meter import meter_for
from txbedrock.core.models import Choice, Models
from txbedrock.core.operations import Match
from txbedrock.core.pricing import NOT_BILLED, Cost, PriceTable, cost
from txbedrock.core.usage import Source, Usage
from txbedrock.errors import ProxyError
from txbedrock.interfaces import (
    ExchangeRecord,
    IExchangeLog,
    ILedger,
    IMeter,
    InboundRequest,
    IUpstreamResponse,
)

__all__ = ["Accounts", "InLedger"]

_UNKNOWN_USAGE = Usage()

# Models without a price are reported once each; a client may invent their ids.
_MAX_REPORTED = 1000


class Accounts:
    """
    Settles exchanges: each exactly once, whatever ended it.

    :param prices: may be replaced while the gateway runs.
    :param logs: who keeps the records, in this order.
    """

    _log = Logger()

    def __init__(self, prices: PriceTable, logs: Sequence[IExchangeLog]) -> None:
        self.prices = prices
        self._logs = logs
        self._reported: set[tuple[str, tuple[str, ...]]] = set()

    def meter(
        self, request: InboundRequest, match: Match, choice: Choice, response: IUpstreamResponse
    ) -> IMeter:
        """What looks on while an answer passes."""
        return meter_for(
            match.operation,
            choice.model_id,
            response.status,
            response.headers,
            method=request.method,
            raw_path=request.raw_path,
            request_body=request.body.start,
        )

    def price(self, record: ExchangeRecord) -> Cost:
        """What an exchange cost whose answer has been seen to its end, or as far as it came."""
        if record.cost is None:
            usage = record.usage = _UNKNOWN_USAGE if record.meter is None else record.meter.usage()
            record.cost = self._cost(record, usage)
        return record.cost

    def _cost(self, record: ExchangeRecord, usage: Usage) -> Cost:
        match, choice = record.match, record.choice
        if match is None or choice is None:
            return NOT_BILLED
        if record.meter is None:
            # No answer to look at: refused before, or lost on the way.
            return cost(None, usage) if record.maybe_billed else NOT_BILLED
        if usage.source is Source.NONE:
            return NOT_BILLED
        deployment = choice.deployment
        model_id = choice.model_id or usage.model
        if not model_id:
            return cost(self.prices.guardrails(deployment.prices), usage)
        price = self.prices.price(
            model_id, choice.region, deployment.prices, deployment.base_model, usage.model
        )
        return cost(price, usage)

    def would_cost(self, models: Models, model: str, usage: Usage) -> Cost:
        """
        What some usage would cost.

        :param model: a name of ``model_list``, or Bedrock's id.
        :raises ProxyError: there is no such model here.
        """
        choice = models.resolve(model).choices[0]
        deployment = choice.deployment
        price = self.prices.price(
            choice.model_id, choice.region, deployment.prices, deployment.base_model
        )
        return cost(price, usage)

    def settle(self, record: ExchangeRecord) -> None:
        """Price an exchange that is over and hand it to those who keep it."""
        costs = self.price(record)
        if costs.picousd is None:
            self._report(record, costs)
        record.entry = self._entry(record, record.usage or _UNKNOWN_USAGE, costs)
        for log in self._logs:
            try:
                log.record(record)
            except Exception:
                self._log.failure("an exchange was not recorded: {id}", id=record.request.id)

    def _report(self, record: ExchangeRecord, costs: Cost) -> None:
        choice = record.choice
        model = "" if choice is None else choice.model_id
        key = (model, costs.missing)
        if key in self._reported or len(self._reported) >= _MAX_REPORTED:
            return
        self._reported.add(key)
        what = model or (record.match.operation.name if record.match else "")
        if costs.missing == ("usage",):
            self._log.warn(
                "the cost of {model} is not known: its answer does not say what it used",
                model=what,
            )
        else:
            self._log.warn(
                "the cost of {model} is not known, there is no price for {missing}; give the "
                "deployment prices of its own or a base_model, or use a price_file",
                model=what,
                missing=", ".join(costs.missing) or "it",
            )

    def _entry(self, record: ExchangeRecord, usage: Usage, costs: Cost) -> LedgerEntry:
        request, match, choice = record.request, record.match, record.choice
        principal, said = record.principal, record.attribution
        started_us = round(request.received * 1e6)
        first_byte_s = record.first_byte_s
        return LedgerEntry(
            request_id=request.id,
            started_us=started_us,
            first_byte_us=0 if first_byte_s is None else started_us + round(first_byte_s * 1e6),
            ended_us=started_us + round(record.duration_s * 1e6),
            aws_request_id=record.upstream_request_id,
            key_hash="" if principal is None else principal.key_hash,
            key_alias="" if principal is None else principal.alias,
            user_id="" if principal is None else principal.user_id,
            team_id="" if principal is None else principal.team_id,
            end_user=said.end_user,
            tags=said.tags,
            session_id=said.session_id,
            client=request.peer,
            service="" if match is None else match.operation.service,
            operation="" if match is None else match.operation.name,
            model_name=record.model_name,
            model_id="" if choice is None else choice.model_id or usage.model,
            deployment="" if choice is None else choice.deployment.id,
            region="" if choice is None else choice.region,
            attempts=record.attempts,
            status=record.status,
            outcome=record.outcome.value,
            error=record.error,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_5m_tokens=usage.cache_write_5m_tokens,
            cache_write_1h_tokens=usage.cache_write_1h_tokens,
            units=dict(usage.units),
            tier=usage.tier,
            usage_source=usage.source.value,
            problem=usage.problem,
            cost_picousd=costs.picousd,
            price_id=costs.price_id,
            price_version=self.prices.version,
            bytes_up=record.bytes_up,
            bytes_down=record.bytes_down,
        )


class InLedger:
    """
    Keeps the records of exchanges whose key was known.

    What nobody's key asked for cost nothing, and would let anybody fill the disk.
    """

    _log = Logger()

    def __init__(self, ledger: ILedger) -> None:
        self._ledger = ledger

    def record(self, record: ExchangeRecord) -> None:
        if record.principal is None or record.entry is None:
            return
        try:
            self._ledger.record(record.entry)
        except ProxyError as error:
            # The ledger says what is wrong, once, and holds it in memory.
            self._log.debug("not in the journal: {why}", why=error.detail or error.message)
