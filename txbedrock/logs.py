"""
What the log shows: one line an exchange, text or JSON, nothing secret.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from threading import RLock
from typing import IO, Any, Protocol

from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    PredicateResult,
    formatEvent,
    formatTime,
)
from twisted.python.logfile import LogFile
from zope.interface import implementer

from txbedrock.core.entries import LedgerEntry
from txbedrock.core.money import picousd_as_usd
from txbedrock.core.throttle import Throttle
from txbedrock.interfaces import ExchangeRecord, IExchangeLog

__all__ = [
    "AccessLog",
    "LazyFileObserver",
    "Lines",
    "Redaction",
    "RefusalLog",
    "json_format",
    "text_format",
]

# What a key looks like wherever it turns up: virtual keys, Bedrock API keys,
# whatever stands in an Authorization header.
_SHAPES = re.compile(
    r"\b(?:sk-[\w-]{4,}|bedrock-api-key-[\w+/=-]+|ABSK[\w+/=]{16,})"
    r"|(?<=Signature=)[0-9a-f]{64}"
    r"|(?<=Bearer )[^\s\"',]+"
    r"|(?<=Credential=)[^/\s]+"
)
# The value of a header that carries a secret, as text or in the repr of a list.
_CARRIERS = re.compile(
    r"((?:x-(?:litellm-)?api-key|x-amz-security-token|authorization)['\"]?\s*[:=,]\s*"
    r"(?!\[redacted)(?:\[?b?['\"])?+(?:(?:bearer|basic)\s+|AWS4-HMAC-SHA256.*)?+)"
    r"(?!\[redacted)([^\s\"',&\]]*)",
    re.IGNORECASE,
)
# Without one of these in it neither pattern finds anything.
_SIGNS_OF_SHAPES = ("sk-", "bedrock-api-key-", "ABSK", "Signature=", "Bearer ", "Credential=")
_SIGNS_OF_CARRIERS = ("api-key", "security-token", "authorization")

# Twisted's own megabyte would be a new file every few thousand exchanges.
_ROTATE_BYTES = 100_000_000

_HIDDEN = "[redacted]"


class Redaction:
    """
    Takes secrets out of a text that is going to be logged.

    No line is meant to hold one; this is for the line that nobody foresaw, a
    traceback with a header in it.

    :param secrets: those known from the configuration.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted({secret for secret in secrets if len(secret) >= 4}, key=len, reverse=True)
        self._secrets = known
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, text: str) -> str:
        # To look for a text is a tenth of the work of a pattern, and nearly all lines
        # have none of them.
        if self._known is not None and any(secret in text for secret in self._secrets):
            text = self._known.sub(_HIDDEN, text)
        if any(sign in text for sign in _SIGNS_OF_SHAPES):
            text = _SHAPES.sub(_HIDDEN, text)
        lower = text.lower()
        if any(sign in lower for sign in _SIGNS_OF_CARRIERS):
            text = _CARRIERS.sub(lambda found: found[1] + (found[2] and _HIDDEN), text)
        return text


@lru_cache(maxsize=4)
def _time(seconds: int) -> str:
    """As Twisted writes it, which has no fractions of a second."""
    return formatTime(seconds)


def _level(event: LogEvent) -> str:
    name: str = event.get("log_level", LogLevel.info).name
    return name


def _words(event: LogEvent) -> tuple[str, str]:
    """
    What an event says: its message and its traceback.

    Events of Twisted's older logging system have the one in the other.
    """
    failure = event.get("log_failure")
    if event.get("log_format") == _PLAIN:
        message = event["line"]  # Twisted's formatting takes 18 fields as many steps.
    else:
        message = formatEvent(event).rstrip("\n")
    traceback = "" if failure is None else failure.getTraceback().rstrip()
    if traceback:
        message = message.removesuffix(traceback).rstrip("\n")
    return message, traceback


def _visible(text: str) -> str:
    """The same text; what would move a terminal's cursor is spelled out."""
    if text.isprintable():
        return text
    return "".join(
        char if char == "\n" or char.isprintable() else repr(char)[1:-1] for char in text
    )


