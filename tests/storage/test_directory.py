"""
What is granted: kept as it was given, changed by one at a time, on record; SQLite and
PostgreSQL.
"""

from __future__ import annotations

import glob
import os
import random
import sqlite3
from collections.abc import Callable, Coroutine
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import LogLevel
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import until
from tests.postgres import server
from tests.storage.helpers import OnPostgres, OnSqlite, StorageTestCase, entry
from txbedrock.core.entries import Filters
from txbedrock.core.grants import (
    Budget,
    Customer,
    Grant,
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
from txbedrock.errors import GrantExists, GrantNotFound, InvalidRequest, ProxyError
from txbedrock.interfaces import GrantSearch
from txbedrock.storage import database as database_module
from txbedrock.storage.database import Contention, Database, DatabaseUnavailable, load_schema
from txbedrock.storage.directory import _MAX_PAYLOAD_BYTES, CHANNEL, Directory, _payloads
from txbedrock.storage.ledger import Ledger

NOW = 1_790_000_000.0
NOW_US = 1_790_000_000_000_000
_INFO = LogLevel.info
TABLES = ("keys", "users", "teams", "customers", "budgets", "tags", "tokens", "members", "audit")


def hashed(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def key(secret: str, **changes: Any) -> Key:
    """A key with one secret."""
    values: dict[str, Any] = {
        "id": hashed(secret),
        "tokens": (Token(hash=hashed(secret), shown=f"sk-...{secret[-4:]}"),),
    }
    return Key(**{**values, **changes})


LIMITS = Limits(
    rpm=1,
    tpm=2,
    max_parallel=3,
    max_budget=10**20,
    soft_budget=5,
    budget_duration="30d",
    budget_start_us=6,
    budget_increase=7,
    budget_increase_until_us=8,
    models={"nova": ModelLimits(rpm=1, max_budget=2, budget_duration="1mo")},
)
PERMISSIONS = Permissions(
    models=("nova", "anthropic.*"),
    allowed_routes=("llm_api_routes",),
    operations=("bedrock:Converse",),
    denied_operations=("bedrock:InvokeModel*",),
    allowed_ips=("10.0.0.0/8",),
)
METADATA = {"müll": [1, 2.5, None, {"a": "\0 ' \" \\ Ω 😀"}]}

FULL: tuple[Grant, ...] = (
    Budget(id="b1", limits=LIMITS, metadata=METADATA),
    User(
        id="alice@example.com", alias="Alice", email="alice@example.com", budget_id="b1",
        role=Role.PROXY_ADMIN_VIEWER, limits=LIMITS, permissions=PERMISSIONS, blocked=True,
    ),
    Team(
        id="red", alias="Die Röten", budget_id="b1", limits=LIMITS, member_limits=LIMITS,
        permissions=PERMISSIONS, aliases={"a": "b"},
        members=(
            Member(user_id="zoë", role="admin", limits=LIMITS), Member(user_id="alice"),
            Member(user_id="bob"),
        ),
    ),
    Key(
        id="k" * 64, alias="one", user_id="alice@example.com", team_id="red", budget_id="b1",
        tokens=(
            Token(hash="1" * 64, shown="sk-...aB3x", access_key_id="TXBKA", expires_us=9),
            Token(hash="2" * 64),
        ),
        type=KeyType.MANAGEMENT, expires_us=10, tags=("prod", "x"), aliases={"a": "c"},
        limits=LIMITS, permissions=PERMISSIONS, metadata=METADATA, blocked=True,
    ),
    Customer(id="e1", alias="End", budget_id="b1", limits=LIMITS),
    Tag(id="prod", description="in production", budget_id="b1", limits=LIMITS),
)  # fmt: skip
"""One of each kind with all it can have, in the order in which they can be added."""

BARE: tuple[Grant, ...] = (
    Budget(id="b"), User(id="u"), Team(id="t"), Key(id="k"), Customer(id="c"), Tag(id="g"),
)  # fmt: skip


class DirectoryTestCase(StorageTestCase):
    """Helpers."""

    new_url: Callable[[], str]

    def setUp(self) -> None:
        super().setUp()
        self.url = self.new_url()
        self.now = NOW

    def directory(self, *configured: Key, url: str | None = None) -> Directory:
        """With a database of its own, as another process has it."""
        return Directory(
            self.database(url or self.url), wall_clock=lambda: self.now, configured=configured
        )

    async def fails(
        self, awaitable: Coroutine[Any, Any, object], error: type[ProxyError], *parts: str
    ) -> None:
        """It is refused, and the message says this."""
        deferred: Deferred[Any] = Deferred.fromCoroutine(awaitable)
        raised: Any = await self.assertFailure(deferred, error)
        for part in parts:
            self.assertIn(part, raised.message)

    async def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """The database itself."""
        database = self.database(self.url)
        async with database.transaction() as connection:
            cursor = await connection.cursor()
            await cursor.execute(sql)
            found = [tuple(row) for row in await cursor.fetchall()]
        await database.close()
        return found


class DirectoryMixin:
    """What holds on both."""

    async def test_round_trip(self: Any) -> None:
        """Everything is found again as it was added, by another process, too."""
        here, there = self.directory(), self.directory()
        for grants in (FULL, BARE):
            for grant in grants:
                await here.add(grant, "me")
            for grant in grants:
                kept = msgspec.structs.replace(
                    grant, created_us=NOW_US, created_by="me", updated_us=NOW_US, updated_by="me"
                )
                self.assertEqual(await here.get(type(grant), grant.id), kept)
                self.assertEqual(await there.get(type(grant), grant.id), kept)
                found, count = await there.find(type(grant), GrantSearch({}, "id", False))
                self.assertIn(kept, found)
                self.assertEqual(count, len(found))

    async def test_change(self: Any) -> None:
        """A change is kept, with when and by whom; what it was made from stays on record."""
        directory = self.directory()
        for grant in (*FULL, *BARE):
            await directory.add(grant, "me")
        self.now += 60
        for grant in FULL:
            changed = await directory.change(
                type(grant),
                grant.id,
                lambda kept: msgspec.structs.replace(kept, blocked=not kept.blocked),
                "you",
                "block",
            )
            self.assertEqual(
                changed,
                msgspec.structs.replace(
                    grant,
                    blocked=not grant.blocked,
                    created_us=NOW_US,
                    created_by="me",
                    updated_us=NOW_US + 60_000_000,
                    updated_by="you",
                ),
            )
            self.assertEqual(await directory.get(type(grant), grant.id), changed)

    async def test_change_nothing(self: Any) -> None:
        """What changes nothing is no change."""
        directory = self.directory()
        await directory.add(User(id="u"), "me")
        self.now += 60
        before = await directory.get(User, "u")
        self.assertEqual(await directory.change(User, "u", lambda kept: kept, "you"), before)
        self.assertEqual(await directory.get(User, "u"), before)
        self.assertEqual(len(await directory.audit(None, None, None, 100)), 1)

    async def test_change_fails(self: Any) -> None:
        """If the change itself says no, nothing is changed and nothing is on record."""
        directory = self.directory()
        heard: list[tuple[str, str]] = []
        await directory.add(User(id="u"), "me")
        directory.subscribe(lambda kind, id: heard.append((kind, id)))

        def refuse(user: User) -> User:
            raise InvalidRequest("no")

        await self.fails(directory.change(User, "u", refuse, "you"), InvalidRequest, "no")
        self.assertEqual((await directory.get(User, "u")).updated_by, "me")
        self.assertEqual(len(await directory.audit(None, None, None, 100)), 1)
        self.assertEqual(heard, [])

        def other(user: User) -> User:
            return User(id="v")

        await self.assertFailure(
            Deferred.fromCoroutine(directory.change(User, "u", other, "you")), ValueError
        )
        self.assertEqual((await directory.find(User, GrantSearch()))[1], 1)

    async def test_remove(self: Any) -> None:
        """What was removed is gone, and can be added again."""
        directory = self.directory()
        for _ in range(2):
            for grant in BARE:
                await directory.add(grant, "me")
            for grant in BARE:
                removed = await directory.remove(type(grant), grant.id, "me")
                self.assertEqual(removed.id, grant.id)
                for again in (
                    directory.get(type(grant), grant.id),
                    directory.remove(type(grant), grant.id, "me"),
                    directory.change(type(grant), grant.id, lambda kept: kept, "me"),
                ):
                    await self.fails(again, GrantNotFound)
                self.assertEqual(await directory.find(type(grant), GrantSearch()), ([], 0))
        self.assertEqual(await self.ask("SELECT count(*) FROM txbedrock_tokens"), [(0,)])
        self.assertEqual(await self.ask("SELECT count(*) FROM txbedrock_members"), [(0,)])

    async def test_unique(self: Any) -> None:
        """Ids, aliases of keys, and secrets belong to one only; also those of config.yaml."""
        configured = key(
            "sk-config",
            alias="configured",
            tokens=(Token(hash=hashed("sk-config"), access_key_id="TXBKC"),),
        )
        directory = self.directory(configured)
        one = key("sk-1", alias="one", tokens=(Token(hash="1" * 64, access_key_id="TXBK1"),))
        await directory.add(one, "me")
        await directory.add(key("sk-2"), "me")
        await directory.add(key("sk-3"), "me")  # No alias is taken twice.
        taken: list[tuple[Key, str]] = [
            (one, "id"),
            (configured, "id"),
            (key("sk-4", alias="one"), "alias 'one'"),
            (key("sk-4", alias="configured"), "alias 'configured'"),
            (key("sk-4", tokens=(Token(hash="1" * 64),)), "secret"),
            (key("sk-4", tokens=(Token(hash=hashed("sk-config")),)), "secret"),
            (key("sk-4", tokens=(Token(hash="4" * 64, access_key_id="TXBK1"),)), "secret"),
            (key("sk-4", tokens=(Token(hash="4" * 64, access_key_id="TXBKC"),)), "secret"),
        ]
        for grant, why in taken:
            await self.fails(directory.add(grant, "me"), GrantExists, why)
            if "id" not in why:
                change = directory.change(
                    Key,
                    hashed("sk-2"),
                    lambda kept, grant=grant: msgspec.structs.replace(
                        kept, alias=grant.alias, tokens=grant.tokens
                    ),
                    "me",
                )
                await self.fails(change, GrantExists, why)
        twice = key("sk-4", tokens=(Token(hash="4" * 64), Token(hash="4" * 64)))
        await self.fails(directory.add(twice, "me"), InvalidRequest, "twice")
        for kind in (Team, User, Budget, Customer, Tag):
            await directory.add(kind(id="t"), "me")
            await self.fails(directory.add(kind(id="t"), "me"), GrantExists, "'t' already")
        # Its own it may keep.
        await directory.change(
            Key, one.id, lambda kept: msgspec.structs.replace(kept, blocked=True), "me"
        )
        await directory.remove(Key, one.id, "me")
        await directory.add(key("sk-4", alias="one", tokens=one.tokens), "me")

    async def test_made_at_once(self: Any) -> None:
        """Of many who take the same alias at once one gets it, and the others are told."""
        directories = [self.directory(), self.directory()]
        results = await gatherResults(
            [
                Deferred.fromCoroutine(
                    directories[number % 2].add(key(f"sk-{number}", alias="same"), "me")
                ).addCallbacks(lambda _: "added", lambda failure: failure.value.message)
                for number in range(20)
            ]
        )
        self.assertEqual(results.count("added"), 1)
        results.remove("added")
        for message in results:
            self.assertIn("Another key has the alias 'same'", message)

    async def test_rotate(self: Any) -> None:
        """A key answers to its new secrets, and to the old ones as long as it has them."""
        directory = self.directory()
        await directory.add(key("sk-old", alias="k"), "me")
        id = hashed("sk-old")

        def rotate(*secrets: str) -> Callable[[Key], Key]:
            tokens = tuple(Token(hash=hashed(secret)) for secret in secrets)
            return lambda kept: msgspec.structs.replace(kept, tokens=tokens)

        await directory.change(Key, id, rotate("sk-new", "sk-old"), "me", "regenerate")
        for secret in ("sk-new", "sk-old"):
            self.assertEqual((await directory.key(secret)).id, id)
        await directory.change(Key, id, rotate("sk-new"), "me")
        self.assertEqual((await directory.key("sk-new")).id, id)
        await self.fails(directory.key("sk-old"), GrantNotFound)
        # By its first secret's hash it is still known.
        self.assertEqual((await directory.key(id)).id, id)
        await directory.add(key("sk-x", tokens=(Token(hash=hashed("sk-old")),)), "me")

    async def test_key_by_name(self: Any) -> None:
        """A key is found by secret, hash, id and alias; a secret comes before an alias."""
        configured = key("sk-config", alias="in file")
        directory = self.directory(configured)
        one = key("sk-1", alias="one", tokens=(Token(hash=hashed("s")), Token(hash=hashed("t"))))
        await directory.add(one, "me")
        for name in ("s", "t", hashed("s"), hashed("t"), one.id, "one"):
            self.assertEqual((await directory.key(name)).id, one.id)
        for name in ("sk-config", configured.id, "in file"):
            self.assertEqual(await directory.key(name), configured)
        # Somebody who calls a key like another one's secret, hash or id gains nothing.
        await directory.add(key("sk-2", alias="s"), "me")
        await directory.add(key("sk-3", alias=one.id), "me")
        await directory.add(key("sk-4", alias=hashed("t")), "me")
        for name in ("s", one.id, hashed("t")):
            self.assertEqual((await directory.key(name)).id, one.id)
        for name in ("", "sk-9", "nobody", "\0", "\ud800"):
            await self.fails(directory.key(name), GrantNotFound)
        error = await self.assertFailure(
            Deferred.fromCoroutine(directory.key("sk-planted-secret")), GrantNotFound
        )
        self.assertNotIn("planted", repr(error) + error.message + error.detail)

    async def test_configured(self: Any) -> None:
        """Keys of config.yaml are seen like others; they are not changed from here."""
        await self.directory().add(Team(id="red"), "me")
        await self.directory().add(User(id="u"), "me")
        await self.directory().add(Budget(id="b"), "me")
        configured = key("sk-config", alias="c", team_id="red", user_id="u", budget_id="b")
        directory = self.directory(configured, key("sk-other"))
        self.assertEqual(await directory.get(Key, configured.id), configured)
        for refused in (
            directory.change(Key, configured.id, lambda kept: kept, "me"),
            directory.remove(Key, configured.id, "me"),
        ):
            await self.fails(
                refused, InvalidRequest, "'c' stands in config.yaml", "change it there"
            )
        for kind, id in ((Team, "red"), (User, "u"), (Budget, "b")):
            await self.fails(
                directory.remove(kind, id, "me"), GrantExists, "1 key of config.yaml has", repr(id)
            )

    async def test_counts(self: Any) -> None:
        """Two processes that change the same 200 times each lose nothing."""
        directories = [self.directory(), self.directory()]
        await directories[0].add(Team(id="t"), "me")

        def count(team: Team) -> Team:
            number = team.metadata.get("n", 0) + 1
            members = (*team.members, Member(user_id=f"u{number}"))
            return msgspec.structs.replace(team, metadata={"n": number}, members=members)

        async def many(directory: Directory) -> None:
            for _ in range(50):
                await directory.change(Team, "t", count, "me")

        await gatherResults(
            [Deferred.fromCoroutine(many(directories[number % 2])) for number in range(8)]
        )
        team = await directories[0].get(Team, "t")
        self.assertEqual(team.metadata, {"n": 400})
        self.assertEqual([one.user_id for one in team.members], [f"u{n + 1}" for n in range(400)])
        self.assertEqual(
            await self.ask("SELECT count(*), count(DISTINCT after_document) FROM txbedrock_audit"),
            [(401, 401)],
        )

    async def test_members(self: Any) -> None:
        """Members keep their order, whatever is done to them."""
        directory = self.directory()
        rng = random.Random(5)
        names = [f"user {number}" for number in range(12)]
        await directory.add(Team(id="other", members=(Member(user_id="user 1"),)), "me")
        await directory.add(Team(id="t"), "me")
        for _ in range(40):
            members = tuple(
                Member(user_id=name, role=rng.choice(["user", "admin"]))
                for name in rng.sample(names, rng.randrange(12))
            )
            await directory.change(
                Team,
                "t",
                lambda kept, members=members: msgspec.structs.replace(kept, members=members),
                "me",
            )
            self.assertEqual((await directory.get(Team, "t")).members, members)
            for name in names:
                teams, _ = await directory.find(Team, GrantSearch({"user_id": name}, "id", False))
                expected = [
                    *(["other"] if name == "user 1" else []),
                    *(["t"] if name in [one.user_id for one in members] else []),
                ]
                self.assertEqual([team.id for team in teams], expected)
        twice = tuple(Member(user_id=name) for name in "uvu")
        await self.fails(
            directory.add(Team(id="x", members=twice), "me"), InvalidRequest, "'u' is twice"
        )

    async def test_audit(self: Any) -> None:
        """Every change is on record: when, who, what, before and after; and no hash."""
        directory = self.directory()
        await directory.add(key("sk-1", alias="a"), "admin")
        await directory.add(Team(id="t", members=(Member(user_id="u"), Member(user_id="v"))), "me")
        self.now += 1
        await directory.change(
            Key,
            hashed("sk-1"),
            lambda kept: msgspec.structs.replace(
                kept, alias="b", tokens=(Token(hash="2" * 64, shown="sk-...2222"), *kept.tokens)
            ),
            "you",
            "regenerate",
        )
        self.now += 1
        await directory.change(
            Team,
            "t",
            lambda kept: msgspec.structs.replace(
                kept, members=(kept.members[0], Member(user_id="w"))
            ),
            "you",
        )
        self.now += 1
        await directory.remove(Key, hashed("sk-1"), "other")
        records = await directory.audit(None, None, None, 100)
        self.assertEqual(
            [(one.at_us - NOW_US, one.actor, one.action, one.kind, one.id) for one in records],
            [
                (3_000_000, "other", "delete", "key", hashed("sk-1")),
                (2_000_000, "you", "update", "team", "t"),
                (1_000_000, "you", "regenerate", "key", hashed("sk-1")),
                (0, "me", "create", "team", "t"),
                (0, "admin", "create", "key", hashed("sk-1")),
            ],
        )
        deleted, members, rotated, _, created = records
        self.assertIsNone(created.before)
        self.assertIsNone(deleted.after)
        self.assertEqual(created.after["tokens"], [{"shown": "sk-...sk-1"}])
        tokens = [one["shown"] for one in rotated.after["tokens"]]
        self.assertEqual(tokens, ["sk-...2222", "sk-...sk-1"])
        self.assertEqual((rotated.before["alias"], rotated.after["alias"]), ("a", "b"))
        self.assertEqual(rotated.after, deleted.before)
        self.assertNotIn("2" * 64, repr(records))
        # Of a large team only what changed.
        self.assertEqual(members.before["members"], [{"user_id": "v"}])
        self.assertEqual(members.after["members"], [{"user_id": "w"}])
        id, team = hashed("sk-1"), [("update", "team"), ("create", "team")]
        for arguments, expected in (
            (("team", None, None, 9), team),
            (("team", "t", None, 1), team[:1]),
            ((None, id, None, 9), [("delete", "key"), ("regenerate", "key"), ("create", "key")]),
            (("key", id, records[0].at_us, 1), [("regenerate", "key")]),
            ((None, None, records[2].at_us, 9), [("create", "team"), ("create", "key")]),
            (("key", "\0", None, 9), []),
        ):
            found = await directory.audit(*arguments)
            self.assertEqual([(one.action, one.kind) for one in found], expected)

    async def test_audit_pages(self: Any) -> None:
        """What was done in one go is listed page by page without a gap."""
        directory = self.directory()
        await directory.add(Team(id="t"), "me")
        for number in range(7):
            self.now += 1
            await directory.add(key(f"sk-{number}", team_id="t"), "me")
        self.now += 1
        await directory.remove(Team, "t", "me")
        pages: list[Any] = []
        before_us = None
        while page := await directory.audit(None, None, before_us, 3):
            pages += page
            before_us = page[-1].at_us
        self.assertEqual([one.action for one in pages], ["delete"] * 8 + ["create"] * 8)

    async def test_remove_team(self: Any) -> None:
        """With a team go its keys, each on record, and nobody else's."""
        directory = self.directory()
        heard: set[tuple[str, str]] = set()
        for team in ("red", "blue"):
            await directory.add(Team(id=team, members=(Member(user_id="u"),)), "me")
        for number in range(5):
            await directory.add(key(f"sk-{number}", team_id=("red", "blue")[number % 2]), "me")
        directory.subscribe(lambda kind, id: heard.add((kind, id)))
        removed = await directory.remove(Team, "red", "you")
        self.assertEqual([one.user_id for one in removed.members], ["u"])
        keys, count = await directory.find(Key, GrantSearch())
        self.assertEqual(({one.team_id for one in keys}, count), ({"blue"}, 2))
        gone = {("key", hashed(f"sk-{number}")) for number in (0, 2, 4)}
        records = await directory.audit(None, None, None, 4)
        self.assertEqual({(one.kind, one.id) for one in records}, {("team", "red"), *gone})
        self.assertEqual({(one.actor, one.action) for one in records}, {("you", "delete")})
        self.assertEqual(heard, {("team", "red"), *gone})
        for number in (0, 2, 4):
            await self.fails(directory.key(f"sk-{number}"), GrantNotFound)
        self.assertEqual(await self.ask("SELECT count(*) FROM txbedrock_tokens"), [(2,)])
        self.assertEqual(await self.ask("SELECT team_id FROM txbedrock_members"), [("blue",)])

    async def test_remove_user(self: Any) -> None:
        """With a user go its keys and its places in teams."""
        directory = self.directory()
        both = (Member(user_id="u"), Member(user_id="v"))
        await directory.add(User(id="u"), "me")
        for team in ("red", "blue", "green"):
            await directory.add(Team(id=team, members=both if team != "green" else both[1:]), "me")
        await directory.add(key("sk-own", user_id="u"), "me")
        await directory.add(key("sk-team", user_id="u", team_id="red"), "me")
        await directory.add(key("sk-other", user_id="v", team_id="red"), "me")
        await directory.remove(User, "u", "you")
        keys, _ = await directory.find(Key, GrantSearch())
        self.assertEqual([one.id for one in keys], [hashed("sk-other")])
        for team in ("red", "blue", "green"):
            self.assertEqual((await directory.get(Team, team)).members, both[1:])
        records = await directory.audit(None, None, None, 5)
        self.assertEqual(
            sorted((one.action, one.kind) for one in records),
            [("delete", "key")] * 2 + [("delete", "user")] + [("update", "team")] * 2,
        )

    async def test_remove_budget(self: Any) -> None:
        """A budget that something has stays, and who has it is said."""
        directory = self.directory()
        await directory.add(Budget(id="b"), "me")
        holders = (
            key("sk-1", budget_id="b"), key("sk-2", budget_id="b"),
            User(id="u", budget_id="b"), Team(id="t", budget_id="b"),
            Customer(id="c", budget_id="b"), Tag(id="g", budget_id="b"),
        )  # fmt: skip
        for grant in holders:
            await directory.add(grant, "me")
        await self.fails(
            directory.remove(Budget, "b", "me"),
            GrantExists,
            "'b' is still in use, by 2 keys, 1 user, 1 team, 1 customer, 1 tag",
        )
        for grant in holders:
            await self.fails(directory.remove(Budget, "b", "me"), GrantExists)
            await directory.change(
                type(grant),
                grant.id,
                lambda kept: msgspec.structs.replace(kept, budget_id=""),
                "me",
            )
        await directory.remove(Budget, "b", "me")

    async def test_refer(self: Any) -> None:
        """Teams and budgets have to be there before something refers to them; users not."""
        directory = self.directory()
        await directory.add(key("sk-1", user_id="nobody"), "me")
        refused: list[tuple[Grant, str]] = [
            (key("sk-2", team_id="none"), "no team 'none'"),
            (key("sk-2", budget_id="none"), "no budget 'none'"),
            (User(id="x", budget_id="none"), "no budget 'none'"),
            (Team(id="x", budget_id="none"), "no budget 'none'"),
            (Customer(id="x", budget_id="none"), "no budget 'none'"),
            (Tag(id="x", budget_id="none"), "no budget 'none'"),
        ]
        for grant, why in refused:
            await self.fails(directory.add(grant, "me"), InvalidRequest, why, "/new")
            await self.fails(directory.get(type(grant), grant.id), GrantNotFound)
        for field, what in (("team_id", "team"), ("budget_id", "budget")):
            change = directory.change(
                Key,
                hashed("sk-1"),
                lambda kept, field=field: msgspec.structs.replace(kept, **{field: "none"}),
                "me",
            )
            await self.fails(change, InvalidRequest, f"no {what} 'none'")

    async def test_refer_while_removed(self: Any) -> None:
        """Nothing is left that refers to what is removed at the same moment."""
        here, there = self.directory(), self.directory()
        for round in range(15):
            team, budget = f"t{round}", f"b{round}"
            await here.add(Team(id=team), "me")
            await here.add(Budget(id=budget), "me")
            working = [
                here.remove(Team, team, "me"),
                here.remove(Budget, budget, "me"),
                *(there.add(key(f"sk-{round}-{n}", team_id=team), "me") for n in range(2)),
                *(there.add(key(f"sk-{round}-b{n}", budget_id=budget), "me") for n in range(2)),
            ]
            for deferred in [Deferred.fromCoroutine(one) for one in working]:
                deferred.addErrback(lambda failure: failure.trap(GrantExists, InvalidRequest))
                await deferred
        for what in ("team", "budget"):
            orphans = await self.ask(
                f"SELECT id FROM txbedrock_keys WHERE {what}_id <> '' "
                f"AND {what}_id NOT IN (SELECT id FROM txbedrock_{what}s)"
            )
            self.assertEqual(orphans, [])

    async def test_find(self: Any) -> None:
        """Filters, orders and pages are those of a list that is searched by hand."""
        rng = random.Random(7)

        def some(number: int, **more: Any) -> Key:
            return key(
                f"sk-{number}",
                alias=rng.choice(["", f"Alias {number}", f"älias {number}", f"alias {number}"]),
                user_id=rng.choice(["", "u", "v"]),
                **more,
            )

        ours = [
            some(number, created_us=NOW_US + rng.randrange(40) * 1_000_000, created_by="me")
            for number in range(100, 106)
        ]
        directory = self.directory(*ours)
        await directory.add(Team(id="red"), "me")
        await directory.add(Budget(id="b"), "me")
        for number in range(40):
            self.now = NOW + rng.randrange(20)
            await directory.add(
                some(number, team_id=rng.choice(["", "red"]), budget_id=rng.choice(["", "b"])),
                rng.choice(["me", "you"]),
            )
        everything, count = await directory.find(Key, GrantSearch(limit=1000))
        self.assertEqual((len(everything), count), (46, 46))
        values = {
            "alias": ["", "Alias 3", "none"], "user_id": ["", "u", "w"], "team_id": ["", "red"],
            "budget_id": ["", "b"], "created_by": ["me", "you"],
        }  # fmt: skip
        sizes = set()
        for _ in range(150):
            names = rng.sample(sorted(values), rng.choice([0, 0, 1, 1, 2, 3]))
            search = GrantSearch(
                filters={name: rng.choice(values[name]) for name in names},
                order_by=rng.choice(["created_us", "updated_us", "alias", "id"]),
                descending=rng.random() < 0.5,
                offset=rng.choice([0, 0, 1, 3, 6, 20, 100]),
                limit=rng.choice([0, 1, 5, 100]),
            )
            matching = sorted(
                (
                    one
                    for one in everything
                    if all(getattr(one, name) == value for name, value in search.filters.items())
                ),
                key=lambda one: (getattr(one, search.order_by), one.id),
                reverse=search.descending,
            )
            page = matching[search.offset : search.offset + search.limit]
            found, count = await directory.find(Key, search)
            self.assertEqual([one.id for one in found], [one.id for one in page], search)
            self.assertEqual(count, len(matching))
            sizes.add(len(page))
        self.assertGreater(len(sizes), 8)

    async def test_find_others(self: Any) -> None:
        """Each kind is found by what it has; what it has not is said."""
        directory = self.directory()
        await directory.add(Budget(id="b"), "me")
        await directory.add(User(id="u", alias="A", email="a@b", budget_id="b"), "me")
        await directory.add(User(id="w"), "me")
        await directory.add(Team(id="t", alias="T", members=(Member(user_id="u"),)), "me")
        await directory.add(Customer(id="c", alias="C", budget_id="b"), "you")
        await directory.add(Tag(id="g", budget_id="b"), "me")
        found: list[tuple[type[Grant], dict[str, str], list[str]]] = [
            (User, {"email": "a@b"}, ["u"]),
            (User, {"team_id": "t"}, ["u"]),
            (User, {"team_id": "x"}, []),
            (User, {"alias": "A", "budget_id": "b", "created_by": "me"}, ["u"]),
            (User, {}, ["u", "w"]),
            (Team, {"user_id": "u", "alias": "T"}, ["t"]),
            (Team, {"user_id": "w"}, []),
            (Customer, {"created_by": "you"}, ["c"]),
            (Customer, {"created_by": "me"}, []),
            (Tag, {"budget_id": "b"}, ["g"]),
            (Budget, {"created_by": "me"}, ["b"]),
            (User, {"alias": "\0"}, []),
            (User, {"alias": "' OR 1 = 1 --"}, []),
        ]
        for kind, filters, ids in found:
            for order_by in ("created_us", "updated_us", "alias", "id"):
                grants, count = await directory.find(kind, GrantSearch(filters, order_by))
                self.assertEqual((sorted(one.id for one in grants), count), (ids, len(ids)))
        for other, name in ((Budget, "alias"), (Tag, "user_id"), (Key, "document"), (Key, "1=1")):
            search = GrantSearch({name: "x"})
            await self.fails(directory.find(other, search), InvalidRequest, "created_by")
        search = GrantSearch(order_by="document; --")
        await self.fails(directory.find(Key, search), InvalidRequest, "updated_us")
        for search in (GrantSearch(offset=-1), GrantSearch(limit=-1), GrantSearch(offset=2**63)):
            await self.fails(directory.find(Key, search), InvalidRequest, "page")

    async def test_bad_values(self: Any) -> None:
        """What no database keeps is refused, and is no outage."""
        directory = self.directory()
        await directory.add(User(id="u"), "me")
        refused: list[Grant] = [
            User(id=""), User(id="\0"), User(id="x\0y"), User(id="\ud800"), User(id="x" * 257),
            User(id="x", alias="\0"), User(id="x", alias="y" * 257), User(id="x", email="\ud800"),
            User(id="x", metadata={"a": "\ud800"}), User(id="x", metadata={"a": object()}),
            Team(id="x", members=(Member(user_id=""),)),
            Team(id="x", members=(Member(user_id="\0"),)),
            Team(id="x", members=(Member(user_id="y" * 300),)), Key(id="x", user_id="y" * 300),
            Key(id="x", team_id="\0"), Tag(id=""), Customer(id=""), Budget(id=""),
            Budget(id="x", limits=Limits(budget_duration="\ud800")),
            Key(id="x", tokens=(Token(hash="1", expires_us=2**63),)),
        ]  # fmt: skip
        for grant in refused:
            await self.fails(directory.add(grant, "me"), InvalidRequest)
        for name in ("\0", "\ud800", "x" * 100_000):
            await self.fails(directory.get(User, name), GrantNotFound)
            await self.fails(directory.remove(User, name, "me"), GrantNotFound)
            await self.fails(directory.change(User, name, lambda kept: kept, "me"), GrantNotFound)
        self.assertEqual((await directory.find(User, GrantSearch()))[1], 1)
        # As long as it may be.
        await directory.add(Team(id="😀" * 256, members=(Member(user_id="😀" * 256),)), "me")
        found = await directory.get(Team, "😀" * 256)
        self.assertEqual(found.members[0].user_id, "😀" * 256)

    async def test_listeners(self: Any) -> None:
        """Whoever has subscribed hears of each change when it is there, not before."""
        directory = self.directory()
        seen: list[Any] = []

        def listener(kind: str, id: str) -> None:
            seen.append((kind, id, Deferred.fromCoroutine(directory.find(User, GrantSearch()))))

        directory.subscribe(listener)
        for count, change in (
            (1, directory.add(User(id="u"), "me")),
            (0, directory.remove(User, "u", "me")),
        ):
            await change
            [(kind, id, finding)] = seen
            self.assertEqual((kind, id), ("user", "u"))
            self.assertEqual((await finding)[1], count)
            seen.clear()

    async def test_records(self: Any) -> None:
        """All that decides about a key is found together, for many keys, by hash or pair."""
        configured = key("sk-config", user_id="u", team_id="t")
        alone = key("sk-alone")
        directory = self.directory(configured, alone)
        for id in ("kb", "ub", "tb", "other"):
            await directory.add(Budget(id=id), "me")
        await directory.add(User(id="u", budget_id="ub"), "me")
        members = (Member(user_id="x"), Member(user_id="u", role="admin"))
        await directory.add(Team(id="t", budget_id="tb", members=members), "me")
        two = (Token(hash="1" * 64, access_key_id="TXBK1"), Token(hash="2" * 64))
        await directory.add(key("a", user_id="u", team_id="t", budget_id="kb", tokens=two), "me")
        await directory.add(key("b", user_id="nobody"), "me")
        await directory.add(key("c", team_id="t"), "me")
        records = await directory.records(
            ["1" * 64, "2" * 64, "TXBK1", hashed("b"), hashed("c"), hashed("none"), "TXBK9", "",
             hashed("sk-config"), hashed("sk-alone"), "\0"]
        )  # fmt: skip
        self.assertEqual(len(records), 7)
        for name, token in (("1" * 64, 0), ("2" * 64, 1), ("TXBK1", 0)):
            record = records[name]
            self.assertEqual((record.key.id, record.token), (hashed("a"), two[token]))
            self.assertEqual(record.user.id, "u")
            self.assertEqual((record.team.id, record.team.members), ("t", ()))
            self.assertEqual(record.member, members[1])
            self.assertEqual(set(record.budgets), {"kb", "ub", "tb"})
        record = records[hashed("b")]
        self.assertEqual((record.user, record.team, record.member), (None, None, None))
        self.assertEqual(record.budgets, {})
        record = records[hashed("c")]
        self.assertEqual((record.user, record.team.id, record.member), (None, "t", None))
        record = records[hashed("sk-config")]
        self.assertIs(record.key, configured)
        self.assertEqual((record.user.id, record.member), ("u", members[1]))
        self.assertIs(records[hashed("sk-alone")].key, alone)

    async def test_unreadable(self: Any) -> None:
        """A document that this version cannot read keeps nobody from reading the others."""
        directory = self.directory()
        await directory.add(key("a"), "me")
        await directory.add(key("b"), "me")
        await directory.add(Customer(id="c"), "me")
        await directory.add(Customer(id="d"), "me")
        bad = hashed("b")
        for sql in (
            f"UPDATE txbedrock_keys SET document = '{{\"id\": 5}}' WHERE id = '{bad}' RETURNING 1",
            "UPDATE txbedrock_customers SET document = 'x' WHERE id = 'd' RETURNING 1",
        ):
            self.assertEqual(await self.ask(sql), [(1,)])
        records = await directory.records([hashed("a"), bad])
        self.assertEqual(records[hashed("a")].key.id, hashed("a"))
        self.assertIsInstance(records[bad], DatabaseUnavailable)
        customers = await directory.customers(["c", "d"])
        self.assertEqual(customers["c"][0].id, "c")
        self.assertIsInstance(customers["d"], DatabaseUnavailable)
        self.assertEqual(len(self.messages()), 2)

    async def test_away(self: Any) -> None:
        """Everything says so when the database does not answer."""
        directory = self.directory(key("sk-config"))
        await directory.add(User(id="u"), "me")
        await directory._database.close()
        for asked in (
            directory.get(User, "u"),
            directory.key("x"),
            directory.find(Key, GrantSearch()),
            directory.add(User(id="v"), "me"),
            directory.change(User, "u", lambda kept: kept, "me"),
            directory.remove(User, "u", "me"),
            directory.audit(None, None, None, 1),
        ):
            await self.fails(asked, DatabaseUnavailable)
        self.assertEqual((await directory.key("sk-config")).id, hashed("sk-config"))
        records = await directory.records([hashed("sk-config"), hashed("x")])
        self.assertEqual(records[hashed("sk-config")].key.id, hashed("sk-config"))
        self.assertIsInstance(records[hashed("x")], DatabaseUnavailable)

    async def test_upgrade(self: Any) -> None:
        """A database that has a ledger only gets the rest, and keeps its ledger."""
        old = self.database(self.url, schema=load_schema(self.dialect)[:1])
        ledger = Ledger(self.journal(), old, reactor, batch_interval_s=0.01)
        ledger.startService()
        first = entry(1)
        ledger.record(first)
        self.assertTrue(await ledger.flush())
        await ledger.stopService()
        async with old.transaction(write=False) as connection:
            cursor = await connection.cursor()
            await cursor.execute("SELECT count(*) FROM txbedrock_ledger")
            self.assertEqual([tuple(row) for row in await cursor.fetchall()], [(1,)])
        await old.close()
        directory = self.directory()
        await directory.add(User(id="u"), "me")
        self.assertEqual((await directory.get(User, "u")).id, "u")
        again = self.ledger(self.url)
        self.assertEqual((await again.rows(Filters(), 10, None)).entries, (first,))
        self.assertEqual(
            await self.ask("SELECT number, name FROM txbedrock_schema ORDER BY number LIMIT 2"),
            [(1, "ledger"), (2, "grants")],
        )

    async def test_indexes(self: Any) -> None:
        """What is asked for at every miss is found by indexes."""
        directory = self.directory()
        await directory._database.open()
        plan = await self.plan("SELECT id FROM txbedrock_keys WHERE team_id = 'x'")
        self.assertIn("txbedrock_keys_team", plan)
        plan = await self.plan(
            "SELECT document FROM txbedrock_keys ORDER BY created_us DESC, id DESC LIMIT 5"
        )
        self.assertIn("txbedrock_keys_created", plan)


class SqliteDirectoryTests(DirectoryMixin, OnSqlite, DirectoryTestCase):
    """SQLite."""

    dialect = "sqlite"

    async def plan(self, sql: str) -> str:
        return str(await self.ask(f"EXPLAIN QUERY PLAN {sql}"))

    async def test_planted(self) -> None:
        """A secret is nowhere in the database's files, whatever was done with it."""
        directory = self.directory()
        secret = "sk-planted-secret-of-a-key"
        await self.fails(directory.key(secret), GrantNotFound)
        await directory.add(key(secret, alias="a"), "me")
        self.assertEqual((await directory.key(secret)).alias, "a")
        await directory.change(
            Key,
            hashed(secret),
            lambda kept: msgspec.structs.replace(kept, tokens=(Token(hash="3" * 64),)),
            "me",
        )
        await directory.remove(Key, hashed(secret), "me")
        files = glob.glob(f"{glob.escape(self.path('ledger.db'))}*")
        self.assertGreaterEqual(len(files), 2)  # the WAL, too
        content = b"".join(Path(file).read_bytes() for file in files)
        self.assertIn(hashed(secret).encode(), content)
        self.assertNotIn(b"planted", content)

    async def test_locked(self) -> None:
        """A change waits for another process that writes, and tries again."""
        self.patch(database_module, "_BUSY_S", 0.05)
        directory = self.directory()
        await directory.add(User(id="u"), "me")
        other = sqlite3.connect(self.path("ledger.db"), isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        reactor.callLater(0.08, other.execute, "ROLLBACK")
        changed = await directory.change(
            User, "u", lambda kept: msgspec.structs.replace(kept, alias="x"), "me"
        )
        self.assertEqual(changed.alias, "x")
        other.execute("BEGIN IMMEDIATE")
        change = directory.change(
            User, "u", lambda kept: msgspec.structs.replace(kept, alias="y"), "me"
        )
        await self.fails(change, Contention)
        other.execute("ROLLBACK")

    async def test_nothing_to_hear(self) -> None:
        """In a file nobody says anything."""
        database = self.database(self.url)
        stop = database.listen(CHANNEL, self.fail, self.fail)
        stop()


class PostgresDirectoryTests(DirectoryMixin, OnPostgres, DirectoryTestCase):
    """PostgreSQL."""

    dialect = "postgres"

    async def plan(self, sql: str) -> str:
        database = self.database(self.url)
        async with database.transaction() as connection:
            cursor = await connection.cursor()
            await cursor.execute("SET LOCAL enable_seqscan = off")
            await cursor.execute(f"EXPLAIN {sql}")
            return str(await cursor.fetchall())

    async def test_planted(self) -> None:
        """A secret is in no table, and not even sent to the server once it is known."""
        directory = self.directory()
        secret = "sk-planted-secret-of-a-key"
        await directory.add(key(secret, alias="a"), "me")
        self.assertEqual((await directory.key(secret)).alias, "a")
        rows = [
            await self.ask(f"SELECT CAST(t AS TEXT) FROM txbedrock_{table} t") for table in TABLES
        ]
        self.assertIn(hashed(secret), str(rows))
        self.assertNotIn("planted", str(rows))

    def listen(self, database: Database) -> tuple[list[str], list[str], Callable[[], None]]:
        heard: list[str] = []
        began: list[str] = []
        stop = database.listen(CHANNEL, heard.append, lambda: began.append("began"))
        self.addCleanup(stop)
        return heard, began, stop

    async def listeners(self) -> int:
        """How many connections listen."""
        [(count,)] = server().execute(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN %' "
            f"AND datname = '{self.url.partition('@/')[2].partition('?')[0]}'"
        )
        assert isinstance(count, int)
        return count

    async def test_notified(self) -> None:
        """Other processes hear of what was changed, when it can be seen; and of nothing else."""
        here, there = self.directory(), self.directory()
        heard, began, stop = self.listen(there._database)
        changes: list[tuple[str, str]] = []
        there.subscribe(lambda kind, id: changes.append((kind, id)))
        await until(lambda: len(began) == 1)
        await here.add(Team(id="t"), "me")
        await here.add(key("sk-1", team_id="t"), "me")
        await self.fails(here.add(Team(id="t"), "me"), GrantExists)
        await here.remove(Team, "t", "me")
        await until(lambda: len(heard) == 3)
        for text in heard:
            there.heard(text)
        one = ("key", hashed("sk-1"))
        self.assertEqual(changes, [("team", "t"), one, one, ("team", "t")])
        self.assertEqual(await self.listeners(), 1)
        stop()
        for _ in range(500):
            if not await self.listeners():
                break
            await here.add(Tag(id=f"g{_}"), "me")
        self.assertEqual(await self.listeners(), 0)
        self.assertEqual(len(heard), 3)

    async def test_server_restarts(self) -> None:
        """Listening begins anew when the server is back."""
        here = self.directory()
        await here.add(User(id="u"), "me")
        heard, began, _ = self.listen(self.database(self.url))
        await until(lambda: len(began) == 1)
        server().stop()
        self.addCleanup(lambda: None if server()._process else server().start())
        server().start()
        await until(lambda: len(began) == 2)
        await until(lambda: here._database.retry_in_s == 0)
        for _ in range(3):
            try:
                await here.remove(User, "u", "me")
                break
            except DatabaseUnavailable:  # The connection that was there before.
                await until(lambda: here._database.retry_in_s == 0)
        await until(lambda: heard == ['[["user","u"]]'])
        self.assertIn("is not heard of at once", str(self.messages(_INFO)))

    async def test_closed(self) -> None:
        """Who closes the database hears nothing any more."""
        database = self.database(self.url)
        heard, began, _ = self.listen(database)
        await until(lambda: len(began) == 1)
        await database.close()
        await self.directory().add(User(id="u"), "me")
        self.assertEqual(heard, [])
        self.listen(database)

    async def test_pgbouncer(self) -> None:
        """Where the URL says that connections are not kept, nobody listens."""
        database = self.database(f"{self.url}&pgbouncer=true")
        _, began, _ = self.listen(database)
        await Directory(database, wall_clock=lambda: NOW).add(User(id="u"), "me")
        self.assertEqual((began, await self.listeners()), ([], 0))

    async def test_no_listening(self) -> None:
        """Where listening is refused, everything else goes on, and it is said once."""
        database = self.database(self.url)
        heard: list[str] = []
        stop = database.listen("no such channel", heard.append, self.fail)
        self.addCleanup(stop)
        await until(lambda: len(self.messages(_INFO)) == 1)
        directory = Directory(database, wall_clock=lambda: NOW)
        await directory.add(User(id="u"), "me")
        self.assertEqual((await directory.get(User, "u")).id, "u")
        self.assertIn("syntax error", self.messages(_INFO)[0])


class PayloadTests(SynchronousTestCase):
    """What processes tell each other."""

    @settings(max_examples=200, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.sampled_from(["key", "user"]),
                st.text(st.characters(codec="utf-8"), min_size=1, max_size=256),
            ),
            max_size=40,
        )
    )
    def test_payloads(self, changes: list[tuple[str, str]]) -> None:
        """All changes are told, in order, in texts that PostgreSQL takes."""
        payloads = _payloads(changes)
        for payload in payloads:
            self.assertLessEqual(len(payload.encode()), _MAX_PAYLOAD_BYTES)
        told = [tuple(one) for payload in payloads for one in msgspec.json.decode(payload)]
        self.assertEqual(told, changes)

    def test_full(self) -> None:
        """As many as fit go into one."""
        payloads = _payloads([("key", "x" * 64)] * 1000)
        lengths = {len(payload) for payload in payloads[:-1]}
        self.assertEqual(len(lengths), 1)
        [length] = lengths
        self.assertTrue(_MAX_PAYLOAD_BYTES - 75 < length <= _MAX_PAYLOAD_BYTES < 8000, length)
        self.assertEqual(_payloads([]), [])

    def test_heard(self) -> None:
        """What nobody understands may mean anything."""
        database = Database(f"sqlite:///{os.path.abspath(self.mktemp())}", reactor)
        directory = Directory(database, wall_clock=lambda: NOW)
        heard: list[tuple[str, str]] = []
        directory.subscribe(lambda kind, id: heard.append((kind, id)))
        directory.heard('[["key","a"],["user","b"]]')
        self.assertEqual(heard, [("key", "a"), ("user", "b")])
        for payload in ("", "x", "{}", "[[1,2]]", '[["key"]]'):
            heard.clear()
            directory.heard(payload)
            self.assertEqual(heard, [("", "")], payload)
