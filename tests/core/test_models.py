"""
The names that clients use, and what serves each.
"""

from __future__ import annotations

from dataclasses import replace

from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.deployments import Deployment
from txbedrock.core.models import Models, arn_region, bare_id, is_region
from txbedrock.errors import InvalidRequest, UnknownModel

ARN = "arn:aws:bedrock:eu-west-1:123456789012:application-inference-profile/a1b2"
GLOBAL_ARN = "arn:aws:bedrock:::foundation-model/x.y"


def deployment(name: str, model_id: str, region: str = "us-west-2", id: str = "d") -> Deployment:
    return Deployment(id=id, model_name=name, model_id=model_id, region=region)


DEFAULT = replace(deployment("", "*", "us-east-1", "default"), region_from_model=True)


def resolved(models: Models, label: str) -> list[tuple[str, str, str, str]]:
    """A resolution as (group, deployment, model id, region) for each choice."""
    found = models.resolve(label)
    return [
        (found.model_name, choice.deployment.id, choice.model_id, choice.region)
        for choice in found.choices
    ]


class ExactTests(SynchronousTestCase):
    """Names of model groups and their aliases."""

    models = Models(
        [
            deployment("claude", "us.anthropic.claude", "us-west-2", "one"),
            deployment("nova", "us.amazon.nova-lite-v1:0", "us-west-2", "nova"),
            deployment("claude", ARN, "eu-west-1", "two"),
            deployment("team a/modèle: 1", "x.y", "us-west-2", "odd"),
            deployment("us.amazon.nova-pro-v1:0", "eu.amazon.nova-pro-v1:0", "eu-west-1", "pro"),
        ],
        {
            "sonnet": "claude",
            "best": "sonnet",
            "nova": "claude",
            "loop": "pool",
            "pool": "loop",
            "raw": "us.amazon.nova-micro-v1:0",
            "lost": "nowhere",
        },
        DEFAULT,
    )

    def test_group(self) -> None:
        """A name stands for all deployments that have it, in their order."""
        self.assertEqual(
            resolved(self.models, "claude"),
            [
                ("claude", "one", "us.anthropic.claude", "us-west-2"),
                ("claude", "two", ARN, "eu-west-1"),
            ],
        )

    def test_any_characters(self) -> None:
        """A name may hold slashes, colons, spaces and letters beyond ASCII."""
        self.assertEqual(
            resolved(self.models, "team a/modèle: 1"),
            [("team a/modèle: 1", "odd", "x.y", "us-west-2")],
        )

    def test_name_before_raw_id(self) -> None:
        """A name that is also an id of Bedrock's means the configured model."""
        self.assertEqual(
            resolved(self.models, "us.amazon.nova-pro-v1:0"),
            [("us.amazon.nova-pro-v1:0", "pro", "eu.amazon.nova-pro-v1:0", "eu-west-1")],
        )

    def test_aliases(self) -> None:
        """An alias is served as what it stands for, also through another alias."""
        claude = resolved(self.models, "claude")
        self.assertEqual(resolved(self.models, "sonnet"), claude)
        self.assertEqual(resolved(self.models, "best"), claude)

    def test_name_before_alias(self) -> None:
        """A group is not hidden by an alias of the same name."""
        self.assertEqual(resolved(self.models, "nova")[0][0], "nova")

    def test_alias_of_raw_id(self) -> None:
        """An alias may stand for an id of Bedrock's own."""
        self.assertEqual(
            resolved(self.models, "raw"),
            [("", "default", "us.amazon.nova-micro-v1:0", "us-east-1")],
        )

    def test_dead_aliases(self) -> None:
        """Aliases that lead nowhere, or in a circle, are unknown names."""
        for label in ("loop", "pool", "lost"):
            self.assertRaises(UnknownModel, self.models.resolve, label)

    def test_prepared(self) -> None:
        """Nothing is built when a configured name is used."""
        self.assertIs(self.models.resolve("claude"), self.models.resolve("claude"))
        self.assertIs(self.models.resolve("claude"), self.models.resolve("best"))


