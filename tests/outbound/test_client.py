"""
The treq client of the forward path changes nothing, over real sockets.
"""

from __future__ import annotations

from typing import Any

import treq
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.web.client import Agent
from twisted.web.http_headers import Headers

from tests.fakes import GatewayTestCase, Received, UpstreamConnection, answer
from txbedrock.interfaces import UpstreamRequest
from txbedrock.outbound.agent import ExactAgent, Pool, https_policy
from txbedrock.outbound.client import ForwardingClient
from txbedrock.outbound.upstream import Upstream


class EmptyBody:
    """A body of nothing."""

    length = 0
    sha256 = ""

    def start(self) -> bytes:
        return b""

    def producer(self) -> None:
        return None


class ClientTests(GatewayTestCase):
    """What is asked for is what is sent, and what is sent back is what is got."""

    async def prepare(self) -> ForwardingClient:
        self.upstream = await self.start_upstream()
        pool = Pool(reactor, max_idle=10, connect_timeout_s=5.0)
        self.addCleanup(pool.closeCachedConnections)
        return ForwardingClient(ExactAgent(pool, https_policy(None)))

    async def get(self, client: ForwardingClient, target: bytes) -> Any:
        url = b"http://127.0.0.1:%d%b" % (self.upstream_port, target)
        return await client.request("GET", url, headers=Headers({b"Host": [b"h"]}))

    async def test_targets(self) -> None:
        """A request target goes out byte for byte, however odd."""
        client = await self.prepare()
        for target in (b"/", b"/a%2Fb/%7e/c:d;p=1", b"//x//", b"/a?", b"/a?b=%20&&c", b"/a?x=/?y"):
            response = await self.get(client, target)
            self.assertEqual(await response.content(), b'{"output": "planted-answer"}')
            self.assertEqual(self.upstream.requests[-1].target, target)

    async def test_no_header_added(self) -> None:
        """Nothing but the headers given is sent."""
        client = await self.prepare()
        await (await self.get(client, b"/")).content()
        self.assertEqual(self.upstream.requests[0].headers, [(b"Host", b"h")])

    async def test_no_cookies_kept(self) -> None:
        """A cookie that an answer sets is not sent with the next request."""
        client = await self.prepare()
        self.upstream.script = lambda up, _: up.write(
            answer(b"{}", headers=b"Set-Cookie: tenant=a; Path=/\r\n")
        )
        for _ in range(2):
            response = await self.get(client, b"/")
            self.assertEqual(response.headers.getRawHeaders(b"set-cookie"), [b"tenant=a; Path=/"])
            await response.content()
        self.assertEqual(self.upstream.requests[1].get(b"cookie"), [])

    async def test_no_redirect_followed(self) -> None:
        """A redirect is an answer like any other."""
        client = await self.prepare()
        self.upstream.script = lambda up, _: up.write(
            answer(b"", b"307 Elsewhere", b"Location: http://127.0.0.1:1/\r\n")
        )
        response = await self.get(client, b"/")
        await response.content()
        self.assertEqual((response.code, len(self.upstream.requests)), (307, 1))

    async def test_nothing_decoded(self) -> None:
        """A compressed body stays compressed."""
        client = await self.prepare()
        self.upstream.script = lambda up, _: up.write(
            answer(b"\x1f\x8bzipped", headers=b"Content-Encoding: gzip\r\n")
        )
        self.assertEqual(await (await self.get(client, b"/")).content(), b"\x1f\x8bzipped")

    async def test_connections_are_kept(self) -> None:
        """Requests one after the other share a connection."""
        client = await self.prepare()
        for _ in range(5):
            await (await self.get(client, b"/")).content()
        self.assertEqual(self.upstream.accepted, 1)

    async def test_idle_connections_are_bounded(self) -> None:
        """No more connections are kept than allowed."""
        self.upstream = await self.start_upstream()
        pool = Pool(reactor, max_idle=2, connect_timeout_s=5.0)
        self.addCleanup(pool.closeCachedConnections)
        client = ForwardingClient(ExactAgent(pool, https_policy(None)))
        held: list[UpstreamConnection] = []

        def hold(up: UpstreamConnection, _: Received) -> None:
            held.append(up)
            if len(held) == 5:
                for connection in held:
                    connection.write(answer(b"{}"))

        self.upstream.script = hold
        asking = [Deferred.fromCoroutine(self.get(client, b"/")) for _ in range(5)]
        for asked in asking:
            await (await asked).content()
        self.assertEqual(pool.idle, 2)

    async def test_bad_target(self) -> None:
        """A target that is no HTTP fails and sends nothing."""
        client = await self.prepare()
        with self.assertRaises(ValueError):
            await self.get(client, b"/a b\r\nX: y")
        self.assertEqual(self.upstream.accepted, 0)

    async def test_plain_treq_stands_in(self) -> None:
        """Any treq client can be put in its place."""
        self.upstream = await self.start_upstream()
        upstream = Upstream(
            treq.client.HTTPClient(Agent(reactor)),
            reactor,
            idle_timeout_s=5.0,
            stalled_client_timeout_s=5.0,
        )
        response = await upstream.send(
            UpstreamRequest(
                method=b"GET",
                url=b"http://127.0.0.1:%d/x" % self.upstream_port,
                headers=[(b"Host", b"h")],
                body=EmptyBody(),
            )
        )
        self.assertEqual(response.status, 200)
        await response.discard()
