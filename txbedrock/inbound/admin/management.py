"""
Everything with which keys, users, teams, customers, budgets and tags are kept.
"""

from __future__ import annotations

from twisted.web.resource import Resource

from txbedrock.core.auth import Principal
from txbedrock.core.replies import Reply
from txbedrock.inbound.admin.answering import AdminResource
from txbedrock.inbound.admin.audit import Audit
from txbedrock.inbound.admin.backing import Backing, NoDirectory
from txbedrock.inbound.admin.customers import Budgets, Customers, Tags
from txbedrock.inbound.admin.keys import Keys
from txbedrock.inbound.admin.teams import Teams
from txbedrock.inbound.admin.users import Users
from txbedrock.inbound.request import Request
from txbedrock.interfaces import IDirectory, IKeyStore, ILedger

__all__ = ["management_resources"]

_NAMES = (
    b"key", b"user", b"team", b"customer", b"end_user", b"budget", b"tag", b"audit", b"v2",
)  # fmt: skip


class _NoDirectory(AdminResource):
    """In place of all of them, when there is nowhere to keep anything."""

    methods = (b"GET", b"POST")

    def getChild(self, path: bytes, request: object) -> Resource:
        return self

    def route(self, request: Request) -> str:
        # What follows may be a key.
        return "/" + request.path.decode("ascii", "replace").split("/")[1]

    def may(self, principal: Principal) -> None:
        """Whoever has a key may know."""

    async def answer(self, request: Request, principal: Principal) -> Reply:
        raise NoDirectory(
            "This gateway keeps no keys, users or teams: it has no database. Configure "
            "general_settings.database_url, or the environment variable DATABASE_URL."
        )


def management_resources(
    keys: IKeyStore,
    directory: IDirectory | None,
    ledger: ILedger | None,
    salt: bytes | None,
) -> dict[bytes, Resource]:
    """
    :param directory: None: there is no database.
    :param ledger: what was spent; None: nobody knows.
    :param salt: what AWS-style key pairs are derived with; None: there are none.
    :returns: what belongs at the root, by name.
    """
    if directory is None:
        return {name: _NoDirectory(keys) for name in _NAMES}
    backing = Backing(keys, directory, ledger, salt)
    of_keys = Keys(backing)
    return {
        **of_keys.resources(),
        **Users(backing, of_keys).resources(),
        **Teams(backing).resources(),
        **Customers(backing).resources(),
        **Budgets(backing).resources(),
        **Tags(backing).resources(),
        **Audit(backing).resources(),
    }
