"""
Room for requests: windows of a minute, counters and budgets, taken before and
settled after.

Pure state: the time is an argument, in POSIX seconds. Who waits, and where what has
been spent is kept, is :mod:`txbedrock.limits`'.
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict, deque
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeAlias

import msgspec

from ..errors import Fault, ProxyError
from .budgets import iso_time, period_at
from .grants import NO_LIMITS, Level, LevelKind, Limits, ModelLimits
from .headers import HeaderList
from .money import picousd_as_usd

__all__ = [
    "LATEST",
    "BudgetExceeded",
    "BudgetUnpriced",
    "Hold",
    "Load",
    "Need",
    "Purse",
    "RateLimited",
    "Room",
    "Rooms",
    "Taken",
    "Tokens",
    "Wait",
    "Window",
    "still_reserved",
]

# Note [Any sixty seconds]
# ------------------------
# A window counts by the second and forgets a second when all of it is a minute ago.
# So what it allows never exceeds a limit in any sixty seconds, be they cut as they
# may; something counts for 60 to 61 s. It is at most 61 numbers, and when there will
# be room again is known exactly.
#
# A request counts for rpm when it is let in. Its tokens are reserved then, and count
# for tpm from the moment when they are known, as often as they were used.
#
# Note [A budget is a cap]
# ------------------------
# What is spent, and what the requests in flight may still cost at worst, together
# never exceed a budget. All levels of a request give, or none does.
#
# What other processes spent is seen when the purse is loaded again from the ledger.
# The ledger has this process's own as well, and what was settled while it was asked
# may be in its answer or not: it is added once more, as a doubt. A doubt is never
# spent and never a reason to refuse, only to wait until a later answer clears it.
#
# What was billed at an unknown price is kept at its worst case, as long as this
# process knows the purse: the ledger counts it as nothing.
#
# Note [Waiting]
# --------------
# A request that would fit if all others in flight turned out to cost nothing is not
# refused: it waits. The oldest that waits for a purse or a window is its barrier:
# whoever comes later waits behind it, or small requests would never let a large one in.

LATEST = sys.maxsize
"""The ticket of who has not waited yet: later than all others."""

_FREE = sys.maxsize
"""The barrier where nobody waits."""

_MINUTE_S = 60
_IN_FLIGHT_RETRY_S = 1.0

_KINDS: dict[LevelKind, str] = {"team_member": "team member", "end_user": "end user"}


class RateLimited(ProxyError):
    """
    A limit is reached, or all that is left is reserved. SDKs retry it.

    :param reason: ``rpm``, ``tpm``, ``parallel`` or ``reserved``: too long waited for.
    :param current: how much of it is used now, and reserved.
    :param retry_after_s: when there will be room again.
    """

    fault = Fault.POLICY
    status = 429
    code = "ThrottlingException"

    def __init__(
        self,
        message: str,
        level: Level,
        reason: str,
        current: int,
        limit: int,
        retry_after_s: float,
    ) -> None:
        retry_after_s = max(retry_after_s, 0.001)
        super().__init__(
            message,
            headers=(
                (b"Retry-After", b"%d" % math.ceil(retry_after_s)),
                (b"x-amz-retry-after", b"%d" % math.ceil(retry_after_s * 1000)),
            ),
        )
        self.kind = level.kind
        self.label = level.label
        self.reason = reason
        self.current = current
        self.limit = limit
        self.retry_after_s = retry_after_s


class BudgetExceeded(ProxyError):
    """
    A budget is spent, or has not enough left for the request. SDKs do not retry it.

    :param current: pico-USD spent in this period.
    :param limit: pico-USD that may be.
    :param resets_at: when it is renewed, in ISO 8601; None: never.
    """

    fault = Fault.POLICY
    status = 400
    code = "ServiceQuotaExceededException"
    reason = "budget"

    def __init__(
        self, message: str, level: Level, current: int, limit: int, resets_at: str | None
    ) -> None:
        super().__init__(message)
        self.kind = level.kind
        self.label = level.label
        self.current = current
        self.limit = limit
        self.resets_at = resets_at


class BudgetUnpriced(ProxyError):
    """Who has a budget asks for something of which no price is known. SDKs do not retry it."""

    fault = Fault.POLICY
    status = 400
    code = "ServiceQuotaExceededException"
    reason = "unpriced"


class Need(Protocol):
    """What a request asks for: a :class:`~txbedrock.core.demand.Demand`."""

    model: str
    """The model group's name."""

    model_id: str
    """Bedrock's id."""

    operation: str

    def tokens(self) -> int:
        """At most, now."""

    def picousd(self) -> int | None:
        """At most, now; 0: it is free; None: there is no price."""


