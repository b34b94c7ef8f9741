"""
When a failed attempt is repeated, where and how soon, and what that adds to an outage.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, product
from typing import Any, TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.health import FailureKind
from txbedrock.core.operations import Match, Operation, Operations
from txbedrock.core.retry import (
    Attempts,
    Decision,
    Retries,
    RetryBudget,
    RetrySettings,
    may_repeat,
)
from txbedrock.data import load

OPERATIONS = {f"{one.service}:{one.name}": one for one in Operations(load("operations"))}

CONVERSE = OPERATIONS["bedrock-runtime:Converse"]
CREATE_GUARDRAIL = OPERATIONS["bedrock:CreateGuardrail"]

THROTTLED = FailureKind.THROTTLED
UNAVAILABLE = FailureKind.UNAVAILABLE
TIMEOUT = FailureKind.TIMEOUT
NOT_READY = FailureKind.NOT_READY
DENIED = FailureKind.DENIED
BAD_CREDENTIALS = FailureKind.BAD_CREDENTIALS
CLIENT = FailureKind.CLIENT
CONTEXT_WINDOW = FailureKind.CONTEXT_WINDOW
CONTENT_POLICY = FailureKind.CONTENT_POLICY
CONNECT = FailureKind.CONNECT
BROKE = FailureKind.BROKE

TRANSIENT = (THROTTLED, UNAVAILABLE, TIMEOUT, NOT_READY, CONNECT, BROKE)


def begin(
    retries: Retries, operation: Operation = CONVERSE, now: float = 0.0, group: str = "m"
) -> Attempts:
    """A request that has made its first attempt, at the deployment ``a``."""
    method = operation.method.encode()
    attempts = retries.begin(Match(operation, b"/x"), method, group, now)
    attempts.started("a", now)
    return attempts


def retries(rng: Callable[[], float] = lambda: 1.0, **kwargs: Any) -> Retries:
    return Retries(RetrySettings(**kwargs), rng)


class RepeatableTests(SynchronousTestCase):
    """Which operations may be sent twice."""

    def test_every_operation(self) -> None:
        """
        Of all operations that are not called with GET, these and no others. A new
        table with a new operation comes here, for somebody to think about it.
        """
        found: dict[str, list[str]] = {}
        for operation in OPERATIONS.values():
            method = operation.method.encode()
            if method != b"GET" and may_repeat(operation, method):
                found.setdefault(operation.service, []).append(operation.name)
        self.assertEqual(
            {service: " ".join(names) for service, names in found.items()},
            {
                "bedrock": "ListTagsForResource",
                "bedrock-runtime": "ApplyGuardrail Converse ConverseStream CountTokens "
                "InvokeGuardrailChecks InvokeModel InvokeModelWithResponseStream",
                "bedrock-agent": "GetKnowledgeBaseDocuments ListAgentActionGroups "
                "ListAgentAliases ListAgentCollaborators ListAgentKnowledgeBases "
                "ListAgentVersions ListAgents ListDataSources ListIngestionJobs "
                "ListKnowledgeBaseDocuments ListKnowledgeBases ValidateFlowDefinition",
                "bedrock-agent-runtime": "AgenticRetrieveStream CheckIngestedDocumentAcl "
                "GenerateQuery GetDocumentContent GetIngestedDocumentAcl GetInvocationStep "
                "ListInvocationSteps ListInvocations ListSessions OptimizePrompt Rerank "
                "Retrieve RetrieveAndGenerate RetrieveAndGenerateStream",
                "bedrock-agentcore": "GetPaymentInstrument GetPaymentInstrumentBalance "
                "GetPaymentSession ListActors ListBrowserSessions ListCodeInterpreterSessions "
                "ListEvents ListMemoryExtractionJobs ListMemoryRecords ListPaymentInstruments "
                "ListPaymentSessions ListSessions RetrieveMemoryRecords SearchRegistryRecords",
                "bedrock-agentcore-control": "GetApiKeyCredentialProvider GetConsentPortal "
                "GetOauth2CredentialProvider GetPaymentCredentialProvider GetTokenVault "
                "GetWorkloadIdentity ListAgentInsightStores ListAgentRuntimeEndpoints "
                "ListAgentRuntimeVersions ListAgentRuntimeVersionsByCapacityProvider "
                "ListAgentRuntimes ListApiKeyCredentialProviders ListBrowserProfiles "
                "ListBrowsers ListCapacityProviders ListCodeInterpreters "
                "ListConfigurationBundleVersions ListConfigurationBundles ListConsentPortals "
                "ListDatasetExamples ListDatasetVersions ListDatasets ListEvaluators "
                "ListMemories ListOauth2CredentialProviders ListOnlineEvaluationConfigs "
                "ListPaymentConnectors ListPaymentCredentialProviders ListPaymentManagers "
                "ListWorkloadIdentities",
                "bedrock-data-automation": "GetBlueprint GetBlueprintOptimizationStatus "
                "GetDataAutomationLibrary GetDataAutomationLibraryEntity "
                "GetDataAutomationLibraryIngestionJob GetDataAutomationProject ListBlueprints "
                "ListDataAutomationLibraries ListDataAutomationLibraryEntities "
                "ListDataAutomationLibraryIngestionJobs ListDataAutomationProjects "
                "ListTagsForResource",
                "bedrock-data-automation-runtime": "GetDataAutomationStatus ListTagsForResource",
            },
        )

    def test_reading(self) -> None:
        """Whatever is called with GET may be repeated, with one exception to come."""
        for operation in OPERATIONS.values():
            if operation.method == "GET":
                self.assertTrue(may_repeat(operation, b"GET"), operation.name)

    def test_never(self) -> None:
        """What creates, starts, deletes, invokes an agent or makes a token; what streams up."""
        for name in (
            "bedrock:CreateGuardrail",
            "bedrock:DeleteGuardrail",
            "bedrock:UpdateGuardrail",
            "bedrock-runtime:StartAsyncInvoke",
            "bedrock-runtime:InvokeModelWithBidirectionalStream",
            "bedrock-agent-runtime:InvokeAgent",
            "bedrock-agent-runtime:InvokeInlineAgent",
            "bedrock-agent-runtime:InvokeFlow",
            "bedrock-agentcore:InvokeAgentRuntime",
            "bedrock-agentcore:GetResourceOauth2Token",
            "bedrock-agentcore:ProcessPayment",
            "bedrock-data-automation-runtime:InvokeDataAutomationAsync",
        ):
            operation = OPERATIONS[name]
            self.assertFalse(may_repeat(operation, operation.method.encode()), name)

    def test_by_configuration(self) -> None:
        """The operator may vouch for others, by name or pattern; not for a stream upwards."""
        agent = OPERATIONS["bedrock-agent-runtime:InvokeAgent"]
        for pattern, expected in (
            ("bedrock-agent-runtime:InvokeAgent", True),
            ("bedrock-agent-runtime:Invoke*", True),
            ("bedrock-agent-runtime:*", True),
            ("bedrock-agent-runtime:InvokeFlow", False),
            ("bedrock-agent:InvokeAgent", False),
            ("InvokeAgent", False),
        ):
            self.assertIs(may_repeat(agent, b"POST", {pattern}), expected, pattern)
        both_ways = OPERATIONS["bedrock-runtime:InvokeModelWithBidirectionalStream"]
        self.assertFalse(may_repeat(both_ways, b"POST", {"*"}))

    def test_other_styles(self) -> None:
        """Of the routes that take every path, those that only ask a model."""
        for name, method, path, expected in (
            ("OpenAI", b"POST", b"/openai/v1/chat/completions", True),
            ("OpenAI", b"POST", b"/openai/v1/embeddings", True),
            ("OpenAI", b"GET", b"/openai/v1/models", True),
            ("OpenAI", b"POST", b"/openai/v1/responses", False),
            ("OpenAI", b"POST", b"/openai/v1/batches", False),
            ("OpenAI", b"POST", b"/openai/v1/files", False),
            ("OpenAI", b"DELETE", b"/openai/v1/chat/completions", False),
            ("OpenAI", b"POST", b"/openai/v1/chat/completions/x", False),
            ("Anthropic", b"POST", b"/anthropic/v1/messages", True),
            ("Anthropic", b"POST", b"/anthropic/v1/messages/count_tokens", True),
            ("Anthropic", b"POST", b"/anthropic/v1/messages/batches", False),
        ):
            operation = OPERATIONS[f"bedrock-runtime:{name}"]
            self.assertIs(may_repeat(operation, method, raw_path=path), expected, (method, path))

    def test_each_request(self) -> None:
        """What is found of one request holds for others of its kind, and for no others."""
        shared = retries()
        openai = OPERATIONS["bedrock-runtime:OpenAI"]
        agent = OPERATIONS["bedrock-agent-runtime:InvokeAgent"]
        for operation, path, action in 2 * (
            (CONVERSE, b"/model/x/converse", "retry"),
            (agent, b"/agents/a/agentAliases/b/sessions/c/text", "give_up"),
            (openai, b"/openai/v1/chat/completions", "retry"),
            (openai, b"/openai/v1/files", "give_up"),
        ):
            attempts = shared.begin(Match(operation, path), b"POST", "m", 0.0)
            attempts.started("a", 0.0)
            decision = attempts.after_failure("a", UNAVAILABLE, now=0.0, others=["b"])
            self.assertEqual(decision.action, action, path)


class DecisionTests(SynchronousTestCase):
    """One request, failure by failure."""

    def after(
        self,
        kind: FailureKind,
        others: tuple[str, ...] = (),
        again: bool = True,
        **kwargs: Any,
    ) -> Decision:
        """What is done after one failure of a request with full luck."""
        attempts = begin(retries(**kwargs))
        return attempts.after_failure("a", kind, now=1.0, others=others, again=again)

    def test_kinds(self) -> None:
        """
        Where each kind of failure leads: with a deployment left, with none but this
        one, and with no place at all.
        """
        at_once, later = Decision("retry"), Decision("retry", 0.2)
        nowhere = Decision("fallback", reason="nowhere")
        for kind in FailureKind:
            expected = at_once, later, nowhere
            if kind in (DENIED, BAD_CREDENTIALS):
                expected = at_once, nowhere, nowhere
            if kind in (CONTEXT_WINDOW, CONTENT_POLICY):
                expected = (Decision("fallback", reason="limit"),) * 3
            if kind is CLIENT:
                expected = (Decision("give_up", reason="client"),) * 3
            self.assertEqual(
                (self.after(kind, ("b",)), self.after(kind), self.after(kind, again=False)),
                expected,
                kind,
            )

    def test_client(self) -> None:
        """A ValidationException is tried exactly once, whatever is configured."""
        many = dict.fromkeys(FailureKind, 5)
        for others in ((), ("b", "c")):
            self.assertEqual(
                self.after(CLIENT, others, num_retries=5, by_kind=many),
                Decision("give_up", reason="client"),
            )

    def test_sequences(self) -> None:
        """Lists of failures, each with what is left by then, and what is decided."""
        r = Decision("retry")
        cases: list[tuple[str, dict[str, Any], list[tuple[FailureKind, str]], list[Decision]]] = [
            (
                "others first, then the same after waits, then the next group",
                {"num_retries": 3},
                [(UNAVAILABLE, "bc"), (UNAVAILABLE, "c"), (UNAVAILABLE, ""), (UNAVAILABLE, "")],
                [r, r, Decision("retry", 0.2), Decision("fallback", reason="limit")],
            ),
            (
                "each wait is twice as long, until the cap",
                {"num_retries": 6, "backoff_cap_s": 1.0},
                [(THROTTLED, "")] * 7,
                [Decision("retry", s) for s in (0.2, 0.4, 0.8, 1.0, 1.0, 1.0)]
                + [Decision("fallback", reason="limit")],
            ),
            (
                "no retries",
                {"num_retries": 0},
                [(THROTTLED, "b")],
                [Decision("fallback", reason="limit")],
            ),
            (
                "a policy for the kind, more or less than num_retries",
                {"by_kind": {THROTTLED: 3, TIMEOUT: 0}},
                [(THROTTLED, "bcd"), (THROTTLED, "cd"), (THROTTLED, "d"), (THROTTLED, "e")],
                [r, r, r, Decision("fallback", reason="limit")],
            ),
            (
                "none for this kind",
                {"by_kind": {THROTTLED: 3, TIMEOUT: 0}},
                [(TIMEOUT, "b")],
                [Decision("fallback", reason="limit")],
            ),
            (
                "what was done after other kinds counts",
                {"by_kind": {THROTTLED: 3, UNAVAILABLE: 1}},
                [(THROTTLED, "bc"), (UNAVAILABLE, "c")],
                [r, Decision("fallback", reason="limit")],
            ),
            (
                "a group's own policy replaces the general one",
                {"by_kind": {THROTTLED: 0, TIMEOUT: 0}, "by_group": {"m": {THROTTLED: 1}}},
                [(THROTTLED, "bc"), (TIMEOUT, "c"), (TIMEOUT, "c")],
                [r, r, Decision("fallback", reason="limit")],
            ),
            (
                "another group's does not",
                {"by_group": {"other": {THROTTLED: 0}}},
                [(THROTTLED, "b")],
                [r],
            ),
            (
                "bad credentials are tried again where they are only if somebody says so",
                {"by_kind": {BAD_CREDENTIALS: 1}},
                [(BAD_CREDENTIALS, ""), (DENIED, "")],
                [Decision("retry", 0.2), Decision("fallback", reason="nowhere")],
            ),
            (
                "and so is what was found to be improper",
                {"by_kind": {CONTENT_POLICY: 1}},
                [(CONTENT_POLICY, "b"), (CONTENT_POLICY, "")],
                [r, Decision("fallback", reason="limit")],
            ),
            (
                "a wrong request, found out late",
                {},
                [(BROKE, "b"), (CLIENT, "c")],
                [r, Decision("give_up", reason="client")],
            ),
        ]
        for title, config, events, expected in cases:
            shared = retries(**config)
            for _ in range(100):
                shared.budget("m").request(0.0)
            attempts = begin(shared)
            decisions = []
            for kind, left in events:
                decisions.append(attempts.after_failure("a", kind, now=1.0, others=left))
                attempts.started("a", 1.0)
            self.assertEqual(decisions, expected, title)

    def test_unsafe(self) -> None:
        """A CreateGuardrail never reaches AWS twice: it is repeated only if it cannot have."""
        for kind in FailureKind:
            attempts = begin(retries(), CREATE_GUARDRAIL)
            decision = attempts.after_failure("a", kind, now=0.0, others=("b",))
            if kind is CONNECT:
                self.assertEqual(decision, Decision("retry"))
                attempts.started("b", 0.0)
                decision = attempts.after_failure("b", BROKE, now=0.0, others=("c",))
            self.assertEqual(decision.action, "give_up", kind)

    def test_vouched_for(self) -> None:
        """What the operator calls repeatable is repeated."""
        attempts = begin(retries(repeatable=frozenset({"bedrock:Create*"})), CREATE_GUARDRAIL)
        decision = attempts.after_failure("a", BROKE, now=0.0, others=("b",))
        self.assertEqual(decision, Decision("retry"))

    def test_full_jitter(self) -> None:
        """A wait is any part of its longest, so that clients do not come back together."""
        rng = random.Random(7)
        waits = []
        for number in range(2000):
            group = f"m{number}"
            attempts = begin(retries(rng.random), group=group)
            waits.append(attempts.after_failure("a", THROTTLED, now=0.0).delay_s)
        self.assertLess(max(waits), 0.2)
        for part in range(10):
            share = sum(part <= wait * 50 < part + 1 for wait in waits) / len(waits)
            self.assertTrue(0.07 < share < 0.13, (part, share))

    def test_asked_to_wait(self) -> None:
        """
        What the deployment asks for is kept, and so is the operator's least wait, and
        the jitter comes on top. Another deployment need not wait.
        """
        for told, least, others, expected in (
            (3.0, 0.0, "", 3.2),
            (3.0, 5.0, "", 5.2),
            (None, 5.0, "", 5.2),
            (3.0, 5.0, "b", 0.0),
        ):
            attempts = begin(retries(retry_after_s=least))
            decision = attempts.after_failure(
                "a", THROTTLED, now=0.0, others=others, retry_after_s=told
            )
            self.assertEqual(decision, Decision("retry", expected))

    def test_deadline(self) -> None:
        """No attempt begins after the deadline, and nobody waits only to find that out."""
        late = Decision("fallback", reason="deadline")
        over = Decision("give_up", reason="deadline")
        for now, others, told, expected in (
            (9.7, "", None, Decision("retry", 0.2)),
            (9.9, "", None, late),
            (9.9, "b", None, Decision("retry")),
            (5.0, "", 4.7, Decision("retry", 4.9)),
            (5.0, "", 5.0, late),
            (10.0, "b", None, over),
            (10.0, "", None, over),
        ):
            attempts = begin(retries(deadline_s=10.0))
            decision = attempts.after_failure(
                "a", THROTTLED, now=now, others=others, retry_after_s=told
            )
            self.assertEqual(decision._replace(delay_s=round(decision.delay_s, 9)), expected)

    def test_own_limit(self) -> None:
        """A deployment's max_retries says how often one request may come back to it."""
        attempts = begin(retries())
        for limit, expected in ((None, True), (0, False), (1, True), (2, True)):
            self.assertIs(attempts.may_try("a", limit), expected)
        attempts.started("a", 0.0)
        self.assertEqual(attempts.tried, {"a": 2})
        for limit, expected in ((None, True), (0, False), (1, False), (2, True)):
            self.assertIs(attempts.may_try("a", limit), expected)
        self.assertTrue(attempts.may_try("b", 0))

    def test_next_group(self) -> None:
        """In a fallback group retries begin anew, by that group's policy."""
        attempts = begin(retries(num_retries=1, by_group={"n": {UNAVAILABLE: 2}}))
        fails: list[str] = []
        for group, others in (("m", "b"), ("m", "c"), ("n", "yz"), ("n", "z"), ("n", "")):
            if group != "m" and len(fails) == 2:
                self.assertTrue(attempts.enter("n", ("x", "y", "z"), 0.0))
                attempts.started("x", 0.0)
            fails.append(attempts.after_failure("a", UNAVAILABLE, now=0.0, others=others).action)
        self.assertEqual(fails, ["retry", "fallback", "retry", "retry", "fallback"])

    def test_next_group_late(self) -> None:
        """A fallback has to begin in time, too."""
        attempts = begin(retries(deadline_s=10.0))
        attempts.after_failure("a", CONTEXT_WINDOW, now=1.0)
        self.assertFalse(attempts.enter("n", ("x",), 10.0))
        self.assertTrue(attempts.enter("n", ("x",), 9.9))

    def test_next_group_first(self) -> None:
        """When a group has nothing to try, the first attempt is the next group's, and free."""
        shared = retries()
        attempts = shared.begin(Match(CONVERSE, b"/x"), b"POST", "m", 0.0)
        for target in "xy":
            for _ in range(5):
                shared.records.add(target, True, 0.0)
        self.assertTrue(attempts.enter("n", ("x", "y"), 0.0))
        self.assertGreaterEqual(shared.budget("m").tokens, 0)

    def test_client_leaves(self) -> None:
        """A client that leaves is nobody's failure: nothing is remembered of it."""
        shared = retries()
        for _ in range(50):
            attempts = begin(shared)
            attempts.after_failure("a", CLIENT, now=0.0, others=("b",))
            begin(shared)  # and no word of how it ended
        self.assertEqual(len(shared.records), 0)
        self.assertGreaterEqual(shared.budget("m").tokens, 1)


