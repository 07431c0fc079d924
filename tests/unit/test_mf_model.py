"""Start values, step sizes, and that the files' product is the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from diml.data.planted import Planted
from diml.jobs.mf_data import Layout, share_of
from diml.jobs.mf_files import write_factors
from diml.jobs.mf_load import Source, load
from diml.jobs.mf_model import Model, Rule
from diml.jobs.mf_product import Factors, product
from tests.unit.mf_cases import run

PLAN = Planted(80, 50, 4000, seed=1)


def start(rule: Rule, workers: int) -> npt.NDArray[np.float32]:
    """Start values of L by global row."""
    ratings = load(Source(None, PLAN))
    left = np.full((ratings.n_rows, rule.k), np.nan, np.float32)
    for worker in range(workers):
        share = share_of(ratings, worker, workers, Layout(1, shuffled=False), rule.seed)
        left[share.row_ids] = Model(rule, share, 0.0, ratings.n_rows).left
    return left


@pytest.mark.parametrize(("init", "low", "high"), [("scaled", 0.0, 0.5), ("petuum", -1.0, 1.0)])
def test_start_values_depend_on_seed_and_row_only(init: str, low: float, high: float) -> None:
    one = start(Rule(k=4, init=init, seed=5), 1)
    assert np.array_equal(one, start(Rule(k=4, init=init, seed=5), 3))
    assert not np.array_equal(one, start(Rule(k=4, init=init, seed=6), 1))
    assert low <= one.min() < low + 0.05 * (high - low)
    assert high - 0.05 * (high - low) < one.max() < high
    assert len(np.unique(one, axis=0)) == 80


def test_steps_are_petuums() -> None:
    rule = Rule(k=1)
    assert [rule.eta(t) for t in (0, 44)] == pytest.approx([0.05, 0.5 / 12])
    assert Rule(k=1, update="adagrad", init_step_size=0.05).eta(9) == 0.05


class Whole:
    """A table that is there already."""

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        self.values = values

    def get(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return self.values[ids]

    def inc(self, ids: npt.NDArray[np.int64], deltas: npt.NDArray[np.float32]) -> None:
        raise AssertionError("nothing is written here")


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("update", ["petuum", "adagrad"])
def test_the_product_of_the_files_is_the_model(tmp_path: Path, biased: bool, update: str) -> None:
    ratings = load(Source(None, PLAN))
    rule = Rule(k=4, update=update, init_step_size=0.05, biased=biased)
    result = run(ratings, rule, workers=2, iterations=5)
    side = Whole(result.side) if result.side is not None else None
    factors = Factors(Whole(result.left), Whole(result.right), side)
    write_factors(str(tmp_path / "out"), *product(factors, rule, ratings.facts()))
    left, right = np.loadtxt(tmp_path / "out.L"), np.loadtxt(tmp_path / "out.R")
    assert left.shape == (80, 4 + 2 * biased)
    errors = ratings.train.values - (left @ right.T)[ratings.train.rows, ratings.train.cols]
    rmse = float(np.sqrt(np.mean(errors**2)))
    assert rmse == pytest.approx(result.evaluations[-1].train_rmse, rel=1e-4)
