"""
Entries, journals and ledgers for the tests, on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import TestCase

from tests.postgres import new_database_url
from txbedrock.core.entries import LedgerEntry
from txbedrock.storage.database import Database
from txbedrock.storage.journal import Journal
from txbedrock.storage.ledger import Ledger

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
START_US = 1_790_000_000_000_000
DAY_US = 86_400_000_000


def entry(number: int = 0, **changes: Any) -> LedgerEntry:
    """An entry; its number makes it different from the others."""
    started = START_US + number * 1000
    values: dict[str, Any] = {
        "request_id": f"request-{number:08d}",
        "started_us": started,
        "first_byte_us": started + 300,
        "ended_us": started + 900,
        "key_hash": f"{number % 3:064x}",
        "key_alias": f"alias-{number % 3}",
        "user_id": "alice",
        "service": "bedrock-runtime",
        "operation": "Converse",
        "model_name": "my-nova",
        "model_id": "us.amazon.nova-lite-v1:0",
        "deployment": "d1",
        "region": "us-west-2",
        "attempts": 1,
        "status": 200,
        "input_tokens": 100,
        "output_tokens": 10,
        "usage_source": "body",
        "cost_picousd": 8_400_000 + number,
    }
    return LedgerEntry(**{**values, **changes})


def random_entry(rng: random.Random, number: int) -> LedgerEntry:
    """An entry of anybody's, on one of three days."""
    return entry(
        number,
        request_id=f"{rng.getrandbits(64):016x}-{number}",
        started_us=START_US // DAY_US * DAY_US + rng.randrange(3 * DAY_US),
        key_hash=rng.choice(["", *(f"{n:064x}" for n in range(4))]),
        user_id=rng.choice(["", "alice", "bob"]),
        team_id=rng.choice(["", "red", "blue"]),
        end_user=rng.choice(["", "e1", "e2", "e3", "Zoë"]),
        tags=tuple(rng.sample(["prod", "test", "a", "b", ""], rng.randrange(4))),
        model_name=rng.choice(["", "nova", "claude"]),
        model_id=rng.choice(["amazon.nova-lite-v1:0", "nova", "anthropic.claude"]),
        deployment=rng.choice(["d1", "d2"]),
        outcome=rng.choice(["complete", "partial", "refused", "failed", "client_gone"]),
        input_tokens=rng.randrange(100_000),
        output_tokens=rng.randrange(100_000),
        cache_read_tokens=rng.randrange(1000),
        cache_write_5m_tokens=rng.randrange(1000),
        cache_write_1h_tokens=rng.randrange(1000),
        cost_picousd=rng.choice([None, 0, rng.randrange(10**15)]),
    )


def run_child(mode: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start ``tests/storage/writer.py``."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.storage.writer", mode, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


class StorageTestCase(TestCase):
    """Has a folder, and what makes databases and ledgers."""

    timeout = 60

    def setUp(self) -> None:
        super().setUp()
        self.folder = os.path.abspath(self.mktemp())
        os.makedirs(self.folder)
        self.logged: list[LogEvent] = []
        globalLogPublisher.addObserver(self.logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.logged.append)

    def messages(self, level: LogLevel = LogLevel.warn) -> list[str]:
        """What was logged, at this level or above."""
        return [
            formatEvent(event)
            for event in self.logged
            if event["log_level"] >= level and event["log_namespace"].startswith("txbedrock")
        ]

    def path(self, *names: str) -> str:
        return os.path.join(self.folder, *names)

    def journal(self, **options: Any) -> Journal:
        return Journal(self.path("journal"), **options)

    def database(self, url: str, **options: Any) -> Database:
        """Closed after the test."""
        database = Database(url, reactor, **options)
        self.addCleanup(lambda: Deferred.fromCoroutine(database.close()))
        return database

    def ledger(self, url: str, journal: Journal | None = None, **options: Any) -> Ledger:
        """Started; stopped after the test unless it was stopped before."""
        options = {"batch_interval_s": 0.01, "flush_interval_s": 0.05, **options}
        ledger = Ledger(journal or self.journal(), self.database(url), reactor, **options)
        ledger.startService()
        self.addCleanup(lambda: ledger.stopService() if ledger.running else None)
        return ledger


class OnSqlite:
    """For a test of each database: a file."""

    def new_url(self) -> str:
        return f"sqlite:///{self.path('ledger.db')}"  # type: ignore[attr-defined]


class OnPostgres:
    """For a test of each database: a server."""

    def new_url(self) -> str:
        return new_database_url()
