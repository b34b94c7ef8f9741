"""
Claude Code in Bedrock mode, without a terminal and without any other network.
"""

from __future__ import annotations

from tests.clients.gateway import BROKEN_MESSAGE, REFUSED_MESSAGE, THROTTLED_MESSAGE
from tests.clients.programs.models import BROKEN, REFUSED, THROTTLED, UNKNOWN
from tests.clients.testcase import ANSWER, INTRODUCTION, ClientTestCase

_WORDS = len(ANSWER.split())
_ANSWERED = {"status": 0, "output": ANSWER}


class ClaudeCodeTests(ClientTestCase):
    """``claude -p``, each time a process of its own."""

    client = "js_claude_code"
    program = "js/claude_code.mjs"

    def test_question(self) -> None:
        """The key as bearer token, over TLS; it picks the model itself."""
        self.assertEqual(self.result("hello"), _ANSWERED)

    def test_first_requests(self) -> None:
        """It asks the control plane for models, and tries some, before it asks the question."""
        self.result("hello")
        operations = [
            request["operation"]
            for request in self.gateway.requests()
            if any("claude-cli" in value for _, value in request["headers"])
        ]
        for operation in ("InvokeModel", "InvokeModelWithResponseStream"):
            self.assertIn(operation, operations)
        # This one by an SDK of AWS's that it holds, which has another name.
        self.assertIn(
            "ListInferenceProfiles", [each["operation"] for each in self.gateway.requests()]
        )

    def test_model_names(self) -> None:
        """A name of config.yaml, and an inference profile's ARN."""
        self.assertEqual(self.result("names"), {"alias": _ANSWERED, "arn": _ANSWERED})

    def test_SigV4(self) -> None:
        """Over plain http the key as access key id, and an AWS-style pair."""
        self.assertEqual(self.result("signed"), {"key": _ANSWERED, "pair": _ANSWERED})

    def test_token_of_a_gateway(self) -> None:
        """``CLAUDE_CODE_SKIP_BEDROCK_AUTH`` with ``ANTHROPIC_AUTH_TOKEN``."""
        self.assertEqual(self.result("token"), _ANSWERED)

    def test_stream(self) -> None:
        """One event a word."""
        result = self.result("stream")
        self.assertEqual(
            result["types"],
            [
                *("message_start", "content_block_start"),
                *["content_block_delta"] * _WORDS,
                *("content_block_stop", "message_delta", "message_stop"),
            ],
        )
        self.assert_pieces(result["pieces"])
        self.assertEqual(result["result"], ANSWER)

    def test_tool(self) -> None:
        """It reads a file because the model wants it, and tells the model what is in it."""
        result = self.result("tool")
        (used,) = result["used"]
        self.assertEqual((used["name"], used["input"]), ("Read", {"file_path": "sandbox"}))
        (given,) = result["results"]
        self.assertEqual(given["tool_use_id"], used["id"])
        self.assertIn("It is written here.", given["content"])
        self.assertEqual(result["result"], f"{INTRODUCTION} 1 It is written here. 2")

    def test_errors(self) -> None:
        """Status and words come through."""
        errors = self.result("errors")
        for model, said in (
            (UNKNOWN, f"404 There is no model named '{UNKNOWN}' here."),
            (REFUSED, f"400 {REFUSED_MESSAGE}"),
            (THROTTLED, f"(429) · {THROTTLED_MESSAGE}"),
            (BROKEN, f"424 {BROKEN_MESSAGE}"),
        ):
            self.assertEqual(errors[model]["status"], 1)
            self.assertIn(said, errors[model]["output"])

    def test_unknown_key(self) -> None:
        """It says in its own words that it has no access, after the tries that it is allowed."""
        self.assertEqual(
            self.result("stranger"), {"status": 1, "output": "Not logged in · Please run /login"}
        )
