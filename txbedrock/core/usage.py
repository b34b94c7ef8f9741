"""
What an answer of Bedrock's is billed by: tokens by kind, or other units.

Here is how a document (a body, an event's payload) is read. Which documents of
an answer are read at all is :mod:`txbedrock.core.meter`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, TypeAlias

import msgspec

from .excerpt import Excerpt, Take, Wanted

__all__ = [
    "MAX_COUNT",
    "READ_REQUESTS",
    "Readable",
    "Source",
    "Tally",
    "Told",
    "Usage",
    "read_agent_trace",
    "read_answer",
    "read_conversation",
    "read_flow_trace",
    "read_guardrail",
    "read_guardrail_checks",
    "read_openai",
    "read_ranking",
    "tier_name",
]

MAX_COUNT = 2**53
"""What is told to be more is no count."""


class Source(Enum):
    """Where the figures come from, the finest first."""

    BODY = "body"
    """The answer's body, or the events of its stream."""

    HEADERS = "headers"
    """``x-amzn-bedrock-*-token-count``."""

    METRICS = "metrics"
    """``amazon-bedrock-invocationMetrics`` of a stream's last chunk."""

    REQUEST = "request"
    """The request, where the answer says nothing: a rerank's queries, the length
    of a video that is still to be made."""

    UNKNOWN = "unknown"
    """Nothing said what was used. It is never guessed."""

    NONE = "none"
    """There is nothing to be billed: a refusal, or an operation that costs nothing."""


# To look a member up by its class takes ten times as long.
_BODY, _UNKNOWN = Source.BODY, Source.UNKNOWN


class Usage(msgspec.Struct, frozen=True):
    """
    What one answer used. Counts are what Bedrock bills, each token in one of them.
    """

    input_tokens: int = 0
    """Neither read from a cache nor written to one."""

    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    """Also those of which the answer does not say for how long."""

    cache_write_1h_tokens: int = 0

    units: tuple[tuple[str, int], ...] = ()
    """What is billed otherwise, by name, sorted, none of them 0: ``images``,
    ``queries``, ``searches``, ``output_video_ms``, ``guardrail.contentPolicyUnits``
    ... What nobody has a price for, because nothing tells how long or how large
    it is, has a name of its own: ``audio``, ``video``, ``document_images``."""

    tier: str = ""
    """Service tier as the answer says it: ``default``, ``priority``, ``flex``,
    ``reserved``; empty when it says nothing."""

    optimized: bool = False
    """Served with latency-optimised inference."""

    model: str = ""
    """The model that the answer names, where it is not the one of the path:
    behind a prompt router, on OpenAI's and Anthropic's routes, the one that an
    agent's trace names if it names only one, the one that a rerank asks for."""

    source: Source = Source.UNKNOWN

    problem: str = ""
    """Why metering stopped before the end; empty when it did not."""


# Note [Combining]
#
# An answer may tell its tokens in three places. The input (fresh, read from a
# cache, written to one) is taken from one of them as a whole, the output from
# one of them: the first that tells it of body, headers and metrics. But where
# the first does not say whether there was a cache and a later one does, the
# later one is taken for the input: the first one's figure may include the
# cached tokens or not, which is known for some shapes only.
#
# For how long the cache is written stands in bodies only. It is taken from
# there for as many of the written tokens as there are; the rest is 5 minutes.
#
# Anthropic's counts are cumulative in a stream and never fall: the greatest of
# each is taken, so that the figure of message_start stays where message_delta
# leaves it out or at 0. All other streams tell everything at once, several times
# perhaps: the last counts.


class Told(msgspec.Struct):
    """Tokens as one place tells them. None: it does not."""

    input: int | None = None
    output: int | None = None
    read: int | None = None
    write: int | None = None
    write_1h: int | None = None
    """How many of ``write``."""


