"""
The clients that are tried, and an environment of its own for each.

``python -m tests.clients.environments boto3 awscli`` makes those two, without a name it
makes all. An environment is made once and again when what it shall hold has changed; it
is a folder of that name below ``clients`` in the environment that this runs in.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

__all__ = ["ENVIRONMENTS", "Environment", "NodeEnvironment", "PythonEnvironment", "main"]

_ALL = Path(sys.prefix, "clients")
_JS = Path(__file__).with_name("js")
_NPM_FILES = ("package.json", "package-lock.json")


@dataclass(frozen=True)
class Environment(ABC):
    """
    Where a client is installed.

    :ivar title: what people call the client.
    :ivar packages: what is installed: requirements with exact versions; the first is
        the client itself.
    """

    name: str
    title: str
    packages: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return _ALL / self.name

    @property
    def _stamp(self) -> Path:
        return self.folder / "installed"

    @property
    def _wanted(self) -> str:
        """What it shall hold, to be compared with what it was made to hold."""
        return repr(self)

    def is_made(self) -> bool:
        """Does it hold what it shall hold?"""
        return self._stamp.is_file() and self._stamp.read_text("utf-8") == self._wanted

    def make(self) -> None:
        """
        Make it, if it is not there as it shall be.

        :raises subprocess.CalledProcessError: if pip or npm fails.
        :raises FileNotFoundError: for a program that is not there; see :meth:`lacks`.
        """
        if self.is_made():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._install()
        self._stamp.write_text(self._wanted, "utf-8")

    def lacks(self) -> str | None:
        """A program that has to be on this machine and is not."""
        return None

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Of the packages that are named, by name, as they are installed."""

    def _install(self) -> None:  # noqa: B027 - some are a part of the machine
        """Into the folder, which is there and empty, if there is anything to be installed."""


@dataclass(frozen=True)
class PythonEnvironment(Environment):
    """
    A virtual environment.

    :ivar lowest: the Python that the client wants at least.
    """

    lowest: tuple[int, int] = (3, 11)

    def lacks(self) -> str | None:
        return None if _python(self.lowest) else "Python {}.{} or newer".format(*self.lowest)

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def command(self, program: Path, *arguments: str) -> list[str]:
        """To run a program in it, or the functions of a shell script."""
        return [str(self.python), *_script(program), *arguments]

    def versions(self) -> dict[str, str]:
        named = [_bare(package) for package in self.packages]
        (site,) = self.folder.glob("lib/python*/site-packages")
        found = {_normal(each.name): each.version for each in distributions(path=[str(site)])}
        return {name: found[_normal(name)] for name in named}

    def _install(self) -> None:
        # Without a pip of its own, which would take as long as all the rest.
        _run([str(_python(self.lowest)), "-m", "venv", "--without-pip", str(self.folder)])
        pip = [sys.executable, "-m", "pip", "--python", str(self.python)]
        quietly = ["--quiet", "--disable-pip-version-check"]
        _run([*pip, "install", *quietly, *self.packages])


class NodeEnvironment(Environment):
    """
    A folder with ``node_modules``.

    What is in it say ``package.json`` and ``package-lock.json`` in a folder below ``js``
    that has the environment's name without ``js_``: exact versions, of all packages.
    """

    @property
    def _described(self) -> Path:
        return _JS / self.name.removeprefix("js_")

    @property
    def _wanted(self) -> str:
        return "".join((self._described / name).read_text("utf-8") for name in _NPM_FILES)

    def lacks(self) -> str | None:
        return next((each for each in ("node", "npm") if shutil.which(each) is None), None)

    def command(self, program: Path, *arguments: str) -> list[str]:
        """
        To run a module in it: a copy beside ``node_modules``, where imports are looked for.
        What has the module's name, but for what follows the dot, comes with it.
        """
        for file in (*program.parent.glob(f"{program.stem}.*"), _JS / "steps.mjs"):
            shutil.copyfile(file, self.folder / file.name)
        return ["node", str(self.folder / program.name), *arguments]

    def versions(self) -> dict[str, str]:
        described = json.loads((self._described / "package.json").read_text("utf-8"))
        found = {}
        for name in described["dependencies"]:
            installed = self.folder / "node_modules" / name / "package.json"
            found[name] = json.loads(installed.read_text("utf-8"))["version"]
        return found

    def _install(self) -> None:
        for name in _NPM_FILES:
            shutil.copyfile(self._described / name, self.folder / name)
        quietly = ["--silent", "--no-audit", "--no-fund", "--no-progress"]
        # No package needs its scripts, and they are what may surprise.
        _run(["npm", "ci", "--ignore-scripts", *quietly], self.folder)


