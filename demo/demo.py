"""
The gateway at work, on this machine alone: ``make demo``.

Starts the sandbox (a stand-in for Bedrock, no model) and the gateway in front of
it, both as ``twistd`` runs them, calls the gateway with boto3 and shows what
comes back and what was logged. It checks what it shows, and ends with 0 only if
all of it was right.

A file of its own, to be copied: it needs txbedrock and boto3, and nothing beside it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import boto3

from txbedrock import devcert

KEY = "sk-demo-1234"
SECRET = "sandbox-secret"
REGION = "us-west-2"
MODEL = "my-model"
TLS = "tls"
QUESTION = "What are you, and who signs my requests?"

CONFIG = f"""\
model_list:
  - model_name: {MODEL}
    litellm_params:
      model: bedrock/us.amazon.nova-lite-v1:0
      aws_region_name: {REGION}
general_settings:
  master_key: os.environ/DEMO_KEY
"""

STARTING_S = 20.0
STOPPING_S = 10.0
EVERYTHING_S = 90
DRIP_S = 0.12
WIDTH = min(110, max(60, shutil.get_terminal_size((110, 24)).columns - 1))

# What this machine's owner has set is not what the demo is about.
_FOREIGN = ("AWS_", "BOTO", "LITELLM_", "TXBEDROCK_", "DATABASE_URL", "SSL_")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")

_open = build_opener(ProxyHandler({})).open


class Failed(Exception):
    """The demo did not show what it should have shown."""


class TookTooLong(BaseException):
    """Not an :class:`Exception`, which boto3 would take for one of the network's."""


def check(right: bool, what: str) -> None:
    if not right:
        raise Failed(what)


# What is printed


def say(text: str = "", end: str = "\n") -> None:
    print(text, end=end, flush=True)


def heading(number: int, text: str) -> None:
    say(f"\n{number}. {text}")


def wrapped(text: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent="   ", subsequent_indent="     ", break_on_hyphens=False
    )


# Sandbox and gateway


