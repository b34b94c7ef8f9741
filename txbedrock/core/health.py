"""
How a deployment is: what became of attempts, whether it is in rotation, how long it takes.

:func:`classify` tells failures apart by what AWS calls them, :class:`Circuit` takes a
deployment out and lets it in again, :class:`Pace` knows how long it takes to answer.
Pure: the time is an argument, in seconds of any clock that does not go back, and so are
random numbers.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import Enum
from types import MappingProxyType

from .headers import HeaderList, header

__all__ = [
    "FADE_S",
    "IN_ROTATION",
    "Circuit",
    "CircuitState",
    "FailureKind",
    "HealthSettings",
    "Pace",
    "classify",
    "retry_after_s",
]

# Note [When a circuit opens]
# ---------------------------
# Throttling and "model not ready" open it at once: the next request would fare no
# better. Other failures have to be more than allowed_fails within a minute, and at least
# half of the attempts that were made meanwhile; so one failure in a thousand never adds
# up to an outage, however busy the deployment is, and four in a row always do. An
# allowed_fails_policy says how many are allowed of one kind.
#
# Denied access and bad credentials are a fault of the configuration, and open it at once
# in a deployment that has never answered. In one that has, they are counted like the
# others: a client may be denied what is its own (an object in S3, a guardrail), and must
# not be able to take a deployment from everybody.
#
# What is the client's fault is never counted.
#
# Note [Cooling down, and back]
# -----------------------------
# It cools for as long as AWS asked, else for cooldown_time; twice as long each time it
# opens again soon, up to max_cooldown_s, and up to a fifth longer at random, so that
# gateways do not come back together. Then one request goes as a probe. When it is
# answered the circuit is closed; when it fails it cools again. A probe that says nothing
# (the client left, or was at fault) is followed by another. One that takes longer than
# the cooldown does not hold up the next: what hangs is probed again.
#
# For as long as it had cooled, a closed circuit is on probation: one failure opens it.
#
# An attempt that was begun while the circuit was open, because nothing better was there,
# closes it by succeeding like a probe, but does not prolong it by failing.
#
# Note [Expected time]
# --------------------
# How long requests waited for their first byte is remembered together with behind how
# many others they had begun to wait. What is expected of the next one is in proportion
# to how many are waiting now, with _FREE_PLACES added on both sides: one or two more or
# less mean nothing, many mean a queue. So a deployment that answers many at once is not
# taken for a slow one, and one that begins to queue is seen to before the first of the
# queue is answered.
#
# What was waited for in vain counts as time without an answer; it makes the mean of the
# others longer, as it should be for times that were cut off.
#
# The mean is sensitive to peaks: who waits more than _PEAK times as long as the mean
# counts as a fifth of all that is known, 1 / (1 + _PEAK_KEEP). And those that wait now
# count as soon as they wait longer than the mean, the more the longer nobody was
# answered: what hangs is avoided long before it times out.
#
# The 95th percentile is where a step up for each that takes longer and a step down, one
# nineteenth as far, for each that does not are in balance. It begins at the longest of
# the first _SURE.


class FailureKind(Enum):
    """Why an attempt failed."""

    THROTTLED = "throttled"
    """A quota of the account's, for this model, is used up for now."""

    UNAVAILABLE = "unavailable"
    """AWS says it is AWS's fault: 5xx, or the model failed."""

    TIMEOUT = "timeout"
    """No answer in time."""

    NOT_READY = "not_ready"
    """The model is being loaded."""

    DENIED = "denied"
    """The account may not use the model, or there is none: the configuration is wrong."""

    BAD_CREDENTIALS = "bad_credentials"
    """AWS does not know them, or they have expired."""

    CLIENT = "client"
    """The request was wrong. No other deployment would like it better."""

    CONTEXT_WINDOW = "context_window"
    """The request is longer than the model can take."""

    CONTENT_POLICY = "content_policy"
    """The model's vendor does not allow what was asked for, or the answer."""

    CONNECT = "connect"
    """No connection: refused, no address, TLS."""

    BROKE = "broke"
    """The answer broke off."""

    @property
    def clients(self) -> bool:
        """Whether it is the client's fault, and says nothing of the deployment."""
        return self in _CLIENTS

    @property
    def configured(self) -> bool:
        """Whether it stays until an operator acts."""
        return self in _CONFIGURED


