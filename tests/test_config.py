"""
What a configuration means, and what its author is told about it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from textwrap import dedent

from twisted.python.filepath import FilePath
from twisted.trial.unittest import SynchronousTestCase

from txbedrock import config
from txbedrock.config import Limits, Settings, default_settings, loading
from txbedrock.config.summary import summary as summary_with
from txbedrock.core import grants
from txbedrock.core.balance import Strategy
from txbedrock.core.deployments import CredentialSpec, Deployment, OnDisconnect
from txbedrock.core.models import Models
from txbedrock.errors import ConfigError
from txbedrock.outbound.recipe import in_words


def summary(settings: Settings) -> str:
    """As ``--check`` prints it, in an environment without credentials."""
    return summary_with(settings, lambda spec: in_words(spec, {}))


EXAMPLE = FilePath(__file__).parent().sibling("etc").child("config.yaml")

SONNET = "us.anthropic.claude-3-5-sonnet-20240620-v1:0"
ARN = "arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/a1b2"
ROLE = "arn:aws:iam::123456789012:role/user"

PLAIN_MODEL = """
model_list:
  - model_name: m
    litellm_params:
      model: bedrock/x.y
      aws_region_name: us-west-2
"""


class ConfigCase(SynchronousTestCase):
    """Writes files, loads them and takes their directory out of the messages."""

    def setUp(self) -> None:
        self.directory = FilePath(self.mktemp())
        self.directory.makedirs()

    def write(self, name: str, content: str | bytes) -> str:
        path = self.directory.descendant(name.split("/"))
        data = content if isinstance(content, bytes) else dedent(content).encode()
        path.setContent(data)
        assert isinstance(path.path, str)
        return path.path

    def plain(self, message: str) -> str:
        return message.replace(f"{self.directory.path}{os.sep}", "")

    def load(self, content: str | bytes, environ: Mapping[str, str] | None = None) -> Settings:
        return config.load(self.write("config.yaml", content), environ or {})

    def problems(
        self, content: str | bytes, environ: Mapping[str, str] | None = None
    ) -> list[str]:
        error = self.assertRaises(ConfigError, self.load, content, environ)
        return [self.plain(problem) for problem in error.problems]

    def notices(self, content: str, environ: Mapping[str, str] | None = None) -> list[str]:
        """All notices but the one about direct routes."""
        environ = {"AWS_REGION_NAME": "us-east-1", **(environ or {})}
        return [self.plain(notice) for notice in self.load(content, environ).notices]

    def one(
        self, params: str, environ: Mapping[str, str] | None = None, name: str = "m"
    ) -> Deployment:
        """The deployment that some litellm_params, in flow style, make."""
        content = f'model_list: [{{model_name: "{name}", litellm_params: {{{params}}}}}]'
        (deployment,) = self.load(content, environ).deployments
        return deployment

    def one_problem(
        self, params: str, environ: Mapping[str, str] | None = None, name: str = "m"
    ) -> list[str]:
        content = f'model_list: [{{model_name: "{name}", litellm_params: {{{params}}}}}]'
        return self.problems(content, environ)


class DocumentedTests(ConfigCase):
    """LiteLLM's documentation of its Bedrock routes, example by example."""

    def test_quick_start(self) -> None:
        """The first example."""
        settings = self.load(
            f"""
            model_list:
              - model_name: my-bedrock-model
                litellm_params:
                  model: bedrock/{SONNET}
                  aws_region_name: us-west-2
                  custom_llm_provider: bedrock
            """
        )
        (deployment,) = settings.deployments
        self.assertEqual(
            deployment,
            Deployment(
                id=deployment.id,
                model_name="my-bedrock-model",
                model_id=SONNET,
                region="us-west-2",
            ),
        )
        self.assertEqual(settings.route_prefix, "/bedrock")
        self.assertIsNone(settings.master_key)
        self.assertEqual(settings.limits, Limits())

    def test_load_balancing(self) -> None:
        """Two deployments under one name stay two, with ids of their own."""
        settings = self.load(
            f"""
            model_list:
              # First deployment
              - model_name: my-claude-model
                litellm_params:
                  model: bedrock/{SONNET}
                  aws_region_name: us-west-2
                  custom_llm_provider: bedrock

              # Second deployment
              - model_name: my-claude-model
                litellm_params:
                  model: bedrock/{SONNET}
                  aws_region_name: us-east-1
                  custom_llm_provider: bedrock
            """
        )
        self.assertEqual([one.region for one in settings.deployments], ["us-west-2", "us-east-1"])
        self.assertEqual(len({one.id for one in settings.deployments}), 2)

    def test_no_file(self) -> None:
        """Without a file the environment is enough."""
        settings = default_settings(
            {
                "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_REGION_NAME": "us-west-2",
                "LITELLM_MASTER_KEY": "sk-1234",
            }
        )
        self.assertEqual(settings.deployments, ())
        self.assertEqual(
            settings.default,
            Deployment(
                id="default",
                model_name="",
                model_id="*",
                region="us-west-2",
                region_from_model=True,
            ),
        )
        self.assertEqual(settings.master_key, "sk-1234")
        self.assertEqual(settings.notices, ())

    def test_placeholders(self) -> None:
        """Variables exported as empty, as the documentation prints them, are not set."""
        settings = default_settings(
            {
                "AWS_ACCESS_KEY_ID": "",
                "AWS_SECRET_ACCESS_KEY": "",
                "AWS_REGION_NAME": "",
                "LITELLM_MASTER_KEY": "",
                "DATABASE_URL": "",
            }
        )
        self.assertIsNone(settings.default)
        self.assertIsNone(settings.master_key)

    def test_nothing(self) -> None:
        """An empty file is a configuration."""
        for content in ("", "# nothing\n", "model_list:\ngeneral_settings:\n", "{}"):
            self.assertEqual(self.load(content).deployments, ())


class ExampleTests(ConfigCase):
    """``etc/config.yaml``."""

    content = EXAMPLE.getContent().decode()

    def test_loads(self) -> None:
        """It can be used as it is, with an empty environment."""
        settings = self.load(self.content)
        self.assertEqual(
            {one.model_name for one in settings.deployments}, {"nova-lite", "claude-sonnet"}
        )
        self.assertEqual(settings.limits, Limits())
        self.assertEqual(
            settings.notices,
            (
                "environment: AWS_REGION_NAME: is not set, so requests that name no model of "
                "model_list cannot be served",
            ),
        )

    def test_complete(self) -> None:
        """It explains every setting that is this project's own."""
        for key in loading._OURS:
            self.assertRegex(self.content, rf"\n  (# )?{key}:")

    def test_defaults(self) -> None:
        """The defaults that it shows are those of the program."""
        section = self.content.split("\ngeneral_settings:\n")[1].split("\n\n\n")[0]
        shown = re.findall(r"(?m)^  # (([a-z_]+): \S.*)$", section)
        own = (
            "ca_bundle", "database_url", "journal_path", "master_key", "price_file",
            "request_metadata", "salt_key", "trusted_proxies", "user_header_name",
        )  # fmt: skip
        shown = [line for line, key in shown if key not in own]
        self.assertGreater(len(shown), 15)
        settings = self.load("general_settings:\n  " + "\n  ".join(shown))
        bare = self.load("")
        self.assertEqual(settings, bare)

    def test_examples(self) -> None:
        """What it shows commented out can be used, apart from files of its author's."""
        block = self.content.split("# Everything that can stand in an entry:\n  #\n")[1]
        lines = []
        for line in block.split("\n\n")[0].splitlines():
            lines.append(re.sub(r"^  # ?", "", line).split(" #")[0])
        # One kind of credentials at a time: the API key goes, and one of the roles.
        lines = [line for line in lines if not re.search("api_key|aws_session_tags", line)]
        lines.remove(next(line for line in lines if "aws_role_name" in line))
        entry = "\n".join(lines)
        rest = self.content.split("# credential_list:\n")[1].split("\n\n")[0]
        credentials = re.sub(r"(?m)^# ?", "", rest)
        content = f"model_list:\n{entry}\ncredential_list:\n{credentials}\n"
        environ = {
            name: "value"
            for name in re.findall(r"os\.environ/(\w+)", content)
            if name != "MY_BEDROCK_API_KEY"
        }
        (deployment,) = self.load(content, environ).deployments
        self.assertEqual(deployment.id, "my-model-west")
        self.assertEqual(deployment.timeout_s, 600)
        self.assertEqual(deployment.stream_timeout_s, 60)
        self.assertEqual(deployment.credentials.role_arn, ROLE.replace("user", "bedrock-user"))
        self.assertEqual(dict(deployment.prices)["cache_read"], 300_000)
        self.assertEqual(deployment.base_model, "us.amazon.nova-lite-v1:0")


