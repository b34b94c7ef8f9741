"""
What the gateway refuses, over real sockets: never HTML, never a hang, never a
word of what is secret.
"""

from __future__ import annotations

import json

import trustme
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint, serverFromString
from twisted.internet.protocol import Factory, Protocol

from tests.fakes import (
    BODY,
    CONVERSE,
    EVENT_STREAM,
    FRAME,
    KEY,
    STREAM,
    BareClient,
    GatewayTestCase,
    ScriptedUpstream,
    answer,
    chunk,
    pause,
    request,
    until,
)
from txbedrock.config import Limits
from txbedrock.core.deployments import CredentialSpec
from txbedrock.interfaces import Outcome

_SIGV4 = (
    "Authorization: AWS4-HMAC-SHA256 Credential={key}/20261122/us-west-2/bedrock/aws4_request, "
    "SignedHeaders=host, Signature=00"
)


class RefusalTestCase(GatewayTestCase):
    """Looks at refusals."""

    def assert_refused(self, client: BareClient, status: int, code: str, word: str) -> None:
        """An answer in AWS's shape, with a word that helps in its message."""
        self.assertEqual(client.status, status, client.received)
        self.assertIn(b"x-amzn-errortype: " + code.lower().encode(), client.head)
        self.assertIn(b"content-type: application/json", client.head)
        self.assertRegex(client.head, rb"x-amzn-requestid: [0-9a-f-]{36}")
        self.assertIn(word, json.loads(client.body)["message"])
        self.assertNotIn(b"<html", client.received.lower())
        self.assertNotIn(b"planted", client.received)


class KeyTests(RefusalTestCase):
    """Who may call."""

    async def test_carriers(self) -> None:
        """The key is taken from each place where clients put it."""
        await self.start()
        for header in (
            f"Authorization: Bearer {KEY}",
            f"x-api-key: {KEY}",
            f"x-litellm-api-key: {KEY}",
            f"x-litellm-api-key: Bearer {KEY}",
            f"X-Amz-Security-Token: {KEY}",
            _SIGV4.format(key=KEY),
            _SIGV4.format(key="Bearer " + KEY),
        ):
            client = await self.ask(request(key=None, headers=(header,)))
            self.assertEqual(client.status, 200, header)
        self.assertNotIn("planted-master", repr([r.headers for r in self.upstream.requests]))

    async def test_wrong_and_missing(self) -> None:
        """No key and a wrong one are 403 with what to do, and nothing goes up."""
        await self.start()
        for header, word in (
            ((), "needs a key"),
            (("Authorization: Bearer sk-planted-wrong",), "not one of this gateway's"),
            (("x-api-key: sk-planted-wrong",), "not one of this gateway's"),
            ((_SIGV4.format(key="AKIAplanted"),), "access key id"),
        ):
            client = await self.ask(request(key=None, headers=header))
            self.assert_refused(client, 403, "UnrecognizedClientException", word)
        self.assertEqual(self.upstream.requests, [])
        self.assertEqual({r.outcome for r in self.records.records}, {Outcome.REFUSED})

    async def test_no_key_configured(self) -> None:
        """Without a master key everyone on this machine may call."""
        self.upstream = await self.start_upstream()
        await self.start_gateway(self.settings(master_key=None))
        for key in (None, "sk-anything"):
            self.assertEqual((await self.ask(request(key=key))).status, 200)

    async def test_shapes_of_others(self) -> None:
        """On OpenAI's and Anthropic's paths the errors are theirs."""
        await self.start()
        client = await self.ask(request("/bedrock/openai/v1/chat/completions", key=None))
        self.assertEqual(client.status, 403)
        self.assertEqual(json.loads(client.body)["error"]["type"], "authentication_error")
        client = await self.ask(request("/bedrock/anthropic/v1/messages", key=None))
        self.assertEqual(json.loads(client.body)["type"], "error")


