"""
The PROXY protocol: a load balancer in front says whom it connects for.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, IProtocolFactory, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from zope.interface import directlyProvides, providedBy

from txbedrock.core.addresses import Networks
from txbedrock.core.proxyheader import BadProxyHeader, ProxyHeader, parse_proxy_header

__all__ = ["HEADER_TIMEOUT_S", "ProxiedFactory"]

HEADER_TIMEOUT_S = 5.0
"""A load balancer sends its header at once."""

# Note [Who may say for whom]
# ---------------------------
# A header is believed only of addresses in trusted_proxies; everybody else's
# connection is closed unread, for who may come both ways could say anything. So
# nothing is built for a client before the header is whole: from its first moment on
# a connection is of the address that it is told to be of, for logs, for limits by
# address and for the addresses that a key allows. Behind a UNIX socket there is no
# address to trust; who may open it is for the file's mode to say.


class _Proxied(ProtocolWrapper):
    """One connection of the load balancer's, and the transport of what it carries."""

    factory: ProxiedFactory
    transport: Any
    wrappedProtocol: Any

    def __init__(self, factory: ProxiedFactory) -> None:
        ProtocolWrapper.__init__(self, factory, None)  # type: ignore[arg-type]
        self._received = b""
        self._header: ProxyHeader | None = None
        self._timer = factory.clock.callLater(HEADER_TIMEOUT_S, self._too_slow)

    def makeConnection(self, transport: Any) -> None:
        directlyProvides(self, providedBy(transport))
        Protocol.makeConnection(self, transport)
        self.factory.registerProtocol(self)

    def dataReceived(self, data: bytes) -> None:
        if self.wrappedProtocol is not None:
            self.wrappedProtocol.dataReceived(data)
            return
        if self._header is not None:
            return  # Refused; it is being closed.
        self._received += data
        try:
            header = parse_proxy_header(self._received)
        except BadProxyHeader as error:
            self._refuse(f"a PROXY header is expected: {error}")
            return
        if header is None:
            return
        self._timer.cancel()
        self._header = header
        rest, self._received = self._received[header.length :], b""
        protocol = self.factory.wrappedFactory.buildProtocol(self.getPeer())
        if protocol is None:
            self.transport.abortConnection()
            return
        self.wrappedProtocol = protocol
        protocol.makeConnection(self)
        # It may have closed the connection at once.
        if rest and self.wrappedProtocol is not None:
            self.wrappedProtocol.dataReceived(rest)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._timer.active():
            self._timer.cancel()
        self.factory.unregisterProtocol(self)
        protocol, self.wrappedProtocol = self.wrappedProtocol, None
        if protocol is not None:
            protocol.connectionLost(reason)

    def getPeer(self) -> IAddress:
        """The client, as the load balancer says."""
        told = None if self._header is None else self._header.source
        peer: IAddress = self.transport.getPeer() if told is None else _address(told)
        return peer

    def getHost(self) -> IAddress:
        """Where the client connected to."""
        told = None if self._header is None else self._header.destination
        host: IAddress = self.transport.getHost() if told is None else _address(told)
        return host

    @property
    def carries(self) -> bool:
        """Has its header come?"""
        return self.wrappedProtocol is not None

    def _too_slow(self) -> None:
        self._refuse(f"its PROXY header did not come within {HEADER_TIMEOUT_S:g} s")

    def _refuse(self, why: str) -> None:
        if self._timer.active():
            self._timer.cancel()
        self._header = ProxyHeader(None, None, 0)
        self._received = b""
        self.factory.refused(self.transport.getPeer(), why)
        self.transport.abortConnection()


class ProxiedFactory(WrappingFactory[_Proxied]):
    """
    Takes connections of load balancers, and gives them on as those of their clients.
    See Note [Who may say for whom].

    :param trusted: who is believed.
    :param clock: for the time a header may take.
    """

    noisy = False
    name = ""
    """Where it listens, for the log."""

    _log = Logger()

    def __init__(self, factory: IProtocolFactory, trusted: Networks, clock: IReactorTime) -> None:
        super().__init__(factory)
        self._trusted = trusted
        self.clock = clock

    def buildProtocol(self, addr: IAddress | None) -> _Proxied | None:  # type: ignore[override]
        host = getattr(addr, "host", None)
        if not isinstance(addr, UNIXAddress) and not self._trusted.contains(host or ""):
            self.refused(addr, "it is not one of general_settings.trusted_proxies")
            return None
        return _Proxied(self)

    def refused(self, addr: object, why: str) -> None:
        """Say who was turned away."""
        self._log.info(
            "{peer} refused at {listener}: {why}",
            peer=getattr(addr, "host", "-"),
            listener=self.name,
            why=why,
        )

    def stopFactory(self) -> None:
        """Who has not said yet what it wants will not be asked."""
        for connection in list(self.protocols):
            if not connection.carries:
                connection.transport.abortConnection()


def _address(told: tuple[str, int]) -> IAddress:
    host, port = told
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, port)