class HedgeTests(SynchronousTestCase):
    """A second attempt beside a slow first one."""

    def hedge(
        self,
        operation: Operation = CONVERSE,
        p95_s: float | None = 1.5,
        others: tuple[str, ...] = ("b",),
        **kwargs: Any,
    ) -> float | None:
        return begin(retries(**kwargs), operation).hedge_after(p95_s, others)

    def test_when(self) -> None:
        """After the p95 of the deployment, where it is known and another is left."""
        self.assertEqual(self.hedge(hedge=True), 1.5)
        self.assertIsNone(self.hedge(hedge=True, p95_s=None))
        self.assertIsNone(self.hedge(hedge=True, others=()))

    def test_off(self) -> None:
        """Only if it is asked for."""
        self.assertIsNone(self.hedge())

    def test_what(self) -> None:
        """Never a stream, and never what is repeatable only by the operator's word."""
        self.assertIsNone(self.hedge(OPERATIONS["bedrock-runtime:ConverseStream"], hedge=True))
        self.assertIsNone(
            self.hedge(CREATE_GUARDRAIL, hedge=True, repeatable=frozenset({"bedrock:*"}))
        )

    def test_once(self) -> None:
        """There is one hedge at most, and none beside a retry."""
        attempts = begin(retries(hedge=True))
        attempts.started("b", 0.0)
        self.assertIsNone(attempts.hedge_after(1.5, ("c",)))

    def test_budget(self) -> None:
        """A hedge is load: in a slow hour no more than the budget has are sent."""
        shared = retries(hedge=True)
        sent = 0
        for number in range(1000):
            now = number / 50
            sent += begin(shared, now=now).hedge(("b",), now + 1.0)
        self.assertTrue(100 < sent <= 200, sent)

    def test_sick(self) -> None:
        """No hedge goes where others fail."""
        shared = retries(hedge=True)
        for _ in range(4):
            shared.records.add("b", True, 0.0)
        self.assertFalse(begin(shared).hedge(("b",), 1.0))
        self.assertTrue(begin(shared).hedge(("b", "c"), 1.0))

    def test_loser(self) -> None:
        """The attempt that failed while the other went on is remembered, and asks for nothing."""
        shared = retries(hedge=True)
        for _ in range(4):
            attempts = begin(shared)
            attempts.started("b", 0.0)
            attempts.failed("b", BROKE, 0.0)
            attempts.succeeded("a", 0.0)
        self.assertFalse(shared.records.healthy("b", 0.0))
        self.assertTrue(shared.records.healthy("a", 0.0))


