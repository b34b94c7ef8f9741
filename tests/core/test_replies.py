"""Tests for :mod:`txbedrock.core.replies`."""

import inspect
import json

from twisted.trial.unittest import SynchronousTestCase

from txbedrock import errors
from txbedrock.core.replies import ErrorShape, render, shape_of


class RenderTests(SynchronousTestCase):
    """An error is told in the shape its client reads."""

    def test_aws(self) -> None:
        """Status, error type, request id and message, as AWS's own."""
        reply = render(errors.UnknownModel("no such", detail="hidden"), "r-1")
        headers = dict(reply.headers)
        self.assertEqual(reply.status, 404)
        self.assertEqual(headers[b"x-amzn-ErrorType"], b"ResourceNotFoundException")
        self.assertEqual(headers[b"x-amzn-RequestId"], b"r-1")
        self.assertEqual(headers[b"Content-Type"], b"application/json")
        self.assertEqual(json.loads(reply.body), {"message": "no such"})

    def test_openai(self) -> None:
        """OpenAI's object, with a type that its SDKs know."""
        reply = render(errors.UnrecognizedKey("who?"), "r", ErrorShape.OPENAI)
        self.assertEqual(
            json.loads(reply.body),
            {
                "error": {
                    "message": "who?",
                    "type": "authentication_error",
                    "param": None,
                    "code": "UnrecognizedClientException",
                }
            },
        )

    def test_anthropic(self) -> None:
        """Anthropic's object."""
        reply = render(errors.CredentialsUnavailable("later"), "r", ErrorShape.ANTHROPIC)
        self.assertEqual(
            json.loads(reply.body),
            {
                "type": "error",
                "error": {"type": "overloaded_error", "message": "later"},
                "request_id": "r",
            },
        )

    def test_litellm(self) -> None:
        """LiteLLM's object, whose code is a text, and its 401 for nobody's key."""
        reply = render(errors.UnrecognizedKey("who?"), "r", ErrorShape.LITELLM)
        self.assertEqual(reply.status, 401)
        self.assertEqual(
            json.loads(reply.body),
            {"error": {"message": "who?", "type": "auth_error", "param": None, "code": "401"}},
        )

    def test_every_error(self) -> None:
        """Every refusal there is renders in every shape and hides its detail."""
        kinds = [
            kind
            for _, kind in inspect.getmembers(errors, inspect.isclass)
            if issubclass(kind, errors.ProxyError)
        ]
        self.assertGreater(len(kinds), 10)
        for kind in kinds:
            for shape in ErrorShape:
                reply = render(kind("m", detail="operators-only"), "r", shape)
                expected = kind.status
                if shape is ErrorShape.LITELLM and issubclass(kind, errors.UnrecognizedKey):
                    expected = 401
                self.assertEqual(reply.status, expected)
                self.assertNotIn(b"operators-only", reply.body)

    def test_further_headers(self) -> None:
        """Headers of the error are part of the reply."""
        error = errors.MethodNotAllowed("no", headers=((b"Allow", b"GET"),))
        self.assertIn((b"Allow", b"GET"), render(error, "r").headers)

    def test_shape_of(self) -> None:
        """The path says whose client it is."""
        self.assertIs(shape_of(b"/openai/v1/chat/completions"), ErrorShape.OPENAI)
        self.assertIs(shape_of(b"/anthropic/v1/messages"), ErrorShape.ANTHROPIC)
        self.assertIs(shape_of(b"/model/openai/converse"), ErrorShape.AWS)
