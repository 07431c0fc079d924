"""The inner products of the columns of a tall dense design, in one pass over it.

Owns the order in which the entries are read: a block of rows stays in the cache until all products
have its part. Knows nothing of centring, scaling or λ. Sums are regrouped for speed, the same way
at every call.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_MATH = {"reassoc", "contract", "arcp", "nsz"}
_ROWS = 512  # of a block: 4 kB of a column
_TILE = 4


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def _tile(X: Floats, start: int, end: int, i: int, j: int, out: Floats) -> None:
    """out[i …, j …] += products of 4 columns with 4 over some rows, in 16 sums that stay in
    registers. Columns past the last stand for it; what they give lies past the edge of XᵀX."""
    last = X.shape[1] - 1
    a0, b0 = X[start:end, min(i, last)], X[start:end, min(j, last)]
    a1, b1 = X[start:end, min(i + 1, last)], X[start:end, min(j + 1, last)]
    a2, b2 = X[start:end, min(i + 2, last)], X[start:end, min(j + 2, last)]
    a3, b3 = X[start:end, min(i + 3, last)], X[start:end, min(j + 3, last)]
    s00 = s01 = s02 = s03 = 0.0
    s10 = s11 = s12 = s13 = 0.0
    s20 = s21 = s22 = s23 = 0.0
    s30 = s31 = s32 = s33 = 0.0
    for n in range(end - start):
        y0, y1, y2, y3 = b0[n], b1[n], b2[n], b3[n]
        x = a0[n]
        s00 += x * y0
        s01 += x * y1
        s02 += x * y2
        s03 += x * y3
        x = a1[n]
        s10 += x * y0
        s11 += x * y1
        s12 += x * y2
        s13 += x * y3
        x = a2[n]
        s20 += x * y0
        s21 += x * y1
        s22 += x * y2
        s23 += x * y3
        x = a3[n]
        s30 += x * y0
        s31 += x * y1
        s32 += x * y2
        s33 += x * y3
    out[i, j] += s00
    out[i, j + 1] += s01
    out[i, j + 2] += s02
    out[i, j + 3] += s03
    out[i + 1, j] += s10
    out[i + 1, j + 1] += s11
    out[i + 1, j + 2] += s12
    out[i + 1, j + 3] += s13
    out[i + 2, j] += s20
    out[i + 2, j + 1] += s21
    out[i + 2, j + 2] += s22
    out[i + 2, j + 3] += s23
    out[i + 3, j] += s30
    out[i + 3, j + 1] += s31
    out[i + 3, j + 2] += s32
    out[i + 3, j + 3] += s33


@numba.njit(cache=True, nogil=True, fastmath=_MATH)
def inner_products(X: Floats) -> Floats:
    """XᵀX, (p, p), of a Fortran-ordered X (n, p).

    BLAS copies both factors into its own order first, which for n ≫ p costs it a third more time.
    """
    rows, p = X.shape
    out = np.zeros((p + _TILE, p + _TILE))
    for start in range(0, rows, _ROWS):
        end = min(rows, start + _ROWS)
        for i in range(0, p, _TILE):
            for j in range(i, p, _TILE):
                _tile(X, start, end, i, j, out)
    for i in range(p):
        for j in range(i):
            out[i, j] = out[j, i]
    return out[:p, :p].copy()
