"""Processes of one host in the parameter server's simulation: commits through memory both see.

Owns what `diml.ps.world_port` does with that memory, and its life: what a process was given stays
with it when the giver dies, until a repair makes an end of it. The memory is the one that runs,
but small, so that its blocks are used again soon.
"""

from __future__ import annotations

from collections.abc import Callable

from diml.ps.message import Flag, Kind, Message, decode, encode, flagged
from diml.world.lending import Borrowed, Lender

_MEMORY_BYTES = (12 + 16) << 12


class Shared:
    """The memory of all processes, which are named by their uids."""

    def __init__(self) -> None:
        self._lenders: dict[int, Lender] = {}
        self._borrowed: dict[tuple[int, int], Borrowed] = {}
        self._parts: list[Message] = []

    def received(self, uid: int, message: Message) -> Message:
        """A worker's message, where its server has it: in memory that may be handed over."""
        data = encode(message)
        room = self._lender(uid).room(len(data))
        if room is None:
            return message
        room[:] = data
        return decode(room)

    def _lender(self, uid: int) -> Lender:
        return self._lenders.setdefault(uid, Lender(bytearray(_MEMORY_BYTES)))

    def replicate(self, sender: int, to: int, part: Message) -> list[Message] | None:
        """Gather a commit. None before its end; then what is to be sent: nothing if it was handed
        over."""
        self._parts.append(part)
        if part.kind is not Kind.COMMIT:
            return None
        parts, self._parts = self._parts, []
        lender = self._lender(sender)
        pair = sender, to
        if pair not in self._borrowed:
            number = sum(giver == sender for giver, _ in self._borrowed)
            self._borrowed[pair] = Borrowed(lender.memory, number)
        held = [*parts[:-1], flagged(part, Flag.HELD)]
        number = [other for giver, other in self._borrowed if giver == sender].index(to)
        handed = lender.hand_over([encode(message) for message in held], number)
        return [] if handed else parts

    def take(self, to: int, sender: int, use: Callable[[Message], object]) -> None:
        """Have a process look at what another one has given it."""
        borrowed = self._borrowed.get((sender, to))
        if borrowed is not None and borrowed.waiting:
            for data in borrowed.take():
                use(decode(data))

    def waiting(self) -> list[tuple[int, int]]:
        """Who has given whom what has not been looked at."""
        return [pair for pair, borrowed in self._borrowed.items() if borrowed.waiting]

    def end(self) -> None:
        """After a repair nothing of it is used any more."""
        self._lenders, self._borrowed, self._parts = {}, {}, []
