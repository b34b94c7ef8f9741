"""
``/customer``, ``/end_user``, ``/budget`` and ``/tag``.
"""

from __future__ import annotations

from collections.abc import Mapping

from twisted.web.resource import Resource

from txbedrock.core.grantfields import identifier, tag_name
from txbedrock.core.grants import Budget, Customer, Tag
from txbedrock.errors import GrantExists, GrantNotFound, InvalidRequest
from txbedrock.inbound.admin.answering import Call
from txbedrock.inbound.admin.backing import Backing, Row
from txbedrock.inbound.admin.kept import Kept, changes, reads

__all__ = ["Budgets", "Customers", "Tags"]


class Customers(Kept[Customer]):
    """End users: whom the holders of keys say that requests are for."""

    def __init__(self, backing: Backing) -> None:
        Kept.__init__(self, backing, Customer, "user_id", identifier, named=True)

    async def info(self, call: Call) -> Row:
        """``/customer/info?end_user_id=``"""
        id = call.query.text("end_user_id")
        if id is None:
            raise InvalidRequest("Say which: /customer/info?end_user_id=...")
        [row] = await self.infos(call, (id,))
        return row

    async def delete(self, call: Call) -> Row:
        """``/customer/delete``"""
        ids = await self.remove(call, self.ids(call, "user_ids"))
        return {"deleted_customers": len(ids), "message": f"Deleted: {', '.join(ids)}"}

    async def block(self, call: Call) -> Row:
        """``/customer/block``: also those of whom nothing was kept so far."""
        ids = self.ids(call, "user_ids")
        return {"blocked_users": await self._blocked(call, ids, True)}

    async def unblock(self, call: Call) -> Row:
        """``/customer/unblock``"""
        ids = self.ids(call, "user_ids")
        for id in ids:
            await self._directory.get(Customer, id)
        return {"unblocked_users": await self._blocked(call, ids, False)}

    async def _blocked(self, call: Call, ids: tuple[str, ...], blocked: bool) -> list[Row]:
        return await self._backing.rows(
            call, [await self._block_one(call, id, blocked) for id in ids]
        )

    async def _block_one(self, call: Call, id: str, blocked: bool) -> Customer:
        try:
            return await self.set_blocked(call, id, blocked)
        except GrantNotFound:
            if not blocked:
                raise
        try:
            return await self._backing.add(call, Customer(id=id, blocked=True))
        except GrantExists:
            # In the meantime somebody else has made it.
            return await self.set_blocked(call, id, blocked)

    def resources(self) -> Mapping[bytes, Resource]:
        """What belongs at the root."""
        paths = {
            "new": changes(self.new),
            "info": reads(self.info, "end_user_id"),
            "list": reads(self.listed, "page", "size"),
            "update": changes(self.update),
            "delete": changes(self.delete),
            "block": changes(self.block),
            "unblock": changes(self.unblock),
        }
        return {
            b"customer": self.branch("/customer", paths),
            b"end_user": self.branch("/end_user", paths),
        }


class Budgets(Kept[Budget]):
    """Limits with a name."""

    def __init__(self, backing: Backing) -> None:
        Kept.__init__(self, backing, Budget, "budget_id", identifier)

    async def info(self, call: Call) -> list[Row]:
        """``/budget/info``"""
        return await self.infos(call, self.ids(call, "budgets"))

    async def delete(self, call: Call) -> Row:
        """``/budget/delete``"""
        form = call.form(None, {"id": identifier}, required=("id",))
        [row] = await self.infos(call, (form["id"],))
        await self.remove(call, (form["id"],))
        return row

    def resources(self) -> Mapping[bytes, Resource]:
        """What belongs at the root."""
        paths = {
            "new": changes(self.new),
            "info": reads(self.info, method=b"POST"),
            "list": reads(self.listed, "page", "size"),
            "update": changes(self.update),
            "delete": changes(self.delete),
        }
        return {b"budget": self.branch("/budget", paths)}


class Tags(Kept[Tag]):
    """What requests are marked with."""

    def __init__(self, backing: Backing) -> None:
        Kept.__init__(self, backing, Tag, "name", tag_name, named=True)

    async def make_one(self, call: Call) -> Row:
        """``/tag/new``"""
        row = await self.new(call)
        return {"message": f"Tag {row['name']} created successfully", "tag": row}

    async def update_one(self, call: Call) -> Row:
        """``/tag/update``"""
        row = await self.update(call)
        return {"message": f"Tag {row['name']} updated successfully", "tag": row}

    async def info(self, call: Call) -> Row:
        """``/tag/info``: each by its name."""
        rows = await self.infos(call, self.ids(call, "names"))
        return {row["name"]: row for row in rows}

    async def delete(self, call: Call) -> Row:
        """``/tag/delete``"""
        form = call.form(None, {"name": tag_name}, required=("name",))
        await self.remove(call, (form["name"],))
        return {"message": f"Tag {form['name']} deleted successfully"}

    def resources(self) -> Mapping[bytes, Resource]:
        """What belongs at the root."""
        paths = {
            "new": changes(self.make_one),
            "info": reads(self.info, method=b"POST"),
            "list": reads(self.listed, "page", "size"),
            "update": changes(self.update_one),
            "delete": changes(self.delete),
        }
        return {b"tag": self.branch("/tag", paths)}
