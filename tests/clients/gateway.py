"""
The gateway and the sandbox behind it, as their users run them, for every client.

Both are ``twistd`` children on ports of their own, started once a run by :func:`running`
and ended with it. The names below are all that a client program needs to know; what
goes wrong goes wrong by the name of a model, so no test has to prepare anything.
"""

from __future__ import annotations

import atexit
import base64
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import trustme

from benchmarks.processes import clean_environment
from tests.clients.programs.models import (
    BROKEN,
    CLAUDE,
    COHERE_EMBEDDINGS,
    EMBEDDINGS,
    NOVA,
    REFUSED,
    SLOW,
    THROTTLED,
)

__all__ = [
    "BROKEN_AFTER",
    "BROKEN_MESSAGE",
    "REFUSED_MESSAGE",
    "REGION",
    "SLOW_MS",
    "THROTTLED_MESSAGE",
    "Gateway",
    "running",
]

REGION = "us-west-2"
_MASTER_KEY = "sk-master-of-the-clients"

REFUSED_MESSAGE = "The sandbox was asked to refuse this."
THROTTLED_MESSAGE = "Too many tokens, please wait before trying again."
BROKEN_MESSAGE = "The model broke down in the middle."
BROKEN_AFTER = 4
SLOW_MS = 100
"""Between two events."""

_MODELS = {
    CLAUDE: "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
    NOVA: "us.amazon.nova-lite-v1:0",
    EMBEDDINGS: "amazon.titan-embed-text-v2:0",
    COHERE_EMBEDDINGS: "cohere.embed-english-v3",
    REFUSED: REFUSED,
    THROTTLED: THROTTLED,
    BROKEN: BROKEN,
    SLOW: SLOW,
}

_FAULTS = (
    {"kind": "error", "code": "ValidationException", "message": REFUSED_MESSAGE, "model": REFUSED},
    {"kind": "throttle", "message": THROTTLED_MESSAGE, "model": THROTTLED},
    {
        "kind": "exception",
        "code": "modelStreamErrorException",
        "message": BROKEN_MESSAGE,
        "after": BROKEN_AFTER,
        "model": BROKEN,
    },
    {"kind": "drip", "interval_ms": SLOW_MS, "model": SLOW},
)

_CONFIG = {
    # JSON is YAML.
    "model_list": [
        {
            "model_name": name,
            "litellm_params": {"model": f"bedrock/{model}", "aws_region_name": REGION},
        }
        for name, model in _MODELS.items()
    ],
    # What Bedrock throttles is throttled each time, and said as Bedrock says it.
    "router_settings": {"num_retries": 0, "disable_cooldowns": True},
    "general_settings": {"master_key": _MASTER_KEY, "shutdown_grace": "1s"},
}

_ROOT = Path(__file__).resolve().parents[2]
_TWISTD = Path(sys.executable).with_name("twistd")
_SECRET = "the-secret-of-the-sandbox"
_STARTING_S = 60.0
_STOPPING_S = 10.0
_CLIENTS_OWN = ("ANTHROPIC_", "CLAUDE", "CURL_", "NODE_", "PYTHON")
"""What else clients go by."""

_open = build_opener(ProxyHandler({})).open


