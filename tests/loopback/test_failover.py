"""
Deployments that fail: a sick region is nobody's problem. The sandbox plays both regions.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.task import deferLater

from tests.fakes import BODY, KEY, BareClient, request
from tests.sandboxed import SandboxedTestCase
from txbedrock.core.deployments import Deployment
from txbedrock.core.eventstream import Decoder
from txbedrock.core.fallbacks import Fallbacks
from txbedrock.core.retry import RetrySettings
from txbedrock.interfaces import Outcome

WELL, SICK = "us-west-2", "us-east-1"
UNARY, STREAM = "/bedrock/model/m/converse", "/bedrock/model/m/converse-stream"
REQUESTS = 1000


class FailoverTestCase(SandboxedTestCase):
    """Two regions under one name."""

    timeout = 180

    def regional(self, region: str, **changes: Any) -> Deployment:
        values = {
            "id": region,
            "region": region,
            "model_id": "us.amazon.nova-lite-v1:0",
            "endpoint_url": self.at("bedrock-runtime", region),
            **changes,
        }
        deployment: Deployment = self.deployment(**values)
        return deployment

    async def start_regions(self, sick: dict[str, Any] | None = None, **changes: Any) -> None:
        self.start_sandbox()
        deployments = (self.regional(WELL), self.regional(SICK, **(sick or {})))
        changes.setdefault("retries", RetrySettings())
        await self.start_gateway(self.settings(deployments=deployments, **changes))

    async def say(self, path: str = UNARY, body: bytes = BODY) -> BareClient:
        client = await self.ask(request(path, body))
        client.transport.loseConnection()
        return client

    async def crowd(self, count: int, at_once: int = 20) -> list[BareClient]:
        """Unary and streamed by turns."""
        gate = DeferredSemaphore(at_once)
        return await gatherResults(
            [
                gate.run(lambda n=n: Deferred.fromCoroutine(self.say((UNARY, STREAM)[n % 2])))
                for n in range(count)
            ],
            consumeErrors=True,
        )

    def assert_whole(self, client: BareClient) -> None:
        self.assertEqual(client.status, 200, client.received[:500])
        if b"vnd.amazon.eventstream" in client.head:
            decoder = Decoder()
            frames = decoder.feed(client.dechunked())
            self.assertTrue(decoder.at_boundary)
            kinds = [str(frame.headers[":message-type"]) for frame in frames]
            self.assertEqual(set(kinds), {"event"})


class SickTests(FailoverTestCase):
    """One of two is sick: no client notices, and it is left alone."""

    async def check(self, sick: dict[str, Any] | None = None, **fault: Any) -> None:
        await self.start_regions(sick)
        if fault:
            kind = fault.pop("kind")
            self.sandbox.faults.add(kind, region=SICK, times=None, **fault)
        attempts: Counter[str] = Counter()
        self.count_attempts(attempts)
        for client in await self.crowd(REQUESTS):
            self.assert_whole(client)
        outcomes = Counter(one.outcome for one in self.records.records if not one.is_attempt)
        self.assertEqual(outcomes, {Outcome.COMPLETE: REQUESTS})
        share = attempts[SICK] / attempts.total()
        self.assertLessEqual(share, 0.02, attempts)
        self.assertGreater(attempts[SICK], 0)

    def count_attempts(self, attempts: Counter[str]) -> None:
        upstream = self.gateway._gateway._upstream
        send: Any = upstream.send

        async def counted(signed: Any) -> Any:
            attempts[SICK if SICK.encode() in repr(signed.headers).encode() else WELL] += 1
            return await send(signed)

        self.patch(upstream, "send", counted)

    async def test_unavailable(self) -> None:
        """503"""
        await self.check(kind="error", status=503, code="ServiceUnavailableException")

    async def test_throttling(self) -> None:
        """429"""
        await self.check(kind="throttle")

    async def test_hanging(self) -> None:
        """No head within the time limit."""
        await self.check({"timeout_s": 0.3}, kind="hang")

    async def test_refusing(self) -> None:
        """Nobody listens there."""
        await self.check({"endpoint_url": "http://127.0.0.1:9"})

    async def test_dying_in_the_first_frame(self) -> None:
        """A connection that breaks before the first event is whole."""
        await self.check(kind="drop", at="frame", after=0)

    async def test_exception_first(self) -> None:
        """A stream whose first event is an exception."""
        await self.check(
            kind="exception", code="throttlingException", after=0, operation="ConverseStream"
        )

    async def test_denied(self) -> None:
        """403: a fault of the configuration."""
        await self.check(kind="error", status=403, code="AccessDeniedException")


class RepeatTests(FailoverTestCase):
    """What is repeated, and what is not."""

    async def test_validation(self) -> None:
        """A ValidationException is the client's, and tried exactly once."""
        await self.start_regions()
        self.sandbox.faults.add("error", status=400, code="ValidationException", times=None)
        client = await self.say()
        self.assertEqual(client.status, 400)
        self.assertEqual(len(self.sandbox.requests), 1)
        self.assertIn(b"x-litellm-attempted-retries: 0", client.head)

    async def test_control_plane(self) -> None:
        """What changes something is never sent twice."""
        await self.start_regions()
        for kind in ({"kind": "error", "status": 503}, {"kind": "drop", "at": "head"}):
            self.sandbox.faults.clear()
            self.sandbox.faults.add(
                kind["kind"], times=None, **{k: v for k, v in kind.items() if k != "kind"}
            )
            before = len(self.sandbox.requests)
            await self.ask(request("/bedrock/guardrails", b'{"name": "g"}'))
            self.assertEqual(len(self.sandbox.requests), before + 1)

    async def test_lost_answer(self) -> None:
        """An attempt that Bedrock may bill has a line of its own."""
        await self.start_regions()
        self.sandbox.faults.add("drop", at="body", times=1)
        client = await self.say()
        self.assertEqual(client.status, 200, client.received)
        lost, whole = self.records.entries
        self.assertEqual(lost.request_id, f"{whole.request_id}-1")
        self.assertEqual((lost.outcome, lost.cost_picousd), ("failed", None))
        self.assertEqual((whole.outcome, whole.attempts), ("complete", 2))
        self.assertIn(b"x-litellm-attempted-retries: 1", client.head)

    async def test_client_leaves(self) -> None:
        """A client that leaves is no failure of anybody's."""
        await self.start_regions()
        self.sandbox.faults.add("hang", times=20)
        for _ in range(20):
            client = await self.connect()
            client.write(request(UNARY))
            await deferLater(reactor, 0.02)
            client.transport.abortConnection()
        for client in await self.crowd(20):
            self.assert_whole(client)
        health = await self.ask(request("/health", b"", method="GET", key=KEY))
        self.assertEqual(json.loads(health.body)["unhealthy_count"], 0, health.body)


