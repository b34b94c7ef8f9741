"""
The house stays as it is laid: who may import whom, read from the source.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "txbedrock"

# The rooms beside each other: they meet by constructor argument, never by import.
ROOMS = ("inbound", "outbound", "storage")

# What the core may import besides the standard library, errors and itself.
CORE_LIBRARIES: tuple[str, ...] = ("msgspec",)


def modules() -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """All modules that a module imports, anywhere in it, relative ones by full name."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in known else base)
    return found


def at_module_level(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported."""
    for node in nodes:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for field in ("body", "orelse", "finalbody"):
            yield from at_module_level(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from at_module_level(handler.body)


def within(name: str, *packages: str) -> bool:
    """Is a module one of these, or inside of one?"""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


class ImportTests(SynchronousTestCase):
    """Imports point one way."""

    def setUp(self) -> None:
        self.modules = modules()
        self.imports = {
            name: imported(name, path, self.modules) for name, path in self.modules.items()
        }
        self.assertGreater(len(self.modules), 30)

    def assert_only(self, room: str, *allowed: str, standard: bool = False) -> None:
        """What a room imports of the package, or of all the world, is allowed to it."""
        package = f"txbedrock.{room}"
        for name, imports in self.imports.items():
            if not within(name, package):
                continue
            for other in imports:
                if within(other, package, *(f"txbedrock.{one}" for one in allowed)):
                    continue
                if other == "txbedrock" and "" in allowed:
                    continue
                if within(other, "txbedrock"):
                    self.fail(f"{name} imports {other}")
                first = other.partition(".")[0]
                if standard and first not in (*sys.stdlib_module_names, *CORE_LIBRARIES):
                    self.fail(f"{name} imports {other}")

    def test_sees_imports(self) -> None:
        """This test sees what it is to judge."""
        self.assertIn("txbedrock.errors", self.imports["txbedrock.core.replies"])
        self.assertIn("txbedrock.inbound.request", self.imports["txbedrock.inbound.proxy"])
        self.assertIn("twisted.web", self.imports["txbedrock.inbound.site"])
        self.assertIn("txbedrock.data", self.imports["txbedrock.wiring"])

    def test_core(self) -> None:
        """The core is pure: only the standard library, errors and itself."""
        self.assert_only("core", "errors", standard=True)
        impure = ("socket", "threading", "secrets", "subprocess", "asyncio", "logging")
        clocks = ("time.time", "time.monotonic", "time.perf_counter", "datetime.now")
        for name, imports in self.imports.items():
            if not within(name, "txbedrock.core"):
                continue
            self.assertEqual([one for one in imports if within(one, *impure)], [], name)
            for node in ast.walk(tree(self.modules[name])):
                if isinstance(node, ast.Attribute):
                    self.assertNotIn(ast.unparse(node), clocks, name)
                    if ast.unparse(node.value) == "random":
                        # Chance is given to it, as the time is.
                        self.assertEqual(node.attr, "Random", name)
                if isinstance(node, ast.Call):
                    self.assertNotEqual(ast.unparse(node.func), "open", name)

    def test_errors(self) -> None:
        """Errors are nobody's: they import nothing of the package."""
        self.assert_only("errors", standard=True)

    def test_rooms(self) -> None:
        """Inbound, outbound and storage never import each other."""
        for room in ROOMS:
            self.assert_only(room, "core", "errors", "interfaces", "writing", "")

    def test_exchange(self) -> None:
        """The exchange knows neither HTTP's library nor a room."""
        self.assert_only(
            "exchange",
            "accounting",
            "admission",
            "core",
            "errors",
            "failover",
            "hedging",
            "interfaces",
            "signer",
            "takers",
        )
        self.assert_only("failover", "core", "errors", "interfaces")
        self.assert_only("probing", "core", "interfaces")
        self.assert_only("hedging")
        self.assert_only("admission", "accounting", "core", "errors", "interfaces")
        for name in self.imports["txbedrock.exchange"]:
            self.assertFalse(within(name, "twisted.web", "treq", "botocore"), name)

    def test_interfaces(self) -> None:
        """What the rooms meet in does not know them."""
        self.assert_only("interfaces", "core", "errors")

    def test_sandbox(self) -> None:
        """The sandbox is a second opinion: of the gateway it uses the core only."""
        self.assert_only("sandbox", "core", "errors", "data", "listening", "")
        self.assert_only("listening")

    def test_listeners(self) -> None:
        """Listeners know what is spoken on a connection, and nothing of what is asked there."""
        self.assert_only(
            "listeners", "accepting", "core", "inbound.haproxy", "inbound.tls", "listening"
        )
        self.assert_only("accepting", "core", "inbound.bounds")
        self.assert_only("inbound.haproxy", "core")
        self.assert_only("inbound.tls", "core", "writing")
        self.assert_only("devcert")

    def test_nothing_imports_the_top(self) -> None:
        """Nothing imports the command line, only it the wiring, only that the service."""
        for name, imports in self.imports.items():
            self.assertNotIn("txbedrock.tap", imports, name)
            self.assertNotIn("txbedrock.sandbox.tap", imports, name)
            if name != "txbedrock.tap":
                self.assertNotIn("txbedrock.wiring", imports, name)
            if name != "txbedrock.wiring":
                self.assertNotIn("txbedrock.service", imports, name)

    def test_tests_stay_outside(self) -> None:
        """Nothing that is shipped needs the tests or what only they need."""
        for name, imports in self.imports.items():
            for other in imports:
                self.assertFalse(within(other, "tests", "boto3", "trustme", "hypothesis"), name)

    def test_reactor(self) -> None:
        """No import installs a reactor: each may be chosen with twistd --reactor."""
        for name, path in self.modules.items():
            for node in at_module_level(tree(path).body):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                self.assertNotIn("twisted.internet.reactor", names, name)


class ModuleTests(SynchronousTestCase):
    """Each module says what it is for."""

    def test_docstrings(self) -> None:
        """Every module has a docstring."""
        for name, path in modules().items():
            self.assertTrue(ast.get_docstring(tree(path)), name)

    def test_all(self) -> None:
        """Every module has __all__, sorted out by hand and true."""
        for name, path in modules().items():
            body = tree(path).body
            if path.name == "__init__.py" and len(body) == 1:
                continue  # Nothing but a docstring.
            listed = [
                ast.literal_eval(node.value)
                for node in body
                if isinstance(node, ast.Assign)
                and any(isinstance(to, ast.Name) and to.id == "__all__" for to in node.targets)
            ]
            self.assertEqual(len(listed), 1, f"{name} has no __all__")
            defined = {found for node in at_module_level(body) for found in self.names(node)}
            self.assertEqual(set(listed[0]) - defined, set(), f"{name} lists what it has not")
            self.assertEqual([one for one in listed[0] if one.startswith("_")
                              and one != "__version__"], [], name)  # fmt: skip

    def names(self, node: ast.stmt) -> Iterator[str]:
        """What a statement defines."""
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                yield from (one.id for one in ast.walk(target) if isinstance(one, ast.Name))
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)

    def test_plugin_folders(self) -> None:
        """twisted/ stays Twisted's own package: an __init__.py would hide all of Twisted."""
        self.assertEqual(list((ROOT / "twisted").rglob("__init__.py")), [])
        plugins = [path.name for path in (ROOT / "twisted").rglob("*.py")]
        self.assertEqual(plugins, ["txbedrock_plugin.py"])

    def test_botocore_is_for_those_who_need_it(self) -> None:
        """It takes 8 MB: a gateway with keys of its own starts without it."""
        code = "import sys, txbedrock.tap, txbedrock.wiring; sys.exit('botocore' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False)
        self.assertEqual(done.returncode, 0)

    def test_plugin_is_light(self) -> None:
        """twistd loads every plugin for every program: ours imports nothing of ours."""
        path = ROOT / "twisted" / "plugins" / "txbedrock_plugin.py"
        self.assertEqual(
            imported("twisted.plugins.txbedrock_plugin", path, modules()),
            {"twisted.application.service"},
        )
