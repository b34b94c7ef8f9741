"""
Tests for what answers tell of their usage: L{txbedrock.core.usage} through
L{txbedrock.core.meter}, by a table of answers as Bedrock gives them.

Every expected count was worked out by hand from the answer above it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from txbedrock import data
from txbedrock.core import meter as meter_module
from txbedrock.core.eventstream import encode
from txbedrock.core.meter import Meter, is_billed, meter_for
from txbedrock.core.operations import Operation, Operations
from txbedrock.core.usage import Source, Usage

OPERATIONS = {(each.service, each.name): each for each in Operations(data.load("operations"))}

RUNTIME = "bedrock-runtime"
AGENTS = "bedrock-agent-runtime"

JSON = ((b"Content-Type", b"application/json"),)
FRAMES = ((b"Content-Type", b"application/vnd.amazon.eventstream"),)
SSE = ((b"Content-Type", b"text/event-stream; charset=utf-8"),)

BODY, HEADERS, METRICS = Source.BODY, Source.HEADERS, Source.METRICS


def dump(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def event(event_type: str, value: object) -> bytes:
    headers = {
        ":event-type": event_type,
        ":content-type": "application/json",
        ":message-type": "event",
    }
    return encode(headers, dump(value))


def chunks(*events: object) -> bytes:
    """A stream of InvokeModel: events in base64, with padding."""
    return b"".join(
        event("chunk", {"bytes": base64.b64encode(dump(each)).decode(), "p": "abcdefg"})
        for each in events
    )


def sse(*events: dict[str, Any], named: bool = False, done: bool = False) -> bytes:
    """Server-sent events."""
    lines = b""
    for each in events:
        if named:
            lines += b"event: %b\n" % each["type"].encode()
        lines += b"data: %b\n\n" % dump(each)
    return lines + (b"data: [DONE]\n\n" if done else b"")


def counts(**tokens: int) -> tuple[tuple[bytes, bytes], ...]:
    """InvokeModel's token counts in headers."""
    names = {
        "input": b"X-Amzn-Bedrock-Input-Token-Count",
        "output": b"X-Amzn-Bedrock-Output-Token-Count",
        "read": b"X-Amzn-Bedrock-Cache-Read-Input-Token-Count",
        "write": b"X-Amzn-Bedrock-Cache-Write-Input-Token-Count",
    }
    told = tuple((names[name], b"%d" % count) for name, count in tokens.items())
    return (*JSON, *told, (b"X-Amzn-Bedrock-Invocation-Latency", b"812"))


def metrics(**tokens: int) -> dict[str, Any]:
    """What the last chunk of a stream has beside the model's own event."""
    names = {
        "input": "inputTokenCount",
        "output": "outputTokenCount",
        "read": "cacheReadInputTokenCount",
        "write": "cacheWriteInputTokenCount",
    }
    told = {names[name]: count for name, count in tokens.items()}
    return {
        "amazon-bedrock-invocationMetrics": {
            **told,
            "invocationLatency": 2391,
            "firstByteLatency": 512,
        }
    }


@dataclass
class Row:
    """An answer and what it used."""

    name: str
    operation: str
    body: bytes
    usage: Usage
    headers: tuple[tuple[bytes, bytes], ...] = JSON
    model: str = ""
    service: str = RUNTIME
    status: int = 200
    options: dict[str, Any] = field(default_factory=dict)

    def meter(self) -> Meter:
        operation = OPERATIONS[self.service, self.operation]
        return meter_for(operation, self.model, self.status, list(self.headers), **self.options)


ROUTED = "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-3-haiku-20240307-v1:0"
TEXT = 'He said: "usage" is {"usage": {"inputTokens": 99}}, and that\\ is [not] it.'


# Converse

CONVERSED: dict[str, Any] = {
    "metrics": {"latencyMs": 1181},
    "output": {"message": {"content": [{"text": TEXT}], "role": "assistant"}},
    "stopReason": "end_turn",
}

GUARDRAIL = {
    "modelOutput": ["Hello"],
    "inputAssessment": {
        "gr1": {
            "contentPolicy": {"filters": []},
            "invocationMetrics": {
                "guardrailProcessingLatency": 310,
                "usage": {
                    "topicPolicyUnits": 1,
                    "contentPolicyUnits": 2,
                    "wordPolicyUnits": 0,
                    "sensitiveInformationPolicyUnits": 1,
                    "sensitiveInformationPolicyFreeUnits": 1,
                    "contextualGroundingPolicyUnits": 0,
                },
                "guardrailCoverage": {"textCharacters": {"guarded": 1200, "total": 1200}},
            },
        }
    },
    "outputAssessments": {
        "gr1": [
            {"invocationMetrics": {"usage": {"contentPolicyUnits": 3, "topicPolicyUnits": 3}}},
            {"invocationMetrics": {"usage": {"contentPolicyUnits": 4, "topicPolicyUnits": 0}}},
        ]
    },
    "actionReason": "No action.",
}
# 2 + 3 + 4 of content, 1 + 3 + 0 of topics
GUARDRAIL_UNITS = (
    ("guardrail.contentPolicyUnits", 9),
    ("guardrail.sensitiveInformationPolicyFreeUnits", 1),
    ("guardrail.sensitiveInformationPolicyUnits", 1),
    ("guardrail.topicPolicyUnits", 4),
)

CONVERSE_USAGE = {
    "inputTokens": 11,
    "outputTokens": 45,
    "totalTokens": 3186,
    "cacheReadInputTokens": 1030,
    "cacheWriteInputTokens": 2100,
    "cacheDetails": [{"ttl": "1h", "inputTokens": 1600}, {"ttl": "5m", "inputTokens": 500}],
}

CONVERSE_EVENTS = (
    event("messageStart", {"role": "assistant", "p": "abc"})
    + event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": TEXT}})
    + event("contentBlockStop", {"contentBlockIndex": 0})
    + event("messageStop", {"stopReason": "end_turn"})
)

