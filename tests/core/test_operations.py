"""
Which operation a request is found to mean.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from urllib.parse import quote

from botocore.utils import percent_encode
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.operations import Match, Operation, Operations, decode_label, usual_path
from txbedrock.data import load
from txbedrock.errors import InvalidRequest, MethodNotAllowed, UnknownOperation

OPERATIONS = Operations(load("operations"))

ACCOUNT = "us-east-1:123456789012"
PROFILE = f"arn:aws:bedrock:{ACCOUNT}:application-inference-profile/abc123"
AGENT = f"arn:aws:bedrock:{ACCOUNT}:agent/ABCDEFGHIJ"
SESSION = f"arn:aws:bedrock:{ACCOUNT}:session/0fc4cd76-2d2c-4a5f-8f6b-3b8a7c6d5e4f"
RUNTIME = f"arn:aws:bedrock-agentcore:{ACCOUNT}:runtime/my_runtime-AbCdEf1234"
BASE = f"arn:aws:bedrock:{ACCOUNT}:knowledge-base/ABCDEFGHIJ"
BLUEPRINT = f"arn:aws:bedrock:{ACCOUNT}:blueprint/abcdefghijkl"
GUARDRAIL = f"arn:aws:bedrock:{ACCOUNT}:guardrail/abcdefghijkl"

ARNS = {
    "/tags/{resourceArn}": {
        "bedrock-agent": AGENT,
        "bedrock-agent-runtime": SESSION,
        "bedrock-agentcore-control": RUNTIME,
    },
    "/resourcepolicy/{resourceArn}": {
        "bedrock-agent": BASE,
        "bedrock-agentcore-control": RUNTIME,
    },
}
BODY_ARNS = {"bedrock": GUARDRAIL, "bedrock-data-automation": BLUEPRINT}
TAG_ROUTES = ("/listTagsForResource", "/tagResource", "/untagResource")


def lower(encoded: str) -> str:
    return re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), encoded)


def fill(template: str, label: str) -> str:
    """A path of this template, with the label in each of its places."""
    return "/".join(label if each.startswith("{") else each for each in template.split("/"))


def labels_of(operation: Operation) -> Iterator[str]:
    """Labels, percent-encoded in all the ways that clients do it."""
    arns = ARNS.get(operation.template)
    if arns is not None:
        arn = arns[operation.service]
        yield from (quote(arn, safe=""), lower(quote(arn, safe="")), quote(arn, safe=":"))
        return
    yield from (
        "ABCDEFGHIJ",
        "my-name_1.2~x",
        "0fc4cd76-2d2c-4a5f-8f6b-3b8a7c6d5e4f",
        quote(PROFILE, safe=""),
        lower(quote(PROFILE, safe="")),
        quote(RUNTIME, safe=":"),
        "a%20b%C3%A9%25",
        "name:1",
    )
    if operation.takes_model:
        yield from (PROFILE, "team/model", "%2Fx", "invoke", "converse")


def find(
    method: str,
    path: str,
    *,
    target: bytes | None = None,
    signing_name: str | None = None,
    body: bytes | None = None,
) -> Match:
    def read() -> bytes:
        assert body is not None, "the body is read for three operations only"
        return body

    return OPERATIONS.match(
        method.encode(), path.encode(), target=target, signing_name=signing_name, body=read
    )


def name(match: Match) -> str:
    return f"{match.operation.service} {match.operation.name}"


class EveryOperationTests(SynchronousTestCase):
    def test_routes_back(self) -> None:
        """
        Each operation of each service is found by its own method and path, with
        ids of all forms; the path goes on as it came.
        """
        seen = 0
        table = load("operations")
        for operation in OPERATIONS:
            if operation.method == "*":
                continue
            seen += 1
            prefix = table["services"][operation.service].get("target_prefix")
            target = f"{prefix}.{operation.name}".encode() if prefix else None
            arn = BODY_ARNS.get(operation.service) if operation.template in TAG_ROUTES else None
            body = json.dumps({"resourceARN": arn}).encode() if arn else None
            for label in labels_of(operation):
                path = fill(operation.template, label)
                found = find(operation.method, path, target=target, body=body)
                self.assertEqual(found.operation, operation, path)
                if operation.takes_model:
                    self.assertEqual(found.model_label, label.encode())
                    self.assertEqual(
                        found.path_for("a:b/c"), b"/model/a%3Ab%2Fc" + found.model_suffix
                    )
                else:
                    self.assertEqual((found.model_label, found.model_suffix), (None, b""))
                    self.assertEqual(found.path_for("a:b/c"), path.encode())
        shipped = sum(len(each["operations"]) for each in table["services"].values())
        self.assertEqual(seen, shipped)
        self.assertEqual(len(OPERATIONS), seen + 2)

    def test_other_slash(self) -> None:
        """
        A slash too many or too few at the end changes nothing (but for the agents
        of the next test), and the client's form is sent on; where there is a model
        the path is made anew, as AWS has it.
        """
        for operation in OPERATIONS:
            if operation.method == "*" or operation.template == "/":
                continue
            if operation.template in ("/agents/{sessionId}", "/agents/{agentId}/"):
                continue
            if operation.template in TAG_ROUTES:
                continue
            label = next(labels_of(operation))
            path = fill(operation.template, label)
            path = path[:-1] if path.endswith("/") else path + "/"
            found = find(operation.method, path)
            self.assertEqual(found.operation, operation, path)
            if operation.takes_model:
                path = fill(operation.template, "x")
            self.assertEqual(found.path_for("x"), path.encode())

    def test_traits(self) -> None:
        """What streams, in which direction, and what takes a model is known."""
        found = find("POST", "/model/x/converse-stream").operation
        self.assertEqual(
            found,
            Operation(
                service="bedrock-runtime",
                name="ConverseStream",
                method="POST",
                template="/model/{modelId}/converse-stream",
                signing_name="bedrock",
                streams=True,
                bidirectional=False,
                takes_model=True,
            ),
        )
        both = find("POST", "/model/x/invoke-with-bidirectional-stream").operation
        self.assertEqual((both.streams, both.bidirectional), (True, True))
        invoke = find("POST", "/runtimes/x/invocations").operation
        self.assertEqual((invoke.signing_name, invoke.streams), ("bedrock-agentcore", False))
        self.assertEqual(
            {each.name for each in OPERATIONS if each.takes_model},
            {
                "Converse",
                "ConverseStream",
                "CountTokens",
                "InvokeModel",
                "InvokeModelWithBidirectionalStream",
                "InvokeModelWithResponseStream",
            },
        )


class SharedRouteTests(SynchronousTestCase):
    """Each row of Note [Routes that two services share], both ways."""

    def test_trailing_slash_of_agents(self) -> None:
        """An inline agent is run without the slash, an agent prepared with it."""
        self.assertEqual(
            name(find("POST", "/agents/x")), "bedrock-agent-runtime InvokeInlineAgent"
        )
        self.assertEqual(name(find("POST", "/agents/x/")), "bedrock-agent PrepareAgent")

    def test_tags(self) -> None:
        """Tags are read and written where the tagged thing is."""
        for method, action in {
            "GET": "ListTagsForResource",
            "POST": "TagResource",
            "DELETE": "UntagResource",
        }.items():
            for service, arns in {
                "bedrock-agent": (
                    AGENT,
                    BASE,
                    f"arn:aws-us-gov:bedrock:{ACCOUNT}:agent-alias/ABCDEFGHIJ/ABCDEFGHIJ",
                    f"arn:aws:bedrock:{ACCOUNT}:flow/ABCDEFGHIJ/alias/ABCDEFGHIJ",
                    f"arn:aws:bedrock:{ACCOUNT}:prompt/ABCDEFGHIJ:1",
                    f"arn:aws-cn:bedrock:{ACCOUNT}:retrieval-instruction/abcdefghij",
                    f"arn:aws:bedrock:{ACCOUNT}:something-new/abcdefghij",
                    # session/ somewhere else is no session
                    f"arn:aws:bedrock:{ACCOUNT}:agent/session/abc",
                ),
                "bedrock-agent-runtime": (SESSION, SESSION.replace("arn:aws:", "arn:aws-cn:")),
                "bedrock-agentcore-control": (
                    RUNTIME,
                    f"arn:aws-us-gov:bedrock-agentcore:{ACCOUNT}:gateway/session/x",
                ),
            }.items():
                for arn in arns:
                    for encoded in (quote(arn, safe=""), lower(quote(arn, safe=""))):
                        for signing_name in (None, "bedrock", "bedrock-agentcore"):
                            found = find(method, f"/tags/{encoded}", signing_name=signing_name)
                            self.assertEqual(name(found), f"{service} {action}", arn)

    def test_resource_policy(self) -> None:
        """Resource policies are read and written where the thing is."""
        for method, action in {
            "GET": "GetResourcePolicy",
            "PUT": "PutResourcePolicy",
            "DELETE": "DeleteResourcePolicy",
        }.items():
            for service, arn in {
                "bedrock-agent": BASE,
                "bedrock-agentcore-control": RUNTIME,
            }.items():
                found = find(method, f"/resourcepolicy/{quote(arn, safe='')}")
                self.assertEqual(name(found), f"{service} {action}")

    def test_no_arn(self) -> None:
        """
        Where the ARN does not tell, the client's signature does; without one it is
        bedrock-agent, whose answer says what is wrong with the ARN.
        """
        for label in ("ABCDEFGHIJ", "arn%3Aaws", "%FF", "aws%3Aarn" + "%3Ax" * 5):
            for route in ("tags", "resourcepolicy"):
                for signing_name, service in {
                    None: "bedrock-agent",
                    "bedrock": "bedrock-agent",
                    "s3": "bedrock-agent",
                    "bedrock-agentcore": "bedrock-agentcore-control",
                }.items():
                    found = find("GET", f"/{route}/{label}", signing_name=signing_name)
                    self.assertEqual(found.operation.service, service, (label, signing_name))

    def test_tags_of_bedrock_and_data_automation(self) -> None:
        """The three tag operations that name their ARN in the body follow it."""
        for path, action in zip(
            TAG_ROUTES, ("ListTagsForResource", "TagResource", "UntagResource"), strict=True
        ):
            for service, arns in {
                "bedrock-data-automation": [
                    f"arn:aws:bedrock:{ACCOUNT}:{kind}/abcdefghijkl"
                    for kind in (
                        "blueprint",
                        "blueprint-optimization-invocation",
                        "data-automation-library",
                        "data-automation-library-ingestion-job",
                        "data-automation-project",
                    )
                ],
                "bedrock": [
                    GUARDRAIL,
                    PROFILE,
                    f"arn:aws:bedrock:{ACCOUNT}:custom-model/x.y/abcdefghijkl",
                    f"arn:aws:bedrock:{ACCOUNT}:something-new/x",
                    SESSION,
                    RUNTIME,
                    "guardrail",
                ],
            }.items():
                for arn in arns:
                    body = json.dumps({"tags": [], "resourceARN": arn}).encode()
                    self.assertEqual(name(find("POST", path, body=body)), f"{service} {action}")

    def test_tags_without_a_readable_body(self) -> None:
        """A body that is not what it should be goes to bedrock, which will say so."""
        for body in (
            b"",
            b"{",
            b"[]",
            b"null",
            b"\xff",
            b'"resourceARN"',
            b'{"resourceArn": "' + BLUEPRINT.encode() + b'"}',
            b'{"resourceARN": ["' + BLUEPRINT.encode() + b'"]}',
            b"[" * 100_000,
            b" " * 2_000_000 + b'{"resourceARN": "' + BLUEPRINT.encode() + b'"}',
        ):
            self.assertEqual(
                name(find("POST", "/tagResource", body=body)), "bedrock TagResource", body[:40]
            )

    def test_target(self) -> None:
        """The operations that share ``POST /`` are told apart by X-Amz-Target."""
        for path in ("", "/"):
            for action in (
                "GetDataAutomationStatus",
                "InvokeDataAutomation",
                "InvokeDataAutomationAsync",
                "ListTagsForResource",
                "TagResource",
                "UntagResource",
            ):
                target = f"AmazonBedrockKeystoneRuntimeService.{action}".encode()
                found = find("POST", path, target=target)
                self.assertEqual(name(found), f"bedrock-data-automation-runtime {action}")
                self.assertEqual(found.path_for(""), b"/")

    def test_unknown_target(self) -> None:
        """Without a known X-Amz-Target the client is told which there are."""
        for target in (None, b"", b"TagResource", b"Other.TagResource", b"\xff\n" * 500):
            error = self.assertRaises(UnknownOperation, find, "POST", "/", target=target)
            self.assertIn(
                "AmazonBedrockKeystoneRuntimeService.InvokeDataAutomation", error.message
            )
            self.assertTrue(error.message.isprintable())
            self.assertLess(len(error.message), 1000)
        error = self.assertRaises(MethodNotAllowed, find, "GET", "")
        self.assertEqual(error.headers, ((b"Allow", b"POST"),))

    def test_literal_before_label(self) -> None:
        """A name that a route has for itself is not taken for an id..."""
        self.assertEqual(
            name(find("POST", "/flows/validate-definition")),
            "bedrock-agent ValidateFlowDefinition",
        )
        self.assertEqual(name(find("POST", "/flows/x/")), "bedrock-agent PrepareFlow")

    def test_label_after_literal(self) -> None:
        """... unless only as an id does it lead anywhere."""
        self.assertEqual(name(find("GET", "/flows/validate-definition/")), "bedrock-agent GetFlow")
        self.assertEqual(
            name(find("GET", "/flows/validate-definition/versions/1/")),
            "bedrock-agent GetFlowVersion",
        )
        self.assertEqual(
            name(find("POST", "/memories/create/retrieve")),
            "bedrock-agentcore RetrieveMemoryRecords",
        )


class ModelTests(SynchronousTestCase):
    def test_forms(self) -> None:
        """
        A model is named with colons and slashes raw or encoded, in either case;
        Bedrock gets boto3's form of the id that it stands for.
        """
        for label, text in {
            "claude": "claude",
            "us.anthropic.claude-3-5-sonnet-20240620-v1:0": (
                "us.anthropic.claude-3-5-sonnet-20240620-v1:0"
            ),
            "us.anthropic.claude-3-5-sonnet-20240620-v1%3A0": (
                "us.anthropic.claude-3-5-sonnet-20240620-v1:0"
            ),
            "us.anthropic.claude-3-5-sonnet-20240620-v1%3a0": (
                "us.anthropic.claude-3-5-sonnet-20240620-v1:0"
            ),
            PROFILE: PROFILE,
            quote(PROFILE, safe=""): PROFILE,
            quote(PROFILE, safe=":"): PROFILE,
            lower(quote(PROFILE, safe="")): PROFILE,
            "team/blue/claude": "team/blue/claude",
            "team%2Fblue%2fclaude": "team/blue/claude",
            "team%2Fa%20model%20%C3%A9": "team/a model é",
            "a/invoke": "a/invoke",
            "invoke": "invoke",
            "converse": "converse",
            "model": "model",
            "50%": "50%",
            "a%252Fb": "a%2Fb",
            "a+b": "a+b",
            "...": "...",
            ".hidden": ".hidden",
            "a%2F.hidden%2F...": "a/.hidden/...",
        }.items():
            for verb in ("converse", "invoke", "invoke-with-response-stream", "count-tokens"):
                found = find("POST", f"/model/{label}/{verb}")
                self.assertEqual(found.model_label, label.encode())
                self.assertEqual(found.model_suffix, f"/{verb}".encode())
                self.assertEqual(found.operation.template, f"/model/{{modelId}}/{verb}")
                self.assertEqual(decode_label(label.encode()), text)
                self.assertEqual(
                    found.path_for(text),
                    f"/model/{percent_encode(text, safe='-._~')}/{verb}".encode(),
                )

    def test_path_as_boto3(self) -> None:
        """Whatever id a deployment has, its path is the one boto3 would send."""
        chooser = random.Random(7)
        found = find("POST", "/model/x/converse")
        for _ in range(2000):
            model_id = "".join(
                chooser.choice("abYZ09-._~:/%?#+ @!$&'()*,;=[]|\"é\u20ac\U0001f600")
                for _ in range(chooser.randrange(1, 40))
            )
            if model_id in (".", ".."):
                continue
            path = found.path_for(model_id)
            self.assertEqual(
                path, b"/model/" + percent_encode(model_id, safe="-._~").encode() + b"/converse"
            )
            if not {".", ".."}.intersection(model_id.split("/")):
                label = OPERATIONS.match(b"POST", path).model_label
                assert label is not None
                self.assertEqual(decode_label(label), model_id)

    def test_no_dots_made(self) -> None:
        """An id from elsewhere cannot make a path that cannot be signed."""
        found = find("POST", "/model/x/converse")
        for model_id in ("", ".", ".."):
            self.assertRaises(InvalidRequest, found.path_for, model_id)

    def test_empty_label(self) -> None:
        """A model route without a model is refused as such."""
        for path in ("/model//converse", "/model//converse/"):
            error = self.assertRaises(InvalidRequest, find, "POST", path)
            self.assertIn("/model/{modelId}/converse", error.message)

    def test_unknown_verb(self) -> None:
        """The message names what there is after a model."""
        for path in (
            "/model/x/explain",
            "/model/x/Converse",
            "/model/x/converse%20",
            "/model/x",
            "/model/",
            "/model//",
            "/model/converse",
            "/model/converse/",
            "/model/x/converse//",
        ):
            error = self.assertRaises(UnknownOperation, find, "POST", path)
            self.assertEqual(error.status, 404)
            self.assertIn(f"POST {path} is not", error.message)
            self.assertIn("converse-stream, count-tokens, invoke", error.message)

    def test_wrong_method(self) -> None:
        """Models are asked by POST, also those with slashes."""
        for path in ("/model/x/converse", f"/model/{PROFILE}/invoke", "/model/x/converse/"):
            error = self.assertRaises(MethodNotAllowed, find, "GET", path)
            self.assertEqual(error.status, 405)
            self.assertEqual(error.headers, ((b"Allow", b"POST"),))
            self.assertIn("does not take GET: use POST", error.message)

    def test_remembered(self) -> None:
        """A path means the same each time; those that clients invent do not fill the memory."""
        operations = Operations(load("operations"))
        for path in (b"/model/x/converse", b"/model/%s/converse" % (b"y" * 600)):
            for _ in range(2):
                found = operations.match(b"POST", path)
                self.assertEqual((found.operation.name, found.raw_path), ("Converse", path))
                self.assertRaises(MethodNotAllowed, operations.match, b"GET", path)
        for number in range(3000):
            operations.match(b"POST", b"/model/x%d/invoke" % number)
        self.assertLessEqual(len(operations._recent), 1024)
        self.assertEqual(operations.match(b"POST", b"/model/x1/invoke").model_label, b"x1")


class DecodeLabelTests(SynchronousTestCase):
    def test_good(self) -> None:
        """Labels are decoded once, up to Bedrock's limit."""
        for label, text in {
            b"a": "a",
            b"%61": "a",
            b"%2561": "%61",
            b"%zz%": "%zz%",
            b"%F0%9F%98%80": "\U0001f600",
            b"a" * 2048: "a" * 2048,
            b"%C3%A9" * 2048: "é" * 2048,
        }.items():
            self.assertEqual(decode_label(label), text)

    def test_bad(self) -> None:
        """What cannot be the name of a model is refused."""
        for label, part in {
            b"%FF": "UTF-8",
            b"\xff": "UTF-8",
            b"%C3": "UTF-8",
            b"%ED%A0%80": "UTF-8",
            b"%C0%AF": "UTF-8",
            b"a" * 2049: "2048",
            b"%C3%A9" * 2049: "2048",
            b"a%00": "control",
            b"%0A": "control",
            b"%0d%0aX: y": "control",
            b"%7F": "control",
            b"%C2%85": "control",
        }.items():
            error = self.assertRaises(InvalidRequest, decode_label, label)
            self.assertIn(part, error.message)


