"""
``/health``, ``/model/info`` and ``/models``: what is served here, and how it does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from twisted.web.resource import IResource, Resource

from txbedrock.core.auth import Principal
from txbedrock.core.candidates import DeploymentState
from txbedrock.core.deployments import Deployment
from txbedrock.core.health import CircuitState
from txbedrock.core.replies import Reply
from txbedrock.inbound.admin.answering import (
    AdminResource,
    Query,
    admins,
    everyone,
    json_reply,
    viewers,
)
from txbedrock.inbound.replying import Node
from txbedrock.inbound.request import Request
from txbedrock.interfaces import IKeyStore, Probed

__all__ = ["Health", "model_resources"]

# LiteLLM's own, which clients of OpenAI's list expect to be there.
_CREATED = 1677610602


class Health(AdminResource):
    """
    How each deployment does, and since when and why. None is asked for it, unless the
    query says ``probe=true``.

    :param states: of those that have been asked for something.
    :param probe: asks those of a model, or all, with a small request that Bedrock bills.
    """

    def __init__(
        self,
        keys: IKeyStore,
        deployments: Sequence[Deployment],
        states: Callable[[], Sequence[DeploymentState]],
        probe: Callable[[str | None], Awaitable[Mapping[str, Probed]]],
    ) -> None:
        AdminResource.__init__(self, keys)
        self._deployments = {deployment.id: deployment for deployment in deployments}
        self._states = states
        self._probe = probe

    def getChild(self, path: bytes, request: object) -> IResource:
        return self.children.get(path) or AdminResource.getChild(self, path, request)

    def may(self, principal: Principal) -> None:
        viewers(principal)

    async def answer(self, request: Request, principal: Principal) -> Reply:
        query = Query(request.uri.partition(b"?")[2], ("model", "probe"))
        wanted = query.text("model")
        probed: Mapping[str, Probed] = {}
        if query.flag("probe"):
            # It costs something.
            admins(principal)
            probed = await self._probe(wanted)
        asked = self._states()
        known = {state.id for state in asked}
        rows = [self._row(state) for state in asked]
        rows += [
            {**_of(deployment), "state": CircuitState.CLOSED.value}
            for deployment in self._deployments.values()
            if deployment.id not in known
        ]
        if wanted is not None:
            rows = [row for row in rows if wanted in (row["model_name"], row["model"])]
        healthy: list[dict[str, Any]] = []
        unhealthy: list[dict[str, Any]] = []
        for row in rows:
            found = probed.get(row["model_id"])
            if found is not None:
                row["probe"] = {"ok": found.ok, "ms": round(found.seconds * 1e3, 1)}
                if found.why:
                    row["probe"]["why"] = found.why
            well = row["state"] == CircuitState.CLOSED.value and (found is None or found.ok)
            (healthy if well else unhealthy).append(row)
        return json_reply(
            {
                "healthy_endpoints": healthy,
                "unhealthy_endpoints": unhealthy,
                "healthy_count": len(healthy),
                "unhealthy_count": len(unhealthy),
            }
        )

    def _row(self, state: DeploymentState) -> dict[str, Any]:
        deployment = self._deployments.get(state.id)
        row: dict[str, Any] = {} if deployment is None else _of(deployment)
        row |= {"model_id": state.id, "model": state.model_id, "state": state.state.value}
        row["since"] = _time(state.since)
        row["in_flight"] = state.in_flight
        row["error_rate"] = round(state.error_rate, 4)
        row["first_byte_ms"] = None if state.latency_s is None else round(state.latency_s * 1e3, 1)
        if state.why is not None:
            row["why"] = state.why.value
        if state.cooling_until is not None:
            row["cooling_until"] = _time(state.cooling_until)
        return row


class _Info(AdminResource):
    """``/model/info``: deployments, without a secret."""

    def __init__(self, keys: IKeyStore, deployments: Sequence[Deployment]) -> None:
        AdminResource.__init__(self, keys)
        self._deployments = deployments

    def may(self, principal: Principal) -> None:
        everyone(principal)

    async def answer(self, request: Request, principal: Principal) -> Reply:
        rows = []
        for one in self._deployments:
            if not principal.access.allows_model(one.model_name, one.model_name, (one.model_id,)):
                continue
            row = _of(one)
            rows.append(
                {
                    "model_name": one.model_name,
                    "litellm_params": {
                        "model": f"bedrock/{row['model']}",
                        "aws_region_name": one.region,
                    },
                    "model_info": {"id": one.id, "base_model": one.base_model},
                }
            )
        return json_reply({"data": rows})


class _Names(AdminResource):
    """``/models``: the names that a key may use, as OpenAI lists them."""

    def __init__(self, keys: IKeyStore, names: Mapping[str, Sequence[str]]) -> None:
        AdminResource.__init__(self, keys)
        self._names = names

    def may(self, principal: Principal) -> None:
        everyone(principal)

    async def answer(self, request: Request, principal: Principal) -> Reply:
        allowed = [
            name
            for name, ids in self._names.items()
            if principal.access.allows_model(name, name, ids)
        ]
        allowed += [alias for alias in principal.aliases if alias not in allowed]
        rows = [
            {"id": name, "object": "model", "created": _CREATED, "owned_by": "bedrock"}
            for name in allowed
        ]
        return json_reply({"data": rows, "object": "list"})


def model_resources(
    keys: IKeyStore, deployments: Sequence[Deployment], hint: str
) -> dict[bytes, Resource]:
    """
    :param deployments: of the configuration.
    :returns: what belongs at the root, by name.
    """
    groups: dict[str, list[str]] = {}
    for one in deployments:
        groups.setdefault(one.model_name, []).append(one.model_id)
    info = _Info(keys, deployments)
    names = _Names(keys, groups)
    model, version, v1_model = Node(hint), Node(hint), Node(hint)
    model.putChild(b"info", info)
    v1_model.putChild(b"info", info)
    version.putChild(b"models", names)
    version.putChild(b"model", v1_model)
    return {b"model": model, b"models": names, b"v1": version}


def _of(deployment: Deployment) -> dict[str, Any]:
    return {
        "model_name": deployment.model_name,
        "model_id": deployment.id,
        "model": deployment.model_id,
        "region": deployment.region,
    }


def _time(seconds: float) -> str | None:
    if not 0 < seconds < 1e11:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
