"""
``python -m tests.clients.run boto3 curl``: make their environments, try these clients, and
put what came of it into ``docs/clients.md``. Without a name: all.

Ends with trial's usual last line, and with 0 only if nothing failed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.trial.reporter import TreeReporter
from twisted.trial.runner import TestLoader, TrialRunner

from tests.clients import document, environments
from tests.clients.environments import ENVIRONMENTS
from tests.clients.testcase import ClientTestCase

__all__ = ["main"]

_HERE = Path(__file__).parent
_WORST_FIRST = ("failed", "skipped", "passed")


class _Reporter(TreeReporter):
    """Remembers how each test of a client ended."""

    outcomes: dict[str, dict[str, str]] = {}
    """``passed``, ``failed`` or ``skipped``, by client and what was tried."""

    def _note(self, test: Any, outcome: str) -> None:
        if isinstance(test, ClientTestCase):
            tried = test.id().rpartition(".")[2].removeprefix("test_").replace("_", " ")
            outcomes = self.outcomes.setdefault(test.client, {})
            # Several classes may try the same, each in its own way: the worst counts.
            outcomes[tried] = min(outcome, outcomes.get(tried, outcome), key=_WORST_FIRST.index)

    def addSuccess(self, test: Any) -> None:
        self._note(test, "passed")
        super().addSuccess(test)

    def addFailure(self, test: Any, fail: Any) -> None:
        self._note(test, "failed")
        super().addFailure(test, fail)

    def addError(self, test: Any, error: Any) -> None:
        self._note(test, "failed")
        super().addError(test, error)

    def addSkip(self, test: Any, reason: Any) -> None:
        self._note(test, "skipped")
        super().addSkip(test, reason)


def main(names: list[str]) -> bool:
    """
    Try clients.

    :param names: of environments; each has a module ``test_NAME``.
    :returns: whether all that is possible on this machine went well.
    """
    unknown = [name for name in names if not (_HERE / f"test_{name}.py").is_file()]
    if unknown:
        known = sorted(path.stem.removeprefix("test_") for path in _HERE.glob("test_*.py"))
        print(f"no client {', '.join(unknown)}; there are: {', '.join(known)}")
        return False
    names = names or [name for name in ENVIRONMENTS if (_HERE / f"test_{name}.py").is_file()]
    possible = [name for name in names if ENVIRONMENTS[name].lacks() is None]
    installed = environments.main(possible)

    modules = [f"tests.clients.test_{name}" for name in names]
    suite = TestLoader().loadByNames(modules)
    result = TrialRunner(_Reporter, workingDirectory="_trial_temp_clients").run(suite)
    for name, outcomes in _Reporter.outcomes.items():
        if ENVIRONMENTS[name].is_made():
            document.note(name, ENVIRONMENTS[name].versions(), outcomes)
    document.write()
    return installed and bool(result.wasSuccessful())


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1:]) else 1)
