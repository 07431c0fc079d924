"""The estimator: scikit-learn's own checks, its Lasso as the oracle, and use without it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from diml.strads import ElasticNet, Lasso, LassoCV, SparseLogistic
from diml.strads.estimator import ConvergenceWarning

# Checks of scikit-learn that the estimator does not pass, each with its reason.
EXPECTED_FAILURES: dict[str, str] = {}


def data(seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(80, 40)) + 1.0
    return X, X[:, :4] @ [3.0, -2.0, 1.0, 0.5] + 4.0 + 0.1 * rng.normal(size=80)


@pytest.mark.parametrize(
    "model",
    [Lasso(alpha=0.1), ElasticNet(alpha=0.1), SparseLogistic(alpha=0.01), LassoCV(n_alphas=10)],
)
def test_check_estimator_passes(model: Any) -> None:
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checks.check_estimator(model, expected_failed_checks=EXPECTED_FAILURES)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_fit_agrees_with_sklearn(intercept: bool, sparse: bool) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, y = data()
    design = scipy.sparse.csr_matrix(X) if sparse else X
    ours = Lasso(0.05, fit_intercept=intercept, tol=1e-12).fit(design, y)
    theirs = linear_model.Lasso(0.05, fit_intercept=intercept, tol=1e-12, max_iter=10**6).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-6)
    assert ours.intercept_ == pytest.approx(theirs.intercept_, abs=1e-5)
    np.testing.assert_allclose(ours.predict(design), theirs.predict(X), atol=1e-5)
    assert ours.score(X, y) == pytest.approx(theirs.score(X, y), abs=1e-8)
    assert 0.0 <= ours.dual_gap_ <= 1e-12 * np.mean(y**2)


def test_grid_search_and_clone_work() -> None:
    selection = pytest.importorskip("sklearn.model_selection")
    X, y = data()
    search = selection.GridSearchCV(Lasso(), {"alpha": [0.01, 0.1, 1.0]}, cv=3).fit(X, y)
    assert search.best_params_["alpha"] == 0.01


def test_inputs_are_not_changed() -> None:
    X, y = data()
    before = X.copy(), y.copy()
    Lasso(0.1, standardize=True).fit(X, y)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(y, before[1])


def test_a_warm_start_needs_fewer_rounds() -> None:
    X, y = data()
    model = Lasso(0.01, tol=1e-10, warm_start=True).fit(X, y)
    cold = model.n_iter_, model.coef_
    model.fit(X, y)
    assert model.n_iter_ <= 1
    np.testing.assert_allclose(model.coef_, cold[1], atol=1e-8)


def test_an_answer_that_is_not_good_enough_warns() -> None:
    X, y = data()
    with pytest.warns(ConvergenceWarning, match="duality gap"):
        Lasso(0.01, tol=1e-12, max_iter=1).fit(X, y)


def test_published_policies_reach_the_same_answer() -> None:
    X, y = data()
    reference = Lasso(0.05, tol=1e-10).fit(X, y)
    other = Lasso(0.05, tol=1e-10, policy="priority+dependency", max_iter=100_000).fit(X, y)
    np.testing.assert_allclose(other.coef_, reference.coef_, atol=1e-4)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"alpha": 0.0}, "alpha must be a positive number"),
        ({"alpha": -1.0}, "alpha must be a positive number, not -1.0"),
        ({"alpha": np.nan}, "alpha must be a positive number, not nan"),
        ({"policy": "best"}, "no policy 'best'"),
        ({"tol": -1.0}, "tol must be a finite number from 0 on, not -1"),
        ({"tol": np.inf}, "tol must be a finite number"),
        ({"max_iter": 0}, "max_iter must be 1 or more, not 0"),
    ],
)
def test_bad_parameters_are_refused(params: dict[str, Any], words: str) -> None:
    X, y = data()
    with pytest.raises(ValueError, match=words):
        Lasso(**params).fit(X, y)


def test_importing_diml_needs_neither_sklearn_nor_mpi() -> None:
    code = (
        "import sys; sys.modules['sklearn'] = None; sys.modules['mpi4py'] = None\n"
        "import numpy as np; from diml.strads import Lasso\n"
        "X = np.eye(5); print(Lasso(0.1, fit_intercept=False).fit(X, X[:, 0]).coef_[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(0.5)
