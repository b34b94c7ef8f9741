"""
The shipped price table, the command that makes it, and a user's file over it.
"""

from __future__ import annotations

import json
import os
from contextlib import redirect_stderr, redirect_stdout
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from txbedrock.config import load_prices
from txbedrock.core.pricekeys import rank, split
from txbedrock.core.pricing import PriceTable, content_version, cost
from txbedrock.core.usage import Source, Usage
from txbedrock.data import generate_prices, load
from txbedrock.errors import ConfigError

SOURCE = """
{
  "sample_spec": {"litellm_provider": "one of the providers", "input_cost_per_token": 0.5},
  "gpt-4": {"litellm_provider": "openai", "input_cost_per_token": 0.00003},
  "us.a.b": {
    "litellm_provider": "bedrock_converse",
    "mode": "chat",
    "max_tokens": 4096,
    "output_cost_per_token": 1.5e-05,
    "input_cost_per_token_flex": 1.75e-06,
    "cache_read_input_token_cost": 8.75e-09,
    "input_cost_per_token": 3e-06
  },
  "a.b": {"litellm_provider": "bedrock", "cost_per_second": 0.0011416,
          "input_cost_per_second": 0.0011416}
}
"""


class ShippedTests(SynchronousTestCase):
    """``prices.json``."""

    table = load("prices")

    def test_from_its_command(self) -> None:
        """It is as the command writes it, and its version is that of its content."""
        written = generate_prices.PATH.read_text(encoding="utf-8")
        self.assertEqual(written, generate_prices.render(self.table))
        prices = self.table["prices"]
        self.assertEqual(self.table["version"], content_version(prices, "2026-10"))
        self.assertEqual(list(prices), sorted(prices))
        for name, entry in prices.items():
            keys = [key for key in entry if key not in ("mode", "seen")]
            self.assertEqual(keys, sorted(keys, key=rank), name)

    def test_complete(self) -> None:
        """All entries are there, every price an integer of a known kind, none without a price."""
        self.assertEqual(len(self.table["prices"]), 609)
        for name, entry in self.table["prices"].items():
            prices = {key: value for key, value in entry.items() if not isinstance(value, str)}
            self.assertTrue(prices, name)
            for key, value in prices.items():
                self.assertIsNotNone(split(key), (name, key))
                self.assertIs(type(value), int, (name, key))
                self.assertTrue(0 <= value < 10**12, (name, key))

    def test_says_what_it_is(self) -> None:
        """Who reads it is told to check it, and where it is from."""
        self.assertEqual(
            self.table["notice"],
            "Check these figures against AWS's own price list before you bill anyone.",
        )
        self.assertIn("as of 2026-10", self.table["source"])
        self.assertIn("pico-USD", self.table["unit"])

    def test_own_ids(self) -> None:
        """Every entry is what its own id finds, with all of its prices."""
        table = load_prices()
        self.assertEqual(table.version, self.table["version"])
        for name, prices in table.entries.items():
            price = table.price(name, "")
            assert price is not None
            self.assertEqual(price.id, name)
            self.assertLessEqual(prices.items(), price.prices.items())

    def test_known(self) -> None:
        """A few prices that one can look up: dollars a million tokens, in and out."""
        table = load_prices()
        for name, region, dollars in [
            ("us.amazon.nova-pro-v1:0", "us-west-2", ("0.80", "3.20")),
            ("amazon.nova-micro-v1:0", "us-east-1", ("0.035", "0.14")),
            ("anthropic.claude-3-haiku-20240307-v1:0", "us-west-2", ("0.25", "1.25")),
            ("amazon.nova-pro-v1:0", "us-gov-west-1", ("0.96", "3.84")),
        ]:
            price = table.price(name, region)
            usage = Usage(input_tokens=1_000_000, source=Source.BODY)
            self.assertEqual(cost(price, usage).picousd, Decimal(dollars[0]) * 10**12)
            usage = Usage(output_tokens=1_000_000, source=Source.BODY)
            self.assertEqual(cost(price, usage).picousd, Decimal(dollars[1]) * 10**12)

    def test_milliseconds(self) -> None:
        """A price for a second is exact for a millisecond too: none of them is rounded."""
        for name, entry in self.table["prices"].items():
            for key, value in entry.items():
                if "second" in key:
                    self.assertEqual(value % 1000, 0, (name, key))


