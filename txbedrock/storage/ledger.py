"""
The ledger: what every exchange cost, kept once and for good.

An entry is in the journal when :meth:`Ledger.record` returns. From there a writer
moves it to the database, a few hundred at a time, and adds it to running totals
in the same transaction. The request id is the key: an entry that was moved
already, before a ``kill -9`` or a connection that broke in the commit, changes
nothing when it is moved again.

Note [Where an entry waits]
===========================

*Fresh*: in memory, and in this process's folder of the journal. The writer takes
it from memory, and tells the journal afterwards up to which position it may forget.

*Behind*: when the database takes nothing, the fresh ones grow to a bound and are
then dropped from memory. They are in the journal, and one position says from where
on. Until the writer has caught up with the journal's end, it reads from there.

*Adopted*: in the folder of a process that has ended. They are read like those
behind, in turn with this process's own.

*Stranded*: in memory only, since the journal could not be written to. They are
bounded; what is beyond the bound is lost, counted and said.

The writer has one *hand*: the entries that it is storing, or tries to. An entry that
the database refuses for what is in it, such as a cost beyond 64 bits, is set aside
as a file, so that it does not hold up the others.

Note [Reading what is not there yet]
====================================

A finished call has to be seen at once, so an answer is made from the database and
from what waits here. What waits is noted first, then the database is asked: an
entry that moves in between is found twice, never not at all. Found twice it counts
once: a page leaves out what it has already, and sums ask, in the same state of the
database, which of the noted entries are in it.

Note [Half a day]
=================

A budget begins when it is made, not at midnight, and is asked for every few seconds. To add
up the lines since then would cost more with every request: after a million of them a fifth
of a core. But the whole day without the lines before is the same, so the shorter side of it
is read: the first time those since then, from which follows how many there are before.
"""

from __future__ import annotations

import base64
import binascii
import heapq
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any, TypeVar

import msgspec
from dbxs.async_dbapi import AsyncConnection
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from txbedrock.core.entries import (
    DAY_US,
    By,
    Filters,
    LedgerEntry,
    Page,
    Total,
    dimensions,
)
from txbedrock.errors import InvalidRequest
from txbedrock.storage import statements
from txbedrock.storage.database import (
    Contention,
    Database,
    DatabaseUnavailable,
    Duplicate,
    Rows,
    Unstorable,
)
from txbedrock.storage.journal import (
    Batch,
    Corrupt,
    Folder,
    Journal,
    JournalError,
    Position,
    SegmentGone,
    Span,
    encode,
    refused_name,
    set_aside,
)
from txbedrock.storage.statements import COLUMNS, END_OF_TIME, Row

__all__ = ["Ledger"]

T = TypeVar("T")

_MAX_STRANDED = 10_000
_ADOPT_EVERY_S = 60.0
_CONTENTION_RETRY_S = 0.05
_FAILURE_RETRY_S = 5.0
_READ_TRIES = 10
_READ_ENTRIES = 1000
_MAX_BEFORE = 10_000
_EPOCH = date(1970, 1, 1)
_TAGS, _UNITS = COLUMNS.index("tags"), COLUMNS.index("units")
_json = msgspec.json.Encoder().encode


@dataclass(slots=True)
class _Hand:
    """Entries that are being stored."""

    entries: list[LedgerEntry]

    end: Position | None
    """In its folder, after the last of them; None: they are in no folder."""

    folder: Folder | None = None
    """None: this process's own."""


