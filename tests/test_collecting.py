"""
Tests for L{txbedrock.collecting}: when Python looks for garbage.
"""

from __future__ import annotations

import gc

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.collecting import Collector


class CollectorTests(SynchronousTestCase):
    """Runs are short; through everything one goes when little waits for it."""

    def setUp(self) -> None:
        self.clock, self.busy, self.runs = Clock(), False, 0
        self.collector = Collector(self.clock, lambda: self.busy, self.collect)
        self.threshold = gc.get_threshold()
        self.collector.startService()
        self.addCleanup(self.collector.stopService)

    def collect(self) -> None:
        self.runs += 1

    def test_idle(self) -> None:
        """Every ten minutes, when there is time."""
        self.assertEqual(1, self.runs)
        self.clock.pump([60] * 9)
        self.assertEqual(1, self.runs)
        self.clock.pump([60] * 21)
        self.assertEqual(4, self.runs)

    def test_busy(self) -> None:
        """Who is always busy is disturbed once an hour."""
        self.busy = True
        self.clock.pump([60] * 59)
        self.assertEqual(1, self.runs)
        self.clock.advance(60)
        self.assertEqual(2, self.runs)
        self.clock.pump([60] * 15)
        self.busy = False
        self.clock.advance(60)
        self.assertEqual(3, self.runs)

    def test_by_itself(self) -> None:
        """Python's own runs never go through what is old; afterwards all is as it was."""
        young, some, old = gc.get_threshold()
        self.assertLess(young * (some + 2), 20_000)
        self.assertGreater(old, 1_000_000)
        self.collector.stopService()
        self.assertEqual(self.threshold, gc.get_threshold())
        self.clock.advance(3600)
        self.assertEqual(1, self.runs)
