"""
What an exchange needs from the rest of the house, and what it is given.

The rooms meet here: ``inbound``, ``outbound`` and ``storage`` never import each
other, they are handed over as one of these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from twisted.internet.interfaces import IPushProducer
from twisted.web.iweb import IBodyProducer

from txbedrock.core.attribution import NOBODY, Attribution
from txbedrock.core.auth import ClientCertificate, Principal
from txbedrock.core.credentials import BearerToken, Credentials
from txbedrock.core.demand import Demand
from txbedrock.core.deployments import CredentialSpec
from txbedrock.core.entries import By, Filters, LedgerEntry, Page, Total
from txbedrock.core.grants import Budget, Customer, Grant, Key, Level, Tag, Team, User
from txbedrock.core.headers import NO_HEADERS, HeaderList
from txbedrock.core.health import FailureKind
from txbedrock.core.models import Choice
from txbedrock.core.operations import Match
from txbedrock.core.pricing import Cost
from txbedrock.core.replies import Reply
from txbedrock.core.usage import Usage
from txbedrock.errors import Fault

__all__ = [
    "AuditRecord",
    "Ending",
    "ExchangeRecord",
    "GrantSearch",
    "IBody",
    "ICredentialSource",
    "ICredentials",
    "IDirectory",
    "IDownstream",
    "IExchangeLog",
    "IKeyStore",
    "ILedger",
    "ILimits",
    "IMeter",
    "IRelay",
    "IReservation",
    "ITaker",
    "IUpstream",
    "IUpstreamResponse",
    "InboundRequest",
    "Outcome",
    "Probed",
    "UpstreamRequest",
]

G = TypeVar("G", Key, User, Team, Customer, Budget, Tag)


class IBody(Protocol):
    """A request's body, whole, hashed while it arrived."""

    @property
    def length(self) -> int:
        """Bytes."""

    @property
    def sha256(self) -> str:
        """Lower-case hex."""

    def start(self) -> bytes:
        """The whole body if it is small (at most 1 MiB), else its beginning."""

    def producer(self) -> IBodyProducer | None:
        """A new producer of the whole body for one attempt; None when empty."""

    async def edited(self, edit: Callable[[bytes], bytes]) -> IBody:
        """
        A copy that something was changed in; a large one is changed in a thread.

        :raises ProxyError: whatever ``edit`` raises.
        """

    def let_go(self) -> None:
        """Hold it no longer: nobody will ask for it again."""


@dataclass(slots=True)
class InboundRequest:
    """A client's request, whole."""

    id: str
    method: bytes
    raw_path: bytes
    """As sent, percent-encoded, without the gateway's prefix and the query."""

    raw_query: bytes | None
    """As sent, without the question mark; None when there is no question mark."""

    headers: HeaderList = field(repr=False)
    body: IBody = field(repr=False)
    peer: str
    """The client's address, for the log."""

    received: float
    """POSIX seconds when the head was complete."""

    complete: float = 0.0
    """POSIX seconds when the body was."""

    received_path: bytes = b""
    """As sent, with the gateway's prefix: what a client's signature covers."""

    certificate: ClientCertificate | None = None
    """What the client has shown in the TLS handshake; None: nothing."""

    def let_go(self) -> None:
        """Forget what only attempts need, of which there will be no more."""
        self.headers = NO_HEADERS
        self.body.let_go()


class ITaker(Protocol):
    """Takes the body of an answer, and may ask for less at a time."""

    def write(self, data: bytes) -> None: ...

    def register_producer(self, producer: IPushProducer) -> None: ...

    def unregister_producer(self) -> None: ...


