"""
From the name a client uses to the deployments that can serve it.

A name is, in this order: the name of a model group; an alias; matched by a
group whose name has a ``*`` (the one with the most letters besides it first);
or an id that Bedrock itself knows, which the default deployment serves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import InvalidRequest, ProxyError, UnknownModel
from .deployments import Deployment

__all__ = [
    "Choice",
    "Models",
    "Resolution",
    "arn_region",
    "bare_id",
    "is_region",
    "model_in_body",
]

_REGION = re.compile(r"[a-z]{2,5}(-[a-z]+)+-[0-9]{1,2}")

_ROUTES = frozenset(
    {
        "async_invoke",
        "converse",
        "converse_like",
        "invoke",
        "1-month-commitment",
        "6-month-commitment",
    }
)
"""What LiteLLM puts between ``bedrock/`` and a model id."""

_LONGEST_ID = 2048
"""Bedrock's own limit for a model id."""

_REMEMBERED = 1024
"""How many names that are no group's and no alias are kept with their result."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One deployment that can serve a request, and as what it does so."""

    deployment: Deployment
    model_id: str
    """Bedrock's id, not encoded; empty for a request that names no model."""

    region: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a name stands for."""

    model_name: str
    """The model group; empty for an id of Bedrock's own."""

    choices: tuple[Choice, ...]

    model_ids: tuple[str, ...] = field(init=False, repr=False)
    """Those of the choices."""

    counts_tokens: bool = field(init=False, repr=False)
    """Whether any deployment has a limit of tokens a minute."""

    def __post_init__(self) -> None:
        # Asked by each request.
        object.__setattr__(self, "model_ids", tuple(one.model_id for one in self.choices))
        counts = any(one.deployment.tpm is not None for one in self.choices)
        object.__setattr__(self, "counts_tokens", counts)


def is_region(text: str) -> bool:
    """Whether a text has the form of a region's name, and so may be part of a host's."""
    return _REGION.fullmatch(text) is not None


def arn_region(model_id: str) -> str:
    """The region in an ARN, as it is written; empty if there is none."""
    parts = model_id.split(":", 5)
    return parts[3] if parts[0] == "arn" and len(parts) == 6 else ""


def bare_id(name: str) -> tuple[str, str]:
    """
    Bedrock's own id out of a name in LiteLLM's style.

    :param name: such as ``bedrock/converse/us.amazon.nova-lite-v1:0``,
        ``bedrock/us-west-2/...`` or ``bedrock/llama/arn:aws:...``.
    :returns: the id, and the region put before it, or ``""``.
    """
    region = ""
    rest = name.removeprefix("bedrock/")
    while not rest.startswith("arn:"):
        head, slash, tail = rest.partition("/")
        if slash and head in _ROUTES:
            rest = tail
        elif slash and is_region(head):
            region, rest = head, tail
        elif "/arn:" in rest:
            rest = rest[rest.index("/arn:") + 1 :]
        else:
            break
    return rest, region


def model_in_body(body: bytes) -> str:
    """
    The model that a JSON body names in its member ``model``.

    :returns: empty if there is none, or more than one: who takes which is not sure.
    """
    found: list[object] = []

    def members(pairs: list[tuple[str, object]]) -> None:
        # Called for the outermost object last.
        found[:] = [value for name, value in pairs if name == "model"]

    try:
        document = json.loads(body, object_pairs_hook=members)
    except (ValueError, RecursionError):
        return ""
    # The hook has made None of every object.
    if document is not None or len(found) != 1 or not isinstance(found[0], str):
        return ""
    return found[0]


@dataclass(frozen=True, slots=True)
class _Wildcard:
    name: str
    prefix: str
    suffix: str
    raw_only: bool
    """Whether it matches only what looks like an id of Bedrock's own."""

    def match(self, label: str) -> str | None:
        """What the ``*`` stands for."""
        if len(label) < len(self.prefix) + len(self.suffix):
            return None
        if not (label.startswith(self.prefix) and label.endswith(self.suffix)):
            return None
        if self.raw_only and not _looks_raw(label):
            return None
        return label[len(self.prefix) : len(label) - len(self.suffix)]