class GenerateTests(SynchronousTestCase):
    """``python -m txbedrock.data.generate_prices``."""

    def build(self, source: str) -> dict[str, Any]:
        return generate_prices.build(generate_prices.read(source))

    def test_build(self) -> None:
        """Bedrock's entries, in our words, to the last digit."""
        table = self.build(SOURCE)
        self.assertEqual(
            table["prices"],
            {
                "a.b": {"second": 1_141_600_000},
                "us.a.b": {
                    "mode": "chat",
                    "input": 3_000_000,
                    "output": 15_000_000,
                    "cache_read": 8_750,
                    "input.flex": 1_750_000,
                },
            },
        )
        self.assertEqual(table["version"], content_version(table["prices"]))
        wrapped = self.build(f'{{"_count": 2, "models": {SOURCE}}}')
        self.assertEqual(wrapped, table)

    def test_rendered(self) -> None:
        """One entry a line, and the same bytes each time."""
        text = generate_prices.render(self.build(SOURCE))
        self.assertEqual(text, generate_prices.render(self.build(SOURCE)))
        self.assertEqual(json.loads(text), self.build(SOURCE))
        self.assertIn('\n"a.b": {"second": 1141600000},\n', text)

    def test_version(self) -> None:
        """Another price is another version."""
        other = self.build(SOURCE.replace("3e-06", "3.1e-06"))
        self.assertNotEqual(other["version"], self.build(SOURCE)["version"])

    def test_refused(self) -> None:
        """What cannot be carried over exactly stops it, and all of it is listed."""
        source = """
            {"a.b": {"litellm_provider": "bedrock", "input_cost_per_token": 1.5e-13,
                     "input_cost_per_thought": 1},
             "a.c": {"litellm_provider": "bedrock", "max_tokens": 3}}
            """
        error = self.assertRaises(ValueError, self.build, source)
        self.assertEqual(
            str(error).splitlines(),
            [
                "a.b: input_cost_per_token: found 1.5E-13, expected a price in US dollars, 0 to "
                "1000, with at most 12 decimals",
                "a.b: input_cost_per_thought: found a price of an unknown kind",
                "a.c: found no price",
            ],
        )

    def test_main(self) -> None:
        """It writes what was built, and says so; it writes nothing when it fails."""
        path, source = Path(self.mktemp()), Path(self.mktemp())
        self.patch(generate_prices, "PATH", path)
        source.write_text(SOURCE, encoding="utf-8")
        printed = StringIO()
        with redirect_stdout(printed):
            generate_prices.main([str(source)])
        table = self.build(SOURCE)
        self.assertEqual(path.read_text(encoding="utf-8"), generate_prices.render(table))
        self.assertIn(f"2 entries, version {table['version']}", printed.getvalue())
        path.unlink()
        source.write_text(SOURCE.replace("3e-06", "3e-16"), encoding="utf-8")
        with redirect_stderr(printed):
            error = self.assertRaises(SystemExit, generate_prices.main, [str(source)])
        self.assertEqual(error.code, 1)
        self.assertIn("us.a.b: input_cost_per_token: found 3E-16", printed.getvalue())
        self.assertFalse(path.exists())


