"""
Who may use which path of the management API.
"""

from __future__ import annotations

import json

from tests.inbound.management import MASTER, ManagementTestCase
from txbedrock.core.grants import Key
from txbedrock.core.money import PICO

ALL = "admin viewer user lead onlooker nobody reader manager"
"""Everyone but a key that is for Bedrock only."""

CHANGERS = "admin user lead manager"

# Path, method, body, who may: of the others each is refused with 403.
PATHS: list[tuple[str, str, dict[str, object], str]] = [
    ("GET", "/key/info", {}, ALL),
    ("GET", "/key/info?key=of-eve", {}, "admin viewer"),
    ("GET", "/key/info?key=of-team", {}, "admin viewer lead"),
    ("GET", "/key/list", {}, ALL),
    ("GET", "/key/list?user_id=eve", {}, "admin viewer nobody"),
    ("GET", "/key/aliases", {}, ALL),
    ("POST", "/v2/key/info", {"keys": ["of-eve"]}, "admin viewer"),
    ("POST", "/key/generate", {}, "admin user lead manager"),
    ("POST", "/key/generate", {"user_id": "eve"}, "admin"),
    ("POST", "/key/generate", {"team_id": "t"}, "admin lead user manager"),
    ("POST", "/key/update", {"key": "of-eve", "key_alias": "x"}, "admin"),
    ("POST", "/key/update", {"key": "of-team", "rpm_limit": 1}, "admin lead"),
    ("POST", "/key/block", {"key": "of-eve"}, "admin"),
    ("POST", "/key/unblock", {"key": "of-eve"}, "admin"),
    ("POST", "/key/regenerate", {"key": "of-eve"}, "admin"),
    ("POST", "/key/of-team/regenerate", {}, "admin lead"),
    ("POST", "/key/delete", {"keys": ["of-eve"]}, "admin"),
    ("GET", "/user/info", {}, ALL),
    ("GET", "/user/info?user_id=eve", {}, "admin viewer"),
    ("GET", "/user/list", {}, "admin viewer"),
    ("POST", "/user/new", {"user_id": "new"}, "admin"),
    ("POST", "/user/update", {"user_id": "user", "max_budget": 5}, "admin"),
    ("POST", "/user/delete", {"user_ids": ["eve"]}, "admin"),
    ("GET", "/team/info?team_id=t", {}, "admin viewer user lead reader manager"),
    ("GET", "/team/list", {}, ALL),
    ("GET", "/team/list?user_id=eve", {}, "admin viewer"),
    ("POST", "/team/new", {}, "admin"),
    ("POST", "/team/update", {"team_id": "t", "max_budget": 5}, "admin"),
    ("POST", "/team/block", {"team_id": "t"}, "admin"),
    ("POST", "/team/unblock", {"team_id": "t"}, "admin"),
    ("POST", "/team/member_add", {"team_id": "t", "member": {"user_id": "eve"}}, "admin lead"),
    ("POST", "/team/member_update", {"team_id": "t", "user_id": "user"}, "admin lead"),
    ("POST", "/team/member_delete", {"team_id": "t", "user_id": "user"}, "admin lead"),
    ("POST", "/team/delete", {"team_ids": ["t"]}, "admin"),
    ("GET", "/customer/info?end_user_id=c", {}, "admin viewer"),
    ("GET", "/customer/list", {}, "admin viewer"),
    ("POST", "/customer/new", {"user_id": "d"}, "admin"),
    ("POST", "/end_user/update", {"user_id": "c", "alias": "x"}, "admin"),
    ("POST", "/customer/block", {"user_ids": ["c"]}, "admin"),
    ("POST", "/customer/unblock", {"user_ids": ["c"]}, "admin"),
    ("POST", "/end_user/delete", {"user_ids": ["c"]}, "admin"),
    ("POST", "/budget/info", {"budgets": ["b"]}, "admin viewer"),
    ("GET", "/budget/list", {}, "admin viewer"),
    ("POST", "/budget/new", {}, "admin"),
    ("POST", "/budget/update", {"budget_id": "b", "max_budget": 1}, "admin"),
    ("POST", "/budget/delete", {"id": "b"}, "admin"),
    ("POST", "/tag/info", {"names": ["x"]}, "admin viewer"),
    ("GET", "/tag/list", {}, "admin viewer"),
    ("POST", "/tag/new", {"name": "y"}, "admin"),
    ("POST", "/tag/update", {"name": "x", "max_budget": 1}, "admin"),
    ("POST", "/tag/delete", {"name": "x"}, "admin"),
    ("GET", "/audit", {}, "admin viewer"),
    ("GET", "/metrics", {}, "admin viewer"),
    ("GET", "/spend/logs", {}, ALL),
    ("GET", "/spend/keys", {}, ALL),
    ("GET", "/spend/users", {}, ALL),
    ("GET", "/spend/tags", {}, ALL),
    ("GET", "/global/spend", {}, ALL),
    ("GET", "/global/spend/keys", {}, ALL),
    ("GET", "/global/spend/teams", {}, ALL),
    ("GET", "/global/spend/models", {}, ALL),
    ("POST", "/spend/calculate", {"model": "m", "usage": {"prompt_tokens": 1}}, ALL),
]