class PathTests(RefusalTestCase):
    """Where requests may go."""

    async def test_nowhere(self) -> None:
        """A path that is nobody's is a 404 that names it."""
        await self.start()
        for path, word in (
            ("/bedrock/nothing/here", "nothing/here"),
            ("/bedrock/model/m/no-such-verb", "no-such-verb"),
            ("/", "/bedrock/"),
            ("/model/m/converse", "/bedrock/"),
        ):
            client = await self.ask(request(path))
            self.assert_refused(client, 404, "UnknownOperationException", word)
        client = await self.ask(request("/health/other"))
        self.assertEqual(client.status, 404)

    async def test_wrong_method(self) -> None:
        """The right path with the wrong method says which is right."""
        await self.start()
        client = await self.ask(request(CONVERSE, b"", method="GET"))
        self.assert_refused(client, 405, "UnknownOperationException", "POST")
        self.assertIn(b"allow: post", client.head)
        client = await self.ask(request("/health/readiness", method="POST"))
        self.assert_refused(client, 405, "UnknownOperationException", "GET")

    async def test_dot_segments(self) -> None:
        """A path with dot segments is refused, spelled in any way."""
        await self.start()
        for path in (
            "/bedrock/model/../converse",
            "/bedrock/model/%2e%2e/converse",
            "/bedrock/model/m/%2E./converse",
            "/bedrock/./model/m/converse",
            "/bedrock/../bedrock/model/m/converse",
        ):
            client = await self.ask(request(path))
            self.assertIn(client.status, (400, 404), path)
            self.assertIn(b"x-amzn-errortype: ", client.head)
        self.assertEqual(self.upstream.requests, [])

    async def test_unknown_model(self) -> None:
        """A name that is neither configured nor Bedrock's is a 404 that quotes it."""
        await self.start()
        client = await self.ask(request("/bedrock/model/typo/converse"))
        self.assert_refused(client, 404, "ResourceNotFoundException", "typo")

    async def test_bidirectional(self) -> None:
        """What cannot be carried is said at once."""
        await self.start()
        client = await self.ask(request("/bedrock/model/m/invoke-with-bidirectional-stream"))
        self.assert_refused(client, 501, "UnknownOperationException", "bidirectional")

    async def test_health(self) -> None:
        """Health needs no key."""
        await self.start()
        for path in ("/health/liveliness", "/health/liveness", "/health/readiness"):
            client = await self.ask(request(path, b"", method="GET", key=None))
            self.assertEqual(client.status, 200, path)
        client = await self.connect()
        client.write(request("/health/liveness", b"", method="HEAD", key=None))
        await until(lambda: b"\r\n\r\n" in client.received)
        self.assertEqual((client.status, client.body), (200, b""))
        self.assertIn(b"content-length: 12", client.head)

    async def test_other_prefix(self) -> None:
        """The prefix is what the configuration says, or none."""
        self.upstream = await self.start_upstream()
        for prefix in ("", "/aws/br"):
            await self.start_gateway(self.settings(route_prefix=prefix))
            client = await self.ask(request(prefix + "/model/m/converse"))
            self.assertEqual(client.status, 200)
            client = await self.ask(request("/health/liveness", b"", method="GET"))
            self.assertEqual(client.status, 200)


