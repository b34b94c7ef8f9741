"""
Connections to AWS: kept, counted, closed, found, secured.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
from typing import Any

import trustme
from OpenSSL import SSL
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import DNSLookupError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IReactorPluggableNameResolver, IResolutionReceiver
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import ResponseNeverReceived
from zope.interface import implementer

from tests.fakes import Received, UpstreamConnection, answer, pause, until
from tests.outbound.test_http1 import HOST, EngineTestCase, Receiver
from txbedrock.outbound.agent import ExactAgent, https_policy
from txbedrock.outbound.http1 import Connection, Request, Response
from txbedrock.outbound.pool import Origin, Pool


class KeptTests(EngineTestCase):
    """Connections between requests."""

    async def test_closed_while_idle(self) -> None:
        """A connection that the server has closed is not used, if its close was seen."""
        await self.prepare()
        await self.get()
        self.upstream.connections[0].close()
        await until(lambda: self.pool.idle == 0)
        await self.get()
        self.assertEqual((self.pool.opened, self.pool.reused), (2, 0))

    async def test_close_not_seen_yet(self) -> None:
        """Nor is one that was idle for a while, when its close waits to be read."""
        await self.prepare()
        await self.get()
        [origin] = self.pool._origins.values()
        origin.idle[0].idle_since -= 2.0
        # At once, and without the reactor, which would see it in this process first.
        self.upstream.connections[0].transport.socket.shutdown(socket.SHUT_RDWR)
        await self.get()
        self.assertEqual((self.pool.opened, self.pool.reused), (2, 0))
        await self.get()
        [origin] = self.pool._origins.values()
        origin.idle[0].idle_since -= 2.0
        await self.get()
        self.assertEqual((self.pool.opened, self.pool.reused), (2, 2))

    async def lose_the_second(self) -> None:
        """Have the server close a kept connection when a request comes on it."""

        def script(up: UpstreamConnection, _: Received) -> None:
            if len(self.upstream.requests) % 2:
                up.write(answer(b"fine"))
            else:
                up.reset()

        await self.prepare()
        self.upstream.script = script
        await self.get()

    async def test_second_try(self) -> None:
        """What may be done twice is sent again, on a new connection."""
        for method in (b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"TRACE"):
            await self.lose_the_second()
            response, _ = await self.get(method)
            self.assertEqual((response.code, self.upstream.accepted), (200, 2))

    async def test_no_second_try(self) -> None:
        """What may not is not, nor is anything more than once, or on a new connection."""
        for method in (b"POST", b"PUT", b"PATCH"):
            await self.lose_the_second()
            await self.assertFailure(self.send(method), ResponseNeverReceived)
            self.assertEqual(self.upstream.accepted, 1)
        await self.lose_the_second()
        self.upstream.script = lambda up, _: up.reset()
        await self.assertFailure(self.send(b"GET"), ResponseNeverReceived)
        self.assertEqual(self.upstream.accepted, 2)
        await self.assertFailure(self.send(b"GET"), ResponseNeverReceived)
        self.assertEqual(self.upstream.accepted, 3)

    async def test_cancelled_is_not_repeated(self) -> None:
        """Who leaves does not ask again."""
        await self.prepare()
        await self.get(b"GET")
        self.upstream.script = lambda up, _: None
        asked = self.send(b"GET")
        await until(lambda: len(self.upstream.requests) == 2)
        asked.cancel()
        await self.assertFailure(asked, ResponseNeverReceived)
        await until(lambda: not self.upstream.connections)
        self.assertEqual(self.upstream.accepted, 1)

    async def test_stopped_in_its_last_piece(self) -> None:
        """A connection that is being closed is not kept, though its answer was whole."""
        await self.prepare()

        class Stopping(Receiver):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                self.transport.stopProducing()

        self.says(answer(b"ab")[:-1])
        response = await self.send()
        await pause(0.02)
        receiver = Stopping()
        response.deliverBody(receiver)
        self.upstream.connections[0].write(b"b")
        await receiver.over
        self.assertEqual(self.pool.idle, 0)
        await until(lambda: not self.upstream.connections)

    async def test_closing(self) -> None:
        """What is idle is closed, and only that; the pool can be used on."""
        await self.prepare()
        self.says(answer(b"ab")[:-1])
        response = await self.send()
        self.says(answer(b"cd"))
        await self.get()
        self.assertEqual((self.pool.idle, self.pool.connections), (1, 2))
        await self.pool.closeCachedConnections()
        self.assertEqual((self.pool.idle, self.pool.connections), (0, 1))
        receiver = Receiver()
        response.deliverBody(receiver)
        self.upstream.connections[0].write(b"b")
        await receiver.over
        self.assertEqual((receiver.body, self.pool.idle), (b"ab", 1))

    async def test_most_connections(self) -> None:
        """No more connections than allowed; who comes then waits for one, in order."""
        await self.prepare(max_connections=2)
        order: list[int] = []
        self.upstream.script = lambda up, _: None

        async def one(number: int) -> None:
            response: Response = await self.send()
            order.append(number)
            receiver = Receiver()
            response.deliverBody(receiver)
            await receiver.over

        asked = [Deferred.fromCoroutine(one(number)) for number in range(6)]
        await until(lambda: len(self.upstream.requests) == 2)
        await pause(0.05)
        self.assertEqual((self.upstream.accepted, self.pool.connections), (2, 2))
        # One that waits, and one that has a connection, leave.
        asked[3].cancel()
        await self.assertFailure(asked[3], CancelledError)
        asked[0].cancel()
        await self.assertFailure(asked[0], ResponseNeverReceived)
        self.upstream.script = lambda up, _: up.write(answer(b"x"))
        await until(lambda: len(self.upstream.requests) >= 3)
        self.upstream.connections[0].write(answer(b"x"))
        for number in (1, 2, 4, 5):
            await asked[number]
        self.assertEqual(sorted(order), [1, 2, 4, 5])
        self.assertLess(order.index(4), order.index(5))
        self.assertEqual((self.upstream.accepted, self.pool.connections), (3, 2))

    async def test_most_connections_of_a_server_that_is_gone(self) -> None:
        """Who waits for a connection is told when none can be made any more."""
        await self.prepare(max_connections=1)
        self.upstream_port = 1
        asked = [self.send() for _ in range(5)]
        for each in asked:
            failures: list[Failure] = []
            each.addErrback(failures.append)
            await each
            self.assertEqual(len(failures), 1)
        self.assertEqual(self.pool.connections, 0)


class IdleTests(SynchronousTestCase):
    """Idle connections, by the clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.pool = Pool(self.clock, max_idle=3, connect_timeout_s=1.0)
        self.origin = self.pool.origin(b"o", lambda _: Origin(self.pool, "127.0.0.1", 1, None))
        self.addCleanup(self.cancel)

    def cancel(self) -> None:
        for call in self.clock.getDelayedCalls():
            call.cancel()

    def connection(self) -> Any:
        connection: Any = Connection(self.origin)
        connection.makeConnection(StringTransport())
        return connection

    def answered(self, connection: Any) -> None:
        """Send a request, and have it answered."""
        connection.send(Request(b"GET", b"http://h/", b"/", HOST, None))
        connection.dataReceived(b"HTTP/1.1 204 No Content\r\n\r\n")

    def test_last_in_first_out(self) -> None:
        """The connection used last is used next, so that the others may grow old."""
        first, second = self.connection(), self.connection()
        self.answered(first)
        self.answered(second)
        self.assertIs(self.origin.kept(), second)
        self.assertIs(self.origin.kept(), first)
        self.assertIsNone(self.origin.kept())
        self.assertEqual(self.pool.reused, 2)

    def test_most(self) -> None:
        """The one that was idle for longest goes, when there are too many."""
        connections = [self.connection() for _ in range(5)]
        for connection in connections:
            self.answered(connection)
        self.assertEqual(
            [one.transport.disconnecting for one in connections], [True, True, *[False] * 3]
        )
        self.assertEqual(self.pool.idle, 3)

    def test_none(self) -> None:
        """None may be kept at all."""
        self.pool.max_idle = 0
        connection = self.connection()
        self.answered(connection)
        self.assertTrue(connection.transport.disconnecting)

    def test_idle_limit(self) -> None:
        """After 50 seconds a connection is closed, sooner than a load balancer would."""
        first, second = self.connection(), self.connection()
        self.answered(first)
        self.clock.advance(20)
        self.answered(second)
        self.clock.advance(29.9)
        self.assertEqual(self.pool.idle, 2)
        self.clock.advance(0.2)
        self.assertTrue(first.transport.disconnecting)
        self.assertFalse(second.transport.disconnecting)
        self.assertIs(self.origin.kept(), second)
        self.answered(second)
        self.clock.advance(49.8)
        self.assertEqual(self.pool.idle, 1)
        self.clock.advance(0.3)
        self.assertTrue(second.transport.disconnecting)
        self.clock.advance(200)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_timer(self) -> None:
        """However many requests there are."""
        connection = self.connection()
        for _ in range(100):
            self.answered(connection)
            self.assertIs(self.origin.kept(), connection)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_data_while_idle(self) -> None:
        """A connection on which something comes is not used again."""
        connection = self.connection()
        self.answered(connection)
        connection.dataReceived(b"\r\n")
        self.assertIsNone(self.origin.kept())

    def test_origins_are_forgotten(self) -> None:
        """Origins without a connection do not pile up."""
        for number in range(2000):
            name = b"http://h%d" % number
            self.pool.origin(name, lambda _: Origin(self.pool, "127.0.0.1", 1, None))
        self.assertLess(len(self.pool._origins), 1000)


