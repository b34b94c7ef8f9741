"""
Tests for L{txbedrock.core.meter} and what it asks of the frame scanner: that it
holds little, never raises, and disturbs nothing. What answers tell is in
L{tests.core.test_usage}.
"""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable
from random import Random
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core import meter as meter_module
from txbedrock.core.eventstream import (
    Decoder,
    FrameScanner,
    Selection,
    encode,
    exception_frame,
)
from txbedrock.core.meter import Meter, meter_for
from txbedrock.core.usage import MAX_COUNT, Source, Usage

from .test_usage import (
    AGENTS,
    BODY,
    CLAUDE,
    CLAUDE_USAGE,
    FRAMES,
    HAIKU,
    HEADERS,
    JSON,
    METRICS,
    OPERATIONS,
    ROWS,
    RUNTIME,
    SSE,
    asked,
    chunks,
    claude_stream,
    counts,
    dump,
    event,
    invoked,
    metrics,
    sse,
)

MIB = 1024 * 1024


def meter(
    operation: str,
    headers: Iterable[tuple[bytes, bytes]] = JSON,
    service: str = RUNTIME,
    **options: Any,
) -> Meter:
    return meter_for(OPERATIONS[service, operation], "", 200, list(headers), **options)


def fed(meter: Meter, data: bytes, size: int = 65536) -> Usage:
    for start in range(0, len(data), size):
        meter.feed(data[start : start + size])
    return meter.usage()


