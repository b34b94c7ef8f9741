"""
What an answer cost: the price of the model that gave it, times what it used.

Money is an integer of pico-USD from the file to the sum. What is used and has
no price makes the cost unknown (None), which is counted and shown, and never
zero or a guess.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from ..errors import ConfigError
from .models import arn_region, bare_id
from .pricekeys import GUARDRAIL, TOKEN_KINDS, UNIT_KINDS, family, split
from .usage import Source, Usage

__all__ = [
    "GUARDRAILS",
    "NOT_BILLED",
    "Cost",
    "Price",
    "PriceTable",
    "Prices",
    "RequestHints",
    "content_version",
    "cost",
    "is_billed",
    "tier_of",
]

Prices = tuple[tuple[str, int], ...]
"""Prices by name (:mod:`~txbedrock.core.pricekeys`), in a form that can be hashed."""

GUARDRAILS = "bedrock/guardrails"
"""The entry of the guardrails' prices."""

# Note [Which price]
# ------------------
# A deployment's own prices come first, kind by kind: those kinds that it names
# are its own in all tiers and contexts, the others are those of the entry that
# is found for it. So one missing price can be added, and a discount that names
# all kinds is all that counts. Its own price for a second replaces all token
# prices of the entry, and one for a token those for a second.
#
# The entry is that of the first of these names which has one:
#
# 1. the model that the answer names (behind a prompt router);
# 2. base_model;
# 3. the model id.
#
# And for each of them:
#
# a. itself, if it is written as an entry's whole id (bedrock/us-west-2/x.y);
#    or else what LiteLLM's ways of writing (bedrock/converse/...) leave of it,
#    or an ARN of a foundation model or of a system's inference profile;
# b. bedrock/<region>/<id>, bedrock/*/<id>, <id>, bedrock/<id>;
# c. the same without its geography: us. eu. apac. us-gov. jp. au. ca. in.
#    global., or anything else before the first dot, if what follows is itself
#    vendor.model and has an entry;
# d. bedrock_mantle/<region>/<id>, bedrock_mantle/<id>: some models have their
#    price there only.
#
# The ARNs of application inference profiles, provisioned, custom and imported
# models, prompts and routers do not say which model they stand for: without
# base_model or prices of its own such a deployment has no price.
#
# Note [Which rate]
# -----------------
# What the answer says of its tier chooses among the prices of a kind; "",
# default and standard are the prices without a tier. Latency-optimised answers
# are of the tier ultrafast. A tier without a price makes the cost unknown; so
# does "reserved", whose capacity is paid for by the hour, unless the deployment
# has a price for it (0, for one).
#
# All tokens of a request cost what the highest context step costs that its
# input exceeds, cache reads and writes included. A kind without a price for
# that step keeps the one of the step below. A tier that knows no steps although
# the standard prices do has no price above the first of them.
#
# A cache write for an hour is dearer than one for five minutes (2 times the
# price of input against 1.25, for Claude). Where there is no price for it, it
# is missing and the other one does not stand in for it.
#
# Whoever has prices for images, seconds or queries and none for tokens is not
# billed by tokens; but the tokens alone are not taken for nothing either.

_UNKNOWN = Source.UNKNOWN
_NONE = Source.NONE

_REMEMBERED = 1024
"""How many look-ups are kept with their result."""

_SIZED = re.compile(
    r"([0-9]{1,5}|max)-x-([0-9]{1,5}|max)/([0-9]{1,5}|max)-steps/(?:bedrock/)?(.+)"
)
"""An entry for images up to a size and a number of steps; max: without a limit."""

_NO_LIMIT = 1 << 32

_TIMES = ("second", "output_second")
_UNITS = tuple(kind for kind in UNIT_KINDS if kind not in _TIMES)
_BY_TIME = frozenset({"time"})
_SEARCHES = ("search_low", "search_medium", "search_high")

