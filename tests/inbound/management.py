"""
The management API in memory: what is granted in dictionaries, what was spent in a
list, and HTTP over a transport that is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource

from txbedrock.core.auth import Principal, hash_key, presented_key
from txbedrock.core.entries import By, Filters, LedgerEntry, Page, Total, dimensions
from txbedrock.core.grants import Budget, Customer, Grant, Key, Level, Role, Tag, Team, User
from txbedrock.core.permissions import Access
from txbedrock.core.pricing import Cost
from txbedrock.core.usage import Usage
from txbedrock.errors import (
    GrantExists,
    GrantNotFound,
    InvalidRequest,
    KeyBlocked,
    KeyExpired,
    UnrecognizedKey,
)
from txbedrock.inbound.admin.management import management_resources
from txbedrock.inbound.admin.metrics import MetricsResource
from txbedrock.inbound.admin.spend import spend_resources
from txbedrock.inbound.replying import Node
from txbedrock.inbound.site import ClientLimits, Site
from txbedrock.interfaces import AuditRecord, GrantSearch, InboundRequest
from txbedrock.logs import text_format

G = TypeVar("G", Key, User, Team, Customer, Budget, Tag)

MASTER = "sk-planted-master"
NOW = 1_796_040_000.0  # 2026-11-30T12:00:00Z
NOW_US = round(NOW * 1e6)
DAY_US = 86_400_000_000


class MemoryDirectory:
    """Implements IDirectory."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self.kept: dict[tuple[str, str], Grant] = {}
        self.records: list[AuditRecord] = []
        self.configured: set[str] = set()
        self._now_us = now_us

    def of(self, kind: type[G]) -> list[G]:
        return [grant for grant in self.kept.values() if isinstance(grant, kind)]

    async def get(self, kind: type[G], id: str) -> G:
        grant = self.kept.get((kind.__name__, id))
        if grant is None:
            raise GrantNotFound(f"There is no {kind.__name__.lower()} {id!r}.")
        assert isinstance(grant, kind)
        return grant

    async def key(self, name: str) -> Key:
        for key in self.of(Key):
            hashes = [key.id, *(token.hash for token in key.tokens)]
            if name in hashes or hash_key(name.encode()).hex() in hashes or name == key.alias:
                return key
        # A trap: who hands a secret on is found out.
        raise GrantNotFound(f"There is no key {name!r}.")

    async def find(self, kind: type[G], search: GrantSearch) -> tuple[list[G], int]:
        def fits(grant: G) -> bool:
            for name, value in search.filters.items():
                if isinstance(grant, Team) and name == "user_id":
                    if value not in {one.user_id for one in grant.members}:
                        return False
                elif getattr(grant, name) != value:
                    return False
            return True

        order_by = search.order_by if hasattr(kind, search.order_by) else "id"
        found = sorted(
            filter(fits, self.of(kind)),
            key=lambda grant: (getattr(grant, order_by), grant.id),
            reverse=search.descending,
        )
        return found[search.offset : search.offset + search.limit], len(found)

    async def add(self, grant: Grant, actor: str, action: str = "create") -> None:
        if (type(grant).__name__, grant.id) in self.kept:
            raise GrantExists(f"There is one with the id {grant.id!r} already.")
        self._check(grant)
        self._keep(None, grant, actor, action)

    async def change(
        self,
        kind: type[G],
        id: str,
        change: Callable[[G], G],
        actor: str,
        action: str = "update",
    ) -> G:
        before = await self.get(kind, id)
        if id in self.configured:
            raise InvalidRequest("It stands in config.yaml; change it there.")
        after = change(before)
        self._check(after)
        self._keep(before, after, actor, action)
        return after

    async def remove(self, kind: type[G], id: str, actor: str) -> G:
        grant = await self.get(kind, id)
        if isinstance(grant, Budget):
            users = [one for one in self.kept.values() if getattr(one, "budget_id", "") == id]
            if users:
                raise GrantExists(f"The budget {id!r} is still in use.")
        if isinstance(grant, Team | User):
            field = "team_id" if isinstance(grant, Team) else "user_id"
            for key in self.of(Key):
                if getattr(key, field) == id:
                    await self.remove(Key, key.id, actor)
        del self.kept[kind.__name__, id]
        self._record(grant, None, actor, "delete")
        return grant

    async def audit(
        self, kind: str | None, id: str | None, before_us: int | None, limit: int
    ) -> list[AuditRecord]:
        found = [
            record
            for record in reversed(self.records)
            if kind in (None, record.kind)
            and id in (None, record.id)
            and (before_us is None or record.at_us < before_us)
        ]
        return found[:limit]

    def _check(self, grant: Grant) -> None:
        if not isinstance(grant, Key):
            return
        for other in self.of(Key):
            if other.id == grant.id:
                continue
            if grant.alias and other.alias == grant.alias:
                raise GrantExists(f"Another key has the alias {grant.alias!r}.")
            if {one.hash for one in grant.tokens} & {one.hash for one in other.tokens}:
                raise GrantExists("Another key has this secret. Choose another one.")

    def _keep(self, before: Grant | None, after: Grant, actor: str, action: str) -> None:
        # As it comes back from a database.
        after = msgspec.json.decode(msgspec.json.encode(after), type=type(after))
        self.kept[type(after).__name__, after.id] = after
        self._record(before, after, actor, action)

    def _record(self, before: Grant | None, after: Grant | None, actor: str, action: str) -> None:
        grant = after or before
        assert grant is not None
        self.records.append(
            AuditRecord(
                at_us=self._now_us(),
                actor=actor,
                action=action,
                kind=type(grant).__name__.lower(),
                id=grant.id,
                before=None if before is None else msgspec.to_builtins(before),
                after=None if after is None else msgspec.to_builtins(after),
            )
        )


