"""
aioboto3.
"""

from __future__ import annotations

from tests.clients.gateway import BROKEN_AFTER, BROKEN_MESSAGE, REFUSED_MESSAGE, THROTTLED_MESSAGE
from tests.clients.programs.models import CLAUDE, REFUSED, SLOW, THROTTLED, UNKNOWN
from tests.clients.testcase import ANSWER, WEATHER_INPUT, ClientTestCase


class AIOBoto3Tests(ClientTestCase):
    """boto3's calls, awaited."""

    client = "aioboto3"
    program = "programs/client_aioboto3.py"

    def test_converse(self) -> None:
        """The key as access key id, over plain http."""
        self.assertEqual(self.result("converse"), ANSWER)

    def test_converse_stream(self) -> None:
        """One event a word, and the usage at the end."""
        result = self.result("stream")
        self.assert_pieces(result["pieces"])
        self.assertEqual(result["output"], 19)

    def test_many_at_once(self) -> None:
        """A slow stream holds nobody up; it began first and ends last."""
        done = self.result("together")
        self.assertEqual(done, [*[CLAUDE] * 20, SLOW])

    def test_bearer(self) -> None:
        """Over TLS, and with this botocore over plain http as well."""
        self.assertEqual(self.result("bearer"), [ANSWER, ANSWER])

    def test_tools(self) -> None:
        """A tool that is forced."""
        self.assertEqual(self.result("tools"), WEATHER_INPUT)

    def test_embeddings(self) -> None:
        """As many numbers as were wanted."""
        self.assertEqual(self.result("embeddings"), 512)

    def test_InvokeAgent(self) -> None:
        """All events of an agent."""
        self.assertEqual(self.result("invoke_agent"), ["chunk", "files", "returnControl", "trace"])

    def test_errors(self) -> None:
        """Each is its own class with Bedrock's message."""
        found = self.result("errors")
        for model, name, code, message, status in (
            (REFUSED, "ValidationException", None, REFUSED_MESSAGE, 400),
            (THROTTLED, "ThrottlingException", None, THROTTLED_MESSAGE, 429),
            (UNKNOWN, "ResourceNotFoundException", None, "There is no model named", 404),
            (CLAUDE, "ClientError", "UnrecognizedClientException", "as access key id", 403),
        ):
            error = found.pop(model)
            self.assert_raised(error, name, message, code=code or name, status=status)
        self.assertEqual(found, {})

    def test_error_in_a_stream(self) -> None:
        """It is raised after the events that came before it."""
        result = self.result("broken_stream")
        self.assertEqual(result["events"], BROKEN_AFTER)
        self.assert_raised(
            result["error"], "EventStreamError", BROKEN_MESSAGE, code="modelStreamErrorException"
        )
