"""
Where a request comes from, and whether that is inside of some networks.

An IPv6 address that stands for an IPv4 one (``::ffff:10.0.0.1``, as a socket for
both reports it) counts as the IPv4 one everywhere, and a zone (``%eth0``) does not
count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from txbedrock.core.headers import HeaderList

__all__ = ["Address", "Network", "Networks", "client_address", "client_network", "parse_network"]

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_REMEMBERED = 1024
"""How many addresses are kept with what was found of them."""

_LONGEST = 64
"""Characters: the longest form of an address, with a zone and a port, is shorter."""

_MAPPED_BITS = 96
"""Of ``::ffff:0:0/96``, which holds all of IPv4."""


def parse_network(text: str) -> Network:
    """
    An address or a network, as an operator writes it.

    :param text: ``10.1.2.3``, ``10.0.0.0/8``, ``2001:db8::/32``.
    :raises ValueError: if it is none; the message says what to write instead.
    """
    written = text.strip()
    shown = repr(written if len(written) <= _LONGEST else f"{written[:_LONGEST]}...")
    try:
        network = ip_network(written, strict=False)
    except ValueError:
        raise ValueError(
            f"{shown} is neither an IP address such as 10.1.2.3 or 2001:db8::1 nor a network "
            "such as 10.0.0.0/8 or 2001:db8::/32"
        ) from None
    first = written.partition("/")[0]
    if "%" in first:
        raise ValueError(f"{shown} has a zone, which does not count here: leave it out")
    if ip_address(first) != network.network_address:
        raise ValueError(
            f"{shown} is an address with the length of a network: write {network} for the "
            f"network, or {first} for this address alone"
        )
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED_BITS:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network


def client_address(peer: str, headers: HeaderList, trusted: Sequence[Network]) -> str:
    """
    Who sent a request, behind any number of our own proxies.

    ``X-Forwarded-For`` is believed as far as those who wrote it are trusted: each
    proxy appends whom it got the request from, so the list is read from its end, and
    the first address that is not of a trusted network is the client's. An entry that
    is no address ends the walk at the last that could be believed.

    :param peer: the other end of the connection. What is no IP address (of a UNIX
        socket, for one) is in no network, and so never trusted.
    :param headers: of the request. Several ``X-Forwarded-For`` are one list.
    :param trusted: networks of the proxies in front of the gateway.
    :returns: an address in its shortest form, or ``peer`` as it is if that is none.
    """
    address = _parse(peer)
    if address is None:
        return peer
    if not _within(address, trusted):
        return str(address)
    hops = [
        hop
        for name, value in headers
        if name.lower() == b"x-forwarded-for"
        for hop in value.split(b",")
    ]
    for hop in reversed(hops):
        found = _parse(_bare(hop))
        if found is None:
            break
        address = found
        if not _within(address, trusted):
            break
    return str(address)


@lru_cache(_REMEMBERED)
def client_network(address: str) -> str:
    """
    What a single client has: an IPv4 address, or the /64 that an IPv6 one is in.

    :param address: of the other end of a connection.
    :returns: the same for all addresses of one client; empty if it is none.
    """
    found = _parse(address)
    if isinstance(found, IPv6Address):
        return f"{int(found) >> 64:x}/64"
    return "" if found is None else str(found)


class Networks:
    """
    Several networks as one.

    :param networks: none of them: nothing is inside.
    """

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)
        self._found: dict[str, bool] = {}

    def contains(self, address: str) -> bool:
        """Is an address inside? What is no address is not."""
        found = self._found.get(address)
        if found is None:
            parsed = _parse(address)
            found = parsed is not None and _within(parsed, self._networks)
            if len(address) <= _LONGEST:
                if len(self._found) >= _REMEMBERED:
                    del self._found[next(iter(self._found))]
                self._found[address] = found
        return found

    def __repr__(self) -> str:
        return f"Networks({', '.join(str(network) for network in self._networks)})"


def _within(address: Address, networks: Sequence[Network]) -> bool:
    # An address is in no network of the other version.
    return any(address in network for network in networks)


def _parse(text: str) -> Address | None:
    """An address; None if it is none."""
    # What a client may have made up is not kept if it is long.
    return _parsed(text) if len(text) <= _LONGEST else None


@lru_cache(_REMEMBERED)
def _parsed(text: str) -> Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        # By its number: that leaves the zone out.
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def _bare(hop: bytes) -> str:
    """
    One entry of ``X-Forwarded-For`` without the port that some proxies add:
    ``10.1.2.3:4567``, ``[2001:db8::1]:4567``.
    """
    text = hop.strip(b" \t").decode("ascii", "replace")
    if text[:1] == "[":
        inside, bracket, port = text[1:].partition("]")
        return inside if bracket and _is_port(port) and ":" in inside else ""
    host, colon, port = text.partition(":")
    # More than one colon: an IPv6 address, whose last group is no port.
    return host if colon and "." in host and _is_port(colon + port) else text


def _is_port(text: str) -> bool:
    return text == "" or (text[0] == ":" and text[1:].isascii() and text[1:].isdecimal())