class MachineEnvironment(Environment):
    """For a client that comes with the machine: a program of the client's name."""

    def is_made(self) -> bool:
        return self.lacks() is None

    def make(self) -> None:
        """There is nothing to make."""

    def lacks(self) -> str | None:
        return None if shutil.which(self.name) else self.name

    def command(self, program: Path, *arguments: str) -> list[str]:
        """To run the functions of a shell script."""
        return [sys.executable, *_script(program), *arguments]

    def versions(self) -> dict[str, str]:
        said = subprocess.run([self.name, "--version"], capture_output=True, check=True, text=True)
        return {self.name: said.stdout.split()[1]}


ENVIRONMENTS: dict[str, Environment] = {
    each.name: each
    for each in (
        PythonEnvironment("boto3", "boto3", ("boto3==1.44.5",)),
        PythonEnvironment("boto3_1_34", "boto3 of 2024", ("boto3==1.34.162",)),
        PythonEnvironment("aioboto3", "aioboto3", ("aioboto3==15.5.0",)),
        PythonEnvironment("awscli", "AWS CLI", ("awscli==1.46.3",)),
        PythonEnvironment(
            "anthropic", "Anthropic SDK for Python", ("anthropic[bedrock]==2.12.0",)
        ),
        PythonEnvironment(
            "langchain", "LangChain (langchain-aws)", ("langchain-aws==1.9.1", "boto3==1.44.5")
        ),
        PythonEnvironment(
            "strands", "Strands Agents", ("strands-agents==1.62.0", "boto3==1.44.5")
        ),
        PythonEnvironment(
            "pydantic_ai",
            "Pydantic AI",
            ("pydantic-ai-slim[bedrock]==2.68.0", "boto3==1.44.5"),
        ),
        PythonEnvironment(
            "llama_index",
            "LlamaIndex",
            ("llama-index-llms-bedrock-converse==0.15.5", "boto3==1.44.5"),
        ),
        PythonEnvironment("instructor", "Instructor", ("instructor==1.17.0", "boto3==1.44.5")),
        PythonEnvironment(
            "smithy", "AWS SDK for Python (smithy)", ("aws-sdk-bedrock-runtime==0.12.0",), (3, 12)
        ),
        MachineEnvironment("curl", "curl"),
        NodeEnvironment("js_aws_sdk", "AWS SDK for JavaScript"),
        NodeEnvironment("js_ai_sdk", "AI SDK (@ai-sdk/amazon-bedrock)"),
        NodeEnvironment("js_anthropic", "Anthropic SDK for JavaScript"),
        NodeEnvironment("js_langchain", "LangChain for JavaScript (@langchain/aws)"),
        NodeEnvironment("js_claude_code", "Claude Code"),
    )
}
"""By name; those of Node have names that begin with ``js_``."""


@cache
def _python(lowest: tuple[int, int]) -> str | None:
    """An interpreter of this version or a newer one, this one if it will do."""
    if sys.version_info >= lowest:
        return sys.executable
    newer = [f"python{lowest[0]}.{minor}" for minor in range(lowest[1], lowest[1] + 5)]
    found = [path for path in map(shutil.which, newer) if path is not None]
    # pyenv's shims are on the path and do not run unless they are asked for.
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found += [str(path) for name in newer for path in sorted(pyenv.glob(f"*/bin/{name}"))]
    for path in found:
        if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
            return path
    return None


def _script(program: Path) -> list[str]:
    runner = [str(program.with_name("shell.py"))] if program.suffix == ".sh" else []
    return [*runner, str(program)]


def _bare(requirement: str) -> str:
    return requirement.partition("==")[0].partition("[")[0]


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")


def _run(command: Sequence[str], folder: Path | None = None) -> None:
    subprocess.run(command, cwd=folder, check=True, stdin=subprocess.DEVNULL)


def main(names: Sequence[str], say: Callable[[str], None] = print) -> bool:
    """
    Make environments.

    :param names: of :data:`ENVIRONMENTS`; none for all.
    :returns: whether all are there.
    """
    whole = True
    for name in names or ENVIRONMENTS:
        environment = ENVIRONMENTS[name]
        lacks = environment.lacks()
        if lacks is not None:
            say(f"{environment.title}: there is no {lacks} on this machine")
            whole = False
        elif not environment.is_made():
            say(f"{environment.title}: installing")
            try:
                environment.make()
            except subprocess.CalledProcessError as error:
                say(f"{environment.title}: cannot be installed: {error}")
                whole = False
    return whole


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1:]) else 1)
