"""
What a key may do: its own permissions, its user's and its team's, compiled.

See :class:`txbedrock.core.grants.Permissions` for what an operator writes.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import translate
from typing import NamedTuple, TypeVar

from txbedrock.core.addresses import Networks, parse_network
from txbedrock.core.grants import KeyType, Permissions
from txbedrock.core.models import bare_id
from txbedrock.core.operations import Operation
from txbedrock.errors import AccessDenied

__all__ = [
    "DEFAULT",
    "DEFAULT_OPERATIONS",
    "EVERYTHING",
    "ROUTE_GROUPS",
    "Access",
    "parse_model_pattern",
    "parse_operation_pattern",
    "parse_route_pattern",
]

# Note [Who has to allow it]
# --------------------------
# A key, its user and its team are levels. What any of them denies is denied; apart
# from that a request must be allowed by all of them. A level that names nothing of
# a kind (no models, no routes ...) restricts nothing of that kind.
#
# For operations that would be too much: a key of which nobody said anything may do
# the usual and no more. So where no level names operations, DEFAULT_OPERATIONS are
# allowed; where some do, those count as they are written, and the others restrict
# nothing:
#
#     key                  team                 may do
#     -                    -                    the usual
#     bedrock:Converse     -                    bedrock:Converse
#     -                    bedrock:Create*      bedrock:Create*, and nothing usual
#     *                    bedrock:Converse*    bedrock:Converse*
#     default, bedrock:X   -                    the usual and bedrock:X
#     default              bedrock:*            the usual
#
# If an unnamed level stood for the usual instead, a key that is granted X on purpose
# could not do it before its user and its team are granted X as well, and nobody
# could see why. It follows that whoever may write a level's operations may grant
# more than the usual: that is the business of administrators, and not of users who
# make keys of their own. Naming operations replaces the usual, as it does in IAM; the
# word "default" among them stands for it.
#
# Note [Names of operations]
# --------------------------
# An operation is called service:Name, with the service of the SDKs. The prefix may
# also be the one that IAM has, which is the service's signing name: "bedrock" stands
# for bedrock, -runtime, -agent, -agent-runtime and -data-automation(-runtime), and
# "bedrock-agentcore" for -agentcore and -agentcore-control.
#
# IAM does not know all operations: whoever may InvokeModel may Converse, without its
# being written anywhere. We are not IAM, and what is not written is not allowed:
# "bedrock:InvokeModel" does not allow Converse (write both, or "default"). Denying
# is the other way round: who copies a statement that denies bedrock:InvokeModel and
# bedrock:InvokeModelWithResponseStream means all inference, and AWS says that this is
# what it does (User Guide, "Deny access for inference of foundation models").
# Leaving Converse open would be a hole. So in denied_operations, and with IAM's
# prefix only, these two names cover what _AUTHORIZED_BY lists. To deny one operation
# alone, write its service: "bedrock-runtime:InvokeModel".
#
# Note [Names of models]
# ----------------------
# A rule is compared with names that cannot be made up by the client:
#
# - the name of the model group, and an alias that the configuration has for it;
# - Bedrock's ids that would serve the request, with and without their geography
#   (us.anthropic.x is allowed by anthropic.x, not the other way round). All of the
#   group have to be allowed: which of them it will be is not known yet. An ARN is
#   compared as it is: it does not say which model is behind it;
# - if the client named the id itself, LiteLLM's forms of it: bedrock/<id>,
#   <region>/<id>, bedrock/<region>/<id>.
#
# Besides, a rule that is the client's own text, letter by letter, allows it. But a
# pattern is not compared with that text as it comes: of "anthropic.x/arn:aws:..." or
# "bedrock/us-west-2/eu-west-1/..." only the last part counts when it is resolved, and
# what is before it could be anything that a pattern allows. So text with a slash
# counts only where it is a configured name.
#
# A rule bedrock/<id> or bedrock/converse/<id> means that id, also in a group. The rule
# bedrock/* does not mean every group, though all are of Bedrock: it means a group of
# that name, and every id that the client names itself.
#
# Aliases of a key or a team are made by who may not widen what others granted: the
# user of a team that may use "nova" could call "opus" so in a key of its own. Hence
# the name to be checked is the one after these aliases, and a level may only be
# satisfied by its own aliases and those of the levels after it (key, user, team).

DEFAULT = "default"
"""In a list of operations: the usual."""

DEFAULT_OPERATIONS = frozenset(
    {
        # Inference. What a model answers is kept nowhere in the account.
        "bedrock-runtime:Converse",
        "bedrock-runtime:ConverseStream",
        "bedrock-runtime:InvokeModel",
        "bedrock-runtime:InvokeModelWithResponseStream",
        "bedrock-runtime:InvokeModelWithBidirectionalStream",
        "bedrock-runtime:CountTokens",
        "bedrock-runtime:ApplyGuardrail",
        "bedrock-runtime:InvokeGuardrailChecks",
        "bedrock-agent-runtime:GenerateQuery",  # Writes SQL, runs none.
        "bedrock-agent-runtime:OptimizePrompt",
        "bedrock-agent-runtime:Rerank",
        # Knowledge bases, read. The session of RetrieveAndGenerate is Bedrock's own,
        # ends by itself and is none of those that the sessions' API knows.
        "bedrock-agent-runtime:Retrieve",
        "bedrock-agent-runtime:RetrieveAndGenerate",
        "bedrock-agent-runtime:RetrieveAndGenerateStream",
        # The catalogue: which models there are. Claude Code asks for the profiles.
        "bedrock:ListFoundationModels",
        "bedrock:GetFoundationModel",
        "bedrock:ListInferenceProfiles",
        "bedrock:GetInferenceProfile",
    }
)
"""
What a key may call of which nobody said what it may: models and knowledge bases
answer, and the catalogue can be read. Nothing of the AWS account is changed.

