"""
What may be said on the command line, and what comes of it.
"""

from __future__ import annotations

import gc
import io
import os
import re
import sys
from typing import Any

import trustme
from twisted.application.service import Application, IService
from twisted.logger import ILogObserver, Logger, LogLevel
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from txbedrock import __version__
from txbedrock.tap import Options, makeService

KEY = "sk-planted-master-key"
CONFIG = """
model_list:
  - model_name: m
    litellm_params:
      model: bedrock/us.amazon.nova-lite-v1:0
      aws_region_name: us-west-2
      aws_access_key_id: AKIAPLANTED
      aws_secret_access_key: planted-aws-secret
general_settings: {%s}
"""
WITH_KEY = CONFIG % f"master_key: {KEY}"


class OptionsTestCase(SynchronousTestCase):
    """Options in an empty folder and an empty environment."""

    def setUp(self) -> None:
        self.folder = os.path.abspath(self.mktemp())
        os.makedirs(self.folder)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        self.environ: dict[str, str] = {}
        self.patch(os, "environ", self.environ)
        self.out, self.err = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", self.out)
        self.patch(sys, "stderr", self.err)

    def file(self, text: str, name: str = "config.yaml") -> str:
        with open(name, "w") as file:
            file.write(text)
        return name

    def parse(self, *arguments: str, parent: Any = None) -> Options:
        options = Options()
        if parent is not None:
            options.parent = parent
        options.parseOptions(list(arguments))
        return options

    def configured(self, *arguments: str, config: str = WITH_KEY) -> Options:
        """With a configuration that has a key."""
        return self.parse("--config", self.file(config), *arguments)

    def exits(self, status: int, *arguments: str) -> str:
        """Parsing ends the program; what it said on standard error."""
        exit = self.assertRaises(SystemExit, self.parse, *arguments)
        self.assertEqual(exit.code, status, self.err.getvalue())
        return self.err.getvalue()

    def assert_refused(self, word: str, *arguments: str) -> None:
        """Not started, with one problem, which holds a word."""
        self.err.seek(0)
        self.err.truncate()
        [problem, end] = self.exits(1, "--config", self.file(WITH_KEY), *arguments).splitlines()
        self.assertIn(word, problem)
        self.assertEqual(end, "bedrockproxy: 1 problem, not started")

    def assert_misused(self, word: str, *arguments: str) -> None:
        error = self.assertRaises(UsageError, self.configured, *arguments)
        self.assertIn(word, str(error))


