"""Random programs for the simulator, and their results without any failure (the twin).

A program is data; `run` plays it for one rank as a generator of calls. Values are integers mixed
from everything that went in, so that a single wrong, lost or repeated contribution changes all
that follows.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from diml.allreduce.operation import Kind

OPS = (
    *(Kind.ALLREDUCE, Kind.ALLREDUCE, Kind.BROADCAST),
    *(Kind.ALLGATHER, Kind.BARRIER, Kind.SHIFT, Kind.SHIFT),
)
MODES = ("global", "local", "lazy")


@dataclass(frozen=True)
class Op:
    """One collective of a program. `root` is a broadcast's, or how far a shift goes."""

    kind: Kind
    root: int = 0


@dataclass(frozen=True)
class Plan:
    """A program: operations before the load, then versions, then operations before the exit."""

    size: int
    boot: tuple[Op, ...]
    versions: tuple[tuple[tuple[Op, ...], str], ...]
    tail: tuple[Op, ...]


@dataclass(frozen=True)
class Call:
    """A collective with what this rank puts in."""

    op: Op
    value: int


@dataclass(frozen=True)
class Load:
    """load_checkpoint; answered by (version, model, local)."""


@dataclass(frozen=True)
class Save:
    """checkpoint; a lazy model is a list that its owner alters later."""

    model: Any
    local: int | None
    lazy: bool


Wish = Call | Load | Save


def mix(*numbers: int) -> int:
    """A 40-bit number that depends on all of `numbers` and their order."""
    state = 0x9E3779B97F
    for number in numbers:
        state = (state ^ number) * 0x100000001B3 & 0xFFFFFFFFFFFF
        state ^= state >> 23
    return state & 0xFFFFFFFFFF


def combine(op: Op, values: list[int]) -> int:
    """The result of a collective that is alike on all ranks, from everyone's contribution."""
    return values[op.root] if op.kind is Kind.BROADCAST else mix(op.kind, *values)


def result_on(rank: int, op: Op, values: list[int]) -> int:
    """The result of a collective on one rank."""
    if op.kind is Kind.SHIFT:
        return values[(rank - op.root) % len(values)]
    return combine(op, values)


def random_plan(rng: random.Random, size: int) -> Plan:
    """Draw a program for `size` ranks."""

    def ops(most: int) -> tuple[Op, ...]:
        return tuple(Op(rng.choice(OPS), rng.randrange(size)) for _ in range(rng.randint(0, most)))

    mode = rng.choice((*MODES, None))
    versions = tuple((ops(5), mode or rng.choice(MODES)) for _ in range(rng.randint(0, 4)))
    return Plan(size, ops(3), versions, ops(3))


def resized(plan: Plan, size: int) -> Plan:
    """The program for fewer ranks: roots that are gone give way to others."""

    def fit(ops: tuple[Op, ...]) -> tuple[Op, ...]:
        return tuple(replace(op, root=op.root % size) for op in ops)

    versions = tuple((fit(ops), mode) for ops, mode in plan.versions)
    return Plan(size, fit(plan.boot), versions, fit(plan.tail))


def run(plan: Plan, rank: int) -> Generator[Wish, Any, tuple[int, int]]:
    """Play the program as one rank; returns its final (model, local).

    What a shift brings is this rank's own, so it goes into the local state and into what the rank
    gives next, never directly into the model.
    """
    seen = 0
    for op in plan.boot:
        got = yield Call(op, mix(rank, seen))
        seen = seen if op.kind is Kind.SHIFT else mix(seen, got)
    version, saved, local = yield Load()
    model = [mix(seen) if version == 0 else saved]
    if local is None:
        local = mix(rank, model[0])
    for ops, mode in plan.versions[version:]:
        heard = 0
        for op in ops:
            got = yield Call(op, mix(rank, model[0], local, heard))
            if op.kind is Kind.SHIFT:
                local = mix(local, got)
            else:
                heard = mix(heard, got)
        if mode == "local":
            # Before a checkpoint with local states a lazily saved model must not be altered.
            model = [mix(model[0], heard)]
        else:
            model[0] = mix(model[0], heard)
        if mode == "local":
            local = mix(local, heard)
            yield Save(model[0], local, False)
        else:
            local = mix(rank, model[0])
            yield Save(model if mode == "lazy" else model[0], None, mode == "lazy")
    heard = 0
    for op in plan.tail:
        got = yield Call(op, mix(rank, model[0], local, heard))
        if op.kind is Kind.SHIFT:
            local = mix(local, got)
        else:
            heard = mix(heard, got)
    return mix(model[0], heard), local


@dataclass
class Twin:
    """What a program gives without failures.

    Attributes:
        results: by rank, of each (stage, version, sequence).
        saves: (model, local states by rank) of each version.
        finals: everyone's final (model, local).
    """

    results: dict[tuple[int, int, int], list[int]]
    saves: dict[int, tuple[int, list[int | None]]]
    finals: list[tuple[int, int]]


def twin(plan: Plan, start: tuple[int, Any, list[Any]] | None = None) -> Twin:
    """Play a program without failures; `start` is what the load gives: (version, model, local
    states by rank)."""
    first_version, model, locals_ = start or (0, None, [None] * plan.size)
    programs = [run(plan, rank) for rank in range(plan.size)]
    given = Twin({}, {}, [])
    stage, version, sequence = 0, 0, 0
    answers: list[Any] = [None] * plan.size
    while True:
        wishes: list[Any] = []
        for program, answer in zip(programs, answers, strict=True):
            try:
                wishes.append(program.send(answer))
            except StopIteration as end:
                given.finals.append(end.value)
        if given.finals:
            assert len(given.finals) == plan.size
            return given
        first = wishes[0]
        if isinstance(first, Call):
            values = [wish.value for wish in wishes]
            answers = [result_on(rank, first.op, values) for rank in range(plan.size)]
            given.results[stage, version, sequence] = answers
            sequence += 1
        elif isinstance(first, Load):
            stage, version, sequence = 2, first_version, 0
            answers = [(version, model, local) for local in locals_]
        else:
            version, sequence = version + 1, 0
            model = first.model[0] if first.lazy else first.model
            given.saves[version] = (model, [wish.local for wish in wishes])
            answers = [None] * plan.size
