"""
What an answer of Bedrock's is billed by: tokens by kind, or other units.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Source", "Usage"]


class Source(Enum):
    """Where the figures come from, the finest first."""

    BODY = "body"
    """The answer's body, or the events of its stream."""

    HEADERS = "headers"
    """``x-amzn-bedrock-*-token-count``."""

    METRICS = "metrics"
    """``amazon-bedrock-invocationMetrics`` of a stream's last chunk."""

    UNKNOWN = "unknown"
    """Nothing said what was used. It is never guessed."""


@dataclass(frozen=True, slots=True)
class Usage:
    """
    What one answer used. Counts are what Bedrock bills, each token in one of them.
    """

    input_tokens: int = 0
    """Neither read from a cache nor written to one."""

    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    """Also those of which the answer does not say for how long."""

    cache_write_1h_tokens: int = 0

    units: tuple[tuple[str, int], ...] = ()
    """What is billed otherwise, by name, sorted: ``images``, ``queries``,
    ``guardrail.contentPolicyUnits``, ``audio_ms``, ``video_ms`` ..."""

    tier: str = ""
    """Service tier as the answer says it: ``default``, ``priority``, ``flex``,
    ``reserved``; empty when it says nothing."""

    optimized: bool = False
    """Served with latency-optimised inference."""

    model: str = ""
    """The model that the answer names, where it is not the one of the path:
    behind a prompt router, or on OpenAI's and Anthropic's routes."""

    source: Source = Source.UNKNOWN

    problem: str = ""
    """Why metering stopped before the end; empty when it did not."""
