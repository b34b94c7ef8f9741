"""
Tests for L{txbedrock.core.pairs}. Who signs, and who judges what was signed, is botocore.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from importlib.resources import files
from json import loads
from random import Random
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import botocore.session
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core import pairs, sigv4
from txbedrock.core.auth import signing_scope_of
from txbedrock.core.sigv4 import SigningKeys, amz_date
from txbedrock.errors import InvalidSignature

NOW = 1_795_369_500.0  # 20261122T174500Z
SALT = b"planted-salt"
HASHES = [sha256(b"sk-%d" % number).hexdigest() for number in range(40)]
PAIRS = {pairs.access_key_id(one).encode(): pairs.secret_access_key(SALT, one) for one in HASHES}
"""Id -> secret."""

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Wire:
    """A request as it is sent."""

    method: bytes
    target: bytes
    headers: Headers
    body: bytes

    @property
    def path(self) -> bytes:
        return self.target.partition(b"?")[0]

    @property
    def query(self) -> bytes | None:
        _, mark, query = self.target.partition(b"?")
        return query if mark else None

    def value(self, name: bytes) -> bytes:
        [value] = [value for other, value in self.headers if other.lower() == name]
        return value

    def without(self, *names: bytes) -> Wire:
        kept = tuple(pair for pair in self.headers if pair[0].lower() not in names)
        return replace(self, headers=kept)

    def plus(self, *headers: tuple[bytes, bytes]) -> Wire:
        return replace(self, headers=(*self.headers, *headers))

    def edit(self, name: bytes, old: bytes, new: bytes) -> Wire:
        """Replace something in the value of a header. It has to be there."""
        value = self.value(name)
        assert old in value, (name, old, value)
        return replace(
            self,
            headers=tuple(
                (other, value.replace(old, new, 1) if other.lower() == name else same)
                for other, same in self.headers
            ),
        )


class Forgetful(SigV4Auth):
    """botocore, except that it does not sign some of the headers."""

    forgotten: tuple[str, ...] = ()

    def headers_to_sign(self, request: AWSRequest) -> Any:
        headers = super().headers_to_sign(request)
        for name in self.forgotten:
            del headers[name]
        return headers


def signed(
    path: str = "/bedrock/model/amazon.nova-micro-v1%3A0/converse",
    query: str = "",
    *,
    method: str = "POST",
    host: str = "127.0.0.1:4000",
    headers: Iterable[tuple[str, str]] = (("Content-Type", "application/json"),),
    body: bytes = b'{"messages": []}',
    region: str = "us-east-1",
    service: str = "bedrock",
    token: str | None = None,
    pair: int = 0,
    now: float = NOW,
    forgotten: tuple[str, ...] = (),
) -> Wire:
    """Sign a request with botocore."""
    target = path + ("?" + query if query else "")
    request = AWSRequest(method=method, url=f"http://{host}{target}", data=body)
    for name, value in headers:
        request.headers.add_header(name, value)
    key, secret = list(PAIRS.items())[pair]
    auth = Forgetful(Credentials(key.decode(), secret, token), service, region)
    auth.forgotten = forgotten
    moment = datetime.fromtimestamp(now, UTC)
    with patch("botocore.auth.get_current_datetime", lambda: moment):
        auth.add_auth(request)
    sent = [("Host", host), *request.headers.items()]
    return Wire(
        method.encode(),
        target.encode(),
        tuple((name.encode(), value.encode("latin-1")) for name, value in sent),
        body,
    )


class OverHttp2(SigV4Auth):
    """botocore, except that it signs ``:authority`` for Host, as AWS's SDK for JavaScript does."""

    also_host = False

    def headers_to_sign(self, request: AWSRequest) -> Any:
        headers = super().headers_to_sign(request)
        headers[":authority"] = headers["host"]
        if not self.also_host:
            del headers["host"]
        return headers


def signed_over_http2(also_host: bool = False) -> Wire:
    """A request as it is here when it came over HTTP/2: with Host, which was not signed."""
    with (
        patch(f"{__name__}.Forgetful", OverHttp2),
        patch.object(OverHttp2, "also_host", also_host),
    ):
        return signed()


class Unknown(Exception):
    """Nobody has this access key id."""


def key_of(wire: Wire) -> bytes:
    """The access key id."""
    scope = signing_scope_of(list(wire.headers))
    return scope[0] if scope is not None else b""


def check(wire: Wire, key: bytes, keys: SigningKeys, now: float = NOW) -> None:
    """Verify with the secret of this id, whichever the request names."""
    pairs.verify(
        method=wire.method,
        raw_path=wire.path,
        raw_query=wire.query,
        headers=list(wire.headers),
        payload_sha256=sha256(wire.body).hexdigest(),
        secret=PAIRS[key],
        now=now,
        keys=keys,
    )


