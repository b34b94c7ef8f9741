"""Tests for :mod:`txbedrock.core.limits`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.budgets import period_at
from txbedrock.core.grants import NO_LIMITS, Level, LevelKind, Limits, ModelLimits
from txbedrock.core.limits import (
    BudgetExceeded,
    BudgetUnpriced,
    Load,
    Purse,
    RateLimited,
    Rooms,
    Taken,
    Wait,
    Window,
    still_reserved,
)
from txbedrock.core.money import PICO
from txbedrock.errors import Fault, ProxyError

NOW = 1_795_354_200.25  # 2026-11-22T13:30:00.25Z
DAY = 86_400


@dataclass
class Need:
    """What a request says that it needs."""

    worst: int | None = 0
    most: int = 0
    model: str = "nova"
    model_id: str = "us.amazon.nova-lite-v1:0"
    operation: str = "Converse"

    def tokens(self) -> int:
        return self.most

    def picousd(self) -> int | None:
        return self.worst


def key(limits: Limits, name: str = "k1", kind: LevelKind = "key", label: str = "ci") -> Level:
    return Level(kind, name, label, limits)


class LimitsTestCase(SynchronousTestCase):
    """Has rooms that know everything, as without a ledger."""

    def setUp(self) -> None:
        self.rooms = Rooms(lasting=True)

    def take(self, levels: Sequence[Level], need: Need | None = None, now: float = NOW) -> Taken:
        taken = self.rooms.reserve(levels, need or Need(), now)
        assert isinstance(taken, Taken), taken
        return taken

    def wait(self, levels: Sequence[Level], need: Need, now: float = NOW) -> Wait:
        wait = self.rooms.reserve(levels, need, now)
        assert isinstance(wait, Wait), wait
        return wait

    def refused(
        self, levels: Sequence[Level], need: Need | None = None, now: float = NOW
    ) -> RateLimited:
        return self.assertRaises(RateLimited, self.rooms.reserve, levels, need or Need(), now)

    def unpaid(self, levels: Sequence[Level], need: Need, now: float = NOW) -> BudgetExceeded:
        return self.assertRaises(BudgetExceeded, self.rooms.reserve, levels, need, now)


class WindowTests(SynchronousTestCase):
    """A minute by the second."""

    def test_minute(self) -> None:
        """What was used counts for at least 60 s, and at most for 61."""
        window = Window()
        window.expire(100)
        window.add(3)
        for second, used in [(100, 3), (159, 3), (160, 3), (161, 0), (1000, 0)]:
            window.expire(second)
            self.assertEqual(window.used, used, second)

    def test_constant_memory(self) -> None:
        """However much is used, it is a number a second."""
        window = Window()
        for tenth in range(10_000):
            window.expire(tenth // 10)
            window.add(1)
        self.assertEqual(len(window._seconds), 61)
        self.assertEqual(window.used, 610)

    def test_room(self) -> None:
        """It is known to the second when there will be room."""
        window = Window()
        for second in (100, 110, 120):
            window.expire(second)
            window.add(10)
        for used, seconds in [(30, 0.0), (29, 40.5), (20, 40.5), (19, 50.5), (0, 60.5)]:
            self.assertEqual(window.room_in_s(120.5, used), seconds, used)

    def test_set_back(self) -> None:
        """A clock that is set back holds nobody up for longer than a minute."""
        window = Window()
        for second in (10_000, 10_030):
            window.expire(second)
            window.add(1)
        for second, used in [(5000, 2), (5030, 2), (5031, 1), (5060, 1), (5061, 0)]:
            window.expire(second)
            self.assertEqual(window.used, used, second)

    def test_take_back(self) -> None:
        """What was not used after all is forgotten where it was counted."""
        window = Window()
        for second in (100, 110):
            window.expire(second)
            window.add(1)
        window.take_back(100, 1)
        window.take_back(100, 1)  # There is none any more.
        window.take_back(105, 1)  # Nor was there ever.
        for second, used in [(110, 1), (170, 1), (171, 0)]:
            window.expire(second)
            self.assertEqual(window.used, used, second)


class RequestsTests(LimitsTestCase):
    """Requests a minute, and at the same time."""

    def test_rpm(self) -> None:
        """As many as the limit are let in; the next one is told when to come again."""
        levels = [key(Limits(rpm=3))]
        for seconds in (0, 10, 20):
            self.take(levels, now=NOW + seconds)
        error = self.refused(levels, now=NOW + 30)
        self.assertEqual(
            error.message,
            "Key 'ci' has made 3 of 3 requests a minute. Try again in 31 s.",
        )
        self.assertEqual((error.status, error.code), (429, "ThrottlingException"))
        self.assertIs(error.fault, Fault.POLICY)
        self.assertEqual(
            error.headers, ((b"Retry-After", b"31"), (b"x-amz-retry-after", b"30750"))
        )
        self.assertEqual(
            (error.kind, error.label, error.reason, error.current, error.limit),
            ("key", "ci", "rpm", 3, 3),
        )
        self.refused(levels, now=NOW + 30 + error.retry_after_s - 0.001)
        self.take(levels, now=NOW + 30 + error.retry_after_s)
        self.refused(levels, now=NOW + 30 + error.retry_after_s)

    def test_zero(self) -> None:
        """A limit of 0 lets nobody in."""
        self.assertEqual(self.refused([key(Limits(rpm=0))]).retry_after_s, 60)
        self.assertEqual(self.refused([key(Limits(max_parallel=0))]).limit, 0)
        self.assertEqual(self.refused([key(Limits(tpm=0))], Need(most=1)).limit, 0)
        self.unpaid([key(Limits(max_budget=0))], Need(1))
        self.take([key(Limits(max_budget=0, tpm=0))], Need(0, 0))

    def test_parallel(self) -> None:
        """Who ends makes room for the next."""
        levels = [key(Limits(max_parallel=2))]
        first, second = self.take(levels), self.take(levels)
        error = self.refused(levels)
        self.assertEqual(
            error.message,
            "Key 'ci' has 2 of 2 parallel requests in flight. "
            "Try again when one of them has ended.",
        )
        self.rooms.settle(first, 0, 0, NOW)
        third = self.take(levels)
        self.refused(levels)
        self.rooms.release(second)
        self.rooms.release(third)
        for _ in range(2):
            self.take(levels)

    def test_released(self) -> None:
        """A request that was never sent does not count; one that cost nothing does."""
        levels = [key(Limits(rpm=1))]
        self.rooms.release(self.take(levels))
        self.rooms.settle(self.take(levels, now=NOW + 10), 0, 0, NOW + 11)
        self.refused(levels, now=NOW + 60)

    def test_limits_change(self) -> None:
        """Other limits for the same level hold for what was used before."""
        self.take([key(Limits(rpm=10))])
        self.refused([key(Limits(rpm=1))])
        self.take([key(Limits(rpm=2))])


class TokensTests(LimitsTestCase):
    """Tokens a minute."""

    def test_settled(self) -> None:
        """What was reserved is replaced by what was used, from then on for a minute."""
        levels = [key(Limits(tpm=100))]
        taken = self.take(levels, Need(most=90))
        self.rooms.settle(taken, 30, 0, NOW + 50)
        taken = self.take(levels, Need(most=70), NOW + 51)
        self.assertEqual(self.wait(levels, Need(most=1), NOW + 51).current, 100)
        self.rooms.settle(taken, 70, 0, NOW + 52)
        error = self.refused(levels, Need(most=1), NOW + 53)
        self.assertEqual(
            error.message,
            "Key 'ci' has used 100 of 100 tokens a minute, and this request may need 1. "
            "Try again in 58 s, or set a lower maxTokens.",
        )
        self.refused(levels, Need(most=1), NOW + 110)
        self.take(levels, Need(most=30), NOW + 53 + error.retry_after_s)
        self.refused(levels, Need(most=31), NOW + 53 + error.retry_after_s)

    def test_waits_for_those_in_flight(self) -> None:
        """A request waits, instead of being refused, for what others may give back."""
        levels = [key(Limits(tpm=100))]
        taken = self.take(levels, Need(most=60))
        wait = self.wait(levels, Need(most=60))
        self.assertEqual((wait.current, wait.limit), (60, 100))
        error = still_reserved(wait, 10.0)
        self.assertEqual(
            error.message,
            "The rest of the tokens of key 'ci' is reserved by requests in flight: 60 of 100 a "
            "minute are used or reserved. It was waited for 10 s. "
            "Try again when some of them have ended.",
        )
        self.assertEqual((error.status, error.reason), (429, "reserved"))
        self.rooms.settle(taken, 40, 0, NOW)
        self.take(levels, Need(most=60))

    def test_too_large(self) -> None:
        """What can never fit is refused with what to change."""
        error = self.refused([key(Limits(tpm=100))], Need(most=101))
        self.assertEqual(
            error.message,
            "This request may need 101 tokens, its input and as much output as it allows, and "
            "key 'ci' has 100 a minute. Send less, or set a lower maxTokens.",
        )

    def test_unknown_usage(self) -> None:
        """Tokens that nobody told count as they were reserved."""
        levels = [key(Limits(tpm=100))]
        self.rooms.settle(self.take(levels, Need(most=90)), None, 0, NOW)
        self.refused(levels, Need(most=11))

    def test_needs_none(self) -> None:
        """What needs no tokens is let in when there are none, and what it used counts."""
        levels = [key(Limits(tpm=100))]
        self.rooms.settle(self.take(levels, Need(most=100)), 100, 0, NOW)
        self.rooms.settle(self.take(levels), 5, 0, NOW + 30)
        self.refused(levels, Need(most=96), NOW + 80)
        self.take(levels, Need(most=95), NOW + 80)


class BudgetTests(LimitsTestCase):
    """Money."""

    def test_cap(self) -> None:
        """Spent and reserved never exceed it; who is refused learns what he can do."""
        levels = [key(Limits(max_budget=10 * PICO, budget_duration="1mo"))]
        taken = self.take(levels, Need(6 * PICO))
        wait = self.wait(levels, Need(5 * PICO))
        self.assertIn(
            "The rest of the budget of key 'ci' is reserved by requests in flight: "
            "6.00 of 10.00 USD are spent or reserved.",
            still_reserved(wait, 1).message,
        )
        self.rooms.settle(taken, 0, 4 * PICO, NOW)
        taken = self.take(levels, Need(6 * PICO))
        self.rooms.settle(taken, 0, 5_500_000_000_001, NOW)
        error = self.unpaid(levels, Need(PICO // 2))
        self.assertEqual(
            error.message,
            "This request may cost 0.50 USD, which the budget of key 'ci' has not left: 9.50 of "
            "10.00 USD since 2026-11-01T00:00:00Z. Send less, or set a lower maxTokens. "
            "It is renewed at 2026-12-01T00:00:00Z, or ask your operator to raise max_budget.",
        )
        taken = self.take(levels, Need(PICO // 4))
        self.rooms.settle(taken, 0, PICO // 2, NOW)
        error = self.unpaid(levels, Need(1))
        self.assertEqual(
            error.message,
            "The budget of key 'ci' is spent: 10.00 of 10.00 USD since 2026-11-01T00:00:00Z. "
            "It is renewed at 2026-12-01T00:00:00Z, or ask your operator to raise max_budget.",
        )
        self.assertEqual((error.status, error.code), (400, "ServiceQuotaExceededException"))
        self.assertIs(error.fault, Fault.POLICY)
        self.assertEqual(error.headers, ())
        self.assertEqual(
            (error.kind, error.label, error.current, error.limit, error.resets_at),
            ("key", "ci", 10 * PICO + 1, 10 * PICO, "2026-12-01T00:00:00Z"),
        )

    def test_for_ever(self) -> None:
        """A budget without a period is not renewed."""
        levels = [Level("end_user", "e1", "", Limits(max_budget=1))]
        self.rooms.settle(self.take(levels, Need(1)), 0, 1, NOW)
        error = self.unpaid(levels, Need(1), NOW + 1000 * DAY)
        self.assertEqual(
            error.message,
            "The budget of end user 'e1' is spent: 0.00 of 0.00 USD. "
            "Ask your operator to raise max_budget.",
        )
        self.assertIsNone(error.resets_at)

    def test_renewed(self) -> None:
        """A new period has the whole budget; what ends in it and began before is the old one's."""
        levels = [key(Limits(max_budget=10, budget_duration="1d", budget_start_us=0))]
        late = self.take(levels, Need(4))
        self.rooms.settle(self.take(levels, Need(6)), 0, 6, NOW)
        self.unpaid(levels, Need(5))
        midnight = math.ceil(NOW / DAY) * DAY
        self.unpaid(levels, Need(5), midnight - 0.001)
        taken = self.take(levels, Need(10), midnight)
        self.rooms.settle(late, 0, 4, midnight)
        self.rooms.settle(taken, 0, 9, midnight)
        self.assertEqual(self.unpaid(levels, Need(2), midnight).current, 9)

    def test_increase(self) -> None:
        """An increase holds until its end."""
        until = NOW + 100
        levels = [
            key(
                Limits(max_budget=10, budget_increase=5, budget_increase_until_us=int(until * 1e6))
            )
        ]
        self.rooms.settle(self.take(levels, Need(15)), 0, 12, NOW)
        self.assertEqual(self.unpaid(levels, Need(4)).limit, 15)
        self.take(levels, Need(3), until - 0.01)
        self.assertEqual(self.unpaid(levels, Need(1), until).limit, 10)

    def test_unknown_cost(self) -> None:
        """A cost that is not known counts as it was reserved, in this period."""
        levels = [key(Limits(max_budget=10, budget_duration="1d"))]
        self.rooms.settle(self.take(levels, Need(7)), 0, None, NOW)
        self.assertEqual(self.unpaid(levels, Need(4)).current, 7)
        self.take(levels, Need(10), NOW + DAY)

    def test_unpriced(self) -> None:
        """Who has a budget cannot use what has no price, unless that is allowed."""
        budget = key(Limits(max_budget=10))
        error = self.assertRaises(
            BudgetUnpriced, self.rooms.reserve, [key(Limits(rpm=1), "t1"), budget], Need(None), NOW
        )
        self.assertEqual(
            error.message,
            "This gateway knows no price for 'us.amazon.nova-lite-v1:0', so key 'ci', which has a "
            "budget, cannot use it. The operator can give the deployment prices of its own or a "
            "base_model, or set budget_unpriced: allow.",
        )
        self.assertEqual((error.status, error.code), (400, "ServiceQuotaExceededException"))
        error = self.assertRaises(
            BudgetUnpriced, self.rooms.reserve, [budget], Need(None, 0, "", "", "InvokeAgent"), NOW
        )
        self.assertIn("no price for 'InvokeAgent'", error.message)
        of_model = Limits(models={"nova": ModelLimits(max_budget=10)})
        error = self.assertRaises(
            BudgetUnpriced, self.rooms.reserve, [key(of_model)], Need(None), NOW
        )
        self.assertIn("so key 'ci' with model 'nova', which has a budget", error.message)
        self.take([key(Limits(soft_budget=10), "k2"), key(Limits(rpm=9), "k3")], Need(None))

        self.rooms = Rooms(lasting=True, allow_unpriced=True)
        self.rooms.settle(self.take([budget], Need(None)), 0, None, NOW)
        self.rooms.settle(self.take([budget], Need(9)), 0, 9, NOW)
        self.unpaid([budget], Need(None))

    def test_free(self) -> None:
        """What costs nothing is let in when all is spent."""
        levels = [key(Limits(max_budget=1))]
        self.rooms.settle(self.take(levels, Need(1)), 0, 1, NOW)
        self.unpaid(levels, Need(1))
        self.take(levels, Need(0))

    def test_soft(self) -> None:
        """A soft budget refuses nobody; that it is reached is said once a period."""
        levels = [key(Limits(soft_budget=10, budget_duration="1d"))]
        said = []
        for cost, now in [(9, 0), (1, 0), (50, 0), (5, DAY), (5, DAY), (1, DAY)]:
            self.rooms.settle(self.take(levels, Need(1), NOW + now), 0, cost, NOW + now)
            said.append([purse.total for purse in self.rooms.reached])
            self.rooms.reached.clear()
        self.assertEqual(said, [[], [10], [], [], [10], []])
        # A higher one is another one.
        levels = [key(Limits(soft_budget=12, budget_duration="1d"))]
        self.rooms.settle(self.take(levels, Need(1), NOW + DAY), 0, 1, NOW + DAY)
        self.assertEqual([purse.total for purse in self.rooms.reached], [12])
        # What is billed at an unknown price counts at its worst.
        self.rooms = Rooms(lasting=True)
        for cost in (5, None):
            self.rooms.settle(self.take(levels, Need(7)), 0, cost, NOW)
        self.assertEqual([purse.total for purse in self.rooms.reached], [12])


