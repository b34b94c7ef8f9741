"""
Getting AWS credentials with botocore. Everything here blocks.

A :class:`~.recipe.Recipe` says how the credentials of a spec are got; its ``load`` is
called in a thread, comes here, and gives back a value.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import botocore.loaders
import botocore.session
import botocore.utils
from botocore.config import Config
from botocore.configprovider import ConfigChainFactory
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    AssumeRoleProvider,
    AssumeRoleWithWebIdentityCredentialFetcher,
    AssumeRoleWithWebIdentityProvider,
    BotoProvider,
    CanonicalNameCredentialSourcer,
    ContainerProvider,
    CredentialResolver,
    EnvProvider,
    InstanceMetadataProvider,
    OriginalEC2Provider,
    ProcessProvider,
    ProfileProviderBuilder,
)
from botocore.credentials import Credentials as BotocoreCredentials
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError

from txbedrock.core.credentials import Credentials
from txbedrock.outbound.recipe import (
    NO_VALID,
    Failed,
    Loaded,
    Recipe,
    is_path,
    text,
)

__all__ = ["Loading"]

_STS_CONNECT_TIMEOUT_S = 3.0
_STS_READ_TIMEOUT_S = 5.0
_STS_ATTEMPTS = 2
_PROCESS_TIMEOUT_S = 60.0
_MAX_REASON_CHARS = 600

_NONE_FOUND = (
    "The gateway has found no AWS credentials. Whoever runs it must configure keys,"
    " a profile, a role or a Bedrock API key."
)


class _Unusable(Exception):
    """These credentials cannot be loaded. The text holds no secret."""

    def __init__(self, reason: str, message: str = NO_VALID) -> None:
        super().__init__(reason)
        self.message = message


class _Secrets:
    """
    What must not be told to anybody, collected while a load goes on.

    botocore's errors quote what STS said, and STS quotes what it was sent; the
    errors of a ``credential_process`` quote what it wrote.
    """

    # Key ids, JWTs, secret keys, session tokens: for those that nobody added.
    _shapes = re.compile(
        r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"
        r"|\bey[\w-]{8,}\.[\w-]+\.[\w-]*"
        r"|(?<![A-Za-z0-9/+=])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])"
        r"|[A-Za-z0-9/+=]{100,}"
    )

    def __init__(self, values: Iterable[str | None]) -> None:
        self._values: set[str] = set()
        self.add(*values)

    def add(self, *values: str | None) -> None:
        for value in values:
            if value and value.strip():
                self._values.add(value.strip())

    def redact(self, text: str) -> str:
        """One line, without secrets, not too long."""
        for value in sorted(self._values, key=len, reverse=True):
            for form in {value, quote(value, safe="")}:
                pattern = re.escape(form)
                if len(form) < 8:  # do not eat parts of other words
                    pattern = rf"(?<!\w){pattern}(?!\w)"
                text = re.sub(pattern, "<redacted>", text)
        text = " ".join(self._shapes.sub("<redacted>", text).split())
        return text if len(text) <= _MAX_REASON_CHARS else text[:_MAX_REASON_CHARS] + "..."


class Loading(Recipe):
    """A recipe that is being followed."""

    def load(self) -> Loaded | Failed:
        """Get them. Blocks; never raises."""
        hidden = _Secrets(
            [
                self._key_id,
                self._secret,
                self._session_token,
                self._external_id,
                self.bearer.token if self.bearer else None,
                self._environ.get("AWS_SECRET_ACCESS_KEY"),
                self._environ.get("AWS_SESSION_TOKEN"),
                self._environ.get("AWS_SECURITY_TOKEN"),
                self._environ.get("AWS_BEARER_TOKEN_BEDROCK"),
                self._environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
            ]
        )
        try:
            return self._load(hidden)
        except _Unusable as error:
            return Failed(hidden.redact(str(error)), error.message)
        except (BotoCoreError, ClientError, OSError) as error:
            return Failed(hidden.redact(f"{type(error).__name__}: {error}"), NO_VALID)
        except Exception as error:
            # botocore lets through whatever a bad file or answer makes it raise.
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
            return Failed(hidden.redact(reason), NO_VALID)

    def _load(self, hidden: _Secrets) -> Loaded:
        session = _Session(
            self._environ,
            profile=None if self._static else self._profile,
            region=self._region,
            sts_endpoint_url=self._sts_endpoint_url,
        )
        if self._static:
            if self._key_id is None or self._secret is None:
                raise _Unusable("the access key id and the secret access key go together")
            base = BotocoreCredentials(self._key_id, self._secret, self._session_token)
        elif self._web_identity is not None and self._profile is None:
            return self._by_web_identity(session, self._web_identity, hidden)
        else:
            base = self._by_chain(session, hidden)
        frozen = base.get_frozen_credentials()
        hidden.add(frozen.secret_key, frozen.token)
        if self._role is None or self._is_role_of_environment(base):
            # botocore has no public name for it; a test watches this one.
            expiry = getattr(base, "_expiry_time", None)
            credentials = Credentials(frozen.access_key, frozen.secret_key, frozen.token or None)
            if expiry is not None:
                return Loaded(credentials, expires=expiry.timestamp())
            return Loaded(credentials, rereadable=base.method in _FILE_METHODS)
        extra: dict[str, Any] = {"RoleSessionName": self._session_name}
        if self._tags:
            extra["Tags"] = [{"Key": key, "Value": value} for key, value in self._tags]
        if self._external_id is not None:
            extra["ExternalId"] = self._external_id
        fetcher = AssumeRoleCredentialFetcher(session.create_client, base, self._role, extra)
        return _from_metadata(fetcher.fetch_credentials())

    def _by_chain(self, session: _Session, hidden: _Secrets) -> Any:
        for profile in session.full_config.get("profiles", {}).values():
            hidden.add(*(profile.get(name) for name in _SECRETS_OF_PROFILE))
        base = _credential_resolver(session, self._environ).load_credentials()
        if base is None:
            raise _Unusable(
                "nothing found in the environment, the AWS files, and the container's"
                " and the machine's metadata",
                _NONE_FOUND,
            )
        return base

    def _by_web_identity(self, session: _Session, token: str, hidden: _Secrets) -> Loaded:
        role = self._role or text(self._environ.get("AWS_ROLE_ARN"))
        if role is None:
            raise _Unusable("a web identity token needs the ARN of the role that it stands for")

        def read_token() -> str:
            content = _read_web_identity(token)
            hidden.add(content)
            return content

        fetcher = AssumeRoleWithWebIdentityCredentialFetcher(
            session.create_client, read_token, role, {"RoleSessionName": self._session_name}
        )
        return _from_metadata(fetcher.fetch_credentials())

    def _is_role_of_environment(self, base: Any) -> bool:
        """
        Whether the chain has assumed the role already, as it does in a pod that
        has the role; a role may seldom assume itself.
        """
        return (
            base.method == AssumeRoleWithWebIdentityProvider.METHOD
            and self._profile is None
            and self._environ.get("AWS_ROLE_ARN") == self._role
        )


_SECRETS_OF_PROFILE = ("aws_secret_access_key", "aws_session_token", "external_id")

_FILE_METHODS = frozenset(
    {"shared-credentials-file", "config-file", "ec2-credentials-file", "boto-config"}
)


def _from_metadata(metadata: Mapping[str, Any]) -> Loaded:
    return Loaded(
        Credentials(metadata["access_key"], metadata["secret_key"], metadata["token"]),
        expires=datetime.fromisoformat(metadata["expiry_time"]).timestamp(),
    )


def _read_web_identity(given: str) -> str:
    """
    An OIDC token.

    :param given: a path, or the token itself.
    """
    if given.startswith("oidc/"):
        raise _Unusable("a web identity token is a path or a token; oidc/... is not known here")
    path = os.path.expanduser(given)
    if not is_path(given) and (len(given) > 255 or not os.path.isfile(path)):
        return given
    with open(path, encoding="utf-8") as file:
        token = file.read(1 << 16).strip()
    if not token:
        raise _Unusable("the file of the web identity token is empty")
    return token


# --------------------------------------------------------------------------
# botocore, made to read the environment that it is given.
#
# Note [botocore and the environment]
#
# botocore reads os.environ in several places, of which each provider's
# constructor lets us choose all but two: the variables of web identity and the
# configured endpoint URLs. Therefore the chain is put together here, from
# botocore's own providers in botocore's own order (a test compares), and the
# endpoint URLs are looked up here. AWS_ENDPOINT_URL and its like in a profile
# are meant for the services that the user calls, often enough they name this
# very gateway: they never redirect how credentials are got.
# AWS_ENDPOINT_URL_STS (_SSO, _SSO_OIDC) and a profile's `services` section say
# what they mean, and count.


# To make a session or a client is milliseconds of pure Python. Twenty threads
# that do it at once would hold up the reactor's for 200 ms, and each other more.
_one_builds = threading.RLock()


@lru_cache(maxsize=4)
def _data_loader(data_path: str | None) -> Any:
    """botocore's service models, parsed once for all sessions."""
    return botocore.loaders.create_loader(data_path)


