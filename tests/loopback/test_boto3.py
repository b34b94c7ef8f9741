"""
boto3, the newest and one from before bearer tokens, as their users have them.

Each test runs both: a client process of its own calls the gateway in this one,
behind which is the sandbox.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import trustme
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory
from twisted.trial.unittest import SkipTest

from tests.fakes import ACCESS_KEY_ID, KEY
from tests.sandboxed import REGION, SandboxedTestCase
from txbedrock.config import Settings
from txbedrock.core.balance import RoutingSettings, Strategy
from txbedrock.core.deployments import CredentialSpec
from txbedrock.sandbox.service import Recorded

OLD_BOTO3 = os.path.join(sys.prefix, "boto3-1.34")
"""Where ``make test`` installs it: ``pip install --target``."""

_CLIENT = os.path.join(os.path.dirname(__file__), "client_boto3.py")

HAIKU = "anthropic.claude-3-haiku-20240307-v1:0"
PROFILE = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
APPLICATION_PROFILE = (
    "arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/a1b2c3d4e5f6"
)
GOV_PROFILE = (
    "arn:aws-us-gov:bedrock:us-gov-west-1:123456789012:inference-profile/"
    "us-gov.anthropic.claude-3-haiku-20240307-v1:0"
)
CHINA_MODEL = "arn:aws-cn:bedrock:cn-north-1::foundation-model/amazon.nova-lite-v1:0"

QUESTION = "Who are you really?"
MESSAGES = [{"role": "user", "content": [{"text": QUESTION}]}]
INVOCATION = json.dumps(
    {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 20,
        "messages": [{"role": "user", "content": QUESTION}],
    }
)

Call = tuple[str, str, dict[str, Any]]
Results = list[dict[str, Any]]


def converse(model: str) -> Call:
    return ("bedrock-runtime", "converse", {"modelId": model, "messages": MESSAGES})


def converse_stream(model: str) -> Call:
    return ("bedrock-runtime", "converse_stream", {"modelId": model, "messages": MESSAGES})


def model_routes(model: str) -> list[Call]:
    """The four ways to call a model, and what it would cost."""
    invocation = {"modelId": model, "body": INVOCATION}
    return [
        converse(model),
        converse_stream(model),
        ("bedrock-runtime", "invoke_model", invocation),
        ("bedrock-runtime", "invoke_model_with_response_stream", invocation),
        (
            "bedrock-runtime",
            "count_tokens",
            {"modelId": model, "input": {"converse": {"messages": MESSAGES}}},
        ),
    ]


MODEL_OPERATIONS = [
    "Converse",
    "ConverseStream",
    "InvokeModel",
    "InvokeModelWithResponseStream",
    "CountTokens",
]

_KNOWLEDGE_BASE = {
    "type": "KNOWLEDGE_BASE",
    "knowledgeBaseConfiguration": {
        "knowledgeBaseId": "KNOWLEDGE1",
        "modelArn": f"arn:aws:bedrock:us-west-2::foundation-model/{HAIKU}",
    },
}
_RERANK = {
    "queries": [{"type": "TEXT", "textQuery": {"text": QUESTION}}],
    "sources": [
        {
            "type": "INLINE",
            "inlineDocumentSource": {"type": "TEXT", "textDocument": {"text": "nobody"}},
        }
    ],
    "rerankingConfiguration": {
        "type": "BEDROCK_RERANKING_MODEL",
        "bedrockRerankingConfiguration": {
            "modelConfiguration": {
                "modelArn": "arn:aws:bedrock:us-west-2::foundation-model/cohere.rerank-v3-5:0"
            }
        },
    },
}
_INVOCATION_ARN = "arn:aws:bedrock:us-west-2:123456789012:async-invoke/abcdefghijkl"
_RUNTIME_ARN = "arn:aws:bedrock-agentcore:us-west-2:123456789012:runtime/agent-abcdefghij"

# service, method, arguments; the operation; a member of the reply
OTHERS: list[tuple[Call, str, str]] = [
    (
        (
            "bedrock-runtime",
            "apply_guardrail",
            {
                "guardrailIdentifier": "abcdefgh",
                "guardrailVersion": "1",
                "source": "INPUT",
                "content": [{"text": {"text": QUESTION}}],
            },
        ),
        "ApplyGuardrail",
        "action",
    ),
    (
        (
            "bedrock-agent-runtime",
            "retrieve",
            {"knowledgeBaseId": "KNOWLEDGE1", "retrievalQuery": {"text": QUESTION}},
        ),
        "Retrieve",
        "retrievalResults",
    ),
    (
        (
            "bedrock-agent-runtime",
            "retrieve_and_generate",
            {"input": {"text": QUESTION}, "retrieveAndGenerateConfiguration": _KNOWLEDGE_BASE},
        ),
        "RetrieveAndGenerate",
        "output",
    ),
    (
        (
            "bedrock-agent-runtime",
            "retrieve_and_generate_stream",
            {"input": {"text": QUESTION}, "retrieveAndGenerateConfiguration": _KNOWLEDGE_BASE},
        ),
        "RetrieveAndGenerateStream",
        "stream",
    ),
    (
        (
            "bedrock-agent-runtime",
            "invoke_agent",
            {
                "agentId": "AGENTAGENT",
                "agentAliasId": "ALIASALIAS",
                "sessionId": "session-1",
                "inputText": QUESTION,
            },
        ),
        "InvokeAgent",
        "completion",
    ),
    (
        (
            "bedrock-agent-runtime",
            "invoke_flow",
            {
                "flowIdentifier": "FLOWFLOWFL",
                "flowAliasIdentifier": "ALIASALIAS",
                "inputs": [
                    {
                        "content": {"document": QUESTION},
                        "nodeName": "FlowInputNode",
                        "nodeOutputName": "document",
                    }
                ],
            },
        ),
        "InvokeFlow",
        "responseStream",
    ),
    (("bedrock-agent-runtime", "rerank", _RERANK), "Rerank", "results"),
    (
        (
            "bedrock-runtime",
            "start_async_invoke",
            {
                "modelId": "amazon.nova-reel-v1:0",
                "modelInput": {"taskType": "TEXT_VIDEO"},
                "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": "s3://bucket/key"}},
            },
        ),
        "StartAsyncInvoke",
        "invocationArn",
    ),
    (
        ("bedrock-runtime", "get_async_invoke", {"invocationArn": _INVOCATION_ARN}),
        "GetAsyncInvoke",
        "status",
    ),
    (
        (
            "bedrock-runtime",
            "list_async_invokes",
            {"statusEquals": "Completed", "submitTimeAfter": "2026-01-01T00:00:00Z"},
        ),
        "ListAsyncInvokes",
        "asyncInvokeSummaries",
    ),
    (
        ("bedrock", "list_foundation_models", {"byProvider": "a b/c"}),
        "ListFoundationModels",
        "modelSummaries",
    ),
    (
        (
            "bedrock-agentcore",
            "invoke_agent_runtime",
            {"agentRuntimeArn": _RUNTIME_ARN, "payload": '{"prompt": "x"}'},
        ),
        "InvokeAgentRuntime",
        "response",
    ),
]

_ACCOUNT = "arn:aws:bedrock:us-west-2:123456789012:"
_TAGS = {"team": "a"}
_TAG_LIST = [{"key": "team", "value": "a"}]

# Operations whose method and path two or three services share.
SHARED: list[tuple[Call, str]] = [
    (
        (
            "bedrock-agent",
            "list_tags_for_resource",
            {"resourceArn": _ACCOUNT + "agent/AGENTAGENT"},
        ),
        "ListTagsForResource",
    ),
    (
        (
            "bedrock-agent",
            "tag_resource",
            {"resourceArn": _ACCOUNT + "knowledge-base/KNOWLEDGE1", "tags": _TAGS},
        ),
        "TagResource",
    ),
    (
        (
            "bedrock-agent-runtime",
            "tag_resource",
            {
                "resourceArn": _ACCOUNT + "session/12345678-1234-1234-1234-123456789012",
                "tags": _TAGS,
            },
        ),
        "TagResource",
    ),
    (
        (
            "bedrock-agentcore-control",
            "tag_resource",
            {"resourceArn": _RUNTIME_ARN, "tags": _TAGS},
        ),
        "TagResource",
    ),
    (
        (
            "bedrock",
            "tag_resource",
            {"resourceARN": _ACCOUNT + "guardrail/abcdefgh", "tags": _TAG_LIST},
        ),
        "TagResource",
    ),
    (
        (
            "bedrock-data-automation",
            "tag_resource",
            {
                "resourceARN": _ACCOUNT + "data-automation-project/abcdefghijkl",
                "tags": _TAG_LIST,
            },
        ),
        "TagResource",
    ),
]


class Boto3TestCase(SandboxedTestCase):
    """Runs a client process."""

    version = ""
    library: str | None = None
    """A folder that holds boto3 in place of the one that is installed."""

    new = True
    """Knows bearer tokens and what came with them."""

    absent: frozenset[str] = frozenset()
    """Operations that it does not know."""

    def setUp(self) -> None:
        super().setUp()
        if self.library is not None and not os.path.isdir(self.library):
            message = (
                f"boto3 {self.version} is missing: "
                f"{sys.executable} -m pip install --target {self.library} boto3=={self.version}"
            )
            if os.environ.get("CI"):
                self.fail(message)
            raise SkipTest(message)

    def settings(self, **changes: Any) -> Settings:
        """Ids and ARNs of Bedrock's own go where they say."""
        default = self.deployment(
            id="default",
            model_name="",
            model_id="*",
            endpoint_url=None,
            region_from_model=True,
        )
        return super().settings(**{"default": default, **changes})

    async def start_both(self, listen: str = "tcp:0:interface=127.0.0.1", **changes: Any) -> None:
        """Start sandbox and gateway."""
        self.start_sandbox()
        await self.start_gateway(self.settings(**changes), listen)

    async def run_client(
        self,
        calls: Sequence[Call],
        environ: Mapping[str, str] | None = None,
        scheme: str = "http",
        attempts: int = 1,
    ) -> Results:
        """
        Let a client process call.

        :param environ: in place of the gateway's key as the access key id.
        """
        environment = {
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_RETRY_MODE": "standard",
            "AWS_MAX_ATTEMPTS": str(attempts),
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": "whatever",
            **(environ or {}),
        }
        if self.library is not None:
            environment["PYTHONPATH"] = self.library
        todo = {"endpoint": f"{scheme}://127.0.0.1:{self.port}/bedrock", "calls": calls}
        ran: Any = await self.in_thread(
            subprocess.run,
            [sys.executable, "-P", _CLIENT],
            input=json.dumps(todo).encode(),
            env=environment,
            capture_output=True,
            timeout=100,
        )
        self.assertEqual(ran.returncode, 0, ran.stderr.decode())
        answer = json.loads(ran.stdout)
        if self.version:
            self.assertEqual(answer["version"], self.version)
        else:
            self.assertGreaterEqual(_numbers(answer["version"]), (1, 44))
        results: Results = answer["results"]
        self.assertEqual(len(results), len(calls))
        return results

    def known(self, operations: Sequence[str]) -> list[str]:
        """Those of some operations that this boto3 has."""
        return [each for each in operations if each not in self.absent]

    def replies(self, results: Results) -> list[dict[str, Any]]:
        """What was answered; what boto3 does not have is left out."""
        for result in results:
            self.assertTrue("reply" in result or "absent" in result, result)
        return [result["reply"] for result in results if "reply" in result]

    def arrived(self) -> list[Recorded]:
        """What the sandbox got."""
        return list(self.sandbox.requests)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


