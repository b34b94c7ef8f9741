"""
A database, SQLite or PostgreSQL, that never blocks the reactor.

Statements are declared with `dbxs`: SQL in sight, parameters bound. They run in
:meth:`Database.transaction`, each connection in a thread of its own::

    class IUsers(Protocol):
        @query(sql="SELECT name FROM txbedrock_users WHERE id = {id}", load=maybe(str))
        async def name(self, id: int) -> str | None: ...

    users = accessor(IUsers)

    async with database.transaction(write=False) as connection:
        name = await users(connection).name(7)

Note [Connections of our own]
=============================

`dbxs` has an adapter over DB-API drivers, and a pool. Here are others behind its
interfaces, for two reasons that can be measured. There a statement is seven
trips to the thread and back (one each for the cursor, the execution, every row,
closing the cursor twice), and a transaction of one statement 500 us of CPU; here
a statement is one trip, and such a transaction 75 us. And a connection that
broke stays in that pool as if it were well, where a :class:`_Link` opens itself
anew.

Note [Upgrades]
===============

The schema is a series of numbered files, one for each database system:
``schema/0001_ledger.sqlite.sql``, ``schema/0001_ledger.postgres.sql``. A change
is a new file, never an edit of an old one. Whoever opens the database brings it
up to date first, in one transaction and under a lock (PostgreSQL: an advisory
one, SQLite: that of ``BEGIN IMMEDIATE``), so that many processes may start at
once. A database that is ahead of the program is refused when the program starts:
what its newer tables mean is not known here. A program that is running already
goes on when another one upgrades the database under it.
"""

from __future__ import annotations

import os
import re
import select
import socket
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from queue import SimpleQueue
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from dbxs.async_dbapi import AsyncConnection
from dbxs.dbapi import DBAPIColumnDescription
from twisted.internet.defer import Deferred, DeferredList, DeferredSemaphore
from twisted.logger import Logger
from twisted.python.failure import Failure

from txbedrock.errors import ProxyError

__all__ = [
    "Contention",
    "Database",
    "DatabaseUnavailable",
    "DatabaseUrlError",
    "Duplicate",
    "Rows",
    "SchemaFile",
    "SchemaTooNew",
    "Unstorable",
    "load_schema",
]

T = TypeVar("T")
Parameters = Sequence[Any]

_SCHEMA_TABLE = "txbedrock_schema"

# "txbedroc", as a number: what PostgreSQL's advisory lock is known by.
_UPGRADE_LOCK = 0x7478626564726F63

_BUSY_S = 5.0
_UPGRADE_S = 300.0
_STATEMENT_S = 30.0
_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 5.0


class DatabaseUrlError(ValueError):
    """The URL is none that can be used. It is not shown: it may hold a password."""


class DatabaseUnavailable(ProxyError):
    """The database cannot be asked now. SDKs retry it."""

    status = 503
    code = "ServiceUnavailableException"

    def __init__(self, reason: str) -> None:
        super().__init__("The gateway's database does not answer at the moment.", detail=reason)

    def __str__(self) -> str:
        return self.detail


class SchemaTooNew(DatabaseUnavailable):
    """A newer version of this program has upgraded the database."""


class Contention(DatabaseUnavailable):
    """Another transaction was in the way; nothing was done, it may be tried again."""


class Unstorable(Exception):
    """The database does not take these values, and never will."""


class Duplicate(Unstorable):
    """Something that there may be only once is there already."""


class Rows(NamedTuple):
    """
    The rows of a statement that is carried out once for each: the only
    parameter, in place of the whole list of values::

        @statement(sql="INSERT INTO t (a, b) VALUES {rows}")
        async def insert(self, rows: Rows) -> None: ...

    :ivar width: how many values a row has.
    :ivar values: taken in the connection's thread.
    """

    width: int
    values: Iterable[Sequence[object]]


@dataclass(frozen=True, slots=True)
class SchemaFile:
    """A step of the schema."""

    number: int
    name: str
    sql: str


