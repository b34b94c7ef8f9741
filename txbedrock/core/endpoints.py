"""
Where a Bedrock service is, in a region.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import TypedDict
from urllib.parse import urlsplit

__all__ = ["BaseUrl", "Endpoints", "Partition", "PartitionsTable", "parse_base_url"]


class Partition(TypedDict):
    """One partition in ``partitions.json``, under botocore's own names."""

    id: str
    regionRegex: str
    dnsSuffix: str
    dualStackDnsSuffix: str
    supportsFIPS: bool
    supportsDualStack: bool
    regions: list[str]


class PartitionsTable(TypedDict):
    """
    ``partitions.json``. The first partition has the regions that none knows.

    ``rules`` are base URLs with ``{service}``, ``{region}`` and a suffix to be
    filled in, under ``plain``, ``fips``, ``dualstack`` and ``fips_dualstack``.
    """

    botocore: str
    services: list[str]
    rules: dict[str, str]
    partitions: list[Partition]


@dataclass(frozen=True, slots=True)
class BaseUrl:
    """A place to send requests to, in the forms that sending them needs."""

    scheme: bytes
    """``b"http"`` or ``b"https"``."""

    host: bytes
    """To connect to: lower case, an IPv6 address without brackets."""

    port: int
    authority: bytes
    """Value of the ``Host`` header: with the port unless it is the scheme's
    own, an IPv6 address in brackets."""

    path_prefix: bytes
    """What stands before each request's path, as it goes on the wire; does not
    end with a slash, may be empty."""


_DEFAULT_PORTS = {"http": 80, "https": 443}
_NOT_IN_A_URL = re.compile(r"[^!-~]|[\\\"<>^`{|}]")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")
_DOT_SEGMENT = re.compile(r"(?:/|%2f)(?:\.|%2e){1,2}(?=/|%2f|\Z)", re.IGNORECASE)
_MAX_HOST_CHARS = 253


def parse_base_url(text: str) -> BaseUrl:
    """
    Read a base URL that someone configured, ``https://host[:port][/prefix]``.

    :raises ValueError: with a sentence that says what is wrong. It never
        repeats the URL, in which someone may have put a password.
    """
    if _NOT_IN_A_URL.search(text) is not None:
        raise ValueError(
            "a base URL holds printable ASCII only: no spaces, backslashes or braces;"
            " write an international host name in its xn-- form"
        )
    scheme, separator, _ = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _DEFAULT_PORTS:
        raise ValueError("a base URL begins with http:// or https://")
    if "?" in text:
        raise ValueError("a base URL has no query: remove '?' and what follows")
    if "#" in text:
        raise ValueError("a base URL has no fragment: remove '#' and what follows")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(
            "the host and port of a base URL are host, host:port, [IPv6] or [IPv6]:port,"
            " the port a number from 1 to 65535"
        ) from None
    if "@" in parts.netloc:
        raise ValueError("a base URL holds no user and password: remove all up to '@'")
    if port is None:
        port = _DEFAULT_PORTS[scheme]
    elif port == 0:
        raise ValueError("the port of a base URL is a number from 1 to 65535")
    host = parts.hostname or ""
    if not host:
        raise ValueError("a base URL has a host after '://'")
    if parts.netloc.startswith("["):
        bracketed = f"[{_ipv6(host)}]"
        host = bracketed[1:-1]
    elif len(host) > _MAX_HOST_CHARS or _HOST.fullmatch(host) is None:
        raise ValueError(
            "the host of a base URL is a name of letters, digits, '-' and '_' between dots,"
            " or an IP address"
        )
    else:
        bracketed = host
    if _DOT_SEGMENT.search(parts.path) is not None:
        raise ValueError("the path of a base URL has no segments '.' and '..'")
    authority = bracketed if port == _DEFAULT_PORTS[scheme] else f"{bracketed}:{port}"
    return BaseUrl(
        scheme=scheme.encode("ascii"),
        host=host.encode("ascii"),
        port=port,
        authority=authority.encode("ascii"),
        path_prefix=parts.path.rstrip("/").encode("ascii"),
    )


