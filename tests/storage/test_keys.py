"""
Who is behind a key: cached for a while, never longer than said; SQLite and PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from hashlib import sha256
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import pause, until
from tests.postgres import server
from tests.storage.helpers import OnPostgres, OnSqlite, StorageTestCase
from txbedrock.core import pairs, sigv4
from txbedrock.core.auth import Principal
from txbedrock.core.credentials import Credentials
from txbedrock.core.grants import (
    NO_LIMITS,
    Budget,
    Customer,
    Grant,
    Key,
    KeyType,
    Level,
    Limits,
    Member,
    Permissions,
    Role,
    Tag,
    Team,
    Token,
    User,
)
from txbedrock.core.operations import Operation
from txbedrock.core.permissions import EVERYTHING, Access
from txbedrock.errors import (
    AccessDenied,
    GrantNotFound,
    InvalidSignature,
    KeyBlocked,
    KeyExpired,
    ProxyError,
    UnrecognizedKey,
)
from txbedrock.interfaces import InboundRequest
from txbedrock.storage.database import DatabaseUnavailable
from txbedrock.storage.directory import Directory, KeyRecord
from txbedrock.storage.keys import AnyKey, KeyStore, MasterKey

NOW = 1_790_000_000.0
NOW_US = 1_790_000_000_000_000
SALT = b"planted-salt"
MASTER = "sk-planted-master"
BODY_SHA256 = sha256(b"").hexdigest()
CONVERSE = Operation(
    "bedrock-runtime", "Converse", "POST", "/model/{modelId}/converse", "bedrock",
    streams=False, bidirectional=False, takes_model=True,
)  # fmt: skip


class Body:
    """An empty one."""

    sha256 = BODY_SHA256
    length = 0


def hashed(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


def key(secret: str, **changes: Any) -> Key:
    """A key with one secret and the pair that is derived from it."""
    hash = hashed(secret)
    token = Token(hash=hash, shown="sk-...xxxx", access_key_id=pairs.access_key_id(hash))
    return Key(**{"id": hash, "tokens": (token,), **changes})


def request(*headers: tuple[bytes, bytes], path: bytes = b"/model/m/converse") -> InboundRequest:
    return InboundRequest(
        id="r1",
        method=b"POST",
        raw_path=path,
        raw_query=None,
        headers=[(b"Host", b"gateway"), *headers],
        body=Body(),  # type: ignore[arg-type]
        peer="127.0.0.1",
        received=NOW,
        received_path=b"/bedrock" + path,
    )


def bearer(secret: str) -> InboundRequest:
    return request((b"Authorization", b"Bearer " + secret.encode()))


def signed(
    access_key_id: str, secret: str = "any", token: str = "", at: float = NOW
) -> InboundRequest:
    """As an SDK sends it."""
    plain = request()
    headers = sigv4.sign(
        Credentials(access_key_id, secret, token or None),
        method=plain.method,
        raw_path=plain.received_path,
        raw_query=b"",
        headers=plain.headers,
        payload_sha256=BODY_SHA256,
        region="us-east-1",
        service="bedrock",
        timestamp=sigv4.amz_date(at),
        keys=sigv4.SigningKeys(),
    )
    return request(*headers)


class Observed(Directory):
    """Counts what is asked, and can be held up."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.asked: list[tuple[str, list[str]]] = []
        self.away = False
        self._held: list[Deferred[None]] | None = None

    def hold(self) -> None:
        """Keep back all answers; what they say is already decided."""
        self._held = []

    def release(self) -> None:
        """Give them."""
        held, self._held = self._held, None
        for waiter in held or ():
            waiter.callback(None)

    async def _observe(self, what: str, names: Sequence[str], answer: Any) -> Any:
        self.asked.append((what, list(names)))
        if self.away:
            answer.close()
            raise DatabaseUnavailable("it is away")
        answer = await answer
        if self._held is not None:
            waiter: Deferred[None] = Deferred()
            self._held.append(waiter)
            await waiter
        return answer

    async def records(self, names: Sequence[str]) -> dict[str, KeyRecord | DatabaseUnavailable]:
        found: dict[str, KeyRecord | DatabaseUnavailable]
        found = await self._observe("keys", names, super().records(names))
        return found

    async def customers(self, ids: Sequence[str]) -> Any:
        return await self._observe("customers", ids, super().customers(ids))

    async def tags(self, ids: Sequence[str]) -> Any:
        return await self._observe("tags", ids, super().tags(ids))

    async def populated(self) -> tuple[bool, bool]:
        found: tuple[bool, bool] = await self._observe("any", [], super().populated())
        return found


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of what must not wait for anything."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("it waits")


