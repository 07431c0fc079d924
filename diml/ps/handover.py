"""What a server hands over to a replica that sees its memory: commits, and single updates.

Owns the order of the two. Must not know how the memory is shared (`diml.world.lending`), nor what
is done with what was handed over. Pure. Invariant: it is taken in the order in which it was given.

A commit is a list of messages (`Lender.hand_over`); single updates go on a tape (`diml.ps.tape`),
from compiled code. Before a commit stands how far the tape was written then.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np

from diml.ps import tape as tapes
from diml.ps.message import HEADER_BYTES, Bytes
from diml.world.lending import Borrowed, Lender

# Where the header of a message has the filters that were applied, of which none is this large.
KIND_AT = 58
_TAPE, _MARK = 131, 132
_POSITION = struct.Struct("<q")


class Given:
    """What one borrower is given.

    Attributes:
        tape: where single updates may be written for him; None where there is no memory for it.
    """

    def __init__(self, lender: Lender, borrower: int, tape_bytes: int = tapes.TAPE_BYTES) -> None:
        self._lender, self._borrower = lender, borrower
        # How far the tape was written at the last commit.
        self._told = 0
        self.tape: Bytes | None = None
        tape = lender.room(tape_bytes)
        if tape is not None:
            tapes.clear(tape)
            tape[KIND_AT] = _TAPE
            self.tape = tape if lender.hand_over([tape], borrower) else None

    def hand_over(self, parts: Sequence[Bytes]) -> bool:
        """Give him a commit; False, and nothing is given, if there is no room for it."""
        mark = []
        written = self._told if self.tape is None else tapes.written(self.tape)
        if written != self._told:
            mark.append(np.zeros(HEADER_BYTES, np.uint8))
            _POSITION.pack_into(mark[0].data, 0, written)
            mark[0][KIND_AT] = _MARK
        if not self._lender.hand_over([*mark, *parts], self._borrower):
            return False
        self._told = written
        return True


class Taken:
    """What this process was given by another one.

    Attributes:
        tape: where the single updates are; None before it has come.
    """

    def __init__(self, borrowed: Borrowed) -> None:
        self._borrowed = borrowed
        self._marked = 0
        self.tape: Bytes | None = None

    @property
    def waiting(self) -> bool:
        """Whether there is anything that `take` has not said."""
        tape = self.tape
        return self._borrowed.waiting or (tape is not None and tapes.written(tape) != self._marked)

    def take(self) -> Iterator[Bytes | int]:
        """What was given since the last time: messages, and how far the tape goes before them."""
        while self.waiting:
            # Before the list is looked at: what is on the tape up to here is older than what the
            # list does not have yet.
            written = 0 if self.tape is None else tapes.written(self.tape)
            for array in self._borrowed.take():
                kind = array.item(KIND_AT)
                if kind == _TAPE:
                    self.tape = array
                elif kind == _MARK:
                    (self._marked,) = _POSITION.unpack_from(array.data)
                    yield self._marked
                else:
                    yield array
            if written > self._marked:
                self._marked = written
                yield written
