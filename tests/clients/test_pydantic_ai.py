"""
Pydantic AI.
"""

from __future__ import annotations

from tests.clients.gateway import BROKEN_MESSAGE, REFUSED_MESSAGE, THROTTLED_MESSAGE
from tests.clients.programs.models import REFUSED, THROTTLED, UNKNOWN
from tests.clients.testcase import ANSWER, INTRODUCTION, ClientTestCase

RAIN = "It rains in sandbox for 1 days."


class PydanticAITests(ClientTestCase):
    """Agents on a ``BedrockConverseModel``."""

    client = "pydantic_ai"
    program = "programs/client_pydantic_ai.py"

    def test_run(self) -> None:
        """By bearer over TLS, a name of config.yaml as model."""
        self.assertEqual(self.result("converse"), {"text": ANSWER, "output": 19})

    def test_stream(self) -> None:
        """A piece a word, and the usage at the end."""
        result = self.result("stream")
        self.assert_pieces(result["pieces"])
        self.assertEqual(result["output"], 19)

    def test_tools(self) -> None:
        """The agent runs the tool that is asked for and answers; the key as access key id."""
        self.assertEqual(
            self.result("tools"),
            {
                "args": {"city": "sandbox", "days": 1},
                "result": RAIN,
                "output": f"{INTRODUCTION} {RAIN}",
            },
        )

    def test_structured_output(self) -> None:
        """A pydantic model, whole and streamed; for this it wants Bedrock's id of the model."""
        self.assertEqual(self.result("structured"), [{"city": "sandbox", "days": 1}] * 2)

    def test_embeddings(self) -> None:
        """Titan's, by Bedrock's id; a name of config.yaml it refuses itself."""
        self.assertEqual(self.result("embeddings"), [1024, 1024])
        error = self.result("embeddings_by_alias")
        self.assert_raised(error, "UserError", "Unsupported Bedrock embedding model")

    def test_errors(self) -> None:
        """Its own classes, with Bedrock's message."""
        found = self.result("errors")
        for model, name, message, status in (
            (REFUSED, "ModelRequestRejectedError", REFUSED_MESSAGE, 400),
            (THROTTLED, "ModelRateLimitError", THROTTLED_MESSAGE, 429),
            (UNKNOWN, "ModelNotFoundError", "There is no model named", 404),
            ("wrong key", "ModelAuthenticationError", "as access key id", 403),
        ):
            self.assert_raised(found.pop(model), name, message, status=status)
        self.assertEqual(found, {})

    def test_error_in_a_stream(self) -> None:
        """It is raised after the pieces that came before it."""
        result = self.result("broken_stream")
        self.assertEqual(result["pieces"], ["This", " is", " the"])
        self.assert_raised(result["error"], "ModelServerError", BROKEN_MESSAGE, status=424)