class IDownstream(ITaker, Protocol):
    """
    The client's side of an exchange: it takes one answer, whole or in pieces.

    A client that leaves cancels the exchange.
    """

    def head(
        self,
        status: int,
        phrase: bytes,
        headers: HeaderList,
        length: int | None,
        data: bytes = b"",
    ) -> None:
        """
        Send the head of an answer.

        :param length: of the body in bytes; None: chunked, or until close.
        :param data: the first piece of the body, if it is here.
        """

    def finish(self) -> None:
        """The answer is whole."""

    def abort(self) -> None:
        """End the answer so that the client cannot take it for whole."""

    def reply(self, reply: Reply) -> None:
        """Send an answer of the gateway's own and finish."""

    def let_go(self) -> None:
        """An answer has begun that may take long: keep nothing that it does not need."""


@dataclass(slots=True)
class UpstreamRequest:
    """One attempt, signed: exactly what goes on the wire."""

    method: bytes
    url: bytes
    """Scheme, authority, raw path and query. Nothing in it is normalised."""

    headers: HeaderList = field(repr=False)
    """With Host, without Content-Length: the body says it."""

    body: IBody = field(repr=False)
    first_byte_timeout_s: float = 3600.0
    credentials: Credentials | BearerToken | None = field(default=None, repr=False)
    """What it was signed with."""


class IUpstreamResponse(Protocol):
    """The head of an answer; its body has not been read."""

    @property
    def status(self) -> int: ...

    @property
    def phrase(self) -> bytes: ...

    @property
    def headers(self) -> HeaderList: ...

    @property
    def length(self) -> int | None:
        """Of the body in bytes, when the upstream says so."""

    async def discard(self) -> None:
        """Throw the body away, so that the connection can be used again or closed."""

    def let_go(self) -> None:
        """Forget the headers: the client has got them."""


class Ending(Enum):
    """How the body of an answer ended."""

    COMPLETE = "complete"
    CUT = "cut"
    """The upstream broke off."""

    IDLE = "idle"
    """The upstream said nothing for too long."""

    STALLED = "stalled"
    """The client read nothing for too long."""

    CAPPED = "capped"
    """Draining reached its limit of bytes or time."""

    OVERRUN = "overrun"
    """It was longer than what was reserved for it."""


class IRelay(Protocol):
    """A body on its way from upstream to downstream."""

    @property
    def relayed(self) -> int:
        """Bytes of the body so far, drained ones included."""

    @property
    def held(self) -> bytes:
        """The last piece, of an answer whose length was known; not yet written."""

    async def run(self) -> Ending:
        """
        Relay until the body ends, whatever ends it.

        Cancelled when the client leaves; then :meth:`drain` or :meth:`stop`
        must follow. The downstream is neither finished nor aborted here.
        """

    async def drain(self, max_bytes: int, max_seconds: float) -> Ending:
        """Read on without a client, within limits."""

    def stop(self) -> None:
        """Close the upstream now."""

    def hand_over(self, taker: ITaker) -> None:
        """From now on somebody else takes the body; to be called while it is relayed."""


class IUpstream(Protocol):
    """AWS, as far as HTTP."""

    async def send(self, request: UpstreamRequest) -> IUpstreamResponse:
        """
        Send a request and wait for the head of its answer.

        :raises UpstreamUnavailable: no connection, or it broke before the head.
        :raises UpstreamTimeout: no head within the limit.
        """

    def relay(
        self,
        response: IUpstreamResponse,
        taker: ITaker,
        observe: Callable[[bytes], None] | None,
    ) -> IRelay:
        """
        Prepare to relay the body.

        :param observe: sees each piece after the client got it.
        """


class ICredentialSource(Protocol):
    """The credentials of a deployment, always at hand."""

    async def loaded(self) -> None:
        """Wait until they have been found, or not found; usually they are at hand."""

    def current(self, service: str) -> Credentials | BearerToken:
        """
        Those that are valid now. Never blocks.

        :param service: a service's endpoint prefix, such as ``bedrock-runtime``.
        :raises CredentialsUnavailable: there are none, or they have expired.
        """

    async def refresh_now(self, rejected: Credentials | None = None) -> bool:
        """
        Get others, because AWS refused these.

        :returns: whether there are others now.
        """


