"""The Lasso as a scikit-learn estimator, and the function under it that any job can call.

Owns the translation between users' arrays and a Lasso program. scikit-learn is not needed: where
it is installed its tags are answered. Works without mpirun; inside a job, `fit` is called by all
workers with the same X and y, and each keeps only its own columns of X.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from diml.errors import Misuse
from diml.strads.columns import Columns, SparseColumns, columns_of, response_of
from diml.strads.lasso_base import LassoBase
from diml.strads.lasso_blocks import LassoBlocks
from diml.strads.lasso_problem import Grid, Solution, Stop
from diml.strads.lasso_program import LassoProgram
from diml.strads.lasso_tall import LassoTall, is_tall
from diml.strads.policy import Policy, policy_by_name
from diml.strads.program import Alone, Collectives, run

Floats = NDArray[np.float64]


class ConvergenceWarning(UserWarning):
    """The gap did not reach the tolerance."""


def solve_lasso(
    held: Columns,
    y: Floats,
    grid: Grid,
    stop: Stop,
    *,
    job: Collectives | None = None,
    policy: str | Policy = "working-set",
    pipeline: int = 0,
    checkpoint_work: int = 2_000_000_000,
    on_divergence: str = "halve",
    **options: Any,
) -> LassoBase:
    """Run a Lasso to its end and return the program, whose `solutions` are the answers.

    Args:
        held: this worker's columns. y: (n,). grid, stop: which λ and how well.
        job: None for this process alone; else called by all workers of the job.
        policy: a name, or a policy for `held.total` variables.
        options: intercept, standardise, start_from, copy, listener of `LassoBase`.

    Raises:
        Misuse: data, λ or policy that cannot be used.
        Diverged: a published policy diverged and `on_divergence` is "stop".
    """
    if isinstance(policy, str):
        policy = policy_by_name(policy, max(held.total, 1))
    program: LassoBase
    if policy.update == "solve":
        kind = LassoTall if is_tall(held) else LassoProgram
        program = kind(held, y, grid, stop, **options)
    else:
        program = LassoBlocks(
            held, y, grid, stop, policy=policy, on_divergence=on_divergence, **options
        )
    run(
        job or Alone(),
        program,
        policy=policy,
        pipeline=pipeline,
        checkpoint_work=checkpoint_work,
    )
    return program


def warm_up(held: Columns) -> None:
    """Compile, or load from the cache, all kernels for data like `held`: solves a tiny Lasso."""
    dtype = held.data.dtype if isinstance(held, SparseColumns) else held.X.dtype
    tiny = np.asfortranarray(np.eye(4, 3) + 0.1, dtype=dtype)
    X = scipy.sparse.csc_matrix(tiny) if isinstance(held, SparseColumns) else tiny
    grid, stop = Grid(ratios=(0.1,)), Stop(1e-6)
    y = np.array([1.0, 2.0, 0.0, -1.0])
    solve_lasso(columns_of(X), y, grid, stop)
    solve_lasso(columns_of(X), y, grid, stop, policy="priority+dependency")


class Lasso:
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
    n_features_in_ (and feature_names_in_ for data frames).
    """

    _estimator_type = "regressor"

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

    def fit(self, X: Any, y: ArrayLike) -> Lasso:
        """Fit to X (n, p), NumPy or SciPy sparse, and y (n,).

        Raises:
            ValueError: data or parameters that cannot be used.
            TypeError: X holds objects that are not numbers.
        """
        self._remember_features(X)
        try:
            X = _matrix(X)
            self.n_features_in_ = int(X.shape[1])
            if not np.isreal(self.alpha):
                raise Misuse(f"alpha must be a positive number, not {self.alpha!r}")
            y = _checked_response(y, X.shape[0])
            part, parts = (0, 1) if self.job is None else (self.job.rank, self.job.size)
            program = solve_lasso(
                columns_of(X, part, parts),
                y,
                Grid(lambdas=(float(self.alpha),)),
                Stop(float(self.tol), int(self.max_iter)),
                job=self.job,
                policy=self.policy,
                intercept=bool(self.fit_intercept),
                standardise=bool(self.standardize),
                start_from=self._start(),
            )
        except Misuse as error:
            raise ValueError(str(error)) from None
        self._keep(program.solutions[0], program.variables)
        return self

    def _start(self) -> tuple[NDArray[np.int64], Floats] | None:
        if not (self.warm_start and hasattr(self, "coef_")):
            return None
        if len(self.coef_) != self.n_features_in_:
            return None
        ids = np.flatnonzero(self.coef_)
        return ids, self.coef_[ids]

    def _keep(self, solution: Solution, count: int) -> None:
        self.coef_ = solution.dense(count)
        self.sparse_coef_ = scipy.sparse.csr_matrix(self.coef_)
        self.intercept_ = solution.intercept
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

    def predict(self, X: Any) -> Floats:
        """Xβ + b, (n,)."""
        if not hasattr(self, "coef_"):
            raise _not_fitted(self)
        self._check_features(X)
        try:
            X = _matrix(X)
        except Misuse as error:
            raise ValueError(str(error)) from None
        if X.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {X.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        answer: Floats = np.asarray(X @ self.coef_, np.float64).reshape(-1) + self.intercept_
        return answer

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """R² of the prediction on X and y."""
        target = np.asarray(y, np.float64)
        weight = np.ones(len(target)) if sample_weight is None else np.asarray(sample_weight)
        off = target - np.average(target, weights=weight)
        total = float(weight @ off**2)
        rest = float(weight @ (target - self.predict(X)) ** 2)
        return 1.0 - rest / total if total else float(rest == 0.0)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name."""
        names = [name for name in inspect.signature(type(self)).parameters if name != "self"]
        return {name: getattr(self, name) for name in names}

    def set_params(self, **params: Any) -> Lasso:
        """Set parameters by name. Raises ValueError for one that does not exist."""
        for name, value in params.items():
            if name not in self.get_params():
                raise ValueError(f"{type(self).__name__} has no parameter {name!r}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self)).parameters
        changed = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if value is not defaults[name].default
        ]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type="regressor",
            target_tags=TargetTags(required=True),
            transformer_tags=None,
            classifier_tags=None,
            regressor_tags=RegressorTags(),
            input_tags=InputTags(sparse=True),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")

    def _remember_features(self, X: Any) -> None:
        columns = getattr(X, "columns", None)
        if columns is not None and all(isinstance(name, str) for name in columns):
            self.feature_names_in_ = np.asarray(columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _check_features(self, X: Any) -> None:
        known = getattr(self, "feature_names_in_", None)
        columns = getattr(X, "columns", None)
        if known is None or columns is None or list(columns) == list(known):
            return
        raise ValueError(
            "The feature names should match those that were passed during fit: "
            f"expected {list(known)}, got {list(columns)}"
        )


def _matrix(X: Any) -> Any:
    """A design that can be used, as an array or a CSC matrix."""
    if scipy.sparse.issparse(X):
        X = X.tocsc()
    else:
        X = np.asarray(X)
        if X.dtype.kind in "OUS":
            try:
                X = X.astype(np.float64)
            except ValueError as error:
                raise Misuse(f"X must be numbers: {error}") from None
    if np.issubdtype(X.dtype, np.complexfloating):
        raise Misuse("Complex data not supported")
    if X.ndim != 2:
        raise Misuse(f"Expected 2D array, got {X.ndim}D array instead. Reshape your data.")
    if X.shape[0] == 0 or X.shape[1] == 0:
        what = "sample" if X.shape[0] == 0 else "feature"
        count = X.shape[0] if what == "sample" else X.shape[1]
        raise Misuse(
            f"Found array with {count} {what}(s) (shape={X.shape}) "
            "while a minimum of 1 is required."
        )
    values = X.data if scipy.sparse.issparse(X) else X
    if not np.isfinite(np.asarray(values, np.float64)).all():
        raise Misuse("Input X contains NaN or infinity.")
    return X


def _checked_response(y: ArrayLike, rows: int) -> Floats:
    if y is None:
        raise Misuse("requires y to be passed, but the target y is None")
    array = np.asarray(y)
    if np.iscomplexobj(array):
        raise Misuse("Complex data not supported")
    if array.ndim == 2 and array.shape[1] == 1:
        warnings.warn(
            "A column-vector y was passed when a 1d array was expected.",
            _sklearn_warning("DataConversionWarning"),
            stacklevel=4,
        )
        array = array.reshape(-1)
    values = response_of(array)
    if len(values) != rows:
        raise Misuse(f"X has {rows} rows but y has {len(values)} values: inconsistent")
    return values


def _sklearn_warning(name: str) -> type[Warning]:
    try:
        from sklearn import exceptions
    except ImportError:
        return UserWarning
    kind: type[Warning] = getattr(exceptions, name)
    return kind


def _not_fitted(estimator: Lasso) -> Exception:
    text = f"This {type(estimator).__name__} is not fitted yet: call fit first."
    try:
        from sklearn.exceptions import NotFittedError
    except ImportError:
        return ValueError(text)
    error: Exception = NotFittedError(text)
    return error
