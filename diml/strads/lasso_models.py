"""The Lasso, the elastic net and sparse logistic regression as estimators.

Owns the translation between users' arrays and a Lasso program. Works without mpirun; inside a job,
`fit` is called by all workers with the same X and y, and each keeps only its own columns of X.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from diml.errors import Misuse
from diml.strads.columns import columns_of
from diml.strads.estimator import (
    Classifier,
    ConvergenceWarning,
    LinearModel,
    Regressor,
    checked_labels,
    checked_response,
    matrix,
)
from diml.strads.lasso import solve_lasso
from diml.strads.lasso_problem import Grid, Solution, Stop

Floats = NDArray[np.float64]


class Penalised(LinearModel):
    """What the models of one λ share. Attributes after `fit` are listed at `Lasso`."""

    fit_intercept: bool
    tol: float
    max_iter: int
    warm_start = False
    job: Any

    def _fit(self, X: Any, y: Floats, alpha: float, **options: Any) -> Solution:
        """Solve for a checked design, (n, p), and response."""
        if not (np.isreal(alpha) and np.isfinite(alpha) and alpha > 0.0):
            raise Misuse(f"alpha must be a positive number, not {alpha!r}")
        part, parts = (0, 1) if self.job is None else (self.job.rank, self.job.size)
        program = solve_lasso(
            columns_of(X, part, parts),
            y,
            Grid(lambdas=(float(alpha),)),
            Stop(float(self.tol), int(self.max_iter)),
            job=self.job,
            intercept=bool(self.fit_intercept),
            start_from=self._start(),
            **options,
        )
        solution = program.solutions[0]
        self.dual_gap_ = solution.gap
        self.kkt_ = solution.kkt
        self.n_iter_ = max(1, solution.rounds)
        self.solution_ = solution
        if not solution.converged:
            warnings.warn(
                f"the duality gap is {solution.gap:.3g} after {solution.rounds} rounds: not "
                "within tol; raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=3,
            )
        return solution

    def _start(self) -> tuple[NDArray[np.int64], Floats] | None:
        if not (self.warm_start and hasattr(self, "coef_")):
            return None
        coef = np.ravel(self.coef_)
        if len(coef) != self.n_features_in_:
            return None
        ids = np.flatnonzero(coef)
        return ids, coef[ids]


class ElasticNet(Penalised, Regressor):
    """Minimises ½n⁻¹‖y − Xβ − b‖² + α(ρ‖β‖₁ + ½(1 − ρ)‖β‖²), with a certificate.

    Args:
        alpha: α > 0. l1_ratio: ρ, above 0 and at most 1; 1 is the Lasso.
        Others, and attributes after `fit`, as `Lasso`.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        l1_ratio: float = 0.5,
        fit_intercept: bool = True,
        standardize: bool = False,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        policy: str = "working-set",
        warm_start: bool = False,
        job: Any = None,
    ) -> None:
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.tol = tol
        self.max_iter = max_iter
        self.policy = policy
        self.warm_start = warm_start
        self.job = job

    def fit(self, X: Any, y: ArrayLike) -> ElasticNet:
        """Fit to X (n, p), NumPy or SciPy sparse, and y (n,).

        Raises:
            ValueError: data or parameters that cannot be used.
            TypeError: X holds objects that are not numbers.
        """
        self._remember_features(X)
        try:
            X = matrix(X)
            self.n_features_in_ = int(X.shape[1])
            y = checked_response(y, X.shape[0])
            solution = self._fit(
                X,
                y,
                self.alpha,
                policy=self.policy,
                standardise=bool(self.standardize),
                l1_ratio=float(self.l1_ratio),
            )
        except Misuse as error:
            raise ValueError(str(error)) from None
        self.coef_ = solution.dense(self.n_features_in_)
        self.sparse_coef_ = scipy.sparse.csr_matrix(self.coef_)
        self.intercept_ = solution.intercept
        return self


class Lasso(ElasticNet):
    """Minimises ½n⁻¹‖y − Xβ − b‖² + α‖β‖₁, with a certificate.

    Args:
        alpha: λ > 0. fit_intercept: whether there is a b.
        standardize: penalise coefficients of columns divided by their standard deviations.
        tol: stop when the duality gap ≤ tol·‖y‖²/n (y centred with an intercept).
        max_iter: rounds at most. policy: see `diml.strads.policy`.
        warm_start: begin at the coefficients of the last fit.
        job: a DiML job whose workers all call `fit`; None for this process alone.

    Attributes after `fit`: coef_ (p,), sparse_coef_ (1, p) CSR, intercept_, dual_gap_ (on the
    objective's scale), kkt_ (worst violation of optimality, on α's scale), n_iter_ (rounds),
    solution_ (a `Solution`), n_features_in_ (and feature_names_in_ for data frames).
    """

    l1_ratio = 1.0

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        fit_intercept: bool = True,
        standardize: bool = False,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        policy: str = "working-set",
        warm_start: bool = False,
        job: Any = None,
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.tol = tol
        self.max_iter = max_iter
        self.policy = policy
        self.warm_start = warm_start
        self.job = job


class SparseLogistic(Penalised, Classifier):
    """Logistic regression of two classes: minimises the mean loss + α(ρ‖β‖₁ + ½(1 − ρ)‖β‖²).

    scikit-learn's C is 1/(nα). Stops when the duality gap ≤ tol·log 2.

    Args: as `Lasso`, and l1_ratio: ρ, above 0 and at most 1.

    Attributes after `fit`: classes_ (2,), rising; coef_ (1, p) and intercept_ (1,) for the second
    of them; dual_gap_, kkt_, n_iter_, solution_, n_features_in_ as `Lasso`.
    """

    def __init__(
        self,
        alpha: float = 0.01,
        *,
        l1_ratio: float = 1.0,
        fit_intercept: bool = True,
        tol: float = 1e-6,
        max_iter: int = 10_000,
        warm_start: bool = False,
        job: Any = None,
    ) -> None:
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.job = job

    def fit(self, X: Any, y: ArrayLike) -> SparseLogistic:
        """Fit to X (n, p), NumPy or SciPy sparse, and the labels y (n,) of two classes.

        Raises:
            ValueError: data, labels or parameters that cannot be used.
            TypeError: X holds objects that are not numbers.
        """
        self._remember_features(X)
        try:
            X = matrix(X)
            self.n_features_in_ = int(X.shape[1])
            self.classes_, signs = checked_labels(y, X.shape[0])
            solution = self._fit(
                X, signs, self.alpha, loss="logistic", l1_ratio=float(self.l1_ratio)
            )
        except Misuse as error:
            raise ValueError(str(error)) from None
        self.coef_ = solution.dense(self.n_features_in_)[None, :]
        self.intercept_ = np.array([solution.intercept])
        return self
