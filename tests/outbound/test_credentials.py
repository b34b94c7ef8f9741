"""
Credentials: every way to get them, and what happens when that fails.

STS, SSO and the metadata services are one small HTTP server on loopback; the
files are real. The process's own environment is full of traps, to show that
only the one given counts.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import botocore.credentials
from twisted.internet import reactor as real_reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock, LoopingCall, deferLater
from twisted.logger import LogLevel, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase

from txbedrock.core.credentials import BearerToken, Credentials
from txbedrock.core.deployments import CredentialSpec
from txbedrock.errors import CredentialsUnavailable
from txbedrock.outbound import chain, credentials
from txbedrock.outbound.credentials import CredentialPool, CredentialSource

# What must never be seen. Not all have the shape of a secret.
KEY_ID = "AKIAPLANTED000000001"
SECRET = "planted/secret+access=key"
TOKEN = "planted+session+token=="
EXTERNAL_ID = "planted-external-id"
API_KEY = "planted-bedrock-api-key"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJwbGFudGVkIjoxfQ.c2lnbmF0dXJl"
PLANTED = (SECRET, TOKEN, EXTERNAL_ID, API_KEY, JWT, "stub-secret", "stub-token")

ROLE = "arn:aws:iam::123456789012:role/Caller"
STATIC = CredentialSpec(access_key_id=KEY_ID, secret_access_key=SECRET)


def iso(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Call:
    """A request that the stub got."""

    def __init__(self, path: str, headers: Mapping[str, str], body: str) -> None:
        self.path = path
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.form = dict(parse_qsl(body))

    @property
    def signed_by(self) -> str | None:
        """The access key id of the signature."""
        _, _, credential = self.headers.get("authorization", "").partition("Credential=")
        return credential.partition("/")[0] or None


class Stub:
    """STS, SSO, container and instance metadata, over real HTTP."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self.lifetime_s = 3600.0
        self.calls: list[Call] = []
        self.refuse: Callable[[Call], str] | None = None
        self.hang = False
        self.released = threading.Event()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                call = Call(self.path, self.headers, body)
                stub.calls.append(call)
                if stub.hang:
                    stub.released.wait(30)
                    self.close_connection = True
                    return
                status, content = stub.reply(call)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content.encode())))
                self.end_headers()
                self.wfile.write(content.encode())

            do_GET = do_POST = do_PUT = _answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def actions(self) -> list[str]:
        return [call.form["Action"] for call in self.calls]

    def reply(self, call: Call) -> tuple[int, str]:
        n = len(self.calls)
        expires = iso(self.now() + self.lifetime_s)
        if self.refuse is not None:
            message = self.refuse(call).replace("&", "&amp;").replace("<", "&lt;")
            return 403, (
                "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>"
                f"<Message>{message}</Message></Error></ErrorResponse>"
            )
        if call.path == "/":
            action = call.form["Action"]
            return 200, (
                f"<{action}Response><{action}Result><Credentials>"
                f"<AccessKeyId>ASIASTUB{n}</AccessKeyId>"
                f"<SecretAccessKey>stub-secret-{n}</SecretAccessKey>"
                f"<SessionToken>stub-token-{n}</SessionToken>"
                f"<Expiration>{expires}</Expiration></Credentials>"
                f"</{action}Result></{action}Response>"
            )
        keys = {"AccessKeyId": f"ASIASTUB{n}", "SecretAccessKey": f"stub-secret-{n}"}
        if call.path.startswith("/federation/credentials"):
            role = {
                "accessKeyId": f"ASIASTUB{n}",
                "secretAccessKey": f"stub-secret-{n}",
                "sessionToken": f"stub-token-{n}",
                "expiration": int((self.now() + self.lifetime_s) * 1000),
            }
            return 200, json.dumps({"roleCredentials": role})
        if call.path == "/latest/api/token":
            return 200, "imds-token"
        if call.path == "/latest/meta-data/iam/security-credentials/":
            return 200, "the-instance-role"
        return 200, json.dumps({**keys, "Token": f"stub-token-{n}", "Expiration": expires})


class InlineThreads:
    """A thread pool without threads: work is done at once."""

    def callInThreadWithCallback(self, onResult: Any, func: Callable[[], Any]) -> None:
        onResult(True, func())


class HeldThreads:
    """A thread pool whose work is done when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []

    def callInThreadWithCallback(self, onResult: Any, func: Callable[[], Any]) -> None:
        self.jobs.append(lambda: onResult(True, func()))

    def run(self) -> None:
        jobs, self.jobs = self.jobs, []
        for job in jobs:
            job()


class Reactor(Clock):
    def callFromThread(self, callable: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        callable(*args, **kwargs)


class World:
    """What every test here has around it."""

    patch: Any
    addCleanup: Any
    mktemp: Any
    assertEqual: Any
    assertNotIn: Any

    def set_up(self) -> None:
        self.clock = Reactor()
        self.begin = float(int(time.time()))
        self.stub = self.make_stub()
        self.trap = self.make_stub()
        self.patch(chain, "_STS_ATTEMPTS", 1)
        self.home = Path(self.mktemp())
        (self.home / ".aws").mkdir(parents=True)
        self.environ = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL_STS": self.stub.url,
            "AWS_ENDPOINT_URL": self.trap.url,
        }
        self.events: list[dict[str, Any]] = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)
        self.set_traps()
        self.addCleanup(self.check)
        self.pools: list[CredentialPool] = []

    def make_stub(self) -> Stub:
        stub = Stub(self.wall)
        self.addCleanup(stub.stop)
        return stub

    def set_traps(self) -> None:
        """Make the process's environment one that must not be used."""
        before = dict(os.environ)
        os.environ.update(
            {
                "AWS_ACCESS_KEY_ID": "AKIAOFTHEPROCESS",
                "AWS_SECRET_ACCESS_KEY": "of-the-process",
                "AWS_PROFILE": "of-the-process",
                "AWS_CONFIG_FILE": "/nonexistent/of-the-process",
                "AWS_BEARER_TOKEN_BEDROCK": "of-the-process",
                "AWS_WEB_IDENTITY_TOKEN_FILE": "/nonexistent/of-the-process",
                "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/of-the-process",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": self.trap.url,
                "AWS_ENDPOINT_URL": self.trap.url,
                "AWS_ENDPOINT_URL_STS": self.trap.url,
                "AWS_ENDPOINT_URL_SSO": self.trap.url,
                "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.trap.url,
                "NO_PROXY": "127.0.0.1",
            }
        )
        self.process_environ = dict(os.environ)

        def restore() -> None:
            os.environ.clear()
            os.environ.update(before)

        self.addCleanup(restore)

    def check(self) -> None:
        """Holds at the end of each test."""
        self.assertEqual([call.path for call in self.trap.calls], [])
        self.assertEqual(dict(os.environ), self.process_environ)
        seen = [self.text(event) + repr(sorted(event.items(), key=str)) for event in self.events]
        for pool in self.pools:
            seen += [repr(pool), repr(vars(pool).get("_sources"))]
        for text in seen:
            for planted in PLANTED:
                self.assertNotIn(planted, text)

    def wall(self) -> float:
        """POSIX time, moved on by the clock."""
        return self.begin + self.clock.seconds()

    def write(self, name: str, text: str) -> Path:
        path = self.home / name
        path.write_text(text)
        return path

    def pool(self, *specs: CredentialSpec, **options: Any) -> CredentialPool:
        options = {
            "environ": self.environ,
            "threadpool": InlineThreads(),
            "wall_clock": self.wall,
            "jitter": lambda: 0.5,
        } | options
        pool = CredentialPool(self.clock, specs, **options)
        self.pools.append(pool)
        return pool

    def started(self, spec: CredentialSpec, **options: Any) -> CredentialSource:
        pool = self.pool(spec, **options)
        pool.startService()
        self.addCleanup(pool.stopService)
        return pool.source(spec)

    @staticmethod
    def text(event: dict[str, Any]) -> str:
        return formatEvent(event)

    def logged(self, *levels: LogLevel) -> list[str]:
        """What was said at these levels (above debug, if none is given)."""
        wanted = levels or (LogLevel.info, LogLevel.warn, LogLevel.error, LogLevel.critical)
        return [
            self.text(event)
            for event in self.events
            if event.get("log_namespace", "").startswith("txbedrock")
            and event["log_level"] in wanted
        ]


