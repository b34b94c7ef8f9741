"""
Writing to a socket now, where Twisted would wait for the next turn of the reactor.
"""

from __future__ import annotations

from typing import Any

from OpenSSL.SSL import Error as SSLError
from OpenSSL.SSL import WantReadError, ZeroReturnError
from twisted.internet.tcp import Connection
from twisted.protocols.policies import ProtocolWrapper
from twisted.protocols.tls import BufferingTLSTransport, TLSMemoryBIOProtocol
from twisted.python.failure import Failure

__all__ = ["TLSTransport", "write_now"]

# Twisted's transports put what is written aside, ask epoll to tell when there is room, and
# send it in the next turn: two calls of epoll_ctl and a turn for what nearly always could
# have been sent at once. That is worth it where many small pieces are written in one
# turn; we write few, whole ones.


def write_now(transport: Any, data: bytes) -> None:
    """
    Send as much as the socket takes, and leave the rest to the transport.

    The order is kept: nothing is sent ahead of what the transport still has, and one that
    is to be closed sends it before, as Twisted does. A transport of another kind gets all
    of it.

    :param transport: of TCP, or a :class:`TLSTransport`.
    """
    if isinstance(transport, Connection):
        if (
            not transport.TLS
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
    elif isinstance(transport, TLSTransport):
        transport.write_now(data)
        return
    transport.write(data)


class TLSTransport(BufferingTLSTransport):
    """
    TLS over TCP that can be written to now, too.

    What is given to ``write`` is still joined with all else of a turn of the reactor.
    """

    # Of the record that is on its way: bytes that are missing, or the beginning of its head.
    _missing = 0
    _head = b""

    def dataReceived(self, data: bytes) -> None:
        if (
            not self._is_one_record(data)
            or not self._handshakeDone
            or self._lostTLSConnection
            or self._appSendBuffer
        ):
            super().dataReceived(data)
            return
        # A request or an event, usually. Nothing is left when it has been read, and nothing
        # to be sent has come of it: OpenSSL need not be asked for either.
        connection = self._tlsConnection
        connection.bio_write(data)
        try:
            read = connection.recv(_RECORDS)
        except WantReadError:
            self._flushSendBIO()
        except ZeroReturnError:
            self._flushReceiveBIO()
        except SSLError:
            self._tlsShutdownFinished(Failure())
        else:
            if not self._aborted:
                ProtocolWrapper.dataReceived(self, read)

    def _is_one_record(self, data: bytes) -> bool:
        """Is it a whole one, and nothing besides?"""
        at, head = self._missing, self._head
        alone = not at and not head
        if head:
            data = head + data
        end = len(data)
        records = 0
        while at + 5 <= end:
            at += 5 + (data[at + 3] << 8 | data[at + 4])
            records += 1
        self._head = data[at:] if at < end else b""
        self._missing = at - end if at > end else 0
        return alone and records == 1 and at == end

    def write_now(self, data: bytes) -> None:
        """Encrypt it, and send as much as the socket takes."""
        self._aggregator.flush()
        TLSMemoryBIOProtocol.write(self, data)

    def _flushSendBIO(self) -> None:
        # Twisted has this wait in the transport, where an abort drops it: who is cut off
        # must not be told that this was all.
        if self._aborted:
            return
        try:
            data = self._tlsConnection.bio_read(_RECORDS)
        except WantReadError:
            return
        write_now(self.transport, data)


# Bytes: a record and what belongs to it.
_RECORDS = 1 << 15
