"""
The ledger through ``kill -9`` at random moments: real processes, real sockets.

``TXBEDROCK_KILLS`` says how often (default 6).
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from typing import Any

from twisted.internet.defer import Deferred, gatherResults

from tests.fakes import ACCESS_KEY_ID, KEY, SECRET, BareClient, pause, request, until
from tests.loopback.test_accounts import HAIKU
from tests.program import Program
from tests.sandboxed import SandboxedTestCase

_CLIENTS = 8


class KillTests(SandboxedTestCase):
    """An answer that a client got whole is in the ledger, exactly once."""

    timeout = 900

    def configure(self) -> str:
        directory = self.mktemp()
        os.makedirs(directory)
        config = {
            "model_list": [
                {
                    "model_name": "haiku",
                    "litellm_params": {
                        "model": f"bedrock/{HAIKU}",
                        "aws_region_name": "us-west-2",
                        "aws_access_key_id": ACCESS_KEY_ID,
                        "aws_secret_access_key": SECRET,
                        "api_base": self.at("bedrock-runtime"),
                    },
                }
            ],
            "general_settings": {"master_key": KEY, "database_url": "sqlite:///ledger.db"},
        }
        with open(os.path.join(directory, "config.yaml"), "w", encoding="utf-8") as file:
            json.dump(config, file)
        return directory

    async def run_program(self, directory: str) -> Program:
        program = Program(
            [
                "--pidfile=", "bedrockproxy", "--config", "config.yaml",
                "--listen", "tcp:0:interface=127.0.0.1", "--log-level", "info",
            ],
            directory,
        )  # fmt: skip
        self.addCleanup(lambda: Deferred.fromCoroutine(program.stop("KILL")))
        self.port = await program.ready()
        return program

    async def load(self, whole: list[str], seed: int) -> None:
        """Ask, one exchange after the other, until the gateway is gone."""
        dice = random.Random(seed)
        while True:
            try:
                client = await self.connect()
            except Exception:
                return
            while client.lost is None:
                verb = dice.choice(("converse", "converse-stream"))
                client.received = b""
                client.write(request(f"/bedrock/model/haiku/{verb}"))
                await until(lambda: client.whole() or client.lost is not None)  # noqa: B023
                if client.whole() and client.status == 200:
                    whole.append(call_id(client))
            return

    async def test_kills(self) -> None:
        """Killed under load again and again: nothing is lost, nothing is twice."""
        self.clients: list[BareClient] = []
        self.records = None  # type: ignore[assignment]
        self.start_sandbox()
        directory = self.configure()
        dice = random.Random(4)
        whole: list[str] = []
        kills = int(os.environ.get("TXBEDROCK_KILLS", "6"))
        for number in range(kills):
            program = await self.run_program(directory)
            working = gatherResults(
                [
                    Deferred.fromCoroutine(self.load(whole, number * 100 + client))
                    for client in range(_CLIENTS)
                ]
            )
            await pause(dice.uniform(0.05, 0.6))
            await program.stop("KILL")
            await working
        self.assertGreater(len(whole), kills * 5)
        self.assertEqual(len(set(whole)), len(whole))

        program = await self.run_program(directory)
        found: Counter[str] = Counter()
        cursor = ""
        while True:
            client = await self.ask(request(f"/spend/logs?limit=1000{cursor}", b"", method="GET"))
            rows: list[dict[str, Any]] = json.loads(client.body)
            found.update(row["request_id"] for row in rows)
            _, there, rest = client.head.partition(b"x-next-cursor: ")
            if not there:
                break
            exact = client.received[len(client.received.partition(b"\r\n\r\n")[0]) - len(rest) :]
            cursor = f"&cursor={exact.split(bytes([13]))[0].decode()}"
        self.assertEqual([one for one, count in found.items() if count > 1], [])
        self.assertEqual(set(whole) - set(found), set())
        self.assertEqual(await program.stop(), 0)
        print(f"{kills} kills, {len(whole)} whole answers, {len(found)} lines of the ledger")


def call_id(client: BareClient) -> str:
    """The id of its line of the ledger."""
    return client.head.decode().partition("x-litellm-call-id: ")[2].split("\r\n")[0]