def _ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except ValueError:
        raise ValueError("what is in brackets in a base URL is an IPv6 address") from None
    if address.scope_id is not None:
        raise ValueError("an IPv6 address in a base URL has no zone: remove '%' and what follows")
    return str(address)


_REGION = re.compile(r"[a-z0-9]+(-[a-z0-9]+)+")
_MAX_REGION_CHARS = 40
_MAX_CACHED = 1024
"""Clients name regions: what is remembered about them has a bound."""


class Endpoints:
    """
    The base URL of each service in each region.

    :param partitions: ``partitions.json``.
    :param overrides: service -> base URL in place of AWS's, for all regions.
        It is used as it stands: FIPS and dual-stack do not change it.
    :param use_fips: use the FIPS 140 endpoints.
    :param use_dualstack: use the endpoints that have IPv6, too.
    :raises ValueError: for an override that is not a base URL or whose service
        is not one of Bedrock's.
    """

    def __init__(
        self,
        partitions: PartitionsTable,
        *,
        overrides: Mapping[str, str],
        use_fips: bool = False,
        use_dualstack: bool = False,
    ) -> None:
        self._services = frozenset(partitions["services"])
        self._overrides: dict[str, BaseUrl] = {}
        for service, text in overrides.items():
            self._known(service)
            try:
                self._overrides[service] = parse_base_url(text)
            except ValueError as error:
                raise ValueError(f"{service}: {error}") from None
        self._partitions = [
            (each, re.compile(each["regionRegex"]), frozenset(each["regions"]))
            for each in partitions["partitions"]
        ]
        self._use_fips = use_fips
        self._use_dualstack = use_dualstack
        variant = "_".join(
            name for name, used in (("fips", use_fips), ("dualstack", use_dualstack)) if used
        )
        self._rule = partitions["rules"][variant or "plain"]
        self._cache: dict[tuple[str, str], BaseUrl] = {}

    def base_url(self, service: str, region: str) -> BaseUrl:
        """
        Where to send a request. No look-up tells whether AWS has the service
        there: a region that has it not is a host name that does not resolve.

        :raises ValueError: for a service that is not one of Bedrock's, for what
            cannot be a region, and for a partition without FIPS or dual-stack
            endpoints when these are asked for.
        """
        found = self._cache.get((service, region))
        if found is None:
            found = self._resolve(service, region)
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[service, region] = found
        return found

    def _resolve(self, service: str, region: str) -> BaseUrl:
        self._known(service)
        # The region becomes a part of the host name: "evil.example/" must not.
        if len(region) > _MAX_REGION_CHARS or _REGION.fullmatch(region) is None:
            raise ValueError(f"{region[:_MAX_REGION_CHARS]!r} is not an AWS region")
        override = self._overrides.get(service)
        if override is not None:
            return override
        partition = self._partition(region)
        if self._use_fips and not partition["supportsFIPS"]:
            raise ValueError(
                f"there are no FIPS endpoints in the partition {partition['id']} of {region}:"
                " turn FIPS off"
            )
        if self._use_dualstack and not partition["supportsDualStack"]:
            raise ValueError(
                f"there are no dual-stack endpoints in the partition {partition['id']} of"
                f" {region}: turn dual-stack off"
            )
        return parse_base_url(
            self._rule.format(
                service=service,
                region=region,
                dnsSuffix=partition["dnsSuffix"],
                dualStackDnsSuffix=partition["dualStackDnsSuffix"],
            )
        )

    def _partition(self, region: str) -> Partition:
        # As botocore's aws.partition: the first that knows the region or whose
        # pattern takes it, and the first of all for a region nobody knows.
        for partition, pattern, regions in self._partitions:
            if region in regions or pattern.match(region) is not None:
                return partition
        return self._partitions[0][0]

    def _known(self, service: str) -> None:
        if service not in self._services:
            raise ValueError(
                f"{service!r} is not a service of Bedrock, which are"
                f" {', '.join(sorted(self._services))}"
            )