_NAMES_MODEL = ("foundation-model/", "inference-profile/")
"""Resources of which the ARN holds a model's id."""


@dataclass(frozen=True, slots=True)
class RequestHints:
    """What a request asked for that its answer does not say. Zero: not known."""

    width: int = 0
    height: int = 0
    steps: int = 0
    premium: bool | None = None
    """Images of the better quality; None: not known."""

    search_context: str = ""
    """``low``, ``medium`` or ``high``."""

    duration_ms: int = 0
    """How long the answer took: where a model is billed by time."""


class Cost(msgspec.Struct, frozen=True):
    """What one answer cost."""

    picousd: int | None
    """None: it is billed, and that is not known."""

    price_id: str = ""
    """The entry of the table; ``deployment`` for its own prices, with the
    entry after a ``+`` where that was used too. Empty: there was none."""

    missing: tuple[str, ...] = ()
    """Prices that were needed and are not there, by name; ``usage``: it is not
    known what was used."""


_NO_HINTS = RequestHints()

NOT_BILLED = Cost(0)
"""The cost of an operation that AWS does not bill (:func:`is_billed`)."""


@dataclass(frozen=True, slots=True)
class _Sized:
    """A price of an image up to a size."""

    id: str
    limits: tuple[int, int, int]
    """Width, height, steps."""

    picousd: int


@dataclass(frozen=True, slots=True)
class _Step:
    """The token prices of one tier, from some length of the input on."""

    above: int
    """Tokens; -1: always."""

    input: int
    output: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    lacking: tuple[tuple[int, str], ...]
    """Which of the five have no price (and 0 above): number and name."""

    plain: bool
    """Whether input and output have one."""

    suffix: str
    """What a price of this step and tier is called after its kind."""

    prices: Mapping[str, int]
    """All by kind."""


@dataclass(frozen=True, slots=True)
class Price:
    """All prices of one model, as one deployment pays them."""

    id: str
    prices: Mapping[str, int]
    """By name."""

    sized: tuple[_Sized, ...] = ()

    tiers: Mapping[str, tuple[_Step, ...]] = field(init=False, repr=False)
    """By tier, the step for the longest input first."""

    timeless: Mapping[str, tuple[_Step, ...]] = field(init=False, repr=False)
    """The same, unless time is billed: then nothing."""

    units: Mapping[str, tuple[int, int]] = field(init=False, repr=False)
    """By unit, where only one price can be meant: it, and for how many it is."""

    images: frozenset[str] = field(init=False, repr=False)
    """Names of the prices of images made."""

    billed_by: frozenset[str] = field(init=False, repr=False)
    """Of ``tokens``, ``time`` and ``units``."""

    hinted: frozenset[str] = field(init=False, repr=False)
    """What costs more or less by what the request asked for: the units ``images``
    and ``searches``; ``duration_ms`` where time is billed. Nearly always nothing."""

    def __post_init__(self) -> None:
        kinds = {_kind(name) for name in self.prices}
        billed_by = {
            word
            for word, names in (("tokens", TOKEN_KINDS), ("time", _TIMES), ("units", _UNITS))
            if not kinds.isdisjoint(names)
        }
        if self.sized:
            billed_by.add("units")
        images = frozenset(kind for kind in kinds if family(kind) == "output_image")
        hinted = {"images"} if self.sized or len(images) > 1 else set()
        if len({self.prices.get(name) for name in _SEARCHES}) > 1:
            hinted.add("searches")
        if "time" in billed_by:
            hinted.add("duration_ms")
        tiers = _tiers(self.prices)
        for name, value in (
            ("tiers", tiers),
            ("timeless", {} if "time" in billed_by else tiers),
            ("images", images),
            ("billed_by", frozenset(billed_by)),
            ("hinted", frozenset(hinted)),
        ):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "units", _plain_units(self))

    def of_tokens(
        self, tier: str, fresh: int, output: int, read: int, short: int, long: int
    ) -> int | None:
        """
        What tokens cost where nothing but tokens is billed.

        :param tier: as in :attr:`tiers`.
        :param short: written to a cache for five minutes; ``long``: for an hour.
        :returns: None: it is not as simple as that, or a price is missing.
        """
        steps = self.timeless.get(tier)
        if steps is None:
            return None
        length = fresh + read + short + long
        for step in steps:
            if length > step.above:
                break
        if length == fresh and step.plain:
            return fresh * step.input + output * step.output
        if step.lacking:
            counts = (fresh, output, read, short, long)
            for number, _ in step.lacking:
                if counts[number]:
                    return None
        return (
            fresh * step.input
            + output * step.output
            + read * step.cache_read
            + short * step.cache_write_5m
            + long * step.cache_write_1h
        )


