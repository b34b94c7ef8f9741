"""
Which operation of which Bedrock service a request means.

The path is matched as it came, still percent-encoded: an id may hold ``%2F``,
and what is signed must be what is sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypedDict
from urllib.parse import quote, unquote_to_bytes

from txbedrock.errors import InvalidRequest, MethodNotAllowed, UnknownOperation

__all__ = [
    "Match",
    "Operation",
    "OperationTable",
    "Operations",
    "OperationsTable",
    "ServiceTable",
    "decode_label",
    "usual_path",
]


class _NamedRoute(TypedDict):
    name: str
    method: str
    template: str


class OperationTable(_NamedRoute, total=False):
    """One operation in ``operations.json``; an absent trait is False."""

    events_in: bool
    events_out: bool
    blob_in: bool
    blob_out: bool


class _Service(TypedDict):
    signing_name: str
    errors: dict[str, int]
    operations: list[OperationTable]


class ServiceTable(_Service, total=False):
    """One service in ``operations.json``."""

    target_prefix: str


class OperationsTable(TypedDict):
    """``operations.json``; the order of the services settles a tie that nothing else does."""

    botocore: str
    services: dict[str, ServiceTable]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a Bedrock service."""

    service: str
    name: str
    method: str
    """``*`` for the routes that take every method."""

    template: str
    signing_name: str
    streams: bool
    """The answer is an AWS event stream."""

    bidirectional: bool
    """The request is one, too."""

    takes_model: bool
    """The path has a model id: ``/model/{modelId}/<verb>``."""


class Match(NamedTuple):
    """
    What a request's path was found to mean.

    A tuple, because one is made for each request and a frozen dataclass takes
    twice as long.
    """

    operation: Operation
    raw_path: bytes
    """As it was given to :meth:`Operations.match`."""

    model_label: bytes | None = None
    """The model name as the client sent it, still percent-encoded (see
    :func:`decode_label`); None if the operation takes no model."""

    model_suffix: bytes = b""
    """What follows the label, e.g. ``b"/converse"``."""

    def path_for(self, model_id: str) -> bytes:
        """
        The raw path of the request to Bedrock.

        :param model_id: Bedrock's id or ARN, not encoded. Without meaning for
            operations that take no model: their path goes on as it came (the
            empty one as ``/``).
        :returns: the path with the id in the form every AWS SDK sends:
            ``%3A`` for a colon, ``%2F`` for a slash.
        :raises InvalidRequest: if the id would make a dot segment or an empty one.
        """
        if self.model_label is None:
            return self.raw_path or b"/"
        if model_id in ("", ".", ".."):
            raise InvalidRequest("The model id must not be empty, '.' or '..'.")
        return b"/model/" + _label_of(model_id) + self.model_suffix


@lru_cache(maxsize=1024)
def _label_of(model_id: str) -> bytes:
    """A model id as every AWS SDK encodes it."""
    return quote(model_id, safe="-._~").encode("ascii")


def usual_path(raw_path: bytes) -> bytes:
    """
    The path that a client means by what its base URL made of it.

    A base URL that ends with a slash makes two of them; some clients put ``/v1`` before
    everything; Anthropic's Messages API is ``/v1/messages`` to a client that is told
    where Bedrock is, and ``/anthropic/v1/messages`` to Bedrock.

    :param raw_path: below the gateway's own prefix, percent-encoded as it came.
    """
    if raw_path[:_LABEL_AT] == _MODEL:
        return raw_path
    if raw_path[:2] == b"//" and (rest := raw_path.lstrip(b"/")):
        raw_path = b"/" + rest
    if raw_path.startswith(b"/v1/model/"):
        return raw_path[len(b"/v1") :]
    if raw_path == b"/v1/messages" or raw_path.startswith(b"/v1/messages/"):
        return b"/anthropic" + raw_path
    return raw_path


_MAX_LABEL_CHARS = 2048
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@lru_cache(maxsize=256)
def decode_label(label: bytes) -> str:
    """
    The name that a label of a path stands for: percent-decoded once, as UTF-8.

    :raises InvalidRequest: if it is not UTF-8, holds control characters or is
        longer than the 2048 characters that Bedrock takes.
    """
    try:
        text = (unquote_to_bytes(label) if b"%" in label else label).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(
            "The model id in the path is not UTF-8 after percent-decoding."
        ) from None
    if len(text) > _MAX_LABEL_CHARS:
        raise InvalidRequest(
            f"The model id in the path is longer than {_MAX_LABEL_CHARS} characters."
        )
    if _CONTROL.search(text) is not None:
        raise InvalidRequest("The model id in the path holds a control character.")
    return text


