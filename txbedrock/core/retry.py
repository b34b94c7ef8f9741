"""
An attempt has failed: try again, where and when, or give up.

Pure state: the time is an argument, in seconds of any one clock; chance is a function
that is given. A request asks its :class:`Attempts` for each decision; what all requests
share is in :class:`Retries`.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from txbedrock.core.health import FailureKind
from txbedrock.core.operations import Match, Operation

__all__ = [
    "Action",
    "Attempts",
    "Decision",
    "Retries",
    "RetryBudget",
    "RetrySettings",
    "may_repeat",
]

# Note [What may be repeated]
# ---------------------------
# An attempt that failed may have had its effect all the same: the answer was lost, not
# the request. So only what has no effect is repeated:
#
#   - GET and HEAD, in all services;
#   - Get..., List... and Search... by another method, which only read, except those of
#     _ISSUING, which make a token or begin a consent;
#   - what is in _WITHOUT_EFFECT: it asks a model, a guardrail or a knowledge base and
#     leaves nothing behind. What it costs may be billed twice;
#   - of the routes in the style of OpenAI and Anthropic, the paths in _PATHS. The others
#     keep files, batches and answers;
#   - what the configuration names.
#
# InvokeAgent, InvokeInlineAgent, InvokeFlow and all that runs in AgentCore call tools and
# write sessions: no. What is new and not named here: no.
#
# Whatever the operation, a connection that could not be opened is no attempt at it: not
# one byte of the request has left. It may go elsewhere (FailureKind.CONNECT). That does
# not hold for a kept connection which broke when it was used again: that is BROKE.
#
# A second attempt beside a first one that goes on (a hedge) is another matter: it is
# wasted by design. What only the configuration calls repeatable is never hedged.

_WITHOUT_EFFECT = frozenset(
    {
        "bedrock-runtime:ApplyGuardrail",
        "bedrock-runtime:Converse",
        "bedrock-runtime:ConverseStream",
        "bedrock-runtime:CountTokens",
        "bedrock-runtime:InvokeGuardrailChecks",
        "bedrock-runtime:InvokeModel",
        "bedrock-runtime:InvokeModelWithResponseStream",
        "bedrock-agent:ValidateFlowDefinition",
        "bedrock-agent-runtime:AgenticRetrieveStream",
        "bedrock-agent-runtime:CheckIngestedDocumentAcl",
        "bedrock-agent-runtime:GenerateQuery",
        "bedrock-agent-runtime:OptimizePrompt",
        "bedrock-agent-runtime:Rerank",
        "bedrock-agent-runtime:Retrieve",
        "bedrock-agent-runtime:RetrieveAndGenerate",
        "bedrock-agent-runtime:RetrieveAndGenerateStream",
        "bedrock-agentcore:RetrieveMemoryRecords",
    }
)

_ISSUING = frozenset(
    {
        "bedrock-agentcore:GetResourceApiKey",
        "bedrock-agentcore:GetResourceOauth2Token",
        "bedrock-agentcore:GetResourcePaymentToken",
        "bedrock-agentcore:GetWorkloadAccessToken",
        "bedrock-agentcore:GetWorkloadAccessTokenForJWT",
        "bedrock-agentcore:GetWorkloadAccessTokenForUserId",
    }
)

_PATHS = frozenset(
    {
        b"/anthropic/v1/messages",
        b"/anthropic/v1/messages/count_tokens",
        b"/openai/v1/chat/completions",
        b"/openai/v1/embeddings",
    }
)

_READING = ("Get", "List", "Search")


def may_repeat(
    operation: Operation,
    method: bytes,
    extra: Collection[str] = frozenset(),
    *,
    raw_path: bytes = b"",
) -> bool:
    """
    Whether a request has the same effect when it is sent twice. See Note [What may be
    repeated].

    :param method: of the request; some routes take all.
    :param extra: what the operator vouches for: ``service:Name``, in which ``*``
        stands for any text.
    :param raw_path: of the request; it tells the routes of OpenAI's and Anthropic's
        style apart.
    """
    if operation.bidirectional:
        return False
    if method in (b"GET", b"HEAD"):
        return True
    name = f"{operation.service}:{operation.name}"
    if name in _WITHOUT_EFFECT or any(fnmatchcase(name, pattern) for pattern in extra):
        return True
    if operation.method == "*":
        return method == b"POST" and raw_path in _PATHS
    return operation.name.startswith(_READING) and name not in _ISSUING


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """How often, how fast and how long a request is tried again."""

    num_retries: int = 2
    """Attempts after the first, at the deployments of one model group."""

    by_kind: Mapping[FailureKind, int] = field(default_factory=dict)
    """The same after a failure of this kind, in place of :attr:`num_retries`."""

    by_group: Mapping[str, Mapping[FailureKind, int]] = field(default_factory=dict)
    """In place of :attr:`by_kind` as a whole, for the groups in it."""

    retry_after_s: float = 0.0
    """The shortest wait before a deployment is tried again."""

    backoff_base_s: float = 0.2
    """The longest first wait (any part of it, at random); each further one is twice that."""

    backoff_cap_s: float = 2.0
    """The longest wait, unless a deployment asks for more itself."""

    deadline_s: float = 60.0
    """How long after the first attempt another may begin. By then a client with the
    usual settings of an AWS SDK has given up."""

    budget_ratio: float = 0.2
    """Attempts beside the first, as a part of all requests. See Note [The budget]."""

    hedge: bool = False
    """Whether a slow request is sent to a second deployment beside the first."""

    repeatable: frozenset[str] = frozenset()
    """Further operations that may be repeated, as :func:`may_repeat` takes them."""

    def limit(self, group: str, kind: FailureKind) -> int | None:
        """How many retries the configuration grants this kind; None: it does not say."""
        return self.by_group.get(group, self.by_kind).get(kind)


# Note [The budget]
# -----------------
# Retries help when the next attempt is likely to go better. When everything fails they
# only multiply the load on whatever tries to get up again. So what an attempt is for
# decides whether it is counted:
#
#   - One that goes to a deployment that does well is free. When one deployment of two
#     dies, half of the requests need it, all those that were under way at once, and it
#     takes no load from anybody but the sick one. Whether a deployment does well is
#     judged here by the last 16 attempts that came to an end: at most three failed, and
#     not the last two. A cool-down may be switched off; this is not.
#   - Everything else takes a token: back to the same deployment after a wait, or to one
#     that fails as well.
#   - A free one that fails is charged when it does. So what was learned too late, when
#     everything died at once, is paid back before anything else is granted.
#
# Each request brings a part of a token. What may be saved up is what the last 2.5 seconds
# brought, so that hours of good weather do not pay for a storm; and as that may be spent
# at the beginning of an outage, a request brings less than the ratio: 0.15 for 0.2. In any
# ten seconds of even traffic, and in those of an outage above all, retries are then at
# most the ratio of the requests.
#
# One request a minute would never earn a retry. So three in ten seconds are granted
# whatever the tokens are, and are owed. That is more than 20 % only below 1.5 requests a
# second.
#
# Each model group has a budget of its own: a group that is down does not use up what
# another one needs for its hiccups.

_SAVED_S = 2.5
_REMEMBERED = 16
_ALL = (1 << _REMEMBERED) - 1
_MOST_FAILED = 3
_MOST_TARGETS = 4096


class RetryBudget:
    """
    How many retries there may be.

    :param ratio: of retries to requests.
    :param window_s: over how long the ratio holds.
    :param floor: how many are granted in that time at least.
    """

    def __init__(self, ratio: float = 0.2, window_s: float = 10.0, floor: int = 3) -> None:
        # The estimate of the requests in _SAVED_S is at times too high: hence 1.3.
        self._share = ratio * window_s / (window_s + 1.3 * _SAVED_S)
        self._window_s = window_s
        self._tokens = 0.0
        self._recent = 0.0  # requests, those of _SAVED_S ago counted as 1/e
        self._last = -math.inf
        self._granted: deque[float] = deque(maxlen=floor)
        self._floor = floor

    @property
    def tokens(self) -> float:
        """How many retries could be granted now; less than none if some are owed."""
        return self._tokens

    def request(self, now: float) -> None:
        """A request makes its first attempt."""
        elapsed = now - self._last
        if elapsed > 0:
            self._last = now
            if elapsed > self._window_s:
                self._tokens = 0.0  # what was owed by then helps nobody any more
            self._recent *= math.exp(-elapsed / _SAVED_S)
        self._recent += 1
        most = self._recent * self._share
        if most < 1:
            most = 1.0
        tokens = self._tokens + self._share
        self._tokens = tokens if tokens < most else most

    def take(self, now: float) -> bool:
        """:returns: whether there may be one more retry."""
        if self._tokens < 1 and not self._below_floor(now):
            return False
        self.charge(now)
        return True

    def charge(self, now: float) -> None:
        """A retry that nobody was asked for was in vain."""
        self._tokens -= 1
        self._granted.append(now)

    def _below_floor(self, now: float) -> bool:
        granted = self._granted
        if len(granted) < self._floor:
            return True
        return bool(granted) and now - granted[0] > self._window_s


class _Records:
    """
    How the last attempts at each deployment went. Only those that failed lately are
    in it: it is empty when all is well.
    """

    def __init__(self, forget_s: float = 10.0) -> None:
        self._forget_s = forget_s
        self._records: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._records)

    def add(self, target: str, failed: bool, now: float) -> None:
        record = self._records.get(target)
        if record is None:
            if not failed:
                return
            bits = 0
        else:
            bits, last = record
            if now - last > self._forget_s:
                bits = 0
        bits = (bits << 1 | failed) & _ALL
        if not bits:
            self._records.pop(target, None)
            return
        self._records[target] = bits, now
        self._records.move_to_end(target)
        if len(self._records) > _MOST_TARGETS:
            self._records.popitem(last=False)

    def healthy(self, target: str, now: float) -> bool:
        record = self._records.get(target)
        if record is None:
            return True
        bits, last = record
        in_a_row = bits & 0b11 == 0b11
        return (bits.bit_count() <= _MOST_FAILED and not in_a_row) or now - last > self._forget_s


Action: TypeAlias = Literal["retry", "fallback", "give_up"]


class Decision(NamedTuple):
    """What to do after an attempt that failed."""

    action: Action
    """``retry``: another attempt in the same model group. ``fallback``: in the next one,
    if there is one (:class:`~txbedrock.core.fallbacks.Fallbacks`) and
    :meth:`Attempts.enter` lets it. ``give_up``: the client has the failure."""

    delay_s: float = 0.0
    """To be waited first."""

    reason: str = ""
    """Why it is not tried again here, for logs and metrics: ``client`` (it would fail
    anywhere), ``unsafe`` (not to be repeated), ``limit`` (num_retries and the like),
    ``budget``, ``deadline``, ``nowhere`` (no deployment is left)."""


_ELSEWHERE = frozenset({FailureKind.CONTEXT_WINDOW, FailureKind.CONTENT_POLICY})
"""The model has answered, and this model will answer the same again."""


class Retries:
    """
    Repeats requests, with what all of them share.

    :param rng: a number from 0 to 1 at random.
    """

    def __init__(self, settings: RetrySettings, rng: Callable[[], float]) -> None:
        self.settings = settings
        self.rng = rng
        self.records = _Records()
        self._budgets: dict[str, RetryBudget] = {}
        self._repeats: dict[tuple[str, str, bytes], tuple[bool, bool]] = {}

    def begin(self, match: Match, method: bytes, group: str, now: float) -> Attempts:
        """
        A request that is to be carried.

        :param group: the model group; empty for ids of Bedrock's own and for requests
            without a model. One of the configuration's, for each has a budget.
        """
        operation = match.operation
        key = (operation.service, operation.name, method)
        known = self._repeats.get(key)
        if known is None:
            settings, path = self.settings, match.raw_path
            safe = may_repeat(operation, method, raw_path=path)
            known = (
                safe or may_repeat(operation, method, settings.repeatable, raw_path=path),
                settings.hedge and safe and not operation.streams,
            )
            # Where every method is taken, it is a matter of the path, too.
            if operation.method != "*":
                self._repeats[key] = known
        return Attempts(self, self.budget(group), group, now, *known)

    def budget(self, group: str) -> RetryBudget:
        """That of a model group."""
        budget = self._budgets.get(group)
        if budget is None:
            budget = self._budgets[group] = RetryBudget(self.settings.budget_ratio)
        return budget


_NOBODY: frozenset[str] = frozenset()


class Attempts(msgspec.Struct, eq=False):
    """
    The attempts of one request. Deployments are told by any text of the caller's,
    usually their id.

    After each attempt that came to an end call :meth:`succeeded`, :meth:`failed` or
    :meth:`after_failure`; none of them when the client has left, as that says nothing
    of anybody.
    """

    _retries: Retries
    _budget: RetryBudget
    _group: str
    _began: float
    _repeatable: bool
    hedgeable: bool
    """Whether a second attempt may be made beside the first."""

    tried: dict[str, int] = {}
    """How often each deployment was tried."""

    _retried: int = 0  # in this group
    _waited: int = 0
    _next_is_free: bool = False
    _free: frozenset[str] = _NOBODY

    def may_try(self, target: str, max_retries: int | None) -> bool:
        """Whether a deployment's own limit lets it be tried (again) by this request."""
        return max_retries is None or self.tried.get(target, 0) <= max_retries

    def started(self, target: str, now: float) -> None:
        """An attempt begins."""
        if not self.tried:
            self._began = now
            self._budget.request(now)
        self.tried[target] = self.tried.get(target, 0) + 1
        if self._next_is_free:
            self._free |= {target}
            self._next_is_free = False

    def succeeded(self, target: str, now: float) -> None:
        """An answer has come that goes to the client."""
        self._retries.records.add(target, False, now)
        if self._free:
            self._free -= {target}

    def failed(self, target: str, kind: FailureKind, now: float) -> None:
        """An attempt has failed, and nothing follows from it: another is under way."""
        self._retries.records.add(target, not kind.clients, now)
        if target in self._free:
            self._free -= {target}
            if not kind.clients:
                self._budget.charge(now)

    def after_failure(
        self,
        target: str,
        kind: FailureKind,
        *,
        now: float,
        others: Collection[str] = (),
        again: bool = True,
        retry_after_s: float | None = None,
    ) -> Decision:
        """
        An attempt has failed, before anything of it went to the client: what now?

        :param others: the deployments of the group that were not tried yet and are
            not cooled down. The next attempt is for one of them, at once.
        :param again: whether there is any that may be tried when none of those is left:
            this one or another that was tried, or one that is cooled down. It is done
            after a wait.
        :param retry_after_s: how long the deployment asks to be left alone, if it says so.
        """
        self.failed(target, kind, now)
        if kind is FailureKind.CLIENT:
            return Decision("give_up", reason="client")
        if not self._repeatable and kind is not FailureKind.CONNECT:
            return Decision("give_up", reason="unsafe")
        decision = self._here(kind, now, others, again, retry_after_s)
        if decision.action == "retry":
            self._retried += 1
        elif now >= self._until:
            return Decision("give_up", reason="deadline")
        return decision

    def _here(
        self,
        kind: FailureKind,
        now: float,
        others: Collection[str],
        again: bool,
        retry_after_s: float | None,
    ) -> Decision:
        """Another attempt in the same group, or none."""
        settings = self._retries.settings
        said = settings.limit(self._group, kind)
        usual = 0 if kind in _ELSEWHERE else settings.num_retries
        if self._retried >= (usual if said is None else said):
            return Decision("fallback", reason="limit")
        if now >= self._until:
            return Decision("fallback", reason="deadline")
        if others:
            if self._grant(others, now):
                return Decision("retry")
            return Decision("fallback", reason="budget")
        if not again or (kind.configured and said is None):
            return Decision("fallback", reason="nowhere")
        delay_s = max(retry_after_s or 0.0, settings.retry_after_s) + self._backoff()
        if now + delay_s > self._until:
            return Decision("fallback", reason="deadline")
        if not self._budget.take(now):
            return Decision("fallback", reason="budget")
        self._waited += 1
        return Decision("retry", delay_s)

    def enter(self, group: str, targets: Iterable[str], now: float) -> bool:
        """
        Go on in another model group, whose limits hold from now on.

        :param targets: its deployments that are not cooled down.
        :returns: whether an attempt may be made there; if not, the client has the
            failure. It always may when none has been made before.
        """
        if self.tried and (now >= self._until or not self._grant(targets, now)):
            return False
        self._group = group
        self._retried = 0
        return True

    def hedge_after(self, p95_s: float | None, others: Collection[str]) -> float | None:
        """
        When to start a second attempt beside the first.

        :param p95_s: in this time the deployment answers 95 of 100 requests; None: not
            known.
        :returns: seconds after the start of the first; None: never.
        """
        if not self.hedgeable or p95_s is None or not others or sum(self.tried.values()) != 1:
            return None
        return p95_s

    def hedge(self, others: Iterable[str], now: float) -> bool:
        """
        :param others: as for :meth:`after_failure`.
        :returns: whether the second attempt may be started now. It is extra load in any
            case, and so always counted.
        """
        healthy = self._retries.records.healthy
        return (
            now < self._until
            and any(healthy(one, now) for one in others)
            and self._budget.take(now)
        )

    @property
    def _until(self) -> float:
        return self._began + self._retries.settings.deadline_s

    def _grant(self, targets: Iterable[str], now: float) -> bool:
        healthy = self._retries.records.healthy
        self._next_is_free = any(healthy(one, now) for one in targets)
        return self._next_is_free or self._budget.take(now)

    def _backoff(self) -> float:
        """Any part of a time that doubles (full jitter)."""
        settings = self._retries.settings
        most = min(settings.backoff_cap_s, settings.backoff_base_s * 2 ** min(self._waited, 30))
        return self._retries.rng() * most
