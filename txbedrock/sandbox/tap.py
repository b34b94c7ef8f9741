"""
``twistd -n bedrocksandbox``.
"""

from __future__ import annotations

from typing import Any

from twisted.application.internet import StreamServerEndpointService
from twisted.application.service import IService, MultiService
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.logger import Logger
from twisted.python import usage

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


class _SandboxService(MultiService):
    """Listens as long as it runs, and leaves no connection behind."""

    _log = Logger()

    def __init__(self, sandbox: Sandbox, listen: list[str]) -> None:
        super().__init__()
        self.sandbox = sandbox
        self._listen = listen

    def startService(self) -> None:
        super().startService()
        self._log.info(
            "The sandbox, a stand-in for Bedrock and no model, is at {listen}.",
            listen=", ".join(self._listen),
        )

    def stopService(self) -> Deferred[None]:
        stopped: Deferred[Any] = maybeDeferred(super().stopService)
        return stopped.addCallback(lambda _: self.sandbox.close())


def makeService(options: Options) -> IService:
    """
    The service of ``twistd``.
    """
    from twisted.internet import reactor

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
    service = _SandboxService(sandbox, options["listen"])
    for description in options["listen"]:
        try:
            endpoint = serverFromString(reactor, description)
        except Exception as error:
            raise usage.UsageError(f"--listen {description}: {error}") from None
        StreamServerEndpointService(endpoint, sandbox.site).setServiceParent(service)
    return service