class PriceTable:
    """
    Prices of models.

    :param entries: by id, each a mapping of price names to pico-USD.
    :param version: what a record says of the table that was used.
    """

    def __init__(self, entries: Mapping[str, Mapping[str, int]], version: str) -> None:
        self.version = version
        self.entries = entries
        self._guardrails = entries.get(GUARDRAILS, {})
        self._sized: dict[str, list[_Sized]] = {}
        self._recent: dict[tuple[object, ...], Price | None] = {}
        for name, prices in entries.items():
            match = _SIZED.fullmatch(name)
            if match is not None and "output_image" in prices:
                width, height, steps = (
                    _NO_LIMIT if one == "max" else int(one) for one in match.groups()[:3]
                )
                sized = _Sized(name, (width, height, steps), prices["output_image"])
                self._sized.setdefault(match[4], []).append(sized)

    @classmethod
    def parse(cls, data: object, file: str = "prices") -> PriceTable:
        """
        A table in this project's own format.

        :param data: as JSON gives it.
        :param file: what messages call it.
        :raises ConfigError: with every entry and price that cannot be used.
        """
        problems: list[str] = []
        if not isinstance(data, Mapping) or not isinstance(data.get("prices"), Mapping):
            raise ConfigError([f"{file}: prices: found no mapping, expected prices by model"])
        if data.get("schema") != 1:
            problems.append(f"{file}: schema: found another number, expected 1")
        entries: dict[str, dict[str, int]] = {}
        for name, entry in data["prices"].items():
            if not isinstance(entry, Mapping):
                problems.append(f"{file}: prices.{name}: found no mapping, expected prices")
                continue
            entries[name] = prices = {}
            for key, value in entry.items():
                if key in ("mode", "seen"):
                    continue
                where = f"{file}: prices.{name}.{key}"
                if split(key) is None:
                    problems.append(f"{where}: found a price of an unknown kind")
                elif isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    problems.append(f"{where}: expected a whole number of pico-USD from 0 up")
                else:
                    prices[key] = value
        if problems:
            raise ConfigError(problems)
        version = data.get("version")
        return cls(
            entries, version if isinstance(version, str) and version else content_version(entries)
        )

    def below(self, upper: PriceTable) -> PriceTable:
        """This table, with another's entries in place of its own of the same id."""
        return PriceTable(
            {**self.entries, **upper.entries}, f"{self.version}+{content_version(upper.entries)}"
        )

    def price(
        self,
        model_id: str,
        region: str,
        prices: Prices = (),
        base_model: str | None = None,
        invoked: str = "",
    ) -> Price | None:
        """
        The price of a model. See Note [Which price].

        :param model_id: Bedrock's id or ARN, not encoded.
        :param region: where the request went.
        :param prices: the deployment's own.
        :param base_model: what the deployment says it really serves.
        :param invoked: the model that the answer names, where it names one.
        :returns: None if there is none.
        """
        key = (model_id, region, prices, base_model, invoked)
        try:
            return self._recent[key]
        except KeyError:
            pass
        found = self._price(model_id, region, dict(prices), base_model, invoked)
        if len(self._recent) >= _REMEMBERED:
            del self._recent[next(iter(self._recent))]
        self._recent[key] = found
        return found

    def guardrails(self, prices: Prices = ()) -> Price | None:
        """The price of a guardrail that is applied without a model."""
        return self.price(GUARDRAILS, "", prices)

    def _price(
        self,
        model_id: str,
        region: str,
        own: Mapping[str, int],
        base_model: str | None,
        invoked: str,
    ) -> Price | None:
        name = None
        for candidate in (invoked, base_model, model_id):
            if candidate:
                name = self._entry(candidate, region)
                if name is not None:
                    break
        if name is None and not own:
            return None
        theirs = {**self._guardrails, **self.entries.get(name or "", {})}
        sized = self._sized.get(name or "", [])
        if not own:
            return Price(name or "", theirs, tuple(sized))
        replaced = {family(_kind(one)) for one in own}
        if not replaced.isdisjoint(TOKEN_KINDS):
            replaced.update(_TIMES)
        elif not replaced.isdisjoint(_TIMES):
            replaced.update(TOKEN_KINDS)
        kept = {one: price for one, price in theirs.items() if family(_kind(one)) not in replaced}
        return Price(
            "deployment" if name is None else f"deployment+{name}",
            {**kept, **own},
            () if "output_image" in replaced else tuple(sized),
        )

    def _entry(self, name: str, region: str) -> str | None:
        """The id of the entry for a name."""
        if "/" in name:
            if name in self.entries:
                return name
            plain, named = bare_id(name)
            # Of a commitment no more than the region may be left out.
            committed = re.search(r"(?:^|/)([16]-month-commitment/.+)", name)
            if committed is not None:
                plain = committed[1]
            region = named or region
            if plain.startswith("arn:"):
                resource = plain.split(":", 5)[-1]
                if not resource.startswith(_NAMES_MODEL):
                    return None
                region = region or arn_region(plain)
                plain = resource.partition("/")[2]
            name = plain
        names = [name]
        _, dot, rest = name.partition(".")
        if dot and "." in rest:
            names.append(rest)
        places = (f"bedrock/{region}/", "bedrock/*/", "", "bedrock/")
        last = (f"bedrock_mantle/{region}/", "bedrock_mantle/")
        candidates = [f"{place}{one}" for one in names for place in places]
        candidates += [f"{place}{one}" for one in names for place in last]
        for candidate in candidates:
            if candidate in self.entries or candidate in self._sized:
                return candidate
        return None