Of the runtime services these are left out, although none is called Create:

- ``StartAsyncInvoke``, ``StartFlowExecution``, ``InvokeDataAutomationAsync`` start
  jobs that write to S3; ``InvokeDataAutomation`` may do so, too, and reads any object
  that the gateway's role can read;
- ``InvokeAgent``, ``InvokeInlineAgent``, ``InvokeFlow`` run Lambda functions;
- ``AgenticRetrieveStream`` writes its answer into an AgentCore memory if the request
  names a session;
- ``GetDocumentContent`` hands out whole documents, the two on a document's ACL who
  may read them;
- sessions, agents' memories, flow executions, asynchronous invocations: to read them
  changes nothing, but in the account they are everybody's, so it would show one key
  what another one did. Without being granted to make any, a key has none to read;
- all of ``bedrock-agentcore``: it runs the account's own code, browsers and tools,
  keeps memories, and hands out credentials (``GetResourceApiKey``).
"""

_DEFAULT_CALLS = re.compile(
    # Bedrock keeps a response for 30 days, to be continued by its id, unless the
    # request says store: false. It is inference all the same. To read, cancel or
    # delete one is not usual: all keys share the account's one project.
    rb"POST /openai/v1/(?:chat/completions|responses)"
    rb"|GET /openai/v1/models(?:/[^/]+)?"
    rb"|POST /anthropic/v1/messages(?:/count_tokens)?"
)
"""The same for the routes that take every method: method and path below the prefix.
Files, batches and fine-tuning are not among them."""

_AUTHORIZED_BY = {
    "bedrock-runtime:Converse": ("bedrock:InvokeModel",),
    "bedrock-runtime:ConverseStream": ("bedrock:InvokeModelWithResponseStream",),
    "bedrock-runtime:InvokeModelWithBidirectionalStream": ("bedrock:InvokeModel",),
    "bedrock-runtime:StartAsyncInvoke": ("bedrock:InvokeModel",),
    # Whether it streams is in the body.
    "bedrock-runtime:OpenAI": ("bedrock:InvokeModel", "bedrock:InvokeModelWithResponseStream"),
    "bedrock-runtime:Anthropic": ("bedrock:InvokeModel", "bedrock:InvokeModelWithResponseStream"),
}
"""Operation -> the other names under which IAM authorizes it."""

_RUN_NO_MODEL = re.compile(
    r"(?:Get|List|Search|Delete|BatchDelete|Tag|Untag|Stop|Cancel)[A-Z]\w*"
    r"|ApplyGuardrail|InvokeGuardrailChecks"
)
"""Names of operations that let no model answer, nor choose one for later."""

_ALL_CONFIGURED = "all-proxy-models"
_AS_THE_TEAM = "all-team-models"
_NONE = "no-default-models"
_RESERVED = frozenset({_ALL_CONFIGURED, _AS_THE_TEAM, _NONE})
"""LiteLLM's words in a list of models; never the name of one."""

