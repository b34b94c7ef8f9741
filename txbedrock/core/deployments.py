"""
What can serve a model, as plain data: filled by the configuration, read by everyone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from txbedrock.core.grants import NO_LIMITS, Limits

__all__ = ["CredentialSpec", "Deployment", "OnDisconnect"]


class OnDisconnect(Enum):
    """What becomes of an answer whose client has left while it streamed."""

    DRAIN = "drain"
    """Read the rest, so that what it cost is known (Bedrock bills it anyway)."""

    CANCEL = "cancel"
    """Close the upstream at once."""


@dataclass(frozen=True, slots=True)
class CredentialSpec:
    """
    Where credentials come from. Two equal specs share one source.

    All fields empty: botocore's whole provider chain, and
    ``AWS_BEARER_TOKEN_BEDROCK`` where the service takes it.

    The order of precedence is: :attr:`api_key`; then a base (static keys,
    :attr:`profile_name`, :attr:`web_identity_token` or the chain), from which
    :attr:`role_arn` is assumed when it is set.
    """

    api_key: str | None = field(default=None, repr=False)
    """A Bedrock API key, sent as a bearer token."""

    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    profile_name: str | None = None
    role_arn: str | None = None
    role_session_name: str | None = None
    external_id: str | None = field(default=None, repr=False)

    web_identity_token: str | None = field(default=None, repr=False)
    """A path of a file that holds an OIDC token, or the token itself."""

    sts_endpoint_url: str | None = None
    region: str | None = None
    """Region of the STS calls; None: the deployment's own is not known."""

    session_tags: tuple[tuple[str, str], ...] = ()
    """For the session of the role: whom it is for."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """
    A region, an account and a model that can serve a model name.
    """

    id: str
    """Stable over restarts as long as its configuration is the same."""

    model_name: str
    """The model group it belongs to: the name clients use. May hold one ``*``."""

    model_id: str
    """Bedrock's id, inference-profile id or ARN, not encoded. ``*`` takes what
    the ``*`` of :attr:`model_name` matched."""

    region: str
    credentials: CredentialSpec = CredentialSpec()

    endpoint_url: str | None = None
    """Base URL in place of the bedrock-runtime host; its path is a prefix."""

    timeout_s: float | None = None
    """Longest wait for the head of an answer; None: the general limit."""

    stream_timeout_s: float | None = None
    """The same for streams; None: as :attr:`timeout_s`."""

    on_disconnect: OnDisconnect = OnDisconnect.DRAIN

    region_from_model: bool = False
    """Whether :attr:`region` is only a default: a model id that a client sends
    in full (through ``*``, or raw) may name another one."""

    prices: tuple[tuple[str, int], ...] = ()
    """Its own prices, in pico-USD by name (:mod:`~txbedrock.core.pricekeys`)."""

    limits: Limits = field(default=NO_LIMITS, hash=False)
    """Its budget; :data:`~txbedrock.core.grants.NO_LIMITS` itself if it has none."""

    weight: float | None = None
    """How much of the requests it gets, among those of its group."""

    order: int = 0
    """Those with a lower one come first."""

    tags: tuple[str, ...] = ()
    """Requests with one of them are for it, where tags choose deployments."""

    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    max_retries: int | None = None
    """How often one request may try it again; None: as the general settings say."""

    session_tags: tuple[str, ...] = ()
    """What AWS is told in the tags of the role's session, of
    :data:`~txbedrock.core.identity.IDENTITY_FIELDS`."""

    base_model: str | None = None
    """The model whose price it has, where :attr:`model_id` does not say so."""
