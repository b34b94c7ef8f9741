"""
The benchmarks measure what they say: the load generator finds wrong answers, CPU is counted,
what should be signed is, and nothing outlives a run.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from benchmarks.measuring import QUICK, Bench, Figures, medians, ratio, signature
from benchmarks.native import Tools, compiled
from benchmarks.peers import PEERS, Running, make_certificate
from benchmarks.processes import Child, Failed, cpu_seconds, tree
from benchmarks.results import GOALS, Results, render
from benchmarks.stages import BUDGETS_US, stages
from benchmarks.timing import REFERENCE_US, cost, reference
from txbedrock.core.eventstream import encode

if not sys.platform.startswith("linux") or not (shutil.which("cc") or shutil.which("gcc")):
    raise SkipTest("benchmarks need Linux and a C compiler")

_INSTALLED = Path(sys.prefix) / "peers"
_ROOT = Path(__file__).resolve().parent.parent

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(kind: str, payload: bytes = b"{}") -> bytes:
    return encode({":event-type": kind, ":message-type": "event"}, payload)


class Canned:
    """Answers every request on a connection with the same bytes, and closes if told so."""

    def __init__(self, answer: bytes, *, close: bool = False) -> None:
        self._answer, self._close = answer, close
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while connection.recv(65536):
                connection.sendall(self._answer)
                if self._close:
                    return

    def stop(self) -> None:
        self._socket.close()


@functools.cache
def _tools() -> Tools:
    """Compiled once for all tests."""
    folder = tempfile.mkdtemp(prefix="txbedrock-bench-")
    atexit.register(shutil.rmtree, folder)
    return compiled(Path(folder))


class BenchTestCase(SynchronousTestCase):
    """With an upstream and a load generator."""

    bench: Bench

    def setUp(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="txbedrock-bench-"))
        self.addCleanup(shutil.rmtree, folder)
        self.bench = Bench(folder, _tools(), make_certificate(folder), _INSTALLED, QUICK)
        self.bench.__enter__()
        self.addCleanup(self.bench.__exit__)


class LoadTests(BenchTestCase):
    def to(self, port: int) -> Running:
        return Running(PEERS["direct"], None, {"http1": port}, ["Content-Type: application/json"])

    def test_whole(self) -> None:
        """What is asked of the upstream comes, and is counted."""
        direct = self.to(self.bench.upstream_port)
        done = self.bench.load(direct, "http1", "unary", {"streams": 4, "count": 100})
        self.assertEqual(100, done.report["done"])
        self.assertEqual(100, done.report["latency"]["count"])
        options = {"streams": 3, "ramp": 0.1}
        done = self.bench.load(direct, "http1", "streams", options, asked="bench:20:2000:0")
        self.assertEqual(3 * 20, done.report["event"]["count"])
        # The first of a stream, its end in three.
        self.assertEqual(3 * 24, done.report["events"])
        done = self.bench.load(direct, "http1", "streams", {}, asked="bench:500:0:8192")
        self.assertGreater(done.report["bytes"], 500 * 8192)

    def test_rate(self) -> None:
        """A fixed rate is kept, and a late answer counts from when it was due."""
        direct = self.to(self.bench.upstream_port)
        options = {"streams": 4, "rate": 200, "seconds": 0.5}
        done = self.bench.load(direct, "http1", "unary", options)
        self.assertEqual(100, done.report["done"])
        self.assertGreater(done.seconds, 0.5)

    def test_wrong_answers(self) -> None:
        """Whatever is wrong with an answer, it is no figure."""
        whole = chunk(event("messageStart")) + chunk(event("metadata"))
        delta = event("contentBlockDelta", b'{"p":"@0000000000000000001"}')
        broken = delta[:-1] + bytes([delta[-1] ^ 1])
        last = b"0\r\n\r\n"
        expected = self.bench.folder.joinpath("expected").read_bytes()
        rows = [
            ("unary", HEAD.replace(b"200", b"500") % 2 + b"{}", False, "another answer|not 200"),
            ("unary", HEAD % 2 + b"{}", False, "another answer"),
            ("unary", HEAD % (len(expected) - 1) + expected[:-1], False, "answer of bytes"),
            ("unary", HEAD % 500 + b"{", True, "closed a connection under way"),
            ("streams", CHUNKED + whole, True, "closed a connection under way"),
            ("streams", CHUNKED + chunk(event("messageStart")) + last, False, "not whole"),
            ("streams", CHUNKED + chunk(delta[:50]) + last, False, "not whole"),
            ("streams", CHUNKED + chunk(broken) + whole + last, False, "checksum"),
        ]
        for mode, answer, close, expected_error in rows:
            server = Canned(answer, close=close)
            self.addCleanup(server.stop)
            with self.assertRaises(Failed) as raised:
                self.bench.load(self.to(server.port), "http1", mode, {"count": 1}, limit_s=10)
            self.assertRegex(str(raised.exception), expected_error)
        good = Canned(CHUNKED + whole + last)
        self.addCleanup(good.stop)
        self.bench.load(self.to(good.port), "http1", "streams", {}, limit_s=10)

    def test_stuck(self) -> None:
        """An answer that never comes ends a load all the same."""
        server = Canned(HEAD % 500)
        self.addCleanup(server.stop)
        with self.assertRaises(Failed):
            self.bench.load(self.to(server.port), "http1", "unary", {"count": 1}, limit_s=0.5)

    def test_unsigned(self) -> None:
        """Who should sign and does not has no figures."""
        direct = self.to(self.bench.upstream_port)
        direct.peer = replace(direct.peer, signs=True)
        with self.assertRaises(Failed) as raised:
            self.bench.load(direct, "http1", "unary", {"count": 7})
        self.assertEqual("0 of 7 were signed", str(raised.exception))


class PeerTests(BenchTestCase):
    def _signature(self, name: str) -> int:
        try:
            PEERS[name].version(_INSTALLED)
        except Failed as error:
            raise SkipTest(f"{name} is {error}") from None
        return signature(self.bench, PEERS[name])

    def test_txbedrock(self) -> None:
        """The gateway's requests arrive signed, and each is counted as such."""
        self.assertEqual(200, self._signature("txbedrock"))
        running = self.bench.start(PEERS["txbedrock"])
        self.addCleanup(running.stop)
        done = self.bench.load(running, "http1", "unary", {"streams": 4, "count": 40})
        self.assertEqual(40, done.report["done"])
        self.assertGreater(done.cpu / 40, 1e-5)
        done = self.bench.load(running, "http1", "streams", {}, asked="bench:10:1000:0")
        self.assertEqual(10, done.report["event"]["count"])

    def test_envoy(self) -> None:
        """Envoy's requests arrive signed, if it is installed."""
        self.assertEqual(200, self._signature("envoy"))

    def test_nginx(self) -> None:
        """nginx signs nothing, and that would be seen."""
        self.assertEqual(403, self._signature("nginx"))

    def test_missing(self) -> None:
        """A peer that is not installed says what to do."""
        nowhere = Path(self.mktemp())
        for name in ("envoy", "litellm"):
            with self.assertRaises(Failed) as raised:
                PEERS[name].version(nowhere)
            self.assertIn("make bench-peers", str(raised.exception))


