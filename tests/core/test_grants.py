"""Tests for :mod:`txbedrock.core.grants`."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.grants import NO_LIMITS, Budget, Limits, ModelLimits, with_budget


class BudgetTests(SynchronousTestCase):
    """Limits, filled up from a budget."""

    def test_filled(self) -> None:
        """What is left open comes from the budget; a maximum keeps its own period."""
        nova, other = ModelLimits(rpm=1), ModelLimits(rpm=2)
        full = Limits(
            rpm=1, tpm=2, max_parallel=3, max_budget=4, soft_budget=5, budget_duration="1d",
            budget_start_us=6, budget_increase=7, budget_increase_until_us=8,
            models={"nova": nova},
        )  # fmt: skip
        for limits, budget, expected in (
            (NO_LIMITS, NO_LIMITS, NO_LIMITS),
            (NO_LIMITS, full, full),
            (full, NO_LIMITS, full),
            (full, Limits(rpm=9, max_budget=9, budget_duration="9d"), full),
            (Limits(rpm=9), Limits(tpm=2), Limits(rpm=9, tpm=2)),
            (Limits(rpm=0), Limits(rpm=2), Limits(rpm=0)),
            (
                Limits(max_budget=1),
                Limits(max_budget=9, budget_duration="9d", budget_start_us=9),
                Limits(max_budget=1),
            ),
            (
                Limits(budget_duration="1d"),
                Limits(max_budget=9, budget_duration="9d", budget_start_us=9),
                Limits(max_budget=9, budget_duration="1d", budget_start_us=9),
            ),
            (
                Limits(budget_start_us=5),
                Limits(max_budget=9, budget_duration="9d", budget_start_us=9),
                Limits(max_budget=9, budget_duration="9d", budget_start_us=5),
            ),
            (
                Limits(budget_increase=1),
                Limits(max_budget=9, budget_increase=2, budget_increase_until_us=3),
                Limits(max_budget=9, budget_increase=1),
            ),
            (
                Limits(models={"nova": nova}),
                Limits(models={"nova": other, "claude": other}),
                Limits(models={"nova": nova, "claude": other}),
            ),
        ):
            self.assertEqual(with_budget(limits, Budget(id="b", limits=budget)), expected)
        self.assertEqual(with_budget(full, None), full)
