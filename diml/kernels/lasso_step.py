"""One step of the published policies: a packed block of columns, updated once each.

Knows nothing of ranks or of how the block was picked.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from diml.kernels.lasso_block import Block, column_dot, subtract_column

Floats = NDArray[np.float64]


@numba.njit(cache=True, nogil=True)
def step_block(
    block: Block,
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
        if block.square[j] == 0.0:
            continue
        push = column_dot(block, r, shift, j)
        push += block.square[j] * beta[j]
        new = np.sign(push) * max(abs(push) - bound, 0.0) / (block.square[j] + ridge)
        step[j] = new - beta[j]
        if sequential and step[j] != 0.0:
            beta[j] = new
            shift = subtract_column(block, r, shift, j, step[j])
    if not sequential:
        for j in range(k):
            if step[j] != 0.0:
                beta[j] += step[j]
                shift = subtract_column(block, r, shift, j, step[j])
    return shift