class Tally(msgspec.Struct):
    """What has been read of one answer so far."""

    body: Told = msgspec.field(default_factory=Told)
    headers: Told | None = None
    metrics: Told | None = None
    units: dict[str, int] = {}

    seen: Source | None = None
    """Where units were told, be they all 0."""

    tier: str = ""
    """Service tier: of Converse's body."""

    header_tier: str = ""
    vendor_tier: str = ""
    """As the model's own answer calls it: Bedrock's word counts before it."""

    optimized: bool = False
    problem: str = ""
    models: list[str] = []
    """Those that the answer names, two at most."""

    def note(self, problem: str) -> None:
        """Keep why something is missing: the first reason."""
        self.problem = self.problem or problem

    def model(self, name: str) -> None:
        """A model that the answer names."""
        if name and len(self.models) < 2 and name not in self.models:
            self.models.append(name)

    def add_units(self, name: str, count: int, source: Source = Source.BODY) -> None:
        """Units of a kind that were used besides those already known."""
        self.units[name] = self.units.get(name, 0) + count
        self.seen = source

    def usage(self) -> Usage:
        """All of it, combined: see Note [Combining]."""
        told = self.body
        fresh, read, write, output = told.input, told.read, told.write, told.output
        source = None if fresh is None and output is None else _BODY
        if self.headers is not None or self.metrics is not None:
            unclear = fresh is None or (read is None and write is None)
            for place, other in (
                (Source.HEADERS, self.headers),
                (Source.METRICS, self.metrics),
            ):
                if other is None:
                    continue
                used = False
                if other.input is not None and (
                    fresh is None or (unclear and (other.read or other.write))
                ):
                    fresh, read, write = other.input, other.read, other.write
                    unclear = read is None and write is None
                    used = True
                if output is None and other.output is not None:
                    output, used = other.output, True
                if used and source is None:
                    source = place
        write = write or 0
        write_1h = min(told.write_1h, write) if told.write_1h else 0
        units, models = self.units, self.models
        if self.seen is not None and (source is None or self.seen is _BODY):
            source = self.seen
        return Usage(
            fresh or 0,
            output or 0,
            read or 0,
            write - write_1h,
            write_1h,
            tuple(sorted(item for item in units.items() if item[1])) if units else (),
            self.tier or self.header_tier or self.vendor_tier,
            self.optimized,
            models[0] if len(models) == 1 else "",
            source or _UNKNOWN,
            self.problem,
        )

    # Reading single values

    def count(self, raw: msgspec.Raw, name: str) -> int | None:
        """
        A count as JSON has it.

        :returns: None if there is none; -1, and a note, if it is no count.
        """
        data = bytes(raw)
        if data.isdigit() and len(data) <= 16 and (number := int(data)) <= MAX_COUNT:
            return number
        if not data or data == b"null":
            return None
        self.note(f"{name} is not a count")
        return -1


@dataclass(frozen=True, slots=True)
class Readable:
    """A kind of document that tells usage."""

    read: Callable[[bytes, Tally], None]
    """Adds what a document tells. Raises msgspec's errors and RecursionError if it
    cannot be read."""

    wanted: Wanted
    """What it reads of one."""


# The shapes of documents
#
# Counts are taken as they are written (Raw), so that nothing but digits passes:
# no floats, no strings, nothing of any length; and what is no count spoils nothing
# beside it. Of a name that comes twice the last counts, as for every client.

_ABSENT = msgspec.Raw()

_Raw = msgspec.Raw


_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)] | None
"""A count where there is nothing but counts: for what is read all the time."""


class _CacheDetail(msgspec.Struct, frozen=True):
    ttl: _Raw = _ABSENT
    inputTokens: _Raw = _ABSENT


class _CacheCreation(msgspec.Struct, frozen=True):
    ephemeral_5m_input_tokens: _Raw = _ABSENT
    ephemeral_1h_input_tokens: _Raw = _ABSENT


class _Details(msgspec.Struct, frozen=True):
    cached_tokens: _Raw = _ABSENT
    cache_write_tokens: _Raw = _ABSENT
    reasoning_tokens: _Raw = _ABSENT


class _ServerTools(msgspec.Struct, frozen=True):
    web_search_requests: _Raw = _ABSENT


class _Iteration(msgspec.Struct, frozen=True):
    type: _Raw = _ABSENT
    input_tokens: _Raw = _ABSENT
    output_tokens: _Raw = _ABSENT
    cache_read_input_tokens: _Raw = _ABSENT
    cache_creation_input_tokens: _Raw = _ABSENT
    cache_creation: _CacheCreation | None = None


class _Tokens(msgspec.Struct, frozen=True):
    """``usage`` in all its shapes; one answer has one of them."""

    # Converse, Nova
    inputTokens: _Raw = _ABSENT
    outputTokens: _Raw = _ABSENT
    cacheReadInputTokens: _Raw = _ABSENT
    cacheWriteInputTokens: _Raw = _ABSENT
    cacheReadInputTokenCount: _Raw = _ABSENT
    cacheWriteInputTokenCount: _Raw = _ABSENT
    cacheDetails: list[_CacheDetail] | None = None
    # Anthropic; OpenAI's Responses
    input_tokens: _Raw = _ABSENT
    output_tokens: _Raw = _ABSENT
    cache_read_input_tokens: _Raw = _ABSENT
    cache_creation_input_tokens: _Raw = _ABSENT
    cache_creation: _CacheCreation | None = None
    iterations: list[_Iteration] | None = None
    server_tool_use: _ServerTools | None = None
    service_tier: _Raw = _ABSENT
    input_tokens_details: _Details | None = None
    # OpenAI's Chat Completions, and whoever speaks like it
    prompt_tokens: _Raw = _ABSENT
    completion_tokens: _Raw = _ABSENT
    total_tokens: _Raw = _ABSENT
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Metrics(msgspec.Struct, frozen=True):
    inputTokenCount: _Raw = _ABSENT
    outputTokenCount: _Raw = _ABSENT
    cacheReadInputTokenCount: _Raw = _ABSENT
    cacheWriteInputTokenCount: _Raw = _ABSENT


class _Message(msgspec.Struct, frozen=True):
    """What holds usage one step further down."""

    usage: _Tokens | None = None
    model: _Raw = _ABSENT
    service_tier: _Raw = _ABSENT


class _Result(msgspec.Struct, frozen=True):
    tokenCount: _Raw = _ABSENT


