"""
``config.yaml`` and the environment as one frozen value.

The file is LiteLLM's: ``model_list``, ``router_settings``, ``general_settings``,
``litellm_settings``, ``credential_list``, ``environment_variables``, ``include``,
and ``os.environ/NAME`` in place of any text. What is this project's own stands
in ``general_settings`` under plain names, and ``on_disconnect`` beside a
deployment's other parameters. ``etc/config.yaml`` explains each.

A configuration that cannot be used is refused with all its faults at once, each
with file, line and key. What can be used but does not do what its author may
think is a notice. No message holds a value that may be a secret.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from txbedrock.config import access, clients, litellm, routing
from txbedrock.config.fields import (
    Field,
    Found,
    Reading,
    Section,
    Wrong,
    base_url,
    boolean,
    duration,
    file_name,
    fitting,
    number,
    one_of,
    price,
    shorten,
    size,
    text,
)
from txbedrock.config.prices import load_prices
from txbedrock.config.settings import SERVICES, LedgerSettings, Limits, Settings
from txbedrock.config.yamltree import Node, Report, read_file
from txbedrock.core.deployments import CredentialSpec, Deployment, OnDisconnect
from txbedrock.core.identity import IDENTITY_FIELDS
from txbedrock.core.models import Models, arn_region, bare_id, is_region
from txbedrock.core.pricekeys import (
    GUARDRAIL,
    LITELLM_KEYS,
    LITELLM_MAPPINGS,
    litellm_name,
    rank,
    split,
)
from txbedrock.core.pricing import Prices, PriceTable
from txbedrock.errors import ConfigError, ProxyError

__all__ = ["default_settings", "load"]

T = TypeVar("T")


def load(path: str, environ: Mapping[str, str]) -> Settings:
    """
    Read a configuration file.

    :param environ: the environment, usually ``os.environ``.
    :raises ConfigError: with all problems found.
    """
    report = Report()
    entries = read_file(path, report)
    if entries is None:
        raise ConfigError(report.problems)
    return _Configuration(path, entries, environ, report).settings()


def default_settings(environ: Mapping[str, str]) -> Settings:
    """
    Settings from the environment alone.

    :raises ConfigError: with all problems found.
    """
    return _Configuration("", {}, environ, Report()).settings()


# Note [Where a region comes from]
#
# A deployment's region is the first of: aws_region_name; the one in
# bedrock/<region>/<id>; the one in its ARN; AWS_REGION_NAME (LiteLLM's);
# AWS_REGION; AWS_DEFAULT_REGION; the region of its profile in AWS's own
# configuration files. The last four are also where the default deployment has
# its region from. LiteLLM goes on to us-west-2; here it is a problem, since a
# request that goes to the wrong region fails in ways that say nothing of it.

# Note [Which credentials]
#
# A deployment that names any credentials has those and no others. One that
# names none has the environment's, like the default deployment: LiteLLM's own
# variables (AWS_PROFILE_NAME, AWS_ROLE_NAME, AWS_WEB_IDENTITY_TOKEN), or else
# botocore's chain, which is not read here. The session name, external id and
# STS endpoint of a role may come from the environment in both cases.

_REGION_VARIABLES = ("AWS_REGION_NAME", "AWS_REGION", "AWS_DEFAULT_REGION")

_CREDENTIAL_KEYS = (
    "api_key",
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "aws_profile_name",
    "aws_role_name",
    "aws_web_identity_token",
)

_STATIC = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")

_OURS = frozenset(
    {
        *access.OURS,
        *clients.OURS,
        "allow_no_key",
        "background_health_checks",
        "ca_bundle",
        "client_stall_timeout",
        "connect_timeout",
        "credentials_timeout",
        "drain_max_bytes",
        "drain_max_time",
        "endpoint_urls",
        "first_byte_timeout",
        "header_timeout",
        "health_check_interval",
        "idle_timeout",
        "journal_max_bytes",
        "journal_path",
        "master_key",
        "max_idle_connections",
        "max_request_body",
        "on_disconnect",
        "price_file",
        "request_metadata",
        "route_prefix",
        "shutdown_grace",
        "upload_idle_timeout",
        "use_dualstack_endpoint",
        "use_fips_endpoint",
        "verify_tls",
    }
)
"""The keys of ``general_settings`` of which a misspelling is a problem."""

_OURS_OF_DEPLOYMENT = ("aws_session_tags", "on_disconnect")
"""The same of ``litellm_params``."""


_JOURNAL_MAX_BYTES = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _RolePart:
    """What belongs to a role besides its name."""

    session_name: str | None
    external_id: str | None = field(repr=False)
    sts_endpoint_url: str | None


class _Configuration:
    """One configuration while it is read."""

    def __init__(
        self, path: str, entries: Mapping[str, Node], environ: Mapping[str, str], report: Report
    ) -> None:
        self._report = report
        self._effective = dict(environ)
        self._reading = Reading(self._effective, report)
        at = Field(Node(None, path, 1), "")
        fields = {key: Field(node, key) for key, node in entries.items()}
        self._root = Section(self._reading, at, fields)
        self._environment = self._environment_variables()
        self._env = self._reading.variables()
        self._general = self._root.section("general_settings")
        self._router = self._root.section("router_settings")
        self._litellm = self._root.section("litellm_settings")
        self._credentials: dict[str, Section] = {}
        self._left_out: set[str] = set()  # names of deployments of other providers
        self._named: set[str] = set()  # names of all others
        self._access_groups: dict[str, set[str]] = {}
        self._ids = {"default"}
        self._price_file = self._general.get("price_file", file_name)
        self._price_table: PriceTable | None = None
        self._broken_prices = False  # which has been reported

    def settings(self) -> Settings:
        """
        :raises ConfigError: with all problems found.
        """
        on_disconnect = self._general.get("on_disconnect", _on_disconnect) or OnDisconnect.DRAIN
        self._read_credential_list()
        default = self._default_deployment(on_disconnect)
        deployments = self._deployments(on_disconnect)
        verify_tls, ca_bundle = self._tls()
        database_url = self._url_of_database()
        if self._price_file is not None:
            self._prices_of_all()
        aliases = self._aliases(deployments, default)
        named = routing.Names(Models(deployments, aliases, default), aliases, self._left_out)
        routed = routing.routing_settings(self._router, self._litellm, named)
        settings = Settings(
            deployments=deployments,
            default=default,
            routing=routed.routing,
            retries=routed.retries,
            fallbacks=routed.fallbacks,
            model_group_alias=aliases,
            endpoint_urls=self._endpoint_urls(),
            use_fips=self._variant("use_fips_endpoint"),
            use_dualstack=self._variant("use_dualstack_endpoint"),
            master_key=self._master_key(),
            access=access.access_settings(self._general, self._litellm, self._env),
            access_groups={name: frozenset(found) for name, found in self._access_groups.items()},
            allow_no_key=self._general.get("allow_no_key", boolean) or False,
            probe_interval_s=self._probe_interval(),
            route_prefix=_or(self._general.get("route_prefix", _route_prefix), "/bedrock"),
            limits=self._limits(),
            clients=clients.client_settings(self._general),
            price_file=self._price_file,
            database_url=database_url,
            ledger=self._ledger(database_url),
            user_header=self._user_header(),
            request_metadata=self._general.get("request_metadata", _identity_fields) or (),
            ca_bundle=ca_bundle,
            verify_tls=verify_tls,
            environment=self._environment,
        )
        self._router.finish(litellm.ROUTER_SETTINGS, ours=routing.OURS)
        self._general.finish(litellm.GENERAL_SETTINGS, ours=_OURS)
        self._litellm.finish(litellm.LITELLM_SETTINGS)
        self._root.finish(litellm.ROOT)
        self._reading.finish()
        if self._report.problems:
            raise ConfigError(self._report.problems)
        return dataclasses.replace(settings, notices=tuple(self._report.notices))

    # The ledger

    def _url_of_database(self) -> str:
        url = self._general.get("database_url", _database_url)
        if url is None and "database_url" not in self._general:
            url = self._env.get("DATABASE_URL", _database_url)
        return url or "sqlite:///" + os.path.abspath("txbedrock.db")

    def _ledger(self, url: str) -> LedgerSettings | None:
        journal_path = self._general.get("journal_path", _path)
        if journal_path is None:
            file = url.removeprefix("sqlite:///")
            beside = "txbedrock" if file == url else file.removesuffix(".db")
            journal_path = os.path.abspath(f"{beside}-journal")
        max_bytes = self._general.get("journal_max_bytes", size)
        go_on = self._general.get("allow_requests_on_db_unavailable", boolean) or False
        if self._general.get("disable_spend_logs", boolean):
            return None
        return LedgerSettings(
            journal_path=journal_path,
            journal_max_bytes=_or(max_bytes, _JOURNAL_MAX_BYTES),
            refuse_when_full=not go_on,
        )

    def _probe_interval(self) -> float | None:
        every = self._general.get("health_check_interval", duration(1))
        if not self._general.get("background_health_checks", boolean):
            if every is not None and "background_health_checks" not in self._general:
                self._general.notice(
                    "health_check_interval", "has no effect without background_health_checks: true"
                )
            return None
        return 300.0 if every is None else every

    def _user_header(self) -> str | None:
        name = self._general.get("user_header_name", _header_name)
        return None if name is None else name.lower()

    # The environment

    def _environment_variables(self) -> Mapping[str, str]:
        """What the file adds to the environment; a later line sees the earlier ones."""
        section = self._root.section("environment_variables")
        added: dict[str, str] = {}
        for name in section:
            value = section.get(name, _variable)
            if not name or "=" in name or "\0" in name:
                section.problem(name, "found a key that no environment variable can have")
            elif value is not None:
                added[name] = self._effective[name] = value
        return added

    def _environment_region(self, profile: str | None) -> str | None:
        """None: there is none; empty: there is one and it is wrong, which is reported."""
        for name in _REGION_VARIABLES:
            if name in self._env:
                return self._env.get(name, _region) or ""
        return _profile_value(self._effective, profile, "region")

    # Models

    def _default_deployment(self, on_disconnect: OnDisconnect) -> Deployment | None:
        pair = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        for key, other in (pair, pair[::-1]):
            if other in self._env:
                self._env.missing(key, f"a value beside {other}")
        region = self._environment_region(self._env.get("AWS_PROFILE_NAME", text))
        if region is None:
            self._env.notice(
                "AWS_REGION_NAME",
                "is not set, so requests that name no model of model_list cannot be served",
            )
        if not region:
            return None
        return Deployment(
            id="default",
            model_name="",
            model_id="*",
            region=region,
            credentials=self._environment_credentials(region),
            on_disconnect=on_disconnect,
            region_from_model=True,
        )

    def _deployments(self, on_disconnect: OnDisconnect) -> tuple[Deployment, ...]:
        timeout = self._router.get("timeout", duration())
        stream_timeout = self._router.get("stream_timeout", duration())
        found = (
            self._deployment(item, on_disconnect, timeout, stream_timeout)
            for item in self._root.sections("model_list")
        )
        return tuple(deployment for deployment in found if deployment is not None)

    def _deployment(
        self,
        item: Section,
        on_disconnect: OnDisconnect,
        timeout: float | None,
        stream_timeout: float | None,
    ) -> Deployment | None:
        """One member of ``model_list``; None when it is wrong, or not Bedrock's."""
        model_name = item.get("model_name", _model_name)
        item.missing("model_name", "the name that clients use")
        params = item.section("litellm_params")
        model = params.get("model", text)
        provider = params.get("custom_llm_provider", text)
        params.missing("model", "a model such as bedrock/us.amazon.nova-lite-v1:0")
        if model is None:
            return None
        reason = _not_bedrock(model, provider)
        if reason:
            params.notice("model", f"{reason}; this deployment is left out")
            self._left_out.add(model_name or "")
            return None
        if model_name is not None:
            self._named.add(model_name)
        info = item.section("model_info")
        identifier = self._identifier(info)
        params = self._with_named_credentials(params)
        prices = self._own_prices(params, info)
        model_id = self._model_id(params, model, model_name or "")
        region, only_default = self._region(params, model, model_id or "")
        deployment = Deployment(
            id=identifier,
            model_name=model_name or "",
            model_id=model_id or "",
            region=region or "",
            credentials=self._own_credentials(params, region),
            endpoint_url=self._endpoint_url(params),
            timeout_s=_or(params.get("timeout", duration()), timeout),
            stream_timeout_s=_or(params.get("stream_timeout", duration()), stream_timeout),
            on_disconnect=params.get("on_disconnect", _on_disconnect) or on_disconnect,
            region_from_model=only_default,
            prices=prices,
            limits=access.deployment_limits(params),
            **routing.deployment_routing(params),
            session_tags=self._session_tags(params),
            base_model=self._base_model(params, info, model, region or ""),
        )
        for name in access.access_groups(info):
            self._access_groups.setdefault(name, set()).add(deployment.model_name)
        params.finish(litellm.LITELLM_PARAMS, ours=_OURS_OF_DEPLOYMENT, others=LITELLM_KEYS)
        info.finish(litellm.MODEL_INFO, others=LITELLM_KEYS)
        item.finish(litellm.MODEL)
        if not (deployment.model_name and deployment.model_id and deployment.region):
            return None
        return deployment if identifier else self._with_id(deployment)

    def _session_tags(self, params: Section) -> tuple[str, ...]:
        tags = params.get("aws_session_tags", _identity_fields) or ()
        if tags and ("aws_role_name" not in params or "aws_web_identity_token" in params):
            params.problem(
                "aws_session_tags",
                "found tags for a session, expected them beside aws_role_name, and without "
                "aws_web_identity_token (whose token holds its tags itself)",
            )
        return tags

    def _identifier(self, info: Section) -> str:
        identifier = info.get("id", _identifier)
        if identifier is None:
            return ""
        if identifier in self._ids:
            info.problem("id", f"found {identifier!r} again, expected an id of its own")
        self._ids.add(identifier)
        return identifier

    def _with_id(self, deployment: Deployment) -> Deployment:
        """
        An id that stays as long as a deployment serves the same model from the
        same place. No secret has a part in it; deployments that differ only in
        secrets are numbered.
        """
        credentials = deployment.credentials
        parts = [
            deployment.model_name,
            deployment.model_id,
            deployment.region,
            deployment.endpoint_url,
            credentials.profile_name,
            credentials.role_arn,
            credentials.role_session_name,
            credentials.sts_endpoint_url,
        ]
        plain = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        identifier, number = plain, 1
        while identifier in self._ids:
            number += 1
            identifier = f"{plain}-{number}"
        self._ids.add(identifier)
        return dataclasses.replace(deployment, id=identifier)

    def _model_id(self, params: Section, model: str, model_name: str) -> str | None:
        key = "model_id" if "model_id" in params else "model"
        model_id = params.get(key, _bedrock_id)
        if model_id and "*" in model_id and model_name and "*" not in model_name:
            params.problem(
                key, f"found {model_id!r}, expected no * (model_name has none that it stands for)"
            )
            return None
        return model_id

    def _region(self, params: Section, model: str, model_id: str) -> tuple[str | None, bool]:
        """A deployment's region, and whether it is only a default."""
        in_arn = arn_region(model_id)
        region = params.get("aws_region_name", _region)
        if "aws_region_name" in params:
            if region and in_arn and region != in_arn:
                params.notice(
                    "aws_region_name",
                    f"is {region}, and the model's ARN is of {in_arn}: requests go to {region}",
                )
            return region, False
        named = bare_id(model)[1] or in_arn
        if named and is_region(named):
            return named, False
        profile = params.get("aws_profile_name", text) or self._env.get("AWS_PROFILE_NAME", text)
        region = self._environment_region(profile)
        if region is None:
            params.missing(
                "aws_region_name", "a region here or in the environment (AWS_REGION_NAME)"
            )
        return region, True

    def _own_prices(self, params: Section, info: Section) -> Prices:
        """A deployment's prices, under LiteLLM's names for them."""
        prices = _prices_in(info)
        for name, (key, value) in _prices_in(params).items():
            if name in prices and prices[name][1] != value:
                info.notice(prices[name][0], f"has no effect beside litellm_params.{key}")
            prices[name] = key, value
        return tuple((name, prices[name][1]) for name in sorted(prices, key=rank))

    def _base_model(self, params: Section, info: Section, model: str, region: str) -> str | None:
        """The model that a deployment is priced as; None: as itself."""
        found = None
        for section in (info, params):
            base_model = section.get("base_model", text)
            if base_model is None:
                continue
            found = base_model
            table = self._prices_of_all()
            if table is not None and table.price("", region, base_model=base_model) is None:
                section.notice("base_model", "is not in the price table, and so tells no price")
        if found is None and re.search(r"[16]-month-commitment/", model):
            return model
        return found

    def _prices_of_all(self) -> PriceTable | None:
        """The price table; None if the configured file cannot be used."""
        if self._price_table is None and not self._broken_prices:
            try:
                self._price_table = load_prices(self._price_file)
            except ConfigError as error:
                self._broken_prices = True
                self._report.quote(error.problems)
        return self._price_table

    def _endpoint_url(self, params: Section) -> str | None:
        runtime = params.get("aws_bedrock_runtime_endpoint", base_url)
        return params.get("api_base", base_url) or runtime

    def _aliases(
        self, deployments: tuple[Deployment, ...], default: Deployment | None
    ) -> Mapping[str, str]:
        section = self._router.section("model_group_alias")
        aliases: dict[str, str] = {}
        for name in section:
            if section.holds_mapping(name):
                target = section.section(name)
                model = target.get("model", text)
                if "hidden" in target and target.get("hidden", boolean):
                    target.notice("hidden", "has no effect in this version")
                target.finish({})
            else:
                model = section.get(name, text)
            if model is not None:
                aliases[name] = model
        for name in [name for name, model in aliases.items() if model in self._left_out]:
            if aliases[name] not in self._named:
                section.notice(name, "stands for a deployment that is left out")
                del aliases[name]
        models = Models(deployments, aliases, default)
        for name, model in aliases.items():
            if name in self._named:
                section.notice(name, "is the name of a model too, which is what it stands for")
                continue
            if model in self._named:
                continue
            try:
                models.resolve(name)
            except ProxyError:
                section.problem(
                    name, f"found {shorten(model, 80)!r}, expected a model_name of model_list"
                )
        return aliases

    # Credentials

    def _read_credential_list(self) -> None:
        for item in self._root.sections("credential_list"):
            name = item.get("credential_name", text)
            item.missing("credential_name", "a name")
            values = item.section("credential_values")
            item.finish(litellm.CREDENTIAL)
            if name in self._credentials:
                item.problem("credential_name", "found a name that another one has")
            elif name is not None:
                self._credentials[name] = values

    def _with_named_credentials(self, params: Section) -> Section:
        name = params.get("litellm_credential_name", text)
        if name is None:
            return params
        if name not in self._credentials:
            params.problem(
                "litellm_credential_name",
                "found a name that is not in credential_list, expected one that is",
            )
            return params
        return params.beneath(self._credentials[name])

    def _own_credentials(self, params: Section, region: str | None) -> CredentialSpec:
        """See Note [Which credentials]."""
        own = [key for key in _CREDENTIAL_KEYS if key in params]
        api_key = params.get("api_key", _secret)
        static = (
            params.get("aws_access_key_id", _secret),
            params.get("aws_secret_access_key", _secret),
            params.get("aws_session_token", _secret),
        )
        profile = params.get("aws_profile_name", text)
        role = params.get("aws_role_name", _role)
        token = params.get("aws_web_identity_token", self._web_identity_token)
        part = _RolePart(
            params.get("aws_session_name", _session_name),
            params.get("aws_external_id", _external_id),
            params.get("aws_sts_endpoint", base_url),
        )
        for there in [key for key in own if key in _STATIC][:1]:
            for key in ("aws_access_key_id", "aws_secret_access_key"):
                params.missing(key, f"a value beside {there}")
        if "aws_web_identity_token" in params:
            params.missing("aws_role_name", "a role beside aws_web_identity_token")
        if "aws_role_name" not in params:
            for key in ("aws_session_name", "aws_external_id", "aws_sts_endpoint"):
                if key in params:
                    params.notice(key, "has no effect without aws_role_name")
        if not own:
            return self._environment_credentials(region)
        if "api_key" in params:
            for key in own[1:]:
                params.notice(key, "has no effect beside api_key")
            return CredentialSpec(api_key=api_key)
        # LiteLLM's order. In a CredentialSpec the key pair would come first.
        if static[0] and (token or profile):
            static = (None, None, None)
            other = "aws_web_identity_token" if token else "aws_profile_name"
            params.notice("aws_access_key_id", f"has no effect beside {other}")
        if token and profile:
            profile = None
            params.notice("aws_profile_name", "has no effect beside aws_web_identity_token")
        base = CredentialSpec(None, *static, profile_name=profile, web_identity_token=token)
        return self._assumed(base, role, part, region)

    def _environment_credentials(self, region: str | None) -> CredentialSpec:
        """Those of LiteLLM's own variables; an empty spec is botocore's chain."""
        role = self._env.get("AWS_ROLE_NAME", _role)
        token = self._env.get("AWS_WEB_IDENTITY_TOKEN", self._web_identity_token)
        if token:
            self._env.missing("AWS_ROLE_NAME", "a role beside AWS_WEB_IDENTITY_TOKEN")
        profile = None if token else self._env.get("AWS_PROFILE_NAME", text)
        base = CredentialSpec(profile_name=profile, web_identity_token=token)
        return self._assumed(base, role, _RolePart(None, None, None), region)

    def _assumed(
        self, base: CredentialSpec, role: str | None, part: _RolePart, region: str | None
    ) -> CredentialSpec:
        """The credentials of a role, if there is one, that is assumed from others."""
        if role is None:
            return base
        env = self._env
        return dataclasses.replace(
            base,
            role_arn=role,
            role_session_name=part.session_name or env.get("AWS_SESSION_NAME", _session_name),
            external_id=part.external_id or env.get("AWS_EXTERNAL_ID", _external_id),
            sts_endpoint_url=part.sts_endpoint_url or env.get("AWS_STS_ENDPOINT", base_url),
            region=region,
        )

    def _web_identity_token(self, found: Found) -> str:
        """LiteLLM's ways to name an OIDC token, as a path or the token itself."""
        value = text(found)
        if not value.startswith("oidc/"):
            return self._effective.get(value, value)
        kind, _, name = value.removeprefix("oidc/").partition("/")
        if kind == "file" and name:
            return name
        if kind not in ("env", "env_path"):
            raise Wrong(
                "an oidc/ provider that is not supported",
                "a file's path, oidc/file/<path>, oidc/env/<name> or oidc/env_path/<name>",
            )
        if not self._effective.get(name):
            raise Wrong(f"oidc/{kind}/ with a variable that is not set", "one that is set")
        return self._effective[name]

    # Everything else

    def _master_key(self) -> str | None:
        key = self._general.get("master_key", _key)
        if "master_key" in self._general:
            return key
        for name in ("TXBEDROCK_MASTER_KEY", "LITELLM_MASTER_KEY"):
            if name in self._env:
                return self._env.get(name, _key)
        return None

    def _endpoint_urls(self) -> Mapping[str, str]:
        urls: dict[str, str] = {}
        if not self._env.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", boolean):
            for service in SERVICES:
                name = f"AWS_ENDPOINT_URL_{service.upper().replace('-', '_')}"
                url = self._env.get(name, base_url)
                if service == "bedrock-runtime":
                    url = self._env.get("AWS_BEDROCK_RUNTIME_ENDPOINT", base_url) or url
                if url is not None:
                    urls[service] = url
            if "AWS_ENDPOINT_URL" in self._env:
                self._env.notice(
                    "AWS_ENDPOINT_URL",
                    "has no effect, since it usually points clients at this gateway; use "
                    "endpoint_urls or AWS_ENDPOINT_URL_BEDROCK_RUNTIME and the like",
                )
        section = self._general.section("endpoint_urls")
        for service in section:
            url = section.get(service, base_url)
            if service not in SERVICES:
                section.problem(
                    service, f"found an unknown service, expected one of {', '.join(SERVICES)}"
                )
            elif url is not None:
                urls[service] = url
        return urls

    def _variant(self, key: str) -> bool:
        """FIPS or dual-stack endpoints: the file, the variable, AWS's own files."""
        value = self._general.get(key, boolean)
        if value is None:
            value = self._env.get(f"AWS_{key.upper()}", boolean)
        if value is None:
            value = _profile_value(self._effective, None, key) == "true"
        return value

    def _tls(self) -> tuple[bool, str | None]:
        """Whether certificates are verified, and against which file."""
        verify = self._general.get("verify_tls", boolean)
        bundle = self._general.get("ca_bundle", _certificates)
        said_by = (self._general, "verify_tls")
        for section, key in ((self._litellm, "ssl_verify"), (self._env, "SSL_VERIFY")):
            value = section.get(key, _verify)
            if isinstance(value, str):
                bundle = bundle or value
            elif verify is None:
                verify, said_by = value, (section, key)
        bundle = bundle or self._env.get("AWS_CA_BUNDLE", _certificates)
        if verify is False:
            section, key = said_by
            section.notice(key, "is off: anyone on the way to AWS can read all requests")
        return verify is not False, bundle

    def _limits(self) -> Limits:
        general, standard = self._general, Limits()
        first_byte = general.get("first_byte_timeout", duration())
        pass_through = general.get("pass_through_request_timeout", duration())
        request = self._litellm.get("request_timeout", duration())
        body = general.get("max_request_body", size)
        megabytes = general.get("max_request_size_mb", number(0.001, 1024 * 1024))
        if body is None and megabytes is not None:
            body = int(megabytes * 1024 * 1024)
        elif body is not None and megabytes is not None:
            general.notice("max_request_size_mb", "has no effect beside max_request_body")
        idle = general.get("max_idle_connections", number(0, 1_000_000, whole=True))
        return Limits(
            connect_timeout_s=_or(
                general.get("connect_timeout", duration()), standard.connect_timeout_s
            ),
            first_byte_timeout_s=_or(
                first_byte, _or(pass_through, _or(request, standard.first_byte_timeout_s))
            ),
            idle_timeout_s=_or(general.get("idle_timeout", duration()), standard.idle_timeout_s),
            header_timeout_s=_or(
                general.get("header_timeout", duration()), standard.header_timeout_s
            ),
            stalled_client_timeout_s=_or(
                general.get("client_stall_timeout", duration()), standard.stalled_client_timeout_s
            ),
            upload_idle_timeout_s=_or(
                general.get("upload_idle_timeout", duration()), standard.upload_idle_timeout_s
            ),
            max_request_body=_or(body, standard.max_request_body),
            drain_max_bytes=_or(general.get("drain_max_bytes", size), standard.drain_max_bytes),
            drain_max_s=_or(general.get("drain_max_time", duration()), standard.drain_max_s),
            shutdown_grace_s=_or(
                general.get("shutdown_grace", duration(0)), standard.shutdown_grace_s
            ),
            max_idle_connections=int(_or(idle, standard.max_idle_connections)),
            credentials_timeout_s=_or(
                general.get("credentials_timeout", duration()), standard.credentials_timeout_s
            ),
        )


