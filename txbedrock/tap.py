"""
``twistd bedrockproxy``: what the command line says, and the service it makes.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import Any
from urllib.parse import urlsplit

from OpenSSL import SSL, crypto
from twisted.application.service import IService
from twisted.internet.endpoints import serverFromString
from twisted.logger import LogLevel
from twisted.python import usage

from txbedrock import __version__
from txbedrock.config import Settings, default_settings, load
from txbedrock.config.summary import summary
from txbedrock.errors import ConfigError
from txbedrock.logs import LazyFileObserver, Redaction
from txbedrock.outbound.chain import in_words
from txbedrock.wiring import build

__all__ = ["Options", "makeService"]

_DEFAULT_PORT = "4000"

# The address families whose endpoint strings have an interface.
_NETWORK = ("tcp", "tcp4", "tcp6", "ssl", "tls")
_PATHS = ("privateKey", "certKey", "extraCertChain", "dhParameters", "address", "path")
_LOOPBACK = re.compile(r"127\.\d+\.\d+\.\d+|::1|localhost", re.IGNORECASE)


_LOG_FORMATS = ["text", "json"]
_LOG_LEVELS = ["debug", "info", "warn", "error"]


class Options(usage.Options):
    """Command line of the gateway."""

    synopsis = "[options]"
    longdesc = (
        "A gateway for Amazon Bedrock: clients change their endpoint to "
        "http://HOST:4000/bedrock and their credentials to one key."
    )

    optParameters = [
        ["config", "c", None, "The configuration: a LiteLLM config.yaml works as it is. "
         "Without one, and without CONFIG_FILE_PATH, all comes from the environment."],
        ["host", None, None, "Address to listen on, with --port; short for --listen."],
        ["port", "p", None, "Port to listen on (default 4000); short for --listen."],
        ["log-format", None, None, "text, or json: one object a line. [default: text, and "
         "under twist what twist itself would write]"],
        ["log-level", None, None, "debug, info, warn or error. [default: info]"],
    ]  # fmt: skip
    optFlags = [
        ["check", None, "Check the configuration, print what it means, and exit with 0 or 1."],
    ]
    compData = usage.Completions(
        optActions={
            "config": usage.CompleteFiles("*.yaml"),
            "log-format": usage.CompleteList(_LOG_FORMATS),
            "log-level": usage.CompleteList(_LOG_LEVELS),
        }
    )

    settings: Settings
    listen: list[str]

    def __init__(self) -> None:
        usage.Options.__init__(self)
        self.listen = []

    def opt_listen(self, endpoint: str) -> None:
        self.listen.append(endpoint)

    # usage prints a docstring as it is, line breaks included.
    opt_listen.__doc__ = (
        "Where to listen, as a Twisted endpoint string: tcp:4000, "
        "tcp:4000:interface=127.0.0.1, ssl:4443:privateKey=key.pem:certKey=cert.pem, "
        "unix:/run/txbedrock.sock. May be given several times. [default: tcp:4000, and "
        "without a master key tcp:4000:interface=127.0.0.1]"
    )

    opt_l = opt_listen

    def opt_version(self) -> None:
        """Print the version and exit."""
        print(f"txbedrock {__version__}")
        raise SystemExit(0)

    def parseArgs(self, *extra: str) -> None:
        if extra:
            raise usage.UsageError(f"not an option: {' '.join(extra)}")

    def postOptions(self) -> None:
        if self["log-format"] not in (None, *_LOG_FORMATS):
            raise usage.UsageError("--log-format must be text or json")
        if self["log-level"] not in (None, *_LOG_LEVELS):
            raise usage.UsageError("--log-level must be debug, info, warn or error")
        parent = _parent(self)
        if parent.get("logfile") == "-" and not parent.get("nodaemon"):
            raise usage.UsageError("a daemon cannot log to standard output; use twistd -n")
        path = self["config"] or os.environ.get("CONFIG_FILE_PATH")
        if path:
            # twistd changes to another directory before the service starts.
            self["config"] = path = os.path.abspath(path)
        try:
            self.settings = load(path, os.environ) if path else default_settings(os.environ)
            os.environ.update(self.settings.environment)
            self._decide_where_to_listen()
        except ConfigError as error:
            for problem in error.problems:
                print(problem, file=sys.stderr)
            count = len(error.problems)
            print(
                f"bedrockproxy: {count} problem{'s' if count > 1 else ''}, not started",
                file=sys.stderr,
            )
            raise SystemExit(1) from None
        if self["check"]:
            print(summary(self.settings, lambda spec: in_words(spec, os.environ)).rstrip())
            raise SystemExit(0)

    def _decide_where_to_listen(self) -> None:
        host, port = self["host"], self["port"]
        if (host or port) and self.listen:
            raise usage.UsageError("use either --listen or --host and --port")
        if port is not None and not (port.isascii() and port.isdigit() and int(port) < 65536):
            raise usage.UsageError(f"--port must be a number up to 65535, not {port}")
        if host or port:
            host = (host or "").removeprefix("[").removesuffix("]")
            interface = ":interface=" + host.replace(":", r"\:") if host else ""
            kind = "tcp6" if ":" in host else "tcp"
            self.listen = [f"{kind}:{port or _DEFAULT_PORT}{interface}"]
        elif not self.listen:
            # Without a key only this machine is let in.
            open_to_all = self.settings.master_key or self.settings.allow_no_key
            local = "" if open_to_all else ":interface=127.0.0.1"
            self.listen = [f"tcp:{_DEFAULT_PORT}{local}"]
        problems = []
        for endpoint in self.listen:
            problems += self._problems_of(endpoint)
        if problems:
            raise ConfigError(problems)
        self.listen = [_absolute(endpoint) for endpoint in self.listen]

    def _problems_of(self, endpoint: str) -> list[str]:
        try:
            serverFromString(_NoReactor(), _absolute(endpoint))
            _check_certificates(_absolute(endpoint))
        except Exception as error:
            return [f"--listen {endpoint}: {_explained(error)}"]
        if not (self.settings.master_key or self.settings.allow_no_key or _is_local(endpoint)):
            return [
                f"--listen {endpoint}: without a master key the gateway listens on this machine "
                "only (interface=127.0.0.1). Set general_settings.master_key or the environment "
                "variable TXBEDROCK_MASTER_KEY, or general_settings.allow_no_key: true to let "
                "everyone in."
            ]
        return []


class _NoReactor:
    """Parsing an endpoint string needs a reactor only to keep it."""


def _explained(error: Exception) -> str:
    """Why an endpoint string cannot be used."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, (SSL.Error, crypto.Error)):
        return "expected a private key and the certificate that belongs to it, in PEM format"
    unknown = str(error).lower() if str(error).startswith("Unknown") else "not an endpoint"
    return (
        f"{unknown}, expected one such as tcp:4000, tcp:4000:interface=127.0.0.1 or "
        r"tcp6:4000:interface=\:\:1"
    )


