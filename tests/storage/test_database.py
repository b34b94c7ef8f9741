"""
The database: schema, transactions, going away and coming back; SQLite and PostgreSQL.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from typing import Any, Protocol

import psycopg
from dbxs import accessor, many, maybe, one, query, statement
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import LogLevel
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import until
from tests.postgres import server
from tests.storage.helpers import OnPostgres, OnSqlite, StorageTestCase, run_child
from txbedrock.storage.database import (
    Contention,
    Database,
    DatabaseUnavailable,
    DatabaseUrlError,
    Rows,
    SchemaFile,
    SchemaTooNew,
    Unstorable,
    load_schema,
)

THINGS = SchemaFile(1, "things", "CREATE TABLE things (id BIGINT PRIMARY KEY, name TEXT);")
COLOURS = SchemaFile(
    2, "colours", "ALTER TABLE things ADD COLUMN colour TEXT;\nUPDATE things SET colour = 'red';"
)
BROKEN = SchemaFile(3, "broken", "CREATE TABLE others (id BIGINT);\nSELECT nonsense;")


class IThings(Protocol):
    @statement(sql="INSERT INTO things (id, name) VALUES ({id}, {name})")
    async def add(self, id: int, name: str) -> None: ...

    @statement(sql="INSERT INTO things (id, name) VALUES {rows} ON CONFLICT DO NOTHING")
    async def add_all(self, rows: Rows) -> None: ...

    @query(sql="SELECT name FROM things WHERE id = {id}", load=maybe(lambda _, name: name))
    async def name(self, id: int) -> str | None: ...

    @query(sql="SELECT id FROM things ORDER BY id", load=many(lambda _, id: id))
    def ids(self) -> Any: ...

    @query(sql="SELECT count(*) FROM things", load=one(lambda _, count: count))
    async def count(self) -> int: ...


things = accessor(IThings)


async def run(database: Database, sql: str, write: bool = True) -> list[Any]:
    """Carry out one statement in a transaction of its own."""
    async with database.transaction(write=write) as connection:
        cursor = await connection.cursor()
        await cursor.execute(sql)
        return list(await cursor.fetchall())


class DatabaseMixin:
    """What holds on both."""

    new_url: Callable[[], str]
    slow: str

    def open(self: Any, *schema: SchemaFile, url: str | None = None) -> Database:
        self.url = url or self.new_url()
        return self.database(self.url, schema=schema or (THINGS,))

    async def test_transaction(self: Any) -> None:
        """All of it or nothing; and dbxs's statements run in it."""
        database = self.open()
        self.assertFalse(database.up)
        async with database.transaction() as connection:
            await things(connection).add(1, "one")
            await things(connection).add(2, "zwei Äpfel")
        self.assertTrue(database.up)

        async def fails() -> None:
            async with database.transaction() as connection:
                await things(connection).add(3, "three")
                raise ZeroDivisionError

        await self.assertFailure(Deferred.fromCoroutine(fails()), ZeroDivisionError)
        async with database.transaction(write=False) as connection:
            reader = things(connection)
            self.assertEqual(await reader.name(2), "zwei Äpfel")
            self.assertIsNone(await reader.name(3))
            self.assertEqual([id async for id in reader.ids()], [1, 2])

    async def test_rows(self: Any) -> None:
        """A statement for many rows is one trip."""
        database = self.open()
        rows = [(number, f"name {number}") for number in range(1000)]
        async with database.transaction() as connection:
            await things(connection).add_all(Rows(2, iter(rows)))
            await things(connection).add_all(Rows(2, iter(rows[:10])))
            self.assertEqual(await things(connection).count(), 1000)

    async def test_one_state(self: Any) -> None:
        """A reader sees one state, whatever is written meanwhile; and it does not wait."""
        database = self.open()
        async with database.transaction(write=False) as connection:
            self.assertEqual(await things(connection).count(), 0)
            await run(database, "INSERT INTO things VALUES (1, 'one')")
            self.assertEqual(await things(connection).count(), 0)
        async with database.transaction(write=False) as connection:
            self.assertEqual(await things(connection).count(), 1)

    async def test_many_at_once(self: Any) -> None:
        """More transactions than connections wait for their turn."""
        database = self.open()

        async def add(number: int) -> None:
            async with database.transaction() as connection:
                await things(connection).add(number, "x")

        await gatherResults([Deferred.fromCoroutine(add(number)) for number in range(50)])
        self.assertEqual(await run(database, "SELECT count(*) FROM things"), [(50,)])

    async def test_cancelled(self: Any) -> None:
        """A transaction that is cancelled is undone, and its connection goes on."""
        database = self.open()
        await database.open()

        async def slow() -> None:
            async with database.transaction() as connection:
                await things(connection).add(1, "one")
                cursor = await connection.cursor()
                await cursor.execute(self.slow)

        cancelled = [Deferred.fromCoroutine(slow()) for _ in range(4)]
        await deferLater(reactor, 0.02)
        for deferred in cancelled:
            deferred.cancel()
            deferred.addErrback(lambda _: None)
        self.assertEqual(await run(database, "SELECT count(*) FROM things"), [(0,)])

    async def test_reactor_goes_on(self: Any) -> None:
        """A slow statement does not hold up the reactor."""
        database = self.open()
        await database.open()
        pauses: list[float] = []
        last = [time.monotonic()]

        def tick() -> None:
            now = time.monotonic()
            pauses.append(now - last[0])
            last[0] = now

        ticking = LoopingCall(tick)
        ticking.start(0.002)
        began = time.monotonic()
        await run(database, self.slow, write=False)
        took = time.monotonic() - began
        ticking.stop()
        self.assertGreater(took, 0.1)
        self.assertGreater(len(pauses), 10)
        self.assertLess(max(pauses), took / 2)

    async def test_unstorable(self: Any) -> None:
        """Values that it never takes are not an outage."""
        database = self.open()
        await run(database, "INSERT INTO things VALUES (1, 'one')")
        for sql in ("INSERT INTO things VALUES (1, 'again')",):
            failed = Deferred.fromCoroutine(run(database, sql))
            await self.assertFailure(failed, Unstorable)

        async def too_big() -> None:
            async with database.transaction() as connection:
                await things(connection).add(2**63, "big")

        await self.assertFailure(Deferred.fromCoroutine(too_big()), Unstorable)
        self.assertTrue(database.up)
        self.assertEqual(await run(database, "SELECT count(*) FROM things"), [(1,)])

    async def test_steps(self: Any) -> None:
        """A database is brought up to date, its data kept; a step is taken once."""
        database = self.open(THINGS)
        await run(database, "INSERT INTO things VALUES (1, 'one')")
        await database.close()
        for _ in range(2):
            database = self.open(THINGS, COLOURS, url=self.url)
            found = await run(database, "SELECT id, name, colour FROM things")
            self.assertEqual(found, [(1, "one", "red")])
            steps = await run(database, "SELECT number, name FROM txbedrock_schema ORDER BY 1")
            self.assertEqual(steps, [(1, "things"), (2, "colours")])
            await database.close()

    async def test_broken_step(self: Any) -> None:
        """A step that fails leaves the database as it was."""
        database = self.open(THINGS, COLOURS, BROKEN)
        await self.assertFailure(Deferred.fromCoroutine(database.open()), DatabaseUnavailable)
        await database.close()
        database = self.open(THINGS, url=self.url)
        await database.open()
        self.assertEqual(await run(database, "SELECT number FROM txbedrock_schema"), [(1,)])

    async def test_too_new(self: Any) -> None:
        """A database that a newer version has upgraded is refused, with what to do."""
        await self.open(THINGS, COLOURS).open()
        older = self.open(THINGS, url=self.url)
        error = await self.assertFailure(Deferred.fromCoroutine(older.open()), SchemaTooNew)
        self.assertIn("at step 2 (colours)", str(error))
        self.assertIn("knows 1 (things)", str(error))
        self.assertIn("Start the version of txbedrock that upgraded", str(error))
        self.assertEqual(error.status, 503)

    async def test_upgraded_under_us(self: Any) -> None:
        """A program that runs goes on when a newer one upgrades the database."""
        older = self.open(THINGS)
        await older.open()
        await self.open(THINGS, COLOURS, url=self.url).open()
        # Connections that are new, for both kinds.
        for write in (True, False):
            self.assertEqual(await run(older, "SELECT count(*) FROM things", write), [(0,)])

    async def test_two_processes(self: Any) -> None:
        """Several processes may start at once on an empty database."""
        url = self.new_url()
        children = [run_child("open", url) for _ in range(3)]
        outputs = [child.communicate(timeout=30)[0] for child in children]
        self.assertEqual(outputs, [b"opened\n"] * 3)
        database = self.database(url)
        steps = await run(database, "SELECT number, name FROM txbedrock_schema ORDER BY 1")
        known = load_schema(database.dialect)
        self.assertEqual(steps, [(file.number, file.name) for file in known])

    async def test_closed(self: Any) -> None:
        """A closed database is not asked any more."""
        database = self.open()
        await database.open()
        await database.close()
        await self.assertFailure(Deferred.fromCoroutine(database.open()), DatabaseUnavailable)


