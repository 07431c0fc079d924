"""The estimator: what it learns, what it takes, what it refuses; as scikit-learn's do."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

from diml.data.planted import Planted, planted
from diml.jobs.mf import MatrixFactorization
from tests.unit.mf_cases import sample_matrix

PLAN = Planted(200, 100, 8000, rank=3, noise=0.1, seed=1)


def pairs() -> tuple[Any, Any]:
    t = planted(PLAN)
    return np.column_stack([t.rows, t.cols]), t.values


def test_it_learns_the_planted_matrix() -> None:
    X, y = pairs()
    model = MatrixFactorization(3, regularization=0.01, max_iter=80, step_size=0.1)
    assert model.fit(X[:7200], y[:7200]) is model
    assert model.score(X[7200:], y[7200:]) > 0.95
    assert model.n_iter_ == 80
    errors = y[:7200] - model.predict(X[:7200])
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(model.rmse_, rel=1e-4)
    product = model.row_factors_ @ model.components_
    np.testing.assert_allclose(product[X[:9, 0], X[:9, 1]], model.predict(X[:9]), rtol=1e-4)


@pytest.mark.parametrize("update", ["petuum", "nnz", "adagrad"])
@pytest.mark.parametrize("bias", [False, True])
def test_sparse_matrices_and_pairs_give_the_same(update: str, bias: bool) -> None:
    dense = sample_matrix()
    known = scipy.sparse.csr_matrix(dense + 10)
    known.data -= 10  # the zeros stay, as known entries
    make = MatrixFactorization(3, update=update, bias=bias, max_iter=5, regularization=0.0)
    one = clone(make).fit(known)
    rows, cols = np.divmod(np.arange(81), 9)
    other = clone(make).fit(np.column_stack([rows, cols]), dense.reshape(-1))
    assert np.array_equal(one.components_, other.components_)
    assert np.array_equal(one.predict(known), other.predict(np.column_stack([rows, cols])))
    assert one.score(known) == pytest.approx(other.score(known))


@pytest.mark.parametrize("bias", [False, True])
def test_ids_beyond_the_fitted_ones_are_rows_and_columns_without_entries(bias: bool) -> None:
    X, y = pairs()
    model = MatrixFactorization(3, bias=bias, max_iter=5).fit(X, y)
    found = model.predict([[7, 100], [200, 9], [10**9, 10**9], [7, 9]])
    b, c = (model.row_factors_[7, -2], model.components_[-1, 9]) if bias else (y.mean(), 0.0)
    inside = model.row_factors_[7] @ model.components_[:, 9]
    np.testing.assert_allclose(found, [b, y.mean() + c, y.mean(), inside], rtol=1e-5)
    # Sorted, each fold lacks rows of its own.
    order = np.argsort(X[:, 0], kind="stable")
    assert np.isfinite(cross_val_score(model, X[order], y[order], cv=4)).all()


def test_recommendations_are_those_of_the_dense_product() -> None:
    X, y = pairs()
    model = MatrixFactorization(3, max_iter=3).fit(X[:2000], y[:2000])
    scores = (model.row_factors_.astype(float) @ model.components_.astype(float))[7]
    fresh = sorted(set(range(100)) - set(X[:2000][X[:2000, 0] == 7, 1].tolist()))
    expected = sorted(fresh, key=lambda col: (-scores[col], col))[:5]
    assert model.recommend(7, 5)[0].tolist() == expected


def test_parameters_as_scikit_learn_has_them() -> None:
    X, y = pairs()
    model = MatrixFactorization(4, bias=False)
    assert clone(model).get_params() == model.get_params()
    assert model.set_params(max_iter=2).max_iter == 2
    with pytest.raises(ValueError, match="no parameter 'rank'"):
        model.set_params(rank=3)
    search = GridSearchCV(
        model, {"n_components": [1, 3]}, cv=[(np.arange(7000), np.arange(7000, 8000))]
    )
    search.fit(X, y)
    assert search.best_params_["n_components"] in (1, 3)
    fitted = model.fit(X, y)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict(X), fitted.predict(X))


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ([[0, 1, 2]], [1], "shape"),
        ([[0, 1.5]], [1], "whole numbers"),
        ([[0, -1]], [1], "from 0 on"),
        ([[0, 1]], [np.nan], "finite"),
        ([[0, 1]], [1e39], "finite"),
        ([[0, 1]], [1, 2], "as many values"),
        ([[0, 1]], None, "as many values"),
        (np.zeros((0, 2)), [], "no entries"),
        (scipy.sparse.csr_matrix((3, 3)), None, "no entries"),
        (scipy.sparse.eye(3), [1, 1, 1], "leave out y"),
        (scipy.sparse.csr_matrix(np.eye(3) * 1j), None, "complex"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_bad_data_are_refused(X: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatrixFactorization(2).fit(X, y)


def test_bad_parameters_and_calls_are_refused() -> None:
    X, y = pairs()
    for name, value in (
        ("n_components", 0),
        ("n_components", 1.5),
        ("random_state", -1),
        ("random_state", None),
        ("update", "sgd"),
        ("step_size", 0),
        ("regularization", -1),
        ("max_iter", 0),
    ):
        with pytest.raises(ValueError, match=name.split("_")[0]):
            MatrixFactorization(**{name: value}).fit(X, y)
    with pytest.raises(NotFittedError, match="not fitted"):
        MatrixFactorization().predict(X)
    model = MatrixFactorization(2, max_iter=1).fit(X, y)
    with pytest.raises(ValueError, match="below 0"):
        model.predict([[0, -1]])
    with pytest.raises(ValueError, match=r"row = 0\.5 is not a whole number"):
        model.recommend(0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"row id outside 0..199"):
        model.recommend(200)
    with pytest.raises(ValueError, match="top = 0 is below 1"):
        model.recommend(0, 0)
    with pytest.raises(ValueError, match="lower step_size"):
        MatrixFactorization(2, update="petuum", step_size=1e4, max_iter=30).fit(X, y)
