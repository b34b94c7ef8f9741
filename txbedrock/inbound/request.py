"""
One request of a client, whatever it came over, and its answer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.error import UnsupportedMethod
from twisted.web.http_headers import Headers
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET

from txbedrock.core.addresses import client_address
from txbedrock.core.headers import NO_HEADERS, HeaderList, Indexed
from txbedrock.core.operations import usual_path
from txbedrock.core.replies import Reply, render
from txbedrock.errors import BodyTooLarge, InternalError, MethodNotAllowed, ProxyError
from txbedrock.inbound.body import Body
from txbedrock.inbound.tls import client_certificate
from txbedrock.interfaces import InboundRequest

if TYPE_CHECKING:
    from txbedrock.inbound.http1 import Channel
    from txbedrock.inbound.http2 import Stream
    from txbedrock.inbound.site import Site

__all__ = ["PHRASES", "Request", "inbound_request", "new_request_id", "send_reply"]


PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
"""Reason phrases; Twisted's own list lacks 429, 431 and others."""


class Request:
    """
    A request as twisted.web's resources know it, whose body is bounded and hashed, and
    whose errors are never HTML.

    It has what a Resource tree needs of ``twisted.web.iweb.IRequest``, and no more. Headers
    are kept as they came; Twisted's ``Headers`` are made for who asks for them.

    :param channel: what it came over. It is called: ``writeHeaders``, ``write``,
        ``requestDone`` for the answer, ``registerProducer``, ``unregisterProducer``,
        ``abort``, ``cut_off``, ``refuse``, ``pause_upload``, ``resume_upload``, ``let_go``,
        and has ``site``, ``limits``, ``refused``, ``transport``, ``secure``, ``peer_host``.
        It calls :meth:`begin`, :meth:`feed`, :meth:`whole` or :meth:`connectionLost`.
    :param uri: the request target as it was sent.
    :param headers: as they were sent.
    """

    __slots__ = (
        "_answer_headers",
        "_bodiless",
        "_headers",
        "_lost",
        "_told",
        "channel",
        "clientproto",
        "code",
        "code_message",
        "content",
        "disconnected",
        "finished",
        "headers",
        "method",
        "path",
        "postpath",
        "prepath",
        "received",
        "site",
        "sitepath",
        "startedWriting",
        "uri",
    )

    _log = Logger()

    def __init__(
        self,
        channel: Channel | Stream,
        method: bytes,
        uri: bytes,
        version: bytes,
        headers: HeaderList,
    ) -> None:
        self.channel = channel
        self.site: Site = channel.site
        self.method = method
        self.uri = uri
        self.path = uri.partition(b"?")[0]
        self.clientproto = version
        self.headers = headers
        self.content = Body(channel.pause_upload, channel.resume_upload)
        self.code = 200
        self.code_message = b"OK"
        self.startedWriting = False
        self.finished = False
        self.disconnected = False
        """Its client has left."""

        self.received = self.site.wall_seconds()
        """POSIX seconds when the head was complete."""

        self.prepath: list[bytes] = []
        self.postpath: list[bytes] = []
        self.sitepath: list[bytes] = []
        self._headers: Headers | None = None
        self._answer_headers: Headers | None = None
        self._bodiless = False
        self._lost: Callable[[], object] | None = None
        self._told: Deferred[None] | None = None

    def __repr__(self) -> str:
        # Neither header nor query: they may have a key.
        return f"<{type(self).__name__} {self.method!r} {self.path!r}>"

    # The request comes in.

    def begin(self, length: int | None) -> None:
        """
        The head is here. A body that is announced as too long is refused.

        :param length: of the body in bytes; None: it is not told.
        """
        limit = self.channel.limits.max_request_body
        if length is not None and length > limit:
            self._refuse_body(limit)

    def feed(self, data: bytes) -> None:
        """A piece of the body."""
        if self.channel.refused:
            return
        limit = self.channel.limits.max_request_body
        if self.content.length + len(data) > limit:
            self._refuse_body(limit)
        else:
            self.content.write(data)

    def _refuse_body(self, limit: int) -> None:
        cors = self.site.cors
        headers = () if cors is None else cors.headers(cors.allowed(self))
        self.channel.refuse(
            BodyTooLarge(
                f"The request body is longer than the {limit} bytes that this gateway accepts.",
                headers=tuple(headers),
            )
        )

    def whole(self) -> None:
        """All of it is here: answer it."""
        try:
            if self.path == b"*":
                self._about_server()
                return
            self.postpath = self.path[1:].split(b"/")
            if self.path.find(b"%") >= 0:
                self.postpath = [unquote_to_bytes(part) for part in self.postpath]
            self._render(self.site.getResourceFor(self))
        except Exception:
            self.failed(Failure())

    def _about_server(self) -> None:
        """``OPTIONS *`` asks whether there is a server, and nothing more."""
        if self.method == b"OPTIONS":
            self.setHeader(b"Content-Length", b"0")
            self.write(b"")
            self.finish()
        else:
            self.refuse(MethodNotAllowed("Only OPTIONS may be asked of *."))

    def _render(self, resource: IResource) -> None:
        try:
            body: Any = resource.render(self)
        except UnsupportedMethod as error:
            allowed = b", ".join(error.allowedMethods)
            self.refuse(
                MethodNotAllowed(
                    f"This path answers {allowed.decode()} only.", headers=((b"Allow", allowed),)
                )
            )
            return
        if body is not NOT_DONE_YET:
            self.setHeader(b"content-length", b"%d" % len(body))
            self.write(body)
            self.finish()

    def refuse(self, error: ProxyError) -> None:
        """Answer with an error."""
        send_reply(self, render(error, new_request_id(), self.site.shape_of(self.path)))

    def failed(self, failure: Failure) -> None:
        """A fault of ours: logged, and told without its traceback."""
        self._log.failure("a resource failed", failure=failure)
        if self.disconnected or self.finished:
            return
        if self.startedWriting:
            self.channel.abort()
        else:
            self.refuse(InternalError("The gateway failed to answer this request."))

    def connectionLost(self, reason: Failure) -> None:
        """The client has left."""
        self.disconnected = True
        lost, told, self._lost, self._told = self._lost, self._told, None, None
        if lost is not None:
            lost()
        if told is not None:
            told.errback(reason)
        self.content.close()

    # What there is to know of it.

    @property
    def requestHeaders(self) -> Headers:
        """Those of the request, for Twisted's resources."""
        if self._headers is None:
            self._headers = Headers()
            for name, value in self.headers:
                self._headers.addRawHeader(name, value)
        return self._headers

    def getHeader(self, name: bytes) -> bytes | None:
        values = self.requestHeaders.getRawHeaders(name)
        return values[-1] if values else None

    @property
    def client(self) -> IAddress:
        """The other end of the connection."""
        return self.channel.getPeer()

    def getClientAddress(self) -> IAddress:
        return self.channel.getPeer()

    def getHost(self) -> IAddress:
        return self.channel.getHost()

    def isSecure(self) -> bool:
        return self.channel.isSecure()

    def when_lost(self, lost: Callable[[], object]) -> None:
        """Have it called if the client leaves before the answer is whole."""
        self._lost = lost

    def notifyFinish(self) -> Deferred[None]:
        """
        Fires when the answer is whole, fails when the client leaves before.
        """
        if self._told is None:
            self._told = Deferred()
        return self._told

    # Its answer.

    @property
    def responseHeaders(self) -> Headers:
        """Those of the answer, for Twisted's resources."""
        if self._answer_headers is None:
            self._answer_headers = Headers()
        return self._answer_headers

    def setHeader(self, name: bytes, value: bytes) -> None:
        self.responseHeaders.setRawHeaders(name, [value])

    def setResponseCode(self, code: int, message: bytes | None = None) -> None:
        self.code = code
        self.code_message = PHRASES.get(code, b"Unknown") if message is None else message

    def setLastModified(self, when: float) -> None:
        """
        Tell since when the content is as it is. The answer is sent in any case.

        :param when: POSIX seconds.
        """
        self.setHeader(b"Last-Modified", _date(int(when)))

    def setETag(self, etag: bytes) -> None:
        """Tell which content it is. The answer is sent in any case."""
        self.setHeader(b"ETag", etag)

    def write(self, data: bytes) -> None:
        """Send a piece of the answer, after its head."""
        if self.finished or self.disconnected:
            return
        if not self.startedWriting:
            date = (b"Date", _date(int(self.site.wall_seconds())))
            self.head(self.code, self.code_message, [date], data)
        elif data and not self._bodiless:
            self.channel.write(data)

    @property
    def writer(self) -> Callable[[bytes], None]:
        """
        What :meth:`write` comes down to from now on, for whoever writes each event of a
        stream: not to be called when the answer is whole, or the client gone.
        """
        begun = self.startedWriting and not (self._bodiless or self.disconnected)
        return self.channel.write if begun else self.write

    def head(self, status: int, phrase: bytes, headers: HeaderList, data: bytes = b"") -> None:
        """
        Send the head of the answer, and the first piece of it.

        :param headers: beside those that have been set.
        """
        if self.startedWriting or self.disconnected:
            return
        self.startedWriting = True
        if self._answer_headers is not None:
            headers = [
                *headers,
                *(
                    (name, value)
                    for name, values in self._answer_headers.getAllRawHeaders()
                    for value in values
                ),
            ]
        cors = self.site.cors
        if cors is not None:
            headers = cors.marked(self, headers)
        self._bodiless = self.method == b"HEAD" or status in (204, 304)
        self.channel.writeHeaders(
            self.clientproto, status, phrase, headers, b"" if self._bodiless else data
        )

    def finish(self) -> None:
        """The answer is whole."""
        if self.finished or self.disconnected:
            return
        if not self.startedWriting:
            self.write(b"")
        self.finished = True
        told, self._lost, self._told = self._told, None, None
        if told is not None:
            told.callback(None)
        self.channel.requestDone(self)
        self.content.close()

    def let_go(self) -> None:
        """
        Keep nothing of what was asked but its first line: an answer has begun that may
        take hours, and nobody will look.
        """
        self.headers = NO_HEADERS
        self.postpath.clear()
        self._headers = None
        self.channel.let_go()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.channel.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        self.channel.unregisterProducer()


