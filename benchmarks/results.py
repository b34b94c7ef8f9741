"""
Figures to text: the tables of RESULTS.md.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measuring import Effort, Figures, medians, ratio
from benchmarks.peers import PEERS
from benchmarks.timing import REFERENCE_US

__all__ = ["Goal", "Results", "render"]

OURS = "txbedrock"
_TITLES = {"http1": "HTTP/1.1", "h2c": "HTTP/2 without TLS (h2c)", "tls": "HTTP/1.1 over TLS",
           "h2": "HTTP/2 over TLS"}  # fmt: skip


@dataclass(slots=True)
class Results:
    """All that was found in one run."""

    command: str
    effort: Effort
    pinned: bool
    versions: dict[str, str] = field(default_factory=dict)
    """By peer; why, for one that is missing."""

    signatures: dict[str, int] = field(default_factory=dict)
    """The sandbox's status, by peer."""

    rounds: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    """By protocol and peer."""

    memory: dict[str, dict[str, Figures]] = field(default_factory=dict)
    """By protocol and peer."""

    stages: list[tuple[str, str, float, float, float]] = field(default_factory=list)
    """Name, what it is, microseconds, normal microseconds, its budget."""

    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure is to be."""

    name: str
    most: float
    unit: str
    found: Callable[[Results], float | None]
    at_least: bool = False

    def row(self, results: Results) -> list[str]:
        value = self.found(results)
        sign = "at least" if self.at_least else "at most"
        wanted = f"{sign} {self.most:g}{self.unit}"
        if value is None:
            return [self.name, wanted, "-", "not measured"]
        reached = value >= self.most if self.at_least else value <= self.most
        off = self.most / value if self.at_least else value / self.most
        verdict = "reached" if reached else f"missed by a factor of {off:.1f}"
        return [self.name, wanted, f"{_digits(value)}{self.unit}", verdict]


def _to(peer: str, name: str) -> Callable[[Results], float | None]:
    def found(results: Results) -> float | None:
        peers = results.rounds.get("http1", {})
        return ratio(peers.get(OURS, []), peers.get(peer, []), name)

    return found


def _excess_ms(results: Results) -> float | None:
    peers = results.rounds.get("http1", {})
    rows = _excess(peers.get(OURS, []), peers.get("direct", []))
    value = medians(rows).get("excess_p50")
    return None if value is None else value / 1000


def _of_memory(name: str, unit: float) -> Callable[[Results], float | None]:
    def found(results: Results) -> float | None:
        value = results.memory.get("http1", {}).get(OURS, {}).get(name)
        return None if value is None else value / unit

    return found


GOALS = (
    Goal("CPU of a Converse, 32 at a time, to Envoy's", 1.0, " x", _to("envoy", "request_us")),
    Goal("the same one after the other", 1.0, " x", _to("envoy", "lone_us")),
    Goal("the same 200 a second", 1.0, " x", _to("envoy", "paced_us")),
    Goal("CPU of an event to nginx's", 1.5, " x", _to("nginx", "event_us")),
    Goal("CPU of a bulk stream to nginx's", 3.0, " x", _to("nginx", "bulk_ms_mb")),
    Goal("latency of a lone Converse beyond direct, median", 0.3, " ms", _excess_ms),
    Goal("Converse a second to LiteLLM's", 100, " x", _to("litellm", "rps"), at_least=True),
    Goal("an open stream, of 10,000", 20, " kB", _of_memory("open_10000", 1000)),
    Goal("an idle process, RSS", 80, " MB", _of_memory("idle_rss", 1e6)),
    Goal("a stalled reader of 500 MB", 2, " MB", _of_memory("stalled", 1e6)),
)

# Name, title, divisor.
_ROWS = (
    ("rps", "Converse a second, 32 at a time", 1.0),
    ("busy", "the peer's core then, % busy", 0.01),
    ("load_busy", "load generator and upstream then, % of a core", 0.01),
    ("request_us", "CPU of one of these, us", 1.0),
    ("paced_us", "CPU of one of 200 a second, us", 1.0),
    ("paced_p50", "latency at 200 a second, median, ms", 1000.0),
    ("paced_p99", "p99, ms", 1000.0),
    ("lone_us", "CPU of one after the other, us", 1.0),
    ("lone_p50", "latency of one after the other, median, ms", 1000.0),
    ("lone_p99", "p99, ms", 1000.0),
    ("excess_p50", "median beyond direct, ms", 1000.0),
    ("excess_p99", "p99 beyond direct's, ms", 1000.0),
    ("event_us", "CPU of an event, 200 streams of 50 a second, us", 1.0),
    ("first_p50", "first byte of these, median, ms", 1000.0),
    ("first_p99", "p99, ms", 1000.0),
    ("event_p50", "an event on its way, median, ms", 1000.0),
    ("event_p99", "p99, ms", 1000.0),
    ("drip_load_busy", "load generator and upstream then, % of a core", 0.01),
    ("bulk_mb_s", "one bulk stream, frames of 8 KiB, MB/s", 1.0),
    ("bulk_ms_mb", "CPU of it, ms a MB", 1.0),
    ("small_bulk_mb_s", "one bulk stream, frames of 170 bytes, MB/s", 1.0),
    ("small_bulk_ms_mb", "CPU of it, ms a MB", 1.0),
)
_RATIOS = frozenset(name for name, title, _ in _ROWS if "busy" not in name)
_MEMORY_ROWS = (
    ("idle_rss", "idle process, RSS, MB", 1e6),
    ("idle", "the same, PSS, MB", 1e6),
    ("warm", "after some hundred requests, MB", 1e6),
    ("open_1000", "an open stream, of 1,000, kB", 1e3),
    ("open_10000", "an open stream, of 10,000, kB", 1e3),
    ("stalled", "a stalled reader of {mb} MB, MB", 1e6),
)


def _digits(value: float) -> str:
    """Three of them are meant seriously."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _excess(rounds: Sequence[Figures], direct: Sequence[Figures]) -> list[Figures]:
    return [
        {
            f"excess_{quantile}": one[f"lone_{quantile}"] - other[f"lone_{quantile}"]
            for quantile in ("p50", "p99")
        }
        for one, other in zip(rounds, direct, strict=False)
        if "lone_p50" in one and "lone_p50" in other
    ]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = rows
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rest), ""]


