"""
Text and usage agree, in the shape of every family.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.eventstream import Decoder
from txbedrock.errors import InvalidRequest, UnknownOperation
from txbedrock.sandbox.models import Answer, Call, Usage, answer, count
from txbedrock.sandbox.shapes import Models

models = Models()

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "One two three"}]}
NOVA: dict[str, Any] = {"messages": [{"role": "user", "content": [{"text": "One two three"}]}]}

TEXT_FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("us.anthropic.claude-sonnet-4-20250514-v1:0", {**CHAT, "max_tokens": 99}),
    ("anthropic.claude-v2", {"prompt": "One two three", "max_tokens_to_sample": 99}),
    ("amazon.nova-micro-v1:0", NOVA),
    ("amazon.titan-text-express-v1", {"inputText": "One two three"}),
    ("cohere.command-r-v1:0", {"message": "One two three"}),
    ("cohere.command-text-v14", {"prompt": "One two three"}),
    ("us.meta.llama3-2-1b-instruct-v1:0", {"prompt": "One two three"}),
    ("mistral.mistral-7b-instruct-v0:2", {"prompt": "One two three"}),
    ("mistral.pixtral-large-2502-v1:0", CHAT),
    ("openai.gpt-oss-20b-1:0", CHAT),
    ("ai21.jamba-1-5-mini-v1:0", CHAT),
]


def ask(
    operation: str,
    model: str,
    body: Any,
    *,
    path: bytes = b"/model/m/x",
    words: int = 0,
    headers: dict[bytes, bytes] | None = None,
) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    call = Call(
        "bedrock-runtime", operation, path, b"", model, headers or {}, raw, "r-1", 1e9, words
    )
    return answer(call, models)


def texts(value: Any) -> str:
    """All the text that an answer or an event has, whatever the family calls it."""
    names = ("text", "outputText", "generation", "completion", "content", "delta")
    if isinstance(value, dict):
        return "".join(
            member if name in names and isinstance(member, str) else texts(member)
            for name, member in value.items()
            if name not in ("response", "prompt")
        )
    if isinstance(value, list):
        return "".join(texts(each) for each in value)
    return ""


def header(reply: Answer, name: bytes) -> int:
    return int(dict(reply.headers)[name])


def chunks(reply: Answer) -> list[dict[str, Any]]:
    """What is in the chunks of InvokeModelWithResponseStream."""
    frames = Decoder().feed(b"".join(reply.pieces))
    return [json.loads(base64.b64decode(json.loads(frame.payload)["bytes"])) for frame in frames]


class UsageTests(SynchronousTestCase):
    """What is billed is what was said."""

    def test_families(self) -> None:
        """For each text family the token headers count the words of prompt and text."""
        for model, body in TEXT_FAMILIES:
            reply = ask("InvokeModel", model, body)
            text = texts(json.loads(reply.pieces[0]))
            self.assertIn("sandbox", text, model)
            self.assertIn("no model", text, model)
            self.assertTrue(text.endswith("One two three"), model)
            self.assertEqual(reply.usage, Usage(3, len(text.split())), model)
            count_out = header(reply, b"X-Amzn-Bedrock-Output-Token-Count")
            self.assertEqual(count_out, len(text.split()), model)
            self.assertEqual(header(reply, b"X-Amzn-Bedrock-Input-Token-Count"), 3, model)

    def test_streams(self) -> None:
        """A stream says the same text, and its last chunk has the invocation metrics."""
        for model, body in TEXT_FAMILIES:
            whole = texts(json.loads(ask("InvokeModel", model, body).pieces[0]))
            reply = ask("InvokeModelWithResponseStream", model, body)
            events = chunks(reply)
            self.assertEqual("".join(map(texts, events)), whole, model)
            metrics = events[-1]["amazon-bedrock-invocationMetrics"]
            self.assertEqual(metrics["inputTokenCount"], 3, model)
            self.assertEqual(metrics["outputTokenCount"], len(whole.split()), model)
            for event in events[:-1]:
                self.assertNotIn("amazon-bedrock-invocationMetrics", event)

    def test_own_usage(self) -> None:
        """Families that tell usage in the body tell the same there."""
        for model, body in TEXT_FAMILIES:
            reply = ask("InvokeModel", model, body)
            document = json.loads(reply.pieces[0])
            told = {**document, **document.get("usage", {}), **document.get("results", [{}])[0]}
            assert reply.usage is not None
            pairs = [("input_tokens", "output_tokens"), ("inputTokens", "outputTokens")]
            pairs += [
                ("prompt_tokens", "completion_tokens"),
                ("inputTextTokenCount", "tokenCount"),
            ]
            pairs += [("prompt_token_count", "generation_token_count")]
            for taken, given in pairs:
                if taken in told:
                    self.assertEqual((told[taken], told[given]), (3, reply.usage.output), model)

    def test_converse(self) -> None:
        """Converse and ConverseStream say the same, and their usage is its words."""
        body = {**NOVA, "system": [{"text": "Be brief."}]}
        document = json.loads(ask("Converse", "any", body).pieces[0])
        (block,) = document["output"]["message"]["content"]
        words = len(block["text"].split())
        usage = document["usage"]
        self.assertEqual((usage["inputTokens"], usage["outputTokens"]), (5, words))
        self.assertEqual(usage["totalTokens"], 5 + words)

        stream = ask("ConverseStream", "any", body)
        frames = Decoder().feed(b"".join(stream.pieces))
        types = [frame.headers[":event-type"] for frame in frames]
        self.assertEqual(types[0], "messageStart")
        self.assertEqual(types[-3:], ["contentBlockStop", "messageStop", "metadata"])
        self.assertEqual(set(types[1:-3]), {"contentBlockDelta"})
        deltas = [json.loads(frame.payload)["delta"]["text"] for frame in frames[1:-3]]
        self.assertEqual("".join(deltas), block["text"])
        self.assertEqual(json.loads(frames[-1].payload)["usage"], usage)

    def test_limit(self) -> None:
        """The caller's limit of tokens ends the text, and the answer says so."""
        body = {**NOVA, "inferenceConfig": {"maxTokens": 4}}
        document = json.loads(ask("Converse", "any", body).pieces[0])
        self.assertEqual(document["usage"]["outputTokens"], 4)
        self.assertEqual(document["stopReason"], "max_tokens")

    def test_system_message(self) -> None:
        """What a system says after the user counts, and is not given back."""
        body = {"messages": [*CHAT["messages"], {"role": "system", "content": "Be brief"}]}
        document = json.loads(ask("InvokeModel", "anthropic.claude-x", body).pieces[0])
        self.assertTrue(document["content"][0]["text"].endswith(" One two three"))
        self.assertEqual(document["usage"]["input_tokens"], 5)

    def test_words(self) -> None:
        """The sandbox can be told how many words to say."""
        for words in (1, 5, 200):
            reply = ask("ConverseStream", "any", NOVA, words=words)
            assert reply.usage is not None
            self.assertEqual(reply.usage.output, words)
            self.assertEqual(len(reply.pieces), words + 4)

    def test_one_cache_point(self) -> None:
        """What is before the only cache point is written, and not billed as input."""
        body = {
            "system": [{"text": "a b c d"}, {"cachePoint": {"type": "default", "ttl": "1h"}}],
            **NOVA,
        }
        reply = ask("Converse", "any", body)
        assert reply.usage is not None
        self.assertEqual(reply.usage, Usage(3, reply.usage.output, cache_write_1h=4))
        told = json.loads(reply.pieces[0])["usage"]
        self.assertEqual(told["inputTokens"], 3)
        self.assertEqual(told["cacheWriteInputTokens"], 4)
        self.assertEqual(told["cacheDetails"], [{"ttl": "1h", "inputTokens": 4}])
        self.assertEqual(told["totalTokens"], 7 + reply.usage.output)

    def test_two_cache_points(self) -> None:
        """With two, what is before the first is read."""
        mark = {"cache_control": {"type": "ephemeral"}}
        body = {
            "anthropic_version": "bedrock-2023-05-31",
            "system": [{"type": "text", "text": "a b c d", **mark}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "e f", **mark}]},
                {"role": "user", "content": "g"},
            ],
        }
        reply = ask("InvokeModel", "anthropic.claude-x", body)
        assert reply.usage is not None
        self.assertEqual(reply.usage, Usage(1, reply.usage.output, 4, 2))
        self.assertEqual(header(reply, b"X-Amzn-Bedrock-Cache-Read-Input-Token-Count"), 4)
        self.assertEqual(header(reply, b"X-Amzn-Bedrock-Cache-Write-Input-Token-Count"), 2)
        told = json.loads(reply.pieces[0])["usage"]
        self.assertEqual(told["cache_creation"]["ephemeral_5m_input_tokens"], 2)

    def test_count_tokens(self) -> None:
        """CountTokens gives what would be charged, for both forms, and bills nothing."""
        inner = base64.b64encode(json.dumps(CHAT).encode()).decode()
        for asked in ({"converse": NOVA}, {"invokeModel": {"body": inner}}):
            reply = ask("CountTokens", "anthropic.claude-x", {"input": asked})
            self.assertEqual(json.loads(reply.pieces[0]), {"inputTokens": 3})
            self.assertIsNone(reply.usage)

    def test_huge_text(self) -> None:
        """Words of 25 MB are counted, and only the beginning is said back."""
        text = "word " * 5_000_000
        body = {"messages": [{"role": "user", "content": [{"text": text}]}]}
        reply = ask("Converse", "any", body)
        assert reply.usage is not None
        self.assertEqual(reply.usage.input, 5_000_001)
        self.assertLess(len(reply.pieces[0]), 1000)

    def test_count(self) -> None:
        self.assertEqual([count(""), count("a"), count("a b\nc")], [0, 1, 3])


