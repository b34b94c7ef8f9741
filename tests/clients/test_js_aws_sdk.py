"""
The AWS SDK for JavaScript, by each transport that it has: its own HTTP/2, with and without
TLS, and HTTP/1.1 by ``NodeHttpHandler``.
"""

from __future__ import annotations

import re
import time
from typing import Any

from tests.clients.gateway import BROKEN_AFTER, BROKEN_MESSAGE, REFUSED_MESSAGE, THROTTLED_MESSAGE
from tests.clients.testcase import ANSWER, INTRODUCTION, WEATHER_INPUT, ClientTestCase

_WORDS = len(ANSWER.split())
_KINDS = [
    "messageStart",
    *["contentBlockDelta"] * _WORDS,
    "contentBlockStop",
    "messageStop",
    "metadata",
]
_USAGE = {"inputTokens": 4, "outputTokens": _WORDS, "totalTokens": 4 + _WORDS}
_SENTENCE = "This comes from the txbedrock sandbox, which is no model."
_NO_KEY = "Give your AWS SDK the gateway's key as access key id"


class _Tests:
    """Each transport shows the same to its user."""

    handler: str
    """The class that the SDK speaks HTTP with."""

    cut: str
    """The code of its error for an answer that is cut."""

    def assert_stream(self: Any, result: dict[str, Any]) -> None:
        """Is this the whole answer of ConverseStream, word by word?"""
        self.assertNotIn("error", result)
        events = result["events"]
        self.assertEqual([next(iter(event)) for event in events], _KINDS)
        deltas = [event["contentBlockDelta"]["delta"] for event in events[1 : 1 + _WORDS]]
        self.assert_pieces([delta["text"] for delta in deltas])
        self.assertEqual(events[-2]["messageStop"]["stopReason"], "end_turn")
        usage = events[-1]["metadata"]["usage"]
        self.assertEqual({name: usage[name] for name in _USAGE}, _USAGE)

    def test_transport(self: Any) -> None:
        """The SDK speaks what this class is about; it has no way back to HTTP/1.1."""
        self.assertEqual(self.result("transport"), self.handler)

    def test_converse(self: Any) -> None:
        """The key as access key id, with any secret."""
        answer = self.result("signed")
        self.assertEqual(answer["output"]["message"]["content"], [{"text": ANSWER}])
        self.assertEqual(answer["stopReason"], "end_turn")
        self.assertEqual({name: answer["usage"][name] for name in _USAGE}, _USAGE)
        self.assertEqual(answer["$metadata"]["attempts"], 1)
        self.assertRegex(answer["$metadata"]["requestId"], r"^[0-9a-f-]{36}$")

    def test_converse_stream(self: Any) -> None:
        """One event a word, and how it ended and what it took at the end."""
        self.assert_stream(self.result("stream"))

    def test_bearer(self: Any) -> None:
        """The key as bearer token, by the environment and by an option."""
        self.assertEqual([self.result("bearer"), self.result("token")], [ANSWER, ANSWER])

    def test_AWS_style_pair(self: Any) -> None:
        """A signature with the pair's secret is verified, one with another is refused."""
        result = self.result("pair")
        self.assertEqual(result["answer"], ANSWER)
        self.assert_stream(result["stream"])
        self.assert_raised(
            result["wrong"],
            "BedrockRuntimeServiceException",
            "does not match the signature you provided",
            name="InvalidSignatureException",
            status=403,
        )

    def test_model_ids(self: Any) -> None:
        """A name of config.yaml, an inference profile, and two ARNs with a slash."""
        self.assertEqual(self.result("ids"), [ANSWER] * 4)

    def test_InvokeModel(self: Any) -> None:
        """Claude's own format, whole and streamed."""
        result = self.result("invoke")
        self.assertEqual(result["contentType"], "application/json")
        self.assertEqual(result["answer"]["content"], [{"type": "text", "text": ANSWER}])
        self.assertEqual(result["streamContentType"], "application/json")
        chunks = result["chunks"]
        self.assertEqual(
            [chunk["type"] for chunk in chunks],
            [
                "message_start",
                "content_block_start",
                *["content_block_delta"] * _WORDS,
                "content_block_stop",
                "message_delta",
                "message_stop",
            ],
        )
        self.assert_pieces([chunk["delta"]["text"] for chunk in chunks[2:-3]])
        self.assertNotIn("error", result)

    def test_tools(self: Any) -> None:
        """A tool is used, whole and streamed; its result is answered."""
        result = self.result("tools")
        self.assertEqual(result["stopReason"], "tool_use")
        used = result["used"]
        self.assertEqual((used["name"], used["input"]), ("get_weather", WEATHER_INPUT))
        events = result["streamed"]["events"]
        start = events[1]["contentBlockStart"]["start"]["toolUse"]
        self.assertEqual(start["name"], "get_weather")
        deltas = [event["contentBlockDelta"]["delta"]["toolUse"] for event in events[2:-3]]
        self.assert_json("".join(delta["input"] for delta in deltas), WEATHER_INPUT)
        self.assertEqual(events[-2]["messageStop"]["stopReason"], "tool_use")
        self.assertEqual(result["answer"], f"{INTRODUCTION} Sunny and warm")

    def test_embeddings(self: Any) -> None:
        """Titan's with the dimensions asked for, Cohere's one for each text."""
        self.assertEqual(self.result("embeddings"), {"titan": 256, "cohere": [1024, 1024]})

    def test_CountTokens_and_ApplyGuardrail(self: Any) -> None:
        self.assertEqual(self.result("others"), {"inputTokens": 4, "action": "NONE"})

    def test_big_request(self: Any) -> None:
        """An image of 3 MB goes up."""
        answer = self.result("upload")
        self.assertEqual(answer["output"]["message"]["content"], [{"text": ANSWER}])
        self.assertGreater(answer["usage"]["inputTokens"], 4000)

    def test_agents(self: Any) -> None:
        """An agent's stream, knowledge bases with and without a stream, reranking."""
        result = self.result("agents")
        self.assertNotIn("completionError", result)
        self.assertEqual(result["completion"], ["chunk", "files", "returnControl", "trace"])
        self.assertEqual(result["chunk"], _SENTENCE)
        self.assertTrue(result["sessionId"])
        self.assertEqual(result["retrieved"][0]["content"]["text"], _SENTENCE)
        self.assertEqual([each["index"] for each in result["reranked"]], [0, 1])
        self.assertEqual(result["generated"], _SENTENCE)
        streamed = result["streamed"]
        self.assertNotIn("error", streamed)
        outputs = [event["output"]["text"] for event in streamed["events"] if "output" in event]
        self.assertEqual(outputs, [_SENTENCE])

    def test_control_plane(self: Any) -> None:
        """Lists, an ARN in a path, pages; what the key may not do is refused by name."""
        result = self.result("control")
        self.assertEqual((result["models"], result["pages"]), (1, 2))
        self.assertTrue(result["profile"].startswith("arn:aws:bedrock:"))
        self.assert_raised(
            result["forbidden"],
            "AccessDeniedException",
            "This key may not call bedrock:CreateGuardrail.",
            status=403,
            attempts=1,
        )

    def test_errors(self: Any) -> None:
        """Bedrock's and the gateway's own are of the SDK's classes and say why."""
        own = "BedrockRuntimeServiceException"
        unknown = "UnrecognizedClientException"
        expected: dict[str, tuple[str, str, str, int, int]] = {
            "refused": ("ValidationException", "", REFUSED_MESSAGE, 400, 1),
            "throttled": ("ThrottlingException", "", THROTTLED_MESSAGE, 429, 3),
            "unknown": ("ResourceNotFoundException", "", "no model named 'no-such", 404, 1),
            "stranger": (own, unknown, _NO_KEY, 403, 1),
            "streamStranger": (own, unknown, _NO_KEY, 403, 1),
            "agentStranger": ("BedrockAgentRuntimeServiceException", unknown, _NO_KEY, 403, 1),
            "elsewhere": (own, "UnknownOperationException", "is not an operation", 404, 1),
        }
        errors = self.result("errors")
        self.assertEqual(set(errors), set(expected))
        for name, (kind, code, message, status, attempts) in expected.items():
            error = errors[name]
            said = {"name": code or kind, "status": status, "attempts": attempts}
            self.assert_raised(error, kind, message, **said)

    def test_error_in_a_stream(self: Any) -> None:
        """What came before it is there; then the SDK throws the class of the event."""
        result = self.result("broken_streams")
        for kind in ("converse", "invoke"):
            self.assertEqual(len(result[kind]["events"]), BROKEN_AFTER)
            self.assert_raised(result[kind]["error"], "ModelStreamErrorException", BROKEN_MESSAGE)

    def test_cut_stream(self: Any) -> None:
        """What Bedrock does not end well never looks whole, where it was cut or ended early."""
        result = self.result("cut_streams")
        self.assertEqual({cut["events"] for cut in result.values()}, {5})
        message = "The connection to Bedrock broke before the end of the stream."
        self.assert_raised(result["between"]["error"], "InternalServerException", message)
        for name in ("inside", "ended"):
            self.assertEqual(result[name]["error"]["code"], self.cut)

    def test_long_stream(self: Any) -> None:
        """12 MB of events come whole."""
        result = self.result("long_stream")
        self.assertGreater(result["characters"], 11_000_000)
        self.assertEqual(result["last"], "metadata")

    def test_one_by_one(self: Any) -> None:
        """Events arrive as they are sent, one in 100 ms."""
        gaps = self.result("paced")
        self.assertEqual(len(gaps), _WORDS - 1)
        late = [gap for gap in gaps if gap > 50]
        self.assertGreater(len(late), 0.7 * len(gaps), gaps)

    def test_cancel(self: Any) -> None:
        """Who aborts gets no more than had come already, and the gateway sees that it left."""
        result = self.result("cancel")
        self.assertTrue(3 <= len(result["events"]) < 10, result["events"])
        # By HTTP/2 the SDK only ends the iteration.
        expected = "ECONNRESET" if self.handler == "NodeHttpHandler" else None
        self.assertEqual(result.get("error", {}).get("code"), expected)
        line = rf"ConverseStream .* client_gone .* aws={re.escape(result['requestId'])}\b"
        until = time.monotonic() + 10
        while not re.search(line, self.gateway.log()):
            self.assertLess(time.monotonic(), until, "the gateway did not see the client leave")
            time.sleep(0.1)

    def test_cancel_before_the_answer(self: Any) -> None:
        self.assert_raised(self.result("cancel_early"), "Error", "abort", name="AbortError")

    def test_sixty_at_once(self: Any) -> None:
        """Sixty requests at the same time, half of them streams, get each its own answer."""
        expected = [f"{INTRODUCTION} Question {number}" for number in range(60)]
        self.assertEqual(self.result("parallel"), expected)

    def test_bidirectional_stream(self: Any) -> None:
        """What the gateway does not carry is refused at once, in words."""
        self.assert_raised(
            self.result("bidirectional"),
            "BedrockRuntimeServiceException",
            "Use InvokeModelWithResponseStream or ConverseStream.",
            name="UnknownOperationException",
            status=501,
        )