class _Answer(msgspec.Struct, frozen=True):
    """A model's own answer, whole or one event of a stream, of any family."""

    usage: _Tokens | None = None
    message: _Raw = _ABSENT
    response: _Raw = _ABSENT
    metadata: _Raw = _ABSENT
    model: _Raw = _ABSENT
    service_tier: _Raw = _ABSENT
    metrics: _Metrics | None = msgspec.field(name="amazon-bedrock-invocationMetrics", default=None)
    trace: _Raw = msgspec.field(name="amazon-bedrock-trace", default=_ABSENT)
    # Titan
    inputTextTokenCount: _Raw = _ABSENT
    totalOutputTextTokenCount: _Raw = _ABSENT
    results: _Raw = _ABSENT
    # Nova's embeddings
    inputTokenCount: _Raw = _ABSENT
    # Llama
    prompt_token_count: _Raw = _ABSENT
    generation_token_count: _Raw = _ABSENT
    # Stability, Titan, Nova Canvas; the first Stable Diffusion
    images: _Raw = _ABSENT
    artifacts: _Raw = _ABSENT


class _Latency(msgspec.Struct, frozen=True):
    latency: _Raw = _ABSENT


class _Tier(msgspec.Struct, frozen=True):
    type: _Raw = _ABSENT


class _Router(msgspec.Struct, frozen=True):
    invokedModelId: _Raw = _ABSENT


class _GuardrailTrace(msgspec.Struct, frozen=True):
    # Converse's names; InvokeModel's.
    inputAssessment: _Raw = _ABSENT
    outputAssessments: _Raw = _ABSENT
    input: _Raw = _ABSENT
    outputs: _Raw = _ABSENT


class _InvokeTrace(msgspec.Struct, frozen=True):
    guardrail: _GuardrailTrace | None = None


class _ConverseTrace(msgspec.Struct, frozen=True):
    guardrail: _GuardrailTrace | None = None
    promptRouter: _Router | None = None


class _ConverseTokens(msgspec.Struct, frozen=True):
    """Converse's ``usage``, when all is as it should be."""

    inputTokens: _Count = None
    outputTokens: _Count = None
    cacheReadInputTokens: _Count = None
    cacheWriteInputTokens: _Count = None
    cacheReadInputTokenCount: _Count = None
    cacheWriteInputTokenCount: _Count = None
    cacheDetails: list[_CacheDetail] | None = None


class _Conversation(msgspec.Struct, frozen=True):
    """The answer to Converse, or the last event of ConverseStream."""

    usage: _ConverseTokens | None = None
    trace: _Raw = _ABSENT
    performanceConfig: _Raw = _ABSENT
    serviceTier: _Raw = _ABSENT


class _OddConversation(msgspec.Struct, frozen=True):
    """The same, when it is not."""

    usage: _Tokens | None = None
    trace: _Raw = _ABSENT
    performanceConfig: _Raw = _ABSENT
    serviceTier: _Raw = _ABSENT


class _Units(msgspec.Struct, frozen=True):
    usage: dict[str, _Raw] | None = None


class _CheckUnits(msgspec.Struct, frozen=True):
    textUnits: _Raw = _ABSENT


class _Checks(msgspec.Struct, frozen=True):
    usage: dict[str, _CheckUnits | None] | None = None


class _Asked(msgspec.Struct, frozen=True):
    foundationModel: _Raw = _ABSENT


class _Given(msgspec.Struct, frozen=True):
    metadata: _Message | None = None


class _Step(msgspec.Struct, frozen=True):
    modelInvocationInput: _Asked | None = None
    modelInvocationOutput: _Given | None = None


class _Trace(msgspec.Struct, frozen=True):
    preProcessingTrace: _Step | None = None
    orchestrationTrace: _Step | None = None
    postProcessingTrace: _Step | None = None
    routingClassifierTrace: _Step | None = None


class _TraceEvent(msgspec.Struct, frozen=True):
    trace: _Trace | None = None


class _Elements(msgspec.Struct, frozen=True):
    agentTraces: list[_TraceEvent] | None = None


class _Dependency(msgspec.Struct, frozen=True):
    traceElements: _Elements | None = None


class _FlowTrace(msgspec.Struct, frozen=True):
    nodeDependencyTrace: _Dependency | None = None


class _FlowEvent(msgspec.Struct, frozen=True):
    trace: _FlowTrace | None = None


class _RankingModel(msgspec.Struct, frozen=True):
    modelArn: _Raw = _ABSENT


class _RankingBy(msgspec.Struct, frozen=True):
    modelConfiguration: _RankingModel | None = None


class _RankingConfiguration(msgspec.Struct, frozen=True):
    bedrockRerankingConfiguration: _RankingBy | None = None


class _Ranking(msgspec.Struct, frozen=True):
    """A request: Rerank's, or one for a model that ranks."""

    sources: list[_Raw] | None = None
    documents: list[_Raw] | None = None
    rerankingConfiguration: _RankingConfiguration | None = None


class _ImageToEmbed(msgspec.Struct, frozen=True):
    detailLevel: str = ""


class _ToEmbed(msgspec.Struct, frozen=True):
    image: _ImageToEmbed | None = None
    audio: _Raw = _ABSENT
    video: _Raw = _ABSENT


class _Embedding(msgspec.Struct, frozen=True):
    """A request to Nova's embeddings."""

    singleEmbeddingParams: _ToEmbed | None = None


