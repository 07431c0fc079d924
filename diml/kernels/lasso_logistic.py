"""Logistic loss over one block of columns: proximal Newton steps by coordinate descent.

Minimises Σ log(1 + exp(−t_i z_i)) + Λ‖β‖₁ + ½μ‖β‖² with z = Xβ + b and labels t_i = ±1 (Yuan, Ho &
Lin 2012, "An improved GLMNET for l1-regularized logistic regression"). Columns are used as they are
stored: b takes up any shift of them. Within a Newton step b is the best one for the coefficients at
every moment, which makes each column one without its weighted mean m_j = Σ w x_j / Σ w: with b as a
coordinate of its own, columns far from zero would move by tiny steps only.
Knows nothing of ranks, files, or columns outside the block.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from diml.kernels.lasso_block import SPARSE, Block

Floats = NDArray[np.float64]

_NEWTON_MAX = 100
_SWEEPS_MAX = 50
_SHARPER = 1e-3  # a Newton step is solved until a sweep moves so little of what its first one moved
_ARMIJO = 1e-4
_ROUNDING = 1e-13
_PATIENCE = 5  # steps without a better gap until it ends


@numba.njit(cache=True, nogil=True)
def logistic_residual(t: Floats, z: Floats, r: Floats) -> float:
    """r_i = t_i / (1 + exp(t_i z_i)), minus the gradient of the loss. Returns the loss."""
    loss = 0.0
    for i in range(len(z)):
        m = t[i] * z[i]
        tail = math.exp(-abs(m))
        loss += math.log1p(tail) + max(-m, 0.0)
        r[i] = t[i] * (tail if m > 0.0 else 1.0) / (1.0 + tail)
    return loss


@numba.njit(cache=True, nogil=True)
def best_intercept(t: Floats, z: Floats) -> float:
    """The shift of all z that minimises the loss, by Newton's method within a shrinking bracket."""
    low, high, shift = -1e3, 1e3, 0.0
    for _ in range(200):
        slope = 0.0
        curve = 0.0
        for i in range(len(z)):
            p = 1.0 / (1.0 + math.exp(min(max(t[i] * (z[i] + shift), -700.0), 700.0)))
            slope += t[i] * p
            curve += p * (1.0 - p)
        if abs(slope) <= 1e-13 * len(z):
            break
        if slope > 0.0:
            low = shift
        else:
            high = shift
        step = shift + slope / curve if curve > 0.0 else high + 1.0
        shift = step if low < step < high else 0.5 * (low + high)
        if high - low <= 1e-15 * (1.0 + abs(shift)):
            break
    return shift


@numba.njit(cache=True, nogil=True)
def logistic_dual(r: Floats, s: float) -> float:
    """−Σ u log u + (1 − u) log(1 − u) with u = s|r_i|: the dual objective at s·r."""
    total = 0.0
    for i in range(len(r)):
        u = min(s * abs(r[i]), 1.0)
        if 0.0 < u < 1.0:
            total -= u * math.log(u) + (1.0 - u) * math.log1p(-u)
    return total


@numba.njit(cache=True, nogil=True)
def _weighted(
    block: Block,
    r: Floats,
    weight: Floats,
    total: float,
    j: int,
) -> tuple[float, float, float]:
    """(x_jᵀr, Σ w (x_j − m_j)², m_j); m_j = Σ w x_j / total, or 0 where `total`, Σ w, is 0."""
    dot = 0.0
    curve = 0.0
    mean = 0.0
    if block.form == SPARSE:
        start, end = block.indptr[j], block.indptr[j + 1]
        there = 0.0
        for k in range(start, end):
            there += weight[block.indices[k]]
            mean += weight[block.indices[k]] * block.values[k]
        mean = mean / total if total > 0.0 else 0.0
        for k in range(start, end):
            i = block.indices[k]
            dot += block.values[k] * r[i]
            curve += weight[i] * (block.values[k] - mean) ** 2
        return dot, curve + max(total - there, 0.0) * mean * mean, mean
    row = block.dense[j]
    if total > 0.0:
        for i in range(len(r)):
            mean += weight[i] * row[i]
        mean /= total
    for i in range(len(r)):
        dot += row[i] * r[i]
        curve += weight[i] * (row[i] - mean) ** 2
    return dot, curve, mean


@numba.njit(cache=True, nogil=True)
def _slope(
    block: Block,
    weight: Floats,
    v: Floats,
    j: int,
) -> float:
    """Σ w x_j v."""
    dot = 0.0
    if block.form == SPARSE:
        for k in range(block.indptr[j], block.indptr[j + 1]):
            i = block.indices[k]
            dot += weight[i] * block.values[k] * v[i]
        return dot
    row = block.dense[j]
    for i in range(len(v)):
        dot += weight[i] * row[i] * v[i]
    return dot


@numba.njit(cache=True, nogil=True)
def _shift(
    block: Block,
    v: Floats,
    j: int,
    step: float,
) -> None:
    """v += step · x_j."""
    if block.form == SPARSE:
        for k in range(block.indptr[j], block.indptr[j + 1]):
            v[block.indices[k]] += step * block.values[k]
        return
    row = block.dense[j]
    for i in range(len(v)):
        v[i] += step * row[i]


