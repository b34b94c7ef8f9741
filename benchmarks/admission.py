"""
What each stage of admission costs on the reactor thread, in microseconds.

    python benchmarks/admission.py

Medians of eleven rounds, of a small Converse with a key that has rpm, tpm, parallel
requests and a budget, in a team that has a budget. For all of it together, with a database,
and for its budget see ``python -m benchmarks stages auth admit``.
"""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from txbedrock import data
from txbedrock.config import load_prices
from txbedrock.core.demand import Demand, ModelSizes, TokenRatios
from txbedrock.core.grants import (
    NO_LIMITS,
    Level,
    Limits,
    ModelLimits,
)
from txbedrock.core.money import PICO
from txbedrock.core.usage import Source, Usage
from txbedrock.limits import Limiter, Reservation

BODY = (
    b'{"messages": [{"role": "user", "content": [{"text": "Hello"}]}], '
    b'"inferenceConfig": {"maxTokens": 100}}'
)
SECRET = b"sk-a-key-of-the-benchmark"
MODEL = "us.amazon.nova-lite-v1:0"
USAGE = Usage(8, 10, source=Source.BODY)
COST = 2_880_000

KEY = Limits(
    rpm=10**9,
    tpm=10**12,
    max_parallel=1000,
    max_budget=10**6 * PICO,
    soft_budget=9 * 10**5 * PICO,
    budget_duration="1mo",
)
TEAM = Limits(max_budget=10**7 * PICO, budget_duration="30d")
LEVELS = {
    "no limits": (Level("key", "k0", "ci", NO_LIMITS), Level("team", "t0", "red", NO_LIMITS)),
    "key: rpm": (Level("key", "k1", "ci", Limits(rpm=10**9)),),
    "key: budget": (Level("key", "k2", "ci", Limits(max_budget=10**6 * PICO)),),
    "key: all, team: budget": (Level("key", "k", "ci", KEY), Level("team", "t", "red", TEAM)),
    "the same, with model limits": (
        Level("key", "k3", "ci", Limits(rpm=10**9, models={"nova": ModelLimits(rpm=10**9)})),
        Level("team", "t3", "red", TEAM),
    ),
}


def microseconds(work: Callable[[], object], count: int = 20_000) -> float:
    return statistics.median(timeit.repeat(work, number=count, repeat=11)) / count * 1e6


def main() -> None:
    price = load_prices(None).price(MODEL, "us-west-2")
    sizes, ratios = ModelSizes.parse(data.load("model_limits")), TokenRatios()
    clock = Clock()
    clock.advance(1.8e9)
    limiter = Limiter(None, clock, clock.seconds)

    def demand() -> Demand:
        return Demand(
            model="nova",
            model_id=MODEL,
            operation="Converse",
            body_length=len(BODY),
            body_start=BODY,
            price=price,
            ratios=ratios,
            sizes=sizes,
        )

    def estimated() -> Demand:
        made = demand()
        made.tokens()
        made.picousd()
        return made

    def reserved(levels: tuple[Level, ...], need: Demand) -> Reservation:
        # As it is awaited in the coroutine of an exchange.
        coroutine = limiter.reserve(levels, need)
        try:
            coroutine.send(None)
        except StopIteration as stop:
            found: Reservation = stop.value
            return found
        raise AssertionError("it waits")

    for _ in range(100):
        known = estimated()
        known.learn(USAGE)
    rows: list[tuple[str, Callable[[], object]]] = [
        ("a demand, made", demand),
        ("a demand, made and estimated", estimated),
    ]
    for name, levels in LEVELS.items():

        def known_need(levels: tuple[Level, ...] = levels) -> None:
            reserved(levels, known).settle(COST, USAGE)

        def all_of_it(levels: tuple[Level, ...] = levels) -> None:
            reserved(levels, demand()).settle(COST, USAGE)

        rows.append((f"reserve, settle; {name}", known_need))
        rows.append(("    with its demand", all_of_it))
    one = reserved(LEVELS["key: all, team: budget"], demand())
    rows.append(("headers of an answer", lambda: one.headers(COST)))
    for name, work in rows:
        print(f"{name:45} {microseconds(work):6.2f} us")
    one.settle(COST, USAGE)

    def waiting() -> None:
        """A hundred that wait for one, each let in by the one before."""
        level = Level("key", "w", "ci", Limits(max_budget=known.picousd()))
        short = Limiter(None, clock, clock.seconds)
        ended: list[Reservation] = []

        async def one() -> None:
            ended.append(await short.reserve((level,), known))

        for _ in range(101):
            Deferred.fromCoroutine(one())
        while ended:
            ended.pop().settle(0, USAGE)
        assert not short.waiting

    print(f"{'waited, let in, settled':45} {microseconds(waiting, 20) / 101:6.2f} us")


if __name__ == "__main__":
    main()
