"""Minimisation by L-BFGS and OWL-QN, and the parts of ADMM, against closed forms and optimality."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from diml.jobs.logistic_admm import shrunk
from diml.jobs.logistic_batch import Part
from diml.jobs.logistic_data import Examples
from diml.jobs.quasi_newton import Smooth, State, pseudo_gradient, start, step


def _minimised(smooth: Smooth, d: int, l1: float, steps: int = 300) -> State:
    state = start(np.zeros(d), smooth, l1)
    while not state.done and state.steps < steps:
        state = step(state, smooth, l1, memory=10, tolerance=1e-9)
    return state


def _logistic(rows: int, d: int) -> tuple[Part, sp.csr_matrix, np.ndarray]:
    rng = np.random.default_rng(1)
    X = sp.random(rows, d, 0.3, format="csr", rng=rng)
    y = (rng.random(rows) < 1 / (1 + np.exp(-3 * (X @ rng.normal(size=d))))).astype(float)
    return Part(Examples(X, y, rows)), X, y


def test_a_quadratic_ends_at_its_minimum() -> None:
    rng = np.random.default_rng(0)
    A = rng.normal(size=(30, 12))
    H, b = A.T @ A + np.eye(12), rng.normal(size=12)
    state = _minimised(lambda w: (0.5 * w @ H @ w - b @ w, H @ w - b), 12, 0.0)
    assert state.done and state.w == pytest.approx(np.linalg.solve(H, b), abs=1e-7)


def test_the_kernel_is_its_formula_also_far_out() -> None:
    part, X, y = _logistic(50, 8)
    for scale in (1.0, 1e5):
        w = np.random.default_rng(2).normal(size=8) * scale
        z = X @ w
        sums = part.loss_gradient(w)
        expected = X.T @ (0.5 * (1 + np.tanh(z / 2)) - y)
        assert sums[:-2] == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert sums[-2] == pytest.approx(np.logaddexp(0, z).sum() - y @ z)
        assert sums[-1] == ((z > 0) == (y == 1)).sum()
    assert part.passes == 2 and part.rows == 50


@pytest.mark.parametrize("l1", [0.0, 0.01])
def test_logistic_regression_ends_where_no_direction_descends(l1: float) -> None:
    part, _, _ = _logistic(400, 20)

    def smooth(w: np.ndarray) -> tuple[float, np.ndarray]:
        sums = part.loss_gradient(w)
        return sums[-2] / 400 + 0.005 * w @ w, sums[:-2] / 400 + 0.01 * w

    state = _minimised(smooth, 20, l1)
    assert state.done
    assert np.abs(pseudo_gradient(state.w, state.gradient, l1)).max() < 1e-8
    assert (state.w == 0).any() == (l1 > 0)


def test_a_state_goes_on_from_its_tree_with_the_same_bits() -> None:
    part, _, _ = _logistic(200, 10)

    def smooth(w: np.ndarray) -> tuple[float, np.ndarray]:
        sums = part.loss_gradient(w)
        return sums[-2], sums[:-2]

    states = [start(np.zeros(10), smooth, 0.5)]
    for _ in range(6):
        states.append(step(states[-1], smooth, 0.5, memory=3, tolerance=0.0))
    assert [state.steps for state in states] == list(range(7))
    again = State.of(states[3].tree())
    for _ in range(3):
        again = step(again, smooth, 0.5, memory=3, tolerance=0.0)
    assert again.w.tobytes() == states[6].w.tobytes() and len(again.moves) == 3
    # Nothing was changed in place.
    assert states[0].w.tobytes() == np.zeros(10).tobytes()


def test_the_penalty_of_the_average_is_minimised_exactly() -> None:
    mean, l1, l2, weight = np.array([-2.0, 0.1, 0.5]), 0.6, 0.3, 2.0
    z = shrunk(mean, l1, l2, weight)
    slope = l2 * z + weight * (z - mean)
    assert z[1] == 0 and abs(slope[1]) <= l1
    assert slope[[0, 2]] == pytest.approx(-l1 * np.sign(z[[0, 2]])) or z[2] == 0
    assert z[0] == pytest.approx((-2.0 + l1 / weight) * weight / (weight + l2))
