"""
Which of those who connect is served first, while more come than there is time for.
"""

from __future__ import annotations

import socket
from collections import OrderedDict, deque
from typing import Any

from twisted.internet import tcp
from twisted.internet.interfaces import IDelayedCall, IListeningPort

from txbedrock.core.addresses import client_network
from txbedrock.inbound.bounds import raise_file_limit, spare_files

__all__ = ["MOST_SERVED", "accept_in_turn"]

# Note [Who connects first]
# -------------------------
# A connection and its first request are a tenth of a millisecond of work. The kernel's
# queue holds a thousand and knows no other order than that of coming, so whoever opens ten
# thousand at once has everybody wait behind him.
#
# To take one out of that queue is a tenth of the work. So when there are more than can be
# served in a turn of the reactor, they are taken out, and wait here: addresses take turns.
# They are bounded by the descriptors that they hold; beyond that they wait in the kernel.

MOST_SERVED = 16
"""Connections that begin in one turn of the reactor: those that are there are served, too."""

_MOST_TAKEN = 128
_SPARE_FILES = 100


def accept_in_turn(port: IListeningPort) -> None:
    """
    See to it that nobody who connects to a port has to wait for all that came before. See
    Note [Who connects first].

    :param port: one that listens, just now.
    """
    if isinstance(port, tcp.Port):
        _Turnstile(port)


class _Turnstile:
    """Has a port accept those whose turn it is."""

    def __init__(self, port: tcp.Port) -> None:
        files = raise_file_limit()
        # Below the last one that a connection may have: those that wait must not make it
        # look as if there were no more.
        last_file = files - spare_files(files) - _SPARE_FILES
        self._port: Any = port
        self._accept = port.doRead
        self._waiting = port.socket = _Waiting(port.socket, last_file)
        self._crowded = False
        self._call: IDelayedCall | None = None
        port.doRead = self._event  # type: ignore[method-assign]

    def _event(self) -> None:
        """There are some in the kernel's queue."""
        if self._crowded:
            self._waiting.take()
        if self._call is None:
            self._serve()

    def _serve(self) -> None:
        # Twisted's own bound begins with 100, and grows.
        self._port.numberAccepts = MOST_SERVED
        before = self._waiting.accepted
        self._accept()
        self._crowded = self._waiting.accepted - before >= MOST_SERVED
        if self._crowded or self._waiting:
            # Until then an event of this turn has none served beyond the bound.
            self._call = self._port.reactor.callLater(0, self._turn)

    def _turn(self) -> None:
        self._call = None
        if self._waiting:
            self._serve()


class _Waiting:
    """
    Stands in for a listening socket: what it accepts are those whose turn it is.

    :param last_file: the highest descriptor that one who waits may have.
    """

    def __init__(self, listening: socket.socket, last_file: int) -> None:
        self._listening = listening
        self._last_file = last_file
        self._full = False
        self.accepted = 0
        """So many so far."""

        # Those who wait, by address.
        self._of: OrderedDict[str, deque[tuple[socket.socket, Any]]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._of)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listening, name)

    def take(self) -> None:
        """Have as many wait here as may, rather than in the kernel's queue."""
        for _ in range(_MOST_TAKEN):
            if self._full:
                break
            try:
                client, address = self._listening.accept()
            except OSError:
                # If it is more than that there are none, accept() comes to know.
                break
            self._full = client.fileno() >= self._last_file
            # A socket of this machine has no address, or one that is no network's.
            network = client_network(address[0]) if isinstance(address, tuple) else ""
            self._of.setdefault(network, deque()).append((client, address))

    def accept(self) -> tuple[socket.socket, Any]:
        """
        The next one.

        :raises OSError: as a socket's own does.
        """
        if not self._of:
            self._full = False
            accepted = self._listening.accept()
            self.accepted += 1
            return accepted
        self.accepted += 1
        network, waiting = next(iter(self._of.items()))
        accepted = waiting.popleft()
        if waiting:
            self._of.move_to_end(network)
        else:
            del self._of[network]
        return accepted

    def close(self) -> None:
        """Nobody is accepted any more: as with those in the kernel's queue, they are cut."""
        for waiting in self._of.values():
            for client, _ in waiting:
                client.close()
        self._of.clear()
        self._listening.close()
