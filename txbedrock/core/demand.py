"""
What a request will need at worst: tokens of a quota, and money.

It is known before the request is sent, from its body alone, and corrected by what
requests of the same model turned out to need.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from .headers import HeaderList, first_values
from .pricekeys import GUARDRAIL
from .pricing import Price, cost, tier_of
from .usage import MAX_COUNT, READ_REQUESTS, Source, Tally, Usage, tier_name

__all__ = ["Demand", "ModelSize", "ModelSizes", "TokenRatios"]

# Note [The worst case]
# ---------------------
# Input: a token for each byte of text until something is known of the model, then
# as many as its requests had at most (:class:`TokenRatios`). Pictures and films in
# the body are no text: they are known by how their base64 begins, and count
# _PICTURE_TOKENS each, films besides that by their length. What the body only refers
# to (in S3, a managed prompt) may fill the model's context.
#
# Output: what the request allows (maxTokens, by whatever name the model's vendor
# has for it), else all that the model can give, else _UNKNOWN_OUTPUT. Converse
# knows one name only: members of other names are not believed there.
#
# Money: what the price table makes of that, in whatever tier and kind of input the
# request may be charged in: the tier that it asks for or none, fresh or written to
# the cache if it has a cache point. Images, queries and a guardrail's units are
# counted as the body tells. What nothing tells (seconds, an agent's steps) is worth a
# pico-USD, so that it is refused only where a budget is spent: Demand.uncertain.
#
# Of a body of more than 1 MiB only the beginning is at hand. It may hold a cache
# point, maxTokens is not read, and a picture that does not end within the beginning
# is taken for the first of some that fill the rest.
#
# Note [Tokens of the quota]
# --------------------------
# Bedrock takes the input and maxTokens from a quota when a request begins. When it
# has ended, input and cache writes count, each token of output as often as the
# model's burn-down rate says, and what was read from a cache does not. That rate is 5
# for Claude 3.7 and later, 1 for all others. It is not applied to the reservation,
# here as there: a tpm limit can be passed by what the answers in flight burn more
# than they were expected to, and then holds up those who come next.
#
# Source: Amazon Bedrock User Guide, "How tokens are counted in Amazon Bedrock".

_UNKNOWN_OUTPUT = 128_000
"""Of a model that the table does not have: what the largest of most vendors give."""

_UNKNOWN_INPUT = 1_000_000
_PICTURE_TOKENS = 5_000
_PICTURE_BYTES = 1024 * 1024
_BYTES_A_FILM_TOKEN = 32
_TEXT_UNIT_BYTES = 1000

_CONVERSATIONS = ("Converse", "ConverseStream")
_GENERATING = frozenset(
    (*_CONVERSATIONS, "InvokeModel", "InvokeModelWithResponseStream", "OpenAI", "Anthropic")
)
_GUARDRAILS = ("ApplyGuardrail", "InvokeGuardrailChecks")
_TELLING_UNITS = frozenset((*_GUARDRAILS, *READ_REQUESTS))

_BEFORE_CLAUDE_37 = re.compile(r"claude-(?:instant|v[12]|3-(?:haiku|sonnet|opus|5)|2)(?![0-9])")

# Base64 is looked for at every _STRIDE bytes only: what is shorter is not worth it, and
# a body that is made to be hard to search is not.
_STRIDE = 4096
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{64}")
_MEDIA = re.compile(
    rb"(?:data:(?:image|video)/[\w.+-]{1,40};base64,)?"
    rb"(?:(?P<picture>iVBORw0KGgo|/9j/|R0lGOD|UklGR)|AAAA[\w+/]{2}Z0eXB|GkXfo)"
)


class ModelSize(NamedTuple):
    """How much a model takes and gives in one request, in tokens."""

    input: int
    output: int
    burndown: int
    """How often a token of output counts for Bedrock's quotas."""


