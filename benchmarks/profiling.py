"""
Where the gateway's time goes: ``twistd --profile`` under load, by function.

The profiler makes every call dearer, small ones most: shares are to be compared with those
of another run, and totals are never to be quoted.
"""

from __future__ import annotations

import os
import pstats
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

from benchmarks.measuring import Bench, warm_up
from benchmarks.peers import PEERS

__all__ = ["profile"]


def profile(bench: Bench, ledger: bool, seconds: float, top: int) -> None:
    """
    Print the functions that take most of the time themselves.

    :param ledger: with it, or the gateway without it.
    """
    name = "txbedrock" if ledger else "txbedrock-bare"
    file = bench.folder / "profile"
    peer = replace(
        PEERS[name], twistd=("--profile", str(file), "--savestats", "--profiler", "cprofile")
    )
    before = bench.stats()["requests"]
    running = bench.start(peer)
    try:
        warm_up(bench, running, "http1")
        done = bench.load(running, "http1", "unary", {"streams": 32, "seconds": seconds})
        count = bench.stats()["requests"] - before
        child = running.child
        assert child is not None
        os.kill(child.pid, signal.SIGTERM)
        child.process.wait(60)
    finally:
        running.stop()
    cpu_us = done.cpu / done.report["done"] * 1e6
    print(f"{name}: {count} Converse, {cpu_us:.0f} us of CPU each under the profiler\n")
    _show(file, count, top)


def _show(file: Path, count: int, top: int) -> None:
    functions, files = Counter[str](), Counter[str]()
    calls: dict[str, float] = {}
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, object]]
    stats = pstats.Stats(str(file)).stats  # type: ignore[attr-defined]
    for (path, line, function), (_, count_of, own_s, _, _) in stats.items():
        # Of what is called once in its life a start is made, and no request.
        if "select.epoll" in function or count_of < count / 4:
            continue
        where = "/".join(Path(path).parts[-2:])
        name = f"{where}:{line} {function}" if line else function
        functions[name] += own_s / count * 1e6  # type: ignore[assignment]
        files[where if line else "built-in"] += own_s / count * 1e6  # type: ignore[assignment]
        calls[name] = count_of / count
    for title, table, most in (("function", functions, top), ("file", files, top)):
        print(f"| own us a request | share | calls | {title} |\n|---|---|---|---|")
        total_us = table.total()
        for name, own_us in table.most_common(most):
            often = f"{calls[name]:.1f}" if name in calls else ""
            print(f"| {own_us:.1f} | {own_us / total_us:.1%} | {often} | `{name}` |")
        print()
