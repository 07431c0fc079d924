"""Minimise the Lasso over one block of stored columns: picks the form the kernel works in.

Knows nothing of ranks or of columns outside the block.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diml.kernels.lasso_block import DENSE, GRAM, SPARSE, solve_block
from diml.strads.store import Store

Floats = NDArray[np.float64]

_SWEEPS_MAX = 100_000
# With this many rows for each column of the block, a k × k Gram matrix pays for itself.
_ROWS_PER_COLUMN_FOR_GRAM = 10

_NO_INTS = np.empty(0, np.int64)
_NO_ROWS = np.empty(0, np.int32)
_NO_FLOATS = np.empty(0)
_NO_DENSE = np.empty((0, 0))


def solve(
    store: Store, ids: NDArray[np.int64], bound: float, tol: float, beta: Floats, r: Floats
) -> tuple[int, int]:
    """Minimise ½‖r‖² + Λ‖β‖₁ over the coefficients of `ids` to a duality gap of `tol`.

    Args:
        ids: stored columns, (k,). bound: Λ. beta: (k,), updated in place.
        r: (n,) residual at `beta`; left in an undefined state.

    Returns: (column visits, entries visited).
    """
    slots = store.slots(ids)
    k = len(ids)
    indptr, indices, values = _NO_INTS, _NO_ROWS, _NO_FLOATS
    dense = _NO_DENSE
    if store.sparse:
        form, entries = SPARSE, int(store.entries_of(ids).sum())
        indptr, indices, values = store.sparse_block(slots)
    elif k * _ROWS_PER_COLUMN_FOR_GRAM <= store.rows:
        form, entries = GRAM, k * k
        dense = store.gram_block(slots)
    else:
        form, entries = DENSE, k * store.rows
        dense = store.dense_block(slots)
    square0 = float(r @ r)
    state = store.correlate(slots, r) if form == GRAM else r
    _, _, visits, _ = solve_block(
        form,
        indptr,
        indices,
        values,
        store.mean[slots],
        dense,
        store.square[slots],
        bound,
        tol,
        _SWEEPS_MAX,
        square0,
        beta,
        state,
    )
    return int(visits), int(visits * (entries // max(k, 1)))
