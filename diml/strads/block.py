"""Minimise the Lasso over one block of stored columns: picks the form the kernel works in.

Owns the choice between sweeping over data and over inner products. Where the inner products of the
non-zero columns are known, a sparse block alternates one sweep over its data with a minimisation
over those columns that touches no data at all. Knows nothing of ranks, or of columns outside the
block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diml.kernels import lasso as passes
from diml.kernels.lasso_block import HISTORY, dense_block, gram_block, solve_block, sparse_block
from diml.strads.products import Products
from diml.strads.store import Store

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_SWEEPS_MAX = 100_000
# With this many rows for each column of the block, a k × k Gram matrix pays for itself.
_ROWS_PER_COLUMN_FOR_GRAM = 10
_SHARPER = 0.1  # the inner minimisation goes to this part of the block's goal
_COVERED = 0.9  # of the non-zero columns: from here on data are swept only once a cycle
_VISITS_MAX = 100_000  # of each column


class Penalty(NamedTuple):
    """Λ‖β‖₁ + ½μ‖β‖²."""

    bound: float
    ridge: float

    def square(self, beta: Floats) -> float:
        """½μ‖β‖²; without a ridge 0, also where ‖β‖² is infinite."""
        return 0.5 * self.ridge * float(beta @ beta) if self.ridge else 0.0


class Spent(NamedTuple):
    """What a block cost: column visits, numbers touched, and those of them in the data; `over` is
    False where it stopped because more inner products pay now."""

    visits: int
    touched: int
    swept: int
    over: bool = True


def solve(
    store: Store,
    products: Products,
    ids: Integers,
    penalty: Penalty,
    tol: float,
    beta: Floats,
    r: Floats,
) -> Spent:
    """Minimise ½‖r‖² + Λ‖β‖₁ + ½μ‖β‖² over the coefficients of `ids` to a duality gap of `tol`.

    Args:
        products: inner products of some of the columns (sparse blocks only).
        ids: stored columns, (k,). penalty: Λ and μ. beta: (k,), updated in place.
        r: (n,) residual at `beta`; left in an undefined state.
    """
    if store.sparse:
        return _solve_sparse(store, products, ids, penalty, tol, beta, r)
    slots = store.slots(ids)
    k = len(ids)
    if k * _ROWS_PER_COLUMN_FOR_GRAM <= store.rows:
        square0 = float(r @ r)
        c = store.correlate(slots, r)
        gram = store.gram_block(slots)
        visits = solve_products(gram, store.square[slots], penalty, tol, square0, beta, c)
        return Spent(visits, visits * k, 0)
    columns = dense_block(store.dense_block(slots), store.square[slots])
    _, _, visits, _ = solve_block(columns, *penalty, tol, _SWEEPS_MAX, HISTORY, 0.0, beta, r)
    return Spent(int(visits), int(visits) * store.rows, int(visits) * store.rows)


def solve_products(
    gram: Floats,
    square: Floats,
    penalty: Penalty,
    tol: float,
    square0: float,
    beta: Floats,
    c: Floats,
) -> int:
    """Minimise over columns of which only inner products are used. Returns the column visits."""
    inner = gram_block(gram, square)
    _, _, visits, _ = solve_block(inner, *penalty, tol, _SWEEPS_MAX, HISTORY, square0, beta, c)
    return int(visits)


def _solve_sparse(
    store: Store,
    products: Products,
    ids: Integers,
    penalty: Penalty,
    tol: float,
    beta: Floats,
    r: Floats,
) -> Spent:
    slots = store.slots(ids)
    mean, square = store.mean[slots], store.square[slots]
    indptr, indices, values = store.sparse_block(slots)
    columns = sparse_block(indptr, indices, values, mean, square)
    known = products.holds(ids)
    each = len(values) // max(len(ids), 1) + 1
    visits = touched = swept = 0
    over = False
    while not over:
        live = np.flatnonzero(beta)
        if len(products.wanted(store, ids[live], swept)):
            break
        some = live[known[live]]
        covered = len(some) > 0 and len(some) >= _COVERED * len(live)
        if len(some):
            c = np.empty(len(some))
            passes.sparse_correlate_some(indptr, indices, values, some, r, c)
            part = beta[some]
            gram = products.block(ids[some])
            seen = solve_products(
                gram, square[some], penalty, _SHARPER * tol, float(r @ r), part, c
            )
            step = part - beta[some]
            passes.sparse_subtract(indptr, indices, values, some, step, r)
            r += float(mean[some] @ step)
            beta[some] = part
            visits += seen + 2 * len(some)
            touched += seen * len(some)
            swept += 2 * len(some) * each
        history = 0 if covered else HISTORY
        gap, shift, swept_columns, _ = solve_block(columns, *penalty, tol, 1, history, 0.0, beta, r)
        visits += int(swept_columns)
        swept += int(swept_columns) * each
        over = gap <= tol or not np.isfinite(gap) or visits > _VISITS_MAX * len(ids)
        r -= shift
    return Spent(visits, touched + swept, swept, over)
