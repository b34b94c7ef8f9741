"""
The engine beside plain twisted.web: both see the same requests in what a client sends, or
the engine is stricter, and how is in a table.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web import http, server

from tests.inbound.http1_streams import stream
from tests.inbound.http1_wire import (
    LIMITS,
    Peer,
    PlainChannel,
    Recorder,
    Seen,
    answers,
    cut,
    engine,
    plain,
)
from txbedrock.errors import BadHttp
from txbedrock.inbound.http1 import _Chunked
from txbedrock.inbound.site import Site

STREAMS = 12_000
SOCKETS = 150

clock: Any = reactor

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_METHODS = frozenset(
    b"DELETE GET HEAD POST PUT OPTIONS TRACE COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK"
    b" BIND REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE"
    b" UNSUBSCRIBE PATCH PURGE MKCALENDAR LINK UNLINK SOURCE QUERY".split()
)
_TARGET = re.compile(rb"\*|/[!-~]*|[A-Za-z]+://[!-~]+")


class Tried(NamedTuple):
    """
    What became of a stream.

    :param stops: the server takes nothing more.
    """

    seen: list[Seen]
    stops: bool
    status: int | None
    """Of the last answer."""


class Head:
    """The head of a request, as twisted.web reads it."""

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines
        self.method, _, rest = lines[0].partition(b" ")
        self.target, _, self.version = rest.partition(b" ")

    def values(self, name: bytes) -> list[bytes]:
        """Of a header, with the blanks around them."""
        return [
            line[len(name) + 1 :]
            for line in self.lines[1:]
            if line[: len(name) + 1].lower() == name + b":"
        ]


def _closes(head: Head) -> bool:
    return b"close" in b",".join(head.values(b"connection")).lower().replace(b",", b" ").split()


# Of a request that twisted.web takes and the engine does not: what is wrong with it, and why
# the engine refuses it. All of it is what RFC 9112 or RFC 9110 say.
REFUSED: dict[str, tuple[Callable[[Head], bool], str]] = {
    "host": (
        lambda head: (
            len(head.values(b"host")) > 1
            or (head.version == b"HTTP/1.1" and not head.values(b"host"))
        ),
        "there is one Host: with two, who is meant depends on the server; HTTP/1.0 may do without",
    ),
    "method": (
        lambda head: head.method not in _METHODS,
        "llhttp knows the registered methods, in upper case, and CONNECT is not served",
    ),
    "target": (
        lambda head: _TARGET.fullmatch(head.target) is None,
        "a target is a path, a URL or *, of visible ASCII; twisted.web takes any word",
    ),
    "fold": (
        lambda head: any(line[:1] in (b" ", b"\t") for line in head.lines[1:]),
        "folded lines are obsolete, and servers differ in whether the first is whole",
    ),
    "control": (
        lambda head: any(re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", line) for line in head.lines[1:]),
        "no control characters in values; twisted.web minds NUL, CR and LF only",
    ),
    "coding": (
        lambda head: any(
            value.lower().strip(b" ") != b"chunked" for value in head.values(b"transfer-encoding")
        ),
        "chunked is the only transfer coding; twisted.web passes over identity, and tabs",
    ),
    "coding in 1.0": (
        lambda head: head.version == b"HTTP/1.0" and bool(head.values(b"transfer-encoding")),
        "HTTP/1.0 has no chunked coding: who knows none takes the body for a request",
    ),
    "length": (
        lambda head: any(
            value.strip(b" \t").isdigit() and int(value) > LIMITS.max_request_body
            for value in head.values(b"content-length")
        ),
        "a body that is longer than the limit is refused at its head",
    ),
    "size": (
        lambda head: sum(len(line) + 2 for line in head.lines) + 2 > 64 * 1024,
        "line ends count in the size of the header",
    ),
}
BODY: dict[str, tuple[re.Pattern[bytes], str]] = {
    "chunk size": (
        re.compile(rb"\r\n[0-9A-Fa-f]{17,}[;\r]"),
        "no size of a chunk has more than 16 digits, zeros before it included",
    ),
    "extensions": (
        re.compile(rb"\r\n[0-9A-Fa-f]+;[^\r\n]{800,}\r\n"),
        "extensions are at most 16 KiB in all; twisted.web has no bound but a line's",
    ),
    "trailer": (
        re.compile(rb"\r\n0+(;[^\r\n]*)?\r\n(?!\r\n)"),
        "a trailer is of header lines, at most 16 KiB in all; twisted.web takes any lines",
    ),
}
"""Of a body: what the stream has when it is so."""

OTHER = {
    "close": "close anywhere in Connection closes; twisted.web reads the first field up to commas",
    "sooner": "llhttp refuses at a byte, twisted.web at the end of the line, or of the next one",
    "later": "a head is checked when it is whole; twisted.web refuses at a line",
}


def tried(peer: Peer, pieces: list[bytes]) -> Tried:
    """Send a stream."""
    peer.send(*pieces)
    found = re.findall(rb"HTTP/1\.1 (\d{3}) ", peer.received)
    stops = peer.wire.disconnecting or getattr(peer.channel, "refused", False)
    return Tried(peer.seen, stops, int(found[-1]) if found else None)


def kind(data: bytes, old_peer: Peer, old: Tried, new_peer: Peer, new: Tried) -> str | None:
    """
    How the engine differs from twisted.web on a stream; None: not at all.

    :raises AssertionError: in a way that is not allowed.
    """
    count = len(new.seen)
    channel: PlainChannel = old_peer.channel
    assert new.seen == old.seen[:count], "the engine sees another request, or more"
    if count == len(old.seen):
        if new.stops == old.stops:
            return None
        if old.stops:
            assert new_peer.channel._phase == "header", "the engine waits for a body"
            new_peer.send(b"\r\n\r\n")
            assert new_peer.channel.refused and len(new_peer.seen) == count
            return "later"
    assert new.stops, "the engine waits for what twisted.web has seen"
    if not new_peer.channel.refused:
        assert _closes(Head(channel.head(count - 1))), "the engine closes"
        return "close"
    head = Head(channel.head(count))
    for name, (has, _) in REFUSED.items():
        if has(head):
            return name
    for name, (pattern, _) in BODY.items():
        if pattern.search(data):
            return name
    if count == len(old.seen) and not old.stops:
        old_peer.send(b"\r\n\r\n")
        if old_peer.wire.disconnecting and len(old_peer.seen) == count:
            return "sooner"
    raise AssertionError("the engine refuses something else")


EXTENSIONS = [b"", b"", b";a", b';a="b;c";d=e', b";\xe9"]
PARTS = [b"0", b"1", b"2", b"a", b"F", b"10", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r", b"\n",
         b";", b" ", b"\t", b"x", b"xy", b"X: y", b"0\r\n\r\n", b"1\r\nx\r\n", b"2\r\nxy\r\n",
         b"\x00", b"+", b"-", b"_"]  # fmt: skip


def decoded(pieces: list[bytes]) -> tuple[bytes, bytes | None] | None:
    """
    :returns: the content of a body in the chunked coding, and what follows it, if it is
        whole; None: it is refused.
    """
    chunked = _Chunked()
    content = b""
    rest: bytes | None = None
    try:
        for piece in pieces:
            if rest is None:
                content += b"".join(chunked.feed(piece))
                rest = chunked.rest
            else:
                rest += piece
    except BadHttp:
        return None
    return content, rest


def decoded_by_twisted(data: bytes) -> tuple[bytes, bytes | None] | None:
    """The same."""
    content: list[bytes] = []
    rest: list[bytes] = []
    try:
        http._ChunkedTransferDecoder(content.append, rest.append).dataReceived(data)
    except http._MalformedChunkedDataError:
        return None
    return b"".join(content), rest[0] if rest else None


class StreamTests(SynchronousTestCase):
    """Thousands of streams in memory."""

    def test_streams(self) -> None:
        """
        The engine takes no request out of a stream that twisted.web does not, none that is
        other than there, and refuses only what the tables say.
        """
        kinds: Counter[str] = Counter()
        requests = 0
        for seed in range(STREAMS):
            data = stream(seed)
            random = Random(seed)
            places = [random.randrange(len(data) + 1) for _ in range(random.choice((0, 1, 3, 8)))]
            pieces = cut(data, places)
            old_peer, new_peer = plain(), engine()
            old, new = tried(old_peer, pieces), tried(new_peer, pieces)
            requests += len(new.seen)
            try:
                found = kind(data, old_peer, old, new_peer, new)
            except AssertionError as error:
                raise AssertionError(f"stream {seed}: {error}: {data[:2000]!r}") from error
            kinds[found or "same"] += 1
            if seed % 4 == 1:
                other = [data[i : i + 1] for i in range(len(data))]
                again = tried(engine(), other if len(data) < 1500 else [data])
                self.assertEqual(again, new, f"stream {seed}, in other pieces")
        listed = {"same", *REFUSED, *BODY, *OTHER}
        self.assertEqual(listed - set(kinds), set(), "a table lists what is not so any more")
        self.assertGreater(kinds["same"], STREAMS * 0.7)
        self.assertGreater(requests, STREAMS)


class ChunkedTests(SynchronousTestCase):
    """The chunked coding."""

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(
        st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.sampled_from(EXTENSIONS))),
        st.sampled_from(EXTENSIONS),
        st.sampled_from([b"", b"X-T: 1\r\n", b"a:\r\nb:c\r\n"]),
        st.binary(max_size=20),
        st.randoms(use_true_random=False),
    )
    def test_whole(
        self,
        chunks: list[tuple[bytes, bytes]],
        extension: bytes,
        trailer: bytes,
        behind: bytes,
        random: Random,
    ) -> None:
        """The content and what follows come out, in whatever pieces it comes in."""
        data = b"".join(
            b"%x%b\r\n%b\r\n" % (len(content), more, content) for content, more in chunks
        )
        data += b"0%b\r\n%b\r\n%b" % (extension, trailer, behind)
        places = [random.randrange(len(data) + 1) for _ in range(random.choice((0, 2, 20)))]
        expected = b"".join(content for content, _ in chunks)
        self.assertEqual(decoded(cut(data, places)), (expected, behind))

    @settings(max_examples=1500, deadline=None, derandomize=True)
    @given(st.lists(st.sampled_from(PARTS), max_size=14), st.randoms(use_true_random=False))
    def test_odd(self, parts: list[bytes], random: Random) -> None:
        """What twisted.web refuses is refused, and what both take is the same."""
        data = b"".join(parts)
        places = [random.randrange(len(data) + 1) for _ in range(random.choice((0, 1, 5)))]
        mine = decoded(cut(data, places))
        theirs = decoded_by_twisted(data)
        if mine is None or mine[1] is None:
            # Refused, or waiting: what there is of it is not asked for more.
            if mine is not None and theirs is not None:
                self.assertEqual(mine, theirs)
            return
        self.assertEqual(mine, theirs)


class Client(Protocol):
    """Reads until the server closes."""

    transport: Any

    def __init__(self) -> None:
        self.received = b""
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class PlainFactory(Factory):
    """Twisted.web's server."""

    noisy = False

    def __init__(self, recorder: Recorder) -> None:
        self._site = server.Site(recorder, timeout=None, parsePOSTFormSubmission=False)

    def buildProtocol(self, addr: object) -> PlainChannel:
        return PlainChannel(self._site)


