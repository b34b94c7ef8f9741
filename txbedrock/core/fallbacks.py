"""
What is asked instead when a model group cannot serve a request.

Names are what a client may ask for: model groups, aliases of them, names that a group
with a ``*`` matches, and ids of Bedrock's own. Each fallback is resolved like the name in
a request, so that the id in the path is always that of the model that is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from txbedrock.core.health import FailureKind

__all__ = ["FallbackProblem", "FallbackTable", "Fallbacks"]

# Note [Which fallback]
# ---------------------
# Each failure has its lists: content_policy_fallbacks when an answer was refused,
# context_window_fallbacks when a request is too long, fallbacks for all that may go better
# elsewhere. A request that is wrong has none. A name's list is the first that is there of:
# its own; that of what it is an alias for; its own with or without bedrock/ before it; that
# of the longest pattern which matches it. ``*`` alone is for all others.
#
# When a fallback fails too, its own list comes first, for what it failed of, and then the
# rest of the list that led to it. Nothing is asked twice. When no list has anything left,
# those without a list among ``fallbacks`` have the default fallbacks.
#
# A loop in the lists would be harmless, as nothing is asked twice. It is refused all the
# same: whoever wrote it believes that something will be asked again. Lists of ``*`` and of
# patterns, and default_fallbacks, may hold what falls back to them: there the one who asks
# is meant to be left out.

FallbackTable: TypeAlias = Mapping[str, tuple[str, ...]]
"""Name -> what to ask instead, in this order."""

_PREFIX = "bedrock/"


class FallbackProblem(NamedTuple):
    """Something that cannot be meant. The last two are halves of a sentence."""

    setting: str
    """``fallbacks``, ``default_fallbacks``, ``context_window_fallbacks`` or
    ``content_policy_fallbacks``."""

    name: str
    """Whose list it is; empty for the default."""

    found: str
    expected: str


@dataclass(frozen=True, slots=True)
class Fallbacks:
    """All lists of one configuration. Two with the same lists are equal."""

    general: FallbackTable = field(default_factory=dict)
    default: tuple[str, ...] = ()
    context_window: FallbackTable = field(default_factory=dict)
    content_policy: FallbackTable = field(default_factory=dict)

    max_fallbacks: int = 5
    """How many may be asked for one request."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names, and what each stands for in the end."""

    def after(self, tried: Sequence[tuple[str, FailureKind]]) -> str | None:
        """
        What to ask next.

        :param tried: the names that were asked, in their order, each with what it
            failed of: first the client's own, then what this method has returned. An
            empty name is a request that names no model, which has no fallbacks.
        :returns: None if nothing is left, or may be asked.
        """
        if not tried or not tried[0][0] or len(tried) > self.max_fallbacks:
            return None
        if tried[-1][1] is FailureKind.CLIENT:
            return None
        seen = {self._meant(name) for name, _ in tried}
        for name in self._candidates(tried):
            if self._meant(name) not in seen:
                return name
        return None

    def problems(self, known: Callable[[str], bool]) -> list[FallbackProblem]:
        """
        :param known: whether a name can be resolved.
        """
        found: list[FallbackProblem] = []
        for setting, table in (
            ("fallbacks", self.general),
            ("context_window_fallbacks", self.context_window),
            ("content_policy_fallbacks", self.content_policy),
        ):
            for name, others in table.items():
                if "*" not in name:
                    found += _unknown(setting, name, [name], known)
                found += _unknown(setting, name, others, known)
            found += self._loops(setting, table)
        found += _unknown("default_fallbacks", "", self.default, known)
        return found

    def _candidates(self, tried: Sequence[tuple[str, FailureKind]]) -> Iterator[str]:
        for name, kind in reversed(tried):
            yield from self._lookup(self._table(kind), name) or ()
        for name, kind in reversed(tried):
            if not kind.clients and self._lookup(self.general, name) is None:
                yield from self.default

    def _table(self, kind: FailureKind) -> FallbackTable:
        if kind is FailureKind.CONTEXT_WINDOW:
            return self.context_window
        if kind is FailureKind.CONTENT_POLICY:
            return self.content_policy
        return self.general

    def _lookup(self, table: FallbackTable, name: str) -> tuple[str, ...] | None:
        """A name's list, which may be empty; None if it has none."""
        names = (name, self._meant(name))
        for exact in names:
            if exact in table:
                return table[exact]
        bare = [one.removeprefix(_PREFIX) for one in names]
        keys = [key for key in table if any(_matches(key, one) for one in bare)]
        return table[max(keys, key=_specific)] if keys else None

    def _meant(self, name: str) -> str:
        """The same for all names that mean the same."""
        return self.aliases.get(name, name)

    def _loops(self, setting: str, table: FallbackTable) -> Iterator[FallbackProblem]:
        """Each loop once, where it is entered first."""
        reported: set[frozenset[str]] = set()
        for name, others in table.items():
            if "*" in name:
                continue
            for other in others:
                way = self._way(table, other, name)
                if way is None:
                    continue
                loop = [name, *way]
                members = frozenset(self._meant(one) for one in loop)
                if members not in reported:
                    reported.add(members)
                    yield FallbackProblem(
                        setting, name, f"a loop ({' -> '.join(loop)})", "an end to it"
                    )

    def _way(self, table: FallbackTable, start: str, end: str) -> list[str] | None:
        """The shortest way between two names, both included; None if there is none."""
        ways = [[start]]
        seen = {self._meant(start)}
        for way in ways:  # grows
            last = self._meant(way[-1])
            if last == self._meant(end):
                return [*way[:-1], end]
            for key, others in table.items():
                if "*" in key or self._meant(key) != last:
                    continue
                for other in others:
                    if self._meant(other) not in seen:
                        seen.add(self._meant(other))
                        ways.append([*way, other])
        return None


def _matches(key: str, name: str) -> bool:
    """Whether a list's name means a name from which ``bedrock/`` is taken."""
    prefix, star, suffix = key.removeprefix(_PREFIX).partition("*")
    if not star:
        return prefix == name
    long_enough = len(name) >= len(prefix) + len(suffix)
    return long_enough and name.startswith(prefix) and name.endswith(suffix)


def _specific(key: str) -> tuple[bool, int]:
    """What says most, last."""
    return "*" not in key, len(key)


def _unknown(
    setting: str, name: str, asked: Iterable[str], known: Callable[[str], bool]
) -> list[FallbackProblem]:
    """Those of some names that nobody can ask for."""
    return [
        FallbackProblem(setting, name, _shown(one), "a model_name of model_list, without a *")
        for one in asked
        if "*" in one or not known(one)
    ]


def _shown(name: str) -> str:
    return repr(name if len(name) <= 80 else f"{name[:77]}...")
