"""
What an operator finds in the log, and what is never found there.
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.python import log as legacy
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from txbedrock import logs
from txbedrock.core.auth import Principal
from txbedrock.core.entries import LedgerEntry
from txbedrock.inbound.body import Body
from txbedrock.interfaces import ExchangeRecord, InboundRequest
from txbedrock.logs import (
    AccessLog,
    LazyFileObserver,
    Redaction,
    RefusalLog,
    json_format,
    text_format,
)

SECRET = 'planted"secret\\with/signs'
SIGNATURE = "0123456789abcdef" * 4


class Planted(Exception):
    """An error with a secret in its text."""


class Written:
    """A log of our own, and what was written to it."""

    def __init__(self, *, as_json: bool = False, level: Any = LogLevel.info, secret: str = SECRET):
        self.stream = io.StringIO()
        self.publisher = LogPublisher(
            LazyFileObserver(self.stream, as_json=as_json, redact=Redaction([secret]), level=level)
        )

    def logger(self, namespace: str = "txbedrock.tests") -> Logger:
        return Logger(namespace, observer=self.publisher)

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def objects(self) -> list[dict[str, Any]]:
        """Of a JSON log: one a line, and nothing between them."""
        return [json.loads(line) for line in self.text.split("\n")[:-1]]


def failure(message: str) -> Failure:
    """One with a traceback."""
    try:
        raise Planted(message)
    except Planted:
        return Failure()


class RedactionTests(SynchronousTestCase):
    """Secrets in a text that is going to be logged."""

    def assert_hidden(self, text: str, secret: str, *secrets: str) -> str:
        hidden = Redaction(secrets)(text)
        self.assertNotIn(secret, hidden)
        self.assertIn("[redacted]", hidden)
        return hidden

    def test_configured(self) -> None:
        """What the configuration knows as a secret is hidden wherever it stands."""
        for secret in ("plain-secret", SECRET, "a.b*c+d(e", "wJalrXUtnFEMI/K7MDENG", "1234"):
            for text in (secret, f"x{secret}y", f"{secret} and {secret}", f"['{secret}']"):
                hidden = self.assert_hidden(text, secret, secret)
                self.assertEqual(hidden, text.replace(secret, "[redacted]"))

    def test_one_in_another(self) -> None:
        """Of two secrets, one of which begins the other, nothing is left over."""
        redact = Redaction(["secret", "secret-longer"])
        self.assertEqual(redact("secret-longer secret"), "[redacted] [redacted]")

    def test_too_short(self) -> None:
        """A few letters are no secret: hiding them would spoil every line."""
        self.assertEqual(Redaction(["", "a", "and"])("a cat and a dog"), "a cat and a dog")

    def test_shapes(self) -> None:
        """What looks like a key is hidden although nobody configured it."""
        for text, secret in (
            ("key sk-abcdef123 refused", "sk-abcdef123"),
            ("'sk-proj-abc_DEF-123'", "sk-proj-abc_DEF-123"),
            ("Authorization: Bearer abc.def/ghi+jkl==", "abc.def/ghi+jkl=="),
            ("b'Bearer abcdef'", "abcdef"),
            ("authorization: bearer abcdef", "abcdef"),
            ("bedrock-api-key-YmVkcm9jaw==", "YmVkcm9jaw"),
            ("ABSKQmVkcm9ja0FQSUtleS1abcd=", "QmVkcm9ja0FQSUtleS1abcd"),
            (f"AWS4-HMAC-SHA256 Credential=x/y, Signature={SIGNATURE}", SIGNATURE),
            ("Credential=sk-virtual/20260101/us-west-2/bedrock/aws4_request", "sk-virtual"),
            ("Credential=AKIAIOSFODNN7EXAMPLE/20260101/", "AKIAIOSFODNN7EXAMPLE"),
            ("x-api-key: some.thing-else", "some.thing-else"),
            ("(b'x-litellm-api-key', b'something')", "something"),
            ("X-Amz-Security-Token: FwoGZXIvYXdzEBYaDH", "FwoGZXIvYXdzEBYaDH"),
            (f"?X-Amz-Signature={SIGNATURE}&x=1", SIGNATURE),
            ("?X-Amz-Security-Token=FwoGZXIvYXdz%2F&x=1", "FwoGZXIvYXdz%2F"),
        ):
            self.assert_hidden(text, secret)

    def test_headers(self) -> None:
        """Of a header that carries a key, the name is left, and the key is hidden once."""
        for text, hidden in (
            ("Authorization: Bearer abcdef", "Authorization: Bearer [redacted]"),
            ("authorization: BEARER abcdef", "authorization: BEARER [redacted]"),
            ("Authorization: Basic YTpi", "Authorization: Basic [redacted]"),
            ("x-api-key: known", "x-api-key: [redacted]"),
            ("x-api-key: other, x: y", "x-api-key: [redacted], x: y"),
            ("{'x-api-key': 'other'}", "{'x-api-key': '[redacted]'}"),
            ("{b'x-api-key': [b'other']}", "{b'x-api-key': [b'[redacted]']}"),
            ("(b'authorization', b'Bearer other')", "(b'authorization', b'Bearer [redacted]')"),
            ("?X-Amz-Security-Token=other&x=y", "?X-Amz-Security-Token=[redacted]&x=y"),
        ):
            self.assertEqual(Redaction(["known"])(text), hidden)

    def test_rest_of_the_line(self) -> None:
        """What stands around a secret stays readable."""
        text = (
            "refused: AWS4-HMAC-SHA256 Credential=AKIAX/20260101/us-west-2/bedrock/aws4_request, "
            f"SignedHeaders=host;x-amz-date, Signature={SIGNATURE} (403)"
        )
        self.assertEqual(
            Redaction()(text),
            "refused: AWS4-HMAC-SHA256 Credential=[redacted]/20260101/us-west-2/bedrock/"
            "aws4_request, SignedHeaders=host;x-amz-date, Signature=[redacted] (403)",
        )

    def test_ordinary_text(self) -> None:
        """Model ids, ARNs, ids, addresses and plain words are left alone."""
        for text in (
            "anthropic.claude-3-5-sonnet-20241022-v2:0",
            "arn:aws:bedrock:us-west-2:123456789012:inference-profile/us.amazon.nova-lite-v1:0",
            "2026-11-22T18:18:54+0000 info txbedrock.service: ready on 127.0.0.1:4000",
            "3f0e8a52-7d2b-4a3e-9c54-1f2f6a1f0b11",
            "the risk-free task-list asks-for desk-top",
            "a bearer token, and the Credential part, are explained in the README",
            "Signature does not match; the SignatureVersion is 4",
            "cannot listen on tcp:4000: Address already in use",
            "a key of fewer than 4 characters",
            "x-api-key is missing",
        ):
            self.assertEqual(Redaction(["planted-secret"])(text), text)


class TextTests(SynchronousTestCase):
    """Lines for people."""

    def test_line(self) -> None:
        """A line has its time, level and source, and the message."""
        log = Written()
        log.logger().warn("{count} of {all}", count=3, all=4)
        self.assertRegex(
            log.text, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} warn txbedrock\.tests: 3 of 4\n$"
        )

    def test_continuation(self) -> None:
        """Whatever a message holds, each line that begins in column one is an event."""
        log = Written()
        log.logger().info("{text}", text="first\nsecond\r\nthird\x0bfourth\x85fifth\u2028sixth")
        log.logger().failure("it failed", failure("reason\n2026-01-01 info x: forged"))
        log.logger().info("last")
        beginnings = [line for line in log.lines if not line.startswith("    ")]
        self.assertEqual(len(beginnings), 3)
        for line in beginnings:
            self.assertRegex(line, r"^\d{4}-\d\d-\d\dT")

    def test_control_characters(self) -> None:
        """What a client sends cannot move an operator's cursor."""
        log = Written()
        log.logger().info("{model}", model="a\x1b[2Jb\x07\x08\x7f\u202e")
        self.assertIn(r"a\x1b[2Jb\x07\x08\x7f\u202e", log.text)

    def test_other_languages(self) -> None:
        """Letters of any script stay letters."""
        log = Written()
        log.logger().info("{model}", model="modèle 模型")
        self.assertIn("modèle 模型", log.text)

    def test_traceback(self) -> None:
        """A failure has its traceback, below its own line, without the secret in it."""
        log = Written()
        log.logger().failure("it failed", failure(f"with {SECRET} and Bearer abcdef"))
        first, *rest = log.lines
        self.assertTrue(first.endswith("critical txbedrock.tests: it failed"))
        self.assertTrue(all(line.startswith("    ") for line in rest))
        self.assertIn("in failure", log.text)
        self.assertIn("Planted: with [redacted] and Bearer [redacted]", log.text)
        self.assertNotIn("planted", log.text)
        self.assertNotIn("abcdef", log.text)

    def test_secret(self) -> None:
        """A secret in any value is hidden."""
        log = Written()
        log.logger().info("{headers}", headers=[("x", SECRET.replace("\\", ""))])
        log.logger().info("{headers}", headers=f"x: {SECRET}")
        self.assertIn("[redacted]", log.lines[1])


