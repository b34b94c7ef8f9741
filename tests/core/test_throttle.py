"""
What is not said is counted.
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.throttle import Throttle


class ThrottleTests(SynchronousTestCase):
    """So many of a kind in a period."""

    def test_periods(self) -> None:
        """The first are said, the others counted, and then it begins anew."""
        throttle = Throttle(2, 1.0)
        self.assertEqual([throttle.lets("a", 5.0) for _ in range(4)], [True, True, False, False])
        self.assertTrue(throttle.lets("b", 5.5))
        self.assertTrue(throttle)
        self.assertEqual([*throttle.withheld(5.9)], [])
        self.assertEqual([*throttle.withheld(6.0)], [("a", 2)])
        self.assertFalse(throttle)
        self.assertTrue(throttle.lets("a", 6.0))

    def test_nothing_is_lost(self) -> None:
        """Until it is asked for, what was withheld is kept, however late that is."""
        throttle = Throttle(1, 1.0)
        said = sum(throttle.lets("a", at / 10) for at in range(100))
        self.assertEqual(said + sum(count for _, count in throttle.withheld()), 100)
        self.assertEqual([*throttle.withheld()], [])

    def test_seldom(self) -> None:
        """What comes seldom is always said, and nobody needs to ask."""
        throttle = Throttle(2, 1.0)
        self.assertTrue(all(throttle.lets("a", float(at)) for at in range(100)))
        self.assertFalse(throttle)

    def test_kinds(self) -> None:
        """Of too many kinds none is withheld, rather than remembered."""
        throttle = Throttle(1, 1.0)
        for at in range(1000):
            throttle.lets(str(at), 0.0)
        self.assertTrue(throttle.lets("1000", 0.0))
        self.assertTrue(throttle.lets("1000", 0.0))
        self.assertFalse(throttle.lets("1", 0.0))
