"""
``docs/clients.md``: what is made in it from the programs that the tests run.

``python -m tests.clients.document`` writes it anew. The text is written by hand; made are

- the code between ``<!-- from FILE: NAME -->`` and ``<!-- end -->``: what stands in a
  client program between the comments ``docs: NAME`` and ``docs: end``, all such places
  of a name one after another;
- the table between ``<!-- results -->`` and ``<!-- end -->``, from ``results.json``.
"""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

from tests.clients.environments import ENVIRONMENTS

__all__ = ["DOCUMENT", "filled", "note", "results", "snippets", "used", "write"]

_HERE = Path(__file__).parent
_RESULTS = _HERE / "results.json"

DOCUMENT = _HERE.parents[1] / "docs" / "clients.md"

_LANGUAGES = {".py": "python", ".sh": "sh", ".mjs": "js"}
_SNIPPET = re.compile(
    r"^[ \t]*(?:#|//) docs: (?!end$)([^\n]+)\n(.*?)^[ \t]*(?:#|//) docs: end$",
    re.MULTILINE | re.DOTALL,
)
_MADE = re.compile(r"(<!-- (?:results|from (\S+): (.+?)) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def snippets() -> dict[tuple[str, str], str]:
    """All that is marked in the programs, by file (relative to this folder) and name."""
    found: dict[tuple[str, str], str] = {}
    for folder in ("programs", "js"):
        for path in sorted((_HERE / folder).iterdir()):
            if path.suffix in _LANGUAGES:
                for name, code in _SNIPPET.findall(path.read_text("utf-8")):
                    key = (f"{folder}/{path.name}", name)
                    found[key] = found.get(key, "") + textwrap.dedent(code)
    return found


def used(text: str) -> set[tuple[str, str]]:
    """The snippets that a document asks for."""
    return {(match[2], match[3]) for match in _MADE.finditer(text) if match[2]}


def filled(text: str) -> str:
    """
    A document with everything in it that is made.

    :raises KeyError: for a snippet that is not there.
    """
    known = snippets()

    def made(match: re.Match[str]) -> str:
        if match[2] is None:
            return match[1] + _table()
        language = _LANGUAGES[Path(match[2]).suffix]
        return f"{match[1]}```{language}\n{known[match[2], match[3]]}```\n"

    return _MADE.sub(made, text)


def write() -> None:
    """Bring the document up to date."""
    text = DOCUMENT.read_text("utf-8")
    DOCUMENT.write_text(filled(text), "utf-8")


def note(client: str, versions: dict[str, str], outcomes: dict[str, str]) -> None:
    """
    Keep how a client fared, for the table.

    :param versions: by package.
    :param outcomes: ``passed``, ``failed`` or ``skipped``, by what was tried.
    """
    known = results()
    known[client] = {"versions": versions, "outcomes": outcomes}
    ordered = {name: known[name] for name in ENVIRONMENTS if name in known}
    _RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", "utf-8")


def results() -> dict[str, dict[str, dict[str, str]]]:
    """How each client fared the last time: its ``versions`` and ``outcomes``."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    if _RESULTS.is_file():
        found = json.loads(_RESULTS.read_text("utf-8"))
    return found


def _table() -> str:
    lines = ["| client | versions | tried | result |", "|---|---|---|---|"]
    for name, result in results().items():
        outcomes = result["outcomes"]
        versions = ", ".join(
            f"{package} {version}" for package, version in result["versions"].items()
        )
        wrong = [what for what, outcome in outcomes.items() if outcome == "failed"]
        left_out = [what for what, outcome in outcomes.items() if outcome == "skipped"]
        told = f"{len(outcomes) - len(wrong) - len(left_out)} of {len(outcomes)} pass"
        told += "".join(f"; failed: {', '.join(each)}" for each in [wrong] if each)
        told += "".join(f"; left out: {', '.join(each)}" for each in [left_out] if each)
        tried = ", ".join(outcomes)
        lines.append(f"| {ENVIRONMENTS[name].title} | {versions} | {tried} | {told} |")
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    write()
