"""
When Python looks for cyclic garbage: a little at a time, and never long while many wait.
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

# Never by itself through the old ones: 60 us for each open stream.
_NEVER = 1_000_000_000
_FEW = 50

_LOOK_EVERY_S = 60.0
_AT_EARLIEST_S = 600.0
_DAY_S = 24 * 3600.0


class Collector(Service):
    """
    Keeps the collector's runs short.

    What has outlived the first runs is looked at every ten minutes, if few connections and
    exchanges are open, and what is there then is not looked at again: so there is never much
    of it (1 to 4 ms). With many open it waits. Neither exchanges nor connections leave cycles
    that last, so this may be for long. What else has become garbage after it was
    looked at, such as the configuration before a reload, is found once a day, in 50 ms and
    at a quiet moment; if there is none for another day, then all the same.

    :param reactor: the clock.
    :param alive: how many connections and exchanges there are.
    """

    def __init__(
        self, reactor: Any, alive: Callable[[], int], collect: Callable[[], object] = gc.collect
    ) -> None:
        self._reactor = reactor
        self._alive = alive
        self._collect = collect
        self._collected_at = self._began_anew_at = 0.0
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        self._before = gc.get_threshold()

    def startService(self) -> None:
        """What is there by now, modules and tables, stays for ever."""
        Service.startService(self)
        self._run()
        self._began_anew_at = self._collected_at
        self._before = gc.get_threshold()
        gc.set_threshold(_YOUNG, _RUNS, _NEVER)
        self._looking.start(_LOOK_EVERY_S, now=False)

    def stopService(self) -> None:
        Service.stopService(self)
        if self._looking.running:
            self._looking.stop()
            gc.set_threshold(*self._before)
            gc.unfreeze()

    def _look(self) -> None:
        now = self._reactor.seconds()
        few = self._alive() <= _FEW
        if now - self._began_anew_at >= (_DAY_S if few else 2 * _DAY_S):
            self._began_anew_at = now
            gc.unfreeze()
            self._run()
        elif few and now - self._collected_at >= _AT_EARLIEST_S:
            self._run()

    def _run(self) -> None:
        self._collected_at = self._reactor.seconds()
        self._collect()
        gc.freeze()