class _Operations:
    """What can be called, and by which names."""

    async def test_names(self: Any) -> None:
        """Aliases, odd ones too, model ids, profiles and ARNs: all five routes take them."""
        self.start_sandbox()
        odd = "team a/claude:latest é"
        deployments = (
            self.deployment(model_name="claude", model_id=HAIKU),
            self.deployment(id="d2", model_name=odd, model_id=PROFILE, region="eu-north-1"),
        )
        await self.start_gateway(
            self.settings(deployments=deployments, model_group_alias={"sonnet/new": odd})
        )
        names = {
            "claude": (HAIKU, REGION),
            odd: (PROFILE, "eu-north-1"),
            "sonnet/new": (PROFILE, "eu-north-1"),
            HAIKU: (HAIKU, REGION),
            PROFILE: (PROFILE, REGION),
            APPLICATION_PROFILE: (APPLICATION_PROFILE, "eu-west-1"),
            GOV_PROFILE: (GOV_PROFILE, "us-gov-west-1"),
            CHINA_MODEL: (CHINA_MODEL, "cn-north-1"),
        }
        calls = [each for name in names for each in model_routes(name)]
        replies = self.replies(await self.run_client(calls))
        expected = [
            (operation, model, region)
            for model, region in names.values()
            for operation in self.known(MODEL_OPERATIONS)
        ]
        self.assertEqual(
            [(each.operation, each.model, each.region) for each in self.arrived()], expected
        )
        self.assertEqual(len(replies), len(expected))
        for reply, (operation, *_) in zip(replies, expected, strict=True):
            self.check_answer(operation, reply)

    def check_answer(self: Any, operation: str, reply: dict[str, Any]) -> None:
        """Is it what the sandbox says?"""
        if operation == "Converse":
            self.assertIn("no model", reply["output"]["message"]["content"][0]["text"])
        elif operation == "ConverseStream":
            self.assertIn("messageStart", reply["stream"][0])
            self.assertIn("metadata", reply["stream"][-1])
        elif operation == "InvokeModel":
            self.assertIsInstance(json.loads(reply["body"]), dict)
            self.assertEqual(reply["contentType"], "application/json")
        elif operation == "InvokeModelWithResponseStream":
            for event in reply["body"]:
                json.loads(event["chunk"]["bytes"])
        else:
            self.assertGreater(reply["inputTokens"], 0)

    async def test_wildcard(self: Any) -> None:
        """``bedrock/*`` takes every model id, with ``bedrock/`` before it and without."""
        self.start_sandbox()
        wildcard = self.deployment(model_name="bedrock/*", model_id="*", region="ap-south-1")
        await self.start_gateway(self.settings(deployments=(wildcard,)))
        calls = [*model_routes(f"bedrock/{PROFILE}"), *model_routes(PROFILE)]
        self.replies(await self.run_client(calls))
        operations = self.known(MODEL_OPERATIONS)
        self.assertEqual(
            [(each.operation, each.model, each.region) for each in self.arrived()],
            [(operation, PROFILE, "ap-south-1") for operation in operations * 2],
        )

    async def test_other_operations(self: Any) -> None:
        """Guardrails, knowledge bases, agents, flows, rerank, async jobs, models, runtimes."""
        await self.start_both()
        results = await self.run_client([each for each, _, _ in OTHERS])
        answered = []
        for result, (_, operation, member) in zip(results, OTHERS, strict=True):
            if operation in self.absent:
                self.assertEqual(result, {"absent": True}, operation)
                continue
            self.assertIn("reply", result, operation)
            self.assertTrue(result["reply"][member], operation)
            answered.append(operation)
        self.assertEqual([each.operation for each in self.arrived()], answered)
        self.assertEqual(
            [each.service for each in self.arrived()],
            [each[0] for each, operation, _ in OTHERS if operation in answered],
        )

    async def test_shared_routes(self: Any) -> None:
        """Where services share a path, the ARN decides, and the right one is called."""
        await self.start_both()
        results = await self.run_client([each for each, _ in SHARED])
        self.replies(results)
        self.assertEqual(
            [(each.service, each.operation) for each in self.arrived()],
            [
                (call[0], operation)
                for (call, operation), result in zip(SHARED, results, strict=True)
                if "absent" not in result
            ],
        )
        self.assertEqual(
            sum("absent" in result for result in results), 0 if self.new else len(SHARED) - 3
        )


