"""
The body of a request -> what it asked for that decides on a price, and that its
answer does not say: the size and the quality of images, the depth of a search.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from .excerpt import Excerpt, Take, Wanted
from .pricing import RequestHints

__all__ = ["request_hints"]

# Note [Where it stands, and what holds where it does not]
# --------------------------------------------------------
# Amazon Titan Image Generator, Nova Canvas: imageGenerationConfig.width, height
# and quality. Without a quality it is standard. Without a size Nova Canvas makes
# 1024 by 1024; tasks that edit an image (INPAINTING, OUTPAINTING,
# BACKGROUND_REMOVAL, VIRTUAL_TRY_ON) take its size, and BACKGROUND_REMOVAL has no
# configuration at all. For Titan no size is documented.
# Source: AWS, Nova user guide, "Request and response structure for image
# generation"; Bedrock user guide, "Amazon Titan Image Generator G1 models".
#
# Stability's SDXL: width, height and steps. Without steps there are 30; an image
# that is made of another one (init_image) has that one's size, and for other
# images no size is documented.
# Source: AWS, Bedrock user guide, "Stability.ai Diffusion 1.0 text to image".
#
# Stability's later models (aspect_ratio, mode) cost the same for every image.
#
# OpenAI's chat: web_search_options.search_context_size; its Responses:
# search_context_size of a tool web_search or web_search_preview. Without it the
# size is medium. Anthropic's web search knows no sizes.
# Source: OpenAI, API reference.
#
# What is not said and has no documented default is not known, and neither is
# what a body does not say of which only the beginning is at hand.

_WANTED: Wanted = {
    b"taskType": Take.WHOLE,
    b"imageGenerationConfig": {
        b"width": Take.WHOLE,
        b"height": Take.WHOLE,
        b"quality": Take.WHOLE,
    },
    b"width": Take.WHOLE,
    b"height": Take.WHOLE,
    b"steps": Take.WHOLE,
    b"web_search_options": {b"search_context_size": Take.WHOLE},
    b"tools": {b"type": Take.WHOLE, b"search_context_size": Take.WHOLE},
}

_MADE_AT_1024 = ("TEXT_IMAGE", "COLOR_GUIDED_GENERATION", "IMAGE_VARIATION")
"""Tasks of Nova Canvas whose images have a size of their own."""

_DEFAULT_SIDE = 1024
_DEFAULT_STEPS = 30
_DEFAULT_CONTEXT = "medium"

_PREMIUM = {"standard": False, "premium": True}
_CONTEXTS = ("low", "medium", "high")
_SEARCH_TOOL = re.compile(r"web_search(?:_preview)?(?:_\d{4}_\d\d_\d\d)?")

_MOST = 100_000
"""Pixels of a side, and steps; what is more is a mistake."""

_decode = msgspec.json.Decoder().decode

_SHORT = 16 * 1024
_MOST_MARKS = {b'"': 4000, b"{": 1000, b"[": 1000}
_ABSENT = msgspec.Raw(b"null")
_Members = msgspec.defstruct(
    "_Members", [(name.decode(), msgspec.Raw, _ABSENT) for name in _WANTED]
)
_decode_members = msgspec.json.Decoder(_Members).decode


def request_hints(model_id: str, body: bytes) -> RequestHints:
    """
    What a request asked for. See Note [Where it stands ...].

    :param model_id: Bedrock's id of the model, or of the one that it is based on:
        it says what holds where the body says nothing.
    :param body: of the request, or its beginning. Empty: it is not at hand.
    """
    asked, whole = _read(body)
    config = _mapping(asked.get("imageGenerationConfig"))
    width = _count(config.get("width", asked.get("width")))
    height = _count(config.get("height", asked.get("height")))
    steps = _count(asked.get("steps"))
    premium = _PREMIUM.get(_text(config.get("quality")))
    if whole:
        task = _text(asked.get("taskType"))
        canvas = "nova-canvas" in model_id
        if canvas and task in _MADE_AT_1024:
            width = width if "width" in config else _DEFAULT_SIDE
            height = height if "height" in config else _DEFAULT_SIDE
        if (canvas or "titan-image" in model_id) and task != "BACKGROUND_REMOVAL":
            premium = premium if "quality" in config else False
        if "stable-diffusion-xl" in model_id and "steps" not in asked:
            steps = _DEFAULT_STEPS
    return RequestHints(width, height, steps, premium, _search_context(asked, whole))


def _read(body: bytes) -> tuple[Mapping[str, object], bool]:
    """The members of a body that are wanted, and whether all of it has been read."""
    excerpt = Excerpt(_WANTED)
    excerpt.feed(body if len(body) <= _SHORT else _shortened(body))
    try:
        asked = _decode(excerpt.result())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        asked = None
    return (asked, excerpt.complete) if isinstance(asked, dict) else ({}, False)


def _shortened(body: bytes) -> bytes:
    """
    A long body without most of what an excerpt would skip, which takes it up to 0.6 s for 1 MiB.

    Where too much is left, or it is no JSON or not whole, only the beginning of it.
    """
    try:
        members = msgspec.structs.asdict(_decode_members(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    else:
        there = (pair for pair in members.items() if pair[1] is not _ABSENT)
        body = b"{%b}" % b",".join(b'"%b":%b' % (name.encode(), raw) for name, raw in there)
    for mark, most in _MOST_MARKS.items():
        pieces = body.split(mark, most)
        if len(pieces) > most:
            body = body[: len(body) - len(pieces[-1])]
    return body


def _search_context(asked: Mapping[str, object], whole: bool) -> str:
    options = asked.get("web_search_options")
    tools = asked.get("tools")
    for searching in (options, *(tools if isinstance(tools, list) else ())):
        if not isinstance(searching, Mapping):
            continue
        if searching is options or _SEARCH_TOOL.fullmatch(_text(searching.get("type"))):
            if "search_context_size" not in searching:
                return _DEFAULT_CONTEXT if whole else ""
            context = _text(searching["search_context_size"])
            return context if context in _CONTEXTS else ""
    return ""


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    return value if type(value) is int and 0 < value <= _MOST else 0


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
