"""
AWS is told whom a request is for: through the gateway, against the sandbox.
"""

from __future__ import annotations

import json
from typing import Any

from tests.fakes import ACCESS_KEY_ID, BODY, CONVERSE, SECRET, GatewayTestCase, request, until
from tests.inbound.test_body import unnamed_files
from tests.outbound.test_credentials import ROLE, Stub
from tests.sandboxed import SandboxedTestCase
from txbedrock.core.deployments import CredentialSpec

INVOKE = "/bedrock/model/m/invoke"
METADATA = ("key_alias", "end_user")
EXPECTED = {"key_alias": "master_key", "end_user": "bob"}


class MetadataTests(SandboxedTestCase):
    """Request metadata. The sandbox verifies the signature over what it gets."""

    def settings(self, **changes: Any) -> Any:
        return super().settings(**{"request_metadata": METADATA, **changes})

    async def told(self, path: str, body: bytes, *headers: str) -> Any:
        """What the sandbox got of a request for Bob."""
        client = await self.ask(
            request(path, body, headers=("x-litellm-end-user-id: bob", *headers))
        )
        self.assertEqual(client.status, 200, client.received)
        return self.sandbox.requests[-1]

    async def test_converse(self) -> None:
        """In the body; the client's own metadata stays, but for our names."""
        self.start_sandbox()
        await self.start_gateway(self.settings())
        for path in (CONVERSE, CONVERSE + "-stream"):
            got = await self.told(path, BODY)
            self.assertEqual(json.loads(got.body)["requestMetadata"], EXPECTED)
            self.assertTrue(got.body.endswith(BODY[1:]), got.body)
        document = json.loads(BODY)
        document["requestMetadata"] = {"key_alias": "evil", "stage": "1"}
        got = await self.told(CONVERSE, json.dumps(document).encode())
        self.assertEqual(json.loads(got.body)["requestMetadata"], {"stage": "1", **EXPECTED})

    async def test_large(self) -> None:
        """A body on disk is changed there, and its file is closed with the other."""
        self.start_sandbox()
        await self.start_gateway(self.settings())
        document = json.loads(BODY)
        document["filler"] = "x" * 3_000_000
        before = unnamed_files()
        got = await self.told(CONVERSE, json.dumps(document).encode())
        found = json.loads(got.body)
        self.assertEqual(found.pop("requestMetadata"), EXPECTED)
        self.assertEqual(found, document)
        await until(lambda: unnamed_files() <= before)

    async def test_invoke(self) -> None:
        """In a header."""
        self.start_sandbox()
        await self.start_gateway(self.settings())
        body = b'{"anthropic_version":"bedrock-2023-05-31","max_tokens":9,"messages":[]}'
        got = await self.told(
            INVOKE, body, 'X-Amzn-Bedrock-Request-Metadata: {"key_alias":"evil","a":"b"}'
        )
        values = [v for n, v in got.headers if n.lower() == b"x-amzn-bedrock-request-metadata"]
        self.assertEqual([json.loads(value) for value in values], [{"a": "b", **EXPECTED}])
        self.assertEqual(got.body, body)

    async def test_elsewhere(self) -> None:
        """An operation that takes no metadata is left alone."""
        self.start_sandbox()
        await self.start_gateway(self.settings())
        body = b'{"input":{"converse":{"messages":[]}}}'
        got = await self.told("/bedrock/model/m/count-tokens", body)
        self.assertEqual(got.body, body)

    async def test_bad(self) -> None:
        """Metadata that cannot be read is refused before anything is sent."""
        self.start_sandbox()
        await self.start_gateway(self.settings())
        client = await self.ask(request(CONVERSE, b'{"requestMetadata":[]}'))
        self.assertEqual(client.status, 400)
        self.assertIn(b"requestMetadata must be a JSON object of texts", client.body)
        self.assertFalse(self.sandbox.requests)

    async def test_not_asked_for(self) -> None:
        """Nothing is told unless the operator wants it."""
        self.start_sandbox()
        await self.start_gateway(self.settings(request_metadata=()))
        got = await self.told(CONVERSE, BODY)
        self.assertEqual(got.body, BODY)


class SessionTests(GatewayTestCase):
    """Tags of a role's session. STS is a stub over real HTTP."""

    async def test_tags(self) -> None:
        """Each end user's requests are signed with a session of its own."""
        self.upstream = await self.start_upstream()
        stub = Stub()
        self.addCleanup(stub.stop)
        spec = CredentialSpec(
            access_key_id=ACCESS_KEY_ID,
            secret_access_key=SECRET,
            role_arn=ROLE,
            sts_endpoint_url=stub.url,
        )
        deployment = self.deployment(
            credentials=spec, session_tags=("key_alias", "team_id", "end_user")
        )
        await self.start_gateway(self.settings(deployments=(deployment,)))
        for user in ("bob", "eve", "bob"):
            client = await self.ask(request(headers=(f"x-litellm-end-user-id: {user}",)))
            self.assertEqual(client.status, 200, client.received)
        signed_by = [
            got.get(b"authorization")[0].split(b"Credential=")[1].split(b"/")[0]
            for got in self.upstream.requests
        ]
        self.assertEqual(signed_by, [b"ASIASTUB2", b"ASIASTUB3", b"ASIASTUB2"])
        start, bob, _ = stub.calls
        self.assertNotIn("Tags.member.1.Key", start.form)
        tags = {
            bob.form[f"Tags.member.{number}.Key"]: bob.form[f"Tags.member.{number}.Value"]
            for number in (1, 2)
        }
        self.assertEqual(tags, {"key_alias": "master_key", "end_user": "bob"})
        self.assertEqual(bob.form["RoleSessionName"], "txbedrock-master_key@bob")
