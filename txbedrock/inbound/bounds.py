"""
How many connections clients may have, and which of them go when there is no room.
"""

from __future__ import annotations

import resource
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from txbedrock.core.addresses import client_network

__all__ = ["Bounds", "Connection", "Entry", "Refusal", "raise_file_limit", "spare_files"]


class Refusal(Enum):
    """Why a connection was turned away, or closed to make room for another."""

    CONNECTIONS = "connections"
    """There are as many as there may be, and all of them are at work."""

    ADDRESS = "address"
    """There are as many of this address as there may be."""

    FILES = "files"
    """The process is about to run out of file descriptors."""

    IDLE = "idle"
    """Closed for another: nothing was under way on it."""

    SLOW_HEADER = "slow_header"
    """Closed for another: the header of a request was not whole yet."""

    SLOW_BODY = "slow_body"
    """Closed for another: the body of a request was not whole yet."""


class Connection(Hashable, Protocol):
    """A client's, of any protocol."""

    @property
    def idle(self) -> bool:
        """No request is under way, nor has any byte of one arrived."""


@dataclass(slots=True, eq=False)
class _Place:
    """What is known of a connection."""

    connection: Connection
    address: str
    """Under which it is counted; empty: under none, as those that come for many do."""

    since: float
    queue: _Queue | _Crowd | None = None
    requests: int = 0
    """So far."""

    arriving: int = 0
    """Those whose head is here and whose body is not."""

    answering: int = 0
    """Those that are here and not yet answered."""


class _Queue(OrderedDict[_Place, None]):
    """Who came first goes first."""

    def add(self, place: _Place) -> None:
        self[place] = None

    def discard(self, place: _Place) -> None:
        del self[place]

    def first(self) -> _Place | None:
        return next(iter(self), None)


class _Crowd:
    """
    Of the address that is here most often, who came first goes first.

    All takes the same time however many there are.
    """

    def __init__(self) -> None:
        self._size = 0
        self._of: dict[Hashable, _Queue] = {}
        # Number of places -> the addresses that have so many.
        self._having: dict[int, OrderedDict[Hashable, None]] = {}
        self._most = 0

    def __len__(self) -> int:
        return self._size

    def add(self, place: _Place) -> None:
        self._size += 1
        address = place.address or place
        queue = self._of.setdefault(address, _Queue())
        self._count(address, len(queue), len(queue) + 1)
        queue.add(place)

    def discard(self, place: _Place) -> None:
        self._size -= 1
        address = place.address or place
        queue = self._of[address]
        self._count(address, len(queue), len(queue) - 1)
        queue.discard(place)
        if not queue:
            del self._of[address]

    def first(self) -> _Place | None:
        having = self._having.get(self._most)
        return None if having is None else self._of[next(iter(having))].first()

    def _count(self, address: Hashable, before: int, now: int) -> None:
        if now:
            self._having.setdefault(now, OrderedDict())[address] = None
        if before:
            having = self._having[before]
            del having[address]
            if not having:
                del self._having[before]
        # It changes by one at a time, so the next lower number is there if it has to be.
        if now > self._most or (before == self._most and before not in self._having):
            self._most = now


class Entry(NamedTuple):
    """What is to become of a new connection, and of another for its sake."""

    refused: Refusal | None = None
    close: Connection | None = None
    reason: Refusal | None = None
    """Of ``close``."""


# A header needs no longer; a connection that was opened in advance may lose its place.
_PATIENCE_S = 5.0

# How long it is believed that there are no more descriptors.
_FEW_S = 1.0

# Of 2^20 descriptors, where Linux draws the line itself unless told otherwise.
_MOST_FILES = 1 << 20


# Note [Who goes when there is no room]
#
# A new connection always gets in as long as another one can go for it. In this order:
#
#   1. one whose header is not whole, if that has taken five seconds or if there are more
#      of these than idle ones;
#   2. one with nothing under way, the longest idle first;
#   3. one whose header is not whole;
#   4. one whose body is not whole.
#
# Of headers and bodies it is one of the address that has most of them, and its oldest.
# So whoever opens thousands and sends half a header on each pushes out his own. Nobody
# is known before his request is whole: a key cannot help here. What is being answered
# never goes. For one too many of an address only one of that address goes.
#
# Nobody tells that an idle connection has begun with its next header; it is looked at
# when it would be its turn.


# Note [When descriptors run out]
#
# A process gets the lowest descriptor that is free. So a high one says that nearly all
# are in use, whatever for: connections to Bedrock, journal, database. There are then as
# many connections as there can be, for a second: as long as each new one takes the place
# of another, new descriptors are low ones and say nothing.


