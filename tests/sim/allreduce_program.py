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
    """One collective of a program. `root` is a broadcast's, or how far a shift goes; `ahead` is
    how many collectives before it a shift is begun."""

    kind: Kind
    root: int = 0
    ahead: int | None = None


@dataclass(frozen=True)
class Plan:
    """A program: operations before the load, then versions, then operations before the exit."""

    size: int
    boot: tuple[Op, ...]
    versions: tuple[tuple[tuple[Op, ...], str], ...]
    tail: tuple[Op, ...]


@dataclass(eq=False)
class Begin:
    """A shift is begun; `posted` is the communicator that it was begun on, and which it is of all
    that this rank has begun there."""

    value: int
    posted: tuple[Any, int] | None = None


@dataclass(frozen=True)
class Call:
    """A collective with what this rank puts in; `begun` if it is a shift that was begun before."""

    op: Op
    value: int
    begun: Begin | None = None


@dataclass(frozen=True)
class Load:
    """load_checkpoint; answered by (version, model, local)."""


@dataclass(frozen=True)
class Save:
    """checkpoint; a lazy model is a list that its owner alters later."""

    model: Any
    local: int | None
    lazy: bool


Wish = Begin | Call | Load | Save


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

    def op(place: int) -> Op:
        kind, root = rng.choice(OPS), rng.randrange(size)
        early = kind is Kind.SHIFT and rng.random() < 0.5
        return Op(kind, root, rng.randint(0, place) if early else None)

    def ops(most: int) -> tuple[Op, ...]:
        return tuple(op(place) for place in range(rng.randint(0, most)))

    mode = rng.choice((*MODES, None))
    versions = tuple((ops(5), mode or rng.choice(MODES)) for _ in range(rng.randint(0, 4)))
    return Plan(size, ops(3), versions, ops(3))


def resized(plan: Plan, size: int) -> Plan:
    """The program for fewer ranks: roots that are gone give way to others."""

    def fit(ops: tuple[Op, ...]) -> tuple[Op, ...]:
        return tuple(replace(op, root=op.root % size) for op in ops)

    versions = tuple((fit(ops), mode) for ops, mode in plan.versions)
    return Plan(size, fit(plan.boot), versions, fit(plan.tail))


def beside_servers(plan: Plan) -> Plan:
    """The program without what a job with servers refuses or does otherwise."""

    def fit(ops: tuple[Op, ...]) -> tuple[Op, ...]:
        return tuple(op for op in ops if op.kind is not Kind.SHIFT)

    versions = tuple((fit(o), "global" if m == "lazy" else m) for o, m in plan.versions)
    return Plan(plan.size, fit(plan.boot), versions, fit(plan.tail))


@dataclass
class _State:
    """What a rank's program has in mind."""

    rank: int
    model: list[int]
    local: int = 0
    heard: int = 0

    def play(self, ops: tuple[Op, ...]) -> Generator[Wish, Any, None]:
        """Make the calls, and take in what they give."""
        begun: dict[int, Begin] = {}
        for place, op in enumerate(ops):
            for later in range(place, len(ops)):
                if ops[later].ahead == later - place:
                    begun[later] = Begin(self._value())
                    yield begun[later]
            early = begun.get(place)
            got = yield Call(op, early.value if early else self._value(), early)
            if op.kind is Kind.SHIFT:
                self.local = mix(self.local, got)
            else:
                self.heard = mix(self.heard, got)

    def _value(self) -> int:
        return mix(self.rank, self.model[0], self.local, self.heard)


def run(plan: Plan, rank: int) -> Generator[Wish, Any, tuple[int, int]]:
    """Play the program as one rank; returns its final (model, local).

    What a shift brings is this rank's own, so it goes into the local state and into what the rank
    gives next, never directly into the model.
    """
    state = _State(rank, [0])
    yield from state.play(plan.boot)
    version, saved, local = yield Load()
    model = [mix(state.heard) if version == 0 else saved]
    state = _State(rank, model, mix(rank, model[0]) if local is None else local)
    for ops, mode in plan.versions[version:]:
        state.heard = 0
        yield from state.play(ops)
        if mode == "local":
            # Before a checkpoint with local states a lazily saved model must not be altered.
            state.model = [mix(state.model[0], state.heard)]
            state.local = mix(state.local, state.heard)
            yield Save(state.model[0], state.local, False)
        else:
            state.model[0] = mix(state.model[0], state.heard)
            state.local = mix(rank, state.model[0])
            yield Save(state.model if mode == "lazy" else state.model[0], None, mode == "lazy")
    state.heard = 0
    yield from state.play(plan.tail)
    return mix(state.model[0], state.heard), state.local


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
        if isinstance(first, Begin):
            answers = [None] * plan.size
        elif isinstance(first, Call):
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