# Note [Routes that two services share]
#
# Nearly every method and path belongs to one operation. These do not (botocore
# 1.44.5); the first rule that gives an answer among the candidates counts:
#
#   {GET,POST,DELETE} /tags/{arn}            bedrock-agent, bedrock-agent-runtime,
#                                            bedrock-agentcore-control
#   {GET,PUT,DELETE} /resourcepolicy/{arn}   bedrock-agent, bedrock-agentcore-control
#   POST /listTagsForResource, /tagResource, bedrock, bedrock-data-automation
#        /untagResource                      (ARN: "resourceARN" of the JSON body)
#
#   1. the ARN is one of bedrock-agentcore, or it is no ARN and the request is
#      signed for bedrock-agentcore: bedrock-agentcore-control;
#   2. the ARN is one of bedrock and its resource type is in _OWNERS;
#   3. the first service in the table's order.
#
# POST / is six operations of bedrock-data-automation-runtime: X-Amz-Target.
#
# POST /agents/{x} runs an inline agent and POST /agents/{x}/ prepares an agent:
# the only place where the trailing slash decides. Everywhere else both forms
# are taken, since clients are careless with it, and the client's own is sent on.
#
# POST /flows/validate-definition could be POST /flows/{id}/: literal beats label.

_OWNERS = {
    "session": "bedrock-agent-runtime",
    "blueprint": "bedrock-data-automation",
    "blueprint-optimization-invocation": "bedrock-data-automation",
    "data-automation-library": "bedrock-data-automation",
    "data-automation-library-ingestion-job": "bedrock-data-automation",
    "data-automation-project": "bedrock-data-automation",
}
"""Resource type of an ARN of ``bedrock`` -> service that tags it."""

_AGENTCORE = "bedrock-agentcore"
_AGENTCORE_CONTROL = "bedrock-agentcore-control"

_MAX_TAG_BODY_BYTES = 1024 * 1024
"""200 tags, all escaped, are less than half of it."""

# Bedrock serves these beside what botocore's models describe; the models do not
# have them. AWS, "Endpoints supported by Amazon Bedrock".
_OPENAI = b"/openai/v1/"
_ANTHROPIC = b"/anthropic/v1/"

_SENDABLE = bytes(byte for byte in range(0x21, 0x7F) if byte not in b"?#")
# The first two groups are for speed: few places pass them.
_DOT_SEGMENT = re.compile(
    rb"[/fF](?=\.|%2[eE])(?:(?<=/)|(?<=%2[fF]))(?:\.|%2[eE]){1,2}(?=/|%2[fF]|\Z)"
)
_MODEL_TEMPLATE = re.compile(r"/model/\{\w+\}/([\w-]+)")
_MODEL = b"/model/"
_REMEMBERED = 1024
_LONGEST_REMEMBERED = 512
_LABEL_AT = len(_MODEL)


class _Node:
    """A place in the tree of path segments."""

    __slots__ = ("label", "leaves", "literals")

    def __init__(self) -> None:
        self.literals: dict[bytes, _Node] = {}
        self.label: _Node | None = None
        # method -> the operations without and those with a trailing slash
        self.leaves: dict[bytes, tuple[list[Operation], list[Operation]]] = {}


