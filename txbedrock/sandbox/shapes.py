"""
Data that fits a service model: what the sandbox answers where it does not know better.

Everything is a function of the model alone, so it is made once and kept.

Note [What is filled in]
------------------------
Required and optional members alike; lists and maps get one entry, unions one
member. A shape inside itself ends: the optional member is left out, the list is
empty. Strings satisfy enum, length and pattern where a pattern can be read
(Java's ``\\p{L}`` is translated); otherwise they are plausible.

A ``nextToken`` is there on the first page and not on the second, or an SDK's
paginator would never end.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from re import _parser as _sre  # type: ignore[attr-defined]
from typing import Any

from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel, Shape

from txbedrock.core.eventstream import encode

__all__ = ["Models", "Template", "example_string", "pattern_of"]

Header = tuple[bytes, bytes]

_TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

SENTENCE = "This comes from the txbedrock sandbox, which is no model."

# Strings


def example_string(
    pattern: str | None, shortest: int = 0, longest: int | None = None, name: str = ""
) -> str:
    """
    A string that fits a pattern and a length, if one can be found.

    :param pattern: a regular expression as service models have them, or None.
    :param name: of the member; gives strings without a pattern a likely look.
    """
    limit = 10_000_000 if longest is None else longest
    hint = _hint(name)
    if pattern is None:
        while len(hint) < shortest:
            hint += "-" + hint
        return hint[:limit]
    try:
        compiled = re.compile(_from_java(pattern))
    except (re.error, OverflowError):
        return (hint * (shortest // len(hint) + 1))[: max(shortest, len(hint))][:limit]
    found = None
    for candidate in _candidates(hint, compiled):
        if not shortest <= len(candidate) <= limit:
            continue
        if compiled.fullmatch(candidate):
            return candidate
        if found is None and compiled.search(candidate):
            found = candidate
    return hint[:limit] if found is None else found


def pattern_of(shape: Shape) -> str | None:
    """The pattern of a string shape."""
    pattern: str | None = shape.metadata.get("pattern")
    return pattern


def _hint(name: str) -> str:
    lower = name.lower()
    if lower.endswith("arn"):
        return "arn:aws:bedrock:us-east-1:123456789012:sandbox/example"
    if lower.endswith(("uri", "url", "endpoint")):
        return "https://sandbox.example/"
    if "contenttype" in lower or "mimetype" in lower:
        return "application/json"
    if "text" in lower or "message" in lower or "description" in lower:
        return SENTENCE
    if "version" in lower:
        return "1"
    return "sandbox"


_JAVA_CLASSES = {
    "L": "a-zA-Z",
    "M": "",
    "N": "0-9",
    "P": "!-/",
    "S": "+",
    "Z": " ",
    "C": "\\x00-\\x1f",
}


def _from_java(pattern: str) -> str:
    """``\\p{L}`` and its like, which Python's ``re`` does not know, as ASCII ranges."""
    out: list[str] = []
    in_class = False
    position = 0
    while position < len(pattern):
        char = pattern[position]
        if char == "\\":
            match = re.match(r"\\([pP])\{(\w)\w*\}", pattern[position:])
            if match and match[2] in _JAVA_CLASSES:
                ranges = _JAVA_CLASSES[match[2]]
                if in_class:
                    out.append(ranges)
                else:
                    out.append(f"[{'^' if match[1] == 'P' else ''}{ranges}]")
                position += match.end()
                continue
            out.append(pattern[position : position + 2])
            position += 2
            continue
        if char == "[" and not in_class:
            in_class = True
        elif char == "]" and in_class:
            in_class = False
        out.append(char)
        position += 1
    return "".join(out)


def _candidates(hint: str, compiled: re.Pattern[str]) -> Iterator[str]:
    yield hint
    yield "sandbox"
    parsed = _sre.parse(compiled.pattern)
    for branch in (0, 1, 2):
        for times in (1, 0, 2, 4, 8, 10, 16, 32, 33, 36, 64, 128, 256, 1024):
            try:
                yield _fits(parsed, times, branch, {})
            except _Unreadable:
                break


