"""
One request of a client, whatever it came over, and its answer.
"""

from __future__ import annotations

import uuid
from http import HTTPStatus
from typing import TYPE_CHECKING

from twisted.python.failure import Failure
from twisted.web import server

from txbedrock.core.addresses import client_address
from txbedrock.core.replies import Reply, render, shape_of
from txbedrock.errors import BodyTooLarge, InternalError
from txbedrock.inbound.body import Body
from txbedrock.interfaces import InboundRequest

if TYPE_CHECKING:
    from txbedrock.inbound.http1 import Channel
    from txbedrock.inbound.site import Site

__all__ = ["PHRASES", "Request", "inbound_request", "send_reply"]


PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
"""Reason phrases; Twisted's own list lacks 429, 431 and others."""


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
    request.setResponseCode(reply.status, PHRASES.get(reply.status, b""))
    for name, value in reply.headers:
        request.responseHeaders.setRawHeaders(name, [value])
    request.setHeader(b"Server", b"txbedrock")
    request.setHeader(b"Content-Length", b"%d" % len(reply.body))
    request.write(b"" if request.method == b"HEAD" else reply.body)
    request.finish()
