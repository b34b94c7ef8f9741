"""
The server: every connection of a client, and the limits on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.web import server
from twisted.web.resource import IResource, getChildForRequest

from txbedrock.core.addresses import Network, Networks
from txbedrock.core.replies import ErrorShape, render, shape_of
from txbedrock.errors import ProxyError
from txbedrock.inbound.bounds import Bounds, Refusal, raise_file_limit, spare_files
from txbedrock.inbound.cors import Cors
from txbedrock.inbound.http1 import Channel
from txbedrock.inbound.http2 import Http2Channel, Http2Limits
from txbedrock.inbound.opening import Connection, Opening
from txbedrock.inbound.request import Request, new_request_id
from txbedrock.inbound.turns import Turns

__all__ = ["ClientLimits", "Site", "TooManyConnections"]

# How many that were turned away may be left to read why, and for how long.
_MOST_LEAVING = 100
_LEAVING_S = 1.0

_PROTOCOLS: Mapping[type, str] = {Channel: "http/1.1", Http2Channel: "h2", Opening: "unknown"}

# How often the log says that somebody is turned away.
_TELL_EVERY_S = 10.0


class TooManyConnections(ProxyError):
    """There is no room for another connection. SDKs retry it."""

    status = 503
    code = "ServiceUnavailableException"


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What a client may send, and how long it may take over it."""

    max_request_body: int = 32 * 1024 * 1024
    header_timeout_s: float = 60.0
    """From the first byte of a request to the end of its header."""

    upload_idle_timeout_s: float = 60.0
    """Between two pieces of a body."""

    keep_alive_timeout_s: float = 120.0
    """Between two requests of a connection."""

    linger_s: float = 15.0
    """How long a refused client may go on sending before it is cut off."""

    max_connections: int = 10_000
    """Of all clients, at a time."""

    max_connections_per_address: int = 0
    """Of one client address; 0: as many as there may be in all."""

    max_requests_per_connection: int = 10_000
    """Then it is closed, and the client opens another; 0: never."""