class LoadTests(LimitsTestCase):
    """What was spent is asked for."""

    def setUp(self) -> None:
        self.rooms = Rooms(stale_s=30)

    def load(self, levels: Sequence[Level], need: Need, now: float = NOW) -> Purse:
        load = self.rooms.reserve(levels, need, now)
        assert isinstance(load, Load), load
        [purse] = load.purses
        return purse

    def test_first(self) -> None:
        """A budget gives nothing before it is known what was spent."""
        levels = [key(Limits(max_budget=10, budget_duration="1mo"))]
        purse = self.load(levels, Need(1))
        self.assertEqual(
            (purse.level, purse.model, purse.begin_us),
            (levels[0], "", period_at("1mo", 0, int(NOW * 1e6))[0]),
        )
        purse.begin_load(NOW)
        self.assertIs(self.load(levels, Need(1)), purse)
        purse.end_load(8, NOW)
        self.unpaid(levels, Need(3))
        self.take(levels, Need(2))

    def test_settled_meanwhile(self) -> None:
        """What is settled while the ledger is asked may be in its answer: nobody is let
        in on it, and nobody is refused for it."""
        levels = [key(Limits(max_budget=10))]
        purse = self.load(levels, Need(1))
        purse.begin_load(NOW)
        purse.end_load(0, NOW)
        taken = self.take(levels, Need(4))
        purse.begin_load(NOW)
        self.rooms.settle(taken, 0, 4, NOW)
        self.assertEqual(purse.total, 4)
        purse.end_load(4, NOW)
        self.assertEqual((purse.total, purse.doubt), (4, 4))
        self.take(levels, Need(2))
        self.assertIs(self.wait(levels, Need(1)).on, purse)
        purse.begin_load(NOW)
        purse.end_load(4, NOW)
        self.take(levels, Need(4))
        self.wait(levels, Need(1))

    def test_stale(self) -> None:
        """A budget that was not asked for long is loaded again, and goes on if it cannot be."""
        levels = [key(Limits(max_budget=10))]
        purse = self.load(levels, Need(1))
        purse.begin_load(NOW)
        purse.end_load(3, NOW)
        self.rooms.release(self.take(levels, Need(7), NOW + 30))
        self.assertIs(self.load(levels, Need(7), NOW + 31), purse)
        purse.begin_load(NOW + 31)
        purse.end_load(None, NOW + 32)
        self.take(levels, Need(7), NOW + 32)
        self.unpaid(levels, Need(8), NOW + 32)

    def test_cannot(self) -> None:
        """A budget that was never loaded gives nothing; one that was begins a period without."""
        levels = [key(Limits(max_budget=10, budget_duration="1d"))]
        purse = self.load(levels, Need(1))
        purse.begin_load(NOW)
        purse.end_load(None, NOW)
        self.assertIs(self.load(levels, Need(1)), purse)
        purse.end_load(10, NOW)
        self.unpaid(levels, Need(1))
        tomorrow = self.load(levels, Need(1), NOW + DAY)
        self.assertIsNot(tomorrow, purse)
        tomorrow.end_load(None, NOW + DAY)
        self.take(levels, Need(10), NOW + DAY)

    def test_soft_only(self) -> None:
        """Nobody waits for what may only be warned about."""
        self.take([key(Limits(soft_budget=10))], Need(1))
        [purse] = self.rooms.unloaded
        purse.begin_load(NOW)
        purse.end_load(11, NOW)
        self.assertTrue(purse.reaches_soft())
        self.assertFalse(purse.reaches_soft())

    def test_used(self) -> None:
        """Those that give are known, to be loaded again."""
        levels = [key(Limits(max_budget=10)), key(Limits(max_budget=10), "t1", "team")]
        load = self.rooms.reserve(levels, Need(1), NOW)
        assert isinstance(load, Load)
        self.assertEqual([purse.level.id for purse in load.purses], ["k1", "t1"])
        self.assertEqual(self.rooms.used, set())
        for purse in load.purses:
            purse.end_load(0, NOW)
        self.take(levels, Need(1))
        self.assertEqual(self.rooms.used, set(load.purses))


