"""
HTTP/1.1 of a client's connection: what it may send, and how long it may take.

Heads are parsed by llhttp (``httptools``); bodies, framing of answers, limits and order
are here.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IAddress, IDelayedCall, IPushProducer, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from txbedrock.core.headers import NO_HEADERS, HeaderList, Indexed
from txbedrock.core.replies import render
from txbedrock.errors import BadHttp, BodyTimeout, HeadersTooLarge, ProxyError
from txbedrock.inbound.request import PHRASES, Request, new_request_id
from txbedrock.writing import write_now

if TYPE_CHECKING:
    from txbedrock.inbound.site import ClientLimits, Site

__all__ = ["Channel"]

# Note [One request at a time]
# ----------------------------
# What a client sends behind a request waits, as the bytes that it is, until the answer is
# written and the client has taken it: a request is read when it is its turn. So answers go
# out in the order of the requests, what cannot be parsed is refused when all before it are
# answered, and a connection holds one request and at most one piece of data, however many
# requests that is. The connection is not read meanwhile. A client that does not send ahead
# is read on while it waits for its answer, or nobody would see it leave.
#
# Each of the waiting gets a turn of the reactor's own.
#
# Note [What llhttp takes, and we do not]
# ---------------------------------------
# - A request line with more than its two spaces, or of RTSP or ICE. llhttp does not tell
#   of them, so the line is compared with what it should have been.
# - More before a request than one empty line.
# - Versions other than 1.0 and 1.1, among them the 0.9 without a version.
# - A transfer coding other than ``chunked``, or any in HTTP/1.0, where it was not known:
#   one of two servers in a row would not see the body, and take it for a request.
# - CONNECT.
# - A second Host, or none in HTTP/1.1 (RFC 9112, 3.2).
#
# What asks for an upgrade (curl --http2, Java's client ask for h2c with each request) is
# answered as HTTP/1.1.
#
# Note [Why llhttp reads heads only]
# ----------------------------------
# It says nowhere how far it has come. After a body that it has read nobody knows where the
# next request begins, and it reads that one, too. A body whose length is told need not be
# parsed, and the chunked coding is short. llhttp gets a head as it comes, for what is no
# HTTP (TLS, say) is to be refused at once, but never what follows the empty line.

_LAST_WRITES_S = 0.05
_MAX_LINE = 16 * 1024
_MAX_HEADER = 64 * 1024
_MAX_FIELDS = 500
_MAX_CHUNK_LINE = 1000
_MAX_FRAMING = 16 * 1024
"""Of chunk extensions and trailers, all that a body has."""

_FEW = 16
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_HTTP_1_1 = b"HTTP/1.1"
_HTTP_1_0 = b"HTTP/1.0"
_VERSIONS = {"1.1": _HTTP_1_1, "1.0": _HTTP_1_0}


class _Head:
    """The head of a request, as llhttp finds it."""

    __slots__ = (
        "blank",
        "closes",
        "coded",
        "complete",
        "expects",
        "fields",
        "headers",
        "length",
        "raw",
        "url",
    )

    def __init__(self) -> None:
        self.raw = b""
        """What is here of it."""

        self.blank = b""
        """The empty line before it."""

        self.complete = False
        self.url = b""
        self.fields: HeaderList = []
        self.headers = NO_HEADERS
        """The same, when it is complete."""

        self.length: int | None = None
        self.coded = False
        self.expects = False
        self.closes = False

    def after_blank(self, data: bytes) -> bytes | None:
        """
        One empty line may come before a request (RFC 9112, 2.2).

        :returns: what follows it; None: what comes is neither that nor a request.
        """
        missing = 2 - len(self.blank)
        self.blank += data[:missing]
        rest = data[missing:]
        good = b"\r\n".startswith(self.blank) and rest[:1] not in (b"\r", b"\n")
        return rest if good else None

    # What the parser calls.

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        fields = self.fields
        fields.append((name, value.rstrip(b" \t")))
        if len(fields) > _MAX_FIELDS:
            raise _too_large()

    def on_headers_complete(self) -> None:
        """See what has to do with the connection."""
        self.complete = True
        headers = self.headers = Indexed(self.fields)
        first = headers.first
        if b"content-length" in first:
            self.length = int(first[b"content-length"])
        if b"connection" in first:
            # Some put blanks where commas belong.
            tokens = b",".join(self._all(b"connection")).lower().replace(b",", b" ")
            self.closes = b"close" in tokens.split()
        if b"transfer-encoding" in first:
            if [value.lower() for value in self._all(b"transfer-encoding")] != [b"chunked"]:
                raise BadHttp("The transfer coding of the request is not known: use chunked.")
            self.coded = True
        if b"expect" in first:
            self.expects = self._all(b"expect")[-1].lower() == b"100-continue"

    def _all(self, wanted: bytes) -> list[bytes]:
        """The values of a header."""
        return [value for name, value in self.headers if name.lower() == wanted]

    def checked(self, parser: HttpRequestParser) -> tuple[bytes, bytes]:
        """
        Now that it is complete: is it one that we take?

        :returns: method and version.
        :raises BadHttp: it is not; see Note [What llhttp takes, and we do not].
        """
        if not self.complete:
            raise _not_http()
        method, raw = parser.get_method(), self.raw
        version = _HTTP_1_1  # nearly always
        if method == b"CONNECT" or not raw.startswith(b"%b %b HTTP/1.1\r\n" % (method, self.url)):
            known = _VERSIONS.get(parser.get_http_version())
            if known is None or method == b"CONNECT":
                raise BadHttp("The gateway takes HTTP/1.0, HTTP/1.1 and HTTP/2, and no CONNECT.")
            version = known
            if not raw.startswith(b"%b %b %b\r\n" % (method, self.url, version)):
                raise BadHttp(
                    "The request line is not valid HTTP/1.1: it is a method, a path and "
                    "the version, with one space between them."
                )
        # Of names that differ there is one Host at most.
        first = self.headers.first
        if b"host" not in first:
            good = version == _HTTP_1_0
        else:
            good = len(first) == len(self.headers) or len(self._all(b"host")) == 1
        if not good:
            raise BadHttp("The request is not valid HTTP/1.1: it must have one Host header.")
        if self.coded and version == _HTTP_1_0:
            raise BadHttp("HTTP/1.0 has no transfer coding.")
        return method, version


class _Chunked:
    """A body in the chunked coding. Extensions and trailers are thrown away."""

    __slots__ = ("_allowed", "_begun", "_ending", "_left", "_trailing", "rest")

    def __init__(self) -> None:
        self._begun = b""  # of a line
        self._left = 0  # of a chunk
        self._ending = False
        """Between a chunk and its line break."""

        self._trailing = False
        self._allowed = _MAX_FRAMING
        self.rest: bytes | None = None
        """What follows the body, once it is whole."""

    def feed(self, data: bytes) -> list[bytes]:
        """
        :returns: the content in the next piece of it.
        :raises BadHttp: it is not in the chunked coding, or has more framing than we take.
        """
        if self._begun:
            data = self._begun + data
        content: list[bytes] = []
        at, end = 0, len(data)
        while at < end:
            if not (self._left or self._ending or self._trailing):
                # Chunks that are here whole, without extensions: nearly all.
                while found := _CHUNK_SIZE.match(data, at):
                    size = int(found[1], 16)
                    begins = found.end()
                    ends = begins + size
                    if not size or not data.startswith(b"\r\n", ends):
                        break
                    content.append(data[begins:ends])
                    at = ends + 2
                if at == end:
                    break
            if self._left:
                piece = data[at : at + self._left]
                content.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._ending = not self._left
            elif self._ending:
                if not data.startswith(b"\r\n", at):
                    if data[at:] == b"\r":
                        break
                    raise _not_chunked()
                at += 2
                self._ending = False
            else:
                longest = self._allowed if self._trailing else _MAX_CHUNK_LINE
                line_end = data.find(b"\r\n", at, at + longest + 2)
                if line_end < 0:
                    if end - at > longest + 1:
                        raise _too_much_framing()
                    break
                line = data[at:line_end]
                at = line_end + 2
                if not self._trailing:
                    self._size(line)
                elif line:
                    self._trailer(line)
                else:
                    self.rest = data[at:]
                    break
        self._begun = data[at:] if self.rest is None else b""
        # Small pieces would cost more, each of them, than what is in them.
        return content if len(content) <= _FEW else [b"".join(content)]

    def _size(self, line: bytes) -> None:
        found = _CHUNK_LINE.fullmatch(line)
        if found is None:
            raise _not_chunked()
        size, extensions = found.groups(b"")
        self._left = int(size, 16)
        self._trailing = not self._left
        self._count(extensions)

    def _trailer(self, line: bytes) -> None:
        if _FIELD.fullmatch(line) is None:
            raise _not_chunked()
        self._count(line)

    def _count(self, framing: bytes) -> None:
        self._allowed -= len(framing)
        if self._allowed < 0:
            raise _too_much_framing()


@implementer(IPushProducer)
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
        self._phase = "idle"
        self._unread: list[bytes] = []
        """What came ahead of its turn."""

        self._reading = True
        self._disk_busy = False
        self._full = False
        """Whether the client takes its answers slower than they are written."""

        self._deaf = False
        """Whether nothing more is taken of the client."""

        self._closing = False
        self._last: Request | None = None
        """After its answer the connection closes."""

        self._timer: IDelayedCall | None = None
        self._due = 0.0
        """When the timer goes off."""

        self._deadline: float | None = None
        self._linger: IDelayedCall | None = None
        self._cut: IDelayedCall | None = None
        self._tcp: Any = None
        # The request that is being read.
        self._head: _Head | None = None
        self._parser: HttpRequestParser | None = None
        self._url = b""
        self._arriving: Request | None = None
        self._left = 0
        self._chunks: _Chunked | None = None
        # The one that is being answered.
        self._request: Request | None = None
        self._chunked = False

    def connectionMade(self) -> None:
        tcp: Any = self.transport
        self._tcp = tcp
        set_no_delay = getattr(tcp, "setTcpNoDelay", None)
        if set_no_delay is not None:
            set_no_delay(True)
        tcp.registerProducer(self, True)
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
        requests = (self._request, self._arriving)
        self._unread.clear()
        self._request = self._arriving = self._head = self._parser = self._chunks = None
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
        """Between two requests, the last answer sent, and nothing of the next one received."""
        return self._phase == "idle" and not self._full

    def loseConnection(self) -> None:
        """
        Close it when what was written is sent; a client that does not take it within the
        time of an idle connection is cut off.
        """
        if not self._closing:
            self._take_no_more()
        self._tcp.loseConnection()
        self._limit(self.limits.keep_alive_timeout_s)

    def _take_no_more(self) -> None:
        self._deaf = True
        self._read()  # A paused TLS connection would not see its other end agree.
        self._closing = True
        self._tcp.unregisterProducer()

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
            self._due = deadline
            self._timer = self._clock.callLater(seconds, self._look)
        elif self._due > deadline:
            self._due = deadline
            timer.reset(seconds)

    def _look(self) -> None:
        self._timer = None
        if self._deadline is None:
            return
        left = self._deadline - self._clock.seconds()
        if left > 0:
            self._due = self._deadline
            self._timer = self._clock.callLater(left, self._look)
        elif self._closing:
            self.abort()
        elif self._phase == "body" or (self._head is not None and self._head.raw):
            what = "body" if self._phase == "body" else "header"
            self.refuse(BodyTimeout(f"The {what} of the request did not arrive in time."))
        else:
            self.loseConnection()

    # A request comes in.

    def dataReceived(self, data: bytes) -> None:
        if self._deaf:
            return
        if self._unread or self._phase == "answer":
            # See Note [One request at a time].
            self._unread.append(data)
            self._read()
        elif self._phase == "body":
            self._take_body(data)
        else:
            self._take_head(data)

    def _take_head(self, data: bytes) -> None:
        head, parser = self._head, self._parser
        first = head is None
        if head is None or parser is None:
            head = self._head = _Head()
            parser = self._parser = HttpRequestParser(head)
            self._phase = "header"
        if not head.raw and (head.blank or data[0] in b"\r\n"):
            rest = head.after_blank(data)
            if rest is None:
                self.refuse(_not_http())
                return
            data = rest
        begun = len(head.raw)
        raw = head.raw = head.raw + data if begun else data
        end = raw.find(b"\r\n\r\n", max(0, begun - 3))
        size = len(raw) if end < 0 else end + 4
        try:
            parser.feed_data(data[: size - begun])
        except HttpParserUpgrade:
            pass  # It is not made.
        except HttpParserError as error:
            why = error.__context__
            self.refuse(why if isinstance(why, ProxyError) else _not_http())
            return
        if size > _MAX_HEADER:
            self.refuse(_too_large())
        elif end >= 0:
            head.raw = raw[:size]
            if size > _MAX_LINE and max(map(len, head.raw.split(b"\r\n"))) > _MAX_LINE:
                self.refuse(_too_large())
                return
            self._begin(head, parser, raw[size:])
        elif first:
            # It did not come in one piece.
            self._limit(self.limits.header_timeout_s)

    def _begin(self, head: _Head, parser: HttpRequestParser, rest: bytes) -> None:
        """A head is here. ``rest`` came with it."""
        try:
            method, version = head.checked(parser)
        except ProxyError as error:
            self.refuse(error)
            return
        self._url = head.url
        self._head = self._parser = None
        self._phase = "body"
        request = self._arriving = Request(self, method, head.url, version, head.headers)
        length = None if head.coded else head.length or 0
        request.begin(length)
        whole = length is not None and length <= len(rest) and not self._deaf
        site = self.site
        is_last = site.is_last(site.bounds.begun(self, whole=whole))
        if self._deaf:
            return
        if is_last or head.closes or version == _HTTP_1_0:
            self._last = request
        if whole:
            # Nearly always the body has come with the head.
            if length:
                request.content.write(rest[:length])
                rest = rest[length:]
            self._answer(request, rest)
            return
        self._left = length or 0
        self._chunks = _Chunked() if length is None else None
        if rest:
            self._take_body(rest)
            return
        self._limit(self.limits.upload_idle_timeout_s)
        if head.expects and version == _HTTP_1_1:
            write_now(self._tcp, _CONTINUE)

    def _take_body(self, data: bytes) -> None:
        request = self._arriving
        assert request is not None
        self._limit(self.limits.upload_idle_timeout_s)
        rest: bytes | None
        chunks = self._chunks
        if chunks is None:
            content = [data[: self._left]]
            rest = data[self._left :] if len(data) >= self._left else None
            self._left -= len(content[0])
        else:
            try:
                content = chunks.feed(data)
            except BadHttp as error:
                self.refuse(error)
                return
            rest = chunks.rest
        for piece in content:
            request.feed(piece)
        if rest is not None and not self._deaf:
            self.site.bounds.whole(self)
            self._answer(request, rest)

    def _answer(self, request: Request, rest: bytes) -> None:
        """A request is here. ``rest`` came behind it."""
        self._request = request
        self._arriving = self._chunks = None
        self._phase = "answer"
        self._deadline = None
        if rest and self._last is not request:
            self._unread.append(rest)
            self._read()
        request.whole()

    def _await_next(self) -> None:
        """Nothing is to be answered now."""
        if self.site.draining:
            self.loseConnection()
            return
        if self._unread:
            self._phase = "header"
            self._limit(self.limits.header_timeout_s)
            if not self._full:
                # Not in the call of whoever finished the answer.
                self._clock.callLater(0, self._take_unread)
        else:
            self._phase = "idle"
            self._limit(self.limits.keep_alive_timeout_s)
        self._read()

    def _take_unread(self) -> None:
        if self._phase != "header" or not self._unread:
            return
        data = b"".join(self._unread)
        self._unread.clear()
        self._take_head(data)
        self._read()

    # Which of both sides waits for the other.

    def pause_upload(self) -> None:
        """The disk is slower than the client."""
        self._disk_busy = True
        self._deadline = None
        self._read()

    def resume_upload(self) -> None:
        self._disk_busy = False
        if self._phase == "body" and not self._deaf:
            self._limit(self.limits.upload_idle_timeout_s)
        self._read()

    def pauseProducing(self) -> None:
        """The client is slower than the answers: it gets no more of them meanwhile."""
        self._full = True
        self._read()

    def resumeProducing(self) -> None:
        self._full = False
        waits = self._phase == "idle" or (self._phase == "header" and self._unread)
        if waits and not self._deaf:
            self._await_next()
        else:
            self._read()

    def stopProducing(self) -> None:
        """Its connection is lost, as it is told otherwise."""

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Of an answer; instead of the channel, which is one between all answers."""
        self._tcp.unregisterProducer()
        full, self._full = self._full, False
        self._tcp.registerProducer(producer, streaming)
        if full and streaming:
            producer.pauseProducing()
        self._read()

    def let_go(self) -> None:
        """The answer will take a while. Nothing of the request is kept here as it is."""

    def unregisterProducer(self) -> None:
        self._tcp.unregisterProducer()
        if not self._closing:
            self._tcp.registerProducer(self, True)

    def _read(self) -> None:
        """Read on, or do not."""
        wanted = self._deaf or not (self._unread or self._full or self._disk_busy)
        if wanted is self._reading or self._closing:
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
        lines = _lines(status, phrase, headers)
        framed = (
            status in (204, 304)
            or request.method == b"HEAD"
            or lines.rfind(b"\nContent-Length: ") > 0
            or lines.lower().find(b"\ncontent-length: ") > 0
        )
        if self.site.draining:
            self._last = request
        self._chunked = False
        if not framed:
            if version == _HTTP_1_1:
                self._chunked = True
                lines += b"Transfer-Encoding: chunked\r\n"
            else:
                self._last = request  # Its end is that of the connection.
        if self._last is request:
            lines += b"Connection: close\r\n"
        if self._chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        write_now(self._tcp, b"%b\r\n%b" % (lines, data))

    def write(self, data: bytes) -> None:
        if not data:
            return  # As a chunk it would be the last.
        if not self._chunked:
            write_now(self._tcp, data)
        elif len(data) < _JOINED:
            write_now(self._tcp, b"%b%b\r\n" % (_size_line(len(data)), data))
        else:
            self._tcp.writeSequence((b"%x\r\n" % len(data), data, b"\r\n"))

    def requestDone(self, request: Request) -> None:
        """The answer is whole."""
        if self._chunked:
            self._chunked = False
            write_now(self._tcp, b"0\r\n\r\n")
        self._request = None
        self.site.bounds.over(self)
        if self._last is request:
            self._phase = "idle"
            self.loseConnection()
        else:
            self._await_next()

    # Refusals below the level of a request.

    def refuse(self, error: ProxyError) -> None:
        """
        Answer now, take nothing more, and close.

        What the client still sends is read and thrown away for a while: a
        connection closed over unread data is reset, and the answer lost.
        """
        if self._deaf:
            return
        url = self._url if self._head is None else self._head.url
        self.refused = True
        self.site.refused("body" if self._phase == "body" else "header")
        self._drop(Failure(ConnectionDone()))
        reply = render(error, new_request_id(), self.site.shape_of(url))
        self._limit(None)
        length = b"%d" % len(reply.body)
        headers = [*reply.headers, (b"Content-Length", length), (b"Connection", b"close")]
        lines = _lines(reply.status, PHRASES.get(reply.status, b"Refused"), headers)
        write_now(self._tcp, b"%b\r\n%b" % (lines, reply.body))
        self._log.info(
            "{peer} refused with {status} {code}: {message}",
            peer=self.peer_host,
            status=reply.status,
            code=error.code,
            message=error.message,
        )
        self._take_no_more()
        if not self.secure:
            # TLS cannot be closed in one direction; Connection: close has to do.
            lose_write = getattr(self._tcp, "loseWriteConnection", None)
            if lose_write is not None:
                lose_write()
        self._linger = self._clock.callLater(self.limits.linger_s, self.abort)