class _VideoConfig(msgspec.Struct, frozen=True):
    durationSeconds: Annotated[int, msgspec.Meta(ge=0, le=86_400)] = 0


class _Shots(msgspec.Struct, frozen=True):
    shots: list[_Raw] = []


class _Video(msgspec.Struct, frozen=True):
    taskType: str = ""
    videoGenerationConfig: _VideoConfig | None = None
    multiShotManualParams: _Shots | None = None


class _Job(msgspec.Struct, frozen=True):
    """A request to StartAsyncInvoke."""

    modelId: _Raw = _ABSENT
    modelInput: _Video | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_decode_conversation = msgspec.json.Decoder(_Conversation).decode
_decode_odd_conversation = msgspec.json.Decoder(_OddConversation).decode
_decode_tier = msgspec.json.Decoder(_Tier).decode
_decode_latency = msgspec.json.Decoder(_Latency).decode
_decode_invoke_trace = msgspec.json.Decoder(_InvokeTrace).decode
_decode_converse_trace = msgspec.json.Decoder(_ConverseTrace).decode
_decode_units = msgspec.json.Decoder(_Units).decode
_decode_checks = msgspec.json.Decoder(_Checks).decode
_decode_trace_event = msgspec.json.Decoder(_TraceEvent).decode
_decode_flow_event = msgspec.json.Decoder(_FlowEvent).decode
_decode_ranking = msgspec.json.Decoder(_Ranking).decode
_decode_to_embed = msgspec.json.Decoder(_Embedding).decode
_decode_job = msgspec.json.Decoder(_Job).decode
_results = msgspec.json.Decoder(list[_Result]).decode
_decode_list = msgspec.json.Decoder(list[_Raw]).decode
_decode_text = msgspec.json.Decoder(str).decode
_decode_any = msgspec.json.Decoder().decode

_UNREADABLE = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)


# Tokens


def _told(
    fresh: int | None,
    output: int | None,
    read: int | None = None,
    write: int | None = None,
    write_1h: int | None = None,
) -> Told:
    """Counts put together; a part of the input that is none (-1) spoils all of it."""
    if -1 in (fresh, read, write):
        fresh = read = write = None
    return Told(
        fresh, None if output == -1 else output, read, write, None if write_1h == -1 else write_1h
    )


def _tokens_of_bedrock(usage: _Tokens, tally: Tally) -> Told:
    count = tally.count
    # Nova has one pair of names, Converse the other, and real answers have both.
    read = count(usage.cacheReadInputTokens, "cacheReadInputTokens")
    if read is None:
        read = count(usage.cacheReadInputTokenCount, "cacheReadInputTokenCount")
    write = count(usage.cacheWriteInputTokens, "cacheWriteInputTokens")
    if write is None:
        write = count(usage.cacheWriteInputTokenCount, "cacheWriteInputTokenCount")
    write_1h = None if usage.cacheDetails is None else _written_1h(usage.cacheDetails, tally)
    return _told(
        count(usage.inputTokens, "inputTokens"),
        count(usage.outputTokens, "outputTokens"),
        read,
        write,
        write_1h,
    )


def _plain_tokens(usage: _ConverseTokens, tally: Tally) -> Told:
    """The same where every count is one."""
    fresh, output, details = usage.inputTokens, usage.outputTokens, usage.cacheDetails
    write_1h = None if details is None else _written_1h(details, tally)
    if fresh is None:
        return Told(None, output, None, None, write_1h)
    read, write = usage.cacheReadInputTokens, usage.cacheWriteInputTokens
    if read is None:
        read = usage.cacheReadInputTokenCount
    if write is None:
        write = usage.cacheWriteInputTokenCount
    return Told(fresh, output, read, write, write_1h)


def _written_1h(details: list[_CacheDetail], tally: Tally) -> int | None:
    written = None
    for detail in details:
        if bytes(detail.ttl) == b'"1h"':
            more = tally.count(detail.inputTokens, "cacheDetails.inputTokens")
            if more is not None and more > 0:
                written = (written or 0) + more
    return written


def _tokens_of_chat(usage: _Tokens, tally: Tally) -> Told:
    count = tally.count
    told = _without_cached(
        count(usage.prompt_tokens, "prompt_tokens"),
        count(usage.completion_tokens, "completion_tokens"),
        usage.prompt_tokens_details,
        tally,
    )
    # Some leave the tokens of thinking out of completion_tokens and have them in
    # total_tokens (xAI); it is the sum that says so.
    if usage.completion_tokens_details is not None and told.output is not None:
        reasoning = count(usage.completion_tokens_details.reasoning_tokens, "reasoning_tokens")
        if reasoning is not None and reasoning > 0:
            total = count(usage.total_tokens, "total_tokens")
            prompt = count(usage.prompt_tokens, "prompt_tokens")
            if prompt is not None and total == prompt + told.output + reasoning:
                told.output += reasoning
    return told


def _tokens_of_responses(usage: _Tokens, tally: Tally) -> Told:
    return _without_cached(
        tally.count(usage.input_tokens, "input_tokens"),
        tally.count(usage.output_tokens, "output_tokens"),
        usage.input_tokens_details,
        tally,
    )


