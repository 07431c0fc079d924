"""Entries read from a block file piece by piece, the next pieces while the last one is worked on.

Owns the thread that reads ahead and the few buffers that it fills: they are all the memory that
entries take. Must not know what the entries are for. The thread reads and checks without the
interpreter lock (HDF5 would hold it), so it runs beside a computation that releases it too.

Invariants: pieces and their order depend on the file and the part only; ids count from the part's
first row and column and are below its size, and each cell's checksum is right, or Misuse names it
before the piece that completes the cell is given out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diml.data.blockfile import ENTRIES, BlockFile, damaged_cell, read_into
from diml.data.grid import count_ids, take
from diml.errors import Misuse

# Long enough that a call costs nothing beside the work, short enough to stay in the cache.
PIECE = 1 << 17
_AHEAD = 2
_ENTRY_BYTES = 12
BUFFER_BYTES = (_AHEAD + 1) * PIECE * _ENTRY_BYTES

Piece = tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Part:
    """Neighbouring groups of a file: row groups rows[0] .. rows[1] - 1, columns likewise."""

    rows: tuple[int, int]
    cols: tuple[int, int]


class _Run(NamedTuple):
    """Entries first .. first + length - 1 of the file; the first one is in the cell `cell`."""

    first: int
    length: int
    cell: int


class Stream:
    """The reader of one process. One part is read at a time."""

    def __init__(self, file: BlockFile) -> None:
        self._file = file
        self._slots = [np.empty((len(ENTRIES), PIECE), np.uint32) for _ in range(_AHEAD + 1)]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="entries")

    def count(self, part: Part) -> int:
        """Number of entries of a part."""
        return sum(run.length for run in _runs(self._file, part))

    def pieces(self, part: Part) -> Iterator[Piece]:
        """The entries of a part: rows and cols int32, values float32, each (n,).

        The arrays are valid until the next piece is asked for. Raises Misuse for damage.
        """
        reading = _Reading(self._file, part)
        plan = iter(_packed(_runs(self._file, part)))
        due: deque[Future[Piece]] = deque()
        turn = 0
        try:
            while True:
                while len(due) < _AHEAD and (runs := next(plan, None)) is not None:
                    slot = self._slots[turn % len(self._slots)]
                    due.append(self._thread.submit(reading.fill, slot, runs))
                    turn += 1
                if not due:
                    return
                yield due.popleft().result()
        finally:
            # The buffers are free for the next part once nothing is being read into them.
            for future in due:
                if not future.cancel():
                    future.exception()


class _Reading:
    """One pass over a part: what the thread does, and the cell that it stands in."""

    def __init__(self, file: BlockFile, part: Part) -> None:
        self._file = file
        rows, cols = file.row_ends, file.col_ends
        low_row, low_col = int(rows[part.rows[0]]), int(cols[part.cols[0]])
        self._window = (
            low_row,
            int(rows[part.rows[1]]) - low_row,
            low_col,
            int(cols[part.cols[1]]) - low_col,
        )
        self._cell, self._total = -1, np.uint64(0)

    def fill(self, slot: npt.NDArray[np.uint32], runs: list[_Run]) -> Piece:
        """Read runs into a buffer, one behind the other, and check them."""
        filled = 0
        for run in runs:
            rows, cols, values = (array[filled : filled + run.length] for array in slot)
            for name, array in zip(ENTRIES, (rows, cols, values), strict=True):
                self._read(name, array, run.first)
            self._check(run, rows, cols, values)
            filled += run.length
        rows, cols, values = (array[:filled] for array in slot)
        return rows.view(np.int32), cols.view(np.int32), values.view(np.float32)

    def _read(self, name: str, array: npt.NDArray[np.uint32], first: int) -> None:
        file = self._file
        try:
            read_into(file.descriptor, array, file.offsets[name] + first * array.itemsize)
        except OSError as error:
            raise Misuse(f"{file.path}: cannot read it: {error.strerror or error}") from None

    def _check(
        self,
        run: _Run,
        rows: npt.NDArray[np.uint32],
        cols: npt.NDArray[np.uint32],
        values: npt.NDArray[np.uint32],
    ) -> None:
        file = self._file
        if run.cell >= 0:
            self._cell, self._total = run.cell, np.uint64(0)
        cell, total, good = take(
            rows,
            cols,
            values,
            run.first,
            self._cell,
            self._total,
            file.cell_ends,
            file.cell_checks,
            *self._window,
        )
        if not good:
            raise damaged_cell(file.path, file.facts, int(cell))
        self._cell, self._total = int(cell), np.uint64(total)


def _runs(file: BlockFile, part: Part) -> Iterator[_Run]:
    """The neighbouring cells of a part, as long as they come without a gap in the file."""
    groups, ends = file.facts.row_groups, file.cell_ends
    low, high = part.rows
    whole = (low, high) == (0, groups)
    step = part.cols[1] - part.cols[0] if whole else 1
    for col in range(part.cols[0], part.cols[1], max(step, 1)):
        cell = col * groups + low
        first, end = int(ends[cell]), int(ends[(col + step - 1) * groups + high])
        if end > first:
            yield _Run(first, end - first, cell)


def _packed(runs: Iterator[_Run]) -> Iterator[list[_Run]]:
    """Cut and gather runs into pieces; a cut run goes on with the cell that is at hand (-1)."""
    piece: list[_Run] = []
    room = PIECE
    for run in runs:
        first, left, cell = run
        while left:
            count = min(left, room)
            piece.append(_Run(first, count, cell))
            first, left, cell, room = first + count, left - count, -1, room - count
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
    count_ids(ids.view(np.int32), np.zeros(1, np.int64))
