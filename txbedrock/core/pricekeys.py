"""
What prices are called: here, and in LiteLLM's configuration and price map.

A price's name is ``<kind>[.above_<n>k][.<tier>]``: ``input``, ``cache_read``,
``input.above_200k``, ``output.flex``, ``output.above_272k.ultrafast``. Its value
is an integer of pico-USD (10^-12 US dollars) for one of what the kind names.
Only tokens have context and tier; what is billed otherwise costs the same in
all of them. A guardrail's units are called as AWS calls them:
``guardrail.contentPolicyUnits``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

__all__ = [
    "GUARDRAIL",
    "LITELLM_KEYS",
    "LITELLM_MAPPINGS",
    "LITELLM_WITHOUT_EFFECT",
    "TIERS",
    "TOKEN_KINDS",
    "UNIT_KINDS",
    "BadPrice",
    "entry_from_litellm",
    "family",
    "litellm_name",
    "of_bedrock",
    "picousd",
    "rank",
    "split",
]

TOKEN_KINDS = (
    "input",
    "output",
    "cache_read",
    "cache_write_5m",
    "cache_write_1h",
    "input_audio_token",
    "output_audio_token",
    "input_image_token",
)
"""The first five in the order in which :mod:`txbedrock.core.pricing` counts them."""

UNIT_KINDS = (
    "input_image",
    "output_image",
    "output_image_premium",
    "output_image_above_512",
    "output_image_above_512_premium",
    "output_image_above_1024",
    "output_image_above_1024_premium",
    "input_audio_second",
    "input_video_second",
    "output_video_second",
    "query",
    "search_low",
    "search_medium",
    "search_high",
    "second",
    "output_second",
)
"""``output_image_above_512``: of more pixels than 512 times 512. ``query``: a
rerank or a text to embed. ``search_*``: a web search by the model. ``second``,
``output_second``: of the time that the request took."""

TIERS = ("flex", "priority", "batch", "ultrafast", "reserved")
"""Besides the standard tier, which is not named. ``ultrafast``: optimised for latency."""

GUARDRAIL = "guardrail."

_NAME = re.compile(
    rf"(?:(?P<token>{'|'.join(TOKEN_KINDS)})(?:\.above_(?P<above>[1-9][0-9]{{0,5}})k)?"
    rf"(?:\.(?P<tier>{'|'.join(TIERS)}))?"
    rf"|(?P<unit>{'|'.join(UNIT_KINDS)}|{re.escape(GUARDRAIL)}[A-Za-z]+))"
)

_LITELLM_TOKENS = {
    "input_cost_per_token": "input",
    "output_cost_per_token": "output",
    "cache_read_input_token_cost": "cache_read",
    "cache_creation_input_token_cost": "cache_write_5m",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h",
    "input_cost_per_audio_token": "input_audio_token",
    "output_cost_per_audio_token": "output_audio_token",
    "input_cost_per_image_token": "input_image_token",
}

_LITELLM_UNITS = {
    "input_cost_per_image": "input_image",
    "output_cost_per_image": "output_image",
    "output_cost_per_image_premium_image": "output_image_premium",
    "output_cost_per_image_above_512_and_512_pixels": "output_image_above_512",
    "output_cost_per_image_above_512_and_512_pixels_and_premium_image": (
        "output_image_above_512_premium"
    ),
    "output_cost_per_image_above_1024_and_1024_pixels": "output_image_above_1024",
    "output_cost_per_image_above_1024_and_1024_pixels_and_premium_image": (
        "output_image_above_1024_premium"
    ),
    "input_cost_per_audio_per_second": "input_audio_second",
    "input_cost_per_video_per_second": "input_video_second",
    "output_cost_per_video_per_second": "output_video_second",
    "input_cost_per_query": "query",
    "cost_per_second": "second",
    "input_cost_per_second": "second",
    "output_cost_per_second": "output_second",
}

LITELLM_MAPPINGS: Mapping[str, Mapping[str, str]] = {
    "search_context_cost_per_query": {
        "search_context_size_low": "search_low",
        "search_context_size_medium": "search_medium",
        "search_context_size_high": "search_high",
    },
    "guardrail_cost_per_unit": {},
}
"""LiteLLM's keys that hold a mapping of prices: its keys and our names. Those
of the second are AWS's own."""

LITELLM_KEYS = (*_LITELLM_TOKENS, *_LITELLM_UNITS, *LITELLM_MAPPINGS)
"""LiteLLM's keys for prices, in their plain form."""

LITELLM_WITHOUT_EFFECT = (
    "input_cost_per_character",
    "output_cost_per_character",
    "input_cost_per_pixel",
    "output_cost_per_pixel",
    "output_cost_per_reasoning_token",
    "tiered_pricing",
)
"""LiteLLM's keys for what Bedrock bills nobody by: it bills reasoning as output."""

_LITELLM_TIERS = {tier: tier for tier in TIERS if tier != "batch"} | {"batches": "batch"}

_LITELLM_TOKEN = re.compile(
    rf"(?P<stem>{'|'.join(sorted(_LITELLM_TOKENS, key=len, reverse=True))})"
    r"(?:_above_(?P<above>[1-9][0-9]{0,5})k_tokens)?"
    rf"(?:_(?P<tier>{'|'.join(_LITELLM_TIERS)}))?"
)