class _Keys:
    """Where boto3 has its key."""

    calls: Sequence[Call] = [
        converse(HAIKU),
        OTHERS[1][0],  # bedrock-agent-runtime
        OTHERS[10][0],  # bedrock
    ]

    async def test_access_key_id(self: Any) -> None:
        """The key as access key id works for every service, with any secret."""
        await self.start_both()
        self.replies(await self.run_client(self.calls))
        self.assertEqual(len(self.arrived()), 3)
        for recorded in self.arrived():
            self.assertEqual(recorded.access_key_id, ACCESS_KEY_ID)

    async def test_session_token(self: Any) -> None:
        """So does the key as session token beside dummy credentials."""
        await self.start_both()
        dummies = {"AWS_ACCESS_KEY_ID": "dummy", "AWS_SECRET_ACCESS_KEY": "dummy"}
        self.replies(await self.run_client(self.calls, {**dummies, "AWS_SESSION_TOKEN": KEY}))
        self.assertEqual(len(self.arrived()), 3)
        for recorded in self.arrived():
            names = [name.lower() for name, _ in recorded.headers]
            self.assertNotIn(b"x-amz-security-token", names)

    async def test_wrong_key(self: Any) -> None:
        """A wrong key is no riddle, and nothing goes to Bedrock."""
        await self.start_both()
        results = await self.run_client(
            [*self.calls, converse_stream(HAIKU)], {"AWS_ACCESS_KEY_ID": "sk-wrong"}, attempts=3
        )
        for result in results:
            self.assertEqual(result["code"], "UnrecognizedClientException")
            self.assertEqual(result["metadata"]["HTTPStatusCode"], 403)
            self.assertEqual(result["metadata"]["RetryAttempts"], 0)
            self.assertIn("key", result["message"])
            self.assertNotIn("sk-wrong", result["message"])
        self.assertEqual(self.arrived(), [])

    async def start_tls(self: Any) -> dict[str, str]:
        """
        Start a gateway with a certificate.

        :returns: what the client's environment needs to trust it.
        """
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        paths = {name: os.path.abspath(self.mktemp()) for name in ("ca", "key", "cert")}
        authority.cert_pem.write_to_path(paths["ca"])
        certificate.private_key_pem.write_to_path(paths["key"])
        certificate.cert_chain_pems[0].write_to_path(paths["cert"])
        await self.start_both(
            f"ssl:0:interface=127.0.0.1:privateKey={paths['key']}:certKey={paths['cert']}"
        )
        return {"AWS_CA_BUNDLE": paths["ca"]}

    async def test_tls(self: Any) -> None:
        """Over TLS, streams included."""
        trust = await self.start_tls()
        calls = [*self.calls, converse_stream(HAIKU)]
        self.replies(await self.run_client(calls, trust, "https"))
        self.assertEqual(len(self.arrived()), 4)


