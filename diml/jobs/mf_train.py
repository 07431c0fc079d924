"""The course of matrix factorization on the parameter server, clock by clock.

Owns what a worker does in which clock, and what it keeps for a replacement. Must not know files,
flags or MPI: it talks to `ps` only.

What is done in a clock follows from the clock's number alone, so a replacement that starts anew
goes on at `ps.clock_now` with `ps.local`. For T = iterations x blocks and staleness s:

    0 .. T - 1      a block each; where an iteration begins, the one before is evaluated first
    T .. T + s - 1  nothing, so that every update of the training is in what is read next
    T + s           the last evaluation; L goes into a table where it is asked for
    .. T + 2 s      nothing, for the same reason

Nobody waits at a barrier: after clock T + 2 s a `get` has everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from diml.jobs.mf_data import Block, Facts, Share
from diml.jobs.mf_evaluation import Evaluation, Goal, too_large
from diml.jobs.mf_model import Columns, Model, Rule, Sums

_ROWS_AT_ONCE = 1 << 16
_FIELDS = ("squares", "held_out", "penalty", "workers", "seconds", "eval_seconds")


class Table(Protocol):
    """A table of the parameter server."""

    def get(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]: ...
    def inc(self, ids: npt.NDArray[np.int64], deltas: npt.NDArray[Any]) -> None: ...


class Server(Protocol):
    """What training needs of the parameter server (`diml.ps`)."""

    @property
    def worker(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def clock_now(self) -> int: ...
    @property
    def local(self) -> Any: ...
    def clock(self, local: Any = None) -> None: ...


@dataclass(frozen=True)
class Course:
    """How long it goes, and when it is evaluated. See the module's text for the clocks."""

    iterations: int
    blocks: int
    staleness: int
    eval_every: int = 1

    @property
    def trained(self) -> int:
        """The first clock after the training."""
        return self.iterations * self.blocks

    @property
    def last_evaluation(self) -> int:
        """The clock in which the result is evaluated and handed over."""
        return self.trained + self.staleness

    @property
    def end(self) -> int:
        """The clock from which on every read has everything."""
        return self.last_evaluation + self.staleness + 1

    def ending(self, clock: int) -> Course:
        """The course that ends with the iteration that is under way in this clock."""
        iterations = min(-(-clock // self.blocks), self.iterations)
        return replace(self, iterations=max(iterations, 1))

    def evaluated(self, clock: int) -> int | None:
        """The iteration (1-based) that is evaluated at the start of this clock, if one is."""
        if clock == self.last_evaluation:
            return self.iterations
        iteration, block = divmod(clock, self.blocks)
        due = block == 0 and iteration % self.eval_every == 0
        return iteration if due and 0 < iteration < self.iterations else None

    def readable(self, clock: int, after: int) -> list[int]:
        """The iterations above `after` whose evaluations who reads in this clock has whole."""
        whole = min((clock - self.staleness - 1) // self.blocks, self.iterations - 1)
        first = after // self.eval_every + 1
        due = [i * self.eval_every for i in range(first, whole // self.eval_every + 1)]
        return due + [self.iterations] * (clock >= self.end and after < self.iterations)


@dataclass(frozen=True)
class Tables:
    """The job's tables: right (n_cols, k), side (n_cols, side_cols) where there are any, sums
    (iterations, fields) float64, left (n_rows, k and bias) where L is to be handed over."""

    right: Table
    side: Table | None
    sums: Table
    left: Table | None

    @classmethod
    def of(
        cls, make: Callable[..., Any], rule: Rule, facts: Facts, course: Course, keep_left: bool
    ) -> Tables:
        """Make or look up the tables. `make` is `ps.table`."""
        rows, cols, width = facts.n_rows, facts.n_cols, rule.side_cols
        return cls(
            make("R", rows=cols, cols=rule.k, dtype="float32", init=rule.right_start),
            make("R_side", rows=cols, cols=width, dtype="float32", init="zeros") if width else None,
            make("sums", rows=course.iterations, cols=len(_FIELDS), dtype="float64", init="zeros"),
            make("L", rows=rows, cols=rule.k + rule.biased, dtype="float32", init="zeros")
            if keep_left
            else None,
        )


class Training:
    """One worker's training.

    Attributes:
        evaluations: read so far: all on worker 0; on the others none, unless there is a goal.
        ended: why training ended early, or empty.
    """

    def __init__(
        self,
        ps: Server,
        tables: Tables,
        course: Course,
        facts: Facts,
        share: Share,
        rule: Rule,
        origin: float,
        goal: Goal,
    ) -> None:
        """`origin` is the wall-clock time (s since the epoch) from which `seconds` counts."""
        self._ps, self._tables, self._course = ps, tables, course
        self._model = Model(rule, share, facts.mean, facts.n_rows)
        self._share, self._rule = share, rule
        self._facts, self._goal = facts, goal
        self._origin = origin
        self._eval_seconds = 0.0
        self._read_up_to = 0
        self.evaluations: list[Evaluation] = []
        self.ended = ""
        if ps.local is not None:
            self._model.restore(ps.local)
            self._origin = ps.local["origin"]
            self._eval_seconds = ps.local["eval_seconds"]

    def run(self, report: Callable[[Sequence[Evaluation]], None] | None) -> None:
        """Train from `ps.clock_now` to the end. `report` (worker 0's) is told of all evaluations
        so far, whenever one has become readable.

        Raises DimlError where the model is no longer finite.
        """
        ps = self._ps
        watches = report is not None or self._goal != Goal()
        while True:
            clock = ps.clock_now
            if watches and self._read(clock) and report is not None:
                report(self.evaluations)
            if clock >= self._course.end:
                return
            iteration = self._course.evaluated(clock)
            if iteration is not None:
                self._evaluate(iteration)
            if clock < self._course.trained:
                self._descend(self._share.block_at(clock), clock // self._course.blocks)
            elif clock == self._course.last_evaluation:
                self._hand_over()
            ps.clock(local=self._state())

    def _read(self, clock: int) -> bool:
        """Take what has become readable; end early where that reaches the goal.

        A replacement lives through all clocks again up to its own, so that its course ends with
        that of the others.
        """
        before = len(self.evaluations)
        for past in range(self._read_up_to, clock + 1):
            after = self.evaluations[-1].iteration if self.evaluations else 0
            for evaluation in self._found(self._course.readable(past, after)):
                if not evaluation.finite:
                    raise too_large(evaluation)
                self.evaluations.append(evaluation)
                if not self.ended and (why := self._goal.reached(self.evaluations)):
                    self.ended, self._course = why, self._course.ending(past)
        self._read_up_to = clock + 1
        return len(self.evaluations) > before

    def _found(self, iterations: list[int]) -> list[Evaluation]:
        """Read the evaluations of these iterations, which must be readable by now."""
        if not iterations:
            return []
        rows = self._tables.sums.get(np.array(iterations, np.int64) - 1)
        return [
            self._evaluation(iteration, dict(zip(_FIELDS, map(float, row), strict=True)))
            for iteration, row in zip(iterations, rows, strict=True)
        ]

    def _evaluation(self, iteration: int, sums: dict[str, float]) -> Evaluation:
        assert sums["workers"] == self._ps.workers, "an evaluation was read before its time"
        found = Sums(sums["squares"], sums["held_out"], sums["penalty"])
        times = sums["seconds"], sums["eval_seconds"]
        return Evaluation.of(iteration, found, self._facts, self._rule.decay, times)

    def _state(self) -> dict[str, Any]:
        clock = {"origin": self._origin, "eval_seconds": self._eval_seconds}
        return {**self._model.state(), **clock}

    def _columns(self, block: Block) -> Columns:
        """The block's columns as they stand on the servers, for this worker to change."""
        right = np.array(self._tables.right.get(block.cols))
        if self._tables.side is None:
            return Columns(right, np.empty((len(block.cols), 0), np.float32))
        return Columns(right, np.array(self._tables.side.get(block.cols)))

    def _descend(self, block: Block, iteration: int) -> None:
        if not len(block):
            return
        columns = self._columns(block)
        before = Columns(columns.right.copy(), columns.side.copy())
        self._model.descend(block, columns, iteration)
        self._tables.right.inc(block.cols, columns.right - before.right)
        if self._tables.side is not None:
            self._tables.side.inc(block.cols, columns.side - before.side)

    def _evaluate(self, iteration: int) -> None:
        """Add this worker's part of an iteration's sums to the table; worker 0 adds the times."""
        started = time.time()
        sums = Sums(penalty=self._model.row_penalty())
        for block in self._share.blocks:
            if len(block.cols):
                sums = sums.plus(self._model.sums(block, self._columns(block)))
        self._eval_seconds += time.time() - started
        seconds = time.time() - self._origin - self._eval_seconds
        times = (seconds, self._eval_seconds) if self._ps.worker == 0 else (0.0, 0.0)
        row = np.array([[*sums, 1.0, *times]])
        self._tables.sums.inc(np.array([iteration - 1]), row)

    def _hand_over(self) -> None:
        """Put own rows of L, and their biases, into the table."""
        if self._tables.left is None:
            return
        model, ids = self._model, self._share.row_ids
        rows = np.column_stack([model.left, model.row_bias]) if self._rule.biased else model.left
        for low in range(0, len(ids), _ROWS_AT_ONCE):
            chunk = slice(low, low + _ROWS_AT_ONCE)
            self._tables.left.inc(ids[chunk], rows[chunk])
