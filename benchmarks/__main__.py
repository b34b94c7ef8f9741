"""
``python -m benchmarks``: see README.md, or ``--help``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import checking, profiling, soaking, stalling
from benchmarks.measuring import FIGURES, QUICK, Bench, Effort, memory, signature, warm_up
from benchmarks.native import compiled
from benchmarks.peers import PEERS, PROTOCOLS, Running, make_certificate
from benchmarks.processes import Failed, bounded
from benchmarks.results import OURS, Results, render, summary
from benchmarks.stages import BUDGETS_US, in_reactor, measured

_HERE = Path(__file__).parent

Row = tuple[str, str, float, float, float]
"""Of a stage: name, what it is, microseconds, normal ones, its budget."""


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parsed(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(
                f"no {', '.join(unknown)}; there are: {', '.join(known)}"
            )
        return names

    return parsed


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    compare = commands.add_parser("compare", help="the gateway and its peers in one run")
    compare.add_argument("--write", type=Path, help="the file for the tables; else printed")
    compare.add_argument("--peers", type=_names([*PEERS]),
                         default=[name for name in PEERS if name != "txbedrock-bare"])  # fmt: skip
    compare.add_argument("--protocols", type=_names(PROTOCOLS), default=["http1", "h2c", "tls"])
    compare.add_argument("--figures", type=_names([*FIGURES, "memory", "stages"]),
                         default=[*FIGURES, "memory", "stages"])  # fmt: skip
    compare.add_argument("--rounds", type=int)
    stages = commands.add_parser("stages", help="each stage of an exchange, and its budget")
    stages.add_argument("names", nargs="*", choices=[[], *BUDGETS_US], metavar="NAME")
    commands.add_parser("check", help="has anything become dearer? For CI")
    profile = commands.add_parser("profile", help="where the gateway's time goes")
    profile.add_argument("--no-ledger", action="store_true")
    profile.add_argument("--seconds", type=float, default=8.0)
    profile.add_argument("--top", type=int, default=25)
    soak = commands.add_parser("soak", help="memory and descriptors over many requests")
    soak.add_argument("--requests", type=int, default=1_000_000)
    stall = commands.add_parser("stalls", help="what holds the reactor, under every load")
    stall.add_argument("--write", type=Path, help="the file for the table; else printed")
    for one in (compare, profile, soak, stall):
        one.add_argument("--quick", action="store_true", help="short, and only roughly right")
        one.add_argument("--installed", type=Path, default=Path(sys.prefix) / "peers",
                         help="where make bench-peers has put them")  # fmt: skip
    words = sys.argv[1:] if words is None else words
    said = shlex.join(["python", "-m", "benchmarks", *words])
    return parser.parse_args(words, argparse.Namespace(said=said))


@contextmanager
def _bench(effort: Effort, installed: Path) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="txbedrock-bench-") as name:
        folder = Path(name)
        with Bench(
            folder, compiled(folder), make_certificate(folder), installed.absolute(), effort
        ) as bench:
            yield bench


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _stages(
    reactor: Any, names: Sequence[str] = ()
) -> list[tuple[str, str, float, float, float]]:
    found = await measured(reactor, names)
    return [
        (name, stage.what, cost.us, cost.normal_us, BUDGETS_US[name])
        for name, (stage, cost) in found.items()
    ]


def _compare(arguments: argparse.Namespace, results: Results) -> None:
    effort = results.effort
    with _bench(effort, arguments.installed) as bench:
        results.pinned = bench.peer_cores is not None
        running: list[Running] = []
        try:
            for name in arguments.peers:
                peer = PEERS[name]
                try:
                    results.versions[name] = peer.version(bench.installed)
                    if name != "direct":
                        results.signatures[name] = signature(bench, peer)
                    running.append(bench.start(peer))
                except Failed as error:
                    results.versions[name] = str(error)
                    _say(f"{name}: {error}")
            loads = [name for name in arguments.figures if name in FIGURES]
            for protocol in arguments.protocols if loads else ():
                _rounds(bench, running, protocol, loads, results)
        finally:
            for one in running:
                one.stop()
        if "memory" in arguments.figures:
            for protocol in arguments.protocols:
                _memories(bench, [one.peer.name for one in running], protocol, results)


def _rounds(
    bench: Bench,
    running: Sequence[Running],
    protocol: str,
    loads: Sequence[str],
    results: Results,
) -> None:
    speaking = [one for one in running if bench.speaks(one, protocol)]
    for one in running:
        if one not in speaking and protocol in one.peer.protocols:
            results.failures.append(f"{one.name} does not answer over {protocol}")
    if not speaking:
        return
    found = results.rounds.setdefault(protocol, {one.name: [] for one in speaking})
    for one in speaking:
        if one.peer.paced:
            warm_up(bench, one, protocol)
        else:
            one.stop()
    for number in range(results.effort.rounds):
        for one in speaking:
            found[one.name].append({})
        for name in loads:
            for one in speaking:
                try:
                    with _measurable(bench, one, protocol) as peer:
                        figures = FIGURES[name](bench, peer, protocol)
                except Failed as error:
                    results.failures.append(f"{name} of {one.name} over {protocol}: {error}")
                    _say(results.failures[-1])
                    continue
                found[one.name][-1].update(figures)
                _say(f"{number + 1} {protocol} {name} {one.name}: {summary(figures)}")


@contextmanager
def _measurable(bench: Bench, running: Running, protocol: str) -> Iterator[Running]:
    """
    A peer that does not keep up works on for minutes when nobody waits any more, and would
    take the time of the others: it is started for each figure, and stopped after it.
    """
    if running.peer.paced:
        yield running
        return
    fresh = bench.start(running.peer)
    try:
        warm_up(bench, fresh, protocol)
        yield fresh
    finally:
        fresh.stop()


def _memories(bench: Bench, names: Sequence[str], protocol: str, results: Results) -> None:
    for name in names:
        peer = PEERS[name]
        if protocol not in peer.protocols or name == "direct":
            continue
        if protocol in results.rounds and name not in results.rounds[protocol]:
            continue
        figures = results.memory.setdefault(protocol, {}).setdefault(name, {})
        try:
            memory(bench, peer, protocol, figures)
        except Failed as error:
            results.failures.append(f"memory of {name} over {protocol}: {error}")
            _say(results.failures[-1])
        _say(f"memory {protocol} {name}: {summary(figures)}")


def compare(arguments: argparse.Namespace) -> int:
    effort = QUICK if arguments.quick else Effort()
    if arguments.rounds:
        effort = Effort(**{**effort_values(effort), "rounds": arguments.rounds})
    results = Results(arguments.said, effort, False)
    with bounded(1800 if arguments.quick else 3 * 3600):
        _compare(arguments, results)

    async def rest(reactor: Any) -> None:
        if "stages" in arguments.figures and OURS in arguments.peers:
            results.stages = await _stages(reactor)
        tried = _HERE / "TRIED.md"
        text = render(results, tried.read_text("utf-8") if tried.exists() else "")
        if arguments.write:
            arguments.write.write_text(text, "utf-8")
        else:
            print(text)

    return in_reactor(rest)


def effort_values(effort: Effort) -> dict[str, Any]:
    return {name: getattr(effort, name) for name in effort.__slots__}


def stages(arguments: argparse.Namespace) -> int:
    async def shown(reactor: Any) -> None:
        print(f"{'':14} {'us here':>8} {'normal':>8} {'budget':>8}")
        for name, what, here, normal, budget in await _stages(reactor, arguments.names):
            print(f"{name:14} {here:8.2f} {normal:8.2f} {budget:8.2f}  {what}")

    return in_reactor(shown)


def main(words: Sequence[str] | None = None) -> int:
    """
    :param words: in place of those on the command line.
    :returns: the exit status.
    """
    arguments = _arguments(words)
    try:
        if arguments.command == "stages":
            return stages(arguments)
        if arguments.command == "check":
            return checking.main()
        if arguments.command in ("profile", "soak", "stalls"):
            effort = QUICK if arguments.quick else Effort()
            with bounded(3600), _bench(effort, arguments.installed) as bench:
                if arguments.command == "soak":
                    return soaking.soak(bench, arguments.requests)
                if arguments.command == "stalls":
                    return stalling.main(bench, arguments.write)
                profiling.profile(bench, not arguments.no_ledger, arguments.seconds, arguments.top)
                return 0
        if arguments.command is None:
            raise SystemExit("which? python -m benchmarks --help")
        return compare(arguments)
    except Failed as error:
        _say(f"benchmarks: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
