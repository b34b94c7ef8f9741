"""
AWS as an exchange sees it: a request goes up, the head of an answer comes back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import treq
from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import (
    ConnectError,
    ConnectionRefusedError,
    DNSLookupError,
)
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web._newclient import ParseError
from twisted.web.iweb import UNKNOWN_LENGTH, IResponse

from txbedrock.core.headers import NO_HEADERS, HeaderList, Indexed
from txbedrock.errors import (
    InvalidRequest,
    ProxyError,
    UpstreamBroke,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from txbedrock.interfaces import IRelay, ITaker, IUpstreamResponse, UpstreamRequest
from txbedrock.outbound.client import ForwardingClient
from txbedrock.outbound.http1 import Response, collected, listed
from txbedrock.outbound.relay import Arrived, Relay, discard

__all__ = ["Upstream", "UpstreamResponse"]

# An answer that is thrown away is an error of a few hundred bytes.
_DISCARD_S = 5.0
_DISCARD_BYTES = 64 * 1024


class UpstreamResponse:
    """The head of an answer, over treq's response."""

    __slots__ = ("_clock", "headers", "length", "phrase", "response", "status")

    def __init__(self, response: IResponse, clock: IReactorTime) -> None:
        # treq's wraps one that knows its headers as they came.
        response = getattr(response, "original", response)
        self.response = response
        self._clock = clock
        self.status: int = response.code
        self.phrase: bytes = response.phrase
        self.headers: HeaderList
        if isinstance(response, Response):
            self.headers = response.raw_headers
        else:
            self.headers = Indexed(listed(response.headers))
        length = response.length
        self.length: int | None = None if length is UNKNOWN_LENGTH else length

    def let_go(self) -> None:
        """Forget the headers: the client has got them."""
        self.headers = NO_HEADERS
        if isinstance(self.response, Response):
            self.response.let_go()

    async def discard(self) -> None:
        """Throw a short body away; close the connection on a long or slow one."""
        await discard(self.response, self._clock, _DISCARD_BYTES, _DISCARD_S)


class _Limit:
    """
    Cancels what takes longer than so many seconds.

    One timer for all of them, as nearly none does.
    """

    def __init__(self, clock: IReactorTime, limit_s: float) -> None:
        self._clock = clock
        self._limit_s = limit_s
        # When it is too late for each, the oldest first.
        self._running: dict[Deferred[Any], float] = {}
        self._timer: IDelayedCall | None = None

    def begin(self, what: Deferred[Any]) -> None:
        self._running[what] = self._clock.seconds() + self._limit_s
        if self._timer is None:
            self._timer = self._clock.callLater(self._limit_s, self._look)

    def passed(self, what: Deferred[Any]) -> bool:
        """Was it cancelled because of the time?"""
        return what not in self._running

    def end(self, what: Deferred[Any]) -> None:
        self._running.pop(what, None)
        if not self._running and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = self._clock.seconds()
        late: list[Deferred[Any]] = []
        self._timer = None
        for what, until in self._running.items():
            if until > now:
                self._timer = self._clock.callLater(until - now, self._look)
                break
            late.append(what)
        for what in late:
            del self._running[what]
        for what in late:
            what.cancel()


