"""
Limits and budgets under many requests at once, through the gateway to the sandbox.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from tests.fakes import BareClient, request, until
from tests.loopback.test_spend import SpendTestCase
from txbedrock.config import AccessSettings, LedgerSettings
from txbedrock.core.auth import hash_key
from txbedrock.core.entries import Filters
from txbedrock.core.eventstream import Decoder, Frame
from txbedrock.core.grants import Key, Limits, ModelLimits, Token

SECRET = "sk-planted-limited-key"
HASH = hash_key(SECRET.encode()).hex()
OWN = "/bedrock/model/own/converse"
NOVA = "/bedrock/model/nova/converse"
CROWD = 200
ROOM = 20

BODY = json.dumps(
    {
        "messages": [{"role": "user", "content": [{"text": "count these six words please"}]}],
        "inferenceConfig": {"maxTokens": 20},
    }
).encode()

INPUT, OUTPUT = 5, 20
"""Tokens that the sandbox makes of it."""

COST = INPUT * 7 + OUTPUT * 11
"""Pico-USD of the model ``own``."""


class LimitTestCase(SpendTestCase):
    """A key with limits, of the configuration's own."""

    timeout = 120

    async def start_limited(self, limits: Limits, **changes: Any) -> None:
        folder = self.mktemp()
        key = Key(id=HASH, tokens=(Token(hash=HASH),), alias="ci", limits=limits)
        await self.start_models(
            database_url=f"sqlite:///{folder}.db",
            ledger=LedgerSettings(journal_path=f"{folder}-journal"),
            access=AccessSettings(keys=(key,), limit_wait_s=30.0, **changes),
        )

    async def say(self, path: str = OWN, *headers: str, body: bytes = BODY) -> BareClient:
        client = await self.ask(request(path, body, key=SECRET, headers=headers))
        client.transport.loseConnection()
        return client

    async def crowd(self, path: str = OWN) -> Counter[int]:
        """How many of many at once got which status."""
        waiting = [Deferred.fromCoroutine(self.say(path)) for _ in range(CROWD)]
        clients = await gatherResults(waiting, consumeErrors=True)
        self.refused = [client for client in clients if client.status != 200]
        return Counter(client.status for client in clients)

    async def spent(self) -> int:
        """Pico-USD of the key, as the ledger has it."""
        kept = self.gateway._ledger
        assert kept is not None
        [total] = await kept.ledger.totals("all", Filters(key_hash=HASH))
        return total.cost_picousd


class CrowdTests(LimitTestCase):
    """Two hundred at once against a limit that twenty fit into."""

    async def test_budget(self) -> None:
        """A budget is a cap: never a pico-USD over it, and not much left."""
        await self.start_limited(Limits(max_budget=ROOM * COST))
        statuses = await self.crowd()
        self.assertIn(statuses[200], (ROOM - 1, ROOM))
        self.assertEqual(statuses[400], CROWD - statuses[200])
        self.assertEqual(await self.spent(), statuses[200] * COST)
        self.assertEqual(len(self.sandbox.billed), statuses[200])
        for client in self.refused:
            self.assertIn(b"x-amzn-errortype: servicequotaexceededexception", client.head)
            self.assertIn(b"budget of key 'ci'", client.body)

    async def test_rpm(self) -> None:
        """Exactly twenty requests a minute."""
        await self.start_limited(Limits(rpm=ROOM))
        self.assertEqual(await self.crowd(), {200: ROOM, 429: CROWD - ROOM})
        for client in self.refused:
            self.assertEqual(client.head.splitlines()[0], b"http/1.1 429 too many requests")
            self.assertIn(b"x-amzn-errortype: throttlingexception", client.head)
            self.assertRegex(client.head, rb"\r\nretry-after: (5\d|6[01])\r\n")
            self.assertRegex(client.head, rb"\r\nx-amz-retry-after: (5\d|6[01])\d{3}\r\n")

    async def test_tpm(self) -> None:
        """Tokens as Bedrock counts them."""
        await self.start_limited(Limits(tpm=ROOM * (INPUT + OUTPUT)))
        statuses = await self.crowd(NOVA)
        self.assertIn(statuses[200], (ROOM - 1, ROOM))
        self.assertEqual(statuses[429], CROWD - statuses[200])

    async def test_parallel(self) -> None:
        """Never more than twenty at the same time; when they have ended, others."""
        await self.start_limited(Limits(max_parallel=ROOM))
        self.sandbox.faults.add("hang", seconds=2.0, times=2 * ROOM)
        self.assertEqual(await self.crowd(), {200: ROOM, 429: CROWD - ROOM})
        self.assertEqual(await self.crowd(), {200: ROOM, 429: CROWD - ROOM})

    async def test_model(self) -> None:
        """A limit of one model leaves the others alone."""
        await self.start_limited(Limits(models={"own": ModelLimits(rpm=ROOM)}))
        self.assertEqual(await self.crowd(), {200: ROOM, 429: CROWD - ROOM})
        self.assertEqual(await self.crowd(NOVA), {200: CROWD})


class AnswerTests(LimitTestCase):
    """What a client is told of its limits."""

    async def test_headers(self) -> None:
        """What is left, and what was spent with this very answer."""
        await self.start_limited(Limits(rpm=10, tpm=1000, max_budget=10 * COST))
        client = await self.say()
        client = await self.say()
        for line in (
            b"x-ratelimit-limit-requests: 10",
            b"x-ratelimit-remaining-requests: 8",
            b"x-ratelimit-limit-tokens: 1000",
            b"x-litellm-key-spend: 0.00000000051",
            b"x-litellm-key-max-budget: 0.00000000255",
        ):
            self.assertIn(line + b"\r\n", client.head + b"\r\n")

    async def test_after_restart(self) -> None:
        """What was spent before counts when the gateway is started again."""
        await self.start_limited(Limits(max_budget=10 * COST))
        for _ in range(5):
            self.assertEqual((await self.say()).status, 200)
        await self.gateway.stopService()
        await self.start_gateway(self.with_models)
        statuses = [(await self.say()).status for _ in range(10)]
        self.assertIn(statuses.count(200), (4, 5))
        self.assertEqual(await self.spent(), (5 + statuses.count(200)) * COST)


class OverrunTests(LimitTestCase):
    """A stream that is longer than what was reserved for it."""

    async def stream(self, **access: Any) -> tuple[BareClient, list[Frame]]:
        await self.start_limited(Limits(max_budget=1000 * COST), **access)
        self.sandbox.faults.add("flood", megabytes=0.2, frame_bytes=200, times=1)
        client = await self.say("/bedrock/model/own/converse-stream")
        self.assertEqual(client.status, 200)
        self.assertTrue(client.whole())
        return client, Decoder().feed(client.dechunked())

    async def test_stopped(self) -> None:
        """If the operator wants it, it ends with an exception that SDKs know."""
        _, frames = await self.stream(stop_overruns=True)
        last = frames[-1]
        self.assertEqual(last.headers[":exception-type"], "throttlingException")
        self.assertIn(b"maxTokens", last.payload)
        self.assertLess(len(frames), 1000)
        [record] = self.records.records
        self.assertEqual((record.outcome.value, record.error), ("partial", "overrun"))
        await until(lambda: not self.gateway._gateway.in_flight)

    async def test_not_stopped(self) -> None:
        """Otherwise it goes on to its end."""
        _, frames = await self.stream()
        self.assertEqual({frame.headers[":message-type"] for frame in frames}, {"event"})
        self.assertGreater(len(frames), 900)
