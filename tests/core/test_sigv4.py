"""
Tests for L{txbedrock.core.sigv4}. The reference is botocore, which every
request of the property tests is signed with as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from random import Random
from unittest.mock import patch
from urllib.parse import quote

from botocore.auth import SIGNED_HEADERS_BLACKLIST, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core import sigv4
from txbedrock.core.credentials import Credentials
from txbedrock.core.sigv4 import (
    EMPTY_SHA256,
    BadPath,
    BadSignature,
    Mismatch,
    ScopedSignature,
    SigningKeys,
    amz_date,
    canonical_path,
    canonical_query,
    clock_offset,
    parse_authorization,
    sign,
    verify,
)

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Case:
    """A random request, as the client wants it."""

    credentials: Credentials
    method: str
    scheme: str
    host: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    region: str
    service: str
    now: float

    @property
    def timestamp(self) -> str:
        return datetime.fromtimestamp(self.now, UTC).strftime("%Y%m%dT%H%M%SZ")

    @property
    def payload_sha256(self) -> str:
        return sha256(self.body).hexdigest()


MODELS = [
    "anthropic.claude-3-haiku-20240307-v1:0",
    "us.anthropic.claude-3-5-sonnet-20240620-v1:0",
    "amazon.nova-micro-v1:0:128k",
    "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123",
    "arn:aws:bedrock:eu-west-1:123456789012:provisioned-model/a1b2c3d4e5f6",
    "arn:aws:bedrock:us-west-2:123456789012:prompt/ABCDEFGHIJ:7",
    "team/a model é~*'(x)",
]
ENCODINGS: list[Callable[[str], str]] = [
    lambda label: quote(label, safe="-._~"),  # every AWS SDK
    lambda label: quote(label, safe="-._~:!$&'()*+,;=@"),  # curl and hand-made clients
    lambda label: quote(label, safe="-._~/:"),
    lambda label: quote(quote(label, safe="-._~"), safe=""),
]
HOSTS = [
    ("https", "bedrock-runtime.us-east-1.amazonaws.com"),
    ("https", "bedrock-runtime-fips.us-gov-west-1.amazonaws.com:8443"),
    ("http", "127.0.0.1:4000"),
    ("http", "[::1]:4000"),
]
REGIONS = ["us-east-1", "eu-central-1", "ap-southeast-2", "us-gov-west-1", "cn-north-1"]
SPACES = ["", "", " ", "  ", "\t", " \t ", "\x0b", "\xa0", "\x85", "\x1c"]
WORDS = ["a", "application/json", '"q  q"', "é", "ÿ¼", "x;y=1,z", "", "{}", ":"]
NAMES = [
    "Content-Type",
    "content-TYPE",
    "Accept",
    "X-Amzn-Bedrock-Trace",
    "x-amzn-bedrock-trace",
    "X-Amzn-Bedrock-GuardrailIdentifier",
    "X-Amz-Meta-_!",
    "X-A",
    "X-A-B",
    "X.A",
    "Z",
    "0",
    "User-Agent",
    "Expect",
    "X-Amzn-Trace-Id",
]
QUERY_BYTES = "abzAZ019-._~%+*:/?@!$'(),;"


def random_case(random: Random) -> Case:
    path = random.choice(
        [
            "",
            "/",
            "/{}",
            "/model/{}/converse",
            "/model/{}/invoke-with-response-stream",
            "/bedrock/us-east-1/model/{}/converse/",
            "//model///{}//converse//",
            '/x/..{}/.{}../...%2/"<>^`|{}\\',
        ]
    )
    while "{}" in path:
        path = path.replace("{}", random.choice(ENCODINGS)(random.choice(MODELS)), 1)
    query = "&".join(
        "".join(random.choices(QUERY_BYTES, k=random.randrange(3)))
        + random.choice(["", "=", "=", "=="])
        + "".join(random.choices(QUERY_BYTES, k=random.randrange(4)))
        for _ in range(random.choice([0, 0, 0, 1, 2, 6]))
    )
    headers = []
    for _ in range(random.choice([0, 1, 2, 3, 3, 8])):
        value = random.choice(SPACES)
        for _ in range(random.randrange(4)):
            value += random.choice(WORDS) + random.choice(SPACES)
        headers.append((random.choice(NAMES), value))
    scheme, host = random.choice(HOSTS)
    return Case(
        credentials=Credentials(
            random.choice(["AKIDEXAMPLE", "sk-virtual key=1", "ASIAé"]),
            random.choice(["wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "s", "ключ", "x" * 100]),
            random.choice([None, None, "", "token+/==", " a  b\t", "t" * 900]),
        ),
        method=random.choice(["POST", "POST", "GET", "PUT", "DELETE", "PATCH", "post"]),
        scheme=scheme,
        host=host,
        path=path,
        query=query,
        headers=tuple(headers),
        body=random.randbytes(random.choice([0, 0, 1, 40, 1000])),
        region=random.choice(REGIONS),
        service=random.choice(["bedrock", "bedrock-agentcore"]),
        now=random.uniform(1.5e9, 4.0e9),
    )


def botocore_sign(case: Case) -> Headers:
    """
    Sign with botocore.

    :returns: all headers as they then go on the wire.
    """
    url = f"{case.scheme}://{case.host}{case.path}" + ("?" + case.query if case.query else "")
    request = AWSRequest(method=case.method, url=url, data=case.body)
    for name, value in case.headers:
        request.headers.add_header(name, value)
    token = case.credentials.session_token
    credentials = BotocoreCredentials(
        case.credentials.access_key_id, case.credentials.secret_access_key, token
    )
    now = datetime.fromtimestamp(case.now, UTC)
    with patch("botocore.auth.get_current_datetime", lambda: now):
        SigV4Auth(credentials, case.service, case.region).add_auth(request)
    headers = [("Host", case.host), *request.headers.items()]
    return [
        # An access key id is not always Latin-1 here, header values are.
        (name.encode(), value.encode("utf-8" if name == "Authorization" else "latin-1"))
        for name, value in headers
    ]


def our_sign(case: Case, keys: SigningKeys) -> Headers:
    headers = [("Host", case.host), *case.headers]
    return sign(
        case.credentials,
        method=case.method.encode(),
        raw_path=case.path.encode(),
        raw_query=case.query.encode(),
        headers=[
            (name.encode(), value.encode("latin-1"))
            for name, value in headers
            if name.lower() not in SIGNED_HEADERS_BLACKLIST
        ],
        payload_sha256=case.payload_sha256,
        region=case.region,
        service=case.service,
        timestamp=amz_date(case.now),
        keys=keys,
    )


def added(headers: Headers) -> Headers:
    names = (b"x-amz-date", b"x-amz-security-token", b"authorization")
    return [header for header in headers if header[0].lower() in names]


class SignTests(SynchronousTestCase):
    """
    L{sign}
    """

    def vector(
        self,
        method: bytes,
        path: bytes,
        query: bytes,
        headers: Headers,
        signed_headers: bytes,
        signature: bytes,
        payload_sha256: str = EMPTY_SHA256,
        service: str = "service",
        token: str | None = None,
    ) -> None:
        result = sign(
            Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token),
            method=method,
            raw_path=path,
            raw_query=query,
            headers=headers,
            payload_sha256=payload_sha256,
            region="us-east-1",
            service=service,
            timestamp="20150830T123600Z",
            keys=SigningKeys(),
        )
        expected = [
            (b"X-Amz-Date", b"20150830T123600Z"),
            *([(b"X-Amz-Security-Token", token.encode())] if token else []),
            (
                b"Authorization",
                b"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/"
                + service.encode()
                + b"/aws4_request, SignedHeaders="
                + signed_headers
                + b", Signature="
                + signature,
            ),
        ]
        self.assertEqual(result, expected)

    def test_aws_documentation(self) -> None:
        """
        The worked example of AWS's own documentation comes out as printed there.
        """
        self.vector(
            b"GET",
            b"/",
            b"Action=ListUsers&Version=2010-05-08",
            [
                (b"Host", b"iam.amazonaws.com"),
                (b"Content-Type", b"application/x-www-form-urlencoded; charset=utf-8"),
            ],
            b"content-type;host;x-amz-date",
            b"5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
            service="iam",
        )

    def test_aws_test_suite(self) -> None:
        """
        The cases of AWS's published test suite come out as published: plain,
        sorted query, slashes, raw UTF-8, trimmed and repeated headers, a form,
        a session token.
        """
        host = (b"Host", b"example.amazonaws.com")
        plain = b"host;x-amz-date"
        vanilla = b"5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        self.vector(b"GET", b"/", b"", [host], plain, vanilla)
        self.vector(b"GET", b"", b"", [host], plain, vanilla)
        self.vector(b"GET", b"//", b"", [host], plain, vanilla)
        self.vector(
            b"POST",
            b"/",
            b"",
            [host],
            plain,
            b"5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
        )
        self.vector(
            b"GET",
            b"/",
            b"Param2=value2&Param1=value1",
            [host],
            plain,
            b"b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        )
        self.vector(
            b"GET",
            b"//example//",
            b"",
            [host],
            plain,
            b"9a624bd73a37c9a373b5312afbebe7a714a789de108f0bdfe846570885f57e84",
        )
        self.vector(
            b"GET",
            "/\u1234".encode(),
            b"",
            [host],
            plain,
            b"8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85",
        )
        self.vector(
            b"GET",
            b"/",
            b"",
            [host, (b"My-Header1", b" value1"), (b"My-Header2", b' "a   b   c"')],
            b"host;my-header1;my-header2;x-amz-date",
            b"acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        )
        self.vector(
            b"GET",
            b"/",
            b"",
            [
                host,
                (b"My-Header1", b"value2"),
                (b"My-Header1", b"value2"),
                (b"My-Header1", b"value1"),
            ],
            b"host;my-header1;x-amz-date",
            b"c9d5ea9f3f72853aea855b47ea873832890dbdd183b4468f858259531a5138ea",
        )
        self.vector(
            b"POST",
            b"/",
            b"",
            [host, (b"Content-Type", b"application/x-www-form-urlencoded")],
            b"content-type;host;x-amz-date",
            b"ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            payload_sha256=sha256(b"Param1=value1").hexdigest(),
        )
        self.vector(
            b"POST",
            b"/",
            b"",
            [host],
            b"host;x-amz-date;x-amz-security-token",
            b"85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
            token="AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKW"
            "HGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmU"
            "pp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d"
            "+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3i"
            "SIlTJabIQwj2ICCR/oLxBA==",
        )

    def test_as_botocore(self) -> None:
        """
        Whatever boto3 would have sent and signed itself, we sign with the very
        same signature: 10,000 random requests, signed with one key cache.
        """
        random = Random(20261122)
        keys = SigningKeys(limit=64)  # so that entries also come and go
        for number in range(10_000):
            case = random_case(random)
            expected = dict(added(botocore_sign(case)))
            result = dict(our_sign(case, keys))
            if result != expected:
                self.fail(f"{number}: {case!r}\n  ours {result!r}\n  botocore {expected!r}")
        self.assertEqual(len(keys), 64)

    def test_remembered_headers(self) -> None:
        """
        What is remembered of headers that were signed changes no signature: each is as
        with a cache of its own.
        """
        case = replace(random_case(Random(1)), headers=())
        keys = SigningKeys()
        every: list[Headers] = [
            [(b"Host", b"h")],
            [(b"Host", b"h"), (b"X-Amz-Z", b"1")],
            [(b"Host", b"h"), (b"X-Amz-Z", b"2")],
            [(b"X-Amz-Z", b"2"), (b"Host", b"h")],
            [(b"Host", b"h"), (b"X-Amz-Z", b"1"), (b"x-amz-z", b"2")],
            [(b"Host", b"h"), (b"x-amz-z", b"2"), (b"X-Amz-Z", b"1")],
            [(b"Host", b"h"), (b"Content-Type", b"X-Amz-Z:1")],
        ]
        for _ in range(2):
            for headers in every:
                for token in (None, "", "t", "t2"):
                    with_token = replace(case, credentials=Credentials("AKID", "s", token))
                    for when in ("20261122T174500Z", "20261122T174501Z", "20261123T000000Z"):
                        signed = [
                            self.sign_headers(with_token, headers, each, when)
                            for each in (keys, SigningKeys())
                        ]
                        self.assertEqual(*signed)

    def test_memory(self) -> None:
        """
        Headers that clients invent are forgotten, and long ones not kept.
        """
        case = random_case(Random(1))
        keys = SigningKeys()
        for number in range(1000):
            self.sign_headers(case, [(b"Host", b"h"), (b"x-amz-n", b"%d" % number)], keys)
        kept = len(keys._blocks)
        self.assertLessEqual(kept, sigv4._CACHED_BLOCKS)
        for long in (b"a" * 60_000, b"a" + b" " * 60_000):
            self.sign_headers(case, [(b"Host", b"h"), (b"x-amz-n", long)], keys)
        self.assertEqual(len(keys._blocks), kept)

    def test_needs_host(self) -> None:
        """
        A request without Host is a mistake of ours and is not signed.
        """
        case = random_case(Random(1))
        self.assertRaises(ValueError, self.sign_headers, case, [])

    def test_refuses_its_own_headers(self) -> None:
        """
        A client's Authorization, date or token never goes up beside ours.
        """
        case = random_case(Random(1))
        for name in (b"Authorization", b"x-amz-DATE", b"X-Amz-Security-Token"):
            headers = [(b"Host", b"h"), (name, b"x")]
            self.assertRaises(ValueError, self.sign_headers, case, headers)

    def sign_headers(
        self,
        case: Case,
        headers: Headers,
        keys: SigningKeys | None = None,
        timestamp: str = "20261122T174500Z",
    ) -> Headers:
        return sign(
            case.credentials,
            method=b"POST",
            raw_path=b"/",
            raw_query=b"",
            headers=headers,
            payload_sha256=EMPTY_SHA256,
            region="r",
            service="s",
            timestamp=timestamp,
            keys=keys or SigningKeys(),
        )


class SigningKeysTests(SynchronousTestCase):
    """
    L{SigningKeys}
    """

    def test_known_answer(self) -> None:
        """
        Derivation and HMAC are those of AWS's documented example.
        """
        key = bytes.fromhex("c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9")
        secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
        self.assertEqual(sigv4._derive(secret, "20150830", "us-east-1", "iam"), key)

    def test_never_mixed(self) -> None:
        """
        A cached key serves only the secret, day, region and service it was
        derived for, also where the parts run into each other when joined, and
        after it was dropped and derived again.
        """
        parts = ["", "a", "b", "ab", "ba", "aa"]
        every = [(a, b, c, d) for a in parts for b in parts for c in parts for d in parts]
        fresh = [SigningKeys().signature(a, b, c, d, b"m") for a, b, c, d in every]
        self.assertEqual(len(set(fresh)), len(every))
        for limit in (1, 100, 10_000):
            keys = SigningKeys(limit)
            order = [*range(len(every))] * 2
            Random(limit).shuffle(order)
            for index in order:
                secret, date, region, service = every[index]
                result = keys.signature(secret, date, region, service, b"m")
                self.assertEqual(result, fresh[index])
            self.assertEqual(len(keys), min(limit, len(every)))

    def test_independent_messages(self) -> None:
        """
        One message leaves nothing behind for the next.
        """
        keys = SigningKeys()
        first = keys.signature("s", "d", "r", "v", b"one")
        self.assertNotEqual(keys.signature("s", "d", "r", "v", b"two"), first)
        self.assertEqual(keys.signature("s", "d", "r", "v", b"one"), first)

    def test_shows_nothing(self) -> None:
        """
        Neither the secret nor a derived key shows in a log or traceback.
        """
        keys = SigningKeys()
        keys.signature("planted-secret", "d", "r", "v", b"m")
        self.assertEqual(repr(keys), "SigningKeys()")
        self.assertEqual(str(keys), "SigningKeys()")


class CanonicalPathTests(SynchronousTestCase):
    """
    L{canonical_path}
    """

    def test_escaped_once_more(self) -> None:
        """
        What boto3 and curl put on the wire is escaped exactly once more.
        """
        for raw, expected in [
            (b"", b"/"),
            (b"/", b"/"),
            (b"/model/x-v1%3A0/converse", b"/model/x-v1%253A0/converse"),
            (b"/model/x-v1:0/converse", b"/model/x-v1%3A0/converse"),
            (b"/model/a%2Fb%20%C3%A9", b"/model/a%252Fb%2520%25C3%25A9"),
            (b"/-._~/AZaz09/", b"/-._~/AZaz09/"),
            (b"/\xff \x00%", b"/%FF%20%00%25"),
            (b"//a///b//", b"/a/b/"),
            (b"/%2F/", b"/%252F/"),
            (b"/" + b":" * 3000, b"/" + b"%3A" * 3000),
        ]:
            self.assertEqual(canonical_path(raw), expected)

    def test_dot_segments(self) -> None:
        """
        No path is signed that a server might resolve to another one.
        """
        for segment in (b".", b"..", b"%2e", b"%2E", b".%2e", b"%2e.", b"%2E%2e", b"%2e%2E"):
            for form in (b"/%b", b"/%b/", b"/a/%b", b"/a/%b/b", b"//%b//", b"/a/b/%b/%%41"):
                self.assertRaises(BadPath, canonical_path, form % segment)
                self.assertRaises(BadPath, canonical_path, form % segment)  # not cached
        for raw in (b".", b"..", b"a", b"*", b"a/b", b"http://h/"):
            self.assertRaises(BadPath, canonical_path, raw)

    def test_other_dots(self) -> None:
        """
        Dots inside a name are part of the name.
        """
        for raw in (b"/...", b"/.a", b"/a.", b"/a..b/.c.", b"/%2e%2e%2e", b"/%252e%252e"):
            self.assertEqual(canonical_path(raw), raw.replace(b"%", b"%25"))


class CanonicalQueryTests(SynchronousTestCase):
    """
    L{canonical_query}
    """

    def test_sorted(self) -> None:
        """
        Sorted by name, then value; every pair has its sign of equality.
        """
        for raw, expected in [
            (b"", b""),
            (b"a", b"a="),
            (b"a=", b"a="),
            (b"b=1&a=2", b"a=2&b=1"),
            (b"a=2&a=10&a", b"a=&a=10&a=2"),
            (b"a-=1&a=2", b"a=2&a-=1"),
            (b"a==b", b"a==b"),
            (b"&", b"=&="),
            (b"b=%2F+&A=%3a", b"A=%3a&b=%2F+"),
        ]:
            self.assertEqual(canonical_query(raw), expected)


GOOD = (
    b"AWS4-HMAC-SHA256 Credential=AKID/20261122/us-east-1/bedrock/aws4_request,"
    b" SignedHeaders=content-type;host;x-amz-date, Signature=" + b"0123456789abcdef" * 4
)


class ParseAuthorizationTests(SynchronousTestCase):
    """
    L{parse_authorization}
    """

    def test_parts(self) -> None:
        """
        The header of any AWS SDK is understood, with or without spaces after
        the commas and in any order.
        """
        expected = ScopedSignature(
            "AKID",
            "20261122",
            "us-east-1",
            "bedrock",
            ("content-type", "host", "x-amz-date"),
            "0123456789abcdef" * 4,
        )
        self.assertEqual(parse_authorization(GOOD), expected)
        self.assertEqual(parse_authorization(GOOD.replace(b", ", b",")), expected)
        self.assertEqual(parse_authorization(GOOD.replace(b", ", b" ,\t")), expected)
        algorithm, _, rest = GOOD.partition(b" ")
        credential, names, signature = rest.split(b", ")
        turned = algorithm + b"  " + b", ".join([signature, credential, names]) + b" "
        self.assertEqual(parse_authorization(turned), expected)

    def test_any_access_key_id(self) -> None:
        """
        A virtual key of any alphabet serves as the access key id.
        """
        for key in ("sk-1234", "Bearer sk-1", "a b", "a=b;c", "Credential=x", "ключ", "="):
            value = GOOD.replace(b"AKID", key.encode())
            self.assertEqual(parse_authorization(value).access_key_id, key)

    def test_shows_no_key(self) -> None:
        """
        Neither the key nor the signature shows in a log.
        """
        shown = repr(parse_authorization(GOOD))
        self.assertNotIn("AKID", shown)
        self.assertNotIn("0123456789abcdef", shown)
        self.assertIn("us-east-1", shown)

    def test_malformed(self) -> None:
        """
        Everything else is refused with AWS's code, and the message repeats
        neither the key nor the signature.
        """
        for old, new in [
            (GOOD, b""),
            (GOOD, b"AWS4-HMAC-SHA256"),
            (GOOD, b"Bearer sk-AKID"),
            (b"SHA256 ", b"SHA256"),
            (b"AWS4-HMAC-SHA256", b"AWS4-ECDSA-P256-SHA256"),
            (b"AWS4-HMAC-SHA256", b"aws4-hmac-sha256"),
            (b"Credential=", b"credential="),
            (b"Credential=", b""),
            (b"Credential=", b"Credential=AKID, Credential="),
            (b"AKID", b""),
            (b"AKID", b"AK/ID"),
            (b"AKID", b"AK,ID"),
            (b"AKID", b"AK\x00ID"),
            (b"AKID", b"AK\nID"),
            (b"AKID", b"AKID\xff"),
            (b"20261122", b"2026112"),
            (b"20261122", b"2026-11-22"),
            (b"20261122", "２０２６１１２２".encode()),
            (b"20261122", b"20261122\n"),
            (b"us-east-1", b""),
            (b"us-east-1", b"us east 1"),
            (b"/bedrock", b"/"),
            (b"/bedrock", b"/bedrock/x"),
            (b"/bedrock", b""),
            (b"/bedrock", b"/bedrock\n"),
            (b"aws4_request", b"aws5_request"),
            (b"aws4_request", b""),
            (b", SignedHeaders=content-type;host;x-amz-date", b""),
            (b"content-type;host;x-amz-date", b""),
            (b"content-type;", b"content-type;;"),
            (b"content-type;", b"Content-Type;"),
            (b"content-type;host", b"host;content-type"),
            (b"content-type;host", b"host;host"),
            (b"content-type;", b"content type;"),
            (b"x-amz-date", b"x-amz-date\n"),
            (b", Signature", b", X=y, Signature"),
            (b", Signature", b" Signature"),
            (b"Signature=", b"Signature"),
            (b"f0", b"g0"),
            (b"f0", b"F0"),
            (b"f0", b"f"),
            (b"f0", b"f00"),
        ]:
            value = GOOD.replace(old, new, 1)
            self.assertNotEqual(value, GOOD)
            error = self.assertRaises(BadSignature, parse_authorization, value)
            self.assertEqual(error.code, "IncompleteSignatureException", value)
            self.assertNotIn("AKID", error.message)
            self.assertNotIn("0123456789", error.message)

    def test_random_bytes(self) -> None:
        """
        No bytes make it fail in any other way, or find what is not in them.
        """
        random, taken = Random(3), 0
        for _ in range(5000):
            value = bytearray(GOOD)
            for _ in range(random.randrange(1, 4)):
                start = random.randrange(len(value))
                value[start : start + random.randrange(3)] = random.choice(
                    [b"", b",", b"/", b"=", b" ", b";", random.randbytes(2)]
                )
            try:
                found = parse_authorization(bytes(value))
            except BadSignature:
                continue
            taken += 1
            scope = (found.access_key_id, found.date, found.region, found.service)
            names = ";".join(found.signed_headers)
            for part in ("/".join(scope), names, found.signature):
                self.assertIn(part.encode(), value)
        self.assertGreater(taken, 100)


@dataclass(frozen=True)
class Received:
    """A request as a server has it."""

    signature: ScopedSignature
    secret: str
    method: bytes
    raw_path: bytes
    raw_query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    payload_sha256: str
    timestamp: str
    now: float

    def verify(self, keys: SigningKeys, max_skew_s: float = 300.0) -> None:
        verify(
            self.signature,
            self.secret,
            method=self.method,
            raw_path=self.raw_path,
            raw_query=self.raw_query,
            headers=self.headers,
            payload_sha256=self.payload_sha256,
            timestamp=self.timestamp,
            now=self.now,
            max_skew_s=max_skew_s,
            keys=keys,
        )


def received(case: Case) -> Received:
    headers = botocore_sign(case)
    authorization = dict(headers)[b"Authorization"]
    return Received(
        parse_authorization(authorization),
        case.credentials.secret_access_key,
        case.method.encode(),
        case.path.encode(),
        case.query.encode(),
        tuple(headers),
        case.payload_sha256,
        dict(headers)[b"X-Amz-Date"].decode(),
        case.now,
    )


def flip(random: Random, text: bytes, keep: bytes = b"") -> bytes:
    """Change one byte that is not in ``keep``; append one if there is none."""
    places = [i for i, byte in enumerate(text) if byte not in keep]
    if not places:
        return text + b"x"
    place = random.choice(places)
    new = random.choice([c for c in b"abcdef0123456789" if c != text[place]])
    return text[:place] + bytes([new]) + text[place + 1 :]


def mutations(random: Random, good: Received) -> list[tuple[str, Received]]:
    """The same request with one thing changed that the signature must cover."""
    signature = good.signature
    result = [
        ("method", replace(good, method=b"HEAD")),
        ("path", replace(good, raw_path=flip(random, good.raw_path or b"/", b"/"))),
        ("longer path", replace(good, raw_path=(good.raw_path or b"/") + b"x")),
        ("unescaped path", replace(good, raw_path=(good.raw_path or b"/") + b"%")),
        ("query", replace(good, raw_query=flip(random, good.raw_query, b"&="))),
        ("longer query", replace(good, raw_query=good.raw_query + b"&x")),
        ("payload", replace(good, payload_sha256=sha256(b"other").hexdigest())),
        ("unsigned payload", replace(good, payload_sha256="UNSIGNED-PAYLOAD")),
        ("secret", replace(good, secret=good.secret + "x")),
        ("no secret", replace(good, secret="")),
        ("date moved", replace(good, timestamp=amz_date(good.now + 1))),
        ("new x-amz header", replace(good, headers=(*good.headers, (b"X-Amz-New", b"1")))),
        (
            "unsigned content hash",
            replace(
                good,
                headers=(*good.headers, (b"x-amz-content-sha256", good.payload_sha256.encode())),
            ),
        ),
    ]
    for name, changed in {
        "region": replace(signature, region=signature.region + "x"),
        "service": replace(signature, service="s3"),
        "scope date": replace(signature, date=amz_date(good.now + 86400)[:8]),
        "fewer names": replace(signature, signed_headers=signature.signed_headers[:-1]),
        "host not signed": replace(
            signature, signed_headers=tuple(n for n in signature.signed_headers if n != "host")
        ),
        "more names": replace(signature, signed_headers=(*signature.signed_headers, "zz")),
        "signature": replace(
            signature, signature=flip(random, signature.signature.encode()).decode()
        ),
    }.items():
        result.append((name, replace(good, signature=changed)))
    for index, (raw_name, value) in enumerate(good.headers):
        name = raw_name.decode().lower()
        if name not in signature.signed_headers:
            continue
        others = good.headers[:index] + good.headers[index + 1 :]
        result.append((f"{name} dropped", replace(good, headers=others)))
        result.append((f"{name} twice", replace(good, headers=(*good.headers, (raw_name, value)))))
        other = (*others, (raw_name, value + b"x"))
        result.append((f"{name} changed", replace(good, headers=other)))
    return result


class VerifyTests(SynchronousTestCase):
    """
    L{verify}
    """

    def setUp(self) -> None:
        self.keys = SigningKeys()
        self.case = Case(
            credentials=Credentials("AKID", "secret", "token"),
            method="POST",
            scheme="https",
            host="gateway.example:4000",
            path="/bedrock/model/amazon.nova-micro-v1%3A0/converse",
            query="",
            headers=(("Content-Type", "application/json"), ("User-Agent", "boto3")),
            body=b"{}",
            region="us-east-1",
            service="bedrock",
            now=1_795_369_500.0,  # 20261122T174500Z
        )
        self.good = received(self.case)

    def refused(self, request: Received, **options: float) -> BadSignature:
        return self.assertRaises(BadSignature, request.verify, self.keys, **options)

    def resigned(self, case: Case, headers: Headers, names: list[str]) -> Received:
        """The good request signed by hand, with these headers and signed names."""
        ordered = tuple(sorted(names))
        fields = sigv4._fold(headers)
        signature = sigv4._signature(
            SigningKeys().scope("secret", case.timestamp[:8], "us-east-1", "bedrock"),
            b"POST",
            canonical_path(case.path.encode()),
            b"",
            [
                *(f"{name}:{fields.get(name, '')}\n".encode() for name in ordered),
                f"\n{';'.join(ordered)}\n".encode(),
            ],
            case.payload_sha256,
            case.timestamp.encode(),
        )
        scoped = replace(self.good.signature, signed_headers=ordered, signature=signature)
        return replace(self.good, signature=scoped, headers=tuple(headers))

    def test_accepts_botocore(self) -> None:
        """
        A client that signs with boto3 and its key's secret is let in, and
        nobody who changed anything of the request on its way.
        """
        random = Random(42)
        checked = 0
        for _ in range(1000):
            good = received(random_case(random))
            good.verify(self.keys)
            for name, bad in mutations(random, good):
                try:
                    bad.verify(self.keys)
                except BadSignature:
                    checked += 1
                else:
                    self.fail(f"{name}: {good!r} became {bad!r}")
        self.assertGreater(checked, 25_000)

    def test_accepts_ours(self) -> None:
        """
        What we sign, we accept: the sandbox can check the gateway.
        """
        random = Random(43)
        for _ in range(500):
            case = random_case(random)
            headers = [(b"Host", case.host.encode()), (b"Content-Type", b"x")]
            case = replace(case, headers=(("Content-Type", "x"),))
            headers += our_sign(case, self.keys)
            good = received(case)
            replace(
                good,
                signature=parse_authorization(dict(headers)[b"Authorization"]),
                headers=tuple(headers),
            ).verify(SigningKeys())

    def test_other_headers(self) -> None:
        """
        What a proxy on the way adds does not break a signature, as long as it
        is not AWS's.
        """
        headers = ((b"Via", b"1.1 x"), (b"X-Amzn-Trace-Id", b"Root=1"), *self.good.headers)
        replace(self.good, headers=headers).verify(self.keys)

    def test_wrong_secret(self) -> None:
        """
        A wrong secret gets AWS's own code and advice.
        """
        error = self.refused(replace(self.good, secret="other"))
        self.assertIsInstance(error, Mismatch)
        self.assertEqual(error.code, "InvalidSignatureException")
        self.assertIn("Check your AWS Secret Access Key", error.message)
        self.assertNotIn("other", error.message)

    def test_empty_secret(self) -> None:
        """
        A key without a secret lets nobody in, though anyone can sign with none.
        """
        case = replace(self.case, credentials=Credentials("AKID", ""))
        self.refused(received(case))

    def test_skew(self) -> None:
        """
        A signature is good for exactly five minutes either way; after that the
        message tells the client how far off its clock is.
        """
        now = self.case.now
        for offset in (-300.0, -1.0, 0.0, 0.5, 300.0):
            replace(self.good, now=now + offset).verify(self.keys)
        error = self.refused(replace(self.good, now=now + 300.5))
        self.assertNotIsInstance(error, Mismatch)
        self.assertEqual(error.code, "InvalidSignatureException")
        self.assertEqual(
            error.message,
            "Signature expired: 20261122T174500Z is now earlier than 20261122T174500Z"
            " (20261122T175000Z - 5 min.)",
        )
        error = self.refused(replace(self.good, now=now - 600))
        self.assertEqual(error.code, "InvalidSignatureException")
        self.assertEqual(
            error.message,
            "Signature not yet current: 20261122T174500Z is still later than 20261122T174000Z"
            " (20261122T173500Z + 5 min.)",
        )
        replace(self.good, now=now + 900).verify(self.keys, max_skew_s=900.0)
        self.refused(replace(self.good, now=now + 2), max_skew_s=1.0)

    def test_bad_dates(self) -> None:
        """
        A date that is none, or not the one that was signed, is refused.
        """
        for timestamp in (
            "",
            "20261122",
            "20261322T174500Z",
            "20261122T246000Z",
            "20261122T174460Z",
            "20261122T174500",
            "20261122T174500Z\n",
            "２０２６1122T174500Z",
            "2026-11-22T17:45:00Z",
        ):
            headers = tuple(
                (name, timestamp.encode() if name == b"X-Amz-Date" else value)
                for name, value in self.good.headers
            )
            error = self.refused(replace(self.good, timestamp=timestamp, headers=headers))
            self.assertEqual(error.code, "IncompleteSignatureException")
            self.refused(replace(self.good, timestamp=timestamp))

    def test_signed_date_counts(self) -> None:
        """
        The date that is checked is the one that was signed: none, two, or
        another one in the header is refused, even under a correct signature.
        """
        rest = [h for h in self.good.headers if h[0] not in (b"Authorization", b"X-Amz-Date")]
        names = ["content-type", "host", "x-amz-security-token"]
        error = self.refused(self.resigned(self.case, rest, names))
        self.assertEqual(error.code, "IncompleteSignatureException")
        date = (b"X-Amz-Date", self.case.timestamp.encode())
        names.append("x-amz-date")
        self.resigned(self.case, [*rest, date], names).verify(self.keys)
        for dates in ([date, date], [(b"X-Amz-Date", b"20261122T174501Z")]):
            error = self.refused(self.resigned(self.case, [*rest, *dates], names))
            self.assertEqual(error.code, "IncompleteSignatureException")

    def test_scope_of_another_day(self) -> None:
        """
        A key derived for another day does not sign today's requests.
        """
        error = self.refused(
            replace(self.good, signature=replace(self.good.signature, date="20261121"))
        )
        self.assertEqual(error.code, "InvalidSignatureException")
        self.assertIn("Date in Credential scope does not match", error.message)

    def test_must_be_signed(self) -> None:
        """
        Even with a correct signature a request is refused when it leaves out
        Host, the date or one of AWS's headers. The type may be left out.
        """
        headers = [header for header in self.good.headers if header[0] != b"Authorization"]
        names = ["content-type", "host", "x-amz-date", "x-amz-security-token"]
        self.resigned(self.case, headers, names).verify(self.keys)
        self.resigned(self.case, headers, [*names, "user-agent"]).verify(self.keys)
        self.resigned(self.case, headers, names[1:]).verify(self.keys)
        for name in names[1:]:
            fewer = [other for other in names if other != name]
            error = self.refused(self.resigned(self.case, headers, fewer))
            self.assertEqual(error.code, "InvalidSignatureException")
            self.assertIn(name, error.message.lower())
        # Signed, but not there.
        for name in names:
            there = [header for header in headers if header[0].lower() != name.encode()]
            self.refused(self.resigned(self.case, there, names))

    def test_authority(self) -> None:
        """
        An HTTP/2 client may sign ``:authority`` in place of Host, but the two
        never differ.
        """
        rest = [h for h in self.good.headers if h[0] not in (b"Authorization", b"Host")]
        rest_names = ["content-type", "x-amz-date", "x-amz-security-token"]
        authority, host = (b":authority", b"gateway.example"), (b"host", b"gateway.example")
        for headers in ([authority, *rest], [authority, host, *rest]):
            self.resigned(self.case, headers, [":authority", *rest_names]).verify(self.keys)
        self.resigned(self.case, [authority, host, *rest], ["host", *rest_names]).verify(self.keys)
        for names in (["host"], [":authority"], ["host", ":authority"]):
            headers = [authority, (b"host", b"other.example"), *rest]
            self.refused(self.resigned(self.case, headers, [*names, *rest_names]))
        self.refused(self.resigned(self.case, [authority, *rest], ["host", *rest_names]))

    def test_content_sha256(self) -> None:
        """
        A stated body hash must be that of the body: a signed
        ``UNSIGNED-PAYLOAD`` lets no other body through.
        """
        names = [*self.good.signature.signed_headers, "x-amz-content-sha256"]
        base = [header for header in self.good.headers if header[0] != b"Authorization"]
        right = (b"X-Amz-Content-SHA256", self.case.payload_sha256.encode())
        self.resigned(self.case, [*base, right], names).verify(self.keys)
        for wrong in (b"UNSIGNED-PAYLOAD", EMPTY_SHA256.encode()):
            header = (b"X-Amz-Content-SHA256", wrong)
            self.refused(self.resigned(self.case, [*base, header], names))

    def test_dot_segments(self) -> None:
        """
        A path that the signature would hold for only after resolving it is
        refused, not resolved.
        """
        for raw_path in (
            b"/bedrock/x/../model/amazon.nova-micro-v1%3A0/converse",
            b"/bedrock/./model/amazon.nova-micro-v1%3A0/converse",
            b"/bedrock/x/%2E./model/amazon.nova-micro-v1%3A0/converse",
        ):
            error = self.refused(replace(self.good, raw_path=raw_path))
            self.assertEqual(error.code, "InvalidSignatureException")


class DateTests(SynchronousTestCase):
    """
    L{amz_date} and L{clock_offset}
    """

    def test_amz_date(self) -> None:
        """
        The time as AWS writes it, in UTC, cut to the second.
        """
        self.assertEqual(amz_date(0.0), "19700101T000000Z")
        self.assertEqual(amz_date(1_795_369_500.0), "20261122T174500Z")
        self.assertEqual(amz_date(1_795_369_500.999), "20261122T174500Z")
        self.assertEqual(amz_date(1_795_369_501.0), "20261122T174501Z")
        random = Random(5)
        for _ in range(1000):
            now = random.uniform(0, 4e9)
            self.assertEqual(
                amz_date(now), datetime.fromtimestamp(int(now), UTC).strftime("%Y%m%dT%H%M%SZ")
            )

    def test_clock_offset(self) -> None:
        """
        A clock that is off is put right by what an answer's Date says.
        """
        date = b"Sun, 22 Nov 2026 17:45:00 GMT"
        self.assertEqual(clock_offset(1_795_369_500.0, date), 0.0)
        self.assertEqual(clock_offset(1_795_369_000.5, date), 499.5)
        self.assertEqual(clock_offset(1_795_369_600.0, b" %b " % date), -100.0)

    def test_unreadable_date(self) -> None:
        """
        A date that is none leaves our clock as it is.
        """
        for date in (
            b"",
            b"now",
            b"\xff",
            b"Sun, 22 Nov 2026 17:45:00",
            b"Sun, 22 Nov 2026 17:45:00 +0100",
            b"Sun, 22 nov 2026 17:45:00 GMT",
            b"Sun, 31 Nov 2026 17:45:00 GMT",
            b"Sun, 22 Nov 2026 25:45:00 GMT",
            b"Sun, 22 Nov 0000 17:45:00 GMT",
            b"Sun, 22 Nov 2026 17:45:00 GMT, Sun, 22 Nov 2026 17:45:00 GMT",
        ):
            self.assertIdentical(clock_offset(0.0, date), None)
