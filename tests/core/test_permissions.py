"""
What a key may do.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core import permissions
from txbedrock.core.deployments import Deployment
from txbedrock.core.grants import KeyType, Permissions
from txbedrock.core.models import Models
from txbedrock.core.operations import Operation, Operations
from txbedrock.core.permissions import (
    DEFAULT_OPERATIONS,
    EVERYTHING,
    ROUTE_GROUPS,
    Access,
    parse_model_pattern,
    parse_operation_pattern,
    parse_route_pattern,
)
from txbedrock.data import load
from txbedrock.errors import AccessDenied, ProxyError

OPERATIONS = Operations(load("operations"))
BY_NAME = {f"{one.service}:{one.name}": one for one in OPERATIONS}

USUAL = {
    "bedrock-runtime:ApplyGuardrail",
    "bedrock-runtime:Converse",
    "bedrock-runtime:ConverseStream",
    "bedrock-runtime:CountTokens",
    "bedrock-runtime:InvokeGuardrailChecks",
    "bedrock-runtime:InvokeModel",
    "bedrock-runtime:InvokeModelWithBidirectionalStream",
    "bedrock-runtime:InvokeModelWithResponseStream",
    "bedrock-agent-runtime:GenerateQuery",
    "bedrock-agent-runtime:OptimizePrompt",
    "bedrock-agent-runtime:Rerank",
    "bedrock-agent-runtime:Retrieve",
    "bedrock-agent-runtime:RetrieveAndGenerate",
    "bedrock-agent-runtime:RetrieveAndGenerateStream",
    "bedrock:GetFoundationModel",
    "bedrock:GetInferenceProfile",
    "bedrock:ListFoundationModels",
    "bedrock:ListInferenceProfiles",
}

CALLS = (
    # method, path, usual
    ("POST", "/openai/v1/chat/completions", True),
    ("POST", "/openai/v1/responses", True),
    ("GET", "/openai/v1/models", True),
    ("GET", "/openai/v1/models/openai.gpt-oss-120b-1%3A0", True),
    ("POST", "/anthropic/v1/messages", True),
    ("POST", "/anthropic/v1/messages/count_tokens", True),
    ("GET", "/openai/v1/chat/completions", False),
    ("DELETE", "/openai/v1/chat/completions", False),
    ("HEAD", "/openai/v1/models", False),
    ("POST", "/openai/v1/models", False),
    ("DELETE", "/openai/v1/models/ft%3Ax", False),
    ("GET", "/openai/v1/models/", False),
    ("GET", "/openai/v1/models/x/permissions", False),
    ("GET", "/openai/v1/responses/resp_1", False),
    ("DELETE", "/openai/v1/responses/resp_1", False),
    ("POST", "/openai/v1/responses/resp_1/cancel", False),
    ("POST", "/openai/v1/responses/", False),
    ("POST", "/openai/v1/chat/completions/x", False),
    ("POST", "/openai/v1/chat%2Fcompletions", False),
    ("POST", "/openai/v1/files", False),
    ("POST", "/openai/v1/batches", False),
    ("POST", "/openai/v1/fine_tuning/jobs", False),
    ("POST", "/openai/v1/vector_stores", False),
    ("POST", "/openai/v2/chat/completions", False),
    ("POST", "/anthropic/v1/messages/batches", False),
    ("DELETE", "/anthropic/v1/messages", False),
    ("POST", "/anthropic/v1/files", False),
    ("POST", "/anthropic/v1/responses", False),
    ("POST", "/openai/v1/messages", False),
)


def operation(name: str) -> Operation:
    return BY_NAME[name]


def levels(*operations: str) -> list[Permissions]:
    """One level each, its patterns with spaces between them."""
    return [Permissions(operations=tuple(each.split())) for each in operations]


def refusal(check: Callable[..., None], *request: object) -> str:
    """Why something is denied; empty if it is allowed."""
    try:
        check(*request)
    except AccessDenied as error:
        return error.message
    return ""


def may_call(access: Access, *call: object) -> bool:
    """Whether an operation is allowed, by the method and path of a request where they matter."""
    return not refusal(access.check_operation, *call)


def allowed_names(access: Access) -> set[str]:
    return {name for name, one in BY_NAME.items() if may_call(access, one)}


class UsualTests(SynchronousTestCase):
    """What a key may call of which nobody said what it may."""

    keys = (
        Access((), {}),
        Access([Permissions()], {}),
        Access([Permissions(), Permissions(models=("x",)), Permissions()], {}),
        Access(levels("default"), {}),
        Access(levels("default", "", "*"), {}),
    )

    def test_every_operation(self) -> None:
        """Of all operations of all services exactly these."""
        self.assertEqual(len(BY_NAME), 523 + 2)
        for access in self.keys:
            self.assertEqual(sorted(allowed_names(access)), sorted(USUAL))

    def test_table_names_operations(self) -> None:
        """No name in the module's tables is misspelled."""
        self.assertLessEqual(DEFAULT_OPERATIONS, set(BY_NAME))
        self.assertLessEqual(set(permissions._AUTHORIZED_BY), set(BY_NAME))

    def test_changes_nothing(self) -> None:
        """By its verb and its method, nothing usual changes the account."""
        verbs = {re.findall("[A-Z][a-z]+", BY_NAME[name].name)[0] for name in USUAL}
        reading = {"Get", "List", "Retrieve"}
        inferring = {"Apply", "Converse", "Count", "Generate", "Invoke", "Optimize", "Rerank"}
        self.assertEqual(verbs - reading - inferring, set())
        for name in USUAL:
            one = BY_NAME[name]
            self.assertIn(one.method, ("GET", "POST"), name)
            if one.service == "bedrock":
                self.assertEqual(one.method, "GET", name)
            else:
                self.assertIn(one.service, ("bedrock-runtime", "bedrock-agent-runtime"), name)
            # An agent, a flow, a harness ... does more than to answer.
            self.assertNotRegex(one.name, "Invoke(?!Model|GuardrailChecks)", name)

    def test_no_other_method(self) -> None:
        """What is put, patched or deleted is not usual, in whatever service."""
        for name, one in BY_NAME.items():
            if one.method in ("PUT", "PATCH", "DELETE"):
                self.assertFalse(may_call(self.keys[0], one), name)

    def test_prefix_routes(self) -> None:
        """Of OpenAI's and Anthropic's paths those that infer, and the list of models."""
        for access in self.keys:
            for method, path, usual in CALLS:
                one = operation(f"bedrock-runtime:{'OpenAI' if 'openai' in path else 'Anthropic'}")
                found = may_call(access, one, method.encode(), path.encode())
                self.assertEqual(found, usual, (method, path))
                # The same again, from memory.
                found = may_call(access, one, method.encode(), path.encode())
                self.assertEqual(found, usual, (method, path))

    def test_prefix_routes_match(self) -> None:
        """The paths of that table are what the table of operations makes of a request."""
        for method, path, _ in CALLS:
            if "/v1/" in path and not path.startswith("/openai/v2"):
                match = OPERATIONS.match(method.encode(), path.encode())
                self.assertEqual((match.operation.method, match.raw_path), ("*", path.encode()))

    def test_prefix_route_unseen(self) -> None:
        """Who does not say which method and path gets no benefit of the doubt."""
        for name in ("bedrock-runtime:OpenAI", "bedrock-runtime:Anthropic"):
            self.assertFalse(may_call(self.keys[0], operation(name)))

    def test_everything(self) -> None:
        """The master key may call all, the prefix routes by every method included."""
        self.assertEqual(allowed_names(EVERYTHING), set(BY_NAME))
        for one in OPERATIONS:
            EVERYTHING.check_operation(one, b"DELETE", b"/openai/v1/files/x")
        self.assertFalse(EVERYTHING.restricts_models)
        EVERYTHING.check_model("anything", "", ["any.thing"])
        EVERYTHING.check_unseen_model(operation("bedrock-agent-runtime:InvokeAgent"))
        EVERYTHING.check_route("/bedrock/agents/x")
        EVERYTHING.check_route("/key/generate")
        EVERYTHING.check_address("-")


