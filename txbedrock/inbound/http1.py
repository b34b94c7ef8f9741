"""
HTTP/1.1 of a client's connection: what it may send, and how long it may take.

Parsing is llhttp's (``httptools``); framing of answers, limits and order are here.
"""

from __future__ import annotations

import uuid
from collections import deque
from typing import TYPE_CHECKING, Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IDelayedCall, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from txbedrock.core.headers import HeaderList
from txbedrock.core.replies import render
from txbedrock.errors import BadHttp, BodyTimeout, HeadersTooLarge, ProxyError
from txbedrock.inbound.request import PHRASES, Request
from txbedrock.writing import write_now

if TYPE_CHECKING:
    from txbedrock.inbound.site import ClientLimits, Site

__all__ = ["Channel"]

# Note [One request at a time]
# ----------------------------
# llhttp parses all that it is given, so a client that sends the next request before it
# has the answer to the last one makes several of one piece of data. They wait in line, and
# the connection is not read meanwhile: what waits is at most one piece. A client that
# does not do so is read on while it waits for its answer, or nobody would see it leave.
#
# Answers go out in the order of the requests. What cannot be parsed is refused when all
# before it are answered.
#
# Note [What llhttp takes, and we do not]
# ---------------------------------------
# - Versions other than 1.0 and 1.1, among them the 0.9 without a version.
# - A transfer coding other than ``chunked``, or any in HTTP/1.0, where it was not known:
#   one of two servers in a row would not see the body, and take it for a request.
# - CONNECT.
# - A second Host, or none in HTTP/1.1 (RFC 9112, 3.2).
#
# What asks for an upgrade (curl --http2, Java's client ask for h2c with each request) is
# answered as HTTP/1.1. llhttp stops before its body, takes none of it for a body: that is
# for another parser, which is told the framing and nothing else.