class BadHttpTests(RefusalTestCase):
    """Bytes that are no request of ours."""

    async def test_not_http(self) -> None:
        """Rubbish, smuggling and half-known protocols get one clear answer."""
        await self.start()
        for data in (
            b"rubbish\r\n\r\n",
            b"GET /bedrock/x HTTP/1.1\r\nno colon\r\n\r\n",
            request(headers=("Content-Length: 4",)),
            request(headers=("Transfer-Encoding: chunked",)),
            request(body=b"", headers=("Transfer-Encoding: gzip",), method="PUT"),
            b"POST /bedrock/x HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST /bedrock/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET /bedrock/x HTTP/1.1\r\nA: b\x00c\r\n\r\n",
        ):
            client = await self.ask(data)
            self.assert_refused(client, 400, "ValidationException", "not valid HTTP")
            await until(lambda: client.lost is not None)  # noqa: B023
        self.assertEqual(self.upstream.requests, [])

    async def test_large_headers(self) -> None:
        """A header of 64 KiB, in one line or in many, is refused."""
        await self.start()
        for headers in (
            ("X-Big: " + "a" * 65536,),
            tuple(f"X-Big-{n}: " + "a" * 1000 for n in range(70)),
            tuple(f"X-{n}: a" for n in range(600)),
        ):
            client = await self.ask(request(headers=headers))
            self.assert_refused(client, 431, "ValidationException", "header is too large")

    async def test_announced_body(self) -> None:
        """A body that is announced as too long is refused before it is sent."""
        await self.start(Limits(max_request_body=1000, shutdown_grace_s=0.2))
        client = await self.connect()
        client.write(
            f"POST {CONVERSE} HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n"
            "Expect: 100-continue\r\n\r\n".encode()
        )
        await until(client.whole)
        self.assert_refused(client, 413, "ValidationException", "1000 bytes")
        self.assertNotIn(b"100 Continue", client.received)

    async def test_refused_upload_is_answered(self) -> None:
        """A client that sends its whole body before it reads still gets the answer."""
        await self.start(Limits(max_request_body=1000, shutdown_grace_s=0.2))
        client = await self.connect()
        client.transport.pauseProducing()
        client.write(request(body=bytes(8_000_000)))
        await pause(0.3)
        client.transport.resumeProducing()
        await until(client.whole)
        self.assert_refused(client, 413, "ValidationException", "1000 bytes")

    async def test_chunked_body(self) -> None:
        """A chunked body is accepted, and refused where it crosses the limit."""
        await self.start(Limits(max_request_body=1000, shutdown_grace_s=0.2))
        head = (
            f"POST {CONVERSE} HTTP/1.1\r\nHost: x\r\nx-api-key: {KEY}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n"
        ).encode()
        client = await self.ask(head + b"3\r\n{}\n\r\n0\r\n\r\n")
        self.assertEqual(client.status, 200)
        self.assertEqual(self.upstream.requests[0].body, b"{}\n")
        self.assertEqual(self.upstream.requests[0].get(b"content-length"), [b"3"])
        client = await self.ask(head + (b"200\r\n" + bytes(512) + b"\r\n") * 3 + b"0\r\n\r\n")
        self.assert_refused(client, 413, "ValidationException", "1000 bytes")
        self.assertEqual(len(self.upstream.requests), 1)

    async def test_truncated_body(self) -> None:
        """A client that breaks off in its body leaves nothing behind."""
        await self.start()
        client = await self.connect()
        client.write(request()[:-5])
        await pause(0.05)
        client.transport.loseConnection()
        await until(lambda: client.lost is not None)
        await pause(0.05)
        self.assertEqual((self.upstream.requests, self.records.records), ([], []))

    async def test_slow_header(self) -> None:
        """A header that comes byte by byte is given up, however alive it looks."""
        await self.start(Limits(header_timeout_s=0.5, shutdown_grace_s=0.2))
        client = await self.connect()
        for byte in request()[:30]:
            if client.received:
                break
            client.write(bytes([byte]))
            await pause(0.05)
        await until(client.whole)
        self.assert_refused(client, 408, "RequestTimeoutException", "header")

    async def test_slow_body(self) -> None:
        """A body that stops coming is given up."""
        await self.start(Limits(upload_idle_timeout_s=0.2, shutdown_grace_s=0.2))
        client = await self.ask(request()[:-5])
        self.assert_refused(client, 408, "RequestTimeoutException", "body")

    async def test_silent_connection(self) -> None:
        """A connection that says nothing is closed without a word."""
        await self.start(Limits(header_timeout_s=0.2, shutdown_grace_s=0.2))
        client = await self.connect()
        await until(lambda: client.lost is not None)
        self.assertEqual(client.received, b"")

    async def test_expect(self) -> None:
        """Who asks whether to go on is told so at once."""
        await self.start()
        client = await self.connect()
        client.write(request(headers=("Expect: 100-continue",))[: -len(BODY)])
        await until(lambda: client.received == b"HTTP/1.1 100 Continue\r\n\r\n")
        client.write(BODY)
        await until(lambda: b"HTTP/1.1 200" in client.received)
        self.assertEqual(self.upstream.requests[0].get(b"expect"), [])

    async def test_pipelined(self) -> None:
        """Requests sent ahead are answered in order."""
        await self.start()
        self.upstream.script = lambda up, got: up.write(answer(got.body))
        client = await self.connect()
        client.write(request(body=b"1") + request(body=b"2") + request(body=b"3"))
        await until(lambda: client.received.count(b"HTTP/1.1 200") == 3)
        self.assertEqual([r.body for r in self.upstream.requests], [b"1", b"2", b"3"])

    async def test_http_1_0(self) -> None:
        """A client of HTTP/1.0 gets its answer and the end of the connection."""
        await self.start()
        client = await self.connect()
        client.write(request().replace(b"HTTP/1.1", b"HTTP/1.0"))
        await until(lambda: client.lost is not None)
        self.assertEqual((client.status, client.body), (200, b'{"output": "planted-answer"}'))


