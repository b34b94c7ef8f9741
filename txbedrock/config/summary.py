"""
A configuration in plain text, as ``--check`` prints it. It holds no secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from txbedrock.config.settings import Settings
from txbedrock.core.deployments import CredentialSpec, Deployment

__all__ = ["summary"]

_Words = Callable[[CredentialSpec], str]


def summary(settings: Settings, credentials_in_words: _Words) -> str:
    """
    What the gateway will do: its models and which deployments serve them,
    where credentials come from, and what its operator should know.

    :param credentials_in_words: tells a source without its secrets.
    """
    blocks = [
        _models(settings, credentials_in_words),
        _direct(settings, credentials_in_words),
        _block("Endpoints other than AWS's own", _rows(sorted(settings.endpoint_urls.items()))),
        _general(settings),
        _block("Notices", (f"  {notice}" for notice in settings.notices)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _models(settings: Settings, credentials_in_words: _Words) -> str:
    groups: dict[str, list[Deployment]] = {}
    for deployment in settings.deployments:
        groups.setdefault(deployment.model_name, []).append(deployment)
    if not groups:
        return "Models: none configured"
    lines = []
    for name, members in groups.items():
        lines.append(f"  {name}")
        lines += _rows(
            [
                (
                    one.id,
                    one.model_id,
                    one.region,
                    credentials_in_words(one.credentials),
                    f"at {one.endpoint_url}" if one.endpoint_url else "",
                )
                for one in members
            ],
            indent=4,
        )
    lines += [
        f"  {alias} -> {target}" for alias, target in sorted(settings.model_group_alias.items())
    ]
    return _block("Models", lines)


def _direct(settings: Settings, credentials_in_words: _Words) -> str:
    title = "Direct routes, and model ids of Bedrock's own"
    default = settings.default
    if default is None:
        return f"{title}: not served (no region)"
    words = credentials_in_words(default.credentials)
    return _block(title, _rows([(default.region, words)]))


def _general(settings: Settings) -> str:
    if settings.master_key is not None:
        key = "set"
    else:
        key = "not set" + (", and all may call" if settings.allow_no_key else "")
    rows = [("route prefix", settings.route_prefix or "/"), ("master key", key)]
    if settings.price_file is not None:
        rows.append(("prices", f"the shipped ones, under those of {settings.price_file}"))
    if settings.use_fips:
        rows.append(("endpoints", "FIPS"))
    if settings.use_dualstack:
        rows.append(("endpoints", "dual-stack"))
    if not settings.verify_tls:
        rows.append(("certificates", "not verified"))
    elif settings.ca_bundle is not None:
        rows.append(("certificates", f"verified against {settings.ca_bundle}"))
    return _block("General", _rows(rows))


def _block(title: str, lines: Iterable[str]) -> str:
    body = list(lines)
    return "\n".join([title, *body]) if body else ""


def _rows(rows: Sequence[tuple[str, ...]], indent: int = 2) -> list[str]:
    """Lines whose columns begin below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " " * indent
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
