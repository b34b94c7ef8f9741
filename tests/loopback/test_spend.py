"""
The ledger behind a running gateway: kept, read, counted, over real sockets.
"""

from __future__ import annotations

import csv
import io
import json
import os
from decimal import Decimal
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from tests.fakes import KEY, BareClient, pause, request
from tests.loopback.test_accounts import HAIKU, AccountTestCase
from tests.postgres import new_database_url, server
from txbedrock.config import LedgerSettings


class SpendTestCase(AccountTestCase):
    """A gateway with a ledger in a file."""

    async def start_ledger(self, **changes: Any) -> None:
        folder = self.mktemp()
        url = changes.pop("database_url", f"sqlite:///{folder}.db")
        ledger = LedgerSettings(journal_path=f"{folder}-journal", **changes)
        self.kept = {"database_url": url, "ledger": ledger}
        await self.start_models(**self.kept)

    async def get(self, path: str, status: int = 200, key: str | None = KEY) -> Any:
        """The JSON at a path of the management's."""
        client = await self.ask(request(path, b"", method="GET", key=key))
        self.assertEqual(client.status, status, client.received)
        self.answered = client
        return json.loads(client.body, parse_float=Decimal)

    async def converse(self, *headers: str, model: str = "haiku") -> str:
        """One exchange; its id."""
        client = await self.ask(request(f"/bedrock/model/{model}/converse", headers=headers))
        client.transport.loseConnection()
        return self.id_of(client)

    def id_of(self, client: BareClient) -> str:
        head = client.head.decode()
        return head.partition("x-litellm-call-id: ")[2].split("\r\n")[0]