_GEOGRAPHIES = frozenset({"apac", "au", "ca", "eu", "global", "in", "jp", "us", "us-gov"})
"""Of inference profiles. One that is not known is part of the id."""

_INFO = (
    *(
        f"/{thing}/{what}"
        for thing in ("key", "user", "team", "customer", "end_user", "budget", "tag")
        for what in ("info", "list", "daily/activity")
    ),
    "/audit",
    "/v2/key/info",
    "/key/aliases",
    "/models",
    "/models/*",
    "/v1/models",
    "/v1/models/*",
    "/model/info",
    "/v1/model/info",
    "/v2/model/info",
    "/model_group/info",
    "/health",
    "/health/*",
    "/metrics",
)

_GLOBAL_SPEND = (
    "/global/spend",
    *(
        f"/global/spend/{what}"
        for what in ("logs", "keys", "models", "teams", "users", "end_users", "customers")
    ),
    "/global/spend/tags",
    "/global/spend/all_tag_names",
    "/global/spend/provider",
    "/global/spend/report",
    "/global/activity",
    "/global/activity/*",
)
"""Not ``/global/spend/reset``, which changes something."""

_SPEND = (
    "/spend/calculate",
    "/spend/logs/*",
    *(
        f"/spend/{what}"
        for what in ("logs", "keys", "users", "teams", "customers", "models", "tags")
    ),
)

_BEDROCK_GROUPS = ("llm_api_routes", "mapped_pass_through_routes")
_MANAGEMENT_GROUP = "management_routes"

ROUTE_GROUPS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys((*_BEDROCK_GROUPS, _MANAGEMENT_GROUP), ()),
    "openai_routes": ("{bedrock}/openai/v1/*",),
    "anthropic_routes": ("{bedrock}/anthropic/v1/*",),
    "info_routes": _INFO,
    "spend_tracking_routes": _SPEND + _GLOBAL_SPEND,
    "global_spend_tracking_routes": _GLOBAL_SPEND,
}
"""LiteLLM's names for groups of routes, and the paths in them. ``llm_api_routes`` (and
``mapped_pass_through_routes``) is all that goes to Bedrock, ``management_routes`` all
that does not: they need no paths."""

_MANAGEMENT = frozenset(
    {
        "audit",
        "budget",
        "customer",
        "end_user",
        "global",
        "health",
        "key",
        "metrics",
        "model_group",
        "models",
        "spend",
        "tag",
        "team",
        "user",
        "v1",
        "v2",
    }
)
"""First segments of the management API's paths, for a gateway whose Bedrock has no
prefix. ``/model/info`` is another."""

_READ_ONLY_GROUPS = ("info_routes", "spend_tracking_routes")

_OPERATION = re.compile(r"[A-Za-z0-9*?-]+:[A-Za-z0-9*?]+")

_LONGEST_PATTERN = 2048
"""Characters: Bedrock's own limit for a model id."""

_REMEMBERED = 1024
"""How many decisions of each kind are kept. Clients make up names and paths."""

_REMEMBERED_CHARS = 256
"""Decisions about longer texts are not kept."""

_SHOWN_CHARS = 100
_SHOWN_RULES = 5

_K = TypeVar("_K")


def parse_operation_pattern(text: str, known: Iterable[Operation] = ()) -> None:
    """
    Check an entry of ``operations`` or ``denied_operations``.

    :param known: all operations, to find names that mean none: what denies a
        misspelled name denies nothing.
    :raises ValueError: if it cannot be used; the message says what to write.
    """
    if text in ("*", DEFAULT):
        return
    if len(text) > _LONGEST_PATTERN or _OPERATION.fullmatch(text) is None:
        raise ValueError(
            f"'{_shown(text)}' is no pattern of operations: write service:Name, such as "
            f"bedrock:Converse, bedrock:InvokeModel* or bedrock-agent:Get*; * for all; "
            f"{DEFAULT} for inference and the catalogue of models"
        )
    pattern = _Patterns([text.lower()], "*?")
    operations = tuple(known)
    if operations and not any(
        pattern.matches(name) for one in operations for name in _names_of(one)
    ):
        raise ValueError(
            f"'{_shown(text)}' means no operation of Amazon Bedrock: write its name as the API "
            "reference has it, after a service such as bedrock, bedrock-agent or "
            "bedrock-agentcore"
        )


