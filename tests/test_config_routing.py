"""
What the configuration of routing, retries and fallbacks means, and what its author is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from textwrap import dedent
from typing import Any

from twisted.python.filepath import FilePath
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.config import routing
from txbedrock.config.fields import Field, Reading, Section
from txbedrock.config.routing import Names, Routing, deployment_routing, routing_settings
from txbedrock.config.yamltree import Node, Report, read_file
from txbedrock.core.balance import Panic, RoutingSettings, Strategy
from txbedrock.core.deployments import Deployment
from txbedrock.core.fallbacks import Fallbacks
from txbedrock.core.health import FailureKind
from txbedrock.core.models import Models
from txbedrock.core.retry import RetrySettings

GROUPS = ("a", "b", "c", "long", "mild", "nova-*")
ALIASES = {"also-a": "a", "nova": "nova-lite", "again": "also-a", "c": "a"}
LEFT_OUT = {"gpt", "gpt-4.1", "openai/*", "b"}

DEPLOYMENTS = [
    Deployment(
        id=name,
        model_name=name,
        model_id="x.nova-*" if "*" in name else f"x.{name}",
        region="us-west-2",
    )
    for name in GROUPS
]
DEFAULT = Deployment(id="default", model_name="", model_id="*", region="us-west-2")

NAMES = Names(Models(DEPLOYMENTS, ALIASES, DEFAULT), ALIASES, LEFT_OUT)


class RoutingCase(SynchronousTestCase):
    """Reads sections from a file."""

    def root(self, content: str, environ: Mapping[str, str] | None = None) -> Section:
        path = FilePath(self.mktemp())
        path.setContent(dedent(content).encode())
        assert isinstance(path.path, str)
        self.prefix = f"{path.path}:"
        self.report = Report()
        entries = read_file(path.path, self.report) or {}
        self.reading = Reading(environ or {}, self.report)
        at = Field(Node(None, path.path, 1), "")
        nodes = {key: Field(node, key) for key, node in entries.items()}
        return Section(self.reading, at, nodes)

    def read(self, content: str, environ: Mapping[str, str] | None = None) -> Routing:
        root = self.root(content, environ)
        router, litellm = root.section("router_settings"), root.section("litellm_settings")
        found = routing_settings(router, litellm, NAMES)
        router.finish({}, ours=routing.OURS)
        litellm.finish({})
        self.reading.finish()
        return found

    def good(self, content: str, environ: Mapping[str, str] | None = None) -> Routing:
        """What is read, of which there is nothing to say."""
        found = self.read(content, environ)
        self.assertEqual((self.problems(), self.notices()), ([], []), content)
        return found

    def problems(self) -> list[str]:
        return [one.removeprefix(self.prefix) for one in self.report.problems]

    def notices(self) -> list[str]:
        return [one.removeprefix(self.prefix) for one in self.report.notices]


class RoutingTests(RoutingCase):
    """Balancing and health."""

    def test_nothing(self) -> None:
        """What nobody set is as the core has it."""
        self.assertEqual(
            self.good("{}"),
            Routing(
                RoutingSettings(),
                RetrySettings(),
                Fallbacks(aliases=self.good("{}").fallbacks.aliases),
            ),
        )
        self.assertEqual(self.good("{}").routing.strategy, Strategy.ADAPTIVE)

    def test_settings(self) -> None:
        """Each setting, and what becomes of it."""
        for line, expected in (
            ("allowed_fails: 7", {"allowed_fails": 7}),
            ("cooldown_time: 30", {"cooldown_s": 30}),
            ("cooldown_time: 1m", {"cooldown_s": 60}),
            ("cooldown_time: 0", {"disable_cooldowns": True}),
            ("disable_cooldowns: true", {"disable_cooldowns": True}),
            ("disable_cooldowns: false", {}),
            ("max_cooldown_time: 5m", {"max_cooldown_s": 300}),
            ("panic: refuse", {"panic": Panic.REFUSE}),
            ("panic: try", {"panic": Panic.TRY}),
            ("default_max_parallel_requests: 20", {"default_max_parallel": 20}),
            ("queue_size: 0", {"queue_size": 0}),
            ("queue_timeout: 5s", {"queue_timeout_s": 5}),
            ("affinity_header: X-Session-Id", {"affinity_header": "x-session-id"}),
            ("enable_tag_filtering: true", {"tag_filtering": True}),
            (
                "allowed_fails_policy: "
                "{TimeoutErrorAllowedFails: 1, RateLimitErrorAllowedFails: 9}",
                {
                    "allowed_fails_policy": {
                        FailureKind.TIMEOUT: 1,
                        FailureKind.THROTTLED: 9,
                        FailureKind.NOT_READY: 9,
                    }
                },
            ),
            (
                "allowed_fails_policy: {InternalServerErrorAllowedFails: 4}",
                {
                    "allowed_fails_policy": {
                        FailureKind.UNAVAILABLE: 4,
                        FailureKind.CONNECT: 4,
                        FailureKind.BROKE: 4,
                    }
                },
            ),
            (
                "allowed_fails_policy: {AuthenticationErrorAllowedFails: 0}",
                {
                    "allowed_fails_policy": {
                        FailureKind.DENIED: 0,
                        FailureKind.BAD_CREDENTIALS: 0,
                    }
                },
            ),
        ):
            found = self.good(f"router_settings: {{{line}}}").routing
            self.assertEqual(found, RoutingSettings(**expected), line)

    def test_strategies(self) -> None:
        """All names of LiteLLM's, and our own."""
        for name, strategy in (
            ("simple-shuffle", Strategy.SIMPLE_SHUFFLE),
            ("least-busy", Strategy.LEAST_BUSY),
            ("latency-based-routing", Strategy.LATENCY),
            ("usage-based-routing", Strategy.USAGE),
            ("usage-based-routing-v2", Strategy.USAGE_V2),
            ("cost-based-routing", Strategy.COST),
            ("adaptive", Strategy.ADAPTIVE),
        ):
            found = self.good(f"router_settings: {{routing_strategy: {name}}}").routing
            self.assertEqual(found.strategy, strategy)

    def test_all_is_read(self) -> None:
        """What the balancer and the retries can be told has its setting, but for constants."""
        content = """
        router_settings:
          routing_strategy: least-busy
          panic: refuse
          allowed_fails: 1
          allowed_fails_policy: {TimeoutErrorAllowedFails: 1}
          cooldown_time: 9
          max_cooldown_time: 99
          disable_cooldowns: true
          default_max_parallel_requests: 9
          queue_size: 9
          queue_timeout: 9
          affinity_header: x
          enable_tag_filtering: true
          num_retries: 9
          retry_policy: {TimeoutErrorRetries: 1}
          model_group_retry_policy: {a: {TimeoutErrorRetries: 1}}
          retry_after: 9
          retry_deadline: 9
          retry_budget: 0.5
          repeatable_operations: ["bedrock-agent-runtime:InvokeAgent"]
        """
        found = self.good(content)
        for value, but in (
            (found.routing, ["failed_share"]),
            (found.retries, ["backoff_base_s", "backoff_cap_s", "hedge"]),
        ):
            usual: Any = type(value)()
            same = [
                one.name
                for one in fields(value)
                if getattr(value, one.name) == getattr(usual, one.name)
            ]
            self.assertEqual(same, but)

    def test_environment(self) -> None:
        """A value may come from the environment, as text."""
        found = self.good(
            "router_settings: {num_retries: os.environ/N, enable_tag_filtering: os.environ/T}",
            {"N": "5", "T": "true"},
        )
        self.assertEqual(found.retries.num_retries, 5)
        self.assertTrue(found.routing.tag_filtering)

    def test_deployment(self) -> None:
        """What a deployment says of itself."""
        nothing = {
            "weight": None,
            "order": 0,
            "tags": (),
            "rpm": None,
            "tpm": None,
            "max_parallel": None,
            "max_retries": None,
        }
        for line, expected in (
            ("", {}),
            ("weight: 2", {"weight": 2}),
            ("weight: 0.5", {"weight": 0.5}),
            ("weight: 0", {"weight": 0}),
            ("order: 2", {"order": 2}),
            ("tags: [paid, default]", {"tags": ("paid", "default")}),
            ("tags: paid", {"tags": ("paid",)}),
            ("rpm: 10, tpm: 20000", {"rpm": 10, "tpm": 20000}),
            ("max_parallel_requests: 4", {"max_parallel": 4}),
            ("max_retries: 0", {"max_retries": 0}),
            ("num_retries: 3", {"max_retries": 3}),
        ):
            params = self.root(f"p: {{{line}}}").section("p")
            found = deployment_routing(params)
            params.finish({})
            self.reading.finish()
            self.assertEqual((self.problems(), self.notices()), ([], []))
            self.assertEqual(found, {**nothing, **expected}, line)
            # They are fields of a deployment, by these names.
            Deployment(id="x", model_name="x", model_id="x", region="x", **found)

    def test_deployment_wrong(self) -> None:
        """What it cannot say, and what it says twice."""
        for line, expected in (
            ("weight: heavy", "p.weight: found 'heavy', expected a number, 0 to 1e+06"),
            ("weight: -1", "p.weight: found -1, expected a number, 0 to 1e+06"),
            ("order: 1.5", "p.order: found 1.5, expected a whole number from 0 up"),
            ("tags: [1]", "p.tags: found a number, expected a list of texts"),
            ("tags: {a: b}", "p.tags: found a mapping, expected a list of texts"),
            ("rpm: 0", "p.rpm: found 0, expected a whole number from 1 up"),
            ("max_retries: -1", "p.max_retries: found -1, expected a whole number from 0 up"),
        ):
            deployment_routing(self.root(f"p: {{{line}}}").section("p"))
            self.assertEqual(self.problems(), [f"1: {expected}"])
        found = deployment_routing(self.root("p: {max_retries: 1, num_retries: 2}").section("p"))
        self.reading.finish()
        self.assertEqual(found["max_retries"], 1)
        self.assertEqual(self.notices(), ["1: p.num_retries: has no effect beside max_retries"])


