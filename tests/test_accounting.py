"""
Tests for L{txbedrock.accounting}: from a request and its answer to a line of the
ledger. Every cost was worked out by hand from the price beside it.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import Records
from txbedrock.accounting import Accounts, InLedger
from txbedrock.core.attribution import Attribution
from txbedrock.core.auth import Principal
from txbedrock.core.deployments import Deployment
from txbedrock.core.entries import LedgerEntry
from txbedrock.core.models import Choice
from txbedrock.core.operations import Operations
from txbedrock.core.pricing import Prices, PriceTable
from txbedrock.data import load
from txbedrock.errors import ProxyError, UpstreamBroke
from txbedrock.inbound.body import Body
from txbedrock.interfaces import ExchangeRecord, InboundRequest, Outcome

OPERATIONS = Operations(load("operations"))
TABLE = PriceTable.parse(load("prices"))

NOVA = "us.amazon.nova-lite-v1:0"
CANVAS = "amazon.nova-canvas-v1:0"
TITAN = "amazon.titan-image-generator-v2:0"
SDXL = "stability.stable-diffusion-xl-v1"
CLAUDE = "us.anthropic.claude-sonnet-4-6"
PROVISIONED = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/abcdefabcdef"
JSON = [(b"Content-Type", b"application/json")]

# Titan's prices as LiteLLM's users write them: USD 0.008, 0.01 for a better image.
BY_QUALITY: Prices = (("output_image", 8_000_000_000), ("output_image_premium", 10_000_000_000))


def dump(**members: Any) -> bytes:
    return json.dumps(members).encode()


class Untouchable(Body):
    """A body that nobody may look into."""

    def start(self) -> bytes:
        raise AssertionError("the request was looked into")


class Response:
    """The head of an answer."""

    phrase = b"OK"
    length = None

    def __init__(self, status: int = 200, headers: list[tuple[bytes, bytes]] = JSON) -> None:
        self.status = status
        self.headers = headers

    async def discard(self) -> None:
        raise AssertionError("an answer that is metered is not thrown away")


class Now:
    """A clock."""

    time = 1_800_000_000.0

    def __call__(self) -> float:
        return self.time


class AccountsTestCase(SynchronousTestCase):
    """One exchange at a time, without a socket."""

    def setUp(self) -> None:
        self.now = Now()
        self.records = Records()
        self.accounts = Accounts(TABLE, [self.records], wall_clock=self.now)

    def begin(
        self,
        model_id: str,
        verb: str = "invoke",
        sent: bytes | Body = b"{}",
        status: int = 200,
        headers: list[tuple[bytes, bytes]] = JSON,
        path: bytes = b"",
        region: str = "us-east-1",
        **deployment: Any,
    ) -> ExchangeRecord:
        """An exchange whose answer's head is here."""
        body = sent if isinstance(sent, Body) else Body()
        if isinstance(sent, bytes):
            body.write(sent)
            self.successResultOf(Deferred.fromCoroutine(body.complete()))
        path = path or b"/model/m/" + verb.encode()
        request = InboundRequest(
            "id-1", b"POST", path, None, [], body, "10.0.0.9", self.now.time, self.now.time
        )
        match = OPERATIONS.match(b"POST", path)
        choice = Choice(
            Deployment(id="d1", model_name="m", model_id=model_id, region=region, **deployment),
            model_id if path.startswith(b"/model/") else "",
            region,
        )
        meter = self.accounts.meter(request, match, choice, Response(status, headers))
        return ExchangeRecord(
            request,
            Principal("alias", "00"),
            match=match,
            choice=choice,
            attempts=1,
            status=status,
            meter=meter,
        )

    def end(self, record: ExchangeRecord, answer: bytes) -> LedgerEntry:
        """The answer is here, whole."""
        assert record.meter is not None
        record.meter.feed(answer)
        self.accounts.settle(record)
        assert record.entry is not None
        return record.entry

    def cost(self, model_id: str, sent: bytes, answer: bytes, **options: Any) -> int | None:
        return self.end(self.begin(model_id, sent=sent, **options), answer).cost_picousd


