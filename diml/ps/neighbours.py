"""Commits between processes of one host, through memory that both see.

Owns the memory that this process lends, what it has borrowed of others, and the notes by which they
come to that. Must not know how notes travel, nor what a commit says. Invariants: only a process
that has said that it sees the memory is given anything there; what it was given it holds from that
moment on, whatever becomes of the sender (`diml.world.lending`), so nobody has to wait until it has
looked.

A server takes what workers send into this memory, so what it passes on to its replica is there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np

from diml.ps.handover import KIND_AT, Given, Taken
from diml.ps.message import HEADER_BYTES, Bytes
from diml.world.lending import BORROWERS_MAX, Lender, Offer, borrow, lend

# Messages of fewer bytes are copied when they are passed on.
_LEAST_BYTES = 256 << 10
_OFFER, _ACCEPTED = 129, 130
# pid, descriptor, token, number among the borrowers
_OFFERED = struct.Struct("<qq16sq")


def is_note(data: Bytes) -> bool:
    """Whether this is a note between neighbours and not a message."""
    return len(data) == HEADER_BYTES and data.item(KIND_AT) in (_OFFER, _ACCEPTED)


class Neighbours:
    """What this process lends and borrows on one link. Others are named by their ranks there."""

    def __init__(self) -> None:
        self._lender: Lender | None = None
        self._offer: Offer | None = None
        # To whom the memory was offered, by number among the borrowers; and who sees it.
        self._offered: dict[int, int] = {}
        self._seeing: dict[int, Given] = {}
        self._borrowed: dict[int, Taken] = {}

    def offer(self, to: int) -> Bytes | None:
        """The note that offers this process's memory; None if it has been offered, or there are
        as many borrowers as there may be, or there is no such memory."""
        if to in self._offered or len(self._offered) == BORROWERS_MAX:
            return None
        number = self._offered[to] = len(self._offered)
        if number == 0 and (lent := lend()) is not None:
            self._lender, self._offer = lent
        if self._offer is None:
            return None
        note = _note(_OFFER)
        _OFFERED.pack_into(note.data, 0, *self._offer, number)
        return note

    def heard(self, note: Bytes, sender: int) -> Bytes | None:
        """Take a note; returns the one to answer with, if any."""
        if note.item(KIND_AT) == _ACCEPTED:
            assert self._lender is not None
            self._seeing[sender] = Given(self._lender, self._offered[sender])
            return None
        pid, descriptor, token, number = _OFFERED.unpack_from(note.data)
        borrowed = borrow(Offer(pid, descriptor, token), number)
        if borrowed is None:
            return None
        self._borrowed[sender] = Taken(borrowed)
        return _note(_ACCEPTED)

    # Who lends -------------------------------------------------------------------------------

    def sees(self, other: int) -> bool:
        """Whether a process sees this one's memory."""
        return other in self._seeing

    def room(self, length: int) -> Bytes:
        """Memory for a message that comes: if it may be passed on, of the kind that is lent."""
        room = None
        if self._seeing and length >= _LEAST_BYTES:
            assert self._lender is not None
            room = self._lender.room(length)
        return np.empty(length, np.uint8) if room is None else room

    def hand_over(self, parts: Sequence[Bytes], to: int) -> bool:
        """Give a commit to a process that sees the memory; whether it holds it now."""
        return self._seeing[to].hand_over(parts)

    def tape_to(self, other: int) -> Bytes | None:
        """Where single updates may be written for a process (`diml.ps.tape`), if it sees any."""
        return self._seeing[other].tape if other in self._seeing else None

    # Who borrows -----------------------------------------------------------------------------

    @property
    def borrowing(self) -> bool:
        """Whether others give this process what they have for it in their memory."""
        return bool(self._borrowed)

    def take(self) -> Iterator[tuple[int, Bytes | int]]:
        """By sender, what this process was given since the last time (see `Taken.take`)."""
        for sender, taken in self._borrowed.items():
            for item in taken.take():
                yield sender, item

    def tape_of(self, other: int) -> Bytes:
        """The tape of a process that has written on it."""
        tape = self._borrowed[other].tape
        assert tape is not None, f"rank {other} has no tape"
        return tape


def _note(kind: int) -> Bytes:
    note = np.zeros(HEADER_BYTES, np.uint8)
    note[KIND_AT] = kind
    return note
