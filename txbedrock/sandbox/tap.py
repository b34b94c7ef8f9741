"""
``twistd -n bedrocksandbox``.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger
from twisted.python import usage

from txbedrock.listening import listen, shown
from txbedrock.sandbox.service import Sandbox

__all__ = ["Options", "makeService"]

_DEFAULT_LISTEN = "tcp:4100:interface=127.0.0.1"


class Options(usage.Options):
    """What may be said on the command line."""

    synopsis = "[options]"
    longdesc = (
        "A stand-in for Amazon Bedrock: it checks every signature, answers every operation with"
        " made-up data, plays faults on request (POST /_sandbox/faults), and is no model."
    )
    optParameters = [
        ["access-key-id", None, "sandbox", "The access key id that requests are signed with."],
        ["secret-access-key", None, "sandbox", "Its secret."],
        ["session-token", None, None, "The session token that must come with it, if any."],
        ["api-key", None, None, "The bearer token for bedrock and bedrock-runtime, if any."],
        ["region", None, None, "The region that must be signed for. [default: any]"],
        ["prefix", None, "", "A path before everything, as in /base."],
        ["events", None, 0, "Text events in a stream, and words in a text; 0: a sentence.", int],
        ["delay-ms", None, 0.0, "Wait before each answer, and between events.", float],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []

    def opt_listen(self, endpoint: str) -> None:
        """Where to listen, as a Twisted endpoint string; may be given several times.
        [default: tcp:4100:interface=127.0.0.1]"""
        self["listen"].append(endpoint)

    def postOptions(self) -> None:
        if not self["listen"]:
            self["listen"].append(_DEFAULT_LISTEN)
        if self["events"] < 0 or self["delay-ms"] < 0:
            raise usage.UsageError("--events and --delay-ms must not be negative.")


class _SandboxService(Service):
    """Listens as long as it runs, and leaves no connection behind."""

    _log = Logger()

    def __init__(self, reactor: Any, sandbox: Sandbox, descriptions: list[str]) -> None:
        self.sandbox = sandbox
        self._reactor = reactor
        self._descriptions = descriptions
        self._ports: list[IListeningPort] = []
        # twistd turns it into a part of the log when it starts.
        self._stderr = sys.stderr

    def privilegedStartService(self) -> None:
        self._ports = listen(
            self._reactor,
            self._descriptions,
            self.sandbox.site,
            program="bedrocksandbox",
            stderr=self._stderr,
        )

    def startService(self) -> None:
        super().startService()
        if not self._ports:
            # Whoever starts a service directly has no privileged phase.
            self.privilegedStartService()
        self._log.info(
            "The sandbox, a stand-in for Bedrock and no model, is at {addresses}.",
            addresses=", ".join(shown(port.getHost()) for port in self._ports),
        )

    def stopService(self) -> Deferred[Any]:
        super().stopService()
        ports, self._ports = self._ports, []
        stopped = gatherResults([maybeDeferred(port.stopListening) for port in ports])
        return stopped.addCallback(lambda _: self.sandbox.close())


def makeService(options: Options) -> IService:
    """
    The service of ``twistd``.
    """
    from twisted.internet import reactor

    for description in options["listen"]:
        try:
            serverFromString(reactor, description)
        except Exception as error:
            raise usage.UsageError(f"--listen {description}: {error}") from None
    sandbox = Sandbox(
        reactor,
        access_key_id=options["access-key-id"],
        secret_access_key=options["secret-access-key"],
        session_token=options["session-token"],
        api_key=options["api-key"],
        region=options["region"],
        prefix=options["prefix"],
        words=options["events"],
        delay_ms=options["delay-ms"],
    )
    return _SandboxService(reactor, sandbox, options["listen"])
