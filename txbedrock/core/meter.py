"""
Reads what an answer used while it passes, beside it and without touching it.

A meter is fed what the client is sent, and holds little of it: the frames,
events and members that are needed and no others. A failure ends metering for
this answer, is told in :attr:`~txbedrock.core.usage.Usage.problem`, and ends
nothing else.
"""

from __future__ import annotations

import re
import zlib
from base64 import b64encode
from binascii import Error as _Base64Error
from binascii import a2b_base64
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal, TypeAlias

import msgspec

from . import pricing
from .eventstream import FrameScanner, Selection
from .excerpt import Excerpt, Wanted
from .headers import HeaderList
from .operations import Operation
from .pricing import RequestHints
from .usage import (
    MAX_COUNT,
    READ_REQUESTS,
    Readable,
    Source,
    Tally,
    Told,
    Usage,
    read_agent_trace,
    read_answer,
    read_conversation,
    read_flow_trace,
    read_guardrail,
    read_guardrail_checks,
    read_openai,
    tier_name,
)

__all__ = ["Meter", "is_billed", "meter_for"]

_WHOLE_BYTES = 64 * 1024
"""A body up to here is held and decoded at once; a longer one piece by piece."""

_PAYLOAD_BYTES = 32 * 1024
"""The same for the payload of a frame."""

_LINE_BYTES = 32 * 1024
"""The same for a line of server-sent events."""

_FIRST, _LAST = 2, 8
"""How many chunks of an InvokeModel stream are kept."""

_JSON = re.compile(rb"\s*application/(?:[\w.-]+\+)?json\b", re.IGNORECASE)


class Meter:
    """
    Looks on while an answer passes. This one reads nothing, and only knows where
    frames end: for answers that do not say what is billed.

    :param scanner: of an event stream whose frames can be told apart.
    """

    hints: RequestHints | None = None
    """What the request asked for, where the price depends on it and whoever asks
    for the price may do so when the request is gone."""

    def __init__(self, tally: Tally, scanner: FrameScanner | None = None) -> None:
        self._tally = tally
        self._scanner = scanner

    @property
    def framed(self) -> bool:
        """The answer is an AWS event stream whose frames can be told apart."""
        return self._scanner is not None

    @property
    def frames(self) -> int:
        """Complete ones so far; 0 of what has none."""
        return 0 if self._scanner is None else self._scanner.frames

    @property
    def at_boundary(self) -> bool:
        """Before the first frame of an event stream or exactly between two."""
        return self._scanner is not None and self._scanner.at_boundary

    def feed(self, data: bytes) -> None:
        """Note the next bytes of the answer, as the client is sent them. Never raises."""
        if self._scanner is not None:
            self._scanner.feed(data)

    def usage(self) -> Usage:
        """What was used, by all that has been seen. To be asked for at the end."""
        return self._tally.usage()


_NOTHING = Usage(source=Source.NONE)


class _Free(Meter):
    """Of an answer for which there is nothing to pay."""

    def usage(self) -> Usage:
        return _NOTHING


class _Reading(Meter):
    """Common to those that read."""

    _stopped = False
    _usage: Usage | None = None

    def __init__(
        self,
        tally: Tally,
        readable: Readable,
        inflate: _Inflate | None,
        scanner: FrameScanner | None = None,
    ) -> None:
        self._tally = tally
        self._scanner = scanner
        self._readable = readable
        self._inflate = inflate
        self._pieces: list[bytes] = []  # of what is read when it is whole

    def feed(self, data: bytes) -> None:
        if self._stopped:
            return
        try:
            if self._inflate is None:
                self._read(data)
            else:
                for piece in self._inflate.feed(data):
                    self._read(piece)
        except Exception as error:
            # Whatever it is: the stream goes on.
            self._stop(error)

    def usage(self) -> Usage:
        if self._usage is None:
            if not self._stopped:
                try:
                    self._finish()
                except Exception as error:
                    self._stop(error)
            self._usage = self._tally.usage()
            self._stopped = True
        return self._usage

    def _read(self, data: bytes) -> None:
        """Read the next piece of what is left when no encoding is on it."""
        raise NotImplementedError

    def _finish(self) -> None:
        """Read what was kept for the end."""

    def _read_document(self, document: bytes) -> None:
        try:
            self._readable.read(document, self._tally)
        except msgspec.ValidationError:
            raise
        except (msgspec.MsgspecError, RecursionError):
            # Cut, or not quite JSON: what is wanted may be sound all the same.
            excerpt = Excerpt(self._readable.wanted)
            excerpt.feed(document)
            self._read_excerpt(excerpt)

    def _read_excerpt(self, excerpt: Excerpt) -> None:
        if excerpt.problem:
            self._tally.note(excerpt.problem)
        elif not excerpt.complete:
            self._tally.note("the answer ends before its JSON does")
        self._readable.read(excerpt.result(), self._tally)

    def _stop(self, error: Exception) -> None:
        self._stopped = True
        if isinstance(error, msgspec.MsgspecError):
            self._tally.note(f"the answer is not as expected: {error}")
        elif isinstance(error, RecursionError):
            self._tally.note("the answer is nested too deeply")
        elif isinstance(error, _Unreadable):
            self._tally.note(str(error))
        else:
            # Its message may hold some of the answer.
            self._tally.note(f"the meter failed: {type(error).__name__}")


