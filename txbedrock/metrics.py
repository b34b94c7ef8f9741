"""
Figures for Prometheus, kept as plain numbers and put into its format when asked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from txbedrock.core.candidates import DeploymentState
from txbedrock.core.health import CircuitState
from txbedrock.core.money import PICO
from txbedrock.failover import DIRECT, Tally
from txbedrock.interfaces import ExchangeRecord

__all__ = ["CONTENT_TYPE", "Metrics", "connection_metrics", "routing_metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Note [Labels]
# -------------
# No label has values that a client can invent without bound: a model is a
# configured name or "direct", a deployment is configured, operations are in the
# table, error codes are those of AWS that are well formed, up to a number.
#
# Where OpenTelemetry's semantic conventions for generative AI have a name for a
# figure, it has that name here.

_MAX_CODES = 200
_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 300.0, 1200.0)
_MICROSECONDS = (100, 200, 500, 1000, 2000, 5000, 10_000, 50_000, 200_000, 1_000_000)

_TOKEN_KINDS = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")

Gauge = Callable[[], float]


class _Histogram:
    """Counts by upper bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        found, running = [], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            running += count
            found.append((str(bound), float(running)))
        return found


class _Series:
    """What is counted for one operation of one model at one deployment."""

    __slots__ = ("duration", "first_byte", "outcomes", "picousd", "tokens", "units", "unpriced")

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, int], int] = defaultdict(int)
        """By how it ended, and the first digit of the status."""
        self.tokens = [0] * len(_TOKEN_KINDS)
        self.units: dict[str, int] = defaultdict(int)
        self.picousd = 0
        self.unpriced = 0
        self.duration = _Histogram(_SECONDS)
        self.first_byte = _Histogram(_SECONDS)