class RecordsTests(SynchronousTestCase):
    """Which deployments do well."""

    def test_outcomes(self) -> None:
        """At most three failures among the last sixteen attempts, and not the last two."""
        for outcomes, expected in (
            ("", True),
            ("x", True),
            ("xx", False),
            ("xx.", True),
            ("x.x.x", True),
            ("x.x.x.x", False),
            ("xxx" + "." * 10 + "x", False),
            ("xxx" + "." * 14 + "x", True),
            ("x" * 100 + "." * 12, False),
            ("x" * 100 + "." * 13, True),
        ):
            records = retries().records
            for outcome in outcomes:
                records.add("a", outcome == "x", 0.0)
            self.assertIs(records.healthy("a", 0.0), expected, outcomes)

    def test_forgotten(self) -> None:
        """What is older than ten seconds says nothing any more."""
        records = retries().records
        for _ in range(10):
            records.add("a", True, 5.0)
        self.assertFalse(records.healthy("a", 15.0))
        self.assertTrue(records.healthy("a", 15.1))
        records.add("a", True, 15.1)
        self.assertTrue(records.healthy("a", 15.1))

    def test_bounded(self) -> None:
        """Nothing is kept of the well ones, and of the others not without bound."""
        records = retries().records
        for number in range(10_000):
            records.add(f"well-{number}", False, 0.0)
        self.assertEqual(len(records), 0)
        records.add("a", True, 0.0)
        for _ in range(16):
            records.add("a", False, 0.0)
        self.assertEqual(len(records), 0)
        for number in range(10_000):
            records.add(f"sick-{number}", True, 0.0)
        self.assertEqual(len(records), 4096)