class _Unreadable(Exception):
    """A construct of regular expressions that nothing is made for."""


def _fits(parsed: Any, times: int, branch: int, groups: dict[int, str]) -> str:
    """
    A string for a parsed expression.

    :param times: how often something that may repeat does, within its bounds.
    :param branch: which alternative is taken.
    """
    out: list[str] = []
    for operation, argument in parsed:
        kind = str(operation)
        if kind == "LITERAL":
            out.append(chr(argument))
        elif kind == "NOT_LITERAL":
            out.append("b" if argument == ord("a") else "a")
        elif kind == "ANY":
            out.append("a")
        elif kind == "IN":
            out.append(_one_of(argument))
        elif kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            low, high, inner = argument
            count = min(max(low, times), int(high))
            out.append(_fits(inner, times, branch, groups) * count)
        elif kind == "BRANCH":
            choices = argument[1]
            out.append(_fits(choices[branch % len(choices)], times, branch, groups))
        elif kind == "SUBPATTERN":
            text = _fits(argument[3], times, branch, groups)
            if argument[0] is not None:
                groups[argument[0]] = text
            out.append(text)
        elif kind == "GROUPREF":
            out.append(groups.get(argument, ""))
        elif kind in ("AT", "ASSERT", "ASSERT_NOT"):
            continue  # checked afterwards, by matching
        else:
            raise _Unreadable(kind)
    return "".join(out)


def _one_of(members: Any) -> str:
    for char in "a1A0-_ .:/":
        if _is_member(members, ord(char)):
            return char
    for code in range(33, 0x250):
        if _is_member(members, code):
            return chr(code)
    raise _Unreadable("IN")


_CATEGORIES = {
    "CATEGORY_DIGIT": str.isdigit,
    "CATEGORY_NOT_DIGIT": lambda char: not char.isdigit(),
    "CATEGORY_WORD": lambda char: char.isalnum() or char == "_",
    "CATEGORY_NOT_WORD": lambda char: not (char.isalnum() or char == "_"),
    "CATEGORY_SPACE": str.isspace,
    "CATEGORY_NOT_SPACE": lambda char: not char.isspace(),
}


def _is_member(members: Any, code: int) -> bool:
    negated = False
    inside = False
    for operation, argument in members:
        kind = str(operation)
        if kind == "NEGATE":
            negated = True
        elif kind == "LITERAL":
            inside |= code == argument
        elif kind == "RANGE":
            inside |= argument[0] <= code <= argument[1]
        elif kind == "CATEGORY":
            inside |= bool(_CATEGORIES[str(argument)](chr(code)))
    return inside != negated


# Values

_SETTLED = (
    "ACTIVE", "Active", "READY", "COMPLETED", "Completed", "AVAILABLE", "SUCCEEDED", "Success",
    "SUCCESS", "PREPARED", "Prepared", "CREATED", "InService", "COMPLETE", "application/json",
)  # fmt: skip
"""Values of an enum that end a wait; taken before the first one."""

_TELLING = {
    # So that an agent's trace holds what is metered.
    "FlowTrace": "nodeDependencyTrace",
    "Trace": "orchestrationTrace",
    "OrchestrationTrace": "modelInvocationOutput",
    "ContentBlock": "text",
}
"""Members of unions that are taken before the first one, by the shape's name."""


_NUMBERS = {"inputTokens": 120, "outputTokens": 34, "totalTokens": 154, "statusCode": 200}
"""Integers that are not 1, by the member's name."""


class _Stop(Exception):
    """The shape is inside itself."""


