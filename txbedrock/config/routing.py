"""
The part of the configuration that says which deployment is asked, and what follows when
it fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import TypedDict, TypeVar

from txbedrock import data
from txbedrock.config.fields import (
    Found,
    Section,
    Wrong,
    boolean,
    duration,
    fitting,
    number,
    one_of,
    shorten,
    text,
)
from txbedrock.config.yamltree import Node
from txbedrock.core.balance import Panic, RoutingSettings, Strategy
from txbedrock.core.fallbacks import FallbackProblem, Fallbacks
from txbedrock.core.health import FailureKind
from txbedrock.core.models import Models, Resolution
from txbedrock.core.operations import Operations
from txbedrock.core.retry import RetrySettings
from txbedrock.errors import ProxyError

__all__ = [
    "OURS",
    "DeploymentRouting",
    "Names",
    "Routing",
    "deployment_routing",
    "routing_settings",
]

_T = TypeVar("_T")

# Note [Two places]
# -----------------
# LiteLLM takes some of these from litellm_settings as well: fallbacks and their kin,
# num_retries, allowed_fails and cooldown_time. What stands in router_settings wins.
#
# Note [Classes of errors]
# ------------------------
# LiteLLM's policies go by its own classes of exceptions; _CLASSES says which failures
# each of them has. A wrong request is never tried again, whatever the policy says of
# BadRequestError: it would be as wrong anywhere.

OURS = (
    "affinity_header",
    "hedge_unary",
    "max_cooldown_time",
    "panic",
    "queue_size",
    "queue_timeout",
    "repeatable_operations",
    "retry_budget",
    "retry_deadline",
)
"""The keys of ``router_settings`` that LiteLLM does not have."""

_CLASSES: Mapping[str, tuple[FailureKind, ...]] = {
    "BadRequestError": (FailureKind.CLIENT,),
    "AuthenticationError": (FailureKind.DENIED, FailureKind.BAD_CREDENTIALS),
    "TimeoutError": (FailureKind.TIMEOUT,),
    "RateLimitError": (FailureKind.THROTTLED, FailureKind.NOT_READY),
    "ContentPolicyViolationError": (FailureKind.CONTENT_POLICY,),
    "InternalServerError": (FailureKind.UNAVAILABLE, FailureKind.CONNECT, FailureKind.BROKE),
}

_count = number(0, math.inf, whole=True)
_some = number(1, math.inf, whole=True)


@dataclass(frozen=True, slots=True)
class Names:
    """What can be asked for, as far as the rest of the configuration says."""

    models: Models
    aliases: Mapping[str, str]
    """``model_group_alias``."""

    left_out: Collection[str] = ()
    """Groups, with ``*`` or without, of which deployments are none of Bedrock's."""

    def known(self, name: str) -> bool:
        """Whether a client can ask for it."""
        return self._resolved(name) is not None

    def is_left_out(self, name: str) -> bool:
        """Whether it would be known if all deployments were of Bedrock."""
        if self.is_group(name):
            return False
        if name in self.left_out:
            return True
        patterns = [one.partition("*") for one in self.left_out if "*" in one]
        return not self.known(name) and any(
            name.startswith(prefix) and name.endswith(suffix) for prefix, _, suffix in patterns
        )

    def is_group(self, name: str) -> bool:
        """Whether it is the very name of a model group, ``*`` included."""
        found = self._resolved(name)
        return found is not None and found.model_name == name

    def meant(self, name: str) -> str:
        """What a name stands for in the end; the name itself if it is no alias."""
        seen = set()
        while name in self.aliases and name not in seen and not self.is_group(name):
            seen.add(name)
            name = self.aliases[name]
        return name

    def _resolved(self, name: str) -> Resolution | None:
        try:
            return self.models.resolve(name)
        except ProxyError:
            return None


class DeploymentRouting(TypedDict):
    """Those fields of a :class:`~txbedrock.core.deployments.Deployment` that say how many
    of the requests it gets."""

    weight: float | None
    order: int
    tags: tuple[str, ...]
    rpm: int | None
    tpm: int | None
    max_parallel: int | None
    max_retries: int | None


@dataclass(frozen=True, slots=True)
class Routing:
    """What is read here."""

    routing: RoutingSettings
    retries: RetrySettings
    fallbacks: Fallbacks