class Joined:
    """Takes a long payload and stands for it with all of it."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def feed(self, data: bytes) -> None:
        self.pieces.append(data)

    def result(self) -> bytes:
        return b"long:" + b"".join(self.pieces)


class SelectionTests(SynchronousTestCase):
    """
    L{FrameScanner} with a L{Selection}
    """

    def random_stream(self, random: Random) -> bytes:
        frames = []
        for _ in range(random.randrange(1, 8)):
            headers = {
                ":event-type": random.choice(["wanted", "other", "wanted too"]),
                ":message-type": random.choice(["event", "event", "event", "exception"]),
            }
            if random.random() < 0.3:
                del headers[random.choice(list(headers))]
            payload = random.randbytes(random.choice([0, 1, 3, 4, 20, 100, 101, 3000]))
            frames.append(encode(headers, payload))
        return b"".join(frames)

    def expected(self, stream: bytes, longest: int) -> list[bytes]:
        """By the decoder, which holds everything."""
        return [
            frame.payload if len(frame.payload) <= longest else b"long:" + frame.payload
            for frame in Decoder().feed(stream)
            if frame.headers.get(":event-type") in ("wanted", "wanted too")
            and frame.headers.get(":message-type", "event") == "event"
        ]

    def test_any_pieces(self) -> None:
        """
        However TCP cuts the stream, exactly the payloads that are wanted come
        out, whole, and where frames end is known as without a wish: 3,000
        streams.
        """
        random = Random(1)
        selection = Selection("wanted", "wanted too")
        for _ in range(3000):
            stream = self.random_stream(random)
            longest = random.choice([0, 3, 100, 5000])
            scanner, plain = FrameScanner(selection, Joined, longest), FrameScanner()
            if random.random() < 0.2:
                cuts = list(range(len(stream)))
            else:
                cuts = sorted(random.randrange(len(stream)) for _ in range(random.randrange(9)))
            payloads = []
            for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
                payloads += scanner.feed(stream[start:end])
                self.assertEqual(plain.feed(stream[start:end]), [])
                for one in (scanner, plain):
                    self.assertFalse(one.desynced)
                self.assertEqual(
                    (scanner.at_boundary, scanner.frames), (plain.at_boundary, plain.frames)
                )
            self.assertEqual(payloads, self.expected(stream, longest))
            self.assertTrue(scanner.at_boundary)

    def test_too_long(self) -> None:
        """
        A payload that is too long and that nobody takes is passed over; those
        after it are not.
        """
        headers = {":event-type": "wanted"}
        stream = encode(headers, b"x" * 101) + encode(headers, b"y" * 100)
        for size in (1, 50, 1000):
            scanner = FrameScanner(Selection("wanted"), None, 100)
            payloads = []
            for start in range(0, len(stream), size):
                payloads += scanner.feed(stream[start : start + size])
            self.assertEqual(payloads, [b"y" * 100])
            self.assertEqual((scanner.frames, scanner.at_boundary), (2, True))

    def test_bad_headers(self) -> None:
        """
        A frame whose headers cannot be read is not wanted, and the next one is.
        """
        bad = bytearray(encode({":event-type": "wanted"}, b"x"))
        bad[12] = 200  # the length of the first name
        scanner = FrameScanner(Selection("wanted"))
        self.assertEqual(
            scanner.feed(bytes(bad) + encode({":event-type": "wanted"}, b"y")), [b"y"]
        )

    def test_desynced(self) -> None:
        """
        What came before the fault is not lost; nothing after it is taken.
        """
        good = encode({":event-type": "wanted"}, b"y")
        scanner = FrameScanner(Selection("wanted"))
        self.assertEqual(scanner.feed(good + b"HTTP/1.1 200 OK"), [b"y"])
        self.assertTrue(scanner.desynced)
        self.assertEqual(scanner.feed(good), [])

    def test_remembers_little(self) -> None:
        """
        A stream that has other headers in each frame fills no memory.
        """
        selection = Selection("wanted")
        scanner = FrameScanner(selection)
        for number in range(2000):
            scanner.feed(encode({":event-type": "wanted", "number": str(number)}, b""))
        scanner.feed(encode({"long": "x" * 30000}, b""))
        self.assertEqual(len(selection.known), 256)


class LongTests(SynchronousTestCase):
    """
    Parts of an answer that are too long to be held.
    """

    def test_unary(self) -> None:
        """
        The usage at the end of 3 MB of text, and of base64, is found.
        """
        for text in ('lorem "ipsum" \\ {[\n' * 200_000, "A" * 3_000_000):
            document = {
                "output": {"message": {"content": [{"text": text}]}},
                "usage": {"inputTokens": 5, "outputTokens": 6},
            }
            self.assertEqual(fed(meter("Converse"), dump(document)), Usage(5, 6, source=BODY))

    def test_images(self) -> None:
        """
        Images are counted without being held.
        """
        document = {"images": ["A" * 3_000_000] * 3, "seeds": [1, 2, 3]}
        self.assertEqual(
            fed(meter("InvokeModel"), dump(document)),
            Usage(units=(("images", 3),), source=BODY),
        )

    def test_cut(self) -> None:
        """
        A long answer that is cut has no usage, and its record says why.
        """
        document = dump({"output": "x" * 100_000, "usage": {"inputTokens": 5}})
        self.assertEqual(
            fed(meter("Converse"), document[:-3]),
            Usage(problem="the answer ends before its JSON does"),
        )

    def test_chunk(self) -> None:
        """
        A last chunk with a whole conversation in it still tells its metrics; one
        with everything, its usage. Padding may come first.
        """
        history = [{"role": "USER", "message": "lorem\n" * 100_000}]
        stream = chunks(
            {"text": "a", "is_finished": False},
            {
                "is_finished": True,
                "response": {"chat_history": history},
                **metrics(input=5, output=6),
            },
        )
        stream_operation = "InvokeModelWithResponseStream"
        for size in (1460, 65536, 10 * MIB):
            self.assertEqual(
                fed(meter(stream_operation, FRAMES), stream, size), Usage(5, 6, source=METRICS)
            )
        inner = dump({**CLAUDE, "padding": "x" * 200_001, "usage": CLAUDE_USAGE})
        for pattern in (b'{"p":"ab","bytes":"%b"}', b'{ "bytes" : "%b" , "p":"ab"}'):
            headers = {":event-type": "chunk", ":message-type": "event"}
            stream = encode(headers, pattern % b64encode(inner).replace(b"/", b"\\/"))
            for size in (1461, 65536):
                self.assertEqual(
                    fed(meter(stream_operation, FRAMES), stream, size),
                    Usage(12, 87, 4000, 1000, 2000, tier="default", source=BODY),
                )

    def test_no_base64(self) -> None:
        """
        A long chunk that is not base64 is told, and the figures of others stay.
        """
        headers = {":event-type": "chunk", ":message-type": "event"}
        stream = encode(headers, b'{"bytes":"%b"}' % (b"*" * 100_000))
        stream += chunks(metrics(input=5, output=6))
        self.assertEqual(
            fed(meter("InvokeModelWithResponseStream", FRAMES), stream),
            Usage(5, 6, source=METRICS, problem="a chunk is not base64"),
        )

    def test_metadata(self) -> None:
        """
        The metadata of a guardrail that has said much is read.
        """
        guardrail = {
            "modelOutput": ["lorem\n" * 100_000],
            "inputAssessment": {
                "g": {"invocationMetrics": {"usage": {"contentPolicyUnits": 2}}},
            },
        }
        told = {"usage": {"inputTokens": 5, "outputTokens": 6}, "trace": {"guardrail": guardrail}}
        self.assertEqual(
            fed(meter("ConverseStream", FRAMES), event("metadata", told)),
            Usage(5, 6, units=(("guardrail.contentPolicyUnits", 2),), source=BODY),
        )

    def test_trace(self) -> None:
        """
        The steps of an agent and a flow count although their prompts are long.
        """
        prompt = "lorem ipsum\n" * 20_000
        first = asked("orchestrationTrace", HAIKU)
        first["trace"]["orchestrationTrace"]["modelInvocationInput"]["text"] = prompt
        second = invoked("orchestrationTrace", 5, 6, rationale={"text": prompt})
        expected = Usage(5, 6, model=HAIKU, source=BODY)
        stream = event("trace", first) + event("trace", second)
        self.assertEqual(fed(meter("InvokeAgent", FRAMES, AGENTS), stream), expected)
        dependency = {"traceElements": {"agentTraces": [first, second]}}
        stream = event("flowTraceEvent", {"trace": {"nodeDependencyTrace": dependency}})
        self.assertEqual(fed(meter("InvokeFlow", FRAMES, AGENTS), stream), expected)

    def test_line(self) -> None:
        """
        The last event of a response that repeats all of it tells its usage, also
        when lines as long have come before and after it.
        """
        long = {"type": "response.output_item.done", "item": {"text": "lorem\n" * 20_000}}
        response = {
            "model": "m",
            "output": ["x" * 200_000],
            "usage": {"input_tokens": 5, "output_tokens": 6, "total_tokens": 11},
        }
        begun = {"type": "response.created", "response": {**response, "usage": None}}
        done = {"type": "response.completed", "response": response}
        stream = sse(begun, *[long] * 20, done, *[long] * 20, named=True)
        stream += b': a comment {"usage":{"input_tokens":9}}' + b"x" * 100_000 + b"\n"
        for size in (1460, 65536, 100 * MIB):
            self.assertEqual(
                fed(meter("OpenAI", SSE), stream, size), Usage(5, 6, model="m", source=BODY)
            )

    def test_line_without_end(self) -> None:
        """
        A last line that is whole counts although its end is missing; one that is
        cut does not.
        """
        for padding in ("", "x" * 100_000):
            line = sse({"padding": padding, "usage": {"prompt_tokens": 5}}).rstrip()
            self.assertEqual(fed(meter("OpenAI", SSE), line), Usage(5, source=BODY))
            self.assertEqual(fed(meter("OpenAI", SSE), line[:-1]), Usage())

    def test_only_the_last(self) -> None:
        """
        Of a thousand events that all tell usage the last one counts, and of a
        message of Claude's the first one as well.
        """
        told = [{"usage": {"prompt_tokens": 9, "completion_tokens": n}} for n in range(1000)]
        self.assertEqual(fed(meter("OpenAI", SSE), sse(*told)), Usage(9, 999, source=BODY))
        stream = chunks(*told)
        self.assertEqual(
            fed(meter("InvokeModelWithResponseStream", FRAMES), stream),
            Usage(9, 999, source=BODY),
        )
        start, *middle, delta, stop = claude_stream(CLAUDE_USAGE, {"output_tokens": 900}, {})
        events = (start, *middle * 100, delta, stop)
        for usage in (
            fed(meter("InvokeModelWithResponseStream", FRAMES), chunks(*events)),
            fed(meter("InvokeModelWithResponseStream", FRAMES), chunks({"type": "ping"}, *events)),
        ):
            self.assertEqual(usage, Usage(12, 900, 4000, 1000, 2000, tier="default", source=BODY))


class EncodingTests(SynchronousTestCase):
    """
    Answers that the client has asked for in a compressed form.
    """

    def compressed(self) -> list[tuple[bytes, Callable[[bytes], bytes]]]:
        def raw(data: bytes) -> bytes:
            compressor = zlib.compressobj(wbits=-15)
            return compressor.compress(data) + compressor.flush()

        return [
            (b"gzip", gzip.compress),
            (b"GZIP", gzip.compress),
            (b"x-gzip", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:]) + b"\0\0"),
            (b"deflate", zlib.compress),
            (b"deflate", raw),
            (b"identity", bytes),
        ]

    def test_same_usage(self) -> None:
        """
        Every answer tells the same compressed, however it is cut; the frames of a
        compressed event stream cannot be told apart.
        """
        for row in ROWS:
            for name, compress in self.compressed():
                data = compress(row.body)
                for size in (len(data), 1, 7):
                    headers = (*row.headers, (b"content-encoding", name))
                    one = meter_for(
                        OPERATIONS[row.service, row.operation],
                        row.model,
                        row.status,
                        list(headers),
                        **row.options,
                    )
                    self.assertEqual(fed(one, data, size), row.usage, (row.name, name, size))
                    if name != b"identity":
                        self.assertFalse(one.framed)
                        self.assertFalse(one.at_boundary)

    def test_long(self) -> None:
        """
        20 MB that compress to little are read, piece by piece.
        """
        text = b"".join(b'{"n":%d,"m":"%d"},' % (n, n * n) for n in range(200_000))
        document = b'{"output":[%b0],"usage":{"inputTokens":5,"outputTokens":6}}' % (text * 2)
        one = meter("Converse", (*JSON, (b"Content-Encoding", b"gzip")))
        self.assertEqual(fed(one, gzip.compress(document, 1)), Usage(5, 6, source=BODY))

    def test_others(self) -> None:
        """
        An encoding that is not known is told, and the headers' figures are taken.
        """
        for name in (b"br", b"zstd", b"gzip, gzip"):
            headers = (*counts(input=5, output=6), (b"Content-Encoding", name))
            problem = f"the answer is encoded as {name.decode()}"
            self.assertEqual(
                fed(meter("InvokeModel", headers), b"\x8b\x01"),
                Usage(5, 6, source=HEADERS, problem=problem),
            )

    def test_broken(self) -> None:
        """
        What is not compressed as it says ends metering, and the headers' figures
        are taken.
        """
        headers = (*counts(input=5, output=6), (b"Content-Encoding", b"gzip"))
        usage = fed(meter("InvokeModel", headers), b'{"usage":{}}')
        self.assertEqual((usage.input_tokens, usage.source), (5, HEADERS))
        self.assertIn("the answer cannot be decompressed", usage.problem)

    def test_bomb(self) -> None:
        """
        An answer that grows a thousand times does not hold up the gateway.
        """
        headers = (*JSON, (b"Content-Encoding", b"gzip"))
        bomb = gzip.compress(b'{"a":"%b"}' % bytes(50 * MIB))
        usage = fed(meter("Converse", headers), bomb)
        self.assertEqual(usage, Usage(problem="the answer is compressed too well to be read"))


class EndTests(SynchronousTestCase):
    """
    What ends metering ends nothing else.
    """

    def test_a_meter_that_fails(self) -> None:
        """
        Where frames end is known after a failure as before; the failure is told.
        """
        stream = [event("trace", invoked("orchestrationTrace", 1, 2)), event("chunk", {})]
        one = meter("InvokeAgent", FRAMES, AGENTS)
        for frame in stream * 2:
            with patch.object(type(one), "_take", side_effect=RuntimeError("oops")):
                one.feed(frame[:20])
                self.assertFalse(one.at_boundary)
                one.feed(frame[20:])
                self.assertTrue(one.at_boundary)
        self.assertEqual(one.usage(), Usage(problem="the meter failed: RuntimeError"))

    def test_no_event_stream(self) -> None:
        """
        A stream that goes wrong is told; what was seen before counts.
        """
        one = meter("ConverseStream", FRAMES)
        one.feed(event("metadata", {"usage": {"inputTokens": 1, "outputTokens": 2}}))
        one.feed(b"<html>502 Bad Gateway</html>")
        self.assertFalse(one.at_boundary)
        self.assertEqual(
            one.usage(), Usage(1, 2, source=BODY, problem="the answer is not an event stream")
        )

    def test_exception(self) -> None:
        """
        A stream that ends with an exception has told no usage.
        """
        one = meter("ConverseStream", FRAMES)
        one.feed(event("messageStart", {"role": "assistant"}))
        one.feed(exception_frame("throttlingException", '{"usage":{"inputTokens":1}}'))
        self.assertEqual(one.usage(), Usage())
        self.assertTrue(one.at_boundary)

    def test_bad_trace(self) -> None:
        """
        A trace that cannot be read ends the count, and says so: the sum would be
        too small.
        """
        one = meter("InvokeAgent", FRAMES, AGENTS)
        bad = invoked("orchestrationTrace", 3, 4)
        bad["trace"]["orchestrationTrace"]["modelInvocationOutput"]["metadata"] = 5
        for trace in (
            invoked("orchestrationTrace", 1, 2),
            bad,
            invoked("orchestrationTrace", 5, 6),
        ):
            one.feed(event("trace", trace))
        usage = one.usage()
        self.assertEqual((usage.input_tokens, usage.output_tokens), (1, 2))
        self.assertIn("the answer is not as expected", usage.problem)

    def test_lone_surrogates(self) -> None:
        r"""
        Text that is cut within a character (C{\ud83d}) hides no usage.
        """
        text = b'{"a":"\\ud83d","usage":{"prompt_tokens":1,"completion_tokens":2}}'
        expected = Usage(1, 2, source=BODY)
        self.assertEqual(fed(meter("InvokeModel"), text), expected)
        self.assertEqual(fed(meter("OpenAI", SSE), b"data: %b\n\n" % text), expected)
        headers = {":event-type": "chunk", ":message-type": "event"}
        stream = encode(headers, b'{"bytes":"%b"}' % b64encode(text))
        self.assertEqual(fed(meter("InvokeModelWithResponseStream", FRAMES), stream), expected)

    def test_told_in_two_events(self) -> None:
        """
        Metadata without usage takes nothing back; with usage, it is the last that
        counts.
        """
        one = meter("ConverseStream", FRAMES)
        for told in (
            {"usage": {"inputTokens": 1, "outputTokens": 2}},
            {"usage": {"inputTokens": 3, "outputTokens": 4}},
            {"metrics": {"latencyMs": 5}, "serviceTier": {"type": "flex"}},
        ):
            one.feed(event("metadata", told))
        self.assertEqual(one.usage(), Usage(3, 4, tier="flex", source=BODY))

    def test_types(self) -> None:
        """
        What does not say that it is JSON is read all the same if it says nothing;
        an image is not.
        """
        body = dump({"usage": {"prompt_tokens": 1, "completion_tokens": 2}})
        for content_type in (b"", b"application/json;charset=utf-8", b"Application/x+JSON"):
            usage = fed(meter("InvokeModel", [(b"Content-Type", content_type)]), body)
            self.assertEqual(usage, Usage(1, 2, source=BODY), content_type)
        self.assertEqual(fed(meter("InvokeModel", []), body), Usage(1, 2, source=BODY))
        self.assertEqual(
            fed(meter("InvokeModel", [(b"Content-Type", b"image/png")]), body),
            Usage(problem="the answer is of type image/png"),
        )

    def test_nothing(self) -> None:
        """
        An answer without a body tells nothing, and that is no problem.
        """
        for operation, headers in (
            ("Converse", JSON),
            ("ConverseStream", FRAMES),
            ("InvokeModelWithResponseStream", FRAMES),
            ("OpenAI", SSE),
        ):
            self.assertEqual(meter(operation, headers).usage(), Usage())
            one = meter(operation, headers)
            one.feed(b"")
            self.assertEqual(one.usage(), Usage())

    def test_refusal(self) -> None:
        """
        An error's frames are told apart although it is not read.
        """
        one = meter_for(OPERATIONS[RUNTIME, "ConverseStream"], "", 500, list(FRAMES))
        frame = exception_frame("internalServerException", "oops")
        one.feed(frame[:-1])
        self.assertEqual((one.framed, one.at_boundary), (True, False))
        one.feed(frame[-1:])
        self.assertEqual((one.framed, one.at_boundary), (True, True))
        self.assertEqual(one.usage(), Usage(source=Source.NONE))


# Documents of the names that are looked for.
DOCUMENTS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                [
                    *("usage", "message", "response", "metadata", "trace", "guardrail"),
                    *("inputTokens", "outputTokens", "cacheReadInputTokens", "cacheDetails"),
                    *("input_tokens", "output_tokens", "cache_creation", "iterations"),
                    *("prompt_tokens", "prompt_tokens_details", "cached_tokens", "type"),
                    *("amazon-bedrock-invocationMetrics", "inputTokenCount", "results"),
                    *("inputTextTokenCount", "tokenCount", "images", "artifacts"),
                    *("invocationMetrics", "contentPolicyUnits", "orchestrationTrace"),
                    *("modelInvocationOutput", "serviceTier", "model", "textUnits"),
                ]
            ),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=30,
)


class GarbageTests(SynchronousTestCase):
    """
    Whatever comes: no exception, and nothing that is no count.
    """

    def check(self, one: Meter, pieces: Iterable[bytes]) -> None:
        for piece in pieces:
            one.feed(piece)
            self.assertIn(one.at_boundary, (True, False))
        usage = one.usage()
        self.assertIn(usage.source, Source)
        for count in (
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_read_tokens,
            usage.cache_write_5m_tokens,
            usage.cache_write_1h_tokens,
            *(count for _, count in usage.units),
        ):
            self.assertIs(type(count), int)
            self.assertTrue(0 <= count <= 100 * MAX_COUNT)

    def test_changed(self) -> None:
        """
        Answers of which bytes were changed, lost or added.
        """
        random = Random(3)
        for _ in range(40):
            for row in ROWS:
                body = bytearray(row.body)
                for _ in range(random.randrange(1, 4)):
                    at = random.randrange(len(body))
                    body[at : at + random.randrange(3)] = random.choice(
                        [b"", b'"', b"{", b"}", b"[", b"-", b"1e9", b"null", random.randbytes(2)]
                    )
                cut = random.randrange(len(body) + 1)
                self.check(row.meter(), [bytes(body[:cut]), bytes(body[cut:])])

    def test_changed_inside_of_frames(self) -> None:
        """
        The same of payloads in frames that are sound.
        """
        random = Random(4)
        rows = [row for row in ROWS if row.headers[: len(FRAMES)] == FRAMES]
        for _ in range(40):
            for row in rows:
                one = row.meter()
                for frame in Decoder().feed(row.body):
                    payload = bytearray(frame.payload)
                    at = random.randrange(len(payload))
                    payload[at : at + random.randrange(3)] = random.choice(
                        [b"", b'"', b"{", b"}", b"[", b"-", b"9", random.randbytes(2)]
                    )
                    headers = {name: str(value) for name, value in frame.headers.items()}
                    one.feed(encode(headers, bytes(payload)))
                self.check(one, [])

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(
        st.sampled_from(ROWS),
        st.lists(st.one_of(st.binary(max_size=200), st.sampled_from([b'{"usage":', b"data: {"]))),
    )
    def test_anything(self, row: Any, pieces: list[bytes]) -> None:
        """
        Any bytes at all.
        """
        self.check(row.meter(), pieces)

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(st.sampled_from(ROWS), DOCUMENTS)
    def test_any_document(self, row: Any, value: Any) -> None:
        """
        Any JSON of the names that are looked for: read whole and piece by piece
        it tells the same.
        """
        text = json.dumps(value).encode()
        one = row.meter()
        if row.headers[: len(FRAMES)] == FRAMES:
            kinds = ("chunk", "metadata", "trace", "flowTraceEvent")
            text = b"".join(event(kind, value) for kind in kinds) + chunks(value)
        elif row.headers == SSE:
            text = b"data: %b\n\n" % text
        self.check(one, [text])
        usage = one.usage()
        if not usage.problem:
            with patch.multiple(meter_module, _WHOLE_BYTES=0, _PAYLOAD_BYTES=0, _LINE_BYTES=8):
                one = row.meter()
                self.check(one, [text[i : i + 1] for i in range(len(text))])
                self.assertEqual(one.usage(), usage, text)


class MemoryTests(SynchronousTestCase):
    """
    A long answer takes no more memory than a short one.
    """

    def peak(self, one: Meter, pieces: Iterable[bytes]) -> int:
        """The most that was held at a time, in bytes."""
        tracemalloc.start()
        try:
            for piece in pieces:
                one.feed(piece)
            one.usage()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def repeated(self, frame: bytes, total: int) -> list[bytes]:
        """So many bytes of the same frame, as TCP cuts them; few are really there."""
        block = frame * (MIB // len(frame) + 1)
        pieces = [block[i : i + 65536] for i in range(0, len(block), 65536)]
        return pieces * (total // len(block))

    def test_streams(self) -> None:
        """
        200 MB of frames, 20 MB of tiny ones, 50 MB of 250 KB each and of an
        agent's traces; 50 MB of server-sent events, and 50 MB without the end of
        a single line.
        """
        short = {"contentBlockIndex": 0, "delta": {"text": "x" * 30}}
        delta = {"contentBlockIndex": 0, "delta": {"text": "x" * 5000}}
        long = {"delta": {"text": "x" * 250_000}}
        mib = MIB
        for operation, service, headers, unit, total in (
            ("ConverseStream", RUNTIME, FRAMES, event("contentBlockDelta", delta), 200 * mib),
            ("ConverseStream", RUNTIME, FRAMES, event("contentBlockDelta", short), 20 * mib),
            ("ConverseStream", RUNTIME, FRAMES, event("metadata", long), 50 * mib),
            ("InvokeModelWithResponseStream", RUNTIME, FRAMES, chunks(delta), 200 * mib),
            ("InvokeModelWithResponseStream", RUNTIME, FRAMES, chunks(short), 20 * mib),
            ("InvokeModelWithResponseStream", RUNTIME, FRAMES, chunks(long), 50 * mib),
            ("InvokeAgent", AGENTS, FRAMES, event("trace", long), 50 * mib),
            ("OpenAI", RUNTIME, SSE, sse({**delta, "usage": {"prompt_tokens": 1}}), 50 * mib),
            ("OpenAI", RUNTIME, SSE, b'data: "usage" {"usage":{', 50 * mib),
            ("RetrieveAndGenerateStream", AGENTS, FRAMES, event("output", delta), 50 * mib),
        ):
            one = meter(operation, headers, service)
            peak = self.peak(one, self.repeated(unit, total))
            self.assertLess(peak, MIB, (operation, len(unit)))

    def test_bodies(self) -> None:
        """
        20 MB of text, base64, vectors, nested objects and garbage.
        """
        for operation, begin, unit in (
            ("Converse", b'{"output":{"text":"', b'lorem \\"ipsum\\" '),
            ("InvokeModel", b'{"images":["', b"A" * 1000),
            ("InvokeModel", b'{"embeddings":[[', b"0.0123,"),
            ("Converse", b'{"output":[', b'{"name":"abc","values":[1,2,{"a":"b"}]},'),
            ("Converse", b'{"usage":"', b"x" * 1000),
            ("Converse", b'{"trace":{"guardrail":{"inputAssessment":[', b'{"a":"b"},'),
            ("InvokeModel", b'{"results":[', b'{"tokenCount":1},'),
            ("Converse", b"", b"[[[["),
            ("OpenAI", b"", b"\xff\x00"),
        ):
            one = meter(operation)
            block = unit * (65536 // len(unit))
            peak = self.peak(one, [begin, *[block] * (20 * MIB // len(block))])
            self.assertLess(peak, MIB, (operation, begin))

    def test_byte_by_byte(self) -> None:
        """
        What comes in the smallest pieces is not held in the smallest pieces.
        """
        text = dump({"output": "x" * 50_000, "usage": {"inputTokens": 1}})
        pieces = [text[i : i + 1] for i in range(len(text))]
        self.assertLess(self.peak(meter("Converse"), pieces), MIB)
        text = sse({"output": "x" * 20_000, "usage": {"prompt_tokens": 1}})
        pieces = [text[i : i + 1] for i in range(len(text))]
        self.assertLess(self.peak(meter("OpenAI", SSE), pieces), MIB)