class Site(server.Site):
    """
    The server: knows its connections, and drains them.

    :param clock: for time limits; :param wall_seconds: POSIX seconds.
    :param trusted_proxies: whose ``X-Forwarded-For`` is believed. They have connections
        for many clients, so ``max_connections_per_address`` is not for them. It goes by
        the other end of a connection, never by what a header says.
    :param cors: whose browsers may call; None: none.
    """

    noisy = False
    http2_limits = Http2Limits()
    _log = Logger()

    def __init__(
        self,
        resource: IResource,
        clock: IReactorTime,
        limits: ClientLimits,
        *,
        wall_seconds: Callable[[], float],
        route_prefix: bytes = b"",
        trusted_proxies: Sequence[Network] = (),
        cors: Cors | None = None,
    ) -> None:
        server.Site.__init__(self, resource, parsePOSTFormSubmission=False)
        self.clock = clock
        self.limits = limits
        self.wall_seconds = wall_seconds
        self.trusted_proxies = trusted_proxies
        self.cors = cors
        self.bounds = Bounds(
            limits.max_connections,
            limits.max_connections_per_address,
            Networks(trusted_proxies).contains,
            clock.seconds,
        )
        self.turns = Turns(clock)
        """When there is time for what clients send."""

        self.refusals: Counter[str] = Counter()
        """Connections refused, or closed for what they did, by kind."""

        self.displayTracebacks = False
        self.draining = False
        self._prefix = route_prefix
        self._channels: set[Connection] = set()
        self._leaving: dict[Connection, IDelayedCall] = {}
        self._told: float | None = None
        self._closed: Deferred[None] | None = None

    @property
    def connections(self) -> int:
        """Of clients, idle ones included."""
        return len(self._channels)

    @property
    def in_flight(self) -> int:
        """Connections on which a request, or the answer to one, is under way."""
        return sum(not (channel.idle or channel.refused) for channel in self._channels)

    def buildProtocol(self, addr: object) -> Opening:  # type: ignore[override]
        return Opening(self)

    def acceptableProtocols(self) -> list[bytes]:
        """What TLS offers by ALPN."""
        return [b"h2", b"http/1.1"]

    def startFactory(self) -> None:
        """Before the first connection: see how many this process may have."""
        files = raise_file_limit()
        spare = spare_files(files)
        # Descriptors are numbered from 0.
        self.bounds.last_file = files - spare - 1
        most = self.limits.max_connections
        if most > files - spare:
            self._log.warn(
                "max_connections is {most}, but this process may have {files} open files: "
                "raise its limit (ulimit -n) to {wanted}",
                most=most,
                files=files,
                wanted=most + spare_files(most * 10 // 9 + 1),
            )

    def stopFactory(self) -> None:
        pass

    def shape_of(self, uri: bytes) -> ErrorShape:
        """The shape of errors for a request target."""
        return shape_of(uri.removeprefix(self._prefix))

    def getResourceFor(self, request: Request) -> IResource:
        if self.cors is not None and self.cors.is_preflight(request):
            return self.cors.preflight
        found: IResource = getChildForRequest(self.resource, request)
        return found

    # What is going on.

    def connected(self, channel: Connection) -> None:
        """A new connection. There may be no room for it, or for another one."""
        if channel in self._channels:
            return  # It is known from before it was known what it speaks.
        self._channels.add(channel)
        transport: Any = channel.transport
        fileno = getattr(transport, "fileno", None)
        entry = self.bounds.enter(
            channel,
            getattr(transport.getPeer(), "host", None) or "",
            -1 if fileno is None else fileno(),
        )
        if entry.refused is not None:
            self.refused(entry.refused.value)
            self._turn_away(channel, entry.refused)
        elif isinstance(entry.close, Connection) and entry.reason is not None:
            self.refused(entry.reason.value)
            self._close(entry.close, entry.reason)

    def became(self, old: Connection, new: Connection) -> None:
        """It is known now which protocol a connection speaks."""
        self._channels.discard(old)
        self._channels.add(new)
        self.bounds.become(old, new)

    def disconnected(self, channel: Connection) -> None:
        self._channels.discard(channel)
        self.bounds.leave(channel)
        leaving = self._leaving.pop(channel, None)
        if leaving is not None and leaving.active():
            leaving.cancel()
        if not self._channels and self._closed is not None:
            closed, self._closed = self._closed, None
            closed.callback(None)

    def drain(self) -> Deferred[None]:
        """
        Close idle connections at once and the others after their answer.

        :returns: fires when the last connection is closed, its data delivered.
        """
        self.draining = True
        closed = self._closed = Deferred()
        for channel in list(self._channels):
            # An HTTP/2 connection says so to its client, and goes on with its requests.
            if channel.refused or channel.idle or isinstance(channel, Http2Channel):
                channel.loseConnection()
        if not self._channels:
            self._closed = None
            closed.callback(None)
        return closed

    def abort(self) -> None:
        """Cut every connection."""
        for channel in list(self._channels):
            channel.abort()

    # Bounds.

    def refused(self, kind: str) -> None:
        """
        Count a connection that was refused, or closed for what its client did.

        :param kind: a name for the metrics; there must be few of them.
        """
        self.refusals[kind] += 1
        now = self.clock.seconds()
        if self._told is None or now - self._told >= _TELL_EVERY_S:
            self._told = now
            self._log.warn(
                "clients are turned away; connections: {count}, refused so far: {refusals}",
                count=len(self.bounds),
                refusals=", ".join(f"{name} {n}" for name, n in sorted(self.refusals.items())),
            )

    def cut_off(self, channel: Connection) -> None:
        """
        Cut a connection that is over, when its client has had time to read why; that is
        a courtesy, and not for any number of them.
        """
        if len(self._leaving) >= _MOST_LEAVING:
            channel.abort()
        else:
            self._leaving[channel] = self.clock.callLater(_LEAVING_S, channel.abort)

    def is_last(self, requests: int) -> bool:
        """Must a connection go after so many requests?"""
        most = self.limits.max_requests_per_connection
        return bool(most) and requests >= most

    def tally(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """:returns: connections by protocol, and the requests under way on them."""
        connections: Counter[str] = Counter()
        streams: Counter[str] = Counter()
        for connection in self.bounds:
            protocol = _PROTOCOLS[type(connection)]
            connections[protocol] += 1
            streams[protocol] += self.bounds.under_way(connection)
        return connections, streams

    def _turn_away(self, channel: Connection, why: Refusal) -> None:
        """Say no in a word, to those whom it costs little to tell."""
        channel.refused = True
        if why is Refusal.FILES or len(self._leaving) >= _MOST_LEAVING or self.draining:
            channel.abort()
            return
        error = TooManyConnections(
            "This client has too many connections to the gateway: use fewer, and keep them open."
            if why is Refusal.ADDRESS
            else "The gateway has too many connections: try again later.",
            headers=((b"Retry-After", b"1"),),
        )
        reply = render(error, new_request_id())
        lines = [b"HTTP/1.1 503 Service Unavailable"]
        lines += [b"%b: %b" % pair for pair in reply.headers]
        lines += [b"Content-Length: %d" % len(reply.body), b"Connection: close", b"", b""]
        transport: Any = channel.transport
        transport.write(b"\r\n".join(lines) + reply.body)
        # What has come meanwhile is read and thrown away: a connection closed over it
        # would be reset, and the answer lost.
        half_close = getattr(transport, "loseWriteConnection", None)
        if half_close is not None and not channel.isSecure():
            half_close()
        self._leaving[channel] = self.clock.callLater(_LEAVING_S, channel.abort)

    def _close(self, channel: Connection, reason: Refusal) -> None:
        """Close it now, for another one."""
        if reason is Refusal.IDLE and not channel.isSecure():
            channel.loseConnection()
        else:
            # Over TLS a connection stays until its other end agrees.
            channel.abort()