class Upstream:
    """
    Sends through a treq client.

    :param client: :class:`.client.ForwardingClient`, or any ``HTTPClient``.
    """

    _log = Logger()

    def __init__(
        self,
        client: treq.client.HTTPClient,
        clock: IReactorTime,
        *,
        idle_timeout_s: float,
        stalled_client_timeout_s: float,
    ) -> None:
        self._client = client
        self._exact = isinstance(client, ForwardingClient)
        self._clock = clock
        self._idle_s = idle_timeout_s
        self._stalled_s = stalled_client_timeout_s
        self._limits: dict[float, _Limit] = {}

    async def send(self, request: UpstreamRequest) -> UpstreamResponse:
        """
        Send a request and wait for the head of its answer.

        :raises InvalidRequest: it cannot be written as HTTP/1.1.
        :raises UpstreamUnavailable: no connection, or it broke before the head.
        :raises UpstreamTimeout: no head within the request's limit.
        """
        client: Any = self._client
        answer: Deferred[Any]
        if self._exact:
            answer = client.request(
                request.method, request.url, headers=request.headers, data=request.body.producer()
            )
        else:
            answer = client.request(
                request.method.decode("ascii"),
                request.url,
                headers=collected(request.headers),
                data=request.body.producer(),
                unbuffered=True,
                allow_redirects=False,
            )
        limit_s = request.first_byte_timeout_s
        limit = self._limits.get(limit_s)
        if limit is None:
            limit = self._limits[limit_s] = _Limit(self._clock, limit_s)
        limit.begin(answer)
        try:
            response: IResponse = await answer
        except Exception as error:
            if limit.passed(answer):
                raise UpstreamTimeout(
                    f"Bedrock did not begin to answer within {limit_s:g} seconds.",
                    detail="first byte timeout",
                ) from None
            if isinstance(error, ValueError):
                # Of all that is in it only the client's headers can be so.
                raise InvalidRequest(f"The request cannot be sent on: {error}.") from None
            raise _explained(error) from None
        finally:
            limit.end(answer)
        return UpstreamResponse(response, self._clock)

    def relay(
        self,
        response: IUpstreamResponse,
        taker: ITaker,
        observe: Callable[[bytes], None] | None,
    ) -> IRelay:
        """Prepare to relay the body of an answer that :meth:`send` gave."""
        assert isinstance(response, UpstreamResponse)
        upstream = response.response
        if isinstance(upstream, Response) and response.length is not None:
            # Most short answers are whole when their heads are here.
            body = upstream.take_whole()
            if body is not None:
                return Arrived(body, observe)
        return Relay(
            upstream,
            taker,
            observe,
            clock=self._clock,
            idle_s=self._idle_s,
            stalled_s=self._stalled_s,
        )


def _causes(error: BaseException) -> list[BaseException]:
    """What twisted.web has wrapped into an error; the error itself if nothing."""
    found: list[BaseException] = []
    for reason in getattr(error, "reasons", None) or ():
        inner = reason.value if isinstance(reason, Failure) else reason
        if isinstance(inner, BaseException):
            found.extend(_causes(inner))
    return found or [error]


def _explained(error: Exception) -> Exception:
    """
    What an attempt failed of, as an error for the client.

    A client that left cancels the attempt, which shows wrapped into
    ``ResponseNeverReceived``: no failure of the upstream's.
    """
    causes = _causes(error)
    if any(isinstance(cause, CancelledError) for cause in causes):
        return CancelledError()
    # Of an answer that is no HTTP only this is told: its bytes stay out of the log.
    detail = "; ".join(
        type(cause).__name__
        if isinstance(cause, ParseError)
        else f"{type(cause).__name__}: {cause}"
        for cause in causes
    )
    for cause in causes:
        explanation: ProxyError | None = None
        if isinstance(cause, ConnectTimeout):
            explanation = UpstreamUnavailable(
                "Bedrock's endpoint could not be reached in time.", detail=detail
            )
        elif isinstance(cause, DNSLookupError):
            explanation = UpstreamUnavailable(
                "Bedrock's endpoint has no address: the region or endpoint configured "
                "in the gateway may not exist.",
                detail=detail,
            )
        elif isinstance(cause, ConnectionRefusedError):
            explanation = UpstreamUnavailable(
                "Bedrock's endpoint refused the connection.", detail=detail
            )
        elif isinstance(cause, SSL.Error) or type(cause).__module__.startswith("service_identity"):
            explanation = UpstreamUnavailable(
                "Bedrock's endpoint did not prove its identity over TLS.", detail=detail
            )
        elif isinstance(cause, ConnectError):
            explanation = UpstreamUnavailable(
                "Bedrock's endpoint could not be reached.", detail=detail
            )
        if explanation is not None:
            return explanation
    return UpstreamBroke("The connection to Bedrock broke before it answered.", detail=detail)