def text_format(redact: Callable[[str], str]) -> Callable[[LogEvent], str | None]:
    """One event, one line; a continuation is indented."""

    def formatted(event: LogEvent) -> str | None:
        message, traceback = _words(event)
        if not message and not traceback:
            return None
        source = event.get("log_namespace", "-")
        text = f"{_time(int(event['log_time']))} {_level(event)} {source}: {message}"
        if traceback:
            text = f"{text}\n{traceback}"
        return _visible(redact(text)).replace("\n", "\n    ") + "\n"

    return formatted


def json_format(redact: Callable[[str], str]) -> Callable[[LogEvent], str | None]:
    """One event, one JSON object, one line; its plain fields are members."""

    def formatted(event: LogEvent) -> str | None:
        message, traceback = _words(event)
        if not message and not traceback:
            return None
        line: dict[str, str | int | float | None] = {
            "time": _time(int(event["log_time"])),
            "level": _level(event),
            "source": event.get("log_namespace", "-"),
            "message": message,
        }
        if traceback:
            line["traceback"] = traceback
        for name, value in event.items():
            if (
                name != "line"
                and not name.startswith("log_")
                and isinstance(value, str | int | float | None)
            ):
                line.setdefault(name, value)
        # Redacted before it is quoted: quoting would hide a secret that has a
        # quote in it, and redacting afterwards could take a quote away.
        clean = {
            name: redact(value) if isinstance(value, str) else value
            for name, value in line.items()
        }
        return json.dumps(clean) + "\n"

    return formatted


# What Twisted says of itself at every start, stop and connection.
_NOISE = (
    "twisted.application",
    "twisted.internet",
    "twisted.protocols",
    "twisted.scripts",
    "twisted.web",
)
_PORT_NOISE = re.compile(r".+ starting on \S+|\(.+ Port .+ Closed\)")


def _no_ports(event: LogEvent) -> Any:
    """Filters what Twisted's ports say, which they say in no namespace."""
    if event.get("log_namespace") != "log_legacy" or event.get("log_failure"):
        return PredicateResult.maybe
    noise = _PORT_NOISE.fullmatch(formatEvent(event))
    return PredicateResult.no if noise else PredicateResult.maybe


