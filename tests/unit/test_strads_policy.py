"""Policies as pure code: what they draw, what they keep, and that their state brings them back."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from diml.errors import Misuse
from diml.strads.dependency import independent
from diml.strads.policy import (
    POLICIES,
    Cyclic,
    Policy,
    Priority,
    PriorityDependency,
    Random,
    WorkingSet,
    policy_by_name,
    worst,
)

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class Answering:
    """A program that answers with what it was made with."""

    def __init__(self, support: list[int], ids: list[int], scores: list[float]) -> None:
        self._support = np.array(support, np.int64)
        self._ids = np.array(ids, np.int64)
        self._scores = np.array(scores)

    def correlations(self, candidates: Integers) -> Floats:
        far = np.abs(candidates[:, None] - candidates[None, :])
        return np.where(far <= 1, 1.0, 0.0)

    def support(self) -> Integers:
        return self._support

    def violations(self, most: int) -> tuple[Integers, Floats]:
        return self._ids, self._scores


ANSWERS = Answering([], [], [])


def test_cyclic_visits_all_in_order_and_wraps() -> None:
    policy = Cyclic(5, 2)
    blocks = [policy.next_block(ANSWERS).tolist() for _ in range(4)]
    assert blocks == [[0, 1], [2, 3], [4, 0], [1, 2]]


def test_random_draws_distinct_variables_uniformly() -> None:
    policy = Random(20, 5, seed=3)
    counts = np.zeros(20)
    for _ in range(2000):
        block = policy.next_block(ANSWERS)
        assert len(set(block.tolist())) == 5
        counts[block] += 1
    assert (np.abs(counts / 500 - 1) < 0.25).all()


def test_priority_prefers_what_moved() -> None:
    policy = Priority(100, 10, seed=1)
    for _ in range(3 * 100 // 10):  # the uniform phase
        block = policy.next_block(ANSWERS)
        policy.moved(block, np.where(block < 20, 1.0, 0.0))
    seen = np.concatenate([policy.next_block(ANSWERS) for _ in range(300)])
    assert (seen < 20).mean() > 0.8


def test_blocks_in_flight_never_conflict() -> None:
    policy = PriorityDependency(50, 8, seed=5, candidates=24, rho=0.5)
    for _ in range(200):
        block = policy.next_block(ANSWERS)
        policy.moved(block, np.ones(len(block)))
        assert 0 < len(block) <= 8
        assert (np.diff(np.sort(block)) > 1).all()
    assert policy.kept < policy.drawn


def test_what_is_in_flight_is_avoided_with_its_neighbours() -> None:
    busy = np.array([10, 11, 30], np.int64)
    dependency = PriorityDependency(50, 8, seed=2, candidates=24, rho=0.5)
    random = Random(50, 20, seed=2)
    for _ in range(100):
        dependency.in_flight = random.in_flight = busy
        block = dependency.next_block(ANSWERS)
        assert not np.isin(block, [9, 10, 11, 12, 29, 30, 31]).any()
        assert not np.isin(random.next_block(ANSWERS), busy).any()


def test_few_variables_all_correlated_have_their_turn_each() -> None:
    class Alike:
        def correlations(self, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
            return np.ones((len(candidates), len(candidates)))

    policy = PriorityDependency(10, 32, seed=4, rho=0.1)
    seen: set[int] = set()
    for _ in range(300):
        block = policy.next_block(Alike())  # type: ignore[arg-type]  # it asks for no more
        policy.moved(block, np.zeros(len(block)))
        seen.update(block.tolist())
    assert seen == set(range(10))


def test_filter_keeps_the_first_of_a_correlated_pair() -> None:
    correlation = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert independent(correlation, 0.5, 3).tolist() == [0, 2]
    assert independent(correlation, 0.95, 3).tolist() == [0, 1, 2]
    assert independent(correlation, 0.95, 2).tolist() == [0, 1]


def test_working_set_keeps_the_support_and_takes_the_worst() -> None:
    policy = WorkingSet(first=4, growth=2.0)
    program = Answering([7, 9], [1, 2, 3, 4], [0.5, 0.9, 0.9, 0.1])
    assert policy.next_block(program).tolist() == [2, 3, 7, 9]
    crowded = Answering([5, 6, 7], [1, 2, 3, 4], [0.5, 0.9, 0.9, 0.1])
    assert policy.next_block(crowded).tolist() == [1, 2, 3, 5, 6, 7]


def test_ties_go_to_the_lower_id() -> None:
    ids = np.array([9, 3, 5, 1], np.int64)
    assert worst(ids, np.ones(4), 2).tolist() == [1, 3]
    assert worst(ids, np.ones(4), 0).tolist() == []


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "working-set"])
def test_state_brings_a_policy_back(name: str) -> None:
    policy = policy_by_name(name, 40, block=6, seed=11)

    def steps(one: Policy, count: int) -> list[list[int]]:
        blocks = []
        for _ in range(count):
            block = one.next_block(ANSWERS)
            one.moved(block, np.abs(np.sin(block)))
            blocks.append(block.tolist())
        return blocks

    steps(policy, 30)
    twin = policy_by_name(name, 40, block=6, seed=99)
    twin.restore(policy.state())
    assert steps(twin, 20) == steps(policy, 20)


def test_halving_ends_at_one() -> None:
    policy = Random(100, 4)
    assert [policy.halve(), policy.halve(), policy.halve()] == [True, True, False]
    assert policy.block == 1


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(Misuse, match="no policy 'best'"):
        policy_by_name("best", 3)
