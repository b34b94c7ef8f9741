"""
Where the gateway listens: TLS with certificates that can be replaced, and load
balancers that say for whom they connect.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import quoteStringArgument, serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from zope.interface import implementer

from txbedrock.accepting import accept_in_turn
from txbedrock.core.addresses import Network, Networks
from txbedrock.inbound.haproxy import ProxiedFactory
from txbedrock.inbound.tls import (
    BadCertificate,
    ServedCertificate,
    ServerTLS,
    TLSFactory,
    TLSFiles,
    TLSMaterial,
    read_tls,
)
from txbedrock.listening import shown

__all__ = ["BadListener", "Listener", "Listeners"]

_DAY_S = 24 * 60 * 60
_EXPIRES_SOON_S = 14 * _DAY_S

# Note [Endpoint strings]
# -----------------------
# They are Twisted's, with these of our own:
#
#   tls:4443:cert=cert.pem:key=key.pem         TLS; ssl: is the same with Twisted's names
#   tls:FOLDER:port=4443                       *.pem, chosen by the name a client asks for
#   ...:clientCA=ca.pem                        only clients with a certificate by these
#   ...:clientCA=ca.pem:clientAuth=optional    those without one, too
#   haproxy:tcp:4000, haproxy:tls:4443:...     a PROXY header first, always in the clear
#
# TLS is set up here and not by Twisted, so that all of them are alike: the same
# versions and ciphers, ALPN, a reload, client certificates.

_PROXIED = ("haproxy", "proxy")
_TLS = ("tls", "ssl")
_NAMES = {
    "privateKey": "key",
    "certKey": "cert",
    "extraCertChain": "chain",
    "key": "key",
    "cert": "cert",
    "chain": "chain",
    "clientCA": "clientCA",
    "clientAuth": "clientAuth",
    "path": "path",
    "port": "port",
    "interface": "interface",
    "backlog": "backlog",
    "sslmethod": "sslmethod",
    "dhParameters": "dhParameters",
}
_PATHS = frozenset(
    ("address", "path", *(name for name, of in _NAMES.items() if of in ("key", "cert", "chain")))
) | {"clientCA", "dhParameters"}
_WITHOUT_EFFECT = ("sslmethod", "dhParameters")
_NETWORK = ("tcp", "tcp4", "tcp6")
# Twisted's default is 50: what comes beyond that at once tries again after a second.
_BACKLOG = 1024
_LOOPBACK = re.compile(r"127\.\d+\.\d+\.\d+|::1|localhost", re.IGNORECASE)


class BadListener(ValueError):
    """An endpoint string cannot be used. It says in one line why not."""


@dataclass(frozen=True, slots=True)
class Listener:
    """An endpoint string, taken apart. See Note [Endpoint strings]."""

    description: str
    """With absolute paths: a daemon changes its directory."""

    base: str
    """What is left for Twisted: ``tcp:...``, ``unix:...`` and the like, with a backlog."""

    proxied: bool = False
    """Does each connection begin with a PROXY header?"""

    tls: TLSFiles | None = None
    ignored: tuple[str, ...] = ()
    """Settings of Twisted's that have no effect."""

    @classmethod
    def parse(cls, description: str) -> Listener:
        """
        :raises BadListener: it cannot be one; what is left for Twisted may still be wrong.
        """
        fields = _fields(description)
        proxied = fields[0] in _PROXIED
        kind, *rest = fields[1:] if proxied else fields
        if kind in _PROXIED:
            raise BadListener(f"not an endpoint, expected {kind}: once")
        if kind not in _TLS:
            rest = [
                _absolute(field, positional=kind == "unix" and index == 0)
                for index, field in enumerate(rest)
            ]
            base = ":".join((kind, *rest))
            whole = f"{fields[0]}:{base}" if proxied else base
            return cls(whole, _with_backlog(kind, rest), proxied)
        settings = _settings(kind, rest)
        in_folder = kind == "tls" and "cert" not in settings and "key" not in settings
        files = _files(kind, settings, in_folder)
        rest = [
            _absolute(field, positional=in_folder and index == 0)
            for index, field in enumerate(rest)
        ]
        return cls(
            ":".join((*(fields[:1] if proxied else ()), kind, *rest)),
            _tcp(settings, "::" if in_folder else ""),
            proxied,
            files,
            tuple(name for name in _WITHOUT_EFFECT if name in settings),
        )

    @property
    def local(self) -> bool:
        """Can only this machine reach it?"""
        kind, *rest = _fields(self.base)
        if kind == "unix":
            return True
        if kind not in _NETWORK:
            return False
        # Of several, Twisted takes the last.
        interfaces = [field[10:] for field in rest if field.startswith("interface=")]
        return bool(interfaces) and bool(_LOOPBACK.fullmatch(_unquoted(interfaces[-1])))

    def check(self) -> None:
        """
        See whether it can be used, without listening.

        :raises BadCertificate: a file of its TLS cannot.
        :raises Exception: Twisted does not understand it.
        """
        serverFromString(None, self.base)
        if self.tls is not None:
            read_tls(self.tls)


