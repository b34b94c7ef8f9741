"""
The ledger: nothing lost, nothing twice, seen at once; SQLite and PostgreSQL.
"""

from __future__ import annotations

import errno
import os
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import msgspec
from twisted.internet import reactor
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import LogLevel
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import until
from tests.postgres import server
from tests.storage.helpers import (
    DAY_US,
    START_US,
    OnPostgres,
    OnSqlite,
    StorageTestCase,
    entry,
    random_entry,
)
from txbedrock.core.entries import By, Filters, LedgerEntry, Total, dimensions
from txbedrock.errors import InvalidRequest
from txbedrock.storage import database as database_module
from txbedrock.storage import journal as journal_module
from txbedrock.storage import ledger as ledger_module
from txbedrock.storage.database import DatabaseUnavailable
from txbedrock.storage.journal import JournalFull, JournalUnwritable, encode
from txbedrock.storage.ledger import Ledger
from txbedrock.storage.statements import COLUMNS

FIRST_DAY = START_US // DAY_US * DAY_US


def expected(entries: Iterable[LedgerEntry], by: By, filters: Filters) -> dict[str, Total]:
    """What the sums have to be, added up one by one."""
    sums: dict[str, Counter[str]] = {}
    labels: dict[str, set[str]] = {}
    for one in entries:
        if not filters.match(one):
            continue
        if by == "day":
            day = (one.started_us - FIRST_DAY) // DAY_US
            names = [f"2026-09-{21 + day:02d}"]
        else:
            names = [name for kind, name in dimensions(one) if kind == by]
        if by == "tag" and filters.tag is not None:
            names = [name for name in names if name == filters.tag]
        for name in names:
            labels.setdefault(name, set()).add(one.key_alias if by == "key" else "")
            sums.setdefault(name, Counter()).update(
                requests=1,
                failed=one.outcome in ("refused", "failed"),
                unpriced=one.cost_picousd is None,
                cost_picousd=one.cost_picousd or 0,
                input_tokens=one.input_tokens,
                output_tokens=one.output_tokens,
                cache_read_tokens=one.cache_read_tokens,
                cache_write_5m_tokens=one.cache_write_5m_tokens,
                cache_write_1h_tokens=one.cache_write_1h_tokens,
            )
    if by == "all":
        sums.setdefault("", Counter())
    return {name: Total(name, "", **counts) for name, counts in sums.items()}


def newest_first(entries: Iterable[LedgerEntry]) -> list[LedgerEntry]:
    return sorted(entries, key=lambda one: (one.started_us, one.request_id), reverse=True)


class LedgerTestCase(StorageTestCase):
    """Helpers."""

    new_url: Callable[[], str]

    def setUp(self) -> None:
        super().setUp()
        self.url = self.new_url()

    async def stored(self, what: str = "request_id, cost_picousd") -> list[tuple[Any, ...]]:
        """Rows of the database itself."""
        return await self.ask(f"SELECT {what} FROM txbedrock_ledger ORDER BY request_id")

    async def ask(self, sql: str) -> list[tuple[Any, ...]]:
        database = self.database(self.url)
        async with database.transaction(write=False) as connection:
            cursor = await connection.cursor()
            await cursor.execute(sql)
            found = [tuple(row) for row in await cursor.fetchall()]
        await database.close()
        return found

    async def assert_once(self, entries: Iterable[LedgerEntry]) -> None:
        """These are in the database, each once, and the totals are theirs."""
        wanted = {one.request_id: one for one in entries}
        rows = await self.stored()
        self.assertEqual(
            rows, sorted((one.request_id, one.cost_picousd) for one in wanted.values())
        )
        sums = await self.ask(
            "SELECT kind, sum(requests), sum(cost_picousd), sum(unpriced) FROM txbedrock_totals "
            "WHERE kind IN ('all', 'key') GROUP BY kind"
        )
        by_kind = {kind: tuple(map(int, numbers)) for kind, *numbers in sums}
        for by in ("all", "key"):
            totals = expected(wanted.values(), by, Filters()).values()
            self.assertEqual(
                by_kind.get(by, (0, 0, 0)),
                (
                    sum(total.requests for total in totals),
                    sum(total.cost_picousd for total in totals),
                    sum(total.unpriced for total in totals),
                ),
            )

    def stop_writer(self, ledger: Ledger) -> Callable[[], None]:
        """
        Let entries wait.

        :returns: what lets them go on.
        """
        patch = self.patch(ledger, "_soon", lambda delay_s: None)

        def go_on() -> None:
            patch.restore()
            ledger._soon(0.0)

        return go_on