def _value(shape: Shape, name: str, inside: tuple[str, ...], first_page: bool) -> Any:
    """
    JSON for a shape.

    :param name: of the member that holds it.
    :param inside: names of the structures around it.
    :raises _Stop: where it would not end.
    """
    kind = shape.type_name
    limits = shape.metadata
    if kind == "structure":
        return _structure(shape, inside, first_page)
    if kind == "list":
        try:
            one = _value(shape.member, name.removesuffix("s"), inside, first_page)
        except _Stop:
            if limits.get("min", 0):
                raise
            return []
        return [one] * max(1, limits.get("min", 0))
    if kind == "map":
        try:
            value = _value(shape.value, name, inside, first_page)
        except _Stop:
            return {}
        return {_value(shape.key, "key", inside, first_page): value}
    if kind == "string":
        return _text(shape, name)
    if kind == "timestamp":
        return timestamp(shape.serialization.get("timestampFormat", "unixTimestamp"))
    if kind == "blob":
        return base64.b64encode(SENTENCE.encode()).decode()
    if kind == "boolean":
        return True
    if kind in ("float", "double"):
        return float(max(limits.get("min", 0.5), min(0.5, limits.get("max", 0.5))))
    number = _NUMBERS.get(name, 1)
    return int(max(limits.get("min", number), min(number, limits.get("max", number))))


def _text(shape: Shape, name: str) -> str:
    values = shape.metadata.get("enum")
    if values:
        return next((value for value in _SETTLED if value in values), values[0])
    return example_string(
        pattern_of(shape), shape.metadata.get("min", 0), shape.metadata.get("max"), name
    )


def timestamp(form: str) -> Any:
    """The sandbox's date in one of Smithy's three formats."""
    if form == "iso8601":
        return _TIME.strftime("%Y-%m-%dT%H:%M:%SZ")
    if form == "rfc822":
        return format_datetime(_TIME, usegmt=True)
    return int(_TIME.timestamp())


def _structure(
    shape: Shape, inside: tuple[str, ...], first_page: bool, skip: frozenset[str] = frozenset()
) -> Any:
    if getattr(shape, "is_document_type", False):
        return {"sandbox": True}
    if shape.name in inside:
        raise _Stop
    deeper = (*inside, shape.name)
    members = [
        (name, member)
        for name, member in shape.members.items()
        if name not in skip and "location" not in member.serialization
    ]
    if getattr(shape, "is_tagged_union", False):
        told = _TELLING.get(shape.name)
        members.sort(key=lambda pair: pair[0] != told)
        for name, member in members:
            try:
                return {_key(name, member): _value(member, name, deeper, first_page)}
            except _Stop:
                continue
        raise _Stop
    out: dict[str, Any] = {}
    for name, member in members:
        if name.lower() == "nexttoken" and not first_page:
            continue
        try:
            out[_key(name, member)] = _value(member, name, deeper, first_page)
        except _Stop:
            if name in shape.required_members:
                raise
    return out


def _key(name: str, member: Shape) -> str:
    key: str = member.serialization.get("name", name)
    return key


# Answers


@dataclass(frozen=True, slots=True)
class Template:
    """
    What an operation answers, but for what differs from request to request.
    """

    status: int
    headers: tuple[Header, ...]
    body: bytes
    """Empty when there are :attr:`events`."""

    events: tuple[bytes, ...] | None
    """Frames, one for each event type that is no exception."""

    input_tokens: int
    """Sum of what its ``modelInvocationOutput`` traces say; so is the next."""

    output_tokens: int


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class Models:
    """
    botocore's service models, read when they are first needed, and what was
    made from them.
    """

    def __init__(self) -> None:
        self._loader = Loader(
            extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False
        )
        self._services: dict[str, ServiceModel] = {}
        self._templates: dict[tuple[str, str, bool], Template] = {}

    def service(self, name: str) -> ServiceModel:
        """A service's model."""
        model = self._services.get(name)
        if model is None:
            description = self._loader.load_service_model(name, "service-2")
            model = self._services[name] = ServiceModel(description, name)
        return model

    def template(self, service: str, operation: str, first_page: bool = True) -> Template:
        """
        The answer of an operation.

        :param first_page: whether a ``nextToken`` may be in it.
        """
        key = (service, operation, first_page)
        template = self._templates.get(key)
        if template is None:
            model = self.service(service)
            template = _template(model, model.operation_model(operation), first_page)
            self._templates[key] = template
        return template


