"""
What metering and the ledger cost: CPU of the gateway with them, against without.

    python benchmarks/metering.py [--requests 2000] [--frames 20000] [--rounds 5]

Two gateways run side by side on one core's worth of work each, one as it is and
one with ``disable_spend_logs``, in front of an upstream that answers from a
constant. Rounds are interleaved; the figure is the median of the differences of
the CPU time (user and system) of the two processes. Nothing else is measured:
for latency and for other gateways see the comparison with the peers.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from txbedrock.core.eventstream import encode

KEY = "sk-bench-1234"
BODY = b'{"messages": [{"role": "user", "content": [{"text": "Hello"}]}]}'
ANSWER = (
    b'{"metrics":{"latencyMs":412},"output":{"message":{"content":[{"text":"Hello, how can I help '
    b'you today?"}],"role":"assistant"}},"stopReason":"end_turn","usage":{"inputTokens":8,'
    b'"outputTokens":10,"totalTokens":18}}'
)
UNARY = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nx-amzn-RequestId: 4f5c\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER)
)


def event(kind: str, payload: bytes) -> bytes:
    return encode(
        {":message-type": "event", ":event-type": kind, ":content-type": "application/json"},
        payload,
    )


DELTA = event(
    "contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":" token"},"p":"abcdefghij"}'
)
METADATA = event(
    "metadata", b'{"metrics":{"latencyMs":9},"usage":{"inputTokens":8,"outputTokens":9}}'
)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.amazon.eventstream\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Upstream:
    """Answers Converse and ConverseStream from constants, a thread a connection."""

    def __init__(self, frames: int) -> None:
        # Eight frames a chunk, as a model that writes fast.
        body = chunk(DELTA * 8) * (frames // 8) + chunk(METADATA) + b"0\r\n\r\n"
        self._stream = STREAM_HEAD + body
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as lines:
            while first := lines.readline():
                length = 0
                while (line := lines.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                lines.read(length)
                connection.sendall(self._stream if b"converse-stream" in first else UNARY)


CONFIG = """
model_list:
  - model_name: m
    litellm_params:
      model: bedrock/us.amazon.nova-lite-v1:0
      aws_region_name: us-west-2
      aws_access_key_id: AKIABENCH
      aws_secret_access_key: bench
      api_base: http://127.0.0.1:{port}
general_settings:
  master_key: {key}
  disable_spend_logs: {off}
  database_url: sqlite:///{folder}/{off}.db
"""


class Gateway:
    """A gateway in a process of its own, and one connection to it."""

    def __init__(self, folder: Path, upstream: int, off: bool) -> None:
        config = folder / f"{off}.yaml"
        config.write_text(
            CONFIG.format(port=upstream, key=KEY, off=str(off).lower(), folder=folder)
        )
        self._process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=", "bedrockproxy",
                "--config", str(config), "--listen", "tcp:0:interface=127.0.0.1",
                "--log-level", "error",
            ],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._client = socket.create_connection(("127.0.0.1", self._port()))

    def _port(self) -> int:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            for line in Path(f"/proc/{self._process.pid}/net/tcp").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in self._inodes():
                    return int(fields[1].split(":")[1], 16)
            time.sleep(0.1)
        raise SystemExit(f"the gateway did not start: {self._process.communicate()[0].decode()}")

    def _inodes(self) -> set[str]:
        found = set()
        for entry in os.scandir(f"/proc/{self._process.pid}/fd"):
            with contextlib.suppress(OSError):
                if match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry.path)):
                    found.add(match[1])
        return found

    def ask(self, verb: str) -> None:
        """One exchange, read to its end."""
        self._client.sendall(
            f"POST /bedrock/model/m/{verb} HTTP/1.1\r\nHost: x\r\nx-api-key: {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
            + BODY
        )
        tail = b""
        end = b"0\r\n\r\n" if verb == "converse-stream" else ANSWER
        while not tail.endswith(end):
            data = self._client.recv(1 << 20)
            if not data:
                raise SystemExit("the gateway closed the connection")
            tail = (tail + data)[-len(end) - 8 :]

    def cpu(self) -> float:
        """Seconds of user and system time so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self._client.close()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)


@contextlib.contextmanager
def gateways(upstream: int) -> Iterator[tuple[Gateway, Gateway]]:
    with tempfile.TemporaryDirectory(prefix="txbedrock-bench-") as folder:
        pair = (Gateway(Path(folder), upstream, False), Gateway(Path(folder), upstream, True))
        try:
            yield pair
        finally:
            for one in pair:
                one.stop()


def cost(gateway: Gateway, verb: str, count: int) -> float:
    """Microseconds of CPU an exchange."""
    before = gateway.cpu()
    for _ in range(count):
        gateway.ask(verb)
    # The writer of batches has its own time; it belongs to these exchanges.
    time.sleep(0.5)
    return (gateway.cpu() - before) / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--frames", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    frames = options.frames // 8 * 8 + 1
    upstream = Upstream(options.frames)
    with gateways(upstream.port) as (on, off):
        for one in (on, off):
            cost(one, "converse", 200)
            cost(one, "converse-stream", 2)
        for verb, count, parts, unit in (
            ("converse", options.requests, 1, "unary request"),
            ("converse-stream", 20, frames, "frame"),
        ):
            rows = []
            for _ in range(options.rounds):
                rows.append((cost(on, verb, count) / parts, cost(off, verb, count) / parts))
            with_it, without = (statistics.median(column) for column in zip(*rows, strict=True))
            more = statistics.median(a - b for a, b in rows)
            print(
                f"{unit}: {with_it:.2f} us with metering and ledger, {without:.2f} without: "
                f"{more:+.2f} us ({options.rounds} rounds of {count})"
            )


if __name__ == "__main__":
    main()
