"""Sparse logistic regression: its gap, scikit-learn as the oracle, labels, real data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.datasets import load_svmlight_file
from sklearn.linear_model import LogisticRegression

from diml.errors import Misuse
from diml.strads import SparseLogistic, solve_lasso
from diml.strads.columns import columns_of
from diml.strads.lasso_problem import Grid, Solution, Stop
from tests.helpers.mpi import CHECKOUT

A9A = CHECKOUT.parent / "shared" / "data" / "logistic" / "a9a"


def data(form: str) -> tuple[Any, NDArray[np.float64]]:
    rng = np.random.default_rng(7)
    X = scipy.sparse.random(150, 60, 0.3, random_state=7, format="csc")
    margin = np.asarray(X @ (5.0 * rng.normal(size=60) * (rng.random(60) < 0.3))).ravel() - 0.5
    t = np.where(rng.random(150) < expit(margin), 1.0, -1.0)
    return (X if form == "sparse" else X.toarray() + 1.0), t


def objective(X: Any, t: Any, lam: float, ratio: float, coef: Any, intercept: float) -> float:
    z = np.asarray(X @ coef).ravel() + intercept
    penalty = ratio * np.abs(coef).sum() + 0.5 * (1.0 - ratio) * coef @ coef
    return float(np.logaddexp(0.0, -t * z).mean() + lam * penalty)


def outer_gap(X: Any, t: Any, solution: Solution, intercept: bool) -> float:
    """A duality gap made here from X, t and the coefficients (no ridge)."""
    coef = solution.dense(X.shape[1])
    z = np.asarray(X @ coef).ravel() + solution.intercept
    u = expit(-t * z)
    if intercept:
        up, down = u[t > 0].sum(), u[t < 0].sum()
        u = np.where(t > 0, u * min(1.0, down / up), u * min(1.0, up / down))
    s = min(1.0, solution.lam * len(t) / np.abs(X.T @ (t * u)).max())
    u = np.clip(s * u, 1e-300, 1 - 1e-16)
    dual = -np.mean(u * np.log(u) + (1 - u) * np.log1p(-u))
    return objective(X, t, solution.lam, 1.0, coef, solution.intercept) - float(dual)


@pytest.mark.filterwarnings("ignore:The max_iter was reached")  # it is then higher than ours
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_no_oracle_is_lower(form: str, ratio: float, intercept: bool) -> None:
    X, t = data(form)
    program = solve_lasso(
        columns_of(X), t, Grid(ratios=(0.5, 0.1, 0.02)), Stop(1e-10), loss="logistic",
        intercept=intercept, l1_ratio=ratio,
    )  # fmt: skip
    for answer in program.solutions:
        assert answer.converged and -1e-13 <= answer.gap <= 1e-10
        coef = answer.dense(60)
        ours = objective(X, t, answer.lam, ratio, coef, answer.intercept)
        assert ours == pytest.approx(answer.objective, rel=1e-9)
        if ratio == 1.0:
            assert outer_gap(X, t, answer, intercept) == pytest.approx(answer.gap, abs=1e-9)
        model = LogisticRegression(
            l1_ratio=ratio, C=1.0 / (150 * answer.lam), solver="saga",
            fit_intercept=intercept, tol=1e-8, max_iter=3_000,
        ).fit(X, t)  # fmt: skip
        theirs = objective(X, t, answer.lam, ratio, model.coef_[0], float(model.intercept_[0]))
        assert ours <= theirs + 1e-9


@pytest.mark.skipif(not A9A.exists(), reason="no a9a here")
@pytest.mark.parametrize("ratio", [0.1, 0.01])
def test_a9a_to_a_gap_of_1e_8(ratio: float) -> None:
    X, t = load_svmlight_file(str(A9A))
    X, t = X.tocsc(), np.where(t > 0, 1.0, -1.0)
    program = solve_lasso(
        columns_of(X), t, Grid(ratios=(ratio,)), Stop(1e-9), loss="logistic", intercept=False
    )
    answer = program.solutions[0]
    assert answer.converged and outer_gap(X, t, answer, False) <= 1e-8
    model = LogisticRegression(
        l1_ratio=1.0,
        C=1.0 / (len(t) * answer.lam),
        solver="liblinear",
        fit_intercept=False,
        tol=1e-6,
    ).fit(X, t)
    theirs = objective(X, t, answer.lam, 1.0, model.coef_[0], 0.0)
    assert objective(X, t, answer.lam, 1.0, answer.dense(X.shape[1]), 0.0) <= theirs + 1e-9


def test_labels_are_checked_and_separable_data_end() -> None:
    X, t = data("dense")
    for bad, words in ((np.where(t > 0, 2.0, -1.0), "labels must be"), (np.ones(150), "two class")):
        with pytest.raises(Misuse, match=words):
            solve_lasso(columns_of(X), bad, Grid(ratios=(0.5,)), Stop(), loss="logistic")
    with pytest.raises(Misuse, match="working-set only"):
        solve_lasso(columns_of(X), t, Grid(ratios=(0.5,)), Stop(), loss="logistic", policy="random")
    apart = np.column_stack([t, X[:, 0]])
    program = solve_lasso(columns_of(apart), t, Grid(ratios=(0.001,)), Stop(1e-8), loss="logistic")
    assert program.solutions[0].converged


def test_the_estimator_predicts() -> None:
    X, t = data("sparse")
    names = np.where(t > 0, "yes", "no")
    model = SparseLogistic(alpha=0.005).fit(X, names)
    assert list(model.classes_) == ["no", "yes"] and model.coef_.shape == (1, 60)
    probability = model.predict_proba(X)
    np.testing.assert_allclose(probability.sum(axis=1), 1.0)
    assert ((probability[:, 1] > 0.5) == (model.predict(X) == "yes")).all()
    assert model.score(X, names) > 0.7