class _LogFile(LogFile):
    """One whose lock is not written in Python, which takes longer than all else of a line."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._writing = RLock()  # A signal's handler may write, too.

    def write(self, data: str) -> None:
        with self._writing:
            if self.size >= self.rotateLength:
                self.rotate()
            self._file.write(data.encode())
            self.size += len(data)


class Lines(Protocol):
    """A log that takes lines without making events of them."""

    def clean(self, text: str) -> str:
        """A part of a line, as it may stand there."""

    def write(self, level: str, source: str, text: str) -> None:
        """
        Write a line.

        :param level: the name of a level.
        :param text: one line, put together from parts that are clean.
        """


@implementer(ILogObserver)
class LazyFileObserver:
    """
    Writes events to a file that is opened at the first of them.

    :param out: the file's absolute path, or a stream that is open already.
    :param as_json: one JSON object a line instead of text.
    :param level: the lowest that is written; Twisted's own notices are only
        written for debugging.
    """

    def __init__(
        self,
        out: str | IO[Any],
        *,
        as_json: bool,
        redact: Callable[[str], str],
        level: Any = LogLevel.info,
    ) -> None:
        self._out = out
        self._format = (json_format if as_json else text_format)(redact)
        levels = LogLevelFilterPredicate(defaultLogLevel=level)
        self._predicates: list[Any] = [levels]
        if level > LogLevel.debug:
            for namespace in _NOISE:
                levels.setLogLevelForNamespace(namespace, max(level, LogLevel.warn))
            self._predicates.append(_no_ports)
        self._written = {one.name for one in LogLevel.iterconstants() if one >= level}
        self._takes_info = level <= LogLevel.info
        self._as_json = as_json
        self._redact = redact
        self._out_file: IO[Any] | None = None
        self._file: FileLogObserver | None = None
        self._filtered: ILogObserver | None = None

    def __call__(self, event: LogEvent) -> None:
        if self._file is None or self._filtered is None:
            if self._out_file is None:
                self._out_file = self._open()
            self._file = FileLogObserver(self._out_file, self._format)
            self._filtered = FilteringLogObserver(self._file, self._predicates)
        if self._takes_info and event.get("log_format") == _PLAIN:
            self._file(event)  # No filter stops an exchange.
        else:
            self._filtered(event)

    @property
    def lines(self) -> Lines | None:
        """The same log, for lines; None: it takes events only."""
        return None if self._as_json else self

    def clean(self, text: str) -> str:
        """See :class:`Lines`."""
        return _visible(self._redact(text))

    def write(self, level: str, source: str, text: str) -> None:
        """See :class:`Lines`."""
        if level not in self._written:
            return
        if self._out_file is None:
            self._out_file = self._open()
        self._out_file.write(f"{_time(int(time.time()))} {level} {source}: {text}\n")
        if self._out_file is self._out:  # One of our own is not buffered.
            self._out_file.flush()

    def _open(self) -> IO[Any]:
        if isinstance(self._out, str):
            file: IO[Any] = _LogFile.fromFullPath(self._out, rotateLength=_ROTATE_BYTES)
            return file
        return self._out


_ACCESS = "txbedrock.access"
_PLAIN = "{line}"
"""The format of events whose text is ready, in their field ``line``."""


def _one_line(text: str) -> str:
    if not text:
        return "-"
    return text if text.isprintable() else " ".join(text.split())


class AccessLog:
    """
    One line an exchange.

    :param observer: where it is written; all of Twisted's logging by default.
    :param lines: where its lines are written instead: they are then no events, which
        costs as much as all that is measured of an exchange.
    """

    def __init__(self, observer: ILogObserver | None = None, lines: Lines | None = None) -> None:
        self._lines = lines
        self._clean = str if lines is None else lines.clean
        self._where = lru_cache(maxsize=1024)(partial(_where, self._clean))
        # No class attribute: it would be named after its class.
        self._log = Logger(_ACCESS, observer=observer)

    def record(self, record: ExchangeRecord) -> None:
        """
        Write the line; a failure of the gateway's own or of AWS's is a warning.

        :param record: settled.
        """
        entry = record.entry
        assert entry is not None
        level = "warn" if entry.status >= 500 or entry.outcome in _FAILURES else "info"
        line = self._line(entry, record)
        if self._lines is not None:
            self._lines.write(level, _ACCESS, line)
        else:
            self._emit(LogLevel.lookupByName(level), line, entry, record)

    def _line(self, entry: LedgerEntry, record: ExchangeRecord) -> str:
        """What has no name in it that anybody gave is clean as it is."""
        where = self._where(
            entry.key_alias,
            entry.service,
            entry.operation,
            entry.model_name,
            entry.deployment,
            entry.region,
        )
        error = self._clean(_one_line(entry.error)) if entry.error else "-"
        first_byte_s, aws_request_id = record.first_byte_s, entry.aws_request_id
        first_byte = "-" if first_byte_s is None else f"{first_byte_s * 1000:.1f}ms"
        if _UUID.fullmatch(aws_request_id) is None:
            aws_request_id = self._clean(_one_line(aws_request_id))
        used = _used(entry)
        if entry.units:
            used = self._clean(used)
        line = (
            f"{entry.request_id} {entry.client} {where} {entry.status} {entry.outcome} {error} "
            f"{used} attempts={entry.attempts} up={entry.bytes_up} down={entry.bytes_down} "
            f"first_byte={first_byte} total={record.duration_s * 1000:.1f}ms "
            f"aws={aws_request_id}"
        )
        return f"{line} ({self._clean(_one_line(record.detail))})" if record.detail else line

    def _emit(self, level: Any, line: str, entry: LedgerEntry, record: ExchangeRecord) -> None:
        """The line as an event, with all that is in it as fields."""
        cost, first_byte_s = entry.cost_picousd, record.first_byte_s
        self._log.emit(
            level,
            _PLAIN,
            line=line,
            id=entry.request_id,
            client=entry.client,
            key=_one_line(entry.key_alias),
            end_user=_one_line(entry.end_user),
            service=entry.service or "-",
            operation=entry.operation or "-",
            model=_one_line(entry.model_name),
            deployment=_one_line(entry.deployment),
            region=entry.region or "-",
            status=entry.status,
            outcome=entry.outcome,
            error=_one_line(entry.error),
            used=_used(entry),
            input_tokens=entry.input_tokens,
            output_tokens=entry.output_tokens,
            cache_read_tokens=entry.cache_read_tokens,
            cache_write_tokens=entry.cache_write_5m_tokens + entry.cache_write_1h_tokens,
            cost_usd=None if cost is None else picousd_as_usd(cost),
            problem=_one_line(entry.problem),
            attempts=entry.attempts,
            bytes_up=entry.bytes_up,
            bytes_down=entry.bytes_down,
            first_byte_ms=None if first_byte_s is None else round(first_byte_s * 1000, 1),
            duration_ms=round(record.duration_s * 1000, 1),
            aws_request_id=_one_line(entry.aws_request_id),
            detail=_one_line(record.detail) if record.detail else "",
        )


_FAILURES = ("partial", "failed")
_UUID = re.compile("[0-9a-f-]{36}")


def _where(
    clean: Callable[[str], str],
    key: str,
    service: str,
    operation: str,
    model: str,
    deployment: str,
    region: str,
) -> str:
    """What most lines have in common: whose it was, and where it went."""
    key, model, deployment = _one_line(key), _one_line(model), _one_line(deployment)
    return clean(
        f"{key} {service or '-'}:{operation or '-'} {model} -> {deployment}/{region or '-'}"
    )


def _used(entry: LedgerEntry) -> str:
    """``tokens=12+30 cost=$0.0001``, with the caches' where there are any."""
    cost = "?" if entry.cost_picousd is None else "$" + picousd_as_usd(entry.cost_picousd)
    written = entry.cache_write_5m_tokens + entry.cache_write_1h_tokens
    caches = units = ""
    if entry.cache_read_tokens or written:
        caches = f" cache={entry.cache_read_tokens}r+{written}w"
    if entry.units:
        units = "".join(f" {name}={count}" for name, count in entry.units.items())
    return f"tokens={entry.input_tokens}+{entry.output_tokens}{caches}{units} cost={cost}"