class ListenTests(OptionsTestCase):
    """Where the gateway listens."""

    def test_default(self) -> None:
        """Port 4000 of every interface when there is a key."""
        self.assertEqual(self.configured().listen, ["tcp:4000"])

    def test_several(self) -> None:
        """--listen may be given several times."""
        options = self.configured("--listen", "tcp:1:interface=127.0.0.1", "-l", "tcp:2")
        self.assertEqual(options.listen, ["tcp:1:interface=127.0.0.1", "tcp:2"])

    def test_host_and_port(self) -> None:
        """--host and --port are short for an endpoint string, IPv6 too."""
        for arguments, endpoint in (
            (("--port", "80"), "tcp:80"),
            (("-p", "0"), "tcp:0"),
            (("--host", "127.0.0.1"), "tcp:4000:interface=127.0.0.1"),
            (("--host", "localhost", "--port", "80"), "tcp:80:interface=localhost"),
            (("--host", "::1", "--port", "80"), r"tcp6:80:interface=\:\:1"),
            (("--host", "[::1]"), r"tcp6:4000:interface=\:\:1"),
            (("--host", "::"), r"tcp6:4000:interface=\:\:"),
        ):
            self.assertEqual(self.configured(*arguments).listen, [endpoint])

    def test_both_ways(self) -> None:
        """--listen and --host or --port together are refused: which would win?"""
        for arguments in (("--host", "127.0.0.1"), ("--port", "80")):
            self.assert_misused("either --listen or", "--listen", "tcp:1", *arguments)

    def test_bad_port(self) -> None:
        """A port that is none is refused."""
        for port in ("http", "-1", "65536", "4.5", "", "²"):
            self.assert_misused("number up to 65535", "--port", port)

    def test_bad_endpoint(self) -> None:
        """What is no endpoint string is refused with one that would be."""
        for endpoint, word in (
            ("", "tcp:4000"),
            ("4000", "tcp:4000"),
            ("localhost:4000", "unknown endpoint type: 'localhost'"),
            ("tcp", "tcp:4000"),
            ("tcp:http", "tcp:4000"),
            ("tcp:4000:nonsense=1", "tcp:4000"),
            ("tcp:4000:interface=::1", r"tcp6:4000:interface=\:\:1"),
        ):
            self.assert_refused(word, "--listen", endpoint)
            self.assertIn(f"--listen {endpoint}: ", self.err.getvalue())

    def test_every_problem(self) -> None:
        """Several bad endpoints are told of at once."""
        said = self.exits(
            1, "--config", self.file(WITH_KEY), "--listen", "x:1", "--listen", "ssl:2"
        )
        self.assertEqual(len(said.splitlines()), 3)
        self.assertIn("2 problems, not started", said)

    def certificate(self) -> None:
        """key.pem, cert.pem, and both in pems/."""
        issued = trustme.CA().issue_cert("localhost")
        issued.private_key_pem.write_to_path("key.pem")
        issued.cert_chain_pems[0].write_to_path("cert.pem")
        os.makedirs("pems")
        issued.private_key_and_cert_chain_pem.write_to_path("pems/localhost.pem")

    def test_certificates(self) -> None:
        """A TLS endpoint whose key or certificate is missing or rubbish is refused."""
        self.certificate()
        self.file("rubbish", "rubbish.pem")
        os.makedirs("empty")
        for endpoint, word in (
            ("ssl:4443", "No such file or directory: "),
            ("ssl:4443:privateKey=no.pem:certKey=cert.pem", f"{self.folder}/no.pem"),
            ("ssl:4443:privateKey=key.pem:certKey=no.pem", f"{self.folder}/no.pem"),
            ("ssl:4443:privateKey=rubbish.pem:certKey=cert.pem", "in PEM format"),
            ("ssl:4443:privateKey=key.pem:certKey=rubbish.pem", "in PEM format"),
            ("tls:no-such-folder:port=4443", f"{self.folder}/no-such-folder"),
            ("tls:empty:port=4443", "No certificate"),
            ("tls:port=4443:path=empty", "No certificate"),
        ):
            self.assert_refused(word, "--listen", endpoint)

    def test_absolute_paths(self) -> None:
        """Paths are made absolute, since a daemon may run in another folder."""
        self.certificate()
        here = self.folder
        for endpoint, absolute in (
            (
                "ssl:4443:privateKey=key.pem:certKey=./cert.pem:interface=127.0.0.1",
                f"ssl:4443:privateKey={here}/key.pem:certKey={here}/cert.pem:interface=127.0.0.1",
            ),
            ("tls:pems:port=4443", f"tls:{here}/pems:port=4443"),
            ("tls:path=pems:port=4443", f"tls:path={here}/pems:port=4443"),
            ("unix:run/sock", f"unix:{here}/run/sock"),
            ("unix:address=sock:mode=600", f"unix:address={here}/sock:mode=600"),
            ("unix:/run/sock", "unix:/run/sock"),
            (r"unix:a\:b", rf"unix:{here}/a\:b"),
            ("haproxy:unix:sock", f"haproxy:unix:{here}/sock"),
            ("tcp:4000", "tcp:4000"),
        ):
            self.assertEqual(self.configured("--listen", endpoint).listen, [absolute])