class Gateway:
    """
    A gateway that is ready, and the sandbox that it calls.

    :raises AssertionError: if one of them does not start; what it said is in it.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="txbedrock-clients-"))
        self._children: list[subprocess.Popen[bytes]] = []
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        local = "tcp:0:interface=127.0.0.1"
        log = self._spawn(
            "bedrocksandbox", "--listen", local, "--secret-access-key", _SECRET, environ={}
        )
        (port,) = self._ports(log, r"no model, is at [^\s\"]*:(\d+)", 1)
        self._sandbox = f"http://127.0.0.1:{port}"
        self._fetch(
            f"{self._sandbox}/_sandbox/faults", [{**each, "times": None} for each in _FAULTS]
        )

        self.ca_file = str(self.folder / "ca.pem")
        """The certificate authority to trust for :attr:`https`."""

        tls = "ssl:0:interface=127.0.0.1" + self._certificate()
        config = self.folder / "config.yaml"
        config.write_text(json.dumps(_CONFIG))
        services = ("", "_AGENT", "_AGENT_RUNTIME", "_RUNTIME")
        log = self._spawn(
            "bedrockproxy",
            *("--config", str(config), "--listen", local, "--listen", tls),
            environ={
                "AWS_REGION": REGION,
                "AWS_ACCESS_KEY_ID": "sandbox",
                "AWS_SECRET_ACCESS_KEY": _SECRET,
                **{f"AWS_ENDPOINT_URL_BEDROCK{name}": self._sandbox for name in services},
            },
        )
        plain, secure = self._ports(log, r"ready on [^\s\"]*:(\d+)", 2)
        self.http = f"http://127.0.0.1:{plain}"
        """Base URL; Bedrock's paths are below ``/bedrock``."""

        self.https = f"https://127.0.0.1:{secure}"

        wanted = {
            "aws_credentials": True,
            # A new key may infer and read; agents act.
            "operations": ["default", "bedrock-agent-runtime:InvokeAgent"],
        }
        issued = self._fetch(f"{self.http}/key/generate", wanted, _MASTER_KEY)
        self.key: str = issued["key"]
        """A virtual key: for bearer tokens, and as an access key id with any secret."""

        self.access_key_id: str = issued["aws_access_key_id"]
        """With :attr:`secret_access_key` the same key as a pair, whose signature is verified."""

        self.secret_access_key: str = issued["aws_secret_access_key"]

    def _certificate(self) -> str:
        """:returns: for the endpoint string; the names are 127.0.0.1 and localhost."""
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1", "localhost")
        authority.cert_pem.write_to_path(self.ca_file)
        key, certificate = self.folder / "key.pem", self.folder / "certificate.pem"
        issued.private_key_pem.write_to_path(str(key))
        issued.cert_chain_pems[0].write_to_path(str(certificate))
        return f":privateKey={key}:certKey={certificate}"

    def _spawn(self, plugin: str, *options: str, environ: Mapping[str, str]) -> Path:
        """:returns: the file that it logs to."""
        log = self.folder / f"{plugin}.log"
        command = [sys.executable, str(_TWISTD), "-n", "--pidfile=", plugin, *options]
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**clean_environment(*_CLIENTS_OWN), "PYTHONPATH": str(_ROOT), **environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._children.append(child)
        return log

    def _ports(self, log: Path, pattern: str, count: int) -> list[int]:
        until = time.monotonic() + _STARTING_S
        while len(found := re.findall(pattern, log.read_text("utf-8", "replace"))) < count:
            ended = self._children[-1].poll() is not None
            assert not ended and time.monotonic() < until, log.read_text("utf-8", "replace")
            time.sleep(0.05)
        return [int(port) for port in found]

    def _fetch(self, url: str, body: Any = None, key: str = "") -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        with _open(Request(url, data, headers), timeout=30.0) as answer:
            return json.load(answer)

    def log(self) -> str:
        """What the gateway has logged."""
        return (self.folder / "bedrockproxy.log").read_text("utf-8", "replace")

    def requests(self) -> list[dict[str, Any]]:
        """
        What the sandbox got so far, the oldest first: ``operation``, ``model``, ``headers``
        (list of name, value), ``body`` (bytes) and the rest of
        :class:`txbedrock.sandbox.service.Recorded`.
        """
        recorded = self._fetch(f"{self._sandbox}/_sandbox/requests")["requests"]
        return [{**each, "body": base64.b64decode(each["body"])} for each in recorded]

    def environment(self) -> dict[str, str]:
        """
        For a client's process: where the gateway is, its keys, and whom to trust.

        ``URL`` (https), ``PLAIN_URL``, ``KEY``, ``ACCESS_KEY_ID``, ``SECRET_ACCESS_KEY``,
        ``CA_FILE``; the latter also where the usual clients look for it.
        """
        return clean_environment(*_CLIENTS_OWN) | {
            "URL": self.https,
            "PLAIN_URL": self.http,
            "KEY": self.key,
            "ACCESS_KEY_ID": self.access_key_id,
            "SECRET_ACCESS_KEY": self.secret_access_key,
            "CA_FILE": self.ca_file,
            "AWS_CA_BUNDLE": self.ca_file,
            "CURL_CA_BUNDLE": self.ca_file,
            "NODE_EXTRA_CA_CERTS": self.ca_file,
            "SSL_CERT_FILE": self.ca_file,
            "HOME": str(self.folder),
        }

    def stop(self) -> None:
        """End both, and take what they wrote away."""
        for child in reversed(self._children):
            child.terminate()
        for child in reversed(self._children):
            try:
                child.wait(_STOPPING_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def running() -> Gateway:
    """The gateway of this run; it is stopped when Python ends."""
    gateway = Gateway()
    atexit.register(gateway.stop)
    return gateway
