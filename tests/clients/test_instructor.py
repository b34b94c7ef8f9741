"""
Instructor.
"""

from __future__ import annotations

from tests.clients.gateway import REFUSED_MESSAGE
from tests.clients.programs.models import REFUSED, UNKNOWN
from tests.clients.testcase import ClientTestCase


class InstructorTests(ClientTestCase):
    """``from_bedrock`` on a client of boto3."""

    client = "instructor"
    program = "programs/client_instructor.py"

    def test_typed_answer(self) -> None:
        """A pydantic model, by a tool that is forced."""
        self.assertEqual(self.result("typed"), {"city": "sandbox", "days": 1})

    def test_errors(self) -> None:
        """Its own class, with boto3's error and Bedrock's message in it."""
        found = self.result("errors")
        for model, code, message in (
            (REFUSED, "ValidationException", REFUSED_MESSAGE),
            (UNKNOWN, "ResourceNotFoundException", "There is no model named"),
        ):
            error = found.pop(model)
            self.assert_raised(error, "InstructorRetryException", message)
            self.assertIn(f"({code})", error["message"])
        self.assertEqual(found, {})