def cost(price: Price | None, usage: Usage, request_hints: RequestHints | None = None) -> Cost:
    """
    What an answer cost.

    :param price: of the model that gave it; None: there is none.
    :param request_hints: of the request (:mod:`~txbedrock.core.hints`), where the
        price is one that :attr:`Price.hinted` speaks of.
    """
    if usage.source is _UNKNOWN:
        if price is not None and price.billed_by == _BY_TIME:
            return _in_detail(price, usage, request_hints)
        return Cost(None, "" if price is None else price.id, ("usage",))
    if usage.source is _NONE:
        return NOT_BILLED
    if price is None:
        return Cost(None, "", _used(usage))
    picousd = price.of_tokens(
        tier_of(usage.tier, usage.optimized) if usage.tier or usage.optimized else "",
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_tokens,
        usage.cache_write_5m_tokens,
        usage.cache_write_1h_tokens,
    )
    if picousd is None:
        return _in_detail(price, usage, request_hints)
    for unit, count in usage.units:
        known = price.units.get(unit)
        if known is None:
            return _in_detail(price, usage, request_hints)
        picousd += _times(known[0], count, known[1])
    return Cost(picousd, price.id)


_TOKEN_UNITS = {
    "input_audio_tokens": "input_audio_token",
    "output_audio_tokens": "output_audio_token",
    "input_image_tokens": "input_image_token",
}

