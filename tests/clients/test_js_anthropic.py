"""
Anthropic's SDK for JavaScript, for Bedrock.
"""

from __future__ import annotations

import json

from tests.clients.gateway import BROKEN_AFTER, BROKEN_MESSAGE, REFUSED_MESSAGE, THROTTLED_MESSAGE
from tests.clients.testcase import ANSWER, INTRODUCTION, WEATHER_INPUT, ClientTestCase

_WORDS = len(ANSWER.split())


class AnthropicTests(ClientTestCase):
    """``messages`` of the client ``AnthropicBedrock``."""

    client = "js_anthropic"
    program = "js/anthropic.mjs"

    def test_message(self) -> None:
        """The key as ``apiKey``, over TLS."""
        message = self.result("message")
        self.assertEqual(message["content"], [{"type": "text", "text": ANSWER}])
        self.assertEqual(message["stop_reason"], "end_turn")
        usage = message["usage"]
        self.assertEqual((usage["input_tokens"], usage["output_tokens"]), (4, _WORDS))

    def test_stream(self) -> None:
        """One event a word; the SDK's helper puts the same message together."""
        result = self.result("stream")
        self.assertNotIn("error", result)
        self.assertEqual(
            result["types"],
            [
                *("message_start", "content_block_start"),
                *["content_block_delta"] * _WORDS,
                *("content_block_stop", "message_delta", "message_stop"),
            ],
        )
        self.assert_pieces(result["pieces"])
        final = result["final"]
        self.assertEqual((final["text"], final["stop"]), (ANSWER, "end_turn"))
        self.assertEqual(final["usage"]["output_tokens"], _WORDS)

    def test_model_ids(self) -> None:
        """An id with a colon, which this SDK does not escape, and an ARN with a slash."""
        self.assertEqual(self.result("ids"), [ANSWER, ANSWER])

    def test_SigV4(self) -> None:
        """The key as access key id, over plain http, whole and streamed."""
        self.assertEqual(self.result("signed"), [ANSWER, ANSWER])

    def test_AWS_style_pair(self) -> None:
        """The signature is verified."""
        self.assertEqual(self.result("pair"), [ANSWER, ANSWER])
        self.assert_raised(
            self.result("wrong_pair"),
            "PermissionDeniedError",
            "does not match the signature you provided",
            status=403,
        )

    def test_tools(self) -> None:
        """A tool is used, whole and streamed; its result is answered."""
        result = self.result("tools")
        self.assertEqual(result["stop"], "tool_use")
        for used in (result["used"], result["streamed"]):
            self.assertEqual((used["type"], used["name"]), ("tool_use", "get_weather"))
            self.assertEqual(used["input"], WEATHER_INPUT)
        self.assertEqual(result["text"], f"{INTRODUCTION} Sunny and warm")

    def test_beta(self) -> None:
        """What the SDK says of betas comes to Bedrock, in header and body."""
        self.assertEqual(self.result("beta"), f"{INTRODUCTION} With a beta")
        (request,) = (each for each in self.gateway.requests() if b"With a beta" in each["body"])
        headers = {name.lower(): value for name, value in request["headers"]}
        self.assertEqual(headers["anthropic-beta"], "context-1m-2025-08-07")
        body = json.loads(request["body"])
        self.assertEqual(body["anthropic_beta"], ["context-1m-2025-08-07"])

    def test_errors(self) -> None:
        """The SDK's class for each status, with Bedrock's or the gateway's words."""
        errors = self.result("errors")
        for name, expected, message, status in (
            ("refused", "BadRequestError", REFUSED_MESSAGE, 400),
            ("throttled", "RateLimitError", THROTTLED_MESSAGE, 429),
            ("unknown", "NotFoundError", "There is no model named 'no-such-model' here.", 404),
            ("stranger", "PermissionDeniedError", "The key is not one of this gateway's.", 403),
            ("stream", "NotFoundError", "There is no model named 'no-such-model' here.", 404),
        ):
            self.assert_raised(errors[name], expected, message, status=status)

    def test_error_in_a_stream(self) -> None:
        """What came before it is there; then the SDK throws."""
        result = self.result("broken_stream")
        self.assertEqual(len(result["events"]), BROKEN_AFTER)
        self.assert_raised(result["error"], "APIError", BROKEN_MESSAGE)
        self.assertIn("modelStreamErrorException", result["error"]["message"])

    def test_cancel(self) -> None:
        """A stream that is aborted ends at once, after two words."""
        types = self.result("cancel")
        self.assertTrue(2 <= types.count("content_block_delta") < 10, types)
        self.assertNotIn("message_stop", types)

    def test_forty_at_once(self) -> None:
        """Forty at the same time, half of them streams, get each its own answer."""
        expected = [f"{INTRODUCTION} Question {number}" for number in range(40)]
        self.assertEqual(self.result("parallel"), expected)