class Window:
    """What was used in the last minute. See Note [Any sixty seconds]."""

    __slots__ = ("_seconds", "second", "used")

    def __init__(self) -> None:
        self.used = 0
        self.second = -1
        """For when :attr:`used` is right. Ask :meth:`expire` for another second first."""

        self._seconds: deque[list[int]] = deque()

    def expire(self, second: int) -> None:
        """
        Forget what is a minute ago.

        :param second: now, whole seconds.
        """
        seconds = self._seconds
        if second < self.second:
            # The clock was set back: what was used just now still is just now.
            for one in seconds:
                one[0] -= self.second - second
        self.second = second
        while seconds and seconds[0][0] < second - _MINUTE_S:
            self.used -= seconds.popleft()[1]

    def add(self, amount: int) -> None:
        """Count something as used in :attr:`second`."""
        seconds = self._seconds
        self.used += amount
        if seconds and seconds[-1][0] == self.second:
            seconds[-1][1] += amount
        else:
            seconds.append([self.second, amount])

    def take_back(self, second: int, amount: int) -> None:
        """What was counted in a second has not been used after all."""
        for one in self._seconds:
            if one[0] == second and one[1] >= amount:
                one[1] -= amount
                self.used -= amount
                return

    def room_in_s(self, now: float, used: int) -> float:
        """
        Seconds until no more than this much is used, if nothing is added.

        :param used: at least 0. To be called after :meth:`expire`.
        """
        rest, seconds = self.used, 0.0
        for second, amount in self._seconds:
            if rest <= used:
                break
            rest -= amount
            seconds = second + _MINUTE_S + 1 - now
        return seconds


class Tokens(Window):
    """Tokens of a minute, and those that requests in flight have reserved."""

    __slots__ = ("barrier", "reserved")

    def __init__(self) -> None:
        super().__init__()
        self.reserved = 0
        self.barrier = _FREE


class Purse:
    """What one level, or one model of it, spends in one period."""

    __slots__ = (
        "asked_s",
        "barrier",
        "before",
        "begin_us",
        "doubt",
        "duration",
        "end_s",
        "end_us",
        "head",
        "kept",
        "level",
        "limits",
        "loaded",
        "loading",
        "model",
        "pending",
        "reserved",
        "soft",
        "spent",
        "start_us",
        "warned",
    )

    def __init__(
        self, level: Level, model: str, limits: Limits | ModelLimits, now: float, before: bool
    ) -> None:
        self.level = level
        self.model = model
        """Empty: of all."""

        self.limits = limits
        self.duration = duration = limits.budget_duration
        self.start_us = start_us = level.limits.budget_start_us
        self.begin_us, self.end_us = period_at(duration, start_us, int(now * 1e6))
        self.end_s = math.inf if self.end_us is None else self.end_us / 1e6
        self.before = before
        """Whether the period before was known here: then this one may begin without
        being loaded if it has to."""

        self.spent = 0
        self.kept = 0
        """Billed at an unknown price, at worst."""

        self.doubt = 0
        """What may be in :attr:`spent` or not."""

        self.pending = 0
        """Settled since the load that is under way was begun."""

        self.reserved = 0
        self.barrier = _FREE
        self.loaded = False
        self.loading = False
        self.asked_s = -math.inf
        """When it was last loaded, or tried to be."""

        self.head: tuple[int, int, float] | None = None
        """What was spent before some time in the past, which hardly changes: until when
        (microseconds), pico-USD, and when it was asked."""

        self.soft = None if model else level.limits.soft_budget
        self.warned: int | None = None
        """The soft budget of which it was said that it is reached."""

    @property
    def total(self) -> int:
        """What is spent for certain."""
        return self.spent + self.kept

    def begin_load(self, now: float) -> None:
        """The ledger is asked now."""
        self.asked_s = now
        self.loading = True
        self.pending = 0

    def end_load(self, spent: int | None, now: float) -> None:
        """
        The ledger has answered.

        :param spent: None: it has not.
        """
        self.asked_s = now
        self.loading = False
        if spent is not None:
            self.spent = spent
            self.doubt = self.pending
            self.loaded = True
        elif self.before:
            self.loaded = True

    def reaches_soft(self) -> bool:
        """Is the soft budget reached, and has nobody been told? Says so once."""
        soft = self.soft
        if soft is None or soft == self.warned or self.spent + self.kept < soft:
            return False
        self.warned = soft
        return True