class JsonTests(SynchronousTestCase):
    """Lines for machines."""

    def test_object(self) -> None:
        """A line is an object with time, level, source, message and the plain fields."""
        log = Written(as_json=True)
        log.logger().info(
            "{count} of {all}", count=3, all=4.5, none=None, yes=True, thing=object(), raw=b"x"
        )
        [line] = log.objects
        self.assertRegex(line.pop("time"), r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}$")
        self.assertEqual(
            line,
            {
                "level": "info",
                "source": "txbedrock.tests",
                "message": "3 of 4.5",
                "count": 3,
                "all": 4.5,
                "none": None,
                "yes": True,
            },
        )

    def test_own_fields_win(self) -> None:
        """A field that is called like one of the line's own does not replace it."""
        log = Written(as_json=True)
        log.logger().info("text", time="never", source="x", message="forged")
        [line] = log.objects
        self.assertEqual((line["source"], line["message"]), ("txbedrock.tests", "text"))
        self.assertNotEqual(line["time"], "never")

    def test_one_line_an_event(self) -> None:
        """Line breaks, quotes, tracebacks and odd letters stay inside one valid line."""
        log = Written(as_json=True)
        messages = ['"quoted"', "two\nlines", "\x1b\x00\u2028\u2029", "模型", "\ud800", "\\", ""]
        for text in messages:
            log.logger().info("m {text}", text=text)
        log.logger().failure("it failed", failure('two\n"lines"'))
        self.assertEqual(len(log.objects), len(messages) + 1)
        self.assertEqual([line["message"] for line in log.objects[:3]], [
            'm "quoted"', "m two\nlines", "m \x1b\x00\u2028\u2029",
        ])  # fmt: skip
        self.assertIn("Planted: two", log.objects[-1]["traceback"])
        self.assertTrue(log.text.isascii())

    def test_secrets(self) -> None:
        """Hiding a secret hides it in every form, and leaves valid JSON."""
        log = Written(as_json=True)
        for text in (
            SECRET,
            f'"{SECRET}"',
            '{"Authorization": "Bearer abcdef"}',
            "Bearer abcdef\\",
            'Credential="x"',
            "sk-abcdef",
        ):
            log.logger().info("{text}", text=text, other=text)
            log.logger().failure("it failed", failure(text))
        self.assertEqual(len(log.objects), 12)
        for word in ("planted", "abcdef"):
            self.assertNotIn(word, log.text)
        self.assertEqual(log.objects[0]["other"], "[redacted]")


