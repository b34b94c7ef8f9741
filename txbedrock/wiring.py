"""
Making all parts of the gateway out of its settings, and joining them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource

from txbedrock import data
from txbedrock.accounting import Accounts, InLedger
from txbedrock.admission import Admission
from txbedrock.config import CorsSettings, Settings, load_prices
from txbedrock.core.addresses import Network, parse_network
from txbedrock.core.balance import Balancer
from txbedrock.core.candidates import MemberSpec
from txbedrock.core.demand import ModelSizes
from txbedrock.core.deployments import Deployment
from txbedrock.core.endpoints import Endpoints
from txbedrock.core.models import Models
from txbedrock.core.operations import Operations
from txbedrock.core.permissions import Access
from txbedrock.core.pricing import PriceTable, cost
from txbedrock.core.retry import Retries
from txbedrock.core.usage import Source, Usage
from txbedrock.errors import ConfigError
from txbedrock.exchange import DrainLimits, Gateway
from txbedrock.failover import Failover
from txbedrock.inbound.admin.management import management_resources
from txbedrock.inbound.admin.metrics import MetricsResource
from txbedrock.inbound.admin.models import Health, model_resources
from txbedrock.inbound.admin.spend import spend_resources
from txbedrock.inbound.body import Body
from txbedrock.inbound.cors import Cors
from txbedrock.inbound.proxy import ProxyResource
from txbedrock.inbound.root import resource_tree
from txbedrock.inbound.site import ClientLimits, Site
from txbedrock.interfaces import IExchangeLog, IKeyStore
from txbedrock.limits import Limiter
from txbedrock.listeners import Listeners
from txbedrock.logs import AccessLog, LazyFileObserver, RefusalLog
from txbedrock.metrics import CONTENT_TYPE, Metrics, connection_metrics, routing_metrics
from txbedrock.outbound.agent import ExactAgent, Pool, https_policy
from txbedrock.outbound.client import ForwardingClient
from txbedrock.outbound.credentials import CredentialPool
from txbedrock.outbound.upstream import Upstream
from txbedrock.probing import Prober
from txbedrock.service import GatewayService, KeptLedger
from txbedrock.signer import Signer
from txbedrock.stalls import Stalls
from txbedrock.storage.database import Database
from txbedrock.storage.directory import Directory
from txbedrock.storage.keys import AnyKey, KeyStore, MasterKey

__all__ = ["build"]

# By which deployments are compared that choose by cost.
_A_CALL = Usage(1000, 200, source=Source.BODY)


def _always() -> None:
    """Nothing is kept, so nothing can be lost."""


def build(
    settings: Settings,
    reactor: Any,
    listen: Sequence[str],
    environ: Mapping[str, str],
    *,
    logs: Sequence[IExchangeLog] = (),
    observer: object = None,
    program: bool = False,
    wall_clock: Callable[[], float] = time.time,
    clock: Callable[[], float] = time.monotonic,
) -> GatewayService:
    """
    Make the parts and join them.

    :param environ: what AWS credentials are looked up in.
    :param logs: who keeps the records of exchanges; the log by default.
    :param wall_clock: POSIX seconds; :param clock: some that never go back.
    :param observer, program: see :class:`GatewayService`.
    """
    limits = settings.limits
    pool = Pool(
        reactor,
        max_idle=limits.max_idle_connections,
        connect_timeout_s=limits.connect_timeout_s,
    )
    databases: list[Database] = []
    kept = None
    if settings.database_url is not None:
        # A long report on what was spent must not hold up who looks for a key.
        databases = [Database(settings.database_url, reactor) for _ in range(2)]
        if settings.ledger is not None:
            kept = KeptLedger(settings.ledger, databases[0], reactor)
    keys, directory = _keys(settings, databases[-1] if databases else None, reactor, wall_clock)
    models = Models(settings.deployments, settings.model_group_alias, settings.default)
    stalls = Stalls(reactor)
    gauges = {} if kept is None else kept.gauges()
    metrics = Metrics(
        gauges,
        lambda: (
            *listeners.metrics(),
            *stalls.metrics(),
            *connection_metrics(*service.site.tally(), service.site.refusals),
            *routing_metrics(failover.tally, failover.states()),
        ),
    )
    lines = RefusalLog(_access_log(observer), reactor)
    kept_in = [] if kept is None else [InLedger(kept.ledger)]
    told = [metrics, *(logs or [lines])]
    accounts = Accounts(load_prices(settings.price_file), kept_in, told)
    limiter = Limiter(
        None if kept is None else kept.ledger,
        reactor,
        wall_clock,
        wait_s=settings.access.limit_wait_s,
        allow_unpriced=settings.access.allow_unpriced,
    )
    admission = Admission(keys, limiter, accounts, ModelSizes.parse(data.load("model_limits")))
    failover = _failover(settings, models, admission, accounts.prices, reactor, wall_clock, clock)
    credentials = CredentialPool(
        reactor,
        {one.credentials for one in _known(settings)},
        environ=environ,
        deadline_s=limits.credentials_timeout_s,
    )
    gateway = Gateway(
        keys=keys,
        admission=admission,
        failover=failover,
        stop_overruns=settings.access.stop_overruns,
        sleep=lambda seconds: deferLater(reactor, seconds),
        operations=Operations(data.load("operations")),
        models=models,
        signer=_signer(settings, credentials, wall_clock),
        upstream=Upstream(
            ForwardingClient(
                ExactAgent(pool, https_policy(settings.ca_bundle, settings.verify_tls))
            ),
            reactor,
            idle_timeout_s=limits.idle_timeout_s,
            stalled_client_timeout_s=limits.stalled_client_timeout_s,
        ),
        accounts=accounts,
        admit=_always if kept is None else kept.admit,
        user_header=_lower(settings.user_header),
        drain=DrainLimits(limits.drain_max_bytes, limits.drain_max_s),
        wall_clock=wall_clock,
    )
    gauges |= _gauges(gateway, limiter, pool, failover)
    prober = _prober(settings, gateway, models, reactor, wall_clock)

    def management(hint: str) -> dict[bytes, Resource]:
        ledger = None if kept is None else kept.ledger
        return {
            b"metrics": MetricsResource(keys, lambda: (metrics.render(), CONTENT_TYPE)),
            **spend_resources(
                keys,
                ledger,
                lambda model, usage: accounts.would_cost(models, model, usage),
                hint,
                directory,
            ),
            **_models_at(settings, keys, hint),
            **management_resources(keys, directory, ledger, _salt(settings)),
        }

    def site(is_ready: Callable[[], bool]) -> Site:
        tree = resource_tree(
            lambda segments: ProxyResource(gateway.serve, segments),
            settings.route_prefix,
            is_ready,
            management,
            Health(keys, _known(settings), failover.states, prober.probe),
        )
        return _site(settings, tree, reactor, wall_clock)

    listeners = Listeners(reactor, trusted_proxies=_trusted(settings), wall_clock=wall_clock)

    def reload() -> None:
        _reload_prices(accounts, settings.price_file)
        listeners.reload()

    service = GatewayService(
        reactor,
        listen,
        endpoint=listeners.endpoint,
        site=site,
        gateway=gateway,
        stalls=stalls,
        credentials=credentials,
        pool=pool,
        databases=databases,
        ledger=kept,
        others=[
            limiter,
            listeners,
            prober,
            lines,
            *([keys] if isinstance(keys, KeyStore) else []),
        ],
        reload=reload,
        shutdown_grace_s=limits.shutdown_grace_s,
        notices=settings.notices,
        observer=observer,
        program=program,
    )
    return service


def _known(settings: Settings) -> list[Deployment]:
    """All that a request may go to."""
    default = settings.default
    return [*settings.deployments, *([] if default is None else [default])]


def _trusted(settings: Settings) -> list[Network]:
    return [parse_network(text) for text in settings.access.trusted_proxies]


def _lower(name: str | None) -> bytes | None:
    """A header's name, which is in lower case in the settings, as headers have it."""
    return name.encode() if name else None


