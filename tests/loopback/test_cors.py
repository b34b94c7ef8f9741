"""
Web pages that call from a browser: what they are told, over real sockets.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import (
    BODY,
    CONVERSE,
    EVENT_STREAM,
    FRAME,
    STREAM,
    BareClient,
    GatewayTestCase,
    answer,
    chunk,
    request,
    until,
)
from txbedrock.config import ClientSettings, CorsSettings, Limits
from txbedrock.inbound.cors import Cors

APP = "https://app.example.com"
OTHER = "https://evil.example.com"

# Those of a browser with the AWS SDK for JavaScript.
ASKED = "amz-sdk-invocation-id,amz-sdk-request,authorization,content-type,x-amz-date"


def values(client: BareClient, name: str) -> list[str]:
    """Those of a header of the first answer, as they were sent."""
    found = []
    for line in client.received.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        key, _, value = line.partition(b": ")
        if key.lower() == name.encode():
            found.append(value.decode())
    return found


class CorsTestCase(GatewayTestCase):
    """A gateway that lets some pages call."""

    async def start_cors(self, *origins: str, **changes: Any) -> None:
        self.upstream = await self.start_upstream()
        cors = CorsSettings(allow_origins=origins, **changes)
        await self.start_gateway(
            self.settings(
                clients=ClientSettings(cors=cors),
                limits=Limits(max_request_body=1000, shutdown_grace_s=0.2),
            )
        )

    async def preflight(
        self, origin: str = APP, path: str = CONVERSE, *, method: str = "POST", asked: str = ASKED
    ) -> BareClient:
        headers = (
            f"Origin: {origin}",
            f"Access-Control-Request-Method: {method}",
            *((f"Access-Control-Request-Headers: {asked}",) if asked else ()),
        )
        return await self.ask(request(path, b"", method="OPTIONS", key=None, headers=headers))

    async def call(
        self, origin: str | None = APP, path: str = CONVERSE, **options: Any
    ) -> BareClient:
        headers = () if origin is None else (f"Origin: {origin}",)
        return await self.ask(request(path, headers=headers, **options))

    def assert_shown(self, client: BareClient, origin: str | None) -> None:
        """Does a browser show this answer to a page of an origin?"""
        found = values(client, "access-control-allow-origin")
        self.assertEqual(found, [] if origin is None else [origin], client.received)


class PreflightTests(CorsTestCase):
    """What a browser asks before it sends a request."""

    async def test_allowed(self) -> None:
        """It may send what it asked for, without a key, and remember that."""
        await self.start_cors(APP, "https://b.example.com:8443")
        for origin in (APP, "https://b.example.com:8443"):
            for path in (CONVERSE, "/bedrock/nothing", "/key/info", "/health/liveness", "/"):
                client = await self.preflight(origin, path)
                self.assertEqual((client.status, client.body), (200, b""))
                self.assert_shown(client, origin)
                self.assertEqual(values(client, "access-control-allow-headers"), [ASKED])
                [methods] = values(client, "access-control-allow-methods")
                self.assertEqual(methods, "GET, HEAD, POST, PUT, PATCH, DELETE")
                self.assertEqual(values(client, "access-control-max-age"), ["600"])
                self.assertEqual(values(client, "access-control-allow-credentials"), [])
                self.assertEqual(
                    values(client, "vary"), ["Access-Control-Request-Headers, Origin"]
                )
        self.assertEqual((self.upstream.requests, self.records.records), ([], []))

    async def test_not_listed(self) -> None:
        """Another origin is told no, and is never repeated."""
        await self.start_cors(APP)
        for origin in (
            OTHER,
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://app.example.com.evil.com",
            "https://evil-app.example.com",
            "https://APP.example.com",
            f"{APP}/",
            "null",
            f"{APP}, {OTHER}",
            "*",
        ):
            client = await self.preflight(origin)
            self.assertEqual(client.status, 403, origin)
            self.assertIn(b"x-amzn-errortype: accessdeniedexception", client.head)
            self.assertIn("cors_allow_origins", json.loads(client.body)["message"])
            self.assert_shown(client, None)
            self.assertEqual(values(client, "access-control-allow-headers"), [])
            self.assertEqual(values(client, "vary"), ["Origin"])
            self.assertNotIn(b"evil", client.received)

    async def test_any(self) -> None:
        """With * there is one answer for all."""
        await self.start_cors("*", max_age_s=60.0)
        client = await self.preflight(OTHER)
        self.assertEqual(client.status, 200)
        self.assert_shown(client, "*")
        self.assertEqual(values(client, "access-control-max-age"), ["60"])
        self.assertEqual(values(client, "vary"), ["Access-Control-Request-Headers"])

    async def test_headers(self) -> None:
        """Listed headers are told as they are; what is no list of names is not repeated."""
        await self.start_cors(APP, allow_headers=("Authorization", "Content-Type"))
        client = await self.preflight()
        found = values(client, "access-control-allow-headers")
        self.assertEqual(found, ["Authorization, Content-Type"])
        await self.start_cors(APP)
        for asked in ("", "a b", "a,,b", "<script>", "a, " * 2000 + "b"):
            client = await self.preflight(asked=asked)
            self.assertEqual(client.status, 200)
            self.assertEqual(values(client, "access-control-allow-headers"), [], asked)

    async def test_credentials(self) -> None:
        """They are allowed where the operator says so."""
        await self.start_cors(APP, allow_credentials=True)
        client = await self.preflight()
        self.assert_shown(client, APP)
        self.assertEqual(values(client, "access-control-allow-credentials"), ["true"])
        client = await self.preflight(OTHER)
        self.assertEqual(values(client, "access-control-allow-credentials"), [])

    async def test_plain_options(self) -> None:
        """OPTIONS that is no preflight is what it is without CORS."""
        await self.start_cors(APP)
        for headers in (
            (),
            (f"Origin: {APP}",),
            ("Access-Control-Request-Method: POST",),
        ):
            client = await self.ask(request(CONVERSE, b"", method="OPTIONS", headers=headers))
            self.assertEqual(client.status, 405)
            client = await self.ask(
                request(CONVERSE, b"", method="OPTIONS", key=None, headers=headers)
            )
            self.assertEqual(client.status, 403)


class AnswerTests(CorsTestCase):
    """Answers, errors and refusals alike can be read by a page."""

    async def test_answers(self) -> None:
        """An answer says who may see it, and which of its headers."""
        await self.start_cors(APP)
        self.upstream.script = lambda up, _: up.write(
            answer(
                b"{}",
                headers=b"x-amzn-RequestId: up-1\r\nX-Amzn-Bedrock-Input-Token-Count: 3\r\n"
                b"Vary: Accept\r\nX-Other: 1\r\nRetry-After: 3\r\n",
            )
        )
        client = await self.call()
        self.assertEqual(client.status, 200)
        self.assert_shown(client, APP)
        self.assertEqual(values(client, "vary"), ["Accept, Origin"])
        [exposed] = values(client, "access-control-expose-headers")
        names = exposed.split(", ")
        for name in (
            "x-amzn-requestid",
            "x-amzn-bedrock-input-token-count",
            "x-litellm-call-id",
            "retry-after",
        ):
            self.assertIn(name, names)
        self.assertNotIn("x-other", names)
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual(self.upstream.requests[0].get(b"origin"), [APP.encode()])

    async def test_streams(self) -> None:
        """A stream's head too; the frames are untouched."""
        await self.start_cors(APP)
        self.upstream.script = lambda up, _: up.write(EVENT_STREAM + chunk(FRAME) + b"0\r\n\r\n")
        client = await self.call(path=STREAM)
        self.assert_shown(client, APP)
        self.assertEqual(client.dechunked(), FRAME)

    async def test_refusals(self) -> None:
        """
        Errors of Bedrock and refusals by the gateway, at every level: a page has to be
        able to read what is wrong.
        """
        await self.start_cors(APP)
        self.upstream.script = lambda up, _: up.write(
            answer(
                b'{"message": "slow down"}',
                b"429 Too Many",
                b"x-amzn-ErrorType: ThrottlingException\r\n",
            )
        )
        for status, path, options in (
            (429, CONVERSE, {}),
            (403, CONVERSE, {"key": None}),
            (403, CONVERSE, {"key": "sk-planted-wrong"}),
            (404, "/bedrock/nothing", {}),
            (404, "/nothing", {}),
            (405, CONVERSE, {"method": "GET", "body": b""}),
            (401, "/key/info", {"key": None, "method": "GET", "body": b""}),
            (413, CONVERSE, {"body": bytes(1001)}),
            (200, "/health/liveness", {"method": "GET", "body": b""}),
            (405, "/health/liveness", {}),
        ):
            client = await self.call(path=path, **options)
            self.assertEqual(client.status, status, (path, client.received))
            self.assert_shown(client, APP)
            client = await self.call(OTHER, path, **options)
            self.assertEqual(client.status, status)
            self.assert_shown(client, None)
            client = await self.call(None, path, **options)
            self.assert_shown(client, None)
            if status != 413:  # That is told before anything else is read.
                self.assertIn("Origin", values(client, "vary"))
        self.assertNotIn("x-amzn-errortype", values(client, "access-control-expose-headers"))
        client = await self.call()
        [exposed] = values(client, "access-control-expose-headers")
        self.assertIn("x-amzn-errortype", exposed)

    async def test_chunked_refusal(self) -> None:
        """A body that turns out too long on its way is refused readably, too."""
        await self.start_cors(APP)
        client = await self.ask(
            request(body=b"", method="PATCH", headers=(f"Origin: {APP}",))[:-2]
            + b"Transfer-Encoding: chunked\r\n\r\n"
            + chunk(bytes(600)) * 2
        )
        self.assertEqual(client.status, 413)
        self.assert_shown(client, APP)

    async def test_bedrock_has_no_say(self) -> None:
        """What comes from upstream about origins does not count, and is not doubled."""
        await self.start_cors(APP)
        self.upstream.script = lambda up, _: up.write(
            answer(
                b"{}",
                headers=b"Access-Control-Allow-Origin: *\r\nVary: origin\r\n"
                b"Access-Control-Allow-Credentials: true\r\n",
            )
        )
        client = await self.call()
        self.assert_shown(client, APP)
        self.assertEqual(values(client, "access-control-allow-credentials"), [])
        self.assertEqual(values(client, "vary"), ["origin"])
        self.assert_shown(await self.call(OTHER), None)

    async def test_head(self) -> None:
        """HEAD is answered like GET."""
        await self.start_cors(APP)
        client = await self.connect()
        client.write(request("/health/liveness", b"", method="HEAD", headers=(f"Origin: {APP}",)))
        await until(lambda: client.received.endswith(b"\r\n\r\n"))
        self.assert_shown(client, APP)

    async def test_off(self) -> None:
        """Without the setting nothing is said of origins, and Bedrock's word goes through."""
        await self.start_cors()
        client = await self.call()
        self.assertEqual(client.status, 200)
        self.assertNotIn(b"access-control", client.head)
        self.assertNotIn(b"vary", client.head)
        self.upstream.script = lambda up, _: up.write(
            answer(b"{}", headers=b"Access-Control-Allow-Origin: *\r\n")
        )
        self.assert_shown(await self.call(), "*")

    async def test_body_up(self) -> None:
        """The call behind it all works as ever."""
        await self.start_cors("*")
        client = await self.call(OTHER)
        self.assertEqual((client.status, client.body), (200, b'{"output": "planted-answer"}'))
        self.assert_shown(client, "*")
        self.assertEqual(values(client, "vary"), [])
        self.assertEqual(self.upstream.requests[0].body, BODY)


class PolicyTests(SynchronousTestCase):
    """What cannot be made."""

    def test_credentials_for_all(self) -> None:
        """Credentials and any origin exclude each other, wherever it is made."""
        for origins in (("*",), (APP, "*")):
            with self.assertRaises(ValueError):
                Cors(origins, credentials=True)