def _without_cached(
    prompt: int | None, output: int | None, details: _Details | None, tally: Tally
) -> Told:
    """OpenAI's count of the prompt includes what was read from and written to a cache."""
    if details is None:
        return _told(prompt, output)
    read = tally.count(details.cached_tokens, "cached_tokens")
    write = tally.count(details.cache_write_tokens, "cache_write_tokens")
    told = _told(prompt, output, read, write)
    if told.input is not None:
        told.input -= (told.read or 0) + (told.write or 0)
        if told.input < 0:
            tally.note("there are more cached tokens than tokens")
            told.input = told.read = told.write = None
    return told


def _tokens_of_anthropic(usage: _Tokens | _Iteration, tally: Tally) -> Told:
    count = tally.count
    write = count(usage.cache_creation_input_tokens, "cache_creation_input_tokens")
    write_1h = None
    if usage.cache_creation is not None:
        write_1h = count(usage.cache_creation.ephemeral_1h_input_tokens, "ephemeral_1h")
        if write is None:
            write_5m = count(usage.cache_creation.ephemeral_5m_input_tokens, "ephemeral_5m")
            if write_1h is not None and write_5m is not None:
                write = -1 if -1 in (write_1h, write_5m) else write_1h + write_5m
    told = _told(
        count(usage.input_tokens, "input_tokens"),
        count(usage.output_tokens, "output_tokens"),
        count(usage.cache_read_input_tokens, "cache_read_input_tokens"),
        write,
        write_1h,
    )
    if isinstance(usage, _Tokens) and usage.iterations is not None:
        # The figures leave out what compaction took, and that is billed.
        # Source: Anthropic, "Compaction", "Understanding usage".
        for each in usage.iterations:
            if bytes(each.type) == b'"compaction"':
                _add(told, _tokens_of_anthropic(each, tally))
    return told


def _add(sum_: Told, more: Told) -> None:
    for name in ("input", "output", "read", "write", "write_1h"):
        value = getattr(more, name)
        if value is not None:
            setattr(sum_, name, (getattr(sum_, name) or 0) + value)


def _take_usage(usage: _Tokens, tally: Tally) -> None:
    """Note what an event of a stream, or the only body, says. See Note [Combining]."""
    known = tally.body
    if usage.inputTokens is not _ABSENT or usage.outputTokens is not _ABSENT:
        _replace(known, _tokens_of_bedrock(usage, tally))
    elif usage.prompt_tokens is not _ABSENT or usage.completion_tokens is not _ABSENT:
        _replace(known, _tokens_of_chat(usage, tally))
    elif usage.input_tokens_details is not None:
        _replace(known, _tokens_of_responses(usage, tally))
    else:
        told = _tokens_of_anthropic(usage, tally)
        if known.input is None and known.output is None:
            tally.body = told
            return _take_extras(usage, tally)
        for name in ("input", "output", "read", "write", "write_1h"):
            value, before = getattr(told, name), getattr(known, name)
            if value is not None and (before is None or value > before):
                setattr(known, name, value)
    _take_extras(usage, tally)


def _take_extras(usage: _Tokens, tally: Tally) -> None:
    tools = usage.server_tool_use
    if tools is not None:
        searches = tally.count(tools.web_search_requests, "web_search_requests")
        if searches is not None and searches > 0:
            tally.units["searches"] = max(searches, tally.units.get("searches", 0))
    _take_tier(usage.service_tier, tally)


def _replace(known: Told, told: Told) -> None:
    if told.input is not None:
        known.input, known.read, known.write = told.input, told.read, told.write
    if told.output is not None:
        known.output = told.output
    if told.write_1h is not None:
        known.write_1h = told.write_1h


# Texts

_TIER = re.compile(r"[A-Za-z0-9_-]{1,32}")
_MAX_TEXT_BYTES = 4096
_USUAL_TIERS = {"standard": "default", "standard_only": "default", "auto": ""}


def _text(raw: _Raw) -> str:
    """A text as JSON has it; empty, if it is none."""
    data = bytes(raw)
    if data[:1] != b'"' or len(data) > _MAX_TEXT_BYTES:
        return ""
    try:
        return _decode_text(data)
    except _UNREADABLE:
        return ""


def _take_tier(raw: _Raw, tally: Tally) -> None:
    if raw is not _ABSENT:
        tally.vendor_tier = tier_name(_text(raw)) or tally.vendor_tier


def tier_name(text: str) -> str:
    """A tier as :attr:`Usage.tier` calls it; empty if it is none."""
    return _USUAL_TIERS.get(text, text) if _TIER.fullmatch(text) else ""


# Documents


