"""
Which deployment gets a request, and what follows when it fails: the next one, the next
model group, or the client's having the failure.

:class:`Failover` is shared by all requests; each has a :class:`Course`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger, LogLevel

from txbedrock.core.attribution import Attribution
from txbedrock.core.auth import Principal
from txbedrock.core.balance import (
    Ask,
    Balancer,
    DeploymentState,
    InFlight,
    Reason,
    Refusal,
)
from txbedrock.core.fallbacks import Fallbacks
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
        affinity_header: bytes | None = None,
    ) -> None:
        self.affinity_header = affinity_header
        self.retries = retries
        self.fallbacks = fallbacks
        self.models = models
        self.permitted = permitted
        self.now = wall_clock
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

    def in_rotation(self, choices: Sequence[Choice], now: float) -> list[str]:
        """Ids of the deployments that are not cooling down."""
        out = {
            (state.id, state.model_id)
            for state in self.balancer.states(now)
            if state.cooling_until is not None
        }
        return [
            one.deployment.id for one in choices if (one.deployment.id, one.model_id) not in out
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
        match: Match,
        method: bytes,
        name: str,
        resolution: Resolution,
        said: Attribution,
        headers: HeaderList,
    ) -> Course:
        """
        A request that is to be carried.

        :param name: what the client calls the model; empty: it names none.
        """
        session = said.session_id
        if self.affinity_header is not None:
            told = header(headers, self.affinity_header)
            session = session if told is None else told.decode("latin-1")
        return Course(self, principal, match, method, name, resolution, said, session)


class Course:
    """The way of one request over deployments, till one has answered it."""

    def __init__(
        self,
        failover: Failover,
        principal: Principal,
        match: Match,
        method: bytes,
        name: str,
        resolution: Resolution,
        said: Attribution,
        session: str,
    ) -> None:
        self._failover = failover
        self._principal = principal
        self._now = failover.now
        self._ask = Ask(resolution.choices, match.operation.name, session=session, tags=said.tags)
        self._attempts: Attempts = failover.retries.begin(
            match, method, resolution.model_name, self._now()
        )
        self._names: list[tuple[str, FailureKind]] = []
        self._name = name or resolution.model_name
        self._group = resolution.model_name or DIRECT
        self._flight: InFlight | None = None
        self.model_name = resolution.model_name or resolution.choices[0].model_id
        """The model group that is asked now, or the raw id."""

        self.retries = 0
        self.fallbacks = 0

    async def choose(self) -> Choice:
        """
        The deployment for the next attempt, which begins now.

        :raises NoDeployment: none takes it now.
        """
        failover = self._failover
        flight = failover.balancer.take(self._ask, self._now())
        if isinstance(flight, Refusal) and flight.reason is Reason.PARALLEL:
            flight = await failover.wait(self._ask)
        while isinstance(flight, Refusal):
            # A fallback may have room, or be well.
            if not self._fall_back(FailureKind.UNAVAILABLE, self._now()):
                raise flight.error()
            flight = failover.balancer.take(self._ask, self._now())
        self._flight = flight
        self._attempts.started(flight.choice.deployment.id, self._now())
        return flight.choice

    def begun(self) -> None:
        """A good answer begins: its head is here, of an event stream its first event."""
        if self._flight is not None:
            now = self._now()
            self._flight.first_byte(now)
            self._attempts.succeeded(self._flight.choice.deployment.id, now)

    def ended(self, failure: FailureKind | None, usage: Usage | None) -> None:
        """The answer that the client gets is over, well or not."""
        tokens = 0 if usage is None else usage.input_tokens + usage.output_tokens
        flight, self._flight = self._flight, None
        if flight is None:
            return
        now = self._now()
        flight.end(failure, now, tokens=tokens)
        if failure is not None:
            self._attempts.failed(flight.choice.deployment.id, failure, now)

    def pass_over(self) -> bool:
        """
        This deployment is not to be asked by this request.

        :returns: whether there is another.
        """
        self.abandoned()
        return any(one.deployment.id not in self._ask.tried for one in self._ask.choices)

    def abandoned(self) -> None:
        """The client has left, or we stop: that says nothing of the deployment."""
        flight, self._flight = self._flight, None
        if flight is not None:
            flight.abandon(self._now())

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
        now = self._now()
        asked_s = retry_after_s(headers, now)
        flight.end(failure, now, retry_after_s=asked_s)
        rotation = self._failover.in_rotation(self._ask.choices, now)
        decision = self._attempts.after_failure(
            flight.choice.deployment.id,
            failure,
            now=now,
            others=[one for one in rotation if one not in self._ask.tried],
            again=any(
                self._attempts.may_try(one.deployment.id, one.deployment.max_retries)
                for one in self._ask.choices
            ),
            retry_after_s=asked_s,
        )
        if decision.action == "retry":
            self.retries += 1
            self._failover.tally.retries[self._group, failure.value] += 1
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
            targets = failover.in_rotation(resolution.choices, now)
            if not self._attempts.enter(resolution.model_name, targets, now):
                return False
            self._name = name
            self.model_name = resolution.model_name or name
            self._ask = replace(self._ask, choices=resolution.choices, tried=set())
            self.fallbacks += 1
            failover.tally.fallbacks[self._group, resolution.model_name or DIRECT] += 1
            self._group = resolution.model_name or DIRECT
            return True


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
