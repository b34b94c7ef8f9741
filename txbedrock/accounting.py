"""
What an exchange used and what it costs -> one line of the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
from twisted.logger import Logger

from txbedrock.core.auth import Principal
from txbedrock.core.entries import LedgerEntry
from txbedrock.core.hints import request_hints
from txbedrock.core.meter import Meter, meter_for
from txbedrock.core.models import Choice, Models
from txbedrock.core.operations import Match
from txbedrock.core.pricing import NOT_BILLED, Cost, Price, PriceTable, RequestHints, cost
from txbedrock.core.usage import Source, Usage
from txbedrock.errors import ProxyError
from txbedrock.interfaces import (
    ExchangeRecord,
    IExchangeLog,
    ILedger,
    IMeter,
    InboundRequest,
    IUpstreamResponse,
    Outcome,
)

__all__ = ["Accounts", "InLedger"]

_UNKNOWN_USAGE = Usage()
_NOBODY = Principal("")
_NONE = Source.NONE

# Models without a price are reported once each; a client may invent their ids.
_MAX_REPORTED = 1000


class Accounts:
    """
    Settles exchanges: each exactly once, whatever ended it.

    :param prices: may be replaced while the gateway runs.
    :param kept: who has the record of an exchange before its client has the whole answer, in
        this order.
    :param told: who has it after that.
    :param wall_clock: POSIX seconds.
    """

    _log = Logger()

    def __init__(
        self,
        prices: PriceTable,
        kept: Sequence[IExchangeLog],
        told: Sequence[IExchangeLog] = (),
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.prices = prices
        self._kept = kept
        self._told = told
        self._now = wall_clock
        self._reported: set[tuple[str, tuple[str, ...]]] = set()

    def meter(
        self, request: InboundRequest, match: Match, choice: Choice, response: IUpstreamResponse
    ) -> IMeter:
        """What looks on while an answer passes."""
        meter = meter_for(
            match.operation,
            _names(choice),
            response.status,
            response.headers,
            method=request.method,
            raw_path=request.raw_path,
            request_body=request.body.start,
        )
        if match.operation.name == "InvokeModel" and response.status < 400:
            # A client that leaves takes its request with it.
            price = self.price_of(choice, choice.model_id)
            if price is not None and "images" in price.hinted:
                meter.hints = _read_hints(request, choice)
        return meter

    def ask_of_request(self, choice: Choice) -> bool:
        """Whether the price of an answer may depend on its request."""
        if not choice.model_id:
            return True
        price = self.price_of(choice, choice.model_id)
        return price is None or not price.hinted <= _NOT_OF_REQUEST

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
        if usage.source is _NONE:
            return NOT_BILLED
        model_id = choice.model_id or usage.model
        if not model_id:
            return cost(self.prices.guardrails(choice.deployment.prices), usage)
        price = self.price_of(choice, model_id, usage.model)
        if price is None or not price.hinted:
            return cost(price, usage)
        return cost(price, usage, self._hints(record, choice, price, usage))

    def price_of(self, choice: Choice, model_id: str, invoked: str = "") -> Price | None:
        """
        The prices of a deployment's model.

        :param model_id: of the choice; where that has none, what stands for it.
        :param invoked: the model that the answer names, where it names one.
        :returns: None if there are none.
        """
        deployment = choice.deployment
        return self.prices.price(
            model_id, choice.region, deployment.prices, deployment.base_model, invoked
        )

    def _hints(
        self, record: ExchangeRecord, choice: Choice, price: Price, usage: Usage
    ) -> RequestHints:
        """What a price depends on besides the usage."""
        hints = record.meter.hints if isinstance(record.meter, Meter) else None
        if hints is None:
            if any(unit in price.hinted for unit, _ in usage.units):
                hints = _read_hints(record.request, choice)
            else:
                hints = _NO_HINTS
        if "duration_ms" in price.hinted:
            hints = replace(hints, duration_ms=self._duration_ms(record))
        return hints

    def _duration_ms(self, record: ExchangeRecord) -> int:
        """From the whole request to the end of the answer, which may be just now."""
        received = record.request.received
        ended = received + record.duration_s if record.duration_s else self._now()
        return max(1, round((ended - (record.request.complete or received)) * 1000))

    def would_cost(self, models: Models, model: str, usage: Usage) -> Cost:
        """
        What some usage would cost.

        :param model: a name of ``model_list``, or Bedrock's id.
        :raises ProxyError: there is no such model here.
        """
        choice = models.resolve(model).choices[0]
        return cost(self.price_of(choice, choice.model_id), usage)

    def settle(self, record: ExchangeRecord) -> None:
        """Price an exchange that is over and hand it to those who keep it."""
        costs = self.price(record)
        if costs.picousd is None:
            self._report(record, costs)
        record.entry = self._entry(record, record.usage or _UNKNOWN_USAGE, costs)
        self._give(record, self._kept)

    def tell(self, record: ExchangeRecord) -> None:
        """Hand an exchange that is settled to those for whom nobody has to wait."""
        self._give(record, self._told)

    def _give(self, record: ExchangeRecord, logs: Sequence[IExchangeLog]) -> None:
        for log in logs:
            try:
                log.record(record)
            except Exception:
                self._log.failure("an exchange was not recorded: {id}", id=record.request.id)

    def settle_attempt(self, record: ExchangeRecord, error: ProxyError, choice: Choice) -> None:
        """
        Keep an attempt that Bedrock may bill although its answer was lost, when the
        exchange goes on with another one. It has a line of its own.

        :param choice: where it was made.
        """
        record.lost += 1
        attempt = msgspec.structs.replace(
            record,
            request=replace(record.request, id=f"{record.request.id}-{record.lost}"),
            choice=choice,
            is_attempt=True,
            outcome=Outcome.FAILED,
            status=error.status,
            error=error.code,
            fault=error.fault,
            detail=error.detail,
            maybe_billed=True,
            meter=None,
            cost=None,
            usage=None,
            attempts=1,
            duration_s=self._now() - record.request.received,
        )
        self.settle(attempt)
        self.tell(attempt)

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
        principal, said = record.principal or _NOBODY, record.attribution
        started_us = round(request.received * 1e6)
        first_byte_s = record.first_byte_s
        service = operation = model_id = deployment = region = ""
        if match is not None:
            service, operation = match.operation.service, match.operation.name
        if choice is not None:
            model_id = choice.model_id or usage.model
            deployment, region = choice.deployment.id, choice.region
        # In the order of its fields: by name, so many would go through a dict first.
        return LedgerEntry(
            request.id,
            started_us,
            0 if first_byte_s is None else started_us + round(first_byte_s * 1e6),
            started_us + round(record.duration_s * 1e6),
            record.upstream_request_id,
            principal.key_hash,
            principal.alias,
            principal.user_id,
            principal.team_id,
            said.end_user,
            said.tags,
            said.session_id,
            request.peer,
            service,
            operation,
            record.model_name,
            model_id,
            deployment,
            region,
            record.attempts,
            record.status,
            record.outcome._value_,  # .value is a call
            record.error,
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_read_tokens,
            usage.cache_write_5m_tokens,
            usage.cache_write_1h_tokens,
            dict(usage.units) if usage.units else {},
            usage.tier,
            usage.source._value_,
            usage.problem,
            costs.picousd,
            costs.price_id,
            self.prices.version,
            record.bytes_up,
            record.bytes_down,
        )


_NO_HINTS = RequestHints()
_NOT_OF_REQUEST = frozenset(("duration_ms",))


def _read_hints(request: InboundRequest, choice: Choice) -> RequestHints:
    return request_hints(_names(choice), request.body.start())


def _names(choice: Choice) -> str:
    """The model's id, and that of the one which it stands for."""
    base_model = choice.deployment.base_model
    return choice.model_id if base_model is None else f"{choice.model_id} {base_model}"


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