class ModelSizes:
    """
    How much the models take and give.

    :param table: input and output at most by Bedrock's id without geography, as in
        ``model_limits.json``; None: not known.
    """

    _REMEMBERED = 1024

    def __init__(self, table: Mapping[str, tuple[int | None, int | None]]) -> None:
        self._table = table
        self._recent: dict[str, ModelSize] = {}

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> ModelSizes:
        """:param data: ``model_limits.json``, as JSON gives it."""
        return cls({name: (most[0], most[1]) for name, most in data["models"].items()})

    def of(self, model_id: str) -> ModelSize:
        """
        :param model_id: Bedrock's id or ARN, not encoded, or what a deployment has
            for its base model. One that is not known is taken for a large one.
        """
        found = self._recent.get(model_id)
        if found is None:
            if len(self._recent) >= self._REMEMBERED:
                del self._recent[next(iter(self._recent))]
            found = self._recent[model_id] = self._find(model_id)
        return found

    def _find(self, model_id: str) -> ModelSize:
        name = model_id.rpartition("/")[2]
        most = self._table.get(name) or self._table.get(name.partition(".")[2]) or (None, None)
        later_claude = "claude-" in name and _BEFORE_CLAUDE_37.search(name) is None
        return ModelSize(
            _UNKNOWN_INPUT if most[0] is None else most[0],
            _UNKNOWN_OUTPUT if most[1] is None else most[1],
            5 if later_claude else 1,
        )


class _Learned:
    """Of one model."""

    __slots__ = ("count", "most")

    def __init__(self) -> None:
        self.most = 1.0
        self.count = 0


class TokenRatios:
    """
    How many tokens a byte of a request's text becomes, learned by model.

    What is given is the highest ratio that was seen, and a tenth more. It falls
    by half of the way to the present one with each of the first eight requests, and
    by a 256th with each later one; it rises at once. It is 1 of a model that is not
    known, and never above; nor is it below 0.11, so that nobody can teach it that
    text comes for nothing.
    """

    _MARGIN = 1.1
    _LEAST = 0.1
    _MODELS = 1024
    _FIRST = 8

    def __init__(self) -> None:
        self._learned: dict[str, _Learned] = {}
        self.given: dict[str, float] = {}
        """Tokens a byte, at most, by model id; 1 of those that are not in it."""

    def of(self, model_id: str) -> float:
        """Tokens a byte, at most."""
        return self.given.get(model_id, 1.0)

    def learn(self, model_id: str, body_length: int, input_tokens: int) -> None:
        """
        :param body_length: bytes of text.
        :param input_tokens: what they were, those read from and written to a cache included.
        """
        if body_length <= 0 or input_tokens <= 0:
            return
        learned = self._learned.get(model_id)
        if learned is None:
            if len(self._learned) >= self._MODELS:
                first = next(iter(self._learned))
                del self._learned[first], self.given[first]
            learned = self._learned[model_id] = _Learned()
        ratio = input_tokens / body_length
        if ratio > 1:
            ratio = 1.0
        elif ratio < self._LEAST:
            ratio = self._LEAST
        if ratio >= learned.most:
            learned.most = ratio
        else:
            share = 0.5 if learned.count < self._FIRST else 1 / 256
            learned.most -= (learned.most - ratio) * share
        learned.count += 1
        given = learned.most * self._MARGIN
        self.given[model_id] = given if given < 1 else 1.0


class _Body(msgspec.Struct, frozen=True):
    """What vendors call the members that say how much may be generated, and how."""

    inferenceConfig: Any = None
    additionalModelRequestFields: Any = None
    textGenerationConfig: Any = None
    imageGenerationConfig: Any = None
    performanceConfig: Any = None
    guardrailConfig: Any = None
    serviceTier: Any = None
    service_tier: Any = None
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    max_tokens_to_sample: Any = None
    max_gen_len: Any = None
    max_new_tokens: Any = None
    maxTokens: Any = None
    n: Any = None
    numResults: Any = None
    num_generations: Any = None
    samples: Any = None


_decode = msgspec.json.Decoder(_Body).decode
_NOTHING = _Body()

# Of a long body only what is looked for becomes objects: a list of a hundred thousand empty
# ones, wherever it stands, would take 80 ms.
_LONG = 16 * 1024
_LONG_MEMBER = 1024
_ABSENT = msgspec.Raw(b"null")
_Members = msgspec.defstruct(
    "_Members", [(name, msgspec.Raw, _ABSENT) for name in _Body.__struct_fields__]
)
_decode_members = msgspec.json.Decoder(_Members).decode
_decode_any = msgspec.json.Decoder().decode

_FRESH = ((1, 0, 0),)
"""How the input may be charged: fresh, written to a cache for 5 minutes, for an hour."""

