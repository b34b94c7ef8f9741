"""
Both ends of the gateway for tests: a scripted upstream and a bare client, over
real sockets, and a gateway between them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from txbedrock.config import Limits, Settings
from txbedrock.core.deployments import CredentialSpec, Deployment
from txbedrock.core.entries import LedgerEntry
from txbedrock.core.eventstream import encode
from txbedrock.core.retry import RetrySettings
from txbedrock.interfaces import ExchangeRecord
from txbedrock.logs import text_format
from txbedrock.service import GatewayService
from txbedrock.wiring import build

KEY = "sk-planted-master-key"
SECRET = "planted-aws-secret"
ACCESS_KEY_ID = "AKIAEXAMPLEEXAMPLE"

BODY = b'{"messages": [{"role": "user", "content": [{"text": "planted-prompt"}]}]}'
CONVERSE = "/bedrock/model/m/converse"
STREAM = "/bedrock/model/m/converse-stream"
FRAME = encode({":message-type": "event", ":event-type": "contentBlockDelta"}, b'{"a": 1}')
EVENT_STREAM = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\n"
    b"x-amzn-RequestId: up-1\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def answer(body: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    """A whole answer."""
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b" % (
        status,
        headers,
        len(body),
        body,
    )


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that will be so soon; fail when it is not."""
    for _ in range(int(seconds * 200)):
        if condition():
            return
        await deferLater(reactor, 0.005)
    raise AssertionError(f"still not so after {seconds} s")


async def pause(seconds: float) -> None:
    """Let the reactor run."""
    await deferLater(reactor, seconds)


@dataclass
class Received:
    """A request as the upstream got it."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""

    def get(self, name: bytes) -> list[bytes]:
        """Every value of a header."""
        return [value for key, value in self.headers if key.lower() == name]


class UpstreamConnection(Protocol):
    """One connection to the scripted upstream; the script writes to it."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self._upstream = upstream
        self._buffer = b""
        self._request: Received | None = None
        self.lost: Deferred[None] = Deferred()
        self.transport: Any

    def connectionMade(self) -> None:
        self._upstream.connections.append(self)
        self._upstream.accepted += 1
        if self._upstream.on_connect is not None:
            self._upstream.on_connect(self)

    def dataReceived(self, data: bytes) -> None:
        self._buffer += data
        while True:
            if self._request is None:
                head, end, rest = self._buffer.partition(b"\r\n\r\n")
                if not end:
                    return
                lines = head.split(b"\r\n")
                method, target, _ = lines[0].split(b" ")
                headers = [
                    (name, value.strip())
                    for name, _, value in (line.partition(b":") for line in lines[1:])
                ]
                self._request = Received(method, target, headers)
                self._buffer = rest
            lengths = self._request.get(b"content-length")
            length = int(lengths[0]) if lengths else 0
            if len(self._buffer) < length:
                return
            self._request.body, self._buffer = self._buffer[:length], self._buffer[length:]
            request, self._request = self._request, None
            self._upstream.requests.append(request)
            self._upstream.script(self, request)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._upstream.connections.remove(self)
        self.lost.callback(None)

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def reset(self) -> None:
        """RST."""
        self.transport.abortConnection()

    def close(self) -> None:
        """FIN, after what was written."""
        self.transport.loseConnection()


class ScriptedUpstream(Factory):
    """
    Reads whole requests and lets a script answer them, byte for byte.

    It checks no signature; the sandbox is for that.
    """

    noisy = False

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.connections: list[UpstreamConnection] = []
        self.accepted = 0
        self.on_connect: Callable[[UpstreamConnection], None] | None = None
        self.script: Callable[[UpstreamConnection, Received], None] = lambda connection, request: (
            connection.write(answer(b'{"output": "planted-answer"}'))
        )

    def buildProtocol(self, addr: object) -> UpstreamConnection:
        return UpstreamConnection(self)


class BareClient(Protocol):
    """A client of bytes."""

    def __init__(self) -> None:
        self.received = b""
        self.arrived: list[tuple[float, bytes]] = []
        self.lost: Failure | None = None
        self.transport: Any

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.arrived.append((reactor.seconds(), data))  # type: ignore[attr-defined]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    @property
    def status(self) -> int:
        """Of the first answer."""
        return int(self.received.split(b" ", 2)[1])

    @property
    def head(self) -> bytes:
        """Of the first answer, in lower case."""
        return self.received.partition(b"\r\n\r\n")[0].lower()

    @property
    def body(self) -> bytes:
        """What follows the first head, chunk framing included."""
        return self.received.partition(b"\r\n\r\n")[2]

    def dechunked(self) -> bytes:
        """The body of a chunked answer, as far as it has come."""
        data, rest = b"", self.body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            if not length:
                break
            data, rest = data + rest[:length], rest[length + 2 :]
        return data

    def whole(self) -> bool:
        """Has a whole answer come?"""
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end:
            return False
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            return body.endswith(b"0\r\n\r\n")
        at = lower.find(b"content-length: ")
        return at >= 0 and len(body) >= int(lower[at + 16 :].split(b"\r\n")[0])


