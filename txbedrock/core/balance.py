"""
Several deployments under one model name -> the one for the next attempt.

:class:`Balancer` is told when attempts begin, are answered and end, and says where the
next one goes, or that there is nowhere to go and for how long. Pure: the time is an
argument, in seconds of any clock that does not go back, and so are random numbers.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import msgspec

from ..errors import Fault, InvalidRequest, ProxyError
from .candidates import (
    IN_FLIGHT_RETRY_S,
    NEVER,
    DeploymentState,
    Member,
    MemberSpec,
    Target,
    hash_of,
)
from .health import IN_ROTATION, Circuit, FailureKind, HealthSettings, Pace
from .models import Choice

__all__ = [
    "Ask",
    "Balancer",
    "InFlight",
    "NoDeployment",
    "Panic",
    "Reason",
    "Refusal",
    "RoutingSettings",
    "Strategy",
    "Waiter",
]

# Note [Where the next attempt goes]
# ----------------------------------
# Deployments with a lower order come first; of those that have it, the ones in rotation
# with room in their max_parallel, rpm and tpm, and of those the strategy's choice. One
# that has cooled down gets the next request that was nowhere yet, as its probe. Where an
# exchange has been comes last, but before waiting. When all are cooling, the least bad
# is tried, or the request is refused (Panic). rpm, tpm and max_parallel hold always.
#
# Note [Adaptive]
# ---------------
# The lowest score (core/candidates.py, Note [Score]) wins: of two that are drawn from the
# few that were good when they were looked at last, and one that is drawn from all. This
# is how good ones are found: who is within _GOOD times the best joins the few, who is
# beyond leaves them. A request looks at three, be there four deployments or thirty. The
# better of two of all would send more than a third of the requests to slower ones where
# one in three takes 10 ms, and the others 50 and 200; benchmarks/BALANCING.md has the
# figures.
#
# Nothing is known of a new one: as soon as one is drawn, all new ones are tried. Little is
# known of one of which nothing was heard for long: one request in _EXPLORE, or the first
# after _EXPLORE_S, goes to such a one. They are so few that the p99 of a group is that of
# its best, and what they find counts as much as all that was known before.
#
# Note [Waiting for a place]
# --------------------------
# If those in rotation have as many in flight as they may, a request may wait, a bounded
# number of them in a queue, first come first served. The place is taken for it before it
# is told, and before anybody who came later is asked for. Balancer.wake says when to call
# it again: a cooldown ends without an event, and so does the time to wait.

_GOOD = 1.5
_EXPLORE = 400
_EXPLORE_S = 300.0

_PATIENCE = 4.0
"""How much slower than another one the deployment of a session may be."""

_TIMEOUT_COUNTS_S = 1000.0
"""How long a timeout has taken, for latency-based-routing, as in LiteLLM."""

_POOLS = 2048
_TAG_SETS = 64
_LONGEST_S = 3600.0
_ALL_BITS = 2**64 - 1


class NoDeployment(ProxyError):
    """
    No deployment takes the request now. SDKs retry it.

    :param throttled: whether it is a matter of quotas (429), or not (503).
    """

    fault = Fault.UPSTREAM
    status = 503
    code = "ServiceUnavailableException"

    def __init__(self, message: str, wait_s: float, throttled: bool) -> None:
        super().__init__(
            message,
            headers=(
                (b"Retry-After", b"%d" % math.ceil(wait_s)),
                (b"x-amz-retry-after", b"%d" % math.ceil(wait_s * 1000)),
            ),
        )
        self.retry_after_s = wait_s
        if throttled:
            self.status, self.code = 429, "ThrottlingException"


class Strategy(Enum):
    """How one of several deployments is chosen. All names but the first are LiteLLM's."""

    ADAPTIVE = "adaptive"
    SIMPLE_SHUFFLE = "simple-shuffle"
    """At random, in proportion to the weights; to rpm or tpm where there are none."""

    LEAST_BUSY = "least-busy"
    """Fewest requests in flight."""

    LATENCY = "latency-based-routing"
    """Shortest mean time to the first byte of the last ten requests."""

    USAGE = "usage-based-routing"
    """Fewest tokens in the last minute, then fewest requests."""

    USAGE_V2 = "usage-based-routing-v2"
    """The same: what tells them apart in LiteLLM is how its processes count together."""

    COST = "cost-based-routing"
    """The cheapest."""


