"""
What is asked instead of a model that cannot serve a request.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.fallbacks import FallbackProblem, Fallbacks
from txbedrock.core.health import FailureKind

THROTTLED = FailureKind.THROTTLED
UNAVAILABLE = FailureKind.UNAVAILABLE
CLIENT = FailureKind.CLIENT
CONTEXT_WINDOW = FailureKind.CONTEXT_WINDOW
CONTENT_POLICY = FailureKind.CONTENT_POLICY


def way(fallbacks: Fallbacks, name: str, *kinds: FailureKind) -> list[str]:
    """What is asked after a name, when each fails of the next kind, and of the last for ever."""
    tried: list[tuple[str, FailureKind]] = []
    left = list(kinds)
    asked: list[str] = []
    following: str | None = name
    while following is not None:
        tried.append((following, left.pop(0) if len(left) > 1 else left[0]))
        following = fallbacks.after(tried)
        if following is not None:
            asked.append(following)
    return asked


class AfterTests(SynchronousTestCase):
    """The way of a request over names."""

    def test_ways(self) -> None:
        """Lists of what fails, and of what is asked then."""
        lists = Fallbacks(
            general={"a": ("b", "c"), "b": ("d",), "none": ()},
            default=("z",),
            context_window={"a": ("long", "longer"), "*": ("longer",)},
            content_policy={"a": ("mild",)},
            aliases={"alias-of-a": "a", "alias-of-d": "d"},
        )
        for title, name, kinds, expected in (
            ("its list, each with its own list before the rest", "a", [UNAVAILABLE], "b d c z"),
            ("a name without a list has the default", "other", [UNAVAILABLE], "z"),
            ("unless it is the default itself", "z", [UNAVAILABLE], ""),
            ("an empty list is a list", "none", [UNAVAILABLE], ""),
            ("an alias has the list of what it stands for", "alias-of-a", [THROTTLED], "b d c z"),
            ("a request that is too long", "a", [CONTEXT_WINDOW], "long longer"),
            ("and that of a model without such a list", "other", [CONTEXT_WINDOW], "longer"),
            ("no default for what is improper", "other", [CONTENT_POLICY], ""),
            ("improper", "a", [CONTENT_POLICY], "mild"),
            ("a wrong request", "a", [CLIENT], ""),
            ("found out late", "a", [UNAVAILABLE, CLIENT], "b"),
            (
                "each failure has its own list, and the list before goes on",
                "a",
                [CONTEXT_WINDOW, UNAVAILABLE],
                "long longer z",
            ),
            ("no model", "", [UNAVAILABLE], ""),
            ("no model, too long", "", [CONTEXT_WINDOW], ""),
        ):
            self.assertEqual(way(lists, name, *kinds), expected.split(), title)

    def test_all_kinds(self) -> None:
        """What may go better elsewhere has the general list; nothing else has."""
        lists = Fallbacks(general={"a": ("b",)}, default=("c",))
        for kind in FailureKind:
            expected = None if kind.clients else "b"
            self.assertEqual(lists.after([("a", kind)]), expected, kind)

    def test_keys(self) -> None:
        """Which list a name has: its own before all that mean it, patterns last."""
        lists = Fallbacks(
            general={
                "*": ("any",),
                "claude-*": ("claude",),
                "claude-*-v2": ("claude two",),
                "claude-opus": ("opus",),
                "group": ("of group",),
                "alias": ("of alias",),
                "bedrock/x.y": ("with prefix",),
                "x.z": ("without prefix",),
                "bedrock/w.*": ("with prefix and star",),
            },
            aliases={"alias": "group", "second": "group", "third": "claude-9"},
        )
        for name, expected in (
            ("claude-opus", "opus"),
            ("claude-haiku", "claude"),
            ("claude-haiku-v2", "claude two"),
            ("claude-", "claude"),
            ("claude", "any"),
            ("claude-v2", "claude"),
            ("group", "of group"),
            ("alias", "of alias"),
            ("second", "of group"),
            ("third", "claude"),
            ("x.y", "with prefix"),
            ("bedrock/x.y", "with prefix"),
            ("bedrock/x.z", "without prefix"),
            ("bedrock/w.1", "with prefix and star"),
            ("w.1", "with prefix and star"),
            ("else", "any"),
        ):
            self.assertEqual(lists.after([(name, UNAVAILABLE)]), expected, name)

    def test_not_twice(self) -> None:
        """What was asked is not asked again, not under another name either."""
        lists = Fallbacks(
            general={"a": ("also-a", "a", "b"), "b": ("a", "also-b")},
            aliases={"also-a": "a", "also-b": "b"},
        )
        self.assertEqual(way(lists, "a", UNAVAILABLE), ["b"])
        self.assertEqual(way(lists, "also-a", UNAVAILABLE), ["b"])

    def test_at_most(self) -> None:
        """max_fallbacks are asked for one request."""
        names = tuple("bcdefghij")
        for most, expected in ((0, 0), (1, 1), (5, 5), (20, 9)):
            lists = Fallbacks(general={"a": names}, max_fallbacks=most)
            self.assertEqual(way(lists, "a", UNAVAILABLE), list(names[:expected]), most)
        self.assertEqual(Fallbacks().max_fallbacks, 5)

    @settings(max_examples=300, deadline=None, derandomize=True)
    @given(
        general=st.dictionaries(
            st.sampled_from("abcdef*"), st.lists(st.sampled_from("abcdef")).map(tuple)
        ),
        context_window=st.dictionaries(
            st.sampled_from("abcdef*"), st.lists(st.sampled_from("abcdef")).map(tuple)
        ),
        default=st.lists(st.sampled_from("abcdef")).map(tuple),
        aliases=st.dictionaries(st.sampled_from("ab"), st.sampled_from("cd")),
        kinds=st.lists(st.sampled_from(FailureKind), min_size=1, max_size=8),
    )
    def test_ends(
        self,
        general: dict[str, tuple[str, ...]],
        context_window: dict[str, tuple[str, ...]],
        default: tuple[str, ...],
        aliases: dict[str, str],
        kinds: list[FailureKind],
    ) -> None:
        """Whatever is configured, loops as well, and whatever fails: nothing is asked twice."""
        lists = Fallbacks(general, default, context_window, aliases=aliases, max_fallbacks=1000)
        asked = ["a", *way(lists, "a", *kinds)]
        meant = [aliases.get(name, name) for name in asked]
        self.assertEqual(len(meant), len(set(meant)))


class ProblemTests(SynchronousTestCase):
    """What cannot be meant."""

    def problems(self, **kwargs: object) -> list[FallbackProblem]:
        known = {"a", "b", "c", "d", "also-a"}
        return Fallbacks(**kwargs).problems(known.__contains__)  # type: ignore[arg-type]

    def test_good(self) -> None:
        """Chains, shared ends, a way back by another failure, and lists for all."""
        for title, lists in (
            ("nothing", {}),
            ("a chain", {"general": {"a": ("b",), "b": ("c",), "c": ("d",)}}),
            ("a shared end", {"general": {"a": ("d",), "b": ("d",), "c": ("a", "b")}}),
            (
                "a way back by another failure",
                {"general": {"a": ("b",)}, "context_window": {"b": ("a",)}},
            ),
            ("a list for all", {"general": {"*": ("a", "b"), "a": ("b",)}}),
            ("a pattern that matches its own list", {"general": {"a*": ("a", "also-a")}}),
            ("a default with a list of its own", {"general": {"a": ("b",)}, "default": ("a",)}),
        ):
            self.assertEqual(self.problems(**lists), [], title)

    def test_loops(self) -> None:
        """A loop is named once, with the whole way around, aliases seen through."""
        for general, expected in (
            ({"a": ("a",)}, {"a": ["a -> a"]}),
            ({"a": ("b",), "b": ("a",)}, {"a": ["a -> b -> a"]}),
            ({"a": ("c", "b"), "b": ("c", "a")}, {"a": ["a -> b -> a"]}),
            (
                {"a": ("b",), "b": ("c",), "c": ("d",), "d": ("b",)},
                {"b": ["b -> c -> d -> b"]},
            ),
            (
                {"a": ("b",), "b": ("a",), "c": ("d",), "d": ("c",)},
                {"a": ["a -> b -> a"], "c": ["c -> d -> c"]},
            ),
            (
                {"a": ("b", "c"), "b": ("a",), "c": ("a",)},
                {"a": ["a -> b -> a", "a -> c -> a"]},
            ),
            ({"a": ("also-a",)}, {"a": ["a -> a"]}),
            ({"b": ("also-a",), "a": ("b",)}, {"b": ["b -> also-a -> b"]}),
        ):
            found: dict[str, list[str]] = {}
            for setting in ("general", "context_window", "content_policy"):
                found = {}
                for problem in self.problems(**{setting: general}, aliases={"also-a": "a"}):
                    self.assertEqual(problem.expected, "an end to it")
                    self.assertEqual(
                        problem.setting,
                        "fallbacks" if setting == "general" else f"{setting}_fallbacks",
                    )
                    loop = problem.found.removeprefix("a loop (").removesuffix(")")
                    found.setdefault(problem.name, []).append(loop)
                self.assertEqual(found, expected, setting)

    def test_unknown(self) -> None:
        """A name that nobody can ask for, and where it stands."""
        for lists, setting, name, found in (
            ({"general": {"x": ("a",)}}, "fallbacks", "x", "'x'"),
            ({"general": {"a": ("b", "x")}}, "fallbacks", "a", "'x'"),
            ({"default": ("a", "x")}, "default_fallbacks", "", "'x'"),
            ({"context_window": {"a": ("x",)}}, "context_window_fallbacks", "a", "'x'"),
            ({"content_policy": {"*": ("x",)}}, "content_policy_fallbacks", "*", "'x'"),
            ({"general": {"a": ("b*",)}}, "fallbacks", "a", "'b*'"),
            ({"general": {"a": ("x" * 90,)}}, "fallbacks", "a", f"'{'x' * 77}...'"),
        ):
            expected = "a model_name of model_list, without a *"
            self.assertEqual(
                self.problems(**lists), [FallbackProblem(setting, name, found, expected)]
            )