class ModelTests(ConfigCase):
    """``model_list``."""

    def test_model_strings(self) -> None:
        """Every way to write a model, as (id, region)."""
        environ = {"AWS_REGION": "us-east-1"}
        for params, model_id, region in [
            ("model: bedrock/x.y", "x.y", "us-east-1"),
            (f"model: 'bedrock/{SONNET}'", SONNET, "us-east-1"),
            ("model: bedrock/converse/x.y", "x.y", "us-east-1"),
            ("model: bedrock/invoke/x.y", "x.y", "us-east-1"),
            ("model: bedrock/eu-north-1/x.y", "x.y", "eu-north-1"),
            ("model: bedrock/eu-north-1/6-month-commitment/x.y", "x.y", "eu-north-1"),
            (f"model: 'bedrock/{ARN}'", ARN, "eu-west-1"),
            (f"model: 'bedrock/converse/{ARN}'", ARN, "eu-west-1"),
            (f"model: 'bedrock/llama/{ARN}'", ARN, "eu-west-1"),
            (f"model: '{ARN}'", ARN, "eu-west-1"),
            ("model: x.y, custom_llm_provider: bedrock", "x.y", "us-east-1"),
            ("model: converse/x.y, custom_llm_provider: bedrock", "x.y", "us-east-1"),
            ("model: us.amazon.nova-lite-v1:0", "us.amazon.nova-lite-v1:0", "us-east-1"),
            (f"model: bedrock/x.y, model_id: '{ARN}'", ARN, "eu-west-1"),
            (f"model: bedrock/eu-north-1/x.y, model_id: '{ARN}'", ARN, "eu-north-1"),
            ("model: os.environ/MODEL", "a.b", "us-east-1"),
        ]:
            deployment = self.one(params, {**environ, "MODEL": "bedrock/a.b"})
            self.assertEqual((deployment.model_id, deployment.region), (model_id, region), params)

    def test_wildcards(self) -> None:
        """A ``*`` in the model has one in the name that it stands for."""
        for name, model, label, model_id in [
            ("bedrock/*", "bedrock/*", SONNET, SONNET),
            ("*", "*", "bedrock/a.b", "a.b"),
            ("us.anthropic.*", "bedrock/us.anthropic.*", SONNET, SONNET),
            ("bedrock/*", "bedrock/converse/*", "bedrock/converse/a.b", "a.b"),
        ]:
            deployment = self.one(f"model: '{model}', aws_region_name: us-west-2", name=name)
            choice = Models([deployment], {}, None).resolve(label).choices[0]
            self.assertEqual(choice.model_id, model_id)

    def test_bad_wildcards(self) -> None:
        """One ``*``, and not in the model alone."""
        model = "aws_region_name: us-west-2, model: "
        at = "config.yaml:1: model_list[0]."
        self.assertEqual(
            self.one_problem(model + "bedrock/x.*"),
            [
                at + "litellm_params.model: found 'x.*', expected no * (model_name has none that "
                "it stands for)"
            ],
        )
        self.assertEqual(
            self.one_problem(model + "bedrock/*.*", name="*"),
            [at + "litellm_params.model: found 'bedrock/*.*', expected at most one *"],
        )
        self.assertEqual(
            self.one_problem(model + "bedrock/*", name="*-*"),
            [at + "model_name: found '*-*', expected at most one *"],
        )

    def test_region_order(self) -> None:
        """Where a region comes from: each source beats those below it."""
        home = self.directory.child("home")
        home.child(".aws").makedirs()
        home.child(".aws").child("config").setContent(
            b"[default]\nregion = ap-south-1\n[profile dev]\nregion = ap-south-2\n"
        )
        home.child(".aws").child("credentials").setContent(b"[other]\nregion = ap-east-1\n")
        environ: dict[str, str] = {"HOME": home.path}
        self.assertEqual(self.one("model: bedrock/x.y", environ).region, "ap-south-1")
        for params, region in [
            ("aws_profile_name: dev", "ap-south-2"),
            ("aws_profile_name: other", "ap-east-1"),
        ]:
            self.assertEqual(self.one(f"model: bedrock/x.y, {params}", environ).region, region)
        self.assertEqual(
            self.one("model: bedrock/x.y", {**environ, "AWS_PROFILE": "dev"}).region, "ap-south-2"
        )
        for name, region in [
            ("AWS_DEFAULT_REGION", "sa-east-1"),
            ("AWS_REGION", "us-east-2"),
            ("AWS_REGION_NAME", "us-west-1"),
        ]:
            environ[name] = region
            deployment = self.one("model: bedrock/x.y", environ)
            self.assertEqual((deployment.region, deployment.region_from_model), (region, True))
        params = f"model: 'bedrock/{ARN}'"
        self.assertEqual(self.one(params, environ).region, "eu-west-1")
        params = f"model: 'bedrock/eu-north-1/{ARN}'"
        self.assertEqual(self.one(params, environ).region, "eu-north-1")
        deployment = self.one(f"{params}, aws_region_name: us-west-2", environ)
        self.assertEqual((deployment.region, deployment.region_from_model), ("us-west-2", False))

    def test_missing_region(self) -> None:
        """A model without a region is refused, rather than sent to some region."""
        self.assertEqual(
            self.one_problem("model: bedrock/x.y"),
            [
                "config.yaml:1: model_list[0].litellm_params.aws_region_name: found nothing, "
                "expected a region here or in the environment (AWS_REGION_NAME)"
            ],
        )

    def test_misspelled_region(self) -> None:
        """What was probably meant is named."""
        self.assertEqual(
            self.one_problem("model: bedrock/x.y, aws_region: us-west-2"),
            [
                "config.yaml:1: model_list[0].litellm_params.aws_region_name: found nothing but "
                "aws_region, expected a region here or in the environment (AWS_REGION_NAME)"
            ],
        )

    def test_region_of_arn_differs(self) -> None:
        """The author is told, since such a request can hardly succeed."""
        self.assertEqual(
            self.notices(
                f"""
                model_list:
                  - model_name: m
                    litellm_params:
                      model: bedrock/{ARN}
                      aws_region_name: us-west-2
                """
            ),
            [
                "config.yaml:6: model_list[0].litellm_params.aws_region_name: is us-west-2, and "
                "the model's ARN is of eu-west-1: requests go to us-west-2"
            ],
        )

    def test_bad_models(self) -> None:
        """What cannot be a model of Bedrock's is shown with what could be one."""
        at = "config.yaml:1: model_list[0].litellm_params.model: found "
        example = "expected a model id such as bedrock/us.amazon.nova-lite-v1:0"
        for model, message in [
            ("'bedrock/x y'", f"'bedrock/x y', {example}"),
            ("bedrock/", f"'bedrock/', {example}"),
            (
                "bedrock/foo/bar",
                "'bedrock/foo/bar', expected bedrock/<id>, bedrock/converse/<id>, "
                "bedrock/<region>/<id> or an ARN",
            ),
            ("''", "empty text, expected text"),
            ("3", "a number, expected text (in quotes)"),
            ("[a]", "a list, expected text"),
            (
                "'arn:aws:bedrock:evil.com:1:x/y'",
                "'arn:aws:bedrock:evil.com:1:x/y', expected an ARN with a region such as "
                "us-west-2",
            ),
        ]:
            problems = self.one_problem(f"model: {model}, aws_region_name: us-west-2")
            self.assertEqual(problems, [at + message])

    def test_incomplete(self) -> None:
        """An entry without its parts."""
        self.assertEqual(
            self.problems("model_list: [{}, text, {litellm_params: []}]"),
            [
                "config.yaml:1: model_list[1]: found text, expected a mapping",
                "config.yaml:1: model_list[0].model_name: found nothing, expected the name that "
                "clients use",
                "config.yaml:1: model_list[0].litellm_params.model: found nothing, expected a "
                "model such as bedrock/us.amazon.nova-lite-v1:0",
                "config.yaml:1: model_list[2].model_name: found nothing, expected the name that "
                "clients use",
                "config.yaml:1: model_list[2].litellm_params: found a list, expected a mapping",
            ],
        )

    def test_other_providers(self) -> None:
        """
        Deployments that are not of Bedrock are left out and said so; their keys
        need not be there.
        """
        for params, why in [
            (
                "model: openai/gpt-4, api_key: os.environ/NO",
                "'openai/gpt-4' is not a model of Ama",
            ),
            ("model: gpt-4.1", "'gpt-4.1' is not a model of Amazon Bedrock"),
            ("model: azure/x, api_base: os.environ/NO", "'azure/x' is not a model of Amazon Bed"),
            ("model: x.y, custom_llm_provider: openai", "'x.y' is not of Amazon Bedrock (custom_"),
            ("model: '*', custom_llm_provider: openai", "'*' is not of Amazon Bedrock (custom_"),
            ("model: bedrock/agent/A/B", "'bedrock/agent/A/B' is an agent, which clients reach"),
            (
                "model: 'bedrock/agentcore/arn:aws:x:y:z:a'",
                "'bedrock/agentcore/arn:aws:x:y:z:a' is",
            ),
        ]:
            content = f"""
                model_list:
                  - {{model_name: other, litellm_params: {{{params}}}}}
                  - {{model_name: mine, litellm_params: {{model: bedrock/x.y}}}}
                """
            self.assertEqual(
                [
                    one.model_name
                    for one in self.load(content, {"AWS_REGION": "us-east-1"}).deployments
                ],
                ["mine"],
            )
            (notice,) = self.notices(content)
            self.assertTrue(
                notice.startswith(f"config.yaml:3: model_list[0].litellm_params.model: {why}"),
                notice,
            )
            self.assertTrue(notice.endswith("; this deployment is left out"), notice)

    def test_times(self) -> None:
        """A deployment's time limits, and the router's for those that have none."""
        settings = self.load(
            """
            model_list:
              - model_name: m
                litellm_params: {model: bedrock/x.y, timeout: 5m, stream_timeout: "90"}
              - model_name: m
                litellm_params: {model: bedrock/x.y}
            router_settings:
              timeout: 30
              stream_timeout: 1.5
            """,
            {"AWS_REGION": "us-east-1"},
        )
        self.assertEqual(
            [(one.timeout_s, one.stream_timeout_s) for one in settings.deployments],
            [(300.0, 90.0), (30, 1.5)],
        )
        assert settings.default is not None
        self.assertIsNone(settings.default.timeout_s)

    def test_telling_aws(self) -> None:
        """Whom AWS is told of: in the metadata of requests, in the tags of a role's session."""
        content = """
            model_list:
              - model_name: m
                litellm_params:
                  model: bedrock/eu-west-1/x.y
                  aws_role_name: arn:aws:iam::123456789012:role/r
                  aws_session_tags: [key_alias, team_id, key_alias]
            general_settings: {request_metadata: end_user}
            """
        settings = self.load(content)
        self.assertEqual(settings.request_metadata, ("end_user",))
        self.assertEqual(settings.deployments[0].session_tags, ("key_alias", "team_id"))
        expected = "expected a list out of key_alias, user_id, team_id, end_user"
        for value, found in (("[team]", "'team'"), ("true", "true"), ("[[a]]", "a list")):
            self.assertEqual(
                self.problems(f"general_settings: {{request_metadata: {value}}}"),
                [f"config.yaml:1: general_settings.request_metadata: found {found}, {expected}"],
            )
        role = "aws_role_name: arn:aws:iam::123456789012:role/r"
        for other in ("", f"{role}, aws_web_identity_token: /a/b, "):
            [problem] = self.one_problem(
                f"model: bedrock/eu-west-1/x.y, {other}aws_session_tags: [key_alias]"
            )
            self.assertIn("aws_session_tags: found tags for a session, expected them", problem)

    def test_access(self) -> None:
        """Virtual keys, and all that says who may ask for how much."""
        content = """
            model_list:
              - model_name: m
                litellm_params:
                  {model: bedrock/eu-west-1/x.y, rpm: 5, tpm: 6, max_parallel_requests: 7,
                   max_budget: 1.5, budget_duration: 1mo}
                model_info: {access_groups: [cheap, beta]}
              - model_name: n
                litellm_params: {model: bedrock/eu-west-1/x.z}
                model_info: {access_groups: cheap}
            litellm_settings: {max_end_user_budget: 2}
            general_settings:
              salt_key: os.environ/SALT
              key_cache_age: 2s
              key_cache_grace: 0
              limit_wait: 1
              budget_unpriced: allow
              trusted_proxies: [10.0.0.0/8, "::1"]
              virtual_keys:
                - {key_hash: %s, key_alias: ci, models: [cheap], max_budget: 0.1, rpm_limit: 3}
            """ % ("ab" * 32)
        salt = "planted-salt-of-32-characters-00"
        settings = self.load(content, {"SALT": salt})
        found = settings.access
        self.assertEqual(found.salt, salt)
        self.assertNotIn(salt, repr(settings))
        self.assertEqual(
            (found.key_cache_age_s, found.key_cache_grace_s, found.limit_wait_s),
            (2.0, 0.0, 1.0),
        )
        self.assertTrue(found.allow_unpriced)
        self.assertEqual(found.trusted_proxies, ("10.0.0.0/8", "::1"))
        self.assertEqual(found.end_user_limits.max_budget, 2 * 10**12)
        [key] = found.keys
        self.assertEqual(
            (key.id, key.alias, key.permissions.models), ("ab" * 32, "ci", ("cheap",))
        )
        self.assertEqual((key.limits.max_budget, key.limits.rpm), (10**11, 3))
        first, second = settings.deployments
        self.assertEqual((first.rpm, first.tpm, first.max_parallel), (5, 6, 7))
        self.assertEqual(
            first.limits, grants.Limits(max_budget=15 * 10**11, budget_duration="1mo")
        )
        self.assertIs(second.limits, grants.NO_LIMITS)
        self.assertEqual(
            settings.access_groups, {"cheap": frozenset("mn"), "beta": frozenset("m")}
        )

    def test_bad_access(self) -> None:
        """What is wrong with it is said with its place, and without a secret."""
        for text, problem in (
            ("salt_key: planted", "salt_key: found a salt key of fewer than 16 characters"),
            (
                "budget_unpriced: maybe",
                "budget_unpriced: found 'maybe', expected one of",
            ),
            ("trusted_proxies: nowhere", "trusted_proxies: found 'nowhere', expected "),
            ("use_x_forwarded_for: true", "use_x_forwarded_for: found true, expected trusted_pro"),
            ("virtual_keys: {}", "virtual_keys: found a mapping, expected a list"),
            ("virtual_keys: [{key_alias: a}]", "virtual_keys[0].key_hash: "),
            (
                "virtual_keys: [{key_hash: sk-planted-key-of-mine}]",
                "virtual_keys[0].key_hash: found text, expected the SHA-256 of the key",
            ),
            (
                "virtual_keys: [{key_hash: %s, max_bugdet: 1}]" % ("ab" * 32),
                "virtual_keys[0].max_bugdet: ",
            ),
            (
                "virtual_keys: [{{key_hash: {}}}, {{key_hash: {}}}]".format("ab" * 32, "AB" * 32),
                "virtual_keys[1].key_hash: found a key that is there already",
            ),
        ):
            found = self.problems(f"general_settings: {{{text}}}")
            self.assertEqual(len(found), 1, found)
            self.assertIn(f"config.yaml:1: general_settings.{problem}", found[0])
            self.assertNotIn("planted", found[0])
        for text, problem in (
            ("rpm: lots", "rpm: found 'lots', expected a whole number from 1 up"),
            ("max_budget: -1", "max_budget: found -1, expected "),
            ("budget_duration: soon", "budget_duration: found 'soon', expected "),
        ):
            [found] = self.one_problem(f"model: bedrock/eu-west-1/x.y, {text}")
            self.assertIn(f"model_list[0].litellm_params.{problem}", found)

    def test_on_disconnect(self) -> None:
        """The general policy, and a deployment's own."""
        content = """
            model_list:
              - {model_name: m, litellm_params: {model: bedrock/x.y, on_disconnect: drain}}
              - {model_name: m, litellm_params: {model: bedrock/x.y}}
            general_settings: {on_disconnect: cancel}
            """
        settings = self.load(content, {"AWS_REGION": "us-east-1"})
        self.assertEqual(
            [one.on_disconnect for one in settings.deployments],
            [OnDisconnect.DRAIN, OnDisconnect.CANCEL],
        )
        assert settings.default is not None
        self.assertEqual(settings.default.on_disconnect, OnDisconnect.CANCEL)
        self.assertEqual(
            self.problems("general_settings: {on_disconnect: off}"),
            [
                "config.yaml:1: general_settings.on_disconnect: found false, expected one of "
                "drain, cancel"
            ],
        )
        self.assertEqual(
            self.one_problem("model: bedrock/eu-west-1/x.y, on_disconect: cancel"),
            [
                "config.yaml:1: model_list[0].litellm_params.on_disconect: found an unknown "
                "setting, expected on_disconnect"
            ],
        )

    def test_endpoint(self) -> None:
        """A deployment's own host; ``api_base`` wins."""
        runtime = "aws_bedrock_runtime_endpoint: 'https://a.example/x/'"
        model = "model: bedrock/eu-west-1/x.y"
        self.assertEqual(self.one(f"{model}, {runtime}").endpoint_url, "https://a.example/x")
        self.assertEqual(
            self.one(f"{model}, {runtime}, api_base: http://localhost:8080").endpoint_url,
            "http://localhost:8080",
        )

    def test_bad_urls(self) -> None:
        """A base URL has a host and nothing that could be a secret, and is never shown."""
        for url, found in [
            ("localhost:8080", "text that is no http:// or https:// URL"),
            ("ftp://x.example", "text that is no http:// or https:// URL"),
            ("https://x.example/ a", "text that is no http:// or https:// URL"),
            ("https://", "a URL without a usable host and port"),
            ("https://x:0", "a URL without a usable host and port"),
            ("https://x:99999", "a malformed URL"),
            ("https://[x", "a malformed URL"),
            ("https://user:pass@x.example", "a URL with a user name or password"),
            ("https://x.example?key=1", "a URL with a query or a fragment"),
            ("https://x.example#", "a URL with a query or a fragment"),
        ]:
            self.assertEqual(
                self.one_problem(f"model: bedrock/eu-west-1/x.y, api_base: '{url}'"),
                [
                    f"config.yaml:1: model_list[0].litellm_params.api_base: found {found}, "
                    "expected a URL such as "
                    "https://vpce-0a1b.bedrock-runtime.us-east-1.vpce.amazonaws.com"
                ],
            )

    def test_ids(self) -> None:
        """
        A deployment's id is its author's, or stays as long as what it serves;
        other credentials or time limits do not change it.
        """
        model = "model: bedrock/eu-west-1/x.y"
        first = self.one(f"{model}, api_key: aaaa, timeout: 3")
        self.assertEqual(first.id, self.one(f"{model}, api_key: bbbb").id)
        self.assertRegex(first.id, r"^[0-9a-f]{16}$")
        for other in ("model: bedrock/eu-west-2/x.y", "model: bedrock/eu-west-1/x.z"):
            self.assertNotEqual(first.id, self.one(other).id)
        settings = self.load(
            """
            model_list:
              - {model_name: m, litellm_params: &p {model: bedrock/eu-west-1/x.y, api_key: a}}
              - {model_name: m, litellm_params: {<<: *p, api_key: b}}
              - {model_name: m, litellm_params: *p, model_info: {id: mine}}
              - {model_name: m, litellm_params: *p, model_info: {id: 7}}
            """
        )
        ids = [one.id for one in settings.deployments]
        self.assertEqual(ids, [first.id, f"{first.id}-2", "mine", "7"])

    def test_same_id(self) -> None:
        """Two deployments cannot have one id."""
        self.assertEqual(
            self.problems(
                """
                model_list:
                  - model_name: m
                    litellm_params: &p {model: bedrock/eu-west-1/x.y}
                    model_info: {id: a}
                  - model_name: m
                    litellm_params: *p
                    model_info:
                      id: a
                """
            ),
            [
                "config.yaml:9: model_list[1].model_info.id: found 'a' again, expected an id of "
                "its own"
            ],
        )


