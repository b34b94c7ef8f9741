"""Tests for :mod:`txbedrock.core.money`."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.money import PICO, as_decimal, picousd_as_usd


class TextTests(SynchronousTestCase):
    """Money for people."""

    def test_examples(self) -> None:
        """No exponent, no needless zeros, a digit after the point in any case."""
        for picousd, expected in [
            (0, "0.0"),
            (1, "0.000000000001"),
            (308_000_000, "0.000308"),
            (PICO, "1.0"),
            (-PICO // 2, "-0.5"),
            (10 * PICO + 10, "10.00000000001"),
            (10**30, "1" + 18 * "0" + ".0"),
        ]:
            self.assertEqual(picousd_as_usd(picousd), expected)

    @given(st.integers())
    def test_exact(self, picousd: int) -> None:
        """Whatever the sum is, nothing of it is lost."""
        text = picousd_as_usd(picousd)
        whole, _, digits = text.partition(".")
        self.assertEqual(int(whole + digits.ljust(12, "0")), picousd)
        self.assertEqual(as_decimal(picousd), Decimal(text))