class SqliteTests(DatabaseMixin, OnSqlite, StorageTestCase):
    """SQLite."""

    slow = """
        WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1500000)
        SELECT max(x) FROM n
    """

    async def test_file(self) -> None:
        """The file is its owner's only; readers do not wait for writers."""
        database = self.open()
        await database.open()
        path = self.path("ledger.db")
        self.assertEqual(os.stat(path).st_mode & 0o077, 0)
        self.assertEqual(await run(database, "PRAGMA journal_mode"), [("wal",)])
        self.assertEqual(await run(database, "PRAGMA synchronous"), [(2,)])
        self.assertEqual(database.shown, f"sqlite:///{path}")

    async def test_no_folder(self) -> None:
        """A folder that is not there is said, and it may come later."""
        database = self.database(f"sqlite:///{self.path('later', 'ledger.db')}", schema=[THINGS])
        error = await self.assertFailure(
            Deferred.fromCoroutine(database.open()), DatabaseUnavailable
        )
        self.assertIn("No such file or directory", str(error))
        # At once, without trying.
        self.assertGreater(database.retry_in_s, 0)
        await self.assertFailure(Deferred.fromCoroutine(database.open()), DatabaseUnavailable)
        self.assertEqual(len(self.messages(LogLevel.error)), 1)
        os.mkdir(self.path("later"))
        await until(lambda: database.retry_in_s == 0)
        await database.open()
        self.assertTrue(database.up)
        self.assertIn("answers again", self.messages(LogLevel.info)[-1])

    async def test_not_a_database(self) -> None:
        """Some other file is not written over."""
        path = self.path("text.db")
        with open(path, "w") as file:
            file.write("This is no database. " * 500)
        database = self.database(f"sqlite:///{path}")
        error = await self.assertFailure(
            Deferred.fromCoroutine(database.open()), DatabaseUnavailable
        )
        self.assertIn("not a database", str(error))

    async def test_busy(self) -> None:
        """A file that another program locks for long is contention, not an outage."""
        self.patch(__import__("txbedrock.storage.database").storage.database, "_BUSY_S", 0.05)
        database = self.open()
        await database.open()
        other = sqlite3.connect(self.path("ledger.db"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await self.assertFailure(Deferred.fromCoroutine(database.open()), Contention)
        self.assertTrue(database.up)
        other.execute("ROLLBACK")
        other.close()
        await database.open()

    async def test_back_off(self) -> None:
        """The longer it is away, the longer the pauses, up to five seconds."""
        database = self.database(f"sqlite:///{self.path('never', 'x.db')}", schema=[THINGS])
        pauses = []
        for _ in range(8):
            database._retry_at = 0.0
            await self.assertFailure(Deferred.fromCoroutine(database.open()), DatabaseUnavailable)
            pauses.append(round(database.retry_in_s, 1))
        self.assertEqual(pauses, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])


class PostgresTests(DatabaseMixin, OnPostgres, StorageTestCase):
    """PostgreSQL."""

    slow = "SELECT pg_sleep(0.3)"

    async def test_connection_lost(self) -> None:
        """A connection that the server has ended is replaced by the next transaction but one."""
        database = self.open()
        await database.open()
        server().execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'txbedrock'"
        )
        await self.assertFailure(Deferred.fromCoroutine(database.open()), DatabaseUnavailable)
        self.assertFalse(database.up)
        await until(lambda: database.retry_in_s == 0)
        await database.open()
        self.assertTrue(database.up)

    async def test_server_away(self) -> None:
        """While it is away nobody waits; when it is back, it is used."""
        database = self.open()
        await database.open()
        server().stop()
        self.addCleanup(lambda: server()._process or server().start())
        for _ in range(3):
            began = time.monotonic()
            await self.assertFailure(Deferred.fromCoroutine(database.open()), DatabaseUnavailable)
            self.assertLess(time.monotonic() - began, 1.0)
        self.assertEqual(len(self.messages(LogLevel.error)), 1)
        server().start()
        await until(lambda: database.retry_in_s == 0)
        await database.open()
        self.assertTrue(database.up)

    async def test_deadlock(self) -> None:
        """Of two transactions that wait for each other one is told to try again."""
        database = self.open()
        await run(database, "INSERT INTO things VALUES (1, 'a'), (2, 'b')")
        here: list[Deferred[None]] = [Deferred(), Deferred()]

        async def update(first: int, second: int) -> None:
            async with database.transaction() as connection:
                cursor = await connection.cursor()
                await cursor.execute(f"UPDATE things SET name = 'x' WHERE id = {first}")
                here[first - 1].callback(None)
                await here[second - 1]
                await cursor.execute(f"UPDATE things SET name = 'x' WHERE id = {second}")

        both = [Deferred.fromCoroutine(update(1, 2)), Deferred.fromCoroutine(update(2, 1))]
        results = []
        for deferred in both:
            deferred.addCallbacks(lambda _: "done", lambda failure: failure.type)
            results.append(await deferred)
        self.assertEqual(set(results), {"done", Contention})
        self.assertTrue(database.up)

    async def test_schema_in_url(self) -> None:
        """A URL with what only Prisma knows, as LiteLLM's users have it."""
        url = self.new_url()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute('CREATE SCHEMA "My ""own"')
        url += "&schema=My%20%22own&connection_limit=5&pgbouncer=true&pool_timeout=3"
        for _ in range(2):
            database = self.open(url=url)
            await database.open()
            found = await run(
                database, "SELECT schemaname FROM pg_tables WHERE tablename = 'things'"
            )
            self.assertEqual(found, [('My "own',)])
            await database.close()

    async def test_no_rights(self) -> None:
        """What PostgreSQL refuses is said in its words."""
        url = self.new_url()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE ROLE guest LOGIN")
            connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        self.addCleanup(lambda: server().execute("DROP ROLE guest"))
        database = self.open(url=url.replace("postgres@", "guest@"))
        error = await self.assertFailure(
            Deferred.fromCoroutine(database.open()), DatabaseUnavailable
        )
        self.assertIn("permission denied for schema public", str(error))

    def test_password(self) -> None:
        """The password is in no log."""
        database = Database("postgresql://me:s3cret@db.example:5433/bedrock", reactor)
        self.assertEqual(database.shown, "postgresql://me@db.example/bedrock")


