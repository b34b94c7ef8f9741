"""
HPACK: what clients may write is read as the ``hpack`` package reads it, and it reads what
we write.
"""

from __future__ import annotations

import random

import hpack
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.inbound.http2_hpack import BadBlock, BlockTooLarge, Decoder, Encoder

_MAX_SIZE = 9000


class DecoderTests(SynchronousTestCase):
    """Header blocks of requests."""

    def test_known(self) -> None:
        """Three requests on one connection, with Huffman's code and a table (RFC 7541, C.4)."""
        decoder = Decoder(_MAX_SIZE)
        begin = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")]
        host = (b":authority", b"www.example.com")
        for block, fields in (
            ("828684418cf1e3c2e5f23a6ba0ab90f4ff", [*begin, host]),
            ("828684be5886a8eb10649cbf", [*begin, host, (b"cache-control", b"no-cache")]),
            (
                "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
                [
                    (b":method", b"GET"),
                    (b":scheme", b"https"),
                    (b":path", b"/index.html"),
                    host,
                    (b"custom-key", b"custom-value"),
                ],
            ),
        ):
            size = sum(32 + len(name) + len(value) for name, value in fields)
            self.assertEqual(decoder.decode(bytes.fromhex(block)), (fields, size))

    def test_any(self) -> None:
        """Any blocks, of which some are broken: as by the package, field for field."""
        seen = {self._compare(random.Random(seed)) for seed in range(1500)}
        self.assertEqual(seen, {"", "bad", "too large"})

    def _compare(self, chance: random.Random) -> str:
        """:returns: how the last of a connection's blocks went."""
        encoder, reference, decoder = hpack.Encoder(), hpack.Decoder(), Decoder(_MAX_SIZE)
        reference.max_header_list_size = _MAX_SIZE
        went = ""
        for _ in range(chance.randint(1, 8)):
            if chance.random() < 0.2:
                encoder.header_table_size = chance.choice((0, 60, 100, 4096))
            block = self._break(chance, self._block(chance, encoder))
            try:
                expected = [tuple(field) for field in reference.decode(block, raw=True)]
            except hpack.OversizedHeaderListError:
                went = "too large"
                self.assertRaises(BlockTooLarge, decoder.decode, block)
            except (hpack.HPACKError, IndexError):
                went = "bad"
                self.assertRaises(BadBlock, decoder.decode, block)
            else:
                self.assertEqual(decoder.decode(block)[0], expected, block)
            if went:
                break
        return went

    def _block(self, chance: random.Random, encoder: hpack.Encoder) -> bytes:
        names = (b":path", b"x-a", b"authorization", b"cookie", b"x-" + b"n" * 130)
        sizes = (0, 1, 30, 126, 127, 128, 300, 3000)
        fields = [
            (
                chance.choice(names),
                chance.choice(
                    (b"same", bytes(chance.choices(b"ab/ \xff", k=chance.choice(sizes))))
                ),
            )
            for _ in range(chance.randint(0, 6))
        ]
        encoded: bytes = encoder.encode(fields, huffman=chance.random() < 0.5)
        return encoded

    def _break(self, chance: random.Random, block: bytes) -> bytes:
        broken = bytearray(block)
        if broken and chance.random() < 0.15:
            broken[chance.randrange(len(broken))] = chance.randrange(256)
            if chance.random() < 0.3:
                del broken[chance.randrange(len(broken)) :]
        return bytes(broken)

    def test_numbers(self) -> None:
        """A number that does not end is none, however much of it there is."""
        for block in (b"\xff" * 7, b"\x00\x7f" + b"\x80" * 100, b"\x3f" + b"\xff" * 5 + b"\0"):
            self.assertRaises(BadBlock, Decoder(_MAX_SIZE).decode, block)


class EncoderTests(SynchronousTestCase):
    """Heads of answers."""

    def test_read_back(self) -> None:
        """Any status, names in lower case, values byte for byte, none of HTTP/1.1's framing."""
        encoder, decoder = Encoder(), hpack.Decoder()
        for status in (100, 200, 204, 400, 403, 429, 500, 503):
            for size in (0, 1, 126, 127, 128, 255, 256, 1000, 20_000):
                value = b"v" * size
                sent = [
                    (b"Content-Type", value),
                    (b"X-Own", b"\x80 " + value),
                    (b"x-own", b""),
                    (b"Connection", b"close"),
                    (b"Transfer-Encoding", b"chunked"),
                ]
                got = decoder.decode(encoder.encode(status, sent), raw=True)
                self.assertEqual(
                    [tuple(field) for field in got],
                    [
                        (b":status", b"%d" % status),
                        (b"content-type", value),
                        (b"x-own", b"\x80 " + value),
                        (b"x-own", b""),
                    ],
                )
        self.assertEqual(decoder.header_table_size, 0)