def _not_http() -> BadHttp:
    return BadHttp("The request is not valid HTTP/1.1.")


def _not_chunked() -> BadHttp:
    return BadHttp("The body of the request is not in the chunked coding of HTTP/1.1.")


def _too_much_framing() -> BadHttp:
    return BadHttp("The chunks of the request have too long extensions, or its trailer is.")


def _too_large() -> HeadersTooLarge:
    return HeadersTooLarge(
        f"The request's header is too large: at most {_MAX_LINE} bytes a line, "
        f"{_MAX_HEADER} bytes and {_MAX_FIELDS} lines in all."
    )


def _lines(status: int, phrase: bytes, headers: HeaderList) -> bytes:
    """The lines of an answer's head, without line breaks that are none of HTTP's."""
    lines = [b"HTTP/1.1 %d %b" % (status, phrase), *map(b": ".join, headers), b""]
    written = b"\n".join(lines)
    ended = written.replace(b"\n", b"\r\n")
    if len(ended) - len(written) != len(lines) - 1 or written.find(b"\r") >= 0:
        clean = [b" ".join(line.split(b"\n")).replace(b"\r", b" ") for line in lines]
        return b"\r\n".join(clean)
    return ended


@lru_cache(maxsize=4096)
def _size_line(size: int) -> bytes:
    """What begins a chunk; the events of a stream have few sizes."""
    return b"%x\r\n" % size


_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})\r\n")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(;[\t\x20-\x7e\x80-\xff]*)?")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")

# What is copied rather than written in three pieces.
_JOINED = 32 * 1024