class Child:
    """
    A ``twistd`` of our own.

    :param options: what follows the plugin's name.
    """

    def __init__(
        self, name: str, options: list[str], folder: Path, environ: Mapping[str, str]
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.output = folder / f"{name}.out"
        twistd = Path(sys.executable).with_name("twistd")
        command = ["-n", "--pidfile=", f"--logfile={self.log}", name, *options]
        say(f"   twistd -n {shlex.join([name, *options])}")
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(twistd), *command],
                cwd=folder,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def logged(self) -> str:
        return self.log.read_text("utf-8") if self.log.exists() else ""

    def await_answer(self, url: str) -> None:
        """
        Wait until a GET is answered with 200.

        :raises Failed: if it has ended, or takes too long.
        """
        until = time.monotonic() + STARTING_S
        while True:
            try:
                with _open(url, timeout=2.0):
                    return
            except (HTTPError, URLError, OSError) as error:
                why = str(error)
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended at once, with {self.process.returncode}")
            if time.monotonic() > until:
                raise Failed(f"{self.name} was not ready within {STARTING_S:g} s: {why}")
            time.sleep(0.05)

    def stop(self) -> int:
        """
        SIGTERM, and SIGKILL if that does not help.

        :returns: the exit status.
        """
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOPPING_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()

    def last_words(self) -> str:
        said = self.output.read_text("utf-8", "replace") + self.logged()
        return "\n".join(said.splitlines()[-15:])


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on; taken together, so no two are equal."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def clean_environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_FOREIGN) and name.upper() not in _PROXIES
    } | {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def children() -> Iterator[list[Child]]:
    """Those that are put into the list are stopped in the end, whatever happens."""
    started: list[Child] = []
    try:
        yield started
    except (Exception, TookTooLong):
        for child in started:
            say(f"\n{child.name} said last:\n{textwrap.indent(child.last_words(), '   ')}")
        raise
    finally:
        for child in reversed(started):
            child.stop()


def start(started: list[Child], folder: Path) -> tuple[Child, str, str, str]:
    """:returns: the gateway, its URLs without and with TLS, the sandbox's URL."""
    environ = clean_environment()
    upstream_port, port, tls_port = free_ports(3)
    upstream, url = f"http://127.0.0.1:{upstream_port}", f"http://127.0.0.1:{port}"
    devcert.make(str(folder / TLS))
    config = folder / "config.yaml"
    config.write_text(CONFIG, "utf-8")
    say(textwrap.indent(CONFIG, "   | "), end="")

    options = ["--listen", f"tcp:{upstream_port}:interface=127.0.0.1"]
    options += ["--secret-access-key", SECRET]
    sandbox = Child("bedrocksandbox", options, folder, environ)
    started.append(sandbox)

    options = ["--config", config.name, "--listen", f"tcp:{port}:interface=127.0.0.1"]
    tls = f"tls:{tls_port}:cert={TLS}/cert.pem:key={TLS}/key.pem:interface=127.0.0.1"
    options += ["--listen", tls, "--log-format", "json"]
    gateway = Child(
        "bedrockproxy",
        options,
        folder,
        environ
        | {
            "DEMO_KEY": KEY,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "sandbox",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": upstream,
        },
    )
    started.append(gateway)
    sandbox.await_answer(f"{upstream}/_sandbox/")
    gateway.await_answer(f"{url}/health/readiness")
    return gateway, url, f"https://localhost:{tls_port}", upstream


# What a client does


def client_of(url: str) -> Any:
    """boto3 as anyone would make it. Over http the key is the access key id."""
    os.environ.clear()
    os.environ.update(clean_environment())
    return boto3.client(
        "bedrock-runtime",
        endpoint_url=f"{url}/bedrock",
        region_name=REGION,
        aws_access_key_id=KEY,
        aws_secret_access_key="anything",
    )


def bearer_client_of(url: str, ca: Path) -> Any:
    """The same with a bearer token, which boto3 sends over https only."""
    os.environ.clear()
    os.environ.update(clean_environment())
    os.environ.update(AWS_BEARER_TOKEN_BEDROCK=KEY, AWS_CA_BUNDLE=str(ca))
    return boto3.client("bedrock-runtime", endpoint_url=f"{url}/bedrock", region_name=REGION)


def converse(client: Any) -> str:
    """:returns: the text of the answer."""
    messages = [{"role": "user", "content": [{"text": QUESTION}]}]
    answer = client.converse(modelId=MODEL, messages=messages)
    text: str = answer["output"]["message"]["content"][0]["text"]
    usage = answer["usage"]
    say(wrapped(text))
    say(f"   ({answer['stopReason']}, {usage['inputTokens']} + {usage['outputTokens']} tokens)")
    check("sandbox" in text and text.endswith(QUESTION), "the answer is not the sandbox's")
    check(answer["stopReason"] == "end_turn", "the answer did not end well")
    check(usage["inputTokens"] == len(QUESTION.split()), "the usage is not right")
    return text


def converse_stream(client: Any, upstream: str, expected: str) -> None:
    """Show the text as it comes, and check that it came bit by bit."""
    drip = {"kind": "drip", "operation": "ConverseStream", "interval_ms": DRIP_S * 1000}
    _open(f"{upstream}/_sandbox/faults", json.dumps(drip).encode(), timeout=5.0).close()

    messages = [{"role": "user", "content": [{"text": QUESTION}]}]
    began = time.monotonic()
    answer = client.converse_stream(modelId=MODEL, messages=messages)
    text, arrivals, stop, usage = "", [], "", {}
    column = 0
    say("   ", end="")
    for event in answer["stream"]:
        if "contentBlockDelta" in event:
            piece = event["contentBlockDelta"]["delta"]["text"]
            arrivals.append(time.monotonic() - began)
            if column + len(piece) > WIDTH - 5:
                say("\n     ", end="")
                column = 0
            say(piece, end="")
            text += piece
            column += len(piece)
        elif "messageStop" in event:
            stop = event["messageStop"]["stopReason"]
        elif "metadata" in event:
            usage = event["metadata"]["usage"]
    say()
    check(bool(arrivals), "nothing was streamed")
    say(
        f"   ({stop}, {usage.get('outputTokens')} tokens in {len(arrivals)} events: the first "
        f"after {arrivals[0]:.1f} s, the last after {arrivals[-1]:.1f} s)"
    )
    check(text == expected, "the streamed text is not the text that came whole")
    check(stop == "end_turn" and bool(usage), "the stream ended without its last events")
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    apart = sum(gap > DRIP_S / 2 for gap in gaps)
    check(apart >= len(gaps) * 0.7, "the events did not arrive one by one, as they were sent")


def typed_error(client: Any) -> None:
    try:
        client.converse(
            modelId="no-such-model", messages=[{"role": "user", "content": [{"text": "?"}]}]
        )
    except client.exceptions.ResourceNotFoundException as error:
        say(
            wrapped(
                f"{type(error).__name__}, {_status(error)}: {error.response['Error']['Message']}"
            )
        )
        check(_status(error) == 404, "the status is not 404")
    else:
        raise Failed("a model that nobody has configured gave an answer")


def _status(error: Any) -> int:
    status: int = error.response["ResponseMetadata"]["HTTPStatusCode"]
    return status


def show_log(gateway: Child) -> None:
    """The records of the exchanges; there must be no secret anywhere."""
    log = gateway.logged()
    records = [record for record in map(json.loads, log.splitlines()) if "operation" in record]
    for record in records:
        say(wrapped(record["message"]))
    seen = [(record["operation"], record["status"], record["outcome"]) for record in records]
    expected = [
        ("Converse", 200, "complete"),
        ("ConverseStream", 200, "complete"),
        ("Converse", 404, "refused"),
        ("Converse", 200, "complete"),
    ]
    check(seen == expected, f"expected {expected} in the log")
    for secret in (KEY, SECRET, QUESTION):
        check(secret not in log, "a key, a secret or a prompt is in the log")


def run(folder: Path) -> None:
    began = time.monotonic()
    with children() as started:
        heading(1, "The sandbox, and the gateway in front of it with this configuration:")
        gateway, url, tls_url, upstream = start(started, folder)
        say(f"   ready after {time.monotonic() - began:.1f} s; the gateway alone has AWS keys")

        client = client_of(url)
        heading(2, f"Converse: boto3 at {url}/bedrock, {KEY} as access key id")
        text = converse(client)

        heading(3, f"ConverseStream: the sandbox sends an event every {DRIP_S * 1000:.0f} ms")
        converse_stream(client, upstream, text)

        heading(4, "A model that is not configured: boto3 raises its own exception")
        typed_error(client)

        heading(5, f"Converse over TLS: boto3 at {tls_url}/bedrock, {KEY} as bearer token")
        again = converse(bearer_client_of(tls_url, folder / TLS / "ca.pem"))
        check(again == text, "over TLS there is another answer")

        status = gateway.stop()
        heading(6, "What the gateway logged about these four (no key, no prompt, no answer):")
        show_log(gateway)
        check(status == 0, f"the gateway ended with {status} after SIGTERM")
    say(f"\nAll as it should be, in {time.monotonic() - began:.1f} s. Nothing is left running.")


_STOP = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def _stop(number: int, _frame: object) -> NoReturn:
    for each in (*_STOP, signal.SIGALRM):
        signal.signal(each, signal.SIG_IGN)  # from here on everything is being stopped
    if number == signal.SIGALRM:
        raise TookTooLong(f"not done within {EVERYTHING_S} s")
    raise SystemExit(f"\nThe demo was stopped by {signal.Signals(number).name}.")


def main() -> int:
    for number in (*_STOP, signal.SIGALRM):
        signal.signal(number, _stop)
    signal.alarm(EVERYTHING_S)
    try:
        with tempfile.TemporaryDirectory(prefix="txbedrock-demo-") as folder:
            run(Path(folder))
    except (Failed, TookTooLong) as failure:
        say(f"\nThe demo failed: {failure}")
        return 1
    except BrokenPipeError:  # nobody reads on: make demo | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        say(f"\nThe demo failed: {type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
