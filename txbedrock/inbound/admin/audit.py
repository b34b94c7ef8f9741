"""
``/audit``: who has changed what, the newest first.
"""

from __future__ import annotations

from collections.abc import Mapping

from twisted.web.resource import Resource

from txbedrock.core.budgets import iso_time
from txbedrock.inbound.admin.answering import Call, Endpoint, viewers
from txbedrock.inbound.admin.backing import Backing, Row
from txbedrock.interfaces import AuditRecord

__all__ = ["Audit"]

_KINDS = ("key", "user", "team", "customer", "budget", "tag")
_MOST = 1000


class Audit:
    """The path ``/audit``; its fields are those of LiteLLM's audit log."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing

    async def listed(self, call: Call) -> list[Row]:
        """``/audit?table_name=&object_id=&before_us=&limit=``"""
        query = call.query
        kind = query.word("table_name", {one: one for one in _KINDS}, "") or None
        before = query.number("before_us", 2**62, 1, 2**62)
        limit = query.number("limit", 100, 1, _MOST)
        records = await self._backing.directory.audit(kind, query.text("object_id"), before, limit)
        return [_row(record) for record in records]

    def resources(self) -> Mapping[bytes, Resource]:
        """What belongs at the root."""
        query = ("table_name", "object_id", "before_us", "limit")
        return {
            b"audit": Endpoint(
                self._backing.keys,
                b"GET",
                self.listed,
                route="/audit",
                may=viewers,
                query=query,
            )
        }


def _row(record: AuditRecord) -> Row:
    return {
        "updated_at": iso_time(record.at_us),
        "updated_us": record.at_us,
        "changed_by": record.actor,
        "action": record.action,
        "table_name": record.kind,
        "object_id": record.id,
        "before_value": record.before,
        "updated_values": record.after,
    }
