"""Tests for :mod:`txbedrock.limits`."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import until
from tests.storage.helpers import OnSqlite, StorageTestCase
from tests.storage.helpers import entry as ledger_entry
from txbedrock.core.demand import Demand, ModelSizes, TokenRatios
from txbedrock.core.entries import DAY_US, By, Filters, LedgerEntry, Total
from txbedrock.core.grants import NO_LIMITS, Level, LevelKind, Limits, ModelLimits
from txbedrock.core.limits import BudgetExceeded, BudgetUnpriced, Purse, RateLimited
from txbedrock.core.money import PICO
from txbedrock.core.pricing import Price
from txbedrock.core.usage import Source, Usage
from txbedrock.interfaces import ILedger
from txbedrock.limits import Limiter, Reservation
from txbedrock.storage.database import DatabaseUnavailable

NOW = 1_795_354_200.0  # 2026-11-22T13:30:00Z, a Sunday
DAY = 86_400
MIDNIGHT_US = int(NOW) // DAY * DAY_US

BODY = json.dumps(
    {"messages": [{"role": "user", "content": [{"text": "Hello"}]}],
     "inferenceConfig": {"maxTokens": 10}}
).encode()  # fmt: skip
PRICE = Price("p", {"input": 60_000, "output": 240_000})
USAGE = Usage(8, 10, source=Source.BODY)
COST = 8 * 60_000 + 10 * 240_000


class Fixed(Demand, kw_only=True):
    """Needs what it is told."""

    needs: tuple[int | None, int]

    def tokens(self) -> int:
        return self.needs[1]

    def picousd(self) -> int | None:
        return self.needs[0]


def fixed(
    picousd: int | None = 0, tokens: int = 0, model: str = "m", kind: type[Fixed] = Fixed
) -> Fixed:
    return kind(
        model=model, model_id="i", operation="Converse", body_length=0, body_start=b"",
        price=None, ratios=TokenRatios(), sizes=ModelSizes({}), needs=(picousd, tokens),
    )  # fmt: skip


def used(tokens: int) -> Usage:
    return Usage(tokens, source=Source.BODY)


def key(limits: Limits, name: str = "k1", kind: LevelKind = "key") -> Level:
    return Level(kind, name, "ci", limits)


class FakeLedger:
    """Knows entries; answers at once, later, or not at all."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []
        self.asked: list[Filters] = []
        self.held: list[tuple[Filters, Deferred[list[Total]]]] | None = None
        self.failure: Exception | None = None

    def record(self, entry: LedgerEntry) -> None:
        self.entries.append(entry)

    async def rows(self, filters: Filters, limit: int, cursor: str | None) -> Any:
        raise NotImplementedError

    async def totals(self, by: By, filters: Filters) -> list[Total]:
        assert by == "all"
        self.asked.append(filters)
        if self.failure is not None:
            raise self.failure
        if self.held is not None:
            deferred: Deferred[list[Total]] = Deferred()
            self.held.append((filters, deferred))
            return await deferred
        return [self.total(filters)]

    def total(self, filters: Filters) -> Total:
        return Total(
            "",
            cost_picousd=sum(one.cost_picousd or 0 for one in self.entries if filters.match(one)),
        )

    def spend(self, picousd: int, started_s: float = NOW, **values: Any) -> None:
        """Another process's entry."""
        values = {"key_hash": "k1", **values}
        number = len(self.entries)
        self.record(
            LedgerEntry(
                request_id=f"r{number}",
                started_us=int(started_s * 1e6),
                cost_picousd=picousd,
                **values,
            )
        )

    def answer(self) -> None:
        """Let all go on that hold, with what is known now."""
        assert self.held is not None
        held, self.held = self.held, []
        for filters, deferred in held:
            deferred.callback([self.total(filters)])


@dataclass
class Asked:
    """One that wants to be let in."""

    deferred: Deferred[Reservation]
    reservation: Reservation | None = None
    error: BaseException | None = None

    @property
    def state(self) -> str:
        if self.reservation is not None:
            return "in"
        return "waiting" if self.error is None else type(self.error).__name__


class LimiterTestCase(SynchronousTestCase):
    """A limiter on a clock of its own."""

    ledger: FakeLedger | None = None

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(NOW)
        self.limiter = self.new()

    def new(self, **options: Any) -> Limiter:
        return Limiter(self.ledger, self.clock, self.clock.seconds, **options)

    def start(self) -> None:
        self.limiter.startService()
        self.addCleanup(self.limiter.stopService)

    def ask(
        self,
        levels: Sequence[Level],
        demand: Demand,
        then: Callable[[Reservation], object] | None = None,
    ) -> Asked:
        asked = Asked(Deferred.fromCoroutine(self.limiter.reserve(levels, demand)))

        def let_in(reservation: Reservation) -> None:
            asked.reservation = reservation
            if then is not None:
                then(reservation)

        def refused(failure: Any) -> None:
            asked.error = failure.value

        asked.deferred.addCallbacks(let_in, refused)
        asked.deferred.addErrback(lambda failure: failure.printTraceback() or failure)
        return asked

    def take(self, levels: Sequence[Level], demand: Demand | None = None) -> Reservation:
        asked = self.ask(levels, demand or fixed())
        assert asked.reservation is not None, asked
        return asked.reservation

    def states(self, asked: Sequence[Asked]) -> str:
        """``in in waiting``"""
        return " ".join(one.state for one in asked)

    def assert_idle(self) -> None:
        """Nothing is held for anybody."""
        self.assertEqual(self.limiter.waiting, 0)
        self.assertEqual(self.limiter._queues, {})
        for room in self.limiter._rooms._rooms.values():
            for one in (room, *(room.models or {}).values()):
                self.assertFalse(one.busy(False))


