"""
What all resources of the management side have in common.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from txbedrock.core.auth import Principal
from txbedrock.core.grantfields import BadFields, Check, Form, Kind, Problem, read
from txbedrock.core.grants import Role
from txbedrock.core.replies import ErrorShape, Reply, render
from txbedrock.errors import (
    AccessDenied,
    BodyTooLarge,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    ProxyError,
    UnknownOperation,
)
from txbedrock.inbound.request import Request, inbound_request, new_request_id, send_reply
from txbedrock.interfaces import IKeyStore

__all__ = [
    "AdminResource",
    "Answering",
    "Branch",
    "Call",
    "Endpoint",
    "Listed",
    "Lost",
    "May",
    "Query",
    "admins",
    "changers",
    "everyone",
    "json_reply",
    "refused",
    "viewers",
]


# Money is decimal: 0.1 + 0.2 are 0.3 here, and in what is sent.
_encode = msgspec.json.Encoder(decimal_format="number").encode


def json_reply(value: object) -> Reply:
    """A good answer."""
    return Reply(200, [(b"Content-Type", b"application/json")], _encode(value))


class Query:
    """
    The parameters of a request's query, each at most once.

    :param known: the names that mean something here.
    :raises InvalidRequest: for an unknown or a repeated one.
    """

    def __init__(self, raw: bytes, known: tuple[str, ...]) -> None:
        try:
            parsed = parse_qs(raw.decode("ascii"), keep_blank_values=True, max_num_fields=50)
        except (UnicodeDecodeError, ValueError):
            raise InvalidRequest("The query is not readable: percent-encode it.") from None
        self._values: Mapping[str, str] = {name: values[0] for name, values in parsed.items()}
        takes = f"This path takes: {', '.join(known)}." if known else "This path takes none."
        for name, values in parsed.items():
            if name not in known:
                # What looks like a key may be one, put into the wrong place.
                shown = "" if "sk-" in name else f" {name[:50]!r}"
                raise InvalidRequest(f"Unknown parameter{shown}. {takes}")
            if len(values) > 1:
                raise InvalidRequest(f"The parameter {name} is there {len(values)} times.")

    def text(self, *names: str) -> str | None:
        """The first of these parameters that is there and not empty."""
        return next((self._values[name] for name in names if self._values.get(name)), None)

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """
        A whole number.

        :raises InvalidRequest: it is none, or out of range.
        """
        value = self.text(name)
        if value is None:
            return default
        digits = value.isascii() and value.isdigit() and len(value) <= 18
        if not digits or not low <= int(value) <= high:
            raise InvalidRequest(f"{name} must be a whole number from {low} to {high}.")
        return int(value)

    def flag(self, name: str) -> bool:
        """
        True, false, or not there.

        :raises InvalidRequest: it is something else.
        """
        value = (self.text(name) or "false").lower()
        if value not in ("true", "false"):
            raise InvalidRequest(f"{name} must be true or false.")
        return value == "true"

    def word(self, name: str, words: Mapping[str, str], default: str) -> str:
        """
        One of some words.

        :param words: what a client may say -> what it means.
        :raises InvalidRequest: it is something else.
        """
        value = self.text(name)
        if value is None:
            return default
        if value not in words:
            raise InvalidRequest(f"{name} must be one of {', '.join(words)}.")
        return words[value]


# Who may use a path at all. What of it is theirs is for the path to say.

May = Callable[[Principal], None]
"""Raises AccessDenied."""


def admins(principal: Principal) -> None:
    """Only those who may change what belongs to others."""
    if not principal.admin:
        raise AccessDenied(
            "Only a proxy admin can be used for this path: ask one, or use the master key."
        )


def viewers(principal: Principal) -> None:
    """Only those who may see what belongs to others."""
    if not principal.sees_all:
        raise AccessDenied(
            "Only a proxy admin or a proxy_admin_viewer may see what belongs to all: ask one, "
            "or use the master key."
        )


def changers(principal: Principal) -> None:
    """Everyone but those who may only look."""
    if principal.role not in (Role.PROXY_ADMIN, Role.INTERNAL_USER):
        raise AccessDenied(
            f"A user with the role {principal.role.value} changes nothing: ask a proxy admin."
        )


def everyone(principal: Principal) -> None:
    """Whoever has a key of this gateway."""


class AdminResource(Resource):
    """
    Answers those whose key opens the management side.

    :param keys: who is behind a key.
    """

    methods: tuple[bytes, ...] = (b"GET",)
    _log = Logger()

    def __init__(self, keys: IKeyStore) -> None:
        Resource.__init__(self)
        self._keys = keys

    def getChild(self, path: bytes, request: object) -> IResource:
        return self if path == b"" else Lost()

    def route(self, request: Request) -> str:
        """The path, percent-decoded, as rules about routes and the log know it."""
        return unquote(request.path.decode("ascii", "replace")).rstrip("/")

    def may(self, principal: Principal) -> None:
        """:raises AccessDenied: it may not use this path, whatever it asks for."""
        admins(principal)

    def render(self, request: Request) -> int:
        # Keys and what they may do are for nobody's cache.
        request.setHeader(b"Cache-Control", b"no-store")
        answering = Deferred.fromCoroutine(self._answer(request))
        request.when_lost(answering.cancel)
        answering.addErrback(self._failed, request)
        return NOT_DONE_YET

    async def _answer(self, request: Request) -> None:
        method = b"GET" if request.method == b"HEAD" else request.method
        if method not in self.methods:
            allowed = b", ".join(self.methods)
            raise MethodNotAllowed(
                f"This path answers {allowed.decode()}.", headers=((b"Allow", allowed),)
            )
        await request.content.complete()
        inbound = inbound_request(request)
        principal = await self._keys.principal(inbound)
        principal.access.check_address(inbound.peer)
        principal.access.check_route(self.route(request))
        self.may(principal)
        reply = await self.answer(request, principal)
        if reply is not None:
            send_reply(request, reply)

    async def answer(self, request: Request, principal: Principal) -> Reply | None:
        """:returns: the answer, or None when it was written to the request."""
        raise NotImplementedError

    def _failed(self, failure: Failure, request: Request) -> None:
        if failure.check(CancelledError) or request.disconnected or request.finished:
            return
        error = failure.value
        if not isinstance(error, ProxyError):
            self._log.failure("{path} failed", failure, path=self.route(request))
            error = InternalError("The gateway failed to answer this request.")
        if request.startedWriting:
            request.channel.abort()
        else:
            send_reply(request, render(error, new_request_id(), ErrorShape.LITELLM))


class Lost(Resource):
    """
    A path of the management side that leads nowhere. It may hold a key, so it is not
    repeated.

    :param hint: a sentence that says where to go.
    """

    isLeaf = True

    def __init__(self, hint: str = "") -> None:
        Resource.__init__(self)
        self._hint = hint

    def render(self, request: Request) -> int:
        request.setHeader(b"Cache-Control", b"no-store")
        error = UnknownOperation(f"There is nothing at this path. {self._hint}".rstrip())
        send_reply(request, render(error, new_request_id(), ErrorShape.LITELLM))
        return NOT_DONE_YET


class Branch(Resource):
    """
    A node of the management side's tree.

    :param path: where it is: ``/key``.
    :param children: what is below it.
    """

    def __init__(self, path: str, children: Mapping[bytes, Resource]) -> None:
        Resource.__init__(self)
        self._path = path
        for name, child in children.items():
            self.putChild(name, child)

    def getChild(self, path: bytes, request: object) -> IResource:
        names = ", ".join(f"{self._path}/{name.decode()}" for name in self.listStaticNames())
        return Lost(f"There are {names}.")

    def render(self, request: Request) -> int:
        lost: Any = self.getChild(b"", request)
        return int(lost.render(request))


# Calls.

_MAX_BODY = 1024 * 1024


def _not_a_number(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON's")


def _object_of(body: bytes) -> dict[str, object]:
    """
    The members of a JSON object; an empty body has none.

    :raises InvalidRequest: it is none. The message says where, and does not quote it.
    """
    if not body:
        return {}
    try:
        found = json.loads(body, parse_float=Decimal, parse_constant=_not_a_number)
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not JSON: not UTF-8 at byte {error.start}.") from None
    except RecursionError:
        raise InvalidRequest("The body is not usable: it is nested too deeply.") from None
    except (ArithmeticError, ValueError):
        raise InvalidRequest(
            "The body is not usable: a number in it is too long, or none of JSON's."
        ) from None
    if not isinstance(found, dict):
        raise InvalidRequest('The body must be a JSON object, such as {"models": ["m"]}.')
    return found


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the management API."""

    principal: Principal
    now_us: int
    """Microseconds since 1970, UTC."""

    query: Query = field(repr=False)
    fields: Mapping[str, object] = field(repr=False)
    """Of the body, as they were sent."""

    named: str = field(default="", repr=False)
    """What the path names: a key, perhaps by its secret."""

    @property
    def actor(self) -> str:
        """Who did it, for the record: an alias may change, and be anybody's name."""
        alias, key_hash = self.principal.alias, self.principal.key_hash
        return f"{alias} ({key_hash[:8]})" if key_hash else alias

    @property
    def by(self) -> str:
        """For ``created_by``: the user, where there is one."""
        return self.principal.user_id or self.principal.alias

    def form(
        self,
        kind: Kind | None,
        others: Mapping[str, Check] | None = None,
        *,
        required: tuple[str, ...] = (),
    ) -> Form:
        """
        Read the body, see :func:`~txbedrock.core.grantfields.read`.

        :raises InvalidRequest: with all that is wrong.
        """
        try:
            return read(kind, self.fields, others, required=required)
        except BadFields as error:
            raise refused(*error.problems) from None