CONVERSE = [
    Row(
        "converse",
        "Converse",
        dump({**CONVERSED, "usage": {"inputTokens": 9, "outputTokens": 31, "totalTokens": 40}}),
        Usage(9, 31, source=BODY),
        # The body's figures are finer than the headers', which disagree here.
        counts(input=1, output=1),
    ),
    Row(
        "converse, cache for an hour, flex, optimised, routed",
        "Converse",
        dump(
            {
                **CONVERSED,
                "performanceConfig": {"latency": "optimized"},
                "serviceTier": {"type": "flex"},
                "trace": {"promptRouter": {"invokedModelId": ROUTED}},
                "usage": CONVERSE_USAGE,
            }
        ),
        Usage(11, 45, 1030, 500, 1600, (), "flex", True, ROUTED, BODY),
    ),
    Row(
        "converse, real: two names for each of the cached",
        "Converse",
        dump(
            {
                **CONVERSED,
                "usage": {
                    "cacheDetails": [{"inputTokens": 7502, "ttl": "5m"}],
                    "cacheReadInputTokenCount": 0,
                    "cacheReadInputTokens": 0,
                    "cacheWriteInputTokenCount": 7502,
                    "cacheWriteInputTokens": 7502,
                    "inputTokens": 18,
                    "outputTokens": 386,
                    "serverToolUsage": {},
                    "totalTokens": 7906,
                },
            }
        ),
        Usage(18, 386, 0, 7502, source=BODY),
    ),
    Row(
        "converse, usage that a tool was called with is not the answer's",
        "Converse",
        dump(
            {
                "output": {
                    "message": {
                        "content": [
                            {
                                "toolUse": {
                                    "input": {"usage": {"inputTokens": 1, "outputTokens": 1}},
                                    "name": "report",
                                    "toolUseId": "t1",
                                }
                            }
                        ],
                        "role": "assistant",
                    }
                },
                "additionalModelResponseFields": {"usage": {"inputTokens": 2}},
                "usage": {"inputTokens": 421, "outputTokens": 77, "totalTokens": 498},
                "stopReason": "tool_use",
            }
        ),
        Usage(421, 77, source=BODY),
    ),
    Row(
        "converse, guardrail",
        "Converse",
        dump(
            {
                **CONVERSED,
                "trace": {"guardrail": GUARDRAIL},
                "usage": {"inputTokens": 9, "outputTokens": 31, "totalTokens": 40},
            }
        ),
        Usage(9, 31, units=GUARDRAIL_UNITS, source=BODY),
    ),
    Row(
        "converse without usage",
        "Converse",
        dump(CONVERSED),
        Usage(),
    ),
    Row(
        "converse-stream",
        "ConverseStream",
        CONVERSE_EVENTS
        + event("metadata", {"metrics": {"latencyMs": 5}, "usage": CONVERSE_USAGE}),
        Usage(11, 45, 1030, 500, 1600, source=BODY),
        FRAMES,
    ),
    Row(
        "converse-stream, guardrail, priority, optimised, routed",
        "ConverseStream",
        CONVERSE_EVENTS
        + event(
            "metadata",
            {
                "usage": {"inputTokens": 9, "outputTokens": 31, "totalTokens": 40},
                "metrics": {"latencyMs": 650},
                "trace": {"guardrail": GUARDRAIL, "promptRouter": {"invokedModelId": ROUTED}},
                "performanceConfig": {"latency": "optimized"},
                "serviceTier": {"type": "priority"},
            },
        ),
        Usage(9, 31, 0, 0, 0, GUARDRAIL_UNITS, "priority", True, ROUTED, BODY),
        FRAMES,
    ),
    Row(
        "converse-stream that ended before its metadata",
        "ConverseStream",
        CONVERSE_EVENTS,
        Usage(),
        FRAMES,
    ),
]


# InvokeModel: Anthropic

CLAUDE: dict[str, Any] = {
    "model": "claude-sonnet-4-5-20250929",
    "id": "msg_bdrk_01AbCdEf",
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": TEXT}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
}
CLAUDE_USAGE = {
    "input_tokens": 12,
    "cache_creation_input_tokens": 3000,
    "cache_read_input_tokens": 4000,
    "cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 2000},
    "output_tokens": 87,
    "service_tier": "standard",
}


def claude_stream(
    start: dict[str, Any], delta: dict[str, Any], stop: dict[str, Any]
) -> tuple[dict[str, Any], ...]:
    """Events of a message, with pings and thinking in it."""
    return (
        {"type": "message_start", "message": {**CLAUDE, "content": [], "usage": start}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text"}},
        {"type": "ping"},
        *(
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": text},
            }
            for text in ("Hel", "lo", TEXT, " a", " b", " c", " d", " e", " f")
        ),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": delta},
        {"type": "message_stop", **stop},
    )


ANTHROPIC = [
    Row(
        "anthropic, cache for 5 minutes and for an hour",
        "InvokeModel",
        dump({**CLAUDE, "usage": CLAUDE_USAGE}),
        Usage(12, 87, 4000, 1000, 2000, tier="default", source=BODY),
        counts(input=12, output=87, read=4000, write=3000),
    ),
    Row(
        "anthropic, priority by Bedrock's word, whatever Anthropic calls it",
        "InvokeModel",
        dump({**CLAUDE, "usage": CLAUDE_USAGE}),
        Usage(12, 87, 4000, 1000, 2000, tier="priority", optimized=True, source=BODY),
        (
            *counts(input=12, output=87, read=4000, write=3000),
            (b"X-Amzn-Bedrock-Service-Tier", b"priority"),
            (b"X-Amzn-Bedrock-PerformanceConfig-Latency", b"optimized"),
        ),
    ),
    Row(
        "anthropic of before the cache: the headers know of it",
        "InvokeModel",
        dump({**CLAUDE, "usage": {"input_tokens": 5, "output_tokens": 6}}),
        Usage(12, 6, 4000, 3000, source=BODY),
        counts(input=12, output=6, read=4000, write=3000),
    ),
    Row(
        "anthropic, compaction is billed besides",
        "InvokeModel",
        dump(
            {
                **CLAUDE,
                "usage": {
                    "input_tokens": 23000,
                    "output_tokens": 1000,
                    "cache_read_input_tokens": 0,
                    "cache_creation_input_tokens": 0,
                    "iterations": [
                        {"type": "compaction", "input_tokens": 180000, "output_tokens": 3500},
                        {"type": "message", "input_tokens": 23000, "output_tokens": 1000},
                    ],
                },
            }
        ),
        # 23,000 + 180,000; 1,000 + 3,500
        Usage(203000, 4500, source=BODY),
    ),
    Row(
        "anthropic stream",
        "InvokeModelWithResponseStream",
        chunks(
            *claude_stream(
                {**CLAUDE_USAGE, "output_tokens": 3},
                {"output_tokens": 87},
                metrics(input=12, output=87, read=4000, write=3000),
            )
        ),
        Usage(12, 87, 4000, 1000, 2000, tier="default", source=BODY),
        FRAMES,
    ),
    Row(
        "anthropic stream, real: cumulative input, a web search",
        "InvokeModelWithResponseStream",
        chunks(
            *claude_stream(
                {"input_tokens": 2679, "cache_creation_input_tokens": 0, "output_tokens": 3},
                {
                    "input_tokens": 10682,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0,
                    "output_tokens": 510,
                    "server_tool_use": {"web_search_requests": 1},
                },
                metrics(input=10682, output=510),
            )
        ),
        Usage(10682, 510, units=(("searches", 1),), tier="flex", source=BODY),
        (*FRAMES, (b"X-Amzn-Bedrock-Service-Tier", b"flex")),
    ),
    Row(
        "anthropic stream, of which message_delta has zeros for the input",
        "InvokeModelWithResponseStream",
        chunks(
            *claude_stream(
                {**CLAUDE_USAGE, "output_tokens": 1},
                {"input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 87},
                {},
            )
        ),
        Usage(12, 87, 4000, 1000, 2000, tier="default", source=BODY),
        FRAMES,
    ),
    Row(
        "anthropic text completion",
        "InvokeModel",
        dump({"type": "completion", "completion": TEXT, "stop_reason": "stop_sequence"}),
        Usage(14, 21, source=HEADERS),
        counts(input=14, output=21),
        "anthropic.claude-v2:1",
    ),
    Row(
        "anthropic text completion, stream",
        "InvokeModelWithResponseStream",
        chunks(
            {"type": "completion", "completion": " Hi", "stop_reason": None},
            {"type": "completion", "completion": "", **metrics(input=14, output=21)},
        ),
        Usage(14, 21, source=METRICS),
        FRAMES,
    ),
]


# InvokeModel: the other families

NOVA_USAGE = {
    "inputTokens": 25,
    "outputTokens": 118,
    "totalTokens": 143,
    "cacheReadInputTokenCount": 640,
    "cacheWriteInputTokenCount": 320,
}
CHAT: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1760000000,
    "model": "openai.gpt-oss-120b-1:0",
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": TEXT, "refusal": None},
        }
    ],
}
CHUNK: dict[str, Any] = {**CHAT, "object": "chat.completion.chunk"}
CHUNK["choices"] = [{"index": 0, "delta": {"content": TEXT}}]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(90)).decode()

