"""
What the tests of all clients share: a client program runs once, its steps are judged
one by one.

The modules beside this one are run by ``make test-clients`` and not by ``make test``:
this folder has no ``__init__.py``, so trial does not find them unless they are named.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, ClassVar

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.clients.environments import ENVIRONMENTS, Environment
from tests.clients.gateway import Gateway, running

__all__ = ["ANSWER", "INTRODUCTION", "QUESTION", "SENTENCE", "WEATHER_INPUT", "ClientTestCase"]

INTRODUCTION = (
    "This is the txbedrock sandbox, a stand-in for Amazon Bedrock and no model. You said:"
)
"""What every text of the sandbox begins with."""

QUESTION = "Who are you really?"
"""What the client programs ask."""

ANSWER = f"{INTRODUCTION} {QUESTION}"
"""What they get: 4 words in, 19 out, and in a stream an event for each."""

SENTENCE = "This comes from the txbedrock sandbox, which is no model."
"""What the sandbox says where no model is asked."""

WEATHER_INPUT = {"city": "sandbox", "unit": "celsius", "days": 2}
"""What the tool ``get_weather`` gets; its schema is that of :mod:`..programs.models`."""

_HERE = Path(__file__).parent
_LONGEST_S = 300.0


class ClientTestCase(SynchronousTestCase):
    """
    Runs a client program in an environment of its own.

    The program has what :meth:`Gateway.environment` says, and writes one line of JSON for
    each of its steps, with ``step`` and ``result`` or ``raised``; all else goes to its
    standard error.
    """

    client: ClassVar[str]
    """The name of its environment."""

    program: ClassVar[str]
    """Its file, relative to this folder."""

    environ: ClassVar[dict[str, str]] = {}
    """Besides what all have."""

    gateway: Gateway

    def setUp(self) -> None:
        environment = self.environment
        if not environment.is_made():
            lacks = environment.lacks()
            message = f"{environment.title} is not installed: make test-clients"
            if lacks is not None:
                message = f"{environment.title}: there is no {lacks} on this machine"
            if os.environ.get("CI"):
                self.fail(message)
            raise SkipTest(message)
        self.gateway = running()

    @property
    def environment(self) -> Environment:
        return ENVIRONMENTS[self.client]

    def result(self, step: str) -> Any:
        """
        What a step came to.

        :raises AssertionError: if it was not reached, or raised what it did not expect.
        """
        told = self._step(step)
        self.assertIn("result", told, told.get("raised"))
        return told["result"]

    def assert_fails(self, step: str, reason: str) -> None:
        """Does a step end with an exception whose traceback has this in its last line?"""
        told = self._step(step)
        self.assertIn("raised", told)
        self.assertIn(reason, told["raised"].strip().splitlines()[-1])

    def _step(self, step: str) -> dict[str, Any]:
        case = type(self)
        if case not in _ran:
            _ran[case] = _run(case)
        steps, said = _ran[case]
        self.assertIn(step, steps, f"the program did not come so far: {said}")
        return steps[step]

    def assert_pieces(self, pieces: list[str]) -> None:
        """Is this the answer, streamed word by word?"""
        self.assertEqual("".join(pieces), ANSWER)
        self.assertEqual(len([piece for piece in pieces if piece]), len(ANSWER.split()))

    def assert_json(self, text: str, expected: Any) -> None:
        """Is a text the JSON of a value?"""
        self.assertEqual(json.loads(text), expected, text)

    def assert_raised(
        self, error: dict[str, Any], expected: str, message: str, **members: Any
    ) -> None:
        """
        Is an error what a user of the client expects?

        :param error: as a program describes it: ``class``, ``message`` and others.
        :param expected: the class's name.
        :param message: has to be in the error's.
        :param members: others of the description.
        """
        self.assertEqual(error["class"], expected, error)
        self.assertIn(message, error["message"])
        for name, value in members.items():
            self.assertEqual(error[name], value, error)
        secrets = (self.gateway.key, self.gateway.secret_access_key)
        for secret in secrets:
            self.assertNotIn(secret, json.dumps(error))


_ran: dict[type[ClientTestCase], tuple[dict[str, dict[str, Any]], str]] = {}


def _run(case: type[ClientTestCase]) -> tuple[dict[str, dict[str, Any]], str]:
    """:returns: the steps of the program by name, and what else it said."""
    gateway = running()
    environment: Any = ENVIRONMENTS[case.client]
    ran = subprocess.run(
        environment.command(_HERE / case.program),
        env=gateway.environment() | case.environ,
        cwd=gateway.folder,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=_LONGEST_S,
    )
    steps = {}
    for line in ran.stdout.decode().splitlines():
        step = json.loads(line)
        steps[step["step"]] = step
    return steps, f"exit status {ran.returncode}\n{ran.stderr.decode('utf-8', 'replace')}"