class RefusedTests(SynchronousTestCase):
    def test_unknown(self) -> None:
        """
        A path that is none of Bedrock's is a 404 whose message names it, shortly
        and printably, and says what to do.
        """
        for method, path in (
            ("GET", "/nothing"),
            ("POST", "/model"),
            ("POST", "/models/x/converse"),
            ("POST", "//model/x/converse"),
            ("GET", "/agents//"),
            ("GET", "/agents//versions/"),
            ("GET", "/foundation-models/x/y"),
            ("GET", "/%66oundation-models"),
            ("GET", "/Foundation-Models"),
            ("GET", "//"),
            ("GET", "/" * 5000),
            ("GET", "/agents/" + "x/" * 5000),
            ("GET", "/openai/v1"),
            ("GET", "/openai/v1/"),
            ("GET", "/openai/v2/models"),
            ("POST", "/anthropic/messages"),
            ("<script>\n" * 50, "/<script>alert(1)</script>"),
        ):
            error = self.assertRaises(UnknownOperation, find, method, path)
            self.assertEqual((error.status, error.code), (404, "UnknownOperationException"))
            self.assertTrue(error.message.isprintable(), error.message)
            self.assertIn(path[:100], error.message)
            self.assertIn("Amazon Bedrock API reference", error.message)
            self.assertLess(len(error.message), 600)

    def test_raw_arn_elsewhere(self) -> None:
        """Whoever forgot to encode an ARN is told so."""
        error = self.assertRaises(UnknownOperation, find, "GET", f"/tags/{AGENT}")
        self.assertIn("%3A, %2F", error.message)

    def test_wrong_method(self) -> None:
        """A path that is there under other methods is a 405 that names them."""
        for method, path, allowed in (
            ("PATCH", "/foundation-models", b"GET"),
            ("HEAD", "/foundation-models", b"GET"),
            ("OPTIONS", "/guardrails/x", b"DELETE, GET, POST, PUT"),
            ("PATCH", "/tags/x", b"DELETE, GET, POST"),
            ("PATCH", "/flows/validate-definition", b"DELETE, GET, POST, PUT"),
            ("get", "/foundation-models", b"GET"),
        ):
            error = self.assertRaises(MethodNotAllowed, find, method, path)
            self.assertEqual((error.status, error.code), (405, "UnknownOperationException"))
            self.assertEqual(error.headers, ((b"Allow", allowed),), path)
            self.assertIn(f"use {allowed.decode()}", error.message)
            self.assertIn(path, error.message)

    def test_every_wrong_method(self) -> None:
        """No path of Bedrock answers a method it has not, and none says 404 to it."""
        for operation in OPERATIONS:
            if operation.method == "*":
                continue
            path = fill(operation.template, "ABCDEFGHIJ")
            error = self.assertRaises(MethodNotAllowed, find, "BREW", path)
            [(header, allowed)] = error.headers
            self.assertEqual(header, b"Allow")
            self.assertIn(operation.method.encode(), allowed.split(b", "))

    def test_dot_segments(self) -> None:
        """
        Dot segments are refused, encoded or not: what is signed must be what
        Bedrock sees.
        """
        for path in (
            "/.",
            "/..",
            "/./",
            "/model/../foundation-models",
            "/model/../converse",
            "/model/./converse",
            "/model/%2e%2e/converse",
            "/model/%2E/converse",
            "/model/.%2e/converse",
            "/model/%2E./converse",
            "/model/a/../b/converse",
            "/model/a/%2e%2E/b/converse",
            "/model/a%2F../converse",
            "/model/..%2fa/converse",
            "/model/a%2F%2e%2e%2Fb/converse",
            "/model/a%2f.%2fb/converse",
            "/model/x/..",
            "/model/x/../converse/",
            "/agents/../foundation-models",
            "/agents/%2e%2e/foundation-models",
            "/agents/x/agentversions/%2E%2e/",
            "/agents/..%2Fx/",
            "/openai/v1/../../model/x/converse",
            "/openai/v1/%2e%2e",
            "/tags/..",
        ):
            for method in ("GET", "POST"):
                error = self.assertRaises(InvalidRequest, find, method, path)
                self.assertEqual(error.status, 400, path)
                self.assertIn("'.' and '..'", error.message)

    def test_dots_in_names(self) -> None:
        """Names with dots in them are names."""
        for label in (
            "...",
            ".a",
            "a.",
            "a..b",
            "..a",
            "a..",
            "%2e%2e%2e",
            "%2ea",
            "a%2e",
            "a%2F..b",
            "f..%2Fb",
            "2F.",
        ):
            for path in (f"/model/{label}/converse", f"/flows/{label}/aliases/{label}"):
                self.assertEqual(find("POST", path).raw_path, path.encode())

    def test_unsendable(self) -> None:
        """
        What cannot be in a request line, or would end the path there, is refused
        before it is sent on.
        """
        for path in (
            b"model/x/converse",
            b"*",
            b"http://h/model/x/converse",
            b"/model/a b/converse",
            b"/model/a\x00/converse",
            b"/model/a\n/converse",
            b"/model/a\r\nX: y/converse",
            b"/model/a\x7f/converse",
            b"/model/\xc3\xa9/converse",
            b"/model/a/converse?x",
            b"/model/a#/converse",
            b"/agents/\t/",
            b" /agents/",
        ):
            error = self.assertRaises(InvalidRequest, OPERATIONS.match, b"POST", path)
            self.assertIn("percent-encoded", error.message)