class UrlTests(SynchronousTestCase):
    """Where the database is."""

    def test_bad(self) -> None:
        """A URL that is none says what one looks like, and never shows itself."""
        for url in (
            "", "ledger.db", "mysql://a:s3cret@b/c", "sqlite://", "sqlite:///", "sqlite:///:memory:",
            "sqlite://host/file",
            "postgresql://a:s3cret@b/c?nonsense=1",
        ):  # fmt: skip
            error = self.assertRaises(DatabaseUrlError, Database, url, reactor)
            self.assertRegex(str(error), "sqlite:///|postgresql://")
            self.assertNotIn("s3cret", str(error))

    def test_relative(self) -> None:
        """A relative path is one of the folder in which the gateway was started."""
        database = Database("sqlite:///a%20b.db", reactor)
        self.assertEqual(database.shown, f"sqlite:///{os.getcwd()}/a b.db")
        database = Database("sqlite:////var/lib/a.db", reactor)
        self.assertEqual(database.shown, "sqlite:////var/lib/a.db")

    def test_schema_files(self) -> None:
        """Both systems have the same steps, numbered without a gap."""
        sqlite, postgres = load_schema("sqlite"), load_schema("postgres")
        steps = [(file.number, file.name) for file in sqlite]
        self.assertEqual(steps, [(file.number, file.name) for file in postgres])
        self.assertEqual([number for number, _ in steps], list(range(1, len(steps) + 1)))