class OtherModelTests(SynchronousTestCase):
    """Models that write no text."""

    def test_embeddings(self) -> None:
        """Vectors have the dimensions asked for; input is billed."""
        reply = ask(
            "InvokeModel", "amazon.titan-embed-text-v2:0", {"inputText": "a b", "dimensions": 256}
        )
        document = json.loads(reply.pieces[0])
        self.assertEqual(len(document["embedding"]), 256)
        self.assertEqual(document["inputTextTokenCount"], 2)
        self.assertEqual(reply.usage, Usage(2))

        reply = ask("InvokeModel", "cohere.embed-english-v3", {"texts": ["a b", "c"]})
        document = json.loads(reply.pieces[0])
        self.assertEqual([len(each) for each in document["embeddings"]], [1024, 1024])
        self.assertEqual(reply.usage, Usage(3))
        self.assertEqual(header(reply, b"X-Amzn-Bedrock-Input-Token-Count"), 3)

    def test_images(self) -> None:
        """Images are billed by number."""
        body = {"imageGenerationConfig": {"numberOfImages": 3}}
        reply = ask("InvokeModel", "amazon.nova-canvas-v1:0", body)
        self.assertEqual(len(json.loads(reply.pieces[0])["images"]), 3)
        self.assertEqual(reply.usage, Usage(images=3))

    def test_rerank(self) -> None:
        body = {"query": "a", "documents": ["b c", "d"], "top_n": 1}
        reply = ask("InvokeModel", "cohere.rerank-v3-5:0", body)
        self.assertEqual(len(json.loads(reply.pieces[0])["results"]), 1)

    def test_no_stream(self) -> None:
        """A model that cannot stream says so as Bedrock does, with ValidationException."""
        with self.assertRaises(InvalidRequest):
            ask("InvokeModelWithResponseStream", "amazon.titan-embed-text-v1", {"inputText": "a"})

    def test_profile(self) -> None:
        """For an id that names no model the family is told by the body."""
        arn = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc"
        body = {"anthropic_version": "bedrock-2023-05-31", **CHAT}
        self.assertEqual(json.loads(ask("InvokeModel", arn, body).pieces[0])["type"], "message")

    def test_bad_json(self) -> None:
        """What is no JSON object is refused with ValidationException."""
        for body in (b"{", b"[]", b"\xff", b"[" * 100_000):
            with self.assertRaises(InvalidRequest):
                ask("Converse", "any", body)

    def test_tiers(self) -> None:
        """Service tier and latency come back as they were asked for."""
        body = {
            **NOVA,
            "serviceTier": {"type": "flex"},
            "performanceConfig": {"latency": "standard"},
        }
        document = json.loads(ask("Converse", "any", body).pieces[0])
        self.assertEqual(document["serviceTier"], {"type": "flex"})
        self.assertEqual(document["performanceConfig"], {"latency": "standard"})
        headers = {b"x-amzn-bedrock-service-tier": b"flex"}
        reply = ask("InvokeModel", "amazon.nova-lite-v1:0", NOVA, headers=headers)
        self.assertEqual(dict(reply.headers)[b"X-Amzn-Bedrock-Service-Tier"], b"flex")

    def test_prompt_router(self) -> None:
        """A prompt router tells which model it chose."""
        arn = "arn:aws:bedrock:us-east-1:123456789012:prompt-router/abc"
        trace = json.loads(ask("Converse", arn, NOVA).pieces[0])["trace"]
        self.assertIn("claude", trace["promptRouter"]["invokedModelId"])


