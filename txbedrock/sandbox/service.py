"""
The sandbox: what it accepts, what it remembers, what it answers.

Sans I/O: :meth:`Sandbox.decide` takes a whole request and gives a script, which
:mod:`txbedrock.sandbox.site` plays on the connection.
"""

from __future__ import annotations

import base64
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from txbedrock.core.credentials import Credentials
from txbedrock.core.operations import Operations
from txbedrock.core.replies import ErrorShape, shape_of
from txbedrock.core.sigv4 import SigningKeys
from txbedrock.data import load
from txbedrock.errors import InvalidRequest, ProxyError, UnknownOperation
from txbedrock.sandbox.faults import Fault, Faults, Script, play, refusal
from txbedrock.sandbox.models import Answer, Call, Usage, answer
from txbedrock.sandbox.shapes import Models
from txbedrock.sandbox.site import SandboxResource, SandboxSite
from txbedrock.sandbox.verify import authenticate, check_headers, check_scope

__all__ = ["Billed", "Recorded", "Sandbox", "Stats"]


_BILLED_REQUESTS = 100_000
"""How many are kept one by one; the totals hold all."""


@dataclass(slots=True)
class Recorded:
    """One request as it came, and what became of it."""

    request_id: str
    connection: int
    """1 is the first since the start."""

    time: float
    """When it was there whole; POSIX seconds by the true clock."""

    method: bytes
    target: bytes
    """Path and query exactly as on the wire."""

    headers: list[tuple[bytes, bytes]]
    """In order, names as they were written."""

    body: bytes = field(repr=False)
    service: str | None = None
    operation: str | None = None
    model: str | None = None
    """Percent-decoded."""

    signing_name: str | None = None
    region: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    called_as: str | None = None
    """The service whose host or base URL was called, where that can be told."""

    fault: str | None = None
    status: int | None = None
    """None as long as no head was sent."""

    error: str | None = None
    """The error code, if it was refused."""

    bytes_sent: int = 0
    """Head, framing and body, as handed to the transport."""

    sent_times: list[float] = field(default_factory=list)
    """When something was written: the first thousand times, by the true clock."""

    ended: str | None = None
    """``whole``, ``cut`` (by a fault), ``left`` (by the client); None meanwhile."""

    def as_json(self) -> dict[str, Any]:
        """All of it, the body in base64, other bytes as Latin-1."""
        return {
            **asdict(self),
            "method": self.method.decode("latin-1"),
            "target": self.target.decode("latin-1"),
            "headers": [
                [name.decode("latin-1"), value.decode("latin-1")] for name, value in self.headers
            ],
            "body": base64.b64encode(self.body).decode(),
        }


