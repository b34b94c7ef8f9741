"""
TLS between real sockets: certificates replaced under load, clients that are refused,
load balancers in front, and clients' own certificates.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import ssl
import threading
from hashlib import sha256
from typing import Any

import h2.connection
import h2.events
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from twisted.internet.threads import deferToThread

from tests.fakes import CONVERSE, KEY, request, until
from tests.loopback.test_program import LOCAL, Child, ProgramTestCase
from tests.test_tls import IPV4, Authority, Issued, client_context, v2

RELOADS = 20
CLIENTS = 4
CI, BLOCKED, NEAR = "sk-planted-ci", "sk-planted-blocked", "sk-planted-near"


def serial(connection: ssl.SSLSocket) -> int:
    """Of the certificate that the server has shown."""
    shown = connection.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


class Answer:
    """
    What a blocking client got.

    :param first: what it sends before its handshake.
    """

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext | None,
        data: bytes,
        *,
        first: bytes = b"",
        session: ssl.SSLSession | None = None,
    ) -> None:
        connection: Any = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.session: ssl.SSLSession | None = None
        self.resumed: bool | None = None
        try:
            connection.sendall(first)
            if context is not None:
                connection = context.wrap_socket(
                    connection, server_hostname="localhost", session=session
                )
            connection.sendall(data)
            response = http.client.HTTPResponse(connection)
            response.begin()
            self.status, self.body = response.status, response.read()
            if context is not None:
                self.session, self.resumed = connection.session, connection.session_reused
                self.protocol = connection.selected_alpn_protocol()
        finally:
            connection.close()


def streams(port: int, context: ssl.SSLContext, keys: list[str]) -> list[str]:
    """The statuses of requests of one HTTP/2 connection, made with these keys or with none."""
    with context.wrap_socket(
        socket.create_connection(("127.0.0.1", port), timeout=30), server_hostname="localhost"
    ) as connection:
        client = h2.connection.H2Connection()
        client.initiate_connection()
        found: dict[int, str] = {}
        waiting = set()
        for key in keys:
            stream = client.get_next_available_stream_id()
            waiting.add(stream)
            headers = [
                (":method", "POST"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", CONVERSE),
                ("content-type", "application/json"),
                *([("authorization", f"Bearer {key}")] if key else []),
            ]
            client.send_headers(stream, headers)
            client.send_data(stream, b'{"messages": []}', end_stream=True)
            while stream in waiting:
                connection.sendall(client.data_to_send())
                for event in client.receive_data(connection.recv(65536)):
                    if isinstance(event, h2.events.ResponseReceived):
                        found[stream] = dict(event.headers)[b":status"].decode()
                    elif isinstance(event, h2.events.StreamEnded):
                        waiting.discard(stream)
        return [found[stream] for stream in sorted(found)]


class Load(threading.Thread):
    """
    A client that asks again and again.

    :param keeps: whether it does so over one connection.
    """

    def __init__(self, port: int, context: ssl.SSLContext, *, keeps: bool) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._context = context
        self._keeps = keeps
        self._over = threading.Event()
        self.answered = self.connections = 0
        self.seen: list[int] = []
        """The certificates it was shown, the last one last."""

        self.failures: list[str] = []

    def run(self) -> None:
        while not self._over.is_set():
            connection = http.client.HTTPSConnection(
                "127.0.0.1", self._port, context=self._context, timeout=30
            )
            # A connection that was lost is a failure, not a reason to open another.
            connection.auto_open = 0
            try:
                connection.connect()
                self.connections += 1
                self.seen.append(serial(connection.sock))
                self._ask(connection)
                while self._keeps and not self._over.is_set():
                    self._ask(connection)
            except Exception as error:
                self.failures.append(repr(error))
            finally:
                connection.close()

    def _ask(self, connection: http.client.HTTPSConnection) -> None:
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        connection.request("POST", CONVERSE, b'{"messages": []}', headers)
        response = connection.getresponse()
        response.read()
        if response.status == 200:
            self.answered += 1
        else:
            self.failures.append(f"status {response.status}")

    def stop(self) -> None:
        self._over.set()
        self.join(30)


class TLSTestCase(ProgramTestCase):
    """The program with certificates of an authority that clients trust."""

    def setUp(self) -> None:
        super().setUp()
        self.authority = Authority()

    def write(self, name: str, *contents: bytes) -> str:
        # In one step, as whoever renews a certificate does it.
        with open(self.path(f"{name}.new"), "wb") as file:
            file.write(b"".join(contents))
        os.replace(self.path(f"{name}.new"), self.path(name))
        return self.path(name)

    def serve(self, issued: Issued) -> None:
        """Have the files of the listener hold this certificate."""
        self.write("key.pem", issued.key_pem)
        self.write("cert.pem", issued.pem)

    def set(self, **general: str) -> None:
        """Write a configuration with further general settings."""
        self.configure(self.upstream_port)
        with open(self.path("config.yaml"), "a") as file:
            for name, value in (("master_key", KEY), ("shutdown_grace", "20s"), *general.items()):
                file.write(f"  {name}: {value}\n")
        text = self.read("config.yaml")
        text = re.sub(r"general_settings: \{.*\}", "general_settings:", text)
        self.write("config.yaml", text.encode())

    async def begin(self, listen: str, *more: str, **general: str) -> Child:
        """The upstream and the program."""
        self.upstream = await self.start_upstream()
        self.set(**general)
        child = self.start(*more, listen=listen)
        self.addresses = await self.ready(child, 1 + more.count("--listen"))
        return child

    def answer(
        self, context: ssl.SSLContext | None, data: bytes | None = None, **more: Any
    ) -> Any:
        """A Deferred of an :class:`Answer`."""
        port = more.pop("port", self.port)
        return deferToThread(Answer, port, context, data or request(), **more)

    def assert_calm(self, child: Child) -> None:
        """Nothing is wrong with the program."""
        self.assertEqual(child.err, "")
        self.assertNotIn("Traceback", child.out)
        self.assertNotRegex(child.out, r" (critical|error) ")


TLS = "tls:0:cert=cert.pem:key=key.pem:interface=127.0.0.1"


class ReloadTests(TLSTestCase):
    """SIGHUP."""

    async def test_under_load(self) -> None:
        """No request is lost, whatever the connection; new ones get the new certificate."""
        issued = [self.authority.issue("localhost", "127.0.0.1") for _ in range(2)]
        # What takes longest to read.
        issued[1] = self.authority.issue(
            "localhost", "127.0.0.1", key=rsa.generate_private_key(65537, 4096)
        )
        serials = [one.certificate.serial_number for one in issued]
        self.serve(issued[0])
        child = await self.begin(TLS)
        context = client_context(self.authority)
        keeping = [Load(self.port, context, keeps=True) for _ in range(CLIENTS)]
        coming = [Load(self.port, context, keeps=False) for _ in range(2)]
        loads = keeping + coming
        for load in loads:
            load.start()
            self.addCleanup(load.stop)
        await until(lambda: all(load.answered for load in loads))
        for number in range(1, RELOADS + 1):
            before = [load.answered for load in loads]
            self.serve(issued[number % 2])
            child.kill(signal.SIGHUP)
            await until(lambda: child.out.count(": serving ") == number + 1)  # noqa: B023
            await until(
                lambda: all(load.seen[-1] == serials[number % 2] for load in coming)  # noqa: B023
            )
            await until(
                lambda: all(
                    load.answered > count
                    for load, count in zip(loads, before, strict=True)  # noqa: B023
                )
            )
        for load in loads:
            await deferToThread(load.stop)
        self.assertEqual([load.failures for load in loads], [[]] * len(loads))
        for load in keeping:
            self.assertEqual((load.connections, load.seen), (1, serials[:1]))
        for load in coming:
            self.assertEqual(set(load.seen), set(serials))
            self.assertGreater(load.connections, RELOADS)
        # The gateway counts as its clients do.
        answered = sum(load.answered for load in loads)
        await self.stop(child)
        self.assertEqual(len(re.findall(r" 200 complete ", child.out)), answered)
        self.assert_calm(child)

    async def test_bad_file(self) -> None:
        """A file that cannot be used: the old certificate stays, one line says why."""
        good = self.authority.issue("localhost")
        self.serve(good)
        child = await self.begin(TLS)
        context = client_context(self.authority)
        for content in (b"", self.authority.issue("localhost").pem):
            self.write("cert.pem", content)
            before = child.out.count("stays as it is")
            child.kill(signal.SIGHUP)
            await until(lambda: child.out.count("stays as it is") > before)  # noqa: B023
            # The prices are read at the same signal.
            await until(lambda: child.out.count("prices are those") > before)  # noqa: B023
            self.assertEqual((await self.answer(context)).status, 200)
        await self.stop(child)
        lines = [line for line in child.out.splitlines() if " error " in line]
        self.assertEqual(len(lines), 2)
        for line in lines:
            self.assertIn(f"127.0.0.1:{self.port}: the certificate stays as it is: ", line)
        self.assertEqual(child.err, "")

    async def test_what_is_served(self) -> None:
        """The log says what is served and until when, and warns of what expires soon."""
        self.serve(self.authority.issue("localhost", common_name="gateway", ends=10 * 86400.0))
        child = await self.begin(TLS)
        self.assertRegex(
            child.out,
            rf" info \S+: 127.0.0.1:{self.port}: serving CN=gateway for localhost, "
            r"valid until \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
        )
        self.assertRegex(child.out, r" warn \S+: \S+: the certificate expires within 10 days")
        context = client_context(self.authority)
        asked = await self.answer(context, request("/metrics", b"", method="GET"))
        self.assertRegex(
            asked.body.decode(),
            r'txbedrock_certificate_expiry_timestamp_seconds\{listener="127.0.0.1:\d+"\} 1\.\d+e',
        )
        await self.stop(child)


class StartTests(TLSTestCase):
    """What keeps it from starting, and what does not."""

    async def test_refused(self) -> None:
        """A key of another certificate, a file that cannot be read: one line, status 1."""
        self.configure()
        self.serve(self.authority.issue("localhost"))
        self.write("other.pem", self.authority.issue("localhost").key_pem)
        for listen, words in (
            (
                "tls:0:cert=cert.pem:key=other.pem",
                f"the private key in {self.folder}/other.pem does not belong to the certificate",
            ),
            ("tls:0:cert=cert.pem:key=no.pem", f"No such file or directory: {self.folder}/no.pem"),
            ("tls:0:cert=cert.pem:key=key.pem:clientCA=no.pem", f"{self.folder}/no.pem"),
            ("tls:0", "expected tls:PORT:cert=FILE:key=FILE"),
        ):
            child = self.start(listen=listen)
            await self.end(child, 1)
            [problem, end] = child.err.splitlines()
            self.assertTrue(problem.startswith(f"--listen {listen}: "), problem)
            self.assertIn(words, problem)
            self.assertEqual(end, "bedrockproxy: 1 problem, not started")

    async def test_expired(self) -> None:
        """An expired certificate is served, with a warning."""
        self.serve(self.authority.issue("localhost", ends=-60))
        child = await self.begin(TLS)
        self.assertIn("the certificate has expired: clients refuse it", child.out)
        with self.assertRaises(ssl.SSLCertVerificationError):
            await self.answer(client_context(self.authority))
        await self.stop(child)
        self.assert_calm(child)


class RefusedTests(TLSTestCase):
    """Handshakes that fail: a line for the operator, and nothing that alarms."""

    async def refusals(self, child: Child, *expected: str) -> None:
        """Such lines, in this order."""
        await until(lambda: child.out.count("refused in the TLS handshake") == len(expected))
        lines = [line for line in child.out.splitlines() if "TLS handshake" in line]
        for line, words in zip(lines, expected, strict=True):
            self.assertRegex(line, f" info .*: 127.0.0.1 refused in the TLS handshake: .*{words}")

    async def test_clients(self) -> None:
        """Clients that are too old, know no cipher of ours, or do not trust us."""
        self.serve(self.authority.issue("localhost"))
        child = await self.begin(TLS)
        old = client_context(self.authority)
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1
        weak = client_context(self.authority, maximum_version=ssl.TLSVersion.TLSv1_2)
        weak.set_ciphers("ECDHE-ECDSA-AES128-SHA")
        for context in (old, weak, client_context(Authority("others"))):
            with self.assertRaises(ssl.SSLError):
                await self.answer(context)
        # What is no TLS at all, and what says nothing.
        with contextlib.suppress(OSError, http.client.HTTPException):
            await self.answer(None)
        socket.create_connection(("127.0.0.1", self.port)).close()
        self.assertEqual((await self.answer(client_context(self.authority))).status, 200)
        await self.refusals(
            child, "unsupported protocol", "no shared cipher", "unknown ca", "http request"
        )
        await self.stop(child)
        self.assert_calm(child)

    async def test_versions(self) -> None:
        """What can do TLS 1.2 or 1.3 gets in, and may come again with what it has agreed on."""
        self.serve(self.authority.issue("localhost"))
        child = await self.begin(TLS)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = client_context(self.authority, maximum_version=version)
            context.set_alpn_protocols(["http/1.1"])
            first = await self.answer(context)
            again = await self.answer(context, session=first.session)
            self.assertEqual((first.status, first.resumed), (200, False))
            self.assertEqual((again.status, again.resumed), (200, True))
            self.assertEqual(again.protocol, "http/1.1")
        await self.stop(child)
        self.assert_calm(child)


def v1(source: str, port: int = 1234) -> bytes:
    """A PROXY header of version 1."""
    return f"PROXY TCP4 {source} 192.0.2.2 {port} 443\r\n".encode()


class ProxyTests(TLSTestCase):
    """A load balancer in front that says whom it connects for."""

    def peers(self, child: Child) -> list[str]:
        """The addresses in the lines of requests."""
        return re.findall(r"txbedrock.access: \S+ (\S+) ", child.out)

    async def test_trusted(self) -> None:
        """Of a trusted address both versions are believed, also before TLS."""
        self.serve(self.authority.issue("localhost"))
        keys = f"[{{key_hash: {sha256(NEAR.encode()).hexdigest()}, key_alias: near, "
        child = await self.begin(
            f"haproxy:{LOCAL}",
            "--listen",
            f"haproxy:{TLS}",
            trusted_proxies="[127.0.0.1]",
            virtual_keys=keys + "allowed_ips: [192.0.2.1]}]",
        )
        ports = [int(address.rpartition(":")[2]) for address in self.addresses]
        context = client_context(self.authority)
        plain, tls = ((ports[0], None), (ports[1], context))
        near = request(key=NEAR)
        forwarded = request(headers=("X-Forwarded-For: 203.0.113.9",))
        for (port, used), header, data, status, peer in (
            (plain, v1("198.51.100.7"), request(), 200, "198.51.100.7"),
            (plain, v2(0x11, IPV4), request(), 200, "192.0.2.1"),
            (tls, v1("198.51.100.7"), request(), 200, "198.51.100.7"),
            (tls, v2(0x11, IPV4, more=bytes(300)), request(), 200, "192.0.2.1"),
            # The addresses that a key allows are those of clients.
            (tls, v2(0x11, IPV4), near, 200, "192.0.2.1"),
            (tls, v1("192.0.2.9"), near, 403, "192.0.2.9"),
            (plain, v1("127.0.0.1"), near, 403, "127.0.0.1"),
            # The load balancer itself.
            (plain, v2(0x00, b"", command=0x20), request(), 200, "127.0.0.1"),
            (plain, b"PROXY UNKNOWN\r\n", request(), 200, "127.0.0.1"),
            # Who is told of here cannot tell of somebody else; a proxy behind it can.
            (plain, v1("198.51.100.7"), forwarded, 200, "198.51.100.7"),
            (plain, v1("127.0.0.1"), forwarded, 200, "203.0.113.9"),
        ):
            answer = await self.answer(used, data, port=port, first=header)
            self.assertEqual(answer.status, status, (header, answer.body))
            self.assertEqual(self.peers(child)[-1], peer)
        for used, data in ((None, request()), (None, b"PROXY rubbish\r\n"), (context, request())):
            with self.assertRaises((OSError, http.client.HTTPException)):
                await self.answer(used, data, port=ports[used is context])
        refused = re.findall(r"127.0.0.1 refused at (\S+): a PROXY header is expected", child.out)
        self.assertEqual(refused, [self.addresses[0]] * 2 + [self.addresses[1]])
        await self.stop(child)
        self.assert_calm(child)

    async def test_untrusted(self) -> None:
        """Of anybody else nothing is believed, and nothing is read."""
        self.serve(self.authority.issue("localhost"))
        child = await self.begin(
            f"haproxy:{LOCAL}", "--listen", f"haproxy:{TLS}", trusted_proxies="[10.0.0.0/8]"
        )
        context = client_context(self.authority)
        for address, used in zip(self.addresses, (None, context), strict=True):
            for header in (v1("10.0.0.1"), v2(0x11, IPV4), b""):
                with self.assertRaises((OSError, http.client.HTTPException)):
                    await self.answer(used, port=int(address.rpartition(":")[2]), first=header)
        refused = "127.0.0.1 refused at {}: it is not one of general_settings.trusted_proxies"
        for address in self.addresses:
            self.assertEqual(child.out.count(refused.format(address)), 3)
        self.assertEqual((self.peers(child), self.upstream.requests), ([], []))
        await self.stop(child)
        self.assert_calm(child)

    async def test_slow(self) -> None:
        """A header that does not come is not waited for; others do not notice."""
        child = await self.begin(f"haproxy:{LOCAL}", trusted_proxies="[127.0.0.1]")
        silent = await self.connect()
        silent.write(v1("192.0.2.1")[:20])
        answer = await self.answer(None, first=v1("192.0.2.1"))
        self.assertEqual(answer.status, 200)
        await until(lambda: silent.lost is not None)
        self.assertIn("its PROXY header did not come within 5 s", child.out)
        waiting = await self.connect()
        await self.stop(child)
        await until(lambda: waiting.lost is not None)
        self.assert_calm(child)


class IdentityTests(TLSTestCase):
    """Clients that show a certificate of their own."""

    def setUp(self) -> None:
        super().setUp()
        self.clients_ca = Authority("clients")
        self.serve(self.authority.issue("localhost"))
        self.write("clients.pem", self.clients_ca.pem)
        hashes = [sha256(key.encode()).hexdigest() for key in (CI, BLOCKED)]
        self.general = {
            "virtual_keys": f"[{{key_hash: {hashes[0]}, key_alias: ci}}, "
            f"{{key_hash: {hashes[1]}, key_alias: blocked, blocked: true}}]",
            "client_certificates": "[{dns: ci.example, key_alias: ci}, "
            "{common_name: mallory, key_alias: blocked}]",
        }

    def context(self, *names: str, authority: Authority | None = None, **more: Any) -> Any:
        issued = (authority or self.clients_ca).issue(*names, client=True, **more)
        path = self.write("client.pem", issued.key_pem, issued.pem)
        context = client_context(self.authority)
        context.load_cert_chain(path)
        return context

    async def whose(self, child: Child, count: int = 1) -> str:
        """Of whose request the last of so many lines is, which come after the answers."""

        def found() -> list[str]:
            return re.findall(r"txbedrock.access: \S+ \S+ (\S+) ", child.out)

        await until(lambda: len(found()) >= count)
        return found()[-1]

    async def test_identity(self) -> None:
        """A certificate stands for the key that the settings say; a key that is sent wins."""
        child = await self.begin(
            f"{TLS}:clientCA=clients.pem:clientAuth=optional",
            "--listen",
            LOCAL,
            **self.general,
        )
        ci, keyless = self.context("ci.example"), request(key=None)
        first = await self.answer(ci, keyless)
        self.assertEqual((first.status, await self.whose(child)), (200, "ci"))
        again = await self.answer(ci, keyless, session=first.session)
        self.assertEqual(
            (again.status, again.resumed, await self.whose(child, 2)), (200, True, "ci")
        )
        info = await self.answer(ci, request("/key/info", b"", method="GET", key=None))
        self.assertIn(b'"key_alias":"ci"', info.body.replace(b" ", b""))
        for context, data, status, words in (
            (ci, request(), 200, b""),
            (ci, request(key="sk-planted-wrong"), 403, b"not one of this gateway"),
            (self.context("other.example"), keyless, 403, b"stands for no key"),
            (self.context(common_name="ci.example"), keyless, 403, b"stands for no key"),
            (self.context(common_name="mallory"), keyless, 403, b"This key is blocked"),
            (client_context(self.authority), keyless, 403, b"the request has none"),
        ):
            answer = await self.answer(context, data)
            self.assertEqual(answer.status, status, answer.body)
            self.assertIn(words, answer.body)
        with self.assertRaises(OSError):
            await self.answer(self.context("ci.example", authority=Authority("clients")), keyless)
        # Nothing that is written into a request makes a certificate.
        forged = request(
            key=None,
            headers=(
                "X-Forwarded-Client-Cert: Subject=\"CN=ci.example\";DNS=ci.example",
                "X-SSL-Client-CN: ci.example",
                "X-Client-Certificate: ci.example",
                "X-Amzn-Mtls-Clientcert-Subject: CN=ci.example",
                "SSL_CLIENT_S_DN: CN=ci.example",
            ),
        )  # fmt: skip
        plain = int(self.addresses[1].rpartition(":")[2])
        self.assertEqual((await self.answer(None, forged, port=plain)).status, 403)
        self.assertEqual((await self.answer(client_context(self.authority), forged)).status, 403)
        await self.stop(child)
        self.assert_calm(child)

    async def test_streams(self) -> None:
        """All streams of an HTTP/2 connection are of its certificate, or of their own keys."""
        child = await self.begin(f"{TLS}:clientCA=clients.pem", **self.general)
        context = self.context("ci.example")
        context.set_alpn_protocols(["h2"])
        statuses = await deferToThread(streams, self.port, context, ["", "sk-planted-wrong", ""])
        self.assertEqual(statuses, ["200", "403", "200"])
        self.assertEqual(await self.whose(child, 3), "ci")
        await self.stop(child)
        self.assert_calm(child)

    async def test_required(self) -> None:
        """Who has no certificate does not get as far as HTTP; a line says so."""
        child = await self.begin(f"{TLS}:clientCA=clients.pem", **self.general)
        with self.assertRaises(OSError):
            await self.answer(client_context(self.authority))
        answer = await self.answer(self.context("ci.example"), request(key=None))
        self.assertEqual(answer.status, 200)
        await until(lambda: "peer did not return a certificate" in child.out)
        await self.stop(child)
        self.assert_calm(child)

    async def test_behind_a_load_balancer(self) -> None:
        """One that passes TLS on leaves the certificate as it is."""
        child = await self.begin(
            f"haproxy:{TLS}:clientCA=clients.pem", trusted_proxies="[127.0.0.1]", **self.general
        )
        answer = await self.answer(
            self.context("ci.example"), request(key=None), first=v1("192.0.2.1")
        )
        self.assertEqual((answer.status, await self.whose(child)), (200, "ci"))
        await self.stop(child)
        self.assert_calm(child)
