"""
What the sandbox says in place of a model: text, and the usage that goes with it.

There is no model. The answer says so and gives the beginning of the prompt back,
in the shape of the family that the model id names. A word counts as a token, so
text and usage always agree: what stands between two single spaces or line ends.
Converse, Anthropic's and OpenAI's models also call tools (:mod:`txbedrock.sandbox.tools`).

Note [Cache points]
-------------------
Nothing is cached, but usage tells of it as Bedrock would, from the request alone:
what is before the first cache point of several is read, what is between the first
and the last (or before the only one) is written, the rest is plain input.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import parse_qs

from txbedrock.core.eventstream import encode
from txbedrock.errors import InvalidRequest, UnknownOperation
from txbedrock.sandbox.shapes import SENTENCE, Header, Models
from txbedrock.sandbox.tools import Tool, tool_of

__all__ = ["Answer", "Call", "Usage", "answer"]

_EVENT_STREAM = b"application/vnd.amazon.eventstream"
_JSON = ((b"Content-Type", b"application/json"),)
_SSE = ((b"Content-Type", b"text/event-stream; charset=utf-8"),)


@dataclass(frozen=True, slots=True)
class Usage:
    """What is billed. Input is without what was read from or written to a cache."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    images: int = 0

    @property
    def cache_write(self) -> int:
        return self.cache_write_5m + self.cache_write_1h

    @property
    def all_input(self) -> int:
        return self.input + self.cache_read + self.cache_write


@dataclass(frozen=True, slots=True)
class Call:
    """A request that is to be answered."""

    service: str
    operation: str
    path: bytes
    """Below the prefix, as on the wire, without the query."""

    query: bytes
    model: str
    """Percent-decoded; empty if the path has none."""

    headers: dict[bytes, bytes]
    """Lower-case names, the last value of each."""

    body: bytes
    request_id: str
    now: float
    words: int = 0
    """How many words to answer with, 0 for as many as it takes."""


@dataclass(slots=True)
class Answer:
    """What is sent if no fault is played."""

    status: int
    headers: tuple[Header, ...]
    pieces: list[bytes]
    """One, if it is a plain body; else events, each to be sent when it is made."""

    streams: bool = False
    frames: bool = False
    """The pieces are event-stream frames."""

    usage: Usage | None = None
    model: str = ""
    filler: Callable[[int], bytes] | None = None
    """Makes an event of about so many bytes, for a flood."""


# Reading a request


def count(text: str) -> int:
    """Words, counted without making them: the body may have 25 MB."""
    return text.count(" ") + text.count("\n") + 1 if text else 0


@dataclass(slots=True)
class _Prompt:
    """What was asked, and what it takes."""

    total: int = 0
    marks: list[tuple[int, str]] = field(default_factory=list)
    last: str = ""
    """The text of the user's last message, of which the beginning is given back."""

    def text(self, text: Any) -> None:
        if isinstance(text, str):
            self.total += count(text)
            self.last = text

    def data(self, value: Any) -> None:
        """Something that is no text: tools, tool results."""
        self.total += count(json.dumps(value))

    def blob(self, value: Any) -> None:
        """An image or a document, in base64."""
        self.total += len(value) // 1000 + 1 if isinstance(value, str) else 1

    def mark(self, ttl: Any) -> None:
        self.marks.append((self.total, "1h" if ttl == "1h" else "5m"))

    def usage(self, output: int) -> Usage:
        """See Note [Cache points]."""
        if not self.marks:
            return Usage(self.total, output)
        end, ttl = self.marks[-1]
        read = self.marks[0][0] if len(self.marks) > 1 else 0
        written = end - read
        return Usage(
            self.total - end,
            output,
            read,
            written if ttl == "5m" else 0,
            written if ttl == "1h" else 0,
        )


def _list(value: Any) -> Iterator[dict[str, Any]]:
    """The objects of a list; nothing, if it is none."""
    if isinstance(value, list):
        for each in value:
            if isinstance(each, dict):
                yield each


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _converse_prompt(body: dict[str, Any]) -> _Prompt:
    prompt = _Prompt()
    for tool in _list(_dict(body.get("toolConfig")).get("tools")):
        _converse_block(prompt, tool)
    for block in _list(body.get("system")):
        _converse_block(prompt, block)
    for message in _list(body.get("messages")):
        for block in _list(message.get("content")):
            _converse_block(prompt, block)
    return prompt


