"""Update rules, one step of each over the rows of a message.

Owns the arithmetic of the rules. Knows arrays only. In all of them w (n, k) are the values,
`s` (n, slots·k) their state, `ids - base` the rows, g (m, k) the gradients, t the step from 1 on,
and `o` the numbers of the rule in the order of `diml.ps.rules`. A row stands once in `ids`;
one that is not there raises IndexError.

`l1` and `l2` are the weights of λ₁‖w‖₁ + λ₂‖w‖²/2, applied to the rows that an update touches:
λ₂ by the gradient, λ₁ by the soft threshold, both with the step size of the update.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from diml.kernels.rows import check_rows, place_of

Rows: TypeAlias = NDArray[Any]
Ids: TypeAlias = NDArray[np.int64]
Options: TypeAlias = NDArray[np.float64]


@njit(cache=True, nogil=True)
def _shrunk(w: float, by: float) -> float:
    """The proximal step of by·|w|."""
    if w > by:
        return w - by
    if w < -by:
        return w + by
    return 0.0


@njit(cache=True, nogil=True)
def sgd(w: Rows, s: Rows, base: int, ids: Ids, g: Rows, t: int, o: Options) -> None:
    """w -= η(t)·g with η(t) = x·(y+t)^(-z). o = x, y, z, l1, l2 (Petuum's step size)."""
    eta = o[0] * (o[1] + t) ** -o[2]
    check_rows(ids, g, w.shape[1])
    for i in range(ids.shape[0]):
        row = place_of(ids[i], base, w.shape[0])
        for k in range(w.shape[1]):
            moved = w[row, k] - eta * (g[i, k] + o[4] * w[row, k])
            w[row, k] = _shrunk(moved, eta * o[3])


@njit(cache=True, nogil=True)
def adagrad(w: Rows, s: Rows, base: int, ids: Ids, g: Rows, t: int, o: Options) -> None:
    """z += g², w -= x/√z·g (Duchi, Hazan, Singer 2011). o = x, l1, l2; s = z."""
    check_rows(ids, g, w.shape[1])
    for i in range(ids.shape[0]):
        row = place_of(ids[i], base, w.shape[0])
        for k in range(w.shape[1]):
            slope = g[i, k] + o[2] * w[row, k]
            s[row, k] += slope * slope
            if s[row, k] > 0:
                eta = o[0] / math.sqrt(s[row, k])
                w[row, k] = _shrunk(w[row, k] - eta * slope, eta * o[1])


@njit(cache=True, nogil=True)
def adarevision(w: Rows, s: Rows, base: int, ids: Ids, g: Rows, t: int, o: Options) -> None:
    """AdaGrad that corrects for delay (McMahan and Streeter 2014). o = x; s = G, z, z'.

    g is (m, 2k): the gradient, then G as it was when the worker read the row. With b = G - G_read:
    z += g(g + 2b), z' = max(z', z), η = x/√z', w += -ηg + (η_before - η)b, G += g.
    """
    width = w.shape[1]
    check_rows(ids, g, 2 * width)
    for i in range(ids.shape[0]):
        row = place_of(ids[i], base, w.shape[0])
        for k in range(width):
            slope = g[i, k]
            late = s[row, k] - g[i, width + k]
            before = s[row, 2 * width + k]
            s[row, width + k] += slope * (slope + 2 * late)
            s[row, 2 * width + k] = max(before, s[row, width + k])
            s[row, k] += slope
            if s[row, 2 * width + k] > 0:
                eta = o[0] / math.sqrt(s[row, 2 * width + k])
                eta_before = o[0] / math.sqrt(before) if before > 0 else eta
                w[row, k] += (eta_before - eta) * late - eta * slope


@njit(cache=True, nogil=True)
def ftrl(w: Rows, s: Rows, base: int, ids: Ids, g: Rows, t: int, o: Options) -> None:
    """FTRL-Proximal (McMahan et al., KDD 2013, algorithm 1). o = α, β, l1, l2; s = z, n.

    w is a function of z and n: start values other than zero are left at the first update.
    """
    width = w.shape[1]
    check_rows(ids, g, width)
    for i in range(ids.shape[0]):
        row = place_of(ids[i], base, w.shape[0])
        for k in range(width):
            slope = g[i, k]
            n = s[row, width + k]
            n_after = n + slope * slope
            s[row, k] += slope - (math.sqrt(n_after) - math.sqrt(n)) / o[0] * w[row, k]
            s[row, width + k] = n_after
            z = s[row, k]
            if abs(z) <= o[2]:
                w[row, k] = 0.0
            else:
                w[row, k] = -_shrunk(z, o[2]) / ((o[1] + math.sqrt(n_after)) / o[0] + o[3])