class WithoutKeyTests(OptionsTestCase):
    """No master key: everyone who reaches the gateway may spend."""

    def test_default(self) -> None:
        """Without a key and without a word the gateway listens on this machine only."""
        self.assertEqual(self.parse().listen, ["tcp:4000:interface=127.0.0.1"])
        self.assertEqual(self.parse("--port", "0", "--host", "::1").listen, [
            r"tcp6:0:interface=\:\:1"
        ])  # fmt: skip

    def test_this_machine(self) -> None:
        """Every way to say so is accepted."""
        for endpoint in (
            "tcp:4000:interface=127.0.0.1",
            "tcp:4000:interface=127.1.2.3",
            "tcp:4000:interface=localhost",
            r"tcp6:4000:interface=\:\:1",
            "unix:/run/txbedrock.sock",
            "haproxy:tcp:4000:interface=127.0.0.1",
        ):
            self.assertEqual(self.parse("--listen", endpoint).listen, [endpoint])

    def test_other_machines(self) -> None:
        """Everything that other machines can reach is refused, with what to do."""
        issued = trustme.CA().issue_cert("localhost")
        issued.private_key_and_cert_chain_pem.write_to_path("both.pem")
        for arguments in (
            ("--listen", "tcp:4000"),
            ("--listen", "tcp:4000:interface="),
            ("--listen", "tcp:4000:interface=0.0.0.0"),
            ("--listen", "tcp:4000:interface=192.168.1.2"),
            ("--listen", "tcp:4000:interface=127.0.0.1.example.com"),
            ("--listen", "tcp:4000:interface=1270.0.1"),
            ("--listen", "tcp:4000:interface=127.0.0.1:interface=0.0.0.0"),
            ("--listen", r"tcp6:4000:interface=\:\:"),
            ("--listen", "tcp6:4000"),
            ("--listen", "ssl:4443:privateKey=both.pem:certKey=both.pem"),
            ("--listen", "tls:."),
            ("--listen", "haproxy:tcp:4000"),
            ("--listen", "tcp:4001:interface=127.0.0.1", "--listen", "tcp:4000"),
            ("--host", "0.0.0.0"),
            ("--port", "4000"),
        ):
            self.err.truncate(0)
            said = self.exits(1, *arguments)
            self.assertIn("without a master key", said)
            self.assertIn("TXBEDROCK_MASTER_KEY", said)
            self.assertIn("allow_no_key", said)
            self.assertNotIn("Traceback", said)

    def test_allowed(self) -> None:
        """Whoever says that all may call gets what he asked for."""
        options = self.configured("--listen", "tcp:1", config=CONFIG % "allow_no_key: true")
        self.assertEqual(options.listen, ["tcp:1"])
        options = self.configured(config=CONFIG % "allow_no_key: true")
        self.assertEqual(options.listen, ["tcp:4000"])

    def test_key_from_the_environment(self) -> None:
        """A key in the environment is one."""
        for name in ("TXBEDROCK_MASTER_KEY", "LITELLM_MASTER_KEY"):
            self.environ.clear()
            self.environ[name] = KEY
            options = self.parse()
            self.assertEqual((options.settings.master_key, options.listen), (KEY, ["tcp:4000"]))


