"""
Asking deployments how they are: when somebody wants to know, or now and then.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredSemaphore, gatherResults
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from txbedrock.core.deployments import Deployment
from txbedrock.core.models import Choice
from txbedrock.interfaces import ExchangeRecord, IBody, InboundRequest, Probed

__all__ = ["Prober"]

_AT_ONCE = 8

_CONVERSE = {
    "messages": [{"role": "user", "content": [{"text": "ping"}]}],
    "inferenceConfig": {"maxTokens": 1},
}

# Of models that do not converse: what is cheap to ask of them.
_OTHERS: tuple[tuple[str, object], ...] = (
    ("cohere.embed", {"texts": ["ping"], "input_type": "search_query"}),
    ("titan-embed-image", {"inputText": "ping"}),
    ("titan-embed", {"inputText": "ping"}),
)

# These make pictures or films, or listen: that is not cheap.
_DEAR = ("image-generator", "stability.", "nova-canvas", "nova-reel", "nova-sonic", "luma.")


class Prober(Service):
    """
    Sends each deployment the smallest request there is. Bedrock bills it.

    :param probe: sends one.
    :param body: makes a request's body.
    :param interval_s: how often all are probed of themselves; None: never.
    """

    _log = Logger()

    def __init__(
        self,
        probe: Callable[[InboundRequest, Choice], Awaitable[ExchangeRecord]],
        choices: Sequence[Choice],
        body: Callable[[bytes], Awaitable[IBody]],
        reactor: Any,
        wall_clock: Callable[[], float],
        interval_s: float | None = None,
    ) -> None:
        self._probe = probe
        self._choices = [one for one in choices if _can_be_asked(one.deployment)]
        self._body = body
        self._now = wall_clock
        self._interval_s = interval_s
        self._gate = DeferredSemaphore(_AT_ONCE)
        self._loop = LoopingCall(lambda: Deferred.fromCoroutine(self.probe()))
        self._loop.clock = reactor

    def startService(self) -> None:
        Service.startService(self)
        if self._interval_s is not None:
            # The first round when the credentials have had time to come.
            self._loop.start(self._interval_s, now=False).addErrback(
                lambda failure: self._log.failure("probing failed", failure)
            )

    def stopService(self) -> None:
        Service.stopService(self)
        if self._loop.running:
            self._loop.stop()

    async def probe(self, name: str | None = None) -> dict[str, Probed]:
        """
        Probe all that can be probed cheaply, or those of one model group or model id.

        :returns: by deployment id.
        """
        chosen = [
            one for one in self._choices if name in (None, one.deployment.model_name, one.model_id)
        ]
        found = await gatherResults([self._gate.run(self._probe_one, one) for one in chosen])
        return {one.deployment.id: probed for one, probed in zip(chosen, found, strict=True)}

    async def _probe_one(self, choice: Choice) -> Probed:
        deployment = choice.deployment
        model = deployment.base_model or deployment.model_id
        verb, document = b"converse", _CONVERSE
        for part, other in _OTHERS:
            if part in model:
                verb, document = b"invoke", other  # type: ignore[assignment]
                break
        now = self._now()
        request = InboundRequest(
            id=str(uuid.uuid4()),
            method=b"POST",
            raw_path=b"/model/probe/" + verb,
            raw_query=None,
            headers=[(b"Content-Type", b"application/json"), (b"Accept", b"application/json")],
            body=await self._body(json.dumps(document).encode()),
            peer="-",
            received=now,
            complete=now,
        )
        record = await self._probe(request, choice)
        if record.status < 400:
            return Probed(True, record.duration_s, "")
        # A model that did not like the request has been reached.
        ok = record.failure is not None and record.failure.clients
        why = record.failure.value if record.failure else record.error or str(record.status)
        return Probed(ok, record.duration_s, "" if ok else why)


def _can_be_asked(deployment: Deployment) -> bool:
    """Whether its model is known, and cheap."""
    model = deployment.base_model or deployment.model_id
    return "*" not in model and not any(part in model for part in _DEAR)