_CLIENTS = frozenset((FailureKind.CLIENT, FailureKind.CONTEXT_WINDOW, FailureKind.CONTENT_POLICY))
_CONFIGURED = frozenset((FailureKind.DENIED, FailureKind.BAD_CREDENTIALS))
_AT_ONCE = frozenset((FailureKind.THROTTLED, FailureKind.NOT_READY))

_BY_NAME: dict[str, FailureKind] = {
    name: kind
    for kind, names in {
        FailureKind.THROTTLED: (
            "Throttling",
            "ThrottlingException",
            "ThrottledException",
            "TooManyRequestsException",
            "RequestThrottledException",
            "RequestLimitExceeded",
            "ServiceQuotaExceededException",
            "SlowDown",
            "rate_limit_error",
            "rate_limit_exceeded",
            "insufficient_quota",
        ),
        FailureKind.UNAVAILABLE: (
            "ServiceUnavailable",
            "ServiceUnavailableException",
            "InternalServerException",
            "InternalServerError",
            "InternalFailure",
            "ServiceException",
            "BadGatewayException",
            "DependencyFailedException",
            "ModelErrorException",
            "api_error",
            "server_error",
            "overloaded_error",
        ),
        FailureKind.TIMEOUT: (
            "ModelTimeoutException",
            "RequestTimeout",
            "RequestTimeoutException",
            "timeout_error",
        ),
        FailureKind.NOT_READY: ("ModelNotReadyException",),
        FailureKind.DENIED: (
            "AccessDenied",
            "AccessDeniedException",
            "ResourceNotFoundException",
            "SubscriptionRequiredException",
            "OptInRequired",
            "permission_error",
            "not_found_error",
            "model_not_found",
        ),
        FailureKind.BAD_CREDENTIALS: (
            "UnrecognizedClientException",
            "InvalidClientTokenId",
            "InvalidAccessKeyId",
            "InvalidSignatureException",
            "SignatureDoesNotMatch",
            "IncompleteSignature",
            "IncompleteSignatureException",
            "MissingAuthenticationToken",
            "MissingAuthenticationTokenException",
            "ExpiredToken",
            "ExpiredTokenException",
            "RequestExpired",
            "RequestTimeTooSkewed",
            "UnauthorizedException",
            "authentication_error",
            "invalid_api_key",
        ),
        FailureKind.BROKE: ("ModelStreamErrorException",),
        FailureKind.CLIENT: (
            "ValidationException",
            "ConflictException",
            "UnknownOperationException",
            "SerializationException",
            "RequestEntityTooLargeException",
            "invalid_request_error",
            "request_too_large",
        ),
        FailureKind.CONTEXT_WINDOW: ("context_length_exceeded",),
        FailureKind.CONTENT_POLICY: ("content_filter", "content_policy_violation"),
    }.items()
    for name in names
}

_BY_STATUS = {
    401: FailureKind.BAD_CREDENTIALS,
    403: FailureKind.DENIED,
    404: FailureKind.DENIED,
    408: FailureKind.TIMEOUT,
    424: FailureKind.UNAVAILABLE,
    429: FailureKind.THROTTLED,
    504: FailureKind.TIMEOUT,
}

# What AWS and the models' vendors say in a ValidationException, in lower case.
_TOO_LONG = (
    "input is too long",
    "prompt is too long",
    "too many input tokens",
    "input length and `max_tokens` exceed context limit",
    "input length and max_tokens exceed context limit",
    "maximum context length",
    "context window",
    "context length",
    "exceeds the maximum number of tokens",
    "expected maxlength",
    "too many total text bytes",
)
_NOT_ALLOWED = (
    "content filter",
    "content filtering",
    "content policy",
    "responsible ai",
    "acceptable use policy",
    "blocked by our",
    "safety system",
)
_NO_SUCH_MODEL = (
    "model identifier is invalid",
    "provided model doesn't support on-demand throughput",
    "provided model doesn\u2019t support on-demand throughput",
    "with on-demand throughput isn",
    "reached the end of its life",
    "end of life",
    "marked by provider as legacy",
    "operation not allowed",
    "model access is denied",
)
_CREDENTIALS = ("api key", "bearer token", "security token", "authentication failed")

