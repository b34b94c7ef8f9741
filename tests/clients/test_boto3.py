"""
boto3, the newest.
"""

from __future__ import annotations

from typing import Any

from tests.clients.gateway import (
    BROKEN_AFTER,
    BROKEN_MESSAGE,
    REFUSED_MESSAGE,
    THROTTLED_MESSAGE,
)
from tests.clients.programs.models import BROKEN, REFUSED, THROTTLED, UNKNOWN
from tests.clients.testcase import ANSWER, SENTENCE, WEATHER_INPUT, ClientTestCase


class CommonTests:
    """What all versions can do, and do in the same way."""

    program = "programs/client_boto3.py"
    services: int
    """How many of the three services know the operation that is asked for by a wrong key."""

    def test_converse(self: Any) -> None:
        """The key as access key id over plain http: text, usage, why it ended."""
        self.assertEqual(
            self.result("converse"),
            {"text": ANSWER, "input": 4, "output": 19, "stop": "end_turn"},
        )

    def test_converse_stream(self: Any) -> None:
        """One event a word, and the usage at the end."""
        result = self.result("stream")
        self.assert_pieces(result["pieces"])
        self.assertEqual(result["output"], 19)

    def test_AWS_style_pair(self: Any) -> None:
        """Over TLS and plain http; with another secret it is refused."""
        result = self.result("pair")
        self.assertEqual(result["texts"], [ANSWER, ANSWER])
        self.assert_raised(
            result["wrong"],
            "ClientError",
            "(InvalidSignatureException)",
            status=403,
            code="InvalidSignatureException",
        )

    def test_InvokeModel(self: Any) -> None:
        """Claude's own format, whole and streamed."""
        result = self.result("invoke")
        self.assertEqual(result["type"], "application/json")
        self.assertEqual(result["text"], ANSWER)
        self.assertEqual(result["usage"]["output_tokens"], 19)
        self.assert_pieces(result["pieces"])
        self.assertEqual(result["events"][0], "message_start")
        self.assertEqual(result["events"][-2:], ["message_delta", "message_stop"])
        self.assertEqual(result["metrics"]["outputTokenCount"], 19)

    def test_tools(self: Any) -> None:
        """A tool is asked for, whole and streamed, and its result is answered."""
        result = self.result("tools")
        self.assertEqual(result["stop"], "tool_use")
        self.assertEqual(result["name"], "get_weather")
        self.assertEqual(result["input"], WEATHER_INPUT)
        self.assert_json(result["streamed"], WEATHER_INPUT)
        self.assertEqual(result["then"], "end_turn")

    def test_embeddings(self: Any) -> None:
        """Titan's and Cohere's."""
        self.assertEqual(
            self.result("embeddings"), {"titan": 256, "tokens": 4, "cohere": [1024, 1024]}
        )

    def test_InvokeAgent(self: Any) -> None:
        """Chunks and traces as events, the session in a header."""
        result = self.result("invoke_agent")
        self.assertEqual(result["text"], SENTENCE)
        self.assertEqual(result["kinds"], ["chunk", "files", "returnControl", "trace"])
        self.assertTrue(result["session"])

    def test_Retrieve(self: Any) -> None:
        """A knowledge base."""
        self.assertEqual(self.result("retrieve"), [SENTENCE])

    def test_errors(self: Any) -> None:
        """Each is its own class with Bedrock's message, by streams as well, and told once."""
        expected: dict[str, tuple[str, str, int]] = {
            REFUSED: ("ValidationException", REFUSED_MESSAGE, 400),
            THROTTLED: ("ThrottlingException", THROTTLED_MESSAGE, 429),
            BROKEN: ("ModelStreamErrorException", BROKEN_MESSAGE, 424),
            UNKNOWN: ("ResourceNotFoundException", "There is no model named", 404),
        }
        found: dict[str, Any] = self.result("errors")
        self.assertEqual(len(found), 7)
        for what, error in found.items():
            name, message, status = expected[what.partition(" ")[2]]
            self.assert_raised(error, name, message, code=name, status=status)
        message = self.result("typed_error")
        self.assertIn("There is no model named 'no-such-model' here.", message)

    def test_error_in_a_stream(self: Any) -> None:
        """It is raised after the events that came before it."""
        result = self.result("broken_stream")
        self.assertEqual(
            result["events"], ["messageStart", *["contentBlockDelta"] * (BROKEN_AFTER - 1)]
        )
        self.assert_raised(
            result["error"], "EventStreamError", BROKEN_MESSAGE, code="modelStreamErrorException"
        )

    def test_wrong_key(self: Any) -> None:
        """Every service says what to give in place of it."""
        found = self.result("wrong_key")
        self.assertEqual(len(found), self.services)
        for error in found.values():
            self.assert_raised(
                error,
                "ClientError",
                "Give your AWS SDK the gateway's key as access key id",
                code="UnrecognizedClientException",
                status=403,
            )
            self.assertNotIn("sk-wrong", error["message"])


class Boto3Tests(CommonTests, ClientTestCase):
    """boto3 as people use it, each call by an ordinary client."""

    client = "boto3"
    services = 3

    def test_bearer_over_TLS(self) -> None:
        """AWS_BEARER_TOKEN_BEDROCK with the key, one-shot and streamed."""
        result = self.result("bearer_tls")
        self.assertEqual(result["text"], ANSWER)
        self.assertEqual(
            result["events"],
            [
                "messageStart",
                *["contentBlockDelta"] * 19,
                "contentBlockStop",
                "messageStop",
                "metadata",
            ],
        )

    def test_no_bearer_over_plain_http(self) -> None:
        """boto3 refuses it by itself."""
        error = self.result("bearer_plain")
        self.assert_raised(
            error, "InvalidEndpointConfigurationError", "requires an HTTPS endpoint"
        )

    def test_Rerank(self) -> None:
        """Documents get a score."""
        self.assertEqual(self.result("rerank"), [[0, 0.9], [1, 0.45], [2, 0.3]])