class FieldTests(AccountsTestCase):
    """Every field of a line of the ledger is what it is called."""

    def test_every_field(self) -> None:
        record = self.begin(CLAUDE, "converse", region="us-west-2")
        record.principal = Principal("alias", "hash", user_id="user", team_id="team")
        record.attribution = Attribution("end-user", ("a", "b"), "session")
        record.model_name, record.upstream_request_id = "group", "aws-1"
        record.attempts, record.status, record.error = 2, 201, "Odd"
        record.outcome = Outcome.PARTIAL
        record.bytes_up, record.bytes_down = 11, 22
        record.first_byte_s, record.duration_s = 1.5, 3.25
        usage = {"inputTokens": 3, "outputTokens": 4, "cacheReadInputTokens": 5}
        usage |= {"cacheWriteInputTokens": 13}
        details = [{"ttl": "1h", "inputTokens": 6}]
        tier = {"type": "priority"}
        answer = dump(usage={**usage, "cacheDetails": details}, serviceTier=tier)
        entry = self.end(record, answer)
        started = 1_800_000_000_000_000
        assert record.cost is not None
        self.assertEqual(
            entry,
            LedgerEntry(
                request_id="id-1",
                started_us=started,
                first_byte_us=started + 1_500_000,
                ended_us=started + 3_250_000,
                aws_request_id="aws-1",
                key_hash="hash",
                key_alias="alias",
                user_id="user",
                team_id="team",
                end_user="end-user",
                tags=("a", "b"),
                session_id="session",
                client="10.0.0.9",
                service="bedrock-runtime",
                operation="Converse",
                model_name="group",
                model_id=CLAUDE,
                deployment="d1",
                region="us-west-2",
                attempts=2,
                status=201,
                outcome="partial",
                error="Odd",
                input_tokens=3,
                output_tokens=4,
                cache_read_tokens=5,
                cache_write_5m_tokens=7,
                cache_write_1h_tokens=6,
                tier="priority",
                usage_source="body",
                cost_picousd=record.cost.picousd,
                price_id=record.cost.price_id,
                price_version=TABLE.version,
                bytes_up=11,
                bytes_down=22,
            ),
        )


def painted(task: str = "TEXT_IMAGE", **config: Any) -> bytes:
    return dump(taskType=task, textToImageParams={"text": "a"}, imageGenerationConfig=config)


def images(count: int) -> bytes:
    return dump(images=["iVBORw0KGgo"] * count, error=None)


