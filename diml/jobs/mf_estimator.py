"""Matrix factorization as an estimator, in scikit-learn's manner.

Owns the conversion of what users have (sparse matrices, pairs and values) and of what training
gives. Training itself is `diml.jobs.mf_rotate`'s. Works in one process without MPI, and inside a
program under mpirun when it is given the job: then all workers call `fit` with the same data, and
all get the same model. A worker that dies in `fit` is replaced by replay, since the checkpoints
are the program's own.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from diml.errors import DimlError
from diml.estimator import Estimator, not_fitted
from diml.jobs import mf_files
from diml.jobs.mf_data import Entries, Layout, Ratings, joined
from diml.jobs.mf_flags import DEFAULT_STEP
from diml.jobs.mf_model import UPDATES, Rule
from diml.jobs.mf_predict import best, values_at
from diml.jobs.mf_product import Factors, Held, product
from diml.jobs.mf_rotate import Moving, Passes, Rotation, blocks_of

_MOST = 2**31 - 1
Ids = npt.NDArray[np.int64]


class MatrixFactorization(Estimator):
    """M ~ mean + b_i + c_j + L_i . R_j, fitted to the known entries of a matrix.

    Args:
        n_components: the rank. update: petuum, nnz or adagrad (see `diml.kernels.mf`).
        regularization: lambda. step_size: of the update; None for its default.
        max_iter: passes over the entries. bias: whether there are mean, b and c.
        random_state: seed of start values and order.
        job: a DiML job whose workers all call `fit` with the same data; None: this process alone.

    Attributes after `fit`: components_ (k', columns) and row_factors_ (rows, k'), float32, whose
    product is the model (with biases two columns of k' stand for them); mean_ and rmse_ (of the
    entries that were fitted); n_iter_; known_ (CSR, the entries that were fitted).
    """

    _estimator_type = "regressor"

    def __init__(
        self,
        n_components: int = 10,
        *,
        update: str = "adagrad",
        regularization: float = 0.05,
        step_size: float | None = None,
        max_iter: int = 30,
        bias: bool = True,
        random_state: int = 0,
        job: Any = None,
    ) -> None:
        self.n_components = n_components
        self.update = update
        self.regularization = regularization
        self.step_size = step_size
        self.max_iter = max_iter
        self.bias = bias
        self.random_state = random_state
        self.job = job

    def fit(self, X: Any, y: npt.ArrayLike | None = None) -> MatrixFactorization:
        """Fit to known entries.

        Args:
            X: a SciPy sparse matrix, whose stored entries are the known ones; or ids (n, 2) of
                rows and columns, from 0 on, with their values y (n,).

        Raises ValueError for data or parameters that cannot be used, and for a step that is so
        large that the model became infinite.
        """
        rows, cols, values, shape = _known(X, y)
        rule = self._rule()
        entries = Entries(rows.astype(np.int32), cols.astype(np.int32), values)
        ratings = Ratings(entries, joined([]), *shape)
        ring = _Ring(self.job)
        share = ratings.share(ring.rank, ring.size, _layout(ring, ratings), rule.seed)
        facts, passes = ratings.facts(), Passes(self.max_iter, self.max_iter)
        training = Rotation(ring, facts, share, rule, passes, time.time())
        try:
            training.run(lambda evaluations: None)
        except DimlError as error:
            found = str(error).partition(":")[0]
            raise ValueError(f"{found}: lower step_size") from None
        factors = ring.broadcast(training.factors())
        left, right = product(Factors(*map(Held, factors)), rule, facts)
        self.row_factors_ = np.concatenate(list(left)).astype(np.float32)
        self.components_ = np.concatenate(list(right)).astype(np.float32).T
        self.mean_, self._biased = facts.mean, rule.biased
        self.rmse_ = training.evaluations[-1].train_rmse
        self.n_iter_ = training.evaluations[-1].iteration
        self.n_features_in_ = shape[1] if scipy.sparse.issparse(X) else 2
        self.known_ = scipy.sparse.csr_matrix((values, (rows, cols)), shape)
        return self

    def predict(self, X: Any) -> npt.NDArray[np.float64]:
        """Values at pairs of ids X (n, 2), or at the stored entries of a sparse matrix, in order.

        A row or column that the fitted matrix does not have is one that nothing is known of: the
        value is the mean, with biases plus that of the other side. So folds of pairs need not have
        all rows and columns each. Raises ValueError before `fit`, and for ids below 0.
        """
        rows, cols = _places(X)
        left, right = (factors := self._factors()).left, factors.right
        if len(rows) and min(rows.min(), cols.min()) < 0:
            raise ValueError("an id is below 0")
        old_row, old_col = rows < len(left), cols < len(right)
        values = np.full(len(rows), self.mean_)
        both = old_row & old_col
        values[both] = values_at(factors, rows[both], cols[both])
        if self._biased:
            # The last two numbers of a row are mean + b_i and 1, those of a column 1 and c_j.
            row, col = old_row & ~old_col, old_col & ~old_row
            values[row] = left[rows[row], -2]
            values[col] += right[cols[col], -1]
        return values

    def score(self, X: Any, y: npt.ArrayLike | None = None) -> float:
        """The coefficient of determination R^2 of the predictions."""
        rows, cols, values, _ = _known(X, y)
        errors = values - self.predict(np.column_stack([rows, cols]))
        spread = float(np.sum((values - values.mean(dtype=np.float64)) ** 2))
        lost = float(np.sum(errors**2))
        return 1 - lost / spread if spread else float(lost == 0)

    def recommend(self, row: int, top: int = 10) -> tuple[Ids, npt.NDArray[np.float64]]:
        """The columns with the highest values that `fit` did not know in a row, and the values.

        Ties are broken by id. Raises ValueError for a row that the fitted matrix does not have, and
        for less than one column.
        """
        for name, value in (("top", top), ("row", row)):
            if not isinstance(value, (int, np.integer)):
                raise ValueError(f"{name} = {value!r} is not a whole number")
        if top < 1:
            raise ValueError(f"top = {top!r} is below 1")
        factors = self._factors()
        if not 0 <= row < len(factors.left):
            raise ValueError(f"a row id outside 0..{len(factors.left) - 1}")
        known = self.known_.indices[self.known_.indptr[row] : self.known_.indptr[row + 1]]
        return best(factors, row, top, known)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "components_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type="regressor",
            target_tags=TargetTags(required=False),
            transformer_tags=None,
            classifier_tags=None,
            regressor_tags=RegressorTags(),
            input_tags=InputTags(sparse=True),
        )

    def _factors(self) -> mf_files.Factors:
        if not self.__sklearn_is_fitted__():
            raise not_fitted(self)
        return mf_files.Factors(self.row_factors_, self.components_.T)

    def _rule(self) -> Rule:
        """The parameters, checked. Raises ValueError."""
        if self.update not in UPDATES:
            raise ValueError(f"update {self.update!r} is none of {', '.join(UPDATES)}")
        step = DEFAULT_STEP[self.update] if self.step_size is None else self.step_size
        for name, least in (("n_components", 1), ("max_iter", 1), ("random_state", 0)):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < least or value is True:
                raise ValueError(f"{name} = {value!r} is not a whole number from {least} on")
        for name, value, good in (
            ("regularization", self.regularization, 0 <= self.regularization < np.inf),
            ("step_size", step, 0 < step < np.inf),
        ):
            if not good:
                raise ValueError(f"{name} = {value!r} is out of range")
        return Rule(
            k=self.n_components,
            update=self.update,
            decay=self.regularization,
            init_step_size=step,
            biased=self.bias,
            seed=self.random_state,
        )


class _Ring:
    """What rotation needs of a job: one process's, or a job's without its checkpoints."""

    def __init__(self, job: Any) -> None:
        self._job = job
        self.rank: int = 0 if job is None else job.rank
        self.size: int = 1 if job is None else job.size
        self.incarnation = 0

    def load_checkpoint(self, any_workers: bool = False) -> tuple[int, Any, Any]:
        return 0, None, None

    def checkpoint(self, model: Any, local: Any) -> None:
        pass

    def shift(self, value: Any, by: int = 1) -> Any:
        return value if self._job is None else self._job.shift(value, by)

    def start_shift(self, array: Any, by: int = 1) -> Moving:
        # Rotation gives nothing to itself.
        moving: Moving = self._job.start_shift(array, by)
        return moving

    def allreduce(self, array: Any) -> Any:
        return array if self._job is None else self._job.allreduce(array)

    def broadcast(self, value: Any) -> Any:
        return value if self._job is None else self._job.broadcast(value)

    def event(self, what: str, **fields: Any) -> None:
        if self._job is not None:
            self._job.event(what, **fields)


def _layout(ring: _Ring, ratings: Ratings) -> Layout:
    """The layout of rotation. Raises ValueError for more workers than rows or columns."""
    least = min(ratings.n_rows, ratings.n_cols)
    if ring.size > least:
        raise ValueError(f"{ring.size} workers cannot share {least} rows or columns")
    return Layout(blocks_of(ring.size, ratings.n_cols), shuffled=True, whole=True)


def _places(X: Any) -> tuple[Ids, Ids]:
    """Rows and columns of pairs, or of the stored entries of a sparse matrix."""
    if scipy.sparse.issparse(X):
        entries = X.tocoo()
        return entries.row.astype(np.int64), entries.col.astype(np.int64)
    pairs = np.asarray(X)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs of ids have the shape (n, 2), this is {pairs.shape}")
    with np.errstate(invalid="ignore"):
        ids = pairs.astype(np.int64)
    if not np.array_equal(ids, pairs):
        raise ValueError("ids are whole numbers")
    return ids[:, 0], ids[:, 1]


def _known(
    X: Any, y: npt.ArrayLike | None
) -> tuple[Ids, Ids, npt.NDArray[np.float32], tuple[int, int]]:
    """Rows, columns and values of known entries, and the shape. Raises ValueError."""
    rows, cols = _places(X)
    if scipy.sparse.issparse(X):
        if y is not None:
            raise ValueError("a sparse matrix has its values: leave out y")
        values, shape = X.tocoo().data, X.shape
    else:
        values = np.asarray(y, np.float64)
        if values.shape != rows.shape:
            raise ValueError(f"{len(rows)} pairs need as many values, y has {values.shape}")
        shape = int(rows.max(initial=-1)) + 1, int(cols.max(initial=-1)) + 1
    if np.iscomplexobj(values):
        raise ValueError("complex values are not supported")
    values = np.asarray(values).astype(np.float32)
    if not len(rows):
        raise ValueError("there are no entries")
    if min(rows.min(), cols.min()) < 0 or max(shape) > _MOST:
        raise ValueError(f"ids are whole numbers from 0 on, below {_MOST}")
    if not np.isfinite(values).all():
        raise ValueError("a value is not a finite float32")
    return rows, cols, values, (int(shape[0]), int(shape[1]))
