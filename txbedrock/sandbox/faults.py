"""
Faults on request: how an answer is spoiled.

A :class:`Fault` and an :class:`~txbedrock.sandbox.models.Answer` make a
:class:`Script`, which the site plays. Pure: nothing here waits or writes.

Note [Kinds]
------------
``error``     an error reply: ``status``, ``code``, ``message``, ``retry_after_s``
              (``Retry-After``), ``retry_after_ms`` (``x-amz-retry-after``)
``throttle``  the same, 429 ThrottlingException
``hang``      silence, for ``seconds`` or for ever; ``at`` head or body
``drop``      the connection is reset; ``at`` head, body (between two events) or
              frame (inside one)
``close``     the same with a FIN: without an answer, or without the last chunk
``exception`` an in-stream exception ``code`` (as ``throttlingException``), then the end
``drip``      ``interval_ms`` before each event
``flood``     ``megabytes`` of events, each of ``frame_bytes`` if that is given
``rubbish``   bytes that are not HTTP
``length``    a Content-Length that is wrong ``by`` so many bytes
``slow_head`` the head in ten pieces, ``interval_ms`` before each
``bad_crc``   one frame whose checksum is wrong
``gzip``      a compressed body nobody asked for

``after`` is the number of events that are sent before (1 if not given), in place of
which ``after_bytes`` may stand. A plain body has no events: half of it is sent.
``drip`` of one is in eight pieces. ``interval_ms`` goes with every kind that sends events.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from txbedrock.core.eventstream import exception_frame
from txbedrock.core.replies import ErrorShape, render
from txbedrock.errors import ProxyError
from txbedrock.sandbox.models import Answer

__all__ = [
    "KINDS",
    "End",
    "Fault",
    "Faults",
    "Pause",
    "Refused",
    "Script",
    "Step",
    "play",
    "refusal",
]

KINDS = (
    "error",
    "throttle",
    "hang",
    "drop",
    "close",
    "exception",
    "drip",
    "flood",
    "rubbish",
    "length",
    "slow_head",
    "bad_crc",
    "gzip",
)
"""See Note [Kinds]."""

_PLACES = ("head", "body", "frame")


class Refused(ProxyError):
    """An error reply with any status and code."""

    def __init__(
        self, status: int, code: str, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(message, headers=headers)
        self.status = status
        self.code = code


_STATUS_OF = {
    "AccessDeniedException": 403,
    "ConflictException": 400,
    "ExpiredTokenException": 403,
    "InternalServerException": 500,
    "InvalidSignatureException": 403,
    "ModelErrorException": 424,
    "ModelNotReadyException": 429,
    "ModelStreamErrorException": 424,
    "ModelTimeoutException": 408,
    "RequestTimeTooSkewed": 403,
    "ResourceNotFoundException": 404,
    "ServiceQuotaExceededException": 400,
    "ServiceUnavailableException": 503,
    "ThrottlingException": 429,
    "UnrecognizedClientException": 403,
    "ValidationException": 400,
}

_CODE_OF = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
}


@dataclass(slots=True)
class Fault:
    """
    One thing that goes wrong. See Note [Kinds].

    :raises ValueError: if it cannot be played.
    """

    kind: str
    times: int | None = 1
    """How many requests it happens to; None: all."""

    operation: str | None = None
    """Only this one. The next two may hold ``*``."""

    model: str | None = None
    region: str | None = None

    status: int | None = None
    code: str | None = None
    message: str | None = None
    retry_after_s: float | None = None
    retry_after_ms: float | None = None
    at: str | None = None
    after: int | None = None
    after_bytes: int | None = None
    seconds: float | None = None
    interval_ms: float | None = None
    megabytes: float = 1.0
    frame_bytes: int | None = None
    by: int = 10

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault {self.kind!r}; there are: {', '.join(KINDS)}")
        if self.at is not None and self.at not in _PLACES:
            raise ValueError(f"at: expected one of {', '.join(_PLACES)}, got {self.at!r}")
        if self.times is not None and self.times < 1:
            raise ValueError(f"times: expected at least 1, got {self.times}")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Fault:
        """
        From JSON, or from texts as a header has them.

        :raises ValueError: for an unknown name or a wrong value.
        """
        wanted: dict[str, Any] = {}
        for name, value in values.items():
            if name not in _TYPES:
                raise ValueError(f"a fault has no {name!r}; it has: {', '.join(_TYPES)}")
            try:
                wanted[name] = None if value is None else _TYPES[name](value)
            except (TypeError, ValueError):
                raise ValueError(f"{name}: not to be read: {value!r}") from None
        if "kind" not in wanted:
            raise ValueError(f"kind is missing; there are: {', '.join(KINDS)}")
        return cls(**wanted)

    @classmethod
    def parse(cls, text: str) -> Fault:
        """
        From a header: JSON, or ``drop;at=frame;after=3``.

        :raises ValueError: if it cannot be read.
        """
        if text.lstrip().startswith("{"):
            return cls.of(json.loads(text))
        first, *rest = (part.strip() for part in text.split(";"))
        values = {} if "=" in first else {"kind": first}
        for part in rest if values else (first, *rest):
            name, _, value = part.partition("=")
            if name:
                values[name.strip()] = value.strip()
        return cls.of(values)

    def as_json(self) -> dict[str, Any]:
        """What is not as it is by default."""
        return {
            each.name: value
            for each in fields(self)
            if (value := getattr(self, each.name)) != each.default
        }

    def matches(self, operation: str, model: str, region: str | None) -> bool:
        return (
            self.operation in (None, operation)
            and (self.model is None or fnmatchcase(model, self.model))
            and (self.region is None or fnmatchcase(region or "", self.region))
        )


_TYPES: dict[str, type] = {
    each.name: next(kind for kind in (int, float, str) if kind.__name__ in str(each.type))
    for each in fields(Fault)
}


@dataclass(slots=True)
class Faults:
    """Those that are to come, the oldest first."""

    pending: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault | str, **values: Any) -> Fault:
        """
        Let something go wrong.

        :param fault: a fault, or its kind with the rest as keywords.
        """
        if isinstance(fault, str):
            fault = Fault(fault, **values)
        self.pending.append(fault)
        return fault

    def clear(self) -> None:
        self.pending.clear()

    def take(self, operation: str, model: str, region: str | None) -> Fault | None:
        """The first that concerns a request; it is used up by one."""
        for fault in self.pending:
            if fault.matches(operation, model, region):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times == 0:
                        self.pending.remove(fault)
                return fault
        return None

    def as_json(self) -> list[dict[str, Any]]:
        return [fault.as_json() for fault in self.pending]


# Scripts


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing happens for a while."""

    seconds: float


