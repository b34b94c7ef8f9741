"""
Two attempts beside each other: which one counts, and what becomes of the other.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.hedging import Outcome, Race, race


class RaceTests(SynchronousTestCase):
    """An attempt takes a text or an exception; texts in capitals are good."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.attempts: list[Deferred[str]] = []
        self.cancelled: list[int] = []

    def attempt(self) -> Coroutine[Any, Any, str]:
        place = len(self.attempts)
        waiting: Deferred[str] = Deferred(lambda _: self.cancelled.append(place))
        self.attempts.append(waiting)

        async def run() -> str:
            return await waiting

        return run()

    async def sleep(self, seconds: float) -> None:
        await deferLater(self.clock, seconds)

    def start(self, second: bool = True) -> Deferred[Race[str]]:
        return Deferred.fromCoroutine(
            race(
                self.attempt(),
                2.0,
                lambda: self.attempt() if second else None,
                str.isupper,
                self.sleep,
            )
        )

    def test_quick(self) -> None:
        """No second attempt when the first answers in time."""
        racing = self.start()
        self.clock.advance(1.9)
        self.attempts[0].callback("A")
        self.assertEqual(self.successResultOf(racing), ((Outcome("A"),), 0))
        self.assertEqual(len(self.attempts), 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_failed_early(self) -> None:
        """Nor when it fails: what then is not for this to decide."""
        error = ValueError("a")
        racing = self.start()
        self.attempts[0].errback(error)
        self.assertEqual(self.successResultOf(racing), ((Outcome(error=error),), 0))

    def test_second_wins(self) -> None:
        """The first is cancelled."""
        racing = self.start()
        self.clock.advance(2)
        self.assertEqual(len(self.attempts), 2)
        self.assertNoResult(racing)
        self.attempts[1].callback("B")
        self.assertEqual(self.successResultOf(racing), ((Outcome(), Outcome("B")), 1))
        self.assertEqual(self.cancelled, [0])

    def test_first_wins(self) -> None:
        """The second is cancelled."""
        racing = self.start()
        self.clock.advance(2)
        self.attempts[0].callback("A")
        self.assertEqual(self.successResultOf(racing), ((Outcome("A"), Outcome()), 0))
        self.assertEqual(self.cancelled, [1])

    def test_bad_waits(self) -> None:
        """A bad answer waits for the other one."""
        for first, other in ((0, 1), (1, 0)):
            self.setUp()
            racing = self.start()
            self.clock.advance(2)
            self.attempts[first].callback("bad")
            self.assertNoResult(racing)
            self.attempts[other].callback("GOOD")
            found = self.successResultOf(racing)
            self.assertEqual(found.winner, other)
            self.assertEqual(found.outcomes[first], Outcome("bad"))
            self.assertEqual(self.cancelled, [])

    def test_both_bad(self) -> None:
        """The last one counts."""
        error = ValueError("b")
        for first, other in ((0, 1), (1, 0)):
            self.setUp()
            racing = self.start()
            self.clock.advance(2)
            self.attempts[first].callback("bad")
            self.attempts[other].errback(error)
            found = self.successResultOf(racing)
            self.assertEqual(found.winner, other)
            self.assertEqual(found.outcomes[other], Outcome(error=error))

    def test_no_second(self) -> None:
        """There is nowhere to make it."""
        racing = self.start(second=False)
        self.clock.advance(10)
        self.assertNoResult(racing)
        self.attempts[0].callback("A")
        self.assertEqual(self.successResultOf(racing), ((Outcome("A"),), 0))

    def test_cancelled(self) -> None:
        """Whoever leaves cancels both."""
        racing = self.start()
        self.clock.advance(2)
        racing.cancel()
        self.failureResultOf(racing, CancelledError)
        self.assertEqual(sorted(self.cancelled), [0, 1])
        self.assertEqual(self.clock.getDelayedCalls(), [])
