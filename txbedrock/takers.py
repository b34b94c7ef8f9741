"""
What takes an answer before the client does, as long as another deployment could be asked.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IPushProducer

from txbedrock.core.eventstream import Decoder, EventStreamError, Frame
from txbedrock.core.headers import HeaderList
from txbedrock.core.replies import Reply
from txbedrock.interfaces import IDownstream

__all__ = ["NOBODY", "UntilFirstFrame", "UntilWhole"]

# An exception is never so long.
_LONGEST_HELD = 64 * 1024


class UntilWhole:
    """Takes a short answer, to be sent on in one piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def register_producer(self, producer: IPushProducer) -> None:
        """It takes everything: it is short."""

    def unregister_producer(self) -> None:
        pass


class UntilFirstFrame:
    """
    Holds an event stream back until its first frame is here, and passes it on then.

    :param downstream: the client.
    :param commit: sends the head, and the first piece of the body.
    :param may_begin: asked when the first frame is an exception, with its type and
        message; False: nothing is sent.
    """

    def __init__(
        self,
        downstream: IDownstream,
        commit: Callable[[bytes], None],
        may_begin: Callable[[str, str], bool],
    ) -> None:
        self._downstream = downstream
        # Both know this taker: kept for longer, all of an exchange would wait for the
        # collector.
        self._commit: Callable[[bytes], None] | None = commit
        self._may_begin: Callable[[str, str], bool] | None = may_begin
        self._decoder = Decoder()
        self._held = b""
        self._producer: IPushProducer | None = None
        self.committed = False
        """The client has got the head."""

        self.refused = False
        """The first frame was an exception, and nothing was sent."""

    def write(self, data: bytes) -> None:
        if self.committed:
            self._downstream.write(data)
        elif not self.refused:
            self._held += data
            self._look(data)

    def _look(self, data: bytes) -> None:
        try:
            frames = self._decoder.feed(data)
        except EventStreamError as error:
            # What it is is for the client to find out.
            frames = list(error.frames)
            if not frames:
                self.pass_on()
                return
        if frames:
            self.refused = not self._is_good(frames[0])
        if not self.refused and (frames or len(self._held) > _LONGEST_HELD):
            self.pass_on()

    def _is_good(self, frame: Frame) -> bool:
        assert self._may_begin is not None
        kind = frame.headers.get(":message-type")
        if kind == "exception":
            name = str(frame.headers.get(":exception-type", ""))
            return self._may_begin(name, frame.payload.decode("utf-8", "replace"))
        if kind == "error":
            name = str(frame.headers.get(":error-code", ""))
            return self._may_begin(name, str(frame.headers.get(":error-message", "")))
        return True

    def pass_on(self) -> None:
        """The client gets what there is, and all that follows."""
        assert self._commit is not None
        self.committed = True
        held, self._held = self._held, b""
        self._commit(held)
        self._commit = self._may_begin = None
        if self._producer is not None:
            self._downstream.register_producer(self._producer)

    def register_producer(self, producer: IPushProducer) -> None:
        self._producer = producer
        if self.committed:
            self._downstream.register_producer(producer)

    def unregister_producer(self) -> None:
        self._producer = None
        if self.committed:
            self._downstream.unregister_producer()


class _Nobody:
    """Who takes an answer that no client waits for."""

    def head(
        self,
        status: int,
        phrase: bytes,
        headers: HeaderList,
        length: int | None,
        data: bytes = b"",
    ) -> None:
        pass

    def write(self, data: bytes) -> None:
        pass

    def finish(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def reply(self, reply: Reply) -> None:
        pass

    def register_producer(self, producer: IPushProducer) -> None:
        pass

    def unregister_producer(self) -> None:
        pass


NOBODY = _Nobody()