class Room:
    """What is used at one level, or of one model of it."""

    __slots__ = ("attempt", "models", "parallel", "purse", "requests", "tokens", "touched")

    def __init__(self) -> None:
        self.parallel = 0
        self.requests: Window | None = None
        self.tokens: Tokens | None = None
        self.purse: Purse | None = None
        self.models: dict[str, Room] | None = None
        self.touched = 0
        self.attempt = 0

    def of(self, model: str) -> Room:
        """That of one model."""
        if self.models is None:
            self.models = {}
        room = self.models.get(model)
        if room is None:
            room = self.models[model] = Room()
        return room

    def busy(self, lasting: bool) -> bool:
        """
        Is there anything that must not be forgotten?

        :param lasting: whether what was spent is kept here only.
        """
        tokens, purse = self.tokens, self.purse
        if self.parallel or (tokens is not None and tokens.reserved):
            return True
        if purse is not None:
            if purse.reserved or purse.loading or purse.barrier != _FREE:
                return True
            if lasting and purse.total:
                return True
        return any(one.busy(lasting) for one in (self.models or {}).values())


Hold: TypeAlias = tuple[
    Level,
    str,
    Limits | ModelLimits,
    Room | None,
    Window | None,
    Tokens | None,
    Purse | None,
]
"""
What of one room is held for a request, and for what limits of whom: the level, the
model (empty: of all), their limits; the room if those in flight are counted, the
window of its requests, that of its tokens, its purse. A plain tuple, because one or
more are made for each request.
"""


class Taken(msgspec.Struct, eq=False):
    """What is held for one request at all levels."""

    holds: list[Hold]
    tokens: int
    picousd: int
    second: int

    def headers(self, now: float, picousd: int) -> HeaderList:
        """
        What an answer says of the limits: those of the level with the least left,
        and the key's own.

        :param picousd: what the request cost, if it is known and not settled yet.
        """
        second = int(now)
        least: dict[tuple[bytes, bytes], tuple[float, int, int]] = {}
        own: HeaderList = []
        for level, model, limits, _, requests, tokens, purse in self.holds:
            key = level.kind == "key" and not model
            if requests is not None and limits.rpm is not None:
                if requests.second != second:
                    requests.expire(second)
                _keep_least(least, _REQUESTS_LEFT, limits.rpm, requests.used)
                if key:
                    own.append(_said(b"x-litellm-key-rpm-limit", limits.rpm))
            if tokens is not None and limits.tpm is not None:
                if tokens.second != second:
                    tokens.expire(second)
                _keep_least(least, _TOKENS_LEFT, limits.tpm, tokens.used + tokens.reserved)
                if key:
                    own.append(_said(b"x-litellm-key-tpm-limit", limits.tpm))
            if key and purse is not None:
                spent = picousd_as_usd(purse.spent + purse.kept + picousd)
                own.append((b"x-litellm-key-spend", spent.encode()))
                if limits.max_budget is not None:
                    own.append(_said_usd(b"x-litellm-key-max-budget", limits.max_budget))
        for (whole, rest), (_, limit, left) in least.items():
            own.append(_said(whole, limit))
            own.append((rest, b"%d" % left))
        return own


class Wait(NamedTuple):
    """There would be room if the requests in flight needed nothing."""

    on: Tokens | Purse
    level: Level
    model: str
    current: int
    """Tokens or pico-USD, used and reserved."""

    limit: int


class Load(NamedTuple):
    """It is not known what was spent."""

    purses: list[Purse]