class WildcardTests(SynchronousTestCase):
    """Names with a ``*``."""

    def test_table(self) -> None:
        """
        ``bedrock/*`` takes ids with and without ``bedrock/``; no prefix of
        LiteLLM's ever goes to Bedrock.
        """
        models = Models([deployment("bedrock/*", "*")], {}, None)
        nova = "us.amazon.nova-lite-v1:0"
        for label, model_id in [
            (nova, nova),
            (f"bedrock/{nova}", nova),
            (f"bedrock/converse/{nova}", nova),
            (f"bedrock/invoke/{nova}", nova),
            (f"bedrock/eu-central-1/{nova}", nova),
            (f"bedrock/us-gov-west-1/1-month-commitment/{nova}", nova),
            (f"converse/{nova}", nova),
            (ARN, ARN),
            (f"bedrock/{ARN}", ARN),
            (f"bedrock/converse/{ARN}", ARN),
            (f"bedrock/llama/{ARN}", ARN),
            ("bedrock/mymodel", "mymodel"),
        ]:
            self.assertEqual(
                resolved(models, label), [("bedrock/*", "d", model_id, "us-west-2")], label
            )

    def test_misspelled_name(self) -> None:
        """A plain word is not an id of Bedrock's: ``bedrock/*`` does not take it."""
        models = Models([deployment("bedrock/*", "*")], {}, DEFAULT)
        self.assertRaises(UnknownModel, models.resolve, "cluade")

    def test_everything(self) -> None:
        """``*`` takes any name."""
        models = Models([deployment("*", "us.anthropic.*")], {}, None)
        for label in ("claude-x", "bedrock/claude-x", "bedrock/converse/claude-x"):
            self.assertEqual(resolved(models, label)[0][2], "us.anthropic.claude-x")

    def test_filled(self) -> None:
        """What ``*`` stands for takes the place of the ``*`` in the model's id."""
        for name, model_id, label, expected in [
            ("claude-*", "us.anthropic.claude-*", "claude-opus-4", "us.anthropic.claude-opus-4"),
            ("*-eu", "eu.*", "amazon.nova-eu", "eu.amazon.nova"),
            ("a-*-z", "x.*:0", "a-m-z", "x.m:0"),
            ("any-*", "us.amazon.nova-lite-v1:0", "any-thing", "us.amazon.nova-lite-v1:0"),
            ("bedrock/us.anthropic.*", "us.anthropic.*", "us.anthropic.c", "us.anthropic.c"),
            (
                "bedrock/us.anthropic.*",
                "us.anthropic.*",
                "bedrock/us.anthropic.c",
                "us.anthropic.c",
            ),
        ]:
            models = Models([deployment(name, model_id)], {}, None)
            self.assertEqual(resolved(models, label)[0][2], expected)

    def test_no_overlap(self) -> None:
        """What stands before the ``*`` and behind it are two parts of a name."""
        models = Models([deployment("ab*ba", "x.*")], {}, None)
        self.assertRaises(UnknownModel, models.resolve, "aba")
        self.assertEqual(models.resolve("abba").choices[0].model_id, "x.")

    def test_most_specific(self) -> None:
        """The pattern with the most letters besides its ``*`` is used."""
        models = Models(
            [
                deployment("*", "*", id="any"),
                deployment("bedrock/*", "*", id="bedrock"),
                deployment("us.*", "us.*", id="us"),
                deployment("bedrock/us.anthropic.*", "us.anthropic.*", id="anthropic"),
                deployment("us.anthropic.exact", "x.y", id="exact"),
            ],
            {},
            DEFAULT,
        )
        for label, id in [
            ("us.anthropic.exact", "exact"),
            ("us.anthropic.claude", "anthropic"),
            ("bedrock/us.anthropic.claude", "anthropic"),
            ("us.amazon.nova", "us"),
            ("bedrock/us.amazon.nova", "bedrock"),
            ("eu.amazon.nova", "any"),
            ("my-model", "any"),
        ]:
            self.assertEqual(resolved(models, label)[0][1], id, label)

    def test_group(self) -> None:
        """Several deployments under one pattern serve a name together."""
        models = Models(
            [deployment("bedrock/*", "*", "us-west-2", "a"), deployment("bedrock/*", "*", id="b")],
            {},
            None,
        )
        self.assertEqual([row[1] for row in resolved(models, "x.y")], ["a", "b"])

    def test_region(self) -> None:
        """
        A region that the operator wrote holds; one that is only a default gives
        way to the region in the client's id.
        """
        fixed = deployment("bedrock/*", "*")
        for one, region in ((fixed, "us-west-2"), (replace(fixed, region_from_model=True), "")):
            models = Models([one], {}, None)
            self.assertEqual(resolved(models, ARN)[0][3], region or "eu-west-1")
            self.assertEqual(
                resolved(models, "bedrock/eu-north-1/x.y")[0][3], region or "eu-north-1"
            )
            self.assertEqual(resolved(models, "x.y")[0][3], "us-west-2")