def _files(kind: str, settings: dict[str, str], in_folder: bool) -> TLSFiles:
    required = settings.get("clientAuth", "required")
    if required not in ("required", "optional"):
        raise BadListener("clientAuth must be required or optional")
    if "clientAuth" in settings and "clientCA" not in settings:
        raise BadListener("clientAuth needs clientCA beside it: a file with the authorities")

    def path(name: str, default: str = "") -> str:
        value = settings.get(name, default)
        return os.path.abspath(value) if value else ""

    if in_folder:
        folder = path("path")
        if not folder or (settings["path"].isdigit() and not os.path.isdir(folder)):
            raise BadListener("expected tls:PORT:cert=FILE:key=FILE, or tls:FOLDER:port=PORT")
        return TLSFiles(
            folder=folder, client_ca=path("clientCA"), client_required=required == "required"
        )
    # Twisted's own default, and the one that is clearer.
    key = path("key", "server.pem" if kind == "ssl" else settings.get("cert", ""))
    return TLSFiles(
        certificate=path("cert", key),
        key=key,
        chain=path("chain"),
        client_ca=path("clientCA"),
        client_required=required == "required",
    )


def _settings(kind: str, fields: Sequence[str]) -> dict[str, str]:
    """Those of a TLS endpoint, under our own names."""
    settings: dict[str, str] = {}
    for field in fields:
        name, equals, value = field.partition("=")
        if not equals:
            continue
        if name not in _NAMES:
            raise BadListener(f"unknown setting {name!r} of {kind}:")
        settings[_NAMES[name]] = _unquoted(value)
    places = [_unquoted(field) for field in fields if "=" not in field]
    if len(places) > 1:
        raise BadListener(f"not an endpoint: what is {places[1]!r}?")
    if places:
        by_folder = kind == "tls" and "cert" not in settings and "key" not in settings
        settings["path" if by_folder else "port"] = places[0]
    port = settings.setdefault("port", "443" if kind == "tls" else "")
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise BadListener("its port must be a number up to 65535")
    return settings


def _tcp(settings: dict[str, str], interface: str) -> str:
    """The endpoint that TLS runs over."""
    interface = settings.get("interface", interface)
    base = f"{'tcp6' if ':' in interface else 'tcp'}:{settings['port']}"
    if interface:
        base += f":interface={quoteStringArgument(interface)}"
    return f"{base}:backlog={settings.get('backlog', _BACKLOG)}"


def _with_backlog(kind: str, fields: Sequence[str]) -> str:
    """An endpoint of Twisted's, with our backlog if it says none."""
    base = ":".join((kind, *fields))
    named = any(field.startswith("backlog=") for field in fields)
    # It may also be the third without a name.
    placed = sum("=" not in field for field in fields) > 2
    if kind not in (*_NETWORK, "unix") or named or placed:
        return base
    return f"{base}:backlog={_BACKLOG}"


_FIELD = re.compile(r"((?:[^\\:]|\\.)*)(:?)", re.DOTALL)


def _fields(description: str) -> list[str]:
    """The colon-separated parts; an escaped colon stays in its part."""
    fields: list[str] = []
    at = 0
    while match := _FIELD.match(description, at):
        fields.append(match[1])
        if not match[2]:
            break
        at = match.end()
    return fields


def _unquoted(field: str) -> str:
    return re.sub(r"\\(.)", r"\1", field)


def _absolute(field: str, *, positional: bool) -> str:
    name, equals, value = field.partition("=")
    if equals and name in _PATHS:
        return f"{name}={_absolute_path(value)}"
    return _absolute_path(field) if positional and not equals else field


def _absolute_path(field: str) -> str:
    quoted: str = quoteStringArgument(os.path.abspath(_unquoted(field)))
    return quoted


@implementer(IStreamServerEndpoint)
class _Endpoint:
    """A listener's own."""

    def __init__(self, listener: Listener, of: Listeners) -> None:
        self._listener = listener
        self._of = of

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """:raises BadCertificate: at once; the rest by the Deferred."""
        listener, of = self._listener, self._of
        served: _Served | None = None
        proxied: ProxiedFactory | None = None
        if listener.tls is not None:
            offers: Callable[[], Sequence[bytes]] = getattr(
                factory, "acceptableProtocols", lambda: ()
            )
            served = _Served(listener.tls, offers())
            factory = TLSFactory(served.tls, False, factory, clock=of.reactor)
        if listener.proxied:
            factory = proxied = ProxiedFactory(factory, of.trusted, of.reactor)
        base: IStreamServerEndpoint = serverFromString(of.reactor, listener.base)
        listening: Deferred[IListeningPort] = base.listen(factory)

        def begun(port: IListeningPort) -> IListeningPort:
            accept_in_turn(port)
            address = shown(port.getHost())
            if served is not None:
                served.name = address
            if proxied is not None:
                proxied.name = address
            of.begun(listener, served, address)
            return port

        return listening.addCallback(begun)


