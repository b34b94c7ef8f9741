"""
A process that writes until it is killed, and says what it has written.

What it prints was kept before: an answer could have gone out.
"""

from __future__ import annotations

import importlib
import itertools
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator

from tests.storage.helpers import entry
from txbedrock.core.entries import LedgerEntry
from txbedrock.storage.journal import Journal, JournalError


def entries() -> Iterator[LedgerEntry]:
    """Of many lengths, the long ones over a page; never the same in two processes."""
    pid = os.getpid()
    for number in itertools.count():
        yield entry(number, request_id=f"{pid}-{number}", session_id="s" * (number * 37 % 500),
                    tags=("x" * (number % 97),) * (number % 50))  # fmt: skip


def say(kept: LedgerEntry) -> None:
    os.write(1, f"{kept.request_id} {kept.cost_picousd}\n".encode())


def write_journal(directory: str) -> None:
    """As fast as it goes, in small segments."""
    journal = Journal(directory, segment_bytes=100_000)
    journal.open()
    for one in entries():
        journal.append(one)
        say(one)


def write_ledger(directory: str, url: str) -> None:
    """With a database, in the middle of whose commits it may be killed."""
    from twisted.internet import reactor, task

    from txbedrock.storage.database import Database
    from txbedrock.storage.ledger import Ledger

    journal = Journal(directory, segment_bytes=100_000)
    ledger = Ledger(journal, Database(url, reactor), reactor, batch_interval_s=0.005)
    ledger.startService()
    source = entries()

    def some() -> None:
        for one in itertools.islice(source, 40):
            ledger.record(one)
            say(one)

    task.LoopingCall(some).start(0.002)
    reactor.run()  # type: ignore[attr-defined]


def write_limited(directory: str) -> None:
    """No file may grow beyond 50,000 bytes: the disk is full there."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    journal = Journal(directory)
    journal.open()
    for one in itertools.islice(entries(), 1000):
        try:
            journal.append(one)
            say(one)
        except JournalError as error:
            print("refused", one.request_id, error.detail, flush=True)


def open_database(url: str) -> None:
    """Bring the schema up to date."""
    from twisted.internet import reactor
    from twisted.internet.defer import Deferred

    from txbedrock.storage.database import Database

    async def opened() -> None:
        try:
            database = Database(url, reactor)
            await database.open()
            await database.close()
            print("opened", flush=True)
        except Exception as error:
            print(repr(error), error, flush=True)
        reactor.stop()  # type: ignore[attr-defined]

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(opened()))  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


def fork() -> None:
    """
    Fork a writer for each line of standard input, and say its number: to start a
    Python for each would take a hundred times as long as its life.

    A line is a file for its output, a mode, and what that takes.
    """
    # The reactor itself must be each process's own.
    importlib.import_module("twisted.internet.epollreactor")
    importlib.import_module("txbedrock.storage.ledger")
    importlib.import_module("psycopg")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        output, mode, *arguments = line.split()
        pid = os.fork()
        if not pid:
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
            MODES[mode](*arguments)
        print(pid, flush=True)


MODES: dict[str, Callable[..., None]] = {
    "journal": write_journal,
    "ledger": write_ledger,
    "limited": write_limited,
    "open": open_database,
    "fork": fork,
}

if __name__ == "__main__":
    MODES[sys.argv[1]](*sys.argv[2:])
