"""Processes of one host in the parameter server's simulation: commits through memory both see.

Owns what `diml.ps.world_port` does with that memory, and its life: what a process was given stays
with it when the giver dies, until a repair makes an end of it. The memory is the one that runs,
but small, so that its blocks are used again soon, and a tape is soon full.
"""

from __future__ import annotations

from collections.abc import Callable

from diml.ps.handover import Given, Taken
from diml.ps.message import Bytes, Flag, Kind, Message, decode, encode, flagged
from diml.world.lending import Borrowed, Lender

_MEMORY_BYTES, _TAPE_BYTES = (12 + 16) << 12, 1 << 10


class Shared:
    """The memory of all processes, which are named by their uids."""

    def __init__(self) -> None:
        self._lenders: dict[int, Lender] = {}
        self._given: dict[tuple[int, int], Given] = {}
        self._taken: dict[tuple[int, int], Taken] = {}
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
        pair = sender, to
        if pair not in self._given:
            lender = self._lender(sender)
            number = sum(giver == sender for giver, _ in self._given)
            self._given[pair] = Given(lender, number, _TAPE_BYTES)
            self._taken[pair] = Taken(Borrowed(lender.memory, number))
        held = [*parts[:-1], flagged(part, Flag.HELD)]
        handed = self._given[pair].hand_over([encode(message) for message in held])
        return [] if handed else parts

    def tape(self, sender: int, to: int) -> Bytes | None:
        """Where a process may write single updates for another one."""
        given = self._given.get((sender, to))
        return None if given is None else given.tape

    def take(
        self, to: int, sender: int, use: Callable[[Message], object],
        follow: Callable[[int, Bytes, int], None],
    ) -> None:  # fmt: skip
        """Have a process look at what another one has given it; `follow` as `NodeCore.follow`, the
        first number being the giver's."""
        taken = self._taken.get((sender, to))
        for item in () if taken is None else taken.take():
            if isinstance(item, int):
                assert taken is not None and taken.tape is not None
                follow(sender, taken.tape, item)
            else:
                use(decode(item))

    def waiting(self) -> list[tuple[int, int]]:
        """Who has given whom what has not been looked at."""
        return [pair for pair, taken in self._taken.items() if taken.waiting]

    def end(self) -> None:
        """After a repair nothing of it is used any more."""
        self._lenders, self._given, self._taken, self._parts = {}, {}, {}, []
