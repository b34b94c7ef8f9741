"""
``twistd bedrockproxy``: what the command line says, and the service it makes.
"""

from __future__ import annotations

import os
import sys
from typing import Any
from urllib.parse import urlsplit

from twisted.application.service import IService
from twisted.logger import LogLevel
from twisted.python import usage

from txbedrock import __version__
from txbedrock.config import Settings, default_settings, load
from txbedrock.config.summary import summary
from txbedrock.errors import ConfigError
from txbedrock.inbound.tls import BadCertificate
from txbedrock.listeners import BadListener, Listener
from txbedrock.logs import LazyFileObserver, Redaction
from txbedrock.outbound.recipe import in_words
from txbedrock.wiring import build

__all__ = ["Options", "makeService"]

_DEFAULT_PORT = "4000"

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
        "Where to listen, as an endpoint string of Twisted's: tcp:4000, "
        "tcp:4000:interface=127.0.0.1, unix:/run/txbedrock.sock. With TLS: "
        "tls:4443:cert=cert.pem:key=key.pem (read again at SIGHUP), with clientCA=ca.pem for "
        "clients' certificates and clientAuth=optional if they need none; a folder of several: "
        "tls:FOLDER:port=4443. haproxy: before any of them expects a PROXY header of "
        "trusted_proxies. May be given several times. [default: tcp:4000, and without a "
        "master key tcp:4000:interface=127.0.0.1]"
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
        self.listen = [Listener.parse(endpoint).description for endpoint in self.listen]

    def _problems_of(self, endpoint: str) -> list[str]:
        try:
            listener = Listener.parse(endpoint)
            listener.check()
        except BadCertificate as error:
            return [f"--listen {endpoint}: {error}"]
        except Exception as error:
            return [f"--listen {endpoint}: {_explained(error)}"]
        if not (self.settings.master_key or self.settings.allow_no_key or listener.local):
            return [
                f"--listen {endpoint}: without a master key the gateway listens on this machine "
                "only (interface=127.0.0.1). Set general_settings.master_key or the environment "
                "variable TXBEDROCK_MASTER_KEY, or general_settings.allow_no_key: true to let "
                "everyone in."
            ]
        return []


def _explained(error: Exception) -> str:
    """Why an endpoint string cannot be used."""
    said = str(error)
    if isinstance(error, BadListener):
        return said
    unknown = said.lower() if said.startswith("Unknown") else "not an endpoint"
    return (
        f"{unknown}, expected one such as tcp:4000, tcp:4000:interface=127.0.0.1 or "
        r"tcp6:4000:interface=\:\:1"
    )


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