class Case(World, SynchronousTestCase):
    def setUp(self) -> None:
        self.set_up()

    def refused(
        self, source: CredentialSource, service: str = "bedrock-runtime"
    ) -> CredentialsUnavailable:
        error = self.assertRaises(CredentialsUnavailable, source.current, service)
        self.assertEqual(error.status, 503)
        for text in (str(error), repr(error), error.message, error.detail):
            for planted in PLANTED:
                self.assertNotIn(planted, text)
        self.assertNotIn("arn:", error.message)
        self.assertNotIn("123456789012", error.message)
        return error

    def assert_from_stub(self, source: CredentialSource, n: int) -> None:
        """The source has what the stub's n-th call brought."""
        self.assertEqual(
            source.current("bedrock-runtime"),
            Credentials(f"ASIASTUB{n}", f"stub-secret-{n}", f"stub-token-{n}"),
        )


class StaticTests(Case):
    """Keys that stand in the configuration."""

    def test_ready_at_once(self) -> None:
        """They need neither a start nor a thread."""
        source = self.pool(STATIC, threadpool=None).source(STATIC)
        self.assertEqual(source.current("bedrock"), Credentials(KEY_ID, SECRET))

    def test_session_token(self) -> None:
        """The session token comes with them."""
        spec = CredentialSpec(access_key_id=KEY_ID, secret_access_key=SECRET, session_token=TOKEN)
        self.assertEqual(
            self.started(spec).current("bedrock-agent"), Credentials(KEY_ID, SECRET, TOKEN)
        )

    def test_line_ends(self) -> None:
        """A line end from a secret store does not become part of a header."""
        spec = CredentialSpec(access_key_id=KEY_ID + "\n", secret_access_key=SECRET + "\r\n")
        self.assertEqual(self.started(spec).current("bedrock"), Credentials(KEY_ID, SECRET))

    def test_half(self) -> None:
        """One key of the pair is told to the operator, not silently replaced."""
        spec = CredentialSpec(access_key_id=KEY_ID)
        self.assertIn("go together", self.refused(self.started(spec)).detail)

    def test_shared(self) -> None:
        """Equal specs have one source, also when asked for later."""
        pool = self.pool(STATIC)
        again = CredentialSpec(access_key_id=KEY_ID, secret_access_key=SECRET)
        self.assertIs(pool.source(STATIC), pool.source(again))
        self.assertIsNot(pool.source(STATIC), pool.source(CredentialSpec(api_key=API_KEY)))

    def test_asked_for_later(self) -> None:
        """A spec that nobody named at the start is loaded when it is asked for."""
        pool = self.pool()
        pool.startService()
        self.addCleanup(pool.stopService)
        source = pool.source(
            CredentialSpec(role_arn=ROLE, access_key_id="a", secret_access_key="b")
        )
        self.assert_from_stub(source, 1)


