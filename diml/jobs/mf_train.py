"""Training of matrix factorization on the parameter server, clock by clock.

Owns what a worker does in a clock, what it keeps for a replacement, and what goes into a durable
checkpoint. Must not know files, flags or MPI: it talks to `ps` only. Which clock has which work
is `mf_course`'s.

A checkpoint is made where an iteration begins, so a run on another number of workers, cut into
other clocks, can go on from it: R and the evaluations stand on the servers, and each worker's
state names its rows of L.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from diml.data.memory import aligned
from diml.jobs.account import Server as PacedServer
from diml.jobs.account import SharedPace
from diml.jobs.mf_course import Course
from diml.jobs.mf_data import Block, Facts, Share
from diml.jobs.mf_evaluation import Evaluation, Goal, too_large
from diml.jobs.mf_left import RowTables, ServedRows, Table
from diml.jobs.mf_model import Columns, Model, Rule, Sums, meeting

_ROWS_AT_ONCE = 1 << 16
_SUMS_ROWS = 4096
_FIELDS = ("squares", "held_out", "penalty", "workers", "seconds", "eval_seconds")

Event = Callable[..., None]


def no_event(what: str, **fields: Any) -> None:
    """Write nothing: there is no event log."""


class Server(PacedServer, Protocol):
    """What training needs of the parameter server (`diml.ps`)."""

    @property
    def clock_now(self) -> int: ...
    @property
    def local(self) -> Any: ...
    @property
    def resumed(self) -> Any: ...
    def clock(self, local: Any = None) -> None: ...
    def checkpoint(self, local: Any = None) -> None: ...


@dataclass(frozen=True)
class Tables:
    """The job's tables: right (n_cols, k), side (n_cols, side_cols) where there are any, sums
    (at least iterations, fields) float64, left (n_rows, k and bias) where L is to be handed over.

    Where L lives on the servers (`rows` of `Tables.of`), rows are its two tables, in the manner of
    right and side, and left is None. They are those after so many `halvings` of the step.

    A run that goes on for more iterations must find the same tables, so sums has rows to spare.
    """

    right: Table
    side: Table | None
    sums: Table
    left: Table | None
    rows: RowTables | None = None
    halvings: int = 0

    @classmethod
    def of(
        cls,
        make: Callable[..., Any],
        rule: Rule,
        facts: Facts,
        course: Course,
        keep_left: bool,
        served: bool = False,
        halvings: int = 0,
    ) -> Tables:
        """Make or look up the tables. `make` is `ps.table`; `served`: L lives on the servers.

        After so many halvings of the step R and sums are others, all zero at first.
        """
        rows, cols, width = facts.n_rows, facts.n_cols, rule.side_cols
        spare = max(_SUMS_ROWS, 1 << course.iterations.bit_length())
        keeps = keep_left and not served
        nth, start = (f".{halvings}", ("zeros",)) if halvings else ("", rule.right_start)
        side = {"rows": cols, "cols": width, "dtype": "float32", "init": "zeros"}
        return cls(
            make(f"R{nth}", rows=cols, cols=rule.k, dtype="float32", init=start),
            make(f"R_side{nth}", **side) if width else None,
            make(f"sums{nth}", rows=spare, cols=len(_FIELDS), dtype="float64", init="zeros"),
            make("L", rows=rows, cols=rule.k + rule.biased, dtype="float32", init="zeros")
            if keeps
            else None,
            RowTables.of(make, rule, facts) if served else None,
            halvings,
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
        tables_of: Callable[[int], Tables],
        course: Course,
        facts: Facts,
        share: Share,
        rule: Rule,
        origin: float,
        goal: Goal,
        pace: SharedPace,
        threads: int = 1,
    ) -> None:
        """`origin` is the wall-clock time (s since the epoch) from which `seconds` counts;
        `tables_of` gives the tables after so many halvings of the step."""
        self._ps, self._tables_of, self._course = ps, tables_of, course
        self._model = Model(rule, share, facts.mean, facts.n_rows, threads)
        self._share, self._rule = share, rule
        self._facts, self._goal = facts, goal
        self._origin, self._account = origin, pace.account
        self._pace = pace
        self._eval_seconds = 0.0
        self._read_up_to = 0
        self.evaluations: list[Evaluation] = []
        self.ended = ""
        self._rows = share.row_ids.astype(np.int32)
        self._served: ServedRows | None = None
        state = self._found_state()
        self._tables = tables_of(0 if state is None else state["halvings"])
        if self._tables.rows is not None:
            self._served = ServedRows(self._tables.rows, self._model, pace.account)
        if state is not None:
            self._go_on_from(state)

    @property
    def tables(self) -> Tables:
        """Where the result is."""
        return self._tables

    def _found_state(self) -> dict[str, Any] | None:
        """This worker's state as it was kept: by its predecessor, or by the run before, maybe on
        another number of workers."""
        local, resumed = self._ps.local, self._ps.resumed
        if local is not None or resumed is None:
            found: dict[str, Any] | None = local
            return found
        states = resumed.locals
        if "rows" not in states[0]:
            return dict(states[0])
        mine = {**states[0], **self._model.state(), "halvings": states[0]["halvings"]}
        for state in states:
            to, of = meeting(self._rows, state["rows"])
            for name in ("left", "row_bias", "row_sum"):
                mine[name][to] = state[name][of]
        return mine

    def _go_on_from(self, state: dict[str, Any]) -> None:
        if self._served is None:
            self._model.restore(state)
        self._origin, self._eval_seconds = state["origin"], state["eval_seconds"]
        start = state["start"]
        if "iteration" in state:
            # From a durable checkpoint: nobody has trained in the meantime.
            start = self._ps.clock_now, state["iteration"]
            self._origin += time.time() - state["now"]
        self._course = self._course.resumed(*start)
        self._read_up_to = self._course.start_clock

    def run(
        self, report: Callable[[Sequence[Evaluation]], None] | None, event: Event = no_event
    ) -> None:
        """Train from `ps.clock_now` to the end. `report` (worker 0's) is told of all evaluations
        so far, whenever one has become readable; `event` writes into the event log.

        Raises DimlError where the model is no longer finite.
        """
        ps = self._ps
        watches = report is not None or self._goal != Goal()
        while True:
            clock = ps.clock_now
            if watches and self._read(clock) and report is not None:
                report(self.evaluations)
            if clock >= self._course.end:
                self._account.tell(last=True)
                return
            iteration = self._course.evaluated(clock)
            if iteration is not None:
                self._evaluate(iteration)
            if clock < self._course.trained:
                block = self._share.block_at(clock - self._course.start_clock)
                self._descend(block, self._course.iteration(clock))
            elif clock == self._course.last_evaluation:
                self._hand_over()
            ps.clock(local=self._state())
            if self._course.begins(ps.clock_now):
                ps.checkpoint(self._durable_state)
            self._account.tell()

    def _read(self, clock: int) -> bool:
        """Take what has become readable; end early where that reaches the goal.

        A replacement lives through all clocks again up to its own, so that its course ends with
        that of the others.
        """
        before = len(self.evaluations)
        if not before and self._course.start_iteration:
            self._recall(self._course.start_iteration - 1)
        for past in range(self._read_up_to, clock + 1):
            last = self.evaluations[-1].iteration if self.evaluations else 0
            after = max(last, self._course.start_iteration - 1)
            for evaluation in self._found(self._course.readable(past, after)):
                if not evaluation.finite:
                    raise too_large(evaluation)
                self.evaluations.append(evaluation)
                if not self.ended and (why := self._goal.reached(self.evaluations)):
                    self.ended, self._course = why, self._course.ending(past)
        self._read_up_to = clock + 1
        if len(self.evaluations) > before:
            self._pace.hear()
            return True
        return False

    def _recall(self, iterations: int) -> None:
        """The evaluations of so many iterations, made by the run that this one goes on from or
        known to a worker that this one replaces."""
        if not iterations:
            return
        earlier = self._tables.sums.get(np.arange(iterations))
        for iteration, row in enumerate(earlier, 1):
            sums = dict(zip(_FIELDS, map(float, row), strict=True))
            if sums["workers"]:
                self.evaluations.append(self._evaluation(iteration, sums))

    def _found(self, iterations: list[int]) -> list[Evaluation]:
        """Read the evaluations of these iterations, which must be readable by now."""
        if not iterations:
            return []
        rows = self._tables.sums.get(np.array(iterations, np.int64) - 1)
        read = [dict(zip(_FIELDS, map(float, row), strict=True)) for row in rows]
        early = [sums for sums in read if sums["workers"] != self._ps.workers]
        assert not early, "an evaluation was read before its time"
        return [self._evaluation(n, sums) for n, sums in zip(iterations, read, strict=True)]

    def _evaluation(self, iteration: int, sums: dict[str, float]) -> Evaluation:
        found = Sums(sums["squares"], sums["held_out"], sums["penalty"])
        times = sums["seconds"], sums["eval_seconds"]
        return Evaluation.of(iteration, found, self._facts, self._rule.decay, times)

    def _state(self) -> dict[str, Any]:
        clock = {"origin": self._origin, "eval_seconds": self._eval_seconds}
        start = self._course.start_clock, self._course.start_iteration
        rows = self._model.state() if self._served is None else {"halvings": 0}
        return {**rows, **clock, "start": start}

    def _durable_state(self) -> dict[str, Any]:
        """What another run needs, perhaps on other workers."""
        iteration = self._course.iteration(self._ps.clock_now)
        rows = {"rows": self._rows} if self._served is None else {}
        return {**self._state(), **rows, "iteration": iteration, "now": time.time()}

    def _columns(self, block: Block) -> Columns:
        """The block's columns as they stand on the servers, for this worker to change."""
        right = aligned(self._account.waiting(self._tables.right.get, block.cols))
        if self._tables.side is None:
            return Columns(right, np.empty((len(block.cols), 0), np.float32))
        return Columns(right, np.array(self._tables.side.get(block.cols)))

    def _descend(self, block: Block, iteration: int) -> None:
        # The first time, rows that have no entries become 0 on the servers too.
        if self._served is not None and (len(block) or not iteration):
            self._served.fetch(block)
        if len(block):
            columns = self._columns(block)
            before = Columns(columns.right.copy(), columns.side.copy())
            self._model.descend(block, columns, iteration)
            self._account.units += len(block)
            self._give(block, columns, before)
        if self._served is not None and (len(block) or not iteration):
            self._served.give()

    def _give(self, block: Block, columns: Columns, before: Columns) -> None:
        """Add to the servers' columns what has changed here."""
        # Too large a step ends in infinity less infinity: the evaluation tells.
        with np.errstate(invalid="ignore", over="ignore"):
            right, side = columns.right - before.right, columns.side - before.side
        self._tables.right.inc(block.cols, right)
        if self._tables.side is not None:
            self._tables.side.inc(block.cols, side)

    def _evaluate(self, iteration: int) -> None:
        """Add this worker's part of an iteration's sums to the table; worker 0 adds the times."""
        started = time.time()
        sums = Sums()
        for place, block in enumerate(self._share.blocks):
            if self._served is not None:
                self._served.fetch(block)
            if place < self._share.row_groups:
                sums = sums.plus(Sums(penalty=self._model.row_penalty()))
            if len(block.cols):
                sums = sums.plus(self._model.sums(block, self._columns(block)))
        self._eval_seconds += time.time() - started
        seconds = time.time() - self._origin - self._eval_seconds
        times = (seconds, self._eval_seconds) if self._ps.worker == 0 else (0.0, 0.0)
        row = np.array([[*sums, 1.0, *times]])
        self._tables.sums.inc(np.array([iteration - 1]), row)
        self._pace.tell()

    def _hand_over(self) -> None:
        """Put own rows of L, and their biases, into the table."""
        if self._tables.left is None:
            return
        model, ids = self._model, self._share.row_ids
        rows = np.column_stack([model.left, model.row_bias]) if self._rule.biased else model.left
        for low in range(0, len(ids), _ROWS_AT_ONCE):
            chunk = slice(low, low + _ROWS_AT_ONCE)
            self._tables.left.inc(ids[chunk], rows[chunk])
