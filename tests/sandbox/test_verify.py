"""
Nothing gets an answer that was not signed exactly as it arrived.
"""

from __future__ import annotations

import calendar
import json
import time

from tests.sandbox.wire import CONVERSE, HAIKU, SECRET, SandboxTestCase, plain, signed
from txbedrock.core.credentials import Credentials

PATH = f"/model/{HAIKU}/converse"


class SignatureTests(SandboxTestCase):
    """SigV4."""

    async def refused(self, data: bytes, status: int, code: str, part: str = "") -> None:
        reply = await self.ask(data)
        self.assertEqual((reply.status, reply.code), (status, code))
        self.assertIn(part, reply.json["message"])
        self.assertIn("x-amzn-requestid", reply.headers)
        self.assertEqual(reply.headers["content-type"], "application/json")
        self.assertEqual(self.sandbox.requests[-1].error, code)
        self.assertNotIn(reply.headers["x-amzn-requestid"], self.sandbox.billed)

    async def test_right(self) -> None:
        """A right signature gets an answer, whatever the path's encoding was."""
        for model in (HAIKU, HAIKU.replace(":", "%3A"), "arn%3aaws%2Fx", "a%20b"):
            reply = await self.ask(signed(f"/model/{model}/converse"))
            self.assertEqual(reply.status, 200, reply.body)
        models = [recorded.model for recorded in self.sandbox.requests]
        self.assertEqual(models, [HAIKU, HAIKU, "arn:aws/x", "a b"])

    async def test_wrong_secret(self) -> None:
        data = signed(PATH, credentials=Credentials(SECRET.access_key_id, "other"))
        await self.refused(data, 403, "InvalidSignatureException", "does not match")

    async def test_unknown_access_key(self) -> None:
        data = signed(PATH, credentials=Credentials("AKIDOTHER", SECRET.secret_access_key))
        await self.refused(data, 403, "UnrecognizedClientException")

    async def test_tampered(self) -> None:
        """A byte changed in method, path, query, header or body is found."""
        good = signed(PATH + "?a=b", headers=((b"X-Amzn-Thing", b"one"),))
        for old, new in [
            (b"POST ", b"PUT "),
            (b"/converse", b"/invoke"),
            (b"v1:0", b"v1%3A0"),
            (b"?a=b", b"?a=c"),
            (b"?a=b", b""),
            (b"Thing: one", b"Thing: two"),
            (b"Host: sandbox.test", b"Host: sandbox.best"),
            (b"really?", b"really!"),
            (b"/us-east-1/", b"/us-west-2/"),
        ]:
            data = good.replace(old, new, 1)
            self.assertNotEqual(data, good, old)
            await self.refused(data, 403, "InvalidSignatureException")

    async def test_unsigned_header(self) -> None:
        """An X-Amz header that was added later is refused."""
        data = signed(PATH, unsigned=((b"X-Amz-Thing", b"1"),))
        await self.refused(data, 403, "InvalidSignatureException", "x-amz-thing")

    async def test_expired(self) -> None:
        """A date too far from the sandbox's clock is refused, with that clock in Date."""
        await self.refused(
            signed(PATH, now=time.time() - 400), 403, "InvalidSignatureException", "expired"
        )
        await self.refused(
            signed(PATH, now=time.time() + 400), 403, "InvalidSignatureException", "not yet"
        )

    async def test_clock_offset(self) -> None:
        """With its clock ahead the sandbox finds true dates expired, and says what time it is."""
        self.sandbox.clock_offset_s = 3600.0
        reply = await self.ask(signed(PATH))
        self.assertIn("Signature expired", reply.json["message"])
        date = time.strptime(reply.headers["date"], "%a, %d %b %Y %H:%M:%S GMT")
        ahead = calendar.timegm(date)
        self.assertApproximates(ahead, time.time() + 3600, 60)
        reply = await self.ask(signed(PATH, now=time.time() + 3600))
        self.assertEqual(reply.status, 200)

    async def test_wrong_service(self) -> None:
        """The signing name must be that of the operation's service."""
        await self.refused(
            signed(PATH, service="bedrock-runtime"), 403, "InvalidSignatureException", "'bedrock'"
        )
        await self.refused(
            signed("/runtimes/r/invocations"), 403, "InvalidSignatureException", "agentcore"
        )
        reply = await self.ask(signed("/runtimes/r/invocations", service="bedrock-agentcore"))
        self.assertEqual(reply.status, 200)

    async def test_no_authorization(self) -> None:
        data = plain(PATH, CONVERSE, headers=((b"Host", b"x"),))
        await self.refused(data, 403, "MissingAuthenticationTokenException")

    async def test_malformed_authorization(self) -> None:
        headers = ((b"Host", b"x"), (b"Authorization", b"AWS4-HMAC-SHA256 Credential=x"))
        data = plain(PATH, CONVERSE, headers=headers)
        await self.refused(data, 403, "IncompleteSignatureException")

    async def test_unknown_operation(self) -> None:
        """A signed request for nothing is told so, without HTML."""
        await self.refused(signed("/nothing"), 404, "UnknownOperationException")
        await self.refused(signed(PATH, method="DELETE"), 405, "UnknownOperationException")

    async def test_unexpected_token(self) -> None:
        """A session token that is not the sandbox's is refused."""
        credentials = Credentials(SECRET.access_key_id, SECRET.secret_access_key, "a-token")
        await self.refused(
            signed(PATH, credentials=credentials), 403, "UnrecognizedClientException"
        )

    async def test_missing_token(self) -> None:
        """With a session token set, it has to come, and to be right."""
        self.start(session_token="a-token")
        await self.refused(signed(PATH), 403, "UnrecognizedClientException")
        for token, status in (("other", 403), ("a-token", 200)):
            credentials = Credentials(SECRET.access_key_id, SECRET.secret_access_key, token)
            reply = await self.ask(signed(PATH, credentials=credentials))
            self.assertEqual(reply.status, status)

    async def test_region(self) -> None:
        """With a region set, others are refused."""
        self.start(region="eu-west-1")
        await self.refused(signed(PATH), 403, "InvalidSignatureException", "valid region")
        self.assertEqual((await self.ask(signed(PATH, region="eu-west-1"))).status, 200)

    async def test_more_credentials(self) -> None:
        """Several credentials can be good, and be replaced."""
        self.sandbox.accept("AKIDTWO", "b-secret")
        two = Credentials("AKIDTWO", "b-secret")
        self.assertEqual((await self.ask(signed(PATH, credentials=two))).status, 200)
        self.sandbox.accept("AKIDTWO", "c-secret")
        self.assertEqual((await self.ask(signed(PATH, credentials=two))).status, 403)

    async def test_called_as(self) -> None:
        """A base URL or host of one service does not serve another's operations."""
        base = "/_as/bedrock-runtime.us-east-1"
        self.assertEqual((await self.ask(signed(base + PATH))).status, 200)
        self.assertEqual(self.sandbox.requests[-1].called_as, "bedrock-runtime")
        await self.refused(
            signed("/_as/bedrock-agent" + PATH), 404, "UnknownOperationException", "has no"
        )
        await self.refused(
            signed(base + PATH, region="us-west-2"), 403, "InvalidSignatureException", "region"
        )
        host = b"bedrock.us-east-1.amazonaws.com"
        await self.refused(signed(PATH, host=host), 404, "UnknownOperationException")

    async def test_prefix(self) -> None:
        """The prefix is part of what is signed; without it there is nothing."""
        self.start(prefix="/base")
        self.assertEqual((await self.ask(signed("/base" + PATH))).status, 200)
        for path in (PATH, "/baseball" + PATH):
            await self.refused(signed(path), 404, "UnknownOperationException")


