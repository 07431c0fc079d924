"""Columns of a working set, copied to every worker, and the Gram matrix between them.

Owns the copies: gathered once, kept while they fit, dropped when most of them are stale. Columns
are stored as the solver sees them (scaled; dense ones centred too). Knows nothing of λ or of who
else holds them. Invariant: what is stored follows from the data and from the sequence of `add`
and `trim` calls alone, so all workers store the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.kernels import lasso as kernels
from diml.strads.columns import Packed

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Columns on their way into a store: ids, entries, mean/scale, ‖x̃‖²."""

    ids: Integers
    packed: Packed
    mean: Floats
    square: Floats


class Store:
    """Copies of columns, by global id.

    Args:
        rows: n.
        sparse: CSC copies, else dense ones.
    """

    def __init__(self, rows: int, sparse: bool) -> None:
        self._rows = rows
        self._sparse = sparse
        self.clear()

    def clear(self) -> None:
        """Forget all columns."""
        self.ids = np.empty(0, np.int64)  # by slot
        self.mean = np.empty(0)
        self.square = np.empty(0)
        self._order = np.empty(0, np.int64)
        self._sorted = np.empty(0, np.int64)
        self._indptr = np.zeros(1, np.int64)
        self._indices = np.empty(0, np.int32)
        self._values = np.empty(0)
        self._dense = np.empty((0, self._rows))
        self._gram = np.empty((0, 0))
        self._known = 0  # slots whose Gram rows are filled

    @property
    def entries(self) -> int:
        """Stored entries."""
        return int(self._indptr[-1]) if self._sparse else len(self.ids) * self._rows

    def entries_of(self, ids: Integers) -> Integers:
        """Stored entries of each of `ids`."""
        if not self._sparse:
            return np.full(len(ids), self._rows, np.int64)
        slots = self.slots(ids)
        return self._indptr[slots + 1] - self._indptr[slots]

    @property
    def rows(self) -> int:
        return self._rows

    @property
    def sparse(self) -> bool:
        return self._sparse

    def missing(self, ids: Integers) -> Integers:
        """Those of `ids` that are not stored."""
        return ids[~np.isin(ids, self.ids)] if len(self.ids) else ids

    def slots(self, ids: Integers) -> Integers:
        """Where stored columns are kept; every id must be stored."""
        return self._order[np.searchsorted(self._sorted, ids)]

    def add(self, batch: Batch) -> None:
        """Append columns that are not stored yet."""
        if len(batch.ids) == 0:
            return
        before = len(self.ids)
        self.ids = np.concatenate([self.ids, batch.ids])
        self.mean = np.concatenate([self.mean, batch.mean])
        self.square = np.concatenate([self.square, batch.square])
        self._order = np.argsort(self.ids, kind="stable")
        self._sorted = self.ids[self._order]
        if self._sparse:
            assert batch.packed.indices is not None
            ends = self._indptr[-1] + np.cumsum(batch.packed.lengths)
            self._indptr = np.concatenate([self._indptr, ends])
            self._indices = np.concatenate([self._indices, batch.packed.indices])
            self._values = np.concatenate([self._values, batch.packed.values])
            return
        if len(self.ids) > len(self._dense):
            grown = np.empty((max(2 * before, len(self.ids)), self._rows))
            grown[:before] = self._dense[:before]
            self._dense = grown
        self._dense[before : len(self.ids)] = batch.packed.values

    def sparse_block(self, slots: Integers) -> tuple[Integers, NDArray[np.int32], Floats]:
        """(indptr, indices, values) of the columns in `slots`, packed."""
        lengths = self._indptr[slots + 1] - self._indptr[slots]
        indptr = np.zeros(len(slots) + 1, np.int64)
        np.cumsum(lengths, out=indptr[1:])
        indices = np.empty(indptr[-1], np.int32)
        values = np.empty(indptr[-1])
        kernels.sparse_take(self._indptr, self._indices, self._values, slots, indices, values)
        return indptr, indices, values

    def dense_block(self, slots: Integers) -> Floats:
        """(k, n) centred and scaled columns, one a row."""
        return self._dense[slots]

    def gram_block(self, slots: Integers) -> Floats:
        """(k, k) inner products of dense columns; those that are not known yet are computed."""
        total = len(self.ids)
        if self._known < total:
            if total > len(self._gram):
                grown = np.empty((max(2 * len(self._gram), total),) * 2)
                grown[: self._known, : self._known] = self._gram[: self._known, : self._known]
                self._gram = grown
            fresh = self._dense[self._known : total] @ self._dense[:total].T
            self._gram[self._known : total, :total] = fresh
            self._gram[:total, self._known : total] = fresh.T
            self._known = total
        return self._gram[np.ix_(slots, slots)]

    def inner(self, slots: Integers) -> Floats:
        """(k, k) inner products x̃_iᵀx̃_j of a few columns, computed afresh."""
        if not self._sparse:
            dense = self.dense_block(slots)
            return dense @ dense.T
        indptr, indices, values = self.sparse_block(slots)
        products = np.empty((len(slots), len(slots)))
        kernels.sparse_inner(indptr, indices, values, self._rows, 0, len(slots), products)
        mean = self.mean[slots]
        return products - self._rows * np.outer(mean, mean)

    def correlate(self, slots: Integers, r: Floats) -> Floats:
        """x̃ᵀr of dense columns."""
        return (self._dense[: len(self.ids)] @ r)[slots]

    def subtract(self, slots: Integers, weights: Floats, r: Floats) -> None:
        """r −= Σ weights[k] x_slots[k] (sparse columns: not centred)."""
        if self._sparse:
            kernels.sparse_subtract(self._indptr, self._indices, self._values, slots, weights, r)
        else:
            kernels.dense_subtract(self._dense.T, slots, weights, r)

    def trim(self, keep: Integers, entries_max: int) -> None:
        """Drop all but the columns `keep` where more than `entries_max` entries are stored."""
        if self.entries <= entries_max:
            return
        if len(keep) == 0:
            self.clear()
            return
        slots = self.slots(keep)
        mean, square = self.mean[slots], self.square[slots]
        lengths = np.full(len(keep), self._rows, np.int64)
        if self._sparse:
            indptr, indices, values = self.sparse_block(slots)
            packed = Packed(np.diff(indptr), indices, values)
        else:
            packed = Packed(lengths, None, self.dense_block(slots))
        self.clear()
        self.add(Batch(keep, packed, mean, square))


