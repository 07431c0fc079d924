"""The columns of a design matrix that one worker holds, and how columns are shared out.

Owns their form in memory; the readers make it. Must not know files or MPI.

Invariant: row numbers rise in each column of what `canonical` gives, and none stands twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

_CHUNK_ENTRIES = 1_000_000  # looked at together


@dataclass(frozen=True, slots=True)
class SparsePart:
    """Columns `first` … of an (rows, total) matrix in CSC form; row numbers rise in a column.

    indptr (columns + 1,) int64, indices int32, data float32 or float64. `base` is the number that
    the first column has in its file: 1, or 0 in a libsvm file with a column 0.
    """

    rows: int
    total: int
    first: int
    indptr: Integers
    indices: NDArray[np.int32]
    data: NDArray[np.floating[Any]]
    base: int = 1


@dataclass(frozen=True, slots=True)
class DensePart:
    """Columns `first` … of an (n, total) array: X is (n, columns), Fortran-ordered."""

    total: int
    first: int
    X: NDArray[np.floating[Any]]


def balance(entries: Integers, parts: int) -> Integers:
    """Cut columns into `parts` contiguous ranges of about equal work; returns (parts + 1,) edges.

    The work of a column is its stored entries plus 4, the cost of visiting it at all. A range may
    be empty where there are fewer columns than parts.
    """
    work = np.concatenate([[0], np.cumsum(entries + 4)])
    goals = work[-1] * np.arange(1, parts) / parts
    inner = np.searchsorted(work, goals)
    return np.concatenate([[0], inner, [len(entries)]]).astype(np.int64)


def _rising(part: SparsePart) -> bool:
    """Whether row numbers rise in each column; looks at some columns at a time."""
    columns = len(part.indptr) - 1
    first = 0
    while first < columns:
        entries = part.indptr[first] + _CHUNK_ENTRIES
        last = max(first + 1, int(np.searchsorted(part.indptr, entries, "right")) - 1)
        ends = part.indptr[first + 1 : last] - part.indptr[first] - 1
        step = np.diff(part.indices[part.indptr[first] : part.indptr[last]]) > 0
        step[ends[(ends >= 0) & (ends < len(step))]] = True  # from one column to the next
        if not step.all():
            return False
        first = last
    return True


def canonical(part: SparsePart) -> SparsePart:
    """Row numbers rising in each column, duplicates summed."""
    if _rising(part):
        return part
    columns = len(part.indptr) - 1
    owner = np.repeat(np.arange(columns), np.diff(part.indptr))
    order = np.lexsort((part.indices, owner))
    owner, indices, data = owner[order], part.indices[order], part.data[order]
    fresh = np.ones(len(owner), dtype=bool)
    fresh[1:] = (np.diff(owner) != 0) | (np.diff(indices) != 0)
    starts = np.flatnonzero(fresh)
    counts = np.bincount(owner[starts], minlength=columns)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    summed = np.add.reduceat(data, starts)
    return SparsePart(part.rows, part.total, part.first, indptr, indices[starts], summed)
