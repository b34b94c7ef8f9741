"""
Who a request is for, as AWS is told of it: where an operator wants that.

AWS's own bills and invocation logs know only the gateway's credentials. Names of
keys, teams and end users can go along in two ways: as request metadata, which
Bedrock writes into its invocation logs, and as tags and name of a role's session,
by which CloudTrail and cost allocation tell requests apart.

What a client says of itself in the same places never replaces what is said here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from txbedrock.core.headers import HeaderList
from txbedrock.errors import InvalidRequest

__all__ = [
    "IDENTITY_FIELDS",
    "METADATA_HEADER",
    "Identity",
    "body_with_metadata",
    "headers_with_metadata",
    "metadata_goes_in",
    "session_name",
]

METADATA_HEADER = b"X-Amzn-Bedrock-Request-Metadata"

IDENTITY_FIELDS = ("key_alias", "user_id", "team_id", "end_user")
"""What can be told, by the names under which it is."""

_IN_BODY = frozenset(("Converse", "ConverseStream"))
_IN_HEADER = frozenset(("InvokeModel", "InvokeModelWithResponseStream"))

# Bedrock's limits for request metadata.
_MAX_PAIRS = 16
_MAX_CHARS = 256
_NOT_METADATA = re.compile(r"[^a-zA-Z0-9\s:_@$#=/+,\-.]")

# STS's for the tags of a session and for its name.
_NOT_TAG = re.compile(r"[^\w\s.:/=+\-@]")
_NOT_NAME = re.compile(r"[^A-Za-z0-9_+=,.@-]")
_MAX_NAME = 64

_MEMBER = "requestMetadata"
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Told(msgspec.Struct):
    requestMetadata: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_told = msgspec.json.Decoder(_Told).decode
_OPENING = re.compile(rb"\s*\{\s*")


class Identity(NamedTuple):
    """Names; empty where there is none."""

    key_alias: str = ""
    user_id: str = ""
    team_id: str = ""
    end_user: str = ""

    def metadata(self, names: Iterable[str]) -> dict[str, str]:
        """Some of it, as Bedrock takes it; what is empty is left out."""
        return self._some(names, _NOT_METADATA)

    def tags(self, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
        """Some of it, as STS takes it for the tags of a session."""
        return tuple(self._some(names, _NOT_TAG).items())

    def _some(self, names: Iterable[str], unwanted: re.Pattern[str]) -> dict[str, str]:
        said = {name: getattr(self, name) for name in names}
        return {
            name: unwanted.sub("_", value)[:_MAX_CHARS] for name, value in said.items() if value
        }


def session_name(tags: Iterable[tuple[str, str]]) -> str:
    """A name for the session of a role, such as ``txbedrock-ci@team-7``."""
    name = _NOT_NAME.sub("_", "@".join(value for _, value in tags))
    return f"txbedrock-{name}"[:_MAX_NAME]


def metadata_goes_in(operation: str) -> str:
    """Where an operation of bedrock-runtime takes metadata: ``body``, ``header``, or nowhere."""
    if operation in _IN_BODY:
        return "body"
    return "header" if operation in _IN_HEADER else ""


def headers_with_metadata(headers: HeaderList, ours: Mapping[str, str]) -> HeaderList:
    """
    The headers of InvokeModel, with one that holds the client's metadata and ours.

    :raises InvalidRequest: the client's is not readable.
    """
    name = METADATA_HEADER.lower()
    theirs: dict[str, Any] = {}
    rest: HeaderList = []
    for pair in headers:
        if pair[0].lower() != name:
            rest.append(pair)
            continue
        try:
            said = json.loads(pair[1])
        except (ValueError, RecursionError):
            said = ""
        theirs.update(_checked(said, METADATA_HEADER.decode()))
    merged = json.dumps(_merged(theirs, ours), separators=(",", ":"))
    return [*rest, (METADATA_HEADER, merged.encode())]


def body_with_metadata(body: bytes, ours: Mapping[str, str]) -> bytes:
    """
    The body of Converse, with the client's metadata and ours.

    Every other value in it stays as it is, byte for byte; a body that is no JSON
    object is Bedrock's to refuse and stays as it is altogether.

    :raises InvalidRequest: the client's metadata is no object of texts.
    """
    try:
        told = _decode_told(body).requestMetadata
        members = {} if told is msgspec.UNSET else _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    if told is msgspec.UNSET:
        # Nobody wrote it with escapes either: the names are decoded.
        opening = _OPENING.match(body)
        assert opening is not None
        rest = body[opening.end() :]
        member = b'"%b":%b' % (_MEMBER.encode(), msgspec.json.encode(_merged({}, ours)))
        return b"{%b%b%b" % (member, b"" if rest.startswith(b"}") else b",", rest)
    said = msgspec.json.decode(told)
    theirs = {} if said is None else _checked(said, _MEMBER)
    members[_MEMBER] = msgspec.Raw(msgspec.json.encode(_merged(theirs, ours)))
    return msgspec.json.encode(members)


def _checked(said: object, where: str) -> dict[str, Any]:
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise InvalidRequest(f"{where} must be a JSON object of texts.")
    return said


def _merged(theirs: Mapping[str, Any], ours: Mapping[str, str]) -> dict[str, Any]:
    """Ours, and of theirs what there is room for: Bedrock takes sixteen pairs."""
    rest = [(name, value) for name, value in theirs.items() if name not in ours]
    return {**dict(rest[: _MAX_PAIRS - len(ours)]), **ours}
