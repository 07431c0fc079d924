"""Training by rotation on a ring in memory: the same quality on any number of workers, resumed
runs, early ends, steps that are halved."""

from __future__ import annotations

import numpy as np
import pytest

from diml.data.planted import Planted
from diml.errors import DimlError, Misuse
from diml.jobs.mf_data import Ratings
from diml.jobs.mf_evaluation import Goal
from diml.jobs.mf_load import Source, load
from diml.jobs.mf_model import Rule
from tests.unit.mf_cases import REAL, sample, sample_matrix
from tests.unit.mf_ring import FakeRing, rotate

PLAN = Planted(1500, 400, 150_000, rank=4, noise=0.5, skew=0.5, seed=3)


def small() -> Ratings:
    return load(Source(None, Planted(60, 40, 2000, seed=1), test_fraction=0.2, seed=1))


@pytest.mark.parametrize("update", ["petuum", "adagrad"])
def test_any_number_of_workers_comes_to_the_same_error(update: str) -> None:
    ratings = load(Source(None, PLAN, test_fraction=0.05, seed=3))
    rule = Rule(k=4, update=update, decay=0.02, init_step_size=0.1 if update == "petuum" else 0.05)
    ends = [
        rotate(ratings, rule, workers=workers, eval_every=20)[0][-1].test_rmse
        for workers in (1, 2, 3, 4)
    ]
    assert max(ends) < 1.005 * min(ends)
    if update == "adagrad":
        assert max(ends) < 1.05 * 0.5


@pytest.mark.skipif(not REAL.exists(), reason="the shared data are not here")
@pytest.mark.parametrize("workers", [1, 3])
def test_real_ratings_with_biases(workers: int) -> None:
    source = Source(str(REAL / "real_matrix.tr.txt"), None, str(REAL / "real_matrix.te.txt"))
    rule = Rule(k=8, update="nnz", decay=6.0, init_step_size=0.05, biased=True)
    end = rotate(load(source), rule, workers=workers, iterations=30, eval_every=30)[0][-1]
    assert end.test_rmse <= 0.92


@pytest.mark.parametrize("workers", [1, 3])
def test_the_sample(workers: int) -> None:
    _, (left, right, _), _ = rotate(sample(), Rule(k=3), workers=workers, iterations=100)
    assert np.abs(left @ right.T - sample_matrix()).max() < 1e-3


@pytest.mark.parametrize("update", ["petuum", "nnz", "adagrad"])
@pytest.mark.parametrize("biased", [False, True])
def test_evaluations_are_those_of_the_factors(update: str, biased: bool) -> None:
    ratings = small()
    rule = Rule(k=4, update=update, decay=0.05, init_step_size=0.05, biased=biased, seed=2)
    evaluations, (left, right, side), _ = rotate(ratings, rule, workers=3, iterations=4)
    assert [e.iteration for e in evaluations] == [1, 2, 3, 4]
    model = left[:, :4].astype(np.float64) @ right.T.astype(np.float64)
    if biased:
        model += ratings.facts().mean + left[:, 4:] + side[:, 0]
    rows, cols, values = ratings.train
    squares = float(((values - model[rows, cols]) ** 2).sum())
    assert evaluations[-1].loss == pytest.approx(squares, rel=1e-4)
    assert evaluations[-1].objective > evaluations[-1].loss


def test_a_run_is_repeated_to_the_bit() -> None:
    runs = [rotate(small(), Rule(k=5, biased=True), workers=3, iterations=3) for _ in range(2)]
    for one, two in zip(runs[0][1], runs[1][1], strict=True):
        assert np.array_equal(one, two)


def test_a_resumed_run_ends_with_the_same_bits() -> None:
    rule = Rule(k=4, update="adagrad", init_step_size=0.05, biased=True)
    calm = rotate(small(), rule, workers=3, iterations=6)
    ring = FakeRing(3)
    rotate(small(), rule, workers=3, iterations=2, ring=ring)
    resumed = rotate(small(), rule, workers=3, iterations=6, ring=ring)
    for one, two in zip(calm[1], resumed[1], strict=True):
        assert np.array_equal(one, two)
    assert [e.loss for e in resumed[0]] == [e.loss for e in calm[0]]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_another_number_of_workers_goes_on_from_the_same_model(workers: int) -> None:
    rule = Rule(k=4, update="adagrad", init_step_size=0.05, biased=True)
    ring = FakeRing(3)
    before = rotate(small(), rule, workers=3, iterations=4, ring=ring)
    same = rotate(small(), rule, workers=workers, iterations=4, ring=ring.resized(workers))
    for one, two in zip(before[1], same[1], strict=True):
        assert np.array_equal(one, two)
    calm = rotate(small(), rule, workers=3, iterations=12)
    on = rotate(small(), rule, workers=workers, iterations=12, ring=ring.resized(workers))
    assert [e.iteration for e in on[0]] == list(range(1, 13))
    assert on[0][-1].test_rmse == pytest.approx(calm[0][-1].test_rmse, rel=0.02)


@pytest.mark.parametrize("workers", [2, 3])
def test_a_checkpoint_of_an_earlier_version_is_refused(workers: int) -> None:
    rule, ring = Rule(k=4, update="adagrad", init_step_size=0.05), FakeRing(3)
    rotate(small(), rule, workers=3, iterations=2, ring=ring)
    for state in ring.locals:
        # A worker had one block of columns.
        state["held"], state["cols"] = state["held"][0], state["cols"][0]
    again = ring if workers == 3 else ring.resized(workers)
    with pytest.raises(Misuse, match=r"made by an earlier version of DiML.*--resume never"):
        rotate(small(), rule, workers=workers, iterations=3, ring=again)


def test_training_ends_at_the_target_or_out_of_patience() -> None:
    rule = Rule(k=4, update="adagrad", init_step_size=0.05, decay=0.01)
    full, _, why = rotate(small(), rule, workers=2, iterations=12)
    assert why == ""
    target = full[4].test_rmse
    first = next(e.iteration for e in full if e.test_rmse <= target)
    short, _, why = rotate(small(), rule, workers=2, iterations=12, goal=Goal(target_rmse=target))
    assert len(short) == first < 12
    assert "as asked for" in why
    tired, _, why = rotate(small(), rule, workers=2, iterations=400, goal=Goal(patience=3))
    best = min(e.test_rmse for e in tired)
    assert tired[-4].test_rmse == best
    assert "no lower RMSE" in why


def test_a_step_that_is_too_large_is_an_error_with_advice_or_halved() -> None:
    rule = Rule(k=4, init_step_size=100.0)
    with pytest.raises(DimlError, match="divide --init_step_size by 10"):
        rotate(small(), rule, workers=2, iterations=5)
    evaluations, _, _ = rotate(small(), rule, workers=2, iterations=10, auto_step=True)
    assert [e.iteration for e in evaluations] == list(range(1, 11))
    assert all(e.finite for e in evaluations)
    assert evaluations[-1].loss < evaluations[0].loss
