"""The course of logistic regression by SGD on the parameter server.

Owns what happens in which clock. One minibatch is one clock; the first clock of an epoch also
records the losses of the model as the epoch before has left it. Must not know files or flags.
Invariant: what a worker sends in a clock depends on the clock and on what it reads, so that a
replacement repeats it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diml.errors import DimlError
from diml.jobs.account import Account, SharedPace
from diml.jobs.logistic_data import Batch, Examples, Minibatches
from diml.kernels.logistic import gradient_sum, loss_and_hits
from diml.ps.client import ParameterServer
from diml.ps.kv import KeyValues
from diml.ps.table import Table

# Columns of the table of losses; the last three are worker 0's alone.
TRAIN_LOSS, TRAIN_HITS, TEST_LOSS, TEST_HITS, EXAMPLES, PENALTY, SECONDS, EVAL_SECONDS = range(8)


@dataclass(frozen=True, slots=True)
class Course:
    """How long and how: epochs, clocks of an epoch, weights of the penalties on the mean loss."""

    epochs: int
    per_epoch: int
    l1: float
    l2: float

    @property
    def clocks(self) -> int:
        """Clocks of all minibatches; one more records the losses at the end."""
        return self.epochs * self.per_epoch


@dataclass(frozen=True, slots=True)
class Losses:
    """The model after so many epochs, as all workers' parts of it were recorded.

    `seconds` and `eval_seconds` are worker 0's: see `Watch`.
    """

    epoch: int
    train_loss: float
    objective: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    eval_seconds: float


class Watch:
    """Wall time (s) since the data are in memory: of evaluation, and of all else."""

    def __init__(self) -> None:
        self._begun, self.eval_seconds = time.time(), 0.0

    @property
    def seconds(self) -> float:
        """Without the evaluation."""
        return time.time() - self._begun - self.eval_seconds

    def go_on(self, seconds: float, eval_seconds: float) -> None:
        """Go on from what a former run, or a former life, has told last."""
        self._begun = time.time() - seconds - eval_seconds
        self.eval_seconds = eval_seconds

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """What is done in a `with` block is evaluation."""
        begun = time.time()
        yield
        self.eval_seconds += time.time() - begun


def check_finite(numbers: NDArray[np.float64], epoch: int) -> None:
    """Raise DimlError, with what to do about it, where gradients or losses are not finite."""
    if not np.isfinite(numbers).all():
        raise DimlError(
            f"the loss is not finite after {epoch} epochs: lower the step size (divide "
            "--init_step_size by 10)"
        )


class Gradient:
    """The gradient of a minibatch by several threads, each over its share of the rows.

    The parts are added in the order of the rows: the bits depend on the number of threads only.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def of(self, batch: Batch, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Summed over the rows of a minibatch, by its keys."""
        rows = len(batch.y)
        cuts = [rows * part // self._threads for part in range(self._threads + 1)]

        def part(low: int, high: int) -> NDArray[np.float64]:
            gradient = np.zeros(len(batch.keys))
            # `indptr` counts from the first row on, so that the other arrays stay whole.
            gradient_sum(
                batch.indptr[low : high + 1], batch.places, batch.data, batch.y[low:high],
                weights, gradient,
            )  # fmt: skip
            return gradient

        if self._pool is None:
            return part(0, rows)
        others = [self._pool.submit(part, *cuts[i : i + 2]) for i in range(1, self._threads)]
        total = part(cuts[0], cuts[1])
        for other in others:
            total += other.result()
        return total


class Training:
    """One worker's part."""

    def __init__(
        self,
        ps: ParameterServer,
        weights: KeyValues,
        cols: int,
        train: Examples,
        test: Examples | None,
        course: Course,
        seed: int,
        account: Account,
        share_of: Callable[[Examples], Examples],
        threads: int = 1,
    ) -> None:
        self._ps, self._weights, self._course = ps, weights, course
        self._keys = np.arange(cols)
        self._train, self._test = share_of(train), None if test is None else share_of(test)
        self._examples = (train.total, test.total if test is not None else 0)
        self._batches = Minibatches(self._train, course.per_epoch, seed, ps.worker)
        self._losses: Table = ps.table("losses", course.epochs + 1, EVAL_SECONDS + 1, "float64")
        self._reported = 0
        self._gradient = Gradient(threads)
        self._watch = Watch()
        self._account, self._pace = account, SharedPace(ps, ps.table, account)

    def run(self, report: Callable[[Losses], None], first_report: int) -> NDArray[np.float64]:
        """Train to the end; returns the weights. `report` is called on worker 0 for each epoch
        from `first_report` on, in order, once all workers' parts are there."""
        ps, course = self._ps, self._course
        self._reported = first_report
        if ps.worker == 0 and ps.clock_now:
            told = self._losses.get(np.arange(course.epochs + 1))
            self._watch.go_on(*told[:, SECONDS:].max(axis=0))
        for clock in range(ps.clock_now, course.clocks):
            epoch, first = divmod(clock, course.per_epoch)
            if first == 0:
                self._record(epoch)
                self._report(report, epoch)
                self._account.tell()
            self._step(clock)
            self._account.waiting(ps.clock)
            self._account.waiting(ps.checkpoint)
        self._account.waiting(ps.barrier)
        if ps.clock_now == course.clocks:
            self._record(course.epochs)
            self._account.waiting(ps.clock)
        self._account.waiting(ps.barrier)
        self._report(report, course.epochs + 1)
        self._account.tell(last=True)
        return self._weights.pull(self._keys)

    def _step(self, clock: int) -> None:
        """One minibatch: pull the keys that it needs, push the gradient summed over it."""
        batch = self._batches.at(clock)
        weights = self._account.waiting(self._weights.pull, batch.keys)
        gradient = self._gradient.of(batch, weights)
        check_finite(gradient, clock // self._course.per_epoch)
        self._account.units += len(batch.y)
        self._account.waiting(self._weights.push, batch.keys, gradient)

    def _record(self, epoch: int) -> None:
        """Add this worker's part of the losses after so many epochs to the table."""
        row = np.zeros((1, EVAL_SECONDS + 1))
        with self._watch.evaluation():
            weights = self._account.waiting(self._weights.pull, self._keys)
            parts = ((self._train, TRAIN_LOSS), (self._test, TEST_LOSS))
            for part, column in parts:
                if part is not None:
                    X = part.X
                    data = np.ascontiguousarray(X.data, np.float64)
                    row[0, column : column + 2] = loss_and_hits(
                        X.indptr, X.indices, data, part.y, weights
                    )
        row[0, EXAMPLES] = len(self._train.y)
        if self._ps.worker == 0:
            with np.errstate(over="ignore"):
                penalty = self._course.l1 * np.abs(weights).sum()
                row[0, PENALTY] = penalty + 0.5 * self._course.l2 * weights @ weights
            row[0, SECONDS:] = self._watch.seconds, self._watch.eval_seconds
        check_finite(row, epoch)
        self._losses.inc([epoch], row)
        self._pace.tell()

    def _report(self, report: Callable[[Losses], None], before: int) -> None:
        """Report what is complete of the epochs before one, in order."""
        if self._ps.worker != 0:
            return
        while self._reported < before:
            row = self._losses.get([self._reported])[0]
            train, test = self._examples
            if row[EXAMPLES] < train:
                return
            mean = row[TRAIN_LOSS] / train
            held_out = (row[TEST_LOSS] / test, row[TEST_HITS] / test) if test else (np.nan,) * 2
            objective = mean + row[PENALTY]
            check_finite(row, self._reported)
            hits = row[TRAIN_HITS] / train
            self._pace.hear()
            report(Losses(self._reported, mean, objective, hits, *held_out, *row[SECONDS:]))
            self._reported += 1
