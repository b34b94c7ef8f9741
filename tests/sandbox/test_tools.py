"""
The sandbox calls tools when a request says so, in each family's own shape.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.sandbox.test_models import ask, chunks
from txbedrock.core.eventstream import Decoder
from txbedrock.sandbox.models import count
from txbedrock.sandbox.tools import example, tool_of

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["celsius", "kelvin"]},
        "days": {"type": "integer", "minimum": 2},
        "unneeded": {"type": "string"},
    },
    "required": ["city", "unit", "days"],
}
INPUT = {"city": "sandbox", "unit": "celsius", "days": 2}
ASKED = "Please call get_weather, then tell."

CONVERSE_TOOLS = [
    {"toolSpec": {"name": "other", "inputSchema": {"json": {"type": "object"}}}},
    {"toolSpec": {"name": "get_weather", "inputSchema": {"json": SCHEMA}}},
]
ANTHROPIC_TOOLS = [
    {"name": "other", "input_schema": {"type": "object"}},
    {"name": "get_weather", "input_schema": SCHEMA},
]
OPENAI_TOOLS = [
    {"type": "function", "function": {"name": "other"}},
    {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}},
]


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def converse_said(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"text": text}]}]


class ToolOfTests(SynchronousTestCase):
    """Which tool is called."""

    def test_choice(self) -> None:
        """A choice that forces a tool is obeyed; one that allows leaves it to the text."""
        shapes: list[tuple[dict[str, Any], list[tuple[Any, str | None]]]] = [
            (
                {"toolConfig": {"tools": CONVERSE_TOOLS}, "messages": converse_said("Hello")},
                [
                    ({"any": {}}, "other"),
                    ({"tool": {"name": "get_weather"}}, "get_weather"),
                    ({"tool": {"name": "nobody"}}, None),
                    ({"auto": {}}, None),
                ],
            ),
            (
                {"tools": ANTHROPIC_TOOLS, "messages": said("Hello")},
                [
                    ({"type": "any"}, "other"),
                    ({"type": "tool", "name": "get_weather"}, "get_weather"),
                    ({"type": "auto", "disable_parallel_tool_use": True}, None),
                    ({"type": "none"}, None),
                ],
            ),
            (
                {"tools": OPENAI_TOOLS, "messages": said("Hello")},
                [
                    ("required", "other"),
                    ({"type": "function", "function": {"name": "get_weather"}}, "get_weather"),
                    ("auto", None),
                    ("none", None),
                ],
            ),
        ]
        for body, choices in shapes:
            for choice, name in choices:
                if "toolConfig" in body:
                    asked = {**body, "toolConfig": {**body["toolConfig"], "toolChoice": choice}}
                else:
                    asked = {**body, "tool_choice": choice}
                tool = tool_of(asked)
                self.assertEqual(None if tool is None else tool.name, name, choice)

    def test_used(self) -> None:
        """If any tool is forced, one that was used already is not used again, unless asked for."""
        used = [{"toolUse": {"toolUseId": "1", "name": "other", "input": {}}}]
        history = [*converse_said("Hello"), {"role": "assistant", "content": used}]
        config = {"tools": CONVERSE_TOOLS, "toolChoice": {"any": {}}}
        for last, name in (("Go on", "get_weather"), ("Now call other again", "other")):
            tool = tool_of({"messages": history + converse_said(last), "toolConfig": config})
            self.assertEqual(tool and tool.name, name)
        calls = [{"id": "1", "type": "function", "function": {"name": "other"}}]
        messages = [{"role": "assistant", "content": None, "tool_calls": calls}, *said("Go on")]
        tool = tool_of({"messages": messages, "tools": OPENAI_TOOLS, "tool_choice": "required"})
        self.assertEqual(tool and tool.name, "get_weather")

    def test_text(self) -> None:
        """``call NAME`` in the last message calls it; in a tool's result it does not."""
        result = [{"toolResult": {"toolUseId": "1", "content": [{"text": ASKED}]}}]
        cases: list[tuple[dict[str, Any], str | None]] = [
            ({"messages": converse_said(ASKED)}, "get_weather"),
            ({"messages": converse_said("What would get_weather say?")}, None),
            ({"messages": [*converse_said(ASKED), *converse_said("Hello")]}, None),
            ({"messages": [*said(ASKED), {"role": "system", "content": "Hello"}]}, "get_weather"),
            ({"messages": [{"role": "user", "content": result}]}, None),
            ({"messages": []}, None),
            ({}, None),
        ]
        for body, name in cases:
            tool = tool_of({**body, "toolConfig": {"tools": CONVERSE_TOOLS}})
            self.assertEqual(None if tool is None else tool.name, name, body)
        openai = {"tools": OPENAI_TOOLS, "messages": [{"role": "tool", "content": ASKED}]}
        self.assertIsNone(tool_of(openai))
        forbidden = {"tools": OPENAI_TOOLS, "messages": said(ASKED), "tool_choice": "none"}
        self.assertIsNone(tool_of(forbidden))


