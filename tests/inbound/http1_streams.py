"""
What clients send, well-formed, odd and wrong: streams of requests for an HTTP/1.1 server.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

__all__ = ["CANARY", "stream"]

T = TypeVar("T")

CANARY = b"GET /canary HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
"""The last of most streams: whoever reads it as something else has lost its way."""

_METHODS = [b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH"]
_ODD_METHODS = [b"get", b"Post", b"BREW", b"GE T", b"", b"CONNECT", b"SOURCE", b"PRI", b"G\x00T",
                b"GET\t", b"(GET)", b"M-SEARCH", b"TRACE", b"QUERY"]  # fmt: skip
_TARGETS = [b"/", b"/a", b"/a/b?c=d&e", b"/%2f%00?", b"/model/us.anthropic.x:0/converse"]
_ODD_TARGETS = [b"http://h/a", b"https://h:1/a?b", b"a", b"", b"a:1", b"//x", b"/a b",
                b"/\xc3\xa9", b"/\x80", b"/\x7f", b"/\x01", b"/a\tb", b"/a#b", b"/{}|\\^`\"<>",
                b"/" + b"x" * 17_000, b"/../../etc", b"?a", b"http:/x", b"h://[::1]/a",
                b"/a\x0cb", b"HTTP/1.1"]  # fmt: skip
_ODD_VERSIONS = [b"HTTP/1.0", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"http/1.1",
                 b"HTTP/1.1 ", b" HTTP/1.1", b"HTTP/01.1", b"HTTP/1.10", b"HTTP/11", b"HTTP",
                 b"RTSP/1.0", b"ICE/1.1", b"HTTP/1.1x", b"HTTP/1,1", b"", b"XTTP/1.1"]  # fmt: skip
_HOSTS = [[], [(b"Host", b"a"), (b"Host", b"a")], [(b"host", b"a"), (b"HOST", b"b")],
          [(b"Host", b"")], [(b"Host ", b"a")], [(b"Host", b"a, b")]]  # fmt: skip
_FIELDS = [(b"X-A", b"1"), (b"x-a", b"2"), (b"Accept", b"*/*"), (b"X-Empty", b""),
           (b"Authorization", b"Bearer k"), (b"X-Blank", b"  a\tb \t"), (b"X-Obs", b"\xe9\xff"),
           (b"Content-Type", b"application/json"), (b"Te", b"trailers"),
           (b"Trailer", b"X-T"), (b"Keep-Alive", b"timeout=5"), (b"!#$%&'*+-.^_`|~0", b"tok"),
           (b"Cookie", b"a=b"), (b"X-Long", b"v" * 300)]  # fmt: skip
_ODD_FIELDS = [(b"", b"x"), (b"X A", b"1"), (b"X-A ", b"1"), (b"X-A\t", b"1"), (b"X\x00", b"1"),
               (b"X-\xe9", b"1"), (b"X-Nul", b"a\x00b"), (b"X-Ctl", b"a\x01b"),
               (b"X-Del", b"a\x7fb"), (b"X-Cr", b"a\rb"), (b"X-Lf", b"a\nb"),
               (b"X-Fold", b"a\r\n b"), (b"X-Fold", b"a\r\n\tb"), (b"X-Fold", b"\r\n b"),
               (b"X-Ff", b"a\x0cb"), (b"X-Line", b"v" * 16_384), (b" X-Lead", b"1"),
               (b"X@Y", b"1"), (b"X-Line", b"v" * 16_376), (b"X-Nel", b"a\x85b"),
               (b"Upgrade", b"h2c"), (b"Connection\x0b", b"close")]  # fmt: skip
_CONNECTIONS = [b"close", b"Close", b"keep-alive", b"close, x", b"x, close", b"x,close",
                b"keep-alive,close", b"close x", b"x close", b"upgrade", b"", b",", b"closed",
                b"not-close", b"close;q=1", b"\tclose\t", b"Upgrade, HTTP2-Settings"]  # fmt: skip
_EXPECTS = [b"100-continue", b"100-Continue", b"200-ok", b"100-continue, x", b""]
_CODINGS = [b"chunked", b"Chunked", b"CHUNKED", b" chunked ", b"chunked\t", b"\tchunked"]
_ODD_CODINGS = [b"xchunked", b"chunked, chunked", b"gzip, chunked", b"chunked, gzip", b"gzip",
                b"identity", b"", b"chunked;q=1", b"\x0bchunked", b"chunked\x0b", b"chunk",
                b"'chunked'", b"identity, chunked", b",chunked", b"chunked,", b"chunked\x00",
                b"chu\r\n nked", b"\r\n chunked", b"chunked\r\n "]  # fmt: skip
_ODD_LENGTHS = [b"+%d", b"-%d", b" %d", b"%d ", b"0%d", b"%d,%d", b"%d, %d", b"0x%d", b"%d.0",
                b"%d_0", b"", b" ", b"\t%d", b"%d\t", b"%de0", b"\xb2%d", b"%d\x00", b"%d;q",
                b"99999999999999999999999%d", b"%d\r\n ", b"%d %d", b"%d\x0b"]  # fmt: skip
_SIZES = [b"%x", b"%X", b"0%x", b"000%x"]
_ODD_SIZES = [b"+%x", b"-%x", b"0x%x", b" %x", b"%x ", b"%x\t", b"%x_0", b"", b"g", b"%xh",
              b"00000000000000000000000%x", b"fffffffffffffffff%x", b"\xb2", b"%x\x00", b"%x,%x",
              b"%x\r", b"\n%x"]  # fmt: skip
_EXTENSIONS = [b";a", b";a=b", b';a="b;c"', b";a=b;c=d", b";", b"; a = b", b";" + b"x" * 900]
_ODD_EXTENSIONS = [b" ;a", b";a\x00", b";a\nb", b";a\rb", b';a="\n"', b";\x7f", b"\t;a", b"a;b",
                   b";" + b"x" * 1021, b";" + b"x" * 1023, b";" + b"x" * 20_000,
                   b";\xe9"]  # fmt: skip
_TRAILERS = [b"X-T: 1\r\n", b"X-T:1\r\nX-U: 2\r\n", b"X-T:\r\n"]
_ODD_TRAILERS = [b"x\r\n", b"Content-Length: 7\r\n", b"Transfer-Encoding: chunked\r\n",
                 b"Host: b\r\n", b" X: 1\r\n", b"X : 1\r\n", b"X: \x00\r\n", b"X: a\nY: b\r\n",
                 b"Connection: close\r\n", b"X: 1\r\n\t2\r\n", b": x\r\n", b"X: " + b"y" * 17_000
                 + b"\r\n", b"GET /smuggled HTTP/1.1\r\n", b"\rX: 1\r\n"]  # fmt: skip
_BODIES = [b"", b"a", b"hello", b"{}" * 40, b"\r\n\r\n", b"0\r\n\r\n",
           b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", b"z" * 3000]  # fmt: skip
_BETWEEN = [b"\r\n", b"\r\n\r\n", b"\n", b"\r", b" ", b"\x00", b"\n\n", b"\r\r\n", b"\t"]
_BYTES = [b"\r", b"\n", b"\r\n", b"\x00", b"\t", b" ", b":", b";", b",", b"0", b"\x0b", b"\x80",
          b"\xff", b"a", b"/", b"=", b"\r\n\r\n", b"\n\n", b"\x85", b"\xa0"]  # fmt: skip
_ENDS = [b"\n", b"\r", b"\n\r", b"\r\r\n", b" \r\n", b"\r\n\r\n", b""]


class _Maker:
    """:param odd: how likely each part is to be what it should not."""

    def __init__(self, random: Random, odd: float) -> None:
        self.random = random
        self.odd = odd

    def is_odd(self) -> bool:
        return self.random.random() < self.odd

    def one(self, usual: Sequence[T], odd: Sequence[T]) -> T:
        return self.random.choice(odd if self.is_odd() else usual)

    def request(self) -> bytes:
        random = self.random
        method = self.one(_METHODS, _ODD_METHODS)
        target = self.one(_TARGETS, _ODD_TARGETS)
        version = self.one([b"HTTP/1.1"], _ODD_VERSIONS)
        space = self.one([b" "], [b"  ", b"\t", b"", b" \t"])
        fields = [*self.one([[(b"Host", b"a.example:80")]], _HOSTS)]
        fields += random.choices(_FIELDS, k=random.choice((0, 1, 3)))
        if self.is_odd():
            fields.append(random.choice(_ODD_FIELDS))
        if self.is_odd():
            fields.append((b"Connection", random.choice(_CONNECTIONS)))
            if self.is_odd():
                fields.append((b"connection", random.choice(_CONNECTIONS)))
        if random.random() < 0.1:
            fields += [
                (b"Connection", b"Upgrade, HTTP2-Settings"),
                (b"Upgrade", self.one([b"h2c"], [b"websocket", b"", b"h2c, x"])),
                (b"HTTP2-Settings", b"AAMAAABkAAQCAAAAAAIAAAAA"),
            ]
        if random.random() < 0.1:
            fields.append((b"Expect", random.choice(_EXPECTS)))
        framing, body = self.body()
        fields += framing
        random.shuffle(fields)
        if random.random() < 0.003:
            fields += [(b"X-Many", b"1")] * random.choice((490, 500, 520))
        colon = self.one([b": "], [b":", b":\t", b" : ", b" ", b":  "])
        lines = [method + space + target + self.one([b" "], [b"  ", b"\t"]) + version]
        lines += [name + colon + value for name, value in fields]
        if random.random() < 0.006:
            lines += self.padding(sum(len(line) + 2 for line in lines) + 2)
        return b"".join(line + self.end() for line in lines) + self.end() + body

    def padding(self, size: int) -> list[bytes]:
        """Lines that make a head of this size nearly as large as it may be, or larger."""
        missing = 64 * 1024 + self.random.randint(-30, 10) - size
        lines = []
        while missing > 100:
            length = min(missing, 16_000) - 2
            lines.append(b"X-Pad:" + b"v" * (length - 6))
            missing -= length + 2
        return lines

    def end(self) -> bytes:
        """Of a line."""
        if self.random.random() < self.odd / 20:
            return self.random.choice(_ENDS)
        return b"\r\n"

    def body(self) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """:returns: the headers that tell of it, and the body."""
        random = self.random
        content = random.choice(_BODIES)
        kind = random.choice(("none", "length", "length", "chunked", "chunked", "both"))
        if kind == "none" or (kind == "both" and not self.is_odd()):
            return [], b""
        size = len(content)
        length = (b"Content-Length", b"%d" % size)
        if kind == "length":
            fields = [length]
            if self.is_odd():
                form = random.choice(_ODD_LENGTHS)
                fields = [(b"Content-Length", form.replace(b"%d", b"%d" % size))]
            if self.is_odd():
                more = random.choice((size, size + 1, 0))
                fields.append((b"content-length", b"%d" % more))
            return fields, content
        name = self.one([b"Transfer-Encoding"], [b"transfer-encoding", b"Transfer_Encoding"])
        fields = [(name, self.one(_CODINGS, _ODD_CODINGS))]
        if self.is_odd():
            fields.append((b"Transfer-Encoding", self.one(_CODINGS, _ODD_CODINGS)))
        if kind == "both":
            fields.append(length)
        return fields, self.chunked(content)

    def chunked(self, content: bytes) -> bytes:
        random = self.random
        made = b""
        while content:
            size = random.randint(1, len(content))
            made += self.chunk_line(size) + content[:size] + self.end()
            content = content[size:]
        made += self.chunk_line(0)
        if random.random() < 0.3:
            made += self.one(_TRAILERS, _ODD_TRAILERS)
        return made + self.end()

    def chunk_line(self, size: int) -> bytes:
        line = self.one(_SIZES, [*_SIZES] * 4 + _ODD_SIZES)
        line = line.replace(b"%x", b"%x" % size).replace(b"%X", b"%X" % size)
        if self.is_odd():
            line += self.one(_EXTENSIONS, _ODD_EXTENSIONS)
        return line + self.end()

    def mutated(self, data: bytes) -> bytes:
        """A byte or a line more or less."""
        random = self.random
        for _ in range(random.choice((1, 1, 1, 2, 4))):
            at = random.randrange(len(data) + 1)
            what = random.randrange(6)
            if what == 0:
                data = data[:at] + random.choice(_BYTES) + data[at:]
            elif what == 1:
                data = data[:at] + data[at + 1 :]
            elif what == 2:
                data = data[:at] + random.choice(_BYTES) + data[at + 1 :]
            elif what == 3:
                data = data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
            else:
                lines = data.split(b"\r\n")
                one, other = random.randrange(len(lines)), random.randrange(len(lines))
                if what == 4:
                    lines[one], lines[other] = lines[other], lines[one]
                else:
                    lines.insert(other, lines[one])
                data = b"\r\n".join(lines)
        return data


def stream(seed: int) -> bytes:
    """
    The requests of one connection, one to five.

    Of four streams one is as it should be, or nearly; one has bytes changed.
    """
    random = Random(seed)
    maker = _Maker(random, random.choice((0.0, 0.02, 0.08, 0.08, 0.2)))
    data = b""
    for _ in range(random.choice((1, 1, 2, 3, 4))):
        data += maker.request()
        if random.random() < maker.odd:
            data += random.choice(_BETWEEN)
    if seed % 4 == 0:
        data = maker.mutated(data)
    if random.random() < 0.05:
        return data[: random.randrange(len(data) + 1)]
    return data + CANARY
