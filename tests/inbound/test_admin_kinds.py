"""
``/user``, ``/team``, ``/customer``, ``/budget``, ``/tag``, ``/audit``, and what all
paths have in common.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import maybeDeferred

from tests.inbound.management import DAY_US, MASTER, NOW_US, ManagementTestCase
from txbedrock.core import grantfields
from txbedrock.core.auth import hash_key
from txbedrock.core.grants import Customer, Key, Member, Team, User
from txbedrock.core.money import PICO
from txbedrock.inbound import body as body_module

# Anything that JSON can say, for every field that there is anywhere.
NAMES = sorted(
    {name for table in grantfields._TABLES.values() for name in table}
    | {"key", "keys", "key_aliases", "user_id", "user_ids", "team_id", "team_ids", "member",
       "members_with_roles", "teams", "budget_id", "budgets", "id", "name", "names", "new_key",
       "grace_period", "aws_credentials", "auto_create_key", "guardrails", "x"}
)  # fmt: skip
POSTS = [
    f"/{kind}/{what}"
    for kind, paths in {
        "key": "generate update delete block unblock regenerate k/regenerate",
        "user": "new update delete",
        "team": "new update delete block unblock member_add member_update member_delete",
        "customer": "new update delete block unblock",
        "budget": "new info update delete",
        "tag": "new info update delete",
        "v2": "key/info",
    }.items()
    for what in paths.split()
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["1d", "x", "k", "admin", "haiku", "10.0.0.1", "2027-01-01", "*", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["user_id", "role", "budget_limit", "a"]) | st.text(max_size=5),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


class UserTests(ManagementTestCase):
    """``/user``"""

    def test_life(self) -> None:
        """Made with a key, seen, changed, deleted with its keys."""
        made = self.post(
            "/user/new",
            {
                "user_id": "ann",
                "user_email": "ann@example.com",
                "user_role": "internal_user",
                "max_budget": 5,
                "budget_duration": "30d",
                "models": ["haiku"],
                "key_alias": "anns",
                "duration": "1d",
            },
        )
        self.assertTrue(made["key"].startswith("sk-"))
        self.assertEqual((made["user_id"], made["max_budget"]), ("ann", 5))
        self.assertEqual((made["key_alias"], made["expires"]), ("anns", "2026-12-01T12:00:00Z"))
        key = self.key_of(made["key"])
        # The limits are the user's.
        self.assertEqual(
            (key.user_id, key.limits.max_budget, key.permissions.models), ("ann", None, ())
        )
        self.spend(PICO // 2, user_id="ann", key_hash=key.id)
        self.spend(PICO, user_id="bob")
        info = self.get("/user/info?user_id=ann")
        self.assertEqual(info["user_info"]["spend"], Decimal("0.5"))
        self.assertEqual(info["user_info"]["user_email"], "ann@example.com")
        self.assertEqual(info["user_info"]["budget_reset_at"], "2026-12-30T12:00:00Z")
        self.assertEqual([row["key_alias"] for row in info["keys"]], ["anns"])
        self.assertEqual(self.get("/user/info", key=made["key"]), info)
        row = self.post("/user/update", {"user_id": "ann", "blocked": True, "max_budget": None})
        self.assertEqual(
            (row["blocked"], row["max_budget"], row["models"]), (True, None, ["haiku"])
        )
        self.assertEqual(
            self.post("/user/delete", {"user_ids": ["ann"]}), {"deleted_users": ["ann"]}
        )
        self.assertEqual(self.directory.kept, {})
        self.get("/user/info?user_id=ann", status=404)

    def test_without_a_key(self) -> None:
        """A key is only made if it is wanted."""
        row = self.post("/user/new", {"auto_create_key": False})
        self.assertNotIn("key", row)
        self.assertEqual(len(row["user_id"]), 36)
        self.assertEqual(self.directory.of(Key), [])
        said = self.post(
            "/user/new", {"auto_create_key": False, "key_alias": "a", "x": 1}, status=400
        )
        self.assertIn("key_alias: is for a key, and auto_create_key is false", said)
        self.assertIn("x: unknown field", said)

    def test_nothing_by_halves(self) -> None:
        """A user whose key cannot be made is not made, and in no team."""
        self.generate(key_alias="taken")
        self.post("/team/new", {"team_id": "t"})
        before = dict(self.directory.kept)
        for fields, status in (
            ({"key_alias": "taken", "teams": ["t"]}, 409),
            ({"teams": ["none"]}, 404),
            ({"aws_credentials": "yes", "max_budget": "5"}, 400),
            ({"budget_id": "none"}, 400),
            ({"key": "sk-short"}, 400),
        ):
            self.post("/user/new", {"user_id": "ann", **fields}, status=status)
            self.assertEqual(self.directory.of(User), [], fields)
            self.assertEqual(len(self.directory.kept), len(before))

    def test_teams(self) -> None:
        """A user may come into teams at once."""
        self.post("/team/new", {"team_id": "t"})
        self.assertEqual(
            self.post("/user/new", {"user_id": "ann", "teams": ["t"]})["teams"], ["t"]
        )
        info = self.get("/user/info?user_id=ann")
        self.assertEqual([team["team_id"] for team in info["teams"]], ["t"])
        self.post("/user/new", {"user_id": "ann"}, status=409)

    def test_list(self) -> None:
        """Pages, or those that are named."""
        for number in range(30):
            self.now += 1
            self.post("/user/new", {"user_id": f"u{number}", "auto_create_key": number % 2 == 0})
        answer = self.get("/user/list")
        self.assertEqual(
            (answer["total"], answer["page"], answer["page_size"], answer["total_pages"]),
            (30, 1, 25, 2),
        )
        self.assertEqual([row["user_id"] for row in answer["users"]][:2], ["u29", "u28"])
        self.assertEqual([row["key_count"] for row in answer["users"]][:2], [0, 1])
        answer = self.get("/user/list?user_ids=u3,%20u1,none&sort_order=asc")
        self.assertEqual([row["user_id"] for row in answer["users"]], ["u3", "u1"])

    def test_only_a_name(self) -> None:
        """A key may name a user of whom nothing is kept: that sees itself."""
        secret = self.generate(user_id="ghost")
        self.spend(PICO, user_id="ghost")
        info = self.get("/user/info", key=secret)
        self.assertEqual(
            (info["user_info"]["user_role"], info["user_info"]["spend"]), ("internal_user", 1)
        )
        self.get("/user/info?user_id=ghost", status=404)


class TeamTests(ManagementTestCase):
    """``/team``"""

    def setUp(self) -> None:
        super().setUp()
        self.secrets = {
            name: self.post("/user/new", {"user_id": name})["key"]
            for name in ("ann", "bob", "eve")
        }
        self.post(
            "/team/new",
            {
                "team_id": "t",
                "team_alias": "Ops",
                "max_budget": 100,
                "team_member_budget": 10,
                "team_member_budget_duration": "1d",
                "members_with_roles": [{"user_id": "ann", "role": "admin"}],
            },
        )

    def team(self) -> Team:
        team = self.directory.kept["Team", "t"]
        assert isinstance(team, Team)
        return team

    def test_life(self) -> None:
        """Made, changed, blocked, deleted with its keys."""
        row = self.post("/team/new", {"team_alias": "New", "models": ["m"], "metadata": {"a": 1}})
        self.assertEqual((row["team_alias"], row["models"], row["spend"]), ("New", ["m"], 0))
        id = row["team_id"]
        row = self.post("/team/update", {"team_id": id, "rpm_limit": 5})
        self.assertEqual((row["rpm_limit"], row["metadata"]), (5, {"a": 1}))
        self.assertTrue(self.post("/team/block", {"team_id": id})["blocked"])
        self.assertFalse(self.post("/team/unblock", {"team_id": id})["blocked"])
        secret = self.generate(team_id=id)
        self.spend(3 * PICO, team_id=id)
        info = self.get(f"/team/info?team_id={id}")
        self.assertEqual((info["team_id"], info["team_info"]["spend"]), (id, 3))
        self.assertEqual(len(info["keys"]), 1)
        # The team of the key that asks.
        self.assertEqual(self.get("/team/info", key=secret)["team_id"], id)
        self.assertEqual([team["team_id"] for team in self.get("/team/list", key=secret)], [id])
        self.assertEqual(self.post("/team/delete", {"team_ids": [id]}), {"deleted_teams": [id]})
        self.get("/key/info", key=secret, status=401)
        self.post("/team/delete", {"team_ids": [id, "t"]}, status=404)
        self.assertEqual(self.team().alias, "Ops")
        self.post("/team/new", {"team_id": "a/b"}, status=400)

    def test_members(self) -> None:
        """Added one by one or together, changed, and taken out."""
        row = self.post("/team/member_add", {"team_id": "t", "member": {"user_id": "bob"}})
        self.assertEqual(
            row["members_with_roles"],
            [{"user_id": "ann", "role": "admin"}, {"user_id": "bob", "role": "user"}],
        )
        row = self.post(
            "/team/member_add",
            {
                "team_id": "t",
                "max_budget_in_team": 1.5,
                "member": [{"role": "user", "user_id": "eve"}, {"user_id": "dan"}],
            },
        )
        self.assertEqual(
            [
                (one["user_id"], one["max_budget_in_team"])
                for one in row["updated_team_memberships"]
            ],
            [("eve", Decimal("1.5")), ("dan", Decimal("1.5"))],
        )
        self.assertEqual(self.team().members[2].limits.budget_start_us, NOW_US)
        said = self.post(
            "/team/member_add",
            {"team_id": "t", "member": [{"user_id": "x"}, {"user_id": "bob"}]},
            status=409,
        )
        self.assertIn("bob", said)
        row = self.post(
            "/team/member_update",
            {
                "team_id": "t",
                "user_id": "bob",
                "role": "admin",
                "max_budget_in_team": 2,
                "rpm_limit": 3,
            },
        )
        self.assertEqual(
            (row["role"], row["max_budget_in_team"], row["rpm_limit"]), ("admin", 2, 3)
        )
        self.post("/team/member_delete", {"team_id": "t", "user_id": "eve"})
        self.assertEqual([one.user_id for one in self.team().members], ["ann", "bob", "dan"])
        for path in ("member_update", "member_delete"):
            self.post(f"/team/{path}", {"team_id": "t", "user_id": "eve"}, status=404)
            self.post(f"/team/{path}", {"team_id": "none", "user_id": "ann"}, status=404)

    def test_memberships(self) -> None:
        """What each member has spent in the team, in the period of its budget."""
        self.post(
            "/team/member_add",
            {"team_id": "t", "member": {"user_id": "bob"}, "max_budget_in_team": 50},
        )
        for day, cost in ((0, 1), (1, 2)):
            for name in ("ann", "bob"):
                self.spend(cost * PICO, NOW_US + day * DAY_US, team_id="t", user_id=name)
        self.spend(64 * PICO, user_id="ann")
        self.now += 86_400
        rows = {
            row["user_id"]: row for row in self.get("/team/info?team_id=t")["team_memberships"]
        }
        self.assertEqual({name: row["spend"] for name, row in rows.items()}, {"ann": 2, "bob": 3})

    def test_leads(self) -> None:
        """Its admin changes members and sees all keys; members see their own."""
        ann, bob, eve = (self.secrets[name] for name in ("ann", "bob", "eve"))
        self.post("/team/member_add", {"team_id": "t", "member": {"user_id": "bob"}}, key=ann)
        self.post("/team/member_add", {"team_id": "t", "member": {"user_id": "eve"}}, bob, 403)
        of_ann = self.key_of(self.generate(team_id="t", user_id="ann")).id
        of_bob = self.key_of(self.generate(team_id="t", user_id="bob")).id
        for key, tokens in ((ann, {of_ann, of_bob}), (bob, {of_bob}), (MASTER, {of_ann, of_bob})):
            rows = self.get("/team/info?team_id=t", key=key)["keys"]
            self.assertEqual({row["token"] for row in rows}, tokens)
        self.get("/team/info?team_id=t", key=eve, status=403)
        self.post("/team/member_delete", {"team_id": "t", "user_id": "ann"}, key=ann)
        self.post("/team/member_add", {"team_id": "t", "member": {"user_id": "eve"}}, ann, 403)

    def test_list(self) -> None:
        """All for who sees all, of one user, one's own."""
        self.post("/team/new", {"team_id": "s"})
        answer = self.ask("GET", "/team/list")
        self.assertEqual([row["team_id"] for row in answer.json], ["s", "t"])
        self.assertEqual(answer.headers["x-total-count"], "2")
        answer = self.ask("GET", "/team/list?page=2&size=1")
        self.assertEqual([row["team_id"] for row in answer.json], ["t"])
        for path, key in (("?user_id=ann", MASTER), ("", self.secrets["ann"])):
            self.assertEqual([row["team_id"] for row in self.get(f"/team/list{path}", key)], ["t"])
        self.assertEqual(self.get("/team/list", self.secrets["eve"]), [])