class OutageTests(FailoverTestCase):
    """Everything fails for a while."""

    async def test_outage(self) -> None:
        """Attempts stay within 120 % of the requests, and all is well soon after."""
        await self.start_regions()
        length_s = 10.0
        self.sandbox.faults.add(
            "error", status=503, code="ServiceUnavailableException", times=None
        )
        upstream = self.gateway._gateway._upstream
        send: Any = upstream.send
        attempts = 0

        async def counted(signed: Any) -> Any:
            nonlocal attempts
            attempts += 1
            return await send(signed)

        self.patch(upstream, "send", counted)
        asking: list[Deferred[BareClient]] = []
        began = time.monotonic()
        while time.monotonic() - began < length_s:
            asking.append(Deferred.fromCoroutine(self.say()))
            await deferLater(reactor, 0.02)
        clients = await gatherResults(asking, consumeErrors=True)
        self.assertEqual({client.status for client in clients}, {503})
        self.assertLessEqual(attempts, 1.2 * len(clients))
        self.sandbox.faults.clear()
        began = time.monotonic()
        good = 0
        while good < 10:
            good = good + 1 if (await self.say()).status == 200 else 0
        self.assertLess(time.monotonic() - began, 2.0)


class FallbackTests(FailoverTestCase):
    """Another model instead."""

    async def start_fallbacks(self, **changes: Any) -> None:
        self.start_sandbox()
        deployments = (
            self.regional(WELL, model_name="small", id="small"),
            self.regional(
                SICK, model_name="large", id="large", model_id="us.amazon.nova-pro-v1:0"
            ),
        )
        values = {"retries": RetrySettings(num_retries=0), **changes}
        await self.start_gateway(
            self.settings(deployments=deployments, model_group_alias={"mini": "small"}, **values)
        )

    async def test_failure(self) -> None:
        """When all of a model fail, its fallback is asked, by its own id in the path."""
        fallbacks = Fallbacks(general={"small": ("large",)}, aliases={"mini": "small"})
        await self.start_fallbacks(fallbacks=fallbacks)
        self.sandbox.faults.add("error", status=503, region=WELL, times=None)
        for name in ("small", "mini"):
            for verb in ("converse", "converse-stream"):
                client = await self.say(f"/bedrock/model/{name}/{verb}")
                self.assert_whole(client)
                self.assertIn(b"x-litellm-attempted-fallbacks: 1", client.head)
                self.assertIn(b"x-litellm-model-id: large", client.head)
        self.assertEqual({entry.model_name for entry in self.records.entries}, {"large"})
        targets = {request.target.rpartition(b"/model/")[2] for request in self.sandbox.requests}
        self.assertIn(b"us.amazon.nova-pro-v1%3A0/converse", targets)

    async def test_context(self) -> None:
        """A request that is too long goes to the model that takes longer ones."""
        await self.start_fallbacks(fallbacks=Fallbacks(context_window={"small": ("large",)}))
        self.sandbox.faults.add(
            "error",
            status=400,
            code="ValidationException",
            message="Input is too long for requested model.",
            region=WELL,
            times=None,
        )
        client = await self.say("/bedrock/model/small/converse")
        self.assert_whole(client)
        self.assertIn(b"x-litellm-model-id: large", client.head)

    async def test_none(self) -> None:
        """Without one the client has the failure as Bedrock said it."""
        await self.start_fallbacks()
        self.sandbox.faults.add(
            "error", status=503, code="ServiceUnavailableException", message="so sorry", times=None
        )
        client = await self.say("/bedrock/model/small/converse")
        self.assertEqual(client.status, 503)
        self.assertIn(b"so sorry", client.body)


