"""
Where a request goes, for which deployment, and with whose credentials.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.outbound.test_upstream import NoBody
from txbedrock.core.credentials import BearerToken, Credentials
from txbedrock.core.deployments import CredentialSpec, Deployment
from txbedrock.core.endpoints import Endpoints
from txbedrock.core.identity import Identity
from txbedrock.core.models import Choice
from txbedrock.core.operations import Operations
from txbedrock.data import load
from txbedrock.errors import InvalidRequest
from txbedrock.interfaces import InboundRequest, UpstreamRequest
from txbedrock.signer import Signer


class Source:
    """The credentials of one spec."""

    def __init__(self, spec: CredentialSpec) -> None:
        self.spec = spec

    async def loaded(self) -> None:
        pass

    def current(self, service: str) -> Credentials | BearerToken:
        if self.spec.api_key is not None:
            return BearerToken(self.spec.api_key)
        return Credentials(self.spec.access_key_id or "", "s", str(self.spec.session_tags))

    async def refresh_now(self, rejected: Credentials | None = None) -> bool:
        return False


class Pool:
    def source(self, spec: CredentialSpec) -> Source:
        return Source(spec)


CHOICE = Choice(
    Deployment("d", "m", "a.b:0", "us-east-1", CredentialSpec(access_key_id="ONE")),
    "a.b:0",
    "us-east-1",
)
HOST = b"https://bedrock-runtime.us-east-1.amazonaws.com"


class SignerTests(SynchronousTestCase):
    """L{Signer}"""

    def setUp(self) -> None:
        self.operations = Operations(load("operations"))
        self.endpoints = Endpoints(load("partitions"), overrides={})
        self.signer = self.new_signer()

    def new_signer(self) -> Signer:
        return Signer(
            self.endpoints, Pool(), first_byte_s=60.0, wall_clock=lambda: 1_795_369_500.0
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
        request = InboundRequest("i", method, path, query, [], NoBody(), "1", 0.0)
        match = self.operations.match(
            method, path, target=None, signing_name=None, body=lambda: b""
        )
        coroutine = (signer or self.signer).sign(request, match, choice, identity)
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

    def test_bad_model(self) -> None:
        """A model id that cannot be in a path is refused each time."""
        for _ in range(2):
            for model_id in ("", ".", ".."):
                with self.assertRaises(InvalidRequest):
                    self.sign(replace(CHOICE, model_id=model_id))

    def test_many_models(self) -> None:
        """What clients call models is not remembered without bound."""
        for number in range(3000):
            self.sign(replace(CHOICE, model_id=f"m{number}"))
        self.assertLessEqual(len(self.signer._places), 1024)