class Operations:
    """
    All operations, to be found by method and path.

    :param table: ``operations.json``.
    """

    def __init__(self, table: OperationsTable) -> None:
        self._all: list[Operation] = []
        self._root = _Node()
        self._verbs: dict[bytes, dict[bytes, Operation]] = {}
        self._targets: dict[bytes, Operation] = {}
        for service, description in table["services"].items():
            prefix = description.get("target_prefix")
            for each in description["operations"]:
                model_route = _MODEL_TEMPLATE.fullmatch(each["template"])
                operation = Operation(
                    service=service,
                    name=each["name"],
                    method=each["method"],
                    template=each["template"],
                    signing_name=description["signing_name"],
                    streams=each.get("events_out", False),
                    bidirectional=each.get("events_in", False),
                    takes_model=model_route is not None,
                )
                self._all.append(operation)
                if prefix is not None:
                    self._targets[f"{prefix}.{operation.name}".encode()] = operation
                elif model_route is not None:
                    verb = self._verbs.setdefault(model_route[1].encode(), {})
                    verb[operation.method.encode()] = operation
                else:
                    self._add(operation)
        # Clients use few models, but they could invent any number of them.
        self._recent: dict[tuple[bytes, bytes], Match] = {}
        self._openai = _every_method("OpenAI", _OPENAI)
        self._anthropic = _every_method("Anthropic", _ANTHROPIC)
        self._all += [self._openai, self._anthropic]

    def __iter__(self) -> Iterator[Operation]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def match(
        self,
        method: bytes,
        raw_path: bytes,
        *,
        target: bytes | None = None,
        signing_name: str | None = None,
        body: Callable[[], bytes] = lambda: b"",
    ) -> Match:
        """
        Find the operation of a request.

        :param raw_path: the path below the gateway's own prefix, without the
            query, percent-encoded as it came. May be empty.
        :param target: the ``X-Amz-Target`` header.
        :param signing_name: of the credential scope, if the client signed.
        :param body: gives the request body; called only for the three
            tag operations whose path two services share.
        :raises InvalidRequest: for a path that cannot be sent on.
        :raises UnknownOperation: if nothing is at this path.
        :raises MethodNotAllowed: if something is, under other methods.
        """
        known = self._recent.get((method, raw_path))
        if known is not None:
            return known
        # The empty path's first byte, b"", is in b"/".
        if raw_path.translate(None, _SENDABLE) or raw_path[:1] not in b"/":
            raise InvalidRequest(
                "The path must begin with '/', and every character of it outside printable"
                " ASCII, and every space, '?' and '#' in an id, must be percent-encoded."
            )
        if raw_path[:_LABEL_AT] == _MODEL:
            found = self._match_model(method, raw_path)
            if len(raw_path) <= _LONGEST_REMEMBERED:
                if len(self._recent) >= _REMEMBERED:
                    del self._recent[next(iter(self._recent))]
                self._recent[method, raw_path] = found
            return found
        if len(raw_path) <= 1:
            return self._match_target(method, raw_path, target)

        segments = raw_path.split(b"/")
        _check_dots(raw_path, segments)
        slash = not segments[-1]
        if slash:
            segments.pop()
        leaf = self._find(segments, method)
        if leaf is None:
            return self._match_prefix(method, raw_path, segments)
        candidates = leaf[slash] or leaf[not slash]
        if len(candidates) == 1:
            return Match(candidates[0], raw_path)
        label = segments[-1] if candidates[0].template.rstrip("/").endswith("}") else None
        return Match(_choose(candidates, label, signing_name, body), raw_path)

    def _match_model(self, method: bytes, raw_path: bytes) -> Match:
        # The label is all between /model/ and the last segment: clients also send
        # ARNs and names with slashes that are not encoded.
        head, _, verb = raw_path.rpartition(b"/")
        if not verb:
            head, _, verb = head.rpartition(b"/")
        label = head[_LABEL_AT:]
        if b"%2" in label or b"/" in label or label[:1] == b".":
            _check_dots(raw_path, label.split(b"/"))
        by_method = self._verbs.get(verb)
        # Shorter: "/model/converse", which has no label at all.
        if by_method is None or len(head) < _LABEL_AT:
            _check_dots(raw_path, raw_path.split(b"/"))
            verbs = ", ".join(sorted(each.decode() for each in self._verbs))
            raise UnknownOperation(
                f"{_shown(method)} {_shown(raw_path)} is not an operation of Bedrock."
                f" The path of a model is /model/{{modelId}}/ and then one of: {verbs}."
            )
        operation = by_method.get(method)
        if operation is None:
            raise _wrong_method(method, raw_path, by_method)
        if not label:
            raise InvalidRequest(
                f"The model id in {_shown(raw_path)} is empty: send /model/{{modelId}}/"
                f"{_shown(verb)}."
            )
        # AWS knows no slash at the end of these.
        return Match(operation, raw_path, label, b"/" + verb)

    def _match_target(self, method: bytes, raw_path: bytes, target: bytes | None) -> Match:
        if method != b"POST":
            raise _wrong_method(method, raw_path or b"/", [b"POST"])
        operation = self._targets.get(target) if target is not None else None
        if operation is None:
            known = ", ".join(sorted(each.decode() for each in self._targets))
            sent = "is missing" if target is None else f"is {_shown(target)}"
            raise UnknownOperation(
                f"The operation of POST / is named by the header X-Amz-Target, which {sent}."
                f" Send one of: {known}. Other operations have a path of their own."
            )
        return Match(operation, raw_path)

    def _match_prefix(self, method: bytes, raw_path: bytes, segments: list[bytes]) -> Match:
        if raw_path.startswith(_OPENAI) and len(raw_path) > len(_OPENAI):
            return Match(self._openai, raw_path)
        if raw_path.startswith(_ANTHROPIC) and len(raw_path) > len(_ANTHROPIC):
            return Match(self._anthropic, raw_path)
        methods = _methods(self._root, segments, 1)
        if methods:
            raise _wrong_method(method, raw_path, methods)
        hint = " An ARN in a path is percent-encoded: %3A, %2F." if b"/arn:" in raw_path else ""
        raise UnknownOperation(
            f"{_shown(method)} {_shown(raw_path)} is not an operation of Bedrock that this"
            f" gateway knows. Check the path with the Amazon Bedrock API reference.{hint}"
        )

    def _add(self, operation: Operation) -> None:
        node = self._root
        for segment in operation.template.strip("/").split("/"):
            if segment.startswith("{"):
                if node.label is None:
                    node.label = _Node()
                node = node.label
            else:
                node = node.literals.setdefault(segment.encode(), _Node())
        leaf = node.leaves.setdefault(operation.method.encode(), ([], []))
        leaf[operation.template.endswith("/")].append(operation)

    def _find(
        self, segments: list[bytes], method: bytes
    ) -> tuple[list[Operation], list[Operation]] | None:
        # A literal is tried before a label; the label is remembered and tried
        # when the literal leads nowhere.
        node = self._root
        index = 1  # segments[0] is what is before the first slash
        untried: list[tuple[_Node, int]] = []
        while True:
            if index == len(segments):
                leaf = node.leaves.get(method)
                if leaf is not None:
                    return leaf
            else:
                segment = segments[index]
                child = node.literals.get(segment)
                label = node.label
                index += 1
                if child is not None:
                    if label is not None:
                        untried.append((label, index))
                    node = child
                    continue
                if label is not None and segment:
                    node = label
                    continue
            if not untried:
                return None
            node, index = untried.pop()