class LevelsTests(LimitsTestCase):
    """Several at once."""

    def test_all_or_none(self) -> None:
        """Who is refused at one level takes nothing at the others."""
        plenty = key(Limits(rpm=100, tpm=100, max_parallel=100, max_budget=100))
        for limits, need in [
            (Limits(rpm=0), Need(60, 60)),
            (Limits(max_parallel=0), Need(60, 60)),
            (Limits(tpm=59), Need(60, 60)),
            (Limits(max_budget=59), Need(60, 60)),
        ]:
            levels = [plenty, key(Limits(rpm=5), "t1", "team"), key(limits, "u1", "user")]
            for _ in range(3):
                self.assertRaises(ProxyError, self.rooms.reserve, levels, need, NOW)
        # Nothing was taken: all of it is there.
        for _ in range(5):
            self.take([key(Limits(rpm=5), "t1", "team")])
        self.rooms.release(self.take([plenty], Need(100, 100)))
        for _ in range(100):
            self.take([plenty], Need(1, 1))
        self.refused([plenty])

    def test_wait_takes_nothing(self) -> None:
        """Nor does who has to wait at one of them."""
        small, large = key(Limits(tpm=100), "t1", "team"), key(Limits(rpm=2, max_budget=9))
        self.take([small], Need(0, 80))
        for _ in range(3):
            self.wait([large, small], Need(9, 80))
        self.take([large], Need(9))

    def test_refusal_before_waiting(self) -> None:
        """Who cannot be let in at one level does not wait at another."""
        small = key(Limits(tpm=100))
        self.take([small], Need(0, 80))
        self.refused([small, key(Limits(rpm=0), "t1", "team")], Need(0, 80))

    def test_kinds_apart(self) -> None:
        """A team and a user of one name have rooms of their own; the same level twice is one."""
        user, team = (key(Limits(rpm=2), "x", kind) for kind in ("user", "team"))
        self.take([user, team, user])
        self.take([user, user])
        self.refused([user])
        self.take([team])
        self.refused([team])

    def test_none(self) -> None:
        """Without limits nothing is kept."""
        taken = self.take([key(NO_LIMITS)])
        self.assertEqual((taken.holds, taken.headers(NOW, 0)), ([], []))
        self.assertEqual(len(self.rooms), 0)

    def test_models(self) -> None:
        """A model has limits besides those of its level, by its group's name or its id."""
        limits = Limits(
            rpm=5,
            models={
                "nova": ModelLimits(rpm=1),
                "us.amazon.nova-lite-v1:0": ModelLimits(tpm=10),
                "claude": ModelLimits(max_budget=7, budget_duration="1mo"),
            },
        )
        levels = [key(limits)]
        self.refused(levels, Need(0, 11))
        self.take(levels, Need(0, 10))
        self.assertEqual(
            self.refused(levels).message,
            "Key 'ci' with model 'nova' has made 1 of 1 requests a minute. Try again in 61 s.",
        )
        claude = Need(7, 99, "claude", "anthropic.claude")
        self.rooms.settle(self.take(levels, claude), 0, 7, NOW)
        self.assertIn(
            "The budget of key 'ci' with model 'claude' is spent: 0.00 of 0.00 USD since 2026-11-",
            self.unpaid(levels, claude).message,
        )
        for _ in range(3):
            self.take(levels, Need(0, 99, "llama", "llama"))
        self.refused(levels, Need(0, 99, "llama", "llama"))

    def test_model_named_twice(self) -> None:
        """A model whose name is its id is one."""
        levels = [key(Limits(models={"m": ModelLimits(rpm=2)}))]
        for _ in range(2):
            self.take(levels, Need(0, 0, "m", "m"))
        self.refused(levels, Need(0, 0, "m", "m"))

    def test_headers(self) -> None:
        """An answer tells the limits of the level with the least left, and the key's own."""
        levels = [
            key(Limits(rpm=10, tpm=1000, max_budget=PICO, budget_duration="1mo")),
            key(Limits(rpm=4, tpm=10_000), "t1", "team"),
        ]
        self.rooms.settle(self.take(levels, Need(PICO // 2, 500)), 100, PICO // 4, NOW)
        taken = self.take(levels, Need(PICO // 2, 500))
        self.assertEqual(
            sorted(taken.headers(NOW, 1)),
            [
                (b"x-litellm-key-max-budget", b"1.0"),
                (b"x-litellm-key-rpm-limit", b"10"),
                (b"x-litellm-key-spend", b"0.250000000001"),
                (b"x-litellm-key-tpm-limit", b"1000"),
                (b"x-ratelimit-limit-requests", b"4"),
                (b"x-ratelimit-limit-tokens", b"1000"),
                (b"x-ratelimit-remaining-requests", b"2"),
                (b"x-ratelimit-remaining-tokens", b"400"),
            ],
        )

    def test_headers_of_others(self) -> None:
        """What others than the key may spend and have spent is not told."""
        team = key(Limits(rpm=4, max_budget=PICO), "t1", "team")
        model = ModelLimits(max_budget=PICO, rpm=9)
        for limits, own in (
            (Limits(rpm=10), [(b"x-litellm-key-rpm-limit", b"10")]),
            (Limits(soft_budget=PICO), [(b"x-litellm-key-spend", b"0.0")]),
            (Limits(models={"nova": model}), []),
        ):
            self.rooms = Rooms(lasting=True)
            said = self.take([key(limits), team], Need(1)).headers(NOW, 0)
            self.assertEqual([one for one in said if b"-key-" in one[0]], own)


class ForgettingTests(LimitsTestCase):
    """Levels that nobody uses."""

    def test_age(self) -> None:
        """They are forgotten when they are old, unless something is in flight."""
        self.rooms = Rooms()
        for number in range(10):
            self.take([key(Limits(rpm=1, max_parallel=1), f"k{number}")], now=NOW + number)
        held = self.take([key(Limits(max_parallel=1), "held")])
        self.assertEqual(len(self.rooms), 11)
        self.rooms.forget(NOW + 5)
        self.assertEqual(len(self.rooms), 11)  # All of them have one in flight.

        self.rooms = Rooms()
        for number in range(10):
            self.take([key(Limits(rpm=1), f"k{number}")], now=NOW + number)
            if number == 2:
                held = self.take([key(Limits(max_parallel=1), "held")], now=NOW + number)
        self.rooms.forget(NOW + 4)
        self.assertEqual(len(self.rooms), 6)
        self.refused([key(Limits(max_parallel=1), "held")])
        self.rooms.settle(held, 0, 0, NOW)
        self.refused([key(Limits(rpm=1), "k5")], now=NOW + 10)
        self.take([key(Limits(rpm=1), "k4")], now=NOW + 10)

    def test_number(self) -> None:
        """There are never more than a bound: what was unused for longest goes."""
        self.rooms = Rooms(max_levels=100)
        held = self.take([key(Limits(max_parallel=1), "held", "end_user")])
        for number in range(1000):
            self.take([key(Limits(rpm=1), f"e{number}", "end_user")], now=NOW + number // 20)
            self.assertLessEqual(len(self.rooms), 100)
        self.refused([key(Limits(max_parallel=1), "held", "end_user")], now=NOW + 50)
        self.refused([key(Limits(rpm=1), "e999", "end_user")], now=NOW + 50)
        self.rooms.settle(held, 0, 0, NOW + 50)

    def test_least_recent(self) -> None:
        """Of those that nobody uses now, the one that was used last stays."""
        self.rooms = Rooms(max_levels=2)
        levels = {name: key(Limits(rpm=2), name) for name in "abc"}
        for seconds, name in enumerate("abac"):
            self.take([levels[name]], now=NOW + seconds)
        self.refused([levels["a"]], now=NOW + 5)
        for _ in range(2):
            self.take([levels["b"]], now=NOW + 5)

    def test_own(self) -> None:
        """A request of more levels than there may be does not push itself out."""
        self.rooms = Rooms(max_levels=1)
        levels = [key(Limits(rpm=1), f"t{number}", "tag") for number in range(5)]
        self.take(levels)
        for level in levels:
            self.refused([level])

    def test_without_ledger(self) -> None:
        """What is spent is not forgotten where no ledger knows it; but names that
        clients make up do not fill the memory."""
        self.rooms = Rooms(max_levels=3, lasting=True)
        budget = Limits(max_budget=1)
        for level in (key(budget), key(budget, "e1", "end_user")):
            self.rooms.settle(self.take([level], Need(1)), 0, 1, NOW)
        self.rooms.forget(NOW + 10_000)
        self.assertEqual(len(self.rooms), 2)
        for number in range(2, 12):
            level = key(budget, f"e{number}", "end_user")
            self.rooms.settle(self.take([level], Need(1), NOW + 1), 0, 1, NOW + 1)
        self.assertLessEqual(len(self.rooms), 3)
        self.unpaid([key(budget)], Need(1), NOW + 2)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 3), st.integers(0, 40), st.integers(0, 40)),
        st.tuples(st.just("settle"), st.integers(0, 30), st.floats(0, 1), st.floats(0, 1)),
        st.tuples(st.just("release"), st.integers(0, 30), st.just(0), st.just(0)),
        st.tuples(st.just("step"), st.floats(0, 40), st.just(0), st.just(0)),
    ),
    max_size=120,
)
CAPS = Limits(rpm=7, tpm=100, max_parallel=4, max_budget=300, budget_duration="2m")
TEAM_CAPS = Limits(rpm=9, tpm=130, max_budget=350, models={"m": ModelLimits(rpm=3, tpm=60)})


class PropertyTests(SynchronousTestCase):
    """Whatever happens in whatever order."""

    @settings(max_examples=150, deadline=None)
    @given(OPERATIONS)
    def test_never_over(self, operations: list[tuple[str, float, float, float]]) -> None:
        """
        No limit is exceeded in any minute, no budget in any period, and when all is
        over nothing is left behind.
        """
        rooms, now = Rooms(lasting=True), NOW
        keys = [key(CAPS, f"k{number}") for number in range(2)]
        team = key(TEAM_CAPS, "t", "team")
        open_ones: list[tuple[Taken, int, float]] = []  # and which key's, and since when
        started: dict[int, tuple[float, int, str]] = {}
        settled: list[tuple[float, int, str, int, int, float]] = []
        for operation, which, a, b in operations:
            if operation == "step":
                now += which
            elif operation == "reserve":
                owner, model = int(which) % 2, "m" if which >= 2 else "n"
                need = Need(int(a), int(b), model, model)
                try:
                    taken = rooms.reserve([keys[owner], team], need, now)
                except (RateLimited, BudgetExceeded):
                    continue
                if isinstance(taken, Taken):
                    open_ones.append((taken, owner, now))
                    started[id(taken)] = (now, owner, model)
            elif open_ones:
                taken, owner, since = open_ones.pop(int(which) % len(open_ones))
                if operation == "release":
                    rooms.release(taken)
                    del started[id(taken)]
                else:
                    tokens, cost = int(taken.tokens * a), int(taken.picousd * b)
                    rooms.settle(taken, tokens, cost, now)
                    model = started[id(taken)][2]
                    settled.append((now, owner, model, tokens, cost, since))
                    # Its id may be another one's from now on.
                    started[-len(settled)] = started.pop(id(taken))
            self.check(now, open_ones, started, settled)
        for taken, _, _ in open_ones:
            rooms.settle(taken, 0, 0, now)
        now += 200
        for level in (*keys, team):
            room = rooms._rooms.get((level.kind, level.id))
            for one in [] if room is None else [room, *(room.models or {}).values()]:
                self.assertFalse(one.busy(False))
                self.assertEqual(one.parallel, 0)
                for window in (one.requests, one.tokens):
                    if window is not None:
                        window.expire(int(now))
                        self.assertEqual(window.used, 0)
                self.assertEqual(0 if one.purse is None else one.purse.reserved, 0)

    def check(
        self,
        now: float,
        open_ones: list[tuple[Taken, int, float]],
        started: dict[int, tuple[float, int, str]],
        settled: list[tuple[float, int, str, int, int, float]],
    ) -> None:
        """From the outside: of what was let in and what it took."""
        period, _ = period_at("2m", 0, int(now * 1e6))
        for owner in (0, 1):
            mine = [taken for taken, whose, _ in open_ones if whose == owner]
            self.assertLessEqual(len(mine), 4)
            self.assertLessEqual(
                sum(1 for at, whose, _ in started.values() if whose == owner and at > now - 60), 7
            )
            used = sum(t for at, whose, _, t, _, _ in settled if whose == owner and at > now - 60)
            self.assertLessEqual(used + sum(taken.tokens for taken in mine), 100)
            spent = sum(
                cost
                for _, whose, _, _, cost, since in settled
                if whose == owner and since * 1e6 >= period
            )
            reserved = sum(
                taken.picousd
                for taken, whose, since in open_ones
                if whose == owner and since * 1e6 >= period
            )
            self.assertLessEqual(spent + reserved, 300)
        self.assertLessEqual(sum(1 for at, _, _ in started.values() if at > now - 60), 9)
        self.assertLessEqual(
            sum(1 for at, _, model in started.values() if model == "m" and at > now - 60), 3
        )
        used = sum(tokens for at, _, _, tokens, _, _ in settled if at > now - 60)
        self.assertLessEqual(used + sum(taken.tokens for taken, _, _ in open_ones), 130)
        spent = sum(cost for _, _, _, _, cost, _ in settled)
        self.assertLessEqual(spent + sum(taken.picousd for taken, _, _ in open_ones), 350)

    @given(st.lists(st.floats(0, 30), min_size=1, max_size=60), st.integers(1, 20))
    def test_retry_after(self, steps: list[float], rpm: int) -> None:
        """Who comes when he was told to is let in, and no second earlier."""
        rooms, now, levels = Rooms(), NOW, [key(Limits(rpm=rpm))]
        for step in steps:
            now += step
            try:
                rooms.reserve(levels, Need(), now)
            except RateLimited as error:
                early = now + error.retry_after_s - 0.01
                self.assertLessEqual(error.retry_after_s, 61)
                if early > now:
                    self.assertRaises(RateLimited, rooms.reserve, levels, Need(), early)
                now += error.retry_after_s
                self.assertIsInstance(rooms.reserve(levels, Need(), now), Taken)