_LAST_WRITES_S = 0.05
_MAX_LINE = 16 * 1024
_MAX_HEADER = 64 * 1024
_MAX_FIELDS = 500
_MAX_FRAMING = 16 * 1024
"""Of chunk extensions and trailers, between two pieces of a body."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Channel(Protocol):
    """
    An HTTP/1.1 connection of a client.

    Each phase of a request has its own time limit. What is not HTTP is answered in the
    shape that SDKs read.
    """

    protocol_name = "http/1.1"
    site: Site
    refused = False
    _log = Logger()

    def __init__(self, site: Site) -> None:
        self.site = site
        self.limits: ClientLimits = site.limits
        self.peer_host = "-"
        self.secure = False
        self._clock = site.clock
        self._parser = HttpRequestParser(self)
        self._phase = "idle"
        self._waiting: deque[Request] = deque()
        self._unread: list[bytes] = []
        self._reading = True
        self._last: Request | None = None
        """After its answer the connection closes."""

        self._timer: IDelayedCall | None = None
        self._deadline: float | None = None
        self._linger: IDelayedCall | None = None
        self._cut: IDelayedCall | None = None
        self._tcp: Any = None
        # The request that is being read.
        self._arriving: Request | None = None
        self._url = b""
        self._fields: HeaderList = []
        self._size = 0
        self._head_size = 0
        self._framing = 0
        self._length: int | None = None
        self._coded = False
        self._expects = False
        self._hosts = 0
        self._upgrades = False
        self._replay = False
        self._continues = False
        # The one that is being answered.
        self._request: Request | None = None
        self._chunked = False
        self._advancing = False
        self._deaf = False
        """Whether nothing more is taken of the client."""

        self._refusal: ProxyError | None = None

    def connectionMade(self) -> None:
        tcp: Any = self.transport
        self._tcp = tcp
        set_no_delay = getattr(tcp, "setTcpNoDelay", None)
        if set_no_delay is not None:
            set_no_delay(True)
        self.secure = ISSLTransport.providedBy(tcp)
        self.peer_host = getattr(tcp.getPeer(), "host", None) or "-"
        self.site.connected(self)
        self._limit(self.limits.header_timeout_s)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.disconnected(self)
        for timer in (self._linger, self._cut, self._timer):
            if timer is not None and timer.active():
                timer.cancel()
        self._timer = self._deadline = None
        self._drop(reason)

    def _drop(self, reason: Failure) -> None:
        """Take nothing more, and forget what is not answered."""
        self._deaf = True
        requests = [self._request, *self._waiting, self._arriving]
        self._waiting.clear()
        self._unread.clear()
        self._request = self._arriving = self._refusal = None
        for request in requests:
            if request is not None:
                request.connectionLost(reason)

    # Who a connection is.

    def getPeer(self) -> IAddress:
        peer: IAddress = self._tcp.getPeer()
        return peer

    def getHost(self) -> IAddress:
        host: IAddress = self._tcp.getHost()
        return host

    def isSecure(self) -> bool:
        """Is this TLS?"""
        return self.secure

    @property
    def idle(self) -> bool:
        """Between two requests, with nothing of the next one received."""
        return self._phase == "idle"

    def loseConnection(self) -> None:
        """Close it when what was written is sent."""
        self._tcp.loseConnection()

    def abort(self) -> None:
        """Cut the connection now, so that nothing sent so far looks whole."""
        self._tcp.abortConnection()

    def cut_off(self) -> None:
        """
        The same for an answer, after a moment for what was written to it just now: that
        would be lost otherwise, the head with it.
        """
        if self._cut is None:
            self._cut = self._clock.callLater(_LAST_WRITES_S, self.abort)

    # Time limits. A timer that is late is cheaper than one that is always moved.

    def _limit(self, seconds: float | None) -> None:
        """From now on."""
        if seconds is None:
            self._deadline = None
            return
        deadline = self._deadline = self._clock.seconds() + seconds
        timer = self._timer
        if timer is None:
            self._timer = self._clock.callLater(seconds, self._look)
        elif timer.getTime() > deadline:
            timer.reset(seconds)

    def _look(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        left = self._deadline - self._clock.seconds()
        if left > 0:
            self._timer = self._clock.callLater(left, self._look)
        elif self._phase == "body" or (self._phase == "header" and self._has_begun):
            what = "header" if self._phase == "header" else "body"
            self.refuse(BodyTimeout(f"The {what} of the request did not arrive in time."))
        else:
            self.loseConnection()

    @property
    def _has_begun(self) -> bool:
        return bool(self._size)

    # A request comes in.

    def dataReceived(self, data: bytes) -> None:
        if self._deaf:
            return
        phase = self._phase
        if phase == "answer":
            # See Note [One request at a time].
            self._unread.append(data)
            self._read(False)
            return
        if phase == "idle":
            self._phase = "header"
        elif phase == "body":
            self._limit(self.limits.upload_idle_timeout_s)
        self._feed(data)
        self._advance()
        if self._phase == "header" and phase == "idle" and not self._deaf:
            # It did not come in one piece.
            self._limit(self.limits.header_timeout_s)

    def _feed(self, data: bytes) -> None:
        self._size += len(data)
        self._framing += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._go_on(data[upgrade.args[0] :])
            return
        except HttpParserError as error:
            if self._last is None:
                why = error.__context__
                self.refuse(
                    why
                    if isinstance(why, ProxyError)
                    else BadHttp("The request is not valid HTTP/1.1.")
                )
            # After the last request of a connection anything may follow.
            self._deaf = True
            return
        if self._phase == "header":
            if self._size > _MAX_HEADER:
                self.refuse(_too_large())
        elif self._phase == "body" and self._framing > _MAX_FRAMING + len(data):
            self.refuse(BadHttp("The body has more framing than content."))

    def _go_on(self, rest: bytes) -> None:
        """After an upgrade that was asked for and is not made."""
        if self._deaf:
            return
        self._parser = HttpRequestParser(self)
        if self._arriving is not None:
            self._upgrades = False
            self._replay = True
            framing = (
                b"Transfer-Encoding: chunked"
                if self._length is None
                else b"Content-Length: %d" % self._length
            )
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)
            self._replay = False
        if rest:
            self._feed(rest)

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._replay:
            return
        self._size = max(self._size, 1)
        self._head_size = 0
        self._url = b""
        self._fields = []
        self._framing = 0
        self._length = None
        self._coded = self._expects = self._upgrades = False
        self._hosts = 0

    def on_url(self, url: bytes) -> None:
        if not self._replay:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._replay or self._arriving is not None:
            return  # A trailer.
        value = value.rstrip(b" \t")
        self._fields.append((name, value))
        size = len(name)
        line = size + len(value)
        self._head_size += line
        if line > _MAX_LINE or self._head_size > _MAX_HEADER or len(self._fields) > _MAX_FIELDS:
            raise _too_large()
        if size in _SIZES:
            self._note(name.lower(), value)

    def _note(self, name: bytes, value: bytes) -> None:
        """What has to do with the connection."""
        if name == b"content-length":
            self._length = int(value)
        elif name == b"host":
            self._hosts += 1
        elif name == b"transfer-encoding":
            if self._coded or value.lower() != b"chunked":
                raise BadHttp("The transfer coding of the request is not known: use chunked.")
            self._coded = True
        elif name == b"expect":
            self._expects = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        if self._replay:
            return
        if self._last is not None:
            raise BadHttp("The connection is to close: there is no other request on it.")
        parser = self._parser
        version = parser.get_http_version()
        method = parser.get_method()
        if version not in ("1.1", "1.0") or method == b"CONNECT":
            raise BadHttp("The gateway takes HTTP/1.0, HTTP/1.1 and HTTP/2, and no CONNECT.")
        if self._hosts > 1 or (not self._hosts and version == "1.1"):
            raise BadHttp("The request is not valid HTTP/1.1: it must have one Host header.")
        if self._coded and version == "1.0":
            raise BadHttp("HTTP/1.0 has no transfer coding.")
        if len(self._url) > _MAX_LINE:
            raise _too_large()
        self._upgrades = parser.should_upgrade()
        self._phase = "body"
        request = Request(
            self,
            method,
            self._url,
            b"HTTP/1.1" if version == "1.1" else b"HTTP/1.0",
            self._fields,
        )
        self._arriving = request
        if self.site.is_last(self.site.bounds.begun(self)):
            self._last = request
        length = self._length if self._length is not None or self._coded else 0
        if length != 0:
            self._limit(self.limits.upload_idle_timeout_s)
        request.begin(length)
        if self._expects and length != 0 and version == "1.1" and not self._deaf:
            self._continues = True
            if self._request is None and not self._waiting:
                self._continue()

    def _continue(self) -> None:
        """The client may send the body."""
        self._continues = False
        self._send(_CONTINUE)

    def on_body(self, data: bytes) -> None:
        self._framing = 0
        self._continues = False
        if self._arriving is not None and not self._deaf:
            self._arriving.feed(data)

    def on_message_complete(self) -> None:
        request = self._arriving
        if request is None or self._replay or self._deaf:
            return
        if self._upgrades and (self._length or self._coded):
            return  # Its body comes yet.
        self._arriving = None
        self._size = 0
        if request.clientproto == b"HTTP/1.0" or not self._parser.should_keep_alive():
            self._last = request
        self._phase = "answer"
        self._deadline = None
        self.site.bounds.whole(self)
        self._waiting.append(request)

    def _advance(self) -> None:
        """Answer what waits, in order."""
        if self._advancing:
            return
        self._advancing = True
        while self._request is None and self._waiting:
            request = self._request = self._waiting.popleft()
            request.whole()
        self._advancing = False
        if self._request is None and self._tcp.connected:
            self._rest()

    def _rest(self) -> None:
        """Nothing is to be answered now."""
        if self._refusal is not None:
            self._write_refusal(self._refusal)
        elif self._deaf:
            return
        elif self._arriving is not None:
            if self._continues:
                self._continue()
            self._phase = "body"
            self._limit(self.limits.upload_idle_timeout_s)
            self._read_on()
        elif self._phase == "answer":
            self._phase = "header" if self._size else "idle"
            self._limit(
                self.limits.header_timeout_s if self._size else self.limits.keep_alive_timeout_s
            )
            self._read_on()

    # The disk is slower than the client.

    def pause_upload(self) -> None:
        self._deadline = None
        self._read(False)

    def resume_upload(self) -> None:
        if self._phase == "body" and not self.refused:
            self._limit(self.limits.upload_idle_timeout_s)
        self._read(True)

    def _read(self, wanted: bool) -> None:
        if wanted is self._reading:
            return
        self._reading = wanted
        if wanted:
            self._tcp.resumeProducing()
        else:
            self._tcp.pauseProducing()

    # An answer goes out.

    def writeHeaders(
        self, version: bytes, status: int, phrase: bytes, headers: HeaderList, data: bytes
    ) -> None:
        """
        Write a head, and the first piece of the body with it.

        :param data: empty if there is none yet, or never.
        """
        request = self._request
        assert request is not None
        lines = [b"HTTP/1.1 %d %b" % (status, phrase)]
        framed = status in (204, 304) or request.method == b"HEAD"
        for name, value in headers:
            if len(name) == 14 and name.lower() == b"content-length":
                framed = True
            lines.append(b"%b: %b" % (name, value))
        if self.site.draining:
            self._last = request
        self._chunked = False
        if not framed:
            if version == b"HTTP/1.1":
                self._chunked = True
                lines.append(b"Transfer-Encoding: chunked")
            else:
                self._last = request  # Its end is that of the connection.
        if self._last is request:
            lines.append(b"Connection: close")
        lines.append(b"\r\n")
        head = b"\r\n".join(lines)
        if head.count(b"\n") != len(lines):
            head = _sanitised(lines)
        if not data:
            self._send(head)
        elif self._chunked:
            self._send(b"%b%x\r\n%b\r\n" % (head, len(data), data))
        else:
            self._send(head + data)

    def write(self, data: bytes) -> None:
        if not self._chunked:
            self._send(data)
        elif len(data) < _JOINED:
            self._send(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._tcp.writeSequence((b"%x\r\n" % len(data), data, b"\r\n"))

    def _send(self, data: bytes) -> None:
        write_now(self._tcp, data)

    def requestDone(self, request: Request) -> None:
        """The answer is whole."""
        if self._chunked:
            self._chunked = False
            self._send(b"0\r\n\r\n")
        self._request = None
        self.site.bounds.over(self)
        if self._last is not request and not self.site.draining:
            self._advance()
            return
        self._phase = "idle"
        self._drop(Failure(ConnectionDone()))
        self.loseConnection()

    def _read_on(self) -> None:
        if self._unread:
            # Not in the call of whoever finished the answer.
            self._clock.callLater(0, self._take_unread)
        else:
            self._read(True)

    def _take_unread(self) -> None:
        data = b"".join(self._unread)
        self._unread.clear()
        if data:
            self.dataReceived(data)
        if not self._unread and not self._deaf:
            self._read(True)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._tcp.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        self._tcp.unregisterProducer()

    # Refusals below the level of a request.

    def refuse(self, error: ProxyError) -> None:
        """
        Answer as soon as it is its turn, take nothing more, and close.
        """
        if self._deaf:
            return
        self._deaf = True
        arriving, self._arriving = self._arriving, None
        if arriving is not None:
            arriving.connectionLost(Failure(ConnectionDone()))
        if self._request is None and not self._waiting:
            self._write_refusal(error)
        else:
            self._refusal = error

    def _write_refusal(self, error: ProxyError) -> None:
        """
        What the client still sends is read and thrown away for a while: a
        connection closed over unread data is reset, and the answer lost.
        """
        self.refused = True
        self.site.refused("body" if self._phase == "body" else "header")
        self._refusal = None
        reply = render(error, str(uuid.uuid4()), self.site.shape_of(self._url))
        self._limit(None)
        lines = [b"HTTP/1.1 %d %b" % (reply.status, PHRASES.get(reply.status, b"Refused"))]
        lines += [b"%b: %b" % pair for pair in reply.headers]
        lines += [b"Content-Length: %d" % len(reply.body), b"Connection: close", b"", b""]
        self._send(b"\r\n".join(lines) + reply.body)
        self._log.info(
            "{peer} refused with {status} {code}: {message}",
            peer=self.peer_host,
            status=reply.status,
            code=error.code,
            message=error.message,
        )
        self._read(True)
        if not self.secure:
            # TLS cannot be closed in one direction; Connection: close has to do.
            lose_write = getattr(self._tcp, "loseWriteConnection", None)
            if lose_write is not None:
                lose_write()
        self._linger = self._clock.callLater(self.limits.linger_s, self.abort)


def _too_large() -> HeadersTooLarge:
    return HeadersTooLarge(
        f"The request's header is too large: at most {_MAX_LINE} bytes a line, "
        f"{_MAX_HEADER} bytes and {_MAX_FIELDS} lines in all."
    )


def _sanitised(lines: list[bytes]) -> bytes:
    """A head without the line breaks that are none of HTTP's."""
    clean = [b" ".join(line.split(b"\n")).replace(b"\r", b" ") for line in lines[:-1]]
    return b"\r\n".join([*clean, b"\r\n"])


# Of the names in _note, by which most headers are passed by.
_SIZES = frozenset(map(len, (b"content-length", b"host", b"transfer-encoding", b"expect")))

# What is copied rather than written in three pieces.
_JOINED = 32 * 1024
