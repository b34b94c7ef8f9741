"""
What all resources of the management side have in common.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from urllib.parse import parse_qs

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from txbedrock.core.auth import Principal
from txbedrock.core.replies import ErrorShape, Reply, render
from txbedrock.errors import (
    AccessDenied,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    ProxyError,
)
from txbedrock.inbound.replying import NotFound
from txbedrock.inbound.site import Request, inbound_request, send_reply
from txbedrock.interfaces import IKeyStore

__all__ = ["AdminResource", "Query", "json_reply"]


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
        for name, values in parsed.items():
            if name not in known:
                raise InvalidRequest(
                    f"Unknown parameter {name[:50]!r}. This path takes: {', '.join(known)}."
                )
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
        if not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
            raise InvalidRequest(f"{name} must be a whole number from {low} to {high}.")
        return int(value)


class AdminResource(Resource):
    """
    Answers those whose key may see or change what belongs to others.

    :param keys: who is behind a key.
    """

    methods: tuple[bytes, ...] = (b"GET",)
    _log = Logger()

    def __init__(self, keys: IKeyStore) -> None:
        Resource.__init__(self)
        self._keys = keys

    def getChild(self, path: bytes, request: object) -> IResource:
        return self if path == b"" else NotFound("")

    def render(self, request: Request) -> int:
        answering = Deferred.fromCoroutine(self._answer(request))
        request.notifyFinish().addErrback(lambda _: answering.cancel())
        answering.addErrback(self._failed, request)
        return NOT_DONE_YET

    async def _answer(self, request: Request) -> None:
        if request.method not in self.methods and request.method != b"HEAD":
            allowed = b", ".join(self.methods)
            raise MethodNotAllowed(
                f"This path answers {allowed.decode()}.", headers=((b"Allow", allowed),)
            )
        await request.content.complete()
        principal = await self._keys.principal(inbound_request(request))
        if not principal.admin:
            raise AccessDenied("Only the proxy admin's key can be used for this path.")
        reply = await self.answer(request, principal)
        if reply is not None:
            send_reply(request, reply)

    async def answer(self, request: Request, principal: Principal) -> Reply | None:
        """:returns: the answer, or None when it was written to the request."""
        raise NotImplementedError

    def _failed(self, failure: Failure, request: Request) -> None:
        if failure.check(CancelledError) or request._disconnected or request.finished:
            return
        error = failure.value
        if not isinstance(error, ProxyError):
            self._log.failure(
                "{path} failed", failure, path=request.path.decode("ascii", "replace")
            )
            error = InternalError("The gateway failed to answer this request.")
        if request.startedWriting:
            request.channel.abort()
        else:
            send_reply(request, render(error, str(uuid.uuid4()), ErrorShape.LITELLM))
