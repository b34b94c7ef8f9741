"""
Whom a request is for, as AWS is told of it.
"""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.identity import (
    Identity,
    body_with_metadata,
    headers_with_metadata,
    metadata_goes_in,
    session_name,
)
from txbedrock.errors import InvalidRequest

OURS = {"key_alias": "ci", "team_id": "blue"}

_texts = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=20)
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


class IdentityTests(SynchronousTestCase):
    """What may be told."""

    def test_values(self) -> None:
        """Only what is asked for, only what is there, only what AWS takes."""
        identity = Identity("ci (prod)|ä", "", "blue", "bob@example.com" + "x" * 300)
        self.assertEqual(
            identity.metadata(("key_alias", "user_id", "end_user")),
            {"key_alias": "ci _prod___", "end_user": "bob@example.com" + "x" * 241},
        )
        self.assertEqual(
            identity.tags(("team_id", "key_alias")),
            (("team_id", "blue"), ("key_alias", "ci _prod__ä")),
        )

    def test_session_name(self) -> None:
        """STS takes letters, digits and a few signs, at most 64."""
        self.assertEqual(session_name((("a", "ci 1"), ("b", "blue"))), "txbedrock-ci_1@blue")
        self.assertEqual(len(session_name((("a", "x" * 300),))), 64)

    def test_where(self) -> None:
        """Four operations take metadata, two in each place."""
        found = {
            name: metadata_goes_in(name)
            for name in (
                "Converse",
                "ConverseStream",
                "InvokeModel",
                "InvokeModelWithResponseStream",
                "CountTokens",
            )
        }
        self.assertEqual(list(found.values()), ["body", "body", "header", "header", ""])


class BodyTests(SynchronousTestCase):
    """requestMetadata in Converse's body."""

    def test_table(self) -> None:
        """Values stay byte for byte; the client's names never replace ours."""
        ours = '"key_alias":"ci","team_id":"blue"'
        for body, expected in [
            ("{}", '{"requestMetadata":{%s}}'),
            (" { } ", '{"requestMetadata":{%s}} '),
            ('{"a": [ 1.00 ]}', '{"requestMetadata":{%s},"a": [ 1.00 ]}'),
            (
                '{"requestMetadata":{"team_id":"red","x":"1"},"a": [ 1.00 ]}',
                '{"requestMetadata":{"x":"1",%s},"a":[ 1.00 ]}',
            ),
            ('{"request\\u004detadata":{"team_id":"red"}}', '{"requestMetadata":{%s}}'),
            (
                '{"requestMetadata":{"team_id":"red"},"requestMetadata":{"team_id":"green"}}',
                '{"requestMetadata":{%s}}',
            ),
            ('{"requestMetadata":null}', '{"requestMetadata":{%s}}'),
            ("[1]", "[1]"),
            ('{"a":', '{"a":'),
            ("", ""),
        ]:
            wanted = expected.replace("%s", ours)
            self.assertEqual(body_with_metadata(body.encode(), OURS), wanted.encode(), body)

    def test_not_text(self) -> None:
        """A name that is no UTF-8 is Bedrock's to refuse, beside metadata too."""
        body = b'{"requestMetadata":{"team_id":"red"},"\xff":1}'
        self.assertEqual(body_with_metadata(body, OURS), body)

    def test_not_readable(self) -> None:
        """Metadata that is none is the client's fault, and it is told so."""
        for said in ('"x"', "[1]", '{"a":1}', '{"a":{}}'):
            error = self.assertRaises(
                InvalidRequest, body_with_metadata, b'{"requestMetadata":%b}' % said.encode(), OURS
            )
            self.assertIn("requestMetadata must be", error.message)

    def test_sixteen(self) -> None:
        """Bedrock takes sixteen pairs: ours, and of the client's as many as fit."""
        theirs = {f"n{number}": "v" for number in range(16)}
        body = json.dumps({"requestMetadata": theirs}).encode()
        metadata = json.loads(body_with_metadata(body, OURS))["requestMetadata"]
        self.assertEqual(len(metadata), 16)
        self.assertEqual({name: metadata[name] for name in OURS}, OURS)

    @given(st.dictionaries(st.text(max_size=8), _values), _texts)
    def test_any(self, members: dict[str, object], theirs: dict[str, str]) -> None:
        """Whatever else is in the body is in it afterwards."""
        for document in (members, {**members, "requestMetadata": theirs}):
            body = json.dumps(document).encode()
            found = json.loads(body_with_metadata(body, OURS))
            metadata = found.pop("requestMetadata")
            self.assertEqual(found, {k: v for k, v in members.items() if k != "requestMetadata"})
            self.assertEqual({name: metadata[name] for name in OURS}, OURS)


class HeaderTests(SynchronousTestCase):
    """The header of InvokeModel."""

    def test_merged(self) -> None:
        """One header is left, in which the client's names never replace ours."""
        headers = headers_with_metadata(
            [
                (b"x-amzn-bedrock-request-metadata", b'{"key_alias": "evil", "x": "1"}'),
                (b"Accept", b"*/*"),
                (b"X-Amzn-Bedrock-Request-Metadata", b'{"team_id": "red"}'),
            ],
            OURS,
        )
        self.assertEqual(
            headers,
            [
                (b"Accept", b"*/*"),
                (
                    b"X-Amzn-Bedrock-Request-Metadata",
                    b'{"x":"1","key_alias":"ci","team_id":"blue"}',
                ),
            ],
        )

    def test_not_readable(self) -> None:
        """What is no JSON object of texts is refused."""
        for value in (b"", b"null", b"x", b"[1]", b'{"a":1}', b"\xff", b"[" * 10_000):
            self.assertRaises(
                InvalidRequest,
                headers_with_metadata,
                [(b"X-Amzn-Bedrock-Request-Metadata", value)],
                OURS,
            )
