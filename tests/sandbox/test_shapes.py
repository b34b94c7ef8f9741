"""
What is made from the service models fits them.
"""

from __future__ import annotations

import json
import re

from twisted.trial.unittest import SynchronousTestCase

from tests.generated import SERVICES
from txbedrock.core.eventstream import Decoder
from txbedrock.sandbox.shapes import Models, _from_java, example_string

models = Models()


class StringTests(SynchronousTestCase):
    """Strings for patterns and lengths."""

    def test_every_pattern(self) -> None:
        """Every pattern of the eight services is satisfied, within the lengths allowed."""
        checked = 0
        for service in SERVICES:
            model = models.service(service)
            for name in model.shape_names:
                shape = model.shape_for(name)
                pattern = shape.metadata.get("pattern")
                if shape.type_name != "string" or not pattern:
                    continue
                shortest = shape.metadata.get("min", 0)
                longest = shape.metadata.get("max", 1 << 30)
                made = example_string(pattern, shortest, longest, name)
                self.assertRegex(made, re.compile(_from_java(pattern)), f"{service} {name}")
                self.assertTrue(shortest <= len(made) <= longest, f"{service} {name}: {made!r}")
                checked += 1
        self.assertGreater(checked, 500)

    def test_lengths_without_pattern(self) -> None:
        """Without a pattern only the length counts."""
        self.assertEqual(len(example_string(None, 300, 300)), 300)
        self.assertEqual(example_string(None, 0, 3), "san")

    def test_unreadable_pattern(self) -> None:
        """A pattern that is none gives something plausible, of a length allowed."""
        self.assertEqual(len(example_string("([", 20, 30)), 20)


class TemplateTests(SynchronousTestCase):
    """Answers of operations."""

    def test_frames(self) -> None:
        """Event streams hold each event type once, no exception, in frames with right CRCs."""
        streams = 0
        for service in SERVICES:
            model = models.service(service)
            for name in model.operation_names:
                operation = model.operation_model(name)
                template = models.template(service, name)
                self.assertEqual(template.events is not None, operation.has_event_stream_output)
                if template.events is None:
                    continue
                streams += 1
                output = operation.output_shape
                events = output.members[output.event_stream_name].members
                expected = [
                    key for key, each in events.items() if not each.metadata.get("exception")
                ]
                frames = Decoder().feed(b"".join(template.events))
                self.assertEqual([frame.headers[":event-type"] for frame in frames], expected)
                self.assertEqual({frame.headers[":message-type"] for frame in frames}, {"event"})
        self.assertGreaterEqual(streams, 12)

    def test_pages_end(self) -> None:
        """The second page of a list has no token for a third."""
        first = json.loads(models.template("bedrock", "ListGuardrails").body)
        second = json.loads(models.template("bedrock", "ListGuardrails", False).body)
        self.assertIn("nextToken", first)
        self.assertNotIn("nextToken", second)

    def test_agents_trace(self) -> None:
        """An agent's trace holds the usage that a meter looks for, and so does a flow's."""
        for name in ("InvokeAgent", "InvokeInlineAgent", "InvokeFlow"):
            template = models.template("bedrock-agent-runtime", name)
            self.assertEqual((template.input_tokens, template.output_tokens), (120, 34), name)

    def test_made_once(self) -> None:
        """The same answer is not made twice."""
        first = models.template("bedrock", "GetGuardrail")
        self.assertIs(models.template("bedrock", "GetGuardrail"), first)
