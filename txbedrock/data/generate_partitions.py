"""
Write ``partitions.json``: AWS partitions and the host names of Bedrock in them.

Run as ``python -m txbedrock.data.generate_partitions``. The host-name rules are
found by asking botocore's own endpoint provider about a made-up partition; one
service that follows other rules than the rest stops the command.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import botocore
from botocore.endpoint_provider import EndpointProvider
from botocore.exceptions import UnknownServiceError

from txbedrock.data.generate_operations import SERVICES, builtin_loader

__all__ = ["build", "main", "render"]

PATH = Path(__file__).with_name("partitions.json")

_VARIANTS = {
    "plain": (False, False),
    "fips": (True, False),
    "dualstack": (False, True),
    "fips_dualstack": (True, True),
}
"""Name of a rule -> (UseFIPS, UseDualStack)."""


def build() -> dict[str, Any]:
    """
    The table of the installed botocore.

    :raises RuntimeError: if the services do not share one set of rules.
    """
    loader = builtin_loader()
    services, found = [], []
    for name in SERVICES:
        try:
            rule_set = loader.load_service_model(name, "endpoint-rule-set-1")
        except UnknownServiceError:
            continue
        services.append(name)
        found.append(_rules(name, rule_set))
    if any(rules != found[0] for rules in found):
        raise RuntimeError(f"the endpoint rules differ: {dict(zip(services, found, strict=True))}")
    return {
        "botocore": botocore.__version__,
        "services": services,
        "rules": found[0],
        "partitions": [_partition(each) for each in loader.load_data("partitions")["partitions"]],
    }


def render(table: dict[str, Any]) -> str:
    """
    The table as text: one partition a line.
    """
    partitions = ",\n".join(json.dumps(each) for each in table["partitions"])
    rules = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in table["rules"].items())
    return (
        f'{{"botocore": {json.dumps(table["botocore"])},\n'
        f'"services": {json.dumps(table["services"])},\n'
        f'"rules": {{\n{rules}\n}},\n'
        f'"partitions": [\n{partitions}\n]}}\n'
    )


def _rules(service: str, rule_set: dict[str, Any]) -> dict[str, str]:
    marked = {
        "id": "x",
        "regionRegex": ".*",
        "regions": {},
        "outputs": {
            "dnsSuffix": "{dnsSuffix}",
            "dualStackDnsSuffix": "{dualStackDnsSuffix}",
            "supportsFIPS": True,
            "supportsDualStack": True,
        },
    }
    provider = EndpointProvider(rule_set, {"partitions": [marked]})
    rules = {}
    for variant, (fips, dualstack) in _VARIANTS.items():
        endpoint = provider.resolve_endpoint(
            Region="{region}", UseFIPS=fips, UseDualStack=dualstack
        )
        head = f"https://{service}"
        if not endpoint.url.startswith(head):
            raise RuntimeError(f"{service}: {endpoint.url} does not begin with {head}")
        rules[variant] = "https://{service}" + endpoint.url.removeprefix(head)
    return rules


def _partition(partition: dict[str, Any]) -> dict[str, Any]:
    outputs = partition["outputs"]
    return {
        "id": partition["id"],
        "regionRegex": partition["regionRegex"],
        "dnsSuffix": outputs["dnsSuffix"],
        "dualStackDnsSuffix": outputs["dualStackDnsSuffix"],
        "supportsFIPS": outputs["supportsFIPS"],
        "supportsDualStack": outputs["supportsDualStack"],
        "regions": sorted(partition["regions"]),
    }


def main(argv: list[str] | None = None) -> None:
    """Write the file."""
    argparse.ArgumentParser(
        prog="python -m txbedrock.data.generate_partitions", description=__doc__
    ).parse_args(argv)
    table = build()
    PATH.write_text(render(table), encoding="utf-8")
    print(f"{PATH}: {len(table['partitions'])} partitions, botocore {table['botocore']}")


if __name__ == "__main__":
    main()
