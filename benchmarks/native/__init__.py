"""
The upstream and the load generator, which are to cost next to nothing: in C.

They are compiled when they are needed, into a folder of the caller's.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Failed

__all__ = ["Tools", "compiled"]

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Tools:
    """Two programs; what they take and say stands at the head of their sources."""

    upstream: Path
    load: Path


def compiled(folder: Path) -> Tools:
    """
    :raises Failed: without a C compiler, or without OpenSSL's headers.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Failed("a C compiler is needed for upstream and load generator (Debian: gcc)")
    tools = Tools(folder / "upstream", folder / "load")
    for program, libraries in ((tools.upstream, ()), (tools.load, ("-lssl", "-lcrypto"))):
        source = _HERE / f"{program.name}.c"
        done = subprocess.run(
            [compiler, "-O2", "-Wall", "-Wextra", "-o", program, source, *libraries],
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            raise Failed(
                f"{source.name} cannot be compiled (Debian: libc6-dev, libssl-dev): {done.stderr}"
            )
    return tools
