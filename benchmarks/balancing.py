"""
What each routing strategy makes of uneven deployments, in a simulation; and what
choosing costs on the reactor thread.

    python benchmarks/balancing.py > benchmarks/BALANCING.md

The clock, the clients and Bedrock are simulated, with fixed seeds; the balancer is the
real one. Ends with status 1 if the adaptive strategy is not the best, or within 5 % of
the best, in the p99 or the throughput of any row, or if a deployment that is sick gets
more than 2 % of the requests.
"""

from __future__ import annotations

import heapq
import math
import platform
import random
import sys
import timeit
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from txbedrock.core.balance import (
    Ask,
    Balancer,
    InFlight,
    Refusal,
    RoutingSettings,
    Strategy,
    _Tier,
)
from txbedrock.core.candidates import MemberSpec, Target
from txbedrock.core.deployments import Deployment
from txbedrock.core.health import FailureKind
from txbedrock.core.models import Choice

SEED = 7
OPERATION = "ConverseStream"
MINUTE_S = 60.0
ATTEMPTS = 3
REFUSED_AFTER_S = 0.003
TIMEOUT_S = 5.0
TOLERANCE = 1.05
SICK_SHARE = 0.02

STRATEGIES = {
    "adaptive": Strategy.ADAPTIVE,
    "simple-shuffle": Strategy.SIMPLE_SHUFFLE,
    "least-busy": Strategy.LEAST_BUSY,
    "latency-based": Strategy.LATENCY,
    "usage-based": Strategy.USAGE,
    "cost-based": Strategy.COST,
}


@dataclass(eq=False)
class Backend:
    """A deployment as AWS has it."""

    first_byte_s: float
    """Median, without waiting; log-normal."""

    servers: int | None = None
    """How many requests are worked on at the same time until their first byte, while
    others queue; None: all."""

    rpm: int | None = None
    """Its quota, in any sixty seconds; beyond it, it throttles."""

    told: bool = True
    """Whether the configuration says so."""

    cost: float = 1.0
    sick: tuple[float, float] = (0.0, 0.0)
    """From when until when."""

    how: FailureKind | None = None
    """What it is sick with; None: it is slow."""

    how_often: float = 1.0
    slower: float = 20.0
    hits: list[float] = field(default_factory=list)
    """When requests came."""

    good: list[float] = field(default_factory=list)
    """When good answers began."""

    busy: int = 0
    queue: deque[tuple[float, InFlight, float]] = field(default_factory=deque)
    window: deque[float] = field(default_factory=deque)


@dataclass(frozen=True)
class Row:
    name: str
    backends: Callable[[], list[Backend]]
    requests: int = 5000
    rate: float = 0.0
    """Requests a second, at random times; 0: :attr:`clients`, each one after the other."""

    clients: int = 0


