"""
Faults: how they are asked for and whom they meet. What they do is in ``test_site``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.eventstream import Decoder, EventStreamError, encode
from txbedrock.core.replies import ErrorShape
from txbedrock.sandbox.faults import KINDS, End, Fault, Faults, Pause, Script, Step, play
from txbedrock.sandbox.models import Answer

FRAMES = [encode({":event-type": "chunk"}, b"%d" % number) for number in range(4)]
PLAIN = Answer(200, ((b"Content-Type", b"application/json"),), [b'{"a": "bcdefgh"}'])


def stream() -> Answer:
    return Answer(200, (), list(FRAMES), True, True)


def script(asked: str, answer: Answer | None = None) -> Script:
    answer = stream() if answer is None else answer
    return play(Fault.parse(asked), answer, 0, "r-1", ErrorShape.AWS)


def data(steps: Iterable[Step]) -> bytes:
    return b"".join(step for step in steps if isinstance(step, bytes))


class FaultTests(SynchronousTestCase):
    """Asking for a fault."""

    def test_forms(self) -> None:
        """JSON, a bare kind and name=value pairs are the same."""
        fault = Fault("drop", at="frame", after=3, interval_ms=1.5)
        texts = [
            '{"kind": "drop", "at": "frame", "after": 3, "interval_ms": 1.5}',
            "drop;at=frame;after=3;interval_ms=1.5",
            " kind=drop ; at=frame; after=3;interval_ms=1.5;",
        ]
        for text in texts:
            self.assertEqual(Fault.parse(text), fault, text)
        self.assertEqual(Fault.of(fault.as_json()), fault)

    def test_wrong(self) -> None:
        """What cannot be played is refused with a sentence that says what can."""
        for text, expected in [
            ("explode", "there are: error"),
            ("at=body", "kind is missing"),
            ("drop;at=toe", "expected one of head, body, frame"),
            ("drop;after=soon", "after: not to be read"),
            ("drop;wings=2", "a fault has no 'wings'"),
            ("throttle;times=0", "at least 1"),
            ("{", ""),
        ]:
            error = self.assertRaises(ValueError, Fault.parse, text)
            self.assertIn(expected, str(error))

    def test_times(self) -> None:
        """A fault happens so many times, then the next one, then none."""
        faults = Faults()
        faults.add("throttle", times=2)
        faults.add(Fault("hang"))
        kinds = [
            fault and fault.kind for fault in (faults.take("Converse", "m", None) for _ in "1234")
        ]
        self.assertEqual(kinds, ["throttle", "throttle", "hang", None])

    def test_for_ever(self) -> None:
        faults = Faults()
        faults.add("throttle", times=None)
        for _ in range(10):
            self.assertIsNotNone(faults.take("Converse", "m", None))
        faults.clear()
        self.assertIsNone(faults.take("Converse", "m", None))

    def test_matching(self) -> None:
        """Operation, model and region pick the requests; the last two with wildcards."""
        faults = Faults()
        faults.add("hang", operation="Converse", model="us.*", region="us-*")
        for request in [
            ("InvokeModel", "us.a", "us-east-1"),
            ("Converse", "eu.a", "us-east-1"),
            ("Converse", "us.a", "eu-west-1"),
            ("Converse", "us.a", None),
        ]:
            self.assertIsNone(faults.take(*request))
        self.assertIsNotNone(faults.take("Converse", "us.a", "us-east-1"))


class PlayTests(SynchronousTestCase):
    """What a fault makes of an answer."""

    def test_every_kind(self) -> None:
        """Every kind can be played on a stream and on a plain body."""
        for kind in KINDS:
            for answer in (stream(), PLAIN):
                played = script(kind, answer)
                self.assertIsInstance(data(played.before) + data(played.body), bytes)

    def test_places(self) -> None:
        """Body is between two events, frame inside one; bytes can be counted too."""
        whole = b"".join(FRAMES)
        for asked, expected in [
            ("drop;at=body;after=0", b""),
            ("drop;at=body", FRAMES[0]),
            ("drop;at=body;after=3", b"".join(FRAMES[:3])),
            ("drop;at=body;after=99", whole),
            ("drop;at=frame;after=1", FRAMES[0] + FRAMES[1][: len(FRAMES[1]) // 2]),
            ("drop;at=frame;after=99", whole[: -len(FRAMES[3]) + len(FRAMES[3]) // 2]),
            ("drop;at=body;after_bytes=5", whole[:5]),
            (f"drop;at=body;after_bytes={len(FRAMES[0])}", FRAMES[0]),
        ]:
            steps = list(script(asked).body)
            self.assertEqual(data(steps), expected, asked)
            self.assertIs(steps[-1], End.ABORT)
        steps = list(script("close;at=body", PLAIN).body)
        self.assertEqual(steps, [PLAIN.pieces[0][:8], End.FIN])

    def test_hang(self) -> None:
        """A hang in the body ends after the seconds given, and the rest comes."""
        steps = list(script("hang;at=body;after=2;seconds=3").body)
        self.assertEqual(steps, [*FRAMES[:2], Pause(3.0), *FRAMES[2:]])
        self.assertEqual(script("hang").before, (End.HANG,))
        self.assertEqual(script("hang;seconds=3").before, (Pause(3.0),))

    def test_drip(self) -> None:
        steps = list(script("drip;interval_ms=200").body)
        self.assertEqual(steps[:4], [Pause(0.2), FRAMES[0], Pause(0.2), FRAMES[1]])
        steps = list(script("drip;interval_ms=200", PLAIN).body)
        self.assertEqual(steps.count(Pause(0.2)), 8)
        self.assertEqual(data(steps), PLAIN.pieces[0])

    def test_interval_goes_with_others(self) -> None:
        steps = list(script("drop;at=body;after=2;interval_ms=50").body)
        self.assertEqual(steps, [Pause(0.05), FRAMES[0], Pause(0.05), FRAMES[1], End.ABORT])

    def test_exception(self) -> None:
        """The exception frame is the last one."""
        played = script("exception;code=throttlingException;after=2;message=Slow down")
        frames = Decoder().feed(data(played.body))
        self.assertEqual(len(frames), 3)
        self.assertEqual(frames[-1].headers[":exception-type"], "throttlingException")
        self.assertIn(b"Slow down", frames[-1].payload)
        plain = script("exception;code=throttlingException", PLAIN)
        self.assertEqual(plain.answer.status, 429)

    def test_errors(self) -> None:
        """Status and code complete each other."""
        for asked, status, code in [
            ("throttle", 429, b"ThrottlingException"),
            ("error", 500, b"InternalServerException"),
            ("error;status=503", 503, b"ServiceUnavailableException"),
            ("error;code=AccessDeniedException", 403, b"AccessDeniedException"),
            ("error;status=418;code=Teapot", 418, b"Teapot"),
        ]:
            answer = script(asked).answer
            self.assertEqual(answer.status, status, asked)
            self.assertEqual(dict(answer.headers)[b"x-amzn-ErrorType"], code, asked)
        headers = dict(script("throttle;retry_after_s=2;retry_after_ms=1500").answer.headers)
        self.assertEqual(headers[b"Retry-After"], b"2")
        self.assertEqual(headers[b"x-amz-retry-after"], b"1500")

    def test_bad_crc(self) -> None:
        """The one frame is broken; those before it are not."""
        played = script("bad_crc;after=2")
        error = self.assertRaises(EventStreamError, Decoder().feed, data(played.body))
        self.assertEqual(len(error.frames), 2)

    def test_gzip(self) -> None:
        played = script("gzip")
        self.assertIn((b"Content-Encoding", b"gzip"), played.answer.headers)
        self.assertEqual(zlib.decompress(data(played.body), wbits=31), b"".join(FRAMES))
        played = script("gzip", PLAIN)
        self.assertEqual(played.length, len(data(played.body)))

    def test_length(self) -> None:
        self.assertEqual(script("length;by=-3", PLAIN).length, len(PLAIN.pieces[0]) - 3)
        self.assertEqual(script("length", PLAIN).length, len(PLAIN.pieces[0]) + 10)

    def test_flood(self) -> None:
        """A flood is of valid frames, between the first and the last of the answer."""
        body = data(script("flood;megabytes=0.5").body)
        self.assertGreaterEqual(len(body), 500_000)
        self.assertLess(len(body), 600_000)
        frames = Decoder().feed(body)
        self.assertEqual(frames[0].payload, b"0")
        self.assertEqual(frames[-1].payload, b"3")
