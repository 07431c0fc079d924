"""Logistic regression over a worker's rows in one pass: loss, hits and gradient.

Owns arithmetic over CSR arrays as `diml.kernels.logistic` does (indptr (n+1,), cols (nnz,), data
float64 (nnz,), y float64 (n,) of 0 and 1). Must not know who holds which rows. Sums run in the
order of the rows, so that the same rows give the same bits everywhere.
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
def add_loss_gradient(
    indptr: Ints, cols: Ints, data: Floats, y: Floats, w: Floats, g: Floats
) -> tuple[float, int]:
    """g += Σ_i (σ(z_i) − y_i)·x_i with z_i = x_i·w; returns the loss and the hits.

    The loss is Σ_i log(1 + e^z_i) − y_i z_i without overflow; a hit is a row with z_i > 0 exactly
    where y_i is 1.
    """
    loss, hits = 0.0, 0
    for i in range(len(y)):
        z = 0.0
        for j in range(indptr[i], indptr[i + 1]):
            z += data[j] * w[cols[j]]
        small = math.exp(-abs(z))  # never overflows
        loss += max(z, 0.0) - y[i] * z + math.log1p(small)
        hits += (z > 0) == (y[i] > 0.5)
        probability = 1.0 / (1.0 + small) if z >= 0 else small / (1.0 + small)
        residual = probability - y[i]
        for j in range(indptr[i], indptr[i + 1]):
            g[cols[j]] += residual * data[j]
    return loss, hits
