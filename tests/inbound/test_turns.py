"""
Who waits for whom, when clients send more than there is time for.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.inbound.turns import Left, Turns

STEP_S = 0.0005
QUANTUM = 4
MS = 1000


class Reactor(Clock):
    """Time goes on while somebody works, and timers come after that."""

    def spend(self, seconds: float) -> None:
        self.rightNow += seconds

    def turn(self, seconds: float = 0.0001) -> None:
        """One turn of the reactor: what is due at its beginning, each once."""
        self.rightNow += seconds
        due = [call for call in self.calls if call.getTime() <= self.rightNow]
        for call in due:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)


class Busy:
    """Has so many steps to do, and does them as a connection does."""

    def __init__(self, test: TurnsTests, address: str, steps: int) -> None:
        self.address = address
        self.steps = steps
        self.done_at: list[float] = []
        self._test = test
        self._quantum = QUANTUM

    def work(self) -> Left:
        while self.steps:
            self._test.reactor.spend(STEP_S)
            self.done_at.append(self._test.reactor.seconds())
            self.steps -= 1
            self._quantum -= 1
            if not self.steps:
                break
            if not self._quantum:
                self._quantum = QUANTUM
                return Left.MUCH
            if self._test.turns.is_over:
                return Left.TIME
        self._quantum = QUANTUM
        return Left.NOTHING


class TurnsTests(SynchronousTestCase):
    """Time is shared."""

    def setUp(self) -> None:
        self.reactor = Reactor()
        self.reactor.advance(100)
        self.turns = Turns(self.reactor)

    def busy(self, address: str = "", steps: int = 1000) -> Busy:
        """One who begins now."""
        one = Busy(self, address, steps)
        self.turns.do(one)
        return one

    def run_for(self, turns: int) -> float:
        """:returns: how long the longest of these turns took."""
        longest = 0.0
        for _ in range(turns):
            before = self.reactor.seconds()
            self.reactor.turn()
            longest = max(longest, self.reactor.seconds() - before)
        return longest

    def test_at_once(self) -> None:
        """Without a crowd it is done in the call itself, and no timer is left."""
        for _ in range(100):
            one = Busy(self, "a", 2)
            self.assertTrue(self.turns.do(one))
            self.assertEqual(one.steps, 0)
            self.reactor.turn()
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_one_callback(self) -> None:
        """
        Who comes a hundred times in one callback, as records of TLS do, gets one time: also
        where they come slowly, because the machine is busy.
        """
        for between_s in (0.0, 0.01):
            records = [Busy(self, "a", 1) for _ in range(100)]
            for record in records:
                self.turns.do(record)
                self.reactor.spend(between_s)
            self.assertEqual(sum(not record.steps for record in records), 4)
            self.run_for(100)
            self.assertEqual(sum(not record.steps for record in records), 100)
            self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_one_time_for_all(self) -> None:
        """However many there are, a turn of the reactor takes no longer."""
        crowd = [self.busy(f"{at}") for at in range(50)]
        before = self.reactor.seconds()
        self.assertFalse(self.turns.do(Busy(self, "x", 1)))
        self.assertEqual(self.reactor.seconds(), before)
        self.assertLess(self.run_for(200) * MS, 3.5)
        self.assertTrue(all(one.done_at for one in crowd))

    def test_all_is_done(self) -> None:
        """Nobody is forgotten, and at the end no timer is left."""
        crowd = [self.busy(f"{at % 7}", 20) for at in range(50)]
        for _ in range(2000):
            self.reactor.turn(0.001)
        self.assertEqual([one.steps for one in crowd], [0] * 50)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_little_before_much(self) -> None:
        """Who has one request does not wait for those who have thousands."""
        for at in range(100):
            self.busy(f"{at}", 100_000)
        self.run_for(200)
        for _ in range(20):
            one = self.busy("good", 1)
            began = self.reactor.seconds()
            self.run_for(2)
            self.assertEqual(one.steps, 0)
            self.assertLess((one.done_at[0] - began) * MS, 4)

    def test_much_is_not_starved(self) -> None:
        """Who has much gets on, be there ever so many who have little."""
        much = self.busy("much", 100_000)
        for at in range(500):
            for _ in range(10):
                self.busy(f"{at}", 1)
            self.reactor.turn()
        self.assertGreater(len(much.done_at), 250)

    def test_addresses_take_turns(self) -> None:
        """A hundred connections of one address get no more than one of another."""
        crowd = [self.busy("many", 100_000) for _ in range(100)]
        one = self.busy("one", 100_000)
        self.run_for(1000)
        begun = len(one.done_at), sum(len(each.done_at) for each in crowd)
        self.run_for(1000)
        mine = len(one.done_at) - begun[0]
        theirs = sum(len(each.done_at) for each in crowd) - begun[1]
        self.assertLess(abs(mine - theirs), 0.1 * mine)

    def test_unknown_addresses(self) -> None:
        """Those who come through a trusted proxy count each for itself."""
        crowd = [self.busy("", 100_000) for _ in range(4)]
        self.run_for(1000)
        done = [len(each.done_at) for each in crowd]
        self.assertLess(max(done) - min(done), 0.1 * max(done))

    def test_boxed(self) -> None:
        """
        An address that had a connection thrown out gets a quarter of the time, and others
        get what they want first; after a while it is as before.
        """
        self.turns.box("bad")
        bad = [self.busy("bad", 100_000) for _ in range(4)]
        self.assertEqual([len(each.done_at) for each in bad], [0] * 4)
        before = self.reactor.seconds()
        for _ in range(5000):
            self.reactor.turn()
        worked = sum(len(each.done_at) for each in bad) * STEP_S
        self.assertGreater(worked, 0.2 * (self.reactor.seconds() - before))
        self.assertLess(worked, 0.3 * (self.reactor.seconds() - before))
        # Nobody is locked out; one of the same address waits for each of the others once.
        neighbour = self.busy("bad", 1)
        began = self.reactor.seconds()
        while neighbour.steps:
            self.reactor.turn()
        self.assertLess((neighbour.done_at[0] - began) * MS, 5 * QUANTUM * STEP_S * MS / 0.25)
        good = self.busy("good", 1)
        self.run_for(2)
        self.assertEqual(good.steps, 0)
        self.reactor.spend(10)
        again = Busy(self, "bad", 1)
        self.turns.do(again)
        self.run_for(2)
        self.assertEqual(again.steps, 0)

    def test_box_is_bounded(self) -> None:
        """However many addresses there are, only so many are remembered, and no empty one."""
        self.turns.box("")
        for at in range(10_000):
            self.turns.box(f"{at}")
        self.assertEqual(len(self.turns._boxed), 4096)
        self.assertTrue(self.turns.do(Busy(self, "", 1)))
        self.reactor.advance(1)
        self.assertTrue(self.turns.do(Busy(self, "1", 1)))
        self.assertFalse(self.turns.do(Busy(self, "9999", 1)))
        self.reactor.advance(0)
