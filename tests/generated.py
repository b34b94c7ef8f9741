"""
Parameters for every operation, made from botocore's service models.

For tests that call all of Bedrock: :func:`operations` says what there is,
:func:`parameters` what to call it with. The values are valid, use every member
that there is, and put colons and slashes into path labels where they may stand.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from botocore import xform_name
from botocore.model import OperationModel, Shape

from txbedrock.config import SERVICES
from txbedrock.sandbox.shapes import Models, example_string, pattern_of

__all__ = ["SERVICES", "method_name", "operations", "parameters"]

_models = Models()

_AGENTCORE_ARN = "arn:aws:bedrock-agentcore:us-east-1:123456789012:runtime/sandbox-abcdefghij"

_LABELS = (
    "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abcdef123456",
    "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-3-haiku-20240307-v1:0",
    "arn:aws:bedrock:us-east-1:123456789012:agent-alias/ABCDEFGHIJ/KLMNOPQRST",
    "arn:aws:bedrock:us-east-1:123456789012:session/12345678-1234-1234-1234-123456789012",
    "arn:aws:bedrock:us-east-1:123456789012:blueprint/abcdef123456",
    "team/a b:1+2=é",
    "team/a:1",
    "a:1",
    "a/1",
)

_TIME = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)


def operations(service: str) -> list[OperationModel]:
    """
    The operations of a service that boto3 has a method for.

    :param service: one of :data:`SERVICES`.
    """
    model = _models.service(service)
    found = (model.operation_model(name) for name in sorted(model.operation_names))
    return [each for each in found if not each.has_event_stream_input]


def method_name(operation: OperationModel) -> str:
    """The name of boto3's method."""
    name: str = xform_name(operation.name)
    return name


def parameters(operation: OperationModel) -> dict[str, Any]:
    """
    Keyword arguments for boto3's method: required and optional ones, all levels down.
    """
    if operation.input_shape is None:
        return {}
    service = operation.service_model.service_name
    labels = (_AGENTCORE_ARN, *_LABELS) if "agentcore" in service else _LABELS
    made: dict[str, Any] = {}
    for name, member in operation.input_shape.members.items():
        if member.serialization.get("location") == "uri":
            made[name] = _label(member, name, labels)
        else:
            made[name] = _value(member, name, (operation.input_shape.name,))
    return made


class _Recursive(Exception):
    """The shape is inside itself: it is left out."""


def _value(shape: Shape, name: str, inside: tuple[str, ...]) -> Any:
    kind = shape.type_name
    limits = shape.metadata
    if kind == "structure":
        return _structure(shape, inside)
    if kind == "list":
        shortest = limits.get("min", 0)
        try:
            one = _value(shape.member, name.removesuffix("s"), inside)
        except _Recursive:
            if shortest:
                raise
            return []
        return [one] * max(1, shortest)
    if kind == "map":
        try:
            return {_value(shape.key, "key", inside): _value(shape.value, name, inside)}
        except _Recursive:
            return {}
    if kind == "string":
        return _text(shape, name)
    if kind == "timestamp":
        return _TIME
    if kind == "blob":
        return b'{"inputText": "sandbox"}'.ljust(limits.get("min", 0))
    if kind == "boolean":
        return True
    number = max(limits.get("min", 1), min(1, limits.get("max", 1)))
    return float(number) if kind in ("float", "double") else int(number)


def _structure(shape: Shape, inside: tuple[str, ...]) -> dict[str, Any]:
    if getattr(shape, "is_document_type", False):
        return {"text": "sandbox", "number": 1}
    if shape.name in inside:
        raise _Recursive
    made: dict[str, Any] = {}
    for name, member in shape.members.items():
        try:
            made[name] = _value(member, name, (*inside, shape.name))
        except _Recursive:
            if name in shape.required_members:
                raise
        if made and getattr(shape, "is_tagged_union", False):
            break
    if not made and getattr(shape, "is_tagged_union", False):
        raise _Recursive
    return made


def _text(shape: Shape, name: str) -> str:
    if shape.metadata.get("enum"):
        value: str = shape.metadata["enum"][0]
        return value
    limits = shape.metadata
    return example_string(pattern_of(shape), limits.get("min", 0), limits.get("max"), name)


def _label(shape: Shape, name: str, labels: tuple[str, ...]) -> str:
    """A value for a place in the path, the most difficult that may stand there."""
    if not shape.metadata.get("enum"):
        shortest, longest = shape.metadata.get("min", 0), shape.metadata.get("max", 10_000)
        for label in labels:
            if shortest <= len(label) <= longest and _fits(pattern_of(shape), label):
                return label
    return _text(shape, name)


def _fits(pattern: str | None, text: str) -> bool:
    try:
        return pattern is None or re.fullmatch(pattern, text) is not None
    except re.error:
        return False
