"""
Listening on endpoint strings, or saying in one line why not.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TextIO

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

__all__ = ["CannotListen", "CannotStart", "listen", "shown"]

_log = Logger()


class CannotStart(SystemExit, Exception):
    """
    The program ends with status 1 because it lacks something.

    It is a ``SystemExit`` because Python then ends without a traceback, and an
    ``Exception`` because ``twistd`` then takes its pid file away and tells the
    parent of a daemon, which would wait for ever otherwise.
    """

    def __init__(self, reason: str) -> None:
        SystemExit.__init__(self, 1)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class CannotListen(CannotStart):
    """
    An address cannot be had.

    :param description: the endpoint string.
    """

    def __init__(self, description: str, reason: str) -> None:
        CannotStart.__init__(self, reason)
        self.description = description

    def __str__(self) -> str:
        # twistd shows the first hundred bytes.
        return f"{self.reason}: {self.description}"


def listen(
    reactor: Any,
    descriptions: Sequence[str],
    factory: IProtocolFactory,
    *,
    endpoint: Callable[[str], IStreamServerEndpoint] | None = None,
    program: str = "",
    stderr: TextIO | None = None,
) -> list[IListeningPort]:
    """
    Listen on all of them, or on none.

    :param descriptions: endpoint strings.
    :param endpoint: what such a string means; by default what Twisted says.
    :param program: its name, if somebody waits at a terminal for it to start.
    :param stderr: where that terminal is; twistd turns ``sys.stderr`` into a
        part of the log when it starts.
    :raises CannotListen: and nothing else.
    """
    ports: list[IListeningPort] = []
    meant = endpoint or partial(serverFromString, reactor)
    for description in descriptions:
        failures: list[Failure] = []
        listening: Deferred[IListeningPort] = maybeDeferred(
            lambda description: meant(description).listen(factory), description
        )
        listening.addCallbacks(ports.append, failures.append)
        if failures:
            for port in ports:
                port.stopListening()
            error = CannotListen(description, _reason(failures[0].value))
            message = f"cannot listen on {error.description}: {error.reason}"
            _log.error("{message}", message=message)
            if program:
                print(f"{program}: {message}", file=stderr or sys.stderr, flush=True)
            raise error
    return ports


def _reason(error: object) -> str:
    """Why an address cannot be had, without what is said of the address anyway."""
    cause = getattr(error, "socketError", error)
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__


def shown(address: Any) -> str:
    """An address for people: ``127.0.0.1:4000``, ``unix:/run/x.sock``."""
    host = getattr(address, "host", None)
    if host is None:
        return f"unix:{os.fsdecode(address.name)}" if hasattr(address, "name") else str(address)
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"