class ProfileTests(Case):
    """Named profiles of the AWS files."""

    def test_static(self) -> None:
        """Keys of the credentials file below HOME."""
        self.write(
            ".aws/credentials",
            f"[dev]\naws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\n"
            f"aws_session_token={TOKEN}\n",
        )
        source = self.started(CredentialSpec(profile_name="dev"))
        self.assertEqual(source.current("bedrock"), Credentials(KEY_ID, SECRET, TOKEN))

    def test_files_named_by_environment(self) -> None:
        """AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE count."""
        self.environ["AWS_CONFIG_FILE"] = str(self.write("c", "[profile dev]\nregion=eu-west-1\n"))
        self.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(
            self.write("s", f"[dev]\naws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\n")
        )
        source = self.started(CredentialSpec(profile_name="dev"))
        self.assertEqual(source.current("bedrock"), Credentials(KEY_ID, SECRET))

    def test_before_environment(self) -> None:
        """A profile that is asked for comes before keys in the environment."""
        self.environ |= {"AWS_ACCESS_KEY_ID": "AKIAENV", "AWS_SECRET_ACCESS_KEY": "env"}
        self.test_static()

    def role_of_profile(self) -> None:
        self.write(
            ".aws/config",
            "[profile base]\n"
            f"aws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\n"
            "[profile dev]\nsource_profile=base\nrole_arn=arn:aws:iam::123456789012:role/Hop\n"
            f"role_session_name=hop\nexternal_id={EXTERNAL_ID}\n"
            f"endpoint_url={self.trap.url}\n",
        )

    def test_role_of_profile(self) -> None:
        """The profile's own role is assumed; its endpoint_url is not for STS."""
        self.role_of_profile()
        self.assert_from_stub(self.started(CredentialSpec(profile_name="dev")), 1)
        (call,) = self.stub.calls
        self.assertEqual(call.signed_by, KEY_ID)
        self.assertEqual(call.form["RoleSessionName"], "hop")
        self.assertEqual(call.form["ExternalId"], EXTERNAL_ID)

    def test_chained(self) -> None:
        """A deployment's role is assumed with the profile's role."""
        self.role_of_profile()
        source = self.started(
            CredentialSpec(profile_name="dev", role_arn=ROLE, role_session_name="mine")
        )
        self.assert_from_stub(source, 2)
        first, second = self.stub.calls
        self.assertEqual(first.form["RoleArn"], "arn:aws:iam::123456789012:role/Hop")
        self.assertEqual(second.form["RoleArn"], ROLE)
        self.assertEqual(second.form["RoleSessionName"], "mine")
        self.assertEqual(second.signed_by, "ASIASTUB1")
        self.assertEqual(second.headers["x-amz-security-token"], "stub-token-1")
        self.assertNotIn("ExternalId", second.form)

    def test_services_section(self) -> None:
        """An STS endpoint that a profile names for STS is used."""
        del self.environ["AWS_ENDPOINT_URL_STS"]
        self.role_of_profile()
        with (self.home / ".aws/config").open("a") as file:
            file.write(f"services=here\n[services here]\nsts=\n  endpoint_url={self.stub.url}\n")
        self.assert_from_stub(self.started(CredentialSpec(profile_name="dev")), 1)

    def test_process(self) -> None:
        """A credential_process, run with the environment given."""
        self.environ["FROM_ENVIRON"] = "AKIAFROMENVIRON"
        script = self.write(
            "process.sh",
            'echo "{\\"Version\\":1,\\"AccessKeyId\\":\\"$FROM_ENVIRON\\",'
            f'\\"SecretAccessKey\\":\\"{SECRET}\\"}}"\n',
        )
        self.write(".aws/config", f"[profile dev]\ncredential_process=sh {script}\n")
        source = self.started(CredentialSpec(profile_name="dev"))
        self.assertEqual(source.current("bedrock"), Credentials("AKIAFROMENVIRON", SECRET))
        self.clock.advance(3600)
        self.assertEqual(self.clock.getDelayedCalls(), [], "not to be run again")

    def test_process_hangs(self) -> None:
        """A credential_process that hangs is killed, with its children."""
        self.patch(chain, "_PROCESS_TIMEOUT_S", 0.1)
        script = self.write("process.sh", "sleep 30 | cat\n")
        self.write(".aws/config", f"[profile dev]\ncredential_process=sh {script}\n")
        begin = time.monotonic()
        source = self.started(CredentialSpec(profile_name="dev"))
        self.assertLess(time.monotonic() - begin, 5)
        self.assertIn("no answer within", self.refused(source).detail)

    def test_process_tells(self) -> None:
        """What a failing process has written is logged, keys in it are not."""
        secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
        script = self.write("process.sh", f"echo no luck: {secret} {JWT} >&2; exit 3\n")
        self.write(".aws/config", f"[profile dev]\ncredential_process=sh {script}\n")
        detail = self.refused(self.started(CredentialSpec(profile_name="dev"))).detail
        self.assertIn("no luck: <redacted> <redacted>", detail)
        self.assertNotIn(secret, "".join(self.logged()))

    def test_sso(self) -> None:
        """A profile of IAM Identity Center, with the token that a login left."""
        self.environ["AWS_ENDPOINT_URL_SSO"] = self.stub.url
        start = "https://example.awsapps.com/start"
        self.write(
            ".aws/config",
            f"[profile dev]\nsso_start_url={start}\nsso_region=eu-west-1\n"
            "sso_account_id=123456789012\nsso_role_name=Reader\n",
        )
        (self.home / ".aws/sso/cache").mkdir(parents=True)
        self.write(
            f".aws/sso/cache/{sha1(start.encode()).hexdigest()}.json",
            json.dumps({"accessToken": TOKEN, "expiresAt": iso(self.wall() + 3600)}),
        )
        self.assert_from_stub(self.started(CredentialSpec(profile_name="dev")), 1)
        self.assertEqual(self.stub.calls[0].headers["x-amz-sso_bearer_token"], TOKEN)

    def test_mfa(self) -> None:
        """A profile that wants an MFA code fails; nobody is asked at a terminal."""
        self.write(
            ".aws/config",
            f"[profile base]\naws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\n"
            f"[profile dev]\nsource_profile=base\nrole_arn={ROLE}\n"
            "mfa_serial=arn:aws:iam::123456789012:mfa/someone\n",
        )
        self.assertIn("MFA", self.refused(self.started(CredentialSpec(profile_name="dev"))).detail)

    def test_unknown(self) -> None:
        """A misspelt profile is an error, not the machine's own role."""
        self.environ |= {
            "AWS_EC2_METADATA_DISABLED": "false",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.stub.url,
        }
        source = self.started(CredentialSpec(profile_name="prodd"))
        self.assertIn("(prodd) could not be found", self.refused(source).detail)
        self.assertNotIn("prodd", self.refused(source).message)
        self.assertEqual(self.stub.calls, [])

    def test_broken_file(self) -> None:
        """A file that cannot be read says so."""
        self.write(".aws/config", f"[profile dev\naws_secret_access_key={SECRET}\n")
        source = self.started(CredentialSpec(profile_name="dev"))
        self.assertIn("ConfigParseError", self.refused(source).detail)

    def test_edited(self) -> None:
        """Keys in a file are read again every few minutes, without a word."""
        text = "[dev]\naws_access_key_id={}\naws_secret_access_key=x\n"
        self.write(".aws/credentials", text.format("AKIAOLD"))
        source = self.started(CredentialSpec(profile_name="dev"))
        said = len(self.logged())
        self.clock.advance(301)
        self.assertEqual(len(self.logged()), said)
        self.write(".aws/credentials", text.format("AKIANEW"))
        self.assertEqual(source.current("bedrock"), Credentials("AKIAOLD", "x"))
        self.clock.advance(301)
        self.assertEqual(source.current("bedrock"), Credentials("AKIANEW", "x"))
        self.assertIn("have changed", self.logged()[-1])

    def test_edited_badly(self) -> None:
        """A file that is broken or gone leaves the keys that are at hand."""
        text = "[dev]\naws_access_key_id=AKIAOLD\naws_secret_access_key=x\n"
        path = self.write(".aws/credentials", text)
        source = self.started(CredentialSpec(profile_name="dev"))
        path.unlink()
        self.clock.pump([10.0] * 100)
        self.assertEqual(source.current("bedrock"), Credentials("AKIAOLD", "x"))
        self.assertEqual(len(self.logged(LogLevel.warn)), 1)
        self.write(".aws/credentials", text)
        self.clock.pump([10.0] * 7)
        self.assertIn("are back", self.logged()[-1])


