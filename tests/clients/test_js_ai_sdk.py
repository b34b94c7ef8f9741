"""
Vercel's AI SDK with its provider for Amazon Bedrock.
"""

from __future__ import annotations

from tests.clients.gateway import BROKEN_AFTER, BROKEN_MESSAGE, REFUSED_MESSAGE, THROTTLED_MESSAGE
from tests.clients.testcase import ANSWER, INTRODUCTION, WEATHER_INPUT, ClientTestCase

_WORDS = len(ANSWER.split())


class AiSdkTests(ClientTestCase):
    """generateText, streamText and the others, as their users call them."""

    client = "js_ai_sdk"
    program = "js/ai_sdk.mjs"

    def test_text(self) -> None:
        """The key as ``apiKey``, over TLS."""
        result = self.result("text")
        self.assertEqual((result["text"], result["finishReason"]), (ANSWER, "stop"))
        usage = result["usage"]
        self.assertEqual((usage["inputTokens"], usage["outputTokens"]), (4, _WORDS))

    def test_stream(self) -> None:
        """One part a word, and the usage at the end."""
        result = self.result("stream")
        self.assertEqual(
            result["types"],
            [
                *("start", "start-step", "text-start"),
                *["text-delta"] * _WORDS,
                *("text-end", "finish-step", "finish"),
            ],
        )
        self.assert_pieces(result["pieces"])
        self.assertEqual(result["usage"]["outputTokens"], _WORDS)
        self.assertEqual(result["finishReason"], "stop")

    def test_SigV4(self) -> None:
        """The key as access key id, over plain http; ids with a colon and a slash."""
        self.assertEqual(self.result("signed"), [ANSWER, ANSWER])

    def test_AWS_style_pair(self) -> None:
        """The signature is verified; this SDK does not sign the content type."""
        self.assertEqual(self.result("pair"), [ANSWER, ANSWER])
        self.assert_raised(
            self.result("wrong_pair"),
            "APICallError",
            "does not match the signature you provided",
            status=403,
        )

    def test_tools(self) -> None:
        """The SDK runs the tool and gives its result back, whole and streamed."""
        result = self.result("tools")
        self.assertEqual(result["steps"], 2)
        self.assertEqual(result["input"], WEATHER_INPUT)
        self.assertEqual(result["streamedInput"], WEATHER_INPUT)
        expected = f"{INTRODUCTION} Sunny and warm"
        self.assertEqual([result["text"], result["streamedText"]], [expected, expected])

    def test_object(self) -> None:
        """Structured output, by a tool that is forced."""
        self.assertEqual(self.result("object"), {"name": "sandbox", "age": 1})

    def test_embeddings(self) -> None:
        """Titan's, with usage, and several of Cohere's."""
        expected = {"titan": 1024, "tokens": 3, "cohere": [1024, 1024]}
        self.assertEqual(self.result("embeddings"), expected)

    def test_image(self) -> None:
        self.assertEqual(self.result("image"), {"type": "image/png", "bytes": 70})

    def test_rerank(self) -> None:
        """``/rerank`` with the key as bearer token, which no SDK of AWS's would send there."""
        ranking = self.result("rerank")
        self.assertEqual([each["document"] for each in ranking], ["nobody", "somebody"])
        self.assertGreater(ranking[0]["score"], ranking[1]["score"])

    def test_anthropic_provider(self) -> None:
        """``@ai-sdk/amazon-bedrock/anthropic``: Claude's own format by InvokeModel."""
        result = self.result("anthropic")
        self.assertEqual(result["text"], ANSWER)
        self.assertEqual(result["errors"], [])
        self.assert_pieces(result["pieces"])

    def test_errors(self) -> None:
        """APICallError with the status and Bedrock's or the gateway's words."""
        errors = self.result("errors")
        for name, message, status in (
            ("refused", REFUSED_MESSAGE, 400),
            ("throttled", THROTTLED_MESSAGE, 429),
            ("unknown", "There is no model named 'no-such-model' here.", 404),
            ("stranger", "The key is not one of this gateway's.", 403),
        ):
            self.assert_raised(errors[name], "APICallError", message, status=status)

    def test_retries(self) -> None:
        """It tries again when it is throttled, as often as it was told."""
        message = f"Failed after 2 attempts. Last error: AI_APICallError: {THROTTLED_MESSAGE}"
        self.assert_raised(self.result("retries"), "RetryError", message)

    def test_error_in_a_stream(self) -> None:
        """A part of its own, after what came before it."""
        result = self.result("broken_stream")
        self.assertEqual(result["pieces"], ["This", " is", " the"][: BROKEN_AFTER - 1])
        (error,) = result["errors"]
        self.assert_raised(error, "StreamProviderError", BROKEN_MESSAGE)

    def test_cancel(self) -> None:
        """The stream ends with a part that says so, soon after the third word."""
        types = self.result("cancel")
        self.assertEqual(types[-1], "abort")
        self.assertTrue(3 <= types.count("text-delta") < 10, types)

    def test_forty_at_once(self) -> None:
        """Forty at the same time, half of them streams, get each its own answer."""
        expected = [f"{INTRODUCTION} Question {number}" for number in range(40)]
        self.assertEqual(self.result("parallel"), expected)
