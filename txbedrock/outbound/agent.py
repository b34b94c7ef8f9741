"""
Requests to AWS: exact targets, over kept connections, to checked certificates.
"""

from __future__ import annotations

import os
import ssl
from functools import lru_cache
from typing import Any

from OpenSSL import SSL
from twisted.internet._sslverify import IOpenSSLTrustRoot
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import CancelledError, Deferred, fail
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure
from twisted.web.client import (
    HostnameCachingHTTPSPolicy,
    ResponseNeverReceived,
)
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IPolicyForHTTPS
from zope.interface import implementer

from txbedrock.core.headers import HeaderList
from txbedrock.outbound.http1 import Request
from txbedrock.outbound.pool import Origin, Pool

__all__ = ["ExactAgent", "Pool", "https_policy"]

_CACHED_HOSTS = 512
_CACHED_URI_BYTES = 512


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
    import botocore

    return os.path.join(os.path.dirname(botocore.__file__), "cacert.pem")


@implementer(IPolicyForHTTPS)
class _CheckedPolicy:
    """Whoever trusted authorities say is the host."""

    def __init__(self, trust: IOpenSSLTrustRoot) -> None:
        self._trust = trust

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        # Sessions save the larger part of a handshake; Twisted does without them.
        creator: IOpenSSLClientConnectionCreator = optionsForClientTLS(
            hostname.decode("ascii"),
            trustRoot=self._trust,
            extraCertificateOptions={"enableSessions": True, "enableSessionTickets": True},
        )
        return creator


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
        inner = _CheckedPolicy(_BundleTrust(ca_bundle or _default_bundle()))
    return HostnameCachingHTTPSPolicy(inner, _CACHED_HOSTS)


@implementer(IAgent)
class ExactAgent:
    """
    An HTTP/1.1 agent that sends the request target it is given, byte for byte.

    twisted.web's own parses the URL and writes it anew, which loses an empty
    query, among other things; what was signed must be what is sent.
    """

    def __init__(self, pool: Pool, policy: IPolicyForHTTPS) -> None:
        self._pool = pool
        self._policy = policy

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | HeaderList | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[Any]:
        """
        :param uri: absolute; what follows the authority is sent as it is.
        :param headers: with exactly one ``Host``, without what frames the body. A list
            goes out as it is.
        :returns: fires with a :class:`.http1.Response`. Fails as
            :meth:`.http1.Connection.send` and :meth:`.pool.Origin.connect` do, or with
            ``ValueError`` when this is no HTTP.
        """
        try:
            name, target = _cached_parts(uri) if len(uri) <= _CACHED_URI_BYTES else _parts(uri)
            request = Request(method, uri, target, headers or [], bodyProducer)
            origin = self._pool.origin(name, self._origin)
        except ValueError:
            return fail()
        connection = origin.kept()
        if connection is None:
            return _first_try(origin, request)
        answer = connection.send(request)
        if request.repeatable:
            answer.addErrback(_second_try, origin, request)
        return answer

    def _origin(self, name: bytes) -> Origin:
        scheme, _, authority = name.partition(b"://")
        if scheme not in (b"http", b"https"):
            raise ValueError("the scheme of a URL has to be http or https")
        host, port = _host_and_port(authority, 443 if scheme == b"https" else 80)
        creator = None
        if scheme == b"https":
            creator = self._policy.creatorForNetloc(host, port)
        return Origin(self._pool, host.decode("ascii"), port, creator)


def _parts(uri: bytes) -> tuple[bytes, bytes]:
    """:returns: scheme and authority, and the target."""
    at = uri.find(b"/", uri.find(b"://") + 3)
    return (uri, b"/") if at < 0 else (uri[:at], uri[at:])


_cached_parts = lru_cache(maxsize=1024)(_parts)


def _first_try(origin: Origin, request: Request) -> Deferred[Any]:
    connecting: Deferred[Any] = origin.connect()
    return connecting.addCallback(lambda connection: connection.send(request))


def _second_try(failure: Failure, origin: Origin, request: Request) -> Failure | Deferred[Any]:
    """
    On a new connection, as a kept one may have been closed just before it was used.

    Only for what may be done twice, and of which nothing was heard.
    """
    error = failure.value
    if not isinstance(error, ResponseNeverReceived) or any(
        reason.check(CancelledError) for reason in error.reasons
    ):
        return failure
    return _first_try(origin, request)


def _host_and_port(authority: bytes, default: int) -> tuple[bytes, int]:
    if authority.startswith(b"["):
        host, _, port = authority[1:].partition(b"]")
        port = port.lstrip(b":")
    else:
        host, _, port = authority.partition(b":")
    return host, int(port) if port else default