_PLAIN_UNITS = {
    "input_images": ("input_image", 1),
    "queries": ("query", 1),
    "search_units": ("query", 1),
    "audio_ms": ("input_audio_second", 1000),
    "video_ms": ("input_video_second", 1000),
    "output_video_ms": ("output_video_second", 1000),
}
"""Units of :attr:`Usage.units` -> kind of price, and how many of them it is for.
Besides these and the tokens: ``images`` (made, or embedded where there is only a
price for that), ``searches``, ``duration_ms`` and ``guardrail.*``."""

_TIER_OF = {"default": "", "standard": "", "batches": "batch", "optimized": "ultrafast"}


def tier_of(tier: str, optimized: bool) -> str:
    """What a tier of :class:`Usage` is called among prices. See Note [Which rate]."""
    tier = tier.lower()
    tier = _TIER_OF.get(tier, tier)
    if optimized:
        return "ultrafast" if tier in ("", "ultrafast") else f"{tier}.ultrafast"
    return tier


def _plain_units(price: Price) -> Mapping[str, tuple[int, int]]:
    """See :attr:`Price.units`."""
    prices = price.prices
    units = {name: (value, 1) for name, value in prices.items() if name.startswith(GUARDRAIL)}
    for unit, (kind, each) in _PLAIN_UNITS.items():
        if kind in prices:
            units[unit] = prices[kind], each
    if not price.sized and price.images <= {"output_image"}:
        made = prices.get("output_image" if price.images else "input_image")
        if made is not None:
            units["images"] = made, 1
    search = _search(price, _NO_HINTS)[1]
    if search is not None:
        units["searches"] = search, 1
    return units


def _in_detail(price: Price, usage: Usage, hints: RequestHints | None) -> Cost:
    """The cost of anything, or everything that is missing for it."""
    hints = hints or _NO_HINTS
    tokens = _tokens(usage)
    total, missing, price_id = 0, [], price.id
    duration_ms, by_unit = hints.duration_ms, False
    for unit, count in usage.units:
        if unit == "duration_ms":
            duration_ms = count
        if not count or unit == "duration_ms" or unit in _TOKEN_UNITS:
            continue
        by_unit |= not unit.startswith(GUARDRAIL)
        kind, each = _PLAIN_UNITS.get(unit, (unit, 1))
        value: int | None = None
        if unit == "images":
            kind, value, sized = _image(price, hints)
            price_id = sized or price_id
        elif unit == "searches":
            kind, value = _search(price, hints)
        elif unit in _PLAIN_UNITS or unit.startswith(GUARDRAIL):
            value = price.prices.get(kind)
        if value is None:
            missing.append(kind)
        else:
            total += _times(value, count, each)
    for kind in _TIMES:
        if kind in price.prices:
            by_unit = True
            if duration_ms:
                total += _times(price.prices[kind], duration_ms, 1000)
            else:
                missing.append(kind)
    if tokens and ("tokens" in price.billed_by or not price.billed_by):
        step, suffix = _step(price, usage, tokens)
        for kind, count in tokens.items():
            if step is not None and kind in step.prices:
                total += count * step.prices[kind]
            else:
                missing.append(kind + suffix)
    elif tokens and not by_unit:
        missing.append(_first_unit(price))
    if missing:
        return Cost(None, price_id, tuple(missing))
    return Cost(total, price_id)


def _step(price: Price, usage: Usage, tokens: Mapping[str, int]) -> tuple[_Step | None, str]:
    """The prices of a tier and context, and what their names end with."""
    tier = tier_of(usage.tier, usage.optimized)
    steps = price.tiers.get(tier)
    if steps is None:
        return None, f".{tier}"
    length = sum(count for kind, count in tokens.items() if not kind.startswith("output"))
    step = next(step for step in steps if length > step.above)
    return step, step.suffix


