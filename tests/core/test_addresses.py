"""
Where a request comes from, and whether that is inside of some networks.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core import addresses
from txbedrock.core.addresses import Networks, client_address, parse_network
from txbedrock.core.headers import HeaderList

PROXIES = [parse_network(text) for text in ("10.0.0.0/8", "2001:db8:1::/48")]


def forwarded(*values: bytes) -> HeaderList:
    return [(b"Host", b"gateway"), *((b"X-Forwarded-For", value) for value in values)]


class NetworkTests(SynchronousTestCase):
    """What an operator writes in a list of networks."""

    def test_forms(self) -> None:
        """Addresses and networks of both versions; one that stands for IPv4 is IPv4."""
        for written, meant in (
            ("10.1.2.3", "10.1.2.3/32"),
            (" 10.0.0.0/8 ", "10.0.0.0/8"),
            ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::/32", "2001:db8::/32"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ):
            self.assertEqual(str(parse_network(written)), meant, written)

    def test_refused(self) -> None:
        """What is no network is refused with what to write instead."""
        for written, hint in (
            ("", "such as 10.1.2.3"),
            ("localhost", "such as 10.1.2.3"),
            ("10.0.0.0/33", "such as 10.0.0.0/8"),
            ("10.0.0", "such as 10.1.2.3"),
            ("010.0.0.1", "such as 10.1.2.3"),
            ("10.0.0.0/8, 11.0.0.0/8", "such as 10.0.0.0/8"),
            ("10.1.2.3/8", "write 10.0.0.0/8 for the network, or 10.1.2.3 for this address"),
            ("2001:db8::1/32", "write 2001:db8::/32"),
            ("::ffff:10.1.2.3/104", "or ::ffff:10.1.2.3 for this address"),
            ("fe80::1%eth0", "leave it out"),
            ("fe80::%eth0/64", "leave it out"),
        ):
            with self.assertRaises(ValueError) as caught:
                parse_network(written)
            self.assertIn(hint, str(caught.exception), written)

    def test_long_text(self) -> None:
        """A text that is no network is shown in part only."""
        with self.assertRaises(ValueError) as caught:
            parse_network("x" * 10_000)
        self.assertLess(len(str(caught.exception)), 300)


class ClientAddressTests(SynchronousTestCase):
    """Who sent a request, behind proxies."""

    def check(self, peer: str, headers: HeaderList, expected: str) -> None:
        self.assertEqual(client_address(peer, headers, PROXIES), expected, (peer, headers))

    def test_direct(self) -> None:
        """Whoever is no proxy of ours is the client, whatever it claims."""
        for headers in ([], forwarded(b"10.0.0.9"), forwarded(b"192.0.2.1, 10.0.0.1")):
            self.check("198.51.100.7", headers, "198.51.100.7")
            self.assertEqual(client_address("10.0.0.1", headers, []), "10.0.0.1")

    def test_through_proxies(self) -> None:
        """The first from the end that is no proxy of ours is the client."""
        for value, expected in (
            (b"192.0.2.1", "192.0.2.1"),
            (b"192.0.2.1, 10.0.0.2", "192.0.2.1"),
            (b"192.0.2.1,10.0.0.2 ,\t10.0.0.3", "192.0.2.1"),
            (b"192.0.2.1, 2001:db8:1::7", "192.0.2.1"),
            (b"2001:DB8:0:0::1", "2001:db8::1"),
        ):
            self.check("10.0.0.1", forwarded(value), expected)
            self.check("2001:db8:1::1", forwarded(value), expected)

    def test_forged(self) -> None:
        """What a client wrote itself, before the first proxy of ours, is not believed."""
        for value in (
            b"127.0.0.1, 192.0.2.1",
            b"10.0.0.9, 192.0.2.1, 10.0.0.2",
            b"garbage, 192.0.2.1",
            b", , 192.0.2.1, 10.0.0.2",
        ):
            self.check("10.0.0.1", forwarded(value), "192.0.2.1")

    def test_several_headers(self) -> None:
        """Several headers are one list, in any spelling of their name."""
        headers = [(b"x-forwarded-for", b"203.0.113.1"), *forwarded(b"192.0.2.1", b"10.0.0.2")]
        self.check("10.0.0.1", headers, "192.0.2.1")
        self.check("10.0.0.1", headers[:1], "203.0.113.1")

    def test_only_proxies(self) -> None:
        """If all are ours, the one that is farthest away is meant."""
        self.check("10.0.0.1", forwarded(b"10.0.0.3, 10.0.0.2"), "10.0.0.3")
        self.check("10.0.0.1", [], "10.0.0.1")

    def test_malformed(self) -> None:
        """An entry that is no address ends the walk at the last that could be believed."""
        for bad in (
            b"",
            b"unknown",
            b"_hidden",
            b"192.0.2.256",
            b"192.0.2.1:port",
            b"192.0.2.1%eth0",
            b"[192.0.2.1]",
            b"[2001:db8::1",
            b"[2001:db8::1]x",
            b"[2001:db8::1]:8x",
            b"2001:db8::1::2",
            b"\xff\xfe",
            b"1" * 10_000,
            "\u0661.2.3.4".encode(),
        ):
            self.check("10.0.0.1", forwarded(b"203.0.113.1, " + bad), "10.0.0.1")
            self.check("10.0.0.1", forwarded(bad + b", 10.0.0.2"), "10.0.0.2")

    def test_ports(self) -> None:
        """A port that a proxy added is left out."""
        for value, expected in (
            (b"192.0.2.1:4567", "192.0.2.1"),
            (b"[2001:db8::1]:4567", "2001:db8::1"),
            (b"[2001:db8::1]", "2001:db8::1"),
            (b"2001:db8::1", "2001:db8::1"),
            (b"::ffff:192.0.2.1", "192.0.2.1"),
        ):
            self.check("10.0.0.1", forwarded(value), expected)

    def test_mapped(self) -> None:
        """A socket for both versions reports IPv4 peers as IPv6: they are IPv4."""
        self.check("::ffff:198.51.100.7", [], "198.51.100.7")
        self.check("::ffff:10.0.0.1", forwarded(b"::ffff:10.0.0.2, ::ffff:c000:201"), "192.0.2.1")

    def test_zone(self) -> None:
        """The zone of a link-local peer is left out."""
        self.check("fe80::1%eth0", [], "fe80::1")

    def test_unknown_peer(self) -> None:
        """A peer without an address, of a UNIX socket, is not trusted and stays as it is."""
        for peer in ("-", "", "unix", "/run/gateway.sock"):
            self.check(peer, forwarded(b"192.0.2.1"), peer)

    @settings(deadline=None, max_examples=300)
    @given(
        peer=st.sampled_from(("10.0.0.1", "::ffff:10.0.0.1", "2001:db8:1::1"))
        | st.ip_addresses().map(str)
        | st.text(max_size=80),
        values=st.lists(
            st.binary(max_size=80)
            | st.lists(st.ip_addresses().map(str)).map(lambda them: ", ".join(them).encode()),
            max_size=4,
        ),
    )
    def test_anything(self, peer: str, values: list[bytes]) -> None:
        """Whatever comes, the result is an address, or a peer that has none."""
        found = client_address(peer, forwarded(*values), PROXIES)
        if found != peer:
            self.assertEqual(str(parse_network(found).network_address), found)

    @settings(deadline=None, max_examples=300)
    @given(client=st.ip_addresses(), forged=st.lists(st.ip_addresses(), max_size=3))
    def test_forging_changes_nothing(
        self, client: IPv4Address | IPv6Address, forged: list[IPv4Address | IPv6Address]
    ) -> None:
        """A client that is no proxy of ours cannot pass for another by what it sends."""
        honest = forwarded(str(client).encode())
        lying = forwarded(", ".join(map(str, [*forged, client])).encode())
        if not Networks(PROXIES).contains(str(client)):
            self.assertEqual(
                client_address("10.0.0.1", lying, PROXIES),
                client_address("10.0.0.1", honest, PROXIES),
            )


class NetworksTests(SynchronousTestCase):
    """Whether an address is inside of some networks."""

    def test_contains(self) -> None:
        """Of both versions, in any form; what is no address is not inside."""
        networks = Networks([*PROXIES, parse_network("192.0.2.7")])
        for address, inside in (
            ("10.255.255.255", True),
            ("11.0.0.0", False),
            ("192.0.2.7", True),
            ("192.0.2.8", False),
            ("::ffff:10.1.2.3", True),
            ("2001:db8:1:ffff::", True),
            ("2001:DB8:0001::1", True),
            ("2001:db8:2::", False),
            ("::10.1.2.3", False),
            ("-", False),
            ("", False),
            ("10.1.2.3/32", False),
            ("10.1.2.3 ", False),
            ("1" * 10_000, False),
        ):
            for _ in range(2):  # found, and remembered
                self.assertIs(networks.contains(address), inside, address)

    def test_none(self) -> None:
        """Without networks nothing is inside."""
        self.assertFalse(Networks([]).contains("10.1.2.3"))

    def test_all_of_ipv6_is_not_ipv4(self) -> None:
        """``::/0`` holds no IPv4 address, not even one that comes as IPv6."""
        everything = Networks([parse_network("::/0")])
        self.assertTrue(everything.contains("2001:db8::1"))
        self.assertFalse(everything.contains("10.1.2.3"))
        self.assertFalse(everything.contains("::ffff:10.1.2.3"))

    def test_remembers_within_limits(self) -> None:
        """Many addresses, and long ones, do not fill the memory, and all are judged right."""
        networks = Networks(PROXIES)
        for number in range(3000):
            low = f"{number >> 8}.{number & 255}"
            self.assertTrue(networks.contains(f"10.0.{low}"))
            self.assertFalse(networks.contains(f"11.0.{low}"))
            self.assertFalse(networks.contains("x" * (100 + number)))
        self.assertLessEqual(len(networks._found), addresses._REMEMBERED)
        self.assertLessEqual(max(map(len, networks._found)), addresses._LONGEST)

    def test_repr(self) -> None:
        """It shows its networks."""
        self.assertEqual(repr(Networks(PROXIES)), "Networks(10.0.0.0/8, 2001:db8:1::/48)")