def encode(batch: Batch) -> NDArray[np.uint8]:
    """A batch as bytes: counts, ids, lengths, means, squares, values, then row numbers."""
    packed = batch.packed
    entries = len(packed.values.reshape(-1))
    head = np.array([len(batch.ids), entries], np.int64)
    parts: list[NDArray[Any]] = [
        head,
        batch.ids,
        packed.lengths,
        batch.mean,
        batch.square,
    ]
    parts.append(packed.values.reshape(-1))
    if packed.indices is not None:
        parts.append(np.resize(packed.indices, entries + entries % 2))
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts])


def decode(data: NDArray[np.uint8], rows: int, sparse: bool) -> list[Batch]:
    """The batches in what an allgather of encoded ones gave, in rank order."""
    batches = []
    at = 0
    while at < len(data):
        count, entries = (int(v) for v in data[at : at + 16].view(np.int64))
        at += 16

        def read(size: int, dtype: type) -> Any:
            nonlocal at
            end = at + size * np.dtype(dtype).itemsize
            part: NDArray[Any] = data[at:end].view(dtype)
            at = end
            return part

        ids = read(count, np.int64)
        lengths = read(count, np.int64)
        mean, square = read(count, np.float64), read(count, np.float64)
        values = read(entries, np.float64)
        indices = read(entries + entries % 2, np.int32)[:entries] if sparse else None
        shaped = values if sparse else values.reshape(count, rows)
        batches.append(Batch(ids, Packed(lengths, indices, shaped), mean, square))
    return batches