def load_schema(dialect: str) -> tuple[SchemaFile, ...]:
    """
    The steps that this version of the program knows, in order.

    :param dialect: ``sqlite`` or ``postgres``.
    """
    files = []
    for entry in resources.files("txbedrock.storage").joinpath("schema").iterdir():
        found = re.fullmatch(rf"(\d{{4}})_(\w+)\.{dialect}\.sql", entry.name)
        if found:
            text = entry.read_text(encoding="utf-8")
            files.append(SchemaFile(int(found[1]), found[2], text))
    return tuple(sorted(files, key=lambda file: file.number))


class _Driver(Protocol):
    """What SQLite and PostgreSQL do differently. All of it runs in a connection's thread."""

    dialect: str
    paramstyle: str
    shown: str
    writers: int
    readers: int

    def connect(self) -> Any:
        """A DB-API connection that begins no transactions by itself."""

    def begin(self, write: bool) -> str:
        """A read-only transaction sees one state from its first statement to its end."""

    def begin_upgrade(self, connection: Any) -> None:
        """Begin a transaction that no other process can be in."""

    def has_schema(self, connection: Any) -> bool: ...

    def script(self, connection: Any, sql: str) -> None:
        """Several statements."""

    def translated(self, error: Exception) -> Exception | None:
        """One of ours for one of the driver's."""

    def listens(self) -> bool:
        """Can others tell us something?"""

    def heard(self, connection: Any) -> list[str]:
        """What was said since it was asked last. Waits for nothing."""