class RawTests(SynchronousTestCase):
    """Ids of Bedrock's own."""

    models = Models([deployment("claude", "us.anthropic.claude")], {}, DEFAULT)

    def test_ids(self) -> None:
        """They go to the default deployment; an ARN to its own region."""
        for label, model_id, region in [
            ("cohere.command-r-v1:0", "cohere.command-r-v1:0", "us-east-1"),
            ("bedrock/cohere.command-r-v1:0", "cohere.command-r-v1:0", "us-east-1"),
            ("bedrock/converse/a.b", "a.b", "us-east-1"),
            ("bedrock/ap-south-1/a.b", "a.b", "ap-south-1"),
            (ARN, ARN, "eu-west-1"),
            (f"bedrock/{ARN}", ARN, "eu-west-1"),
            (GLOBAL_ARN, GLOBAL_ARN, "us-east-1"),
        ]:
            self.assertEqual(
                resolved(self.models, label), [("", "default", model_id, region)], label
            )

    def test_unknown(self) -> None:
        """
        A name nobody has is a 404 that quotes it, shortened, and says what to
        do; it names none of the configured models.
        """
        for label in ("cluade", "", "bedrock/cluade", "no model. at all", "modèle.x", "x.\n"):
            self.assertRaises(UnknownModel, self.models.resolve, label)
        error = self.assertRaises(UnknownModel, self.models.resolve, "cluade")
        self.assertEqual(
            error.message,
            "There is no model named 'cluade' here. Use a model name that this gateway is "
            "configured with, or a model id or ARN of Amazon Bedrock.",
        )
        self.assertEqual((error.status, error.code), (404, "ResourceNotFoundException"))
        long = self.assertRaises(UnknownModel, self.models.resolve, "x" * 5000)
        self.assertIn("'" + "x" * 97 + "...'", long.message)

    def test_no_dot_segments(self) -> None:
        """A name cannot lead to another path of Bedrock's."""
        for models in (self.models, Models([deployment("*", "*")], {}, DEFAULT)):
            for label in (
                ".",
                "..",
                "bedrock/..",
                "../x",
                "/x.y",
                "bedrock/",
                "x.y/z",
                "x/../y.z",
                "arn:aws:bedrock:us-east-1:123456789012:custom-model/../x",
                "arn:aws:bedrock:us-east-1:123456789012:custom-model//x",
                "x" * 2049,
            ):
                self.assertRaises(UnknownModel, models.resolve, label)

    def test_no_foreign_host(self) -> None:
        """What a client puts in the place of a region never becomes part of a host."""
        for region in ("evil.com/", "us-west-2.evil", "x", "US-WEST-2", "us-west-2#", "@evil-1"):
            label = f"arn:aws:bedrock:{region}:123456789012:inference-profile/x"
            error = self.assertRaises(InvalidRequest, self.models.resolve, label)
            self.assertEqual(error.status, 400)

    def test_bounded(self) -> None:
        """Clients that make up ids do not fill the memory."""
        models = Models([], {}, DEFAULT)
        first = models.resolve("x.0")
        self.assertIs(models.resolve("x.0"), first)
        for number in range(3000):
            models.resolve(f"x.{number}")
        self.assertLessEqual(len(models._recent), 1024)
        self.assertIsNot(models.resolve("x.0"), first)

    def test_direct(self) -> None:
        """A request that names no model goes to the default deployment's region."""
        [choice] = self.models.direct().choices
        self.assertEqual((choice.deployment, choice.region), (DEFAULT, "us-east-1"))
        self.assertEqual(choice.model_id, "")

    def test_no_region(self) -> None:
        """
        Without a region for them both are refused, in words for the operator;
        configured names go on to work.
        """
        models = Models([deployment("claude", "us.anthropic.claude")], {}, None)
        error = self.assertRaises(InvalidRequest, models.resolve, "x.y")
        self.assertEqual(
            error.message,
            "The model id 'x.y' cannot be sent to Amazon Bedrock: this gateway has no AWS region "
            "for that. Its operator has to set AWS_REGION_NAME.",
        )
        error = self.assertRaises(InvalidRequest, models.direct)
        self.assertIn("AWS_REGION_NAME", error.message)
        self.assertEqual(resolved(models, "claude")[0][2], "us.anthropic.claude")


class PartTests(SynchronousTestCase):
    """What names and ARNs are made of."""

    def test_bare_id(self) -> None:
        """LiteLLM's prefixes come off, and the region among them is kept."""
        for name, expected in [
            ("x.y", ("x.y", "")),
            ("bedrock/x.y", ("x.y", "")),
            ("bedrock/us-east-1/x.y", ("x.y", "us-east-1")),
            ("bedrock/invoke/us-east-1/x.y", ("x.y", "us-east-1")),
            (ARN, (ARN, "")),
            (f"bedrock/us-east-1/{ARN}", (ARN, "us-east-1")),
            ("bedrock/foo/bar", ("foo/bar", "")),
        ]:
            self.assertEqual(bare_id(name), expected)

    def test_arn_region(self) -> None:
        """The fourth part of an ARN."""
        for model_id, region in [
            (ARN, "eu-west-1"),
            (GLOBAL_ARN, ""),
            ("arn:aws:bedrock", ""),
            ("x.y:z:a:b:c:d", ""),
        ]:
            self.assertEqual(arn_region(model_id), region)

    def test_is_region(self) -> None:
        """Regions of all partitions, and nothing that could not be part of a host."""
        for name in (
            "us-east-1",
            "us-gov-west-1",
            "us-isob-east-1",
            "eusc-de-east-1",
            "cn-north-1",
        ):
            self.assertTrue(is_region(name), name)
        for name in ("", "us", "us-east", "us-east-1.x", "us-east-1\n", "US-EAST-1", "aws-global"):
            self.assertFalse(is_region(name), name)