class BigBodyTests(RefusalTestCase):
    """Bodies that do not fit into memory at once."""

    async def test_spooled(self) -> None:
        """A body of 20 MB arrives byte for byte, signed over all of it."""
        await self.start()
        body = bytes(range(256)) * 80_000
        client = await self.ask(request(body=body))
        self.assertEqual(client.status, 200)
        self.assertEqual(self.upstream.requests[0].body, body)

    async def test_left_while_uploading(self) -> None:
        """A client that leaves while its body goes up leaves no upstream behind."""
        await self.start()
        held: list[object] = []
        self.upstream.on_connect = lambda up: (up.transport.pauseProducing(), held.append(up))[0]
        client = await self.connect()
        client.write(request(body=bytes(30_000_000)))
        await until(lambda: bool(held))
        await pause(0.2)
        client.transport.abortConnection()
        await until(lambda: len(self.records.records) == 1)
        self.assertIs(self.records.records[0].outcome, Outcome.CLIENT_GONE)
        for connection in list(self.upstream.connections):
            connection.transport.resumeProducing()
        await until(lambda: not self.upstream.connections)


class UpstreamTests(RefusalTestCase):
    """An upstream that does not answer as it should."""

    async def test_refuses_connections(self) -> None:
        """Nobody listens: 503, which SDKs retry."""
        await self.start()
        stranger = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(Factory())
        port = stranger.getHost().port
        await stranger.stopListening()
        self.upstream_port = port
        await self.start_gateway(self.settings())
        for path in (CONVERSE, STREAM):
            client = await self.ask(request(path))
            self.assert_refused(client, 503, "ServiceUnavailableException", "refused")
        self.assertIs(self.records.records[0].outcome, Outcome.FAILED)

    async def test_breaks(self) -> None:
        """Reset, closed and rubbish before the head: 503."""
        await self.start()
        for script in (
            lambda up, _: up.reset(),
            lambda up, _: up.close(),
            lambda up, _: up.write(b"SSH-2.0-rubbish\r\n\r\n"),
            lambda up, _: up.write(b"HTTP/1.1 abc\r\n\r\n"),
            lambda up, _: (up.write(b"HTTP/1.1 200 OK\r\nContent-"), up.close()),
        ):
            self.upstream.script = script
            client = await self.ask(request())
            self.assert_refused(client, 503, "ServiceUnavailableException", "broke")
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_silent(self) -> None:
        """No head within the limit: 408 as a model that times out."""
        await self.start(Limits(first_byte_timeout_s=0.2, shutdown_grace_s=0.2))
        self.upstream.script = lambda up, _: None
        client = await self.ask(request())
        self.assert_refused(client, 408, "ModelTimeoutException", "0.2 seconds")
        await until(lambda: not self.upstream.connections)

    async def test_deployment_timeouts(self) -> None:
        """timeout and stream_timeout of a deployment hold for it."""
        self.upstream = await self.start_upstream()
        deployment = self.deployment(timeout_s=30.0, stream_timeout_s=0.2)
        await self.start_gateway(self.settings(deployments=(deployment,)))
        self.upstream.script = lambda up, _: None
        client = await self.ask(request(STREAM))
        self.assert_refused(client, 408, "ModelTimeoutException", "0.2 seconds")

    async def test_no_credentials(self) -> None:
        """No credentials to be found: 503 that says so without naming any."""
        self.upstream = await self.start_upstream()
        spec = CredentialSpec(profile_name="no-such-profile")
        await self.start_gateway(self.settings(deployments=(self.deployment(credentials=spec),)))
        client = await self.ask(request())
        self.assert_refused(client, 503, "ServiceUnavailableException", "credentials")
        self.assertEqual(self.upstream.requests, [])

    async def start_tls_upstream(self, identity: str, ca: trustme.CA) -> None:
        """An upstream with a certificate for ``identity``."""
        certificate = self.mktemp()
        ca.issue_cert(identity).private_key_and_cert_chain_pem.write_to_path(certificate)
        upstream = ScriptedUpstream()
        endpoint = serverFromString(
            reactor, f"ssl:0:privateKey={certificate}:certKey={certificate}:interface=127.0.0.1"
        )
        port = await endpoint.listen(upstream)
        self.addCleanup(port.stopListening)
        self.upstream_port = port.getHost().port
        self.upstream = upstream

    async def test_certificates(self) -> None:
        """Only an endpoint that proves its name to a known authority is spoken to."""
        ca, stranger = trustme.CA(), trustme.CA()
        bundle = self.mktemp()
        ca.cert_pem.write_to_path(bundle)
        for authority, identity, good in (
            (ca, "localhost", True),
            (ca, "other.example", False),
            (stranger, "localhost", False),
        ):
            await self.start_tls_upstream(identity, authority)
            url = f"https://localhost:{self.upstream_port}"
            await self.start_gateway(
                self.settings(deployments=(self.deployment(endpoint_url=url),), ca_bundle=bundle)
            )
            client = await self.ask(request())
            if good:
                self.assertEqual(client.status, 200)
            else:
                self.assert_refused(client, 503, "ServiceUnavailableException", "identity")
                self.assertEqual(self.upstream.requests, [])
            await self.gateway.stopService()
            await until(lambda: not self.upstream.connections)

    async def test_unchecked_certificate(self) -> None:
        """Whoever switches the check off speaks to anybody, still over TLS."""
        await self.start_tls_upstream("other.example", trustme.CA())
        url = f"https://localhost:{self.upstream_port}"
        await self.start_gateway(
            self.settings(deployments=(self.deployment(endpoint_url=url),), verify_tls=False)
        )
        client = await self.ask(request())
        self.assertEqual(client.status, 200, client.received)
        await self.gateway.stopService()
        await until(lambda: not self.upstream.connections)

    async def test_tls_that_never_begins(self) -> None:
        """A peer that accepts and says nothing counts as one that does not accept."""
        silent = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(
            Factory.forProtocol(Protocol)
        )
        self.addCleanup(silent.stopListening)
        self.upstream_port = silent.getHost().port
        url = f"https://localhost:{self.upstream_port}"
        await self.start_gateway(
            self.settings(
                deployments=(self.deployment(endpoint_url=url),),
                limits=Limits(connect_timeout_s=0.3, shutdown_grace_s=0.2),
            )
        )
        client = await self.ask(request())
        self.assert_refused(client, 503, "ServiceUnavailableException", "in time")


