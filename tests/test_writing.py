"""
Writing to a socket at once.
"""

from __future__ import annotations

import socket

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.writing import write_now


class WriteNowTests(SynchronousTestCase):
    """What of it is with the other end, and what the transport has."""

    def setUp(self) -> None:
        ours, self.theirs = socket.socketpair()
        for end in (ours, self.theirs):
            end.setblocking(False)
            self.addCleanup(end.close)
        self.reactor = MemoryReactor()
        self.transport = Connection(ours, Protocol(), self.reactor)
        self.transport.connected = 1

    def received(self) -> bytes:
        data = b""
        while True:
            try:
                data += self.theirs.recv(1 << 20)
            except BlockingIOError:
                return data

    def left(self) -> bytes:
        return b"".join(self.transport._tempDataBuffer)

    def test_at_once(self) -> None:
        """What the socket takes is sent."""
        write_now(self.transport, b"a")
        write_now(self.transport, b"")
        write_now(self.transport, b"b")
        self.assertEqual((self.received(), self.left()), (b"ab", b""))
        self.assertEqual(self.reactor.writers, set())

    def test_rest(self) -> None:
        """What it does not take is the transport's, and what follows comes after it."""
        data = bytes(range(256)) * 16 * 1024
        write_now(self.transport, data)
        sent = self.received()
        self.assertTrue(0 < len(sent) < len(data))
        write_now(self.transport, b"more")
        self.assertEqual(self.received(), b"")
        self.assertTrue(sent + self.left() == data + b"more")
        self.assertIn(self.transport, self.reactor.writers)

    def test_half_sent(self) -> None:
        """Nothing overtakes what the transport is about to send."""
        self.transport.dataBuffer = b"before"
        write_now(self.transport, b"after")
        self.assertEqual((self.received(), self.left()), (b"", b"after"))

    def test_full(self) -> None:
        """A client that takes nothing is waited for."""
        while not self.left():
            write_now(self.transport, b"x" * 65536)
        self.assertIn(self.transport, self.reactor.writers)

    def test_broken(self) -> None:
        """A connection that is broken is the reactor's to find out, in its own turn."""
        self.theirs.close()
        write_now(self.transport, b"a")
        self.assertEqual(self.left(), b"a")
        self.assertIn(self.transport, self.reactor.writers)

    def test_closing(self) -> None:
        """What is to be closed sends what it is given, and then ends."""
        self.transport.loseWriteConnection()
        write_now(self.transport, b"a")
        self.transport.doWrite()
        write_now(self.transport, b"b")
        self.assertEqual((self.theirs.recv(9), self.theirs.recv(9)), (b"a", b""))
        self.assertEqual(self.left(), b"")

    def test_lost(self) -> None:
        """Nothing is sent, or kept, when the connection is lost."""
        self.transport.connectionLost(Failure(ConnectionDone()))
        write_now(self.transport, b"a")
        self.assertEqual((self.theirs.recv(9), self.left()), (b"", b""))

    def test_other_transports(self) -> None:
        """A transport of another kind gets all of it."""
        transport = StringTransport()
        write_now(transport, b"a")
        self.assertEqual(transport.value(), b"a")