def parse_model_pattern(text: str) -> None:
    """
    Check an entry of ``models``.

    :raises ValueError: if it cannot be used; the message says what to write.
    """
    if not text.strip() or len(text) > _LONGEST_PATTERN or not text.isprintable():
        raise ValueError(
            f"'{_shown(text)}' is no name of a model: write a model name of this gateway, an id "
            "or ARN of Amazon Bedrock, either with * for any text, or an access group"
        )


def parse_route_pattern(text: str) -> None:
    """
    Check an entry of ``allowed_routes``.

    :raises ValueError: if it cannot be used; the message says what to write.
    """
    if text == "*" or text in ROUTE_GROUPS:
        return
    plain = text.isprintable() and not set(text) & set(" ?#")
    if not text.startswith("/") or len(text) > _LONGEST_PATTERN or not plain:
        raise ValueError(
            f"'{_shown(text)}' is no route: write a path such as /bedrock/model/*/converse or "
            f"/key/info, or one of {', '.join(ROUTE_GROUPS)}"
        )


class Access:
    """
    What a key may do. Every check raises AccessDenied, or returns.

    See Note [Who has to allow it].

    :param permissions: the key's, its user's, its team's, in this order.
    :param access_groups: the configuration's: name -> names of model groups. In a
        list of models such a name is the group, and never a model.
    :param type: the key's.
    :param aliases: of models, of the key, its user, its team: of each of
        ``permissions``, in the same order. May be left out if there are none.
    :param route_prefix: where Bedrock's routes are: ``/bedrock``, or empty.
    :raises ValueError: if a pattern cannot be used, see :func:`parse_operation_pattern`,
        :func:`parse_model_pattern`, :func:`parse_route_pattern` and
        :func:`~txbedrock.core.addresses.parse_network`.
    """

    def __init__(
        self,
        permissions: Sequence[Permissions],
        access_groups: Mapping[str, frozenset[str]],
        type: KeyType = KeyType.DEFAULT,
        *,
        aliases: Sequence[Mapping[str, str]] = (),
        route_prefix: str = "/bedrock",
    ) -> None:
        self._type = type
        self._prefix = route_prefix.rstrip("/")
        self._operations = [
            _OperationRules(level.operations) for level in permissions if level.operations
        ] or [_USUAL]
        self._denied = [
            (text, _OperationRules((text,)))
            for level in permissions
            for text in level.denied_operations
        ]
        self._models = [
            _ModelRules(level.models, access_groups, ChainMap(*map(dict, aliases[number:])))
            for number, level in enumerate(permissions)
            if level.models and not {"*", _AS_THE_TEAM} & set(level.models)
        ]
        self._routes = [
            _RouteRules(level.allowed_routes, self._prefix)
            for level in permissions
            if level.allowed_routes
        ]
        self._reading = (
            _RouteRules(_READ_ONLY_GROUPS, self._prefix) if type is KeyType.READ_ONLY else None
        )
        self._networks = [
            Networks(parse_network(text) for text in level.allowed_ips)
            for level in permissions
            if level.allowed_ips
        ]
        self.restricts_addresses = bool(self._networks)
        """Are there addresses from which it may not be used?"""

        self.restricts_routes = bool(self._routes) or type is not KeyType.DEFAULT
        """Are there paths that may not be asked for?"""

        self.restricts_models = bool(self._models)
        """Are there models that may not be used? Then nothing may be asked of one
        that the gateway does not see: :meth:`check_unseen_model`."""

        # What was found, as a refusal: empty if it is allowed.
        self._operation_refusals: dict[tuple[str, str, bytes, bytes], str] = {}
        self._model_refusals: dict[tuple[str, str, tuple[str, ...]], str] = {}
        self._route_refusals: dict[str, str] = {}

    def check_operation(
        self, operation: Operation, method: bytes = b"", raw_path: bytes = b""
    ) -> None:
        """
        :param method: of the request; without it and the path, the routes that take
            every method (``/openai/v1/``, ``/anthropic/v1/``) are not usual.
        :param raw_path: below the prefix, as in :class:`~txbedrock.core.operations.Match`.
        """
        refusal = self._operation_refusal(operation, method, raw_path)
        if refusal:
            raise AccessDenied(refusal)

    def check_model(self, label: str, model_name: str, model_ids: Sequence[str]) -> None:
        """
        See Note [Names of models].

        :param label: the name that was resolved, percent-decoded: what the client
            said, after the aliases of its key and its team.
        :param model_name: the model group; empty for an id of Bedrock's own.
        :param model_ids: Bedrock's ids that would serve it.
        """
        refusal = self._model_refusal(label, model_name, model_ids)
        if refusal:
            raise AccessDenied(refusal)

    def allows_model(self, label: str, model_name: str, model_ids: Sequence[str]) -> bool:
        """The same as :meth:`check_model`, to list what there is."""
        return not self._model_refusal(label, model_name, model_ids)

    def check_unseen_model(self, operation: Operation, method: bytes = b"") -> None:
        """
        For a request of which the gateway knows no model: where models are restricted,
        only what surely lets none answer is allowed, such as reading and deleting.

        :param method: of the request, for the routes that take every method.
        """
        if not self._models or _RUN_NO_MODEL.fullmatch(operation.name) is not None:
            return
        if operation.method == "*" and method in (b"GET", b"HEAD", b"DELETE"):
            return
        raise AccessDenied(
            f"This key may only use some models, and the gateway does not see which one "
            f"{_called(operation)} would use, if any. {self._models[0].shown()} "
            "Ask an administrator of this gateway for a key without a list of models."
        )

    def check_route(self, path: str) -> None:
        """
        :param path: all of it as the client sees it, percent-decoded, without the query:
            ``/bedrock/model/x/converse``, ``/key/info``. A ``*`` in a rule is any text,
            with slashes: which models may be used is not for routes to say.
        """
        if not self.restricts_routes:
            return
        refusal = self._route_refusals.get(path)
        if refusal is None:
            refusal = self._judge_route(path)
            if len(path) <= _REMEMBERED_CHARS:
                _remember(self._route_refusals, path, refusal)
        if refusal:
            raise AccessDenied(refusal)

    def check_address(self, address: str) -> None:
        """
        :param address: of the client, as from
            :func:`~txbedrock.core.addresses.client_address`. What is none is in no network.
        """
        for networks in self._networks:
            if not networks.contains(address):
                # Not where it may come from: whoever found the key need not know.
                raise AccessDenied(
                    f"This key may not be used from '{_shown(address)}'. Ask an administrator "
                    "of this gateway to add that address to its allowed_ips."
                )

    def _operation_refusal(self, operation: Operation, method: bytes, raw_path: bytes) -> str:
        if operation.method != "*":
            method = raw_path = b""
        key = (operation.service, operation.name, method, raw_path)
        refusal = self._operation_refusals.get(key)
        if refusal is None:
            refusal = self._judge_operation(operation, method + b" " + raw_path)
            if len(raw_path) <= _REMEMBERED_CHARS:
                _remember(self._operation_refusals, key, refusal)
        return refusal

    def _judge_operation(self, operation: Operation, call: bytes) -> str:
        called = _called(operation)
        for text, rules in self._denied:
            if rules.deny(operation, call):
                return (
                    f'This key may not call {called}: denied_operations has "{text}". '
                    "Ask an administrator of this gateway to change that."
                )
        for rules in self._operations:
            if rules.allow(operation, call):
                continue
            if rules is not _USUAL:
                return (
                    f"This key may not call {called}. It may call: {_listed(rules.written)}. Ask "
                    f'an administrator of this gateway to add "{called}" to its operations.'
                )
            what = called
            if operation.method == "*":
                what = f"{_shown(call.decode('ascii', 'replace').strip())} ({called})".lstrip()
            return (
                f"This key may not call {what}. It may call what only infers, reads knowledge "
                "bases or lists models. Ask an administrator of this gateway to allow it with "
                f'operations: ["{DEFAULT}", "{called}"].'
            )
        return ""

    def _model_refusal(self, label: str, model_name: str, model_ids: Sequence[str]) -> str:
        if not self._models:
            return ""
        key = (label, model_name, tuple(model_ids))
        refusal = self._model_refusals.get(key)
        if refusal is None:
            refusal = self._judge_model(_asked(*key))
            if len(label) <= _REMEMBERED_CHARS:
                _remember(self._model_refusals, key, refusal)
        return refusal

    def _judge_model(self, asked: _Asked) -> str:
        for rules in self._models:
            if not rules.allow(asked):
                return (
                    f"This key may not use the model '{_shown(asked.label)}'. {rules.shown()} "
                    "Ask an administrator of this gateway to add it to its models."
                )
        return ""

    def _judge_route(self, path: str) -> str:
        bedrock = self._is_bedrock(path)
        shown = _shown(path)
        if not {".", ".."}.isdisjoint(path.split("/")):
            return f"The path {shown} must not hold the segments '.' and '..'."
        if bedrock and self._type in (KeyType.MANAGEMENT, KeyType.READ_ONLY):
            return (
                f"This key is of the type {self._type.value}: it is for the management API and "
                f"may not call Amazon Bedrock at {shown}. Use a key of the type "
                f"{KeyType.LLM_API.value} or {KeyType.DEFAULT.value}."
            )
        if not bedrock and self._type is KeyType.LLM_API:
            return (
                f"This key is of the type {self._type.value}: it is for Amazon Bedrock and may "
                f"not use the management API at {shown}. Use a key of the type "
                f"{KeyType.MANAGEMENT.value} or {KeyType.DEFAULT.value}."
            )
        if self._reading is not None and not self._reading.allow(path, bedrock):
            return (
                f"This key is of the type {self._type.value}: it may read information and spend, "
                f"and not use {shown}. Use a key of the type {KeyType.MANAGEMENT.value} or "
                f"{KeyType.DEFAULT.value}."
            )
        for rules in self._routes:
            if not rules.allow(path, bedrock):
                return (
                    f"This key may not use the route {shown}. It may use: "
                    f"{_listed(rules.written)}. Ask an administrator of this gateway to add it "
                    "to its allowed_routes."
                )
        return ""

    def _is_bedrock(self, path: str) -> bool:
        if self._prefix:
            return path == self._prefix or path.startswith(f"{self._prefix}/")
        first, _, rest = path[1:].partition("/")
        # /model/{modelId}/converse is Bedrock's, /model/info is not.
        return "/" in rest if first == "model" else first not in _MANAGEMENT


