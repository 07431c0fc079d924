"""The course of the training on a fake server: results, clocks, evaluations, replacements."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from diml.data.partition import balanced
from diml.data.planted import Planted
from diml.errors import DimlError
from diml.jobs.mf_course import Course, blocks_within
from diml.jobs.mf_data import Ratings
from diml.jobs.mf_evaluation import Goal
from diml.jobs.mf_load import Source, load
from diml.jobs.mf_model import Rule
from tests.unit.mf_cases import REAL, Run, run, sample, sample_matrix
from tests.unit.mf_fake import FakeServers

real_data = pytest.mark.skipif(not REAL.exists(), reason="the shared data are not here")


def spread_in_blocks(factor: np.ndarray) -> float:
    """How far the rows of a block of three are from each other."""
    return max(float(np.ptp(factor[b : b + 3], axis=0).max()) for b in (0, 3, 6))


def off(result: Run) -> float:
    product = result.left.astype(np.float64) @ result.right.T.astype(np.float64)
    return float(np.abs(product - sample_matrix()).max())


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_sample_with_k_3_gives_rows_equal_in_threes(workers: int, seed: int) -> None:
    result = run(sample(), Rule(k=3, seed=seed), workers=workers)
    assert off(result) < 1e-3
    assert spread_in_blocks(result.left) < 1e-3
    assert spread_in_blocks(result.right) < 1e-3


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_the_sample_with_k_4_gives_the_same_product(workers: int) -> None:
    assert off(run(sample(), Rule(k=4), workers=workers)) < 1e-3


def test_the_founding_command_has_a_falling_loss() -> None:
    result = run(sample(), Rule(k=3, decay=0.1), workers=4, staleness=5)
    tenth = [e.objective for e in result.evaluations[9::10]]
    assert all(later < 1.01 * earlier for earlier, later in pairwise(tenth))
    assert tenth[-1] < 0.3 * result.evaluations[0].objective


@pytest.mark.parametrize("update", ["petuum", "nnz", "adagrad"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("workers", "staleness"), [(1, 0), (3, 0), (3, 2)])
def test_evaluations_are_those_of_the_factors(
    update: str, biased: bool, workers: int, staleness: int
) -> None:
    ratings = load(Source(None, Planted(60, 40, 2000, seed=1), test_fraction=0.2, seed=1))
    rule = Rule(k=4, update=update, decay=0.05, init_step_size=0.05, biased=biased, seed=2)
    result = run(ratings, rule, workers=workers, staleness=staleness, iterations=4)
    assert [e.iteration for e in result.evaluations] == [1, 2, 3, 4]
    last = result.evaluations[-1]
    squares, held_out, penalty = plain_sums(ratings, rule, result)
    assert last.loss == pytest.approx(squares, rel=1e-4)
    assert last.train_rmse == pytest.approx((squares / len(ratings.train.values)) ** 0.5, rel=1e-4)
    assert last.test_rmse == pytest.approx((held_out / len(ratings.test.values)) ** 0.5, rel=1e-4)
    assert last.objective == pytest.approx(squares + 0.05 * penalty, rel=1e-4)


def plain_sums(ratings: Ratings, rule: Rule, result: Run) -> tuple[float, float, float]:
    """Sums of squares (train, held out) and the penalty, from the final factors in plain NumPy."""
    left, right = result.left.astype(np.float64), result.right.astype(np.float64)
    rows, cols, _ = ratings.train
    row_entries = np.bincount(rows, minlength=ratings.n_rows)
    col_entries = np.bincount(cols, minlength=ratings.n_cols)
    model = left[:, : rule.k] @ right.T
    row_square, col_square = (left**2).sum(axis=1), (right**2).sum(axis=1)
    if rule.biased:
        assert result.side is not None
        bias = result.side[:, 0].astype(np.float64)
        model += ratings.facts().mean + left[:, rule.k :] + bias
        col_square = col_square + bias**2
    else:
        model[row_entries == 0] = ratings.facts().mean
        model[:, col_entries == 0] = ratings.facts().mean
    per_entry = rule.update != "nnz"
    row_weight = row_entries if per_entry else np.minimum(row_entries, 1)
    col_weight = col_entries if per_entry else np.minimum(col_entries, 1)
    penalty = float(row_weight @ row_square + col_weight @ col_square)
    errors = [part.values - model[part.rows, part.cols] for part in (ratings.train, ratings.test)]
    return float((errors[0] ** 2).sum()), float((errors[1] ** 2).sum()), penalty


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("update", ["petuum", "adagrad"])
def test_replacements_end_with_the_same_bits(staleness: int, update: str) -> None:
    ratings = load(Source(None, Planted(60, 40, 2000, seed=1), test_fraction=0.1, seed=1))
    rule = Rule(k=4, update=update, decay=0.01, init_step_size=0.05, biased=True)
    settings = {"workers": 3, "iterations": 5, "staleness": staleness, "blocks": 3}
    calm = run(ratings, rule, **settings)  # type: ignore[arg-type]
    end = Course(5, 3, staleness).end
    deaths = ((1, 0), (0, 0), (0, 4), (2, 7), (1, 8), (0, end - 1), (2, end - 2))
    stormy = run(ratings, rule, deaths=deaths, **settings)  # type: ignore[arg-type]
    assert np.array_equal(calm.left, stormy.left)
    assert np.array_equal(calm.right, stormy.right)
    found = [(e.iteration, e.loss, e.test_rmse) for e in stormy.evaluations]
    assert found == [(e.iteration, e.loss, e.test_rmse) for e in calm.evaluations]


@pytest.mark.parametrize(("workers", "staleness"), [(3, 0), (2, 0), (4, 1), (1, 0)])
def test_a_run_goes_on_from_a_checkpoint_on_any_number_of_workers(
    workers: int, staleness: int
) -> None:
    ratings = load(Source(None, Planted(60, 40, 2000, seed=1), test_fraction=0.1, seed=1))
    rule = Rule(k=4, update="adagrad", decay=0.01, init_step_size=0.05, biased=True)
    calm = run(ratings, rule, workers=3, iterations=8, blocks=3)
    first = FakeServers(3, 0, rule.seed)
    first.stop_at = 4 * 3
    run(ratings, rule, workers=3, iterations=8, blocks=3, servers=first)
    after = first.again(workers, staleness)
    blocks = 3 if workers == 3 else None
    on = run(
        ratings, rule, workers=workers, iterations=8, staleness=staleness, blocks=blocks,
        servers=after, deaths=((0, 12), (0, 14)),
    )  # fmt: skip
    assert [e.iteration for e in on.evaluations] == list(range(1, 9))
    assert [e.loss for e in on.evaluations[:3]] == [e.loss for e in calm.evaluations[:3]]
    assert on.evaluations[3].loss == pytest.approx(calm.evaluations[3].loss, rel=1e-6)
    if workers == 3:
        assert np.array_equal(on.left, calm.left)
        assert np.array_equal(on.right, calm.right)
    else:
        assert on.evaluations[-1].test_rmse == pytest.approx(
            calm.evaluations[-1].test_rmse, rel=0.02
        )


def test_planted_data_reach_the_noise_floor_on_four_workers() -> None:
    plan = Planted(1500, 400, 150_000, rank=4, noise=0.5, skew=0.5, seed=3)
    ratings = load(Source(None, plan, test_fraction=0.05, seed=3))
    rule = Rule(k=4, update="adagrad", decay=0.02, init_step_size=0.05)
    result = run(ratings, rule, workers=4, iterations=25, eval_every=25)
    assert result.layout.blocks == 4
    assert result.evaluations[-1].test_rmse < 1.05 * 0.5


def test_a_step_that_is_too_large_is_an_error_with_advice() -> None:
    ratings = load(Source(None, Planted(60, 40, 2000, seed=1)))
    with pytest.raises(DimlError, match="divide --init_step_size by 10"):
        run(ratings, Rule(k=4, init_step_size=50.0), workers=2, iterations=5)


@pytest.mark.parametrize("staleness", [0, 2])
@pytest.mark.parametrize("deaths", [(), ((0, 11), (1, 16), (2, 20), (0, 21))])
def test_all_workers_end_early_together(
    staleness: int, deaths: tuple[tuple[int, int], ...]
) -> None:
    ratings = load(Source(None, Planted(60, 40, 2000, seed=1), test_fraction=0.2, seed=1))
    rule = Rule(k=4, update="adagrad", init_step_size=0.05, decay=0.01)
    settings = {"workers": 3, "iterations": 30, "staleness": staleness, "blocks": 3}
    full = run(ratings, rule, **settings)  # type: ignore[arg-type]
    target = full.evaluations[5].rmse
    first = next(e.iteration for e in full.evaluations if e.rmse <= target)
    short = run(ratings, rule, goal=Goal(target_rmse=target), deaths=deaths, **settings)  # type: ignore[arg-type]
    # The iteration under way when the evaluation is read is the last one.
    assert first < short.evaluations[-1].iteration <= first + 2
    losses = [e.loss for e in short.evaluations]
    assert losses[:first] == [e.loss for e in full.evaluations[:first]]


@real_data
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    ("rule", "iterations", "bound"),
    [
        (Rule(k=8, update="adagrad", decay=0.1, init_step_size=0.02), 75, 1.02),
        (Rule(k=8, update="petuum", decay=0.4, init_step_size=0.05, biased=True), 20, 0.92),
        (Rule(k=8, update="nnz", decay=6.0, init_step_size=0.05, biased=True), 30, 0.92),
    ],
    ids=["plain", "bias petuum", "bias nnz"],
)
def test_real_ratings(rule: Rule, iterations: int, bound: float, workers: int) -> None:
    source = Source(str(REAL / "real_matrix.tr.txt"), None, str(REAL / "real_matrix.te.txt"))
    result = run(load(source), rule, workers=workers, iterations=iterations, eval_every=100)
    assert result.evaluations[-1].test_rmse <= bound


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("eval_every", [1, 2, 5, 9])
@pytest.mark.parametrize("blocks", [1, 4])
def test_each_evaluation_is_made_once_and_readable_once(
    staleness: int, eval_every: int, blocks: int
) -> None:
    course = Course(7, blocks, staleness, eval_every)
    made = {it: clock for clock in range(course.end) if (it := course.evaluated(clock))}
    assert list(made) == sorted({*range(eval_every, 7, eval_every), 7})
    read: list[int] = []
    for clock in range(course.end + 1):
        found = course.readable(clock, read[-1] if read else 0)
        assert all(made[iteration] <= clock - staleness - 1 for iteration in found)
        read += found
        assert course.readable(clock, 0) == read
    assert read == list(made)


def test_blocks_are_cut_until_each_is_small_enough() -> None:
    counts = np.random.default_rng(1).zipf(1.3, 500).clip(0, 10_000)
    for most in (1, 7, 100, 500):
        blocks = blocks_within(most, counts, 3)
        assert blocks >= 3
        assert np.bincount(balanced(counts, blocks)).max() <= most


def test_few_rows_at_a_time_come_to_the_same_error() -> None:
    ratings = load(
        Source(None, Planted(300, 80, 12_000, rank=2, seed=1), test_fraction=0.1, seed=1)
    )
    rule = Rule(k=4, update="adagrad", decay=0.02, init_step_size=0.05)
    settings = {"workers": 2, "iterations": 15, "eval_every": 15}
    free = run(ratings, rule, **settings)  # type: ignore[arg-type]
    blocks = blocks_within(9, ratings.col_entries, 2)
    tight = run(ratings, rule, blocks=blocks, **settings)  # type: ignore[arg-type]
    assert tight.evaluations[-1].test_rmse == pytest.approx(
        free.evaluations[-1].test_rmse, rel=0.01
    )
