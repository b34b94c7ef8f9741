"""
Which tool the sandbox uses, and with what input.

There is no model to decide, so the request does, in any of the three shapes it may have
(Converse, Anthropic's messages, OpenAI's chat completions). The input is made from the
tool's JSON Schema, and the same each time.

Note [Which tool]
-----------------
A tool that is forced by name is used each time. If any tool is forced, it is the one that
the last message asks for, or else the first that the conversation has not seen used, or
else the first. If the choice is free, only asking helps: ``call get_weather``. A message
that brings a tool's result asks for nothing, so a client's loop over tools ends. Messages
of the role ``system`` are not looked at: Claude Code puts one after the user's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

__all__ = ["Tool", "example", "tool_of"]


@dataclass(frozen=True, slots=True)
class Tool:
    """One that the model is offered."""

    name: str
    schema: Any
    """The JSON Schema of its input."""

    @property
    def input(self) -> Any:
        """An input that fits :attr:`schema`."""
        return example(self.schema)

    @property
    def words(self) -> list[str]:
        """The input's JSON, cut before each space."""
        first, *rest = json.dumps(self.input).split(" ")
        return [first, *[" " + word for word in rest]]


def tool_of(body: dict[str, Any]) -> Tool | None:
    """
    The tool that is used in the answer to a request. See Note [Which tool].

    :param body: of Converse, or in the shape of Anthropic or OpenAI.
    :returns: None for text.
    """
    config = _dict(body.get("toolConfig"))
    tools = [*_tools(config.get("tools")), *_tools(body.get("tools"))]
    choice = config.get("toolChoice", body.get("tool_choice"))
    if not tools or choice == "none" or _dict(choice).get("type") == "none":
        return None
    messages = [_dict(message) for message in _list(body.get("messages"))]
    said = [message for message in messages if message.get("role") != "system"]
    asked = _asked_for(said[-1]) if said else set()
    wanted = [tool for tool in tools if tool.name in asked]
    if _is_forced(choice):
        name = _named(choice)
        if name is not None:
            return next((tool for tool in tools if tool.name == name), None)
        used = set(_used(messages))
        wanted += [tool for tool in tools if tool.name not in used]
        wanted += tools
    return next(iter(wanted), None)


def _tools(value: Any) -> Iterator[Tool]:
    for each in _list(value):
        one = _dict(each)
        one = _dict(one.get("toolSpec") or one.get("function") or one)
        schema = one.get("inputSchema") or one.get("input_schema") or one.get("parameters")
        if isinstance(one.get("name"), str):
            yield Tool(one["name"], _dict(schema).get("json", schema or {"type": "object"}))


def _is_forced(choice: Any) -> bool:
    kinds = {*_dict(choice), str(_dict(choice).get("type"))}
    return choice == "required" or bool(kinds & {"any", "tool", "function"})


def _named(choice: Any) -> str | None:
    """The one tool that is meant, or None for any."""
    one = _dict(choice)
    name: str | None = _dict(one.get("tool") or one.get("function") or one).get("name")
    return name


def _asked_for(message: dict[str, Any]) -> set[str]:
    """What a message wants to be called; nothing, if it brings the result of a tool."""
    content = message.get("content")
    blocks = [_dict(block) for block in _list(content)]
    if message.get("role") == "tool" or any(
        "toolResult" in block or block.get("type") == "tool_result" for block in blocks
    ):
        return set()
    texts = [content, *(block.get("text") for block in blocks)]
    words = " ".join(text for text in texts if isinstance(text, str)).split()
    return {name.strip(".,:;!?`'\"()") for verb, name in pairwise(words) if verb == "call"}


def _used(messages: list[dict[str, Any]]) -> Iterator[str]:
    """The names of the tools that were used."""
    for message in messages:
        for call in _list(message.get("tool_calls")):
            yield str(_dict(_dict(call).get("function")).get("name"))
        for each in _list(message.get("content")):
            block = _dict(each)
            if block.get("type") == "tool_use":
                yield str(block.get("name"))
            elif "toolUse" in block:
                yield str(_dict(block["toolUse"]).get("name"))


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# JSON Schema

_TEXT = "sandbox"
_FORMATS = {
    "date": "2026-01-02",
    "date-time": "2026-01-02T03:04:05Z",
    "time": "03:04:05Z",
    "email": "sandbox@sandbox.example",
    "uri": "https://sandbox.example/",
    "uuid": "01234567-89ab-4cde-8f01-23456789abcd",
}
_DEEPEST = 12


def example(schema: Any, root: Any = None, depth: int = 0) -> Any:
    """
    A value that fits a JSON Schema, as far as clients write them: patterns are not read.

    :param root: the schema that ``$ref`` is looked up in, if it is another one.
    """
    if not isinstance(schema, dict) or depth > _DEEPEST:
        return _TEXT
    root = schema if root is None else root
    if "$ref" in schema:
        return example(_resolved(schema["$ref"], root), root, depth + 1)
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    for name in ("enum", "examples"):
        if isinstance(schema.get(name), list) and schema[name]:
            return schema[name][0]
    for name in ("anyOf", "oneOf"):
        choices = [each for each in schema.get(name) or () if each != {"type": "null"}]
        if choices:
            return example(choices[0], root, depth + 1)
    if schema.get("allOf"):
        return example(_merged(schema["allOf"], root), root, depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((each for each in kind if each != "null"), "null")
    if kind == "object" or (kind is None and "properties" in schema):
        required = schema.get("required")
        members = schema.get("properties") or {}
        wanted = members if required is None else required
        return {name: example(members.get(name), root, depth + 1) for name in wanted}
    if kind == "array":
        return [example(schema.get("items"), root, depth + 1)] * max(1, schema.get("minItems", 1))
    if kind in ("integer", "number"):
        return _number(schema, kind)
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    return _text(schema)


def _resolved(reference: Any, root: Any) -> Any:
    """``#/$defs/NAME`` and its like; None for what is not there."""
    found = root
    for part in str(reference).removeprefix("#").strip("/").split("/"):
        if part:
            found = found.get(part) if isinstance(found, dict) else None
    return found


def _merged(schemas: Any, root: Any) -> dict[str, Any]:
    """All of them at once."""
    whole: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    required: list[str] = []
    for each in schemas:
        schema = _resolved(each["$ref"], root) if "$ref" in each else each
        schema = schema if isinstance(schema, dict) else {}
        whole |= schema
        properties |= schema.get("properties") or {}
        required += schema.get("required") or ()
    return {**whole, "properties": properties, "required": required} if properties else whole


def _number(schema: dict[str, Any], kind: str) -> int | float:
    """1, or the nearest that is allowed."""
    step = 1
    lowest, highest = schema.get("minimum"), schema.get("maximum")
    if lowest is None and "exclusiveMinimum" in schema:
        lowest = schema["exclusiveMinimum"] + step
    if highest is None and "exclusiveMaximum" in schema:
        highest = schema["exclusiveMaximum"] - step
    value: int | float = 1
    if lowest is not None:
        value = max(value, lowest)
    if highest is not None:
        value = min(value, highest)
    return int(value) if kind == "integer" else value


def _text(schema: dict[str, Any]) -> str:
    text = _FORMATS.get(schema.get("format", ""), _TEXT)
    while len(text) < schema.get("minLength", 0):
        text += "-" + text
    longest: int | None = schema.get("maxLength")
    return text[:longest]
