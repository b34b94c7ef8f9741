"""
Anthropic's SDK for Python.
"""

from __future__ import annotations

from tests.clients.gateway import BROKEN_MESSAGE, REFUSED_MESSAGE, THROTTLED_MESSAGE
from tests.clients.programs.models import BROKEN, REFUSED, THROTTLED, UNKNOWN
from tests.clients.testcase import ANSWER, WEATHER_INPUT, ClientTestCase

WORDS = len(ANSWER.split())
EVENTS = [
    "message_start",
    "content_block_start",
    *["content_block_delta"] * WORDS,
    "content_block_stop",
    "message_delta",
    "message_stop",
]


class AnthropicTests(ClientTestCase):
    """``AnthropicBedrock``, which calls InvokeModel, and its twin for asyncio."""

    client = "anthropic"
    program = "programs/client_anthropic.py"

    def test_messages(self) -> None:
        """By bearer, a name of config.yaml as model."""
        self.assertEqual(
            self.result("message"),
            {"text": ANSWER, "input": 4, "output": WORDS, "stop": "end_turn"},
        )

    def test_stream(self) -> None:
        """Text piece by piece, and the whole message at the end; the raw events too."""
        result = self.result("stream")
        self.assert_pieces(result["pieces"])
        self.assertEqual((result["output"], result["stop"]), (WORDS, "end_turn"))
        self.assertEqual(self.result("raw_stream"), EVENTS)

    def test_asynchronous(self) -> None:
        """AsyncAnthropicBedrock: whole, streamed, refused; bearer over plain http."""
        result = self.result("asynchronous")
        self.assertEqual(result["text"], ANSWER)
        self.assert_pieces(result["pieces"])
        self.assert_raised(result["error"], "BadRequestError", REFUSED_MESSAGE, status=400)

    def test_AWS_credentials(self) -> None:
        """The key as access key id, and an AWS-style pair; whole and streamed."""
        self.assertEqual(self.result("signed"), [ANSWER] * 4)

    def test_model_id_with_a_colon(self) -> None:
        """Bedrock's own ids, whose colon this client does not escape."""
        self.assertEqual(
            self.result("model_id"),
            {"text": " ".join(ANSWER.split()[:9]), "stop": "max_tokens"},
        )

    def test_tools(self) -> None:
        """A tool is asked for, whole and streamed, and its result is answered."""
        self.assertEqual(
            self.result("tools"),
            {
                "stop": "tool_use",
                "name": "get_weather",
                "input": WEATHER_INPUT,
                "streamed": WEATHER_INPUT,
                "then": "end_turn",
            },
        )

    def test_betas(self) -> None:
        """The name of a beta reaches Bedrock as header and in the body."""
        self.assertEqual(self.result("beta"), ANSWER)
        (request,) = (
            each for each in self.gateway.requests() if b"context-1m-2025-08-07" in each["body"]
        )
        headers = {name.lower(): value for name, value in request["headers"]}
        self.assertEqual(headers["anthropic-beta"], "context-1m-2025-08-07")

    def test_errors(self) -> None:
        """The SDK's class for each status, with Bedrock's message."""
        found = self.result("errors")
        for model, name, message, status in (
            (REFUSED, "BadRequestError", REFUSED_MESSAGE, 400),
            (THROTTLED, "RateLimitError", THROTTLED_MESSAGE, 429),
            (BROKEN, "APIStatusError", BROKEN_MESSAGE, 424),
            (UNKNOWN, "NotFoundError", "There is no model named", 404),
            ("wrong key", "PermissionDeniedError", "not one of this gateway's", 403),
        ):
            self.assert_raised(found.pop(model), name, message, status=status)
        self.assertEqual(found, {})

    def test_error_in_a_stream(self) -> None:
        """It is raised after the events that came before it."""
        result = self.result("broken_stream")
        self.assertEqual(result["events"], EVENTS[:4])
        self.assert_raised(result["error"], "APIStatusError", BROKEN_MESSAGE)
