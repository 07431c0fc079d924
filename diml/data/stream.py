"""Entries read from a block file piece by piece, into one buffer that each piece uses again.

Owns that buffer, and what is asked of the system ahead. Must not know what the entries are for.

What the page cache has is copied by the thread that works on it: a second thread would take the
core away from a computation, and bring the entries into the cache of another one. From the first
piece on that the page cache does not have, the system is asked to read the next ones meanwhile.

Invariants: pieces and their order depend on the file and the part only; ids count from the part's
first row and column and are below its size. Cells are checked against their checksums where
`check` asks for it, and as long as they come from the disk, or Misuse names the cell before the
piece that completes it is given out. What is still in the page cache was checked when it came
there, so that a later pass looks at the ids alone: nothing else could lead it out of the model.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diml.data.blockfile import ENTRIES, BlockFile, damaged_cell, read_cached, read_into
from diml.data.grid import count_ids, rebase, take
from diml.errors import Misuse

# Long enough that a call costs little beside the work, short enough to stay in the cache.
PIECE = 1 << 16
# Pieces that are asked for ahead, some milliseconds of work: they wait in the page cache.
_AHEAD = 8
# The system cuts a longer request down.
_ASKED_BYTES = 1 << 17
_ENTRY_BYTES = 12
BUFFER_BYTES = PIECE * _ENTRY_BYTES

Words = npt.NDArray[np.uint32]
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
        self._buffer = np.empty((len(ENTRIES), PIECE), np.uint32)

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
                low = file.offsets[name] + 4 * first
                for at in range(low, low + 4 * length, _ASKED_BYTES):
                    size = min(_ASKED_BYTES, low + 4 * length - at)
                    with contextlib.suppress(OSError):
                        os.posix_fadvise(file.descriptor, at, size, os.POSIX_FADV_WILLNEED)


class _Reading:
    """One pass over a part, and the cell that it stands in.

    `cold` is whether the page cache has not had all that was read.
    """

    def __init__(self, file: BlockFile, part: Part, check: bool) -> None:
        self._file, self._checks = file, check
        rows, cols = file.row_ends, file.col_ends
        low_row, low_col = int(rows[part.rows[0]]), int(cols[part.cols[0]])
        self._window = (
            low_row,
            int(rows[part.rows[1]]) - low_row,
            low_col,
            int(cols[part.cols[1]]) - low_col,
        )
        self.cold = False
        # The entry that comes next in the cell, and the sum of those before it.
        self._next, self._cell, self._total = -1, -1, np.uint64(0)

    def fill(self, buffer: Words, runs: list[_Run]) -> Piece:
        """Read runs into the buffer, one behind the other, and check them."""
        filled = 0
        for run in runs:
            arrays = [array[filled : filled + run.length] for array in buffer]
            for name, array in zip(ENTRIES, arrays, strict=True):
                self._read(name, array, run.first)
            self._settle(run.first, *arrays)
            filled += run.length
        rows, cols, values = (array[:filled] for array in buffer)
        return rows.view(np.int32), cols.view(np.int32), values.view(np.float32)

    def _read(self, name: str, array: Words, first: int) -> None:
        file = self._file
        offset = file.offsets[name] + first * array.itemsize
        if not self.cold and read_cached(file.descriptor, array, offset):
            return
        self.cold = True
        try:
            read_into(file.descriptor, array, offset)
        except OSError as error:
            raise Misuse(f"{file.path}: cannot read it: {error.strerror or error}") from None

    def _settle(self, first: int, rows: Words, cols: Words, values: Words) -> None:
        """Check entries from number `first` on, and have their ids count from the part's."""
        headless = len(rows)
        if self._checks or self.cold:
            headless = min(headless, self._headless(first))
        self._rebase(first, rows[:headless], cols[:headless])
        if headless < len(rows):
            self._take(first + headless, rows[headless:], cols[headless:], values[headless:])

    def _headless(self, first: int) -> int:
        """How many entries from here on are of a cell whose beginning was not seen."""
        if first == self._next:
            return 0
        ends = self._file.cell_ends
        self._cell = int(np.searchsorted(ends, first, side="right")) - 1
        if ends[self._cell] == first:
            self._total = np.uint64(0)
            return 0
        self._cell += 1
        self._total = np.uint64(0)
        return int(ends[self._cell]) - first

    def _rebase(self, first: int, rows: Words, cols: Words) -> None:
        self._next = -1
        row_base, n_rows, col_base, n_cols = self._window
        if not rebase(rows, cols, row_base, n_rows, col_base, n_cols):
            place = first + int(np.argmax((rows >= n_rows) | (cols >= n_cols)))
            self._damaged(int(np.searchsorted(self._file.cell_ends, place, side="right")) - 1)

    def _take(self, first: int, rows: Words, cols: Words, values: Words) -> None:
        file = self._file
        state = first, self._cell, self._total
        checks = file.cell_ends, file.cell_checks
        cell, total, good = take(rows, cols, values, *state, *checks, *self._window)
        if not good:
            self._damaged(int(cell))
        self._next, self._cell, self._total = first + len(rows), int(cell), np.uint64(total)

    def _damaged(self, cell: int) -> None:
        raise damaged_cell(self._file.path, self._file.facts, cell)


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
    ids, values = np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    ends, checks = np.array([0, 1]), np.zeros(1, np.uint64)
    take(ids, ids.copy(), values, 0, 0, np.uint64(0), ends, checks, 0, 1, 0, 1)
    rebase(ids, ids.copy(), 0, 1, 0, 1)
    count_ids(ids.view(np.int32), np.zeros(1, np.int64))