class ICredentials(Protocol):
    def source(self, spec: CredentialSpec) -> ICredentialSource: ...


class ILedger(Protocol):
    """What exchanges cost, kept."""

    def record(self, entry: LedgerEntry) -> None:
        """
        Keep it, before this returns.

        :raises ProxyError: it is kept in memory only.
        """

    async def rows(self, filters: Filters, limit: int, cursor: str | None) -> Page:
        """
        Entries, the newest first, those of a moment ago included.

        :raises InvalidRequest: the cursor is none of ours.
        """

    async def totals(self, by: By, filters: Filters) -> list[Total]:
        """Sums of entries, the dearest first."""


@dataclass(frozen=True, slots=True)
class GrantSearch:
    """Which keys, users ... are asked for: those that fulfil all."""

    filters: Mapping[str, str] = field(default_factory=dict)
    """By field: ``alias``, ``user_id``, ``team_id``, ``budget_id``, ``created_by``;
    only what that kind has. A ``user_id`` of teams is one of their members, users are
    also found by ``email`` and ``team_id``."""

    order_by: str = "created_us"
    """``created_us``, ``updated_us``, ``alias``, ``id``."""

    descending: bool = True
    offset: int = 0
    limit: int = 100


class AuditRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A change of what is granted. It holds no secret."""

    at_us: int
    actor: str
    """Alias or hash of the key that did it."""

    action: str
    """``create``, ``update``, ``delete``, ``block``, ``regenerate`` ..."""

    kind: str
    """``key``, ``user``, ``team``, ``customer``, ``budget``, ``tag``."""

    id: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class IDirectory(Protocol):
    """
    What is granted, kept for good. Each change is seen by this process at once, and
    is on record with who did it.

    Everything raises DatabaseUnavailable when the database does not answer.
    """

    async def get(self, kind: type[G], id: str) -> G:
        """:raises GrantNotFound: there is none."""

    async def key(self, name: str) -> Key:
        """
        A key by one of its secrets, the SHA-256 of one (hex), or its alias.

        :raises GrantNotFound: there is none.
        """

    async def find(self, kind: type[G], search: GrantSearch) -> tuple[list[G], int]:
        """
        :returns: a page, and how many there are in all.
        """

    async def add(self, grant: Grant, actor: str, action: str = "create") -> None:
        """:raises GrantExists: its id, or a key's alias or token, is taken."""

    async def change(
        self,
        kind: type[G],
        id: str,
        change: Callable[[G], G],
        actor: str,
        action: str = "update",
    ) -> G:
        """
        Read, change and write, with nothing in between.

        :param change: gets what is kept now; it may raise, then nothing is changed.
        :returns: what is kept now.
        :raises GrantNotFound: there is none.
        :raises GrantExists: its new alias or token is taken.
        :raises InvalidRequest: it stands in the configuration, which is not ours to write.
        """

    async def remove(self, kind: type[G], id: str, actor: str) -> G:
        """
        :returns: what it was.
        :raises GrantNotFound: there is none.
        :raises GrantExists: something still refers to it: a team with keys ...
        """

    async def audit(
        self, kind: str | None, id: str | None, before_us: int | None, limit: int
    ) -> list[AuditRecord]:
        """The latest changes, the newest first."""


class IKeyStore(Protocol):
    """Who is behind a key."""

    async def principal(self, request: InboundRequest) -> Principal:
        """
        :raises UnrecognizedKey: nobody, or its signature is wrong.
        :raises KeyBlocked: the key, its user or its team.
        :raises KeyExpired: it was good once.
        :raises DatabaseUnavailable: it cannot be found out now.
        """

    async def levels(self, end_user: str, tags: Sequence[str]) -> Sequence[Level]:
        """
        What else a request must find room in: what its client says of it.

        :raises KeyBlocked: the end user, or a tag.
        """


