"""
Write ``model_limits.json``: how many tokens Bedrock's models take and give at most.

Run as ``python -m txbedrock.data.generate_model_limits SOURCE.json``. The source is
LiteLLM's ``model_prices_and_context_window.json``, or a part of it under ``models``;
what is not of Bedrock is left out. Regions, geographies and commitments are folded
into one entry for each model, with the largest figures that any of them has: they
are there to say what a request may need at worst.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from txbedrock.core.pricekeys import of_bedrock

__all__ = ["build", "fold", "main", "render"]

PATH = Path(__file__).with_name("model_limits.json")

SCHEMA = 1
UNIT = "tokens of one request: input at most, output at most; null: not known"

_GEOGRAPHY = re.compile(r"(?:us|eu|apac|us-gov|jp|au|ca|in|global)\.(?=.+\.)")
_WITHOUT_OUTPUT = ("embedding", "image_edit", "image_generation", "rerank")


def fold(name: str) -> str:
    """The model of an entry: without region, geography, size and commitment."""
    return _GEOGRAPHY.sub("", name.rpartition("/")[2], count=1)


def build(source: Mapping[str, Any]) -> dict[str, Any]:
    """
    The table of a price map.

    :raises ValueError: with every figure that is none.
    """
    models: dict[str, list[int | None]] = {}
    problems = []
    for name, fields in source.get("models", source).items():
        if not isinstance(fields, Mapping) or not of_bedrock(fields, required=True):
            continue
        found: list[int | None] = []
        for key in ("max_input_tokens", "max_output_tokens"):
            value = fields.get(key)
            if value is not None and (type(value) is not int or value < 0):
                problems.append(f"{name}: {key}: expected a whole number")
            found.append(value if type(value) is int else None)
        if fields.get("mode") in _WITHOUT_OUTPUT:
            found[1] = 0
        known = models.setdefault(fold(name), [None, None])
        for index, value in enumerate(found):
            before = known[index]
            if value is not None and (before is None or value > before):
                known[index] = value
    if problems:
        raise ValueError("\n".join(problems))
    return {
        "schema": SCHEMA,
        "source": "LiteLLM's price map",
        "unit": UNIT,
        "models": {name: models[name] for name in sorted(models) if models[name] != [None, None]},
    }


def render(table: dict[str, Any]) -> str:
    """The table as text: one model a line."""
    head = "".join(
        f"{json.dumps(key)}: {json.dumps(value)},\n"
        for key, value in table.items()
        if key != "models"
    )
    entries = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in table["models"].items()
    )
    return f'{{{head}"models": {{\n{entries}\n}}}}\n'


def main(argv: list[str] | None = None) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m txbedrock.data.generate_model_limits", description=__doc__
    )
    parser.add_argument("source", type=Path, metavar="SOURCE.json", help="a price map")
    options = parser.parse_args(argv)
    try:
        table = build(json.loads(options.source.read_text(encoding="utf-8")))
    except ValueError as error:
        parser.exit(1, f"{options.source}: {error}\n")
    PATH.write_text(render(table), encoding="utf-8")
    print(f"{PATH}: {len(table['models'])} models")


if __name__ == "__main__":
    main()
