"""Training on the parameter server that halves a step which was too large: `--auto_step`.

Owns the way back to the last good version. An iteration is a course of its own (`mf_course`):
nobody begins the next one before all know that the model is finite. Where it is not, each worker
takes up its rows of L of the iteration before and gives its part of R, as it was then, to new
tables, since nothing that is added to NaN makes a number of it; old ones stay on the servers.

Invariant: what is kept as good was evaluated, by all workers after the same iteration; a durable
checkpoint is of such a version only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from diml.jobs.mf_evaluation import HALVINGS_MAX, Evaluation, too_large
from diml.jobs.mf_train import Event, Training, no_event

# What a replacement needs beside what it needs of any training.
_KEPT = ("good", "candidate", "closed", "wanted")


class CarefulTraining(Training):
    """One worker's training with `--auto_step`."""

    _restored = False
    _wanted: int
    _good: dict[str, Any]
    _candidate: dict[str, Any]
    # The clock from which on the servers have all of the result, once there is one.
    _closed: int | None = None

    def run(
        self, report: Callable[[Sequence[Evaluation]], None] | None, event: Event = no_event
    ) -> None:
        """As `Training.run`. Raises DimlError where no step is small enough."""
        ps = self._ps
        if not self._restored:
            self._begin(ps.clock_now)
        while ps.clock_now != self._closed:
            clock = ps.clock_now
            if self._closed is None and clock == self._course.end:
                found = self._judge(event)
                if report is not None and found:
                    self._pace.hear()
                    report(self.evaluations)
            course = self._course
            if self._closed is None and course.start_clock <= clock < course.trained:
                block = self._share.block_at(clock - course.start_clock)
                self._descend(block, course.start_iteration)
            elif self._closed is None and clock == course.last_evaluation:
                self._candidate = self._part_of_right()
                self._evaluate(course.iterations)
            ps.clock(local=self._state())
            self._account.tell()
        if report is not None and not self.evaluations:
            self._recall(self._course.start_iteration)
            self.ended = self._goal.reached(self.evaluations)
            report(self.evaluations)
        self._account.tell(last=True)

    def _begin(self, clock: int) -> None:
        """Start from the model as it is, which nobody changes before all have seen it."""
        self._wanted = self._course.iterations
        self._keep(self._part_of_right())
        self._next(clock + self._course.staleness + 1, self._course.start_iteration)
        self._end_if_done(clock)

    def _keep(self, part_of_right: dict[str, Any]) -> None:
        """The model as it is now is good."""
        rows = {**self._model.state(), **part_of_right}
        self._good = {k: np.array(v) if isinstance(v, np.ndarray) else v for k, v in rows.items()}
        self._candidate = {}

    def _end_if_done(self, clock: int) -> None:
        if self.ended or self._course.start_iteration >= self._wanted:
            self._hand_over()
            self._closed = clock + self._course.staleness + 1

    def _next(self, clock: int, iteration: int) -> None:
        """Do the iteration after `iteration`, from this clock on."""
        begins = {"start_clock": clock, "start_iteration": iteration}
        self._course = replace(self._course, iterations=iteration + 1, **begins)

    def _judge(self, event: Event) -> bool:
        """Go on, end, or go back; whether the model is finite."""
        clock, course = self._ps.clock_now, self._course
        if not self.evaluations:
            self._recall(course.start_iteration)
        (evaluation,) = self._found([course.iterations])
        if not evaluation.finite:
            self._go_back(evaluation)
            event("halved", iteration=course.iterations, halvings=self._model.halvings)
            self._next(clock + course.staleness + 1, course.start_iteration)
            return False
        self.evaluations.append(evaluation)
        self._keep(self._candidate)
        self.ended = self._goal.reached(self.evaluations)
        self._next(clock, course.iterations)
        self._ps.checkpoint(self._durable_state)
        self._end_if_done(clock)
        return True

    def _go_back(self, evaluation: Evaluation) -> None:
        """Take up the last good version, with half the step."""
        halvings = self._model.halvings + 1
        if halvings > HALVINGS_MAX:
            raise too_large(evaluation, HALVINGS_MAX)
        self._model.restore({**self._good, "halvings": halvings})
        earlier = np.arange(evaluation.iteration - 1)
        rows = self._tables.sums.get(earlier) if len(earlier) else None
        self._tables = self._tables_of(halvings)
        ids = self._own_cols
        if len(ids):
            self._tables.right.inc(ids, self._good["right"])
        if len(ids) and self._tables.side is not None:
            self._tables.side.inc(ids, self._good["side"])
        if rows is not None and self._ps.worker == 0:
            self._tables.sums.inc(earlier, rows)

    @property
    def _own_cols(self) -> npt.NDArray[np.int64]:
        """The columns whose good version this worker keeps, whoever has entries in them."""
        worker, workers, cols = self._ps.worker, self._ps.workers, self._facts.n_cols
        return np.arange(cols * worker // workers, cols * (worker + 1) // workers)

    def _part_of_right(self) -> dict[str, Any]:
        ids, found = self._own_cols, {"right": np.empty(0), "side": np.empty(0)}
        if len(ids):
            found["right"] = np.array(self._tables.right.get(ids))
        if len(ids) and self._tables.side is not None:
            found["side"] = np.array(self._tables.side.get(ids))
        return found

    def _state(self) -> dict[str, Any]:
        kept = {name: getattr(self, f"_{name}") for name in _KEPT}
        return {**super()._state(), **kept}

    def _durable_state(self) -> dict[str, Any]:
        found = super()._durable_state()
        return {name: found[name] for name in found if name not in _KEPT}

    def _go_on_from(self, state: dict[str, Any]) -> None:
        super()._go_on_from(state)
        if "good" in state:
            self._restored = True
            for name in _KEPT:
                setattr(self, f"_{name}", state[name])
            self._next(*state["start"])
