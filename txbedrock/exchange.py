"""
One request's life: auth -> route -> admit -> balance -> sign -> forward -> relay -> settle.

This is the page on which the flow can be read. It decides nothing by itself:
decisions are ``core``'s, and it knows neither twisted.web nor a socket.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from txbedrock.accounting import Accounts
from txbedrock.admission import Admission
from txbedrock.core.attribution import attribution
from txbedrock.core.auth import Principal, signing_scope_of
from txbedrock.core.deployments import OnDisconnect
from txbedrock.core.eventstream import exception_frame
from txbedrock.core.headers import HeaderList, downstream_headers, header
from txbedrock.core.health import FailureKind
from txbedrock.core.identity import Identity
from txbedrock.core.limits import BudgetExceeded
from txbedrock.core.models import Choice, Models, Resolution
from txbedrock.core.money import picousd_as_usd
from txbedrock.core.operations import Match, Operations, decode_label
from txbedrock.core.replies import render, shape_of
from txbedrock.errors import (
    Fault,
    InternalError,
    NotSupported,
    ProxyError,
    Superseded,
    UpstreamBroke,
)
from txbedrock.failover import Course, Failover, failure_in, failure_in_frame, failure_of
from txbedrock.hedging import Outcome as Attempted
from txbedrock.hedging import race
from txbedrock.interfaces import (
    Ending,
    ExchangeRecord,
    IDownstream,
    IKeyStore,
    IMeter,
    InboundRequest,
    IRelay,
    ITaker,
    IUpstream,
    IUpstreamResponse,
    Outcome,
)
from txbedrock.signer import Signer
from txbedrock.takers import NOBODY, UntilFirstFrame, UntilWhole

__all__ = ["PROBER", "DrainLimits", "Gateway"]

PROBER = Principal("health-probe")
"""In whose name deployments are probed."""

# Of an answer that is sent in one piece.
_SHORT_BYTES = 64 * 1024

# To look for something in a longer body takes milliseconds: others come in between.
_LONG_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class DrainLimits:
    """How much of an answer is read on when its client has left."""

    drain_max_bytes: int = 64 * 1024 * 1024
    drain_max_s: float = 300.0


class Gateway:
    """
    Carries requests to Bedrock and answers back.

    :param admit: raises when the gateway cannot take a request now.
    :param stop_overruns: whether a stream ends that is longer than what was reserved.
    :param user_header: lower-case name of a header that names the end user.
    :param sleep: waits for so many seconds.
    :param wall_clock: POSIX seconds.
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
        accounts: Accounts,
        admission: Admission,
        failover: Failover,
        admit: Callable[[], None],
        stop_overruns: bool = False,
        user_header: bytes | None = None,
        drain: DrainLimits | None = None,
        sleep: Callable[[float], Awaitable[None]],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = keys
        self._operations = operations
        self._models = models
        self._signer = signer
        self._upstream = upstream
        self._accounts = accounts
        self._admission = admission
        self._failover = failover
        self._admit = admit
        self._stop_overruns = stop_overruns
        self._user_header = user_header
        self._drain_limits = drain or DrainLimits()
        self._sleep = sleep
        self._now = wall_clock
        self._draining: set[IRelay] = set()
        self._may_drain = True
        self.in_flight = 0
        """How many exchanges there are, drained ones included."""

        self._waiting: list[Deferred[None]] = []

    def idle(self) -> Deferred[None]:
        """Fires when no exchange is in flight, drained ones included."""
        waiter: Deferred[None] = Deferred()
        if self.in_flight:
            self._waiting.append(waiter)
        else:
            waiter.callback(None)
        return waiter

    def stop_draining(self) -> None:
        """Read no answers any more whose clients have left: the gateway stops."""
        self._may_drain = False
        for relay in list(self._draining):
            relay.stop()

    def serve(self, request: InboundRequest, downstream: IDownstream) -> Coroutine[Any, Any, None]:
        """
        Carry one request, answer it, and record it exactly once.

        Cancel it when the client leaves. It raises nothing.
        """
        # Not a coroutine of its own, which would last as long as the exchange.
        record = ExchangeRecord(request, bytes_up=request.body.length)
        return self._serve(self._carry(request, downstream, record), downstream, record)

    async def probe(self, request: InboundRequest, choice: Choice) -> ExchangeRecord:
        """
        Send a request to one deployment, be it in rotation or not, to see how it does. It
        is recorded like any other, for it may be billed.

        :param request: names any model.
        """
        record = ExchangeRecord(request, PROBER, bytes_up=request.body.length)
        await self._serve(self._probe(request, choice, record), NOBODY, record)
        return record

    async def _serve(
        self,
        carrying: Awaitable[Callable[[], None]],
        downstream: IDownstream,
        record: ExchangeRecord,
    ) -> None:
        """Carry a request, and record it whatever becomes of it."""
        request = record.request
        self.in_flight += 1
        try:
            try:
                close = await carrying
            except ProxyError as error:
                close = self._refuse(error, downstream, record)
            except CancelledError:
                record.outcome, record.fault = Outcome.CLIENT_GONE, Fault.CLIENT
                record.maybe_billed = bool(record.attempts)
                close = _nothing
            except Exception:
                self._log.failure("exchange {id} failed", id=request.id)
                close = self._refuse(
                    InternalError("The gateway failed to carry this request."), downstream, record
                )
            # The record first: an answer that a client got whole is always in the ledger.
            record.duration_s = self._now() - request.received
            self._accounts.settle(record)
            self._give_back(record)
            try:
                close()
            finally:
                self._accounts.tell(record)
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                waiting, self._waiting = self._waiting, []
                for waiter in waiting:
                    waiter.callback(None)

    def _give_back(self, record: ExchangeRecord) -> None:
        """What was reserved and not used."""
        for reservation in (record.reservation, record.at_deployment):
            if reservation is None:
                continue
            if record.attempts:
                assert record.cost is not None
                assert record.usage is not None
                reservation.settle(record.cost.picousd, record.usage)
            else:
                reservation.release()

    async def _carry(
        self, request: InboundRequest, downstream: IDownstream, record: ExchangeRecord
    ) -> Callable[[], None]:
        """
        :returns: what ends the answer, to be called when the record is kept.
        """
        principal = record.principal = await self._keys.principal(request)
        self._admit()
        match = record.match = self._route(request)
        record.attribution = attribution(
            request.headers,
            request.raw_path,
            request.body.start(),
            self._user_header,
        )
        if principal.tags:
            tags = dict.fromkeys((*principal.tags, *record.attribution.tags))
            record.attribution = replace(record.attribution, tags=tuple(tags))
        if request.body.length > _LONG_BYTES:
            await self._sleep(0)
        self._admission.permit(principal, request, match)
        name, resolution = self._resolve(principal, match, record)
        await self._admission.reserve(record, resolution.choices[0])
        identity = _identity(record)
        request = await self._signer.with_metadata(request, match, identity)
        record.overhead_s = self._now() - (request.complete or request.received)
        course = self._failover.begin(
            principal,
            request,
            match,
            name,
            resolution,
            record.attribution,
            self._admission.quota(record, resolution),
        )
        return await self._forward(request, match, identity, downstream, record, course)

    async def _probe(
        self, request: InboundRequest, choice: Choice, record: ExchangeRecord
    ) -> Callable[[], None]:
        """The same for a request of our own."""
        match = record.match = self._route(request)
        record.overhead_s = self._now() - request.received
        course = self._failover.probe(PROBER, request, match, choice)
        return await self._forward(request, match, Identity(), NOBODY, record, course)

    async def _forward(
        self,
        request: InboundRequest,
        match: Match,
        identity: Identity,
        downstream: IDownstream,
        record: ExchangeRecord,
        course: Course,
    ) -> Callable[[], None]:
        """
        :returns: what ends the answer, to be called when the record is kept.
        """
        try:
            while True:
                try:
                    close = await self._try(request, match, identity, downstream, record, course)
                except _Again as again:
                    if record.at_deployment is not None:
                        record.at_deployment.release()
                        record.at_deployment = None
                    if again.delay_s:
                        await self._sleep(again.delay_s)
                else:
                    self._accounts.price(record)
                    course.ended(_failure_after(record), record.usage)
                    return close
        finally:
            # Whoever is cancelled, or has something else go wrong, blames nobody.
            course.abandoned()
            record.failure = course.failure

    async def _try(
        self,
        request: InboundRequest,
        match: Match,
        identity: Identity,
        downstream: IDownstream,
        record: ExchangeRecord,
        course: Course,
    ) -> Callable[[], None]:
        """
        One attempt, at the deployment that is best now.

        :raises _Again: it failed, nothing has gone to the client, and there is another.
        """
        choice = record.choice = await course.choose()
        record.model_name = course.model_name
        if course.fell_back:
            course.fell_back = False
            if record.reservation is not None:
                # Another model has another price.
                record.reservation.release()
                record.reservation = None
                await self._admission.reserve(record, choice)
        try:
            await self._admission.reserve_at(record, choice)
        except BudgetExceeded:
            # That of the deployment: another one may have room.
            if course.pass_over():
                raise _Again(0.0) from None
            raise
        course.started()
        record.meter, record.error, record.fault = None, "", None
        record.upstream_status, record.upstream_request_id = 0, ""
        try:
            attempt = self._attempt(request, match, choice, identity, record, course)
            after_s = course.hedge_after()
            if after_s is None:
                response = await attempt
            else:
                response = await self._race(
                    attempt, after_s, request, match, identity, record, course
                )
                choice = record.choice
            record.first_byte_s = self._now() - request.received
            record.upstream_status = response.status
            record.upstream_request_id = _text(header(response.headers, b"x-amzn-requestid"))
            if response.status >= 400:
                kind = _text(header(response.headers, b"x-amzn-errortype")).partition(":")[0]
                record.error, record.fault = kind, _fault_of(response.status)
            return await self._relay(match, choice, response, downstream, record, course)
        except ProxyError as error:
            failure = failure_of(error)
            if failure is None or record.status:
                raise
            delay_s = course.again(failure)
            if delay_s is None:
                raise
            if error.maybe_billed:
                self._accounts.settle_attempt(record, error, record.choice)
            raise _Again(delay_s) from None

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

    def _resolve(
        self, principal: Principal, match: Match, record: ExchangeRecord
    ) -> tuple[str, Resolution]:
        """:returns: what the model is called, or nothing; what can serve the request."""
        if match.model_label is None:
            return "", self._models.direct()
        label = decode_label(match.model_label)
        label = principal.aliases.get(label, label)
        resolution = self._models.resolve(label)
        record.model_name = resolution.model_name or resolution.choices[0].model_id
        self._admission.permit_model(principal, label, resolution)
        return label, resolution

    async def _attempt(
        self,
        request: InboundRequest,
        match: Match,
        choice: Choice,
        identity: Identity,
        record: ExchangeRecord,
        course: Course,
    ) -> IUpstreamResponse:
        signed = await self._signer.sign(request, match, choice, identity)
        course.sent()
        record.attempts += 1
        response = await self._upstream.send(signed)
        if response.status in (400, 401, 403) and await self._signer.learn(
            match, choice, identity, signed, response
        ):
            await response.discard()
            signed = await self._signer.sign(request, match, choice, identity)
            course.sent()
            record.attempts += 1
            response = await self._upstream.send(signed)
        return response

    async def _race(
        self,
        first: Coroutine[Any, Any, IUpstreamResponse],
        after_s: float,
        request: InboundRequest,
        match: Match,
        identity: Identity,
        record: ExchangeRecord,
        course: Course,
    ) -> IUpstreamResponse:
        """The better one of two attempts, of which the second is made if the first is slow."""
        beside: Course | None = None

        def second() -> Coroutine[Any, Any, IUpstreamResponse] | None:
            nonlocal beside
            beside = course.hedge()
            if beside is None or beside.choice is None:
                return None
            beside.started()
            return self._attempt(request, match, beside.choice, identity, record, beside)

        def is_good(response: IUpstreamResponse) -> bool:
            failure = failure_in(match, response.status, response.headers)
            return failure is None or failure.clients

        try:
            outcomes, winner = await race(first, after_s, second, is_good, self._sleep)
            if beside is not None:
                won, lost = (beside, course) if winner else (course, beside)
                await self._give_up(match, record, lost, outcomes[1 - winner])
                course.hedged(beside, won=won is beside)
                record.choice = course.choice
        finally:
            if beside is not None:
                beside.abandoned()
        outcome = outcomes[winner]
        if outcome.error is not None:
            raise outcome.error
        assert outcome.result is not None
        return outcome.result

    async def _give_up(
        self,
        match: Match,
        record: ExchangeRecord,
        lost: Course,
        outcome: Attempted[IUpstreamResponse],
    ) -> None:
        """Of two attempts the other one counts."""
        choice = lost.choice
        assert choice is not None
        response, error = outcome
        if response is not None:
            failure = failure_in(match, response.status, response.headers)
            lost.lost(failure, response.headers)
            await response.discard()
            if failure is not None:
                return
        if error is None:
            error = Superseded("Another attempt was faster.")
        # Nothing comes of it when that has been said before.
        lost.lost(failure_of(error) if isinstance(error, ProxyError) else None)
        if isinstance(error, ProxyError) and error.maybe_billed:
            self._accounts.settle_attempt(record, error, choice)

    async def _relay(
        self,
        match: Match,
        choice: Choice,
        response: IUpstreamResponse,
        downstream: IDownstream,
        record: ExchangeRecord,
        course: Course,
    ) -> Callable[[], None]:
        """
        :raises _Again: the answer is a failure, and was kept from the client.
        """
        # A short answer goes out when it is whole: its cost is known then, and
        # one that breaks is an error that SDKs retry instead of half an answer.
        short = response.length is not None and response.length <= _SHORT_BYTES
        if not short and response.status >= 400:
            failure = failure_in(match, response.status, response.headers)
            delay_s = None if failure is None else course.again(failure, response.headers)
            if delay_s is not None:
                await response.discard()
                raise _Again(delay_s)
        meter = record.meter = self._accounts.meter(record.request, match, choice, response)
        headers = downstream_headers(response.headers) + self._own_headers(record, choice, course)
        most = self._most_events(meter, record)
        taker: ITaker = downstream
        beginning: _Beginning | None = None
        if short:
            if response.status < 400:
                course.begun()
            taker = UntilWhole()
        elif meter.framed and response.status < 300:
            beginning = _Beginning(
                self._accounts, match, choice, response, headers, downstream, record, course
            )
            taker = UntilFirstFrame(beginning.commit, beginning.is_welcome)
        else:
            _Beginning(
                self._accounts, match, choice, response, headers, downstream, record, course
            ).send()
        watch = _Watch(meter, most) if most else None
        relay = self._upstream.relay(response, taker, meter.feed if watch is None else watch.feed)
        if watch is not None:
            watch.relay = relay
        if beginning is not None:
            beginning.relay = relay
        try:
            ending = await relay.run()
        except CancelledError:
            record.outcome, record.fault = Outcome.CLIENT_GONE, Fault.CLIENT
            record.error = await self._without_client(match, choice, relay)
            return _nothing
        finally:
            record.bytes_down = relay.relayed
        if watch is not None and watch.overrun:
            ending = Ending.OVERRUN
        elif ending is Ending.COMPLETE and meter.framed and not meter.at_boundary:
            # The upstream ended well, as HTTP sees it, but inside a frame.
            ending = Ending.CUT
        if isinstance(taker, UntilWhole):
            if ending is not Ending.COMPLETE:
                raise UpstreamBroke("The connection to Bedrock broke before the answer was whole.")
            body = b"".join(taker.pieces) + relay.held
            failure = failure_in(match, response.status, response.headers, body)
            delay_s = None if failure is None else course.again(failure, response.headers)
            if delay_s is not None:
                raise _Again(delay_s)
            return self._whole(response, body, headers, downstream, record)
        if isinstance(taker, UntilFirstFrame) and not taker.committed:
            record.bytes_down = 0
            if beginning is not None and beginning.again is not None:
                raise beginning.again
            raise UpstreamBroke("Bedrock ended the stream before its first event.")
        # A length that was told cannot be exceeded by a frame of ours.
        can_tell = response.length is None and meter.framed and meter.at_boundary
        return self._end(ending, can_tell, relay, downstream, record)

    def _whole(
        self,
        response: IUpstreamResponse,
        body: bytes,
        headers: HeaderList,
        downstream: IDownstream,
        record: ExchangeRecord,
    ) -> Callable[[], None]:
        """What sends an answer that is here."""
        record.status = response.status
        cost = self._accounts.price(record).picousd
        if cost is not None:
            headers.append((b"x-litellm-response-cost", picousd_as_usd(cost).encode()))
        if record.reservation is not None:
            headers += record.reservation.headers(cost)

        def send() -> None:
            length: int | None = len(body)
            if record.request.method == b"HEAD":
                told = header(response.headers, b"content-length")
                length = int(told) if told is not None and told.isdigit() else None
            downstream.head(response.status, response.phrase, headers, length, body)
            downstream.finish()

        return send

    def _most_events(self, meter: IMeter, record: ExchangeRecord) -> int:
        """How many events of a stream there is room for, each a token at least; 0: any."""
        if not (self._stop_overruns and meter.framed) or record.reservation is None:
            return 0
        return record.reservation.output_tokens() + _OTHER_EVENTS

    def _end(
        self,
        ending: Ending,
        can_tell: bool,
        relay: IRelay,
        downstream: IDownstream,
        record: ExchangeRecord,
    ) -> Callable[[], None]:
        """
        What ends an answer whose head is out.

        :param can_tell: whether an exception frame may follow what was sent.
        """
        if ending is Ending.COMPLETE:

            def finish() -> None:
                if relay.held:
                    downstream.write(relay.held)
                downstream.finish()

            return finish
        record.outcome, record.error = Outcome.PARTIAL, ending.value
        record.fault = _BLAME.get(ending, Fault.UPSTREAM)
        if ending in _CUT_MESSAGES and can_tell:
            frame = exception_frame(*_CUT_MESSAGES[ending])

            def end_with_exception() -> None:
                downstream.write(frame)
                downstream.finish()

            return end_with_exception
        return downstream.abort

    def _own_headers(self, record: ExchangeRecord, choice: Choice, course: Course) -> HeaderList:
        """What the gateway adds to an answer."""
        assert record.overhead_s is not None
        return [
            (b"x-litellm-call-id", record.request.id.encode()),
            (b"x-litellm-model-id", choice.deployment.id.encode()),
            (b"x-litellm-attempted-retries", b"%d" % course.retries),
            (b"x-litellm-attempted-fallbacks", b"%d" % course.fallbacks),
            (b"Server-Timing", b"txbedrock;dur=%.3f" % (record.overhead_s * 1000)),
        ]

    async def _without_client(self, match: Match, choice: Choice, relay: IRelay) -> str:
        """
        The client has left in the body: read on, or not.

        :returns: what kept the answer from being read to its end, or nothing.
        """
        if (
            self._may_drain
            and match.operation.takes_model
            and choice.deployment.on_disconnect is OnDisconnect.DRAIN
        ):
            return await self._drain(relay)
        relay.stop()
        return "cancelled"

    async def _drain(self, relay: IRelay) -> str:
        """:returns: what kept the answer from being read to its end, or nothing."""
        limits = self._drain_limits
        self._draining.add(relay)
        try:
            ending = await relay.drain(limits.drain_max_bytes, limits.drain_max_s)
        finally:
            self._draining.discard(relay)
        return "" if ending is Ending.COMPLETE else ending.value

    def _refuse(
        self, error: ProxyError, downstream: IDownstream, record: ExchangeRecord
    ) -> Callable[[], None]:
        record.error, record.detail = error.code, error.detail
        record.fault = error.fault
        record.maybe_billed = error.maybe_billed
        if record.status:
            # The head is out: a second one would be taken for the body.
            record.outcome = Outcome.PARTIAL
            return downstream.abort
        record.outcome = Outcome.FAILED if record.attempts else Outcome.REFUSED
        record.status = error.status
        reply = render(error, record.request.id, shape_of(record.request.raw_path))
        reply.headers.append((b"x-litellm-call-id", record.request.id.encode()))
        record.bytes_down = len(reply.body)
        return lambda: downstream.reply(reply)


