"""Stochastic gradient descent for matrix factorization, M ~ L R^T, entry by entry.

Owns the update rules and their sums of squares; knows arrays only. Must not know who owns which
rows, nor in which order entries come: it takes them as they stand. All kernels release the
interpreter lock and are cached on disk. Steps that are too large end in NaN, never in an
exception.

The model of the entry (i, j) is mean + b_i + c_j + L_i . R_j with biases and L_i . R_j without;
e is the value less the model. With step eta, every rule moves L_i, R_j, b_i and c_j at once, each
from the values before the update:

    petuum   L_i += -eta (-2 e R_j + 2 lambda L_i)       Boesen's MF: lambda in full at each entry
    nnz      the same, lambda divided by the entries of row i (for R_j: of column j)
    adagrad  g = e R_j - lambda L_i;  L_i += 2 eta g / sqrt(1 + G_i);  G_i += |g|^2 / K

adagrad (Duchi et al. 2011, one accumulator a row as in LIBMF) holds G for rows and for columns;
biases share the step of their row or column.

An entry's rows of L and R are fetched into the cache _AHEAD entries before they are needed: where
a cell has few entries a row, that saves up to a third of the time. Rows that begin at cache lines
(`diml.data.memory`) save a fifth: of K = 32 numbers two lines are touched then, else three.

Common arguments: rows, cols int32 (n,) and values float32 (n,); left (rows, K) and right
(cols, K) float32, C-contiguous, changed in place; row_bias (rows,), col_bias (cols,) float32,
changed in place where `biased`, else of any length; mean float32; eta2 = 2 eta float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

_LINE_BYTES = 64
# Entries between the fetching of a row and its use: 16 is best here for K = 32, 8 and 32 near it.
_AHEAD = 16


def _fetching(typing: Any, factors: Any, row: Any) -> Any:
    """Ask for the cache lines of a row of a C-contiguous float32 (n, K), to be written to."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, index = signature.args
        array = context.make_array(kind)(context, builder, arguments[0])
        number, flag, pointer = ir.IntType(64), ir.IntType(32), ir.IntType(8).as_pointer()
        width = builder.extract_value(array.strides, 0)
        start = builder.add(
            builder.ptrtoint(array.data, number),
            builder.mul(context.cast(builder, arguments[1], index, types.int64), width),
        )
        call = builder.module.declare_intrinsic(
            "llvm.prefetch", (pointer,), ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag])
        )
        # For writing, to stay in all caches, data (not instructions).
        how = [ir.Constant(flag, word) for word in (1, 3, 1)]
        zero, line = ir.Constant(number, 0), ir.Constant(number, _LINE_BYTES)
        with cgutils.for_range_slice(builder, zero, width, line) as (offset, _):
            builder.call(call, [builder.inttoptr(builder.add(start, offset), pointer), *how])
        return context.get_dummy_value()

    return types.void(factors, row), generate


_fetch: Any = intrinsic(_fetching)


@njit(fastmath=True, error_model="numpy", nogil=True, cache=True)
def sgd_petuum(
    rows: Ids,
    cols: Ids,
    values: Floats,
    left: Floats,
    right: Floats,
    row_bias: Floats,
    col_bias: Floats,
    biased: bool,
    mean: np.float32,
    eta2: np.float32,
    decay: np.float32,
) -> None:
    """One pass; `decay` is lambda."""
    keep = np.float32(1) - eta2 * decay
    last = values.shape[0] - 1
    for n in range(values.shape[0]):
        ahead = min(n + _AHEAD, last)
        _fetch(left, rows[ahead])
        _fetch(right, cols[ahead])
        i, j = rows[n], cols[n]
        l, r = left[i], right[j]
        product = np.float32(0)
        for k in range(l.shape[0]):
            product += l[k] * r[k]
        error = values[n] - product
        if biased:
            error -= mean + row_bias[i] + col_bias[j]
        pull = eta2 * error
        for k in range(l.shape[0]):
            x, y = l[k], r[k]
            l[k] = x * keep + pull * y
            r[k] = y * keep + pull * x
        if biased:
            row_bias[i] = row_bias[i] * keep + pull
            col_bias[j] = col_bias[j] * keep + pull