def refused(*problems: Problem) -> InvalidRequest:
    """What to say of fields that cannot be used."""
    return InvalidRequest("; ".join(map(str, problems)) + ".")


@dataclass(frozen=True, slots=True)
class Listed:
    """A part of a list that is nothing else in JSON."""

    rows: list[Any]
    total: int
    """How many there are in all; goes into the header ``x-total-count``."""


Answering = Callable[[Call], Awaitable[object]]
"""A call -> what is sent as JSON."""


class Endpoint(AdminResource):
    """
    One path of the management API, for one method.

    :param route: its path; in place of a part that may be a secret a name in braces.
    :param may: who may use it.
    :param query: the parameters that it takes.
    :param named: see :attr:`Call.named`.
    """

    def __init__(
        self,
        keys: IKeyStore,
        method: bytes,
        answer: Answering,
        *,
        route: str,
        may: May,
        query: tuple[str, ...] = (),
        named: str = "",
    ) -> None:
        AdminResource.__init__(self, keys)
        self.methods = (method,)
        self._asked = answer
        self._route = route
        self._who = may
        self._query = query
        self._named = named

    def route(self, request: Request) -> str:
        return self._route

    def may(self, principal: Principal) -> None:
        self._who(principal)

    async def answer(self, request: Request, principal: Principal) -> Reply:
        body = request.content
        if body.length > _MAX_BODY:
            raise BodyTooLarge(f"The body is longer than the {_MAX_BODY} bytes of this path.")
        reads = self.methods == (b"GET",)
        call = Call(
            principal=principal,
            now_us=round(request.received * 1e6),
            query=Query(request.uri.partition(b"?")[2], self._query),
            fields={} if reads else _object_of(body.start()),
            named=self._named,
        )
        answer = await self._asked(call)
        if not isinstance(answer, Listed):
            return json_reply(answer)
        reply = json_reply(answer.rows)
        reply.headers.append((b"x-total-count", b"%d" % answer.total))
        return reply
