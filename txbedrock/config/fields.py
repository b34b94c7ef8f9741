"""
Reading typed values out of a YAML tree, with a sentence for everything wrong.

A :class:`Section` is one mapping of the configuration. It is asked for keys,
each with a parser; it remembers what was asked, so that at the end it knows
the keys nobody wanted. A parser takes a :class:`Found` and returns its value or
raises :class:`Wrong`; the section adds file, line and key path.

A message shows a value only if a parser lets it, and never one that came from
an environment variable or looks like a key.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeVar
from urllib.parse import urlsplit

from txbedrock.config.yamltree import Data, Node, Report, kind_of
from txbedrock.core.pricekeys import BadPrice, picousd

__all__ = [
    "Field",
    "Found",
    "Kind",
    "Reading",
    "Section",
    "Wrong",
    "a_list",
    "a_mapping",
    "anything",
    "base_url",
    "boolean",
    "duration",
    "file_name",
    "fitting",
    "number",
    "one_of",
    "price",
    "shorten",
    "size",
    "text",
]

T = TypeVar("T")

ENVIRONMENT = "environment"
"""What stands for the file in messages about an environment variable."""

_REFERENCE = "os.environ/"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(
    r"(?<![A-Za-z0-9])(sk-|AKIA|ASIA|ABSK|eyJ|bedrock-api-key)"
    r"|(?=[A-Za-z0-9+/]*[a-z])(?=[A-Za-z0-9+/]*[A-Z])(?=[A-Za-z0-9+/]*[0-9])[A-Za-z0-9+/]{30}"
)
"""What a key looks like: its beginning, or a long run of letters and digits."""


class Wrong(Exception):
    """A value cannot be used. Both arguments are halves of a sentence."""

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(found, expected)
        self.found = found
        self.expected = expected


@dataclass(frozen=True, slots=True)
class Field:
    """A value and the key path that leads to it."""

    node: Node
    path: str


@dataclass(frozen=True, slots=True)
class Found:
    """A value as a parser sees it: references to the environment are resolved."""

    data: Data
    variable: str = ""
    """The environment variable that the file takes it from."""

    hidden: bool = False
    """Whether it must not be shown, since it stands in the environment."""

    @property
    def kind(self) -> str:
        """What it is, without showing it."""
        kind = kind_of(self.data)
        return f"{kind} in {self.variable}" if self.variable else kind

    @property
    def shown(self) -> str:
        """The value itself, where that is harmless."""
        if self.variable:
            return f"the value of {self.variable}"
        if self.hidden:
            return "something else"
        if isinstance(self.data, bool):
            return "true" if self.data else "false"
        if isinstance(self.data, int | float):
            return shorten(_digits(self.data), 40)
        if isinstance(self.data, str) and self.data and not _SECRET.search(self.data):
            return repr(shorten(self.data, 80))
        return self.kind


def shorten(value: str, limit: int) -> str:
    """At most ``limit`` characters of a text."""
    return value if len(value) <= limit else f"{value[: limit - 3]}..."


def _digits(value: float) -> str:
    try:
        return str(value)
    except ValueError:  # CPython's limit for the digits of an int
        return "a very long number"


class Reading:
    """What all sections of one configuration share."""

    def __init__(self, environ: Mapping[str, str], report: Report) -> None:
        self.environ = environ
        self.report = report
        self._folded: dict[tuple[str, str], list[Field]] = {}

    def variables(self) -> Section:
        """The environment as a section. An empty variable counts as not set."""
        return Section(
            self,
            Field(Node(None, ENVIRONMENT, 0), ""),
            {
                name: Field(Node(value.strip(), ENVIRONMENT, 0), name)
                for name, value in self.environ.items()
                if value.strip()
            },
        )

    def resolve(self, field: Field) -> Found:
        """
        A field's value, with ``os.environ/NAME`` looked up.

        :raises Wrong: if there is no such variable.
        """
        data = field.node.data
        if field.node.file == ENVIRONMENT:
            return Found(data, hidden=True)
        if not isinstance(data, str) or not data.startswith(_REFERENCE):
            return Found(data)
        name = data.removeprefix(_REFERENCE)
        if not _VARIABLE.fullmatch(name):
            raise Wrong(
                "os.environ/ without a variable's name after it",
                "os.environ/ and the name of an environment variable",
            )
        if name not in self.environ:
            raise Wrong(f"{data}, which is not set", f"the environment variable {name}")
        return Found(self.environ[name], name)

    def fold(self, field: Field, sentence: str) -> None:
        """A notice that is given once for all members of a list."""
        where = re.sub(r"\[\d+\]", "[]", field.path)
        self._folded.setdefault((where, sentence), []).append(field)

    def finish(self) -> None:
        """Hand the folded notices to the report."""
        for (_, sentence), fields in self._folded.items():
            others = len(fields) - 1
            more = f" (and {others} more like it)" if others else ""
            self.report.notice(fields[0].node, fields[0].path, sentence + more)
        self._folded.clear()


@dataclass(frozen=True, slots=True)
class Kind:
    """A key that is known and does nothing: what it must look like all the same."""

    check: Callable[[Found], object]
    restricts: bool = False
    """Whether its author relies on it to keep somebody out."""


class Section:
    """One mapping of the configuration."""

    def __init__(
        self, reading: Reading, at: Field, entries: Mapping[str, Field], broken: bool = False
    ) -> None:
        self.at = at
        self._broken = broken  # not a mapping, which has been reported
        self._reading = reading
        self._entries = entries
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        field = self._entries.get(key)
        return field is not None and field.node.data is not None

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._entries if key in self)

    def get(self, key: str, parse: Callable[[Found], T]) -> T | None:
        """The value of a key; None when it is not there, or wrong (which is reported)."""
        self._asked.add(key)
        if key not in self:
            return None
        try:
            return parse(self._reading.resolve(self._entries[key]))
        except Wrong as wrong:
            self.problem(key, f"found {wrong.found}, expected {wrong.expected}")
            return None

    def section(self, key: str) -> Section:
        """The mapping under a key; an empty one when it is not there."""
        self._asked.add(key)
        return self._section(self._field(key))

    def sections(self, key: str) -> list[Section]:
        """The mappings of a list."""
        self._asked.add(key)
        field = self._field(key)
        if field.node.data is None:
            return []
        if not isinstance(field.node.data, list):
            self.problem(key, f"found {kind_of(field.node.data)}, expected a list")
            return []
        items = [
            self._section(Field(node, f"{field.path}[{number}]"), required=True)
            for number, node in enumerate(field.node.data)
        ]
        return [item for item in items if not item._broken]

    def beneath(self, lower: Section) -> Section:
        """This section, with what it does not have taken from another."""
        mine = {key: field for key, field in self._entries.items() if key in self}
        both = Section(self._reading, self.at, {**lower._entries, **mine}, self._broken)
        both._asked = self._asked
        return both

    def holds_mapping(self, key: str) -> bool:
        return isinstance(self._field(key).node.data, Mapping)

    def missing(self, key: str, expected: str) -> None:
        """A problem if a key is not there."""
        if key in self or self._broken:
            return
        others = set(self._entries) - self._asked
        close = difflib.get_close_matches(key, others, 1, 0.82)
        close = close or [other for other in others if key.startswith(f"{other}_")]
        found = f"found nothing but {close[0]}" if close else "found nothing"
        self.problem(key, f"{found}, expected {expected}")

    def problem(self, key: str, sentence: str) -> None:
        field = self._field(key)
        self._reading.report.problem(field.node, field.path, sentence)

    def notice(self, key: str, sentence: str) -> None:
        self._reading.fold(self._field(key), sentence)

    def finish(
        self, known: Mapping[str, Kind], ours: Iterable[str] = (), others: Iterable[str] = ()
    ) -> None:
        """
        Report the keys that nobody asked for. Those that begin with ``x-`` are
        their author's own, by custom a place for YAML anchors.

        :param known: those that are known and do nothing.
        :param ours: those of which a misspelling is a problem.
        :param others: further keys that could be there, for what a misspelled
            one may have meant.
        """
        for key in self:
            if key in self._asked or key.startswith("x-"):
                continue
            kind = known.get(key)
            if kind is not None:
                self._check(key, kind)
                continue
            names = sorted({*known, *self._asked, *ours, *others})
            close = difflib.get_close_matches(key, names, 1, 0.75)
            if close and close[0] in ours:
                self.problem(key, f"found an unknown setting, expected {close[0]}")
            else:
                hint = f" (did you mean {close[0]}?)" if close else ""
                self.notice(key, f"is not known here and has no effect{hint}")

    def _check(self, key: str, kind: Kind) -> None:
        data = self._entries[key].node.data
        if not (isinstance(data, str) and data.startswith(_REFERENCE)):
            try:
                kind.check(Found(data))
            except Wrong as wrong:
                self.problem(key, f"found {wrong.found}, expected {wrong.expected}")
                return
        more = ": it restricts nothing" if kind.restricts else ""
        self.notice(key, f"has no effect in this version{more}")

    def _field(self, key: str) -> Field:
        field = self._entries.get(key)
        if field is not None:
            return field
        path = f"{self.at.path}.{key}" if self.at.path else key
        return Field(Node(None, self.at.node.file, self.at.node.line), path)

    def _section(self, field: Field, required: bool = False) -> Section:
        data = field.node.data
        broken = False
        if not isinstance(data, Mapping):
            broken = data is not None or required
            if broken:
                self._reading.report.problem(
                    field.node, field.path, f"found {kind_of(data)}, expected a mapping"
                )
            data = {}
        prefix = f"{field.path}." if field.path else ""
        entries = {key: Field(node, prefix + key) for key, node in data.items()}
        return Section(self._reading, field, entries, broken)


def text(found: Found) -> str:
    """Text that is not empty. It is never shown."""
    if not isinstance(found.data, str):
        quotes = " (in quotes)" if isinstance(found.data, bool | int | float) else ""
        raise Wrong(found.kind, f"text{quotes}")
    if not found.data:
        raise Wrong(found.kind, "text")
    if any("\ud800" <= char <= "\udfff" for char in found.data):  # os.environ has it so
        raise Wrong("bytes that are not UTF-8", "text in UTF-8")
    return found.data


def fitting(pattern: str, expected: str, show: bool = True) -> Callable[[Found], str]:
    """Text that matches a regular expression as a whole."""
    compiled = re.compile(pattern)

    def parse(found: Found) -> str:
        value = text(found)
        if not compiled.fullmatch(value):
            raise Wrong(found.shown if show else "other text", expected)
        return value

    return parse


def one_of(names: Iterable[str]) -> Callable[[Found], str]:
    """One of some names."""
    choices = list(names)

    def parse(found: Found) -> str:
        if not isinstance(found.data, str) or found.data not in choices:
            raise Wrong(found.shown, f"one of {', '.join(choices)}")
        return found.data

    return parse


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def boolean(found: Found) -> bool:
    """true or false, also as the text that an environment variable has to be."""
    if isinstance(found.data, bool):
        return found.data
    value = _BOOLEANS.get(found.data.lower()) if isinstance(found.data, str) else None
    if value is None:
        raise Wrong(found.shown, "true or false")
    return value


def number(low: float, high: float, whole: bool = False) -> Callable[[Found], float]:
    """A number, limits included."""
    sort = "a whole number" if whole else "a number"
    expected = f"{sort} from {low:g} up" if math.isinf(high) else f"{sort}, {low:g} to {high:g}"

    def parse(found: Found) -> float:
        value = found.data
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?", value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Wrong(found.shown, expected)
        if not low <= value <= high or (whole and value != int(value)):
            raise Wrong(found.shown, expected)
        return value

    return parse


def price(found: Found) -> int:
    """US dollars as an integer of pico-USD, exactly as they are written."""
    value: object = found.data
    if isinstance(value, float):
        value = Decimal(repr(value))  # the shortest text that is this number: what was written
    elif isinstance(value, str) and re.fullmatch(
        r"[0-9]{1,9}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", value
    ):
        value = Decimal(value)
    try:
        return picousd(value)
    except BadPrice as error:
        raise Wrong(found.shown, error.expected) from None


def _quantity(
    units: Mapping[str, float], low: float, high: float, expected: str
) -> Callable[[Found], float]:
    def parse(found: Found) -> float:
        value = found.data
        if isinstance(value, str):
            match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)", value)
            unit = units.get(match[2].lower()) if match else None
            value = float(match[1]) * unit if match and unit else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Wrong(found.shown, expected)
        if not low <= value <= high:
            raise Wrong(found.shown, expected)
        return value

    return parse


_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(low: float = 0.001) -> Callable[[Found], float]:
    """Seconds: a number, or text such as ``5m``; at most a week."""
    least = "0" if low == 0 else "0.001"
    expected = f"seconds ({least} to 604800) or a duration such as 90s, 5m or 1h"
    return _quantity(_SECONDS, low, 7 * 86400, expected)


_BYTES = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}


def size(found: Found) -> int:
    """Bytes: a number, or text such as ``32MiB``; at most 1024 GiB."""
    parse = _quantity(_BYTES, 1, 2**40, "bytes (1 or more) or a size such as 500KB or 32MiB")
    return int(parse(found))


def base_url(found: Found) -> str:
    """
    An http or https URL that paths are appended to: without a slash at its
    end. It is never shown, for it may hold a password.
    """
    expected = "a URL such as https://vpce-0a1b.bedrock-runtime.us-east-1.vpce.amazonaws.com"
    value = text(found)
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise Wrong("a malformed URL", expected) from None
    if not re.fullmatch(r"[!-~]+", value) or parts.scheme not in ("http", "https"):
        raise Wrong("text that is no http:// or https:// URL", expected)
    if not parts.hostname or port == 0:
        raise Wrong("a URL without a usable host and port", expected)
    if parts.username is not None or parts.password is not None:
        raise Wrong("a URL with a user name or password", expected)
    if "?" in value or "#" in value:
        raise Wrong("a URL with a query or a fragment", expected)
    return value.rstrip("/")


def file_name(found: Found) -> str:
    """A file that is there, as an absolute path (a daemon changes its directory)."""
    path = os.path.abspath(os.path.expanduser(text(found)))
    if not os.path.isfile(path):
        raise Wrong(f"{found.shown}, which is no file", "a file")
    return path


def a_list(found: Found) -> object:
    if not isinstance(found.data, list):
        raise Wrong(found.kind, "a list")
    return found.data


def a_mapping(found: Found) -> object:
    if not isinstance(found.data, Mapping):
        raise Wrong(found.kind, "a mapping")
    return found.data


def anything(found: Found) -> object:
    return found.data
