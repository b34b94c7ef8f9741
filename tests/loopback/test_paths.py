"""
Requests as clients build them: paths, methods, framing, over real sockets.
"""

from __future__ import annotations

import gzip
import json
from urllib.parse import quote

from tests.fakes import (
    BODY,
    EVENT_STREAM,
    FRAME,
    KEY,
    GatewayTestCase,
    Received,
    UpstreamConnection,
    answer,
    chunk,
    request,
    until,
)

MODEL = "us.anthropic.claude-3-5-sonnet-20240620-v1:0"
PROFILE = "arn:aws:bedrock:us-west-2:123456789012:application-inference-profile/abcd1234"

_ENCODED = MODEL.replace(":", "%3A")
_LOWER = MODEL.replace(":", "%3a")
_PROFILE_SDK = quote(PROFILE, safe="")
_PROFILE_RAW_COLONS = PROFILE.replace("/", "%2F")

_AT_BEDROCK = f"/model/{_ENCODED}/"
_PROFILE_AT_BEDROCK = f"/model/{_PROFILE_SDK}/"


class PathTestCase(GatewayTestCase):
    """The gateway, and Bedrock as a script that keeps what it got."""

    async def start_paths(self) -> None:
        self.upstream = await self.start_upstream()
        await self.start_gateway(
            self.settings(
                deployments=(
                    self.deployment(model_name="claude", model_id=MODEL),
                    self.deployment(id="d2", model_name="team/blue", model_id=PROFILE),
                )
            )
        )

    async def arrived(self, path: str, method: str = "POST", body: bytes = BODY) -> str:
        """:returns: the target that Bedrock was asked for, or what the client was told."""
        before = len(self.upstream.requests)
        client = await self.ask(request(path, body, method=method))
        got = self.upstream.requests[before:]
        if client.status != 200:
            self.assertEqual(got, [])
            return f"{client.status} {json.loads(client.body)['message']}"
        [one] = got
        self.assertEqual(one.method.decode(), method)
        return one.target.decode()


class PathTests(PathTestCase):
    """What a client asks for, and what Bedrock is asked for."""

    async def test_models(self) -> None:
        """A model is found however its name and the base URL are written."""
        await self.start_paths()
        for verb in ("converse", "invoke", "count-tokens"):
            for path in (
                # The AWS SDKs, the AI SDK, litellm's Converse.
                f"/bedrock/model/{_ENCODED}/{verb}",
                # Anthropic's SDKs, Claude Code, curl.
                f"/bedrock/model/{MODEL}/{verb}",
                # Legal, too.
                f"/bedrock/model/{_LOWER}/{verb}",
                f"/bedrock/model/{quote(MODEL.replace('a', '%61'), safe='%')}/{verb}",
                # By the name in the configuration.
                f"/bedrock/model/claude/{verb}",
                # LiteLLM's own name for the model.
                f"/bedrock/model/bedrock/{MODEL}/{verb}",
                f"/bedrock/model/bedrock%2F{_ENCODED}/{verb}",
                # A base URL that ends with a slash; one that has a version.
                f"/bedrock//model/claude/{verb}",
                f"/bedrock/v1/model/claude/{verb}",
                f"/bedrock/v1/model/{_ENCODED}/{verb}",
                f"/bedrock//v1/model/{MODEL}/{verb}",
                # A slash too many at the end.
                f"/bedrock/model/claude/{verb}/",
                f"/bedrock/v1/model/{MODEL}/{verb}/",
            ):
                self.assertEqual(await self.arrived(path), _AT_BEDROCK + verb, path)

    async def test_profiles(self) -> None:
        """So is an ARN, and a name with a slash."""
        await self.start_paths()
        for label in (
            _PROFILE_SDK,
            _PROFILE_SDK.replace("%2F", "%2f").replace("%3A", "%3a"),
            _PROFILE_RAW_COLONS,
            PROFILE,
            "team/blue",
            "team%2Fblue",
            "team%2fblue",
        ):
            found = await self.arrived(f"/bedrock/model/{label}/converse")
            self.assertEqual(found, _PROFILE_AT_BEDROCK + "converse", label)

    async def test_streams(self) -> None:
        """The same for streams, whose answers are frames."""
        await self.start_paths()
        self.upstream.script = lambda up, _: up.write(
            EVENT_STREAM + chunk(FRAME * 2) + b"0\r\n\r\n"
        )
        for verb in ("converse-stream", "invoke-with-response-stream"):
            for path in (
                f"/bedrock/model/{MODEL}/{verb}",
                f"/bedrock//model/{_LOWER}/{verb}",
                f"/bedrock/v1/model/claude/{verb}/",
            ):
                client = await self.ask(request(path))
                self.assertEqual(client.dechunked(), FRAME * 2, path)
                target = self.upstream.requests[-1].target.decode()
                self.assertEqual(target, _AT_BEDROCK + verb)

    async def test_others(self) -> None:
        """Whatever else there is goes on as it came, its query with it."""
        await self.start_paths()
        tags = quote(PROFILE, safe="")
        for method, path, target in (
            ("GET", "/foundation-models", None),
            ("GET", "//foundation-models?a=1&&b=%20?&", "/foundation-models?a=1&&b=%20?&"),
            # Claude Code, before anything else.
            ("GET", "/inference-profiles?type=SYSTEM_DEFINED", None),
            ("GET", f"/inference-profiles/{tags}", None),
            ("GET", "/foundation-models?", None),
            ("POST", "/rerank", None),
            ("POST", "/retrieveAndGenerate", None),
            ("PUT", "/sessions/", None),
            ("POST", f"/guardrail/{tags}/version/1/apply", None),
            ("POST", "/openai/v1/chat/completions", None),
            ("GET", "/openai/v1/models", None),
            # AnthropicBedrockMantle, with /bedrock and with /bedrock/anthropic.
            ("POST", "/anthropic/v1/messages", None),
            ("POST", "/v1/messages", "/anthropic/v1/messages"),
            ("POST", "/v1/messages?beta=true", "/anthropic/v1/messages?beta=true"),
            ("POST", "/v1/messages/count_tokens", "/anthropic/v1/messages/count_tokens"),
        ):
            body = BODY if method == "POST" else b""
            found = await self.arrived(f"/bedrock{path}", method, body)
            self.assertEqual(found, path if target is None else target)

    async def test_nowhere(self) -> None:
        """What leads nowhere says so, and what to send instead."""
        await self.start_paths()
        for path, word in (
            ("/bedrock/model/claude", "/model/{modelId}/"),
            ("/bedrock/v1/model/claude/chat", "invoke-with-response-stream"),
            ("/bedrock//", "Amazon Bedrock API reference"),
            ("/bedrock/v1", "Amazon Bedrock API reference"),
            ("/bedrock/v2/model/claude/converse", "Amazon Bedrock API reference"),
            ("/bedrock/agents//versions/", "Amazon Bedrock API reference"),
            ("/Bedrock/model/claude/converse", "begin with /bedrock/"),
            ("//bedrock/model/claude/converse", "begin with /bedrock/"),
            ("/v1/model/claude/converse", ""),
        ):
            found = await self.arrived(path)
            self.assertTrue(found.startswith("404 "), (path, found))
            self.assertIn(word, found)

    async def test_empty_model(self) -> None:
        """A model id that is missing is told of, with one slash too many as well."""
        await self.start_paths()
        for path in ("/bedrock/model//converse", "/bedrock//model//converse"):
            found = await self.arrived(path)
            self.assertTrue(found.startswith("400 "), found)
            self.assertIn("model id", found)


class MethodTests(PathTestCase):
    """Methods that Bedrock does not have."""

    async def test_options(self) -> None:
        """
        Without CORS an OPTIONS request is one with a wrong method, for who has a key,
        and says nothing to who has none.
        """
        await self.start_paths()
        for path in ("/bedrock/model/claude/converse", "/bedrock/foundation-models"):
            client = await self.ask(request(path, b"", method="OPTIONS"))
            self.assertEqual(client.status, 405, path)
            self.assertIn(b"x-amzn-errortype: unknownoperationexception", client.head)
            self.assertRegex(client.head, rb"allow: (post|get)")
            self.assertNotIn(b"access-control", client.head)
            self.assertIn("use ", json.loads(client.body)["message"])
        browser = (
            "Origin: https://app.example.com",
            "Access-Control-Request-Method: POST",
            "Access-Control-Request-Headers: authorization",
        )
        client = await self.ask(
            request("/bedrock/model/claude/converse", b"", method="OPTIONS", key=None)[:-2]
            + "".join(f"{line}\r\n" for line in browser).encode()
            + b"\r\n"
        )
        self.assertEqual(client.status, 403)
        self.assertIn(b"x-amzn-errortype: unrecognizedclientexception", client.head)
        self.assertNotIn(b"access-control", client.head)
        self.assertEqual(self.upstream.requests, [])

    async def test_head(self) -> None:
        """HEAD is no operation of Bedrock's: 405 without a body, and the connection lives."""
        await self.start_paths()
        client = await self.connect()
        for count, (path, status) in enumerate(
            (
                ("/bedrock/foundation-models", 405),
                ("/bedrock/model/claude/converse", 405),
                ("/bedrock/nothing", 404),
                ("/health/liveness", 200),
                ("/nothing", 404),
            ),
            1,
        ):
            client.write(request(path, b"", method="HEAD"))
            await until(lambda: client.received.count(b"\r\n\r\n") == count)  # noqa: B023
            last = client.received.split(b"\r\n\r\n")[count - 1]
            self.assertTrue(last.startswith(b"HTTP/1.1 %d " % status), last)
            self.assertRegex(last.lower(), rb"content-length: [1-9]")
        self.assertTrue(client.received.endswith(b"\r\n\r\n"))
        self.assertIsNone(client.lost)

    async def test_head_passes(self) -> None:
        """Where every method goes on, the answer to HEAD is a head, and another follows."""
        await self.start_paths()
        self.upstream.script = lambda up, got: up.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n"
            + (b"" if got.method == b"HEAD" else b"12345")
        )
        client = await self.connect()
        client.write(request("/bedrock/openai/v1/models", b"", method="HEAD"))
        await until(lambda: client.received.endswith(b"\r\n\r\n"))
        self.assertEqual(client.status, 200)
        client.write(request("/bedrock/openai/v1/models", b"", method="GET"))
        await until(lambda: client.received.endswith(b"12345"))
        self.assertEqual(client.received.count(b"12345"), 1)

    async def test_star(self) -> None:
        """``OPTIONS *`` asks whether somebody is there."""
        await self.start_paths()
        client = await self.ask(request("*", b"", method="OPTIONS", key=None))
        self.assertEqual((client.status, client.body), (200, b""))