class Metrics(Collector):
    """
    Counts exchanges as they are settled.

    :param gauges: read when asked: name -> (help, value).
    :param others: further figures, when asked.
    """

    def __init__(
        self,
        gauges: dict[str, tuple[str, Gauge]],
        others: Callable[[], Iterable[Metric]] = lambda: (),
    ) -> None:
        self._gauges = gauges
        self._others = others
        self._series: dict[tuple[str, str, str, str], _Series] = defaultdict(_Series)
        self._errors: dict[tuple[str, str], int] = defaultdict(int)
        self._codes: set[str] = set()
        self._overhead = _Histogram(_MICROSECONDS)
        self._bytes_up = self._bytes_down = 0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def record(self, record: ExchangeRecord) -> None:
        """Count an exchange that is settled."""
        if record.is_attempt:
            return  # The client's exchange comes later.
        entry, choice = record.entry, record.choice
        assert entry is not None
        model = "" if choice is None else choice.deployment.model_name or DIRECT
        series = self._series[entry.service, entry.operation, model, entry.deployment]
        series.outcomes[entry.outcome, entry.status // 100] += 1
        if entry.usage_source != "unknown":
            tokens = series.tokens
            tokens[0] += entry.input_tokens
            tokens[1] += entry.output_tokens
            if entry.cache_read_tokens:
                tokens[2] += entry.cache_read_tokens
            if entry.cache_write_5m_tokens:
                tokens[3] += entry.cache_write_5m_tokens
            if entry.cache_write_1h_tokens:
                tokens[4] += entry.cache_write_1h_tokens
            if entry.units:
                for name, count in entry.units.items():
                    series.units[name] += count
        if entry.cost_picousd is None:
            series.unpriced += 1
        else:
            series.picousd += entry.cost_picousd
        series.duration.observe(record.duration_s)
        if record.first_byte_s is not None:
            series.first_byte.observe(record.first_byte_s)
        if record.overhead_s is not None:
            self._overhead.observe(record.overhead_s * 1e6)
        if record.fault is not None:
            self._errors[record.fault.value, self._code(entry.error)] += 1
        self._bytes_up += entry.bytes_up
        self._bytes_down += entry.bytes_down

    def _code(self, code: str) -> str:
        if code in self._codes:
            return code
        if len(self._codes) < _MAX_CODES and code.isascii() and code.replace("_", "").isalnum():
            self._codes.add(code)
            return code
        return "other"

    def render(self) -> bytes:
        """All figures in Prometheus's text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus's library asks for."""
        yield from self._exchanges()
        yield from self._costs()
        yield from self._times()
        errors = CounterMetricFamily(
            "txbedrock_errors",
            "Exchanges that did not go well, by whose fault: client, policy, upstream, proxy",
            labels=("fault", "code"),
        )
        for labels, count in self._errors.items():
            errors.add_metric(labels, count)
        yield errors
        moved = CounterMetricFamily(
            "txbedrock_body_bytes", "Bytes of bodies", labels=("direction",)
        )
        moved.add_metric(("up",), self._bytes_up)
        moved.add_metric(("down",), self._bytes_down)
        yield moved
        for name, (text, value) in self._gauges.items():
            yield GaugeMetricFamily(name, text, value=value())
        yield from self._others()

    def _rows(self) -> Iterator[tuple[tuple[str, str, str], _Series]]:
        for (service, operation, model, deployment), series in self._series.items():
            yield (f"{service}:{operation}" if operation else "", model, deployment), series

    def _exchanges(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "txbedrock_requests",
            "Exchanges, by how they ended and what the client was told",
            labels=("operation", "model", "deployment", "outcome", "status"),
        )
        for labels, series in self._rows():
            for (outcome, hundreds), count in series.outcomes.items():
                status = f"{hundreds}xx" if hundreds else "none"
                requests.add_metric((*labels, outcome, status), count)
        yield requests

    def _costs(self) -> Iterator[Metric]:
        names = ("operation", "model", "deployment")
        tokens = CounterMetricFamily(
            "txbedrock_tokens", "Tokens that Bedrock bills", labels=(*names, "kind")
        )
        units = CounterMetricFamily(
            "txbedrock_units", "What Bedrock bills besides tokens", labels=(*names, "unit")
        )
        spend = CounterMetricFamily("txbedrock_spend_usd", "US dollars", labels=names)
        misses = CounterMetricFamily(
            "txbedrock_price_misses", "Exchanges whose cost is not known", labels=names
        )
        for labels, series in self._rows():
            for kind, count in zip(_TOKEN_KINDS, series.tokens, strict=True):
                if count:
                    tokens.add_metric((*labels, kind), count)
            for unit, count in series.units.items():
                units.add_metric((*labels, unit), count)
            spend.add_metric(labels, series.picousd / PICO)
            if series.unpriced:
                misses.add_metric(labels, series.unpriced)
        yield from (tokens, units, spend, misses)

    def _times(self) -> Iterator[Metric]:
        names = ("gen_ai_operation_name", "gen_ai_request_model", "deployment")
        duration = HistogramMetricFamily(
            "gen_ai_server_request_duration_seconds", "Of the whole exchange", labels=names
        )
        first = HistogramMetricFamily(
            "gen_ai_server_time_to_first_token_seconds",
            "From the head of the request to the head of the answer",
            labels=names,
        )
        for labels, series in self._rows():
            duration.add_metric(labels, series.duration.buckets(), series.duration.total)
            first.add_metric(labels, series.first_byte.buckets(), series.first_byte.total)
        yield from (duration, first)
        overhead = HistogramMetricFamily(
            "txbedrock_overhead_microseconds",
            "From the whole request to the first attempt: the gateway's own time",
        )
        overhead.add_metric((), self._overhead.buckets(), self._overhead.total)
        yield overhead


def connection_metrics(
    connections: Mapping[str, int], streams: Mapping[str, int], refused: Mapping[str, int]
) -> Iterator[Metric]:
    """
    What clients have open.

    :param connections: by protocol, idle ones included.
    :param streams: by protocol, requests under way.
    :param refused: by reason, connections refused, or closed for what their client did.
    """
    for name, text, counts in (
        ("txbedrock_connections", "Of clients", connections),
        ("txbedrock_streams", "Requests of clients under way", streams),
    ):
        gauge = GaugeMetricFamily(name, text, labels=("protocol",))
        for protocol in dict.fromkeys((*_PROTOCOLS, *counts)):
            gauge.add_metric((protocol,), counts.get(protocol, 0))
        yield gauge
    family = CounterMetricFamily(
        "txbedrock_connections_refused",
        "Connections turned away, or closed to make room or for what their client did",
        labels=("reason",),
    )
    for reason, count in refused.items():
        family.add_metric((reason,), count)
    yield family


_PROTOCOLS = ("http/1.1", "h2")


def routing_metrics(tally: Tally, states: Iterable[DeploymentState]) -> Iterator[Metric]:
    """What becomes of deployments, and of requests when one fails."""
    for name, text, labels, counts in (
        ("txbedrock_retries", "Attempts after the first", ("model", "failure"), tally.retries),
        (
            "txbedrock_deployment_attempts",
            "Attempts by the deployment that was chosen",
            ("model", "deployment"),
            tally.choices,
        ),
        (
            "txbedrock_hedges",
            "Second attempts beside slow first ones, and which was the better one",
            ("model", "better"),
            tally.hedges,
        ),
        ("txbedrock_fallbacks", "Other models asked instead", ("model", "to"), tally.fallbacks),
        (
            "txbedrock_deployment_changes",
            "How often a deployment left the rotation, or came back",
            ("deployment", "state"),
            tally.changes,
        ),
    ):
        family = CounterMetricFamily(name, text, labels=labels)
        for values, count in counts.items():
            family.add_metric(values, count)
        yield family
    state = GaugeMetricFamily(
        "txbedrock_deployment_state",
        "0: in rotation, 1: being probed, 2: cooling down; the worst of its models",
        labels=("deployment",),
    )
    in_flight = GaugeMetricFamily(
        "txbedrock_deployment_in_flight", "Requests under way", labels=("deployment",)
    )
    worst: dict[str, int] = defaultdict(int)
    under_way: dict[str, int] = defaultdict(int)
    for one in states:
        worst[one.id] = max(worst[one.id], _STATES[one.state])
        under_way[one.id] += one.in_flight
    for id, value in worst.items():
        state.add_metric((id,), value)
        in_flight.add_metric((id,), under_way[id])
    yield from (state, in_flight)


_STATES = {CircuitState.CLOSED: 0, CircuitState.HALF_OPEN: 1, CircuitState.OPEN: 2}
