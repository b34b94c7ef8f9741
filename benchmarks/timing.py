"""
What a piece of work costs, in a unit that is the same on a slow machine and on a busy one.

Wall time says little where others compute too, and CPU time differs from machine to machine.
So work is compared with :func:`reference`, a piece of plain Python of the kind that our own is
made of, measured in turn with it in the same process: both get slower together. Figures are
microseconds on a machine on which the reference takes :data:`REFERENCE_US`.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["REFERENCE_US", "Cost", "cost", "reference"]

REFERENCE_US = 20.0
"""About what it takes on the machine of RESULTS.md."""

_SLICE_S = 0.008


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one call."""

    us: float
    """Microseconds of CPU, here and now."""

    normal_us: float
    """The same where the reference takes :data:`REFERENCE_US`. This is what budgets are for."""


class _Thing:
    __slots__ = ("name", "size", "value")

    def __init__(self, name: bytes, value: bytes, size: int) -> None:
        self.name = name
        self.value = value
        self.size = size

    def grown(self, by: int) -> int:
        self.size += by
        return self.size


def reference() -> int:
    """
    Calls, objects, dictionaries, bytes, text, a digest. Never to be changed: budgets hang on it.
    """
    head = b"host: localhost\r\ncontent-type: application/json\r\nx-one: 1\r\naccept: */*\r\n"
    found: dict[bytes, _Thing] = {}
    total = 0
    for turn in range(5):
        for line in head.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if not colon:
                continue
            thing = found.get(name)
            if thing is None:
                thing = found[name] = _Thing(name, value.strip(), len(value))
            total += thing.grown(turn)
        text = f"{total:08x}/{turn}"
        pairs = sorted((each.name, each.value) for each in found.values())
        joined = b"\n".join([b"%b:%b" % pair for pair in pairs])
        total += len(hashlib.sha256(joined + text.encode()).hexdigest())
        try:
            found[b"missing"].grown(1)
        except KeyError:
            total += 1
    return total


def _seconds(work: Callable[[], object], count: int) -> float:
    turns = range(count)
    begin = time.thread_time_ns()
    for _ in turns:
        work()
    return (time.thread_time_ns() - begin) / count / 1e9


def _count(work: Callable[[], object]) -> int:
    """How many make a slice of time."""
    count = 1
    while _seconds(work, count) * count < _SLICE_S and count < 1_000_000:
        count *= 2
    return count


def cost(work: Callable[[], object], rounds: int = 15) -> Cost:
    """
    The median of several rounds, each beside the reference before and after it.

    :param rounds: each of about 16 ms.
    """
    count, reference_count = _count(work), _count(reference)
    took, ratios = [], []
    before = _seconds(reference, reference_count)
    for _ in range(rounds):
        seconds = _seconds(work, count)
        after = _seconds(reference, reference_count)
        took.append(seconds)
        ratios.append(seconds * 2 / (before + after))
        before = after
    return Cost(statistics.median(took) * 1e6, statistics.median(ratios) * REFERENCE_US)