def routing_settings(router: Section, litellm: Section, names: Names) -> Routing:
    """
    :param router: ``router_settings``.
    :param litellm: ``litellm_settings``.
    :param names: of all models.
    """
    return Routing(
        _routing(router, litellm),
        _retries(router, litellm, names),
        _fallbacks(router, litellm, names),
    )


def deployment_routing(params: Section) -> DeploymentRouting:
    """
    How many of the requests a deployment gets.

    :param params: ``litellm_params``.
    """
    own = params.get("max_retries", _count)
    other = params.get("num_retries", _count)
    if "max_retries" in params and "num_retries" in params:
        params.notice("num_retries", "has no effect beside max_retries")
    order = params.get("order", _count)
    return {
        "weight": params.get("weight", number(0, 1_000_000)),
        "order": 0 if order is None else int(order),
        "tags": params.get("tags", _texts) or (),
        "rpm": _whole(params.get("rpm", _some)),
        "tpm": _whole(params.get("tpm", _some)),
        "max_parallel": _whole(params.get("max_parallel_requests", _some)),
        "max_retries": _whole(other if own is None else own),
    }


def _routing(router: Section, litellm: Section) -> RoutingSettings:
    standard = RoutingSettings()
    strategy = router.get("routing_strategy", one_of(one.value for one in Strategy))
    panic = router.get("panic", one_of(one.value for one in Panic))
    allowed = _either(router, litellm, "allowed_fails", _count)
    cooldown = _either(router, litellm, "cooldown_time", duration(0))
    longest = router.get("max_cooldown_time", duration())
    disable = router.get("disable_cooldowns", boolean) or cooldown == 0
    size = router.get("queue_size", _count)
    wait = router.get("queue_timeout", duration(0))
    header = router.get("affinity_header", _header_name)
    return RoutingSettings(
        allowed_fails=standard.allowed_fails if allowed is None else int(allowed),
        allowed_fails_policy=_policy(
            router.section("allowed_fails_policy"),
            "AllowedFails",
            lambda kind, allowed: kind.clients,
            "has no effect: it is no failure of a deployment's",
        ),
        cooldown_s=cooldown or standard.cooldown_s,
        max_cooldown_s=standard.max_cooldown_s if longest is None else longest,
        disable_cooldowns=disable,
        strategy=standard.strategy if strategy is None else Strategy(strategy),
        panic=standard.panic if panic is None else Panic(panic),
        default_max_parallel=_whole(router.get("default_max_parallel_requests", _some)),
        queue_size=standard.queue_size if size is None else int(size),
        queue_timeout_s=standard.queue_timeout_s if wait is None else wait,
        affinity_header=None if header is None else header.lower(),
        tag_filtering=router.get("enable_tag_filtering", boolean) or False,
    )


def _retries(router: Section, litellm: Section, names: Names) -> RetrySettings:
    standard = RetrySettings()
    retries = _either(router, litellm, "num_retries", _count)
    deadline = router.get("retry_deadline", duration())
    budget = router.get("retry_budget", number(0, 1))
    by_group = {}
    groups = router.section("model_group_retry_policy")
    for name in groups:
        policy = _retry_policy(groups.section(name))
        if names.is_left_out(name):
            groups.notice(name, "is of a deployment that is left out")
        elif names.is_group(names.meant(name)):
            by_group[names.meant(name)] = policy
        else:
            groups.problem(name, f"found {_shown(name)}, expected a model_name of model_list")
    return RetrySettings(
        num_retries=standard.num_retries if retries is None else int(retries),
        by_kind=_retry_policy(router.section("retry_policy")),
        by_group=by_group,
        retry_after_s=router.get("retry_after", duration(0)) or 0.0,
        deadline_s=standard.deadline_s if deadline is None else deadline,
        budget_ratio=standard.budget_ratio if budget is None else budget,
        hedge=router.get("hedge_unary", boolean) or False,
        repeatable=frozenset(router.get("repeatable_operations", _operations) or ()),
    )


def _retry_policy(section: Section) -> Mapping[FailureKind, int]:
    return _policy(
        section,
        "Retries",
        lambda kind, retries: kind is FailureKind.CLIENT and retries > 0,
        "has no effect: a wrong request is never tried again",
    )


