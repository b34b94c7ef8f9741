"""
An error -> the bytes that tell a client of it, in the shape its SDK reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum

from txbedrock.core.headers import HeaderList
from txbedrock.errors import ProxyError, UnrecognizedKey

__all__ = ["ErrorShape", "Reply", "render", "shape_of"]


class ErrorShape(Enum):
    """Whose clients read the error."""

    AWS = "aws"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    LITELLM = "litellm"
    """LiteLLM's, of its management API."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer of the gateway's own."""

    status: int
    headers: HeaderList
    body: bytes


_OPENAI_TYPES = {
    400: "invalid_request_error",
    403: "authentication_error",
    404: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}

_LITELLM_TYPES = {
    401: "auth_error",
    403: "auth_error",
    404: "not_found_error",
    405: "not_found_error",
    500: "internal_server_error",
    503: "service_unavailable",
}


def shape_of(raw_path: bytes) -> ErrorShape:
    """
    The shape for a path below the gateway's prefix.

    :param raw_path: as sent, percent-encoded.
    """
    if raw_path.startswith(b"/openai/"):
        return ErrorShape.OPENAI
    if raw_path.startswith(b"/anthropic/"):
        return ErrorShape.ANTHROPIC
    return ErrorShape.AWS


def render(error: ProxyError, request_id: str, shape: ErrorShape = ErrorShape.AWS) -> Reply:
    """
    A refusal as an answer.

    AWS's shape is the status, ``x-amzn-ErrorType`` and ``{"message": ...}``;
    the others put an object of their own around it and keep the headers.
    """
    payload: dict[str, object]
    status = error.status
    if shape is ErrorShape.OPENAI:
        kind = _OPENAI_TYPES.get(error.status, "server_error")
        payload = {
            "error": {"message": error.message, "type": kind, "param": None, "code": error.code}
        }
    elif shape is ErrorShape.ANTHROPIC:
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error")
        payload = {
            "type": "error",
            "error": {"type": kind, "message": error.message},
            "request_id": request_id,
        }
    elif shape is ErrorShape.LITELLM:
        # Nobody's key is 401 there; what is forbidden to a known one is 403.
        status = 401 if isinstance(error, UnrecognizedKey) else status
        kind = _LITELLM_TYPES.get(status, "bad_request_error")
        payload = {
            "error": {"message": error.message, "type": kind, "param": None, "code": str(status)}
        }
    else:
        payload = {"message": error.message}
    body = json.dumps(payload).encode()
    headers: HeaderList = [
        (b"Content-Type", b"application/json"),
        (b"x-amzn-ErrorType", error.code.encode()),
        (b"x-amzn-RequestId", request_id.encode()),
        *error.headers,
    ]
    return Reply(status, headers, body)