class Simulation:
    """Requests, each tried at up to three deployments, until all are answered or failed."""

    JITTER = 0.25
    STREAM = 3.0
    """How much longer the rest of an answer takes than its first byte."""

    def __init__(
        self,
        row: Row,
        strategy: Strategy,
        kind: type[Balancer] = Balancer,
        seed: int = SEED,
    ) -> None:
        self.row = row
        backends = row.backends()
        self.backends = {f"d{number}": one for number, one in enumerate(backends)}
        self.random = random.Random(seed)
        self.balancer = kind(
            RoutingSettings(strategy=strategy),
            {
                id: MemberSpec(rpm=one.rpm if one.told else None, cost=one.cost)
                for id, one in self.backends.items()
            },
            random.Random(seed + 1),
        )
        self.choices = tuple(
            Choice(Deployment(id=id, model_name="m", model_id="x.y", region="r"), "x.y", "r")
            for id in self.backends
        )
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.now = 0.0
        self.asked = 0
        self.tries = 0
        self.failed = 0
        self.waited: list[float] = []
        self.until = self.last = 0.0

    def at(self, time: float, event: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, self.count, event))

    def run(self) -> Simulation:
        row, time = self.row, 0.0
        if row.rate:
            for _ in range(row.requests):
                time += self.random.expovariate(row.rate)
                self.at(time, self.ask)
            self.until = time
        for _ in range(row.clients):
            self.at(self.random.random() / 100, self.ask)
        while self.events:
            self.now, _, event = heapq.heappop(self.events)
            event()
        return self

    @property
    def p99_ms(self) -> float:
        waited = sorted(self.waited) + [math.inf] * self.failed
        return waited[int(0.99 * len(waited))] * 1000

    @property
    def per_second(self) -> float:
        """While requests came."""
        until = self.until or self.last
        good = sum(time <= until for one in self.backends.values() for time in one.good)
        return good / until

    def ask(self) -> None:
        if self.asked < self.row.requests:
            self.asked += 1
            self.attempt(Ask(self.choices, OPERATION), self.now, 1)

    def attempt(self, ask: Ask, since: float, number: int) -> None:
        taken = self.balancer.take(ask, self.now)
        if isinstance(taken, Refusal):
            return self.give_up()
        self.tries += 1
        backend = self.backends[taken.choice.deployment.id]
        backend.hits.append(self.now)
        sick = backend.sick[0] <= self.now < backend.sick[1]
        if sick and backend.how is not None and self.random.random() < backend.how_often:
            return self.suffer(backend.how, taken, ask, since, number)
        if backend.rpm is not None:
            window = backend.window
            while window and window[0] <= self.now - MINUTE_S:
                window.popleft()
            if len(window) >= backend.rpm:
                return self.suffer(FailureKind.THROTTLED, taken, ask, since, number)
            window.append(self.now)
        takes = backend.first_byte_s * self.random.lognormvariate(0, self.JITTER)
        if sick and backend.how is None:
            takes *= backend.slower
        if backend.servers is not None and backend.busy >= backend.servers:
            backend.queue.append((takes, taken, since))
        else:
            self.work(backend, takes, taken, since)

    def suffer(
        self, kind: FailureKind, flight: InFlight, ask: Ask, since: float, number: int
    ) -> None:
        after = TIMEOUT_S if kind is FailureKind.TIMEOUT else REFUSED_AFTER_S
        if kind is FailureKind.BROKE:
            self.at(self.now + after / 2, lambda: flight.first_byte(self.now))

        def fail() -> None:
            flight.end(kind, self.now)
            if number < ATTEMPTS:
                self.attempt(ask, since, number + 1)
            else:
                self.give_up()

        self.at(self.now + after, fail)

    def give_up(self) -> None:
        self.failed += 1
        if self.row.clients:
            self.at(self.now + 0.05, self.ask)

    def work(self, backend: Backend, takes: float, flight: InFlight, since: float) -> None:
        backend.busy += 1

        def first_byte() -> None:
            flight.first_byte(self.now)
            backend.good.append(self.now)
            self.waited.append(self.now - since)
            backend.busy -= 1
            if backend.queue:
                self.work(backend, *backend.queue.popleft())
            self.at(self.now + takes * self.STREAM, end)

        def end() -> None:
            flight.end(None, self.now)
            self.last = self.now
            if self.row.clients:
                self.ask()

        self.at(self.now + takes, first_byte)


class TwoOfAll(Balancer):
    """The better of two random ones by the same score, to see what the rest is good for."""

    def _adaptive(self, tier: _Tier, ready: list[Target], ask: Ask, now: float) -> Target:
        two = self._rng.sample(ready, 2)
        return min(two, key=lambda one: one.score(ask.operation, now))


MILLISECONDS = (0.01, 0.05, 0.2)
SECONDS = (0.5, 1.0, 3.0)


def uneven(
    count: int, servers: int | None = None, times: Sequence[float] = MILLISECONDS
) -> Callable[[], list[Backend]]:
    """One after the other, at prices that have nothing to do with it."""

    def made() -> list[Backend]:
        prices = random.Random(5)
        return [
            Backend(times[number % len(times)], servers, cost=prices.choice((1, 2, 3)))
            for number in range(count)
        ]

    return made


def quotas(told: bool, *each: tuple[float, int]) -> Callable[[], list[Backend]]:
    def made() -> list[Backend]:
        return [
            Backend(first_byte_s, rpm=rpm, told=told, cost=number)
            for number, (first_byte_s, rpm) in enumerate(each)
        ]

    return made


def one_sick(
    first_byte_s: float, others: Sequence[float], **how: object
) -> Callable[[], list[Backend]]:
    def made() -> list[Backend]:
        return [
            Backend(first_byte_s, cost=1, **how),  # type: ignore[arg-type]
            *(Backend(one, cost=2) for one in others),
        ]

    return made


EVEN = ((0.05, 300), (0.05, 600), (0.05, 1200), (0.05, 2400))
UNEVEN = ((0.01, 300), (0.05, 600), (0.2, 1200), (0.05, 2400))