def _policy(
    section: Section, ending: str, idle: Callable[[FailureKind, int], bool], notice: str
) -> Mapping[FailureKind, int]:
    """
    A number for each class of errors.

    :param idle: whether this number does nothing, for this kind.
    :param notice: what is said then.
    """
    policy: dict[FailureKind, int] = {}
    keys = {f"{name}{ending}": kinds for name, kinds in _CLASSES.items()}
    for key, kinds in keys.items():
        found = _whole(section.get(key, _count))
        if found is None:
            continue
        if any(idle(kind, found) for kind in kinds):
            section.notice(key, notice)
        else:
            policy.update(dict.fromkeys(kinds, found))
    section.finish({}, ours=keys)
    return policy


# Fallbacks

_TABLES = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")


def _fallbacks(router: Section, litellm: Section, names: Names) -> Fallbacks:
    tables: dict[str, dict[str, tuple[str, ...]]] = {}
    places: dict[tuple[str, str], Section] = {}
    for setting in _TABLES:
        table = tables[setting] = {}
        for item in _chosen(router, litellm, setting).sections(setting):
            for name in item:
                others = item.get(name, _texts)
                if names.is_left_out(name):
                    item.notice(name, "is of a deployment that is left out")
                elif name in table:
                    item.notice(name, f"has no effect: there are {setting} of {name} already")
                elif others is not None:
                    table[name] = _without_left_out(item, name, others, names)
                    places[setting, name] = item
    where = _chosen(router, litellm, "default_fallbacks")
    default = where.get("default_fallbacks", _texts) or ()
    default = _without_left_out(where, "default_fallbacks", default, names)
    places["default_fallbacks", ""] = where
    most = router.get("max_fallbacks", _count)
    fallbacks = Fallbacks(
        general=tables["fallbacks"],
        default=default,
        context_window=tables["context_window_fallbacks"],
        content_policy=tables["content_policy_fallbacks"],
        max_fallbacks=Fallbacks().max_fallbacks if most is None else int(most),
        aliases={alias: names.meant(alias) for alias in names.aliases if names.known(alias)},
    )
    for problem in fallbacks.problems(names.known):
        place = places[problem.setting, problem.name]
        place.problem(*_said(problem))
    return fallbacks


def _said(problem: FallbackProblem) -> tuple[str, str]:
    """A key, and what is wrong there."""
    return (
        problem.name or problem.setting,
        f"found {problem.found}, expected {problem.expected}",
    )


def _without_left_out(
    section: Section, key: str, found: tuple[str, ...], names: Names
) -> tuple[str, ...]:
    """What of a list is of Bedrock's."""
    for name in found:
        if names.is_left_out(name):
            section.notice(key, f"names {_shown(name)}, a deployment that is left out")
    return tuple(name for name in found if not names.is_left_out(name))


# See Note [Two places]


def _chosen(router: Section, litellm: Section, key: str) -> Section:
    """Where a setting is taken from."""
    if key not in litellm:
        return router
    if key not in router:
        return litellm
    litellm.get(key, lambda found: found.data)
    litellm.notice(key, f"has no effect beside router_settings.{key}")
    return router


def _either(
    router: Section, litellm: Section, key: str, parse: Callable[[Found], _T]
) -> _T | None:
    return _chosen(router, litellm, key).get(key, parse)


# What the parsers accept


_header_name = fitting(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", "a header's name such as X-Session-Id")


def _texts(found: Found) -> tuple[str, ...]:
    """A list of texts, or one alone."""
    items = found.data if isinstance(found.data, list) else [Node(found.data, "", 0)]
    for node in items:
        if not isinstance(node.data, str) or not node.data:
            raise Wrong(Found(node.data).kind, "a list of texts")
    return tuple(text(Found(node.data)) for node in items)


@cache
def _all_operations() -> frozenset[str]:
    return frozenset(f"{one.service}:{one.name}" for one in Operations(data.load("operations")))


def _operations(found: Found) -> tuple[str, ...]:
    """``service:Name``, in which ``*`` stands for any text; each of some operation."""
    patterns = _texts(found)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in _all_operations()):
            shown = Found(pattern, found.variable).shown
            raise Wrong(shown, "operations such as bedrock-agent-runtime:InvokeAgent")
    return patterns


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _shown(name: str) -> str:
    return repr(shorten(name, 80))