_BURN = """
import os, sys, threading, time
def burn():
    while time.thread_time() < 0.15: pass
if os.fork() == 0:
    burn(); time.sleep(60)
thread = threading.Thread(target=burn); thread.start(); burn(); thread.join()
print("burnt", flush=True)
time.sleep(60)
"""

_OUTLIVED = """
import sys, time
from pathlib import Path
from benchmarks.processes import Child, bounded
with bounded({seconds}):
    with Child("sleep", ["sleep", "60"], Path(".")) as child:
        print(child.pid, flush=True)
        time.sleep(60)
"""


def _until(true: Callable[[], bool]) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        if true():
            return True
        time.sleep(0.02)
    return False


class ProcessTests(SynchronousTestCase):
    def test_cpu(self) -> None:
        """CPU is that of all threads and all children, and hardly anything more."""
        with Child("burn", [sys.executable, "-c", _BURN], Path(".")) as child:
            self.assertEqual("burnt", child.line())
            self.assertTrue(_until(lambda: child.cpu() > 0.45))
            self.assertEqual(2, len(tree(child.pid)))
            self.assertLess(child.cpu(), 1.5)
            self.assertGreater(child.memory().rss, child.memory().pss)
        self.assertEqual(0.0, cpu_seconds(child.pid))

    def _ends(self, seconds: int, how: int | None) -> str:
        process = subprocess.Popen(
            [sys.executable, "-c", _OUTLIVED.format(seconds=seconds)],
            cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        child = int(process.stdout.readline())
        if how is not None:
            process.send_signal(how)
        said = process.communicate(timeout=30)[1]
        self.assertTrue(_until(lambda: not _alive(child)), "the child goes on")
        return said

    def test_stopped(self) -> None:
        """However a run is stopped, what it has started stops with it."""
        self.assertIn("stopped by SIGTERM", self._ends(60, signal.SIGTERM))
        self.assertIn("stopped by SIGINT", self._ends(60, signal.SIGINT))
        self._ends(60, signal.SIGKILL)

    def test_bounded(self) -> None:
        """A run that takes too long is ended."""
        self.assertIn("not done within 1 s", self._ends(1, None))


def _alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(") ")[2][0] not in "ZX"


class TimingTests(SynchronousTestCase):
    def test_unit(self) -> None:
        """The reference costs what it is said to; twice the work, twice as much."""

        def twice() -> None:
            reference()
            reference()

        # Something else may have run in the meantime.
        for _ in range(5):
            once_us, twice_us = cost(reference).normal_us, cost(twice).normal_us
            if abs(once_us / REFERENCE_US - 1) < 0.1 and abs(twice_us / once_us - 2) < 0.2:
                return
        self.fail(f"{once_us} and {twice_us}, not {REFERENCE_US} and twice that")


class StageTests(TestCase):
    def test_stages(self) -> Deferred[None]:
        """Every stage works, and has a budget."""

        async def each() -> None:
            async with stages(reactor) as found:
                self.assertEqual(list(BUDGETS_US), [stage.name for stage in found])
                for stage in found:
                    stage.work()
                    stage.work()

        return Deferred.fromCoroutine(each())


class ResultTests(SynchronousTestCase):
    def test_ratio(self) -> None:
        """Of each round's own, then the median; a round that failed is left out."""
        ours: list[Figures] = [{"a": 2.0}, {"a": 30.0}, {}, {"a": 3.0}]
        theirs: list[Figures] = [{"a": 1.0}, {"a": 10.0}, {"a": 1.0}, {"a": 0.75}]
        self.assertEqual(3.0, ratio(ours, theirs, "a"))
        self.assertIsNone(ratio(ours, theirs, "b"))
        self.assertIsNone(ratio(ours, [], "a"))
        self.assertEqual({"a": 3.0}, medians(ours))

    def test_goals(self) -> None:
        """What is reached, what is missed and by how much, what was not measured."""
        results = Results("python -m benchmarks compare", QUICK, True)
        results.rounds["http1"] = {
            "direct": [{"lone_p50": 20.0, "lone_p99": 30.0}],
            "envoy": [{"request_us": 100.0}],
            "litellm": [{"rps": 50.0}],
            "txbedrock": [
                {"request_us": 250.0, "rps": 5000.0, "lone_p50": 420.0, "lone_p99": 500.0}
            ],
        }
        results.memory["http1"] = {"txbedrock": {"idle_rss": 79e6, "open_10000": 30e3}}
        text = render(results, "And this was tried.")
        rows = {
            cells[0].strip(): cells[2:]
            for line in text.splitlines()
            if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 4
        }
        found = [rows[goal.name][1] for goal in GOALS if goal.name in rows]
        self.assertEqual(len(GOALS), len(found))
        self.assertEqual("missed by a factor of 2.5", found[0])
        self.assertEqual("not measured", found[3])
        self.assertEqual("missed by a factor of 1.3", found[5])
        self.assertEqual("reached", found[6])
        self.assertEqual("missed by a factor of 1.5", found[7])
        self.assertEqual("reached", found[8])
        self.assertIn("| CPU of one of these, us | - | 100 | - | 250 | 2.50 | - |",
                      re.sub(r"\|  \|", "| - |", text))  # fmt: skip
        self.assertTrue(text.endswith("And this was tried.\n"))
        self.assertNotIn(str(os.getpid()), text)