class ChainTests(Case):
    """Nothing configured: botocore's whole chain."""

    def test_order(self) -> None:
        """The chain is the one of the botocore installed, in its order."""
        for profile in (None, "dev"):
            self.write(".aws/config", "[profile dev]\nregion=eu-west-1\n")
            session = chain._Session(
                self.environ, profile=profile, region=None, sts_endpoint_url=None
            )
            ours = chain._credential_resolver(session, self.environ)
            theirs = botocore.credentials.create_credential_resolver(session)
            self.assertEqual(
                [provider.METHOD for provider in ours.providers],
                [provider.METHOD for provider in theirs.providers],
            )

    def test_environment(self) -> None:
        """Keys of the environment that was given, not of the process."""
        self.environ |= {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": TOKEN,
        }
        source = self.started(CredentialSpec())
        self.assertEqual(source.current("bedrock"), Credentials(KEY_ID, SECRET, TOKEN))
        self.assertEqual(self.clock.getDelayedCalls(), [], "nothing to be done later")

    def test_environment_with_expiry(self) -> None:
        """Keys of the environment that expire are not used after it."""
        self.environ |= {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_CREDENTIAL_EXPIRATION": iso(self.wall() + 3600),
        }
        source = self.started(CredentialSpec())
        self.clock.pump([1.0] * 3599)
        self.assertEqual(source.current("bedrock"), Credentials(KEY_ID, SECRET))
        self.clock.pump([1.0] * 2)
        self.refused(source)
        self.assertEqual(len(self.logged(LogLevel.error)), 1)

    def test_default_profile(self) -> None:
        """The default profile of the files."""
        self.write(
            ".aws/credentials",
            f"[default]\naws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\n",
        )
        source = self.started(CredentialSpec())
        self.assertEqual(source.current("bedrock"), Credentials(KEY_ID, SECRET))

    def test_profile_of_environment(self) -> None:
        """AWS_PROFILE, and its being misspelt."""
        self.write(
            ".aws/credentials",
            f"[dev]\naws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\n",
        )
        self.environ["AWS_PROFILE"] = "dev"
        source = self.started(CredentialSpec())
        self.assertEqual(source.current("bedrock"), Credentials(KEY_ID, SECRET))
        self.environ["AWS_PROFILE"] = "deff"
        source = self.started(CredentialSpec())
        self.assertIn("(deff) could not be found", self.refused(source).detail)

    def irsa(self) -> None:
        self.environ |= {
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(self.write("token", JWT)),
            "AWS_ROLE_ARN": ROLE,
        }

    def test_pod_role(self) -> None:
        """The role of a Kubernetes service account."""
        self.irsa()
        self.assert_from_stub(self.started(CredentialSpec()), 1)
        (call,) = self.stub.calls
        self.assertEqual(call.form["Action"], "AssumeRoleWithWebIdentity")
        self.assertEqual(call.form["WebIdentityToken"], JWT)
        self.assertIsNone(call.signed_by)

    def test_role_from_pod_role(self) -> None:
        """Another role is assumed with the pod's; the pod's own is not assumed twice."""
        self.irsa()
        self.assert_from_stub(self.started(CredentialSpec(role_arn=ROLE)), 1)
        self.assertEqual(self.stub.actions, ["AssumeRoleWithWebIdentity"])
        self.stub.calls.clear()
        other = CredentialSpec(role_arn=ROLE + "2")
        self.assert_from_stub(self.started(other), 2)
        self.assertEqual(self.stub.actions, ["AssumeRoleWithWebIdentity", "AssumeRole"])
        self.assertEqual(self.stub.calls[1].signed_by, "ASIASTUB1")

    def test_base_of_role_not_told(self) -> None:
        """What STS repeats of keys that it gave itself is not repeated by us."""
        self.irsa()
        self.stub.refuse = None
        reply = self.stub.reply

        def refuse_second(call: Call) -> tuple[int, str]:
            if call.signed_by is not None:
                self.stub.refuse = lambda call: f"no {call.headers['x-amz-security-token']}"
            return reply(call)

        self.patch(self.stub, "reply", refuse_second)
        source = self.started(CredentialSpec(role_arn=ROLE + "2"))
        self.assertIn("no <redacted>", self.refused(source).detail)

    def test_container(self) -> None:
        """The credentials of an ECS task or an EKS pod."""
        self.environ |= {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": self.stub.url + "/container",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": TOKEN,
        }
        self.assert_from_stub(self.started(CredentialSpec()), 1)
        self.assertEqual(self.stub.calls[0].headers["authorization"], TOKEN)

    def machine(self) -> None:
        self.environ |= {
            "AWS_EC2_METADATA_DISABLED": "false",
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.stub.url,
        }

    def test_machine(self) -> None:
        """The role of an EC2 instance."""
        self.machine()
        self.assert_from_stub(self.started(CredentialSpec()), 3)

    def test_machine_keeps_true_expiry(self) -> None:
        """
        EC2 hands out the old credentials until shortly before their expiry;
        they are not believed to live longer than that, as botocore would.
        """
        self.machine()
        self.stub.lifetime_s = 20 * 60
        source = self.started(CredentialSpec())
        self.stub.refuse = lambda call: "down"
        self.clock.pump([30.0] * 39)
        source.current("bedrock")
        self.clock.pump([30.0] * 2)
        self.refused(source)

    def test_nothing_found(self) -> None:
        """A machine without credentials says what is to be done."""
        error = self.refused(self.started(CredentialSpec()))
        self.assertIn("found no AWS credentials", error.message)
        self.assertIn("nothing found in", error.detail)
        self.assertEqual(len(self.logged(LogLevel.error)), 1)

    def test_found_later(self) -> None:
        """A file that appears later is found."""
        source = self.started(CredentialSpec())
        self.write(
            ".aws/credentials",
            f"[default]\naws_access_key_id={KEY_ID}\naws_secret_access_key={SECRET}\n",
        )
        self.clock.advance(3)
        self.assertEqual(source.current("bedrock"), Credentials(KEY_ID, SECRET))


