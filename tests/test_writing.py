"""
Writing to a socket at once.
"""

from __future__ import annotations

import random
import socket
import ssl

import trustme
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from twisted.internet.testing import MemoryReactor, StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.writing import TLSTransport, write_now


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


class Reader(Protocol):
    """Remembers what has come, and how it ended."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: type[BaseException] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason.type


class Peer:
    """
    A client of a server's transport, without sockets.

    :param kind: of the transport.
    """

    def __init__(
        self, kind: type[TLSMemoryBIOProtocol], server: object, client: ssl.SSLContext
    ) -> None:
        self.reader = Reader()
        self.clock = Clock()
        factory = TLSMemoryBIOFactory(
            server, False, Factory.forProtocol(lambda: self.reader), self.clock
        )
        factory.protocol = kind
        self.below = StringTransport()
        self.transport = factory.buildProtocol(None)
        self.transport.makeConnection(self.below)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = client.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        for _ in range(3):
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                pass
            self.give(self._outgoing.read())
            self._take()

    def _take(self) -> None:
        self._incoming.write(self.below.value())
        self.below.clear()

    def record(self, data: bytes) -> bytes:
        """What the client sends for it."""
        self.tls.write(data)
        return self._outgoing.read()

    def goodbye(self) -> bytes:
        """What it sends at its end."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read()

    def got(self) -> bytes:
        """What has been sent to the client so far; empty at the end, too."""
        self._take()
        data = b""
        try:
            while piece := self.tls.read(1 << 16):
                data += piece
        except ssl.SSLWantReadError:
            pass
        return data

    def give(self, data: bytes, *, lose: bool = True) -> None:
        """Have it come from the network, which then ends when it is to."""
        if data and self.reader.lost is None:
            self.transport.dataReceived(data)
        if lose and self.reader.lost is None and self.below.disconnecting:
            self.transport.connectionLost(Failure(ConnectionDone()))


class TLSTransportTests(SynchronousTestCase):
    """What is read and sent over TLS, beside Twisted's own way."""

    def setUp(self) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("localhost")
        pem = issued.private_key_and_cert_chain_pem.bytes()
        self.server = PrivateCertificate.loadPEM(pem).options()
        self.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(self.client)

    def peers(self) -> list[Peer]:
        """One of Twisted's, and ours."""
        return [
            Peer(kind, self.server, self.client) for kind in (TLSMemoryBIOProtocol, TLSTransport)
        ]

    def test_any_pieces(self) -> None:
        """However the network cuts it, all of it is read, and as soon as it is there."""
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            self.client.minimum_version = self.client.maximum_version = version
            for seed in range(30):
                theirs, ours = self.peers()
                chance = random.Random(seed)
                for _ in range(20):
                    # Records of every size, of which some come together.
                    sizes = [
                        chance.choice((0, 1, 5, 300, 16384, 40000))
                        for _ in range(chance.choice((1, 1, 2, 5)))
                    ]
                    streams = [
                        b"".join(peer.record(bytes(size)) for size in sizes)
                        for peer in (theirs, ours)
                    ]
                    self.assertEqual(len(streams[0]), len(streams[1]))
                    at = 0
                    while at < len(streams[0]):
                        size = chance.choice((1, 2, 4, 5, 100, 20000, 1 << 20, 1 << 20))
                        for peer, stream in zip((theirs, ours), streams, strict=True):
                            peer.give(stream[at : at + size])
                        at += size
                        self.assertEqual(len(ours.reader.received), len(theirs.reader.received))
                for peer in (theirs, ours):
                    peer.give(peer.goodbye())
                self.assertIs(ours.reader.lost, ConnectionDone)
                self.assertIs(theirs.reader.lost, ConnectionDone)
                # The end was answered with an end.
                for peer in (theirs, ours):
                    with self.assertRaises(ssl.SSLZeroReturnError):
                        peer.got()

    def test_broken_record(self) -> None:
        """One that was changed on its way ends the connection, and so does what is none."""
        for spoil in (
            lambda record: record[:-1] + bytes([record[-1] ^ 1]),
            lambda record: b"GET / HTTP/1.1\r\n\r\n",
            lambda record: b"\x17\x03\x03\x00\x00",
        ):
            lost = []
            for peer in self.peers():
                peer.give(peer.record(b"well"))
                peer.give(spoil(peer.record(b"data")))
                peer.give(peer.record(b"more"))
                lost.append((peer.reader.received, peer.reader.lost, peer.below.disconnecting))
            self.assertEqual(lost[0], lost[1])
            self.assertEqual(lost[1][0], b"well")

    def test_nothing_after_abort(self) -> None:
        """Who has aborted is given nothing any more, and the client is not told of an end."""
        _, ours = self.peers()
        record = ours.record(b"data")
        write_now(ours.transport, b"half an answer")
        ours.transport.abortConnection()
        ours.give(record, lose=False)
        self.assertEqual(ours.reader.received, b"")
        self.assertEqual(ours.got(), b"half an answer")
        with self.assertRaises(ssl.SSLWantReadError):
            ours.tls.read(1)

    def test_at_once(self) -> None:
        """What is sent now goes out now, after all that was written before."""
        _, ours = self.peers()
        write_now(ours.transport, b"a" * 40000)
        self.assertEqual(ours.got(), b"a" * 40000)
        ours.transport.write(b"b")
        self.assertEqual(ours.got(), b"")
        write_now(ours.transport, b"c")
        self.assertEqual(ours.got(), b"bc")
        ours.transport.write(b"d")
        ours.clock.advance(0)
        self.assertEqual(ours.got(), b"d")
        ours.transport.loseConnection()
        write_now(ours.transport, b"e")
        self.assertEqual(ours.got(), b"")
        self.assertEqual(ours.tls.read(1), b"")
