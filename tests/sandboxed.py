"""
A gateway with the sandbox behind it, both in this process, over real sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from tests.fakes import ACCESS_KEY_ID, KEY, SECRET, GatewayTestCase
from txbedrock.config import SERVICES, Limits, Settings
from txbedrock.sandbox.service import Sandbox

__all__ = ["REGION", "SandboxedTestCase"]

_T = TypeVar("_T")

REGION = "us-west-2"


class SandboxedTestCase(GatewayTestCase):
    """
    The sandbox verifies every signature; nothing of the client's key may reach it.
    """

    sandbox: Sandbox

    def tearDown(self) -> None:
        super().tearDown()
        for recorded in self.sandbox.requests:
            self.assertNotIn(KEY.encode(), repr([recorded.target, recorded.headers]).encode())

    def start_sandbox(self, sandbox: Sandbox | None = None, **options: Any) -> Sandbox:
        """Start a sandbox that knows the credentials of :meth:`deployment`."""
        if sandbox is None:
            sandbox = Sandbox(
                reactor, access_key_id=ACCESS_KEY_ID, secret_access_key=SECRET, **options
            )
        self.sandbox = sandbox
        site: Any = sandbox.site
        port: Any = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.upstream_port = port.getHost().port
        self.addCleanup(sandbox.close)
        self.addCleanup(port.stopListening)
        return sandbox

    def at(self, service: str, region: str | None = None) -> str:
        """
        The sandbox's base URL for a service: it refuses what belongs to another.

        :param region: that must be signed for; any if not given.
        """
        host = service if region is None else f"{service}.{region}"
        return f"http://127.0.0.1:{self.upstream_port}/_as/{host}"

    def settings(self, **changes: Any) -> Settings:
        """Every service at the sandbox, each at a base URL of its own."""
        values: dict[str, Any] = {
            "endpoint_urls": {service: self.at(service) for service in SERVICES},
            "limits": Limits(shutdown_grace_s=1.0),
        }
        return super().settings(**{**values, **changes})

    def deployment(self, **changes: Any) -> Any:
        """A deployment at the sandbox."""
        values: dict[str, Any] = {"region": REGION, "endpoint_url": self.at("bedrock-runtime")}
        return super().deployment(**{**values, **changes})

    async def in_thread(self, call: Callable[..., _T], *args: Any, **options: Any) -> _T:
        """What blocks is done beside the reactor."""
        waiting: Deferred[_T] = deferToThread(call, *args, **options)
        return await waiting
