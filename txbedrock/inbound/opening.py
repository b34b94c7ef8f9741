"""
The beginning of a client's connection: is it HTTP/1.1 or HTTP/2?
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IDelayedCall, ISSLTransport, ITCPTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.tcp import Connection as Connected
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure

from txbedrock.inbound.http1 import Channel
from txbedrock.inbound.http2 import PREFACE, Http2Channel

if TYPE_CHECKING:
    from txbedrock.inbound.site import Site

__all__ = ["Connection", "Opening"]


class Opening(Protocol):
    """
    Waits for as much as tells what the client speaks, then hands the connection over.

    Over TLS it is what was agreed upon by ALPN. Otherwise the first bytes tell: HTTP/2's
    preface begins as no request of HTTP/1.1 does. After that the transport's calls go
    to the channel directly.
    """

    refused = False
    idle = True
    _timer: IDelayedCall | None = None
    _closing = False

    def __init__(self, site: Site) -> None:
        self.site = site
        self._received = b""

    def connectionMade(self) -> None:
        self.site.connected(self)
        self._timer = self.site.clock.callLater(
            self.site.limits.header_timeout_s, self.loseConnection
        )

    def dataReceived(self, data: bytes) -> None:
        if self._closing or self.refused:
            return
        data = self._received + data
        agreed = getattr(self.transport, "negotiatedProtocol", None)
        if agreed == b"h2" or (agreed != b"http/1.1" and data.startswith(PREFACE)):
            self._hand_over(Http2Channel(self.site), data)
        elif agreed != b"http/1.1" and PREFACE.startswith(data):
            self._received = data
        else:
            self._hand_over(Channel(self.site), data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._stop_timer()
        self.site.disconnected(self)

    def loseConnection(self) -> None:
        """Close it; there is nothing to say yet, and nobody to say it to."""
        self._closing = True
        self._tcp.loseConnection()

    def abort(self) -> None:
        """Cut the connection now."""
        self._tcp.abortConnection()

    def isSecure(self) -> bool:
        """Is this TLS?"""
        return ISSLTransport.providedBy(self.transport)

    @property
    def _tcp(self) -> ITCPTransport:
        transport: ITCPTransport = self.transport  # type: ignore[assignment]
        return transport

    def _hand_over(self, channel: Channel | Http2Channel, data: bytes) -> None:
        self._stop_timer()
        transport: Any = self.transport
        if isinstance(transport, Connected):
            transport.protocol = channel
        elif isinstance(transport, ProtocolWrapper):
            transport.wrappedProtocol = channel
        else:
            self.dataReceived = channel.dataReceived  # type: ignore[method-assign]
            self.connectionLost = channel.connectionLost  # type: ignore[method-assign]
        self.site.became(self, channel)
        channel.makeConnection(transport)
        channel.dataReceived(data)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()


Connection = Opening | Channel | Http2Channel
"""
What a site knows of a connection: ``idle``, ``refused``, ``isSecure``, ``loseConnection``
and ``abort``.
"""