class Bounds:
    """
    All connections, and what each is doing.

    It decides and counts, and closes nothing itself.

    :param most: connections at a time.
    :param most_per_address: the same of one client address (an IPv6 one stands for its
        /64, which is what a single client has); 0: as many as there are.
    :param exempt: addresses to which that does not apply.
    :param seconds: monotonic.
    """

    def __init__(
        self,
        most: int,
        most_per_address: int,
        exempt: Callable[[str], bool],
        seconds: Callable[[], float],
    ) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._exempt = exempt
        self._seconds = seconds
        self._places: dict[Connection, _Place] = {}
        self._of_address: dict[str, set[_Place]] = {}
        self._headers = _Crowd()
        self._idle = _Queue()
        self._bodies = _Crowd()
        self.last_file: int | None = None
        """The highest descriptor that a connection may have; None: any. See
        Note [When descriptors run out]."""

        self._few = most
        self._few_until = 0.0

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._places)

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._places

    def under_way(self, connection: Connection) -> int:
        """Requests of a connection whose head is here and whose answer is not whole."""
        place = self._places.get(connection)
        return 0 if place is None else place.arriving + place.answering

    # Coming and going.

    def enter(self, connection: Connection, address: str = "", file: int = -1) -> Entry:
        """
        A new connection. When it is refused, or must have another closed for it, the
        others know nothing of that one any more.

        :param address: of the other end; what is no IP address counts for nothing.
        :param file: its descriptor; -1 if it has none.
        """
        address = self.counted(address)
        mine = self._of_address.get(address, ())
        if self.last_file is not None and file > self.last_file:
            self._few = len(self._places)
            self._few_until = self._seconds() + _FEW_S
        if self._most_per_address and address and len(mine) >= self._most_per_address:
            found = self._of_its_own(mine)
            refused = Refusal.ADDRESS
        elif len(self._places) >= self._most:
            found = self._of_all()
            refused = Refusal.CONNECTIONS
        elif len(self._places) >= self._few and self._seconds() < self._few_until:
            found = self._of_all()
            refused = Refusal.FILES
        else:
            self._place(connection, address)
            return _WELCOME
        if found is None:
            return Entry(refused)
        place, reason = found
        self.leave(place.connection)
        self._place(connection, address)
        return Entry(None, place.connection, reason)

    def leave(self, connection: Connection) -> None:
        """It is gone, or as good as gone."""
        place = self._places.pop(connection, None)
        if place is None:
            return
        self._stand(place, None)
        if place.address in self._of_address:
            others = self._of_address[place.address]
            others.discard(place)
            if not others:
                del self._of_address[place.address]

    def become(self, old: Connection, new: Connection) -> None:
        """It has turned out which protocol a connection speaks."""
        place = self._places.pop(old, None)
        if place is not None:
            place.connection = new
            self._places[new] = place

    # What happens on a connection.

    def begun(self, connection: Connection, *, whole: bool = False) -> int:
        """
        The head of a request is here.

        :param whole: whether its body is, too; :meth:`whole` is not called then.
        :returns: how many there were on this connection, this one included.
        """
        place = self._places.get(connection)
        if place is None:
            return 0
        place.requests += 1
        if whole:
            place.answering += 1
        else:
            place.arriving += 1
        self._settle(place)
        return place.requests

    def whole(self, connection: Connection) -> None:
        """The body of a request is here, too."""
        place = self._places.get(connection)
        if place is not None:
            place.arriving -= 1
            place.answering += 1
            self._settle(place)

    def over(self, connection: Connection, *, whole: bool = True) -> None:
        """
        A request was answered or has been given up.

        :param whole: whether its body was.
        """
        place = self._places.get(connection)
        if place is None:
            return
        if whole:
            place.answering -= 1
        else:
            place.arriving -= 1
        self._settle(place)

    # How it is done.

    def counted(self, address: str) -> str:
        """What an address is counted under; empty if it is not."""
        return "" if self._exempt(address) else client_network(address)

    def _place(self, connection: Connection, address: str) -> None:
        place = _Place(connection, address, self._seconds())
        self._places[connection] = place
        self._stand(place, self._headers)
        if address and self._most_per_address:
            self._of_address.setdefault(address, set()).add(place)

    def _settle(self, place: _Place) -> None:
        queue: _Queue | _Crowd | None = None
        if not place.answering:
            queue = self._bodies if place.arriving else self._idle
        if queue is not place.queue:
            self._stand(place, queue)

    def _stand(self, place: _Place, queue: _Queue | _Crowd | None) -> None:
        """Go to the end of another queue."""
        if place.queue is not None:
            place.queue.discard(place)
        place.queue = queue
        if queue is not None:
            place.since = self._seconds()
            queue.add(place)

    def _of_all(self) -> tuple[_Place, Refusal] | None:
        """See Note [Who goes when there is no room]."""
        place = self._headers.first()
        if place is not None and (
            self._seconds() - place.since > _PATIENCE_S or len(self._headers) > len(self._idle)
        ):
            return place, Refusal.SLOW_HEADER
        while (place := self._idle.first()) is not None:
            if place.connection.idle:
                return place, Refusal.IDLE
            self._stand(place, self._headers)
        for crowd, reason in (
            (self._headers, Refusal.SLOW_HEADER),
            (self._bodies, Refusal.SLOW_BODY),
        ):
            place = crowd.first()
            if place is not None:
                return place, reason
        return None

    def _of_its_own(self, places: set[_Place] | tuple[()]) -> tuple[_Place, Refusal] | None:
        """The same among those of one address, which are not many."""
        now = self._seconds()
        best: tuple[int, float] | None = None
        found: tuple[_Place, Refusal] | None = None
        for place in places:
            if place.queue is None:
                continue
            if place.queue is self._bodies:
                rank, reason = 3, Refusal.SLOW_BODY
            elif place.queue is self._idle and place.connection.idle:
                rank, reason = 1, Refusal.IDLE
            else:
                rank = 0 if now - place.since > _PATIENCE_S else 2
                reason = Refusal.SLOW_HEADER
            if best is None or (rank, place.since) < best:
                best = rank, place.since
                found = place, reason
        return found


_WELCOME = Entry()


# File descriptors.


def raise_file_limit() -> int:
    """
    Let this process have as many file descriptors as it may take for itself.

    :returns: how many it may have now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return _MOST_FILES if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # macOS has a lower limit of its own
        return soft
    return most


def spare_files(limit: int) -> int:
    """
    How many descriptors are kept for all else: connections to Bedrock, files, and those
    of a hundred connections that are accepted before the ones closed for them are gone.
    """
    return max(min(limit // 2, 150), min(limit // 10, 1000))