class FormattingTests(SynchronousTestCase):
    """Events that are not as they should be."""

    def formats(self) -> list[Written]:
        return [Written(), Written(as_json=True)]

    def test_broken_format(self) -> None:
        """An event that cannot be formatted is a line that says so, and logging goes on."""

        class Evil:
            def __repr__(self) -> str:
                raise RuntimeError("no")

            __str__ = __repr__

        for log in self.formats():
            log.logger().info("{missing}")
            log.logger().info("{evil}", evil=Evil())
            log.logger().info("{broken", value=1)
            log.logger().info("{value:d}", value="text")
            log.logger().info("after")
            self.assertEqual(len([x for x in log.lines if not x.startswith("    ")]), 5)
            self.assertIn("nable to format", log.lines[0])
            self.assertIn("after", log.lines[-1])

    def test_nothing_to_say(self) -> None:
        """An event without words leaves no line."""
        for log in self.formats():
            log.logger().info("")
            log.logger().info("", value=1)
            self.assertEqual(log.text, "")

    def test_older_events(self) -> None:
        """Twisted's older logging comes out too, with its traceback once."""
        for log in self.formats():
            publisher = legacy.LogPublisher(publishPublisher=log.publisher)
            publisher.msg("plain words")
            publisher.msg(
                failure=failure("reason"), why="because", isError=1, log_failure=failure("reason")
            )
            self.assertIn("plain words", log.lines[0])
            self.assertEqual(log.text.count("Traceback"), 1)
            self.assertIn("because", log.text)

    def test_formats_alone(self) -> None:
        """A format gives None for what is not to be written."""
        event = {"log_time": 0.0, "log_format": "", "log_level": LogLevel.info}
        for make in (text_format, json_format):
            self.assertIsNone(make(lambda text: text)(event))


