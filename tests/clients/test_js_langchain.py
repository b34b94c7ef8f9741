"""
LangChain for JavaScript, which sits on the AWS SDK: by that SDK's own HTTP/2, and by
HTTP/1.1.
"""

from __future__ import annotations

from typing import Any

from tests.clients.gateway import BROKEN_AFTER, BROKEN_MESSAGE, REFUSED_MESSAGE, THROTTLED_MESSAGE
from tests.clients.testcase import ANSWER, INTRODUCTION, WEATHER_INPUT, ClientTestCase

_WORDS = len(ANSWER.split())
_SENTENCE = "This comes from the txbedrock sandbox, which is no model."


class _Tests:
    """Both transports show the same."""

    def test_message(self: Any) -> None:
        result = self.result("message")
        self.assertEqual(result["text"], ANSWER)
        usage = result["usage"]
        self.assertEqual((usage["input_tokens"], usage["output_tokens"]), (4, _WORDS))

    def test_stream(self: Any) -> None:
        """One chunk a word, and one with the usage."""
        result = self.result("stream")
        self.assert_pieces(result["pieces"])
        self.assertEqual(result["usage"]["output_tokens"], _WORDS)

    def test_bearer(self: Any) -> None:
        """The key as ``bedrockBearerToken``, the gateway as ``endpointHost``."""
        self.assertEqual(self.result("bearer"), ANSWER)

    def test_tools(self: Any) -> None:
        """A tool is used, whole and streamed; its result is answered."""
        result = self.result("tools")
        self.assertEqual(result["name"], "get_weather")
        self.assertEqual([result["args"], result["streamed"]], [WEATHER_INPUT] * 2)
        self.assertEqual(result["text"], f"{INTRODUCTION} Sunny and warm")

    def test_structured_output(self: Any) -> None:
        self.assertEqual(self.result("structured"), {"name": "sandbox", "age": 1})

    def test_embeddings(self: Any) -> None:
        self.assertEqual(self.result("embeddings"), [1024, 1024, 1024])

    def test_retriever(self: Any) -> None:
        """Passages of a knowledge base."""
        self.assertEqual(self.result("retriever"), [_SENTENCE])

    def test_errors(self: Any) -> None:
        """The AWS SDK's classes, with Bedrock's or the gateway's words."""
        errors = self.result("errors")
        for name, expected, message, status in (
            ("refused", "ValidationException", REFUSED_MESSAGE, 400),
            ("throttled", "ThrottlingException", THROTTLED_MESSAGE, 429),
            ("unknown", "ResourceNotFoundException", "no model named 'no-such-model'", 404),
        ):
            self.assert_raised(errors[name], expected, message, status=status)

    def test_error_in_a_stream(self: Any) -> None:
        """What came before it is there; then it throws."""
        result = self.result("broken_stream")
        self.assertEqual(len([piece for piece in result["pieces"] if piece]), BROKEN_AFTER - 1)
        self.assert_raised(result["error"], "ModelStreamErrorException", BROKEN_MESSAGE)

    def test_thirty_at_once(self: Any) -> None:
        """A batch of thirty gets each its own answer."""
        expected = [f"{INTRODUCTION} Question {number}" for number in range(30)]
        self.assertEqual(self.result("parallel"), expected)


class _ClientTestCase(ClientTestCase):
    client = "js_langchain"
    program = "js/langchain.mjs"


class Http1Tests(_Tests, _ClientTestCase):
    """By ``NodeHttpHandler``."""

    environ = {"TRANSPORT": "https1"}


class Http2Tests(_Tests, _ClientTestCase):
    """As it is."""

    environ = {"TRANSPORT": "h2"}