def _check_dots(raw_path: bytes, segments: list[bytes]) -> None:
    # They cannot be signed: SDKs, proxies and AWS disagree on whether they are
    # removed first. Also refused between encoded slashes, for what may stand
    # behind an endpoint of the operator's own.
    if (
        b".." in segments
        or b"." in segments
        or (b"%2" in raw_path and _DOT_SEGMENT.search(raw_path) is not None)
    ):
        raise InvalidRequest("The path must not hold the segments '.' and '..'.")


def _every_method(name: str, prefix: bytes) -> Operation:
    return Operation(
        service="bedrock-runtime",
        name=name,
        method="*",
        template=prefix.decode() + "{path+}",
        signing_name="bedrock",
        streams=False,
        bidirectional=False,
        takes_model=False,
    )


def _methods(node: _Node, segments: list[bytes], index: int) -> set[bytes]:
    """Under which methods something is at this path."""
    if index == len(segments):
        return set(node.leaves)
    found: set[bytes] = set()
    child = node.literals.get(segments[index])
    if child is not None:
        found |= _methods(child, segments, index + 1)
    if node.label is not None and segments[index]:
        found |= _methods(node.label, segments, index + 1)
    return found


def _choose(
    candidates: list[Operation],
    label: bytes | None,
    signing_name: str | None,
    body: Callable[[], bytes],
) -> Operation:
    """See Note [Routes that two services share]."""
    if label is not None:
        arn = unquote_to_bytes(label).decode("utf-8", "replace")
    else:
        arn = _resource_arn(body())
    parts = arn.split(":", 5)
    is_arn = len(parts) == 6 and parts[0] == "arn"
    owner = None
    if (parts[2] if is_arn else signing_name) == _AGENTCORE:
        owner = _AGENTCORE_CONTROL
    elif is_arn and parts[2] == "bedrock":
        owner = _OWNERS.get(parts[5].partition("/")[0])
    return next((each for each in candidates if each.service == owner), candidates[0])


def _resource_arn(body: bytes) -> str:
    """The ``resourceARN`` of a JSON body, or ``""``: the service will complain better."""
    if len(body) > _MAX_TAG_BODY_BYTES:
        return ""
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    arn: object = document.get("resourceARN") if isinstance(document, dict) else None
    return arn if isinstance(arn, str) else ""


def _wrong_method(
    method: bytes, raw_path: bytes, allowed: dict[bytes, Operation] | set[bytes] | list[bytes]
) -> MethodNotAllowed:
    methods = b", ".join(sorted(allowed))
    return MethodNotAllowed(
        f"{_shown(raw_path)} does not take {_shown(method)}: use {methods.decode()}.",
        headers=((b"Allow", methods),),
    )


_UNPRINTABLE = re.compile(rb"[^ -~]")
_MAX_SHOWN_BYTES = 160


def _shown(text: bytes) -> str:
    """What a client sent, fit to be shown to it: short, printable."""
    shown = _UNPRINTABLE.sub(b"?", text[:_MAX_SHOWN_BYTES]).decode("ascii")
    return shown + "..." if len(text) > _MAX_SHOWN_BYTES else shown
