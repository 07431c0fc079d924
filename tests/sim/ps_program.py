"""What the workers of a simulated parameter server do, and what comes of it where nobody dies.

Owns the drawing of a run's shape and of its updates, and their sum by plain loops over arrays: no
message, no server and no clock but a counter. Must not know the protocol.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diml.ps.consistency import Consistency, parse_consistency
from diml.ps.rules import rule_of
from diml.ps.tables import TableSpec, first_values, row_range

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """What a seed draws: sizes, model, and how often processes die."""

    workers: int
    servers: int
    spares: int
    replicas: int
    consistency: Consistency
    clocks: int
    rows: int
    kills: int
    interrupt: float
    on_wire: bool
    cache_rows: int | None
    sparse: bool
    durable: bool
    neighbours: bool
    rule: str
    apart: bool
    stalls: bool
    pushes: bool
    tapes: bool = False


def shape_of(rng: random.Random) -> Shape:
    """Draw a run; whole kinds of trouble are absent in some of them."""
    staleness = rng.choice((0, 0, 0, 1, 2, 4))
    pushing = f"essp({staleness})"
    models = (None, None, None, "asp") if staleness == 0 else (None, pushing, pushing)
    model = rng.choice(models)
    spares = rng.choice((0, 1, 2, 2, 3, 3, 4, 6))
    consistency = parse_consistency(model, 0 if model else staleness)
    shape = Shape(
        workers=rng.randint(1, 3),
        servers=rng.choice((1, 1, 2, 2, 3, 4)),
        spares=spares,
        replicas=rng.choice((0, 1, 1, 1, 1, 2, 2, 2)),
        consistency=consistency,
        clocks=rng.randint(1, 4),
        rows=rng.randint(4, 9),
        kills=rng.choice((0, 1, 1, 2, 2, 3)) if spares else 0,
        interrupt=rng.choice((0.0, 0.0, 0.05)),
        on_wire=rng.random() < 0.1,
        cache_rows=rng.choice((None, None, 0, 3)),
        sparse=rng.random() < 0.3,
        durable=rng.random() < 0.3,
        neighbours=rng.random() < 0.5,
        rule=rng.choice(("add", "add", "add", "sgd", "adagrad")),
        apart=rng.random() < 0.4,
        stalls=rng.random() < 0.5,
        pushes=rng.random() < 0.3 and not consistency.buffered,
    )
    return _on_tapes(shape, rng) if rng.random() < 0.15 else shape


def _on_tapes(shape: Shape, rng: random.Random) -> Shape:
    """A run like this one in which servers write most updates on tapes for their replicas."""
    models = ["ssp(1)", "ssp(2)", "asp"] + ["bsp"] * (shape.workers == shape.servers == 1)
    consistency = parse_consistency(rng.choice(models), 0)
    return replace(
        shape, consistency=consistency, replicas=1, clocks=rng.randint(2, 7), sparse=False,
        neighbours=True, tapes=True, pushes=shape.pushes and not consistency.buffered,
    )  # fmt: skip


def moves(rows: NDArray[Any], mine: NDArray[np.float32]) -> NDArray[np.float32]:
    """How a worker moves the rows of the model that it has read; `mine` (3,) is its own state,
    which changes."""
    mine += rows.sum(axis=0)
    return np.float32(0.1) * rows - np.float32(0.01) * mine


class State(NamedTuple):
    """A table at a clock: its rows, the state of its rule, and by server the rule's steps."""

    values: NDArray[np.float32]
    state: NDArray[np.float32]
    steps: tuple[int, ...]


class Program:
    """The updates of all workers.

    Attributes:
        touched: by worker and clock, the rows that it counts.
        sums: (workers, clocks + 1, rows), how often each has been counted before a clock.
    """

    def __init__(self, shape: Shape, seed: int) -> None:
        self._shape = shape
        self._rng = np.random.default_rng(seed)
        draw = self._drawn_apart if shape.apart else self._drawn
        clocks = [draw() for _ in range(shape.clocks)]
        self.touched = [[clock[worker] for clock in clocks] for worker in range(shape.workers)]
        sums = np.zeros((shape.workers, shape.clocks + 1, shape.rows), np.int64)
        for worker, clock in np.ndindex(shape.workers, shape.clocks):
            np.add.at(sums[worker, clock], self.touched[worker][clock], 1)
        self.sums = np.cumsum(sums, axis=1) - sums

    def _drawn(self) -> list[Ids]:
        """By worker, the rows of a clock: any, also several times."""
        shape, rng = self._shape, self._rng
        return [rng.integers(0, shape.rows, rng.integers(0, 6)) for _ in range(shape.workers)]

    def _drawn_apart(self) -> list[Ids]:
        """By worker, rows that nobody else touches in this clock, each once."""
        shape, rng = self._shape, self._rng
        rows = rng.permutation(shape.rows)[: rng.integers(shape.workers, shape.rows + 1)]
        return [rows[worker :: shape.workers] for worker in range(shape.workers)]

    def moved(self, worker: int, clock: int) -> Ids:
        """The rows of the model that a worker moves, ascending."""
        touched = self.touched[worker][clock]
        if self._shape.apart:
            return np.sort(touched)
        return np.unique(np.concatenate([touched, [clock % self._shape.rows]]))

    def states(self, model: TableSpec) -> list[State]:
        """The model before each clock and after the last one, where each clock of all
        workers is one transaction, in worker order."""
        shape, rule = self._shape, rule_of(model)
        values = first_values(model, 0, shape.rows)
        state = np.zeros((shape.rows, rule.slots * 3), np.float32)
        mine = np.zeros((shape.workers, 3), np.float32)
        steps, numbers = [0] * shape.servers, rule.numbers
        states = [State(values.copy(), state.copy(), tuple(steps))]
        for clock in range(shape.clocks):
            wanted = np.zeros((shape.workers, shape.rows), np.bool_)
            deltas = np.zeros((shape.workers, shape.rows, 3), np.float32)
            for worker in range(shape.workers):
                ids = self.moved(worker, clock)
                wanted[worker, ids] = True
                deltas[worker, ids] = moves(values[ids], mine[worker])
            for server in range(shape.servers):
                low, high = row_range(shape.rows, server, shape.servers)
                parts = [wanted] if not rule.additive else wanted[:, None]
                sums = [deltas] if not rule.additive else deltas[:, None]
                for touching, delta in zip(parts, sums, strict=True):
                    ids = np.flatnonzero(touching[:, low:high].any(axis=0)) + low
                    if len(ids):
                        steps[server] += 1
                        rule.kernel(
                            values, state, 0, ids, delta[:, ids].sum(axis=0), steps[server], numbers
                        )
            states.append(State(values.copy(), state.copy(), tuple(steps)))
        return states