def _prices_in(section: Section) -> dict[str, tuple[str, int]]:
    """Prices by name, each with its key."""
    found: dict[str, tuple[str, int]] = {}
    for key in section:
        name = litellm_name(key)
        if name is not None:
            _take_price(found, section, key, name, key)
        elif key in LITELLM_MAPPINGS:
            names = LITELLM_MAPPINGS[key]
            inner = section.section(key)
            for part in inner:
                name = names.get(part) if names else f"{GUARDRAIL}{part}"
                if name is not None and split(name) is not None:
                    _take_price(found, inner, part, name, f"{key}.{part}")
            inner.finish({}, others=names)
    return found


def _take_price(
    found: dict[str, tuple[str, int]], section: Section, key: str, name: str, shown: str
) -> None:
    value = section.get(key, price)
    if value is None:
        return
    if found.setdefault(name, (shown, value))[1] != value:
        section.problem(key, f"found another price than {found[name][0]}, expected one")


# What the parsers of this configuration accept


_secret = fitting(r"[!-~]+", "text without white space", show=False)
_session_name = fitting(r"[\w+=,.@-]{2,64}", "2 to 64 letters, digits or +=,.@-_")
_external_id = fitting(
    r"[\w+=,.@:/-]{2,1224}", "2 to 1224 letters, digits or +=,.@:/-_", show=False
)
_identifier_text = fitting(r"[!-~]{1,128}", "at most 128 characters without white space")
_role = fitting(
    r"arn:[a-z-]+:iam::[0-9]*:role/\S+", "a role's ARN such as arn:aws:iam::123456789012:role/name"
)