class End(Enum):
    """How a connection is left with an answer that is not whole."""

    HANG = "hang"
    ABORT = "abort"
    FIN = "fin"


Step = bytes | Pause | End


@dataclass(slots=True)
class Script:
    """What happens on the connection."""

    answer: Answer
    body: Iterable[Step]
    length: int | None = None
    """Content-Length to state; None for chunked."""

    before: tuple[Step, ...] = ()
    """Before the head. Bytes are sent as they are; after an end nothing follows."""

    head_interval_s: float | None = None
    """The head goes in pieces."""

    at_once: bool = False
    """The body is one bytes of the length stated."""


def play(
    fault: Fault | None, answer: Answer, delay_s: float, request_id: str, shape: ErrorShape
) -> Script:
    """
    How an answer is sent.

    :param delay_s: before the head, and between events.
    """
    before: tuple[Step, ...] = (Pause(delay_s),) if delay_s else ()
    if fault is None:
        script = _whole(answer) if not delay_s else _paced(answer, delay_s)
        script.before = before
        return script
    kind = fault.kind
    if kind in ("error", "throttle") or (kind == "exception" and not answer.streams):
        script = _whole(refusal(_error_of(fault), request_id, shape))
        script.before = before
        return script
    interval_s = delay_s if fault.interval_ms is None else fault.interval_ms / 1000
    script = _paced(answer, interval_s)
    script.before = before
    _BREAK[kind](script, fault, interval_s, shape)
    return script