def admit(wire: Wire, keys: SigningKeys, now: float = NOW) -> None:
    """Look the secret up and verify, as a key store does."""
    key = key_of(wire)
    if not pairs.is_derived(key) or key not in PAIRS:
        raise Unknown
    check(wire, key, keys, now)


class DerivationTests(SynchronousTestCase):
    """
    L{pairs.access_key_id} and L{pairs.secret_access_key}
    """

    def test_known_answers(self) -> None:
        """
        A pair that was handed out once is good for ever: these never change.
        """
        token_hash = sha256(b"sk-1234").hexdigest()
        self.assertEqual(pairs.access_key_id(token_hash), "TXBKYJBKT5MQV2UWPKE7")
        self.assertEqual(
            pairs.secret_access_key(b"salt", token_hash),
            "w8n5nbaR4UH9uzDAiH15A4o4Y4GIB+KWf4UF8I1y",
        )

    def test_alphabets(self) -> None:
        """
        Whatever takes AWS's pairs takes these: 20 characters and 40 of the same alphabets,
        and the id is never one of AWS's.
        """
        for one in HASHES:
            self.assertRegex(pairs.access_key_id(one), r"\ATXBK[A-Z2-7]{16}\Z")
            self.assertRegex(pairs.secret_access_key(SALT, one), r"\A[A-Za-z0-9+/]{40}\Z")

    def test_all_differ(self) -> None:
        """
        Every key has an id and a secret of its own, and every server other secrets.
        """
        hashes = [sha256(b"%d" % number).hexdigest() for number in range(10_000)]
        ids = {pairs.access_key_id(one) for one in hashes}
        secrets = {
            pairs.secret_access_key(salt, one) for one in hashes for salt in (b"a", b"b", b"ab")
        }
        self.assertEqual((len(ids), len(secrets)), (10_000, 30_000))

    def test_nothing_shows(self) -> None:
        """
        Neither half holds a piece of the key's hash or of the other half.
        """
        for one in HASHES:
            key, secret = pairs.access_key_id(one), pairs.secret_access_key(SALT, one)
            for place in range(len(one) - 8):
                self.assertNotIn(one[place : place + 8].upper(), key)
                self.assertNotIn(one[place : place + 8], secret.lower())
            self.assertNotIn(key[4:10], secret)

    def test_no_salt(self) -> None:
        """
        Without a salt the secrets would be anyone's who knows a hash: there are none.
        """
        self.assertRaises(ValueError, pairs.secret_access_key, b"", HASHES[0])

    def test_is_derived(self) -> None:
        """
        Ours are told from AWS's ids and from virtual keys by their form.
        """
        for key in PAIRS:
            self.assertTrue(pairs.is_derived(key))
        good = b"TXBKABCDEFGHIJ234567"
        self.assertTrue(pairs.is_derived(good))
        for other in (
            b"",
            b"TXBK",
            b"AKIAABCDEFGHIJ234567",
            b"ASIAABCDEFGHIJ234567",
            b"sk-1234",
            good.lower(),
            good[:-1],
            good + b"A",
            good + b"\n",
            b" " + good,
            b"Bearer " + good,
            good.replace(b"2", b"1"),
            good.replace(b"2", b"/"),
            good.replace(b"A", b"a"),
        ):
            self.assertFalse(pairs.is_derived(other), other)


class TableTests(SynchronousTestCase):
    """
    What is written here of Bedrock is what AWS's models say.
    """

    def setUp(self) -> None:
        text = files("txbedrock.data").joinpath("operations.json").read_text("utf-8")
        self.services = loads(text)["services"]

    def test_signing_names(self) -> None:
        """
        Every service's signing name is accepted, and no other.
        """
        names = {service["signing_name"] for service in self.services.values()}
        self.assertEqual(pairs.SIGNING_NAMES, names)

    def test_modelled_headers(self) -> None:
        """
        Every header that an operation takes has to be signed, but for those that
        SDKs do not sign or do not always.
        """
        found: set[bytes] = set()
        session = botocore.session.get_session()
        for service in self.services:
            model = session.get_service_model(service)
            for name in model.operation_names:
                shape = model.operation_model(name).input_shape
                for member, each in shape.members.items() if shape is not None else ():
                    if each.serialization.get("location") in ("header", "headers"):
                        found.add(each.serialization.get("name", member).lower().encode())
        found -= {b"accept", b"baggage", b"traceparent", b"tracestate", b"x-amzn-trace-id"}
        found.discard(b"content-type")
        self.assertIn(b"x-amzn-bedrock-guardrailidentifier", found)
        keys = SigningKeys()
        for name in sorted(found):
            bare = signed(headers=())
            admit(bare, keys)
            error = self.assertRaises(InvalidSignature, admit, bare.plus((name, b"1")), keys)
            self.assertIn(name.decode(), error.message)
            admit(signed(headers=[(name.decode(), "1")]), keys)


