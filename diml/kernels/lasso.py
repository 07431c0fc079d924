"""Lasso kernels that pass over all columns a rank holds: moments, correlations, residuals.

Owns arithmetic over columns that stay where they are; knows nothing of centring, scaling or λ.
Columns are CSC (int64 pointers, int32 row numbers, float32 or float64 values) or the columns of a
Fortran-ordered dense array. Sums are float64 and run down a column in one order that does not
depend on which other columns are held, so a column's numbers have the same bits on every rank.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# Sums may be regrouped for speed; NaN and infinity keep their meaning (divergence must be seen).
_MATH = {"reassoc", "contract", "arcp", "nsz"}


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def sparse_correlate(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.floating],
    r: Floats,
    out: Floats,
) -> None:
    """out[j] = x_jᵀ r for every CSC column."""
    for j in range(len(out)):
        dot = 0.0
        for k in range(indptr[j], indptr[j + 1]):
            dot += data[k] * r[indices[k]]
        out[j] = dot


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def sparse_correlate_some(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.floating],
    columns: NDArray[np.int64],
    r: Floats,
    out: Floats,
) -> None:
    """out[k] = x_columns[k]ᵀ r."""
    for place in range(len(columns)):
        j = columns[place]
        dot = 0.0
        for k in range(indptr[j], indptr[j + 1]):
            dot += data[k] * r[indices[k]]
        out[place] = dot


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def dense_correlate(X: NDArray[np.floating], r: Floats, out: Floats) -> None:
    """out[j] = x_jᵀ r for every dense column; X is (n, p), Fortran-ordered."""
    for j in range(len(out)):
        column = X[:, j]
        dot = 0.0
        for i in range(len(r)):
            dot += column[i] * r[i]
        out[j] = dot


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def dense_correlate_some(
    X: NDArray[np.floating], columns: NDArray[np.int64], r: Floats, out: Floats
) -> None:
    """out[k] = x_columns[k]ᵀ r."""
    for place in range(len(columns)):
        column = X[:, columns[place]]
        dot = 0.0
        for i in range(len(r)):
            dot += column[i] * r[i]
        out[place] = dot


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def sparse_moments(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.floating],
    r: Floats,
    mean: Floats,
    square: Floats,
    dot: Floats,
) -> None:
    """In one pass: mean[j] = m_j, square[j] = Σ_i (x_ij − m_j)² and dot[j] = x_jᵀr.

    With an empty `mean`, m_j = 0. A column is gone over twice, and what the second pass finds left
    of the mean is taken away ("corrected two-pass", Chan, Golub & LeVeque 1983), so that a constant
    column comes out as (nearly) 0 and not as noise, however long it is.
    """
    rows = len(r)
    for j in range(len(square)):
        start, end = indptr[j], indptr[j + 1]
        centre = 0.0
        if len(mean) > 0:
            for k in range(start, end):
                centre += data[k]
            centre /= rows
            mean[j] = centre
        total = (rows - (end - start)) * centre * centre
        left = (end - start - rows) * centre
        product = 0.0
        for k in range(start, end):
            off = data[k] - centre
            total += off * off
            left += off
            product += data[k] * r[indices[k]]
        if len(mean) > 0:
            mean[j] += left / rows
            total = max(total - left * (left / rows), 0.0)
        square[j] = total
        dot[j] = product


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def dense_moments(
    X: NDArray[np.floating], r: Floats, mean: Floats, square: Floats, dot: Floats
) -> None:
    """The same for the columns of a Fortran-ordered array."""
    rows = X.shape[0]
    for j in range(len(square)):
        column = X[:, j]
        centre = 0.0
        if len(mean) > 0:
            for i in range(rows):
                centre += column[i]
            centre /= rows
            mean[j] = centre
        total = 0.0
        left = 0.0
        product = 0.0
        for i in range(rows):
            off = column[i] - centre
            total += off * off
            left += off
            product += column[i] * r[i]
        if len(mean) > 0:
            mean[j] += left / rows
            total = max(total - left * (left / rows), 0.0)
        square[j] = total
        dot[j] = product


@numba.njit(cache=True, nogil=True)
def sparse_subtract(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.floating],
    columns: NDArray[np.int64],
    weights: Floats,
    r: Floats,
) -> None:
    """r −= Σ_k weights[k] x_columns[k]."""
    for place in range(len(columns)):
        j = columns[place]
        weight = weights[place]
        for k in range(indptr[j], indptr[j + 1]):
            r[indices[k]] -= weight * data[k]


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def dense_subtract(
    X: NDArray[np.floating], columns: NDArray[np.int64], weights: Floats, r: Floats
) -> None:
    """r −= Σ_k weights[k] x_columns[k]."""
    for place in range(len(columns)):
        column = X[:, columns[place]]
        weight = weights[place]
        for i in range(len(r)):
            r[i] -= weight * column[i]


@numba.njit(cache=True, nogil=True)
def sparse_take(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.floating],
    columns: NDArray[np.int64],
    out_indices: NDArray[np.int32],
    out_data: Floats,
) -> None:
    """Copy the entries of `columns`, one after the other, into the two output arrays."""
    place = 0
    for j in columns:
        for k in range(indptr[j], indptr[j + 1]):
            out_indices[place] = indices[k]
            out_data[place] = data[k]
            place += 1


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def sparse_inner(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.floating],
    rows: int,
    first: int,
    last: int,
    out: Floats,
) -> None:
    """out[a − first, b] = x_aᵀx_b of packed columns, for a in first … last − 1 and all b.

    Column a is spread out over the rows once; every product then costs the entries of b.
    """
    spread = np.zeros(rows)
    for a in range(first, last):
        for k in range(indptr[a], indptr[a + 1]):
            spread[indices[k]] = data[k]
        for b in range(len(indptr) - 1):
            dot = 0.0
            for k in range(indptr[b], indptr[b + 1]):
                dot += data[k] * spread[indices[k]]
            out[a - first, b] = dot
        for k in range(indptr[a], indptr[a + 1]):
            spread[indices[k]] = 0.0


@numba.njit(cache=True, nogil=True)
def sparse_spread(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: Floats,
    cursor: NDArray[np.int64],
    start: int,
    out: Floats,
) -> None:
    """out (columns, rows of a chunk) = rows `start` … of packed columns whose row numbers rise.

    `cursor` holds where each column's next entry is, or an earlier one; it moves on to the next
    chunk.
    """
    out[:] = 0.0
    stop = start + out.shape[1]
    for j in range(len(indptr) - 1):
        k = cursor[j]
        while k < indptr[j + 1] and indices[k] < start:
            k += 1
        while k < indptr[j + 1] and indices[k] < stop:
            out[j, indices[k] - start] = data[k]
            k += 1
        cursor[j] = k
