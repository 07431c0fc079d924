"""Data that strain the Lasso's arithmetic: what is promised holds, or one line says why not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray

from diml.strads import Lasso, LassoCV, SparseLogistic, solve_lasso
from diml.strads.columns import columns_of
from diml.strads.lasso_problem import Grid, Standard, Stop

Floats = NDArray[np.float64]


def problem(rows: int = 50) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, 6))
    return X, X @ np.array([1.0, 2.0, 0.0, 0.0, -1.0, 0.5]) + 0.1 * rng.normal(size=rows)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_long_constant_column_is_constant_though_its_sum_is_rounded(sparse: bool) -> None:
    """The mean of 200,000 equal numbers is not that number; scaled up, the rest looks like data."""
    rows = 200_000
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=rows), np.full(rows, 0.1), np.full(rows, 1 / 3)])
    y = X[:, 0] + rng.normal(size=rows)
    held = columns_of(scipy.sparse.csc_matrix(X) if sparse else X)
    standard = Standard(held, y - y.mean(), True, True)
    assert standard.void.tolist() == [1, 2]
    program = solve_lasso(held, y, Grid(ratios=(1e-6,)), Stop(1e-10), standardise=True)
    assert program.solutions[0].ids.tolist() == [0] and program.solutions[0].converged


def test_a_warm_start_lets_go_of_a_column_that_has_become_constant() -> None:
    X, y = problem()
    model = Lasso(alpha=0.01, warm_start=True).fit(X, y)
    assert model.coef_[1] != 0.0
    X[:, 1] = 3.0
    np.testing.assert_allclose(model.fit(X, y).coef_, Lasso(alpha=0.01).fit(X, y).coef_, atol=1e-3)
    assert model.coef_[1] == 0.0


@pytest.mark.parametrize("scale", [1e-155, 1e-100, 1e100, 1e140])
@pytest.mark.parametrize("side", ["X", "y"])
def test_the_scale_of_the_data_does_not_matter(side: str, scale: float) -> None:
    X, y = problem()
    plain = Lasso(alpha=0.01).fit(X, y)
    if side == "X":
        found = Lasso(alpha=0.01 * scale).fit(X * scale, y).coef_ * scale
    else:
        found = Lasso(alpha=0.01 * scale).fit(X, y * scale).coef_ / scale
    np.testing.assert_allclose(found, plain.coef_, atol=1e-2)


@pytest.mark.parametrize("scale", [1e-165, 1e-310])
def test_numbers_whose_squares_are_zero_are_refused_not_taken_for_zeros(scale: float) -> None:
    X, y = problem()
    with pytest.raises(ValueError, match="X is too small: the squares of its values are 0"):
        Lasso(alpha=0.01 * scale).fit(X * scale, y)
    with pytest.raises(ValueError, match="y is too small: the squares of its values are 0"):
        Lasso(alpha=0.01 * scale).fit(X, y * scale)
    X[:, 0] *= scale  # One column of them is as good as empty.
    assert Lasso(alpha=0.01).fit(X, y).coef_[0] == 0.0


@pytest.mark.parametrize("sparse", [False, True])
def test_logistic_columns_far_from_zero_converge(sparse: bool) -> None:
    rng = np.random.default_rng(154)
    X = rng.normal(size=(60, 20)) + 1000.0 * rng.normal(size=20)
    labels = X[:, 0] - X[:, 1] + rng.normal(size=60) > X[:, 0].mean() - X[:, 1].mean()
    design: Any = scipy.sparse.csc_matrix(X) if sparse else X
    model = SparseLogistic(alpha=0.003, tol=1e-8).fit(design, labels)
    near = SparseLogistic(alpha=0.003, tol=1e-8).fit(X - X.mean(axis=0), labels)
    assert model.dual_gap_ <= 1e-8
    np.testing.assert_allclose(model.coef_, near.coef_, atol=1e-2)
    np.testing.assert_allclose(model.predict_proba(design), near.predict_proba(X - X.mean(axis=0)),
                               atol=1e-3)  # fmt: skip


def test_a_constant_response_has_no_path() -> None:
    X, _ = problem()
    for value in (3.0, 0.1):
        with pytest.raises(ValueError, match="y is constant"):
            LassoCV().fit(X, np.full(50, value))
        assert not Lasso(alpha=1e-9).fit(X, np.full(50, value)).coef_.any()


def test_a_path_that_rises_is_turned_round_and_folds_may_be_a_numpy_number() -> None:
    X, y = problem()
    rising = LassoCV(eps=4.0, n_alphas=3, cv=np.int64(3), tol=1e-9).fit(X, y)
    given = LassoCV(alphas=rising.alphas_, cv=3, tol=1e-9).fit(X, y)
    assert (np.diff(rising.alphas_) < 0.0).all()
    np.testing.assert_allclose(rising.mse_path_, given.mse_path_)


def test_labels_of_two_kinds_are_refused() -> None:
    X, _ = problem()
    with pytest.raises(ValueError, match="labels must be of one kind"):
        SparseLogistic().fit(X, np.array([1, "b"] * 25, dtype=object))


def test_a_lambda_that_overflows_is_refused_and_a_large_one_gives_nothing() -> None:
    X, y = problem()
    with pytest.raises(ValueError, match="lambda is too large"):
        Lasso(alpha=1e308).fit(X, y)
    assert not Lasso(alpha=1e300).fit(X, y).coef_.any()
