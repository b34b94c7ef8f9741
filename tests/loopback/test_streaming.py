"""
A stream's events arrive one by one, when Bedrock sends them.

Eight kinds of streams at once, an event every 200 ms in each. Sandbox, gateway
and client are in this process and have one clock, so that the way of each event
can be measured; the figures are in trial's log (``lag of ...``).
"""

from __future__ import annotations

import json
import time
from itertools import pairwise
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger

from tests.fakes import BareClient, pause, request, until
from tests.sandboxed import SandboxedTestCase
from txbedrock.core.eventstream import Decoder
from txbedrock.interfaces import Outcome

INTERVAL_S = 0.2
EVENTS = 30

_CLAUDE = "/bedrock/model/anthropic.claude-3-haiku-20240307-v1%3A0"
_MESSAGES = {"messages": [{"role": "user", "content": "Who are you really?"}], "max_tokens": 100}
_AGENT = "/bedrock/agents/AGENTAGENT/agentAliases/ALIASALIAS/sessions/s-1/text"
_RUNTIME = "arn%3Aaws%3Abedrock-agentcore%3Aus-west-2%3A123456789012%3Aruntime%2Fagent-abcdefghij"

# operation -> path and query, body, further headers
STREAMS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "ConverseStream": (
        f"{_CLAUDE}/converse-stream",
        {"messages": [{"role": "user", "content": [{"text": "Who are you really?"}]}]},
        (),
    ),
    "InvokeModelWithResponseStream": (
        f"{_CLAUDE}/invoke-with-response-stream",
        {"anthropic_version": "bedrock-2023-05-31", **_MESSAGES},
        (),
    ),
    "InvokeAgent": (_AGENT, {"inputText": "Who are you?"}, ()),
    "InvokeFlow": (
        "/bedrock/flows/FLOWFLOWFL/aliases/ALIASALIAS",
        {"inputs": [{"content": {"document": "x"}, "nodeName": "n", "nodeOutputName": "o"}]},
        (),
    ),
    "RetrieveAndGenerateStream": (
        "/bedrock/retrieveAndGenerateStream",
        {"input": {"text": "Who are you?"}},
        (),
    ),
    "InvokeAgentRuntime": (
        f"/bedrock/runtimes/{_RUNTIME}/invocations",
        {"prompt": "Who are you?"},
        ("Accept: text/event-stream",),
    ),
    "Anthropic": (
        "/bedrock/anthropic/v1/messages",
        {"model": "anthropic.claude-haiku-4-5", "stream": True, **_MESSAGES},
        (),
    ),
    "OpenAI": (
        "/bedrock/openai/v1/chat/completions",
        {"model": "openai.gpt-oss-20b-1:0", "stream": True, **_MESSAGES},
        (),
    ),
}


class TimingClient(BareClient):
    """Notes when what arrived, by the clock that the sandbox uses."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: list[tuple[float, int]] = []

    def dataReceived(self, data: bytes) -> None:
        now = time.time()
        super().dataReceived(data)
        self.lengths.append((now, len(self.received)))

    def events(self) -> list[float]:
        """
        When each event was there whole.

        Every chunk is one event: the sandbox sends it so, and the chunks that
        come with one read of the gateway's are one to it.
        """
        whole, self.received = self.received, b""
        times: list[float] = []
        for now, length in self.lengths:
            self.received = whole[:length]
            if b"\r\n\r\n" not in self.received:
                continue
            count = _count(self._arrived_body())
            times += [now] * (count - len(times))
        self.received = whole
        return times

    def _arrived_body(self) -> bytes:
        """As :meth:`dechunked`, but what is cut may be cut anywhere."""
        data, rest = b"", self.body
        while True:
            size, end, rest = rest.partition(b"\r\n")
            if not end or not size:
                return data
            length = int(size, 16)
            data, rest = data + rest[:length], rest[length + 2 :]


def _count(body: bytes) -> int:
    """Whole events, frames or server-sent ones."""
    if body.startswith((b"data:", b"event:")):
        return body.count(b"\n\n")
    return len(Decoder().feed(body))


class StreamingTests(SandboxedTestCase):
    """Eight streams, one event after the other."""

    _log = Logger()

    async def stream(self, operation: str) -> tuple[list[float], list[float]]:
        """
        :returns: when each event left the sandbox, when it arrived.
        """
        path, body, headers = STREAMS[operation]
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        client: Any = await endpoint.connect(Factory.forProtocol(TimingClient))
        self.clients.append(client)
        client.write(request(path, json.dumps(body).encode(), headers=headers))
        await until(lambda: client.whole() or client.lost is not None, 60)
        self.assertTrue(client.whole(), (operation, client.received[-200:]))
        self.assertEqual(client.status, 200, client.received)
        [recorded] = [each for each in self.sandbox.requests if each.operation == operation]
        # The head goes first, and alone; at the gateway it waits for the first event, as
        # another deployment could be asked until then.
        sent = recorded.sent_times[1:]
        return sent, client.events()

    async def test_incremental(self) -> None:
        """Each event is at the client long before Bedrock sends the next."""
        self.start_sandbox(words=EVENTS)
        await self.start_gateway(
            self.settings(
                default=self.deployment(
                    id="default", model_name="", model_id="*", endpoint_url=None
                )
            )
        )
        for operation in STREAMS:
            self.sandbox.faults.add("drip", operation=operation, interval_ms=INTERVAL_S * 1000)
        waiting = []
        for operation in STREAMS:
            waiting.append(Deferred.fromCoroutine(self.stream(operation)))
            await pause(INTERVAL_S / len(STREAMS))
        everything: list[float] = []
        late = 0
        for operation, (sent, arrived) in zip(STREAMS, await gatherResults(waiting), strict=True):
            self.assertEqual(len(arrived), len(sent), operation)
            lags = [got - left for left, got in zip(sent, arrived, strict=True)]
            self.say(operation, lags)
            everything += lags
            self.assertLess(lags[0], INTERVAL_S)
            late += sum(got > next_left for got, next_left in zip(arrived, sent[1:], strict=False))
            for left, next_left in pairwise(sent):
                self.assertGreater(next_left - left, INTERVAL_S / 2)
        self.say("all", everything)
        # A machine that stalls for 200 ms is not the gateway's fault.
        self.assertLess(late, len(everything) / 20)
        self.assertGreater(len(everything), 4 * EVENTS)
        for record in self.records.records:
            self.assertIs(record.outcome, Outcome.COMPLETE)

    def say(self, what: str, lags: list[float]) -> None:
        """For whoever wants the figures."""
        ordered = sorted(lags)
        self._log.info(
            "lag of {what}: {count} events, first {first:.2f} ms, median {median:.2f} ms, "
            "longest {longest:.2f} ms",
            what=what,
            count=len(lags),
            first=lags[0] * 1000,
            median=ordered[len(ordered) // 2] * 1000,
            longest=ordered[-1] * 1000,
        )