def _converse_block(prompt: _Prompt, block: dict[str, Any]) -> None:
    for kind, value in block.items():
        if kind == "text":
            prompt.text(value)
        elif kind == "cachePoint":
            prompt.mark(_dict(value).get("ttl"))
        elif kind in ("image", "document", "video", "audio"):
            prompt.blob(_dict(_dict(value).get("source")).get("bytes"))
        elif kind == "guardContent":
            prompt.text(_dict(_dict(value).get("text")).get("text"))
        elif kind == "toolResult":
            for inner in _list(_dict(value).get("content")):
                _converse_block(prompt, inner)
        else:
            prompt.data(value)


def _anthropic_prompt(body: dict[str, Any]) -> _Prompt:
    prompt = _Prompt()
    for tool in _list(body.get("tools")):
        prompt.data({name: value for name, value in tool.items() if name != "cache_control"})
        _anthropic_mark(prompt, tool)
    _anthropic_content(prompt, body.get("system"))
    said = ""
    for message in _list(body.get("messages")):
        _anthropic_content(prompt, message.get("content"))
        if message.get("role") != "system":
            said = prompt.last
    prompt.last = said
    if not body.get("messages"):
        prompt.text(body.get("prompt"))
    return prompt


def _anthropic_content(prompt: _Prompt, content: Any) -> None:
    prompt.text(content)
    for block in _list(content):
        kind = block.get("type")
        if kind == "text":
            prompt.text(block.get("text"))
        elif kind in ("image", "document"):
            prompt.blob(_dict(block.get("source")).get("data"))
        elif kind == "tool_result":
            _anthropic_content(prompt, block.get("content"))
        else:
            prompt.data({name: each for name, each in block.items() if name != "cache_control"})
        _anthropic_mark(prompt, block)


def _anthropic_mark(prompt: _Prompt, block: dict[str, Any]) -> None:
    if "cache_control" in block:
        prompt.mark(_dict(block["cache_control"]).get("ttl"))


def _openai_prompt(body: dict[str, Any]) -> _Prompt:
    prompt = _Prompt()
    for tool in _list(body.get("tools")):
        prompt.data(tool)
    prompt.text(body.get("instructions"))
    prompt.text(body.get("input"))
    for message in (*_list(body.get("messages")), *_list(body.get("input"))):
        content = message.get("content")
        prompt.text(content)
        for part in _list(content):
            if isinstance(part.get("text"), str):
                prompt.text(part["text"])
            else:
                prompt.data(part)
    prompt.text(body.get("prompt"))
    return prompt


def _plain_prompt(*texts: Any) -> _Prompt:
    prompt = _Prompt()
    for text in texts:
        if isinstance(text, list):
            for each in text:
                prompt.text(each)
        else:
            prompt.text(text)
    return prompt


# Writing an answer

_INTRODUCTION = (
    "This is the txbedrock sandbox, a stand-in for Amazon Bedrock and no model. You said:"
)
_ECHOED_WORDS = 12
_ECHOED_CHARS = 40
_DEFAULT_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class _Reply:
    """Words to answer with; each but the first with the space before it."""

    words: list[str]
    cut: bool
    """The caller's limit ended it."""

    tool: Tool | None = None
    """Is called instead; then the words are its input."""

    @property
    def text(self) -> str:
        return "".join(self.words)


def _reply(call: Call, prompt: _Prompt, limit: Any, tool: Tool | None = None) -> _Reply:
    """
    :param limit: on the words of a text, as the caller said it.
    """
    if tool is not None:
        return _Reply(tool.words, False, tool)
    most = limit if isinstance(limit, int) and limit > 0 else _DEFAULT_LIMIT
    wanted = call.words or most
    words = _INTRODUCTION.split()
    if wanted > len(words):
        echoed = prompt.last[:4096].split(None, _ECHOED_WORDS)[:_ECHOED_WORDS]
        words += [word[:_ECHOED_CHARS] for word in echoed]
    if call.words:
        words += [str(number) for number in range(len(words) + 1, call.words + 1)]
        del words[call.words :]
    cut = len(words) > most
    del words[most:]
    return _Reply([words[0], *[" " + word for word in words[1:]]], cut)


def _call_id(prefix: str, call: Call) -> str:
    """The id of the one call of a tool in an answer."""
    return prefix + call.request_id.replace("-", "")[:24]


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _latency_ms(usage: Usage) -> int:
    return 40 + 5 * usage.output


