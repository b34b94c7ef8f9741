"""
curl, and with it everything that speaks plain HTTP.
"""

from __future__ import annotations

import json
from typing import Any

from tests.clients.gateway import BROKEN_AFTER, BROKEN_MESSAGE, REFUSED_MESSAGE, THROTTLED_MESSAGE
from tests.clients.testcase import ANSWER, INTRODUCTION, SENTENCE, ClientTestCase
from txbedrock.core.eventstream import Decoder, Frame

KINDS = [
    "messageStart",
    *["contentBlockDelta"] * len(ANSWER.split()),
    "contentBlockStop",
    "messageStop",
    "metadata",
]


class CurlTests(ClientTestCase):
    """Commands as the documentation has them."""

    client = "curl"
    program = "programs/curl.sh"

    def out(self, step: str) -> str:
        """What was printed; curl must have ended well."""
        result = self.result(step)
        self.assertEqual(result["status"], 0, result["err"])
        out: str = result["out"]
        return out

    def text(self, step: str) -> str:
        """The text of an answer of Converse."""
        text: str = json.loads(self.out(step))["output"]["message"]["content"][0]["text"]
        return text

    def frames(self, step: str) -> list[Frame]:
        """A whole event stream, every checksum right."""
        decoder = Decoder()
        frames = decoder.feed(self.out(step).encode("latin-1"))
        self.assertTrue(decoder.at_boundary, "the stream ends inside a frame")
        return frames

    def test_bearer(self) -> None:
        """Over TLS and over plain http."""
        self.assertEqual(self.text("bearer"), ANSWER)
        self.assertEqual(self.text("bearer_plain"), ANSWER)

    def test_x_api_key(self) -> None:
        """The header for those who cannot set Authorization."""
        self.assertEqual(self.text("api_key"), ANSWER)

    def test_aws_sigv4(self) -> None:
        """--aws-sigv4 by the key as access key id."""
        self.assertEqual(self.text("signed"), ANSWER)

    def test_AWS_style_pair(self) -> None:
        """--aws-sigv4 with a signature that is verified, and one that is wrong."""
        self.assertEqual(self.text("pair"), ANSWER)
        self.check_error("wrong_secret", 403, "InvalidSignatureException", "does not match")

    def test_stream(self) -> None:
        """curl -N: every frame of the stream, as Bedrock sends it."""
        frames = self.frames("stream")
        self.assertEqual([frame.headers[":event-type"] for frame in frames], KINDS)
        texts = [json.loads(frame.payload)["delta"]["text"] for frame in frames[1:20]]
        self.assert_pieces(texts)

    def test_stream_as_it_comes(self) -> None:
        """Each event is there when it is sent, not when the next one is."""
        frames = self.frames("slow_stream")
        self.assertEqual(len(frames), len(KINDS))
        self.assertGreater(self.result("slow_stream")["pauses"], len(KINDS) * 0.7)

    def test_HTTP_versions(self) -> None:
        """1.1 and 2, over TLS by ALPN and over plain http by prior knowledge."""
        self.assertEqual(self.out("versions").split(), ["1.1", "200", "2", "200"] * 2)

    def test_stream_by_HTTP_version(self) -> None:
        """The frames are the same in HTTP/1.1 and in HTTP/2 without TLS."""
        for step in ("stream_http1", "stream_h2c"):
            kinds = [frame.headers[":event-type"] for frame in self.frames(step)]
            self.assertEqual(kinds, KINDS, step)

    def test_model_ids_with_a_colon(self) -> None:
        """Raw and as %3A."""
        self.assertEqual(self.text("raw_colon"), ANSWER)
        self.assertEqual(self.text("escaped_colon"), ANSWER)

    def test_large_body(self) -> None:
        """2 MB, by HTTP/2 and by HTTP/1.1, where curl asks first (Expect: 100-continue)."""
        self.assertTrue(self.text("large").startswith(f"{INTRODUCTION} xxx"))
        self.assertTrue(self.text("large_http1").startswith(f"{INTRODUCTION} xxx"))
        said = self.result("large_http1")["err"]
        self.assertIn("> Expect: 100-continue", said)
        self.assertIn("< HTTP/1.1 100 Continue", said)

    def test_chunked_body(self) -> None:
        """A body of unknown length."""
        self.assertEqual(self.text("chunked"), ANSWER)

    def test_tools(self) -> None:
        """A tool is asked for."""
        answer: dict[str, Any] = json.loads(self.out("tools"))
        use = answer["output"]["message"]["content"][0]["toolUse"]
        self.assertEqual((use["name"], use["input"]), ("get_weather", {"city": "sandbox"}))

    def test_embeddings(self) -> None:
        """As many numbers as were wanted."""
        self.assertEqual(len(json.loads(self.out("embeddings"))["embedding"]), 256)

    def test_InvokeAgent(self) -> None:
        """By bearer, which no SDK would send to an agent."""
        kinds = [frame.headers[":event-type"] for frame in self.frames("agent")]
        self.assertEqual(kinds, ["chunk", "files", "returnControl", "trace"])

    def test_Retrieve(self) -> None:
        """A knowledge base."""
        (result,) = json.loads(self.out("retrieve"))["retrievalResults"]
        self.assertEqual(result["content"]["text"], SENTENCE)

    def test_errors(self) -> None:
        """Status, type and message, Bedrock's and the gateway's own alike."""
        for step, status, kind, message in (
            ("refused", 400, "ValidationException", REFUSED_MESSAGE),
            ("throttled", 429, "ThrottlingException", THROTTLED_MESSAGE),
            ("unknown", 404, "ResourceNotFoundException", "There is no model named"),
            ("wrong_key", 403, "UnrecognizedClientException", "not one of this gateway's"),
            ("no_key", 403, "UnrecognizedClientException", "This gateway needs a key"),
        ):
            self.check_error(step, status, kind, message)

    def test_error_in_a_stream(self) -> None:
        """The last frame is the exception."""
        *frames, last = self.frames("broken_stream")
        self.assertEqual(len(frames), BROKEN_AFTER)
        self.assertEqual(last.headers[":exception-type"], "modelStreamErrorException")
        self.assertEqual(json.loads(last.payload)["message"], BROKEN_MESSAGE)

    def check_error(self, step: str, status: int, kind: str, message: str) -> None:
        """Is it this error, in the shape that every AWS SDK reads?"""
        head, _, body = self.out(step).partition("\r\n\r\n")
        first, *lines = head.splitlines()
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        self.assertEqual(first.split()[1], str(status))
        self.assertEqual(headers["x-amzn-errortype"], kind)
        self.assertEqual(headers["content-type"], "application/json")
        self.assertIn(message, json.loads(body)["message"])
        self.assertNotIn("sk-wrong", body)
