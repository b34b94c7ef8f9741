"""
Connections to AWS, kept between requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from OpenSSL import SSL
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import (
    HostnameEndpoint,
    TCP4ClientEndpoint,
    TCP6ClientEndpoint,
)
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHostnameResolver,
    IHostResolution,
    IOpenSSLClientConnectionCreator,
    IReactorPluggableNameResolver,
    IResolutionReceiver,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from txbedrock.outbound.http1 import Connection
from txbedrock.writing import TLSTransport

__all__ = ["Origin", "Pool"]

# Below the minute after which a load balancer usually closes an idle
# connection, and far below the 350 s after which a NAT gateway forgets it.
_IDLE_CONNECTION_S = 50.0

# A connection that was idle for longer is looked at before it is used: while the
# reactor was busy its close may have come.
_TRUSTED_S = 1.0

# A peer that does not take the end of a connection.
_CLOSING_S = 2.0

_CACHED_ORIGINS = 512
_CACHED_NAMES = 512
_ADDRESSES_S = 30.0


class Pool:
    """
    Connections by origin.

    :param max_idle: connections kept for an origin; more may be in use.
    :param connect_timeout_s: covers name resolution, TCP and TLS.
    :param max_connections: to an origin, in use or not; who comes then waits. None: no
        limit.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        max_idle: int,
        connect_timeout_s: float,
        max_connections: int | None = None,
    ) -> None:
        self.reactor = reactor
        self.connecting_reactor = _NamesCached(reactor)
        self.max_idle = max_idle
        self.max_connections = max_connections
        self.connect_timeout_s = connect_timeout_s
        self._origins: dict[bytes, Origin] = {}
        self._sweep: IDelayedCall | None = None
        self.opened = 0
        """Connections that were made."""

        self.reused = 0
        """Requests for which none had to be."""

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return sum(len(origin.idle) for origin in self._origins.values())

    @property
    def connections(self) -> int:
        """All that there are, or that are being made."""
        return sum(origin.connections for origin in self._origins.values())

    def origin(self, name: bytes, make: Callable[[bytes], Origin]) -> Origin:
        """
        :param name: scheme and authority.
        :param make: makes what is not known yet, by its name.
        """
        origin = self._origins.get(name)
        if origin is None:
            origin = make(name)
            if len(self._origins) >= _CACHED_ORIGINS:
                # Bounded by the hosts that the configuration and the regions of ARNs name.
                self._origins = {
                    known: one for known, one in self._origins.items() if one.connections
                }
            self._origins[name] = origin
        return origin

    def sweep_later(self) -> None:
        """A connection has become idle."""
        if self._sweep is None:
            self._sweep = self.reactor.callLater(_IDLE_CONNECTION_S, self._close_old)

    def _close_old(self) -> None:
        self._sweep = None
        since = self.reactor.seconds() - _IDLE_CONNECTION_S
        left = [origin.close_older(since) for origin in self._origins.values()]
        oldest = min((one for one in left if one is not None), default=None)
        if oldest is not None:
            self._sweep = self.reactor.callLater(max(oldest - since, 0.1), self._close_old)

    def closeCachedConnections(self) -> Deferred[None]:
        """
        Close what is idle.

        :returns: fires when it is closed.
        """
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        idle = [one for origin in self._origins.values() for one in origin.take_idle()]
        closed = gatherResults([connection.close() for connection in idle])

        def insist() -> None:
            for connection in idle:
                if connection.closed is not None:
                    connection.abort()

        timer = self.reactor.callLater(_CLOSING_S, insist)

        def over(result: object) -> None:
            if timer.active():
                timer.cancel()

        return closed.addBoth(over)