class _Beginning:
    """How an answer begins that goes down as it comes."""

    __slots__ = (
        "_accounts",
        "_choice",
        "_course",
        "_downstream",
        "_headers",
        "_match",
        "_record",
        "_response",
        "again",
        "relay",
    )

    def __init__(
        self,
        accounts: Accounts,
        match: Match,
        choice: Choice,
        response: IUpstreamResponse,
        headers: HeaderList,
        downstream: IDownstream,
        record: ExchangeRecord,
        course: Course,
    ) -> None:
        self._accounts = accounts
        self._match = match
        self._choice = choice
        self._response = response
        self._downstream = downstream
        self._record = record
        self._course = course
        self._headers = headers
        self.relay: IRelay | None = None
        self.again: _Again | None = None
        """Nothing was sent, as there is another attempt."""

    def send(self, data: bytes = b"") -> None:
        """
        Send the head. After it there is no other attempt, and the answer may take hours:
        what is not needed for it is let go.
        """
        response, record = self._response, self._record
        if response.status < 400:
            self._course.begun()
        record.status = response.status
        headers = self._headers
        if record.reservation is not None:
            headers += record.reservation.headers()
        self._downstream.head(response.status, response.phrase, headers, response.length, data)
        headers.clear()
        for reservation in (record.reservation, record.at_deployment):
            if reservation is not None:
                reservation.let_go()
        self._course.let_go()
        response.let_go()
        if not self._accounts.ask_of_request(self._choice):
            record.request.let_go()
            self._downstream.let_go()

    def commit(self, data: bytes) -> None:
        """The first frame is here: send it, and have what follows go down directly."""
        self.send(data)
        assert self.relay is not None
        self.relay.hand_over(self._downstream)

    def is_welcome(self, kind: str, message: str) -> bool:
        """Whether the client gets an exception; if not there is another attempt."""
        response = self._response
        failure = failure_in_frame(self._match, response.status, kind, message)
        delay_s = self._course.again(failure)
        if delay_s is None:
            return True
        self.again = _Again(delay_s)
        assert self.relay is not None
        self.relay.stop()
        return False