ROWS = (
    Row("3, 20/s", uneven(3), rate=20),
    Row("3, 200/s", uneven(3), rate=200),
    Row("30, 100/s", uneven(30), rate=100),
    Row("30, 1000/s", uneven(30), 10_000, rate=1000),
    Row("3 of 8 servers, half of what they can", uneven(3, 8), 10_000, rate=500),
    Row("3 of 8 servers, 80 %", uneven(3, 8), 10_000, rate=800),
    Row("3 of 8 servers, 95 %", uneven(3, 8), 10_000, rate=950),
    Row("16 of 4 servers, 80 %", uneven(16, 4), 20_000, rate=2300),
    Row("30 of 4 servers, 90 %", uneven(30, 4), 20_000, rate=4500),
    Row("3 of 8 servers, 64 clients", uneven(3, 8), 20_000, clients=64),
    Row("12 of 8 servers, 64 clients", uneven(12, 8), 20_000, clients=64),
    Row("12, 256 clients", uneven(12), 40_000, clients=256),
    Row("8 alike of 4 servers, 90 %", uneven(8, 4, (0.05,)), 10_000, rate=575),
    Row("3 of 0.5, 1 and 3 s, 5/s", uneven(3, times=SECONDS), rate=5),
    Row("16 of 0.5, 1 and 3 s, 50/s", uneven(16, times=SECONDS), rate=50),
    Row("4 with rpm of 300 to 2400, 85 %", quotas(True, *EVEN), 8000, rate=64),
    Row("the same, 10 to 200 ms", quotas(True, *UNEVEN), 8000, rate=64),
    Row("the same, 95 %", quotas(True, *UNEVEN), 8000, rate=71),
    Row("4 with quotas nobody told, 70 %", quotas(False, *EVEN), 8000, rate=53),
    Row("the same, 10 to 200 ms", quotas(False, *UNEVEN), 8000, rate=53),
    Row("the same, 90 %", quotas(False, *UNEVEN), 8000, rate=68),
    Row(
        "4, the best 20 times slower for 20 s",
        one_sick(0.01, (0.05, 0.05, 0.05), sick=(20, 40)),
        8000,
        rate=100,
    ),
    Row(
        "2, one answers 503 for 40 s",
        one_sick(0.01, (0.05,), sick=(20, 60), how=FailureKind.UNAVAILABLE),
        8000,
        rate=100,
    ),
    Row(
        "3, one answers 503 to 30 %",
        one_sick(0.02, (0.05, 0.05), sick=(0, 1e9), how=FailureKind.UNAVAILABLE, how_often=0.3),
        8000,
        rate=100,
    ),
    Row(
        "2, one lets 30 % hang for 40 s",
        one_sick(0.05, (0.05,), sick=(20, 60), how=FailureKind.TIMEOUT, how_often=0.3),
        8000,
        rate=100,
    ),
)

SICK = {
    "answers 503": FailureKind.UNAVAILABLE,
    "throttles": FailureKind.THROTTLED,
    "hangs, 5 s": FailureKind.TIMEOUT,
    "refuses connections": FailureKind.CONNECT,
    "dies in the first frame": FailureKind.BROKE,
    "answers 403": FailureKind.DENIED,
    "loads its model": FailureKind.NOT_READY,
}


def compare(rows: Sequence[Row]) -> bool:
    """:returns: whether adaptive is good enough everywhere."""
    print("|", " | ".join(("deployments, load", *STRATEGIES, "two of all")), "|")
    print("|---" * (len(STRATEGIES) + 2) + "|")
    passed = True
    for row in rows:
        found = [Simulation(row, one).run() for one in STRATEGIES.values()]
        ours, others = found[0], found[1:]
        p99_ms = min(one.p99_ms for one in others)
        per_second = max(one.per_second for one in others)
        good = ours.p99_ms <= p99_ms * TOLERANCE and ours.per_second * TOLERANCE >= per_second
        passed = passed and good
        found.append(Simulation(row, Strategy.ADAPTIVE, TwoOfAll).run())
        cells = [f"{_ms(one.p99_ms)} {one.per_second:,.0f}/s" for one in found]
        cells[0] = f"**{cells[0]}**" if good else f"{cells[0]} (!)"
        print("|", " | ".join((row.name, *cells)), "|", flush=True)
    return passed


