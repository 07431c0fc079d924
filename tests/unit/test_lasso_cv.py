"""Cross-validation: scikit-learn's choice of λ, and no piece of a path missing or done twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LassoCV as Theirs
from sklearn.model_selection import KFold

from diml.errors import Misuse
from diml.strads import LassoCV
from diml.strads.lasso_cv import contiguous_folds, cross_validate, lambda_grid, share
from diml.strads.lasso_problem import Stop
from diml.strads.program import Alone


@pytest.mark.parametrize("folds", [5, KFold(4, shuffle=True, random_state=1)])
@pytest.mark.parametrize("sparse", [False, True])
def test_the_lambda_is_scikit_learn_s_on_diabetes(folds: Any, sparse: bool) -> None:
    X, y = load_diabetes(return_X_y=True)
    theirs = Theirs(cv=folds, tol=1e-10, max_iter=100_000).fit(X, y)
    ours = LassoCV(cv=folds, tol=1e-10).fit(scipy.sparse.csr_matrix(X) if sparse else X, y)
    np.testing.assert_allclose(ours.alphas_, theirs.alphas_, rtol=1e-10)
    np.testing.assert_allclose(ours.mse_path_, theirs.mse_path_, rtol=1e-6)
    assert ours.alpha_ == pytest.approx(theirs.alpha_, rel=1e-12)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-2)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16])
@pytest.mark.parametrize("values", [1, 2, 100])
def test_every_piece_is_solved_once(size: int, values: int) -> None:
    done = np.zeros((5, values), np.int64)
    loads = []
    for rank in range(size):
        pieces = list(share(5, values, rank, size))
        loads.append(sum(last - first for _, first, last in pieces))
        for fold, first, last in pieces:
            done[fold, first:last] += 1
    assert (done == 1).all()
    assert values < 100 or size > 5 or min(loads) > 60


class Two(Alone):
    """The part of one of two workers; the other's errors are taken as given."""

    size = 2

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.mine: Any = None

    def allgather(self, value: Any) -> Any:
        self.mine = value
        return value


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_two_workers_find_what_one_finds(loss: str) -> None:
    rng = np.random.default_rng(3)
    X = rng.normal(size=(90, 30))
    y = X[:, 0] - X[:, 1] + rng.normal(size=90)
    y = np.sign(y) if loss == "logistic" else y
    lambdas = lambda_grid(X, y, np.geomspace(1.0, 0.05, 12), loss=loss)
    folds = contiguous_folds(90, 3)
    one = cross_validate(X, y, lambdas, folds, Stop(1e-9), loss=loss)
    both = []
    for rank in range(2):
        job = Two(rank)
        cross_validate(X, y, lambdas, folds, Stop(1e-9), loss=loss, job=job)
        both.append(job.mine)
    table = np.full(one.shape, np.nan)
    for fold, place, error in np.concatenate(both):
        table[int(fold), int(place)] = error
    np.testing.assert_allclose(table, one, rtol=1e-4)


def test_folds_are_checked() -> None:
    sorted_labels = np.repeat([-1.0, 1.0], 10)
    with pytest.raises(Misuse, match="without fold 1 all labels are of one class"):
        X, folds = np.eye(20), contiguous_folds(20, 2)
        cross_validate(X, sorted_labels, np.ones(1), folds, Stop(), loss="logistic")
    with pytest.raises(Misuse, match="from 2 to 4"):
        contiguous_folds(4, 5)
    with pytest.raises(ValueError, match="from 2 to 6"):
        LassoCV(cv=7).fit(np.eye(6), np.arange(6.0))
