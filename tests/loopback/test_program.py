"""
The program as it is started: ``twistd`` and ``twist`` in processes of their own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import sys
from contextlib import closing
from typing import Any

import trustme
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    wrapClientTLS,
)
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import Factory, ProcessProtocol, connectionDone
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.python.failure import Failure

from tests.fakes import (
    ACCESS_KEY_ID,
    CONVERSE,
    KEY,
    SECRET,
    BareClient,
    GatewayTestCase,
    answer,
    request,
    until,
)

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.path.dirname(sys.executable)
LOCAL = "tcp:0:interface=127.0.0.1"
READINESS = request("/health/readiness", b"", method="GET", key=None)
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} (\w+) (txbedrock\.[\w.]+): (.+)")


class Child(ProcessProtocol):
    """
    A process.

    :param program: ``twistd`` or ``twist``.
    """

    def __init__(self, program: str, *arguments: str, folder: str, environ: dict[str, str]):
        self.out = self.err = ""
        self.status: int | None = None
        self.ended: Deferred[None] = Deferred()
        self.transport: Any
        reactor.spawnProcess(
            self,
            sys.executable,
            [sys.executable, os.path.join(BIN, program), *arguments],
            env=environ,
            path=folder,
        )

    def outReceived(self, data: bytes) -> None:
        self.out += data.decode()

    def errReceived(self, data: bytes) -> None:
        self.err += data.decode()

    def processEnded(self, reason: Failure = connectionDone) -> None:
        # As a shell and subprocess have it: the negative number of a signal.
        ended: Any = reason.value
        self.status = -ended.signal if ended.signal else ended.exitCode
        self.ended.callback(None)

    @property
    def pid(self) -> int:
        pid: int = self.transport.pid
        return pid

    def kill(self, number: int = signal.SIGTERM) -> None:
        os.kill(self.pid, number)


def runs(pid: int) -> bool:
    """Is there such a process? One that has ended and waits to be noticed is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class ProgramTestCase(GatewayTestCase):
    """The program in a folder of its own, in front of a scripted upstream."""

    timeout = 120

    def setUp(self) -> None:
        super().setUp()
        self.folder = os.path.abspath(self.mktemp())
        os.makedirs(self.folder)
        self.clients: list[BareClient] = []
        self.environ = {
            "HOME": self.folder,
            "PATH": os.environ.get("PATH", ""),
            "PYTHONPATH": ROOT,
            # Twisted keeps a file open on purpose, which Python tells developers of.
            "PYTHONWARNINGS": "default,ignore::ResourceWarning",
            "AWS_REGION_NAME": "us-west-2",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
        self.addCleanup(lambda: Deferred.fromCoroutine(self.hang_up()))

    async def hang_up(self) -> None:
        for client in self.clients:
            if client.lost is None:
                client.transport.abortConnection()
        await until(lambda: all(client.lost for client in self.clients))

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def read(self, name: str) -> str:
        """A file of the folder; empty as long as there is none."""
        try:
            with open(self.path(name)) as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def configure(self, port: int = 9, *, grace: str = "20s", key: str = KEY) -> str:
        """Write a configuration whose model m is at a port of this machine."""
        with open(self.path("config.yaml"), "w") as file:
            file.write(
                "model_list:\n"
                "  - model_name: m\n"
                "    litellm_params:\n"
                "      model: bedrock/us.amazon.nova-lite-v1:0\n"
                "      aws_region_name: us-west-2\n"
                f"      api_base: http://127.0.0.1:{port}\n"
                f"general_settings: {{master_key: {key}, shutdown_grace: {grace}}}\n"
            )
        return "config.yaml"

    def spawn(self, program: str, *arguments: str) -> Child:
        """Start a program; it is killed after the test if it still runs."""
        child = Child(program, *arguments, folder=self.folder, environ=self.environ)

        def stop() -> Deferred[None] | None:
            if child.ended.called:
                return None
            child.kill(signal.SIGKILL)
            return child.ended

        self.addCleanup(stop)
        return child

    def start(self, *arguments: str, listen: str = LOCAL) -> Child:  # type: ignore[override]
        """Start it as most people do."""
        return self.spawn(
            "twistd", "-n", "bedrockproxy", "-c", "config.yaml", "--listen", listen, *arguments
        )

    async def ready(self, child: Child, addresses: int = 1) -> list[str]:
        """Wait until it is ready on so many addresses. The first one's port is ours."""

        def found() -> list[str]:
            return re.findall(r"ready on ([^\s\"]+)", child.out)

        await until(lambda: len(found()) >= addresses or child.status is not None, 60)
        self.assertGreaterEqual(len(found()), addresses, child.out + child.err)
        first = found()[0]
        if not first.startswith("unix:"):
            self.port = int(first.rpartition(":")[2])
        return found()

    async def end(self, child: Child, status: int = 0) -> None:
        """Wait for its end."""
        await until(lambda: child.status is not None, 60)
        self.assertEqual(child.status, status, child.out + child.err)

    async def stop(self, child: Child, status: int = 0) -> None:
        """Ask it to stop and wait for its end."""
        child.kill()
        await self.end(child, status)

    def files(self) -> list[str]:
        """What is in the folder besides the ledger."""
        ledger = {"txbedrock.db", "txbedrock-journal"}
        return sorted(set(os.listdir(self.folder)) - ledger)

    def messages(self, text: str) -> list[str]:
        """The messages of a log in text, each of which is a line of ours for people."""
        found = []
        for line in text.splitlines():
            match = LINE.fullmatch(line)
            assert match is not None, f"{line!r} in {text}"
            found.append(match[3])
        return found

    def assert_life(self, messages: list[str], *between: str) -> None:
        """From the start to the end, with so many lines of requests between them."""
        expected = [
            r"txbedrock \S+ with Twisted \S+ and Python \S+, process \d+",
            r"the database is sqlite:///\S+/txbedrock\.db",
            r"the AWS credential chain: AWS credentials loaded, valid without expiry",
            r"ready on 127\.0\.0\.1:\d+",
            *between,
            r"stopping; requests in flight: 0",
            r"stopped",
        ]
        # The scripted upstream does not say what it used.
        messages = [one for one in messages if not one.startswith("the cost of ")]
        self.assertEqual(len(messages), len(expected), messages)
        for message, pattern in zip(messages, expected, strict=True):
            self.assertRegex(message, f"^{pattern}$")


class StartTests(ProgramTestCase):
    """Starting and stopping."""

    async def test_twistd(self) -> None:
        """twistd -n serves, says a few clear lines, and ends with 0 when told to stop."""
        self.upstream = await self.start_upstream()
        self.configure(self.upstream_port)
        child = self.start()
        await self.ready(child)
        self.assertEqual((await self.ask(request())).status, 200)
        self.assertEqual((await self.ask(READINESS)).status, 200)
        await self.stop(child)
        self.assertEqual(child.err, "")
        access = r"\S+ 127\.0\.0\.1 \S+ bedrock-runtime:Converse m -> \S+ 200 complete .*"
        self.assert_life(self.messages(child.out), access)
        self.assertEqual(self.files(), ["config.yaml"])

    async def test_twist(self) -> None:
        """twist does the same; without a terminal its log is JSON, or what it is told."""
        self.configure()
        arguments = ("bedrockproxy", "--config", "config.yaml", "--listen", LOCAL)
        for more in ((), ("--log-format", "json")):
            child = self.spawn("twist", *arguments, *more)
            await self.ready(child)
            await self.stop(child)
            self.assertEqual(child.err, "")
            lines = [json.loads(line) for line in child.out.splitlines()]
            self.assert_life([line["message"] for line in lines])
        text = ("--log-format", "text")
        for words in ((*text, *arguments), (*arguments, *text)):
            child = self.spawn("twist", *words)
            await self.ready(child)
            await self.stop(child)
            self.assertEqual(child.err, "")
            self.assert_life(self.messages(child.out))

    async def test_newer_database(self) -> None:
        """A database that a newer version has upgraded is left alone, and the program ends."""
        self.configure()
        child = self.start()
        await self.ready(child)
        await self.stop(child)
        with closing(sqlite3.connect(self.path("txbedrock.db"))) as database:
            database.execute("INSERT INTO txbedrock_schema VALUES (9000, 'later', 0)")
            database.commit()
        child = self.start()
        await self.end(child, 1)
        self.assertEqual(len(child.err.splitlines()), 1, child.err)
        self.assertRegex(child.err, "^bedrockproxy: the database: .* at step 9000 .* a newer one")
        self.assertEqual(self.files(), ["config.yaml"])

    async def test_json(self) -> None:
        """--log-format json: every line is an object, requests and refusals included."""
        self.configure()
        child = self.start("--log-format", "json")
        await self.ready(child)
        for data in (request(), request(key="sk-wrong"), b"rubbish\r\n\r\n", READINESS):
            await self.ask(data)
        await self.stop(child)
        lines = [json.loads(line) for line in child.out.splitlines()]
        for line in lines:
            self.assertLessEqual({"time", "level", "source", "message"}, set(line))
        requests = [line for line in lines if line["source"] == "txbedrock.access"]
        self.assertEqual([line["status"] for line in requests], [503, 403])
        self.assertEqual(requests[0]["level"], "warn")
        self.assertEqual(requests[1]["error"], "UnrecognizedClientException")

    async def test_environment_only(self) -> None:
        """Without a configuration it starts for this machine, and says how to call it."""
        child = self.spawn("twistd", "-n", "bedrockproxy", "--host", "127.0.0.1", "--port", "0")
        await self.ready(child)
        self.assertEqual((await self.ask(READINESS)).status, 200)
        await self.stop(child)
        self.assert_life(self.messages(child.out))

    async def test_interrupt(self) -> None:
        """Ctrl-C stops it too; its shell learns that it was interrupted."""
        self.configure()
        child = self.start()
        await self.ready(child)
        child.kill(signal.SIGINT)
        await self.end(child, -signal.SIGINT)
        self.assertEqual(child.err, "")
        self.assert_life(self.messages(child.out))

    async def test_log_file(self) -> None:
        """--logfile: everything is there, and nothing on the screen."""
        self.configure()
        child = self.spawn(
            "twistd", "-n", "--logfile=x.log", "bedrockproxy", "-c", "config.yaml", "-l", LOCAL
        )
        await until(lambda: "ready on" in self.read("x.log") or child.status is not None, 60)
        await self.stop(child)
        self.assertEqual((child.out, child.err), ("", ""))
        self.assert_life(self.messages(self.read("x.log")))

    async def test_help(self) -> None:
        """twistd --help and twist --help list both programs."""
        for program in ("twistd", "twist"):
            child = self.spawn(program, "--help")
            await self.end(child)
            self.assertRegex(child.out, r"\n +bedrockproxy +A gateway for Amazon Bedrock")
            self.assertRegex(child.out, r"\n +bedrocksandbox +A stand-in for Amazon Bedrock")
            self.assertEqual(child.err, "")


class DaemonTests(ProgramTestCase):
    """In the background."""

    def daemon(self, *arguments: str) -> Child:
        return self.spawn(
            "twistd",
            "--pidfile=proxy.pid",
            "--logfile=proxy.log",
            *arguments,
            "bedrockproxy",
            "--config",
            "config.yaml",
            "--listen",
            LOCAL,
        )

    async def up(self) -> int:
        """Wait until the daemon is ready; its process id. It is killed after the test."""
        pid = int(self.read("proxy.pid"))

        def kill() -> None:
            if runs(pid):
                os.kill(pid, signal.SIGKILL)

        self.addCleanup(kill)
        await until(lambda: "ready on" in self.read("proxy.log"), 60)
        self.port = int(re.findall(r"ready on .*:(\d+)", self.read("proxy.log"))[-1])
        return pid

    async def down(self, pid: int) -> None:
        os.kill(pid, signal.SIGTERM)
        await until(lambda: not runs(pid), 60)

    async def test_life(self) -> None:
        """It comes up, answers, logs to its file, and leaves no pid file when it is stopped."""
        self.upstream = await self.start_upstream()
        self.configure(self.upstream_port)
        child = self.daemon()
        await self.end(child)
        self.assertEqual((child.out, child.err), ("", ""))
        pid = await self.up()
        self.assertEqual((await self.ask(READINESS)).status, 200)
        self.assertEqual((await self.ask(request())).status, 200)
        await self.down(pid)
        self.assert_life(self.messages(self.read("proxy.log")), ".* 200 complete .*")
        self.assertEqual(self.files(), ["config.yaml", "proxy.log"])

    async def test_other_folder(self) -> None:
        """Relative paths are those of the folder it was started in."""
        self.configure()
        os.makedirs(self.path("elsewhere"))
        child = self.daemon("--rundir=elsewhere", f"--pidfile={self.path('proxy.pid')}")
        await self.end(child)
        pid = await self.up()
        self.assertEqual((await self.ask(READINESS)).status, 200)
        await self.down(pid)
        self.assertEqual(os.listdir(self.path("elsewhere")), [])
        self.assertEqual(self.read("proxy.pid"), "")

    async def test_drain(self) -> None:
        """A request in flight is finished here too."""
        self.upstream = await self.start_upstream()
        held: list[Any] = []
        self.upstream.script = lambda up, _: held.append(up)
        self.configure(self.upstream_port)
        await self.end(self.daemon())
        pid = await self.up()
        client = await self.connect()
        client.write(request())
        await until(lambda: bool(held))
        os.kill(pid, signal.SIGTERM)
        await until(lambda: "stopping; requests in flight: 1" in self.read("proxy.log"))
        held[0].write(answer(b"{}"))
        await until(lambda: not runs(pid), 60)
        self.assertEqual(client.status, 200)


class RefusedStartTests(ProgramTestCase):
    """What keeps it from starting: one clear line, status 1, and nothing left behind."""

    async def occupied(self) -> str:
        """An endpoint that somebody else has."""
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Factory())
        self.addCleanup(port.stopListening)
        return f"tcp:{port.getHost().port}:interface=127.0.0.1"

    async def test_port_in_use(self) -> None:
        """A port that is in use is named, without a traceback."""
        endpoint = await self.occupied()
        arguments = ("bedrockproxy", "--config", self.configure(), "--listen", endpoint)
        line = f"bedrockproxy: cannot listen on {endpoint}: Address already in use\n"
        for program, *options in (("twistd", "-n"), ("twist",)):
            child = self.spawn(program, *options, *arguments)
            await self.end(child, 1)
            self.assertEqual(child.err, line)
            self.assertNotIn("Traceback", child.out)
            self.assertEqual(self.files(), ["config.yaml"])

    async def test_port_in_use_by_the_second(self) -> None:
        """The same when only one of two is: the other is given back."""
        endpoint = await self.occupied()
        self.configure()
        child = self.start("--listen", endpoint)
        await self.end(child, 1)
        self.assertEqual(len(child.err.splitlines()), 1)
        self.assertNotIn("ready on", child.out)

    async def test_daemon_port_in_use(self) -> None:
        """A daemon says so before it leaves the terminal, and in its log."""
        endpoint = await self.occupied()
        arguments = ("bedrockproxy", "--config", self.configure(), "--listen", endpoint)
        child = self.spawn("twistd", "--pidfile=x.pid", "--logfile=x.log", *arguments)
        await self.end(child, 1)
        self.assertIn(f"CannotListen: Address already in use: {endpoint}", child.err)
        self.assertEqual(len(child.err.splitlines()), 2)
        [message] = self.messages(self.read("x.log"))
        self.assertEqual(message, f"cannot listen on {endpoint}: Address already in use")
        # The daemon tells its parent first, and takes the pid file away then.
        await until(lambda: self.files() == ["config.yaml", "x.log"])

    async def test_configuration(self) -> None:
        """A configuration that is missing or wrong, and a gateway open to all without a key."""
        with open(self.path("broken.yaml"), "w") as file:
            file.write("general_settings: {shutdown_grace: never}\n")
        missing = f"{self.folder}/missing.yaml"
        started = [
            (self.spawn(*program, "bedrockproxy", *arguments), word)
            for program, arguments, word in (
                (("twistd", "-n"), ("--config", "missing.yaml"), missing),
                (("twistd",), ("--config", "missing.yaml"), missing),
                (("twist",), ("--config", "missing.yaml"), missing),
                (("twistd", "-n"), ("-c", "broken.yaml"), f"{self.folder}/broken.yaml:1: "),
                (("twistd", "-n"), ("--listen", "tcp:0"), "without a master key"),
                (("twistd", "-n"), ("--listen", "nonsense"), "tcp:4000"),
            )
        ]
        for child, word in started:
            await self.end(child, 1)
            [problem, end] = child.err.splitlines()
            self.assertIn(word, problem)
            self.assertEqual(end, "bedrockproxy: 1 problem, not started")
            self.assertEqual(child.out, "")
        self.assertEqual(self.files(), ["broken.yaml"])

    async def test_wrong_option(self) -> None:
        """An option that does not exist is named after the list of those that do."""
        for program, status in (("twistd", 1), ("twist", 64)):
            child = self.spawn(program, "bedrockproxy", "--no-such-option")
            await self.end(child, status)
            said = child.out + child.err
            self.assertIn("no-such-option", said)
            self.assertIn("--listen", said)
            self.assertNotIn("Traceback", said)

    async def test_check(self) -> None:
        """--check needs no free port: it looks and says, with status 0."""
        endpoint = await self.occupied()
        self.configure()
        child = self.start("--check", listen=endpoint)
        await self.end(child)
        self.assertIn("us.amazon.nova-lite-v1:0", child.out)
        self.assertNotIn("planted", child.out)
        self.assertEqual(child.err, "")


