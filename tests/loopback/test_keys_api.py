"""
The management API of a running gateway: keys that are made, used, limited, looked at
and taken back, over real sockets, in SQLite and in PostgreSQL.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from tests.fakes import KEY, BareClient, request, until
from tests.loopback.test_accounts import HAIKU
from tests.loopback.test_boto3 import Boto3TestCase
from tests.loopback.test_spend import SpendTestCase
from tests.postgres import new_database_url
from txbedrock.config import LedgerSettings


class _Management(SpendTestCase):
    """A client of both sides."""

    async def post(
        self,
        path: str,
        fields: Mapping[str, object] | None = None,
        status: int = 200,
        key: str = KEY,
    ) -> Any:
        """The JSON that a body is answered with."""
        client = await self.ask(request(path, json.dumps(fields or {}).encode(), key=key))
        client.transport.loseConnection()
        self.assertEqual(client.status, status, client.received)
        self.assertIn(b"cache-control: no-store", client.head)
        return json.loads(client.body, parse_float=Decimal)

    async def use(self, key: str, status: int = 200, model: str = "haiku") -> BareClient:
        """Ask a model, with a virtual key."""
        client = await self.ask(request(f"/bedrock/model/{model}/converse", key=key))
        client.transport.loseConnection()
        self.assertEqual(client.status, status, client.received)
        return client

    async def spent(self, token: str) -> Any:
        """What the API says that a key has spent."""
        return (await self.get(f"/key/info?key={token}"))["info"]["spend"]


class LifeTests(_Management):
    """Whatever happens to a key is so for its next request."""

    async def test_life(self) -> None:
        """Made, used, charged, blocked, replaced, deleted."""
        await self.start_ledger()
        made = await self.post(
            "/key/generate",
            {"models": ["haiku"], "duration": "1d", "key_alias": "prod", "metadata": {"a": 1.5}},
        )
        key, token = made["key"], made["token"]
        await self.use(key)
        await self.use(key, 403, "nova")
        price = self.prices(HAIKU)
        [entry] = [entry for entry in self.records.entries if entry.status == 200]
        cost = entry.input_tokens * price["input"] + entry.output_tokens * price["output"]
        self.assertEqual((entry.key_hash, entry.key_alias), (token, "prod"))
        self.assertEqual(await self.spent(token), Decimal(cost) / 10**12)

        await self.post("/key/update", {"key": key, "models": ["haiku", "nova"]})
        await self.use(key, model="nova")
        await self.post("/key/block", {"key": token})
        await self.use(key, 403)
        await self.post("/key/unblock", {"key": token})
        await self.use(key)

        new = (await self.post(f"/key/{key}/regenerate", {"grace_period": "1h"}))["key"]
        for secret in (key, new):
            await self.use(secret)
        newest = (await self.post("/key/regenerate", {"key": "prod"}))["key"]
        for secret in (key, new):
            await self.use(secret, 403)
        await self.use(newest)
        # All of them are one key.
        total = sum(entry.cost_picousd or 0 for entry in self.records.entries)
        self.assertEqual(await self.spent(token), Decimal(total) / 10**12)
        rows = await self.get("/spend/keys")
        self.assertEqual([row["token"] for row in rows if row["spend"]], [token])

        await self.post("/key/delete", {"key_aliases": ["prod"]})
        await self.use(newest, 403)
        await self.get(f"/key/info?key={token}", status=404)
        actions = [row["action"] for row in await self.get(f"/audit?object_id={token}")]
        self.assertEqual(
            actions[::-1],
            ["create", "update", "block", "unblock", "regenerate", "regenerate", "delete"],
        )
        for secret in (key, new, newest):
            self.assertNotIn(secret, "".join(self.logged))

    async def test_survives_a_restart(self) -> None:
        """What is granted is there after a restart."""
        await self.start_ledger()
        made = await self.post("/key/generate", {"rpm_limit": 100, "max_budget": 0.5})
        await self.gateway.stopService()
        await self.start_gateway(self.with_models)
        await self.use(made["key"])
        info = (await self.get(f"/key/info?key={made['key']}"))["info"]
        self.assertEqual((info["rpm_limit"], info["max_budget"]), (100, Decimal("0.5")))
        self.assertGreater(info["spend"], 0)

    async def test_limits(self) -> None:
        """A limit that is set holds, and one that is taken away holds no more."""
        await self.start_ledger()
        made = await self.post("/key/generate", {"rpm_limit": 2})
        await self.use(made["key"])
        await self.use(made["key"])
        await self.use(made["key"], 429)
        await self.post("/key/update", {"key": made["key"], "rpm_limit": None})
        await self.use(made["key"])

    async def test_budget(self) -> None:
        """A budget that is spent refuses, and a larger one lets on."""
        await self.start_ledger()
        made = await self.post("/key/generate", {"max_budget": 0})
        await self.use(made["key"], 400)
        await self.post("/key/update", {"key": made["key"], "max_budget": 1})
        await self.use(made["key"])

    async def test_levels(self) -> None:
        """A user, a team and an end user that are blocked are refused with all their keys."""
        await self.start_ledger()
        user = await self.post("/user/new", {"user_id": "ann"})
        await self.post("/team/new", {"team_id": "t", "models": ["haiku"]})
        fields = {"team_id": "t", "member": {"user_id": "ann", "role": "admin"}}
        await self.post("/team/member_add", fields)
        made = await self.post("/key/generate", {"team_id": "t", "user_id": "ann"})
        await self.use(made["key"])
        await self.use(made["key"], 403, "nova")
        await self.use(user["key"], model="nova")
        await self.post("/team/block", {"team_id": "t"})
        await self.use(made["key"], 403)
        await self.use(user["key"])
        await self.post("/team/unblock", {"team_id": "t"})
        await self.post("/user/update", {"user_id": "ann", "blocked": True})
        await self.use(made["key"], 403)
        await self.use(user["key"], 403)
        await self.post("/user/update", {"user_id": "ann", "blocked": False})
        await self.use(made["key"])
        # Who leads the team keeps its keys, with a key of her own.
        row = await self.post("/key/generate", {"team_id": "t"}, key=user["key"])
        await self.use(row["key"])
        for path, id, part in (
            ("/user/info?user_id=ann", "ann", "user_info"),
            ("/team/info?team_id=t", "t", "team_info"),
        ):
            info = await self.get(path)
            field = "user_id" if id == "ann" else "team_id"
            total = sum(
                entry.cost_picousd or 0
                for entry in self.records.entries
                if getattr(entry, field) == id
            )
            self.assertEqual(info[part]["spend"], Decimal(total) / 10**12)
        await self.post("/team/delete", {"team_ids": ["t"]})
        await self.use(made["key"], 403)
        await self.post("/user/delete", {"user_ids": ["ann"]})
        await self.use(user["key"], 403)

    async def test_customers(self) -> None:
        """An end user that is blocked is refused, whoever asks for it."""
        await self.start_ledger()
        await self.post("/customer/block", {"user_ids": ["eve"]})
        for name, status in (("eve", 403), ("bob", 200)):
            header = f"x-litellm-end-user-id: {name}"
            client = await self.ask(request("/bedrock/model/haiku/converse", headers=(header,)))
            self.assertEqual(client.status, status, client.received)
        await self.post("/customer/unblock", {"user_ids": ["eve"]})
        await self.converse("x-litellm-end-user-id: eve")
        row = await self.get("/customer/info?end_user_id=eve")
        entry = self.records.entries[-1]
        self.assertEqual(row["spend"], Decimal(entry.cost_picousd or 0) / 10**12)

    async def test_kinds_of_keys(self) -> None:
        """A key for Bedrock opens no management, one for management no Bedrock."""
        await self.start_ledger()
        await self.post("/user/new", {"user_id": "boss", "user_role": "proxy_admin"})
        for kind, bedrock, reads, changes in (
            ("default", 200, 200, 200),
            ("llm_api", 200, 403, 403),
            ("management", 403, 200, 200),
            ("read_only", 403, 200, 403),
        ):
            made = await self.post("/key/generate", {"user_id": "boss", "key_type": kind})
            await self.use(made["key"], bedrock)
            await self.get("/key/list", reads, made["key"])
            await self.post("/budget/new", {}, changes, made["key"])

    async def test_large_body(self) -> None:
        """A body that is too long is refused, and is not kept on disk."""
        await self.start_ledger()
        body = b'{"tags": []' + b" " * (1024 * 1024) + b"}"
        client = await self.ask(request("/key/generate", body))
        self.assertEqual(client.status, 413)
        self.assertIn("1048576 bytes", json.loads(client.body)["error"]["message"])

    async def test_many_at_once(self) -> None:
        """Of many who want one name at the same moment one gets it."""
        await self.start_ledger()
        clients = [await self.connect() for _ in range(20)]
        for client in clients:
            client.write(request("/key/generate", b'{"key_alias": "mine"}'))
        await until(lambda: all(client.whole() for client in clients))
        self.assertEqual(sorted(client.status for client in clients), [200, *[409] * 19])


class PostgresLifeTests(LifeTests):
    """The same in PostgreSQL."""

    async def start_ledger(self, **changes: Any) -> None:
        await super().start_ledger(database_url=new_database_url(), **changes)


class OffTests(_Management):
    """Without a database."""

    async def test_off(self) -> None:
        """The paths say what to configure; Bedrock is served as before."""
        await self.start_models()
        answer = await self.post("/key/generate", {}, 503)
        self.assertIn("database_url", answer["error"]["message"])
        await self.use(KEY)


class Boto3Tests(Boto3TestCase):
    """A client that got a key, and the pair that comes with it."""

    async def test_key_and_pair(self) -> None:
        """boto3 works with the key as its access key id, and signs with the pair."""
        folder = self.mktemp()
        await self.start_both(
            database_url=f"sqlite:///{folder}.db",
            ledger=LedgerSettings(journal_path=f"{folder}-journal"),
        )
        body = json.dumps({"models": [HAIKU], "aws_credentials": True}).encode()
        made = json.loads((await self.ask(request("/key/generate", body))).body)
        message = {"role": "user", "content": [{"text": "hello"}]}
        calls = [
            ("bedrock-runtime", "converse", {"modelId": HAIKU, "messages": [message]}),
            ("bedrock-runtime", "converse", {"modelId": "amazon.nova-pro-v1:0",
                                             "messages": [message]}),
        ]  # fmt: skip
        pair = {
            "AWS_ACCESS_KEY_ID": made["aws_access_key_id"],
            "AWS_SECRET_ACCESS_KEY": made["aws_secret_access_key"],
        }
        for environ in ({"AWS_ACCESS_KEY_ID": made["key"]}, pair):
            good, bad = await self.run_client(calls, environ)
            self.assertIn("output", good["reply"])
            self.assertEqual(bad["code"], "AccessDeniedException")
        wrong = {**pair, "AWS_SECRET_ACCESS_KEY": "x" * 40}
        [refused] = await self.run_client(calls[:1], wrong)
        self.assertEqual(refused["code"], "InvalidSignatureException")
        entries = [entry for entry in self.records.entries if entry.status == 200]
        self.assertEqual([entry.key_hash for entry in entries], [made["token"]] * 2)
        fields = json.dumps({"key": made["token"]}).encode()
        again = json.loads((await self.ask(request("/key/regenerate", fields))).body)
        self.assertNotEqual(again["aws_access_key_id"], made["aws_access_key_id"])
        [refused] = await self.run_client(calls[:1], pair)
        self.assertEqual(refused["code"], "UnrecognizedClientException")