class _Sqlite:
    """
    A file in WAL mode: one connection writes, others read meanwhile.

    ``synchronous=FULL``: a commit is on the disk. NORMAL would do for a ``kill -9``,
    but the journal gives up its lines after the commit, and after a power failure
    they would be nowhere. It is one ``fsync`` a batch, in a thread.
    """

    dialect = "sqlite"
    paramstyle = "qmark"
    writers = 1
    readers = 2

    def __init__(self, path: str) -> None:
        if sqlite3.sqlite_version_info < (3, 37):
            raise DatabaseUrlError(
                f"SQLite 3.37 or newer is needed; this Python has {sqlite3.sqlite_version}"
            )
        self._path = os.path.abspath(path)
        self.shown = f"sqlite:///{self._path}"

    def connect(self) -> sqlite3.Connection:
        # Nobody else has to read who spent what.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            # SQLite waits for no lock here: of two processes that begin with an
            # empty file, one is told that it is locked.
            until = time.monotonic() + _BUSY_S
            while True:
                try:
                    connection.execute("PRAGMA journal_mode = WAL")
                    return connection
                except sqlite3.OperationalError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.02)
        except BaseException:
            connection.close()
            raise

    def begin(self, write: bool) -> str:
        return "BEGIN IMMEDIATE" if write else "BEGIN"

    def begin_upgrade(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA busy_timeout = {int(_UPGRADE_S * 1000)}")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA busy_timeout = {int(_BUSY_S * 1000)}")

    def has_schema(self, connection: sqlite3.Connection) -> bool:
        return bool(
            connection.execute(
                "SELECT 1 FROM sqlite_master WHERE name = ?", (_SCHEMA_TABLE,)
            ).fetchone()
        )

    def script(self, connection: sqlite3.Connection, sql: str) -> None:
        # executescript() would commit first.
        statement = ""
        for line in sql.splitlines(keepends=True):
            statement += line
            if sqlite3.complete_statement(statement):
                connection.execute(statement)
                statement = ""
        if statement.strip():
            connection.execute(statement)

    def translated(self, error: Exception) -> Exception | None:
        if isinstance(error, OverflowError):
            return Unstorable("a number is beyond 64 bits")
        if not isinstance(error, sqlite3.Error):
            # A folder that is not there.
            return DatabaseUnavailable(str(error)) if isinstance(error, OSError) else None
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Contention(str(error))
        taken = (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
        if getattr(error, "sqlite_errorcode", 0) in taken:
            return Duplicate(str(error))
        unstorable = (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG)
        if code in unstorable or isinstance(error, sqlite3.DataError):
            return Unstorable(str(error))
        return DatabaseUnavailable(str(error))

    def listens(self) -> bool:
        return False

    def heard(self, connection: Any) -> list[str]:
        return []


# What Prisma, and so LiteLLM, takes in a URL and libpq does not know.
_PRISMA_ONLY = (
    "connection_limit",
    "pgbouncer",
    "pool_timeout",
    "schema",
    "socket_timeout",
    "statement_cache_size",
)


class _Postgres:
    """
    psycopg 3, a thread a connection.

    Time limits are set in each transaction, not in the session, and nothing is
    prepared: so it also works behind PgBouncer.
    """

    dialect = "postgres"
    paramstyle = "pyformat"
    writers = 2
    readers = 2

    def __init__(self, url: str) -> None:
        try:
            import psycopg
            from psycopg import conninfo
        except ImportError:
            raise DatabaseUrlError(
                "for PostgreSQL psycopg is needed: pip install 'txbedrock[postgres]'"
            ) from None
        self._psycopg = psycopg
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        schema = options.get("schema", "")
        # Prisma's way to say that connections are not kept between transactions.
        self._pooled = options.get("pgbouncer") == "true"
        kept = {name: value for name, value in options.items() if name not in _PRISMA_ONLY}
        try:
            given = conninfo.conninfo_to_dict(
                urlunsplit(("postgresql", *parts[1:3], urlencode(kept), ""))
            )
        except psycopg.Error:
            raise DatabaseUrlError(
                "not a URL of PostgreSQL, such as postgresql://user:password@host:5432/name"
            ) from None
        self._conninfo: dict[str, Any] = {
            "connect_timeout": 5,
            "application_name": "txbedrock",
            "keepalives_idle": 15,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            **given,
        }
        self._settings = (
            f"; SET LOCAL statement_timeout = {int(_STATEMENT_S * 1000)}"
            # A process that is stopped in a transaction must not stop the others.
            f"; SET LOCAL idle_in_transaction_session_timeout = {int(_STATEMENT_S * 1000)}"
        )
        if schema:
            name = schema.replace('"', '""')
            self._settings += f'; SET LOCAL search_path TO "{name}"'
        user = f"{given['user']}@" if given.get("user") else ""
        host = given.get("host") or given.get("hostaddr") or ""
        self.shown = f"postgresql://{user}{host}/{given.get('dbname') or ''}"

    def connect(self) -> Any:
        return self._psycopg.connect(autocommit=True, prepare_threshold=None, **self._conninfo)

    def begin(self, write: bool) -> str:
        mode = "READ WRITE" if write else "ISOLATION LEVEL REPEATABLE READ, READ ONLY"
        return f"BEGIN {mode}{self._settings}"

    def begin_upgrade(self, connection: Any) -> None:
        connection.execute(self.begin(True))
        connection.execute(f"SET LOCAL statement_timeout = {int(_UPGRADE_S * 1000)}")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_UPGRADE_LOCK,))

    def has_schema(self, connection: Any) -> bool:
        # Not to_regclass(): it may still believe that the table, for which it was
        # asked before another process made it, is not there.
        found = connection.execute(
            "SELECT 1 FROM pg_catalog.pg_tables "
            "WHERE tablename = %s AND schemaname = ANY (current_schemas(false))",
            (_SCHEMA_TABLE,),
        )
        return found.fetchone() is not None

    def script(self, connection: Any, sql: str) -> None:
        connection.execute(sql)

    def translated(self, error: Exception) -> Exception | None:
        errors = self._psycopg.errors
        if not isinstance(error, errors.Error):
            return None
        reason = " ".join(str(error).split())
        contention = (errors.SerializationFailure, errors.DeadlockDetected,
                      errors.LockNotAvailable, errors.QueryCanceled)  # fmt: skip
        if isinstance(error, contention):
            return Contention(reason)
        if isinstance(error, errors.UniqueViolation):
            return Duplicate(reason)
        unstorable = (errors.DataError, errors.IntegrityError, errors.ProgramLimitExceeded)
        if isinstance(error, unstorable):
            return Unstorable(reason)
        return DatabaseUnavailable(reason)

    def listens(self) -> bool:
        return not self._pooled

    def heard(self, connection: Any) -> list[str]:
        return [notify.payload for notify in connection.notifies(timeout=0)]


