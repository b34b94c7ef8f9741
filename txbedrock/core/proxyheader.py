"""
The header in which a proxy says for whom it connects (the PROXY protocol).

Source: HAProxy, "The PROXY protocol", versions 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

__all__ = ["MAX_HEADER", "BadProxyHeader", "ProxyHeader", "parse_proxy_header"]

MAX_HEADER = 8 * 1024
"""Bytes. A header of version 2 may have extensions; what they say is not asked for."""

_V1 = b"PROXY "
_V1_LONGEST = 107
"""Bytes, the end of the line included."""

_V2 = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED = 16
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED = 0x00
_TCP4, _TCP6 = 0x11, 0x21

Endpoint = tuple[str, int]
"""An IP address in its shortest form, and a port."""


class BadProxyHeader(ValueError):
    """What came is no PROXY header, or none for TCP. It says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """Who connected to the proxy, and where."""

    source: Endpoint | None
    """None: the proxy speaks for itself, as in a health check, or does not know."""

    destination: Endpoint | None
    length: int
    """Bytes of the header; what follows is the client's."""


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """
    The header at the beginning of a connection.

    :param data: all that has been received.
    :returns: None when it is not whole yet. Never for more than :data:`MAX_HEADER` bytes.
    :raises BadProxyHeader: nothing that may follow makes it one.
    """
    if data[: len(_V2)] == _V2[: len(data)]:
        return _version_2(data) if len(data) >= _V2_FIXED else None
    if data[: len(_V1)] == _V1[: len(data)]:
        return _version_1(data)
    raise BadProxyHeader("there is none")


def _version_1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _V1_LONGEST)
    if end < 0:
        if len(data) >= _V1_LONGEST:
            raise BadProxyHeader("its line does not end")
        return None
    family, *words = data[len(_V1) : end].decode("latin-1").split(" ")
    length = end + 2
    if family == "UNKNOWN":
        return ProxyHeader(None, None, length)
    if family not in ("TCP4", "TCP6") or len(words) != 4:
        raise BadProxyHeader("its line cannot be read")
    address = IPv4Address if family == "TCP4" else IPv6Address
    try:
        source, destination = (str(address(word)) for word in words[:2])
    except ValueError:
        raise BadProxyHeader("it has an address that is none") from None
    return ProxyHeader((source, _port(words[2])), (destination, _port(words[3])), length)


def _port(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 5 and int(word) < 65536):
        raise BadProxyHeader("it has a port that is none")
    return int(word)


def _version_2(data: bytes) -> ProxyHeader | None:
    command, family = data[12], data[13]
    rest = int.from_bytes(data[14:_V2_FIXED], "big")
    length = _V2_FIXED + rest
    if command not in (_LOCAL, _PROXY):
        raise BadProxyHeader("it is of an unknown version, or has an unknown command")
    if length > MAX_HEADER:
        raise BadProxyHeader(f"it is longer than {MAX_HEADER} bytes")
    if len(data) < length:
        return None
    if command == _LOCAL or family == _UNSPECIFIED:
        return ProxyHeader(None, None, length)
    if family not in (_TCP4, _TCP6):
        raise BadProxyHeader("it is for something else than TCP")
    size = 4 if family == _TCP4 else 16
    if rest < 2 * size + 4:
        raise BadProxyHeader("it is too short for its addresses")
    address = IPv4Address if family == _TCP4 else IPv6Address
    block = data[_V2_FIXED:]
    source, destination = block[:size], block[size : 2 * size]
    ports = block[2 * size : 2 * size + 4]
    return ProxyHeader(
        (str(address(source)), int.from_bytes(ports[:2], "big")),
        (str(address(destination)), int.from_bytes(ports[2:], "big")),
        length,
    )