@numba.njit(cache=True, nogil=True)
def _newton_step(
    block: Block,
    bound: float,
    ridge: float,
    total: float,
    r: Floats,
    weight: Floats,
    c: Floats,
    curve: Floats,
    mean: Floats,
    beta: Floats,
    goal: Floats,
    v: Floats,
) -> int:
    """Minimise the quadratic model over `goal` (begins at β) and b; v is the change of z.

    `total` is Σ w with an intercept, and 0 without one. Returns the column visits.
    """
    goal[:] = beta
    v[:] = 0.0
    slope_b = r.sum()
    pulled = 0.0  # Σ w v
    visits = 0
    first = -1.0
    for sweep in range(_SWEEPS_MAX):
        moved = 0.0
        for j in range(len(beta)):
            # Between full sweeps only what is not zero moves.
            if curve[j] == 0.0 or (sweep % 4 and goal[j] == 0.0):
                continue
            visits += 1
            h = curve[j] + ridge
            g = c[j] - ridge * goal[j] - mean[j] * (slope_b - pulled)
            g -= _slope(block, weight, v, j)
            push = g + h * goal[j]
            new = math.copysign(max(abs(push) - bound, 0.0), push) / h
            step = new - goal[j]
            if step != 0.0:
                goal[j] = new
                moved += h * step * step
                pulled += step * mean[j] * total
                _shift(block, v, j, step)
        if first < 0.0:
            first = moved
        if sweep % 4 == 0 and moved <= _SHARPER * first and (sweep > 0 or moved == 0.0):
            break
    if total > 0.0:
        v += (slope_b - (weight * v).sum()) / total
    return visits


@numba.njit(cache=True, nogil=True)
def _search(
    t: Floats,
    bound: float,
    ridge: float,
    primal: float,
    beta: Floats,
    goal: Floats,
    r: Floats,
    z: Floats,
    v: Floats,
    trial: Floats,
    ahead: Floats,
) -> float:
    """How much of a step to take (Armijo's rule), 0 where none helps; `trial` is z after it."""
    promised = -(r * v).sum()  # the decrease by first order: below 0 for a step that helps
    for j in range(len(beta)):
        promised += bound * (abs(goal[j]) - abs(beta[j]))
        promised += ridge * beta[j] * (goal[j] - beta[j])
    # Close to the optimum a step lowers the objective by less than rounding shows.
    noise = _ROUNDING * primal
    length = 1.0
    while length > 1e-9 and promised < noise:
        trial[:] = z + length * v
        value = logistic_residual(t, trial, ahead)
        for j in range(len(beta)):
            b = beta[j] + length * (goal[j] - beta[j])
            value += bound * abs(b) + 0.5 * ridge * b * b
        if value <= primal + _ARMIJO * length * min(promised, 0.0) + noise:
            return length
        length *= 0.5
    return 0.0


@numba.njit(cache=True, nogil=True)
def solve_logistic(
    block: Block,
    t: Floats,
    bound: float,
    ridge: float,
    intercept: bool,
    tol: float,
    beta: Floats,
    z: Floats,
) -> tuple[float, int]:
    """Newton steps with a line search until the block's gap is at most `tol`, or no step helps.

    `beta` (k,) and `z` (n,) are updated in place. Returns (gap, column visits).
    """
    k, n = len(beta), len(z)
    r, weight, v = np.empty(n), np.empty(n), np.empty(n)
    c, curve, mean, goal = np.empty(k), np.empty(k), np.empty(k), np.empty(k)
    trial, ahead = np.empty(n), np.empty(n)
    visits = 0
    gap, best, stalled = np.inf, np.inf, 0
    for _ in range(_NEWTON_MAX):
        if intercept:
            z += best_intercept(t, z)
        loss = logistic_residual(t, z, r)
        for i in range(n):
            weight[i] = abs(r[i]) * (1.0 - abs(r[i]))
        total = weight.sum() if intercept else 0.0
        top, square, l1, outside = 0.0, 0.0, 0.0, (r * z).sum()
        for j in range(k):
            c[j], curve[j], mean[j] = _weighted(block, r, weight, total, j)
            top = max(top, abs(c[j] - ridge * beta[j]))
            outside -= beta[j] * c[j]
            square += ridge * beta[j] * beta[j]
            l1 += abs(beta[j])
        visits += k
        s = min(1.0, bound / top) if top > 0.0 else 1.0
        primal = loss + bound * l1 + 0.5 * square
        # What columns outside the block add to z belongs to the loss: s·rᵀ of it to the dual.
        gap = primal - (logistic_dual(r, s) - s * outside - 0.5 * s * s * square)
        stalled = stalled + 1 if gap >= best else 0
        best = min(best, gap)
        if gap <= tol or stalled == _PATIENCE or not np.isfinite(gap):
            break
        visits += _newton_step(
            block, bound, ridge, total, r, weight, c, curve, mean, beta, goal, v
        )  # fmt: skip
        length = _search(t, bound, ridge, primal, beta, goal, r, z, v, trial, ahead)
        if length == 0.0:
            break
        z[:] = trial
        for j in range(k):
            beta[j] += length * (goal[j] - beta[j])
    return gap, visits