class Panic(Enum):
    """What becomes of a request when every deployment is cooling down."""

    TRY = "try"
    """It goes to the least bad one."""

    REFUSE = "refuse"
    """It is refused, and told when to come again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingSettings(HealthSettings):
    """How to choose, and when not to."""

    strategy: Strategy = Strategy.ADAPTIVE
    """LiteLLM's ``routing_strategy``."""

    panic: Panic = Panic.TRY
    default_max_parallel: int | None = None
    """Requests at the same time of a deployment that does not say how many
    (``default_max_parallel_requests``)."""

    queue_size: int = 100
    """So many requests for one group may wait for a place."""

    queue_timeout_s: float = 30.0
    """And so long."""

    affinity_header: str | None = None
    """Which header has the session, for who makes the :class:`Ask`."""

    tag_filtering: bool = False
    """Whether the tags of a request choose deployments, in groups that have tags
    (``enable_tag_filtering``)."""


class Ask(msgspec.Struct):
    """What one exchange asks for, for all of its attempts."""

    choices: Sequence[Choice]
    """As :attr:`~txbedrock.core.models.Resolution.choices` has them; the same object each
    time, or what is known of them is looked up anew. At least one."""

    operation: str
    session: str = ""
    """Requests with the same one go to the same deployment while it is well; empty: it
    does not matter."""

    tags: Sequence[str] = ()
    tokens: int = 0
    """How many it may take from a quota; 0: not known."""

    tried: Collection[str] = ()
    """Ids of the deployments where it has been. :meth:`Balancer.take` adds to them."""

    barred: Collection[str] = ()
    """Those of :attr:`tried` to which it must not go again."""


class Reason(Enum):
    """Why no deployment takes a request."""

    COOLING = "cooling"
    """None is in rotation."""

    PARALLEL = "parallel"
    """One is, and has as many in flight as it may."""

    RATE = "rate"
    """One is, and its requests or tokens of this minute are used up."""


class Refusal(NamedTuple):
    """No deployment takes a request now."""

    reason: Reason
    wait_s: float
    """When one may again; a guess with :attr:`Reason.PARALLEL`."""

    why: FailureKind | None = None
    """What the one that will be back first suffers from, if they are cooling."""

    def error(self) -> NoDeployment:
        """What its client is told."""
        again = f"Try again in {math.ceil(self.wait_s)} s."
        if self.reason is Reason.PARALLEL:
            what = "Every deployment of this model has as many requests in flight as it may."
        elif self.reason is Reason.RATE:
            what = "The requests or tokens a minute of all deployments of this model are used up."
        elif self.why is FailureKind.THROTTLED:
            what = "All deployments of this model are throttled by Amazon Bedrock."
        else:
            what = "No deployment of this model is available."
        throttled = self.reason is not Reason.COOLING or self.why is FailureKind.THROTTLED
        return NoDeployment(f"{what} {again}", self.wait_s, throttled)


class _Tier:
    """Those of one lane that have the same order."""

    __slots__ = ("even", "explored", "good", "targets", "turns")

    def __init__(self, targets: Sequence[Target], now: float) -> None:
        self.targets = targets
        self.even = len({one.share for one in targets}) == 1
        """Whether all have the same share."""

        self.good: list[Target] = []
        """Those that were good when they were looked at last."""

        self.turns = 0
        self.explored = now


class _Lane:
    """What serves one group's requests with the same tags, and which of them wait."""

    __slots__ = ("counts_tokens", "members", "targets", "tiers", "waiting")

    def __init__(self, targets: Sequence[Target], now: float) -> None:
        self.targets = targets
        self.members = {one.member for one in targets}
        orders = sorted({one.spec.order for one in self.members})
        self.tiers = [
            _Tier([one for one in targets if one.member.spec.order == order], now)
            for order in orders
        ]
        self.counts_tokens = any(one.spec.tpm is not None for one in self.members)
        self.waiting: deque[Waiter] = deque()


class _Pool:
    """Those that one name stands for."""

    __slots__ = ("by_tags", "choices", "lane", "tags", "targets")

    def __init__(self, choices: Sequence[Choice], targets: list[Target], now: float) -> None:
        self.choices = choices
        self.targets = targets
        for one, share in zip(targets, _shares([one.member.spec for one in targets]), strict=True):
            one.share = share
        self.lane = _Lane(targets, now)
        self.tags = frozenset(tag for one in targets for tag in one.member.spec.tags)
        self.by_tags: dict[tuple[frozenset[str], bool], _Lane] = {}


