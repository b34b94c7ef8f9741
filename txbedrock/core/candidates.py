"""
A deployment as one among several -> how it does: what is left of its quotas, how soon it
answers, how often it fails, how it scores.

What :mod:`~txbedrock.core.balance` compares and counts on. Pure: the time is an argument.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from .health import FADE_S, IN_ROTATION, Circuit, CircuitState, FailureKind, Pace
from .limits import Window
from .models import Choice

__all__ = [
    "IN_FLIGHT_RETRY_S",
    "NEVER",
    "DeploymentState",
    "Member",
    "MemberSpec",
    "Target",
    "hash_of",
]

# Note [Score]
# ------------
# The score of a deployment is the time that a request is expected to wait for its first
# byte there, and the lowest is the best. It is a product of
#
# - the time expected, by operation (core/health.py, Note [Expected time]), which depends
#   on how many requests in flight wait for their first byte;
# - errors: the square of how many attempts a success takes, of late;
# - what is left of rpm and tpm, when it is less than _SCARCE: in inverse proportion, so
#   that all of a group run short together, and none of them early.
#
# Note [Quotas learned]
# ---------------------
# Throttling tells what a quota is: as many requests and tokens as this model had here in
# the last minute. Which of the two it was is not told, so both have to be as many again
# before it counts as used up. That is an opinion: the score heeds it, but a request that
# has nowhere else to go is sent. What goes well beyond it (_BEYOND) refutes it, and it
# doubles in _FORGET_S in any case.

NEVER = math.inf
"""As a time: nobody knows when. There will be room when one in flight has ended."""

IN_FLIGHT_RETRY_S = 1.0
"""What who has to wait for that is told to wait."""

_STALE_S = 10.0
_SCARCE = 0.25
_LEAST_LEFT = 0.005
_FORGET_S = 300.0
_BEYOND = 1.1
_SHORTEST_S = 1e-4
"""So that what is not known can be compared."""

_SAMPLES_S = 3600.0
"""How old samples may be, for latency-based-routing, as in LiteLLM."""

_UNLIMITED = sys.maxsize
_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSpec:
    """What the configuration says of a deployment."""

    weight: float | None = None
    order: int = 0
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    tags: tuple[str, ...] = ()
    """``default``: for requests that have no tags, or none that any deployment has."""

    cost: float | None = None
    """To be compared within a group, in any unit; None: more than all others."""


class DeploymentState(NamedTuple):
    """What is known of one deployment and model, for people."""

    id: str
    model_id: str
    state: CircuitState
    since: float
    """When it left or entered the rotation; minus infinity: never."""

    why: FailureKind | None
    """What took it out; None: it is in rotation."""

    loud: bool
    """Whether an operator has to act."""

    in_flight: int
    latency_s: float | None
    """Mean time to the first byte, of late; None: not known."""

    error_rate: float
    """0 to 1, of late, without throttling."""

    cooling_until: float | None
    """When it is probed; None: it is in rotation."""


class Member:
    """A deployment, whatever models it serves."""

    __slots__ = (
        "free_at",
        "id",
        "in_flight",
        "limited",
        "many_requests",
        "many_tokens",
        "max_parallel",
        "requests",
        "reserved",
        "spare",
        "spec",
        "tokens",
    )

    def __init__(
        self, id: str, spec: MemberSpec, max_parallel: int | None, counts: bool, now: float
    ) -> None:
        self.id = id
        self.spec = spec
        self.limited = (
            counts or spec.rpm is not None or spec.tpm is not None or max_parallel is not None
        )
        """Whether anybody asks what it is used for; if not, nothing is counted."""

        self.max_parallel = _UNLIMITED if max_parallel is None else max_parallel
        self.in_flight = 0
        self.requests = Window()
        self.tokens = Window()
        self.reserved = 0  # tokens that those in flight may take
        self.spare = _UNLIMITED if spec.tpm is None else spec.tpm
        """Tokens that there is room for, at least."""

        self.many_requests = NEVER if spec.rpm is None else (1 - _SCARCE) * spec.rpm
        self.many_tokens = NEVER if spec.tpm is None else (1 - _SCARCE) * spec.tpm
        self.free_at = IN_ROTATION
        """When there is room for one more; infinity: when one has ended."""

        self.refresh(now)

    def take(self, tokens: int, now: float) -> None:
        """An attempt begins, which may use so many tokens."""
        second = int(now)
        if self.requests.second != second:
            self.requests.expire(second)
        self.requests.add(1)
        self.in_flight += 1
        self.reserved += tokens
        self.spare -= tokens
        self.refresh(now)

    def give_back(self, reserved: int, used: int, now: float) -> None:
        """An attempt is over: what it used, in place of what it might have."""
        self.in_flight -= 1
        self.reserved -= reserved
        if used:
            second = int(now)
            if self.tokens.second != second:
                self.tokens.expire(second)
            self.tokens.add(used)
        self.spare += reserved - used
        self.refresh(now)

    def refresh(self, now: float) -> None:
        """Reckon :attr:`free_at` anew."""
        rpm = self.spec.rpm
        if self.in_flight >= self.max_parallel:
            self.free_at = NEVER
        elif rpm is None or self.requests.used < rpm:
            self.free_at = IN_ROTATION
        elif rpm <= 0:
            self.free_at = sys.float_info.max
        else:
            self.requests.expire(int(now))
            room_s = self.requests.room_in_s(now, rpm - 1)
            # A whole second, and nothing before it.
            self.free_at = round(now + room_s) if room_s else IN_ROTATION

    def used(self, now: float) -> tuple[int, int]:
        """In the last minute: tokens, those reserved included, and requests."""
        second = int(now)
        if self.tokens.second != second:
            self.tokens.expire(second)
        if self.requests.second != second:
            self.requests.expire(second)
        return self.tokens.used + self.reserved, self.requests.used

    @property
    def scarce(self) -> bool:
        """Whether it may be that less than a quarter is left."""
        # What has not expired yet is more than what is used, never less.
        return (
            self.requests.used > self.many_requests
            or self.tokens.used + self.reserved > self.many_tokens
        )

    def token_wait_s(self, tokens: int, now: float) -> float:
        """Seconds until there is room for so many tokens. 0: there is."""
        tpm = self.spec.tpm
        if tpm is None:
            return 0.0
        needed, window = max(tokens, 1), self.tokens
        window.expire(int(now))
        self.spare = tpm - window.used - self.reserved
        if needed <= self.spare:
            return 0.0
        left = tpm - self.reserved - needed
        if left >= 0:
            return window.room_in_s(now, left)
        return _MINUTE_S if needed > tpm else IN_FLIGHT_RETRY_S


class Target:
    """A deployment, for one model."""

    __slots__ = (
        "__weakref__",
        "_attempts",
        "_failures",
        "_learned_at",
        "_stamp",
        "choice",
        "circuit",
        "erring",
        "in_flight",
        "learned_requests",
        "learned_tokens",
        "limited",
        "member",
        "named_by_client",
        "paces",
        "requests",
        "seed",
        "share",
        "tokens",
        "until",
        "waiting",
    )

    def __init__(self, choice: Choice, member: Member, circuit: Circuit, now: float) -> None:
        self.choice = choice
        self.member = member
        self.circuit = circuit
        self.until = circuit.until
        """That of the circuit, at hand."""

        self.share = 1.0
        """How much of its group's requests is meant for it."""

        self.seed = hash_of(member.id) | 1
        self.named_by_client = "*" in choice.deployment.model_id
        self.paces: dict[str, Pace] = {}
        self.in_flight = 0
        self.waiting = 0
        """How many of those in flight wait for their first byte."""

        self.erring = False
        """Whether there was any error."""

        self._attempts = self._failures = 0.0
        self._stamp = now
        self.limited = member.spec.rpm is not None or member.spec.tpm is not None
        """Whether there is a quota, as far as known."""

        self.requests = Window()
        self.tokens = Window()
        self.learned_requests = self.learned_tokens = 0
        self._learned_at = now

    def begin(self, operation: str, now: float) -> Pace:
        """An attempt begins."""
        self.waiting += 1
        self.in_flight += 1
        second = int(now)
        if self.requests.second != second:
            self.requests.expire(second)
        self.requests.add(1)
        pace = self.paces.get(operation)
        if pace is None:
            pace = self.paces[operation] = Pace(now)
        pace.begin(now)
        return pace

    def count(self, failed: bool, now: float, counted: bool = False) -> None:
        """
        An attempt went well, or did not.

        :param counted: it has been said before that it went well.
        """
        passed = now - self._stamp
        self._stamp = now
        keep = math.exp(-passed / FADE_S) if passed > 0 else 1.0
        self._attempts = self._attempts * keep + (not counted)
        self._failures = self._failures * keep + failed
        self.erring = self._failures > 1e-3

    def error_rate(self, now: float) -> float:
        """0 to 1, of late, without throttling."""
        passed = now - self._stamp
        keep = math.exp(-passed / FADE_S) if passed > 0 else 1.0
        return self._failures * keep / (self._attempts * keep + 1)

    def learn_quota(self, second: int, now: float) -> None:
        """
        A request was throttled.

        :param second: when it was counted.
        """
        self.requests.expire(int(now))
        self.tokens.expire(int(now))
        self.requests.take_back(second, 1)
        self.learned_requests = self.requests.used
        self.learned_tokens = self.tokens.used
        self._learned_at = now
        self.limited = True

    def went_well(self, now: float) -> None:
        """So many were not too many."""
        if self.learned_requests:
            self.requests.expire(int(now))
            if self.requests.used > _BEYOND * self.learned_requests:
                self.learned_requests = 0
        if self.learned_tokens:
            self.tokens.expire(int(now))
            if self.tokens.used > _BEYOND * self.learned_tokens:
                self.learned_tokens = 0

    def left(self, now: float) -> float:
        """The share of its quotas that is left."""
        second, spec, left = int(now), self.member.spec, 1.0
        if spec.rpm:
            window = self.member.requests
            if window.second != second:
                window.expire(second)
            left = 1 - window.used / spec.rpm
        if spec.tpm:
            window = self.member.tokens
            if window.second != second:
                window.expire(second)
            left = min(left, 1 - (window.used + self.member.reserved) / spec.tpm)
        if self.learned_requests or self.learned_tokens:
            raised = 2 ** min((now - self._learned_at) / _FORGET_S, 100.0)
            left = min(left, 1 - self._used_of_learned(second) / raised)
        return left

    def _used_of_learned(self, second: int) -> float:
        """The share that was used of what is known: the smaller one."""
        used = []
        for window, learned in (
            (self.requests, self.learned_requests),
            (self.tokens, self.learned_tokens),
        ):
            if learned:
                if window.second != second:
                    window.expire(second)
                used.append(window.used / learned)
        return min(used)

    @property
    def misconfigured(self) -> bool:
        """Whether an operator has to act."""
        why = self.circuit.why
        return why is not None and why.configured

    @property
    def denied(self) -> bool:
        """Whether it is out because AWS does not let us use it, or does not know it."""
        return self.circuit.why is FailureKind.DENIED

    def wait_s(self, tokens: int, now: float) -> float:
        """Until it may be in rotation and have room; infinity: there is no telling."""
        member = self.member
        return max(self.until - now, member.free_at - now, member.token_wait_s(tokens, now))

    def answered(self, operation: str) -> bool:
        """Whether anything is known of it."""
        pace = self.paces.get(operation)
        return pace is not None and pace.count > 0

    def stale(self, operation: str, now: float) -> bool:
        """Whether nothing was heard of it for long, and it is not being waited for."""
        pace = self.paces.get(operation)
        return pace is not None and not pace.pending and now - pace.heard > _STALE_S

    def last_ten_s(self, operation: str, now: float) -> float:
        """For latency-based-routing; 0: not known."""
        pace = self.paces.get(operation)
        if pace is None or now - pace.heard > _SAMPLES_S:
            return 0.0
        return pace.last_ten_s

    def score(self, operation: str, now: float) -> float:
        """See Note [Score]."""
        pace = self.paces.get(operation)
        score = _SHORTEST_S if pace is None else pace.expected(self.waiting, now)
        if score < _SHORTEST_S:
            score = _SHORTEST_S
        if self.erring:
            score /= (1 - self.error_rate(now)) ** 2
        if self.limited and (self.learned_requests or self.learned_tokens or self.member.scarce):
            left = self.left(now)
            if left < _SCARCE:
                score *= _SCARCE / max(left, _LEAST_LEFT)
        return score

    def state(self, now: float) -> DeploymentState:
        """For people."""
        circuit = self.circuit
        count = sum(pace.count for pace in self.paces.values())
        return DeploymentState(
            id=self.member.id,
            model_id=self.choice.model_id,
            state=circuit.state,
            since=circuit.since,
            why=circuit.why,
            loud=self.misconfigured and not self.named_by_client,
            in_flight=self.in_flight,
            latency_s=sum(pace.sum for pace in self.paces.values()) / count if count else None,
            error_rate=self.error_rate(now),
            cooling_until=None if circuit.until == IN_ROTATION else circuit.until,
        )


def hash_of(text: str) -> int:
    """64 bits, the same in all processes."""
    return int.from_bytes(
        blake2b(text.encode(errors="backslashreplace"), digest_size=8).digest(), "big"
    )