class _Served:
    """
    The certificates of one listener.

    :raises BadCertificate: they cannot be used.
    """

    name = ""
    """Its address, for people."""

    def __init__(self, files: TLSFiles, protocols: Sequence[bytes]) -> None:
        self._files = files
        self._protocols = protocols
        self.tls = ServerTLS(self.read())

    def read(self) -> TLSMaterial:
        return read_tls(self._files, self._protocols)

    @property
    def certificates(self) -> Sequence[ServedCertificate]:
        """The ones that new connections get."""
        return self.tls.material.certificates


class Listeners(Service):
    """
    Makes the endpoints of all listeners, and looks after their certificates.

    :param trusted_proxies: whose PROXY headers are believed.
    :param wall_clock: POSIX seconds.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, *, trusted_proxies: Sequence[Network], wall_clock: Callable[[], float]
    ) -> None:
        self.reactor = reactor
        self.trusted = Networks(trusted_proxies)
        self._trusts_nobody = not trusted_proxies
        self._now = wall_clock
        self._served: list[_Served] = []
        self._notices: list[str] = []
        self._daily = LoopingCall(self._warn)
        self._daily.clock = reactor
        self._wanted = self._busy = False

    def endpoint(self, description: str) -> IStreamServerEndpoint:
        """
        What listens on an endpoint string. See Note [Endpoint strings].

        :raises BadListener: it is none.
        """
        return _Endpoint(Listener.parse(description), self)

    def begun(self, listener: Listener, served: _Served | None, address: str) -> None:
        """A listener listens."""
        if served is not None:
            self._served.append(served)
        if listener.proxied and self._trusts_nobody and not listener.base.startswith("unix:"):
            self._notices.append(
                f"{address}: general_settings.trusted_proxies is empty, so nobody may send a "
                "PROXY header, and all connections are refused"
            )
        for name in listener.ignored:
            self._notices.append(f"{address}: {name} has no effect: TLS 1.2 and 1.3 are set up "
                                 "the same way everywhere")  # fmt: skip

    def startService(self) -> None:
        """Say what is served; warn of what expires soon, now and every day."""
        Service.startService(self)
        for notice in self._notices:
            self._log.warn("{notice}", notice=notice)
        for served in self._served:
            self._tell(served)
        self._daily.start(_DAY_S)

    def stopService(self) -> None:
        """Look after them no more."""
        Service.stopService(self)
        if self._daily.running:
            self._daily.stop()
        self._served.clear()

    def reload(self) -> None:
        """
        Read all files again, in a thread. New connections get what they hold; those
        that are open go on. What cannot be used leaves what is served as it is.
        """
        self._wanted = True
        if not self._busy:
            self._busy = True
            Deferred.fromCoroutine(self._reload()).addErrback(
                lambda failure: self._log.failure("reading the certificates failed", failure)
            )

    async def _reload(self) -> None:
        try:
            while self._wanted:
                self._wanted = False
                for served in tuple(self._served):
                    await self._reload_one(served)
        finally:
            self._busy = False

    async def _reload_one(self, served: _Served) -> None:
        pool = self.reactor.getThreadPool()
        try:
            material = await deferToThreadPool(self.reactor, pool, served.read)
        except BadCertificate as error:
            self._log.error(
                "{listener}: the certificate stays as it is: {reason}",
                listener=served.name,
                reason=str(error),
            )
            return
        except Exception:
            self._log.failure("{listener}: the certificate stays as it is", listener=served.name)
            return
        served.tls.material = material
        self._tell(served)
        self._warn_of(served)

    def _tell(self, served: _Served) -> None:
        for certificate in served.certificates:
            self._log.info(
                "{listener}: serving {certificate}",
                listener=served.name,
                certificate=str(certificate),
            )

    def _warn(self) -> None:
        for served in self._served:
            self._warn_of(served)

    def _warn_of(self, served: _Served) -> None:
        now = self._now()
        for certificate in served.certificates:
            left = certificate.expires - now
            if left <= 0:
                what = "has expired: clients refuse it"
            elif certificate.begins > now:
                what = "is not valid yet: clients refuse it"
            elif left < _EXPIRES_SOON_S:
                what = f"expires within {int(left // _DAY_S) + 1} days"
            else:
                continue
            self._log.warn(
                "{listener}: the certificate {what} ({certificate})",
                listener=served.name,
                what=what,
                certificate=str(certificate),
            )

    def metrics(self) -> Iterator[GaugeMetricFamily]:
        """When certificates expire; of a listener with several, the first."""
        family = GaugeMetricFamily(
            "txbedrock_certificate_expiry_timestamp_seconds",
            "When the certificate that is served expires",
            labels=("listener",),
        )
        for served in self._served:
            expires = min(certificate.expires for certificate in served.certificates)
            family.add_metric((served.name,), expires)
        if self._served:
            yield family
