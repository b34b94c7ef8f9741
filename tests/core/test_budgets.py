"""Tests for :mod:`txbedrock.core.budgets`."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.budgets import Duration, iso_time, parse_duration, period_at, resets_at

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


def at(text: str) -> int:
    """Microseconds of an ISO time."""
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


class DurationTests(SynchronousTestCase):
    """How long."""

    def test_units(self) -> None:
        """Every unit of LiteLLM's, and weeks."""
        for text, expected in [
            ("30s", Duration(30_000_000)),
            ("10m", Duration(600_000_000)),
            ("2h", Duration(2 * HOUR_US)),
            ("7d", Duration(7 * DAY_US)),
            ("2w", Duration(14 * DAY_US)),
            ("1mo", Duration(months=1)),
            ("12mo", Duration(months=12)),
            ("36500d", Duration(36_500 * DAY_US)),
        ]:
            self.assertEqual(parse_duration(text), expected, text)

    def test_wrong(self) -> None:
        """What is none is refused, and the message says what one looks like."""
        for text in ("", "1", "d", "0d", "-1d", "1.5h", "1 d", "1y", "1M", "1mo ", "٣d", "0mo",
                     "1201mo", "99999999d", "9999999999w", "1d1h"):  # fmt: skip
            error = self.assertRaises(ValueError, parse_duration, text)
            self.assertIn("7d, 2w, 1mo", str(error), text)
            if text:
                self.assertRaises(ValueError, period_at, text, 0, 0)


class PeriodTests(SynchronousTestCase):
    """From when until when."""

    def test_known(self) -> None:
        """Periods that one can look up in a calendar."""
        for duration, start, now, begin, end in [
            ("1d", "1970-01-01", "2026-11-22T13:14:15", "2026-11-22", "2026-11-23"),
            ("1d", "1970-01-01", "2026-11-22", "2026-11-22", "2026-11-23"),
            ("1d", "1970-01-01", "2026-11-22T23:59:59", "2026-11-22", "2026-11-23"),
            ("1d", "2026-11-20T10:00", "2026-11-22T09:00", "2026-11-21T10:00", "2026-11-22T10:00"),
            ("7d", "2026-11-01", "2026-11-22", "2026-11-22", "2026-11-29"),
            ("30s", "2026-11-01", "2026-11-01T00:00:59", "2026-11-01T00:00:30",
             "2026-11-01T00:01"),
            ("1mo", "1970-01-01", "2026-11-30T23:59:59", "2026-11-01", "2026-12-01"),
            ("1mo", "1970-01-01", "2026-12-01", "2026-12-01", "2027-01-01"),
            ("1mo", "1970-01-01", "2028-02-29T12:00", "2028-02-01", "2028-03-01"),
            ("3mo", "1970-01-01", "2026-11-22", "2026-10-01", "2027-01-01"),
            ("3mo", "2026-02-10", "2026-11-22", "2026-11-01", "2027-02-01"),
            ("2mo", "2026-09-10", "2026-12-31", "2026-11-01", "2027-01-01"),
            # The first one begins at the start.
            ("1mo", "2026-11-10", "2026-11-22", "2026-11-10", "2026-12-01"),
            ("1mo", "2026-11-10", "2026-11-10", "2026-11-10", "2026-12-01"),
            ("2mo", "2026-11-10", "2026-12-31", "2026-11-10", "2027-01-01"),
            # A start that is still to come does not leave the present without a period.
            ("1d", "2026-11-23", "2026-11-22T12:00", "2026-11-22", "2026-11-23"),
            ("1mo", "2026-12-10", "2026-11-22", "2026-11-01", "2026-12-01"),
            ("1mo", "2026-12-10", "2026-12-09", "2026-12-01", "2026-12-10"),
        ]:  # fmt: skip
            found = period_at(duration, at(start), at(now))
            self.assertEqual(found, (at(begin), at(end)), (duration, start, now))
            self.assertEqual(resets_at(duration, at(start), at(now)), iso_time(at(end)))

    def test_for_ever(self) -> None:
        """Without a duration there is one period, from the start on."""
        self.assertEqual(period_at("", 17, 10**15), (17, None))
        self.assertIsNone(resets_at("", 17, 10**15))

    def test_iso(self) -> None:
        """As LiteLLM and AWS write times; a part of a second is left out."""
        self.assertEqual(iso_time(at("2026-12-01")), "2026-12-01T00:00:00Z")
        self.assertEqual(iso_time(at("2026-12-01T01:02:03") + 999_999), "2026-12-01T01:02:03Z")
        self.assertEqual(iso_time(0), "1970-01-01T00:00:00Z")

    @given(
        st.integers(1, 1000),
        st.sampled_from(["s", "m", "h", "d", "w", "mo"]),
        st.integers(0, 4 * 10**15),
        st.integers(0, 4 * 10**15),
    )
    def test_follow_each_other(self, count: int, unit: str, start_us: int, now_us: int) -> None:
        """A moment is in its period, and where one ends the next begins."""
        duration = f"{count}{unit}"
        begin_us, end_us = period_at(duration, start_us, now_us)
        assert end_us is not None
        self.assertTrue(begin_us <= now_us < end_us)
        self.assertEqual(period_at(duration, start_us, begin_us), (begin_us, end_us))
        self.assertEqual(period_at(duration, start_us, end_us - 1), (begin_us, end_us))
        self.assertEqual(period_at(duration, start_us, end_us)[0], end_us)