class FramingTests(PathTestCase):
    """How bodies travel."""

    async def test_encodings(self) -> None:
        """Accept-Encoding goes up as it is, and what is compressed stays compressed."""
        await self.start_paths()
        packed = gzip.compress(b'{"output": "planted-answer"}')

        def script(up: UpstreamConnection, got: Received) -> None:
            if got.get(b"accept-encoding") == [b"identity"]:
                up.write(answer(b'{"output": "planted-answer"}'))
            else:
                up.write(answer(packed, headers=b"Content-Encoding: gzip\r\n"))

        self.upstream.script = script
        for encodings in ("gzip, deflate", "gzip, deflate, br, zstd", "identity", None):
            headers = () if encodings is None else (f"Accept-Encoding: {encodings}",)
            client = await self.ask(request("/bedrock/model/claude/converse", headers=headers))
            got = self.upstream.requests[-1].get(b"accept-encoding")
            # Nothing is asked for that the client did not ask for.
            self.assertEqual(got, [] if encodings is None else [encodings.encode()])
            if encodings == "identity":
                self.assertNotIn(b"content-encoding", client.head)
                self.assertEqual(client.body, b'{"output": "planted-answer"}')
            else:
                self.assertIn(b"content-encoding: gzip", client.head)
                self.assertEqual(client.body, packed)

    async def test_chunked_by_byte(self) -> None:
        """A chunked upload may come in any pieces, with extensions and trailers."""
        await self.start_paths()
        head = (
            "POST /bedrock/model/claude/converse HTTP/1.1\r\nHost: x\r\n"
            f"x-api-key: {KEY}\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        ).encode()
        pieces = b"".join(chunk(BODY[at : at + 7]) for at in range(0, len(BODY), 7))
        for body in (
            pieces + b"0\r\n\r\n",
            b"%x;name=value\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
            b"%X\r\n%b\r\n000\r\nX-Trailer: 1\r\n\r\n" % (len(BODY), BODY),
        ):
            client = await self.connect()
            for at in range(0, len(head + body), 11):
                client.write((head + body)[at : at + 11])
            await until(client.whole)
            self.assertEqual(client.status, 200, body)
            got = self.upstream.requests[-1]
            self.assertEqual(got.body, BODY)
            self.assertEqual(got.get(b"transfer-encoding"), [])
            self.assertEqual(got.get(b"content-length"), [b"%d" % len(BODY)])

    async def test_expect_and_chunked(self) -> None:
        """curl with a long body from a pipe: asks first, then sends chunks."""
        await self.start_paths()
        head = (
            "POST /bedrock/model/claude/converse HTTP/1.1\r\nHost: x\r\n"
            f"x-api-key: {KEY}\r\nExpect: 100-Continue\r\nTransfer-Encoding: chunked\r\n\r\n"
        ).encode()
        client = await self.connect()
        client.write(head)
        await until(lambda: client.received == b"HTTP/1.1 100 Continue\r\n\r\n")
        client.write(chunk(BODY) + b"0\r\n\r\n")
        await until(lambda: b"planted-answer" in client.received)
        self.assertEqual(self.upstream.requests[0].body, BODY)
        self.assertEqual(self.upstream.requests[0].get(b"expect"), [])

    async def test_http_1_0_stream(self) -> None:
        """A client of HTTP/1.0 gets a stream until the connection ends, without chunks."""
        await self.start_paths()
        self.upstream.script = lambda up, _: up.write(
            EVENT_STREAM + chunk(FRAME) + chunk(FRAME) + b"0\r\n\r\n"
        )
        client = await self.connect()
        client.write(
            request("/bedrock/model/claude/converse-stream").replace(b"HTTP/1.1", b"HTTP/1.0")
        )
        await until(lambda: client.lost is not None)
        self.assertEqual(client.status, 200)
        self.assertNotIn(b"transfer-encoding", client.head)
        self.assertEqual(client.body, FRAME * 2)

    async def test_http_1_0_expect(self) -> None:
        """HTTP/1.0 knows no 100 Continue, and gets none."""
        await self.start_paths()
        client = await self.connect()
        client.write(
            request("/bedrock/model/claude/converse", headers=("Expect: 100-continue",)).replace(
                b"HTTP/1.1", b"HTTP/1.0"
            )
        )
        await until(lambda: client.lost is not None)
        self.assertEqual(client.status, 200)
        self.assertNotIn(b"100 Continue", client.received)
