"""
The price table: the shipped one, and a user's own file over it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from txbedrock.core.pricekeys import entry_from_litellm, of_bedrock
from txbedrock.core.pricing import PriceTable, content_version
from txbedrock.data import load
from txbedrock.errors import ConfigError

__all__ = ["load_prices"]


def load_prices(path: str | None = None) -> PriceTable:
    """
    Read the prices.

    :param path: a JSON file whose entries replace those of the same id, in the
        format of the shipped ``prices.json`` or in that of LiteLLM's price map,
        of which only Bedrock's models are taken. None: the shipped table alone.
    :raises ConfigError: with all problems found, each with file and key.
    """
    shipped = PriceTable.parse(load("prices"), "prices.json")
    return shipped if path is None else shipped.below(_read(path))


def _read(path: str) -> PriceTable:
    data = _json(path)
    if not isinstance(data, Mapping):
        raise ConfigError([f"{path}: found no mapping, expected prices by model"])
    if "schema" in data:
        return PriceTable.parse(data, path)
    wrapped = isinstance(data.get("models"), Mapping)
    models = data["models"] if wrapped else data
    entries: dict[str, dict[str, int]] = {}
    problems = []
    for name, fields in models.items():
        where = f"{path}: models.{name}" if wrapped else f"{path}: {name}"
        if not isinstance(fields, Mapping):
            problems.append(f"{where}: found no mapping, expected prices")
            continue
        if not of_bedrock(fields):
            continue
        prices, wrong = entry_from_litellm(fields)
        problems += [f"{where}.{key}: {sentence}" for key, sentence in wrong]
        if prices:
            entries[name] = prices
        elif not wrong and "litellm_provider" not in fields:
            problems.append(f"{where}: found no price")
    if not entries and not problems:
        problems.append(f"{path}: found no price of a model of Amazon Bedrock")
    if problems:
        raise ConfigError(problems)
    return PriceTable(entries, content_version(entries))


class _Repeated(Exception):
    """A key that is given twice."""


def _json(path: str) -> Any:
    """A file's content, with its figures as they are written."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
        return json.loads(
            text, parse_float=Decimal, parse_constant=_no_number, object_pairs_hook=_once
        )
    except UnicodeDecodeError:
        problem = f"{path}: found a byte that is not UTF-8, expected text in UTF-8"
    except OSError as error:
        problem = f"{path}: found: {error.strerror}, expected a JSON file"
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}: column {error.colno}"
        problem = f"{where}: broken JSON: {error.msg}"
    except _Repeated as error:
        problem = f"{path}: {error}: found the key again, expected it once"
    except (ValueError, RecursionError):  # a number of many thousand digits; many brackets
        problem = f"{path}: found values too long or too deep to be read"
    raise ConfigError([problem])


def _no_number(name: str) -> str:
    return name  # NaN and Infinity: text, which is no price


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Repeated(next(name for name in names if names.count(name) > 1))
    return found