class OperationTests(SynchronousTestCase):
    """Patterns of operations in IAM's manner."""

    def check(self, patterns: str, expected: Mapping[str, bool]) -> None:
        for allows, access in (
            (True, Access(levels(patterns), {})),
            (
                False,
                Access(
                    [Permissions(operations=("*",), denied_operations=tuple(patterns.split()))], {}
                ),
            ),
        ):
            for name, matches in expected.items():
                found = may_call(access, operation(name))
                self.assertEqual(found, matches is allows, (patterns, name, allows))

    def test_patterns(self) -> None:
        """``*`` and ``?``, in any case, allow and deny what they match."""
        for patterns, expected in (
            ("bedrock-runtime:CountTokens", {"bedrock-runtime:CountTokens": True,
                                             "bedrock-runtime:Converse": False}),
            ("bedrock:CountTokens", {"bedrock-runtime:CountTokens": True}),
            ("BEDROCK:counttokens", {"bedrock-runtime:CountTokens": True}),
            ("bedrock:Count*", {"bedrock-runtime:CountTokens": True}),
            ("bedrock:*Tokens", {"bedrock-runtime:CountTokens": True}),
            ("bedrock:*T*", {"bedrock-runtime:CountTokens": True,
                             "bedrock-agent:ListFlows": True,
                             "bedrock-runtime:Converse": False}),
            ("bedrock:CountToken?", {"bedrock-runtime:CountTokens": True}),
            ("bedrock:CountTokens?", {"bedrock-runtime:CountTokens": False}),
            ("bedrock-r?ntime:Count*", {"bedrock-runtime:CountTokens": True}),
            ("bedrock-agent:Get*", {"bedrock-agent:GetAgent": True,
                                    "bedrock-agent:ListAgents": False,
                                    "bedrock-agent-runtime:GetSession": False,
                                    "bedrock:GetGuardrail": False}),
            ("bedrock:Get*", {"bedrock:GetGuardrail": True,
                              "bedrock-agent:GetAgent": True,
                              "bedrock-agent-runtime:GetSession": True,
                              "bedrock-data-automation:GetBlueprint": True,
                              "bedrock-agentcore:GetABTest": False}),
            ("bedrock-agentcore:*", {"bedrock-agentcore:GetABTest": True,
                                     "bedrock-agentcore-control:CreateMemory": True,
                                     "bedrock-agent:GetAgent": False}),
            ("bedrock-agentcore-control:*", {"bedrock-agentcore-control:CreateMemory": True,
                                             "bedrock-agentcore:GetABTest": False}),
            ("bedrock-agent*:List*", {"bedrock-agent:ListAgents": True,
                                      "bedrock-agent-runtime:ListSessions": True,
                                      "bedrock-agentcore:ListEvents": True,
                                      "bedrock:ListGuardrails": False}),
            ("*:Rerank", {"bedrock-agent-runtime:Rerank": True,
                          "bedrock-agent-runtime:Retrieve": False}),
            ("bedrock:Rerank bedrock:Retrieve", {"bedrock-agent-runtime:Rerank": True,
                                                 "bedrock-agent-runtime:Retrieve": True,
                                                 "bedrock-agent-runtime:GenerateQuery": False}),
            ("default", {"bedrock-runtime:CountTokens": True, "bedrock:CreateGuardrail": False}),
        ):  # fmt: skip
            self.check(patterns, expected)

    def test_all(self) -> None:
        """``*`` and ``*:*`` are all operations of all services."""
        for patterns in ("*", "*:*", "bedrock*:*", "bedrock:* bedrock-agentcore:*"):
            self.assertEqual(allowed_names(Access(levels(patterns), {})), set(BY_NAME), patterns)

    def test_levels(self) -> None:
        """All that name operations have to allow one; see Note [Who has to allow it]."""
        converse = {"bedrock-runtime:Converse"}
        guardrails = {name for name in BY_NAME if name.startswith("bedrock:CreateGuardrail")}
        self.assertEqual(len(guardrails), 2)
        for given_levels, expected in (
            (("bedrock:Converse", "", ""), converse),
            (("", "bedrock:Converse", ""), converse),
            (("", "", "bedrock:CreateGuardrail*"), guardrails),
            (("*", "", "bedrock:Converse"), converse),
            (("bedrock:Converse*", "*", "bedrock:Converse bedrock:Rerank"), converse),
            (("bedrock:Converse", "bedrock:Rerank", ""), set()),
            (("default bedrock:CreateGuardrail*", "", ""), {*USUAL, *guardrails}),
            (("default", "", "bedrock:*"), USUAL),
            (("*", "default", "bedrock:Converse"), converse),
        ):
            self.assertEqual(allowed_names(Access(levels(*given_levels), {})), expected)

    def test_denied(self) -> None:
        """What one level denies is denied, whoever allows it."""
        guardrail = operation("bedrock-runtime:ApplyGuardrail")
        for one in range(3):
            named = [Permissions(operations=("*",)) for _ in range(3)]
            named[one] = replace_denied(named[one], "bedrock:ApplyGuardrail")
            self.assertFalse(may_call(Access(named, {}), guardrail))
            usual = [Permissions() for _ in range(3)]
            usual[one] = replace_denied(usual[one], "bedrock:ApplyGuardrail")
            # Denying is no naming: the rest of the usual stays, and not more.
            self.assertEqual(
                allowed_names(Access(usual, {})), USUAL - {"bedrock-runtime:ApplyGuardrail"}
            )

    def test_allowing_as_iam_authorizes(self) -> None:
        """To allow InvokeModel does not allow Converse without its being written."""
        allowed = allowed_names(Access(levels("bedrock:InvokeModel"), {}))
        self.assertEqual(allowed, {"bedrock-runtime:InvokeModel"})

    def test_denying_as_iam_authorizes(self) -> None:
        """To deny InvokeModel under IAM's prefix denies what IAM authorizes by it."""
        streaming = {"ConverseStream", "InvokeModelWithResponseStream", "OpenAI", "Anthropic"}
        plain = {"Converse", "InvokeModel", "StartAsyncInvoke", "OpenAI", "Anthropic"}
        plain.add("InvokeModelWithBidirectionalStream")
        for denied, expected in (
            ("bedrock:InvokeModel", plain),
            ("Bedrock:invokemodel", plain),
            ("bedrock:InvokeModelWithResponseStream", streaming),
            ("bedrock:InvokeModel*", plain | streaming),
            ("bedrock:*Model", plain),
            ("bedrock-runtime:InvokeModel", {"InvokeModel"}),
            ("bedrock-runtime:InvokeModelWithResponseStream", {"InvokeModelWithResponseStream"}),
            ("bedrock:Converse", {"Converse"}),
        ):
            access = Access(
                [Permissions(operations=("bedrock-runtime:*",), denied_operations=(denied,))], {}
            )
            runtime = {name for name in BY_NAME if name.startswith("bedrock-runtime:")}
            found = {name.partition(":")[2] for name in runtime - allowed_names(access)}
            self.assertEqual(found, expected, denied)

    def test_messages(self) -> None:
        """A refusal says what was denied, what may be done, and what to ask for."""
        guardrail = operation("bedrock:CreateGuardrail")
        openai = operation("bedrock-runtime:OpenAI")
        for access, call, expected in (
            (Access((), {}), (guardrail,),
             ("may not call bedrock:CreateGuardrail.", "only infers",
              'Ask an administrator', 'operations: ["default", "bedrock:CreateGuardrail"]')),
            (Access((), {}), (openai, b"POST", b"/openai/v1/files"),
             ("may not call POST /openai/v1/files (bedrock-runtime:OpenAI).",
              'operations: ["default", "bedrock-runtime:OpenAI"]')),
            (Access((), {}), (openai,), ("may not call (bedrock-runtime:OpenAI).",)),
            (Access(levels("bedrock:Converse default"), {}), (guardrail,),
             ("It may call: bedrock:Converse, default.",
              'add "bedrock:CreateGuardrail" to its operations')),
            (Access(levels("bedrock:A* bedrock:B* bedrock:D* bedrock:E* bedrock:F* bedrock:G*"),
                    {}), (guardrail,), ("bedrock:F* and 1 more.",)),
            (Access([Permissions(operations=("*",), denied_operations=("bedrock:Cr*",))], {}),
             (guardrail,), ('denied_operations has "bedrock:Cr*"', "administrator")),
            (Access([Permissions(denied_operations=("bedrock:InvokeModel",))], {}),
             (operation("bedrock-runtime:Converse"),),
             ("may not call bedrock-runtime:Converse", '"bedrock:InvokeModel"')),
        ):  # fmt: skip
            found = refusal(access.check_operation, *call)
            for part in expected:
                self.assertIn(part, found)

    def test_message_is_true(self) -> None:
        """What a refusal says to write allows it, and takes nothing away."""
        for name in set(BY_NAME) - USUAL:
            said = refusal(Access((), {}).check_operation, operation(name))
            patterns = re.findall('"([^"]+)"', said)
            found = allowed_names(Access(levels(" ".join(patterns)), {}))
            self.assertLessEqual({*USUAL, name}, found)
            # The name of a service that is IAM's prefix, too, means all with that prefix.
            verb = BY_NAME[name].name
            self.assertLessEqual({BY_NAME[one].name for one in found - USUAL}, {verb})
            if BY_NAME[name].service != BY_NAME[name].signing_name:
                self.assertEqual(found, {*USUAL, name})

    def test_refused_each_time(self) -> None:
        """A decision that is remembered is the same, in an exception of its own."""
        access = Access((), {})
        found = []
        for _ in range(2):
            with self.assertRaises(AccessDenied) as caught:
                access.check_operation(operation("bedrock:CreateGuardrail"))
            found.append(caught.exception)
        self.assertEqual(found[0].message, found[1].message)
        self.assertIsNot(found[0], found[1])

    @settings(deadline=None, max_examples=300)
    @given(
        pattern=st.text("abA*?", min_size=1, max_size=8),
        name=st.text("abA", min_size=1, max_size=8),
    )
    def test_wildcards(self, pattern: str, name: str) -> None:
        """Patterns match as a plain definition of wildcards says."""
        one = replace(operation("bedrock:CreateGuardrail"), name=name)
        found = may_call(Access(levels(f"bedrock:{pattern}"), {}), one)
        self.assertEqual(found, glob(pattern.lower(), name.lower()), (pattern, name))

    def test_hostile_pattern(self) -> None:
        """A pattern that somebody made to be slow is not."""
        started = time.monotonic()
        access = Access(
            [
                Permissions(
                    operations=("bedrock:" + "*e*" * 300 + "q",),
                    models=("*a" * 900 + "*c",),
                    allowed_routes=("/" + "*a" * 900 + "*c",),
                )
            ],
            {},
        )
        self.assertEqual(allowed_names(access), set())
        self.assertNotEqual(refusal(access.check_model, "a" * 2048 + "b", "g", ["x"]), "")
        self.assertNotEqual(refusal(access.check_route, "/" + "a" * 20_000 + "b"), "")
        self.assertLess(time.monotonic() - started, 5)