class RequestTests(AccountsTestCase):
    """What a request asked for decides on the price of its answer."""

    def test_images(self) -> None:
        """By size, quality and steps; with the entry that the price is from."""
        sized = f"1024-x-1024/50-steps/{SDXL}"
        for model_id, own, sent, answer, expected, price_id in (
            # USD 0.06 an image.
            (
                CANVAS,
                (),
                painted(),
                images(2),
                120_000_000_000,
                f"1024-x-1024/50-steps/bedrock/{CANVAS}",
            ),
            (CANVAS, (), painted(width=2048, height=2048), images(1), 60_000_000_000, CANVAS),
            # USD 0.04 up to 50 steps, 0.08 above.
            (SDXL, (), dump(steps=50), dump(artifacts=[{"base64": "a"}]), 40_000_000_000, sized),
            (
                SDXL,
                (),
                dump(steps=51, width=1344, height=768),
                dump(artifacts=[{"base64": "a"}]),
                80_000_000_000,
                sized.replace("/50-", "/max-"),
            ),
            # USD 0.008, whatever it is; and by the deployment's own prices.
            (TITAN, (), painted(quality="premium"), images(1), 8_000_000_000, TITAN),
            (TITAN, BY_QUALITY, painted(), images(3), 24_000_000_000, f"deployment+{TITAN}"),
            (
                TITAN,
                BY_QUALITY,
                painted("INPAINTING", quality="premium"),
                images(3),
                30_000_000_000,
                f"deployment+{TITAN}",
            ),
            (TITAN, BY_QUALITY, painted(quality="odd"), images(1), None, f"deployment+{TITAN}"),
        ):
            record = self.begin(model_id, sent=sent, prices=own)
            entry = self.end(record, answer)
            self.assertEqual((entry.cost_picousd, entry.price_id), (expected, price_id), sent)

    def test_base_model(self) -> None:
        """An ARN that names no model is read as what it stands for."""
        for sent, expected in ((dump(steps=51), 80_000_000_000), (dump(), 40_000_000_000)):
            answer = dump(artifacts=[{"base64": "a"}])
            self.assertEqual(self.cost(PROVISIONED, sent, answer, base_model=SDXL), expected)

    def test_client_gone(self) -> None:
        """A client that leaves takes its request with it, and pays all the same."""
        record = self.begin(TITAN, sent=painted(quality="premium"), prices=BY_QUALITY)
        assert isinstance(record.request.body, Body)
        record.request.body.close()
        record.outcome = Outcome.CLIENT_GONE
        self.assertEqual(self.end(record, images(1)).cost_picousd, 10_000_000_000)

    def test_searches(self) -> None:
        """A search by its depth, for which the request is read when there was one."""
        own = (("search_low", 1_000), ("search_medium", 2_000), ("search_high", 3_000))
        tokens = {"input_tokens": 10, "output_tokens": 5}
        searched = {**tokens, "server_tool_use": {"web_search_requests": 2}}
        sent = dump(messages=[], web_search_options={"search_context_size": "high"})
        # USD 3.3 and 16.5 a million tokens.
        self.assertEqual(
            self.cost(CLAUDE, sent, dump(usage=searched), prices=own), 115_500_000 + 6_000
        )
        record = self.begin(CLAUDE, sent=Untouchable(), prices=own)
        self.assertEqual(self.end(record, dump(usage=tokens)).cost_picousd, 115_500_000)
        # The tool of Anthropic's own has no depth.
        tool = {"type": "web_search_20250305", "name": "web_search"}
        self.assertIsNone(self.cost(CLAUDE, dump(tools=[tool]), dump(usage=searched), prices=own))

    def test_not_looked_into(self) -> None:
        """Where the price does not depend on it, nobody looks into a request."""
        usage = {"inputTokens": 8, "outputTokens": 10}
        claude = {"input_tokens": 8, "output_tokens": 10}
        for model_id, verb, answer, expected in (
            # USD 0.06 and 0.24 a million tokens; 3.3 and 16.5.
            (NOVA, "converse", dump(usage=usage), 480_000 + 2_400_000),
            (CLAUDE, "invoke", dump(usage=claude), 26_400_000 + 165_000_000),
            (TITAN, "invoke", images(1), 8_000_000_000),
            ("stability.sd3-5-large-v1:0", "invoke", images(1), 80_000_000_000),
        ):
            record = self.begin(model_id, verb, Untouchable())
            self.assertEqual(self.end(record, answer).cost_picousd, expected, model_id)
        record = self.begin(SDXL, sent=Untouchable(), status=429)
        self.assertEqual(self.end(record, b"{}").cost_picousd, 0)

    def test_embeddings(self) -> None:
        """What is embedded besides text is in the request only."""
        titan, marengo = "amazon.titan-embed-image-v1", "us.twelvelabs.marengo-embed-2-7-v1:0"
        nova = "amazon.nova-2-multimodal-embeddings-v1:0"
        for model_id, sent, answer, expected in (
            # USD 0.8 a million tokens, 0.00006 an image.
            (titan, dump(inputText="a"), dump(inputTextTokenCount=6), 4_800_000),
            (titan, dump(inputImage="iVBO"), dump(inputTextTokenCount=0), 60_000_000),
            (
                titan,
                dump(inputText="a", inputImage="iVBO"),
                dump(inputTextTokenCount=6),
                64_800_000,
            ),
            # USD 0.00007 a text, 0.0001 an image.
            (marengo, dump(inputType="text", inputText="a"), dump(data=[]), 70_000_000),
            (marengo, dump(inputType="image", mediaSource={}), dump(data=[]), 100_000_000),
            (marengo, dump(inputType="video"), dump(data=[]), None),
            # USD 0.135 a million tokens, 0.00006 an image; how long a sound is nobody tells.
            (nova, dump(singleEmbeddingParams={"text": {}}), dump(inputTokenCount=4), 540_000),
            (nova, dump(singleEmbeddingParams={"image": {}}), dump(inputTokenCount=0), 60_000_000),
            (nova, dump(singleEmbeddingParams={"audio": {}}), dump(inputTokenCount=0), None),
        ):
            self.assertEqual(self.cost(model_id, sent, answer), expected, sent)
        # Behind an ARN, too.
        found = self.cost(
            PROVISIONED, dump(inputImage="a"), dump(inputTextTokenCount=0), base_model=titan
        )
        self.assertEqual(found, 60_000_000)

    def test_videos(self) -> None:
        """A video that is still to be made, by the length that was asked for."""
        reel = "amazon.nova-reel-v1:1"
        asked = {"taskType": "TEXT_VIDEO", "videoGenerationConfig": {"durationSeconds": 6}}
        sent = dump(modelId=reel, modelInput=asked)
        answer = dump(invocationArn="arn:aws:bedrock:us-east-1:1:async-invoke/x")
        entry = self.end(self.begin("*", sent=sent, path=b"/async-invoke"), answer)
        # Nobody says what that costs.
        self.assertEqual((entry.cost_picousd, entry.model_id), (None, reel))
        # USD 0.08 a second.
        own = PriceTable({reel: {"output_video_second": 80_000_000_000}}, "mine")
        self.accounts.prices = TABLE.below(own)
        entry = self.end(self.begin("*", sent=sent, path=b"/async-invoke"), answer)
        self.assertEqual(
            (entry.cost_picousd, entry.units, entry.usage_source, entry.price_id),
            (480_000_000_000, {"output_video_ms": 6000}, "request", reel),
        )