def _figures(results: Results, protocol: str) -> list[str]:
    rounds = {name: list(found) for name, found in results.rounds[protocol].items()}
    direct = results.rounds.get("http1", {}).get("direct", [])
    for name, found in rounds.items():
        if name != "direct":
            more = _excess(found, direct)
            rounds[name] = [
                one | other for one, other in zip(found, more + [{}] * len(found), strict=False)
            ]
    names = [name for name in PEERS if name in rounds]
    others = [name for name in names if name in ("nginx", "envoy", "litellm", "txbedrock-bare")]
    compared = others if OURS in rounds else []
    middle = {name: medians(rounds[name]) for name in names}
    rows = [["", *names, *(f"{OURS} / {other}" for other in compared)]]
    for name, title, unit in _ROWS:
        if not any(name in figures for figures in middle.values()):
            continue
        cells = [title]
        for peer in names:
            value = middle[peer].get(name)
            # Nobody is in between: there is no CPU of a peer.
            shown = value is not None and not (peer == "direct" and not value)
            cells.append(_digits(value / unit) if shown and value is not None else "-")
        for other in compared:
            times = ratio(rounds[OURS], rounds[other], name) if name in _RATIOS else None
            cells.append("" if times is None else _digits(times))
        rows.append(cells)
    return _table(rows)


def _memory(results: Results, protocol: str) -> list[str]:
    found = results.memory[protocol]
    rows = [["", *found]]
    for name, title, unit in _MEMORY_ROWS:
        cells = [
            _digits(figures[name] / unit) if name in figures else "-" for figures in found.values()
        ]
        if set(cells) != {"-"}:
            rows.append([title.format(mb=results.effort.stalled_mb), *cells])
    return _table(rows)


def _machine() -> str:
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.+)", info)
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    gib = int(memory[1]) / 1024**2 if memory else 0
    name = model[1].strip() if model else platform.machine()
    return f"{os.cpu_count()} x {name}, {gib:.0f} GiB, Linux {platform.release()}"


def render(results: Results, tried: str = "") -> str:
    """
    Markdown.

    :param tried: what is to be said by people, appended as it is.
    """
    effort = results.effort
    lines = [
        "# What it costs",
        "",
        f"Made by `{results.command}`; how, is in README.md.",
        "",
        *(["**Provisional**: too few rounds to be quoted.", ""] if effort.rounds < 3 else []),
        f"- machine: {_machine()}",
        *(f"- {name}: {text}" for name, text in results.versions.items() if name != "direct"),
        f"- {effort.rounds} round{'s' if effort.rounds > 1 else ''}, interleaved; each load "
        f"{effort.seconds:g} s; " + (
            "the peer on one core, load generator and upstream on the other(s)"
            if results.pinned else "all on one core"
        ),
        "",
    ]  # fmt: skip
    if results.signatures:
        said = ", ".join(f"{name} {status}" for name, status in results.signatures.items())
        lines += [
            "The sandbox, which verifies signatures, answered a Converse that came through each "
            f"of them with: {said}. In every load the upstream counted that what should be signed "
            "was.",
            "",
        ]
    if results.rounds.get("http1", {}).get(OURS):
        lines += ["## Goals", ""]
        lines += _table(
            [["over HTTP/1.1", "goal", "found", ""], *(goal.row(results) for goal in GOALS)]
        )
    for protocol in results.rounds:
        lines += [f"## {_TITLES[protocol]}", "", *_figures(results, protocol)]
    for protocol in results.memory:
        lines += [f"## Memory, {_TITLES[protocol]}", "", *_memory(results, protocol)]
    if results.stages:
        lines += ["## Stages", ""]
        lines += [
            f"CPU of the reactor's thread, us where the reference takes {REFERENCE_US:g} us "
            "(`benchmarks/timing.py`).",
            "",
        ]
        rows = [["stage", "what", "here", "normal", "budget"]]
        for name, what, here, normal, budget in results.stages:
            rows.append([name, what, f"{here:.2f}", f"{normal:.2f}", f"{budget:g}"])
        lines += _table(rows)
    if results.failures:
        lines += ["## Not measured", "", *(f"- {each}" for each in results.failures), ""]
    return "\n".join(lines) + (f"\n{tried.strip()}\n" if tried else "")


def summary(figures: Mapping[str, float]) -> str:
    """One line, while it is measured."""
    return "  ".join(f"{name}={_digits(value)}" for name, value in figures.items())


__all__ += ["summary"]