def _identifier(found: Found) -> str:
    if isinstance(found.data, int) and not isinstance(found.data, bool):
        return str(found.data)
    return _identifier_text(found)


def _variable(found: Found) -> str:
    """An environment variable's value, which YAML may have taken for something else."""
    if isinstance(found.data, bool):
        return "true" if found.data else "false"
    if isinstance(found.data, int | float):
        return str(found.data)
    if not isinstance(found.data, str) or "\0" in found.data:
        raise Wrong(found.kind, "text")
    return found.data


def _region(found: Found) -> str:
    value = text(found)
    if not is_region(value):
        raise Wrong(found.shown, "a region such as us-west-2")
    return value


def _model_name(found: Found) -> str:
    value = text(found)
    if value.count("*") > 1:
        raise Wrong(found.shown, "at most one *")
    return value


def _bedrock_id(found: Found) -> str:
    value, _ = bare_id(text(found))
    if not re.fullmatch(r"[A-Za-z0-9*][!-~]{0,2047}", value):
        raise Wrong(found.shown, "a model id such as bedrock/us.amazon.nova-lite-v1:0")
    if value.count("*") > 1:
        raise Wrong(found.shown, "at most one *")
    if "/" in value and not value.startswith("arn:"):
        expected = "bedrock/<id>, bedrock/converse/<id>, bedrock/<region>/<id> or an ARN"
        raise Wrong(found.shown, expected)
    region = arn_region(value)
    if region and not is_region(region):
        raise Wrong(found.shown, "an ARN with a region such as us-west-2")
    return value


