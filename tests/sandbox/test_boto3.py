"""
The newest boto3, straight at the sandbox: what it sends is right, what it gets it can read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from botocore import UNSIGNED
from botocore.config import Config
from botocore.eventstream import ChecksumMismatch, EventStream
from botocore.exceptions import ClientError, ConnectionClosedError, EventStreamError
from botocore.exceptions import ReadTimeoutError as BotoReadTimeout
from botocore.response import StreamingBody
from twisted.internet.defer import Deferred
from urllib3.exceptions import ProtocolError

from tests.generated import SERVICES, method_name, operations, parameters
from tests.sandbox.wire import HAIKU, SandboxTestCase

MESSAGES = [{"role": "user", "content": [{"text": "Who are you really?"}]}]


def read(value: Any) -> Any:
    """A reply with its streams read to their ends."""
    if isinstance(value, EventStream):
        return list(value)
    if isinstance(value, StreamingBody):
        return value.read()
    if isinstance(value, dict):
        return {name: read(member) for name, member in value.items()}
    return value


class OperationTests(SandboxTestCase):
    """All that boto3 can call."""

    async def every_operation(self, service: str) -> None:
        client = self.client(service)
        todo = operations(service)

        def call_all() -> list[str]:
            problems = []
            for operation in todo:
                try:
                    reply = read(getattr(client, method_name(operation))(**parameters(operation)))
                except Exception as error:
                    problems.append(f"{operation.name}: {error!r}")
                    continue
                recorded = self.sandbox.requests[-1]
                if (recorded.service, recorded.operation) != (service, operation.name):
                    problems.append(f"{operation.name} taken for {recorded}")
                problems += missing(operation, reply)
            return problems

        problems = await self.in_thread(call_all)
        self.assertEqual(problems, [], "\n".join(problems))
        self.assertEqual(len(self.sandbox.requests), len(todo))
        self.assertEqual(self.sandbox.stats.refused, 0)


def missing(operation: Any, reply: dict[str, Any]) -> list[str]:
    """Members of the output that did not arrive, but for the token of a further page."""
    output = operation.output_shape
    if output is None or operation.service_model.service_name == "bedrock-runtime":
        return []  # the models answer with what the request makes sense of
    names = {
        name
        for name, member in output.members.items()
        if name.lower() != "nexttoken"
        # An event stream's own content type is on the wire.
        and not (operation.has_event_stream_output and name == "contentType")
    }
    absent = names - set(reply)
    return [f"{operation.name} lacks {', '.join(sorted(absent))}"] if absent else []


def _every(service: str) -> Callable[[OperationTests], Any]:
    async def test(self: OperationTests) -> None:
        await self.every_operation(service)

    test.__doc__ = f"boto3 calls every operation of {service} and parses what it gets."
    return test


for _service in SERVICES:
    setattr(OperationTests, f"test_{_service.replace('-', '_')}", _every(_service))


class CountTests(SandboxTestCase):
    """Nothing is forgotten above."""

    def test_all_there(self) -> None:
        """All operations but the bidirectional stream, which boto3 has no method for."""
        total = 0
        for service in SERVICES:
            client = self.client(service)
            theirs = {name for name in client.meta.method_to_api_mapping if hasattr(client, name)}
            self.assertEqual({method_name(each) for each in operations(service)}, theirs)
            total += len(theirs)
        self.assertGreaterEqual(total, 522)


class ConversationTests(SandboxTestCase):
    """The model routes, as they are used."""

    async def test_converse(self) -> None:
        reply = await self.in_thread(self.client().converse, modelId=HAIKU, messages=MESSAGES)
        text = reply["output"]["message"]["content"][0]["text"]
        self.assertIn("no model", text)
        self.assertIn("Who are you really?", text)
        self.assertEqual(reply["usage"]["outputTokens"], len(text.split()))
        request_id = reply["ResponseMetadata"]["RequestId"]
        self.assertEqual(self.sandbox.billed[request_id].usage.output, len(text.split()))

    async def test_converse_stream(self) -> None:
        client = self.client()
        call = client.converse_stream
        reply = await self.in_thread(lambda: read(call(modelId=HAIKU, messages=MESSAGES)))
        deltas = [each["contentBlockDelta"]["delta"]["text"] for each in reply["stream"][1:-3]]
        usage = reply["stream"][-1]["metadata"]["usage"]
        self.assertEqual(usage["outputTokens"], len("".join(deltas).split()))

    async def test_invoke_model(self) -> None:
        """The body is given back with its content type."""
        body = json.dumps({"inputText": "Who are you really?"})
        call = self.client().invoke_model
        reply = await self.in_thread(
            lambda: read(call(modelId="amazon.titan-text-lite-v1", body=body))
        )
        self.assertEqual(reply["contentType"], "application/json")
        self.assertEqual(json.loads(reply["body"])["inputTextTokenCount"], 4)

    async def test_pages(self) -> None:
        """A paginator comes to its end."""
        paginator = self.client("bedrock").get_paginator("list_guardrails")
        pages = await self.in_thread(lambda: list(paginator.paginate()))
        self.assertEqual(len(pages), 2)

    async def test_other_signature(self) -> None:
        """A session token is signed and accepted, if it is the right one."""
        self.start(session_token="a-token")
        client = self.client(aws_session_token="a-token")
        await self.in_thread(client.converse, modelId=HAIKU, messages=MESSAGES)


class ErrorTests(SandboxTestCase):
    """What boto3 raises."""

    async def converse(self, **options: Any) -> ClientError:
        client = self.client(**options)
        call = self.in_thread(client.converse, modelId=HAIKU, messages=MESSAGES)
        error: ClientError = await self.assertFailure(Deferred.fromCoroutine(call), ClientError)
        return error

    async def test_wrong_secret(self) -> None:
        error = await self.converse(aws_secret_access_key="other")
        self.assertEqual(error.response["Error"]["Code"], "InvalidSignatureException")

    async def test_missing_token(self) -> None:
        self.start(session_token="a-token")
        error = await self.converse()
        self.assertEqual(error.response["Error"]["Code"], "UnrecognizedClientException")

    async def test_expired(self) -> None:
        self.sandbox.clock_offset_s = 3600
        error = await self.converse()
        self.assertIn("Signature expired", error.response["Error"]["Message"])

    async def test_typed(self) -> None:
        """Each error code of bedrock-runtime is raised as its own class."""
        client = self.client()
        for code in [
            "AccessDeniedException",
            "InternalServerException",
            "ModelErrorException",
            "ModelNotReadyException",
            "ModelTimeoutException",
            "ResourceNotFoundException",
            "ServiceQuotaExceededException",
            "ServiceUnavailableException",
            "ThrottlingException",
            "ValidationException",
        ]:
            self.sandbox.faults.add("error", code=code)
            call = self.in_thread(client.converse, modelId=HAIKU, messages=MESSAGES)
            error = await self.assertFailure(
                Deferred.fromCoroutine(call), getattr(client.exceptions, code)
            )
            self.assertIn("The sandbox was asked for", error.response["Error"]["Message"])

    async def test_throttle_then_answer(self) -> None:
        """boto3 tries again as long as its attempts last."""
        self.sandbox.faults.add("throttle", times=2, retry_after_ms=1)
        client = self.client(attempts=3)
        reply = await self.in_thread(client.converse, modelId=HAIKU, messages=MESSAGES)
        self.assertEqual(reply["ResponseMetadata"]["RetryAttempts"], 2)
        self.assertEqual([each.status for each in self.sandbox.requests], [429, 429, 200])

    async def fails(self, expected: type[Exception], *, stream: bool = True, **fault: Any) -> Any:
        """boto3 fails with one fault, and then works again."""
        self.sandbox.faults.add(fault.pop("kind"), **fault)
        client = self.client(read_timeout=1)
        call = client.converse_stream if stream else client.converse

        def ask() -> Any:
            return read(call(modelId=HAIKU, messages=MESSAGES))

        error = await self.assertFailure(Deferred.fromCoroutine(self.in_thread(ask)), expected)
        await self.in_thread(ask)
        return error

    async def test_connection_faults(self) -> None:
        """Before the head each fault of the connection is an error."""
        await self.fails(BotoReadTimeout, kind="hang", stream=False)
        await self.fails(ConnectionClosedError, kind="drop", stream=False)
        await self.fails(ConnectionClosedError, kind="close", stream=False)
        await self.fails(Exception, kind="rubbish", stream=False)

    async def test_body_faults(self) -> None:
        """In the body, too: timeout, reset, an early end, a broken frame."""
        await self.fails(Exception, kind="hang", at="body", after=2)
        await self.fails(ProtocolError, kind="drop", at="body", after=2)
        await self.fails(ProtocolError, kind="drop", at="frame", after=2)
        await self.fails(ProtocolError, kind="close", at="body", after=2)
        await self.fails(ChecksumMismatch, kind="bad_crc", after=2)
        await self.fails(ChecksumMismatch, kind="gzip")

    async def test_in_stream_exception(self) -> None:
        error = await self.fails(
            EventStreamError, kind="exception", code="throttlingException", after=3
        )
        self.assertEqual(error.response["Error"]["Code"], "throttlingException")

    async def test_unsigned(self) -> None:
        """A client without a signature is told what is missing."""
        client = self.client(config=Config(signature_version=UNSIGNED))
        call = self.in_thread(client.list_async_invokes)
        error = await self.assertFailure(Deferred.fromCoroutine(call), ClientError)
        self.assertEqual(error.response["Error"]["Code"], "MissingAuthenticationTokenException")