class _Session(botocore.session.Session):
    """
    A botocore session for getting credentials.

    Made anew for each load, so that changed files count.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        profile: str | None,
        region: str | None,
        sts_endpoint_url: str | None,
    ) -> None:
        with _one_builds:
            super().__init__(profile=profile)
        self.environ = environ
        self.home = environ.get("HOME") or os.path.expanduser("~")
        self._sts_endpoint_url = sts_endpoint_url
        variables = dict(self.SESSION_VARIABLES)
        variables["region"] = ("region", ["AWS_REGION", "AWS_DEFAULT_REGION"], "us-east-1", None)
        for name, file in [("config_file", "config"), ("credentials_file", "credentials")]:
            _, names, _, conversion = variables[name]
            variables[name] = (None, names, os.path.join(self.home, ".aws", file), conversion)
        chains = ConfigChainFactory(session=self, environ=environ)
        store = self.get_component("config_store")
        for name, (in_file, names, default, conversion) in variables.items():
            chain = chains.create_config_chain(
                instance_name=name,
                env_var_names=names,
                config_property_names=in_file,
                default=default,
                conversion_func=conversion,
            )
            store.set_config_provider(name, chain)
        if region is not None:
            self.set_config_variable("region", region)
        self.set_config_variable("sts_regional_endpoints", "regional")
        # Not "auto", which asks the machine's metadata service.
        self.set_config_variable("defaults_mode", "legacy")
        self.register_component("data_loader", _data_loader(self.get_config_variable("data_path")))
        self.user_agent_extra = "txbedrock"
        self.set_default_client_config(
            Config(
                connect_timeout=_STS_CONNECT_TIMEOUT_S,
                read_timeout=_STS_READ_TIMEOUT_S,
                retries={"total_max_attempts": _STS_ATTEMPTS, "mode": "standard"},
                ignore_configured_endpoint_urls=True,
            )
        )

    def create_client(self, service_name: str, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("endpoint_url") is None:
            kwargs["endpoint_url"] = self._endpoint_url(service_name)
        with _one_builds:
            return super().create_client(service_name, *args, **kwargs)

    def _endpoint_url(self, service_name: str) -> str | None:
        if service_name == "sts" and self._sts_endpoint_url is not None:
            return self._sts_endpoint_url
        if self.get_config_variable("ignore_configured_endpoint_urls"):
            return None
        key = service_name.replace("-", "_")
        from_environ = self.environ.get(f"AWS_ENDPOINT_URL_{key.upper()}")
        if from_environ:
            return from_environ
        section = self.full_config.get("services", {}).get(
            self.get_scoped_config().get("services")
        )
        url: str | None = (section or {}).get(key, {}).get("endpoint_url")
        return url


def _credential_resolver(session: _Session, environ: Mapping[str, str]) -> CredentialResolver:
    """
    botocore's default chain.

    Source: ``botocore.credentials.create_credential_resolver``, for the order.
    """
    profile = session.get_config_variable("profile") or "default"
    profile_is_explicit = session.instance_variables().get("profile") is not None
    cache: dict[str, Any] = {}
    env = EnvProvider(environ)
    container = ContainerProvider(environ)
    metadata = InstanceMetadataProvider(
        _MetadataFetcher(
            timeout=session.get_config_variable("metadata_service_timeout"),
            num_attempts=session.get_config_variable("metadata_service_num_attempts"),
            env=environ,
            user_agent=session.user_agent(),
            config={
                name: session.get_config_variable(name)
                for name in ("ec2_metadata_service_endpoint", "ec2_metadata_v1_disabled")
            }
            | {
                "ec2_metadata_service_endpoint_mode": botocore.utils.resolve_imds_endpoint_mode(
                    session
                ),
                "ec2_credential_refresh_window": 15 * 60,
            },
        )
    )
    of_profile = _ProfileProviders(
        session,
        cache=cache,
        sso_token_cache=botocore.utils.JSONFileCache(
            os.path.join(session.home, ".aws", "sso", "cache")
        ),
    )
    assume_role = AssumeRoleProvider(
        load_config=lambda: session.full_config,
        client_creator=session.create_client,
        cache=cache,
        profile_name=profile,
        prompter=_nobody_to_ask,
        credential_sourcer=CanonicalNameCredentialSourcer([env, container, metadata]),
        profile_provider_builder=of_profile,
    )
    return CredentialResolver(
        [
            *([] if profile_is_explicit else [env]),
            assume_role,
            *of_profile.providers(profile, disable_env_vars=profile_is_explicit),
            OriginalEC2Provider(environ),
            BotoProvider(environ),
            container,
            metadata,
        ]
    )


def _nobody_to_ask(prompt: str) -> str:
    raise _Unusable("the profile asks for an MFA code, which a gateway cannot give")


class _ProfileProviders(ProfileProviderBuilder):
    """botocore's, with the environment given, and processes that cannot hang."""

    def _create_web_identity_provider(
        self, profile_name: str, disable_env_vars: bool
    ) -> AssumeRoleWithWebIdentityProvider:
        return _WebIdentityProvider(
            load_config=lambda: self._session.full_config,
            client_creator=self._session.create_client,
            profile_name=profile_name,
            cache=self._cache,
            disable_env_vars=disable_env_vars,
        ).reading(self._session.environ)

    def _create_process_provider(self, profile_name: str) -> ProcessProvider:
        def popen(command: list[str], **kwargs: Any) -> _BoundedProcess:
            return _BoundedProcess(
                command,
                env=dict(self._session.environ),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                **kwargs,
            )

        return ProcessProvider(
            profile_name=profile_name, load_config=lambda: self._session.full_config, popen=popen
        )


