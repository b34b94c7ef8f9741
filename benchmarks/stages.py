"""
What each stage of an exchange costs, beside what it may cost.

    python -m benchmarks stages [NAME ...]

One small Converse with a key that has rpm, tpm, parallel requests and a budget, in a team that
has a budget; two deployments. Microseconds of CPU of the reactor's thread, on a machine on
which the reference takes as long as :mod:`benchmarks.timing` says: so a budget is the same
everywhere. :mod:`benchmarks.checking` holds them to it.

A budget is what the stage cost when it was set, and a quarter more. Who makes a stage faster
lowers its budget.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, react
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from benchmarks.timing import Cost, cost
from txbedrock import data
from txbedrock.accounting import Accounts, InLedger
from txbedrock.admission import Admission
from txbedrock.config import load_prices
from txbedrock.core.attribution import attribution
from txbedrock.core.auth import hash_key
from txbedrock.core.balance import Ask, Balancer, InFlight, RoutingSettings
from txbedrock.core.candidates import MemberSpec
from txbedrock.core.credentials import Credentials
from txbedrock.core.demand import ModelSizes
from txbedrock.core.deployments import CredentialSpec, Deployment
from txbedrock.core.endpoints import Endpoints
from txbedrock.core.eventstream import encode
from txbedrock.core.grants import Key, Limits, Permissions, Team, Token
from txbedrock.core.headers import downstream_headers
from txbedrock.core.identity import Identity
from txbedrock.core.meter import meter_for
from txbedrock.core.models import Models
from txbedrock.core.money import PICO
from txbedrock.core.operations import Operations
from txbedrock.core.permissions import Access
from txbedrock.core.usage import Source, Usage
from txbedrock.inbound.body import Body
from txbedrock.inbound.proxy import Downstream
from txbedrock.inbound.request import Request, inbound_request
from txbedrock.inbound.site import ClientLimits, Site
from txbedrock.interfaces import ExchangeRecord, InboundRequest
from txbedrock.limits import Limiter
from txbedrock.logs import AccessLog, LazyFileObserver, Redaction
from txbedrock.metrics import Metrics
from txbedrock.signer import Signer
from txbedrock.storage.database import Database
from txbedrock.storage.directory import Directory
from txbedrock.storage.journal import Journal
from txbedrock.storage.keys import KeyStore

__all__ = ["BUDGETS_US", "Stage", "Stages", "in_reactor", "measured", "stages"]

BUDGETS_US = {
    "parse": 24.0,
    "auth": 4.8,
    "route": 0.7,
    "attribution": 3.1,
    "admit": 25.0,
    "balance": 8.0,
    "sign": 10.0,
    "headers": 0.8,
    "meter": 4.9,
    "meter event": 0.8,
    "settle": 3.7,
    "ledger": 4.2,
    "metrics": 1.6,
    "log": 23.0,
}
"""See :mod:`benchmarks.timing` for the unit."""

BODY = (
    b'{"messages": [{"role": "user", "content": [{"text": "What does a gateway do?"}]}], '
    b'"inferenceConfig": {"maxTokens": 100}}'
)
ANSWER = (
    b'{"metrics":{"latencyMs":412},"output":{"message":{"content":[{"text":"Hello, how can I help '
    b'you today?"}],"role":"assistant"}},"stopReason":"end_turn","usage":{"inputTokens":8,'
    b'"outputTokens":10,"totalTokens":18}}'
)
PATH = b"/model/nova/converse"
SECRET = b"sk-a-key-of-the-benchmark"
MODEL = "us.amazon.nova-lite-v1:0"
HEADERS = [
    (b"Host", b"localhost:4000"),
    (b"Content-Type", b"application/json"),
    (b"Accept", b"application/json"),
    (b"User-Agent", b"Boto3/1.44.5 md/Botocore#1.44.5 ua/2.1 os/linux lang/python#3.11"),
    (b"amz-sdk-invocation-id", b"0f5f9c46-8a3a-4d83-a1d5-8b1c1c6a3d4e"),
    (b"amz-sdk-request", b"attempt=1"),
    (b"Authorization", b"Bearer " + SECRET),
]
ANSWER_HEADERS = [
    (b"Date", b"Sun, 22 Nov 2026 00:00:00 GMT"),
    (b"Content-Type", b"application/json"),
    (b"Content-Length", b"%d" % len(ANSWER)),
    (b"X-Amzn-Requestid", b"4f5c7e0a-0000-0000-0000-000000000000"),
]
STREAM_HEADERS = [(b"Content-Type", b"application/vnd.amazon.eventstream")]
EVENT = encode(
    {
        ":event-type": "contentBlockDelta",
        ":content-type": "application/json",
        ":message-type": "event",
    },
    b'{"contentBlockIndex":0,"delta":{"text":" token"},"p":"abcdefghij"}',
)
USAGE = Usage(8, 10, source=Source.BODY)
COST_PICOUSD = 2_880_000
KEY = Limits(
    rpm=10**9,
    tpm=10**12,
    max_parallel=1000,
    max_budget=10**6 * PICO,
    soft_budget=9 * 10**5 * PICO,
    budget_duration="1mo",
)
TEAM = Limits(max_budget=10**7 * PICO, budget_duration="30d")


@dataclass(frozen=True, slots=True)
class Stage:
    """A piece of an exchange, to be called again and again."""

    name: str
    what: str
    work: Callable[[], object]


Stages = Sequence[Stage]


def at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


class _Answering(Resource):
    """The leaf: what a :class:`~txbedrock.inbound.proxy.ProxyResource` does with a request."""

    isLeaf = True

    def render(self, request: Request) -> int:
        inbound_request(request, PATH)
        downstream = Downstream(request)
        downstream.head(200, b"OK", list(ANSWER_HEADERS), len(ANSWER))
        downstream.write(ANSWER)
        downstream.finish()
        return NOT_DONE_YET


def _parse() -> Callable[[], object]:
    """A request's bytes to an answer's, through the channel of a server."""
    limits = ClientLimits(max_requests_per_connection=0)
    site = Site(_Answering(), Clock(), limits, wall_seconds=time.time)
    channel = site.buildProtocol(None)
    assert channel is not None
    transport = StringTransport()
    channel.makeConnection(transport)
    head = [b"POST /bedrock%b HTTP/1.1" % PATH, *(b"%b: %b" % pair for pair in HEADERS)]
    wire = b"\r\n".join([*head, b"Content-Length: %d" % len(BODY), b"", BODY])

    def once() -> None:
        channel.dataReceived(wire)
        sent = transport.value()
        assert sent.startswith(b"HTTP/1.1 200 OK\r\n") and sent.endswith(ANSWER), sent
        transport.clear()

    return once


class _Credentials:
    """Those of the configuration, always at hand."""

    def source(self, spec: CredentialSpec) -> _Credentials:
        return self

    async def loaded(self) -> None:
        pass

    async def refresh_now(self, rejected: Credentials | None = None) -> bool:
        return False

    def current(self, service: str) -> Credentials:
        return Credentials("AKIABENCHBENCHBENCH1", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")


@contextlib.asynccontextmanager
async def stages(reactor: Any) -> AsyncIterator[Stages]:
    """All of them, with the gateway's own parts, a database and files in a folder."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        database = Database(f"sqlite:///{folder}/keys.db", reactor)
        stack.push_async_callback(database.close)
        yield await _stages(stack, reactor, database, folder)


