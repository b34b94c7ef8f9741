"""
``/key``: what an operator and users do with keys.
"""

from __future__ import annotations

import json
from decimal import Decimal
from hashlib import sha256
from typing import Any

from tests.inbound.management import DAY_US, MASTER, NOW_US, ManagementTestCase
from txbedrock.core.entries import Filters
from txbedrock.core.grants import Key, KeyType, ModelLimits, User
from txbedrock.core.money import PICO
from txbedrock.core.pairs import access_key_id, secret_access_key

OWN = "sk-my-own-secret-0123"
OTHER = "sk-another-secret-4567"


def hashed(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


class LifeTests(ManagementTestCase):
    """A key from its beginning to its end."""

    def test_life(self) -> None:
        """Made, looked at, used, changed, blocked, unblocked, replaced, deleted."""
        made = self.post(
            "/key/generate",
            {
                "models": ["haiku"],
                "duration": "30d",
                "key_alias": "prod",
                "max_budget": 10,
                "budget_duration": "7d",
                "metadata": {"team": "core"},
            },
        )
        secret, token = made["key"], made["token"]
        self.assertRegex(secret, r"^sk-[A-Za-z0-9_-]{43}$")
        self.assertEqual(token, hashed(secret))
        self.assertEqual((made["token_id"], made["key_name"]), (token, f"sk-...{secret[-4:]}"))
        self.assertEqual(made["expires"], "2026-12-30T12:00:00Z")
        self.assertEqual(made["created_at"], "2026-11-30T12:00:00Z")
        self.assertEqual((made["created_by"], made["updated_by"]), ("master_key",) * 2)
        self.assertEqual((made["spend"], made["max_budget"]), (0, 10))
        self.assertEqual(made["budget_reset_at"], "2026-12-07T12:00:00Z")

        self.spend(PICO // 4, key_hash=token)
        info = self.get(f"/key/info?key={secret}")
        self.assertEqual(info["key"], token)
        self.assertEqual(info["info"]["spend"], Decimal("0.25"))
        # Everything that was told at first, but the secret.
        del made["key"]
        self.assertEqual(info["info"], {**made, "spend": Decimal("0.25")})
        self.assertEqual(self.get("/key/info", key=secret), info)
        for name in (token, "prod"):
            self.assertEqual(self.get(f"/key/info?key={name}"), info)

        self.now += 60
        changed = self.post("/key/update", {"key": secret, "max_budget": 20, "rpm_limit": 5})
        self.assertEqual((changed["max_budget"], changed["rpm_limit"]), (20, 5))
        self.assertEqual(changed["models"], ["haiku"])
        self.assertEqual(changed["updated_at"], "2026-11-30T12:01:00Z")
        self.assertEqual(changed["budget_reset_at"], "2026-12-07T12:00:00Z")

        self.assertTrue(self.post("/key/block", {"key": token})["blocked"])
        self.get("/key/info", key=secret, status=403)
        self.assertFalse(self.post("/key/unblock", {"key": secret})["blocked"])
        self.get("/key/info", key=secret)

        new = self.post("/key/regenerate", {"key": secret})
        self.assertEqual((new["token"], new["spend"]), (token, Decimal("0.25")))
        self.assertEqual((new["max_budget"], new["key_alias"]), (20, "prod"))
        self.get("/key/info", key=secret, status=401)
        self.get("/key/info", key=new["key"])
        # Known by its first hash, its new one, its new secret and its name.
        for name in (token, hashed(new["key"]), new["key"], "prod"):
            self.assertEqual(self.get(f"/key/info?key={name}")["key"], token)

        self.assertEqual(
            self.post("/key/delete", {"keys": [new["key"]]}), {"deleted_keys": [token]}
        )
        self.assertIn("not found", self.get(f"/key/info?key={token}", status=404))
        self.get("/key/info", key=new["key"], status=401)
        self.assertEqual(
            [
                (record.action, record.actor.split(" ")[0], record.id)
                for record in self.directory.records
            ],
            [
                (action, "master_key", token)
                for action in ("create", "update", "block", "unblock", "regenerate", "delete")
            ],
        )

    def test_grace(self) -> None:
        """With a time of grace the old secret goes on until then, and no longer."""
        old = self.generate()
        new = self.post("/key/regenerate", {"key": old, "grace_period": "24h"})["key"]
        for secret in (old, new):
            self.get("/key/info", key=secret)
        self.now += 24 * 3600 - 1
        self.get("/key/info", key=old)
        # A second one does not make the first grace longer.
        third = self.post("/key/regenerate", {"key": new, "grace_period": "48h"})["key"]
        self.now += 1
        self.get("/key/info", key=old, status=401)
        for secret in (new, third):
            self.get("/key/info", key=secret)
        # What has ended is forgotten with the next change.
        third = self.post("/key/regenerate", {"key": third, "grace_period": "1h"})["key"]
        self.assertEqual(len(self.key_of(third).tokens), 3)
        # Without one all others end, whatever they were promised.
        last = self.post("/key/regenerate", {"key": new})["key"]
        for secret in (old, new, third):
            self.get("/key/info", key=secret, status=401)
        self.assertEqual(len(self.key_of(last).tokens), 1)

    def test_many_graces(self) -> None:
        """Secrets that still work do not pile up."""
        secret = self.generate()
        for _ in range(7):
            secret = self.post("/key/regenerate", {"key": secret, "grace_period": "1h"})["key"]
        said = self.post("/key/regenerate", {"key": secret, "grace_period": "1h"}, status=400)
        self.assertIn("grace_period: this key has 8 secrets", said)

    def test_by_path(self) -> None:
        """The key may be in the path; it is not in any message."""
        secret = self.generate(key_alias="a b")
        made = self.post(f"/key/{secret}/regenerate", {"new_key": OWN, "rpm_limit": 3})
        self.assertEqual((made["key"], made["rpm_limit"]), (OWN, 3))
        self.post("/key/a%20b/regenerate")
        for path in (
            f"/key/{OWN}",
            f"/key/{OWN}/block",
            f"/key/{OWN}/regenerate/x",
            f"/key/{OTHER}/regenerate",
        ):
            said = self.post(path, status=404)
            self.assertNotIn(OWN, said)
            self.assertNotIn(OTHER, said)

    def test_own_secret(self) -> None:
        """A secret of one's own is taken as it is, once."""
        made = self.post("/key/generate", {"key": OWN})
        self.assertEqual((made["key"], made["key_name"]), (OWN, "sk-...0123"))
        self.get("/key/info", key=OWN)
        said = self.post("/key/generate", {"key": OWN}, status=409)
        self.assertNotIn(OWN, said)
        other = self.generate()
        said = self.post("/key/regenerate", {"key": other, "new_key": OWN}, status=409)
        self.assertNotIn(OWN, said)
        self.get("/key/info", key=other)
        said = self.post("/key/regenerate", {"key": OWN, "new_key": OWN}, status=400)
        self.assertIn("has already", said)
        self.post("/key/generate", {"key": MASTER}, status=409)

    def test_defaults(self) -> None:
        """An empty body makes a key that may do the usual, for ever."""
        for body in (b"", b"{}"):
            answer = self.ask("POST", "/key/generate", body)
            self.assertEqual(answer.status, 200)
            made = answer.json
            self.assertEqual(
                {name: value for name, value in made.items() if value not in (None, [], {})},
                {
                    "key": made["key"],
                    "key_name": made["key_name"],
                    "token": made["token"],
                    "token_id": made["token"],
                    "key_type": "default",
                    "blocked": False,
                    "spend": 0,
                    "created_at": "2026-11-30T12:00:00Z",
                    "created_by": "master_key",
                    "updated_at": "2026-11-30T12:00:00Z",
                    "updated_by": "master_key",
                },
            )

    def test_money_is_exact(self) -> None:
        """What is sent as 0.1 is 0.1, to the last digit, and so are sums."""
        answer = self.ask("POST", "/key/generate", b'{"max_budget": 0.100000000001}')
        self.assertIn(b'"max_budget":0.100000000001', answer.body)
        key = self.key_of(answer.json["key"])
        self.assertEqual(key.limits.max_budget, 100_000_000_001)
        self.spend(1, key_hash=key.id)
        self.spend(2 * PICO // 10, key_hash=key.id)
        answer = self.ask("GET", f"/key/info?key={key.id}")
        self.assertIn(b'"spend":0.200000000001', answer.body)

    def test_taken_away(self) -> None:
        """Null takes a limit away; it does not open what models have closed."""
        secret = self.generate(max_budget=5, rpm_limit=1, duration="1d", models=["m"])
        fields = {"max_budget": None, "rpm_limit": None, "duration": None, "models": None}
        row = self.post("/key/update", {"key": secret, **fields})
        self.assertEqual(
            (row["max_budget"], row["rpm_limit"], row["expires"], row["models"]),
            (None, None, None, ["m"]),
        )
        self.assertEqual(self.post("/key/update", {"key": secret, "models": []})["models"], [])

    def test_expired(self) -> None:
        """A key that has ended goes on when it is given more time."""
        secret = self.generate(duration="1h")
        self.now += 3600
        self.get("/key/info", key=secret, status=401)
        self.post("/key/update", {"key": secret, "duration": "1h"})
        self.get("/key/info", key=secret)

    def test_references(self) -> None:
        """A team and a budget must be there; a user need not."""
        said = self.post(
            "/key/generate", {"team_id": "t", "budget_id": "b", "user_id": "u"}, status=400
        )
        self.assertIn("team_id: there is no such team; make it with /team/new", said)
        self.assertIn("budget_id: there is no such budget", said)
        self.post("/team/new", {"team_id": "t"})
        self.post("/budget/new", {"budget_id": "b", "max_budget": 3, "budget_duration": "1d"})
        row = self.post("/key/generate", {"team_id": "t", "budget_id": "b", "user_id": "u"})
        self.assertEqual((row["team_id"], row["user_id"], row["max_budget"]), ("t", "u", None))
        self.assertEqual(row["litellm_budget_table"]["max_budget"], 3)
        self.assertEqual(row["budget_reset_at"], "2026-12-01T12:00:00Z")
        self.post("/key/update", {"key": row["key"], "team_id": "nobody"}, status=400)

    def test_aliases_are_unique(self) -> None:
        """No two keys have the same name."""
        self.generate(key_alias="a")
        self.post("/key/generate", {"key_alias": "a"}, status=409)
        other = self.generate(key_alias="b")
        self.post("/key/update", {"key": other, "key_alias": "a"}, status=409)

    def test_configured(self) -> None:
        """A key of the configuration is seen, and not changed here."""
        secret = self.generate()
        key = self.key_of(secret)
        self.directory.configured.add(key.id)
        self.get(f"/key/info?key={secret}")
        for path in ("update", "block", "regenerate"):
            self.assertIn("config.yaml", self.post(f"/key/{path}", {"key": secret}, status=400))


class SpendTests(ManagementTestCase):
    """What a key has spent."""

    def test_period(self) -> None:
        """With a period what was spent in it counts, without one everything."""
        token = self.key_of(self.generate(max_budget=1, budget_duration="1d")).id
        for day, cost in enumerate((5, 6, 7)):
            self.spend(cost * PICO, NOW_US + day * DAY_US + 1, key_hash=token)
        self.spend(100 * PICO, key_hash="of another one")
        self.now += 2 * 86_400 + 5
        info = self.get(f"/key/info?key={token}")["info"]
        self.assertEqual(info["spend"], 7)
        self.assertEqual(info["budget_reset_at"], "2026-12-03T12:00:00Z")
        info = self.post("/key/update", {"key": token, "budget_duration": None})
        self.assertEqual((info["spend"], info["budget_reset_at"]), (0, None))
        whole = self.key_of(self.generate()).id
        self.spend(3 * PICO, 5, key_hash=whole)
        self.assertEqual(self.get(f"/key/info?key={whole}")["info"]["spend"], 3)

    def test_list(self) -> None:
        """Each of a list has its own sum, also where their periods differ."""
        tokens = {}
        for alias, duration in (("a", "1d"), ("b", "7d"), ("c", None), ("d", None)):
            fields = {"key_alias": alias, "max_budget": 100, "budget_duration": duration}
            tokens[alias] = self.key_of(self.generate(**fields)).id
        self.now += 3 * 86_400
        for number, token in enumerate(tokens.values()):
            self.spend(PICO << number, NOW_US + 1, key_hash=token)
            self.spend(1, key_hash=token)
        rows = self.get("/key/list?return_full_object=true")["keys"]
        one = Decimal(1) / PICO
        self.assertEqual(
            {row["key_alias"]: row["spend"] for row in rows},
            {"a": one, "b": 2 + one, "c": 4 + one, "d": 8 + one},
        )

    def test_named_budget(self) -> None:
        """Who has no maximum has that of its budget, and with its own its own period."""
        self.post("/budget/new", {"budget_id": "b", "max_budget": 5, "budget_duration": "1d"})
        self.now += 12 * 3600
        for fields, resets in (
            ({}, "2026-12-01T12:00:00Z"),
            ({"soft_budget": 1}, "2026-12-02T00:00:00Z"),
            ({"max_budget": 1}, None),
            ({"max_budget": 1, "budget_duration": "7d"}, "2026-12-08T00:00:00Z"),
        ):
            row = self.post("/key/generate", {"budget_id": "b", **fields})
            self.assertEqual(row["budget_reset_at"], resets, fields)

    def test_questions(self) -> None:
        """The ledger is asked for one key, and from the beginning where it is the same."""
        asked: list[Filters] = []
        totals = self.ledger.totals

        async def noted(by: Any, filters: Filters) -> Any:
            asked.append(filters)
            return await totals(by, filters)

        self.patch(self.ledger, "totals", noted)
        for duration in (None, "1d"):
            fields = {"max_budget": 1, "budget_duration": duration}
            secret = self.generate(**fields)
            token = self.key_of(secret).id
            self.assertEqual(asked.pop(), Filters(key_hash=token))
        self.now += 86_400
        self.get(f"/key/info?key={token}")
        self.assertEqual(asked, [Filters(key_hash=token, since_us=NOW_US + DAY_US)])

    def test_nothing_kept(self) -> None:
        """Without a ledger nobody knows."""
        self.serve(self.directory, None)
        self.assertIsNone(self.post("/key/generate")["spend"])


class PairTests(ManagementTestCase):
    """AWS-style key pairs."""

    def test_pair(self) -> None:
        """On demand a key comes with one; another secret brings another one."""
        assert self.salt is not None
        made = self.post("/key/generate", {"aws_credentials": True})
        token = made["token"]
        self.assertEqual(made["aws_access_key_id"], access_key_id(token))
        self.assertEqual(made["aws_secret_access_key"], secret_access_key(self.salt, token))
        self.assertEqual(self.key_of(made["key"]).tokens[0].access_key_id, access_key_id(token))
        answer = self.ask("GET", f"/key/info?key={token}")
        self.assertNotIn(made["aws_secret_access_key"].encode(), answer.body)
        again = self.post("/key/regenerate", {"key": token})
        self.assertEqual(again["aws_access_key_id"], access_key_id(hashed(again["key"])))
        none = self.post("/key/regenerate", {"key": token, "aws_credentials": False})
        self.assertNotIn("aws_access_key_id", none)
        self.assertEqual(self.key_of(none["key"]).tokens[0].access_key_id, "")
        self.assertNotIn("aws_access_key_id", self.post("/key/generate"))


class NoSaltTests(ManagementTestCase):
    """Without anything to derive them with."""

    salt = None

    def test_no_pairs(self) -> None:
        """It is said what to configure, and no key is made."""
        said = self.post("/key/generate", {"aws_credentials": True}, status=400)
        self.assertIn("aws_credentials: ", said)
        self.assertIn("TXBEDROCK_SALT_KEY", said)
        self.assertEqual(self.directory.of(Key), [])
        self.post("/key/generate", {"aws_credentials": False})


class ListTests(ManagementTestCase):
    """Many keys."""

    def setUp(self) -> None:
        super().setUp()
        self.post("/team/new", {"team_id": "t"})
        self.tokens = []
        for number in range(25):
            self.now += 1
            secret = self.generate(
                key_alias=f"k{number:02}" if number % 2 else None,
                user_id="u" if number % 3 else None,
                team_id="t" if number % 5 == 0 else None,
            )
            self.tokens.append(self.key_of(secret).id)

    def test_pages(self) -> None:
        """Ten at a time, the newest first; every key once."""
        found: list[str] = []
        for page in (1, 2, 3):
            answer = self.get(f"/key/list?page={page}")
            self.assertEqual(
                (answer["total_count"], answer["current_page"], answer["total_pages"]),
                (25, page, 3),
            )
            found += answer["keys"]
        self.assertEqual(found, self.tokens[::-1])
        answer = self.get("/key/list?size=100&sort_by=created_at&sort_order=asc")
        self.assertEqual(answer["keys"], self.tokens)
        self.assertEqual(self.get("/key/list?page=9")["keys"], [])

    def test_filters(self) -> None:
        """By user, team, name and hash."""
        for query, numbers in (
            ("user_id=u", [n for n in range(25) if n % 3]),
            ("team_id=t", range(0, 25, 5)),
            ("team_id=t&user_id=u", [5, 10, 20]),
            ("key_alias=k07", [7]),
            (f"key_hash={self.tokens[4]}", [4]),
            (f"key_hash={self.tokens[4]}&team_id=t", []),
            ("key_hash=none", []),
            ("user_id=nobody", []),
        ):
            answer = self.get(f"/key/list?size=100&sort_order=asc&{query}")
            expected = [self.tokens[number] for number in numbers]
            self.assertEqual((answer["keys"], answer["total_count"]), (expected, len(expected)))

    def test_aliases(self) -> None:
        """All names, in order."""
        names = [f"k{number:02}" for number in range(1, 25, 2)]
        self.assertEqual(self.get("/key/aliases"), {"aliases": names})

    def test_bad_queries(self) -> None:
        """What is wrong is said."""
        for query, word in (
            ("size=101", "size must be a whole number from 1 to 100"),
            ("page=0", "page"),
            ("page=" + "9" * 5000, "page"),
            ("sort_by=spend", "sort_by must be one of created_at"),
            ("sort_order=up", "sort_order must be one of asc, desc"),
            ("return_full_object=1", "return_full_object must be true or false"),
            ("colour=red", "Unknown parameter 'colour'"),
            ("sk-secret-in-a-name=1", "Unknown parameter. This path takes"),
            ("page=1&page=2", "there 2 times"),
        ):
            self.assertIn(word, self.get(f"/key/list?{query}", status=400), query)

    def test_infos(self) -> None:
        """/v2/key/info tells of many."""
        answer = self.post("/v2/key/info", {"keys": [self.tokens[1], "k03"]})
        self.assertEqual(answer["key"], [self.tokens[1], self.tokens[3]])
        self.assertEqual([row["key_alias"] for row in answer["info"]], ["k01", "k03"])
        self.post("/v2/key/info", {"keys": [self.tokens[1], "nobody"]}, status=404)
        self.assertIn("keys: is missing", self.post("/v2/key/info", status=400))

    def test_delete_all_or_nothing(self) -> None:
        """One that is not there, and nothing is deleted."""
        for fields in (
            {"keys": [self.tokens[0], "nobody"]},
            {"keys": [self.tokens[0]], "key_aliases": ["nobody"]},
        ):
            self.post("/key/delete", fields, status=404)
        self.assertEqual(len(self.directory.of(Key)), 25)
        for empty in ({}, {"keys": []}, {"key_aliases": None}):
            self.assertIn("Say which", self.post("/key/delete", empty, status=400))
        answer = self.post(
            "/key/delete", {"keys": [self.tokens[0]], "key_aliases": ["k01", "k03"]}
        )
        self.assertEqual(answer["deleted_keys"], [self.tokens[0], self.tokens[1], self.tokens[3]])
        self.assertEqual(len(self.directory.of(Key)), 22)


class UserTests(ManagementTestCase):
    """Users who keep their own keys. See Note [Who may do what with a key]."""

    def setUp(self) -> None:
        super().setUp()
        for name in ("ann", "bob", "eve"):
            made = self.post("/user/new", {"user_id": name})
            setattr(self, name, made["key"])
        self.post(
            "/team/new",
            {
                "team_id": "t",
                "rpm_limit": 10,
                "models": ["haiku", "nova*"],
                "members_with_roles": [{"user_id": "ann", "role": "admin"}, {"user_id": "bob"}],
            },
        )
        self.ann: str
        self.bob: str
        self.eve: str

    def test_for_oneself(self) -> None:
        """A user makes keys, and they are the user's."""
        made = self.post("/key/generate", {"models": ["m"], "max_budget": 3}, key=self.bob)
        self.assertEqual((made["user_id"], made["created_by"]), ("bob", "bob"))
        self.assertEqual((made["models"], made["max_budget"]), (["m"], 3))
        self.post("/key/generate", {"user_id": "bob"}, key=self.bob)
        self.assertIn(
            "for other users",
            self.post("/key/generate", {"user_id": "eve"}, key=self.bob, status=403),
        )

    def test_within_limits(self) -> None:
        """Not with more than the user has."""
        self.post(
            "/user/update",
            {
                "user_id": "bob",
                "max_budget": 10,
                "rpm_limit": 5,
                "models": ["haiku", "anthropic.claude*"],
            },
        )
        for fields, word in (
            ({"max_budget": 11}, "max_budget"),
            ({"max_budget": 11, "budget_duration": "1d"}, "max_budget"),
            ({"rpm_limit": 6}, "rpm_limit"),
            ({"models": ["nova"]}, "models"),
            ({"models": ["*"]}, "models"),
            ({"models": ["haiku", "anthropic.*"]}, "models"),
            ({"operations": ["bedrock:*"]}, "operations"),
            ({"temp_budget_increase": 1, "temp_budget_expiry": "1d"}, "temp_budget_increase"),
        ):
            said = self.post("/key/generate", fields, key=self.bob, status=403)
            self.assertIn(word, said)
        for fields in (
            {"max_budget": 10, "rpm_limit": 5, "models": ["haiku"]},
            {"models": ["anthropic.claude-v2", "us.anthropic.claude-v2", "anthropic.claude-3*"]},
            {"denied_operations": ["bedrock:ApplyGuardrail"], "allowed_ips": ["10.0.0.0/8"]},
            {"tpm_limit": 10**9},
        ):
            self.post("/key/generate", fields, key=self.bob)

    def test_own_keys(self) -> None:
        """A user sees, names, blocks, replaces and deletes keys of its own; no more."""
        secret = self.generate(user_id="bob", max_budget=1)
        self.get(f"/key/info?key={secret}", key=self.bob)
        row = self.post(
            "/key/update", {"key": secret, "key_alias": "x", "metadata": {"a": 1}}, key=self.bob
        )
        self.assertEqual((row["key_alias"], row["metadata"]), ("x", {"a": 1}))
        for fields in (
            {"max_budget": 2},
            {"max_budget": None},
            {"rpm_limit": 1},
            {"models": []},
            {"duration": "1d"},
            {"tags": []},
            {"user_id": "eve"},
            {"team_id": "t"},
            {"aliases": {}},
            {"allowed_ips": []},
            {"key_type": "default"},
            {"operations": ["*"]},
        ):
            said = self.post("/key/update", {"key": secret, **fields}, key=self.bob, status=403)
            self.assertIn(next(iter(fields)), said)
            self.post("/key/regenerate", {"key": secret, **fields}, key=self.bob, status=403)
        new = self.post("/key/regenerate", {"key": secret}, key=self.bob)["key"]
        self.post("/key/block", {"key": new}, key=self.bob)
        for path, more in (("unblock", {}), ("update", {"blocked": False})):
            said = self.post(f"/key/{path}", {"key": new, **more}, key=self.bob, status=403)
            self.assertIn("unblocks", said)
        self.post("/key/delete", {"keys": [new]}, key=self.bob)

    def test_not_of_others(self) -> None:
        """Keys of others are neither seen nor touched."""
        for secret in (self.eve, self.generate(), self.generate(team_id="t")):
            token = self.key_of(secret).id
            before = self.directory.kept["Key", token]
            self.get(f"/key/info?key={token}", key=self.bob, status=403)
            self.post("/v2/key/info", {"keys": [token]}, key=self.bob, status=403)
            for path in ("update", "block", "unblock", "regenerate"):
                self.post(f"/key/{path}", {"key": token}, key=self.bob, status=403)
            self.post(f"/key/{token}/regenerate", key=self.bob, status=403)
            self.post("/key/delete", {"keys": [token]}, key=self.bob, status=403)
            self.assertEqual(self.directory.kept["Key", token], before)
        mine = self.key_of(self.bob).id
        self.assertEqual(self.get("/key/list", key=self.bob)["keys"], [mine])
        self.get("/key/list?user_id=eve", key=self.bob, status=403)
        self.get("/key/list?team_id=t&user_id=eve", key=self.bob, status=403)
        self.assertEqual(self.get("/key/list?team_id=t", key=self.bob)["keys"], [])
        # One of many is not theirs: nothing happens.
        self.post("/key/delete", {"keys": [self.bob, self.eve]}, key=self.bob, status=403)
        self.get("/key/info", key=self.bob)

    def test_team(self) -> None:
        """Members make keys in their team, within what it has; others do not."""
        made = self.post("/key/generate", {"team_id": "t", "rpm_limit": 10}, key=self.bob)
        self.assertEqual((made["team_id"], made["user_id"]), ("t", "bob"))
        for fields in ({"rpm_limit": 11}, {"models": ["opus"]}):
            self.post("/key/generate", {"team_id": "t", **fields}, key=self.bob, status=403)
        self.post("/key/generate", {"team_id": "t", "models": ["nova-pro"]}, key=self.bob)
        said = self.post("/key/generate", {"team_id": "t"}, key=self.eve, status=403)
        self.assertIn("members", said)
        self.post("/key/generate", {"team_id": "none"}, key=self.eve, status=403)

    def test_team_admin(self) -> None:
        """Who leads a team keeps its keys, within what it has."""
        secret = self.generate(team_id="t", user_id="bob", rpm_limit=5)
        self.get(f"/key/info?key={secret}", key=self.ann)
        row = self.post(
            "/key/update",
            {"key": secret, "rpm_limit": 10, "models": ["haiku"], "duration": "1d"},
            key=self.ann,
        )
        self.assertEqual((row["rpm_limit"], row["models"]), (10, ["haiku"]))
        for fields in (
            {"rpm_limit": 11},
            {"models": ["opus"]},
            {"team_id": ""},
            {"user_id": "eve"},
            {"operations": ["bedrock:*"]},
            {"temp_budget_increase": 1, "temp_budget_expiry": "1d"},
        ):
            self.post("/key/update", {"key": secret, **fields}, key=self.ann, status=403)
        self.post("/key/update", {"key": secret, "user_id": "ann"}, key=self.ann)
        self.post("/key/block", {"key": secret}, key=self.ann)
        self.post("/key/unblock", {"key": secret}, key=self.ann)
        self.post("/key/regenerate", {"key": secret}, key=self.ann)
        # What an admin has granted beyond that stays when something else is changed.
        more = self.generate(team_id="t", rpm_limit=20)
        self.post("/key/update", {"key": more, "tags": ["x"]}, key=self.ann)
        self.post("/key/delete", {"keys": [more]}, key=self.ann)
        of_team = self.post("/key/generate", {"team_id": "t"}, key=self.ann)
        self.assertEqual((of_team["user_id"], of_team["created_by"]), (None, "ann"))
        for user, status in (("bob", 200), ("eve", 403)):
            self.post("/key/generate", {"team_id": "t", "user_id": user}, self.ann, status)
        self.post("/key/generate", {"user_id": "bob"}, key=self.ann, status=403)
        listed = self.get("/key/list?team_id=t", key=self.ann)
        self.assertEqual(listed["total_count"], 3)
        self.post("/key/delete", {"keys": [of_team["key"]]}, key=self.ann)

    def test_restricted_keys(self) -> None:
        """A key with limits of its own is no way to a key without."""
        free = self.generate(user_id="bob")
        self.post("/budget/new", {"budget_id": "b"})
        for fields in (
            {"budget_id": "b"},
            {"max_budget": 1},
            {"rpm_limit": 9},
            {"models": ["m"]},
            {"denied_operations": ["bedrock:*"]},
            {"operations": ["default"]},
            {"allowed_ips": ["0.0.0.0/0"]},
        ):
            secret = self.generate(user_id="bob", **fields)
            said = self.post("/key/generate", {}, key=secret, status=403)
            self.assertIn("limits of its own", said)
            self.post("/key/regenerate", {"key": free}, key=secret, status=403)
            self.post("/key/delete", {"keys": [free]}, key=secret, status=403)
            # Itself it may replace: the new one is as restricted.
            new = self.post("/key/regenerate", {"key": secret}, key=secret)["key"]
            self.post("/key/generate", {}, key=new, status=403)
        lead = self.generate(user_id="ann", team_id="t", rpm_limit=1)
        fields = {"team_id": "t", "user_id": "bob", "role": "admin"}
        self.post("/team/member_update", fields, key=lead, status=403)

    def test_no_longer_than_itself(self) -> None:
        """A key that expires makes none that lives longer."""
        secret = self.generate(user_id="bob", duration="1d")
        made = self.post("/key/generate", {}, key=secret)
        self.assertEqual(made["expires"], "2026-12-01T12:00:00Z")
        self.post("/key/generate", {"duration": "12h"}, key=secret)
        for duration in ("25h", "-1"):
            self.post("/key/generate", {"duration": duration}, key=secret, status=403)
        # Nor another one's new secret.
        for path, fields in (
            ("regenerate", {"key": self.bob}),
            ("update", {"key": self.bob, "key_alias": "x"}),
        ):
            self.assertIn("expires", self.post(f"/key/{path}", fields, key=secret, status=403))
        self.post("/key/regenerate", {"key": made["key"]}, key=secret)

    def test_no_way_out_of_a_team(self) -> None:
        """A key of a team makes and changes keys of that team only."""
        secret = self.generate(user_id="bob", team_id="t")
        made = self.post("/key/generate", {}, key=secret)
        self.assertEqual((made["team_id"], made["user_id"]), ("t", "bob"))
        for path, fields in (
            ("generate", {"team_id": ""}),
            ("generate", {"team_id": "s"}),
            ("regenerate", {"key": self.bob}),
            ("delete", {"keys": [self.bob]}),
        ):
            self.post(f"/key/{path}", fields, key=secret, status=403)
        self.post("/key/regenerate", {"key": made["key"]}, key=secret)
        self.post("/key/regenerate", {"key": made["key"]}, key=self.bob)

    def test_not_itself(self) -> None:
        """Who leads a team changes its keys, but not what holds for the one that asks."""
        secret = self.generate(user_id="ann", team_id="t", rpm_limit=1, duration="1d")
        for fields in ({"rpm_limit": None}, {"duration": "2d"}, {"duration": None}):
            for path in ("update", "regenerate"):
                self.post(f"/key/{path}", {"key": secret, **fields}, key=secret, status=403)
        self.post("/key/update", {"key": secret, "key_alias": "x"}, key=secret)
        short = self.generate(user_id="ann", team_id="t", duration="1d")
        other = self.generate(team_id="t", duration="1h")
        fields = {"key": other, "duration": "2d"}
        self.assertIn("expires", self.post("/key/update", fields, key=short, status=403))
        self.post("/key/update", {"key": other, "duration": "2h"}, key=short)

    def test_tags_are_handed_on(self) -> None:
        """What is charged to a project stays so in the keys that its key makes."""
        secret = self.generate(user_id="bob", tags=["x"])
        made = self.post("/key/generate", {"tags": ["y"]}, key=secret)
        self.assertEqual(made["tags"], ["x", "y"])

    def test_nobodys_key(self) -> None:
        """A key without a user sees itself, and makes nothing."""
        secret = self.generate()
        token = self.key_of(secret).id
        self.assertEqual(self.get("/key/info", key=secret)["key"], token)
        self.assertEqual(self.get("/key/list", key=secret)["keys"], [token])
        self.get(f"/key/info?key={token}", key=secret)
        self.get(f"/key/info?key={self.bob}", key=secret, status=403)
        for path, fields in (
            ("generate", {}),
            ("generate", {"user_id": "bob"}),
            ("generate", {"team_id": "t"}),
            ("update", {"key": token, "max_budget": 1}),
            ("delete", {"keys": [token]}),
            ("regenerate", {"key": token}),
        ):
            self.post(f"/key/{path}", fields, key=secret, status=403)

    def test_a_change_in_the_same_moment(self) -> None:
        """What was allowed of the key as it was is not done to another one's."""
        secret = self.generate(user_id="bob")
        token = self.key_of(secret).id
        change = self.directory.change

        async def late(kind: Any, id: str, done: Any, actor: str, action: str = "update") -> Any:
            given = self.directory.kept["Key", token]
            self.directory.kept["Key", token] = Key(id=token, tokens=given.tokens, user_id="eve")  # type: ignore[union-attr]
            return await change(kind, id, done, actor, action)

        self.patch(self.directory, "change", late)
        self.post("/key/regenerate", {"key": secret}, key=self.bob, status=409)
        self.assertEqual(self.key_of(secret).user_id, "eve")

    def test_master_is_no_virtual_key(self) -> None:
        """The master key has nothing to tell of itself."""
        self.assertIn("not a virtual key", self.get("/key/info", status=404))


class SecretTests(ManagementTestCase):
    """What a client must not find in an answer, nor anybody in a log."""

    def test_never_again(self) -> None:
        """A secret is in the answer that makes it, and in no other."""
        made = self.post("/key/generate", {"aws_credentials": True, "key_alias": "k"})
        secrets = [made["key"].encode(), made["aws_secret_access_key"].encode()]
        for method, path, fields in (
            ("GET", f"/key/info?key={made['key']}", {}),
            ("GET", "/key/list?return_full_object=true", {}),
            ("POST", "/v2/key/info", {"keys": [made["key"]]}),
            ("POST", "/key/update", {"key": made["key"], "rpm_limit": 1}),
            ("POST", "/key/update", {"key": made["key"], "key_alias": made["key"]}),
            ("POST", "/key/block", {"key": made["key"]}),
            ("GET", "/audit", {}),
            ("POST", "/key/delete", {"keys": [made["key"], OTHER]}),
            ("POST", "/key/delete", {"keys": [made["key"]]}),
            ("GET", f"/key/info?key={made['key']}", {}),
            ("POST", "/key/update", {"key": made["key"]}),
            ("POST", "/key/generate", {made["key"]: 1, "tags": [made["key"], 5]}),
        ):
            body = json.dumps(fields).encode() if method == "POST" else b""
            answer = self.ask(method, path, body)
            for secret in (*secrets, OTHER.encode()):
                self.assertNotIn(secret, answer.body, (method, path))

    def test_unknown(self) -> None:
        """Of a key that is not known the answer says how its hash begins."""
        said = self.get(f"/key/info?key={OTHER}", status=404)
        self.assertEqual(
            said, f"Key not found in database. Its SHA-256 begins with {hashed(OTHER)[:8]}."
        )
        self.assertEqual(
            self.ask("GET", "/key/info?key=x").json["error"]["type"], "not_found_error"
        )

    def test_faults_of_ours(self) -> None:
        """Nor is it in the log when something breaks."""
        secret = self.generate()

        async def broken(name: str) -> Key:
            raise ValueError("broken")

        self.patch(self.directory, "key", broken)
        for method, path in (
            ("GET", f"/key/info?key={secret}"),
            ("POST", f"/key/{secret}/regenerate"),
        ):
            answer = self.ask(method, path)
            self.assertEqual(answer.status, 500)
            self.assertNotIn(secret.encode(), answer.body)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)
        # tearDown searches the log.
        self.assertIn("/key/{key}/regenerate failed", "".join(self.logged))


class KeptTests(ManagementTestCase):
    """That a field arrives; which there are is for the tests of grantfields."""

    def test_fields(self) -> None:
        """Fields of every kind go into the key."""
        secret = self.generate(
            models=["haiku"],
            aliases={"a": "haiku"},
            tags=["t"],
            key_type="llm_api",
            model_max_budget={"haiku": {"budget_limit": 0.5, "time_period": "1d"}},
            denied_operations=["bedrock:Delete*"],
            temp_budget_increase=1,
            temp_budget_expiry="2d",
            guardrails=[],
        )
        key = self.key_of(secret)
        self.assertEqual(
            (key.type, key.tags, key.aliases), (KeyType.LLM_API, ("t",), {"a": "haiku"})
        )
        self.assertEqual(key.permissions.denied_operations, ("bedrock:Delete*",))
        self.assertEqual(
            key.limits.models, {"haiku": ModelLimits(max_budget=PICO // 2, budget_duration="1d")}
        )
        self.assertEqual(key.limits.budget_increase_until_us, NOW_US + 2 * DAY_US)
        self.assertEqual((key.created_us, key.created_by), (NOW_US, "master_key"))

    def test_all_problems(self) -> None:
        """All that is wrong is said at once, and nothing is kept."""
        said = self.post(
            "/key/generate",
            {
                "max_budget": "10",
                "rpm_limit": -1,
                "duration": "soon",
                "guardrails": ["pii"],
                "key": "short",
                "max_buget": 1,
            },
            status=400,
        )
        for word in (
            "max_budget: found text, expected an amount in US dollars",
            "rpm_limit: ",
            "duration: ",
            "guardrails: has no meaning",
            "key: found text, expected a key",
            "max_buget: unknown field; did you mean max_budget?",
        ):
            self.assertIn(word, said)
        self.assertEqual(self.directory.of(Key), [])
        self.assertEqual(self.directory.of(User), [])
