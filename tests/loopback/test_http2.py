"""
HTTP/2 through the whole gateway, over real sockets: h2c and, over TLS, by ALPN.

One client is the h2 library's, the other Node's ``http2``, which shares no code with it.
"""

from __future__ import annotations

import json
import os
import shutil
from base64 import b64decode
from typing import Any

import trustme
from h2.errors import ErrorCodes
from hyperframe.frame import PingFrame
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.internet.utils import getProcessOutputAndValue
from zope.interface import implementer

from tests.fakes import (
    BODY,
    CONVERSE,
    EVENT_STREAM,
    FRAME,
    KEY,
    STREAM,
    BareClient,
    GatewayTestCase,
    Received,
    UpstreamConnection,
    answer,
    chunk,
    pause,
    request,
    until,
)
from tests.http2client import Answer, Http2Client, fields
from tests.sandboxed import SandboxedTestCase
from txbedrock.config import Limits
from txbedrock.core.eventstream import Decoder
from txbedrock.interfaces import Outcome

_CLAUDE = "/bedrock/model/anthropic.claude-3-haiku-20240307-v1%3A0"
_CONVERSE_BODY = b'{"messages": [{"role": "user", "content": [{"text": "Who are you?"}]}]}'


@implementer(IPushProducer)
class Flood:
    """Frames of 1 kB without end, as fast as they are taken."""

    def __init__(self, up: UpstreamConnection) -> None:
        self.up = up
        self.written = 0
        self.paused = False
        up.write(EVENT_STREAM)
        up.transport.registerProducer(self, True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self.paused = False
        self._more()

    def _more(self) -> None:
        if not self.paused:
            self.up.write(chunk(FRAME * 20) * 8)
            self.written += len(FRAME) * 160
            reactor.callLater(0, self._more)  # type: ignore[attr-defined]

    def pauseProducing(self) -> None:
        self.paused = True

    def stopProducing(self) -> None:
        self.paused = True


class Http2TestCase(GatewayTestCase):
    """A gateway that clients speak HTTP/2 with."""

    secure = False
    timeout = 60

    async def start_gateway(self, *args: Any, **options: Any) -> Any:
        self.ca = trustme.CA()
        if self.secure:
            files = os.path.abspath(self.mktemp())
            certificate = self.ca.issue_cert("localhost", "127.0.0.1")
            certificate.private_key_and_cert_chain_pem.write_to_path(files)
            options["listen"] = f"ssl:0:interface=127.0.0.1:privateKey={files}:certKey={files}"
        gateway = await super().start_gateway(*args, **options)
        clients: list[Any] = self.clients

        def forget_lost() -> None:
            # Over TLS they cannot be aborted once more.
            clients[:] = [client for client in clients if client.lost is None]

        self.addCleanup(forget_lost)
        return gateway

    async def connect2(self, window: int = 65535, agree: tuple[bytes, ...] = (b"h2",)) -> Any:
        """A connection of HTTP/2's."""
        endpoint: Any = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        if self.secure:
            root = trustRootFromCertificates([Certificate.loadPEM(self.ca.cert_pem.bytes())])
            options = optionsForClientTLS("localhost", root, acceptableProtocols=list(agree))
            endpoint = wrapClientTLS(options, endpoint)
        client: Any = await endpoint.connect(Factory.forProtocol(lambda: Http2Client(window)))
        self.clients.append(client)
        return client

    async def ask2(self, *args: Any, client: Http2Client | None = None, **options: Any) -> Answer:
        """An answer, whole or reset."""
        if client is None:
            client = await self.connect2()
        answer = client.ask(*args, **options)
        await until(lambda: answer.over or client.lost is not None)
        return answer

    def outcomes(self) -> list[Outcome]:
        """Of all exchanges."""
        return [record.outcome for record in self.records.records]


class SandboxTests(Http2TestCase, SandboxedTestCase):
    """Requests as SDKs send them, signed on for Bedrock."""

    async def test_answers(self) -> None:
        """Unary, streaming, refused by Bedrock and refused here, all on one connection."""
        self.start_sandbox(words=50)
        await self.start_gateway(self.settings())
        client = await self.connect2()
        for _ in range(3):
            whole = await self.ask2(CONVERSE, _CONVERSE_BODY, client=client)
            self.assertEqual((whole.status, whole.ended), (200, True))
            self.assertIn("output", json.loads(whole.body))
            self.assertIn(b"x-amzn-requestid", whole.headers)
            self.assertFalse({b"connection", b"transfer-encoding"} & set(whole.headers))
        if self.secure:
            self.assertEqual(client.transport.negotiatedProtocol, b"h2")
        stream = await self.ask2(STREAM, _CONVERSE_BODY, client=client)
        self.assertEqual(stream.status, 200)
        self.assertEqual(stream.headers[b"content-type"], b"application/vnd.amazon.eventstream")
        events = Decoder().feed(bytes(stream.body))
        self.assertGreater(len(events), 50)
        self.assertEqual(events[-1].headers[":event-type"], "metadata")
        self.sandbox.faults.add("throttle", operation="Converse")
        refused = await self.ask2(CONVERSE, _CONVERSE_BODY, client=client)
        self.assertEqual(refused.status, 429)
        self.assertIn(b"ThrottlingException", refused.headers[b"x-amzn-errortype"])
        nowhere = await self.ask2("/bedrock/model/typo/converse", client=client)
        self.assertEqual(nowhere.status, 404)
        self.assertIn("typo", json.loads(nowhere.body)["message"])
        self.assertEqual(self.gateway.site.connections, 1)

    async def test_carriers(self) -> None:
        """The key is taken from each place where clients put it, and is needed."""
        self.start_sandbox()
        await self.start_gateway(self.settings())
        client = await self.connect2()
        signature = (
            f"AWS4-HMAC-SHA256 Credential={KEY}/20261122/us-west-2/bedrock/aws4_request, "
            "SignedHeaders=:authority, Signature=00"
        )
        for header, status in (
            (("authorization", f"Bearer {KEY}"), 200),
            (("x-api-key", KEY), 200),
            (("x-litellm-api-key", KEY), 200),
            (("x-amz-security-token", KEY), 200),
            (("authorization", signature), 200),
            (("authorization", "Bearer sk-planted-wrong"), 403),
            (("x-none", "1"), 403),
        ):
            found = await self.ask2(CONVERSE, _CONVERSE_BODY, header, client=client, key=None)
            self.assertEqual(found.status, status, header)
        self.assertEqual({r.status for r in self.records.records}, {200, 403})

    async def test_upload(self) -> None:
        """20 MB arrive byte for byte, through windows that open as they are taken."""
        self.start_sandbox()
        await self.start_gateway(self.settings())
        body = json.dumps(
            {
                "prompt": "Human: " + "abcdefghij" * 2_000_000 + " Assistant:",
                "max_tokens_to_sample": 10,
            }
        ).encode()
        client = await self.connect2()
        path = "/bedrock/model/anthropic.claude-v2/invoke"
        slow = client.ask(path, body)
        self.assertGreater(client.uploading, len(body) - 10_000_000)
        # Others do not wait until it is up.
        quick = await self.ask2(CONVERSE, _CONVERSE_BODY, client=client)
        self.assertEqual(quick.status, 200)
        await until(lambda: slow.over)
        self.assertEqual(slow.status, 200, slow.body)
        [recorded] = [r for r in self.sandbox.requests if r.operation == "InvokeModel"]
        self.assertEqual(recorded.body, body)

    async def test_events_on_their_way(self) -> None:
        """Each event is there when Bedrock sends it, in many streams of one connection."""
        self.start_sandbox(words=10)
        await self.start_gateway(self.settings())
        self.sandbox.faults.add("drip", operation="ConverseStream", interval_ms=100, times=None)
        client = await self.connect2()
        answers = [client.ask(STREAM, _CONVERSE_BODY) for _ in range(20)]
        await until(client.all_over())
        for found in answers:
            self.assertGreaterEqual(len(Decoder().feed(bytes(found.body))), 10)
            times = [time for time, _ in found.arrived]
            self.assertGreater(times[-1] - times[0], 0.8)
            self.assertGreaterEqual(found.frames, 10)
        self.assertEqual(self.outcomes(), [Outcome.COMPLETE] * 20)


class SandboxTLSTests(SandboxTests):
    """The same over TLS, HTTP/2 agreed upon by ALPN."""

    secure = True

    async def test_http_1_1(self) -> None:
        """Who does not ask for HTTP/2 gets HTTP/1.1, and who agrees on nothing either."""
        self.start_sandbox()
        await self.start_gateway(self.settings())
        root = trustRootFromCertificates([Certificate.loadPEM(self.ca.cert_pem.bytes())])
        for agree, agreed in (([b"http/1.1"], b"http/1.1"), ([], None)):
            options = optionsForClientTLS("localhost", root, acceptableProtocols=agree or None)
            endpoint = wrapClientTLS(options, TCP4ClientEndpoint(reactor, "127.0.0.1", self.port))
            client: Any = await endpoint.connect(Factory.forProtocol(BareClient))
            self.clients.append(client)
            client.write(request(body=_CONVERSE_BODY))
            await until(client.whole)
            self.assertEqual(client.status, 200)
            self.assertEqual(client.transport.negotiatedProtocol, agreed)
        # The preface tells without ALPN, too.
        client2 = await self.connect2(agree=())
        self.assertEqual((await self.ask2(CONVERSE, _CONVERSE_BODY, client=client2)).status, 200)


class StreamTests(Http2TestCase):
    """Streams beside each other, and how they end."""

    async def test_stalled_beside_live(self) -> None:
        """
        Answers that nobody reads hold little and hold up nobody: their upstreams are
        paused, the others go on.
        """
        await self.start()
        floods: list[Flood] = []
        self.upstream.script = lambda up, _: floods.append(Flood(up))
        client = await self.connect2()
        stalled = [client.ask(STREAM, hold=True) for _ in range(10)]
        await until(lambda: len(floods) == 10 and all(flood.paused for flood in floods))
        await until(lambda: all(len(found.body) == 65535 for found in stalled))
        await pause(0.3)
        written = [flood.written for flood in floods]
        await pause(0.3)
        self.assertEqual([flood.written for flood in floods], written)
        self.upstream.script = lambda up, got: up.write(answer(got.body))
        for size in (10, 1_000_000):
            for _ in range(5):
                body = b"x" * size
                found = await self.ask2(CONVERSE, body, client=client)
                self.assertEqual((bytes(found.body), found.ended), (body, True))
        [channel] = self.gateway.site._channels
        waiting = [stream.waiting for stream in channel._streams.values()]  # type: ignore[union-attr]
        self.assertLess(max(waiting), 3 * 65536)
        # They go on as soon as they are read.
        client.open(stalled[0], 10_000_000)
        await until(lambda: len(stalled[0].body) > 5_000_000)

    async def test_fair(self) -> None:
        """Many answers that are all read come at the same rate."""
        await self.start()
        floods: list[Flood] = []
        self.upstream.script = lambda up, _: floods.append(Flood(up))
        client = await self.connect2(window=2**20)
        answers = [client.ask(STREAM) for _ in range(8)]
        await until(lambda: min(len(found.body) for found in answers) > 1_000_000)
        lengths = [len(found.body) for found in answers]
        self.assertLess(max(lengths), 3 * min(lengths))

    async def test_slow_socket(self) -> None:
        """A client that takes nothing off its socket pauses all its upstreams."""
        await self.start()
        floods: list[Flood] = []
        self.upstream.script = lambda up, _: floods.append(Flood(up))
        client = await self.connect2(window=2**30)
        answers = [client.ask(STREAM) for _ in range(5)]
        await until(lambda: min(len(found.body) for found in answers) > 0)
        client.transport.pauseProducing()
        await until(lambda: all(flood.paused for flood in floods))
        # What the kernel takes may still grow a little.
        written: list[int] = []
        for _ in range(20):
            before, written = written, [flood.written for flood in floods]
            if written == before:
                break
            await pause(0.3)
        self.assertEqual(written, before)
        before = [len(found.body) for found in answers]
        client.transport.resumeProducing()
        await until(
            lambda: all(
                len(found.body) > length + 1_000_000
                for found, length in zip(answers, before, strict=True)
            )
        )

    async def test_client_gives_up(self) -> None:
        """A reset cancels its exchange, and no other."""
        await self.start(Limits(shutdown_grace_s=0.2, drain_max_s=0.2))
        held: list[UpstreamConnection] = []

        def script(up: UpstreamConnection, _: Received) -> None:
            up.write(EVENT_STREAM + chunk(FRAME))
            held.append(up)

        self.upstream.script = script
        client = await self.connect2()
        one, other = client.ask(STREAM), client.ask(STREAM)
        await until(lambda: len(one.body) > 0 and len(other.body) > 0)
        client.reset(one)
        await until(lambda: len(self.records.records) == 1)
        self.assertIs(self.records.records[0].outcome, Outcome.CLIENT_GONE)
        for up in held:
            up.write(chunk(FRAME) + b"0\r\n\r\n")
        await until(lambda: other.over)
        self.assertEqual((bytes(other.body), other.ended), (FRAME * 2, True))
        self.assertIsNone(client.lost)

    async def test_client_goes_away(self) -> None:
        """
        GOAWAY right behind the request: the stream comes whole, byte for byte, and then
        the connection ends.
        """
        await self.start()
        held: list[UpstreamConnection] = []
        self.upstream.script = lambda up, _: held.append(up)
        client = await self.connect2()
        found = client.ask(STREAM)
        client.go_away()
        await until(lambda: bool(held))
        held[0].write(EVENT_STREAM)
        for _ in range(20):
            held[0].write(chunk(FRAME))
            await pause(0.01)
            client.transport.write(PingFrame(0, opaque_data=b"12345678").serialize())
        held[0].write(b"0\r\n\r\n")
        await until(lambda: client.lost is not None)
        self.assertEqual((bytes(found.body), found.ended), (FRAME * 20, True))
        self.assertEqual(self.outcomes(), [Outcome.COMPLETE])
        await until(lambda: self.gateway.site.connections == 0)

    async def test_cut(self) -> None:
        """An answer that breaks inside a frame is reset, with all that was before."""
        await self.start()

        def script(up: UpstreamConnection, got: Received) -> None:
            if got.target.endswith(b"converse"):
                up.write(answer(b"{}"))
                return
            up.write(EVENT_STREAM + chunk(FRAME + FRAME[:7]))
            reactor.callLater(0.05, up.reset)  # type: ignore[attr-defined]

        self.upstream.script = script
        client = await self.connect2()
        found = await self.ask2(STREAM, client=client)
        self.assertEqual((found.ended, found.reset), (False, ErrorCodes.INTERNAL_ERROR))
        self.assertEqual(bytes(found.body), FRAME + FRAME[:7])
        self.assertEqual((await self.ask2(CONVERSE, client=client)).status, 200)

    async def test_refusals(self) -> None:
        """Refused by us: in AWS's shape, on a connection that goes on."""
        await self.start(Limits(max_request_body=100_000, upload_idle_timeout_s=0.3))
        client = await self.connect2()
        large = await self.ask2(CONVERSE, bytes(1_000_000), client=client)
        self.assertEqual((large.status, large.ended, large.reset), (413, True, 0))
        for path, status in (
            ("/nowhere", 404),
            ("/bedrock/model/../converse", 400),
            ("/bedrock/model/m/invoke-with-bidirectional-stream", 501),
        ):
            found = await self.ask2(path, client=client)
            self.assertEqual(found.status, status)
            self.assertIn(b"x-amzn-errortype", found.headers)
            self.assertIn("message", json.loads(found.body))
        late = client.head(fields(CONVERSE))
        await until(lambda: late.over)
        self.assertEqual((late.status, late.reset), (408, 0))
        head = await self.ask2("/health/liveness", b"", method="HEAD", client=client)
        self.assertEqual((head.status, head.headers[b"content-length"]), (200, b"12"))
        self.assertEqual((head.ended, bytes(head.body)), (True, b""))
        expecting = client.head(fields(CONVERSE, "POST", ("expect", "100-continue")))
        await until(lambda: expecting.informational == [100])
        client.h2.send_data(expecting.id, BODY, end_stream=True)
        client.flush()
        await until(lambda: expecting.over)
        self.assertEqual(expecting.status, 200)
        self.assertEqual(self.upstream.requests[-1].get(b"expect"), [])
        self.assertEqual(self.upstream.requests[-1].get(b":authority"), [])

    async def test_drain(self) -> None:
        """A stop tells clients, lets what is under way finish, and refuses the rest."""
        await self.start(Limits(shutdown_grace_s=20))
        held: list[UpstreamConnection] = []
        self.upstream.script = lambda up, _: held.append(up)
        client, idle = await self.connect2(), await self.connect2()
        found = client.ask(CONVERSE)
        await until(lambda: bool(held))
        stopped: list[object] = []
        self.gateway.stopService().addCallback(stopped.append)
        await until(lambda: bool(idle.goaways) and len(client.goaways) == 2)
        idle.transport.loseConnection()
        refused = client.ask(CONVERSE)
        await until(lambda: refused.over)
        self.assertEqual(refused.reset, ErrorCodes.REFUSED_STREAM)
        self.assertEqual(stopped, [])
        held[0].write(answer(b"{}"))
        await until(lambda: client.lost is not None)
        self.assertEqual((found.status, bytes(found.body), found.ended), (200, b"{}", True))
        await until(lambda: bool(stopped))

    async def test_last_answer_is_long(self) -> None:
        """
        The connection's last answer comes whole to a client that goes on talking while
        it reads slowly.
        """
        await self.start()
        body = bytes(range(256)) * 12_000
        self.upstream.script = lambda up, _: up.write(answer(body))
        client = await self.connect2(window=2**24)
        found = client.ask(CONVERSE)
        client.go_away()
        for _ in range(30):
            client.transport.pauseProducing()
            await pause(0.01)
            client.transport.write(PingFrame(0, opaque_data=b"12345678").serialize())
            client.transport.resumeProducing()
            await pause(0)
        await until(lambda: client.lost is not None)
        self.assertTrue(found.ended, len(found.body))
        self.assertEqual(bytes(found.body), body)

    async def test_a_thousand_streams(self) -> None:
        """1,000 streams on 10 connections, one in ten stalled: the others all come whole."""
        await self.start()
        floods: list[Flood] = []
        waiting: list[UpstreamConnection] = []
        body = b"x" * 20_000

        def script(up: UpstreamConnection, got: Received) -> None:
            if got.target.endswith(b"converse"):
                waiting.append(up)
            else:
                floods.append(Flood(up))

        self.upstream.script = script
        stalled: list[Answer] = []
        live: list[Answer] = []
        for _ in range(10):
            client = await self.connect2()
            stalled.extend(client.ask(STREAM, hold=True) for _ in range(10))
            live.extend(client.ask(CONVERSE) for _ in range(90))
            await until(lambda: len(floods) + len(waiting) == len(stalled) + len(live))
        self.assertEqual(self.gateway.site.connections, 10)
        await until(lambda: all(flood.paused for flood in floods))
        for up in waiting:
            up.write(answer(body))
        await until(lambda: all(found.over for found in live))
        for found in live:
            self.assertEqual((found.status, len(found.body), found.ended), (200, 20_000, True))
        self.assertEqual({len(found.body) for found in stalled}, {65535})
        self.assertFalse(any(found.over for found in stalled))


class StreamTLSTests(StreamTests):
    """The same over TLS."""

    secure = True


class FloodTests(Http2TestCase):
    """Who does too much."""

    async def test_others_are_answered(self) -> None:
        """While one client floods, another is answered soon."""
        await self.start()
        good = await self.connect2()
        for _ in range(5):
            client = await self.connect2()
            data = b""
            for _ in range(5000):
                asked = client.h2.get_next_available_stream_id()
                client.h2.send_headers(asked, fields(STREAM), end_stream=True)
                client.h2.reset_stream(asked)
                data += client.h2.data_to_send()
            client.transport.write(data)
            began = reactor.seconds()  # type: ignore[attr-defined]
            found = await self.ask2("/health/liveness", b"", method="GET", client=good)
            self.assertEqual(found.status, 200)
            self.assertLess(reactor.seconds() - began, 2.0)  # type: ignore[attr-defined]
            await until(lambda: bool(client.goaways) or client.lost is not None)  # noqa: B023
        self.assertEqual(self.gateway.site.refusals["rapid_reset"], 5)
        self.assertLess(len(self.records.records), 5 * 250)


NODE = shutil.which("node")

SCRIPT = """
const http2 = require('http2'), fs = require('fs');
const [base, key, ca] = process.argv.slice(2);
const options = ca ? {ca: fs.readFileSync(ca)} : {};
const body = JSON.stringify({messages: [{role: 'user', content: [{text: 'Who are you?'}]}]});

function ask(session, path, cancelAfter) {
  return new Promise(resolve => {
    const seen = {status: 0, chunks: [], events: 0, error: null, ended: false};
    const request = session.request({':method': 'POST', ':path': path,
      'content-type': 'application/json', authorization: 'Bearer ' + key});
    request.on('response', headers => {
      seen.status = headers[':status'];
      seen.type = headers['content-type'];
    });
    request.on('data', data => {
      seen.chunks.push(data);
      if (cancelAfter && seen.chunks.length >= cancelAfter)
        request.close(http2.constants.NGHTTP2_CANCEL);
    });
    request.on('end', () => { seen.ended = true; });
    request.on('error', error => { seen.error = error.code || String(error); });
    request.on('close', () => {
      seen.code = request.rstCode;
      seen.reads = seen.chunks.length;
      seen.body = Buffer.concat(seen.chunks).toString('base64');
      delete seen.chunks;
      resolve(seen);
    });
    request.end(body);
  });
}

const connect = () => {
  const session = http2.connect(base, options);
  session.on('error', error => { console.error('session', error); process.exitCode = 1; });
  return session;
};

(async () => {
  const out = {};
  let session = connect();
  out.unary = await ask(session, '/bedrock/model/m/converse');
  out.protocol = session.alpnProtocol;
  out.stream = await ask(session, '/bedrock/model/m/converse-stream');
  out.error = await ask(session, '/bedrock/model/typo/converse');
  out.many = await Promise.all([...Array(100)].map(
    (_, n) => ask(session, '/bedrock/model/m/converse' + (n % 2 ? '-stream' : ''))));
  out.cancelled = await ask(session, '/bedrock/model/m/converse-stream', 1);
  out.after = await ask(session, '/bedrock/model/m/converse');
  session.close();
  // As the AWS SDK does it: a connection for each request, closed as soon as that is out.
  out.early = [];
  for (const path of ['converse', 'converse-stream', 'converse-stream']) {
    session = connect();
    const closed = new Promise(resolve => session.on('close', resolve));
    await new Promise(resolve => session.on('connect', resolve));
    const asked = ask(session, '/bedrock/model/m/' + path);
    session.close();
    out.early.push(await asked);
    await closed;
  }
  console.log(JSON.stringify(out));
})();
"""


class NodeTests(Http2TestCase, SandboxedTestCase):
    """Node's client, which the AWS SDK for JavaScript uses."""

    if NODE is None:
        skip = "there is no node"

    async def test_node(self) -> None:
        """Unary, streams, errors, many at once, given up, and closed early: all whole."""
        self.start_sandbox(words=40)
        await self.start_gateway(self.settings())
        self.sandbox.faults.add("drip", operation="ConverseStream", interval_ms=5, times=None)
        script = self.mktemp() + ".js"
        with open(script, "w", encoding="utf-8") as file:
            file.write(SCRIPT)
        arguments = [script, f"http://127.0.0.1:{self.port}", KEY]
        if self.secure:
            bundle = self.mktemp()
            self.ca.cert_pem.write_to_path(bundle)
            arguments[1:] = [f"https://localhost:{self.port}", KEY, bundle]
        assert NODE is not None
        stdout, stderr, code = await getProcessOutputAndValue(NODE, arguments, os.environ)
        self.assertEqual((stderr.decode(), code), ("", 0))
        out = json.loads(stdout)
        self.assertEqual(out["protocol"], "h2" if self.secure else "h2c")
        for one in (out["unary"], out["after"], out["early"][0], *out["many"][::2]):
            self.assertEqual((one["status"], one["error"], one["ended"]), (200, None, True))
            self.assertIn("output", json.loads(b64decode(one["body"])))
        for one in (out["stream"], *out["early"][1:], *out["many"][1::2]):
            self.assertEqual((one["status"], one["error"], one["ended"]), (200, None, True))
            self.assertEqual(one["code"], 0)
            events = Decoder().feed(b64decode(one["body"]))
            self.assertGreater(len(events), 40)
            self.assertEqual(events[-1].headers[":event-type"], "metadata")
            self.assertGreater(one["reads"], 10)
        self.assertEqual((out["error"]["status"], out["error"]["error"]), (404, None))
        self.assertIn("typo", json.loads(b64decode(out["error"]["body"]))["message"])
        self.assertEqual(out["cancelled"]["code"], ErrorCodes.CANCEL)
        await until(lambda: self.gateway.site.connections == 0)
        self.assertEqual(dict(self.gateway.site.refusals), {})


class NodeTLSTests(NodeTests):
    """The same over TLS."""

    secure = True