async def _stages(
    stack: contextlib.AsyncExitStack, reactor: Any, database: Database, folder: Path
) -> Stages:
    directory = Directory(database, wall_clock=time.time)
    await directory.add(Team(id="t", limits=TEAM), "benchmark")
    token = Token(hash=hash_key(SECRET).hex())
    permissions = Permissions(models=("nova", "claude-*"), allowed_ips=("127.0.0.0/8",))
    await directory.add(
        Key(id=token.hash, tokens=(token,), team_id="t", limits=KEY, permissions=permissions),
        "benchmark",
    )
    # Known for as long as the benchmark takes.
    keys = KeyStore(
        None, directory, database, salt=b"", access=partial(Access, access_groups={}),
        reactor=reactor, wall_clock=time.time, cache_age_s=3600.0,
    )  # fmt: skip
    deployments = [
        Deployment(f"d{n}", "nova", MODEL, region)
        for n, region in enumerate(("us-west-2", "us-east-1"))
    ]
    operations, models = Operations(data.load("operations")), Models(deployments, {}, None)
    prices = load_prices(None)
    sizes = ModelSizes.parse(data.load("model_limits"))
    body = Body()
    body.write(BODY)
    await body.complete()
    now = time.time()
    request = InboundRequest(
        id="4f5c7e0a-0000-0000-0000-000000000001", method=b"POST", raw_path=PATH, raw_query=None,
        headers=HEADERS, body=body, peer="127.0.0.1", received=now, complete=now,
        received_path=b"/bedrock" + PATH,
    )  # fmt: skip
    match, resolution = operations.match(b"POST", PATH), models.resolve("nova")
    principal = await keys.principal(request)
    said = attribution(HEADERS, PATH, BODY, None)

    def route() -> object:
        found = operations.match(b"POST", PATH, body=body.start)
        assert found.model_label is not None
        return models.resolve("nova")

    limiter = Limiter(None, reactor)
    admission = Admission(keys, limiter, Accounts(prices, []), sizes)

    async def admit() -> ExchangeRecord:
        record = ExchangeRecord(request, match=match, model_name="nova", principal=principal)
        record.attribution = said
        admission.permit(principal, request, match)
        admission.permit_model(principal, "nova", resolution)
        await admission.reserve(record, resolution.choices[0])
        return record

    def admitted() -> None:
        reservation = at_once(admit()).reservation
        reservation.headers(COST_PICOUSD)
        reservation.settle(COST_PICOUSD, USAGE)

    await admit()  # the first one asks the ledger

    members = {one.id: MemberSpec() for one in deployments}
    balancer = Balancer(RoutingSettings(), members, random.Random(1))
    ask = Ask(resolution.choices, "Converse", tokens=100)
    moment = 1000.0

    def balance() -> None:
        nonlocal moment
        moment += 0.01
        flight = balancer.take(ask, moment)
        assert isinstance(flight, InFlight)
        flight.first_byte(moment + 0.05)
        flight.end(None, moment + 0.1, tokens=18)

    choice = resolution.choices[0]
    signer = Signer(
        Endpoints(data.load("partitions"), overrides={}), _Credentials(),
        first_byte_s=60.0, wall_clock=time.time,
    )  # fmt: skip
    whom = Identity()

    def metered() -> object:
        meter = meter_for(match.operation, MODEL, 200, ANSWER_HEADERS)
        meter.feed(ANSWER)
        return meter.usage()

    streaming = operations.match(b"POST", b"/model/nova/converse-stream").operation
    stream = meter_for(streaming, MODEL, 200, STREAM_HEADERS)

    meter = meter_for(match.operation, MODEL, 200, ANSWER_HEADERS)
    meter.feed(ANSWER)
    record = ExchangeRecord(
        request, principal, attribution=said, match=match, model_name="nova", choice=choice,
        attempts=1, status=200, upstream_status=200, meter=meter, overhead_s=0.001,
        first_byte_s=0.002, duration_s=0.003, bytes_up=len(BODY), bytes_down=len(ANSWER),
    )  # fmt: skip
    accounts = Accounts(prices, [])

    def settle() -> None:
        record.cost = None
        accounts.settle(record)

    settle()
    journal = Journal(str(folder / "journal"))
    journal.open()
    stack.callback(journal.close, False)

    class Kept:
        def record(self, entry: object) -> None:
            journal.append(entry)  # type: ignore[arg-type]

    in_ledger = InLedger(Kept())  # type: ignore[arg-type]
    metrics = Metrics({})
    # As twistd --logfile has it: through the observer that redacts, to a file.
    log = AccessLog(
        LazyFileObserver(
            str(folder / "log"), as_json=False, redact=Redaction(["sk-1234"]), level=LogLevel.info
        )
    )
    return [
        Stage("parse", "bytes to a request, a reply to bytes", _parse()),
        Stage("auth", "whose key it is, known already", lambda: at_once(keys.principal(request))),
        Stage("route", "operation, model, deployments", route),
        Stage("attribution", "end user, session, tags", lambda: attribution(HEADERS, PATH, BODY)),
        Stage("admit", "permissions, limits and budgets; given back", admitted),
        Stage("balance", "a deployment chosen, its answer noted", balance),
        Stage(
            "sign",
            "host, headers, SigV4",
            lambda: at_once(signer.sign(request, match, choice, whom)),
        ),
        Stage("headers", "what goes down", lambda: downstream_headers(ANSWER_HEADERS)),
        Stage("meter", "of a whole answer", metered),
        Stage("meter event", "of a stream, one frame", lambda: stream.feed(EVENT)),
        Stage("settle", "price, cost, entry", settle),
        Stage("ledger", "a line of the journal, written", lambda: in_ledger.record(record)),
        Stage("metrics", "counters and histograms", lambda: metrics.record(record)),
        Stage("log", "a line, redacted, written", lambda: log.record(record)),
    ]


def in_reactor(work: Callable[[Any], Coroutine[Any, Any, None]]) -> int:
    """
    Run it in a reactor, once in a process.

    :returns: the exit status.
    """
    try:
        react(lambda reactor: Deferred.fromCoroutine(work(reactor)))
    except SystemExit as end:
        return int(end.code or 0)


async def measured(
    reactor: Any, names: Sequence[str] = (), rounds: int = 15
) -> dict[str, tuple[Stage, Cost]]:
    """
    :param names: of those to measure; all if there are none.
    """
    async with stages(reactor) as all_of_them:
        found = {}
        for stage in all_of_them:
            if not names or stage.name in names:
                for _ in range(200):
                    stage.work()
                found[stage.name] = (stage, cost(stage.work, rounds))
        return found
