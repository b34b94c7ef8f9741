"""
What customers, budgets, tags, teams and users have in common: each is made, changed,
shown and removed by its id.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic

from msgspec.structs import replace
from twisted.web.resource import Resource

from txbedrock.core.grantfields import Check, Form, many
from txbedrock.errors import GrantNotFound
from txbedrock.inbound.admin.answering import (
    Answering,
    Branch,
    Call,
    Endpoint,
    Listed,
    May,
    admins,
    viewers,
)
from txbedrock.inbound.admin.backing import Backing, G, Row, applied
from txbedrock.interfaces import GrantSearch

__all__ = ["Kept", "Path", "changes", "new_id", "reads"]

_MOST_ROWS = 1000
_MOST_NAMED = 1000


@dataclass(frozen=True, slots=True)
class Path:
    """One path below that of a kind."""

    method: bytes
    answer: Answering
    may: May
    query: tuple[str, ...] = ()


class Kept(Generic[G]):
    """
    One kind of what is kept.

    :param kind: its type.
    :param id_field: what its id is called in bodies.
    :param check: what an id may be.
    :param named: whether clients have to think of an id.
    """

    def __init__(
        self,
        backing: Backing,
        kind: type[G],
        id_field: str,
        check: Check,
        *,
        named: bool = False,
    ) -> None:
        self._backing = backing
        self._directory = backing.directory
        self._kind: type[G] = kind
        self._id_field = id_field
        self._check = check
        self._named = named

    async def make(self, call: Call, others: Mapping[str, Check] | None = None) -> tuple[Form, G]:
        """
        What the body asks to be made; it is not kept yet.

        :param others: further fields.
        """
        required = (self._id_field,) if self._named else ()
        form = call.form(
            self._kind, {self._id_field: self._check, **(others or {})}, required=required
        )
        id = form.get(self._id_field) or new_id()
        grant = applied(form.changes, self._kind(id=id), call.now_us)
        await self._backing.check_references(form.changes)
        return form, grant

    async def new(self, call: Call) -> Row:
        """``/new``"""
        _, grant = await self.make(call)
        return await self._backing.row(call, await self._backing.add(call, grant))

    async def update(self, call: Call) -> Row:
        """``/update``"""
        field = self._id_field
        form = call.form(self._kind, {field: self._check}, required=(field,))
        await self._backing.check_references(form.changes)
        grant = await self._backing.change(
            call, self._kind, form[field], lambda grant: form.changes.apply(grant, call.now_us)
        )
        return await self._backing.row(call, grant)

    async def remove(self, call: Call, ids: tuple[str, ...]) -> list[str]:
        """
        Remove all of them, or none.

        :raises GrantNotFound: one is not there.
        """
        for id in ids:
            await self._directory.get(self._kind, id)
        for id in ids:
            try:
                await self._directory.remove(self._kind, id, call.actor)
            except GrantNotFound:
                pass  # Somebody else was faster.
        return list(ids)

    def ids(self, call: Call, field: str) -> tuple[str, ...]:
        """The ids in a body that holds nothing else."""
        form = call.form(None, {field: many(self._check, _MOST_NAMED)}, required=(field,))
        found: tuple[str, ...] = form[field]
        return found

    async def set_blocked(self, call: Call, id: str, blocked: bool) -> G:
        """Block or unblock one."""
        return await self._backing.change(
            call,
            self._kind,
            id,
            lambda grant: replace(grant, blocked=blocked),
            "block" if blocked else "unblock",
        )

    async def infos(self, call: Call, ids: tuple[str, ...]) -> list[Row]:
        """Those with these ids, in their order."""
        grants = [await self._directory.get(self._kind, id) for id in ids]
        return await self._backing.rows(call, grants)

    async def page(self, call: Call, filters: Mapping[str, str]) -> Listed:
        """Some of those that fulfil the filters, by ``page`` and ``size``."""
        page = call.query.number("page", 1, 1, 10**9)
        size = call.query.number("size", _MOST_ROWS, 1, _MOST_ROWS)
        search = GrantSearch(filters, "id", False, (page - 1) * size, size)
        grants, total = await self._directory.find(self._kind, search)
        return Listed(await self._backing.rows(call, grants), total)

    async def listed(self, call: Call) -> Listed:
        """``/list``"""
        return await self.page(call, {})

    def branch(self, path: str, paths: Mapping[str, Path]) -> Resource:
        """The resources below a path."""
        return Branch(
            path,
            {
                name.encode(): Endpoint(
                    self._backing.keys,
                    each.method,
                    each.answer,
                    route=f"{path}/{name}",
                    may=each.may,
                    query=each.query,
                )
                for name, each in paths.items()
            },
        )


def new_id() -> str:
    """An id for what nobody has thought of one for."""
    return str(uuid.uuid4())


def reads(answer: Answering, *query: str, may: May = viewers, method: bytes = b"GET") -> Path:
    """A path that changes nothing."""
    return Path(method, answer, may, query)


def changes(answer: Answering, *, may: May = admins) -> Path:
    """A path that changes something."""
    return Path(b"POST", answer, may)
