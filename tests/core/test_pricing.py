"""
What answers cost: exact, and unknown where a price is not known.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core import pricing
from txbedrock.core.pricekeys import (
    BadPrice,
    entry_from_litellm,
    litellm_name,
    of_bedrock,
    picousd,
    rank,
    split,
)
from txbedrock.core.pricing import (
    GUARDRAILS,
    NOT_BILLED,
    Cost,
    Price,
    Prices,
    PriceTable,
    RequestHints,
    cost,
    is_billed,
)
from txbedrock.core.usage import Source, Usage
from txbedrock.data import load
from txbedrock.errors import ConfigError

TABLE = PriceTable.parse(load("prices"))

NOVA = "us.amazon.nova-pro-v1:0"
SONNET_45 = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
SONNET_4 = "us.anthropic.claude-sonnet-4-20250514-v1:0"
HAIKU_55 = "anthropic.claude-haiku-5-5"
ASTRA = "us.openai.gpt-6-astra"
GLM = "us.zai.glm-5.3"
KIMI = "us.moonshotai.kimi-k3"
COMMITTED = "bedrock/us-east-1/1-month-commitment/anthropic.claude-v1"
CANVAS = "amazon.nova-canvas-v1:0"
SDXL = "stability.stable-diffusion-xl-v0"
PROFILE = "arn:aws:bedrock:us-west-2:123456789012:application-inference-profile/a1b2c3"


def used(
    input: int = 0,
    output: int = 0,
    read: int = 0,
    short: int = 0,
    long: int = 0,
    tier: str = "",
    optimized: bool = False,
    **units: int,
) -> Usage:
    """What an answer's body says was used. ``__`` stands for a dot in a unit's name."""
    return Usage(
        input_tokens=input,
        output_tokens=output,
        cache_read_tokens=read,
        cache_write_5m_tokens=short,
        cache_write_1h_tokens=long,
        tier=tier,
        optimized=optimized,
        units=tuple(sorted((name.replace("__", "."), count) for name, count in units.items())),
        source=Source.BODY,
    )


def shipped(model_id: str) -> Price:
    price = TABLE.price(model_id, "")
    assert price is not None
    return price


def one(prices: Prices) -> Price:
    """The price of a deployment that has only its own."""
    price = PriceTable({}, "").price("x.y", "us-west-2", prices)
    assert price is not None
    return price


def floats(value: object) -> list[object]:
    """Every float within a value, however deep."""
    if isinstance(value, float):
        return [value]
    if isinstance(value, dict):
        return [found for pair in value.items() for part in pair for found in floats(part)]
    if isinstance(value, list | tuple | set | frozenset):
        return [found for part in value for found in floats(part)]
    names = getattr(type(value), "__slots__", ()) or getattr(value, "__struct_fields__", ())
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
    return [found for name in names for found in floats(getattr(value, name))]


# Model, what was used, what was asked for, and the cost in pico-USD, worked out
# from the price a million tokens (or for one of anything else) as it stands in
# the comment: 1 USD a million tokens is 1 000 000 pico-USD a token.
WORKED: list[tuple[str, Usage, RequestHints | None, int]] = [
    # Nova Pro: 0.80 in, 3.20 out, 0.20 read.
    (NOVA, used(100, 50), None, 80_000_000 + 160_000_000),
    (NOVA, used(100, 50, read=7, tier="default"), None, 240_000_000 + 1_400_000),
    # flex 0.40, 1.60, 0.10; priority 1.40, 5.60, 0.35; batch 0.40, 1.60.
    (NOVA, used(100, 50, read=7, tier="flex"), None, 40_000_000 + 80_000_000 + 700_000),
    (NOVA, used(100, 50, read=7, tier="priority"), None, 140_000_000 + 280_000_000 + 2_450_000),
    (NOVA, used(100, 50, tier="batch"), None, 40_000_000 + 80_000_000),
    # Nova Micro reads a cached token for 8.75 nano-USD.
    ("us.amazon.nova-micro-v1:0", used(read=1), None, 8_750),
    # GLM 5.3: cache writes, and both cache prices in each tier.
    (GLM, used(short=4, read=2), None, 9_240_000 + 686_400),
    (GLM, used(short=4, read=2, tier="flex"), None, 4_620_000 + 343_200),
    (GLM, used(short=4, read=2, tier="priority"), None, 16_170_000 + 1_201_200),
    (GLM, used(short=4, read=2, tier="batch"), None, 4_620_000 + 343_200),
    (KIMI, used(short=2, tier="priority"), None, 14_437_500),
    # Sonnet 4.5 in the US: 3.30, 16.50, 0.33, 4.125 for 5 minutes, 6.60 for an hour.
    (
        SONNET_45,
        used(100, 50, read=1000, short=10, long=20),
        None,
        330_000_000 + 825_000_000 + 330_000_000 + 41_250_000 + 132_000_000,
    ),
    # The same at 200 000 tokens of input altogether, and one above: 6.60, 24.75,
    # 0.66, 8.25, 13.20 for all of them.
    (
        SONNET_45,
        used(99_970, 1, read=100_000, short=10, long=20),
        None,
        329_901_000_000 + 16_500_000 + 33_000_000_000 + 41_250_000 + 132_000_000,
    ),
    (
        SONNET_45,
        used(99_971, 1, read=100_000, short=10, long=20),
        None,
        659_808_600_000 + 24_750_000 + 66_000_000_000 + 82_500_000 + 264_000_000,
    ),
    # Output has no part in the length of the context.
    (SONNET_45, used(200_000, 1), None, 660_000_000_000 + 16_500_000),
    # Haiku 5.5 above 100 000: 0.50, 2.50, 0.05, 0.625, 1.00 in place of 0.10 and so on.
    (HAIKU_55, used(100_000), None, 10_000_000_000),
    (
        HAIKU_55,
        used(100_001, 10, read=10, short=10, long=10),
        None,
        50_000_500_000 + 25_000_000 + 500_000 + 6_250_000 + 10_000_000,
    ),
    # GPT-6 Astra: above 272 000, latency-optimised, and both.
    (ASTRA, used(272_000), None, 2_992_000_000_000),
    (
        ASTRA,
        used(272_001, 2, read=3, short=4),
        None,
        5_984_022_000_000 + 165_000_000 + 6_600_000 + 110_000_000,
    ),
    (
        ASTRA,
        used(1, 2, read=3, short=4, optimized=True),
        None,
        66_000_000 + 660_000_000 + 19_800_000 + 330_000_000,
    ),
    (
        ASTRA,
        used(272_001, 2, read=3, short=4, tier="default", optimized=True),
        None,
        35_904_132_000_000 + 990_000_000 + 39_600_000 + 660_000_000,
    ),
    (ASTRA, used(1, tier="ultrafast"), None, 66_000_000),
    # A web search: a cent.
    (SONNET_45, used(1, searches=2), None, 3_300_000 + 20_000_000_000),
    (SONNET_45, used(searches=1), RequestHints(search_context="high"), 10_000_000_000),
    (SONNET_45, used(searches=1), RequestHints(search_context="medium"), 10_000_000_000),
    (SONNET_45, used(searches=1), RequestHints(search_context="low"), 10_000_000_000),
    # Audio and image tokens.
    (
        "amazon.nova-2-sonic-v1:0",
        used(10, 10, input_audio_tokens=100, output_audio_tokens=200),
        None,
        3_300_000 + 27_500_000 + 300_000_000 + 2_400_000_000,
    ),
    (
        "us.amazon.nova-2-pro-preview-20251202-v1:0",
        used(1, input_image_tokens=1000),
        None,
        1_375_000 + 1_375_000_000,
    ),
    # Embeddings by what they are of: 0.07, 0.10 (1000 images), 0.14 and 0.70 (1000 s).
    (
        "us.twelvelabs.marengo-embed-3-0-v1:0",
        used(queries=2, input_images=3, audio_ms=1500, video_ms=10),
        None,
        140_000_000 + 300_000_000 + 210_000_000 + 7_000_000,
    ),
    ("amazon.titan-embed-image-v1", used(10, images=1), None, 8_000_000 + 60_000_000),
    ("amazon.titan-embed-text-v2:0", used(5), None, 100_000),
    (
        "us.twelvelabs.pegasus-1-2-v1:0",
        used(output=100, video_ms=60_000),
        None,
        750_000_000 + 29_400_000_000,
    ),
    # Rerank: 2.00 for 1000 searches; its tokens are counted and cost nothing.
    ("cohere.rerank-v3-5:0", used(500, queries=1), None, 2_000_000_000),
    ("cohere.rerank-v3-5:0", used(search_units=3), None, 6_000_000_000),
    # Images.
    ("stability.stable-image-core-v1:1", used(images=2), None, 80_000_000_000),
    ("amazon.titan-image-generator-v2:0", used(images=1, input_images=1), None, 8_000_000_000),
    (CANVAS, used(images=3), None, 180_000_000_000),
    (CANVAS, used(images=1), RequestHints(1024, 1024, 50), 60_000_000_000),
    (SDXL, used(images=1), RequestHints(512, 512, 50), 18_000_000_000),
    (SDXL, used(images=1), RequestHints(512, 512, 51), 36_000_000_000),
    (SDXL, used(images=1), RequestHints(512, 513, 1), 36_000_000_000),
    (SDXL, used(images=2), RequestHints(1024, 1024, 150), 144_000_000_000),
    # By time: 63 USD an hour.
    (COMMITTED, used(100, 50), RequestHints(duration_ms=1001), 17_517_500_000),
    (COMMITTED, used(100, 50, duration_ms=1000), None, 17_500_000_000),
    # A guardrail alone, and beside a model.
    (GUARDRAILS, used(guardrail__contentPolicyUnits=2), None, 300_000_000),
    (GUARDRAILS, used(guardrail__topicPolicyUnits=3), None, 450_000_000),
    (GUARDRAILS, used(guardrail__wordPolicyUnits=9), None, 0),
    (GUARDRAILS, used(guardrail__sensitiveInformationPolicyUnits=1), None, 100_000_000),
    (GUARDRAILS, used(guardrail__sensitiveInformationPolicyFreeUnits=5), None, 0),
    (GUARDRAILS, used(guardrail__contextualGroundingPolicyUnits=1), None, 100_000_000),
    (GUARDRAILS, used(guardrail__contentPolicyImageUnits=1), None, 750_000_000),
    (GUARDRAILS, used(guardrail__automatedReasoningPolicyUnits=1), None, 170_000_000),
    (
        NOVA,
        used(100, 50, guardrail__contentPolicyUnits=1, guardrail__topicPolicyUnits=2),
        None,
        240_000_000 + 150_000_000 + 300_000_000,
    ),
]


class WorkedTests(SynchronousTestCase):
    """Every kind of price, worked out by hand."""

    def test_exact(self) -> None:
        """An answer costs what one finds with pencil and paper, to the pico-USD."""
        for model_id, usage, hints, expected in WORKED:
            found = cost(shipped(model_id), usage, hints)
            self.assertEqual((found.picousd, found.missing), (expected, ()), (model_id, usage))
            self.assertIs(type(found.picousd), int)

    def test_all_kinds(self) -> None:
        """No price of the shipped table is of a kind that the table above leaves out."""
        asked = set()
        for model_id, usage, hints, _ in WORKED:
            known = shipped(model_id).prices
            for name in known:
                less = Price("", {key: known[key] for key in known if key != name})
                if (
                    cost(less, usage, hints).picousd
                    != cost(shipped(model_id), usage, hints).picousd
                ):
                    asked.add(name)
        present = {name for prices in TABLE.entries.values() for name in prices}
        self.assertEqual(present - asked, set())

    def test_hinted(self) -> None:
        """A request is looked into where what it asked for makes a difference, and only there."""
        image, better = ("output_image", 1), ("output_image_premium", 2)
        searches = ("search_low", "search_medium", "search_high")
        for prices, expected in (
            ((("input", 1), ("output", 2), image), set()),
            ((image, better), {"images"}),
            (tuple((name, 5) for name in searches), set()),
            ((*((name, 5) for name in searches[:2]), (searches[2], 6)), {"searches"}),
            ((("search_low", 5),), {"searches"}),
            ((("second", 1), image, better), {"duration_ms", "images"}),
        ):
            self.assertEqual(one(prices).hinted, expected, prices)
        self.assertEqual(shipped(SDXL).hinted, {"images"})

    def test_both_ways(self) -> None:
        """The short way through the sum and the long one lead to the same cost."""
        for model_id, usage, hints, _ in WORKED:
            price = shipped(model_id)
            detailed = pricing._in_detail(price, usage, hints)
            self.assertEqual(cost(price, usage, hints), detailed, (model_id, usage))

    def test_no_float(self) -> None:
        """Money is an integer everywhere: there is no float in any price or cost."""
        self.assertEqual(floats(TABLE.entries), [])
        for model_id, usage, hints, _ in WORKED:
            price = shipped(model_id)
            self.assertEqual(floats([price, cost(price, usage, hints)]), [])
        self.assertEqual(floats([{"a": (1, Cost(None, "x"))}, [2.0]]), [2.0])


class UnknownTests(SynchronousTestCase):
    """What is not known is said, and is not zero."""

    def check(self, price: Price | None, usage: Usage, *missing: str) -> None:
        found = cost(price, usage)
        self.assertEqual((found.picousd, found.missing), (None, missing))

    def test_usage(self) -> None:
        """An answer of which nobody knows what it used."""
        self.check(shipped(NOVA), Usage(), "usage")
        self.check(None, Usage(), "usage")
        self.assertEqual(cost(shipped(NOVA), Usage()).price_id, NOVA)

    def test_price(self) -> None:
        """A model without a price: what was used is listed."""
        self.check(None, used(1, 2, queries=3, images=1), "input", "output", "images", "query")
        self.check(None, used(1, tier="flex", input_audio_tokens=2),
                   "input.flex", "input_audio_token.flex")  # fmt: skip
        self.check(None, used(), "price")
        self.assertEqual(cost(None, used(1)).price_id, "")

    def test_long_cache_write(self) -> None:
        """
        Writing to a cache for an hour is dearer than for five minutes: without
        its price the cost is unknown, and not that of the other.
        """
        self.assertNotIn("cache_write_1h", shipped(SONNET_4).prices)
        self.check(shipped(SONNET_4), used(1, short=1, long=1), "cache_write_1h")
        self.check(shipped(SONNET_4), used(200_001, long=1), "cache_write_1h.above_200k")
        added = TABLE.price(SONNET_4, "", (("cache_write_1h", 6_000_000),))
        self.assertEqual(cost(added, used(1, long=1)).picousd, 9_000_000)

    def test_tiers(self) -> None:
        """A tier or an optimisation without a price does not cost what another does."""
        self.check(shipped("us.deepseek.r1-v1:0"), used(1, 2, tier="flex"),
                   "input.flex", "output.flex")  # fmt: skip
        self.check(shipped(NOVA), used(1, optimized=True), "input.ultrafast")
        self.check(shipped(NOVA), used(1, tier="reserved"), "input.reserved")
        self.check(shipped(NOVA), used(1, tier="tomorrow"), "input.tomorrow")
        self.check(shipped(ASTRA), used(1, tier="priority", optimized=True),
                   "input.priority.ultrafast")  # fmt: skip
        self.check(shipped("us.amazon.nova-micro-v1:0"), used(1, read=1, tier="batch"),
                   "cache_read.batch")  # fmt: skip
        self.assertEqual(cost(shipped(NOVA), used(tier="tomorrow")).picousd, 0)

    def test_long_context_in_a_tier(self) -> None:
        """Where long inputs are dearer, a tier that does not say so has no price for them."""
        price = shipped(SONNET_45)
        self.assertEqual(cost(price, used(200_000, tier="batch")).picousd, 200_000 * 1_650_000)
        self.check(price, used(200_001, tier="batch"), "input.above_200k.batch")

    def test_kinds(self) -> None:
        """A kind that the model has no price for."""
        self.check(shipped(NOVA), used(1, images=1), "output_image")
        self.check(shipped(NOVA), used(1, searches=1), "search")
        self.check(shipped(NOVA), used(1, parsecs=1), "parsecs")
        self.check(shipped(NOVA), used(1, video_ms=1), "input_video_second")
        self.check(shipped(NOVA), used(1, guardrail__newPolicyUnits=1),
                   "guardrail.newPolicyUnits")  # fmt: skip
        self.check(shipped(GUARDRAILS), used(1, 2), "input", "output")
        self.check(shipped(COMMITTED), used(1, 2), "second")
        self.check(shipped("us.twelvelabs.pegasus-1-2-v1:0"), used(1), "input")
        self.check(shipped("amazon.nova-2-sonic-v1:0"), used(input_image_tokens=1),
                   "input_image_token")  # fmt: skip

    def test_not_billed(self) -> None:
        """What AWS does not bill costs nothing, whatever has a price."""
        usage = Usage(input_tokens=5, source=Source.NONE)
        for price in (None, shipped(NOVA), shipped(COMMITTED)):
            self.assertEqual(cost(price, usage), NOT_BILLED)

    def test_nothing_used(self) -> None:
        """Units of which none was used need no price."""
        self.assertEqual(cost(shipped(NOVA), used(1, images=0, parsecs=0)).picousd, 800_000)

    def test_tokens_of_others(self) -> None:
        """
        Who bills by images does not bill the words that ask for them; but the
        words alone do not make an answer free.
        """
        price = shipped(CANVAS)
        self.assertEqual(cost(price, used(12, images=1)).picousd, 60_000_000_000)
        self.check(price, used(12), "output_image")
        self.assertEqual(cost(price, used()).picousd, 0)

    def test_image_sizes(self) -> None:
        """Where size decides and is not known, the cost is not known."""
        self.check(shipped(SDXL), used(images=1), "output_image")
        found = cost(shipped(SDXL), used(images=1), RequestHints(512, 512))
        self.assertEqual((found.picousd, found.missing), (None, ("output_image",)))
        found = cost(shipped(SDXL), used(images=1), RequestHints(512, 512, 30))
        self.assertEqual(found.price_id, f"512-x-512/50-steps/{SDXL}")
        # No entry for that size, but a price for any.
        found = cost(shipped(CANVAS), used(images=1), RequestHints(2048, 2048, 50))
        self.assertEqual((found.picousd, found.price_id), (60_000_000_000, CANVAS))
        xl1 = shipped("stability.stable-diffusion-xl-v1")
        found = cost(xl1, used(images=1), RequestHints(2048, 2048, 50))
        self.assertEqual((found.picousd, found.missing), (None, ("output_image",)))
        # Another shape of as many pixels, not of more; and never of one side alone.
        for width, height, steps, expected in (
            (1536, 640, 50, 40_000_000_000),
            (640, 1536, 51, 80_000_000_000),
            (1344, 832, 50, None),
            (1536, 0, 50, None),
        ):
            found = cost(xl1, used(images=1), RequestHints(width, height, steps))
            self.assertEqual(found.picousd, expected, (width, height))

    def test_searches(self) -> None:
        """A search whose size decides and is not known."""
        price = one((("search_low", 1), ("search_medium", 2), ("search_high", 3)))
        self.check(price, used(searches=1), "search")
        found = cost(price, used(searches=2), RequestHints(search_context="high"))
        self.assertEqual(found.picousd, 6)
        found = cost(price, used(searches=2), RequestHints(search_context="odd"))
        self.assertEqual(found.missing, ("search",))
        self.check(one((("search_low", 1),)), used(searches=1), "search")


# trial makes a new instance for each run of a test, which --until-failure repeats.
thorough = settings(
    max_examples=300,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.differing_executors],
)


class PropertyTests(SynchronousTestCase):
    """What holds of every cost."""

    counts = st.integers(0, 20_000)
    usages = st.builds(used, *[counts] * 5, tier=st.sampled_from(["", "default"]))

    @thorough
    @given(st.sampled_from(sorted(TABLE.entries)), usages, usages)
    def test_additive(self, model_id: str, first: Usage, second: Usage) -> None:
        """Two answers cost as much as one that used what both did; none less than nothing."""
        price = shipped(model_id)
        both = used(
            first.input_tokens + second.input_tokens,
            first.output_tokens + second.output_tokens,
            first.cache_read_tokens + second.cache_read_tokens,
            first.cache_write_5m_tokens + second.cache_write_5m_tokens,
            first.cache_write_1h_tokens + second.cache_write_1h_tokens,
        )
        if (
            both.input_tokens
            + both.cache_read_tokens
            + both.cache_write_5m_tokens
            + (both.cache_write_1h_tokens)
            > 100_000
        ):
            return
        costs = [cost(price, usage).picousd for usage in (first, second, both)]
        if costs[2] is None:
            self.assertIn(None, costs[:2])
            return
        assert costs[0] is not None and costs[1] is not None
        self.assertEqual(costs[0] + costs[1], costs[2])
        self.assertGreaterEqual(min(costs[0], costs[1]), 0)
        self.assertEqual({type(one) for one in costs}, {int})

    @thorough
    @given(
        st.sampled_from(sorted(TABLE.entries)),
        st.builds(
            used,
            *[st.integers(0, 200_000)] * 5,
            tier=st.sampled_from(["", "default", "flex", "priority", "batch", "x"]),
            optimized=st.booleans(),
            images=st.integers(0, 2),
            searches=st.integers(0, 2),
            audio_ms=st.integers(0, 5000),
            guardrail__contentPolicyUnits=st.integers(0, 3),
        ),
        st.builds(
            RequestHints,
            *[st.integers(0, 2000)] * 3,
            st.sampled_from([None, False, True]),
            search_context=st.sampled_from(["", "low", "odd"]),
            duration_ms=st.integers(0, 999),
        ),
    )
    def test_both_ways(self, model_id: str, usage: Usage, hints: RequestHints) -> None:
        """The short way is only ever shorter, and a cost is an amount or says what is missing."""
        price = shipped(model_id)
        found = cost(price, usage, hints)
        self.assertEqual(found, pricing._in_detail(price, usage, hints))
        self.assertEqual(found.picousd is None, bool(found.missing))
        self.assertTrue(found.picousd is None or found.picousd >= 0)

    def test_rounding(self) -> None:
        """A price for a second that no whole number of pico-USD is for a millisecond."""
        price = one((("second", 1500),))
        for ms, expected in ((1, 2), (2, 3), (3, 5), (1000, 1500)):
            self.assertEqual(cost(price, used(duration_ms=ms)).picousd, expected)


class LookUpTests(SynchronousTestCase):
    """Which price a model has."""

    table = PriceTable(
        {
            name: {"input": number}
            for number, name in enumerate(
                (
                    "a.plain",  # 0
                    "us.a.plain",  # 1
                    "bedrock/eu-west-1/a.plain",  # 2
                    "bedrock/a.only-so",  # 3
                    "bedrock_mantle/a.other",  # 4
                    "bedrock_mantle/us-gov-west-1/a.other",  # 5
                    "bedrock/*/1-month-commitment/a.plain",  # 6
                    "bedrock/eu-west-1/1-month-commitment/a.plain",  # 7
                    "nodot",  # 8
                    "a.v3.2",  # 9
                )
            )
        },
        "v",
    )

    def test_order(self) -> None:
        """From the most special to the most general, as (model, region) and entry."""
        arn = "arn:aws:bedrock:eu-west-1:123456789012:"
        for model_id, region, expected in [
            ("a.plain", "us-west-2", 0),
            ("a.plain", "eu-west-1", 2),
            ("us.a.plain", "us-west-2", 1),
            ("us.a.plain", "eu-west-1", 1),
            ("eu.a.plain", "eu-west-1", 2),
            ("eu.a.plain", "eu-central-1", 0),
            *((f"{geography}.a.plain", "ap-south-1", 0)
              for geography in ("eu", "apac", "us-gov", "jp", "au", "ca", "global", "in", "mars")),
            ("a.only-so", "us-west-2", 3),
            ("eu.a.only-so", "us-west-2", 3),
            ("a.other", "us-west-2", 4),
            ("a.other", "us-gov-west-1", 5),
            ("us-gov.a.other", "us-gov-west-1", 5),
            ("a.v3.2", "us-west-2", 9),
            ("nodot", "us-west-2", 8),
            # LiteLLM's ways of writing.
            ("bedrock/a.plain", "us-west-2", 0),
            ("bedrock/converse/us.a.plain", "eu-west-1", 1),
            ("bedrock/eu-west-1/a.plain", "us-west-2", 2),
            ("bedrock/us-east-1/a.plain", "eu-west-1", 0),
            ("bedrock/eu-west-1/1-month-commitment/a.plain", "us-west-2", 7),
            ("bedrock/us-east-1/1-month-commitment/a.plain", "us-west-2", 6),
            ("1-month-commitment/a.plain", "eu-west-1", 7),
            # ARNs that tell the model.
            ("arn:aws:bedrock:us-west-2::foundation-model/a.plain", "us-west-2", 0),
            ("arn:aws:bedrock:eu-west-1::foundation-model/a.plain", "", 2),
            (f"{arn}inference-profile/us.a.plain", "us-east-1", 1),
            (f"{arn}inference-profile/eu.a.plain", "eu-west-1", 2),
        ]:  # fmt: skip
            price = self.table.price(model_id, region)
            found = None if price is None else price.prices["input"]
            self.assertEqual(found, expected, (model_id, region))
            assert price is not None
            self.assertEqual(list(self.table.entries)[expected], price.id)

    def test_misses(self) -> None:
        """What says nothing of its model has no price; nor has what is not there."""
        arn = "arn:aws:bedrock:eu-west-1:123456789012:"
        for model_id in (
            "",
            "a.unknown",
            "us.nodot",
            "b.v3.2",
            "us.eu.a.plain",
            "bedrock/us-east-1/6-month-commitment/a.plain",
            f"{arn}application-inference-profile/a1b2c3",
            f"{arn}provisioned-model/a1b2c3",
            f"{arn}custom-model/a.plain/a1b2c3",
            f"{arn}custom-model-deployment/a1b2c3",
            f"{arn}imported-model/a1b2c3",
            f"{arn}prompt/ABCDEF:1",
            f"{arn}prompt-router/a1b2c3",
            f"{arn}default-prompt-router/a.plain:1",
            "arn:aws:sagemaker:us-west-2:123456789012:endpoint/a.plain",
            "arn:aws:bedrock",
        ):
            self.assertIsNone(self.table.price(model_id, "eu-west-1"), model_id)

    def test_base_model(self) -> None:
        """``base_model`` is looked up as an id is, and before it."""
        for base_model, expected in [
            ("a.plain", 2),
            ("us.a.plain", 1),
            ("bedrock/us.a.plain", 1),
            ("bedrock/us-east-1/a.plain", 0),
            ("bedrock_mantle/a.other", 4),
            ("arn:aws:bedrock:us-west-2::foundation-model/a.plain", 2),
        ]:
            for model_id in (PROFILE, "a.only-so"):
                price = self.table.price(model_id, "eu-west-1", (), base_model)
                assert price is not None
                self.assertEqual(price.prices["input"], expected, base_model)
        price = self.table.price("a.only-so", "eu-west-1", (), "a.unknown")
        assert price is not None
        self.assertEqual(price.prices["input"], 3)

    def test_invoked(self) -> None:
        """Behind a router, the model that the answer names counts, if it has a price."""
        for invoked, expected in [("us.a.plain", 1), ("a.unknown", 3), ("", 3)]:
            price = self.table.price(PROFILE, "us-west-2", (), "a.only-so", invoked)
            assert price is not None
            self.assertEqual(price.prices["input"], expected)

    def test_own_prices(self) -> None:
        """
        A deployment's own prices replace those of their kinds, in all tiers and
        contexts; the other kinds stay.
        """
        table = PriceTable(
            {
                "a.b": {
                    "input": 1,
                    "output": 2,
                    "cache_read": 3,
                    "input.above_200k": 4,
                    "output.above_200k": 5,
                    "input.flex": 6,
                    "output.flex": 7,
                }
            },
            "",
        )
        price = table.price("a.b", "", (("input", 100),))
        assert price is not None
        self.assertEqual(price.id, "deployment+a.b")
        self.assertEqual(cost(price, used(1, 1, read=1)).picousd, 105)
        self.assertEqual(cost(price, used(200_001, 1)).picousd, 20_000_105)
        self.assertEqual(cost(price, used(1, 1, tier="flex")).missing, ("input.flex",))
        price = table.price("a.b", "", (("input", 100), ("input.above_200k", 200)))
        self.assertEqual(cost(price, used(200_001)).picousd, 40_000_200)

    def test_only_own_prices(self) -> None:
        """They are enough where nothing else is known, and then all that is."""
        price = self.table.price(PROFILE, "us-west-2", (("input", 7),))
        assert price is not None
        self.assertEqual((price.id, cost(price, used(3)).picousd), ("deployment", 21))
        self.assertEqual(cost(price, used(3, 1)).missing, ("output",))
        free = one((("input", 0), ("output", 0)))
        self.assertEqual(cost(free, used(3, 4)), Cost(0, "deployment"))

    def test_own_reserved(self) -> None:
        """Capacity that is paid for by the hour can be said to cost nothing more."""
        price = TABLE.price(NOVA, "", (("input", 1), ("input.reserved", 0)))
        self.assertEqual(cost(price, used(5, tier="reserved")).picousd, 0)

    def test_own_time(self) -> None:
        """A price for time takes the place of those for tokens, and the reverse."""
        price = TABLE.price(NOVA, "", (("second", 1000),))
        self.assertEqual(cost(price, used(5, 5, duration_ms=2)).picousd, 2)
        self.assertEqual(cost(price, used(5, 5)).missing, ("second",))
        self.assertEqual(cost(price, used()).missing, ("second",))
        both = one((("input", 3), ("second", 1000), ("output_second", 2000)))
        self.assertEqual(cost(both, used(5, duration_ms=4)).picousd, 15 + 4 + 8)
        self.assertEqual(cost(both, used(5)).missing, ("second", "output_second"))
        price = TABLE.price(COMMITTED, "", (("input", 2), ("output", 3)))
        self.assertEqual(cost(price, used(5, 5)).picousd, 25)

    def test_time_alone(self) -> None:
        """Where nothing but time is billed it does not matter what else was used."""
        price = shipped(COMMITTED)
        hints = RequestHints(duration_ms=2000)
        self.assertEqual(cost(price, Usage(), hints), Cost(35_000_000_000, COMMITTED))
        self.assertEqual(cost(price, Usage()).missing, ("second",))
        self.assertEqual(cost(price, Usage(source=Source.NONE), hints), NOT_BILLED)
        both = one((("input", 3), ("second", 1000)))
        self.assertEqual(cost(both, Usage(), hints).missing, ("usage",))

    def test_own_images(self) -> None:
        """One price for an image takes the place of all of the table's sizes."""
        price = TABLE.price(SDXL, "", (("output_image", 9),))
        for hints in (None, RequestHints(512, 512, 50)):
            self.assertEqual(cost(price, used(images=2), hints).picousd, 18)

    def test_image_qualities(self) -> None:
        """Prices for larger and for better images, as LiteLLM's map has them."""
        price = one(
            (
                ("output_image", 1),
                ("output_image_premium", 2),
                ("output_image_above_512", 3),
                ("output_image_above_512_premium", 4),
            )
        )
        for width, height, premium, expected in [
            (0, 0, False, None),
            (0, 0, True, None),
            (512, 0, False, None),
            (512, 512, None, None),
            (512, 512, False, 1),
            (512, 512, True, 2),
            (384, 576, False, 1),
            (512, 513, False, 3),
            (1024, 1024, True, 4),
        ]:
            hints = RequestHints(width, height, premium=premium)
            self.assertEqual(cost(price, used(images=1), hints).picousd, expected)
        price = one((("output_image", 1), ("output_image_premium", 2)))
        for hints, expected in (
            (RequestHints(premium=False), 1),
            (RequestHints(premium=True), 2),
            (RequestHints(), None),
            (None, None),
        ):
            found = cost(price, used(images=3), hints)
            self.assertEqual(found.picousd, expected and 3 * expected)
            self.assertEqual(found.missing, () if expected else ("output_image",))
        # What is not known makes no difference here.
        price = one((("output_image", 4), ("output_image_premium", 4)))
        self.assertEqual(cost(price, used(images=1)).picousd, 4)
        price = one((("output_image", 1), ("output_image_above_1024", 5)))
        hints = RequestHints(1025, 1024, premium=True)
        self.assertEqual(cost(price, used(images=1), hints).picousd, 5)
        price = one((("output_image", 1), ("output_image_above_1024_premium", 5)))
        self.assertEqual(
            cost(price, used(images=1), RequestHints(2048, 2048)).missing,
            ("output_image_above_1024",),
        )

    def test_guardrails(self) -> None:
        """A deployment can have its own price for a guardrail's unit."""
        own = (("guardrail.topicPolicyUnits", 5),)
        usage = used(1, guardrail__contentPolicyUnits=1, guardrail__topicPolicyUnits=1)
        price = TABLE.price(NOVA, "", own)
        self.assertEqual(cost(price, usage).picousd, 800_000 + 150_000_000 + 5)
        alone = TABLE.price(GUARDRAILS, "us-west-2", own)
        assert alone is not None
        self.assertEqual(alone.id, "deployment+bedrock/guardrails")
        self.assertEqual(cost(alone, used(guardrail__topicPolicyUnits=2)).picousd, 10)

    def test_remembered(self) -> None:
        """A look-up is made once; ids that clients invent do not fill the memory."""
        table = PriceTable({"a.b": {"input": 1}}, "")
        first = table.price("a.b", "us-west-2")
        self.assertIs(table.price("a.b", "us-west-2"), first)
        self.assertIsNot(table.price("a.b", "us-west-2", (("input", 2),)), first)
        for number in range(3000):
            self.assertIsNone(table.price(f"x.{number}", "us-west-2"))
        self.assertLessEqual(len(table._recent), 1024)
        self.assertEqual(table.price("a.b", "us-west-2"), first)


