"""
For client programs: steps that are run one after another and told of as JSON.

Only the standard library, since each program runs in its client's own environment.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["KEY", "PLAIN_URL", "QUESTION", "URL", "described", "raised", "run", "step"]

URL = os.environ["URL"]
"""The gateway over TLS, with nothing after the port."""

PLAIN_URL = os.environ["PLAIN_URL"]
KEY = os.environ["KEY"]
QUESTION = "Who are you really?"

_STEPS: list[Callable[[], Any]] = []


def step(function: Callable[[], Any]) -> Callable[[], Any]:
    """
    Make a function a step, of its name. It may be a coroutine function.

    What it returns is the result: values of JSON; others are written as text.
    """
    _STEPS.append(function)
    return function


def raised(call: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any]:
    """
    What a call raises.

    :returns: ``class`` and its ``module``, ``message``: the text that a user sees.
    :raises AssertionError: if it raises nothing.
    """
    try:
        value = call(*arguments, **options)
    except Exception as error:
        return described(error)
    raise AssertionError(f"nothing was raised, but there is {value!r}")


def described(error: BaseException) -> dict[str, Any]:
    """As :func:`raised`; with ``status`` and ``code`` where the error has them."""
    found = {
        "class": type(error).__name__,
        "module": type(error).__module__,
        "message": str(error),
    }
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        found["code"] = response.get("Error", {}).get("Code")
        found["status"] = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif hasattr(error, "status_code"):
        found["status"] = error.status_code
    return found


def run() -> None:
    """Run all steps, whatever becomes of each."""
    # What libraries print is none of the results.
    out, sys.stdout = sys.stdout, sys.stderr
    for function in _STEPS:
        told: dict[str, Any] = {"step": function.__name__}
        try:
            value = function()
            told["result"] = asyncio.run(value) if inspect.iscoroutine(value) else value
        except Exception:
            told["raised"] = traceback.format_exc()
        print(json.dumps(told, default=_plain), file=out, flush=True)


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
