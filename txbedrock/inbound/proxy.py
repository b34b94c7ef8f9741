"""
The leaf of the Resource tree: everything below the prefix goes to Bedrock.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from txbedrock.core.headers import HeaderList
from txbedrock.core.replies import Reply, render, shape_of
from txbedrock.errors import InternalError
from txbedrock.inbound.request import Request, inbound_request, new_request_id, send_reply
from txbedrock.interfaces import IDownstream, InboundRequest

__all__ = ["Downstream", "ProxyResource"]


class Downstream:
    """A twisted.web request as the exchange sees it."""

    def __init__(self, request: Request) -> None:
        self._request = request
        # Called for each event of a stream: without a method of ours in between.
        self.write = request.writer

    def head(
        self,
        status: int,
        phrase: bytes,
        headers: HeaderList,
        length: int | None,
        data: bytes = b"",
    ) -> None:
        if length is not None and status not in (204, 304):
            headers = [*headers, (b"Content-Length", b"%d" % length)]
        self._request.head(status, phrase, headers, data)
        self.write = self._request.writer

    def finish(self) -> None:
        self._request.finish()

    def abort(self) -> None:
        if not self._request.disconnected:
            self._request.channel.cut_off()

    def reply(self, reply: Reply) -> None:
        if not self._request.disconnected:
            send_reply(self._request, reply)

    def register_producer(self, producer: IPushProducer) -> None:
        self._request.registerProducer(producer, True)

    def let_go(self) -> None:
        self._request.let_go()

    def unregister_producer(self) -> None:
        if not self._request.disconnected:
            self._request.unregisterProducer()


class _Serving:
    """
    Runs a coroutine as ``Deferred.fromCoroutine`` does, at a quarter of the price: in no
    context of its own, and for nobody who waits for its end.

    :param failed: called with what it raised, and the request.
    """

    __slots__ = ("_cancelled", "_coroutine", "_failed", "_request", "_waiting")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, None],
        failed: Callable[[Failure, Request], None],
        request: Request,
    ) -> None:
        self._coroutine = coroutine
        self._failed = failed
        self._request = request
        self._waiting: Deferred[Any] | None = None
        self._cancelled = False

    def go_on(self, result: object = None) -> None:
        """
        :param result: of what it has waited for; a Failure is raised in it.
        """
        self._waiting = None
        try:
            waiting: Deferred[Any]
            if isinstance(result, Failure):
                waiting = result.throwExceptionIntoGenerator(self._coroutine)
            else:
                waiting = self._coroutine.send(result)
        except StopIteration:
            return
        except BaseException:
            self._failed(Failure(), self._request)
            return
        self._waiting = waiting
        waiting.addBoth(self.go_on)
        if self._cancelled:
            self.cancel()

    def cancel(self) -> None:
        """Cancel what it waits for; while it runs, what it is going to wait for next."""
        waiting = self._waiting
        self._cancelled = waiting is None
        if waiting is not None:
            waiting.cancel()


class ProxyResource(Resource):
    """
    Hands a request to the exchange and cancels it when the client leaves.

    :param serve: carries one request; cancelled when its client leaves.
    :param prefix_segments: how many segments of the path lead here.
    """

    isLeaf = True
    _log = Logger()

    def __init__(
        self,
        serve: Callable[[InboundRequest, IDownstream], Coroutine[Any, Any, None]],
        prefix_segments: int,
    ) -> None:
        Resource.__init__(self)
        self._carry = serve
        self._prefix_segments = prefix_segments

    def render(self, request: Request) -> int:
        # Nearly always it is at hand, and nothing but the exchange itself is left to last.
        at_hand = request.content.ended()
        serving = _Serving(
            self._exchange(request) if at_hand else self._serve(request), self._failed, request
        )
        request.when_lost(serving.cancel)
        serving.go_on()
        return NOT_DONE_YET

    async def _serve(self, request: Request) -> None:
        await request.content.complete()
        await self._exchange(request)

    def _exchange(self, request: Request) -> Coroutine[Any, Any, None]:
        below = self._below_prefix(request.path)
        return self._carry(inbound_request(request, below), Downstream(request))

    def _below_prefix(self, path: bytes) -> bytes:
        for _ in range(self._prefix_segments):
            path = path[1:]
            slash = path.find(b"/")
            path = b"" if slash < 0 else path[slash:]
        return path

    def _failed(self, failure: Failure, request: Request) -> None:
        """The exchange answers for itself; this is for what came before it."""
        if failure.check(CancelledError):
            return  # The client left while its body was on its way to the disk.
        self._log.failure("a request could not be read", failure)
        if request.disconnected or request.finished:
            return
        if request.startedWriting:
            request.channel.abort()
            return
        error = InternalError("The gateway failed to take this request in.")
        send_reply(request, render(error, new_request_id(), shape_of(request.path)))
