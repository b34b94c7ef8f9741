"""Tests for :mod:`txbedrock.core.grantfields`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from txbedrock.core.budgets import Duration
from txbedrock.core.grantfields import (
    BadFields,
    key_from_config,
    key_secret,
    later,
    many,
    read,
    roster,
    shown,
    shown_member,
    text,
)
from txbedrock.core.grants import (
    Budget,
    Customer,
    Key,
    KeyType,
    Limits,
    Member,
    ModelLimits,
    Permissions,
    Role,
    Tag,
    Team,
    Token,
    User,
)
from txbedrock.core.money import PICO

HASH = "ab" * 32


def at(text: str) -> int:
    """Microseconds of an ISO time."""
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1_000_000


NOW = at("2026-11-30T12:00:00")
DAY_US = 86_400_000_000

# Field, as it is sent, where it goes, as it is kept, as it is shown.
KEY_FIELDS: list[tuple[str, object, str, object, object]] = [
    ("key_alias", "prod", "alias", "prod", "prod"),
    ("user_id", "u@x.example", "user_id", "u@x.example", "u@x.example"),
    ("team_id", "t", "team_id", "t", "t"),
    ("budget_id", "b", "budget_id", "b", "b"),
    ("key_type", "read_only", "type", KeyType.READ_ONLY, "read_only"),
    ("tags", ["a", "b", "a"], "tags", ("a", "b"), ["a", "b"]),
    ("aliases", {"mine": "haiku"}, "aliases", {"mine": "haiku"}, {"mine": "haiku"}),
    ("metadata", {"a": [1, Decimal("1.5"), None]}, "metadata", {"a": [1, 1.5, None]},
     {"a": [1, 1.5, None]}),
    ("blocked", True, "blocked", True, True),
    ("models", ["haiku", "anthropic.*"], "permissions.models", ("haiku", "anthropic.*"),
     ["haiku", "anthropic.*"]),
    ("allowed_routes", ["/bedrock/*", "info_routes"], "permissions.allowed_routes",
     ("/bedrock/*", "info_routes"), ["/bedrock/*", "info_routes"]),
    ("operations", ["bedrock:Converse*", "*"], "permissions.operations",
     ("bedrock:Converse*", "*"), ["bedrock:Converse*", "*"]),
    ("denied_operations", ["bedrock:Delete*"], "permissions.denied_operations",
     ("bedrock:Delete*",), ["bedrock:Delete*"]),
    ("allowed_ips", ["10.0.0.0/8", "::1"], "permissions.allowed_ips", ("10.0.0.0/8", "::1"),
     ["10.0.0.0/8", "::1"]),
    ("max_budget", Decimal("0.1"), "limits.max_budget", PICO // 10, Decimal("0.1")),
    ("soft_budget", 2, "limits.soft_budget", 2 * PICO, Decimal("2.0")),
    ("budget_duration", "30d", "limits.budget_duration", "30d", "30d"),
    ("rpm_limit", 0, "limits.rpm", 0, 0),
    ("tpm_limit", Decimal("100000.0"), "limits.tpm", 100_000, 100_000),
    ("max_parallel_requests", 3, "limits.max_parallel", 3, 3),
    ("model_rpm_limit", {"haiku": 5}, "limits.models", {"haiku": ModelLimits(rpm=5)},
     {"haiku": 5}),
    ("model_tpm_limit", {"haiku": 5}, "limits.models", {"haiku": ModelLimits(tpm=5)},
     {"haiku": 5}),
    ("model_max_budget", {"haiku": 1, "nova": {"budget_limit": 2, "time_period": "1d"}},
     "limits.models",
     {"haiku": ModelLimits(max_budget=PICO),
      "nova": ModelLimits(max_budget=2 * PICO, budget_duration="1d")},
     {"haiku": {"budget_limit": Decimal("1.0"), "time_period": None},
      "nova": {"budget_limit": Decimal("2.0"), "time_period": "1d"}}),
    ("temp_budget_expiry", "2026-12-24", "limits.budget_increase_until_us", at("2026-12-24"),
     "2026-12-24T00:00:00Z"),
    ("temp_budget_expiry", "7d", "limits.budget_increase_until_us", NOW + 7 * DAY_US,
     "2026-12-07T12:00:00Z"),
]  # fmt: skip

AMOUNT = "an amount in US dollars, 0 to 1000000000, with at most 12 decimals"
COUNT = "a whole number from 0 to 1000000000000"
PERIOD = "expected a number and a unit: 30s"

# Field, what is wrong, where, and what is said.
BAD: list[tuple[str, object, str, str]] = [
    ("max_budget", "10", "max_budget", f"found text, expected {AMOUNT}"),
    ("max_budget", -1, "max_budget", f"found a number, expected {AMOUNT}"),
    ("max_budget", True, "max_budget", f"found true or false, expected {AMOUNT}"),
    ("max_budget", Decimal("NaN"), "max_budget", AMOUNT),
    ("max_budget", float("inf"), "max_budget", AMOUNT),
    ("max_budget", Decimal("1e-13"), "max_budget", AMOUNT),
    ("max_budget", Decimal("0.0000000000001"), "max_budget", AMOUNT),
    ("max_budget", Decimal("1e999999999"), "max_budget", AMOUNT),
    ("max_budget", Decimal("1." + "0" * 50), "max_budget", AMOUNT),
    ("max_budget", 10**9 + 1, "max_budget", AMOUNT),
    ("max_budget", [1], "max_budget", "found a list"),
    ("rpm_limit", 1.5, "rpm_limit", f"found a number, expected {COUNT}"),
    ("rpm_limit", -1, "rpm_limit", COUNT),
    ("rpm_limit", Decimal("1e99999999"), "rpm_limit", COUNT),
    ("tpm_limit", "5", "tpm_limit", f"found text, expected {COUNT}"),
    ("budget_duration", "1 day", "budget_duration", PERIOD),
    ("budget_duration", 30, "budget_duration", "found a number, expected one line of text"),
    ("duration", "30", "duration", PERIOD),
    ("models", "haiku", "models", "found text, expected a list of at most 1000"),
    ("models", ["a", 1, ""], "models[1]", "found a number"),
    ("models", ["a", 1, ""], "models[2]", "is no name of a model"),
    ("aliases", ["a"], "aliases", "found a list, expected an object"),
    ("aliases", {"a": 1}, "aliases.a", "found a number"),
    ("aliases", {"sk-planted": 1}, "aliases.(a name that is not shown)", "found a number"),
    ("tags", ["a,b"], "tags[0]", "a tag without a comma"),
    ("key_alias", "sk-planted-secret", "key_alias", "neither begins with sk-"),
    ("key_alias", HASH, "key_alias", "nor is a SHA-256"),
    ("key_alias", "two\nlines", "key_alias", "one line of text"),
    ("user_id", " u", "user_id", "does not begin or end with a space"),
    ("user_id", "x" * 257, "user_id", "at most 256 characters"),
    ("blocked", "true", "blocked", "found text, expected true or false"),
    ("key_type", "admin", "key_type", "one of default, llm_api, management, read_only"),
    ("allowed_ips", ["10.0.0.0/99"], "allowed_ips[0]", "neither an IP address"),
    ("allowed_routes", ["key/info"], "allowed_routes[0]", "is no route"),
    ("operations", ["Converse"], "operations[0]", "is no pattern of operations"),
    ("denied_operations", ["sk-planted-secret"], "denied_operations[0]",
     "found what looks like a key"),
    ("model_max_budget", {"m": {"limit": 1}}, "model_max_budget.m.limit", "unknown field"),
    ("model_max_budget", {"m": {}}, "model_max_budget.m.budget_limit", "found null"),
    ("model_max_budget", {"m": {"budget_limit": 1, "time_period": "x"}},
     "model_max_budget.m.time_period", PERIOD),
    ("model_rpm_limit", {"m": -1}, "model_rpm_limit.m", COUNT),
    ("temp_budget_expiry", "soon", "temp_budget_expiry", "or a duration from now such as 7d"),
    ("metadata", [], "metadata", "found a list, expected an object"),
    ("metadata", {"a": "\0"}, "metadata", "text without NUL"),
    ("metadata", {"a": "\ud800"}, "metadata", "halves of surrogate pairs"),
    ("metadata", {"a": 2**64}, "metadata", "a number that a computer can hold"),
    ("metadata", {"a": Decimal("1e400")}, "metadata", "a number that a computer can hold"),
    ("metadata", {"a": "x" * 70_000}, "metadata", "at most 65536 bytes"),
    ("max_buget", 1, "max_buget", "unknown field; did you mean max_budget?"),
    ("sk-planted-secret", 1, "(a name that is not shown)", "unknown field"),
    ("guardrails", ["pii"], "guardrails", "has no meaning for a key in this gateway"),
    ("organization_id", "o", "organization_id", "has no meaning for a key in this gateway"),
]  # fmt: skip


def value_at(grant: object, path: str) -> object:
    for name in path.split("."):
        grant = getattr(grant, name)
    return grant


def flat(struct: msgspec.Struct, prefix: str = "") -> dict[str, object]:
    """All values by their paths."""
    found: dict[str, object] = {}
    for name, value in msgspec.structs.asdict(struct).items():
        if isinstance(value, msgspec.Struct):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def applied(grant: Any, now: int = NOW, **fields: object) -> Any:
    return read(type(grant), fields).changes.apply(grant, now)


class FieldTests(SynchronousTestCase):
    """Each field of a key."""

    def test_where_they_go(self) -> None:
        """It goes to one place, changes nothing else, and is shown as LiteLLM shows it."""
        for name, sent, path, kept, as_shown in KEY_FIELDS:
            key = applied(Key(id=HASH), **{name: sent})
            self.assertEqual(value_at(key, path), kept, name)
            self.assertEqual(shown(key)[name], as_shown, name)
            # What is sent as it was shown changes nothing.
            again = applied(key, **{name: as_shown})
            self.assertEqual(again, key, name)
            expected, found = {**flat(Key(id=HASH)), path: kept}, flat(key)
            if found["limits.budget_start_us"]:
                self.assertIn("budget", name)
                expected["limits.budget_start_us"] = NOW
            self.assertEqual(found, expected, name)

    def test_all_at_once(self) -> None:
        """All of them are applied together, and the answer is JSON."""
        fields = {name: sent for name, sent, _, _, _ in KEY_FIELDS}
        key = applied(Key(id=HASH), temp_budget_increase=5, duration="1mo", **fields)
        for name, sent, path, kept, as_shown in KEY_FIELDS:
            if path != "limits.models" and fields[name] is sent:
                self.assertEqual(value_at(key, path), kept, name)
                self.assertEqual(shown(key)[name], as_shown, name)
        self.assertEqual(
            key.limits.models,
            {
                "haiku": ModelLimits(rpm=5, tpm=5, max_budget=PICO),
                "nova": ModelLimits(max_budget=2 * PICO, budget_duration="1d"),
            },
        )
        self.assertEqual(key.limits.budget_increase, 5 * PICO)
        self.assertEqual(shown(key)["expires"], "2026-12-30T12:00:00Z")
        text = msgspec.json.Encoder(decimal_format="number").encode(shown(key))
        self.assertEqual(json.loads(text)["max_budget"], 0.1)
        self.assertEqual(msgspec.json.decode(msgspec.json.encode(key), type=Key), key)

    def test_bad(self) -> None:
        """What is wrong is refused, with the field, what was found and what is expected."""
        for name, sent, where, said in BAD:
            error = self.assertRaises(BadFields, read, Key, {name: sent})
            reasons = {problem.field: problem.reason for problem in error.problems}
            self.assertIn(said, reasons[where], (name, sent))
            self.assertNotIn("planted", str(error), name)

    def test_all_problems(self) -> None:
        """Everything that is wrong is said at once."""
        names = sorted({name for name, _, _, _ in BAD})
        fields = {name: sent for name, sent, _, _ in BAD}
        error = self.assertRaises(BadFields, read, Key, {**fields, "team_id": "fine"})
        found = {problem.field.split(".")[0].split("[")[0] for problem in error.problems}
        self.assertEqual(len(found), len(names))
        self.assertNotIn("team_id", found)

    def test_ask_for_nothing(self) -> None:
        """LiteLLM's other fields may be there as long as they ask for nothing."""
        for name in ("guardrails", "config", "permissions", "spend", "send_invite_email"):
            for empty in (None, [], {}, 0, False, ""):
                self.assertEqual(list(read(Key, {name: empty}).changes), [])

    def test_null(self) -> None:
        """Null takes away limits, budgets and ends, and leaves everything else as it is."""
        fields = {name: sent for name, sent, _, _, _ in KEY_FIELDS}
        full = applied(Key(id=HASH), temp_budget_increase=5, duration="7d", **fields)
        cleared = applied(full, **dict.fromkeys([*fields, "temp_budget_increase", "duration"]))
        self.assertEqual(cleared.limits, Limits(budget_start_us=NOW))
        self.assertEqual((cleared.expires_us, cleared.budget_id), (0, ""))
        self.assertEqual(
            msgspec.structs.replace(cleared, limits=full.limits, expires_us=full.expires_us,
                                    budget_id="b"),
            full,
        )  # fmt: skip

    def test_empty(self) -> None:
        """Lists and texts are taken away with what is empty."""
        fields = {name: sent for name, sent, _, _, _ in KEY_FIELDS}
        full = applied(Key(id=HASH), **fields)
        emptied = applied(full, models=[], operations=[], denied_operations=[], allowed_ips=[],
                          allowed_routes=[], key_alias="", user_id="", team_id="", budget_id="",
                          tags=[], aliases={}, metadata={})  # fmt: skip
        self.assertEqual(emptied.permissions, Permissions())
        self.assertEqual(
            (emptied.alias, emptied.user_id, emptied.team_id, emptied.budget_id, emptied.tags),
            ("", "", "", "", ()),
        )

    def test_models_are_merged(self) -> None:
        """Limits of models by one field leave those by another as they are."""
        key = applied(Key(id=HASH), model_rpm_limit={"a": 1, "b": 2}, model_tpm_limit={"a": 9})
        key = applied(key, model_rpm_limit={"b": 3})
        self.assertEqual(key.limits.models, {"a": ModelLimits(tpm=9), "b": ModelLimits(rpm=3)})

    def test_keys_of_ones_own(self) -> None:
        """A secret that somebody has thought of is long enough, and fits everywhere."""
        self.assertEqual(key_secret("sk-0123456789abc"), "sk-0123456789abc")
        for bad in ("sk-012345678901", "xx-0123456789abcdef", "sk-0123456789 abcdef", 5, None,
                    "sk-0123456789,abcdef", "sk-0123456789/abcdef", "sk-ü123456789abcdef",
                    "sk-" + "x" * 300, "SK-0123456789abcdef"):  # fmt: skip
            error = self.assertRaises(BadFields, key_secret, bad)
            self.assertNotIn("0123", str(error))


