"""The way of a core's messages over the world's link.

Owns addresses and encoding. Must not know what the messages mean. Invariant: only messages of the
present link arrive; a repair begins with nothing on its way.
"""

from __future__ import annotations

from diml.ps.filters import Filters
from diml.ps.message import Address, Message, Send
from diml.world.link import LEAVE_TAG, Link
from diml.world.membership import Role
from diml.world.world import World

PS_TAG = 1


class WorldPort:
    """The way over `world.full`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.filters = Filters()
        self._link: Link | None = None
        self._ranks: dict[Address, int] = {}
        self._places: list[Address] = []

    def _current(self) -> Link:
        """The link of today; addresses are read anew after a repair."""
        link = self._world.full
        if link is not self._link:
            members = self._world.membership
            groups = [
                (Role.WORKER, len(members.workers)),
                (Role.SERVER, len(members.servers)),
                (Role.SPARE, len(members.spares)),
            ]
            self._ranks = {
                Address(role.value, number): self._world.address(role, number)
                for role, count in groups
                for number in range(count)
            }
            self._places = sorted(self._ranks, key=self._ranks.__getitem__)
            self._link = link
            self.filters.restart()
        return link

    def post(self, sends: list[Send]) -> None:
        """Send; the link keeps the buffers alive. Raises PeerFailed."""
        link = self._current()
        for to, message in sends:
            rank = self._ranks[to]
            link.isend(self.filters.pack(message, rank), rank, PS_TAG)

    def receive(self, timeout_s: float) -> tuple[Address, Message] | None:
        """The next message of the parameter server, or None after so long. Raises PeerFailed."""
        found = self._current().receive(tag=PS_TAG, timeout_s=timeout_s)
        if found is None:
            return None
        return self._places[found.source], self.filters.unpack(found.data, found.source)

    def told_to_leave(self) -> bool:
        """Whether the workers are done. Raises PeerFailed."""
        return self._current().poll(tag=LEAVE_TAG) is not None

    def recover(self) -> bool:
        """Repair the world; the node's hook sends again what has to be. Whether anybody died."""
        before = self._everyone()
        self._world.recover()
        return self._everyone() != before

    def _everyone(self) -> tuple[int, ...]:
        members = self._world.membership
        return (*(seat.uid for seat in (*members.workers, *members.servers)), *members.spares)
