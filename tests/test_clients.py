"""
What is documented for clients is what is tried with them. No client has to be installed.
"""

from __future__ import annotations

from twisted.trial.runner import TestLoader
from twisted.trial.unittest import SynchronousTestCase

import tests
from tests.clients import document
from tests.clients.environments import ENVIRONMENTS


class DocumentTests(SynchronousTestCase):
    """``docs/clients.md``."""

    def test_current(self) -> None:
        """Its code is that of the programs, its table that of the last run."""
        text = document.DOCUMENT.read_text("utf-8")
        self.assertEqual(text, document.filled(text), "python -m tests.clients.document")

    def test_whole(self) -> None:
        """Whatever is marked in a program is there."""
        text = document.DOCUMENT.read_text("utf-8")
        self.assertEqual(document.used(text), set(document.snippets()))

    def test_outdated(self) -> None:
        """Code that somebody has changed by hand is replaced, the text around it is not."""
        begin = "Before.\n<!-- from programs/client_boto3.py: call -->\n"
        text = f"{begin}wrong\n<!-- end -->\nAfter.\n"
        code = document.snippets()["programs/client_boto3.py", "call"]
        self.assertIn("client.converse(", code)
        self.assertEqual(
            document.filled(text), f"{begin}```python\n{code}```\n<!-- end -->\nAfter.\n"
        )

    def test_clients(self) -> None:
        """Each client has a test, a row in the table and nothing that failed."""
        folder = document.DOCUMENT.parents[1] / "tests" / "clients"
        tried = {path.stem.removeprefix("test_") for path in folder.glob("test_*.py")}
        self.assertEqual(set(ENVIRONMENTS), tried)
        results = document.results()
        self.assertEqual(set(results), tried)
        for name, result in results.items():
            self.assertNotIn("failed", result["outcomes"].values(), name)


class LoadingTests(SynchronousTestCase):
    """The clients' own tests are for ``make test-clients``."""

    def test_apart(self) -> None:
        """trial does not find them by itself."""
        suite = TestLoader().loadPackage(tests, recurse=True)
        modules = {type(case).__module__ for case in _cases(suite)}
        self.assertIn(__name__, modules)
        self.assertEqual([name for name in modules if name.startswith("tests.clients.")], [])


def _cases(suite: object) -> list[object]:
    if hasattr(suite, "__iter__"):
        return [case for each in suite for case in _cases(each)]
    return [suite]