class PresignedTests(SynchronousTestCase):
    """
    L{pairs.presigned}
    """

    def test_queries(self) -> None:
        """
        A presigned URL is known by its query, however the names are spelt.
        """
        for query in (
            b"X-Amz-Signature=abc",
            b"a=b&X-Amz-Credential=x",
            b"X-Amz-Algorithm=AWS4-HMAC-SHA256&a",
            b"x-amz-signature=abc",
            b"X%2DAmz%2dSignature=abc",
            b"X-Amz-Signature",
        ):
            self.assertTrue(pairs.presigned(query), query)
        for other in (
            None,
            b"",
            b"a=b",
            b"a=X-Amz-Signature",
            b"X-Amz-SignatureX=1",
            b"%",
            b"&=&",
        ):
            self.assertFalse(pairs.presigned(other), other)

    def test_of_botocore(self) -> None:
        """
        One that botocore makes is refused in words, also beside a good signature.
        """
        [(key, secret), *_] = PAIRS.items()
        request = AWSRequest("GET", "http://127.0.0.1:4000/bedrock/foundation-models")
        SigV4QueryAuth(Credentials(key.decode(), secret), "bedrock", "us-east-1").add_auth(request)
        query = request.url.partition("?")[2]
        self.assertTrue(pairs.presigned(query.encode()))
        both = signed("/bedrock/foundation-models", query, method="GET", body=b"")
        error = self.assertRaises(InvalidSignature, admit, both, SigningKeys())
        self.assertEqual((error.status, error.message), (403, pairs.PRESIGNED))


ARN = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123"
PATHS = [
    "/bedrock/foundation-models",
    "/bedrock/model/m/converse",
    "/bedrock/model/m/converse/",
    "/bedrock/",
    "/",
    "/bedrock/model/amazon.nova-micro-v1%3A0/converse",
    "/bedrock/model/amazon.nova-micro-v1:0/converse-stream",
    f"/bedrock/model/{quote(ARN, safe='')}/converse",
    f"/bedrock/model/{quote(ARN, safe=':')}/invoke",
    f"/bedrock/model/{ARN}/invoke",
    f"/bedrock/model/{quote('team/a model é~', safe='-._~')}/converse",
    "/bedrock/tags/%2525/%zz/a+b,c;d=e@f!$&'()*[]|^`{}<>",
    "/bedrock/model/a..b/.hidden/x...",
]
QUERIES = [
    "",
    "maxResults=5&nextToken=a%2Bb%2F%3D%3D",
    "z=1&a=2&m=3&a=1&a=",
    "byProvider=Mistral%20AI&empty=&name=%C3%A9",
    "tagKeys=a&tagKeys=b&tagKeys=a",
    "Flag=&flag=&FLAG=x",
    "resourceArn=" + quote(ARN, safe=""),
]
HEADERS: list[list[tuple[str, str]]] = [
    [],
    [("Content-Type", "application/json")],
    [("content-TYPE", "application/json"), ("Accept", "*/*"), ("User-Agent", "x")],
    [("X-Amzn-Bedrock-Trace", "ENABLED"), ("x-amzn-bedrock-guardrailidentifier", "gr-1")],
    [("X-Amz-Client-Token", "  a  b \t c "), ("X-Meta", "one"), ("x-meta", "two, three")],
    [("X-Meta", "b"), ("X-Meta", "a"), ("X-Meta", "")],
    [("X-Litellm-Tags", "a,b"), ("X-Note", "Ünïcödé ÿ"), ("X-A-B", '"q  q"'), ("X.A", "{}")],
    [("X-Amzn-Bedrock-Request-Metadata", '{"user": "a:b"}'), ("Content-Type", "text/plain")],
]
HOSTS = ["127.0.0.1:4000", "gateway.example", "[::1]:4000"]
REGIONS = ["us-east-1", "eu-central-1", "us-gov-west-1", "local"]


def random_wire(random: Random) -> Wire:
    """A valid request of any kind."""
    method = random.choice(["POST", "POST", "GET", "PUT", "DELETE", "PATCH"])
    body = b"" if method == "GET" else random.randbytes(random.choice([0, 1, 40, 1000]))
    headers = list(random.choice(HEADERS))
    if random.random() < 0.2:
        headers.append(("X-Amz-Content-SHA256", sha256(body).hexdigest()))
    return signed(
        random.choice(PATHS),
        random.choice(QUERIES),
        method=method,
        host=random.choice(HOSTS),
        headers=headers,
        body=body,
        region=random.choice(REGIONS),
        service=random.choice(sorted(pairs.SIGNING_NAMES)),
        pair=random.randrange(len(PAIRS)),
        now=NOW + random.choice([0, 0, -299.5, 299.5]),
    )


