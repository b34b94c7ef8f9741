"""
All that the gateway is told, as frozen values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from txbedrock.core.balance import RoutingSettings
from txbedrock.core.deployments import Deployment
from txbedrock.core.fallbacks import Fallbacks
from txbedrock.core.grants import NO_LIMITS, Key
from txbedrock.core.grants import Limits as GrantedLimits
from txbedrock.core.retry import RetrySettings

__all__ = [
    "SERVICES",
    "AccessSettings",
    "ClientSettings",
    "CorsSettings",
    "LedgerSettings",
    "Limits",
    "Settings",
]

SERVICES = (
    "bedrock",
    "bedrock-runtime",
    "bedrock-agent",
    "bedrock-agent-runtime",
    "bedrock-agentcore",
    "bedrock-agentcore-control",
    "bedrock-data-automation",
    "bedrock-data-automation-runtime",
)
"""The services of Amazon Bedrock, as ``endpoint_urls`` names them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long and how much the gateway waits, reads and keeps."""

    connect_timeout_s: float = 5.0
    """For a connection to Bedrock, TLS included."""

    first_byte_timeout_s: float = 3600.0
    """From the request sent to the head of Bedrock's answer."""

    idle_timeout_s: float = 300.0
    """Silence between two pieces of Bedrock's answer."""

    header_timeout_s: float = 60.0
    """For the head of a client's request."""

    stalled_client_timeout_s: float = 300.0
    """A client that does not read its answer."""

    upload_idle_timeout_s: float = 60.0
    """Silence between two pieces of a client's body."""

    max_request_body: int = 32 * 1024 * 1024
    """Bytes of a client's body."""

    drain_max_bytes: int = 64 * 1024 * 1024
    """How much of an answer is still read after its client left."""

    drain_max_s: float = 300.0
    """How long it is still read."""

    shutdown_grace_s: float = 30.0
    """How long requests in flight may take when the gateway stops."""

    max_idle_connections: int = 256
    """Open connections kept for later, to each host."""

    credentials_timeout_s: float = 10.0
    """For AWS credentials to be found."""


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """How what exchanges cost is kept, in the database and before."""

    journal_path: str
    """A folder on a local disk; absolute."""

    journal_max_bytes: int = 1024 * 1024 * 1024
    """What may wait there for the database."""

    refuse_when_full: bool = True
    """What to do when it is reached: refuse requests, or carry them unrecorded."""


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Who may ask for what, and how much, besides what the database says."""

    keys: tuple[Key, ...] = ()
    """Virtual keys of the configuration's own."""

    salt: str | None = field(default=None, repr=False)
    """The secret that AWS-style pairs are derived with; None: the master key is."""

    key_cache_age_s: float = 5.0
    """For how long what is known of a key is believed without asking again."""

    key_cache_grace_s: float = 3600.0
    """For how long it is when the database does not answer."""

    allow_unpriced: bool = False
    """Whether a key with a budget may use what has no price."""

    stop_overruns: bool = False
    """Whether a stream ends that is longer than what was reserved for it."""

    limit_wait_s: float = 10.0
    """How long a request may wait for what others have reserved."""

    end_user_limits: GrantedLimits = NO_LIMITS
    """Of end users that have none of their own."""

    trusted_proxies: tuple[str, ...] = ()
    """Networks whose ``X-Forwarded-For`` and PROXY headers are believed."""

    client_certificates: Mapping[str, str] = field(default_factory=dict)
    """Names in TLS clients' certificates, as :class:`~txbedrock.core.auth.ClientCertificate`
    has them, and the SHA-256 of the virtual key that each stands for."""


@dataclass(frozen=True, slots=True)
class CorsSettings:
    """Which web pages may call from a browser."""

    allow_origins: tuple[str, ...] = ()
    """``https://app.example.com``, in lower case; ``*``: any. Empty: none."""

    allow_headers: tuple[str, ...] = ("*",)
    """That they may send; ``*``: any."""

    allow_credentials: bool = False
    max_age_s: float = 600.0
    """How long a browser may remember the answer."""


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The connections of clients."""

    max_connections: int = 10_000
    """At a time."""

    max_connections_per_address: int = 0
    """Of one client address; 0: as many as there may be in all."""

    max_requests_per_connection: int = 10_000
    """0: any number."""

    cors: CorsSettings = CorsSettings()


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the gateway is told."""

    deployments: tuple[Deployment, ...] = ()

    default: Deployment | None = None
    """For Bedrock's own model ids and for requests that name no model: the
    environment's credentials and region. None: the region is not known."""

    routing: RoutingSettings = field(default_factory=RoutingSettings)
    retries: RetrySettings = field(default_factory=RetrySettings)
    fallbacks: Fallbacks = field(default_factory=Fallbacks)
    model_group_alias: Mapping[str, str] = field(default_factory=dict)

    endpoint_urls: Mapping[str, str] = field(default_factory=dict)
    """Base URLs in place of AWS's own, by service (:data:`SERVICES`)."""

    use_fips: bool = False
    use_dualstack: bool = False
    master_key: str | None = field(default=None, repr=False)
    access: AccessSettings = AccessSettings()

    access_groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Names that lists of models may hold, and the model groups that they mean."""

    allow_no_key: bool = False
    """Whether to serve other machines although there is no master key."""

    probe_interval_s: float | None = None
    """How often each deployment is sent a small request of itself; None: never."""

    route_prefix: str = "/bedrock"
    """Where the routes of Bedrock are: begins with a slash, or is empty."""

    limits: Limits = Limits()
    clients: ClientSettings = ClientSettings()

    price_file: str | None = None
    """Prices that replace those of the shipped table, model by model."""

    database_url: str | None = field(default=None, repr=False)
    """``sqlite:///FILE``, its path absolute, or ``postgresql://...``. None: there are
    neither virtual keys nor a ledger."""

    ledger: LedgerSettings | None = None
    """None: nothing is kept of exchanges, and spend is not known."""

    user_header: str | None = None
    """Lower-case name of a header that names the end user."""

    request_metadata: tuple[str, ...] = ()
    """What AWS is told in the metadata of requests, of
    :data:`~txbedrock.core.identity.IDENTITY_FIELDS`."""

    ca_bundle: str | None = None
    """A PEM file of the authorities that are trusted instead of the usual ones."""

    verify_tls: bool = True

    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """``environment_variables``, to be put into ``os.environ`` at start."""

    notices: tuple[str, ...] = ()
    """To be reported once, at start."""
