"""
What is measured of each peer: one function a figure, each a few seconds long.

Note [What a figure is]
-----------------------
CPU is user and system time of the peer's processes and all their threads, as the kernel's own
clock of each counts it (nanoseconds, not ticks); the half second after a load belongs to it,
for what is written later. Times are those of the load generator: from when a request was due
until its answer, or the first byte of it, was there; for an event from when the upstream sent
it, which stands in the event. Peer and load have different cores, where there are two.

A round measures one figure of all peers, one right after the other; what is reported are
medians over rounds, and of ratios the median of each round's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.native import Tools
from benchmarks.peers import (
    ACCESS_KEY,
    MODEL,
    SECRET_KEY,
    Certificate,
    Peer,
    Place,
    Running,
)
from benchmarks.processes import Child, Failed, free_ports

__all__ = ["FIGURES", "Bench", "Effort", "Figures", "medians", "ratio"]

Figures = dict[str, float]
"""By name, see :data:`FIGURES` and the functions that make them."""

_AFTER_S = 0.5
_CONNECTIONS = 32
_STREAMS = 200
_EVENTS_A_SECOND = 50
_PACED_RATE = 200.0
_MB = 1_000_000
_FRAME_BYTES = 8192
_SMALL_FRAME_BYTES = 64


@dataclass(frozen=True, slots=True)
class Effort:
    """How long all of it may take."""

    rounds: int = 5
    seconds: float = 4.0
    """Of each load."""

    bulk_mb: int = 300
    small_bulk_mb: int = 60
    stalled_mb: int = 500
    stalled_s: float = 8.0
    open_streams: Sequence[int] = (1000, 10_000)


QUICK = Effort(
    rounds=1, seconds=1.5, bulk_mb=100, small_bulk_mb=20, stalled_s=3.0, open_streams=(1000,)
)


def body_of(asked: str = "") -> str:
    text = f"What does a gateway do? {asked}".strip()
    return json.dumps(
        {
            "messages": [{"role": "user", "content": [{"text": text}]}],
            "inferenceConfig": {"maxTokens": 100},
        }
    )


@dataclass(slots=True)
class Load:
    """What a load generator has reported, and what it cost meanwhile."""

    report: Mapping[str, Any]
    cpu: float
    """Seconds of the peer."""

    others_cpu: float
    """Of load generator and upstream together."""

    seconds: float
    events: int

    def of(self, series: str, quantile: str) -> float:
        """Microseconds."""
        return float(self.report[series][quantile])


@dataclass(slots=True)
class Bench:
    """Upstream, load generator and where everything runs."""

    folder: Path
    tools: Tools
    certificate: Certificate
    installed: Path
    effort: Effort
    peer_cores: set[int] | None = None
    load_cores: set[int] | None = None
    upstream_port: int = 0
    _upstream: Child = field(init=False)
    _expected: Path = field(init=False)

    def __post_init__(self) -> None:
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) > 1:
            self.peer_cores, self.load_cores = {cores[0]}, set(cores[1:])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def __enter__(self) -> Bench:
        self._upstream = Child(
            "upstream", [self.tools.upstream], self.folder, cores=self.load_cores
        )
        self.upstream_port = int(self._upstream.line())
        self._expected = self.folder / "expected"
        status, answer = _ask(f"http://127.0.0.1:{self.upstream_port}/model/m/converse", [])
        assert status == 200
        self._expected.write_bytes(answer)
        return self

    def __exit__(self, *_: object) -> None:
        self._upstream.stop()

    def start(self, peer: Peer, upstream: int | None = None) -> Running:
        """
        One that has answered a request.

        :raises Failed: it is not installed, or does not start.
        """
        peer.version(self.installed)
        place = Place(
            # Nothing is left of the one before.
            Path(tempfile.mkdtemp(prefix=f"{peer.name}-", dir=self.folder)),
            self.upstream_port if upstream is None else upstream,
            self.certificate,
            self.peer_cores,
            self.installed,
        )
        running = peer.start(peer, place)
        try:
            if running.child is not None:
                running.child.await_port(running.ports["http1"], 120.0)
        except BaseException:
            running.stop()
            raise
        return running

    def speaks(self, running: Running, protocol: str) -> bool:
        """Whether it answers one request over a protocol."""
        if protocol not in running.ports:
            return False
        try:
            self.load(running, protocol, "unary", {"count": 1}, limit_s=15.0)
        except Failed as error:
            print(f"{running.name} over {protocol}: {error}", file=sys.stderr)
            return False
        return True

    def stats(self) -> dict[str, int]:
        """What the upstream was asked so far."""
        url = f"http://127.0.0.1:{self.upstream_port}/"
        with _opener.open(url, timeout=10) as answer:
            found: dict[str, int] = json.load(answer)
            return found

    @contextlib.contextmanager
    def generator(
        self,
        running: Running,
        protocol: str,
        mode: str,
        options: Mapping[str, float],
        *,
        asked: str = "",
        limit_s: float,
    ) -> Iterator[Child]:
        """
        A load generator at work, for so many seconds at most.

        :param options: of the generator, by name.
        :param asked: what the upstream shall do.
        """
        verb = "converse" if mode == "unary" else "converse-stream"
        command: list[str | Path] = [
            self.tools.load, mode, "--port", str(running.ports[protocol]), "--proto", protocol,
            "--path", running.peer.path(verb), "--body", body_of(asked),
        ]  # fmt: skip
        if mode == "unary":
            command += ["--expect", self._expected]
        for name, value in options.items():
            command += [f"--{name}", f"{value:g}" if value < 1e6 else str(int(value))]
        for line in running.headers:
            command += ["--header", line]
        child = Child("load", command, self.folder, cores=self.load_cores)
        timer = threading.Timer(limit_s, child.process.kill)
        timer.start()
        try:
            yield child
        finally:
            timer.cancel()
            child.process.kill()
            child.stop()

    def load(
        self,
        running: Running,
        protocol: str,
        mode: str,
        options: Mapping[str, float],
        *,
        asked: str = "",
        limit_s: float = 60.0,
    ) -> Load:
        """
        Put a load on a peer, and read what it says to the end.

        For ``streams`` CPU and events are those of the time in which all are open, if there is
        any: opening them is no event.

        :raises Failed: an answer was wrong, or a request that should be signed was not.
        """
        signed = self.stats()
        marks: dict[str, tuple[int, float, float]] = {}

        def mark(name: str, events: int) -> None:
            marks[name] = (events, running.cpu(), time.monotonic())

        with self.generator(
            running, protocol, mode, options, asked=asked, limit_s=limit_s
        ) as child:
            upstream_cpu = self._upstream.cpu()
            mark("begin", 0)
            while (line := child.line()) and not line.startswith("{"):
                name, _, events = line.partition(" ")
                mark(name, int(events))
            if not line:
                child.process.wait()
                raise Failed(child.said() or f"not done within {limit_s:g} s")
            report = json.loads(line)
            upstream_cpu = self._upstream.cpu() - upstream_cpu
            seconds = float(report["seconds"])
            time.sleep(_AFTER_S)
            mark("end", report["events"])
            if report["errors"]:
                raise Failed(f"{report['errors']} errors, the first: {child.said()}")
        if running.peer.signs:
            now = self.stats()
            asked_for = now["requests"] - signed["requests"]
            if now["signed"] - signed["signed"] != asked_for or not asked_for:
                raise Failed(f"{now['signed'] - signed['signed']} of {asked_for} were signed")
        first, last = "begin", "end"
        if "steady" in marks and marks["ending"][2] - marks["steady"][2] > 1.0:
            first, last = "steady", "ending"
        return Load(
            report,
            marks[last][1] - marks[first][1],
            report["cpu"] + upstream_cpu,
            seconds,
            marks[last][0] - marks[first][0],
        )


_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _ask(url: str, headers: Sequence[str]) -> tuple[int, bytes]:
    pairs = dict(line.split(": ", 1) for line in headers)
    request = urllib.request.Request(url, body_of().encode(), pairs)
    try:
        with _opener.open(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def _places(protocol: str, count: int) -> dict[str, float]:
    """Of HTTP/2 a few connections with several streams each, of HTTP/1.1 one for each."""
    if protocol in ("h2c", "h2"):
        return {"streams": count, "connections": max(count // 100, 4)}
    return {"streams": count}


# The figures. See Note [What a figure is].


def unary(bench: Bench, running: Running, protocol: str) -> Figures:
    """As many Converse as 32 at a time make."""
    seconds = bench.effort.seconds
    places = _places(protocol, _CONNECTIONS)
    done = bench.load(
        running, protocol, "unary", places | {"seconds": seconds}, limit_s=seconds + 60
    )
    count = done.report["done"]
    return {
        "rps": count / done.seconds,
        "request_us": done.cpu / count * 1e6,
        "busy": done.cpu / done.seconds,
        "load_busy": done.others_cpu / done.seconds,
    }


def paced(bench: Bench, running: Running, protocol: str) -> Figures:
    """Converse at a fixed rate."""
    if not running.peer.paced:
        return {}
    seconds = bench.effort.seconds
    options = _places(protocol, _CONNECTIONS) | {"seconds": seconds, "rate": _PACED_RATE}
    done = bench.load(running, protocol, "unary", options, limit_s=seconds + 30)
    return {
        "paced_us": done.cpu / done.report["done"] * 1e6,
        "paced_p50": done.of("latency", "p50"),
        "paced_p99": done.of("latency", "p99"),
    }


def lone(bench: Bench, running: Running, protocol: str) -> Figures:
    """One Converse after the other, nothing else going on."""
    seconds = bench.effort.seconds / 2
    done = bench.load(running, protocol, "unary", {"seconds": seconds}, limit_s=seconds + 30)
    return {
        "lone_us": done.cpu / done.report["done"] * 1e6,
        "lone_p50": done.of("latency", "p50"),
        "lone_p99": done.of("latency", "p99"),
    }


def drip(bench: Bench, running: Running, protocol: str) -> Figures:
    """Two hundred streams of fifty events a second each."""
    seconds = bench.effort.seconds + 2
    events = int(seconds * _EVENTS_A_SECOND)
    asked = f"bench:{events}:{1_000_000 // _EVENTS_A_SECOND}:0"
    options = _places(protocol, _STREAMS) | {"ramp": 1.0}
    done = bench.load(running, protocol, "streams", options, asked=asked, limit_s=seconds + 120)
    return {
        "event_us": done.cpu / done.events * 1e6,
        "first_p50": done.of("first_byte", "p50"),
        "first_p99": done.of("first_byte", "p99"),
        "event_p50": done.of("event", "p50"),
        "event_p99": done.of("event", "p99"),
        "drip_load_busy": done.others_cpu / done.seconds,
    }


def _bulk(
    bench: Bench, running: Running, protocol: str, megabytes: int, frame: int
) -> tuple[float, float]:
    """:returns: megabytes a second, milliseconds of CPU a megabyte."""
    asked = f"bench:{megabytes * _MB // (frame + 110)}:0:{frame}"
    done = bench.load(running, protocol, "streams", {}, asked=asked, limit_s=180)
    size = done.report["bytes"] / _MB
    return size / done.seconds, done.cpu / size * 1e3


def bulk(bench: Bench, running: Running, protocol: str) -> Figures:
    """One stream as fast as it goes, frames of 8 KiB."""
    speed, cost = _bulk(bench, running, protocol, bench.effort.bulk_mb, _FRAME_BYTES)
    return {"bulk_mb_s": speed, "bulk_ms_mb": cost}


def small_bulk(bench: Bench, running: Running, protocol: str) -> Figures:
    """The same of frames as small as a token's."""
    speed, cost = _bulk(bench, running, protocol, bench.effort.small_bulk_mb, _SMALL_FRAME_BYTES)
    return {"small_bulk_mb_s": speed, "small_bulk_ms_mb": cost}


