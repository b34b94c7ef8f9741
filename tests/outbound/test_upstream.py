"""
How long the head of an answer is waited for, and answers that are whole with it.
"""

from __future__ import annotations

from typing import Any, cast

import treq
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import answer
from txbedrock.errors import UpstreamBroke, UpstreamTimeout
from txbedrock.interfaces import Ending, IRelay, UpstreamRequest
from txbedrock.outbound.http1 import Connection, Request
from txbedrock.outbound.relay import Relay
from txbedrock.outbound.upstream import Upstream, UpstreamResponse
from txbedrock.takers import UntilWhole


class NoBody:
    """A body of nothing."""

    length = 0
    sha256 = ""

    def start(self) -> bytes:
        return b""

    def producer(self) -> None:
        return None

    async def edited(self, edit: object) -> NoBody:
        return self

    def let_go(self) -> None:
        pass


class Client:
    """Says what was asked of it, and answers when it is told to."""

    def __init__(self) -> None:
        self.asked: list[Deferred[Any]] = []

    def request(self, *args: object, **kwargs: object) -> Deferred[Any]:
        asked: Deferred[Any] = Deferred()
        self.asked.append(asked)
        return asked


class Owner:
    def released(self, connection: Connection) -> None:
        pass

    def lost(self, connection: Connection) -> None:
        pass


def received(data: bytes, method: bytes = b"POST") -> Any:
    """An answer of which so much has come."""
    connection = Connection(Owner())
    connection.makeConnection(StringTransport())
    asked = connection.send(Request(method, b"http://h/", b"/", [(b"Host", b"h")], None))
    got: list[Any] = []
    asked.addCallback(got.append)
    connection.dataReceived(data)
    [response] = got
    return response


class UpstreamTestCase(SynchronousTestCase):
    """An upstream whose client and clock are at hand."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.client = Client()
        self.upstream = Upstream(
            cast(treq.client.HTTPClient, self.client),
            self.clock,
            idle_timeout_s=60.0,
            stalled_client_timeout_s=60.0,
        )


class TimeTests(UpstreamTestCase):
    """The limit of the time until an answer begins."""

    def send(self, limit_s: float) -> Deferred[Any]:
        request = UpstreamRequest(
            b"GET", b"http://h/", [(b"Host", b"h")], NoBody(), first_byte_timeout_s=limit_s
        )
        return Deferred.fromCoroutine(self.upstream.send(request))

    def test_each_at_its_time(self) -> None:
        """Each is given up when its own time is over, neither before nor after."""
        first = self.send(10.0)
        self.clock.advance(4.0)
        second, other = self.send(10.0), self.send(7.5)
        self.clock.advance(5.9)
        self.assertNoResult(first)
        self.clock.advance(0.1)
        self.failureResultOf(first, UpstreamTimeout)
        self.clock.advance(1.4)
        self.assertNoResult(other)
        self.clock.advance(0.1)
        self.failureResultOf(other, UpstreamTimeout)
        self.clock.advance(2.4)
        self.assertNoResult(second)
        self.clock.advance(0.1)
        self.failureResultOf(second, UpstreamTimeout)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_in_time(self) -> None:
        """Who is answered is not given up, and nothing waits for it any more."""
        early, late = self.send(10.0), self.send(10.0)
        self.client.asked[0].callback(received(answer(b"{}")))
        self.assertEqual(self.successResultOf(early).status, 200)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.client.asked[1].callback(received(answer(b"{}")))
        self.successResultOf(late)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        # And so on, when nobody has waited in between.
        again = self.send(10.0)
        self.clock.advance(9.9)
        self.assertNoResult(again)
        self.clock.advance(0.1)
        self.failureResultOf(again, UpstreamTimeout)

    def test_many_at_once(self) -> None:
        """Whoever tries again at once is waited for as long again, by one timer."""
        again: list[Deferred[Any]] = []
        for _ in range(3):
            self.send(10.0).addErrback(lambda _: again.append(self.send(10.0)))
        self.clock.advance(10.0)
        self.assertEqual(len(again), 3)
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(9.9)
        for one in again:
            self.assertNoResult(one)
        self.clock.advance(0.1)
        for one in again:
            self.failureResultOf(one, UpstreamTimeout)

    def test_other_ends(self) -> None:
        """A connection that breaks, or a client that leaves, is no lack of time."""
        broken, left = self.send(10.0), self.send(10.0)
        self.client.asked[0].errback(OSError("broken"))
        self.failureResultOf(broken, UpstreamBroke)
        left.cancel()
        self.failureResultOf(left, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class ArrivedTests(UpstreamTestCase):
    """Answers that are whole when their heads are here."""

    def relay(self, response: Any, observe: Any) -> tuple[IRelay, UntilWhole]:
        taker = UntilWhole()
        head = UpstreamResponse(response, self.clock)
        return self.upstream.relay(head, taker, observe), taker

    def test_as_relayed(self) -> None:
        """They end, are held back and observed as those that come later."""
        for body, method in ((b"{}", b"POST"), (b"", b"POST"), (b"", b"HEAD")):
            whole = answer(body)
            for size in (len(whole), whole.index(b"\r\n\r\n") + 4):
                response = received(whole[:size], method)
                seen: list[bytes] = []
                relay, taker = self.relay(response, seen.append)
                running = Deferred.fromCoroutine(relay.run())
                if size < len(whole):
                    self.assertIsInstance(relay, Relay)
                    response._connection.dataReceived(whole[size:])
                self.assertIs(self.successResultOf(running), Ending.COMPLETE)
                self.assertEqual((relay.held, taker.pieces), (body, []))
                self.assertEqual((relay.relayed, b"".join(seen)), (len(body), body))
                self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_observer_that_fails(self) -> None:
        """The client gets what could not be metered."""

        def observe(data: bytes) -> None:
            raise ZeroDivisionError

        relay, _ = self.relay(received(answer(b"{}")), observe)
        ending = self.successResultOf(Deferred.fromCoroutine(relay.run()))
        self.assertEqual((ending, relay.held), (Ending.COMPLETE, b"{}"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_delivered_once(self) -> None:
        """Nobody else gets the body."""
        response = received(answer(b"{}"))
        self.relay(response, None)
        self.assertIsNone(response.take_whole())
        self.assertRaises(RuntimeError, response.deliverBody, None)

    def test_not_whole(self) -> None:
        """What has not come, or has no length, or is broken, is relayed."""
        whole = answer(b"12345")
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
        for data in (whole[:-1], whole[:-5], chunked):
            relay, _ = self.relay(received(data), None)
            self.assertIsInstance(relay, Relay)
