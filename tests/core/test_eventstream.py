"""
Tests for L{txbedrock.core.eventstream}. The reference is botocore's parser,
which is what reads our frames at the other end.
"""

from __future__ import annotations

import json
from random import Random
from struct import pack
from uuid import UUID
from zlib import crc32

from botocore.eventstream import EventStreamBuffer
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.eventstream import (
    MAX_HEADERS_BYTES,
    MAX_PAYLOAD_BYTES,
    Decoder,
    EventStreamError,
    Frame,
    FrameScanner,
    encode,
    error_frame,
    exception_frame,
)

EMPTY = bytes.fromhex("000000100000000005c248eb7d98c8ff")
PAYLOAD_ONLY = (
    bytes.fromhex("0000001d00000000fd528c5a") + b"{'foo':'bar'}" + bytes.fromhex("c3653936")
)
INT_HEADER = (
    bytes.fromhex("0000002d0000001041c424b8")
    + b"\x0aevent-type\x04\x00\x00\xa0\x0c{'foo':'bar'}"
    + bytes.fromhex("36f480a0")
)


def raw_frame(block: bytes, payload: bytes) -> bytes:
    """A frame with this header block, right or wrong."""
    lengths = pack(">II", 16 + len(block) + len(payload), len(block))
    message = lengths + pack(">I", crc32(lengths)) + block + payload
    return message + pack(">I", crc32(message))


def prelude(total: int, headers_length: int) -> bytes:
    lengths = pack(">II", total, headers_length)
    return lengths + pack(">I", crc32(lengths))


ALL_TYPES = (
    b"\x01t\x00"
    b"\x01f\x01"
    b"\x01b\x02\xff"
    b"\x01s\x03\x80\x00"
    b"\x01i\x04\xff\xff\xff\xfe"
    b"\x01l\x05\x7f\xff\xff\xff\xff\xff\xff\xff"
    b"\x01y\x06\x00\x03\x00\xff\x01"
    b"\x01u\x07\x00\x02\xc3\xa9"
    b"\x01d\x08\x00\x00\x01\x91\x00\x00\x00\x00"
    b"\x01g\x09\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f"
)


def random_frames(random: Random, count: int) -> list[tuple[dict[str, str], bytes]]:
    frames = []
    for _ in range(count):
        headers = {
            f":{name}{random.choice(['', 'é', 'x' * 200])}": random.choice(
                ["", "event", "chunk", "é" * 40, "x" * 1000]
            )
            for name in random.sample("abcdef", random.randrange(5))
        }
        payload = random.randbytes(random.choice([0, 1, 2, 11, 12, 13, 100, 5000]))
        frames.append((headers, payload))
    return frames