class RecordMixin:
    """What holds on both: writing."""

    async def test_every_field(self: Any) -> None:
        """An entry comes back as it was, from journal and database."""
        full = LedgerEntry(
            **{
                field.name: {
                    "cost_picousd": 2**62,
                    "tags": ("a", 'b"', "Zoë"),
                    "units": {"images": 3, "guardrail.x": 1},
                }.get(field.name, 7**20 + index if field.type is int else f"{field.name} 'ü\n\\{{")
                for index, field in enumerate(msgspec.structs.fields(LedgerEntry))
            }
        )
        bare = LedgerEntry(request_id="bare", started_us=1)
        ledger = self.ledger(self.url)
        go_on = self.stop_writer(ledger)
        for one in (full, bare):
            ledger.record(one)
        for _ in range(2):
            page = await ledger.rows(Filters())
            self.assertEqual(page.entries, (full, bare))
            self.assertIsNone(page.cursor)
            go_on()
            self.assertTrue(await ledger.flush(10))

    async def test_soon(self: Any) -> None:
        """A finished call is in the database within a moment, without being asked for."""
        ledger = self.ledger(self.url)
        ledger.record(entry(1))
        self.assertEqual(ledger.queued, 1)
        await until(lambda: ledger.queued == 0)
        self.assertEqual(len(await self.stored()), 1)
        self.assertTrue(ledger.database_up)
        self.assertEqual(ledger.lag_s, 0.0)

    async def test_duplicates(self: Any) -> None:
        """An entry that comes twice counts once: in a batch, across batches, across processes."""
        ledger = self.ledger(self.url)
        for _ in range(3):
            ledger.record(entry(1))
            ledger.record(entry(2, cost_picousd=None))
        ledger.record(entry(1, cost_picousd=5))
        await ledger.flush()
        other = self.ledger(self.url)
        for number in (2, 3, 1):
            ledger.record(entry(number))
            other.record(entry(number))
        await ledger.flush()
        await other.flush()
        await self.assert_once([entry(1), entry(2, cost_picousd=None), entry(3)])

    async def test_side_by_side(self: Any) -> None:
        """Two processes that write for the same keys do not get in each other's way."""
        ledgers = [self.ledger(self.url, batch_entries=50) for _ in range(2)]
        rng = random.Random(1)
        entries = [random_entry(rng, number) for number in range(1500)]
        for one in entries:
            for ledger in ledgers:
                ledger.record(one)
            if one.cost_picousd is None:
                await deferLater(reactor, 0)
        for ledger in ledgers:
            await ledger.flush()
        await self.assert_once(entries)

    async def test_commit_unknown(self: Any) -> None:
        """A commit of which nobody knows whether it happened is repeated, and counts once."""
        link = database_module._Link
        commits = []
        real = link.commit

        def commit(self: Any) -> None:
            real(self)
            commits.append(1)
            if len(commits) in (2, 3):
                raise DatabaseUnavailable("the connection broke")

        ledger = self.ledger(self.url)
        await ledger._database.open()
        self.patch(link, "commit", commit)
        entries = [entry(number) for number in range(10)]
        for one in entries:
            ledger.record(one)
            await deferLater(reactor, 0.01)
        await ledger.flush()
        self.assertGreater(len(commits), 3)
        await self.assert_once(entries)

    async def test_restart(self: Any) -> None:
        """What a process left is replayed by the next one, and its journal is gone then."""
        entries = [entry(number) for number in range(1200)]
        journal = self.journal(segment_bytes=50_000)
        journal.open()
        for one in entries:
            journal.append(one)
        journal.close(False)
        ledger = self.ledger(self.url)
        ledger.record(entry(2000))
        self.assertGreater(ledger.journal_bytes, 100_000)
        await ledger.flush()
        await self.assert_once([*entries, entry(2000)])
        await ledger.stopService()
        self.assertEqual(os.listdir(journal.directory), [])
        self.assertIn(
            "replayed 1200 entries that other processes left", self.messages(LogLevel.info)
        )

    async def test_adopted_later(self: Any) -> None:
        """What another process leaves while this one runs is replayed too."""
        self.patch(ledger_module, "_ADOPT_EVERY_S", 0.05)
        self.ledger(self.url)
        other = self.journal()
        other.open()
        other.append(entry(1))
        await deferLater(reactor, 0.15)
        self.assertEqual(await self.stored(), [])
        other.close(False)
        await until(lambda: any("replayed 1" in line for line in self.messages(LogLevel.info)))
        await self.assert_once([entry(1)])

    async def test_corrupt(self: Any) -> None:
        """Lines that are no entries are reported once, kept, and hold up nothing."""
        folder = Path(self.path("journal", "4711-dead"))
        folder.mkdir(parents=True)
        line = journal_module.encode(entry(1)) + b"\n"
        (folder / "00000001.jsonl").write_bytes(line + b"{nonsense\n" + line[:50])
        ledger = self.ledger(self.url)
        await ledger.flush()
        await self.assert_once([entry(1)])
        [message] = self.messages(LogLevel.error)
        self.assertIn(f"10 bytes at offset {len(line)} of {folder}/00000001.jsonl", message)
        [kept] = Path(self.path("journal", "aside")).iterdir()
        self.assertEqual(kept.read_bytes(), b"{nonsense\n")
        self.assertEqual(ledger.set_aside, 1)

    async def test_beyond_64_bits(self: Any) -> None:
        """A cost that no column takes is reported and kept; the others are stored."""
        ledger = self.ledger(self.url)
        entries = [entry(number) for number in range(20)]
        big = entry(99, cost_picousd=2**63)
        for one in [*entries[:7], big, *entries[7:]]:
            ledger.record(one)
        await ledger.flush()
        await self.assert_once(entries)
        [message] = self.messages(LogLevel.error)
        self.assertIn("does not take the entry request-00000099", message)
        [kept] = Path(self.path("journal", "aside")).iterdir()
        self.assertEqual(msgspec.json.decode(kept.read_bytes(), type=LedgerEntry), big)

    async def test_hostile_text(self: Any) -> None:
        """Whatever a client sends as a name can be stored, and asked for."""
        ledger = self.ledger(self.url)
        names = [
            "\0",
            "'; DROP TABLE txbedrock_ledger; --",
            "%s",
            "{ids}",
            "?",
            "Zoë 🎉",
            "x" * 9000,
        ]
        kept = []
        for number, name in enumerate(names):
            ledger.record(entry(number, end_user=name, tags=(name,)))
            kept.append((await ledger.rows(Filters(), 1)).entries[0])
        await ledger.flush()
        await self.assert_once(kept)
        for one in kept:
            for filters in (Filters(end_user=one.end_user), Filters(tag=one.end_user)):
                page = await ledger.rows(filters)
                self.assertEqual(page.entries, (one,))

    async def test_stop(self: Any) -> None:
        """A stop moves what waits; afterwards nothing is taken."""
        ledger = self.ledger(self.url, batch_interval_s=100)
        for number in range(3):
            ledger.record(entry(number))
        await ledger.stopService()
        await self.assert_once([entry(number) for number in range(3)])
        self.assertRaises(JournalUnwritable, ledger.record, entry(4))

    async def test_stop_without_database(self: Any) -> None:
        """A stop does not wait for ever for a database; the next start replays."""
        journal = self.journal()
        ledger = self.ledger(self.away(), journal, stop_timeout_s=0.2)
        ledger.record(entry(1))
        began = reactor.seconds()
        await ledger.stopService()
        self.assertLess(reactor.seconds() - began, 2.0)
        self.assertIn("1 entries of the ledger stay in the journal", self.messages()[-1])
        second = self.ledger(self.url)
        await second.flush()
        await self.assert_once([entry(1)])

    def away(self) -> str:
        """The URL of a database that does not answer."""
        return f"sqlite:///{self.path('nowhere', 'x.db')}"  # type: ignore[attr-defined]

    async def test_flush_takes_too_long(self: Any) -> None:
        """Whoever waits for a database that is away is told so."""
        ledger = self.ledger(self.away(), stop_timeout_s=0.1)
        self.assertTrue(await ledger.flush(0.1))
        ledger.record(entry(1, ended_us=int(ledger._now() * 1e6) - 5_000_000))
        self.assertFalse(await ledger.flush(0.1))
        self.assertFalse(ledger.database_up)
        self.assertEqual(ledger.queued, 1)
        self.assertGreater(ledger.lag_s, 5.0)

    async def test_bounded_memory(self: Any) -> None:
        """While the database is away, entries are in the journal, not in memory."""
        journal = self.journal(segment_bytes=200_000)
        ledger = self.ledger(self.url, journal, max_queued=100, batch_entries=50)
        go_on = self.stop_writer(ledger)
        entries = [entry(number) for number in range(3000)]
        for one in entries:
            ledger.record(one)
            self.assertLessEqual(len(ledger._fresh), 101)
        self.assertEqual((len(ledger._fresh), ledger.queued), (0, 3000))
        self.assertGreater(ledger.lag_s, 1.0)
        page = await ledger.rows(Filters(), 5)
        self.assertEqual(list(page.entries), newest_first(entries)[:5])
        go_on()
        # Some come while it catches up.
        for number in range(3000, 3400):
            entries.append(entry(number))
            ledger.record(entries[-1])
            await deferLater(reactor, 0)
        await ledger.flush()
        await self.assert_once(entries)
        self.assertFalse(ledger._behind)
        self.assertEqual(ledger.queued, 0)
        ledger.record(entry(5000))
        self.assertEqual(len(ledger._fresh), 1)

    async def test_own_segment_damaged(self: Any) -> None:
        """A line of its own that cannot be read back does not hold up the writer."""
        ledger = self.ledger(self.url, max_queued=10)
        go_on = self.stop_writer(ledger)
        for number in range(20):
            ledger.record(entry(number))
        path = ledger._journal.folder.segment(1)
        data = Path(path).read_bytes().splitlines(keepends=True)
        data[3] = b"#" * (len(data[3]) - 1) + b"\n"
        Path(path).write_bytes(b"".join(data))
        go_on()
        self.assertTrue(await ledger.flush(10))
        await self.assert_once([entry(number) for number in range(20) if number != 3])
        self.assertEqual(ledger.queued, 0)
        os.unlink(path)
        ledger.record(entry(21))
        self.assertTrue(await ledger.flush(10))

    async def test_disk_full(self: Any) -> None:
        """Whoever records is told, and the entry gets to the database all the same."""
        ledger = self.ledger(self.url)
        ledger.record(entry(1))

        def refuse(fd: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch = self.patch(journal_module.os, "write", refuse)
        self.assertTrue(ledger.accepts)
        self.assertRaises(JournalUnwritable, ledger.record, entry(2))
        patch.restore()
        self.assertFalse(ledger.accepts)
        self.assertEqual(ledger.queued, 2)
        page = await ledger.rows(Filters())
        self.assertEqual([one.request_id[-1] for one in page.entries], ["2", "1"])
        await until(lambda: ledger.accepts)
        ledger.record(entry(3))
        await ledger.flush()
        await self.assert_once([entry(1), entry(2), entry(3)])
        self.assertEqual(ledger.lost, 0)

    async def test_lost(self: Any) -> None:
        """An entry that is neither on disk nor in memory is counted and said."""
        self.patch(ledger_module, "_MAX_STRANDED", 5)
        max_bytes = 2 * len(encode(entry(0))) + 10
        ledger = self.ledger(self.url, self.journal(max_bytes=max_bytes))
        go_on = self.stop_writer(ledger)
        ledger.record(entry(0))
        ledger.record(entry(1))
        self.assertFalse(ledger.full)
        for number in range(2, 10):
            self.assertRaises(JournalFull, ledger.record, entry(number))
        self.assertEqual(ledger.lost, 3)
        self.assertEqual(len([m for m in self.messages(LogLevel.error) if "are lost" in m]), 2)
        go_on()
        await ledger.flush()
        await self.assert_once([entry(number) for number in range(7)])


class ReadMixin:
    """What holds on both: reading."""

    async def test_ten_thousand(self: Any) -> None:
        """The totals of 10,000 entries are their sum to the pico-USD, in every dimension."""
        rng = random.Random(2)
        entries = [random_entry(rng, number) for number in range(10_000)]
        ledger = self.ledger(self.url)
        for start in range(0, len(entries), 500):
            for one in entries[start : start + 500]:
                ledger.record(one)
            await deferLater(reactor, 0)
        await ledger.flush()
        for by in get_args(By):
            totals = await ledger.totals(by, Filters())
            self.assert_totals(totals, expected(entries, by, Filters()))
        [total] = await ledger.totals("all", Filters())
        self.assertEqual(total.requests, 10_000)
        self.assertEqual(total.cost_picousd, sum(one.cost_picousd or 0 for one in entries))

    def assert_totals(self: Any, found: list[Total], wanted: dict[str, Total]) -> None:
        self.assertEqual(
            {total.name: {**vars_of(total), "label": ""} for total in found},
            {name: vars_of(total) for name, total in wanted.items()},
        )
        self.assertTrue(all(type(total.cost_picousd) is int for total in found))

    async def test_while_it_moves(self: Any) -> None:
        """
        Whatever is asked, the answer is right while entries are in the database,
        in memory, behind in the journal and in another process's journal.
        """
        rng = random.Random(3)
        entries = [random_entry(rng, number) for number in range(400)]
        ledger = self.ledger(self.url, max_queued=60, batch_entries=20)
        for one in entries[:200]:
            ledger.record(one)
        await ledger.flush()
        go_on = self.stop_writer(ledger)
        other = self.journal()
        other.open()
        for one in [*entries[150:200], *entries[200:250]]:
            other.append(one)
        other.close(False)
        ledger._journal.adopt()
        for one in entries[250:330]:
            ledger.record(one)
        self.assertTrue(ledger._behind)
        await self.check_reading(ledger, entries[:330], rng)
        go_on()
        await ledger.flush()
        self.stop_writer(ledger)
        # Some of these are in the database, too.
        for one in entries[310:370]:
            ledger.record(one)
        self.assertFalse(ledger._behind)
        await self.check_reading(ledger, entries[:370], rng)

    async def check_reading(
        self: Any, ledger: Ledger, entries: list[LedgerEntry], rng: random.Random
    ) -> None:
        questions = [Filters()]
        for _ in range(25):
            some = rng.choice(entries)
            questions.append(
                Filters(
                    key_hash=rng.choice([None, None, some.key_hash]),
                    user_id=rng.choice([None, None, some.user_id]),
                    team_id=rng.choice([None, None, some.team_id]),
                    end_user=rng.choice([None, None, some.end_user]),
                    model=rng.choice([None, None, some.model_id, "nova"]),
                    tag=rng.choice([None, None, "prod", "nobody's"]),
                    deployment=rng.choice([None, None, some.deployment]),
                    request_id=rng.choice([None] * 5 + [some.request_id]),
                    since_us=rng.choice([None, FIRST_DAY + DAY_US, some.started_us]),
                    until_us=rng.choice([None, FIRST_DAY + 2 * DAY_US, some.started_us + 1]),
                )
            )
        for name in ("key_hash", "user_id", "team_id", "end_user", "deployment"):
            questions.append(Filters(**{name: getattr(entries[0], name)}))
            questions.append(Filters(**{name: getattr(entries[5], name)}, since_us=FIRST_DAY))
        questions.append(Filters(tag="prod", since_us=FIRST_DAY, until_us=FIRST_DAY + DAY_US))
        for name in ("key_hash", "user_id", "team_id", "end_user", "deployment"):
            some = rng.choice(entries)
            until_us = rng.choice([None, FIRST_DAY + 3 * DAY_US])
            questions.append(
                Filters(**{name: getattr(some, name)}, since_us=some.started_us, until_us=until_us)
            )
        # Soon after midnight, and soon before it.
        for hours in (1, 23):
            since_us = FIRST_DAY + DAY_US + hours * DAY_US // 24
            questions.append(Filters(since_us=since_us))
            questions.append(Filters(tag="prod", since_us=since_us))
        for filters in questions:
            wanted = newest_first(one for one in entries if filters.match(one))
            found: list[LedgerEntry] = []
            cursor = None
            while True:
                page = await ledger.rows(filters, 37, cursor)
                found += page.entries
                cursor = page.cursor
                if cursor is None:
                    break
                self.assertEqual(len(page.entries), 37)
            self.assertEqual(found, wanted, filters)
            for by in rng.sample(get_args(By), 3) * 2:
                totals = await ledger.totals(by, filters)
                self.assert_totals(totals, expected(entries, by, filters))

    async def test_part_of_a_day(self: Any) -> None:
        """
        Whoever asks for a part of a day again and again has its shorter part read line by
        line: that before it or that since then. Of what has no index it is always the latter,
        since the lines of all others are read with it.
        """
        ledger = self.ledger(self.url)
        for number in range(10):
            ledger.record(entry(number, cost_picousd=1, tags=("prod",)))
        await ledger.flush()
        async with ledger._database.transaction() as connection:
            cursor = await connection.cursor()

            async def cost(where: str, cost_picousd: int) -> None:
                await cursor.execute(
                    f"UPDATE txbedrock_ledger SET cost_picousd = {cost_picousd} WHERE {where}"
                )
                await connection.commit()

            for first, others, names in (
                (8, "<", ("user_id", "tag", "deployment", None)),
                (2, ">=", ("user_id", "tag", None)),
                (2, "<", ("deployment",)),
            ):
                since_us = entry(first).started_us
                values = {"user_id": "alice", "tag": "prod", "deployment": "d1"}
                questions = [
                    Filters(since_us=since_us, **({name: values[name]} if name else {}))
                    for name in names
                ]
                for filters in questions:
                    self.assertEqual(await self.spent(ledger, filters), 10 - first)
                # Whoever reads what is not needed will see this.
                await cost(f"started_us {others} {since_us}", 500)
                for filters in questions:
                    self.assertEqual(await self.spent(ledger, filters), 10 - first)
                await cost("1 = 1", 1)

    async def test_part_that_begins_now(self: Any) -> None:
        """Of a budget that begins now no line is ever read, however many come."""
        ledger = self.ledger(self.url)
        filters = Filters(user_id="alice", since_us=entry(1).started_us)
        for first in (1, 2, 8, 32):
            self.assertEqual(await self.spent(ledger, filters), first - 1)
            for number in range(first, first * (4 if first > 1 else 2)):
                ledger.record(entry(number, cost_picousd=1))
            await ledger.flush()
            async with ledger._database.transaction() as connection:
                cursor = await connection.cursor()
                await cursor.execute(
                    "UPDATE txbedrock_ledger SET cost_picousd = 500 WHERE started_us >= "
                    f"{entry(1).started_us}"
                )

    async def test_many_parts(self: Any) -> None:
        """Of very many moments it is forgotten what came before, and the answer is the same."""
        self.patch(ledger_module, "_MAX_BEFORE", 3)
        ledger = self.ledger(self.url)
        for number in range(10):
            ledger.record(entry(number, cost_picousd=1))
        await ledger.flush()
        for first in (*range(10), *range(10)):
            filters = Filters(since_us=entry(first).started_us)
            self.assertEqual(await self.spent(ledger, filters), 10 - first)
        self.assertLessEqual(len(ledger._before), 3)

    async def spent(self: Any, ledger: Ledger, filters: Filters) -> int:
        [total] = await ledger.totals("all", filters)
        self.assertEqual(total.requests, total.cost_picousd)
        return total.cost_picousd

    async def test_names_of_a_part(self: Any) -> None:
        """Who has done nothing since then is not named."""
        ledger = self.ledger(self.url)
        for number in range(9):
            ledger.record(entry(number, user_id="bob" if number else "alice"))
        await ledger.flush()
        for _ in range(2):
            totals = await ledger.totals("user", Filters(since_us=entry(1).started_us))
            self.assertEqual([(total.name, total.requests) for total in totals], [("bob", 8)])

    async def test_reading_while_it_is_written(self: Any) -> None:
        """No entry is missing or counted twice at any moment of its way to the database."""
        journal = self.journal(segment_bytes=5000)
        ledger = self.ledger(self.url, journal, max_queued=60, batch_entries=50)
        count = 0

        def some() -> None:
            nonlocal count
            for _ in range(rng.choice([0, 1, 5, 5, 70])):
                ledger.record(entry(count, cost_picousd=1))
                count += 1

        rng = random.Random(4)
        recording = LoopingCall(some)
        recording.start(0.01)
        for _ in range(40):
            before = count
            [total] = await ledger.totals("all", Filters())
            self.assertEqual(total.cost_picousd, total.requests)
            self.assertTrue(before <= total.requests <= count, (before, total, count))
            before = count
            page = await ledger.rows(Filters(), 20)
            numbers = [int(one.request_id[-8:]) for one in page.entries]
            self.assertEqual(numbers, list(range(numbers[0], numbers[0] - len(numbers), -1)))
            self.assertGreaterEqual(numbers[0], before - 1)
        recording.stop()
        await ledger.flush()

    async def test_cursor(self: Any) -> None:
        """Pages neither repeat nor leave out what was there, while new entries come."""
        ledger = self.ledger(self.url)
        old = [entry(number * 2) for number in range(100)]
        # Many that started in the same microsecond.
        old += [entry(number, request_id=f"same-{number}", started_us=START_US + 50_000)
                for number in range(1000, 1030)]  # fmt: skip
        for one in old:
            ledger.record(one)
        await ledger.flush()
        found: list[LedgerEntry] = []
        cursor = None
        for step in range(100):
            page = await ledger.rows(Filters(), 7, cursor)
            found += page.entries
            cursor = page.cursor
            if cursor is None:
                break
            # New ones, and ones that began earlier and have ended only now.
            ledger.record(entry(10_000 + step))
            ledger.record(entry(step * 2 + 1))
            if step % 3 == 0:
                await ledger.flush()
        keys = [one.request_id for one in found]
        self.assertEqual(len(keys), len(set(keys)))
        self.assertEqual(found, newest_first(found))
        self.assertEqual({one.request_id for one in old} - set(keys), set())

    async def test_bad_cursor(self: Any) -> None:
        """A cursor that is none is the client's mistake."""
        ledger = self.ledger(self.url)
        for cursor in ("", "x", "!!!", "é", "LTE6eA", "YTpi", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTp4"):
            with self.assertRaises(InvalidRequest):
                await ledger.rows(Filters(), 1, cursor)

    async def test_labels(self: Any) -> None:
        """Keys come with their alias."""
        ledger = self.ledger(self.url)
        for number in range(6):
            ledger.record(entry(number))
            if number == 3:
                await ledger.flush()
        for filters in (Filters(), Filters(user_id="alice")):
            totals = await ledger.totals("key", filters)
            self.assertEqual({total.label for total in totals}, {"alias-0", "alias-1", "alias-2"})
            costs = [total.cost_picousd for total in totals]
            self.assertEqual(costs, sorted(costs, reverse=True))

    async def test_nothing(self: Any) -> None:
        """An empty ledger."""
        ledger = self.ledger(self.url)
        self.assertEqual((await ledger.rows(Filters())).entries, ())
        self.assertEqual(await ledger.totals("all", Filters()), [Total("")])
        self.assertEqual(await ledger.totals("key", Filters()), [])

    async def test_unavailable(self: Any) -> None:
        """Without the database there is no answer rather than half of one."""
        ledger = self.ledger(self.away(), stop_timeout_s=0.1)
        ledger.record(entry(1))
        for ask in (lambda: ledger.rows(Filters()), lambda: ledger.totals("all", Filters())):
            with self.assertRaises(DatabaseUnavailable):
                await ask()


def vars_of(total: Total) -> dict[str, Any]:
    return {name: getattr(total, name) for name in Total.__slots__}


class SqliteLedgerTests(RecordMixin, ReadMixin, OnSqlite, LedgerTestCase):
    """SQLite."""

    async def test_total_overflow(self) -> None:
        """A total never wraps and never becomes a float: the entry is reported and kept."""
        ledger = self.ledger(self.url)
        half = 4_500_000_000_000_000_000
        for number in range(3):
            ledger.record(entry(number, cost_picousd=half))
            await ledger.flush()
        ledger.record(entry(3, cost_picousd=0))
        await ledger.flush()
        [total] = await ledger.totals("all", Filters())
        self.assertEqual((total.requests, total.cost_picousd), (3, 2 * half))
        [message] = self.messages(LogLevel.error)
        self.assertIn("does not take the entry request-00000002: ", message)
        self.assertEqual(len(os.listdir(self.path("journal", "aside"))), 1)
        found = await self.ask("SELECT DISTINCT typeof(cost_picousd) FROM txbedrock_totals")
        self.assertEqual(found, [("integer",)])

    async def test_sum_over_days(self) -> None:
        """The sum of several days may be beyond 64 bits; each of them is not."""
        ledger = self.ledger(self.url)
        cost = 8_999_999_999_999_999_999
        for day in range(4):
            ledger.record(entry(day, started_us=START_US + day * DAY_US, cost_picousd=cost))
        await ledger.flush()
        for filters in (Filters(), Filters(user_id="alice"), Filters(since_us=1)):
            [total] = await ledger.totals("all", filters)
            self.assertEqual(total.cost_picousd, 4 * cost)
        [tag] = await ledger.totals("user", Filters(since_us=1))
        self.assertEqual(tag.cost_picousd, 4 * cost)

    async def test_locked(self) -> None:
        """A file that another program holds: entries wait, and nothing is lost."""
        self.patch(database_module, "_BUSY_S", 0.05)
        ledger = self.ledger(self.url)
        await ledger._database.open()
        other = sqlite3.connect(self.path("ledger.db"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        for number in range(10):
            ledger.record(entry(number))
        self.assertFalse(await ledger.flush(0.3))
        self.assertEqual(ledger.queued, 10)
        other.execute("ROLLBACK")
        other.close()
        await ledger.flush()
        await self.assert_once([entry(number) for number in range(10)])

    async def test_away_under_load(self) -> None:
        """A file that cannot be had at first: see the same test with PostgreSQL."""
        url = f"sqlite:///{self.path('later', 'ledger.db')}"
        ledger = self.ledger(url, max_queued=200, batch_entries=50)
        for number in range(2000):
            ledger.record(entry(number))
        await deferLater(reactor, 0.3)
        self.assertFalse(ledger.database_up)
        os.mkdir(self.path("later"))
        await ledger.flush()
        self.url = url
        await self.assert_once([entry(number) for number in range(2000)])


class PostgresLedgerTests(RecordMixin, ReadMixin, OnPostgres, LedgerTestCase):
    """PostgreSQL."""

    async def test_total_beyond_64_bits(self) -> None:
        """A total is exact, however large."""
        ledger = self.ledger(self.url)
        cost = 2**63 - 1
        for number in range(5):
            ledger.record(entry(number, cost_picousd=cost))
        await ledger.flush()
        for filters in (Filters(), Filters(user_id="alice", team_id="")):
            [total] = await ledger.totals("all", filters)
            self.assertEqual(total.cost_picousd, 5 * cost)

    async def test_away_under_load(self) -> None:
        """
        The database is stopped for a while and started again: nothing is lost,
        nothing counts twice, and memory does not grow.
        """
        journal = self.journal(segment_bytes=200_000)
        ledger = self.ledger(self.url, journal, max_queued=500, batch_entries=100)
        count = 0
        longest = 0

        def some() -> None:
            nonlocal count, longest
            for _ in range(20):
                ledger.record(entry(count))
                count += 1
            longest = max(longest, len(ledger._fresh))

        recording = LoopingCall(some)
        recording.start(0.004)
        await deferLater(reactor, 0.2)
        self.assertTrue(ledger.database_up)
        for how in ("INT", "QUIT"):
            server().stop(how)
            self.addCleanup(lambda: server()._process or server().start())
            await deferLater(reactor, 0.7)
            self.assertFalse(ledger.database_up)
            self.assertGreater(ledger.queued, 500)
            self.assertTrue(ledger._behind)
            server().start()
            await until(lambda: ledger.database_up)
            await deferLater(reactor, 0.3)
        recording.stop()
        self.assertTrue(await ledger.flush(30))
        self.assertLessEqual(longest, 500)
        await self.assert_once([entry(number) for number in range(count)])
        self.assertEqual(ledger.queued, 0)


class ColumnTests(SynchronousTestCase):
    """The schema and the entry."""

    def test_columns(self) -> None:
        """Every field of an entry has a column on both databases, and no column is left over."""
        for dialect in ("sqlite", "postgres"):
            sql = "".join(file.sql for file in database_module.load_schema(dialect))
            table = sql.split("CREATE TABLE txbedrock_ledger (")[1].split("\n)")[0]
            names = [line.split()[0] for line in table.strip().splitlines()]
            added = [line.split()[5] for line in sql.splitlines()
                     if line.startswith("ALTER TABLE txbedrock_ledger ADD COLUMN")]  # fmt: skip
            self.assertEqual(sorted([*names, *added]), sorted(COLUMNS), dialect)