class Origin:
    """
    The connections to one host and port.

    :param creator: of TLS connections; None: without TLS.
    """

    def __init__(
        self, pool: Pool, host: str, port: int, creator: IOpenSSLClientConnectionCreator | None
    ) -> None:
        self._pool = pool
        self._endpoint = _endpoint(pool, host, port)
        self._tls = None if creator is None else _Resuming(creator)
        self._seconds: Callable[[], float] = pool.reactor.seconds
        self._waiting: deque[Deferred[Connection]] = deque()
        self._opening = 0
        self._open: set[Connection] = set()
        self.idle: deque[Connection] = deque()
        """The one used last is at the end."""

    @property
    def connections(self) -> int:
        """All that there are, or that are being made."""
        return self._opening + len(self._open)

    # For who has a request.

    def kept(self) -> Connection | None:
        """The connection that was used last, if there is one."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            if connection.usable:
                if self._seconds() - connection.idle_since < _TRUSTED_S or connection.quiet():
                    self._pool.reused += 1
                    return connection
                connection.abort()
        return None

    def connect(self) -> Deferred[Connection]:
        """
        A new connection, or the next that is free if there are as many as may be.

        It fails as an endpoint does, with ``SSL.Error``, or with the ``TimeoutError``
        of :mod:`twisted.internet.error`; when cancelled with ``CancelledError``.
        """
        most = self._pool.max_connections
        if most is None or self.connections < most:
            return self._connect()

        def leave(_: object) -> None:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

        waiter: Deferred[Connection] = Deferred(leave)
        self._waiting.append(waiter)
        return waiter

    def _connect(self) -> Deferred[Connection]:
        left = False

        def leave(_: object) -> None:
            nonlocal left
            left = True
            opening.cancel()

        def failed(failure: Failure) -> None:
            self._opening -= 1
            # Who is cancelled while a name is looked up says that there is none.
            connected.errback(CancelledError() if left else failure)
            self._serve_next()

        connected: Deferred[Connection] = Deferred(leave)
        self._opening += 1
        opening = Deferred.fromCoroutine(self._opened())
        opening.addTimeout(self._pool.connect_timeout_s, self._pool.reactor, _too_late)
        opening.addCallbacks(connected.callback, failed)
        return connected

    async def _opened(self) -> Connection:
        factory = _Factory(self)
        made: Any
        if self._tls is None:
            made = await self._endpoint.connect(factory)
            connection: Connection = made
        else:
            tls = TLSMemoryBIOFactory(self._tls, True, factory, self._pool.reactor)
            tls.protocol = TLSTransport
            tls.noisy = False
            made = await self._endpoint.connect(tls)
            connection = made.wrappedProtocol
        if connection.secured is not None:
            try:
                await connection.secured
            except BaseException:
                connection.abort()
                raise
        self._opening -= 1
        self._open.add(connection)
        self._pool.opened += 1
        return connection

    # What a connection tells.

    def released(self, connection: Connection) -> None:
        """A connection has been answered."""
        if connection.first_answer:
            connection.first_answer = False
            if self._tls is not None:
                self._tls.remember(connection)
        self._keep(connection)

    def _keep(self, connection: Connection) -> None:
        if self._waiting:
            self._pool.reused += 1
            self._waiting.popleft().callback(connection)
            return
        idle = self.idle
        if len(idle) >= self._pool.max_idle:
            if not idle:
                connection.close()
                return
            idle.popleft().close()
        connection.idle_since = self._seconds()
        idle.append(connection)
        self._pool.sweep_later()

    def lost(self, connection: Connection) -> None:
        """A connection is closed."""
        if connection in self.idle:
            self.idle.remove(connection)
        if connection in self._open:
            self._open.remove(connection)
            self._serve_next()

    def _serve_next(self) -> None:
        """There is room for another connection."""
        if not self._waiting:
            return
        waiter = self._waiting.popleft()

        def connected(connection: Connection) -> None:
            if waiter.called:  # It has left.
                self._keep(connection)
            else:
                waiter.callback(connection)

        def failed(failure: Failure) -> None:
            if not waiter.called:
                waiter.errback(failure)

        self._connect().addCallbacks(connected, failed)

    # What the pool asks for.

    def take_idle(self) -> list[Connection]:
        """All that are idle, which are not any more."""
        idle = list(self.idle)
        self.idle.clear()
        return idle

    def close_older(self, since: float) -> float | None:
        """
        :returns: since when the oldest that is left has been idle.
        """
        while self.idle and self.idle[0].idle_since <= since:
            self.idle.popleft().close()
        return self.idle[0].idle_since if self.idle else None


def _endpoint(pool: Pool, host: str, port: int) -> IStreamClientEndpoint:
    # An address needs no looking up, which would be in a thread.
    for is_address, kind in (
        (isIPAddress, TCP4ClientEndpoint),
        (isIPv6Address, TCP6ClientEndpoint),
    ):
        if is_address(host):
            return kind(pool.reactor, host, port, timeout=pool.connect_timeout_s)
    reactor = pool.connecting_reactor
    return HostnameEndpoint(reactor, host, port, timeout=pool.connect_timeout_s)


def _too_late(result: object, timeout_s: float) -> None:
    raise ConnectTimeout(string=f"no connection within {timeout_s:g} s")


class _Factory(Factory):
    """What an endpoint asks for a protocol."""

    noisy = False

    def __init__(self, origin: Origin) -> None:
        self._origin = origin

    def buildProtocol(self, addr: object) -> Connection:
        return Connection(self._origin)


@implementer(IOpenSSLClientConnectionCreator)
class _Resuming:
    """
    TLS connections that take up the session of an earlier one.

    The certificate, and the name in it, were checked then, by the same creator and so
    for the same host.
    """

    def __init__(self, creator: IOpenSSLClientConnectionCreator) -> None:
        self._creator = creator
        self._session: SSL.Session | None = None

    def clientConnectionForTLS(self, protocol: Any) -> SSL.Connection:
        connection: SSL.Connection = self._creator.clientConnectionForTLS(protocol)
        if self._session is not None:
            connection.set_session(self._session)
        return connection

    def remember(self, connection: Connection) -> None:
        """With TLS 1.3 there is a ticket only after something has been read."""
        session = connection.session()
        if session is not None:
            self._session = session


@implementer(IReactorPluggableNameResolver)
class _NamesCached:
    """A reactor that remembers addresses for a while."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self.nameResolver = _CachingResolver(reactor)

    def installNameResolver(self, resolver: IHostnameResolver) -> IHostnameResolver:
        """See :class:`IReactorPluggableNameResolver`; nobody does."""
        previous: IHostnameResolver = self._reactor.installNameResolver(resolver)
        return previous

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)