class MoneyTests(SynchronousTestCase):
    """US dollars as they are sent -> pico-USD."""

    def test_known(self) -> None:
        """Exactly what was written."""
        for sent, kept in [
            (0, 0), (Decimal("-0"), 0), (10, 10 * PICO), (Decimal("0.1"), 10**11),
            (0.1, 10**11), (0.3, 3 * 10**11), (1e-12, 1), (Decimal("1E-12"), 1),
            (Decimal("1e9"), 10**21), (Decimal("0.100000000000000"), 10**11),
            (Decimal("123456.789012345678"), 123456789012345678),
        ]:  # fmt: skip
            key = applied(Key(id=HASH), max_budget=sent)
            self.assertEqual(key.limits.max_budget, kept, sent)

    @given(st.integers(0, 10**21))
    def test_there_and_back(self, pico: int) -> None:
        """Every amount comes back as it went, by way of JSON."""
        key = Key(id=HASH, limits=Limits(max_budget=pico))
        sent = msgspec.json.Encoder(decimal_format="number").encode(shown(key)["max_budget"])
        again = applied(Key(id=HASH), max_budget=json.loads(sent, parse_float=Decimal))
        self.assertEqual(again.limits.max_budget, pico)


class TimeTests(SynchronousTestCase):
    """Ends and beginnings."""

    def test_duration(self) -> None:
        """A key's end is so long from now; -1 and null are never."""
        key = applied(Key(id=HASH), duration="30d")
        self.assertEqual(key.expires_us, NOW + 30 * DAY_US)
        for never in ("-1", None):
            self.assertEqual(applied(key, duration=never).expires_us, 0)

    def test_later(self) -> None:
        """Months are those of the calendar; one that is too short gives its last day."""
        for start, months, end in [
            ("2026-11-30T12:00:00", 1, "2026-12-30T12:00:00"),
            ("2026-12-31", 2, "2027-02-28"),
            ("2027-12-31", 2, "2028-02-29"),
            ("2026-01-15", 12, "2027-01-15"),
        ]:
            self.assertEqual(later(at(start), Duration(months=months)), at(end), start)
        self.assertEqual(later(5, Duration(7)), 12)

    def test_when_a_budget_begins(self) -> None:
        """With its first amount, and anew with another duration; never otherwise."""
        key = applied(Key(id=HASH), rpm_limit=1, budget_duration="1d")
        self.assertEqual(key.limits.budget_start_us, 0)
        key = applied(key, max_budget=1)
        self.assertEqual(key.limits.budget_start_us, NOW)
        same = applied(key, NOW + 5, max_budget=2, budget_duration="1d", soft_budget=1)
        self.assertEqual(same.limits.budget_start_us, NOW)
        other = applied(same, NOW + 9, budget_duration="7d")
        self.assertEqual(other.limits.budget_start_us, NOW + 9)
        anew = applied(applied(other, max_budget=None, soft_budget=None), NOW + 20, max_budget=3)
        self.assertEqual(anew.limits.budget_start_us, NOW + 20)
        of_model = applied(Key(id=HASH), model_max_budget={"m": 1})
        self.assertEqual(of_model.limits.budget_start_us, NOW)
        team = applied(Team(id="t"), team_member_budget=1, team_member_budget_duration="1d")
        self.assertEqual(team.member_limits.budget_start_us, NOW)
        self.assertEqual(team.limits, Limits())

    def test_increase_needs_an_end(self) -> None:
        """A budget is not increased for ever by mistake."""
        changes = read(Key, {"temp_budget_increase": 5}).changes
        error = self.assertRaises(BadFields, changes.apply, Key(id=HASH), NOW)
        self.assertIn("temp_budget_expiry", str(error))
        key = applied(Key(id=HASH), temp_budget_increase=5, temp_budget_expiry="1d")
        self.assertEqual(applied(key, temp_budget_increase=6).limits.budget_increase, 6 * PICO)