class LevelTests(SynchronousTestCase):
    """How much is written."""

    def written(self, level: Any) -> list[str]:
        log = Written(level=level)
        for name in ("debug", "info", "warn", "error", "critical"):
            log.logger().emit(LogLevel.lookupByName(name), name)
        return [line.split()[1] for line in log.lines]

    def test_levels(self) -> None:
        """Each level shows itself and what is graver."""
        names = ["debug", "info", "warn", "error", "critical"]
        for index, name in enumerate(names[:4]):
            self.assertEqual(self.written(LogLevel.lookupByName(name)), names[index:])

    def test_twisted_is_quiet(self) -> None:
        """Twisted's notices of ports, factories and connections are for debugging only."""

        def notices(log: Written) -> None:
            log.logger("twisted.internet.base").info("Main loop terminated.")
            log.logger("twisted.web.http").info("Starting factory x")
            log.logger("twisted.scripts._twistd_unix.UnixAppLogger").info("reactor class: x")
            publisher = legacy.LogPublisher(publishPublisher=log.publisher)
            publisher.msg("Site starting on 4000")
            publisher.msg("Site (TLS) starting on 4000")
            publisher.msg("(TCP Port 4000 Closed)")
            publisher.msg("(TLS Port 4000 Closed)")

        log = Written()
        notices(log)
        self.assertEqual(log.text, "")
        log.logger("twisted.internet.base").warn("odd")
        log.logger("twisted.web.http").failure("worse", failure("x"))
        legacy.LogPublisher(publishPublisher=log.publisher).msg("failed to set uid 0")
        self.assertEqual(len([line for line in log.lines if line[0] != " "]), 3)
        debugging = Written(level=LogLevel.debug)
        notices(debugging)
        self.assertEqual(len(debugging.lines), 7)

    def test_quieter_still(self) -> None:
        """At level error Twisted's warnings are not written either."""
        log = Written(level=LogLevel.error)
        log.logger("twisted.web.http").warn("odd")
        log.logger("twisted.web.http").error("worse")
        self.assertEqual(len(log.lines), 1)