class BearerTests(SandboxTestCase):
    """API keys."""

    options = {"api_key": "an-api-key"}

    def bearer(self, path: str, key: bytes, *more: tuple[bytes, bytes]) -> bytes:
        headers = ((b"Host", b"x"), (b"Authorization", b"Bearer " + key), *more)
        return plain(path, CONVERSE, headers=headers)

    async def test_right(self) -> None:
        reply = await self.ask(self.bearer(PATH, b"an-api-key"))
        self.assertEqual(reply.status, 200)
        self.assertIsNone(self.sandbox.requests[-1].signing_name)

    async def test_wrong(self) -> None:
        reply = await self.ask(self.bearer(PATH, b"another"))
        self.assertEqual((reply.status, reply.code), (403, "AccessDeniedException"))

    async def test_other_services(self) -> None:
        """Only bedrock and bedrock-runtime take a bearer."""
        for path, status in [
            ("/guardrails", 202),
            ("/rerank", 403),
            ("/agents/ABC/", 403),
            ("/runtimes/r/invocations", 403),
        ]:
            reply = await self.ask(self.bearer(path, b"an-api-key"))
            self.assertEqual(reply.status, status, path)

    async def test_both(self) -> None:
        """A bearer beside remains of a signature is refused, by name."""
        for name in (b"X-Amz-Date", b"X-Amz-Security-Token"):
            reply = await self.ask(self.bearer(PATH, b"an-api-key", (name, b"20261122T000000Z")))
            self.assertEqual((reply.status, reply.code), (400, "ValidationException"))
            self.assertIn(name.decode(), reply.json["message"].title())

    async def test_none_set(self) -> None:
        """Without an API key no bearer is good, not even an empty one."""
        self.start()
        for key in (b"", b"None", b"an-api-key"):
            self.assertEqual((await self.ask(self.bearer(PATH, key))).status, 403)


