"""Entries of a sparse matrix in an order that keeps what they touch in cache.

Owns the cutting of a worker's entries into blocks of columns and, inside these, into cells of
CELL_ROWS x CELL_COLS, in two passes over all entries. Pure. Must not know what is done with them.

Invariant: the order depends on the arguments only. Inside a cell it is random: consecutive
entries of one row would wait for each other, and make descent slower in accuracy as well.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

# At rank 32 the rows of L and R of a cell take 0.6 MB: they and the entries that stream by fit into
# a core's second cache of 1 MB. (Twice as large costs 12 % more time, the whole matrix 150 %.)
CELL_ROWS, CELL_COLS = 4096, 512

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]


def own_col_entries(rows: Ids, cols: Ids, owner: Ids, part: int, n_cols: int) -> Counts:
    """Entries of each column among the rows that `owner` gives to `part`: int64 (n_cols,)."""
    counts = np.zeros(n_cols, np.int64)
    _count_cols(rows, cols, owner, part, counts)
    return counts


def own_cells(
    rows: Ids,
    cols: Ids,
    values: Floats,
    owner: Ids,
    part: int,
    row_place: Ids,
    col_block: Ids,
    col_place: Ids,
    blocks: int,
    seed: int,
) -> tuple[Ids, Ids, Floats, Counts]:
    """A part's entries by block, then cell, then at random, with ids that count inside them.

    Args:
        rows, cols, values: all entries, any order, shape (n,).
        owner: the part of each row.
        row_place: what to call each row of the part, 0.. without gaps.
        col_block, col_place: the block of each column, and what to call it inside the block.
        seed: of the order inside cells, >= 0.

    Returns:
        rows and cols int32 and values float32, each (own entries,), and the places int64
        (blocks + 1,) where blocks begin and end.
    """
    down = int(row_place.max(initial=0)) // CELL_ROWS + 1
    across = int(col_place.max(initial=0)) // CELL_COLS + 1
    maps = (owner, part, row_place, col_block, col_place, down, across)
    ends = np.zeros(blocks * down * across + 1, np.int64)
    _count_cells(rows, cols, *maps, ends)
    np.cumsum(ends, out=ends)
    own = int(ends[-1])
    out = (np.empty(own, np.int32), np.empty(own, np.int32), np.empty(own, np.float32))
    _fill_cells(rows, cols, values, *maps, ends[:-1].copy(), *out)
    _shuffle_cells(ends, np.uint64(seed), *out)
    return (*out, ends[:: down * across])


@njit(cache=True, nogil=True)
def _count_cols(rows: Ids, cols: Ids, owner: Ids, part: int, counts: Counts) -> None:
    for n in range(rows.shape[0]):
        if owner[rows[n]] == part:
            counts[cols[n]] += 1


@njit(cache=True, nogil=True)
def _cell(row: int, col: int, block: int, down: int, across: int) -> int:
    return (block * down + row // CELL_ROWS) * across + col // CELL_COLS


@njit(cache=True, nogil=True)
def _count_cells(
    rows: Ids,
    cols: Ids,
    owner: Ids,
    part: int,
    row_place: Ids,
    col_block: Ids,
    col_place: Ids,
    down: int,
    across: int,
    counts: Counts,
) -> None:
    """Count the entries of cell x into counts[x + 1]."""
    for n in range(rows.shape[0]):
        i, j = rows[n], cols[n]
        if owner[i] == part:
            counts[_cell(row_place[i], col_place[j], col_block[j], down, across) + 1] += 1


@njit(cache=True, nogil=True)
def _fill_cells(
    rows: Ids,
    cols: Ids,
    values: Floats,
    owner: Ids,
    part: int,
    row_place: Ids,
    col_block: Ids,
    col_place: Ids,
    down: int,
    across: int,
    starts: Counts,
    out_rows: Ids,
    out_cols: Ids,
    out_values: Floats,
) -> None:
    for n in range(rows.shape[0]):
        i, j = rows[n], cols[n]
        if owner[i] == part:
            cell = _cell(row_place[i], col_place[j], col_block[j], down, across)
            to = starts[cell]
            starts[cell] = to + 1
            out_rows[to], out_cols[to], out_values[to] = row_place[i], col_place[j], values[n]


@njit(cache=True, nogil=True)
def _shuffle_cells(ends: Counts, seed: np.uint64, rows: Ids, cols: Ids, values: Floats) -> None:
    """Shuffle the entries of each cell."""
    state = (seed + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for cell in range(ends.shape[0] - 1):
        state = shuffle(ends[cell], ends[cell + 1], state, rows, cols, values)


@njit(cache=True, nogil=True)
def shuffle(
    first: int, end: int, state: np.uint64, rows: Ids, cols: Ids, values: Floats
) -> np.uint64:
    """Shuffle the entries first .. end - 1 (Fisher and Yates), by xorshift64* (Vigna 2016).

    `state` is that of the generator, not 0; returned as it is afterwards.
    """
    for last in range(end - first - 1, 0, -1):
        state ^= state >> np.uint64(12)
        state ^= state << np.uint64(25)
        state ^= state >> np.uint64(27)
        high = (state * np.uint64(0x2545F4914F6CDD1D)) >> np.uint64(32)
        a = first + last
        b = first + np.int64((high * np.uint64(last + 1)) >> np.uint64(32))
        rows[a], rows[b] = rows[b], rows[a]
        cols[a], cols[b] = cols[b], cols[a]
        values[a], values[b] = values[b], values[a]
    return state