class MemoryKeys:
    """Implements IKeyStore: the master key, and those of a directory."""

    def __init__(self, directory: MemoryDirectory | None, now_us: Callable[[], int]) -> None:
        self._directory = directory
        self._now_us = now_us

    async def principal(self, request: InboundRequest) -> Principal:
        presented = presented_key(request.headers)
        if presented is None:
            raise UnrecognizedKey("This gateway needs a key and the request has none.")
        if presented.secret == MASTER.encode():
            return Principal(
                alias="master_key",
                key_hash=hash_key(presented.secret).hex(),
                role=Role.PROXY_ADMIN,
            )
        hashed = hash_key(presented.secret).hex()
        directory = self._directory
        for key in [] if directory is None else directory.of(Key):
            for token in key.tokens:
                if token.hash == hashed:
                    return self._of(key, token.expires_us)
        raise UnrecognizedKey("The key is not one of this gateway's.")

    def _of(self, key: Key, token_expires_us: int) -> Principal:
        assert self._directory is not None
        for expires in (key.expires_us, token_expires_us):
            if expires and expires <= self._now_us():
                raise KeyExpired("This key has expired.")
        if key.blocked:
            raise KeyBlocked("This key is blocked.")
        user = self._directory.kept.get(("User", key.user_id))
        team = self._directory.kept.get(("Team", key.team_id))
        members = team.members if isinstance(team, Team) else ()
        return Principal(
            alias=key.alias or key.id[:12],
            key_hash=key.id,
            user_id=key.user_id,
            team_id=key.team_id,
            role=user.role if isinstance(user, User) else Role.INTERNAL_USER,
            key_type=key.type,
            access=Access([key.permissions], {}, key.type),
            team_admin=any(one.user_id == key.user_id and one.role == "admin" for one in members),
        )

    async def levels(self, end_user: str, tags: Sequence[str]) -> Sequence[Level]:
        return ()


class MemoryLedger:
    """Implements ILedger."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []

    def record(self, entry: LedgerEntry) -> None:
        self.entries.append(entry)

    async def rows(self, filters: Filters, limit: int, cursor: str | None) -> Page:
        found = [entry for entry in reversed(self.entries) if filters.match(entry)]
        return Page(tuple(found[:limit]), None)

    async def totals(self, by: By, filters: Filters) -> list[Total]:
        sums: dict[str, int] = {}
        for entry in self.entries:
            if filters.match(entry):
                for kind, name in dimensions(entry):
                    if kind == by:
                        sums[name] = sums.get(name, 0) + (entry.cost_picousd or 0)
        return [Total(name, cost_picousd=cost) for name, cost in sums.items()]


class Answer:
    """What a client got."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }

    @property
    def json(self) -> Any:
        return json.loads(self.body, parse_float=Decimal)

    @property
    def message(self) -> str:
        """Of a refusal, whose shape is checked, too."""
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert error["code"] == str(self.status), error
        assert isinstance(error["message"], str)
        return str(error["message"])


