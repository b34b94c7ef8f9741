"""
The sandbox on the wire: twisted.web, down to the bytes.

Heads and chunks are written here and not by ``Request.write``: header names keep
their case as AWS writes them, and a fault can be anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from email.utils import formatdate
from functools import lru_cache
from hashlib import sha256
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IDelayedCall, IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer

from txbedrock.core.sigv4 import EMPTY_SHA256
from txbedrock.sandbox.faults import End, Fault, Pause, Script, Step

if TYPE_CHECKING:
    from hashlib import _Hash

    from txbedrock.sandbox.service import Recorded, Sandbox

__all__ = ["SandboxChannel", "SandboxRequest", "SandboxResource", "SandboxSite"]

_BLOCK_BYTES = 64 * 1024
_TURN_BYTES = 4 * _BLOCK_BYTES  # at most, before the reactor gets its turn
_PHRASES = {each.value: each.phrase.encode() for each in HTTPStatus}
_FLUSH_S = 0.01  # for what was written to leave before a reset, which would discard it

WHAT_IT_IS = (
    "This is the txbedrock sandbox, a stand-in for Amazon Bedrock: it checks every signature,"
    " answers every operation with made-up data, and is no model.\n"
)


class SandboxChannel(http.HTTPChannel):
    """
    HTTP/1.1 with the headers kept as they came, and connections counted.
    """

    MAX_LENGTH = 128 * 1024
    totalHeadersSize = 256 * 1024

    site: SandboxSite
    connection = 0

    def __init__(self) -> None:
        super().__init__()
        self.raw_headers: list[tuple[bytes, bytes]] = []

    def connectionMade(self) -> None:
        self.connection = self.site.opened(self)
        super().connectionMade()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        super().connectionLost(reason)
        self.site.closed(self)

    def headerReceived(self, line: bytes) -> bool:
        name, _, value = line.partition(b":")
        lower = name.lower()
        if lower in (b"content-length", b"transfer-encoding") and any(
            lower == other.lower() for other, _ in self.raw_headers
        ):
            self._refuse(f"Several {name.decode('latin-1')} headers.")
            return False
        self.raw_headers.append((name, value.strip(b" \t")))
        return bool(super().headerReceived(line))

    def allContentReceived(self) -> None:
        self.requests[-1].raw_headers, self.raw_headers = self.raw_headers, []
        super().allContentReceived()

    def _respondToBadRequestAndDisconnect(self) -> None:
        self._refuse("This is not an HTTP request, or Content-Length and Transfer-Encoding both.")

    def _refuse(self, message: str) -> None:
        self.site.sandbox.stats.bad_http += 1
        body = json.dumps({"message": message}).encode()
        assert self.transport is not None
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\nx-amzn-ErrorType: ValidationException\r\n"
            b"Content-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        # Nothing of what is still in the buffer is looked at.
        deaf: Any = self
        deaf.lineReceived = deaf.rawDataReceived = deaf.dataReceived = _ignore
        self.loseConnection()


def _ignore(_: bytes) -> None:
    """For data after the end."""


class SandboxRequest(Request):
    """A request whose body stays in memory and is hashed as it arrives."""

    raw_headers: list[tuple[bytes, bytes]] | None = None
    body = b""
    body_sha256 = EMPTY_SHA256
    _hash: _Hash | None = None

    def gotLength(self, length: int | None) -> None:
        self._parts: list[bytes] = []

    def handleContentChunk(self, data: bytes) -> None:
        if self._hash is None:
            self._hash = sha256()
        self._hash.update(data)
        self._parts.append(data)

    def parseCookies(self) -> None:
        """There are none."""

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        self.method, self.uri, self.clientproto = command, path, version
        self.path = path.partition(b"?")[0]
        self.body = b"".join(self._parts)
        if self._hash is not None:
            self.body_sha256 = self._hash.hexdigest()
        channel: Any = self.channel
        self.site = channel.site
        self.site.resource.render(self)


class SandboxSite(Site):
    """The factory to listen with. It knows its connections and writes no access log."""

    noisy = False

    _log = Logger()

    def __init__(self, sandbox: Sandbox, idle_timeout_s: float | None) -> None:
        super().__init__(
            sandbox.resource,
            requestFactory=SandboxRequest,
            timeout=idle_timeout_s,
            reactor=sandbox.reactor,
        )
        self.sandbox = sandbox
        self._open: set[SandboxChannel] = set()
        self._waiting: list[Deferred[None]] = []

    def buildProtocol(self, addr: IAddress | None) -> Any:
        channel: Any = SandboxChannel()
        channel.site = self
        channel.factory = self
        channel.requestFactory = self.requestFactory
        channel.timeOut = self.timeOut
        channel.callLater = self.reactor.callLater
        return channel

    def acceptableProtocols(self) -> list[bytes]:
        """No HTTP/2, even where it is installed."""
        return [b"http/1.1"]

    def startFactory(self) -> None:
        """Without the access log and the timer for its dates."""

    def stopFactory(self) -> None:
        """As :meth:`startFactory`."""

    def log(self, request: http.Request) -> None:
        """Not."""

    def opened(self, channel: SandboxChannel) -> int:
        """
        A connection is there.

        :returns: its number.
        """
        self._open.add(channel)
        stats = self.sandbox.stats
        stats.connections += 1
        stats.open_connections = len(self._open)
        return stats.connections

    def closed(self, channel: SandboxChannel) -> None:
        """A connection is gone."""
        self._open.discard(channel)
        self.sandbox.stats.open_connections = len(self._open)
        if not self._open:
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each.callback(None)

    def close(self) -> Deferred[None]:
        """Reset every connection; fires when none is left."""
        if not self._open:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        for channel in list(self._open):
            if channel.transport is not None:
                channel.transport.abortConnection()  # type: ignore[attr-defined]
        return done


class SandboxResource(Resource):
    """
    All of it under one leaf: the paths are Bedrock's, not a tree.

    Also works under another Site, as that of ``treq.testing``; then connections
    are not counted and header names have lost their case.
    """

    isLeaf = True
    _log = Logger()

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__()
        self._sandbox = sandbox

    def render(self, request: Request) -> int:
        if isinstance(request, SandboxRequest):
            headers, body, digest = request.raw_headers or [], request.body, request.body_sha256
            channel: Any = request.channel
            connection = channel.connection
        else:
            headers = [
                (name, value)
                for name, values in request.requestHeaders.getAllRawHeaders()
                for value in values
            ]
            body = request.content.read() if request.content is not None else b""
            digest = sha256(body).hexdigest()
            connection = 0
        sandbox = self._sandbox
        if request.uri.startswith(b"/_sandbox/") or request.uri == b"/_sandbox":
            status, content_type, reply = _control(sandbox, request.method, request.uri, body)
            _reply(request, status, content_type, reply)
            return NOT_DONE_YET
        recorded = sandbox.received(connection, request.method, request.uri, headers, body)
        try:
            script = sandbox.decide(recorded, digest)
        except Exception:
            self._log.failure("{method} {uri}", method=request.method, uri=request.uri)
            _reply(request, 500, b"application/json", b'{"message": "The sandbox is broken."}')
            return NOT_DONE_YET
        _Player(request, recorded, script, sandbox).start()
        return NOT_DONE_YET


# Answers of the sandbox's own


def _control(
    sandbox: Sandbox, method: bytes, target: bytes, body: bytes
) -> tuple[int, bytes, bytes]:
    """
    ``/_sandbox/``: what it is, what it did, what shall go wrong.

    :returns: status, content type, body.
    """
    path, _, query = target.partition(b"?")
    name = path.removeprefix(b"/_sandbox").strip(b"/").decode("latin-1")
    if name == "":
        return 200, b"text/plain; charset=utf-8", WHAT_IT_IS.encode()
    verb = method.decode("latin-1")
    value: Any
    if name == "requests" and verb == "GET":
        last = parse_qs(query.decode("latin-1")).get("last", [""])[0]
        requests = list(sandbox.requests)
        if last.isdigit():
            requests = requests[len(requests) - min(len(requests), int(last)) :]
        value = {"requests": [each.as_json() for each in requests]}
    elif name == "requests" and verb == "DELETE":
        sandbox.forget()
        return 204, b"", b""
    elif name == "stats" and verb == "GET":
        value = {**_as_dict(sandbox.stats), "billed": sandbox.billed_totals}
    elif name == "billed" and verb == "GET":
        value = {"billed": [each.as_json() for each in sandbox.billed.values()]}
    elif name == "faults" and verb == "GET":
        value = {"faults": sandbox.faults.as_json()}
    elif name == "faults" and verb == "POST":
        try:
            asked = json.loads(body)
            faults = [Fault.of(each) for each in (asked if isinstance(asked, list) else [asked])]
        except (ValueError, AttributeError, TypeError) as error:
            return 400, b"application/json", json.dumps({"message": str(error)}).encode()
        for fault in faults:
            sandbox.faults.add(fault)
        value = {"faults": sandbox.faults.as_json()}
    elif name == "faults" and verb == "DELETE":
        sandbox.faults.clear()
        return 204, b"", b""
    else:
        known = "GET /, GET DELETE /requests, GET /stats, GET /billed, GET POST DELETE /faults"
        message = {"message": f"Below /_sandbox there is: {known}."}
        return 404, b"application/json", json.dumps(message).encode()
    return 200, b"application/json", json.dumps(value).encode()


def _as_dict(stats: Any) -> dict[str, int]:
    return {name: getattr(stats, name) for name in stats.__slots__}


def _reply(request: Request, status: int, content_type: bytes, body: bytes) -> None:
    head = [(b"Content-Type", content_type)] if content_type else []
    data = _head(request, status, head, None if status == 204 else len(body))
    request.startedWriting = 1
    request.channel.write(data + (b"" if request.method == b"HEAD" else body))
    request.finish()


def _head(
    request: Request,
    status: int,
    headers: list[tuple[bytes, bytes]],
    length: int | None,
    chunked: bool = False,
) -> bytes:
    lines = [b"HTTP/1.1 %d %b" % (status, _PHRASES.get(status, b"Status"))]
    lines += [b"%b: %b" % pair for pair in headers]
    if length is not None:
        lines.append(b"Content-Length: %d" % length)
    elif chunked:
        lines.append(b"Transfer-Encoding: chunked")
    if not request.channel.persistent:
        lines.append(b"Connection: close")
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


@lru_cache(maxsize=4)
def _http_date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()


# Scripts on a connection


@implementer(IPushProducer)
class _Player:
    """
    Plays a script for one request, no faster than the client reads.
    """

    def __init__(
        self, request: Request, recorded: Recorded, script: Script, sandbox: Sandbox
    ) -> None:
        self._request = request
        self._recorded = recorded
        self._script = script
        self._sandbox = sandbox
        self._steps: Iterator[Step] = iter(script.before)
        self._then: Callable[[], None] | None = self._send_head
        self._raw = True
        """Bytes go out as they are: before the head, and in a body of stated length."""

        self._paused = False
        self._over = False
        self._stopped = False
        """Nothing more is sent."""

        self._cut = False
        self._running = False
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        stats = self._sandbox.stats
        stats.active_requests += 1
        stats.active_streams += self._script.answer.streams
        self._request.notifyFinish().addCallbacks(self._finished, self._lost)
        if not self._script.before and self._script.at_once:
            self._send_head()
            return
        self._request.registerProducer(self, True)
        self._run()

    # The end

    def _finished(self, _: object) -> None:
        self._settle("whole")

    def _lost(self, _: Failure) -> None:
        self._settle("cut" if self._cut else "left")

    def _settle(self, how: str) -> None:
        self._over = True
        self._stop_timer()
        stats = self._sandbox.stats
        stats.active_requests -= 1
        stats.active_streams -= self._script.answer.streams
        self._sandbox.ended(self._recorded, how)
        self._steps = iter(())

    def _finish(self) -> None:
        if self._request.producer is not None:
            self._request.unregisterProducer()
        self._request.finish()

    # IPushProducer

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        if self._timer is None:
            self._run()

    def stopProducing(self) -> None:
        self._over = True
        self._stop_timer()

    # Sending

    def _write(self, data: bytes) -> None:
        if data:
            self._sandbox.sent(self._recorded, len(data))
            self._request.channel.write(data)

    def _send_head(self) -> None:
        script, request, recorded = self._script, self._request, self._recorded
        answer = script.answer
        self._then = None
        headers = [
            (b"Date", _http_date(int(self._sandbox.now))),
            *answer.headers,
            (b"x-amzn-RequestId", recorded.request_id.encode()),
        ]
        bodiless = answer.status in http.NO_BODY_CODES or request.method == b"HEAD"
        chunked = script.length is None and request.clientproto == b"HTTP/1.1" and not bodiless
        length = None if answer.status in http.NO_BODY_CODES else script.length
        head = _head(request, answer.status, headers, length, chunked)
        request.startedWriting = 1
        self._sandbox.head_sent(recorded, answer)
        if script.at_once and not script.before:
            self._write(head if bodiless else head + answer.pieces[0])
            self._finish()
            return
        body: Iterator[Step] = iter(()) if bodiless else iter(script.body)
        if script.head_interval_s is None:
            self._write(head)
            self._play_body(body, chunked)
        else:
            size = -(-len(head) // 10)
            self._steps = _slowly(head, size, script.head_interval_s)
            self._raw = True
            self._then = lambda: self._play_body(body, chunked)

    def _play_body(self, body: Iterator[Step], chunked: bool) -> None:
        self._then = None
        self._steps = _with_end(body) if chunked else body
        self._raw = not chunked

    def _run(self) -> None:
        if self._running or self._stopped:
            return
        self._running = True
        try:
            self._play()
        except Exception:
            SandboxResource._log.failure("playing a script")
            self._abort()
        finally:
            self._running = False

    def _play(self) -> None:
        budget = _TURN_BYTES
        out: list[bytes] = []
        size = 0
        while not (self._over or self._paused):
            step = next(self._steps, None)
            if isinstance(step, bytes):
                out.append(step if self._raw else b"%x\r\n%b\r\n" % (len(step), step))
                size += len(step)
                if size < _BLOCK_BYTES:
                    continue
            self._write(b"".join(out))
            budget -= size
            out, size = [], 0
            if isinstance(step, bytes):
                if budget <= 0 and not self._paused:
                    self._wait(0)
                    return
            elif isinstance(step, Pause):
                self._wait(step.seconds)
                return
            elif isinstance(step, End):
                self._stopped = True
                self._cut = step is not End.HANG
                self._leave(step)
                return
            elif self._then is not None:
                self._then()
            else:
                self._finish()
                return

    def _wait(self, seconds: float) -> None:
        self._timer = self._sandbox.reactor.callLater(seconds, self._waited)

    def _waited(self) -> None:
        self._timer = None
        if not self._paused:
            self._run()

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _leave(self, end: End) -> None:
        if end is End.HANG:
            return
        if end is End.FIN:
            self._request.unregisterProducer()
            self._request.channel.loseConnection()
        elif self._recorded.bytes_sent:
            self._timer = self._sandbox.reactor.callLater(_FLUSH_S, self._abort)
        else:
            self._abort()

    def _abort(self) -> None:
        self._timer = None
        if not self._over:
            transport: Any = self._request.channel.transport
            transport.abortConnection()


def _with_end(body: Iterator[Step]) -> Iterator[Step]:
    """The last chunk after a body that comes to its end."""
    for step in body:
        if step != b"":
            yield step
    yield b""


def _slowly(data: bytes, size: int, interval_s: float) -> Iterator[Step]:
    for start in range(0, len(data), size):
        yield Pause(interval_s)
        yield data[start : start + size]