class RetryTests(RoutingCase):
    """How often, how long, and what."""

    def test_settings(self) -> None:
        """Each setting, and what becomes of it."""
        throttled, not_ready = FailureKind.THROTTLED, FailureKind.NOT_READY
        for line, expected in (
            ("num_retries: 0", {"num_retries": 0}),
            ("num_retries: 5", {"num_retries": 5}),
            ("retry_after: 2", {"retry_after_s": 2}),
            ("retry_after: 0", {}),
            ("retry_deadline: 10s", {"deadline_s": 10}),
            ("retry_budget: 0.1", {"budget_ratio": 0.1}),
            ("retry_budget: 0", {"budget_ratio": 0}),
            ("hedge_unary: false", {}),
            ("hedge_unary: true", {"hedge": True}),
            (
                "repeatable_operations: ['bedrock-agent-runtime:Invoke*', 'bedrock:TagResource']",
                {"repeatable": {"bedrock-agent-runtime:Invoke*", "bedrock:TagResource"}},
            ),
            (
                "retry_policy: {RateLimitErrorRetries: 3, TimeoutErrorRetries: 0}",
                {"by_kind": {throttled: 3, not_ready: 3, FailureKind.TIMEOUT: 0}},
            ),
            ("retry_policy: {BadRequestErrorRetries: 0}", {"by_kind": {FailureKind.CLIENT: 0}}),
            (
                "retry_policy: {ContentPolicyViolationErrorRetries: 1}",
                {"by_kind": {FailureKind.CONTENT_POLICY: 1}},
            ),
            (
                "model_group_retry_policy: {a: {RateLimitErrorRetries: 3}, nova-*: {}}",
                {"by_group": {"a": {throttled: 3, not_ready: 3}, "nova-*": {}}},
            ),
            (
                "model_group_retry_policy: {again: {TimeoutErrorRetries: 1}}",
                {"by_group": {"a": {FailureKind.TIMEOUT: 1}}},
            ),
        ):
            found = self.good(f"router_settings: {{{line}}}").retries
            self.assertEqual(found, RetrySettings(**expected), line)

    def test_second_place(self) -> None:
        """What LiteLLM also takes from litellm_settings; router_settings wins."""
        found = self.good("litellm_settings: {num_retries: 4, allowed_fails: 5, cooldown_time: 6}")
        self.assertEqual(found.retries.num_retries, 4)
        self.assertEqual((found.routing.allowed_fails, found.routing.cooldown_s), (5, 6))
        found = self.read(
            """
            router_settings: {num_retries: 0, fallbacks: [{a: [b]}]}
            litellm_settings: {num_retries: 4, fallbacks: [{a: [c]}, 5]}
            """
        )
        self.assertEqual(found.retries.num_retries, 0)
        self.assertEqual(found.fallbacks.general, {"a": ("b",)})
        self.assertEqual(self.problems(), [])
        self.assertEqual(
            self.notices(),
            [
                f"3: litellm_settings.{key}: has no effect beside router_settings.{key}"
                for key in ("num_retries", "fallbacks")
            ],
        )

    def test_without_effect(self) -> None:
        """Policies that cannot do what they say."""
        self.read(
            """
            router_settings:
              retry_policy: {BadRequestErrorRetries: 3}
              allowed_fails_policy:
                BadRequestErrorAllowedFails: 0
                ContentPolicyViolationErrorAllowedFails: 3
              model_group_retry_policy: {gpt: {TimeoutErrorRetries: 1}}
            """
        )
        fails = "router_settings.allowed_fails_policy"
        self.assertEqual(self.problems(), [])
        self.assertEqual(
            self.notices(),
            [
                "3: router_settings.retry_policy.BadRequestErrorRetries: has no effect: a wrong "
                "request is never tried again",
                f"5: {fails}.BadRequestErrorAllowedFails: has no effect: it is no failure of a "
                "deployment's",
                f"6: {fails}.ContentPolicyViolationErrorAllowedFails: has no effect: it is no "
                "failure of a deployment's",
                "7: router_settings.model_group_retry_policy.gpt: is of a deployment that is left "
                "out",
            ],
        )

    def test_wrong(self) -> None:
        """Every wrong value is named, with its place and what is expected."""
        whole = "expected a whole number from 0 up"
        seconds = "or a duration such as 90s, 5m or 1h"
        for line, expected in (
            ("num_retries: two", f"num_retries: found 'two', {whole}"),
            ("num_retries: -1", f"num_retries: found -1, {whole}"),
            ("num_retries: 1.5", f"num_retries: found 1.5, {whole}"),
            ("allowed_fails: [3]", f"allowed_fails: found a list, {whole}"),
            (
                "cooldown_time: soon",
                f"cooldown_time: found 'soon', expected seconds (0 to 604800) {seconds}",
            ),
            (
                "retry_after: -1",
                f"retry_after: found -1, expected seconds (0 to 604800) {seconds}",
            ),
            (
                "retry_deadline: 0",
                f"retry_deadline: found 0, expected seconds (0.001 to 604800) {seconds}",
            ),
            ("retry_budget: 20", "retry_budget: found 20, expected a number, 0 to 1"),
            ("retry_budget: 20%", "retry_budget: found '20%', expected a number, 0 to 1"),
            ("panic: flee", "panic: found 'flee', expected one of try, refuse"),
            (
                "routing_strategy: random",
                "routing_strategy: found 'random', expected one of adaptive, simple-shuffle, "
                "least-busy, latency-based-routing, usage-based-routing, "
                "usage-based-routing-v2, cost-based-routing",
            ),
            ("hedge_unary: maybe", "hedge_unary: found 'maybe', expected true or false"),
            (
                "affinity_header: 'a b'",
                "affinity_header: found 'a b', expected a header's name such as X-Session-Id",
            ),
            (
                "default_max_parallel_requests: 0",
                "default_max_parallel_requests: found 0, expected a whole number from 1 up",
            ),
            (
                "repeatable_operations: [InvokeAgent]",
                "repeatable_operations: found 'InvokeAgent', expected operations such as "
                "bedrock-agent-runtime:InvokeAgent",
            ),
            (
                "repeatable_operations: ['bedrock:Get*', 'bedrock:Inwoke*']",
                "repeatable_operations: found 'bedrock:Inwoke*', expected operations such as "
                "bedrock-agent-runtime:InvokeAgent",
            ),
            ("retry_policy: 3", "retry_policy: found a number, expected a mapping"),
            (
                "retry_policy: {TimeoutErrorRetries: x}",
                f"retry_policy.TimeoutErrorRetries: found 'x', {whole}",
            ),
            (
                "retry_policy: {TimeoutErrorRetry: 1}",
                "retry_policy.TimeoutErrorRetry: found an unknown setting, expected "
                "TimeoutErrorRetries",
            ),
            (
                "allowed_fails_policy: {TimeoutErrorRetries: 1, TimeoutErorAllowedFails: 1}",
                "allowed_fails_policy.TimeoutErorAllowedFails: found an unknown setting, "
                "expected TimeoutErrorAllowedFails",
            ),
            (
                "model_group_retry_policy: {a: 3}",
                "model_group_retry_policy.a: found a number, expected a mapping",
            ),
            (
                "model_group_retry_policy: {nobody: {TimeoutErrorRetries: 1}}",
                "model_group_retry_policy.nobody: found 'nobody', expected a model_name of "
                "model_list",
            ),
            # These are served by a group with a *, or by none: there is no such group.
            (
                "model_group_retry_policy: {nova-pro: {TimeoutErrorRetries: 1}}",
                "model_group_retry_policy.nova-pro: found 'nova-pro', expected a model_name of "
                "model_list",
            ),
            (
                "model_group_retry_policy: {amazon.nova: {TimeoutErrorRetries: 1}}",
                "model_group_retry_policy.amazon.nova: found 'amazon.nova', expected a "
                "model_name of model_list",
            ),
            (
                "retry_budgets: 0.1",
                "retry_budgets: found an unknown setting, expected retry_budget",
            ),
        ):
            self.read(f"router_settings: {{{line}}}")
            self.assertEqual(self.problems(), [f"1: router_settings.{expected}"])

    def test_no_secret_is_shown(self) -> None:
        """What may be a secret is in no message."""
        secret = "sk-" + "Q7w" * 12
        for key in ("repeatable_operations", "num_retries", "panic", "affinity_header"):
            self.read(f"router_settings: {{{key}: '{secret} '}}")
            self.read(f"router_settings: {{{key}: os.environ/S}}", {"S": f"{secret} "})
            for problem in self.problems():
                self.assertNotIn(secret, problem)
            self.assertEqual(len(self.problems()), 1, key)


