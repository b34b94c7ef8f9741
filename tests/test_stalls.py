"""
Tests for L{txbedrock.stalls}: what holds the reactor is seen, and why.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import LoopingCall, deferLater
from twisted.internet.tcp import Server
from twisted.logger import LogLevel, capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.fakes import until
from txbedrock.stalls import _CROWD, _MOST_GONE, CAUSES, Stalls, _watched

Work = Callable[[], None]

READABLE = select.EPOLLIN if sys.platform == "linux" else 1


class Machine:
    """Clocks that move when something is done."""

    def __init__(self) -> None:
        self.now = 100.0
        self.own = self.all = 0.0

    def work(self, own_ms: float = 0.0, others_ms: float = 0.0, idle_ms: float = 0.0) -> None:
        self.own += own_ms / 1e3
        self.all += (own_ms + others_ms) / 1e3
        self.now += (own_ms + others_ms + idle_ms) / 1e3


class Named:
    def __init__(self, name: str) -> None:
        self._name = name

    def logPrefix(self) -> str:
        return self._name


class Reactor:
    """
    What of epoll's reactor a turn of its loop uses.

    :ivar works: what the next turn has to do, one for each event.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._poller = self
        self._selectables: dict[int, Any] = {
            number: Named(f"Channel,{number}") for number in range(1, 51)
        }
        self.works: Sequence[Work] = ()
        self.late_ms = 0.0
        self.interrupted = False

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        if self.interrupted:
            self._machine.work(idle_ms=500)
            raise InterruptedError
        if not self.works:
            self._machine.work(idle_ms=timeout * 1e3 + self.late_ms)
        return [(number, READABLE) for number in range(1, len(self.works) + 1)]

    def _doReadOrWrite(self, selectable: Any, fd: int, event: int) -> None:
        assert (selectable, event) == (self._selectables[fd], READABLE)
        self.works[fd - 1]()


class CountTests(SynchronousTestCase):
    """What is counted, as what, on a machine that does as it is told."""

    def setUp(self) -> None:
        self.machine = machine = Machine()
        self.reactor = Reactor(machine)
        self.stalls = Stalls(
            self.reactor, lambda: machine.now, lambda: machine.own, lambda: machine.all
        )
        self.one_turn = _watched(self.reactor, self.stalls, lambda: machine.now)

    def turn(self, *works: Work, calls: Work = lambda: None) -> None:
        """A turn with an event for each work, and the calls that are due after it."""
        self.reactor.works = works
        self.one_turn(1.0)
        calls()

    def counted(self) -> list[int]:
        self.turn()
        return [self.stalls.count(cause) for cause in CAUSES]

    def test_short(self) -> None:
        """Many short callbacks in a turn are no stall, however long the turn."""
        work = lambda: self.machine.work(own_ms=4.9)  # noqa: E731
        for _ in range(20):
            self.turn(*[work] * 50, calls=work)
        self.assertEqual([0, 0, 0], self.counted())

    def test_one_of_many(self) -> None:
        """The one that takes long is counted, once."""
        short = lambda: self.machine.work(own_ms=0.3)  # noqa: E731
        self.turn(short, short, lambda: self.machine.work(own_ms=5.1), short)
        self.assertEqual([1, 0, 0], self.counted())

    def test_alone(self) -> None:
        """Also the only one of its turn, and the calls that are due."""
        long = lambda: self.machine.work(own_ms=6)  # noqa: E731
        self.turn(long)
        self.assertEqual([1, 0, 0], self.counted())
        self.turn(calls=long)
        self.assertEqual([2, 0, 0], self.counted())

    def test_cause(self) -> None:
        """Other threads, and a machine that has no time for us, are told apart from work."""
        nothing: Work = lambda: None  # noqa: E731
        self.turn(nothing, lambda: self.machine.work(own_ms=2, others_ms=9, idle_ms=1))
        self.assertEqual([0, 1, 0], self.counted())
        self.turn(nothing, lambda: self.machine.work(own_ms=2, others_ms=1, idle_ms=9))
        self.assertEqual([0, 1, 1], self.counted())

    def test_waiting(self) -> None:
        """The time in which nothing is to be done is none; what is due and late is."""
        for _ in range(3):
            self.turn()
        self.assertEqual([0, 0, 0], self.counted())
        self.reactor.late_ms = 8
        self.turn()
        self.assertEqual(1, self.stalls.count("machine"))

    def test_interrupted(self) -> None:
        """A poll that a signal ends leaves nothing behind that looks long."""
        self.turn(lambda: None)
        self.reactor.interrupted = True
        for _ in range(2):
            self.turn()
        self.reactor.interrupted = False
        self.assertEqual([0, 0, 0], self.counted())

    def test_failure(self) -> None:
        """What fails, or is gone, keeps nothing else from its turn."""
        done = []
        del self.reactor._selectables[2]
        self.turn(lambda: 1 / 0 and None, lambda: done.append(2), lambda: done.append(3))
        self.assertEqual([3], done)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))

    def test_warning(self) -> None:
        """Who holds it for very long is named, though not each time."""
        long = lambda: self.machine.work(own_ms=150, others_ms=30)  # noqa: E731
        with capturedLogs() as logs:
            self.turn(lambda: None, lambda: self.machine.work(own_ms=90))
            self.turn(lambda: None, long)
            self.turn(lambda: None, long)
            for _ in range(20):
                self.turn()
            self.turn(calls=long)
            self.turn()
        warnings = [one for one in logs if one["log_level"] is LogLevel.warn]
        self.assertEqual(
            [("an event of Channel,2", 1), ("calls that were due", 2)],
            [(one["what"], one["count"]) for one in warnings],
        )
        self.assertAlmostEqual(150, warnings[0]["own_ms"])
        self.assertAlmostEqual(30, warnings[0]["others_ms"])


