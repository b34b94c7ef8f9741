"""
Ids of requests.
"""

from __future__ import annotations

import time
import uuid

from twisted.trial.unittest import SynchronousTestCase

from txbedrock.inbound.request import new_request_id


class RequestIdTests(SynchronousTestCase):
    """:func:`new_request_id`."""

    def test_layout(self) -> None:
        """It is a UUID of version 7, and begins with the time."""
        before = time.time()
        text = new_request_id()
        after = time.time()
        found = uuid.UUID(text)
        self.assertEqual(text, str(found))
        self.assertEqual((found.version, found.variant), (7, uuid.RFC_4122))
        self.assertTrue(int(before * 1000) <= found.int >> 80 <= int(after * 1000))

    def test_order(self) -> None:
        """Those of later milliseconds come later, as text, which is how the ledger has them."""
        now = 1_790_000_000.0
        self.patch(time, "time", lambda: now)
        ids = []
        for _ in range(100):
            now += 0.002  # seconds as a float: a thousandth may be none
            ids.append(new_request_id())
        self.assertEqual(ids, sorted(ids))

    def test_chance(self) -> None:
        """Of those of one millisecond no two are the same, and 72 bits are anybody's guess."""
        self.patch(time, "time", lambda: 1_790_000_000.0)
        found = [uuid.UUID(new_request_id()).int for _ in range(10_000)]
        self.assertEqual(len(set(found)), len(found))
        ever, always = 0, found[0]
        for one in found:
            ever, always = ever | one, always & one
        self.assertEqual((ever ^ always).bit_count(), 72)
