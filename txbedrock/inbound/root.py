"""
The Resource tree.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.web.resource import IResource, Resource

from txbedrock.inbound.health import health
from txbedrock.inbound.proxy import ProxyResource
from txbedrock.inbound.replying import Node

__all__ = ["resource_tree"]


def resource_tree(
    proxy: Callable[[int], ProxyResource],
    route_prefix: str,
    is_ready: Callable[[], bool],
    management: Callable[[str], dict[bytes, Resource]],
    deployments: Resource,
) -> Resource:
    """
    :param proxy: makes the leaf, given how many segments lead to it.
    :param route_prefix: ``/bedrock``, or empty: then everything but
        ``/health`` and the management's own is Bedrock's.
    :param is_ready: what ``/health/readiness`` says.
    :param management: what else is at the root, given a hint for lost paths.
    :param deployments: what ``/health`` itself says.
    """
    segments = [segment.encode() for segment in route_prefix.split("/") if segment]
    leaf = proxy(len(segments))
    hint = f" Bedrock's paths begin with {route_prefix}/ here." if segments else ""
    root: Resource = Node(hint) if segments else _Everything(leaf)
    node = root
    for segment in segments[:-1]:
        inner = Node(hint)
        node.putChild(segment, inner)
        node = inner
    if segments:
        node.putChild(segments[-1], leaf)
    root.putChild(b"health", health(is_ready, deployments))
    for name, resource in management(hint).items():
        root.putChild(name, resource)
    return root


class _Everything(Resource):
    """What has no resource of its own goes to one leaf."""

    def __init__(self, leaf: ProxyResource) -> None:
        Resource.__init__(self)
        self._leaf = leaf

    def getChild(self, path: bytes, request: object) -> IResource:
        return self._leaf
