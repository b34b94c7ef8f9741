"""
How the credentials of a deployment are got, as far as that is known without asking.

botocore is imported by whoever has to ask it: it takes 8 MB, and a gateway with keys
of its own does without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from txbedrock.core.credentials import BearerToken, Credentials
from txbedrock.core.deployments import CredentialSpec
from txbedrock.core.identity import session_name as tagged_session_name

__all__ = [
    "NO_VALID",
    "Failed",
    "Loaded",
    "Recipe",
    "in_words",
    "is_path",
    "text",
    "until",
]

NO_VALID = (
    "The gateway has no valid AWS credentials for this request and keeps trying to get some."
    " If this lasts, tell whoever runs the gateway: its log says why."
)


def until(expires: float) -> str:
    """For the log: "valid ..."."""
    if expires == float("inf"):
        return "without expiry"
    return f"until {datetime.fromtimestamp(expires, UTC):%Y-%m-%dT%H:%M:%SZ}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load has brought."""

    credentials: Credentials
    expires: float = float("inf")
    """POSIX seconds."""

    rereadable: bool = False
    """From a file that other tools edit, and without expiry."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a load has brought nothing."""

    reason: str
    """For the log; holds no secret."""

    message: str
    """For the client."""


def text(value: str | None) -> str | None:
    """A setting without the line end that files and secret stores like to add."""
    return (value or "").strip() or None


def in_words(spec: CredentialSpec, environ: Mapping[str, str]) -> str:
    """Where the credentials of a spec come from, without any secret."""
    return Recipe(spec, environ, session_name="").words


class Recipe:
    """
    How the credentials of a spec are got.

    :ivar bearer: the API key, if there is one.
    :ivar ready: credentials that need no loading.
    :ivar loads: whether :meth:`load` is to be called at all.
    :ivar optional: whether the gateway can do without what it loads.
    :ivar tagged: whether it is one of many, for whom a session of the role is.
    :ivar words: for people.
    """

    def __init__(
        self, spec: CredentialSpec, environ: Mapping[str, str], session_name: str
    ) -> None:
        self._given = spec, environ, session_name
        self._environ = environ
        self._session_name = (
            text(spec.role_session_name) or text(environ.get("AWS_ROLE_SESSION_NAME"))
        ) or session_name
        self._key_id = text(spec.access_key_id)
        self._secret = text(spec.secret_access_key)
        self._session_token = text(spec.session_token)
        self._profile = text(spec.profile_name)
        self._role = text(spec.role_arn)
        self._external_id = text(spec.external_id)
        self._web_identity = text(spec.web_identity_token)
        self._sts_endpoint_url = text(spec.sts_endpoint_url)
        self._region = text(spec.region)
        self._tags = spec.session_tags
        self.tagged = bool(self._tags)
        if self._tags:
            self._session_name = tagged_session_name(self._tags)

        api_key = text(spec.api_key)
        static = self._key_id is not None or self._secret is not None
        explicit = static or any((self._profile, self._role, self._web_identity))
        if api_key is None and not explicit:
            bearer = text(environ.get("AWS_BEARER_TOKEN_BEDROCK"))
        else:
            bearer = api_key
        self.bearer = None if bearer is None else BearerToken(bearer)
        self.ready: Credentials | None = None
        if self._key_id is not None and self._secret is not None and self._role is None:
            self.ready = Credentials(self._key_id, self._secret, self._session_token)
        self.loads = self.ready is None and (explicit or api_key is None)
        self.optional = self.bearer is not None and not explicit

        self._static = static
        rest = self._base_words() if explicit or api_key is None else ""
        if api_key is not None:
            rest = f"a Bedrock API key{rest and '; for other services '}{rest}"
        elif self.bearer is not None:
            rest = f"the Bedrock API key of AWS_BEARER_TOKEN_BEDROCK; for other services {rest}"
        self.words = rest

    def _base_words(self) -> str:
        if self._static:
            base = "the configured AWS keys"
        elif self._profile:
            base = f"AWS profile {self._profile!r}"
        elif self._web_identity:
            base = "a web identity token"
            if is_path(self._web_identity):
                base += f" in {self._web_identity}"
        else:
            base = "the AWS credential chain"
        if self._role:
            base = f"role {self._role} by {base}"
        return f"{base} for {self._session_name}" if self._tags else base

    def load(self) -> Loaded | Failed:
        """Get them. Blocks; never raises."""
        from txbedrock.outbound.chain import Loading

        return Loading(*self._given).load()


def is_path(web_identity: str) -> bool:
    """Whether this is clearly no token, so that it may be named."""
    if web_identity.startswith(("/", "./", "../", "~")):
        return True
    return "/" in web_identity and len(web_identity) < 200 and web_identity.count(".") != 2