class KindTests(SynchronousTestCase):
    """The other kinds."""

    def test_kinds(self) -> None:
        """What each kind takes, and how it is shown."""
        for grant, sent, path, kept in [
            (User(id="u"), {"user_role": "proxy_admin_viewer"}, "role", Role.PROXY_ADMIN_VIEWER),
            (User(id="u"), {"user_email": "a@b"}, "email", "a@b"),
            (User(id="u"), {"user_alias": "Ann"}, "alias", "Ann"),
            (User(id="u"), {"models": ["m"]}, "permissions.models", ("m",)),
            (Team(id="t"), {"team_alias": "Ops"}, "alias", "Ops"),
            (Team(id="t"), {"model_aliases": {"a": "b"}}, "aliases", {"a": "b"}),
            (Team(id="t"), {"team_member_budget": 1}, "member_limits.max_budget", PICO),
            (Team(id="t"), {"team_member_rpm_limit": 2}, "member_limits.rpm", 2),
            (Team(id="t"), {"team_member_tpm_limit": 2}, "member_limits.tpm", 2),
            (Customer(id="c"), {"alias": "Corp"}, "alias", "Corp"),
            (Customer(id="c"), {"blocked": True}, "blocked", True),
            (Budget(id="b"), {"max_budget": 1}, "limits.max_budget", PICO),
            (Tag(id="x"), {"description": "d"}, "description", "d"),
            (Tag(id="x"), {"rpm_limit": 1}, "limits.rpm", 1),
            (Member(user_id="u"), {"max_budget_in_team": 1}, "limits.max_budget", PICO),
            (Member(user_id="u"), {"role": "admin"}, "role", "admin"),
        ]:  # fmt: skip
            changed = applied(grant, **sent)
            self.assertEqual(value_at(changed, path), kept, sent)
            if not isinstance(changed, Member):
                [(name, value)] = sent.items()
                self.assertEqual(shown(changed)[name], value)

    def test_not_theirs(self) -> None:
        """What means something elsewhere is refused where it means nothing."""
        for kind, name, value in [
            (Tag, "models", ["m"]),
            (Customer, "allowed_routes", ["/x"]),
            (Budget, "metadata", {"a": 1}),
            (Budget, "budget_id", "b"),
            (User, "team_id", "t"),
            (Team, "user_id", "u"),
            (Key, "team_member_budget", 1),
        ]:
            error = self.assertRaises(BadFields, read, kind, {name: value})
            self.assertEqual([problem.field for problem in error.problems], [name])

    def test_ids(self) -> None:
        """Each is shown with its id, by the name that LiteLLM has for it."""
        for grant, name in [
            (Key(id=HASH), "token"),
            (User(id="x"), "user_id"),
            (Team(id="x"), "team_id"),
            (Customer(id="x"), "user_id"),
            (Budget(id="x"), "budget_id"),
            (Tag(id="x"), "name"),
        ]:
            self.assertEqual(shown(grant)[name], grant.id)

    def test_roster(self) -> None:
        """Members of a team, each once, each with a role."""
        members = roster([{"user_id": "a", "role": "admin"}, {"user_id": "b"}])
        self.assertEqual(members, (Member(user_id="a", role="admin"), Member(user_id="b")))
        team = Team(id="t", members=members)
        self.assertEqual(
            shown(team)["members_with_roles"],
            [{"user_id": "a", "role": "admin"}, {"user_id": "b", "role": "user"}],
        )
        for bad, where, said in [
            ([{"user_id": "a"}, {"user_id": "a", "role": "admin"}], "", "each user is once"),
            ([{"role": "admin"}], "[0].user_id", "is missing"),
            ([{"user_id": "a", "role": "boss"}], "[0].role", "one of admin, user"),
            ([{"user_id": "a", "user_email": "e"}], "[0].user_email", "has no meaning"),
            (["a"], "[0]", "an object such as"),
            ("a", "", "a list"),
        ]:
            error = self.assertRaises(BadFields, roster, bad)
            self.assertEqual(error.problems[0].field, where)
            self.assertIn(said, str(error))

    def test_member(self) -> None:
        """A member is shown with what it may spend."""
        member = applied(Member(user_id="a"), max_budget_in_team=Decimal("1.5"), rpm_limit=2)
        self.assertEqual(
            shown_member(member),
            {
                "user_id": "a", "role": "user", "max_budget_in_team": Decimal("1.5"),
                "budget_duration": None, "rpm_limit": 2, "tpm_limit": None,
                "max_parallel_requests": None,
            },
        )  # fmt: skip


