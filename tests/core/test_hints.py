"""
What requests asked for, and what their answers cost then: L{txbedrock.core.hints}.

Every cost was worked out by hand from the price in the line above it.
"""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.hints import request_hints
from txbedrock.core.pricing import Prices, PriceTable, RequestHints, cost
from txbedrock.core.usage import Source, Usage
from txbedrock.data import load

TABLE = PriceTable.parse(load("prices"))

CANVAS = "amazon.nova-canvas-v1:0"
TITAN_V1 = "amazon.titan-image-generator-v1"
TITAN_V2 = "amazon.titan-image-generator-v2:0"
SDXL_V0 = "stability.stable-diffusion-xl-v0"
SDXL_V1 = "stability.stable-diffusion-xl-v1"
CORE = "stability.stable-image-core-v1:1"
CLAUDE = "us.anthropic.claude-sonnet-4-6"

# A megabyte of base64, and so of a body of which only the beginning is at hand.
IMAGE = "iVBORw0KGgo" * 100_000
MIB = 1024 * 1024


def dump(**members: Any) -> bytes:
    return json.dumps(members).encode()


def painted(task: str = "TEXT_IMAGE", **config: Any) -> bytes:
    """A request to Titan's image generator or Nova Canvas."""
    return dump(
        taskType=task,
        textToImageParams={"text": 'a "imageGenerationConfig": {"width": 4096} in oil'},
        imageGenerationConfig=config,
    )


def diffused(**members: Any) -> bytes:
    """A request to SDXL."""
    return dump(text_prompts=[{"text": '"steps": 150', "weight": 1.0}], **members)


class Row(NamedTuple):
    says: str
    model_id: str
    body: bytes
    expected: RequestHints