class _Unreadable(Exception):
    """Says why an answer cannot be metered."""


class _Body(_Reading):
    """A body: one JSON document."""

    _size = 0
    _excerpt: Excerpt | None = None

    def _read(self, data: bytes) -> None:
        if self._excerpt is not None:
            self._excerpt.feed(data)
            return
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _WHOLE_BYTES:
            self._excerpt = Excerpt(self._readable.wanted)
            for piece in self._pieces:
                self._excerpt.feed(piece)
            self._pieces = []
        elif len(self._pieces) > 64:
            self._pieces = [b"".join(self._pieces)]

    def _finish(self) -> None:
        if self._excerpt is not None:
            self._read_excerpt(self._excerpt)
        elif self._size:
            pieces = self._pieces
            self._read_document(pieces[0] if len(pieces) == 1 else b"".join(pieces))


class _Events(_Reading):
    """An event stream of which events of one type tell something each."""

    def __init__(
        self,
        tally: Tally,
        readable: Readable,
        inflate: _Inflate | None,
        selection: Selection,
        long: type[_LongDocument] | None = None,
    ) -> None:
        # No method of ours: each would keep the other until the collector runs.
        digest = partial(long or _LongDocument, readable.wanted, tally)
        scanner = FrameScanner(selection, digest, _PAYLOAD_BYTES)
        super().__init__(tally, readable, inflate, scanner)

    @property
    def framed(self) -> bool:
        return self._inflate is None

    @property
    def at_boundary(self) -> bool:
        assert self._scanner is not None
        return self._inflate is None and self._scanner.at_boundary

    def feed(self, data: bytes) -> None:
        if self._inflate is not None:
            super().feed(data)
            return
        # Where the frames are is asked for even when the meter has stopped.
        assert self._scanner is not None
        payloads = self._scanner.feed(data)
        if payloads and not self._stopped:
            try:
                self._take(payloads)
            except Exception as error:
                self._stop(error)

    def _read(self, data: bytes) -> None:
        assert self._scanner is not None
        payloads = self._scanner.feed(data)
        if payloads:
            self._take(payloads)

    def _take(self, payloads: list[bytes]) -> None:
        for payload in payloads:
            self._read_document(payload)

    def _finish(self) -> None:
        assert self._scanner is not None
        if self._scanner.desynced:
            self._tally.note("the answer is not an event stream")


class _LongDocument:
    """A payload too long to be held."""

    __slots__ = ("_excerpt", "_tally")

    def __init__(self, wanted: Wanted, tally: Tally) -> None:
        self._excerpt = Excerpt(wanted)
        self._tally = tally

    @property
    def complete(self) -> bool:
        """Its end was seen."""
        return self._excerpt.complete

    def feed(self, data: bytes) -> None:
        self._excerpt.feed(data)

    def result(self) -> bytes:
        self._tally.note(self._excerpt.problem)
        return self._excerpt.result()


class _Chunks(_Events):
    """
    The stream of InvokeModel: chunks whose ``bytes`` are a model's own events.

    What they tell stands in the first of them (Anthropic's ``message_start``, of
    Llama the prompt's tokens) and in the last few. Those are kept, and decoded at
    the end; all others pass unread.
    """

    def __init__(
        self, tally: Tally, readable: Readable, inflate: _Inflate | None, selection: Selection
    ) -> None:
        super().__init__(tally, readable, inflate, selection, _LongChunk)
        self._first: list[bytes] = []
        self._last: deque[bytes] = deque(maxlen=_LAST)

    def _take(self, payloads: list[bytes]) -> None:
        lacking = _FIRST - len(self._first)
        if lacking > 0:
            self._first += payloads[:lacking]
            payloads = payloads[lacking:]
        self._last.extend(payloads)

    def _finish(self) -> None:
        super()._finish()
        for payload in (*self._first, *self._last):
            try:
                chunk = _decode_chunk(payload).event
                if chunk:
                    self._read_document(chunk)
            except Exception as error:
                self._stop(error)