class ExampleTests(SynchronousTestCase):
    """Values that fit a JSON Schema."""

    def test_kinds(self) -> None:
        cases: list[tuple[dict[str, Any], Any]] = [
            (SCHEMA, INPUT),
            ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [True, True]),
            ({"type": "array", "items": {"type": ["string", "null"]}}, ["sandbox"]),
            ({"anyOf": [{"type": "null"}, {"type": "string"}]}, "sandbox"),
            ({"type": "integer", "default": 12}, 12),
            ({"const": 7}, 7),
            ({"type": "number", "maximum": 0.5}, 0.5),
            ({"type": "string", "format": "date"}, "2026-01-02"),
            ({"type": "integer", "exclusiveMinimum": 4}, 5),
            ({"allOf": [SCHEMA, {"required": ["unneeded"]}]}, {**INPUT, "unneeded": "sandbox"}),
            ({"properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"a": 1}),
            (
                {"$ref": "#/$defs/Pair", "$defs": {"Pair": {"type": "array", "items": SCHEMA}}},
                [INPUT],
            ),
        ]
        for schema, value in cases:
            self.assertEqual(example(schema), value, schema)

    def test_ends(self) -> None:
        """A schema inside itself comes to an end."""
        tree: dict[str, Any] = {
            "type": "object",
            "properties": {"trees": {"type": "array", "items": {"$ref": "#"}}},
            "required": ["trees"],
        }
        self.assertIn("trees", example(tree)["trees"][0])


class AnswerTests(SynchronousTestCase):
    """A called tool, whole and as a stream; usage counts the words of its input."""

    words = count(json.dumps(INPUT))

    def test_converse(self) -> None:
        body = {"toolConfig": {"tools": CONVERSE_TOOLS}, "messages": converse_said(ASKED)}
        document = json.loads(ask("Converse", "any", body).pieces[0])
        self.assertEqual(document["stopReason"], "tool_use")
        self.assertEqual(document["usage"]["outputTokens"], self.words)
        (block,) = document["output"]["message"]["content"]
        used = block["toolUse"]
        self.assertEqual((used["name"], used["input"]), ("get_weather", INPUT))

        frames = Decoder().feed(b"".join(ask("ConverseStream", "any", body).pieces))
        types = [frame.headers[":event-type"] for frame in frames]
        self.assertEqual(types[:2], ["messageStart", "contentBlockStart"])
        self.assertEqual(types[-3:], ["contentBlockStop", "messageStop", "metadata"])
        events = [json.loads(frame.payload) for frame in frames]
        del used["input"]
        self.assertEqual(events[1]["start"], {"toolUse": used})
        deltas = [event["delta"]["toolUse"]["input"] for event in events[2:-3]]
        self.assertEqual(len(deltas), self.words)
        self.assertEqual(json.loads("".join(deltas)), INPUT)
        self.assertEqual(events[-2]["stopReason"], "tool_use")
        self.assertEqual(events[-1]["usage"], document["usage"])

    def test_anthropic(self) -> None:
        body = {"tools": ANTHROPIC_TOOLS, "messages": said(ASKED), "max_tokens": 9}
        model = "anthropic.claude-x"
        document = json.loads(ask("InvokeModel", model, body).pieces[0])
        self.assertEqual(document["stop_reason"], "tool_use")
        (block,) = document["content"]
        self.assertEqual(
            (block["type"], block["name"], block["input"]), ("tool_use", "get_weather", INPUT)
        )
        self.assertEqual(document["usage"]["output_tokens"], self.words)

        events = chunks(ask("InvokeModelWithResponseStream", model, body))
        self.assertEqual(events[1]["content_block"], {**block, "input": {}})
        deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
        self.assertEqual({delta["type"] for delta in deltas}, {"input_json_delta"})
        self.assertEqual(json.loads("".join(delta["partial_json"] for delta in deltas)), INPUT)
        self.assertEqual(events[-2]["delta"]["stop_reason"], "tool_use")

    def test_openai(self) -> None:
        body = {"tools": OPENAI_TOOLS, "messages": said(ASKED)}
        model = "openai.gpt-oss-20b-1:0"
        document = json.loads(ask("InvokeModel", model, body).pieces[0])
        (choice,) = document["choices"]
        self.assertEqual(choice["finish_reason"], "tool_calls")
        (called,) = choice["message"]["tool_calls"]
        self.assertEqual(called["function"]["name"], "get_weather")
        self.assertEqual(json.loads(called["function"]["arguments"]), INPUT)

        events = chunks(ask("InvokeModelWithResponseStream", model, body))
        deltas = [
            choice["delta"]["tool_calls"][0]
            for event in events
            for choice in event["choices"]
            if "tool_calls" in choice["delta"]
        ]
        self.assertEqual(deltas[0]["id"], called["id"])
        self.assertEqual(deltas[0]["function"], {"name": "get_weather", "arguments": ""})
        text = "".join(delta["function"]["arguments"] for delta in deltas)
        self.assertEqual(text, called["function"]["arguments"])
