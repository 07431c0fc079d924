"""Training on servers that halves a step which was too large: results, deaths, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from diml.data.planted import Planted
from diml.errors import DimlError
from diml.jobs.mf_evaluation import HALVINGS_MAX, Evaluation, Goal, too_large
from diml.jobs.mf_load import Source, load
from diml.jobs.mf_model import Rule
from tests.unit.mf_cases import Run, run
from tests.unit.mf_fake import FakeServers

LARGE = Rule(k=4, init_step_size=100.0, decay=0.01, biased=True)
SMALL = {"workers": 3, "iterations": 6, "blocks": 3, "auto_step": True}


def careful(rule: Rule = LARGE, **more: object) -> Run:
    ratings = load(Source(None, Planted(60, 40, 2000, seed=1), test_fraction=0.1, seed=1))
    return run(ratings, rule, **{**SMALL, **more})  # type: ignore[arg-type]


def same(one: Run, two: Run) -> bool:
    losses = [[e.loss for e in found.evaluations] for found in (one, two)]
    factors = ((one.left, two.left), (one.right, two.right))
    return losses[0] == losses[1] and all(np.array_equal(a, b) for a, b in factors)


@pytest.mark.parametrize(("workers", "staleness"), [(1, 0), (3, 0), (3, 2)])
@pytest.mark.parametrize("init", ["scaled", "petuum"])
def test_a_step_that_is_too_large_is_halved(workers: int, staleness: int, init: str) -> None:
    rule = Rule(k=4, init_step_size=100.0, init=init)
    found = careful(rule, workers=workers, staleness=staleness)
    assert [e.iteration for e in found.evaluations] == list(range(1, 7))
    assert all(e.finite for e in found.evaluations)
    assert found.evaluations[-1].loss < found.evaluations[0].loss
    assert np.isfinite(found.left).all()
    assert np.isfinite(found.right).all()


@pytest.mark.parametrize("staleness", [0, 1])
def test_a_step_that_is_small_enough_is_left_alone(staleness: int) -> None:
    gentle = Rule(k=4, update="adagrad", init_step_size=0.05, biased=True)
    one, other = (careful(gentle, staleness=staleness, auto_step=a) for a in (True, False))
    losses = [[e.loss for e in found.evaluations] for found in (one, other)]
    if staleness:
        # Everything is visible where an iteration begins, not so without it.
        assert losses[0][-1] == pytest.approx(losses[1][-1], rel=0.3)
    else:
        assert same(one, other)


def test_the_model_goes_on_from_the_last_good_version() -> None:
    # Steps grow until one is too large, so that there is a good version other than the first.
    rule = Rule(k=4, init_step_size=0.002, step_size_offset=1.0, step_size_pow=-3.0)
    found = careful(rule, iterations=12).evaluations
    assert [e.iteration for e in found] == list(range(1, 13))
    with pytest.raises(DimlError, match="after iteration"):
        careful(rule, iterations=12, auto_step=False)
    gentle = careful(rule, iterations=2, auto_step=False).evaluations
    assert [e.loss for e in found[:2]] == [e.loss for e in gentle]


@pytest.mark.parametrize("staleness", [0, 2])
def test_replacements_end_with_the_same_bits(staleness: int) -> None:
    calm_servers = FakeServers(3, staleness, LARGE.seed)
    calm = careful(staleness=staleness, servers=calm_servers)
    clocks = calm_servers.clocks
    assert len(set(clocks)) == 1
    told: list[list[int]] = []

    def reporter() -> Callable[[Sequence[Evaluation]], None]:
        told.append([])
        return lambda evaluations: told[-1].append(len(evaluations))

    for low in range(0, clocks[0], 7):
        deaths = tuple((n % 3, n) for n in range(low, min(low + 7, clocks[0]), 2))
        deaths += ((0, clocks[0] - 1),)
        assert same(calm, careful(staleness=staleness, deaths=deaths, reporter=reporter))
        assert told[-1][-1] == 6


@pytest.mark.parametrize(("workers", "iterations"), [(3, 6), (2, 6), (3, 2)])
def test_a_run_goes_on_from_a_checkpoint(workers: int, iterations: int) -> None:
    watched, first = FakeServers(3, 0, LARGE.seed), FakeServers(3, 0, LARGE.seed)
    calm = careful(servers=watched)
    # One after each iteration, of a good version.
    assert len(watched.checkpoints) == 6
    first.stop_at = sorted(watched.checkpoints)[1]
    careful(servers=first)
    on = careful(workers=workers, iterations=iterations, servers=first.again(workers, 0))
    assert [e.loss for e in on.evaluations[:2]] == [e.loss for e in calm.evaluations[:2]]
    assert len(on.evaluations) == iterations
    if workers == 3 and iterations == 6:
        assert same(on, calm)
    assert np.isfinite(on.left).all()


def test_the_end_comes_with_the_evaluation_that_reaches_the_goal() -> None:
    full = careful(iterations=12).evaluations
    target = full[5].rmse
    first = next(e.iteration for e in full if e.rmse <= target)
    short = careful(iterations=12, goal=Goal(target_rmse=target)).evaluations
    assert short[-1].iteration == first


def test_data_that_no_step_suits_end_with_advice() -> None:
    with pytest.raises(DimlError, match="begin with a lower --init_step_size"):
        careful(Rule(k=4, init_step_size=1e30))


def test_who_has_halved_the_step_in_vain_is_not_told_to_halve_it() -> None:
    evaluation = Evaluation(2, 0.0, 0.0, 0.0, 0.0, float("nan"), 0.0)
    assert "--auto_step" in str(too_large(evaluation))
    halved = str(too_large(evaluation, HALVINGS_MAX))
    assert "--auto_step" not in halved and "halved 30 times" in halved