class DrainTests(ProgramTestCase):
    """Stopping with requests in flight."""

    async def in_flight(self, grace: str) -> tuple[Child, BareClient, Any]:
        """A program, a client that waits, and the upstream connection that has its request."""
        self.upstream = await self.start_upstream()
        held: list[Any] = []
        self.upstream.script = lambda up, _: held.append(up)
        self.configure(self.upstream_port, grace=grace)
        child = self.start()
        await self.ready(child)
        client = await self.connect()
        client.write(request())
        await until(lambda: bool(held))
        return child, client, held[0]

    async def test_finishes(self) -> None:
        """The request in flight is answered, new ones are not taken, and it ends with 0."""
        child, client, up = await self.in_flight("60s")
        child.kill()
        await until(lambda: "stopping; requests in flight: 1, for at most 60 s" in child.out)
        with self.assertRaises(ConnectionRefusedError):
            await self.connect()
        self.assertIsNone(child.status)
        up.write(answer(b'{"text": "all of it"}'))
        await until(client.whole)
        self.assertEqual((client.status, client.body), (200, b'{"text": "all of it"}'))
        await self.end(child)
        self.assertEqual(child.err, "")
        self.assertEqual(self.messages(child.out)[-1], "stopped")

    async def test_hangs(self) -> None:
        """A request that does not end is cut off after shutdown_grace."""
        child, client, _ = await self.in_flight("500ms")
        await self.stop(child)
        await until(lambda: client.lost is not None)
        self.assertEqual(client.received, b"")
        await until(lambda: not self.upstream.connections)
        self.assertIn("cutting off the requests in flight: 1", self.messages(child.out))
        self.assertIn("client_gone", child.out)
        self.assertEqual(child.err, "")

    async def test_second_signal(self) -> None:
        """Who asks twice does not want to wait."""
        for first, second, status in (
            (signal.SIGTERM, signal.SIGTERM, 0),
            (signal.SIGINT, signal.SIGINT, -signal.SIGINT),
            (signal.SIGINT, signal.SIGTERM, -signal.SIGINT),
        ):
            child, client, _ = await self.in_flight("1h")
            child.kill(first)
            await until(lambda: "stopping" in child.out)  # noqa: B023
            child.kill(second)
            await self.end(child, status)
            await until(lambda: client.lost is not None)  # noqa: B023
            self.assertEqual(child.err, "")
            self.assertNotIn("Traceback", child.out)
            self.assertEqual(self.messages(child.out)[-1], "stopped")

    async def test_idle_connections(self) -> None:
        """Clients that keep their connection open do not hold it up."""
        self.configure(grace="1h")
        child = self.start()
        await self.ready(child)
        idle = [await self.ask(READINESS) for _ in range(5)] + [await self.connect()]
        await self.stop(child)
        await until(lambda: all(client.lost is not None for client in idle))