class LogsTests(SpendTestCase):
    """/spend/logs"""

    async def test_at_once(self) -> None:
        """A call that has ended is there, with what it used and cost."""
        await self.start_ledger()
        request_id = await self.converse()
        [row] = await self.get(f"/spend/logs?request_id={request_id}")
        [entry] = self.records.entries
        price = self.prices(HAIKU)
        cost = entry.input_tokens * price["input"] + entry.output_tokens * price["output"]
        self.assertEqual(row["spend"], Decimal(cost) / 10**12)
        self.assertEqual(
            (row["request_id"], row["model"], row["model_group"], row["model_id"]),
            (request_id, HAIKU, "haiku", "haiku"),
        )
        self.assertEqual(row["total_tokens"], entry.input_tokens + entry.output_tokens)
        self.assertEqual(
            (row["status"], row["call_type"]), ("success", "bedrock-runtime:Converse")
        )
        self.assertRegex(row["startTime"], r"^20\d\d-\d\d-\d\dT.*Z$")

    async def test_filters(self) -> None:
        """By key, end user, tag, model and time."""
        await self.start_ledger()
        one = await self.converse("x-litellm-end-user-id: eve", "x-litellm-tags: a,b")
        two = await self.converse(model="nova")
        for query, expected in (
            ("", [two, one]),
            ("end_user=eve", [one]),
            ("tag=b", [one]),
            ("tag=c", []),
            ("model=nova", [two]),
            (f"model={HAIKU}", [one]),
            (f"api_key={KEY}", [two, one]),
            ("api_key=sk-other", []),
            ("start_date=2020-01-01&end_date=2020-01-02", []),
            ("start_date=2020-01-01&end_date=2999-12-31", [two, one]),
            ("start_date=2999-01-01T00:00:00Z", []),
        ):
            rows = await self.get(f"/spend/logs?{query}")
            self.assertEqual([row["request_id"] for row in rows], expected, query)

    async def test_paging(self) -> None:
        """limit and cursor go through all of them, each once."""
        await self.start_ledger()
        ids = [await self.converse() for _ in range(7)]
        found: list[str] = []
        path = "/spend/logs?limit=3"
        while True:
            found += [row["request_id"] for row in await self.get(path)]
            _, there, rest = self.answered.received.partition(b"x-next-cursor: ")
            if not there:
                _, there, rest = self.answered.received.partition(b"X-Next-Cursor: ")
            if not there:
                break
            path = f"/spend/logs?limit=3&cursor={rest.split(bytes([13]))[0].decode()}"
        self.assertEqual(found, ids[::-1])

    async def test_csv(self) -> None:
        """The same as CSV, which no spreadsheet takes for formulas."""
        await self.start_ledger()
        ids = [await self.converse("x-litellm-end-user-id: =1+1") for _ in range(3)]
        client = await self.ask(request("/spend/logs?format=csv", b"", method="GET"))
        self.assertIn(b"content-type: text/csv", client.head)
        rows = list(csv.DictReader(io.StringIO(client.dechunked().decode())))
        self.assertEqual([row["request_id"] for row in rows], ids[::-1])
        self.assertEqual(rows[0]["end_user"], "'=1+1")
        self.assertEqual(Decimal(rows[0]["cost_usd"]) * 10**12, Decimal(rows[0]["cost_picousd"]))

    async def test_bad_queries(self) -> None:
        """What is wrong is said, in LiteLLM's shape."""
        await self.start_ledger()
        for query, word in (
            ("start_date=yesterday", "start_date"),
            ("limit=0", "limit"),
            ("limit=x", "limit"),
            ("nonsense=1", "nonsense"),
            ("model=a&model=b", "model"),
            ("format=xml", "format"),
            ("cursor=rubbish", "cursor"),
        ):
            answer = await self.get(f"/spend/logs?{query}", status=400)
            self.assertIn(word, answer["error"]["message"])
            self.assertEqual(answer["error"]["code"], "400")

    async def test_lost(self) -> None:
        """A path below them that is nothing is said in JSON, never in HTML."""
        await self.start_ledger()
        for path in ("/metrics/x", "/spend/logs/x", "/global/spend/x", "/spend/x", "/global/x"):
            await self.get(path, status=404)
            self.assertIn(b"application/json", self.answered.head)

    async def test_who_may_ask(self) -> None:
        """Nobody without the key, on any of the paths."""
        await self.start_ledger()
        for path in ("/spend/logs", "/spend/keys", "/global/spend", "/metrics"):
            for key in (None, "sk-planted-wrong"):
                answer = await self.get(path, status=401, key=key)
                self.assertEqual(answer["error"]["type"], "auth_error")

    async def test_strangers_are_not_kept(self) -> None:
        """Refusals of unknown keys do not fill the ledger."""
        await self.start_ledger()
        await self.ask(request(key="sk-planted-wrong"))
        self.assertEqual(await self.get("/spend/logs"), [])


