"""Blocks handed out one by one, under seeded orders of arrival: no order changes a bit."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diml.data.design_planted import neighbour_correlated
from diml.errors import CorruptState, Misuse
from diml.strads.columns import columns_of
from diml.strads.dispatch import Lead, Segment
from diml.strads.lasso_blocks import LassoBlocks
from diml.strads.lasso_problem import Grid, Stop
from diml.strads.message import END, RESULT, TASK, Message, Pulled, decode, encode
from diml.strads.policy import Policy, PriorityDependency, Random
from diml.strads.program import Alone, Program, run
from diml.strads.program import _start as begin

DATA = neighbour_correlated(200, 120, seed=3)
STOP = Stop(1e-3, rounds_max=400)


def make_policy(name: str) -> Policy:
    if name == "random":
        return Random(120, 4, seed=5)
    return PriorityDependency(120, 6, seed=5, rho=0.3)


def make_program(policy: Policy) -> LassoBlocks:
    held = columns_of(DATA.X)
    program = LassoBlocks(
        held, DATA.y, Grid(ratios=(0.2,)), STOP, intercept=False, policy=policy, copy=held
    )
    program.job = Alone()
    return program


class Worker:
    """A follower whose messages wait until the simulation lets it act."""

    def __init__(self, name: str) -> None:
        self.program = make_program(make_policy(name))
        self.program.start(None)
        self.program.finished()
        self.inbox: deque[Message] = deque()
        self.ended = False

    def act(self) -> Message | None:
        message = decode(encode(self.inbox.popleft()))
        for result in message.results:
            self.program.pull(result.block, result.values)
            if result.asked:
                self.program.finished()
        if message.kind == END:
            self.ended = True
            return None
        values = self.program.push(message.block)
        return decode(encode(Message(RESULT, message.task, values=values)))


def simulate(name: str, workers: int, pipeline: int, seed: int) -> LassoBlocks:
    draw = random.Random(seed)
    policy = make_policy(name)
    program = make_program(policy)
    program.start(None)
    crew = {rank: Worker(name) for rank in range(1, workers + 1)}
    lead = Lead(program, policy, Segment(pipeline, 10**12), range(1, workers + 1))
    while True:
        for rank, message in lead.sends():
            assert message.kind == TASK and not crew[rank].inbox
            crew[rank].inbox.append(message)
        busy = [rank for rank, worker in crew.items() if worker.inbox]
        under_way = [worker.inbox[0].block for worker in crew.values() if worker.inbox]
        if under_way:
            together = np.concatenate(under_way)
            assert len(np.unique(together)) == len(together)
        if lead.over():
            break
        rank = draw.choice(busy)
        answer = crew[rank].act()
        assert answer is not None
        lead.receive(rank, answer)
    for rank, message in lead.farewells():
        crew[rank].inbox.append(message)
        crew[rank].act()
    assert lead.finished
    for worker in crew.values():
        assert worker.ended
        np.testing.assert_array_equal(
            worker.program.solutions[0].values, program.solutions[0].values
        )
    return program


@pytest.mark.parametrize("name", ["random", "priority+dependency"])
@pytest.mark.parametrize("pipeline", [0, 1, 3])
def test_no_order_of_arrival_changes_a_bit(name: str, pipeline: int) -> None:
    policy = make_policy(name)
    alone = make_program(policy)
    run(Alone(), alone, policy=policy, pipeline=pipeline)
    for seed, workers in enumerate((1, 2, 3, 5)):
        program = simulate(name, workers, pipeline, seed)
        np.testing.assert_array_equal(program.solutions[0].values, alone.solutions[0].values)
        assert program.solutions[0].gap == alone.solutions[0].gap
        assert program.rounds == alone.rounds


def test_a_free_worker_gets_the_next_block_at_once() -> None:
    policy = make_policy("random")
    program = make_program(policy)
    program.start(None)
    lead = Lead(program, policy, Segment(3, 10**12), range(1, 3))
    first = lead.sends()
    assert [rank for rank, _ in first] == [1, 2] and lead.sends() == []
    values = np.zeros(len(first[1][1].block) + 200)
    lead.receive(2, Message(RESULT, first[1][1].task, values=values))
    again = lead.sends()  # worker 1 is slow: worker 2 goes on without it
    assert [(rank, message.task) for rank, message in again] == [(2, 2)]


arrays = st.lists(st.integers(-(2**40), 2**40), max_size=5)


@given(
    st.lists(st.tuples(arrays, arrays, st.sampled_from([0.0, 1.5e9])), max_size=3), arrays, arrays
)
def test_messages_come_back_as_they_went(
    results: list[tuple[list[int], list[int], float]], block: list[int], values: list[int]
) -> None:
    def message() -> Message:
        pulled = tuple(
            Pulled(np.array(b, np.int64), np.array(v, np.float64), asked) for b, v, asked in results
        )
        return Message(TASK, 7, pulled, np.array(block, np.int64), np.array(values, np.float64))

    data = encode(message())
    assert repr(decode(data)) == repr(message())
    for bad in (data[:-8], data[:-3], np.concatenate([data, data[:8]])):
        with pytest.raises(CorruptState):
            decode(bad)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6.0).reshape(3, 2),
        np.array(2.5),
        np.arange(3, dtype=np.int16),
        np.ones((2, 1), ">c8"),
    ],
)
def test_what_a_push_gives_keeps_its_shape_and_dtype(values: NDArray[Any]) -> None:
    came = decode(encode(Message(RESULT, 1, values=values))).values
    assert (came.dtype, came.shape, came.tobytes()) == (
        values.dtype,
        values.shape,
        values.tobytes(),
    )
    assert not came.flags.writeable  # they go on to other workers


def test_a_push_of_objects_is_refused() -> None:
    with pytest.raises(Misuse, match="push gives numbers"):
        encode(Message(RESULT, 1, values=np.array([None])))


class _Keeps(Program):
    """Goes on in the very memory that it was given."""

    variables = 1

    def start(self, saved: dict[str, Any] | None) -> None:
        assert saved is not None
        self.b = saved["b"]


def test_what_a_program_does_to_what_it_was_given_does_not_reach_the_next_try() -> None:
    program, saved = _Keeps(), {"program": {"b": np.zeros(1)}, "rounds": 0, "work": 0}
    policy = make_policy("random")
    saved["policy"] = policy.state()
    for _ in range(2):
        begin(program, policy, saved)
        assert program.b[0] == 0.0
        program.b += 1.0
