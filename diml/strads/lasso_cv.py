"""Cross-validation of a path: folds, and pieces of their paths, shared out over the workers.

Each worker has all of X. The folds stand side by side on a line that is cut into equal pieces, one
for each worker: a worker solves whole folds by itself, and where a cut goes through a fold each
side solves its part of that path. So no worker waits for long, and none talks to another before the
end.

Owns who solves what, and the errors on the rows that a fold leaves out. Must not know where λ and
folds come from. A worker's part depends on the number of workers alone, so a replacement solves
what the dead one did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from diml.errors import Misuse
from diml.strads.columns import columns_of
from diml.strads.estimator import Regressor, checked_response, matrix
from diml.strads.lasso import solve_lasso
from diml.strads.lasso_models import Penalised
from diml.strads.lasso_problem import Grid, Solution, Standard, Stop, mean_of
from diml.strads.program import Alone, Collectives

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Fold = tuple[Integers, Integers]

_GROWTH = 2.0  # the last λ of a path costs so many times more than the first, beyond as much


def contiguous_folds(rows: int, count: int) -> list[Fold]:
    """(rows to fit, rows left out) of `count` folds of neighbouring rows, as scikit-learn's KFold.

    Raises:
        Misuse: fewer than two folds, or more than rows.
    """
    if not 2 <= count <= rows:
        raise Misuse(f"{count} folds cannot be made of n_samples = {rows}: from 2 to {rows} can")
    every = np.arange(rows)
    out = np.array_split(every, count)
    return [(np.setdiff1d(every, part, assume_unique=True), part) for part in out]


def share(folds: int, values: int, rank: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(fold, first λ, end of its λ) of what this worker solves."""
    cost = np.cumsum(1.0 + _GROWTH * np.arange(values) / values)
    edges = np.concatenate([[0.0], cost / cost[-1]])

    def place(cut: float) -> int:
        return int(np.argmin(np.abs(edges - cut)))

    start, end = rank * folds / size, (rank + 1) * folds / size
    for fold in range(int(start), int(np.ceil(end))):
        first = place(max(start - fold, 0.0))
        last = place(min(end - fold, 1.0))
        if last > first:
            yield fold, first, last


def cross_validate(
    X: Any,
    y: Floats,
    lambdas: Floats,
    folds: Sequence[Fold],
    stop: Stop,
    *,
    job: Collectives | None = None,
    loss: str = "squared",
    **options: Any,
) -> Floats:
    """Mean loss on the rows left out, (folds, len(lambdas)); the same on all workers.

    Args:
        X: (n, p), all of it on every worker. y: (n,), labels ±1 for the logistic loss.
        lambdas: falling. stop: for each λ. options: of `solve_lasso`.
    """
    job = job or Alone()
    if loss == "logistic":
        _check_classes(y, folds)
    rows = X.tocsr() if scipy.sparse.issparse(X) else X
    found = []
    for fold, first, last in share(len(folds), len(lambdas), job.rank, job.size):
        fit, out = folds[fold]
        design = rows[fit].tocsc() if scipy.sparse.issparse(X) else rows[fit]
        grid = Grid(lambdas=tuple(lambdas[first:last].tolist()))
        program = solve_lasso(columns_of(design), y[fit], grid, stop, loss=loss, **options)
        errors = _errors(rows[out], y[out], program.solutions, loss)
        found += [(fold, first + k, error) for k, error in enumerate(errors)]
    part = np.array(found, np.float64).reshape(-1, 3)
    table = np.empty((len(folds), len(lambdas)))
    everything = job.allgather(part)
    table[everything[:, 0].astype(np.int64), everything[:, 1].astype(np.int64)] = everything[:, 2]
    return table


def _check_classes(y: Floats, folds: Sequence[Fold]) -> None:
    """Raises Misuse for a fold whose rows to fit are of one class."""
    for number, (fit, _) in enumerate(folds, start=1):
        if len(np.unique(y[fit])) < 2:
            raise Misuse(
                f"without fold {number} all labels are of one class: take the rows in another order"
            )


