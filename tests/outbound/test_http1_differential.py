"""
The engine and twisted.web's own client, side by side, over thousands of odd answers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol
from twisted.internet.testing import StringTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web import _newclient
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers

from txbedrock.core import headers
from txbedrock.core.headers import Indexed
from txbedrock.outbound import http1
from txbedrock.outbound.http1 import Connection, Request

_ROUNDS = 20_000


class Seen(NamedTuple):
    """What came of an answer."""

    head: tuple[int, bytes, tuple[tuple[bytes, bytes], ...]] | None
    """Status, phrase and headers; None: it was refused."""

    body: bytes
    ending: str
    """``whole``, ``until close``, ``cut``."""

    kept: bool
    """The connection was given back for another request."""


class _Body(Protocol):
    def __init__(self) -> None:
        self.data = b""
        self.ending = ""

    def dataReceived(self, data: bytes) -> None:
        self.data += data

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if reason.check(ResponseDone) is not None:
            self.ending = "whole"
        elif reason.check(PotentialDataLoss) is not None:
            self.ending = "until close"
        else:
            self.ending = "cut"


class _Owner:
    def __init__(self) -> None:
        self.kept = False

    def released(self, connection: Connection) -> None:
        self.kept = True

    def lost(self, connection: Connection) -> None:
        pass


def _seen(
    connection: Any, asked: Any, pieces: list[bytes], kept: Callable[[], bool], stop: bool
) -> Seen:
    responses: list[Any] = []
    bodies: list[_Body] = []
    failures: list[Failure] = []

    def got(response: Any) -> None:
        responses.append(response)
        body = _Body()
        bodies.append(body)
        response.deliverBody(body)

    asked.addCallbacks(got, failures.append)
    transport = connection.transport
    for piece in pieces:
        if transport.disconnecting or (stop and kept()):
            # A server that goes on afterwards, in pieces of its own, is no part of this.
            break
        connection.dataReceived(piece)
    was_kept = kept() and not transport.disconnecting
    connection.connectionLost(Failure(ConnectionDone()))
    if not responses:
        assert failures
        return Seen(None, b"", "", False)
    [response], [body] = responses, bodies
    headers = tuple(
        sorted(
            (name.lower(), value)
            for name, values in response.headers.getAllRawHeaders()
            for value in values
        )
    )
    return Seen((response.code, response.phrase, headers), body.data, body.ending, was_kept)


def by_twisted(method: bytes, pieces: list[bytes]) -> Seen:
    """The way of twisted.web."""
    free: list[object] = []
    connection = _newclient.HTTP11ClientProtocol(free.append)
    connection.makeConnection(StringTransport())
    request = _newclient.Request(method, b"/", Headers({b"Host": [b"h"]}), None, persistent=True)
    return _seen(connection, connection.request(request), pieces, lambda: bool(free), True)


def by_engine(method: bytes, pieces: list[bytes]) -> Seen:
    """The way of the engine."""
    owner = _Owner()
    connection = Connection(owner)
    connection.makeConnection(StringTransport())
    request = Request(method, b"http://h/", b"/", [(b"Host", b"h")], None)
    return _seen(connection, connection.send(request), pieces, lambda: owner.kept, True)


# Answers.


def _pick(random: Random, *choices: tuple[float, bytes]) -> bytes:
    weights, values = zip(*choices, strict=True)
    return random.choices(values, weights)[0]


def _chunked(random: Random, body: bytes) -> bytes:
    out = b""
    while body:
        size = random.choice((1, 2, 9, 16, 255, 300))
        piece, body = body[:size], body[size:]
        line = _pick(random, (8, b"%x"), (1, b"%X"), (1, b"00%x"), (0.1, b"%020x")) % len(piece)
        line += _pick(
            random, (14, b""), (1, b";a=b"), (1, b';a="\xe9"'), (0.3, b" "), (0.3, b";\x01")
        )
        out += line + _pick(random, (30, b"\r\n"), (0.3, b"\n")) + piece + b"\r\n"
    out += _pick(random, (20, b"0"), (1, b"000"), (1, b"0;x"), (0.5, b"-0"))
    return out + _pick(
        random,
        (12, b"\r\n\r\n"),
        (1, b"\r\nX-Sum: 1\r\n\r\n"),
        (0.5, b"\r\nno trailer\r\n\r\n"),
        (0.5, b"\r\nX-Sum: 1\n\r\n"),
        (0.5, b"\r\n"),
    )


def an_answer(random: Random) -> bytes:
    """An answer, more often right than wrong."""
    out = b""
    if random.random() < 0.15:
        out += _pick(
            random,
            (4, b"HTTP/1.1 100 Continue\r\n\r\n"),
            (3, b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
            (1, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
            (1, b"HTTP/1.1 102 Processing\r\nContent-Length: 3\r\n\r\n"),
        )
    end = _pick(random, (60, b"\r\n"), (1, b"\n"))
    out += _pick(
        random, (30, b"HTTP/1.1"), (2, b"HTTP/1.0"), (0.4, b"HTTP/2.0"), (0.2, b"RTSP/1.0")
    )
    out += b" " + _pick(
        random,
        *((20, b"200"), (3, b"204"), (3, b"304"), (3, b"404"), (3, b"503"), (1, b"999")),
        *((0.2, b"20"), (0.2, b"+200"), (0.2, b"2000"), (0.2, b"")),
    )
    out += (
        _pick(random, (30, b" OK"), (2, b""), (2, b" "), (1, b" Not \xe9"), (0.3, b" a\x00b"))
        + end
    )
    body = bytes(random.randrange(256) for _ in range(random.choice((0, 1, 5, 40, 700))))
    lines = []
    for _ in range(random.randrange(4)):
        lines.append(
            _pick(
                random,
                *((5, b"X-Amzn-Requestid: 1"), (5, b"x-thing:a"), (2, b"X-Thing:  b \t")),
                *((1, b"X-Empty:"), (1, b"X-Latin: \xe9"), (0.4, b"X-Fold: a\r\n b")),
                *((0.3, b"Bad Name: a"), (0.3, b"NoColon"), (0.3, b": a"), (0.3, b"X-Nul: a\0b")),
                *((1, b"Keep-Alive: timeout=5"), (0.3, b"X-Space : a"), (0.3, b" X-Lead: a")),
            )
        )
    lines += [
        _pick(
            random,
            *((20, b""), (2, b"Connection: close"), (1, b"Connection: keep-alive")),
            *((1, b"Connection: x, Close"), (1, b"connection: upgrade\r\nUpgrade: h2c")),
        )
    ]
    kind = random.random()
    if kind < 0.4:
        right = b"%d" % len(body)
        lines.append(
            b"Content-Length: "
            + _pick(
                random,
                *(
                    (24, right),
                    (1, b"%b, %b" % (right, right)),
                    (1, b"+" + right),
                    (1, b"0" + right),
                ),
                *((1, right + b"\r\nContent-Length: " + right), (1, b"-1"), (1, b"")),
                *((1, right + b"\r\nContent-Length: 1"), (1, b"9999"), (1, b"1" * 30)),
            )
        )
    elif kind < 0.85:
        lines.append(
            _pick(
                random,
                *((24, b"Transfer-Encoding: chunked"), (2, b"transfer-encoding: Chunked")),
                *((1, b"Transfer-Encoding: gzip, chunked"), (1, b"Transfer-Encoding: identity")),
                (1, b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
                (1, b"Transfer-Encoding: chunked\r\nContent-Length: %d" % len(body)),
                (1, b"Content-Length: %d\r\nTransfer-Encoding: chunked" % len(body)),
                (1, b"Transfer-Encoding: chunked,"),
            )
        )
        body = _chunked(random, body)
    random.shuffle(lines)
    out += b"".join(line + end for line in lines if line) + end + body
    return out + _pick(
        random,
        *(
            (20, b""),
            (1, b"\r\n"),
            (1, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
            (1, b"x"),
        ),
    )


def mutated(random: Random, data: bytes) -> bytes:
    """Something in it is not as it was."""
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(data) + 1)
        how = random.randrange(5)
        odd = random.choice(
            (b"\r", b"\n", b"\0", b" ", b"\t", b":", b",", b"0", b"\x7f", b"\xff", b";")
        )
        if how == 0:
            data = data[:at] + odd + data[at:]
        elif how == 1:
            data = data[:at] + odd + data[at + 1 :]
        elif how == 2:
            data = data[:at] + data[at + random.choice((1, 2, 10)) :]
        elif how == 3:
            data = data[:at] + data[at : at + 20] + data[at:]
        else:
            data = data[:at]
    return data


def split(random: Random, data: bytes) -> list[bytes]:
    """In pieces of any size."""
    if random.random() < 0.1:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.choice((0, 1, 2, 6))))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return [piece for piece in pieces if piece]


# Where the engine is stricter.


def heads(data: bytes) -> list[bytes]:
    """The heads of the interim answers and of the final one."""
    found = []
    while True:
        end = re.search(rb"\r?\n\r?\n", data)
        head = data if end is None else data[: end.end()]
        found.append(head)
        if end is None or re.match(rb"\S+ 1\d\d\b", head) is None:
            return found
        data = data[end.end() :]


def _fields(data: bytes, name: bytes) -> list[bytes]:
    return re.findall(rb"(?i)\n%b:[ \t]*(.*?)[ \t]*(?=\r?\n|\Z)" % name, b"".join(heads(data)))


def _in_head(pattern: bytes) -> Callable[[bytes, bytes], bool]:
    return lambda method, data: any(re.search(pattern, head) for head in heads(data))


def _odd_length(method: bytes, data: bytes) -> bool:
    lengths = _fields(data, b"content-length")
    return any(re.fullmatch(rb"\d{1,19}", length) is None for length in lengths)


def _something_behind(method: bytes, data: bytes) -> bool:
    whole, less = by_twisted(method, [data]), by_twisted(method, [data[:-1]])
    return whole.ending == "whole" and whole == less


_STATUS = rb"HTTP/1\.[01] [1-9]\d\d(?: [^\r\n]*)?"
_FIELD = rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\r\n]*)?"


def _not_lines_of_http(method: bytes, data: bytes) -> bool:
    for head in heads(data):
        status, *fields = re.split(rb"\r?\n", head)
        if re.fullmatch(_STATUS, status) is None:
            return True
        if any(re.fullmatch(_FIELD, field) is None for field in fields):
            return True
    return False


# What twisted.web accepts, and the engine refuses; what of the request and of the
# answer makes it so.
REFUSED: dict[str, Callable[[bytes, bytes], bool]] = {
    "a line that ends with a bare line feed": _in_head(rb"(?<!\r)\n"),
    "a carriage return inside a line": _in_head(rb"\r(?!\n|\Z)"),
    "a control character": _in_head(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"),
    "a folded header": _in_head(rb"\n[ \t]"),
    "a line that is neither a status nor a header": _not_lines_of_http,
    "101": _in_head(rb"\AHTTP/1.[01] 101\b"),
    "a Content-Length that is no number, or too big": _odd_length,
    "Content-Length twice": lambda method, data: len(_fields(data, b"content-length")) > 1,
    "Transfer-Encoding and Content-Length": lambda method, data: bool(
        _fields(data, b"transfer-encoding") and _fields(data, b"content-length")
    ),
    "Transfer-Encoding other than chunked": lambda method, data: (
        [value.lower() for value in _fields(data, b"transfer-encoding")] not in ([], [b"chunked"])
    ),
}

# What twisted.web takes for a whole body, and the engine for a broken one.
CUT: dict[str, Callable[[bytes, bytes], bool]] = {
    "a malformed trailer": lambda method, data: (
        re.search(rb"\r\n0+(;.*)?\r\n(?!\r\n)", data, re.DOTALL) is not None
    ),
    "a chunk's size of more than 15 digits": lambda method, data: (
        re.search(rb"\r\n[0-9A-Fa-f]{16,}[;\r]", data) is not None
    ),
}

# After what twisted.web uses a connection again, and the engine does not.
CLOSED: dict[str, Callable[[bytes, bytes], bool]] = {
    "HTTP/1.0": _in_head(rb"HTTP/1.0"),
    "Connection: close among others, or in another case": lambda method, data: any(
        b"close" in value.lower() for value in _fields(data, b"connection")
    ),
    "something behind the answer": _something_behind,
}


def compared(old: Seen, new: Seen) -> str:
    """
    :returns: empty: the same; else what of the engine is stricter, or how it is laxer.
    """
    if new == old:
        return ""
    if new.head is None:
        return "refused"
    if new.head != old.head:
        return "laxer, or read differently"
    if new.ending == "cut" and old.body.startswith(new.body):
        # Of a piece that is refused nothing is passed on.
        return "" if old.ending == "cut" else "cut"
    if (new.body, new.ending) == (old.body, old.ending) and not new.kept:
        return "closed"
    return "laxer, or read differently"


class DifferentialTests(SynchronousTestCase):
    """The same answers, in the same pieces, to both."""

    def test_answers(self) -> None:
        """
        Both accept, refuse and frame the same, or the engine is stricter in a way
        that is listed here.
        """
        random = Random(7)
        reasons = {"refused": REFUSED, "cut": CUT, "closed": CLOSED}
        counts: Counter[str] = Counter()
        for _ in range(_ROUNDS):
            method = random.choice((b"GET", b"POST", b"POST", b"HEAD"))
            data = an_answer(random)
            if random.random() < 0.4:
                data = mutated(random, data)
            pieces = split(random, data)
            old, new = by_twisted(method, pieces), by_engine(method, pieces)
            difference = compared(old, new)
            if not difference:
                counts["refused by both" if new.head is None else "taken by both"] += 1
                continue
            table = reasons.get(difference, {})
            found = [reason for reason, holds in table.items() if holds(method, data)]
            self.assertTrue(found, (difference, method, pieces, old, new))
            counts.update(found)
        self.flushLoggedErrors()
        # Every entry is needed, and most answers are no difference.
        for table in reasons.values():
            for reason in table:
                self.assertGreater(counts[reason], 0, reason)
        self.assertGreater(counts["taken by both"], _ROUNDS / 4)
        Logger().info("differences: {counts}", counts=dict(counts))


class PlainHeadTests(SynchronousTestCase):
    """Heads that are taken apart without asking llhttp for each header."""

    def read(self, data: bytes) -> object:
        """What is made of a head, with its index; None: it is refused."""
        try:
            newer, code, phrase, headers = http1._read_head(data)
        except _newclient.ParseError:
            return None
        assert isinstance(headers, Indexed)
        return newer, code, phrase, list(headers), headers.first

    def test_as_llhttp(self) -> None:
        """Whatever llhttp accepts is read as llhttp reads it."""
        random = Random(11)
        plain = 0
        for _ in range(_ROUNDS):
            data = an_answer(random)
            if random.random() < 0.6:
                data = mutated(random, data)
            head = data[: data.find(b"\r\n\r\n") + 4]
            if len(head) < 4:
                continue
            read = self.read(head)
            if read is not None and http1._plain_head(head) is not None:
                plain += 1
            with patch.object(http1, "_plain_head", lambda data: None):
                self.assertEqual(self.read(head), read, head)
        self.assertGreater(plain, _ROUNDS / 4)

    def test_odd_lines(self) -> None:
        """What is not plain stays so when it comes again."""
        for line in (b"a: b\rc", b"a: b\nc: d", b"a: b\r\n c", b"a : b", b"a:", b": b", b"a"):
            head = b"HTTP/1.1 200 OK\r\n" + line + b"\r\n\r\n"
            for _ in range(2):
                self.assertIsNone(http1._plain_head(head), line)

    def test_memory(self) -> None:
        """Lines that never come again are forgotten."""
        for number in range(3000):
            http1._plain_head(b"HTTP/1.1 200 OK\r\nx-id: %d\r\n\r\n" % number)
        self.assertLessEqual(len(headers._answer_lines), headers._MOST_LINES)
        long = b"x-long: " + b"a" * 1000
        self.assertIsNotNone(http1._plain_head(b"HTTP/1.1 200 OK\r\n" + long + b"\r\n\r\n"))
        self.assertNotIn(long, headers._answer_lines)