@implementer(IReactorPluggableNameResolver)
class NamingReactor(MemoryReactorClock):
    """A reactor whose names are resolved by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, IResolutionReceiver]] = []
        self.nameResolver: Any = self

    def installNameResolver(self, resolver: Any) -> Any:
        raise NotImplementedError

    def resolveHostName(
        self, receiver: Any, name: str, port: int = 0, types: Any = None, semantics: str = "TCP"
    ) -> None:
        receiver.resolutionBegan(None)
        self.asked.append((name, receiver))

    def tell(self, *addresses: str) -> None:
        """Resolve what was asked for first."""
        _, receiver = self.asked.pop(0)
        for address in addresses:
            receiver.addressResolved(IPv4Address("TCP", address, 80))
        receiver.resolutionComplete()


class NamesTests(SynchronousTestCase):
    """Looking up names."""

    def setUp(self) -> None:
        self.reactor = NamingReactor()
        self.pool = Pool(self.reactor, max_idle=3, connect_timeout_s=10.0)
        self.agent = ExactAgent(self.pool, https_policy(None))

    def send(self) -> Deferred[Any]:
        asked = self.agent.request(b"GET", b"http://name/", HOST)
        # Most of these are never answered.
        self.addCleanup(lambda: asked.addErrback(lambda _: None).cancel())
        return asked

    def connected_to(self) -> list[str]:
        hosts = [client[0] for client in self.reactor.tcpClients]
        self.reactor.tcpClients.clear()
        return hosts

    def test_asked_once(self) -> None:
        """One look-up for all who ask meanwhile, and for 30 seconds after."""
        for _ in range(3):
            self.send()
        self.assertEqual(len(self.reactor.asked), 1)
        self.reactor.tell("10.0.0.1")
        self.assertEqual(self.connected_to(), ["10.0.0.1"] * 3)
        self.reactor.advance(29)
        self.send()
        self.assertEqual((self.reactor.asked, self.connected_to()), ([], ["10.0.0.1"]))
        self.reactor.advance(2)
        self.send()
        self.assertEqual(len(self.reactor.asked), 1)
        self.reactor.tell("10.0.0.2")
        self.assertEqual(self.connected_to(), ["10.0.0.2"])

    def test_resolver_that_fails(self) -> None:
        """What a name last was is used on; a name never known fails."""
        failed = self.send()
        self.reactor.tell()
        self.failureResultOf(failed, DNSLookupError)
        self.send()
        self.reactor.tell("10.0.0.1")
        self.connected_to()
        self.reactor.advance(3600)
        self.send()
        self.reactor.tell()
        self.assertEqual(self.connected_to(), ["10.0.0.1"])

    def test_several_addresses(self) -> None:
        """When an address does not answer the next one is tried, soon."""
        self.send()
        self.reactor.tell("10.0.0.1", "10.0.0.2")
        self.assertEqual(self.connected_to(), ["10.0.0.1"])
        self.reactor.advance(0.4)
        self.assertEqual(self.connected_to(), ["10.0.0.2"])

    def test_addresses_in_turn(self) -> None:
        """Connections are spread over the addresses of a name."""
        self.send()
        self.reactor.tell("10.0.0.1", "10.0.0.2", "10.0.0.3")
        for _ in range(3):
            self.send()
        self.assertEqual(self.connected_to(), [f"10.0.0.{last}" for last in (1, 2, 3, 1)])

    def test_resolver_that_is_silent(self) -> None:
        """The limit for connections covers the look-up."""
        asked = self.send()
        self.reactor.advance(10.1)
        self.failureResultOf(asked, ConnectTimeout)

    def test_cancelled(self) -> None:
        """Who leaves while a name is looked up, or a connection made, has left."""
        asked = self.send()
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        asked = self.send()
        self.reactor.tell("10.0.0.1")
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.assertEqual(self.pool.connections, 0)


class TLSServer(threading.Thread):
    """Says who came back with a session; answers each request on a connection."""

    def __init__(self, certificate: trustme.LeafCert, version: ssl.TLSVersion) -> None:
        super().__init__(daemon=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.maximum_version = version
        certificate.configure_cert(self.context)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.reused: list[bool | None] = []
        self.names: list[str] = []
        self.context.sni_callback = self.named
        self.start()

    def named(self, _: object, name: str | None, context: object) -> None:
        self.names.append(name or "")

    def run(self) -> None:
        while True:
            try:
                raw, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(raw,), daemon=True).start()

    def serve(self, raw: socket.socket) -> None:
        try:
            with self.context.wrap_socket(raw, server_side=True) as connection:
                self.reused.append(connection.session_reused)
                while data := connection.recv(65536):
                    if data.endswith(b"\r\n\r\n"):
                        connection.sendall(answer(b"secret"))
        except OSError:
            pass

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.join(5)


class TLSTests(EngineTestCase):
    """Over TLS."""

    def serve(self, name: str, version: ssl.TLSVersion) -> TLSServer:
        authority = trustme.CA()
        server = TLSServer(authority.issue_cert(name), version)
        self.addCleanup(server.close)
        self.bundle = os.path.abspath(self.mktemp())
        authority.cert_pem.write_to_path(self.bundle)
        self.upstream_port = server.port
        return server

    def secured(self, bundle: str | None = None, verify: bool = True, **limits: Any) -> None:
        self.agent, self.pool = self.new_agent(**limits)
        self.agent = ExactAgent(self.pool, https_policy(bundle, verify))

    async def body(self, host: bytes = b"localhost") -> bytes:
        url = b"https://%b:%d/" % (host, self.upstream_port)
        receiver = Receiver()
        response = await self.agent.request(b"GET", url, HOST)
        response.deliverBody(receiver)
        await receiver.over
        return receiver.body

    async def test_sessions(self) -> None:
        """A later connection takes up the session of an earlier one, with TLS 1.2 and 1.3."""
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            server = self.serve("localhost", version)
            self.secured(self.bundle)
            for _ in range(3):
                self.assertEqual(await self.body(), b"secret")
                self.assertEqual(await self.body(), b"secret")
                await self.pool.closeCachedConnections()
            self.assertEqual(server.reused, [False, True, True], version)
            self.assertEqual(server.names, ["localhost"] * 3)
            self.assertEqual((self.pool.opened, self.pool.reused), (3, 3))

    async def test_certificates(self) -> None:
        """A certificate of nobody's, or for another name, is refused; unless told otherwise."""
        self.serve("localhost", ssl.TLSVersion.TLSv1_3)
        self.secured()
        with self.assertRaises(Exception) as caught:
            await self.body()
        self.assertIn("SSL", type(caught.exception).__module__)
        self.secured(None, False)
        self.assertEqual(await self.body(), b"secret")
        self.serve("elsewhere.example.com", ssl.TLSVersion.TLSv1_3)
        self.secured(self.bundle)
        with self.assertRaises(Exception) as caught:
            await self.body()
        self.assertIn("service_identity", type(caught.exception).__module__)
        self.assertEqual((self.pool.idle, self.pool.connections), (0, 0))

    async def test_silent_server(self) -> None:
        """Who accepts and then says nothing is not waited for longer than who does not."""
        await self.prepare()
        self.secured(connect_timeout_s=0.2)
        self.upstream.on_connect = lambda up: setattr(up, "dataReceived", lambda data: None)
        started = reactor.seconds()
        with self.assertRaises(ConnectTimeout):
            await self.body()
        self.assertLess(reactor.seconds() - started, 2)
        await until(lambda: not self.upstream.connections)
        self.assertEqual(self.pool.connections, 0)

    async def test_server_without_tls(self) -> None:
        """Who does not speak TLS."""
        await self.prepare()
        self.secured()
        self.upstream.on_connect = lambda up: up.write(answer(b"plain"))
        with self.assertRaises(SSL.Error):
            await self.body()
        await until(lambda: not self.upstream.connections)

    async def test_big_bodies(self) -> None:
        """Megabytes both ways."""
        size = 3_000_000

        class Both(Protocol):
            got = 0

            def dataReceived(self, data: bytes) -> None:
                self.got += len(data)
                if self.got > size:
                    self.got = 0
                    self.transport.write(answer(b"d" * size))  # type: ignore[union-attr]

        from twisted.internet.protocol import Factory
        from twisted.internet.ssl import CertificateOptions, PrivateCertificate

        authority = trustme.CA()
        leaf = authority.issue_cert("localhost")
        pem = leaf.private_key_and_cert_chain_pem.bytes()
        options: CertificateOptions = PrivateCertificate.loadPEM(pem).options()
        listening: Any = reactor.listenSSL(  # type: ignore[attr-defined]
            0, Factory.forProtocol(Both), options, interface="127.0.0.1"
        )
        self.addCleanup(listening.stopListening)
        self.upstream_port = listening.getHost().port
        bundle = os.path.abspath(self.mktemp())
        authority.cert_pem.write_to_path(bundle)
        self.secured(bundle)

        class Whole:
            length = size
            whole = b"u" * size

        url = b"https://localhost:%d/" % self.upstream_port
        whole: Any = Whole()
        for _ in range(2):
            response = await self.agent.request(b"POST", url, HOST, whole)
            receiver = Receiver()
            response.deliverBody(receiver)
            await receiver.over
            self.assertTrue(receiver.body == b"d" * size)
        self.assertEqual(self.pool.opened, 1)
        await self.pool.closeCachedConnections()
