"""Entries of a matrix dealt out so that several threads never meet (Gemulla et al. 2011).

Owns the cutting of rows into T ranges of about equal entries, one for each thread, and of columns
into C = T * TURNS; and the sorting of entries by cell. Must not know what is done with a cell. In
turn t thread p has the columns of range (p * TURNS + t) mod C. So the cells of a turn share no row
and no column, and a range of columns comes to thread p TURNS turns after thread p + 1 had it: if
each waits for that, the result does not depend on which thread is faster, and none waits long.

Invariant: inside a cell entries keep their order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]


# More of them, and threads wait less for each other, but columns leave the cache sooner.
TURNS = 4


def ranges(
    row_entries: Counts, col_entries: Counts, threads: int, groups: int = 1
) -> tuple[Ids, Ids]:
    """The ranges of rows and of columns, by their numbers of entries: int32, rising.

    A thread has so many ranges of rows as there are `groups`.
    """
    return _ranges(row_entries, threads * groups), _ranges(col_entries, threads * TURNS)


def _ranges(entries: Counts, parts: int) -> Ids:
    before = np.cumsum(entries) - entries
    total = max(int(entries.sum()), 1)
    made: Ids = np.minimum(before * parts // total, parts - 1).astype(np.int32)
    return made


def dealt(
    rows: Ids,
    cols: Ids,
    values: Floats,
    row_range: Ids,
    col_range: Ids,
    threads: int,
    groups: int = 1,
) -> list[tuple[Ids, Ids, Floats]]:
    """Entries by group, turn and thread: groups times threads * threads * TURNS triples."""
    ends = np.zeros(groups * threads * threads * TURNS + 1, np.int64)
    how = row_range, col_range, threads, groups
    _count(rows, cols, *how, ends)
    np.cumsum(ends, out=ends)
    out = np.empty_like(rows), np.empty_like(cols), np.empty_like(values)
    _fill(rows, cols, values, *how, ends[:-1].copy(), *out)
    cells = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    return [(out[0][low:high], out[1][low:high], out[2][low:high]) for low, high in cells]


@njit(cache=True, nogil=True)
def _cell(row_range: int, col_range: int, threads: int, groups: int) -> int:
    thread, group = row_range // groups, row_range % groups
    turns = threads * TURNS
    turn = (col_range - thread * TURNS + turns) % turns
    return (group * turns + turn) * threads + thread


@njit(cache=True, nogil=True)
def _count(
    rows: Ids,
    cols: Ids,
    row_range: Ids,
    col_range: Ids,
    threads: int,
    groups: int,
    counts: Counts,
) -> None:
    """Count the entries of cell x into counts[x + 1]."""
    for n in range(rows.shape[0]):
        counts[_cell(row_range[rows[n]], col_range[cols[n]], threads, groups) + 1] += 1


@njit(cache=True, nogil=True)
def _fill(
    rows: Ids,
    cols: Ids,
    values: Floats,
    row_range: Ids,
    col_range: Ids,
    threads: int,
    groups: int,
    starts: Counts,
    out_rows: Ids,
    out_cols: Ids,
    out_values: Floats,
) -> None:
    for n in range(rows.shape[0]):
        cell = _cell(row_range[rows[n]], col_range[cols[n]], threads, groups)
        to = starts[cell]
        starts[cell] = to + 1
        out_rows[to], out_cols[to], out_values[to] = rows[n], cols[n], values[n]


def warm_up() -> None:
    """Compile the loops, or load them from the cache."""
    one = np.zeros(1, np.int32)
    dealt(one, one, np.zeros(1, np.float32), one, one, 1)
