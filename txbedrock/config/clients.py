"""
The part of the configuration that says how many connections clients may have, and which
web pages may call from a browser.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from txbedrock.config.fields import Found, Section, Wrong, boolean, duration, number, text
from txbedrock.config.settings import ClientSettings, CorsSettings
from txbedrock.config.yamltree import Node

__all__ = ["OURS", "client_settings"]

OURS = (
    "cors_allow_credentials",
    "cors_allow_headers",
    "cors_allow_origins",
    "cors_max_age",
    "max_connections",
    "max_connections_per_address",
    "max_requests_per_connection",
)
"""The keys of ``general_settings`` that are read here."""

_MOST = 1_000_000
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def client_settings(general: Section) -> ClientSettings:
    """
    :param general: ``general_settings``.
    """
    standard = ClientSettings()

    def count(key: str, low: int, otherwise: int) -> int:
        found = general.get(key, number(low, _MOST, whole=True))
        return otherwise if found is None else int(found)

    return ClientSettings(
        max_connections=count("max_connections", 1, standard.max_connections),
        max_connections_per_address=count(
            "max_connections_per_address", 0, standard.max_connections_per_address
        ),
        max_requests_per_connection=count(
            "max_requests_per_connection", 0, standard.max_requests_per_connection
        ),
        cors=_cors(general),
    )


def _cors(general: Section) -> CorsSettings:
    standard = CorsSettings()
    origins = general.get("cors_allow_origins", _several(_origin)) or ()
    headers = general.get("cors_allow_headers", _several(_header_name))
    max_age = general.get("cors_max_age", duration(0))
    credentials = general.get("cors_allow_credentials", boolean) or False
    if credentials and "*" in origins:
        general.problem(
            "cors_allow_credentials",
            "found true, expected cors_allow_origins to list the origins: never for *",
        )
    return CorsSettings(
        allow_origins=origins,
        allow_headers=standard.allow_headers if headers is None else headers,
        allow_credentials=credentials,
        max_age_s=standard.max_age_s if max_age is None else max_age,
    )


def _several(parse: Callable[[Found], str]) -> Callable[[Found], tuple[str, ...]]:
    """A list, or one that stands alone."""

    def parse_all(found: Found) -> tuple[str, ...]:
        nodes = found.data if isinstance(found.data, list) else [Node(found.data, "", 0)]
        return tuple(dict.fromkeys(parse(Found(node.data)) for node in nodes))

    return parse_all


def _origin(found: Found) -> str:
    value = text(found)
    if value in ("*", "null"):
        return value
    value = value.lower()
    if not _ORIGIN.fullmatch(value):
        raise Wrong(found.shown, "an origin such as https://app.example.com, without a path, or *")
    scheme, _, host = value.partition("://")
    # Browsers leave out a port that goes without saying.
    return value.removesuffix(f":{_DEFAULT_PORTS.get(scheme, '')}") if ":" in host else value


def _header_name(found: Found) -> str:
    value = text(found)
    if not _HEADER_NAME.fullmatch(value):
        raise Wrong(found.shown, "the name of a header, or *")
    return value