class _Errors:
    """What boto3 raises."""

    async def test_typed(self: Any) -> None:
        """What Bedrock refuses is raised as its own class, by streams as well, and once."""
        await self.start_both()
        codes = {
            "AccessDeniedException": 403,
            "InternalServerException": 500,
            "ModelErrorException": 424,
            "ModelNotReadyException": 429,
            "ModelTimeoutException": 408,
            "ResourceNotFoundException": 404,
            "ServiceQuotaExceededException": 400,
            "ServiceUnavailableException": 503,
            "ThrottlingException": 429,
            "ValidationException": 400,
        }
        for code in codes:
            self.sandbox.faults.add("error", code=code, model=f"test.{code}", times=None)
        calls = [each(f"test.{code}") for code in codes for each in (converse, converse_stream)]
        results = await self.run_client(calls)
        for (_, _, arguments), result in zip(calls, results, strict=True):
            code = arguments["modelId"].removeprefix("test.")
            self.assertEqual((result["class"], result["code"]), (code, code))
            self.assertEqual(result["message"], f"The sandbox was asked for {code}.")
            self.assertEqual(result["metadata"]["HTTPStatusCode"], codes[code])
        self.assertEqual(len(self.arrived()), len(calls))
        self.assertEqual(
            [result["metadata"]["RequestId"] for result in results],
            [recorded.request_id for recorded in self.arrived()],
        )

    async def test_throttling(self: Any) -> None:
        """boto3 tries a throttled request again; the gateway does not try on top of it."""
        await self.start_both()
        self.sandbox.faults.add("throttle", model="test.two", times=2, retry_after_ms=10)
        self.sandbox.faults.add("throttle", model="test.all", times=None, retry_after_ms=10)
        answered, refused = await self.run_client(
            [converse("test.two"), converse("test.all")], attempts=3
        )
        self.assertEqual(answered["reply"]["ResponseMetadata"]["RetryAttempts"], 2)
        self.assertEqual(refused["class"], "ThrottlingException")
        self.assertEqual(refused["metadata"]["RetryAttempts"], 2)
        self.assertEqual(
            [(each.model, each.status) for each in self.arrived()],
            [("test.two", 429), ("test.two", 429), ("test.two", 200)] + [("test.all", 429)] * 3,
        )

    async def test_unknown_model(self: Any) -> None:
        """A name that nobody configured is not found, at once, and is told."""
        await self.start_both()
        for result in await self.run_client(model_routes("no-such-model")[:4], attempts=3):
            self.assertEqual(result["class"], "ResourceNotFoundException")
            self.assertEqual(result["metadata"]["HTTPStatusCode"], 404)
            self.assertEqual(result["metadata"]["RetryAttempts"], 0)
            self.assertIn("no-such-model", result["message"])
        self.assertEqual(self.arrived(), [])

    async def test_bad_request(self: Any) -> None:
        """A path that cannot be sent on is a ValidationException."""
        await self.start_both()
        [result] = await self.run_client([converse("..")])
        self.assertEqual(result["class"], "ValidationException")
        self.assertEqual(self.arrived(), [])

    async def test_unavailable(self: Any) -> None:
        """Bedrock that does not accept connections is unavailable: boto3 tries again."""
        port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Factory())
        closed = port.getHost().port
        await port.stopListening()
        self.start_sandbox()
        down = self.deployment(model_name="down", endpoint_url=f"http://127.0.0.1:{closed}")
        await self.start_gateway(self.settings(deployments=(down,)))
        for result in await self.run_client([converse("down"), converse_stream("down")], None):
            self.assertEqual(result["class"], "ServiceUnavailableException")
            self.assertEqual(result["metadata"]["HTTPStatusCode"], 503)
        [result] = await self.run_client([converse("down")], attempts=2)
        self.assertEqual(result["metadata"]["RetryAttempts"], 1)
        self.assertEqual(len(self.records.records), 4)

    async def test_timeout(self: Any) -> None:
        """Bedrock that does not begin to answer is a ModelTimeoutException, not tried again."""
        self.start_sandbox()
        slow = self.deployment(model_name="slow", model_id="test.slow", timeout_s=0.2)
        await self.start_gateway(self.settings(deployments=(slow,)))
        self.sandbox.faults.add("hang", model="test.slow", times=None)
        for result in await self.run_client([converse("slow"), converse_stream("slow")], None):
            self.assertEqual(result["class"], "ModelTimeoutException")
            self.assertEqual(result["metadata"]["HTTPStatusCode"], 408)
        self.assertEqual(len(self.arrived()), 2)

    async def test_in_stream(self: Any) -> None:
        """An exception inside a stream is raised with its code, after what came before it."""
        await self.start_both()
        codes = ["throttlingException", "modelStreamErrorException", "validationException"]
        for code in codes:
            self.sandbox.faults.add("exception", code=code, after=3, model=f"test.{code}")
        results = await self.run_client([converse_stream(f"test.{code}") for code in codes])
        for code, result in zip(codes, results, strict=True):
            self.assertEqual((result["class"], result["code"]), ("EventStreamError", code))
            self.assertIn(f"The sandbox was asked for {code}", result["message"])
            self.assertEqual(len(result["events"]), 3)

    async def test_cut(self: Any) -> None:
        """A stream whose upstream breaks off is an error to boto3, wherever it breaks."""
        await self.start_both()
        for kind in ("drop", "close"):
            for place in ("body", "frame"):
                self.sandbox.faults.add(kind, at=place, after=3, model=f"test.{kind}.{place}")
        at_boundary = await self.run_client(
            [converse_stream("test.drop.body"), converse_stream("test.close.body")]
        )
        for result in at_boundary:
            self.assertEqual(
                (result["class"], result["code"]), ("EventStreamError", "internalServerException")
            )
            self.assertIn("broke", result["message"])
            self.assertEqual(len(result["events"]), 3)
        inside = await self.run_client(
            [converse_stream("test.drop.frame"), converse_stream("test.close.frame")]
        )
        for result in inside:
            self.assertNotIn("reply", result)
            self.assertEqual(len(result["events"]), 3)


