"""Tests for :mod:`txbedrock.core.attribution`."""

from __future__ import annotations

import gc
import json

from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.attribution import Attribution, attribution


def body(**members: object) -> bytes:
    return json.dumps({"messages": [{"content": "x" * 100}], **members}).encode()


class EndUserTests(SynchronousTestCase):
    """The end user is found wherever a client may say who it is."""

    def end_user(self, headers: dict[str, str], sent: bytes = b"", **options: bytes) -> str:
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        return attribution(pairs, b"/model/m/converse", sent, **options).end_user

    def test_headers(self) -> None:
        """Headers, in their order."""
        both = {"X-LiteLLM-Customer-Id": "b", "x-litellm-end-user-id": "a"}
        self.assertEqual(self.end_user(both), "a")
        self.assertEqual(self.end_user({"X-LiteLLM-Customer-Id": "b"}), "b")
        mine = {"My-User": "c"}
        self.assertEqual(self.end_user(mine, user_header=b"my-user"), "c")
        self.assertEqual(self.end_user(mine), "")

    def test_metadata_header(self) -> None:
        """Bedrock's own metadata header of InvokeModel."""
        for name in ("end_user", "end_user_id", "user_id", "user"):
            headers = {"X-Amzn-Bedrock-Request-Metadata": json.dumps({"a": "b", name: "me"})}
            self.assertEqual(self.end_user(headers), "me")
        for rubbish in ("{", "[]", '{"user": 3}', "[" * 100_000, '{"user": ""}'):
            headers = {"X-Amzn-Bedrock-Request-Metadata": rubbish}
            self.assertEqual(self.end_user(headers), "")

    def test_bodies(self) -> None:
        """Converse, Anthropic and OpenAI each have a place of their own."""
        for sent in (
            body(requestMetadata={"team": "t", "user": "me"}),
            body(metadata={"user_id": "me"}),
            body(user="me"),
            body(safety_identifier="me"),
        ):
            self.assertEqual(self.end_user({}, sent), "me")
            self.assertEqual(
                self.end_user({}, b'{"padding":"%b",' % (b"x" * 20_000) + sent[1:]), "me"
            )

    def test_dense(self) -> None:
        """Of a long body next to no objects are made; it is nobody's whose name has no end."""
        for name in (b"requestMetadata", b"metadata", b"user", b"messages"):
            sent = b'{"%b":[' % name + b"[]," * 100_000 + b"[]]}"
            before = gc.get_stats()[0]["collections"]
            self.assertEqual(self.end_user({}, sent), "")
            self.assertLessEqual(gc.get_stats()[0]["collections"] - before, 1, name)

    def test_headers_come_first(self) -> None:
        """A header is believed before the body."""
        self.assertEqual(self.end_user({"x-litellm-end-user-id": "a"}, body(user="b")), "a")

    def test_rubbish(self) -> None:
        """A body that is not what it should be names nobody."""
        for sent in (
            b'{"user": 1}',
            b'{"user"',
            b'"user"',
            b'["user"]',
            b'{"metadata": ["user_id"]}',
            b'{"metadata": {"user_id": {}}}',
            b'{"requestMetadata": 7}',
            b'{"user": "\xff"}',
            b'{"metadata":' + b"[" * 100_000,
            b"",
        ):
            self.assertEqual(self.end_user({}, sent), "", sent[:40])

    def test_kept_short_and_printable(self) -> None:
        """What is kept cannot break a log line or fill a disk."""
        self.assertEqual(self.end_user({}, body(user="a\r\nb\x00c")), "a b c")
        self.assertEqual(len(self.end_user({}, body(user="a" * 1000))), 256)


class OtherTests(SynchronousTestCase):
    """Tags and sessions."""

    def test_tags(self) -> None:
        """Comma-separated, each once, not endless."""
        self.assertEqual(
            attribution([(b"X-Litellm-Tags", b"a, b,,a ,c")], b"/", b""),
            Attribution(tags=("a", "b", "c")),
        )
        many = b",".join(b"%d" % n for n in range(100))
        self.assertEqual(len(attribution([(b"x-litellm-tags", many)], b"/", b"").tags), 32)

    def test_sessions(self) -> None:
        """Claude Code's, LiteLLM's, and the one in an agent's path."""
        for name in (b"X-Claude-Code-Session-Id", b"x-litellm-session-id", b"X-Session-Id"):
            self.assertEqual(attribution([(name, b"s1")], b"/", b"").session_id, "s1")
        path = b"/agents/A/agentAliases/B/sessions/s%202/text"
        self.assertEqual(attribution([], path, b"").session_id, "s%202")
