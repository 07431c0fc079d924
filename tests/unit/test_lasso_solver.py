"""The working-set Lasso on one worker: optimal by an outside measure, and no worse than sklearn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.typing import NDArray

from diml.data.design_planted import neighbour_correlated
from diml.errors import Misuse
from diml.strads.columns import columns_of
from diml.strads.lasso_logistic import LassoLogistic
from diml.strads.lasso_problem import Grid, Solution, Stop
from diml.strads.lasso_program import LassoProgram
from diml.strads.program import Alone, run

Floats = NDArray[np.float64]


def solve(X: Any, y: Floats, grid: Grid, tol: float = 1e-10, **options: Any) -> list[Solution]:
    program = LassoProgram(columns_of(X), y, grid, Stop(tol), **options)
    run(Alone(), program)
    return program.solutions


def outside_gap(X: Any, y: Floats, coef: Floats, intercept: float, lam: float) -> float:
    """The duality gap from X (dense), y and the answer alone; the dual point has mean 0."""
    n = len(y)
    r = y - X @ coef - intercept
    r -= r.mean() if intercept else 0.0
    primal = r @ r / (2 * n) + lam * np.abs(coef).sum()
    centred = X - X.mean(axis=0) if intercept else X
    s = min(1.0, lam * n / np.abs(centred.T @ r).max())
    target = y - y.mean() if intercept else y
    return float(primal - (s * (r @ target) / n - s * s * (r @ r) / (2 * n)))


def problem(sparse: bool, seed: int = 0) -> tuple[Any, Floats]:
    rng = np.random.default_rng(seed)
    X = rng.normal(2.0, 1.0, (60, 150)) * (rng.random((60, 150)) < 0.3)
    y = X[:, :5] @ rng.normal(size=5) + 3.0 + 0.1 * rng.normal(size=60)
    return (scipy.sparse.csc_matrix(X) if sparse else X), y


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("ratio", [0.5, 0.1, 0.01])
def test_gap_holds_by_an_outside_measure(sparse: bool, intercept: bool, ratio: float) -> None:
    X, y = problem(sparse)
    answer = solve(X, y, Grid(ratios=(ratio,)), intercept=intercept)[0]
    full = X.toarray() if sparse else X
    gap = outside_gap(full, y, answer.dense(150), answer.intercept, answer.lam)
    scale = np.var(y) if intercept else y @ y / 60
    assert answer.converged
    assert gap <= 1.1e-10 * scale
    assert abs(gap - answer.gap) <= 1e-12 * scale
    assert answer.kkt <= 1e-3 * answer.lam


@pytest.mark.parametrize("sparse", [False, True])
def test_standardised_equals_scaling_by_hand(sparse: bool) -> None:
    X, y = problem(sparse)
    full = X.toarray() if sparse else X
    spread = full.std(axis=0)
    grid = Grid(lambdas=(0.05,))
    ours = solve(X, y, grid, standardise=True)[0]
    by_hand = solve(full / spread, y, grid)[0]
    np.testing.assert_allclose(ours.dense(150), by_hand.dense(150) / spread, atol=1e-5)
    assert ours.intercept == pytest.approx(by_hand.intercept, abs=1e-5)


def test_sparse_and_dense_agree() -> None:
    X, y = problem(sparse=True)
    grid = Grid(ratios=(0.3, 0.05))
    for one, other in zip(solve(X, y, grid), solve(X.toarray(), y, grid), strict=True):
        assert one.objective == pytest.approx(other.objective, rel=1e-9)
        np.testing.assert_array_equal(one.ids, other.ids)


@pytest.mark.parametrize("name", ["diabetes", "breast_cancer"])
@pytest.mark.parametrize("ratio", [0.5, 0.1, 0.02, 0.005])
def test_objective_is_no_higher_than_sklearns(name: str, ratio: float) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    linear_model = pytest.importorskip("sklearn.linear_model")
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    y = y.astype(np.float64)
    answer = solve(X, y, Grid(ratios=(ratio,)), tol=1e-9)[0]
    peer = linear_model.Lasso(alpha=answer.lam, tol=1e-9, max_iter=1_000_000).fit(X, y)
    r = y - peer.predict(X)
    theirs = r @ r / (2 * len(y)) + answer.lam * np.abs(peer.coef_).sum()
    assert answer.gap <= 1e-8 * np.var(y)
    assert answer.objective <= theirs + 1e-8 * np.var(y)
    gap = outside_gap(X, y, answer.dense(X.shape[1]), answer.intercept, answer.lam)
    assert gap <= 1e-8 * np.var(y)


def test_neighbour_correlated_data_have_the_measured_structure() -> None:
    data = neighbour_correlated()
    X = scipy.sparse.csc_matrix(data.X).toarray()
    np.testing.assert_allclose(np.linalg.norm(X, axis=0), 1.0)
    np.testing.assert_allclose(X.sum(axis=0), 0.0, atol=1e-12)
    assert ((X != 0).sum(axis=0) == 20).all()
    close = np.einsum("ij,ij->j", X[:, 1:], X[:, :-1])
    twins = close[close > 0.9]
    assert 0.44 < len(twins) / 999 < 0.54
    assert 0.98 < twins.mean() < 0.995
    assert np.linalg.norm(data.y) == pytest.approx(1.0)


def test_path_equals_single_solves_and_falls() -> None:
    X, y = problem(sparse=True)
    ratios = tuple(10.0 ** -np.linspace(0, 2, 12))
    path = solve(X, y, Grid(ratios=ratios), tol=1e-10)
    assert [s.lam for s in path] == sorted((s.lam for s in path), reverse=True)
    assert len(path[0].ids) == 0
    for ratio, answer in list(zip(ratios, path, strict=True))[::4]:
        single = solve(X, y, Grid(ratios=(ratio,)), tol=1e-10)[0]
        assert answer.objective == pytest.approx(single.objective, rel=1e-8)


def test_empty_and_constant_columns_are_safe() -> None:
    X, y = problem(sparse=False)
    X[:, 3] = 0.0
    X[:, 4] = 1e6 + 0.1
    for design in (X, scipy.sparse.csc_matrix(X)):
        answer = solve(design, y, Grid(ratios=(0.01,)))[0]
        assert answer.converged
        assert not np.isin([3, 4], answer.ids).any()


def test_an_unreachable_tolerance_ends() -> None:
    X, y = problem(sparse=True)
    answer = solve(X, y, Grid(ratios=(0.01,)), tol=0.0)[0]
    assert answer.gap <= 1e-12 * np.var(y)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda X, y: (X, y[:-1]), "60 rows but y has 59"),
        (lambda X, y: (np.where(np.isclose(X, X.max()), np.nan, X), y), "NaN"),
        (lambda X, y: (X[:, :0], y), "0 columns"),
    ],
)
def test_bad_data_is_refused(break_it: Any, words: str) -> None:
    with pytest.raises(Misuse, match=words):
        X, y = break_it(*problem(sparse=False))
        solve(X, y, Grid(ratios=(0.1,)))


@pytest.mark.parametrize("lam", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_lambda_is_refused(lam: float) -> None:
    with pytest.raises(Misuse, match="lambda"):
        X, y = problem(sparse=False)
        solve(X, y, Grid(lambdas=(lam,)))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_blocks_that_are_cut_down_come_to_the_same_answer(sparse: bool, loss: str) -> None:
    """As where the support does not fit into memory beside the data: more rounds."""
    X, y = problem(sparse)
    y = np.where(y > np.median(y), 1.0, -1.0) if loss == "logistic" else y
    kind: Any = LassoLogistic if loss == "logistic" else LassoProgram
    limit = 10 * 60 if not sparse else 10 * 20
    programs = []
    for entries in (None, limit):
        program = kind(
            columns_of(X), y, Grid(ratios=(0.5, 0.004)), Stop(1e-7), block_entries=entries
        )
        run(Alone(), program)
        programs.append(program)
        if entries is not None:
            assert program._store.entries <= entries
    whole, cut = programs
    assert len(whole.solutions[-1].ids) > 10 and cut.rounds > whole.rounds
    for one, other in zip(whole.solutions, cut.solutions, strict=True):
        assert one.converged and other.converged
        assert other.objective == pytest.approx(one.objective, abs=1e-6 * max(1.0, float(y @ y)))


def test_a_response_whose_squares_are_infinite_is_refused() -> None:
    with pytest.raises(Misuse, match="y contains NaN or infinity"):
        solve(np.eye(3), np.array([1.0, 1e200, 2.0]), Grid(ratios=(0.1,)))