class AliasTests(ConfigCase):
    """``router_settings.model_group_alias``."""

    def test_forms(self) -> None:
        """A name, an object of LiteLLM's, another alias, an id of Bedrock's own."""
        content = (
            PLAIN_MODEL
            + """
router_settings:
  model_group_alias:
    a: m
    b: {model: m, hidden: true}
    c: b
    d: us.amazon.nova-lite-v1:0
"""
        )
        settings = self.load(content, {"AWS_REGION": "us-east-1"})
        self.assertEqual(
            settings.model_group_alias,
            {"a": "m", "b": "m", "c": "b", "d": "us.amazon.nova-lite-v1:0"},
        )
        self.assertEqual(
            self.notices(content),
            [
                "config.yaml:11: router_settings.model_group_alias.b.hidden: has no effect in "
                "this version"
            ],
        )

    def test_wrong(self) -> None:
        """An alias of nothing, and one in a circle."""
        self.assertEqual(
            self.problems(
                PLAIN_MODEL
                + "router_settings:\n  model_group_alias: {a: nobody, b: c, c: b, d: 3}"
            ),
            [
                "config.yaml:8: router_settings.model_group_alias.d: found a number, expected "
                "text (in quotes)",
                *(
                    f"config.yaml:8: router_settings.model_group_alias.{name}: found '{target}', "
                    "expected a model_name of model_list"
                    for name, target in (("a", "nobody"), ("b", "c"), ("c", "b"))
                ),
            ],
        )

    def test_of_left_out(self) -> None:
        """An alias of another provider's model is left out with it."""
        content = """
            model_list: [{model_name: gpt, litellm_params: {model: openai/gpt-4}}]
            router_settings: {model_group_alias: {a: gpt}}
            """
        self.assertEqual(self.load(content).model_group_alias, {})
        self.assertIn(
            "config.yaml:3: router_settings.model_group_alias.a: stands for a deployment that is "
            "left out",
            self.notices(content),
        )

    def test_hidden_by_model(self) -> None:
        """A model's own name wins, and the author is told."""
        self.assertEqual(
            self.notices(PLAIN_MODEL + "router_settings: {model_group_alias: {m: x.y}}"),
            [
                "config.yaml:7: router_settings.model_group_alias.m: is the name of a model too, "
                "which is what it stands for"
            ],
        )