def inbound_request(request: Request, raw_path: bytes | None = None) -> InboundRequest:
    """
    A request whose body is here, as the rest of the house sees it.

    :param raw_path: below the gateway's prefix; None: there is none.
    """
    uri, path, headers = request.uri, request.path, request.headers
    site = request.site
    channel = request.channel
    peer = channel.peer_host
    if site.trusted_proxies:
        peer = client_address(peer, headers, site.trusted_proxies)
    # By position: names take three times as long.
    return InboundRequest(
        new_request_id(),
        request.method,
        path if raw_path is None else usual_path(raw_path),
        uri[len(path) + 1 :] if len(uri) > len(path) else None,
        headers if isinstance(headers, Indexed) else Indexed(headers),
        request.content,
        peer,
        request.received,
        site.wall_seconds(),
        path,
        client_certificate(channel.transport) if channel.secure else None,
    )


def new_request_id() -> str:
    """
    A UUID of version 7 (RFC 9562): the time in milliseconds, then 72 random bits.

    The ledger's key: in the order of time, rows that come one after the other stand beside
    each other in its index, however many there are.
    """
    text = (int(time.time() * 1000).to_bytes(6, "big") + os.urandom(9)).hex()
    return f"{text[:8]}-{text[8:12]}-7{text[12:15]}-a{text[15:18]}-{text[18:]}"


def send_reply(request: Request, reply: Reply) -> None:
    """Answer a request with a whole reply and finish it."""
    headers = [
        *reply.headers,
        (b"Server", b"txbedrock"),
        (b"Date", _date(int(request.site.wall_seconds()))),
        (b"Content-Length", b"%d" % len(reply.body)),
    ]
    request.head(reply.status, PHRASES.get(reply.status, b""), headers, reply.body)
    request.finish()


@lru_cache(maxsize=64)
def _date(seconds: int) -> bytes:
    """A time as HTTP writes it."""
    return formatdate(seconds, usegmt=True).encode("ascii")
