"""
Headers and body of a request -> whom to charge it to, besides its key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from txbedrock.core.headers import HeaderList, first_values

__all__ = ["NOBODY", "Attribution", "attribution"]

# Note [Who the end user is]
# --------------------------
# The first of these that says something:
#
# 1. x-litellm-end-user-id, x-litellm-customer-id
# 2. the header that the configuration names (user_header_name)
# 3. X-Amzn-Bedrock-Request-Metadata, a JSON object (InvokeModel), or
#    requestMetadata in the body (Converse): the member end_user, end_user_id,
#    user_id or user
# 4. metadata.user_id in the body (Anthropic), or safety_identifier or user
#    (OpenAI)
#
# The session is that of Claude Code, of LiteLLM's header, or of the path of
# InvokeAgent. Tags are LiteLLM's, comma-separated.

_END_USER = (b"x-litellm-end-user-id", b"x-litellm-customer-id")
_SESSION = (b"x-litellm-session-id", b"x-claude-code-session-id", b"x-session-id")
_METADATA = b"x-amzn-bedrock-request-metadata"
_TAGS = b"x-litellm-tags"
_MEMBERS = ("end_user", "end_user_id", "user_id", "user")
_AGENT_SESSION = re.compile(rb"/agents/[^/]+/agentAliases/[^/]+/sessions/([^/?]+)")

_WANTED = frozenset((*_END_USER, *_SESSION, _METADATA, _TAGS))

# What a client says is kept for each exchange, so it is short.
_MAX_CHARS = 256
_MAX_TAGS = 32
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]+")

# A body is only looked into when a member with one of these names is in it, and
# it is not huge; a longer one is read sooner than it is searched.
_SEARCHED = 16 * 1024
_HINT = re.compile(rb'"(?:requestMetadata|metadata|user|safety_identifier)"[ \t\r\n]*:').search
_MAX_BODY = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Attribution:
    """As the client says it; printable, short, and nothing that was verified."""

    end_user: str = ""
    tags: tuple[str, ...] = ()
    session_id: str = ""


# No metadata that is valid is longer.
_MAX_SAID = 16 * 1024
_ABSENT = msgspec.Raw(b"null")


class _Body(msgspec.Struct):
    """The members of the bodies of Converse, Anthropic and OpenAI that say who."""

    request_metadata: msgspec.Raw = msgspec.field(default=_ABSENT, name="requestMetadata")
    metadata: msgspec.Raw = _ABSENT
    safety_identifier: msgspec.Raw = _ABSENT
    user: msgspec.Raw = _ABSENT


_decode_body = msgspec.json.Decoder(_Body).decode
_decode = msgspec.json.Decoder().decode


def attribution(
    headers: HeaderList, raw_path: bytes, body: bytes, user_header: bytes | None = None
) -> Attribution:
    """
    Whom to charge. See Note [Who the end user is].

    :param body: of the request, if it is whole and small; else empty.
    :param user_header: lower-case name of a further header that names the end user.
    """
    found = first_values(headers)
    named = not _WANTED.isdisjoint(found) or user_header in found
    hinted = len(body) <= _MAX_BODY and (len(body) > _SEARCHED or _HINT(body) is not None)
    agent = _AGENT_SESSION.match(raw_path) if raw_path.startswith(b"/agents/") else None
    if not (named or hinted or agent):
        return NOBODY  # Nearly always, so it costs little.
    end_user = ""
    for said_in in (*_END_USER, user_header):
        if not end_user and said_in is not None:
            end_user = _clean(found.get(said_in, b""))
    if not end_user and _METADATA in found:
        end_user = _member(_json(found[_METADATA]))
    if not end_user and hinted:
        end_user = _in_body(body)
    session = next((_clean(found[name]) for name in _SESSION if found.get(name)), "")
    if not session and agent is not None:
        session = _clean(agent[1])
    tags = (_clean(part) for part in found.get(_TAGS, b"").split(b","))
    kept = tuple(dict.fromkeys(tag for tag in tags if tag))
    return Attribution(end_user, kept[:_MAX_TAGS], session)


NOBODY = Attribution()
"""The client says nothing."""


def _in_body(body: bytes) -> str:
    try:
        request_metadata, metadata, safety_identifier, user = map(
            _said, msgspec.structs.astuple(_decode_body(body))
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    said = _member(request_metadata)
    if not said and isinstance(metadata, Mapping):
        said = _text(metadata.get("user_id"))
    return said or _text(safety_identifier) or _text(user)


def _said(raw: msgspec.Raw) -> object:
    return _decode(raw) if raw is not _ABSENT and len(raw) <= _MAX_SAID else None


def _member(metadata: object) -> str:
    if not isinstance(metadata, Mapping):
        return ""
    return next((said for name in _MEMBERS if (said := _text(metadata.get(name)))), "")


def _json(value: bytes) -> object:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _text(value: object) -> str:
    return _shorten(value) if isinstance(value, str) else ""


def _clean(value: bytes) -> str:
    return _shorten(value.decode("utf-8", "replace"))


def _shorten(text: str) -> str:
    return _UNPRINTABLE.sub(" ", text).strip()[:_MAX_CHARS]