class _ClientTestCase(ClientTestCase):
    client = "js_aws_sdk"
    program = "js/aws_sdk.mjs"


class Http1Tests(_Tests, _ClientTestCase):
    """HTTP/1.1."""

    environ = {"TRANSPORT": "http1"}
    handler = "NodeHttpHandler"
    cut = "ECONNRESET"


class Http1OverTLSTests(_Tests, _ClientTestCase):
    """HTTP/1.1 over TLS, which the SDK asks for in the handshake's ALPN by saying nothing."""

    environ = {"TRANSPORT": "https1"}
    handler = "NodeHttpHandler"
    cut = "ECONNRESET"


class _Http2Tests(_Tests):
    """What HTTP/2 alone can do."""

    handler = "NodeHttp2Handler"
    cut = "ERR_HTTP2_STREAM_ERROR"

    def test_shared_connections(self: Any) -> None:
        """52 requests on a few: all are answered, the stream beside an aborted one to its end."""
        result = self.result("shared_connections")
        self.assertLess(result["connections"], 6)
        expected = [f"{INTRODUCTION} Question {number}" for number in range(50)]
        self.assertEqual(result["answers"], expected)
        aborted, other = result["streams"]
        self.assertTrue(3 <= aborted < len(_KINDS), aborted)
        self.assertEqual(other, len(_KINDS))


class Http2Tests(_Http2Tests, _ClientTestCase):
    """HTTP/2 with prior knowledge: the SDK as it is, with an endpoint of ``http://``."""

    environ = {"TRANSPORT": "h2c"}


class Http2OverTLSTests(_Http2Tests, _ClientTestCase):
    """HTTP/2 by ALPN: the SDK as it is, with an endpoint of ``https://``."""

    environ = {"TRANSPORT": "h2"}
