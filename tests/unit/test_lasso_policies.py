"""The policies compared on neighbour-correlated data: who converges, who diverges, at what cost."""

from __future__ import annotations

import numpy as np
import pytest

from diml.data.design_planted import neighbour_correlated
from diml.errors import Misuse
from diml.strads.columns import columns_of
from diml.strads.lasso_base import LassoBase
from diml.strads.lasso_blocks import Diverged, LassoBlocks
from diml.strads.lasso_problem import Grid, Stop
from diml.strads.lasso_program import LassoProgram
from diml.strads.policy import Cyclic, Policy, PriorityDependency, Random, WorkingSet
from diml.strads.program import Alone, run

DATA = neighbour_correlated()
GRID = Grid(ratios=(0.1,))


def solve(
    policy: Policy, on_divergence: str = "stop", rounds: int = 100_000, pipeline: int = 0
) -> LassoBase:
    held = columns_of(DATA.X)
    stop = Stop(1e-6, rounds_max=rounds)
    program: LassoBase
    if policy.update == "solve":
        program = LassoProgram(held, DATA.y, GRID, stop, intercept=False)
    else:
        program = LassoBlocks(
            held,
            DATA.y,
            GRID,
            stop,
            intercept=False,
            policy=policy,
            on_divergence=on_divergence,
        )
    run(Alone(), program, policy=policy, pipeline=pipeline, checkpoint_work=3_000_000)
    return program


def test_a_working_set_needs_five_times_fewer_visits_than_cyclic() -> None:
    cyclic = solve(Cyclic(1000, 1000, exact=True))
    working = solve(WorkingSet())
    assert cyclic.solutions[0].converged and working.solutions[0].converged
    assert 5 * working.visits <= cyclic.visits
    assert working.rounds < cyclic.rounds
    np.testing.assert_array_equal(working.solutions[0].ids, cyclic.solutions[0].ids)


@pytest.mark.parametrize("policy", [Random(1000, 256), Cyclic(1000, 32)])
def test_blind_blocks_diverge_and_are_caught(policy: Policy) -> None:
    with pytest.raises(Diverged, match=r"diverged after .* take smaller blocks"):
        solve(policy)


def test_where_no_block_can_be_smaller_a_shorter_pipeline_is_the_advice() -> None:
    with pytest.raises(Diverged, match="outdated residuals: take a shorter --pipeline"):
        solve(Cyclic(1000, 1), on_divergence="halve", pipeline=8)


def test_a_divergence_is_handled_by_smaller_blocks() -> None:
    program = solve(Random(1000, 256, seed=1), on_divergence="halve", rounds=3000)
    assert isinstance(program, LassoBlocks)
    assert program.divergences
    answer = program.solutions[0]
    assert answer.gap < 1e-2 * float(DATA.y @ DATA.y) / 500
    assert answer.objective <= 0.5 * float(DATA.y @ DATA.y) / 500


def test_the_published_policy_makes_progress_without_diverging() -> None:
    policy = PriorityDependency(1000, 32, rho=0.1)
    program = solve(policy, rounds=1500)
    gap = program.solutions[0].gap
    assert not program.solutions[0].converged
    assert gap < 0.1 * float(DATA.y @ DATA.y) / 500
    assert policy.kept < policy.drawn


def test_a_pipeline_computes_from_a_model_that_lacks_the_latest_results() -> None:
    plain = solve(Random(1000, 4), rounds=3_000)
    piped = solve(Random(1000, 4), rounds=3_000, pipeline=3)
    assert piped.solutions[0].gap != plain.solutions[0].gap
    assert piped.solutions[0].gap == pytest.approx(plain.solutions[0].gap, rel=0.2)
    with pytest.raises(Misuse, match="pipeline"):
        solve(WorkingSet(), pipeline=1)


def test_exact_blocks_of_one_equal_one_exact_sweep() -> None:
    one = solve(Cyclic(1000, 1), rounds=2000)
    sweep = solve(Cyclic(1000, 1000, exact=True), rounds=2)
    assert one.solutions[0].gap == pytest.approx(sweep.solutions[0].gap, rel=1e-6)