class CredentialTests(ConfigCase):
    """Where a deployment's credentials come from."""

    model = "model: bedrock/eu-west-1/x.y"

    def test_kinds(self) -> None:
        """Each kind that LiteLLM knows, and the words that ``--check`` has for it."""
        keys = "aws_access_key_id: AKIA1, aws_secret_access_key: s"
        static = {"access_key_id": "AKIA1", "secret_access_key": "s"}
        role = {"role_arn": ROLE, "region": "eu-west-1"}
        for params, spec, words in [
            ("", CredentialSpec(), "the AWS credential chain"),
            ("api_key: ABSK1", CredentialSpec(api_key="ABSK1"), "a Bedrock API key"),
            (keys, CredentialSpec(**static), "the configured AWS keys"),
            (
                f"{keys}, aws_session_token: t",
                CredentialSpec(**static, session_token="t"),
                "the configured AWS keys",
            ),
            ("aws_profile_name: dev", CredentialSpec(profile_name="dev"), "AWS profile 'dev'"),
            (
                f"aws_role_name: '{ROLE}'",
                CredentialSpec(**role),
                f"role {ROLE} by the AWS credential chain",
            ),
            (
                f"aws_role_name: '{ROLE}', aws_session_name: me, aws_external_id: 'x:1', "
                f"aws_sts_endpoint: 'https://sts.example/', {keys}",
                CredentialSpec(
                    **role,
                    **static,
                    role_session_name="me",
                    external_id="x:1",
                    sts_endpoint_url="https://sts.example",
                ),
                f"role {ROLE} by the configured AWS keys",
            ),
            (
                f"aws_role_name: '{ROLE}', aws_profile_name: dev",
                CredentialSpec(**role, profile_name="dev"),
                f"role {ROLE} by AWS profile 'dev'",
            ),
            (
                f"aws_role_name: '{ROLE}', aws_web_identity_token: /run/token",
                CredentialSpec(**role, web_identity_token="/run/token"),
                f"role {ROLE} by a web identity token in /run/token",
            ),
        ]:
            credentials = self.one(f"{self.model}, {params}").credentials
            self.assertEqual(credentials, spec)
            self.assertEqual(in_words(credentials, {}), words)

    def test_conflicts(self) -> None:
        """More than one kind: LiteLLM's order, and a notice about what is not used."""
        keys = "aws_access_key_id: AKIA1, aws_secret_access_key: s"
        for params, spec, unused, by in [
            (
                f"api_key: k, {keys}",
                CredentialSpec(api_key="k"),
                ["aws_access_key_id", "aws_secret_access_key"],
                "beside api_key",
            ),
            (
                f"aws_profile_name: dev, {keys}",
                CredentialSpec(profile_name="dev"),
                ["aws_access_key_id"],
                "beside aws_profile_name",
            ),
            (
                f"aws_web_identity_token: /t, aws_role_name: '{ROLE}', {keys}",
                CredentialSpec(web_identity_token="/t", role_arn=ROLE, region="eu-west-1"),
                ["aws_access_key_id"],
                "beside aws_web_identity_token",
            ),
            (
                "aws_session_name: me",
                CredentialSpec(),
                ["aws_session_name"],
                "without aws_role_name",
            ),
        ]:
            content = (
                f"model_list: [{{model_name: m, litellm_params: {{{self.model}, {params}}}}}]"
            )
            self.assertEqual(self.load(content).deployments[0].credentials, spec)
            self.assertEqual(
                self.notices(content),
                [
                    f"config.yaml:1: model_list[0].litellm_params.{key}: has no effect {by}"
                    for key in unused
                ],
            )

    def test_environment(self) -> None:
        """
        LiteLLM's variables are for the direct routes and for deployments that
        name no credentials of their own.
        """
        environ = {
            "AWS_REGION_NAME": "us-east-1",
            "AWS_ROLE_NAME": ROLE,
            "AWS_SESSION_NAME": "me",
            "AWS_EXTERNAL_ID": "ext",
            "AWS_STS_ENDPOINT": "https://sts.example",
            "AWS_PROFILE_NAME": "dev",
        }
        expected = CredentialSpec(
            profile_name="dev",
            role_arn=ROLE,
            role_session_name="me",
            external_id="ext",
            sts_endpoint_url="https://sts.example",
            region="us-east-1",
        )
        default = default_settings(environ).default
        assert default is not None
        self.assertEqual(default.credentials, expected)
        own = dataclasses.replace(expected, region="eu-west-1")
        self.assertEqual(self.one(self.model, environ).credentials, own)
        self.assertEqual(
            self.one(f"{self.model}, api_key: k", environ).credentials, CredentialSpec(api_key="k")
        )
        other = self.one(f"{self.model}, aws_role_name: '{ROLE}2'", environ).credentials
        self.assertEqual((other.role_arn, other.external_id), (f"{ROLE}2", "ext"))
        self.assertIsNone(other.profile_name)

    def test_left_to_botocore(self) -> None:
        """What botocore's chain reads itself is not read here."""
        default = default_settings(
            {
                "AWS_REGION": "us-east-1",
                "AWS_ROLE_ARN": ROLE,
                "AWS_WEB_IDENTITY_TOKEN_FILE": "/run/token",
                "AWS_PROFILE": "dev",
                "AWS_BEARER_TOKEN_BEDROCK": "ABSK",
                "AWS_SESSION_NAME": "me",
            }
        ).default
        assert default is not None
        self.assertEqual(default.credentials, CredentialSpec())

    def test_web_identity(self) -> None:
        """LiteLLM's ways to name an OpenID Connect token."""
        environ = {"TOKEN": "eyJ0", "TOKEN_PATH": "/run/t"}
        for value, token in [
            ("/run/t", "/run/t"),
            ("oidc/file//run/t", "/run/t"),
            ("oidc/env/TOKEN", "eyJ0"),
            ("oidc/env_path/TOKEN_PATH", "/run/t"),
            ("os.environ/TOKEN", "eyJ0"),
            ("TOKEN", "eyJ0"),
        ]:
            params = f"{self.model}, aws_role_name: '{ROLE}', aws_web_identity_token: '{value}'"
            self.assertEqual(self.one(params, environ).credentials.web_identity_token, token)

    def test_wrong(self) -> None:
        """Credentials that cannot be used; none of them is shown."""
        at = "config.yaml:1: model_list[0].litellm_params."
        for params, message in [
            (
                "aws_access_key_id: SECRET",
                "aws_secret_access_key: found nothing, expected a value beside aws_access_key_id",
            ),
            (
                "aws_secret_access_key: SECRET",
                "aws_access_key_id: found nothing, expected a value beside aws_secret_access_key",
            ),
            (
                "aws_access_key_id: 'SECRET SECRET', aws_secret_access_key: SECRET",
                "aws_access_key_id: found other text, expected text without white space",
            ),
            ("api_key: 12345678", "api_key: found a number, expected text (in quotes)"),
            ("api_key: ''", "api_key: found empty text, expected text"),
            (
                "aws_web_identity_token: SECRET",
                "aws_role_name: found nothing, expected a role beside aws_web_identity_token",
            ),
            (
                f"aws_web_identity_token: oidc/google/SECRET, aws_role_name: '{ROLE}'",
                "aws_web_identity_token: found an oidc/ provider that is not supported, "
                "expected a file's path, oidc/file/<path>, oidc/env/<name> or "
                "oidc/env_path/<name>",
            ),
            (
                f"aws_web_identity_token: oidc/env/NO, aws_role_name: '{ROLE}'",
                "aws_web_identity_token: found oidc/env/ with a variable that is not set, "
                "expected one that is set",
            ),
            (
                f"aws_role_name: '{ROLE}', aws_external_id: x",
                "aws_external_id: found other text, expected 2 to 1224 letters, digits "
                "or +=,.@:/-_",
            ),
            (
                "aws_role_name: user",
                "aws_role_name: found 'user', expected a role's ARN such as "
                "arn:aws:iam::123456789012:role/name",
            ),
            (
                f"aws_role_name: '{ROLE}', aws_session_name: a b",
                "aws_session_name: found 'a b', expected 2 to 64 letters, digits or +=,.@-_",
            ),
            (
                "litellm_credential_name: SECRET",
                "litellm_credential_name: found a name that is not in credential_list, expected "
                "one that is",
            ),
        ]:
            self.assertEqual(self.one_problem(f"{self.model}, {params}"), [at + message])

    def test_half_pair_in_environment(self) -> None:
        """Half a key pair in the environment would break the direct routes."""
        error = self.assertRaises(
            ConfigError,
            default_settings,
            {"AWS_ACCESS_KEY_ID": "AKIA", "AWS_REGION": "us-east-1"},
        )
        self.assertEqual(
            error.problems,
            [
                "environment: AWS_SECRET_ACCESS_KEY: found nothing, expected a value beside "
                "AWS_ACCESS_KEY_ID"
            ],
        )

    def test_named(self) -> None:
        """``credential_list``: its values are used where a deployment has none."""
        settings = self.load(
            """
            credential_list:
              - credential_name: team
                credential_values:
                  aws_access_key_id: os.environ/ID
                  aws_secret_access_key: os.environ/SECRET
                  aws_region_name: us-east-2
              - credential_name: unused
                credential_values: {api_key: os.environ/NOT_SET}
            model_list:
              - model_name: m
                litellm_params: {model: bedrock/x.y, litellm_credential_name: team}
              - model_name: m
                litellm_params:
                  model: bedrock/x.y
                  litellm_credential_name: team
                  aws_region_name: us-west-2
            """,
            {"ID": "AKIA", "SECRET": "s"},
        )
        spec = CredentialSpec(access_key_id="AKIA", secret_access_key="s")
        self.assertEqual(
            [(one.region, one.credentials) for one in settings.deployments],
            [("us-east-2", spec), ("us-west-2", spec)],
        )

    def test_fault_of_named(self) -> None:
        """A fault in a named credential is reported where it is written."""
        self.assertEqual(
            self.problems(
                """
                credential_list:
                  - credential_name: team
                    credential_values:
                      aws_profile_name: 3
                  - credential_name: team
                  - credential_info: {}
                model_list:
                  - model_name: m
                    litellm_params: {model: bedrock/eu-west-1/x.y, litellm_credential_name: team}
                """
            ),
            [
                "config.yaml:5: credential_list[0].credential_values.aws_profile_name: found a "
                "number, expected text (in quotes)",
                "config.yaml:6: credential_list[1].credential_name: found a name that another one "
                "has",
                "config.yaml:7: credential_list[2].credential_name: found nothing, "
                "expected a name",
            ],
        )


