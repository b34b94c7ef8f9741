"""
A sandbox on a loopback socket, and clients of it: bytes by hand, and boto3.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import boto3
from botocore.config import Config
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from txbedrock.core.credentials import Credentials
from txbedrock.core.eventstream import Decoder, Frame
from txbedrock.core.sigv4 import SigningKeys, amz_date, sign
from txbedrock.sandbox.service import Sandbox

__all__ = ["CONVERSE", "SECRET", "Reply", "SandboxTestCase", "Wire", "signed"]

SECRET = Credentials("AKIDSANDBOX", "a-secret")
CONVERSE = json.dumps(
    {"messages": [{"role": "user", "content": [{"text": "Who are you really?"}]}]}
).encode()
HAIKU = "anthropic.claude-3-haiku-20240307-v1:0"


def signed(
    path: str,
    body: bytes = CONVERSE,
    *,
    method: str = "POST",
    credentials: Credentials = SECRET,
    region: str = "us-east-1",
    service: str = "bedrock",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    unsigned: tuple[tuple[bytes, bytes], ...] = (),
    now: float | None = None,
    host: bytes = b"sandbox.test",
    version: bytes = b"HTTP/1.1",
) -> bytes:
    """
    A request as it goes on the wire.

    :param headers: further ones to be signed; ``unsigned`` are added afterwards.
    """
    raw_path, _, raw_query = path.encode().partition(b"?")
    fields = [(b"Host", host), *headers]
    if body:
        fields.append((b"Content-Type", b"application/json"))
    fields += sign(
        credentials,
        method=method.encode(),
        raw_path=raw_path,
        raw_query=raw_query,
        headers=fields,
        payload_sha256=sha256(body).hexdigest(),
        region=region,
        service=service,
        timestamp=amz_date(time.time() if now is None else now),
        keys=SigningKeys(),
    )
    return plain(path, body, method=method, headers=(*fields, *unsigned), version=version)


def plain(
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    version: bytes = b"HTTP/1.1",
) -> bytes:
    """A request without a signature."""
    lines = [b"%b %b %b" % (method.encode(), path.encode(), version)]
    lines += [b"%b: %b" % pair for pair in headers]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@dataclass
class Reply:
    """A reply taken apart, as much of it as there is."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool
    """It came to its end by Content-Length or the last chunk."""

    rest: bytes
    """What follows on the connection."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def frames(self) -> list[Frame]:
        return Decoder().feed(self.body)

    @property
    def code(self) -> str | None:
        return self.headers.get("x-amzn-errortype")


def parse(data: bytes) -> Reply | None:
    """
    The first reply.

    :returns: None if not even its head is there.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    status = int(first.split(" ")[1])
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while True:
            size, end, after = rest.partition(b"\r\n")
            length = int(size, 16) if end else 0
            if not end or len(after) < length + 2:
                return Reply(status, headers, body + after[:length], False, b"")
            body += after[:length]
            rest = after[length + 2 :]
            if length == 0:
                return Reply(status, headers, body, True, rest)
    if "content-length" in headers or status == 204:
        length = int(headers.get("content-length", "0"))
        return Reply(status, headers, rest[:length], len(rest) >= length, rest[length:])
    return Reply(status, headers, rest, False, b"")


class Wire(Protocol):
    """A connection that keeps what it gets."""

    def __init__(self) -> None:
        self.data = b""
        self.times: list[float] = []
        self.lost: Failure | None = None
        self._waiting: list[tuple[Callable[[Wire], bool], Deferred[None]]] = []

    def dataReceived(self, data: bytes) -> None:
        self.data += data
        self.times.append(time.monotonic())
        self._look()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.lost = reason
        self._look()

    def _look(self) -> None:
        for pair in list(self._waiting):
            if pair[0](self):
                self._waiting.remove(pair)
                pair[1].callback(None)

    def until(self, holds: Callable[[Wire], bool]) -> Deferred[None]:
        """Fires when something is so, after data or the end."""
        done: Deferred[None] = Deferred()
        self._waiting.append((holds, done))
        self._look()
        return done.addTimeout(10, reactor)

    async def reply(self) -> Reply:
        """The whole first reply, which is taken off."""

        def whole(wire: Wire) -> bool:
            reply = parse(wire.data)
            return (reply is not None and reply.whole) or wire.lost is not None

        await self.until(whole)
        reply = parse(self.data)
        assert reply is not None, self.data
        self.data = reply.rest
        return reply

    async def cut(self) -> Failure:
        """The reason for the end."""
        await self.until(lambda wire: wire.lost is not None)
        assert self.lost is not None
        return self.lost


class SandboxTestCase(TestCase):
    """Each test has a sandbox of its own on a port of its own."""

    timeout = 60
    options: dict[str, Any] = {}

    def setUp(self) -> None:
        self.start(**self.options)

    def start(self, **options: Any) -> Sandbox:
        """A sandbox; it is what the clients use from now on."""
        self.sandbox = Sandbox(
            reactor,
            access_key_id=SECRET.access_key_id,
            secret_access_key=SECRET.secret_access_key,
            **options,
        )
        port = reactor.listenTCP(0, self.sandbox.site, interface="127.0.0.1")
        self.port = port.getHost().port
        self.addCleanup(self.sandbox.close)
        self.addCleanup(port.stopListening)
        return self.sandbox

    async def connect(self) -> Wire:
        wire = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", self.port), Wire())
        self.addCleanup(wire.transport.abortConnection)
        return wire

    async def ask(self, data: bytes) -> Reply:
        """One request on a connection of its own."""
        wire = await self.connect()
        wire.transport.write(data)
        reply = await wire.reply()
        wire.transport.loseConnection()
        return reply

    async def control(self, method: str, name: str, value: Any = None) -> Any:
        """``/_sandbox/name``, which needs no signature."""
        body = b"" if value is None else json.dumps(value).encode()
        reply = await self.ask(
            plain(f"/_sandbox/{name}", body, method=method, headers=((b"Host", b"x"),))
        )
        return reply.json if reply.body else None

    async def eventually(self, holds: Callable[[], object]) -> None:
        """Wait until something is so."""
        for _ in range(1000):
            if holds():
                return
            await deferLater(reactor, 0.01)
        self.fail(f"never: {self.sandbox.stats}")

    async def settled(self) -> None:
        """Wait until the sandbox has noticed that its clients are gone."""
        await self.eventually(lambda: not self.sandbox.stats.open_connections)

    def client(self, service: str = "bedrock-runtime", **options: Any) -> Any:
        """A boto3 client; to be called in threads only."""
        config = Config(
            retries={"total_max_attempts": options.pop("attempts", 1), "mode": "standard"},
            read_timeout=options.pop("read_timeout", 20),
        )
        arguments: dict[str, Any] = {
            "endpoint_url": f"http://127.0.0.1:{self.port}",
            "region_name": "us-east-1",
            "aws_access_key_id": SECRET.access_key_id,
            "aws_secret_access_key": SECRET.secret_access_key,
            "config": config,
        }
        client = boto3.session.Session().client(service, **{**arguments, **options})
        self.addCleanup(client.close)
        return client

    async def in_thread(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """What blocks is done beside the reactor."""
        return await deferToThread(call, *args, **options)
