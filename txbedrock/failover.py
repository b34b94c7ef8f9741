"""
Which deployment gets a request, and what follows when it fails: the next one, the next
model group, or the client's having the failure.

:class:`Failover` is shared by all requests; each has a :class:`Course`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec.structs import replace
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger, LogLevel

from txbedrock.core.attribution import Attribution
from txbedrock.core.auth import Principal
from txbedrock.core.balance import Ask, Balancer, InFlight, Reason, Refusal
from txbedrock.core.candidates import DeploymentState
from txbedrock.core.demand import Demand
from txbedrock.core.fallbacks import Fallbacks
from txbedrock.core.grants import NO_LIMITS
from txbedrock.core.headers import HeaderList, header
from txbedrock.core.health import FailureKind, classify, retry_after_s
from txbedrock.core.models import Choice, Models, Resolution
from txbedrock.core.operations import Match
from txbedrock.core.retry import Attempts, Retries
from txbedrock.core.usage import Usage
from txbedrock.errors import (
    CredentialsUnavailable,
    ProxyError,
    UpstreamBroke,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from txbedrock.interfaces import InboundRequest

__all__ = ["DIRECT", "Course", "Failover", "Tally", "failure_in", "failure_in_frame", "failure_of"]


DIRECT = "direct"
"""In metrics, for ids of Bedrock's own: clients could invent any number of them."""


@dataclass(slots=True)
class Tally:
    """How often something happened, for the metrics."""

    retries: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By model group and what the attempt before failed of."""

    fallbacks: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By the model group that failed and the one that was asked instead."""

    choices: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By model group and deployment: attempts that were given to it."""

    hedges: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By model group and which attempt was the better one, ``first`` or ``second``."""

    changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By deployment and state: how often it came into it."""


class Failover:
    """
    Knows how the deployments do, and what to do when one does not.

    Its :attr:`balancer` is set by whoever makes both: it tells :meth:`changed`.

    :param permitted: whether a key may use a model group: a fallback is asked for by
        nobody.
    :param reactor: for time limits.
    :param wall_clock: POSIX seconds.
    :param clock: seconds that never go back.
    :param affinity_header: lower-case name of a header whose value keeps requests at
        one deployment, for the sake of its prompt cache, as sessions do.
    """

    log = Logger()

    balancer: Balancer

    def __init__(
        self,
        retries: Retries,
        fallbacks: Fallbacks,
        models: Models,
        permitted: Callable[[Principal, str, Resolution], None],
        reactor: Any,
        wall_clock: Callable[[], float],
        clock: Callable[[], float],
        affinity_header: bytes | None = None,
    ) -> None:
        self.affinity_header = affinity_header
        self.retries = retries
        self.fallbacks = fallbacks
        self.models = models
        self.permitted = permitted
        self.now = clock
        self.wall_clock = wall_clock
        self.tally = Tally()
        self._reactor = reactor
        self._timer: Any = None

    def changed(self, state: DeploymentState) -> None:
        """A deployment has left the rotation, or is back in it."""
        self.tally.changes[state.id, state.state.value] += 1
        if state.why is None:
            self.log.info(
                "deployment {id} ({model}) is in rotation again", id=state.id, model=state.model_id
            )
            return
        until = state.cooling_until
        self.log.emit(
            LogLevel.error if state.loud else LogLevel.warn,
            "deployment {id} ({model}) is out of rotation: {why}; tried again in {wait:.1f} s"
            + (": check its model, region and credentials" if state.loud else ""),
            id=state.id,
            model=state.model_id,
            why=state.why.value,
            wait=0.0 if until is None else max(until - self.now(), 0.0),
        )

    def states(self) -> list[DeploymentState]:
        """All deployments that were used; times are POSIX seconds."""
        now = self.now()
        offset = self.wall_clock() - now
        return [
            state._replace(
                since=state.since + offset,
                cooling_until=None
                if state.cooling_until is None
                else state.cooling_until + offset,
            )
            for state in self.balancer.states(now)
        ]

    async def wait(self, ask: Ask) -> InFlight | Refusal:
        """Wait for a deployment that has as many requests as it may; first come, first served."""
        place: Deferred[InFlight | Refusal] = Deferred()
        waiter = self.balancer.wait(ask, self.now(), place.callback)
        if isinstance(waiter, Refusal):
            return waiter
        self._wake()
        try:
            return await place
        except CancelledError:
            waiter.leave()
            raise

    def _wake(self) -> None:
        """A cooldown that ends, and a wait that takes too long, are no events."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        delay_s = self.balancer.wake(self.now())
        self._timer = None if delay_s is None else self._reactor.callLater(delay_s, self._wake)

    def begin(
        self,
        principal: Principal,
        request: InboundRequest,
        match: Match,
        name: str,
        resolution: Resolution,
        said: Attribution,
        demand: Demand | None,
    ) -> Course:
        """
        A request that is to be carried.

        :param name: what the client calls the model; empty: it names none.
        :param demand: what it may need; None: no deployment counts tokens.
        """
        session = said.session_id
        if self.affinity_header is not None:
            told = header(request.headers, self.affinity_header)
            session = session if told is None else told.decode("latin-1")
        ask = Ask(
            resolution.choices,
            match.operation.name,
            session=session,
            tags=said.tags,
            tokens=0 if demand is None else demand.tokens(),
        )
        group = resolution.model_name
        return Course(
            self,
            self.now,
            self.retries.begin(match, request.method, group, self.now()),
            principal,
            name or group,
            group or DIRECT,
            group or ask.choices[0].model_id,
            ask,
            demand,
        )

    def probe(
        self, principal: Principal, request: InboundRequest, match: Match, choice: Choice
    ) -> Course:
        """A request that goes to one deployment, once."""
        ask = Ask((choice,), match.operation.name)
        attempts = self.retries.begin(match, request.method, "", self.now())
        group = choice.deployment.model_name
        model_name = group or choice.model_id
        return Course(
            self,
            self.now,
            attempts,
            principal,
            group,
            group or DIRECT,
            model_name,
            ask,
            probes=True,
        )