class PriceTests(ConfigCase):
    """What a deployment costs, where its author says so."""

    model = "model: bedrock/eu-west-1/x.y"

    def prices(self, params: str, environ: Mapping[str, str] | None = None) -> dict[str, int]:
        return dict(self.one(f"{self.model}, {params}", environ).prices)

    def test_exact(self) -> None:
        """Dollars are read as they are written, in every way that YAML has, to the pico-USD."""
        for text, expected in [
            ("0.000003", 3_000_000),
            ("3.0e-06", 3_000_000),
            ("3e-06", 3_000_000),
            ("'0.000003'", 3_000_000),
            ("0.00000000875", 8_750),
            ("0.0000000000010", 1),
            ("0.000001100000", 1_100_000),
            ("0", 0),
            ("0.0", 0),
            ("2", 2 * 10**12),
            ("os.environ/PRICE", 2_500_000),
        ]:
            found = self.prices(f"input_cost_per_token: {text}", {"PRICE": "0.0000025"})
            self.assertEqual(found, {"input": expected}, text)
            self.assertIs(type(found["input"]), int)

    def test_keys(self) -> None:
        """LiteLLM's names, beside the model or in ``model_info``; a deployment stays hashable."""
        settings = self.load(
            """
            model_list:
              - model_name: m
                litellm_params:
                  model: bedrock/eu-west-1/x.y
                  input_cost_per_token: 0.000003
                  output_cost_per_token: 0.000015
                  input_cost_per_token_above_200k_tokens: 0.000006
                  cache_read_input_token_cost_flex: 0.0000001
                  cache_creation_input_token_cost_above_1hr: 0.000006
                  output_cost_per_image: 0.04
                  search_context_cost_per_query: {search_context_size_low: 0.01}
                model_info:
                  output_cost_per_token_batches: 0.0000075
                  guardrail_cost_per_unit: {topicPolicyUnits: 0.00015}
            """,
            {"AWS_REGION": "us-east-1"},
        )
        (deployment,) = settings.deployments
        self.assertEqual(
            deployment.prices,
            (
                ("input", 3_000_000),
                ("output", 15_000_000),
                ("cache_write_1h", 6_000_000),
                ("output_image", 40_000_000_000),
                ("search_low", 10_000_000_000),
                ("guardrail.topicPolicyUnits", 150_000_000),
                ("input.above_200k", 6_000_000),
                ("cache_read.flex", 100_000),
                ("output.batch", 7_500_000),
            ),
        )
        self.assertEqual(settings.notices, ())
        self.assertIsInstance(hash(deployment), int)

    def test_ids_stay(self) -> None:
        """Another price does not make another deployment of it."""
        self.assertEqual(
            self.one(self.model).id, self.one(f"{self.model}, input_cost_per_token: 1").id
        )

    def test_wrong(self) -> None:
        """What is no price, or none that can be kept exactly."""
        at = "config.yaml:1: model_list[0].litellm_params.input_cost_per_token: found "
        dollars = "expected a price in US dollars, 0 to 1000"
        for text, message in [
            ("-0.1", f"-0.1, {dollars}"),
            ("1001", f"1001, {dollars}"),
            ("true", f"true, {dollars}"),
            ("cheap", f"'cheap', {dollars}"),
            ("[1]", f"a list, {dollars}"),
            (".nan", f"nan, {dollars}"),
            (".inf", f"inf, {dollars}"),
            ("''", f"empty text, {dollars}"),
            ("1e-13", f"'1e-13', {dollars}, with at most 12 decimals"),
            ("0.00000000000875", f"8.75e-12, {dollars}, with at most 12 decimals"),
            ("1e-999", f"'1e-999', {dollars}, with at most 12 decimals"),
        ]:
            self.assertEqual(
                self.one_problem(f"{self.model}, input_cost_per_token: {text}"), [at + message]
            )
        self.assertEqual(
            self.one_problem(f"{self.model}, cost_per_second: 1, input_cost_per_second: 2"),
            [
                "config.yaml:1: model_list[0].litellm_params.input_cost_per_second: found another "
                "price than cost_per_second, expected one"
            ],
        )
        self.assertEqual(
            self.one_problem(f"{self.model}, guardrail_cost_per_unit: 1"),
            [
                "config.yaml:1: model_list[0].litellm_params.guardrail_cost_per_unit: found a "
                "number, expected a mapping"
            ],
        )

    def test_misspelled(self) -> None:
        """A price under a name that nobody knows is not silently left out."""
        self.assertEqual(
            self.notices(
                """
                model_list:
                  - model_name: m
                    litellm_params:
                      model: bedrock/x.y
                      input_cost_per_tokens: 1
                      wobble_cost: 1
                    model_info:
                      search_context_cost_per_query: {search_context_size_huge: 1}
                """
            ),
            [
                "config.yaml:6: model_list[0].litellm_params.input_cost_per_tokens: is not known "
                "here and has no effect (did you mean input_cost_per_token?)",
                "config.yaml:7: model_list[0].litellm_params.wobble_cost: is not known here and "
                "has no effect",
                "config.yaml:9: model_list[0].model_info.search_context_cost_per_query."
                "search_context_size_huge: is not known here and has no effect (did you mean "
                "search_context_size_high?)",
            ],
        )

    def test_given_twice(self) -> None:
        """What stands beside the model wins over ``model_info``, and is said to."""
        content = """
            model_list:
              - model_name: m
                litellm_params:
                  model: bedrock/x.y
                  input_cost_per_token: 1
                  output_cost_per_token: 2
                  base_model: us.amazon.nova-lite-v1:0
                model_info:
                  input_cost_per_token: 3
                  output_cost_per_token: 2.0
                  base_model: us.amazon.nova-pro-v1:0
            """
        (deployment,) = self.load(content, {"AWS_REGION": "us-east-1"}).deployments
        self.assertEqual(dict(deployment.prices), {"input": 10**12, "output": 2 * 10**12})
        self.assertEqual(deployment.base_model, "us.amazon.nova-lite-v1:0")
        self.assertEqual(
            self.notices(content),
            [
                "config.yaml:10: model_list[0].model_info.input_cost_per_token: has no effect "
                "beside litellm_params.input_cost_per_token",
            ],
        )

    def test_base_model(self) -> None:
        """The model whose price an ARN has; one that has no price itself is said to have none."""
        content = f"""
            model_list:
              - model_name: m
                litellm_params: {{model: "bedrock/{ARN}"}}
                model_info: {{base_model: %s}}
            """
        for base_model in ("us.amazon.nova-pro-v1:0", "bedrock/amazon.nova-pro-v1:0"):
            (deployment,) = self.load(content % base_model).deployments
            self.assertEqual((deployment.base_model, deployment.model_id), (base_model, ARN))
            self.assertEqual(self.notices(content % base_model), [])
        self.assertEqual(
            self.notices(content % "us.amazon.nova-por-v1:0"),
            [
                "config.yaml:5: model_list[0].model_info.base_model: is not in the price table, "
                "and so tells no price"
            ],
        )
        self.assertIsNone(self.one(self.model).base_model)

    def test_commitment(self) -> None:
        """LiteLLM's way to write provisioned throughput keeps the price for a second."""
        model = "bedrock/us-east-1/1-month-commitment/anthropic.claude-v1"
        deployment = self.one(f"model: {model}")
        self.assertEqual(
            (deployment.model_id, deployment.base_model), ("anthropic.claude-v1", model)
        )

    def test_price_file(self) -> None:
        """A file of the user's own: its name is kept, and ``base_model`` may be in it."""
        path = self.write("prices.json", '{"my.model": {"input_cost_per_token": 0.000001}}')
        settings = self.load(
            f"""
            general_settings: {{price_file: "{path}"}}
            model_list:
              - model_name: m
                litellm_params: {{model: "bedrock/{ARN}"}}
                model_info: {{base_model: my.model}}
            """,
            {"AWS_REGION": "us-east-1"},
        )
        self.assertEqual((settings.price_file, settings.notices), (path, ()))
        self.assertIn(
            "prices        the shipped ones, under those of prices.json",
            self.plain(summary(settings)),
        )
        self.assertIsNone(self.load("").price_file)

    def test_bad_price_file(self) -> None:
        """One that cannot be used stops the start, with all that is wrong in it."""
        path = self.write("prices.json", '{"a.b": {"input_cost_per_token": -1, "cost_x": 1}}')
        self.assertEqual(
            self.problems(
                f"""
                general_settings: {{price_file: "{path}", idle_timeout: soon}}
                model_list:
                  - model_name: m
                    litellm_params: {{model: bedrock/eu-west-1/x.y, base_model: a.b}}
                """
            ),
            [
                "config.yaml:2: general_settings.idle_timeout: found 'soon', expected seconds "
                "(0.001 to 604800) or a duration such as 90s, 5m or 1h",
                "prices.json: a.b.input_cost_per_token: found -1, expected a price in US dollars, "
                "0 to 1000",
                "prices.json: a.b.cost_x: found a price of an unknown kind",
            ],
        )
        self.assertEqual(
            self.problems("general_settings: {price_file: /nowhere.json}"),
            [
                "config.yaml:1: general_settings.price_file: found '/nowhere.json', which is no "
                "file, expected a file"
            ],
        )