class TableTests(SynchronousTestCase):
    """Reading a table."""

    def test_below(self) -> None:
        """A user's entries replace those of the same id, whole; the version says both."""
        lower = PriceTable({"a.b": {"input": 1, "output": 2}, "a.c": {"input": 3}}, "one")
        upper = PriceTable({"a.b": {"input": 9}}, "two")
        both = lower.below(upper)
        self.assertEqual(both.entries, {"a.b": {"input": 9}, "a.c": {"input": 3}})
        self.assertRegex(both.version, r"^one\+[0-9a-f]{8}$")
        self.assertEqual(lower.below(upper).version, both.version)
        other = lower.below(PriceTable({"a.b": {"input": 8}}, "two"))
        self.assertNotEqual(other.version, both.version)

    def test_parse(self) -> None:
        """A table without a version is called after its content."""
        table = PriceTable.parse({"schema": 1, "prices": {"a.b": {"mode": "chat", "input": 1}}})
        self.assertEqual(table.entries, {"a.b": {"input": 1}})
        self.assertRegex(table.version, r"^[0-9a-f]{8}$")

    def test_wrong(self) -> None:
        """Everything that cannot be used is listed, with file and key."""
        for data, problems in [
            ([], ["prices: found no mapping, expected prices by model"]),
            ({"prices": []}, ["prices: found no mapping, expected prices by model"]),
            (
                {
                    "schema": 2,
                    "prices": {
                        "a.b": [],
                        "a.c": {"input": 1.5, "output": -1, "cache_read": True, "inptu": 1},
                        "a.d": {"input": Decimal("0.1"), "query.flex": 1},
                    },
                },
                [
                    "schema: found another number, expected 1",
                    "prices.a.b: found no mapping, expected prices",
                    "prices.a.c.input: expected a whole number of pico-USD from 0 up",
                    "prices.a.c.output: expected a whole number of pico-USD from 0 up",
                    "prices.a.c.cache_read: expected a whole number of pico-USD from 0 up",
                    "prices.a.c.inptu: found a price of an unknown kind",
                    "prices.a.d.input: expected a whole number of pico-USD from 0 up",
                    "prices.a.d.query.flex: found a price of an unknown kind",
                ],
            ),
        ]:
            error = self.assertRaises(ConfigError, PriceTable.parse, data, "f.json")
            self.assertEqual(error.problems, [f"f.json: {problem}" for problem in problems])