class GeneratedTests(SynchronousTestCase):
    """Operations that no model is behind."""

    def answer(
        self, service: str, operation: str, headers: dict[bytes, bytes], body: Any = None
    ) -> Answer:
        raw = json.dumps(body or {}).encode()
        call = Call(service, operation, b"/", b"", "", headers, raw, "r-1", 1e9)
        return answer(call, models)

    def test_agent_runtime(self) -> None:
        """An agent runtime answers with server-sent events to whom wants them, else JSON."""
        for accept, streams in ((b"application/json", False), (b"text/event-stream", True)):
            reply = self.answer("bedrock-agentcore", "InvokeAgentRuntime", {b"accept": accept})
            self.assertEqual(reply.streams, streams)
            types = [value for name, value in reply.headers if name == b"Content-Type"]
            self.assertEqual(len(types), 1)
            self.assertTrue(types[0].startswith(accept))

    def test_agent_is_billed(self) -> None:
        """What an agent's trace tells is what is billed."""
        reply = self.answer("bedrock-agent-runtime", "InvokeAgent", {})
        self.assertEqual(reply.usage, Usage(120, 34))
        self.assertIsNone(self.answer("bedrock-agent-runtime", "Rerank", {}).usage)

    def test_rerank(self) -> None:
        """Each document gets a score, the first the best; as many as were wanted."""
        texts = ["one", "two", "three"]
        sources = [
            {
                "type": "INLINE",
                "inlineDocumentSource": {"type": "TEXT", "textDocument": {"text": text}},
            }
            for text in texts
        ]
        for wanted, scores in ((None, [0.9, 0.45, 0.3]), (2, [0.9, 0.45])):
            config = {} if wanted is None else {"numberOfResults": wanted}
            body = {
                "sources": sources,
                "rerankingConfiguration": {"bedrockRerankingConfiguration": config},
            }
            reply = self.answer("bedrock-agent-runtime", "Rerank", {}, body)
            results = json.loads(reply.pieces[0])["results"]
            self.assertEqual([each["relevanceScore"] for each in results], scores)
            self.assertEqual([each["index"] for each in results], list(range(len(scores))))
            found = [each["document"]["textDocument"]["text"] for each in results]
            self.assertEqual(found, texts[: len(scores)])

    def test_bidirectional(self) -> None:
        """The one operation that cannot be answered over HTTP/1.1 says so."""
        with self.assertRaises(InvalidRequest):
            self.answer("bedrock-runtime", "InvokeModelWithBidirectionalStream", {})


