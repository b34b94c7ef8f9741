"""
What each stage of accounting costs on the reactor thread, in microseconds.

    python benchmarks/accounting_stages.py

CPU time, the best of 15 runs each, of one small Converse answer.
"""

from __future__ import annotations

import tempfile
import time
import timeit
from collections.abc import Callable

from txbedrock import data
from txbedrock.accounting import Accounts, InLedger
from txbedrock.config import load_prices
from txbedrock.core.attribution import attribution
from txbedrock.core.auth import Principal
from txbedrock.core.deployments import Deployment
from txbedrock.core.meter import meter_for
from txbedrock.core.models import Choice
from txbedrock.core.operations import Operations
from txbedrock.inbound.body import Body
from txbedrock.interfaces import ExchangeRecord, InboundRequest
from txbedrock.metrics import Metrics
from txbedrock.storage.journal import Journal

BODY = b'{"messages": [{"role": "user", "content": [{"text": "Hello"}]}]}'
ANSWER = (
    b'{"metrics":{"latencyMs":412},"output":{"message":{"content":[{"text":"Hello, how can I help '
    b'you today?"}],"role":"assistant"}},"stopReason":"end_turn","usage":{"inputTokens":8,'
    b'"outputTokens":10,"totalTokens":18}}'
)
REQUEST_HEADERS = [
    (b"Host", b"localhost:4000"),
    (b"Accept-Encoding", b"identity"),
    (b"Content-Type", b"application/json"),
    (b"User-Agent", b"Boto3/1.44.5 md/Botocore#1.44.5"),
    (b"X-Amz-Date", b"20261122T000000Z"),
    (b"Authorization", b"AWS4-HMAC-SHA256 Credential=sk/20261122/us-west-2/bedrock/aws4_request"),
    (b"amz-sdk-invocation-id", b"1"),
    (b"amz-sdk-request", b"attempt=1"),
]
ANSWER_HEADERS = [
    (b"Date", b"Sun, 22 Nov 2026 00:00:00 GMT"),
    (b"Content-Type", b"application/json"),
    (b"X-Amzn-Requestid", b"4f5c7e0a-0000-0000-0000-000000000000"),
]


def microseconds(work: Callable[[], object], count: int = 10_000) -> float:
    runs = timeit.repeat(work, timer=time.process_time, number=count, repeat=15)
    return min(runs) / count * 1e6


def main() -> None:
    body = Body()
    body.write(BODY)
    operation = next(one for one in Operations(data.load("operations")) if one.name == "Converse")
    deployment = Deployment(
        id="d", model_name="m", model_id="us.amazon.nova-lite-v1:0", region="us-west-2"
    )
    choice = Choice(deployment, deployment.model_id, deployment.region)
    request = InboundRequest(
        "4f5c7e0a-0000-0000-0000-000000000001", b"POST", b"/model/m/converse", None,
        REQUEST_HEADERS, body, "127.0.0.1", 1.8e9, 1.8e9,
    )  # fmt: skip
    match = Operations(data.load("operations")).match(b"POST", b"/model/m/converse")
    metrics = Metrics({})

    def metered() -> object:
        meter = meter_for(operation, deployment.model_id, 200, ANSWER_HEADERS)
        meter.feed(ANSWER)
        return meter.usage()

    def record() -> ExchangeRecord:
        meter = meter_for(operation, deployment.model_id, 200, ANSWER_HEADERS)
        meter.feed(ANSWER)
        return ExchangeRecord(
            request, Principal("master_key", "00"), match=match, model_name="m", choice=choice,
            attempts=1, status=200, upstream_status=200, meter=meter, overhead_s=0.001,
            first_byte_s=0.002, duration_s=0.003, bytes_up=64, bytes_down=250,
        )  # fmt: skip

    one = record()
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(folder)
        journal.open()

        class Kept:
            def record(self, entry: object) -> None:
                journal.append(entry)  # type: ignore[arg-type]

        in_ledger = InLedger(Kept())  # type: ignore[arg-type]
        accounts = Accounts(load_prices(None), [])
        with_all = Accounts(load_prices(None), [in_ledger, metrics])

        def settle(with_logs: Accounts) -> None:
            one.cost = None
            with_logs.settle(one)

        settle(accounts)
        rows = [
            ("attribution", lambda: attribution(REQUEST_HEADERS, b"/model/m/converse", BODY)),
            ("meter: made, fed, read", metered),
            ("settle: price, cost, entry", lambda: settle(accounts)),
            ("journal: one line, one write", lambda: in_ledger.record(one)),
            ("metrics", lambda: metrics.record(one)),
            ("all from the answer on", lambda: (metered(), settle(with_all))),
        ]
        for name, work in rows:
            print(f"{name:32} {microseconds(work):6.2f} us")
        journal.close(False)


if __name__ == "__main__":
    main()