@implementer(IHostResolution)
class _Resolution:
    """A name that is being looked up, or was."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """Others may wait for it; who does not want it any more does not look."""


@implementer(IHostnameResolver)
class _CachingResolver:
    """
    Looks a name up once for all who ask meanwhile, and remembers what it is for a while.

    When a name cannot be resolved any more, what it last resolved to is good enough.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._known: dict[str, tuple[float, list[IAddress]]] = {}
        self._asking: dict[str, list[IResolutionReceiver]] = {}

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Any = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        resolution = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        key = f"{hostName}:{portNumber}"
        asked, addresses = self._known.get(key, (0.0, []))
        if addresses and self._reactor.seconds() - asked < _ADDRESSES_S:
            if len({type(address) for address in addresses}) == 1:
                # So that not all connections go to the first; between families the
                # order is the system's choice.
                addresses.append(addresses.pop(0))
            _tell(resolutionReceiver, addresses)
        elif key in self._asking:
            self._asking[key].append(resolutionReceiver)
        else:
            self._asking[key] = [resolutionReceiver]
            found: list[IAddress] = []
            self._reactor.nameResolver.resolveHostName(
                _Collector(found, lambda: self._resolved(key, found)),
                hostName,
                portNumber,
                addressTypes,
                transportSemantics,
            )
        return resolution

    def _resolved(self, key: str, found: list[IAddress]) -> None:
        if found:
            if len(self._known) >= _CACHED_NAMES:
                self._known.clear()
            self._known[key] = (self._reactor.seconds(), found)
        else:
            _, found = self._known.get(key, (0.0, []))
        for receiver in self._asking.pop(key):
            _tell(receiver, found)


def _tell(receiver: IResolutionReceiver, addresses: Sequence[IAddress]) -> None:
    for address in list(addresses):
        receiver.addressResolved(address)
    receiver.resolutionComplete()


@implementer(IResolutionReceiver)
class _Collector:
    """Collects addresses."""

    def __init__(self, found: list[IAddress], done: Callable[[], None]) -> None:
        self._found = found
        self._done = done

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        pass

    def addressResolved(self, address: IAddress) -> None:
        if isinstance(address, IPv4Address | IPv6Address):
            self._found.append(address)

    def resolutionComplete(self) -> None:
        self._done()
