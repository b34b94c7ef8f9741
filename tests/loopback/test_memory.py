"""
What the gateway holds in memory, when much goes through it and little comes out.

The gateway is a process of its own; clients and the sandbox are in this one. The
figures are in trial's log (``grew by ...``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterator
from hashlib import sha256
from itertools import chain
from struct import unpack
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IPullProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.fakes import ACCESS_KEY_ID, KEY, SECRET, STREAM, BareClient, pause, request, until
from tests.program import Program
from tests.sandboxed import REGION, SandboxedTestCase
from txbedrock.core.eventstream import Decoder
from txbedrock.sandbox.service import Recorded, Sandbox

MB = 1_000_000
_IDLE_CONNECTIONS = 8


class FloodReader(Protocol):
    """Takes a chunked answer off the wire, and keeps its length and hash only."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._left = 0
        self.head = b""
        self.start = b""
        """The first bytes of the body."""

        self.length = 0
        self.hash = sha256()
        self.whole = False
        self.lost: Failure | None = None
        self.transport: Any

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason

    def dataReceived(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        if not self.head:
            head, end, rest = bytes(buffer).partition(b"\r\n\r\n")
            if not end:
                return
            self.head = head
            buffer[:] = rest
        while buffer and not self.whole:
            if not self._left:
                end_of_line = buffer.find(b"\r\n", 2 if self.length else 0)
                if end_of_line < 0:
                    return
                self._left = int(buffer[:end_of_line], 16)
                del buffer[: end_of_line + 2]
                self.whole = not self._left
                continue
            piece = bytes(buffer[: self._left])
            del buffer[: self._left]
            self._left -= len(piece)
            self.length += len(piece)
            self.hash.update(piece)
            if len(self.start) < 256 * 1024:
                self.start += piece


@implementer(IPullProducer)
class Upload:
    """Sends a request whose body is long, as fast as the socket takes it."""

    def __init__(self, client: BareClient, pieces: Iterator[bytes]) -> None:
        self._client = client
        self._pieces = pieces
        client.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            self._client.transport.unregisterProducer()
        else:
            self._client.write(piece)

    def stopProducing(self) -> None:
        pass


UPLOAD_BYTES = 20 * MB
_TEXT = bytes(range(0x61, 0x7B)) * (64 * 1024 // 26)


def upload_pieces(number: int) -> Iterator[bytes]:
    """The body of an upload, each number's another: JSON for Claude."""
    start = b'{"prompt": "Human: %d ' % number
    end = b' Assistant:", "max_tokens_to_sample": 10}'
    left = UPLOAD_BYTES - len(start) - len(end)
    yield start
    while left:
        piece = _TEXT[number : number + left]
        left -= len(piece)
        yield piece
    yield end


class HashingSandbox(Sandbox):
    """Knows the hashes of what it got, and nothing else of it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(reactor, remember=0, **options)
        self.hashes: list[str] = []

    def decide(self, recorded: Recorded, payload_sha256: str) -> Any:
        self.hashes.append(payload_sha256)
        return super().decide(recorded, payload_sha256)


class MemoryTestCase(SandboxedTestCase):
    """A gateway in a process of its own, watched."""

    timeout = 300
    _log = Logger()

    async def start_program(self, **deployment: Any) -> None:
        """Start the gateway with one model, ``m``, at the sandbox."""
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        params = {
            "model": "bedrock/anthropic.claude-3-haiku-20240307-v1:0",
            "aws_region_name": REGION,
            "aws_access_key_id": ACCESS_KEY_ID,
            "aws_secret_access_key": SECRET,
            "api_base": f"http://127.0.0.1:{self.upstream_port}",
            **deployment,
        }
        general = {
            "master_key": KEY,
            "max_idle_connections": _IDLE_CONNECTIONS,
            "shutdown_grace": "1s",
        }
        config = {
            "model_list": [{"model_name": "m", "litellm_params": params}],
            "general_settings": general,
        }
        path = os.path.join(directory, "config.yaml")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)  # YAML, too
        self.clients: list[Any] = []
        self.program = Program(
            [
                "bedrockproxy",
                *("--config", path),
                *("--listen", "tcp:0:interface=127.0.0.1"),
                *("--log-format", "json"),
            ],
            directory,
            {"TMPDIR": directory},
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(self._stop_program()))
        self.port = await self.program.ready()

    async def _stop_program(self) -> None:
        for client in self.clients:
            client.transport.abortConnection()
        await until(lambda: all(client.lost for client in self.clients))
        self.assertEqual(await self.program.stop(), 0, self.program.output)
        for secret in (KEY, SECRET, "planted"):
            self.assertNotIn(secret, self.program.output)

    def lines(self) -> list[dict[str, Any]]:
        """The gateway's log, which must not tell of errors."""
        self.assertNotIn("Traceback", self.program.output)
        lines = [json.loads(line) for line in self.program.output.splitlines()]
        for line in lines:
            self.assertNotIn(line["level"], ("error", "critical"), line)
        return lines

    async def open(self, kind: type[Any]) -> Any:
        """A client's connection."""
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        client = await endpoint.connect(Factory.forProtocol(kind))
        self.clients.append(client)
        return client

    async def read_all(self) -> FloodReader:
        """One stream, read to its end."""
        reader: FloodReader = await self.open(FloodReader)
        reader.transport.write(request(STREAM))
        await until(lambda: reader.whole or reader.lost is not None)
        self.assertTrue(reader.whole)
        reader.transport.loseConnection()
        return reader

    async def growth(self, what: str, work: Callable[[], Awaitable[None]]) -> int:
        """
        Do something and watch.

        :returns: by how many bytes the gateway was bigger than before, at most.
        """
        before = most = self.program.memory()

        def look() -> None:
            nonlocal most
            most = max(most, self.program.memory())

        looking = LoopingCall(look)
        looking.start(0.02)
        started = reactor.seconds()
        try:
            await work()
        finally:
            looking.stop()
        self._log.info(
            "{what}: grew by {growth:.1f} MB from {before:.1f} MB in {seconds:.1f} s",
            what=what,
            growth=(most - before) / MB,
            before=before / MB,
            seconds=reactor.seconds() - started,
        )
        return most - before


class FloodTests(MemoryTestCase):
    """500 MB in one answer."""

    async def test_stalled_reader(self) -> None:
        """
        A client that stops reading costs less than 8 MB, however much Bedrock has
        to say; when it goes on it gets every byte.
        """
        self.start_sandbox()
        await self.start_program()
        plain = await self.read_all()
        self.sandbox.faults.add("flood", megabytes=500, frame_bytes=30_000)
        reader: FloodReader = await self.open(FloodReader)

        async def stall() -> None:
            reader.transport.write(request(STREAM))
            await until(lambda: reader.length > MB)
            reader.transport.pauseProducing()
            sent = -1
            while sent != self.sandbox.stats.bytes_sent:
                sent = self.sandbox.stats.bytes_sent
                await pause(1)

        async def go_on() -> None:
            reader.transport.resumeProducing()
            await until(lambda: reader.whole or reader.lost is not None, 200)

        before = self.program.memory()
        self.assertLess(await self.growth("a stalled reader of 500 MB", stall), 8 * MB)
        # The rest is in the buffers of the sockets.
        self.assertLess(self.sandbox.stats.bytes_sent, 50 * MB)
        await self.growth("the same, reading on", go_on)
        self.assertLess(self.program.memory("VmHWM") - before, 16 * MB)
        self.assertTrue(reader.whole, reader.lost)
        self.check_flood(plain.start, reader)
        self.lines()

    def check_flood(self, plain: bytes, reader: FloodReader) -> None:
        """
        Is it the first event, the flood, and the other events?

        :param plain: the events without a flood.
        """
        (first,) = unpack(">I", plain[:4])
        self.assertEqual(reader.start[:first], plain[:first])
        (size,) = unpack(">I", reader.start[first : first + 4])
        self.assertGreater(size, 25_000)
        frame = reader.start[first : first + size]
        [_] = Decoder().feed(frame)
        block = frame * (64 * 1024 // size)
        blocks = -(-500 * MB // len(block))
        expected = sha256(plain[:first])
        for _ in range(blocks):
            expected.update(block)
        expected.update(plain[first:])
        self.assertEqual(reader.length, blocks * len(block) + len(plain))
        self.assertEqual(reader.hash.hexdigest(), expected.hexdigest())


class OpenTests(MemoryTestCase):
    """200 streams that are open."""

    async def test_requests_are_let_go(self) -> None:
        """
        A stream that has begun costs less than 60 kB, however long its request was: it
        is not asked again.
        """
        self.start_sandbox()
        await self.start_program()
        await self.read_all()
        self.sandbox.faults.add("hang", at="body", after=2, times=None)
        text = "x" * 500_000
        body = json.dumps({"messages": [{"role": "user", "content": [{"text": text}]}]}).encode()

        async def begin(count: int) -> None:
            for _ in range(count):
                client: BareClient = await self.open(BareClient)
                client.write(request(STREAM, body))
                await until(lambda: len(client.body) > 100 or client.lost is not None)  # noqa: B023
                self.assertEqual(client.status, 200)

        # What one upload needs for a moment is there then.
        await begin(5)
        growth = await self.growth("200 open streams", lambda: begin(200))
        self.assertLess(growth, 200 * 60_000)
        self.lines()


class LeavingTests(MemoryTestCase):
    """200 clients that leave in the body of their answers."""

    async def leave(self, on_disconnect: str) -> None:
        await self.start_program(on_disconnect=on_disconnect)
        await self.read_all()
        clients: list[BareClient] = [await self.open(BareClient) for _ in range(200)]
        for client in clients:
            client.write(request(STREAM))
        await until(lambda: all(len(client.body) > 100 for client in clients))
        for client in clients:
            client.transport.abortConnection()
        stats = self.sandbox.stats
        await until(lambda: stats.active_streams == 0)
        await until(lambda: stats.open_connections <= _IDLE_CONNECTIONS)
        self.assertEqual(stats.active_requests, 0)

        def gone() -> int:
            return sum(line.get("outcome") == "client_gone" for line in self.lines())

        await until(lambda: gone() == 200)

    async def test_drain(self) -> None:
        """
        With ``drain`` their answers are read to the end, and no connection to
        Bedrock is left over.
        """
        # Long enough that none ends by itself before the last client has begun.
        self.start_sandbox(words=80)
        self.sandbox.faults.add("drip", interval_ms=50, times=None)
        await self.leave("drain")
        self.assertEqual([each.ended for each in self.sandbox.requests], ["whole"] * 201)

    async def test_cancel(self) -> None:
        """With ``cancel`` the connections to Bedrock are closed at once."""
        self.start_sandbox()
        await self.start_hanging()
        await self.leave("cancel")
        ended = [each.ended for each in self.sandbox.requests]
        self.assertEqual(ended, ["whole"] + ["left"] * 200)

    async def start_hanging(self) -> None:
        """All streams but the first fall silent after two events."""
        decide = self.sandbox.decide

        def first(recorded: Recorded, payload_sha256: str) -> Any:
            script = decide(recorded, payload_sha256)
            self.sandbox.faults.add("hang", at="body", after=2, times=None)
            self.sandbox.decide = decide  # type: ignore[method-assign]
            return script

        self.sandbox.decide = first  # type: ignore[method-assign]


class UploadTests(MemoryTestCase):
    """Long requests."""

    async def test_uploads(self) -> None:
        """50 uploads of 20 MB at once cost less than 150 MB, and arrive byte for byte."""
        sandbox = HashingSandbox(access_key_id=ACCESS_KEY_ID, secret_access_key=SECRET)
        self.start_sandbox(sandbox)
        await self.start_program()
        await self.read_all()
        sandbox.hashes.clear()
        numbers = range(50)
        head = request("/bedrock/model/m/invoke", b"", headers=("Content-Type: application/json",))
        head = head.replace(b"Content-Length: 0", b"Content-Length: %d" % UPLOAD_BYTES)
        clients: list[BareClient] = [await self.open(BareClient) for _ in numbers]

        async def upload() -> None:
            for number, client in zip(numbers, clients, strict=True):
                Upload(client, chain([head], upload_pieces(number)))
            await until(lambda: all(client.whole() or client.lost for client in clients), 200)

        growth = await self.growth("50 uploads of 20 MB", upload)
        self.assertEqual([client.status for client in clients], [200] * 50)
        expected = set()
        for number in numbers:
            digest = sha256()
            for piece in upload_pieces(number):
                digest.update(piece)
            expected.add(digest.hexdigest())
        self.assertEqual(len(expected), 50)
        self.assertEqual(sorted(sandbox.hashes), sorted(expected))
        self.assertLess(growth, 150 * MB)

        def logged() -> int:
            return [line.get("bytes_up") for line in self.lines()].count(UPLOAD_BYTES)

        # A line is written when the client has its answer.
        await until(lambda: logged() >= 50)
        self.assertEqual(logged(), 50)