class GeneralTests(ConfigCase):
    """``general_settings``, and what LiteLLM has elsewhere for the same."""

    def test_probing(self) -> None:
        """How often deployments are asked; never, if it is not wanted."""
        for line, expected in (
            ("{}", None),
            ("{background_health_checks: false}", None),
            ("{background_health_checks: true}", 300.0),
            ("{background_health_checks: true, health_check_interval: 30}", 30.0),
            ("{background_health_checks: true, health_check_interval: 10m}", 600.0),
        ):
            settings = self.load(f"general_settings: {line}")
            self.assertEqual(settings.probe_interval_s, expected, line)
        self.assertEqual(
            self.notices("general_settings: {health_check_interval: 30}"),
            [
                "config.yaml:1: general_settings.health_check_interval: has no effect without "
                "background_health_checks: true"
            ],
        )

    def test_limits(self) -> None:
        """Every limit under its name, in numbers or with a unit."""
        settings = self.load(
            """
            general_settings:
              connect_timeout: 500ms
              first_byte_timeout: 2h
              idle_timeout: 90
              header_timeout: "15"
              client_stall_timeout: 1.5m
              upload_idle_timeout: 10 s
              max_request_body: 5MB
              drain_max_bytes: 1GiB
              drain_max_time: 1d
              shutdown_grace: 0
              max_idle_connections: 0
              credentials_timeout: os.environ/WAIT
            """,
            {"WAIT": "3s"},
        )
        self.assertEqual(
            settings.limits,
            Limits(
                connect_timeout_s=0.5,
                first_byte_timeout_s=7200.0,
                idle_timeout_s=90.0,
                header_timeout_s=15.0,
                stalled_client_timeout_s=90.0,
                upload_idle_timeout_s=10.0,
                max_request_body=5_000_000,
                drain_max_bytes=1024**3,
                drain_max_s=86400.0,
                shutdown_grace_s=0.0,
                max_idle_connections=0,
                credentials_timeout_s=3.0,
            ),
        )
        self.assertIsInstance(settings.limits.max_request_body, int)
        self.assertIsInstance(settings.limits.max_idle_connections, int)

    def test_litellm_names(self) -> None:
        """LiteLLM's names for the same; the more special one wins, ours before all."""
        for content, first_byte in [
            ("litellm_settings: {request_timeout: 1}", 1),
            (
                "{litellm_settings: {request_timeout: 1}, "
                "general_settings: {pass_through_request_timeout: 2}}",
                2,
            ),
            (
                "general_settings: {pass_through_request_timeout: 2, first_byte_timeout: 3}",
                3,
            ),
        ]:
            self.assertEqual(self.load(content).limits.first_byte_timeout_s, first_byte)
        content = "general_settings: {max_request_size_mb: 1.5}"
        self.assertEqual(self.load(content).limits.max_request_body, 1536 * 1024)
        content = "general_settings: {max_request_size_mb: 1, max_request_body: 7}"
        self.assertEqual(self.load(content).limits.max_request_body, 7)
        self.assertEqual(
            self.notices(content),
            [
                "config.yaml:1: general_settings.max_request_size_mb: has no effect beside "
                "max_request_body"
            ],
        )

    def test_wrong_values(self) -> None:
        """Wrong types and values out of range, with what would do."""
        seconds = "seconds (0.001 to 604800) or a duration such as 90s, 5m or 1h"
        size = "bytes (1 or more) or a size such as 500KB or 32MiB"
        for key, value, message in [
            ("connect_timeout", "0", f"0, expected {seconds}"),
            ("connect_timeout", "-1", f"-1, expected {seconds}"),
            ("connect_timeout", ".nan", f"nan, expected {seconds}"),
            ("connect_timeout", ".inf", f"inf, expected {seconds}"),
            ("connect_timeout", "8d", f"'8d', expected {seconds}"),
            ("connect_timeout", "5 minutes", f"'5 minutes', expected {seconds}"),
            ("connect_timeout", "true", f"true, expected {seconds}"),
            ("connect_timeout", "[5]", f"a list, expected {seconds}"),
            ("connect_timeout", "9" * 5000, "a malformed int, expected a plain value"),
            ("max_request_body", "0", f"0, expected {size}"),
            ("max_request_body", "32XB", f"'32XB', expected {size}"),
            ("max_request_body", "1e99", f"'1e99', expected {size}"),
            (
                "max_idle_connections",
                "1.5",
                "1.5, expected a whole number, 0 to 1e+06",
            ),
            ("allow_no_key", "maybe", "'maybe', expected true or false"),
            ("endpoint_urls", "http://x", "text, expected a mapping"),
        ]:
            self.assertEqual(
                self.problems(f"general_settings: {{{key}: {value}}}"),
                [f"config.yaml:1: general_settings.{key}: found {message}"],
            )

    def test_route_prefix(self) -> None:
        """Any path, with or without its slashes; or none."""
        for value, prefix in [
            ("/bedrock", "/bedrock"),
            ("bedrock/", "/bedrock"),
            ("/a/b-c/", "/a/b-c"),
            ("/", ""),
            ("''", ""),
        ]:
            settings = self.load(f"general_settings: {{route_prefix: {value}}}")
            self.assertEqual(settings.route_prefix, prefix)
        for value in ("/a/../b", "/a//b", "/a b", "/a?b", "/%2e"):
            self.assertEqual(
                self.problems(f"general_settings: {{route_prefix: '{value}'}}"),
                [
                    f"config.yaml:1: general_settings.route_prefix: found '{value}', expected a "
                    "path such as /bedrock"
                ],
            )

    def test_master_key(self) -> None:
        """The file's key, then each variable."""
        environ = {"LITELLM_MASTER_KEY": "sk-litellm", "KEY": "sk-file"}
        self.assertEqual(self.load("", environ).master_key, "sk-litellm")
        environ["TXBEDROCK_MASTER_KEY"] = "sk-own"
        self.assertEqual(self.load("", environ).master_key, "sk-own")
        content = "general_settings: {master_key: os.environ/KEY}"
        self.assertEqual(self.load(content, environ).master_key, "sk-file")
        self.assertEqual(
            self.load("general_settings: {master_key: sk-1234}").master_key, "sk-1234"
        )

    def test_bad_master_key(self) -> None:
        """A key that is no key, or that not every client could send."""
        signs = (
            "a key with white space, a slash, a comma or non-ASCII text, expected ASCII letters, "
            "digits and signs (a signature could not carry it)"
        )
        for value, found in [
            ("'abc'", "a key of fewer than 4 characters, expected 4 or more"),
            ("''", "empty text, expected text"),
            ("12345", "a number, expected text (in quotes)"),
            ("sk 12345", signs),
            ("sk/12345", signs),
            ("'sk,12345'", signs),
            ("sk-é12345", signs),
            ('"sk-12345\\n"', signs),
        ]:
            self.assertEqual(
                self.problems(f"general_settings: {{master_key: {value}}}"),
                [f"config.yaml:1: general_settings.master_key: found {found}"],
            )
        error = self.assertRaises(
            ConfigError, default_settings, {"LITELLM_MASTER_KEY": "s/e/cret"}
        )
        self.assertEqual(error.problems, [f"environment: LITELLM_MASTER_KEY: found {signs}"])

    def test_endpoints(self) -> None:
        """Each service's host: the file, LiteLLM's variable, AWS's variable."""
        environ = {
            f"AWS_ENDPOINT_URL_{service.upper().replace('-', '_')}": f"http://{service}"
            for service in config.SERVICES
        }
        everything = {service: f"http://{service}" for service in config.SERVICES}
        self.assertEqual(default_settings(environ).endpoint_urls, everything)
        environ["AWS_BEDROCK_RUNTIME_ENDPOINT"] = "http://litellm/"
        everything["bedrock-runtime"] = "http://litellm"
        self.assertEqual(default_settings(environ).endpoint_urls, everything)
        content = "general_settings: {endpoint_urls: {bedrock-runtime: 'http://file/x/'}}"
        everything["bedrock-runtime"] = "http://file/x"
        self.assertEqual(self.load(content, environ).endpoint_urls, everything)
        environ["AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"] = "true"
        self.assertEqual(
            self.load(content, environ).endpoint_urls, {"bedrock-runtime": "http://file/x"}
        )

    def test_clients_endpoint(self) -> None:
        """
        The variable that points all clients at the gateway does not point the
        gateway at itself.
        """
        settings = default_settings(
            {"AWS_ENDPOINT_URL": "http://localhost:4000/bedrock", "AWS_REGION": "us-east-1"}
        )
        self.assertEqual(settings.endpoint_urls, {})
        self.assertEqual(
            settings.notices,
            (
                "environment: AWS_ENDPOINT_URL: has no effect, since it usually points clients at "
                "this gateway; use endpoint_urls or AWS_ENDPOINT_URL_BEDROCK_RUNTIME and the like",
            ),
        )

    def test_bad_endpoints(self) -> None:
        """A service that Bedrock does not have, and variables that are no URLs."""
        self.assertEqual(
            self.problems(
                "general_settings: {endpoint_urls: {s3: 'http://x'}}",
                {"AWS_ENDPOINT_URL_BEDROCK": "x.example"},
            ),
            [
                "config.yaml:1: general_settings.endpoint_urls.s3: found an unknown service, "
                f"expected one of {', '.join(config.SERVICES)}",
                "environment: AWS_ENDPOINT_URL_BEDROCK: found text that is no http:// or https:// "
                "URL, expected a URL such as "
                "https://vpce-0a1b.bedrock-runtime.us-east-1.vpce.amazonaws.com",
            ],
        )

    def test_variants(self) -> None:
        """FIPS and dual-stack: the file, the variable, AWS's own files."""
        self.assertFalse(default_settings({}).use_fips)
        self.assertFalse(default_settings({}).use_dualstack)
        aws = self.write("aws", "[default]\nuse_fips_endpoint = true\n")
        environ = {"AWS_CONFIG_FILE": aws}
        self.assertTrue(default_settings(environ).use_fips)
        environ["AWS_USE_FIPS_ENDPOINT"] = "false"
        environ["AWS_USE_DUALSTACK_ENDPOINT"] = "True"
        settings = default_settings(environ)
        self.assertEqual((settings.use_fips, settings.use_dualstack), (False, True))
        settings = self.load(
            "general_settings: {use_fips_endpoint: true, use_dualstack_endpoint: false}", environ
        )
        self.assertEqual((settings.use_fips, settings.use_dualstack), (True, False))

    def test_certificates(self) -> None:
        """
        The authorities that are trusted: our name, LiteLLM's, the variables.
        """
        import trustme

        paths = []
        for name in ("a", "b", "c", "d"):
            paths.append(self.write(f"{name}.pem", trustme.CA().cert_pem.bytes()))
        ours, ssl_verify, variable, aws = paths
        environ = {"AWS_CA_BUNDLE": aws}
        self.assertEqual(default_settings(environ).ca_bundle, aws)
        environ["SSL_VERIFY"] = variable
        self.assertEqual(default_settings(environ).ca_bundle, variable)
        content = f"litellm_settings: {{ssl_verify: '{ssl_verify}'}}"
        self.assertEqual(self.load(content, environ).ca_bundle, ssl_verify)
        content = f"{content}\ngeneral_settings: {{ca_bundle: '{ours}'}}"
        settings = self.load(content, environ)
        self.assertEqual((settings.ca_bundle, settings.verify_tls), (ours, True))

    def test_no_verification(self) -> None:
        """Certificates go unchecked only when told so, and with a warning."""
        off = "is off: anyone on the way to AWS can read all requests"
        self.assertTrue(default_settings({"SSL_VERIFY": "true"}).verify_tls)
        for content, environ, notice in [
            (
                "general_settings: {verify_tls: false}",
                {},
                f"config.yaml:1: general_settings.verify_tls: {off}",
            ),
            (
                "litellm_settings: {ssl_verify: false}",
                {"SSL_VERIFY": "true"},
                f"config.yaml:1: litellm_settings.ssl_verify: {off}",
            ),
            ("", {"SSL_VERIFY": "False"}, f"environment: SSL_VERIFY: {off}"),
        ]:
            self.assertFalse(self.load(content, environ).verify_tls)
            self.assertEqual(self.notices(content, environ), [notice])
        content = "general_settings: {verify_tls: true}\nlitellm_settings: {ssl_verify: false}"
        self.assertTrue(self.load(content, {"SSL_VERIFY": "false"}).verify_tls)

    def test_bad_certificates(self) -> None:
        """A file that is not there, and one without certificates."""
        empty = self.write("empty.pem", "nothing\n")
        first, second = self.problems(
            "general_settings: {ca_bundle: /nowhere.pem}\n"
            f"litellm_settings: {{ssl_verify: '{empty}'}}"
        )
        self.assertEqual(
            first,
            "config.yaml:1: general_settings.ca_bundle: found '/nowhere.pem', which is no file, "
            "expected a file",
        )
        self.assertTrue(second.startswith("config.yaml:2: litellm_settings.ssl_verify: found "))
        expected = ", which has none, expected a file of certificates (PEM)"
        self.assertTrue(second.endswith(expected), second)
        error = self.assertRaises(ConfigError, default_settings, {"AWS_CA_BUNDLE": "/nowhere.pem"})
        self.assertEqual(
            error.problems,
            [
                "environment: AWS_CA_BUNDLE: found something else, which is no file, "
                "expected a file"
            ],
        )

    def test_environment_variables(self) -> None:
        """
        What the file adds to the environment is seen by its own references,
        wins over what is there, and is handed on to be set.
        """
        settings = self.load(
            """
            environment_variables:
              AWS_REGION_NAME: eu-central-1
              KEY: os.environ/OUTER
              NUMBER: 3
              FLAG: true
            general_settings:
              master_key: os.environ/KEY
            """,
            {"OUTER": "sk-outer", "AWS_REGION_NAME": "us-east-1"},
        )
        self.assertEqual(
            settings.environment,
            {"AWS_REGION_NAME": "eu-central-1", "KEY": "sk-outer", "NUMBER": "3", "FLAG": "true"},
        )
        self.assertEqual(settings.master_key, "sk-outer")
        assert settings.default is not None
        self.assertEqual(settings.default.region, "eu-central-1")
        self.assertEqual(
            self.problems("environment_variables: {A=B: x, C: [], D: os.environ/NO}"),
            [
                "config.yaml:1: environment_variables.A=B: found a key that no environment "
                "variable can have",
                "config.yaml:1: environment_variables.C: found a list, expected text",
                "config.yaml:1: environment_variables.D: found os.environ/NO, which is not set, "
                "expected the environment variable NO",
            ],
        )

    def test_bad_region_in_environment(self) -> None:
        """A bad region in a variable is named once, whatever depends on it."""
        self.assertEqual(
            self.problems(
                "model_list: [{model_name: m, litellm_params: {model: bedrock/x.y}}]",
                {"AWS_REGION": "us-wset"},
            ),
            ["environment: AWS_REGION: found something else, expected a region such as us-west-2"],
        )


class ReferenceTests(ConfigCase):
    """``os.environ/NAME``."""

    def test_anywhere(self) -> None:
        """Any value may be a reference, also one that is a number or true."""
        settings = self.load(
            """
            model_list:
              - model_name: os.environ/NAME
                litellm_params:
                  model: bedrock/x.y
                  aws_region_name: os.environ/REGION
                  timeout: os.environ/SECONDS
            general_settings:
              allow_no_key: os.environ/FLAG
              max_idle_connections: os.environ/SECONDS
              endpoint_urls: {bedrock: os.environ/URL}
            """,
            {
                "NAME": "m",
                "REGION": "eu-west-1",
                "SECONDS": "5",
                "FLAG": "True",
                "URL": "http://x/",
            },
        )
        (deployment,) = settings.deployments
        self.assertEqual(
            (deployment.model_name, deployment.region, deployment.timeout_s), ("m", "eu-west-1", 5)
        )
        self.assertTrue(settings.allow_no_key)
        self.assertEqual(settings.limits.max_idle_connections, 5)
        self.assertEqual(settings.endpoint_urls, {"bedrock": "http://x"})

    def test_missing(self) -> None:
        """A variable that is not set is named with the key that wants it."""
        at = "config.yaml:1: general_settings.master_key: found "
        for value, message in [
            (
                "os.environ/NO",
                "os.environ/NO, which is not set, expected the environment variable NO",
            ),
            (
                "os.environ/",
                "os.environ/ without a variable's name after it, expected os.environ/ and the "
                "name of an environment variable",
            ),
            (
                "os.environ/sk-1234",
                "os.environ/ without a variable's name after it, expected os.environ/ and the "
                "name of an environment variable",
            ),
            ("os.environ/EMPTY", "empty text in EMPTY, expected text"),
        ]:
            self.assertEqual(
                self.problems(f"general_settings: {{master_key: {value}}}", {"EMPTY": ""}),
                [at + message],
            )

    def test_value_not_shown(self) -> None:
        """The value of a variable is not in the message about it."""
        self.assertEqual(
            self.problems(
                "general_settings: {connect_timeout: os.environ/T}", {"T": "planted-secret"}
            ),
            [
                "config.yaml:1: general_settings.connect_timeout: found the value of T, expected "
                "seconds (0.001 to 604800) or a duration such as 90s, 5m or 1h"
            ],
        )

    def test_not_needed(self) -> None:
        """What has no effect may refer to variables that are not set."""
        self.assertEqual(
            self.notices("general_settings: {alerting_threshold: os.environ/NOT_SET}"),
            ["config.yaml:1: general_settings.alerting_threshold: has no effect in this version"],
        )