class BudgetTests(SynchronousTestCase):
    """How many retries there may be."""

    def test_lone(self) -> None:
        """A lone request can be retried, at any time; three in ten seconds, not a fourth."""
        budget = RetryBudget()
        now = 0.0
        for _ in range(5):
            now += 60.0
            budget.request(now)
            self.assertEqual(
                [budget.take(now + wait) for wait in (0, 1, 2, 3, 9.9, 10.1)],
                [True, True, True, False, False, True],
            )

    def test_rates(self) -> None:
        """
        In ten seconds in which everything fails, after any time in which nothing did,
        retries are at most a fifth of the requests, and most of that. (With uneven
        traffic it may be one more.)
        """
        rng = random.Random(1)
        for rate in (1.5, 2, 5, 10, 50, 500):
            for even in (True, False):
                for phase in range(5):
                    budget = RetryBudget()
                    now, taken, requests = 0.0, 0, 0
                    begins = 30 + phase / rate / 5
                    while True:
                        now += 1 / rate if even else rng.expovariate(rate)
                        if now >= begins + 10:
                            break
                        budget.request(now)
                        if now >= begins:
                            requests += 1
                            while budget.take(now):
                                taken += 1
                    most = max(3, 0.2 * requests) + (not even)
                    self.assertLessEqual(taken, most, (rate, even, requests))
                    self.assertGreaterEqual(taken, min(3, 0.15 * requests), (rate, even))

    def test_calm_pays_little(self) -> None:
        """Hours of good weather pay for no storm: what is saved is 2.5 seconds' worth."""
        budget = RetryBudget()
        for number in range(100_000):
            budget.request(number / 500)
        self.assertTrue(0.13 * 1250 < budget.tokens < 0.17 * 1250, budget.tokens)

    def test_owed(self) -> None:
        """What was in vain is paid back before more is granted, and forgotten in time."""
        budget = RetryBudget()
        budget.request(0.0)
        for _ in range(20):
            budget.charge(0.0)
        requests = 1
        while not budget.take(0.0):
            budget.request(0.0)
            requests += 1
        self.assertTrue(5 * 21 < requests < 7 * 21, requests)
        for _ in range(20):
            budget.charge(0.0)
        budget.request(10.5)
        self.assertGreaterEqual(budget.tokens, 0)

    @settings(max_examples=200, deadline=None, derandomize=True)
    @given(
        st.lists(st.tuples(st.floats(0, 20), st.sampled_from(("request", "take"))), max_size=200)
    )
    def test_any_traffic(self, events: list[tuple[float, str]]) -> None:
        """Whatever the traffic: a fifth of the requests, and three in ten seconds."""
        budget = RetryBudget()
        now, requests, taken = 0.0, 0, 0
        for elapsed, event in events:
            now += elapsed
            if event == "request":
                budget.request(now)
                requests += 1
            else:
                taken += budget.take(now)
        self.assertLessEqual(taken, 0.2 * requests + 3 * (1 + now / 10))

    def test_groups_apart(self) -> None:
        """A group that is down does not use up the retries of another."""
        shared = retries(num_retries=5)
        for number in range(200):
            attempts = begin(shared, now=number / 100, group="down")
            while attempts.after_failure("a", UNAVAILABLE, now=number / 100).action == "retry":
                attempts.started("a", number / 100)
        self.assertLess(shared.budget("down").tokens, 1)
        attempts = begin(shared, now=2.0, group="up")
        decision = attempts.after_failure("b", UNAVAILABLE, now=2.0)
        self.assertEqual(decision.action, "retry")