def _ms(ms: float) -> str:
    if ms == math.inf:
        return "failed"
    return f"{ms:.0f} ms" if ms < 10_000 else f"{ms / 1000:.0f} s"


def sickness() -> bool:
    """:returns: whether none gets more requests than it may."""
    print("| one of two | share of the requests meanwhile | answers again after | retried |")
    print("|---|---|---|---|")
    passed, begin, end = True, 20.0, 80.0
    for name, kind in SICK.items():
        row = Row(name, one_sick(0.05, (0.05,), sick=(begin, end), how=kind), 15_000, rate=100)
        done = Simulation(row, Strategy.ADAPTIVE).run()
        sick, well = done.backends.values()
        meanwhile = [sum(begin <= hit < end for hit in one.hits) for one in (sick, well)]
        share = meanwhile[0] / sum(meanwhile)
        passed = passed and share <= SICK_SHARE and not done.failed
        back = next(one for one in sick.good if one >= end) - end
        probes = sum(end <= hit < end + back for hit in sick.hits)
        print(
            f"| {name} | {share:.2%} | {back:.1f} s, by request {probes} to it "
            f"| {done.tries / row.requests - 1:.2%} |",
            flush=True,
        )
    return passed


def choosing() -> None:
    """Microseconds, the best of seven rounds."""
    print("| 16 deployments | no limits | with rpm and tpm |")
    print("|---|---|---|")
    for strategy in Strategy:
        cells = [f"{_microseconds(strategy, limits):.1f} us" for limits in (False, True)]
        print(f"| {strategy.value} | {cells[0]} | {cells[1]} |", flush=True)
    cells = [f"{_microseconds(Strategy.ADAPTIVE, limits, 's'):.1f} us" for limits in (False, True)]
    print(f"| adaptive, of a session | {cells[0]} | {cells[1]} |")
    cells = [
        f"{_microseconds(Strategy.ADAPTIVE, limits, out=True):.1f} us" for limits in (False, True)
    ]
    print(f"| adaptive, half of them out | {cells[0]} | {cells[1]} |")


def _microseconds(strategy: Strategy, limits: bool, session: str = "", out: bool = False) -> float:
    ids = [f"d{number}" for number in range(16)]
    spec = MemberSpec(rpm=10**6, tpm=10**9) if limits else MemberSpec()
    balancer = Balancer(
        RoutingSettings(strategy=strategy), dict.fromkeys(ids, spec), random.Random(SEED)
    )
    choices = tuple(
        Choice(Deployment(id=id, model_name="m", model_id="x.y", region="r"), "x.y", "r")
        for id in ids
    )
    now = 1000.0
    for number in range(1000):
        now += 0.01
        flight = balancer.take(Ask(choices, OPERATION, tokens=100), now)
        assert isinstance(flight, InFlight)
        flight.first_byte(now + 0.05)
        if out and int(flight.choice.deployment.id[1:]) % 2:
            flight.end(FailureKind.THROTTLED, now + 0.1, 1000.0)
        elif number < 900:
            flight.end(None, now + 0.1, tokens=50)
    ask = Ask(choices, OPERATION, session=session, tokens=100)
    count = 20_000
    return (
        min(timeit.repeat(lambda: balancer.choose(ask, now), number=count, repeat=7)) / count * 1e6
    )


def main() -> None:
    print("# Balancing\n")
    print("Made by `python benchmarks/balancing.py > benchmarks/BALANCING.md`.\n")
    print("## The strategies side by side\n")
    print(
        "p99 until the first byte, retries included, and good answers a second. Deployments\n"
        "of 10, 50, 200, 10 ... ms unless they say otherwise; the rest of an answer takes three\n"
        "times as long. *Of n servers*: as many at a time, others queue. *two of all*: the\n"
        "adaptive score without its memory (core/balance.py, Note [Adaptive]). Bold: the best,\n"
        "or within 5 % of the best of the five others, in both.\n"
    )
    passed = compare(ROWS)
    print("\n## A sick deployment\n")
    print(
        "Two deployments of 50 ms, 100 requests a second, adaptive; one is sick for a minute.\n"
        "No request fails: each may be retried twice.\n"
    )
    passed = sickness() and passed
    print("\n## What choosing costs\n")
    print(f"On one core, CPython {platform.python_version()}; the best of seven rounds.\n")
    choosing()
    sys.exit(not passed)


if __name__ == "__main__":
    main()
