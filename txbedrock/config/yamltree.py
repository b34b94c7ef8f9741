"""
YAML files as a tree of plain values that remember where they were written.

PyYAML only composes here: nothing is constructed from tags, a key that is
given twice is noticed, and a value reached through an anchor, a merge key or
an included file still knows its own file and line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import yaml

__all__ = ["Data", "Node", "Report", "kind_of", "read_file"]

Scalar: TypeAlias = bool | int | float | str | None
Data: TypeAlias = "Scalar | list[Node] | Mapping[str, Node]"


_LAST = 1_000_000
"""The rank of what is in no file."""


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it is written; line 0 means that the file has no lines."""

    data: Data = field(repr=False)
    file: str
    line: int

    def place(self, path: str) -> str:
        """Where this is, as messages begin: ``config.yaml:12: router_settings.timeout``."""
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {path}" if path else where


class Report:
    """What is to be said about a configuration, in the order of its lines."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._problems: list[tuple[tuple[int, int], str]] = []
        self._notices: list[tuple[tuple[int, int], str]] = []

    def reading(self, file: str) -> None:
        """What is said about a file comes after that about the files before it."""
        if file not in self._files:
            self._files.append(file)

    def problem(self, node: Node, path: str, text: str) -> None:
        """The configuration cannot be used, because of this."""
        self._problems.append((self._order(node), f"{node.place(path)}: {text}"))

    def notice(self, node: Node, path: str, text: str) -> None:
        """It can be used, and its author should know this."""
        self._notices.append((self._order(node), f"{node.place(path)}: {text}"))

    def quote(self, problems: list[str]) -> None:
        """Problems of another file, in the words of who has read it."""
        self._problems.extend(((_LAST, 0), problem) for problem in problems)

    @property
    def problems(self) -> list[str]:
        return _in_order(self._problems)

    @property
    def notices(self) -> list[str]:
        return _in_order(self._notices)

    def _order(self, node: Node) -> tuple[int, int]:
        if not node.line:
            return _LAST, 0
        self.reading(node.file)
        return self._files.index(node.file), node.line


def _in_order(entries: list[tuple[tuple[int, int], str]]) -> list[str]:
    ordered = sorted(entries, key=lambda entry: entry[0])
    return list(dict.fromkeys(text for _, text in ordered))


def read_file(path: str, report: Report) -> Mapping[str, Node] | None:
    """
    Read a file and those it includes.

    Lists of an included file are appended to the list of the same name, its
    mappings are laid over the mapping of the same name.

    :returns: the root mapping, or None when a file could not be read at all;
        the report then says why.
    """
    return _read(path, report, Node(None, path, 0), "", ())


def kind_of(data: Data) -> str:
    """A value's type in a user's words."""
    match data:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text" if data else "empty text"
        case Mapping():
            return "a mapping"
        case _:
            return "a list"


def _read(
    path: str, report: Report, asked_at: Node, asked_by: str, above: tuple[str, ...]
) -> Mapping[str, Node] | None:
    report.reading(path)
    try:
        real = os.path.realpath(path)
        if real in above:
            report.problem(asked_at, asked_by, "found a file that includes itself")
            return None
        with open(path, "rb") as file:
            raw = file.read()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a file name"
        found = f"found {path!r}: {why}" if asked_by else f"found: {why}"
        report.problem(asked_at, asked_by, f"{found}, expected a YAML file")
        return None
    root = _parse(raw, path, report)
    if root is None:
        return None
    entries = dict(root)
    include = entries.pop("include", None)
    failed = False
    for number, item in enumerate(_names(include, report)):
        where = f"include[{number}]"
        if not isinstance(item.data, str) or not item.data:
            report.problem(item, where, f"found {kind_of(item.data)}, expected a file name")
            continue
        inner = os.path.join(os.path.dirname(path), item.data)
        other = _read(inner, report, item, where, (*above, real))
        if other is None:
            failed = True
        else:
            _overlay(entries, other, report)
    return None if failed else entries


def _names(include: Node | None, report: Report) -> list[Node]:
    if include is None or include.data is None:
        return []
    if not isinstance(include.data, list):
        report.problem(
            include, "include", f"found {kind_of(include.data)}, expected a list of file names"
        )
        return []
    return include.data


def _overlay(entries: dict[str, Node], upper: Mapping[str, Node], report: Report) -> None:
    for key, node in upper.items():
        lower = entries.get(key)
        if lower is None or lower.data is None:
            entries[key] = node
        elif isinstance(node.data, Mapping) and isinstance(lower.data, Mapping):
            for inner in node.data.keys() & lower.data.keys():
                before = lower.data[inner]
                report.notice(
                    node.data[inner],
                    f"{key}.{inner}",
                    f"replaces the value at {before.file}:{before.line}",
                )
            entries[key] = Node({**lower.data, **node.data}, lower.file, lower.line)
        elif isinstance(node.data, list) and isinstance(lower.data, list):
            entries[key] = Node([*lower.data, *node.data], lower.file, lower.line)
        elif node.data is not None:
            entries[key] = node


def _parse(raw: bytes, file: str, report: Report) -> Mapping[str, Node] | None:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        found = "found a byte that is not UTF-8, expected text in UTF-8"
        report.problem(Node(None, file, line), "", found)
        return None
    try:
        loader = yaml.SafeLoader(text)
        try:
            top = loader.get_single_node()
        finally:
            loader.dispose()
        data = None if top is None else _Conversion(file, report).value(top, "")
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        column = error.position - (before.rfind("\n") + 1) + 1
        where = Node(None, file, before.count("\n") + 1)
        report.problem(
            where, f"column {column}", "broken YAML: found a character that YAML does not allow"
        )
        return None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Node(None, file, mark.line + 1 if mark else 1)
        column = mark.column + 1 if mark else 1
        report.problem(where, f"column {column}", f"broken YAML: {_syntax(error)}")
        return None
    except RecursionError:
        report.problem(Node(None, file, 1), "", "found values nested too deeply to be read")
        return None
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        report.problem(
            Node(None, file, 1),
            "",
            f"found {kind_of(data)}, expected a mapping such as model_list:",
        )
        return None
    return data


def _syntax(error: yaml.MarkedYAMLError) -> str:
    """
    PyYAML's words without what it quotes from the file, which may be a secret
    (an unquoted password that begins with ``*`` is "an undefined alias").
    """
    problem = error.problem or error.context or "not YAML"
    if "undefined alias" in problem:
        return "found * and a name that no & defines, expected text with a * to be in quotes"
    if "undefined tag handle" in problem:
        return "found ! at the beginning of a value, expected such text to be in quotes"
    return re.sub(r"'(?!<)[^']{3,}'", "'...'", problem)


class _Conversion:
    """One file's nodes as plain values. An anchor's value is converted once."""

    def __init__(self, file: str, report: Report) -> None:
        self._file = file
        self._report = report
        self._done: dict[int, Data] = {}
        self._open: set[int] = set()

    def value(self, node: yaml.Node, path: str) -> Data:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            self._problem(node, path, "found an anchor that holds itself")
            return None
        if id(node) not in self._done:
            self._open.add(id(node))
            if isinstance(node, yaml.MappingNode):
                self._done[id(node)] = self._mapping(node, path)
            else:
                assert isinstance(node, yaml.SequenceNode)
                self._done[id(node)] = [
                    Node(self.value(item, f"{path}[{number}]"), self._file, _line(item))
                    for number, item in enumerate(node.value)
                ]
            self._open.discard(id(node))
        return self._done[id(node)]

    def _scalar(self, node: yaml.ScalarNode, path: str) -> Scalar:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind in ("str", "timestamp"):
            value = cast("str", node.value)
            if any("\ud800" <= char <= "\udfff" for char in value):
                self._problem(node, path, "found half a character (\\ud800 to \\udfff)")
                return None
            return value
        construct = _CONSTRUCTORS.get(kind)
        if construct is None:
            self._problem(node, path, "found a tag (!), expected a plain value")
            return None
        try:
            return construct(_constructor, node)
        except (ValueError, KeyError):
            self._problem(node, path, f"found a malformed {kind}, expected a plain value")
            return None

    def _mapping(self, node: yaml.MappingNode, path: str) -> Mapping[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged = {**self._merged(value_node, path), **merged}
                continue
            key = self.value(key_node, path)
            if not isinstance(key, str):
                found = f"found {kind_of(key)} as a key, expected text (in quotes)"
                self._problem(key_node, path, found)
                continue
            inner = f"{path}.{key}" if path else key
            value = Node(self.value(value_node, inner), self._file, _line(key_node))
            if key in own:
                found = f"found the key again, expected it once (first in line {own[key].line})"
                self._report.problem(value, inner, found)
            else:
                own[key] = value
        return {**{key: value for key, value in merged.items() if key not in own}, **own}

    def _merged(self, node: yaml.Node, path: str) -> Mapping[str, Node]:
        data = self.value(node, path)
        if isinstance(data, Mapping):
            return data
        found: dict[str, Node] = {}
        for item in data if isinstance(data, list) else [Node(data, self._file, _line(node))]:
            if not isinstance(item.data, Mapping):
                self._report.problem(
                    item, path, f"found {kind_of(item.data)} after <<, expected a mapping"
                )
                continue
            for key, value in item.data.items():
                found.setdefault(key, value)
        return found

    def _problem(self, node: yaml.Node, path: str, text: str) -> None:
        self._report.problem(Node(None, self._file, _line(node)), path, text)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


_constructor = yaml.constructor.SafeConstructor()
_CONSTRUCTORS: Mapping[
    str, Callable[[yaml.constructor.SafeConstructor, yaml.ScalarNode], Scalar]
] = {
    "null": yaml.constructor.SafeConstructor.construct_yaml_null,
    "bool": yaml.constructor.SafeConstructor.construct_yaml_bool,
    "int": yaml.constructor.SafeConstructor.construct_yaml_int,
    "float": yaml.constructor.SafeConstructor.construct_yaml_float,
}