class DrainTests(RefusalTestCase):
    """Stopping."""

    async def test_in_flight_finishes(self) -> None:
        """A stop lets what is in flight finish, and takes nothing new."""
        await self.start(Limits(shutdown_grace_s=20))
        held: list[object] = []
        self.upstream.script = lambda up, _: held.append(up)
        client, idle = await self.connect(), await self.connect()
        idle.write(request("/health/readiness", b"", method="GET"))
        await until(idle.whole)
        client.write(request())
        await until(lambda: bool(held))
        stopped: list[object] = []
        stopping = self.gateway.stopService()
        stopping.addCallback(stopped.append)
        await until(lambda: idle.lost is not None)
        self.assertFalse(self.gateway.is_ready())
        with self.assertRaises(Exception):  # noqa: B017
            await self.connect()
        self.assertEqual(stopped, [])
        held[0].write(answer(b"{}"))  # type: ignore[attr-defined]
        await until(client.whole)
        self.assertEqual(client.status, 200)
        await until(lambda: bool(stopped))
        await until(lambda: client.lost is not None)

    async def test_grace_is_bounded(self) -> None:
        """What does not finish within the grace is cut."""
        await self.start(Limits(shutdown_grace_s=0.2))
        self.upstream.script = lambda up, _: None
        client = await self.connect()
        client.write(request())
        await until(lambda: bool(self.upstream.requests))
        await self.gateway.stopService()
        self.assertIs(self.records.records[0].outcome, Outcome.CLIENT_GONE)
        await until(lambda: client.lost is not None)
        await until(lambda: not self.upstream.connections)

    async def test_stop_while_draining(self) -> None:
        """An answer that is read on for the record is recorded when the gateway stops."""
        await self.start(Limits(shutdown_grace_s=0.2))
        self.upstream.script = lambda up, _: up.write(EVENT_STREAM + chunk(FRAME))
        client = await self.connect()
        client.write(request(STREAM))
        await until(lambda: FRAME in client.received)
        client.transport.abortConnection()
        await pause(0.05)
        self.assertEqual(self.records.records, [])
        await self.gateway.stopService()
        self.assertEqual([r.error for r in self.records.records], ["cut"])

    async def test_readiness_while_draining(self) -> None:
        """A probe that was under way when the stop began is told 503."""
        await self.start(Limits(shutdown_grace_s=20))
        client = await self.connect()
        probe = request("/health/readiness", b"", method="GET", key=None)
        client.write(probe[:20])
        await pause(0.05)
        stopping = self.gateway.stopService()
        client.write(probe[20:])
        await until(client.whole)
        self.assertEqual(client.status, 503)
        self.assertIn(b"connection: close", client.head)
        await stopping