class FallbackTests(RoutingCase):
    """What is asked instead."""

    def test_settings(self) -> None:
        """Each list, from both places; one name alone is a list as well."""
        for place in ("router_settings", "litellm_settings"):
            found = self.good(
                f"""
                {place}:
                  fallbacks: [{{a: [b, c]}}, {{b: [nova-pro], long: amazon.titan-text}}]
                  default_fallbacks: [b, also-a]
                  context_window_fallbacks:
                    - a: [long]
                    - "*": [long]
                  content_policy_fallbacks: [{{nova-*: [mild]}}]
                """
            ).fallbacks
            self.assertEqual(
                found,
                Fallbacks(
                    general={
                        "a": ("b", "c"),
                        "b": ("nova-pro",),
                        "long": ("amazon.titan-text",),
                    },
                    default=("b", "also-a"),
                    context_window={"a": ("long",), "*": ("long",)},
                    content_policy={"nova-*": ("mild",)},
                    aliases={"also-a": "a", "again": "a", "nova": "nova-lite", "c": "c"},
                ),
            )

    def test_at_most(self) -> None:
        """max_fallbacks: five, unless it says otherwise."""
        self.assertEqual(self.good("{}").fallbacks.max_fallbacks, 5)
        found = self.good("router_settings: {max_fallbacks: 0}").fallbacks
        self.assertEqual(found.max_fallbacks, 0)

    def test_no_loops(self) -> None:
        """A loop is refused at start, and named; aliases are seen through."""
        for lists, expected in (
            ("[{a: [a]}]", "0].a: found a loop (a -> a), expected an end to it"),
            ("[{a: [b]}, {b: [a]}]", "0].a: found a loop (a -> b -> a), expected an end to it"),
            (
                "[{a: [b]}, {b: [long]}, {long: [again]}]",
                "0].a: found a loop (a -> b -> long -> a), expected an end to it",
            ),
            (
                "[{a: [b]}, {b: [long, mild]}, {mild: [b]}]",
                "1].b: found a loop (b -> mild -> b), expected an end to it",
            ),
        ):
            for setting in (
                "fallbacks",
                "context_window_fallbacks",
                "content_policy_fallbacks",
            ):
                self.read(f"router_settings: {{{setting}: {lists}}}")
                self.assertEqual(
                    self.problems(), [f"1: router_settings.{setting}[{expected}"], lists
                )

    def test_wrong(self) -> None:
        """What cannot be asked, and what is no list."""
        model = "expected a model_name of model_list, without a *"
        for line, expected in (
            ("fallbacks: {a: [b]}", "fallbacks: found a mapping, expected a list"),
            ("fallbacks: [a]", "fallbacks[0]: found text, expected a mapping"),
            ("fallbacks: [{a: [1]}]", "fallbacks[0].a: found a number, expected a list of texts"),
            (
                "fallbacks: [{a: [{model: b}]}]",
                "fallbacks[0].a: found a mapping, expected a list of texts",
            ),
            ("fallbacks: [{nobody: [a]}]", f"fallbacks[0].nobody: found 'nobody', {model}"),
            ("fallbacks: [{a: [nobody]}]", f"fallbacks[0].a: found 'nobody', {model}"),
            ("fallbacks: [{a: [nova-*]}]", f"fallbacks[0].a: found 'nova-*', {model}"),
            ("default_fallbacks: [nobody]", f"default_fallbacks: found 'nobody', {model}"),
            (
                "default_fallbacks: [{a: b}]",
                "default_fallbacks: found a mapping, expected a list of texts",
            ),
            (
                "content_policy_fallbacks: [{a: [b]}, {b: [nobody]}]",
                f"content_policy_fallbacks[1].b: found 'nobody', {model}",
            ),
            (
                "max_fallbacks: many",
                "max_fallbacks: found 'many', expected a whole number from 0 up",
            ),
        ):
            self.read(f"router_settings: {{{line}}}")
            self.assertEqual(self.problems(), [f"1: router_settings.{expected}"])

    def test_all_at_once(self) -> None:
        """All problems of a file are told together."""
        self.read(
            """
            router_settings:
              num_retries: x
              fallbacks:
                - a: [a, nobody]
              panic: x
            """
        )
        self.assertEqual(
            [problem.split(": ")[1] for problem in self.problems()],
            [
                "router_settings.num_retries",
                "router_settings.fallbacks[0].a",
                "router_settings.fallbacks[0].a",
                "router_settings.panic",
            ],
        )

    def test_left_out(self) -> None:
        """Models of other providers, in a file that was LiteLLM's, are left out here as well."""
        found = self.read(
            """
            router_settings:
              fallbacks: [{gpt: [a]}, {a: [gpt, b, gpt-4.1]}]
              default_fallbacks: [openai/gpt]
            """
        ).fallbacks
        self.assertEqual((found.general, found.default), ({"a": ("b",)}, ()))
        self.assertEqual(self.problems(), [])
        lists = "router_settings.fallbacks"
        self.assertEqual(
            self.notices(),
            [
                f"3: {lists}[0].gpt: is of a deployment that is left out",
                f"3: {lists}[1].a: names 'gpt', a deployment that is left out",
                f"3: {lists}[1].a: names 'gpt-4.1', a deployment that is left out",
                "4: router_settings.default_fallbacks: names 'openai/gpt', a deployment that is "
                "left out",
            ],
        )

    def test_twice(self) -> None:
        """Of two lists for one name the first counts, as with LiteLLM."""
        found = self.read("router_settings: {fallbacks: [{a: [b]}, {a: [c]}]}").fallbacks
        self.assertEqual(found.general, {"a": ("b",)})
        self.assertEqual(
            self.notices(),
            ["1: router_settings.fallbacks[1].a: has no effect: there are fallbacks of a already"],
        )