class NameTests(SynchronousTestCase):
    """LiteLLM's names and ours."""

    def test_names(self) -> None:
        """Each form of a price's name."""
        for key, name in [
            ("input_cost_per_token", "input"),
            ("output_cost_per_token", "output"),
            ("cache_read_input_token_cost", "cache_read"),
            ("cache_creation_input_token_cost", "cache_write_5m"),
            ("cache_creation_input_token_cost_above_1hr", "cache_write_1h"),
            (
                "cache_creation_input_token_cost_above_1hr_above_200k_tokens",
                "cache_write_1h.above_200k",
            ),
            ("input_cost_per_token_above_128k_tokens", "input.above_128k"),
            ("output_cost_per_token_above_272k_tokens_priority", "output.above_272k.priority"),
            ("input_cost_per_token_flex", "input.flex"),
            ("input_cost_per_token_batches", "input.batch"),
            ("cache_read_input_token_cost_ultrafast", "cache_read.ultrafast"),
            ("input_cost_per_token_reserved", "input.reserved"),
            ("input_cost_per_audio_token", "input_audio_token"),
            ("input_cost_per_second", "second"),
            ("cost_per_second", "second"),
            ("output_cost_per_second", "output_second"),
            ("input_cost_per_query", "query"),
            ("output_cost_per_image", "output_image"),
            ("output_cost_per_image_premium_image", "output_image_premium"),
            (
                "output_cost_per_image_above_1024_and_1024_pixels_and_premium_image",
                "output_image_above_1024_premium",
            ),
            ("input_cost_per_token_above_0k_tokens", None),
            ("input_cost_per_token_flex_above_200k_tokens", None),
            ("input_cost_per_tokens", None),
            ("input_cost_per_image_flex", None),
            ("max_tokens", None),
        ]:
            self.assertEqual(litellm_name(key), name, key)
            if name is not None:
                self.assertIsNotNone(split(name), name)

    def test_split(self) -> None:
        """The parts of a name; what is none has none, and no rank."""
        self.assertEqual(split("input.above_200k.flex"), ("input", 200_000, "flex"))
        self.assertEqual(split("query"), ("query", 0, ""))
        self.assertEqual(
            split("guardrail.topicPolicyUnits"), ("guardrail.topicPolicyUnits", 0, "")
        )
        for name in ("", "input.", "input.fast", "query.flex", "guardrail.", "guardrail.a.b"):
            self.assertIsNone(split(name), name)
            self.assertRaises(ValueError, rank, name)

    def test_exact(self) -> None:
        """Dollars become pico-USD without a digit lost, or not at all."""
        for text, expected in [
            ("0", 0),
            ("0E-500000000", 0),
            ("0.00000000875", 8_750),
            ("3e-06", 3_000_000),
            ("1e-12", 1),
            ("1000", 10**15),
            ("0.0011416", 1_141_600_000),
        ]:
            self.assertEqual(picousd(Decimal(text)), expected)
        for text in ("1e-13", "8.7501e-12", "-1e-6", "1000.1", "NaN", "Infinity", "1e999999999",
                     "1e-999999999", "0.3333333333333333"):  # fmt: skip
            self.assertRaises(BadPrice, picousd, Decimal(text))
        values: tuple[object, ...] = (True, 0.000003, "1", None, [], {})
        for value in values:
            error = self.assertRaises(BadPrice, picousd, value)
            self.assertIn("expected a price in US dollars, 0 to 1000", str(error))

    def test_entry(self) -> None:
        """An entry of LiteLLM's map, with everything that is wrong in it."""
        prices, problems = entry_from_litellm(
            {
                "litellm_provider": "bedrock",
                "max_tokens": 5,
                "input_cost_per_token": Decimal("3e-06"),
                "cache_read_input_token_cost": None,
                "cost_per_second": Decimal("0.5"),
                "input_cost_per_second": Decimal("0.5"),
                "output_cost_per_second": Decimal("0.50"),
                "search_context_cost_per_query": {"search_context_size_low": Decimal("0.01")},
                "guardrail_cost_per_unit": {"topicPolicyUnits": Decimal("0.00015")},
                "output_cost_per_reasoning_token": Decimal("1e-6"),
            }
        )
        self.assertEqual(problems, [])
        self.assertEqual(
            prices,
            {
                "input": 3_000_000,
                "second": 500_000_000_000,
                "output_second": 500_000_000_000,
                "search_low": 10_000_000_000,
                "guardrail.topicPolicyUnits": 150_000_000,
            },
        )
        _, problems = entry_from_litellm(
            {
                "input_cost_per_token": "3e-06",
                "input_cost_per_token_turbo": 1,
                "cost_per_second": 1,
                "input_cost_per_second": 2,
                "search_context_cost_per_query": 1,
                "guardrail_cost_per_unit": {"topic-units": 1, "x": -1},
            }
        )
        self.assertEqual(
            problems,
            [
                (
                    "input_cost_per_token",
                    "found text, expected a price in US dollars, 0 to 1000",
                ),
                ("input_cost_per_token_turbo", "found a price of an unknown kind"),
                ("input_cost_per_second", "found another price for the same, expected one"),
                (
                    "search_context_cost_per_query",
                    "found no exact number, expected a mapping of prices",
                ),
                ("guardrail_cost_per_unit.topic-units", "found a price of an unknown kind"),
                (
                    "guardrail_cost_per_unit.x",
                    "found -1, expected a price in US dollars, 0 to 1000",
                ),
            ],
        )

    def test_of_bedrock(self) -> None:
        """Which entries of a map are of Bedrock."""
        cases: list[tuple[dict[str, Any], bool, bool]] = [
            ({"litellm_provider": "bedrock"}, True, True),
            ({"litellm_provider": "bedrock_converse"}, True, True),
            ({"litellm_provider": "openai"}, False, False),
            ({"litellm_provider": 3}, False, False),
            ({}, True, False),
        ]
        for fields, usual, required in cases:
            self.assertEqual(of_bedrock(fields), usual)
            self.assertEqual(of_bedrock(fields, required=True), required)


