"""
Has anything become dearer? For CI: under a minute, and by no wall clock.

Each stage of an exchange, and then whole requests, events and megabytes through a ``twistd``,
are compared with budgets in units of a fixed piece of Python that is measured beside them
(:mod:`benchmarks.timing`): a slow or a busy machine makes both slower. What is over its budget
is measured again before it counts.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import QUICK, Bench, Load, warm_up
from benchmarks.native import compiled
from benchmarks.peers import PEERS, Running, make_certificate
from benchmarks.processes import Failed, bounded
from benchmarks.stages import BUDGETS_US, in_reactor, measured
from benchmarks.timing import REFERENCE_US, reference

__all__ = ["WHOLE_BUDGETS_US", "main"]

WHOLE_BUDGETS_US = {"request": 400.0, "event": 55.0, "megabyte": 2100.0}
"""Of the gateway's process; what :func:`_wholes` measures. Normal microseconds."""

_LIMIT_S = 120


def main() -> int:
    """:returns: 1 if something is over its budget."""
    over: list[str] = []

    async def of_stages(reactor: Any) -> None:
        over.extend(await _stages(reactor))

    with bounded(_LIMIT_S):
        try:
            over += _wholes()
        except Failed as error:
            print(f"whole requests were not measured: {error}")
            over.append("whole requests")
        status = in_reactor(of_stages)
    if over:
        print(f"over budget: {', '.join(over)}", file=sys.stderr)
    return status or int(bool(over))


def _judged(name: str, normal_us: float, budget: float) -> bool:
    fits = normal_us <= budget
    print(f"{name:14} {normal_us:10.2f} of {budget:g}{'' if fits else '  <-- over'}", flush=True)
    return fits


async def _stages(reactor: Any) -> list[str]:
    found = await measured(reactor, rounds=9)
    again = [n for n, (_, cost) in found.items() if cost.normal_us > BUDGETS_US[n]]
    if again:
        found.update(await measured(reactor, again, rounds=31))
    return [
        name
        for name, (_, cost) in found.items()
        if not _judged(name, cost.normal_us, BUDGETS_US[name])
    ]


def _reference_us() -> float:
    """Of CPU of this thread, now."""
    begin = time.thread_time_ns()
    for _ in range(2000):
        reference()
    return (time.thread_time_ns() - begin) / 2000 / 1e3


def _wholes() -> list[str]:
    with tempfile.TemporaryDirectory(prefix="txbedrock-bench-") as folder_name:
        folder = Path(folder_name)
        certificate = make_certificate(folder)
        with Bench(folder, compiled(folder), certificate, folder, QUICK) as bench:
            running = bench.start(PEERS["txbedrock"])
            try:
                warm_up(bench, running, "http1")
                over = []
                for name, load in _LOADS.items():
                    budget = WHOLE_BUDGETS_US[name]
                    normal_us = _normal_us(bench, running, *load)
                    if normal_us > budget:
                        normal_us = min(normal_us, _normal_us(bench, running, *load))
                    if not _judged(name, normal_us, budget):
                        over.append(name)
                return over
            finally:
                running.stop()


_Parts = Callable[[Load], float]

# Mode, options, what is asked of the upstream, how many of what has a budget there were.
_LOADS: dict[str, tuple[str, dict[str, float], str, _Parts]] = {
    "request": ("unary", {"streams": 8, "count": 800}, "", lambda load: load.report["done"]),
    "event": (
        "streams",
        {"streams": 50, "ramp": 0.2},
        "bench:80:20000:0",
        lambda load: load.events,
    ),
    "megabyte": (
        "streams",
        {},
        "bench:6000:0:8192",
        lambda load: load.report["bytes"] / 1e6,
    ),
}


def _normal_us(
    bench: Bench,
    running: Running,
    mode: str,
    options: dict[str, float],
    asked: str,
    parts: _Parts,
) -> float:
    """The second least of five: what disturbs it makes it dearer, and hardly ever cheaper."""
    found = []
    before = _reference_us()
    for _ in range(5):
        load = bench.load(running, "http1", mode, options, asked=asked)
        after = _reference_us()
        found.append(load.cpu * 1e6 / parts(load) / ((before + after) / 2) * REFERENCE_US)
        before = after
    return sorted(found)[1]
