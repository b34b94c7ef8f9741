"""
Finds what holds the reactor: everything else waits meanwhile.

Note [How it is measured]
=========================

A thread that looks at a heartbeat is blind to short stalls, and a heartbeat of the
reactor's sees the sum of many callbacks, now and then, and wakes an idle process. So
the reactor gets a turn of its loop from here, which waits for events and has each
handled as its own does, and looks at the clock before and after: that is the time of
one callback, for 0.1 us. Calls that are due, and those that threads have sent, are one
time together for each turn.

The reactor's own makes a log context around each event besides, which costs more than
the looking: what names its source there are Twisted's lines of old, and it is known
where they come from.

Time on the clock says nothing of why. The CPU time of this thread and of the whole
process is read every few milliseconds (each costs more than all the rest), and once more
when something took long. What took long is then this thread's own work, or that of other
threads, which hold Python's lock or the only core, or neither: then the machine was
busy, or the disk slow.

Before poll returns, the thread has to get Python's lock back. What it waits for it
is seen where poll was to return for the sake of a call that was due.

Note [Those who have gone]
==========================

Where ten thousand clients go at once, as when a load balancer in front is restarted, epoll
tells all of it at once, and to be rid of a connection takes 30 us and more: everybody else
would wait for a third of a second. So epoll is asked for who has gone besides
(``EPOLLRDHUP``), and in a crowd they come last, a few in each turn. It tells of the others
again.
"""

from __future__ import annotations

import select
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import HistogramMetricFamily
from twisted.application.service import Service
from twisted.logger import Logger
from twisted.python import log

__all__ = ["CAUSES", "STALL_S", "Stalls"]

STALL_S = 0.005
"""What takes so long is a stall."""

CAUSES = ("callback", "threads", "machine")
"""Where most of the time of a stall went: CPU of the reactor's thread, CPU of other threads
of this process, neither."""

_WARNED_S = 0.1
_WARN_EVERY_S = 10.0
_READ_CPU_EVERY_S = 0.002
_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

_NEVER = float("inf")

_CROWD = 128
_MOST_GONE = 64
_GONE = 0x2018  # EPOLLRDHUP, EPOLLHUP and EPOLLERR, which are Linux's

Turn = Callable[[float | None], None]


