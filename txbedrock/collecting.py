"""
When Python looks for cyclic garbage: a little at a time, and through everything when few wait.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from twisted.application.service import Service
from twisted.internet.task import LoopingCall

__all__ = ["Collector"]

# A run takes up to 0.5 us for an object that it looks at, and everything waits meanwhile:
# the young ones after so many more of them (1 ms), with those that outlived a run (3 ms).
_YOUNG, _RUNS = 2_000, 1

# Never by itself through the old ones, which with 10,000 open streams takes 250 ms.
_NEVER = 1_000_000_000

_LOOK_EVERY_S = 60.0
_AT_EARLIEST_S = 600.0
_AT_LATEST_S = 3600.0


class Collector(Service):
    """
    Keeps the collector's runs short.

    What lives long is looked at when the gateway has nothing to do, and then there is not
    much of it (10 to 20 ms); if it always has something to do, once an hour all the same.
    Exchanges leave no cycles, and a connection a few: there is time.

    :param reactor: the clock.
    :param is_busy: whether anybody would have to wait.
    """

    def __init__(
        self, reactor: Any, is_busy: Callable[[], bool], collect: Callable[[], object] = gc.collect
    ) -> None:
        self._reactor = reactor
        self._is_busy = is_busy
        self._collect = collect
        self._collected_at = 0.0
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        self._before = gc.get_threshold()

    def startService(self) -> None:
        """What is there by now, modules and tables, stays for ever."""
        Service.startService(self)
        self._collect()
        gc.freeze()
        self._before = gc.get_threshold()
        gc.set_threshold(_YOUNG, _RUNS, _NEVER)
        self._collected_at = self._reactor.seconds()
        self._looking.start(_LOOK_EVERY_S, now=False)

    def stopService(self) -> None:
        Service.stopService(self)
        if self._looking.running:
            self._looking.stop()
            gc.set_threshold(*self._before)
            gc.unfreeze()

    def _look(self) -> None:
        now = self._reactor.seconds()
        since = now - self._collected_at
        if since >= (_AT_LATEST_S if self._is_busy() else _AT_EARLIEST_S):
            self._collected_at = now
            self._collect()
