"""
Tests for L{txbedrock.accepting}, over real sockets.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections import Counter
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import LoopingCall
from twisted.trial.unittest import TestCase

from tests.fakes import pause, until
from txbedrock import accepting
from txbedrock.accepting import MOST_SERVED
from txbedrock.listeners import Listeners

CROWD = 20 * MOST_SERVED


class CountingFactory(Factory):
    """Knows who connects, and in which turn of the reactor."""

    def __init__(self) -> None:
        self.turn = 0
        self.in_turn: Counter[int] = Counter()
        self.hosts: list[str] = []
        self._turns = LoopingCall(self._count)

    def doStart(self) -> None:
        self._turns.start(0)

    def doStop(self) -> None:
        self._turns.stop()

    def _count(self) -> None:
        self.turn += 1

    def buildProtocol(self, addr: Any) -> Protocol:
        self.in_turn[self.turn] += 1
        self.hosts.append(getattr(addr, "host", ""))
        return Protocol()


def _sockets() -> int:
    """How many this process has."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except FileNotFoundError:
            pass  # of the folder that is read here
    return found


class CrowdTests(TestCase):
    """Many connect at once."""

    timeout = 60

    async def listen(self, description: str) -> IListeningPort:
        self.factory = CountingFactory()
        listeners = Listeners(reactor, trusted_proxies=(), wall_clock=lambda: 0.0)
        port: IListeningPort = await listeners.endpoint(description).listen(self.factory)
        self.addCleanup(lambda: maybeDeferred(port.stopListening))
        return port

    def connect(self, port: IListeningPort, count: int, host: str = "127.0.0.1") -> None:
        """The reactor does nothing meanwhile."""
        address: Any = port.getHost()
        network = hasattr(address, "port")
        for _ in range(count):
            client = socket.socket(socket.AF_INET if network else socket.AF_UNIX)
            self.addCleanup(client.close)
            if network:
                client.bind((host, 0))
            client.connect(("127.0.0.1", address.port) if network else address.name)

    async def check_bound(self, description: str) -> None:
        self.connect(await self.listen(description), CROWD)
        await until(lambda: len(self.factory.hosts) >= CROWD, 30)
        await pause(0.01)
        self.assertEqual(len(self.factory.hosts), CROWD)
        # A turn of the counter may begin between two of the reactor's.
        self.assertLessEqual(max(self.factory.in_turn.values()), MOST_SERVED)

    async def test_network(self) -> None:
        """They are served a few at a time, so that those who are there have their turns."""
        await self.check_bound("tcp:0:interface=127.0.0.1")

    async def test_unix(self) -> None:
        """On a socket of this machine, too."""
        folder = tempfile.mkdtemp()
        self.addCleanup(os.rmdir, folder)
        await self.check_bound(f"unix:{folder}/s")

    async def test_addresses_take_turns(self) -> None:
        """Who comes after a crowd of two addresses does not wait for all of it."""
        port = await self.listen("tcp:0:interface=127.0.0.1")
        self.connect(port, CROWD, "127.0.0.1")
        self.connect(port, CROWD, "127.0.0.2")
        self.connect(port, 2, "127.0.0.3")
        hosts = self.factory.hosts
        await until(lambda: len(hosts) >= 2 * CROWD + 2, 30)
        self.assertEqual(Counter(hosts), {"127.0.0.1": CROWD, "127.0.0.2": CROWD, "127.0.0.3": 2})
        last = len(hosts) - hosts[::-1].index("127.0.0.3")
        # All have to be taken out of the kernel's queue first, a hundred in a turn.
        self.assertLess(last, CROWD // 2)

    async def test_no_more_descriptors(self) -> None:
        """Those for whom there is none to wait with wait in the kernel, and are served."""
        self.patch(accepting, "spare_files", lambda files: files)
        port = await self.listen("tcp:0:interface=127.0.0.1")
        self.connect(port, CROWD, "127.0.0.1")
        self.connect(port, 1, "127.0.0.2")
        await until(lambda: len(self.factory.hosts) > CROWD, 30)
        self.assertEqual(self.factory.hosts[-1], "127.0.0.2")

    async def test_stop(self) -> None:
        """Who still waits when the port closes is cut, and keeps no descriptor."""
        port = await self.listen("tcp:0:interface=127.0.0.1")
        before = _sockets()
        self.connect(port, CROWD)
        await until(lambda: self.factory.in_turn.total() > MOST_SERVED, 30)
        await maybeDeferred(port.stopListening)
        served = len(self.factory.hosts)
        self.assertLess(served, CROWD)
        await pause(0.01)
        self.assertEqual(len(self.factory.hosts), served)
        # Both ends of those that were served, and the clients' of the others.
        self.assertEqual(_sockets(), before - 1 + CROWD + served)