Measure = Callable[[Bench, Running, str], Figures]

FIGURES: dict[str, Measure] = {
    "unary": unary,
    "paced": paced,
    "lone": lone,
    "drip": drip,
    "bulk": bulk,
    "small-bulk": small_bulk,
}
"""By the name by which they can be asked for."""


def warm_up(bench: Bench, running: Running, protocol: str) -> None:
    """What is made once is made before anything is measured."""
    count = 500 if running.peer.paced else 50
    options = _places(protocol, _CONNECTIONS) | {"count": count}
    bench.load(running, protocol, "unary", options)
    bench.load(running, protocol, "streams", _places(protocol, 20), asked="bench:20:1000:0")


# Memory, each time of a process that has done nothing else.


def memory(bench: Bench, peer: Peer, protocol: str, found: Figures) -> None:
    """
    Of an idle process, of open streams and of a reader who has stopped reading.

    :param found: takes bytes of PSS, of ``idle_rss`` of RSS; ``open_1000`` and so on are of one
        stream. What was found stays in it if another figure cannot be had.
    :raises Failed: so it is.
    """
    with _fresh(bench, peer) as running:
        assert running.child is not None
        time.sleep(1.0)
        idle = running.child.memory()
        found["idle"], found["idle_rss"] = idle.pss, idle.rss
        warm_up(bench, running, protocol)
        time.sleep(1.0)
        found["warm"] = base = running.child.memory().pss
        wanted = f"bench:{bench.effort.stalled_mb * _MB // (_FRAME_BYTES + 110)}:0:{_FRAME_BYTES}"
        with bench.generator(running, protocol, "stall", {}, asked=wanted, limit_s=60) as child:
            if child.line().partition(" ")[0] != "stalled":
                raise Failed(f"stalled reader: {child.said()}")
            most = 0
            until = time.monotonic() + bench.effort.stalled_s
            while time.monotonic() < until:
                most = max(most, running.child.memory().pss)
                time.sleep(0.1)
            found["stalled"] = max(most - base, 0)
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    for wanted_count in bench.effort.open_streams:
        if wanted_count > peer.most_streams:
            continue
        count = wanted_count
        if protocol in ("http1", "tls"):
            # Two sockets each, and what the gateway keeps for itself.
            count = min(count, (files - 1200) // 2)
        with _fresh(bench, peer) as running:
            assert running.child is not None
            warm_up(bench, running, protocol)
            time.sleep(1.0)
            base = running.child.memory().pss
            a_second = 200 if peer.paced else 10
            ramp = count / a_second
            options = _places(protocol, count) | {"ramp": ramp}
            with bench.generator(
                running, protocol, "streams", options, asked="bench:100:60000000:0",
                limit_s=ramp + 90,
            ) as child:  # fmt: skip
                line = child.line()
                if line.partition(" ")[0] != "steady":
                    child.process.kill()
                    raise Failed(f"{count} streams: {line} {child.said()}")
                time.sleep(2.0)
                found[f"open_{wanted_count}"] = (running.child.memory().pss - base) / count


@contextlib.contextmanager
def _fresh(bench: Bench, peer: Peer) -> Iterator[Running]:
    running = bench.start(peer)
    try:
        if not bench.speaks(running, "http1"):
            raise Failed(f"{peer.name} does not answer")
        yield running
    finally:
        # It would wait for the streams that are open.
        if running.child is not None:
            running.child.process.kill()
        running.stop()


# What arrives is signed


def signature(bench: Bench, peer: Peer) -> int:
    """
    The status of a Converse by way of a peer at the sandbox, which verifies signatures:
    200 if it was signed as AWS wants it, 403 if not.

    :raises Failed: the peer is not installed, or does not start.
    """
    (port,) = free_ports(1)
    sandbox = Child(
        "sandbox",
        [sys.executable, Path(sys.executable).with_name("twistd"), "-n", "--pidfile=",
         "bedrocksandbox", "--listen", f"tcp:{port}:interface=127.0.0.1",
         "--access-key-id", ACCESS_KEY, "--secret-access-key", SECRET_KEY],
        bench.folder, output=bench.folder / "sandbox.out",
    )  # fmt: skip
    with sandbox:
        sandbox.await_port(port, 30.0)
        running = bench.start(peer, port)
        try:
            url = f"http://127.0.0.1:{running.ports['http1']}{peer.path('converse')}"
            return _ask(url, running.headers)[0]
        finally:
            running.stop()


# Figures together


def medians(rounds: Sequence[Figures]) -> Figures:
    """Of each figure that is in any of the rounds."""
    names = dict.fromkeys(name for figures in rounds for name in figures)
    return {
        name: statistics.median(figures[name] for figures in rounds if name in figures)
        for name in names
    }


def ratio(ours: Sequence[Figures], theirs: Sequence[Figures], name: str) -> float | None:
    """The median of each round's own ratio; None if they have no round in common."""
    found = [
        one[name] / other[name]
        for one, other in zip(ours, theirs, strict=False)
        if name in one and other.get(name)
    ]
    return statistics.median(found) if found else None


__all__ += ["MODEL", "QUICK", "body_of", "memory", "signature", "warm_up"]
