"""Inner products of a working set: right in either form, and shared out without a change."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from diml.strads import products as module
from diml.strads.columns import columns_of
from diml.strads.lasso import solve_lasso
from diml.strads.lasso_problem import Grid, Stop
from diml.strads.products import Products
from diml.strads.store import Batch, Store


def filled(density: float) -> tuple[Store, np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    rng = np.random.default_rng(8)
    X = scipy.sparse.random(300, 40, density=density, format="csc", rng=rng)
    held = columns_of(X)
    mean, square, _ = held.moments(True, np.zeros(held.rows))
    store = Store(300, True)
    ids = np.arange(40)
    store.add(Batch(ids, held.take(ids), mean, square))
    dense = X.toarray()
    return store, (dense - dense.mean(axis=0)).T @ (dense - dense.mean(axis=0))


@pytest.mark.parametrize("density", [0.005, 0.3])
@pytest.mark.parametrize("parts", [1, 3])
def test_products_are_right_in_either_form(
    density: float, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_NUMBERS", 40 * 64)
    store, expected = filled(density)
    held = Products(True, parts)
    for fresh in (np.array([3, 30, 7]), np.array([1, 39, 20, 0])):
        held.add(fresh, np.sum([held.part(store, fresh, part) for part in range(parts)], axis=0))
    ids = np.array([0, 3, 20, 39])
    np.testing.assert_allclose(held.block(ids), expected[np.ix_(ids, ids)], atol=1e-12)
    assert held.holds(np.array([2, 7])).tolist() == [False, True]
    store.trim(np.array([3, 7, 20]), 0)
    held.retain(store)
    ids = np.array([3, 7, 20])
    np.testing.assert_allclose(held.block(ids), expected[np.ix_(ids, ids)], atol=1e-12)


def test_they_are_wanted_only_once_sweeping_has_cost_as_much() -> None:
    store, _ = filled(0.3)
    held = Products(keep=False)
    ids = np.arange(30)
    assert len(held.wanted(store, ids)) == 0
    held.spend(10**9)
    assert held.wanted(store, ids).tolist() == ids.tolist()
    assert len(held.wanted(store, ids[:5])) == 0


def test_answers_do_not_depend_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    factor = rng.normal(size=(200, 10))
    X = factor @ rng.normal(size=(10, 150)) + 0.3 * rng.normal(size=(200, 150))
    X *= rng.random((200, 150)) < 0.5
    y = X[:, :40] @ rng.normal(size=40) + rng.normal(size=200)
    held = columns_of(scipy.sparse.csc_matrix(X))
    answers = []
    for price in (0.0, 1e12):
        monkeypatch.setattr(module, "_GATHERED", price)
        monkeypatch.setattr(module, "_SPREAD", price)
        program = solve_lasso(held, y, Grid(ratios=(0.1, 0.01)), Stop(1e-10))
        assert all(answer.converged for answer in program.solutions)
        answers.append(program)
    for one, other in zip(answers[0].solutions, answers[1].solutions, strict=True):
        assert one.objective == pytest.approx(other.objective, rel=1e-9)
        np.testing.assert_array_equal(one.ids, other.ids)
    assert answers[0].visits != answers[1].visits
