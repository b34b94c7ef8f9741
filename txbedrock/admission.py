"""
May this request be carried, and is there room for it? Between route and balance.

Permissions are asked of the key's :class:`~txbedrock.core.permissions.Access`; room is
taken at all levels that have limits: the key, its team, its user, the end user, the
tags, the deployment.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from urllib.parse import unquote_to_bytes

from txbedrock.accounting import Accounts
from txbedrock.core.auth import Principal
from txbedrock.core.demand import Demand, ModelSizes, TokenRatios
from txbedrock.core.grants import NO_LIMITS, Level
from txbedrock.core.models import Choice, Resolution, model_in_body
from txbedrock.core.operations import Match
from txbedrock.core.permissions import EVERYTHING
from txbedrock.core.pricing import is_billed
from txbedrock.interfaces import ExchangeRecord, IKeyStore, ILimits, InboundRequest

__all__ = ["Admission"]


# The table's operations are all there are.
_is_billed = cache(is_billed)


class Admission:
    """
    Lets requests in, or refuses them.

    :param keys: knows the limits of end users and tags.
    :param accounts: knows prices.
    :param sizes: how much models give at most.
    """

    def __init__(
        self, keys: IKeyStore, limits: ILimits, accounts: Accounts, sizes: ModelSizes
    ) -> None:
        self._keys = keys
        self._limits = limits
        self._accounts = accounts
        self._sizes = sizes
        self._ratios = TokenRatios()

    def permit(self, principal: Principal, request: InboundRequest, match: Match) -> None:
        """:raises AccessDenied: the key may not call this, not from here, or not this way."""
        access = principal.access
        if access is EVERYTHING:
            return
        if access.restricts_addresses:
            access.check_address(request.peer)
        if access.restricts_routes:
            path = unquote_to_bytes(request.received_path).decode("utf-8", "replace")
            access.check_route(path)
        access.check_operation(match.operation, request.method, request.raw_path)
        if access.restricts_models and match.model_label is None:
            # Nobody resolves it, but the body of an OpenAI or Anthropic request has one.
            name = _unresolved_model(request, match)
            if name:
                access.check_model(name, "", (name,))
            else:
                access.check_unseen_model(match.operation, request.method)

    def permit_model(self, principal: Principal, label: str, resolution: Resolution) -> None:
        """
        :param label: what was resolved.
        :raises AccessDenied: the key may not use this model.
        """
        access = principal.access
        if access.restricts_models:
            access.check_model(label, resolution.model_name, resolution.model_ids)

    async def reserve(self, record: ExchangeRecord, choice: Choice) -> None:
        """
        Take room for a request at all levels of whoever asks; put it on the record.

        :param choice: what it may cost at worst is reckoned with.
        :raises RateLimited: there is none now.
        :raises BudgetExceeded: a budget is spent.
        :raises BudgetUnpriced: there is a budget, and no price.
        """
        assert record.principal is not None
        levels: Sequence[Level] = record.principal.levels
        said = record.attribution
        if said.end_user or said.tags:
            levels = (*levels, *await self._keys.levels(said.end_user, said.tags))
        if levels:
            record.reservation = await self._limits.reserve(levels, self._demand(record, choice))

    async def reserve_at(self, record: ExchangeRecord, choice: Choice) -> None:
        """
        The same for the budget of a deployment, at which an attempt is to be made.

        :raises BudgetExceeded: it is spent.
        """
        deployment = choice.deployment
        if deployment.limits is not NO_LIMITS:
            level = Level(
                "deployment",
                deployment.id,
                deployment.model_name or deployment.id,
                deployment.limits,
            )
            record.at_deployment = await self._limits.reserve(
                (level,), self._demand(record, choice)
            )

    def quota(self, record: ExchangeRecord, resolution: Resolution) -> Demand | None:
        """What a request may take of its deployments' tokens a minute; None: none has any."""
        return self._demand(record, resolution.choices[0]) if resolution.counts_tokens else None

    def _demand(self, record: ExchangeRecord, choice: Choice) -> Demand:
        request, match = record.request, record.match
        assert match is not None
        operation = match.operation
        model_id = choice.model_id or _unresolved_model(request, match)
        return Demand(
            model=record.model_name or model_id,
            model_id=model_id,
            operation=operation.name,
            body_length=request.body.length,
            body_start=request.body.start(),
            price=self._accounts.price_of(choice, model_id) if model_id else None,
            ratios=self._ratios,
            sizes=self._sizes,
            base_model=choice.deployment.base_model,
            billed=_is_billed(operation.service, operation.name),
            headers=request.headers,
        )


def _unresolved_model(request: InboundRequest, match: Match) -> str:
    """The model that a request of OpenAI's or Anthropic's kind names; empty: none."""
    if match.operation.method != "*" or request.method != b"POST":
        return ""
    body = request.body.start()
    return model_in_body(body) if len(body) == request.body.length else ""
