"""Tests for :mod:`txbedrock.core.headers`."""

from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.headers import (
    downstream_headers,
    first_values,
    header,
    read_answer,
    upstream_headers,
)


class UpstreamTests(SynchronousTestCase):
    """What goes to AWS."""

    def test_passes_what_is_not_ours(self) -> None:
        """Bedrock's and the client's own headers go up unchanged and in order."""
        headers = [
            (b"Content-Type", b"application/json"),
            (b"X-Amzn-Bedrock-GuardrailIdentifier", b"g1"),
            (b"anthropic-beta", b"a"),
            (b"anthropic-beta", b"b"),
            (b"User-Agent", b"boto3"),
            (b"amz-sdk-invocation-id", b"1"),
        ]
        self.assertEqual(upstream_headers(headers)[0], headers)

    def test_drops_whatever_may_carry_a_key(self) -> None:
        """No carrier of a key goes up, in no spelling, used or not."""
        for name in (
            b"authorization",
            b"Authorization",
            b"X-API-Key",
            b"x-litellm-api-key",
            b"X-Amz-Security-Token",
            b"api-key",
            b"x-goog-api-key",
            b"Ocp-Apim-Subscription-Key",
            b"proxy-authorization",
            b"Cookie",
        ):
            self.assertEqual(upstream_headers([(name, b"sk-secret")])[0], [], name)

    def test_drops_what_belongs_to_the_connection(self) -> None:
        """Hop-by-hop headers stay, those that Connection names among them."""
        headers = [
            (b"Connection", b"keep-alive, X-Internal"),
            (b"X-Internal", b"1"),
            (b"Keep-Alive", b"timeout=5"),
            (b"Transfer-Encoding", b"chunked"),
            (b"TE", b"trailers"),
            (b"Upgrade", b"h2c"),
            (b"Host", b"localhost:4000"),
            (b"Content-Length", b"3"),
            (b"Expect", b"100-continue"),
            (b"X-Other", b"2"),
        ]
        self.assertEqual(upstream_headers(headers)[0], [(b"X-Other", b"2")])

    def test_drops_the_old_signature(self) -> None:
        """Date and hash of the client's signature do not meet ours."""
        headers = [(b"X-Amz-Date", b"x"), (b"x-amz-content-sha256", b"y")]
        self.assertEqual(upstream_headers(headers)[0], [])

    def test_drops_a_configured_carrier(self) -> None:
        """A further header that is said to carry keys is one."""
        self.assertEqual(upstream_headers([(b"X-My-Key", b"k")], b"x-my-key")[0], [])


class DownstreamTests(SynchronousTestCase):
    """What comes back."""

    def test_framing_is_ours(self) -> None:
        """Everything comes back but the framing of the upstream's connection."""
        headers = [
            (b"X-Amzn-Requestid", b"r"),
            (b"Content-Encoding", b"gzip"),
            (b"Set-Cookie", b"a=1"),
            (b"Set-Cookie", b"b=2"),
            (b"Server", b"AWS"),
        ]
        framing = [
            (b"Transfer-Encoding", b"chunked"),
            (b"Content-Length", b"1"),
            (b"Connection", b"close"),
        ]
        self.assertEqual(downstream_headers(headers + framing), headers)

    def test_named_by_connection(self) -> None:
        """What ``Connection`` names belongs to it, unless it says how it ends."""
        headers = [(b"X-Hop", b"1"), (b"Close", b"2"), (b"X", b"3")]
        for value in (b"", b"close", b"Close", b"keep-alive", b"Keep-Alive", b"KEEP-ALIVE, close"):
            with self.subTest(value=value):
                framing = [(b"Connection", value)]
                self.assertEqual(downstream_headers(headers + framing), headers)
        for values in ([b"x-hop"], [b"keep-alive", b"X-Hop"], [b"keep-alive , X-hop,"]):
            with self.subTest(values=values):
                framing = [(b"connection", value) for value in values]
                self.assertEqual(downstream_headers(framing + headers), headers[1:])

    def test_read(self) -> None:
        """Those that were read here are sorted as they are read, to the same end."""
        lines = [
            b"Date: today",
            b"Connection: keep-alive",
            b"Content-Length: 1",
            b"Set-Cookie: a=1",
            b"set-cookie: b=2",
            b"x-close: c:  d",
        ]
        for _ in range(2):
            headers = read_answer(lines)
            assert headers is not None
            pairs = [(name, value) for name, _, value in (line.partition(b": ") for line in lines)]
            self.assertEqual(headers, pairs)
            self.assertEqual(downstream_headers(headers), downstream_headers(pairs))
            self.assertEqual(first_values(headers), first_values(pairs))

    def test_not_read(self) -> None:
        """Where a line decides about others, or is an odd one, each is looked at."""
        for line in (b"Connection: x-hop", b"a:b", b"a: b\nc", b"a: ", b" a: b", b""):
            for _ in range(2):
                self.assertIsNone(read_answer([b"X-Hop: 1", line]), line)


class SelectionTests(SynchronousTestCase):
    """Looking headers up."""

    def test_signed(self) -> None:
        """The content type and all that is Amazon's is signed, nothing else."""
        headers = [
            (b"Accept-Encoding", b"gzip"),
            (b"Content-Type", b"c"),
            (b"X-Amzn-Bedrock-Trace", b"t"),
            (b"x-amz-user-agent", b"u"),
        ]
        self.assertEqual(upstream_headers(headers), (headers, headers[1:]))

    def test_signed_of_those_that_go_up(self) -> None:
        """What does not go up is not signed."""
        headers = [
            (b"Host", b"h"),
            (b"X-Amz-Date", b"d"),
            (b"Accept", b"a"),
            (b"Content-Type", b"c"),
            (b"Connection", b"close, X-Amzn-Hop"),
            (b"x-amzn-hop", b"1"),
            (b"X-Amzn-Key", b"k"),
            (b"X-Amzn-Trace", b"t"),
        ]
        kept, signed = upstream_headers(headers, b"x-amzn-key")
        self.assertEqual(signed, [headers[3], headers[7]])
        self.assertEqual(kept, [headers[2], *signed])

    def test_header(self) -> None:
        """The first of a name counts, whatever its case."""
        headers = [(b"A", b"0"), (b"B-C", b"1"), (b"b-c", b"2")]
        self.assertEqual(header(headers, b"b-c"), b"1")
        self.assertIsNone(header(headers, b"d"))
