"""
The part of the configuration that says who may ask for what, and how much.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from txbedrock.config.fields import (
    Found,
    Section,
    Wrong,
    boolean,
    duration,
    one_of,
    price,
    text,
)
from txbedrock.config.settings import AccessSettings
from txbedrock.config.yamltree import Node
from txbedrock.core.addresses import parse_network
from txbedrock.core.auth import CERTIFICATE_NAMES, ClientCertificate
from txbedrock.core.budgets import parse_duration
from txbedrock.core.grantfields import BadFields, key_from_config
from txbedrock.core.grants import NO_LIMITS, Key, Limits

__all__ = ["OURS", "access_groups", "access_settings", "deployment_limits"]

OURS = (
    "budget_unpriced",
    "client_certificates",
    "key_cache_age",
    "key_cache_grace",
    "limit_wait",
    "salt_key",
    "stop_streams_over_reservation",
    "trusted_proxies",
    "virtual_keys",
)
"""The keys of ``general_settings`` that are read here."""


def access_settings(general: Section, litellm: Section, env: Section) -> AccessSettings:
    """
    :param general: ``general_settings``.
    :param litellm: ``litellm_settings``.
    :param env: the environment.
    """
    standard = AccessSettings()
    if general.get("use_x_forwarded_for", boolean) and "trusted_proxies" not in general:
        general.problem(
            "use_x_forwarded_for",
            "found true, expected trusted_proxies beside it: the addresses that are believed",
        )
    unpriced = general.get("budget_unpriced", one_of(("refuse", "allow")))
    age = general.get("key_cache_age", duration(0))
    grace = general.get("key_cache_grace", duration(0))
    wait = general.get("limit_wait", duration(0))
    end_user = litellm.get("max_end_user_budget", price)
    keys = _virtual_keys(general)
    return AccessSettings(
        keys=keys,
        salt=_salt(general, env),
        key_cache_age_s=standard.key_cache_age_s if age is None else age,
        key_cache_grace_s=standard.key_cache_grace_s if grace is None else grace,
        allow_unpriced=unpriced == "allow",
        stop_overruns=general.get("stop_streams_over_reservation", boolean) or False,
        limit_wait_s=standard.limit_wait_s if wait is None else wait,
        end_user_limits=NO_LIMITS if end_user is None else Limits(max_budget=end_user),
        trusted_proxies=general.get("trusted_proxies", _networks) or (),
        client_certificates=_client_certificates(general, keys),
    )


def deployment_limits(params: Section) -> Limits:
    """The budget that ``litellm_params`` gives a deployment."""
    budget = params.get("max_budget", price)
    period = params.get("budget_duration", _period) or ""
    # Whoever asks for room is spared the question by this very object.
    return NO_LIMITS if budget is None else Limits(max_budget=budget, budget_duration=period)


def access_groups(info: Section) -> tuple[str, ...]:
    """The names by which lists of models may mean a deployment's model group."""
    return info.get("access_groups", _texts) or ()


def _virtual_keys(general: Section) -> tuple[Key, ...]:
    keys: list[Key] = []
    for item in general.sections("virtual_keys"):
        values = {name: item.get(name, _plain) for name in item}
        try:
            key = key_from_config(values)
        except BadFields as error:
            for path, reason in error.problems:
                first = re.split(r"[.\[]", path, maxsplit=1)[0]
                item.problem(first or "key_hash", reason + (f" ({path})" if path != first else ""))
            continue
        for other in keys:
            if other.id == key.id or (key.alias and other.alias == key.alias):
                item.problem("key_hash", "found a key that is there already, by hash or alias")
        keys.append(key)
    return tuple(keys)


def _client_certificates(general: Section, keys: Iterable[Key]) -> dict[str, str]:
    """Which key a certificate stands for: its name -> the key's SHA-256."""
    by_alias = {key.alias: key.tokens[0].hash for key in keys if key.alias}
    found: dict[str, str] = {}
    for item in general.sections("client_certificates"):
        alias = item.get("key_alias", text)
        item.missing("key_alias", "the key_alias of one of virtual_keys")
        if alias is not None and alias not in by_alias:
            item.problem("key_alias", "found an alias that none of virtual_keys has")
        kinds = [kind for kind in CERTIFICATE_NAMES if kind in item]
        if len(kinds) != 1:
            item.problem(
                "key_alias",
                f"found {len(kinds) or 'no'} names of a certificate beside it, expected one of "
                + ", ".join(CERTIFICATE_NAMES),
            )
        for kind in kinds:
            value = item.get(kind, _fingerprint if kind == "sha256" else text)
            if value is None or alias is None or alias not in by_alias:
                continue
            name = ClientCertificate.name(kind, value)
            if name in found:
                item.problem(kind, "found a name that is there already")
            found[name] = by_alias[alias]
        item.finish({}, ours=("key_alias", *CERTIFICATE_NAMES))
    return found


def _fingerprint(found: Found) -> str:
    value = text(found)
    if not re.fullmatch("[0-9a-fA-F]{64}", value.replace(":", "")):
        raise Wrong(found.shown, "the certificate's SHA-256 in hex, 64 digits")
    return value


def _plain(found: Found) -> Any:
    """A value as JSON would have it; ``os.environ/NAME`` at its top only."""
    data = found.data
    if isinstance(data, list):
        return [_plain(Found(node.data)) for node in data]
    if isinstance(data, Mapping):
        return {name: _plain(Found(node.data)) for name, node in data.items()}
    return data


def _salt(general: Section, env: Section) -> str | None:
    if "salt_key" in general:
        return general.get("salt_key", _salt_text)
    for name in ("TXBEDROCK_SALT_KEY", "LITELLM_SALT_KEY"):
        if name in env:
            return env.get(name, _salt_text)
    return None


def _salt_text(found: Found) -> str:
    value = text(found)
    if len(value) < 16:
        raise Wrong("a salt key of fewer than 16 characters", "16 or more, at random")
    return value


def _period(found: Found) -> str:
    value = text(found)
    try:
        parse_duration(value)
    except ValueError as error:
        raise Wrong(found.shown, str(error)) from None
    return value


def _items(found: Found) -> list[Node]:
    return found.data if isinstance(found.data, list) else [Node(found.data, "", 0)]


def _texts(found: Found) -> tuple[str, ...]:
    return tuple(text(Found(node.data)) for node in _items(found))


def _networks(found: Found) -> tuple[str, ...]:
    values = _texts(found)
    for value in values:
        try:
            parse_network(value)
        except ValueError as error:
            raise Wrong(repr(value), str(error)) from None
    return values