class TimeTests(AccountsTestCase):
    """Provisioned throughput, billed by the second."""

    def test_commitments(self) -> None:
        """One and a half seconds of each kind of commitment."""
        for base_model, region, expected in (
            # USD a second: 0.0175, 0.00972, 0.01635, 0.02305; 0.011, 0.0066027,
            # 0.001902, 0.0011416.
            (
                "bedrock/us-east-1/1-month-commitment/anthropic.claude-v1",
                "us-east-1",
                26_250_000_000,
            ),
            (
                "bedrock/us-west-2/6-month-commitment/anthropic.claude-v2:1",
                "us-west-2",
                14_580_000_000,
            ),
            ("1-month-commitment/anthropic.claude-instant-v1", "eu-central-1", 24_525_000_000),
            (
                "bedrock/eu-central-1/6-month-commitment/anthropic.claude-v1",
                "us-east-1",
                34_575_000_000,
            ),
            ("bedrock/1-month-commitment/cohere.command-text-v14", "us-east-1", 16_500_000_000),
            ("bedrock/*/6-month-commitment/cohere.command-text-v14", "us-east-1", 9_904_050_000),
            ("1-month-commitment/cohere.command-light-text-v14", "eu-west-3", 2_853_000_000),
            ("6-month-commitment/cohere.command-light-text-v14", "eu-west-3", 1_712_400_000),
        ):
            record = self.begin(PROVISIONED, region=region, base_model=base_model)
            record.duration_s = 1.5
            entry = self.end(record, dump(completion="a", stop_reason="stop"))
            self.assertEqual(entry.cost_picousd, expected, base_model)
            self.assertIn("-month-commitment/", entry.price_id)

    def test_all(self) -> None:
        """Every entry with a price for a second can be reached, by its id."""
        count = 0
        for name, prices in TABLE.entries.items():
            if "second" in prices:
                record = self.begin(PROVISIONED, region="sa-east-1", base_model=name)
                record.duration_s = 2.0
                entry = self.end(record, b"{}")
                self.assertEqual(entry.cost_picousd, 2 * prices["second"], name)
                count += 1
        self.assertEqual(count, 28)

    def test_until_now(self) -> None:
        """
        A short answer is priced before it goes out: until then, from the moment when
        the request was whole, since a slow upload costs nothing.
        """
        base_model = "bedrock/us-east-1/1-month-commitment/anthropic.claude-v1"
        record = self.begin(PROVISIONED, base_model=base_model)
        record.request.complete = record.request.received + 10
        assert record.meter is not None
        record.meter.feed(dump(completion="a"))
        self.now.time += 12.5
        # 2.5 seconds at USD 0.0175.
        self.assertEqual(self.accounts.price(record).picousd, 43_750_000_000)
        self.now.time += 100
        record.duration_s = 112.5
        self.accounts.settle(record)
        assert record.entry is not None
        self.assertEqual(record.entry.cost_picousd, 43_750_000_000)

    def test_own(self) -> None:
        """A deployment's own price for a second; an answer takes a millisecond at least."""
        for seconds, expected in ((0.1234, 123), (0.0001, 1)):
            record = self.begin(NOVA, "converse", prices=(("second", 1000),))
            record.duration_s = seconds
            entry = self.end(record, dump(usage={"inputTokens": 8, "outputTokens": 10}))
            self.assertEqual((entry.cost_picousd, entry.input_tokens), (expected, 8))

    def test_refused(self) -> None:
        """What Bedrock refuses costs nothing, however long that takes."""
        record = self.begin(NOVA, "converse", status=400, prices=(("second", 1000),))
        record.duration_s = 5.0
        self.assertEqual(self.end(record, b"{}").cost_picousd, 0)


