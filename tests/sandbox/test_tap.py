"""
``twistd -n bedrocksandbox``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from signal import SIGTERM
from typing import Any

from twisted.application.service import IServiceMaker
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory, ProcessProtocol
from twisted.plugin import getPlugins
from twisted.python.failure import Failure
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.sandbox.wire import HAIKU, SECRET, Wire, plain, signed
from txbedrock.sandbox.tap import Options, makeService

ROOT = Path(__file__).parent.parent.parent


def parsed(*arguments: str) -> Options:
    options = Options()
    options.parseOptions(arguments)
    return options


class OptionsTests(SynchronousTestCase):
    """The command line."""

    def test_defaults(self) -> None:
        """Without options it listens on loopback only."""
        self.assertEqual(parsed()["listen"], ["tcp:4100:interface=127.0.0.1"])

    def test_wrong(self) -> None:
        for arguments in (["--events", "-1"], ["--events", "x"], ["--delay-ms", "-1"], ["--no"]):
            self.assertRaises(UsageError, parsed, *arguments)
        self.assertRaises(UsageError, makeService, parsed("--listen", "nowhere:at:all"))

    def test_all(self) -> None:
        """Every option reaches the sandbox."""
        service = makeService(
            parsed(
                "--listen", "tcp:0", "--access-key-id", "a", "--secret-access-key", "b",
                "--session-token", "c", "--api-key", "d", "--region", "e", "--prefix", "/f",
                "--events", "7", "--delay-ms", "1.5",
            )
        )  # fmt: skip
        sandbox = service.sandbox
        self.assertEqual(sandbox.credentials["a"].secret_access_key, "b")
        self.assertEqual(sandbox.credentials["a"].session_token, "c")
        self.assertEqual((sandbox.api_key, sandbox.region), ("d", "e"))
        self.assertEqual((sandbox.words, sandbox.delay_ms), (7, 1.5))

    def test_plugin(self) -> None:
        """twistd finds it."""
        makers = {maker.tapname: maker for maker in getPlugins(IServiceMaker)}
        self.assertEqual(makers["bedrocksandbox"].module, "txbedrock.sandbox.tap")
        self.assertEqual(makers["bedrockproxy"].module, "txbedrock.tap")


class _Child(ProcessProtocol):
    """A process whose output is kept."""

    def __init__(self) -> None:
        self.output = b""
        self.ended: Deferred[Any] = Deferred()
        self._waiting: list[tuple[bytes, Deferred[None]]] = []

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        self.output += data
        self._look()

    def processEnded(self, reason: Failure) -> None:
        # Not as a failure, which a Deferred would raise.
        self.ended.callback(reason.value)
        for _, done in self._waiting:
            done.errback(AssertionError(self.output.decode()))

    def said(self, part: bytes) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self._waiting.append((part, done))
        self._look()
        return done.addTimeout(20, reactor)

    def _look(self) -> None:
        for pair in list(self._waiting):
            if pair[0] in self.output:
                self._waiting.remove(pair)
                pair[1].callback(None)


class ChildTests(TestCase):
    """The program."""

    timeout = 60

    async def test_run(self) -> None:
        """It listens, says that it is no model, answers, and ends well at SIGTERM."""
        child = _Child()
        arguments = [
            "twistd", "-n", "--pidfile=", "bedrocksandbox",
            "--listen", "tcp:0:interface=127.0.0.1",
            "--access-key-id", SECRET.access_key_id,
            "--secret-access-key", SECRET.secret_access_key,
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        twistd = str(Path(sys.executable).with_name("twistd"))
        process = reactor.spawnProcess(child, twistd, arguments, environment, str(ROOT))
        await child.said(b"no model, is at 127.0.0.1:")
        port = int(child.output.split(b"is at 127.0.0.1:")[1].split(b".")[0])

        wire = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), Wire())
        wire.transport.write(signed(f"/model/{HAIKU}/converse"))
        self.assertEqual((await wire.reply()).status, 200)
        wire.transport.write(plain("/_sandbox/", method="GET", headers=((b"Host", b"x"),)))
        self.assertIn(b"stand-in", (await wire.reply()).body)
        process.signalProcess("TERM")
        await wire.cut()
        reason = await child.ended
        # twistd stops in order and then ends by the signal that it got.
        self.assertEqual(reason.signal, SIGTERM)
        self.assertIn(b"Server Shut Down.", child.output)
        self.assertNotIn(SECRET.secret_access_key.encode(), child.output)
        self.assertNotIn(b"Traceback", child.output)

    async def test_address_in_use(self) -> None:
        """It says in one line that it cannot listen, and ends."""
        taken = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Factory())
        self.addCleanup(taken.stopListening)
        listen = f"tcp:{taken.getHost().port}:interface=127.0.0.1"
        child = _Child()
        twistd = str(Path(sys.executable).with_name("twistd"))
        arguments = ["twistd", "-n", "--pidfile=", "bedrocksandbox", "--listen", listen]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        reactor.spawnProcess(child, twistd, arguments, environment, str(ROOT))
        reason = await child.ended
        self.assertEqual(reason.exitCode, 1)
        self.assertIn(f"bedrocksandbox: cannot listen on {listen}".encode(), child.output)
        self.assertNotIn(b"Traceback", child.output)