def _gauges(
    gateway: Gateway, limiter: Limiter, pool: Pool, failover: Failover
) -> dict[str, tuple[str, Callable[[], float]]]:
    """What there is at the moment."""
    return {
        "txbedrock_exchanges_in_flight": (
            "Exchanges, drained ones included",
            lambda: gateway.in_flight,
        ),
        "txbedrock_limits_waiting": (
            "Requests that wait for what others have reserved",
            lambda: limiter.waiting,
        ),
        "txbedrock_limits_levels": (
            "Keys, teams, users, end users and tags whose use is counted",
            lambda: limiter.levels,
        ),
        "txbedrock_budgets_unknown_costs": (
            "Requests whose cost was not known when their budget was settled",
            lambda: limiter.unknown_costs,
        ),
        "txbedrock_upstream_connections": ("To Bedrock", lambda: pool.connections),
        "txbedrock_upstream_connections_idle": (
            "Of these, those that wait for a request",
            lambda: pool.idle,
        ),
        "txbedrock_upstream_connections_opened": ("Made since the start", lambda: pool.opened),
        "txbedrock_upstream_connections_reused": (
            "Requests since the start for which none was made",
            lambda: pool.reused,
        ),
        "txbedrock_waiting_for_deployment": (
            "Requests that wait for a deployment with too many",
            lambda: failover.balancer.waiting,
        ),
    }


def _failover(
    settings: Settings,
    models: Models,
    admission: Admission,
    prices: PriceTable,
    reactor: Any,
    wall_clock: Callable[[], float],
    clock: Callable[[], float],
) -> Failover:
    failover = Failover(
        Retries(settings.retries, random.random),
        settings.fallbacks,
        models,
        admission.permit_model,
        reactor,
        wall_clock,
        clock,
        _lower(settings.routing.affinity_header),
    )
    failover.balancer = Balancer(
        settings.routing,
        {one.id: _member(one, prices) for one in _known(settings)},
        random.Random(),
        failover.changed,
    )
    return failover