class MatrixTests(ManagementTestCase):
    """Everybody at every path."""

    def setUp(self) -> None:
        super().setUp()
        roles = {
            "viewer": "proxy_admin_viewer",
            "user": "internal_user",
            "lead": "internal_user",
            "onlooker": "internal_user_viewer",
            "eve": "internal_user",
        }
        for name, role in roles.items():
            fields = {"user_id": name, "user_role": role, "auto_create_key": False}
            self.post("/user/new", fields)
        members = [{"user_id": "lead", "role": "admin"}, {"user_id": "user"}]
        self.post("/team/new", {"team_id": "t", "members_with_roles": members})
        self.post("/customer/new", {"user_id": "c"})
        self.post("/budget/new", {"budget_id": "b"})
        self.post("/tag/new", {"name": "x"})
        self.generate(user_id="eve", key_alias="of-eve")
        self.generate(team_id="t", key_alias="of-team")
        self.secrets = {
            "admin": MASTER,
            **{name: self.generate(user_id=name) for name in roles if name != "eve"},
            "nobody": self.generate(),
            "reader": self.generate(user_id="user", key_type="read_only"),
            "manager": self.generate(user_id="user", key_type="management"),
            "bedrock": self.generate(user_id="user", key_type="llm_api"),
            "bedrock-admin": self.generate(user_id="viewer", key_type="llm_api"),
        }
        self.kept = dict(self.directory.kept)

    def allowed(self, who: str, method: str, path: str, fields: dict[str, object]) -> bool:
        """Is one of them answered? A refusal says who may, and nothing was done."""
        self.directory.kept = dict(self.kept)
        body = json.dumps(fields).encode() if method == "POST" else b""
        answer = self.ask(method, path, body, self.secrets[who])
        if answer.status == 403:
            self.assertEqual(answer.json["error"]["type"], "auth_error")
            self.assertGreater(len(answer.message), 20)
            self.assertEqual(self.directory.kept, self.kept, (who, path))
            return False
        # The master key is not in the database, and neither of these has a user.
        missing = (path, who) in (
            ("/key/info", "admin"),
            ("/user/info", "admin"),
            ("/user/info", "nobody"),
        )
        self.assertEqual(answer.status, 404 if missing else 200, (who, path, answer.body))
        return True

    def test_matrix(self) -> None:
        """Who may is answered, who may not is refused, and told who may."""
        for method, path, fields, may in PATHS:
            wanted = set(may.split())
            found = {who for who in self.secrets if self.allowed(who, method, path, fields)}
            self.assertEqual(found, wanted, (method, path))

    def test_complete(self) -> None:
        """No path of the tree is left out above."""
        paths = set()

        def walk(path: str, resource: object) -> None:
            children = getattr(resource, "children", {})
            for name, child in children.items():
                walk(f"{path}/{name.decode()}", child)
            if hasattr(resource, "methods"):
                paths.add(path)

        walk("", self.site.resource)
        covered = {path.partition("?")[0] for _, path, _, _ in PATHS}
        covered |= {path.replace("end_user", "customer") for path in covered if "end_user" in path}
        paths = {path.replace("/end_user/", "/customer/") for path in paths}
        self.assertEqual(
            paths - covered,
            {"/global/spend/end_users", "/global/spend/tags"},
        )
        self.assertGreater(len(paths), 50)

    def test_no_key(self) -> None:
        """Nobody without a key gets anything from any of them."""
        for method, path, fields, _ in PATHS:
            for key in (None, "sk-wrong-one"):
                body = json.dumps(fields).encode() if method == "POST" else b""
                answer = self.ask(method, path, body, key)
                self.assertEqual(answer.status, 401, path)
                self.assertEqual(answer.json["error"]["type"], "auth_error")
        self.assertEqual(self.directory.kept, self.kept)

    def test_routes_and_addresses(self) -> None:
        """A key that is for some routes, or for some addresses, is refused elsewhere."""
        routed = self.generate(user_id="viewer", allowed_routes=["/key/info", "/key/*/regenerate"])
        self.get("/key/info", key=routed)
        self.get("/key/info/", key=routed)
        spending = self.generate(user_id="viewer", allowed_routes=["/spend/logs"])
        self.get("/spend/logs/", key=spending)
        self.get("/spend/keys", key=spending, status=403)
        self.assertIn("route", self.get("/key/list", key=routed, status=403))
        said = self.post("/key/sk-planted/block", key=routed, status=404)
        self.assertNotIn("sk-", said)
        for network, status in (("192.168.1.1", 200), ("10.0.0.0/8", 403)):
            self.get("/key/info", self.generate(user_id="viewer", allowed_ips=[network]), status)