def refusal(error: ProxyError, request_id: str, shape: ErrorShape) -> Answer:
    """An error reply as an answer."""
    reply = render(error, request_id, shape)
    headers = [pair for pair in reply.headers if pair[0].lower() != b"x-amzn-requestid"]
    return Answer(reply.status, tuple(headers), [reply.body])


def _whole(answer: Answer) -> Script:
    if answer.streams:
        return Script(answer, answer.pieces)
    return Script(answer, answer.pieces, len(answer.pieces[0]), at_once=True)


def _paced(answer: Answer, interval_s: float) -> Script:
    length = None if answer.streams else len(answer.pieces[0])
    return Script(answer, _with_pauses(answer.pieces, interval_s), length)


def _with_pauses(pieces: Iterable[bytes], interval_s: float) -> Iterator[Step]:
    for piece in pieces:
        if interval_s:
            yield Pause(interval_s)
        yield piece


def _error_of(fault: Fault) -> Refused:
    status, code = fault.status, fault.code
    if fault.kind == "throttle":
        status, code = status or 429, code or "ThrottlingException"
    elif fault.kind == "exception" and code is not None:
        code = code[:1].upper() + code[1:]
    if status is None:
        status = _STATUS_OF.get(code or "", 500)
    if code is None:
        code = _CODE_OF.get(status, "InternalServerException")
    headers = []
    if fault.retry_after_s is not None:
        headers.append((b"Retry-After", f"{fault.retry_after_s:g}".encode()))
    if fault.retry_after_ms is not None:
        headers.append((b"x-amz-retry-after", f"{fault.retry_after_ms:g}".encode()))
    message = fault.message or f"The sandbox was asked for {code}."
    return Refused(status, code, message, tuple(headers))