class SocketTests(TestCase):
    """Some of the same streams, over real sockets."""

    async def sent(self, port: int, pieces: list[bytes]) -> bytes:
        """What a server writes before it closes. The client closes its half at the end."""
        client = Client()
        endpoint = TCP4ClientEndpoint(clock, "127.0.0.1", port)
        await connectProtocol(endpoint, client)
        client.transport.setTcpNoDelay(True)
        for piece in pieces:
            client.transport.write(piece)
            await deferLater(clock, 0)
        if not client.lost.called:
            client.transport.loseWriteConnection()
        client.lost.addTimeout(10, clock)
        await client.lost
        return client.received

    async def test_streams(self) -> None:
        """Both servers see what they see in memory."""
        mine, theirs = Recorder(), Recorder()
        site = Site(mine, clock, LIMITS, wall_seconds=clock.seconds)
        ports = [
            clock.listenTCP(0, factory, interface="127.0.0.1")
            for factory in (site, PlainFactory(theirs))
        ]
        for port in ports:
            self.addCleanup(port.stopListening)
        requests = refused = 0
        for seed in range(SOCKETS):
            data = stream(seed)
            random = Random(seed)
            pieces = cut(data, [random.randrange(len(data) + 1) for _ in range(4)])
            for port, recorder, peer in (
                (ports[0], mine, engine()),
                (ports[1], theirs, plain()),
            ):
                recorder.seen.clear()
                received = await self.sent(port.getHost().port, pieces)
                peer.send(*pieces)
                self.assertEqual(recorder.seen, peer.seen, f"stream {seed}")
                if recorder is mine:
                    requests += len(peer.seen)
                    refused += peer.channel.refused
                    methods = [seen.method for seen in peer.seen]
                    statuses = [a.status for a in answers(received, methods) if a.status != 100]
                    asked = [200] * len(methods)
                    self.assertEqual(statuses[: len(asked)], asked, f"stream {seed}")
                    self.assertEqual(len(statuses), len(asked) + peer.channel.refused)
        self.assertEqual(site.connections, 0)
        self.assertGreater(min(requests, refused), SOCKETS / 4)
