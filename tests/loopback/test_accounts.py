"""
What exchanges cost, from the sandbox's own account of what it billed.
"""

from __future__ import annotations

import json
import os
from typing import Any

from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults

from tests.fakes import BODY, BareClient, request, until
from tests.sandboxed import SandboxedTestCase
from txbedrock import data
from txbedrock.config import Limits
from txbedrock.core.deployments import OnDisconnect
from txbedrock.core.entries import LedgerEntry
from txbedrock.core.pricing import PriceTable
from txbedrock.sandbox.service import Billed

HAIKU = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
NOVA = "us.amazon.nova-lite-v1:0"
TITAN = "amazon.titan-embed-text-v2:0"
LLAMA = "us.meta.llama3-1-8b-instruct-v1:0"
PROFILE = "arn:aws:bedrock:us-west-2:123456789012:application-inference-profile/abcdefabcdef"

INVOKE = json.dumps(
    {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "count these six words please now"}],
    }
).encode()


class AccountTestCase(SandboxedTestCase):
    """Three model groups with known prices in front of the sandbox."""

    async def start_models(self, **changes: Any) -> None:
        self.start_sandbox()
        deployments = (
            self.deployment(id="haiku", model_name="haiku", model_id=HAIKU),
            self.deployment(id="nova", model_name="nova", model_id=NOVA),
            self.deployment(id="titan", model_name="titan", model_id=TITAN),
            self.deployment(
                id="own", model_name="own", model_id=HAIKU, prices=(("input", 7), ("output", 11))
            ),
            self.deployment(id="arn", model_name="arn", model_id=PROFILE),
            self.deployment(id="based", model_name="based", model_id=PROFILE, base_model=NOVA),
        )
        self.with_models = self.settings(deployments=deployments, **changes)
        await self.start_gateway(self.with_models)

    def prices(self, model: str) -> dict[str, int]:
        """Of the shipped table, by its very name."""
        entries = PriceTable.parse(data.load("prices")).entries
        return dict(entries[model])

    def billed(self, entry: LedgerEntry) -> Billed:
        return self.sandbox.billed[entry.aws_request_id]

    def assert_as_billed(self, entry: LedgerEntry) -> None:
        usage = self.billed(entry).usage
        self.assertEqual(
            (
                entry.input_tokens,
                entry.output_tokens,
                entry.cache_read_tokens,
                entry.cache_write_5m_tokens,
                entry.cache_write_1h_tokens,
            ),
            (
                usage.input,
                usage.output,
                usage.cache_read,
                usage.cache_write_5m,
                usage.cache_write_1h,
            ),
        )

    async def call(
        self, path: str, body: bytes = BODY, *headers: str, status: int = 200
    ) -> tuple[BareClient, LedgerEntry]:
        """One exchange and its line of the ledger."""
        client = await self.ask(request(f"/bedrock{path}", body, headers=headers))
        self.assertEqual(client.status, status, client.received)
        return client, self.records.entries[-1]