class KeyStoreTestCase(StorageTestCase):
    """A directory in a database, and a store over it."""

    new_url: Callable[[], str]

    def setUp(self) -> None:
        super().setUp()
        self.url = self.new_url()
        self.clock = Clock()
        self.clock.advance(1000)
        self.now = NOW
        self.directory = self.new_directory()
        self.store = self.new_store()

    def new_directory(self, *configured: Key) -> Observed:
        """With a database of its own, as another process has it."""
        return Observed(
            self.database(self.url), wall_clock=lambda: self.now, configured=configured
        )

    def new_store(self, directory: Observed | None = None, **options: Any) -> KeyStore:
        directory = directory or self.directory
        return KeyStore(
            MasterKey(MASTER),
            directory,
            directory._database,
            **{
                "salt": SALT,
                "access": partial(Access, access_groups={}),
                "reactor": self.clock,
                "wall_clock": lambda: self.now,
                **options,
            },
        )

    async def add(self, *grants: Grant) -> None:
        for grant in grants:
            await self.directory.add(grant, "me")
        self.directory.asked.clear()

    async def change(self, kind: type[Any], id: str, **changes: Any) -> None:
        def change(kept: Any) -> Any:
            return msgspec.structs.replace(kept, **changes)

        await self.directory.change(kind, id, change, "me")

    async def who(self, secret: str) -> Principal:
        return await self.store.principal(bearer(secret))

    def knows(self, secret: str) -> Principal:
        """Who it is, without waiting for anything."""
        principal: Principal = now(self.store.principal(bearer(secret)))
        return principal

    async def fails(
        self, coroutine: Coroutine[Any, Any, object], error: type[ProxyError], *parts: str
    ) -> ProxyError:
        """It is refused, and the message says this."""
        deferred: Deferred[Any] = Deferred.fromCoroutine(coroutine)
        raised: ProxyError = await self.assertFailure(deferred, error)
        for part in parts:
            self.assertIn(part, raised.message)
        # Its end may be shown, to tell it from others.
        self.assertNotRegex(raised.message + raised.detail, r"sk-(?!\.\.\.\S{4}$)")
        return raised

    def queries(self, what: str = "keys") -> list[list[str]]:
        """What was asked since it was asked last."""
        found = [names for asked, names in self.directory.asked if asked == what]
        self.directory.asked.clear()
        return found

    async def settled(self) -> None:
        """Until what was asked for in the background is here."""
        caches = (self.store._keys, self.store._customers, self.store._tags, self.store._any)
        await until(lambda: not any(one._running for one in caches))