class Models:
    """
    All names of one configuration.

    :param deployments: in their order; those with one name are a group.
    :param aliases: other names of groups, of aliases, or of anything else that
        can be resolved.
    :param default: serves ids of Bedrock's own and requests without a model.
    """

    def __init__(
        self,
        deployments: Iterable[Deployment],
        aliases: Mapping[str, str],
        default: Deployment | None,
    ) -> None:
        self._default = default
        self._direct: Resolution | None = None
        if default is not None:
            self._direct = Resolution("", (Choice(default, "", default.region),))
        self._recent: dict[str, Resolution] = {}
        self._groups: dict[str, list[Deployment]] = {}
        for deployment in deployments:
            self._groups.setdefault(deployment.model_name, []).append(deployment)
        self._wildcards = _wildcards(self._groups)
        self._exact = {
            name: Resolution(name, tuple(Choice(one, one.model_id, one.region) for one in members))
            for name, members in self._groups.items()
            if "*" not in name
        }
        for alias in aliases:
            target = _follow(alias, aliases, self._exact)
            if alias in self._exact or target is None:
                continue
            try:
                self._exact[alias] = self._exact.get(target) or self._search(target)
            except ProxyError:
                pass  # the configuration has reported it; to clients the name is unknown

    def resolve(self, label: str) -> Resolution:
        """
        The deployments for a name.

        :param label: as the client meant it, percent-decoded.
        :raises UnknownModel: if nothing here has that name.
        :raises InvalidRequest: if it is an id of Bedrock's own that cannot be
            sent anywhere.
        """
        found = self._exact.get(label)
        if found is None:
            found = self._recent.get(label)
            if found is None:
                found = self._search(label)
                if len(self._recent) >= _REMEMBERED:
                    del self._recent[next(iter(self._recent))]
                self._recent[label] = found
        return found

    def direct(self) -> Resolution:
        """
        Where a request goes that names no model; the same object each time.

        :raises InvalidRequest: if there is no default deployment.
        """
        if self._direct is None:
            raise _no_region("Requests that name no model of the gateway's own")
        return self._direct

    def _search(self, label: str) -> Resolution:
        for wildcard in self._wildcards:
            matched = wildcard.match(label)
            if matched is not None:
                return Resolution(
                    wildcard.name,
                    tuple(_filled(one, matched, label) for one in self._groups[wildcard.name]),
                )
        if not _looks_raw(label.removeprefix("bedrock/")):
            raise _unknown(label)
        if self._default is None:
            raise _no_region(f"The model id '{_quotable(label)}'")
        return Resolution("", (_filled(self._default, label, label),))


def _wildcards(names: Iterable[str]) -> tuple[_Wildcard, ...]:
    """
    The patterns among the names, the most specific first.

    ``bedrock/*`` is also meant for clients that leave ``bedrock/`` out, as
    those of an AWS SDK do. In that form it takes only ids of Bedrock's own, so
    that a misspelled name is not sent to Bedrock.
    """
    found = []
    for name in names:
        if "*" not in name:
            continue
        prefix, _, suffix = name.partition("*")
        found.append(_Wildcard(name, prefix, suffix, False))
        if prefix.startswith("bedrock/"):
            found.append(_Wildcard(name, prefix.removeprefix("bedrock/"), suffix, True))
    found.sort(key=lambda one: -len(one.prefix) - len(one.suffix))
    return tuple(found)


def _follow(alias: str, aliases: Mapping[str, str], groups: Mapping[str, object]) -> str | None:
    """The name at the end of a chain of aliases; None if it has no end."""
    seen = set()
    name = alias
    while name in aliases and name not in groups:
        if name in seen:
            return None
        seen.add(name)
        name = aliases[name]
    return name


def _filled(deployment: Deployment, matched: str, label: str) -> Choice:
    """
    A deployment's choice for what its ``*`` stands for.

    A region in the client's id becomes part of a host's name: it is used only
    if it has the form of one.
    """
    named, region = bare_id(matched)
    model_id = deployment.model_id.replace("*", named, 1)
    if not _may_be_sent(model_id):
        raise _unknown(label)
    region = region or arn_region(named)
    if not (region and deployment.region_from_model and deployment.model_id == "*"):
        return Choice(deployment, model_id, deployment.region)
    if not is_region(region):
        raise InvalidRequest(
            f"The model id '{_quotable(label)}' has no valid region. "
            "Use the ARN as Amazon Bedrock shows it."
        )
    return Choice(deployment, model_id, region)


def _may_be_sent(model_id: str) -> bool:
    """Whether an id that a client had a part in is one of Bedrock's, and no path."""
    if not model_id[:1].isalnum() or len(model_id) > _LONGEST_ID:
        return False
    segments = model_id.split("/")
    return len(segments) == 1 or (
        model_id.startswith("arn:") and not any(one in ("", ".", "..") for one in segments)
    )


def _looks_raw(label: str) -> bool:
    """Whether only Bedrock can say if there is such a model."""
    plain = label.isascii() and label.isprintable() and " " not in label
    return plain and ("." in label or label.startswith("arn:"))


def _quotable(label: str) -> str:
    short = label if len(label) <= 100 else f"{label[:97]}..."
    return "".join(char if char.isprintable() else "?" for char in short)


def _unknown(label: str) -> UnknownModel:
    return UnknownModel(
        f"There is no model named '{_quotable(label)}' here. Use a model name that this gateway "
        "is configured with, or a model id or ARN of Amazon Bedrock."
    )


def _no_region(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"{what} cannot be sent to Amazon Bedrock: this gateway has no AWS region for that. "
        "Its operator has to set AWS_REGION_NAME."
    )