class _Patterns:
    """
    Texts to be matched, of which some have wildcards.

    :param wildcards: ``*`` is any text, ``?`` one character.
    """

    __slots__ = ("_exact", "_wild")

    def __init__(self, texts: Iterable[str], wildcards: str = "*") -> None:
        exact, wild = set(), []
        for text in texts:
            if not set(wildcards) & set(text):
                exact.add(text)
                continue
            # fnmatch's patterns have no backtracking that a long name could provoke.
            pattern = text.replace("[", "[[]")
            wild.append(pattern if "?" in wildcards else pattern.replace("?", "[?]"))
        self._exact = frozenset(exact)
        self._wild = tuple(re.compile(translate(pattern)).match for pattern in wild)

    def matches(self, text: str) -> bool:
        return text in self._exact or any(match(text) for match in self._wild)


class _OperationRules:
    """What one level says of operations, see Note [Names of operations]."""

    def __init__(self, written: tuple[str, ...]) -> None:
        for text in written:
            parse_operation_pattern(text)
        self.written = written
        self._default = DEFAULT in written
        self._patterns = _Patterns(
            (text.lower() for text in written if text != DEFAULT), wildcards="*?"
        )

    def allow(self, operation: Operation, call: bytes) -> bool:
        """:param call: method and path, for the routes that take every method."""
        if self._default and _is_usual(operation, call):
            return True
        return any(map(self._patterns.matches, _names_of(operation)))

    def deny(self, operation: Operation, call: bytes) -> bool:
        return self.allow(operation, call) or any(
            self._patterns.matches(name.lower())
            for name in _AUTHORIZED_BY.get(_called(operation), ())
        )


