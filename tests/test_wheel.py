"""
What users install: the wheel, in an environment where the checkout is not.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.py", "pyproject.toml", "README.md", "txbedrock", "twisted")

# What pip needs to build without a network.
TOOLS = ("pip", "setuptools", "wheel")


class WheelTests(SynchronousTestCase):
    """A wheel is built, installed and run."""

    if any(importlib.util.find_spec(name) is None for name in TOOLS):
        skip = f"needs {', '.join(TOOLS)}"

    def run_program(self, *arguments: str | Path, status: int = 0) -> str:
        """
        Run Python's isolated self: no path of the checkout, no network.

        :returns: what it wrote.
        """
        environ = {
            name: value
            for name, value in os.environ.items()
            if name not in ("PYTHONPATH", "PYTHONHOME", "CONFIG_FILE_PATH")
            and not name.startswith(("AWS_", "PIP_"))
        }
        done = subprocess.run(
            [str(argument) for argument in arguments],
            cwd=self.elsewhere,
            env={**environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=120,
        )
        self.assertEqual(done.returncode, status, done.stdout)
        return done.stdout

    def build(self) -> Path:
        """The wheel, built from a copy so that nothing is left in the checkout."""
        source = self.folder / "source"
        source.mkdir()
        ignore = shutil.ignore_patterns("__pycache__", "dropin.cache", "*.egg-info")
        for name in SOURCES:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, ignore=ignore)
            else:
                shutil.copy(ROOT / name, source / name)
        pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps")
        self.run_program(*pip, "--no-build-isolation", "-w", self.folder / "dist", source)
        [wheel] = (self.folder / "dist").glob("txbedrock-*.whl")
        return wheel

    def install(self, wheel: Path) -> Path:
        """
        Install it, and nothing else, in a new environment that sees the
        dependencies of this one.

        :returns: its Python.
        """
        environment = self.folder / "environment"
        self.run_program(sys.executable, "-m", "venv", "--without-pip", environment)
        python = environment / "bin" / "python"
        pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet")
        self.run_program(*pip, "--no-deps", wheel)
        [packages] = environment.glob("lib/python*/site-packages")
        # Only what is in these folders: their own .pth files, which lead to the
        # checkout, are not read.
        paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in paths))
        return python

    def test_wheel(self) -> None:
        """It holds all of it; twistd finds both programs from any folder and they run."""
        self.folder = Path(self.mktemp()).resolve()
        self.elsewhere = self.folder / "elsewhere"
        self.elsewhere.mkdir(parents=True)
        wheel = self.build()
        self.assert_complete(wheel)
        python = self.install(wheel)
        where = self.run_program(python, "-c", "import txbedrock; print(txbedrock.__file__)")
        self.assertIn(str(self.folder), where)
        twistd = (python, "-c", "from twisted.scripts.twistd import run; run()")
        said = self.run_program(*twistd, "--help")
        self.assertRegex(said, r"\n +bedrockproxy +\w")
        self.assertRegex(said, r"\n +bedrocksandbox +\w")
        self.assertIn("Direct routes", self.run_program(*twistd, "bedrockproxy", "--check"))
        self.assertIn("--listen", self.run_program(*twistd, "bedrocksandbox", "--help"))
        load = "from txbedrock.data import load; print(len(load('operations')))"
        self.assertGreater(int(self.run_program(python, "-c", load)), 0)
        self.assertEqual(list(self.elsewhere.iterdir()), [])

    def assert_complete(self, wheel: Path) -> None:
        """Every module and data file of the package, the plugin, and nothing else."""
        with zipfile.ZipFile(wheel) as archive:
            found = {name for name in archive.namelist() if ".dist-info/" not in name}
        wanted = {
            str(path.relative_to(ROOT))
            for path in (ROOT / "txbedrock").rglob("*")
            if path.suffix in (".py", ".json", ".sql", ".typed")
        }
        self.assertIn("txbedrock/py.typed", wanted)
        self.assertIn("txbedrock/data/operations.json", wanted)
        self.assertEqual(found, wanted | {"twisted/plugins/txbedrock_plugin.py"})
