"""
Several deployments under one model name -> the order in which to try them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["Turns"]

_T = TypeVar("_T")


class Turns:
    """Deployments of a model group take turns."""

    def __init__(self) -> None:
        # One counter a group: bounded by the configuration, as only names of
        # groups come here.
        self._next: dict[str, int] = {}

    def order(self, group: str, choices: Sequence[_T]) -> Sequence[_T]:
        """
        :returns: the same choices, beginning with the one whose turn it is.
        """
        count = len(choices)
        if count < 2:
            return choices
        turn = self._next.get(group, 0) % count
        self._next[group] = turn + 1
        return [*choices[turn:], *choices[:turn]]