class FileTests(SynchronousTestCase):
    """Where it is written."""

    def observer(self, path: str, **options: Any) -> LazyFileObserver:
        observer = LazyFileObserver(path, as_json=False, redact=Redaction(), **options)
        self.addCleanup(lambda: observer._filtered and self.file_of(observer).close())
        return observer

    def file_of(self, observer: Any) -> Any:
        return observer._filtered._observer._outFile

    def test_lazily(self) -> None:
        """A file is made when there is something to write, so after a daemon has forked."""
        path = os.path.abspath(self.mktemp())
        observer = self.observer(path)
        self.assertFalse(os.path.exists(path))
        Logger("x", observer=observer).debug("not written")
        Logger("x", observer=observer).info("written")
        with open(path) as file:
            self.assertEqual([line.split(" ", 1)[1] for line in file], ["info x: written\n"])

    def test_at_once(self) -> None:
        """Each line is in the file when the call returns, and later ones follow it."""
        path = os.path.abspath(self.mktemp())
        for count in (1, 2):
            observer = self.observer(path)
            Logger("x", observer=observer).info("line")
            with open(path) as file:
                self.assertEqual(len(file.readlines()), count)

    def test_rotated(self) -> None:
        """A file does not grow for ever."""
        path = os.path.abspath(self.mktemp())
        self.patch(logs, "_ROTATE_BYTES", 1_000_000)
        observer = self.observer(path)
        for _ in range(3):
            Logger("x", observer=observer).info("{text}", text="x" * 600_000)
        self.assertTrue(os.path.exists(path + ".1"))
        self.assertLess(os.path.getsize(path), 700_000)

    def test_any_letter(self) -> None:
        """A file takes letters of any script, whatever the system's encoding is."""
        path = os.path.abspath(self.mktemp())
        Logger("x", observer=self.observer(path)).info("模型")
        with open(path, encoding="utf-8") as file:
            self.assertIn("模型", file.read())

    def test_stream(self) -> None:
        """A stream is written to as it was given, though sys.stdout is replaced later."""
        stream, other = io.StringIO(), io.StringIO()
        self.patch(sys, "stdout", stream)
        observer = LazyFileObserver(sys.stdout, as_json=False, redact=Redaction())
        self.patch(sys, "stdout", other)
        Logger("x", observer=observer).info("line")
        self.assertEqual((len(stream.getvalue().splitlines()), other.getvalue()), (1, ""))