class InFlight(msgspec.Struct, eq=False):
    """
    One attempt, from being chosen to its end. It has to be ended, abandoned or released,
    whatever becomes of it; the first of these counts.
    """

    choice: Choice
    """Where it goes."""

    _balancer: Balancer
    _target: Target
    _pace: Pace
    _place: int
    _tokens: int
    _started: float
    _second: int
    _trial: int = 0
    _answered: bool = False
    _over: bool = False

    def sent(self, now: float) -> None:
        """
        It goes out only now: what was before is not the deployment's time. May be left
        out where that is nothing.
        """
        if not self._answered and not self._over:
            self._pace.starts += now - self._started
            self._started = now

    def first_byte(self, now: float) -> None:
        """The head of a good answer is there."""
        if self._answered or self._over:
            return
        self._answered = True
        target = self._target
        target.waiting -= 1
        self._pace.end(self._started)
        waited_s = now - self._started
        self._pace.took(waited_s if waited_s > 0 else 0.0, self._place, True, now)
        target.count(False, now)
        if target.learned_requests or target.learned_tokens:
            target.went_well(now)
        target.circuit.answered(self._trial, now)
        if target.until != target.circuit.until or self._balancer._queues:
            self._balancer._look(target, now)

    def end(
        self,
        kind: FailureKind | None,
        now: float,
        retry_after_s: float | None = None,
        tokens: int = 0,
    ) -> None:
        """
        It is over.

        :param kind: why it failed; None: it did not.
        :param retry_after_s: how long AWS asked us to wait.
        :param tokens: what it took from the quota for tokens, as far as known.
        """
        if self._over:
            return
        target = self._target
        circuit = target.circuit
        if kind is None:
            if not self._answered:
                self.first_byte(now)
            if circuit.until != IN_ROTATION:
                circuit.completed(self._trial, now)
        elif kind.clients:
            self._stop_waiting()
            circuit.inconclusive(self, now)
        else:
            answered = self._answered
            if not answered:
                self._stop_waiting()
                self._pace.took(max(now - self._started, 0.0), self._place, False, now)
                if kind is FailureKind.TIMEOUT:
                    self._pace.note(_TIMEOUT_COUNTS_S)
            if kind is FailureKind.THROTTLED:
                target.learn_quota(self._second, now)
            else:
                target.count(True, now, answered)
            circuit.failed(self, kind, now, retry_after_s, answered)
        self._finish(tokens, now)

    def abandon(self, now: float, tokens: int = 0) -> None:
        """Its client left: nobody's failure."""
        if self._over:
            return
        if not self._answered:
            self._stop_waiting()
            self._pace.took(max(now - self._started, 0.0), self._place, False, now)
        self._target.circuit.abandoned(self)
        self._finish(tokens, now)

    @property
    def p95_s(self) -> float | None:
        """In this time 95 of 100 of its kind are answered here; None: not known yet."""
        return self._pace.p95_s

    def release(self, now: float) -> None:
        """It was never sent, and counts for nothing."""
        if self._over:
            return
        target = self._target
        self._stop_waiting()
        target.circuit.inconclusive(self, now)
        for window in (target.member.requests, target.requests):
            window.expire(int(now))
            window.take_back(self._second, 1)
        self._finish(0, now)

    def _stop_waiting(self) -> None:
        if not self._answered:
            self._answered = True
            self._target.waiting -= 1
            self._pace.end(self._started)

    def _finish(self, tokens: int, now: float) -> None:
        self._over = True
        target = self._target
        target.in_flight -= 1
        if tokens:
            second = int(now)
            if target.tokens.second != second:
                target.tokens.expire(second)
            target.tokens.add(tokens)
        if target.member.limited:
            target.member.give_back(self._tokens, tokens, now)
        if target.until != target.circuit.until or self._balancer._queues:
            self._balancer._look(target, now)