class CostTests(AccountTestCase):
    """Every cent, where others lose it."""

    async def test_all_four_routes(self) -> None:
        """Converse, invoke and their streams are billed as Bedrock bills them."""
        await self.start_models()
        price = self.prices(HAIKU)
        for path, body in (
            ("/model/haiku/converse", BODY),
            ("/model/haiku/converse-stream", BODY),
            ("/model/haiku/invoke", INVOKE),
            ("/model/haiku/invoke-with-response-stream", INVOKE),
        ):
            _, entry = await self.call(path, body)
            self.assert_as_billed(entry)
            usage = self.billed(entry).usage
            self.assertGreater(usage.input + usage.output, 5, path)
            self.assertEqual(
                entry.cost_picousd,
                usage.input * price["input"] + usage.output * price["output"],
                path,
            )
            self.assertEqual((entry.price_id, entry.outcome), (HAIKU, "complete"))

    async def test_own_prices(self) -> None:
        """A deployment's own prices are used before all others."""
        await self.start_models()
        _, entry = await self.call("/model/own/converse")
        self.assertEqual(entry.cost_picousd, 7 * entry.input_tokens + 11 * entry.output_tokens)

    async def test_arn_with_a_base_model(self) -> None:
        """An ARN that says nothing of its model has the price of its base_model."""
        await self.start_models()
        _, entry = await self.call("/model/based/converse")
        price = self.prices(NOVA)
        self.assertEqual(
            entry.cost_picousd,
            entry.input_tokens * price["input"] + entry.output_tokens * price["output"],
        )

    async def test_arn_without_one(self) -> None:
        """Without one the cost is unknown, which is said once, and never zero."""
        await self.start_models()
        for _ in range(3):
            _, entry = await self.call("/model/arn/converse")
            self.assertIsNone(entry.cost_picousd)
            self.assert_as_billed(entry)
        said = [line for line in self.logged if "is not known" in line]
        self.assertEqual(len(said), 1)
        self.assertIn("base_model", said[0])

    async def test_embeddings_and_others(self) -> None:
        """Answers that are no chat are billed, too, and do not lose their record."""
        await self.start_models()
        _, entry = await self.call("/model/titan/invoke", b'{"inputText": "one two three"}')
        self.assert_as_billed(entry)
        self.assertEqual(entry.cost_picousd, entry.input_tokens * self.prices(TITAN)["input"])
        _, entry = await self.call(f"/model/{LLAMA}/invoke", b'{"prompt": "one two three"}')
        self.assert_as_billed(entry)
        self.assertIsNotNone(entry.cost_picousd)

    async def test_other_vendors_routes(self) -> None:
        """OpenAI's and Anthropic's routes, plain and as server-sent events."""
        await self.start_models()
        for path, model in (
            ("/openai/v1/chat/completions", "openai.gpt-oss-20b-1:0"),
            ("/anthropic/v1/messages", HAIKU),
        ):
            for stream in (False, True):
                body = {
                    "model": model,
                    "max_tokens": 50,
                    "stream": stream,
                    "stream_options": {"include_usage": True},
                    "messages": [{"role": "user", "content": "planted-prompt"}],
                }
                if path.startswith("/anthropic"):
                    del body["stream_options"]
                _, entry = await self.call(path, json.dumps(body).encode())
                self.assert_as_billed(entry)
                self.assertEqual(entry.usage_source, "body", path)
                self.assertIsNotNone(entry.cost_picousd, path)

    async def test_what_costs_nothing(self) -> None:
        """Refusals, Bedrock's errors and the control plane are free."""
        await self.start_models()
        client = await self.ask(request("/bedrock/foundation-models", b"", method="GET"))
        self.assertEqual(client.status, 200)
        self.assertEqual(self.records.entries[-1].cost_picousd, 0)
        _, entry = await self.call("/model/typo/converse", status=404)
        self.assertEqual((entry.cost_picousd, entry.outcome), (0, "refused"))
        self.sandbox.faults.add("throttle", times=1)
        _, entry = await self.call("/model/haiku/converse", status=429)
        self.assertEqual((entry.cost_picousd, entry.error), (0, "ThrottlingException"))

    async def test_no_answer(self) -> None:
        """An attempt of which nothing came back may be billed: its cost is unknown."""
        await self.start_models(limits=Limits(first_byte_timeout_s=0.3, shutdown_grace_s=0.2))
        for fault in ("drop", "hang"):
            self.sandbox.faults.add(fault, at="head", times=1)
            client = await self.ask(request("/bedrock/model/haiku/converse"))
            self.assertIn(client.status, (503, 408))
            entry = self.records.entries[-1]
            self.assertEqual((entry.cost_picousd, entry.outcome), (None, "failed"))

    async def test_in_stream_exception(self) -> None:
        """A stream that Bedrock breaks off with an exception keeps its record."""
        await self.start_models()
        self.sandbox.faults.add("exception", code="throttlingException", after=3, times=1)
        _, entry = await self.call("/model/haiku/converse-stream")
        self.assertEqual(entry.outcome, "complete")
        self.assertIsNone(entry.cost_picousd)

    async def test_encoded(self) -> None:
        """A compressed answer is metered all the same."""
        await self.start_models()
        self.sandbox.faults.add("gzip", times=1)
        _, entry = await self.call("/model/haiku/converse")
        self.assert_as_billed(entry)

    async def test_sum(self) -> None:
        """
        Over many exchanges of all kinds the sums are the sandbox's own.

        ``TXBEDROCK_EXCHANGES`` says how many (default 400).
        """
        await self.start_models()
        paths = [
            (f"/bedrock/model/{model}/{verb}", body)
            for model in ("haiku", "nova")
            for verb, body in (
                ("converse", BODY),
                ("converse-stream", BODY),
                ("invoke", INVOKE),
                ("invoke-with-response-stream", INVOKE),
            )
        ]
        tokens = DeferredSemaphore(16)

        async def one(number: int) -> None:
            path, body = paths[number % len(paths)]
            body = body.replace(b"planted-prompt", b"planted-prompt " * (number % 7 + 1))
            client = await self.ask(request(path, body))
            self.assertEqual(client.status, 200)
            client.transport.loseConnection()

        count = int(os.environ.get("TXBEDROCK_EXCHANGES", "400"))
        await gatherResults(
            [tokens.run(lambda n=n: Deferred.fromCoroutine(one(n))) for n in range(count)]
        )
        entries = self.records.entries
        self.assertEqual(len({entry.request_id for entry in entries}), count)
        for entry in entries:
            self.assert_as_billed(entry)
        expected = 0
        for billed in self.sandbox.billed.values():
            price = self.prices(HAIKU if "haiku" in billed.model else NOVA)
            expected += billed.usage.input * price["input"]
            expected += billed.usage.output * price["output"]
        self.assertEqual(sum(entry.cost_picousd or 0 for entry in entries), expected)


