"""
How many connections clients may have, over real sockets, and what becomes of the rest.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import trustme
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.internet.ssl import CertificateOptions

from tests.fakes import (
    BODY,
    CONVERSE,
    KEY,
    BareClient,
    GatewayTestCase,
    UpstreamConnection,
    answer,
    pause,
    request,
    until,
)
from tests.inbound.http2_frames import Code, FrameClient, data
from tests.inbound.http2_frames import request as http2_request
from tests.program import _ROOT, _TWISTD, Program
from txbedrock.config import AccessSettings, ClientSettings, Limits
from txbedrock.inbound import bounds

LIVE = request("/health/liveness", b"", method="GET", key=None)
_LIMITED = """\
import os, resource, sys
files = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (min(files, 64), files))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def converse(stream: int) -> bytes:
    """A request of HTTP/2."""
    head = http2_request(
        stream, (b"x-api-key", KEY.encode()), method=b"POST", path=CONVERSE.encode(), end=False
    )
    return head + data(stream, BODY)


class ConnectionTestCase(GatewayTestCase):
    """A gateway with few connections."""

    async def start_bounded(self, *, trusted: tuple[str, ...] = (), **counts: int) -> None:
        self.upstream = await self.start_upstream()
        self.held: list[UpstreamConnection] = []
        await self.start_gateway(
            self.settings(
                clients=ClientSettings(**counts),
                access=AccessSettings(trusted_proxies=trusted),
                limits=Limits(shutdown_grace_s=0.2, header_timeout_s=30.0),
            )
        )

    def hold(self) -> None:
        """Let Bedrock keep all waiting."""
        self.upstream.script = lambda up, _: self.held.append(up)

    def let_go(self) -> None:
        for up in self.held:
            up.write(answer(b'{"late": 1}'))
        self.held.clear()

    async def connect_from(self, address: str) -> BareClient:
        """A connection from one of the many addresses of this machine."""
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port, bindAddress=(address, 0))
        client: BareClient = await endpoint.connect(Factory.forProtocol(BareClient))
        self.clients.append(client)
        return client

    async def connect_http2(self) -> FrameClient:
        """A connection of HTTP/2, ready for requests."""
        client = await FrameClient.connect(self.port)

        async def close() -> None:
            client.abort()
            await until(lambda: client.closed)

        self.addCleanup(lambda: Deferred.fromCoroutine(close()))
        await client.handshake()
        return client

    async def live(self, client: BareClient | None = None) -> BareClient:
        """One that gets an answer, and stays."""
        client = await self.connect() if client is None else client
        client.write(LIVE)
        await until(lambda: client.whole() or client.lost is not None)
        return client

    def counted(self) -> dict[str, int]:
        return dict(self.gateway.site.refusals)


