"""
Clients that sign with a key's AWS-style pair, as their users have them: boto3, the AWS
CLI and curl. What they sent is then tampered with, and sent again.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from twisted.trial.unittest import SkipTest

from tests.fakes import ACCESS_KEY_ID, KEY, request, until
from tests.loopback.test_boto3 import (
    APPLICATION_PROFILE,
    HAIKU,
    MESSAGES,
    OLD_BOTO3,
    OTHERS,
    QUESTION,
    SHARED,
    Boto3TestCase,
    Results,
    converse,
    model_routes,
)
from txbedrock.config import Settings
from txbedrock.config.settings import AccessSettings
from txbedrock.core import pairs
from txbedrock.inbound.http1 import Channel
from txbedrock.service import GatewayService

AWSCLI = os.path.join(sys.prefix, "awscli")
"""Where ``make test`` installs it: ``pip install --target``."""


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    """Replace what must be there, once."""
    assert old in data, (old, data)
    return data.replace(old, new, 1)


def inserted(data: bytes, *lines: bytes) -> bytes:
    """Headers before all others."""
    first, _, rest = data.partition(b"\r\n")
    return b"\r\n".join([first, *lines, rest])


def edited(data: bytes, name: bytes, change: Callable[[bytes], bytes | None]) -> bytes:
    """Change the line of a header, or leave it out, in whichever case it is written."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines: list[bytes] = []
    count = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(name + b":"):
            count += 1
            changed = change(line)
            assert changed != line, line
            lines += [] if changed is None else [changed]
        else:
            lines.append(line)
    assert count == 1, (name, head)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def other_digit(line: bytes) -> bytes:
    """Another last digit."""
    return line[:-1] + (b"1" if line[-1:] == b"0" else b"0")


def later(line: bytes) -> bytes:
    """A date a second later, or a second earlier."""
    digit = line[-2:-1]
    return line[:-2] + (b"1Z" if digit == b"0" else b"%dZ" % (int(digit) - 1))


def tampered(sent: bytes, key: str) -> dict[str, bytes]:
    """
    What may happen to a signed request on its way.

    :param key: the virtual key that the pair belongs to.
    """
    authorization = b"authorization"
    signature = re.search(rb"Signature=([0-9a-f]{64})", sent)
    date = re.search(rb"(?i)x-amz-date: ([0-9TZ]{16})", sent)
    scope = re.search(rb"(Credential=TXBK.{15})(.)/", sent)
    assert signature is not None and date is not None and scope is not None
    other = b"A" if scope[2] != b"A" else b"B"
    target = sent.split(b" ", 2)[1]
    result = {
        "signature": edited(sent, authorization, other_digit),
        "signature of nothing": replaced(sent, signature[1], b"0" * 64),
        "signature in upper case": replaced(sent, signature[1], signature[1].upper()),
        "no signature": edited(sent, authorization, lambda line: line[:-77]),
        "two signatures": edited(sent, authorization, lambda line: line + b"\r\n" + line),
        "region": replaced(sent, b"/us-east-1/", b"/us-east-2/"),
        "service": replaced(sent, b"/bedrock/aws4_request", b"/bedrock-agentcore/aws4_request"),
        "other service": replaced(sent, b"/bedrock/aws4_request", b"/s3/aws4_request"),
        "day": replaced(sent, date[1][:8] + b"/us-east-1", b"20200101/us-east-1"),
        "term": replaced(sent, b"aws4_request", b"aws4_reques"),
        "date": edited(sent, b"x-amz-date", later),
        "old date": replaced(sent, date[1], b"20200101T000000Z"),
        "no date": edited(sent, b"x-amz-date", lambda line: None),
        "two dates": edited(sent, b"x-amz-date", lambda line: line + b"\r\n" + line),
        "signed headers": replaced(sent, b"host;x-amz-date", b"host"),
        "host": edited(sent, b"host", lambda line: line + b"1"),
        "path": replaced(sent, b" /bedrock/", b" /bedrock//"),
        "dots": replaced(sent, b" /bedrock/", b" /bedrock/x/../"),
        "query": replaced(sent, target, target + (b"&" if b"?" in target else b"?") + b"x=y"),
        "another id": replaced(sent, b"Credential=TXBK", b"Credential=TXBKA"),
        "another id of this form": replaced(sent, scope[0], scope[1] + other + b"/"),
        "guardrail": inserted(sent, b"X-Amzn-Bedrock-GuardrailIdentifier: theirs"),
        "tags": inserted(sent, b"x-litellm-tags: theirs"),
        "session token": inserted(sent, b"X-Amz-Security-Token: t"),
        "session token that is the key": inserted(sent, b"X-Amz-Security-Token: " + key.encode()),
        "session token that is the master key": inserted(
            sent, b"X-Amz-Security-Token: " + KEY.encode()
        ),
        "payload unsigned": inserted(sent, b"X-Amz-Content-SHA256: UNSIGNED-PAYLOAD"),
        "host taken away": inserted(sent, b"Connection: x-amz-date"),
    }
    if QUESTION.encode() in sent:
        result |= {
            "body": replaced(sent, QUESTION.encode(), QUESTION.encode()[::-1]),
            "method": replaced(sent, b"POST ", b"PUT "),
            "another operation": replaced(sent, b"/converse", b"/count-tokens"),
            "type": edited(sent, b"content-type", lambda line: line + b";x"),
            "no type": edited(sent, b"content-type", lambda line: None),
        }
    else:
        result |= {
            "value in the query": replaced(sent, b"byProvider=", b"byProvider=X"),
            "name in the query": replaced(sent, b"byProvider=", b"byproviders="),
        }
    return result