class _Asked(NamedTuple):
    """A model, as far as a client asks for it."""

    label: str
    model_name: str
    names: tuple[str, ...]
    """Besides the ids, what patterns may be compared with."""

    ids: tuple[tuple[str, ...], ...]
    """Each with its forms."""


def _asked(label: str, model_name: str, model_ids: tuple[str, ...]) -> _Asked:
    """See Note [Names of models]."""
    names = [model_name] if model_name else []
    before, wildcard, _ = model_name.partition("*")
    if (model_name and not wildcard) or "/" not in label.removeprefix(before):
        names.append(label)
    ids = tuple(map(_forms, model_ids))
    bare, region = bare_id(label)
    if model_ids and all(model_id == bare for model_id in model_ids):
        places = ["bedrock/", f"{region}/", f"bedrock/{region}/"] if region else ["bedrock/"]
        names += [f"{place}{form}" for place in places for form in _forms(bare)]
    return _Asked(label, model_name, tuple(names), ids)


def _forms(model_id: str) -> tuple[str, ...]:
    """An id, and the same without its geography."""
    geography, _, rest = model_id.partition(".")
    return (model_id, rest) if geography in _GEOGRAPHIES and "." in rest else (model_id,)


class _ModelRules:
    """
    What one level says of models.

    :param aliases: its own, and those of the levels after it.
    """

    def __init__(
        self,
        written: tuple[str, ...],
        access_groups: Mapping[str, frozenset[str]],
        aliases: Mapping[str, str],
    ) -> None:
        for text in written:
            parse_model_pattern(text)
        self._written = written
        self._configured = _ALL_CONFIGURED in written
        self._groups = {name for text in written for name in access_groups.get(text, ())}
        names = [text for text in written if text not in _RESERVED and text not in access_groups]
        self._names = _Patterns(names)
        self._ids = _Patterns([*names, *filter(None, map(_id_of_rule, names))])
        # What the client may have said, letter by letter; and what it said by an alias.
        self._said = set(names)
        while True:
            meant = {
                target
                for alias, target in aliases.items()
                if alias in self._said or self._names.matches(alias)
            }
            if meant <= self._said:
                break
            self._said |= meant

    def allow(self, asked: _Asked) -> bool:
        return (
            asked.label in self._said
            or (asked.model_name != "" and self._configured)
            or asked.model_name in self._groups
            or any(map(self._names.matches, asked.names))
            or (asked.ids != () and all(any(map(self._ids.matches, one)) for one in asked.ids))
        )

    def shown(self) -> str:
        """What may be used, as a sentence."""
        return f"It may use: {_listed(self._written)}."