class IReservation(Protocol):
    """Room that a request has. To be settled or released; the first of it counts."""

    def settle(self, picousd: int | None, usage: Usage) -> None:
        """
        The request is over. In the same turn in which the ledger gets its entry.

        :param picousd: what it cost; None: that is not known.
        """

    def release(self) -> None:
        """Nothing was sent, so nothing counts."""

    def output_tokens(self) -> int:
        """How many tokens of an answer there is room for."""

    def let_go(self) -> None:
        """The answer has begun: only how it ends is still to be told."""

    def headers(self, picousd: int | None = None) -> HeaderList:
        """
        What the answer says of the limits.

        :param picousd: what the request cost, if that is known before it is settled.
        """


class ILimits(Protocol):
    """Limits and budgets, in this process or shared."""

    async def reserve(self, levels: Sequence[Level], demand: Demand) -> IReservation:
        """
        Take room at all levels, or at none. It may be cancelled.

        :raises ProxyError: there is none (429), or a budget is spent (400).
        """


class Outcome(Enum):
    """How an exchange ended."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    """The upstream broke off, or the client stopped reading."""

    REFUSED = "refused"
    """By the gateway, before anything was sent."""

    FAILED = "failed"
    """The upstream gave no answer."""

    CLIENT_GONE = "client_gone"


class IMeter(Protocol):
    """Looks on while an answer passes, and says at the end what it used."""

    def feed(self, data: bytes) -> None:
        """The next piece of the body. Never raises."""

    @property
    def framed(self) -> bool:
        """Is the body an AWS event stream?"""

    @property
    def frames(self) -> int:
        """Of an AWS event stream, complete ones so far."""

    @property
    def at_boundary(self) -> bool:
        """Between two frames."""

    def usage(self) -> Usage:
        """Of what has been seen, whole or not."""


class ExchangeRecord(msgspec.Struct, eq=False):
    """What there is to say about an exchange when it is over."""

    request: InboundRequest
    principal: Principal | None = None
    """None: it was refused before it was known whose it is."""

    attribution: Attribution = NOBODY
    match: Match | None = None
    model_name: str = ""
    """The model group, or the raw id."""

    choice: Choice | None = None
    reservation: IReservation | None = None
    at_deployment: IReservation | None = None
    """The same, of the deployment's budget."""

    attempts: int = 0
    lost: int = 0
    """How many of them have a line of their own in the ledger."""

    status: int = 0
    """What the client was told; 0: nothing."""

    outcome: Outcome = Outcome.COMPLETE
    error: str = ""
    """AWS's error code of a refusal, or what cut the answer."""

    fault: Fault | None = None
    """Whose it was that the exchange did not go well."""

    detail: str = ""
    """For the operator."""

    failure: FailureKind | None = None
    """What the last attempt failed of, as the choice of deployments sees it."""

    upstream_status: int = 0
    """Of the last attempt's answer; 0: it got none."""

    is_attempt: bool = False
    """It is one attempt of an exchange that went on, and no exchange of a client's."""

    maybe_billed: bool = False
    """An attempt reached Bedrock, and what became of it is not known."""

    upstream_request_id: str = ""
    meter: IMeter | None = None
    usage: Usage | None = None
    cost: Cost | None = None
    """Both known when the answer has been seen to its end."""

    bytes_up: int = 0
    bytes_down: int = 0
    overhead_s: float | None = None
    """From the client's whole request to the first attempt: the gateway's own."""

    first_byte_s: float | None = None
    """From the head of the client's request to the head of the answer."""

    duration_s: float = 0.0
    entry: LedgerEntry | None = None
    """As it is charged; None until the exchange is settled."""

    # Not all that a client sent.
    __repr__ = object.__repr__


class Probed(NamedTuple):
    """What came of asking a deployment how it is."""

    ok: bool
    seconds: float
    why: str
    """What is wrong; empty: nothing."""


class IExchangeLog(Protocol):
    def record(self, record: ExchangeRecord) -> None:
        """
        Keep it. Called once for each exchange, before the last byte of its
        answer leaves; must not block.
        """
