"""The factors of a finished factorization as the rows of two matrices whose product is the model.

Owns what stands for biases, and for rows and columns that had no training entries. Must not know
where the factors are kept, or what becomes of the rows: it takes whatever gives rows by number.

Invariant: rows are made a chunk at a time, so that factors larger than memory pass through.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diml.jobs.mf_data import Facts
from diml.jobs.mf_model import Rule

_ROWS_AT_ONCE = 1 << 16

Chunks = Iterator[npt.NDArray[Any]]


class Held:
    """A factor in memory, with the face of a table."""

    def __init__(self, rows: npt.NDArray[np.float32]) -> None:
        self._rows = rows

    def get(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Rows by id."""
        return self._rows[ids]


class Factors(NamedTuple):
    """What the result is read from: tables, or arrays in memory (`Held`).

    left has rows of k numbers and, with biases, b_i; side c_j first (None where there is none).
    """

    left: Any
    right: Any
    side: Any


def factor_rows(
    table: Any, rows: int, at_once: int, ids: npt.NDArray[np.int64] | None = None
) -> Iterator[npt.NDArray[Any]]:
    """All rows of a table, a chunk at a time; where row i of it is ids[i] to the user, by that."""
    order = np.arange(rows) if ids is None else np.argsort(ids)
    for low in range(0, rows, at_once):
        yield table.get(order[low : low + at_once])


def product(factors: Factors, rule: Rule, facts: Facts, most: int = 0) -> tuple[Chunks, Chunks]:
    """Rows of L and R whose product is the model, chunk by chunk: `most` rows each, 0 for many.

    With biases a row of L is (L_i, mean + b_i, 1) and one of R is (R_j, 1, c_j). Without, a row or
    column that has no training entries is such that its products come as near to the training
    mean, which is predicted there, as K numbers can bring them.
    """
    n_rows, n_cols, most = facts.n_rows, facts.n_cols, most or _ROWS_AT_ONCE
    left = factor_rows(factors.left, n_rows, most, facts.row_ids)
    right = factor_rows(factors.right, n_cols, most, facts.col_ids)
    if rule.biased:
        mean, k = facts.mean, rule.k
        left = (np.insert(rows + mean * (np.arange(k + 1) == k), k + 1, 1, 1) for rows in left)
        sides = factor_rows(factors.side, n_cols, most, facts.col_ids)
        pairs = zip(right, sides, strict=True)
        right = (np.column_stack([rows, np.ones(len(rows)), side[:, 0]]) for rows, side in pairs)
    else:
        cold_row = nearest_to(facts.mean, factor_rows(factors.right, n_cols, most))
        cold_col = nearest_to(facts.mean, factor_rows(factors.left, n_rows, most))
        left = (filled(rows, cold_row) for rows in left)
        right = (filled(rows, cold_col) for rows in right)
    return left, right


def nearest_to(mean: float, chunks: Iterator[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
    """The vector x (k,) that least squares finds for x . row = mean over all rows but zeros."""
    gram: Any = 0.0
    total: Any = 0.0
    for rows in chunks:
        wide = rows.astype(np.float64)
        gram = gram + wide.T @ wide
        total = total + wide.sum(axis=0)
    solution: npt.NDArray[np.float64] = np.linalg.lstsq(gram, mean * total)[0]
    return solution


def filled(rows: npt.NDArray[Any], cold: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The rows, with `cold` where all is zero: no training entry has ever moved those."""
    untouched = np.all(rows == 0, axis=1, keepdims=True)
    return np.where(untouched, cold, rows)
