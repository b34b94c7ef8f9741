"""
One request's life: auth -> route -> balance -> sign -> forward -> relay -> settle.

This is the page on which the flow can be read. It decides nothing by itself:
decisions are ``core``'s, and it knows neither twisted.web nor a socket.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from txbedrock.core.auth import presented_key, signing_scope_of
from txbedrock.core.balance import Turns
from txbedrock.core.deployments import OnDisconnect
from txbedrock.core.eventstream import FrameScanner, exception_frame
from txbedrock.core.headers import downstream_headers, header
from txbedrock.core.models import Choice, Models
from txbedrock.core.operations import Match, Operations, decode_label
from txbedrock.core.replies import render, shape_of
from txbedrock.errors import InternalError, NotSupported, ProxyError
from txbedrock.interfaces import (
    Ending,
    ExchangeRecord,
    IDownstream,
    IExchangeLog,
    IKeyStore,
    InboundRequest,
    IRelay,
    IUpstream,
    IUpstreamResponse,
    Outcome,
)
from txbedrock.signer import Signer

__all__ = ["DrainLimits", "Gateway"]

_EVENT_STREAM = b"application/vnd.amazon.eventstream"


@dataclass(frozen=True, slots=True)
class DrainLimits:
    """How much of an answer is read on when its client has left."""

    drain_max_bytes: int = 64 * 1024 * 1024
    drain_max_s: float = 300.0


class Gateway:
    """
    Carries requests to Bedrock and answers back.
    """

    _log = Logger()

    def __init__(
        self,
        *,
        keys: IKeyStore,
        operations: Operations,
        models: Models,
        signer: Signer,
        upstream: IUpstream,
        log: IExchangeLog,
        drain: DrainLimits | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._operations = operations
        self._models = models
        self._turns = Turns()
        self._signer = signer
        self._upstream = upstream
        self._exchange_log = log
        self._drain_limits = drain or DrainLimits()
        self._now = wall_clock
        self._draining: set[IRelay] = set()
        self._may_drain = True
        self._in_flight = 0
        self._waiting: list[Deferred[None]] = []

    def idle(self) -> Deferred[None]:
        """Fires when no exchange is in flight, drained ones included."""
        waiter: Deferred[None] = Deferred()
        if self._in_flight:
            self._waiting.append(waiter)
        else:
            waiter.callback(None)
        return waiter

    def stop_draining(self) -> None:
        """Read no answers any more whose clients have left: the gateway stops."""
        self._may_drain = False
        for relay in list(self._draining):
            relay.stop()

    async def serve(self, request: InboundRequest, downstream: IDownstream) -> None:
        """
        Carry one request, answer it, and record it exactly once.

        Cancel it when the client leaves. It raises nothing.
        """
        self._in_flight += 1
        try:
            await self._serve(request, downstream)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                waiting, self._waiting = self._waiting, []
                for waiter in waiting:
                    waiter.callback(None)

    async def _serve(self, request: InboundRequest, downstream: IDownstream) -> None:
        record = ExchangeRecord(request, bytes_up=request.body.length)
        try:
            close = await self._carry(request, downstream, record)
        except ProxyError as error:
            close = self._refuse(error, downstream, record)
        except CancelledError:
            record.outcome = Outcome.CLIENT_GONE
            close = _nothing
        except Exception:
            self._log.failure("exchange {id} failed", id=request.id)
            close = self._refuse(
                InternalError("The gateway failed to carry this request."), downstream, record
            )
        # The record first: an answer that a client got whole is always on it.
        record.duration_s = self._now() - request.received
        self._exchange_log.record(record)
        close()

    async def _carry(
        self, request: InboundRequest, downstream: IDownstream, record: ExchangeRecord
    ) -> Callable[[], None]:
        """
        :returns: what ends the answer, to be called when the record is kept.
        """
        principal = await self._keys.principal(presented_key(request.headers))
        record.alias = principal.alias
        match = self._route(request)
        record.service, record.operation = match.operation.service, match.operation.name
        choice = self._choose(match, record)
        record.deployment, record.region = choice.deployment.id, choice.region
        response = await self._attempt(request, match, choice, record)
        if self._signer.learn_clock(match, choice, response):
            await response.discard()
            response = await self._attempt(request, match, choice, record)
        record.status = response.status
        record.first_byte_s = self._now() - request.received
        record.upstream_request_id = _text(header(response.headers, b"x-amzn-requestid"))
        if response.status >= 400:
            record.error = _text(header(response.headers, b"x-amzn-errortype")).partition(":")[0]
        return await self._relay(request, match, choice, response, downstream, record)

    def _route(self, request: InboundRequest) -> Match:
        scope = signing_scope_of(request.headers)
        match = self._operations.match(
            request.method,
            request.raw_path,
            target=header(request.headers, b"x-amz-target"),
            signing_name=None if scope is None else scope[2].decode("ascii", "replace"),
            body=request.body.start,
        )
        if match.operation.bidirectional:
            raise NotSupported(
                f"{match.operation.name} needs a bidirectional HTTP/2 stream, which this gateway "
                "does not carry. Use InvokeModelWithResponseStream or ConverseStream."
            )
        return match

    def _choose(self, match: Match, record: ExchangeRecord) -> Choice:
        if match.model_label is None:
            return self._models.direct()
        resolution = self._models.resolve(decode_label(match.model_label))
        record.model_name = resolution.model_name or resolution.choices[0].model_id
        return self._turns.order(resolution.model_name, resolution.choices)[0]

    async def _attempt(
        self, request: InboundRequest, match: Match, choice: Choice, record: ExchangeRecord
    ) -> IUpstreamResponse:
        signed = self._signer.sign(request, match, choice)
        record.attempts += 1
        return await self._upstream.send(signed)

    async def _relay(
        self,
        request: InboundRequest,
        match: Match,
        choice: Choice,
        response: IUpstreamResponse,
        downstream: IDownstream,
        record: ExchangeRecord,
    ) -> Callable[[], None]:
        framed = response.length is None and (
            header(response.headers, b"content-type") or b""
        ).startswith(_EVENT_STREAM)
        scanner = FrameScanner() if framed else None
        observe = None if scanner is None else scanner.feed
        relay = self._upstream.relay(response, downstream, observe)
        downstream.head(
            response.status, response.phrase, downstream_headers(response.headers), response.length
        )
        try:
            ending = await relay.run()
        except CancelledError:
            record.outcome = Outcome.CLIENT_GONE
            if (
                self._may_drain
                and match.operation.takes_model
                and choice.deployment.on_disconnect is OnDisconnect.DRAIN
            ):
                record.error = await self._drain(relay)
            else:
                relay.stop()
            return _nothing
        finally:
            record.bytes_down = relay.relayed
        if ending is Ending.COMPLETE and scanner is not None and not scanner.at_boundary:
            # The upstream ended well, as HTTP sees it, but inside a frame.
            ending = Ending.CUT
        if ending is Ending.COMPLETE:
            return downstream.finish
        record.outcome, record.error = Outcome.PARTIAL, ending.value
        if ending is not Ending.STALLED and scanner is not None and scanner.at_boundary:
            frame = exception_frame("internalServerException", _CUT_MESSAGES[ending])

            def end_with_exception() -> None:
                downstream.write(frame)
                downstream.finish()

            return end_with_exception
        return downstream.abort

    async def _drain(self, relay: IRelay) -> str:
        """:returns: what kept the answer from being read to its end, or ``-``."""
        limits = self._drain_limits
        self._draining.add(relay)
        try:
            ending = await relay.drain(limits.drain_max_bytes, limits.drain_max_s)
        finally:
            self._draining.discard(relay)
        return "-" if ending is Ending.COMPLETE else ending.value

    def _refuse(
        self, error: ProxyError, downstream: IDownstream, record: ExchangeRecord
    ) -> Callable[[], None]:
        if record.status:
            # The head is out: a second one would be taken for the body.
            record.outcome, record.error = Outcome.PARTIAL, error.code
            return downstream.abort
        record.outcome = Outcome.FAILED if record.attempts else Outcome.REFUSED
        record.status, record.error, record.detail = error.status, error.code, error.detail
        reply = render(error, record.request.id, shape_of(record.request.raw_path))
        record.bytes_down = len(reply.body)
        return lambda: downstream.reply(reply)


_CUT_MESSAGES = {
    Ending.CUT: "The connection to Bedrock broke before the end of the stream.",
    Ending.IDLE: "Bedrock sent nothing for too long; the stream was given up.",
}


def _nothing() -> None:
    """The client has left: there is nobody to end an answer for."""


def _text(value: bytes | None) -> str:
    return "-" if value is None else value.decode("ascii", "replace")