# The oracle


def parts_of(authorization: bytes) -> tuple[bytes, list[bytes]]:
    """What an Authorization header says, whatever the order and the space between."""
    algorithm, _, rest = authorization.strip(b" \t").partition(b" ")
    return algorithm, sorted(part.strip(b" \t") for part in rest.split(b","))


def canonical(wire: Wire, names: frozenset[str]) -> str:
    """The canonical request of these headers, as botocore makes it."""
    host = "".join(
        value.decode("latin-1") for name, value in wire.headers if name.lower() == b"host"
    )
    target = wire.target.decode("latin-1").replace("#", "%%23")  # not a fragment
    request = AWSRequest(wire.method.decode("latin-1"), f"http://gateway{target}", data=wire.body)
    for name, value in wire.headers:
        if name.decode("latin-1").lower() in names:
            request.headers.add_header(name.decode("latin-1"), value.decode("latin-1"))
    auth = SigV4Auth(Credentials("id", "secret"), "bedrock", "us-east-1")
    return f"{host}\n{auth.canonical_request(request)}\n{sha256(wire.body).hexdigest()}"


def same(good: Wire, other: Wire) -> bool:
    """Is what was signed the same, by botocore's own account?"""
    authorizations = [value for name, value in other.headers if name.lower() == b"authorization"]
    algorithm, parts = parts_of(good.value(b"authorization"))
    if len(authorizations) != 1 or parts_of(authorizations[0]) != (algorithm, parts):
        return False
    [covered] = [part for part in parts if part.startswith(b"SignedHeaders=")]
    names = frozenset(covered.decode().partition("=")[2].split(";"))
    return canonical(good, names) == canonical(other, names)


# Mutations

_TARGET = bytes(range(0x21, 0x100))
_NAME = bytes(byte for byte in range(0x21, 0x7F) if byte not in b":")
_VALUE = bytes((9, *range(0x20, 0x100)))
_ANY = bytes(range(0x100))


def mutate(random: Random, data: bytes, alphabet: bytes) -> bytes:
    """Change a few bytes, or one bit, to something that can be sent in their place."""
    for _ in range(100):
        place = random.randrange(len(data) + 1)
        kind = random.randrange(6)
        changed = bytearray(data)
        if kind == 0:  # a bit
            if place < len(data):
                changed[place] ^= 1 << random.randrange(8)
        elif kind == 1:  # a byte
            changed[place : place + 1] = [random.choice(alphabet)]
        elif kind == 2:  # more
            changed[place:place] = random.choices(alphabet, k=random.randrange(1, 4))
        elif kind == 3:  # less
            del changed[place : place + random.randrange(1, 4)]
        elif kind == 4:  # again
            changed[place:place] = changed[place : place + random.randrange(1, 9)]
        else:  # the other way round
            changed[place : place + 2] = reversed(changed[place : place + 2])
        if bytes(changed) != data and not changed.translate(None, alphabet):
            return bytes(changed)
    return data + alphabet[-1:]


def at(random: Random, wire: Wire, names: Iterable[bytes]) -> int:
    """The place of one of these headers."""
    wanted = set(names)
    return random.choice([i for i, pair in enumerate(wire.headers) if pair[0].lower() in wanted])


def with_header(wire: Wire, place: int, *pairs: tuple[bytes, bytes]) -> Wire:
    return replace(wire, headers=(*wire.headers[:place], *pairs, *wire.headers[place + 1 :]))


def covered(wire: Wire) -> list[bytes]:
    """The names of the headers that are signed."""
    match = re.search(rb"SignedHeaders=([^,]*)", wire.value(b"authorization"))
    assert match is not None
    return match[1].split(b";")


