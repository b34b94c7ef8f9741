"""
Tests for L{txbedrock.metrics}: what Prometheus is told of exchanges.
"""

from __future__ import annotations

import re
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.deployments import Deployment
from txbedrock.core.entries import LedgerEntry
from txbedrock.core.models import Choice
from txbedrock.errors import Fault
from txbedrock.inbound.body import Body
from txbedrock.interfaces import ExchangeRecord, InboundRequest
from txbedrock.metrics import Metrics

DEPLOYMENT = Deployment(id="d1", model_name="m", model_id="x.y", region="us-west-2")
DIRECT = Deployment(id="d0", model_name="", model_id="*", region="us-west-2")

CONVERSED = 'operation="bedrock-runtime:Converse",model="m",deployment="d1"'


def settled(
    deployment: Deployment | None = DEPLOYMENT,
    duration_s: float = 0.3,
    first_byte_s: float | None = 0.015,
    overhead_s: float | None = 0.0004,
    fault: Fault | None = None,
    **entry: Any,
) -> ExchangeRecord:
    """An exchange that is over, with its line of the ledger."""
    request = InboundRequest("1", b"POST", b"/", None, [], Body(), "", 1.0)
    values: dict[str, Any] = {
        "request_id": "1",
        "started_us": 1,
        "service": "bedrock-runtime",
        "operation": "Converse",
        "deployment": "" if deployment is None else deployment.id,
        "status": 200,
        "usage_source": "body",
        "cost_picousd": 1_500_000_000_000,
    }
    return ExchangeRecord(
        request,
        choice=None if deployment is None else Choice(deployment, "x.y", "us-west-2"),
        fault=fault,
        duration_s=duration_s,
        first_byte_s=first_byte_s,
        overhead_s=overhead_s,
        entry=LedgerEntry(**{**values, **entry}),
    )


def ordered(series: str) -> str:
    """A series with its labels in the order of their names, which means nothing."""
    name, brace, labels = series.partition("{")
    return f"{name}{{{','.join(sorted(labels[:-1].split(',')))}}}" if brace else name