class BilledTests(SynchronousTestCase):
    """Which operations cost nothing."""

    def test_runtime(self) -> None:
        """What runs a model is billed; asking is not."""
        for service, operation, billed in [
            ("bedrock-runtime", "Converse", True),
            ("bedrock-runtime", "ConverseStream", True),
            ("bedrock-runtime", "InvokeModel", True),
            ("bedrock-runtime", "InvokeModelWithResponseStream", True),
            ("bedrock-runtime", "StartAsyncInvoke", True),
            ("bedrock-runtime", "ApplyGuardrail", True),
            ("bedrock-runtime", "InvokeGuardrailChecks", True),
            ("bedrock-runtime", "CountTokens", False),
            ("bedrock-runtime", "GetAsyncInvoke", False),
            ("bedrock-runtime", "ListAsyncInvokes", False),
            ("bedrock-agent-runtime", "InvokeAgent", True),
            ("bedrock-agent-runtime", "Retrieve", True),
            ("bedrock-agent-runtime", "Rerank", True),
            ("bedrock-agent-runtime", "CreateSession", False),
            ("bedrock", "CreateModelInvocationJob", True),
            ("bedrock", "CreateProvisionedModelThroughput", True),
            ("bedrock", "CreateGuardrail", False),
            ("bedrock", "ListFoundationModels", False),
            ("bedrock-agent", "CreateAgent", False),
            ("bedrock-agent", "StartIngestionJob", True),
            ("bedrock-agentcore", "CreateEvent", True),
            ("bedrock-agentcore", "GetResourceApiKey", True),
            ("bedrock-agentcore", "ListEvents", False),
            ("bedrock-agentcore", "Evaluate", True),
            ("bedrock-new", "CreateWonder", True),
            ("bedrock-runtime", "Getaway", True),
        ]:
            self.assertEqual(is_billed(service, operation), billed, (service, operation))
        self.assertEqual(NOT_BILLED, Cost(0, "", ()))

    def test_every_operation(self) -> None:
        """No operation that only reads, deletes or tags is taken for one that costs."""
        services = load("operations")["services"]
        for name, service in services.items():
            for each in service["operations"]:
                operation = each["name"]
                reads = re.match(r"(List|Delete|Tag|Untag|Update|Stop)(?=[A-Z])", operation)
                if reads:
                    self.assertFalse(is_billed(name, operation), operation)
                if operation.startswith(("Invoke", "Converse", "Rerank", "Retrieve")):
                    self.assertTrue(is_billed(name, operation), operation)
