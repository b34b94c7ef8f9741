"""
A gateway under abuse: whoever behaves is served throughout, and the metrics say what was
refused.

The gateway is a process of its own, and so is who attacks it; the client that behaves and
the sandbox are in this one. ``TXBEDROCK_FLOOD=full`` makes the numbers those that are
promised (10,000 connections, 1,000 streams); the gateway then has a core to itself, where
there are two, and all others share the rest. The figures are in trial's log.
"""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import sys
from collections.abc import Awaitable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, ensureDeferred, fail
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.protocol import Factory, ProcessProtocol, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from tests.fakes import ACCESS_KEY_ID, BODY, CONVERSE, KEY, SECRET, pause, request, until
from tests.inbound.http2_frames import (
    Frame,
    FrameClient,
    Kind,
    Setting,
    data,
    window_update,
)
from tests.inbound.http2_frames import request as http2_request
from tests.program import _ROOT, Program
from tests.sandboxed import REGION, SandboxedTestCase
from txbedrock.core.eventstream import Decoder

FULL = os.environ.get("TXBEDROCK_FLOOD") == "full"
MB = 1_000_000
_PATIENCE_S = 30.0


class Asker(Protocol):
    """A client of HTTP/1.1 that behaves, with one request at a time."""

    def __init__(self) -> None:
        self._received = b""
        self._waiting: Deferred[int] | None = None
        self.lost: Failure | None = None
        self.transport: Any

    def ask(self, data: bytes) -> Deferred[int]:
        """:returns: the status of the answer, when it is whole."""
        if self.lost is not None:
            return fail(self.lost)
        waiting = self._waiting = Deferred()
        self._received = b""
        self.transport.write(data)
        return waiting

    @property
    def body(self) -> bytes:
        return self._received.partition(b"\r\n\r\n")[2]

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        found = re.search(rb"(?i)content-length: (\d+)", head)
        if end and found and len(body) >= int(found[1]) and self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.callback(int(head.split(b" ", 2)[1]))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.errback(reason)