class ReactorTests(TestCase):
    """With the reactor that runs."""

    def start(self) -> Stalls:
        stalls = Stalls(global_reactor)
        stalls.startService()
        if stalls._turn is None:
            self.skipTest("this is not epoll's reactor")
        self.addCleanup(stalls.stopService)
        return stalls

    async def test_work(self) -> None:
        """Work of 30 ms is seen; a sleep as long too, and is not taken for work."""
        stalls = self.start()

        def counted(*causes: str) -> int:
            return sum(stalls.count(cause) for cause in causes)

        # It is watched from the first poll on.
        await deferLater(global_reactor, 0.001)  # type: ignore[arg-type]
        before = counted(*CAUSES)

        def work() -> None:
            until = time.thread_time() + 0.03
            while time.thread_time() < until:
                pass

        await deferLater(global_reactor, 0, work)  # type: ignore[arg-type]
        await deferLater(global_reactor, 0)  # type: ignore[arg-type]
        # Where other programs have the cores, most of the time may be theirs.
        self.assertGreater(counted(*CAUSES), before)
        before = counted("machine", "threads")
        await deferLater(global_reactor, 0, time.sleep, 0.03)  # type: ignore[arg-type]
        await deferLater(global_reactor, 0)  # type: ignore[arg-type]
        self.assertGreater(counted("machine", "threads"), before)

    async def test_figures(self) -> None:
        """They are a histogram, of seconds, by cause; what is stopped has none."""
        stalls = self.start()
        stalls.stalled(1.0, 0.03, None)
        (family,) = stalls.metrics()
        self.assertEqual("txbedrock_reactor_stall_seconds", family.name)
        values: dict[str, float] = {}
        for sample in family.samples:
            name = sample.name.removeprefix("txbedrock_reactor_stall_seconds_")
            name += sample.labels.get("le", "")
            values[name] = values.get(name, 0.0) + sample.value
        self.assertEqual(1.0, values["bucket0.05"] - values["bucket0.02"])
        self.assertGreaterEqual(values["sum"], 0.03)
        stalls.stopService()
        self.assertEqual([], list(stalls.metrics()))

    async def test_stop(self) -> None:
        """The reactor gets its own turns back, and goes on with both."""
        stalls = self.start()
        waited: Deferred[None] = deferLater(global_reactor, 0.001)  # type: ignore[arg-type]
        await waited
        stalls.stopService()
        self.assertNotIn("doIteration", vars(global_reactor))
        await deferLater(global_reactor, 0.001)  # type: ignore[arg-type]

    async def test_many_go(self) -> None:
        """Of a crowd that goes at once a few are seen off in a turn; who is there is served."""
        stalls = self.start()
        turns = 0

        def count() -> None:
            nonlocal turns
            turns += 1

        counting = LoopingCall(count)
        counting.start(0)
        self.addCleanup(counting.stop)
        seen: list[tuple[str, int]] = []

        class End(Protocol):
            def dataReceived(self, data: bytes) -> None:
                seen.append((data.decode(), turns))

            def connectionLost(self, reason: Failure = connectionDone) -> None:
                seen.append(("gone", turns))

        clients = []
        port = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(port.close)
        for _ in range(_CROWD * 3):
            theirs = socket.create_connection(port.getsockname())
            ours, _ = port.accept()
            ours.setblocking(False)
            transport = Server(ours, End(), ("", 0), None, 0, global_reactor)
            transport.startReading()
            transport.protocol.makeConnection(transport)
            clients.append(theirs)
        await deferLater(global_reactor, 0.01)  # type: ignore[arg-type]
        # The reactor does nothing meanwhile. Half of those who go have said something.
        last = clients.pop()
        for at, client in enumerate(clients):
            if at % 2:
                client.send(b"bye")
            client.close()
        last.send(b"here")
        self.addCleanup(last.close)
        began = turns
        await until(lambda: len([1 for what, _ in seen if what == "gone"]) == len(clients))
        by_turn = Counter(turn for what, turn in seen if what == "gone")
        # A turn of the counter may begin between two of the reactor's.
        self.assertLessEqual(max(by_turn.values()), 2 * _MOST_GONE)
        self.assertLessEqual(dict(seen)["here"], began + 2)
        self.assertGreater(max(by_turn), began + 3)
        self.assertEqual(Counter(what for what, _ in seen)["bye"], len(clients) // 2)
        stalls.stopService()
        from twisted.internet import epollreactor  # where there is one

        self.assertEqual(epollreactor.EPOLLIN, select.EPOLLIN)
        last.close()
        await until(lambda: seen[-1][0] == "gone")

    def test_other_reactors(self) -> None:
        """Beside another reactor it does nothing."""
        stalls = Stalls(object())
        stalls.startService()
        self.assertEqual([], list(stalls.metrics()))
        stalls.stopService()