def _not_bedrock(model: str, provider: str | None) -> str:
    """Why a deployment is not one of a Bedrock model; empty if it is."""
    shown = repr(shorten(model, 80))
    if re.match(r"(bedrock/)?(agent|agentcore)/", model):
        return f"{shown} is an agent, which clients reach under its own path"
    if provider is not None:
        known = provider in ("bedrock", "bedrock_converse")
        return "" if known else f"{shown} is not of Amazon Bedrock (custom_llm_provider)"
    if model.startswith(("bedrock/", "arn:")) or model == "*":
        return ""
    # vendor.model or geography.vendor.model; not gpt-4.1
    if "/" not in model and re.match(r"[a-z][a-z0-9-]*\.[a-z*]", model):
        return ""
    return f"{shown} is not a model of Amazon Bedrock"


def _on_disconnect(found: Found) -> OnDisconnect:
    return OnDisconnect(one_of(policy.value for policy in OnDisconnect)(found))


def _identity_fields(found: Found) -> tuple[str, ...]:
    """Some of the names under which AWS can be told whom a request is for."""
    names = found.data if isinstance(found.data, list) else [Node(found.data, "", 0)]
    for node in names:
        if node.data not in IDENTITY_FIELDS:
            raise Wrong(Found(node.data).shown, f"a list out of {', '.join(IDENTITY_FIELDS)}")
    return tuple(dict.fromkeys(str(node.data) for node in names))


