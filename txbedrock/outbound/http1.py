"""
HTTP/1.1 on one connection to AWS: a request goes out, its answer comes in.

llhttp reads the heads. Bodies are framed here, because a piece that lies inside a body
is then passed on as it is, and it is known to the byte where an answer ends: whatever
comes after it closes the connection.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from socket import MSG_PEEK
from typing import Protocol as Shape

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import _WrappingProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import (
    IConsumer,
    IHandshakeListener,
    IProtocol,
    IPushProducer,
    ISSLTransport,
)
from twisted.internet.protocol import Protocol
from twisted.internet.tcp import Connection as TCPConnection
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.web._newclient import ParseError, RequestGenerationFailed, RequestTransmissionFailed
from twisted.web.client import ResponseDone, ResponseFailed, ResponseNeverReceived
from twisted.web.http import PotentialDataLoss, _DataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer, IClientRequest, IResponse
from zope.interface import implementer

from txbedrock.core.headers import NO_HEADERS, HeaderList, Indexed, read_answer
from txbedrock.writing import write_now

__all__ = ["Chunks", "Connection", "Owner", "Request", "Response", "collected", "listed"]

# A head is at most so long, interim ones included, and each of its lines.
_HEAD_BYTES = 64 * 1024
_LINE_BYTES = 16 * 1024

# Likewise the line that begins a chunk, and the trailers.
_SIZE_LINE_BYTES = 1024
_TRAILER_BYTES = 64 * 1024

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"[\x21-\x7e]+")
_LF, _CR = b"\n\r"
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2}) ([!-~][ -~]*)?")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_SIZE_LINE_START = re.compile(rb"[0-9A-Fa-f]{1,15}(?:;[\t\x20-\x7e\x80-\xff]*)?\r?")

# Chunks of up to fifteen bytes, as many as there are: with the work of a chunk for each of
# them, 64 KiB of the smallest would take 28 ms.
_SMALL_CHUNKS = re.compile(
    rb"(?:%b)*+" % b"|".join(rb"[%b]\r\n[\x00-\xff]{%d}\r\n" % (b"%x%X" % (n, n), n)
                            for n in range(1, 16))
)  # fmt: skip
_SMALL_DATA = re.compile(
    rb"[0-9A-Fa-f]\r\n(%b)\r\n"
    % b"|".join(rb"(?<=[%b]\r\n)[\x00-\xff]{%d}" % (b"%x%X" % (n, n), n) for n in range(1, 16))
)
# Two chunks within so many bytes are likely to be followed by more of the kind.
_FEW_BYTES = 2 * 15 + 5 + 1
_TRAILERS = re.compile(
    rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\r\n)*\r\n",
)

# What twisted.web's client keeps out of the headers of an answer.
_OF_THE_CONNECTION = frozenset(
    (
        b"content-length",
        b"connection",
        b"keep-alive",
        b"te",
        b"trailers",
        b"transfer-encoding",
        b"upgrade",
        b"proxy-connection",
    )
)

_VERSION_1_0 = b"HTTP", 1, 0
_VERSION_1_1 = b"HTTP", 1, 1

_REPEATABLE = frozenset((b"GET", b"HEAD", b"OPTIONS", b"DELETE", b"TRACE"))

_log = Logger()

_DONE = Failure(ResponseDone("Response body fully received"))


# Requests.


class _Names(dict[bytes, tuple[bytes, bool]]):
    """
    What a line of a head begins with, by a header's name in the case it was given in, and
    whether that is ``Host``. There are few; clients could invent any number.
    """

    def __missing__(self, name: bytes) -> tuple[bytes, bool]:
        """
        :raises ValueError: no name of a header that may be sent.
        """
        lower = name.lower()
        if _TOKEN.fullmatch(name) is None:
            raise ValueError("the name of a header is not a token")
        if lower in (b"content-length", b"transfer-encoding"):
            raise ValueError("the length of a request is its body's to tell")
        if len(self) >= _MOST_NAMES:
            self.clear()
        known = self[name] = b"\r\n" + name + b": ", lower == b"host"
        return known


_MOST_NAMES = 1024
_names = _Names()


def _first_line(method: bytes, target: bytes) -> bytes:
    """
    :raises ValueError: no HTTP.
    """
    if _TOKEN.fullmatch(method) is None:
        raise ValueError("the method is not a token")
    if _TARGET.fullmatch(target) is None:
        raise ValueError("the target has characters that must be escaped")
    return b"%b %b HTTP/1.1" % (method, target)


_cached_first_line = lru_cache(maxsize=1024)(_first_line)
_CACHED_TARGET_BYTES = 512


@implementer(IClientRequest)
class Request:
    """
    A request as bytes.

    :param uri: absolute.
    :param target: what goes into the first line.
    :param headers: with exactly one ``Host``, without what frames the body.
    :param producer: of the body. One that has a ``whole`` (bytes) is not asked to
        produce: head and body go out together.
    :raises ValueError: method, target or headers are no HTTP.
    """

    __slots__ = ("_given", "absoluteURI", "chunked", "method", "producer", "repeatable", "wire")

    def __init__(
        self,
        method: bytes,
        uri: bytes,
        target: bytes,
        headers: Headers | HeaderList,
        producer: IBodyProducer | None,
    ) -> None:
        first_line = _cached_first_line if len(target) <= _CACHED_TARGET_BYTES else _first_line
        head = [first_line(method, target)]
        self.method = method
        self.absoluteURI = uri
        self._given = headers
        self.chunked = False
        self.repeatable = producer is None and method in _REPEATABLE
        """May it be sent again when a kept connection turns out to be closed?"""

        whole: bytes = getattr(producer, "whole", b"")
        if producer is not None and producer.length is UNKNOWN_LENGTH:
            self.chunked = True
            head.append(b"\r\nTransfer-Encoding: chunked")
        elif producer is not None or method in (b"POST", b"PUT"):
            head.append(b"\r\nContent-Length: %d" % (0 if producer is None else producer.length))
        self.producer = None if whole else producer
        """Whom the body has to be asked of."""

        hosts = 0
        if isinstance(headers, Headers):
            headers = listed(headers)
        at = len(head)
        known = _names
        for name, value in headers:
            start, is_host = known[name]
            if is_host:
                hosts += 1
            head.append(start)
            head.append(value)
        if hosts != 1:
            raise ValueError("a request needs exactly one Host header")
        # The rest has been looked at.
        given = b"".join(head[at + 1 :: 2])
        if _LF in given or _CR in given or 0 in given:
            raise ValueError("the value of a header has a line break or a NUL")
        head.append(b"\r\n\r\n")
        head.append(whole)
        self.wire = b"".join(head)
        """The head, and the body if it is at hand."""

    def let_go(self) -> None:
        """Forget the headers: the request is sent, and its answer is known."""
        self._given = NO_HEADERS

    @property
    def headers(self) -> Headers:
        """Made when asked for."""
        return self._given if isinstance(self._given, Headers) else collected(self._given)


def listed(headers: Headers) -> HeaderList:
    """A header a line, in twisted.web's order and case."""
    return [(name, value) for name, values in headers.getAllRawHeaders() for value in values]


