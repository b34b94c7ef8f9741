"""
Where a request goes, for which deployment, and with whose credentials.
"""

from __future__ import annotations

from dataclasses import replace
from email.utils import formatdate
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from tests.outbound.test_upstream import NoBody
from txbedrock.core.credentials import BearerToken, Credentials
from txbedrock.core.deployments import CredentialSpec, Deployment
from txbedrock.core.endpoints import Endpoints
from txbedrock.core.identity import Identity
from txbedrock.core.models import Choice
from txbedrock.core.operations import Match, Operations
from txbedrock.core.sigv4 import BadSignature, SigningKeys, parse_authorization, verify
from txbedrock.data import load
from txbedrock.errors import InvalidRequest
from txbedrock.inbound.body import Body
from txbedrock.interfaces import InboundRequest, UpstreamRequest
from txbedrock.signer import Signer


class Source:
    """The credentials of one spec."""

    def __init__(self, spec: CredentialSpec) -> None:
        self.spec = spec
        self.is_loaded = not spec.session_tags
        self.rejected: list[Credentials | None] = []

    async def loaded(self) -> None:
        self.is_loaded = True

    def current(self, service: str) -> Credentials | BearerToken:
        assert self.is_loaded, self.spec
        if self.spec.api_key is not None:
            return BearerToken(self.spec.api_key)
        return Credentials(self.spec.access_key_id or "", "s", str(self.spec.session_tags))

    async def refresh_now(self, rejected: Credentials | None = None) -> bool:
        self.rejected.append(rejected)
        return True


class Pool:
    def __init__(self) -> None:
        self.sources: list[Source] = []

    def source(self, spec: CredentialSpec) -> Source:
        self.sources.append(Source(spec))
        return self.sources[-1]


class Refusal:
    """The head of an answer that refuses."""

    phrase = b""
    length = None

    def __init__(self, code: bytes, status: int = 403, date: float | None = None) -> None:
        self.status = status
        self.headers = [(b"x-amzn-ErrorType", code)]
        if date is not None:
            self.headers.append((b"Date", formatdate(date, usegmt=True).encode()))

    async def discard(self) -> None:
        raise AssertionError("that is the business of who asked")


CHOICE = Choice(
    Deployment("d", "m", "a.b:0", "us-east-1", CredentialSpec(access_key_id="ONE")),
    "a.b:0",
    "us-east-1",
)
HOST = b"https://bedrock-runtime.us-east-1.amazonaws.com"
NOW = 1_795_369_500.0


CLIENTS = [
    (b"Host", b"gateway"),
    (b"Authorization", b"Bearer sk-1"),
    (b"Content-Type", b"application/json"),
    (b"X-Amz-Date", b"20000101T000000Z"),
]
"""Headers of a client's request."""