class Ledger(Service):
    """
    Keeps entries, and answers what is asked of them.

    It owns the journal, which it opens and closes; the database is its owner's.

    :param reactor: clock, and threads for files.
    :param batch_entries: so many are moved at once, at most.
    :param batch_interval_s: how long an entry may wait for others.
    :param max_queued: how many may wait in memory when the database is slow or down.
    :param flush_interval_s: how often the journal is brought to the disk.
    :param stop_timeout_s: how long a stop may wait for the database.
    :param wall_clock: POSIX seconds.
    """

    _log = Logger()

    def __init__(
        self,
        journal: Journal,
        database: Database,
        reactor: Any,
        *,
        batch_entries: int = 500,
        batch_interval_s: float = 0.2,
        max_queued: int = 5000,
        flush_interval_s: float = 1.0,
        stop_timeout_s: float = 10.0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._journal = journal
        self._database = database
        self._reactor = reactor
        self._batch_entries = batch_entries
        self._batch_interval_s = batch_interval_s
        self._max_queued = max_queued
        self._flush_interval_s = flush_interval_s
        self._stop_timeout_s = stop_timeout_s
        self._now = wall_clock

        # Each with the segment and the offset after it.
        self._fresh: deque[tuple[LedgerEntry, int, int]] = deque()
        self._stranded: deque[LedgerEntry] = deque()
        self._behind = False
        self._behind_us = 0  # when the oldest of those behind ended, or a little before
        self._taken = Position(0, 0)  # of its own folder, after the last one in hand
        self._adopted_to: dict[str, Position] = {}
        self._own_turn = True
        self._hand: _Hand | None = None

        # How many of a day's entries came before a moment, see Note [Half a day].
        self._before: dict[tuple[str, str | None, int], int] = {}

        self._recorded = 0
        self._moved = 0
        self._replayed = 0
        self._lost = 0
        self._aside = 0

        self._writing = False
        self._timer: Any = None
        self._waiters: list[tuple[int, Deferred[None]]] = []
        self._quiet: Deferred[None] | None = None
        self._over = False
        self._tick_timer: Any = None
        self._adopt_at = 0.0
        self._flushing: Deferred[None] | None = None

    # How it is.

    @property
    def queued(self) -> int:
        """How many entries of this process's are not in the database yet."""
        return self._recorded - self._moved + len(self._stranded)

    @property
    def lag_s(self) -> float:
        """How long ago the oldest of them ended; 0.0 when there are none."""
        times = [_ended_us(entry) for entry in self._oldest()]
        if self._behind:
            times.append(self._behind_us)
        return max(0.0, self._now() - min(times) / 1e6) if times else 0.0

    @property
    def journal_bytes(self) -> int:
        """On disk and not in the database yet; segments go as a whole."""
        return self._journal.bytes

    @property
    def full(self) -> bool:
        """Has the journal reached its bound?"""
        return self._journal.full

    @property
    def failure(self) -> JournalError | None:
        """Why the journal does not take entries; None: it does."""
        return self._journal.failure

    @property
    def accepts(self) -> bool:
        """Can what happens now be kept? What readiness asks."""
        return self._journal.failure is None and not self._journal.full

    @property
    def database_up(self) -> bool:
        """Did the database answer when it was last asked?"""
        return self._database.up

    @property
    def lost(self) -> int:
        """How many entries are in neither journal nor database."""
        return self._lost

    @property
    def set_aside(self) -> int:
        """How many files were set aside: what could not be read or stored."""
        return self._aside

    def _oldest(self) -> Iterable[LedgerEntry]:
        if self._hand is not None and self._hand.entries:
            yield self._hand.entries[0]
        if self._fresh:
            yield self._fresh[0][0]
        if self._stranded:
            yield self._stranded[0]

    # Starting and stopping.

    def startService(self) -> None:
        """
        Open the journal, and begin to replay what other processes left.

        :raises JournalUnwritable: its directory cannot be had.
        """
        self._journal.open()
        Service.startService(self)
        self._taken = self._journal.position
        self._adopt_at = self._reactor.seconds() + _ADOPT_EVERY_S
        self._tick_timer = self._reactor.callLater(self._flush_interval_s, self._tick)
        if self._journal.adopted:
            self._soon(0.0)

    def stopService(self) -> Deferred[None]:
        """Move what waits to the database, within the limit; the rest stays in the journal."""
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        moved = await self.flush(self._stop_timeout_s)
        for timer in (self._timer, self._tick_timer):
            if timer is not None and timer.active():
                timer.cancel()
        self._timer = self._tick_timer = None
        if self._writing:
            # The database may still be at it; it is given a moment, then left alone.
            self._quiet = Deferred()
            await _within(self._reactor, self._quiet, 1.0)
        await self._housekept()
        self._housekeep()
        await self._housekept()
        if not moved:
            self._log.warn(
                "{queued} entries of the ledger stay in the journal until the next start",
                queued=self.queued,
            )
        if self._stranded:
            self._lose(len(self._stranded), "the gateway stops")
        self._over = True
        self._journal.close(moved and not self.queued)

    async def flush(self, timeout_s: float | None = None) -> bool:
        """
        Wait until all that has been recorded so far, and all that other processes
        left, is in the database.

        :param timeout_s: None: however long it takes.
        :returns: False if it took too long.
        """
        if self._is_moved(self._recorded):
            return True
        waiter: Deferred[None] = Deferred()
        item = (self._recorded, waiter)
        self._waiters.append(item)
        self._soon(0.0)
        if timeout_s is None:
            await waiter
            return True
        done = await _within(self._reactor, waiter, timeout_s)
        if item in self._waiters:
            self._waiters.remove(item)
        return done

    # Recording.

    def record(self, entry: LedgerEntry) -> None:
        """
        Keep an entry. When this returns, it is in the journal.

        :raises JournalError: it is not, but it is in memory and the database gets
            it if nothing else happens.
        """
        journal = self._journal
        try:
            entry = journal.append(entry)
        except JournalError:
            self._strand(entry)
            raise
        self._recorded += 1
        if self._behind:
            return
        self._fresh.append((entry, journal.segment, journal.offset))
        queued = len(self._fresh)
        if queued > self._max_queued:
            self._fall_behind()
        elif queued == self._batch_entries:
            self._soon(0.0)
        elif self._timer is None:
            self._soon(self._batch_interval_s)

    def _fall_behind(self) -> None:
        self._behind_us = _ended_us(self._fresh[0][0])
        self._behind = True
        self._fresh.clear()
        self._log.warn("the ledger is behind: entries wait in the journal, not in memory any more")

    def _strand(self, entry: LedgerEntry) -> None:
        if len(self._stranded) >= _MAX_STRANDED or self._over:
            self._lose(1, "the journal cannot be written to, and memory takes no more of them")
        else:
            self._stranded.append(entry)
            self._soon(self._batch_interval_s)

    def _lose(self, count: int, why: str) -> None:
        before, self._lost = self._lost, self._lost + count
        # That it happens and how often, not each time.
        if self._lost.bit_length() > before.bit_length():
            self._log.error(
                "{lost} entries of the ledger are lost: {why}", lost=self._lost, why=why
            )

    # The journal's files.

    def _tick(self) -> None:
        self._tick_timer = self._reactor.callLater(self._flush_interval_s, self._tick)
        if self._reactor.seconds() >= self._adopt_at:
            self._adopt_at = self._reactor.seconds() + _ADOPT_EVERY_S
            try:
                if self._journal.adopt():
                    self._soon(0.0)
            except OSError as error:
                self._log.warn("cannot look for other journals: {error}", error=error)
        self._housekeep()

    def _housekeep(self) -> None:
        if self._flushing is not None:
            return
        job = self._journal.housekeeping()
        if job is None:
            return

        def ended(result: Failure | None) -> None:
            self._flushing = None
            if isinstance(result, Failure):
                if not isinstance(result.value, OSError):
                    self._log.failure("housekeeping of the journal failed", result)
                else:
                    self._journal.flushed(result.value)
            else:
                self._journal.flushed(None)

        self._flushing = self._in_thread(job)
        self._flushing.addBoth(ended)

    async def _housekept(self) -> None:
        """Wait until no thread is at the journal's files."""
        if self._flushing is not None:
            waiter: Deferred[None] = Deferred()
            self._flushing.addBoth(waiter.callback)
            await waiter

    def _in_thread(self, function: Callable[..., T], *arguments: Any) -> Deferred[T]:
        deferred: Deferred[T] = deferToThreadPool(
            self._reactor, self._reactor.getThreadPool(), function, *arguments
        )
        return deferred

    async def _keep_aside(self, name: str, data: bytes, message: str, **values: object) -> None:
        """Set something aside, and say so the first time."""
        path = await self._in_thread(set_aside, self._journal.directory, name, data)
        if path is not None:
            self._aside += 1
            self._log.error(message + "; it is kept in {kept}", kept=path, **values)

    async def _keep_corrupt(self, found: Sequence[Corrupt]) -> None:
        for corrupt in found:
            await self._keep_aside(
                corrupt.name,
                corrupt.data,
                "{bytes} bytes at offset {offset} of {path} are no entries: {reason}",
                bytes=len(corrupt.data),
                offset=corrupt.offset,
                path=corrupt.path,
                reason=corrupt.reason,
            )

    # The writer. There is one at a time.

    def _soon(self, delay_s: float) -> None:
        """Let the writer begin within this time, or when the database may be asked again."""
        if self._writing or self._over:
            return
        delay_s = max(delay_s, self._database.retry_in_s)
        if self._timer is None:
            self._timer = self._reactor.callLater(delay_s, self._begin)
        elif self._timer.getTime() > self._reactor.seconds() + delay_s:
            self._timer.reset(delay_s)

    def _begin(self) -> None:
        self._timer = None
        self._writing = True
        Deferred.fromCoroutine(self._write()).addErrback(
            lambda failure: self._log.failure("the ledger's writer failed", failure)
        )

    async def _write(self) -> None:
        """Move what waits, then sleep; it goes on after whatever happens."""
        delay_s = self._batch_interval_s
        target = self._recorded
        try:
            while not self._is_moved(target) or len(self._fresh) >= self._batch_entries:
                if self._hand is None:
                    self._hand = await self._take()
                if self._hand.entries:
                    await self._store(self._hand.entries)
                if self._over:
                    return
                self._moved_hand(self._hand)
                self._hand = None
                target = max([target, *(wanted for wanted, _ in self._waiters)])
                self._tell_waiters()
        except Contention:
            delay_s = _CONTENTION_RETRY_S
        except DatabaseUnavailable:
            delay_s = max(self._database.retry_in_s, _CONTENTION_RETRY_S)
        except Exception:
            self._log.failure("entries of the ledger cannot be moved to the database")
            delay_s = _FAILURE_RETRY_S
        else:
            if self._waiters:
                delay_s = 0.0
        finally:
            self._writing = False
        if self._quiet is not None:
            quiet, self._quiet = self._quiet, None
            quiet.callback(None)
        elif not self._is_moved(self._recorded):
            self._soon(delay_s)

    def _is_moved(self, target: int) -> bool:
        """Is everything in the database up to that many recorded ones?"""
        return self._moved >= target and not (
            self._stranded or self._hand or self._journal.adopted
        )

    def _tell_waiters(self) -> None:
        done = [item for item in self._waiters if self._is_moved(item[0])]
        for item in done:
            self._waiters.remove(item)
            item[1].callback(None)

    async def _take(self) -> _Hand:
        """The next entries; none when what waited turned out to be nothing."""
        if self._stranded:
            count = min(len(self._stranded), self._batch_entries)
            return _Hand([self._stranded.popleft() for _ in range(count)], None)
        adopted = self._journal.adopted
        self._own_turn = not self._own_turn
        if adopted and (self._own_turn or not (self._fresh or self._behind)):
            folder = adopted[0]
            start = self._adopted_to.get(folder.path, Position(0, 0))
            batch = await self._read(folder.span(start, folder.end))
            return _Hand(batch.entries, batch.end, folder)
        if not self._behind:
            count = min(len(self._fresh), self._batch_entries)
            taken = [self._fresh.popleft() for _ in range(count)]
            if taken:
                self._taken = Position(*taken[-1][1:])
            return _Hand([entry for entry, *_ in taken], self._taken)
        batch = await self._read(self._journal.folder.span(self._taken, self._journal.position))
        self._taken = batch.end
        if batch.entries:
            self._behind_us = _ended_us(batch.entries[-1])
        if batch.end == self._journal.position:
            self._behind = False
            self._log.info("the ledger has caught up with its journal")
        return _Hand(batch.entries, batch.end)

    async def _read(self, span: Span) -> Batch:
        """What a folder that is ours holds."""
        try:
            batch = await self._in_thread(span.read, self._batch_entries)
        except SegmentGone as gone:
            # Nobody but us removes them, as far as we know.
            self._log.error("a segment of the journal has disappeared: {path}", path=str(gone))
            pieces = [piece for piece in span.pieces if piece.path != str(gone)]
            return await self._read(Span(tuple(pieces), span.end))
        await self._keep_corrupt(batch.corrupt)
        return batch

    def _moved_hand(self, hand: _Hand) -> None:
        count = len(hand.entries)
        if hand.folder is not None and hand.end is not None:
            self._adopted_to[hand.folder.path] = hand.end
            self._replayed += count
            self._journal.forget_adopted(hand.folder, hand.end)
            if not self._journal.adopted:
                self._adopted_to.clear()
                self._log.info(
                    "replayed {count} entries that other processes left", count=self._replayed
                )
                self._replayed = 0
        elif hand.end is not None:
            self._moved += count
            self._journal.forget(hand.end)
            if not (self._fresh or self._behind):
                # Also those that could not be read back.
                self._moved = self._recorded

    async def _store(self, entries: Sequence[LedgerEntry]) -> None:
        """Write entries; one that the database refuses is found by halving."""
        try:
            await self._insert(entries)
        except Unstorable as error:
            if len(entries) > 1:
                half = len(entries) // 2
                await self._store(entries[:half])
                await self._store(entries[half:])
                return
            line = encode(entries[0]) + b"\n"
            await self._keep_aside(
                refused_name(line),
                line,
                "the database does not take the entry {request_id}: {reason}",
                request_id=entries[0].request_id,
                reason=str(error),
            )

    async def _insert(self, entries: Sequence[LedgerEntry]) -> None:
        unique = {entry.request_id: entry for entry in reversed(entries)}
        if self._database.dialect == "sqlite":
            try:
                async with self._database.transaction() as connection:
                    await _add_to_sqlite(connection, list(unique.values()))
            except Duplicate:
                # Nothing was done. It is rare enough not to ask before.
                async with self._database.transaction() as connection:
                    known = await self._known(connection, unique)
                    new = [entry for key, entry in unique.items() if key not in known]
                    if new:
                        await _add_to_sqlite(connection, new)
            return
        async with self._database.transaction() as connection:
            postgres = statements.postgres_entries(connection)
            lines = b",".join([encode(entry) for entry in unique.values()])
            new = [unique[key] for key in await postgres.insert(f"[{lines.decode()}]")]
            if new:
                tags = _tags_of(new)
                if tags:
                    await postgres.tag(_json(tags).decode())
                await postgres.add(_json(_totals_of(new)).decode())

    async def _known(self, connection: AsyncConnection, ids: Iterable[str]) -> set[str]:
        """Which of these request ids the database has."""
        wanted = _json(list(ids)).decode()
        if self._database.dialect == "sqlite":
            return set(await statements.sqlite_entries(connection).known(wanted))
        return set(await statements.postgres_entries(connection).known(wanted))

    # Reading.

    async def rows(self, filters: Filters, limit: int = 100, cursor: str | None = None) -> Page:
        """
        Entries, those that started last first.

        :param cursor: of the page before. Entries that come later do not move what
            the following pages show: none is shown twice, none is left out.
        :raises InvalidRequest: the cursor is none of ours.
        :raises DatabaseUnavailable: the database does not answer.
        """
        before = (END_OF_TIME, "") if cursor is None else _from_cursor(cursor)
        for _ in range(_READ_TRIES):
            try:
                return await self._rows(filters, max(1, limit), before)
            except SegmentGone:
                # What was in it is in the database by now.
                continue
        raise DatabaseUnavailable("the ledger moves faster than it can be read")

    async def _rows(self, filters: Filters, limit: int, before: tuple[int, str]) -> Page:
        found: list[LedgerEntry] = []
        waiting, spans = self._waiting()
        async for entries in self._noted(waiting, spans):
            found += [
                entry for entry in entries if filters.match(entry) and _place(entry) < before
            ]
            if len(found) > limit:
                found = heapq.nlargest(limit + 1, found, key=_place)
        async with self._database.transaction(write=False) as connection:
            asked = _parameters(filters)
            asked.update(before_us=before[0], before_id=before[1], limit=limit + 1)
            stored = await getattr(statements.pages(connection), _index(filters))(**asked)
        merged = {entry.request_id: entry for entry in found}
        merged.update((entry.request_id, entry) for entry in map(_entry_of, stored))
        newest = sorted(merged.values(), key=_place, reverse=True)
        page = tuple(newest[:limit])
        return Page(page, _to_cursor(page[-1]) if len(newest) > limit else None)

    async def totals(self, by: By, filters: Filters) -> list[Total]:
        """
        Sums of entries, the most expensive first; days in their order.

        Of whole days, with no filter or one for whatever is summed by, they come
        from running totals, and cost the same however many entries there are; where
        they begin within a day, the more the more there are in the shorter part of it.

        :returns: for ``all`` always one.
        :raises DatabaseUnavailable: the database does not answer.
        """
        for _ in range(_READ_TRIES):
            try:
                sums = await self._totals(by, filters)
                break
            except SegmentGone:
                continue
        else:
            raise DatabaseUnavailable("the ledger moves faster than it can be read")
        if by == "all":
            sums.setdefault("", _Sum())
        else:
            sums.pop("", None)
        totals = [one.total(name) for name, one in sums.items() if one.requests or by == "all"]
        if by == "day":
            return sorted(totals, key=lambda total: total.name)
        return sorted(totals, key=lambda total: (-total.cost_picousd, total.name))

    async def _totals(self, by: By, filters: Filters) -> dict[str, _Sum]:
        sums: dict[str, _Sum] = {}
        counted: set[str] = set()
        waiting, spans = self._waiting()
        async with self._database.transaction(write=False) as connection:
            for name, label, *numbers in await self._stored_totals(connection, by, filters):
                if by == "day":
                    name = _day_name(int(name or 0))
                sums.setdefault(str(name), _Sum()).add_row(str(label), numbers)
            async for entries in self._noted(waiting, spans):
                new = {
                    entry.request_id: entry
                    for entry in entries
                    if filters.match(entry) and entry.request_id not in counted
                }
                if not new:
                    continue
                known = await self._known(connection, new)
                for key, entry in new.items():
                    if key not in known:
                        for name in _names(entry, by, filters):
                            label = entry.key_alias if by == "key" else ""
                            sums.setdefault(name, _Sum()).add(label, _amounts(entry))
                if len(counted) < self._max_queued:
                    # Twice in the memory's part it counts once; a journal that holds
                    # an entry twice is put right when it is moved.
                    counted.update(new)
        return sums

    async def _stored_totals(
        self, connection: AsyncConnection, by: By, filters: Filters
    ) -> list[Row]:
        running = _running_totals(by, filters)
        if running is None:
            return await _lines(connection, by, filters)
        kind, name, first_day, end_day = running

        async def of_days(first: int, end: int) -> list[Row]:
            if self._database.dialect == "sqlite":
                sqlite = statements.sqlite_totals(connection)
                return await sqlite.of_days(by, kind, name, first, end)
            postgres = statements.postgres_totals(connection)
            return await postgres.of_days(by, kind, name, first, end)

        since_us, day_us = filters.since_us or 0, first_day * DAY_US
        if since_us == day_us:
            return await of_days(first_day, end_day)
        # See Note [Half a day].
        day = await of_days(first_day, first_day + 1)
        rest = await of_days(first_day + 1, end_day)
        count = _requests(day)
        moment = kind, name, since_us
        # Without an index those of all others are read, too, however many there are.
        indexed = name is None or _sums_index(by, filters) == kind
        if indexed and self._before.get(moment, count) <= count // 2:
            early = replace(filters, since_us=day_us, until_us=since_us)
            lines = await _lines(connection, by, early)
            before = _requests(lines)
            less = [(what, "", *(-int(n or 0) for n in numbers)) for what, _, *numbers in lines]
            found = [*day, *rest, *less]
        else:
            lines = await _lines(connection, by, replace(filters, until_us=day_us + DAY_US))
            before = count - _requests(lines)
            found = [*rest, *lines]
        if indexed:
            if len(self._before) >= _MAX_BEFORE:
                self._before.clear()
            self._before[moment] = before
        return found

    def _waiting(self) -> tuple[list[LedgerEntry], list[Span]]:
        """What waits now: in memory, and in files."""
        entries = list(self._stranded)
        spans = []
        hand = self._hand
        if hand is not None:
            entries += hand.entries
        entries += [entry for entry, *_ in self._fresh]
        if self._behind:
            spans.append(self._journal.folder.span(self._taken, self._journal.position))
        for folder in self._journal.adopted:
            start = self._adopted_to.get(folder.path, Position(0, 0))
            if hand is not None and hand.folder is folder and hand.end is not None:
                start = hand.end
            spans.append(folder.span(start, folder.end))
        return entries, spans

    async def _noted(
        self, entries: list[LedgerEntry], spans: Iterable[Span]
    ) -> AsyncIterator[list[LedgerEntry]]:
        """
        The same, some at a time.

        :raises SegmentGone: they have moved to the database in the meantime.
        """
        for first in range(0, len(entries), _READ_ENTRIES):
            yield entries[first : first + _READ_ENTRIES]
        for span in spans:
            while span.pieces:
                batch = await self._in_thread(span.read, _READ_ENTRIES)
                yield batch.entries
                span = span.after(batch.end)


class _Sum:
    """A total in the making."""

    def __init__(self) -> None:
        self._label = ""
        self._numbers = [0] * 9

    def add(self, label: str, numbers: Sequence[int]) -> None:
        self._label = label or self._label
        mine = self._numbers
        for index, number in enumerate(numbers):
            mine[index] += number

    def add_row(self, label: str, numbers: Sequence[Any]) -> None:
        """A row of the database: its cost comes in two numbers, PostgreSQL's as decimals."""
        requests, failed, unpriced, mills, rest, *tokens = map(int, numbers)
        self.add(label, (requests, failed, unpriced, mills * 10**9 + rest, *tokens))

    @property
    def requests(self) -> int:
        return self._numbers[0]

    def total(self, name: str) -> Total:
        return Total(name, self._label, *self._numbers)


async def _within(reactor: Any, deferred: Deferred[None], timeout_s: float) -> bool:
    """:returns: whether it came within the time. It is cancelled if not."""
    timer = reactor.callLater(timeout_s, deferred.cancel)
    try:
        await deferred
    except Exception:
        return False
    if timer.active():
        timer.cancel()
    return True


def _ended_us(entry: LedgerEntry) -> int:
    return entry.ended_us or entry.started_us


def _place(entry: LedgerEntry) -> tuple[int, str]:
    """Where an entry stands in the order of time. No two have the same."""
    return entry.started_us, entry.request_id


def _to_cursor(entry: LedgerEntry) -> str:
    text = f"{entry.started_us}:{entry.request_id}".encode()
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def _from_cursor(cursor: str) -> tuple[int, str]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        started, _, key = base64.urlsafe_b64decode(padded.encode()).decode().partition(":")
        place = int(started), key
        if 0 <= place[0] <= END_OF_TIME:
            return place
    except (binascii.Error, ValueError):
        pass
    raise InvalidRequest("The cursor is not one that this gateway gave out.")


def _amounts(entry: LedgerEntry) -> tuple[int, ...]:
    """What an entry adds to a total; :class:`Total` says what the numbers are."""
    return (
        1,
        int(entry.outcome in ("refused", "failed")),
        int(entry.cost_picousd is None),
        entry.cost_picousd or 0,
        entry.input_tokens,
        entry.output_tokens,
        entry.cache_read_tokens,
        entry.cache_write_5m_tokens,
        entry.cache_write_1h_tokens,
    )


async def _add_to_sqlite(connection: AsyncConnection, entries: Sequence[LedgerEntry]) -> None:
    """:raises Duplicate: one of them is there already."""
    sqlite = statements.sqlite_entries(connection)
    await sqlite.insert(Rows(len(COLUMNS), map(_row_of, entries)))
    tags = _tags_of(entries)
    if tags:
        await sqlite.tag(Rows(3, tags))
    await sqlite.add(Rows(13, _totals_of(entries)))


def _row_of(entry: LedgerEntry) -> list[Any]:
    row = list(msgspec.structs.astuple(entry))
    row[_TAGS] = _json(entry.tags).decode() if entry.tags else "[]"
    row[_UNITS] = _json(entry.units).decode() if entry.units else "{}"
    return row


def _entry_of(row: Row) -> LedgerEntry:
    values: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
    values["tags"] = tuple(msgspec.json.decode(values["tags"]))
    values["units"] = msgspec.json.decode(values["units"])
    return LedgerEntry(**values)


def _tags_of(entries: Iterable[LedgerEntry]) -> list[tuple[str, int, str]]:
    return [
        (tag, entry.started_us, entry.request_id)
        for entry in entries
        for tag in dict.fromkeys(entry.tags)
        if tag
    ]


def _totals_of(entries: Iterable[LedgerEntry]) -> list[tuple[str | int, ...]]:
    """Rows of the running totals, in the order in which every process writes them."""
    # Most of a batch are of a few kinds that count for the same: first those are summed up.
    kinds: dict[tuple[object, ...], tuple[LedgerEntry, list[int]]] = {}
    labels: dict[str, str] = {}
    for entry in entries:
        of = (
            entry.started_us // DAY_US,
            entry.key_hash,
            entry.user_id,
            entry.team_id,
            entry.end_user,
            entry.model_name,
            entry.model_id,
            entry.deployment,
            entry.tags,
        )
        known = kinds.get(of)
        if known is None:
            kinds[of] = entry, [*_amounts(entry)]
        else:
            _add(known[1], _amounts(entry))
        if entry.key_alias:
            labels[entry.key_hash] = entry.key_alias
    sums: dict[tuple[str, str, int], list[int]] = {}
    for entry, amounts in kinds.values():
        day = entry.started_us // DAY_US
        for kind, name in dimensions(entry):
            row = sums.get((kind, name, day))
            if row is None:
                sums[kind, name, day] = amounts.copy()
            else:
                _add(row, amounts)
    return [
        (*key, labels.get(key[1], "") if key[0] == "key" else "", *sums[key])
        for key in sorted(sums)
    ]


def _add(sums: list[int], amounts: Sequence[int]) -> None:
    for index, amount in enumerate(amounts):
        if amount:  # Most are zero.
            sums[index] += amount


def _day_name(day: int) -> str:
    return (_EPOCH + timedelta(days=day)).isoformat()


def _names(entry: LedgerEntry, by: By, filters: Filters) -> list[str]:
    """What an entry counts for."""
    if by == "day":
        return [_day_name(entry.started_us // DAY_US)]
    return [
        name
        for kind, name in dimensions(entry)
        if kind == by and (kind != "tag" or filters.tag in (None, name))
    ]


def _parameters(filters: Filters) -> dict[str, str | int | None]:
    return {
        "request_id": filters.request_id,
        "key_hash": filters.key_hash,
        "user_id": filters.user_id,
        "team_id": filters.team_id,
        "end_user": filters.end_user,
        "model": filters.model,
        "tag": filters.tag,
        "deployment": filters.deployment,
        "since_us": 0 if filters.since_us is None else filters.since_us,
        "until_us": END_OF_TIME if filters.until_us is None else filters.until_us,
    }


async def _lines(connection: AsyncConnection, by: By, filters: Filters) -> list[Row]:
    """Sums made line by line, of what has a name."""
    of = statements.overall(connection) if by == "all" else statements.sums(connection)
    sums = getattr(of, _sums_index(by, filters))
    found: list[Row] = await sums(by=by, **_parameters(filters))
    return [row for row in found if row[2] and (row[0] or by == "all")]


def _requests(rows: Iterable[Row]) -> int:
    return sum(int(row[2] or 0) for row in rows)


# The narrowest first.
_INDEXES: tuple[tuple[str, Callable[[Filters], str | None]], ...] = (
    ("request", lambda filters: filters.request_id),
    ("end_user", lambda filters: filters.end_user),
    ("key", lambda filters: filters.key_hash),
    ("user", lambda filters: filters.user_id),
    ("team", lambda filters: filters.team_id),
    ("tag", lambda filters: filters.tag),
    ("model", lambda filters: filters.model),
    ("deployment", lambda filters: filters.deployment),
)


def _index(filters: Filters) -> str:
    """The method of :class:`statements.Pages` that finds these fastest."""
    return next((name for name, value in _INDEXES if value(filters)), "time")


def _sums_index(by: By, filters: Filters) -> str:
    """The same of :class:`statements.Sums`, and of :class:`statements.Overall`."""
    if by == "tag":
        return by
    index = _index(filters)
    if index in ("key", "user", "team", "end_user") or (index == "tag" and by == "all"):
        return index
    return "time"


def _running_totals(by: By, filters: Filters) -> tuple[str, str | None, int, int] | None:
    """
    What of the running totals answers a question.

    :returns: kind, name (None: all of that kind), first day (it may begin within it),
        the day after the last one. None: they do not answer it.
    """
    first, end = filters.since_us or 0, filters.until_us
    if end is not None and (end % DAY_US or end <= first):
        return None
    days = first // DAY_US, END_OF_TIME if end is None else end // DAY_US
    given = {name: value(filters) for name, value in _INDEXES if value(filters) is not None}
    if not given:
        return ("all" if by == "day" else by), None, *days
    [(kind, name), *others] = given.items()
    if others or not name or kind in ("request", "model") or by not in ("all", "day", kind):
        return None
    return kind, name, *days