def random_pieces(random: Random, data: bytes) -> list[bytes]:
    """The same bytes as TCP may cut them, empty pieces among them."""
    if random.random() < 0.2:
        return [data[i : i + 1] for i in range(len(data))]
    cuts = sorted(random.randrange(len(data) + 1) for _ in range(random.randrange(40)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


class EncodeTests(SynchronousTestCase):
    """
    L{encode}, L{exception_frame}, L{error_frame}
    """

    def test_known_answers(self) -> None:
        """
        The bytes are those of AWS's published test vectors.
        """
        self.assertEqual(encode({}, b""), EMPTY)
        self.assertEqual(encode({}, b"{'foo':'bar'}"), PAYLOAD_ONLY)

    def test_botocore_reads_it(self) -> None:
        """
        boto3 reads back exactly the headers and payload that were encoded.
        """
        random = Random(1)
        frames = random_frames(random, 1000)
        buffer = EventStreamBuffer()
        for headers, payload in frames:
            buffer.add_data(encode(headers, payload))
            message = next(buffer)
            self.assertEqual(message.headers, headers)
            self.assertEqual(message.payload, payload)
        self.assertRaises(StopIteration, next, buffer)

    def test_exception(self) -> None:
        """
        A client sees a modelled exception with its message.
        """
        data = exception_frame("throttlingException", 'Slow down, "é" \ud800')
        buffer = EventStreamBuffer()
        buffer.add_data(data)
        message = next(buffer)
        self.assertEqual(
            message.headers,
            {
                ":message-type": "exception",
                ":exception-type": "throttlingException",
                ":content-type": "application/json",
            },
        )
        self.assertEqual(json.loads(message.payload), {"message": 'Slow down, "é" \ud800'})
        self.assertEqual(message.to_response_dict()["status_code"], 400)

    def test_error(self) -> None:
        """
        A client sees an error of any code with its message.
        """
        buffer = EventStreamBuffer()
        buffer.add_data(error_frame("ServiceUnavailableException", "The upstream broke: é"))
        self.assertEqual(
            next(buffer).headers,
            {
                ":message-type": "error",
                ":error-code": "ServiceUnavailableException",
                ":error-message": "The upstream broke: é",
            },
        )

    def test_error_of_any_length(self) -> None:
        """
        A message too long for a header is cut between characters; one that is
        not Unicode is sent as far as it goes. Reporting an error never fails.
        """
        for message in ("x" * 100_000, "é" * 100_000, "x" + "é" * 100_000, "\ud800"):
            (frame,) = Decoder().feed(error_frame("Code", message))
            text = frame.headers[":error-message"]
            assert isinstance(text, str)
            self.assertTrue(message.startswith(text) or text == "?")
            self.assertLessEqual(len(text.encode()), 32767)

    def test_too_long(self) -> None:
        """
        A frame that no client would read is not sent.
        """
        for headers, payload in [
            ({"": "x"}, b""),
            ({"x" * 256: ""}, b""),
            ({"é" * 128: ""}, b""),
            ({"x": "y" * 32768}, b""),
            ({str(n): "y" * 32000 for n in range(5)}, b""),
            ({}, bytes(MAX_PAYLOAD_BYTES + 1)),
        ]:
            self.assertRaises(EventStreamError, encode, headers, payload)
        (frame,) = Decoder().feed(encode({"x" * 255: "y" * 32767}, b""))
        self.assertEqual(frame.headers, {"x" * 255: "y" * 32767})


class DecoderTests(SynchronousTestCase):
    """
    L{Decoder}
    """

    def test_known_answers(self) -> None:
        """
        AWS's published test vectors are read as published.
        """
        payload = b"{'foo':'bar'}"
        frames = Decoder().feed(EMPTY + PAYLOAD_ONLY + INT_HEADER)
        self.assertEqual(
            frames,
            [Frame({}, b""), Frame({}, payload), Frame({"event-type": 40972}, payload)],
        )

    def test_all_types(self) -> None:
        """
        Headers of all ten types come out with their values.
        """
        (frame,) = Decoder().feed(raw_frame(ALL_TYPES, b"p"))
        self.assertEqual(
            frame.headers,
            {
                "t": True,
                "f": False,
                "b": -1,
                "s": -32768,
                "i": -2,
                "l": 2**63 - 1,
                "y": b"\x00\xff\x01",
                "u": "é",
                "d": 0x19100000000,
                "g": UUID("00010203-0405-0607-0809-0a0b0c0d0e0f"),
            },
        )
        buffer = EventStreamBuffer()
        buffer.add_data(raw_frame(ALL_TYPES, b"p"))
        theirs = next(buffer).headers
        theirs["g"] = UUID(bytes=theirs["g"])
        self.assertEqual(frame.headers, theirs)

    def test_any_pieces(self) -> None:
        """
        However TCP cuts the stream, byte by byte or all at once, the same
        frames come out: 3,000 random streams.
        """
        random = Random(2)
        for _ in range(3000):
            frames = random_frames(random, random.randrange(1, 6))
            data = b"".join(encode(*frame) for frame in frames)
            decoder = Decoder()
            self.assertTrue(decoder.at_boundary)
            decoded: list[Frame] = []
            fed = 0
            for piece in random_pieces(random, data):
                decoded += decoder.feed(piece)
                fed += len(piece)
                complete = sum(16 + _length(f) for f in decoded)
                self.assertEqual(decoder.at_boundary, fed == complete)
            self.assertEqual(
                decoded, [Frame(dict(headers), payload) for headers, payload in frames]
            )
            self.assertTrue(decoder.at_boundary)

    def test_frames_do_not_share(self) -> None:
        """
        Changing one frame's headers changes no other frame.
        """
        data = encode({"a": "b"}, b"")
        decoder = Decoder()
        first, second = decoder.feed(data * 2)
        first.headers["a"] = "changed"
        second.headers["c"] = "added"
        self.assertEqual(decoder.feed(data), [Frame({"a": "b"}, b"")])

    def test_truncated(self) -> None:
        """
        A cut stream gives no frame, no error, and is known to be cut.
        """
        data = encode({"a": "b"}, b"payload")
        for size in range(1, len(data)):
            decoder = Decoder()
            self.assertEqual(decoder.feed(data[:size]), [])
            self.assertFalse(decoder.at_boundary)

    def test_every_byte_counts(self) -> None:
        """
        Whichever bit is turned on the way, no wrong frame comes out, and what
        came before the fault is not lost.
        """
        good = encode({"good": "1"}, b"x")
        data = encode({":event-type": "chunk"}, b"payload")
        for place in range(len(data)):
            for bit in range(8):
                bad = bytearray(data)
                bad[place] ^= 1 << bit
                decoder = Decoder()
                error = self.assertRaises(EventStreamError, decoder.feed, good + bad)
                self.assertEqual(error.frames, (Frame({"good": "1"}, b"x"),))
                self.assertFalse(decoder.at_boundary)

    def test_error_stays(self) -> None:
        """
        After a fault nothing is taken for a frame, however good it looks.
        """
        decoder = Decoder()
        first = self.assertRaises(EventStreamError, decoder.feed, b"HTTP/1.1 200 OK")
        second = self.assertRaises(EventStreamError, decoder.feed, EMPTY)
        self.assertEqual(str(first), str(second))
        self.assertEqual(second.frames, ())
        self.assertRaises(EventStreamError, decoder.feed, b"")

    def test_limits(self) -> None:
        """
        A prelude that announces too much is refused before anything is kept;
        the limits themselves are allowed.
        """
        for total, headers_length in [
            (0, 0),
            (12, 0),
            (15, 0),
            (20, 5),
            (16 + MAX_HEADERS_BYTES + 1, MAX_HEADERS_BYTES + 1),
            (16 + MAX_PAYLOAD_BYTES + 1, 0),
            (2**32 - 1, 2**32 - 1),
            (2**32 - 1, 0),
        ]:
            decoder, scanner = Decoder(), FrameScanner()
            data = prelude(total, headers_length)
            self.assertRaises(EventStreamError, decoder.feed, data)
            scanner.feed(data)
            self.assertTrue(scanner.desynced)
        total = 16 + MAX_HEADERS_BYTES + MAX_PAYLOAD_BYTES
        decoder, scanner = Decoder(), FrameScanner()
        self.assertEqual(decoder.feed(prelude(total, MAX_HEADERS_BYTES)), [])
        scanner.feed(prelude(total, MAX_HEADERS_BYTES))
        self.assertFalse(scanner.desynced)

    def test_large_frame(self) -> None:
        """
        The largest payload that AWS allows comes through whole.
        """
        payload = bytes(MAX_PAYLOAD_BYTES)
        data = encode({"a": "b"}, payload)
        decoder = Decoder()
        frames = []
        for start in range(0, len(data), 65536):
            frames += decoder.feed(data[start : start + 65536])
        self.assertEqual(frames, [Frame({"a": "b"}, payload)])

    def test_bad_headers(self) -> None:
        """
        Headers that are cut, unknown, nameless, doubled or not UTF-8 are an
        error of ours and of no other kind.
        """
        for block in [
            b"\x01",
            b"\x01a",
            b"\x05a\x00",
            b"\x01a\x0a",
            b"\x01a\xff",
            b"\x00\x00",
            b"\x01a\x00\x01a\x01",
            b"\x01\xff\x00",
            b"\x01a\x07\x00\x01\xff",
            b"\x01a\x07\x00\x02x",
            b"\x01a\x07\x00",
            b"\x01a\x06\xff\xff",
            b"\x01a\x02",
            b"\x01a\x03\x00",
            b"\x01a\x04\x00",
            b"\x01a\x05\x00",
            b"\x01a\x08\x00",
            b"\x01a\x09" + bytes(15),
        ]:
            self.assertRaises(EventStreamError, Decoder().feed, raw_frame(block, b""))
        random = Random(4)
        for _ in range(5000):
            changed = bytearray(ALL_TYPES)
            for _ in range(random.randrange(1, 4)):
                changed[random.randrange(len(changed))] = random.randrange(256)
            block = bytes(changed[: random.randrange(len(changed) + 1)])
            try:
                Decoder().feed(raw_frame(block, b""))
            except EventStreamError:
                pass


def _length(frame: Frame) -> int:
    headers = sum(4 + len(n.encode()) + len(str(v).encode()) for n, v in frame.headers.items())
    return headers + len(frame.payload)


class FrameScannerTests(SynchronousTestCase):
    """
    L{FrameScanner}
    """

    def test_start(self) -> None:
        """
        A stream that ends before its first byte ends at a boundary.
        """
        scanner = FrameScanner()
        scanner.feed(b"")
        self.assertEqual((scanner.frames, scanner.at_boundary, scanner.desynced), (0, True, False))

    def test_any_pieces(self) -> None:
        """
        After every piece of 3,000 streams the scanner knows how many frames
        the client has, and whether it is inside one: there an error frame must
        not be written.
        """
        random = Random(5)
        for _ in range(3000):
            frames = [encode(*frame) for frame in random_frames(random, random.randrange(1, 6))]
            ends = [0]
            for frame in frames:
                ends.append(ends[-1] + len(frame))
            scanner = FrameScanner()
            fed = 0
            for piece in random_pieces(random, b"".join(frames)):
                scanner.feed(piece)
                fed += len(piece)
                self.assertEqual(scanner.at_boundary, fed in ends)
                self.assertEqual(scanner.frames, sum(end <= fed for end in ends) - 1)
                self.assertLess(len(scanner._partial), 12)
            self.assertFalse(scanner.desynced)

    def test_desynced(self) -> None:
        """
        A wrong prelude anywhere, in any pieces: never an exception, never a
        boundary again, and the frames before it stay counted.
        """
        random = Random(6)
        for _ in range(3000):
            good = [encode(*frame) for frame in random_frames(random, random.randrange(4))]
            bad = bytearray(encode({"a": "b"}, b"payload"))
            bad[random.randrange(12)] ^= random.randrange(1, 256)
            data = b"".join(good) + bytes(bad) + EMPTY * 3
            scanner = FrameScanner()
            for piece in random_pieces(random, data):
                scanner.feed(piece)
            self.assertTrue(scanner.desynced)
            self.assertFalse(scanner.at_boundary)
            self.assertEqual(scanner.frames, len(good))
            scanner.feed(EMPTY)
            self.assertTrue(scanner.desynced)
            self.assertFalse(scanner.at_boundary)
            self.assertEqual(scanner.frames, len(good))

    def test_constant_memory(self) -> None:
        """
        A frame of any size passes without being kept.
        """
        scanner = FrameScanner()
        scanner.feed(prelude(16 + MAX_PAYLOAD_BYTES, 0))
        piece = bytes(65536)
        for _ in range(MAX_PAYLOAD_BYTES // len(piece)):
            scanner.feed(piece)
            self.assertEqual(scanner._partial, b"")
            self.assertFalse(scanner.at_boundary)
        scanner.feed(bytes(4))  # the message CRC is the client's to check
        self.assertEqual((scanner.frames, scanner.at_boundary), (1, True))
