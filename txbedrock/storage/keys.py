"""
Who is behind a key.

Note [How long a key is known]
==============================

Who a key belongs to is asked of the database and then kept, by the SHA-256 of what
the client presented. An answer has an *age*, counted from when it was asked for:

- In its first half it is used as it is.
- In its second half, too, but the first request that uses it has it asked for anew.
  So nobody waits for the database on behalf of a key that is in use.
- When the age is over it is not used, and requests wait for a new one. Only if the
  database does not answer, what was known goes on to hold for a time of *grace*.
  What is not known, or no longer, is refused with 503: it may be a good key.

That a key is unknown is kept in the same way, but without grace.

A change that is heard of ends the age at once, and the grace: who was made to lose
something must not keep it because the database is away. What is asked for at the
moment of a change is asked again. When listening begins anew, changes may have been
missed: then all ages are over, and the grace is not.

One query is under way at a time. Who asks for the same meanwhile shares its answer;
all that is asked for besides goes into the next one.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from txbedrock.core import pairs
from txbedrock.core.auth import (
    ClientCertificate,
    PresentedKey,
    Principal,
    hash_key,
    presented_key,
)
from txbedrock.core.budgets import iso_time
from txbedrock.core.grants import (
    NO_LIMITS,
    Budget,
    Customer,
    KeyType,
    Level,
    LevelKind,
    Limits,
    Permissions,
    Role,
    Tag,
    with_budget,
)
from txbedrock.core.permissions import EVERYTHING, Access
from txbedrock.core.sigv4 import SigningKeys
from txbedrock.errors import InvalidSignature, KeyBlocked, KeyExpired, UnrecognizedKey
from txbedrock.interfaces import InboundRequest
from txbedrock.storage.database import Database, DatabaseUnavailable
from txbedrock.storage.directory import CHANNEL, Directory, KeyRecord

__all__ = ["AnyKey", "Compile", "KeyStore", "MasterKey"]

V = TypeVar("V")

_HOW = (
    "Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY', or give it to an AWS SDK "
    "as the access key id (any secret access key)."
)


def _unrecognized(presented: PresentedKey | None) -> UnrecognizedKey:
    if presented is None:
        return UnrecognizedKey(f"This gateway needs a key and the request has none. {_HOW}")
    if presented.carrier == "sigv4":
        return UnrecognizedKey(
            "The access key id of the request's signature is not a key of this gateway. "
            "Give your AWS SDK the gateway's key as access key id (any secret access key)."
        )
    return UnrecognizedKey(f"The key is not one of this gateway's. {_HOW}")


class MasterKey:
    """
    The one key of the configuration. Only its hash is kept.
    """

    def __init__(self, key: str) -> None:
        self._hash = hash_key(key.encode()).hex()
        self._principal = Principal(
            alias="master_key",
            key_hash=self._hash,
            role=Role.PROXY_ADMIN,
            access=EVERYTHING,
        )

    def known(self, hashed: str) -> Principal | None:
        """
        :param hashed: SHA-256 of what a client presents, hex; compared in constant time.
        """
        return self._principal if hmac.compare_digest(hashed, self._hash) else None

    async def principal(self, request: InboundRequest) -> Principal:
        """:raises UnrecognizedKey: no key, or another one."""
        presented = presented_key(request.headers)
        if presented is not None:
            for secret in (presented.secret, *presented.candidates):
                principal = self.known(hash_key(secret).hex())
                if principal is not None:
                    return principal
        raise _unrecognized(presented)

    async def levels(self, end_user: str, tags: Sequence[str]) -> Sequence[Level]:
        """Nothing is kept of end users and tags, and so nothing is limited."""
        return ()


class AnyKey:
    """No key is configured: everyone who can reach the gateway may use it."""

    _principal = Principal(alias="anyone", role=Role.PROXY_ADMIN, access=EVERYTHING)

    async def principal(self, request: InboundRequest) -> Principal:
        """Never refuses."""
        return self._principal

    async def levels(self, end_user: str, tags: Sequence[str]) -> Sequence[Level]:
        """Nothing is kept of end users and tags, and so nothing is limited."""
        return ()


# Answers of the database. See Note [How long a key is known].

_BATCH = 500

Source = tuple[str, str]
"""Kind and id of what an answer was made from."""


@dataclass(slots=True, eq=False)
class _Answer(Generic[V]):
    value: V | None
    """None: there is nothing of this name."""

    asked: float
    renew_at: float
    ends: float
    epoch: int
    sources: tuple[Source, ...]


class _Answers(Generic[V]):
    """
    What a database says of names, kept for a while.

    :param kind: of what it answers with: when one is added, names that were unknown
        may be known.
    :param load: asks for many names; leaves out those that are unknown, and gives an
        error for those of which it cannot be found out.
    :param sources: what a value was made from.
    :param by_id: are the names the ids of this kind?
    :param keep_unknown: has it a grace that a name is unknown?
    :param patience_s: a database that takes longer does not answer.
    """

    _log = Logger()

    def __init__(
        self,
        kind: str,
        load: Callable[[Sequence[str]], Awaitable[Mapping[str, V | DatabaseUnavailable]]],
        sources: Callable[[V], tuple[Source, ...]],
        reactor: Any,
        *,
        by_id: bool,
        keep_unknown: bool,
        age_s: float,
        grace_s: float,
        patience_s: float,
        max_known: int,
        max_unknown: int,
    ) -> None:
        self._kind = kind
        self._load = load
        self._sources = sources
        self._seconds: Callable[[], float] = reactor.seconds
        self._reactor = reactor
        self._by_id = by_id
        self._keep_unknown = keep_unknown
        self._age_s = age_s
        self._grace_s = grace_s
        self._patience_s = patience_s
        self._max_known = max_known
        self._max_unknown = max_unknown
        # In the order in which they were asked for, so that what nobody uses, and so
        # nobody asks for anew, comes first and goes first.
        self._known: dict[str, _Answer[V]] = {}
        self._unknown: dict[str, _Answer[V]] = {}
        self._made_from: dict[Source, set[str]] = {}
        self._epoch = 0
        self._wanted: dict[str, list[Deferred[V | None]]] = {}
        self._asking: dict[str, list[Deferred[V | None]]] = {}
        self._asking_since: float | None = None
        self._running = False
        self._changed: set[Source] = set()

    def fresh(self, name: str) -> _Answer[V] | None:
        """
        An answer that can be used.

        :returns: None when it has to be waited for.
        """
        answer = self._known.get(name) or self._unknown.get(name)
        if answer is None:
            return None
        now = self._seconds()
        # A clock that was set back must not make it younger.
        if not answer.asked <= now < answer.ends or answer.epoch != self._epoch:
            return None
        if now >= answer.renew_at:
            answer.renew_at = answer.ends
            self._want(name)
            self._begin()
        return answer

    async def get(self, name: str) -> V | None:
        """
        :returns: None when there is nothing of this name.
        :raises DatabaseUnavailable: it cannot be found out now.
        """
        answer = self.fresh(name)
        if answer is None:
            try:
                return await self._wait(name)
            except DatabaseUnavailable:
                answer = self._known.get(name)
                if answer is None and self._keep_unknown:
                    answer = self._unknown.get(name)
                if answer is None or self._seconds() > answer.asked + self._grace_s:
                    raise
        return answer.value

    def prefetch(self, names: Iterable[str]) -> None:
        """Have all of them asked for together."""
        for name in names:
            if self.fresh(name) is None:
                self._want(name)
        self._begin()

    def forget(self, kind: str, id: str) -> None:
        """Something was changed."""
        if self._asking:
            self._changed.add((kind, id))
        for name in tuple(self._made_from.get((kind, id), ())):
            self._drop(name)
        if kind == self._kind:
            if self._by_id:
                self._unknown.pop(id, None)
            else:
                self._unknown.clear()

    def recheck(self) -> None:
        """Anything may have been changed."""
        self._epoch += 1

    # Asking.

    async def _wait(self, name: str) -> V | None:
        since = self._asking_since
        if since is not None and self._seconds() > since + self._patience_s:
            raise self._too_slow()
        waiter: Deferred[V | None] = Deferred()
        self._want(name).append(waiter)
        self._begin()
        if not waiter.called:
            waiter.addTimeout(
                self._patience_s,
                self._reactor,
                onTimeoutCancel=lambda *_: Failure(self._too_slow()),
            )
        return await waiter

    def _too_slow(self) -> DatabaseUnavailable:
        return DatabaseUnavailable(f"no answer within {self._patience_s:g} s")

    def _want(self, name: str) -> list[Deferred[V | None]]:
        """Who waits for a name that is, or will be, asked for."""
        waiters = self._asking.get(name)
        return self._wanted.setdefault(name, []) if waiters is None else waiters

    def _begin(self) -> None:
        if not self._running:
            self._running = True
            Deferred.fromCoroutine(self._ask_all()).addErrback(
                lambda failure: self._log.failure("asking the database", failure)
            )

    async def _ask_all(self) -> None:
        """Until nothing is wanted any more."""
        try:
            while self._wanted:
                await self._ask()
        finally:
            self._running = False

    async def _ask(self) -> None:
        names = list(islice(self._wanted, _BATCH))
        self._asking = {name: self._wanted.pop(name) for name in names}
        self._asking_since = asked = self._seconds()
        self._changed.clear()
        epoch = self._epoch
        found: Mapping[str, V | DatabaseUnavailable]
        try:
            found = await self._load(names)
        except DatabaseUnavailable as error:
            found = dict.fromkeys(names, error)
        except Exception as error:
            self._log.failure("asking the database for {kind}s", kind=self._kind)
            found = dict.fromkeys(names, DatabaseUnavailable(repr(error)))
        asking, self._asking = self._asking, {}
        self._asking_since = None
        for name in names:
            value = found.get(name)
            if isinstance(value, DatabaseUnavailable):
                continue
            if self._is_outdated(name, value):
                self._wanted.setdefault(name, []).extend(asking.pop(name))
            else:
                self._keep(name, value, asked, epoch)
        # Only now: who gets an answer may go on to ask for another one of these.
        for name, waiters in asking.items():
            value = found.get(name)
            for waiter in waiters:
                if isinstance(value, DatabaseUnavailable):
                    waiter.errback(DatabaseUnavailable(value.detail))
                else:
                    waiter.callback(value)

    def _is_outdated(self, name: str, value: V | None) -> bool:
        """Was it changed while it was asked for?"""
        if not self._changed:
            return False
        if value is not None:
            return not self._changed.isdisjoint(self._sources(value))
        if self._by_id:
            return (self._kind, name) in self._changed
        return any(kind == self._kind for kind, _ in self._changed)

    # Keeping.

    def _keep(self, name: str, value: V | None, asked: float, epoch: int) -> None:
        self._drop(name)
        sources = () if value is None else self._sources(value)
        kept, bound = (
            (self._unknown, self._max_unknown) if value is None else (self._known, self._max_known)
        )
        kept[name] = _Answer(
            value, asked, asked + self._age_s / 2, asked + self._age_s, epoch, sources
        )
        for source in sources:
            self._made_from.setdefault(source, set()).add(name)
        if len(kept) > bound:
            self._drop(next(iter(kept)))

    def _drop(self, name: str) -> None:
        self._unknown.pop(name, None)
        answer = self._known.pop(name, None)
        for source in answer.sources if answer is not None else ():
            names = self._made_from[source]
            names.discard(name)
            if not names:
                del self._made_from[source]


# What is made of the answers.


class Compile(Protocol):
    """
    Makes an :class:`~txbedrock.core.permissions.Access`: a ``functools.partial`` of
    that class with what is the configuration's.
    """

    def __call__(
        self,
        permissions: Sequence[Permissions],
        *,
        type: KeyType,
        aliases: Sequence[Mapping[str, str]],
    ) -> Access:
        """:raises ValueError: some pattern cannot be used."""


@dataclass(frozen=True, slots=True)
class _Holder:
    """Who is behind a key, and what there is against it."""

    principal: Principal
    token_hash: str
    expires_us: int
    """0: never."""

    replaced: bool
    """Is it only the secret that expires, and not the key?"""

    refusal: str
    """Why nobody gets in with it; empty: there is nothing against it."""

    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class _Limited:
    """A customer or a tag."""

    level: Level | None
    blocked: bool
    sources: tuple[Source, ...]


def _limits_something(limits: Limits) -> bool:
    caps = (limits.rpm, limits.tpm, limits.max_parallel, limits.max_budget, limits.soft_budget)
    return bool(limits.models) or any(cap is not None for cap in caps)


class KeyStore(Service):
    """
    Implements :class:`~txbedrock.interfaces.IKeyStore` over the master key, the keys
    of the configuration and those of the database. See Note [How long a key is known].

    :param master: None: there is no master key.
    :param database: what the directory is in, to hear of other processes' changes.
    :param salt: the server's secret, from which the secrets of AWS-style pairs are
        derived; empty: there are no pairs.
    :param access: compiles permissions.
    :param wall_clock: POSIX seconds.
    :param cache_age_s: how long an answer of the database is good for.
    :param cache_grace_s: how long what was known goes on while the database is away.
    :param patience_s: a database that takes longer to answer is away.
    :param max_known: so many keys are kept in memory, and as many end users and tags.
    :param max_unknown: so many names of each are kept that nobody has.
    :param default_customer_limits: of each end user that the database does not have.
    :param certificates: names in TLS clients' certificates, and the SHA-256 of the
        configuration's key that each stands for.
    """

    def __init__(
        self,
        master: MasterKey | None,
        directory: Directory,
        database: Database,
        *,
        salt: bytes,
        access: Compile,
        reactor: Any,
        wall_clock: Callable[[], float],
        cache_age_s: float = 5.0,
        cache_grace_s: float = 3600.0,
        patience_s: float = 3.0,
        max_known: int = 100_000,
        max_unknown: int = 10_000,
        default_customer_limits: Limits = NO_LIMITS,
        certificates: Mapping[str, str] | None = None,
    ) -> None:
        self._master = master
        self._directory = directory
        self._database = database
        self._salt = salt
        self._now = wall_clock
        self._default = default_customer_limits
        self._certificates = certificates or {}
        self._stop_listening: Callable[[], None] | None = None
        self._signing_keys = SigningKeys()

        # Many keys may do the same; what an Access has found out is kept with it.
        @lru_cache(maxsize=10_000)
        def compiled(
            permissions: tuple[Permissions, ...],
            type: KeyType,
            aliases: tuple[tuple[tuple[str, str], ...], ...],
        ) -> Access:
            return access(permissions, type=type, aliases=[dict(one) for one in aliases])

        self._compiled = compiled

        def answers(
            kind: str,
            load: Callable[[Sequence[str]], Awaitable[Mapping[str, V | DatabaseUnavailable]]],
            sources: Callable[[V], tuple[Source, ...]],
            by_id: bool = True,
        ) -> _Answers[V]:
            return _Answers(
                kind,
                load,
                sources,
                reactor,
                by_id=by_id,
                keep_unknown=by_id,
                age_s=cache_age_s,
                grace_s=cache_grace_s,
                patience_s=patience_s,
                max_known=max_known,
                max_unknown=max_unknown,
            )

        self._keys = answers("key", self._load_keys, _sources_of_holder, by_id=False)
        self._customers = answers("customer", self._load_customers, _sources_of_limited)
        self._tags = answers("tag", self._load_tags, _sources_of_limited)
        # Are there customers, are there tags? The name is empty.
        self._any = answers("any", self._load_any, lambda _: (("any", ""),))
        directory.subscribe(self._changed)

    def startService(self) -> None:
        """Begin to listen for what other processes change."""
        Service.startService(self)
        self._stop_listening = self._database.listen(CHANNEL, self._directory.heard, self._recheck)

    def stopService(self) -> None:
        """Listen no more."""
        Service.stopService(self)
        if self._stop_listening is not None:
            self._stop_listening()
            self._stop_listening = None

    def _changed(self, kind: str, id: str) -> None:
        if not kind:
            self._recheck()
            return
        for answers in (self._keys, self._customers, self._tags):
            answers.forget(kind, id)
        if kind in ("customer", "tag"):
            self._any.forget("any", "")

    def _recheck(self) -> None:
        for answers in (self._keys, self._customers, self._tags, self._any):
            answers.recheck()

    # Keys.

    async def principal(self, request: InboundRequest) -> Principal:
        """
        A key that is presented counts. Only where there is none, a certificate does.

        :raises UnrecognizedKey: nobody, or its signature is wrong.
        :raises KeyBlocked: the key, its user or its team.
        :raises KeyExpired: it was good once.
        :raises DatabaseUnavailable: it cannot be found out now.
        """
        presented = presented_key(request.headers)
        if presented is None:
            if pairs.presigned(request.raw_query):
                raise InvalidSignature(pairs.PRESIGNED, "IncompleteSignatureException")
            if request.certificate is not None and self._certificates:
                return await self._certified(request.certificate)
            raise _unrecognized(None)
        if presented.carrier == "sigv4" and self._salt and pairs.is_derived(presented.secret):
            holder = await self._keys.get(presented.secret.decode())
            if holder is None:
                raise _unrecognized(presented)
            self._verify(request, holder)
            return self._admitted(holder)
        names = []
        for secret in (presented.secret, *presented.candidates):
            name = sha256(secret).hexdigest()
            if self._master is not None:
                principal = self._master.known(name)
                if principal is not None:
                    return principal
            names.append(name)
        unavailable: DatabaseUnavailable | None = None
        for name in names:
            answer = self._keys.fresh(name)
            try:
                holder = await self._keys.get(name) if answer is None else answer.value
            except DatabaseUnavailable as error:
                # The next one may be known.
                unavailable = error
                continue
            if holder is not None:
                return self._admitted(holder)
        raise unavailable or _unrecognized(presented)

    async def _certified(self, certificate: ClientCertificate) -> Principal:
        """Who presents no key but a certificate is whose key it stands for."""
        if self._now() >= certificate.expires:
            raise KeyExpired(
                f"The client certificate expired at {iso_time(int(certificate.expires * 1e6))}. "
                "Connect with a new one."
            )
        named = (self._certificates.get(name) for name in certificate.names)
        hashed = next((one for one in named if one is not None), None)
        holder = None if hashed is None else await self._keys.get(hashed)
        if holder is None:
            raise UnrecognizedKey(
                "The client certificate stands for no key of this gateway, and the request has "
                f"none. {_HOW} Or have the certificate added to client_certificates.",
                detail=f"certificate {certificate.names[0]}" if certificate.names else "",
            )
        return self._admitted(holder)

    def _verify(self, request: InboundRequest, holder: _Holder) -> None:
        """:raises InvalidSignature: it was not signed with the secret of the pair."""
        pairs.verify(
            method=request.method,
            raw_path=request.received_path or request.raw_path,
            raw_query=request.raw_query,
            headers=request.headers,
            payload_sha256=request.body.sha256,
            secret=pairs.secret_access_key(self._salt, holder.token_hash),
            now=request.received,
            keys=self._signing_keys,
        )

    def _admitted(self, holder: _Holder) -> Principal:
        if holder.expires_us and self._now() * 1e6 >= holder.expires_us:
            when = iso_time(holder.expires_us)
            raise KeyExpired(
                f"This key's secret was replaced, and was good until {when}. Use the new one."
                if holder.replaced
                else f"This key expired at {when}. Whoever issued it can extend it with "
                "/key/update, or issue a new one.",
                detail=f"key {holder.principal.alias}",
            )
        if holder.refusal:
            raise KeyBlocked(holder.refusal, detail=f"key {holder.principal.alias}")
        return holder.principal

    async def _load_keys(
        self, names: Sequence[str]
    ) -> Mapping[str, _Holder | DatabaseUnavailable]:
        records = await self._directory.records(names)
        return {
            name: self._holder(record) if isinstance(record, KeyRecord) else record
            for name, record in records.items()
        }

    def _holder(self, record: KeyRecord) -> _Holder:
        key, user, team, member = record.key, record.user, record.team, record.member
        budget = record.budgets.get
        alias = key.alias or record.token.shown or key.id[:12]
        levels = [Level("key", key.id, alias, with_budget(key.limits, budget(key.budget_id)))]
        further: list[Level] = []
        if team is not None:
            label = team.alias or team.id
            if member is not None:
                limits = member.limits if member.limits != NO_LIMITS else team.member_limits
                name = f"{team.id}/{member.user_id}"
                further.append(Level("team_member", name, f"{member.user_id} of {label}", limits))
            limits = with_budget(team.limits, budget(team.budget_id))
            further.append(Level("team", team.id, label, limits))
        if user is not None:
            limits = with_budget(user.limits, budget(user.budget_id))
            further.append(Level("user", user.id, user.alias or user.id, limits))
        levels += [level for level in further if _limits_something(level.limits)]

        refusal = ""
        if key.blocked:
            refusal = "This key is blocked. Whoever issued it can unblock it with /key/unblock."
        elif user is not None and user.blocked:
            refusal = (
                f"The user {user.id!r}, to whom this key belongs, is blocked. An administrator "
                "can unblock it with /user/update."
            )
        elif team is not None and team.blocked:
            refusal = (
                f"The team {label!r}, to which this key belongs, is blocked. An administrator "
                "can unblock it with /team/unblock."
            )
        permissions = [key.permissions]
        aliases: list[Mapping[str, str]] = [key.aliases]
        if user is not None:
            permissions.append(user.permissions)
            aliases.append({})
        if team is not None:
            permissions.append(team.permissions)
            aliases.append(team.aliases)
        try:
            access = self._compiled(
                tuple(permissions),
                key.type,
                tuple(tuple(sorted(one.items())) for one in aliases),
            )
        except ValueError as error:
            access = self._compiled((), key.type, ())
            refusal = refusal or (
                f"The permissions of this key cannot be used: {error}. Whoever issued it can "
                "change them with /key/update."
            )
        token_ends, key_ends = record.token.expires_us, key.expires_us
        replaced = bool(token_ends and (not key_ends or token_ends < key_ends))
        return _Holder(
            principal=Principal(
                alias=alias,
                key_hash=key.id,
                user_id=key.user_id,
                team_id=key.team_id,
                role=user.role if user is not None else Role.INTERNAL_USER,
                key_type=key.type,
                levels=tuple(levels),
                access=access,
                aliases={**(team.aliases if team is not None else {}), **key.aliases},
                tags=key.tags,
                team_admin=member is not None and member.role == "admin",
            ),
            token_hash=record.token.hash,
            expires_us=token_ends if replaced else key_ends,
            replaced=replaced,
            refusal=refusal,
            sources=_sources(
                ("key", key.id),
                ("user", key.user_id),
                ("team", key.team_id),
                *(("budget", grant.budget_id) for grant in (key, user, team) if grant is not None),
            ),
        )

    # End users and tags.

    async def levels(self, end_user: str, tags: Sequence[str]) -> Sequence[Level]:
        """
        What else a request must find room in: what its client says of it.

        What cannot be found out, because the database is away, limits nothing: the
        key's own limits hold, and anybody can say anything here.

        :param end_user: empty: nobody was named.
        :raises KeyBlocked: the end user, or a tag.
        """
        if not end_user and not tags:
            return ()
        there = await _if_known(self._any, "")
        customers, tagged = (True, True) if there is None else there
        found: list[Level] = []
        if end_user:
            customer: _Limited | None = None
            if customers:
                customer = await _if_known(self._customers, end_user)
            if customer is not None:
                if customer.blocked:
                    raise KeyBlocked(
                        f"The end user {end_user!r} is blocked. An administrator can unblock "
                        "it with /customer/unblock."
                    )
                if customer.level is not None:
                    found.append(customer.level)
            elif _limits_something(self._default):
                found.append(Level("end_user", end_user, end_user, self._default))
        if tagged and tags:
            self._tags.prefetch(tags)
            for name in dict.fromkeys(tags):
                tag = await _if_known(self._tags, name)
                if tag is not None:
                    if tag.blocked:
                        raise KeyBlocked(
                            f"Requests with the tag {name!r} are blocked. An administrator can "
                            "unblock it with /tag/update."
                        )
                    if tag.level is not None:
                        found.append(tag.level)
        return found

    async def _load_customers(
        self, ids: Sequence[str]
    ) -> Mapping[str, _Limited | DatabaseUnavailable]:
        found = await self._directory.customers(ids)
        return {id: _limited(of, "end_user", "customer") for id, of in found.items()}

    async def _load_tags(self, ids: Sequence[str]) -> Mapping[str, _Limited | DatabaseUnavailable]:
        found = await self._directory.tags(ids)
        return {id: _limited(of, "tag", "tag") for id, of in found.items()}

    async def _load_any(self, names: Sequence[str]) -> Mapping[str, tuple[bool, bool]]:
        return dict.fromkeys(names, await self._directory.populated())


async def _if_known(answers: _Answers[V], name: str) -> V | None:
    """None, too, when it cannot be found out."""
    answer = answers.fresh(name)
    if answer is not None:
        return answer.value
    try:
        return await answers.get(name)
    except DatabaseUnavailable:
        return None


def _limited(
    found: tuple[Customer, Budget | None] | tuple[Tag, Budget | None] | DatabaseUnavailable,
    level: LevelKind,
    kind: str,
) -> _Limited | DatabaseUnavailable:
    if isinstance(found, DatabaseUnavailable):
        return found
    grant, budget = found
    limits = with_budget(grant.limits, budget)
    label = (grant.alias if isinstance(grant, Customer) else "") or grant.id
    return _Limited(
        Level(level, grant.id, label, limits) if _limits_something(limits) else None,
        grant.blocked,
        _sources((kind, grant.id), ("budget", grant.budget_id)),
    )


def _sources(*sources: Source) -> tuple[Source, ...]:
    """Each once, and only what has an id."""
    return tuple(dict.fromkeys((kind, id) for kind, id in sources if id))


def _sources_of_holder(holder: _Holder) -> tuple[Source, ...]:
    return holder.sources


def _sources_of_limited(limited: _Limited) -> tuple[Source, ...]:
    return limited.sources