class SpendTests(ManagementTestCase):
    """What of the ledger is whose."""

    def setUp(self) -> None:
        super().setUp()
        self.secrets = {
            name: self.post("/user/new", {"user_id": name})["key"] for name in ("ann", "bob")
        }
        members = [{"user_id": "ann", "role": "admin"}, {"user_id": "bob"}]
        self.post("/team/new", {"team_id": "t", "members_with_roles": members})
        self.secrets["lead"] = self.generate(user_id="ann", team_id="t")
        self.secrets["member"] = self.generate(user_id="bob", team_id="t")
        self.secrets["nobody"] = self.generate()
        self.secrets["admin"] = MASTER
        for cost, name, team in ((1, "ann", ""), (2, "bob", ""), (4, "bob", "t"), (8, "ann", "t")):
            self.spend(cost * PICO, user_id=name, team_id=team, key_hash=f"of {name}")
        self.spend(16 * PICO, key_hash=self.key_of(self.secrets["nobody"]).id)

    def sums(self, path: str) -> dict[str, int]:
        """What each sees, in all."""
        return {
            who: sum(row["spend"] for row in self.get(path, key=secret))
            for who, secret in self.secrets.items()
        }

    def test_rows(self) -> None:
        """Everybody sees their own, whoever leads a team also the team's."""
        for query, expected in (
            ("", {"ann": 9, "bob": 6, "member": 6, "lead": 9, "nobody": 16, "admin": 31}),
            (
                "?user_id=ann",
                {"ann": 9, "bob": 0, "member": 0, "lead": 9, "nobody": 0, "admin": 9},
            ),
            (
                "?team_id=t",
                {"ann": 8, "bob": 4, "member": 4, "lead": 12, "nobody": 0, "admin": 12},
            ),
            (
                "?api_key=of%20bob",
                {"ann": 0, "bob": 6, "member": 6, "lead": 0, "nobody": 0, "admin": 6},
            ),
        ):
            self.assertEqual(self.sums(f"/spend/logs{query}"), expected, query)

    def test_totals(self) -> None:
        """And so in sums."""
        for who, total in (("ann", 9), ("bob", 6), ("nobody", 16), ("admin", 31)):
            key = self.secrets[who]
            self.assertEqual(self.get("/global/spend", key=key)["spend"], total, who)
        [row] = self.get("/spend/users", key=self.secrets["bob"])
        self.assertEqual((row["user_id"], row["spend"]), ("bob", 6))
        self.assertEqual(
            self.get("/global/spend?user_id=ann", key=self.secrets["bob"])["spend"], 0
        )
        csv = self.ask("GET", "/global/spend/teams", key=self.secrets["bob"]).json
        self.assertEqual([(row["team_id"], row["total_spend"]) for row in csv], [("t", 4)])

    def test_by_a_new_secret(self) -> None:
        """A key is found in the ledger by whatever secret it has now."""
        old = self.generate()
        self.spend(5 * PICO, key_hash=self.key_of(old).id)
        new = self.post("/key/regenerate", {"key": old})["key"]
        self.assertEqual(self.get(f"/global/spend?api_key={new}")["spend"], 5)
        self.assertEqual(self.get("/global/spend?api_key=sk-unknown")["spend"], 0)


class OffTests(ManagementTestCase):
    """Without a database."""

    def test_off(self) -> None:
        """All paths say what to configure; nothing is done, and nobody is let in."""
        self.serve(None, None)
        for path in (
            "/key/generate",
            "/key/info?key=x",
            "/key/sk-planted/regenerate",
            "/user/new",
            "/team/list",
            "/customer/new",
            "/end_user/list",
            "/budget/list",
            "/tag/list",
            "/audit",
            "/v2/key/info",
            "/key",
        ):
            for method in ("GET", "POST"):
                answer = self.ask(method, path)
                self.assertEqual(answer.status, 503, path)
                self.assertIn("general_settings.database_url", answer.message)
                self.assertEqual(self.ask(method, path, key=None).status, 401)
        self.assertEqual(self.directory.of(Key), [])
