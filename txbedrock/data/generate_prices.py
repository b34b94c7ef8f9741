"""
Write ``prices.json``: what Bedrock's models cost, from a price map in LiteLLM's format.

Run as ``python -m txbedrock.data.generate_prices SOURCE.json``. The source is
LiteLLM's ``model_prices_and_context_window.json``, or a part of it under
``models``; what is not of Bedrock is left out. Prices are carried over to the
last digit: one that is not a whole number of pico-USD stops the command, and so
does one of a kind that is not known here.

The figures are LiteLLM's. Check them against AWS's before billing anyone.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from txbedrock.core.pricekeys import entry_from_litellm, of_bedrock, rank
from txbedrock.core.pricing import content_version

__all__ = ["build", "main", "read", "render"]

PATH = Path(__file__).with_name("prices.json")

SCHEMA = 1
UNIT = "pico-USD (10^-12 US dollars) for one of what the price's name says"
NOTICE = "Check these figures against AWS's own price list before you bill anyone."


def read(text: str) -> Any:
    """A price map, with its figures as they are written."""
    return json.loads(text, parse_float=Decimal)


def build(source: Mapping[str, Any]) -> dict[str, Any]:
    """
    The table of a price map.

    :param source: as :func:`read` gives it.
    :raises ValueError: with every price that cannot be carried over.
    """
    models = source.get("models", source)
    prices: dict[str, dict[str, Any]] = {}
    problems = []
    for name in sorted(models):
        fields = models[name]
        if not isinstance(fields, Mapping) or not of_bedrock(fields, required=True):
            continue
        found, wrong = entry_from_litellm(fields)
        problems += [f"{name}: {key}: {sentence}" for key, sentence in wrong]
        if not found and not wrong:
            problems.append(f"{name}: found no price")
        words = {key: fields[key] for key in ("mode", "seen") if key in fields}
        prices[name] = {**words, **{key: found[key] for key in sorted(found, key=rank)}}
    if problems:
        raise ValueError("\n".join(problems))
    seen = Counter(entry.get("seen", "") for entry in prices.values())
    when = ", ".join(
        f"{seen[month]} entries as of {month or 'an unknown time'}"
        for month in sorted(seen, reverse=True)
    )
    return {
        "schema": SCHEMA,
        "version": content_version(prices, max(seen, default="")),
        "source": f"LiteLLM's price map: {when}",
        "notice": NOTICE,
        "unit": UNIT,
        "prices": prices,
    }


def render(table: dict[str, Any]) -> str:
    """
    The table as text: one entry a line, so that a diff shows which price changed.
    """
    head = "".join(
        f"{json.dumps(key)}: {json.dumps(value)},\n"
        for key, value in table.items()
        if key != "prices"
    )
    entries = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in table["prices"].items()
    )
    return f'{{{head}"prices": {{\n{entries}\n}}}}\n'


def main(argv: list[str] | None = None) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(
        prog="python -m txbedrock.data.generate_prices", description=__doc__
    )
    parser.add_argument("source", type=Path, metavar="SOURCE.json", help="a price map")
    options = parser.parse_args(argv)
    try:
        table = build(read(options.source.read_text(encoding="utf-8")))
    except ValueError as error:
        parser.exit(1, f"{options.source}: {error}\n")
    PATH.write_text(render(table), encoding="utf-8")
    print(f"{PATH}: {len(table['prices'])} entries, version {table['version']}")


if __name__ == "__main__":
    main()
