"""
Money: integers of pico-USD (10^-12 US dollars), from the price to the sum.
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache

__all__ = ["PICO", "as_decimal", "picousd_as_usd"]

PICO = 10**12
"""Pico-USD of a US dollar."""


@lru_cache(maxsize=1024)
def picousd_as_usd(picousd: int) -> str:
    """
    Money for people, headers and JSON: exact, in US dollars, no exponent.

    :returns: ``0.000308``; at least one digit after the point.
    """
    if picousd < 0:
        return "-" + picousd_as_usd(-picousd)
    whole, rest = divmod(picousd, PICO)
    return f"{whole}.{str(PICO + rest)[1:].rstrip('0') or '0'}"


def as_decimal(picousd: int) -> Decimal:
    """The same as a number that JSON can hold exactly."""
    return Decimal(picousd_as_usd(picousd))