class UsualPathTests(SynchronousTestCase):
    def test_usual(self) -> None:
        """What base URLs make of a path is taken for what its client means."""
        for path, usual in {
            b"/model/x/converse": b"/model/x/converse",
            b"//model/x/converse": b"/model/x/converse",
            b"///model/x/converse": b"/model/x/converse",
            b"/v1/model/x/converse": b"/model/x/converse",
            b"//v1/model/a%2Fb/invoke": b"/model/a%2Fb/invoke",
            b"//foundation-models": b"/foundation-models",
            b"/v1/messages": b"/anthropic/v1/messages",
            b"//v1/messages": b"/anthropic/v1/messages",
            b"/v1/messages/count_tokens": b"/anthropic/v1/messages/count_tokens",
            b"/anthropic/v1/messages": b"/anthropic/v1/messages",
            b"/openai/v1/responses": b"/openai/v1/responses",
            # And these are what they are.
            b"": b"",
            b"/": b"/",
            b"//": b"//",
            b"/v1": b"/v1",
            b"/v1/models": b"/v1/models",
            b"/v1/messagesx": b"/v1/messagesx",
            b"/agents//x/": b"/agents//x/",
            b"/model//converse": b"/model//converse",
            b"/model/v1/model/converse": b"/model/v1/model/converse",
        }.items():
            self.assertEqual(usual_path(path), usual)
            self.assertEqual(usual_path(usual), usual)


class HandAddedTests(SynchronousTestCase):
    def test_openai_and_anthropic(self) -> None:
        """
        The OpenAI and Anthropic paths of bedrock-runtime, which botocore does not
        know, are taken under any method and sent on as they came.
        """
        for path, action in {
            "/openai/v1/chat/completions": "OpenAI",
            "/openai/v1/responses": "OpenAI",
            "/openai/v1/responses/resp_1/cancel": "OpenAI",
            "/openai/v1/models/": "OpenAI",
            "/anthropic/v1/messages": "Anthropic",
            "/anthropic/v1/messages/count_tokens": "Anthropic",
            "/anthropic/v1/a%2Fb//c": "Anthropic",
        }.items():
            for method in ("GET", "POST", "DELETE", "PATCH", "BREW"):
                found = find(method, path)
                self.assertEqual(name(found), f"bedrock-runtime {action}")
                self.assertEqual(found.operation.signing_name, "bedrock")
                self.assertFalse(found.operation.streams or found.operation.takes_model)
                self.assertEqual(found.path_for("x"), path.encode())
