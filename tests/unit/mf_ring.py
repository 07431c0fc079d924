"""A ring of workers in memory, with one thread a worker, for the training by rotation.

Checkpoints are kept; `FakeRing.run` can begin from those of an earlier run, as a job that was
killed whole does. Deaths of single workers are `tests/mpi`'s.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from diml.jobs.mf_data import Layout, Ratings
from diml.jobs.mf_evaluation import Evaluation, Goal
from diml.jobs.mf_model import Rule
from diml.jobs.mf_rotate import Floats, Passes, Rotation, blocks_of

_DEADLINE_S = 120.0


class FakeRing:
    """What the workers share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=_DEADLINE_S)
        self.slots: list[Any] = [None] * size
        self.moving: dict[tuple[int, int], Any] = {}
        self.changed = threading.Condition()
        self.version = 0
        self.common: Any = None
        self.locals: list[Any] = [None] * size
        self.found: list[Any] | None = None

    def resized(self, size: int) -> FakeRing:
        """A ring of another size that finds what this one has kept."""
        ring = FakeRing(size)
        ring.version, ring.common, ring.found = self.version, self.common, self.locals
        return ring

    def run(self, main: Callable[[FakeJob], None]) -> None:
        """Run `main` on every worker; raises what the first one raised."""
        failed: list[BaseException] = []

        def work(rank: int) -> None:
            try:
                main(FakeJob(self, rank))
            except BaseException as error:  # handed to the test
                if not isinstance(error, threading.BrokenBarrierError):
                    failed.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=work, args=(r,), daemon=True) for r in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * _DEADLINE_S)
        self.barrier.reset()
        if failed:
            raise failed[0]


class FakeMoving:
    """An array on its way; it is there once its sender has begun."""

    def __init__(self, ring: FakeRing, key: tuple[int, int]) -> None:
        self._ring, self._key = ring, key

    def wait(self) -> Any:
        moving = self._ring.moving
        with self._ring.changed:
            assert self._ring.changed.wait_for(lambda: self._key in moving, _DEADLINE_S)
            return moving.pop(self._key)


class FakeJob:
    """The job as one worker sees it."""

    def __init__(self, ring: FakeRing, rank: int) -> None:
        self._ring, self.rank, self.size = ring, rank, ring.size
        self.incarnation = self._begun = 0
        self.events: list[str] = []

    def _exchanged(self, value: Any) -> list[Any]:
        self._ring.slots[self.rank] = copy.deepcopy(value)
        self._ring.barrier.wait()
        found = list(self._ring.slots)
        self._ring.barrier.wait()
        return found

    def shift(self, value: Any, by: int = 1) -> Any:
        return self._exchanged(value)[(self.rank - by) % self.size].copy()

    def start_shift(self, array: Any, by: int = 1) -> FakeMoving:
        ring, number = self._ring, self._begun
        self._begun += 1
        source = (self.rank - by) % self.size
        with ring.changed:
            ring.moving[self.rank, number] = array.copy()
            ring.changed.notify_all()
        return FakeMoving(ring, (source, number))

    def allreduce(self, array: Any) -> Any:
        return np.sum(self._exchanged(array), axis=0)

    def load_checkpoint(self, any_workers: bool = False) -> tuple[int, Any, Any]:
        ring = self._ring
        kept = ring.found if ring.found is not None else ring.locals[self.rank]
        return copy.deepcopy((ring.version, ring.common, kept))

    def checkpoint(self, model: Any, local: Any) -> None:
        ring = self._ring
        ring.locals[self.rank] = copy.deepcopy(local)
        ring.barrier.wait()
        if self.rank == 0:
            ring.version, ring.common = ring.version + 1, copy.deepcopy(model)
        ring.barrier.wait()

    def event(self, what: str, **fields: Any) -> None:
        self.events.append(what)


def rotate(
    ratings: Ratings,
    rule: Rule,
    *,
    workers: int = 1,
    iterations: int = 20,
    ring: FakeRing | None = None,
    eval_every: int = 1,
    goal: Goal | None = None,
    auto_step: bool = False,
) -> tuple[list[Evaluation], tuple[Floats, Floats, Floats], str]:
    """Train by rotation: the evaluations, (L, R, side), and why it ended early."""
    ring = ring if ring is not None else FakeRing(workers)
    facts, passes = ratings.facts(), Passes(iterations, eval_every, goal or Goal(), auto_step)
    found: list[Any] = []

    def work(job: FakeJob) -> None:
        layout = Layout(blocks_of(workers, ratings.n_cols), shuffled=True, whole=True)
        share = ratings.share(job.rank, workers, layout, rule.seed)
        training = Rotation(job, facts, share, rule, passes, 0.0)
        told: list[int] = []
        training.run(lambda evaluations: told.append(len(evaluations)))
        factors = training.factors()
        if job.rank == 0:
            assert told == sorted(told) and told[-1] == len(training.evaluations)
            found.extend((training.evaluations, factors, training.ended))

    ring.run(work)
    return found[0], found[1], found[2]