class OtherApiTests(SynchronousTestCase):
    """The paths of OpenAI's and Anthropic's APIs."""

    def events(self, reply: Answer) -> list[Any]:
        self.assertEqual(dict(reply.headers)[b"Content-Type"][:17], b"text/event-stream")
        lines = b"".join(reply.pieces).decode().splitlines()
        data = [line[6:] for line in lines if line.startswith("data: ")]
        return [each if each == "[DONE]" else json.loads(each) for each in data]

    def test_chat_completions(self) -> None:
        """Plain and as server-sent events, which end with usage if wanted, then [DONE]."""
        path = b"/openai/v1/chat/completions"
        body = {"model": "openai.gpt-oss-20b-1:0", **CHAT}
        reply = ask("OpenAI", "", body, path=path)
        document = json.loads(reply.pieces[0])
        text = document["choices"][0]["message"]["content"]
        self.assertEqual(document["usage"]["completion_tokens"], len(text.split()))
        self.assertEqual(reply.model, "openai.gpt-oss-20b-1:0")

        events = self.events(ask("OpenAI", "", {**body, "stream": True}, path=path))
        self.assertEqual(events.pop(), "[DONE]")
        self.assertEqual("".join(map(texts, events)), text)
        self.assertNotIn("usage", events[-1])

        body |= {"stream": True, "stream_options": {"include_usage": True}}
        events = self.events(ask("OpenAI", "", body, path=path))
        self.assertEqual(events[-2]["usage"], document["usage"])

    def test_responses(self) -> None:
        path = b"/openai/v1/responses"
        body = {"model": "openai.gpt-oss-20b-1:0", "input": "One two three"}
        document = json.loads(ask("OpenAI", "", body, path=path).pieces[0])
        self.assertEqual(document["usage"]["input_tokens"], 3)
        events = self.events(ask("OpenAI", "", {**body, "stream": True}, path=path))
        self.assertEqual(events[-1]["type"], "response.completed")
        self.assertEqual(events[-1]["response"]["usage"], document["usage"])

    def test_messages(self) -> None:
        """Anthropic's events have their names, and usage at both ends."""
        path = b"/anthropic/v1/messages"
        body = {"model": "anthropic.claude-x", "max_tokens": 99, **CHAT}
        document = json.loads(ask("Anthropic", "", body, path=path).pieces[0])
        reply = ask("Anthropic", "", {**body, "stream": True}, path=path)
        self.assertTrue(reply.pieces[0].startswith(b"event: message_start\ndata: {"))
        events = self.events(reply)
        self.assertEqual(events[0]["message"]["usage"]["input_tokens"], 3)
        given = document["usage"]["output_tokens"]
        self.assertEqual(events[-2]["usage"]["output_tokens"], given)

    def test_unknown(self) -> None:
        with self.assertRaises(UnknownOperation):
            ask("OpenAI", "", {}, path=b"/openai/v1/nothing")