def _signer(
    settings: Settings, credentials: CredentialPool, wall_clock: Callable[[], float]
) -> Signer:
    return Signer(
        Endpoints(
            data.load("partitions"),
            overrides=settings.endpoint_urls,
            use_fips=settings.use_fips,
            use_dualstack=settings.use_dualstack,
        ),
        credentials,
        first_byte_s=settings.limits.first_byte_timeout_s,
        wall_clock=wall_clock,
        user_header=_lower(settings.user_header),
        request_metadata=settings.request_metadata,
    )


def _prober(
    settings: Settings,
    gateway: Gateway,
    models: Models,
    reactor: Any,
    wall_clock: Callable[[], float],
) -> Prober:
    """Of all deployments that a name leads to."""
    names = dict.fromkeys(one.model_name for one in settings.deployments)
    return Prober(
        gateway.probe,
        [choice for name in names if "*" not in name for choice in models.resolve(name).choices],
        _body_of,
        reactor,
        wall_clock,
        settings.probe_interval_s,
    )


def _models_at(settings: Settings, keys: IKeyStore, hint: str) -> dict[bytes, Resource]:
    found = model_resources(keys, settings.deployments, hint)
    if not settings.route_prefix:
        del found[b"model"]  # There it is Bedrock's.
    return found


def _site(
    settings: Settings, tree: Resource, reactor: Any, wall_clock: Callable[[], float]
) -> Site:
    limits, clients = settings.limits, settings.clients
    return Site(
        tree,
        reactor,
        ClientLimits(
            max_request_body=limits.max_request_body,
            header_timeout_s=limits.header_timeout_s,
            upload_idle_timeout_s=limits.upload_idle_timeout_s,
            max_connections=clients.max_connections,
            max_connections_per_address=clients.max_connections_per_address,
            max_requests_per_connection=clients.max_requests_per_connection,
        ),
        wall_seconds=wall_clock,
        route_prefix=settings.route_prefix.encode(),
        trusted_proxies=_trusted(settings),
        cors=_cors(clients.cors),
    )


async def _body_of(data: bytes) -> Body:
    """The body of a request of our own."""
    body = Body()
    body.write(data)
    await body.complete()
    return body


def _cors(settings: CorsSettings) -> Cors | None:
    """What browsers are told; None: nothing."""
    if not settings.allow_origins:
        return None
    return Cors(
        settings.allow_origins,
        headers=settings.allow_headers,
        max_age_s=settings.max_age_s,
        credentials=settings.allow_credentials,
    )


def _access_log(observer: object) -> AccessLog:
    """That of a program of its own goes straight to its file."""
    return AccessLog(lines=observer.lines if isinstance(observer, LazyFileObserver) else None)


def _member(deployment: Deployment, prices: PriceTable) -> MemberSpec:
    """What there is to say of a deployment to whoever chooses one."""
    price = prices.price(
        deployment.model_id, deployment.region, deployment.prices, deployment.base_model
    )
    usual = None if price is None else cost(price, _A_CALL).picousd
    return MemberSpec(
        weight=deployment.weight,
        order=deployment.order,
        rpm=deployment.rpm,
        tpm=deployment.tpm,
        max_parallel=deployment.max_parallel,
        tags=deployment.tags,
        cost=None if usual is None else float(usual),
    )


def _salt(settings: Settings) -> bytes | None:
    """What AWS-style pairs are derived with."""
    salt = settings.access.salt or settings.master_key
    return None if salt is None else salt.encode()


def _keys(
    settings: Settings, database: Database | None, reactor: Any, wall_clock: Callable[[], float]
) -> tuple[IKeyStore, Directory | None]:
    """Who is behind a key, and where keys are kept."""
    access = settings.access
    master = MasterKey(settings.master_key) if settings.master_key else None
    if database is None:
        return master or AnyKey(), None
    directory = Directory(database, wall_clock=wall_clock, configured=access.keys)
    if master is None and not access.keys:
        return AnyKey(), directory
    store = KeyStore(
        master,
        directory,
        database,
        salt=_salt(settings) or b"",
        access=partial(
            Access, access_groups=settings.access_groups, route_prefix=settings.route_prefix
        ),
        reactor=reactor,
        wall_clock=wall_clock,
        cache_age_s=access.key_cache_age_s,
        cache_grace_s=access.key_cache_grace_s,
        default_customer_limits=access.end_user_limits,
        certificates=access.client_certificates,
    )
    return store, directory


def _reload_prices(accounts: Accounts, path: str | None) -> None:
    """Read the prices again; what is wrong with them leaves the old ones in place."""
    log = Logger("txbedrock.prices")

    def loaded(table: PriceTable) -> None:
        accounts.prices = table
        log.info("prices are those of version {version}", version=table.version)

    def failed(failure: Failure) -> None:
        failure.trap(ConfigError)
        for problem in failure.value.problems:  # type: ignore[union-attr]
            log.error("the prices stay as they are: {problem}", problem=problem)

    reading: Deferred[PriceTable] = deferToThread(load_prices, path)
    reading.addCallbacks(loaded, failed)
    reading.addErrback(lambda failure: log.failure("reading the prices failed", failure))
