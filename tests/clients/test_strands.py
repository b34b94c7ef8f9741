"""
Strands Agents.
"""

from __future__ import annotations

from tests.clients.gateway import BROKEN_MESSAGE, REFUSED_MESSAGE, THROTTLED_MESSAGE
from tests.clients.programs.models import REFUSED, THROTTLED, UNKNOWN
from tests.clients.testcase import ANSWER, ClientTestCase


class StrandsTests(ClientTestCase):
    """Agents on a ``BedrockModel``."""

    client = "strands"
    program = "programs/client_strands.py"

    def test_agent(self) -> None:
        """By bearer over TLS, by ConverseStream as is its default."""
        self.assertEqual(self.result("agent"), {"text": ANSWER, "output": 19, "stop": "end_turn"})

    def test_converse(self) -> None:
        """Without streaming; the key as access key id."""
        self.assertEqual(self.result("plain"), ANSWER)

    def test_stream(self) -> None:
        """stream_async: a piece a word."""
        self.assert_pieces(self.result("stream"))

    def test_tools(self) -> None:
        """The agent runs the tool that is asked for and answers, by either kind of key."""
        expected = {
            "input": {"city": "sandbox", "days": 1},
            "result": [{"text": "It rains in sandbox for 1 days."}],
            "status": "success",
            "stop": "end_turn",
        }
        self.assertEqual(self.result("tools"), [expected, expected])

    def test_structured_output(self) -> None:
        """A pydantic model, by a tool that is forced."""
        self.assertEqual(self.result("structured"), {"city": "sandbox", "days": 1})

    def test_errors(self) -> None:
        """boto3's exceptions come through; its own class for throttling."""
        found = self.result("errors")
        for model, name, message in (
            (REFUSED, "ValidationException", REFUSED_MESSAGE),
            (THROTTLED, "ModelThrottledException", THROTTLED_MESSAGE),
            (UNKNOWN, "ResourceNotFoundException", "There is no model named"),
            ("wrong key", "ClientError", "as access key id"),
        ):
            self.assert_raised(found.pop(model), name, message)
        self.assertEqual(found, {})

    def test_error_in_a_stream(self) -> None:
        """It is raised after the pieces that came before it."""
        result = self.result("broken_stream")
        self.assertEqual(result["pieces"], ["This", " is", " the"])
        self.assert_raised(result["error"], "EventStreamError", BROKEN_MESSAGE)