def _check_certificates(endpoint: str) -> None:
    """
    Twisted's ``tls:`` takes a folder as it is, and refuses clients later.

    :raises OSError: there is no PEM file in it.
    """
    fields = _fields(endpoint)
    if fields[0] != "tls":
        return
    folder = next((field[5:] for field in fields if field.startswith("path=")), fields[1])
    if not any(name.endswith(".pem") for name in os.listdir(folder)):
        raise FileNotFoundError(errno.ENOENT, "No certificate (*.pem) in this folder", folder)


def _fields(endpoint: str) -> list[str]:
    """The colon-separated parts; an escaped colon stays in its part."""
    return [part.replace("\0", r"\:") for part in endpoint.replace(r"\:", "\0").split(":")]


def _is_local(endpoint: str) -> bool:
    """Can only this machine reach it?"""
    fields = _fields(endpoint)
    while fields and fields[0] == "haproxy":
        fields.pop(0)
    if fields and fields[0] == "unix":
        return True
    if not fields or fields[0] not in _NETWORK:
        return False
    # Of several, Twisted takes the last.
    interfaces = [field[10:] for field in fields if field.startswith("interface=")]
    return bool(interfaces) and bool(_LOOPBACK.fullmatch(interfaces[-1].replace(r"\:", ":")))


def _absolute(endpoint: str) -> str:
    """The same endpoint string with absolute paths: twistd may change its directory."""
    fields = _fields(endpoint)
    kind = 0
    while kind < len(fields) and fields[kind] == "haproxy":
        kind += 1
    for index, field in enumerate(fields):
        name, equals, value = field.partition("=")
        if equals and name in _PATHS:
            fields[index] = f"{name}={os.path.abspath(value)}"
        elif index == kind + 1 and fields[kind] in ("unix", "tls") and not equals:
            fields[index] = os.path.abspath(field)
    return ":".join(fields)


def _parent(options: Options) -> Any:
    """The options of twistd or twist itself."""
    return getattr(options, "parent", None) or {}


def _log_observer(options: Options) -> LazyFileObserver | None:
    """
    Ours, in the place that twistd's or twist's own would write to.

    :returns: None when it is not twistd that logs to a file.
    """
    parent = _parent(options)
    if parent.get("logger") or parent.get("syslog"):
        return None
    out: Any = parent.get("logfile") or ""
    if "fileLogObserverFactory" in parent:
        out = parent["logFile"]
    elif not out and not parent.get("nodaemon", True):
        out = os.path.abspath("twistd.log")
    elif out in ("", "-"):
        # Taken now, since twistd makes the log of what is written there.
        out = sys.stdout
    else:
        out = os.path.abspath(out)
    observer = LazyFileObserver(
        out,
        as_json=(options["log-format"] or parent.get("logFormat")) == "json",
        redact=Redaction(_secrets(options.settings)),
        level=LogLevel.lookupByName(
            options["log-level"] or parent.get("logLevel", LogLevel.info).name
        ),
    )
    if "fileLogObserverFactory" in parent:
        # twist asks no application what logs. It asks its options, once the
        # service has started.
        parent["fileLogObserverFactory"] = lambda _: observer
        parent["logLevel"] = LogLevel.debug
        return None
    return observer


_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_BEARER_TOKEN_BEDROCK")


def _secrets(settings: Settings) -> set[str]:
    """Every secret that the configuration and the environment hold."""
    found = {
        settings.master_key,
        settings.access.salt,
        *(os.environ.get(name) for name in _SECRET_VARIABLES),
    }
    if settings.database_url is not None:
        found.add(urlsplit(settings.database_url).password)
    deployments = [*settings.deployments]
    if settings.default is not None:
        deployments.append(settings.default)
    for deployment in deployments:
        spec = deployment.credentials
        found |= {spec.api_key, spec.secret_access_key, spec.session_token}
        found |= {spec.external_id, spec.web_identity_token}
    return {secret for secret in found if secret}


def makeService(options: Options) -> IService:
    """Build the gateway that the options describe."""
    from twisted.internet import reactor

    return build(
        options.settings,
        reactor,
        options.listen,
        os.environ,
        observer=_log_observer(options),
        program=True,
    )