class LeavingTests(AccountTestCase):
    """A client that leaves does not make an answer free."""

    async def leave(self, on_disconnect: OnDisconnect) -> LedgerEntry:
        self.start_sandbox()
        deployment = self.deployment(
            id="haiku", model_name="haiku", model_id=HAIKU, on_disconnect=on_disconnect
        )
        await self.start_gateway(self.settings(deployments=(deployment,)))
        self.sandbox.faults.add("drip", interval_ms=20, times=1)
        client = await self.connect()
        client.write(request("/bedrock/model/haiku/converse-stream"))
        await until(lambda: b"contentBlockDelta" in client.received)
        client.transport.abortConnection()
        await until(lambda: bool(self.records.records))
        return self.records.entries[0]

    async def test_drain(self) -> None:
        """With drain the true cost is known."""
        entry = await self.leave(OnDisconnect.DRAIN)
        self.assert_as_billed(entry)
        price = self.prices(HAIKU)
        self.assertEqual(
            entry.cost_picousd,
            entry.input_tokens * price["input"] + entry.output_tokens * price["output"],
        )
        self.assertEqual((entry.outcome, entry.error), ("client_gone", ""))

    async def test_cancel(self) -> None:
        """With cancel the record is there, and marked."""
        entry = await self.leave(OnDisconnect.CANCEL)
        self.assertEqual((entry.outcome, entry.error), ("client_gone", "cancelled"))
        self.assertIsNone(entry.cost_picousd)
        self.assertGreater(entry.bytes_down, 0)


class HeaderTests(AccountTestCase):
    """What the client is told."""

    async def test_answers(self) -> None:
        """The id of its line of the ledger, what served it, what it cost, our own time."""
        await self.start_models()
        client, entry = await self.call("/model/haiku/converse")
        self.assertIn(b"x-litellm-call-id: " + entry.request_id.encode(), client.head)
        self.assertIn(b"x-litellm-model-id: haiku", client.head)
        assert entry.cost_picousd is not None
        cost = f"{entry.cost_picousd / 10**12:.12f}".rstrip("0")
        self.assertIn(f"x-litellm-response-cost: {cost}".encode(), client.head)
        self.assertRegex(client.head, rb"server-timing: txbedrock;dur=\d+\.\d{3}")
        client, entry = await self.call("/model/haiku/converse-stream")
        self.assertIn(b"x-litellm-call-id: " + entry.request_id.encode(), client.head)
        self.assertNotIn(b"response-cost", client.head)

    async def test_refusals(self) -> None:
        """A refusal has its id, too."""
        await self.start_models()
        client, entry = await self.call("/model/typo/converse", status=404)
        self.assertIn(b"x-litellm-call-id: " + entry.request_id.encode(), client.head)

    async def test_id_is_ours(self) -> None:
        """A client cannot choose the id, and so not hide one exchange behind another."""
        await self.start_models()
        _, entry = await self.call("/model/haiku/converse", BODY, "x-litellm-call-id: mine")
        self.assertNotEqual(entry.request_id, "mine")

    async def test_whom(self) -> None:
        """End user, tags and session are on record, and ours do not go up."""
        await self.start_models()
        _, entry = await self.call(
            "/model/haiku/converse",
            BODY,
            "x-litellm-end-user-id: eve",
            "x-litellm-tags: a, b",
            "X-Claude-Code-Session-Id: s1",
        )
        self.assertEqual(
            (entry.end_user, entry.tags, entry.session_id, entry.key_alias),
            ("eve", ("a", "b"), "s1", "master_key"),
        )
        names = {name.lower() for name, _ in self.sandbox.requests[-1].headers}
        self.assertFalse({name for name in names if name.startswith(b"x-litellm")})
        self.assertIn(b"x-claude-code-session-id", names)