class TotalsTests(SpendTestCase):
    """Sums."""

    async def test_sums(self) -> None:
        """By key, model, end user and tag, and all in one: each the sum of its lines."""
        await self.start_ledger()
        for number in range(6):
            await self.converse(
                f"x-litellm-end-user-id: u{number % 2}",
                "x-litellm-tags: t",
                model=("haiku", "nova")[number % 3 == 0],
            )
        rows = await self.get("/spend/logs")
        whole = sum(row["spend"] for row in rows)
        answer = await self.get("/global/spend")
        self.assertEqual((answer["spend"], answer["requests"]), (whole, 6))
        [key] = await self.get("/spend/keys")
        self.assertEqual((key["spend"], key["key_alias"]), (whole, "master_key"))
        models = await self.get("/global/spend/models")
        self.assertEqual({row["model"] for row in models}, {"haiku", "nova"})
        self.assertEqual(sum(row["total_spend"] for row in models), whole)
        users = await self.get("/global/spend/end_users")
        self.assertEqual(
            {row["end_user"]: row["total_count"] for row in users}, {"u0": 3, "u1": 3}
        )
        [tag] = await self.get("/spend/tags")
        self.assertEqual((tag["individual_request_tag"], tag["log_count"]), ("t", 6))
        [day] = await self.get("/spend/logs?summarize=true")
        self.assertEqual(day["spend"], whole)
        for path in ("/spend/users", "/global/spend/teams"):
            self.assertEqual(await self.get(path), [])
        [key] = await self.get("/global/spend/keys?limit=1")
        self.assertEqual(key["total_spend"], whole)

    async def test_survives_a_restart(self) -> None:
        """Stopped and started again, the sums are the same."""
        await self.start_ledger()
        for _ in range(3):
            await self.converse()
        before = await self.get("/global/spend")
        await self.gateway.stopService()
        port = self.upstream_port
        await self.start_gateway(self.settings(**self.kept))
        self.assertEqual(self.upstream_port, port)
        self.assertEqual(await self.get("/global/spend"), before)

    async def test_calculate(self) -> None:
        """What some usage would cost."""
        await self.start_ledger()
        body = json.dumps(
            {"model": "haiku", "usage": {"prompt_tokens": 1000, "completion_tokens": 10}}
        ).encode()
        client = await self.ask(request("/spend/calculate", body))
        price = self.prices(HAIKU)
        expected = Decimal(1000 * price["input"] + 10 * price["output"]) / 10**12
        self.assertEqual(json.loads(client.body, parse_float=Decimal)["cost"], expected)
        for bad, status in ((b"{", 400), (b'{"model": "haiku"}', 400), (b'{"model": 1}', 400)):
            client = await self.ask(request("/spend/calculate", bad))
            self.assertEqual(client.status, status, client.received)


class OutageTests(SpendTestCase):
    """A database that goes away under load and comes back: a real PostgreSQL."""

    timeout = 300

    async def test_outage(self) -> None:
        """
        No request fails, nothing is lost, nothing is twice.

        ``TXBEDROCK_OUTAGE`` says for how many seconds it is away (default 2).
        """
        await self.start_ledger(database_url=new_database_url())
        ids: list[str] = []
        over = False

        async def load() -> None:
            while not over:
                ids.append(await self.converse())

        loads = gatherResults([Deferred.fromCoroutine(load()) for _ in range(4)])
        await pause(0.5)
        postgres = server()
        await self.in_thread(postgres.stop, "QUIT")
        try:
            await pause(float(os.environ.get("TXBEDROCK_OUTAGE", "2")))
        finally:
            await self.in_thread(postgres.start)
        await pause(1.0)
        over = True
        await loads
        self.assertEqual({entry.status for entry in self.records.entries}, {200})
        kept = self.gateway._ledger
        assert kept is not None
        await kept.ledger.flush()
        self.assertEqual(kept.ledger.lost, 0)
        answer = await self.get("/global/spend")
        self.assertEqual(answer["requests"], len(ids))
        self.assertEqual(
            answer["spend"],
            Decimal(sum(entry.cost_picousd or 0 for entry in self.records.entries)) / 10**12,
        )
        rows = await self.get("/spend/logs?limit=1000")
        self.assertEqual(len({row["request_id"] for row in rows}), min(1000, len(ids)))


class FullTests(SpendTestCase):
    """A journal that takes no more, because the database is away."""

    async def start_full(self, **changes: Any) -> None:
        nowhere = f"sqlite:///{self.mktemp()}/missing/x.db"
        await self.start_ledger(database_url=nowhere, journal_max_bytes=5000, **changes)
        kept = self.gateway._ledger
        assert kept is not None
        # The stop need not wait for a database that never comes.
        kept.ledger._stop_timeout_s = 0.1

    async def test_refuse(self) -> None:
        """Requests are refused, readiness says so, and nothing goes up."""
        await self.start_full()
        await self.converse()
        carried = 1
        while self.gateway.is_ready():
            await self.converse()
            carried += 1
            self.assertLess(carried, 20)
        client = await self.ask(request("/bedrock/model/haiku/converse"))
        self.assertEqual(client.status, 503)
        self.assertIn("record", json.loads(client.body)["message"])
        self.assertEqual(len(self.sandbox.requests), carried)
        await self.get("/health/readiness", status=503, key=None)

    async def test_go_on(self) -> None:
        """Or they are carried, if the operator wants it so."""
        await self.start_full(refuse_when_full=False)
        for _ in range(20):
            await self.converse()
        self.assertTrue(self.gateway.is_ready())
        self.assertEqual(len(self.sandbox.requests), 20)