def _tokens(usage: Usage) -> dict[str, int]:
    """Tokens by kind, those that there are."""
    counts: dict[str, int] = {}
    if usage.input_tokens:
        counts["input"] = usage.input_tokens
    if usage.output_tokens:
        counts["output"] = usage.output_tokens
    if usage.cache_read_tokens:
        counts["cache_read"] = usage.cache_read_tokens
    if usage.cache_write_5m_tokens:
        counts["cache_write_5m"] = usage.cache_write_5m_tokens
    if usage.cache_write_1h_tokens:
        counts["cache_write_1h"] = usage.cache_write_1h_tokens
    for unit, count in usage.units:
        if count and unit in _TOKEN_UNITS:
            counts[_TOKEN_UNITS[unit]] = count
    return counts


def _used(usage: Usage) -> tuple[str, ...]:
    """Everything that was used, by the names of the prices that it needs."""
    tier = tier_of(usage.tier, usage.optimized)
    used = [f"{kind}.{tier}" if tier else kind for kind in _tokens(usage)]
    used += [
        _PLAIN_UNITS.get(unit, (unit, 1))[0]
        for unit, count in usage.units
        if count and unit not in _TOKEN_UNITS and unit != "duration_ms"
    ]
    return tuple(used) or ("price",)


def _image(price: Price, hints: RequestHints) -> tuple[str, int | None, str]:
    """
    The price of one image.

    :returns: what it is called, what it is, and the id of its entry if that is
        one for a size.
    """
    asked = (hints.width, hints.height, hints.steps)
    plain = price.prices.get("output_image")
    if any(asked) or plain is None:
        sized = _for_size(price.sized, asked)
        if sized is not None:
            return "output_image", sized.picousd, sized.id
    if not price.images:
        return "output_image", None if price.sized else price.prices.get("input_image"), ""
    # All that it may be called, as far as size and quality are known.
    names, pixels = ["output_image"], hints.width * hints.height
    for side in (512, 1024):
        larger = f"output_image_above_{side}"
        if price.images.isdisjoint((larger, f"{larger}_premium")):
            continue
        if not pixels:
            names.append(larger)
        elif pixels > side * side:
            names = [larger]
    if any(one.endswith("_premium") for one in price.images):
        premium = [f"{name}_premium" for name in names]
        names = premium if hints.premium else names
        if hints.premium is None:
            names += premium
    found = {price.prices.get(name) for name in names}
    return names[0], found.pop() if len(found) == 1 else None, ""


def _for_size(sized: tuple[_Sized, ...], asked: tuple[int, int, int]) -> _Sized | None:
    """
    The price for the smallest size that takes what was asked for.

    :returns: None also if what is not known makes a difference.
    """
    width, height, steps = asked
    priced = [one for one in sized if steps <= one.limits[2]]
    fitting = [one for one in priced if width <= one.limits[0] and height <= one.limits[1]]
    if not fitting and width and height:
        # Of no greater side, but of no more pixels: SDXL 1.0 makes images of 1536
        # by 640, and knows one price for a size, that of 1024 by 1024.
        area = width * height
        fitting = [one for one in priced if area <= one.limits[0] * one.limits[1]]
    best, smallest, unclear = None, (0, 0, 0), False
    for one in fitting:
        most_wide, most_high, most_steps = one.limits
        limits = (width and most_wide, height and most_high, steps and most_steps)
        if best is None or limits < smallest:
            best, smallest, unclear = one, limits, False
        elif limits == smallest:
            unclear |= one.picousd != best.picousd
    return None if unclear else best


def _search(price: Price, hints: RequestHints) -> tuple[str, int | None]:
    """The price of a web search, and what it is called."""
    name = f"search_{hints.search_context}"
    if name in _SEARCHES:
        return name, price.prices.get(name)
    found = {price.prices.get(name) for name in _SEARCHES}
    return "search", found.pop() if len(found) == 1 else None