def collected(pairs: HeaderList) -> Headers:
    """The same, for twisted.web."""
    headers = Headers()
    for name, value in pairs:
        headers.addRawHeader(name, value)
    return headers


@implementer(IConsumer)
class _Upload:
    """
    The body of a request that its producer gives out piece by piece.

    :param sent: called when all of it is with the transport.
    :param failed: called with a Failure when the producer fails, or miscounts.
    """

    def __init__(
        self,
        transport: object,
        producer: IBodyProducer,
        chunked: bool,
        sent: Callable[[], None],
        failed: Callable[[Failure], None],
    ) -> None:
        self._transport: IConsumer = transport  # type: ignore[assignment]
        self._producer = producer
        self._chunked = chunked
        self._left = 0 if chunked else producer.length
        self._sent = sent
        self._failed = failed
        self._over = False

    def start(self) -> None:
        """Begin to produce."""
        self._transport.registerProducer(self._producer, True)
        try:
            producing = self._producer.startProducing(self)
        except Exception:
            self._fail(Failure())
        else:
            producing.addCallbacks(self._produced, self._fail)

    def stop(self) -> None:
        """Nobody wants the rest."""
        if not self._over:
            self._over = True
            self._transport.unregisterProducer()
            self._producer.stopProducing()

    def write(self, data: bytes) -> None:
        """Take the next piece."""
        if self._over or not data:
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        elif len(data) > self._left:
            self._producer.stopProducing()
            self._fail(Failure(ValueError("a body was longer than it was said to be")))
            return
        else:
            self._left -= len(data)
        self._transport.write(data)

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """The producer of a body is known to the transport already."""

    def unregisterProducer(self) -> None:
        """See :meth:`registerProducer`."""

    def _produced(self, _: object) -> None:
        if self._over:
            return
        if self._left:
            self._fail(Failure(ValueError("a body was shorter than it was said to be")))
            return
        self._over = True
        if self._chunked:
            self._transport.write(b"0\r\n\r\n")
        self._transport.unregisterProducer()
        self._sent()

    def _fail(self, failure: Failure) -> None:
        if not self._over:
            self._over = True
            self._transport.unregisterProducer()
            self._failed(failure)