class Attack(ProcessProtocol):
    """A run of :mod:`tests.loopback.flooder`."""

    def __init__(self, kind: str, port: int, count: int, source: str = "") -> None:
        self.reports: list[dict[str, int]] = []
        self.ended: Deferred[None] = Deferred()
        self._output = b""
        self.errors = b""
        arguments = ["-m", "tests.loopback.flooder", kind, str(port), str(count), source]
        reactor.spawnProcess(  # type: ignore[attr-defined]
            self,
            sys.executable,
            [sys.executable, *arguments],
            env={"PYTHONPATH": _ROOT},
            path=_ROOT,
        )

    def outReceived(self, data: bytes) -> None:
        self._output += data
        *lines, self._output = self._output.split(b"\n")
        self.reports += [json.loads(line) for line in lines]

    def errReceived(self, data: bytes) -> None:
        self.errors += data

    def processEnded(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(None)

    async def under_way(self) -> dict[str, int]:
        """Wait until all its connections are there."""
        await until(lambda: bool(self.reports) or self.ended.called, 120)
        assert self.reports, self.errors
        return self.reports[0]

    async def stop(self) -> dict[str, int]:
        """:returns: all that it did."""
        if not self.ended.called:
            assert self.transport is not None
            self.transport.closeStdin()
        await self.ended
        assert not self.errors, self.errors
        return self.reports[-1]


class Latencies:
    """How long a client waited, seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def add(self, kind: str, seconds: float) -> None:
        self.seconds.setdefault(kind, []).append(seconds)

    def medians(self) -> list[float]:
        """Of each kind."""
        return [sorted(found)[len(found) // 2] for found in self.seconds.values()]

    def __str__(self) -> str:
        lines = []
        for kind, all_of in self.seconds.items():
            found = sorted(all_of)
            p50, p99 = (found[int(len(found) * part)] * 1e3 for part in (0.5, 0.99))
            lines.append(
                f"{kind} {len(found)} x p50 {p50:.1f} p99 {p99:.1f} max {found[-1] * 1e3:.1f} ms"
            )
        return "; ".join(lines)


class AbuseTestCase(SandboxedTestCase):
    """A gateway in a process of its own."""

    timeout = 300
    _log = Logger()

    async def start_program(self, **general: Any) -> None:
        """Start the gateway with the models ``m`` and ``s`` at the sandbox."""
        self.start_sandbox()
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        params = {
            "aws_region_name": REGION,
            "aws_access_key_id": ACCESS_KEY_ID,
            "aws_secret_access_key": SECRET,
            "api_base": f"http://127.0.0.1:{self.upstream_port}",
        }
        models = {
            "m": "bedrock/amazon.nova-lite-v1:0",
            "s": "bedrock/anthropic.claude-3-haiku-20240307-v1:0",
        }
        config = {
            "model_list": [
                {"model_name": name, "litellm_params": {"model": model, **params}}
                for name, model in models.items()
            ],
            "general_settings": {"master_key": KEY, "shutdown_grace": "1s", **general},
        }
        path = os.path.join(directory, "config.yaml")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        self.program = Program(
            [
                *("bedrockproxy", "--config", path),
                *("--listen", "tcp:0:interface=127.0.0.1", "--log-format", "json"),
            ],
            directory,
            {"TMPDIR": directory},
            ("-m", "tests.loopback.probed"),
        )
        self.clients: list[Any] = []
        self.addCleanup(lambda: Deferred.fromCoroutine(self._stop_program()))
        self.port = await self.program.ready()
        # What is measured is not how long the collector takes in this process.
        gc.collect()
        gc.freeze()
        self.addCleanup(gc.unfreeze)
        cores = sorted(os.sched_getaffinity(0))
        if FULL and len(cores) > 1:
            # Else the figures say how the kernel shares a core, too.
            self.addCleanup(os.sched_setaffinity, 0, cores)
            os.sched_setaffinity(self.program.pid, cores[:1])
            os.sched_setaffinity(0, cores[1:])

    async def _stop_program(self) -> None:
        for client in self.clients:
            client.transport.abortConnection()
        self.assertEqual(await self.program.stop(), 0, self.program.output[-5000:])
        self.assertNotIn("Traceback", self.program.output)
        for secret in (KEY, SECRET, "planted"):
            self.assertNotIn(secret, self.program.output)

    async def connect_asker(self) -> Asker:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port, timeout=_PATIENCE_S)
        client: Asker = await endpoint.connect(Factory.forProtocol(Asker))
        self.clients.append(client)
        return client

    async def connect_http2(self, client: FrameClient | None = None) -> FrameClient:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        made = FrameClient() if client is None else client
        await endpoint.connect(Factory.forProtocol(lambda: made))  # type: ignore[arg-type]
        # Windows are opened in writes of their own, which must not hold up a request.
        made.transport.setTcpNoDelay(True)  # type: ignore[union-attr]
        self.clients.append(made)
        return made

    async def metrics(self) -> dict[str, float]:
        """Name and labels -> value."""
        client = await self.connect_asker()
        await client.ask(request("/metrics", b"", method="GET"))
        found = {}
        for line in client.body.decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        client.transport.loseConnection()
        return found

    async def refused(self) -> dict[str, int]:
        """Connections refused so far, by reason."""
        pattern = re.compile(r'txbedrock_connections_refused_total\{reason="(\w+)"\}')
        return {
            found[1]: int(value)
            for name, value in (await self.metrics()).items()
            if (found := pattern.fullmatch(name))
        }

    async def stalls(self) -> dict[str, float]:
        """
        Stop the gateway.

        :returns: by callback of HTTP/2, how long it kept the reactor at most, ms.
        """
        self.assertEqual(await self.program.stop(), 0)
        lines = self.program.output.splitlines()
        [line] = [line for line in lines if line.startswith('{"callbacks"')]
        return {name: of["longest_ms"] for name, of in json.loads(line)["callbacks"].items()}

    def attack(self, kind: str, count: int, source: str = "") -> Attack:
        """Begin one; it ends with the test at the latest."""
        attack = Attack(kind, self.port, count, source)
        self.addCleanup(lambda: ensureDeferred(attack.stop()))
        return attack

    def tell(self, what: str, **figures: Any) -> None:
        shown = ", ".join(f"{name}: {value}" for name, value in figures.items())
        self._log.info("{what}: {shown}", what=what, shown=shown)
        if FULL:
            print(f"\n  {what}: {shown}", flush=True)


class BehavingClient:
    """
    Asks again and again: on a connection of HTTP/1.1 that it keeps, on a new one each
    time, and on one of HTTP/2. It opens another one, as every client does, when a
    connection is closed that it had kept; never for one that has just been opened.

    :param test: whose gateway is asked.
    """

    def __init__(self, test: AbuseTestCase) -> None:
        self._test = test
        self._stopped = False
        self._kept: Asker | None = None
        self._two: FrameClient | None = None
        self._stream = 1
        self.latencies = Latencies()
        self.rounds = 0
        self.reconnected = 0

    def start(self) -> None:
        self._running = ensureDeferred(self._run())

    async def stop(self) -> None:
        """:raises Exception: whatever went wrong meanwhile."""
        self._stopped = True
        await self._running

    async def for_a_while(self, rounds: int) -> None:
        """Wait until it has asked so many times."""
        wanted = self.rounds + rounds
        await until(lambda: self.rounds >= wanted or self._running.called, 120)
        if self.rounds < wanted:
            await self._running

    async def _run(self) -> None:
        while not self._stopped:
            await self._timed("kept", self._ask_kept())
            await self._timed("new", self._ask_anew())
            await self._timed("h2c", self._ask_two())
            self.rounds += 1
            await pause(0.01)

    async def _timed(self, kind: str, asking: Awaitable[None]) -> None:
        started = reactor.seconds()  # type: ignore[attr-defined]
        await asking
        self.latencies.add(kind, reactor.seconds() - started)  # type: ignore[attr-defined]

    async def _ask(self, client: Asker) -> None:
        status = await client.ask(request(CONVERSE)).addTimeout(_PATIENCE_S, reactor)  # type: ignore
        self._test.assertEqual(status, 200, client.body)

    async def _ask_kept(self) -> None:
        if self._kept is not None:
            try:
                await self._ask(self._kept)
                return
            except (ConnectionDone, ConnectionLost):
                self.reconnected += 1
        self._kept = await self._test.connect_asker()
        await self._ask(self._kept)

    async def _ask_anew(self) -> None:
        client = await self._test.connect_asker()
        await self._ask(client)
        client.transport.loseConnection()
        self._test.clients.remove(client)

    async def _ask_two(self) -> None:
        if self._two is not None:
            if await self._answered(self._two):
                return
            self.reconnected += 1
        self._two, self._stream = await self._test.connect_http2(), 1
        await self._two.handshake()
        self._test.assertTrue(await self._answered(self._two), self._two)

    async def _answered(self, two: FrameClient) -> bool:
        """Ask; :returns: False when the connection has been closed before."""
        stream, self._stream = self._stream, self._stream + 2
        answer = two.answer(stream)
        if two.closed:
            return False
        two.send(converse(stream))
        await two.until(lambda: answer.ended or two.closed, "an answer", _PATIENCE_S)
        if not answer.ended:
            return False
        self._test.assertIn((b":status", b"200"), answer.heads[-1])
        # What came is not looked through again each time.
        del two.answers[stream]
        two.frames.clear()
        two.send(window_update(0, len(answer.body)))
        return True


def converse(stream: int, path: str = CONVERSE) -> bytes:
    """A request of HTTP/2."""
    key = (b"x-api-key", KEY.encode())
    head = http2_request(stream, key, method=b"POST", path=path.encode(), end=False)
    return head + data(stream, BODY)


class FloodTests(AbuseTestCase):
    """One client that behaves, and one that does not."""

    async def flood(
        self, kind: str, count: int, rounds: int, source: str = "", refuses: bool = True
    ) -> tuple[dict[str, int], dict[str, int], Latencies]:
        """
        Let somebody attack, and the other ask meanwhile.

        :param count: connections.
        :param rounds: how often the other asks, in three ways, while the attack goes on.
        :param source: the attacker's address; that of the other is 127.0.0.1.
        :param refuses: whether somebody is refused sooner or later.
        :returns: what the attacker did, what was refused, how long the other waited.
        """
        good = BehavingClient(self)
        good.start()
        await good.for_a_while(10)
        alone, good.latencies = good.latencies, Latencies()
        before = self.program.memory()
        os.kill(self.program.pid, signal.SIGUSR2)
        attack = self.attack(kind, count, source)
        await attack.under_way()
        began, (had, waited) = reactor.seconds(), self.program.processor_s()  # type: ignore
        await good.for_a_while(rounds)
        if refuses:
            await self.until_refused()
        refused = await self.refused()
        seconds, (had_then, waited_then) = reactor.seconds() - began, self.program.processor_s()  # type: ignore
        most = self.program.memory("VmHWM")
        done = await attack.stop()
        await good.stop()
        self.tell(
            f"{kind} {count} {source}",
            attacker=done,
            refused=refused,
            alone=alone,
            beside=good.latencies,
            reconnected=good.reconnected,
            core=f"{(had_then - had) / seconds:.0%}",
            waited_for_core=f"{(waited_then - waited) / seconds:.0%}",
            memory=f"{(most - before) / MB:.1f} MB more at most",
        )
        # The slowest ones say how busy the machine is, too.
        self.assertLess(max(good.latencies.medians()), 0.1)
        return done, refused, good.latencies

    async def until_refused(self) -> None:
        """Wait until somebody was."""
        for _ in range(300):
            if await self.refused():
                return
            await pause(0.1)
        self.fail("nobody was refused")

    async def check_after(self) -> None:
        """All that was the attacker's goes away."""
        for _ in range(300):
            found = await self.metrics()
            if found['txbedrock_connections{protocol="h2"}'] <= 1:
                break
            await pause(0.1)
        self.assertEqual(found['txbedrock_streams{protocol="h2"}'], 0)
        self.assertEqual(found["txbedrock_exchanges_in_flight"], 0)

    async def test_idle(self) -> None:
        """Thousands of idle connections are held, and disturb nobody."""
        count = 10_000 if FULL else 1_000
        await self.start_program(max_connections=count + 100)
        done, refused, _ = await self.flood("idle", count, 50 if FULL else 20, refuses=False)
        self.assertEqual((done["open"], done["answered"], done["closed"]), (count, count, 0))
        self.assertEqual(refused, {})

    async def test_too_many_idle(self) -> None:
        """More than there may be: the longest idle go, and nobody is refused."""
        count = 4_000 if FULL else 2_000
        await self.start_program(max_connections=count // 2)
        good = BehavingClient(self)
        good.start()
        attack = self.attack("idle", count)
        await until(lambda: bool(attack.reports), 120)
        await good.for_a_while(20)
        refused = await self.refused()
        done = await attack.stop()
        await good.stop()
        self.tell("idle, too many", attacker=done, refused=refused, beside=good.latencies)
        self.assertGreater(refused.pop("idle"), count // 2)
        # Of those who are always in a hurry some may not have got a word in.
        self.assertLessEqual(set(refused), {"slow_header"})

    async def test_slow_headers(self) -> None:
        """
        Thousands of headers that never end take all the room there is, and each new
        client finds some.
        """
        count = 5_000 if FULL else 2_000
        await self.start_program(max_connections=count // 2)
        done, refused, _ = await self.flood("slow", count, 50 if FULL else 20)
        self.assertGreater(refused["slow_header"], count // 4)
        self.assertGreater(done["closed"], count // 4)
        self.assertLessEqual(set(refused), {"slow_header", "idle"})

    async def test_slow_headers_end(self) -> None:
        """Even with room for them, they end by their time limit."""
        count = 2_000 if FULL else 200
        await self.start_program(header_timeout="2s")
        good = BehavingClient(self)
        good.start()
        attack = self.attack("slow", count)
        await attack.under_way()

        async def all_refused() -> dict[str, int]:
            while True:
                refused = await self.refused()
                if refused.get("header", 0) >= count:
                    return refused
                await pause(0.2)

        refused = await ensureDeferred(all_refused()).addTimeout(60, reactor)  # type: ignore
        done = await attack.stop()
        await good.stop()
        self.tell("slow, to their end", attacker=done, refused=refused, beside=good.latencies)
        self.assertEqual(set(refused), {"header"})

    async def http2_flood(
        self, kind: str, reason: str, count: int = 4, source: str = ""
    ) -> Latencies:
        await self.start_program()
        done, refused, latencies = await self.flood(kind, count, 200 if FULL else 10, source)
        self.assertGreater(refused[reason], 0)
        self.assertEqual(set(refused), {reason})
        self.assertGreater(done["closed"], 0)
        await self.check_after()
        await self.check_stalls(kind)
        return latencies

    async def check_stalls(self, kind: str) -> None:
        """No callback has kept the reactor for long. This stops the gateway."""
        stalls = await self.stalls()
        self.tell(f"{kind}, longest callbacks, ms", **stalls)
        del stalls["collector"]
        # Twice what is promised, for a core that others heat.
        self.assertLess(max(stalls.values()), 10, stalls)

    async def test_pipelined(self) -> None:
        """Requests of HTTP/1.1 by the thousand in one piece, without a key."""
        await self.start_program()
        done, _, _ = await self.flood("pipelined", 4, 200 if FULL else 10, refuses=False)
        self.assertEqual(done["open"], 4)
        await self.check_stalls("pipelined")
        self.assertTrue(re.search(r"and \d+ more refused with 40[13]", self.program.output))

    async def test_resets(self) -> None:
        """Requests that are given up by the thousand."""
        await self.http2_flood("resets", "rapid_reset")

    async def test_resets_by_many(self) -> None:
        """The same, from a hundred connections."""
        await self.http2_flood("resets", "rapid_reset", 100)

    async def test_resets_by_a_neighbour(self) -> None:
        """Behind the attacker's own address everybody else is served, too."""
        await self.http2_flood("resets", "rapid_reset", source="127.0.0.1")

    async def test_settings(self) -> None:
        """Settings that change all the time."""
        await self.http2_flood("settings", "settings_flood")

    async def test_pings(self) -> None:
        """Pings without end."""
        await self.http2_flood("pings", "ping_flood")


class Streamer(FrameClient):
    """
    Reads streams, and lets those that are stalled wait for ever.

    :ivar stalled: streams whose windows stay as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stalled: set[int] = set()

    def _received(self, frame: Frame) -> None:
        super()._received(frame)
        if frame.kind == Kind.DATA:
            # Only what it means is kept.
            self.frames.pop()
            size = len(frame.payload)
            if size:
                updates = window_update(0, size)
                if frame.stream not in self.stalled:
                    updates += window_update(frame.stream, size)
                self.send(updates)


class StreamTests(AbuseTestCase):
    """Many streams on few connections."""

    async def test_stalled(self) -> None:
        """
        A thousand streams on ten connections, one in ten of which its client does not
        read: the others get every event, and what is not read is not kept.
        """
        each = 100 if FULL else 30
        await self.start_program()
        self.sandbox.faults.add("drip", model="amazon.*", interval_ms=200, times=None)
        self.sandbox.faults.add(
            "flood", model="anthropic.*", megabytes=5, frame_bytes=10_000, times=None
        )
        plain = await self.connect_http2(Streamer())
        await plain.handshake()
        path = "/bedrock/model/{}/converse-stream"
        plain.send(converse(1, path.format("m")))
        await plain.until(lambda: plain.answer(1).ended, "a stream", 60)
        [*events] = Decoder().feed(bytes(plain.answer(1).body))
        self.assertGreater(len(events), 5)

        before = self.program.memory()
        clients = [Streamer() for _ in range(10)]
        streams = range(1, 2 * each, 2)
        started = reactor.seconds()  # type: ignore[attr-defined]
        for client in clients:
            await self.connect_http2(client)
            await client.handshake((Setting.INITIAL_WINDOW_SIZE, 16_384))
            # One in ten, by turns the first, the second ... of each ten.
            client.stalled = set(streams[clients.index(client) :: 10])
            for stream in streams:
                model = "s" if stream in client.stalled else "m"
                client.send(converse(stream, path.format(model)))
        most_streams, watching = 0, True

        async def watch() -> None:
            nonlocal most_streams
            while watching:
                found = await self.metrics()
                now = int(found['txbedrock_streams{protocol="h2"}'])
                most_streams = max(most_streams, now)
                await pause(0.05)

        watched = ensureDeferred(watch())
        for client in clients:
            read = [stream for stream in streams if stream not in client.stalled]
            await client.until(
                lambda client=client, read=read: all(client.answer(each).ended for each in read),
                "all streams",
                200,
            )
        seconds = reactor.seconds() - started  # type: ignore[attr-defined]
        watching = False
        await watched
        # Nobody reads them, so they get no further, however long they have.
        sent = -1
        while sent != self.sandbox.stats.bytes_sent:
            sent = self.sandbox.stats.bytes_sent
            await pause(1)
        growth = self.program.memory("VmHWM") - before
        found = await self.metrics()
        stalled = sum(len(client.stalled) for client in clients)
        self.tell(
            f"{10 * each} streams, {stalled} stalled",
            seconds=f"{seconds:.1f}",
            at_once=most_streams,
            memory=f"{growth / MB:.1f} MB more at most",
            a_stream=f"{growth / 10 / each / 1e3:.1f} kB",
        )
        for client in clients:
            for stream in streams:
                answer = client.answer(stream)
                self.assertIsNone(answer.reset)
                if stream in client.stalled:
                    self.assertFalse(answer.ended)
                    self.assertEqual(len(answer.body), 16_384)
                else:
                    self.assertEqual(Decoder().feed(bytes(answer.body)), events)
        self.assertEqual(found['txbedrock_streams{protocol="h2"}'], stalled)
        self.assertGreater(most_streams, 9 * each)
        # Of 5 MB each; what is in the gateway is bounded by its buffers for a stream.
        self.assertLess(growth, 40 * MB + 10 * each * 200_000)
        self.assertEqual(await self.refused(), {})

        # And when they are read after all, all is there.
        for client in clients:
            for stream in client.stalled:
                client.send(window_update(stream, 20 * MB))
            client.stalled = set()
        for client in clients:
            await client.until(
                lambda client=client: all(client.answer(each).ended for each in streams),
                "the stalled streams",
                200,
            )
        bodies = {
            bytes(client.answer(stream).body)
            for client in clients
            for stream in streams
            if len(client.answer(stream).body) > MB
        }
        self.assertEqual(len(bodies), 1)
