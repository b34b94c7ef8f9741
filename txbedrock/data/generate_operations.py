"""
Write ``operations.json``: every operation of the Bedrock services, from botocore.

Run as ``python -m txbedrock.data.generate_operations``. Only the models that
come with botocore are read, not those of ``~/.aws/models``, so that two people
with one botocore get one file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import botocore
from botocore.exceptions import UnknownServiceError
from botocore.loaders import Loader
from botocore.model import OperationModel, ServiceModel

__all__ = ["SERVICES", "build", "main", "render"]

SERVICES = (
    "bedrock",
    "bedrock-runtime",
    "bedrock-agent",
    "bedrock-agent-runtime",
    "bedrock-agentcore",
    "bedrock-agentcore-control",
    "bedrock-data-automation",
    "bedrock-data-automation-runtime",
)
"""In this order a tie between services is broken when nothing else breaks it."""

PATH = Path(__file__).with_name("operations.json")


def builtin_loader() -> Any:
    """A loader of what botocore ships, and of nothing else."""
    return Loader(
        extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False
    )


def build() -> dict[str, Any]:
    """
    The table of the installed botocore.

    A service that this botocore does not know is left out.
    """
    loader = builtin_loader()
    services = {}
    for name in SERVICES:
        try:
            description = loader.load_service_model(name, "service-2")
        except UnknownServiceError:
            continue
        services[name] = _service(ServiceModel(description, name))
    return {"botocore": botocore.__version__, "services": services}


def keep(table: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """
    ``table``, and what only ``old`` has: services, operations and error codes.
    """
    services = {}
    for name in SERVICES:
        new_service = table["services"].get(name)
        old_service = old["services"].get(name)
        if new_service is None or old_service is None:
            if new_service or old_service:
                services[name] = new_service or old_service
            continue
        operations = {each["name"]: each for each in old_service["operations"]}
        operations.update((each["name"], each) for each in new_service["operations"])
        services[name] = {
            **new_service,
            "errors": dict(sorted({**old_service["errors"], **new_service["errors"]}.items())),
            "operations": [operations[each] for each in sorted(operations)],
        }
    return {**table, "services": services}


def render(table: dict[str, Any]) -> str:
    """
    The table as text: one operation a line, so that a diff shows what is new.
    """
    services = []
    for name, service in table["services"].items():
        head = [
            f"{json.dumps(key)}: {json.dumps(value)},\n"
            for key, value in service.items()
            if key != "operations"
        ]
        operations = ",\n".join(json.dumps(each) for each in service["operations"])
        services.append(f'"{name}": {{\n{"".join(head)}"operations": [\n{operations}\n]}}')
    return (
        f'{{"botocore": {json.dumps(table["botocore"])},\n'
        '"services": {\n' + ",\n".join(services) + "\n}}\n"
    )


def _service(model: ServiceModel) -> dict[str, Any]:
    operations = [model.operation_model(name) for name in sorted(model.operation_names)]
    errors = {
        error.metadata.get("error", {}).get("code", error.name): status
        for operation in operations
        for error in operation.error_shapes
        if (status := error.metadata.get("error", {}).get("httpStatusCode")) is not None
    }
    service: dict[str, Any] = {"signing_name": model.signing_name}
    if model.metadata["protocol"] == "json":
        service["target_prefix"] = model.metadata["targetPrefix"]
    service["errors"] = dict(sorted(errors.items()))
    service["operations"] = [_operation(each) for each in operations]
    return service


def _operation(model: OperationModel) -> dict[str, Any]:
    traits = {
        "events_in": model.has_event_stream_input,
        "events_out": model.has_event_stream_output,
        "blob_in": model.has_streaming_input,
        "blob_out": model.has_streaming_output,
    }
    return {
        "name": model.name,
        "method": model.http["method"],
        "template": model.http["requestUri"],
        **{name: True for name, present in traits.items() if present},
    }


def main(argv: list[str] | None = None) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m txbedrock.data.generate_operations", description=__doc__
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep the operations of the present file that this botocore does not know",
    )
    options = parser.parse_args(argv)
    table = build()
    if options.keep:
        table = keep(table, json.loads(PATH.read_text(encoding="utf-8")))
    PATH.write_text(render(table), encoding="utf-8")
    count = sum(len(each["operations"]) for each in table["services"].values())
    print(f"{PATH}: {count} operations, botocore {table['botocore']}")


if __name__ == "__main__":
    main()