def _errors(X: Any, y: Floats, solutions: Sequence[Solution], loss: str) -> Floats:
    """Mean squared error, or mean logistic loss, of each solution."""
    ends = np.concatenate([[0], np.cumsum([len(s.ids) for s in solutions])])
    ids = np.concatenate([s.ids for s in solutions])
    values = np.concatenate([s.values for s in solutions])
    coefs = scipy.sparse.csc_matrix((values, ids, ends), shape=(X.shape[1], len(solutions)))
    z = X @ coefs
    z = z.toarray() if scipy.sparse.issparse(z) else np.asarray(z)
    z += np.array([s.intercept for s in solutions])
    if loss == "logistic":
        return np.asarray(np.logaddexp(0.0, -y[:, None] * z).mean(axis=0))
    return np.asarray(((y[:, None] - z) ** 2).mean(axis=0))


def lambda_grid(
    X: Any,
    y: Floats,
    ratios: Floats,
    *,
    loss: str = "squared",
    intercept: bool = True,
    standardise: bool = False,
    l1_ratio: float = 1.0,
) -> Floats:
    """λmax times `ratios`, falling; λmax is the smallest λ at which all coefficients are 0.

    Raises:
        Misuse: no column can be used, or y is constant (with an intercept; or 0).
    """
    response = 0.5 * y if loss == "logistic" else y
    if intercept:
        response = response - mean_of(response)
    first = Standard(columns_of(X), response, intercept, standardise).first
    top = float(np.abs(first).max(initial=0.0)) / len(y) / l1_ratio
    if not response.any():
        raise Misuse("y is constant: there is nothing to fit")
    if top == 0.0:
        raise Misuse("X is all zero (or constant, with an intercept): there is nothing to fit")
    return np.sort(top * ratios)[::-1].copy()


class LassoCV(Penalised, Regressor):
    """The Lasso at the λ whose mean squared error over the folds is least.

    Args:
        eps, n_alphas: the grid, from λmax to eps·λmax on a log scale; or alphas: the grid itself.
        cv: number of folds of neighbouring rows, or pairs (rows to fit, rows left out), or an
            object whose `split(X, y)` gives them.
        Others as `Lasso`; in a job, folds and pieces of their paths are shared out over workers.

    Attributes after `fit`: alpha_, alphas_ (N,) falling, mse_path_ (N, folds), and those of `Lasso`
    for a fit to all rows at alpha_.
    """

    def __init__(
        self,
        *,
        eps: float = 1e-3,
        n_alphas: int = 100,
        alphas: ArrayLike | None = None,
        cv: Any = 5,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        job: Any = None,
    ) -> None:
        self.eps = eps
        self.n_alphas = n_alphas
        self.alphas = alphas
        self.cv = cv
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.job = job

    def fit(self, X: Any, y: ArrayLike) -> LassoCV:
        """Choose λ, then fit to all of X (n, p), NumPy or SciPy sparse, and y (n,).

        Raises:
            ValueError: data or parameters that cannot be used.
            TypeError: X holds objects that are not numbers.
        """
        self._remember_features(X)
        try:
            X = matrix(X)
            self.n_features_in_ = int(X.shape[1])
            y = checked_response(y, X.shape[0])
            folds = self._folds(X, y)
            self.alphas_ = self._grid(X, y)
            self.mse_path_ = self._validated(X, y, folds).T.copy()
            self.alpha_ = float(self.alphas_[np.argmin(self.mse_path_.mean(axis=1))])
            solution = self._fit(X, y, self.alpha_)
        except Misuse as error:
            raise ValueError(str(error)) from None
        self.coef_ = solution.dense(self.n_features_in_)
        self.intercept_ = solution.intercept
        return self

    def _grid(self, X: Any, y: Floats) -> Floats:
        if self.alphas is not None:
            return np.sort(np.array(self.alphas, np.float64))[::-1].copy()
        ratios = np.geomspace(1.0, self.eps, self.n_alphas)
        return lambda_grid(X, y, ratios, intercept=bool(self.fit_intercept))

    def _folds(self, X: Any, y: Floats) -> list[Fold]:
        if isinstance(self.cv, (int, np.integer)):
            return contiguous_folds(len(y), int(self.cv))
        return list(self.cv.split(X, y) if hasattr(self.cv, "split") else self.cv)

    def _validated(self, X: Any, y: Floats, folds: list[Fold]) -> Floats:
        job = self.job or Alone()
        errors: Floats = job.parts.once(
            "",
            lambda: cross_validate(
                X,
                y,
                self.alphas_,
                folds,
                Stop(float(self.tol), int(self.max_iter)),
                job=job,
                intercept=bool(self.fit_intercept),
            ),
        )
        return errors