class AccessTests(SynchronousTestCase):
    """The line of an exchange."""

    def record(self, **changes: Any) -> ExchangeRecord:
        """A good exchange."""
        request = InboundRequest(
            id="id-1",
            method=b"POST",
            raw_path=b"/model/m/converse",
            raw_query=None,
            headers=[(b"Authorization", b"Bearer planted")],
            body=Body(),
            peer="10.0.0.9",
            received=0.0,
        )
        entry: dict[str, Any] = {
            "request_id": "id-1",
            "started_us": 0,
            "client": "10.0.0.9",
            "key_alias": "team-a",
            "service": "bedrock-runtime",
            "operation": "Converse",
            "model_name": "m",
            "deployment": "d1",
            "region": "us-west-2",
            "attempts": 2,
            "status": 200,
            "aws_request_id": "aws-1",
            "input_tokens": 12,
            "output_tokens": 30,
            "cost_picousd": 1_500_000,
            "bytes_up": 16,
            "bytes_down": 1234,
        }
        values: dict[str, Any] = {"first_byte_s": 0.12345, "duration_s": 2.5}
        for name, value in changes.items():
            (values if name in ("detail", *values) else entry)[name] = value
        return ExchangeRecord(request, entry=LedgerEntry(**entry), **values)

    def write(self, record: ExchangeRecord, **options: Any) -> Written:
        log = Written(**options)
        AccessLog(log.publisher).record(record)
        return log

    def test_text(self) -> None:
        """The line says who, what, where, how it ended, how much and how long."""
        [line] = self.write(self.record()).lines
        self.assertEqual(
            line.split(" ", 1)[1],
            "info txbedrock.access: id-1 10.0.0.9 team-a bedrock-runtime:Converse m -> "
            "d1/us-west-2 200 complete - tokens=12+30 cost=$0.0000015 attempts=2 up=16 "
            "down=1234 first_byte=123.5ms total=2500.0ms aws=aws-1",
        )

    def test_json(self) -> None:
        """The same as fields, with numbers as numbers."""
        [line] = self.write(self.record(), as_json=True).objects
        for name in ("time", "level", "source", "message"):
            self.assertIn(name, line)
            del line[name]
        self.assertEqual(
            line,
            {
                "id": "id-1",
                "client": "10.0.0.9",
                "key": "team-a",
                "service": "bedrock-runtime",
                "operation": "Converse",
                "model": "m",
                "deployment": "d1",
                "region": "us-west-2",
                "status": 200,
                "outcome": "complete",
                "error": "-",
                "end_user": "-",
                "used": "tokens=12+30 cost=$0.0000015",
                "input_tokens": 12,
                "output_tokens": 30,
                "cache_read_tokens": 0,
                "cache_write_tokens": 0,
                "cost_usd": "0.0000015",
                "problem": "-",
                "attempts": 2,
                "bytes_up": 16,
                "bytes_down": 1234,
                "first_byte_ms": 123.5,
                "duration_ms": 2500.0,
                "aws_request_id": "aws-1",
                "detail": "",
            },
        )

    def test_early_end(self) -> None:
        """What is not known is a dash in text and null in JSON, never a made-up number."""
        request = self.record().request
        entry = LedgerEntry(
            request_id="id-1", started_us=0, client="10.0.0.9", outcome="client_gone"
        )
        record = ExchangeRecord(request, entry=entry)
        [line] = self.write(record).lines
        self.assertIn(
            "id-1 10.0.0.9 - -:- - -> -/- 0 client_gone - tokens=0+0 cost=? attempts=0 "
            "up=0 down=0 first_byte=- total=0.0ms aws=-",
            line,
        )
        [fields] = self.write(record, as_json=True).objects
        self.assertIsNone(fields["first_byte_ms"])

    def test_refused(self) -> None:
        """A refusal names its code, and what only the operator may know."""
        record = self.record(
            status=503,
            outcome="failed",
            error="ServiceUnavailableException",
            detail="ConnectionRefusedError: 10.0.0.1:443",
        )
        [line] = self.write(record).lines
        self.assertIn(" 503 failed ServiceUnavailableException ", line)
        self.assertTrue(line.endswith("(ConnectionRefusedError: 10.0.0.1:443)"))

    def test_one_line(self) -> None:
        """No name or detail makes it two lines."""
        record = self.record(
            model_name="m\n2026 info forged: line", detail="two\nlines\r", error="a\nb"
        )
        self.assertEqual(len(self.write(record).lines), 1)
        self.assertEqual(len(self.write(record, as_json=True).objects), 1)

    def test_without_events(self) -> None:
        """Written as a line it is the same as written as an event, whatever is in it."""
        forged = "m\n2026 info forged: \x1b[2J"
        for changes in (
            {},
            {"first_byte_s": None, "duration_s": 0.00006},
            {"model_name": forged, "key_alias": forged, "deployment": forged},
            {"error": forged, "detail": forged, "aws_request_id": forged},
            {"units": {"guardrail.a\x1b": 3}, "cache_read_tokens": 5},
            {"model_name": SECRET, "error": "sk-planted1", "aws_request_id": "Bearer abc"},
            {"detail": f"authorization: {SECRET}", "units": {SECRET: 1}},
            {"aws_request_id": "0f5f9c46-8a3a-4d83-a1d5-8b1c1c6a3d4e", "status": 503},
            {"aws_request_id": "", "region": "", "service": "", "operation": ""},
        ):
            record = self.record(**changes)
            log = Written()
            observer = LazyFileObserver(
                log.stream, as_json=False, redact=Redaction([SECRET]), level=LogLevel.info
            )
            access = AccessLog(lines=observer.lines)
            access.record(record)
            access.record(record)
            expected = self.write(record).lines[0].split(" ", 1)[1]
            written = [line.split(" ", 1)[1] for line in log.lines]
            self.assertEqual(written, [expected, expected], changes)
            for secret in (SECRET, "planted1", "abc\n", "\x1b"):
                self.assertNotIn(secret, log.text)

    def test_level_of_lines(self) -> None:
        """What is below the log's level is not written as a line either."""
        log = Written()
        observer = LazyFileObserver(
            log.stream, as_json=False, redact=Redaction(), level=LogLevel.warn
        )
        access = AccessLog(lines=observer.lines)
        access.record(self.record())
        access.record(self.record(status=503))
        self.assertEqual([line.split()[1] for line in log.lines], ["warn"])

    def test_levels(self) -> None:
        """What a person may have to look at is a warning; a client's mistake is not."""
        for level, changes in (
            ("info", {}),
            ("info", {"status": 403, "outcome": "refused"}),
            ("info", {"status": 429, "error": "ThrottlingException"}),
            ("info", {"outcome": "client_gone"}),
            ("warn", {"status": 500}),
            ("warn", {"status": 503, "outcome": "refused"}),
            ("warn", {"outcome": "partial"}),
            ("warn", {"status": 503, "outcome": "failed"}),
        ):
            [line] = self.write(self.record(**changes)).lines
            self.assertEqual(line.split()[1], level, changes)

    def test_no_content(self) -> None:
        """Headers, body and query have no place in it."""
        log = self.write(self.record())
        self.assertNotIn("planted", log.text)
        self.assertNotIn("Authorization", log.text)


