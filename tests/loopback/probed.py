"""
``twistd``, watched: how long a callback of clients' connections keeps the reactor.

At its end it writes a line of JSON: by callback how often it was called, and how long it
took at most, in ms. It is the processor's time, without what others had of the core, and
without Python's collector of garbage, which has a figure of its own. SIGUSR2 begins anew.
"""

from __future__ import annotations

import atexit
import gc
import json
import signal
import sys
import time
from functools import wraps
from typing import Any

from twisted.scripts.twistd import run

from txbedrock.inbound.http1 import Channel
from txbedrock.inbound.http2 import Http2Channel
from txbedrock.inbound.opening import Opening
from txbedrock.inbound.turns import Turns

__all__ = ["WATCHED"]

WATCHED: tuple[tuple[type, str], ...] = (
    (Opening, "connectionMade"),
    (Opening, "dataReceived"),
    (Opening, "connectionLost"),
    (Channel, "dataReceived"),
    (Channel, "connectionLost"),
    (Channel, "_take_unread"),
    (Http2Channel, "dataReceived"),
    (Http2Channel, "connectionLost"),
    (Http2Channel, "resumeProducing"),
    (Http2Channel, "_look"),
    (Turns, "_turn"),
)


def _watch() -> None:
    found: dict[str, tuple[int, float]] = {}
    inside = False
    collecting, collected = 0.0, 0.0

    def collector(phase: str, about: Any) -> None:
        nonlocal collecting, collected
        if phase == "start":
            collecting = time.thread_time()
            return
        took = time.thread_time() - collecting
        collected += took
        note("collector", took)

    def note(name: str, took: float) -> None:
        count, longest = found[name]
        found[name] = (count + 1, max(longest, took))

    def watched(name: str, function: Any) -> Any:
        found[name] = (0, 0.0)

        @wraps(function)
        def call(*args: Any) -> Any:
            nonlocal inside
            if inside:
                return function(*args)
            inside = True
            before = time.thread_time() - collected
            try:
                return function(*args)
            finally:
                took = time.thread_time() - collected - before
                inside = False
                note(name, took)

        return call

    for owner, name in WATCHED:
        setattr(owner, name, watched(f"{owner.__name__}.{name}", getattr(owner, name)))

    found["collector"] = (0, 0.0)
    gc.callbacks.append(collector)

    def anew(number: int, frame: object) -> None:
        found.update(dict.fromkeys(found, (0, 0.0)))

    signal.signal(signal.SIGUSR2, anew)

    def tell() -> None:
        print(
            json.dumps(
                {
                    "callbacks": {
                        name: {"count": count, "longest_ms": round(longest * 1e3, 2)}
                        for name, (count, longest) in found.items()
                    }
                }
            ),
            file=sys.__stdout__,  # The other one is a part of the log.
            flush=True,
        )

    atexit.register(tell)


if __name__ == "__main__":
    _watch()
    run()