class LeftoverTests(SandboxTestCase):
    """What a gateway must not let through gets 400, and is named."""

    async def test_headers(self) -> None:
        for header in [
            (b"x-api-key", b"sk-1"),
            (b"X-LiteLLM-Tags", b"a"),
            (b"Host", b"other"),
            (b"Authorization", b"Bearer x"),
            (b"Content-Type", b"text/plain"),
            (b"Keep-Alive", b"timeout=5"),
            (b"Proxy-Authorization", b"Basic x"),
            (b"Proxy-Connection", b"keep-alive"),
            (b"TE", b"trailers"),
            (b"Trailer", b"x"),
            (b"Upgrade", b"h2c"),
        ]:
            reply = await self.ask(signed(PATH, unsigned=(header,)))
            self.assertEqual((reply.status, reply.code), (400, "ValidationException"), header)
            self.assertIn(header[0].decode().lower(), reply.json["message"].lower())

    async def test_connection(self) -> None:
        """Connection may say close or keep-alive; nothing else of the client's."""
        for value, status in ((b"keep-alive", 200), (b"close", 200), (b"close, x-thing", 400)):
            reply = await self.ask(signed(PATH, unsigned=((b"Connection", value),)))
            self.assertEqual(reply.status, status, value)

    async def test_content_sha256(self) -> None:
        """A wrong X-Amz-Content-SHA256 is refused although it is signed."""
        reply = await self.ask(signed(PATH, headers=((b"X-Amz-Content-SHA256", b"0" * 64),)))
        self.assertEqual(reply.status, 400)
        self.assertIn("X-Amz-Content-SHA256", reply.json["message"])

    async def test_two_lengths(self) -> None:
        """Two Content-Length lines, equal or not, end the connection with a 400 that says so."""
        for more in (b"1", str(len(CONVERSE)).encode()):
            wire = await self.connect()
            wire.transport.write(signed(PATH, unsigned=((b"Content-Length", more),)))
            reply = await wire.reply()
            self.assertEqual(reply.status, 400)
            self.assertEqual(json.loads(reply.body)["message"], "Several Content-Length headers.")
            await wire.cut()
        self.assertEqual(self.sandbox.stats.bad_http, 2)

    async def test_length_and_chunked(self) -> None:
        data = signed(PATH, unsigned=((b"Transfer-Encoding", b"chunked"),))
        self.assertEqual((await self.ask(data)).status, 400)

    async def test_not_http(self) -> None:
        self.assertEqual((await self.ask(b"hello\r\n\r\n")).status, 400)

    async def test_lenient(self) -> None:
        """All of this can be turned off."""
        self.start(strict=False)
        reply = await self.ask(signed(PATH, unsigned=((b"x-api-key", b"sk-1"),)))
        self.assertEqual(reply.status, 200)
