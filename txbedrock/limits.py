"""
Limits and budgets within one process: who finds room, who waits, who is refused.

What is decided is :mod:`txbedrock.core.limits`'s. Here are the time, the queues, and
the ledger, which knows what was spent before this process began and beside it.
"""

from __future__ import annotations

import time
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.logger import Logger
from twisted.python.failure import Failure

from txbedrock.core.demand import Demand
from txbedrock.core.entries import DAY_US, Filters
from txbedrock.core.grants import Level
from txbedrock.core.headers import HeaderList
from txbedrock.core.limits import (
    LATEST,
    Load,
    Purse,
    Rooms,
    Taken,
    Tokens,
    Wait,
    still_reserved,
)
from txbedrock.core.money import picousd_as_usd
from txbedrock.core.usage import Usage
from txbedrock.errors import ProxyError
from txbedrock.interfaces import ILedger

__all__ = ["Limiter", "Reservation"]

# Note [What others spend]
# ------------------------
# A purse in use is loaded again every few seconds, so what other processes record in
# the same ledger is seen that late, and they may together pass a budget by what they
# spend meanwhile. What this process has reserved is on top of what is loaded.
#
# A reservation has to be settled in the turn of the reactor in which its entry was
# given to the ledger, and after that: whom it lets in may ask the ledger at once.
# What is settled before the ledger is asked is then in its answer; what is settled
# while it is asked may be, and is counted besides (core.limits, Note [A budget is a
# cap]).
#
# A whole day is cheap to ask for, from running totals; a part of one, one model and
# one member of a team are summed up line by line. So the time since a period began
# is asked for in two parts: a head, up to the first midnight or, where there are no
# running totals, to that of the day before; and the rest. A head that ended more
# than a day ago is kept for _HEAD_S: nothing in flight can have begun in it.

_TICK_S = 1.0
_HEAD_S = 600.0
_DAY_S = DAY_US / 1e6


class _Waiter:
    """A request that waits for what others have reserved."""

    __slots__ = ("deferred", "expired", "levels", "need", "outcome", "ticket", "timer", "wait")

    def __init__(self, levels: Sequence[Level], need: Demand) -> None:
        self.levels = levels
        self.need = need
        self.ticket = LATEST
        self.wait: Wait | None = None  # where it is queued
        self.outcome: Taken | Load | Exception | None = None
        self.deferred: Deferred[Taken | Load] | None = None
        self.timer: Any = None
        self.expired = False

    def __lt__(self, other: _Waiter) -> bool:
        return self.ticket < other.ticket

    def fire(self) -> None:
        """Go on, unless its client has left."""
        deferred, outcome = self.deferred, self.outcome
        assert deferred is not None
        if deferred.called:
            return
        self.deferred = self.outcome = None
        if isinstance(outcome, Exception):
            deferred.errback(Failure(outcome))
        else:
            assert outcome is not None
            deferred.callback(outcome)


class Reservation(msgspec.Struct, eq=False):
    """
    Room that a request has. To be settled or released, whatever becomes of it; the
    first of it counts.
    """

    _limiter: Limiter
    _taken: Taken
    _demand: Demand
    _over: bool = False

    def settle(self, picousd: int | None, usage: Usage) -> None:
        """
        The request is over, and the ledger has got its entry in this turn of the reactor.

        :param picousd: what it cost; None: that is not known, and as much counts as
            was reserved.
        :param usage: the same for tokens, if its source is not known.
        """
        if not self._over:
            self._over = True
            self._limiter._settle(self._taken, self._demand, picousd, usage)

    def release(self) -> None:
        """Nothing was sent, so nothing counts: neither the request nor its tokens."""
        if not self._over:
            self._over = True
            self._limiter._release(self._taken)

    def output_tokens(self) -> int:
        """How many tokens of an answer there is room for."""
        return self._demand.output_tokens()

    def let_go(self) -> None:
        """The answer has begun: only how it ends is still to be told."""
        self._demand.let_go()

    def headers(self, picousd: int | None = None) -> HeaderList:
        """
        What the answer says of the limits; may be asked before and after it is settled.

        :param picousd: what the request cost, if that is known before it is settled.
        """
        return self._taken.headers(self._limiter._now(), 0 if self._over else picousd or 0)


