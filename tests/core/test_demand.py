"""Tests for :mod:`txbedrock.core.demand`, and for the table that it is given."""

from __future__ import annotations

import gc
import json
import os
from base64 import b64encode
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.demand import Demand, ModelSize, ModelSizes, TokenRatios
from txbedrock.core.headers import HeaderList
from txbedrock.core.pricing import GUARDRAILS, Price, PriceTable, cost
from txbedrock.core.usage import Source, Usage
from txbedrock.data import generate_model_limits, load

PRICES = PriceTable.parse(load("prices"))
SIZES = ModelSizes.parse(load("model_limits"))

NOVA = "us.amazon.nova-lite-v1:0"
SONNET = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
LLAMA = "meta.llama3-8b-instruct-v1:0"
TITAN = "amazon.titan-text-express-v1"
TITAN_EMBED = "amazon.titan-embed-text-v2:0"
TITAN_IMAGE = "amazon.titan-image-generator-v2:0"
SDXL = "stability.stable-diffusion-xl-v1"
RERANK = "amazon.rerank-v1:0"
PEGASUS = "us.twelvelabs.pegasus-1-2-v1:0"
COMMITTED = "bedrock/us-east-1/1-month-commitment/anthropic.claude-v1"
TEXT = {"messages": [{"role": "user", "content": [{"text": "Hello"}]}]}