class Waiter:
    """A request that waits for a place."""

    __slots__ = ("_balancer", "_lane", "ask", "deadline", "ready")

    def __init__(
        self,
        balancer: Balancer,
        lane: _Lane,
        ask: Ask,
        deadline: float,
        ready: Callable[[InFlight | Refusal], None],
    ) -> None:
        self.ask = ask
        self.deadline = deadline
        self.ready = ready
        self._balancer = balancer
        self._lane = lane

    def leave(self) -> None:
        """It does not wait any more: its client left. Then it is not told anything."""
        if self in self._lane.waiting:
            self._lane.waiting.remove(self)
            if not self._lane.waiting:
                self._balancer._queues.discard(self._lane)


class Balancer:
    """
    Knows how the deployments are, and chooses.

    :param members: what the configuration says, by deployment id.
    :param on_change: is told when a deployment leaves the rotation or is back in it. It
        must not raise.
    """

    def __init__(
        self,
        settings: RoutingSettings,
        members: Mapping[str, MemberSpec],
        rng: random.Random,
        on_change: Callable[[DeploymentState], None] | None = None,
    ) -> None:
        self._settings = settings
        self._tag_filtering = settings.tag_filtering
        self._counts = settings.strategy in (Strategy.USAGE, Strategy.USAGE_V2)
        self._specs = dict(members)
        self._rng = rng
        self._random = rng.random
        self._on_change = on_change
        self._members: dict[str, Member] = {}
        # Those that the configuration names are kept; those that clients name as long as
        # one of the pools, of which there is a bounded number, has them.
        self._targets: dict[tuple[str, str], Target] = {}
        self._passing: WeakValueDictionary[tuple[str, str], Target] = WeakValueDictionary()
        self._pools: dict[int, _Pool] = {}
        self._queues: set[_Lane] = set()
        self._pick: Callable[[_Tier, list[Target], Ask, float], Target] = {
            Strategy.ADAPTIVE: self._adaptive,
            Strategy.SIMPLE_SHUFFLE: self._shuffle,
            Strategy.LEAST_BUSY: self._least_busy,
            Strategy.LATENCY: self._fastest,
            Strategy.USAGE: self._least_used,
            Strategy.USAGE_V2: self._least_used,
            Strategy.COST: self._cheapest,
        }[settings.strategy]

    @property
    def waiting(self) -> int:
        """How many requests wait for a place."""
        return sum(len(lane.waiting) for lane in self._queues)

    def choose(self, ask: Ask, now: float) -> Choice | Refusal:
        """
        Where a request would go. Takes nothing.

        :raises InvalidRequest: no deployment is for its tags.
        """
        found = self._find(self._lane(ask, now), ask, now)
        return found if isinstance(found, Refusal) else found.choice

    def take(self, ask: Ask, now: float) -> InFlight | Refusal:
        """
        Begin an attempt, where it goes best.

        :raises InvalidRequest: no deployment is for its tags.
        """
        lane = self._lane(ask, now)
        if lane.waiting:
            self._serve(lane, now)
        found = self._find(lane, ask, now)
        return found if isinstance(found, Refusal) else self._begin(found, ask, now)

    def wait(
        self, ask: Ask, now: float, ready: Callable[[InFlight | Refusal], None]
    ) -> Waiter | Refusal:
        """
        Wait for a place, after a refusal for :attr:`Reason.PARALLEL`.

        :param ready: is called once, later: with a place, or that there will be none. It
            must not raise.
        :returns: a refusal if too many wait.
        """
        settings, lane = self._settings, self._lane(ask, now)
        if len(lane.waiting) >= settings.queue_size:
            return Refusal(Reason.PARALLEL, IN_FLIGHT_RETRY_S)
        waiter = Waiter(self, lane, ask, now + settings.queue_timeout_s, ready)
        lane.waiting.append(waiter)
        self._queues.add(lane)
        return waiter

    def wake(self, now: float) -> float | None:
        """
        Let in those who can be let in because time has passed.

        :returns: seconds until it is to be called again; None: nobody waits.
        """
        for lane in list(self._queues):
            self._serve(lane, now)
        times = [lane.waiting[0].deadline for lane in self._queues]
        for lane in self._queues:
            for target in lane.targets:
                times += (target.until, target.member.free_at)
        later = [time - now for time in times if now < time < NEVER]
        return min(later) if later else None

    def probe(self, choice: Choice, operation: str, now: float) -> InFlight:
        """An attempt at this one, in rotation or not, be there room or not."""
        ask = Ask((choice,), operation)
        return self._begin(self._target(choice, now), ask, now)

    def in_rotation(self, choices: Sequence[Choice], now: float) -> list[str]:
        """
        Ids of the deployments that are well, or due to be probed. Room does not matter.

        :param choices: as :attr:`Ask.choices`.
        """
        targets = self._pool(choices, now).targets
        return [one.member.id for one in targets if one.until <= now]

    def states(self, now: float) -> list[DeploymentState]:
        """All that were used, or may have been."""
        return [one.state(now) for one in (*self._targets.values(), *self._passing.values())]

    # What is known.

    def _pool(self, choices: Sequence[Choice], now: float) -> _Pool:
        pool = self._pools.get(id(choices))
        if pool is None:
            if len(self._pools) >= _POOLS:
                del self._pools[next(iter(self._pools))]
            targets = [self._target(choice, now) for choice in choices]
            # It holds the choices, so their id is not another's.
            pool = self._pools[id(choices)] = _Pool(choices, targets, now)
        return pool

    def _lane(self, ask: Ask, now: float) -> _Lane:
        pool = self._pools.get(id(ask.choices)) or self._pool(ask.choices, now)
        if not self._tag_filtering or not pool.tags:
            return pool.lane
        # Of what clients say only what a deployment has, or there would be no end of it.
        key = pool.tags.intersection(ask.tags), bool(ask.tags)
        lane = pool.by_tags.get(key)
        if lane is None:
            if len(pool.by_tags) >= _TAG_SETS:
                del pool.by_tags[next(iter(pool.by_tags))]
            lane = pool.by_tags[key] = _Lane(_tagged(pool.targets, *key), now)
        return lane

    def _target(self, choice: Choice, now: float) -> Target:
        key = choice.deployment.id, choice.model_id
        target = self._targets.get(key) or self._passing.get(key)
        if target is None:
            circuit = Circuit(self._settings, self._rng)
            target = Target(choice, self._member(key[0], now), circuit, now)
            if target.named_by_client:
                self._passing[key] = target
            else:
                self._targets[key] = target
        return target

    def _member(self, id: str, now: float) -> Member:
        member = self._members.get(id)
        if member is None:
            spec = self._specs.get(id, MemberSpec())
            most = spec.max_parallel
            if most is None:
                most = self._settings.default_max_parallel
            member = self._members[id] = Member(id, spec, most, self._counts, now)
        return member

    def _look(self, target: Target, now: float) -> None:
        """Something has become of an attempt: who is in rotation now, who can be let in?"""
        before, until = target.until, target.circuit.until
        if before != until:
            target.until = until
            if self._on_change is not None and IN_ROTATION in (before, until):
                self._on_change(target.state(now))
        if self._queues:
            for lane in list(self._queues):
                if target.member in lane.members:
                    self._serve(lane, now)

    def _serve(self, lane: _Lane, now: float) -> None:
        """Let in who waits, in order, as far as there is room."""
        told: list[tuple[Waiter, InFlight | Refusal]] = []
        waiting = lane.waiting
        while waiting:
            waiter = waiting[0]
            outcome: InFlight | Refusal
            if now >= waiter.deadline:
                outcome = Refusal(Reason.PARALLEL, IN_FLIGHT_RETRY_S)
            else:
                found = self._find(lane, waiter.ask, now)
                if isinstance(found, Target):
                    outcome = self._begin(found, waiter.ask, now)
                elif found.reason is Reason.PARALLEL:
                    break
                else:
                    outcome = found
            waiting.popleft()
            told.append((waiter, outcome))
        if not waiting:
            self._queues.discard(lane)
        for waiter, outcome in told:
            waiter.ready(outcome)

    def _begin(self, target: Target, ask: Ask, now: float) -> InFlight:
        member, tokens, place = target.member, ask.tokens, target.waiting
        if member.id not in ask.tried:
            ask.tried = (*ask.tried, member.id)
        pace = target.begin(ask.operation, now)
        flight = InFlight(target.choice, self, target, pace, place, tokens, now, int(now))
        if target.until != IN_ROTATION:
            flight._trial = target.circuit.begin(flight, now)
            target.until = target.circuit.until
        if member.limited:
            member.take(tokens, now)
        return flight

    # Choosing. See Note [Where the next attempt goes].

    def _find(self, lane: _Lane, ask: Ask, now: float) -> Target | Refusal:
        tried = ask.tried
        # Nobody is made to be a probe who has failed already.
        latest = IN_ROTATION if tried else now
        for tier in lane.tiers:
            ready = [
                one for one in tier.targets if one.until <= latest and one.member.free_at <= now
            ]
            if tried:
                ready = [one for one in ready if one.member.id not in tried]
            if lane.counts_tokens:
                ready = _with_tokens(ready, ask.tokens, now)
            if len(ready) > 1:
                return self._one_of(tier, ready, ask, now)
            if ready:
                return ready[0]
        if tried:
            ready = [
                one for one in lane.targets if one.until <= now and one.member.id not in ask.barred
            ]
            ready = _with_room(ready, ask.tokens, now)
            if ready:
                return min(
                    ready,
                    key=lambda one: (
                        one.member.id in tried,
                        one.until,
                        one.member.spec.order,
                        self._random(),
                    ),
                )
        return self._least_bad(lane, ask, now)

    def _one_of(self, tier: _Tier, ready: list[Target], ask: Ask, now: float) -> Target:
        for one in ready:
            if one.until != IN_ROTATION:
                return one  # Its probe.
        found = self._pick(tier, ready, ask, now)
        return self._of_session(tier, ready, found, ask, now) if ask.session else found

    def _least_bad(self, lane: _Lane, ask: Ask, now: float) -> Target | Refusal:
        """None that is in rotation has room."""
        well: list[Target] = []
        cooling: list[Target] = []
        targets = [one for one in lane.targets if one.member.id not in ask.barred]
        if not targets:
            return Refusal(Reason.COOLING, IN_FLIGHT_RETRY_S)
        for one in targets:
            (well if one.until <= now else cooling).append(one)
        if any(one.member.free_at == NEVER for one in well):
            return Refusal(Reason.PARALLEL, IN_FLIGHT_RETRY_S)
        if self._settings.panic is Panic.TRY:
            may = cooling
        else:
            # What a client named itself and AWS does not know, AWS should say.
            may = [one for one in cooling if one.named_by_client and one.denied]
        if may:
            free = _with_room(may, ask.tokens, now)
            if free:
                tried = ask.tried
                return min(
                    self._two(free),
                    key=lambda one: (one.member.id in tried, one.misconfigured, one.until),
                )
            if not well and any(one.member.free_at == NEVER for one in may):
                return Refusal(Reason.PARALLEL, IN_FLIGHT_RETRY_S)
        waits = [(one.wait_s(ask.tokens, now), one) for one in targets]
        wait_s, soonest = min(waits, key=lambda one: one[0])
        wait_s = IN_FLIGHT_RETRY_S if wait_s == NEVER else min(max(wait_s, 0.001), _LONGEST_S)
        if well:
            return Refusal(Reason.RATE, wait_s)
        return Refusal(Reason.COOLING, wait_s, soonest.circuit.why)

    def _two(self, targets: list[Target]) -> list[Target]:
        """Two of them, so that not all requests go to the same one."""
        return self._rng.sample(targets, 2) if len(targets) > 2 else targets

    def _of_session(
        self, tier: _Tier, ready: list[Target], found: Target, ask: Ask, now: float
    ) -> Target:
        """
        The deployment of a session, unless it is much worse than another one.

        Rendezvous hashing: each session has an order of its own of all deployments, and
        the first of it that is ready is the session's.
        """
        session = hash_of(ask.session) | 1
        # Odd numbers times odd numbers: each session permutes all that there are.
        places = [session * one.seed & _ALL_BITS for one in ready]
        if tier.even:
            own = ready[places.index(max(places))]
        else:
            # The larger its share, the nearer.
            distances = [
                -math.log((place + 1) / (_ALL_BITS + 2)) / one.share if one.share else NEVER
                for place, one in zip(places, ready, strict=True)
            ]
            own = ready[distances.index(min(distances))]
        if own is found or ask.operation not in found.paces:
            return own
        operation = ask.operation
        if own.score(operation, now) <= _PATIENCE * found.score(operation, now):
            return own
        return found

    def _adaptive(self, tier: _Tier, ready: list[Target], ask: Ask, now: float) -> Target:
        """See Note [Adaptive]."""
        operation, good, rnd = ask.operation, tier.good, self._random
        place = int(rnd() * len(ready))
        any_one = ready[place]
        drawn = []
        count = len(good)
        if count:
            first = int(rnd() * count)
            drawn.append(good[first])
            if count > 1:
                # Another one: a step of 1 to count - 1 further.
                drawn.append(good[(first + 1 + int(rnd() * (count - 1))) % count])
            if any_one in drawn:
                any_one = ready[place - 1]
        if not any_one.answered(operation):
            # There are new ones: all are looked at.
            return min(ready[place:] + ready[:place], key=lambda one: one.score(operation, now))
        tier.turns += 1
        due = tier.turns >= _EXPLORE or now - tier.explored >= _EXPLORE_S
        if due and not ask.tried and any_one.stale(operation, now):
            tier.turns, tier.explored = 0, now
            return any_one
        best, least = any_one, any_one.score(operation, now)
        scores = [(least, any_one)]
        alone = True
        for one in drawn:
            if one in ready:
                alone = False
                score = one.score(operation, now)
                if score < least:
                    best, least = one, score
            else:
                # It was tried already, or has no room; or it is out.
                score = 0.0 if one.until <= now else NEVER
            scores.append((score, one))
        if alone:
            one = ready[ready.index(any_one) - 1]
            score = one.score(operation, now)
            if score < least:
                best, least = one, score
        for score, one in scores:
            if score > _GOOD * least:
                if one in good:
                    good.remove(one)
            elif one is any_one and one not in good:
                good.append(one)
        return best

    def _shuffle(self, tier: _Tier, ready: list[Target], ask: Ask, now: float) -> Target:
        shares = [one.share for one in ready]
        if not any(shares):
            return ready[int(self._random() * len(ready))]
        return self._rng.choices(ready, shares)[0]

    def _least_busy(self, tier: _Tier, ready: list[Target], ask: Ask, now: float) -> Target:
        return self._least(ready, [one.in_flight for one in ready])

    def _fastest(self, tier: _Tier, ready: list[Target], ask: Ask, now: float) -> Target:
        return self._least(ready, [one.last_ten_s(ask.operation, now) for one in ready])

    def _least_used(self, tier: _Tier, ready: list[Target], ask: Ask, now: float) -> Target:
        return self._least(ready, [one.member.used(now) for one in ready])

    def _cheapest(self, tier: _Tier, ready: list[Target], ask: Ask, now: float) -> Target:
        costs = [one.member.spec.cost for one in ready]
        return self._least(ready, [NEVER if one is None else one for one in costs])

    def _least(self, ready: list[Target], keys: Sequence[Any]) -> Target:
        """The one with the lowest key, any of those that have it."""
        lowest = min(keys)
        best = [one for one, key in zip(ready, keys, strict=True) if key == lowest]
        return best[0] if len(best) == 1 else best[int(self._random() * len(best))]