_PADDING = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def _event(event_type: str, value: dict[str, Any]) -> bytes:
    """A frame as bedrock-runtime sends it, with the padding ``p``."""
    value["p"] = _PADDING[: 4 + 7 * len(value) + len(event_type)]
    return encode(
        {
            ":event-type": event_type,
            ":content-type": "application/json",
            ":message-type": "event",
        },
        _dump(value),
    )


@lru_cache(maxsize=8192)
def _converse_delta(text: str) -> bytes:
    return _event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": text}})


def _converse_tool_delta(text: str) -> bytes:
    delta = {"toolUse": {"input": text}}
    return _event("contentBlockDelta", {"contentBlockIndex": 0, "delta": delta})


def _converse_filler(size: int) -> bytes:
    delta = {"text": "x" * max(1, size - 220)}
    return _event("contentBlockDelta", {"contentBlockIndex": 0, "delta": delta})


@lru_cache(maxsize=8192)
def _chunk(json_text: bytes) -> bytes:
    return _event("chunk", {"bytes": base64.b64encode(json_text).decode()})


_MESSAGE_START = _event("messageStart", {"role": "assistant"})
_BLOCK_STOP = _event("contentBlockStop", {"contentBlockIndex": 0})


# Converse


def _converse_usage(usage: Usage) -> dict[str, Any]:
    told: dict[str, Any] = {
        "inputTokens": usage.input,
        "outputTokens": usage.output,
        "totalTokens": usage.all_input + usage.output,
        "cacheReadInputTokens": usage.cache_read,
        "cacheWriteInputTokens": usage.cache_write,
    }
    details = [("5m", usage.cache_write_5m), ("1h", usage.cache_write_1h)]
    if usage.cache_write:
        told["cacheDetails"] = [{"ttl": ttl, "inputTokens": n} for ttl, n in details if n]
    return told


def _converse_extras(call: Call, body: dict[str, Any]) -> dict[str, Any]:
    """What is given back as it was asked for."""
    extras: dict[str, Any] = {
        name: body[name] for name in ("performanceConfig", "serviceTier") if name in body
    }
    if ":prompt-router/" in call.model or ":default-prompt-router/" in call.model:
        invoked = (
            "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-3-haiku-20240307-v1:0"
        )
        extras["trace"] = {"promptRouter": {"invokedModelId": invoked}}
    return extras


def _converse(call: Call, body: dict[str, Any]) -> Answer:
    prompt = _converse_prompt(body)
    limit = _dict(body.get("inferenceConfig")).get("maxTokens")
    reply = _reply(call, prompt, limit, tool_of(body))
    usage = prompt.usage(len(reply.words))
    stop = "max_tokens" if reply.cut else "end_turn"
    block: dict[str, Any] = {"text": reply.text}
    if reply.tool is not None:
        stop = "tool_use"
        used = {"toolUseId": _call_id("tooluse_", call), "name": reply.tool.name}
        block = {"toolUse": {**used, "input": reply.tool.input}}
    metrics = {"latencyMs": _latency_ms(usage)}
    extras = _converse_extras(call, body)
    if call.operation == "ConverseStream":
        pieces = [_MESSAGE_START]
        if reply.tool is None:
            pieces += map(_converse_delta, reply.words)
        else:
            begun = {"contentBlockIndex": 0, "start": {"toolUse": used}}
            pieces.append(_event("contentBlockStart", begun))
            pieces += map(_converse_tool_delta, reply.words)
        pieces.append(_BLOCK_STOP)
        pieces.append(_event("messageStop", {"stopReason": stop}))
        told = {"usage": _converse_usage(usage), "metrics": metrics, **extras}
        pieces.append(_event("metadata", told))
        headers = ((b"Content-Type", _EVENT_STREAM),)
        return Answer(200, headers, pieces, True, True, usage, call.model, _converse_filler)
    message = {"role": "assistant", "content": [block]}
    document = {
        "metrics": metrics,
        "output": {"message": message},
        "stopReason": stop,
        "usage": _converse_usage(usage),
        **extras,
    }
    return Answer(200, _JSON, [_dump(document)], usage=usage, model=call.model)


# InvokeModel, by family


@dataclass(frozen=True, slots=True)
class _Invoked:
    """A family's answer to InvokeModel."""

    usage: Usage
    document: bytes
    events: list[dict[str, Any]] | None = None
    """For the stream; the last one gets the invocation metrics."""


_Family = Callable[[Call, dict[str, Any]], _Invoked]