class Rooms:
    """
    All levels that are in use, and what is used of them.

    :param max_levels: those that were not used for longest are forgotten when there
        are more, unless something is reserved.
    :param lasting: whether what was spent is kept here only, in no ledger.
    :param allow_unpriced: whether a budget lets in what has no price.
    :param stale_s: a purse that was loaded longer ago is loaded again before it gives.
    """

    def __init__(
        self,
        *,
        max_levels: int = 100_000,
        lasting: bool = False,
        allow_unpriced: bool = False,
        stale_s: float = 30.0,
    ) -> None:
        self._max_levels = max_levels
        self._lasting = lasting
        self._allow_unpriced = allow_unpriced
        self._stale_s = stale_s
        self._rooms: OrderedDict[tuple[str, str], Room] = OrderedDict()
        self._attempt = 0
        self.used: set[Purse] = set()
        """Purses that gave since somebody emptied this."""

        self.unloaded: list[Purse] = []
        """Purses with a soft budget only, for which nobody waits."""

        self.reached: list[Purse] = []
        """Purses whose soft budget is reached, and nobody was told."""

    def __len__(self) -> int:
        return len(self._rooms)

    def reserve(
        self, levels: Sequence[Level], need: Need, now: float, ticket: int = LATEST
    ) -> Taken | Wait | Load:
        """
        Take room for a request at all levels, or at none.

        :param now: POSIX seconds.
        :param ticket: of who has waited: who has a lower one goes first.
        :raises RateLimited: there will be room later.
        :raises BudgetExceeded: there will not, whatever becomes of the others in flight.
        :raises BudgetUnpriced: a level has a budget, and the request has no price.
        """
        second = int(now)
        tokens, picousd = -1, -1  # not asked for yet
        worst: int | None = 0
        holds: list[Hold] = []
        wait: Wait | None = None
        unloaded: list[Purse] = []
        for level, model, limits, room in self._rooms_of(levels, need, second):
            whole = level.limits
            parallel, requests, window, purse = None, None, None, None
            if limits.max_budget is not None or (not model and whole.soft_budget is not None):
                if picousd < 0:
                    worst = need.picousd()
                    picousd = 1 if worst is None else worst
                if worst is None and limits.max_budget is not None and not self._allow_unpriced:
                    raise _unpriced(level, model, need)
                if picousd:
                    purse = room.purse
                    if purse is None or purse.limits is not limits or now >= purse.end_s:
                        purse = self._purse(level, model, limits, room, now)
                    cap = limits.max_budget
                    stale = now - purse.asked_s > self._stale_s
                    if cap is None:
                        if stale:
                            self.unloaded.append(purse)
                    elif stale or not purse.loaded:
                        unloaded.append(purse)
                    else:
                        if not model and now * 1e6 < whole.budget_increase_until_us:
                            cap += whole.budget_increase
                        needed = purse.spent + purse.kept + picousd
                        if needed > cap:
                            raise _budget_exceeded(purse, picousd, cap)
                        needed += purse.doubt + purse.reserved
                        if (needed > cap or ticket > purse.barrier) and wait is None:
                            wait = Wait(purse, level, model, needed - picousd, cap)
            if not model and whole.max_parallel is not None:
                parallel = room
                if room.parallel >= whole.max_parallel:
                    raise _too_many_at_once(level, room.parallel, whole.max_parallel)
            if limits.rpm is not None:
                requests = room.requests
                if requests is None:
                    requests = room.requests = Window()
                if requests.second != second:
                    requests.expire(second)
                if requests.used >= limits.rpm:
                    raise _too_many_requests(level, model, requests, limits.rpm, now)
            if limits.tpm is not None:
                if tokens < 0:
                    tokens = need.tokens()
                window = room.tokens
                if window is None:
                    window = room.tokens = Tokens()
                if window.second != second:
                    window.expire(second)
                if tokens:
                    needed = window.used + tokens
                    if needed > limits.tpm:
                        raise _too_many_tokens(level, model, window, tokens, limits.tpm, now)
                    needed += window.reserved
                    if (needed > limits.tpm or ticket > window.barrier) and wait is None:
                        wait = Wait(window, level, model, needed - tokens, limits.tpm)
            holds.append((level, model, limits, parallel, requests, window, purse))
        if unloaded:
            return Load(unloaded)
        if wait is not None:
            return wait
        if tokens < 0:
            tokens = 0
        taken = Taken(holds, tokens, picousd if picousd > 0 else 0, second)
        for _, _, _, parallel, requests, window, purse in holds:
            if parallel is not None:
                parallel.parallel += 1
            if requests is not None:
                requests.add(1)
            if window is not None:
                window.reserved += tokens
            if purse is not None:
                purse.reserved += picousd
                self.used.add(purse)
        return taken

    def _rooms_of(
        self, levels: Sequence[Level], need: Need, second: int
    ) -> list[tuple[Level, str, Limits | ModelLimits, Room]]:
        """Where a request has to find room: at each level once, and for its model there."""
        self._attempt = attempt = self._attempt + 1
        rooms = self._rooms
        found: list[tuple[Level, str, Limits | ModelLimits, Room]] = []
        for level in levels:
            kind, name, _, limits = level
            if limits is NO_LIMITS:
                continue
            room = rooms.get((kind, name))
            if room is None:
                room = self._new_room(kind, name)
            if room.attempt == attempt:
                continue
            room.attempt = attempt
            if room.touched != second:
                room.touched = second
                rooms.move_to_end((kind, name))
            found.append((level, "", limits, room))
            if limits.models:
                for model in dict.fromkeys((need.model, need.model_id)):
                    of_model = limits.models.get(model)
                    if of_model is not None:
                        found.append((level, model, of_model, room.of(model)))
        return found

    def _purse(
        self, level: Level, model: str, limits: Limits | ModelLimits, room: Room, now: float
    ) -> Purse:
        """The purse of the present period, which other limits may have than before."""
        purse, before = room.purse, False
        if (
            purse is not None
            and purse.duration == limits.budget_duration
            and purse.start_us == level.limits.budget_start_us
        ):
            if now < purse.end_s:
                purse.level, purse.limits = level, limits
                purse.soft = None if model else level.limits.soft_budget
                return purse
            before = purse.loaded
        purse = room.purse = Purse(level, model, limits, now, before)
        if self._lasting:
            purse.loaded, purse.asked_s = True, math.inf
        return purse

    def settle(self, taken: Taken, tokens: int | None, picousd: int | None, now: float) -> None:
        """
        A request is over: what it took in place of what it reserved.

        :param tokens: None: it is not known; then as many as were reserved.
        :param picousd: the same.
        """
        reserved, worst = taken.tokens, taken.picousd
        for _, _, _, parallel, _, window, purse in taken.holds:
            if parallel is not None:
                parallel.parallel -= 1
            if window is not None:
                window.reserved -= reserved
                second = int(now)
                if window.second != second:
                    window.expire(second)
                used = reserved if tokens is None else tokens
                if used:
                    window.add(used)
            if purse is not None:
                purse.reserved -= worst
                if picousd is None:
                    purse.kept += worst
                else:
                    purse.spent += picousd
                    if purse.loading:
                        purse.pending += picousd
                if purse.soft is not None and purse.reaches_soft():
                    self.reached.append(purse)

    def release(self, taken: Taken) -> None:
        """A request was never sent: it took nothing, and counts for nothing."""
        for _, _, _, parallel, requests, window, purse in taken.holds:
            if parallel is not None:
                parallel.parallel -= 1
            if requests is not None:
                requests.take_back(taken.second, 1)
            if window is not None:
                window.reserved -= taken.tokens
            if purse is not None:
                purse.reserved -= taken.picousd

    def forget(self, unused_since: float, most: int = 1000) -> None:
        """
        Forget levels that were not used for long, unless something is reserved.

        :param unused_since: POSIX seconds.
        :param most: so many are looked at.
        """
        self._attempt += 1  # None is being looked at.
        for _ in range(min(most, len(self._rooms))):
            key, room = next(iter(self._rooms.items()))
            if room.touched >= unused_since:
                return
            self._forget_first(key, room, self._lasting)

    def _new_room(self, kind: str, name: str) -> Room:
        if len(self._rooms) >= self._max_levels:
            for _ in range(8):
                first, room = next(iter(self._rooms.items()))
                # Names that clients make up must not fill the memory.
                made_up = first[0] in ("end_user", "tag")
                if self._forget_first(first, room, self._lasting and not made_up):
                    break
        room = self._rooms[kind, name] = Room()
        return room

    def _forget_first(self, key: tuple[str, str], room: Room, lasting: bool) -> bool:
        if room.attempt == self._attempt or room.busy(lasting):
            self._rooms.move_to_end(key)
            return False
        del self._rooms[key]
        return True


