"""
The AWS CLI, version 1: the one that pip installs.
"""

from __future__ import annotations

import json
from typing import Any

from tests.clients.gateway import REFUSED_MESSAGE, THROTTLED_MESSAGE
from tests.clients.testcase import ANSWER, SENTENCE, ClientTestCase


class AWSCLITests(ClientTestCase):
    """``aws`` as people type it."""

    client = "awscli"
    program = "programs/awscli.sh"

    def out(self, step: str) -> str:
        """What a command printed; it must have gone well."""
        result = self.result(step)
        self.assertEqual(result["status"], 0, result["err"])
        out: str = result["out"]
        return out.strip()

    def test_converse(self) -> None:
        """The key as access key id, over plain http."""
        answer: dict[str, Any] = json.loads(self.out("converse"))
        self.assertEqual(answer["output"]["message"]["content"], [{"text": ANSWER}])
        self.assertEqual(answer["usage"]["outputTokens"], 19)
        self.assertEqual(answer["stopReason"], "end_turn")

    def test_bearer_over_TLS(self) -> None:
        """AWS_BEARER_TOKEN_BEDROCK with the key."""
        self.assertEqual(self.out("bearer"), ANSWER)

    def test_AWS_style_pair(self) -> None:
        """With a signature that is verified."""
        self.assertEqual(self.out("pair"), ANSWER)

    def test_no_streaming(self) -> None:
        """Version 1 has no command for it: whoever needs one wants version 2."""
        result = self.result("converse_stream")
        self.assertEqual(result["status"], 2)
        self.assertIn("Invalid choice", result["err"])

    def test_InvokeModel(self) -> None:
        """The answer goes to a file; 9 words were allowed."""
        answer = json.loads(self.out("invoke"))
        self.assertEqual(answer["content"][0]["text"], " ".join(ANSWER.split()[:9]))
        self.assertEqual(answer["stop_reason"], "max_tokens")

    def test_tools(self) -> None:
        """A tool is asked for."""
        use = json.loads(self.out("tools"))
        self.assertEqual((use["name"], use["input"]), ("get_weather", {"city": "sandbox"}))

    def test_embeddings(self) -> None:
        """As many numbers as were wanted."""
        self.assertEqual(len(json.loads(self.out("embeddings"))["embedding"]), 256)

    def test_Retrieve(self) -> None:
        """A knowledge base; the CLI asks for the second page by itself."""
        self.assertEqual(self.out("retrieve").splitlines(), [SENTENCE, SENTENCE])

    def test_Rerank(self) -> None:
        """Each document gets its score."""
        self.assertEqual(json.loads(self.out("rerank")), [0.9, 0.45])

    def test_list_models(self) -> None:
        """The control plane, below the same URL."""
        self.assertEqual(len(json.loads(self.out("list_models"))), 1)

    def test_errors(self) -> None:
        """What is printed names Bedrock's error and has its message."""
        for step, code, message in (
            ("refused", "ValidationException", REFUSED_MESSAGE),
            ("throttled", "ThrottlingException", THROTTLED_MESSAGE),
            ("unknown", "ResourceNotFoundException", "There is no model named 'no-such-model'"),
            ("wrong_key", "UnrecognizedClientException", "the gateway's key as access key id"),
        ):
            result = self.result(step)
            self.assertEqual((result["status"], result["out"]), (255, ""))
            self.assertIn(f"An error occurred ({code}) when calling the Converse", result["err"])
            self.assertIn(message, result["err"])
            self.assertNotIn("sk-wrong", result["err"])
