"""
Starting, being ready, draining and stopping, in this order.
"""

from __future__ import annotations

import atexit
import os
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.failure import Failure

import twisted
from txbedrock import __version__
from txbedrock.collecting import Collector
from txbedrock.config import LedgerSettings
from txbedrock.errors import LedgerUnavailable
from txbedrock.exchange import Gateway
from txbedrock.inbound.site import Site
from txbedrock.listening import CannotStart, listen, shown
from txbedrock.outbound.agent import Pool
from txbedrock.outbound.credentials import CredentialPool
from txbedrock.storage.database import Database, SchemaTooNew
from txbedrock.storage.journal import Journal, JournalError, JournalInUse
from txbedrock.storage.ledger import Ledger

__all__ = ["GatewayService", "KeptLedger"]


class GatewayService(Service):
    """
    The whole gateway as one service.

    :param listen: endpoint strings.
    :param endpoint: what they mean.
    :param databases: ways to one database. The first is opened at the start, so that
        one that cannot be used is told of; the others are when they are needed.
    :param others: what starts and stops with it, beside the database.
    :param stalls: looks on while requests are welcome.
    :param observer: what logs, set on the application that this service joins.
    :param program: whether it is a program of its own, which heeds signals and
        says on standard error why it does not start.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        listen: Sequence[str],
        *,
        endpoint: Callable[[str], IStreamServerEndpoint],
        site: Callable[[Callable[[], bool]], Site],
        gateway: Gateway,
        credentials: CredentialPool,
        pool: Pool,
        databases: Sequence[Database],
        ledger: KeptLedger | None,
        others: Sequence[Service],
        stalls: Service,
        reload: Callable[[], object],
        shutdown_grace_s: float,
        notices: Sequence[str] = (),
        observer: object = None,
        program: bool = False,
    ) -> None:
        self._reactor = reactor
        self._listen = listen
        self._endpoint = endpoint
        self._gateway = gateway
        self._credentials = credentials
        self._pool = pool
        self._databases = databases
        self._ledger = ledger
        self._others = others
        self._stalls = stalls
        self._collector = Collector(reactor, lambda: gateway.in_flight + self.site.connections)
        self._reload = reload
        self._grace_s = shutdown_grace_s
        self._notices = notices
        self._observer = observer
        self._program = program
        # twistd turns this into a part of the log when it starts.
        self._stderr = sys.stderr
        self._loaded = False
        self._hurry: Callable[[], object] | None = None
        self.site = site(self.is_ready)
        self.ports: list[IListeningPort] = []

    def is_ready(self) -> bool:
        """Are new requests welcome?"""
        kept = self._ledger is None or self._ledger.takes_requests
        return bool(self.running) and self._loaded and kept

    def setServiceParent(self, parent: Any) -> None:
        if self._observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)
        Service.setServiceParent(self, parent)

    # Starting.

    def privilegedStartService(self) -> None:
        """
        Listen, with the rights that twistd may give up afterwards.

        :raises CannotListen: and nothing else.
        """
        self.ports = listen(
            self._reactor,
            self._listen,
            self.site,
            endpoint=self._endpoint,
            program="bedrockproxy" if self._program else "",
            stderr=self._stderr,
        )

    def startService(self) -> None:
        Service.startService(self)
        self._log.info(
            "txbedrock {version} with Twisted {twisted} and Python {python}, process {pid}",
            version=__version__,
            twisted=twisted.__version__,
            python=platform.python_version(),
            pid=os.getpid(),
        )
        if not self.ports:
            # Whoever starts a service directly has no privileged phase.
            self.privilegedStartService()
        if self._program:
            self._reactor.callWhenRunning(self._heed_signals)
        if self._ledger is not None:
            self._start_ledger(self._ledger)
        for database in self._databases[:1]:
            self._log.info("the database is {where}", where=database.shown)
            opening = Deferred.fromCoroutine(database.open())
            opening.addErrback(self._no_database)
        for other in self._others:
            other.startService()
        for notice in self._notices:
            self._log.warn("{notice}", notice=notice)
        self._credentials.startService()
        loading = Deferred.fromCoroutine(self._credentials.loaded())
        loading.addCallback(self._take_requests)
        loading.addErrback(lambda failure: self._log.failure("credentials", failure))

    def _start_ledger(self, kept: KeptLedger) -> None:
        try:
            kept.ledger.startService()
        except (JournalError, JournalInUse) as error:
            for port in self.ports:
                port.stopListening()
            why = getattr(error, "detail", "") or error
            reason = f"the ledger's journal cannot be used: {why}"
            self._log.error("{reason}", reason=reason)
            if self._program:
                print(f"bedrockproxy: {reason}", file=self._stderr, flush=True)
            raise CannotStart(reason) from None

    def _no_database(self, failure: Failure) -> None:
        """It is away, and the journal keeps everything meanwhile; or it is not for us."""
        reason = f"the database: {failure.getErrorMessage()}"
        self._log.error("{reason}", reason=reason)
        if failure.check(SchemaTooNew) and self._program:
            print(f"bedrockproxy: {reason}", file=self._stderr, flush=True)
            # The reactor runs, so the status cannot be that of an exception.
            atexit.register(_fail)
            self._reactor.callWhenRunning(self._reactor.stop)

    def _take_requests(self, _: object) -> None:
        if self._program:
            # A service starts before its reactor does.
            self._collector.startService()
            self._reactor.callWhenRunning(self._ready)
        else:
            self._ready()

    def _ready(self) -> None:
        self._loaded = True
        self._stalls.startService()
        for port in self.ports:
            self._log.info("ready on {address}", address=shown(port.getHost()))

    # Stopping.

    def _heed_signals(self) -> None:
        """
        SIGTERM is a request to stop: the program drains and ends with status 0,
        where Twisted would let it end as if it had been killed. A second signal
        cuts the drain short, where Twisted would log an error. SIGHUP reads the
        prices and the certificates again.
        """
        interrupted = signal.getsignal(signal.SIGINT)

        def stop(number: int, frame: object) -> None:
            if not self.running:
                self._reactor.callFromThread(self.hurry)
            elif number == signal.SIGINT and callable(interrupted):
                interrupted(number, frame)  # type: ignore[arg-type]
            else:
                self._reactor.callFromThread(self._reactor.stop)

        signal.signal(signal.SIGTERM, stop)
        signal.signal(
            signal.SIGHUP, lambda number, frame: self._reactor.callFromThread(self._reload)
        )
        signal.signal(signal.SIGINT, stop)

    def hurry(self) -> None:
        """Wait no longer for what is in flight."""
        if self._hurry is not None:
            self._hurry()

    def stopService(self) -> Deferred[None]:
        """Stop accepting, let what is in flight finish, then go."""
        Service.stopService(self)
        count = self.site.in_flight
        self._log.info(
            "stopping; requests in flight: {count}"
            + (", for at most {grace:g} s" if count else ""),
            count=count,
            grace=self._grace_s,
        )
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await DeferredList([_maybe(port.stopListening()) for port in self.ports])
        self.ports.clear()
        await self._drain()
        # Whatever is left is cut, and recorded as cut.
        self._gateway.stop_draining()
        self.site.abort()
        await self._gateway.idle()
        if self._ledger is not None:
            await _maybe(self._ledger.ledger.stopService())
        for other in self._others:
            await _maybe(other.stopService())
        for database in self._databases:
            await database.close()
        await _maybe(self._stalls.stopService())
        self._collector.stopService()
        await _maybe(self._pool.closeCachedConnections())
        await _maybe(self._credentials.stopService())
        self._log.info("stopped")

    async def _drain(self) -> None:
        late = False

        def give_up() -> None:
            nonlocal late
            late = True
            drained.cancel()

        drained = DeferredList([self.site.drain(), self._gateway.idle()], consumeErrors=True)
        timer = self._reactor.callLater(self._grace_s, give_up)
        self._hurry = lambda: timer.reset(0) if timer.active() else None
        await drained
        self._hurry = None
        if late:
            self._log.warn(
                "cutting off the requests in flight: {count}", count=self.site.in_flight
            )
        else:
            timer.cancel()


class KeptLedger:
    """The ledger, and what it needs."""

    def __init__(self, settings: LedgerSettings, database: Database, reactor: Any) -> None:
        journal = Journal(settings.journal_path, max_bytes=settings.journal_max_bytes)
        self.ledger = Ledger(journal, database, reactor)
        self._refuses = settings.refuse_when_full

    @property
    def takes_requests(self) -> bool:
        """Can what a request costs be kept, or does it not matter?"""
        return self.ledger.accepts or not self._refuses

    def admit(self) -> None:
        """:raises LedgerUnavailable: it cannot be kept, and it matters."""
        if not self.takes_requests:
            failure = self.ledger.failure
            raise LedgerUnavailable(
                "The gateway cannot record what requests cost now, and so carries none.",
                detail="the journal is full" if failure is None else failure.detail,
            )

    def gauges(self) -> dict[str, tuple[str, Callable[[], float]]]:
        """For the metrics."""
        ledger = self.ledger
        return {
            "txbedrock_ledger_lag_seconds": (
                "Age of the oldest record that is not in the database",
                lambda: ledger.lag_s,
            ),
            "txbedrock_ledger_queued": (
                "Records that are not in the database",
                lambda: ledger.queued,
            ),
            "txbedrock_journal_bytes": (
                "Of the journal on disk",
                lambda: ledger.journal_bytes,
            ),
            "txbedrock_ledger_lost": ("Records that could not be kept", lambda: ledger.lost),
            "txbedrock_ledger_set_aside": (
                "Files of records that could not be read or stored",
                lambda: ledger.set_aside,
            ),
            "txbedrock_database_up": (
                "Did the database answer when it was last asked?",
                lambda: float(ledger.database_up),
            ),
        }


def _fail() -> None:
    """End with status 1, at the very end."""
    sys.stdout.flush()
    os._exit(1)


def _maybe(result: Any) -> Deferred[Any]:
    return maybeDeferred(lambda: result)
