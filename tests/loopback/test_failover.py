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

from tests.fakes import ACCESS_KEY_ID, BODY, KEY, SECRET, BareClient, request, until
from tests.sandboxed import SandboxedTestCase
from txbedrock.core.balance import RoutingSettings, Strategy
from txbedrock.core.candidates import DeploymentState
from txbedrock.core.credentials import Credentials
from txbedrock.core.deployments import Deployment
from txbedrock.core.eventstream import Decoder
from txbedrock.core.fallbacks import Fallbacks
from txbedrock.core.health import CircuitState
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

    def gateway_states(self) -> list[DeploymentState]:
        """What the gateway thinks of its deployments."""
        return self.gateway._gateway._failover.states()

    def asked(self, region: str) -> list[Any]:
        """What a region was asked."""
        return [one for one in self.sandbox.requests if one.region == region]

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


class RecoveryTests(FailoverTestCase):
    """Who was sick is well again."""

    async def test_one_probe(self) -> None:
        """It is back within one probe: the first request that it answers."""
        await self.start_regions(
            routing=RoutingSettings(cooldown_s=0.5, strategy=Strategy.SIMPLE_SHUFFLE)
        )
        self.sandbox.faults.add(
            "error", status=503, code="ServiceUnavailableException", region=SICK, times=None
        )
        for client in await self.crowd(100):
            self.assert_whole(client)
        [sick] = [one for one in self.gateway_states() if one.id == SICK]
        self.assertEqual(sick.state, CircuitState.OPEN)
        self.sandbox.faults.clear()
        before = len(self.asked(SICK))
        while len(self.asked(SICK)) == before:
            self.assert_whole(await self.say())
            await deferLater(reactor, 0.01)
        [sick] = [one for one in self.gateway_states() if one.id == SICK]
        self.assertEqual((sick.state, len(self.asked(SICK))), (CircuitState.CLOSED, before + 1))
        for client in await self.crowd(100):
            self.assert_whole(client)
        self.assertGreater(len(self.asked(SICK)), before + 10)
        self.assertIn("in rotation again", "".join(self.logged))

    async def test_credentials(self) -> None:
        """Credentials that AWS does not take any more are replaced within the request."""
        await self.start_regions()
        stale = Credentials(ACCESS_KEY_ID, SECRET)
        source = RenewedSource(stale, Credentials(ACCESS_KEY_ID, SECRET))
        signer = self.gateway._gateway._signer
        self.patch(signer._credentials, "source", lambda spec: source)
        self.sandbox.faults.add("error", status=403, code="ExpiredTokenException", times=1)
        client = await self.say()
        self.assert_whole(client)
        self.assertEqual(source.rejected, [stale])
        self.assertIn(b"x-litellm-attempted-retries: 0", client.head)
        [entry] = self.records.entries
        self.assertEqual((entry.outcome, entry.attempts), ("complete", 2))

    async def test_credentials_gone(self) -> None:
        """If there are no others, that is the deployment's failure."""
        await self.start_regions()
        signer = self.gateway._gateway._signer
        source = RenewedSource(Credentials(ACCESS_KEY_ID, SECRET), None)
        self.patch(signer._credentials, "source", lambda spec: source)
        self.sandbox.faults.add("error", status=403, code="ExpiredTokenException", times=1)
        client = await self.say()
        self.assert_whole(client)
        self.assertIn(b"x-litellm-attempted-retries: 1", client.head)


class RenewedSource:
    """Has other credentials when it is asked for them."""

    def __init__(self, first: Credentials, then: Credentials | None) -> None:
        self.credentials = first
        self.then = then
        self.rejected: list[Credentials | None] = []

    async def loaded(self) -> None:
        pass

    def current(self, service: str) -> Credentials:
        return self.credentials

    async def refresh_now(self, rejected: Credentials | None = None) -> bool:
        self.rejected.append(rejected)
        self.credentials = self.then or self.credentials
        return self.then is not None


class HedgeTests(FailoverTestCase):
    """A second attempt beside a slow first one."""

    async def start_warm(self, **settings: Any) -> None:
        await self.start_regions(retries=RetrySettings(hedge=True, **settings))
        for client in await self.crowd(400):
            self.assert_whole(client)

    async def test_slow(self) -> None:
        """The faster one is the answer, and the other one is on record."""
        await self.start_warm()
        lost = sum(one.is_attempt for one in self.records.records)
        self.sandbox.faults.add("hang", operation="Converse", times=1)
        client = await self.say()
        self.assert_whole(client)
        self.assertIn(b"x-litellm-attempted-retries: 0", client.head)
        given_up, whole = self.records.entries[-2:]
        self.assertEqual(given_up.request_id, f"{whole.request_id}-1")
        self.assertEqual((given_up.outcome, given_up.error), ("failed", "Superseded"))
        self.assertNotEqual(given_up.deployment, whole.deployment)
        self.assertEqual((whole.outcome, whole.attempts), ("complete", 2))
        self.assertIn(whole.deployment.encode(), client.head)
        self.assertEqual(sum(one.is_attempt for one in self.records.records), lost + 1)
        self.assertEqual({one.in_flight for one in self.gateway_states()}, {0})
        metrics = await self.ask(request("/metrics", b"", method="GET", key=KEY))
        self.assertIn('txbedrock_hedges_total{better="second",model="m"}', metrics.body.decode())

    async def test_client_leaves(self) -> None:
        """A client that leaves two attempts leaves no trace at any deployment."""
        await self.start_warm()
        self.sandbox.faults.add("hang", operation="Converse", times=2)
        asking = Deferred.fromCoroutine(self.say())
        await until(lambda: sum(one.in_flight for one in self.gateway_states()) == 2)
        for name in (WELL, SICK):
            self.assertEqual([s.in_flight for s in self.gateway_states() if s.id == name], [1])
        self.clients[-1].transport.abortConnection()
        await until(lambda: sum(one.in_flight for one in self.gateway_states()) == 0)
        await asking
        self.assertEqual(self.records.records[-1].outcome, Outcome.CLIENT_GONE)
        self.assertEqual({one.why for one in self.gateway_states()}, {None})

    async def test_never(self) -> None:
        """Neither streams nor what changes something."""
        await self.start_warm()
        for path, body in (
            (STREAM, BODY),
            ("/bedrock/guardrails", b'{"name": "g"}'),
        ):
            before = len(self.sandbox.requests)
            self.sandbox.faults.add("hang", times=1)
            client = await self.connect()
            client.write(request(path, body))
            await deferLater(reactor, 0.5)
            self.assertEqual(len(self.sandbox.requests), before + 1)
            client.transport.abortConnection()
            self.sandbox.faults.clear()