class _Chunk(msgspec.Struct, frozen=True):
    event: bytes = msgspec.field(name="bytes", default=b"")


_decode_chunk = msgspec.json.Decoder(_Chunk).decode

_BYTES = re.compile(rb'"bytes"\s*:\s*"')


class _LongChunk(_LongDocument):
    """A chunk too long to be held: decoded from base64 piece by piece."""

    __slots__ = ("_begun", "_over", "_rest")

    def __init__(self, wanted: Wanted, tally: Tally) -> None:
        super().__init__(wanted, tally)
        self._begun = False
        self._over = False
        self._rest = b""  # of the beginning; of what is no multiple of four

    def feed(self, data: bytes) -> None:
        if self._over:
            return
        data = self._rest + data
        if not self._begun:
            match = _BYTES.search(data)
            if match is None:
                self._rest = data[-1024:]
                return
            self._begun = True
            data = data[match.end() :]
        end = data.find(b'"')
        if end >= 0:
            self._over = True
            data = data[:end]
        if b"\\" in data:
            data = data.replace(b"\\", b"")  # of "\/"
        whole = len(data) - len(data) % 4
        self._rest = data[whole:]
        try:
            self._excerpt.feed(a2b_base64(data[:whole], strict_mode=True))
        except _Base64Error:
            self._tally.note("a chunk is not base64")
            self._over = True

    def result(self) -> bytes:
        return b'{"bytes":"%b"}' % b64encode(super().result())


class _Lines(_Reading):
    """
    Server-sent events. Lines that have ``"usage"`` in them, unless it is null,
    are kept, the first and the last few, and decoded at the end.
    """

    _size = 0
    _long: _LongDocument | None = None  # instead of _pieces

    def __init__(self, tally: Tally, readable: Readable, inflate: _Inflate | None) -> None:
        super().__init__(tally, readable, inflate)
        self._first: list[bytes] = []
        self._last: deque[bytes] = deque(maxlen=_LAST)

    def _read(self, data: bytes) -> None:
        end = data.find(b"\n")
        if end < 0:
            self._read_on(data)
            return
        if self._long is not None:
            self._long.feed(data[:end])
            self._keep(self._long.result())
            self._long = None
            data = data[end + 1 :]
        elif self._pieces:
            data = b"".join((*self._pieces, data))
            self._pieces = []
        self._size = 0
        end = data.rfind(b"\n") + 1
        self._read_lines(data, end)
        if end < len(data):
            self._read_on(data[end:])

    def _read_on(self, data: bytes) -> None:
        """Read a piece of a line that has not ended."""
        if self._long is not None:
            self._long.feed(data)
            return
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _LINE_BYTES:
            self._long = self._long_line(b"".join(self._pieces))
            self._pieces = []
        elif len(self._pieces) > 64:
            self._pieces = [b"".join(self._pieces)]

    def _long_line(self, line: bytes) -> _LongDocument:
        document = _LongDocument(self._readable.wanted, self._tally)
        # Of any other field nothing is wanted: a document that is over at once.
        document.feed(line[5:].lstrip() if line[:5] == b"data:" else b"0 ")
        return document

    def _read_lines(self, data: bytes, end: int) -> None:
        position = data.find(_USAGE, 0, end)
        while position >= 0:
            if _NULL.match(data, position + len(_USAGE)) is None:
                start = data.rfind(b"\n", 0, position) + 1
                position = data.find(b"\n", position)
                line = data[start:position]
                if len(line) > _LINE_BYTES:
                    self._keep(self._long_line(line).result())
                elif line[:5] == b"data:":
                    self._keep(line[5:])
            position = data.find(_USAGE, position + 1, end)

    def _keep(self, line: bytes) -> None:
        if _tells_usage(line):
            if len(self._first) < _FIRST:
                self._first.append(line)
            else:
                self._last.append(line)

    def _finish(self) -> None:
        # A last line without an end may be whole.
        long = self._long
        if long is None and self._pieces:
            long = self._long_line(b"".join(self._pieces))
        if long is not None and long.complete:
            self._keep(long.result())
        for line in (*self._first, *self._last):
            try:
                self._read_document(line)
            except Exception as error:
                self._stop(error)


# In a text it would be \"usage\": this is a name, or a string of its own.
_USAGE = b'"usage"'
_NULL = re.compile(rb"\s*:\s*null\b")


def _tells_usage(line: bytes) -> bool:
    """Is there usage, or may there be?"""
    position = line.find(_USAGE)
    while position >= 0:
        position += len(_USAGE)
        if _NULL.match(line, position) is None:
            return True
        position = line.find(_USAGE, position)
    return False