@dataclass(slots=True)
class Billed:
    """What one request is billed, whether its answer arrived or not."""

    request_id: str
    operation: str
    model: str
    region: str | None
    usage: Usage
    whole: bool = False
    """The answer was sent to its end."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Stats:
    """Counts. What is open now is exact; the rest is since the start."""

    connections: int = 0
    open_connections: int = 0
    active_requests: int = 0
    active_streams: int = 0
    requests: int = 0
    refused: int = 0
    """Answered with an error that no fault asked for."""

    bad_http: int = 0
    bytes_received: int = 0
    """Of bodies."""

    bytes_sent: int = 0


class Sandbox:
    """
    A stand-in for Bedrock. It is no model.

    :param reactor: for everything that waits.
    :param session_token: must come with every signed request if it is set, and
        must not if it is not.
    :param api_key: the bearer token; without one every bearer is refused.
    :param region: that must be signed for; any if not given.
    :param prefix: path before everything, as in ``/base``.
    :param words: how many words, and so events, an answer has; 0 for as many as
        it takes.
    :param delay_ms: before each answer, and between the events of a stream.
    :param clock_offset_s: how far the sandbox's clock is ahead of the true one.
    :param idle_timeout_s: how long an unused connection is kept; None for ever.
    :param remember: how many requests are kept in :attr:`requests`.
    :param remember_bytes: how much their bodies may have together.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime,
        *,
        access_key_id: str = "sandbox",
        secret_access_key: str = "sandbox",
        session_token: str | None = None,
        api_key: str | None = None,
        region: str | None = None,
        prefix: str = "",
        words: int = 0,
        delay_ms: float = 0.0,
        clock_offset_s: float = 0.0,
        idle_timeout_s: float | None = None,
        strict: bool = True,
        remember: int = 1000,
        remember_bytes: int = 256 * 1024 * 1024,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.reactor = reactor
        self.credentials: dict[str, Credentials] = {}
        self.accept(access_key_id, secret_access_key, session_token)
        self.api_key = api_key
        self.region = region
        self.words = words
        self.delay_ms = delay_ms
        self.clock_offset_s = clock_offset_s
        self.strict = strict
        self.wall_clock = wall_clock
        self.faults = Faults()
        self.requests: deque[Recorded] = deque()
        self.billed: dict[str, Billed] = {}
        self.billed_totals: dict[str, dict[str, int]] = {}
        self.stats = Stats()
        self._prefix = prefix.rstrip("/").encode()
        self._remember = remember
        self._remember_bytes = remember_bytes
        self._remembered_bytes = 0
        self._operations = Operations(load("operations"))
        self._services = {operation.service for operation in self._operations}
        self._models = Models()
        self._keys = SigningKeys()
        self.resource = SandboxResource(self)
        self.site = SandboxSite(self, idle_timeout_s)

    def accept(
        self, access_key_id: str, secret_access_key: str, session_token: str | None = None
    ) -> None:
        """Take these credentials too; those with the same id are no longer good."""
        self.credentials[access_key_id] = Credentials(
            access_key_id, secret_access_key, session_token
        )

    @property
    def now(self) -> float:
        """The sandbox's own clock."""
        return self.wall_clock() + self.clock_offset_s

    def decide(self, recorded: Recorded, payload_sha256: str) -> Script:
        """
        What is to be done about a request.

        :param recorded: is completed, and remembered.
        """
        self.stats.requests += 1
        self.stats.bytes_received += len(recorded.body)
        self._keep(recorded)
        shape = ErrorShape.AWS
        try:
            fields = self._fields(recorded)
            path, query = self._below_prefix(recorded)
            shape = shape_of(path)
            call = self._admit(recorded, fields, path, query, payload_sha256)
            reply = answer(call, self._models)
            if recorded.model is None:
                recorded.model = reply.model or None
            fault = self._fault(recorded, fields)
        except ProxyError as error:
            self.stats.refused += 1
            recorded.error = error.code
            return play(None, refusal(error, recorded.request_id, shape), 0, "", shape)
        if fault is not None:
            recorded.fault = fault.kind
        return play(fault, reply, self.delay_ms / 1000, recorded.request_id, shape)

    def _fields(self, recorded: Recorded) -> dict[bytes, bytes]:
        if self.strict:
            return check_headers(recorded.headers)
        return {name.lower(): value for name, value in recorded.headers}

    def _below_prefix(self, recorded: Recorded) -> tuple[bytes, bytes]:
        path, _, query = recorded.target.partition(b"?")
        prefix = self._prefix
        if prefix:
            if path != prefix and not path.startswith(prefix + b"/"):
                raise UnknownOperation(f"The sandbox is below {prefix.decode()}/.")
            path = path[len(prefix) :]
        if path.startswith(b"/_as/"):
            name, slash, rest = path[5:].partition(b"/")
            self._called_as(recorded, name)
            path = slash + rest
        return path, query

    def _called_as(self, recorded: Recorded, host: bytes) -> None:
        """Note service and region of ``SERVICE.REGION`` or AWS's host name."""
        service, _, rest = host.decode("latin-1").lower().partition(".")
        service = service.removesuffix("-fips")
        if service in self._services:
            recorded.called_as = service
            region = rest.partition(".")[0]
            if region.count("-") >= 2:
                recorded.region = region

    def _admit(
        self,
        recorded: Recorded,
        fields: dict[bytes, bytes],
        path: bytes,
        query: bytes,
        payload_sha256: str,
    ) -> Call:
        """
        Check who calls and find what is called.

        :raises ProxyError: to be sent.
        """
        if recorded.called_as is None:
            self._called_as(recorded, fields.get(b"host", b"").partition(b":")[0])
        caller = authenticate(
            method=recorded.method,
            target=recorded.target,
            headers=recorded.headers,
            fields=fields,
            payload_sha256=payload_sha256,
            credentials=self.credentials,
            api_key=self.api_key,
            now=self.now,
            keys=self._keys,
        )
        match = self._operations.match(
            recorded.method,
            path,
            target=fields.get(b"x-amz-target"),
            signing_name=caller.signing_name,
            body=lambda: recorded.body,
        )
        operation = match.operation
        recorded.service = operation.service
        recorded.operation = operation.name
        recorded.signing_name = caller.signing_name
        recorded.access_key_id = caller.access_key_id
        if match.model_label is not None:
            recorded.model = unquote(match.model_label.decode("latin-1"))
        if recorded.called_as not in (None, operation.service):
            raise UnknownOperation(f"{recorded.called_as} has no operation {operation.name}.")
        check_scope(
            caller,
            service=operation.service,
            signing_name=operation.signing_name,
            regions=(self.region, recorded.region),
        )
        recorded.region = caller.region or recorded.region
        return Call(
            operation.service,
            operation.name,
            path,
            query,
            recorded.model or "",
            fields,
            recorded.body,
            recorded.request_id,
            self.now,
            self.words,
        )

    def _fault(self, recorded: Recorded, fields: dict[bytes, bytes]) -> Fault | None:
        asked = fields.get(b"x-sandbox-fault")
        if asked is not None:
            try:
                return Fault.parse(asked.decode("latin-1"))
            except ValueError as error:
                raise InvalidRequest(f"x-sandbox-fault: {error}") from None
        if not self.faults.pending:
            return None
        return self.faults.take(recorded.operation or "", recorded.model or "", recorded.region)

    def _keep(self, recorded: Recorded) -> None:
        self.requests.append(recorded)
        self._remembered_bytes += len(recorded.body)
        while len(self.requests) > self._remember or self._remembered_bytes > self._remember_bytes:
            self._remembered_bytes -= len(self.requests.popleft().body)

    # What the connections tell

    def received(
        self,
        connection: int,
        method: bytes,
        target: bytes,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
    ) -> Recorded:
        """A new request."""
        now = self.wall_clock()
        return Recorded(str(uuid4()), connection, now, method, target, headers, body)

    def head_sent(self, recorded: Recorded, answer: Answer) -> None:
        """An answer has begun; from now on it is billed."""
        recorded.status = answer.status
        usage = answer.usage
        if usage is None:
            return
        model = answer.model or recorded.model or recorded.service or ""
        self.billed[recorded.request_id] = Billed(
            recorded.request_id, recorded.operation or "", model, recorded.region, usage
        )
        if len(self.billed) > _BILLED_REQUESTS:
            del self.billed[next(iter(self.billed))]
        totals = self.billed_totals.setdefault(model, {"requests": 0, **asdict(Usage())})
        totals["requests"] += 1
        for name in Usage.__slots__:
            totals[name] += getattr(usage, name)

    def sent(self, recorded: Recorded, size: int) -> None:
        """Bytes were handed to the transport."""
        recorded.bytes_sent += size
        self.stats.bytes_sent += size
        if len(recorded.sent_times) < 1000:
            recorded.sent_times.append(self.wall_clock())

    def ended(self, recorded: Recorded, how: str) -> None:
        """Nothing more will be sent for this request."""
        recorded.ended = how
        billed = self.billed.get(recorded.request_id)
        if billed is not None:
            billed.whole = how == "whole"

    # For those who hold it

    def close(self) -> Deferred[None]:
        """
        Reset every open connection.

        :returns: fires when none is left.
        """
        return self.site.close()

    def forget(self) -> None:
        """Forget the requests so far, and what was billed."""
        self.requests.clear()
        self._remembered_bytes = 0
        self.billed.clear()
        self.billed_totals.clear()
