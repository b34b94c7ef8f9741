"""
LangChain, by langchain-aws.
"""

from __future__ import annotations

from tests.clients.gateway import BROKEN_MESSAGE, REFUSED_MESSAGE, THROTTLED_MESSAGE
from tests.clients.programs.models import REFUSED, THROTTLED, UNKNOWN
from tests.clients.testcase import ANSWER, INTRODUCTION, SENTENCE, ClientTestCase

RAIN = "It rains in sandbox for 1 days."


class LangChainTests(ClientTestCase):
    """Its classes that call Bedrock."""

    client = "langchain"
    program = "programs/client_langchain.py"

    def test_ChatBedrockConverse(self) -> None:
        """By bearer over TLS and by the key as access key id."""
        result = self.result("converse")
        self.assertEqual(result["text"], ANSWER)
        self.assertEqual(result["usage"]["output_tokens"], 19)
        self.assertEqual(self.result("signed"), ANSWER)

    def test_ChatBedrockConverse_stream(self) -> None:
        """One chunk a word, in asyncio as well."""
        result = self.result("stream")
        self.assert_pieces(result["pieces"])
        self.assertEqual(result["usage"]["output_tokens"], 19)
        self.assert_pieces(self.result("asynchronous"))

    def test_ChatBedrock(self) -> None:
        """InvokeModel: whole, streamed, with a tool, refused."""
        result = self.result("invoke_model")
        self.assertEqual((result["text"], result["output"]), (ANSWER, 19))
        self.assert_pieces(result["pieces"])
        (call,) = result["calls"]
        self.assertEqual(
            (call["name"], call["args"]), ("get_weather", {"city": "sandbox", "days": 1})
        )
        self.assert_raised(result["error"], "ValidationException", REFUSED_MESSAGE, status=400)

    def test_tools(self) -> None:
        """bind_tools: a call, its result, the answer to it; streamed too."""
        result = self.result("tools")
        self.assertEqual(result["name"], "get_weather")
        self.assertEqual(result["args"], {"city": "sandbox", "days": 1})
        self.assertEqual(result["result"], RAIN)
        self.assertEqual(result["then"], f"{INTRODUCTION} {RAIN}")
        self.assertEqual(result["streamed"], {"city": "sandbox", "days": 1})

    def test_structured_output(self) -> None:
        """A pydantic model, by a tool that is forced."""
        self.assertEqual(self.result("structured"), {"city": "sandbox", "days": 1})

    def test_embeddings(self) -> None:
        """BedrockEmbeddings with Titan and Cohere."""
        self.assertEqual(
            self.result("embeddings"),
            {"titan": 1024, "short": [256, 256], "cohere": [1024, 1024, 1024]},
        )

    def test_BedrockRerank(self) -> None:
        """The two best documents with their scores."""
        self.assertEqual(self.result("rerank"), [["one", 0.9], ["two", 0.45]])

    def test_AmazonKnowledgeBasesRetriever(self) -> None:
        """Documents of a knowledge base."""
        self.assertEqual(self.result("retriever"), [SENTENCE])

    def test_BedrockAgentsRunnable(self) -> None:
        """An agent that gives control back, and so wants a tool to be run."""
        self.assertEqual(self.result("agent"), ["BedrockAgentAction"])

    def test_errors(self) -> None:
        """boto3's exceptions come through."""
        found = self.result("errors")
        for model, name, message, status in (
            (REFUSED, "ValidationException", REFUSED_MESSAGE, 400),
            (THROTTLED, "ThrottlingException", THROTTLED_MESSAGE, 429),
            (UNKNOWN, "ResourceNotFoundException", "There is no model named", 404),
            ("wrong key", "ClientError", "as access key id", 403),
        ):
            self.assert_raised(found.pop(model), name, message, status=status)
        self.assertEqual(found, {})

    def test_error_in_a_stream(self) -> None:
        """It is raised after the chunks that came before it."""
        result = self.result("broken_stream")
        self.assertEqual("".join(result["pieces"]), "This is the")
        self.assert_raised(result["error"], "EventStreamError", BROKEN_MESSAGE)
