"""Coordinate descent on one block of columns, run to a gap: the inner loop of the Lasso.

Minimises ½‖y − X̃β‖² + Λ‖β‖₁ + ½μ‖β‖² over the block (`bound` is Λ, `ridge` is μ) by cyclic sweeps,
every fifth one followed by Anderson extrapolation (Bertrand & Massias 2021, "Anderson acceleration
of coordinate descent"), kept only where it lowers the objective. The duality gap of the block is
taken from the residual; a ridge counts there as rows √μ·I below X̃ whose response is 0, so that
c_j = x̃_jᵀr − μβ_j.

`r` is the residual; where a block is held as its inner products, it is the correlations c = X̃ᵀr.
Knows nothing of ranks, files, or columns outside the block.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPARSE, DENSE, GRAM = 0, 1, 2
HISTORY = 5  # sweeps between two extrapolations
_MATH = {"reassoc", "contract", "arcp", "nsz"}

_NO_INTS, _NO_ROWS = np.empty(0, np.int64), np.empty(0, np.int32)
_NO_FLOATS, _NO_DENSE = np.empty(0), np.empty((0, 0))


class Block(NamedTuple):
    """Columns of X̃ for the kernels, k of them, in the form that `form` tells.

    Attributes:
        form: SPARSE: packed columns, means kept apart: r stays uncentred and `shift` is its mean,
            so x̃_jᵀr = x_jᵀr − n m_j shift. DENSE: centred columns. GRAM: inner products.
        indptr, indices, values: of the packed columns: (k + 1,), (m,), (m,).
        mean: m_j (k,) of the packed columns; 0 without centring.
        dense: (k, n), one column a row; or X̃ᵀX̃ (k, k).
        square: ‖x̃_j‖², (k,).
    """

    form: int
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: Floats
    mean: Floats
    dense: Floats
    square: Floats


def sparse_block(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    values: Floats,
    mean: Floats = _NO_FLOATS,
    square: Floats = _NO_FLOATS,
) -> Block:
    """A block of packed columns."""
    return Block(SPARSE, indptr, indices, values, mean, _NO_DENSE, square)


def dense_block(columns: Floats, square: Floats = _NO_FLOATS) -> Block:
    """A block of centred columns, (k, n)."""
    return Block(DENSE, _NO_INTS, _NO_ROWS, _NO_FLOATS, _NO_FLOATS, columns, square)


def gram_block(gram: Floats, square: Floats) -> Block:
    """A block of which only the inner products, (k, k), are known."""
    return Block(GRAM, _NO_INTS, _NO_ROWS, _NO_FLOATS, _NO_FLOATS, gram, square)


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def column_dot(block: Block, r: Floats, shift: float, j: int) -> float:
    """x̃_jᵀ r."""
    dot = 0.0
    if block.form == SPARSE:
        for k in range(block.indptr[j], block.indptr[j + 1]):
            dot += block.values[k] * r[block.indices[k]]
        return dot - len(r) * float(block.mean[j]) * shift
    if block.form == GRAM:
        return float(r[j])
    row = block.dense[j]
    for i in range(len(r)):
        dot += row[i] * r[i]
    return dot


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def subtract_column(
    block: Block,
    r: Floats,
    shift: float,
    j: int,
    step: float,
) -> float:
    """r −= step · x̃_j (in GRAM form: c −= step · X̃ᵀx̃_j). Returns the new shift."""
    if block.form == SPARSE:
        for k in range(block.indptr[j], block.indptr[j + 1]):
            r[block.indices[k]] -= step * block.values[k]
        return shift - step * float(block.mean[j])
    row = block.dense[j]
    for i in range(len(r)):
        r[i] -= step * row[i]
    return shift


@numba.njit(cache=True, nogil=True)
def _sweep(
    block: Block,
    bound: float,
    ridge: float,
    beta: Floats,
    r: Floats,
    shift: float,
    only_active: bool,
) -> tuple[float, int]:
    """One cyclic sweep of exact coordinate updates. Returns (shift, columns visited)."""
    visits = 0
    for j in range(len(beta)):
        old = beta[j]
        if block.square[j] == 0.0 or (only_active and old == 0.0):
            continue
        visits += 1
        push = column_dot(block, r, shift, j)
        push += block.square[j] * old
        if push > bound:
            new = (push - bound) / (block.square[j] + ridge)
        elif push < -bound:
            new = (push + bound) / (block.square[j] + ridge)
        else:
            new = 0.0
        if new != old:
            beta[j] = new
            shift = subtract_column(block, r, shift, j, new - old)
    return shift, visits


@numba.njit(cache=True, nogil=True)
def _solve_small(system: Floats, weight: Floats) -> bool:
    """Solve the (m, m + 1) system by Gaussian elimination with pivoting; False if singular."""
    m = len(weight)
    for a in range(m):
        pivot = a
        for b in range(a + 1, m):
            if abs(system[b, a]) > abs(system[pivot, a]):
                pivot = b
        if abs(system[pivot, a]) <= 1e-300:
            return False
        for c in range(m + 1):
            keep = system[a, c]
            system[a, c] = system[pivot, c]
            system[pivot, c] = keep
        for b in range(a + 1, m):
            factor = system[b, a] / system[a, a]
            for c in range(a, m + 1):
                system[b, c] -= factor * system[a, c]
    for a in range(m - 1, -1, -1):
        value = system[a, m]
        for b in range(a + 1, m):
            value -= system[a, b] * weight[b]
        weight[a] = value / system[a, a]
    return True


@numba.njit(cache=True, nogil=True)
def _extrapolate(history: Floats, out: Floats) -> bool:
    """Anderson's combination of the last iterates, (HISTORY + 1, k), into `out`.

    Solves min ‖Σ c_i d_i‖ with Σ c_i = 1 over the differences d_i of successive iterates, from
    the regularised normal equations. False where those are singular.
    """
    m = HISTORY
    k = history.shape[1]
    system = np.zeros((m, m + 1))
    largest = 0.0
    for a in range(m):
        for b in range(a + 1):
            dot = 0.0
            for i in range(k):
                dot += (history[a + 1, i] - history[a, i]) * (history[b + 1, i] - history[b, i])
            system[a, b] = dot
            system[b, a] = dot
        system[a, m] = 1.0
        largest = max(largest, system[a, a])
    if not largest > 0.0:
        return False
    for a in range(m):
        system[a, a] += 1e-12 * largest
    weight = np.zeros(m)
    if not _solve_small(system, weight):
        return False
    total = weight.sum()
    if abs(total) <= 1e-300 or not np.isfinite(total):
        return False
    for i in range(k):
        value = 0.0
        for a in range(m):
            value += weight[a] * history[a + 1, i]
        out[i] = value / total
    return True


@numba.njit(cache=True, nogil=True)
def _half_square(
    block: Block,
    r: Floats,
    shift: float,
    ridge: float,
    beta: Floats,
    start: Floats,
    c0: Floats,
    square0: float,
) -> float:
    """½‖r‖² + ½μ‖β‖². In GRAM form ‖r‖² = ‖r₀‖² − (β − β₀)ᵀ(c₀ + c)."""
    if block.form == GRAM:
        total = square0
        for j in range(len(beta)):
            total -= (beta[j] - start[j]) * (c0[j] + r[j])
        total = max(total, 0.0)
    else:
        total = 0.0
        for i in range(len(r)):
            total += (r[i] - shift) * (r[i] - shift)
    if ridge > 0.0:
        for j in range(len(beta)):
            total += ridge * beta[j] * beta[j]
    return 0.5 * total


@numba.njit(cache=True, nogil=True)
def _move(
    block: Block,
    beta: Floats,
    goal: Floats,
    r: Floats,
    shift: float,
) -> tuple[float, float, int]:
    """Bring r from `beta` to `goal`. Returns (shift, ‖goal‖₁, columns visited)."""
    l1 = 0.0
    visits = 0
    for j in range(len(beta)):
        l1 += abs(goal[j])
        step = goal[j] - beta[j]
        if step != 0.0:
            visits += 1
            shift = subtract_column(block, r, shift, j, step)
    return shift, l1, visits


@numba.njit(cache=True, nogil=True)
def _gap(
    block: Block,
    bound: float,
    ridge: float,
    half: float,
    l1: float,
    beta: Floats,
    r: Floats,
    shift: float,
) -> float:
    """Duality gap with the dual point s·r; half = ½‖r‖² + ½μ‖β‖²."""
    top = 0.0
    beta_c = 0.0
    for j in range(len(beta)):
        c = column_dot(block, r, shift, j) - ridge * beta[j]
        top = max(top, abs(c))
        beta_c += beta[j] * c
    s = min(1.0, bound / top) if top > 0.0 else 1.0
    primal = half + bound * l1
    dual = s * (2.0 * half + beta_c) - s * s * half
    return primal - dual


@numba.njit(cache=True, nogil=True)
def solve_block(
    block: Block,
    bound: float,
    ridge: float,
    tol: float,
    sweeps_max: int,
    history_length: int,
    square0: float,
    beta: Floats,
    r: Floats,
) -> tuple[float, float, int, int]:
    """Sweep until the block's gap is at most `tol` or `sweeps_max` is reached.

    A cycle is a sweep over all columns, `history_length` (HISTORY, or 0) over the non-zero ones, an
    extrapolation, and the gap. `beta` (k,) and `r` ((n,), in GRAM form (k,)) are updated in place;
    `square0` is ‖r‖² at the start (for GRAM). Returns (gap, shift, visits,
    sweeps); the caller subtracts `shift` from r.
    """
    k, shift, visits, sweeps = len(beta), 0.0, 0, 0
    start, trial = beta.copy(), np.empty(len(r))
    c0 = r.copy() if block.form == GRAM else np.empty(0)
    history, candidate = np.empty((HISTORY + 1, k)), np.empty(k)
    while True:
        shift, seen = _sweep(block, bound, ridge, beta, r, shift, False)
        visits += seen
        history[0] = beta
        for h in range(history_length):
            shift, seen = _sweep(block, bound, ridge, beta, r, shift, True)
            visits += seen
            history[h + 1] = beta
        sweeps += history_length + 1
        half = _half_square(block, r, shift, ridge, beta, start, c0, square0)
        l1 = np.abs(beta).sum()
        if history_length == HISTORY and _extrapolate(history, candidate):
            trial[:] = r
            trial_shift, trial_l1, seen = _move(block, beta, candidate, trial, shift)
            visits += seen
            trial_half = _half_square(
                block, trial, trial_shift, ridge, candidate, start, c0, square0
            )
            if trial_half + bound * trial_l1 < half + bound * l1:
                beta[:], r[:] = candidate, trial
                shift, half, l1 = trial_shift, trial_half, trial_l1
        visits += k
        gap = _gap(block, bound, ridge, half, l1, beta, r, shift)
        if gap <= tol or sweeps >= sweeps_max or not np.isfinite(gap):
            return gap, shift, visits, sweeps
