"""Tests for :mod:`txbedrock.core.balance` and :mod:`txbedrock.core.candidates`."""

from __future__ import annotations

import gc
import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.balance import (
    Ask,
    Balancer,
    InFlight,
    Panic,
    Reason,
    Refusal,
    RoutingSettings,
    Strategy,
    Waiter,
)
from txbedrock.core.candidates import DeploymentState, MemberSpec
from txbedrock.core.deployments import Deployment
from txbedrock.core.health import CircuitState, FailureKind
from txbedrock.core.models import Choice
from txbedrock.errors import Fault, InvalidRequest

K = FailureKind
MODEL = "x.y"
NOW = 1_795_354_200.25


def choice(id: str, model_id: str = MODEL, configured: str | None = None) -> Choice:
    deployment = Deployment(
        id=id, model_name="m", model_id=configured or model_id, region="us-west-2"
    )
    return Choice(deployment, model_id, "us-west-2")


class Group:
    """A balancer with one model group, and a clock."""

    def __init__(
        self,
        specs: dict[str, MemberSpec],
        strategy: Strategy = Strategy.ADAPTIVE,
        seed: int = 1,
        **more: Any,
    ) -> None:
        self.changes: list[DeploymentState] = []
        self.balancer = Balancer(
            RoutingSettings(strategy=strategy, **more),
            specs,
            random.Random(seed),
            self.changes.append,
        )
        self.choices = tuple(choice(id) for id in specs)
        self.now = NOW

    def ask(self, **more: Any) -> Ask:
        return Ask(self.choices, "Converse", **more)

    def choose(self, **more: Any) -> str | Refusal:
        found = self.balancer.choose(self.ask(**more), self.now)
        return found if isinstance(found, Refusal) else found.deployment.id

    def take(self, **more: Any) -> InFlight:
        taken = self.balancer.take(self.ask(**more), self.now)
        assert isinstance(taken, InFlight), taken
        return taken

    def refused(self, **more: Any) -> Refusal:
        taken = self.balancer.take(self.ask(**more), self.now)
        assert isinstance(taken, Refusal), taken
        return taken

    def take_at(self, id: str, **more: Any) -> InFlight:
        """Take it at one of them, whatever the strategy thinks."""
        others = {one.deployment.id for one in self.choices} - {id}
        flight = self.take(tried=others, **more)
        assert flight.choice.deployment.id == id, flight.choice
        return flight

    def answered(self, id: str, seconds: float, times: int = 1) -> None:
        for _ in range(times):
            flight = self.take_at(id)
            self.now += seconds
            flight.first_byte(self.now)
            flight.end(None, self.now)

    def failed(self, id: str, *kinds: FailureKind, retry_after_s: float | None = None) -> None:
        for kind in kinds:
            self.take_at(id).end(kind, self.now, retry_after_s)

    def share(self, times: int = 1000, **more: Any) -> Counter[str | Refusal]:
        """Where so many requests would go."""
        return Counter(self.choose(**more) for _ in range(times))

    def state(self, id: str) -> DeploymentState:
        return next(one for one in self.balancer.states(self.now) if one.id == id)


def alike(*ids: str, **more: Any) -> dict[str, MemberSpec]:
    return {id: MemberSpec(**more) for id in ids}


class BarredTests(SynchronousTestCase):
    """Where a request must not go again."""

    def test_never(self) -> None:
        """Not while others cool down, nor when it is the only one left."""
        group = Group(alike("a", "b", "c"))
        group.failed("b", K.THROTTLED)
        for _ in range(50):
            ask = group.ask(tried={"a", "c"}, barred={"a"})
            taken = group.balancer.take(ask, group.now)
            assert isinstance(taken, InFlight)
            self.assertEqual(taken.choice.deployment.id, "c")
            taken.end(None, group.now)
        group.failed("c", K.THROTTLED)
        for _ in range(50):
            self.assertIn(group.choose(tried={"a", "b", "c"}, barred={"a"}), "bc")
        refused = group.refused(tried={"a", "b", "c"}, barred={"a", "b", "c"})
        self.assertEqual(refused.reason, Reason.COOLING)

    def test_probe(self) -> None:
        """One that is asked for by name is asked, however it does, and may come back."""
        group = Group(alike("a", "b", max_parallel=1), panic=Panic.REFUSE)
        group.failed("a", K.DENIED)
        busy = group.take_at("b")
        for id in ("a", "b"):
            [chosen] = [one for one in group.choices if one.deployment.id == id]
            flight = group.balancer.probe(chosen, "Converse", group.now)
            self.assertEqual(flight.choice, chosen)
            flight.end(None, group.now)
        busy.end(None, group.now)
        self.assertEqual(group.state("a").state, CircuitState.CLOSED)
        self.assertEqual([one.in_flight for one in group.balancer.states(group.now)], [0, 0])


