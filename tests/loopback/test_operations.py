"""
Every operation of Bedrock, from boto3 through the gateway to the sandbox.

Each is called twice with the same parameters: at the sandbox itself and through
the gateway. What boto3 was about to send is caught in the client; what arrived
is what the sandbox recorded, which also verified the signature over it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.eventstream import EventStream
from botocore.model import OperationModel
from botocore.response import StreamingBody
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import ACCESS_KEY_ID, KEY, SECRET, request
from tests.generated import method_name, operations, parameters
from tests.sandboxed import SandboxedTestCase
from txbedrock.config import SERVICES
from txbedrock.data import load
from txbedrock.sandbox.service import Recorded

REGION = "us-east-1"  # that of the ARNs among the generated parameters
BIDIRECTIONAL = "InvokeModelWithBidirectionalStream"

# What the gateway says itself to AWS, whatever the client said to it.
_SET_ANEW = frozenset(("authorization", "connection", "host", "x-amz-date"))

_OF_EACH_CALL = ("amz-sdk-invocation-id", "amz-sdk-request")


def read(value: Any) -> Any:
    """A reply with its streams read to their ends."""
    if isinstance(value, EventStream):
        return list(value)
    if isinstance(value, StreamingBody):
        return value.read()
    if isinstance(value, dict):
        return {name: read(member) for name, member in value.items()}
    return value


@dataclass
class Sent:
    """A request as boto3 made it, and what came of it."""

    method: str = ""
    target: bytes = b""
    headers: dict[str, bytes] = field(default_factory=dict)
    body: bytes = b""
    status: int = 0
    answer: Any = None
    """What boto3 made of the reply, its metadata apart."""

    answer_body: bytes | None = None
    """The raw body of a reply that is no stream."""


class Caller:
    """
    A boto3 client that shows what it sends.

    :param base: URL with the path that everything is below.
    """

    def __init__(self, service: str, base: str, access_key_id: str, secret: str) -> None:
        self._base_path = urlsplit(base).path
        self._client = boto3.session.Session().client(
            service,
            endpoint_url=base,
            region_name=REGION,
            aws_access_key_id=access_key_id,
            aws_secret_access_key=secret,
            config=Config(retries={"total_max_attempts": 1}, read_timeout=20),
        )
        self._sent = Sent()
        self._client.meta.events.register("before-send.*.*", self._before_send)
        self._client.meta.events.register("after-call.*.*", self._after_call)
        self.close = self._client.close

    def __call__(self, operation: OperationModel) -> Sent:
        sent = self._sent = Sent()
        reply = getattr(self._client, method_name(operation))(**parameters(operation))
        metadata = reply.pop("ResponseMetadata")
        sent.status = metadata["HTTPStatusCode"]
        sent.answer = read(reply)
        return sent

    def _before_send(self, request: Any, **_: Any) -> None:
        url = urlsplit(request.url)
        path = url.path.removeprefix(self._base_path) or "/"
        query = f"?{url.query}" if "?" in request.url else ""
        body = request.body or b""
        self._sent.method = request.method
        self._sent.target = (path + query).encode("ascii")
        self._sent.body = body if isinstance(body, bytes) else body.encode()
        self._sent.headers = {
            name.lower(): value if isinstance(value, bytes) else str(value).encode("utf-8")
            for name, value in request.headers.items()
        }

    def _after_call(self, http_response: Any, model: OperationModel, **_: Any) -> None:
        if not (model.has_event_stream_output or model.has_streaming_output):
            self._sent.answer_body = http_response.content


def headers_of(recorded: Recorded) -> dict[str, bytes]:
    """What arrived, without what belongs to the way to AWS."""
    headers = {name.decode().lower(): value for name, value in recorded.headers}
    assert len(headers) == len(recorded.headers), headers
    for name in _SET_ANEW:
        headers.pop(name, None)
    if headers.get("content-length") == b"0":
        # Without a body it says nothing: boto3 sends it with DELETE, the gateway does not.
        del headers["content-length"]
    return headers


class OperationTests(SandboxedTestCase):
    """All that boto3 has a method for."""

    async def every_operation(self, service: str) -> None:
        self.start_sandbox()
        await self.start_gateway(
            self.settings(
                deployments=(),
                default=self.deployment(
                    id="default",
                    model_name="",
                    model_id="*",
                    region=REGION,
                    region_from_model=True,
                    endpoint_url=None,
                ),
                endpoint_urls={each: self.at(each, REGION) for each in SERVICES},
            )
        )
        through = Caller(service, f"http://127.0.0.1:{self.port}/bedrock", KEY, "any")
        direct = Caller(service, self.at(service, REGION), ACCESS_KEY_ID, SECRET)
        self.addCleanup(through.close)
        self.addCleanup(direct.close)

        def call_all() -> tuple[set[str], list[str]]:
            carried: set[str] = set()
            problems: list[str] = []
            for operation in operations(service):
                try:
                    sent = through(operation)
                    arrived = self.sandbox.requests[-1]
                    plain = direct(operation)
                    plain_arrived = self.sandbox.requests[-1]
                except Exception as error:
                    problems.append(f"{operation.name}: {error!r}")
                    continue
                found = differences(service, operation, sent, arrived, plain, plain_arrived)
                problems += [f"{operation.name}: {each}" for each in found]
                if not found:
                    carried.add(operation.name)
            return carried, problems

        carried, problems = await self.in_thread(call_all)
        if problems:
            self.fail("\n".join(problems))
        names = {each["name"] for each in load("operations")["services"][service]["operations"]}
        self.assertEqual(carried, names - {BIDIRECTIONAL})
        self.assertEqual(len(self.sandbox.requests), 2 * len(carried))
        self.assertEqual(self.sandbox.stats.refused, 0)
        entries = self.records.entries
        self.assertEqual(
            {(entry.outcome, entry.service) for entry in entries}, {("complete", service)}
        )
        self.assertEqual({entry.operation for entry in entries}, carried)


def differences(
    service: str,
    operation: OperationModel,
    sent: Sent,
    arrived: Recorded,
    plain: Sent,
    plain_arrived: Recorded,
) -> list[str]:
    """
    What the gateway changed and should not have.

    :param sent: through the gateway; ``arrived`` is the same in the sandbox.
    :param plain: the same call straight at the sandbox; ``plain_arrived`` shows
        what boto3 puts on the wire beyond what it tells.
    """
    expected = headers_of(plain_arrived)
    expected |= {name: sent.headers[name] for name in _OF_EACH_CALL}
    pairs = {
        "service": (arrived.service, service),
        "called as": (arrived.called_as, service),
        "operation": (arrived.operation, operation.name),
        "signing name": (
            arrived.signing_name,
            operation.service_model.signing_name,
        ),
        "region": (arrived.region, REGION),
        "credentials": (arrived.access_key_id, ACCESS_KEY_ID),
        "method": (arrived.method.decode(), sent.method),
        "target": (
            arrived.target.removeprefix(f"/_as/{service}.{REGION}".encode()),
            sent.target,
        ),
        "body": (arrived.body, sent.body),
        "headers": (headers_of(arrived), expected),
        "target of the direct call": (sent.target, plain.target),
        "body of the direct call": (arrived.body, plain_arrived.body),
        "status": (sent.status, plain.status),
        "answer": (sent.answer, plain.answer),
        "bytes of the answer": (sent.answer_body, plain.answer_body),
    }
    return [f"{name}: {got!r} != {want!r}" for name, (got, want) in pairs.items() if got != want]


def _every(service: str) -> Callable[[OperationTests], Any]:
    async def test(self: OperationTests) -> None:
        await self.every_operation(service)

    test.__doc__ = (
        f"Every operation of {service} arrives as boto3 sent it, signed right, and its answer "
        "comes back as the sandbox sent it."
    )
    return test


for _service in SERVICES:
    setattr(OperationTests, f"test_{_service.replace('-', '_')}", _every(_service))


class CountTests(SynchronousTestCase):
    """Nothing is left out above."""

    def test_all_there(self) -> None:
        """The eight services have 523 operations, and boto3 calls all of them but one."""
        table = load("operations")["services"]
        self.assertEqual(set(table), set(SERVICES))
        self.assertEqual(sum(len(each["operations"]) for each in table.values()), 523)
        callable_ = {(each, op.name) for each in SERVICES for op in operations(each)}
        self.assertEqual(len(callable_), 522)
        known = {(each, op["name"]) for each in SERVICES for op in table[each]["operations"]}
        self.assertEqual(known - callable_, {("bedrock-runtime", BIDIRECTIONAL)})


class BidirectionalTests(SandboxedTestCase):
    """What no boto3 can call."""

    async def test_bidirectional(self) -> None:
        """A bidirectional stream is refused at once, as AWS refuses, and goes nowhere."""
        self.start_sandbox()
        await self.start_gateway(self.settings())
        client = await self.ask(
            request("/bedrock/model/amazon.nova-sonic-v1%3A0/invoke-with-bidirectional-stream")
        )
        self.assertEqual(client.status, 501)
        self.assertIn(b"x-amzn-errortype: unknownoperationexception", client.head)
        self.assertIn(b"x-amzn-requestid: ", client.head)
        self.assertIn(b"content-type: application/json", client.head)
        self.assertIn(BIDIRECTIONAL, json.loads(client.body)["message"])
        self.assertEqual(list(self.sandbox.requests), [])
