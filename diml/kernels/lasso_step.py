"""One step of the published policies: a packed block of columns, updated once each.

Knows nothing of ranks or of how the block was picked. Forms of a block as in `lasso_block`.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from diml.kernels.lasso_block import column_dot, subtract_column

Floats = NDArray[np.float64]


@numba.njit(cache=True, nogil=True)
def step_block(
    form: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    values: Floats,
    mean: Floats,
    dense: Floats,
    square: Floats,
    bound: float,
    ridge: float,
    sequential: bool,
    beta: Floats,
    r: Floats,
) -> float:
    """Update every coefficient of the block once, in place, and r with them. Returns the shift.

    Jacobi: all from the same r, as STRADS and Shotgun do. Sequential: each from the r that the
    one before left (exact coordinate descent).
    """
    k = len(beta)
    shift = 0.0
    step = np.zeros(k)
    for j in range(k):
        if square[j] == 0.0:
            continue
        push = column_dot(form, indptr, indices, values, mean, dense, r, shift, j)
        push += square[j] * beta[j]
        new = np.sign(push) * max(abs(push) - bound, 0.0) / (square[j] + ridge)
        step[j] = new - beta[j]
        if sequential and step[j] != 0.0:
            beta[j] = new
            shift = subtract_column(
                form, indptr, indices, values, mean, dense, r, shift, j, step[j]
            )
    if not sequential:
        for j in range(k):
            if step[j] != 0.0:
                beta[j] += step[j]
                shift = subtract_column(
                    form, indptr, indices, values, mean, dense, r, shift, j, step[j]
                )
    return shift