class RoleTests(Case):
    """Roles that a deployment names."""

    spec = CredentialSpec(
        access_key_id=KEY_ID,
        secret_access_key=SECRET,
        session_token=TOKEN,
        role_arn=ROLE,
        role_session_name="team-a",
        external_id=EXTERNAL_ID,
        region="eu-central-1",
    )

    def test_assumed(self) -> None:
        """Base keys, external id, session name and region reach STS."""
        self.assert_from_stub(self.started(self.spec), 1)
        (call,) = self.stub.calls
        self.assertEqual(call.form["RoleArn"], ROLE)
        self.assertEqual(call.form["RoleSessionName"], "team-a")
        self.assertEqual(call.form["ExternalId"], EXTERNAL_ID)
        self.assertEqual(call.signed_by, KEY_ID)
        self.assertEqual(call.headers["x-amz-security-token"], TOKEN)
        self.assertIn("/eu-central-1/sts/", call.headers["authorization"])

    def test_session_name(self) -> None:
        """Without a name, one that tells who it is in the account's trail."""
        self.started(CredentialSpec(access_key_id="a", secret_access_key="b", role_arn=ROLE))
        self.assertRegex(self.stub.calls[0].form["RoleSessionName"], r"^txbedrock-[0-9a-f]{8}$")

    def test_by_chain(self) -> None:
        """The base is the chain when nothing else is named."""
        self.environ |= {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET}
        self.assert_from_stub(self.started(CredentialSpec(role_arn=ROLE)), 1)
        self.assertEqual(self.stub.calls[0].signed_by, KEY_ID)

    def test_endpoint_of_spec(self) -> None:
        """The deployment's STS endpoint comes before all others."""
        own = self.make_stub()
        self.environ["AWS_ENDPOINT_URL_STS"] = self.trap.url
        spec = CredentialSpec(
            access_key_id=KEY_ID, secret_access_key=SECRET, role_arn=ROLE, sts_endpoint_url=own.url
        )
        self.started(spec)
        self.assertEqual(own.actions, ["AssumeRole"])

    def test_regional_endpoints(self) -> None:
        """STS is asked in the region, in its partition, whatever AWS_ENDPOINT_URL is."""
        del self.environ["AWS_ENDPOINT_URL_STS"]
        for region, environ, url in [
            ("eu-west-3", {}, "https://sts.eu-west-3.amazonaws.com"),
            ("us-east-1", {}, "https://sts.us-east-1.amazonaws.com"),
            ("cn-north-1", {}, "https://sts.cn-north-1.amazonaws.com.cn"),
            (None, {"AWS_REGION": "eu-west-2"}, "https://sts.eu-west-2.amazonaws.com"),
            (None, {}, "https://sts.us-east-1.amazonaws.com"),
            (
                "us-east-1",
                {"AWS_USE_FIPS_ENDPOINT": "true"},
                "https://sts-fips.us-east-1.amazonaws.com",
            ),
            (
                "us-east-1",
                {
                    "AWS_ENDPOINT_URL_STS": "http://x",
                    "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
                },
                "https://sts.us-east-1.amazonaws.com",
            ),
        ]:
            session = chain._Session(
                self.environ | environ, profile=None, region=region, sts_endpoint_url=None
            )
            client = session.create_client("sts", aws_access_key_id="a", aws_secret_access_key="b")
            self.assertEqual(client.meta.endpoint_url, url)
            self.assertLessEqual(client.meta.config.connect_timeout, 5)
            self.assertLessEqual(client.meta.config.read_timeout, 10)

    def test_refused(self) -> None:
        """STS says why; the client does not hear it, the log does, without secrets."""
        self.stub.refuse = lambda call: (
            f"no {ROLE} for {call.form['ExternalId']} by {call.headers['x-amz-security-token']}"
            f" with {SECRET}\n{KEY_ID}"
        )
        error = self.refused(self.started(self.spec))
        self.assertIn("AccessDenied", error.detail)
        self.assertIn(f"no {ROLE} for <redacted> by <redacted>", error.detail)
        self.assertNotIn(KEY_ID, "".join(self.logged()))
        self.assertNotIn("\n", self.logged()[-1])

    def test_unreachable(self) -> None:
        """An STS that refuses connections is named in the log."""
        self.environ["AWS_ENDPOINT_URL_STS"] = "http://127.0.0.1:9"
        self.assertIn("EndpointConnectionError", self.refused(self.started(self.spec)).detail)

    def test_rubbish(self) -> None:
        """An STS that is something else does not break anything."""
        self.patch(self.stub, "reply", lambda call: (200, f"<html>{SECRET} is not closed"))
        self.refused(self.started(self.spec))
        self.assertEqual(len(self.logged(LogLevel.error)), 1)


class TaggedTests(Case):
    """Sessions of a role with tags: one for each key that is in use."""

    base = CredentialSpec(access_key_id=KEY_ID, secret_access_key=SECRET, role_arn=ROLE)

    def tagged(self, alias: str) -> CredentialSpec:
        tags = (("key_alias", alias), ("team_id", "blue"))
        return replace(self.base, session_tags=tags)

    def start_pool(self, **options: Any) -> CredentialPool:
        pool = self.pool(self.base, **options)
        pool.startService()
        self.addCleanup(pool.stopService)
        return pool

    def test_sts(self) -> None:
        """STS gets tags and name; each combination has a session of its own."""
        pool = self.start_pool()
        self.assert_from_stub(pool.source(self.tagged("ci")), 2)
        self.assert_from_stub(pool.source(self.tagged("dev")), 3)
        self.assertIs(pool.source(self.tagged("ci")), pool.source(self.tagged("ci")))
        _, ci, dev = self.stub.calls
        self.assertEqual(ci.form["RoleSessionName"], "txbedrock-ci@blue")
        self.assertEqual(
            {name: value for name, value in ci.form.items() if name.startswith("Tags")},
            {
                "Tags.member.1.Key": "key_alias",
                "Tags.member.1.Value": "ci",
                "Tags.member.2.Key": "team_id",
                "Tags.member.2.Value": "blue",
            },
        )
        self.assertEqual(dev.form["RoleSessionName"], "txbedrock-dev@blue")
        self.assertIn("for txbedrock-ci@blue", pool.source(self.tagged("ci")).describe())

    def test_wait(self) -> None:
        """Who comes first waits for STS; who comes later does not; all do not for ever."""
        threads = HeldThreads()
        pool = self.start_pool(threadpool=threads)
        source = pool.source(self.tagged("ci"))
        first = Deferred.fromCoroutine(source.loaded())
        gone = Deferred.fromCoroutine(source.loaded())
        self.assertNoResult(first)
        gone.addErrback(lambda failure: failure.trap(CancelledError) and None)
        gone.cancel()
        threads.run()
        self.successResultOf(first)
        self.successResultOf(Deferred.fromCoroutine(source.loaded()))
        source.current("bedrock-runtime")

        late = Deferred.fromCoroutine(pool.source(self.tagged("late")).loaded())
        self.clock.advance(10)
        self.successResultOf(late)
        self.refused(pool.source(self.tagged("late")))

    def test_unused(self) -> None:
        """A session that nobody has used since is not renewed but forgotten."""
        pool = self.start_pool()
        pool.source(self.tagged("ci")).current("bedrock")
        pool.source(self.tagged("once")).current("bedrock")
        calls = len(self.stub.calls)
        self.clock.advance(2700)  # all are renewed: they were used
        self.assertEqual(len(self.stub.calls), calls + 3)
        pool.source(self.tagged("ci")).current("bedrock")
        self.clock.advance(2700)
        self.assertEqual(len(self.stub.calls), calls + 5)
        self.assertEqual(
            {spec.session_tags for spec in pool._sources},
            {(), self.tagged("ci").session_tags},
        )
        pool.source(self.tagged("once")).current("bedrock")

    def test_many(self) -> None:
        """There is a bound; who was used longest ago goes first."""
        self.patch(credentials, "_MAX_TAGGED", 3)
        pool = self.start_pool()
        for alias in ("a", "b", "c", "a", "d", "e"):
            pool.source(self.tagged(alias))
        self.assertEqual(
            [spec.session_tags[0][1] for spec in pool._sources if spec.session_tags],
            ["a", "d", "e"],
        )
        self.assertEqual(len(pool._tagged), 3)


