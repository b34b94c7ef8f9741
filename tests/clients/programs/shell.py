"""
Runs the functions of a shell script as steps: ``python shell.py SCRIPT``.

Each function whose name has no underscore before it is a step; its result has the
``status``, ``out`` and ``err``, and ``pauses``: how often nothing was written for a while.
The programs of the environment whose Python this is are found first.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from steps import run, step

_LONGEST_S = 60.0
_WHILE_S = 0.02


def call(script: str, name: str) -> dict[str, Any]:
    """Run one function."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        ["sh", "-c", f'. "$0" && {name}', script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PATH": path},
    )
    assert process.stdout is not None
    out, pauses, last = b"", 0, time.monotonic()
    while piece := os.read(process.stdout.fileno(), 65536):
        pauses += bool(out) and time.monotonic() - last > _WHILE_S
        last = time.monotonic()
        out += piece
    _, err = process.communicate(timeout=_LONGEST_S)
    return {
        "status": process.returncode,
        "out": out.decode("latin-1"),
        "err": err.decode("utf-8", "replace"),
        "pauses": pauses,
    }


def main() -> None:
    script = sys.argv[1]
    for name in re.findall(r"^([a-z]\w*)\(\)", Path(script).read_text("utf-8"), re.MULTILINE):
        function = partial(call, script, name)
        function.__name__ = name  # type: ignore[attr-defined]
        step(function)
    run()


if __name__ == "__main__":
    main()
