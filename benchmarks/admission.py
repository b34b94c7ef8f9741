"""
What each stage of admission costs on the reactor thread, in microseconds.

    python benchmarks/admission.py

Medians of eleven rounds, of a small Converse with a key that has rpm, tpm, parallel
requests and a budget, in a team that has a budget. The last line is all of it together:
who is behind the key (known already), what it may do, room for it, and what was not used
given back; the limit for it is 25 us.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import timeit
from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, react

from txbedrock import data
from txbedrock.accounting import Accounts
from txbedrock.admission import Admission
from txbedrock.config import load_prices
from txbedrock.core.auth import hash_key
from txbedrock.core.demand import Demand, ModelSizes, TokenRatios
from txbedrock.core.deployments import Deployment
from txbedrock.core.grants import (
    NO_LIMITS,
    Key,
    Level,
    Limits,
    ModelLimits,
    Permissions,
    Team,
    Token,
)
from txbedrock.core.models import Models
from txbedrock.core.money import PICO
from txbedrock.core.operations import Operations
from txbedrock.core.permissions import Access
from txbedrock.core.usage import Source, Usage
from txbedrock.inbound.body import Body
from txbedrock.interfaces import ExchangeRecord, InboundRequest
from txbedrock.limits import Limiter, Reservation
from txbedrock.storage.database import Database
from txbedrock.storage.directory import Directory
from txbedrock.storage.keys import KeyStore

BODY = (
    b'{"messages": [{"role": "user", "content": [{"text": "Hello"}]}], '
    b'"inferenceConfig": {"maxTokens": 100}}'
)
SECRET = b"sk-a-key-of-the-benchmark"
MODEL = "us.amazon.nova-lite-v1:0"
USAGE = Usage(8, 10, source=Source.BODY)
COST = 2_880_000

KEY = Limits(
    rpm=10**9,
    tpm=10**12,
    max_parallel=1000,
    max_budget=10**6 * PICO,
    soft_budget=9 * 10**5 * PICO,
    budget_duration="1mo",
)
TEAM = Limits(max_budget=10**7 * PICO, budget_duration="30d")
LEVELS = {
    "no limits": (Level("key", "k0", "ci", NO_LIMITS), Level("team", "t0", "red", NO_LIMITS)),
    "key: rpm": (Level("key", "k1", "ci", Limits(rpm=10**9)),),
    "key: budget": (Level("key", "k2", "ci", Limits(max_budget=10**6 * PICO)),),
    "key: all, team: budget": (Level("key", "k", "ci", KEY), Level("team", "t", "red", TEAM)),
    "the same, with model limits": (
        Level("key", "k3", "ci", Limits(rpm=10**9, models={"nova": ModelLimits(rpm=10**9)})),
        Level("team", "t3", "red", TEAM),
    ),
}


def microseconds(work: Callable[[], object], count: int = 20_000) -> float:
    return statistics.median(timeit.repeat(work, number=count, repeat=11)) / count * 1e6


async def whole(reactor: Any, folder: str) -> float:
    """Microseconds of all stages, with the gateway's own parts on a real database."""
    database = Database(f"sqlite:///{folder}/keys.db", reactor)
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
        None,
        directory,
        database,
        salt=b"",
        access=partial(Access, access_groups={}),
        reactor=reactor,
        wall_clock=time.time,
        cache_age_s=3600.0,
    )
    deployment = Deployment("d", "nova", MODEL, "us-west-2")
    models = Models([deployment], {}, None)
    accounts = Accounts(load_prices(None), [])
    sizes = ModelSizes.parse(data.load("model_limits"))
    admission = Admission(keys, Limiter(None, reactor), accounts, sizes)
    body = Body()
    body.write(BODY)
    await body.complete()
    path = b"/model/nova/converse"
    request = InboundRequest(
        id="0",
        method=b"POST",
        raw_path=path,
        raw_query=None,
        headers=[
            (b"Host", b"localhost:4000"),
            (b"Authorization", b"Bearer " + SECRET),
            (b"Content-Type", b"application/json"),
            (b"User-Agent", b"Boto3/1.44.5 md/Botocore#1.44.5"),
            (b"amz-sdk-invocation-id", b"0f5f9c46-8a3a-4d83-a1d5-8b1c1c6a3d4e"),
        ],
        body=body,
        peer="127.0.0.1",
        received=time.time(),
        received_path=b"/bedrock" + path,
    )
    match = Operations(data.load("operations")).match(b"POST", path)
    resolution = models.resolve("nova")

    async def admit() -> ExchangeRecord:
        record = ExchangeRecord(request, match=match, model_name="nova")
        principal = record.principal = await keys.principal(request)
        admission.permit(principal, request, match)
        admission.permit_model(principal, "nova", resolution)
        await admission.reserve(record, resolution.choices)
        return record

    await admit()

    def once() -> None:
        try:
            admit().send(None)
        except StopIteration as stop:
            stop.value.reservation.settle(COST, USAGE)
        else:
            raise AssertionError("it waits")

    for _ in range(100):
        once()
    found = microseconds(once, 10_000)
    await database.close()
    return found


