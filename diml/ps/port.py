"""The way of a core's messages: what a worker needs of it, and the one within a single process.

Must not know what the messages mean. Invariant: between two processes messages arrive in the
order in which they were sent.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

from diml.errors import PeerFailed
from diml.ps.message import Address, Bytes, Ids, Message, Send, whole
from diml.ps.node_core import NodeCore
from diml.ps.quick import Quick
from diml.ps.saving import Storage
from diml.ps.sent import Framed
from diml.ps.shard import Shard

_NAP_S = 0.01


# What an exchange has come to where it is not the answer.
UNANSWERED, UNASKED = -1, -2


class Wire(Protocol):
    """The way of bytes (see `diml.ps.quick`)."""

    def exchange(
        self, quick: Quick, ids: Ids, room: Bytes, clock: int, n: int, request: int
    ) -> tuple[int, int, int]:
        """Ask for rows, and wait for the answer a short time. What it says of its clocks (see
        `read_answer`), itself in `room`; or UNANSWERED: whatever has come or comes will be
        received; or UNASKED: the question was not sent. Raises PeerFailed."""

    def send_framed(self, to: Address, framed: Framed) -> None:
        """Send an update. Raises PeerFailed."""


class Port(Protocol):
    """What a worker's client needs of the way to its servers."""

    @property
    def wire(self) -> Wire | None:
        """The way of messages that are bytes already, where there is one."""

    def post(self, sends: list[Send]) -> None:
        """Send; does not wait. Raises PeerFailed."""

    def receive(self, timeout_s: float) -> tuple[Address, Message] | None:
        """The next message, or None after so long. Raises PeerFailed."""

    def recover(self) -> bool:
        """After PeerFailed: come back to a whole world, everything needed sent again. Whether
        anybody had died."""


class LocalPort:
    """A single process: its messages go straight to a node of its own."""

    wire = None

    def __init__(
        self, storage: Storage | None = None, restored: dict[int, Shard] | None = None
    ) -> None:
        """`restored`: the shard to go on with."""
        self._place = Address("worker", 0)
        self._node = NodeCore(Address("server", 0), 1, 1, 0, 0, storage=storage)
        self._node.adopt(restored or {})
        self._arrived: deque[Message] = deque()

    def post(self, sends: list[Send]) -> None:
        """Have them handled at once."""
        for _, message in sends:
            answers = self._node.handle(self._place, message)
            self._arrived += [whole(send.message) for send in answers]
        self._arrived += [send.message for send in self._node.flush()]

    def receive(self, timeout_s: float) -> tuple[Address, Message] | None:
        """The next answer. There is nobody to wait for, so None comes at once."""
        if not self._arrived:
            if timeout_s > 0:
                time.sleep(min(timeout_s, _NAP_S))
            return None
        return Address("server", 0), self._arrived.popleft()

    def recover(self) -> bool:
        """Nobody else can die here."""
        raise PeerFailed("a process without peers has none that fail")


class Collectives(Protocol):
    """The collectives beside the parameter server (`diml.allreduce.engine`)."""

    def begin_clock(self, clock: int, continues: bool) -> None:
        """The program goes on at this clock: a dead one's (`continues`), or a recorded one."""

    def end_clock(self, clock: int) -> None:
        """It has come to this clock."""

    def hear_of_state(self) -> None:
        """A server or spare is told that workers have state that no server has."""
