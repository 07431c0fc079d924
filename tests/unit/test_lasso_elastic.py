"""The elastic net: scikit-learn's answer, with a gap, in every form a block is solved in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn import linear_model

from diml.errors import Misuse
from diml.strads.columns import columns_of
from diml.strads.lasso import solve_lasso
from diml.strads.lasso_problem import Grid, Stop

RNG = np.random.default_rng(4)
WIDE = scipy.sparse.random(60, 200, 0.2, random_state=4, format="csc") * 3.0
DATA: dict[str, Any] = {
    "sparse": WIDE,
    "dense": WIDE.toarray() + 0.5,
    "tall": RNG.normal(size=(600, 12)) + 1.0,
}


@pytest.mark.parametrize("policy", ["working-set", "random"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("form", list(DATA))
def test_the_answer_is_scikit_learn_s(form: str, intercept: bool, policy: str) -> None:
    X = DATA[form]
    y = np.asarray(X @ RNG.normal(size=X.shape[1])).ravel() + 2.0
    stop = Stop(1e-9, 20_000)
    program = solve_lasso(
        columns_of(X), y, Grid(ratios=(0.5, 0.1)), stop, policy=policy, intercept=intercept,
        l1_ratio=0.6,
    )  # fmt: skip
    for solution in program.solutions:
        assert solution.converged and solution.gap >= -1e-12
        model = linear_model.ElasticNet(
            alpha=solution.lam, l1_ratio=0.6, fit_intercept=intercept, tol=1e-12, max_iter=100_000
        ).fit(X, y)
        coef = solution.dense(X.shape[1])
        np.testing.assert_allclose(coef, model.coef_, atol=2e-4)
        np.testing.assert_allclose(solution.intercept, model.intercept_, atol=1e-3)
        r = y - X @ coef - solution.intercept
        penalty = solution.lam * (0.6 * np.abs(coef).sum() + 0.2 * coef @ coef)
        np.testing.assert_allclose(solution.objective, r @ r / (2 * len(y)) + penalty, rtol=1e-9)


def test_at_lambda_max_all_is_zero_and_below_it_is_not() -> None:
    y = RNG.normal(size=60)
    program = solve_lasso(columns_of(WIDE), y, Grid(ratios=(1.0, 0.99)), Stop(1e-10), l1_ratio=0.3)
    assert [len(s.ids) > 0 for s in program.solutions] == [False, True]
    with pytest.raises(Misuse, match="l1 ratio"):
        solve_lasso(columns_of(WIDE), y, Grid(ratios=(0.5,)), Stop(), l1_ratio=0.0)
