"""Entries read from a block file piece by piece, into one buffer that each piece uses again.

Owns that buffer, and what is asked of the system ahead. Must not know what the entries are for.

What the page cache has is copied by the thread that works on it: a second thread would take the
core away from a computation, and bring the entries into the cache of another one. From the first
piece on that the page cache does not have, the system is asked to read the next ones meanwhile.

Invariants: pieces and their order depend on the file and the part only; ids count from the part's
first row and column and are of the groups of their cell. Cells are checked against their checksums
where `check` asks for it, and as long as they come from the disk, or Misuse names the cell before
the piece that completes it is given out. What is still in the page cache was checked when it came
there, so a later pass looks at the ids alone: nothing else could lead it out of the model.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diml.data.blockfile import (
    ENTRIES,
    PLACE_BYTES,
    BlockFile,
    damaged_cell,
    read_cached,
    read_into,
)
from diml.data.grid import count_ids, take
from diml.errors import Misuse

# Long enough that a call costs little beside the work, short enough to stay in the cache.
PIECE = 1 << 16
# Pieces that are asked for ahead, some milliseconds of work: they wait in the page cache.
_AHEAD = 8
# The system cuts a longer request down.
_ASKED_BYTES = 1 << 17
# Rows, columns and values, and the places that the first two are made of.
BUFFER_BYTES = PIECE * (3 * 4 + PLACE_BYTES[-1])

Piece = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Part:
    """Neighbouring groups of a file: row groups rows[0] .. rows[1] - 1, columns likewise."""

    rows: tuple[int, int]
    cols: tuple[int, int]


class _Run(NamedTuple):
    """Entries first .. first + length - 1 of the file."""

    first: int
    length: int


class Stream:
    """The reader of one process. One part is read at a time."""

    def __init__(self, file: BlockFile) -> None:
        self._file = file
        self._buffer = _Buffer(file.facts.dtype("places"))

    def pieces(self, part: Part, *, check: bool, skip: int = 0) -> Iterator[Piece]:
        """The entries of a part: rows and cols int32, values float32, each (n,).

        The arrays are valid until the next piece is asked for. Raises Misuse for damage.

        Args:
            check: compare all cells that are read whole with their checksums; else only those that
                come from the disk.
            skip: leave out so many pieces at the beginning.
        """
        reading = _Reading(self._file, part, check)
        plan = islice(_packed(_runs(self._file, part)), skip, None)
        coming = deque(islice(plan, _AHEAD))
        asked = 0
        while coming:
            runs = coming.popleft()
            asked = max(asked - 1, 0)
            coming.extend(islice(plan, 1))
            piece = reading.fill(self._buffer, runs)
            if reading.cold:
                for ahead in islice(coming, asked, None):
                    self._ask(ahead)
                asked = len(coming)
            yield piece

    def _ask(self, runs: Iterable[_Run]) -> None:
        """Have the system read these entries into the page cache, without waiting."""
        file = self._file
        for first, length in runs:
            for name in ENTRIES:
                width = file.facts.dtype(name).itemsize
                low = file.offsets[name] + width * first
                for at in range(low, low + width * length, _ASKED_BYTES):
                    size = min(_ASKED_BYTES, low + width * length - at)
                    with contextlib.suppress(OSError):
                        os.posix_fadvise(file.descriptor, at, size, os.POSIX_FADV_WILLNEED)


class _Buffer:
    """Room for one piece, as it is in the file and as it is given out."""

    def __init__(self, place: np.dtype[Any]) -> None:
        self.places = np.empty(PIECE, place)
        self.rows, self.cols = np.empty(PIECE, np.int32), np.empty(PIECE, np.int32)
        self.values = np.empty(PIECE, np.float32)


class _Reading:
    """One pass over a part, and the cell that it stands in.

    `cold` is whether the page cache has not had all that was read.
    """

    def __init__(self, file: BlockFile, part: Part, check: bool) -> None:
        self._file, self._checks = file, check
        row_base, col_base = file.row_ends[part.rows[0]], file.col_ends[part.cols[0]]
        self._bases = int(row_base), int(col_base)
        self.cold = False
        # The entry that comes next, its cell, the sum of the cell's entries before it, and whether
        # all of them were added up.
        self._next, self._cell, self._total, self._whole = -1, -1, np.uint64(0), False

    def fill(self, buffer: _Buffer, runs: list[_Run]) -> Piece:
        """Read runs into the buffer, one behind the other, and check them."""
        filled = 0
        for first, length in runs:
            part = slice(filled, filled + length)
            self._read("places", buffer.places[part], first)
            self._read("values", buffer.values[part], first)
            self._settle(first, buffer, part)
            filled += length
        return buffer.rows[:filled], buffer.cols[:filled], buffer.values[:filled]

    def _read(self, name: str, array: npt.NDArray[Any], first: int) -> None:
        file = self._file
        offset = file.offsets[name] + first * array.itemsize
        if not self.cold and read_cached(file.descriptor, array, offset):
            return
        self.cold = True
        try:
            read_into(file.descriptor, array, offset)
        except OSError as error:
            raise Misuse(f"{file.path}: cannot read it: {error.strerror or error}") from None

    def _settle(self, first: int, buffer: _Buffer, part: slice) -> None:
        """Make rows and columns of the entries from number `first` on, and check them."""
        if first != self._next:
            self._cell = int(np.searchsorted(self._file.cell_ends, first, side="right")) - 1
            self._total, self._whole = np.uint64(0), self._file.cell_ends[self._cell] == first
        check = self._checks or self.cold
        if check and not self._whole:
            # The beginning of this cell was not added up: its end is the first that can be.
            split = part.start + int(self._file.cell_ends[self._cell + 1]) - first
            if split >= part.stop:
                self._take(first, buffer, part, False)
                return
            self._take(first, buffer, slice(part.start, split), False)
            first, part = self._next, slice(split, part.stop)
        self._take(first, buffer, part, check)

    def _take(self, first: int, buffer: _Buffer, part: slice, check: bool) -> None:
        file = self._file
        cell, total, good = take(
            buffer.places[part],
            buffer.values[part].view(np.uint32),
            first,
            self._cell,
            self._total,
            check,
            file.cell_ends,
            file.cell_checks,
            file.row_ends,
            file.col_ends,
            *self._bases,
            file.facts.col_bits,
            buffer.rows[part],
            buffer.cols[part],
        )
        if not good:
            raise damaged_cell(file.path, file.facts, int(cell))
        self._next = first + part.stop - part.start
        self._cell, self._total = int(cell), np.uint64(total)
        # Whether all of the cell that goes on was added up so far.
        self._whole = bool(check or file.cell_ends[self._cell] == self._next)


def _runs(file: BlockFile, part: Part) -> Iterator[_Run]:
    """The neighbouring cells of a part, as long as they come without a gap in the file."""
    groups, ends = file.facts.row_groups, file.cell_ends
    low, high = part.rows
    whole = (low, high) == (0, groups)
    step = part.cols[1] - part.cols[0] if whole else 1
    for col in range(part.cols[0], part.cols[1], max(step, 1)):
        first, end = int(ends[col * groups + low]), int(ends[(col + step - 1) * groups + high])
        if end > first:
            yield _Run(first, end - first)


def _packed(runs: Iterator[_Run]) -> Iterator[list[_Run]]:
    """Cut and gather runs into pieces."""
    piece: list[_Run] = []
    room = PIECE
    for first, left in runs:
        while left:
            count = min(left, room)
            piece.append(_Run(first, count))
            first, left, room = first + count, left - count, room - count
            if not room:
                yield piece
                piece, room = [], PIECE
    if piece:
        yield piece


def warm_up() -> None:
    """Compile what the reading runs, or load it from the cache."""
    ids, ends, checks = np.zeros(1, np.int32), np.array([0, 1]), np.zeros(1, np.uint64)
    bits, zero = np.zeros(1, np.uint32), np.uint64(0)
    for width in PLACE_BYTES:
        places = np.zeros(1, f"<u{width}")
        take(places, bits, 0, 0, zero, True, ends, checks, ends, ends, 0, 0, 0, ids, ids.copy())
    count_ids(ids, np.zeros(1, np.int64))