ROWS = [
    Row(
        "titan: all is said",
        TITAN_V2,
        painted(width=1408, height=640, quality="premium", cfgScale=8.0, numberOfImages=2),
        RequestHints(1408, 640, premium=True),
    ),
    Row(
        "titan: no size is documented for none",
        TITAN_V1,
        painted(numberOfImages=1),
        RequestHints(premium=False),
    ),
    Row(
        "titan: no configuration at all",
        TITAN_V1,
        dump(taskType="TEXT_IMAGE", textToImageParams={"text": "a"}),
        RequestHints(premium=False),
    ),
    Row("canvas: nothing is said", CANVAS, painted(), RequestHints(1024, 1024, premium=False)),
    Row(
        "canvas: one side is said",
        CANVAS,
        painted("COLOR_GUIDED_GENERATION", width=2048, quality="standard"),
        RequestHints(2048, 1024, premium=False),
    ),
    Row(
        "canvas: no configuration, behind another geography",
        "us.amazon.nova-canvas-v1:0",
        dump(taskType="IMAGE_VARIATION", imageVariationParams={"images": ["a"]}),
        RequestHints(1024, 1024, premium=False),
    ),
    Row(
        "canvas: an edited image has the size of the one that it is made of",
        CANVAS,
        painted("INPAINTING", quality="premium"),
        RequestHints(premium=True),
    ),
    Row(
        "canvas: so has one in new clothes",
        CANVAS,
        painted("VIRTUAL_TRY_ON"),
        RequestHints(premium=False),
    ),
    Row(
        "canvas: an image without its background has neither",
        CANVAS,
        dump(taskType="BACKGROUND_REMOVAL", backgroundRemovalParams={"image": "a"}),
        RequestHints(),
    ),
    Row(
        "canvas: a task of which nothing is known",
        CANVAS,
        painted("SCULPTURE"),
        RequestHints(premium=False),
    ),
    Row(
        "what is no size and no quality is not taken for the default",
        CANVAS,
        painted(width="1024", height=1024.5, quality="best"),
        RequestHints(),
    ),
    Row(
        "nor what is no number",
        CANVAS,
        painted(width=True, height=-1, quality=["premium"]),
        RequestHints(),
    ),
    Row(
        "nor a size beyond all sense",
        CANVAS,
        painted(width=10**9, height=100_001),
        RequestHints(premium=False),
    ),
    Row(
        "an ARN that names no model: what is said counts, defaults do not",
        "arn:aws:bedrock:us-west-2:123456789012:provisioned-model/abc",
        painted(width=512, quality="premium"),
        RequestHints(512, premium=True),
    ),
    Row(
        "sdxl",
        SDXL_V1,
        diffused(width=1152, height=896, steps=51, cfg_scale=7),
        RequestHints(1152, 896, 51),
    ),
    Row("sdxl: without steps there are 30", SDXL_V1, diffused(), RequestHints(steps=30)),
    Row("sdxl: null steps are not known", SDXL_V1, diffused(steps=None), RequestHints()),
    Row(
        "sdxl: an image of an image",
        SDXL_V0,
        diffused(init_image="iVBORw0KGgo", image_strength=0.3, steps=10),
        RequestHints(steps=10),
    ),
    Row(
        "stability's later models have one price",
        CORE,
        dump(prompt="a", aspect_ratio="21:9", mode="text-to-image"),
        RequestHints(),
    ),
    *(
        Row(
            f"openai, {size}",
            "openai.gpt-oss-120b-1:0",
            dump(messages=[], web_search_options={"search_context_size": size}),
            RequestHints(search_context=size),
        )
        for size in ("low", "medium", "high")
    ),
    Row(
        "openai, no size is medium",
        "",
        dump(messages=[], web_search_options={"user_location": {"type": "approximate"}}),
        RequestHints(search_context="medium"),
    ),
    Row(
        "openai, an unknown size",
        "",
        dump(messages=[], web_search_options={"search_context_size": "huge"}),
        RequestHints(),
    ),
    Row(
        "responses",
        "",
        dump(
            input="a",
            tools=[
                "odd",
                {"type": "function", "name": "f", "search_context_size": "low"},
                {"type": "web_search_preview_2025_03_11", "search_context_size": "high"},
            ],
        ),
        RequestHints(search_context="high"),
    ),
    Row(
        "responses, no size",
        "",
        dump(tools=[{"type": "web_search"}]),
        RequestHints(search_context="medium"),
    ),
    Row(
        "anthropic's web search knows no sizes",
        CLAUDE,
        dump(tools=[{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]),
        RequestHints(),
    ),
    Row(
        "a conversation", CLAUDE, dump(messages=[{"role": "user", "content": []}]), RequestHints()
    ),
    Row("nothing", CANVAS, b"", RequestHints()),
    Row("no JSON", CANVAS, b"taskType=TEXT_IMAGE", RequestHints()),
    Row("no object", CANVAS, b'["width", 512]', RequestHints()),
    Row(
        "not UTF-8",
        CANVAS,
        b'{"taskType":"\xff","imageGenerationConfig":{"width":512}}',
        RequestHints(),
    ),
    Row(
        "escaped names",
        CANVAS,
        rb'{"taskT\u0079pe":"TEXT_IMAGE","imageGenerationConfig":{"\u0077idth":512}}',
        RequestHints(512, 1024, premium=False),
    ),
]


NAMES = ["taskType", "imageGenerationConfig", "width", "quality", "steps", "x"]
NAMES += ["tools", "type", "web_search_options", "search_context_size"]


class HintTests(SynchronousTestCase):
    """What a body says."""

    def test_rows(self) -> None:
        """Every family, said and left out."""
        for row in ROWS:
            self.assertEqual(request_hints(row.model_id, row.body), row.expected, row.says)

    def test_long(self) -> None:
        """The same in bodies that are long otherwise."""
        for row in ROWS:
            if row.body.startswith(b"{") and row.expected != RequestHints():
                padding = b'"padding":[%b],' % b",".join([b'{"width":1}'] * 5000)
                body = b"{" + padding + row.body[1:].replace(b'"width":', b' "width" : ')
                self.assertEqual(request_hints(row.model_id, body), row.expected, row.says)

    def test_dense(self) -> None:
        """However many members a body has, few are read one by one."""
        for start, piece, end in [
            (b"{", b'"a":1,', b'"a":1}'),
            (b"{", b'"a":1,', b""),
            (b"{", b'"a":1,', b'"'),
            (b'{"messages":[', b"{},", b"{}]}"),
            (b'{"tools":[{', b'"a":1,', b'"a":1}]}'),
            (b'{"tools":[', b"{},", b"{}]}"),
            (b'{"tools":[', b"[],", b"[]]}"),
        ]:
            calls = 0

            def called(frame: object, event: str, argument: object) -> None:
                nonlocal calls
                calls += event == "call"

            sys.setprofile(called)
            try:
                request_hints(CANVAS, start + piece * 100_000 + end)
            finally:
                sys.setprofile(None)
            self.assertLess(calls, 13_000, (start, piece))

    def test_beginning(self) -> None:
        """
        Of a long body only the beginning is at hand: what stands in it counts, and
        what does not is not known, defaults included.
        """
        config = {"width": 512, "height": 512, "quality": "premium"}
        params = {"image": IMAGE, "text": "a"}
        early = dump(taskType="TEXT_IMAGE", imageGenerationConfig=config, inPaintingParams=params)
        late = dump(taskType="TEXT_IMAGE", inPaintingParams=params, imageGenerationConfig=config)
        whole = RequestHints(512, 512, premium=True)
        self.assertEqual(request_hints(CANVAS, early[:MIB]), whole)
        self.assertEqual(request_hints(CANVAS, late), whole)
        self.assertEqual(request_hints(CANVAS, late[:MIB]), RequestHints())
        self.assertEqual(request_hints(SDXL_V1, diffused(init_image=IMAGE)[:MIB]), RequestHints())
        search = dump(tools=[{"type": "web_search"}], input="a" * MIB)
        self.assertEqual(request_hints("", search[:MIB]), RequestHints())

    def test_every_end(self) -> None:
        """Cut anywhere, a body never says anything that the whole one does not."""
        for row in ROWS:
            names = ("width", "height", "steps", "premium", "search_context")
            said = {name: getattr(row.expected, name) for name in names}
            for end in range(len(row.body)):
                hints = request_hints(row.model_id, row.body[:end])
                for name in names:
                    self.assertIn(getattr(hints, name), (0, None, "", said[name]), row.says)

    @settings(
        max_examples=300,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.differing_executors],
    )
    @given(
        st.one_of(
            st.binary(max_size=200),
            st.recursive(
                st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(
                        st.sampled_from(NAMES),
                        inner,
                        max_size=5,
                    )
                ),
                max_leaves=20,
            ).map(lambda value: json.dumps(value).encode()),
        )
    )
    def test_anything(self, body: bytes) -> None:
        """Whatever a client sends, it is read without an error, into what can be priced."""
        for model_id in (CANVAS, SDXL_V1, ""):
            hints = request_hints(model_id, body)
            for number in (hints.width, hints.height, hints.steps):
                self.assertIs(type(number), int)
                self.assertTrue(0 <= number <= 100_000)
            self.assertIn(hints.premium, (None, False, True))
            self.assertIn(hints.search_context, ("", "low", "medium", "high"))


