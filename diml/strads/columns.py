"""The columns of a design matrix that one rank holds, sparse or dense.

Owns what can be done with columns where they are. What they are, and which ones a rank holds (a
contiguous range, cut so that ranks hold about equally many entries), is `data.design_part`'s. Knows
nothing of MPI or solvers.
Column numbers in the methods are local: global number minus `first`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # its `sparse` is imported at its first use: a tenth of a second
from numpy.typing import ArrayLike, NDArray

from diml.data.design_part import DensePart, SparsePart, balance
from diml.errors import Misuse
from diml.kernels import lasso as kernels

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packed:
    """Some columns copied out of the design: `values` (k, n), or CSC parts when `indices` is set.

    `lengths` is (k,) int64; entries of the columns stand one after the other in `values`.
    """

    lengths: Integers
    indices: NDArray[np.int32] | None
    values: Floats


class SparseColumns(SparsePart):
    """Columns `first` … `first + count − 1` of an (n, total) design in CSC form."""

    __slots__ = ()

    @property
    def count(self) -> int:
        return len(self.indptr) - 1

    def entries(self) -> Integers:
        """Stored entries of every column, (count,)."""
        return np.diff(self.indptr)

    def largest(self) -> float:
        """max |x|; 0 without entries."""
        return _largest(self.data)

    def correlate(self, r: Floats, out: Floats) -> None:
        kernels.sparse_correlate(self.indptr, self.indices, self.data, r, out)

    def correlate_some(self, columns: Integers, r: Floats, out: Floats) -> None:
        kernels.sparse_correlate_some(self.indptr, self.indices, self.data, columns, r, out)

    def moments(self, centre: bool, r: Floats) -> tuple[Floats, Floats, Floats]:
        """(means, or empty; Σ (x − mean)²; xᵀr) of every column."""
        mean = np.empty(self.count if centre else 0)
        square, dot = np.empty((2, self.count))
        kernels.sparse_moments(self.indptr, self.indices, self.data, r, mean, square, dot)
        return mean, square, dot

    def subtract(self, columns: Integers, weights: Floats, r: Floats) -> None:
        """r −= Σ weights[k] x_columns[k]."""
        kernels.sparse_subtract(self.indptr, self.indices, self.data, columns, weights, r)

    def take(self, columns: Integers) -> Packed:
        lengths = self.indptr[columns + 1] - self.indptr[columns]
        size = int(lengths.sum())
        indices = np.empty(size, np.int32)
        values = np.empty(size)
        kernels.sparse_take(self.indptr, self.indices, self.data, columns, indices, values)
        return Packed(lengths, indices, values)

    def matrix(self) -> Any:
        """(rows, count) SciPy CSC over the same arrays."""
        parts = (self.data, self.indices, self.indptr)
        return scipy.sparse.csc_matrix(parts, shape=(self.rows, self.count))

    def part(self, part: int, parts: int) -> SparseColumns:
        """The range that `part` of `parts` answers for, as a view; all columns must be held."""
        edges = balance(self.entries(), parts)
        first, last = int(edges[part]), int(edges[part + 1])
        start, end = self.indptr[first], self.indptr[last]
        indptr = self.indptr[first : last + 1] - start
        data, indices = self.data[start:end], self.indices[start:end]
        return SparseColumns(self.rows, self.total, first, indptr, indices, data, self.base)


class DenseColumns(DensePart):
    """The same for a dense design: X is (n, count), Fortran-ordered, float32 or float64."""

    __slots__ = ()

    @property
    def rows(self) -> int:
        return int(self.X.shape[0])

    @property
    def count(self) -> int:
        return int(self.X.shape[1])

    def entries(self) -> Integers:
        return np.full(self.count, self.rows, np.int64)

    def largest(self) -> float:
        return _largest(self.X)

    def correlate(self, r: Floats, out: Floats) -> None:
        kernels.dense_correlate(self.X, r, out)

    def correlate_some(self, columns: Integers, r: Floats, out: Floats) -> None:
        kernels.dense_correlate_some(self.X, columns, r, out)

    def moments(self, centre: bool, r: Floats) -> tuple[Floats, Floats, Floats]:
        mean = np.empty(self.count if centre else 0)
        square, dot = np.empty((2, self.count))
        kernels.dense_moments(self.X, r, mean, square, dot)
        return mean, square, dot

    def subtract(self, columns: Integers, weights: Floats, r: Floats) -> None:
        kernels.dense_subtract(self.X, columns, weights, r)

    def take(self, columns: Integers) -> Packed:
        values = self.X.T[columns].astype(np.float64, copy=False)
        return Packed(np.full(len(columns), self.rows, np.int64), None, values)

    def matrix(self) -> NDArray[np.floating[Any]]:
        """(rows, count), the array itself."""
        return self.X

    def part(self, part: int, parts: int) -> DenseColumns:
        """The range that `part` of `parts` answers for, as a view; all columns must be held."""
        edges = balance(self.entries(), parts)
        first, last = int(edges[part]), int(edges[part + 1])
        return DenseColumns(self.total, first, self.X[:, first:last])


Columns = SparseColumns | DenseColumns


def columns_from(part: SparsePart | DensePart) -> Columns:
    """The columns that a reader read."""
    if isinstance(part, DensePart):
        return DenseColumns(part.total, part.first, part.X)
    arrays = part.indptr, part.indices, part.data
    return SparseColumns(part.rows, part.total, part.first, *arrays, part.base)


def columns_of(X: Any, part: int = 0, parts: int = 1) -> Columns:
    """The range of columns that `part` of `parts` holds, from a SciPy sparse or NumPy matrix.

    A CSC matrix and a Fortran-ordered array are not copied where one part holds all. float32
    stays float32; every other type becomes float64.

    Raises:
        Misuse: not two-dimensional, complex, or more than 2³¹ − 1 rows.
    """
    # `issparse` would import SciPy's sparse matrices into every process with dense data.
    if hasattr(X, "tocsc"):
        return _sparse_columns(X, part, parts)
    array = np.asarray(X)
    if array.ndim != 2:
        raise Misuse(f"Expected 2D array, got {array.ndim}D array instead: reshape your data")
    array = _real(array)
    edges = balance(np.full(array.shape[1], array.shape[0], np.int64), parts)
    first, last = int(edges[part]), int(edges[part + 1])
    return DenseColumns(array.shape[1], first, np.asfortranarray(array[:, first:last]))


def _sparse_columns(X: Any, part: int, parts: int) -> SparseColumns:
    if X.shape[0] > np.iinfo(np.int32).max:
        raise Misuse(f"X has {X.shape[0]} rows; at most 2³¹ − 1 are supported")
    csc = X.tocsc()
    if not csc.has_canonical_format:
        csc = csc.copy() if csc is X else csc
        csc.sum_duplicates()
    indptr = csc.indptr.astype(np.int64)
    edges = balance(np.diff(indptr), parts)
    first, last = int(edges[part]), int(edges[part + 1])
    start, end = indptr[first], indptr[last]
    return SparseColumns(
        csc.shape[0],
        csc.shape[1],
        first,
        indptr[first : last + 1] - start,
        csc.indices[start:end].astype(np.int32, copy=False),
        _real(csc.data)[start:end],
    )


def _largest(values: NDArray[np.floating[Any]]) -> float:
    return max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))


def _real(values: NDArray[Any]) -> NDArray[np.floating[Any]]:
    if np.iscomplexobj(values):
        raise Misuse("Complex data not supported: the design must be real")
    if values.dtype in (np.float32, np.float64):
        return values
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise Misuse(f"the design must be numbers: {error}") from None


def response_of(y: ArrayLike) -> Floats:
    """`y` as (n,) float64, copied.

    Raises:
        Misuse: not one-dimensional, not numbers, or NaN or infinity in it.
    """
    try:
        values = np.array(y, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise Misuse(f"y must be numbers: {error}") from None
    if values.ndim != 1:
        raise Misuse(f"y must be one-dimensional, not {values.ndim}-dimensional")
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise Misuse(f"y contains NaN or infinity (first at row {bad[0]})")
    return values
