"""
Calls boto3 as it is told, in a process of its own: whichever version is found.

Reads ``{"endpoint": ..., "calls": [[service, method, arguments], ...]}`` from
standard input and writes ``{"version": ..., "results": [...]}``. Credentials,
retries and the like are in its environment.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import boto3
from botocore.exceptions import UnknownServiceError


def read(value: Any, events: list[Any]) -> Any:
    """
    A reply with its streams read to their ends.

    :param events: gets what arrived of an event stream, also if it breaks.
    """
    if isinstance(value, dict):
        return {name: read(member, events) for name, member in value.items()}
    if hasattr(value, "iter_chunks"):
        return value.read()
    if hasattr(value, "__next__") or type(value).__name__ == "EventStream":
        for event in value:
            events.append(event)
        return events
    return value


def call(client: Any, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What one call gives, an error included."""
    events: list[Any] = []
    try:
        return {"reply": read(getattr(client, method)(**arguments), events)}
    except Exception as error:
        response = getattr(error, "response", {})
        return {
            "class": type(error).__name__,
            "text": str(error),
            "code": response.get("Error", {}).get("Code"),
            "message": response.get("Error", {}).get("Message"),
            "metadata": response.get("ResponseMetadata", {}),
            "events": events,
        }


def main() -> None:
    """All of it."""
    todo = json.load(sys.stdin)
    clients: dict[str, Any] = {}
    results = []
    for service, method, arguments in todo["calls"]:
        if service not in clients:
            try:
                clients[service] = boto3.client(service, endpoint_url=todo["endpoint"])
            except UnknownServiceError:
                clients[service] = None
        if not hasattr(clients[service], method):
            results.append({"absent": True})
        else:
            results.append(call(clients[service], method, arguments))
    answer = {"version": boto3.__version__, "results": results}
    json.dump(answer, sys.stdout, default=_plain)


def _plain(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    main()