def demand(
    body: object,
    model_id: str = NOVA,
    operation: str = "Converse",
    *,
    ratios: TokenRatios | None = None,
    price: Price | None = None,
    cut: int | None = None,
    **options: Any,
) -> Demand:
    """Of a body as the client sends it, of which perhaps only the beginning is at hand."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Demand(
        model="m",
        model_id=model_id,
        operation=operation,
        body_length=len(data),
        body_start=data[:cut],
        price=price or PRICES.price(model_id, "us-east-1"),
        ratios=ratios or TokenRatios(),
        sizes=SIZES,
        **options,
    )


def length(body: object) -> int:
    return len(json.dumps(body).encode())


def wide(body: dict[str, Any]) -> dict[str, Any]:
    """The same with far more in each of its objects than is looked for."""
    more = {f"x{at}": [[], {}] for at in range(2000)}
    return {
        **more,
        **{name: {**more, **it} if isinstance(it, dict) else it for name, it in body.items()},
    }


class TokensTests(SynchronousTestCase):
    """Tokens: input and output at most."""

    def test_output(self) -> None:
        """What the request allows, by the name that its model's vendor has for it."""
        for operation, body, output in [
            ("Converse", {"inferenceConfig": {"maxTokens": 7}}, 7),
            ("ConverseStream", {"inferenceConfig": {"maxTokens": 7}}, 7),
            ("InvokeModel", {"max_tokens": 7}, 7),
            ("InvokeModel", {"max_completion_tokens": 7}, 7),
            ("InvokeModel", {"max_tokens_to_sample": 7}, 7),
            ("InvokeModel", {"max_gen_len": 7}, 7),
            ("InvokeModel", {"maxTokens": 7}, 7),
            ("InvokeModelWithResponseStream", {"inferenceConfig": {"max_new_tokens": 7}}, 7),
            ("InvokeModel", {"inferenceConfig": {"maxTokens": 7}}, 7),
            ("InvokeModel", {"textGenerationConfig": {"maxTokenCount": 7}}, 7),
            ("OpenAI", {"max_output_tokens": 7}, 7),
            ("OpenAI", {"max_completion_tokens": 7, "n": 3}, 21),
            ("InvokeModel", {"maxTokens": 7, "numResults": 2}, 14),
            ("InvokeModel", {"max_tokens": 7, "num_generations": 2}, 14),
            ("Anthropic", {"max_tokens": 7.0}, 7),
            # The largest, where there are several.
            ("InvokeModel", {"max_tokens": 7, "max_gen_len": 9}, 9),
            (
                "Converse",
                {
                    "inferenceConfig": {"maxTokens": 7},
                    "additionalModelRequestFields": {"max_tokens": 9},
                },
                9,
            ),
            # What is not said, or makes no sense, is all that the model can give.
            ("Converse", {}, 10_000),
            ("Converse", {"inferenceConfig": {"temperature": 0}}, 10_000),
            ("Converse", {"inferenceConfig": {"maxTokens": 0}}, 10_000),
            ("Converse", {"inferenceConfig": {"maxTokens": -5}}, 10_000),
            ("Converse", {"inferenceConfig": {"maxTokens": "7"}}, 10_000),
            ("Converse", {"inferenceConfig": {"maxTokens": True}}, 10_000),
            ("Converse", {"inferenceConfig": {"maxTokens": 1e300}}, 10_000),
            ("Converse", {"inferenceConfig": 7}, 10_000),
            ("OpenAI", {"n": 2}, 20_000),
            # Converse does not know other names, so they do not lower anything.
            ("Converse", {"max_tokens": 7}, 10_000),
            ("Converse", {"additionalModelRequestFields": {"max_tokens": 7}}, 10_000),
            # Nor does what stands somewhere else.
            ("InvokeModel", {"messages": [{"max_tokens": 7}]}, 10_000),
            ("InvokeModel", {"prompt": '"max_tokens": 7'}, 10_000),
        ]:
            for sent in (body, {"padding": "x" * 20_000, **body}, wide(body)):
                found = demand(sent, operation=operation).tokens()
                self.assertEqual(found - length(sent), output, (operation, body))

    def test_dense(self) -> None:
        """Of a long body next to no objects are made, whatever it is made of."""
        for start, piece, end in [
            (b'{"additionalModelRequestFields":[', b"[],", b"[]]}"),
            (b'{"inferenceConfig":[', b"{},", b'{}],"max_tokens":7}'),
            (b'{"inferenceConfig":{"x":[', b"[],", b"[]]}}"),
            (b'{"inferenceConfig":{"maxTokens":[', b"[],", b"[]]}}"),
            (b'{"messages":[', b'{"text":"a"},', b"{}]}"),
            (b"{", b'"a":[],', b'"a":1}'),
        ]:
            one = demand(start + piece * 100_000 + end, operation="InvokeModel")
            before = gc.get_stats()[0]["collections"]
            self.assertGreater(one.tokens(), 0)
            self.assertLessEqual(gc.get_stats()[0]["collections"] - before, 1, piece)

    def test_not_json(self) -> None:
        """What is no JSON may need anything."""
        for body in (b"", b"{", b"[1]", b'"x"', b"\xff{}", b"[" * 5000, b'{"max_tokens": 7'):
            found = demand(body, operation="InvokeModel").tokens()
            self.assertEqual(found, len(body) + 10_000, body[:20])

    def test_model(self) -> None:
        """What a model can give is known by its id, wherever it is served."""
        for model_id, base_model, output in [
            ("amazon.nova-lite-v1:0", None, 10_000),
            (SONNET, None, 64_000),
            ("anthropic.claude-3-haiku-20240307-v1:0", None, 4096),
            ("arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-lite-v1:0", None, 10_000),
            ("arn:aws:bedrock:us-east-1:1:inference-profile/" + NOVA, None, 10_000),
            ("arn:aws:bedrock:us-east-1:1:application-inference-profile/abc", NOVA, 10_000),
            ("arn:aws:bedrock:us-east-1:1:application-inference-profile/abc", None, 128_000),
            ("vendor.new-model-v9:0", None, 128_000),
            ("", None, 128_000),
            (TITAN_EMBED, None, 0),
            (RERANK, None, 0),
        ]:
            found = demand({}, model_id, "InvokeModel", base_model=base_model).tokens()
            self.assertEqual(found, 2 + output, model_id)

    def test_operations(self) -> None:
        """Only those that generate, or embed, need tokens; not those that cost nothing."""
        for operation in ("ApplyGuardrail", "Rerank", "InvokeAgent", "Retrieve"):
            self.assertEqual(demand(TEXT, operation=operation).tokens(), 0, operation)
        free = demand(TEXT, operation="CountTokens", billed=False)
        self.assertEqual((free.tokens(), free.picousd()), (0, 0))

    def test_pictures(self) -> None:
        """A picture is no text: it counts the same however large it is."""
        allowed = {"inferenceConfig": {"maxTokens": 1}}
        png = b64encode(b"\x89PNG\r\n\x1a\n" + bytes(30_000)).decode()
        jpeg = b64encode(b"\xff\xd8\xff\xe0" + bytes(30_000)).decode()
        film = b64encode(b"\0\0\0\x20ftypisom" + bytes(32_000)).decode()
        converse = {"messages": [{"content": [{"image": {"source": {"bytes": png}}}]}]}
        for body, media, tokens in [
            (converse, png, 5000),
            ({"source": {"media_type": "image/jpeg", "data": jpeg}}, jpeg, 5000),
            ({"image_url": {"url": f"data:image/png;base64,{png}"}}, png, 5000),
            ({"a": png, "b": jpeg, "text": "Hello" * 1000}, png + jpeg, 10_000),
            ({"video": {"source": {"bytes": film}}}, film, 5000 + len(film) // 32),
        ]:
            sent = {**body, **allowed}
            found = demand(sent).tokens()
            text = length(sent) - len(media)
            self.assertApproximates(found, text + tokens + 1, 30)

    def test_no_pictures(self) -> None:
        """What only begins like a picture is text."""
        for text in ("/9j/ " * 2000, "iVBORw0KGgo\n" + "x" * 5000, "x" * 9000 + "/9j/", "x" * 9000,
                     "/9j/" + "x" * 9000 + " x", "/9j/"):  # fmt: skip
            body = {"text": text, "inferenceConfig": {"maxTokens": 1}}
            self.assertEqual(demand(body).tokens(), length(body) + 1)

    def test_long(self) -> None:
        """Of a long body the beginning says what it can; the rest is as bad as it may be."""
        body = {"inferenceConfig": {"maxTokens": 1}, "text": "x" * 100_000}
        self.assertEqual(demand(body, cut=5000).tokens(), length(body) + 10_000)
        picture = b64encode(b"\xff\xd8\xff\xe0" + bytes(3_000_000)).decode()
        body = {"image": {"source": {"bytes": picture}}, "text": "x"}
        found = demand(body, cut=1024 * 1024).tokens()
        self.assertApproximates(found, 4 * 5000 + 10_000, 60)

    def test_referred_to(self) -> None:
        """What is somewhere else may fill the model's context."""
        body = {"image": {"source": {"s3Location": {"uri": "s3://b/k"}}}, **TEXT}
        self.assertEqual(demand(body).tokens(), 300_000 + 10_000)
        prompt = "arn:aws:bedrock:us-east-1:1:prompt/ABCDEFGHIJ:1"
        self.assertEqual(demand(TEXT, prompt, base_model=NOVA).tokens(), 300_000 + 10_000)

    def test_context(self) -> None:
        """More than the largest context is never needed."""
        self.assertEqual(demand(b" " * 24_000_000, cut=10).tokens(), 1_000_000 + 10_000)

    def test_learned(self) -> None:
        """It is reckoned anew with what was learned since."""
        ratios = TokenRatios()
        body = {"text": "x" * 9_950, "inferenceConfig": {"maxTokens": 5}}
        one = demand(body, ratios=ratios)
        size = length(body)
        self.assertEqual(one.tokens(), size + 5)
        before = one.picousd()
        for _ in range(20):
            one.learn(Usage(1000, 5, 400, 100, 500, source=Source.BODY))
        self.assertApproximates(one.tokens(), 2200, 50)
        after = one.picousd()
        assert before is not None and after is not None
        self.assertLess(after, before / 4)
        self.assertEqual(demand(body, ratios=ratios).tokens(), one.tokens())
        self.assertEqual(demand(body, SONNET, ratios=ratios).tokens(), size + 5)

    def test_not_learned(self) -> None:
        """Nothing is learned from an answer that says nothing, nor from what is no text."""
        ratios = TokenRatios()
        picture = b64encode(b"\xff\xd8\xff\xe0" + bytes(30_000)).decode()
        used = Usage(100, 5, source=Source.BODY)
        for body, usage in [
            (TEXT, Usage()),
            (TEXT, Usage(source=Source.NONE)),
            (TEXT, Usage(100, source=Source.REQUEST)),
            ({"bytes": picture, "text": "x" * 5000}, used),
            ({"s3Location": {"uri": "s3://b/k"}, "text": "x" * 5000}, used),
            (b"", used),
        ]:
            one = demand(body, ratios=ratios)
            one.tokens()
            one.learn(usage)
            self.assertEqual(ratios.of(NOVA), 1.0, body)
        # Nor from a request that nobody had to look into.
        demand(TEXT, ratios=ratios).learn(used)
        self.assertEqual(ratios.of(NOVA), 1.0)


class ReprTests(SynchronousTestCase):
    """What a client sent is nobody's to read in a log."""

    def test_hides(self) -> None:
        """Neither the body shows nor the headers, which have the key."""
        shown = repr(demand(TEXT, headers=[(b"Authorization", b"Bearer sk-planted")]))
        self.assertNotIn("Hello", shown)
        self.assertNotIn("planted", shown)


class UsedTests(SynchronousTestCase):
    """Tokens as Bedrock's quotas count them."""

    def test_burndown(self) -> None:
        """Output counts five times for Claude 3.7 and later, cache reads not at all."""
        usage = Usage(1000, 100, 5000, 200, 30, source=Source.BODY)
        for model_id, base_model, factor in [
            (NOVA, None, 1),
            ("meta.llama4-scout-17b-instruct-v1:0", None, 1),
            ("anthropic.claude-v2:1", None, 1),
            ("anthropic.claude-v2", None, 1),
            ("anthropic.claude-instant-v1", None, 1),
            ("anthropic.claude-3-haiku-20240307-v1:0", None, 1),
            ("anthropic.claude-3-opus-20240229-v1:0", None, 1),
            ("us.anthropic.claude-3-5-sonnet-20241022-v2:0", None, 1),
            ("us.anthropic.claude-3-5-haiku-20241022-v1:0", None, 1),
            ("us.anthropic.claude-3-7-sonnet-20250219-v1:0", None, 5),
            (SONNET, None, 5),
            ("global.anthropic.claude-opus-4-5-20251101-v1:0", None, 5),
            ("anthropic.claude-haiku-5-5", None, 5),
            ("anthropic.claude-fable-5", None, 5),
            ("arn:aws:bedrock:us-east-1:1:application-inference-profile/a", None, 1),
            ("arn:aws:bedrock:us-east-1:1:application-inference-profile/a", SONNET, 5),
        ]:
            found = demand(TEXT, model_id, base_model=base_model).used(usage)
            self.assertEqual(found, 1230 + 100 * factor, model_id)

    def test_unknown(self) -> None:
        """What nobody told is not known; what was refused used nothing."""
        self.assertIsNone(demand(TEXT).used(Usage()))
        self.assertEqual(demand(TEXT).used(Usage(source=Source.NONE)), 0)


class MoneyTests(SynchronousTestCase):
    """The most that it may cost."""

    def cost(self, body: object, model_id: str = NOVA, operation: str = "Converse",
             **options: Any) -> tuple[int | None, bool]:  # fmt: skip
        one = demand(body, model_id, operation, **options)
        return one.picousd(), one.uncertain

    def test_tokens(self) -> None:
        """Input and output at the model's price."""
        body = {**TEXT, "inferenceConfig": {"maxTokens": 100}}
        expected = length(body) * 60_000 + 100 * 240_000
        self.assertEqual(self.cost(body), (expected, False))

    def test_no_price(self) -> None:
        """Without a price it is not known."""
        self.assertEqual(self.cost(TEXT, "vendor.new-model-v9:0"), (None, False))

    def test_cache(self) -> None:
        """With a cache point the input may be written to the cache, the dearest way."""
        size = 1000
        for marker, price in [
            ("", 3_300_000),
            ('"cachePoint"', 4_125_000),
            ('"cache_control"', 4_125_000),
            ('"cachePoint", "1h"', 6_600_000),
            ('"1h"', 3_300_000),
        ]:
            body = f'{{"max_tokens": 10, "x": [{marker}]}}'.encode().ljust(size)
            expected = size * price + 10 * 16_500_000
            found = self.cost(body, SONNET, "InvokeModel")
            self.assertEqual(found, (expected, False), marker)
        # Nova writes to its cache for nothing.
        body = b'{"x": ["cachePoint"], "max_tokens": 10}'.ljust(size)
        found = self.cost(body, NOVA, "InvokeModel")
        self.assertEqual(found, (size * 60_000 + 10 * 240_000, False))

    def test_cache_of_long(self) -> None:
        """A body of which only the beginning is at hand may have one further on."""
        body = b'{"max_tokens": 10}'.ljust(100_000)
        self.assertEqual(
            self.cost(body, SONNET, "InvokeModel", cut=1000)[0],
            100_000 * 6_600_000 + 64_000 * 16_500_000,
        )

    def test_long_context(self) -> None:
        """A long input is charged at the price for long ones."""
        body = b'{"max_tokens": 10}'.ljust(200_001)
        self.assertEqual(
            self.cost(body, SONNET, "InvokeModel"),
            (200_001 * 6_600_000 + 10 * 24_750_000, False),
        )

    def test_tiers(self) -> None:
        """The tier that is asked for, if it is dearer than none."""
        prices = {"input": 10, "output": 100, "input.priority": 20, "output.priority": 200,
                  "input.flex": 5, "output.flex": 50, "input.ultrafast": 30,
                  "output.ultrafast": 300}  # fmt: skip
        tier: HeaderList = [(b"X-Amzn-Bedrock-Service-Tier", b"priority")]
        fast: HeaderList = [(b"x-amzn-bedrock-performanceconfig-latency", b"optimized")]
        for fields, headers, factor in [
            ({}, None, 1),
            ({"serviceTier": {"type": "priority"}}, None, 2),
            ({"serviceTier": {"type": "flex"}}, None, 1),
            ({"serviceTier": {"type": "reserved"}}, None, 1),
            ({"serviceTier": 7, "service_tier": ["x"]}, None, 1),
            ({"service_tier": "priority"}, None, 2),
            ({"performanceConfig": {"latency": "optimized"}}, None, 3),
            ({}, tier, 2),
            ({}, fast, 3),
            ({}, [(b"Content-Type", b"application/json")], 1),
        ]:
            body = {**fields, "inferenceConfig": {"maxTokens": 10}}
            for sent in (body, wide(body)):
                found = self.cost(sent, price=Price("p", prices), headers=headers)
                self.assertEqual(found, ((length(sent) * 10 + 1000) * factor, False), fields)

    def test_images(self) -> None:
        """As many images as are asked for, each of the dearest kind."""
        for body, model_id, cents in [
            ({"imageGenerationConfig": {"numberOfImages": 3}}, TITAN_IMAGE, 3 * 0.8),
            ({"textToImageParams": {"text": "a cat"}}, TITAN_IMAGE, 0.8),
            ({"samples": 2}, SDXL, 2 * 8),
            ({"prompt": "a cat"}, "stability.sd3-5-large-v1:0", 8),
        ]:
            for sent in (body, wide(body)):
                found = self.cost(sent, model_id, "InvokeModel")
                self.assertEqual(found, (round(cents * 10**10), False), model_id)

    def test_queries(self) -> None:
        """A rerank by its documents, if they can be counted."""
        body = {"query": "q", "documents": ["d"] * 101}
        self.assertEqual(self.cost(body, RERANK, "InvokeModel"), (2 * 10**9, False))
        self.assertEqual(self.cost(body, RERANK, "Rerank"), (2 * 10**9, False))
        self.assertEqual(self.cost(body, RERANK, "Rerank", cut=20), (1, True))

    def test_embedding(self) -> None:
        """An embedding costs its input."""
        body = {"inputText": "Hello"}
        found = self.cost(body, TITAN_EMBED, "InvokeModel")
        self.assertEqual(found, (length(body) * 20_000, False))

    def test_guardrail(self) -> None:
        """A guardrail for itself: all its policies, for each thousand letters and each text."""
        price = PRICES.guardrails()
        assert price is not None
        self.assertEqual(price.id, GUARDRAILS)
        body = {"content": [{"text": {"text": "x" * 2500}}, {"image": {}}]}
        units = -(-length(body) // 1000) + 2
        each = 170 + 150 + 100 + 0 + 100 + 150 + 0
        self.assertEqual(
            self.cost(body, "", "ApplyGuardrail", price=price),
            ((units * each + 750) * 10**6, False),
        )

    def test_guardrail_inside(self) -> None:
        """One in a conversation, where the answer will tell of it."""
        plain = self.cost({**TEXT, "guardrailConfig": {"guardrailIdentifier": "g"}})[0]
        traced = self.cost({**TEXT, "guardrailConfig": {"trace": "enabled"}})[0]
        assert plain is not None and traced is not None
        self.assertGreater(traced - plain, 60 * 600 * 10**6)
        body = {**TEXT, "guardrailConfig": {"guardrailIdentifier": "g"}}
        plain = self.cost(wide(body))[0]
        body["guardrailConfig"]["trace"] = "enabled"
        traced = self.cost(wide(body))[0]
        assert plain is not None and traced is not None
        self.assertGreater(traced - plain, 60 * 600 * 10**6)

    def test_uncertain(self) -> None:
        """What nothing tells is worth next to nothing, and said to be uncertain."""
        output = {**TEXT, "inferenceConfig": {"maxTokens": 100}}
        self.assertEqual(self.cost(output, PEGASUS), (100 * 7_500_000, True))
        price = PRICES.price(COMMITTED, "us-east-1")
        self.assertEqual(self.cost(TEXT, "anthropic.claude-v1", price=price), (1, True))
        self.assertEqual(self.cost(TEXT, SONNET, "InvokeAgent"), (1, True))
        only_output = Price("p", {"output": 5})
        self.assertEqual(self.cost(output, price=only_output), (500, True))

    def test_free_of_charge(self) -> None:
        """A deployment may have prices of 0."""
        zero = Price("deployment", {"input": 0, "output": 0})
        self.assertEqual(self.cost(TEXT, price=zero), (0, False))

    @given(
        st.sampled_from([NOVA, SONNET, LLAMA, TITAN]),
        st.integers(1, 300_000),
        st.integers(1, 5000),
        st.floats(0, 1),
        st.sampled_from(["", '"cachePoint"', '"cache_control", "1h"']),
        st.integers(0, 4),
    )
    def test_never_below(
        self, model_id: str, size: int, allowed: int, share: float, marker: str, kind: int
    ) -> None:
        """Nothing that the body allows costs more than was said."""
        body = f'{{"max_tokens": {allowed}, "x": [{marker}]}}'.encode().ljust(size)
        one = demand(body, model_id, "InvokeModel")
        worst = one.picousd()
        assert worst is not None
        counts = [0, 0, 0, 0]
        # In the cache only what may be written there: without a marker nothing is.
        counts[kind % 4 if marker else kind % 2] = int(len(body) * share)
        fresh, read, short, long = counts
        if '"1h"' not in marker:
            short, long = short + long, 0
        price = PRICES.price(model_id, "us-east-1")
        usage = Usage(fresh, allowed, read, short, long, source=Source.BODY)
        actual = cost(price, usage).picousd
        if actual is not None:
            self.assertLessEqual(actual, worst)
        self.assertLessEqual(fresh + short + long + allowed, one.tokens())


class RatioTests(SynchronousTestCase):
    """Tokens a byte."""

    def test_unknown(self) -> None:
        """A model that is not known has one for each."""
        self.assertEqual(TokenRatios().of(NOVA), 1.0)

    def test_learns(self) -> None:
        """It comes down in some requests, goes up at once, and stays up."""
        ratios = TokenRatios()
        for _ in range(8):
            ratios.learn(NOVA, 1000, 200)
        self.assertApproximates(ratios.of(NOVA), 0.22, 0.005)
        ratios.learn(NOVA, 1000, 600)
        self.assertAlmostEqual(ratios.of(NOVA), 0.66)
        for _ in range(20):
            ratios.learn(NOVA, 1000, 200)
        self.assertGreater(ratios.of(NOVA), 0.6)
        for _ in range(2000):
            ratios.learn(NOVA, 1000, 200)
        self.assertApproximates(ratios.of(NOVA), 0.22, 0.005)
        self.assertEqual(ratios.of(SONNET), 1.0)

    def test_bounds(self) -> None:
        """It is never above 1, nor so low that it means nothing; odd figures are left out."""
        ratios = TokenRatios()
        ratios.learn(NOVA, 10, 500)
        self.assertEqual(ratios.of(NOVA), 1.0)
        for length, tokens in [(0, 5), (5, 0), (-1, 5), (5, -1)]:
            ratios.learn(SONNET, length, tokens)
        self.assertEqual(ratios.of(SONNET), 1.0)
        for _ in range(100):
            ratios.learn(LLAMA, 1_000_000, 1)
        self.assertApproximates(ratios.of(LLAMA), 0.11, 0.005)

    def test_memory(self) -> None:
        """Names of models are not kept without an end."""
        ratios = TokenRatios()
        for number in range(5000):
            ratios.learn(f"m{number}", 100, 10)
            SIZES.of(f"m{number}")
        self.assertLessEqual(len(ratios._learned), 1024)
        self.assertLessEqual(len(SIZES._recent), 1024)
        self.assertEqual(ratios.of("m0"), 1.0)
        self.assertLess(ratios.of("m4999"), 1.0)

    @given(st.lists(st.tuples(st.integers(1, 10_000), st.integers(0, 20_000)), min_size=1))
    def test_last_is_covered(self, seen: list[tuple[int, int]]) -> None:
        """A request like the one just seen is never estimated below it, up to the bound."""
        ratios = TokenRatios()
        for length, tokens in seen:
            ratios.learn(NOVA, length, tokens)
            self.assertGreaterEqual(ratios.of(NOVA) * length + 1e-6, min(tokens, length))
            self.assertTrue(0.1 < ratios.of(NOVA) <= 1.0)


SOURCE = {
    "sample_spec": {"litellm_provider": "one of the providers", "max_output_tokens": 1},
    "gpt-4": {"litellm_provider": "openai", "max_output_tokens": 4096},
    "us.a.b": {"litellm_provider": "bedrock", "max_input_tokens": 10, "max_output_tokens": 5},
    "bedrock/us-east-1/a.b": {"litellm_provider": "bedrock", "max_output_tokens": 7},
    "zai.glm-5.3": {"litellm_provider": "bedrock", "max_output_tokens": 3},
    "a.embed": {"litellm_provider": "bedrock", "mode": "embedding", "max_output_tokens": 99},
    "a.nothing": {"litellm_provider": "bedrock"},
}


class TableTests(SynchronousTestCase):
    """``model_limits.json``."""

    def test_from_its_command(self) -> None:
        """It is as the command writes it."""
        table = load("model_limits")
        written = generate_model_limits.PATH.read_text(encoding="utf-8")
        self.assertEqual(written, generate_model_limits.render(table))
        self.assertEqual(list(table["models"]), sorted(table["models"]))

    def test_priced_models(self) -> None:
        """Nearly every model that has a price has a size."""
        known = load("model_limits")["models"]
        names = {generate_model_limits.fold(name) for name in load("prices")["prices"]}
        self.assertLess(len(names - set(known)), 10, names - set(known))

    def test_build(self) -> None:
        """One entry for each model of Bedrock's, with its largest figures."""
        table = generate_model_limits.build(SOURCE)
        self.assertEqual(
            table["models"], {"a.b": [10, 7], "a.embed": [None, 0], "zai.glm-5.3": [None, 3]}
        )
        self.assertEqual(json.loads(generate_model_limits.render(table)), table)
        sizes = ModelSizes.parse(table)
        self.assertEqual(sizes.of("eu.a.b"), ModelSize(10, 7, 1))
        self.assertEqual(sizes.of("a.embed"), ModelSize(1_000_000, 0, 1))
        self.assertEqual(sizes.of("us.zai.glm-5.3"), ModelSize(1_000_000, 3, 1))

    def test_command(self) -> None:
        """The command writes the file, or says what is wrong and writes nothing."""
        source, target = os.path.abspath(self.mktemp()), os.path.abspath(self.mktemp())
        self.patch(generate_model_limits, "PATH", type(generate_model_limits.PATH)(target))
        for models, written in [
            ({"a.b": {"litellm_provider": "bedrock", "max_output_tokens": "7"}}, False),
            (SOURCE, True),
        ]:
            with open(source, "w", encoding="utf-8") as file:
                json.dump({"models": models}, file)
            output = StringIO()
            with redirect_stdout(output), redirect_stderr(output):
                if written:
                    generate_model_limits.main([source])
                else:
                    self.assertRaises(SystemExit, generate_model_limits.main, [source])
            self.assertEqual(os.path.exists(target), written)
            self.assertIn("3 models" if written else "a.b: max_output_tokens", output.getvalue())