class NoticeTests(ConfigCase):
    """Keys that do nothing here, and keys that nobody knows."""

    def test_without_effect(self) -> None:
        """LiteLLM's keys are known; each is reported once, however often it is there."""
        self.assertEqual(
            self.notices(
                """
                model_list:
                  - model_name: m
                    litellm_params: &p
                      model: bedrock/x.y
                      drop_params: true
                      output_cost_per_character: 0.000003
                    model_info: {mode: chat, tiered_pricing: []}
                  - {model_name: m, litellm_params: {<<: *p}}
                  - {model_name: m, litellm_params: {<<: *p}}
                router_settings:
                  routing_strategy: simple-shuffle
                  debug_level: INFO
                general_settings:
                  database_url: postgresql://user:secret@host/db
                litellm_settings: {drop_params: true, callbacks: prometheus}
                """
            ),
            [
                "config.yaml:6: model_list[0].litellm_params.drop_params: has no effect in this "
                "version (and 2 more like it)",
                "config.yaml:7: model_list[0].litellm_params.output_cost_per_character: has no "
                "effect in this version (and 2 more like it)",
                "config.yaml:8: model_list[0].model_info.mode: has no effect in this version",
                "config.yaml:8: model_list[0].model_info.tiered_pricing: has no effect in this "
                "version",
                "config.yaml:13: router_settings.debug_level: has no effect in this version",
                "config.yaml:16: litellm_settings.drop_params: has no effect in this version",
                "config.yaml:16: litellm_settings.callbacks: has no effect in this version",
            ],
        )

    def test_without_protection(self) -> None:
        """A key that its author relies on for protection says more."""
        self.assertEqual(
            self.notices("general_settings: {allowed_ips: [10.0.0.1]}"),
            [
                "config.yaml:1: general_settings.allowed_ips: has no effect in this version: it "
                "restricts nothing"
            ],
        )

    def test_wrong_type(self) -> None:
        """A wrong value is a problem, also where it would have no effect."""
        for content, message in [
            ("router_settings: {num_retries: two}", "router_settings.num_retries: found 'two', "
             "expected a whole number from 0 up"),
            ("router_settings: {num_retries: -1}", "router_settings.num_retries: found -1, "
             "expected a whole number from 0 up"),
            ("router_settings: {fallbacks: {a: b}}", "router_settings.fallbacks: found a mapping, "
             "expected a list"),
            ("router_settings: {redis_password: 12345}", "router_settings.redis_password: found a "
             "number, expected text (in quotes)"),
            ("litellm_settings: {drop_params: 7}", "litellm_settings.drop_params: found 7, "
             "expected true or false"),
        ]:  # fmt: skip
            self.assertEqual(self.problems(content), [f"config.yaml:1: {message}"])

    def test_unknown(self) -> None:
        """An unknown key does not stop the start; what it may have meant is named."""
        self.assertEqual(
            self.notices(
                """
                router_settings: {routing_stategy: simple-shuffle, wobble: 1}
                general_settings: {databse_url: x, wobble: 1}
                wobble: 1
                x-anchors: {a: &a 1}
                model_lst: []
                """
            ),
            [
                "config.yaml:2: router_settings.routing_stategy: is not known here and has no "
                "effect (did you mean routing_strategy?)",
                "config.yaml:2: router_settings.wobble: is not known here and has no effect",
                "config.yaml:3: general_settings.databse_url: is not known here and has no effect "
                "(did you mean database_url?)",
                "config.yaml:3: general_settings.wobble: is not known here and has no effect",
                "config.yaml:4: wobble: is not known here and has no effect",
                "config.yaml:6: model_lst: is not known here and has no effect (did you mean "
                "model_list?)",
            ],
        )

    def test_misspelled(self) -> None:
        """A misspelling of one of our own settings is a problem."""
        self.assertEqual(
            self.problems("general_settings: {idle_timout: 5, masterkey: sk-1234}"),
            [
                "config.yaml:1: general_settings.idle_timout: found an unknown setting, expected "
                "idle_timeout",
                "config.yaml:1: general_settings.masterkey: found an unknown setting, expected "
                "master_key",
            ],
        )

    def test_strategy(self) -> None:
        """LiteLLM's strategies and our own are taken, others are not."""
        self.assertIs(self.load("").routing.strategy, Strategy.ADAPTIVE)
        for strategy in Strategy:
            settings = self.load(f"router_settings: {{routing_strategy: {strategy.value}}}")
            self.assertIs(settings.routing.strategy, strategy)
        self.assertEqual(
            self.problems("router_settings: {routing_strategy: random}"),
            [
                "config.yaml:1: router_settings.routing_strategy: found 'random', expected one of "
                "adaptive, simple-shuffle, least-busy, latency-based-routing, "
                "usage-based-routing, usage-based-routing-v2, cost-based-routing"
            ],
        )

    def test_no_region_for_direct_routes(self) -> None:
        """Models can be served without a region for the rest, which is said."""
        settings = self.load(PLAIN_MODEL)
        self.assertEqual(len(settings.deployments), 1)
        self.assertIsNone(settings.default)
        self.assertEqual(
            settings.notices,
            (
                "environment: AWS_REGION_NAME: is not set, so requests that name no model of "
                "model_list cannot be served",
            ),
        )


class YamlTests(ConfigCase):
    """The file itself."""

    def test_broken(self) -> None:
        """Broken YAML is one problem, with line and column."""
        for content, message in [
            ("a: b: c\n", "1: column 5: broken YAML: mapping values are not allowed here"),
            (
                "a:\n\t- b\n",
                "2: column 1: broken YAML: found character '\\t' that cannot start any token",
            ),
            (
                "a: [1,\n",
                "2: column 1: broken YAML: expected the node content, but found '<stream end>'",
            ),
            ("a: b\n c\n d: e\n", "3: column 3: broken YAML: mapping values are not allowed here"),
            ("a: 'b\n", "2: column 1: broken YAML: found unexpected end of stream"),
            ("a: \x00b\n", "1: column 4: broken YAML: found a character that YAML does not allow"),
            ("a: 1\n---\nb: 2\n", "2: column 1: broken YAML: but found another document"),
            (
                "a: *b1c2d3\n",
                "1: column 4: broken YAML: found * and a name that no & defines, expected text "
                "with a * to be in quotes",
            ),
            (
                "a: !b1c2!d3 x\n",
                "1: column 4: broken YAML: found ! at the beginning of a value, expected such "
                "text to be in quotes",
            ),
        ]:
            self.assertEqual(self.problems(content), [f"config.yaml:{message}"])

    def test_not_text(self) -> None:
        """Bytes that are not UTF-8."""
        self.assertEqual(
            self.problems(b"a: 1\nb: \xff\n"),
            ["config.yaml:2: found a byte that is not UTF-8, expected text in UTF-8"],
        )
        self.assertEqual(self.load(b"\xef\xbb\xbfgeneral_settings:\r\n").master_key, None)

    def test_not_a_mapping(self) -> None:
        """Values where a mapping should be."""
        for content, found in [("- a", "a list"), ("text", "text"), ("3", "a number")]:
            self.assertEqual(
                self.problems(content),
                [f"config.yaml:1: found {found}, expected a mapping such as model_list:"],
            )
        self.assertEqual(
            self.problems("general_settings: []\nmodel_list: {}\nrouter_settings: x"),
            [
                "config.yaml:1: general_settings: found a list, expected a mapping",
                "config.yaml:2: model_list: found a mapping, expected a list",
                "config.yaml:3: router_settings: found text, expected a mapping",
            ],
        )

    def test_no_file(self) -> None:
        """A file that is not there, and what is no file."""
        missing = os.path.join(self.directory.path, "missing.yaml")
        error = self.assertRaises(ConfigError, config.load, missing, {})
        self.assertEqual(
            [self.plain(problem) for problem in error.problems],
            ["missing.yaml: found: No such file or directory, expected a YAML file"],
        )
        error = self.assertRaises(ConfigError, config.load, self.directory.path, {})
        self.assertIn("found: Is a directory, expected a YAML file", str(error))
        self.assertRaises(ConfigError, config.load, "a\0b", {})

    def test_duplicate_keys(self) -> None:
        """A key that is given twice is a problem, not a choice."""
        self.assertEqual(
            self.problems(
                """
                general_settings:
                  master_key: sk-one1
                  idle_timeout: 5
                  master_key: sk-two2
                general_settings:
                  idle_timeout: 6
                """
            ),
            [
                "config.yaml:5: general_settings.master_key: found the key again, expected it "
                "once (first in line 3)",
                "config.yaml:6: general_settings: found the key again, expected it once (first in "
                "line 2)",
            ],
        )

    def test_strange_values(self) -> None:
        """Keys that are not text, tags, and values that only look like something."""
        self.assertEqual(
            self.problems("1: a\nyes: b\ngeneral_settings:\n  ? [x]\n  : y\n"),
            [
                "config.yaml:1: found a number as a key, expected text (in quotes)",
                "config.yaml:2: found true or false as a key, expected text (in quotes)",
                "config.yaml:4: general_settings: found a list as a key, expected text "
                "(in quotes)",
            ],
        )
        self.assertEqual(
            self.problems("general_settings:\n  master_key: !!python/object:os.system x\n"),
            [
                "config.yaml:2: general_settings.master_key: found a tag (!), expected a "
                "plain value"
            ],
        )
        self.assertEqual(
            self.problems('model_list: [{model_name: "\\ud800"}]')[0],
            "config.yaml:1: model_list[0].model_name: found half a character (\\ud800 to \\udfff)",
        )
        environ = {"AWS_ROLE_NAME": "\udcff", "AWS_REGION": "us-east-1"}
        error = self.assertRaises(ConfigError, default_settings, environ)
        self.assertEqual(
            error.problems,
            ["environment: AWS_ROLE_NAME: found bytes that are not UTF-8, expected text in UTF-8"],
        )
        content = "general_settings: {master_key: 2024-13-45}"
        self.assertEqual(self.load(content).master_key, "2024-13-45")

    def test_anchors(self) -> None:
        """Anchors and merge keys work; a fault is where it is written."""
        content = """
            x-common: &common
              aws_region_name: us-west-2
              timeout: {timeout}
            x-more: &more
              stream_timeout: 9
              timeout: 1
            model_list:
              - model_name: m
                litellm_params:
                  <<: [*common, *more]
                  model: bedrock/x.y
              - model_name: m
                litellm_params:
                  <<: *common
                  model: bedrock/x.y
                  aws_region_name: us-east-1
            """
        settings = self.load(content.replace("{timeout}", "5"))
        self.assertEqual(
            [(one.region, one.timeout_s, one.stream_timeout_s) for one in settings.deployments],
            [("us-west-2", 5, 9), ("us-east-1", 5, None)],
        )
        self.assertEqual(
            self.problems(content.replace("{timeout}", "soon")),
            [
                f"config.yaml:4: model_list[{number}].litellm_params.timeout: found 'soon', "
                "expected seconds (0.001 to 604800) or a duration such as 90s, 5m or 1h"
                for number in (0, 1)
            ],
        )

    def test_malicious(self) -> None:
        """Files made to exhaust a reader are refused, or read like others."""
        self.assertEqual(
            self.problems("a: &a\n  - *a\n"),
            ["config.yaml:1: a[0]: found an anchor that holds itself"],
        )
        self.assertEqual(
            self.problems("a: &a\n  <<: *a\n"),
            [
                "config.yaml:1: a: found an anchor that holds itself",
                "config.yaml:1: a: found nothing after <<, expected a mapping",
            ],
        )
        self.assertEqual(
            self.problems("a: " + "[" * 5000),
            ["config.yaml:1: found values nested too deeply to be read"],
        )
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        for number in range(1, 30):
            inner = ", ".join([f"*a{number - 1}"] * 10)
            lines.append(f"a{number}: &a{number} [{inner}]")
        self.assertEqual(len(self.load("\n".join(lines)).notices), 31)
        self.assertEqual(
            self.problems("a: {<<: 3}\nb: {<<: [{}, x]}"),
            [
                "config.yaml:1: a: found a number after <<, expected a mapping",
                "config.yaml:2: b: found text after <<, expected a mapping",
            ],
        )