# Of a kind, in a second. A line takes as long as all else that such a request needs.
_REFUSALS = 20
_PERIOD_S = 1.0


class RefusalLog(Service):
    """
    Keeps strangers from filling the log: of requests that nobody's key was found for and
    that never got to Bedrock, only the first of a second are written, by kind, and then how
    many more there were. Every other exchange has its line.

    :param log: who writes a line.
    :param observer: where the numbers are written.
    """

    def __init__(
        self, log: IExchangeLog, clock: IReactorTime, observer: ILogObserver | None = None
    ) -> None:
        self._lines = log
        self._clock = clock
        self._log = Logger("txbedrock.access", observer=observer)
        self._throttle = Throttle(_REFUSALS, _PERIOD_S)
        self._call: IDelayedCall | None = None

    def record(self, record: ExchangeRecord) -> None:
        """Write it, or count it."""
        if (
            record.principal is not None
            or record.attempts
            or self._throttle.lets(f"{record.status} {record.error}", self._clock.seconds())
        ):
            self._lines.record(record)
        elif self._call is None:
            self._call = self._clock.callLater(_PERIOD_S, self._later)

    def stopService(self) -> None:
        """Tell what has not been told yet."""
        Service.stopService(self)
        if self._call is not None:
            self._call.cancel()
            self._call = None
        self._tell(None)

    def _later(self) -> None:
        self._call = None
        self._tell(self._clock.seconds())
        if self._throttle:
            self._call = self._clock.callLater(_PERIOD_S, self._later)

    def _tell(self, now: float | None) -> None:
        for kind, count in self._throttle.withheld(now):
            status, _, error = kind.partition(" ")
            self._log.info(
                "and {count} more refused with {status} {error}, of nobody that is known",
                count=count,
                status=int(status),
                error=error,
            )