class ConfigTests(OptionsTestCase):
    """The configuration."""

    def test_relative(self) -> None:
        """Its path is made absolute."""
        options = self.configured()
        self.assertEqual(options["config"], f"{self.folder}/config.yaml")
        self.assertEqual([one.model_name for one in options.settings.deployments], ["m"])

    def test_none(self) -> None:
        """Without one, everything comes from the environment."""
        self.environ["AWS_REGION_NAME"] = "eu-central-1"
        settings = self.parse().settings
        assert settings.default is not None
        self.assertEqual((settings.deployments, settings.default.region), ((), "eu-central-1"))

    def test_config_file_path(self) -> None:
        """CONFIG_FILE_PATH names one too; --config wins."""
        self.environ["CONFIG_FILE_PATH"] = self.file(WITH_KEY)
        self.assertEqual(self.parse()["config"], f"{self.folder}/config.yaml")
        other = self.file(CONFIG % "master_key: sk-other", "other.yaml")
        self.assertEqual(self.parse("-c", other).settings.master_key, "sk-other")

    def test_environment_variables(self) -> None:
        """What the file sets in the environment is set for the gateway."""
        self.configured(config=WITH_KEY + "environment_variables: {AWS_PROFILE: team}\n")
        self.assertEqual(self.environ["AWS_PROFILE"], "team")

    def test_missing(self) -> None:
        """A file that is not there is named."""
        said = self.exits(1, "--config", "no-such.yaml")
        self.assertIn(f"{self.folder}/no-such.yaml", said)
        self.assertIn("1 problem, not started", said)

    def test_every_problem(self) -> None:
        """A broken file is refused with each problem on a line: file, line, key."""
        path = self.file(
            "model_list:\n"
            "  - model_name: m\n"
            "    litellm_params: {model: bedrock/us.amazon.nova-lite-v1:0, timeout: soon}\n"
            "general_settings:\n"
            "  master_key: [planted]\n"
            "  shutdown_grace: never\n"
        )
        said = self.exits(1, "--config", path).splitlines()
        self.assertEqual(said[-1], f"bedrockproxy: {len(said) - 1} problems, not started")
        for line, key in ((3, "timeout"), (5, "master_key"), (6, "shutdown_grace")):
            [problem] = [one for one in said if f":{line}: " in one and key in one]
            self.assertTrue(problem.startswith(f"{self.folder}/config.yaml:"), problem)
        self.assertNotIn("planted", "".join(said))

    def test_broken_yaml(self) -> None:
        """So is a file that is no YAML at all."""
        for text in ("model_list: [", "\tx: y", "a: b: c", "\0"):
            self.err.truncate(0)
            said = self.exits(1, "--config", self.file(text))
            self.assertRegex(said, r"config\.yaml:\d+")
            self.assertNotIn("Traceback", said)

    def test_check(self) -> None:
        """--check prints what the configuration means, without a secret, and exits with 0."""
        self.assertEqual(self.exits(0, "--config", self.file(WITH_KEY), "--check"), "")
        said = self.out.getvalue()
        for word in ("m\n", "us.amazon.nova-lite-v1:0", "us-west-2", "AWS keys", "/bedrock"):
            self.assertIn(word, said)
        self.assertNotIn("planted", said)
        self.assertTrue(said.endswith("\n") and not said.endswith("\n\n"))

    def test_check_broken(self) -> None:
        """--check exits with 1 for what a start would refuse, endpoints included."""
        self.assert_refused("tcp:4000", "--check", "--listen", "nonsense")
        self.assertEqual(self.out.getvalue(), "")


class OtherTests(OptionsTestCase):
    """The rest of the command line."""

    def test_log_options(self) -> None:
        """A wrong log format or level is refused with the right ones."""
        self.assert_misused("text or json", "--log-format", "xml")
        self.assert_misused("debug, info, warn or error", "--log-level", "loud")
        for log_format in ("text", "json"):
            self.configured("--log-format", log_format)
        for level in ("debug", "info", "warn", "error"):
            self.configured("--log-level", level)

    def test_not_an_option(self) -> None:
        """What is no option is refused by name."""
        self.assert_misused("config.yaml", "config.yaml")
        self.assert_misused("workers", "--workers", "4")

    def test_daemon_on_standard_output(self) -> None:
        """A daemon has no standard output to log to."""
        error = self.assertRaises(UsageError, self.parse, parent={"logfile": "-"})
        self.assertIn("twistd -n", str(error))
        self.parse(parent={"logfile": "-", "nodaemon": True})

    def test_version(self) -> None:
        """--version is the gateway's own."""
        self.exits(0, "--version")
        self.assertEqual(self.out.getvalue(), f"txbedrock {__version__}\n")

    def test_help(self) -> None:
        """--help tells of every option, in lines that fit and without odd gaps."""
        self.exits(0, "--help")
        said = self.out.getvalue()
        for name in (
            "config",
            "listen",
            "host",
            "port",
            "check",
            "log-format",
            "log-level",
            "version",
            "help",
        ):
            self.assertIn(f"--{name}", said)
        self.assertIn("tcp:4000", said)
        self.assertLessEqual(max(map(len, said.splitlines())), 80)
        for line in said.splitlines():
            self.assertIsNone(re.search(r"\S {4,}\S", line[20:]), line)


