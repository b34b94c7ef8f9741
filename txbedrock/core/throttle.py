"""
Saying the same thing only so often, and how often it was not said.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["Throttle"]

_MOST_KINDS = 100


class Throttle:
    """
    Lets so many of a kind through in each period, and counts the others.

    :param most: in a period.
    :param period_s: from the first of a kind on.
    """

    def __init__(self, most: int, period_s: float) -> None:
        self._most = most
        self._period_s = period_s
        # Kind -> when its period began, and how many there were in it. It goes on until
        # it has been asked for what was withheld.
        self._kinds: dict[str, tuple[float, int]] = {}

    def __bool__(self) -> bool:
        """Is something withheld?"""
        return any(count > self._most for _, count in self._kinds.values())

    def lets(self, kind: str, now: float) -> bool:
        """
        May this one be said?

        :param now: seconds, monotonic.
        """
        began, count = self._kinds.get(kind, (now, 0))
        if count <= self._most and now - began >= self._period_s:
            began, count = now, 0
        if not count and len(self._kinds) >= _MOST_KINDS:
            return True
        self._kinds[kind] = (began, count + 1)
        return count < self._most

    def withheld(self, now: float | None = None) -> Iterator[tuple[str, int]]:
        """
        Begin anew with the kinds whose period is over.

        :param now: None: with all of them.
        :returns: those of which some were not said, and how many.
        """
        for kind, (began, count) in list(self._kinds.items()):
            if now is None or now - began >= self._period_s:
                del self._kinds[kind]
                if count > self._most:
                    yield kind, count - self._most