@njit(fastmath=True, error_model="numpy", nogil=True, cache=True)
def sgd_nnz(
    rows: Ids,
    cols: Ids,
    values: Floats,
    left: Floats,
    right: Floats,
    row_bias: Floats,
    col_bias: Floats,
    biased: bool,
    mean: np.float32,
    eta2: np.float32,
    row_decay: Floats,
    col_decay: Floats,
) -> None:
    """One pass; row_decay (rows,) and col_decay (cols,) are lambda / entries."""
    one = np.float32(1)
    last = values.shape[0] - 1
    for n in range(values.shape[0]):
        ahead = min(n + _AHEAD, last)
        _fetch(left, rows[ahead])
        _fetch(right, cols[ahead])
        i, j = rows[n], cols[n]
        l, r = left[i], right[j]
        product = np.float32(0)
        for k in range(l.shape[0]):
            product += l[k] * r[k]
        error = values[n] - product
        if biased:
            error -= mean + row_bias[i] + col_bias[j]
        pull = eta2 * error
        row_keep, col_keep = one - eta2 * row_decay[i], one - eta2 * col_decay[j]
        for k in range(l.shape[0]):
            x, y = l[k], r[k]
            l[k] = x * row_keep + pull * y
            r[k] = y * col_keep + pull * x
        if biased:
            row_bias[i] = row_bias[i] * row_keep + pull
            col_bias[j] = col_bias[j] * col_keep + pull


@njit(fastmath=True, error_model="numpy", nogil=True, cache=True)
def sgd_adagrad(
    rows: Ids,
    cols: Ids,
    values: Floats,
    left: Floats,
    right: Floats,
    row_bias: Floats,
    col_bias: Floats,
    biased: bool,
    mean: np.float32,
    eta2: np.float32,
    decay: np.float32,
    row_sum: Floats,
    col_sum: Floats,
) -> None:
    """One pass; row_sum (rows,) and col_sum (cols,) are the accumulators G, changed in place."""
    one = np.float32(1)
    share = one / np.float32(left.shape[1])
    last = values.shape[0] - 1
    for n in range(values.shape[0]):
        ahead = min(n + _AHEAD, last)
        _fetch(left, rows[ahead])
        _fetch(right, cols[ahead])
        i, j = rows[n], cols[n]
        l, r = left[i], right[j]
        product = np.float32(0)
        for k in range(l.shape[0]):
            product += l[k] * r[k]
        error = values[n] - product
        if biased:
            error -= mean + row_bias[i] + col_bias[j]
        row_eta2 = eta2 / np.sqrt(one + row_sum[i])
        col_eta2 = eta2 / np.sqrt(one + col_sum[j])
        row_square, col_square = np.float32(0), np.float32(0)
        for k in range(l.shape[0]):
            x, y = l[k], r[k]
            row_pull, col_pull = error * y - decay * x, error * x - decay * y
            row_square += row_pull * row_pull
            col_square += col_pull * col_pull
            l[k] = x + row_eta2 * row_pull
            r[k] = y + col_eta2 * col_pull
        row_sum[i] += row_square * share
        col_sum[j] += col_square * share
        if biased:
            row_bias[i] += row_eta2 * (error - decay * row_bias[i])
            col_bias[j] += col_eta2 * (error - decay * col_bias[j])


@njit(fastmath={"contract", "reassoc"}, nogil=True, cache=True)
def squared_error(
    rows: Ids,
    cols: Ids,
    values: Floats,
    left: Floats,
    right: Floats,
    row_bias: Floats,
    col_bias: Floats,
    biased: bool,
    mean: np.float32,
) -> float:
    """Sum of e^2 over the entries, summed in float64. NaN or infinity once the factors are."""
    total = 0.0
    last = values.shape[0] - 1
    for n in range(values.shape[0]):
        ahead = min(n + _AHEAD, last)
        _fetch(left, rows[ahead])
        _fetch(right, cols[ahead])
        i, j = rows[n], cols[n]
        l, r = left[i], right[j]
        product = np.float32(0)
        for k in range(l.shape[0]):
            product += l[k] * r[k]
        error = np.float64(values[n]) - product
        if biased:
            error -= mean + row_bias[i] + col_bias[j]
        total += error * error
    return total


@njit(fastmath={"contract", "reassoc"}, nogil=True, cache=True)
def weighted_square(factors: Floats, weights: npt.NDArray[np.float64]) -> float:
    """Sum over rows of weights[i] |factors[i]|^2, in float64. Shapes (n, K) and (n,)."""
    total = 0.0
    for i in range(factors.shape[0]):
        square = 0.0
        for k in range(factors.shape[1]):
            square += np.float64(factors[i, k]) * np.float64(factors[i, k])
        total += weights[i] * square
    return total


def warm_up() -> None:
    """Compile all kernels, or load them from the cache, so that no timed step waits for it."""
    ids, values = np.zeros(1, np.int32), np.zeros(1, np.float32)
    left, right = np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32)
    zero = np.float32(0)
    common = (ids, ids, values, left, right, values.copy(), values.copy(), True, zero)
    sgd_petuum(*common, zero, zero)
    sgd_nnz(*common, zero, values, values)
    sgd_adagrad(*common, zero, zero, values.copy(), values.copy())
    squared_error(*common)
    weighted_square(left, np.zeros(1))
