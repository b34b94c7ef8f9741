"""
AWS Signature Version 4, both ways: sign what goes up, verify what came down.

Everything here is computed from the arguments: no clock, no I/O. The rules are
those of AWS, "Create a signed AWS API request", for services other than S3;
where that text leaves room, the bytes that botocore's ``SigV4Auth`` signs decide.

Note [Bytes on the wire]
------------------------
A signature holds for the bytes that are sent, so paths and queries are taken
raw. Header values are read as Latin-1 and signed as UTF-8: that is what botocore
does (it signs the text, and ``http.client`` sends the text as Latin-1), and for
ASCII, which is all that AWS's own headers hold, it changes nothing.

Note [Slashes]
--------------
A run of slashes counts as one in the canonical path (``//model///x`` is signed
as ``/model/x``), as AWS asks for and botocore does; a slash at the end stays.
One signature is therefore good for all such spellings: whoever verifies a
request must route the spellings alike, or refuse the odd ones. Dot segments,
which botocore would resolve in the signature while the wire keeps them, are
refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from hmac import compare_digest
from hmac import digest as _hmac_digest
from math import floor
from time import gmtime, strftime
from typing import TYPE_CHECKING, NamedTuple

from txbedrock.core.credentials import Credentials

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = [
    "EMPTY_SHA256",
    "BadPath",
    "BadSignature",
    "Mismatch",
    "ScopedSignature",
    "SigningKeys",
    "amz_date",
    "canonical_path",
    "canonical_query",
    "clock_offset",
    "parse_authorization",
    "sign",
    "verify",
]

EMPTY_SHA256 = sha256().hexdigest()
"""The payload hash of a request without a body."""

_ALGORITHM = "AWS4-HMAC-SHA256"
_Headers = Sequence[tuple[bytes, bytes]]


class BadPath(ValueError):
    """A path that cannot be signed."""


class BadSignature(ValueError):
    """
    A request's signature is absent, malformed, out of date or wrong.

    :param message: for the client; holds no secret and no signature.
    :param code: AWS's error code.
    """

    def __init__(self, message: str, code: str = "InvalidSignatureException") -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class Mismatch(BadSignature):
    """All that can be read of a signature is as it should be, and it is another one."""


def _incomplete(message: str) -> BadSignature:
    return BadSignature(message, "IncompleteSignatureException")


# Path and query

_UNSAFE = re.compile(rb"[^A-Za-z0-9\-._~/]")
_DOT_SEGMENT = re.compile(rb"(?:\A|/)(?:\.|%2[eE]){1,2}(?:/|\Z)")
_SLASHES = re.compile(rb"//+")
_CACHED_PATH_BYTES = 512

_CACHED_BLOCK_BYTES = 4096
_CACHED_BLOCKS = 256


def canonical_path(raw_path: bytes) -> bytes:
    """
    The canonical URI of a request for SigV4 services other than S3.

    :param raw_path: path as sent, percent-encoded, without the query;
        begins with ``/``, or is empty, which means ``/``.
    :returns: the same path, each byte outside ``A-Za-z0-9-._~/`` escaped once
        more (``%3A`` becomes ``%253A``), and runs of slashes made one.
    :raises BadPath: if a segment is ``.`` or ``..``, escaped or not, or if the
        path does not begin with a slash.

    Source: AWS, "Create a signed AWS API request", step 1; Note [Slashes].
    """
    if len(raw_path) <= _CACHED_PATH_BYTES:
        return _cached_path(raw_path)
    return _canonical_path(raw_path)


def _canonical_path(raw_path: bytes) -> bytes:
    if not raw_path:
        return b"/"
    if raw_path[0] != 0x2F:
        raise BadPath("the path does not begin with a slash")
    if _DOT_SEGMENT.search(raw_path):
        raise BadPath("the path holds a '.' or '..' segment")
    return _UNSAFE.sub(_escape, _SLASHES.sub(b"/", raw_path))


_cached_path = lru_cache(maxsize=2048)(_canonical_path)


def _escape(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


def canonical_query(raw_query: bytes) -> bytes:
    """
    The canonical query string.

    :param raw_query: as sent, without the ``?``, each name and value escaped as
        AWS SDKs do (all but ``A-Za-z0-9-._~``). Nothing is escaped or
        unescaped here: botocore does not either.
    :returns: the pairs sorted by name, then value; ``a`` becomes ``a=``.
    """
    if not raw_query:
        return b""
    pairs = [pair.partition(b"=") for pair in raw_query.split(b"&")]
    return b"&".join([b"%b=%b" % (name, value) for name, _, value in sorted(pairs, key=_pair)])


def _pair(parts: tuple[bytes, bytes, bytes]) -> tuple[bytes, bytes]:
    return parts[0], parts[2]


# Keys


class SigningKeys:
    """
    Derived signing keys, so that the four HMACs of a derivation run once a day.

    Bounded: the oldest entry goes first. For one thread. Give verification an
    instance of its own: a client chooses the region and service of its scope,
    and could otherwise push out the keys that we sign with.
    """

    __slots__ = ("_blocks", "_keys", "_limit")

    def __init__(self, limit: int = 1024) -> None:
        self._limit = limit
        self._keys: dict[tuple[str, str, str, str], _Scope] = {}
        self._blocks: dict[tuple[object, ...], _Block] = {}

    def __repr__(self) -> str:
        return "SigningKeys()"

    def __len__(self) -> int:
        return len(self._keys)

    def scope(self, secret_access_key: str, date: str, region: str, service: str) -> _Scope:
        """
        What signs for a day, a region and a service.

        :param date: ``YYYYMMDD``.
        """
        key = (secret_access_key, date, region, service)
        scope = self._keys.get(key)
        if scope is None:
            inner, outer = _pads(_derive(secret_access_key, date, region, service))
            text = f"{date}/{region}/{service}/aws4_request".encode()
            scope = self._keys[key] = _Scope(inner, outer, text)
            if len(self._keys) > self._limit:
                del self._keys[next(iter(self._keys))]
        return scope

    def signature(
        self, secret_access_key: str, date: str, region: str, service: str, message: bytes
    ) -> str:
        """
        HMAC-SHA256 of a message under the derived key.

        :param date: ``YYYYMMDD``.
        :returns: 64 lower-case hexadecimal digits.
        """
        return _hmac(self.scope(secret_access_key, date, region, service), message)

    def block(self, headers: _Headers, session_token: str | None) -> _Block:
        """
        What headers are in a canonical request. Most of ours are those of the last one.

        :raises ValueError: as :func:`sign`.
        """
        key = (*headers, session_token)
        block = self._blocks.get(key)
        if block is None:
            block = _block(headers, session_token)
            # As they came: white space may be most of them.
            size = sum(len(name) + len(value) for name, value in headers)
            if size <= _CACHED_BLOCK_BYTES:
                if len(self._blocks) >= _CACHED_BLOCKS:
                    self._blocks.clear()
                self._blocks[key] = block
        return block


class _Scope(NamedTuple):
    """A derived key, as :func:`_pads` gives it, and what it is for."""

    inner: _Hash
    outer: _Hash
    text: bytes

    def __repr__(self) -> str:
        return f"_Scope({self.text!r})"


def _hmac(scope: _Scope, message: bytes) -> str:
    inner, outer, _ = scope
    inner = inner.copy()
    inner.update(message)
    outer = outer.copy()
    outer.update(inner.digest())
    return outer.hexdigest()


def _derive(secret_access_key: str, date: str, region: str, service: str) -> bytes:
    key = b"AWS4" + secret_access_key.encode()
    for part in (date, region, service, "aws4_request"):
        key = _hmac_digest(key, part.encode(), "sha256")
    return key


def _pads(key: bytes) -> tuple[_Hash, _Hash]:
    """
    HMAC's two hashes with the key already in them (RFC 2104; the key is 32 bytes).

    Copying these takes half the time of ``hmac.HMAC.copy()``.
    """
    block = key.ljust(64, b"\0")
    return sha256(bytes(b ^ 0x36 for b in block)), sha256(bytes(b ^ 0x5C for b in block))


# Signing


def _fold(headers: _Headers) -> dict[str, str]:
    """Lower-case names to trimmed values, repeated names joined in order."""
    fields: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name = str(raw_name, "latin-1").lower()
        value = " ".join(str(raw_value, "latin-1").split())
        if name in fields:
            fields[name] += "," + value
        else:
            fields[name] = value
    return fields


class _Block(NamedTuple):
    """Headers as a canonical request has them, with room for the time."""

    before: bytes
    """Up to the value of ``x-amz-date``."""

    after: bytes
    """From there to the hash of the body."""

    names: bytes
    """Between semicolons."""


def _block(headers: _Headers, session_token: str | None) -> _Block:
    fields = _fold(headers)
    if "host" not in fields:
        raise ValueError("Host must be among the headers to sign")
    if "x-amz-date" in fields or "x-amz-security-token" in fields or "authorization" in fields:
        raise ValueError("the headers to sign hold one that sign() adds")
    fields["x-amz-date"] = ""
    if session_token:
        fields["x-amz-security-token"] = " ".join(session_token.split())
    names = sorted(fields)
    at = names.index("x-amz-date")
    before = _lines(fields, names[:at])
    after = _lines(fields, names[at + 1 :])
    signed = ";".join(names)
    return _Block(
        f"{before}x-amz-date:".encode(), f"\n{after}\n{signed}\n".encode(), signed.encode()
    )


def _lines(fields: dict[str, str], names: Sequence[str]) -> str:
    return "".join([f"{name}:{fields[name]}\n" for name in names])


def _signature(
    scope: _Scope,
    method: bytes,
    path: bytes,
    query: bytes,
    headers: Sequence[bytes],
    payload_sha256: str,
    time: bytes,
) -> str:
    """
    :param path: canonical, as is ``query``.
    :param headers: what stands between query and payload in a canonical request, in pieces.
    """
    parts = (method.upper(), b"\n", path, b"\n", query, b"\n", *headers, payload_sha256.encode())
    request_hash = sha256(b"".join(parts)).hexdigest().encode()
    message = b"".join((b"AWS4-HMAC-SHA256\n", time, b"\n", scope.text, b"\n", request_hash))
    return _hmac(scope, message)


def sign(
    credentials: Credentials,
    *,
    method: bytes,
    raw_path: bytes,
    raw_query: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    payload_sha256: str,
    region: str,
    service: str,
    timestamp: str,
    keys: SigningKeys,
) -> list[tuple[bytes, bytes]]:
    """
    Sign a request.

    :param raw_path: exactly as it goes on the wire.
    :param raw_query: exactly as it goes on the wire, without the ``?``.
    :param headers: those to be signed, all of them, ``Host`` among them, and
        none of those that this adds.
    :param payload_sha256: hexadecimal; :data:`EMPTY_SHA256` without a body.
    :param timestamp: as :func:`amz_date` gives it.
    :returns: the headers to add: ``X-Amz-Date``, ``X-Amz-Security-Token`` if
        there is a session token, ``Authorization``.
    :raises BadPath: as :func:`canonical_path`.
    :raises ValueError: if ``Host`` is missing, or a header is there already.
    """
    token = credentials.session_token
    before, after, names = keys.block(headers, token)
    scope = keys.scope(credentials.secret_access_key, timestamp[:8], region, service)
    time = timestamp.encode()
    signature = _signature(
        scope,
        method,
        canonical_path(raw_path),
        canonical_query(raw_query) if raw_query else b"",
        (before, time, after),
        payload_sha256,
        time,
    )
    authorization = b"".join(
        (
            b"AWS4-HMAC-SHA256 Credential=",
            credentials.access_key_id.encode(),
            b"/",
            scope.text,
            b", SignedHeaders=",
            names,
            b", Signature=",
            signature.encode(),
        )
    )
    date = (b"X-Amz-Date", time)
    if token:
        return [date, (b"X-Amz-Security-Token", token.encode()), (b"Authorization", authorization)]
    return [date, (b"Authorization", authorization)]


# Verifying


@dataclass(frozen=True, slots=True)
class ScopedSignature:
    """An ``Authorization`` header of Signature Version 4, taken apart."""

    access_key_id: str = field(repr=False)  # may be a virtual key, which is a secret
    date: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str = field(repr=False)


_DATE = re.compile(r"[0-9]{8}\Z")
_SCOPE_PART = re.compile(r"[!-.0-~]+\Z")  # printable ASCII but the slash
_HEADER_NAME = re.compile(r":?[!#$%&'*+\-.^_`|~0-9a-z]+\Z")
_HEX = re.compile(r"[0-9a-f]{64}\Z")
_TIMESTAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z\Z")


def parse_authorization(value: bytes) -> ScopedSignature:
    """
    Take an ``Authorization`` header apart. The signature is not checked yet.

    :param value: ``AWS4-HMAC-SHA256 Credential=ID/DATE/REGION/SERVICE/aws4_request,
        SignedHeaders=a;b, Signature=HEX``; the three in any order, each once.
        An access key id may hold anything printable except ``/`` and ``,``.
    :raises BadSignature: for anything else.
    """
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise _incomplete("Authorization header is not UTF-8.") from None
    algorithm, _, rest = text.strip(" \t").partition(" ")
    if algorithm != _ALGORITHM:
        raise _incomplete(f"Authorization header must begin with '{_ALGORITHM}'.")
    found: dict[str, str] = {}
    for part in rest.split(","):
        name, equals, content = part.strip(" \t").partition("=")
        if not equals or name not in ("Credential", "SignedHeaders", "Signature"):
            raise _incomplete(
                "Authorization header must hold Credential, SignedHeaders and Signature,"
                " separated by commas."
            )
        if name in found:
            raise _incomplete(f"Authorization header holds '{name}' twice.")
        found[name] = content
    for name in ("Credential", "Signature", "SignedHeaders"):
        if not found.get(name):
            raise _incomplete(f"Authorization header requires '{name}' parameter.")
    scope = found["Credential"].split("/")
    if len(scope) != 5:
        raise _incomplete(
            "Credential must have exactly 5 slash-delimited elements, e.g."
            " keyid/date/region/service/term."
        )
    access_key_id, date, region, service, term = scope
    if not access_key_id or not access_key_id.isprintable():
        raise _incomplete("Credential must begin with a valid access key id.")
    if not _DATE.match(date):
        raise _incomplete("Credential should be scoped to a date as YYYYMMDD.")
    if not _SCOPE_PART.match(region) or not _SCOPE_PART.match(service):
        raise _incomplete("Credential should be scoped to a valid region and service.")
    if term != "aws4_request":
        raise _incomplete("Credential should be scoped with a valid terminator: 'aws4_request'.")
    names = found["SignedHeaders"].split(";")
    if not all(map(_HEADER_NAME.match, names)) or sorted(set(names)) != names:
        raise _incomplete("SignedHeaders must be lower-case names, sorted, each once.")
    if not _HEX.match(found["Signature"]):
        raise _incomplete("Signature must be 64 lower-case hexadecimal digits.")
    return ScopedSignature(access_key_id, date, region, service, tuple(names), found["Signature"])


def verify(
    signature: ScopedSignature,
    secret_access_key: str,
    *,
    method: bytes,
    raw_path: bytes,
    raw_query: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    payload_sha256: str,
    timestamp: str,
    now: float,
    max_skew_s: float = 300.0,
    keys: SigningKeys,
) -> None:
    """
    Check that a request was signed with a secret, and just now.

    ``Host`` (or HTTP/2's ``:authority``, if it is among the headers) and
    ``X-Amz-Date`` must be signed, and so must every ``X-Amz-*`` header and a
    ``Content-Type`` that are present. The caller compares the scope's region and
    service with those of the route, and routes as Note [Slashes] says.

    :param raw_path: exactly as received; so is ``raw_query``.
    :param headers: all, as received.
    :param payload_sha256: of the body as received, hexadecimal; or the literal
        that ``X-Amz-Content-SHA256`` must hold where the service allows one.
    :param timestamp: the ``X-Amz-Date`` received.
    :param now: POSIX seconds.
    :raises BadSignature: if it was not; ``code`` is AWS's.
    """
    fields = _fold(headers)
    names = signature.signed_headers
    signed = set(names)

    # What must be signed
    hosts = [name for name in ("host", ":authority") if name in fields]
    signed_hosts = [name for name in hosts if name in signed]
    if not signed_hosts or any(fields[name] != fields[signed_hosts[0]] for name in hosts):
        raise BadSignature(
            "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization."
        )
    if "x-amz-date" not in fields:
        raise _incomplete("Authorization header requires existence of a 'X-Amz-Date' header.")
    for name in fields:
        # Not content-type: some signers leave it out (aws4fetch), and AWS takes that.
        if name not in signed and name.startswith("x-amz-"):
            raise BadSignature(f"'{name}' must be a 'SignedHeader' in the AWS Authorization.")
    for name in names:
        if name not in fields:
            raise BadSignature(f"'{name}' is a 'SignedHeader' but not in the request.")

    # When it was signed
    signed_at = _posix(timestamp)
    if signed_at is None or fields["x-amz-date"] != timestamp:
        raise _incomplete(
            "Date must be in ISO-8601 'basic format', as in 20261122T174500Z, in 'X-Amz-Date'."
        )
    if signature.date != timestamp[:8]:
        raise BadSignature(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date"
            f" from HTTP: '{signature.date}' != '{timestamp[:8]}', from '{timestamp}'."
        )
    minutes = f"{max_skew_s / 60:g}"
    if signed_at < now - max_skew_s:
        raise BadSignature(
            f"Signature expired: {timestamp} is now earlier than {amz_date(now - max_skew_s)}"
            f" ({amz_date(now)} - {minutes} min.)"
        )
    if signed_at > now + max_skew_s:
        raise BadSignature(
            f"Signature not yet current: {timestamp} is still later than"
            f" {amz_date(now + max_skew_s)} ({amz_date(now)} + {minutes} min.)"
        )

    # What was signed
    try:
        path = canonical_path(raw_path)
    except BadPath as error:
        raise BadSignature(f"The request cannot be verified: {error}.") from None
    expected = _signature(
        keys.scope(secret_access_key, timestamp[:8], signature.region, signature.service),
        method,
        path,
        canonical_query(raw_query),
        [f"{_lines(fields, names)}\n{';'.join(names)}\n".encode()],
        payload_sha256,
        timestamp.encode(),
    )
    content_sha256 = fields.get("x-amz-content-sha256", payload_sha256)
    if (
        not compare_digest(expected, signature.signature)
        or content_sha256 != payload_sha256
        or not secret_access_key  # anyone could sign with none
    ):
        raise Mismatch(
            "The request signature we calculated does not match the signature you provided."
            " Check your AWS Secret Access Key and signing method. Consult the service"
            " documentation for details."
        )


# Dates


@lru_cache(maxsize=8)
def _amz_date(second: int) -> str:
    return strftime("%Y%m%dT%H%M%SZ", gmtime(second))


def amz_date(now: float) -> str:
    """
    A time as ``X-Amz-Date`` wants it, as in ``20261122T174500Z``.

    :param now: POSIX seconds; fractions are dropped.
    """
    return _amz_date(floor(now))


def _posix(timestamp: str) -> float | None:
    if not _TIMESTAMP.match(timestamp):
        return None
    t = timestamp
    try:
        return datetime(
            int(t[:4]), int(t[4:6]), int(t[6:8]), int(t[9:11]), int(t[11:13]), int(t[13:15]),
            tzinfo=UTC,
        ).timestamp()  # fmt: skip
    except ValueError:
        return None


_HTTP_DATE = re.compile(
    rb"\s*[A-Z][a-z]{2}, ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4})"
    rb" ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT\s*\Z"
)
_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


def clock_offset(now: float, date_header: bytes) -> float | None:
    """
    How far a server's clock is ahead of ours.

    :param now: our clock, POSIX seconds.
    :param date_header: the value of its ``Date`` header, as in
        ``Sun, 22 Nov 2026 17:45:00 GMT`` (whole seconds, so as exact as that).
    :returns: the seconds to add to our clock, or None if it cannot be read.
    """
    match = _HTTP_DATE.match(date_header)
    if match is None:
        return None
    day, month, year, hour, minute, second = match.groups()
    try:
        theirs = datetime(
            int(year), _MONTHS.index(month) + 1, int(day), int(hour), int(minute), int(second),
            tzinfo=UTC,
        )  # fmt: skip
    except ValueError:
        return None
    return theirs.timestamp() - now
