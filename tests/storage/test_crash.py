"""
``kill -9`` at any moment: what was recorded is in the database, exactly once.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.task import deferLater

from tests.fakes import until
from tests.storage.helpers import OnPostgres, OnSqlite, run_child
from tests.storage.test_ledger import LedgerTestCase
from txbedrock.core.entries import Filters

# How many write at the same time, and how often they are killed.
_WRITERS = 3
_ROUNDS = 8


class CrashTestCase(LedgerTestCase):
    """Writers that are killed."""

    def setUp(self) -> None:
        super().setUp()
        self.rng = random.Random()
        self.started = 0
        self.forks = run_child("fork")
        self.addCleanup(self.forks.communicate)

    def start_writer(self, mode: str, *arguments: str) -> tuple[int, Path]:
        """
        Start a process of ``tests/storage/writer.py``.

        :returns: its number, and the file to which it says what was kept.
        """
        self.started += 1
        said = Path(self.path(f"said-{self.started}"))
        line = " ".join([str(said), mode, self.path("journal"), *arguments])
        assert self.forks.stdin is not None and self.forks.stdout is not None
        self.forks.stdin.write(f"{line}\n".encode())
        self.forks.stdin.flush()
        return int(self.forks.stdout.readline()), said

    async def kill_writers(self, mode: str, *arguments: str, wait_s: float) -> dict[str, int]:
        """
        Let some write at a time, and kill each at a moment of its own.

        :returns: the cost of each entry that they said was kept.
        """
        kept: dict[str, int] = {}
        for _ in range(_ROUNDS):
            writers = [self.start_writer(mode, *arguments) for _ in range(_WRITERS)]
            for pid, said in writers:
                await until(lambda said=said: said.exists() and said.stat().st_size > 0)
                await deferLater(reactor, self.rng.random() * wait_s)
                os.kill(pid, signal.SIGKILL)
                # Its lock is free when it is gone, and what it wrote is there.
                await until(lambda pid=pid: not is_alive(pid))
                # The last line may be cut.
                for line in said.read_bytes().split(b"\n")[:-1]:
                    key, cost = line.decode().split()
                    kept[key] = int(cost)
        return kept

    async def assert_all_there(self, kept: dict[str, int]) -> None:
        """
        Each is there once, and the totals are the sum of the rows. A writer may
        have kept one entry and been killed before it could say so.
        """
        rows = await self.stored()
        stored = dict(rows)
        self.assertEqual(len(stored), len(rows))
        self.assertEqual([key for key, cost in kept.items() if stored.get(key) != cost], [])
        self.assertLessEqual(len(stored) - len(kept), self.started)
        sums = await self.ask(
            "SELECT kind, sum(requests), sum(cost_picousd) FROM txbedrock_totals "
            "WHERE kind IN ('all', 'user', 'key') GROUP BY kind"
        )
        self.assertEqual(len(sums), 3)
        for _, requests, cost in sums:
            self.assertEqual((int(requests), int(cost)), (len(stored), sum(stored.values())))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class JournalCrashTests(OnSqlite, CrashTestCase):
    """Processes that only append, at full speed."""

    async def test_kill(self) -> None:
        """Every line that was acknowledged is replayed at the next start."""
        kept = await self.kill_writers("journal", wait_s=0.02)
        self.assertGreater(len(kept), 1000)
        ledger = self.ledger(self.url)
        self.assertTrue(await ledger.flush(30))
        await self.assert_all_there(kept)
        self.assertEqual([line for line in self.messages() if "no entries" in line], [])
        [total] = await ledger.totals("all", Filters())
        self.assertGreaterEqual(total.requests, len(kept))
        await ledger.stopService()
        self.assertEqual(os.listdir(self.path("journal")), [])


class LedgerCrashMixin:
    """Processes that move to the database what they record, and what others left."""

    async def test_kill(self) -> None:
        """In the middle of a commit, or of replaying another one's journal: once all the same."""
        assert isinstance(self, CrashTestCase)
        kept = await self.kill_writers("ledger", self.url, wait_s=0.2)
        before = len(await self.stored())
        ledger = self.ledger(self.url)
        self.assertTrue(await ledger.flush(30))
        await self.assert_all_there(kept)
        # Both ways were gone.
        self.assertGreater(before, 0)
        self.assertGreater(len(kept), before)


class SqliteCrashTests(LedgerCrashMixin, OnSqlite, CrashTestCase):
    """SQLite."""


class PostgresCrashTests(LedgerCrashMixin, OnPostgres, CrashTestCase):
    """PostgreSQL."""