def _split(answer: Answer, fault: Fault, inside: bool) -> tuple[list[bytes], list[bytes]]:
    """
    The events before the place of a fault, and those after it.

    :param inside: whether the place is in the middle of an event.
    """
    pieces = answer.pieces
    if fault.after_bytes is not None:
        return _split_bytes(pieces, fault.after_bytes)
    if not answer.streams:
        return _split_bytes(pieces, len(pieces[0]) // 2)
    after = min(1 if fault.after is None else fault.after, len(pieces))
    if not inside:
        return pieces[:after], pieces[after:]
    after = min(after, len(pieces) - 1)
    cut = pieces[after]
    middle = len(cut) // 2
    return [*pieces[:after], cut[:middle]], [cut[middle:], *pieces[after + 1 :]]


def _split_bytes(pieces: list[bytes], size: int) -> tuple[list[bytes], list[bytes]]:
    before: list[bytes] = []
    for index, piece in enumerate(pieces):
        if size < len(piece):
            rest = [piece[size:], *pieces[index + 1 :]]
            return ([*before, piece[:size]] if size else before), rest
        before.append(piece)
        size -= len(piece)
    return before, []


# Each kind changes the script it gets.


def _hang(script: Script, fault: Fault, interval_s: float, _: ErrorShape) -> None:
    wait: Step = End.HANG if fault.seconds is None else Pause(fault.seconds)
    if fault.at in (None, "head"):
        script.before = (*script.before, wait)
        return
    first, rest = _split(script.answer, fault, fault.at == "frame")
    script.body = [*_with_pauses(first, interval_s), wait, *_with_pauses(rest, interval_s)]


def _end(script: Script, fault: Fault, interval_s: float, _: ErrorShape) -> None:
    end = End.ABORT if fault.kind == "drop" else End.FIN
    if fault.at in (None, "head"):
        script.before = (*script.before, end)
        return
    first, _rest = _split(script.answer, fault, fault.at == "frame")
    script.body = [*_with_pauses(first, interval_s), end]


def _exception(script: Script, fault: Fault, interval_s: float, shape: ErrorShape) -> None:
    first, _rest = _split(script.answer, fault, False)
    code = fault.code or "modelStreamErrorException"
    message = fault.message or f"The sandbox was asked for {code}."
    if script.answer.frames:
        last = exception_frame(code, message)
    else:
        error = Refused(fault.status or 500, code, message)
        body = render(error, "", shape).body
        name = b"event: error\n" if shape is ErrorShape.ANTHROPIC else b""
        last = b"%bdata: %b\n\n" % (name, body)
    script.body = _with_pauses([*first, last], interval_s)


def _drip(script: Script, fault: Fault, interval_s: float, _: ErrorShape) -> None:
    interval_s = 0.1 if fault.interval_ms is None else interval_s
    pieces = script.answer.pieces
    if not script.answer.streams:
        size = max(1, -(-len(pieces[0]) // 8))
        pieces = [pieces[0][start : start + size] for start in range(0, len(pieces[0]), size)]
    script.body = _with_pauses(pieces, interval_s)


_BLOCK_BYTES = 64 * 1024


def _flood(script: Script, fault: Fault, interval_s: float, _: ErrorShape) -> None:
    answer = script.answer
    total = int(fault.megabytes * 1_000_000)
    if answer.filler is not None and fault.frame_bytes is not None:
        one = answer.filler(fault.frame_bytes)
    else:
        one = answer.pieces[min(1, len(answer.pieces) - 1)]
    if not answer.streams:  # spaces after a JSON document are still JSON
        one = b" " * 1024
        script.length = None
        script.answer = replace(answer, streams=True)
    block = one * max(1, _BLOCK_BYTES // len(one))

    def steps() -> Iterator[Step]:
        yield answer.pieces[0]
        sent = 0
        while sent < total:
            if interval_s:
                yield Pause(interval_s)
            yield block
            sent += len(block)
        yield from answer.pieces[1:]

    script.body = steps()


def _rubbish(script: Script, fault: Fault, interval_s: float, _: ErrorShape) -> None:
    script.before = (*script.before, b"\x16\x03\x01\x02\x00this is not HTTP\r\n\r\n", End.FIN)


def _length(script: Script, fault: Fault, interval_s: float, _: ErrorShape) -> None:
    pieces = script.answer.pieces
    script.length = max(0, sum(map(len, pieces)) + fault.by)
    script.body = [*_with_pauses(pieces, interval_s), End.FIN]


def _slow_head(script: Script, fault: Fault, interval_s: float, _: ErrorShape) -> None:
    script.head_interval_s = 0.1 if fault.interval_ms is None else interval_s
    script.body = script.answer.pieces


def _bad_crc(script: Script, fault: Fault, interval_s: float, _: ErrorShape) -> None:
    pieces = list(script.answer.pieces)
    index = min(1 if fault.after is None else fault.after, len(pieces) - 1)
    pieces[index] = pieces[index][:-1] + bytes((pieces[index][-1] ^ 0x55,))
    script.body = _with_pauses(pieces, interval_s)


def _gzip(script: Script, fault: Fault, interval_s: float, _: ErrorShape) -> None:
    squeeze = zlib.compressobj(wbits=31)
    pieces = [
        squeeze.compress(piece) + squeeze.flush(zlib.Z_SYNC_FLUSH)
        for piece in script.answer.pieces
    ]
    pieces[-1] += squeeze.flush()
    answer = script.answer
    headers = (*answer.headers, (b"Content-Encoding", b"gzip"))
    script.answer = replace(answer, headers=headers, pieces=pieces)
    script.length = None if answer.streams else sum(map(len, pieces))
    script.body = _with_pauses(pieces, interval_s)


_BREAK = {
    "hang": _hang,
    "drop": _end,
    "close": _end,
    "exception": _exception,
    "drip": _drip,
    "flood": _flood,
    "rubbish": _rubbish,
    "length": _length,
    "slow_head": _slow_head,
    "bad_crc": _bad_crc,
    "gzip": _gzip,
}