class WebIdentityTests(Case):
    """A role by an OIDC token."""

    def test_file(self) -> None:
        """The token's file is read at each refresh: Kubernetes replaces it."""
        path = self.write("oidc-token", JWT + "\n")
        spec = CredentialSpec(
            web_identity_token=str(path.absolute()), role_arn=ROLE, role_session_name="me"
        )
        source = self.started(spec)
        self.assert_from_stub(source, 1)
        path.write_text("another." + JWT)
        self.clock.advance(3600 - 800)
        self.assert_from_stub(source, 2)
        tokens = [call.form["WebIdentityToken"] for call in self.stub.calls]
        self.assertEqual(tokens, [JWT, "another." + JWT])
        self.assertEqual(self.stub.actions, ["AssumeRoleWithWebIdentity"] * 2)
        self.assertEqual(self.stub.calls[0].form["RoleArn"], ROLE)
        self.assertEqual(self.stub.calls[0].form["RoleSessionName"], "me")

    def test_literal(self) -> None:
        """The token itself, which no error repeats."""
        spec = CredentialSpec(web_identity_token=JWT, role_arn=ROLE)
        self.assert_from_stub(self.started(spec), 1)
        self.assertEqual(self.stub.calls[0].form["WebIdentityToken"], JWT)
        self.stub.refuse = lambda call: f"bad token {call.form['WebIdentityToken']}"
        error = self.refused(self.started(spec))
        self.assertIn("bad token <redacted>", error.detail)

    def test_token_of_file_not_told(self) -> None:
        """Nor is one that came from a file, whatever it looks like."""
        token = "not-shaped-like-a-jwt"
        path = self.write("oidc-token", token)
        spec = CredentialSpec(web_identity_token=str(path), role_arn=ROLE)
        self.stub.refuse = lambda call: f"bad token {call.form['WebIdentityToken']}"
        self.assertNotIn(token, self.refused(self.started(spec)).detail)

    def test_no_file(self) -> None:
        """A missing file is named to the operator."""
        spec = CredentialSpec(web_identity_token="/nonexistent/oidc", role_arn=ROLE)
        self.assertIn("/nonexistent/oidc", self.refused(self.started(spec)).detail)

    def test_no_role(self) -> None:
        """A token alone is worth nothing; AWS_ROLE_ARN may name the role."""
        spec = CredentialSpec(web_identity_token=JWT)
        self.assertIn("needs the ARN of the role", self.refused(self.started(spec)).detail)
        self.environ["AWS_ROLE_ARN"] = ROLE
        self.started(spec)
        self.assertEqual(self.stub.calls[0].form["RoleArn"], ROLE)

    def test_unknown_reference(self) -> None:
        """LiteLLM's oidc/... references are refused in words."""
        spec = CredentialSpec(web_identity_token="oidc/google/aud", role_arn=ROLE)
        self.assertIn("oidc/... is not known", self.refused(self.started(spec)).detail)