class AnswersTests(LimiterTestCase):
    """The simple cases."""

    def test_at_once(self) -> None:
        """Nobody waits without a reason: no Deferred is made."""
        coroutine = self.limiter.reserve([key(Limits(rpm=1))], fixed())
        with self.assertRaises(StopIteration) as stopped:
            coroutine.send(None)
        self.assertIsInstance(stopped.exception.value, Reservation)

    def test_refused(self) -> None:
        """Who is refused is counted, by what for."""
        for limits, demand, error, reason in [
            (Limits(rpm=0), fixed(), RateLimited, "rpm"),
            (Limits(tpm=0), fixed(0, 1), RateLimited, "tpm"),
            (Limits(max_parallel=0), fixed(), RateLimited, "parallel"),
            (Limits(max_budget=0), fixed(1), BudgetExceeded, "budget"),
            (Limits(max_budget=0), fixed(None), BudgetUnpriced, "unpriced"),
        ]:
            asked = self.ask([key(limits)], demand)
            self.assertIsInstance(asked.error, error)
            self.assertEqual(self.limiter.refused[reason], 1)
        self.assertEqual(self.limiter.refused.total(), 5)
        self.assertEqual(self.limiter.levels, 1)
        self.assert_idle()

    def test_once(self) -> None:
        """A reservation ends once, however often it is told to."""
        levels = [key(Limits(max_budget=100, max_parallel=1, rpm=9, tpm=100))]
        first = self.take(levels, fixed(50, 50))
        first.settle(10, used(10))
        first.settle(90, used(90))
        first.release()
        self.assertEqual(
            dict(first.headers(5)),
            {
                b"x-litellm-key-rpm-limit": b"9",
                b"x-litellm-key-tpm-limit": b"100",
                b"x-litellm-key-spend": b"0.00000000001",
                b"x-litellm-key-max-budget": b"0.0000000001",
                b"x-ratelimit-limit-requests": b"9",
                b"x-ratelimit-remaining-requests": b"8",
                b"x-ratelimit-limit-tokens": b"100",
                b"x-ratelimit-remaining-tokens": b"90",
            },
        )
        second = self.take(levels, fixed(90, 90))
        self.assertEqual(dict(second.headers(5))[b"x-litellm-key-spend"], b"0.000000000015")
        self.assertEqual(dict(second.headers())[b"x-litellm-key-spend"], b"0.00000000001")
        second.release()
        second.settle(90, used(90))
        self.take(levels, fixed(90, 90)).release()
        self.assert_idle()

    def test_without_limits(self) -> None:
        """Who has no limits leaves no trace, and its request is not looked into."""
        reservation = self.take([key(NO_LIMITS), key(Limits(), "t1", "team")])
        self.assertEqual(reservation.headers(5), [])
        reservation.settle(None, Usage())
        self.assertEqual(self.take([]).headers(), [])

    def test_unknown_cost(self) -> None:
        """What is billed at a price that is not known counts as it was reserved."""
        levels = [key(Limits(max_budget=100, tpm=100))]
        self.take(levels, fixed(60, 60)).settle(None, Usage())
        self.assertEqual(self.limiter.unknown_costs, 1)
        self.assertEqual(self.states([self.ask(levels, fixed(41, 0))]), "BudgetExceeded")
        self.assertEqual(self.states([self.ask(levels, fixed(40, 41))]), "RateLimited")

    def test_allow_unpriced(self) -> None:
        """The operator may let in what has no price."""
        self.limiter = self.new(allow_unpriced=True)
        self.take([key(Limits(max_budget=1))], fixed(None)).settle(None, USAGE)

    def test_without_ledger(self) -> None:
        """Where there is no ledger none is asked, and what was spent stays spent."""
        self.start()
        levels = [key(Limits(max_budget=100))]
        self.take(levels, fixed(60)).settle(60, USAGE)
        self.clock.pump([1] * 40)
        self.take(levels, fixed(40)).release()
        self.assertEqual(self.states([self.ask(levels, fixed(41))]), "BudgetExceeded")
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_soft_budget(self) -> None:
        """A soft budget is told of, once a period, to the log and to who wants to know."""
        told: list[tuple[str, int]] = []
        self.limiter = self.new(on_soft_budget=lambda level, spent: told.append((level.id, spent)))
        levels = [key(Limits(soft_budget=PICO, max_budget=9 * PICO, budget_duration="1d"))]
        with capturedLogs() as logged:
            for _ in range(3):
                self.take(levels, fixed(PICO)).settle(PICO // 2, USAGE)
        self.assertEqual(told, [("k1", PICO)])
        [event] = [one for one in logged if one["log_level"] is LogLevel.warn]
        self.assertEqual(
            formatEvent(event), "the soft budget of key ci is reached: 1.0 of 1.0 USD"
        )

    def test_soft_budget_hook_fails(self) -> None:
        """Who is told may fail: the request does not."""

        def fail(level: Level, spent: int) -> None:
            raise RuntimeError("no")

        self.limiter = self.new(on_soft_budget=fail)
        self.take([key(Limits(soft_budget=1))], fixed(1)).settle(1, USAGE)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assert_idle()


class CrowdTests(LimiterTestCase):
    """Two hundred at once, against limits that are enough for twenty."""

    def crowd(self, limits: Limits) -> tuple[list[Asked], list[int]]:
        """
        All of them ask at once; an answer takes half a second.

        :returns: they, and what was spent by and by.
        """
        ratios, sizes = TokenRatios(), ModelSizes({"m": (1000, 100)})
        spent, paid = [0], []

        def answered(reservation: Reservation) -> None:
            def settle() -> None:
                paid.append(1)
                spent.append(spent[-1] + COST)
                reservation.settle(COST, USAGE)

            self.clock.callLater(0.5, settle)

        asked = [
            self.ask(
                [key(limits), key(Limits(max_budget=PICO), "t1", "team")],
                Demand(
                    model="m", model_id="m", operation="Converse", body_length=len(BODY),
                    body_start=BODY, price=PRICE, ratios=ratios, sizes=sizes,
                ),
                answered,
            )
            for _ in range(200)
        ]  # fmt: skip
        for _ in range(300):
            self.clock.advance(0.1)
        self.assert_idle()
        self.assertEqual(len(paid), sum(one.state == "in" for one in asked))
        return asked, spent

    def test_budget(self) -> None:
        """A budget pays for what it pays for, and never for more."""
        asked, spent = self.crowd(Limits(max_budget=20 * COST))
        self.assertIn(len(spent) - 1, (19, 20))
        self.assertLessEqual(spent[-1], 20 * COST)
        refused = [one.error for one in asked if one.error is not None]
        self.assertEqual({type(error) for error in refused}, {BudgetExceeded})
        self.assertEqual(self.limiter.refused["budget"], len(refused))

    def test_rpm(self) -> None:
        """As many as the limit says."""
        _, spent = self.crowd(Limits(rpm=20))
        self.assertEqual(len(spent) - 1, 20)
        self.assertEqual(self.limiter.refused, {"rpm": 180})

    def test_parallel(self) -> None:
        """As many as the limit says at the same time."""
        asked, _ = self.crowd(Limits(max_parallel=20))
        self.assertEqual(self.states(asked).split().count("in"), 20)
        self.assertEqual(self.limiter.refused, {"parallel": 180})

    def test_tpm(self) -> None:
        """As many as there are tokens for."""
        _, spent = self.crowd(Limits(tpm=20 * 18))
        self.assertIn(len(spent) - 1, (19, 20))
        self.assertEqual(self.limiter.refused["tpm"], 201 - len(spent))


class WaitingTests(LimiterTestCase):
    """Who waits for what others have reserved."""

    def test_in_order(self) -> None:
        """The oldest first, and nobody past one who does not fit yet."""
        levels = [key(Limits(max_budget=100))]
        order: list[int] = []

        def ask(number: int, picousd: int) -> Asked:
            return self.ask(levels, fixed(picousd), lambda _: order.append(number))

        held = [self.take(levels, fixed(50)), self.take(levels, fixed(30))]
        asked = [ask(0, 90), ask(1, 20), ask(2, 10), ask(3, 5)]
        self.assertEqual(self.limiter.waiting, 4)
        held[0].settle(0, USAGE)
        self.assertEqual(self.states(asked), "waiting waiting waiting waiting")
        held[1].settle(0, USAGE)
        self.assertEqual(self.states(asked), "in waiting waiting waiting")
        assert asked[0].reservation is not None
        asked[0].reservation.settle(75, USAGE)
        self.assertEqual(self.states(asked), "in in waiting waiting")
        assert asked[1].reservation is not None
        asked[1].reservation.release()
        self.assertEqual(order, [0, 1, 2, 3])
        self.assertEqual(self.limiter.waiting, 0)

    def test_refused_when_spent(self) -> None:
        """When it turns out that the rest is spent, they are refused, all at once."""
        levels = [key(Limits(max_budget=100))]
        held = self.take(levels, fixed(60))
        asked = [self.ask(levels, fixed(50)) for _ in range(3)]
        held.settle(60, USAGE)
        self.assertEqual(self.states(asked), "BudgetExceeded BudgetExceeded BudgetExceeded")
        self.assertEqual(self.limiter.refused, {"budget": 3})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_too_long(self) -> None:
        """Who has waited long enough may try again; those behind are looked at."""
        self.limiter = self.new(wait_s=5.0)
        levels = [key(Limits(tpm=100))]
        held = self.take(levels, fixed(0, 5))
        self.take(levels, fixed(0, 60))
        large = self.ask(levels, fixed(0, 90))
        held.release()
        self.clock.advance(1)
        small = self.ask(levels, fixed(0, 10))
        self.clock.advance(3.9)
        self.assertEqual(self.states([large, small]), "waiting waiting")
        self.clock.advance(0.1)
        self.assertEqual(self.states([large, small]), "RateLimited in")
        assert isinstance(large.error, RateLimited)
        self.assertIn("It was waited for 5 s.", large.error.message)
        self.assertIn(": 60 of 100 a minute are", large.error.message)
        self.assertEqual(dict(large.error.headers)[b"Retry-After"], b"1")
        self.assertEqual(self.limiter.refused, {"reserved": 1})

    def test_too_many(self) -> None:
        """There is a bound for how many wait."""
        self.limiter = self.new(max_waiting=2)
        levels = [key(Limits(tpm=100))]
        self.take(levels, fixed(0, 100))
        asked = [self.ask(levels, fixed(0, 10)) for _ in range(3)]
        self.assertEqual(self.states(asked), "waiting waiting RateLimited")

    def test_time(self) -> None:
        """The minute that passes makes room, too."""
        self.start()
        levels = [key(Limits(tpm=100))]
        self.take(levels, fixed(0, 50)).settle(0, used(50))
        self.clock.pump([1] * 55)
        self.take(levels, fixed(0, 40))
        asked = self.ask(levels, fixed(0, 30))
        self.clock.pump([1] * 5)
        self.assertEqual(asked.state, "waiting")
        self.clock.pump([1] * 2)
        self.assertEqual(asked.state, "in")

    def test_cancelled(self) -> None:
        """A client that leaves while it waits leaves nothing, and holds nobody up."""
        levels = [key(Limits(max_budget=100, rpm=100, max_parallel=100))]
        held = self.take(levels, fixed(60))
        asked = [self.ask(levels, fixed(90)), self.ask(levels, fixed(40))]
        asked[0].deferred.cancel()
        self.assertEqual(self.states(asked), "CancelledError in")
        asked[1].reservation.release()  # type: ignore[union-attr]
        last = self.ask(levels, fixed(90))
        last.deferred.cancel()
        held.release()
        self.take(levels, fixed(100)).release()
        self.assert_idle()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled_when_let_in(self) -> None:
        """Nor does one that leaves in the moment in which it would be let in."""
        levels = [key(Limits(max_budget=100))]
        held = self.take(levels, fixed(90))
        asked: list[Asked] = []

        def cancel_second(_: Reservation) -> None:
            asked[1].deferred.cancel()

        asked.append(self.ask(levels, fixed(50), cancel_second))
        asked.append(self.ask(levels, fixed(50)))
        asked.append(self.ask(levels, fixed(50)))
        held.release()
        self.assertEqual(self.states(asked), "in CancelledError in")
        for one in asked:
            if one.reservation is not None:
                one.reservation.release()
        self.assert_idle()

    def test_not_recursive(self) -> None:
        """Thousands of requests that fail as soon as they are let in are no problem."""
        levels = [key(Limits(max_budget=100))]
        held = self.take(levels, fixed(60))
        asked = [
            self.ask(levels, fixed(60), lambda reservation: reservation.release())
            for _ in range(5000)
        ]
        held.settle(0, USAGE)
        self.assertEqual({one.state for one in asked}, {"in"})
        self.assert_idle()

    def test_no_herd(self) -> None:
        """An end wakes no more than can go on."""
        levels = [key(Limits(max_budget=100))]
        held = [self.take(levels, fixed(50)) for _ in range(2)]
        looked = 0

        class Counting(Fixed):
            def picousd(self) -> int | None:
                nonlocal looked
                looked += 1
                return 50

        asked = [self.ask(levels, fixed(kind=Counting)) for _ in range(1000)]
        looked = 0
        held[0].settle(0, USAGE)
        self.assertEqual(self.states(asked).split().count("in"), 1)
        self.assertEqual(looked, 2)

    def test_two_levels(self) -> None:
        """Who waited for one level and finds another full waits there, in its old turn."""
        team = key(Limits(max_budget=100), "t1", "team")
        mine, yours = key(Limits(max_budget=100)), key(Limits(max_budget=100), "k2")
        holds_mine = self.take([mine], fixed(60))
        first = self.ask([mine, team], fixed(80))
        holds_team = self.take([team], fixed(60))
        second = self.ask([yours, team], fixed(70))
        holds_mine.release()
        self.assertEqual(self.states([first, second]), "waiting waiting")
        holds_team.release()
        self.assertEqual(self.states([first, second]), "in waiting")
        self.assertEqual(self.limiter.waiting, 1)
        first.reservation.release()  # type: ignore[union-attr]
        self.assertEqual(self.states([first, second]), "in in")

    def test_better_known(self) -> None:
        """Who waits is estimated anew: what was learned meanwhile lets it in."""
        ratios, sizes = TokenRatios(), ModelSizes({"m": (10**6, 100)})
        body = json.dumps({"max_tokens": 10, "prompt": "x" * 1000}).encode()
        limiter_levels = [key(Limits(tpm=1500))]

        def ask() -> Asked:
            return self.ask(
                limiter_levels,
                Demand(
                    model="m", model_id="m", operation="InvokeModel", body_length=len(body),
                    body_start=body, price=PRICE, ratios=ratios, sizes=sizes,
                ),
            )  # fmt: skip

        asked = [ask() for _ in range(5)]
        self.assertEqual(self.states(asked), "in waiting waiting waiting waiting")
        asked[0].reservation.settle(1, Usage(200, 10, source=Source.BODY))  # type: ignore[union-attr]
        self.assertEqual(self.states(asked), "in in waiting waiting waiting")
        asked[1].reservation.settle(1, Usage(200, 10, source=Source.BODY))  # type: ignore[union-attr]
        self.assertEqual(self.states(asked), "in in in in waiting")

    def test_breaks(self) -> None:
        """A request that cannot be estimated is its own problem only."""
        levels = [key(Limits(max_budget=100))]
        held = self.take(levels, fixed(60))

        class Breaking(Fixed):
            broken = False

            def picousd(self) -> int | None:
                if self.broken:
                    raise RuntimeError("no")
                return 60

        asked = [self.ask(levels, fixed(kind=Breaking)), self.ask(levels, fixed(60))]
        Breaking.broken = True
        held.release()
        self.assertEqual(self.states(asked), "RuntimeError in")


class LedgerTests(LimiterTestCase):
    """What was spent is asked of the ledger."""

    def setUp(self) -> None:
        self.ledger = self.known = FakeLedger()
        super().setUp()

    def settle(self, reservation: Reservation, picousd: int, **values: Any) -> None:
        """As an exchange does it: in one turn with its entry."""
        self.known.spend(picousd, self.clock.seconds(), **values)
        reservation.settle(picousd, USAGE)

    def purse(self, kind: str = "key", name: str = "k1") -> Purse:
        purse = self.limiter._rooms._rooms[kind, name].purse
        assert purse is not None
        return purse

    def test_interface(self) -> None:
        """The fake is what the limiter expects."""
        ledger: ILedger = self.known
        self.assertIs(ledger, self.limiter._ledger)

    def test_first_use(self) -> None:
        """A budget begins with what the ledger knows of its period; that is asked once."""
        begin = NOW - 22 * DAY
        self.known.spend(50, NOW - 5)
        self.known.spend(1000, begin - 3 * DAY)
        self.known.spend(1000, NOW - 5, key_hash="other")
        self.known.held = []
        levels = [key(Limits(max_budget=100, budget_duration="1mo"))]
        asked = [self.ask(levels, fixed(30)) for _ in range(3)]
        self.assertEqual(self.states(asked), "waiting waiting waiting")
        self.assertEqual(
            self.known.asked,
            [Filters(key_hash="k1", since_us=MIDNIGHT_US - 21 * DAY_US)],
        )
        self.known.answer()
        self.assertEqual(self.states(asked), "in waiting waiting")
        self.settle(asked[0].reservation, 30)  # type: ignore[arg-type]
        self.assertEqual(self.states(asked), "in BudgetExceeded BudgetExceeded")
        self.assertEqual(len(self.known.asked), 1)

    def test_whose(self) -> None:
        """Each kind of level asks for its own."""
        models = Limits(models={"m": ModelLimits(max_budget=1)})
        budget = Limits(max_budget=1)
        for level, filters in [
            (key(budget), Filters(key_hash="k1", since_us=0)),
            (key(budget, "u1", "user"), Filters(user_id="u1", since_us=0)),
            (key(budget, "t1", "team"), Filters(team_id="t1", since_us=0)),
            (key(budget, "e1", "end_user"), Filters(end_user="e1", since_us=0)),
            (key(budget, "prod", "tag"), Filters(tag="prod", since_us=0)),
            (key(budget, "d1", "deployment"), Filters(deployment="d1", since_us=0)),
        ]:
            self.known.asked.clear()
            self.take([level], fixed(1))
            self.assertEqual(self.known.asked, [filters])
        members: list[tuple[Level, dict[str, Any]]] = [
            (key(budget, "t1/u/1", "team_member"), {"team_id": "t1", "user_id": "u/1"}),
            (key(models, "k2"), {"key_hash": "k2", "model": "m"}),
        ]
        for level, mine in members:
            self.known.asked.clear()
            self.take([level], fixed(1))
            # No running totals know these: of the past before yesterday it is asked apart.
            split = MIDNIGHT_US - DAY_US
            self.assertEqual(
                self.known.asked,
                [
                    Filters(**mine, since_us=0, until_us=split),
                    Filters(**mine, since_us=split),
                ],
            )

    def test_in_parts(self) -> None:
        """A period that began within a day is asked for in two parts, so that whole days
        come from running totals; the first, when it is long over, not each time."""
        start = int((NOW - 3 * DAY) * 1e6)
        split = MIDNIGHT_US - 2 * DAY_US
        levels = [key(Limits(max_budget=100, budget_start_us=start))]
        self.known.spend(10, NOW - 3 * DAY - 1)
        self.known.spend(20, NOW - 3 * DAY)
        self.known.spend(30, NOW - 2 * DAY)
        self.start()
        self.take(levels, fixed(40)).release()
        head = Filters(key_hash="k1", since_us=start, until_us=split)
        tail = Filters(key_hash="k1", since_us=split)
        self.assertEqual(self.known.asked, [head, tail])
        self.assertEqual(self.purse().total, 50)
        self.known.spend(5, NOW - 3 * DAY)  # Some process was down for long.
        for _ in range(90):
            self.take(levels, fixed(40)).release()
            self.clock.pump([1] * 10)
        self.assertEqual(self.known.asked.count(head), 2)
        self.assertEqual(self.known.asked.count(tail), 91)
        self.assertEqual(self.purse().total, 55)

    def test_began_today(self) -> None:
        """What began today, or yesterday, may still be going on: nothing of it is kept."""
        for days, parts in [(0, 1), (1, 2)]:
            start = int((NOW - days * DAY - 3600) * 1e6)
            self.known.asked.clear()
            self.limiter = self.new()
            levels = [key(Limits(max_budget=100, budget_start_us=start))]
            self.start()
            for _ in range(3):
                self.take(levels, fixed(50)).release()
                self.clock.pump([1] * 10)
            self.assertEqual(len(self.known.asked), 4 * parts)
            self.clock.rightNow = NOW

    def test_settled_meanwhile(self) -> None:
        """What is settled while the ledger is asked is neither lost nor held against anybody."""
        levels = [key(Limits(max_budget=100))]
        first, second = self.take(levels, fixed(40)), self.take(levels, fixed(40))
        self.start()
        self.known.held = []
        self.clock.pump([1] * 10)
        self.assertEqual(len(self.known.held), 1)
        self.settle(first, 40)
        # Its answer knows it already: for a moment it counts twice.
        self.known.answer()
        self.assertEqual((self.purse().total, self.purse().doubt), (40, 40))
        self.settle(second, 0)
        waits = self.ask(levels, fixed(60))
        self.assertEqual(waits.state, "waiting")
        # So the ledger is asked again, at once.
        self.assertEqual(len(self.known.held), 1)
        self.known.answer()
        self.assertEqual(waits.state, "in")
        self.assertEqual((self.purse().total, self.purse().doubt), (40, 0))

    def test_one_after_the_other(self) -> None:
        """However slow the ledger is, for what has got old it is asked one thing at a time."""
        levels = [[key(Limits(max_budget=100), f"k{number}")] for number in range(3)]
        for each in levels:
            self.take(each, fixed(1)).release()
        self.start()
        self.known.held = []
        self.clock.pump([1] * 12)
        for [level] in levels:
            if level.id != self.known.asked[-1].key_hash:
                self.take([level], fixed(1)).release()  # It is in use again meanwhile.
        for count in (1, 2, 3):
            self.clock.pump([1] * 12)
            self.assertEqual((len(self.known.asked), len(self.known.held)), (3 + count, 1))
            self.known.answer()
        self.assertEqual(len({one.key_hash for one in self.known.asked[3:]}), 3)

    def test_others_spend(self) -> None:
        """What other processes spend is seen within some seconds, while a budget is in use."""
        levels = [key(Limits(max_budget=100))]
        self.start()
        mine = self.take(levels, fixed(30))
        self.known.spend(60, NOW)
        self.assertEqual(self.purse().total, 0)
        self.clock.pump([1] * 10)
        self.assertEqual(self.purse().total, 60)
        self.assertEqual(self.states([self.ask(levels, fixed(41))]), "BudgetExceeded")
        self.assertEqual(self.states([self.ask(levels, fixed(20))]), "waiting")
        self.settle(mine, 30)
        self.assertEqual(self.purse().total, 90)
        self.clock.pump([1] * 30)
        self.assertEqual((self.purse().total, self.purse().doubt), (90, 0))

    def test_not_in_use(self) -> None:
        """Nobody asks for what nobody uses; when it is used again, the ledger is asked first."""
        levels = [key(Limits(max_budget=100))]
        self.start()
        self.take(levels, fixed(30)).release()
        self.clock.pump([1] * 300)
        self.assertEqual(len(self.known.asked), 2)
        self.known.spend(90, NOW)
        self.assertEqual(self.states([self.ask(levels, fixed(30))]), "BudgetExceeded")
        self.assertEqual(len(self.known.asked), 3)

    def test_down(self) -> None:
        """A budget of which nothing is known lets nobody in; one that was known goes on."""
        levels = [key(Limits(max_budget=100, budget_duration="1d"))]
        self.known.failure = DatabaseUnavailable("planted")
        asked = self.ask(levels, fixed(30))
        self.assertEqual(asked.state, "DatabaseUnavailable")
        self.assertEqual(asked.error.status, 503)  # type: ignore[union-attr]
        self.assertEqual(self.limiter.refused, {"unavailable": 1})
        self.known.failure = None
        self.settle(self.take(levels, fixed(30)), 30)
        self.known.failure = DatabaseUnavailable("planted")
        self.start()
        for _ in range(20):
            self.clock.pump([1] * 10)
            self.take(levels, fixed(70)).release()
        self.assertEqual(self.states([self.ask(levels, fixed(71))]), "BudgetExceeded")
        # Also into a new period.
        while self.clock.seconds() * 1e6 < MIDNIGHT_US + DAY_US:
            self.clock.advance(1800)
            self.take(levels, fixed(70)).release()
        self.take(levels, fixed(100)).release()
        self.known.failure = None
        self.known.spend(50, self.clock.seconds())
        self.take(levels, fixed(1)).release()
        self.clock.pump([1] * 40)
        self.take(levels, fixed(1)).release()
        self.assertEqual(self.purse().total, 50)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_down_for_many(self) -> None:
        """When several budgets cannot be asked for, one reason is told, and none logged."""
        levels = [key(Limits(max_budget=100)), key(Limits(max_budget=100), "t1", "team")]
        self.known.failure = DatabaseUnavailable("planted")
        asked = [self.ask(levels, fixed(30)) for _ in range(2)]
        self.known.failure, self.known.held = None, []
        asked.append(self.ask(levels, fixed(30)))
        asked.append(self.ask(levels, fixed(30)))
        asked[2].deferred.cancel()
        for _, deferred in self.known.held:
            deferred.errback(DatabaseUnavailable("planted"))
        self.assertEqual(
            self.states(asked),
            "DatabaseUnavailable DatabaseUnavailable CancelledError DatabaseUnavailable",
        )
        # Their tracebacks know everything that was there.
        asked.clear()
        self.known.held.clear()
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_soft_only_down(self) -> None:
        """A budget that only warns refuses nobody because the ledger is down."""
        self.known.failure = DatabaseUnavailable("planted")
        levels = [key(Limits(soft_budget=10))]
        self.settle(self.take(levels, fixed(30)), 30)
        self.take(levels, fixed(30)).release()
        self.assertEqual(len(self.known.asked), 1)
        self.known.failure = None
        told: list[int] = []
        self.limiter = self.new(on_soft_budget=lambda _, spent: told.append(spent))
        self.take(levels, fixed(1))
        self.assertEqual(told, [30])

    def test_fails(self) -> None:
        """A fault of the ledger's is one of the gateway's, and in the log."""
        self.known.failure = RuntimeError("planted")
        asked = self.ask([key(Limits(max_budget=1))], fixed(1))
        self.assertEqual(asked.state, "RuntimeError")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.known.failure = None
        self.take([key(Limits(max_budget=1))], fixed(1))

    def test_cancelled(self) -> None:
        """One that leaves while the ledger is asked takes nobody else along."""
        self.known.held = []
        levels = [key(Limits(max_budget=100))]
        asked = [self.ask(levels, fixed(30)) for _ in range(3)]
        asked[0].deferred.cancel()
        asked[2].deferred.cancel()
        self.known.answer()
        self.assertEqual(self.states(asked), "CancelledError in CancelledError")
        asked[1].reservation.release()  # type: ignore[union-attr]
        self.assert_idle()

    def test_waits_into_a_period(self) -> None:
        """Who waits while a period ends goes on in the next one."""
        self.start()
        midnight = (MIDNIGHT_US + DAY_US) / 1e6
        self.clock.rightNow = midnight - 2
        levels = [key(Limits(max_budget=100, budget_duration="1d"))]
        late = self.take(levels, fixed(60))
        waits = self.ask(levels, fixed(90))
        self.clock.pump([1] * 3)
        self.assertEqual(waits.state, "in")
        self.assertEqual(self.known.asked[-1].since_us, MIDNIGHT_US + DAY_US)
        late.settle(60, USAGE)
        self.assertEqual(self.purse().total, 0)
        waits.reservation.release()  # type: ignore[union-attr]
        self.assert_idle()

    def test_too_long_in_all(self) -> None:
        """Waiting for others and for the ledger together takes no longer than it may."""
        self.start()
        self.clock.rightNow = (MIDNIGHT_US + DAY_US) / 1e6 - 2
        levels = [key(Limits(max_budget=100, budget_duration="1d"))]
        self.take(levels, fixed(60))
        for room_left, state in [(True, "in"), (False, "RateLimited")]:
            self.known.held = None
            yesterday = self.purse()
            waits = self.ask(levels, fixed(90))
            self.known.held = []
            # A new period: it is asked what was spent, and that takes long.
            self.clock.pump([1] * 10)
            today = self.purse()
            self.assertIsNot(today, yesterday)
            self.assertEqual(waits.state, "waiting")
            taken = 0 if room_left else 60
            today.reserved += taken  # By somebody who was faster.
            self.known.answer()
            self.assertEqual(waits.state, state)
            self.clock.rightNow = today.end_s - 2

    def test_forgotten(self) -> None:
        """A level that was not used for an hour is forgotten; what it spent is not."""
        self.start()
        levels = [key(Limits(max_budget=100))]
        self.settle(self.take(levels, fixed(60)), 60)
        self.clock.pump([10] * 370)
        self.assertEqual(self.limiter.levels, 0)
        self.assertEqual(self.states([self.ask(levels, fixed(60))]), "BudgetExceeded")

    def test_stops(self) -> None:
        """A stop waits for what the ledger was asked, and leaves no timer."""
        self.limiter.startService()
        self.known.held = []
        asked = self.ask([key(Limits(max_budget=100))], fixed(60))
        stopped = self.limiter.stopService()
        self.assertNoResult(stopped)
        self.known.answer()
        self.successResultOf(stopped)
        self.assertEqual(asked.state, "in")
        self.assertEqual(self.clock.getDelayedCalls(), [])


class RealLedgerTests(OnSqlite, StorageTestCase):
    """With a ledger and a database."""

    async def test_spent(self) -> None:
        """What was spent before, through this process and through others, counts."""
        now = ledger_entry().started_us / 1e6
        ledger = self.ledger(self.new_url(), wall_clock=lambda: now)
        levels = [
            Level("key", "k1", "ci", Limits(max_budget=100, budget_duration="1mo")),
            Level("team_member", "t1/u1", "u1", Limits(max_budget=90)),
            Level("key", "k2", "", Limits(models={"my-nova": ModelLimits(max_budget=80)})),
        ]

        def record(number: int, picousd: int, **values: str) -> None:
            who = {"key_hash": "k1", "team_id": "t1", "user_id": "u1", **values}
            ledger.record(ledger_entry(number, cost_picousd=picousd, **who))

        record(0, 50)
        record(1, 1000, key_hash="k3", user_id="u3")
        await ledger.flush()
        record(2, 20)

        def limiter() -> Limiter:
            return Limiter(ledger, self.clock(now), lambda: now)

        one = limiter()
        reservation = await one.reserve(levels[:1], fixed(30))
        with self.assertRaises(BudgetExceeded):
            await one.reserve(levels[:1], fixed(31))
        record(3, 25)
        reservation.settle(25, USAGE)
        await one.reserve(levels[:1], fixed(5))
        # Another process, which has seen none of it.
        await ledger.flush()
        for level, left in [(levels[0], 5), (levels[1], -5), (levels[2], 80)]:
            with self.assertRaises(BudgetExceeded):
                await limiter().reserve([level], fixed(max(left, 0) + 1, model="my-nova"))
            if left > 0:
                await limiter().reserve([level], fixed(left, model="my-nova"))

    async def test_reloaded(self) -> None:
        """What another process spends is seen."""
        now = ledger_entry().started_us / 1e6
        ledger = self.ledger(self.new_url(), wall_clock=lambda: now)
        clock = self.clock(now)
        one = Limiter(ledger, clock, lambda: now, reload_s=1.0)
        one.startService()
        level = Level("team", "t1", "", Limits(max_budget=100))
        (await one.reserve([level], fixed(60))).release()
        ledger.record(ledger_entry(0, cost_picousd=50, team_id="t1"))
        clock.advance(1)
        await until(lambda: not one._loads)
        with self.assertRaises(BudgetExceeded):
            await one.reserve([level], fixed(60))
        await one.stopService()

    def clock(self, now: float) -> Clock:
        clock = Clock()
        clock.advance(now)
        return clock


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.integers(0, 3), st.integers(0, 70), st.integers(0, 70)),
        st.tuples(st.just("settle"), st.integers(0, 30), st.floats(0, 1), st.floats(0, 1)),
        st.tuples(st.just("release"), st.integers(0, 30), st.just(0), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0), st.just(0)),
        st.tuples(st.just("step"), st.floats(0.1, 15), st.just(0), st.just(0)),
        st.tuples(st.just("answer"), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("other"), st.integers(0, 1), st.integers(0, 30), st.just(0)),
    ),
    max_size=80,
)