class _Upstream:
    """Several deployments, and other ways to be known at Bedrock."""

    async def test_several(self: Any) -> None:
        """
        Two deployments of one name, each with its own region, credentials and base
        URL, whose path is signed and sent.
        """
        self.start_sandbox(prefix="/base/path")
        self.sandbox.accept("AKIAOTHEROTHEROTHER", "planted-other-secret")
        base = f"http://127.0.0.1:{self.upstream_port}/base/path"
        east = self.deployment(
            id="east",
            model_name="balanced",
            region="us-east-1",
            endpoint_url=f"{base}/_as/bedrock-runtime.us-east-1",
        )
        west = self.deployment(
            id="west",
            model_name="balanced",
            model_id=PROFILE,
            region="eu-west-1",
            endpoint_url=f"{base}/_as/bedrock-runtime.eu-west-1",
            credentials=CredentialSpec(
                access_key_id="AKIAOTHEROTHEROTHER", secret_access_key="planted-other-secret"
            ),
        )
        shuffled = RoutingSettings(strategy=Strategy.SIMPLE_SHUFFLE)
        await self.start_gateway(self.settings(deployments=(east, west), routing=shuffled))
        self.replies(
            await self.run_client([converse("balanced"), converse_stream("balanced")] * 10)
        )
        model = PROFILE.replace(":", "%3A").encode()
        self.assertEqual(
            {(each.region, each.access_key_id, each.target) for each in self.arrived()},
            {
                (region, key, f"/base/path/_as/bedrock-runtime.{region}".encode() + path + verb)
                for region, key, path in (
                    ("us-east-1", ACCESS_KEY_ID, b"/model/anthropic.claude-v1%3A0"),
                    ("eu-west-1", "AKIAOTHEROTHEROTHER", b"/model/" + model),
                )
                for verb in (b"/converse", b"/converse-stream")
            },
        )

    async def test_bearer(self: Any) -> None:
        """A deployment with a Bedrock API key sends that and does not sign."""
        self.start_sandbox(api_key="planted-api-key")
        spec = CredentialSpec(api_key="planted-api-key")
        by_key = self.deployment(model_name="by-key", credentials=spec)
        await self.start_gateway(self.settings(deployments=(by_key,)))
        self.replies(await self.run_client(model_routes("by-key")))
        self.assertEqual(len(self.arrived()), len(self.known(MODEL_OPERATIONS)))
        for recorded in self.arrived():
            headers = [(name.lower(), value) for name, value in recorded.headers]
            self.assertIn((b"authorization", b"Bearer planted-api-key"), headers)
            names = [name for name, _ in headers]
            self.assertEqual(names.count(b"authorization"), 1)
            self.assertNotIn(b"x-amz-date", names)
            self.assertNotIn(b"x-amz-security-token", names)

    async def test_bearer_is_not_for_agents(self: Any) -> None:
        """Services that take no API keys say so, when there is nothing else."""
        self.start_sandbox(api_key="planted-api-key")
        default = self.deployment(
            id="default",
            model_name="",
            model_id="*",
            endpoint_url=None,
            credentials=CredentialSpec(api_key="planted-api-key"),
        )
        await self.start_gateway(self.settings(default=default))
        agent, models = await self.run_client(self.calls[1:])
        self.assertIn("reply", models)
        self.assertEqual(agent["code"], "ServiceUnavailableException")
        self.assertEqual(agent["metadata"]["HTTPStatusCode"], 503)
        self.assertIn("bedrock-agent-runtime", agent["message"])
        self.assertIn("API key", agent["message"])
        self.assertEqual([each.service for each in self.arrived()], ["bedrock"])