class RefusalTests(SynchronousTestCase):
    """Strangers do not fill the log."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.kept: list[ExchangeRecord] = []
        self.written = Written(as_json=True)
        self.log = RefusalLog(self, self.clock, self.written.publisher)

    def record(self, record: ExchangeRecord) -> None:
        """What gets a line."""
        self.kept.append(record)

    def refuse(self, count: int, **changes: Any) -> None:
        """So many that nobody's key came with."""
        request = InboundRequest(b"", b"", b"", None, [], Body(), "", 0.0)  # type: ignore
        for _ in range(count):
            values: dict[str, Any] = {"status": 403, "error": "Unknown", **changes}
            self.log.record(ExchangeRecord(request, **values))

    def told(self) -> list[tuple[Any, ...]]:
        return [(one["count"], one["status"], one["error"]) for one in self.written.objects]

    def test_strangers(self) -> None:
        """The first of a second have lines, by kind; of the others it says how many."""
        self.refuse(1234)
        self.refuse(5, status=401)
        self.assertEqual(len(self.kept), 25)
        self.assertEqual(self.told(), [])
        self.clock.advance(1)
        self.assertEqual(self.told(), [(1214, 403, "Unknown")])
        self.refuse(1)
        self.assertEqual(len(self.kept), 26)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_stopped(self) -> None:
        """What is not told yet is told at the end."""
        self.refuse(30)
        self.log.startService()
        self.log.stopService()
        self.assertEqual(self.told(), [(10, 403, "Unknown")])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_all_others(self) -> None:
        """Whoever is known, and whatever got to Bedrock, has a line each time."""
        self.refuse(100, principal=Principal("somebody"))
        self.refuse(100, attempts=1)
        self.assertEqual(len(self.kept), 200)

    def test_on_and_on(self) -> None:
        """Of a flood that goes on every one is written or counted, once."""
        for _ in range(100):
            self.refuse(7)
            self.clock.advance(0.1)
        self.clock.advance(2)
        counted = sum(count for count, _, _ in self.told())
        self.assertEqual(len(self.kept) + counted, 700)
        self.assertLess(len(self.kept), 250)