class UsersFileTests(SynchronousTestCase):
    """``general_settings.price_file``."""

    def write(self, content: str | bytes) -> str:
        path = Path(self.mktemp())
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def problems(self, content: str | bytes) -> list[str]:
        path = self.write(content)
        error = self.assertRaises(ConfigError, load_prices, path)
        return [problem.removeprefix(path) for problem in error.problems]

    def test_litellm(self) -> None:
        """LiteLLM's map: Bedrock's entries are taken, over the shipped ones of the same id."""
        for content in (SOURCE, f'{{"models": {SOURCE}}}', "\ufeff" + SOURCE):
            table = load_prices(self.write(content))
            self.assertEqual(table.entries["a.b"], {"second": 1_141_600_000})
            self.assertEqual(table.entries["us.a.b"]["cache_read"], 8_750)
            self.assertNotIn("gpt-4", table.entries)
            self.assertEqual(len(table.entries), 611)

    def test_replaced(self) -> None:
        """An entry of the same id has no price of the shipped one left."""
        name = "us.amazon.nova-pro-v1:0"
        table = load_prices(self.write(f'{{"{name}": {{"input_cost_per_token": 1e-6}}}}'))
        self.assertEqual(table.entries[name], {"input": 1_000_000})
        self.assertEqual(len(table.entries), 609)
        self.assertTrue(table.version.startswith(f"{load('prices')['version']}+"))

    def test_ours(self) -> None:
        """The format of the shipped table."""
        content = '{"schema": 1, "prices": {"a.b": {"mode": "chat", "input.flex": 5}}}'
        table = load_prices(self.write(content))
        self.assertEqual(table.entries["a.b"], {"input.flex": 5})
        text = generate_prices.PATH.read_text(encoding="utf-8")
        self.assertEqual(load_prices(self.write(text)).entries, load_prices().entries)

    def test_wrong(self) -> None:
        """Everything wrong in it is listed, with file and key."""
        cases: list[tuple[str | bytes, list[str]]] = [
            (
                '{"a.b": {"input_cost_per_token": "x", "cost_per_word": 1}, "a.c": 3, "a.d": {}}',
                [
                    ": a.b.input_cost_per_token: found text, expected a price in US dollars, 0 "
                    "to 1000",
                    ": a.b.cost_per_word: found a price of an unknown kind",
                    ": a.c: found no mapping, expected prices",
                    ": a.d: found no price",
                ],
            ),
            (
                '{"models": {"a.b": {"input_cost_per_token": 1e-13}}}',
                [
                    ": models.a.b.input_cost_per_token: found 1E-13, expected a price in US "
                    "dollars, 0 to 1000, with at most 12 decimals"
                ],
            ),
            (
                '{"schema": 1, "prices": {"a.b": {"input": 1.5}}}',
                [": prices.a.b.input: expected a whole number of pico-USD from 0 up"],
            ),
            (
                '{"a.b": {"input_cost_per_token": NaN}}',
                [
                    ": a.b.input_cost_per_token: found text, expected a price in US dollars, 0 "
                    "to 1000"
                ],
            ),
            ('{"gpt-4": {"litellm_provider": "openai"}}',
             [": found no price of a model of Amazon Bedrock"]),
            ("{}", [": found no price of a model of Amazon Bedrock"]),
            ("[]", [": found no mapping, expected prices by model"]),
            ('{\n"a.b": }', [":2: column 8: broken JSON: Expecting value"]),
            ("", [":1: column 1: broken JSON: Expecting value"]),
            ('{"a.b": {}, "a.b": {}}', [": a.b: found the key again, expected it once"]),
            (b"\xff", [": found a byte that is not UTF-8, expected text in UTF-8"]),
            ("[" * 100_000, [": found values too long or too deep to be read"]),
            ('{"a.b": %s}' % ("9" * 5000), [": found values too long or too deep to be read"]),
        ]  # fmt: skip
        for content, problems in cases:
            self.assertEqual(self.problems(content), problems)

    def test_no_file(self) -> None:
        """A file that is not there."""
        path = os.path.join(self.mktemp(), "prices.json")
        error = self.assertRaises(ConfigError, load_prices, path)
        self.assertEqual(
            error.problems, [f"{path}: found: No such file or directory, expected a JSON file"]
        )

    def test_anew(self) -> None:
        """A table is a value: two readings of one file are equal, and neither is shared."""
        first, second = load_prices(), load_prices()
        self.assertIsInstance(first, PriceTable)
        self.assertIsNot(first, second)
        self.assertEqual((first.entries, first.version), (second.entries, second.version))
