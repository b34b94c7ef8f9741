"""
A client that means no good: a program of its own, so that it has descriptors and a
processor of its own.

``python -m tests.loopback.flooder KIND PORT COUNT SOURCE`` keeps ``COUNT`` connections busy with
one kind of abuse and opens another for each that is closed, at most 500 a second, until
its standard input ends. They come from the address ``SOURCE``, or from several if it is
empty. It writes two lines of JSON: when it is under way, and at its end.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.inbound.http2_frames import (
    PREFACE,
    block,
    headers,
    ping,
    request_fields,
    rst_stream,
    settings,
)

__all__ = ["KINDS"]

_LIVE = b"GET /health/liveness HTTP/1.1\r\nHost: x\r\n\r\n"
_HALF = b"POST /bedrock/model/m/converse HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nX-Slow: "
_A_BLOCK = 200
_SLOW_S = 1.0
_AGAIN_PER_S = 500


@dataclass
class Counts:
    """What was done, and what came of it."""

    opened: int = 0
    """Connections in all."""

    refused: int = 0
    """Connections that could not be had."""

    closed: int = 0
    """Connections that the server closed."""

    answered: int = 0
    """Bytes came back."""

    sent: int = 0
    """Bytes."""

    def as_json(self, **more: object) -> str:
        return json.dumps({**self.__dict__, **more})


@dataclass
class Attacker:
    """One connection."""

    socket: socket.socket
    pieces: Iterator[bytes]
    left: bytes = b""
    answered: bool = False
    next: float = field(default=0.0)


def _resets() -> Iterator[bytes]:
    """Requests that are given up at once, and are work all the same."""
    yield PREFACE + settings()
    asked = block(*request_fields(method=b"POST", path=b"/bedrock/model/m/converse"))
    stream = 1
    while True:
        pairs = []
        for _ in range(_A_BLOCK):
            pairs.append(headers(stream, asked) + rst_stream(stream))
            stream += 2
        yield b"".join(pairs)


def _pipelined() -> Iterator[bytes]:
    """As many requests as fit into a piece, whose answers nobody waits for."""
    many = b"GET /bedrock/x HTTP/1.1\r\nHost: x\r\n\r\n" * 2000
    while True:
        yield many


def _settings() -> Iterator[bytes]:
    """Each has to be acknowledged."""
    yield PREFACE + settings()
    many = b"".join(settings((4, 65535 + at)) for at in range(_A_BLOCK))
    while True:
        yield many


def _pings() -> Iterator[bytes]:
    """Each has to be answered."""
    yield PREFACE + settings()
    many = ping() * _A_BLOCK
    while True:
        yield many


def _idle() -> Iterator[bytes]:
    """One good request, and then nothing."""
    yield _LIVE


def _slow() -> Iterator[bytes]:
    """A header that never ends, byte by byte."""
    yield _HALF
    while True:
        yield b"x"


KINDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "idle": _idle,
    "slow": _slow,
    "resets": _resets,
    "settings": _settings,
    "pings": _pings,
    "pipelined": _pipelined,
}


class Flooder:
    """All connections of one kind."""

    def __init__(self, kind: str, port: int, count: int, source: str) -> None:
        self._pieces = KINDS[kind]
        self._slowly = kind == "slow"
        self._once = kind == "idle"
        self._address = ("127.0.0.1", port)
        self._count = count
        self._source = source
        self._poll = select.epoll()
        self._all: dict[int, Attacker] = {}
        self.counts = Counts()

    def run(self, stop: int) -> None:
        """:param stop: a descriptor that becomes readable when it is enough."""
        self._poll.register(stop, select.EPOLLIN)
        told = False
        again = time.monotonic()
        while True:
            missing = min(100, self._count - len(self._all))
            if self.counts.opened >= self._count:
                now = time.monotonic()
                missing = min(missing, int((now - again) * _AGAIN_PER_S))
                again += missing / _AGAIN_PER_S
                again = max(again, now - 0.1)
            for _ in range(missing):
                self._open()
            answered = sum(one.answered for one in self._all.values()) if self._once else 0
            full = len(self._all) >= self._count and (not self._once or answered >= self._count)
            if not told and (full or self.counts.closed > self._count):
                told = True
                print(self.counts.as_json(open=len(self._all)), flush=True)
            for number, _ in self._poll.poll(0.05):
                if number == stop:
                    print(self.counts.as_json(open=len(self._all)), flush=True)
                    return
                self._work(self._all[number])
            if self._slowly:
                now = time.monotonic()
                for one in list(self._all.values()):
                    if one.next <= now:
                        self._write(one)

    def _open(self) -> None:
        # An address has 28,000 ports; what was closed holds one for a minute.
        source = self._source or f"127.0.{1 + self.counts.opened // 5000 % 200}.1"
        one = socket.socket()
        try:
            one.bind((source, 0))
            one.connect(self._address)
        except OSError:
            self.counts.refused += 1
            one.close()
            return
        one.setblocking(False)
        self.counts.opened += 1
        self._all[one.fileno()] = Attacker(one, self._pieces())
        eager = not (self._slowly or self._once)
        self._poll.register(one, select.EPOLLIN | (select.EPOLLOUT if eager else 0))
        if not eager:
            self._write(self._all[one.fileno()])

    def _work(self, one: Attacker) -> None:
        try:
            while data := one.socket.recv(65536):
                self.counts.answered += not one.answered
                one.answered = True
                if len(data) < 65536:
                    break
            else:
                self._close(one)
                return
        except BlockingIOError:
            pass
        except OSError:
            self._close(one)
            return
        if not (self._slowly or self._once):
            self._write(one)

    def _write(self, one: Attacker) -> None:
        one.left = one.left or next(one.pieces, b"")
        one.next = time.monotonic() + _SLOW_S
        try:
            done = one.socket.send(one.left)
        except BlockingIOError:
            return
        except OSError:
            self._close(one)
            return
        self.counts.sent += done
        one.left = one.left[done:]

    def _close(self, one: Attacker) -> None:
        self.counts.closed += 1
        self._poll.unregister(one.socket)
        del self._all[one.socket.fileno()]
        one.socket.close()


def _main() -> None:
    kind, port, count, source = sys.argv[1:]
    os.set_blocking(0, False)
    # It takes what there is, but not from the client whose waiting is measured: that one
    # would have a machine of its own.
    os.nice(10)
    Flooder(kind, int(port), int(count), source).run(sys.stdin.fileno())


if __name__ == "__main__":
    _main()