_REQUESTS_LEFT = (b"x-ratelimit-limit-requests", b"x-ratelimit-remaining-requests")
_TOKENS_LEFT = (b"x-ratelimit-limit-tokens", b"x-ratelimit-remaining-tokens")


def _keep_least(
    least: dict[tuple[bytes, bytes], tuple[float, int, int]],
    names: tuple[bytes, bytes],
    limit: int,
    used: int,
) -> None:
    left = limit - used if used < limit else 0
    share = left / limit if limit else 0.0
    known = least.get(names)
    if known is None or share < known[0]:
        least[names] = share, limit, left


@lru_cache(maxsize=1024)
def _said(name: bytes, limit: int) -> tuple[bytes, bytes]:
    """A header with a limit: there are few of them."""
    return name, b"%d" % limit


@lru_cache(maxsize=1024)
def _said_usd(name: bytes, limit: int) -> tuple[bytes, bytes]:
    return name, picousd_as_usd(limit).encode()


# What is said to who is refused.


def _whose(level: Level, model: str) -> str:
    """Of whom a limit is, at the beginning of a sentence or within it."""
    whose = f"{_KINDS.get(level.kind, level.kind)} '{level.label or level.id}'"
    return f"{whose} with model '{model}'" if model else whose


def _begin(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _seconds(seconds: float) -> str:
    return f"{math.ceil(seconds)} s"


def _usd(picousd: int) -> str:
    """Money for people: two decimals, or up to six where there are more."""
    rounded = (picousd + 500_000) // 1_000_000 * 1_000_000
    whole, _, decimals = picousd_as_usd(rounded).partition(".")
    return f"{whole}.{decimals:0<2}"


def _too_many_at_once(level: Level, current: int, limit: int) -> RateLimited:
    return RateLimited(
        f"{_begin(_whose(level, ''))} has {current} of {limit} parallel requests in flight. "
        "Try again when one of them has ended.",
        level,
        "parallel",
        current,
        limit,
        _IN_FLIGHT_RETRY_S,
    )


def _too_many_requests(
    level: Level, model: str, window: Window, limit: int, now: float
) -> RateLimited:
    wait_s = window.room_in_s(now, limit - 1) if limit > 0 else float(_MINUTE_S)
    return RateLimited(
        f"{_begin(_whose(level, model))} has made {window.used} of {limit} requests a minute. "
        f"Try again in {_seconds(wait_s)}.",
        level,
        "rpm",
        window.used,
        limit,
        wait_s,
    )


def _too_many_tokens(
    level: Level, model: str, window: Tokens, needed: int, limit: int, now: float
) -> RateLimited:
    whose = _whose(level, model)
    if needed > limit:
        wait_s = float(_MINUTE_S)
        message = (
            f"This request may need {needed} tokens, its input and as much output as it allows, "
            f"and {whose} has {limit} a minute. Send less, or set a lower maxTokens."
        )
    else:
        wait_s = window.room_in_s(now, limit - needed)
        message = (
            f"{_begin(whose)} has used {window.used} of {limit} tokens a minute, and this request "
            f"may need {needed}. Try again in {_seconds(wait_s)}, or set a lower maxTokens."
        )
    return RateLimited(message, level, "tpm", window.used, limit, wait_s)


def still_reserved(wait: Wait, waited_s: float) -> RateLimited:
    """
    Who waited for what others have reserved has waited long enough.

    :param waited_s: how long it was.
    """
    whose = _whose(wait.level, wait.model)
    if isinstance(wait.on, Purse):
        what = f"the budget of {whose}"
        figures = f"{_usd(wait.current)} of {_usd(wait.limit)} USD are spent or reserved"
    else:
        what = f"the tokens of {whose}"
        figures = f"{wait.current} of {wait.limit} a minute are used or reserved"
    return RateLimited(
        f"The rest of {what} is reserved by requests in flight: {figures}. It was waited for "
        f"{_seconds(waited_s)}. Try again when some of them have ended.",
        wait.level,
        "reserved",
        wait.current,
        wait.limit,
        _IN_FLIGHT_RETRY_S,
    )


def _budget_exceeded(purse: Purse, worst: int, cap: int) -> BudgetExceeded:
    whose = _whose(purse.level, purse.model)
    since = f" since {iso_time(purse.begin_us)}" if purse.begin_us > 0 else ""
    figures = f"{_usd(purse.total)} of {_usd(cap)} USD{since}"
    if purse.total >= cap:
        message = f"The budget of {whose} is spent: {figures}."
    else:
        message = (
            f"This request may cost {_usd(worst)} USD, which the budget of {whose} has not left: "
            f"{figures}. Send less, or set a lower maxTokens."
        )
    resets_at = None if purse.end_us is None else iso_time(purse.end_us)
    ask = "ask your operator to raise max_budget."
    message += (
        f" {_begin(ask)}" if resets_at is None else f" It is renewed at {resets_at}, or {ask}"
    )
    return BudgetExceeded(message, purse.level, purse.total, cap, resets_at)


def _unpriced(level: Level, model: str, need: Need) -> BudgetUnpriced:
    what = need.model_id or need.model or need.operation
    return BudgetUnpriced(
        f"This gateway knows no price for '{what}', so {_whose(level, model)}, which has a "
        "budget, cannot use it. The operator can give the deployment prices of its own or a "
        "base_model, or set budget_unpriced: allow."
    )
