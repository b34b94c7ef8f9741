"""Tests for :mod:`txbedrock.core.balance`."""

from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.balance import Turns


class TurnsTests(SynchronousTestCase):
    """Deployments of a model group take turns."""

    def test_turns(self) -> None:
        """Each is first as often as the others, and all follow in order."""
        turns = Turns()
        orders = ["".join(turns.order("g", "abc")) for _ in range(4)]
        self.assertEqual(orders, ["abc", "bca", "cab", "abc"])

    def test_groups_apart(self) -> None:
        """The turns of one group do not move those of another."""
        turns = Turns()
        turns.order("g", "ab")
        self.assertEqual(turns.order("h", "ab")[0], "a")
        self.assertEqual(turns.order("g", "ab")[0], "b")

    def test_fewer(self) -> None:
        """A group that has become smaller goes on."""
        turns = Turns()
        for _ in range(3):
            turns.order("g", "abcd")
        self.assertEqual(turns.order("g", "ab")[0], "b")
        self.assertEqual(turns.order("g", "a"), "a")
