"""
The server: every connection of a client, and the limits on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.web import http, server
from twisted.web.resource import IResource

from txbedrock.core.addresses import Network
from txbedrock.core.replies import ErrorShape, shape_of
from txbedrock.inbound.http1 import Channel

__all__ = ["ClientLimits", "Site"]


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


class Site(server.Site):
    """
    The server: knows its connections, and drains them.

    :param clock: for time limits; :param wall_seconds: POSIX seconds.
    :param trusted_proxies: whose ``X-Forwarded-For`` is believed.
    """

    noisy = False

    def __init__(
        self,
        resource: IResource,
        clock: IReactorTime,
        limits: ClientLimits,
        *,
        wall_seconds: Callable[[], float],
        route_prefix: bytes = b"",
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        server.Site.__init__(self, resource, parsePOSTFormSubmission=False)
        self.clock = clock
        self.limits = limits
        self.wall_seconds = wall_seconds
        self.trusted_proxies = trusted_proxies
        self.displayTracebacks = False
        self.draining = False
        self._prefix = route_prefix
        self._channels: set[Channel] = set()
        self._closed: Deferred[None] | None = None

    @property
    def connections(self) -> int:
        """Of clients, idle ones included."""
        return len(self._channels)

    @property
    def in_flight(self) -> int:
        """Connections on which a request, or the answer to one, is under way."""
        return sum(not (channel.idle or channel.refused) for channel in self._channels)

    def buildProtocol(self, addr: object) -> Channel:  # type: ignore[override]
        channel = Channel()
        channel.site = self
        channel.factory = self
        return channel

    def acceptableProtocols(self) -> list[bytes]:
        """What TLS offers by ALPN."""
        return [b"http/1.1"]

    def log(self, request: http.Request) -> None:
        """Every exchange has a line of its own; this one would be a second."""

    def startFactory(self) -> None:
        """Nothing to start: no log file, no clock that ticks for one."""

    def stopFactory(self) -> None:
        pass

    def shape_of(self, uri: bytes) -> ErrorShape:
        """The shape of errors for a request target."""
        return shape_of(uri.removeprefix(self._prefix))

    # What is going on.

    def connected(self, channel: Channel) -> None:
        self._channels.add(channel)

    def disconnected(self, channel: Channel) -> None:
        self._channels.discard(channel)
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
            if channel.refused or channel.idle:
                channel.loseConnection()
        if not self._channels:
            self._closed = None
            closed.callback(None)
        return closed

    def abort(self) -> None:
        """Cut every connection."""
        for channel in list(self._channels):
            channel.abort()