class SignerTests(SynchronousTestCase):
    """L{Signer}"""

    def setUp(self) -> None:
        self.operations = Operations(load("operations"))
        self.endpoints = Endpoints(load("partitions"), overrides={})
        self.signer = self.new_signer()

    def new_signer(self, **options: Any) -> Signer:
        self.pool = Pool()
        return Signer(
            self.endpoints, self.pool, first_byte_s=60.0, wall_clock=lambda: NOW, **options
        )

    def match(self, path: bytes = b"/model/m/converse") -> Match:
        method = b"POST" if path.startswith(b"/model/") else b"GET"
        return self.operations.match(
            method, path, target=None, signing_name=None, body=lambda: b""
        )

    def sign(
        self,
        choice: Choice,
        path: bytes = b"/model/m/converse",
        query: bytes | None = None,
        identity: Identity = Identity(),  # noqa: B008
        signer: Signer | None = None,
    ) -> UpstreamRequest:
        method = b"POST" if path.startswith(b"/model/") else b"GET"
        request = InboundRequest("i", method, path, query, CLIENTS, NoBody(), "1", 0.0)
        coroutine = (signer or self.signer).sign(request, self.match(path), choice, identity)
        try:
            coroutine.send(None)
        except StopIteration as stop:
            signed: UpstreamRequest = stop.value
            return signed
        raise AssertionError("it waits")

    def changed(self, **changes: Any) -> Choice:
        deployment = replace(CHOICE.deployment, **changes)
        return Choice(deployment, deployment.model_id, deployment.region)

    def test_url(self) -> None:
        """Path and query are those of the deployment and the client."""
        path = HOST + b"/model/a.b%3A0/converse"
        self.assertEqual(self.sign(CHOICE).url, path)
        self.assertEqual(self.sign(CHOICE, query=b"").url, path + b"?")
        self.assertEqual(self.sign(CHOICE, query=b"a=%20").url, path + b"?a=%20")
        self.assertEqual(self.sign(CHOICE).url, path)

    def test_nothing_mixed_up(self) -> None:
        """
        What is remembered of one deployment is not used for another, even of the same
        name, nor for another operation, model or region.
        """
        timeouts = self.changed(timeout_s=5.0, stream_timeout_s=7.0)
        choices = [
            CHOICE,
            self.changed(),
            self.changed(credentials=CredentialSpec(access_key_id="TWO")),
            self.changed(credentials=CredentialSpec(api_key="key")),
            self.changed(endpoint_url="http://127.0.0.1:1/p"),
            self.changed(region="eu-west-1"),
            self.changed(model_id="c.d"),
            self.changed(session_tags=("key_alias",)),
            timeouts,
            replace(CHOICE, region="eu-west-1"),
            replace(CHOICE, model_id="c.d"),
        ]
        paths = (
            b"/model/m/converse",
            b"/model/m/converse-stream",
            b"/model/m/invoke",
            b"/guardrails",
            b"/inference-profiles",
        )
        for _ in range(2):
            for choice in choices:
                for path in paths:
                    got = self.sign(choice, path)
                    alone = self.sign(choice, path, signer=self.new_signer())
                    got.body = alone.body
                    self.assertEqual(got, alone)
        self.assertEqual(self.sign(timeouts).first_byte_timeout_s, 5.0)
        self.assertEqual(self.sign(timeouts, paths[1]).first_byte_timeout_s, 7.0)

    def test_session_tags(self) -> None:
        """Who is told to AWS is who asks."""
        choice = self.changed(session_tags=("key_alias", "user_id"))
        one, two, again = (
            self.sign(choice, identity=Identity(alias, "u", "", "")).credentials
            for alias in ("a", "b", "a")
        )
        self.assertNotEqual(one, two)
        self.assertEqual(one, again)

    def verify(self, signed: UpstreamRequest, choice: Choice, now: float = NOW) -> None:
        """As AWS does it, at that time."""
        [value] = [value for name, value in signed.headers if name == b"Authorization"]
        [date] = [value for name, value in signed.headers if name == b"X-Amz-Date"]
        scope = parse_authorization(value)
        self.assertEqual((scope.region, scope.service), (choice.region, "bedrock"))
        self.assertEqual(scope.access_key_id, choice.deployment.credentials.access_key_id)
        _, _, rest = signed.url.partition(b"://")
        path, _, query = rest[rest.index(b"/") :].partition(b"?")
        verify(
            scope,
            "s",
            method=signed.method,
            raw_path=path,
            raw_query=query,
            headers=signed.headers,
            payload_sha256=NoBody.sha256,
            timestamp=date.decode(),
            now=now,
            max_skew_s=1.0,
            keys=SigningKeys(),
        )

    def test_signed(self) -> None:
        """AWS takes the signature; nothing of what let the client in goes up."""
        for choice in (
            CHOICE,
            self.changed(region="eu-west-1"),
            self.changed(session_tags=("key_alias",)),
        ):
            for query in (None, b"b=%20&a"):
                signed = self.sign(choice, query=query)
                self.verify(signed, choice)
                names = [name.lower() for name, _ in signed.headers]
                self.assertEqual(len(names), len(set(names)))
                self.assertIn((b"Content-Type", b"application/json"), signed.headers)
                self.assertNotIn(b"sk-1", b"".join(value for _, value in signed.headers))
        with self.assertRaises(BadSignature):
            self.verify(self.sign(CHOICE), CHOICE, NOW + 2)

    def test_bearer(self) -> None:
        """A bearer token stands in place of a signature."""
        choice = self.changed(credentials=CredentialSpec(api_key="key"))
        signed = self.sign(choice)
        self.assertEqual(
            [value for name, value in signed.headers if name == b"Authorization"],
            [b"Bearer key"],
        )
        self.assertNotIn(b"X-Amz-Date", [name for name, _ in signed.headers])

    def learns(self, refusal: Refusal, choice: Choice = CHOICE) -> bool:
        """Whether a refusal is a reason to try again."""
        learning = self.signer.learn(
            self.match(),
            choice,
            Identity(),
            self.sign(choice),
            refusal,  # type: ignore[arg-type]
        )
        try:
            learning.send(None)
        except StopIteration as stop:
            return bool(stop.value)
        raise AssertionError("it waits")

    def test_clock(self) -> None:
        """
        A refused signature and a Date that is minutes away: the next one is signed with
        AWS's time, at that host only, until it says another.
        """
        other = self.changed(region="eu-west-1")
        for status, code, offset in (
            (401, b"RequestTimeTooSkewed", 120),
            (403, b"InvalidSignatureException:http://x", 3600),
            (400, b"RequestExpired", -7200),
        ):
            with capturedLogs() as logged:
                self.assertTrue(self.learns(Refusal(code, status, NOW + offset)))
                self.assertFalse(self.learns(Refusal(code, status, NOW + offset)))
            self.assertEqual(
                [formatEvent(event) for event in logged],
                [
                    "our clock differs from that of bedrock-runtime.us-east-1.amazonaws.com "
                    f"by {offset} s; signing with theirs"
                ],
            )
            self.verify(self.sign(CHOICE), CHOICE, NOW + offset)
            self.verify(self.sign(other), other)

    def test_clock_is_right(self) -> None:
        """Nothing is learned of a Date that is near, of none, or from another answer."""
        for refusal in (
            Refusal(b"InvalidSignatureException", date=NOW + 119),
            Refusal(b"InvalidSignatureException"),
            Refusal(b"ThrottlingException", date=NOW + 3600),
            *(Refusal(b"RequestExpired", status, NOW + 3600) for status in (200, 402, 404, 500)),
        ):
            self.assertFalse(self.learns(refusal))
            self.verify(self.sign(CHOICE), CHOICE)

    def test_stale(self) -> None:
        """Credentials that are not good any more are told to their source; a token is not."""
        for code in (b"ExpiredToken", b"UnrecognizedClientException:x"):
            self.assertTrue(self.learns(Refusal(code)))
            self.assertEqual(self.pool.sources[-1].rejected, [self.sign(CHOICE).credentials])
        self.assertFalse(self.learns(Refusal(b"AccessDeniedException")))
        self.assertFalse(self.learns(Refusal(b"ExpiredToken", 500)))
        token = self.changed(credentials=CredentialSpec(api_key="key"))
        self.assertFalse(self.learns(Refusal(b"ExpiredToken"), token))

    def test_bad_model(self) -> None:
        """A model id that cannot be in a path is refused each time."""
        for _ in range(2):
            for model_id in ("", ".", ".."):
                with self.assertRaises(InvalidRequest):
                    self.sign(replace(CHOICE, model_id=model_id))

    def test_metadata(self) -> None:
        """Where an operation takes it, AWS is told what the operator wants told of whom."""
        told = b"X-Amzn-Bedrock-Request-Metadata"
        for names, identity, path, expected in (
            (("user_id",), Identity("a", "u"), b"invoke", [(told, b'{"user_id":"u"}')]),
            (("user_id",), Identity("a", "u"), b"converse", b'{"requestMetadata":{"user_id":"u"}'),
            (("user_id",), Identity("a", "u"), b"count-tokens", None),
            (("user_id",), Identity("a"), b"invoke", None),
            ((), Identity("a", "u"), b"converse", None),
        ):
            signer = self.new_signer(request_metadata=names)
            body = Body()
            body.write(b"{}")
            self.successResultOf(Deferred.fromCoroutine(body.complete()))
            path = b"/model/m/" + path
            request = InboundRequest("i", b"POST", path, None, CLIENTS, body, "1", 0.0)
            found = self.successResultOf(
                Deferred.fromCoroutine(signer.with_metadata(request, self.match(path), identity))
            )
            if expected is None:
                self.assertIs(found, request)
            elif isinstance(expected, bytes):
                self.assertTrue(found.body.start().startswith(expected), found.body.start())
                self.assertEqual(found.headers, CLIENTS)
            else:
                self.assertEqual(found.headers, CLIENTS + expected)
                self.assertIs(found.body, body)

    def test_many_models(self) -> None:
        """What clients call models is not remembered without bound."""
        for number in range(3000):
            self.sign(replace(CHOICE, model_id=f"m{number}"))
        self.assertLessEqual(len(self.signer._places), 1024)