# What a client names in a request besides the model.
_CLIENTS_OWN = ("guardrail", "s3:")


def classify(
    status: int, error_type: str, message: str = "", *, takes_model: bool = True
) -> FailureKind | None:
    """
    What kind of failure an answer of AWS's is.

    :param status: of HTTP; that of the answer, if the failure came as a frame in it.
    :param error_type: ``x-amzn-errortype``, ``__type`` or a frame's ``:exception-type``, as
        it was sent; the type of an error in OpenAI's or Anthropic's shape. Empty: none.
    :param message: what the answer says of it; it tells validation errors apart.
    :param takes_model: whether the request names a model. If not, what is not found or
        not allowed is the client's own.
    :returns: None: none.
    """
    name = error_type.partition(":")[0].rpartition("#")[2].strip()
    kind = _BY_NAME.get(name)
    if kind is None and name[:1].islower():
        kind = _BY_NAME.get(name[0].upper() + name[1:])  # as in an event stream
    if kind is None:
        if status < 400:
            return FailureKind.BROKE if name else None
        kind = _BY_STATUS.get(status)
    if kind is None:
        kind = FailureKind.UNAVAILABLE if status >= 500 else FailureKind.CLIENT
    if kind is FailureKind.CLIENT:
        return _clients_fault(message.lower(), takes_model)
    if kind is FailureKind.DENIED:
        return _denied(name, message.lower(), takes_model)
    if name == "ModelErrorException" and "client error (4" in message.lower():
        return FailureKind.CLIENT
    return kind


def _clients_fault(message: str, takes_model: bool) -> FailureKind:
    if any(part in message for part in _TOO_LONG):
        return FailureKind.CONTEXT_WINDOW
    if any(part in message for part in _NOT_ALLOWED):
        return FailureKind.CONTENT_POLICY
    if takes_model and any(part in message for part in _NO_SUCH_MODEL):
        return FailureKind.DENIED
    return FailureKind.CLIENT


def _denied(name: str, message: str, takes_model: bool) -> FailureKind:
    if any(part in message for part in _CREDENTIALS):
        return FailureKind.BAD_CREDENTIALS
    if not takes_model or any(part in message for part in _CLIENTS_OWN):
        return FailureKind.CLIENT
    return FailureKind.DENIED


_LONGEST_WAIT_S = 3600.0


def retry_after_s(headers: HeaderList, now: float) -> float | None:
    """
    How long AWS wants us to wait: ``x-amz-retry-after`` in milliseconds or
    ``Retry-After`` in seconds or as a date, the longer one.

    :param now: POSIX seconds, for the date.
    :returns: seconds, at least 0 and at most an hour; None: it does not say.
    """
    waits = []
    exact = header(headers, b"x-amz-retry-after")
    if exact is not None:
        waits.append(_number(exact) / 1000)
    told = header(headers, b"retry-after")
    if told is not None:
        seconds = _number(told)
        waits.append(_date(told) - now if math.isnan(seconds) else seconds)
    waits = [one for one in waits if not math.isnan(one)]
    return min(max(*waits, 0.0), _LONGEST_WAIT_S) if waits else None


