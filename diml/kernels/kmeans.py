"""k-means kernels: assign every row to its nearest centre and add the rows up by centre.

Owns arithmetic over the rows a rank holds. Must not know ranks or iterations. Centres are float64
(k, d); sums run over rows in their order, so the same rows give the same bits. Nearest is judged
by |c|² − 2 x·c, and of equally near centres the first is taken; the distance that counts towards
the objective is then computed from the differences themselves, which do not cancel.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_CHUNK_ROWS = 4096


@numba.njit(cache=True, nogil=True)
def _assign_chunk(
    X: NDArray[np.floating[Any]],
    scores: Floats,
    centres: Floats,
    labels: NDArray[np.int32],
    sums: Floats,
    counts: Floats,
) -> float:
    """Settle the rows of one chunk; returns the sum of their squared distances."""
    k, d = centres.shape
    inertia = 0.0
    for i in range(X.shape[0]):
        best = 0
        for c in range(1, k):
            if scores[i, c] < scores[i, best]:
                best = c
        labels[i] = best
        counts[best] += 1.0
        distance = 0.0
        for j in range(d):
            x = np.float64(X[i, j])
            sums[best, j] += x
            distance += (x - centres[best, j]) ** 2
        inertia += distance
    return inertia


@numba.njit(cache=True, nogil=True)
def assign_sparse(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.floating[Any]],
    centres: Floats,
    labels: NDArray[np.int32],
    sums: Floats,
    counts: Floats,
) -> float:
    """As `assign_dense`, for rows in CSR form."""
    k = centres.shape[0]
    columns = np.ascontiguousarray(centres.T)
    norms = np.empty(k)
    for c in range(k):
        norms[c] = (centres[c] ** 2).sum()
    scores = np.empty(k)
    inertia = 0.0
    for i in range(len(labels)):
        scores[:] = norms
        square = 0.0
        for at in range(indptr[i], indptr[i + 1]):
            x = np.float64(data[at])
            square += x * x
            for c in range(k):
                scores[c] -= 2.0 * x * columns[indices[at], c]
        best = 0
        for c in range(1, k):
            if scores[c] < scores[best]:
                best = c
        labels[i] = best
        counts[best] += 1.0
        for at in range(indptr[i], indptr[i + 1]):
            sums[best, indices[at]] += np.float64(data[at])
        inertia += max(0.0, square + scores[best])
    return inertia


def assign_dense(
    X: NDArray[np.floating[Any]],
    centres: Floats,
    labels: NDArray[np.int32],
    sums: Floats,
    counts: Floats,
) -> float:
    """Assign the rows of X (n, d); `labels` (n,), `sums` (k, d) and `counts` (k,) are updated.

    Returns the sum of squared distances to the nearest centre.
    """
    norms = np.einsum("cj,cj->c", centres, centres)
    # The products are judged in the precision of the data, and made by BLAS.
    narrow = centres.T.astype(X.dtype)
    inertia = 0.0
    for start in range(0, len(X), _CHUNK_ROWS):
        chunk = X[start : start + _CHUNK_ROWS]
        scores = norms - 2.0 * (chunk @ narrow).astype(np.float64)
        part = labels[start : start + len(chunk)]
        inertia += _assign_chunk(chunk, scores, centres, part, sums, counts)
    return inertia


@numba.njit(cache=True, nogil=True)
def nearer_dense(X: NDArray[np.floating[Any]], centre: Floats, distances: Floats) -> float:
    """distances[i] = min(distances[i], |x_i − centre|²); returns their sum."""
    total = 0.0
    for i in range(X.shape[0]):
        distance = 0.0
        for j in range(X.shape[1]):
            distance += (np.float64(X[i, j]) - centre[j]) ** 2
        distances[i] = min(distances[i], distance)
        total += distances[i]
    return total


@numba.njit(cache=True, nogil=True)
def nearer_sparse(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    data: NDArray[np.floating[Any]],
    centre: Floats,
    distances: Floats,
) -> float:
    """As `nearer_dense`, for rows in CSR form."""
    norm = (centre**2).sum()
    total = 0.0
    for i in range(len(distances)):
        distance = norm
        for at in range(indptr[i], indptr[i + 1]):
            x = np.float64(data[at])
            distance += x * x - 2.0 * x * centre[indices[at]]
        distances[i] = min(distances[i], max(0.0, distance))
        total += distances[i]
    return total
