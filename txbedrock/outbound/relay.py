"""
The body of an answer on its way from upstream to downstream.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IResponse
from zope.interface import implementer

from txbedrock.interfaces import Ending, ITaker

__all__ = ["Arrived", "Relay", "discard"]


@implementer(IPushProducer)
class Relay(Protocol):
    """
    Writes what the upstream sends to the downstream, with backpressure.

    Towards the upstream it is the body's protocol, towards the downstream a
    push producer: a client that stops reading pauses the upstream's socket.
    While it is paused the time counts against the client, else against the
    upstream. The last piece of an answer whose length is known is held back:
    whoever runs the relay writes :attr:`held` when the answer is on record.

    :param observe: sees each piece after the client got it. An observer that
        raises is not asked again; the stream goes on.
    """

    _log = Logger()

    def __init__(
        self,
        response: IResponse,
        taker: ITaker,
        observe: Callable[[bytes], None] | None,
        *,
        clock: IReactorTime,
        idle_s: float,
        stalled_s: float,
    ) -> None:
        self._response = response
        self._length = response.length
        self._taker: ITaker | None = taker
        self._write: Callable[[bytes], None] | None = taker.write
        self._observe = observe
        self._clock = clock
        self._seconds = clock.seconds
        self._idle_s = idle_s
        self._stalled_s = stalled_s
        self._timer: IDelayedCall | None = None
        self._timer_s = 0.0  # how long it was set for
        self._since = 0.0  # when something moved
        self._paused = False
        self._connected = False
        self._verdict: Ending | None = None
        self._done: Deferred[Ending] | None = None
        self._max_bytes: int | None = None
        self.relayed = 0
        self.held = b""

    # What the exchange calls.

    async def run(self) -> Ending:
        """Relay until the body ends, or is given up."""
        assert self._taker is not None
        self._taker.register_producer(self)
        try:
            self._response.deliverBody(self)
            if self._verdict is None:
                self._start_timer()
                self._done = Deferred()
                return await self._done
            return self._verdict
        except CancelledError:
            # The client has left. Its transport asks for nothing any more, so
            # a relay that was paused would stay so.
            self._taker = self._write = None
            self._stop_timer()
            raise
        finally:
            if self._taker is not None:
                self._taker.unregister_producer()

    async def drain(self, max_bytes: int, max_seconds: float) -> Ending:
        """
        Read on without a client, observing.

        :returns: :attr:`Ending.CAPPED` when a limit was reached.
        """
        if self._verdict is not None:
            return self._verdict
        done = self._done = Deferred()
        self._max_bytes = self.relayed + max_bytes
        cap = self._clock.callLater(max_seconds, self._give_up, Ending.CAPPED)
        resumed, self._paused = self._paused, False
        self._start_timer()
        try:
            if resumed:
                self._push_transport().resumeProducing()
            return await done
        finally:
            if cap.active():
                cap.cancel()

    def stop(self) -> None:
        """Close the upstream now."""
        self._give_up(Ending.CUT)

    def hand_over(self, taker: ITaker) -> None:
        """From now on somebody else takes the body."""
        self._taker = taker
        self._write = taker.write
        taker.register_producer(self)

    # What the upstream's connection calls.

    def connectionMade(self) -> None:
        self._connected = True
        if self._verdict is not None:
            self._push_transport().stopProducing()
            return
        if self._paused:
            self._push_transport().pauseProducing()

    def dataReceived(self, data: bytes) -> None:
        if self._verdict is not None:
            return
        relayed = self.relayed = self.relayed + len(data)
        if not self._paused:
            self._since = self._seconds()
        write = self._write
        if write is not None:
            if relayed == self._length:
                # With it the client has the answer whole, which is not to be
                # before the answer is on record.
                self.held = data
            else:
                write(data)
        observe = self._observe
        if observe is not None:
            try:
                observe(data)
            except Exception:
                self._log.failure("observing an answer failed; it is relayed on, unobserved")
                self._observe = None
        if self._max_bytes is not None and relayed >= self._max_bytes:
            self._give_up(Ending.CAPPED)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._stop_timer()
        if self._verdict is None:
            whole = isinstance(reason.value, (ResponseDone, PotentialDataLoss))
            self._end(Ending.COMPLETE if whole else Ending.CUT)

    # What the downstream's transport calls.

    def pauseProducing(self) -> None:
        self._paused = True
        if self._connected and self._verdict is None:
            self._push_transport().pauseProducing()
            self._moved()

    def resumeProducing(self) -> None:
        self._paused = False
        if self._connected and self._verdict is None:
            self._push_transport().resumeProducing()
            self._moved()

    def stopProducing(self) -> None:
        # The client's connection is lost: the exchange is being cancelled and
        # decides whether to drain.
        pass

    # Inside.

    def _push_transport(self) -> IPushProducer:
        transport: IPushProducer = self.transport  # type: ignore[assignment]
        return transport

    def _moved(self) -> None:
        """From now on the time counts against the other side."""
        self._since = self._seconds()
        if self._timer is not None and self._limit_s < self._timer_s:
            # It was set for the one with the longer limit.
            self._start_timer()

    @property
    def _limit_s(self) -> float:
        return self._stalled_s if self._paused else self._idle_s

    def _start_timer(self) -> None:
        self._since = self._seconds()
        self._stop_timer()
        self._timer_s = self._limit_s
        self._timer = self._clock.callLater(self._timer_s, self._look)

    def _look(self) -> None:
        """
        Has nothing moved for too long?

        A timer is not put off with every piece; when it is due it sees when the last
        one came.
        """
        left = self._since + self._limit_s - self._seconds()
        if left > 0:
            self._timer_s = self._limit_s
            self._timer = self._clock.callLater(left, self._look)
        else:
            self._timer = None
            self._give_up(Ending.STALLED if self._paused else Ending.IDLE)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            if self._timer.active():
                self._timer.cancel()
            self._timer = None

    def _give_up(self, ending: Ending) -> None:
        if self._verdict is not None:
            return
        self._stop_timer()
        self._end(ending)
        if self._connected:
            self._push_transport().stopProducing()

    def _end(self, ending: Ending) -> None:
        self._verdict = ending
        done, self._done = self._done, None
        if done is not None and not done.called:
            done.callback(ending)


class Arrived:
    """
    In place of a :class:`Relay`, for a body of known length that is here: all of it is held
    back.
    """

    __slots__ = ("_observe", "held", "relayed")

    _log = Logger()

    def __init__(self, body: bytes, observe: Callable[[bytes], None] | None) -> None:
        self._observe = observe
        self.held = body
        self.relayed = len(body)

    async def run(self) -> Ending:
        """Observe it."""
        if self._observe is not None and self.held:
            try:
                self._observe(self.held)
            except Exception:
                self._log.failure("observing an answer failed; it is relayed, unobserved")
        return Ending.COMPLETE

    async def drain(self, max_bytes: int, max_seconds: float) -> Ending:
        """There is nothing to read."""
        return Ending.COMPLETE

    def stop(self) -> None:
        """There is nothing to close."""

    def hand_over(self, taker: ITaker) -> None:
        """There is nothing to be taken."""


class _Discard(Protocol):
    """Reads a body to nowhere, up to a limit."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self.done: Deferred[None] = Deferred(lambda _: self.close())

    def dataReceived(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self.close()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if not self.done.called:
            self.done.callback(None)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.stopProducing()  # type: ignore[attr-defined]


async def discard(
    response: IResponse, clock: IReactorTime, max_bytes: int, max_seconds: float
) -> None:
    """
    Throw a body away so that its connection goes back to the pool.

    One that is longer or slower than allowed closes its connection instead.
    """
    protocol = _Discard(max_bytes)
    timer = clock.callLater(max_seconds, protocol.close)
    try:
        response.deliverBody(protocol)
        await protocol.done
    finally:
        if timer.active():
            timer.cancel()