class StrategyTests(SynchronousTestCase):
    """Each of LiteLLM's strategies does what its name says."""

    def test_names(self) -> None:
        """They have LiteLLM's names; ours is the default."""
        self.assertEqual(
            [one.value for one in Strategy],
            [
                "adaptive",
                "simple-shuffle",
                "least-busy",
                "latency-based-routing",
                "usage-based-routing",
                "usage-based-routing-v2",
                "cost-based-routing",
            ],
        )
        self.assertIs(RoutingSettings().strategy, Strategy.ADAPTIVE)

    def test_one(self) -> None:
        """A group of one needs no choice."""
        for strategy in Strategy:
            self.assertEqual(Group(alike("a"), strategy).choose(), "a")

    def test_shuffle(self) -> None:
        """By weight, else by rpm, else by tpm, else alike. What has none gets none."""
        for name, specs in (
            ("weight", {"a": MemberSpec(weight=3, rpm=10**6), "b": MemberSpec(weight=1)}),
            ("rpm", {"a": MemberSpec(rpm=3 * 10**6, tpm=10**9), "b": MemberSpec(rpm=10**6)}),
            ("tpm", {"a": MemberSpec(tpm=3 * 10**6), "b": MemberSpec(tpm=10**6)}),
        ):
            specs["c"] = MemberSpec()
            share = Group(specs, Strategy.SIMPLE_SHUFFLE).share()
            self.assertEqual(share["c"], 0, name)
            self.assertTrue(700 < share["a"] < 800, (name, share))
        share = Group(alike("a", "b"), Strategy.SIMPLE_SHUFFLE).share()
        self.assertTrue(450 < share["a"] < 550, share)

    def test_shuffle_weightless(self) -> None:
        """Those without a weight are used when no other is left."""
        group = Group(
            {"a": MemberSpec(weight=1), "b": MemberSpec(), "c": MemberSpec()},
            Strategy.SIMPLE_SHUFFLE,
        )
        group.failed("a", K.THROTTLED)
        self.assertEqual(set(group.share(100)), {"b", "c"})

    def test_least_busy(self) -> None:
        """Fewest in flight; those that are equal by chance."""
        group = Group(alike("a", "b", "c"), Strategy.LEAST_BUSY)
        first = group.take_at("a")
        self.assertEqual(set(group.share(100)), {"b", "c"})
        group.take_at("b")
        group.take_at("c")
        group.take_at("c")
        first.end(None, group.now)
        self.assertEqual(set(group.share(100)), {"a"})

    def test_latency(self) -> None:
        """Shortest mean of the last ten; what is not known is tried first."""
        group = Group(alike("a", "b", "c"), Strategy.LATENCY)
        group.answered("a", 0.2)
        group.answered("b", 0.1)
        self.assertEqual(set(group.share(100)), {"c"})
        group.answered("c", 0.3)
        self.assertEqual(set(group.share(100)), {"b"})
        group.answered("b", 0.5, times=10)
        self.assertEqual(set(group.share(100)), {"a"})
        group.failed("a", K.TIMEOUT)
        self.assertEqual(set(group.share(100)), {"c"})

    def test_latency_of_operations(self) -> None:
        """Each operation has times of its own."""
        group = Group(alike("a", "b"), Strategy.LATENCY)
        group.answered("a", 0.2)
        group.answered("b", 0.1)
        asked = Ask(group.choices, "ConverseStream", tried={"b"})
        group.balancer.take(asked, group.now)
        found = {
            str(group.balancer.choose(Ask(group.choices, "ConverseStream"), group.now))
            for _ in range(50)
        }
        self.assertEqual(len(found), 2)

    def test_usage(self) -> None:
        """Fewest tokens in the last minute, those of requests in flight included."""
        for strategy in (Strategy.USAGE, Strategy.USAGE_V2):
            group = Group(alike("a", "b", "c"), strategy)
            group.take_at("a").end(None, group.now, tokens=100)
            group.take_at("b").end(None, group.now, tokens=300)
            flight = group.take_at("c", tokens=200)
            self.assertEqual(set(group.share(50)), {"a"}, strategy)
            flight.end(None, group.now, tokens=50)
            self.assertEqual(set(group.share(50)), {"c"}, strategy)
            group.now += 62
            group.take_at("a").end(None, group.now, tokens=1)
            self.assertEqual(set(group.share(50)), {"b", "c"}, strategy)

    def test_cost(self) -> None:
        """The cheapest that is in rotation; without a price the last."""
        specs = {"a": MemberSpec(), "b": MemberSpec(cost=2), "c": MemberSpec(cost=1)}
        group = Group(specs, Strategy.COST)
        self.assertEqual(set(group.share(50)), {"c"})
        group.failed("c", K.THROTTLED)
        self.assertEqual(set(group.share(50)), {"b"})


class AdaptiveTests(SynchronousTestCase):
    """Ours: the better ones, and now and then a look at the others."""

    def known(self, **times: float) -> Group:
        group = Group(alike(*times))
        for _ in range(5):
            for id, seconds in times.items():
                group.answered(id, seconds)
        return group

    def test_new(self) -> None:
        """All new ones are tried at once, and as long as nothing is known share alike."""
        group = Group(alike(*"abcdefgh"))
        for _ in range(2):
            flights = [group.take().choice.deployment.id for _ in range(8)]
            self.assertEqual(sorted(flights), list("abcdefgh"))

    def test_fast(self) -> None:
        """Nearly all requests go to the fastest."""
        share = self.known(a=0.01, b=0.05, c=0.2).share()
        self.assertGreater(share["a"], 990)

    def test_operations(self) -> None:
        """What is fast for one operation may be slow for another."""
        group = self.known(a=0.01, b=0.05)
        for id, seconds in (("a", 0.5), ("b", 0.1)) * 5:
            others = {"a", "b"} - {id}
            flight = group.balancer.take(Ask(group.choices, "Rerank", tried=others), group.now)
            assert isinstance(flight, InFlight)
            group.now += seconds
            flight.end(None, group.now)
        found = [group.balancer.choose(Ask(group.choices, "Rerank"), group.now) for _ in range(20)]
        self.assertEqual({one.deployment.id for one in found if isinstance(one, Choice)}, {"b"})
        self.assertEqual(group.share(20).most_common(1)[0][0], "a")

    def test_queue(self) -> None:
        """When many wait at the fastest the next best is as good."""
        group = self.known(a=0.01, b=0.05)
        flights = [group.take() for _ in range(60)]
        at = Counter(flight.choice.deployment.id for flight in flights)
        self.assertGreater(at["a"], 30)
        self.assertGreater(at["b"], 3)

    def test_hangs(self) -> None:
        """What hangs gets hardly any more requests, before one has timed out."""
        group = self.known(a=0.05, b=0.06)
        at: Counter[str] = Counter()
        for _ in range(1000):
            flight = group.take()
            at[flight.choice.deployment.id] += 1
            group.now += 0.06
            if flight.choice.deployment.id == "b":
                flight.end(None, group.now)
        self.assertLess(at["a"], 20)

    def test_left(self) -> None:
        """Clients that leave before the first byte say how slow it is; that is no failure."""
        group = self.known(a=0.05, b=0.06)
        for _ in range(5):
            flight = group.take_at("a")
            group.now += 5
            flight.abandon(group.now)
        self.assertEqual(set(group.share(100)), {"b"})
        self.assertEqual(group.state("a").error_rate, 0.0)
        self.assertIs(group.state("a").state, CircuitState.CLOSED)

    def test_errors(self) -> None:
        """One that fails now and then is used less, before it is taken out."""
        group = self.known(a=0.05, b=0.06)
        group.failed("a", K.UNAVAILABLE, K.UNAVAILABLE)
        self.assertIs(group.state("a").state, CircuitState.CLOSED)
        self.assertGreater(group.state("a").error_rate, 0.1)
        self.assertGreater(group.share()["b"], 990)

    def test_failing_only(self) -> None:
        """One that only ever fails is not taken for a new one, even without cooldowns."""
        group = Group(alike("a", "b"), disable_cooldowns=True)
        group.answered("b", 0.1, times=10)
        at: Counter[str] = Counter()
        for _ in range(1000):
            flight = group.take()
            at[flight.choice.deployment.id] += 1
            group.now += 0.1
            flight.end(K.CONNECT if flight.choice.deployment.id == "a" else None, group.now)
        self.assertLess(at["a"], 50)

    def test_scarce(self) -> None:
        """Where little of a quota is left another one is better, even a slower one."""
        for name, spec, tokens in (
            ("rpm", MemberSpec(rpm=50), 0),
            ("tpm", MemberSpec(tpm=5000), 100),
        ):
            group = Group({"a": spec, "b": MemberSpec()})
            for _ in range(48):
                flight = group.take_at("a", tokens=tokens)
                group.now += 0.01
                flight.end(None, group.now, tokens=tokens)
            group.answered("b", 0.02, times=5)
            self.assertEqual(set(group.share(50, tokens=tokens)), {"b"}, name)

    def test_explores(self) -> None:
        """One that was slow is looked at again, rarely, and used when it has become fast."""
        group = self.known(a=0.01, b=0.05)
        at: list[str] = []
        for _ in range(4000):
            flight = group.take()
            at.append(flight.choice.deployment.id)
            group.now += 0.05 if at[-1] == "b" else 0.01
            flight.end(None, group.now)
        self.assertGreater(at.count("b"), 0)
        self.assertLess(at.count("b"), 20)
        for _ in range(8000):
            flight = group.take()
            at.append(flight.choice.deployment.id)
            group.now += 0.001 if at[-1] == "b" else 0.01
            flight.end(None, group.now)
        self.assertGreater(at[-1000:].count("b"), 950)

    def test_few_requests(self) -> None:
        """With few requests there are still looks, every few minutes."""
        group = self.known(a=0.01, b=0.05)
        at: Counter[str] = Counter()
        for _ in range(200):
            group.now += 10
            flight = group.take()
            at[flight.choice.deployment.id] += 1
            group.now += 0.05 if flight.choice.deployment.id == "b" else 0.01
            flight.end(None, group.now)
        self.assertGreater(at["b"], 3)
        self.assertLess(at["b"], 12)

    def test_many(self) -> None:
        """Of thirty the ten fastest share nearly all requests, none is left out."""
        times = {f"d{number}": (0.01, 0.05, 0.2)[number % 3] for number in range(30)}
        group = self.known(**times)
        share: Counter[str] = Counter()
        flights: deque[InFlight] = deque()
        for _ in range(3000):
            flight = group.take()
            share[flight.choice.deployment.id] += 1
            flights.append(flight)
            group.now += 0.001
            if len(flights) > 9:
                flights.popleft().end(None, group.now)
        fast = [share[id] for id, seconds in times.items() if seconds == 0.01]
        self.assertGreater(sum(fast), 2800)
        self.assertGreater(min(fast), 100)

    def test_sent_later(self) -> None:
        """What a request waited before it was sent is not the deployment's time."""
        group = Group(alike("a"))
        flight = group.take()
        flight.sent(group.now + 10)
        flight.first_byte(group.now + 10.5)
        self.assertAlmostEqual(group.state("a").latency_s or 0.0, 0.5)


class OrderTests(SynchronousTestCase):
    """Priorities, and where an exchange has been."""

    def test_tiers(self) -> None:
        """A higher order is for when none of the lower is left, for whatever reason."""
        for strategy in Strategy:
            specs = {
                "a": MemberSpec(weight=1, order=1, max_parallel=2),
                "b": MemberSpec(weight=1, order=1, rpm=2),
                "c": MemberSpec(weight=1, order=2),
                "d": MemberSpec(weight=1, order=3),
            }
            group = Group(specs, strategy)
            self.assertEqual(set(group.share(50)), {"a", "b"}, strategy)
            group.failed("b", K.THROTTLED)
            self.assertEqual(set(group.share(50)), {"a"}, strategy)
            flights = [group.take_at("a") for _ in range(2)]
            self.assertEqual(set(group.share(50)), {"c"}, strategy)
            group.failed("c", K.THROTTLED)
            self.assertEqual(set(group.share(50)), {"d"}, strategy)
            flights[0].end(None, group.now)
            self.assertEqual(set(group.share(50)), {"a"}, strategy)

    def test_tried(self) -> None:
        """A retry goes elsewhere, to the next order if it must; at last to the same again."""
        group = Group({"a": MemberSpec(), "b": MemberSpec(), "c": MemberSpec(order=2)})
        ask = group.ask()
        went = []
        for _ in range(4):
            flight = group.balancer.take(ask, group.now)
            assert isinstance(flight, InFlight)
            went.append(flight.choice.deployment.id)
            flight.end(K.UNAVAILABLE, group.now)
        self.assertEqual(set(went[:2]), {"a", "b"})
        self.assertEqual(went[2], "c")
        self.assertIn(went[3], "ab")
        self.assertEqual(sorted(ask.tried), ["a", "b", "c"])

    def test_tried_alone(self) -> None:
        """A group of one is tried again."""
        self.assertEqual(Group(alike("a")).choose(tried={"a"}), "a")


class TagTests(SynchronousTestCase):
    """The tags of a request choose deployments, as in LiteLLM."""

    specs = {
        "free": MemberSpec(tags=("free",)),
        "paid": MemberSpec(tags=("paid", "eu")),
        "both": MemberSpec(tags=("paid", "free")),
        "other": MemberSpec(tags=("default",)),
        "none": MemberSpec(),
    }

    def test_tags(self) -> None:
        """Any tag in common is enough; else the default ones serve."""
        group = Group(self.specs, Strategy.SIMPLE_SHUFFLE, tag_filtering=True)
        for tags, ids in (
            (("free",), {"free", "both"}),
            (("eu", "x"), {"paid"}),
            (("eu", "free"), {"free", "paid", "both"}),
            (("x",), {"other"}),
            ((), {"other"}),
        ):
            self.assertEqual(set(group.share(100, tags=tags)), ids, tags)

    def test_no_default(self) -> None:
        """Without a default, requests without tags go everywhere, those with others nowhere."""
        specs = {id: self.specs[id] for id in ("free", "none")}
        group = Group(specs, Strategy.SIMPLE_SHUFFLE, tag_filtering=True)
        self.assertEqual(set(group.share(100)), {"free", "none"})
        error = self.assertRaises(InvalidRequest, group.choose, tags=("x",))
        self.assertIn("tags", error.message)
        self.assertEqual(set(group.share(100)), {"free", "none"})

    def test_untagged(self) -> None:
        """Groups without tags serve all; and where it is not asked for, so do all groups."""
        group = Group(alike("a", "b"), Strategy.SIMPLE_SHUFFLE, tag_filtering=True)
        self.assertEqual(set(group.share(100, tags=("x",))), {"a", "b"})
        group = Group(self.specs, Strategy.SIMPLE_SHUFFLE)
        self.assertEqual(set(group.share(200, tags=("eu",))), set(self.specs))

    def test_many_tags(self) -> None:
        """What clients make up is not kept."""
        group = Group(self.specs, tag_filtering=True)
        for number in range(1000):
            group.choose(tags=(f"x{number}", "free"))
        (pool,) = group.balancer._pools.values()
        self.assertEqual(len(pool.by_tags), 1)


class SessionTests(SynchronousTestCase):
    """Requests of a session go to the same deployment, for its prompt cache."""

    def homes(self, group: Group, count: int = 400) -> dict[str, str | Refusal]:
        return {f"s{n}": group.choose(session=f"s{n}") for n in range(count)}

    def test_same(self) -> None:
        """A session keeps its deployment, in each process; sessions are spread."""
        for strategy in Strategy:
            homes = self.homes(Group(alike(*"abcd"), strategy, seed=1))
            self.assertEqual(homes, self.homes(Group(alike(*"abcd"), strategy, seed=2)))
            share = Counter(homes.values())
            self.assertEqual(len(share), 4)
            self.assertTrue(all(60 < count < 140 for count in share.values()), share)

    def test_shares(self) -> None:
        """In proportion to what deployments can take."""
        specs = {"a": MemberSpec(rpm=3 * 10**6), "b": MemberSpec(rpm=10**6)}
        share = Counter(self.homes(Group(specs)).values())
        self.assertTrue(270 < share["a"] < 330, share)

    def test_unwell(self) -> None:
        """While one is out only its sessions move, to places that they keep, and back."""
        group = Group(alike(*"abcd"))
        before = self.homes(group)
        group.failed("b", K.THROTTLED)
        during = self.homes(group)
        for session, home in before.items():
            self.assertTrue(during[session] == home != "b" or home == "b" != during[session])
        self.assertEqual(during, self.homes(group))
        moved = Counter(during[session] for session, home in before.items() if home == "b")
        self.assertEqual(len(moved), 3)
        group.now += 10
        group.take().end(None, group.now)
        self.assertEqual(before, self.homes(group))

    def test_slow(self) -> None:
        """A session is given up where it is much slower, not where it is a bit slower."""
        group = Group(alike("a", "b"))
        for _ in range(5):
            group.answered("a", 0.1)
            group.answered("b", 0.3)
        self.assertEqual(set(self.homes(group).values()), {"a", "b"})
        for _ in range(5):
            group.answered("b", 2.0)
        self.assertEqual(set(self.homes(group).values()), {"a"})

    def test_retry(self) -> None:
        """Where a session's request has failed it is not sent again."""
        group = Group(alike("a", "b", "c"))
        for n in range(20):
            home = group.choose(session=f"s{n}")
            self.assertNotEqual(group.choose(session=f"s{n}", tried={home}), home)

    def test_odd(self) -> None:
        """Any text is a session."""
        for session in ("\udcff", "x" * 100_000, "\0"):
            self.assertIn(Group(alike("a", "b")).choose(session=session), ("a", "b"))


class RoomTests(SynchronousTestCase):
    """rpm, tpm and max_parallel hold."""

    def test_rpm(self) -> None:
        """No more requests in sixty seconds; then the wait is known to the second."""
        group = Group(alike("a", rpm=3))
        for _ in range(3):
            group.take().end(None, group.now)
            group.now += 1
        refusal = group.refused()
        self.assertEqual(refusal, (Reason.RATE, 57.75, None))
        group.now += refusal.wait_s - 0.001
        group.refused()
        group.now += 0.001
        group.take()
        group.refused()

    def test_rpm_failed(self) -> None:
        """What failed counts too; what was never sent does not."""
        group = Group(alike("a", rpm=2))
        group.take().release(group.now)
        group.take().end(K.TIMEOUT, group.now)
        group.take().abandon(group.now)
        group.refused()

    def test_rpm_nothing(self) -> None:
        """A limit of 0 is one, now and in an hour."""
        group = Group({"a": MemberSpec(rpm=0), "b": MemberSpec(max_parallel=0)})
        self.assertIs(group.refused().reason, Reason.PARALLEL)
        group = Group(alike("a", rpm=0))
        for _ in range(3):
            self.assertIs(group.refused().reason, Reason.RATE)
            group.now += 3600

    def test_tpm(self) -> None:
        """Tokens that are used, reserved and asked for together fit."""
        group = Group(alike("a", tpm=1000))
        first = group.take(tokens=600)
        self.assertIs(group.refused(tokens=500).reason, Reason.RATE)
        second = group.take(tokens=400)
        self.assertIs(group.refused().reason, Reason.RATE)
        first.end(None, group.now, tokens=100)
        group.take(tokens=500).release(group.now)
        second.end(None, group.now, tokens=900)
        self.assertEqual(group.refused(tokens=1).wait_s, 60.75)
        group.now += 60.75
        group.take(tokens=1000)

    def test_tpm_too_much(self) -> None:
        """A request that alone needs more than tpm goes where it fits, or nowhere."""
        group = Group({"a": MemberSpec(tpm=1000), "b": MemberSpec(tpm=2000, order=2)})
        self.assertEqual(group.choose(tokens=1500), "b")
        self.assertEqual(group.refused(tokens=2500).reason, Reason.RATE)

    def test_parallel(self) -> None:
        """No more at the same time; a deployment's own limit comes before the general."""
        group = Group({"a": MemberSpec(max_parallel=1), "b": MemberSpec()}, default_max_parallel=2)
        flights = [group.take() for _ in range(3)]
        self.assertEqual(
            Counter(one.choice.deployment.id for one in flights), Counter({"a": 1, "b": 2})
        )
        self.assertIs(group.refused().reason, Reason.PARALLEL)
        flights[0].end(None, group.now)
        flights[0].end(None, group.now)
        flights[0].abandon(group.now)
        flights[0].release(group.now)
        group.take()
        group.refused()

    def test_shared_by_models(self) -> None:
        """A deployment for many models has one limit for all of them."""
        group = Group(alike("a", rpm=2, max_parallel=2))
        for model_id in ("x.1", "x.2"):
            choices = (choice("a", model_id, "*"),)
            self.assertIsInstance(
                group.balancer.take(Ask(choices, "Converse"), group.now), InFlight
            )
        refused = group.balancer.take(Ask((choice("a", "x.3", "*"),), "Converse"), group.now)
        self.assertIsInstance(refused, Refusal)

    def test_clock(self) -> None:
        """A clock that is set back lets nobody past a limit, nor keeps anybody out for longer."""
        group = Group(alike("a", "b", rpm=12, tpm=1000))
        for step in (0.0, 5.0, -3600.0, 1.0, 1.0, -1e6, 10.0, 1.0):
            group.now += step
            for _ in range(3):
                flight = group.take(tokens=5)
                flight.first_byte(group.now - 1)
                flight.end(None, group.now - 2, tokens=5)
        for id in "ab":
            state = group.state(id)
            self.assertEqual((state.state, state.in_flight), (CircuitState.CLOSED, 0))
            self.assertEqual((state.latency_s, state.error_rate), (0.0, 0.0))
        refusal = group.refused()
        self.assertIs(refusal.reason, Reason.RATE)
        self.assertLessEqual(refusal.wait_s, 61)
        group.now += 61
        self.assertEqual(len([group.take() for _ in range(24)]), 24)
        group.refused()


class LearnedTests(SynchronousTestCase):
    """Quotas that throttling tells."""

    def test_learned(self) -> None:
        """Once throttled, the same use is avoided where another one is there."""
        group = Group(alike("a", "b"))
        group.answered("b", 0.05, times=3)
        for _ in range(100):
            group.answered("a", 0.01)
        self.assertGreater(group.share(100)["a"], 90)
        group.failed("a", K.THROTTLED)
        group.now += 7
        group.answered("a", 0.01)
        self.assertIs(group.state("a").state, CircuitState.CLOSED)
        self.assertEqual(set(group.share(100)), {"b"})
        group.now += 62
        self.assertGreater(group.share(100)["a"], 90)

    def test_opinion(self) -> None:
        """It is an opinion: if it is the only one it is used, and what goes well is learned."""
        group = Group(alike("a", "b"))
        group.answered("a", 0.01, times=20)
        group.answered("b", 0.05, times=20)
        group.failed("a", K.THROTTLED)
        group.now += 7
        group.answered("a", 0.01, times=40)
        self.assertGreater(group.share(100)["a"], 90)

    def test_tokens(self) -> None:
        """Whether it was requests or tokens is not known: both have to be used again."""
        group = Group(alike("a", "b"))
        group.answered("b", 0.05, times=3)
        for _ in range(10):
            flight = group.take_at("a")
            group.now += 0.01
            flight.end(None, group.now, tokens=1000)
        group.failed("a", K.THROTTLED)
        group.now += 70
        for _ in range(30):
            flight = group.take_at("a")
            group.now += 0.01
            flight.end(None, group.now, tokens=10)
        self.assertGreater(group.share(100)["a"], 90)


class HealthTests(SynchronousTestCase):
    """Out of rotation, and back."""

    def test_out(self) -> None:
        """What is cooling gets nothing, whatever the strategy."""
        for strategy in Strategy:
            group = Group(alike("a", "b", "c"), strategy)
            group.failed("b", K.THROTTLED, retry_after_s=30)
            for _ in range(29):
                group.now += 1
                self.assertNotIn("b", group.share(20), strategy)

    def test_probe(self) -> None:
        """When it has cooled, the next request goes there, one only, and no retry."""
        for strategy in Strategy:
            group = Group(alike("a", "b", "c"), strategy)
            group.failed("b", K.THROTTLED)
            group.now += 6
            self.assertNotIn("b", group.share(20, tried={"a"}), strategy)
            probe = group.take()
            self.assertEqual(probe.choice.deployment.id, "b", strategy)
            self.assertNotIn("b", group.share(20), strategy)
            group.now += 0.1
            probe.first_byte(group.now)
            self.assertIs(group.state("b").state, CircuitState.CLOSED)
            probe.end(None, group.now)
            self.assertEqual(group.choose(tried={"a", "c"}), "b", strategy)

    def test_probe_released(self) -> None:
        """A probe that was never sent leaves the place to the next."""
        group = Group(alike("a", "b"))
        group.failed("b", K.THROTTLED)
        group.now += 6
        group.take().release(group.now)
        self.assertEqual(group.choose(), "b")

    def test_in_rotation(self) -> None:
        """Which ones are well, or about to be probed."""
        group = Group(alike("a", "b", "c", rpm=1))
        group.take_at("a")
        group.failed("b", K.THROTTLED, retry_after_s=30)
        found = group.balancer.in_rotation
        self.assertEqual(found(group.choices, group.now), ["a", "c"])
        group.now += 40
        self.assertEqual(found(group.choices, group.now), ["a", "b", "c"])

    def test_models_apart(self) -> None:
        """A deployment may be throttled for one model and well for another."""
        group = Group(alike("a"), panic=Panic.REFUSE)
        first, second = ((choice("a", id, "*"),) for id in ("x.1", "x.2"))
        flight = group.balancer.take(Ask(first, "Converse"), group.now)
        assert isinstance(flight, InFlight)
        flight.end(K.THROTTLED, group.now)
        for choices, kind in ((first, Refusal), (second, InFlight)):
            self.assertIsInstance(group.balancer.take(Ask(choices, "Converse"), group.now), kind)

    def test_clients_fault(self) -> None:
        """What a client does wrong is never counted."""
        group = Group(alike("a", "b"))
        for kind in (K.CLIENT, K.CONTEXT_WINDOW, K.CONTENT_POLICY):
            group.failed("a", *[kind] * 20)
        state = group.state("a")
        self.assertEqual((state.state, state.error_rate), (CircuitState.CLOSED, 0.0))
        self.assertEqual((state.in_flight, state.latency_s), (0, None))

    def test_panic_try(self) -> None:
        """When all are cooling, the least bad is tried: not one that is misconfigured."""
        group = Group(alike("a", "b"))
        group.failed("a", K.DENIED)
        group.failed("b", K.THROTTLED, retry_after_s=600)
        self.assertEqual(set(group.share(20)), {"b"})
        group = Group(alike("a", "b"))
        group.failed("a", K.THROTTLED, retry_after_s=60)
        group.failed("b", K.THROTTLED, retry_after_s=30)
        self.assertEqual(set(group.share(20)), {"b"})
        self.assertEqual(group.choose(tried={"b"}), "a")
        group.take().first_byte(group.now)
        self.assertIs(group.state("b").state, CircuitState.CLOSED)

    def test_panic_limits(self) -> None:
        """Also then limits hold."""
        group = Group({"a": MemberSpec(rpm=1), "b": MemberSpec(max_parallel=1)})
        group.failed("a", K.THROTTLED, retry_after_s=60)
        group.failed("b", K.THROTTLED, retry_after_s=30)
        group.take()
        self.assertIs(group.refused().reason, Reason.PARALLEL)

    def test_panic_rate(self) -> None:
        """One that is well but used up keeps no request from trying a cooling one."""
        group = Group({"a": MemberSpec(rpm=1), "b": MemberSpec()})
        group.failed("b", K.THROTTLED)
        group.take_at("a")
        self.assertEqual(group.choose(), "b")

    def test_panic_refuse(self) -> None:
        """Or the request is refused, with the shortest wait."""
        for kinds, why, status in (
            ((K.THROTTLED, K.THROTTLED), K.THROTTLED, 429),
            ((K.NOT_READY, K.THROTTLED), K.NOT_READY, 503),
        ):
            group = Group(alike("a", "b"), panic=Panic.REFUSE)
            group.failed("a", kinds[0], retry_after_s=30)
            group.failed("b", kinds[1], retry_after_s=60)
            refusal = group.refused()
            self.assertEqual((refusal.reason, refusal.why), (Reason.COOLING, why))
            self.assertTrue(30 <= refusal.wait_s <= 36, refusal)
            self.assertEqual(refusal.error().status, status)
            group.now += refusal.wait_s
            self.assertEqual(group.choose(), "a")

    def test_made_up(self) -> None:
        """A model that a client named itself, and AWS does not know: AWS says so."""
        for panic in Panic:
            group = Group(alike("a"), panic=panic)
            ask = Ask((choice("a", "x.unknown", "*"),), "Converse")
            for _ in range(5):
                flight = group.balancer.take(ask, group.now)
                assert isinstance(flight, InFlight), flight
                flight.end(K.DENIED, group.now)
            self.assertFalse(any(change.loud for change in group.changes))

    def test_changes(self) -> None:
        """Who leaves and returns is told, loudly where an operator has to act."""
        group = Group(alike("a", "b"))
        group.failed("a", K.DENIED)
        group.now += 6
        group.take().end(K.DENIED, group.now)
        group.now += 13
        group.take().end(None, group.now)
        group.failed("b", *[K.CONNECT] * 4)
        told = [(one.id, one.state.value, one.why, one.loud) for one in group.changes]
        self.assertEqual(
            told,
            [
                ("a", "open", K.DENIED, True),
                ("a", "closed", None, False),
                ("b", "open", K.CONNECT, False),
            ],
        )

    def test_states(self) -> None:
        """What is known is shown."""
        group = Group(alike("a", "b"))
        flight = group.take_at("a")
        flight.first_byte(group.now + 0.5)
        group.failed("b", K.THROTTLED, retry_after_s=20)
        a, b = group.state("a"), group.state("b")
        self.assertEqual((a.state, a.since, a.why), (CircuitState.CLOSED, -math.inf, None))
        self.assertEqual((a.in_flight, a.latency_s, a.error_rate), (1, 0.5, 0.0))
        self.assertIsNone(a.cooling_until)
        self.assertEqual((b.model_id, b.state), (MODEL, CircuitState.OPEN))
        self.assertEqual((b.since, b.why, b.latency_s), (group.now, K.THROTTLED, None))
        assert b.cooling_until is not None
        self.assertTrue(20 <= b.cooling_until - group.now <= 24)

    def test_bounded(self) -> None:
        """However many models clients name, those the configuration has are kept, and few more."""
        group = Group(alike("a", "w"))
        group.failed("a", K.THROTTLED)
        for number in range(5000):
            ask = Ask((choice("w", f"x.{number}", "*"),), "Converse")
            flight = group.balancer.take(ask, group.now)
            assert isinstance(flight, InFlight)
            flight.end(None, group.now)
        del ask, flight
        gc.collect()
        self.assertLess(len(group.balancer.states(group.now)), 2100)
        self.assertIs(group.state("a").why, K.THROTTLED)


class RefusalTests(SynchronousTestCase):
    """What a client is told."""

    def test_errors(self) -> None:
        """Quotas are 429, all else 503; both say when to come again."""
        for refusal, status, words in (
            (Refusal(Reason.COOLING, 4.2, K.THROTTLED), 429, "throttled"),
            (Refusal(Reason.COOLING, 4.2, K.CONNECT), 503, "available"),
            (Refusal(Reason.RATE, 4.2), 429, "used up"),
            (Refusal(Reason.PARALLEL, 4.2), 429, "in flight"),
        ):
            error = refusal.error()
            self.assertEqual(error.status, status)
            self.assertIn(words, error.message)
            self.assertIn("Try again in 5 s", error.message)
            self.assertIs(error.fault, Fault.UPSTREAM)
            self.assertEqual(
                error.headers, ((b"Retry-After", b"5"), (b"x-amz-retry-after", b"4200"))
            )
        self.assertEqual(Refusal(Reason.RATE, 1).error().code, "ThrottlingException")
        self.assertEqual(Refusal(Reason.COOLING, 1).error().code, "ServiceUnavailableException")


class QueueTests(SynchronousTestCase):
    """Waiting for a place."""

    def wait(self, group: Group, told: list[Any], **more: Any) -> Waiter:
        waiter = group.balancer.wait(group.ask(**more), group.now, told.append)
        assert isinstance(waiter, Waiter), waiter
        return waiter

    def test_in_order(self) -> None:
        """Who came first is let in first, before who comes when there is a place."""
        group = Group(alike("a", max_parallel=1))
        flight = group.take()
        first: list[Any] = []
        second: list[Any] = []
        self.wait(group, first)
        self.wait(group, second)
        self.assertEqual(group.balancer.waiting, 2)
        flight.end(None, group.now)
        self.assertIsInstance(first[0], InFlight)
        self.assertEqual(second, [])
        self.assertIs(group.refused().reason, Reason.PARALLEL)
        first[0].end(K.TIMEOUT, group.now)
        self.assertIsInstance(second[0], InFlight)
        self.assertEqual(group.balancer.waiting, 0)
        second[0].end(None, group.now)
        group.take()

    def test_bounded(self) -> None:
        """Only so many wait."""
        group = Group(alike("a", max_parallel=1), queue_size=2)
        group.take()
        told: list[Any] = []
        self.wait(group, told)
        leaving = self.wait(group, told)
        refused = group.balancer.wait(group.ask(), group.now, told.append)
        assert isinstance(refused, Refusal)
        self.assertIs(refused.reason, Reason.PARALLEL)
        leaving.leave()
        leaving.leave()
        self.wait(group, told)

    def test_too_long(self) -> None:
        """And so long."""
        group = Group(alike("a", max_parallel=1), queue_timeout_s=7)
        group.take()
        told: list[Any] = []
        self.wait(group, told)
        self.assertEqual(group.balancer.wake(group.now), 7)
        group.now += 6.9
        self.assertAlmostEqual(group.balancer.wake(group.now) or 0.0, 0.1, 5)
        group.now += 0.1
        self.assertIsNone(group.balancer.wake(group.now))
        self.assertIs(told[0].reason, Reason.PARALLEL)

    def test_left(self) -> None:
        """Who has left is not told, and holds up nobody."""
        group = Group(alike("a", max_parallel=1))
        flight = group.take()
        first: list[Any] = []
        second: list[Any] = []
        waiter = self.wait(group, first)
        self.wait(group, second)
        waiter.leave()
        flight.end(None, group.now)
        self.assertEqual(first, [])
        self.assertIsInstance(second[0], InFlight)
        waiter.leave()

    def test_cooled(self) -> None:
        """A deployment that has cooled down lets in who waits; wake says when."""
        group = Group({"a": MemberSpec(max_parallel=1), "b": MemberSpec()})
        group.failed("b", K.THROTTLED)
        group.take()
        told: list[Any] = []
        self.wait(group, told)
        wait_s = group.balancer.wake(group.now)
        assert wait_s is not None
        self.assertTrue(5 <= wait_s <= 6)
        group.now += wait_s
        group.balancer.wake(group.now)
        self.assertEqual(told[0].choice.deployment.id, "b")

    def test_gone(self) -> None:
        """If the one that is waited for leaves the rotation, who waits is told."""
        group = Group(alike("a", max_parallel=1), panic=Panic.REFUSE)
        flight = group.take()
        told: list[Any] = []
        self.wait(group, told)
        flight.end(K.THROTTLED, group.now)
        self.assertEqual((told[0].reason, told[0].why), (Reason.COOLING, K.THROTTLED))

    def test_groups_apart(self) -> None:
        """Who waits for one group holds up no other; nor do other tags."""
        specs = {
            "a": MemberSpec(max_parallel=1, tags=("t",)),
            "b": MemberSpec(tags=("u",)),
        }
        group = Group(specs, tag_filtering=True)
        group.take(tags=("t",))
        told: list[Any] = []
        self.wait(group, told, tags=("t",))
        self.assertEqual(group.choose(tags=("u",)), "b")
        self.assertEqual(told, [])

    def test_at_once(self) -> None:
        """Who is let in may be over before the next is told."""
        group = Group(alike("a", max_parallel=1))
        flight = group.take()
        done: list[int] = []

        def ready(number: int) -> Callable[[InFlight | Refusal], None]:
            def over(taken: InFlight | Refusal) -> None:
                assert isinstance(taken, InFlight)
                done.append(number)
                taken.end(None, group.now)

            return over

        for number in range(50):
            group.balancer.wait(group.ask(), group.now, ready(number))
        flight.end(None, group.now)
        self.assertEqual(done, list(range(50)))


class Sickness:
    """Two deployments under load, one of them sick for a while."""

    def __init__(self, kind: FailureKind, strategy: Strategy, rate: float = 50.0) -> None:
        self.kind = kind
        self.group = Group(alike("sick", "well"), strategy)
        self.random = random.Random(3)
        self.begin, self.end = NOW + 10, NOW + 70
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.hits: dict[str, list[float]] = {"sick": [], "well": []}
        self.lost = 0
        self.answered_at: list[float] = []
        self.count = 0
        for step in range(int(150 * rate)):
            self.at(NOW + step / rate, lambda: self.attempt(self.group.ask(), 3))

    def at(self, time: float, event: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, self.count, event))

    def run(self) -> None:
        while self.events:
            self.group.now, _, event = heapq.heappop(self.events)
            event()

    def attempt(self, ask: Ask, left: int) -> None:
        now = self.group.now
        flight = self.group.balancer.take(ask, now)
        assert isinstance(flight, InFlight)
        id = flight.choice.deployment.id
        self.hits[id].append(now)
        if id == "sick" and self.begin <= now < self.end:
            after = 5.0 if self.kind is K.TIMEOUT else 0.002
            if self.kind is K.BROKE:
                self.at(now + 0.001, lambda: flight.first_byte(self.group.now))
            self.at(now + after, lambda: self.fail(flight, ask, left - 1))
            return
        if id == "sick" and now >= self.end:
            self.answered_at.append(now)
        took = 0.05 * self.random.lognormvariate(0, 0.2)
        self.at(now + took, lambda: flight.first_byte(self.group.now))
        self.at(now + took * 2, lambda: flight.end(None, self.group.now))

    def fail(self, flight: InFlight, ask: Ask, left: int) -> None:
        flight.end(self.kind, self.group.now)
        if left:
            self.attempt(ask, left)
        else:
            self.lost += 1


class SickTests(SynchronousTestCase):
    """A sick deployment hardly matters, and is used again when it is well."""

    kinds = (
        K.UNAVAILABLE,
        K.THROTTLED,
        K.TIMEOUT,
        K.CONNECT,
        K.BROKE,
        K.DENIED,
        K.BAD_CREDENTIALS,
        K.NOT_READY,
    )

    def sick(self, kind: FailureKind, strategy: Strategy) -> None:
        run = Sickness(kind, strategy)
        run.run()
        meanwhile = {
            id: sum(run.begin <= hit < run.end for hit in hits) for id, hits in run.hits.items()
        }
        name = f"{kind.value} {strategy.value} {meanwhile}"
        self.assertLessEqual(meanwhile["sick"], 0.02 * sum(meanwhile.values()), name)
        self.assertEqual(run.lost, 0, name)
        # The first request that it gets when it is well is its probe, and the others follow.
        self.assertLess(run.answered_at[0] - run.end, 75, name)
        follow = [hit for hit in run.hits["sick"] if hit > run.answered_at[0] + 2]
        self.assertGreater(len(follow), 100, name)
        self.assertIs(run.group.state("sick").state, CircuitState.CLOSED, name)
        self.assertEqual([run.group.state(id).in_flight for id in run.hits], [0, 0], name)

    def test_adaptive(self) -> None:
        """At most 2 % of the requests, whatever it suffers from, also when it hangs."""
        for kind in self.kinds:
            self.sick(kind, Strategy.ADAPTIVE)

    def test_others(self) -> None:
        """The same with other strategies, if it says at once that it is sick."""
        for strategy in (Strategy.SIMPLE_SHUFFLE, Strategy.LEAST_BUSY, Strategy.USAGE):
            for kind in (K.UNAVAILABLE, K.THROTTLED, K.DENIED):
                self.sick(kind, strategy)


@st.composite
def _members(draw: st.DrawFn) -> dict[str, MemberSpec]:
    some = st.none() | st.integers(1, 4)
    return {
        id: MemberSpec(
            weight=draw(some),
            order=draw(st.integers(0, 1)),
            rpm=draw(some),
            tpm=draw(st.none() | st.just(1000)),
            max_parallel=draw(some),
            cost=draw(some),
        )
        for id in "abcd"[: draw(st.integers(1, 4))]
    }


_EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 3), st.sampled_from((0, 100, 900))),
        st.tuples(st.just("wait"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("first"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("end"), st.integers(0, 20), st.none() | st.sampled_from(list(K))),
        st.tuples(st.just("abandon"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("release"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("pass"), st.integers(0, 70), st.just(0)),
        st.tuples(st.just("moment"), st.integers(1, 9), st.just(0)),
        st.tuples(st.just("leave"), st.integers(0, 20), st.just(0)),
    ),
    max_size=60,
)


class AnyEventsTests(SynchronousTestCase):
    """What holds whatever happens."""

    @settings(max_examples=300, deadline=None)
    @given(_members(), st.sampled_from(list(Strategy)), st.sampled_from(list(Panic)), _EVENTS)
    def test_any_events(
        self,
        specs: dict[str, MemberSpec],
        strategy: Strategy,
        panic: Panic,
        events: list[tuple[str, int, Any]],
    ) -> None:
        """
        None is chosen that is out of rotation while one is there that is well and has
        room; no limit is exceeded; nobody waits for ever.
        """
        group = Group(specs, strategy, panic=panic, queue_size=3, queue_timeout_s=30)
        begun: dict[InFlight, float] = {}
        flights: list[InFlight] = []
        over: set[InFlight] = set()
        waiters: list[Waiter] = []
        told: list[InFlight | Refusal] = []
        expected = 0

        def taken(flight: InFlight) -> None:
            id = flight.choice.deployment.id
            begun[flight] = group.now
            flights.append(flight)
            spec = specs[id]
            if spec.rpm is not None:
                times = [begun[one] for one in begun if one.choice.deployment.id == id]
                self.assertLessEqual(sum(group.now - 60 < time for time in times), spec.rpm)
            if spec.max_parallel is not None:
                self.assertLessEqual(group.state(id).in_flight, spec.max_parallel)

        def ready(outcome: InFlight | Refusal) -> None:
            told.append(outcome)
            if isinstance(outcome, InFlight):
                taken(outcome)

        def check(chosen: str, tokens: int) -> None:
            """Called before it is taken."""
            (pool,) = group.balancer._pools.values()
            targets = {one.member.id: one for one in pool.targets}
            if targets[chosen].until <= group.now:
                return  # In rotation, or its probe is due.
            for one in targets.values():
                room = one.member.free_at <= group.now
                room = room and not one.member.token_wait_s(tokens, group.now)
                self.assertFalse(one.until <= group.now and room, "a well one was there")

        for event, number, value in events:
            if event == "take":
                tried = {id for id in specs if number & 1 << "abcd".index(id)}
                ask = Ask(group.choices, "Converse", tokens=value, tried=tried)
                lane = group.balancer._lane(ask, group.now)
                group.balancer._serve(lane, group.now)
                found = group.balancer._find(lane, ask, group.now)
                if isinstance(found, Refusal):
                    self.assertTrue(0 < found.wait_s <= 3600, found)
                    continue
                check(found.member.id, value)
                taken(group.balancer._begin(found, ask, group.now))
            elif event == "wait":
                waiter = group.balancer.wait(group.ask(), group.now, ready)
                if isinstance(waiter, Waiter):
                    waiters.append(waiter)
                    expected += 1
            elif event == "pass":
                group.now += number
                group.balancer.wake(group.now)
            elif event == "moment":
                group.now += number / 10
            elif event == "leave" and waiters:
                waiter = waiters.pop(number % len(waiters))
                before = group.balancer.waiting
                waiter.leave()
                expected -= before - group.balancer.waiting
            elif flights:
                flight = flights[number % len(flights)]
                if event == "first":
                    flight.first_byte(group.now)
                elif event == "end":
                    over.add(flight)
                    flight.end(value, group.now, tokens=50)
                elif event == "abandon":
                    over.add(flight)
                    flight.abandon(group.now)
                elif event == "release":
                    if flight not in over:
                        del begun[flight]
                    over.add(flight)
                    flight.release(group.now)
            self.assertLessEqual(group.balancer.waiting, 3)

        # Nobody is let in or ended any more, time alone passes.
        group.now += 30
        self.assertIsNone(group.balancer.wake(group.now))
        self.assertEqual(group.balancer.waiting, 0)
        self.assertEqual(len(told), expected)
        for flight in flights:
            flight.end(None, group.now)
        self.assertTrue(all(not one.in_flight for one in group.balancer.states(group.now)))
        # And after the longest cooldown all are to be had again.
        group.now += 3600 * 1.2 + 61
        used: set[str] = set()
        for _ in range(3 * len(specs)):
            ask = group.ask(tried=set(used))
            last = group.balancer.take(ask, group.now)
            assert isinstance(last, InFlight), last
            used.add(last.choice.deployment.id)
            last.end(None, group.now)
            group.now += 61
        self.assertEqual(used, set(specs))

    @settings(max_examples=50, deadline=None)
    @given(
        st.lists(st.tuples(st.floats(0.001, 1.0), st.integers(0, 10)), min_size=2, max_size=20),
        st.integers(0, 2**32),
    )
    def test_deterministic(self, times: Sequence[tuple[float, int]], seed: int) -> None:
        """The same events and the same random numbers lead to the same decisions."""

        def went() -> list[str]:
            group = Group(alike("a", "b", "c"), seed=seed)
            found = []
            for seconds, number in times:
                flight = group.take(session="s" if number > 8 else "")
                found.append(flight.choice.deployment.id)
                group.now += seconds
                flight.end(K.UNAVAILABLE if number > 7 else None, group.now)
            return found

        self.assertEqual(went(), went())