@dataclass
class Records:
    """An exchange log that keeps."""

    records: list[ExchangeRecord] = field(default_factory=list)

    def record(self, record: ExchangeRecord) -> None:
        self.records.append(record)

    @property
    def entries(self) -> list[LedgerEntry]:
        """The lines of the ledger."""
        return [record.entry for record in self.records if record.entry is not None]


def request(
    path: str = CONVERSE,
    body: bytes = BODY,
    *,
    method: str = "POST",
    key: str | None = KEY,
    headers: tuple[str, ...] = (),
) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost:4000"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if body or method in ("POST", "PUT"):
        lines.append(f"Content-Length: {len(body)}")
    lines += headers
    return "\r\n".join([*lines, "", ""]).encode() + body


class GatewayTestCase(TestCase):
    """
    A gateway between real sockets; model ``m`` has a deployment at :attr:`upstream`.
    """

    timeout = 120
    gateway: GatewayService
    port: int

    def setUp(self) -> None:
        """Watch what is logged and what goes up: nothing planted may be there."""
        super().setUp()
        self.logged: list[str] = []
        self.upstreams: list[ScriptedUpstream] = []
        # As it is before anything is redacted.
        written = text_format(lambda text: text)

        def observe(event: LogEvent) -> None:
            self.logged.append(written(event) or "")

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def tearDown(self) -> None:
        super().tearDown()
        self.assertNotIn("planted", "".join(self.logged).lower())
        for upstream in self.upstreams:
            for received in upstream.requests:
                self.assertNotIn("sk-planted", repr([received.target, received.headers]))
                self.assertNotIn(SECRET, repr([received.target, received.headers]))

    async def start_upstream(self) -> ScriptedUpstream:
        """Start a scripted upstream."""
        upstream = ScriptedUpstream()
        self.upstreams.append(upstream)
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(upstream)

        async def stop() -> None:
            await port.stopListening()
            lost = [connection.lost for connection in upstream.connections]
            for connection in list(upstream.connections):
                connection.reset()
            await DeferredList(lost)

        self.addCleanup(lambda: Deferred.fromCoroutine(stop()))
        self.upstream_port = port.getHost().port
        return upstream

    def deployment(self, **changes: Any) -> Deployment:
        """A deployment at the scripted upstream."""
        values: dict[str, Any] = {
            "id": "d1",
            "model_name": "m",
            "model_id": "anthropic.claude-v1:0",
            "region": "us-west-2",
            "credentials": CredentialSpec(access_key_id=ACCESS_KEY_ID, secret_access_key=SECRET),
            "endpoint_url": f"http://127.0.0.1:{self.upstream_port}",
        }
        return Deployment(**{**values, **changes})

    def settings(self, **changes: Any) -> Settings:
        """One deployment, everything else at the scripted upstream too."""
        values: dict[str, Any] = {
            "deployments": (self.deployment(),),
            "default": self.deployment(
                id="default", model_name="", model_id="*", endpoint_url=None
            ),
            "endpoint_urls": dict.fromkeys(
                ("bedrock", "bedrock-runtime", "bedrock-agent-runtime"),
                f"http://127.0.0.1:{self.upstream_port}",
            ),
            "master_key": KEY,
            "limits": Limits(shutdown_grace_s=0.2),
            # What one attempt does is seen best when there is only one.
            "retries": RetrySettings(num_retries=0),
        }
        return Settings(**{**values, **changes})

    async def start_gateway(
        self, settings: Settings, listen: str = "tcp:0:interface=127.0.0.1", **options: Any
    ) -> GatewayService:
        """Start a gateway; it is stopped after the test."""
        self.records = Records()
        self.clients: list[BareClient] = []
        clients = self.clients
        options.setdefault("logs", [self.records])
        gateway = self.gateway = build(settings, reactor, [listen], {}, **options)
        gateway.startService()

        async def stop() -> None:
            for client in clients:
                client.transport.abortConnection()
            await until(lambda: all(client.lost for client in clients))
            if gateway.running:
                await gateway.stopService()

        self.addCleanup(lambda: Deferred.fromCoroutine(stop()))
        await until(gateway.is_ready)
        self.port = gateway.ports[0].getHost().port  # type: ignore[attr-defined]
        return gateway

    async def start(self, limits: Limits | None = None) -> None:
        """Start a scripted upstream and a gateway in front of it."""
        self.upstream = await self.start_upstream()
        settings = self.settings() if limits is None else self.settings(limits=limits)
        await self.start_gateway(settings)

    async def connect(self) -> BareClient:
        """A new connection to the gateway."""
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        client: BareClient = await endpoint.connect(Factory.forProtocol(BareClient))
        self.clients.append(client)
        return client

    async def ask(self, data: bytes) -> BareClient:
        """Send bytes and wait for a whole answer or the end of the connection."""
        client = await self.connect()
        client.write(data)
        await until(lambda: client.whole() or client.lost is not None)
        return client