def _with_tokens(targets: list[Target], tokens: int, now: float) -> list[Target]:
    return [
        one
        for one in targets
        if tokens < one.member.spare or not one.member.token_wait_s(tokens, now)
    ]


def _with_room(targets: list[Target], tokens: int, now: float) -> list[Target]:
    return _with_tokens([one for one in targets if one.member.free_at <= now], tokens, now)


def _tagged(targets: Sequence[Target], tags: frozenset[str], tagged: bool) -> list[Target]:
    """
    Those for requests with some tags: which have one of them, else ``default``. Requests
    without any may go everywhere if none is the default.

    :param tags: of the request's, what any deployment has.
    :param tagged: whether it has tags at all.
    """
    found = [one for one in targets if not tags.isdisjoint(one.member.spec.tags)]
    if not found:
        found = [one for one in targets if "default" in one.member.spec.tags]
    if not found and tagged:
        raise InvalidRequest(
            "This model has no deployment for the tags of this request, and no default one. "
            "Use other tags, or ask your operator."
        )
    return found or list(targets)


def _shares(specs: Sequence[MemberSpec]) -> list[float]:
    """How requests are meant to be shared: by weight, else by rpm, else by tpm."""
    for given in (
        [one.weight for one in specs],
        [one.rpm for one in specs],
        [one.tpm for one in specs],
    ):
        if any(one is not None for one in given):
            return [float(one or 0) for one in given]
    return [1.0] * len(specs)