def _template(service: ServiceModel, operation: OperationModel, first_page: bool) -> Template:
    status = operation.http.get("responseCode", 200)
    output = operation.output_shape
    is_json_rpc = service.metadata["protocol"] == "json"
    content_type = b"application/x-amz-json-1.1" if is_json_rpc else b"application/json"
    if output is None:
        empty = b"" if status == 204 else b"{}"
        return Template(status, ((b"Content-Type", content_type),), empty, None, 0, 0)

    headers: list[Header] = []
    for name, member in output.members.items():
        place = member.serialization.get("location")
        if place == "header":
            header = member.serialization.get("name", name).encode()
            if header.lower() != b"content-type":
                headers.append((header, _header_value(member, name)))

    stream = output.event_stream_name
    if stream is not None:
        headers.append((b"Content-Type", b"application/vnd.amazon.eventstream"))
        frames, payloads = _events(output.members[stream], first_page)
        taken, given = _traced(payloads)
        return Template(status, tuple(headers), b"", frames, taken, given)

    payload = output.serialization.get("payload")
    if payload is not None:
        shape = output.members[payload]
        if shape.type_name == "blob":
            body = _dump({"result": SENTENCE})
        elif shape.type_name == "string":
            body = _text(shape, payload).encode()
        else:
            body = _dump(_value(shape, payload, (), first_page))
    elif status == 204:
        body = b""
    else:
        body = _dump(_structure(output, (), first_page))
    headers.append((b"Content-Type", content_type))
    return Template(status, tuple(headers), body, None, 0, 0)


def _header_value(shape: Shape, name: str) -> bytes:
    if shape.type_name == "timestamp":
        return str(timestamp(shape.serialization.get("timestampFormat", "rfc822"))).encode()
    value = _value(shape, name, (), True)
    if shape.serialization.get("jsonvalue"):
        return base64.b64encode(_dump(value))
    return value.encode() if isinstance(value, str) else _dump(value)


def _events(stream: Shape, first_page: bool) -> tuple[tuple[bytes, ...], list[Any]]:
    """One frame for each event that is no exception, and the JSON in them."""
    frames: list[bytes] = []
    payloads: list[Any] = []
    for event_type, shape in stream.members.items():
        if shape.metadata.get("exception"):
            continue
        headers = {":message-type": "event", ":event-type": event_type}
        apart: set[str] = set()
        body: bytes | None = None
        for name, member in shape.members.items():
            if member.serialization.get("eventheader"):
                apart.add(name)
                headers[name] = _header_value(member, name).decode()
            elif member.serialization.get("eventpayload"):
                apart.add(name)
                if member.type_name == "blob":
                    headers[":content-type"] = "application/octet-stream"
                    body = SENTENCE.encode()
                elif member.type_name == "string":
                    headers[":content-type"] = "text/plain"
                    body = _text(member, name).encode()
                else:
                    headers[":content-type"] = "application/json"
                    body = _dump(_value(member, name, (), first_page))
        if body is None:
            headers[":content-type"] = "application/json"
            value = _structure(shape, (), first_page, frozenset(apart))
            payloads.append(value)
            body = _dump(value)
        frames.append(encode(headers, body))
    return tuple(frames), payloads


def _traced(value: Any) -> tuple[int, int]:
    """Input and output tokens of every ``modelInvocationOutput`` in a value."""
    taken = given = 0
    if isinstance(value, dict):
        for name, member in value.items():
            if name == "modelInvocationOutput":
                usage = member.get("metadata", {}).get("usage", {})
                taken += usage.get("inputTokens", 0)
                given += usage.get("outputTokens", 0)
            else:
                inner = _traced(member)
                taken, given = taken + inner[0], given + inner[1]
    elif isinstance(value, list):
        for member in value:
            inner = _traced(member)
            taken, given = taken + inner[0], given + inner[1]
    return taken, given