class ListenTests(ProgramTestCase):
    """Where it listens."""

    def certify(self, *names: str) -> trustme.CA:
        """key.pem, cert.pem and pems/localhost.pem, by an authority of their own."""
        authority = trustme.CA()
        issued = authority.issue_cert(*names)
        issued.private_key_pem.write_to_path(self.path("key.pem"))
        issued.cert_chain_pems[0].write_to_path(self.path("cert.pem"))
        os.makedirs(self.path("pems"))
        issued.private_key_and_cert_chain_pem.write_to_path(self.path("pems/localhost.pem"))
        return authority

    async def connect_tls(self, authority: trustme.CA, protocols: list[bytes]) -> BareClient:
        """A client over TLS that knows the authority and offers protocols by ALPN."""
        trust = trustRootFromCertificates([Certificate.loadPEM(authority.cert_pem.bytes())])
        options = optionsForClientTLS("localhost", trustRoot=trust, acceptableProtocols=protocols)
        endpoint = wrapClientTLS(options, TCP4ClientEndpoint(reactor, "127.0.0.1", self.port))
        client: Any = await endpoint.connect(Factory.forProtocol(BareClient))
        self.clients.append(client)
        return client

    async def test_tls(self) -> None:
        """ssl: and tls: answer over HTTPS, and speak what a client offers."""
        self.upstream = await self.start_upstream()
        self.configure(self.upstream_port)
        authority = self.certify("localhost")
        # Twisted uses what pyOpenSSL calls deprecated. Users are not told of that.
        del self.environ["PYTHONWARNINGS"]
        for listen in (
            "ssl:0:privateKey=key.pem:certKey=cert.pem:interface=127.0.0.1",
            "tls:pems:port=0:interface=127.0.0.1",
        ):
            child = self.start(listen=listen)
            await self.ready(child)
            client = await self.connect_tls(authority, [b"h2"])
            client.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            await until(lambda client=client: client.received)
            self.assertEqual(client.transport.negotiatedProtocol, b"h2")
            client = await self.connect_tls(authority, [b"http/1.1"])
            client.write(request(body=bytes(100_000)))
            await until(client.whole)
            self.assertEqual(client.status, 200)
            self.assertEqual(client.transport.negotiatedProtocol, b"http/1.1")
            client = await self.ask(request())
            self.assertNotIn(b"200", client.received)
            await self.stop(child)
            self.assertEqual(child.err, "")
            for message in self.messages(child.out):
                self.assertNotIn("Error", message)

    async def test_two(self) -> None:
        """Two addresses, one of them a socket in the file system, which goes when it stops."""
        self.configure()
        child = self.start("--listen", "unix:socket")
        first, second = await self.ready(child, 2)
        self.assertTrue(first.startswith("127.0.0.1:"), first)
        self.assertEqual(second, f"unix:{self.path('socket')}")
        self.assertEqual((await self.ask(READINESS)).status, 200)
        endpoint = UNIXClientEndpoint(reactor, os.path.relpath(self.path("socket")))
        client: Any = await endpoint.connect(Factory.forProtocol(BareClient))
        self.clients.append(client)
        client.write(READINESS)
        await until(client.whole)
        self.assertEqual(client.status, 200)
        await self.stop(child)
        self.assertEqual(self.files(), ["config.yaml"])

    async def test_ipv6(self) -> None:
        """--host takes an IPv6 address."""
        self.configure()
        child = self.spawn(
            "twistd", "-n", "bedrockproxy", "-c", "config.yaml", "--host", "::1", "--port", "0"
        )
        [address] = await self.ready(child)
        self.assertTrue(address.startswith("[::1]:"), address)
        await self.stop(child)