def mutants(random: Random, good: Wire, other: Wire) -> list[tuple[str, Wire]]:
    """
    One of each kind.

    :param other: another valid request, to take pieces from.
    """
    path, query = good.path, good.query
    result = []

    def add(what: str, wire: Wire) -> None:
        if wire != good:
            result.append((what, wire))

    add("path", replace(good, target=mutate(random, path, _TARGET) + good.target[len(path) :]))
    if query is not None:
        changed = mutate(random, query, _TARGET)
        add("query", replace(good, target=path + b"?" + changed))
        pieces = query.split(b"&")
        random.shuffle(pieces)
        add("order of the query", replace(good, target=path + b"?" + b"&".join(pieces)))
    add("target", replace(good, target=mutate(random, good.target, _TARGET)))
    add("other target", replace(good, target=other.target))
    add("body", replace(good, body=mutate(random, good.body, _ANY)))
    add("other body", replace(good, body=other.body))
    add("method", replace(good, method=random.choice([b"GET", b"POST", b"PUT", b"post", b"X"])))

    value = good.value(b"authorization")
    for label in (b"Signature=", b"Credential=", b"SignedHeaders=", b""):
        start = value.index(label) + len(label) if label else 0
        end = value.find(b",", start) if label else len(value)
        end = len(value) if end < 0 else end
        changed = value[:start] + mutate(random, value[start:end], _VALUE) + value[end:]
        add("authorization " + label.decode(), good.edit(b"authorization", value, changed))
    add("other signature", good.edit(b"authorization", value, other.value(b"authorization")))

    names = covered(good)
    for name in (names, [b"host"], [b"x-amz-date"]):
        place = at(random, good, name)
        key, text = good.headers[place]
        add("value", with_header(good, place, (key, mutate(random, text, _VALUE))))
        add("name", with_header(good, place, (mutate(random, key, _NAME), text)))
        add("dropped", with_header(good, place))
        add("twice", with_header(good, place, (key, text), (key, text)))
        add("one more", good.plus((key, mutate(random, text, _VALUE))))
        halves = random.randrange(len(text) + 1)
        add("split", with_header(good, place, (key, text[:halves]), (key, text[halves:])))
    shift = random.randrange(1, 300)
    moved = amz_date(NOW + shift).encode()
    add("date", good.edit(b"x-amz-date", good.value(b"x-amz-date"), moved))
    shuffled = list(good.headers)
    random.shuffle(shuffled)
    add("order of the headers", replace(good, headers=tuple(shuffled)))
    return result


