"""How a core's messages travel: over the world's link, or within a single process.

Owns addresses and encoding. Must not know what the messages mean. Invariant: between two
processes messages arrive in the order in which they were sent, and only those of the present
link; a repair begins with nothing on its way.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from diml.errors import PeerFailed
from diml.ps.message import Address, Message, Send, decode, encode
from diml.ps.node_core import NodeCore
from diml.world.link import LEAVE_TAG, Link
from diml.world.membership import Role
from diml.world.world import World

PS_TAG = 1


class Port(Protocol):
    """What a worker's client needs of the way to its servers."""

    def post(self, sends: list[Send]) -> None:
        """Send; does not wait. Raises PeerFailed."""

    def receive(self, timeout_s: float) -> tuple[Address, Message] | None:
        """The next message, or None after so long. Raises PeerFailed."""

    def recover(self) -> None:
        """After PeerFailed: come back to a whole world, everything needed sent again."""


class WorldPort:
    """The way over `world.full`."""

    def __init__(self, world: World) -> None:
        self._world = world
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
        return link

    def post(self, sends: list[Send]) -> None:
        """Send; the link keeps the buffers alive. Raises PeerFailed."""
        link = self._current()
        for to, message in sends:
            link.isend(encode(message), self._ranks[to], PS_TAG)

    def receive(self, timeout_s: float) -> tuple[Address, Message] | None:
        """The next message of the parameter server, or None after so long. Raises PeerFailed."""
        found = self._current().receive(tag=PS_TAG, timeout_s=timeout_s)
        return None if found is None else (self._places[found.source], decode(found.data))

    def told_to_leave(self) -> bool:
        """Whether the workers are done. Raises PeerFailed."""
        return self._current().poll(tag=LEAVE_TAG) is not None

    def recover(self) -> None:
        """Repair the world; the node's hook sends again what has to be."""
        self._world.recover()


class LocalPort:
    """A single process: its messages go straight to a node of its own."""

    def __init__(self) -> None:
        self._place = Address("worker", 0)
        self._node = NodeCore(Address("server", 0), 1, 1, 0, 0)
        self._arrived: deque[Message] = deque()

    def post(self, sends: list[Send]) -> None:
        """Have them handled at once."""
        for _, message in sends:
            self._arrived += [send.message for send in self._node.handle(self._place, message)]

    def receive(self, timeout_s: float) -> tuple[Address, Message] | None:
        """The next answer. There is nobody to wait for."""
        return (Address("server", 0), self._arrived.popleft()) if self._arrived else None

    def recover(self) -> None:
        """Nobody else can die here."""
        raise PeerFailed("a process without peers has none that fail")