class MetricsTests(SynchronousTestCase):
    """Every figure, by its labels."""

    def figures(self, *records: ExchangeRecord, **gauges: Any) -> dict[str, float]:
        """Series as they are written -> value."""
        metrics = Metrics(gauges)
        for record in records:
            metrics.record(record)
        text = metrics.render().decode()
        return {
            ordered(series): float(value)
            for series, value in re.findall(r"^([^#\s].*) (\S+)$", text, re.MULTILINE)
        }

    def test_exchanges(self) -> None:
        """By operation, model, deployment, how they ended and what the client was told."""
        found = self.figures(
            settled(),
            settled(status=206),
            settled(status=429, outcome="complete"),
            settled(status=503, outcome="failed"),
            settled(DIRECT, service="bedrock", operation="ListFoundationModels"),
            settled(None, service="", operation="", status=0, outcome="client_gone"),
        )
        expected = {
            f'{{{CONVERSED},outcome="complete",status="2xx"}}': 2,
            f'{{{CONVERSED},outcome="complete",status="4xx"}}': 1,
            f'{{{CONVERSED},outcome="failed",status="5xx"}}': 1,
            '{operation="bedrock:ListFoundationModels",model="direct",deployment="d0",'
            'outcome="complete",status="2xx"}': 1,
            '{operation="",model="",deployment="",outcome="client_gone",status="none"}': 1,
        }
        name = "txbedrock_requests_total"
        self.assertEqual(
            {key: value for key, value in found.items() if key.startswith(name)},
            {ordered(name + labels): value for labels, value in expected.items()},
        )

    def test_usage(self) -> None:
        """Tokens, other units, money, and how often it is not known what something cost."""
        found = self.figures(
            settled(input_tokens=8, output_tokens=10, cache_read_tokens=3),
            settled(input_tokens=1, cache_write_5m_tokens=4, cache_write_1h_tokens=5),
            settled(units={"images": 2, "queries": 1}),
            settled(units={"images": 3}, cost_picousd=None),
            settled(usage_source="unknown", input_tokens=99, units={"x": 9}, cost_picousd=None),
        )
        for series, value in (
            (f'tokens_total{{{CONVERSED},kind="input"}}', 9),
            (f'tokens_total{{{CONVERSED},kind="output"}}', 10),
            (f'tokens_total{{{CONVERSED},kind="cache_read"}}', 3),
            (f'tokens_total{{{CONVERSED},kind="cache_write_5m"}}', 4),
            (f'tokens_total{{{CONVERSED},kind="cache_write_1h"}}', 5),
            (f'units_total{{{CONVERSED},unit="images"}}', 5),
            (f'units_total{{{CONVERSED},unit="queries"}}', 1),
            (f"spend_usd_total{{{CONVERSED}}}", 4.5),
            (f"price_misses_total{{{CONVERSED}}}", 2),
        ):
            self.assertEqual(found.get(ordered(f"txbedrock_{series}")), value, series)
        self.assertFalse([series for series in found if 'unit="x"' in series])

    def test_times(self) -> None:
        """Histograms: each bound counts what is at most that."""
        found = self.figures(
            settled(duration_s=0.01, first_byte_s=0.01, overhead_s=0.0001),
            settled(duration_s=5000.0, first_byte_s=None, overhead_s=None),
        )
        labels = 'gen_ai_operation_name="bedrock-runtime:Converse",gen_ai_request_model="m"'
        labels += ',deployment="d1"'
        whole, first = (
            f"gen_ai_server_{name}_seconds" for name in ("request_duration", "time_to_first_token")
        )
        for series, value in (
            (f'{whole}_bucket{{{labels},le="0.01"}}', 1),
            (f'{whole}_bucket{{{labels},le="1200.0"}}', 1),
            (f'{whole}_bucket{{{labels},le="+Inf"}}', 2),
            (f"{whole}_count{{{labels}}}", 2),
            (f"{whole}_sum{{{labels}}}", 5000.01),
            (f'{first}_bucket{{{labels},le="0.01"}}', 1),
            (f"{first}_count{{{labels}}}", 1),
            ('txbedrock_overhead_microseconds_bucket{le="100"}', 1),
            ("txbedrock_overhead_microseconds_count", 1),
        ):
            self.assertEqual(found.get(ordered(series)), value, series)

    def test_errors(self) -> None:
        """By whose fault; what is no error code, or one too many, is "other"."""
        upstream = [
            settled(fault=Fault.UPSTREAM, error=code)
            for code in ("ThrottlingException", "ThrottlingException", "a b", "é", "")
        ]
        many = [settled(fault=Fault.CLIENT, error=f"Code{n}") for n in range(250)]
        found = self.figures(*upstream, *many)
        errors = {key: value for key, value in found.items() if "errors_total" in key}
        for fault, code, value in (
            ("upstream", "ThrottlingException", 2),
            ("upstream", "other", 3),
            ("client", "other", 250 - 199),
        ):
            series = ordered(f'txbedrock_errors_total{{fault="{fault}",code="{code}"}}')
            self.assertEqual(errors.get(series), value, series)
        self.assertEqual(len(errors), 2 + 199 + 1)

    def test_bytes_and_gauges(self) -> None:
        """Bodies both ways, and what is asked for at the moment."""
        found = self.figures(
            settled(bytes_up=64, bytes_down=250),
            settled(bytes_up=1),
            txbedrock_connections=("Of clients", lambda: 7),
        )
        self.assertEqual(found['txbedrock_body_bytes_total{direction="up"}'], 65)
        self.assertEqual(found['txbedrock_body_bytes_total{direction="down"}'], 250)
        self.assertEqual(found["txbedrock_connections"], 7)
