"""
What holds the reactor: the longest callbacks under every load, and with bodies of 25 MB.

The gateway runs as always, but for ``watched.py`` around its reactor. After each load it is
asked what took long; a callback is too long with 5 ms of CPU or more.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import socketserver
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.measuring import FIGURES, Bench, warm_up
from benchmarks.peers import MASTER_KEY, PEERS, PROTOCOLS, Peer, Running
from benchmarks.processes import Failed

__all__ = ["LIMIT_S", "Found", "stalls", "table"]

LIMIT_S = 0.005
_BIG = 25_000_000
_AT_ONCE = 4
_ROUNDS = 3
_SHOWN = 4
_OPEN = 9000


@dataclass(slots=True)
class Found:
    """Of one load."""

    load: str
    callbacks: int
    long: Mapping[str, Mapping[str, Any]]
    """By what was called; see :mod:`benchmarks.watched`."""

    gc: Mapping[str, Mapping[str, float]]
    metric: Mapping[str, float]
    """How many stalls the gateway itself has counted, by cause."""

    @property
    def longest_s(self) -> float:
        """The CPU of the longest; 0 where all took less than 2 ms."""
        return max((one["cpu"] for one in self.long.values()), default=0.0)


def stalls(bench: Bench, say: Callable[[str], None]) -> list[Found]:
    """
    Put all loads on the gateway, one after the other.

    :param say: told of each as it is done.
    """
    found: list[Found] = []

    def add(watched: _Watched, load: str) -> None:
        found.append(watched.since(load))
        say(f"{load}: {found[-1].longest_s * 1e3:.1f} ms")

    with _watched(bench, PEERS["txbedrock"]) as watched:
        for protocol in PROTOCOLS:
            warm_up(bench, watched.running, protocol)
            add(watched, f"{protocol}: first requests")
            for name, figure in FIGURES.items():
                figure(bench, watched.running, protocol)
                add(watched, f"{protocol}: {name}")
        for path in _READ:
            for _ in range(_ROUNDS):
                watched.get(path)
            add(watched, path)
        os.kill(watched.running.child.pid, signal.SIGHUP)  # type: ignore[union-attr]
        time.sleep(2.0)
        add(watched, "reload")
    with _Sink() as sink:
        for metadata in (False, True):
            settings = {"request_metadata": ["key_alias", "team_id"]} if metadata else {}
            peer = replace(PEERS["txbedrock"], signs=False, settings=settings)
            with _watched(bench, peer, sink.port) as watched:
                edited = ", edited" if metadata else ""
                for secure in (False, True):
                    over = "tls" if secure else "http1"
                    for kind, body in _BODIES.items():
                        watched.upload(body, secure)
                        add(watched, f"{over}: {_AT_ONCE} uploads of 25 MB {kind}{edited}")
                    if metadata:
                        break
                    for kind in _ANSWERS:
                        watched.upload(b'{"messages":[],"a":"sink:%b"}' % kind.encode(), secure)
                        add(watched, f"{over}: {_AT_ONCE} answers of 25 MB {kind}")
                for kind, body in _SMALLER.items():
                    watched.upload(body, False)
                    add(watched, f"http1: {_AT_ONCE} uploads of 1 MiB {kind}{edited}")
    with _watched(bench, PEERS["txbedrock"]) as watched:
        try:
            _open_streams(bench, watched)
        except Failed as error:
            # What was found before is worth more than this.
            say(str(error))
        add(watched, f"http1: {_OPEN} streams open")
    return found


def table(found: list[Found]) -> str:
    """For RESULTS.md."""
    rows = [
        "| load | callbacks | longest, CPU | its time | of it gc | 5 ms and more | what, where |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        ranked = sorted(one.long.items(), key=lambda item: -item[1]["cpu"])[:_SHOWN]
        first = True
        for name, what in ranked:
            if not first and what["cpu"] < LIMIT_S:
                break
            rows.append(
                f"| {one.load if first else ''} | {one.callbacks if first else ''} "
                f"| {what['cpu'] * 1e3:.1f} ms | {what['wall'] * 1e3:.1f} ms "
                f"| {what['gc'] * 1e3:.1f} ms | {what['stalls']} | {name}; {what['where']} |"
            )
            first = False
        if first:
            rows.append(f"| {one.load} | {one.callbacks} | < 2 ms | | | 0 | |")
    counted = {cause: sum(one.metric.get(cause, 0) for one in found) for cause in _CAUSES}
    rows += [
        "",
        "The gateway's own count (`txbedrock_reactor_stall_seconds`): "
        + ", ".join(f"{count:g} {cause}" for cause, count in counted.items()),
    ]
    return "\n".join(rows)


_READ = (
    "metrics",
    "spend/logs?limit=1000",
    "spend/logs?format=csv",
    "global/spend/keys",
    "key/list?size=100&return_full_object=true",
)
_CAUSES = ("callback", "threads", "machine")


class _Watched:
    """A gateway whose callbacks are measured."""

    def __init__(self, running: Running, folder: Path) -> None:
        self.running = running
        self._file = folder / "watched.json"
        self._counted: dict[str, float] = {}

    def since(self, load: str) -> Found:
        """What took long since it was asked the last time."""
        child = self.running.child
        assert child is not None
        os.kill(child.pid, signal.SIGUSR2)
        until = time.monotonic() + 20
        while not self._file.exists():
            if child.process.poll() is not None or time.monotonic() > until:
                raise Failed(f"{load}: {child.said()}")
            time.sleep(0.01)
        told = json.loads(self._file.read_text("utf-8"))
        self._file.unlink()
        text = self.get("metrics").decode()
        pattern = r'txbedrock_reactor_stall_seconds_count\{cause="(\w+)"\} (\S+)'
        counted = {cause: float(count) for cause, count in re.findall(pattern, text)}
        new = {cause: count - self._counted.get(cause, 0) for cause, count in counted.items()}
        self._counted = counted
        return Found(load, told["callbacks"], told["long"], told["gc"], new)

    def get(self, path: str) -> bytes:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.running.ports['http1']}/{path}",
            headers={"Authorization": f"Bearer {MASTER_KEY}"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as answer:
            data: bytes = answer.read()
            return data

    def upload(self, body: bytes, secure: bool) -> None:
        """
        Post a body several times at once.

        :raises Failed: an answer was not as it should be.
        """
        failures: list[str] = []

        def one() -> None:
            try:
                for _ in range(_ROUNDS):
                    self._post(body, secure)
            except Exception as error:
                failures.append(repr(error))

        threads = [threading.Thread(target=one) for _ in range(_AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise Failed(failures[0])

    def _post(self, body: bytes, secure: bool) -> None:
        running = self.running
        port = running.ports["tls" if secure else "http1"]
        lines = [
            f"POST {running.peer.path('converse')} HTTP/1.1", "Host: localhost",
            f"Content-Length: {len(body)}", "Connection: close", *running.headers, "", "",
        ]  # fmt: skip
        plain = socket.create_connection(("127.0.0.1", port), 60.0)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(plain) if secure else plain as connection:
            connection.sendall("\r\n".join(lines).encode())
            connection.sendall(body)
            start = connection.recv(65536)
            if not start.startswith(b"HTTP/1.1 200"):
                raise Failed(f"an upload: {start[:200]!r}")
            while connection.recv(262144):
                pass


@contextmanager
def _watched(bench: Bench, peer: Peer, upstream: int | None = None) -> Iterator[_Watched]:
    script = Path(__file__).with_name("watched.py")
    running = bench.start(replace(peer, program=[script, bench.folder]), upstream)
    try:
        watched = _Watched(running, bench.folder)
        watched.since("start")
        yield watched
    finally:
        running.stop()


def _open_streams(bench: Bench, watched: _Watched) -> None:
    options = {"streams": _OPEN, "ramp": _OPEN / 150}
    with bench.generator(
        watched.running, "http1", "streams", options, asked="bench:100:60000000:0", limit_s=180
    ) as child:
        line = child.line()
        if line.partition(" ")[0] != "steady":
            child.process.kill()
            raise Failed(f"{_OPEN} streams: {line} {child.said()}")
        # New requests beside them, which make the collector run.
        bench.load(watched.running, "http1", "unary", {"streams": 32, "seconds": 8})


# What is sent and answered


def _filled(start: bytes, piece: bytes, end: bytes, size: int) -> bytes:
    return start + piece * ((size - len(start) - len(end)) // len(piece)) + end


def _base64_body(size: int) -> bytes:
    start = b'{"messages":[{"role":"user","content":[{"image":{"format":"png","source":{"bytes":"'
    return _filled(start, b"iVBORw0KGgoAAAANSUhEUgAA", b'"}}}]}],"inferenceConfig":{}}', size)


def _dense_body(size: int) -> bytes:
    start = b'{"messages":[{"role":"user","content":['
    return _filled(start, b'{"text":"a"},', b'{"text":"b"}]}],"inferenceConfig":{}}', size)


def _sparse_body(size: int) -> bytes:
    """Nearly all of it is in a member that is gone through for what it allows."""
    start = b'{"messages":[{"role":"user","content":[{"text":"a"}]}],"inferenceConfig":{},'
    start += b'"additionalModelRequestFields":{"a":['
    return _filled(start, b"[],", b"[]]}}", size)


_BODIES = {"base64": _base64_body(_BIG), "small members": _dense_body(_BIG)}
_SMALLER = {
    "base64": _base64_body(1024 * 1024),
    "small members": _dense_body(1024 * 1024),
    "empty lists": _sparse_body(1024 * 1024),
}
_USAGE = b'"usage":{"inputTokens":1,"outputTokens":2,"totalTokens":3}}'
_ANSWERS = ("base64", "small members", "chunks of a byte")
_MARK = re.compile(rb'"sink:([a-z0-9 ]+)"')


class _Sink:
    """An upstream that takes bodies of any length; a thread for each connection."""

    def __enter__(self) -> _Sink:
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Taker)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Taker(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        try:
            while self._one():
                pass
        except ConnectionError:
            pass

    def _one(self) -> bool:
        length = 0
        while (line := self.rfile.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if not length:
            return False
        start = self.rfile.read(min(length, 4096))
        left = length - len(start)
        while left:
            left -= len(self.rfile.read(min(left, 262144)))
        found = _MARK.search(start)
        self._answer("" if found is None else found[1].decode())
        return True

    def _answer(self, kind: str) -> None:
        message = b'{"output":{"message":{"role":"assistant","content":[{"text":"'
        size = 0 if not kind else 2_000_000 if kind.startswith("chunks") else _BIG
        if kind == "small members":
            body = _filled(message, b'a"},{"text":"', b'"}]}},' + _USAGE, size)
        else:
            body = _filled(message, b"iVBORw0KGgoAAAANSUhEUgAA", b'"}]}},' + _USAGE, size)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        if kind.startswith("chunks"):
            chunked = b"".join([b"1\r\n%c\r\n" % byte for byte in body]) + b"0\r\n\r\n"
            self.wfile.write(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked)
        else:
            self.wfile.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def main(bench: Bench, write: Path | None = None) -> int:
    """:returns: 1 if a callback took longer than it may."""
    found = stalls(bench, lambda text: print(text, file=sys.stderr, flush=True))
    text = table(found)
    if write is None:
        print(text)
    else:
        write.write_text(text + "\n", "utf-8")
    return int(any(one.longest_s >= LIMIT_S for one in found))