class MetricsTests(SpendTestCase):
    """/metrics"""

    async def test_figures(self) -> None:
        """Requests, tokens, money, errors by whose fault, times and the ledger."""
        await self.start_ledger()
        await self.converse()
        await self.ask(request("/bedrock/model/typo/converse"))
        await self.ask(request("/bedrock/model/arn/converse"))
        self.sandbox.faults.add("error", status=503, code="ServiceUnavailableException", times=1)
        await self.ask(request("/bedrock/model/haiku/converse"))
        self.sandbox.faults.add("throttle", times=1)
        await self.ask(request("/bedrock/model/haiku/converse"))
        self.sandbox.faults.add("error", status=403, code="AccessDeniedException", times=1)
        await self.ask(request("/bedrock/model/haiku/converse"))
        kept = self.gateway._ledger
        assert kept is not None
        await kept.ledger.flush()
        client = await self.ask(request("/metrics", b"", method="GET"))
        text = client.body.decode()
        entry = self.records.entries[0]
        labels = 'operation="bedrock-runtime:Converse",model="haiku",deployment="haiku"'
        for line in (
            f'txbedrock_requests_total{{{_sorted(labels)},outcome="complete",status="2xx"}} 1.0',
            f'txbedrock_tokens_total{{deployment="haiku",kind="input",model="haiku",'
            f'operation="bedrock-runtime:Converse"}} {entry.input_tokens}.0',
            'txbedrock_errors_total{code="ResourceNotFoundException",fault="client"} 1.0',
            'txbedrock_errors_total{code="ServiceUnavailableException",fault="upstream"} 1.0',
            'txbedrock_errors_total{code="ThrottlingException",fault="upstream"} 1.0',
            'txbedrock_errors_total{code="AccessDeniedException",fault="proxy"} 1.0',
            'txbedrock_price_misses_total{deployment="arn",model="arn",'
            'operation="bedrock-runtime:Converse"} 1.0',
            "txbedrock_database_up 1.0",
            "txbedrock_ledger_lost 0.0",
        ):
            self.assertIn(_normal(line), {_normal(each) for each in text.splitlines()}, text)
        for name in (
            "txbedrock_spend_usd_total", "gen_ai_server_request_duration_seconds_bucket",
            "gen_ai_server_time_to_first_token_seconds_count", "txbedrock_journal_bytes",
            "txbedrock_overhead_microseconds_bucket", "txbedrock_ledger_lag_seconds",
            "txbedrock_exchanges_in_flight", "txbedrock_body_bytes_total",
        ):  # fmt: skip
            self.assertIn(name, text)
        self.assertNotIn("typo", text)


def _sorted(labels: str) -> str:
    return ",".join(sorted(labels.split(",")))


def _normal(line: str) -> str:
    """A line with its labels in order."""
    name, brace, rest = line.partition("{")
    labels, _, value = rest.partition("}")
    return f"{name}{brace}{_sorted(labels)}{value}"


class OffTests(SpendTestCase):
    """Without a ledger."""

    async def test_off(self) -> None:
        """The paths say that nothing is kept; the rest works."""
        await self.start_models()
        await self.converse()
        answer = await self.get("/spend/logs", status=503)
        self.assertIn("disable_spend_logs", answer["error"]["message"])
        await self.get("/global/spend/keys", status=503)