Outcomes: TypeAlias = dict[str, tuple[float, FailureKind | None]]


def steady(outcomes: Outcomes) -> Callable[[str, float], tuple[float, FailureKind | None]]:
    """Deployments that always do the same."""
    return lambda target, now: outcomes[target]


@dataclass
class World:
    """
    A gateway without anything but its retries: clients, deployments, and time that
    jumps from event to event.

    :ivar fails: deployment, time -> how long an attempt takes and what it fails of.
    :ivar cooldown_s: for how long a deployment is avoided after four failures in a row.
    """

    deployments: str
    fails: Callable[[str, float], tuple[float, FailureKind | None]]
    cooldown_s: float = 5.0
    config: RetrySettings = field(default_factory=RetrySettings)
    rng: random.Random = field(default_factory=lambda: random.Random(5))

    def __post_init__(self) -> None:
        self.retries = Retries(self.config, self.rng.random)
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.order = count()
        self.begun: list[float] = []
        self.attempts: list[tuple[float, bool]] = []
        self.failed: list[float] = []
        self.answered: list[float] = []
        self.ended: list[tuple[float, float]] = []
        self.in_a_row: dict[str, int] = dict.fromkeys(self.deployments, 0)
        self.cool_until: dict[str, float] = dict.fromkeys(self.deployments, 0.0)

    def at(self, time: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (time, next(self.order), event))

    def run(self) -> None:
        while self.events:
            time, _, event = heapq.heappop(self.events)
            event(time)

    def request(self, now: float) -> None:
        self.begun.append(now)
        attempts = self.retries.begin(Match(CONVERSE, b"/x"), b"POST", "m", now)
        self.attempt(attempts, now, now)

    def left(self, attempts: Attempts, now: float) -> list[str]:
        return [
            one
            for one in self.deployments
            if one not in attempts.tried and self.cool_until[one] <= now
        ]

    def attempt(self, attempts: Attempts, begun: float, now: float) -> None:
        cold = [one for one in self.deployments if one not in attempts.tried]
        target = self.rng.choice(self.left(attempts, now) or cold or list(self.deployments))
        self.attempts.append((now, not attempts.tried))
        attempts.started(target, now)
        takes, kind = self.fails(target, now)

        def ends(now: float) -> None:
            if kind is None:
                attempts.succeeded(target, now)
                self.in_a_row[target] = 0
                self.answered.append(now)
                self.ended.append((now, begun))
                return
            self.in_a_row[target] += 1
            if self.in_a_row[target] >= 4 and self.cooldown_s:
                self.cool_until[target] = now + self.cooldown_s
            decision = attempts.after_failure(
                target, kind, now=now, others=self.left(attempts, now)
            )
            if decision.action == "retry":
                self.at(now + decision.delay_s, lambda now: self.attempt(attempts, begun, now))
            else:
                self.failed.append(now)
                self.ended.append((now, begun))

        self.at(now + takes, ends)


