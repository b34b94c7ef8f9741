"""
The periods of budgets: how long one lasts, when it began, when it is renewed.

Times are microseconds since 1970, UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

__all__ = ["Duration", "iso_time", "parse_duration", "period_at", "resets_at"]

_WRITTEN = re.compile(r"([0-9]{1,10})(s|m|h|d|w|mo)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_LONGEST_S = 100 * 366 * 86_400
_LONGEST_MONTHS = 100 * 12
_EXPECTED = (
    "expected a number and a unit: 30s, 10m (minutes), 2h, 7d, 2w, 1mo (calendar months), "
    "at most 100 years"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Duration(NamedTuple):
    """How long a period lasts. One of the two is 0."""

    microseconds: int = 0
    months: int = 0
    """Calendar months, UTC."""


@lru_cache(maxsize=1024)
def parse_duration(text: str) -> Duration:
    """
    A duration as configurations and LiteLLM's management API write it.

    :param text: ``30s``, ``10m``, ``2h``, ``7d``, ``2w``, ``1mo``.
    :raises ValueError: saying what was expected.
    """
    match = _WRITTEN.fullmatch(text)
    if match is None:
        raise ValueError(_EXPECTED)
    count, unit = int(match[1]), match[2]
    length, longest = (
        (count, _LONGEST_MONTHS) if unit == "mo" else (count * _SECONDS[unit], _LONGEST_S)
    )
    if not 0 < length <= longest:
        raise ValueError(_EXPECTED)
    return Duration(months=length) if unit == "mo" else Duration(length * 1_000_000)


def period_at(duration: str, start_us: int, now_us: int) -> tuple[int, int | None]:
    """
    The period that a moment is in.

    Seconds to weeks are counted from the start on, again and again; with a start
    of 0 a period of ``1d`` is a day of UTC's. Months are those of the calendar,
    several of them (``3mo``) counted from that of the start. The first period of
    months begins at the start: what was before it does not count.

    :param duration: as :func:`parse_duration` takes it; empty: for ever.
    :returns: when it began, and when the next one begins (None: never).
    :raises ValueError: the duration is none.
    """
    if not duration:
        return start_us, None
    length, months = parse_duration(duration)
    if length:
        begin_us = start_us + (now_us - start_us) // length * length
        return begin_us, begin_us + length
    first, now = _month_of(start_us), _month_of(now_us)
    month = first + (now - first) // months * months
    begin_us, end_us = _begin_of(month), _begin_of(month + months)
    if begin_us < start_us < end_us:
        return (start_us, end_us) if start_us <= now_us else (begin_us, start_us)
    return begin_us, end_us


def resets_at(duration: str, start_us: int, now_us: int) -> str | None:
    """
    When a budget is renewed, in ISO 8601; None: never.

    :raises ValueError: the duration is none.
    """
    end_us = period_at(duration, start_us, now_us)[1]
    return None if end_us is None else iso_time(end_us)


def iso_time(time_us: int) -> str:
    """A time in ISO 8601, to the second: ``2026-12-01T00:00:00Z``."""
    return f"{_at(time_us):%Y-%m-%dT%H:%M:%SZ}"


def _at(time_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_us)


def _month_of(time_us: int) -> int:
    """Months since the year 0."""
    time = _at(time_us)
    return time.year * 12 + time.month - 1


def _begin_of(month: int) -> int:
    year, rest = divmod(month, 12)
    return (datetime(year, rest + 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND
