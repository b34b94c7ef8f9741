"""
Who gets a connection, and who loses it.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.inbound import bounds
from txbedrock.inbound.bounds import Bounds, Entry, Refusal, raise_file_limit, spare_files


class Client:
    """A connection; ``idle`` is what it says of itself."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.idle = True

    def __repr__(self) -> str:
        return self.name


class BoundsTestCase(SynchronousTestCase):
    """Bounds and a clock."""

    def make(self, most: int = 3, of_address: int = 0, exempt: Iterable[str] = ()) -> Bounds:
        self.clock = Clock()
        self.bounds = Bounds(most, of_address, list(exempt).__contains__, self.clock.seconds)
        return self.bounds

    def enter(self, name: str, address: str = "", file: int = -1) -> tuple[Client, Entry]:
        client = Client(name)
        return client, self.bounds.enter(client, address, file)

    def at_rest(self, name: str) -> Client:
        """One that has had its answer."""
        client, entry = self.enter(name)
        assert entry == Entry(), entry
        self.bounds.begun(client)
        self.bounds.whole(client)
        self.bounds.over(client)
        return client

    def at_work(self, name: str) -> Client:
        """One that is being answered."""
        client, _ = self.enter(name)
        self.bounds.begun(client)
        self.bounds.whole(client)
        client.idle = False
        return client

    def sending(self, name: str) -> Client:
        """One whose body is on its way."""
        client, _ = self.enter(name)
        self.bounds.begun(client)
        client.idle = False
        return client

    def evicted(self) -> tuple[str, str]:
        """Whom a new one takes the place of, and why; the new one leaves again."""
        client, entry = self.enter("new")
        if entry.refused is not None:
            return "new", entry.refused.value
        assert isinstance(entry.close, Client) and entry.reason is not None
        self.bounds.leave(client)
        return entry.close.name, entry.reason.value


class RoomTests(BoundsTestCase):
    """All connections together."""

    def test_room(self) -> None:
        """As many as there may be come in, and another when one has left."""
        self.make(2)
        first, entry = self.enter("a")
        self.assertEqual((entry, len(self.bounds)), (Entry(), 1))
        self.bounds.leave(first)
        self.bounds.leave(first)
        for name in "bc":
            self.assertEqual(self.enter(name)[1], Entry())
        self.assertEqual(len(self.bounds), 2)

    def test_working_stays(self) -> None:
        """Whoever is being answered keeps its place; the new one is refused."""
        self.make(2)
        self.at_work("a")
        last = self.at_work("b")
        self.assertEqual(self.evicted(), ("new", "connections"))
        self.assertEqual(len(self.bounds), 2)
        self.bounds.over(last)
        last.idle = True
        self.assertEqual(self.evicted(), ("b", "idle"))

    def test_whole_at_once(self) -> None:
        """A request that came in one piece is being answered from its head on."""
        self.make(1)
        client, _ = self.enter("a")
        self.assertEqual(self.bounds.begun(client, whole=True), 1)
        client.idle = False
        self.assertEqual(self.bounds.under_way(client), 1)
        self.assertEqual(self.evicted(), ("new", "connections"))
        self.bounds.over(client)
        client.idle = True
        self.assertEqual(self.bounds.under_way(client), 0)
        self.assertEqual(self.evicted(), ("a", "idle"))

    def test_longest_idle(self) -> None:
        """Of the idle ones the longest idle goes first, not the oldest."""
        self.make(3)
        first = self.at_rest("first")
        self.clock.advance(1)
        self.at_rest("second")
        self.clock.advance(1)
        self.at_rest("third")
        self.bounds.begun(first)
        self.bounds.whole(first)
        self.bounds.over(first)
        for expected in ("second", "third", "first"):
            self.assertEqual(self.evicted(), (expected, "idle"))
            self.at_work("new")

    def test_order(self) -> None:
        """
        First a header that does not get on, then idle ones as long as they are not fewer
        than young headers, then bodies, and never what is at work.
        """
        self.make(7)
        self.enter("old header")
        self.clock.advance(4)
        self.sending("body")
        self.at_work("work")
        self.at_rest("idle")
        self.at_rest("idle, too")
        self.enter("header")
        self.enter("younger header")
        self.clock.advance(1.5)
        found = []
        for _ in range(6):
            _, entry = self.enter("x")
            assert isinstance(entry.close, Client) and entry.reason is not None
            found.append((entry.close.name, entry.reason.value))
            self.bounds.leave(entry.close)
            # What came in is at work and in nobody's way.
            new = next(reversed(list(self.bounds)))
            self.bounds.begun(new)
            self.bounds.whole(new)
        self.assertEqual(
            found,
            [
                ("old header", "slow_header"),
                ("idle", "idle"),
                ("header", "slow_header"),
                ("idle, too", "idle"),
                ("younger header", "slow_header"),
                ("body", "slow_body"),
            ],
        )
        self.assertEqual(self.evicted(), ("new", "connections"))

    def test_crowd(self) -> None:
        """
        Who opens many and says nothing loses his own, however new they are, not those of
        others that have just come; idle ones are the fewer and stay.
        """
        self.make(10)
        self.at_rest("idle")
        found = []
        for number in range(4):
            self.enter(f"other {number}", f"192.0.2.{number}")
        for number in range(20):
            _, entry = self.enter(f"his {number}", "198.51.100.1")
            found.append(str(entry.close))
        self.assertEqual(found, ["None"] * 5 + [f"his {number}" for number in range(15)])
        # Of many addresses with one each, and of those without one, it is the oldest.
        self.make(3)
        for name, address in (("a", "192.0.2.1"), ("b", ""), ("c", "192.0.2.2")):
            self.enter(name, address)
        found = [str(self.enter(name, "")[1].close) for name in "defg"]
        self.assertEqual(found, ["a", "b", "c", "d"])

    def test_next_header(self) -> None:
        """One that has begun with its next request is no idle one."""
        self.make(2)
        slow = self.at_rest("slow")
        self.at_rest("idle")
        slow.idle = False
        self.assertEqual(self.evicted(), ("idle", "idle"))
        self.enter("young")
        self.assertEqual(self.evicted(), ("slow", "slow_header"))

    def test_many_requests(self) -> None:
        """A connection with several requests is at work as long as one of them is."""
        self.make(1)
        client, _ = self.enter("a")
        self.assertEqual([self.bounds.begun(client) for _ in range(3)], [1, 2, 3])
        self.bounds.whole(client)
        self.assertEqual(self.bounds.under_way(client), 3)
        self.bounds.over(client, whole=False)
        self.assertEqual(self.evicted(), ("new", "connections"))
        self.bounds.over(client)
        self.assertEqual(self.bounds.under_way(client), 1)
        client.idle = False
        self.assertEqual(self.evicted(), ("a", "slow_body"))

    def test_become(self) -> None:
        """A connection keeps its place when it turns out to be of another protocol."""
        self.make(1)
        sniffed, _ = self.enter("sniffed")
        spoken = Client("spoken")
        self.bounds.become(sniffed, spoken)
        self.bounds.leave(sniffed)
        self.assertEqual((list(self.bounds), self.bounds.begun(spoken)), ([spoken], 1))
        self.bounds.over(spoken, whole=False)
        self.assertEqual(self.evicted(), ("spoken", "idle"))

    def test_files(self) -> None:
        """When descriptors run out somebody has to go, however few connections there are."""
        self.make(100)
        self.bounds.last_file = 50
        self.assertEqual(self.enter("a", file=50)[1], Entry())
        client, entry = self.enter("b", file=51)
        self.assertEqual((str(entry.close), entry.reason), ("a", Refusal.SLOW_HEADER))
        self.bounds.begun(client)
        self.bounds.whole(client)
        self.assertEqual(self.enter("c", file=51)[1], Entry(Refusal.FILES))

    def test_files_stay_few(self) -> None:
        """
        A newcomer that gets the low descriptor of the one that was closed before is no
        sign that there are more; after a second it may be.
        """
        self.make(100)
        self.bounds.last_file = 50
        for name in "abc":
            self.enter(name, file=10)
        self.assertIsNotNone(self.enter("d", file=51)[1].close)
        for file in (10, 11, 12):
            self.assertIsNotNone(self.enter("e", file=file)[1].close)
        self.clock.advance(1)
        self.assertEqual(self.enter("f", file=10)[1], Entry())
        self.assertIsNotNone(self.enter("g", file=51)[1].close)
        self.assertEqual(len(self.bounds), 4)

    def test_gone_is_unknown(self) -> None:
        """What is told of a connection that has lost its place changes nothing."""
        self.make(1)
        client, _ = self.enter("a")
        self.bounds.leave(client)
        self.assertEqual(self.bounds.begun(client), 0)
        self.bounds.whole(client)
        self.bounds.over(client)
        self.assertEqual((len(self.bounds), self.bounds.under_way(client)), (0, 0))

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from((0, 0, 1, 2, 3, 4, 5, 5)), st.integers(0, 9), st.floats(0, 4)
            ),
            min_size=20,
            max_size=80,
        )
    )
    def test_any(self, steps: list[tuple[int, int, float]]) -> None:
        """
        Whatever happens: never more than there may be, none at work is closed for another,
        and nobody is refused while another could go.
        """
        self.make(4, 2)
        stages: dict[Client, list[int]] = {}  # arriving, answering
        for what, which, seconds in steps:
            self.clock.advance(seconds)
            client = list(stages)[which % len(stages)] if stages else None
            if client is None or what == 0:
                new = Client(str(which))
                address = "" if which > 4 else f"10.0.0.{which}"
                entry = self.bounds.enter(new, address)
                if entry.close is not None:
                    assert isinstance(entry.close, Client)
                    self.assertEqual(stages.pop(entry.close)[1], 0)
                if entry.refused is None:
                    stages[new] = [0, 0]
                elif entry.refused is Refusal.CONNECTIONS:
                    self.assertTrue(all(working for _, working in stages.values()))
            elif what == 1:
                self.bounds.begun(client)
                stages[client][0] += 1
            elif what == 2 and stages[client][0]:
                self.bounds.whole(client)
                stages[client][0] -= 1
                stages[client][1] += 1
            elif what == 3 and sum(stages[client]):
                whole = bool(stages[client][1])
                self.bounds.over(client, whole=whole)
                stages[client][whole] -= 1
            elif what == 5:
                self.bounds.begun(client, whole=True)
                stages[client][1] += 1
            elif what == 4:
                self.bounds.leave(client)
                del stages[client]
            if client is not None and client in stages:
                client.idle = not sum(stages[client])
            self.assertEqual(set(self.bounds), set(stages))
            for crowd in (self.bounds._headers, self.bounds._bodies):
                queues = crowd._of.values()
                self.assertEqual(len(crowd), sum(map(len, queues)))
                first = crowd.first()
                if first is None:
                    self.assertEqual(len(crowd), 0)
                else:
                    [his] = [queue for queue in queues if first in queue]
                    self.assertEqual(len(his), max(map(len, queues)))
                    self.assertIs(next(iter(his)), first)
            self.assertLessEqual(len(stages), 4)
            for each, stage in stages.items():
                self.assertEqual(self.bounds.under_way(each), sum(stage))

    def test_cost(self) -> None:
        """It takes no longer with many: a flood of 50,000 newcomers is a matter of seconds."""
        for addresses in (1, 7, 15_000):
            self.make(20_000)
            for number in range(20_000):
                self.enter("", f"10.0.{number % addresses // 250}.{number % addresses % 250}")
            started = time.process_time()
            for number in range(50_000):
                self.assertIsNotNone(self.enter("", f"10.1.{number % 7}.1")[1].close)
            self.assertLess(time.process_time() - started, 5)


class AddressTests(BoundsTestCase):
    """Those of one address."""

    def test_of_address(self) -> None:
        """One address has so many; another is not concerned."""
        self.make(100, 2)
        for name in "ab":
            client, _ = self.enter(name, "192.0.2.1")
            self.bounds.begun(client)
            self.bounds.whole(client)
        self.assertEqual(self.enter("c", "192.0.2.1")[1], Entry(Refusal.ADDRESS))
        self.assertEqual(self.enter("d", "192.0.2.2")[1], Entry())

    def test_own_room(self) -> None:
        """An address's newcomer takes the place of one of its own."""
        self.make(100, 3)
        idle = Client("idle elsewhere")
        self.bounds.enter(idle, "192.0.2.9")
        self.bounds.begun(idle)
        self.bounds.over(idle, whole=False)
        names = ("body", "older", "younger")
        clients = {name: Client(name) for name in names}
        for client in clients.values():
            self.bounds.enter(client, "192.0.2.1")
            self.bounds.begun(client)
            self.clock.advance(1)
        for name in ("older", "younger"):
            self.bounds.over(clients[name], whole=False)
            self.clock.advance(1)
        found = []
        for _ in range(3):
            new = Client("at work")
            entry = self.bounds.enter(new, "192.0.2.1")
            self.bounds.begun(new)
            self.bounds.whole(new)
            found.append((str(entry.close), entry.reason))
        self.assertEqual(
            found,
            [
                ("older", Refusal.IDLE),
                ("younger", Refusal.IDLE),
                ("body", Refusal.SLOW_BODY),
            ],
        )
        self.assertEqual(self.enter("x", "192.0.2.1")[1], Entry(Refusal.ADDRESS))

    def test_forms(self) -> None:
        """An address is one in all its forms, and IPv6 counts by networks of one client."""
        for same in (
            ("192.0.2.1", "::ffff:192.0.2.1"),
            ("2001:db8::1", "2001:db8:0:0:ffff::2"),
            ("fe80::1%eth0", "fe80::1%eth1"),
        ):
            self.make(100, 1)
            self.enter("a", same[0])
            self.assertIsNotNone(self.enter("b", same[1])[1].close, same)
        for others in (
            ("192.0.2.1", "192.0.2.2"),
            ("2001:db8::1", "2001:db8:0:1::1"),
            ("::1", "0.0.0.1"),
            # Of a UNIX socket there is none.
            ("", ""),
            ("/run/x.sock", "/run/x.sock"),
        ):
            self.make(100, 1)
            self.enter("a", others[0])
            self.assertEqual(self.enter("b", others[1])[1], Entry(), others)

    def test_exempt(self) -> None:
        """A trusted proxy has connections for many."""
        self.make(100, 1, exempt=["10.0.0.1"])
        for name in "abc":
            self.assertEqual(self.enter(name, "10.0.0.1")[1], Entry())

    def test_forgotten(self) -> None:
        """An address without connections takes no memory."""
        self.make(1000, 2)
        for number in range(1000):
            client, _ = self.enter("a", f"10.0.{number % 7}.{number // 7}")
            self.bounds.leave(client)
        self.assertEqual(self.bounds._of_address, {})
        self.assertEqual(self.bounds._headers._of, {})
        self.assertEqual(self.bounds._headers._having, {})


class FileTests(SynchronousTestCase):
    """File descriptors."""

    def limits(self, soft: int, hard: int, refuse: bool = False) -> list[tuple[int, int]]:
        """Pretend; :returns: what is set."""
        done: list[tuple[int, int]] = []

        def set_limit(_: int, pair: tuple[int, int]) -> None:
            if refuse:
                raise ValueError("not allowed")
            done.append(pair)

        self.patch(bounds.resource, "getrlimit", lambda _: (soft, hard))
        self.patch(bounds.resource, "setrlimit", set_limit)
        return done

    def test_raised(self) -> None:
        """The soft limit becomes the hard one."""
        done = self.limits(1024, 20_000)
        self.assertEqual((raise_file_limit(), done), (20_000, [(20_000, 20_000)]))

    def test_enough(self) -> None:
        """Nothing is done where nothing can be."""
        done = self.limits(4096, 4096)
        self.assertEqual((raise_file_limit(), done), (4096, []))

    def test_unlimited(self) -> None:
        """No limit at all becomes one that the kernel takes."""
        infinity = resource.RLIM_INFINITY
        done = self.limits(1024, infinity)
        self.assertEqual((raise_file_limit(), done), (1 << 20, [(1 << 20, infinity)]))
        done = self.limits(infinity, infinity)
        self.assertEqual((raise_file_limit(), done), (1 << 20, []))

    def test_refused(self) -> None:
        """A system that does not let it stays as it is."""
        self.limits(256, resource.RLIM_INFINITY, refuse=True)
        self.assertEqual(raise_file_limit(), 256)

    def test_spare(self) -> None:
        """A tenth is kept for all else, within reason."""
        found = [spare_files(limit) for limit in (64, 1000, 5000, 1 << 20)]
        self.assertEqual(found, [32, 150, 500, 1000])