# Encodings

_PIECE_BYTES = 64 * 1024


class _Inflate:
    """Takes gzip or deflate off an answer, in pieces of 64 KiB at most."""

    __slots__ = ("_decoder", "_encoding", "_ended")

    def __init__(self, encoding: bytes) -> None:
        self._encoding = encoding
        self._decoder: zlib._Decompress | None = None
        self._ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """
        :raises _Unreadable: if it is not what its header says, or grows so much
            that reading it would hold up everything else.
        """
        most = 1024 * 1024 + 64 * len(data)
        try:
            while data:
                decoder = self._decoder
                if decoder is None:
                    if self._ended and data[0] != 0x1F:
                        return  # no further member of a gzip file: padding
                    decoder = self._decoder = self._make(data)
                full = True
                while full and not decoder.eof:
                    piece = decoder.decompress(data, _PIECE_BYTES)
                    data = decoder.unconsumed_tail
                    # A full piece may not be all that is ready, input or not.
                    full = len(piece) == _PIECE_BYTES
                    most -= len(piece)
                    if most < 0:
                        raise _Unreadable("the answer is compressed too well to be read")
                    if piece:
                        yield piece
                if decoder.eof:
                    data = decoder.unused_data
                    self._decoder = None
                    self._ended = True
        except zlib.error as error:
            raise _Unreadable(f"the answer cannot be decompressed: {error}") from None

    def _make(self, data: bytes) -> zlib._Decompress:
        if self._encoding == b"gzip":
            return zlib.decompressobj(wbits=31)
        # Some send deflate without zlib's two bytes around it.
        return zlib.decompressobj(wbits=15 if data[0] & 0x0F == 8 else -15)