class OtherTests(ManagementTestCase):
    """Customers, budgets, tags."""

    def test_customers(self) -> None:
        """By both names of the path."""
        for path, id in (("customer", "c"), ("end_user", "e")):
            self.post("/budget/new", {"budget_id": path, "max_budget": 7, "budget_duration": "1d"})
            row = self.post(f"/{path}/new", {"user_id": id, "alias": "Corp", "budget_id": path})
            self.assertEqual((row["user_id"], row["alias"], row["spend"]), (id, "Corp", 0))
            self.assertEqual(row["litellm_budget_table"]["max_budget"], 7)
            self.spend(PICO, end_user=id)
            self.now += 86_400
            self.spend(2 * PICO, end_user=id)
            row = self.get(f"/{path}/info?end_user_id={id}")
            self.assertEqual((row["spend"], row["max_budget"]), (2, None))
            self.assertEqual(self.get(f"/{path}/list")[-1:], [row])
            row = self.post(f"/{path}/update", {"user_id": id, "max_budget": 9, "budget_id": None})
            self.assertEqual((row["max_budget"], row["litellm_budget_table"]), (9, None))
            self.post(f"/{path}/new", {"user_id": id}, status=409)
            answer = self.post(f"/{path}/block", {"user_ids": [id, "unknown so far"]})
            self.assertEqual([row["blocked"] for row in answer["blocked_users"]], [True, True])
            answer = self.post(f"/{path}/unblock", {"user_ids": [id]})
            self.assertEqual([row["blocked"] for row in answer["unblocked_users"]], [False])
            self.post(f"/{path}/unblock", {"user_ids": [id, "none"]}, status=404)
            answer = self.post(f"/{path}/delete", {"user_ids": [id, "unknown so far"]})
            self.assertEqual(answer["deleted_customers"], 2)
            self.assertEqual(self.directory.of(Customer), [])
            self.get(f"/{path}/info?end_user_id={id}", status=404)
            self.get(f"/{path}/info", status=400)
        self.assertIn("user_id: is missing", self.post("/customer/new", status=400))

    def test_budgets(self) -> None:
        """Limits with a name."""
        row = self.post("/budget/new", {"max_budget": 1, "rpm_limit": 5, "budget_duration": "1mo"})
        self.assertEqual((len(row["budget_id"]), row["max_budget"]), (36, 1))
        self.assertEqual(row["budget_reset_at"], "2026-12-01T00:00:00Z")
        self.assertNotIn("spend", row)
        self.post("/budget/new", {"budget_id": "b", "model_max_budget": {"m": 2}})
        row = self.post("/budget/update", {"budget_id": "b", "soft_budget": 3})
        self.assertEqual(
            (row["soft_budget"], row["model_max_budget"]["m"]["budget_limit"]), (3, 2)
        )
        self.assertEqual(self.post("/budget/info", {"budgets": ["b"]}), [row])
        self.post("/budget/info", {"budgets": ["b", "none"]}, status=404)
        self.assertEqual(len(self.get("/budget/list")), 2)
        self.generate(budget_id="b", key_alias="k")
        self.post("/budget/delete", {"id": "b"}, status=409)
        self.post("/key/update", {"key": "k", "budget_id": None})
        self.assertEqual(self.post("/budget/delete", {"id": "b"})["budget_id"], "b")
        self.post("/budget/update", {"budget_id": "b"}, status=404)

    def test_tags(self) -> None:
        """What requests are marked with."""
        answer = self.post("/tag/new", {"name": "x", "description": "D", "max_budget": 4})
        self.assertEqual((answer["tag"]["name"], answer["tag"]["max_budget"]), ("x", 4))
        self.assertIn("created", answer["message"])
        self.spend(PICO, tags=("x", "y"))
        rows = self.post("/tag/info", {"names": ["x"]})
        self.assertEqual((rows["x"]["spend"], rows["x"]["description"]), (1, "D"))
        answer = self.post("/tag/update", {"name": "x", "rpm_limit": 1})
        self.assertEqual((answer["tag"]["rpm_limit"], answer["tag"]["max_budget"]), (1, 4))
        self.assertEqual([row["name"] for row in self.get("/tag/list")], ["x"])
        self.post("/tag/info", {"names": ["x", "y"]}, status=404)
        self.post("/tag/delete", {"name": "x"})
        self.post("/tag/delete", {"name": "x"}, status=404)
        self.post("/tag/new", {"name": "a,b"}, status=400)

    def test_spent_before(self) -> None:
        """What an end user spent before there was a budget does not count."""
        self.spend(50 * PICO, NOW_US - 1, end_user="c")
        self.post("/customer/new", {"user_id": "c", "max_budget": 10})
        self.spend(PICO, end_user="c")
        self.assertEqual(self.get("/customer/info?end_user_id=c")["spend"], 1)

    def test_many_at_once(self) -> None:
        """A list asks the ledger once for all that have the same period."""
        asked = []
        totals = self.ledger.totals

        async def counted(by: Any, filters: Any) -> Any:
            asked.append(filters)
            return await totals(by, filters)

        self.patch(self.ledger, "totals", counted)
        for number in range(20):
            self.directory.kept["Customer", f"c{number:02}"] = Customer(id=f"c{number:02}")
            self.spend(number * PICO, end_user=f"c{number:02}")
        rows = self.get("/customer/list")
        self.assertEqual([row["spend"] for row in rows], list(range(20)))
        self.assertEqual(len(asked), 1)


