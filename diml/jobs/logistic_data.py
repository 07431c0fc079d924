"""The examples of logistic regression: one worker's rows of a libsvm file.

Owns which rows a worker has, and the order of its minibatches. Must not know the parameter
server. Invariant: a minibatch depends on (seed, worker, clock) only, so that a replacement sees
the same examples as the worker whose place it takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from diml.data.design_text import check_columns, read_libsvm_rows
from diml.errors import Misuse

Floats = NDArray[np.float64]
_VALUE_MAX = float(np.finfo(np.float64).max) ** 0.5 / 1e6


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows in CSR form; y is 0 or 1. `total` rows are in the whole file.

    `labels` are the two values that the file has in place of 0 and 1, `base` is the number of the
    first column there (0 or 1).
    """

    X: Any
    y: Floats
    total: int
    labels: tuple[float, float] = (0.0, 1.0)
    base: int = 1


def load(path: Path, intercept: bool, like: Examples | None = None) -> Examples:
    """All rows of a libsvm file. With `intercept` a last column of ones is added.

    Args:
        like: examples with the same labels, whose columns count from the same number.

    Raises Misuse, naming file and line, for what is not libsvm, for other than two labels, and for
    labels that `like` does not have.
    """
    if not path.is_file():
        raise Misuse(f"{path}: no such file")
    rows = read_libsvm_rows(path, None if like is None else like.base)
    values = np.unique(rows.labels)
    if like is None and len(values) != 2:
        raise Misuse(f"{path}: {len(values)} different labels; logistic regression needs two")
    low, high = (float(v) for v in values) if like is None else like.labels
    if foreign := sorted(set(values.tolist()) - {low, high}):
        raise Misuse(f"{path}: label {foreign[0]:g}, where there are {low:g} and {high:g} only")
    cols = int(rows.cols.max()) + 1 if len(rows.cols) else 0
    check_columns(path, cols)
    largest = float(np.abs(rows.data).max(initial=0.0))
    # A gradient is a sum over all rows, and its square is taken.
    if largest * len(rows.labels) > _VALUE_MAX:
        raise Misuse(f"{path}: a value is too large: {largest:g}")
    parts = (rows.data, rows.cols, rows.indptr)
    X = scipy.sparse.csr_matrix(parts, shape=(len(rows.labels), cols))
    if intercept:
        X = scipy.sparse.hstack([X, np.ones((X.shape[0], 1))], format="csr")
    y = (rows.labels == high).astype(np.float64)
    return Examples(X, y, X.shape[0], (low, high), rows.base)


def widened(examples: Examples, cols: int, intercept: bool) -> Examples:
    """The same rows with `cols` columns; the column of ones stays the last."""
    X = examples.X
    missing = cols - X.shape[1]
    if missing > 0 and intercept:
        body, ones = X[:, :-1], X[:, -1:]
        empty = scipy.sparse.csr_matrix((X.shape[0], missing))
        X = scipy.sparse.hstack([body, empty, ones], format="csr")
    elif missing > 0:
        X = scipy.sparse.csr_matrix((X.data, X.indices, X.indptr), shape=(X.shape[0], cols))
    return replace(examples, X=X)


def share_of(examples: Examples, worker: int, workers: int) -> Examples:
    """One worker's rows: contiguous, as many as the others' up to one."""
    low, high = (examples.total * w // workers for w in (worker, worker + 1))
    return replace(examples, X=examples.X[low:high], y=examples.y[low:high])


@dataclass(frozen=True, slots=True)
class Batch:
    """A minibatch: CSR over its own keys (sorted, each once)."""

    keys: NDArray[np.int64]
    indptr: NDArray[Any]
    places: NDArray[np.int64]
    data: Floats
    y: Floats


class Minibatches:
    """A worker's minibatches: in every epoch its rows are shuffled and cut into `per_epoch`."""

    def __init__(self, share: Examples, per_epoch: int, seed: int, worker: int) -> None:
        self._share, self.per_epoch = share, per_epoch
        self._seed, self._worker = seed, worker
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def at(self, clock: int) -> Batch:
        """The minibatch of a clock."""
        epoch, number = divmod(clock, self.per_epoch)
        rows = len(self._share.y)
        if epoch != self._epoch:
            rng = np.random.default_rng((self._seed, self._worker, epoch))
            self._epoch, self._order = epoch, rng.permutation(rows)
        low, high = (rows * n // self.per_epoch for n in (number, number + 1))
        chosen = self._order[low:high]
        X = self._share.X[chosen]
        keys, places = np.unique(X.indices, return_inverse=True)
        data = np.ascontiguousarray(X.data, np.float64)
        return Batch(keys.astype(np.int64), X.indptr, places, data, self._share.y[chosen])