def _read_conversation(document: bytes, tally: Tally) -> None:
    conversation: _Conversation | _OddConversation
    try:
        # A -0 would pass for 0, which is known only as it is written. (find(): before it
        # looks, "in" makes an error and drops it.)
        odd = document.find(b"-0") >= 0
        decode = _decode_odd_conversation if odd else _decode_conversation
        conversation = decode(document)
    except msgspec.ValidationError:
        conversation = _decode_odd_conversation(document)
    usage = conversation.usage
    if usage is not None:
        if tally.units:
            tally.units.clear()
        if isinstance(usage, _ConverseTokens):
            tally.body = _plain_tokens(usage, tally)
        else:
            tally.body = Told()
            _replace(tally.body, _tokens_of_bedrock(usage, tally))
    # What is beside the tokens never spoils them.
    try:
        if conversation.serviceTier is not _ABSENT:
            tally.tier = tier_name(_text(_decode_tier(conversation.serviceTier).type))
        if conversation.performanceConfig is not _ABSENT:
            latency = _decode_latency(conversation.performanceConfig).latency
            tally.optimized = bytes(latency) == b'"optimized"'
        if conversation.trace is not _ABSENT:
            trace = _decode_converse_trace(conversation.trace)
            if trace.promptRouter is not None:
                tally.model(_text(trace.promptRouter.invokedModelId))
            _read_guardrail_trace(trace.guardrail, tally)
    except _UNREADABLE as error:
        tally.note(f"a part of the answer is not as expected: {error}")


def _read_answer(document: bytes, tally: Tally) -> None:
    answer = _decode_answer(document)
    if answer.usage is not None:
        _take_usage(answer.usage, tally)
    for holder in (answer.message, answer.metadata):
        # message_start of Anthropic's, the last event of Nova's.
        if holder is not _ABSENT and b'"usage"' in (data := bytes(holder)) and data[:1] == b"{":
            message = _decode_message(data)
            if message.usage is not None:
                _take_usage(message.usage, tally)
    if answer.metrics is not None:
        tally.metrics = _told(
            tally.count(answer.metrics.inputTokenCount, "inputTokenCount"),
            tally.count(answer.metrics.outputTokenCount, "outputTokenCount"),
            tally.count(answer.metrics.cacheReadInputTokenCount, "cacheReadInputTokenCount"),
            tally.count(answer.metrics.cacheWriteInputTokenCount, "cacheWriteInputTokenCount"),
        )
    _take_tier(answer.service_tier, tally)
    _read_plain_counts(answer, tally)
    if answer.images is not _ABSENT or answer.artifacts is not _ABSENT:
        _count_images(answer, tally)
    if answer.trace is not _ABSENT:
        try:
            _read_guardrail_trace(_decode_invoke_trace(answer.trace).guardrail, tally)
        except _UNREADABLE as error:
            tally.note(f"the guardrail's trace is not as expected: {error}")


def _read_plain_counts(answer: _Answer, tally: Tally) -> None:
    """Counts that stand in the answer itself: Titan, Llama, embeddings."""
    count = tally.count
    if answer.inputTextTokenCount is not _ABSENT:
        fresh = count(answer.inputTextTokenCount, "inputTextTokenCount")
        output = count(answer.totalOutputTextTokenCount, "totalOutputTextTokenCount")
        if bytes(answer.results)[:1] == b"[":
            results = [count(each.tokenCount, "tokenCount") for each in _results(answer.results)]
            known = [each for each in results if each is not None and each >= 0]
            if results and len(known) == len(results):
                output = sum(known)
    elif answer.prompt_token_count is not _ABSENT or answer.generation_token_count is not _ABSENT:
        fresh = count(answer.prompt_token_count, "prompt_token_count")
        output = count(answer.generation_token_count, "generation_token_count")
    elif answer.inputTokenCount is not _ABSENT:
        fresh, output = count(answer.inputTokenCount, "inputTokenCount"), None
    else:
        return
    _replace(tally.body, _told(fresh, output))


def _count_images(answer: _Answer, tally: Tally) -> None:
    # What is no string is no image: an embedding of images tells their sizes there.
    images = 0
    if bytes(answer.images)[:1] == b"[":
        images = sum(bytes(each)[:1] == b'"' for each in _decode_list(answer.images))
    if bytes(answer.artifacts)[:1] == b"[":
        images += len(_decode_list(answer.artifacts))
    if images:
        tally.add_units("images", images)


def _read_openai(document: bytes, tally: Tally) -> None:
    answer = _decode_answer(document)
    tally.model(_text(answer.model))
    _take_tier(answer.service_tier, tally)
    if answer.usage is not None:
        _take_usage(answer.usage, tally)
    for holder in (answer.message, answer.response):
        # message_start of Anthropic's, the last event of Responses.
        if holder is not _ABSENT and (data := bytes(holder))[:1] == b"{":
            message = _decode_message(data)
            tally.model(_text(message.model))
            _take_tier(message.service_tier, tally)
            if message.usage is not None:
                _take_usage(message.usage, tally)


# Guardrails


def _add_guardrail_units(usage: dict[str, _Raw], tally: Tally) -> None:
    """All that is counted in units; ``automatedReasoningPolicies`` are policies."""
    tally.seen = Source.BODY
    for name, raw in usage.items():
        if name.endswith("Units"):
            count = tally.count(raw, name)
            if count is not None and count > 0:
                tally.add_units(f"guardrail.{name}", count)


def _read_guardrail(document: bytes, tally: Tally) -> None:
    usage = _decode_units(document).usage
    if usage is not None:
        _add_guardrail_units(usage, tally)


def _read_guardrail_checks(document: bytes, tally: Tally) -> None:
    usage = _decode_checks(document).usage
    if usage is None:
        return
    tally.seen = Source.BODY
    for name, units in usage.items():
        if units is not None:
            count = tally.count(units.textUnits, name)
            if count is not None and count > 0:
                tally.add_units(f"guardrail.{name}", count)


