"""
What takes an answer before the client does, as long as another deployment could be asked.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IPushProducer

from txbedrock.core.eventstream import Decoder, EventStreamError, Frame
from txbedrock.core.headers import HeaderList
from txbedrock.core.replies import Reply

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
    Holds an event stream back until its first frame is here.

    :param commit: sends the head and what has come of the body, and has somebody else
        take the rest.
    :param may_begin: asked when the first frame is an exception, with its type and
        message; False: nothing is sent.
    """

    __slots__ = ("_commit", "_decoder", "_held", "_may_begin", "committed", "refused")

    def __init__(
        self, commit: Callable[[bytes], None], may_begin: Callable[[str, str], bool]
    ) -> None:
        # Both know this taker: kept for longer, all of an exchange would wait for the
        # collector.
        self._commit: Callable[[bytes], None] | None = commit
        self._may_begin: Callable[[str, str], bool] | None = may_begin
        self._decoder: Decoder | None = Decoder()
        self._held = b""
        self.committed = False
        """The client has got the head."""

        self.refused = False
        """The first frame was an exception, and nothing was sent."""

    def write(self, data: bytes) -> None:
        if not self.refused:
            self._held += data
            self._look(data)

    def _look(self, data: bytes) -> None:
        assert self._decoder is not None
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
        self._decoder = None
        self._commit(held)
        self._commit = self._may_begin = None

    def register_producer(self, producer: IPushProducer) -> None:
        """It takes everything: it is little until it is passed on."""

    def unregister_producer(self) -> None:
        pass


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

    def let_go(self) -> None:
        pass

    def register_producer(self, producer: IPushProducer) -> None:
        pass

    def unregister_producer(self) -> None:
        pass


NOBODY = _Nobody()