class LimitTests(FailoverTestCase):
    """What a deployment says of itself holds."""

    async def test_max_retries(self) -> None:
        """One that is not to be tried again is not, whatever the others do."""
        await self.start_regions(
            {"max_retries": 0},
            retries=RetrySettings(num_retries=6, backoff_base_s=0.01),
            routing=RoutingSettings(disable_cooldowns=True),
        )
        self.sandbox.faults.add(
            "error", status=503, code="ServiceUnavailableException", times=None
        )
        for _ in range(3):
            before = len(self.sandbox.requests)
            client = await self.say()
            self.assertEqual(client.status, 503)
            asked = Counter(one.region for one in [*self.sandbox.requests][before:])
            self.assertLessEqual(asked[SICK], 1)

    async def test_tpm(self) -> None:
        """Tokens a minute of a deployment are never knowingly exceeded."""
        await self.start_regions({"tpm": 1500, "order": -1})
        body = json.dumps(
            {
                "messages": [{"role": "user", "content": [{"text": "hi"}]}],
                "inferenceConfig": {"maxTokens": 1000},
            }
        ).encode()
        clients = [await self.connect() for _ in range(4)]
        self.sandbox.faults.add("hang", times=None)
        for client in clients:
            client.write(request(UNARY, body))
        await until(lambda: len(self.sandbox.requests) == 4)
        self.assertEqual((len(self.asked(SICK)), len(self.asked(WELL))), (1, 3))

    async def test_budget_of_fallback(self) -> None:
        """What a fallback may cost is reserved at its own price."""
        self.start_sandbox()
        deployments = (
            self.regional(WELL, model_name="small", id="small"),
            self.regional(SICK, model_name="large", id="large"),
        )
        await self.start_gateway(
            self.settings(
                deployments=deployments,
                retries=RetrySettings(num_retries=0),
                fallbacks=Fallbacks(general={"small": ("large",)}),
            )
        )
        reserved: list[str] = []
        admission = self.gateway._gateway._admission
        reserve: Any = admission.reserve

        async def seen(record: Any, choice: Any) -> None:
            reserved.append(choice.deployment.id)
            record.reservation = Room(reserved)
            await reserve(record, choice)

        self.patch(admission, "reserve", seen)
        self.sandbox.faults.add("error", status=503, region=WELL, times=None)
        self.assert_whole(await self.say("/bedrock/model/small/converse"))
        self.assertEqual(reserved, ["small", "released", "large", "settled"])


class Room:
    """A reservation that tells what becomes of it."""

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def settle(self, picousd: int | None, usage: Any) -> None:
        self._told.append("settled")

    def release(self) -> None:
        self._told.append("released")

    def output_tokens(self) -> int:
        return 1000

    def headers(self, picousd: int | None = None) -> list[tuple[bytes, bytes]]:
        return []


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

    async def test_probe(self) -> None:
        """Deployments are asked when somebody wants to know, and that is on record."""
        await self.start_regions(routing=RoutingSettings(cooldown_s=600))
        self.sandbox.faults.add(
            "error", status=403, code="AccessDeniedException", region=SICK, times=None
        )
        found = await self.get("/health?probe=true&model=m")
        [sick], [well] = found["unhealthy_endpoints"], found["healthy_endpoints"]
        self.assertEqual((sick["model_id"], sick["probe"]["why"]), (SICK, "denied"))
        self.assertEqual((well["model_id"], well["probe"]["ok"]), (WELL, True))
        self.assertEqual(sick["why"], "denied")
        self.sandbox.faults.clear()
        # However long it would have been left alone.
        found = await self.get("/health?probe=true&model=m")
        self.assertEqual((found["healthy_count"], found["unhealthy_count"]), (2, 0))
        entries = self.records.entries
        self.assertEqual({entry.key_alias for entry in entries}, {"health-probe"})
        self.assertEqual([entry.status for entry in entries].count(200), 3)
        before = len(self.sandbox.requests)
        await self.get("/health")
        self.assertEqual(len(self.sandbox.requests), before)

    async def test_background(self) -> None:
        """And now and then of itself."""
        await self.start_regions(probe_interval_s=0.2)
        await until(lambda: len(self.asked(SICK)) >= 2 and len(self.asked(WELL)) >= 2)
        self.assertEqual({one.outcome for one in self.records.records}, {Outcome.COMPLETE})