class ShownTests(FailoverTestCase):
    """What there is to see."""

    async def get(self, path: str) -> Any:
        client = await self.ask(request(path, b"", method="GET", key=KEY))
        self.assertEqual(client.status, 200, client.received)
        return json.loads(client.body)

    async def test_health(self) -> None:
        """Each deployment, and since when and why it is out."""
        await self.start_regions()
        health = await self.get("/health")
        self.assertEqual((health["healthy_count"], health["unhealthy_count"]), (3, 0))
        self.sandbox.faults.add("throttle", region=SICK, times=None)
        for client in await self.crowd(20):
            self.assert_whole(client)
        health = await self.get("/health?model=m")
        [sick] = health["unhealthy_endpoints"]
        [well] = health["healthy_endpoints"]
        self.assertEqual(
            (sick["model_id"], sick["state"], sick["why"]), (SICK, "open", "throttled")
        )
        self.assertIsNotNone(sick["since"])
        self.assertEqual((well["model_id"], well["region"]), (WELL, WELL))
        self.assertGreater(well["first_byte_ms"], 0)
        metrics = await self.ask(request("/metrics", b"", method="GET", key=KEY))
        for line in (
            f'txbedrock_deployment_state{{deployment="{SICK}"}} 2.0',
            f'txbedrock_deployment_state{{deployment="{WELL}"}} 0.0',
            f'txbedrock_deployment_changes_total{{deployment="{SICK}",state="open"}} 1.0',
            'txbedrock_retries_total{failure="throttled",model="m"} ',
        ):
            self.assertIn(line, metrics.body.decode())
        self.assertTrue([line for line in self.logged if "out of rotation: throttled" in line])

    async def test_models(self) -> None:
        """What may be asked for."""
        await self.start_regions()
        models = await self.get("/v1/models")
        self.assertEqual([row["id"] for row in models["data"]], ["m"])
        info = await self.get("/model/info")
        self.assertEqual([row["model_info"]["id"] for row in info["data"]], [WELL, SICK])
        self.assertNotIn("planted", json.dumps([models, info]))