class SecretTests(ProgramTestCase):
    """What must not be in a log."""

    async def test_secrets_stay_out(self) -> None:
        """No key, AWS secret, prompt or answer, at the most talkative level, however it ends."""
        self.upstream = await self.start_upstream()
        up = self.upstream
        up.script = lambda connection, _: connection.write(answer(b'{"text": "planted answer"}'))
        self.configure(self.upstream_port)
        for log_format in ("text", "json"):
            child = self.start("--log-level", "debug", "--log-format", log_format)
            await self.ready(child)
            prompt = b'{"messages": [{"text": "planted prompt"}]}'
            statuses = []
            for data in (
                request(body=prompt),
                request(body=prompt, key=None, headers=(f"x-api-key: {KEY}",)),
                request(body=prompt, key="sk-planted-wrong"),
                request(body=prompt, key="planted-wrong-too"),
                request(CONVERSE + "?key=planted-in-the-query", prompt),
                request("/bedrock/nowhere/at/all", prompt),
                request("/nowhere", prompt),
                request("/bedrock/model/unknown/converse", prompt),
                request(body=prompt, headers=("Content-Length: 1",)),
                request(body=prompt + bytes(2_000_000)),
                b"GET /planted-rubbish" + bytes([0]) * 10 + b"\r\n\r\n",
            ):
                statuses.append((await self.ask(data)).status)
            self.assertEqual(statuses, [200, 200, 403, 403, 200, 404, 404, 404, 400, 200, 400])
            # Upstreams that fail in every way that an error message may quote.
            for script in (
                lambda connection, _: connection.write(b"rubbish\r\n\r\n"),
                lambda connection, _: connection.write(b"HTTP/1.1 200 OK\r\nplanted\r\n\r\n"),
                lambda connection, _: connection.reset(),
                lambda connection, _: connection.write(
                    answer(b'{"message": "planted"}', b"400 Bad Request")
                ),
            ):
                up.script = script
                await self.ask(request(body=prompt))
            up.script = lambda connection, _: connection.write(answer(b'{"x": "planted answer"}'))
            await self.stop(child)
            self.assertIn("ready on", child.out)
            self.assertNotIn("planted", child.out.lower())
            self.assertNotIn("Traceback", child.out)
            self.assertEqual(child.err, "")