# As LiteLLM's users write them for Titan: USD 0.008 for an image, 0.01 for a larger
# or better one, 0.012 for one that is both.
BY_SIZE: Prices = (
    ("output_image", 8_000_000_000),
    ("output_image_premium", 10_000_000_000),
    ("output_image_above_512", 10_000_000_000),
    ("output_image_above_512_premium", 12_000_000_000),
)
BY_DEPTH: Prices = (
    ("search_low", 30_000_000_000),
    ("search_medium", 35_000_000_000),
    ("search_high", 50_000_000_000),
)

# What was asked of which model, with which prices of its own, how many images came
# back, and the cost in pico-USD; None: it is not known.
WORKED: list[tuple[str, Prices, bytes, int, int | None]] = [
    # Nova Canvas: USD 0.06 for an image up to 1024 by 1024 and for any other.
    (CANVAS, (), painted(), 1, 60_000_000_000),
    (CANVAS, (), painted(width=1024, height=1024), 3, 180_000_000_000),
    (CANVAS, (), painted(width=2048, height=2048, quality="premium"), 2, 120_000_000_000),
    (CANVAS, (), b"", 1, 60_000_000_000),
    ("us." + CANVAS, (), painted(), 1, 60_000_000_000),
    # Titan: USD 0.008 for an image of any size.
    (TITAN_V1, (), painted(width=512, height=512), 1, 8_000_000_000),
    (TITAN_V2, (), painted(quality="premium"), 5, 40_000_000_000),
    (TITAN_V2, BY_SIZE, painted(width=512, height=512), 1, 8_000_000_000),
    (TITAN_V2, BY_SIZE, painted(width=512, height=512, quality="premium"), 2, 20_000_000_000),
    (TITAN_V2, BY_SIZE, painted(width=384, height=576), 1, 8_000_000_000),
    (TITAN_V2, BY_SIZE, painted(width=1024, height=1024), 3, 30_000_000_000),
    (TITAN_V2, BY_SIZE, painted(width=1173, height=640, quality="premium"), 1, 12_000_000_000),
    (TITAN_V2, BY_SIZE, painted(), 1, None),
    (TITAN_V2, BY_SIZE, painted(width=1024), 1, None),
    (TITAN_V2, BY_SIZE, painted(width=512, height=512, quality="x"), 1, None),
    (TITAN_V2, BY_SIZE[:2], painted(), 1, 8_000_000_000),
    (TITAN_V2, BY_SIZE[:2], painted(quality="premium"), 1, 10_000_000_000),
    (TITAN_V2, BY_SIZE[:2], b"", 1, None),
    (CANVAS, BY_SIZE, painted(), 1, 10_000_000_000),
    # SDXL 1.0: USD 0.04 for an image of up to 50 steps, 0.08 for one of more. Its
    # sizes all have the pixels of 1024 by 1024 at most.
    (SDXL_V1, (), diffused(), 1, 40_000_000_000),
    (SDXL_V1, (), diffused(steps=50, width=1024, height=1024), 1, 40_000_000_000),
    (SDXL_V1, (), diffused(steps=51, width=1024, height=1024), 1, 80_000_000_000),
    (SDXL_V1, (), diffused(steps=150), 1, 80_000_000_000),
    (SDXL_V1, (), diffused(width=1536, height=640), 1, 40_000_000_000),
    (SDXL_V1, (), diffused(width=896, height=1152, steps=60), 1, 80_000_000_000),
    (SDXL_V1, (), diffused(width=1088, height=1024), 1, None),
    (SDXL_V1, (), b"", 1, None),
    # SDXL 0.8: USD 0.018 up to 512 by 512 and 0.036 above it; double with more steps.
    (SDXL_V0, (), diffused(width=512, height=512), 1, 18_000_000_000),
    (SDXL_V0, (), diffused(width=512, height=512, steps=51), 1, 36_000_000_000),
    (SDXL_V0, (), diffused(width=512, height=576, steps=50), 1, 36_000_000_000),
    (SDXL_V0, (), diffused(width=1024, height=1024, steps=51), 2, 144_000_000_000),
    (SDXL_V0, (), diffused(), 1, None),
    # Stability's later models: one price each, whatever was asked.
    ("stability.sd3-large-v1:0", (), dump(prompt="a", mode="image-to-image"), 1, 80_000_000_000),
    ("stability.sd3-5-large-v1:0", (), dump(prompt="a", aspect_ratio="9:16"), 1, 80_000_000_000),
    ("stability.stable-image-core-v1:0", (), dump(prompt="a"), 1, 40_000_000_000),
    (CORE, (), dump(prompt="a", aspect_ratio="16:9"), 1, 40_000_000_000),
    ("stability.stable-image-ultra-v1:0", (), dump(prompt="a"), 1, 140_000_000_000),
    ("stability.stable-image-ultra-v1:1", (), dump(prompt="a"), 1, 140_000_000_000),
    *(
        (f"{where}stability.stable-{name}-v1:0", (), dump(image="a"), 1, cents * 10_000_000_000)
        for where in ("", "us.")
        for name, cents in (
            ("conservative-upscale", 40),
            ("creative-upscale", 60),
            ("fast-upscale", 3),
            ("image-control-sketch", 7),
            ("image-control-structure", 7),
            ("image-erase-object", 7),
            ("image-inpaint", 7),
            ("image-remove-background", 7),
            ("image-search-recolor", 7),
            ("image-search-replace", 7),
            ("image-style-guide", 7),
            ("outpaint", 6),
            ("style-transfer", 8),
        )
    ),
    ("amazon.titan-image-generator-v2", (), painted(), 1, 8_000_000_000),
]


