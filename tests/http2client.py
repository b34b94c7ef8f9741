"""
A client that speaks HTTP/2 by the h2 library, with or without a socket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    InformationalResponseReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame
from twisted.internet import reactor
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from tests.fakes import BODY, KEY

__all__ = ["Answer", "Http2Client", "fields"]


def fields(
    path: str,
    method: str = "POST",
    *headers: tuple[str, str],
    key: str | None = KEY,
    authority: str = "localhost:4000",
) -> list[tuple[str, str]]:
    """The head of a request."""
    head = [(":method", method), (":scheme", "http"), (":authority", authority), (":path", path)]
    if key is not None:
        head.append(("authorization", f"Bearer {key}"))
    return [*head, *headers]


@dataclass
class Answer:
    """What came on a stream."""

    id: int
    informational: list[int] = field(default_factory=list)
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    frames: int = 0
    ended: bool = False
    reset: int | None = None
    arrived: list[tuple[float, int]] = field(default_factory=list)
    """When how much of the body was there."""

    @property
    def status(self) -> int:
        """0: none yet."""
        return int(self.headers.get(b":status", b"0"))

    @property
    def over(self) -> bool:
        """Whole, or reset."""
        return self.ended or self.reset is not None


class _Connection(H2Connection):
    """h2 ends a connection when it gets a GOAWAY; a client has to go on reading."""

    def __init__(self) -> None:
        super().__init__(
            H2Configuration(
                client_side=True,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.goaways: list[GoAwayFrame] = []

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Any], list[Any]]:
        self.goaways.append(frame)
        return [], []


class Http2Client(Protocol):
    """
    :param window: of each stream, what a server may send ahead.
    """

    def __init__(self, window: int = 65535) -> None:
        self.h2 = _Connection()
        self.h2.local_settings = Settings(
            client=True, initial_values={SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.window = window
        self.answers: dict[int, Answer] = {}
        self.held: set[int] = set()
        """Streams whose window is not opened again."""

        self.order: list[int] = []
        """Of which stream each frame of data was."""

        self.lost: Failure | None = None
        self.begun = False
        self.transport: Any
        self._uploads: dict[int, bytes] = {}

    # Frames.

    def begin(self) -> None:
        """The preface."""
        self.begun = True
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(2**30)
        self.flush()

    def connectionMade(self) -> None:
        self.begin()

    def flush(self) -> None:
        """Send what there is."""
        data = self.h2.data_to_send()
        if data:
            self.transport.write(data)

    def dataReceived(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            answer = self.answers.get(getattr(event, "stream_id", 0) or 0)
            if isinstance(event, WindowUpdated):
                self._upload()
            elif answer is None:
                continue
            elif isinstance(event, InformationalResponseReceived):
                answer.informational.append(int(dict(event.headers)[b":status"]))
            elif isinstance(event, ResponseReceived):
                answer.headers = dict(event.headers)
            elif isinstance(event, DataReceived):
                answer.body += event.data
                answer.frames += 1
                answer.arrived.append((reactor.seconds(), len(answer.body)))  # type: ignore[attr-defined]
                self.order.append(answer.id)
                if answer.id not in self.held and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, answer.id)
            elif isinstance(event, StreamEnded):
                answer.ended = True
            elif isinstance(event, StreamReset):
                answer.reset = int(event.error_code)
        self._upload()
        self.flush()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason

    # What is asked.

    def head(self, head: Iterable[tuple[str, str]], end: bool = False) -> Answer:
        """Send the head of a request."""
        id = self.h2.get_next_available_stream_id()
        answer = self.answers[id] = Answer(id)
        self.h2.send_headers(id, list(head), end_stream=end)
        self.flush()
        return answer

    def ask(
        self,
        path: str,
        body: bytes = BODY,
        *headers: tuple[str, str],
        method: str = "POST",
        key: str | None = KEY,
        hold: bool = False,
    ) -> Answer:
        """
        Send a request, and its body as the server's windows allow.

        :param hold: do not take more of the answer than its window.
        """
        answer = self.head(fields(path, method, *headers, key=key), end=not body)
        if hold:
            self.held.add(answer.id)
        if body:
            self._uploads[answer.id] = body
            self._upload()
            self.flush()
        return answer

    def _upload(self) -> None:
        for id, body in list(self._uploads.items()):
            if self.answers[id].reset is not None:
                del self._uploads[id]
                continue
            while body:
                size = min(
                    len(body),
                    self.h2.local_flow_control_window(id),
                    self.h2.max_outbound_frame_size,
                )
                if size <= 0:
                    break
                self.h2.send_data(id, body[:size], end_stream=size == len(body))
                body = body[size:]
            if body:
                self._uploads[id] = body
            else:
                del self._uploads[id]

    def open(self, answer: Answer, size: int) -> None:
        """Open the window of an answer that is held."""
        self.h2.increment_flow_control_window(size, answer.id)
        self.flush()

    def reset(self, answer: Answer, code: ErrorCodes = ErrorCodes.CANCEL) -> None:
        """Give a request up."""
        self.h2.reset_stream(answer.id, code)
        self._uploads.pop(answer.id, None)
        self.flush()

    def go_away(self) -> None:
        """As the AWS SDK for JavaScript does when its request is out."""
        self.flush()
        self.transport.write(GoAwayFrame(0, last_stream_id=0).serialize())

    @property
    def uploading(self) -> int:
        """Bytes that the server's windows have not let out."""
        return sum(map(len, self._uploads.values()))

    @property
    def goaways(self) -> list[tuple[int, int, bytes]]:
        """Of the server: last stream, code, text."""
        return [
            (frame.last_stream_id, frame.error_code, frame.additional_data)
            for frame in self.h2.goaways
        ]

    def all_over(self) -> Callable[[], bool]:
        """For :func:`tests.fakes.until`."""
        return lambda: all(answer.over for answer in self.answers.values())
