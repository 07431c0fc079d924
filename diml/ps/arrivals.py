"""What has come to a process and was not handled yet: from lent memory, and messages after that.

Owns the order of what is handed over, single updates included, and of messages that have come
meanwhile. Pure, but for the memory. Must not know how messages travel, nor what they say.
Invariant: whoever asks for the next one has handled those before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from diml.ps.message import Bytes
from diml.ps.neighbours import Neighbours

# To be called with the rank of a server, its tape, and how far it is to be followed.
Follow = Callable[[int, Bytes, int], None]


class Arrivals:
    """What is there on one link, by rank of its sender."""

    def __init__(self, neighbours: Neighbours, follow: Follow) -> None:
        self._neighbours, self._follow = neighbours, follow
        # A number is how far somebody's tape is to be followed before what comes next.
        self._items: deque[tuple[int, Bytes | int]] = deque()

    def add(self, rank: int, data: Bytes) -> None:
        """Put a message after all that has come."""
        self._items.append((rank, data))

    def look(self) -> bool:
        """See what was handed over, and follow tapes; whether any message is there for `next`."""
        if self._neighbours.borrowing:
            self._items += self._neighbours.take()
            while self._items and isinstance(upto := self._items[0][1], int):
                rank, _ = self._items.popleft()
                self._follow(rank, self._neighbours.tape_of(rank), upto)
        return bool(self._items)

    def next(self) -> tuple[int, Bytes] | None:
        """The first message, as of the last `look`."""
        if not self._items:
            return None
        rank, data = self._items.popleft()
        assert not isinstance(data, int), "a tape that was not followed"
        return rank, data