class Limiter(Service):
    """
    Lets requests in as limits and budgets allow.

    Works without being started, but then does not see what others spend, and forgets
    no level for its age.

    :param ledger: knows what was spent; None: budgets count from now on.
    :param reactor: for timers.
    :param wall_clock: POSIX seconds.
    :param wait_s: how long a request may wait for what others in flight have reserved.
    :param max_waiting: how many may.
    :param reload_s: how often the ledger is asked again for the budgets in use.
    :param idle_s: levels that were not used for so long are forgotten.
    :param max_levels: how many are known at once.
    :param allow_unpriced: whether who has a budget may use what has no price.
    :param on_soft_budget: is told of each soft budget that is reached, once a period,
        and how much was spent (pico-USD).
    """

    _log = Logger()

    def __init__(
        self,
        ledger: ILedger | None,
        reactor: Any,
        wall_clock: Callable[[], float] = time.time,
        *,
        wait_s: float = 10.0,
        max_waiting: int = 10_000,
        reload_s: float = 10.0,
        idle_s: float = 3600.0,
        max_levels: int = 100_000,
        allow_unpriced: bool = False,
        on_soft_budget: Callable[[Level, int], None] | None = None,
    ) -> None:
        self._ledger = ledger
        self._reactor = reactor
        self._now = wall_clock
        self._wait_s = wait_s
        self._max_waiting = max_waiting
        self._reload_s = reload_s
        self._idle_s = idle_s
        self._on_soft_budget = on_soft_budget
        self._rooms = Rooms(
            max_levels=max_levels,
            lasting=ledger is None,
            allow_unpriced=allow_unpriced,
            stale_s=3 * reload_s,
        )
        self._queues: dict[Tokens | Purse, list[_Waiter]] = {}
        self._tickets = 0
        self._due: deque[Tokens | Purse] = deque()
        self._serving = False
        self._loads: dict[Purse, list[Deferred[None]]] = {}
        self._tick_timer: Any = None
        self._reload_at = 0.0
        self._reloading = False

        self.waiting = 0
        """How many requests wait now."""

        self.refused: Counter[str] = Counter()
        """How many were refused: ``rpm``, ``tpm``, ``parallel``, ``budget``,
        ``reserved`` (waited too long), ``unpriced``, ``unavailable`` (the ledger)."""

        self.unknown_costs = 0
        """How many were settled at a cost that is not known."""

    @property
    def levels(self) -> int:
        """How many levels are known."""
        return len(self._rooms)

    async def reserve(self, levels: Sequence[Level], demand: Demand) -> Reservation:
        """
        Take room for a request at all levels, or at none. Nearly always at once.

        It may be cancelled; then nothing is taken.

        :raises RateLimited: a limit is reached.
        :raises BudgetExceeded: a budget is spent, or has too little left.
        :raises BudgetUnpriced: what is asked for has no price, and a level has a budget.
        :raises ProxyError: 503: what was spent is not known.
        """
        try:
            taken = self._rooms.reserve(levels, demand, self._now())
            if type(taken) is not Taken:
                taken = await self._patiently(levels, demand, taken)
        except ProxyError as error:
            self.refused[getattr(error, "reason", "unavailable")] += 1
            raise
        if self._rooms.unloaded:
            unloaded, self._rooms.unloaded = self._rooms.unloaded, []
            for purse in unloaded:
                self._load(purse)
        return Reservation(self, taken, demand)

    # Settling.

    def _settle(self, taken: Taken, demand: Demand, picousd: int | None, usage: Usage) -> None:
        if not taken.holds:
            return
        if picousd is None:
            self.unknown_costs += 1
        self._rooms.settle(taken, demand.used(usage), picousd, self._now())
        demand.learn(usage)
        self._freed(taken)

    def _release(self, taken: Taken) -> None:
        self._rooms.release(taken)
        self._freed(taken)

    def _freed(self, taken: Taken) -> None:
        if self._rooms.reached:
            self._warn()
        if self._queues:
            for *_, window, purse in taken.holds:
                self._serve(one for one in (window, purse) if one is not None)

    def _warn(self) -> None:
        reached, self._rooms.reached = self._rooms.reached, []
        for purse in reached:
            level = purse.level
            self._log.warn(
                "the soft budget of {kind} {label} is reached: {spent} of {soft} USD",
                kind=level.kind,
                label=level.label or level.id,
                spent=picousd_as_usd(purse.total),
                soft=picousd_as_usd(purse.soft or 0),
            )
            if self._on_soft_budget is not None:
                try:
                    self._on_soft_budget(level, purse.total)
                except Exception:
                    self._log.failure("the hook for soft budgets failed")

    # Waiting.

    async def _patiently(
        self, levels: Sequence[Level], demand: Demand, outcome: Taken | Wait | Load
    ) -> Taken:
        waiter = _Waiter(levels, demand)
        try:
            while True:
                if isinstance(outcome, Wait):
                    outcome = await self._wait(waiter, outcome)
                if isinstance(outcome, Taken):
                    return outcome
                if isinstance(outcome, Load):
                    await self._all_loaded(outcome.purses)
                outcome = self._rooms.reserve(levels, demand, self._now(), waiter.ticket)
        finally:
            if waiter.timer is not None and waiter.timer.active():
                waiter.timer.cancel()

    def _wait(self, waiter: _Waiter, wait: Wait) -> Deferred[Taken | Load]:
        """:returns: what became of it; after a load it has to try again."""
        if waiter.expired or self.waiting >= self._max_waiting:
            raise still_reserved(wait, self._wait_s if waiter.expired else 0.0)
        if waiter.timer is None:
            self._tickets = waiter.ticket = self._tickets + 1
            waiter.timer = self._reactor.callLater(self._wait_s, self._expire, waiter)
        deferred = waiter.deferred = Deferred(lambda _: self._leave(waiter))
        self._enqueue(waiter, wait)
        self._clear_doubt(wait.on)
        return deferred

    def _enqueue(self, waiter: _Waiter, wait: Wait) -> None:
        waiter.wait = wait
        queue = self._queues.setdefault(wait.on, [])
        insort(queue, waiter)
        wait.on.barrier = queue[0].ticket
        self.waiting += 1

    def _dequeue(self, waiter: _Waiter) -> Tokens | Purse | None:
        """:returns: what it waited for; None: it did not."""
        if waiter.wait is None:
            return None
        on = waiter.wait.on
        waiter.wait = None
        queue = self._queues[on]
        queue.remove(waiter)
        if queue:
            on.barrier = queue[0].ticket
        else:
            on.barrier = LATEST
            del self._queues[on]
        self.waiting -= 1
        return on

    def _leave(self, waiter: _Waiter) -> None:
        """Its client has left."""
        on, outcome = self._dequeue(waiter), waiter.outcome
        if isinstance(outcome, Taken):
            self._release(outcome)
        if on is not None:
            self._serve((on,))

    def _expire(self, waiter: _Waiter) -> None:
        waiter.expired = True
        wait = waiter.wait
        if wait is None:
            return  # Another thing holds it up at the moment.
        self._dequeue(waiter)
        waiter.outcome = still_reserved(wait, self._wait_s)
        waiter.fire()
        self._serve((wait.on,))

    def _serve(self, freed: Iterable[Tokens | Purse]) -> None:
        """Let in who waits for these, in order, as far as there is room."""
        self._due.extend(one for one in freed if one in self._queues)
        if self._serving:
            return  # By somebody who was let in, and is over already.
        self._serving = True
        try:
            while self._due:
                for waiter in self._let_in(self._due.popleft()):
                    waiter.fire()
        finally:
            self._serving = False

    def _let_in(self, on: Tokens | Purse) -> list[_Waiter]:
        """:returns: those who need not wait for it any more."""
        queue = self._queues.get(on)
        gone: list[_Waiter] = []
        while queue:
            waiter = queue[0]
            outcome: Taken | Wait | Load | Exception
            try:
                outcome = self._rooms.reserve(
                    waiter.levels, waiter.need, self._now(), waiter.ticket
                )
            except Exception as error:
                outcome = error
            if isinstance(outcome, Wait) and outcome.on is on:
                waiter.wait = outcome
                break
            self._dequeue(waiter)
            if isinstance(outcome, Wait):
                self._enqueue(waiter, outcome)
                self._clear_doubt(outcome.on)
            else:
                waiter.outcome = outcome
                gone.append(waiter)
        return gone

    # What was spent.

    def _clear_doubt(self, on: Tokens | Purse) -> None:
        """Somebody waits: if it may be for nothing, find out."""
        if isinstance(on, Purse) and on.doubt:
            self._load(on)

    def _load(self, purse: Purse, deferred: Deferred[None] | None = None) -> None:
        """
        Ask the ledger what was spent, unless it is being asked.

        :param deferred: fires when it has answered.
        """
        waiting = self._loads.get(purse)
        known = waiting is not None
        if waiting is None:
            waiting = self._loads[purse] = []
        if deferred is not None:
            waiting.append(deferred)
        if not known:
            Deferred.fromCoroutine(self._ask(purse))

    def _loaded(self, purse: Purse) -> Deferred[None]:
        """Fires when the purse is loaded. May be cancelled: others may wait for it too."""
        loaded: Deferred[None] = Deferred()
        self._load(purse, loaded)
        return loaded

    async def _all_loaded(self, purses: Sequence[Purse]) -> None:
        loads = [self._loaded(purse) for purse in purses]
        try:
            for loaded in loads:
                await loaded
        finally:
            for loaded in loads:
                loaded.addErrback(_nothing)  # One reason is enough.

    async def _ask(self, purse: Purse) -> None:
        purse.begin_load(self._now())
        spent, failure = None, None
        try:
            spent = await self._spent(purse)
        except ProxyError:
            failure = Failure()
        except Exception:
            failure = Failure()
            self._log.failure("what was spent cannot be found out", failure)
        purse.end_load(spent, self._now())
        for deferred in self._loads.pop(purse):
            if deferred.called:
                continue  # Its client has left, just now.
            if purse.loaded or failure is None:
                deferred.callback(None)
            else:
                deferred.errback(failure)
        if purse.reaches_soft():
            self._rooms.reached.append(purse)
            self._warn()
        self._serve((purse,))

    async def _spent(self, purse: Purse) -> int:
        """See Note [What others spend]."""
        now, begin_us = self._now(), purse.begin_us
        running = not purse.model and purse.level.kind != "team_member"
        today_us = int(now * 1e6) // DAY_US * DAY_US
        split_us = -(-begin_us // DAY_US) * DAY_US if running else today_us - DAY_US
        if not begin_us < split_us <= today_us:
            return await self._sum(purse, begin_us, None)
        head = purse.head
        settled = now - split_us / 1e6 >= _DAY_S
        if head is None or head[0] != split_us or not settled or now - head[2] >= _HEAD_S:
            early = await self._sum(purse, begin_us, split_us)
            head = purse.head = (split_us, early, now)
        return head[1] + await self._sum(purse, split_us, None)

    async def _sum(self, purse: Purse, since_us: int, until_us: int | None) -> int:
        assert self._ledger is not None
        filters = _filters(purse, since_us, until_us)
        return sum(one.cost_picousd for one in await self._ledger.totals("all", filters))

    # Time.

    def startService(self) -> None:
        Service.startService(self)
        self._reload_at = self._reactor.seconds() + self._reload_s
        self._tick_timer = self._reactor.callLater(_TICK_S, self._tick)

    def stopService(self) -> Deferred[None]:
        """Ask the ledger nothing more; fires when it has answered what it was asked."""
        Service.stopService(self)
        if self._tick_timer is not None and self._tick_timer.active():
            self._tick_timer.cancel()
        self._tick_timer = None
        answered = [self._loaded(purse) for purse in list(self._loads)]
        return DeferredList(answered, consumeErrors=True).addCallback(lambda _: None)

    def _tick(self) -> None:
        self._tick_timer = self._reactor.callLater(_TICK_S, self._tick)
        # The minute moves on, and with it the windows.
        for on in list(self._queues):
            self._clear_doubt(on)
        self._serve(list(self._queues))
        if self._reactor.seconds() >= self._reload_at:
            self._reload_at = self._reactor.seconds() + self._reload_s
            self._rooms.forget(self._now() - self._idle_s)
            if self._ledger is not None and not self._reloading:
                Deferred.fromCoroutine(self._reload())

    async def _reload(self) -> None:
        """One after the other, so that the ledger has time for others."""
        self._reloading = True
        try:
            used, self._rooms.used = self._rooms.used, set()
            while used and self.running:
                purse = used.pop()
                if self._now() >= purse.end_s:
                    continue
                try:
                    await self._loaded(purse)
                except Exception as error:
                    # The ledger says what is wrong with it; it is asked again later.
                    self._log.debug("a budget is not loaded: {error}", error=error)
        finally:
            self._reloading = False


def _nothing(failure: Failure) -> None:
    """Somebody was told of it already."""


def _filters(purse: Purse, since_us: int, until_us: int | None) -> Filters:
    """What of the ledger a purse is about."""
    kind, name = purse.level.kind, purse.level.id
    key = user = team = end_user = tag = deployment = None
    if kind == "key":
        key = name
    elif kind == "user":
        user = name
    elif kind == "team":
        team = name
    elif kind == "team_member":
        team, _, user = name.partition("/")
    elif kind == "end_user":
        end_user = name
    elif kind == "tag":
        tag = name
    else:
        deployment = name
    return Filters(
        key_hash=key,
        user_id=user,
        team_id=team,
        end_user=end_user,
        model=purse.model or None,
        tag=tag,
        deployment=deployment,
        since_us=since_us,
        until_us=until_us,
    )