class IncludeTests(ConfigCase):
    """``include``."""

    def test_merged(self) -> None:
        """Lists are appended, other settings laid over those of the first file."""
        self.directory.child("more").makedirs()
        self.write("more/models.yaml", PLAIN_MODEL.replace("m\n", "n\n") + "include: [deep.yaml]")
        self.write("more/deep.yaml", "general_settings: {idle_timeout: 2}\nrouter_settings:")
        settings = self.load(
            PLAIN_MODEL
            + "include: [more/models.yaml]\ngeneral_settings: {idle_timeout: 1, header_timeout: 1}"
        )
        self.assertEqual([one.model_name for one in settings.deployments], ["m", "n"])
        self.assertEqual(settings.limits.idle_timeout_s, 2)
        self.assertEqual(settings.limits.header_timeout_s, 1)
        self.assertEqual(
            self.plain(settings.notices[0]),
            "more/deep.yaml:1: general_settings.idle_timeout: replaces the value at config.yaml:8",
        )

    def test_faults(self) -> None:
        """A fault is reported with its own file, those of the first file first."""
        self.write("b.yaml", "\ngeneral_settings: {idle_timeout: soon}")
        expected = "expected seconds (0.001 to 604800) or a duration such as 90s, 5m or 1h"
        self.assertEqual(
            self.problems("include: [b.yaml]\ngeneral_settings:\n  header_timeout: soon"),
            [
                f"config.yaml:3: general_settings.header_timeout: found 'soon', {expected}",
                f"b.yaml:2: general_settings.idle_timeout: found 'soon', {expected}",
            ],
        )

    def test_wrong(self) -> None:
        """Files that cannot be read, that include each other, and no file names."""
        self.write("broken.yaml", "a: [")
        self.write("loop.yaml", "include: [config.yaml]")
        missing = os.path.join(self.directory.path, "missing.yaml")
        self.assertEqual(
            self.problems("include:\n  - missing.yaml\n  - broken.yaml\n  - loop.yaml\n  - 3\n"),
            [
                "config.yaml:2: include[0]: found "
                f"{self.plain(repr(missing))}: No such file or directory, expected a YAML file",
                "config.yaml:5: include[3]: found a number, expected a file name",
                "broken.yaml:1: column 5: broken YAML: expected the node content, but found "
                "'<stream end>'",
                "loop.yaml:1: include[0]: found a file that includes itself",
            ],
        )
        self.assertEqual(
            self.problems("include: models.yaml"),
            ["config.yaml:1: include: found text, expected a list of file names"],
        )


class SeveralTests(ConfigCase):
    """Many faults at once."""

    def test_all_at_once(self) -> None:
        """All are listed, by line, and the exception's text is the list."""
        content = """
            model_list:
              - model_name: m
                litellm_params:
                  model: bedrock/x y
                  aws_access_key_id: AKIA
              - litellm_params: {model: bedrock/eu-west-1/x.y, timeout: soon}
            router_settings:
              routing_strategy: random
            general_settings:
              idle_timout: 5
              route_prefix: /a b
            """
        error = self.assertRaises(ConfigError, self.load, content, {"AWS_REGION": "x"})
        lines = [self.plain(problem).split(": found")[0] for problem in error.problems]
        self.assertEqual(
            lines,
            [
                "config.yaml:4: model_list[0].litellm_params.aws_secret_access_key",
                "config.yaml:5: model_list[0].litellm_params.model",
                "config.yaml:7: model_list[1].model_name",
                "config.yaml:7: model_list[1].litellm_params.timeout",
                "config.yaml:9: router_settings.routing_strategy",
                "config.yaml:11: general_settings.idle_timout",
                "config.yaml:12: general_settings.route_prefix",
                "environment: AWS_REGION",
            ],
        )
        self.assertEqual(str(error), "\n".join(error.problems))


class SecretTests(ConfigCase):
    """No secret is in anything that may be printed or logged."""

    secrets = (
        "sk-planted-master-key-1",
        "AKIAPLANTEDKEYID1234",
        "pLantedSecretAccessKey1234567890abcdEFGH",
        "planted-session-token",
        "ABSKplantedapikey",
        "planted-external-id",
        "planted-web-identity",
        "planted-environment-value",
    )

    content = """
        environment_variables:
          SOMETHING: planted-environment-value
        credential_list:
          - credential_name: team
            credential_values:
              aws_access_key_id: AKIAPLANTEDKEYID1234
              aws_secret_access_key: pLantedSecretAccessKey1234567890abcdEFGH
              aws_session_token: planted-session-token
        model_list:
          - model_name: a
            litellm_params:
              model: bedrock/eu-west-1/x.y
              litellm_credential_name: team
              aws_role_name: arn:aws:iam::123456789012:role/user
              aws_external_id: planted-external-id
          - model_name: b
            litellm_params:
              model: bedrock/eu-west-1/x.y
              api_key: ABSKplantedapikey
              aws_profile_name: unused
          - model_name: c
            litellm_params:
              model: bedrock/eu-west-1/x.y
              aws_role_name: arn:aws:iam::123456789012:role/user
              aws_web_identity_token: planted-web-identity
        general_settings:
          master_key: sk-planted-master-key-1
          database_url: postgresql://planted-external-id@x
          idle_tmout_of_mine: planted-external-id
        router_settings:
          redis_password: planted-external-id
        {more}
        """

    def assertNoSecret(self, text: str) -> None:
        for secret in self.secrets:
            self.assertNotIn(secret, text)

    def test_settings(self) -> None:
        """Not in what a configuration looks like, nor in its notices and summary."""
        settings = self.load(self.content.replace("{more}", ""))
        self.assertEqual(settings.deployments[0].credentials.session_token, self.secrets[3])
        self.assertEqual(settings.master_key, self.secrets[0])
        self.assertGreater(len(settings.notices), 3)
        for text in (repr(settings), str(settings), *settings.notices, summary(settings)):
            self.assertNoSecret(text)

    def test_problems(self) -> None:
        """Not in a message about a value that is wrong, wherever a secret was put."""
        for secret in (*self.secrets, "12345678901", "'planted secret with spaces'"):
            for key in (
                "model_list: [{model_name: m, litellm_params: {model: bedrock/x.y, %s: %s}}]",
                "general_settings: {%s: %s}",
                "router_settings: {%s: %s}",
                "litellm_settings: {%s: %s}",
                "environment_variables: {%s: [%s]}",
            ):
                for name in (
                    "api_key",
                    "aws_access_key_id",
                    "aws_secret_access_key",
                    "aws_session_token",
                    "aws_external_id",
                    "aws_web_identity_token",
                    "api_base",
                    "aws_sts_endpoint",
                    "litellm_credential_name",
                    "master_key",
                    "redis_password",
                    "database_url",
                    "unknown",
                ):
                    try:
                        settings = self.load(key % (name, secret))
                    except ConfigError as error:
                        text = str(error) + repr(error)
                    else:
                        text = repr(settings) + summary(settings)
                    self.assertNotIn(secret.strip("'"), text)

    def test_misplaced(self) -> None:
        """Keys that look like keys are not shown even in the wrong place."""
        for secret in self.secrets[:3] + self.secrets[4:5]:
            for key in ("connect_timeout", "on_disconnect", "route_prefix", "allow_no_key"):
                error = self.assertRaises(
                    ConfigError, self.load, f"general_settings: {{{key}: '{secret} '}}"
                )
                self.assertNotIn(secret, str(error))

    def test_broken_yaml(self) -> None:
        """Not in a message about YAML that is broken at a secret."""
        for value in (
            "*planted-secret",
            "!planted-secret x",
            "!planted-secret!x y",
            "&planted-secret",
            "'planted-secret",
            '"planted-secret\\q"',
            "planted-secret: x",
            "@planted-secret",
            "%planted-secret",
            "[planted-secret",
            "{planted-secret",
            "|planted-secret",
        ):
            try:
                settings = self.load(f"general_settings:\n  master_key: {value}\n")
            except ConfigError as error:
                text = str(error)
            else:
                text = repr(settings) + summary(settings)  # An anchor without a value.
            self.assertNotIn("planted-secret", text, value)

    def test_environment(self) -> None:
        """Not in a message about a variable that is wrong."""
        for name in (
            "AWS_REGION_NAME",
            "AWS_ROLE_NAME",
            "AWS_SESSION_NAME",
            "AWS_STS_ENDPOINT",
            "AWS_BEDROCK_RUNTIME_ENDPOINT",
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_BEDROCK",
            "AWS_USE_FIPS_ENDPOINT",
            "AWS_CA_BUNDLE",
            "SSL_VERIFY",
            "LITELLM_MASTER_KEY",
        ):
            environ = {"AWS_REGION": "us-east-1", "AWS_ROLE_NAME": ROLE, name: "planted/ secret"}
            try:
                settings = default_settings(environ)
            except ConfigError as error:
                self.assertNotIn("planted", str(error))
            else:
                self.assertNotIn("planted", repr(settings) + summary(settings))


class SummaryTests(ConfigCase):
    """What ``--check`` prints."""

    def test_summary(self) -> None:
        """Models, where they are served from and with which credentials, and the rest."""
        settings = self.load(
            """
            model_list:
              - model_name: claude
                litellm_params:
                  model: bedrock/us.anthropic.claude
                  aws_region_name: us-west-2
                  aws_profile_name: dev
                model_info: {id: one}
              - model_name: claude
                litellm_params:
                  model: bedrock/us.anthropic.claude
                  aws_region_name: eu-central-1
                  api_base: http://localhost:8080
                model_info: {id: second}
            router_settings:
              debug_level: INFO
              model_group_alias: {sonnet: claude}
            general_settings:
              master_key: sk-1234
              use_fips_endpoint: true
              endpoint_urls: {bedrock-agent: "https://agent.example"}
            """,
            {"AWS_REGION_NAME": "us-east-1"},
        )
        self.assertEqual(
            self.plain(summary(settings)),
            dedent(
                """\
                Models
                  claude
                    one     us.anthropic.claude  us-west-2     AWS profile 'dev'
                    second  us.anthropic.claude  eu-central-1  the AWS credential chain  at http://localhost:8080
                  sonnet -> claude

                Direct routes, and model ids of Bedrock's own
                  us-east-1  the AWS credential chain

                Endpoints other than AWS's own
                  bedrock-agent  https://agent.example

                General
                  route prefix  /bedrock
                  master key    set
                  endpoints     FIPS

                Notices
                  config.yaml:16: router_settings.debug_level: has no effect in this version
                """
            ),
        )

    def test_without_anything(self) -> None:
        """Nothing is configured: what will not work is said."""
        self.assertEqual(
            summary(default_settings({})),
            dedent(
                """\
                Models: none configured

                Direct routes, and model ids of Bedrock's own: not served (no region)

                General
                  route prefix  /bedrock
                  master key    not set

                Notices
                """
            )
            + "  environment: AWS_REGION_NAME: is not set, so requests that name no model of "
            "model_list cannot be served\n",
        )

    def test_certificates(self) -> None:
        """Unusual settings for TLS and for keys are shown."""
        settings = Settings(verify_tls=False, allow_no_key=True, use_dualstack=True)
        text = summary(settings)
        self.assertIn("certificates  not verified", text)
        self.assertIn("master key    not set, and all may call", text)
        self.assertIn("endpoints     dual-stack", text)
        self.assertIn("verified against /x.pem", summary(Settings(ca_bundle="/x.pem")))