class SignedTestCase(Boto3TestCase):
    """
    A key with a pair is made; what is signed with that is all that is known here of it.

    The sandbox answers only what the gateway signs itself; every byte that clients
    send is kept.
    """

    key: str
    key_id: str
    secret: str
    pair: dict[str, str]

    def setUp(self) -> None:
        super().setUp()
        self.pieces: dict[Channel, list[bytes]] = {}
        receive = Channel.dataReceived

        def received(channel: Channel, data: bytes) -> None:
            self.pieces.setdefault(channel, []).append(data)
            receive(channel, data)

        self.patch(Channel, "dataReceived", received)

    def tearDown(self) -> None:
        super().tearDown()
        for recorded in self.arrived():
            self.assertEqual(recorded.access_key_id, ACCESS_KEY_ID)
            self.assertNotIn(self.key_id.encode(), repr(recorded).encode())
        for secret in (self.secret, self.key):
            self.assertNotIn(secret, "".join(self.logged))

    def settings(self, **changes: Any) -> Settings:
        """With a database, where keys are kept, and a secret to derive pairs with."""
        values: dict[str, Any] = {
            "database_url": f"sqlite:///{os.path.abspath(self.mktemp())}",
            "access": AccessSettings(salt="planted-salt-of-the-server"),
        }
        return super().settings(**{**values, **changes})

    async def start_gateway(self, *arguments: Any, **options: Any) -> GatewayService:
        """Start a gateway, and have it make a key that may do everything, with a pair."""
        gateway = await super().start_gateway(*arguments, **options)
        wanted = {"aws_credentials": True, "operations": ["*"]}
        client = await self.ask(
            request(
                "/key/generate",
                json.dumps(wanted).encode(),
                headers=("Content-Type: application/json",),
            )
        )
        self.assertEqual(client.status, 200, client.received)
        made = json.loads(client.body)
        self.key = made["key"]
        self.key_id, self.secret = made["aws_access_key_id"], made["aws_secret_access_key"]
        self.pair = {"AWS_ACCESS_KEY_ID": self.key_id, "AWS_SECRET_ACCESS_KEY": self.secret}
        self.pieces.clear()
        return gateway

    def sent(self) -> list[bytes]:
        """What clients have sent, by connection; the secret is never in it."""
        sent = [b"".join(pieces) for pieces in self.pieces.values()]
        for one in sent:
            self.assertIn(b"AWS4-HMAC-SHA256", one)
            self.assertNotIn(self.secret.encode(), one)
            self.assertNotIn(self.key.encode(), one)
        return sent

    async def run_signed(
        self, calls: Sequence[Any], environ: Mapping[str, str] | None = None
    ) -> Results:
        """Let boto3 call with the pair."""
        return await self.run_client(calls, {**self.pair, **(environ or {})})

    async def run_process(self, *command: str, environ: Mapping[str, str] | None = None) -> Any:
        """Let any client call."""
        return await self.in_thread(
            subprocess.run,
            command,
            env={"PATH": os.environ.get("PATH", ""), "HOME": self.mktemp(), **(environ or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=100,
        )

    async def refused(self, data: bytes, what: str) -> dict[str, str]:
        """
        Send bytes that must be refused.

        :returns: code and message.
        """
        before = len(self.arrived())
        client = await self.ask(data)
        self.assertEqual(client.status, 403, f"{what}: {data!r}: {client.received!r}")
        self.assertEqual(len(self.arrived()), before, what)
        code = re.search(rb"x-amzn-errortype: (\w+)", client.head, re.IGNORECASE)
        assert code is not None, client.head
        message = json.loads(client.body)["message"]
        for secret in (self.secret, self.key):
            self.assertNotIn(secret, client.received.decode())
        return {"code": code[1].decode(), "message": message}

    async def check_tampered(self, sent: bytes) -> None:
        """
        As it was sent it is good; with anything changed it is not.
        """
        again = await self.ask(sent)
        self.assertEqual(again.status, 200, again.received)
        for what, data in tampered(sent, self.key).items():
            told = await self.refused(data, what)
            self.assertIn(
                told["code"],
                (
                    "invalidsignatureexception",
                    "incompletesignatureexception",
                    "unrecognizedclientexception",
                ),
                what,
            )


class _Signed:
    """boto3."""

    async def test_accepted(self: Any) -> None:
        """
        Every kind of call goes through: with ids, ARNs and queries that have to be
        escaped, for every service, and streams.
        """
        await self.start_both()
        calls = [
            *model_routes("team a/claude:latest é"),
            *model_routes(APPLICATION_PROFILE),
            *model_routes(HAIKU),
            *(call for call, _, _ in OTHERS),
            *(call for call, _ in SHARED),
        ]
        results = await self.run_signed(calls)
        unknown = [result for result in results[:5] if "absent" not in result]
        for result in unknown:  # It was let in, and nobody has such a model.
            self.assertEqual(result["code"], "ResourceNotFoundException", result)
        replies = self.replies(results[5:])
        self.assertEqual(len(self.arrived()), len(replies))
        self.assertGreater(len(replies), 15)
        self.assertGreater(len(self.sent()), 3)

    async def test_tampered(self: Any) -> None:
        """What it sent is good once more, and not with anything changed."""
        await self.start_both()
        listing = ("bedrock", "list_foundation_models", {"byProvider": "a b/c"})
        for call in (converse(HAIKU), listing):
            self.pieces.clear()
            self.replies(await self.run_signed([call]))
            [sent] = self.sent()
            await self.check_tampered(sent)

    async def test_wrong_secret(self: Any) -> None:
        """The id alone opens nothing, wherever it stands, and boto3 tells why."""
        await self.start_both()
        [result] = await self.run_signed(
            [converse(HAIKU)], {"AWS_SECRET_ACCESS_KEY": self.secret[:-1]}
        )
        self.assertEqual(result["code"], "InvalidSignatureException")
        self.assertIn("Check your AWS Secret Access Key", result["message"])
        self.assertEqual(result["metadata"]["HTTPStatusCode"], 403)
        [result] = await self.run_signed([converse(HAIKU)], {"AWS_SESSION_TOKEN": "token"})
        self.assertEqual(result["code"], "UnrecognizedClientException")
        self.assertIn("unset AWS_SESSION_TOKEN", result["message"])
        dummies = {"AWS_ACCESS_KEY_ID": "dummy", "AWS_SECRET_ACCESS_KEY": "dummy"}
        [result] = await self.run_signed(
            [converse(HAIKU)], {**dummies, "AWS_SESSION_TOKEN": self.key_id}
        )
        self.assertEqual(result["code"], "UnrecognizedClientException")
        self.assertEqual(self.arrived(), [])


class NewestTests(_Signed, SignedTestCase):
    """The boto3 that is installed."""


class OldTests(_Signed, SignedTestCase):
    """One from before bearer tokens."""

    version = "1.34.162"
    library = OLD_BOTO3
    new = False


class CommandLineTests(SignedTestCase):
    """
    The AWS CLI
    """

    def setUp(self) -> None:
        super().setUp()
        if not os.path.isdir(AWSCLI):
            message = (
                f"the AWS CLI is missing: {sys.executable} -m pip install --target {AWSCLI} awscli"
            )
            if os.environ.get("CI"):
                self.fail(message)
            raise SkipTest(message)

    async def aws(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Any:
        """Run it as a user does, with the pair in the environment."""
        return await self.run_process(
            sys.executable,
            "-P",
            os.path.join(AWSCLI, "bin", "aws"),
            *arguments,
            "--endpoint-url",
            f"http://127.0.0.1:{self.port}/bedrock",
            environ={
                "PYTHONPATH": AWSCLI,
                "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_MAX_ATTEMPTS": "1",
                **self.pair,
                **(environ or {}),
            },
        )

    async def answer(self, *arguments: str) -> Any:
        """What it prints, which is JSON."""
        ran = await self.aws(*arguments)
        self.assertEqual(ran.returncode, 0, ran.stderr.decode())
        return json.loads(ran.stdout)

    async def test_accepted(self) -> None:
        """A question, its tokens, the catalogue, a knowledge base and tags."""
        await self.start_both()
        messages = json.dumps(MESSAGES)
        for model in (HAIKU, APPLICATION_PROFILE):
            reply = await self.answer(
                *("bedrock-runtime", "converse", "--model-id", model, "--messages", messages)
            )
            self.assertIn("no model", reply["output"]["message"]["content"][0]["text"])
        out = self.mktemp()
        body = json.dumps({"max_tokens": 20, "messages": [{"role": "user", "content": QUESTION}]})
        await self.answer(
            *("bedrock-runtime", "invoke-model", "--model-id", HAIKU, "--body", body, out)
        )
        with open(out, encoding="utf-8") as written:
            self.assertIsInstance(json.load(written), dict)
        reply = await self.answer("bedrock", "list-foundation-models", "--by-provider", "a b/c")
        self.assertTrue(reply["modelSummaries"])
        reply = await self.answer(
            *("bedrock-agent-runtime", "retrieve", "--no-paginate"),
            *("--knowledge-base-id", "KNOWLEDGE1"),
            *("--retrieval-query", json.dumps({"text": QUESTION})),
        )
        self.assertTrue(reply["retrievalResults"])
        agent = "arn:aws:bedrock:us-west-2:123456789012:agent/AGENTAGENT"
        await self.answer("bedrock-agent", "list-tags-for-resource", "--resource-arn", agent)
        self.assertEqual(
            [recorded.operation for recorded in self.arrived()],
            [
                *("Converse", "Converse", "InvokeModel", "ListFoundationModels"),
                *("Retrieve", "ListTagsForResource"),
            ],
        )
        self.assertEqual(len(self.sent()), 6)

    async def test_tampered(self) -> None:
        """What it sent is good once more, and not with anything changed."""
        await self.start_both()
        messages = json.dumps(MESSAGES)
        for arguments in (
            ("bedrock-runtime", "converse", "--model-id", HAIKU, "--messages", messages),
            ("bedrock", "list-foundation-models", "--by-provider", "a b/c"),
        ):
            self.pieces.clear()
            await self.answer(*arguments)
            [sent] = self.sent()
            await self.check_tampered(sent)

    async def test_wrong_secret(self) -> None:
        """It says what is wrong."""
        await self.start_both()
        wrong = {"AWS_SECRET_ACCESS_KEY": "wrong"}
        ran = await self.aws("bedrock", "list-foundation-models", environ=wrong)
        self.assertNotEqual(ran.returncode, 0)
        self.assertIn(b"InvalidSignatureException", ran.stderr)
        self.assertIn(b"Check your AWS Secret Access Key", ran.stderr)
        self.assertEqual(self.arrived(), [])


class CurlTests(SignedTestCase):
    """
    curl, whichever there is.
    """

    def setUp(self) -> None:
        super().setUp()
        try:
            ran = subprocess.run(["curl", "--version"], capture_output=True, check=True)
            found = re.match(rb"curl ([0-9]+)\.([0-9]+)", ran.stdout)
        except (OSError, subprocess.CalledProcessError):
            found = None
        self.curl = (0, 0) if found is None else (int(found[1]), int(found[2]))
        if self.curl < (7, 75):
            message = "there is no curl that knows --aws-sigv4"
            if os.environ.get("CI"):
                self.fail(message)
            raise SkipTest(message)

    async def get(self, path: str, *options: str, secret: str = "") -> tuple[int, Any]:
        """Status and body."""
        ran = await self.run_process(
            *("curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "60"),
            *(
                "--aws-sigv4",
                "aws:amz:us-east-1:bedrock",
                "--user",
                f"{self.key_id}:{secret or self.secret}",
            ),
            *("--write-out", "\n%{http_code}", *options),
            f"http://127.0.0.1:{self.port}/bedrock{path}",
        )
        self.assertEqual(ran.returncode, 0, ran.stderr.decode())
        body, _, status = ran.stdout.rpartition(b"\n")
        return int(status), json.loads(body)

    async def post(self, path: str, *options: str, secret: str = "") -> tuple[int, Any]:
        """Ask a model."""
        return await self.get(
            path,
            *("--header", "Content-Type: application/json"),
            *("--data", json.dumps({"messages": MESSAGES}), *options),
            secret=secret,
        )

    async def test_accepted(self) -> None:
        """Questions with more headers, and the catalogue with a query that is escaped."""
        await self.start_both()
        status, reply = await self.post("/model/m/converse")
        self.assertEqual(status, 200, reply)
        self.assertIn("no model", reply["output"]["message"]["content"][0]["text"])
        options = ("--header", "X-Litellm-Tags: a, b", "--header", "Accept: application/json")
        status, reply = await self.post("/model/m/converse", *options)
        self.assertEqual(status, 200, reply)
        self.assertEqual(self.records.entries[-1].tags, ("a", "b"))
        status, reply = await self.get("/foundation-models")
        self.assertEqual(status, 200, reply)
        status, reply = await self.get("/foundation-models?byProvider=a%20b%2Fc&byZ=")
        self.assertEqual(status, 200, reply)
        self.assertEqual(len(self.sent()), 4)

    async def test_tampered(self) -> None:
        """What it sent is good once more, and not with anything changed."""
        await self.start_both()
        await self.post("/model/m/converse")
        await self.get("/foundation-models?byProvider=a%20b%2Fc")
        for sent in self.sent():
            await self.check_tampered(sent)

    async def test_wrong_secret(self) -> None:
        """It is told what is wrong."""
        await self.start_both()
        status, reply = await self.post("/model/m/converse", secret="wrong")
        self.assertEqual(status, 403)
        self.assertIn("Check your AWS Secret Access Key", reply["message"])
        self.assertNotIn("curl", reply["message"])
        self.assertEqual(self.arrived(), [])

    async def test_escaped(self) -> None:
        """
        Old versions sign a path with ``%3A`` in it wrongly: AWS refuses these, we do, and
        say so. Newer ones go through.
        """
        await self.start_both()
        status, reply = await self.post(f"/model/{HAIKU.replace(':', '%3A')}/converse")
        if status == 403:
            self.assertLess(self.curl, (8, 20))
            self.assertIn("older versions of curl", reply["message"])
            self.assertIn("newer one", reply["message"])
        else:
            self.assertEqual(status, 200, reply)
            self.assertGreater(self.curl, (8, 0))

    async def test_type_not_signed(self) -> None:
        """Without a type of its own curl sends one that it does not sign, and AWS takes that."""
        await self.start_both()
        status, reply = await self.get("/model/m/converse", "--data", "{}")
        self.assertEqual(status, 200, reply)


class RefusedTests(SignedTestCase):
    """
    What is signed with the secret, but not so that it protects
    """

    path = "/bedrock/foundation-models"

    def signed(
        self,
        auth: type[SigV4Auth] = SigV4Auth,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        body: bytes = b"",
        ahead_s: float = 0.0,
    ) -> bytes:
        """The bytes of a request that botocore signed, with a clock that may be wrong."""
        host = f"127.0.0.1:{self.port}"
        made = AWSRequest(method, f"http://{host}{self.path}", dict(headers or {}), body)
        moment = datetime.fromtimestamp(time.time() + ahead_s, UTC)
        with patch("botocore.auth.get_current_datetime", lambda: moment):
            auth(Credentials(self.key_id, self.secret), "bedrock", "us-east-1").add_auth(made)
        target = made.url.partition(host)[2]
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in made.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body

    async def test_clock(self) -> None:
        """A clock that is off by more than five minutes is told by how much."""
        await self.start_both()
        for ahead_s in (-290.0, 0.0, 290.0):
            client = await self.ask(self.signed(ahead_s=ahead_s))
            self.assertEqual(client.status, 200, client.received)
        told = await self.refused(self.signed(ahead_s=-310.0), "late")
        self.assertIn("Signature expired", told["message"])
        told = await self.refused(self.signed(ahead_s=310.0), "early")
        self.assertIn("Signature not yet current", told["message"])

    async def test_presigned(self) -> None:
        """A presigned URL is not accepted, with a signed header beside it neither."""
        await self.start_both()
        data = self.signed(SigV4QueryAuth)
        self.assertNotIn(b"Authorization", data)
        told = await self.refused(data, "presigned")
        self.assertEqual(told["message"], pairs.PRESIGNED)
        target = data.split(b" ", 2)[1]
        both = replaced(self.signed(), self.path.encode(), target)
        told = await self.refused(both, "both")
        self.assertEqual(told["message"], pairs.PRESIGNED)

    async def test_payload_not_signed(self) -> None:
        """Neither are payloads that are not signed, or signed piece by piece."""
        await self.start_both()
        for value in ("UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"):
            headers = {"X-Amz-Content-SHA256": value}
            told = await self.refused(self.signed(headers=headers), value)
            self.assertIn("payload must be signed", told["message"])

    async def test_id_elsewhere(self) -> None:
        """The id is no secret, and so it is no key."""
        await self.start_both()
        for line in (
            f"Authorization: Bearer {self.key_id}",
            f"x-api-key: {self.key_id}",
            f"X-Amz-Security-Token: {self.key_id}",
        ):
            data = f"GET {self.path} HTTP/1.1\r\nHost: h\r\n{line}\r\n\r\n".encode()
            told = await self.refused(data, line)
            self.assertEqual(told["code"], "unrecognizedclientexception")

    async def test_large(self) -> None:
        """A body that goes through the disk is verified like any other."""
        await self.start_both()
        self.path = "/bedrock/model/m/converse"
        body = json.dumps({"messages": MESSAGES, "filler": "x" * 3_000_000}).encode()
        data = self.signed(headers={"Content-Type": "application/json"}, method="POST", body=body)
        client = await self.ask(data)
        self.assertEqual(client.status, 200, client.received)
        await self.refused(data[:-10] + b"y" + data[-9:], "body")

    async def test_slow_upload(self) -> None:
        """What counts is when a request was sent, however long its body takes."""
        ahead_s = 0.0

        def seconds() -> float:
            return time.time() + ahead_s

        self.start_sandbox(wall_clock=seconds)
        await self.start_gateway(self.settings(), wall_clock=seconds)
        self.path = "/bedrock/model/m/converse"
        body = json.dumps({"messages": MESSAGES}).encode()
        headers = {"Content-Type": "application/json"}
        data = self.signed(headers=headers, method="POST", body=body)
        client = await self.connect()
        client.write(data[:-10])
        await until(lambda: bool(self.pieces) and self.sent()[-1] == data[:-10])
        ahead_s = 400.0
        client.write(data[-10:])
        await until(client.whole)
        self.assertEqual(client.status, 200, client.received)
