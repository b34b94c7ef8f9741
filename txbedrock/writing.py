"""
Writing to a socket now, where Twisted would wait for the next turn of the reactor.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.tcp import Connection

__all__ = ["write_now"]

# Twisted's transports put what is written aside, ask epoll to tell when there is room, and
# send it in the next turn: two calls of epoll_ctl and a turn for what nearly always could
# have been sent at once. That is worth it where many small pieces are written in one
# turn; we write few, whole ones.


def write_now(transport: Any, data: bytes) -> None:
    """
    Send as much as the socket takes, and leave the rest to the transport.

    The order is kept: nothing is sent ahead of what the transport still has, and one that
    is to be closed sends it before, as Twisted does. A transport of another kind, such as
    TLS, gets all of it.
    """
    if (
        isinstance(transport, Connection)
        and not transport.TLS
        and not transport.dataBuffer
        and not transport._tempDataBuffer
        and transport.connected
    ):
        try:
            sent = transport.socket.send(data)
        except OSError:
            sent = 0  # What is wrong is told where Twisted expects it, in the reactor's turn.
        if sent == len(data):
            return
        data = data[sent:]
    transport.write(data)