class _WebIdentityProvider(AssumeRoleWithWebIdentityProvider):
    _environ: Mapping[str, str] = {}

    def reading(self, environ: Mapping[str, str]) -> _WebIdentityProvider:
        self._environ = environ
        return self

    def _get_env_config(self, key: str) -> str | None:
        if self._disable_env_vars:
            return None
        return self._environ.get(self._CONFIG_TO_ENV_VAR[key])


class _MetadataFetcher(botocore.utils.InstanceMetadataFetcher):
    """
    Tells the true expiry of the machine's credentials.

    botocore puts it off by some twenty minutes as soon as less than that is
    left, to live through an outage of the metadata service. We ask well ahead
    of the expiry, when the old ones are still given out, and would then use
    them for too long. Only what has expired already is taken as meant to be
    used, as it is botocore's to know.
    """

    def _evaluate_expiration(self, credentials: dict[str, str]) -> None:
        try:
            expiry = datetime.fromisoformat(credentials["expiry_time"]).timestamp()
        except ValueError:
            return
        if expiry <= time.time():
            super()._evaluate_expiration(credentials)


class _BoundedProcess(subprocess.Popen[bytes]):
    """A ``credential_process`` that is killed when it takes too long."""

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        try:
            return super().communicate(input, timeout or _PROCESS_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            super().communicate()
            raise CredentialRetrievalError(
                provider=ProcessProvider.METHOD,
                error_msg=f"no answer within {_PROCESS_TIMEOUT_S:.0f} s",
            ) from None