class NewestTests(_Operations, _Keys, _Errors, _Upstream, Boto3TestCase):
    """The boto3 that is installed."""

    async def test_bearer_over_tls(self) -> None:
        """``AWS_BEARER_TOKEN_BEDROCK`` is enough for the services that take it."""
        trust = await self.start_tls()
        runtime, agents, models, stream = await self.run_client(
            [*self.calls, converse_stream(HAIKU)],
            {
                **trust,
                "AWS_BEARER_TOKEN_BEDROCK": KEY,
                "AWS_ACCESS_KEY_ID": "dummy",
                "AWS_SECRET_ACCESS_KEY": "dummy",
            },
            "https",
        )
        self.replies([runtime, models, stream])
        # boto3 does not send it to any other service.
        self.assertEqual(agents["code"], "UnrecognizedClientException")
        self.assertEqual(len(self.arrived()), 3)

    async def test_bearer_over_http(self) -> None:
        """boto3 itself refuses to send a bearer token without TLS: hence the other ways."""
        await self.start_both()
        [result] = await self.run_client([converse(HAIKU)], {"AWS_BEARER_TOKEN_BEDROCK": KEY})
        self.assertEqual(result["class"], "InvalidEndpointConfigurationError")
        self.assertEqual(self.records.records, [])


class OldTests(_Operations, _Keys, _Errors, _Upstream, Boto3TestCase):
    """One that signs everything."""

    version = "1.34.162"
    library = OLD_BOTO3
    new = False
    absent = frozenset(
        (
            "CountTokens",
            "GetAsyncInvoke",
            "InvokeAgentRuntime",
            "ListAsyncInvokes",
            "Rerank",
            "RetrieveAndGenerateStream",
            "StartAsyncInvoke",
        )
    )

    async def test_bearer_is_unknown(self) -> None:
        """``AWS_BEARER_TOKEN_BEDROCK`` is not looked at: the key has to be elsewhere."""
        await self.start_both()
        dummies = {"AWS_ACCESS_KEY_ID": "dummy", "AWS_SECRET_ACCESS_KEY": "dummy"}
        [result] = await self.run_client(
            [converse(HAIKU)], {**dummies, "AWS_BEARER_TOKEN_BEDROCK": KEY}
        )
        self.assertEqual(result["code"], "UnrecognizedClientException")
        self.assertEqual(self.arrived(), [])