class MakeServiceTests(OptionsTestCase):
    """The service, and what logs."""

    def service(self, *arguments: str, parent: Any = None) -> Any:
        options = self.parse("--config", self.file(WITH_KEY), *arguments, parent=parent)
        service = makeService(options)
        verifyObject(IService, service)
        return service

    def say(self, observer: Any, text: str, level: str = "warn") -> None:
        """Log something."""
        Logger("tests", observer=observer).emit(LogLevel.lookupByName(level), text)

    def observer(self, *arguments: str, **parent: Any) -> Any:
        """What twistd finds on the application."""
        application = Application("bedrockproxy")
        self.service(*arguments, parent=parent).setServiceParent(application)
        return application.getComponent(ILogObserver)

    def test_opens_nothing(self) -> None:
        """Nothing is open before the start: twistd forks in between."""
        self.service("--listen", "tcp:0", parent={"logfile": "log"})
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        self.service("--listen", "tcp:0", parent={"logfile": "log"})
        self.assertLessEqual(len(os.listdir("/proc/self/fd")), before)
        self.assertEqual(os.listdir("."), ["config.yaml"])

    def test_console(self) -> None:
        """twistd -n logs to standard output, as text or JSON."""
        for arguments, beginning in (((), "2"), (("--log-format", "json"), "{")):
            self.out.truncate(0)
            self.out.seek(0)
            observer = self.observer(*arguments, nodaemon=True)
            self.say(observer, "some words")
            self.assertIn("some words", self.out.getvalue())
            self.assertEqual(self.out.getvalue()[0], beginning)

    def test_files(self) -> None:
        """A log file is where twistd was told, a daemon's twistd.log otherwise."""
        for name, parent in (
            ("some.log", {"logfile": "some.log"}),
            ("other.log", {"logfile": "other.log", "nodaemon": True}),
            ("twistd.log", {"logfile": None, "nodaemon": False}),
        ):
            observer = self.observer(**parent)
            os.makedirs("elsewhere", exist_ok=True)
            os.chdir("elsewhere")
            self.say(observer, "words")
            os.chdir("..")
            with open(name) as file:
                self.assertIn("words", file.read())

    def test_other_logger(self) -> None:
        """Who gives twistd a logger or syslog gets that."""
        self.assertIsNone(self.observer(nodaemon=True, logger="some.logger"))
        self.assertIsNone(self.observer(nodaemon=True, syslog=True))

    def twist(self, *arguments: str, **options: Any) -> str:
        """What is written when twist has these options of its own."""
        stream = io.StringIO()
        parent = {
            "logFile": stream,
            "logLevel": LogLevel.info,
            "logFormat": "json",
            "fileLogObserverFactory": None,
            **options,
        }
        self.service(*arguments, parent=parent)
        observer = parent["fileLogObserverFactory"](stream)
        self.assertIs(parent["logLevel"], LogLevel.debug)
        for level in ("debug", "info", "warn"):
            self.say(observer, "words", level)
        return stream.getvalue()

    def test_twist(self) -> None:
        """Under twist the log goes where twist's goes, in its format and level or in ours."""
        self.assertEqual([line[0] for line in self.twist().splitlines()], ["{", "{"])
        self.assertNotEqual(self.twist(logFormat="text")[0], "{")
        self.assertNotEqual(self.twist("--log-format", "text")[0], "{")
        self.assertEqual(self.twist("--log-format", "json", logFormat="text")[0], "{")
        self.assertEqual(len(self.twist(logLevel=LogLevel.warn).splitlines()), 1)
        self.assertEqual(len(self.twist("--log-level", "debug").splitlines()), 3)

    def test_secrets_hidden(self) -> None:
        """No secret of the configuration or the environment is written."""
        self.environ["AWS_SECRET_ACCESS_KEY"] = "planted-in-the-environment"
        self.environ["AWS_ACCESS_KEY_ID"] = "AKIA"
        observer = self.observer(nodaemon=True)
        self.say(observer, f"x {KEY} planted-aws-secret planted-in-the-environment")
        self.assertIn("x [redacted] [redacted] [redacted]", self.out.getvalue())
