"""
Whose requests are looked at when, while there are more than the reactor has time for.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from enum import Enum
from typing import Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["Left", "Turns", "Worker"]

# Note [Turns]
# ------------
# A client asks in a millisecond for what takes a second to refuse. A bound for each
# connection is none for all of them, so there is one time for all: what they send is
# worked on for ``_SLICE_S`` in a turn of the reactor, and then it is the turn of whatever
# else there is: answers of Bedrock's, new connections, timers.
#
# As long as there is time, it is done at once. How often a callback asks for some does not
# matter, be it for each record of TLS: there is new time only after the reactor's next turn,
# which is asked for when less than half is left. What does not fit waits in one of three lines:
#
#   1. who had nothing waiting before. That is a client which sends a request now and then;
#      it gets its ``quantum`` before those who always have more, however many these are.
#   2. who has more than its quantum.
#   3. whose address has just had a connection thrown out. Who is thrown out opens another
#      one at once, and each is new; so for ``_BOXED_S`` all that comes from there together
#      gets ``_BOXED_SHARE`` of the time, and the reactor rests rather than give it more.
#
# In the second and third line addresses take turns, and connections of an address: a
# thousand connections get no more than one. Nobody is locked out: who sends a request from
# the third line waits for one quantum of each connection that his address has there.

_SLICE_S = 0.002
_LOW_S = _SLICE_S / 2
_BOXED_S = 10.0
_BOXED_SHARE = 0.25
_MOST_BOXED = 4096


class Left(Enum):
    """What a worker has left to do."""

    NOTHING = "nothing"
    TIME = "time"
    """There was no more of it; the quantum is not used up."""

    MUCH = "much"
    """More than its quantum."""


class Worker(Hashable, Protocol):
    """Whoever has something to do."""

    address: str
    """Whose it is; empty: of nobody that is known."""

    def work(self) -> Left:
        """Do a quantum of it, at least one step, and none after :attr:`Turns.is_over`."""


class Turns:
    """
    The time that there is for what clients send. See Note [Turns].

    :param clock: of the reactor.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._first: deque[Worker] = deque()
        self._rest = _Line()
        self._last = _Line()
        self._last_from = 0.0
        self._boxed: OrderedDict[str, float] = OrderedDict()
        self._call: IDelayedCall | None = None
        self._left_s = _SLICE_S
        self._until = 0.0

    @property
    def is_over(self) -> bool:
        """Is it time for others?"""
        return self._clock.seconds() >= self._until

    def do(self, worker: Worker) -> bool:
        """
        Something has come for a worker that had nothing to do: let it work now, or later.

        :returns: whether it is all done.
        """
        boxed = bool(self._boxed) and self._is_boxed(worker.address)
        if boxed or self._left_s <= 0.0:
            self._wait(worker, Left.TIME)
            return False
        now = self._clock.seconds()
        self._until = now + self._left_s
        left = worker.work()
        self._left_s -= self._clock.seconds() - now
        if left is not Left.NOTHING:
            self._wait(worker, left)
        elif self._left_s < _LOW_S:
            self._call_later()
        return left is Left.NOTHING

    def box(self, address: str) -> None:
        """A connection of this address has been thrown out."""
        if not address:
            return
        self._boxed.pop(address, None)
        self._boxed[address] = self._clock.seconds() + _BOXED_S
        if len(self._boxed) > _MOST_BOXED:
            self._boxed.popitem(last=False)

    def _is_boxed(self, address: str) -> bool:
        until = self._boxed.get(address)
        if until is None:
            return False
        if until > self._clock.seconds():
            return True
        del self._boxed[address]
        return False

    def _wait(self, worker: Worker, left: Left) -> None:
        if self._boxed and self._is_boxed(worker.address):
            self._last.add(worker)
        elif left is Left.TIME:
            self._first.append(worker)
        else:
            self._rest.add(worker)
        self._call_later()

    def _call_later(self) -> None:
        """In the next turn, unless only those wait that have had their share."""
        delay = 0.0
        if self._first or self._rest or self._left_s < _LOW_S:
            pass
        elif self._last:
            delay = max(0.0, self._last_from - self._clock.seconds())
        else:
            return
        if self._call is None:
            self._call = self._clock.callLater(delay, self._turn)
        elif not delay and self._call.getTime() > self._clock.seconds():
            self._call.reset(0)

    def _turn(self) -> None:
        """Those who wait, as far as there is time."""
        self._call = None
        self._until = self._clock.seconds() + _SLICE_S
        # Nobody comes twice in one turn, or a clock that stands still would never end it.
        for _ in range(len(self._first)):
            worker = self._first.popleft()
            left = worker.work()
            if left is Left.TIME:
                self._first.appendleft(worker)
            elif left is Left.MUCH:
                self._wait(worker, left)
            if self.is_over:
                break
        # One step at least of those who are served last, or they never would be.
        self._rest.serve(self)
        began = self._clock.seconds()
        if self._last and began >= self._last_from:
            self._last.serve(self)
            ended = self._clock.seconds()
            self._last_from = ended + (ended - began) * (1 / _BOXED_SHARE - 1)
        self._left_s = self._until - self._clock.seconds()
        self._call_later()


class _Line:
    """Workers that wait; their addresses take turns."""

    def __init__(self) -> None:
        self._of: OrderedDict[Hashable, deque[Worker]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._of)

    def add(self, worker: Worker) -> None:
        self._of.setdefault(worker.address or worker, deque()).append(worker)

    def serve(self, turns: Turns) -> None:
        """One connection of each address, as far as there is time."""
        for address in list(self._of):
            workers = self._of[address]
            worker = workers.popleft()
            if worker.work() is not Left.NOTHING:
                workers.append(worker)
            if workers:
                self._of.move_to_end(address)
            else:
                del self._of[address]
            if turns.is_over:
                break