def _times(price: int, count: int, each: int) -> int:
    """
    A price for ``each`` of something, times ``count``.

    Rounded to the pico-USD where a price for a second is not a whole number of
    them for a millisecond; all prices in the shipped table are.
    """
    return (price * count + each // 2) // each


def _first_unit(price: Price) -> str:
    """What somebody is billed by who is not billed by tokens."""
    return next((kind for kind in UNIT_KINDS if kind in price.prices), "output_image")


def _kind(name: str) -> str:
    parts = split(name)
    if parts is None:
        raise ValueError(f"{name!r} names no price")
    return parts[0]


def _tiers(prices: Mapping[str, int]) -> Mapping[str, tuple[_Step, ...]]:
    """The token prices by tier, in each the step for the longest input first."""
    found: dict[str, dict[int, dict[str, int]]] = {"": {}}
    for name, price in prices.items():
        parts = split(name)
        if parts is not None and parts[0] in TOKEN_KINDS:
            kind, above, tier = parts
            found.setdefault(tier, {}).setdefault(above, {})[kind] = price
    usual = {above for above in found[""] if above}
    tiers = {}
    for tier, by_length in found.items():
        steps, current = [], by_length.pop(0, {})
        steps.append(_step_of(-1, tier, current))
        for above in sorted(by_length):
            current = {**current, **by_length[above]}
            steps.append(_step_of(above, tier, current))
        if not by_length:
            steps.extend(_step_of(above, tier, {}) for above in sorted(usual))
        tiers[tier] = tuple(reversed(steps))
    return tiers


def _step_of(above: int, tier: str, prices: Mapping[str, int]) -> _Step:
    suffix = f".above_{above // 1000}k" if above > 0 else ""
    suffix += f".{tier}" if tier else ""
    return _Step(
        above=above,
        input=prices.get("input", 0),
        output=prices.get("output", 0),
        cache_read=prices.get("cache_read", 0),
        cache_write_5m=prices.get("cache_write_5m", 0),
        cache_write_1h=prices.get("cache_write_1h", 0),
        lacking=tuple(
            (number, kind + suffix)
            for number, kind in enumerate(TOKEN_KINDS[:5])
            if kind not in prices
        ),
        plain="input" in prices and "output" in prices,
        suffix=suffix,
        prices=prices,
    )


def content_version(entries: Mapping[str, Mapping[str, object]], when: str = "") -> str:
    """A name for exactly these entries: ``2026-10-0a1b2c3d``."""
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{when}-{digest}" if when else digest


# What AWS bills nobody for: asking, listing, deleting and the like. An operation
# that is new here and of no such name counts as billed, and so as unknown.

_FREE_VERBS = re.compile(
    r"(Associate|BatchDelete|Cancel|Check|Complete|CountTokens|Delete|Deregister|Disassociate|End"
    r"|Export|Get|List|Prepare|Put|Register|Reset|Rotate|Set|Stop|Submit|Synchronize|Tag|Untag"
    r"|Update|Validate)(?![a-z])"
)
_BILLED_GETS = ("GetResourceApiKey", "GetResourceOauth2Token", "GetResourcePaymentToken")
_FREE_CREATES = {
    "bedrock": (
        "CreateAutomatedReasoningPolicy",
        "CreateAutomatedReasoningPolicyTestCase",
        "CreateFoundationModelAgreement",
        "CreateGuardrail",
        "CreateGuardrailVersion",
        "CreateInferenceProfile",
        "CreatePromptRouter",
    ),
    "bedrock-agent": None,
    "bedrock-agent-runtime": None,
    "bedrock-agentcore-control": None,
    "bedrock-data-automation": None,
}
"""Operations that begin with ``Create`` and cost nothing by themselves; None: all."""


def is_billed(service: str, operation: str) -> bool:
    """
    Whether AWS may bill an answer of an operation.

    What it bills later for what the operation made (storage, provisioned
    capacity) is not meant.
    """
    if operation.startswith("Create"):
        free = _FREE_CREATES.get(service, ())
        return free is not None and operation not in free
    return operation in _BILLED_GETS or _FREE_VERBS.match(operation) is None
