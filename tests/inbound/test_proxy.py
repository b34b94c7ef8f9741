"""
What runs an exchange for its request.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.inbound.proxy import _Serving


class ServingTests(SynchronousTestCase):
    """A coroutine that a client's leaving cancels."""

    def setUp(self) -> None:
        self.failures: list[Failure] = []
        self.told: list[object] = []

    def serve(self, *steps: Any) -> _Serving:
        """Wait for each in turn; call those that can be called, with what serves."""

        async def run() -> None:
            for step in steps:
                try:
                    self.told.append(step(serving) if callable(step) else await step)
                except CancelledError:
                    self.told.append("cancelled")
            self.told.append("end")

        request: Any = None
        serving = _Serving(run(), lambda failure, _: self.failures.append(failure), request)
        serving.go_on()
        return serving

    def test_results(self) -> None:
        """It goes on with what it waited for, at once if that is there."""
        later: Deferred[str] = Deferred()
        self.serve(succeed("a"), later, succeed("c"))
        self.assertEqual(self.told, ["a"])
        later.callback("b")
        self.assertEqual(self.told, ["a", "b", "c", "end"])

    def test_failure(self) -> None:
        """What it raises is told with its traceback."""
        later: Deferred[str] = Deferred()
        self.serve(later)
        later.errback(ValueError("x"))
        self.assertEqual([failure.type for failure in self.failures], [ValueError])
        self.assertEqual(self.told, [])

    def test_cancel(self) -> None:
        """What it waits for is cancelled, and nothing after it."""
        first: Deferred[str] = Deferred()
        second: Deferred[str] = Deferred()
        serving = self.serve(first, second)
        serving.cancel()
        self.assertEqual(self.told, ["cancelled"])
        second.callback("well")
        self.assertEqual(self.told, ["cancelled", "well", "end"])
        serving.cancel()

    def test_cancel_while_it_runs(self) -> None:
        """A client that is found to have left meanwhile cancels what is waited for next."""
        first: Deferred[str] = Deferred()
        second: Deferred[str] = Deferred()
        self.serve(succeed("a"), _Serving.cancel, first, second)
        self.assertEqual(self.told, ["a", None, "cancelled"])
        second.callback("well")
        self.assertEqual(self.told[3:], ["well", "end"])

    def test_cancel_before_what_is_there(self) -> None:
        """What is there already cannot be cancelled: then that is left as it is."""
        later: Deferred[str] = Deferred()
        self.serve(_Serving.cancel, succeed("a"), later)
        self.assertEqual(self.told, [None, "a", "cancelled", "end"])
        self.assertEqual(self.failures, [])
