"""
Tests for L{txbedrock.listeners}, over real sockets; those of TLS are in ``loopback``.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections import Counter

from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall
from twisted.trial.unittest import TestCase

from tests.fakes import until
from txbedrock.listeners import _MOST_ACCEPTED, Listeners

CROWD = 20 * _MOST_ACCEPTED


class CountingFactory(Factory):
    """Counts by turn of the reactor who connects."""

    def __init__(self) -> None:
        self.turn = 0
        self.accepted: Counter[int] = Counter()
        self._turns = LoopingCall(self._count)

    def doStart(self) -> None:
        self._turns.start(0)

    def doStop(self) -> None:
        self._turns.stop()

    def _count(self) -> None:
        self.turn += 1

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        self.accepted[self.turn] += 1
        return Protocol()


class CrowdTests(TestCase):
    """Many connect at once."""

    timeout = 60

    async def connect_all(self, description: str) -> CountingFactory:
        """:returns: when all have been accepted."""
        factory = CountingFactory()
        listeners = Listeners(reactor, trusted_proxies=(), wall_clock=lambda: 0.0)
        port: IListeningPort = await listeners.endpoint(description).listen(factory)
        self.addCleanup(lambda: maybeDeferred(port.stopListening))
        address = port.getHost()
        family = socket.AF_INET if hasattr(address, "port") else socket.AF_UNIX
        where = ("127.0.0.1", address.port) if hasattr(address, "port") else address.name
        # The reactor does nothing meanwhile.
        for _ in range(CROWD):
            client = socket.socket(family)
            self.addCleanup(client.close)
            client.connect(where)
        await until(lambda: factory.accepted.total() == CROWD, 30)
        waited: Deferred[None] = Deferred()
        reactor.callLater(0.01, waited.callback, None)  # type: ignore[attr-defined]
        await waited
        return factory

    async def check(self, description: str) -> None:
        factory = await self.connect_all(description)
        self.assertEqual(CROWD, factory.accepted.total())
        # A turn of the counter may begin between two of the reactor's.
        self.assertLessEqual(max(factory.accepted.values()), _MOST_ACCEPTED)

    async def test_network(self) -> None:
        """They are taken a few at a time, so that those who are there have their turns."""
        await self.check("tcp:0:interface=127.0.0.1")

    async def test_unix(self) -> None:
        """On a socket of this machine, too."""
        folder = tempfile.mkdtemp()
        self.addCleanup(os.rmdir, folder)
        await self.check(f"unix:{folder}/s")
