"""Seeded Lasso problems with known structure: what tests and benchmarks are run on.

Owns the generators only; knows nothing of solvers or of who holds which column. Everything
follows from the arguments: the same seed gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Planted:
    """A design with its response.

    Attributes:
        X: (n, p), CSC or Fortran-ordered dense, float64.
        y: (n,) float64.
        coef: (p,) float64, the coefficients that `y` was made from.
    """

    X: scipy.sparse.csc_matrix | NDArray[np.float64]
    y: NDArray[np.float64]
    coef: NDArray[np.float64]


def neighbour_correlated(rows: int = 500, cols: int = 1000, seed: int = 0) -> Planted:
    """The structure measured in the sample that STRADS ships.

    Every column has 20 non-zeros, sum 0 and norm 1. With probability 0.49 a column stands on the
    rows of the one before it and correlates with it by about 0.991; else its rows are fresh.
    `y` has norm 1.

    Raises:
        ValueError: with fewer than 20 rows.
    """
    per_column = 20
    if rows < per_column:
        raise ValueError(f"neighbour-correlated data need at least {per_column} rows, not {rows}")
    rng = np.random.default_rng(seed)
    indices = np.empty((cols, per_column), np.int32)
    values = np.empty((cols, per_column))
    for j in range(cols):
        if j > 0 and rng.random() < 0.49:
            indices[j] = indices[j - 1]
            column = values[j - 1] + rng.normal(0.0, 0.03, per_column)
        else:
            indices[j] = np.sort(rng.choice(rows, per_column, replace=False))
            column = rng.normal(size=per_column)
        column -= column.mean()
        values[j] = column / np.linalg.norm(column)
    indptr = np.arange(0, cols * per_column + 1, per_column, dtype=np.int64)
    X = scipy.sparse.csc_matrix((values.ravel(), indices.ravel(), indptr), shape=(rows, cols))
    coef = np.zeros(cols)
    chosen = rng.choice(cols, max(1, cols // 50), replace=False)
    coef[chosen] = rng.normal(size=len(chosen))
    y = X @ coef + rng.normal(0.0, 0.05, rows)
    scale = np.linalg.norm(y)
    return Planted(X, y / scale, coef / scale)


def text_like(
    rows: int = 16_000, cols: int = 300_000, nonzeros: int = 500_000, seed: int = 0
) -> Planted:
    """Sparse documents × terms: column counts by a power law, positive tf-idf-like values.

    About `nonzeros` entries are drawn (duplicates merge, so somewhat fewer are left). `y` comes
    from 1,000 terms, drawn in proportion to their counts, plus noise of a tenth
    of the signal's spread.
    """
    rng = np.random.default_rng(seed)
    weight = np.arange(1, cols + 1, dtype=np.float64) ** -0.8
    spare = max(nonzeros - cols, 0)
    counts = 1 + np.floor(spare * weight / weight.sum()).astype(np.int64)
    counts = np.minimum(rng.permutation(counts), rows // 2)
    owner = np.repeat(np.arange(cols, dtype=np.int32), counts)
    length = rng.lognormal(0.0, 0.6, rows)
    edges = np.cumsum(length / length.sum())
    place = np.minimum(np.searchsorted(edges, rng.random(len(owner))), rows - 1).astype(np.int32)
    tf = np.log1p(rng.geometric(0.5, len(owner))).astype(np.float64)
    X = scipy.sparse.coo_matrix((tf, (place, owner)), shape=(rows, cols)).tocsc()
    held = np.diff(X.indptr)
    X.data *= np.repeat(np.log(rows / np.maximum(held, 1)), held)
    X.data /= 10.0
    X.indptr = X.indptr.astype(np.int64)
    chance = np.maximum(held - 1, 0).astype(np.float64) + 1e-12
    support = rng.choice(cols, min(1000, cols), replace=False, p=chance / chance.sum())
    coef = np.zeros(cols)
    coef[support] = rng.normal(size=len(support))
    signal = X @ coef
    y = signal + rng.normal(0.0, signal.std() / 10.0, rows)
    return Planted(X, y, coef)


def expression_like(rows: int = 72, cols: int = 7_129, seed: int = 0) -> Planted:
    """Dense and p ≫ n, as the leukemia data: genes in correlated modules, labels ±1."""
    rng = np.random.default_rng(seed)
    modules = rng.normal(size=(rows, 40))
    loading = rng.normal(size=(40, cols)) * (rng.random((40, cols)) < 0.1)
    X = modules @ loading + rng.normal(0.0, 1.0, (rows, cols))
    X -= X.mean(axis=0)
    X /= np.maximum(X.std(axis=0), 1e-12)
    coef = np.zeros(cols)
    chosen = rng.choice(cols, 20, replace=False)
    coef[chosen] = rng.normal(size=20)
    y = np.sign(X @ coef + rng.normal(0.0, 0.5, rows))
    return Planted(np.asfortranarray(X), y, coef)


def tall(rows: int = 500_000, cols: int = 90, seed: int = 0) -> Planted:
    """Dense and n ≫ p, as the year-prediction data: neighbouring columns correlate by 0.6."""
    rng = np.random.default_rng(seed)
    X = np.empty((rows, cols), order="F")
    X[:, 0] = rng.normal(size=rows)
    for j in range(1, cols):
        X[:, j] = 0.6 * X[:, j - 1] + 0.8 * rng.normal(size=rows)
    coef = rng.normal(size=cols) * (rng.random(cols) < 0.5)
    signal = X @ coef
    y = signal + rng.normal(0.0, signal.std(), rows)
    return Planted(X, y, coef)