class _Watch:
    """
    Feeds a meter, and ends a stream that is longer than there is room for.

    :param most: events, each a token at least.
    """

    __slots__ = ("_meter", "_most", "overrun", "relay")

    def __init__(self, meter: IMeter, most: int) -> None:
        self._meter = meter
        self._most = most
        self.relay: IRelay | None = None
        self.overrun = False

    def feed(self, data: bytes) -> None:
        meter = self._meter
        meter.feed(data)
        if meter.frames > self._most and meter.at_boundary:
            self.overrun = True
            assert self.relay is not None
            self.relay.stop()


class _Again(Exception):
    """Another attempt is to be made, after so many seconds."""

    def __init__(self, delay_s: float) -> None:
        super().__init__(delay_s)
        self.delay_s = delay_s


_CUT_MESSAGES = {
    Ending.CUT: (
        "internalServerException",
        "The connection to Bedrock broke before the end of the stream.",
    ),
    Ending.IDLE: (
        "internalServerException",
        "Bedrock sent nothing for too long; the stream was given up.",
    ),
    Ending.OVERRUN: (
        "throttlingException",
        "The answer is longer than what was reserved for it in the limits and budgets of "
        "this key. Ask for shorter ones with maxTokens.",
    ),
}

_BLAME = {Ending.STALLED: Fault.CLIENT, Ending.OVERRUN: Fault.POLICY}

# Of a stream, besides those that hold tokens: its start, its end, its figures ...
_OTHER_EVENTS = 64


def _identity(record: ExchangeRecord) -> Identity:
    """Whom an exchange is for."""
    assert record.principal is not None
    principal = record.principal
    return Identity(
        principal.alias, principal.user_id, principal.team_id, record.attribution.end_user
    )


def _failure_after(record: ExchangeRecord) -> FailureKind | None:
    """What of an answer that went to the client was the deployment's failure."""
    broken = record.outcome is Outcome.PARTIAL and record.fault is Fault.UPSTREAM
    return FailureKind.BROKE if broken else None


def _fault_of(status: int) -> Fault:
    """Whose fault an error of AWS's is."""
    if status in (401, 403):
        # The client's key was good; what AWS refuses are the gateway's credentials.
        return Fault.PROXY
    # 424 and 408 are the model's own failures, 429 is a quota of the account's.
    return Fault.UPSTREAM if status >= 500 or status in (408, 424, 429) else Fault.CLIENT


def _nothing() -> None:
    """The client has left: there is nobody to end an answer for."""


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("ascii", "replace")
