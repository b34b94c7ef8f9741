"""
The protocol without its channel. What it makes of wrong frames is in
:mod:`tests.inbound.test_http2_conformance`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.inbound.http2_frames import (
    PADDED,
    PREFACE,
    Code,
    Kind,
    block,
    continuation,
    data,
    frame,
    goaway,
    headers,
    ping,
    request,
    request_fields,
    rst_stream,
    settings,
    window_update,
)
from txbedrock.inbound.http2_connection import Connection, ErrorCode, Excess, Http2Error

_WINDOW = 100_000


class Notes:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args: self.told.append((name, *args))


class ConnectionTests(SynchronousTestCase):
    """One connection."""

    def setUp(self) -> None:
        self.connection = Connection(10, 10_000, _WINDOW, _WINDOW)
        self.notes = Notes()

    def feed(self, *pieces: bytes) -> list[int]:
        """:returns: the types that were handled."""
        kinds = []
        for piece in pieces:
            self.connection.add_data(piece)
            while (kind := self.connection.take(self.notes)) is not None:
                kinds.append(kind)
        return kinds

    def sent(self) -> bytes:
        out = b"".join(self.connection.out)
        self.connection.out.clear()
        return out

    def fails(self, code: ErrorCode, *pieces: bytes) -> None:
        error = self.assertRaises(Http2Error, self.feed, *pieces)
        self.assertEqual(error.code, code)
        self.assertTrue(str(error))

    def test_pieces(self) -> None:
        """What comes byte by byte is what comes at once, and so is what is answered."""
        body, long = b"x" * 300, block(*request_fields(method=b"POST"))
        stream = b"".join(
            (
                PREFACE, settings((4, 7)), request(1), headers(3, long[:5], 0),
                continuation(3, long[5:]), data(3, body, end=False, padding=9), ping(),
                data(3, b""), window_update(1, 5), frame(0x55, 0, 9, b"?"), rst_stream(3),
                goaway(),
            )
        )  # fmt: skip
        kinds = self.feed(stream)
        told, sent = self.notes.told, self.sent()
        self.setUp()
        self.assertEqual(self.feed(*(bytes((byte,)) for byte in stream)), kinds)
        self.assertEqual((self.notes.told, self.sent()), (told, sent))
        self.assertFalse(self.connection.incomplete)
        # A header block is one, however many frames it takes.
        self.assertEqual(kinds[:3], [Kind.SETTINGS, Kind.HEADERS, Kind.HEADERS])
        self.assertEqual(
            [event for event in told if event[0] == "data_received"],
            [("data_received", 3, body, 310, False), ("data_received", 3, b"", 0, True)],
        )

    def test_incomplete(self) -> None:
        """Parts of frames and of header blocks are known as such."""
        self.feed(PREFACE[:7])
        self.assertFalse(self.connection.incomplete)
        self.feed(PREFACE[7:] + settings())
        self.assertFalse(self.connection.incomplete)
        self.assertEqual(self.feed(ping()[:12]), [])
        self.assertTrue(self.connection.incomplete)
        self.assertEqual(self.feed(ping()[12:]), [Kind.PING])
        self.assertEqual(self.feed(headers(1, b"", 0)), [])
        self.assertTrue(self.connection.incomplete)

    def test_no_preface(self) -> None:
        """What is not HTTP/2 is refused at its first wrong byte."""
        self.feed(PREFACE[:5])
        self.fails(ErrorCode.PROTOCOL_ERROR, b"x")

    def test_too_long(self) -> None:
        """A frame that is too long is refused before it is here."""
        self.feed(PREFACE + settings())
        self.fails(ErrorCode.FRAME_SIZE_ERROR, frame(Kind.DATA, 0, 1, bytes(16385))[:9])

    def test_many_settings(self) -> None:
        """Each may mean work for all streams, so a frame has not any number of them."""
        self.feed(PREFACE + settings(*[(4, size) for size in range(64)]))
        with self.assertRaises(Excess) as caught:
            self.feed(settings(*[(4, size) for size in range(65)]))
        self.assertEqual(caught.exception.kind, "settings_flood")

    def test_padding(self) -> None:
        """Padding may take all of a frame, but no more."""
        self.feed(PREFACE + settings() + request(1, method=b"POST", end=False))
        self.feed(frame(Kind.DATA, PADDED, 1, b"\x03\0\0\0"))
        self.assertEqual(self.notes.told[-1], ("data_received", 1, b"", 4, False))
        self.fails(ErrorCode.PROTOCOL_ERROR, frame(Kind.DATA, PADDED, 1, b"\x04\0\0\0"))

    def test_window_of_the_connection(self) -> None:
        """
        It opens again for whatever came, be it for a stream that is over, and is the
        client's to break.
        """
        self.feed(PREFACE + settings() + request(1, method=b"POST", end=False) + request(3))
        self.connection.reset(3, ErrorCode.INTERNAL_ERROR)
        self.connection.forget(3)
        self.sent()
        for _ in range(2):
            self.feed(data(1, bytes(12_500), end=False), data(3, bytes(12_500)))
        self.feed(data(3, b""))
        self.assertEqual(self.sent(), window_update(0, 50_000))
        # The stream's own is opened by whoever takes the body.
        rest = [data(1, bytes(12_500), end=False)] * 6
        self.feed(*rest)
        self.fails(ErrorCode.FLOW_CONTROL_ERROR, data(1, b"x", end=False))

    def test_long_head(self) -> None:
        """A head that fits in no frame is several, and its end is the first one's."""
        self.feed(PREFACE + settings() + request(1))
        self.sent()
        self.connection.send_head(1, 200, [(b"x-long", b"v" * 40_000)], True)
        out = self.connection.out
        self.assertEqual([each[3] for each in out], [Kind.HEADERS] + [Kind.CONTINUATION] * 2)
        self.assertEqual([each[4] for each in out], [1, 0, 4])
        self.assertLessEqual(max(len(each) for each in out), 9 + 16384)

    def test_long_piece(self) -> None:
        """A piece that fits in no frame is several, of which the last one is the end."""
        self.feed(PREFACE + settings() + request(1))
        self.sent()
        self.connection.send_data(1, self.connection.streams[1], b"v" * 40_000, True)
        out = self.connection.out
        self.assertEqual(
            [(len(each) - 9, each[4]) for each in out], [(16384, 0)] * 2 + [(7232, 1)]
        )
        self.assertEqual(self.connection.window, 65535 - 40_000)

    def test_how_it_ended(self) -> None:
        """HEADERS on a stream that is over: see Note [What ends what]."""
        self.feed(PREFACE + settings() + request(1) + request(3) + request(7))
        self.feed(rst_stream(1))
        self.connection.reset(3, ErrorCode.INTERNAL_ERROR)
        self.connection.send_head(7, 204, [], True)
        for stream in (1, 3, 7):
            self.connection.forget(stream)
        self.sent()
        self.feed(request(1), request(3))
        self.assertEqual(
            self.sent(), rst_stream(1, Code.STREAM_CLOSED) + rst_stream(3, Code.STREAM_CLOSED)
        )
        self.fails(ErrorCode.STREAM_CLOSED, request(7))
        self.fails(ErrorCode.PROTOCOL_ERROR, request(5))