def _read_guardrail_trace(trace: _GuardrailTrace | None, tally: Tally) -> None:
    """
    Add all ``invocationMetrics.usage`` of what was assessed: by guardrail, and
    for the output also in lists.
    """
    if trace is None:
        return
    rest: list[object] = [
        _decode_any(part)
        for part in (trace.inputAssessment, trace.outputAssessments, trace.input, trace.outputs)
        if part is not _ABSENT
    ]
    while rest:
        value = rest.pop()
        if isinstance(value, list):
            rest += value
        elif isinstance(value, dict):
            metrics = value.pop("invocationMetrics", None)
            usage = metrics.get("usage") if isinstance(metrics, dict) else None
            if isinstance(usage, dict):
                _add_traced_units(usage, tally)
            rest += value.values()


def _add_traced_units(usage: dict[str, object], tally: Tally) -> None:
    for name, count in usage.items():
        if name.endswith("Units") and count is not None:
            if isinstance(count, int) and count is not True and 0 <= count <= MAX_COUNT:
                unit = f"guardrail.{name}"
                tally.units[unit] = tally.units.get(unit, 0) + count
            else:
                tally.note(f"{name} is not a count")


# Agents


def _read_agent_trace(document: bytes, tally: Tally) -> None:
    # Most trace events are of something else.
    if b'"modelInvocation' in document:
        _add_trace(_decode_trace_event(document), tally)


def _read_flow_trace(document: bytes, tally: Tally) -> None:
    if b'"modelInvocation' not in document:
        return
    trace = _decode_flow_event(document).trace
    dependency = trace.nodeDependencyTrace if trace is not None else None
    elements = dependency.traceElements if dependency is not None else None
    for event in (elements.agentTraces if elements is not None else None) or ():
        _add_trace(event, tally)


def _add_trace(event: _TraceEvent, tally: Tally) -> None:
    """
    Add what the models of one step of an agent used.

    Only ``modelInvocationOutput``: what ``observation`` tells of a collaborator
    or a final response is told by their own steps, too.
    """
    trace = event.trace
    if trace is None:
        return
    for step in (
        trace.preProcessingTrace,
        trace.orchestrationTrace,
        trace.postProcessingTrace,
        trace.routingClassifierTrace,
    ):
        if step is None:
            continue
        if step.modelInvocationInput is not None:
            tally.model(_text(step.modelInvocationInput.foundationModel))
        given = step.modelInvocationOutput
        if given is not None and given.metadata is not None and given.metadata.usage is not None:
            _add(tally.body, _tokens_of_bedrock(given.metadata.usage, tally))


# Requests, where the answer does not say what is billed

_DOCUMENTS_A_QUERY = 100


