"""
``/metrics``, for Prometheus.
"""

from __future__ import annotations

from collections.abc import Callable

from txbedrock.core.auth import Principal
from txbedrock.core.replies import Reply
from txbedrock.inbound.admin.answering import AdminResource, viewers
from txbedrock.inbound.request import Request
from txbedrock.interfaces import IKeyStore

__all__ = ["MetricsResource"]


class MetricsResource(AdminResource):
    """
    Models, deployments and what they cost are not for everyone: a key is needed.

    :param render: all figures, and their content type.
    """

    def __init__(self, keys: IKeyStore, render: Callable[[], tuple[bytes, str]]) -> None:
        AdminResource.__init__(self, keys)
        self._render = render

    def may(self, principal: Principal) -> None:
        viewers(principal)

    async def answer(self, request: Request, principal: Principal) -> Reply:
        body, content_type = self._render()
        return Reply(200, [(b"Content-Type", content_type.encode())], body)
