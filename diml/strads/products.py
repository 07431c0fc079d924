"""Inner products of the columns that are not zero, computed when they have come to pay.

Owns which inner products are known, and the decision to compute more: when the entries swept over
since the last time exceed what it costs ("rent until it is worth to buy"), which at worst doubles
the work. All workers compute a part each; worker 0, who solves blocks, keeps the sum. Must not
know what they are for. Invariant: all workers know the same ids, for all are told the same costs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diml.kernels import lasso as kernels
from diml.strads.store import Store

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_COLUMNS_LEAST = 20  # fewer are swept over quickly enough
_COLUMNS_MOST = 4000  # 128 MB of inner products
# What a number costs, in entries of a sweep: in a product of sparse columns, and in one of the
# same columns spread out, which BLAS multiplies. Measured; only their order of size matters.
_GATHERED = 1.4
_SPREAD = 0.025
_CHUNK_NUMBERS = 2_000_000


class Products:
    """x̃_iᵀx̃_j for pairs of some columns.

    Args:
        keep: whether this worker keeps the numbers (else only which are known).
        parts: over how many workers the work is shared out, which divides its price.
    """

    def __init__(self, keep: bool, parts: int = 1) -> None:
        self._keep, self._parts = keep, parts
        self.clear()

    def clear(self) -> None:
        """Forget all products, and what has been spent."""
        self._ids = np.empty(0, np.int64)
        self._order = np.empty(0, np.int64)
        self._matrix = np.empty((0, 0))
        self._spent = 0.0

    def spend(self, entries: int) -> None:
        """Note the entries that a solve has swept over."""
        self._spent += entries

    def holds(self, ids: Integers) -> NDArray[np.bool_]:
        """Which of `ids` have products with all others held."""
        return np.isin(ids, self._ids)

    def block(self, ids: Integers) -> Floats:
        """(k, k) products of columns that are held."""
        places = self._order[np.searchsorted(self._ids[self._order], ids)]
        return self._matrix[np.ix_(places, places)]

    def wanted(self, store: Store, ids: Integers, swept: int = 0) -> Integers:
        """Columns to compute the products of now: none until sweeping has cost as much.

        Args:
            ids: the non-zero columns. swept: entries swept over and not noted yet.
        """
        fresh = ids[~self.holds(ids)]
        total = len(self._ids) + len(fresh)
        if len(fresh) == 0 or not _COLUMNS_LEAST <= total <= _COLUMNS_MOST:
            return fresh[:0]
        entries = int(store.entries_of(np.concatenate([self._ids, fresh])).sum())
        cost = len(fresh) * min(_GATHERED * entries, _SPREAD * total * store.rows)
        return fresh if self._spent + swept >= cost / self._parts else fresh[:0]

    def part(self, store: Store, fresh: Integers, part: int) -> Floats:
        """This worker's part of the products of `fresh` with all columns, (len(fresh), all): they
        are the sum over all parts."""
        everything = np.concatenate([self._ids, fresh])
        slots = store.slots(everything)
        indptr, indices, values = store.sparse_block(slots)
        known = len(self._ids)
        out = np.zeros((len(fresh), len(everything)))
        if _SPREAD * len(everything) * store.rows < _GATHERED * len(values):
            step = max(1, _CHUNK_NUMBERS // len(everything))
            cursor = indptr[:-1].copy()
            # Some of the observations: so each product of two new columns is computed once only.
            stop = self._edge(part + 1, store.rows)
            for start in range(self._edge(part, store.rows), stop, step):
                dense = np.empty((len(everything), min(step, stop - start)))
                kernels.sparse_spread(indptr, indices, values, cursor, start, dense)
                out += dense[known:] @ dense.T
        else:
            first, last = self._edge(part, len(fresh)), self._edge(part + 1, len(fresh))
            share = known + first, known + last
            kernels.sparse_inner(indptr, indices, values, store.rows, *share, out[first:last])
        if part == 0:
            mean = store.mean[slots]
            out -= store.rows * np.outer(mean[known:], mean)
        return out

    def _edge(self, part: int, whole: int) -> int:
        return part * whole // self._parts

    def add(self, fresh: Integers, rows: Floats) -> None:
        """Take in the products of `fresh`: (len(fresh), all)."""
        known = len(self._ids)
        total = known + len(fresh)
        if self._keep:
            matrix = np.empty((total, total))
            matrix[:known, :known] = self._matrix
            matrix[known:] = rows
            matrix[:known, known:] = rows[:, :known].T
            self._matrix = matrix
        self._ids = np.concatenate([self._ids, fresh])
        self._order = np.argsort(self._ids, kind="stable")
        self._spent = 0.0

    def retain(self, store: Store) -> None:
        """Forget columns that are not stored any more."""
        gone = np.isin(self._ids, store.ids, invert=True)
        if gone.any():
            stay = np.flatnonzero(~gone)
            if self._keep:
                self._matrix = self._matrix[np.ix_(stay, stay)]
            self._ids = self._ids[stay]
            self._order = np.argsort(self._ids, kind="stable")