class KeyStoreMixin:
    """What holds on both."""

    async def test_master_key(self: Any) -> None:
        """The master key is known at once, and whatever becomes of the database."""
        await self.directory._database.close()
        master = MASTER.encode()
        for made in (
            bearer(MASTER),
            request((b"x-api-key", master)),
            signed(MASTER),
            signed("dummy", token=MASTER),
            request((b"X-Amz-Security-Token", master)),
        ):
            principal = now(self.store.principal(made))
            self.assertEqual(principal.role, Role.PROXY_ADMIN)
            self.assertIs(principal.access, EVERYTHING)
        self.assertEqual(self.queries(), [])

    async def test_unknown(self: Any) -> None:
        """Who has no key, or one of nobody's, is told how to send one."""
        await self.fails(self.store.principal(request()), UnrecognizedKey, "has none")
        await self.fails(self.who("sk-planted"), UnrecognizedKey, "not one of this gateway's")
        sdk = self.store.principal(signed("sk-planted"))
        await self.fails(sdk, UnrecognizedKey, "access key id of the request's signature")

    async def test_carriers(self: Any) -> None:
        """A key is taken from wherever clients put it, also behind dummy credentials."""
        await self.add(key("sk-1"))
        for made in (
            bearer("sk-1"),
            request((b"x-api-key", b"sk-1")),
            signed("sk-1"),
            signed("dummy", token="sk-1"),
            request((b"X-Amz-Security-Token", b"sk-1")),
        ):
            principal = await self.store.principal(made)
            self.assertEqual(principal.key_hash, hashed("sk-1"))

    async def test_principal(self: Any) -> None:
        """What a key, its user, its team and their budgets say becomes one principal."""
        await self.add(
            Budget(id="b", limits=Limits(rpm=7, tpm=8)),
            User(
                id="u", alias="Ursula", role=Role.PROXY_ADMIN_VIEWER, limits=Limits(rpm=5),
                permissions=Permissions(denied_operations=("bedrock-runtime:Converse",)),
            ),
            Team(
                id="t", alias="Team", members=(Member(user_id="u", role="admin"),),
                member_limits=Limits(rpm=3), limits=Limits(rpm=4), aliases={"a": "1", "b": "2"},
                budget_id="b",
            ),
            key(
                "sk-1", alias="one", user_id="u", team_id="t", tags=("prod",), budget_id="b",
                type=KeyType.LLM_API, limits=Limits(rpm=1), aliases={"b": "3"},
            ),
            key("sk-2"),
            Team(
                id="plain", members=(Member(user_id="w"),),
                permissions=Permissions(denied_operations=("bedrock-runtime:Converse",)),
            ),
            User(id="w", limits=Limits(rpm=2)),
            key("sk-3", user_id="w", team_id="plain"),
            Team(id="own", members=(Member(user_id="v", limits=Limits(rpm=9)),)),
            key("sk-4", user_id="v", team_id="own"),
        )  # fmt: skip
        one = await self.who("sk-1")
        self.assertEqual(
            one,
            Principal(
                alias="one",
                key_hash=hashed("sk-1"),
                user_id="u",
                team_id="t",
                role=Role.PROXY_ADMIN_VIEWER,
                key_type=KeyType.LLM_API,
                access=one.access,
                levels=(
                    Level("key", hashed("sk-1"), "one", Limits(rpm=1, tpm=8)),
                    Level("team_member", "t/u", "u of Team", Limits(rpm=3)),
                    Level("team", "t", "Team", Limits(rpm=4, tpm=8)),
                    Level("user", "u", "Ursula", Limits(rpm=5)),
                ),
                aliases={"a": "1", "b": "3"},
                tags=("prod",),
                team_admin=True,
            ),
        )
        with self.assertRaises(AccessDenied):
            one.access.check_operation(CONVERSE)
        two = await self.who("sk-2")
        two.access.check_operation(CONVERSE)
        self.assertEqual(
            two,
            Principal(
                alias="sk-...xxxx",
                key_hash=hashed("sk-2"),
                access=two.access,
                # The key itself always, so that it can be said what it spent.
                levels=(Level("key", hashed("sk-2"), "sk-...xxxx", NO_LIMITS),),
            ),
        )
        three = await self.who("sk-3")
        self.assertEqual([level.kind for level in three.levels], ["key", "user"])
        self.assertFalse(three.team_admin)
        with self.assertRaises(AccessDenied):
            three.access.check_operation(CONVERSE)
        four = await self.who("sk-4")
        self.assertEqual(four.levels[1], Level("team_member", "own/v", "v of own", Limits(rpm=9)))
        self.assertEqual(four.role, Role.INTERNAL_USER)

    async def test_blocked(self: Any) -> None:
        """A key does not open if it is blocked, or its user, or its team; and if it can be."""
        await self.add(
            User(id="u", blocked=True),
            Team(id="t", alias="Reds", blocked=True),
            key("sk-k", blocked=True),
            key("sk-u", user_id="u"),
            key("sk-t", team_id="t"),
            key("sk-p", permissions=Permissions(allowed_ips=("nonsense",))),
        )
        for secret, *parts in (
            ("sk-k", "This key is blocked", "/key/unblock"),
            ("sk-u", "user 'u'", "blocked"),
            ("sk-t", "team 'Reds'", "/team/unblock"),
            ("sk-p", "permissions of this key cannot be used", "nonsense", "/key/update"),
        ):
            for _ in range(2):
                await self.fails(self.who(secret), KeyBlocked, *parts)
        await self.change(User, "u", blocked=False)
        await self.who("sk-u")

    async def test_expired(self: Any) -> None:
        """A key ends when it is to, to the microsecond and without a query."""
        later = NOW_US + 60_000_000

        def ends(secret: str, at_us: int) -> tuple[Token, ...]:
            return (Token(hash=hashed(secret), expires_us=at_us),)

        two = (Token(hash="n" * 64), *ends("sk-old", later))
        await self.add(
            key("sk-key", expires_us=later),
            key("sk-x", tokens=two),
            key("sk-both", expires_us=later, tokens=ends("sk-both", later)),
            key("sk-first", expires_us=later + 1, tokens=ends("sk-first", later)),
            key("sk-last", expires_us=later, tokens=ends("sk-last", later + 1)),
        )
        secrets = ("sk-key", "sk-old", "sk-both", "sk-first", "sk-last")
        for secret in secrets:
            await self.who(secret)
        self.now = NOW + 59.999
        for secret in secrets:
            self.knows(secret)
        self.queries()
        self.now = NOW + 60
        for secret, *parts in (
            ("sk-key", "expired at 2026-09-21T14:14:20Z", "/key/update"),
            ("sk-old", "secret was replaced", "until 2026-09-21T14:14:20Z", "new one"),
            ("sk-both", "key expired at"),
            ("sk-first", "secret was replaced"),
            ("sk-last", "key expired at"),
        ):
            error = await self.fails(self.who(secret), KeyExpired, *parts)
            self.assertEqual(error.code, "ExpiredTokenException")
        self.assertEqual(self.queries(), [])

    async def test_ages(self: Any) -> None:
        """Young: no query. Half its age: one in the background. Over: it is waited for."""
        other = self.new_directory()
        await self.add(key("sk-1", alias="a"))
        name = hashed("sk-1")

        async def rename(alias: str) -> None:
            """By another process, of which this one does not hear."""
            await other.change(
                Key, name, lambda kept: msgspec.structs.replace(kept, alias=alias), "me"
            )

        self.assertEqual((await self.who("sk-1")).alias, "a")
        await rename("b")
        self.clock.advance(2.4)
        for _ in range(10):
            self.assertEqual(self.knows("sk-1").alias, "a")
        self.assertEqual(self.queries(), [[name]])
        self.clock.advance(0.2)
        for _ in range(10):
            self.assertEqual(self.knows("sk-1").alias, "a")
        await self.settled()
        self.assertEqual(self.queries(), [[name]])
        self.assertEqual(self.knows("sk-1").alias, "b")
        # Its age is counted from when it was asked for.
        await rename("c")
        self.clock.advance(5.0)
        self.assertEqual((await self.who("sk-1")).alias, "c")
        self.assertEqual(self.queries(), [[name]])
        self.clock.advance(4.99)
        self.assertEqual(self.knows("sk-1").alias, "c")
        await self.settled()
        # A key in use never waits.
        for _ in range(40):
            self.clock.advance(0.7)
            self.knows("sk-1")
            await self.settled()
        self.assertLess(len(self.queries()), 14)

    async def test_renewal_fails(self: Any) -> None:
        """If the answer is not renewed in time, nobody asks again before it has to be."""
        await self.add(key("sk-1"))
        await self.who("sk-1")
        await self.settled()
        self.queries()
        self.directory.away = True
        self.clock.advance(3)
        for _ in range(10):
            self.knows("sk-1")
        self.assertEqual(len(self.queries()), 1)
        self.clock.advance(2)
        await self.who("sk-1")
        self.assertEqual(len(self.queries()), 1)

    async def test_clock_set_back(self: Any) -> None:
        """A clock that is set back makes nothing young again."""
        await self.add(key("sk-1"))
        await self.who("sk-1")
        self.queries()
        self.clock.rightNow -= 3600
        await self.who("sk-1")
        self.assertEqual(len(self.queries()), 1)

    async def test_gone(self: Any) -> None:
        """A key that another process has removed does not open when its age is over."""
        other = self.new_directory()
        await self.add(key("sk-1"))
        await self.who("sk-1")
        await other.remove(Key, hashed("sk-1"), "me")
        self.clock.advance(5)
        await self.fails(self.who("sk-1"), UnrecognizedKey)
        # Nor when the database goes away then.
        self.directory.away = True
        self.clock.advance(5)
        await self.fails(self.who("sk-1"), DatabaseUnavailable)

    async def test_unknown_is_kept(self: Any) -> None:
        """That a key is nobody's is kept as long, and for so many only."""
        self.store = self.new_store(max_unknown=50)
        await self.fails(self.who("sk-none"), UnrecognizedKey)
        self.queries()
        self.clock.advance(2.4)
        await self.fails(self.who("sk-none"), UnrecognizedKey)
        self.assertEqual(self.queries(), [])
        self.clock.advance(2.6)
        await self.fails(self.who("sk-none"), UnrecognizedKey)
        self.assertEqual(len(self.queries()), 1)
        for number in range(200):
            await self.fails(self.who(f"sk-{number}"), UnrecognizedKey)
        self.assertEqual(len(self.store._keys._unknown), 50)
        self.queries()
        await self.fails(self.who("sk-199"), UnrecognizedKey)
        self.assertEqual(self.queries(), [])

    async def test_known_is_bounded(self: Any) -> None:
        """Beyond the bound go those that were not used for longest; nothing is left behind."""
        self.store = self.new_store(max_known=5)
        await self.add(User(id="u"), *(key(f"sk-{number}", user_id="u") for number in range(9)))
        for number in range(9):
            await self.who(f"sk-{number}")
            self.clock.advance(2.6)
            await self.who("sk-0")
            await self.settled()
        known = self.store._keys._known
        self.assertEqual(set(known), {hashed(f"sk-{number}") for number in (0, 5, 6, 7, 8)})
        made_from = self.store._keys._made_from
        self.assertEqual(made_from["user", "u"], set(known))
        self.assertEqual(len(made_from), 6)
        await self.directory.remove(User, "u", "me")
        self.assertEqual((known, made_from), ({}, {}))

    async def test_shared(self: Any) -> None:
        """Who asks for the same waits for the same query; the others share the next one."""
        await self.add(*(key(f"sk-{number}") for number in range(30)))
        self.directory.hold()
        same = [Deferred.fromCoroutine(self.who("sk-0")) for _ in range(100)]
        others = [Deferred.fromCoroutine(self.who(f"sk-{number}")) for number in range(1, 30)]
        nobody = [Deferred.fromCoroutine(self.who("sk-none")) for _ in range(10)]
        self.directory.release()
        found = await gatherResults([*same, *others])
        self.assertEqual({one.key_hash for one in found[:100]}, {hashed("sk-0")})
        self.assertEqual(
            [one.key_hash for one in found[100:]], [hashed(f"sk-{n}") for n in range(1, 30)]
        )
        for deferred in nobody:
            await self.assertFailure(deferred, UnrecognizedKey)
        first, second = self.queries()
        self.assertEqual((first, len(second)), ([hashed("sk-0")], 30))

    async def test_cancelled(self: Any) -> None:
        """A client that leaves does not take the answer from the others."""
        await self.add(key("sk-1"))
        self.directory.hold()
        leaving, staying = (Deferred.fromCoroutine(self.who("sk-1")) for _ in range(2))
        leaving.cancel()
        await self.assertFailure(leaving, CancelledError)
        self.directory.release()
        self.assertEqual((await staying).key_hash, hashed("sk-1"))
        self.assertEqual(len(self.queries()), 1)
        self.knows("sk-1")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    async def test_database_away(self: Any) -> None:
        """While the database is away, who is known is let in, for an hour; others hear 503."""
        await self.add(key("sk-1"), key("sk-2"), key("sk-blocked", blocked=True))
        await self.who("sk-1")
        await self.fails(self.who("sk-none"), UnrecognizedKey)
        await self.fails(self.who("sk-blocked"), KeyBlocked)
        self.directory.away = True
        for advance in (4.0, 100.0, 3495.9):
            self.clock.advance(advance)
            await self.who("sk-1")
            await self.fails(self.who("sk-blocked"), KeyBlocked)
        for secret in ("sk-2", "sk-none", "sk-other"):
            error = await self.fails(self.who(secret), DatabaseUnavailable)
            self.assertEqual(error.status, 503)
        self.clock.advance(0.2)
        await self.fails(self.who("sk-1"), DatabaseUnavailable)
        # When it is back it is asked, and not what was known.
        self.directory.away = False
        await self.directory.remove(Key, hashed("sk-1"), "me")
        await self.fails(self.who("sk-1"), UnrecognizedKey)
        await self.who("sk-2")

    async def test_back_in_time(self: Any) -> None:
        """As soon as the database is back, what it says holds, and not what was known."""
        other = self.new_directory()
        await self.add(key("sk-1"))
        await self.who("sk-1")
        self.directory.away = True
        self.clock.advance(60)
        await self.who("sk-1")
        await other.remove(Key, hashed("sk-1"), "me")
        self.directory.away = False
        await self.fails(self.who("sk-1"), UnrecognizedKey)

    async def test_closed_database(self: Any) -> None:
        """The same with a database that is really gone, and no wait."""
        await self.add(key("sk-1"))
        await self.who("sk-1")
        await self.directory._database.close()
        self.clock.advance(60)
        self.assertEqual(self.knows("sk-1").key_hash, hashed("sk-1"))
        await self.fails(self.who("sk-2"), DatabaseUnavailable)

    async def test_slow_database(self: Any) -> None:
        """A database that says nothing holds requests up for three seconds, and then none."""
        await self.add(key("sk-1"), key("sk-2"))
        await self.who("sk-1")
        await self.settled()
        self.clock.advance(5)
        self.directory.hold()
        known = Deferred.fromCoroutine(self.who("sk-1"))
        unknown = Deferred.fromCoroutine(self.who("sk-2"))
        self.clock.advance(2.9)
        self.assertNoResult(known)
        self.assertNoResult(unknown)
        self.clock.advance(0.2)
        self.assertEqual((await known).key_hash, hashed("sk-1"))
        await self.assertFailure(unknown, DatabaseUnavailable)
        self.assertEqual(self.knows("sk-1").key_hash, hashed("sk-1"))
        await self.fails(self.who("sk-3"), DatabaseUnavailable)
        # Its answer is not thrown away when it comes after all.
        self.directory.release()
        await self.settled()
        self.knows("sk-2")
        await self.who("sk-1")

    async def test_behind_dummy(self: Any) -> None:
        """The database need not know dummy credentials for the key behind them to open."""
        await self.add(key("sk-1"))
        await self.who("sk-1")
        self.directory.away = True
        principal = await self.store.principal(signed("dummy", token="sk-1"))
        self.assertEqual(principal.key_hash, hashed("sk-1"))
        self.clock.advance(4000)
        self.assertEqual(
            (await self.store.principal(signed("dummy", token=MASTER))).role, Role.PROXY_ADMIN
        )

    async def test_own_changes(self: Any) -> None:
        """What this process changes holds for the next request."""
        await self.fails(self.who("sk-1"), UnrecognizedKey)
        await self.add(Budget(id="b"), User(id="u"), Team(id="t"), key("sk-1", user_id="u"))
        await self.who("sk-1")
        await self.change(Key, hashed("sk-1"), team_id="t", budget_id="b")
        self.assertEqual((await self.who("sk-1")).team_id, "t")
        await self.change(User, "u", role=Role.PROXY_ADMIN)
        self.assertTrue((await self.who("sk-1")).admin)
        await self.change(Team, "t", limits=Limits(rpm=1))
        self.assertEqual((await self.who("sk-1")).levels[1].limits, Limits(rpm=1))
        await self.change(Budget, "b", limits=Limits(rpm=2))
        self.assertEqual((await self.who("sk-1")).levels[0].limits, Limits(rpm=2))
        await self.change(User, "u", budget_id="b")
        self.assertEqual((await self.who("sk-1")).levels[2].limits, Limits(rpm=2))
        await self.change(Team, "t", members=(Member(user_id="u", role="admin"),))
        self.assertTrue((await self.who("sk-1")).team_admin)
        tokens = (Token(hash=hashed("sk-new")),)
        await self.change(Key, hashed("sk-1"), tokens=tokens)
        await self.fails(self.who("sk-1"), UnrecognizedKey)
        self.assertEqual((await self.who("sk-new")).key_hash, hashed("sk-1"))
        await self.directory.remove(Team, "t", "me")
        await self.fails(self.who("sk-new"), UnrecognizedKey)

    async def test_user_comes_later(self: Any) -> None:
        """A user that is added after its key is seen with it at once."""
        await self.add(key("sk-1", user_id="u"))
        self.assertEqual((await self.who("sk-1")).role, Role.INTERNAL_USER)
        await self.add(User(id="u", role=Role.PROXY_ADMIN))
        self.assertEqual((await self.who("sk-1")).role, Role.PROXY_ADMIN)

    async def test_change_has_no_grace(self: Any) -> None:
        """Who was blocked does not get in because the database went away."""
        await self.add(key("sk-1"))
        await self.who("sk-1")
        await self.change(Key, hashed("sk-1"), blocked=True)
        self.directory.away = True
        await self.fails(self.who("sk-1"), DatabaseUnavailable)

    async def test_changed_while_asked(self: Any) -> None:
        """An answer from before a change is not used after it."""
        await self.add(User(id="u"), key("sk-1", user_id="u"))
        changes: list[tuple[Callable[[], Coroutine[Any, Any, Any]], type[ProxyError] | None]] = [
            (lambda: self.change(User, "u", alias="x"), None),
            (lambda: self.change(Key, hashed("sk-1"), blocked=True), KeyBlocked),
            (lambda: self.directory.remove(Key, hashed("sk-1"), "me"), UnrecognizedKey),
            (lambda: self.directory.add(key("sk-1"), "me"), None),
        ]
        for change, error in changes:
            self.clock.advance(5)
            self.directory.hold()
            asking = Deferred.fromCoroutine(self.who("sk-1"))
            await until(lambda: bool(self.directory._held))
            await change()
            # It comes after the change, and finds the same query under way.
            late = Deferred.fromCoroutine(self.who("sk-1"))
            self.directory.release()
            for waiting in (asking, late):
                if error is None:
                    await waiting
                else:
                    await self.assertFailure(waiting, error)
            self.assertEqual(len(self.queries()), 2)

    async def test_unreadable(self: Any) -> None:
        """A key that cannot be read does not open, and keeps nobody else out."""
        await self.add(key("sk-1"), key("sk-2"))
        async with self.directory._database.transaction() as connection:
            cursor = await connection.cursor()
            await cursor.execute(
                f"UPDATE txbedrock_keys SET document = '[]' WHERE id = '{hashed('sk-2')}'"
            )
        both = [Deferred.fromCoroutine(self.who(secret)) for secret in ("sk-2", "sk-1")]
        await self.assertFailure(both[0], DatabaseUnavailable)
        await both[1]

    async def test_unexpected(self: Any) -> None:
        """A fault of our own is logged, answered with 503, and not for ever."""
        await self.add(key("sk-1"))

        async def broken(names: Sequence[str]) -> Mapping[str, Any]:
            raise ZeroDivisionError

        load, self.store._keys._load = self.store._keys._load, broken
        await self.fails(self.who("sk-1"), DatabaseUnavailable)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.store._keys._load = load
        await self.who("sk-1")

    async def test_configured(self: Any) -> None:
        """Keys of config.yaml open without a database, unless they refer to something in it."""
        configured = (key("sk-c", alias="c", limits=Limits(rpm=1)), key("sk-t", team_id="t"))
        await self.add(Team(id="t", limits=Limits(rpm=2)))
        self.directory = self.new_directory(*configured)
        self.store = self.new_store()
        principal = await self.who("sk-c")
        self.assertEqual((principal.alias, principal.levels[0].limits), ("c", Limits(rpm=1)))
        principal = await self.who("sk-t")
        self.assertEqual(principal.levels[1], Level("team", "t", "t", Limits(rpm=2)))
        await self.change(Team, "t", blocked=True)
        await self.fails(self.who("sk-t"), KeyBlocked)
        await self.directory._database.close()
        self.store = self.new_store()
        self.assertEqual(self.knows("sk-c").alias, "c")
        await self.fails(self.who("sk-t"), DatabaseUnavailable)
        both = [Deferred.fromCoroutine(self.who(secret)) for secret in ("sk-t", "sk-c")]
        await self.assertFailure(both[0], DatabaseUnavailable)
        await both[1]

    async def test_no_master_key(self: Any) -> None:
        """Without a master key there are the others."""
        store = KeyStore(
            None,
            self.directory,
            self.directory._database,
            salt=b"",
            access=partial(Access, access_groups={}),
            reactor=self.clock,
            wall_clock=lambda: self.now,
        )
        await self.add(key("sk-1"))
        self.assertEqual((await store.principal(bearer("sk-1"))).key_hash, hashed("sk-1"))
        await self.fails(store.principal(bearer(MASTER)), UnrecognizedKey)
        # And without a salt no pairs.
        id = pairs.access_key_id(hashed("sk-1"))
        await self.fails(store.principal(signed(id, "x")), UnrecognizedKey)

    async def test_pairs(self: Any) -> None:
        """With a derived pair the signature decides, at every request."""
        configured = key("sk-c", alias="c")
        self.directory = self.new_directory(configured)
        self.store = self.new_store()
        await self.add(key("sk-1"), key("sk-old", expires_us=1), key("sk-b", blocked=True))

        def pair(secret: str) -> tuple[str, str]:
            hash = hashed(secret)
            return pairs.access_key_id(hash), pairs.secret_access_key(SALT, hash)

        id, secret = pair("sk-1")
        principal = await self.store.principal(signed(id, secret))
        self.assertEqual(principal.key_hash, hashed("sk-1"))
        self.queries()
        now(self.store.principal(signed(id, secret)))
        self.assertEqual((await self.store.principal(signed(*pair("sk-c")))).alias, "c")
        forged = signed(id, secret)
        forged.method = b"GET"
        for wrong in (
            signed(id, "any"),
            signed(id, pair("sk-c")[1]),
            signed(id, secret, at=NOW - 3600),
            signed(id, secret, token="sk-1"),
            forged,
        ):
            for _ in range(2):
                await self.fails(self.store.principal(wrong), InvalidSignature)
        await self.fails(self.store.principal(signed(*pair("sk-old"))), KeyExpired)
        await self.fails(self.store.principal(signed(*pair("sk-b"))), KeyBlocked)
        # Who signs wrongly does not hear that it is blocked.
        await self.fails(self.store.principal(signed(pair("sk-b")[0], "x")), InvalidSignature)
        nobody = pairs.access_key_id(hashed("sk-nobody"))
        await self.fails(self.store.principal(signed(nobody, "x")), UnrecognizedKey)
        # The id alone is no secret.
        await self.fails(self.who(id), UnrecognizedKey)
        # What counts is when it came, not how long its body took.
        self.now += 3600
        late = signed(id, secret)
        await self.store.principal(late)
        late.received += 3600
        await self.fails(self.store.principal(late), InvalidSignature)

    async def test_levels(self: Any) -> None:
        """End users and tags that have limits are levels; the others are not."""
        await self.add(
            Budget(id="b", limits=Limits(rpm=1)),
            Customer(id="c1", alias="Carl", budget_id="b"),
            Customer(id="c2"),
            Customer(id="c3", blocked=True),
            Tag(id="g1", limits=Limits(rpm=2), budget_id="b"),
            Tag(id="g2"),
            Tag(id="g3", blocked=True),
        )
        carl = Level("end_user", "c1", "Carl", Limits(rpm=1))
        tag = Level("tag", "g1", "g1", Limits(rpm=2))
        for end_user, tags, expected in (
            ("", (), []),
            ("c1", (), [carl]),
            ("c2", (), []),
            ("none", ("none", "g2"), []),
            ("", ("g1", "g2", "g1"), [tag]),
            ("c1", ("none", "g1"), [carl, tag]),
            ("\0", ("\0", "\ud800"), []),
        ):
            for _ in range(2):
                self.assertEqual(list(await self.store.levels(end_user, tags)), expected)
        await self.fails(self.store.levels("c3", ()), KeyBlocked, "'c3'", "/customer/unblock")
        await self.fails(self.store.levels("", ("g3",)), KeyBlocked, "'g3'")
        self.queries()
        self.assertEqual(list(now(self.store.levels("c1", ("none", "g1")))), [carl, tag])
        await self.change(Budget, "b", limits=Limits(rpm=5))
        [level] = await self.store.levels("c1", ())
        self.assertEqual(level.limits, Limits(rpm=5))
        await self.directory.remove(Customer, "c1", "me")
        self.assertEqual(list(await self.store.levels("c1", ())), [])

    async def test_levels_together(self: Any) -> None:
        """All tags of a request are asked for in one query, and one for many requests."""
        await self.add(*(Tag(id=f"g{n}", limits=Limits(rpm=n)) for n in range(20)))
        names = [f"g{n}" for n in range(20)]
        self.assertEqual(len(await self.store.levels("", names)), 20)
        self.assertEqual(self.queries("tags"), [names])
        self.clock.advance(5)
        asking = [Deferred.fromCoroutine(self.store.levels("", names)) for _ in range(50)]
        await gatherResults(asking)
        self.assertEqual(self.queries("tags"), [names])

    async def test_levels_for_nobody(self: Any) -> None:
        """Where there are no customers and no tags, what clients say is not even looked for."""
        for number in range(100):
            self.assertEqual(list(await self.store.levels(f"user {number}", ("a", "b"))), [])
        self.assertEqual([what for what, _ in self.directory.asked], ["any"])
        self.assertEqual(len(self.store._customers._unknown), 0)
        # The first one is seen at once, or when the age is over.
        await self.add(Customer(id="c", limits=Limits(rpm=1)))
        self.assertEqual(len(await self.store.levels("c", ())), 1)
        await self.new_directory().add(Tag(id="a", limits=Limits(rpm=1)), "me")
        self.assertEqual(len(await self.store.levels("c", ("a",))), 1)
        self.clock.advance(5)
        self.assertEqual(len(await self.store.levels("c", ("a",))), 2)

    async def test_levels_are_bounded(self: Any) -> None:
        """Clients may invent end users and tags; they are asked for together, and forgotten."""
        self.store = self.new_store(max_unknown=50)
        await self.add(Customer(id="c"), Tag(id="g", limits=Limits(rpm=1)))
        asking = [
            Deferred.fromCoroutine(self.store.levels(f"user {n}", (f"tag {n}", "g", f"x {n}")))
            for n in range(200)
        ]
        for levels in await gatherResults(asking):
            self.assertEqual([level.id for level in levels], ["g"])
        self.assertLess(len(self.directory.asked), 12)
        for kept in (self.store._customers, self.store._tags):
            self.assertEqual(len(kept._unknown), 50)

    async def test_default_customer_limits(self: Any) -> None:
        """End users that the database does not have get the default."""
        default = Limits(rpm=9)
        self.store = self.new_store(default_customer_limits=default)
        level = Level("end_user", "e", "e", default)
        self.assertEqual(list(await self.store.levels("e", ())), [level])
        self.assertEqual(list(await self.store.levels("", ("g",))), [])
        await self.add(Customer(id="e"))
        self.assertEqual(list(await self.store.levels("e", ())), [])
        self.assertEqual([one.id for one in await self.store.levels("f", ())], ["f"])
        await self.add(Customer(id="f", blocked=True))
        await self.fails(self.store.levels("f", ()), KeyBlocked)

    async def test_levels_while_away(self: Any) -> None:
        """While the database is away, what is known of end users holds; others are let in."""
        await self.add(
            Customer(id="c", limits=Limits(rpm=1)), Customer(id="b", blocked=True), Tag(id="g")
        )
        await self.store.levels("c", ("g",))
        await self.store.levels("none", ())
        await self.fails(self.store.levels("b", ()), KeyBlocked)
        self.directory.away = True
        self.clock.advance(60)
        self.assertEqual(len(await self.store.levels("c", ("g", "other"))), 1)
        self.assertEqual(list(await self.store.levels("none", ())), [])
        self.assertEqual(list(await self.store.levels("other", ())), [])
        await self.fails(self.store.levels("b", ()), KeyBlocked)
        fresh = self.new_store(default_customer_limits=Limits(rpm=3))
        self.assertEqual([one.limits for one in await fresh.levels("c", ("g",))], [Limits(rpm=3)])

    async def test_no_secret_is_kept(self: Any) -> None:
        """Of what clients present only the hash stays."""
        await self.add(key("sk-planted-1"))
        await self.who("sk-planted-1")
        await self.fails(self.who("sk-planted-2"), UnrecognizedKey)
        names = [*self.store._keys._known, *self.store._keys._unknown]
        self.assertEqual(names, [hashed("sk-planted-1"), hashed("sk-planted-2")])