class Stalls(Service):
    """
    Counts what holds a reactor for :data:`STALL_S` and longer, and warns of the longest.

    Only epoll's reactor can be watched, the usual one on Linux; beside another this
    does nothing, and has no figures.

    :param clock: seconds that never go back.
    :param own_cpu: seconds of CPU of the thread that asks; :param all_cpu: of the process.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        clock: Callable[[], float] = time.perf_counter,
        own_cpu: Callable[[], float] = time.thread_time,
        all_cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self._reactor = reactor
        self._clock = clock
        self._own_cpu = own_cpu
        self._all_cpu = all_cpu
        self._counts = {cause: [0] * (len(_SECONDS) + 1) for cause in CAUSES}
        self._totals = dict.fromkeys(CAUSES, 0.0)
        self._turn: Turn | None = None
        self._warned_at = -_NEVER
        self._unsaid = 0
        self.read_cpu_at = -_NEVER
        self._own_before = self._all_before = 0.0

    def startService(self) -> None:
        Service.startService(self)
        reactor = self._reactor
        if sys.platform == "linux" and isinstance(getattr(reactor, "_poller", None), select.epoll):
            self._turn = reactor.doIteration = _watched(reactor, self, self._clock)
            _tell_who_has_gone(True)

    def stopService(self) -> None:
        Service.stopService(self)
        turn, self._turn = self._turn, None
        if turn is not None:
            _tell_who_has_gone(False)
        if turn is not None and self._reactor.doIteration is turn:
            # The one of its class is left.
            del self._reactor.doIteration

    def count(self, cause: str) -> int:
        """How many there have been."""
        return sum(self._counts[cause])

    def metrics(self) -> Iterator[HistogramMetricFamily]:
        """The same by how long they took."""
        if self._turn is None:
            return
        family = HistogramMetricFamily(
            "txbedrock_reactor_stall_seconds",
            f"What held the reactor for {STALL_S * 1e3:g} ms or longer, by where the time went:"
            " the CPU of one callback, of other threads, or neither (the machine was busy)",
            labels=("cause",),
        )
        for cause, counts in self._counts.items():
            buckets, running = [], 0
            for bound, count in zip((*_SECONDS, "+Inf"), counts, strict=True):
                running += count
                buckets.append((str(bound), float(running)))
            family.add_metric((cause,), buckets, self._totals[cause])
        yield family

    # What the watched turn calls.

    def read_cpu(self, now: float) -> None:
        """What has been used up to here is not what comes next has used."""
        self.read_cpu_at = now + _READ_CPU_EVERY_S
        self._own_before, self._all_before = self._own_cpu(), self._all_cpu()

    def stalled(self, now: float, took_s: float, fd: int | None) -> None:
        """
        Something took long, until now.

        :param fd: who had an event; None: calls that were due, -1: poll itself.
        """
        own_s = self._own_cpu() - self._own_before
        others_s = self._all_cpu() - self._all_before - own_s
        # Of what was used since the CPU was read some may be of what was before.
        own_s = min(max(own_s, 0.0), took_s)
        others_s = min(max(others_s, 0.0), took_s - own_s)
        shares = (own_s, others_s, took_s - own_s - others_s)
        cause = CAUSES[shares.index(max(shares))]
        self._counts[cause][bisect_left(_SECONDS, took_s)] += 1
        self._totals[cause] += took_s
        if took_s >= _WARNED_S:
            self._warn(now, took_s, fd, own_s, others_s)
        self.read_cpu(self._clock())

    def _warn(
        self, now: float, took_s: float, fd: int | None, own_s: float, others_s: float
    ) -> None:
        self._unsaid += 1
        if now < self._warned_at + _WARN_EVERY_S:
            return
        self._warned_at = now
        count, self._unsaid = self._unsaid, 0
        self._log.warn(
            "nothing else could be done for {took_ms:.0f} ms: {what} ({own_ms:.0f} ms of CPU"
            " itself, {others_ms:.0f} ms of other threads); {count} so long since the last such"
            " line",
            took_ms=took_s * 1e3,
            own_ms=own_s * 1e3,
            others_ms=others_s * 1e3,
            what=self._shown(fd),
            count=count,
        )

    def _shown(self, fd: int | None) -> str:
        if fd is None:
            return "calls that were due"
        if fd < 0:
            return "waiting for Python's lock"
        try:
            return f"an event of {self._reactor._selectables[fd].logPrefix()}"
        except Exception:
            return "an event of a connection that is closed by now"


def _tell_who_has_gone(told: bool) -> None:
    """Whether epoll tells it of sockets that are read from now on."""
    # Where there is no epoll, there is no such module.
    from twisted.internet import epollreactor

    epollreactor.EPOLLIN = select.EPOLLIN | (select.EPOLLRDHUP if told else 0)


def _gone_last(events: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """See Note [Those who have gone]."""
    gone = [event for event in events if event[1] & _GONE]
    if len(gone) <= _MOST_GONE:
        return events
    return [event for event in events if not event[1] & _GONE] + gone[:_MOST_GONE]


def _watched(reactor: Any, stalls: Stalls, clock: Callable[[], float]) -> Turn:
    """:returns: a turn of the loop of epoll's reactor."""
    # Variables of a closure, since this runs all the time.
    poll, selectables, handle = (
        reactor._poller.poll,
        reactor._selectables,
        reactor._doReadOrWrite,
    )
    since = _NEVER

    def turn(timeout: float | None) -> None:
        nonlocal since
        before = clock()
        if before - since >= STALL_S:
            stalls.stalled(before, before - since, None)
            before = clock()
        since = _NEVER
        try:
            events = poll(-1 if timeout is None else timeout, len(selectables))
        except InterruptedError:
            return
        now = clock()
        if timeout is not None and now - before - timeout >= STALL_S:
            stalls.stalled(now, now - before - timeout, -1)
            now = clock()
        elif now >= stalls.read_cpu_at:
            stalls.read_cpu(now)
        if len(events) > _CROWD:
            events = _gone_last(events)
        for fd, event in events:
            selectable = selectables.get(fd)
            if selectable is None:
                # Another one of this turn has ended it.
                continue
            try:
                handle(selectable, fd, event)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:
                log.err()
            began, now = now, clock()
            # Which is so after every stall.
            if now >= stalls.read_cpu_at:
                if now - began >= STALL_S:
                    stalls.stalled(now, now - began, fd)
                    now = clock()
                else:
                    stalls.read_cpu(now)
        since = now

    return turn
