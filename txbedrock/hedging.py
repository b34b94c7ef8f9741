"""
A second attempt beside a slow first one, and the better of the two.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Generic, NamedTuple, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure

__all__ = ["Outcome", "Race", "race"]

T = TypeVar("T")


class Outcome(NamedTuple, Generic[T]):
    """How an attempt went: it has a result or an error; neither: it was cancelled."""

    result: T | None = None
    error: Exception | None = None


class Race(NamedTuple, Generic[T]):
    """How the attempts went."""

    outcomes: tuple[Outcome[T], ...]
    """Of the first and, if it was made, of the second."""

    winner: int
    """Whose outcome counts."""


async def race(
    first: Coroutine[Any, Any, T],
    after_s: float,
    second: Callable[[], Coroutine[Any, Any, T] | None],
    is_good: Callable[[T], bool],
    sleep: Callable[[float], Awaitable[None]],
) -> Race[T]:
    """
    Make a second attempt when the first takes too long. The first good result wins, and
    the other attempt is cancelled; if none is good, the last one counts.

    :param second: makes it, or returns None: then there is none.
    """
    outcomes: dict[int, Outcome[T]] = {}
    running: list[Deferred[None]] = []
    news: Deferred[None] | None = None
    late = asked = False

    def tell() -> None:
        nonlocal news
        waiting, news = news, None
        if waiting is not None and not waiting.called:
            waiting.callback(None)

    def begin(attempt: Coroutine[Any, Any, T]) -> None:
        place = len(running)

        def ended(result: T | Failure) -> None:
            if not isinstance(result, Failure):
                outcomes[place] = Outcome(result)
            elif isinstance(result.value, Exception):
                outcomes[place] = Outcome(error=result.value)
            tell()

        running.append(Deferred.fromCoroutine(attempt).addBoth(ended))

    async def wait() -> None:
        nonlocal late
        await sleep(after_s)
        late = True
        tell()

    def good() -> int | None:
        for place, one in outcomes.items():
            if one.result is not None and is_good(one.result):
                return place
        return None

    begin(first)
    waiting = Deferred.fromCoroutine(wait())
    waiting.addErrback(lambda failure: failure.trap(CancelledError) and None)
    try:
        while (winner := good()) is None and len(outcomes) < len(running):
            if late and not asked:
                asked = True
                attempt = second()
                if attempt is not None:
                    begin(attempt)
            else:
                news = Deferred()
                await news
        if winner is None:
            winner = list(outcomes)[-1]
        found = tuple(outcomes.get(place, Outcome()) for place in range(len(running)))
        return Race(found, winner)
    finally:
        waiting.cancel()
        for place, one in enumerate(running):
            if place not in outcomes:
                one.cancel()