class Course(msgspec.Struct, eq=False):
    """The way of one request over deployments, till one has answered it."""

    _failover: Failover
    _now: Callable[[], float]
    _attempts: Attempts
    _principal: Principal
    _name: str
    _group: str
    model_name: str
    """The model group that is asked now, or the raw id."""

    _ask: Ask
    _demand: Demand | None = None
    probes: bool = False
    """Whether it is to see how its deployment does, and for nothing else."""

    retries: int = 0
    fallbacks: int = 0
    fell_back: bool = False
    """Whether what was reserved is still for the model group before."""

    failure: FailureKind | None = None
    """What the last attempt failed of."""

    _names: list[tuple[str, FailureKind]] = []
    _flight: InFlight | None = None
    _sent: bool = False

    async def choose(self) -> Choice:
        """
        The deployment for the next attempt.

        :raises NoDeployment: none takes it now.
        """
        failover, ask = self._failover, self._ask
        flight: InFlight | Refusal
        if self.probes:
            flight = failover.balancer.probe(ask.choices[0], ask.operation, self._now())
        else:
            flight = failover.balancer.take(ask, self._now())
        if isinstance(flight, Refusal) and flight.reason is Reason.PARALLEL:
            flight = await failover.wait(self._ask)
        while isinstance(flight, Refusal):
            # A fallback may have room, or be well.
            if not self._fall_back(FailureKind.UNAVAILABLE, self._now()):
                raise flight.error()
            flight = failover.balancer.take(self._ask, self._now())
        self._flight = flight
        self._sent = False
        self.failure = None
        return flight.choice

    def started(self) -> None:
        """The attempt is made, as far as it lies with the gateway."""
        if self._flight is not None:
            id = self._flight.choice.deployment.id
            self._attempts.started(id, self._now())
            self._failover.tally.choices[self._group, id] += 1

    def sent(self) -> None:
        """It goes out now, or once more: what was before is not the deployment's time."""
        self._sent = True
        if self._flight is not None:
            self._flight.sent(self._now())

    def begun(self) -> None:
        """A good answer begins: its head is here, of an event stream its first event."""
        if self._flight is not None:
            now = self._now()
            self._flight.first_byte(now)
            self._attempts.succeeded(self._flight.choice.deployment.id, now)

    def let_go(self) -> None:
        """The client has got the head: there is no other attempt."""
        if self._demand is not None:
            self._demand.let_go()

    def ended(self, failure: FailureKind | None, usage: Usage | None) -> None:
        """The answer that the client gets is over, well or not."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        now = self._now()
        self.failure = self.failure or failure
        flight.end(failure, now, tokens=self._tokens(usage))
        if failure is not None:
            self._attempts.failed(flight.choice.deployment.id, failure, now)

    def _tokens(self, usage: Usage | None) -> int:
        """What an answer took from a quota."""
        if usage is None:
            return 0
        if self._demand is None:
            return usage.input_tokens + usage.output_tokens
        used = self._demand.used(usage)
        return self._ask.tokens if used is None else used

    def pass_over(self) -> bool:
        """
        This deployment is not to be asked by this request, and was not.

        :returns: whether there is another.
        """
        flight = self._flight
        self.abandoned()
        if flight is not None:
            self._ask.barred = (*self._ask.barred, flight.choice.deployment.id)
        return any(one.deployment.id not in self._ask.barred for one in self._ask.choices)

    def abandoned(self) -> None:
        """The client has left, or we stop: that says nothing of the deployment."""
        flight, self._flight = self._flight, None
        if flight is None:
            return
        if self._sent:
            flight.abandon(self._now())
        else:
            flight.release(self._now())

    def again(self, failure: FailureKind, headers: HeaderList = []) -> float | None:  # noqa: B006
        """
        The attempt has failed, and nothing of it went to the client.

        :param headers: of the answer, if there was one.
        :returns: seconds to wait before the next attempt; None: there is none, and the
            failure is the client's to have.
        """
        flight, self._flight = self._flight, None
        if flight is None:
            return None
        failover, attempts, ask = self._failover, self._attempts, self._ask
        now = self._now()
        self.failure = failure
        asked_s = retry_after_s(headers, failover.wall_clock())
        flight.end(failure, now, retry_after_s=asked_s)
        if self.probes:
            return None
        deployment = flight.choice.deployment
        if not attempts.may_try(deployment.id, deployment.max_retries):
            ask.barred = (*ask.barred, deployment.id)
        rotation = failover.balancer.in_rotation(ask.choices, now)
        decision = attempts.after_failure(
            deployment.id,
            failure,
            now=now,
            others=[one for one in rotation if one not in ask.tried],
            again=any(one.deployment.id not in ask.barred for one in ask.choices),
            retry_after_s=asked_s,
        )
        if decision.action == "retry":
            self.retries += 1
            failover.tally.retries[self._group, failure.value] += 1
            return decision.delay_s
        if decision.action == "fallback" and self._fall_back(failure, now):
            return 0.0
        return None

    def _fall_back(self, failure: FailureKind, now: float) -> bool:
        """Go on with the next model group there is."""
        failover = self._failover
        self._names.append((self._name, failure))
        while True:
            name = failover.fallbacks.after(self._names)
            if name is None:
                return False
            try:
                resolution = failover.models.resolve(name)
                failover.permitted(self._principal, name, resolution)
            except ProxyError as error:
                failover.log.debug("no fallback: {why}", why=error.message)
                self._names.append((name, failure))
                continue
            targets = failover.balancer.in_rotation(resolution.choices, now)
            if not self._attempts.enter(resolution.model_name, targets, now):
                return False
            self._name = name
            self.model_name = resolution.model_name or name
            self._ask = replace(self._ask, choices=resolution.choices, tried=(), barred=())
            self.fallbacks += 1
            self.fell_back = True
            group = resolution.model_name or DIRECT
            failover.tally.fallbacks[self._group, group] += 1
            self._group = group
            return True

    # A second attempt beside a slow first one.

    def hedge_after(self) -> float | None:
        """When to make it, in seconds after the first; None: never."""
        flight = self._flight
        if flight is None or not self._attempts.hedgeable:
            return None
        return self._attempts.hedge_after(flight.p95_s, self._others())

    def hedge(self) -> Course | None:
        """
        The same request's way to another deployment.

        :returns: None: there is none for it now.
        """
        now = self._now()
        if not self._attempts.hedge(self._others(), now):
            return None
        flight = self._failover.balancer.take(self._ask, now)
        if isinstance(flight, Refusal):
            return None
        if flight.choice.deployment.limits is not NO_LIMITS:
            # Its budget has not been asked.
            flight.release(now)
            return None
        beside = Course(
            self._failover,
            self._now,
            self._attempts,
            self._principal,
            self._name,
            self._group,
            self.model_name,
            self._ask,
            self._demand,
        )
        beside._flight = flight
        return beside

    @property
    def choice(self) -> Choice | None:
        """Where the attempt under way is made."""
        return None if self._flight is None else self._flight.choice

    def lost(self, failure: FailureKind | None, headers: HeaderList = []) -> None:  # noqa: B006
        """
        The attempt is over, and another one is under way.

        :param failure: None: it says nothing of the deployment.
        """
        flight, self._flight = self._flight, None
        if flight is None:
            return
        now = self._now()
        if failure is None:
            flight.abandon(now)
            return
        flight.end(failure, now, retry_after_s=retry_after_s(headers, self._failover.wall_clock()))
        self._attempts.failed(flight.choice.deployment.id, failure, now)

    def hedged(self, beside: Course, won: bool) -> None:
        """
        One of two attempts is over, and the other one counts.

        :param won: whether it is the second.
        """
        self._failover.tally.hedges[self._group, "second" if won else "first"] += 1
        if won:
            self._flight, beside._flight = beside._flight, None
            self._sent = beside._sent

    def _others(self) -> list[str]:
        """Deployments in rotation where this request was not."""
        ask = self._ask
        rotation = self._failover.balancer.in_rotation(ask.choices, self._now())
        return [one for one in rotation if one not in ask.tried]


def failure_of(error: ProxyError) -> FailureKind | None:
    """What kind of failure an attempt's error is; None: none of a deployment's."""
    if isinstance(error, UpstreamBroke):
        return FailureKind.BROKE
    if isinstance(error, UpstreamUnavailable):
        return FailureKind.CONNECT
    if isinstance(error, UpstreamTimeout):
        return FailureKind.TIMEOUT
    if isinstance(error, CredentialsUnavailable):
        return FailureKind.BAD_CREDENTIALS
    return None


def failure_in(
    match: Match, status: int, headers: HeaderList, body: bytes = b""
) -> FailureKind | None:
    """
    What kind of failure an answer of AWS's is; None: none.

    :param body: of an error, as far as it is here.
    """
    if status < 400:
        return None
    kind = (header(headers, b"x-amzn-errortype") or b"").decode("ascii", "replace")
    message = message_in(body)
    return classify(status, kind, message, takes_model=match.model_label is not None)


def failure_in_frame(match: Match, status: int, kind: str, message: str) -> FailureKind:
    """What kind of failure an exception in a stream is."""
    takes_model = match.model_label is not None
    return classify(status, kind, message, takes_model=takes_model) or FailureKind.BROKE


def message_in(body: bytes) -> str:
    """The message of an error of AWS's, OpenAI's or Anthropic's."""
    try:
        document = json.loads(body)
        if isinstance(document.get("error"), dict):
            document = document["error"]
        message = document.get("message") or document.get("Message") or ""
    except (ValueError, AttributeError, RecursionError):
        return ""
    return message if isinstance(message, str) else ""
