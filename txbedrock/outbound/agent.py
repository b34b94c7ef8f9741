"""
Connections to AWS: one pool, exact request targets, checked certificates.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Hashable

import botocore
from OpenSSL import SSL
from twisted.internet._sslverify import IOpenSSLTrustRoot
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import (
    IDelayedCall,
    IHandshakeListener,
    IOpenSSLClientConnectionCreator,
    IProtocol,
    ISSLTransport,
    IStreamClientEndpoint,
)
from twisted.python.failure import Failure
from twisted.web._newclient import HTTP11ClientProtocol, Request
from twisted.web.client import (
    BrowserLikePolicyForHTTPS,
    HostnameCachingHTTPSPolicy,
    HTTPConnectionPool,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IPolicyForHTTPS, IResponse
from zope.interface import implementer

__all__ = ["ExactAgent", "Pool", "https_policy"]

# Below the minute after which a load balancer usually closes an idle
# connection, and far below the 350 s after which a NAT gateway forgets it.
_IDLE_CONNECTION_S = 50.0
_CACHED_HOSTS = 512


@implementer(IOpenSSLTrustRoot)
class _BundleTrust:
    """Trust the authorities in a file, or OpenSSL's own when there is none."""

    def __init__(self, path: str | None) -> None:
        self._path = path

    def _addCACertsToContext(self, context: SSL.Context) -> None:
        if self._path is None:
            context.set_default_verify_paths()
        else:
            context.load_verify_locations(self._path)


def _default_bundle() -> str | None:
    """
    botocore's own bundle where the system has none (slim containers).

    :returns: None when OpenSSL's default paths hold something.
    """
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and any(os.scandir(paths.capath))):
        return None
    return os.path.join(os.path.dirname(botocore.__file__), "cacert.pem")


@implementer(IPolicyForHTTPS)
class _UncheckedPolicy:
    """``ssl_verify: false``: encrypted, and anybody may be at the other end."""

    def creatorForNetloc(self, hostname: bytes, port: int) -> _UncheckedCreator:
        return _UncheckedCreator(hostname)


@implementer(IOpenSSLClientConnectionCreator)
class _UncheckedCreator:
    """Connections to a host whose certificate nobody looks at."""

    def __init__(self, hostname: bytes) -> None:
        self._hostname = hostname
        self._context = SSL.Context(SSL.TLS_CLIENT_METHOD)

    def clientConnectionForTLS(self, protocol: object) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        host = self._hostname.decode("ascii")
        if not (isIPAddress(host) or isIPv6Address(host)):
            connection.set_tlsext_host_name(self._hostname)
        return connection


def https_policy(ca_bundle: str | None, verify: bool = True) -> IPolicyForHTTPS:
    """
    Whom to trust, told by host name; contexts are kept, a new one costs milliseconds.

    :param ca_bundle: a PEM file; None: the system's authorities.
    :param verify: False switches every check off.
    """
    if not verify:
        inner: IPolicyForHTTPS = _UncheckedPolicy()
    else:
        inner = BrowserLikePolicyForHTTPS(_BundleTrust(ca_bundle or _default_bundle()))
    return HostnameCachingHTTPSPolicy(inner, _CACHED_HOSTS)


@implementer(IHandshakeListener)
class _Connection(HTTP11ClientProtocol):
    """
    A connection that says when TLS is ready.

    A peer that accepts and then says nothing must not be waited for longer
    than one that does not accept.
    """

    def __init__(self, quiescent: object) -> None:
        HTTP11ClientProtocol.__init__(self, quiescent)
        self.secured: Deferred[None] | None = None

    def makeConnection(self, transport: object) -> None:
        if ISSLTransport.providedBy(transport):
            self.secured = Deferred()
        HTTP11ClientProtocol.makeConnection(self, transport)

    def _giveUp(self, reason: Failure) -> None:
        if self._state == "TRANSMITTING_AFTER_RECEIVING_RESPONSE":
            # A whole answer came before the whole request went: end the upload,
            # which twisted.web would leave to fail and log as critical.
            self._currentRequest.stopWriting()  # type: ignore[union-attr]
            self.transport.abortConnection()  # type: ignore[union-attr]
        HTTP11ClientProtocol._giveUp(self, reason)

    def handshakeCompleted(self) -> None:
        secured, self.secured = self.secured, None
        if secured is not None:
            secured.callback(None)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        secured, self.secured = self.secured, None
        if secured is not None:
            secured.errback(reason)
        HTTP11ClientProtocol.connectionLost(self, reason)


class _ConnectionFactory:
    """What the pool's endpoint asks for a protocol."""

    noisy = False

    def __init__(self, quiescent: object, metadata: str) -> None:
        self._quiescent = quiescent
        self._metadata = metadata

    def __repr__(self) -> str:
        return f"<connection to {self._metadata}>"

    def doStart(self) -> None:
        pass

    def doStop(self) -> None:
        pass

    def buildProtocol(self, addr: object) -> IProtocol:
        protocol = _Connection(self._quiescent)
        return protocol