def _number(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _date(text: bytes) -> float:
    try:
        return parsedate_to_datetime(text.decode("ascii")).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSettings:
    """When a deployment is taken out, and for how long. LiteLLM's names in brackets."""

    allowed_fails: int = 3
    """So many failures a minute are tolerated (``allowed_fails``)."""

    allowed_fails_policy: Mapping[FailureKind, int] = field(
        default_factory=lambda: MappingProxyType({}), hash=False
    )
    """The same for one kind of failure (``allowed_fails_policy``)."""

    failed_share: float = 0.5
    """Nor are more, if they are less than this share of the attempts made meanwhile;
    0: they are, as in LiteLLM."""

    cooldown_s: float = 5.0
    """How long a deployment is out at first (``cooldown_time``)."""

    max_cooldown_s: float = 60.0
    """And at most, unless AWS asks for more, or ``cooldown_s`` is longer."""

    disable_cooldowns: bool = False
    """Never take one out (``disable_cooldowns``)."""


class CircuitState(Enum):
    CLOSED = "closed"
    """In rotation."""

    OPEN = "open"
    """Out, until it has cooled down."""

    HALF_OPEN = "half_open"
    """Out, and a probe is under way."""


_MINUTE_S = 60.0
_JITTER = 0.2
IN_ROTATION = -math.inf


class Circuit:
    """
    Whether one deployment is in rotation for one model.

    See Note [When a circuit opens] and Note [Cooling down, and back].
    """

    __slots__ = (
        "_answered",
        "_attempts",
        "_closed_at",
        "_cooldown_s",
        "_failures",
        "_outage",
        "_probe",
        "_rng",
        "_settings",
        "_streak",
        "since",
        "until",
        "why",
    )

    def __init__(self, settings: HealthSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._failures: deque[tuple[float, int]] = deque()
        """When, and the how-manieth attempt it was."""

        self._attempts = 0
        self._outage = 0
        self._answered = False
        self._probe: object = None
        self._streak = 0
        self._cooldown_s = 0.0
        self._closed_at = -math.inf
        self.until = IN_ROTATION
        """No request before that time, but for lack of a better one. When it has come,
        one request, the probe. Minus infinity: the circuit is closed."""

        self.since = -math.inf
        """Since when :attr:`state` is what it is, but for probes."""

        self.why: FailureKind | None = None
        """What opened it."""

    @property
    def state(self) -> CircuitState:
        if self.until == IN_ROTATION:
            return CircuitState.CLOSED
        return CircuitState.OPEN if self._probe is None else CircuitState.HALF_OPEN

    def begin(self, attempt: object, now: float) -> int:
        """
        An attempt is made.

        :param attempt: anything that is its own.
        :returns: the outage that it ends if it succeeds; 0: there is none.
        """
        if self.until == IN_ROTATION:
            return 0
        if now >= self.until:
            self._probe = attempt
            self.until = now + self._cooldown_s
        return self._outage

    def answered(self, trial: int, now: float) -> None:
        """The head of a good answer is there."""
        self._attempts += 1
        self._answered = True
        if self.until == IN_ROTATION:
            return
        if trial == self._outage and self.why is not FailureKind.BROKE:
            self._close(now)

    def completed(self, trial: int, now: float) -> None:
        """And all of it."""
        if trial == self._outage:
            self._close(now)

    def inconclusive(self, attempt: object, now: float) -> None:
        """It was answered, but not so that it would say anything: another may probe."""
        if attempt is self._probe:
            self._probe = None
            self.until = now

    def abandoned(self, attempt: object) -> None:
        """Its client left. It may have hung: another probes, but not at once."""
        if attempt is self._probe:
            self._probe = None

    def failed(
        self,
        attempt: object,
        kind: FailureKind,
        now: float,
        told_s: float | None = None,
        answered: bool = False,
    ) -> None:
        """
        An attempt failed, by no fault of the client's.

        :param told_s: how long AWS asked us to wait.
        :param answered: whether the head of a good answer had been there.
        """
        self._attempts += not answered
        if self._settings.disable_cooldowns:
            return
        if self.until != IN_ROTATION:
            if attempt is self._probe:
                self._open(kind, now, told_s)
            elif told_s is not None:
                self.until = max(self.until, now + told_s)
            return
        self._failures.append((now, self._attempts))
        if self._intolerable(kind, now):
            self._open(kind, now, told_s)

    def _intolerable(self, kind: FailureKind, now: float) -> bool:
        settings, failures = self._settings, self._failures
        while failures[0][0] < now - _MINUTE_S:
            failures.popleft()
        allowed = settings.allowed_fails_policy.get(kind)
        if allowed is None:
            if kind in _AT_ONCE or (kind in _CONFIGURED and not self._answered):
                return True
            if now - self._closed_at < self._cooldown_s:
                return True
            allowed = settings.allowed_fails
        if len(failures) <= allowed:
            return False
        attempts = self._attempts - failures[-allowed - 1][1] + 1
        return allowed + 1 >= settings.failed_share * attempts

    def _close(self, now: float) -> None:
        if self.until != IN_ROTATION:
            self.until = IN_ROTATION
            self.since = self._closed_at = now
            self.why = self._probe = None
            self._failures.clear()

    def _open(self, kind: FailureKind, now: float, told_s: float | None) -> None:
        settings = self._settings
        again = self._probe is not None or now - self._closed_at < self._cooldown_s
        self._streak = self._streak + 1 if again else 0
        base = told_s or settings.cooldown_s
        most = max(base, settings.max_cooldown_s)
        # Not 2**streak at once: that may be more than a float can hold.
        grown = min(base * 2.0 ** min(self._streak, 30), most)
        self._cooldown_s = grown * (1 + _JITTER * self._rng.random())
        if self.until == IN_ROTATION:
            self.since = now
            self._outage += 1
        self.until = now + self._cooldown_s
        self.why = kind
        self._probe = None
        self._failures.clear()


FADE_S = 5.0
"""The time constant with which what is known fades."""

_OVERDUE_S = 1.0
"""The same for how sure it is that who still waits is not just unlucky."""

_NOTHING = 1e-3
_FREE_PLACES = 4
_PEAK = 2.0
_PEAK_KEEP = 4.0
_SAMPLES = 10
_SURE = 20
_UP = 1.1
_DOWN = _UP ** (-1 / 19)


class Pace:
    """
    How long one operation takes at one deployment until the first byte, of late.

    See Note [Expected time].
    """

    __slots__ = (
        "_p95_s",
        "_places",
        "_recent",
        "_samples",
        "count",
        "heard",
        "pending",
        "starts",
        "sum",
    )

    def __init__(self, now: float) -> None:
        self._p95_s = 0.0
        self._samples = 0
        self.sum = 0.0
        """Seconds that were waited; fades."""

        self.count = 0.0
        """How many were answered; fades."""

        self._places = 0.0
        self.heard = now
        """When somebody last stopped waiting."""

        self.pending = 0
        """How many wait now."""

        self.starts = 0.0
        """The sum of when they began to."""

        self._recent: deque[float] = deque(maxlen=_SAMPLES)

    def begin(self, now: float) -> None:
        """Somebody waits."""
        self.pending += 1
        self.starts += now

    def end(self, started: float) -> None:
        """Who began then does not wait any more."""
        self.pending -= 1
        # Rounding errors end with each pause.
        self.starts = self.starts - started if self.pending else 0.0

    def took(self, seconds: float, place: int, answered: bool, now: float) -> None:
        """
        Somebody has waited.

        :param seconds: at least 0.
        :param place: behind how many others of the deployment.
        :param answered: if not, it would have been longer; nobody knows how much.
        """
        passed = now - self.heard
        self.heard = now
        keep = math.exp(-passed / FADE_S) if passed > 0 else 1.0
        known = self.count * keep
        if known * passed > FADE_S:
            # As sparse as this, no more can be known.
            keep = FADE_S / passed / self.count
            known = self.count * keep
        if known > _PEAK_KEEP and seconds * self.count > _PEAK * self.sum:
            keep *= _PEAK_KEEP / known
        self.sum = self.sum * keep + seconds
        self.count *= keep
        self._places *= keep
        if self.count < _NOTHING:
            self.count = self._places = 0.0
        if answered:
            self.count += 1
            self._places += place + _FREE_PLACES
            self._recent.append(seconds)
            self._samples += 1
            if seconds > self._p95_s:
                self._p95_s = seconds if self._samples < _SURE else self._p95_s * _UP
            elif self._samples > _SURE:
                self._p95_s *= _DOWN

    @property
    def p95_s(self) -> float | None:
        """In this time 95 of 100 are answered; None: too few were to say."""
        return None if self._samples < _SURE else self._p95_s

    def note(self, seconds: float) -> None:
        """For :attr:`last_ten_s` only."""
        self._recent.append(seconds)

    @property
    def last_ten_s(self) -> float:
        """Mean of the last ten; 0: there are none."""
        recent = self._recent
        return sum(recent) / len(recent) if recent else 0.0

    def expected(self, place: int, now: float) -> float:
        """
        How long a request will wait that begins now.

        :param place: behind how many others of the deployment.
        :returns: seconds.
        """
        count = self.count
        if not count:
            # Nothing is known: a second each, and what they have waited already.
            return self.sum + self.pending * (now + 1) - self.starts
        expected = self.sum / self._places * (place + _FREE_PLACES)
        overdue = self.pending * (now - self.sum / count) - self.starts
        if overdue > 0:
            passed = max(now - self.heard, 0.0)
            expected += overdue / (count * math.exp(-passed / _OVERDUE_S) + 1)
        return expected
