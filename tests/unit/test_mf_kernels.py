"""The compiled update rules against plain NumPy twins, entry by entry, and their sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diml.kernels import mf

ROWS, COLS, ENTRIES = 11, 7, 60


class Problem:
    """A small random problem with its factors, biases and accumulators."""

    def __init__(self, k: int, seed: int = 3) -> None:
        random = np.random.default_rng(seed)
        self.rows = random.integers(0, ROWS, ENTRIES).astype(np.int32)
        self.cols = random.integers(0, COLS, ENTRIES).astype(np.int32)
        self.values = random.normal(3, 1, ENTRIES).astype(np.float32)
        self.left = random.random((ROWS, k)).astype(np.float32)
        self.right = random.random((COLS, k)).astype(np.float32)
        self.row_bias = random.normal(size=ROWS).astype(np.float32)
        self.col_bias = random.normal(size=COLS).astype(np.float32)
        self.row_sum = random.random(ROWS).astype(np.float32)
        self.col_sum = random.random(COLS).astype(np.float32)
        self.row_decay = (random.random(ROWS) * 0.1).astype(np.float32)
        self.col_decay = (random.random(COLS) * 0.1).astype(np.float32)

    def common(self, biased: bool) -> tuple[Any, ...]:
        """The arguments that all kernels share up to `mean`."""
        triplets = (self.rows, self.cols, self.values)
        factors = (self.left, self.right, self.row_bias, self.col_bias)
        return (*triplets, *factors, biased, np.float32(2.5))

    def state(self) -> list[np.ndarray]:
        """What an update may change."""
        factors = [self.left, self.right, self.row_bias, self.col_bias]
        return [*factors, self.row_sum, self.col_sum]


def error_of(p: Problem, n: int, biased: bool) -> float:
    i, j = p.rows[n], p.cols[n]
    offset = 2.5 + float(p.row_bias[i]) + float(p.col_bias[j]) if biased else 0.0
    return float(p.values[n]) - offset - float(np.dot(p.left[i], p.right[j]))


def twin_decay(
    p: Problem, n: int, eta: float, biased: bool, row_decay: float, col_decay: float
) -> None:
    """bosen.md 2a to the letter, with its lambda for either side."""
    i, j = p.rows[n], p.cols[n]
    e = error_of(p, n, biased)
    left, right = p.left[i].copy(), p.right[j].copy()
    p.left[i] = left - eta * (-2 * e * right + 2 * row_decay * left)
    p.right[j] = right - eta * (-2 * e * left + 2 * col_decay * right)
    if biased:
        p.row_bias[i] -= eta * (-2 * e + 2 * row_decay * p.row_bias[i])
        p.col_bias[j] -= eta * (-2 * e + 2 * col_decay * p.col_bias[j])


def twin_adagrad(p: Problem, n: int, eta: float, biased: bool, decay: float) -> None:
    i, j = p.rows[n], p.cols[n]
    e = error_of(p, n, biased)
    left, right = p.left[i].copy(), p.right[j].copy()
    row_pull, col_pull = e * right - decay * left, e * left - decay * right
    row_step, col_step = (2 * eta / np.sqrt(1 + s) for s in (p.row_sum[i], p.col_sum[j]))
    p.left[i] = left + row_step * row_pull
    p.right[j] = right + col_step * col_pull
    p.row_sum[i] += np.mean(row_pull**2)
    p.col_sum[j] += np.mean(col_pull**2)
    if biased:
        p.row_bias[i] += row_step * (e - decay * p.row_bias[i])
        p.col_bias[j] += col_step * (e - decay * p.col_bias[j])


def compare(fast: Problem, slow: Problem) -> None:
    for ours, twins in zip(fast.state(), slow.state(), strict=True):
        np.testing.assert_allclose(ours, twins, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 8, 33])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rule", ["petuum", "nnz", "adagrad"])
def test_rules_equal_their_twins(rule: str, biased: bool, k: int) -> None:
    fast, slow = Problem(k), Problem(k)
    eta, decay = 0.02, 0.1
    eta2 = np.float32(2 * eta)
    common = fast.common(biased)
    if rule == "petuum":
        mf.sgd_petuum(*common, eta2, np.float32(decay))
    elif rule == "nnz":
        mf.sgd_nnz(*common, eta2, fast.row_decay, fast.col_decay)
    else:
        mf.sgd_adagrad(*common, eta2, np.float32(decay), fast.row_sum, fast.col_sum)
    for n in range(ENTRIES):
        i, j = slow.rows[n], slow.cols[n]
        if rule == "petuum":
            twin_decay(slow, n, eta, biased, decay, decay)
        elif rule == "nnz":
            twin_decay(slow, n, eta, biased, float(slow.row_decay[i]), float(slow.col_decay[j]))
        else:
            twin_adagrad(slow, n, eta, biased, decay)
    compare(fast, slow)
    assert not np.array_equal(fast.left, Problem(k).left)
    assert np.array_equal(fast.row_bias, Problem(k).row_bias) == (not biased)


@pytest.mark.parametrize("biased", [False, True])
def test_squared_error_is_the_sum_of_squares(biased: bool) -> None:
    p = Problem(5)
    expected = sum(error_of(p, n, biased) ** 2 for n in range(ENTRIES))
    assert mf.squared_error(*p.common(biased)) == pytest.approx(expected, rel=1e-6)


def test_squared_error_sees_that_factors_are_not_finite() -> None:
    p = Problem(5)
    p.left[p.rows[0]] = np.nan
    assert not np.isfinite(mf.squared_error(*p.common(False)))


def test_weighted_square() -> None:
    p = Problem(4)
    weights = np.arange(ROWS, dtype=np.float64)
    expected = float((weights * (p.left.astype(np.float64) ** 2).sum(axis=1)).sum())
    assert mf.weighted_square(p.left, weights) == pytest.approx(expected, rel=1e-12)


def test_warm_up_compiles_the_types_that_training_uses() -> None:
    mf.warm_up()
    kernels = (mf.sgd_petuum, mf.sgd_nnz, mf.sgd_adagrad, mf.squared_error, mf.weighted_square)
    before = [len(kernel.signatures) for kernel in kernels]
    for biased in (False, True):
        p = Problem(6)
        common = p.common(biased)
        mf.sgd_petuum(*common, np.float32(0.1), np.float32(0))
        mf.sgd_nnz(*common, np.float32(0.1), p.row_decay, p.col_decay)
        mf.sgd_adagrad(*common, np.float32(0.1), np.float32(0), p.row_sum, p.col_sum)
        mf.squared_error(*common)
        mf.weighted_square(p.left, np.ones(ROWS))
    assert [len(kernel.signatures) for kernel in kernels] == before


def test_steps_that_are_too_large_end_without_an_exception() -> None:
    p = Problem(4)
    for _ in range(50):
        mf.sgd_adagrad(*p.common(True), np.float32(1e9), np.float32(0), p.row_sum, p.col_sum)
    assert not np.isfinite(mf.squared_error(*p.common(True)))