class SqliteKeyStoreTests(KeyStoreMixin, OnSqlite, KeyStoreTestCase):
    """SQLite."""

    async def test_service(self) -> None:
        """There is nothing to listen to, which keeps nobody from being known."""
        self.store.startService()
        self.assertEqual(self.directory._database._listeners, [])
        await self.add(key("sk-1", alias="one"))
        self.assertEqual((await self.who("sk-1")).alias, "one")
        self.store.stopService()


class PostgresKeyStoreTests(KeyStoreMixin, OnPostgres, KeyStoreTestCase):
    """PostgreSQL."""

    async def listening(self) -> None:
        """Start, and wait until it listens."""
        began: list[bool] = []
        recheck = self.store._recheck

        def note() -> None:
            began.append(True)
            recheck()

        self.patch(self.store, "_recheck", note)
        self.began = began
        self.store.startService()
        self.addCleanup(self.store.stopService)
        await until(lambda: len(began) == 1)

    async def test_other_process(self) -> None:
        """What another process changes holds at once, not only when the age is over."""
        other = self.new_directory()
        await self.listening()
        await self.fails(self.who("sk-1"), UnrecognizedKey)
        await other.add(Team(id="t"), "me")
        await other.add(key("sk-1", team_id="t"), "me")
        await until(lambda: not self.store._keys._unknown)
        await self.who("sk-1")
        await other.change(
            Team, "t", lambda kept: msgspec.structs.replace(kept, blocked=True), "me"
        )
        await until(lambda: not self.store._keys._known)
        await self.fails(self.who("sk-1"), KeyBlocked)
        await other.remove(Team, "t", "me")
        await until(lambda: not self.store._keys._known)
        await self.fails(self.who("sk-1"), UnrecognizedKey)
        await self.fails(other.get(Team, "t"), GrantNotFound)

    async def test_server_restarts(self) -> None:
        """When it listens again, everything is asked for anew; till then it is known."""
        await self.add(key("sk-1"))
        await self.listening()
        await self.who("sk-1")
        server().stop()
        self.addCleanup(lambda: None if server()._process else server().start())
        self.clock.advance(60)
        await self.who("sk-1")
        await self.fails(self.who("sk-2"), DatabaseUnavailable)
        server().start()
        # Perhaps before anybody listens again.
        await self.new_directory().remove(Key, hashed("sk-1"), "me")
        await until(lambda: len(self.began) == 2)
        await until(lambda: self.directory._database.retry_in_s == 0)
        for _ in range(50):
            outcome = await Deferred.fromCoroutine(self.who("sk-1")).addErrback(lambda f: f.type)
            if outcome is UnrecognizedKey:
                break
            await pause(0.01)
        self.assertIs(outcome, UnrecognizedKey)

    async def test_garbage(self) -> None:
        """Somebody else's words on the channel end all ages, and no more."""
        await self.add(key("sk-1"))
        await self.listening()
        await self.who("sk-1")
        self.queries()
        async with self.new_directory()._database.transaction() as connection:
            cursor = await connection.cursor()
            await cursor.execute("NOTIFY txbedrock_grants, 'hello'")
        await until(lambda: len(self.began) == 2)
        self.directory.away = True
        await self.who("sk-1")
        self.directory.away = False
        await self.who("sk-1")
        self.assertEqual(len(self.queries()), 2)


class MasterKeyTests(SynchronousTestCase):
    """A gateway without a database of keys."""

    def test_master_key(self) -> None:
        """It is who it is, others are nobody; nothing limits end users."""
        master = MasterKey(MASTER)
        self.assertTrue(now(master.principal(bearer(MASTER))).admin)
        self.assertEqual(now(master.levels("e", ("t",))), ())
        for made in (request(), bearer("sk-x"), signed("sk-x")):
            with self.assertRaises(UnrecognizedKey):
                now(master.principal(made))
        self.assertNotIn("planted", repr(vars(master)))

    def test_any_key(self) -> None:
        """Without a key everybody may do everything."""
        self.assertTrue(now(AnyKey().principal(request())).admin)
        self.assertEqual(now(AnyKey().levels("e", ("t",))), ())