class EntryTests(AccountsTestCase):
    """The line of the ledger, and who gets it."""

    def whole(self) -> ExchangeRecord:
        record = self.begin(NOVA, "converse")
        record.attribution = Attribution("eve", ("a", "b"), "s1")
        record.principal = Principal("alias", "00ff", "u1", "t1")
        record.model_name = "m"
        record.upstream_request_id = "aws-1"
        record.first_byte_s, record.duration_s = 0.25, 0.5
        record.bytes_up, record.bytes_down = 64, 250
        return record

    def test_all_fields(self) -> None:
        """Everything that is known stands in it."""
        usage = {"inputTokens": 8, "outputTokens": 10, "cacheReadInputTokens": 4}
        entry = self.end(self.whole(), dump(usage=usage, serviceTier={"type": "default"}))
        self.assertEqual(
            entry,
            LedgerEntry(
                request_id="id-1",
                started_us=1_800_000_000_000_000,
                first_byte_us=1_800_000_000_250_000,
                ended_us=1_800_000_000_500_000,
                aws_request_id="aws-1",
                key_hash="00ff",
                key_alias="alias",
                user_id="u1",
                team_id="t1",
                end_user="eve",
                tags=("a", "b"),
                session_id="s1",
                client="10.0.0.9",
                service="bedrock-runtime",
                operation="Converse",
                model_name="m",
                model_id=NOVA,
                deployment="d1",
                region="us-east-1",
                attempts=1,
                status=200,
                outcome="complete",
                input_tokens=8,
                output_tokens=10,
                cache_read_tokens=4,
                tier="default",
                usage_source="body",
                # USD 0.06, 0.24 and 0.015 a million tokens.
                cost_picousd=480_000 + 2_400_000 + 60_000,
                price_id=NOVA,
                price_version=TABLE.version,
                bytes_up=64,
                bytes_down=250,
            ),
        )

    def test_nothing_known(self) -> None:
        """A refusal before anything is known has a line, too, and costs nothing."""
        body = Body()
        request = InboundRequest("id-2", b"GET", b"/x", None, [], body, "10.0.0.9", 5.0)
        record = ExchangeRecord(request, status=404, outcome=Outcome.REFUSED, error="Unknown")
        self.accounts.settle(record)
        self.assertEqual(
            record.entry,
            LedgerEntry(
                request_id="id-2",
                started_us=5_000_000,
                ended_us=5_000_000,
                client="10.0.0.9",
                status=404,
                outcome="refused",
                error="Unknown",
                usage_source="unknown",
                cost_picousd=0,
                price_version=TABLE.version,
            ),
        )

    def test_failing_log(self) -> None:
        """One that cannot keep a record does not keep the others from it."""

        class Failing:
            def record(self, record: ExchangeRecord) -> None:
                raise ZeroDivisionError

        self.accounts = Accounts(TABLE, [Failing(), self.records])
        self.end(self.whole(), dump(usage={"inputTokens": 1, "outputTokens": 1}))
        self.assertEqual(len(self.records.entries), 1)
        failures: list[Failure] = self.flushLoggedErrors(ZeroDivisionError)
        self.assertEqual(len(failures), 1)

    def test_lost_attempts(self) -> None:
        """
        Each attempt whose answer was lost has a line of its own, of an unknown cost, beside
        that of the exchange, which goes on as if nothing had been.
        """
        told = Records()
        self.accounts = Accounts(TABLE, [self.records], [told], wall_clock=self.now)
        record = self.whole()
        assert record.choice is not None
        elsewhere = Choice(
            Deployment(id="d0", model_name="m", model_id=CLAUDE, region="us-west-2"),
            CLAUDE,
            "us-west-2",
        )
        self.now.time += 3
        for choice in (elsewhere, record.choice):
            self.accounts.settle_attempt(record, UpstreamBroke("it broke"), choice)
        self.end(record, dump(usage={"inputTokens": 8, "outputTokens": 10}))
        self.accounts.tell(record)
        for records in (self.records, told):
            self.assertEqual(
                [
                    (one.request_id, one.deployment, one.outcome, one.cost_picousd, one.key_hash)
                    for one in records.entries
                ],
                [
                    ("id-1-1", "d0", "failed", None, "00ff"),
                    ("id-1-2", "d1", "failed", None, "00ff"),
                    ("id-1", "d1", "complete", 8 * 60_000 + 10 * 240_000, "00ff"),
                ],
            )
        lost = self.records.entries[0]
        self.assertEqual((lost.model_id, lost.region, lost.attempts), (CLAUDE, "us-west-2", 1))
        self.assertEqual((lost.status, lost.error), (UpstreamBroke.status, UpstreamBroke.code))
        self.assertEqual(lost.ended_us - lost.started_us, 3_000_000)

    def test_asked_of_request(self) -> None:
        """The request is kept where the price of its answer may depend on it."""
        for model_id, path, expected in (
            (NOVA, b"/model/m/converse", False),
            (TITAN, b"/model/m/invoke", False),
            (SDXL, b"/model/m/invoke", True),
            ("x.y", b"/model/m/invoke", True),
            (NOVA, b"/guardrail/g/version/1/apply", True),
        ):
            choice = self.begin(model_id, path=path).choice
            assert choice is not None
            self.assertEqual(self.accounts.ask_of_request(choice), expected, model_id)

    def test_unknown_costs(self) -> None:
        """A cost that is not known is told once of each model and reason, and no known one."""
        told: list[str] = []
        for _ in range(2):
            with capturedLogs() as logged:
                for record, answer in (
                    (self.whole(), dump(usage={"inputTokens": 1, "outputTokens": 1})),
                    (self.begin("x.y", "converse"), dump(usage={"inputTokens": 1})),
                    (self.begin("x.y", "converse"), dump(usage={"outputTokens": 2})),
                    (self.begin("x.y", "converse"), dump(usage={"inputTokens": 3})),
                    (self.begin("x.z", "converse"), dump()),
                ):
                    self.end(record, answer)
            told += [formatEvent(event).partition(";")[0] for event in logged]
        self.assertEqual(
            told,
            [
                "the cost of x.y is not known, there is no price for input",
                "the cost of x.y is not known, there is no price for output",
                "the cost of x.z is not known: its answer does not say what it used",
            ],
        )

    def test_told_of_few(self) -> None:
        """Models that clients make up do not fill the memory, nor the log."""
        with capturedLogs() as logged:
            for number in range(1100):
                self.end(self.begin(f"x.{number}", "converse"), dump())
        self.assertEqual(len(logged), 1000)

    def test_in_ledger(self) -> None:
        """Only what is done for a key is kept, and what the ledger cannot keep is its own."""
        kept: list[LedgerEntry] = []

        class Ledger:
            def record(self, entry: LedgerEntry) -> None:
                kept.append(entry)
                raise ProxyError("full", detail="full")

        in_ledger = InLedger(Ledger())  # type: ignore[arg-type]
        record = self.whole()
        in_ledger.record(record)
        self.assertEqual(kept, [])
        entry = self.end(record, dump(usage={"inputTokens": 1, "outputTokens": 1}))
        in_ledger.record(record)
        self.assertEqual(kept, [entry])
        record.principal = None
        in_ledger.record(record)
        self.assertEqual(kept, [entry])
