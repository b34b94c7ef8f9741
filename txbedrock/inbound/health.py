"""
Is the gateway alive, and does it take requests? No key is needed to ask.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.web.resource import Resource

from txbedrock import __version__
from txbedrock.inbound.replying import JsonResource
from txbedrock.inbound.request import Request

__all__ = ["Liveness", "Readiness", "health"]


class Liveness(JsonResource):
    """200 as long as the process answers at all."""

    def answer(self, request: Request) -> tuple[int, object]:
        return 200, "I'm alive!"


class Readiness(JsonResource):
    """
    200 while new requests are welcome, 503 while the gateway starts or drains.

    :param is_ready: asked for each request.
    """

    def __init__(self, is_ready: Callable[[], bool]) -> None:
        JsonResource.__init__(self)
        self._is_ready = is_ready

    def answer(self, request: Request) -> tuple[int, object]:
        ready = self._is_ready()
        return (
            200 if ready else 503,
            {"status": "healthy" if ready else "draining", "txbedrock_version": __version__},
        )


def health(is_ready: Callable[[], bool], node: Resource) -> Resource:
    """
    ``/health`` with its children.

    :param node: answers for itself: it needs a key.
    """
    for name in (b"liveliness", b"liveness"):
        node.putChild(name, Liveness())
    node.putChild(b"readiness", Readiness(is_ready))
    return node