def main() -> None:
    price = load_prices(None).price(MODEL, "us-west-2")
    sizes, ratios = ModelSizes.parse(data.load("model_limits")), TokenRatios()
    clock = Clock()
    clock.advance(1.8e9)
    limiter = Limiter(None, clock, clock.seconds)

    def demand() -> Demand:
        return Demand(
            model="nova",
            model_id=MODEL,
            operation="Converse",
            body_length=len(BODY),
            body_start=BODY,
            price=price,
            ratios=ratios,
            sizes=sizes,
        )

    def estimated() -> Demand:
        made = demand()
        made.tokens()
        made.picousd()
        return made

    def reserved(levels: tuple[Level, ...], need: Demand) -> Reservation:
        # As it is awaited in the coroutine of an exchange.
        coroutine = limiter.reserve(levels, need)
        try:
            coroutine.send(None)
        except StopIteration as stop:
            found: Reservation = stop.value
            return found
        raise AssertionError("it waits")

    for _ in range(100):
        known = estimated()
        known.learn(USAGE)
    rows: list[tuple[str, Callable[[], object]]] = [
        ("a demand, made", demand),
        ("a demand, made and estimated", estimated),
    ]
    for name, levels in LEVELS.items():

        def known_need(levels: tuple[Level, ...] = levels) -> None:
            reserved(levels, known).settle(COST, USAGE)

        def all_of_it(levels: tuple[Level, ...] = levels) -> None:
            reserved(levels, demand()).settle(COST, USAGE)

        rows.append((f"reserve, settle; {name}", known_need))
        rows.append(("    with its demand", all_of_it))
    one = reserved(LEVELS["key: all, team: budget"], demand())
    rows.append(("headers of an answer", lambda: one.headers(COST)))
    for name, work in rows:
        print(f"{name:45} {microseconds(work):6.2f} us")
    one.settle(COST, USAGE)

    def waiting() -> None:
        """A hundred that wait for one, each let in by the one before."""
        level = Level("key", "w", "ci", Limits(max_budget=known.picousd()))
        short = Limiter(None, clock, clock.seconds)
        ended: list[Reservation] = []

        async def one() -> None:
            ended.append(await short.reserve((level,), known))

        for _ in range(101):
            Deferred.fromCoroutine(one())
        while ended:
            ended.pop().settle(0, USAGE)
        assert not short.waiting

    print(f"{'waited, let in, settled':45} {microseconds(waiting, 20) / 101:6.2f} us")


async def all_stages(reactor: Any) -> None:
    main()
    with tempfile.TemporaryDirectory() as folder:
        found = await whole(reactor, folder)
    print(f"{'all of it: key, permissions, limits, budgets':45} {found:6.2f} us")


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(all_stages(reactor)))
