"""Logistic regression over sparse rows: margins, losses, gradients.

Owns arithmetic over CSR arrays (indptr (n+1,) int64, cols int32 or int64, data float64); labels
y are 0 or 1. Knows nothing of who holds which rows. Sums run in the order of the rows, so that
the same rows give the same bits everywhere.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[Any]
Floats: TypeAlias = NDArray[np.float64]


@njit(cache=True, nogil=True)
def _margin(indptr: Ints, cols: Ints, data: Floats, w: Floats, i: int) -> float:
    z = 0.0
    for j in range(indptr[i], indptr[i + 1]):
        z += data[j] * w[cols[j]]
    return z


@njit(cache=True, nogil=True)
def gradient_sum(indptr: Ints, cols: Ints, data: Floats, y: Floats, w: Floats, g: Floats) -> None:
    """g += Σ_i (σ(x_i·w) − y_i)·x_i, the gradient of Σ_i log(1 + e^z) − y_i z, z = x_i·w."""
    for i in range(len(y)):
        residual = 1.0 / (1.0 + math.exp(-_margin(indptr, cols, data, w, i))) - y[i]
        for j in range(indptr[i], indptr[i + 1]):
            g[cols[j]] += residual * data[j]


@njit(cache=True, nogil=True)
def loss_and_hits(
    indptr: Ints, cols: Ints, data: Floats, y: Floats, w: Floats
) -> tuple[float, int]:
    """Σ_i log(1 + e^z) − y_i z without overflow, and how many rows are classified rightly."""
    loss, hits = 0.0, 0
    for i in range(len(y)):
        z = _margin(indptr, cols, data, w, i)
        loss += max(z, 0.0) - y[i] * z + math.log1p(math.exp(-abs(z)))
        hits += (z > 0) == (y[i] > 0.5)
    return loss, hits
