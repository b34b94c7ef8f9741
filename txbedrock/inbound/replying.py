"""
Resources of the gateway's own: JSON, never HTML.
"""

from __future__ import annotations

import json

from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from txbedrock.core.replies import Reply, render
from txbedrock.errors import MethodNotAllowed, ProxyError, UnknownOperation
from txbedrock.inbound.request import Request, new_request_id, send_reply

__all__ = ["JsonResource", "Node", "NotFound"]


def _refuse(request: Request, error: ProxyError) -> int:
    send_reply(request, render(error, new_request_id(), request.site.shape_of(request.path)))
    return NOT_DONE_YET


class NotFound(Resource):
    """Any path that leads nowhere."""

    isLeaf = True

    def __init__(self, hint: str) -> None:
        Resource.__init__(self)
        self._hint = hint

    def render(self, request: Request) -> int:
        path = request.path.decode("ascii", "backslashreplace")[:200]
        return _refuse(request, UnknownOperation(f"There is nothing at {path}.{self._hint}"))


class Node(Resource):
    """
    An inner node of the tree.

    :param hint: a sentence for those who look for what is not there.
    """

    def __init__(self, hint: str) -> None:
        Resource.__init__(self)
        self._nothing = NotFound(hint)

    def getChild(self, path: bytes, request: object) -> IResource:
        return self._nothing

    def render(self, request: Request) -> int:
        return self._nothing.render(request)


class JsonResource(Resource):
    """Answers GET and HEAD with JSON."""

    def render(self, request: Request) -> int:
        if request.method not in (b"GET", b"HEAD"):
            return _refuse(
                request,
                MethodNotAllowed(
                    "This path answers GET only.", headers=((b"Allow", b"GET, HEAD"),)
                ),
            )
        status, value = self.answer(request)
        body = json.dumps(value).encode()
        send_reply(request, Reply(status, [(b"Content-Type", b"application/json")], body))
        return NOT_DONE_YET

    def getChild(self, path: bytes, request: object) -> IResource:
        return self if path == b"" else NotFound("")

    def answer(self, request: Request) -> tuple[int, object]:
        """:returns: status and value."""
        raise NotImplementedError