def _anthropic(call: Call, body: dict[str, Any]) -> _Invoked:
    prompt = _anthropic_prompt(body)
    events: list[dict[str, Any]]
    limit = body.get("max_tokens", body.get("max_tokens_to_sample"))
    reply = _reply(call, prompt, limit, tool_of(body))
    usage = prompt.usage(len(reply.words))
    if "messages" not in body and "prompt" in body:
        stop = "max_tokens" if reply.cut else "stop_sequence"
        end = {"type": "completion", "stop_reason": stop, "stop": None}
        events = [
            {"type": "completion", "completion": word, "stop_reason": None, "stop": None}
            for word in reply.words
        ]
        events.append({**end, "completion": ""})
        return _Invoked(usage, _dump({**end, "completion": reply.text}), events)
    stop = "max_tokens" if reply.cut else "end_turn"
    block: dict[str, Any] = {"type": "text", "text": ""}
    filled: dict[str, Any] = {"text": reply.text}
    if reply.tool is not None:
        stop = "tool_use"
        used = {"id": _call_id("toolu_bdrk_", call), "name": reply.tool.name}
        block = {"type": "tool_use", **used, "input": {}}
        filled = {"input": reply.tool.input}
    message: dict[str, Any] = {
        "model": call.model or body.get("model", ""),
        "id": "msg_bdrk_" + call.request_id.replace("-", "")[:24],
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }
    told = _anthropic_usage(usage)
    whole = {
        **message,
        "content": [{**block, **filled}],
        "stop_reason": stop,
        "usage": told,
    }
    events = [
        {"type": "message_start", "message": {**message, "usage": {**told, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": block},
    ]
    events += [_anthropic_delta(word, reply.tool is not None) for word in reply.words]
    events.append({"type": "content_block_stop", "index": 0})
    events.append(
        {
            "type": "message_delta",
            "delta": {"stop_reason": stop, "stop_sequence": None},
            "usage": {"output_tokens": usage.output},
        }
    )
    events.append({"type": "message_stop"})
    return _Invoked(usage, _dump(whole), events)


def _anthropic_delta(text: str, is_input: bool = False) -> dict[str, Any]:
    delta = {"type": "text_delta", "text": text}
    if is_input:
        delta = {"type": "input_json_delta", "partial_json": text}
    return {"type": "content_block_delta", "index": 0, "delta": delta}


def _anthropic_filler(size: int) -> bytes:
    return _chunk.__wrapped__(_dump(_anthropic_delta("x" * max(1, (size - 300) * 3 // 4))))


def _anthropic_usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_5m,
            "ephemeral_1h_input_tokens": usage.cache_write_1h,
        },
        "output_tokens": usage.output,
    }


def _nova(call: Call, body: dict[str, Any]) -> _Invoked:
    prompt = _converse_prompt(body)
    config = _dict(body.get("inferenceConfig"))
    reply = _reply(call, prompt, config.get("maxTokens", config.get("max_new_tokens")))
    usage = prompt.usage(len(reply.words))
    stop = "max_tokens" if reply.cut else "end_turn"
    told = {
        "inputTokens": usage.input,
        "outputTokens": usage.output,
        "totalTokens": usage.all_input + usage.output,
        "cacheReadInputTokenCount": usage.cache_read,
        "cacheWriteInputTokenCount": usage.cache_write,
    }
    message = {"content": [{"text": reply.text}], "role": "assistant"}
    whole = {"output": {"message": message}, "stopReason": stop, "usage": told}
    events: list[dict[str, Any]] = [{"messageStart": {"role": "assistant"}}]
    events += [
        {"contentBlockDelta": {"delta": {"text": word}, "contentBlockIndex": 0}}
        for word in reply.words
    ]
    events.append({"contentBlockStop": {"contentBlockIndex": 0}})
    events.append({"messageStop": {"stopReason": stop}})
    events.append({"metadata": {"usage": told, "metrics": {}, "trace": {}}})
    return _Invoked(usage, _dump(whole), events)


def _titan_text(call: Call, body: dict[str, Any]) -> _Invoked:
    prompt = _plain_prompt(body.get("inputText"))
    reply = _reply(call, prompt, _dict(body.get("textGenerationConfig")).get("maxTokenCount"))
    usage = prompt.usage(len(reply.words))
    reason = "LENGTH" if reply.cut else "FINISH"
    result = {
        "tokenCount": usage.output,
        "outputText": reply.text,
        "completionReason": reason,
    }
    events = [
        {
            "outputText": word,
            "index": 0,
            "totalOutputTextTokenCount": None,
            "completionReason": None,
            "inputTextTokenCount": None,
        }
        for word in reply.words
    ]
    events[-1] |= {
        "totalOutputTextTokenCount": usage.output,
        "completionReason": reason,
        "inputTextTokenCount": usage.input,
    }
    whole = {"inputTextTokenCount": usage.input, "results": [result]}
    return _Invoked(usage, _dump(whole), events)


_VECTOR = b'"@vector"'


@lru_cache(maxsize=64)
def _vector(dimensions: int) -> bytes:
    return _dump([round(((index * 37) % 101 - 50) / 500, 4) for index in range(dimensions)])


def _with_vectors(document: Any, dimensions: Any, default: int) -> bytes:
    size = dimensions if isinstance(dimensions, int) and 0 < dimensions <= 8192 else default
    return _dump(document).replace(_VECTOR, _vector(size))


def _titan_embedding(call: Call, body: dict[str, Any]) -> _Invoked:
    prompt = _plain_prompt(body.get("inputText"))
    if "inputImage" in body:
        prompt.blob(body["inputImage"])
    usage = prompt.usage(0)
    document = {"embedding": "@vector", "inputTextTokenCount": usage.input}
    if "-v2" in call.model:
        document["embeddingsByType"] = {"float": "@vector"}
    default = 1024 if "-v2" in call.model or "image" in call.model else 1536
    return _Invoked(usage, _with_vectors(document, body.get("dimensions"), default))


def _nova_embedding(call: Call, body: dict[str, Any]) -> _Invoked:
    params = _dict(body.get("singleEmbeddingParams"))
    usage = _plain_prompt(_dict(params.get("text")).get("value")).usage(0)
    document = {
        "embeddings": [{"embeddingType": "TEXT", "embedding": "@vector"}],
        "inputTokenCount": usage.input,
    }
    return _Invoked(usage, _with_vectors(document, params.get("embeddingDimension"), 3072))


def _cohere_embedding(call: Call, body: dict[str, Any]) -> _Invoked:
    texts = [text for text in body.get("texts") or [] if isinstance(text, str)]
    prompt = _plain_prompt(texts)
    images = body.get("images") or []
    for image in images:
        prompt.blob(image)
    usage = prompt.usage(0)
    vectors: Any = ["@vector"] * (len(texts) + len(images))
    kinds = body.get("embedding_types")
    form = "embeddings_floats"
    if isinstance(kinds, list) and kinds:
        vectors = {str(kind): vectors for kind in kinds}
        form = "embeddings_by_type"
    document = {
        "embeddings": vectors,
        "id": call.request_id,
        "response_type": form,
        "texts": texts,
    }
    default = 1536 if "v4" in call.model else 1024
    return _Invoked(usage, _with_vectors(document, body.get("output_dimension"), default))


def _scores(count: int) -> list[float]:
    """Of so many documents, the best first."""
    return [round(0.9 / (index + 1), 4) for index in range(count)]


def _cohere_rerank(call: Call, body: dict[str, Any]) -> _Invoked:
    documents = body.get("documents")
    documents = documents if isinstance(documents, list) else []
    prompt = _plain_prompt(body.get("query"), documents)
    top = body.get("top_n")
    top = top if isinstance(top, int) else len(documents)
    scores = _scores(min(top, len(documents)))
    results = [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]
    return _Invoked(prompt.usage(0), _dump({"results": results}))


def _cohere(call: Call, body: dict[str, Any]) -> _Invoked:
    prompt = _plain_prompt(body.get("prompt"), body.get("preamble"), body.get("message"))
    reply = _reply(call, prompt, body.get("max_tokens"))
    usage = prompt.usage(len(reply.words))
    reason = "MAX_TOKENS" if reply.cut else "COMPLETE"
    document: dict[str, Any]
    events: list[dict[str, Any]]
    if "message" not in body:
        generation = {"id": call.request_id, "text": reply.text, "finish_reason": reason}
        document = {
            "id": call.request_id,
            "generations": [generation],
            "prompt": body.get("prompt"),
        }
        events = [{"text": word, "is_finished": False} for word in reply.words]
        events.append({"is_finished": True, "finish_reason": reason})
    else:
        document = {
            "response_id": call.request_id,
            "generation_id": call.request_id,
            "text": reply.text,
            "chat_history": [],
            "finish_reason": reason,
        }
        events = [
            {"is_finished": False, "event_type": "text-generation", "text": word}
            for word in reply.words
        ]
        end = {"is_finished": True, "event_type": "stream-end", "finish_reason": reason}
        events.append({**end, "response": document})
    return _Invoked(usage, _dump(document), events)


def _llama(call: Call, body: dict[str, Any]) -> _Invoked:
    prompt = _plain_prompt(body.get("prompt"))
    reply = _reply(call, prompt, body.get("max_gen_len"))
    usage = prompt.usage(len(reply.words))
    stop = "length" if reply.cut else "stop"
    document = {
        "generation": reply.text,
        "prompt_token_count": usage.input,
        "generation_token_count": usage.output,
        "stop_reason": stop,
    }
    events: list[dict[str, Any]] = [
        {
            "generation": word,
            "prompt_token_count": None if index else usage.input,
            "generation_token_count": index + 1,
            "stop_reason": None,
        }
        for index, word in enumerate(reply.words)
    ]
    events[-1]["stop_reason"] = stop
    return _Invoked(usage, _dump(document), events)


def _mistral(call: Call, body: dict[str, Any]) -> _Invoked:
    if "messages" in body:
        return _openai(call, body)
    prompt = _plain_prompt(body.get("prompt"))
    reply = _reply(call, prompt, body.get("max_tokens"))
    stop = "length" if reply.cut else "stop"
    document = {"outputs": [{"text": reply.text, "stop_reason": stop}]}
    events: list[dict[str, Any]] = [
        {"outputs": [{"text": word, "stop_reason": None}]} for word in reply.words
    ]
    events[-1]["outputs"][0]["stop_reason"] = stop
    return _Invoked(prompt.usage(len(reply.words)), _dump(document), events)


def _openai(call: Call, body: dict[str, Any]) -> _Invoked:
    prompt = _openai_prompt(body)
    limit = body.get("max_completion_tokens", body.get("max_tokens"))
    reply = _reply(call, prompt, limit, tool_of(body))
    usage = prompt.usage(len(reply.words))
    finish = "length" if reply.cut else "stop"
    head = {
        "id": "chatcmpl-" + call.request_id,
        "created": int(call.now),
        "model": call.model or body.get("model", ""),
    }
    told = {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
    }
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
    if reply.tool is not None:
        finish = "tool_calls"
        called: dict[str, Any] = {"id": _call_id("call_", call), "type": "function"}
        function = {"name": reply.tool.name, "arguments": reply.text}
        message |= {"content": None, "tool_calls": [{**called, "function": function}]}
    whole = {
        **head,
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": told,
    }

    def event(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        return {**head, "object": "chat.completion.chunk", "choices": choices}

    events = [event({"role": "assistant", "content": ""})]
    if reply.tool is None:
        events += [event({"content": word}) for word in reply.words]
    else:
        begun = {"index": 0, **called, "function": {**function, "arguments": ""}}
        events.append(event({"tool_calls": [begun]}))
        events += [
            event({"tool_calls": [{"index": 0, "function": {"arguments": word}}]})
            for word in reply.words
        ]
    events.append(event({}, finish))
    if call.path.startswith(b"/model/") or _dict(body.get("stream_options")).get("include_usage"):
        end: dict[str, Any] = {"choices": [], "usage": told}
        events.append({**head, "object": "chat.completion.chunk", **end})
    return _Invoked(usage, _dump(whole), events)


def _image(call: Call, body: dict[str, Any]) -> _Invoked:
    asked = _dict(body.get("imageGenerationConfig")).get("numberOfImages", 1)
    number = asked if isinstance(asked, int) and 0 < asked <= 10 else 1
    document: dict[str, Any] = {"images": [_PNG] * number}
    if "stability" in call.model:
        document |= {"seeds": [0] * number, "finish_reasons": [None] * number}
    else:
        document["error"] = None
    return _Invoked(Usage(images=number), _dump(document))


# One transparent pixel.
_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5E"
    "rkJggg=="
)

# The first that is found in the model id counts.
_FAMILIES: tuple[tuple[str, _Family], ...] = (
    ("anthropic.", _anthropic),
    ("claude", _anthropic),
    ("nova-canvas", _image),
    ("titan-image", _image),
    ("stability.", _image),
    ("titan-embed", _titan_embedding),
    ("nova-2-multimodal-embeddings", _nova_embedding),
    ("amazon.titan", _titan_text),
    ("amazon.nova", _nova),
    ("cohere.embed", _cohere_embedding),
    ("rerank", _cohere_rerank),
    ("cohere.", _cohere),
    ("llama", _llama),
    ("mistral.", _mistral),
)

# For ids that name no model, such as those of inference profiles: members of the body.
_TELLTALES: tuple[tuple[str, _Family], ...] = (
    ("anthropic_version", _anthropic),
    ("inputText", _titan_text),
    ("inferenceConfig", _nova),
    ("texts", _cohere_embedding),
    ("max_gen_len", _llama),
)


def _family(model: str, body: dict[str, Any]) -> _Family:
    for part, family in _FAMILIES:
        if part in model:
            return family
    for name, family in _TELLTALES:
        if name in body:
            return family
    return _openai


def _invoke(call: Call, body: dict[str, Any]) -> Answer:
    family = _family(call.model, body)
    invoked = family(call, body)
    usage = invoked.usage
    caches = family in (_anthropic, _nova)
    told = _tiers(call)
    if call.operation == "InvokeModel":
        told += [
            (b"X-Amzn-Bedrock-Invocation-Latency", b"%d" % _latency_ms(usage)),
            (b"X-Amzn-Bedrock-Output-Token-Count", b"%d" % usage.output),
            (b"X-Amzn-Bedrock-Input-Token-Count", b"%d" % usage.input),
        ]
        if caches:
            told += [
                (b"X-Amzn-Bedrock-Cache-Read-Input-Token-Count", b"%d" % usage.cache_read),
                (b"X-Amzn-Bedrock-Cache-Write-Input-Token-Count", b"%d" % usage.cache_write),
            ]
        headers = (*_JSON, *told)
        return Answer(200, headers, [invoked.document], usage=usage, model=call.model)
    if invoked.events is None:
        raise InvalidRequest(f"The model {call.model} does not support streaming.")
    metrics: dict[str, Any] = {
        "inputTokenCount": usage.input,
        "outputTokenCount": usage.output,
        "invocationLatency": _latency_ms(usage),
        "firstByteLatency": 30,
    }
    if caches:
        metrics["cacheReadInputTokenCount"] = usage.cache_read
        metrics["cacheWriteInputTokenCount"] = usage.cache_write
    invoked.events[-1]["amazon-bedrock-invocationMetrics"] = metrics
    pieces = [_chunk(_dump(event)) for event in invoked.events]
    filler = _anthropic_filler if family is _anthropic else None
    headers = (
        (b"Content-Type", _EVENT_STREAM),
        (b"X-Amzn-Bedrock-Content-Type", b"application/json"),
        *told,
    )
    return Answer(200, headers, pieces, True, True, usage, call.model, filler)


def _tiers(call: Call) -> list[Header]:
    """Headers that say of which kind the inference was, if it was asked for."""
    names = (b"X-Amzn-Bedrock-PerformanceConfig-Latency", b"X-Amzn-Bedrock-Service-Tier")
    return [(name, call.headers[name.lower()]) for name in names if name.lower() in call.headers]


def _count_tokens(call: Call, body: dict[str, Any]) -> Answer:
    asked = _dict(body.get("input"))
    if "converse" in asked:
        prompt = _converse_prompt(_dict(asked["converse"]))
        usage = prompt.usage(0)
    elif "invokeModel" in asked:
        try:
            raw = base64.b64decode(_dict(asked["invokeModel"]).get("body", ""))
        except (ValueError, TypeError):
            raise InvalidRequest("input.invokeModel.body is not base64.") from None
        inner = _object(raw)
        usage = _family(call.model, inner)(call, inner).usage
    else:
        raise InvalidRequest("input must have one of converse and invokeModel.")
    return Answer(200, _JSON, [_dump({"inputTokens": usage.all_input})])


# The paths of other vendors' APIs


def _sse(events: Iterable[dict[str, Any]], named: bool) -> list[bytes]:
    if named:
        return [b"event: %b\ndata: %b\n\n" % (e["type"].encode(), _dump(e)) for e in events]
    return [b"data: %b\n\n" % _dump(event) for event in events]


def _other_api(call: Call) -> Answer:
    path = call.path
    body = _object(call.body) if path.count(b"/") else {}
    model = str(body.get("model", ""))
    if path == b"/anthropic/v1/messages":
        invoked = _anthropic(call, body)
        named = True
    elif path == b"/openai/v1/chat/completions":
        invoked = _openai(call, body)
        named = False
    elif path == b"/openai/v1/responses":
        invoked = _responses(call, body)
        named = True
    else:
        raise UnknownOperation(f"The sandbox has no answer for {path.decode('latin-1')}.")
    if body.get("stream") is True and invoked.events is not None:
        pieces = _sse(invoked.events, named)
        if path == b"/openai/v1/chat/completions":
            pieces.append(b"data: [DONE]\n\n")
        return Answer(200, _SSE, pieces, True, False, invoked.usage, model)
    return Answer(200, _JSON, [invoked.document], usage=invoked.usage, model=model)


def _responses(call: Call, body: dict[str, Any]) -> _Invoked:
    prompt = _openai_prompt(body)
    reply = _reply(call, prompt, body.get("max_output_tokens"))
    usage = prompt.usage(len(reply.words))
    item_id = "msg_" + call.request_id
    part = {"type": "output_text", "text": reply.text, "annotations": []}
    item = {
        "type": "message",
        "id": item_id,
        "status": "completed",
        "role": "assistant",
        "content": [part],
    }
    head = {
        "id": "resp_" + call.request_id,
        "object": "response",
        "created_at": int(call.now),
        "model": body.get("model", ""),
    }
    whole = {
        **head,
        "status": "incomplete" if reply.cut else "completed",
        "output": [item],
        "usage": {
            "input_tokens": usage.input,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.input + usage.output,
        },
    }
    begun = {**head, "status": "in_progress", "output": [], "usage": None}
    events: list[dict[str, Any]] = [{"type": "response.created", "response": begun}]
    events += [
        {
            "type": "response.output_text.delta",
            "item_id": item_id,
            "output_index": 0,
            "content_index": 0,
            "delta": word,
        }
        for word in reply.words
    ]
    events.append({"type": f"response.{whole['status']}", "response": whole})
    for number, event in enumerate(events):
        event["sequence_number"] = number
    return _Invoked(usage, _dump(whole), events)


# All of it


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequest("Malformed input request, please reformat your input.") from None
    if not isinstance(value, dict):
        raise InvalidRequest("Malformed input request: expected a JSON object.")
    return value


_MODEL_OPERATIONS: dict[str, Callable[[Call, dict[str, Any]], Answer]] = {
    "Converse": _converse,
    "ConverseStream": _converse,
    "InvokeModel": _invoke,
    "InvokeModelWithResponseStream": _invoke,
    "CountTokens": _count_tokens,
}


def answer(call: Call, models: Models) -> Answer:
    """
    The answer to a request whose signature was right.

    :raises InvalidRequest: if it cannot be read.
    :raises UnknownOperation: if it is for nothing that is answered.
    """
    if call.service == "bedrock-runtime":
        known = _MODEL_OPERATIONS.get(call.operation)
        if known is not None:
            return known(call, _object(call.body))
        if call.operation in ("OpenAI", "Anthropic"):
            return _other_api(call)
        if call.operation == "InvokeModelWithBidirectionalStream":
            raise InvalidRequest(f"{call.operation} needs HTTP/2, which the sandbox has not.")
    elif (call.service, call.operation) == ("bedrock-agent-runtime", "Rerank"):
        return _rerank(_object(call.body))
    return _from_template(call, models)


def _rerank(body: dict[str, Any]) -> Answer:
    """The documents in the order they came in: without a model none is better."""
    sources = list(_list(body.get("sources")))
    config = _dict(_dict(body.get("rerankingConfiguration")).get("bedrockRerankingConfiguration"))
    top = config.get("numberOfResults")
    results = [
        {"index": index, "relevanceScore": score, "document": source.get("inlineDocumentSource")}
        for index, (source, score) in enumerate(zip(sources, _scores(len(sources)), strict=True))
    ]
    return Answer(
        200, _JSON, [_dump({"results": results[: top if isinstance(top, int) else None]})]
    )


def _from_template(call: Call, models: Models) -> Answer:
    template = models.template(call.service, call.operation, _is_first_page(call))
    if template.events is not None:
        usage = None
        if template.input_tokens or template.output_tokens:
            usage = Usage(template.input_tokens, template.output_tokens)
        return Answer(template.status, template.headers, list(template.events), True, True, usage)
    if call.operation == "InvokeAgentRuntime" and b"text/event-stream" in call.headers.get(
        b"accept", b""
    ):
        headers = tuple(pair for pair in template.headers if pair[0] != b"Content-Type")
        pieces = [b"data: %b\n\n" % _dump(word) for word in SENTENCE.split()]
        return Answer(template.status, (*headers, *_SSE), pieces, True)
    return Answer(template.status, template.headers, [template.body])


def _is_first_page(call: Call) -> bool:
    if call.query and "nextToken" in parse_qs(call.query.decode("latin-1")):
        return False
    return b'"nextToken"' not in call.body[:65536]