def _key(found: Found) -> str:
    """A key that can travel in every header a client may put it into."""
    value = text(found)
    if len(value) < 4:
        raise Wrong("a key of fewer than 4 characters", "4 or more")
    if not re.fullmatch(r"[!-~]+", value) or "/" in value or "," in value:
        expected = "ASCII letters, digits and signs (a signature could not carry it)"
        raise Wrong("a key with white space, a slash, a comma or non-ASCII text", expected)
    return value


def _route_prefix(found: Found) -> str:
    if found.data == "":
        return ""
    value = text(found).strip("/")
    if not value:
        return ""
    parts = value.split("/")
    for part in parts:
        if not re.fullmatch(r"[A-Za-z0-9._~-]+", part) or part in (".", ".."):
            raise Wrong(found.shown, "a path such as /bedrock")
    return "/" + "/".join(parts)


def _certificates(found: Found) -> str:
    path = file_name(found)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError):
        raise Wrong(f"{found.shown}, which has none", "a file of certificates (PEM)") from None
    return path


def _verify(found: Found) -> bool | str:
    """LiteLLM's ``ssl_verify``: true, false, or a file of certificates."""
    try:
        return boolean(found)
    except Wrong:
        if isinstance(found.data, str) and found.data:
            return _certificates(found)
        raise Wrong(found.shown, "true, false or a file of certificates (PEM)") from None


