"""
The new AWS SDK for Python, generated from Smithy models.
"""

from __future__ import annotations

from tests.clients.gateway import BROKEN_AFTER, BROKEN_MESSAGE, REFUSED_MESSAGE, THROTTLED_MESSAGE
from tests.clients.programs.models import CLAUDE, REFUSED, THROTTLED, UNKNOWN
from tests.clients.testcase import ANSWER, ClientTestCase

WORDS = len(ANSWER.split())


class SmithyTests(ClientTestCase):
    """``AsyncBedrockRuntimeClient``, which knows no bearer tokens."""

    client = "smithy"
    program = "programs/client_smithy.py"

    def test_converse(self) -> None:
        """The key as access key id, over plain http and over TLS."""
        self.assertEqual(self.result("converse"), {"text": ANSWER, "output": WORDS})
        self.assertEqual(self.result("over_tls"), ANSWER)

    def test_converse_stream(self) -> None:
        """One event a word, and the others around them."""
        result = self.result("stream")
        self.assert_pieces(result["pieces"])
        kinds = [kind.removeprefix("ConverseStreamOutput") for kind in result["kinds"]]
        self.assertEqual(
            kinds,
            [
                "MessageStart",
                *["ContentBlockDelta"] * WORDS,
                "ContentBlockStop",
                "MessageStop",
                "Metadata",
            ],
        )

    def test_embeddings(self) -> None:
        """As many numbers as were wanted."""
        self.assertEqual(self.result("embeddings"), 256)

    def test_errors(self) -> None:
        """The modelled classes; for what Bedrock's model lacks one of its own, with the name."""
        found = self.result("errors")
        for model, name, message in (
            (REFUSED, "ValidationException", REFUSED_MESSAGE),
            (THROTTLED, "ThrottlingException", THROTTLED_MESSAGE),
            (UNKNOWN, "ResourceNotFoundException", "There is no model named"),
            (CLAUDE, "CallError", "UnrecognizedClientException"),
        ):
            self.assert_raised(found.pop(model), name, message)
        self.assertEqual(found, {})

    def test_error_in_a_stream(self) -> None:
        """It is raised after the events that came before it."""
        result = self.result("broken_stream")
        self.assertEqual(len(result["kinds"]), BROKEN_AFTER)
        self.assert_raised(result["error"], "ModelStreamErrorException", BROKEN_MESSAGE)
