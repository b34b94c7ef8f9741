"""
Programs that a benchmark starts: on which core, what they use, and that they end.

Linux only: figures come from ``/proc`` and from the clocks that the kernel keeps of each
process, which count nanoseconds of all its threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

__all__ = [
    "Child",
    "Failed",
    "Memory",
    "bounded",
    "clean_environment",
    "cpu_seconds",
    "free_ports",
    "tree",
]

_PR_SET_PDEATHSIG = 1
_STOPPING_S = 20.0
_FOREIGN = ("AWS_", "BOTO", "LITELLM_", "TXBEDROCK_", "DATABASE_URL", "SSL_")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")

_libc = ctypes.CDLL(None, use_errno=True)


class Failed(Exception):
    """Something could not be measured; it says why."""


class _TookTooLong(BaseException):
    """Not an :class:`Exception`: nobody shall go on after it."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a process and its children, in bytes."""

    pss: int
    """Resident, what is shared with others counted in part."""

    rss: int


class Child:
    """
    A program in a process of its own, which does not outlive ours.

    :param cores: on which it may run; all if None.
    :param output: takes what it says; its standard output is piped if None.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        folder: Path,
        *,
        environ: Mapping[str, str] | None = None,
        cores: set[int] | None = None,
        output: Path | None = None,
    ) -> None:
        self.name = name
        self.output = output

        def prepared() -> None:
            # SIGTERM, which those with children of their own pass on to them.
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if cores is not None:
                os.sched_setaffinity(0, cores)

        with contextlib.ExitStack() as stack:
            out: int | IO[bytes] = subprocess.PIPE
            if output is not None:
                out = stack.enter_context(output.open("ab"))
            self.process = subprocess.Popen(
                [str(part) for part in command],
                cwd=folder,
                env=dict(clean_environment() if environ is None else environ),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.PIPE if output is None else subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=prepared,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """The next one it says; empty at the end."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def said(self) -> str:
        """Its last words."""
        if self.output is not None:
            text = self.output.read_text("utf-8", "replace")
        else:
            assert self.process.stderr is not None
            text = self.process.stderr.read().decode("utf-8", "replace")
        return "\n".join(text.splitlines()[-15:])

    def cpu(self) -> float:
        """Seconds so far, user and system, of it and its children."""
        return sum(map(cpu_seconds, tree(self.pid)))

    def memory(self) -> Memory:
        pss = rss = 0
        for pid in tree(self.pid):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    pss += int(line.split()[1]) * 1024
                elif line.startswith("Rss:"):
                    rss += int(line.split()[1]) * 1024
        return Memory(pss, rss)

    def descriptors(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in tree(self.pid))

    def await_port(self, port: int, seconds: float) -> None:
        """
        Wait until it can be connected to.

        :raises Failed: it has ended, or takes too long.
        """
        until = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
                return
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended at once: {self.said()}")
            if time.monotonic() > until:
                raise Failed(f"{self.name} did not listen within {seconds:g} s: {self.said()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL for all it has started if that does not help."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOPPING_S)
        # The group is its own, and its id is not given to others while one of it lives.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def tree(pid: int) -> list[int]:
    """A process and all that came from it and still run."""
    found = [pid]
    for each in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for task in os.listdir(f"/proc/{each}/task"):
                text = Path(f"/proc/{each}/task/{task}/children").read_text()
                found.extend(map(int, text.split()))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process; 0 if it is gone."""
    try:
        # clock_getcpuclockid(3): the clock of a process, by its id.
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on; taken together, so no two are equal."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def clean_environment(*prefixes: str) -> dict[str, str]:
    """Ours, without what would make a program look for AWS, and what begins with one of these."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith((*_FOREIGN, *prefixes)) and name.upper() not in _PROXIES
    } | {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextlib.contextmanager
def bounded(seconds: int) -> Iterator[None]:
    """
    What is done within ends, and what it has started with it, by a signal or in time.

    :raises SystemExit: if it does not.
    """

    def stop(number: int, frame: object) -> None:
        for each in (*stops, signal.SIGALRM):
            signal.signal(each, signal.SIG_IGN)  # from here on everything is being stopped
        if number == signal.SIGALRM:
            raise _TookTooLong(f"not done within {seconds} s")
        raise _TookTooLong(f"stopped by {signal.Signals(number).name}")

    stops = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    before = {each: signal.signal(each, stop) for each in (*stops, signal.SIGALRM)}
    signal.alarm(seconds)
    try:
        yield
    except _TookTooLong as error:
        raise SystemExit(f"benchmarks: {error}") from None
    finally:
        signal.alarm(0)
        for each, handler in before.items():
            signal.signal(each, handler)
