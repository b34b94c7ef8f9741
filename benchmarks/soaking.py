"""
Very many requests: memory stays what it is, no descriptor is left over, nothing goes wrong.
"""

from __future__ import annotations

import time

from benchmarks.measuring import Bench, warm_up
from benchmarks.peers import PEERS

__all__ = ["soak"]

_BATCHES = 20
_STREAMS = 200
_IDLE_S = 60.0
_ALLOWED_GROWTH = 0.05


def soak(bench: Bench, requests: int) -> int:
    """
    :param requests: in twenty batches of 32 at a time, each followed by streams; memory and
        descriptors are read between them, when all connections of the batch are closed.
    :returns: 1 if memory has grown by more than 5 % since the second batch, or a descriptor
        is left over.
    """
    running = bench.start(PEERS["txbedrock"])
    try:
        child = running.child
        assert child is not None
        warm_up(bench, running, "http1")
        found = []
        for batch in range(_BATCHES):
            options = {"streams": 32, "count": requests // _BATCHES}
            done = bench.load(running, "http1", "unary", options, limit_s=1800)
            # All at once: twenty events each, a millisecond apart.
            bench.load(running, "http1", "streams", {"streams": _STREAMS}, asked="bench:20:1000:0")
            # The clients' connections are gone by now. Idle ones to the upstream, as many as
            # were needed at once, stay for 50 s.
            time.sleep(_IDLE_S if batch in (1, _BATCHES - 1) else 1.0)
            found.append((child.memory().rss, child.descriptors()))
            print(
                f"{(batch + 1) * requests // _BATCHES:>9,} requests: {found[-1][0] / 1e6:.1f} MB, "
                f"{found[-1][1]} descriptors, {done.report['done'] / done.seconds:,.0f} a second, "
                f"{done.cpu / done.report['done'] * 1e6:.0f} us of CPU each",
                flush=True,
            )
    finally:
        running.stop()
    # In the first batch caches and allocator find their size.
    first, last = found[1], found[-1]
    grown = last[0] / first[0] - 1
    left_over = last[1] - first[1]
    print(f"memory {grown:+.1%}, {left_over:+d} descriptors since the second batch")
    return int(grown > _ALLOWED_GROWTH or left_over > 0)