def read_ranking(request: bytes, tally: Tally) -> None:
    """
    Note the queries of a rerank, and its model: the answer says nothing of them.

    A query is for up to 100 documents; with more it counts as several. A document
    of more than 512 tokens counts as several, too, which nothing tells.
    Source: Amazon Bedrock pricing, Rerank.

    :param request: the body for Rerank, or for InvokeModel of a model that ranks.
        If it is not whole, nothing is noted.
    """
    try:
        asked = _decode_ranking(request)
    except _UNREADABLE:
        return
    documents = asked.sources if asked.sources is not None else asked.documents
    if documents:
        tally.add_units("queries", -(-len(documents) // _DOCUMENTS_A_QUERY), Source.REQUEST)
    configuration = asked.rerankingConfiguration
    model = None if configuration is None else configuration.bedrockRerankingConfiguration
    if model is not None and model.modelConfiguration is not None:
        tally.model(_text(model.modelConfiguration.modelArn))


_WANTED_TO_EMBED: Wanted = {
    b"image": {b"detailLevel": Take.WHOLE},
    b"audio": {},
    b"video": {},
}
_IMAGE_TO_EMBED = re.compile(rb'"inputImage"\s*:\s*"')


def _read_titan_embedding(request: bytes, tally: Tally) -> None:
    """An image is billed beside the text, and the answer tells the text's tokens only."""
    if _IMAGE_TO_EMBED.search(request) is not None:
        tally.add_units("input_images", 1, Source.REQUEST)


_INPUT_TYPE = re.compile(rb'"inputType"\s*:\s*"(text|image)"')


def _read_marengo(request: bytes, tally: Tally) -> None:
    """A text and an image have a price each."""
    match = _INPUT_TYPE.search(request)
    if match is not None:
        unit = "queries" if match[1] == b"text" else "input_images"
        tally.add_units(unit, 1, Source.REQUEST)


def _read_nova_embedding(request: bytes, tally: Tally) -> None:
    """An image has a price; how long audio and video are nothing tells."""
    excerpt = Excerpt({b"singleEmbeddingParams": _WANTED_TO_EMBED})
    excerpt.feed(request)
    try:
        asked = _decode_to_embed(excerpt.result()).singleEmbeddingParams
    except _UNREADABLE:
        return
    if asked is None:
        return
    if asked.image is not None:
        detail = asked.image.detailLevel
        plain = detail == "STANDARD_IMAGE" or (detail == "" and excerpt.complete)
        tally.add_units("input_images" if plain else "document_images", 1, Source.REQUEST)
    for name, given in (("audio", asked.audio), ("video", asked.video)):
        if bytes(given)[:1] == b"{":
            tally.add_units(name, 1, Source.REQUEST)


_SHOT_S = 6
"""What each shot of a video is long."""


def _read_async_start(request: bytes, tally: Tally) -> None:
    """
    Note the model, and how long a video Nova Reel is to make. It is billed by the
    second when it is made: a job that fails later costs less than this says.

    Source: AWS, Nova user guide, "Video generation access and usage".
    """
    excerpt = Excerpt(
        {
            b"modelId": _WHOLE,
            b"modelInput": {
                b"taskType": _WHOLE,
                b"videoGenerationConfig": {b"durationSeconds": _WHOLE},
                b"multiShotManualParams": {b"shots": Take.KINDS},
            },
        }
    )
    excerpt.feed(request)
    try:
        job = _decode_job(excerpt.result())
    except _UNREADABLE:
        return
    model, asked = _text(job.modelId), job.modelInput
    tally.model(model)
    if asked is None or "nova-reel" not in model:
        return
    if asked.taskType != "MULTI_SHOT_MANUAL":
        config = asked.videoGenerationConfig
        seconds = config.durationSeconds if config is not None else 0
    elif excerpt.complete and asked.multiShotManualParams is not None:
        seconds = _SHOT_S * len(asked.multiShotManualParams.shots)
    else:
        seconds = 0
    if seconds:
        tally.add_units("output_video_ms", seconds * 1000, Source.REQUEST)


READ_REQUESTS: Mapping[str, tuple[tuple[str, Callable[[bytes, Tally], None]], ...]] = {
    "Rerank": (("", read_ranking),),
    "InvokeModel": (
        ("rerank", read_ranking),
        ("titan-embed-image", _read_titan_embedding),
        ("marengo-embed", _read_marengo),
        ("nova-2-multimodal-embeddings", _read_nova_embedding),
    ),
    "StartAsyncInvoke": (("", _read_async_start),),
}
"""Operations of which a request tells usage: what is in the model's id, and what
takes the request's body, or its beginning."""


# What is wanted of documents that are too long to be held

_WHOLE = Take.WHOLE

_STEPS = (
    b"preProcessingTrace",
    b"orchestrationTrace",
    b"postProcessingTrace",
    b"routingClassifierTrace",
)
_WANTED_OF_TRACE: Wanted = {
    b"trace": {
        step: {
            b"modelInvocationInput": {b"foundationModel": _WHOLE},
            b"modelInvocationOutput": {b"metadata": {b"usage": _WHOLE}},
        }
        for step in _STEPS
    }
}

read_conversation = Readable(
    _read_conversation,
    {
        b"usage": _WHOLE,
        b"trace": {
            b"guardrail": {b"inputAssessment": _WHOLE, b"outputAssessments": _WHOLE},
            b"promptRouter": _WHOLE,
        },
        b"performanceConfig": _WHOLE,
        b"serviceTier": _WHOLE,
    },
)
"""Converse, and the ``metadata`` of ConverseStream."""

read_answer = Readable(
    _read_answer,
    {
        b"usage": _WHOLE,
        b"message": {b"usage": _WHOLE},
        b"metadata": {b"usage": _WHOLE},
        b"service_tier": _WHOLE,
        b"amazon-bedrock-invocationMetrics": _WHOLE,
        b"amazon-bedrock-trace": {b"guardrail": {b"input": _WHOLE, b"outputs": _WHOLE}},
        b"inputTextTokenCount": _WHOLE,
        b"totalOutputTextTokenCount": _WHOLE,
        b"results": {b"tokenCount": _WHOLE},
        b"inputTokenCount": _WHOLE,
        b"prompt_token_count": _WHOLE,
        b"generation_token_count": _WHOLE,
        b"images": Take.KINDS,
        b"artifacts": Take.KINDS,
    },
)
"""InvokeModel, and what the chunks of its stream hold, of all families."""

_WANTED_OF_MESSAGE: Wanted = {b"usage": _WHOLE, b"model": _WHOLE, b"service_tier": _WHOLE}

read_openai = Readable(
    _read_openai,
    {
        b"usage": _WHOLE,
        b"model": _WHOLE,
        b"service_tier": _WHOLE,
        b"message": _WANTED_OF_MESSAGE,
        b"response": _WANTED_OF_MESSAGE,
    },
)
"""OpenAI's and Anthropic's own routes, and the events of their streams."""

read_guardrail = Readable(_read_guardrail, {b"usage": _WHOLE})
"""ApplyGuardrail."""

read_guardrail_checks = Readable(_read_guardrail_checks, {b"usage": _WHOLE})
"""InvokeGuardrailChecks."""

read_agent_trace = Readable(_read_agent_trace, _WANTED_OF_TRACE)
"""The ``trace`` events of agents."""

read_flow_trace = Readable(
    _read_flow_trace,
    {
        b"trace": {
            b"nodeDependencyTrace": {b"traceElements": {b"agentTraces": _WANTED_OF_TRACE}},
        }
    },
)
"""The ``flowTraceEvent`` of flows."""
