"""
Starting, being ready, draining and stopping, in this order.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized

import twisted
from txbedrock import __version__, data
from txbedrock.config import Settings
from txbedrock.core.endpoints import Endpoints
from txbedrock.core.models import Models
from txbedrock.core.operations import Operations
from txbedrock.exchange import DrainLimits, Gateway
from txbedrock.inbound.proxy import ProxyResource
from txbedrock.inbound.root import resource_tree
from txbedrock.inbound.site import ClientLimits, Site
from txbedrock.interfaces import IExchangeLog, IKeyStore
from txbedrock.listening import listen, shown
from txbedrock.logs import AccessLog
from txbedrock.outbound.agent import ExactAgent, Pool, https_policy
from txbedrock.outbound.client import ForwardingClient
from txbedrock.outbound.credentials import CredentialPool
from txbedrock.outbound.upstream import Upstream
from txbedrock.signer import Signer
from txbedrock.storage.keys import AnyKey, MasterKey

__all__ = ["GatewayService", "build"]


class GatewayService(Service):
    """
    The whole gateway as one service.

    :param listen: Twisted endpoint strings.
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
        site: Callable[[Callable[[], bool]], Site],
        gateway: Gateway,
        credentials: CredentialPool,
        pool: Pool,
        shutdown_grace_s: float,
        notices: Sequence[str] = (),
        observer: object = None,
        program: bool = False,
    ) -> None:
        self._reactor = reactor
        self._listen = listen
        self._gateway = gateway
        self._credentials = credentials
        self._pool = pool
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
        return bool(self.running) and self._loaded

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
        for notice in self._notices:
            self._log.warn("{notice}", notice=notice)
        self._credentials.startService()
        loading = Deferred.fromCoroutine(self._credentials.loaded())
        loading.addCallback(self._take_requests)
        loading.addErrback(lambda failure: self._log.failure("credentials", failure))

    def _take_requests(self, _: object) -> None:
        if self._program:
            # A service starts before its reactor does.
            self._reactor.callWhenRunning(self._ready)
        else:
            self._ready()

    def _ready(self) -> None:
        self._loaded = True
        for port in self.ports:
            self._log.info("ready on {address}", address=shown(port.getHost()))

    # Stopping.

    def _heed_signals(self) -> None:
        """
        SIGTERM is a request to stop: the program drains and ends with status 0,
        where Twisted would let it end as if it had been killed. A second signal
        cuts the drain short, where Twisted would log an error.
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


def _maybe(result: Any) -> Deferred[Any]:
    return maybeDeferred(lambda: result)


def build(
    settings: Settings,
    reactor: Any,
    listen: Sequence[str],
    environ: Mapping[str, str],
    *,
    log: IExchangeLog | None = None,
    observer: object = None,
    program: bool = False,
    wall_clock: Callable[[], float] = time.time,
) -> GatewayService:
    """
    Make the parts and join them.

    :param environ: what AWS credentials are looked up in.
    :param log: where exchanges are recorded; the log by default.
    :param observer, program: see :class:`GatewayService`.
    """
    limits = settings.limits
    known = {deployment.credentials for deployment in settings.deployments}
    if settings.default is not None:
        known.add(settings.default.credentials)
    credentials = CredentialPool(
        reactor, known, environ=environ, deadline_s=limits.credentials_timeout_s
    )
    pool = Pool(
        reactor,
        max_idle=limits.max_idle_connections,
        connect_timeout_s=limits.connect_timeout_s,
    )
    policy = https_policy(settings.ca_bundle, settings.verify_tls)
    agent = ExactAgent(reactor, pool, policy, limits.connect_timeout_s)
    keys: IKeyStore = MasterKey(settings.master_key) if settings.master_key else AnyKey()
    gateway = Gateway(
        keys=keys,
        operations=Operations(data.load("operations")),
        models=Models(settings.deployments, settings.model_group_alias, settings.default),
        signer=Signer(
            Endpoints(
                data.load("partitions"),
                overrides=settings.endpoint_urls,
                use_fips=settings.use_fips,
                use_dualstack=settings.use_dualstack,
            ),
            credentials,
            first_byte_s=limits.first_byte_timeout_s,
            wall_clock=wall_clock,
        ),
        upstream=Upstream(
            ForwardingClient(agent),
            reactor,
            idle_timeout_s=limits.idle_timeout_s,
            stalled_client_timeout_s=limits.stalled_client_timeout_s,
        ),
        log=log or AccessLog(),
        drain=DrainLimits(limits.drain_max_bytes, limits.drain_max_s),
        wall_clock=wall_clock,
    )

    def site(is_ready: Callable[[], bool]) -> Site:
        return Site(
            resource_tree(
                lambda segments: ProxyResource(gateway.serve, segments),
                settings.route_prefix,
                is_ready,
            ),
            reactor,
            ClientLimits(
                max_request_body=limits.max_request_body,
                header_timeout_s=limits.header_timeout_s,
                upload_idle_timeout_s=limits.upload_idle_timeout_s,
            ),
            wall_seconds=wall_clock,
            route_prefix=settings.route_prefix.encode(),
        )

    return GatewayService(
        reactor,
        listen,
        site=site,
        gateway=gateway,
        credentials=credentials,
        pool=pool,
        shutdown_grace_s=limits.shutdown_grace_s,
        notices=settings.notices,
        observer=observer,
        program=program,
    )