class SkewTests(GatewayTestCase):
    """A clock that is wrong."""

    async def test_learned(self) -> None:
        """Bedrock's Date on the refusal of a signature corrects ours, once."""
        await self.start()

        def script(up: object, got: object) -> None:
            [date] = got.get(b"x-amz-date")  # type: ignore[attr-defined]
            if date.startswith(b"2031"):
                up.write(answer(b"{}"))  # type: ignore[attr-defined]
            else:
                up.write(  # type: ignore[attr-defined]
                    answer(
                        b'{"message":"Signature expired"}',
                        b"403 Forbidden",
                        b"x-amzn-ErrorType: InvalidSignatureException\r\n"
                        b"Date: Wed, 01 Jan 2031 12:00:00 GMT\r\n",
                    )
                )

        self.upstream.script = script
        self.assertEqual((await self.ask(request())).status, 200)
        self.assertEqual(len(self.upstream.requests), 2)
        self.assertEqual((await self.ask(request())).status, 200)
        self.assertEqual(len(self.upstream.requests), 3)
        self.assertEqual([r.attempts for r in self.records.records], [2, 1])

    async def test_not_the_clock(self) -> None:
        """A refusal that the clock does not explain comes back at once."""
        await self.start()
        self.upstream.script = lambda up, _: up.write(
            answer(b"{}", b"403 Forbidden", b"x-amzn-ErrorType: InvalidSignatureException\r\n")
        )
        self.assertEqual((await self.ask(request())).status, 403)
        self.assertEqual(len(self.upstream.requests), 1)