def _profile_value(environ: Mapping[str, str], profile: str | None, key: str) -> str | None:
    """
    A value of a profile in AWS's own configuration files.

    botocore's session is not asked: it reads ``os.environ``, which the file's
    ``environment_variables`` are not part of yet.
    """
    home = environ.get("HOME", "")
    named = profile or environ.get("AWS_DEFAULT_PROFILE") or environ.get("AWS_PROFILE")
    name = named or "default"
    found = None
    for variable, usual in (
        ("AWS_CONFIG_FILE", "config"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
    ):
        path = environ.get(variable) or (os.path.join(home, ".aws", usual) if home else "")
        if path.startswith("~/"):
            path = os.path.join(home, path[2:])
        if not path or not os.path.isfile(path):
            continue
        # 8 MB, for those who have such a file.
        from botocore.configloader import load_config, raw_config_parse
        from botocore.exceptions import BotoCoreError

        try:
            profiles = (
                load_config(path)["profiles"] if usual == "config" else raw_config_parse(path)
            )
        except (BotoCoreError, OSError, ValueError):
            continue  # botocore will say so when it looks for credentials there
        value = profiles.get(name, {}).get(key)
        if isinstance(value, str) and value.strip():
            found = value.strip()
    if key == "region" and found is not None and not is_region(found):
        return None
    return found


# The rest


def _or(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def _header_name(found: Found) -> str:
    name = text(found)
    if not _HEADER_NAME.fullmatch(name):
        raise Wrong(f"{found.shown}, which is no name of a header", "one such as X-User-Id")
    return name


def _path(found: Found) -> str:
    """Absolute, since a daemon changes its directory."""
    return os.path.abspath(os.path.expanduser(text(found)))


def _database_url(found: Found) -> str:
    """Never shown: it may hold a password."""
    url = text(found)
    if url.startswith("sqlite:///") and len(url) > len("sqlite:///"):
        return "sqlite:///" + os.path.abspath(os.path.expanduser(url[len("sqlite:///") :]))
    if url.startswith(("postgresql://", "postgres://")):
        return url
    raise Wrong("another address", "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME")