def _id_of_rule(text: str) -> str:
    """
    The id that a rule in LiteLLM's style means, also in a group; or an empty string.
    """
    bare, region = bare_id(text)
    if bare == text or region or not bare.strip("*"):
        return ""
    return bare if "/" not in bare or bare.startswith("arn:") else ""


class _RouteRules:
    """What one level says of routes."""

    def __init__(self, written: tuple[str, ...], prefix: str) -> None:
        for text in written:
            parse_route_pattern(text)
        self.written = written
        self._bedrock = any(group in written for group in _BEDROCK_GROUPS)
        self._management = _MANAGEMENT_GROUP in written
        self._patterns = _Patterns(
            path.replace("{bedrock}", prefix)
            for text in written
            for path in ROUTE_GROUPS.get(text, (text,))
        )

    def allow(self, path: str, bedrock: bool) -> bool:
        return (self._bedrock if bedrock else self._management) or self._patterns.matches(path)


def _is_usual(operation: Operation, call: bytes) -> bool:
    if operation.method == "*":
        return _DEFAULT_CALLS.fullmatch(call) is not None
    return _called(operation) in DEFAULT_OPERATIONS


def _called(operation: Operation) -> str:
    """What an operation is called in messages, and in the tables of this module."""
    return f"{operation.service}:{operation.name}"


def _names_of(operation: Operation) -> tuple[str, str]:
    """What patterns are compared with, in lower case: IAM makes no difference."""
    name = operation.name.lower()
    return f"{operation.service}:{name}", f"{operation.signing_name}:{name}"


def _remember(refusals: dict[_K, str], key: _K, refusal: str) -> None:
    if len(refusals) >= _REMEMBERED:
        del refusals[next(iter(refusals))]
    refusals[key] = refusal


def _shown(text: str) -> str:
    """What somebody sent, fit to be shown: short, printable."""
    short = text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."
    return "".join(char if char.isprintable() else "?" for char in short)


def _listed(texts: Sequence[str]) -> str:
    """Some of what a level allows."""
    more = len(texts) - _SHOWN_RULES
    shown = ", ".join(map(_shown, texts[:_SHOWN_RULES]))
    return f"{shown} and {more} more" if more > 0 else shown


_USUAL = _OperationRules((DEFAULT,))
"""Of whoever has no rules of operations."""

EVERYTHING = Access((Permissions(operations=("*",)),), {})
"""Of the master key, and of no key at all."""