# Answers.


@implementer(IResponse, IPushProducer)
class Response:
    """
    An answer, whose body is delivered once.

    To the protocol that takes the body it is the transport: it may be paused, resumed
    and stopped until the body ends. It lets go of the connection then.
    """

    __slots__ = (
        "_connection",
        "_headers",
        "_held",
        "_reason",
        "code",
        "length",
        "phrase",
        "previousResponse",
        "raw_headers",
        "receiver",
        "request",
        "version",
    )

    disconnecting = False

    def __init__(
        self,
        connection: Connection,
        request: Request,
        version: tuple[bytes, int, int],
        code: int,
        phrase: bytes,
        headers: HeaderList,
        length: int | object,
    ) -> None:
        self._connection: Connection | None = connection
        self._headers: Headers | None = None
        self._held: list[bytes] = []
        self._reason: Failure | None = None
        self.version = version
        self.code = code
        self.phrase = phrase
        self.raw_headers = headers
        """As they came: order, case, and what belongs to the connection."""

        self.length = length
        self.request = request
        self.previousResponse: IResponse | None = None
        self.receiver: IProtocol | None = None
        """Who takes the body."""

    @property
    def headers(self) -> Headers:
        """What :mod:`twisted.web` tells of them; made when asked for."""
        if self._headers is None:
            kept = [pair for pair in self.raw_headers if pair[0].lower() not in _OF_THE_CONNECTION]
            if self.request.method == b"HEAD":
                kept += [pair for pair in self.raw_headers if pair[0].lower() == b"content-length"]
            self._headers = collected(kept)
        return self._headers

    def let_go(self) -> None:
        """Forget all headers: somebody has read them, and what follows may take hours."""
        self.raw_headers = NO_HEADERS
        self._headers = None
        self.request.let_go()

    def setPreviousResponse(self, response: IResponse) -> None:
        self.previousResponse = response

    def deliverBody(self, protocol: IProtocol) -> None:
        """
        :raises RuntimeError: it was delivered before.
        """
        if self.receiver is not None:
            raise RuntimeError("the body of this response has been delivered")
        self.receiver = protocol
        held, self._held = self._held, []
        try:
            protocol.makeConnection(self)  # type: ignore[arg-type]
            for data in held:
                protocol.dataReceived(data)
        except Exception:
            # Nobody would take the rest.
            self.stopProducing()
            raise
        if self._reason is not None:
            self.receiver = _GONE
            protocol.connectionLost(self._reason)
        elif self._connection is not None:
            self._connection.wanted()

    def take_whole(self) -> bytes | None:
        """
        The body, if it has come in one piece and nobody has it yet. It counts as delivered.

        :returns: None: it is to be delivered.
        """
        held = self._held
        if self._reason is not _DONE or self.receiver is not None or len(held) > 1:
            return None
        self.receiver = _GONE
        return held.pop() if held else b""

    def take(self, data: bytes) -> None:
        """A piece has come."""
        if self.receiver is None:
            self._held.append(data)
        else:
            self.receiver.dataReceived(data)

    def end(self, reason: Failure) -> None:
        """The body is over, well or not."""
        self._connection = None
        self._reason = reason
        receiver = self.receiver
        if receiver is not None:
            # It has us for its transport: each would keep the other until the collector runs.
            self.receiver = _GONE
            try:
                receiver.connectionLost(reason)
            except Exception:
                # The connection may have gone on to the next request.
                _log.failure("ending an answer failed")

    def pauseProducing(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def resumeProducing(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    def stopProducing(self) -> None:
        """Close the connection now, even a paused one."""
        if self._connection is not None:
            self._connection.abort()

    loseConnection = stopProducing
    abortConnection = stopProducing


_GONE = Protocol()
"""In place of who has taken a body."""


# What sizes of chunks mean that have been read: a stream has few that it uses often.
_sizes: dict[bytes, int] = {}
_MOST_SIZES = 4096

# Their longest line: 15 digits.
_LIKELY_LINE_BYTES = 17


class Chunks:
    """
    Takes the framing off a chunked body.

    What it does not understand it refuses: bare line feeds, signs, white space around
    a size. Trailers have to be well-formed, and go nowhere.
    """

    __slots__ = ("_ending", "_in_trailers", "_left", "_rest", "between")

    def __init__(self) -> None:
        self.between = True
        """What comes next is the first byte of a chunk."""

        self._left = 0
        self._ending = False  # of a chunk, whose CR LF is to come
        self._in_trailers = False
        self._rest = b""

    def feed(self, data: bytes) -> tuple[bytes, bytes, int]:
        """
        Take a piece of any size.

        :returns: what it has of the body up to the end of a chunk, which is where a
            server's own pieces end; what it has of the next chunk; how many of its bytes
            came after the body, or -1 if that has not ended.
        :raises ParseError: it is no chunked body.
        """
        left = self._left
        if left > len(data):
            self._left = left - len(data)
            return b"", data, -1
        if self._rest:
            data, self._rest = self._rest + data, b""
        if self._in_trailers:
            return b"", b"", self._trailers(data, 0)
        spans: list[tuple[int, int]] = []
        before: list[bytes] = []
        at, size, after, tail = 0, len(data), -1, b""
        while True:
            if left:
                stop = at + left
                if stop > size:
                    tail = data[at:]
                    left = stop - size
                    break
                spans.append((at, stop))
                at, left, self._ending = stop, 0, True
            if self._ending:
                if not data.startswith(b"\r\n", at):
                    self._rest = data[at:]
                    if self._rest not in (b"", b"\r"):
                        raise ParseError("a chunk is longer than its size", b"")
                    break
                at += 2
                self._ending = False
            if at == size:
                break
            if len(spans) > 1 and spans[-1][1] - spans[-2][0] < _FEW_BYTES:
                small = _SMALL_CHUNKS.match(data, at)
                assert small is not None
                if small.end() > at:
                    before += [data[start:stop] for start, stop in spans]
                    before += _SMALL_DATA.findall(data, at, small.end())
                    spans.clear()
                    at = small.end()
                    continue
            line = _SIZE_LINE.match(data, at)
            if line is None or line.end() - at > _SIZE_LINE_BYTES + 1:
                self._rest = data[at:]
                if (
                    len(self._rest) > _SIZE_LINE_BYTES
                    or _SIZE_LINE_START.fullmatch(self._rest) is None
                ):
                    raise ParseError("no size of a chunk", b"")
                break
            left = int(line[1], 16)
            if left and len(_sizes) < _MOST_SIZES:
                _sizes[line[1]] = left
            at = line.end()
            if not left:
                self._in_trailers = True
                after = self._trailers(data, at)
                break
            if at == size:
                break
        self._left = left
        self.between = not (left or self._rest or self._ending or self._in_trailers)
        if before:
            before += [data[start:stop] for start, stop in spans]
            return b"".join(before), tail, after
        if not spans:
            return b"", tail, after
        if len(spans) == 1:
            start, stop = spans[0]
            return data[start:stop], tail, after
        view = memoryview(data)
        return b"".join([view[start:stop] for start, stop in spans]), tail, after

    def _trailers(self, data: bytes, at: int) -> int:
        """
        :returns: how many bytes came after them, or -1.
        """
        if data.startswith(b"\r\n", at):
            return len(data) - at - 2
        end = data.find(b"\r\n\r\n", at) + 4
        if end < 4:
            self._rest = data[at:]
            if len(self._rest) > _TRAILER_BYTES - 2 or _BARE_LF.search(self._rest) is not None:
                raise ParseError("trailers are too long, or malformed", b"")
            return -1
        if end - at > _TRAILER_BYTES or _TRAILERS.fullmatch(data, at, end) is None:
            raise ParseError("trailers are too long, or malformed", b"")
        return len(data) - end


_Head = tuple[bool, int, bytes, Indexed]
"""Of an answer: whether it is HTTP/1.1, not 1.0; its status, phrase and headers."""


class _Listener:
    """What llhttp tells of the head of an answer."""

    __slots__ = ("headers", "phrase")

    def __init__(self) -> None:
        self.headers: HeaderList = []
        self.phrase = b""

    def on_status(self, phrase: bytes) -> None:
        self.phrase = phrase

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp leaves the white space at the end.
        self.headers.append((name, value.rstrip(b" \t") if value[-1:] in b" \t" else value))


def _read_head(data: bytes) -> _Head:
    """
    llhttp says whether it is one. Nearly all are so plain that it need not be asked where
    its names and values are, which would take most of the time.

    :raises ParseError: it is none, or one that nobody asked for.
    """
    head = _plain_head(data)
    listener = _Listener()
    parser = HttpResponseParser(listener if head is None else None)
    try:
        parser.feed_data(data)
    except HttpParserUpgrade:
        raise ParseError("an answer changes the protocol", b"") from None
    except HttpParserError as error:
        raise ParseError(str(error), b"") from None
    if head is not None:
        return head
    code = parser.get_status_code()
    if not data.startswith(b"HTTP/1.") or code < 100:
        raise ParseError("no status line of HTTP/1", b"")
    if listener.phrase != b"OK" and _CONTROL.search(listener.phrase) is not None:
        raise ParseError("control characters in a status line", b"")
    newer = data.startswith(b"HTTP/1.1")
    return newer, code, listener.phrase, Indexed(listener.headers)


def _plain_head(data: bytes) -> _Head | None:
    """
    What llhttp would tell of a head, if it takes it for one.

    :returns: None where only llhttp knows.
    """
    lines = data.split(b"\r\n")
    status = _status(lines[0])
    if status is None:
        return None
    headers = read_answer(lines[1:-2])
    if headers is None:
        return None
    newer, code, phrase = status
    return newer, code, phrase, headers


@lru_cache(maxsize=64)
def _status(line: bytes) -> tuple[bool, int, bytes] | None:
    found = _STATUS_LINE.fullmatch(line)
    return found and (found[1] == b"1", int(found[2]), found[3] or b"")


# Connections.


class Owner(Shape):
    """Who keeps a connection between requests."""

    def released(self, connection: Connection) -> None:
        """It is free for another request."""

    def lost(self, connection: Connection) -> None:
        """It is closed."""


@implementer(IHandshakeListener)
class Connection(Protocol):
    """
    One request after the other, each when the one before has been answered.

    :param owner: told when it is free, and when it is closed.
    """

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._raw: TCPConnection | None = None
        self._tls = False
        self._take: Callable[[bytes], None] = self._take_unasked
        self._buffer = b""
        self._interim = 0
        self._request: Request | None = None
        self._upload: _Upload | None = None
        self._answer: Deferred[Response] | None = None
        self._response: Response | None = None
        self._heard = False
        self._left = 0
        self._keep = False
        self._chunks: Chunks | None = None
        self._paused = False
        self._unwanted = False
        self._closing = False
        self.secured: Deferred[None] | None = None
        """Fires when TLS is ready; None without TLS, and afterwards."""

        self.closed: Deferred[None] | None = None
        """Fires when it is; made by :meth:`close`."""

        self.first_answer = True
        """None has been heard here before."""

        self.idle_since = 0.0

    def __repr__(self) -> str:
        return f"<Connection {'free' if self._request is None else 'busy'}>"

    # What its owner does with it.

    @property
    def usable(self) -> bool:
        """Can another request be sent?"""
        return self._request is None and not self._closing

    def quiet(self) -> bool:
        """Is nothing to be read? A close may be here that the reactor has not seen."""
        if self._raw is None:
            return True
        try:
            self._raw.socket.recv(1, MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def send(self, request: Request) -> Deferred[Response]:
        """
        Send a request on a connection that is :attr:`usable`.

        :returns: fires when the head of the answer is here. Fails with
            ``RequestTransmissionFailed``, ``RequestGenerationFailed``,
            ``ResponseNeverReceived``, or ``ResponseFailed``. To cancel it closes the
            connection.
        """
        answer: Deferred[Response] = Deferred(self._cancelled)
        self._answer = answer
        self._request = request
        self._heard = False
        self._interim = 0
        self._take = self._take_head
        self._write(request.wire)
        if not request.repeatable:
            # Up to a megabyte, which would be held as long as the answer lasts.
            request.wire = b""
        if request.producer is not None:
            self._upload = _Upload(
                self.transport, request.producer, request.chunked, self._sent, self._not_sent
            )
            self._upload.start()
        return answer

    def close(self) -> Deferred[None]:
        """
        Close it when what was written is out.

        :returns: fires when it is closed.
        """
        self._closing = True
        if self.closed is None:
            self.closed = Deferred()
            self.transport.loseConnection()  # type: ignore[union-attr]
            if self._tls and self._raw is not None:
                # The peer's own goodbye would be waited for without limit.
                self._raw.loseConnection()
        return self.closed

    def abort(self) -> None:
        """Close it at once, whatever was under way."""
        self._closing = True
        self._take = _ignore
        self.transport.abortConnection()  # type: ignore[union-attr]

    def session(self) -> SSL.Session | None:
        """Of TLS, to be taken up again by another connection."""
        if not self._tls:
            return None
        handle: SSL.Connection = self.transport.getHandle()  # type: ignore[union-attr]
        return handle.get_session()

    # What a response asks for.

    def pause(self) -> None:
        if not self._closing:
            self._paused = True
            self.transport.pauseProducing()  # type: ignore[union-attr]

    def resume(self) -> None:
        if not self._closing:
            self._paused = False
            self.transport.resumeProducing()  # type: ignore[union-attr]

    def wanted(self) -> None:
        """There is somebody for the body."""
        if self._unwanted:
            self._unwanted = False
            if not self._paused:
                self.transport.resumeProducing()  # type: ignore[union-attr]

    # What the transport calls.

    def connectionMade(self) -> None:
        raw: object = self.transport
        if ISSLTransport.providedBy(raw):
            self.secured = Deferred()
            self._tls = True
            if isinstance(raw, TLSMemoryBIOProtocol):
                raw = raw.transport
        if isinstance(raw, TCPConnection):
            self._raw = raw
            raw.setTcpNoDelay(True)
            # What an endpoint has put around it has done its work.
            if isinstance(raw.protocol, _WrappingProtocol):
                raw.protocol = raw.protocol._wrappedProtocol

    def handshakeCompleted(self) -> None:
        secured, self.secured = self.secured, None
        if secured is not None:
            secured.callback(None)

    def dataReceived(self, data: bytes) -> None:
        try:
            self._take(data)
        except ParseError:
            self._give_up(Failure())
        except Exception:
            # Whoever takes the body failed.
            _log.failure("taking an answer failed")
            self._give_up(Failure())

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self._closing = True
        until_close = self._take == self._take_until_close
        self._take = _ignore
        secured, self.secured = self.secured, None
        if secured is not None:
            secured.errback(reason)
        self._owner.lost(self)
        # Only who closes politely has said that this was all.
        if until_close and reason.check(ConnectionDone) is not None and self._response is not None:
            self._stop_upload()
            response, self._response, self._request = self._response, None, None
            response.end(Failure(PotentialDataLoss()))
        else:
            self._fail(reason)
        closed, self.closed = self.closed, None
        if closed is not None:
            closed.callback(None)

    # Sending.

    def _write(self, data: bytes) -> None:
        write_now(self.transport, data)

    def _sent(self) -> None:
        self._upload = None

    def _not_sent(self, failure: Failure) -> None:
        self._upload = None
        answer, self._answer = self._answer, None
        self.abort()
        if answer is not None:
            self._request = None
            answer.errback(RequestGenerationFailed([failure]))
        else:
            self._fail(failure)

    def _stop_upload(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            upload.stop()

    def _cancelled(self, answer: Deferred[Response]) -> None:
        self._answer = None
        self._stop_upload()
        self.abort()
        error = ResponseFailed if self._heard else ResponseNeverReceived
        answer.errback(Failure(error([Failure(CancelledError())])))

    # Receiving.

    def _take_unasked(self, data: bytes) -> None:
        # Whatever it is, it would be taken for the next answer.
        self.abort()

    def _take_head(self, data: bytes) -> None:
        self._heard = True
        looked_at = 0
        if self._buffer:
            looked_at = max(len(self._buffer) - 3, 0)
            data, self._buffer = self._buffer + data, b""
        while True:
            end = data.find(b"\r\n\r\n", looked_at) + 4
            if end < 4:
                self._unfinished_head(data)
                return
            if end > _LINE_BYTES:
                _check_lengths(data[:end], self._interim)
            response = self._head(data if end == len(data) else data[:end])
            if response is not None:
                break
            self._interim += end
            if self._interim > _HEAD_BYTES:
                raise ParseError("too many interim answers", b"")
            data = data[end:]
            looked_at = 0
            if not data:
                return
        answer, self._answer = self._answer, None
        assert answer is not None
        rest = data[end:] if end < len(data) else b""
        self._response = response
        if rest or self._take == self._take_nothing:
            # It goes to nobody yet, but the response keeps it.
            try:
                self._take(rest)
            except ParseError:
                self._give_up(Failure())
        answer.callback(response)
        if self._response is response and response.receiver is None and not self._closing:
            # Nobody has asked for the body yet.
            self._unwanted = True
            self.transport.pauseProducing()  # type: ignore[union-attr]

    def _unfinished_head(self, data: bytes) -> None:
        if (
            len(data) > _HEAD_BYTES
            or not data.startswith(b"HTTP/1."[: len(data)])
            or _BARE_LF.search(data) is not None
        ):
            raise ParseError("no head of an answer", b"")
        _check_lengths(data, self._interim)
        self._buffer = data

    def _head(self, data: bytes) -> Response | None:
        """
        Read a head, and know how the body is framed.

        :returns: None if it is an interim one.
        """
        newer, code, phrase, headers = _read_head(data)
        if code < 200:
            if code == 101:
                raise ParseError("an answer changes the protocol", b"")
            return None
        length: int | None = None
        chunked = False
        keep = newer
        first = headers.first
        if b"content-length" in first:
            # llhttp takes no second one.
            length = int(first[b"content-length"])
        if b"transfer-encoding" in first:
            if [value.lower() for value in _all(headers, b"transfer-encoding")] != [b"chunked"]:
                raise ParseError("a transfer coding that nobody asked for", b"")
            chunked = True
        if keep and b"connection" in first:
            keep = b"close" not in b",".join(_all(headers, b"connection")).lower()
        if chunked and length is not None:
            raise ParseError("an answer with two lengths", b"")
        told: int | object = UNKNOWN_LENGTH
        request = self._request
        assert request is not None
        if code in (204, 304) or request.method == b"HEAD" or length == 0:
            told = 0
            self._take = self._take_nothing
        elif chunked:
            self._chunks = Chunks()
            self._take = self._take_chunked
        elif length is not None:
            told = self._left = length
            self._take = self._take_counted
        else:
            keep = False
            self._take = self._take_until_close
        self._keep = keep
        version = _VERSION_1_1 if newer else _VERSION_1_0
        return Response(self, request, version, code, phrase, headers, told)

    def _take_nothing(self, data: bytes) -> None:
        self._finish(data != b"")

    def _take_counted(self, data: bytes) -> None:
        response = self._response
        assert response is not None
        left = self._left - len(data)
        self._left = left
        if left > 0:
            response.take(data)
            return
        response.take(data if left == 0 else data[:left])
        self._finish(left < 0)

    def _take_chunked(self, data: bytes) -> None:
        response, chunks = self._response, self._chunks
        assert response is not None
        assert chunks is not None
        if chunks.between:
            # The commonest piece of a stream: a chunk.
            at = data.find(b"\r\n", 0, _LIKELY_LINE_BYTES)
            if _sizes.get(data[:at]) == len(data) - at - 4 and data.endswith(b"\r\n"):
                receiver = response.receiver
                if receiver is None:
                    response.take(data[at + 2 : -2])
                else:
                    receiver.dataReceived(data[at + 2 : -2])
                return
        whole, part, after = chunks.feed(data)
        if whole:
            response.take(whole)
        if part:
            response.take(part)
        if after >= 0:
            self._finish(after > 0)

    def _take_until_close(self, data: bytes) -> None:
        response = self._response
        assert response is not None
        response.take(data)

    def _finish(self, more: bool) -> None:
        """
        The answer is whole.

        :param more: something came behind it, so that nothing on this connection can
            be trusted.
        """
        response, self._response = self._response, None
        self._chunks = None
        self._request = None
        if self._upload is not None:
            # The rest of the request is of no use to anybody.
            self._stop_upload()
            self.abort()
        elif not self._keep or more:
            self._take = _ignore
            if not self._closing:
                self.close()
        elif not self._closing:
            self._take = self._take_unasked
            if self._paused or self._unwanted:
                self._paused = self._unwanted = False
                self.transport.resumeProducing()  # type: ignore[union-attr]
            # First, so that who waits for the end finds it free.
            self._owner.released(self)
        assert response is not None
        response.end(_DONE)

    def _give_up(self, failure: Failure) -> None:
        """What came cannot be understood, or passed on."""
        self.abort()
        self._fail(failure)

    def _fail(self, reason: Failure) -> None:
        """Tell whoever waits that no more will come."""
        request, self._request = self._request, None
        if request is None:
            return
        sending = self._upload is not None
        self._stop_upload()
        answer, self._answer = self._answer, None
        response, self._response = self._response, None
        if answer is not None:
            if self._heard:
                answer.errback(Failure(ResponseFailed([reason])))
            elif sending:
                answer.errback(Failure(RequestTransmissionFailed([reason])))
            else:
                answer.errback(Failure(ResponseNeverReceived([reason])))
        elif response is not None:
            lost = Failure(_DataLoss("the answer broke off"))
            response.end(Failure(ResponseFailed([reason, lost], response)))


def _all(headers: Indexed, wanted: bytes) -> list[bytes]:
    """The values of a header."""
    if len(headers) == len(headers.first):
        return [headers.first[wanted]]
    return [value for name, value in headers if name.lower() == wanted]


def _check_lengths(head: bytes, before: int) -> None:
    """
    :param before: bytes of interim heads.
    :raises ParseError: it, or a line of it, is too long.
    """
    if len(head) + before > _HEAD_BYTES or max(map(len, head.split(b"\n"))) > _LINE_BYTES:
        raise ParseError("the head of an answer is too long", b"")


def _ignore(data: bytes) -> None:
    """It comes on a connection that is being closed."""
