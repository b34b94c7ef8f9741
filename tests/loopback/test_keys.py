"""
Virtual keys through the whole gateway: what one may do, for how long, and that its
secret stays where it belongs.
"""

from __future__ import annotations

import json
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.task import deferLater

from tests.fakes import KEY, BareClient, request, until
from tests.loopback.test_accounts import HAIKU, NOVA, AccountTestCase
from tests.postgres import new_database_url
from txbedrock import data
from txbedrock.config import AccessSettings, LedgerSettings
from txbedrock.core.operations import Operation, Operations
from txbedrock.core.permissions import DEFAULT_OPERATIONS
from txbedrock.wiring import build

CHANGES = re.compile(
    "Accept|Add|Associate|Batch|Cancel|Claim|Complete|Copy|Create|Delete|Deregister|Disassociate"
    "|End|Export|Import|Ingest|Invoke(Agent|Flow|Inline|Data|Code|Browser|Async)|Prepare|Put"
    "|Register|Reset|Save|Send|Set|Start|Stop|Submit|Sync|Tag|Terminate|Untag|Update|Upload|Write"
)
"""How the names of operations begin that change something, or may."""


class KeyTestCase(AccountTestCase):
    """A gateway with a database."""

    timeout = 180

    def database_url(self) -> str:
        return f"sqlite:///{self.folder}.db"

    async def start_keys(self, **access: Any) -> None:
        self.folder = self.mktemp()
        await self.start_models(
            database_url=self.database_url(),
            ledger=LedgerSettings(journal_path=f"{self.folder}-journal"),
            access=AccessSettings(**access),
            access_groups={"cheap": frozenset({"nova", "titan"})},
        )

    async def manage(self, path: str, key: str = KEY, status: int = 200, **fields: Any) -> Any:
        """POST to the management API."""
        client = await self.ask(request(path, json.dumps(fields).encode(), key=key))
        client.transport.loseConnection()
        self.assertEqual(client.status, status, client.received)
        return json.loads(client.body)

    async def get(self, path: str, key: str = KEY, status: int = 200) -> Any:
        client = await self.ask(request(path, b"", method="GET", key=key))
        client.transport.loseConnection()
        self.assertEqual(client.status, status, client.received)
        return json.loads(client.body, parse_float=Decimal)

    async def block(self, key: str) -> None:
        client = await self.ask(request("/key/block", json.dumps({"key": key}).encode(), key=KEY))
        client.transport.loseConnection()
        self.assertEqual(client.status, 200, client.received)

    async def generate(self, **fields: Any) -> str:
        """A new key."""
        secret: str = (await self.manage("/key/generate", **fields))["key"]
        return secret

    async def use(
        self, key: str, model: str = "nova", *, path: str = "", method: str = "POST", **more: Any
    ) -> BareClient:
        path = path or f"/model/{model}/converse"
        client = await self.ask(request(f"/bedrock{path}", method=method, key=key, **more))
        client.transport.loseConnection()
        return client

    def assert_denied(self, client: BareClient, text: str) -> None:
        self.assertEqual(client.status, 403, client.received)
        self.assertIn(b"x-amzn-errortype: accessdeniedexception", client.head)
        self.assertIn(text, json.loads(client.body)["message"])


