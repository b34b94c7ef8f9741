"""
LlamaIndex, by llama-index-llms-bedrock-converse.
"""

from __future__ import annotations

from tests.clients.gateway import BROKEN_MESSAGE, REFUSED_MESSAGE, THROTTLED_MESSAGE
from tests.clients.programs.models import REFUSED, THROTTLED
from tests.clients.testcase import ANSWER, ClientTestCase


class LlamaIndexTests(ClientTestCase):
    """``BedrockConverse``, by the key as access key id."""

    client = "llama_index"
    program = "programs/client_llama_index.py"

    def test_chat(self) -> None:
        """chat and complete."""
        self.assertEqual(self.result("converse"), {"text": ANSWER, "complete": ANSWER})

    def test_stream(self) -> None:
        """A piece a word."""
        self.assert_pieces(self.result("stream"))

    def test_asynchronous(self) -> None:
        """Whole and streamed, by aiobotocore."""
        result = self.result("asynchronous")
        self.assertEqual(result["text"], ANSWER)
        self.assert_pieces(result["pieces"])

    def test_inference_profile(self) -> None:
        """The ARN of an application inference profile in place of a model."""
        self.assertEqual(self.result("profile"), ANSWER)
        models = [request["model"] for request in self.gateway.requests()]
        arn = "arn:aws:bedrock:us-west-2:123456789012:application-inference-profile/a1b2c3d4e5f6"
        self.assertIn(arn, models)

    def test_tools(self) -> None:
        """chat_with_tools."""
        self.assertEqual(
            self.result("tools"), {"name": "get_weather", "args": {"city": "sandbox", "days": 1}}
        )

    def test_structured_output(self) -> None:
        """A pydantic model."""
        self.assertEqual(self.result("structured"), {"city": "sandbox", "days": 1})

    def test_no_other_names(self) -> None:
        """It refuses by itself what is no name of Bedrock's."""
        self.assert_raised(self.result("alias"), "ValueError", "Unknown model: my-claude")

    def test_errors(self) -> None:
        """boto3's exceptions come through."""
        found = self.result("errors")
        for model, name, message, status in (
            (REFUSED, "ValidationException", REFUSED_MESSAGE, 400),
            (THROTTLED, "ThrottlingException", THROTTLED_MESSAGE, 429),
            ("wrong key", "ClientError", "as access key id", 403),
        ):
            self.assert_raised(found.pop(model), name, message, status=status)
        self.assertEqual(found, {})

    def test_error_in_a_stream(self) -> None:
        """It is raised after the pieces that came before it."""
        result = self.result("broken_stream")
        self.assertEqual(result["pieces"], ["This", " is", " the"])
        self.assert_raised(result["error"], "EventStreamError", BROKEN_MESSAGE)
