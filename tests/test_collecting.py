"""
Tests for L{txbedrock.collecting}: when Python looks for garbage.
"""

from __future__ import annotations

import gc
import weakref

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.collecting import Collector


class _Knot:
    """Refers to itself."""

    def __init__(self) -> None:
        self.self = self


class CollectorTests(SynchronousTestCase):
    """Runs are short, and through everything one goes once a day."""

    def setUp(self) -> None:
        gc.unfreeze()
        self.clock, self.alive = Clock(), 0
        self.runs: list[bool] = []
        self.collector = Collector(self.clock, lambda: self.alive, self.collect)
        self.threshold = gc.get_threshold()
        self.collector.startService()
        self.addCleanup(self.collector.stopService)

    def collect(self) -> None:
        """Notes whether this run goes through everything."""
        self.runs.append(gc.get_freeze_count() == 0)

    def test_few(self) -> None:
        """Every ten minutes, and what is found to be in use is not looked at again."""
        before = gc.get_freeze_count()
        kept: list[list[int]] = [[] for _ in range(10_000)]
        self.clock.pump([60] * 9)
        self.assertEqual([True], self.runs)
        self.clock.pump([60] * 21)
        self.assertEqual([True] + [False] * 3, self.runs)
        self.assertGreaterEqual(gc.get_freeze_count() - before, len(kept))

    def test_many(self) -> None:
        """With many connections or streams open it waits until there are few."""
        self.alive = 51
        self.clock.pump([60] * 600)
        self.assertEqual([True], self.runs)
        self.alive = 50
        self.clock.advance(60)
        self.assertEqual([True, False], self.runs)

    def test_everything(self) -> None:
        """Through all there is once a day; with many open, not before two days."""
        for alive, days in ((0, 1), (51, 2)):
            self.alive = alive
            self.runs.clear()
            self.clock.pump([60] * (days * 24 * 60 - 1))
            self.assertNotIn(True, self.runs)
            self.clock.advance(60)
            self.assertEqual(1, self.runs.count(True))

    def test_bounded(self) -> None:
        """Garbage that was in use when it was looked at is found in the end."""
        self.collector.stopService()
        self.collector = Collector(self.clock, lambda: 0)
        self.collector.startService()
        cycle = _Knot()
        found = weakref.ref(cycle)
        self.clock.pump([60] * 10)
        del cycle
        self.clock.pump([60] * 10)
        self.assertIsNotNone(found())
        self.clock.pump([60] * 1420)
        self.assertIsNone(found())

    def test_by_itself(self) -> None:
        """Python's own runs never go through what is old; afterwards all is as it was."""
        young, some, old = gc.get_threshold()
        self.assertLess(young * (some + 2), 20_000)
        self.assertGreater(old, 1_000_000)
        self.collector.stopService()
        self.assertEqual(self.threshold, gc.get_threshold())
        self.clock.advance(3600)
        self.assertEqual([True], self.runs)