class OutageTests(SynchronousTestCase):
    """Clients go on asking while deployments fail."""

    def outage(self, rate: float, deployments: str, cooldown_s: float, takes: float) -> World:
        """Everything fails from the 20th to the 30th second; 40 s in all."""

        def fails(target: str, now: float) -> tuple[float, FailureKind | None]:
            return (takes, UNAVAILABLE) if 20 <= now < 30 else (0.2, None)

        world = World(deployments, fails, cooldown_s)
        for number in range(int(40 * rate)):
            world.at(number / rate, world.request)
        world.run()
        return world

    def test_everything(self) -> None:
        """
        While everything fails, attempts stay within 120 % of the requests: with one
        deployment or several, with cool-downs or without, if it fails fast or slowly.
        What begins afterwards is answered, and what was waiting has its end within two
        seconds.

        A deployment is found out by two failures. Where there are few requests in ten
        seconds, or those failures take long to come, these are beside it.
        """
        cases = [*product((2, 10, 50), ("a", "ab", "abcd"), (0.0, 5.0), (0.0, 0.05, 1.0, 5.0))]
        cases += product((500,), ("ab",), (0.0, 5.0), (0.0, 1.0))
        for case in cases:
            rate, deployments, cooldown_s, takes = case
            world = self.outage(rate, deployments, cooldown_s, takes)
            inside = [first for now, first in world.attempts if 20 <= now < 30]
            most = 1.2 * sum(inside)
            if rate < 10 or takes > 1:
                most += 2 * len(deployments)
            self.assertLessEqual(len(inside), most, case)
            self.assertGreater(len(inside), 1.1 * sum(inside), case)
            self.assertLess(max(world.failed), 30 + takes + 1e-6, case)
            self.assertEqual(len(world.ended), len(world.begun), case)
            last = max(end for end, begun in world.ended if begun < 30)
            self.assertLess(last, 32 + takes + 0.2, case)

    def test_one_of_two(self) -> None:
        """
        1,000 requests on two deployments of which one is dead: every one is answered,
        with cool-downs or without, however the dead one fails and however slow the
        other is, one by one or a hundred at a time.
        """
        for case in product(
            (CONNECT, THROTTLED, DENIED),
            (0.0, 5.0),
            (1, 100),
            ((0.0, 0.5), (0.5, 0.01), (3.0, 10.0)),
        ):
            kind, cooldown_s, crowd, (takes, well_takes) = case
            outcomes: Outcomes = {"a": (takes, kind), "b": (well_takes, None)}
            world = World("ab", steady(outcomes), cooldown_s)
            for number in range(1000):
                world.at(number // crowd * crowd / 100, world.request)
            world.run()
            self.assertEqual(world.failed, [], case)
            self.assertEqual(len(world.answered), 1000, case)

    def test_dies_with_requests(self) -> None:
        """A deployment dies with 1,000 requests under way: all are answered elsewhere."""

        def fails(target: str, now: float) -> tuple[float, FailureKind | None]:
            return (20 - now, BROKE) if target == "a" else (5.0, None)

        world = World("ab", fails)
        for number in range(2000):
            world.at(10 + number / 200, world.request)
        world.run()
        self.assertGreater(len(world.attempts), 2900)
        self.assertEqual(len(world.failed), 0)

    def test_fast_and_slow(self) -> None:
        """
        The hard case: one refuses at once, the other swallows everything for five
        seconds. Cool-downs keep the retries low; without them each is tried once until
        the second is found out.
        """

        def fails(target: str, now: float) -> tuple[float, FailureKind | None]:
            return (0.0 if target == "a" else 5.0), CONNECT

        for cooldown_s, most in ((5.0, 1.2), (0.0, 1.45)):
            world = World("ab", fails, cooldown_s)
            for number in range(5000):
                world.at(number / 500, world.request)
            world.run()
            inside = [first for now, first in world.attempts if now < 10]
            self.assertLessEqual(len(inside), most * sum(inside), cooldown_s)

    def test_brown_out(self) -> None:
        """
        Any part of the attempts fails, everywhere: those in vain that were not a
        client's first are at most a fifth of the requests.
        """
        for part in (0.02, 0.1, 0.2, 0.3, 0.5, 0.8):
            rng = random.Random(11)

            def fails(
                target: str, now: float, part: float = part, rng: random.Random = rng
            ) -> tuple[float, FailureKind | None]:
                return 0.1, (THROTTLED if rng.random() < part else None)

            world = World("abc", fails, cooldown_s=0.0)
            for number in range(5000):
                world.at(number / 250, world.request)
            world.run()
            extra = len(world.attempts) - 5000
            helped = part * 5000 - len(world.failed)
            self.assertLessEqual(extra - helped, 1000, part)
            if part <= 0.1:
                self.assertLess(len(world.failed), 5000 * part * 0.2, part)

    def test_hiccups(self) -> None:
        """One deployment that fails once in twenty: retries hide nearly all of it."""
        rng = random.Random(3)

        def fails(target: str, now: float) -> tuple[float, FailureKind | None]:
            return 0.1, (UNAVAILABLE if rng.random() < 0.05 else None)

        for rate in (1, 10, 300):
            world = World("a", fails)
            for number in range(2000):
                world.at(number / rate, world.request)
            world.run()
            self.assertLess(len(world.failed), 10, rate)


@dataclass
class Failure:
    """One failed attempt, and how the world looked."""

    kind: FailureKind
    took_s: float
    others: int
    again: bool
    told_s: float | None
    lag_s: float


FAILURES = st.builds(
    Failure,
    st.sampled_from(FailureKind),
    st.floats(0, 100),
    st.integers(0, 3),
    st.booleans(),
    st.none() | st.floats(0, 4000),
    st.floats(0, 1),
)


class EndTests(SynchronousTestCase):
    """Every request comes to its end."""

    @settings(max_examples=500, deadline=None, derandomize=True)
    @given(
        failures=st.lists(FAILURES, min_size=60, max_size=60),
        num_retries=st.integers(0, 50),
        by_kind=st.dictionaries(st.sampled_from(FailureKind), st.integers(0, 50)),
        deadline_s=st.floats(0, 120),
        base_s=st.floats(0, 10),
        luck=st.lists(st.floats(0, 1, exclude_max=True), min_size=60, max_size=60),
        safe=st.booleans(),
    )
    def test_no_sequence_is_endless(
        self,
        failures: list[Failure],
        num_retries: int,
        by_kind: dict[FailureKind, int],
        deadline_s: float,
        base_s: float,
        luck: list[float],
        safe: bool,
    ) -> None:
        """
        Whatever fails and however: attempts are counted, none begins after the deadline,
        no wait is longer than what is left of it, and what is not to be repeated is not.
        """
        chances = iter(luck)
        shared = retries(
            lambda: next(chances),
            num_retries=num_retries,
            by_kind=by_kind,
            deadline_s=deadline_s,
            backoff_base_s=base_s,
        )
        operation = CONVERSE if safe else CREATE_GUARDRAIL
        attempts = shared.begin(
            Match(operation, b"/x"), operation.method.encode(), "m", failures[0].took_s
        )
        began = now = failures[0].took_s
        sent = groups = 0
        most = max([num_retries, *by_kind.values()])
        for number, failure in enumerate(failures):
            target = f"t{number}"
            attempts.started(target, now)
            sent += failure.kind is not CONNECT
            now += failure.took_s
            decision = attempts.after_failure(
                target,
                failure.kind,
                now=now,
                others=["x"] * failure.others,
                again=failure.again,
                retry_after_s=failure.told_s,
            )
            if decision.action == "retry":
                self.assertNotEqual(failure.kind, CLIENT)
                self.assertLessEqual(now + decision.delay_s, began + deadline_s)
                now += decision.delay_s
            elif decision.action == "fallback" and groups < 5:
                groups += 1
                if not attempts.enter(f"g{groups}", ["y"], now):
                    break
                self.assertLess(now, began + deadline_s)
            else:
                break
        else:
            self.assertGreater(most, 8)  # 6 groups of 9 attempts are less than 60
        self.assertLessEqual(sum(attempts.tried.values()), (most + 1) * (groups + 1))
        if not safe:
            self.assertLessEqual(sent, 1)