def glob(pattern: str, text: str) -> bool:
    """Whether a pattern with ``*`` and ``?`` matches all of a text, by definition."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(glob(pattern[1:], text[start:]) for start in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and glob(pattern[1:], text[1:])


def replace_denied(level: Permissions, *denied: str) -> Permissions:
    return Permissions(operations=level.operations, denied_operations=denied)


ACCOUNT = "arn:aws:bedrock:us-east-1:123456789012"
PROFILE = f"{ACCOUNT}:application-inference-profile/a1b2"
FOUNDATION = "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-opus-4"


def deployment(name: str, model_id: str) -> Deployment:
    return Deployment(name, name, model_id, "us-east-1", region_from_model=not name)


CONFIGURED = Models(
    [
        deployment("sonnet", "us.anthropic.claude-sonnet-4"),
        deployment("sonnet", "eu.anthropic.claude-sonnet-4"),
        deployment("opus", "us.anthropic.claude-opus-4"),
        deployment("mixed", "us.anthropic.claude-sonnet-4"),
        deployment("mixed", "us.anthropic.claude-opus-4"),
        deployment("nova", "amazon.nova-lite-v1:0"),
        deployment("tuned", PROFILE),
        deployment("team/one", "us.anthropic.claude-opus-4"),
        deployment("us.meta.llama-4", "us.meta.llama-4"),
        deployment("claude-*", "us.anthropic.claude-*"),
        deployment("any-*", "us.anthropic.claude-opus-4"),
        deployment("direct/*", "*"),
    ],
    {
        "best": "opus",
        "a/b": "nova",
        "raw": "us.anthropic.claude-haiku-4",
        "family": "claude-haiku-4",
    },
    deployment("", "*"),
)
"""A configuration without a group ``bedrock/*``: ids of Bedrock's own go to the default."""

PASSING = Models([deployment("bedrock/*", "*"), deployment("opus", "anthropic.opus")], {}, None)
CATCHING = Models([deployment("*", "*"), deployment("opus", "anthropic.opus")], {}, None)


def asked(label: str, models: Models = CONFIGURED) -> tuple[str, str, list[str]]:
    """What the gateway checks when a client says a name."""
    found = models.resolve(label)
    return label, found.model_name, [choice.model_id for choice in found.choices]


def may_use(access: Access, label: str, models: Models = CONFIGURED) -> bool:
    found = access.allows_model(*asked(label, models))
    # From memory, and by the other method.
    assert access.allows_model(*asked(label, models)) == found
    assert (refusal(access.check_model, *asked(label, models)) == "") == found
    return found


def with_models(*models: str) -> Access:
    """One level each, its rules with spaces between them."""
    return Access(
        [Permissions(models=tuple(each.split())) for each in models],
        {"cheap": frozenset({"nova", "sonnet"}), "all-claude": frozenset({"claude-*"})},
    )


class ModelTests(SynchronousTestCase):
    """Which models a key may use."""

    def check(
        self, rules: str, allowed: str = "", denied: str = "", models: Models = CONFIGURED
    ) -> None:
        access = with_models(rules)
        for label in allowed.split():
            self.assertTrue(may_use(access, label, models), (rules, label))
        for label in denied.split():
            self.assertFalse(may_use(access, label, models), (rules, label))

    def test_unrestricted(self) -> None:
        """No list, ``*`` and ``all-team-models`` are no restriction of a level's own."""
        for rules in ("", "*", "all-team-models", "nova *", "nova all-team-models"):
            access = with_models(rules)
            self.assertFalse(access.restricts_models, rules)
            self.assertTrue(may_use(access, "opus"))
            self.assertTrue(may_use(access, PROFILE))
        self.assertTrue(with_models("all-team-models", "", "nova").restricts_models)
        self.check("all-proxy-models", "opus claude-x best tuned", f"x.y {PROFILE} raw")

    def test_groups(self) -> None:
        """By a group's name, an alias of the configuration, a pattern of either."""
        self.check("sonnet", "sonnet", "opus nova best us.anthropic.claude-sonnet-4")
        self.check("sonnet nova", "sonnet nova a/b", "opus mixed")
        self.check("opus", "opus best", "mixed team/one")
        self.check("best", "best", "opus")
        self.check("a/b", "a/b", "nova")
        self.check("team/*", "team/one", "opus")
        self.check("a/*", "a/b", "nova")
        self.check("*o*t", "sonnet", "opus mixed nova tuned")
        self.check("raw", "raw", "us.anthropic.claude-haiku-4")

    def test_case(self) -> None:
        """Names are taken as they are: another case is another name."""
        self.check("Sonnet", "", "sonnet")
        self.check("US.anthropic.*", "", "us.anthropic.claude-x")
        self.check("meta.*", "us.meta.llama-4", "US.meta.llama-4 us.Meta.llama-4")

    def test_access_groups(self) -> None:
        """The name of an access group stands for its model groups, and is no model."""
        self.check("cheap", "nova sonnet a/b", "opus mixed amazon.nova-lite-v1:0")
        self.check("all-claude", "claude-sonnet-4 claude-x family", "any-x opus")
        self.check("cheap", "", "cheap", CATCHING)
        self.check("cheap opus", "nova opus", "mixed")
        self.check("chea*", "", "nova sonnet")

    def test_reserved(self) -> None:
        """LiteLLM's words are never names of models that a client could say."""
        self.check("no-default-models", "", "no-default-models nova", CATCHING)
        self.check("all-proxy-models", "no-default-models", "", CATCHING)
        self.check("no-default-models", "", "nova opus x.y")
        self.check("no-default-models nova", "nova", "opus")

    def test_ids(self) -> None:
        """By Bedrock's id, with or without its geography."""
        self.check(
            "anthropic.claude-sonnet-4",
            "anthropic.claude-sonnet-4 us.anthropic.claude-sonnet-4 "
            "global.anthropic.claude-sonnet-4 us-gov.anthropic.claude-sonnet-4 "
            "bedrock/anthropic.claude-sonnet-4 bedrock/us.anthropic.claude-sonnet-4 "
            "bedrock/converse/eu.anthropic.claude-sonnet-4 us-west-2/anthropic.claude-sonnet-4",
            "anthropic.claude-sonnet-4-5 anthropic.claude-opus-4 x.anthropic.claude-sonnet-4 "
            "mars.anthropic.claude-sonnet-4 us.us.anthropic.claude-sonnet-4 anthropic.claude",
        )
        self.check(
            "eu.anthropic.claude-sonnet-4",
            "eu.anthropic.claude-sonnet-4",
            "anthropic.claude-sonnet-4 us.anthropic.claude-sonnet-4 sonnet",
        )
        self.check("anthropic.*", "us.anthropic.x anthropic.y", "us.amazon.x raw.anthropic.x")
        self.check("us.*", "us.anthropic.x us.amazon.y opus", "eu.anthropic.x anthropic.x sonnet")
        self.check("openai.gpt-5.6", "us.openai.gpt-5.6", "gpt-5.6")
        self.check("gpt-5.6", "", "openai.gpt-5.6 us.openai.gpt-5.6")
        # What is left without the geography has to be an id, with a vendor.
        self.check("micro", "", "us.micro")

    def test_ids_through_groups(self) -> None:
        """A group is reached by a rule of ids if it allows all that may serve."""
        self.check("anthropic.claude-sonnet-4", "sonnet claude-sonnet-4", "mixed opus claude-x")
        self.check("us.anthropic.claude-sonnet-4", "", "sonnet")
        self.check(
            "us.anthropic.claude-sonnet-4 us.anthropic.claude-opus-4", "mixed opus", "sonnet"
        )
        self.check("anthropic.*", "sonnet opus mixed any-x claude-x best raw", "nova tuned")
        self.check("bedrock/anthropic.claude-opus-4", "opus team/one", "mixed")
        self.check("bedrock/converse/anthropic.claude-opus-4", "opus", "mixed")
        self.check("bedrock/anthropic*", "opus mixed us.anthropic.x", "nova")
        self.check(PROFILE, f"tuned {PROFILE}", "opus")

    def test_arns(self) -> None:
        """An ARN is allowed as it is written, or by a pattern of ARNs."""
        self.check("anthropic.claude-opus-4 anthropic.*", "", f"{FOUNDATION} {PROFILE}")
        self.check(FOUNDATION, FOUNDATION, f"{PROFILE} anthropic.claude-opus-4")
        self.check(f"bedrock/{FOUNDATION}", f"{FOUNDATION} bedrock/{FOUNDATION}", PROFILE)
        self.check(f"{ACCOUNT}:application-inference-profile/*", f"{PROFILE} tuned", FOUNDATION)
        self.check("arn:aws:bedrock:*", f"{PROFILE} {FOUNDATION}", "opus")
        other = PROFILE.replace("123456789012", "999999999999")
        self.check(f"{ACCOUNT}:*", PROFILE, other)

    def test_all_of_bedrock(self) -> None:
        """``bedrock/*`` is every id that the client names itself, and not every group."""
        self.check("bedrock/*", f"anthropic.x bedrock/us.anthropic.x {PROFILE}", "opus tuned nova")
        for models in (PASSING, CATCHING):
            self.check(
                "bedrock/*", "anthropic.x bedrock/anthropic.x us-west-2/x.y", "opus", models
            )
        self.check("bedrock/us-west-2/*", "us-west-2/x.y bedrock/us-west-2/x.y", "x.y")
        self.check("bedrock/us-west-2/*", "", "eu-west-1/x.y bedrock/us-west-2/eu-west-1/x.y")
        self.check("bedrock/us-west-2/x.y", "us-west-2/x.y", "x.y eu-west-1/x.y")

    def test_wildcard_groups(self) -> None:
        """What a client says of a group with ``*`` counts as far as nothing is cut off."""
        self.check("claude-*", "claude-x claude-us-west-2/x family", "any-x opus")
        self.check("claude-sonnet*", "claude-sonnet-4", "claude-opus-4 any-x")
        self.check("any-o*", "any-one", "any-two opus")
        self.check("direct/*", "direct/x.y", "x.y")
        self.check("direct/x*", "direct/x.y", "direct/y.x direct/us-west-2/y.x")
        # The id is what is behind the last slash; what is before it is only said.
        self.check("claude-us*", "claude-us", "claude-us-west-2/opus claude-us-west-2/us")
        self.check("claude-converse*", "", "claude-converse/opus-4")

    def test_nothing_before_the_id_counts(self) -> None:
        """What is cut off a name when it is resolved can be anything: it allows nothing."""
        for models in (CONFIGURED, PASSING, CATCHING):
            for rules in ("anthropic.*", "bedrock/anthropic.*", "us-west-2/anthropic.*"):
                for label in (
                    f"anthropic.x/{PROFILE}",
                    f"bedrock/anthropic.x/{PROFILE}",
                    f"us-west-2/anthropic.x/{PROFILE}",
                    f"bedrock/anthropic.x/us-east-1/{PROFILE}",
                ):
                    self.check(rules, "", label, models)
        self.check("direct/anthropic.*", "direct/anthropic.x", f"direct/anthropic.x/{PROFILE}")
        self.check("us-west-2/*", "us-west-2/x.y", "us-west-2/eu-west-1/x.y")
        # As it is written, the operator has allowed just this.
        label = f"anthropic.x/{PROFILE}"
        self.check(label, label, f"anthropic.y/{PROFILE}2")

    def test_levels(self) -> None:
        """Every level that names models has to allow one."""
        access = with_models("sonnet opus", "", "anthropic.claude-opus-4 nova")
        for label, expected in (("opus", True), ("sonnet", False), ("nova", False)):
            self.assertEqual(may_use(access, label), expected, label)

    def test_no_ids(self) -> None:
        """A name of which nothing is known is allowed by its name only."""
        self.assertFalse(with_models("anthropic.*").allows_model("opus", "opus", []))
        self.assertFalse(with_models("bedrock/*").allows_model("opus", "opus", []))
        self.assertTrue(with_models("opus").allows_model("opus", "opus", []))

    def test_ids_may_change(self) -> None:
        """A decision is remembered for the ids that it was made for."""
        access = with_models("anthropic.*")
        self.assertTrue(access.allows_model("x", "x", ["us.anthropic.a"]))
        self.assertFalse(access.allows_model("x", "x", ["us.anthropic.a", "amazon.b"]))
        self.assertTrue(access.allows_model("x", "x", ["us.anthropic.a"]))

    def test_messages(self) -> None:
        """A refusal says which model, what may be used, and whom to ask."""
        access = with_models("sonnet nova", "a1 a2 a3 a4 a5 a6 a7 sonnet")
        said = refusal(access.check_model, *asked("opus"))
        for part in ("model 'opus'", "It may use: sonnet, nova.", "administrator", "models"):
            self.assertIn(part, said)
        said = refusal(access.check_model, *asked("nova"))
        self.assertIn("a1, a2, a3, a4, a5 and 3 more.", said)
        said = refusal(access.check_model, "x\r\ny" + "z" * 2000, "", ["x.y"])
        self.assertIn("'x??yzzz", said)
        self.assertLess(len(said), 400)

    def test_remembers_within_limits(self) -> None:
        """Names that clients make up do not fill the memory, and all are judged right."""
        access = with_models("anthropic.*")
        for number in range(3000):
            self.assertTrue(access.allows_model(*asked(f"anthropic.{number}")))
            self.assertFalse(access.allows_model(*asked(f"amazon.{number}")))
            self.assertFalse(access.allows_model(*asked("amazon." + "x" * (300 + number % 1000))))
        kept = access._model_refusals
        self.assertLessEqual(len(kept), permissions._REMEMBERED)
        self.assertLessEqual(max(len(key[0]) for key in kept), permissions._REMEMBERED_CHARS)

    @settings(deadline=None, max_examples=1000)
    @given(
        parts=st.lists(
            st.sampled_from(
                "bedrock converse invoke us-west-2 eu-west-1 llama direct us eu global anthropic "
                f"amazon anthropic.x amazon.y claude- sonnet opus any- * . - {PROFILE} arn: arn "
                "arn:aws:bedrock:::foundation-model anthropic.claude 1-month-commitment".split()
            ),
            min_size=1,
            max_size=5,
        ),
        joints=st.lists(st.sampled_from(["/", "", ".", "/"]), min_size=5, max_size=5),
        models=st.sampled_from([CONFIGURED, PASSING, CATCHING]),
    )
    def test_no_way_around(self, parts: list[str], joints: list[str], models: Models) -> None:
        """However a name is put together, what serves it is what the rules allow."""
        label = "".join(itertools.chain(*zip(parts, joints, strict=False)))
        try:
            name, group, ids = asked(label, models)
        except ProxyError:
            return
        for rules, pattern in (
            ("anthropic.*", r"((us|eu|global)\.)?anthropic\..*"),
            ("bedrock/anthropic.*", r"((us|eu|global)\.)?anthropic\..*"),
            ("us.*", r"((us|eu|global)\.)?us\..*"),
            ("*.x*", r".*\.x.*"),
            ("arn:aws:bedrock:*", r"((us|eu|global)\.)?arn:aws:bedrock:.*"),
        ):
            if with_models(rules).allows_model(name, group, ids):
                for model_id in ids:
                    self.assertRegex(model_id, rf"\A(?:{pattern})\Z", (rules, label, group))

    @settings(deadline=None, max_examples=300)
    @given(
        rules=st.lists(
            st.lists(
                st.sampled_from(
                    ("sonnet", "opus", "*o*", "anthropic.*", "us.*", "cheap", "bedrock/*", "a/*")
                ),
                max_size=3,
            ),
            min_size=2,
            max_size=3,
        ),
        label=st.sampled_from(
            ("sonnet", "opus", "mixed", "nova", "a/b", "best", "tuned", "raw", "us.x.y", PROFILE)
        ),
    )
    def test_more_levels_allow_less(self, rules: list[list[str]], label: str) -> None:
        """What all levels allow is what each of them allows."""
        written = [" ".join(each) for each in rules]
        together = may_use(with_models(*written), label)
        self.assertEqual(together, all(may_use(with_models(each), label) for each in written))


class AliasTests(SynchronousTestCase):
    """Model names of a key's or a team's own."""

    def check(
        self,
        models: Sequence[str],
        aliases: Sequence[Mapping[str, str]],
        expected: Mapping[str, bool],
    ) -> None:
        access = Access([Permissions(models=tuple(each.split())) for each in models], {},
                        aliases=aliases)  # fmt: skip
        for label, allowed in expected.items():
            self.assertEqual(may_use(access, label), allowed, (models, aliases, label))

    def test_own(self) -> None:
        """A level that allows one of its own aliases allows what is meant by it."""
        self.check(["free"], [{"free": "nova"}], {"nova": True, "opus": False})
        self.check(["f*"], [{"free": "nova", "best": "opus"}], {"nova": True, "opus": False})
        self.check(["free"], [{"free": "paid", "paid": "nova"}], {"nova": True})
        self.check(["free"], [{"free": "fee", "fee": "free"}], {"nova": False})
        self.check(["free"], [{"free": "us.amazon.*"}], {"us.amazon.x": False})
        self.check(["nova"], [{"free": "opus"}], {"nova": True, "opus": False})

    def test_of_the_team(self) -> None:
        """A key may be limited to an alias of its team."""
        aliases: list[Mapping[str, str]] = [{}, {}, {"fast": "nova"}]
        self.check(["fast", "", ""], aliases, {"nova": True, "opus": False})
        self.check(["fast", "", "fast"], aliases, {"nova": True, "opus": False})
        self.check(["", "fast", ""], aliases, {"nova": True, "opus": False})
        # The key's own comes first.
        self.check(["fast"], [{"fast": "opus"}, {}, aliases[2]], {"opus": True, "nova": False})

    def test_no_way_around_the_team(self) -> None:
        """A key's alias does not give another model the name of one that its team may use."""
        aliases: list[Mapping[str, str]] = [{"nova": "opus"}, {}, {}]
        self.check(["", "", "nova"], aliases, {"opus": False, "nova": True})
        self.check(["nova", "", "nova"], aliases, {"opus": False, "nova": True})
        self.check(["", "nova", ""], aliases, {"opus": False})


class UnseenModelTests(SynchronousTestCase):
    """Requests of which the gateway does not see what model they use."""

    def test_restricted(self) -> None:
        """Where models are restricted, only what uses none goes on."""
        access = with_models("nova")
        self.assertTrue(access.restricts_models)
        for name, allowed in (
            ("bedrock:ListFoundationModels", True),
            ("bedrock:GetInferenceProfile", True),
            ("bedrock-runtime:ApplyGuardrail", True),
            ("bedrock-runtime:InvokeGuardrailChecks", True),
            ("bedrock-runtime:GetAsyncInvoke", True),
            ("bedrock-agent:ListAgents", True),
            ("bedrock-agent:DeleteAgent", True),
            ("bedrock:StopModelInvocationJob", True),
            ("bedrock:TagResource", True),
            ("bedrock-runtime:StartAsyncInvoke", False),
            ("bedrock:CreateModelInvocationJob", False),
            ("bedrock:CreateProvisionedModelThroughput", False),
            ("bedrock-agent:CreateAgent", False),
            ("bedrock-agent:UpdateFlow", False),
            ("bedrock-agent:PrepareAgent", False),
            ("bedrock-agent-runtime:InvokeAgent", False),
            ("bedrock-agent-runtime:InvokeInlineAgent", False),
            ("bedrock-agent-runtime:InvokeFlow", False),
            ("bedrock-agent-runtime:Rerank", False),
            ("bedrock-agent-runtime:Retrieve", False),
            ("bedrock-agent-runtime:RetrieveAndGenerate", False),
            ("bedrock-agent-runtime:OptimizePrompt", False),
            ("bedrock-agentcore:InvokeHarness", False),
        ):
            found = refusal(access.check_unseen_model, operation(name))
            self.assertEqual(found == "", allowed, name)
            if found:
                self.assertIn(name, found)
                self.assertIn("It may use: nova.", found)
            with_models("").check_unseen_model(operation(name))

    def test_models_in_the_path(self) -> None:
        """Nothing that takes a model in its path passes for one that uses none."""
        access = with_models("nova")
        for name, one in BY_NAME.items():
            if one.takes_model:
                self.assertNotEqual(refusal(access.check_unseen_model, one), "", name)

    def test_prefix_routes(self) -> None:
        """Reading and deleting is no inference, whatever the path."""
        access = with_models("nova")
        for method, allowed in ((b"GET", True), (b"DELETE", True), (b"POST", False), (b"", False)):
            for name in ("bedrock-runtime:OpenAI", "bedrock-runtime:Anthropic"):
                found = refusal(access.check_unseen_model, operation(name), method)
                self.assertEqual(found == "", allowed, (name, method))


BEDROCK = ("/bedrock/model/x/converse", "/bedrock", "/bedrock/", "/bedrock/key/info")
READING = ("/key/info", "/v2/key/info", "/user/list", "/team/daily/activity", "/v1/models",
           "/model/info", "/health", "/health/readiness", "/metrics", "/tag/info")  # fmt: skip
SPEND = ("/spend/logs", "/spend/calculate", "/spend/tags", "/spend/logs/v2")
GLOBAL = ("/global/spend", "/global/spend/keys", "/global/activity/model", "/global/spend/report")
CHANGING = ("/key/generate", "/key/delete", "/key/abc/regenerate", "/user/new", "/team/update",
            "/global/spend/reset", "/budget/new", "/model/new", "/key/abc/reset_spend", "/",
            "/bedrocks", "/Bedrock/model/x/converse", "//key/info")  # fmt: skip
ROUTES = (*BEDROCK, *READING, *SPEND, *GLOBAL, *CHANGING)


def routes(access: Access, paths: Iterable[str] = ROUTES) -> list[str]:
    """Those that may be used."""
    found = [path for path in paths if not refusal(access.check_route, path)]
    assert found == [path for path in paths if not refusal(access.check_route, path)]
    return found


class RouteTests(SynchronousTestCase):
    """Which routes a key opens."""

    def test_types(self) -> None:
        """A key's type opens one side of the gateway, or both."""
        for kind, expected in (
            (KeyType.DEFAULT, ROUTES),
            (KeyType.LLM_API, BEDROCK),
            (KeyType.MANAGEMENT, (*READING, *SPEND, *GLOBAL, *CHANGING)),
            (KeyType.READ_ONLY, (*READING, *SPEND, *GLOBAL)),
        ):
            self.assertEqual(routes(Access((), {}, kind)), list(expected), kind)

    def test_groups(self) -> None:
        """LiteLLM's groups of routes."""
        compatible = ("/bedrock/openai/v1/responses", "/bedrock/anthropic/v1/messages")
        management = (*READING, *SPEND, *GLOBAL, *CHANGING)
        for group, expected in (
            ("llm_api_routes", (*BEDROCK, *compatible)),
            ("mapped_pass_through_routes", (*BEDROCK, *compatible)),
            ("openai_routes", compatible[:1]),
            ("anthropic_routes", compatible[1:]),
            ("management_routes", management),
            ("info_routes", READING),
            ("spend_tracking_routes", (*SPEND, *GLOBAL)),
            ("global_spend_tracking_routes", GLOBAL),
        ):
            access = Access([Permissions(allowed_routes=(group,))], {})
            self.assertEqual(sorted(routes(access, (*ROUTES, *compatible))), sorted(expected))
        self.assertEqual(len(ROUTE_GROUPS), 8)

    def test_patterns(self) -> None:
        """Paths as they are written, or with ``*``."""
        for written, expected in (
            ("/key/info", ("/key/info",)),
            ("/key/*", ("/key/info", "/key/generate", "/key/delete", "/key/abc/regenerate",
                        "/key/abc/reset_spend")),
            ("*", ROUTES),
            ("/bedrock/model/*/converse", BEDROCK[:1]),
            ("/key/info spend_tracking_routes", ("/key/info", *SPEND, *GLOBAL)),
            ("/nowhere", ()),
            ("/key/inf", ()),
        ):  # fmt: skip
            access = Access([Permissions(allowed_routes=tuple(written.split()))], {})
            self.assertEqual(sorted(routes(access)), sorted(expected), written)

    def test_levels_and_type(self) -> None:
        """All levels have to allow a route, and the key's type."""
        named = [Permissions(allowed_routes=(each,)) for each in ("/key/*", "info_routes")]
        self.assertEqual(routes(Access(named, {})), ["/key/info"])
        self.assertEqual(routes(Access(named, {}, KeyType.READ_ONLY)), ["/key/info"])
        self.assertEqual(routes(Access(named, {}, KeyType.LLM_API)), [])

    def test_dot_segments(self) -> None:
        """No way up out of what is allowed."""
        for access in (
            Access([Permissions(allowed_routes=("/key/*", "/bedrock/*"))], {}),
            Access((), {}, KeyType.LLM_API),
            Access((), {}, KeyType.MANAGEMENT),
        ):
            paths = ("/key/../team/new", "/bedrock/./x", "/bedrock/..", "/key/..", "/key/x/../y")
            self.assertEqual(routes(access, paths), [])
        self.assertEqual(
            routes(Access((), {}, KeyType.LLM_API), ["/bedrock/a..b"]), ["/bedrock/a..b"]
        )

    def test_other_prefix(self) -> None:
        """Bedrock is where the operator put it."""
        access = Access((), {}, KeyType.LLM_API, route_prefix="/aws/bedrock/")
        paths = ("/aws/bedrock/model/x/converse", "/bedrock/model/x/converse", "/aws/x")
        self.assertEqual(routes(access, paths), list(paths[:1]))
        access = Access(
            [Permissions(allowed_routes=("openai_routes",))], {}, route_prefix="/aws/bedrock"
        )
        others = ("/aws/bedrock/openai/v1/responses", "/bedrock/openai/v1/responses")
        self.assertEqual(routes(access, others), list(others[:1]))

    def test_no_prefix(self) -> None:
        """Without a prefix all is Bedrock's but what the management has."""
        llm = Access((), {}, KeyType.LLM_API, route_prefix="")
        management = Access((), {}, KeyType.MANAGEMENT, route_prefix="")
        paths = [re.sub(r"\{[^}]*\}", "x", one.template) for one in OPERATIONS]
        self.assertEqual(routes(llm, paths), paths)
        self.assertEqual(routes(management, paths), [])
        ours = [*READING, *SPEND, *GLOBAL, "/key/generate", "/model/new"]
        self.assertEqual(routes(llm, ours), [])
        self.assertEqual(routes(management, ours), ours)

    def test_messages(self) -> None:
        """A refusal says what the key is for, and what helps."""
        for access, path, expected in (
            (Access((), {}, KeyType.LLM_API), "/key/info",
             ("type llm_api", "/key/info", "management or default")),
            (Access((), {}, KeyType.MANAGEMENT), "/bedrock/model/x/converse",
             ("type management", "/bedrock/model/x/converse", "llm_api or default")),
            (Access((), {}, KeyType.READ_ONLY), "/bedrock/x",
             ("type read_only", "llm_api or default")),
            (Access((), {}, KeyType.READ_ONLY), "/key/delete",
             ("type read_only", "/key/delete", "management or default")),
            (Access([Permissions(allowed_routes=("info_routes", "/spend/logs"))], {}), "/key/new",
             ("route /key/new", "It may use: info_routes, /spend/logs.", "allowed_routes")),
        ):  # fmt: skip
            found = refusal(access.check_route, path)
            for part in expected:
                self.assertIn(part, found)

    def test_remembers_within_limits(self) -> None:
        """Paths that clients make up do not fill the memory."""
        access = Access([Permissions(allowed_routes=("/bedrock/*",))], {})
        for number in range(3000):
            self.assertEqual(refusal(access.check_route, f"/bedrock/{number}"), "")
            access.check_route("/bedrock/" + "x" * (300 + number))
        kept = access._route_refusals
        self.assertLessEqual(len(kept), permissions._REMEMBERED)
        self.assertLessEqual(max(map(len, kept)), permissions._REMEMBERED_CHARS)