class ManagementTestCase(SynchronousTestCase):
    """A management API whose clock stands still."""

    salt: bytes | None = b"planted-salt-of-the-test"

    def setUp(self) -> None:
        self.now = NOW
        self.directory = MemoryDirectory(lambda: self.now_us)
        self.ledger = MemoryLedger()
        self.serve(self.directory, self.ledger)
        self.logged: list[str] = []
        written = text_format(lambda text: text)

        def observe(event: LogEvent) -> None:
            self.logged.append(written(event) or "")

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)

    def tearDown(self) -> None:
        self.assertNotIn("sk-", "".join(self.logged))

    @property
    def now_us(self) -> int:
        return round(self.now * 1e6)

    def serve(self, directory: MemoryDirectory | None, ledger: MemoryLedger | None) -> None:
        """Build the tree."""
        keys = MemoryKeys(directory, lambda: self.now_us)
        root: Resource = Node(" Bedrock's paths begin with /bedrock/ here.")
        resources = {
            **management_resources(keys, directory, ledger, self.salt),
            **spend_resources(keys, ledger, _cost, "", directory),
            b"metrics": MetricsResource(keys, lambda: (b"up 1\n", "text/plain")),
        }
        for name, resource in resources.items():
            root.putChild(name, resource)
        self.site = Site(root, Clock(), ClientLimits(), wall_seconds=lambda: self.now)

    def ask(self, method: str, path: str, body: bytes = b"", key: str | None = MASTER) -> Answer:
        """One request on a connection of its own."""
        transport = StringTransport()
        channel = self.site.buildProtocol(None)
        channel.makeConnection(transport)
        lines = [f"{method} {path} HTTP/1.1", "Host: gateway", f"Content-Length: {len(body)}"]
        if key is not None:
            lines.append(f"Authorization: Bearer {key}")
        channel.dataReceived("\r\n".join([*lines, "", ""]).encode() + body)
        answer = Answer(transport.value())
        self.assertEqual(answer.headers["content-type"].split(";")[0], self._type(path, answer))
        if not path.startswith(("/metrics", "/nothing")):
            self.assertEqual(answer.headers["cache-control"], "no-store", path)
        return answer

    def _type(self, path: str, answer: Answer) -> str:
        return "text/plain" if path == "/metrics" and answer.status == 200 else "application/json"

    def get(self, path: str, key: str | None = MASTER, status: int = 200) -> Any:
        """The JSON at a path; of a refusal its message."""
        answer = self.ask("GET", path, key=key)
        return self._checked(answer, status, path)

    def post(
        self,
        path: str,
        fields: Mapping[str, object] | None = None,
        key: str | None = MASTER,
        status: int = 200,
    ) -> Any:
        """The JSON that a body is answered with; of a refusal its message."""
        answer = self.ask("POST", path, json.dumps(fields or {}).encode(), key)
        return self._checked(answer, status, path, fields)

    def _checked(self, answer: Answer, status: int, *what: object) -> Any:
        self.assertEqual(answer.status, status, (what, answer.body))
        return answer.json if status == 200 else answer.message

    def generate(self, key: str = MASTER, **fields: object) -> str:
        """A new key's secret."""
        secret = self.post("/key/generate", fields, key)["key"]
        assert isinstance(secret, str)
        return secret

    def spend(self, picousd: int, at_us: int | None = None, **whose: Any) -> None:
        """Something was spent."""
        self.ledger.record(
            LedgerEntry(
                request_id=str(len(self.ledger.entries)),
                started_us=self.now_us if at_us is None else at_us,
                cost_picousd=picousd,
                **whose,
            )
        )

    def key_of(self, secret: str) -> Key:
        """What is kept of a key."""
        [key] = [
            key
            for key in self.directory.of(Key)
            if hash_key(secret.encode()).hex() in {token.hash for token in key.tokens}
        ]
        return key


def _cost(model: str, usage: Usage) -> Cost:
    return Cost(usage.input_tokens * 10**6, "price", ())
