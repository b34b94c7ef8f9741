"""
The gateway as users run it: ``twistd -n bedrockproxy`` in a process of its own.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ProcessProtocol, connectionDone
from twisted.python.failure import Failure

from tests.fakes import until

__all__ = ["Program"]

_READY = re.compile(r"ready on [^\s\"]*:(\d+)")
_TWISTD = os.path.join(os.path.dirname(sys.executable), "twistd")
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Program(ProcessProtocol):
    """
    One run of twistd.

    :param arguments: after ``twistd -n``.
    :param directory: to run in; the pid file comes to be there.
    :param environ: its whole environment, the search path for modules apart.
    :param twistd: what is run in the place of twistd, as Python's arguments.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        directory: str,
        environ: Mapping[str, str] | None = None,
        twistd: Sequence[str] = (_TWISTD,),
    ) -> None:
        self.output = ""
        """What it wrote so far, standard output and error."""

        self.exit_code: int | None = None
        self.ended: Deferred[None] = Deferred()
        self.transport: Any
        reactor.spawnProcess(
            self,
            sys.executable,
            [sys.executable, *twistd, "-n", *arguments],
            env={"PYTHONPATH": _ROOT, "PYTHONUNBUFFERED": "1", **(environ or {})},
            path=directory,
        )

    def outReceived(self, data: bytes) -> None:
        self.output += data.decode("utf-8", "replace")

    def errReceived(self, data: bytes) -> None:
        self.outReceived(data)

    def processEnded(self, reason: Failure = connectionDone) -> None:
        self.exit_code = getattr(reason.value, "exitCode", None)
        self.ended.callback(None)

    @property
    def pid(self) -> int:
        pid: int = self.transport.pid
        return pid

    async def ready(self, seconds: float = 30.0) -> int:
        """
        Wait until the gateway says that it is ready.

        :returns: the port of the first address it listens on.
        """
        await until(lambda: self.exit_code is not None or bool(self.ports()), seconds)
        assert self.exit_code is None, self.output
        return self.ports()[0]

    def ports(self) -> list[int]:
        """Those that it said it is ready on."""
        return [int(port) for port in _READY.findall(self.output)]

    def memory(self, name: str = "VmRSS") -> int:
        """
        Bytes, from ``/proc/PID/status``.

        :param name: ``VmRSS`` for what is resident now, ``VmHWM`` for the most so far.
        """
        with open(f"/proc/{self.pid}/status", encoding="ascii") as file:
            for line in file:
                if line.startswith(f"{name}:"):
                    return int(line.split()[1]) * 1024
        raise AssertionError(f"no {name} of {self.pid}")

    def processor_s(self) -> tuple[float, float]:
        """How long it had a core so far, and how long it waited for one that others had."""
        with open(f"/proc/{self.pid}/schedstat", encoding="ascii") as file:
            had, waited, _ = file.read().split()
        return int(had) / 1e9, int(waited) / 1e9

    async def stop(self, signal_name: str = "TERM") -> int | None:
        """
        Send a signal, if it still runs, and wait for the end.

        :returns: the exit code; None if it was ended by a signal.
        """
        if not self.ended.called:
            os.kill(self.pid, getattr(signal, f"SIG{signal_name}"))
            await self.ended
        return self.exit_code