def _driver(url: str) -> _Driver:
    scheme, _, rest = url.partition("://")
    if scheme == "sqlite":
        # As SQLAlchemy has it: sqlite:///relative.db, sqlite:////absolute.db.
        path = unquote(rest.partition("?")[0].removeprefix("/"))
        if not rest.startswith("/") or not path or path == ":memory:":
            raise DatabaseUrlError(
                "SQLite needs a file: sqlite:///txbedrock.db, or sqlite:////var/lib/txbedrock.db"
            )
        return _Sqlite(path)
    if scheme in ("postgres", "postgresql"):
        return _Postgres(url)
    raise DatabaseUrlError("expected sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME")


def _upgrade(
    driver: _Driver, connection: Any, schema: Sequence[SchemaFile], tolerant: bool
) -> None:
    """See Note [Upgrades]."""
    newest = schema[-1]

    def version() -> int:
        if not driver.has_schema(connection):
            return 0
        number, name = connection.execute(
            f"SELECT number, name FROM {_SCHEMA_TABLE} ORDER BY number DESC LIMIT 1"
        ).fetchone() or (0, "")
        if number > newest.number and not tolerant:
            raise SchemaTooNew(
                f"the database's schema is at step {number} ({name}); this txbedrock knows "
                f"{newest.number} ({newest.name}) and none after it. Start the version of "
                "txbedrock that upgraded the database, or a newer one."
            )
        return int(number)

    connection.execute(driver.begin(False))
    try:
        current = version() >= newest.number
    finally:
        connection.rollback()
    if current:
        return
    driver.begin_upgrade(connection)
    try:
        # Another process may have done it while this one waited for the lock.
        found = version()
        if not driver.has_schema(connection):
            connection.execute(
                f"CREATE TABLE {_SCHEMA_TABLE} (number BIGINT PRIMARY KEY, "
                "name TEXT NOT NULL, applied_us BIGINT NOT NULL)"
            )
        for file in schema:
            if file.number > found:
                driver.script(connection, file.sql)
                mark = "?" if driver.paramstyle == "qmark" else "%s"
                connection.execute(
                    f"INSERT INTO {_SCHEMA_TABLE} VALUES ({mark}, {mark}, {mark})",
                    (file.number, file.name, time.time_ns() // 1000),
                )
        connection.commit()
    except BaseException:
        connection.rollback()
        raise


class _Link:
    """
    A DB-API connection that opens when it is first used, and again after it broke.

    It lives in its thread; everything here is called there.
    """

    def __init__(self, driver: _Driver, write: bool, upgrade: Callable[[Any], None]) -> None:
        self._driver = driver
        self._begin = driver.begin(write)
        self._upgrade = upgrade
        self._raw: Any = None
        self._begun = False
        self._shut = False

    def execute(
        self, operation: str, parameters: Parameters
    ) -> tuple[Sequence[DBAPIColumnDescription] | None, list[Any], int]:
        """
        Carry out a statement, in a transaction.

        :returns: the columns (None: it is no query), all rows, how many it changed.
        """
        try:
            if self._shut:
                raise DatabaseUnavailable("the database is closed")
            if self._raw is None:
                self._raw = self._open()
            if not self._begun:
                self._raw.execute(self._begin)
                self._begun = True
            cursor = self._raw.cursor()
            try:
                if len(parameters) == 1 and isinstance(parameters[0], Rows):
                    self._execute_rows(cursor, operation, parameters[0])
                else:
                    cursor.execute(operation, parameters)
                rows = [] if cursor.description is None else cursor.fetchall()
                return cursor.description, rows, cursor.rowcount
            finally:
                cursor.close()
        except Exception as error:
            self._fail(error)

    def _execute_rows(self, cursor: Any, operation: str, rows: Rows) -> None:
        mark = "?" if self._driver.paramstyle == "qmark" else "%s"
        assert operation.count(mark) == 1, "the rows have to be the only parameter"
        marks = ", ".join([mark] * rows.width)
        cursor.executemany(operation.replace(mark, f"({marks})"), rows.values)

    def _open(self) -> Any:
        raw = self._driver.connect()
        try:
            self._upgrade(raw)
        except BaseException:
            raw.close()
            raise
        return raw

    def commit(self) -> None:
        """:raises DatabaseUnavailable: whether it was committed is not known."""
        if not self._begun:
            return
        try:
            self._raw.commit()
            self._begun = False
        except Exception as error:
            self.close()
            self._fail(error)

    def rollback(self) -> None:
        """Never raises."""
        if not self._begun:
            return
        try:
            self._raw.rollback()
            self._begun = False
        except Exception:
            self.close()

    def close(self) -> None:
        """Never raises."""
        raw, self._raw, self._begun = self._raw, None, False
        if raw is not None:
            try:
                raw.close()
            except Exception:
                pass

    def shut(self) -> None:
        """Close for good."""
        self._shut = True
        self.close()

    def _fail(self, error: Exception) -> NoReturn:
        """:raises Exception: the driver's error as one of ours."""
        ours = self._driver.translated(error) or error
        if isinstance(ours, DatabaseUnavailable) and not isinstance(ours, Contention):
            self.close()
        if ours is error:
            raise error
        raise ours from error


class _Worker:
    """A thread that does one thing after the other."""

    def __init__(self, call_from_thread: Callable[..., object], name: str) -> None:
        self._call_from_thread = call_from_thread
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # A daemon: a database that never answers must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for work in iter(self._work.get, None):
            work()

    def perform(self, function: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """Call a function in the thread."""
        deferred: Deferred[T] = Deferred()

        def work() -> None:
            try:
                result = function(*arguments)
            except BaseException:
                self._call_from_thread(deferred.errback, Failure())
            else:
                self._call_from_thread(deferred.callback, result)

        self._work.put(work)
        return deferred

    def stop(self) -> None:
        self._work.put(None)


class _Cursor:
    """An ``AsyncCursor`` of dbxs's: all rows come with the execution."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._description: Sequence[DBAPIColumnDescription] | None = None
        self._rows: list[Any] = []
        self._count = -1
        self._next = 0

    async def execute(self, operation: str, parameters: Any = ()) -> object:
        link, worker = self._connection.link, self._connection.worker
        self._description, self._rows, self._count = await worker.perform(
            link.execute, operation, parameters
        )
        self._next = 0
        return None

    async def description(self) -> Sequence[DBAPIColumnDescription] | None:
        return self._description

    async def rowcount(self) -> int:
        return self._count

    async def fetchone(self) -> Sequence[Any] | None:
        if self._next >= len(self._rows):
            return None
        self._next += 1
        row: Sequence[Any] = self._rows[self._next - 1]
        return row

    async def fetchall(self) -> Sequence[Sequence[Any]]:
        rows, self._next = self._rows[self._next :], len(self._rows)
        return rows

    async def close(self) -> None:
        self._rows = []


class _Connection:
    """An ``AsyncConnection`` of dbxs's."""

    def __init__(self, link: _Link, worker: _Worker, paramstyle: str) -> None:
        self.link = link
        self.worker = worker
        self._paramstyle = paramstyle

    @property
    def paramstyle(self) -> str:
        return self._paramstyle

    async def cursor(self) -> _Cursor:
        return _Cursor(self)

    async def commit(self) -> None:
        await self.worker.perform(self.link.commit)

    async def rollback(self) -> None:
        await self.worker.perform(self.link.rollback)

    async def close(self) -> None:
        await self.worker.perform(self.link.shut)
        self.worker.stop()


class _Pool:
    """A few connections that all do the same, made when they are needed."""

    def __init__(self, make: Callable[[], _Connection], size: int) -> None:
        self._make = make
        self.size = size
        self.permits = DeferredSemaphore(size)
        self._idle: list[_Connection] = []
        self._all: list[_Connection] = []

    def take(self) -> _Connection:
        if self._idle:
            return self._idle.pop()
        connection = self._make()
        self._all.append(connection)
        return connection

    def give_back(self, connection: _Connection) -> None:
        self._idle.append(connection)

    def close(self) -> list[Deferred[None]]:
        """A statement that is being carried out ends first; its transaction fails."""
        everything, self._all, self._idle = self._all, [], []
        return [Deferred.fromCoroutine(one.close()) for one in everything]


class _Listener:
    """
    A thread with a connection that only listens, and opens anew after it broke.

    :param channel: an identifier that needs no quotes.
    """

    _log = Logger()

    def __init__(
        self,
        driver: _Driver,
        call_from_thread: Callable[..., object],
        channel: str,
        received: Callable[[str], None],
        connected: Callable[[], None],
    ) -> None:
        self._driver = driver
        self._call_from_thread = call_from_thread
        self._channel = channel
        self._received = received
        self._connected = connected
        self._over = threading.Event()
        # What a thread can wait for besides its connection.
        self._here, self._there = socket.socketpair()
        threading.Thread(target=self._run, name="database listener", daemon=True).start()

    def stop(self) -> None:
        """Nothing is called any more; the thread ends by itself. May be called again."""
        self._over.set()
        self._there.close()

    def _run(self) -> None:
        failures = 0
        while not self._over.is_set():
            try:
                connection = self._driver.connect()
                try:
                    connection.execute(f"LISTEN {self._channel}")
                    self._call(self._connected)
                    failures = 0
                    self._listen(connection)
                finally:
                    connection.close()
            except Exception as error:
                if self._over.is_set():
                    break
                if not failures:
                    self._call(self._tell, " ".join(str(error).split()))
                pause_s = min(_LAST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(failures, 10))
                failures += 1
                self._wait(pause_s)
        self._here.close()

    def _listen(self, connection: Any) -> None:
        """Until it is stopped."""
        while True:
            # Something may have come with the answer to LISTEN.
            for text in self._driver.heard(connection):
                self._call(self._received, text)
            if self._wait(None, connection.fileno()):
                return

    def _wait(self, timeout_s: float | None, *others: int) -> bool:
        """
        Wait until there is something to read, or it is to stop.

        :returns: is it to stop?
        """
        poll = select.poll()
        for number in (self._here.fileno(), *others):
            poll.register(number, select.POLLIN)
        poll.poll(None if timeout_s is None else timeout_s * 1000)
        return self._over.is_set()

    def _call(self, function: Callable[..., None], *arguments: str) -> None:
        def call() -> None:
            if not self._over.is_set():
                function(*arguments)

        self._call_from_thread(call)

    def _tell(self, reason: str) -> None:
        self._log.info(
            "what other processes change is not heard of at once: {reason}", reason=reason
        )


class Database:
    """
    A database, its schema up to date.

    Making one connects to nothing; the first transaction does, and so does the
    first one after the database was away. While it is away, transactions fail at
    once, and one is let through from time to time to see.

    :param url: ``sqlite:///FILE``, or ``postgresql://USER:PASSWORD@HOST/NAME`` with
        whatever libpq takes in it. Relative to the current directory.
    :param schema: the steps of the schema, for tests.
    :raises DatabaseUrlError: it is neither, or the driver is not installed.
    """

    _log = Logger()

    def __init__(
        self, url: str, reactor: Any, *, schema: Sequence[SchemaFile] | None = None
    ) -> None:
        self._driver = driver = _driver(url)
        self._reactor = reactor
        self._schema = tuple(schema or load_schema(driver.dialect))
        self._known = False  # the schema was seen, and is not too new
        self._writers = _Pool(lambda: self._connection(True), driver.writers)
        self._readers = _Pool(lambda: self._connection(False), driver.readers)
        self._listeners: list[_Listener] = []
        self._closed = False
        self._up = False
        self._failures = 0
        self._retry_at = 0.0
        self._down_since = 0.0
        self._reason = ""

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgres``."""
        return self._driver.dialect

    @property
    def shown(self) -> str:
        """Where it is, for logs: without the password."""
        return self._driver.shown

    @property
    def up(self) -> bool:
        """Did it answer when it was last asked?"""
        return self._up

    @property
    def retry_in_s(self) -> float:
        """When it makes sense to ask again; 0: now."""
        return max(0.0, self._retry_at - float(self._reactor.seconds()))

    async def open(self) -> None:
        """
        Connect, and bring the schema up to date. Not needed, but it says early
        what is wrong.

        :raises SchemaTooNew: a newer txbedrock has upgraded the database.
        :raises DatabaseUnavailable: it does not answer, or refuses us.
        """
        async with self.transaction() as connection:
            cursor = await connection.cursor()
            await cursor.execute(f"SELECT number FROM {_SCHEMA_TABLE} LIMIT 1")

    async def close(self, timeout_s: float = 5.0) -> None:
        """
        Disconnect. Transactions should have ended before.

        :param timeout_s: how long to wait for a database that says nothing.
        """
        self._closed = True
        for listener in self._listeners:
            listener.stop()
        closing = DeferredList(
            [*self._writers.close(), *self._readers.close()], consumeErrors=True
        )
        timer = self._reactor.callLater(timeout_s, closing.cancel)
        try:
            await closing
        finally:
            if timer.active():
                timer.cancel()

    @asynccontextmanager
    async def transaction(self, *, write: bool = True) -> AsyncIterator[AsyncConnection]:
        """
        What is done within it is done altogether or not at all.

        :param write: if not, all statements see the same state of the database.
        :raises DatabaseUnavailable: it does not answer. Whether a transaction was
            committed is not known if that is where it happened.
        :raises Contention: another one was in the way; try again.
        :raises Unstorable: it does not take the values.
        """
        pool = self._writers if write else self._readers
        self._refuse()
        await pool.permits.acquire()
        try:
            # It may have gone while this one waited for its turn.
            self._refuse()
            connection = pool.take()
            try:
                try:
                    yield connection
                except BaseException:
                    await connection.rollback()
                    raise
                await connection.commit()
            finally:
                pool.give_back(connection)
        except (Contention, Unstorable):
            self._came()
            raise
        except DatabaseUnavailable as error:
            self._went(error)
            raise
        finally:
            pool.permits.release()
        self._came()

    def listen(
        self, channel: str, received: Callable[[str], None], connected: Callable[[], None]
    ) -> Callable[[], None]:
        """
        Hear what is said on a channel of PostgreSQL's (``NOTIFY``), on a connection
        of its own. What is said while that is broken is lost. On SQLite nobody says
        anything, nor where ``pgbouncer=true`` is in the URL; behind a PgBouncer that
        is not mentioned nothing may be heard.

        :param channel: an identifier that needs no quotes.
        :param received: called with each payload.
        :param connected: called whenever it begins to listen.
        :returns: call it to stop; :meth:`close` does, too.
        """
        if self._closed or not self._driver.listens():
            return lambda: None
        listener = _Listener(
            self._driver, self._reactor.callFromThread, channel, received, connected
        )
        self._listeners.append(listener)
        return listener.stop

    def _connection(self, write: bool) -> _Connection:
        kind = "writer" if write else "reader"
        return _Connection(
            _Link(self._driver, write, self._bring_up_to_date),
            _Worker(self._reactor.callFromThread, f"database {kind}"),
            self._driver.paramstyle,
        )

    def _bring_up_to_date(self, raw: Any) -> None:
        """In a connection's thread."""
        _upgrade(self._driver, raw, self._schema, tolerant=self._known)
        self._known = True

    def _refuse(self) -> None:
        if self._closed:
            raise DatabaseUnavailable("the database is closed")
        if self._failures and self.retry_in_s > 0:
            raise DatabaseUnavailable(self._reason)

    def _went(self, error: DatabaseUnavailable) -> None:
        if self._closed or (self._failures and self.retry_in_s > 0):
            return
        now = self._reactor.seconds()
        if not self._failures:
            self._down_since = now
            self._log.error(
                "the database {database} does not answer: {reason}",
                database=self.shown,
                reason=error.detail,
            )
        self._up = False
        self._reason = error.detail
        self._retry_at = now + min(_LAST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(self._failures, 10))
        self._failures += 1

    def _came(self) -> None:
        if self._failures:
            self._log.info(
                "the database {database} answers again, after {seconds:.1f} s",
                database=self.shown,
                seconds=self._reactor.seconds() - self._down_since,
            )
        self._up = True
        self._failures = 0
