"""Entries by the cells of a grid of row groups and column groups: counting, sorting, checking.

Owns the compiled loops behind `diml convert` and behind the reading of its files, the place of an
entry in its cell, and the checksum of a cell. Must not know files. All loops release the
interpreter lock.

A place is one number for the row and the column, row << col_bits | col, where both count from the
beginning of their group: cells are small, so 16 bits are nearly always enough.

The checksum of a cell is the sum of all its words (places and the bits of values), each times an
odd 32-bit weight that depends on where it stands and on which of both it is, modulo 2^64: a change
of one word always changes it, words that have changed places nearly always. Written as it is
(slices of known beginning, 32-bit weights) it compiles to vector instructions: 0.5 ns an entry.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from diml.data.cells import shuffle

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]
Sums = npt.NDArray[np.uint64]
Words = npt.NDArray[np.uint32]
Places = npt.NDArray[np.unsignedinteger]

_A = np.uint64(0x9E3779B97F4A7C15)
_B = np.uint64(0xC2B2AE3D27D4EB4F)
_OF_PLACE, _OF_VALUE = np.uint32(0x9E3779B1), np.uint32(0xC2B2AE35)


@njit(cache=True, nogil=True)
def count_cells(
    rows: Ids, cols: Ids, row_group: Ids, col_group: Ids, row_groups: int, counts: Counts
) -> None:
    """Add the entries of each cell to `counts` (row_groups * col_groups,)."""
    for n in range(rows.shape[0]):
        counts[np.int64(col_group[cols[n]]) * row_groups + row_group[rows[n]]] += 1


@njit(cache=True, nogil=True)
def count_ids(ids: Ids, counts: Counts) -> None:
    """Add to `counts` how often each id comes."""
    for n in range(ids.shape[0]):
        counts[ids[n]] += 1


@njit(cache=True, nogil=True)
def deal(
    rows: Ids,
    cols: Ids,
    values: Floats,
    buckets: Ids,
    starts: Counts,
    out_rows: Ids,
    out_cols: Ids,
    out_values: Floats,
) -> None:
    """Put entries in order of their buckets, keeping the order inside a bucket.

    `starts` is where each bucket begins; it is moved to where it ends.
    """
    for n in range(rows.shape[0]):
        to = starts[buckets[n]]
        starts[buckets[n]] = to + 1
        out_rows[to], out_cols[to], out_values[to] = rows[n], cols[n], values[n]


def settle(
    entries: tuple[Ids, Ids, Floats],
    cells: Ids,
    ends: Counts,
    first_cell: int,
    groups: tuple[Counts, Counts],
    places: Places,
    col_bits: int,
    seed: int,
) -> tuple[Floats, Sums]:
    """Entries by cell, at random inside each: fills `places`; the values, the cells' checksums.

    Args:
        entries: rows, cols and values; they and `cells`, which count from 0, have shape (n,).
        ends: int64 (cells + 1,), where each cell begins and ends; the last one is n.
        first_cell: the number in the file of the first cell.
        groups: where the groups of rows and of columns begin and end.
        places: (n,), of an unsigned type that is wide enough.
        seed: of the order inside cells, >= 0; the order in a cell depends on it and the cell only.
    """
    rows, cols = np.empty_like(entries[0]), np.empty_like(entries[1])
    values = np.empty_like(entries[2])
    deal(*entries, cells, ends[:-1].copy(), rows, cols, values)
    _shuffle_each(ends, first_cell, np.uint64(seed % 2**64), rows, cols, values)
    _pack(rows, cols, ends, first_cell, *groups, col_bits, places)
    sums = np.zeros(len(ends) - 1, np.uint64)
    _sum_cells(places, values.view(np.uint32), ends, sums)
    return values, sums


@njit(cache=True, nogil=True)
def _pack(
    rows: Ids,
    cols: Ids,
    ends: Counts,
    first_cell: int,
    row_ends: Counts,
    col_ends: Counts,
    col_bits: int,
    places: Places,
) -> None:
    row_groups = row_ends.shape[0] - 1
    for cell in range(ends.shape[0] - 1):
        col_group, row_group = divmod(first_cell + cell, row_groups)
        for n in range(ends[cell], ends[cell + 1]):
            row, col = rows[n] - row_ends[row_group], cols[n] - col_ends[col_group]
            places[n] = (row << col_bits) | col


@njit(cache=True, nogil=True)
def _shuffle_each(
    ends: Counts, first_cell: int, seed: np.uint64, rows: Ids, cols: Ids, values: Floats
) -> None:
    for cell in range(ends.shape[0] - 1):
        state = ((seed + np.uint64(1)) * _A) ^ (np.uint64(first_cell + cell + 1) * _B)
        shuffle(ends[cell], ends[cell + 1], state | np.uint64(1), rows, cols, values)


@njit(cache=True, nogil=True)
def _weighed(words: Places, factor: np.uint32, first: int) -> np.uint64:
    """The sum of weighed words, the first of which stands at `first` of its cell."""
    total = np.uint64(0)
    for m in range(words.shape[0]):
        weight = np.uint32(np.uint32(m + first) * factor) | np.uint32(1)
        total += np.uint64(words[m]) * np.uint64(weight)
    return total


@njit(cache=True, nogil=True)
def _sum_cells(places: Places, bits: Words, ends: Counts, sums: Sums) -> None:
    for cell in range(sums.shape[0]):
        low, high = ends[cell], ends[cell + 1]
        sums[cell] = _weighed(places[low:high], _OF_PLACE, 0)
        sums[cell] += _weighed(bits[low:high], _OF_VALUE, 0)


@njit(cache=True, nogil=True)
def _unpack(
    places: Places, col_bits: int, row_base: int, col_base: int, rows: Ids, cols: Ids
) -> tuple[int, int]:
    """Rows and columns that count from the bases; the largest ones, counted from their group."""
    shift, mask = np.uint64(col_bits), np.uint64((1 << col_bits) - 1)
    low_row, low_col = np.uint32(row_base), np.uint32(col_base)
    top_row, top_col = np.uint32(0), np.uint32(0)
    for m in range(places.shape[0]):
        place = np.uint64(places[m])
        row, col = np.uint32(place >> shift), np.uint32(place & mask)
        top_row, top_col = max(top_row, row), max(top_col, col)
        rows[m], cols[m] = np.int32(row + low_row), np.int32(col + low_col)
    return int(top_row), int(top_col)


@njit(cache=True, nogil=True)
def take(
    places: Places,
    bits: Words,
    first: int,
    cell: int,
    total: np.uint64,
    check: bool,
    ends: Counts,
    checks: Sums,
    row_ends: Counts,
    col_ends: Counts,
    row_base: int,
    col_base: int,
    col_bits: int,
    rows: Ids,
    cols: Ids,
) -> tuple[int, np.uint64, bool]:
    """Make rows and columns of the entries first .. first + n - 1 of a file, and check them.

    Args:
        places, bits: (n,), the bits being those of the values.
        cell: the cell of the first entry; `total` is the sum of those of its entries before it.
        check: compare the sums of cells that end here with `checks`, besides looking at the ids.
        ends, checks, row_ends, col_ends: of the whole file.
        row_base, col_base: what rows and columns count from.
        rows, cols: (n,), to be filled.

    Returns:
        The cell after the last entry, the sum of its entries so far, and whether all is well: if
        not, the returned cell is the damaged one.
    """
    n, size = 0, places.shape[0]
    row_groups = row_ends.shape[0] - 1
    while n < size:
        end = min(ends[cell + 1] - first, size)
        if n < end:
            if check:
                total += _weighed(places[n:end], _OF_PLACE, first + n - ends[cell])
                total += _weighed(bits[n:end], _OF_VALUE, first + n - ends[cell])
            col_group, row_group = divmod(cell, row_groups)
            low_row, low_col = row_ends[row_group], col_ends[col_group]
            top_row, top_col = _unpack(
                places[n:end],
                col_bits,
                low_row - row_base,
                low_col - col_base,
                rows[n:end],
                cols[n:end],
            )
            if low_row + top_row >= row_ends[row_group + 1]:
                return cell, total, False
            if low_col + top_col >= col_ends[col_group + 1]:
                return cell, total, False
        n = end
        if ends[cell + 1] - first > size:
            return cell, total, True
        if check and total != checks[cell]:
            return cell, total, False
        cell, total = cell + 1, np.uint64(0)
    return cell, total, True
