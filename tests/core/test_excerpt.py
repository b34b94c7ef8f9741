"""
Tests for L{txbedrock.core.excerpt}. The reference is the standard library's
parser, which holds the whole document.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.excerpt import Excerpt, Take, Wanted

WANTED: Wanted = {
    b"usage": Take.WHOLE,
    b"images": Take.KINDS,
    b"message": {b"usage": Take.WHOLE, b"model": Take.WHOLE},
    b"trace": {b"list": {b"x": Take.WHOLE}},
}
NAMES = ["usage", "images", "message", "trace", "list", "x", "model", "é", 'a"b', "\\", "{"]
SCALARS = [1, -2.5, 1e30, True, None, "", 'a"b', "\\", '\\\\"', "é\n", "x" * 50, "{[", "]}"]


def picked(value: Any, wanted: Any) -> Any:
    """What an excerpt is to hold."""
    if wanted is Take.WHOLE:
        return value
    if wanted is Take.KINDS:
        if isinstance(value, list):
            return ["" if isinstance(each, str) else 0 for each in value]
        return None if value is None else 0
    if isinstance(value, dict):
        return {
            name: picked(each, wanted[name.encode()])
            for name, each in value.items()
            if name.encode() in wanted
        }
    if isinstance(value, list):
        return [picked(each, wanted) for each in value]
    return None if value is None else 0


def random_value(random: Random, depth: int = 0) -> Any:
    kind = random.random() if depth else 0.5
    if depth > 5 or kind < 0.3:
        return random.choice(SCALARS)
    if kind < 0.6:
        members = range(random.randrange(6))
        return {random.choice(NAMES): random_value(random, depth + 1) for _ in members}
    return [random_value(random, depth + 1) for _ in range(random.randrange(5))]


def random_document(random: Random) -> tuple[Any, bytes]:
    value = random_value(random)
    text = json.dumps(
        value,
        ensure_ascii=random.random() < 0.5,
        indent=random.choice([None, None, 1]),
        separators=random.choice([(",", ":"), (", ", ": "), (" ,", " :\t")]),
    )
    return value, text.encode()


def excerpt(*pieces: bytes) -> Excerpt:
    made = Excerpt(WANTED)
    for piece in pieces:
        made.feed(piece)
    return made


class ExcerptTests(SynchronousTestCase):
    """
    L{Excerpt}
    """

    def test_any_document_in_any_pieces(self) -> None:
        """
        Whatever the document, and wherever it is cut, its wanted members come
        out and nothing else: 6,000 documents.
        """
        random = Random(1)
        for _ in range(6000):
            value, text = random_document(random)
            if random.random() < 0.3:
                pieces = [text[i : i + 1] for i in range(len(text))]
            else:
                cuts = sorted(random.randrange(len(text) + 1) for _ in range(6))
                pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            made = excerpt(*pieces)
            self.assertTrue(made.complete, text)
            self.assertEqual(made.problem, "", text)
            self.assertEqual(json.loads(made.result()), picked(value, WANTED), text)
            # Asking for it changes nothing.
            self.assertEqual(json.loads(made.result()), picked(value, WANTED), text)

    def test_cut(self) -> None:
        """
        Of a document that is cut, the members that were whole come out; a number
        or name that may go on is not one.
        """
        text = b'{"a":[1],"usage":{"n":123},"message":{"model":"m","usage":456},"images":["",""]}'
        seen = []
        for size in range(len(text)):
            made = excerpt(text[:size])
            self.assertFalse(made.complete)
            seen.append(json.loads(made.result()))
        kinds = []
        for each in seen:
            if not kinds or each != kinds[-1]:
                kinds.append(each)
        usage = {"usage": {"n": 123}}
        message = {"model": "m", "usage": 456}
        self.assertEqual(
            kinds,
            [
                {},
                usage,
                {**usage, "message": {}},
                {**usage, "message": {"model": "m"}},
                {**usage, "message": message},
                {**usage, "message": message, "images": []},
                {**usage, "message": message, "images": [""]},
                {**usage, "message": message, "images": ["", ""]},
            ],
        )

    def test_garbage(self) -> None:
        """
        Whatever may come, it does not raise, and tells the same however it is cut;
        of what still is JSON the wanted members come out.
        """
        random, still = Random(2), 0
        for _ in range(2000):
            _, text = random_document(random)
            changed = bytearray(text)
            for _ in range(random.randrange(1, 5)):
                at = random.randrange(len(changed))
                changed[at : at + random.randrange(2)] = random.choice(
                    [b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b" ", b"1", b"\xff", b""]
                ) or random.randbytes(2)
            text = bytes(changed)
            made, cut = excerpt(text), excerpt(*(text[i : i + 1] for i in range(len(text))))
            self.assertEqual(
                (made.result(), made.complete, made.problem),
                (cut.result(), cut.complete, cut.problem),
                text,
            )
            try:
                value = json.loads(text)
            except ValueError:
                continue
            still += 1
            self.assertEqual((made.complete, made.problem), (True, ""), text)
            self.assertEqual(json.loads(made.result()), picked(value, WANTED), text)
        self.assertGreater(still, 50)

    def test_no_json(self) -> None:
        """
        What is not JSON where it matters is said to be none; what came before
        is kept.
        """
        for rest in (b"x}", b'"a" 5}', b'"a":}', b"]", b'"a"}', b'"message":{"b":,}}'):
            made = excerpt(b'{"usage":{"n":1},', rest, b" " * 20_000)
            self.assertEqual(made.problem, "the answer is not JSON", rest)
            self.assertFalse(made.complete)
            self.assertEqual(json.loads(made.result())["usage"], {"n": 1}, rest)

    def test_escaped_name(self) -> None:
        """
        A name is the same however it is written.
        """
        self.assertEqual(
            json.loads(excerpt(rb'{"us\u0061ge":1,"\ud800":2,"\q":3}').result()), {"usage": 1}
        )

    def test_too_long(self) -> None:
        """
        A wanted member too long to be held is left out and named; those after it
        are read.
        """
        for value in (b'"%b"' % (b"x" * 300_000), b"[%b0]" % (b"0," * 150_000)):
            text = b'{"message":{"model":%b,"usage":5},"usage":6}' % value
            made = excerpt(*(text[i : i + 65536] for i in range(0, len(text), 65536)))
            self.assertTrue(made.complete)
            self.assertEqual(json.loads(made.result()), {"message": {"usage": 5}, "usage": 6})
            self.assertEqual(made.problem, '"model" of the answer is too long to be read')

    def test_too_many(self) -> None:
        """
        There is an end to what is counted, and to how deep a document may be.
        """
        made = excerpt(b'{"usage":1,"images":[%b' % (b"0," * 200_000))
        self.assertEqual(made.problem, "a list of the answer is too long to be counted")
        for text in (b'{"usage":1,"a":' + b"[" * 5000, b'{"usage":1,"trace":' + b"[" * 5000):
            made = excerpt(text)
            self.assertEqual(made.problem, "the answer is nested too deeply")
            self.assertEqual(json.loads(made.result())["usage"], 1)
        made = excerpt(b'{"usage":1,"trace":[%b' % (b"{}," * 200_000))
        self.assertEqual(made.problem, "the answer has too many parts")
        json.loads(made.result())