# Which meter


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the answers to an operation are read."""

    readable: Readable
    events: Selection | None = None
    """Which events of a stream tell something."""

    chunks: bool = False


_RUNTIME, _AGENTS = "bedrock-runtime", "bedrock-agent-runtime"
_AGENT = _Plan(read_agent_trace, Selection("trace"))
_INVOKED = _Plan(read_answer, Selection("chunk"), chunks=True)
_CONVERSED = _Plan(read_conversation, Selection("metadata"))
_VENDORS = _Plan(read_openai)

# All others tell nothing: Retrieve, RetrieveAndGenerate, AgenticRetrieveStream,
# GenerateQuery, OptimizePrompt, StartAsyncInvoke, Data Automation, AgentCore.
_PLANS: dict[tuple[str, str], _Plan] = {
    (_RUNTIME, "Converse"): _CONVERSED,
    (_RUNTIME, "ConverseStream"): _CONVERSED,
    (_RUNTIME, "InvokeModel"): _INVOKED,
    (_RUNTIME, "InvokeModelWithResponseStream"): _INVOKED,
    (_RUNTIME, "ApplyGuardrail"): _Plan(read_guardrail),
    (_RUNTIME, "InvokeGuardrailChecks"): _Plan(read_guardrail_checks),
    (_RUNTIME, "OpenAI"): _VENDORS,
    (_RUNTIME, "Anthropic"): _VENDORS,
    (_AGENTS, "InvokeAgent"): _AGENT,
    (_AGENTS, "InvokeInlineAgent"): _AGENT,
    (_AGENTS, "InvokeFlow"): _Plan(read_flow_trace, Selection("flowTraceEvent")),
}

_VENDOR_ROUTES = ("OpenAI", "Anthropic")

# Below /openai/v1 and /anthropic/v1 it is the asking that is billed (POST), and
# not what becomes of an answer, nor to count tokens or keep files. What is not
# known here counts as billed, and so as unknown.
_VENDOR_FREE = re.compile(
    rb"/(?:openai|anthropic)/v1/(?:(?:.*/)?(?:count_tokens|input_tokens|cancel)"
    rb"|(?:batches|containers|conversations|files|models|uploads|vector_stores)(?:/.*)?)/?"
)


def is_billed(operation: Operation, method: bytes = b"POST", raw_path: bytes = b"") -> bool:
    """
    Whether Bedrock may bill for an answer. Where it does not, there is no usage,
    and none that is not known either.

    :param method: looked at for OpenAI's and Anthropic's routes only.
    :param raw_path: the same; without the query. Empty: any.
    """
    if operation.service == _RUNTIME and operation.name in _VENDOR_ROUTES:
        return method == b"POST" and _VENDOR_FREE.fullmatch(raw_path) is None
    return pricing.is_billed(operation.service, operation.name)


def meter_for(
    operation: Operation,
    model_id: str,
    status: int,
    headers: HeaderList,
    *,
    method: bytes = b"POST",
    raw_path: bytes = b"",
    request_body: Callable[[], bytes] | None = None,
) -> Meter:
    """
    A meter for one answer.

    An answer that is not billed, by its operation (:func:`is_billed`) or because
    it is an error (400 or more), is not read at all; its usage has
    :attr:`Source.NONE`.

    :param model_id: Bedrock's id or ARN that was asked, or the id of the model that
        it stands for; empty if there is none.
    :param headers: of the answer.
    :param method: of the request.
    :param raw_path: of the request, without the query.
    :param request_body: gives the request's body, or its beginning if it is long.
        Called only where it says what is billed, and the answer does not
        (:data:`~txbedrock.core.usage.READ_REQUESTS`).
    """
    content_type = encoding = b""
    tally = Tally()
    plan = _PLANS.get((operation.service, operation.name))
    for name, value in headers:
        told = _told_by(name)
        if told is None:
            continue
        if told == "type":
            content_type = value
        elif told == "encoding":
            encoding = value.strip().lower()
        elif plan is not None:
            _read_header(told, name, value, tally)
    if encoding == b"identity":
        encoding = b""
    form = _FORMS.get(content_type) or _form_of(content_type)
    framed = form == "frames"
    # What is read is billed, but for some of the vendors' routes.
    known = plan is not None and plan is not _VENDORS
    if status >= 400 or not (known or is_billed(operation, method, raw_path)):
        return _Free(tally, FrameScanner() if framed and not encoding else None)
    if request_body is not None:
        for part, read in READ_REQUESTS.get(operation.name, ()):
            if part in model_id:
                read(request_body(), tally)
    if encoding not in (b"", b"gzip", b"x-gzip", b"deflate"):
        if plan is not None:
            tally.note(f"the answer is encoded as {encoding[:40].decode('ascii', 'replace')}")
        return Meter(tally)
    inflate = _Inflate(encoding.removeprefix(b"x-")) if encoding else None
    if framed:
        if plan is None or plan.events is None:
            return Meter(tally, None if encoding else FrameScanner())
        kind = _Chunks if plan.chunks else _Events
        return kind(tally, plan.readable, inflate, plan.events)
    if plan is None:
        return Meter(tally)
    if form == "json":
        return _Body(tally, plan.readable, inflate)
    if form == "lines":
        return _Lines(tally, plan.readable, inflate)
    tally.note(f"the answer is of type {content_type[:80].decode('ascii', 'replace')}")
    return Meter(tally)


_Form: TypeAlias = Literal["json", "frames", "lines", "other"]

_EVENT_STREAM = b"application/vnd.amazon.eventstream"
_SSE = b"text/event-stream"
_FORMS: dict[bytes, _Form] = {b"": "json", b"application/json": "json", _EVENT_STREAM: "frames"}
"""Of a body, by its content type as that is nearly always written."""


def _form_of(content_type: bytes) -> _Form:
    if content_type[: len(_EVENT_STREAM)].lower() == _EVENT_STREAM:
        return "frames"
    if content_type[: len(_SSE)].lower() == _SSE:
        return "lines"
    return "other" if _JSON.match(content_type) is None else "json"


_TOLD_BY_HEADERS = {
    b"content-type": "type",
    b"content-encoding": "encoding",
    b"x-amzn-bedrock-input-token-count": "input",
    b"x-amzn-bedrock-output-token-count": "output",
    b"x-amzn-bedrock-cache-read-input-token-count": "read",
    b"x-amzn-bedrock-cache-write-input-token-count": "write",
    b"x-amzn-bedrock-service-tier": "tier",
    b"x-amzn-bedrock-performanceconfig-latency": "latency",
}


@lru_cache(maxsize=256)
def _told_by(name: bytes) -> str | None:
    """What a header tells; they are written in the same few ways."""
    return _TOLD_BY_HEADERS.get(name.lower())


def _read_header(told: str, name: bytes, value: bytes, tally: Tally) -> None:
    """Read a header of Bedrock's own, by what it tells."""
    value = value.strip()
    if told == "tier":
        tally.header_tier = tier_name(value.decode("ascii", "replace"))
    elif told == "latency":
        tally.optimized = value.lower() == b"optimized"
    elif value.isdigit() and len(value) <= 16 and (count := int(value)) <= MAX_COUNT:
        if tally.headers is None:
            tally.headers = Told()
        setattr(tally.headers, told, count)
    else:
        tally.note(f"{name.lower().decode()} is not a count")
