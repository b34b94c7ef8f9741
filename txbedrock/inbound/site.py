"""
HTTP towards clients: limits on what they may send and how long they may take.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.resource import IResource

from txbedrock.core.addresses import Network, client_address
from txbedrock.core.replies import ErrorShape, Reply, render, shape_of
from txbedrock.errors import (
    BadHttp,
    BodyTimeout,
    BodyTooLarge,
    HeadersTooLarge,
    InternalError,
    ProxyError,
)
from txbedrock.inbound.body import Body
from txbedrock.interfaces import InboundRequest

__all__ = ["Channel", "ClientLimits", "Request", "Site", "inbound_request", "send_reply"]


# Twisted's own list lacks 429, 431 and others.
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


_LAST_WRITES_S = 0.05


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


class Request(server.Request):
    """
    A request whose body is bounded and hashed, and whose errors are never HTML.
    """

    defaultContentType = None
    site: Site
    channel: Channel
    content: Body
    received: float = 0.0

    def gotLength(self, length: int | None) -> None:
        """The head is here. Refuse a body that is announced as too long."""
        self.received = self.channel.site.wall_seconds()
        self.content = Body(self.channel.pause_upload, self.channel.resume_upload)
        limit = self.channel.limits.max_request_body
        if length is not None and length > limit:
            self.channel.refuse(_too_large(limit))

    def handleContentChunk(self, data: bytes) -> None:
        if self.channel is None or self.channel.refused:
            return
        limit = self.channel.limits.max_request_body
        if self.content.length + len(data) > limit:
            self.channel.refuse(_too_large(limit))
            return
        self.content.write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """
        The request is whole.

        Unlike twisted.web's own: the body is not parsed as a form, and neither
        is the query, which only few resources ask for.
        """
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        self.args = {}
        self.process()

    def processingFailed(self, reason: Failure) -> Failure:
        """A fault of ours: logged, and told without its traceback."""
        self._log.failure("a resource failed", failure=reason)
        if not self._disconnected and not self.finished:
            if self.startedWriting:
                self.channel.abort()
            else:
                error = InternalError("The gateway failed to answer this request.")
                send_reply(self, render(error, str(uuid.uuid4()), shape_of(self.path)))
        return reason


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"The request body is longer than the {limit} bytes that this gateway accepts."
    )


def inbound_request(request: Request, raw_path: bytes | None = None) -> InboundRequest:
    """
    A request whose body is here, as the rest of the house sees it.

    :param raw_path: below the gateway's prefix; None: there is none.
    """
    path, mark, query = request.uri.partition(b"?")
    site = request.channel.site
    headers = [
        (name, value)
        for name, values in request.requestHeaders.getAllRawHeaders()
        for value in values
    ]
    peer = getattr(request.client, "host", "-")
    if site.trusted_proxies:
        peer = client_address(peer, headers, site.trusted_proxies)
    return InboundRequest(
        id=str(uuid.uuid4()),
        method=request.method,
        raw_path=path if raw_path is None else raw_path,
        raw_query=query if mark else None,
        headers=headers,
        body=request.content,
        peer=peer,
        received=request.received,
        complete=site.wall_seconds(),
        received_path=path,
    )


def send_reply(request: server.Request, reply: Reply) -> None:
    """Answer a request with a whole reply and finish it."""
    request.setResponseCode(reply.status, _PHRASES.get(reply.status, b""))
    for name, value in reply.headers:
        request.responseHeaders.setRawHeaders(name, [value])
    request.setHeader(b"Server", b"txbedrock")
    request.setHeader(b"Content-Length", b"%d" % len(reply.body))
    request.write(b"" if request.method == b"HEAD" else reply.body)
    request.finish()


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
        head = [b"HTTP/1.1 %d %b" % (reply.status, _PHRASES.get(reply.status, b"Refused"))]
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


# twisted.web does not know RFC 6585.
def _ignore(_data: bytes) -> None:
    pass


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