class CostTests(SynchronousTestCase):
    """What images and searches cost by what was asked."""

    def check(self, model_id: str, own: Prices, body: bytes, usage: Usage) -> int | None:
        price = TABLE.price(model_id, "us-east-1", own)
        assert price is not None
        return cost(price, usage, request_hints(model_id, body)).picousd

    def test_images(self) -> None:
        """All families that have a price."""
        for model_id, own, body, images, expected in WORKED:
            usage = Usage(units=(("images", images),), source=Source.BODY)
            found = self.check(model_id, own, body, usage)
            self.assertEqual(found, expected, (model_id, body[-80:]))

    def test_all_priced(self) -> None:
        """The table above has every model that makes images and has a price."""
        named = {model_id for model_id, *_ in WORKED}
        priced = {
            name.rpartition("/")[2]
            for name, prices in TABLE.entries.items()
            if any(kind.startswith("output_image") for kind in prices)
        }
        self.assertEqual(priced - named, set())

    def test_searches(self) -> None:
        """A search by its depth. Anthropic's has none, and so no price among three."""
        usage = Usage(units=(("searches", 2),), source=Source.BODY)
        for options, expected in (
            ({"search_context_size": "low"}, 60_000_000_000),
            ({}, 70_000_000_000),
            ({"search_context_size": "high"}, 100_000_000_000),
        ):
            body = dump(messages=[], web_search_options=options)
            self.assertEqual(self.check(CLAUDE, BY_DEPTH, body, usage), expected)
        body = dump(tools=[{"type": "web_search_20250305", "name": "web_search"}])
        self.assertIsNone(self.check(CLAUDE, BY_DEPTH, body, usage))
        # The same for all sizes: USD 0.01.
        self.assertEqual(self.check(CLAUDE, (), body, usage), 20_000_000_000)

    def test_who_is_asked(self) -> None:
        """
        Only where it makes a difference is a request looked into: of all that is
        shipped for four models of images, and where time is billed.
        """
        hinted: dict[str, set[str]] = {}
        for name in TABLE.entries:
            price = TABLE.price(name, "")
            assert price is not None
            for unit in price.hinted:
                hinted.setdefault(unit, set()).add(name.rpartition("/")[2])
        self.assertEqual(
            hinted["images"] & {CANVAS, "us." + CANVAS, TITAN_V1, TITAN_V2, CORE}, {CANVAS}
        )
        self.assertEqual(set(hinted), {"images", "duration_ms"})
        for model_id in (SDXL_V0, SDXL_V1):
            price = TABLE.price(model_id, "")
            assert price is not None
            self.assertEqual(price.hinted, {"images"})
        for own, expected in ((BY_SIZE, {"images"}), (BY_DEPTH, {"searches"}), ((), set())):
            price = TABLE.price(CLAUDE, "", own)
            assert price is not None
            self.assertEqual(price.hinted, expected)