class RoomTests(ConnectionTestCase):
    """All connections together."""

    async def test_full(self) -> None:
        """When all are at work a new one is told so in AWS's shape, and nobody is disturbed."""
        await self.start_bounded(max_connections=3)
        self.hold()
        working = [await self.connect() for _ in range(3)]
        for client in working:
            client.write(request())
        await until(lambda: len(self.held) == 3)
        for sent in (b"", request(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            late = await self.connect()
            late.write(sent)
            await until(lambda: late.lost is not None)  # noqa: B023
            self.assertEqual(late.status, 503)
            self.assertIn(b"x-amzn-errortype: serviceunavailableexception", late.head)
            self.assertIn(b"retry-after: 1", late.head)
            self.assertIn(b"connection: close", late.head)
            self.assertIn("try again later", json.loads(late.body)["message"])
        self.assertEqual(len(self.held), 3)
        self.let_go()
        await until(lambda: all(client.whole() for client in working))
        self.assertEqual([client.status for client in working], [200] * 3)
        self.assertEqual(self.counted(), {"connections": 3})
        self.assertEqual((await self.live()).status, 200)

    async def test_idle_go(self) -> None:
        """Idle ones are closed for new ones, the longest idle first, without a word."""
        await self.start_bounded(max_connections=3)
        first, second, third = [await self.live() for _ in range(3)]
        first.received = b""
        await self.live(first)
        fourth = await self.live()
        await until(lambda: second.lost is not None)
        self.assertEqual(second.received.count(b"HTTP/1.1"), 1)
        fifth = await self.live()
        await until(lambda: third.lost is not None)
        for client in (first, fourth, fifth):
            client.received = b""
            self.assertEqual((await self.live(client)).status, 200)
        self.assertEqual(self.counted(), {"idle": 2})

    async def test_half_sent_headers(self) -> None:
        """Who does not get on with his header makes room for who says what he wants."""
        await self.start_bounded(max_connections=20)
        slow = [await self.connect() for _ in range(20)]
        for client in slow:
            client.write(request()[:30])
        await until(lambda: self.gateway.site.connections == 20)
        for _ in range(30):
            self.assertEqual((await self.ask(request())).status, 200)
        # As long as they may be in good faith they share the room with those at rest.
        self.assertEqual(self.counted(), {"slow_header": 10, "idle": 20})
        self.gateway.site.refusals.clear()
        self.patch(bounds, "_PATIENCE_S", 0.1)
        await pause(0.2)
        for number in range(30):
            self.assertEqual((await self.ask(request())).status, 200, number)
        await until(lambda: sum(client.lost is not None for client in slow) == 20)
        self.assertEqual(self.counted(), {"slow_header": 10, "idle": 20})

    async def test_half_sent_bodies(self) -> None:
        """The same with bodies; what is being answered stays."""
        await self.start_bounded(max_connections=10)
        self.hold()
        working = await self.connect()
        working.write(request())
        await until(lambda: len(self.held) == 1)
        slow = [await self.connect() for _ in range(9)]
        for client in slow:
            client.write(request()[:-10])
        await pause(0.05)
        self.upstream.script = lambda up, _: up.write(answer(b"{}"))
        for _ in range(12):
            client = await self.ask(request())
            self.assertEqual(client.status, 200)
        self.let_go()
        await until(working.whole)
        self.assertEqual(self.counted()["slow_body"], 1)
        self.assertEqual(self.counted()["idle"], 11)
        self.assertTrue(all(client.lost is None for client in slow[1:]))

    async def test_next_header(self) -> None:
        """Who was served once and then sends half a header is not idle."""
        await self.start_bounded(max_connections=2)
        slow, idle = await self.live(), await self.live()
        slow.write(request()[:30])
        await pause(0.05)
        await self.live()
        await until(lambda: idle.lost is not None)
        self.assertIsNone(slow.lost)

    async def test_tls(self) -> None:
        """Over TLS an idle connection goes whether its client agrees or not."""
        certificate = self.mktemp()
        trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(
            certificate
        )
        self.upstream = await self.start_upstream()
        await self.start_gateway(
            self.settings(clients=ClientSettings(max_connections=2)),
            f"ssl:0:privateKey={certificate}:certKey={certificate}:interface=127.0.0.1",
        )
        clients = []
        for _ in range(4):
            client = await self.connect()
            client.transport.startTLS(CertificateOptions())
            clients.append(await self.live(client))
        self.assertEqual([client.status for client in clients], [200] * 4)
        await until(
            lambda: [client.lost is None for client in clients] == [False] * 2 + [True] * 2
        )
        self.assertEqual(self.counted(), {"idle": 2})

    async def test_draining(self) -> None:
        """A gateway that stops has no connection left over from those it refused."""
        await self.start_bounded(max_connections=1)
        self.hold()
        working = await self.connect()
        working.write(request())
        await until(lambda: len(self.held) == 1)
        late = await self.connect()
        await until(lambda: late.received != b"")
        stopped = self.gateway.stopService()
        self.let_go()
        await stopped
        self.assertEqual((working.status, late.status), (200, 503))
        self.assertEqual(self.gateway.site.connections, 0)

    async def test_metrics(self) -> None:
        """What is open, under way and refused can be scraped."""
        await self.start_bounded(max_connections=3)
        self.hold()
        plain = await self.connect()
        plain.write(request())
        await until(lambda: len(self.held) == 1)
        two = await self.connect_http2()
        two.send(converse(1), converse(3))
        await until(lambda: len(self.held) == 3)
        scraper = await self.ask(request("/metrics", b"", method="GET"))
        for line in (
            'txbedrock_connections{protocol="http/1.1"} 2.0',
            'txbedrock_connections{protocol="h2"} 1.0',
            'txbedrock_streams{protocol="http/1.1"} 2.0',
            'txbedrock_streams{protocol="h2"} 2.0',
        ):
            self.assertIn(line.encode(), scraper.received)
        late = await self.ask(request("/metrics", b"", method="GET"))
        self.assertIn(b'txbedrock_connections_refused_total{reason="idle"} 1.0', late.received)
        self.let_go()


class AddressTests(ConnectionTestCase):
    """Those of one address."""

    async def occupy(self, address: str, count: int) -> list[BareClient]:
        """Connections that are at work."""
        held = len(self.held)
        clients = [await self.connect_from(address) for _ in range(count)]
        for client in clients:
            client.write(request())
        await until(lambda: len(self.held) == held + count)
        return clients

    async def test_one_address(self) -> None:
        """
        An address has its number, whatever a header says of it; another has its own.
        """
        await self.start_bounded(max_connections_per_address=2)
        self.hold()
        await self.occupy("127.0.0.2", 2)
        late = await self.connect_from("127.0.0.2")
        late.write(request(headers=("X-Forwarded-For: 192.0.2.7",)))
        await until(lambda: late.lost is not None)
        self.assertEqual(late.status, 503)
        self.assertIn("This client has too many", json.loads(late.body)["message"])
        await self.occupy("127.0.0.3", 2)
        self.assertEqual(self.counted(), {"address": 1})
        self.let_go()

    async def test_own_idle(self) -> None:
        """An idle connection of the same address makes room."""
        await self.start_bounded(max_connections_per_address=2)
        first = await self.live(await self.connect_from("127.0.0.2"))
        other = await self.live(await self.connect_from("127.0.0.3"))
        for _ in range(3):
            client = await self.live(await self.connect_from("127.0.0.2"))
            self.assertEqual(client.status, 200)
        await until(lambda: first.lost is not None)
        self.assertIsNone(other.lost)
        self.assertEqual(self.counted(), {"idle": 2})

    async def test_trusted_proxy(self) -> None:
        """A trusted proxy has connections for many clients."""
        await self.start_bounded(max_connections_per_address=2, trusted=("127.0.0.2",))
        self.hold()
        await self.occupy("127.0.0.2", 5)
        self.assertEqual(self.counted(), {})
        self.let_go()


class RequestTests(ConnectionTestCase):
    """Requests of one connection."""

    async def test_last(self) -> None:
        """The last answer says that it is, and the connection ends after it."""
        await self.start_bounded(max_requests_per_connection=3)
        client = await self.connect()
        for count in range(1, 4):
            client.write(request())
            await until(
                lambda: client.received.count(b'{"output": "planted-answer"}') == count  # noqa: B023
            )
            closes = client.received.lower().count(b"connection: close")
            self.assertEqual(closes, count // 3)
        await until(lambda: client.lost is not None)
        self.assertEqual(self.counted(), {})

    async def test_pipelined(self) -> None:
        """What was sent ahead beyond that is not answered, and not done."""
        await self.start_bounded(max_requests_per_connection=2)
        client = await self.connect()
        client.write(request() * 4)
        await until(lambda: client.lost is not None)
        self.assertEqual(client.received.count(b"HTTP/1.1 200"), 2)
        self.assertEqual(len(self.upstream.requests), 2)

    async def test_without_end(self) -> None:
        """0 is no limit."""
        await self.start_bounded(max_requests_per_connection=0)
        client = await self.connect()
        for count in range(1, 30):
            client.write(LIVE)
            await until(lambda: client.received.count(b"alive") == count)  # noqa: B023
        self.assertNotIn(b"connection: close", client.received.lower())

    async def test_http2(self) -> None:
        """HTTP/2 is told by GOAWAY; the requests it has sent are answered."""
        await self.start_bounded(max_requests_per_connection=3)
        client = await self.connect_http2()
        client.send(converse(1))
        await client.until(lambda: client.answer(1).ended, "the first answer")
        self.assertIsNone(client.farewell)
        client.send(converse(3), converse(5))
        await client.until(lambda: client.answer(3).ended, "the second answer")
        await client.until(lambda: client.answer(5).ended, "the third answer")
        for stream in (1, 3, 5):
            self.assertIn((b":status", b"200"), client.answer(stream).heads[-1])
        await client.until(lambda: client.farewell is not None, "GOAWAY")
        self.assertEqual(client.farewell, Code.NO_ERROR)
        self.assertEqual(self.counted(), {})


class LimitedProgram(Program):
    """
    A gateway that may have few file descriptors.

    :param files: the hard limit; the soft one is 64 at most.
    """

    def __init__(
        self,
        files: int,
        arguments: Sequence[str],
        directory: str,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.output = ""
        self.exit_code = None
        self.ended = Deferred()
        reactor.spawnProcess(  # type: ignore[attr-defined]
            self,
            sys.executable,
            [sys.executable, "-c", _LIMITED, str(files), _TWISTD, "-n", *arguments],
            env={"PYTHONPATH": _ROOT, "PYTHONUNBUFFERED": "1", **(environ or {})},
            path=directory,
        )


class FileTests(ConnectionTestCase):
    """A gateway that runs out of file descriptors, in a process of its own."""

    async def start_limited(self, files: int, **general: Any) -> LimitedProgram:
        self.upstream = await self.start_upstream()
        self.clients = []
        self.hold_all: list[UpstreamConnection] = []
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        config = {
            "model_list": [
                {
                    "model_name": "m",
                    "litellm_params": {
                        "model": "bedrock/anthropic.claude-v2:1",
                        "aws_region_name": "us-west-2",
                        "aws_access_key_id": "AKIAEXAMPLE",
                        "aws_secret_access_key": "planted-aws-secret",
                        "api_base": f"http://127.0.0.1:{self.upstream_port}",
                    },
                }
            ],
            "general_settings": {"master_key": KEY, "shutdown_grace": "0.2s", **general},
        }
        path = os.path.join(directory, "config.yaml")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
        program = LimitedProgram(
            files,
            ["bedrockproxy", "--config", path, "--listen", "tcp:0:interface=127.0.0.1"],
            directory,
        )

        async def stop() -> None:
            for client in self.clients:
                client.transport.abortConnection()
            await until(lambda: all(client.lost for client in self.clients))
            self.assertEqual(await program.stop(), 0, program.output[-5000:])
            self.assertNotIn("planted", program.output)
            self.assertNotIn("Traceback", program.output)

        self.addCleanup(lambda: Deferred.fromCoroutine(stop()))
        self.port = await program.ready()
        return program

    async def test_raised(self) -> None:
        """The soft limit is no limit; one that is too low is told of once."""
        program = await self.start_limited(400)
        soft, hard = resource.prlimit(program.pid, resource.RLIMIT_NOFILE)
        self.assertEqual((soft, hard), (400, 400))
        told = re.findall(r"max_connections is (\d+), but .* may have (\d+) open", program.output)
        self.assertEqual(told, [("10000", "400")])

    async def test_enough(self) -> None:
        """One that suffices is nothing to talk about."""
        program = await self.start_limited(400, max_connections=250)
        self.assertNotIn("open files", program.output)

    async def test_idle_flood(self) -> None:
        """
        More idle connections than there are descriptors: the oldest are closed, and who
        asks for something is answered.
        """
        program = await self.start_limited(400)
        for round in range(3):
            for _ in range(200):
                await self.connect()
            client = await self.ask(request())
            self.assertTrue(client.received, (round, client.lost, program.output))
            self.assertEqual(client.status, 200, round)
        found = await self.ask(request("/metrics", b"", method="GET"))
        self.assertRegex(found.received, rb'refused_total{reason="slow_header"} [0-9]')
        self.assertNotIn("EMFILE", program.output)

    async def test_exhausted(self) -> None:
        """
        When not one descriptor is left, newcomers are closed; the others are served, the
        process does not spin, and when some are free again all is well.
        """
        program = await self.start_limited(200)
        warm = await self.connect()
        warm.write(request())
        await until(lambda: warm.whole())
        # The limit that it read at its start was another one.
        in_use = len(os.listdir(f"/proc/{program.pid}/fd"))
        resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (in_use + 10, 200))
        clients = [await self.connect() for _ in range(60)]
        await until(lambda: sum(client.lost is not None for client in clients) >= 50)
        before = self.cpu(program)
        await pause(1.0)
        self.assertLess(self.cpu(program) - before, 0.3)
        warm.received = b""
        warm.write(request("/health/liveness", b"", method="GET"))
        await until(warm.whole)
        self.assertEqual(warm.status, 200)
        for client in clients:
            client.transport.abortConnection()
        await until(lambda: all(client.lost for client in clients))
        await pause(0.1)
        for _ in range(40):
            client = await self.ask(request())
            if client.status == 200:
                break
            # What the ledger or the database could not open is opened again by and by.
            await pause(0.5)
        self.assertEqual(client.status, 200, client.received)
        self.assertLess(program.output.count("\n"), 1000)

    @staticmethod
    def cpu(program: ProcessProtocol) -> float:
        """Seconds of processor time so far."""
        with open(f"/proc/{program.pid}/stat", encoding="ascii") as file:  # type: ignore
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