_PICO = 10**12
_HIGHEST = 1000
"""US dollars for one of anything. Bedrock's dearest is far below; a typing error is not."""


class BadPrice(ValueError):
    """
    A price cannot be used.

    :param found: what it is, in words that show no more than a number.
    :param expected: what it should be.
    """

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"found {found}, expected {expected}")
        self.found = found
        self.expected = expected


def picousd(dollars: object) -> int:
    """
    A price in US dollars as an integer of pico-USD, exactly.

    :param dollars: an ``int`` or a :class:`~decimal.Decimal`. Of a float pass
        what it was read from, or ``Decimal(repr(value))``.
    :raises BadPrice: if it is no number from 0 to 1000, or not a whole number
        of pico-USD.
    """
    expected = f"a price in US dollars, 0 to {_HIGHEST}"
    if isinstance(dollars, bool) or not isinstance(dollars, int | Decimal):
        raise BadPrice("a list" if isinstance(dollars, list) else _kind_of(dollars), expected)
    value = Decimal(dollars)
    if not value.is_finite() or not 0 <= value <= _HIGHEST:
        raise BadPrice(_shown(value), expected)
    if not value:
        return 0
    # What is far below a pico-USD would be an integer of as many digits.
    if value.adjusted() < -12:
        raise BadPrice(_shown(value), f"{expected}, with at most 12 decimals")
    numerator, denominator = value.as_integer_ratio()
    pico, rest = divmod(numerator * _PICO, denominator)
    if rest:
        raise BadPrice(_shown(value), f"{expected}, with at most 12 decimals")
    return pico


def split(name: str) -> tuple[str, int, str] | None:
    """
    The parts of a price's name.

    :returns: kind, the tokens of the whole input above which it holds (0: it
        always does), tier; None if there is no such name.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    if match["unit"]:
        return match["unit"], 0, ""
    return match["token"], int(match["above"] or 0) * 1000, match["tier"] or ""


def family(kind: str) -> str:
    """What kinds have in common of which one deployment's own price replaces all."""
    for several in ("output_image", "search"):
        if kind == several or kind.startswith(f"{several}_"):
            return several
    return kind


_ORDER = {kind: number for number, kind in enumerate((*TOKEN_KINDS, *UNIT_KINDS))}
_TIER_ORDER = {tier: number for number, tier in enumerate(("", *TIERS))}


def rank(name: str) -> tuple[int, int, int, str]:
    """Where a price stands among an entry's others, to sort by."""
    parts = split(name)
    if parts is None:
        raise ValueError(f"{name!r} names no price")
    kind, above, tier = parts
    return _TIER_ORDER[tier], above, _ORDER.get(kind, len(_ORDER)), kind


def litellm_name(key: str) -> str | None:
    """Our name of a price that LiteLLM calls ``key``; None if it is none."""
    unit = _LITELLM_UNITS.get(key)
    if unit is not None:
        return unit
    match = _LITELLM_TOKEN.fullmatch(key)
    if match is None:
        return None
    name = _LITELLM_TOKENS[match["stem"]]
    if match["above"]:
        name += f".above_{match['above']}k"
    if match["tier"]:
        name += f".{_LITELLM_TIERS[match['tier']]}"
    return name


def of_bedrock(fields: Mapping[str, object], required: bool = False) -> bool:
    """
    Whether an entry of LiteLLM's price map is of Amazon Bedrock.

    :param required: whether it must say so.
    """
    provider = fields.get("litellm_provider")
    if provider is None:
        return not required
    return isinstance(provider, str) and provider.startswith("bedrock")


def entry_from_litellm(
    fields: Mapping[str, object],
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """
    The prices in an entry of LiteLLM's price map.

    :param fields: as JSON gives them, but with decimals as
        :class:`~decimal.Decimal`.
    :returns: prices by name; and the problems as (key, sentence), among them
        every key that must be about a price and is not known: a price that is
        left out would make others hold where they do not.
    """
    prices: dict[str, int] = {}
    problems: list[tuple[str, str]] = []

    def take(key: str, name: str, value: object) -> None:
        try:
            price = picousd(value)
        except BadPrice as error:
            problems.append((key, str(error)))
            return
        if prices.setdefault(name, price) != price:
            problems.append((key, "found another price for the same, expected one"))

    for key, value in fields.items():
        name = litellm_name(key)
        inner = LITELLM_MAPPINGS.get(key)
        if value is None or key in LITELLM_WITHOUT_EFFECT:
            continue
        if name is not None:
            take(key, name, value)
        elif inner is not None and isinstance(value, Mapping):
            for part, price in value.items():
                unit = inner.get(part) if inner else f"{GUARDRAIL}{part}"
                if unit is None or split(unit) is None:
                    problems.append((f"{key}.{part}", "found a price of an unknown kind"))
                else:
                    take(f"{key}.{part}", unit, price)
        elif inner is not None:
            problems.append((key, f"found {_kind_of(value)}, expected a mapping of prices"))
        elif "cost" in key:
            problems.append((key, "found a price of an unknown kind"))
    return prices, problems


def _shown(value: Decimal) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case str():
            return "text"
        case Mapping():
            return "a mapping"
        case list():
            return "a list"
        case _:
            return "no exact number"
