"""
``twistd`` with every callback of its reactor measured by itself: run by ``stalling.py``.

``python watched.py FOLDER ...`` does what ``twistd ...`` does. At each SIGUSR2 it writes
what took long since the one before to ``FOLDER/watched.json``.

A callback is what the reactor calls: an event of a socket, a call that was due, a call that
a thread has sent. Its CPU is that of the reactor's thread alone, so it is the same on a busy
machine; looking at the clocks costs 2 us, and a second thread that looks where a long one is
takes some of the CPU, so costs a request are not to be measured here.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Watch"]

_LONG_S = 0.002
_LOOKS_EVERY_S = 0.001
_HEARTBEAT_S = 0.005


class Watch:
    """
    Measures what a reactor calls.

    :param reactor: epoll's.
    :param folder: takes what is found.
    """

    def __init__(self, reactor: Any, folder: Path) -> None:
        self._reactor = reactor
        self._folder = folder
        self._running = 0.0
        self._seen: Counter[str] = Counter()
        self._gc_began = 0.0
        self._gc_in_call = 0.0
        self._clear()

    def _clear(self) -> None:
        self.count = 0
        self.found: dict[str, dict[str, Any]] = {}
        self.gc: dict[int, dict[str, float]] = {}

    def install(self) -> None:
        """From now on."""
        reactor = self._reactor
        handle, later, from_thread = (
            reactor._doReadOrWrite,
            reactor.callLater,
            reactor.callFromThread,
        )
        beat = _Beat(later)
        reactor._doReadOrWrite = lambda *arguments: self.call(handle, arguments, {})
        reactor.callLater = lambda delay, f, *a, **k: later(delay, self.call, f, a, k)
        reactor.callFromThread = lambda f, *a, **k: from_thread(self.call, f, a, k)
        gc.callbacks.append(self._collected)
        signal.signal(signal.SIGUSR2, lambda number, frame: from_thread(self._tell))
        # What waits for Python's lock while nothing happens is seen by what is due.
        reactor.callWhenRunning(beat)
        threading.Thread(target=self._look, args=(threading.get_ident(),), daemon=True).start()

    def call(self, f: Any, arguments: Any, keywords: Any) -> Any:
        """One callback."""
        self.count += 1
        self._gc_in_call = 0.0
        self._running = wall = time.perf_counter()
        cpu = time.thread_time()
        try:
            return f(*arguments, **keywords)
        finally:
            cpu = time.thread_time() - cpu
            wall = time.perf_counter() - wall
            self._running = 0.0
            if wall >= _LONG_S:
                self._note(_name(f, arguments), cpu, wall)

    def _note(self, name: str, cpu: float, wall: float) -> None:
        found = self.found.setdefault(
            name, {"long": 0, "stalls": 0, "cpu": -1.0, "wall": 0.0, "gc": 0.0, "where": ""}
        )
        seen, self._seen = self._seen, Counter()
        found["long"] += 1
        found["stalls"] += cpu >= 0.005
        found["wall"] = max(found["wall"], wall)
        if cpu > found["cpu"]:
            found["cpu"], found["gc"] = cpu, self._gc_in_call
            found["where"] = ", ".join(where for where, _ in seen.most_common(2))

    def _collected(self, phase: str, values: dict[str, int]) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if phase == "start":
            self._gc_began = time.thread_time()
        else:
            took = time.thread_time() - self._gc_began
            self._gc_in_call += took
            found = self.gc.setdefault(
                values["generation"], {"count": 0, "longest": 0.0, "total": 0.0, "freed": 0}
            )
            found["count"] += 1
            found["longest"] = max(found["longest"], took)
            found["total"] += took
            found["freed"] += values["collected"]

    def _look(self, thread: int) -> None:
        """Where is what takes long?"""
        while True:
            time.sleep(_LOOKS_EVERY_S)
            running = self._running
            if not running:
                self._seen.clear()
            elif time.perf_counter() - running > _LONG_S:
                frame = sys._current_frames().get(thread)
                # It may have ended while this thread waited for its turn.
                if self._running == running:
                    self._seen[_where(frame)] += 1

    def _tell(self) -> None:
        found = {
            "callbacks": self.count,
            "long": self.found,
            "gc": self.gc,
        }
        self._clear()
        path = self._folder / "watched.json"
        path.with_suffix(".new").write_text(json.dumps(found), "utf-8")
        os.replace(path.with_suffix(".new"), path)


class _Beat:
    """Something that is always due soon."""

    def __init__(self, later: Any) -> None:
        self._later = later

    def __call__(self) -> None:
        self._later(_HEARTBEAT_S, self)


def _name(f: Any, arguments: Any) -> str:
    if getattr(f, "__name__", "") == "_doReadOrWrite":
        selectable, _, event = arguments
        protocol = getattr(selectable, "protocol", None)
        inner = getattr(protocol, "wrappedProtocol", None)
        what = type(selectable if protocol is None else inner or protocol).__name__
        secure = " (TLS)" if inner is not None else ""
        return f"{what}{secure}: {'readable' if event & 1 else 'writable'}"
    inner = getattr(f, "func", f)
    return str(getattr(inner, "__qualname__", repr(inner)))


def _where(frame: FrameType | None) -> str:
    """The innermost function, and the innermost of ours."""
    names: list[str] = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        ours = "txbedrock" in path.parts
        if ours or not names:
            names.append(f"{path.stem}.{frame.f_code.co_qualname}:{frame.f_lineno}")
        if ours:
            break
        frame = frame.f_back
    return " < ".join(dict.fromkeys(names))


def _main() -> None:
    folder = Path(sys.argv.pop(1))
    sys.argv[0] = "twistd"
    # Not the modules that stand beside this one.
    del sys.path[0]
    from twisted.internet import reactor
    from twisted.scripts.twistd import run

    Watch(reactor, folder).install()
    run()


if __name__ == "__main__":
    _main()