class PermissionTests(KeyTestCase):
    """What a key may ask for."""

    async def test_without_rights(self) -> None:
        """Of all operations there are, none that changes anything gets through."""
        await self.start_keys()
        key = await self.generate()
        table = data.load("operations")
        operations = [one for one in Operations(table) if one.method != "*"]
        self.assertGreater(len(operations), 500)
        gate = DeferredSemaphore(20)
        denied: list[bool] = []

        async def attempt(operation: Operation) -> None:
            path = re.sub(r"\{(\w+)\+?\}", "x", operation.template)
            if operation.takes_model:
                path = operation.template.replace("{modelId}", "nova")
            # Each is tried with its own signing name, as an SDK says it.
            scope = f"{key}/20261122/us-west-2/{operation.signing_name}/aws4_request"
            signed = f"Authorization: AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, "
            headers = [f"{signed}Signature=0"]
            prefix = table["services"][operation.service].get("target_prefix")
            if prefix:
                headers.append(f"X-Amz-Target: {prefix}.{operation.name}")
            client = await self.ask(
                request(
                    f"/bedrock{path}",
                    b"{}" if operation.method in ("POST", "PUT", "PATCH") else b"",
                    method=operation.method,
                    key=None,
                    headers=tuple(headers),
                )
            )
            client.transport.loseConnection()
            denied.append(client.status == 403 and b"This key may not call" in client.body)

        await gatherResults(
            [gate.run(lambda one=one: Deferred.fromCoroutine(attempt(one))) for one in operations]
        )
        reached = {
            f"{entry.service}:{entry.operation}"
            for entry in self.records.entries
            if entry.attempts
        }
        self.assertEqual([name for name in reached if CHANGES.match(name.partition(":")[2])], [])
        self.assertLessEqual(reached, set(DEFAULT_OPERATIONS))
        self.assertGreater(len(reached), 10)
        self.assertGreater(sum(denied), 480)
        attempted = [entry for entry in self.records.entries if entry.attempts]
        self.assertEqual(len(self.sandbox.requests), len(attempted))

    async def test_models(self) -> None:
        """A list of models holds, whatever way a model is asked for."""
        await self.start_keys()
        key = await self.generate(models=["cheap"])
        self.assertEqual((await self.use(key, "nova")).status, 200)
        for model in ("haiku", HAIKU, HAIKU.replace(":", "%3A"), "%68aiku", "bedrock%2F" + HAIKU):
            self.assert_denied(await self.use(key, model), "may not use")
        for path in ("/anthropic/v1/messages", "/openai/v1/chat/completions"):
            for body in (
                b'{"model": "%b"}' % HAIKU.encode(),
                b'{"model": "%b", "model": "%b"}' % (NOVA.encode(), HAIKU.encode()),
                b'{"mo\\u0064el": "%b"}' % HAIKU.encode(),
                b"{}",
            ):
                client = await self.use(key, path=path, body=body)
                self.assertEqual(client.status, 403, client.received)
                self.assertRegex(client.body, b"may not use the model|may only use some models")
        self.assertEqual(len(self.sandbox.requests), 1)

    async def test_aliases(self) -> None:
        """A key has names of its own for models; they let nothing past its list."""
        await self.start_keys()
        key = await self.generate(models=["nova"], aliases={"best": "nova", "sly": "haiku"})
        self.assertEqual((await self.use(key, "best")).status, 200)
        self.assertEqual(self.records.entries[-1].model_name, "nova")
        self.assert_denied(await self.use(key, "sly"), "may not use")

    async def test_operations(self) -> None:
        """What is allowed and denied in IAM's manner."""
        await self.start_keys()
        key = await self.generate(
            operations=["bedrock:Converse*"], denied_operations=["bedrock-runtime:ConverseStream"]
        )
        self.assertEqual((await self.use(key)).status, 200)
        for path in ("/model/nova/converse-stream", "/model/nova/invoke", "/guardrails"):
            self.assert_denied(await self.use(key, path=path), "may not call")

    async def test_address(self) -> None:
        """A key that may only come from elsewhere."""
        await self.start_keys()
        key = await self.generate(allowed_ips=["10.0.0.0/8"])
        self.assert_denied(await self.use(key), "may not be used from '127.0.0.1'")
        forwarded = ("X-Forwarded-For: 10.1.2.3",)
        self.assert_denied(await self.use(key, headers=forwarded), "'127.0.0.1'")

    async def test_behind_a_proxy(self) -> None:
        """Who is trusted may say for whom it asks."""
        await self.start_keys(trusted_proxies=("127.0.0.1",))
        key = await self.generate(allowed_ips=["10.0.0.0/8"])
        forwarded = ("X-Forwarded-For: 10.1.2.3",)
        self.assertEqual((await self.use(key, headers=forwarded)).status, 200)
        self.assertEqual(self.records.entries[-1].client, "10.1.2.3")
        forwarded = ("X-Forwarded-For: 10.1.2.3, 8.8.8.8",)
        self.assert_denied(await self.use(key, headers=forwarded), "'8.8.8.8'")

    async def test_customer(self) -> None:
        """An end user has a budget of its own, and can be blocked."""
        await self.start_keys()
        key = await self.generate()
        await self.manage("/customer/new", user_id="bob", max_budget=0)
        bob = ("x-litellm-end-user-id: bob",)
        client = await self.use(key, headers=bob)
        self.assertEqual(client.status, 400, client.received)
        self.assertIn(b"'bob'", client.body)
        self.assertEqual((await self.use(key)).status, 200)
        await self.manage("/customer/new", user_id="eve")
        await self.manage("/customer/block", user_ids=["eve"])
        client = await self.use(key, headers=("x-litellm-end-user-id: eve",))
        self.assertEqual(client.status, 403)


class LogTests(KeyTestCase):
    """What an operator sees."""

    async def test_whose(self) -> None:
        """The log says whose key it was that is blocked or has expired."""
        await self.start_keys()
        key = await self.generate(key_alias="ci")
        await self.block(key)
        self.assertEqual((await self.use(key)).status, 403)
        self.assertEqual(self.records.records[-1].detail, "key ci")


