"""
HTTP/1.1 of a client's connection: what it may send, and how long it may take.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from twisted.internet.interfaces import IDelayedCall, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http

from txbedrock.core.replies import render
from txbedrock.errors import BadHttp, BodyTimeout, HeadersTooLarge, ProxyError
from txbedrock.inbound.request import PHRASES, Request

if TYPE_CHECKING:
    from txbedrock.inbound.site import ClientLimits, Site

__all__ = ["Channel"]

_LAST_WRITES_S = 0.05


class Channel(http.HTTPChannel):
    """
    An HTTP/1.1 connection of a client.

    Each phase of a request has its own time limit: twisted.web knows only one
    for silence, which a client that sends a header byte by byte never breaks.
    What is not HTTP is answered in the shape that SDKs read.
    """

    totalHeadersSize = 64 * 1024
    requestFactory = Request
    site: Site
    refused = False
    _phase = "idle"
    _linger: IDelayedCall | None = None
    _cut: IDelayedCall | None = None
    _log = Logger()

    @property
    def limits(self) -> ClientLimits:
        return self.site.limits

    def connectionMade(self) -> None:
        http.HTTPChannel.connectionMade(self)
        self.site.connected(self)
        self.setTimeout(self.limits.header_timeout_s)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.disconnected(self)
        for timer in (self._linger, self._cut):
            if timer is not None and timer.active():
                timer.cancel()
        http.HTTPChannel.connectionLost(self, reason)

    def abort(self) -> None:
        """Cut the connection now, so that nothing sent so far looks whole."""
        self._tcp.abortConnection()

    def cut_off(self) -> None:
        """
        The same for an answer, after a moment for what was written to it just now: that
        would be lost otherwise, the head with it.
        """
        if self._cut is None:
            self._cut = self.site.clock.callLater(_LAST_WRITES_S, self.abort)

    @property
    def idle(self) -> bool:
        """Between two requests, with nothing of the next one received."""
        return self._phase == "idle"

    @property
    def _tcp(self) -> ITCPTransport:
        transport: ITCPTransport = self.transport  # type: ignore[assignment]
        return transport

    def callLater(self, period: float, func: Callable[[], object]) -> IDelayedCall:
        """What ``TimeoutMixin`` waits with."""
        return self.site.clock.callLater(period, func)

    # Phases and their limits.

    def dataReceived(self, data: bytes) -> None:
        if self.refused:
            return
        if self._phase == "idle":
            self._phase = "header"
            self.setTimeout(self.limits.header_timeout_s)
        elif self._phase == "body":
            self.resetTimeout()
        http.basic.LineReceiver.dataReceived(self, data)

    def allHeadersReceived(self) -> None:
        if self.refused:
            return
        self._phase = "body"
        self.setTimeout(self.limits.upload_idle_timeout_s)
        if self.site.draining:
            # Answered, and then the connection goes.
            self.requests[-1].responseHeaders.setRawHeaders(b"Connection", [b"close"])
        http.HTTPChannel.allHeadersReceived(self)
        if self.site.draining:
            self.persistent = False

    def _send100Continue(self) -> None:
        if not self.refused:
            http.HTTPChannel._send100Continue(self)

    def allContentReceived(self) -> None:
        if self.refused:
            return
        self._phase = "answer"
        self.setTimeout(None)
        http.HTTPChannel.allContentReceived(self)

    def requestDone(self, request: Request) -> None:
        self._phase = "idle"
        self._savedTimeOut = self.limits.keep_alive_timeout_s
        if self.site.draining:
            self.persistent = False
        http.HTTPChannel.requestDone(self, request)

    def timeoutConnection(self) -> None:
        if self._phase == "body" or (self._phase == "header" and self._received_anything()):
            what = "header" if self._phase == "header" else "body"
            self.refuse(BodyTimeout(f"The {what} of the request did not arrive in time."))
        else:
            self.loseConnection()

    def _received_anything(self) -> bool:
        return bool(self._receivedHeaderSize or self._buffer or self.requests)

    def pause_upload(self) -> None:
        """The disk is slower than the client."""
        self.setTimeout(None)
        self._networkProducer.pauseProducing()

    def resume_upload(self) -> None:
        if self._phase == "body" and not self.refused:
            self.setTimeout(self.limits.upload_idle_timeout_s)
        self._networkProducer.resumeProducing()

    # Refusals below the level of a request.

    def lineLengthExceeded(self, line: bytes) -> None:
        self.refuse(self._headers_too_large())

    def _respondToBadRequestAndDisconnect(self) -> None:
        # twisted.web's one place for every kind of bad request.
        if self._phase != "body" and (
            self._receivedHeaderSize > self.totalHeadersSize
            or self._receivedHeaderCount > self.maxHeaders
        ):
            self.refuse(self._headers_too_large())
        else:
            self.refuse(BadHttp("The request is not valid HTTP/1.1."))

    def _headers_too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"The request's header is too large: at most {self.MAX_LENGTH} bytes a line, "
            f"{self.totalHeadersSize} bytes and {self.maxHeaders} lines in all."
        )

    def refuse(self, error: ProxyError) -> None:
        """
        Answer now, take nothing more, and close.

        What the client still sends is read and thrown away for a while: a
        connection closed over unread data is reset, and the answer lost.
        """
        if self.refused:
            return
        self.refused = True
        path: bytes = getattr(self, "_path", b"")
        reply = render(error, str(uuid.uuid4()), self.site.shape_of(path))
        self.setTimeout(None)
        head = [b"HTTP/1.1 %d %b" % (reply.status, PHRASES.get(reply.status, b"Refused"))]
        head += [b"%b: %b" % pair for pair in reply.headers]
        head += [b"Content-Length: %d" % len(reply.body), b"Connection: close", b"", b""]
        self._tcp.write(b"\r\n".join(head) + reply.body)
        self._log.info(
            "{peer} refused with {status} {code}: {message}",
            peer=getattr(self._tcp.getPeer(), "host", "-"),
            status=reply.status,
            code=error.code,
            message=error.message,
        )
        # Parsing may be in the middle of a piece of data; it comes to nothing.
        self.lineReceived = self.rawDataReceived = _ignore  # type: ignore
        self.setRawMode()
        if not self.isSecure():
            # TLS cannot be closed in one direction; Connection: close has to do.
            lose_write = getattr(self.transport, "loseWriteConnection", None)
            if lose_write is not None:
                lose_write()
        self._linger = self.callLater(self.limits.linger_s, self.abort)


def _ignore(_data: bytes) -> None:
    pass