class FormTests(SynchronousTestCase):
    """Fields that say what is to be done."""

    def test_others(self) -> None:
        """They come beside those of the grant, and some must be there."""
        others = {"key": text, "keys": many(text)}
        form = read(Key, {"key": "k", "keys": ["a", "a"], "rpm_limit": 1}, others)
        self.assertEqual(
            (form["key"], form["keys"], list(form.changes)), ("k", ("a",), ["rpm_limit"])
        )
        self.assertEqual(read(None, {"key": None}, others).get("key", "x"), "x")
        for fields in ({}, {"key": None}):
            error = self.assertRaises(BadFields, read, None, fields, others, required=("key",))
            self.assertEqual(str(error), "key: is missing")
        error = self.assertRaises(BadFields, read, None, {"kye": "k"}, others)
        self.assertEqual(str(error), "kye: unknown field; did you mean key?")

    def test_no_secrets_in_repr(self) -> None:
        """What was sent is not in anybody's log by accident."""
        form = read(Key, {"key": "sk-planted", "key_alias": "planted"}, {"key": text})
        self.assertNotIn("planted", repr(form))


class ConfigTests(SynchronousTestCase):
    """``virtual_keys`` of config.yaml."""

    def test_key(self) -> None:
        """A hash and the fields of a key, as YAML gives them."""
        key = key_from_config(
            {
                "key_hash": HASH.upper(),
                "key_alias": "ci",
                "models": ["haiku"],
                "max_budget": 2.5,
                "budget_duration": "1mo",
                "expires": "2027-01-01",
                "temp_budget_increase": 1,
                "temp_budget_expiry": "2026-12-31T00:00:00Z",
                "metadata": {"a": 1.5},
            }
        )
        self.assertEqual(
            key,
            Key(
                id=HASH,
                tokens=(Token(hash=HASH),),
                alias="ci",
                expires_us=at("2027-01-01"),
                permissions=Permissions(models=("haiku",)),
                limits=Limits(
                    max_budget=PICO * 5 // 2,
                    budget_duration="1mo",
                    budget_increase=PICO,
                    budget_increase_until_us=at("2026-12-31"),
                ),
                metadata={"a": 1.5},
            ),
        )

    def test_bad(self) -> None:
        """Everything that is wrong, with its field; nothing that counts from now on."""
        error = self.assertRaises(
            BadFields,
            key_from_config,
            {"duration": "1d", "temp_budget_expiry": "1d", "rpm_limit": "x", "expires": "x"},
        )
        self.assertEqual(
            [problem.field for problem in error.problems],
            ["duration", "temp_budget_expiry", "rpm_limit", "expires", "key_hash"],
        )
        for bad in ("sk-planted-secret", "ab", 5, None):
            error = self.assertRaises(BadFields, key_from_config, {"key_hash": bad})
            self.assertEqual([problem.field for problem in error.problems], ["key_hash"])
            self.assertNotIn("planted", str(error))