class AuditTests(ManagementTestCase):
    """``/audit``"""

    def test_audit(self) -> None:
        """Who changed what, the newest first, a part at a time."""
        self.post("/tag/new", {"name": "x"})
        self.now += 1
        self.post("/tag/update", {"name": "x", "rpm_limit": 5})
        self.now += 1
        secret = self.post("/user/new", {"user_id": "ann", "key_alias": "anns"})["key"]
        self.now += 1
        self.post("/key/block", {"key": secret}, key=secret)
        rows = self.get("/audit")
        master = f"master_key ({hash_key(MASTER.encode()).hex()[:8]})"
        self.assertEqual(
            [(row["action"], row["table_name"], row["changed_by"]) for row in rows],
            [
                # An alias alone could be anybody's.
                ("block", "key", f"anns ({hash_key(secret.encode()).hex()[:8]})"),
                ("create", "key", master),
                ("create", "user", master),
                ("update", "tag", master),
                ("create", "tag", master),
            ],
        )
        self.assertEqual(rows[0]["updated_at"], "2026-11-30T12:00:03Z")
        self.assertEqual(rows[3]["updated_values"]["limits"], {"rpm": 5})
        self.assertIsNone(rows[4]["before_value"])
        self.assertEqual(self.get("/audit?table_name=tag"), rows[3:])
        self.assertEqual(self.get("/audit?object_id=ann"), rows[2:3])
        self.assertEqual(self.get("/audit?limit=2"), rows[:2])
        self.assertEqual(self.get(f"/audit?before_us={rows[3]['updated_us']}"), rows[4:])
        for query in ("table_name=x", "limit=0", "limit=1001", "before_us=x", "x=1"):
            self.get(f"/audit?{query}", status=400)