FAMILIES = [
    Row(
        "nova",
        "InvokeModel",
        dump(
            {
                "output": {"message": {"content": [{"text": TEXT}], "role": "assistant"}},
                "stopReason": "end_turn",
                "usage": NOVA_USAGE,
            }
        ),
        Usage(25, 118, 640, 320, source=BODY),
        counts(input=25, output=118, read=640, write=320),
    ),
    Row(
        "nova stream",
        "InvokeModelWithResponseStream",
        chunks(
            {"messageStart": {"role": "assistant"}},
            {"contentBlockDelta": {"delta": {"text": TEXT}, "contentBlockIndex": 0}},
            {"contentBlockStop": {"contentBlockIndex": 0}},
            {"messageStop": {"stopReason": "end_turn"}},
            {
                "metadata": {"usage": NOVA_USAGE, "metrics": {}, "trace": {}},
                **metrics(input=25, output=118, read=640, write=320),
            },
        ),
        Usage(25, 118, 640, 320, source=BODY),
        FRAMES,
    ),
    Row(
        "titan text, several results",
        "InvokeModel",
        dump(
            {
                "inputTextTokenCount": 7,
                "results": [
                    {"tokenCount": 30, "outputText": TEXT, "completionReason": "FINISH"},
                    {"tokenCount": 12, "outputText": "b", "completionReason": "LENGTH"},
                ],
            }
        ),
        Usage(7, 42, source=BODY),
        counts(input=7, output=42),
    ),
    Row(
        "titan text stream",
        "InvokeModelWithResponseStream",
        chunks(
            {
                "outputText": "Hello",
                "index": 0,
                "totalOutputTextTokenCount": None,
                "completionReason": None,
                "inputTextTokenCount": None,
            },
            {
                "outputText": TEXT,
                "index": 0,
                "totalOutputTextTokenCount": 42,
                "completionReason": "FINISH",
                "inputTextTokenCount": 7,
                **metrics(input=7, output=42),
            },
        ),
        Usage(7, 42, source=BODY),
        FRAMES,
    ),
    Row(
        "titan embedding",
        "InvokeModel",
        dump({"embedding": [0.25, -1e-05, 0.5], "inputTextTokenCount": 6}),
        Usage(6, 0, source=BODY),
        counts(input=6),
    ),
    Row(
        "nova embedding",
        "InvokeModel",
        dump(
            {
                "embeddings": [{"embeddingType": "TEXT", "embedding": [0.25, 0.5]}],
                "inputTokenCount": 8,
            }
        ),
        Usage(8, 0, source=BODY),
        counts(input=8),
    ),
    Row(
        "cohere embedding: images are their sizes, and none that were made",
        "InvokeModel",
        dump(
            {
                "embeddings": {"float": [[0.25, 0.5]]},
                "id": "1",
                "images": [{"width": 400, "height": 300, "format": "png", "bit_depth": 24}],
                "response_type": "embeddings_by_type",
                "texts": [TEXT],
            }
        ),
        Usage(19, 0, source=HEADERS),
        counts(input=19),
        "cohere.embed-v4:0",
    ),
    Row(
        "cohere command",
        "InvokeModel",
        dump({"id": "1", "generations": [{"text": TEXT, "finish_reason": "COMPLETE"}]}),
        Usage(21, 33, source=HEADERS),
        counts(input=21, output=33),
    ),
    Row(
        "cohere command r stream",
        "InvokeModelWithResponseStream",
        chunks(
            {"is_finished": False, "event_type": "text-generation", "text": TEXT},
            {
                "is_finished": True,
                "event_type": "stream-end",
                "response": {"text": TEXT, "chat_history": [{"role": "USER", "message": "a"}]},
                "finish_reason": "COMPLETE",
                **metrics(input=21, output=33),
            },
        ),
        Usage(21, 33, source=METRICS),
        FRAMES,
    ),
    Row(
        "cohere rerank by InvokeModel: 101 documents are two queries",
        "InvokeModel",
        dump({"results": [{"index": 0, "relevance_score": 0.9}]}),
        Usage(350, 0, units=(("queries", 2),), source=HEADERS),
        counts(input=350),
        "cohere.rerank-v3-5:0",
        options={"request_body": lambda: dump({"query": "q", "documents": ["d"] * 101})},
    ),
    Row(
        "llama",
        "InvokeModel",
        dump(
            {
                "generation": TEXT,
                "prompt_token_count": 31,
                "generation_token_count": 64,
                "stop_reason": "stop",
            }
        ),
        Usage(31, 64, source=BODY),
        counts(input=31, output=64),
    ),
    Row(
        "llama stream",
        "InvokeModelWithResponseStream",
        chunks(
            {"generation": "a", "prompt_token_count": 31, "generation_token_count": 1},
            *(
                {"generation": TEXT, "prompt_token_count": None, "generation_token_count": n}
                for n in range(2, 15)
            ),
            {
                "generation": "",
                "prompt_token_count": None,
                "generation_token_count": 15,
                "stop_reason": "stop",
                **metrics(input=31, output=15),
            },
        ),
        Usage(31, 15, source=BODY),
        FRAMES,
    ),
    Row(
        "mistral text",
        "InvokeModel",
        dump({"outputs": [{"text": TEXT, "stop_reason": "stop"}]}),
        Usage(16, 40, source=HEADERS),
        counts(input=16, output=40),
    ),
    Row(
        "mistral text stream",
        "InvokeModelWithResponseStream",
        chunks(
            {"outputs": [{"text": TEXT, "stop_reason": None}]},
            {"outputs": [{"text": "", "stop_reason": "stop"}], **metrics(input=16, output=40)},
        ),
        Usage(16, 40, source=METRICS),
        FRAMES,
    ),
    *(
        Row(
            f"{name} in OpenAI's shape",
            "InvokeModel",
            dump(
                {
                    **CHAT,
                    "model": name,
                    "usage": {"prompt_tokens": 71, "completion_tokens": 9, "total_tokens": 80},
                }
            ),
            Usage(71, 9, source=BODY),
            counts(input=71, output=9),
        )
        for name in (
            "mistral.mistral-large-3",
            "ai21.jamba-1-5-mini-v1:0",
            "openai.gpt-oss-20b-1:0",
            "qwen.qwen3-32b-v1:0",
            "deepseek.v3-v1:0",
        )
    ),
    Row(
        "OpenAI's shape, read from and written to a cache",
        "InvokeModel",
        dump(
            {
                **CHAT,
                "service_tier": "default",
                "usage": {
                    "prompt_tokens": 2600,
                    "completion_tokens": 300,
                    "total_tokens": 2900,
                    "prompt_tokens_details": {
                        "cached_tokens": 2000,
                        "cache_write_tokens": 400,
                        "audio_tokens": 0,
                    },
                    "completion_tokens_details": {"reasoning_tokens": 250},
                },
            }
        ),
        # 2,600 - 2,000 - 400; reasoning is in the 300
        Usage(200, 300, 2000, 400, tier="default", source=BODY),
    ),
    Row(
        "xai, whose output leaves out its thinking",
        "InvokeModel",
        dump(
            {
                **CHAT,
                "usage": {
                    "prompt_tokens": 32,
                    "completion_tokens": 9,
                    "total_tokens": 135,
                    "prompt_tokens_details": {"cached_tokens": 6},
                    "completion_tokens_details": {"reasoning_tokens": 94},
                },
            }
        ),
        # 32 - 6; 9 + 94, as 32 + 9 + 94 = 135
        Usage(26, 103, 6, 0, source=BODY),
    ),
    Row(
        "OpenAI's shape, stream",
        "InvokeModelWithResponseStream",
        chunks(
            CHUNK,
            CHUNK,
            {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {
                **CHUNK,
                "choices": [],
                "usage": {
                    "prompt_tokens": 71,
                    "completion_tokens": 9,
                    "total_tokens": 80,
                    "prompt_tokens_details": {"cached_tokens": 64},
                },
                **metrics(input=7, output=9, read=64, write=0),
            },
        ),
        Usage(7, 9, 64, source=BODY),
        FRAMES,
    ),
    Row(
        "OpenAI's shape without usage, stream",
        "InvokeModelWithResponseStream",
        chunks(CHUNK, {**CHUNK, "choices": [], **metrics(input=71, output=9)}),
        Usage(71, 9, source=METRICS),
        FRAMES,
    ),
    Row(
        "deepseek r1: nothing in the body",
        "InvokeModel",
        dump({"choices": [{"text": TEXT, "stop_reason": "stop"}]}),
        Usage(18, 700, source=HEADERS),
        counts(input=18, output=700),
    ),
    Row(
        "stability: two images",
        "InvokeModel",
        dump({"seeds": [1, 2], "finish_reasons": [None, None], "images": [PNG, PNG]}),
        Usage(units=(("images", 2),), source=BODY),
    ),
    Row(
        "titan image: three",
        "InvokeModel",
        dump({"images": [PNG, PNG, PNG], "error": None}),
        Usage(units=(("images", 3),), source=BODY),
        counts(input=0, output=0),
    ),
    Row(
        "nova canvas: one",
        "InvokeModel",
        dump({"images": [PNG]}),
        Usage(units=(("images", 1),), source=BODY),
    ),
    Row(
        "the first stable diffusion: two artifacts",
        "InvokeModel",
        dump(
            {
                "result": "success",
                "artifacts": [
                    {"seed": 1, "base64": PNG, "finishReason": "SUCCESS"},
                    {"seed": 2, "base64": PNG, "finishReason": "SUCCESS"},
                ],
            }
        ),
        Usage(units=(("images", 2),), source=BODY),
    ),
    Row(
        "stability, all filtered: nothing says what that costs",
        "InvokeModel",
        dump({"images": [], "finish_reasons": ["Filter reason: prompt"]}),
        Usage(),
    ),
    Row(
        "twelvelabs pegasus: its message is a text",
        "InvokeModel",
        dump({"message": TEXT, "finishReason": "stop"}),
        Usage(0, 120, source=HEADERS),
        counts(input=0, output=120),
    ),
    Row(
        "twelvelabs marengo says nothing",
        "InvokeModel",
        dump({"data": [{"embedding": [0.25, 0.5]}]}),
        Usage(),
    ),
    *(
        Row(
            f"twelvelabs marengo, of {request}",
            "InvokeModel",
            dump({"data": [{"embedding": [0.25, 0.5]}]}),
            Usage(units=units, source=Source.REQUEST if units else Source.UNKNOWN),
            model="us.twelvelabs.marengo-embed-3-0-v1:0",
            options={"request_body": lambda request=request: dump(request)},
        )
        for request, units in (
            ({"inputType": "text", "text": {"inputText": "a"}}, (("queries", 1),)),
            ({"inputText": '"inputType": "image"', "inputType": "text"}, (("queries", 1),)),
            ({"inputType": "image", "mediaSource": {}}, (("input_images", 1),)),
            ({"inputType": "text_image", "text_image": {}}, ()),
            ({"inputType": "video", "mediaSource": {}}, ()),
        )
    ),
    *(
        Row(
            f"titan's multimodal embedding, of {request[:80]!r}",
            "InvokeModel",
            dump({"embedding": [0.25], "inputTextTokenCount": tokens, "message": None}),
            Usage(tokens, units=units, source=BODY),
            model="amazon.titan-embed-image-v1",
            options={"request_body": lambda request=request: request},
        )
        for request, tokens, units in (
            (dump({"inputText": '"inputImage": "a"'}), 6, ()),
            (dump({"inputText": "a", "inputImage": "iVBO"}), 1, (("input_images", 1),)),
            (b'{"inputImage" : "' + b"iVBO" * 100, 0, (("input_images", 1),)),
            (dump({"inputText": "a", "inputImage": None}), 1, ()),
        )
    ),
    *(
        Row(
            f"nova's multimodal embedding, of {params}",
            "InvokeModel",
            dump({"embeddings": [{"embedding": [0.25]}], "inputTokenCount": 0}),
            Usage(units=units, source=BODY),
            model="amazon.nova-2-multimodal-embeddings-v1:0",
            options={
                "request_body": lambda params=params: dump(
                    {"taskType": "SINGLE_EMBEDDING", "singleEmbeddingParams": params}
                )
            },
        )
        for params, units in (
            ({"text": {"value": "a"}}, ()),
            ({"image": {"format": "png", "source": {"bytes": "iVBO"}}}, (("input_images", 1),)),
            ({"image": {"detailLevel": "STANDARD_IMAGE"}}, (("input_images", 1),)),
            # Dearer, and nobody has a price for it.
            ({"image": {"detailLevel": "DOCUMENT_IMAGE"}}, (("document_images", 1),)),
            ({"audio": {"format": "mp3"}}, (("audio", 1),)),
            ({"video": {"format": "mp4"}, "text": {"value": "a"}}, (("video", 1),)),
        )
    ),
    Row(
        "nova's multimodal embedding: an image too long to be at hand",
        "InvokeModel",
        dump({"embeddings": [{"embedding": [0.25]}], "inputTokenCount": 0}),
        Usage(units=(("document_images", 1),), source=BODY),
        model="amazon.nova-2-multimodal-embeddings-v1:0",
        options={
            "request_body": lambda: b'{"singleEmbeddingParams":{"image":{"source":{"bytes":"iVBO'
        },
    ),
    Row(
        "invoke, guardrail",
        "InvokeModel",
        dump(
            {
                **CLAUDE,
                "usage": {"input_tokens": 12, "output_tokens": 87},
                "amazon-bedrock-guardrailAction": "NONE",
                "amazon-bedrock-trace": {
                    "guardrail": {
                        "modelOutput": ["x"],
                        "input": GUARDRAIL["inputAssessment"],
                        "outputs": [
                            {"gr1": {"invocationMetrics": {"usage": {"contentPolicyUnits": 7}}}},
                            {"gr1": {"invocationMetrics": {"usage": {"topicPolicyUnits": 3}}}},
                        ],
                    }
                },
            }
        ),
        # 2 + 7 of content, 1 + 3 of topics
        Usage(12, 87, units=GUARDRAIL_UNITS, source=BODY),
    ),
    Row(
        "an imported model of no known shape",
        "InvokeModel",
        dump({"message": ["a"], "metadata": "m", "results": 5, "images": {"n": 1}, "model": 7}),
        Usage(3, 4, source=HEADERS),
        counts(input=3, output=4),
    ),
]


# Other operations

GUARDRAIL_USAGE = {
    "topicPolicyUnits": 1,
    "contentPolicyUnits": 2,
    "wordPolicyUnits": 3,
    "sensitiveInformationPolicyUnits": 4,
    "sensitiveInformationPolicyFreeUnits": 5,
    "contextualGroundingPolicyUnits": 6,
    "contentPolicyImageUnits": 7,
    "automatedReasoningPolicyUnits": 8,
    "automatedReasoningPolicies": 9,
}
ASSESSMENT = {"invocationMetrics": {"usage": {"contentPolicyUnits": 2}}}


def invoked(kind: str, input_tokens: int, output_tokens: int, **other: Any) -> dict[str, Any]:
    """A trace event of an agent whose model has answered."""
    told = {"usage": {"inputTokens": input_tokens, "outputTokens": output_tokens}}
    output = {"traceId": "t", "rawResponse": {"content": TEXT}, "metadata": told}
    return {
        "agentId": "A1",
        "sessionId": "s",
        "trace": {kind: {"modelInvocationOutput": output, **other}},
    }


def asked(kind: str, model: str) -> dict[str, Any]:
    """A trace event of an agent that asks its model."""
    return {
        "agentId": "A1",
        "trace": {kind: {"modelInvocationInput": {"text": TEXT, "foundationModel": model}}},
    }


OBSERVED = {
    "trace": {
        "orchestrationTrace": {
            "observation": {
                "type": "AGENT_COLLABORATOR",
                "agentCollaboratorInvocationOutput": {
                    "metadata": {"usage": {"inputTokens": 500, "outputTokens": 500}}
                },
                "finalResponse": {
                    "text": '"modelInvocationOutput"',
                    "metadata": {"usage": {"inputTokens": 600, "outputTokens": 600}},
                },
            }
        }
    }
}
HAIKU, SONNET = "anthropic.claude-3-haiku-20240307-v1:0", "anthropic.claude-sonnet-4-6"
TRACES = (
    asked("preProcessingTrace", HAIKU),
    invoked("preProcessingTrace", 100, 10),
    asked("orchestrationTrace", HAIKU),
    invoked("orchestrationTrace", 200, 20),
    OBSERVED,
    invoked("postProcessingTrace", 300, 30),
    invoked("routingClassifierTrace", 400, 40),
    {"trace": {"guardrailTrace": {"action": "NONE", "metadata": {"totalTimeMs": 5}}}},
)


def agent(*traces: object) -> bytes:
    stream = event("chunk", {"bytes": base64.b64encode(TEXT.encode()).decode()})
    return stream.join([b"", *(event("trace", each) for each in traces), b""])


def flow(*traces: object) -> bytes:
    elements = {"agentTraces": list(traces)}
    dependency = {"nodeName": "Agent", "traceElements": elements}
    return (
        event(
            "flowTraceEvent",
            {"trace": {"nodeInputTrace": {"nodeName": "In", "fields": [{"content": TEXT}]}}},
        )
        + event("flowTraceEvent", {"trace": {"nodeDependencyTrace": dependency}})
        + event("flowOutputEvent", {"content": {"document": TEXT}, "nodeName": "Out"})
        + event("flowCompletionEvent", {"completionReason": "SUCCESS"})
    )


RERANK_MODEL = "arn:aws:bedrock:us-west-2::foundation-model/cohere.rerank-v3-5:0"


def rerank(documents: int) -> bytes:
    model = {"modelConfiguration": {"modelArn": RERANK_MODEL}, "numberOfResults": 1}
    return dump(
        {
            "queries": [{"type": "TEXT", "textQuery": {"text": "q"}}],
            "rerankingConfiguration": {"bedrockRerankingConfiguration": model},
            "sources": [{"type": "INLINE", "inlineDocumentSource": {}}] * documents,
        }
    )


REEL = "amazon.nova-reel-v1:1"


def filmed(task: str, seconds: object, shots: int = 0, model: str = REEL) -> bytes:
    """A request to StartAsyncInvoke."""
    asked: dict[str, Any] = {
        "taskType": task,
        "textToVideoParams": {"text": '"durationSeconds": 120', "images": [{"source": {}}]},
        "videoGenerationConfig": {"fps": 24, "dimension": "1280x720"},
    }
    if seconds is not None:
        asked["videoGenerationConfig"]["durationSeconds"] = seconds
    if shots:
        asked["multiShotManualParams"] = {"shots": [{"text": "a", "image": {}}] * shots}
    return dump({"modelId": model, "modelInput": asked, "outputDataConfig": {"x": "y" * 50}})


RANKED = dump({"results": [{"index": 3, "relevanceScore": 0.87}]})

OTHERS = [
    Row(
        "count-tokens costs nothing",
        "CountTokens",
        dump({"inputTokens": 1234}),
        Usage(source=Source.NONE),
    ),
    Row(
        "apply-guardrail: policies are no units, assessments say it again",
        "ApplyGuardrail",
        dump({"usage": GUARDRAIL_USAGE, "action": "NONE", "assessments": [ASSESSMENT]}),
        Usage(
            units=(
                ("guardrail.automatedReasoningPolicyUnits", 8),
                ("guardrail.contentPolicyImageUnits", 7),
                ("guardrail.contentPolicyUnits", 2),
                ("guardrail.contextualGroundingPolicyUnits", 6),
                ("guardrail.sensitiveInformationPolicyFreeUnits", 5),
                ("guardrail.sensitiveInformationPolicyUnits", 4),
                ("guardrail.topicPolicyUnits", 1),
                ("guardrail.wordPolicyUnits", 3),
            ),
            source=BODY,
        ),
    ),
    Row(
        "apply-guardrail, nothing in it is billed: that is known",
        "ApplyGuardrail",
        dump({"usage": {"contentPolicyUnits": 0}, "action": "NONE"}),
        Usage(source=BODY),
    ),
    Row(
        "guardrail checks",
        "InvokeGuardrailChecks",
        dump(
            {
                "results": {"contentFilter": {"results": []}},
                "usage": {"contentFilter": {"textUnits": 2}, "promptAttack": {"textUnits": 3}},
            }
        ),
        Usage(units=(("guardrail.contentFilter", 2), ("guardrail.promptAttack", 3)), source=BODY),
    ),
    Row(
        "async invoke: billed by what it will write",
        "StartAsyncInvoke",
        dump({"invocationArn": "arn:aws:bedrock:us-east-1:1:async-invoke/x"}),
        Usage(),
    ),
    *(
        Row(
            f"async invoke, {says}",
            "StartAsyncInvoke",
            dump({"invocationArn": "arn:aws:bedrock:us-east-1:1:async-invoke/x"}),
            Usage(
                units=(("output_video_ms", ms),) if ms else (),
                model=model,
                source=Source.REQUEST if ms else Source.UNKNOWN,
            ),
            options={"request_body": lambda request=request: request},
        )
        for says, request, model, ms in (
            ("one shot", filmed("TEXT_VIDEO", 6), REEL, 6_000),
            ("two minutes", filmed("MULTI_SHOT_AUTOMATED", 120), REEL, 120_000),
            ("3 shots of 6 seconds", filmed("MULTI_SHOT_MANUAL", None, 3), REEL, 18_000),
            ("the shots decide", filmed("MULTI_SHOT_MANUAL", 120, 2), REEL, 12_000),
            ("no length", filmed("TEXT_VIDEO", None), REEL, 0),
            ("no shots", filmed("MULTI_SHOT_MANUAL", 6), REEL, 0),
            ("no number", filmed("TEXT_VIDEO", "6"), "", 0),
            ("not whole", filmed("MULTI_SHOT_MANUAL", None, 3)[:-30], REEL, 0),
            (
                "of another model",
                filmed("TEXT_VIDEO", 6, model="luma.ray-v2:0"),
                "luma.ray-v2:0",
                0,
            ),
            ("no JSON", b"modelId=amazon.nova-reel-v1:1", "", 0),
        )
    ),
    Row(
        "rerank: 100 documents are one query",
        "Rerank",
        RANKED,
        Usage(units=(("queries", 1),), model=RERANK_MODEL, source=Source.REQUEST),
        service=AGENTS,
        options={"request_body": lambda: rerank(100)},
    ),
    Row(
        "rerank: 1,000 are ten",
        "Rerank",
        RANKED,
        Usage(units=(("queries", 10),), model=RERANK_MODEL, source=Source.REQUEST),
        service=AGENTS,
        options={"request_body": lambda: rerank(1000)},
    ),
    Row(
        "rerank of which the request is too long to be at hand",
        "Rerank",
        RANKED,
        Usage(),
        service=AGENTS,
        options={"request_body": lambda: rerank(100)[:500]},
    ),
    Row("rerank alone", "Rerank", RANKED, Usage(), service=AGENTS),
    *(
        Row(name, name, dump({"output": {"text": TEXT}}), Usage(), service=AGENTS)
        for name in ("Retrieve", "RetrieveAndGenerate", "GenerateQuery", "StartFlowExecution")
    ),
    *(
        Row(name, name, event("output", {"text": TEXT}), Usage(), FRAMES, service=AGENTS)
        for name in ("RetrieveAndGenerateStream", "AgenticRetrieveStream", "OptimizePrompt")
    ),
    Row(
        "agent",
        "InvokeAgent",
        agent(*TRACES),
        # 100 + 200 + 300 + 400; 10 + 20 + 30 + 40
        Usage(1000, 100, model=HAIKU, source=BODY),
        FRAMES,
        service=AGENTS,
    ),
    Row(
        "agent with two models: no one model's price is right",
        "InvokeAgent",
        agent(*TRACES, asked("orchestrationTrace", SONNET), invoked("orchestrationTrace", 5, 6)),
        Usage(1005, 106, source=BODY),
        FRAMES,
        service=AGENTS,
    ),
    Row(
        "agent without traces",
        "InvokeAgent",
        agent(),
        Usage(),
        FRAMES,
        service=AGENTS,
    ),
    Row(
        "inline agent",
        "InvokeInlineAgent",
        agent(*TRACES[:2]),
        Usage(100, 10, model=HAIKU, source=BODY),
        FRAMES,
        service=AGENTS,
    ),
    Row(
        "flow",
        "InvokeFlow",
        flow(*TRACES[:2]) + flow(*TRACES[3:]),
        Usage(1000, 100, model=HAIKU, source=BODY),
        FRAMES,
        service=AGENTS,
    ),
    Row(
        "control plane",
        "ListFoundationModels",
        dump({"modelSummaries": [], "usage": {"inputTokens": 1}}),
        Usage(source=Source.NONE),
        service="bedrock",
    ),
    Row(
        "a refusal costs nothing, whatever it says",
        "Converse",
        dump({"message": "Too many requests", "usage": {"inputTokens": 1, "outputTokens": 2}}),
        Usage(source=Source.NONE),
        counts(input=5, output=6),
        status=429,
    ),
]


# OpenAI's and Anthropic's routes

RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "model": "openai.gpt-oss-120b-1:0",
    "metadata": {"usage": "a user's own word"},
    "output": [{"type": "message", "content": [{"type": "output_text", "text": TEXT}]}],
    "service_tier": "priority",
    "status": "completed",
}
RESPONSE_USAGE = {
    "input_tokens": 2600,
    "input_tokens_details": {"cached_tokens": 2000, "cache_write_tokens": 400},
    "output_tokens": 300,
    "output_tokens_details": {"reasoning_tokens": 128},
    "total_tokens": 2900,
}
CHAT_USAGE = {
    "prompt_tokens": 2006,
    "completion_tokens": 300,
    "total_tokens": 2306,
    "prompt_tokens_details": {"cached_tokens": 1920},
}
GPT = "openai.gpt-oss-120b-1:0"
CLAUDE_NAME = "claude-sonnet-4-5-20250929"
CLAUDE_SSE = claude_stream({**CLAUDE_USAGE, "output_tokens": 3}, {"output_tokens": 87}, {})