class SpreadTests(KeyTestCase):
    """Several processes with one database."""

    async def second(self) -> tuple[Any, int]:
        """Another gateway on the same database; its port."""
        settings = self.with_models
        ledger = LedgerSettings(journal_path=f"{self.folder}-second-journal")
        gateway = build(
            self.settings(
                deployments=settings.deployments,
                database_url=settings.database_url,
                ledger=ledger,
                access=settings.access,
            ),
            reactor,
            ["tcp:0:interface=127.0.0.1"],
            {},
            logs=[self.records],
        )
        gateway.startService()
        self.addCleanup(gateway.stopService)
        await until(gateway.is_ready)
        return gateway, gateway.ports[0].getHost().port  # type: ignore[attr-defined]

    async def blocked_after(self) -> float:
        """Seconds until a key stops at the second that was blocked at the first."""
        first = self.port
        _, second = await self.second()
        key = await self.generate()
        self.port = second
        self.assertEqual((await self.use(key)).status, 200)
        self.port = first
        await self.block(key)
        self.assert_denied(await self.use(key), "blocked")
        self.port = second
        began = reactor.seconds()  # type: ignore[attr-defined]
        while (await self.use(key)).status == 200:
            await deferLater(reactor, 0.02)
        waited: float = reactor.seconds() - began  # type: ignore[attr-defined]
        self.assert_denied(await self.use(key), "blocked")
        self.port = first
        return waited

    async def test_sqlite(self) -> None:
        """A blocked key stops within the stated age."""
        await self.start_keys(key_cache_age_s=1.0)
        self.assertLess(await self.blocked_after(), 2.0)

    async def test_postgres(self) -> None:
        """With PostgreSQL at once, whatever the age."""
        url = new_database_url()
        self.database_url = lambda: url  # type: ignore[method-assign]
        await self.start_keys(key_cache_age_s=60.0)
        self.assertLess(await self.blocked_after(), 2.0)


class SecretTests(KeyTestCase):
    """Where a key's secret is not."""

    async def test_nowhere(self) -> None:
        """Neither in the database nor in the journal, nor in a log, an error or a list."""
        await self.start_keys()
        made = await self.manage("/key/generate", key_alias="ci", aws_credentials=True)
        key, pair = made["key"], made["aws_secret_access_key"]
        self.assertEqual((await self.use(key)).status, 200)
        self.assertEqual((await self.use(key, "haiku", path="/guardrails")).status, 403)
        answers = [
            await self.get(f"/key/info?key={key}"),
            await self.get("/key/list?return_full_object=true"),
            await self.get("/audit"),
            await self.get("/spend/logs"),
            await self.get("/spend/keys"),
        ]
        await self.manage("/key/delete", status=400, keys=[key, 7])
        await self.gateway.stopService()
        stored = b"".join(
            path.read_bytes()
            for path in Path(self.folder).parent.rglob("*")
            if path.is_file() and path.name.startswith(Path(self.folder).name)
        )
        self.assertIn(b"txbedrock_keys", stored)
        self.assertIn(made["token_id"].encode(), stored)
        for secret in (key, pair):
            self.assertNotIn(secret.encode(), stored)
            self.assertNotIn(secret, repr(answers))
            self.assertNotIn(secret, "".join(self.logged))


class SpendOfKeyTests(KeyTestCase):
    """What a key has spent, exactly."""

    timeout = 900

    async def check(self) -> None:
        """
        After many exchanges at once, of three keys in two teams, each sum is what the
        ledger's lines add up to; a restart changes nothing.
        """
        await self.start_keys()
        await self.manage("/team/new", team_id="red", max_budget=1000)
        keys = [
            await self.generate(key_alias="a", max_budget=1000, team_id="red"),
            await self.generate(key_alias="b", max_budget=1000, team_id="red", rpm_limit=10**6),
            await self.generate(key_alias="c", max_budget=1000, budget_duration="1d"),
        ]
        count = int(os.environ.get("TXBEDROCK_EXCHANGES", "300"))
        gate = DeferredSemaphore(30)
        asked = [(keys[n % 3], ("nova", "haiku", "own")[n % 7 % 3]) for n in range(count)]

        async def use(key: str, model: str) -> None:
            self.assertEqual((await self.use(key, model)).status, 200)

        await gatherResults(
            [gate.run(lambda a=one: Deferred.fromCoroutine(use(*a))) for one in asked]
        )
        sums: dict[str, int] = {}
        for entry in self.records.entries:
            assert entry.cost_picousd is not None
            for name in (entry.key_alias, entry.team_id):
                sums[name] = sums.get(name, 0) + entry.cost_picousd
        self.assertEqual(len(self.records.entries), count)
        for restarted in (False, True):
            for alias, key in zip("abc", keys, strict=True):
                info = await self.get(f"/key/info?key={key}")
                self.assertEqual(Decimal(info["info"]["spend"]) * 10**12, sums[alias])
            team = await self.get("/team/info?team_id=red")
            self.assertEqual(Decimal(team["team_info"]["spend"]) * 10**12, sums["red"])
            rows = await self.get("/global/spend/keys?limit=10")
            self.assertEqual(
                {row["key_alias"]: Decimal(row["total_spend"]) * 10**12 for row in rows},
                {alias: sums[alias] for alias in "abc"},
            )
            if not restarted:
                await self.gateway.stopService()
                await self.start_gateway(self.with_models)

    async def test_sqlite(self) -> None:
        """In a file."""
        await self.check()

    async def test_postgres(self) -> None:
        """In PostgreSQL."""
        url = new_database_url()
        self.database_url = lambda: url  # type: ignore[method-assign]
        await self.check()