class AddressTests(SynchronousTestCase):
    """From where a key may be used."""

    def test_networks(self) -> None:
        """An address is inside of one network of each level that names some."""
        access = Access(
            [
                Permissions(allowed_ips=("10.0.0.0/8", "192.0.2.1")),
                Permissions(),
                Permissions(allowed_ips=("10.1.0.0/16", "192.0.2.0/24", "2001:db8::/32")),
            ],
            {},
        )
        for address, allowed in (
            ("10.1.2.3", True),
            ("::ffff:10.1.2.3", True),
            ("192.0.2.1", True),
            ("10.2.2.3", False),
            ("192.0.2.2", False),
            ("2001:db8::1", False),
            ("-", False),
            ("", False),
        ):
            found = refusal(access.check_address, address)
            self.assertEqual(found == "", allowed, address)

    def test_message(self) -> None:
        """It says where the request came from, and not what networks there are."""
        access = Access([Permissions(allowed_ips=("10.20.0.0/16",))], {})
        said = refusal(access.check_address, "192.0.2.1")
        self.assertIn("'192.0.2.1'", said)
        self.assertIn("allowed_ips", said)
        self.assertNotIn("10.20", said)


class ParsingTests(SynchronousTestCase):
    """Patterns are refused when they are given, with what to write."""

    def refused(self, parse: Callable[[str], None], texts: Iterable[str], hint: str) -> None:
        for text in texts:
            with self.assertRaises(ValueError) as caught:
                parse(text)
            said = str(caught.exception)
            self.assertIn(hint, said, text)
            self.assertTrue(said.isprintable())
            self.assertLess(len(said), 500)

    def test_operations(self) -> None:
        """service:Name, ``*`` and ``default``."""
        for text in ("*", "*:*", "default", "bedrock:Converse", "Bedrock-Agent:Get*", "b?d*:?"):
            parse_operation_pattern(text)
        self.refused(
            parse_operation_pattern,
            ("", "Converse", "bedrock:", ":Converse", "bedrock:Converse:x", "bedrock:Con verse",
             "bedrock/Converse", "bedrock:Convérse", "bedrock:Get[A-Z]*", "Default", "**",
             "bedrock:Converse\n", "bedrock:" + "x" * 3000,
             "arn:aws:bedrock:us-east-1::foundation-model/x"),
            "bedrock:Converse",
        )  # fmt: skip

    def test_known_operations(self) -> None:
        """A name that means no operation is found out, so that none is denied in vain."""
        for text in ("*", "default", "bedrock:conv*", "bedrock-agent:Get?low", "*:Rerank",
                     "bedrock:OpenAI", *BY_NAME):  # fmt: skip
            parse_operation_pattern(text, OPERATIONS)
        self.refused(
            lambda text: parse_operation_pattern(text, OPERATIONS),
            ("bedrock:Convers", "bedrok:Converse", "s3:GetObject", "bedrock-agent:Converse",
             "bedrock-runtime:ListFoundationModels"),
            "means no operation",
        )  # fmt: skip

    def test_models(self) -> None:
        """Names with anything printable in them."""
        for text in ("nova", "us.anthropic.*", "*", "team a/modèle: 1", PROFILE, "x" * 2048):
            parse_model_pattern(text)
        self.refused(parse_model_pattern, ("", " ", "a\nb", "a\x00", "x" * 2049), "access group")

    def test_routes(self) -> None:
        """Paths, and groups of them."""
        for text in ("*", "/key/info", "/bedrock/*", "/chat/completions", *ROUTE_GROUPS):
            parse_route_pattern(text)
        self.refused(
            parse_route_pattern,
            ("", "key/info", "http://x/key", "/key/info?x", "/a b", "/a#", "openai_route", "/\n",
             "/" + "x" * 3000),
            "llm_api_routes",
        )  # fmt: skip

    def test_compiled(self) -> None:
        """What is kept and cannot be used is refused, and not left out."""
        for level in (
            Permissions(operations=("Converse",)),
            Permissions(denied_operations=("bedrock",)),
            Permissions(models=("",)),
            Permissions(allowed_routes=("key",)),
            Permissions(allowed_ips=("10.0.0.1/8",)),
        ):
            with self.assertRaises(ValueError):
                Access([Permissions(), level], {})