VENDORS = [
    Row(
        "chat completion",
        "OpenAI",
        dump({**CHAT, "usage": CHAT_USAGE, "service_tier": "flex"}),
        # 2,006 - 1,920
        Usage(86, 300, 1920, tier="flex", model=GPT, source=BODY),
        options={"raw_path": b"/openai/v1/chat/completions"},
    ),
    Row(
        "chat completion, streamed",
        "OpenAI",
        sse(
            {**CHUNK, "usage": None},
            {**CHUNK, "usage": None},
            {**CHUNK, "choices": [], "usage": CHAT_USAGE},
            done=True,
        ),
        Usage(86, 300, 1920, model=GPT, source=BODY),
        SSE,
        options={"raw_path": b"/openai/v1/chat/completions"},
    ),
    Row(
        "chat completion, streamed without include_usage",
        "OpenAI",
        sse(CHUNK, {**CHUNK, "choices": []}, done=True),
        Usage(),
        SSE,
        options={"raw_path": b"/openai/v1/chat/completions"},
    ),
    Row(
        "response",
        "OpenAI",
        dump({**RESPONSE, "usage": RESPONSE_USAGE}),
        # 2,600 - 2,000 - 400
        Usage(200, 300, 2000, 400, tier="priority", model=GPT, source=BODY),
        options={"raw_path": b"/openai/v1/responses"},
    ),
    Row(
        "response, streamed",
        "OpenAI",
        sse(
            {"type": "response.created", "response": {**RESPONSE, "output": [], "usage": None}},
            {"type": "response.output_text.delta", "delta": TEXT},
            {"type": "response.completed", "response": {**RESPONSE, "usage": RESPONSE_USAGE}},
            named=True,
        ),
        Usage(200, 300, 2000, 400, tier="priority", model=GPT, source=BODY),
        SSE,
        options={"raw_path": b"/openai/v1/responses"},
    ),
    Row(
        "embedding",
        "OpenAI",
        dump({"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 5, "total_tokens": 5}}),
        Usage(5, 0, source=BODY),
        options={"raw_path": b"/openai/v1/embeddings"},
    ),
    Row(
        "a response asked for again was paid for before",
        "OpenAI",
        dump({**RESPONSE, "usage": RESPONSE_USAGE}),
        Usage(source=Source.NONE),
        options={"method": b"GET", "raw_path": b"/openai/v1/responses/resp_1"},
    ),
    Row(
        "message",
        "Anthropic",
        dump({**CLAUDE, "usage": CLAUDE_USAGE}),
        Usage(12, 87, 4000, 1000, 2000, tier="default", model=CLAUDE_NAME, source=BODY),
        options={"raw_path": b"/anthropic/v1/messages"},
    ),
    Row(
        "message, streamed",
        "Anthropic",
        sse(*CLAUDE_SSE, named=True),
        Usage(12, 87, 4000, 1000, 2000, tier="default", model=CLAUDE_NAME, source=BODY),
        SSE,
        options={"raw_path": b"/anthropic/v1/messages"},
    ),
    Row(
        "message, streamed with carriage returns and no end of the last line",
        "Anthropic",
        sse(*CLAUDE_SSE[:-1], named=True).replace(b"\n", b"\r\n").rstrip(),
        Usage(12, 87, 4000, 1000, 2000, tier="default", model=CLAUDE_NAME, source=BODY),
        SSE,
        options={"raw_path": b"/anthropic/v1/messages"},
    ),
    Row(
        "tokens of a message, counted",
        "Anthropic",
        dump({"input_tokens": 2095}),
        Usage(source=Source.NONE),
        options={"raw_path": b"/anthropic/v1/messages/count_tokens"},
    ),
]

ROWS = [*CONVERSE, *ANTHROPIC, *FAMILIES, *OTHERS, *VENDORS]


def piecewise() -> Any:
    """Let nothing be held whole, as if every answer were long."""
    return patch.multiple(
        meter_module, _WHOLE_BYTES=0, _PAYLOAD_BYTES=0, _LINE_BYTES=8, _PIECE_BYTES=16
    )


class TableTests(SynchronousTestCase):
    """
    Every API and family, by answers as they are.
    """

    def check(self, row: Row, pieces: Iterator[bytes] | list[bytes], how: str) -> None:
        meter = row.meter()
        for piece in pieces:
            meter.feed(piece)
        self.assertEqual(meter.usage(), row.usage, f"{row.name}, {how}")
        self.assertEqual(meter.framed, row.headers[: len(FRAMES)] == FRAMES, row.name)
        self.assertEqual(meter.at_boundary, meter.framed, row.name)

    def check_all_ways(self, step: int) -> None:
        for row in ROWS:
            body = row.body
            self.check(row, [body], "whole")
            self.check(row, (body[i : i + 1] for i in range(len(body))), "byte by byte")
            for cut in range(0, len(body) + 1, step):
                self.check(row, [body[:cut], body[cut:]], f"cut at {cut}")

    def test_every_split(self) -> None:
        """
        The same tokens come out wherever TCP cuts the answer in two, and when it
        comes byte by byte.
        """
        self.check_all_ways(1)

    def test_every_split_piecewise(self) -> None:
        """
        The same holds for answers that are too long to be held and are picked
        apart as they pass.
        """
        with piecewise():
            self.check_all_ways(7)

    def test_asked_again(self) -> None:
        """
        Asking twice for the usage gives the same, and what comes after the first
        time changes nothing.
        """
        for row in ROWS:
            meter = row.meter()
            meter.feed(row.body)
            first = meter.usage()
            meter.feed(row.body)
            self.assertEqual(meter.usage(), first)

    def test_cut_anywhere(self) -> None:
        """
        An answer that is cut tells what has been seen of it: never more than the
        whole, of no other kind, and nothing from a number that is cut itself.
        """
        for context, step in ((nullcontext(), 3), (piecewise(), 7)):
            with context:
                for row in ROWS:
                    for cut in range(0, len(row.body), step):
                        meter = row.meter()
                        meter.feed(row.body[:cut])
                        self.check_cut(row, meter.usage())

    def check_cut(self, row: Row, usage: Usage) -> None:
        whole = row.usage
        self.assertLessEqual(usage.output_tokens, whole.output_tokens, row.name)
        self.assertLessEqual(usage.cache_read_tokens, whole.cache_read_tokens, row.name)
        self.assertLessEqual(
            usage.cache_write_5m_tokens + usage.cache_write_1h_tokens,
            whole.cache_write_5m_tokens + whole.cache_write_1h_tokens,
            row.name,
        )
        self.assertLessEqual(
            usage.input_tokens + usage.cache_read_tokens,
            whole.input_tokens + whole.cache_read_tokens,
            row.name,
        )
        for name, count in usage.units:
            self.assertLessEqual(count, dict(whole.units).get(name, 0), row.name)

    def test_cut_at_events(self) -> None:
        """
        A message of Claude's that is cut after its first event has cost its input.
        """
        start = chunks(*claude_stream({**CLAUDE_USAGE, "output_tokens": 3}, {}, {})[:1])
        for rest in (b"", chunks({"type": "ping"})[:-1]):
            meter = meter_for(
                OPERATIONS[RUNTIME, "InvokeModelWithResponseStream"], "", 200, list(FRAMES)
            )
            meter.feed(start + rest)
            self.assertEqual(
                meter.usage(), Usage(12, 3, 4000, 1000, 2000, tier="default", source=BODY)
            )
            self.assertEqual(meter.at_boundary, not rest)


def converse(usage: bytes, headers: tuple[tuple[bytes, bytes], ...] = JSON) -> Usage:
    """What is made of a Converse answer with this ``usage``."""
    meter = meter_for(OPERATIONS[RUNTIME, "Converse"], "", 200, list(headers))
    meter.feed(b'{"output":{},"usage":%b}' % usage)
    return meter.usage()


def invoke(body: bytes, headers: tuple[tuple[bytes, bytes], ...] = JSON) -> Usage:
    meter = meter_for(OPERATIONS[RUNTIME, "InvokeModel"], "", 200, list(headers))
    meter.feed(body)
    return meter.usage()


class BadInputTests(SynchronousTestCase):
    """
    Figures that are none: told, never guessed, and never an exception.
    """

    def test_no_counts(self) -> None:
        """
        What is not a whole number from 0 to 2**53 is not taken for one; the
        record says so.
        """
        for bad in (
            b"-1",
            b"1.0",
            b"1e3",
            b"-0",
            b'"5"',
            b"true",
            b"[5]",
            b'{"a":5}',
            b"9007199254740993",
            b"1" * 400,
        ):
            usage = converse(b'{"inputTokens":%b,"outputTokens":7}' % bad)
            self.assertEqual((usage.input_tokens, usage.output_tokens), (0, 7), bad)
            self.assertEqual(usage.problem, "inputTokens is not a count", bad)
            usage = converse(b'{"inputTokens":7,"outputTokens":%b}' % bad)
            self.assertEqual((usage.input_tokens, usage.output_tokens), (7, 0), bad)
            self.assertEqual(usage.problem, "outputTokens is not a count", bad)

    def test_requests(self) -> None:
        """
        Whatever a client asks for, its request is read without an error, cut or not,
        and a model's name that is no name is none.
        """
        rubbish: list[bytes] = [
            b"",
            b"null",
            b"[]",
            b'"a"',
            b"\xff\xfe",
            b"[" * 5000,
            b'{"a":' * 5000,
        ]
        for member in (
            b"modelId",
            b"modelInput",
            b"singleEmbeddingParams",
            b"inputType",
        ):
            for value in (b"null", b"7", b'"\xff"', b"[[]]", b'{"image":7}', b'{"taskType":{}}'):
                rubbish.append(b'{"%b":%b}' % (member, value))
        rubbish.append(dump({"modelId": "a" * 5000}))
        whole = filmed("MULTI_SHOT_MANUAL", None, 2)
        rubbish += [whole[:end] for end in range(0, len(whole), 3) if end < 30]
        for operation, model in (
            ("StartAsyncInvoke", ""),
            ("InvokeModel", "amazon.titan-embed-image-v1"),
            ("InvokeModel", "twelvelabs.marengo-embed-2-7-v1:0"),
            ("InvokeModel", "amazon.nova-2-multimodal-embeddings-v1:0"),
            ("InvokeModel", "cohere.rerank-v3-5:0"),
        ):
            for body in rubbish:
                row = Row("", operation, b"{}", Usage(), model=model)
                row.options["request_body"] = lambda body=body: body
                self.assertEqual(row.meter().usage(), Usage(), (operation, model, body[:80]))

    def test_limits(self) -> None:
        """
        0 and 2**53 are counts.
        """
        usage = converse(b'{"inputTokens":9007199254740992,"outputTokens":0}')
        self.assertEqual(usage, Usage(2**53, 0, source=BODY))

    def test_spoilt_part(self) -> None:
        """
        One bad count makes the whole input unknown, as the rest of it alone would
        be too little; the headers then tell it.
        """
        bad = b'{"inputTokens":7,"outputTokens":9,"cacheReadInputTokens":-4}'
        problem = "cacheReadInputTokens is not a count"
        self.assertEqual(converse(bad), Usage(0, 9, source=BODY, problem=problem))
        self.assertEqual(
            converse(bad, counts(input=5, output=6, read=7, write=8)),
            Usage(5, 9, 7, 8, source=BODY, problem=problem),
        )

    def test_null_and_missing(self) -> None:
        """
        What is missing or null is not told, and that is no fault.
        """
        for usage in (b"null", b"{}", b'{"inputTokens":null}', b'{"other":1}'):
            self.assertEqual(converse(usage), Usage())
        self.assertEqual(converse(b"{}", counts(input=5, output=6)), Usage(5, 6, source=HEADERS))
        self.assertEqual(converse(b'{"outputTokens":3}'), Usage(0, 3, source=BODY))

    def test_twice(self) -> None:
        """
        Of a name that comes twice the last counts, as it does for the client.
        """
        self.assertEqual(
            converse(
                b'{"inputTokens":1,"inputTokens":2,"outputTokens":3},"usage":{"inputTokens":4}'
            ),
            Usage(4, 0, source=BODY),
        )
        with piecewise():
            self.assertEqual(
                converse(b'{"inputTokens":1,"outputTokens":3},"usage":{"inputTokens":4}'),
                Usage(4, 0, source=BODY),
            )

    def test_of_another_type(self) -> None:
        """
        Usage that is no object is told, and the headers' figures are taken.
        """
        for bad in (b"5", b'"a"', b"[]", b"[1]", b"true"):
            for context in (nullcontext(), piecewise()):
                with context:
                    usage = converse(bad, counts(input=5, output=6))
                    self.assertEqual((usage.input_tokens, usage.output_tokens), (5, 6), bad)
                    self.assertIs(usage.source, HEADERS)
                    self.assertIn("the answer is not as expected", usage.problem)

    def test_beside_the_tokens(self) -> None:
        """
        A trace, tier or latency of an unexpected form costs no tokens.
        """
        for part in (
            b'"serviceTier":"flex"',
            b'"performanceConfig":[]',
            b'"trace":"x"',
            b'"trace":{"promptRouter":5}',
            b'"trace":{"promptRouter":{"invokedModelId":"\xff"}}',
        ):
            usage = converse(b'{"inputTokens":7,"outputTokens":9},' + part)
            self.assertEqual((usage.input_tokens, usage.output_tokens), (7, 9), part)
        usage = converse(
            b'{"inputTokens":7,"outputTokens":9},"trace":{"guardrail":{"inputAssessment":'
            b'{"g":{"invocationMetrics":{"usage":{"topicPolicyUnits":-1,"wordPolicyUnits":2}}}}}}'
        )
        self.assertEqual(usage.units, (("guardrail.wordPolicyUnits", 2),))
        self.assertEqual(usage.problem, "topicPolicyUnits is not a count")

    def test_more_cached_than_all(self) -> None:
        """
        OpenAI's cached tokens cannot be more than all: then the input is unknown.
        """
        usage = invoke(
            b'{"usage":{"prompt_tokens":5,"completion_tokens":6,'
            b'"prompt_tokens_details":{"cached_tokens":7}}}'
        )
        problem = "there are more cached tokens than tokens"
        self.assertEqual(usage, Usage(0, 6, source=BODY, problem=problem))

    def test_more_for_an_hour_than_all(self) -> None:
        """
        No more is written for an hour than is written.
        """
        usage = invoke(
            b'{"usage":{"input_tokens":1,"output_tokens":2,"cache_creation_input_tokens":10,'
            b'"cache_creation":{"ephemeral_1h_input_tokens":11,"ephemeral_5m_input_tokens":0}}}'
        )
        self.assertEqual(usage, Usage(1, 2, 0, 0, 10, source=BODY))
        usage = invoke(
            b'{"usage":{"input_tokens":1,"output_tokens":2,"cache_creation_input_tokens":10,'
            b'"cache_creation":{"ephemeral_1h_input_tokens":4,"ephemeral_5m_input_tokens":0}}}'
        )
        self.assertEqual(usage, Usage(1, 2, 0, 6, 4, source=BODY))

    def test_split_alone(self) -> None:
        """
        Where only the two parts of what was written are told, they are the sum.
        """
        usage = invoke(
            b'{"usage":{"input_tokens":1,"output_tokens":2,'
            b'"cache_creation":{"ephemeral_1h_input_tokens":4,"ephemeral_5m_input_tokens":5}}}'
        )
        self.assertEqual(usage, Usage(1, 2, 0, 5, 4, source=BODY))

    def test_split_beside_headers(self) -> None:
        """
        Where the headers tell the input, the body still says what was written for
        an hour.
        """
        usage = invoke(
            b'{"usage":{"output_tokens":2,"cache_creation":{"ephemeral_1h_input_tokens":4}}}',
            counts(input=1, output=2, read=3, write=10),
        )
        self.assertEqual(usage, Usage(1, 2, 3, 6, 4, source=BODY))

    def test_headers(self) -> None:
        """
        Headers that are no counts are told and not taken.
        """
        for bad in (b"-1", b"1.5", b"", b"0x10", b"9007199254740993", b"\xb2", b"1" * 5000):
            usage = invoke(
                b'{"outputs":[]}',
                (
                    (b"x-amzn-bedrock-INPUT-token-count", bad),
                    (b"x-amzn-bedrock-output-token-count", b" 7 "),
                ),
            )
            problem = "x-amzn-bedrock-input-token-count is not a count"
            self.assertEqual(usage, Usage(0, 7, source=HEADERS, problem=problem), bad)

    def test_tier_of_any_text(self) -> None:
        """
        A tier is a word: what else may be called so goes into no record.
        """
        for text, tier in (
            ("reserved", "reserved"),
            ("auto", ""),
            ("standard", "default"),
            ("a b", ""),
            ("", ""),
            ("x" * 33, ""),
        ):
            headers = (*JSON, (b"x-amzn-bedrock-service-tier", text.encode()))
            self.assertEqual(invoke(b"{}", headers).tier, tier)
            self.assertEqual(invoke(dump({"service_tier": text})).tier, tier)


class IsBilledTests(SynchronousTestCase):
    """
    L{is_billed}
    """

    def operation(self, service: str, name: str) -> Operation:
        return OPERATIONS[service, name]

    def test_all(self) -> None:
        """
        Whatever is read for usage is billed; the control plane is not.
        """
        for service, name in (
            *((row.service, row.operation) for row in ROWS if row.usage.source is not Source.NONE),
            (RUNTIME, "InvokeModelWithBidirectionalStream"),
        ):
            self.assertTrue(is_billed(self.operation(service, name)), name)
        for (service, name), operation in OPERATIONS.items():
            if name.startswith(("Get", "List", "Delete", "Update", "Tag", "Untag")):
                resource_token = name.startswith("GetResource") and service != "bedrock"
                if not resource_token:
                    self.assertFalse(is_billed(operation), name)

    def test_vendors(self) -> None:
        """
        On OpenAI's and Anthropic's routes only the asking is billed.
        """
        openai = self.operation(RUNTIME, "OpenAI")
        anthropic = self.operation(RUNTIME, "Anthropic")
        for operation, method, path, billed in (
            (openai, b"POST", b"/openai/v1/chat/completions", True),
            (openai, b"POST", b"/openai/v1/responses", True),
            (openai, b"POST", b"/openai/v1/responses/", True),
            (openai, b"POST", b"/openai/v1/responses/compact", True),
            (openai, b"POST", b"/openai/v1/responses/resp_1/cancel", False),
            (openai, b"POST", b"/openai/v1/responses/input_tokens", False),
            (openai, b"GET", b"/openai/v1/responses/resp_1", False),
            (openai, b"DELETE", b"/openai/v1/responses/resp_1", False),
            (openai, b"GET", b"/openai/v1/models", False),
            (anthropic, b"POST", b"/anthropic/v1/messages", True),
            (anthropic, b"POST", b"/anthropic/v1/messages/count_tokens", False),
            (anthropic, b"GET", b"/anthropic/v1/models", False),
            (openai, b"POST", b"/openai/v1/files", False),
            (openai, b"POST", b"/openai/v1/something/new", True),
            (openai, b"POST", b"", True),
        ):
            self.assertEqual(is_billed(operation, method, path), billed, path)
