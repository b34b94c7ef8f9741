"""
The generated tables are what the installed botocore says.
"""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import botocore
from botocore.model import ServiceModel
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.data import generate_operations, generate_partitions, load


class ShippedTests(SynchronousTestCase):
    def compare(self, name: str, generator: Any) -> None:
        shipped = load(name)
        made = generator.build()
        if shipped != made:
            self.fail(
                f"txbedrock/data/{name}.json was made from botocore {shipped['botocore']} and"
                f" differs from what botocore {botocore.__version__} says."
                f" Run: python -m txbedrock.data.generate_{name}"
            )
        self.assertEqual(
            generator.PATH.read_text(encoding="utf-8"),
            generator.render(made),
            f"{name}.json was edited by hand. Run: python -m txbedrock.data.generate_{name}",
        )

    def test_operations(self) -> None:
        """Every operation of the installed botocore can be used through the gateway."""
        self.compare("operations", generate_operations)

    def test_partitions(self) -> None:
        """The gateway finds the hosts that the installed botocore would find."""
        self.compare("partitions", generate_partitions)

    def test_nothing_is_missing(self) -> None:
        """
        All eight services are there. What botocore 1.44.5 has is 523 operations;
        17 share method and template with another one.
        """
        table = load("operations")
        self.assertEqual(tuple(table["services"]), generate_operations.SERVICES)
        routes = [
            (operation["method"], operation["template"])
            for service in table["services"].values()
            for operation in service["operations"]
        ]
        if table["botocore"] == "1.44.5":
            self.assertEqual((len(routes), len(set(routes))), (523, 506))
        self.assertGreaterEqual(len(routes), 523)

    def test_services(self) -> None:
        """What signing and JSON 1.1 need is known of each service."""
        services = load("operations")["services"]
        self.assertEqual(
            {name for name, each in services.items() if each["signing_name"] != "bedrock"},
            {"bedrock-agentcore", "bedrock-agentcore-control"},
        )
        self.assertEqual(
            {
                name: each["target_prefix"]
                for name, each in services.items()
                if "target_prefix" in each
            },
            {"bedrock-data-automation-runtime": "AmazonBedrockKeystoneRuntimeService"},
        )

    def test_error_statuses(self) -> None:
        """An error has the status that its service gives it: they are not all alike."""
        services = load("operations")["services"]
        self.assertEqual(services["bedrock-runtime"]["errors"]["ConflictException"], 400)
        self.assertEqual(services["bedrock-agent"]["errors"]["ConflictException"], 409)
        self.assertEqual(services["bedrock-agent"]["errors"]["ServiceQuotaExceededException"], 402)
        for name, service in services.items():
            for code, status in service["errors"].items():
                self.assertTrue(400 <= status < 600, f"{name} {code}: {status}")

    def test_traits(self) -> None:
        """Which operations stream and which carry bytes is known."""
        found: dict[str, set[str]] = {}
        for service in load("operations")["services"].values():
            for operation in service["operations"]:
                for trait in operation.keys() - {"name", "method", "template"}:
                    found.setdefault(trait, set()).add(operation["name"])
        self.assertEqual(found["events_in"], {"InvokeModelWithBidirectionalStream"})
        self.assertLessEqual(
            {"ConverseStream", "InvokeAgent", "InvokeFlow", "InvokeHarness"}, found["events_out"]
        )
        self.assertLessEqual({"InvokeModel", "InvokeAgentRuntime"}, found["blob_in"])
        self.assertLessEqual({"InvokeModel", "InvokeAgentRuntime"}, found["blob_out"])

    def test_streams_can_say_internal_error(self) -> None:
        """
        Every stream models ``internalServerException``: the gateway's own error
        in a stream is one that each SDK knows.
        """
        loader = generate_operations.builtin_loader()
        seen, lacking = 0, []
        for name in generate_operations.SERVICES:
            model = ServiceModel(loader.load_service_model(name, "service-2"), name)
            for each in model.operation_names:
                stream = model.operation_model(each).get_event_stream_output()
                if stream is None:
                    continue
                seen += 1
                member = stream.members.get("internalServerException")
                if member is None or not member.metadata.get("exception"):
                    lacking.append(f"{name} {each}")
        self.assertEqual(lacking, [])
        self.assertGreaterEqual(seen, 12)


class GenerateTests(SynchronousTestCase):
    def test_one_operation_a_line(self) -> None:
        """A diff of the file shows which operations are new."""
        table = generate_operations.build()
        lines = generate_operations.render(table).splitlines()
        operations = [line for line in lines if line.startswith('{"name": ')]
        self.assertEqual(
            len(operations),
            sum(len(service["operations"]) for service in table["services"].values()),
        )
        self.assertEqual(json.loads("\n".join(lines)), table)

    def test_repeatable(self) -> None:
        """Two runs write the same bytes."""
        for generator in (generate_operations, generate_partitions):
            self.assertEqual(
                generator.render(generator.build()), generator.render(generator.build())
            )

    def test_gone_unless_kept(self) -> None:
        """
        What the installed botocore lacks is left out, or kept with ``--keep``;
        either way botocore's own word counts for what it has.
        """
        table = generate_operations.build()
        old = json.loads(json.dumps(table))
        runtime = old["services"]["bedrock-runtime"]
        future = {"name": "AFuture", "method": "POST", "template": "/future"}
        runtime["operations"].insert(0, future)
        runtime["operations"][1]["template"] = "/changed"
        runtime["errors"]["FutureException"] = 418
        kept = generate_operations.keep(table, old)
        expected = json.loads(json.dumps(table))
        expected["services"]["bedrock-runtime"]["operations"].insert(0, future)
        expected["services"]["bedrock-runtime"]["errors"] = dict(
            sorted({**runtime["errors"], "FutureException": 418}.items())
        )
        self.assertEqual(kept, expected)

    def test_keep_a_service(self) -> None:
        """A service that the installed botocore lacks can be kept, in its place."""
        table = generate_operations.build()
        without = {
            **table,
            "services": {k: v for k, v in table["services"].items() if k != "bedrock-agentcore"},
        }
        kept = generate_operations.keep(without, table)
        self.assertEqual(generate_operations.render(kept), generate_operations.render(table))

    def test_main(self) -> None:
        """The commands write what was built, and say what they wrote."""
        for generator in (generate_operations, generate_partitions):
            path = Path(self.mktemp())
            self.patch(generator, "PATH", path)
            printed = StringIO()
            with redirect_stdout(printed):
                generator.main([])
            self.assertEqual(path.read_text(encoding="utf-8"), generator.render(generator.build()))
            self.assertIn(botocore.__version__, printed.getvalue())