class BodyTests(ManagementTestCase):
    """What all paths have in common."""

    def test_bad_bodies(self) -> None:
        """What cannot be read is said, with the place, and without repeating it."""
        for body, word in (
            (b'{"a": planted}', "Expecting value at line 1, column 7"),
            (b"{\n  'planted': 1}", "at line 2, column 3"),
            (b"[1]", "must be a JSON object"),
            (b'"sk-planted"', "must be a JSON object"),
            (b'{"max_budget": NaN}', "none of JSON's"),
            (b'{"max_budget": -Infinity}', "none of JSON's"),
            (b'{"max_budget": ' + b"9" * 5000 + b"}", "too long"),
            (b'{"a": "\xff"}', "not UTF-8 at byte"),
            (b"\xff\xfe{}", "not "),
            (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
            (b'{"metadata": {"a": ' + b"[" * 50 + b"]" * 50 + b"}}", "at most 16 deep"),
            (b'{"metadata": {"a": "\\ud800"}}', "surrogate"),
            (b'{"key_alias": "\\ud800"}', "one line of text"),
            (b'{"\\ud800": 1}', "unknown field"),
            (b'{"max_budget": 1e-400}', "at most 12 decimals"),
            (b'{"max_budget": 1e400}', "0 to 1000000000"),
            (b'{"max_budget": 1e99999999999999999999}', ""),
        ):
            answer = self.ask("POST", "/key/generate", body)
            self.assertEqual(answer.status, 400, body[:50])
            self.assertIn(word, answer.message)
            self.assertNotIn("planted", answer.message)
            self.assertEqual(self.ask("POST", "/team/new", body).status, 400)
        self.assertEqual(self.directory.kept, {})

    def test_long_body(self) -> None:
        """A body of 1 MiB is read, one byte more is not."""
        space = 1024 * 1024 - len('{"tags": []}')
        answer = self.ask("POST", "/key/generate", b'{"tags": []' + b" " * space + b"}")
        self.assertEqual(answer.status, 200)
        # So long a body goes to disk in a thread; here it goes there at once.
        self.patch(body_module, "deferToThread", maybeDeferred)
        body = b'{"tags": []' + b" " * (space + 1) + b"}"
        answer = self.ask("POST", "/key/generate", body)
        self.assertEqual(answer.status, 413)
        self.assertIn("1048576 bytes", answer.message)
        self.assertEqual(len(self.directory.of(Key)), 1)

    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(POSTS), st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6))
    def test_anything(self, path: str, fields: dict[str, object]) -> None:
        """Whatever JSON there is, it is answered, or refused with a reason; never a 500."""
        answer = self.ask("POST", path, json.dumps(fields).encode())
        self.assertIn(answer.status, (200, 400, 404, 409), answer.body)

    def test_methods(self) -> None:
        """Each path has one method; HEAD is a GET without a body, and never a POST."""
        for method, path, allowed in (
            ("GET", "/key/generate", "POST"),
            ("HEAD", "/key/generate", "POST"),
            ("PUT", "/key/generate", "POST"),
            ("DELETE", "/key/info", "GET"),
            ("POST", "/team/list", "GET"),
        ):
            answer = self.ask(method, path)
            self.assertEqual((answer.status, answer.headers["allow"]), (405, allowed))
        self.assertEqual(self.directory.kept, {})
        answer = self.ask("HEAD", "/key/list")
        self.assertEqual((answer.status, answer.body), (200, b""))

    def test_lost(self) -> None:
        """What is not there is said in JSON, and where there is something."""
        for path, word in (
            ("/key", "/key/generate"),
            ("/key/x", "/key/generate"),
            ("/key/info/x", "nothing"),
            ("/team/x", "/team/member_add"),
            ("/v2", "/v2/key"),
            ("/v2/key/x", "/v2/key/info"),
        ):
            self.assertIn(word, self.get(path, status=404))

    def test_trailing_slash(self) -> None:
        """A slash at the end changes nothing."""
        self.assertIn("key", self.post("/key/generate/"))
        self.get("/key/list/")

    def test_query(self) -> None:
        """A path that takes no parameters says so."""
        self.assertIn("takes none", self.post("/key/generate?user_id=ann", status=400))

    def test_members_are_read_strictly(self) -> None:
        """A member object with what it does not know is refused."""
        self.post("/team/new", {"team_id": "t"})
        fields = {"team_id": "t", "member": {"user_id": "a", "user_email": "a@b", "role": "king"}}
        said = self.post("/team/member_add", fields, status=400)
        self.assertIn("member.user_email: has no meaning", said)
        self.assertIn("member.role: found text, expected one of admin, user", said)
        self.assertEqual(Member(user_id="a").role, "user")