class Pool(HTTPConnectionPool):
    """
    Idle connections by host, and a connect limit that covers the TLS handshake.

    :param max_idle: connections kept for a host; more may be in use.
    """

    _factory = _ConnectionFactory  # type: ignore[assignment]

    def __init__(self, reactor: object, *, max_idle: int, connect_timeout_s: float) -> None:
        HTTPConnectionPool.__init__(self, reactor, persistent=True)
        self.maxPersistentPerHost = max_idle
        self.cachedConnectionTimeout = _IDLE_CONNECTION_S  # type: ignore[assignment]
        self._connect_timeout_s = connect_timeout_s

    def _putConnection(self, key: Hashable, connection: HTTP11ClientProtocol) -> None:
        # A relay that was stopped closes its connection, whose answer may have come to
        # its end in the same piece. The next request on it would be lost.
        if not getattr(connection.transport, "disconnecting", False):
            HTTPConnectionPool._putConnection(self, key, connection)

    def _newConnection(
        self, key: Hashable, endpoint: IStreamClientEndpoint
    ) -> Deferred[HTTP11ClientProtocol]:
        connecting = HTTPConnectionPool._newConnection(self, key, endpoint)
        return connecting.addCallback(self._secured)

    def _secured(
        self, connection: HTTP11ClientProtocol
    ) -> HTTP11ClientProtocol | Deferred[HTTP11ClientProtocol]:
        assert isinstance(connection, _Connection)
        if connection.secured is None:
            return connection
        ready: Deferred[HTTP11ClientProtocol] = Deferred(
            lambda _: connection.transport.abortConnection()  # type: ignore[union-attr]
        )
        timer: IDelayedCall = self._reactor.callLater(
            self._connect_timeout_s,
            lambda: _fail_once(ready, ConnectTimeout(string="TLS handshake"), connection),
        )

        def completed(_: object) -> None:
            timer.cancel()
            if not ready.called:
                ready.callback(connection)

        def lost(reason: Failure) -> None:
            if timer.active():
                timer.cancel()
            if not ready.called:
                ready.errback(reason)

        connection.secured.addCallbacks(completed, lost)
        return ready


def _fail_once(
    ready: Deferred[HTTP11ClientProtocol], error: Exception, connection: _Connection
) -> None:
    if not ready.called:
        ready.errback(error)
    connection.transport.abortConnection()  # type: ignore[union-attr]


@implementer(IAgent)
class ExactAgent:
    """
    An HTTP/1.1 agent that sends the request target it is given, byte for byte.

    twisted.web's own parses the URL and writes it anew, which loses an empty
    query, among other things; what was signed must be what is sent.

    :param reactor: provides TCP, time and name resolution.
    """

    def __init__(
        self, reactor: object, pool: Pool, policy: IPolicyForHTTPS, connect_timeout_s: float
    ) -> None:
        self._reactor = reactor
        self._pool = pool
        self._policy = policy
        self._connect_timeout_s = connect_timeout_s
        # Bounded by the hosts that the configuration and the regions of ARNs name.
        self._endpoints: dict[tuple[bytes, bytes], IStreamClientEndpoint] = {}

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """
        :param uri: absolute; what follows the authority is sent as it is.
        """
        scheme, _, rest = uri.partition(b"://")
        authority, slash, target = rest.partition(b"/")
        key = (scheme, authority)
        try:
            endpoint = self._endpoint(key)
            request = Request(
                method, slash + target or b"/", headers or Headers(), bodyProducer, persistent=True
            )
        except ValueError:
            return fail()
        connecting = self._pool.getConnection(key, endpoint)
        return connecting.addCallback(lambda connection: connection.request(request))

    def _endpoint(self, key: tuple[bytes, bytes]) -> IStreamClientEndpoint:
        endpoint = self._endpoints.get(key)
        if endpoint is None:
            scheme, authority = key
            host, port = _host_and_port(authority, 443 if scheme == b"https" else 80)
            endpoint = HostnameEndpoint(
                self._reactor, host.decode("ascii"), port, timeout=self._connect_timeout_s
            )
            if scheme == b"https":
                endpoint = wrapClientTLS(self._policy.creatorForNetloc(host, port), endpoint)
            if len(self._endpoints) >= _CACHED_HOSTS:
                self._endpoints.clear()
            self._endpoints[key] = endpoint
        return endpoint


def _host_and_port(authority: bytes, default: int) -> tuple[bytes, int]:
    if authority.startswith(b"["):
        host, _, port = authority[1:].partition(b"]")
        port = port.lstrip(b":")
    else:
        host, _, port = authority.partition(b":")
    return host, int(port) if port else default
