"""Cyclic coordinate descent for matrix factorization: one component at a time, entry by entry.

The residual e = a − Σ_k l_ik r_kj of every entry is kept. Knows nothing of ranks: sums are over the
entries given.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@numba.njit(cache=True, nogil=True)
def component_sums(
    mine: Integers, other: Integers, residual: Floats, own: Floats, fixed: Floats, out: Floats
) -> None:
    """out[0, i] += Σ (e + own_i · fixed_j) fixed_j and out[1, i] += Σ fixed_j² over entries (i, j).

    mine, other: (entries,) places in the vector that moves (`own`) and in the one that does not.
    """
    for e in range(len(residual)):
        i = mine[e]
        held = fixed[other[e]]
        out[0, i] += (residual[e] + own[i] * held) * held
        out[1, i] += held * held


@numba.njit(cache=True, nogil=True)
def move_component(
    mine: Integers, other: Integers, residual: Floats, step: Floats, fixed: Floats
) -> None:
    """e −= step_i · fixed_j for every entry (i, j)."""
    for e in range(len(residual)):
        residual[e] -= step[mine[e]] * fixed[other[e]]


@numba.njit(cache=True, nogil=True)
def residuals(
    rows: Integers, cols: Integers, values: NDArray[np.float32], L: Floats, R: Floats, out: Floats
) -> None:
    """out = a − Σ_k L[k, i] R[k, j]; L is (K, n_rows), R is (K, n_cols)."""
    for e in range(len(out)):
        total = np.float64(values[e])
        for k in range(L.shape[0]):
            total -= L[k, rows[e]] * R[k, cols[e]]
        out[e] = total