class VerifyTests(SynchronousTestCase):
    """
    L{pairs.verify}
    """

    def setUp(self) -> None:
        self.keys = SigningKeys()
        self.good = signed()

    def refused(self, wire: Wire, now: float = NOW) -> InvalidSignature:
        key = next(iter(PAIRS))
        error = self.assertRaises(InvalidSignature, check, wire, key, self.keys, now)
        self.assertEqual(error.status, 403)
        for secret in PAIRS.values():
            self.assertNotIn(secret, f"{error!r}{error.message}{error.detail}")
        return error

    def test_accepts(self) -> None:
        """
        Whatever botocore signs is let in: every kind of path with every kind of query and
        headers, in any region, for each signing name, within five minutes.
        """
        for path in PATHS:
            for query in QUERIES:
                for headers in HEADERS:
                    admit(signed(path, query, headers=headers), self.keys)
        for service in pairs.SIGNING_NAMES:
            for region in REGIONS:
                admit(signed(service=service, region=region), self.keys)
        for offset in (-300, 0, 300):
            admit(self.good, self.keys, NOW + offset)
        random = Random(1)
        for _ in range(1000):
            admit(random_wire(random), self.keys)

    def test_what_was_not_signed(self) -> None:
        """
        What proxies add on the way, and SDKs do not sign, does not break a signature.
        """
        admit(
            self.good.plus(
                (b"Via", b"1.1 x"),
                (b"X-Forwarded-For", b"192.0.2.1"),
                (b"X-Amzn-Trace-Id", b"Root=1"),
                (b"X-Amzn-Tls-Version", b"TLSv1.3"),
                (b"amz-sdk-request", b"attempt=1"),
                (b"Connection", b"keep-alive, TE"),
                (b"Accept", b"*/*"),
                (b"Content-Length", b"16"),
            ),
            self.keys,
        )

    def test_tampered(self) -> None:
        """
        A request that was changed on its way is refused, whatever it was that changed.
        """
        good = signed(
            query="maxResults=5&name=a%20b",
            headers=[
                ("Content-Type", "application/json"),
                ("X-Amzn-Bedrock-GuardrailIdentifier", "gr-1"),
                ("X-Meta", "one"),
                ("X-Meta", "two"),
            ],
        )
        admit(good, self.keys)
        value = good.value(b"authorization")
        signature = value[-64:]
        other = signed(pair=1).value(b"authorization")[-64:]
        flipped = signature[:-1] + (b"0" if signature[-1:] != b"0" else b"1")
        guardrail = b"x-amzn-bedrock-guardrailidentifier"

        def path(old: bytes, new: bytes) -> Wire:
            assert old in good.target
            return replace(good, target=good.target.replace(old, new, 1))

        def authorization(old: bytes, new: bytes) -> Wire:
            return good.edit(b"authorization", old, new)

        tamperings: dict[str, Wire] = {
            "signature": authorization(signature, flipped),
            "signature of another": authorization(signature, other),
            "signature in upper case": authorization(signature, signature.upper()),
            "signature shorter": authorization(signature, signature[:-1]),
            "signature longer": authorization(signature, signature + b"0"),
            "signature empty": authorization(signature, b""),
            "signature missing": authorization(b", Signature=" + signature, b""),
            "two signatures": authorization(signature, signature + b", Signature=" + signature),
            "another region": authorization(b"us-east-1", b"us-east-2"),
            "another service": authorization(b"/bedrock/", b"/bedrock-agentcore/"),
            "another day": authorization(b"/20261122/", b"/20261121/"),
            "another term": authorization(b"aws4_request", b"aws4_requests"),
            "another algorithm": authorization(b"AWS4-HMAC-SHA256", b"AWS4-HMAC-SHA1"),
            "fewer signed headers": authorization(b";x-meta", b""),
            "more signed headers": authorization(b";x-meta", b";x-meta;x-more"),
            "no signed headers": authorization(b"content-type;host;", b""),
            "scheme in lower case": authorization(b"AWS4-HMAC-SHA256", b"aws4-hmac-sha256"),
            "two Authorizations": good.plus((b"Authorization", value)),
            "another Authorization first": replace(
                good, headers=((b"authorization", b"Bearer x"), *good.headers)
            ),
            "another Authorization last": good.plus((b"authorization", b"Bearer x")),
            "method": replace(good, method=b"GET"),
            "method in lower case": replace(good, method=b"post"),
            "model": path(b"micro", b"macro"),
            "operation": path(b"/converse", b"/invoke"),
            "prefix": path(b"/bedrock/", b"/"),
            "path longer": path(b"?", b"/?"),
            "path decoded": path(b"%3A", b":"),
            "path encoded again": path(b"%3A", b"%253A"),
            "path encoded otherwise": path(b"%3A", b"%3a"),
            "path encoded where it was not": path(b"micro", b"micr%6F"),
            "two slashes": path(b"/model/", b"//model/"),
            "two slashes at the beginning": path(b"/bedrock/", b"//bedrock/"),
            "two slashes at the end": path(b"/converse", b"/converse//"),
            "dot": path(b"/model/", b"/./model/"),
            "dots": path(b"/model/", b"/x/../model/"),
            "encoded dots": path(b"/model/", b"/x/%2e%2E/model/"),
            "absolute target": replace(good, target=b"http://127.0.0.1:4000" + good.target),
            "no target": replace(good, target=b""),
            "query": path(b"maxResults=5", b"maxResults=6"),
            "query longer": path(b"=5", b"=5&x=y"),
            "query with nothing more": path(b"=5", b"=5&"),
            "query gone": replace(good, target=good.path),
            "query decoded": path(b"%20", b"+"),
            "query encoded otherwise": path(b"name", b"n%61me"),
            "query in the path": path(b"?", b"%3F"),
            "body": replace(good, body=b'{"messages": {}}'),
            "body with a space": replace(good, body=good.body + b" "),
            "no body": replace(good, body=b""),
            "host": good.edit(b"host", b"127.0.0.1", b"127.0.0.2"),
            "host's port": good.edit(b"host", b":4000", b""),
            "two hosts": good.plus((b"Host", good.value(b"host"))),
            "authority": good.plus((b":authority", b"other.example")),
            "no host": good.without(b"host"),
            "date": good.edit(b"x-amz-date", b"174500", b"174501"),
            "date out of reach": good.edit(b"x-amz-date", b"174500", b"184500"),
            "date none": good.edit(b"x-amz-date", b"20261122T174500Z", b"now"),
            "two dates": good.plus((b"x-amz-date", b"20261122T174500Z")),
            "no date": good.without(b"x-amz-date"),
            "Date in its place": good.without(b"x-amz-date").plus(
                (b"Date", b"Sun, 22 Nov 2026 17:45:00 GMT")
            ),
            "type": good.edit(b"content-type", b"json", b"xml"),
            "two types": good.plus((b"content-type", b"application/json")),
            "no type": good.without(b"content-type"),
            "guardrail": good.edit(guardrail, b"gr-1", b"gr-2"),
            "guardrail in upper case": good.edit(guardrail, b"gr-1", b"GR-1"),
            "two guardrails": good.plus((guardrail, b"gr-2")),
            "no guardrail": good.without(guardrail),
            "guardrail renamed": good.without(guardrail).plus((guardrail + b"x", b"gr-1")),
            "guardrail taken away": good.plus((b"Connection", b"close, " + guardrail.upper())),
            "repeated header turned": good.without(b"x-meta").plus(
                (b"X-Meta", b"two"), (b"X-Meta", b"one")
            ),
            "repeated header once": good.without(b"x-meta").plus((b"X-Meta", b"one")),
            "repeated header more": good.plus((b"X-Meta", b"two")),
            "another AWS header": good.plus((b"X-Amz-Target", b"x")),
            "another header of Bedrock's": good.plus((b"X-Amzn-Bedrock-Trace", b"ENABLED")),
            "another header of the gateway's": good.plus((b"x-litellm-tags", b"theirs")),
            "session token": good.plus((b"X-Amz-Security-Token", b"token")),
            "payload not signed": good.plus((b"X-Amz-Content-SHA256", b"UNSIGNED-PAYLOAD")),
        }
        for name, wire in tamperings.items():
            try:
                self.refused(wire)
            except self.failureException as error:
                raise self.failureException(f"{name}: {error}") from None
        self.assertGreater(len(tamperings), 70)

    def test_means_the_same(self) -> None:
        """
        What Signature Version 4 takes for the same, and is the same, is accepted.
        """
        good = signed(
            query="a=1&b=",
            headers=[("X-Meta", "one"), ("X-Meta", "two, three"), ("X-Note", "a b")],
        )
        value = good.value(b"authorization")
        for wire in (
            good,
            replace(good, headers=tuple((n.lower(), v) for n, v in good.headers)),
            replace(good, headers=tuple((n.upper(), b"  " + v + b"\t") for n, v in good.headers)),
            replace(good, headers=good.headers[::-1])
            .without(b"x-meta")
            .plus((b"X-Meta", b"one,two, three")),
            good.edit(b"x-note", b"a b", b"a \t  b"),
            replace(good, target=good.path + b"?b&a=1"),
            good.edit(b"authorization", value, value.replace(b", ", b",")),
        ):
            admit(wire, self.keys)

    def test_authority(self) -> None:
        """
        Over HTTP/2 ``:authority`` is signed, which is Host here; it is covered like Host.
        """
        for also_host in (False, True):
            good = signed_over_http2(also_host)
            self.assertIn(b"SignedHeaders=:authority;", good.value(b"authorization"))
            admit(good, self.keys)
            host = good.value(b"host")
            self.refused(good.edit(b"host", b"127.0.0.1", b"127.0.0.2"))
            self.refused(good.without(b"host"))
            self.refused(good.plus((b"Host", host)))
            self.refused(good.plus((b":authority", b"other.example")))
            self.refused(good.edit(b"host", b":", b"\x0b:"))

    def test_mutations(self) -> None:
        """
        Of ten thousand random changes to valid requests, by botocore's account of what
        was signed, none is let in.
        """
        random = Random(20261122)
        counts: dict[str, int] = {}
        refused = accepted = 0
        other = random_wire(random)
        while refused < 10_000:
            good = random_wire(random)
            admit(good, self.keys)
            for what, wire in mutants(random, good, other):
                changed = not same(good, wire)
                try:
                    if pairs.is_derived(key_of(wire)):
                        admit(wire, self.keys)  # Perhaps it is somebody else's.
                    else:
                        check(wire, key_of(good), self.keys)
                except (InvalidSignature, Unknown):
                    if changed:
                        refused += 1
                        counts[what] = counts.get(what, 0) + 1
                else:
                    if changed:
                        self.fail(f"{what}: {good!r} became {wire!r}")
                    accepted += 1
            other = good
        self.assertGreater(min(counts.values()), 30, counts)
        # The oracle was needed, so it is one that can tell.
        self.assertGreater(accepted, 100)

    def test_replaced_signatures(self) -> None:
        """
        Nobody's signature is good for anybody else, nor for another moment.
        """
        wires = [signed(pair=number, now=NOW + number) for number in range(20)]
        for one in wires:
            for other in wires:
                if one is not other:
                    mine, theirs = one.value(b"authorization"), other.value(b"authorization")
                    for old, new in ((mine, theirs), (mine[-64:], theirs[-64:])):
                        mixed = one.edit(b"authorization", old, new)
                        self.assertRaises(InvalidSignature, admit, mixed, self.keys)

    def test_constant_time(self) -> None:
        """
        Nothing but a comparison in constant time decides over the signature.
        """
        wrong = replace(self.good, body=b"tampered")
        presented = self.good.value(b"authorization")[-64:].decode()
        compared: list[str] = []

        def equal(one: str, two: str) -> bool:
            compared.extend((one, two))
            return True

        with patch.object(sigv4, "compare_digest", equal):
            admit(wrong, self.keys)
        self.assertEqual(len(compared), 2)
        self.assertIn(presented, compared)
        with patch.object(sigv4, "compare_digest", lambda one, two: False):
            self.refused(self.good)

    def test_skew(self) -> None:
        """
        Five minutes either way, and not a moment more; then both clocks are told.
        """
        for offset in (-300.0, -299.9, 0.0, 299.9, 300.0):
            admit(self.good, self.keys, NOW + offset)
        error = self.refused(self.good, NOW + 300.5)
        self.assertEqual(error.code, "InvalidSignatureException")
        self.assertIn("Signature expired: 20261122T174500Z is now earlier", error.message)
        error = self.refused(self.good, NOW - 300.5)
        self.assertIn("Signature not yet current: 20261122T174500Z", error.message)

    def test_signed_and_refused(self) -> None:
        """
        What is signed correctly, but not so that it protects, is refused with words that
        say what to change.
        """
        invalid, incomplete = "InvalidSignatureException", "IncompleteSignatureException"
        unsigned: list[tuple[str, str]] = [("X-Amz-Content-SHA256", "UNSIGNED-PAYLOAD")]
        streaming = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
        trailer = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
        slashes = b"/bedrock//model/m/converse"
        dots = b"/bedrock/x/../model/m/converse"
        plain = signed("/bedrock/model/m/converse")
        table: list[tuple[Wire, str, str]] = [
            (signed(token="token"), "UnrecognizedClientException", "unset AWS_SESSION_TOKEN"),
            (signed(headers=unsigned), invalid, "UNSIGNED-PAYLOAD"),
            (signed(headers=[("x-amz-content-sha256", streaming)]), invalid, "STREAMING-"),
            (signed(headers=[("x-amz-content-sha256", trailer)]), invalid, "STREAMING-"),
            (
                signed(headers=[("x-amz-content-sha256", sha256(b"").hexdigest())]),
                invalid,
                "does not match what was computed",
            ),
            (signed(service="s3"), invalid, "'bedrock' or 'bedrock-agentcore'"),
            (signed(service="bedrock-runtime"), invalid, "'bedrock' or 'bedrock-agentcore'"),
            (signed(region="US"), invalid, "valid region"),
            (signed(region="a" * 33), invalid, "valid region"),
            (signed(region="us--east"), invalid, "valid region"),
            (replace(plain, target=slashes), invalid, "'//'"),
            (replace(plain, target=dots), invalid, "'..'"),
            (signed(forgotten=("host",)), invalid, "'Host'"),
            (signed(forgotten=("x-amz-date",)), invalid, "'x-amz-date'"),
            (
                signed(headers=[("X-Amz-Target", "x")], forgotten=("x-amz-target",)),
                invalid,
                "'x-amz-target'",
            ),
            (signed(headers=[("Content-Type", "a/b")] * 2), invalid, "one Content-Type header"),
            (signed(headers=[("X-Note", "a\xa0b")]), invalid, "white space"),
            (signed(headers=[("X-Note", "a\x0bb")]), invalid, "white space"),
            (signed(method="post"), invalid, "upper case"),
            (signed().edit(b"authorization", b"=TXBK", b"=Bearer TXBK"), invalid, "access key id"),
            (signed().plus((b"Authorization", b"x")), invalid, "one Authorization header"),
            (signed().plus((b"X-Amz-Date", b"x")), invalid, "one X-Amz-Date header"),
            (signed().without(b"x-amz-date"), incomplete, "'X-Amz-Date'"),
        ]
        for wire, code, words in table:
            error = self.refused(wire)
            self.assertEqual(error.code, code, words)
            self.assertIn(words, error.message)

    def test_mismatch(self) -> None:
        """
        A wrong secret gets AWS's own words, and advice only where it may help.
        """
        [(first, _), (_, second), *_] = PAIRS.items()
        cases: list[tuple[Wire, Callable[[str, str], None], str]] = [
            (
                signed("/bedrock/model/m/converse", "a=&a=b&c=%3A~"),
                self.assertNotIn,
                "verified as",
            ),
            (signed("/bedrock/model/a%3A0/converse"), self.assertIn, "older versions of curl"),
            (signed("/bedrock/model/a:0/converse"), self.assertIn, "older versions of curl"),
            (signed("/bedrock/x", "a=b:c"), self.assertIn, "percent-encode everything"),
            (signed("/bedrock/x", "a=%3a"), self.assertIn, "percent-encode everything"),
            (signed("/bedrock/x", "a=%41"), self.assertIn, "percent-encode everything"),
            (signed("/bedrock/x", "a=b=="), self.assertIn, "percent-encode everything"),
            (signed("/bedrock/x", "b=1&a=2"), self.assertIn, "sort the parameters"),
            (signed("/bedrock/x", "a"), self.assertIn, "write 'a='"),
        ]
        for wire, check, words in cases:
            admit(wire, self.keys)
            with patch.dict(PAIRS, {first: second}):
                error = self.refused(wire)
            self.assertEqual(error.code, "InvalidSignatureException")
            self.assertTrue(error.message.startswith("The request signature we calculated does"))
            check(words, error.message)

    def test_no_bytes_break_it(self) -> None:
        """
        Whatever comes, it is let in or refused: nothing else is raised.
        """
        random, refused = Random(7), 0
        for _ in range(2000):
            good = random_wire(random)
            wire = replace(
                good,
                target=mutate(random, good.target, _ANY),
                headers=tuple(
                    (mutate(random, name, _ANY), mutate(random, value, _ANY))
                    if random.random() < 0.3
                    else (name, value)
                    for name, value in good.headers
                ),
            )
            try:
                admit(wire, self.keys)
            except (InvalidSignature, Unknown):
                refused += 1
        self.assertTrue(500 < refused < 2000, refused)