class BearerTests(Case):
    """Bedrock API keys."""

    def test_key(self) -> None:
        """Sent to the two services that take it; nothing is looked for."""
        threads = HeldThreads()
        source = self.started(CredentialSpec(api_key=API_KEY + "\n"), threadpool=threads)
        for service in ("bedrock", "bedrock-runtime"):
            self.assertEqual(source.current(service), BearerToken(API_KEY))
        self.assertEqual(threads.jobs, [])
        error = self.refused(source, "bedrock-agent-runtime")
        self.assertIn("only a Bedrock API key", error.message)
        self.assertIn("bedrock-agent-runtime", error.message)

    def test_key_and_keys(self) -> None:
        """AWS keys beside it serve the other services."""
        spec = CredentialSpec(api_key=API_KEY, access_key_id=KEY_ID, secret_access_key=SECRET)
        source = self.started(spec)
        self.assertEqual(source.current("bedrock-runtime"), BearerToken(API_KEY))
        self.assertEqual(source.current("bedrock-agent"), Credentials(KEY_ID, SECRET))

    def test_key_and_failing_role(self) -> None:
        """A role beside it that fails is not called missing."""
        self.stub.refuse = lambda call: "no"
        spec = CredentialSpec(
            api_key=API_KEY, access_key_id=KEY_ID, secret_access_key=SECRET, role_arn=ROLE
        )
        source = self.started(spec)
        self.assertEqual(source.current("bedrock-runtime"), BearerToken(API_KEY))
        self.assertNotIn("only a Bedrock", self.refused(source, "bedrock-agent").message)
        self.assertEqual(len(self.logged(LogLevel.error)), 1)

    def test_environment(self) -> None:
        """AWS_BEARER_TOKEN_BEDROCK; the start does not wait for the chain."""
        self.environ["AWS_BEARER_TOKEN_BEDROCK"] = API_KEY
        threads = HeldThreads()
        pool = self.pool(CredentialSpec(), threadpool=threads)
        pool.startService()
        self.addCleanup(pool.stopService)
        source = pool.source(CredentialSpec())
        self.successResultOf(Deferred.fromCoroutine(pool.loaded()))
        self.assertEqual(source.current("bedrock-runtime"), BearerToken(API_KEY))
        self.assertIn("still loading", self.refused(source, "bedrock-agent").message)
        threads.run()
        self.assertIn("only a Bedrock API key", self.refused(source, "bedrock-agent").message)
        self.assertEqual(self.logged(), [], "having nothing else is no fault")
        self.clock.advance(200)
        self.assertEqual(threads.jobs, [], "and not to be looked at every minute")

    def test_environment_and_keys(self) -> None:
        """The chain serves the other services."""
        self.environ |= {
            "AWS_BEARER_TOKEN_BEDROCK": API_KEY,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
        source = self.started(CredentialSpec())
        self.assertEqual(source.current("bedrock"), BearerToken(API_KEY))
        self.assertEqual(source.current("bedrock-agent"), Credentials(KEY_ID, SECRET))

    def test_explicit_before_environment(self) -> None:
        """Whoever names credentials does not get the environment's API key."""
        self.environ["AWS_BEARER_TOKEN_BEDROCK"] = API_KEY
        self.assertEqual(self.started(STATIC).current("bedrock"), Credentials(KEY_ID, SECRET))
        spec = CredentialSpec(role_arn=ROLE, access_key_id="a", secret_access_key="b")
        self.assert_from_stub(self.started(spec), 1)

    def test_region_is_not_explicit(self) -> None:
        """A region or an STS endpoint alone names no credentials."""
        self.environ["AWS_BEARER_TOKEN_BEDROCK"] = API_KEY
        source = self.started(CredentialSpec(region="eu-west-1", sts_endpoint_url="http://x"))
        self.assertEqual(source.current("bedrock"), BearerToken(API_KEY))

    def test_empty(self) -> None:
        """An empty variable or setting is none."""
        self.environ |= {
            "AWS_BEARER_TOKEN_BEDROCK": "",
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }
        source = self.started(CredentialSpec(api_key="", profile_name="", role_arn=""))
        self.assertEqual(source.current("bedrock"), Credentials(KEY_ID, SECRET))


class WordsTests(Case):
    """How sources are told apart in the log and by --check."""

    def test_describe(self) -> None:
        """In words, by what comes first, without secrets."""
        keys = {"access_key_id": KEY_ID, "secret_access_key": SECRET}
        for spec, words in [
            (CredentialSpec(), "the AWS credential chain"),
            (CredentialSpec(**keys), "the configured AWS keys"),
            (CredentialSpec(**keys, profile_name="p"), "the configured AWS keys"),
            (CredentialSpec(profile_name="p", web_identity_token=JWT), "AWS profile 'p'"),
            (CredentialSpec(profile_name="p", role_arn=ROLE), f"role {ROLE} by AWS profile 'p'"),
            (CredentialSpec(role_arn=ROLE), f"role {ROLE} by the AWS credential chain"),
            (
                CredentialSpec(role_arn=ROLE, web_identity_token=JWT),
                f"role {ROLE} by a web identity token",
            ),
            (
                CredentialSpec(role_arn=ROLE, web_identity_token="/run/token"),
                f"role {ROLE} by a web identity token in /run/token",
            ),
            (CredentialSpec(api_key=API_KEY), "a Bedrock API key"),
            (
                CredentialSpec(api_key=API_KEY, **keys),
                "a Bedrock API key; for other services the configured AWS keys",
            ),
        ]:
            source = self.pool().source(spec)
            self.assertEqual(source.describe(), words)
            self.assertIn(words, repr(source))
        self.environ["AWS_BEARER_TOKEN_BEDROCK"] = API_KEY
        self.assertEqual(
            self.pool().source(CredentialSpec()).describe(),
            "the Bedrock API key of AWS_BEARER_TOKEN_BEDROCK;"
            " for other services the AWS credential chain",
        )


class RefreshTests(Case):
    """Credentials that expire."""

    spec = CredentialSpec(access_key_id=KEY_ID, secret_access_key=SECRET, role_arn=ROLE)

    def test_ahead(self) -> None:
        """New ones are got a quarter of an hour ahead, and not sooner."""
        source = self.started(self.spec)
        self.clock.advance(3600 - 901)
        self.assert_from_stub(source, 1)
        self.assertEqual(len(self.stub.calls), 1)
        self.clock.advance(2)
        self.assert_from_stub(source, 2)
        self.clock.advance(3600 - 901)
        self.assertEqual(len(self.stub.calls), 2)
        self.clock.advance(2)
        self.assert_from_stub(source, 3)
        self.assertEqual(len(self.logged()), 1, "only the first is worth a line")

    def test_short_life(self) -> None:
        """Those of a short life are replaced at half of it."""
        self.stub.lifetime_s = 600
        source = self.started(self.spec)
        self.clock.advance(299)
        self.assertEqual(len(self.stub.calls), 1)
        self.clock.advance(2)
        self.assert_from_stub(source, 2)

    def test_jitter(self) -> None:
        """Sources loaded together are not all refreshed together."""
        times = set()
        for value in (0.0, 0.5, 1.0):
            self.started(self.spec, jitter=lambda value=value: value)
        for call in self.clock.getDelayedCalls():
            times.add(call.getTime())
        self.assertEqual(times, {3600 - 990, 3600 - 900, 3600 - 810, 3600})

    def test_once(self) -> None:
        """Many who ask for a refresh share one."""
        threads = HeldThreads()
        source = self.started(self.spec, threadpool=threads)
        threads.run()
        refused = source.current("bedrock")
        assert isinstance(refused, Credentials)
        self.clock.advance(3600 - 900)
        self.assertEqual(len(threads.jobs), 1)
        waiting = [Deferred.fromCoroutine(source.refresh_now(refused)) for _ in range(50)]
        gone = Deferred.fromCoroutine(source.refresh_now(refused))
        gone.cancel()
        self.failureResultOf(gone)
        self.assertEqual(len(threads.jobs), 1)
        self.assert_from_stub(source, 1)
        threads.run()
        self.assertEqual([self.successResultOf(each) for each in waiting], [True] * 50)
        self.assert_from_stub(source, 2)
        self.clock.advance(60)
        late = Deferred.fromCoroutine(source.refresh_now(refused))
        self.assertTrue(self.successResultOf(late))
        self.assertEqual(threads.jobs, [])

    def test_refused_upstream(self) -> None:
        """AWS refuses what should live: new ones are got now, but not all the time."""
        source = self.started(self.spec)
        self.clock.advance(100)
        self.assertTrue(self.successResultOf(Deferred.fromCoroutine(source.refresh_now())))
        self.assert_from_stub(source, 2)
        self.assertFalse(self.successResultOf(Deferred.fromCoroutine(source.refresh_now())))
        self.assertEqual(len(self.stub.calls), 2)
        self.clock.advance(11)
        self.assertTrue(self.successResultOf(Deferred.fromCoroutine(source.refresh_now())))

    def test_refused_static(self) -> None:
        """There is nothing to refresh about configured keys."""
        source = self.started(STATIC)
        self.assertFalse(self.successResultOf(Deferred.fromCoroutine(source.refresh_now())))

    def test_refresh_hangs(self) -> None:
        """Who waits for a refresh does not wait for ever, and the old ones serve on."""
        threads = HeldThreads()
        source = self.started(self.spec, threadpool=threads)
        threads.run()
        self.clock.advance(100)
        waiting = Deferred.fromCoroutine(source.refresh_now())
        self.clock.advance(9)
        self.assertNoResult(waiting)
        self.clock.advance(2)
        self.assertFalse(self.successResultOf(waiting))
        self.assert_from_stub(source, 1)
        self.clock.advance(3600)
        self.assertEqual(len(threads.jobs), 1, "one at a time")
        self.refused(source)
        self.assertEqual(len(self.logged(LogLevel.error)), 1)
        threads.run()
        self.assert_from_stub(source, 2)
        self.assertIn("are back", self.logged(LogLevel.info)[-1])

    def test_life_and_death(self) -> None:
        """
        STS is down: the old ones live on and one line says so; when they are
        dead one more does, and clients get a 503; then all is well again.
        """
        source = self.started(self.spec)
        self.stub.refuse = lambda call: "down"
        self.clock.pump([1.0] * 3599)
        self.assert_from_stub(source, 1)
        self.assertEqual(len(self.logged(LogLevel.warn)), 1)
        self.assertEqual(self.logged(LogLevel.error), [])
        self.clock.pump([1.0] * 600)
        error = self.refused(source)
        self.assertIn("no valid AWS credentials", error.message)
        self.assertIn("AccessDenied", error.detail)
        self.assertEqual(len(self.logged(LogLevel.warn)), 1)
        self.assertEqual(len(self.logged(LogLevel.error)), 1)
        self.stub.refuse = None
        self.clock.pump([1.0] * 61)
        self.assertEqual(source.current("bedrock").access_key_id[:8], "ASIASTUB")
        self.assertEqual(len(self.logged(LogLevel.info)), 2)
        self.assertIn("are back", self.logged(LogLevel.info)[-1])

    def test_back_off(self) -> None:
        """Retries come slower and slower, up to once a minute, with jitter."""
        for jitter, expected in [
            (0.0, [2, 4, 8, 16, 32, 60, 60, 60]),
            (1.0, [1, 2, 4, 8, 16, 30, 30, 30]),
        ]:
            stub = self.make_stub()
            stub.refuse = lambda call: "down"
            self.environ["AWS_ENDPOINT_URL_STS"] = stub.url
            pool = self.pool(self.spec, jitter=lambda jitter=jitter: jitter)
            pool.startService()
            times = [self.clock.seconds()]
            while len(times) <= len(expected):
                self.clock.advance(1)
                if len(stub.calls) > len(times):
                    times.append(self.clock.seconds())
            pool.stopService()
            self.assertEqual([b - a for a, b in pairwise(times)], expected)

    def test_dead_on_arrival(self) -> None:
        """Credentials that have expired when they come are not used."""
        self.stub.lifetime_s = 30.0
        source = self.started(self.spec, wall_clock=lambda: self.wall() + 60)
        self.assertIn("had expired already", self.refused(source).detail)

    def test_wall_clock_jumps(self) -> None:
        """A machine that slept asks for new ones with the first request."""
        shift = [0.0]
        source = self.started(self.spec, wall_clock=lambda: self.wall() + shift[0])
        self.clock.advance(60)
        shift[0] = 7200.0
        self.stub.lifetime_s += 7200
        self.refused(source)
        self.assert_from_stub(source, 2)

    def test_stop(self) -> None:
        """Nothing is left over when the service has stopped, nor comes later."""
        threads = HeldThreads()
        pool = self.pool(self.spec, threadpool=threads)
        pool.startService()
        loaded = Deferred.fromCoroutine(pool.loaded())
        waiting = Deferred.fromCoroutine(pool.source(self.spec).refresh_now())
        pool.stopService()
        self.successResultOf(loaded)
        self.assertFalse(self.successResultOf(waiting))
        threads.run()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.refused(pool.source(self.spec))
        pool.startService()
        threads.run()
        self.assert_from_stub(pool.source(self.spec), 2)
        pool.stopService()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class StartTests(Case):
    """Readiness waits for credentials, within limits."""

    role = CredentialSpec(access_key_id=KEY_ID, secret_access_key=SECRET, role_arn=ROLE)

    def test_nothing_to_load(self) -> None:
        """Static keys are no reason to wait."""
        pool = self.pool(STATIC, CredentialSpec(api_key=API_KEY))
        loaded = Deferred.fromCoroutine(pool.loaded())
        self.assertNoResult(loaded)
        pool.startService()
        self.successResultOf(loaded)
        self.successResultOf(Deferred.fromCoroutine(pool.loaded()))
        pool.stopService()

    def test_all(self) -> None:
        """One that succeeds and one that fails: both are waited for, then on it goes."""
        threads = HeldThreads()
        missing = CredentialSpec(profile_name="missing")
        pool = self.pool(self.role, missing, STATIC, threadpool=threads)
        pool.startService()
        self.addCleanup(pool.stopService)
        loaded = Deferred.fromCoroutine(pool.loaded())
        first, second = threads.jobs
        threads.jobs = []
        first()
        self.assertNoResult(loaded)
        second()
        self.successResultOf(loaded)
        self.assert_from_stub(pool.source(self.role), 1)
        self.refused(pool.source(missing))
        self.assertEqual(len(self.logged(LogLevel.error)), 1)

    def test_deadline(self) -> None:
        """One that hangs is not waited for; it is used when it comes."""
        threads = HeldThreads()
        pool = self.pool(self.role, threadpool=threads, deadline_s=7.0)
        pool.startService()
        self.addCleanup(pool.stopService)
        loaded = Deferred.fromCoroutine(pool.loaded())
        self.clock.advance(6.9)
        self.assertNoResult(loaded)
        self.clock.advance(0.2)
        self.successResultOf(loaded)
        (line,) = self.logged(LogLevel.error)
        self.assertIn("not loaded within 7.0 s", line)
        self.assertIn("still loading", self.refused(pool.source(self.role)).message)
        threads.run()
        self.assert_from_stub(pool.source(self.role), 1)


class ThreadTests(World, TestCase):
    """With real threads, on the real reactor."""

    timeout = 20

    def setUp(self) -> None:
        self.set_up()

    def real_pool(self, *specs: CredentialSpec, **options: Any) -> CredentialPool:
        pool = CredentialPool(real_reactor, specs, environ=self.environ, **options)
        self.pools.append(pool)
        return pool

    async def test_loads(self) -> None:
        """Many sources, loaded side by side, each its own."""
        specs = [
            CredentialSpec(access_key_id=f"k{n}", secret_access_key=SECRET, role_arn=f"{ROLE}{n}")
            for n in range(8)
        ]
        pool = self.real_pool(*specs)
        pool.startService()
        await pool.loaded()
        found = {pool.source(spec).current("bedrock") for spec in specs}
        self.assertEqual(len(found), 8)
        signers = {call.form["RoleArn"]: call.signed_by for call in self.stub.calls}
        self.assertEqual(signers, {f"{ROLE}{n}": f"k{n}" for n in range(8)})
        await pool.stopService()

    async def test_hanging_sts(self) -> None:
        """
        STS takes the call and says nothing: the start goes on after the
        deadline, the reactor is never held up, and stopping takes a second.
        """
        self.stub.hang = True
        spec = CredentialSpec(access_key_id=KEY_ID, secret_access_key=SECRET, role_arn=ROLE)
        # Once without a clock: what Python does only once in a process.
        chain._Session(self.environ, profile=None, region=None, sts_endpoint_url=None)
        gaps: list[float] = []
        last = [time.monotonic()]

        def tick() -> None:
            now = time.monotonic()
            gaps.append(now - last[0])
            last[0] = now

        pool = self.real_pool(spec, deadline_s=0.4)
        ticking = LoopingCall(tick)
        begin = time.monotonic()
        pool.startService()
        done = ticking.start(0.01)
        await pool.loaded()
        elapsed = time.monotonic() - begin
        self.assertTrue(0.35 < elapsed < 2, elapsed)
        self.assertEqual(len(self.stub.calls), 1, "it hangs in the call")
        self.assertRaises(CredentialsUnavailable, pool.source(spec).current, "bedrock")
        begin = time.monotonic()
        await pool.stopService()
        self.assertLess(time.monotonic() - begin, 3)
        ticking.stop()
        await done
        self.assertGreater(len(gaps), 20)
        self.assertLess(sorted(gaps)[len(gaps) // 2], 0.05)
        self.assertLess(max(gaps), 0.5)

    async def test_stop_is_quick(self) -> None:
        """Threads that do nothing do not delay the end."""
        pool = self.real_pool(CredentialSpec(access_key_id="a", role_arn=ROLE))
        pool.startService()
        await pool.loaded()
        begin = time.monotonic()
        await pool.stopService()
        self.assertLess(time.monotonic() - begin, 0.5)
        await deferLater(real_reactor, 0)
