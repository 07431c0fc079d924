"""Many more rows than columns: inner products give the answer that the data give."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from diml.kernels.lasso_tall import inner_products
from diml.strads.columns import columns_of
from diml.strads.lasso import solve_lasso
from diml.strads.lasso_problem import Grid, Stop
from diml.strads.lasso_program import LassoProgram
from diml.strads.lasso_tall import LassoTall, is_tall
from diml.strads.program import Alone, run

Floats = NDArray[np.float64]


def data(dtype: str = "float64", offset: float = 0.0) -> tuple[NDArray[np.floating], Floats]:
    rng = np.random.default_rng(4)
    X = rng.normal(size=(3000, 25)) @ (np.eye(25) + 0.4 * rng.normal(size=(25, 25))) + offset
    y = X[:, :6] @ rng.normal(size=6) + rng.normal(size=3000)
    X[:, 7] = offset  # a constant column
    return np.asfortranarray(X.astype(dtype)), y


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("standardise", [True, False])
def test_inner_products_and_data_agree(dtype: str, intercept: bool, standardise: bool) -> None:
    X, y = data(dtype)
    held = columns_of(X)
    assert is_tall(held)
    grid, stop = Grid(ratios=(0.5, 0.1, 0.01)), Stop(1e-10)
    ours = solve_lasso(held, y, grid, stop, intercept=intercept, standardise=standardise)
    assert isinstance(ours, LassoTall)
    theirs = LassoProgram(held, y, grid, stop, intercept=intercept, standardise=standardise)
    run(Alone(), theirs)
    for one, other in zip(ours.solutions, theirs.solutions, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        assert one.converged and one.lam == pytest.approx(other.lam)
        assert one.objective == pytest.approx(other.objective, rel=1e-8)
        assert one.intercept == pytest.approx(other.intercept, abs=1e-4)
        assert not np.isin(7, one.ids)


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (511, 4), (512, 5), (1300, 27)])
def test_inner_products_of_all_shapes(shape: tuple[int, int]) -> None:
    X = np.asfortranarray(np.random.default_rng(1).normal(size=shape))
    products = inner_products(X)
    np.testing.assert_allclose(products, X.T @ X, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(products, products.T)


def test_columns_far_from_zero_keep_their_digits() -> None:
    X, y = data(offset=1e5)
    program = solve_lasso(columns_of(X), y, Grid(ratios=(0.01,)), Stop(1e-9))
    answer = program.solutions[0]
    r = y - X @ answer.dense(25) - answer.intercept
    centred = X - X.mean(axis=0)
    top = np.abs(centred.T @ r).max() / len(y)
    assert isinstance(program, LassoTall) and answer.converged
    assert top == pytest.approx(answer.lam, rel=1e-4)


def test_wide_and_small_data_go_the_other_way() -> None:
    rng = np.random.default_rng(0)
    assert not is_tall(columns_of(rng.normal(size=(100, 50))))