class PropertyTests(LimiterTestCase):
    """Whatever happens in whatever order."""

    @settings(max_examples=100, deadline=None)
    @given(OPERATIONS, st.booleans())
    def test_never_over(
        self, operations: list[tuple[str, float, float, float]], slow: bool
    ) -> None:
        """
        No budget is passed by what this process spends and has reserved, nobody waits
        for ever, and when all is over nothing is left.
        """
        self.ledger = ledger = FakeLedger()
        ledger.held = [] if slow else None
        self.setUp()
        self.limiter.startService()
        keys = [
            key(Limits(max_budget=200, tpm=150, rpm=8, budget_duration="3m"), f"k{number}")
            for number in range(2)
        ]
        team = key(Limits(max_budget=300, tpm=200, max_parallel=6), "t", "team")
        asked: list[tuple[Asked, int, float]] = []
        over: set[int] = set()

        def own(number: int) -> int:
            """Spent by this process in the period, and reserved."""
            period = self.clock.seconds() // 180 * 180
            total = 0
            for index, (one, whose, _) in enumerate(asked):
                if whose == number and one.reservation is not None and index not in over:
                    purse = one.reservation._taken.holds[0][6]
                    if purse is not None and purse.begin_us == period * 1e6:
                        total += one.reservation._taken.picousd
            return total + sum(
                entry.cost_picousd or 0
                for entry in ledger.entries
                if entry.key_hash == f"k{number}" and not entry.user_id
                and entry.started_us >= period * 1e6
            )  # fmt: skip

        for operation, which, a, b in operations:
            index = int(which) % len(asked) if asked else 0
            if operation == "step":
                self.clock.advance(which)
            elif operation == "answer" and slow:
                ledger.answer()
            elif operation == "other":
                ledger.spend(int(a), self.clock.seconds(), key_hash=f"k{int(which)}",
                             user_id="other", team_id="t")  # fmt: skip
            elif operation == "ask":
                number = int(which) % 2
                one = self.ask([keys[number], team], fixed(int(a), int(b)))
                asked.append((one, number, self.clock.seconds()))
            elif asked and operation == "cancel":
                asked[index][0].deferred.cancel()
            elif asked and (reservation := asked[index][0].reservation) is not None:
                if index in over:
                    continue
                over.add(index)
                taken = reservation._taken
                if operation == "release":
                    reservation.release()
                else:
                    cost = int(taken.picousd * a)
                    ledger.spend(cost, taken.second, key_hash=f"k{asked[index][1]}", team_id="t")
                    reservation.settle(cost, used(int(taken.tokens * b)))
            for number in (0, 1):
                self.assertLessEqual(own(number), 200)
        for index, (one, _, _) in enumerate(asked):
            if one.reservation is not None and index not in over:
                one.reservation.release()
        # Nobody waits longer than he may, however little happens.
        self.clock.advance(10)
        if slow:
            held, ledger.held = ledger.held or [], None
            for filters, deferred in held:
                deferred.callback([ledger.total(filters)])
        self.clock.advance(10)
        self.assertEqual([one.state for one, _, _ in asked].count("waiting"), 0)
        for one, _, _ in asked:
            if one.reservation is not None:
                one.reservation.release()
        self.assert_idle()
        self.assertEqual(self.limiter.stopService().result, None)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancelled_error(self) -> None:
        """Cancelling is told as Twisted tells it."""
        levels = [key(Limits(max_budget=10))]
        self.take(levels, fixed(10))
        asked = self.ask(levels, fixed(10))
        asked.deferred.cancel()
        self.assertIsInstance(asked.error, CancelledError)