_REQUEST, _UNKNOWN = Source.REQUEST, Source.UNKNOWN
_TELLING = (Source.BODY, Source.HEADERS, Source.METRICS)
"""Enum members are slow to look up."""

_USUAL = (("", False),)
"""The tiers it may be charged in, and whether with optimised latency."""

_TIER, _LATENCY = b"x-amzn-bedrock-service-tier", b"x-amzn-bedrock-performanceconfig-latency"

_NO_SIZE = ModelSize(0, 0, 1)


class Demand(msgspec.Struct, kw_only=True, eq=False):
    """
    What one request needs at worst. See Note [The worst case].

    Nothing is read before it is asked for, so a request without limits costs nothing.

    :param model: the model group's name, or the id that the client used.
    :param model_id: Bedrock's id or ARN; empty if the request names none.
    :param operation: its name.
    :param body_length: bytes.
    :param body_start: the body, or the beginning of a long one.
    :param price: None: there is none.
    :param base_model: what the deployment says it really serves.
    :param billed: whether Bedrock may bill an answer.
    :param headers: of the request.
    """

    model: str
    model_id: str
    operation: str
    body_length: int
    body_start: bytes
    price: Price | None
    ratios: TokenRatios
    sizes: ModelSizes
    base_model: str | None = None
    billed: bool = True
    headers: HeaderList | None = None

    uncertain: bool = False
    """Whether something is billed that the body does not tell; known when
    :meth:`picousd` was asked."""

    _text: int = -1  # bytes; -1: the body has not been looked into
    _media: int = 0
    _refers: bool = False
    _conversation: bool = False
    _given: _Body = _NOTHING
    _served: str = ""
    _size: ModelSize = _NO_SIZE
    _output: int = 0
    _ratio: float = -1.0  # with which these two were reckoned
    _tokens: int = 0
    _picousd: int | None = -1  # -1: not reckoned yet

    # Not what a client sent, nor its key.
    __repr__ = object.__repr__

    def tokens(self) -> int:
        """Tokens that a quota has to have left: input, and output at most."""
        if not self.billed or self.operation not in _GENERATING:
            return 0
        self._estimate()
        return self._tokens + self._output

    def output_tokens(self) -> int:
        """Tokens of its answer at most."""
        self._estimate()
        return self._output

    def picousd(self) -> int | None:
        """
        What it costs at most.

        :returns: 0 only of what costs nothing; None: there is no price.
        """
        if not self.billed:
            return 0
        if self.price is None:
            return None
        self._estimate()
        if self._picousd == -1:
            self._picousd = self._worst(self.price)
        return self._picousd

    def used(self, usage: Usage) -> int | None:
        """
        Tokens that an answer took from a quota. See Note [Tokens of the quota].

        :returns: None: it is not known.
        """
        if usage.source is _UNKNOWN:
            return None
        output = usage.output_tokens
        if output:
            looked = self._text >= 0
            size = self._size if looked else self.sizes.of(self.base_model or self.model_id)
            output *= size.burndown
        return (
            usage.input_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens + output
        )

    def learn(self, usage: Usage) -> None:
        """Let the requests that come be estimated by what this one was found to be."""
        if self._text <= 0 or self._media or self._refers:
            return
        if usage.source in _TELLING:
            self.ratios.learn(
                self._served,
                self._text,
                usage.input_tokens
                + usage.cache_read_tokens
                + usage.cache_write_5m_tokens
                + usage.cache_write_1h_tokens,
            )

    def let_go(self) -> None:
        """
        Hold the body, up to a megabyte, no longer. Only :meth:`used` and :meth:`learn` may
        be called from now on.
        """
        self.body_start = b""
        self.headers = None
        self._given = _NOTHING

    def _estimate(self) -> None:
        if self._text < 0:
            self._look()
        ratio = self.ratios.given.get(self._served, 1.0)
        if ratio == self._ratio:
            return
        self._ratio = ratio
        self._picousd = -1
        tokens = math.ceil(self._text * ratio) + self._media
        largest = self._size.input
        if self._refers:
            tokens = max(tokens, largest)
        # More than its context no model takes. What the table says may be out of date.
        self._tokens = min(tokens, max(largest, _UNKNOWN_INPUT))

    # The body.

    def _look(self) -> None:
        """Read of the body what does not change."""
        body, length = self.body_start, self.body_length
        self._served = self.base_model or self.model_id
        self._size = self.sizes.of(self._served)
        self._text = length
        if length > _STRIDE:
            self._find_media()
        self._refers = b'"s3Location"' in body or ":prompt/" in self.model_id
        if len(body) == length and body:
            try:
                self._given = _decode(body) if length <= _LONG else _decode_long(body)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # Bedrock will not take it either.
        self._conversation = self.operation in _CONVERSATIONS
        if self.operation in _GENERATING and self._size.output:
            self._output = self._allowed() or self._size.output

    def _find_media(self) -> None:
        """Tell pictures and films from text."""
        body, position = self.body_start, _STRIDE
        while position < len(body):
            if _BASE64.match(body, position) is None:
                position += _STRIDE
                continue
            begin, end = body.rfind(b'"', 0, position) + 1, body.find(b'"', position)
            whole = end >= 0
            if not whole:
                end = len(body)
            position = end + _STRIDE
            match = _MEDIA.match(body, begin)
            if match is None or any(body.find(one, begin, end) >= 0 for one in (b" ", b"\\")):
                continue
            size = (end if whole else self.body_length) - begin
            self._text -= size
            self._media += _PICTURE_TOKENS
            if not match["picture"]:
                self._media += size // _BYTES_A_FILM_TOKEN
            elif not whole:
                self._media += _PICTURE_TOKENS * (size // _PICTURE_BYTES)

    def _allowed(self) -> int:
        """Tokens of output that the request allows; 0: it does not say."""
        given = self._given
        config = given.inferenceConfig
        if self._conversation:
            if type(config) is not dict:
                return 0
            allowed = _count(config.get("maxTokens"))
            further = given.additionalModelRequestFields
            if allowed and type(further) is dict:
                allowed = max(allowed, *(_count(further.get(name)) for name in _LIMITS))
            return allowed
        allowed = max(
            _count(given.max_tokens),
            _count(given.max_completion_tokens),
            _count(given.max_output_tokens),
            _count(given.max_tokens_to_sample),
            _count(given.max_gen_len),
            _count(given.max_new_tokens),
            _count(given.maxTokens),
        )
        if type(config) is dict:
            allowed = max(
                allowed, _count(config.get("maxTokens")), _count(config.get("max_new_tokens"))
            )
        config = given.textGenerationConfig
        if type(config) is dict:
            allowed = max(allowed, _count(config.get("maxTokenCount")))
        answers = max(1, _count(given.n), _count(given.numResults), _count(given.num_generations))
        return (allowed or self._size.output) * answers

    # Money.

    def _worst(self, price: Price) -> int:
        prices = price.prices
        self.uncertain = False
        tokens, output, images = self._tokens, self._output, 0
        units: tuple[tuple[str, int], ...] = ()
        if self.operation in _TELLING_UNITS or self._given.guardrailConfig is not None:
            units = self._units(price)
        if self.operation not in _GENERATING:
            tokens = 0
        elif price.images or price.sized:
            images = self._images() * _dearest_image(price)
            tokens = tokens if "tokens" in price.billed_by else 0
        elif "input" not in prices:
            # What is heard or watched is billed otherwise.
            tokens, self.uncertain = 0, not units
        worst = -1
        kinds = self._kinds(price)
        for tier, optimized in self._tiers(price):
            name = tier_of(tier, optimized) if tier or optimized else ""
            for kind in kinds:
                fresh, short, long = tokens * kind[0], tokens * kind[1], tokens * kind[2]
                picousd = None
                if not units:
                    picousd = price.of_tokens(name, fresh, output, 0, short, long)
                if picousd is None:
                    usage = Usage(
                        fresh, output, 0, short, long, units, tier, optimized, "", _REQUEST
                    )
                    picousd = cost(price, usage).picousd
                if picousd is not None and picousd > worst:
                    worst = picousd
        if worst <= 0:
            self.uncertain = self.uncertain or worst < 0
            worst = max(worst, 0)
            if not images and any(prices.values()):
                worst, self.uncertain = 1, True
        return worst + images

    def _tiers(self, price: Price) -> tuple[tuple[str, bool], ...]:
        """The tiers in which it may be charged."""
        if len(price.tiers) == 1:
            return _USUAL
        given, headers = self._given, self.headers
        tier, latency, further = given.service_tier, given.performanceConfig, given.serviceTier
        first = None if headers is None else first_values(headers)
        told = first is not None and (_TIER in first or _LATENCY in first)
        if tier is None and latency is None and further is None and not told:
            return _USUAL
        if type(further) is dict:
            tier = further.get("type")
        fast = type(latency) is dict and latency.get("latency") == "optimized"
        for name, value in headers or ():
            name = name.lower()
            if name == _TIER:
                tier = value.strip().decode("ascii", "replace")
            elif name == _LATENCY:
                fast = fast or value.strip().lower() == b"optimized"
        tier = tier_name(tier) if isinstance(tier, str) else ""
        return (*_USUAL, (tier, fast)) if tier or fast else _USUAL

    def _kinds(self, price: Price) -> tuple[tuple[int, int, int], ...]:
        """How the input may be charged."""
        if "cache_write_5m" not in price.prices and "cache_write_1h" not in price.prices:
            return _FRESH
        body = self.body_start
        whole = len(body) == self.body_length
        if whole and b'"cachePoint"' not in body and b'"cache_control"' not in body:
            return _FRESH
        if whole and b'"1h"' not in body:
            return (*_FRESH, (0, 1, 0))
        return (*_FRESH, (0, 1, 0), (0, 0, 1))

    def _images(self) -> int:
        """How many are to be made."""
        given = self._given
        config = given.imageGenerationConfig
        asked = _count(config.get("numberOfImages")) if type(config) is dict else 0
        return max(1, asked, _count(given.n), _count(given.samples))

    def _units(self, price: Price) -> tuple[tuple[str, int], ...]:
        """What besides tokens the body tells."""
        body, config = self.body_start, self._given.guardrailConfig
        if self.operation in _GUARDRAILS:
            return self._guardrail_units(price, self.body_length, body.count(b'"image"'))
        if type(config) is dict and str(config.get("trace")).startswith("enabled"):
            # Only then the answer will tell. A token of output is a few letters.
            return self._guardrail_units(price, self.body_length + 6 * self._output, 0)
        readers = READ_REQUESTS.get(self.operation)
        if readers is None:
            return ()
        tally = Tally()
        for part, read in readers:
            if part in self._served:
                read(body, tally)
        return tuple(tally.units.items())

    def _guardrail_units(
        self, price: Price, text: int, images: int
    ) -> tuple[tuple[str, int], ...]:
        """Of all policies that there are, for a text of so many bytes."""
        blocks = -(-text // _TEXT_UNIT_BYTES) + self.body_start.count(b'"text"')
        return tuple(
            (name, images if name.endswith("ImageUnits") else blocks)
            for name in price.prices
            if name.startswith(GUARDRAIL)
        )


def _dearest_image(price: Price) -> int:
    """Of any size and quality."""
    return max(
        *(price.prices[name] for name in price.images), *(one.picousd for one in price.sized), 0, 0
    )


_LIMITS = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "max_gen_len",
    "max_new_tokens",
    "maxTokens",
)


_Told = msgspec.defstruct(
    "_Told",
    [
        (name, msgspec.Raw, _ABSENT)
        for name in (*_LIMITS, "maxTokenCount", "numberOfImages", "latency", "trace", "type")
    ],
)
"""All that is looked for in a member that is an object."""

_decode_told = msgspec.json.Decoder(_Told).decode


def _decode_long(body: bytes) -> _Body:
    """The same as of a short one, as far as it is looked at."""
    return _Body(*map(_value, msgspec.structs.astuple(_decode_members(body))))


def _value(raw: msgspec.Raw, within: bool = False) -> Any:
    """
    :param within: an object, where only texts and numbers are looked at.
    """
    if raw is _ABSENT:
        return None
    if len(raw) > _LONG_MEMBER:
        first = memoryview(raw)[0]
        if first == ord("["):
            return []
        if first == ord("{"):
            told = {} if within else msgspec.structs.asdict(_decode_told(raw))
            return {name: _value(each, True) for name, each in told.items()}
    return _decode_any(raw)


def _count(value: object) -> int:
    """A number of tokens or the like; 0: it is none."""
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(value) if 0 < value <= MAX_COUNT else 0
    return 0
