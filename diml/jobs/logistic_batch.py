"""Logistic regression over all rows at once, on collectives: what its methods share.

Owns a worker's rows as a function of the weights, their sums over all workers, and how a run is
told: files, progress, events. Must not know how a method chooses the next weights.

The objective is that of `diml.jobs.logistic`: mean loss + λ₁‖w‖₁ + λ₂‖w‖²/2.
"""

from __future__ import annotations

import math
from argparse import Namespace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diml.jobs.account import Account
from diml.jobs.logistic_data import Examples, share_of
from diml.jobs.logistic_model import auc, log_loss
from diml.jobs.logistic_train import Losses, Watch
from diml.kernels.logistic import loss_and_hits
from diml.kernels.logistic_batch import add_loss_gradient
from diml.report.progress import Progress

if TYPE_CHECKING:
    import diml

Floats: TypeAlias = NDArray[np.float64]


class Output(Protocol):
    """The files of worker 0 (`diml.jobs.logistic.Output`)."""

    epochs_written: int
    times: tuple[float, float]

    def begin(self, fresh: bool) -> None: ...
    def write(self, losses: Losses) -> None: ...
    def finish(self, weights: NDArray[Any]) -> None: ...


class Part:
    """A worker's rows. Counts its own passes over them."""

    def __init__(self, share: Examples) -> None:
        X = share.X
        self._csr = X.indptr, X.indices, np.ascontiguousarray(X.data, np.float64), share.y
        self.rows = len(share.y)
        self.passes = 0

    def loss_gradient(self, w: Floats) -> Floats:
        """(d+2,) float64: the gradient of the summed loss, then that loss, then the hits."""
        sums = np.zeros(len(w) + 2)
        sums[-2:] = add_loss_gradient(*self._csr, w, sums[:-2])
        self.passes += 1
        return sums

    def loss_and_hits(self, w: Floats) -> tuple[float, int]:
        """Summed loss and hits."""
        loss, hits = loss_and_hits(*self._csr, w)
        return float(loss), int(hits)


def tell_test(job: diml.Job, w: Floats, test: Examples | None) -> str:
    """AUC and log-loss of weights (d,) on all test examples, in words and in the event log.

    Computed where it is asked for, by worker 0: every worker has read the whole test file.
    """
    if test is None:
        return ""
    z = np.asarray(test.X @ w, np.float64)
    area, loss = auc(test.y, z), log_loss(test.y, z)
    job.event("result", values={"test AUC": area, "test log-loss": loss})
    return f", test AUC {area:.6f}, test log-loss {loss:.6f}"


class Run:
    """One worker's run of a method: its rows, and worker 0's account of it."""

    def __init__(
        self,
        job: diml.Job,
        flags: Namespace,
        train: Examples,
        test: Examples | None,
        output: Output | None,
    ) -> None:
        self.job, self.l1, self.l2 = job, flags.l1, flags.l2
        self.cols, self.total = train.X.shape[1], train.total
        self.part = Part(share_of(train, job.rank, job.size))
        self._test = None if test is None else Part(share_of(test, job.rank, job.size))
        self._test_total = 0 if test is None else test.total
        self._held_out = test
        self._output, self._flags = output, flags
        self._next, self._watch = 0, Watch()
        self._progress = Progress.of(job, f"logistic {flags.method}", flags.num_iterations)
        self._account = Account(job, "examples")

    def load(self) -> tuple[int, Any, Any]:
        """The job's checkpoint; worker 0's losses go on where that run was."""
        found = self.job.load_checkpoint()
        if self._output is not None:
            self._output.begin(fresh=found[0] == 0 and self.job.incarnation == 0)
            self._next = self._output.epochs_written
            self._watch.go_on(*self._output.times)
        return found

    def allreduce(self, mine: Floats) -> Floats:
        """The sum over the workers; the time it takes counts as waiting."""
        return self._account.waiting(self.job.allreduce, mine)

    def checkpoint(self, model: Any, local: Any = None, lazy: bool = False) -> None:
        """The job's checkpoint; the time it takes counts as waiting."""
        self._account.waiting(self.job.checkpoint, model, local, lazy)

    def penalty(self, w: Floats) -> float:
        """λ₁‖w‖₁ + λ₂‖w‖²/2."""
        return float(self.l1 * np.abs(w).sum() + 0.5 * self.l2 * (w @ w))

    def smooth(self, w: Floats) -> tuple[float, Floats]:
        """Mean loss + λ₂‖w‖²/2 over all workers' rows, and its gradient; one allreduce."""
        sums = self.allreduce(self.part.loss_gradient(w))
        value = float(sums[-2]) / self.total + 0.5 * self.l2 * float(w @ w)
        return value, sums[:-2] / self.total + self.l2 * w

    def losses(self, iteration: int, w: Floats) -> Losses:
        """The model's losses and accuracies on all rows; one allreduce, in which the workers also
        tell their seconds of work."""
        mine = np.zeros(4 + self.job.size)
        with self._watch.evaluation():
            mine[:2] = self.part.loss_and_hits(w)
            if self._test is not None:
                mine[2:4] = self._test.loss_and_hits(w)
            mine[4:] = self._account.busy(self.job.rank, self.job.size)
            sums = self.allreduce(mine)
        self._account.compare(sums[4:])
        loss, hits = float(sums[0]) / self.total, float(sums[1]) / self.total
        held_out = (math.nan, math.nan)
        if self._test_total:
            held_out = (float(sums[2]) / self._test_total, float(sums[3]) / self._test_total)
        times = self._watch.seconds, self._watch.eval_seconds
        return Losses(iteration, loss, loss + self.penalty(w), hits, *held_out, *times)

    def tell(self, losses: Losses) -> None:
        """Worker 0 writes an iteration's line, once in the run; all write their events."""
        if losses.epoch < self._next:
            return
        self._next = losses.epoch + 1
        if self._output is not None:
            self._output.write(losses)
        values = {"objective": losses.objective, "train loss": losses.train_loss}
        if self._test_total:
            values |= {"test loss": losses.test_loss, "test accuracy": losses.test_accuracy}
        self._progress.update(losses.epoch, **values, **self._account.pace)
        self._account.units = self.part.passes * self.part.rows
        self._account.tell()

    def finish(self, losses: Losses, w: Floats, reached: bool) -> None:
        """Worker 0 writes the weights and says how it ended, and whether the tolerance is
        `reached`."""
        self._account.tell(last=True)
        if self._output is not None:
            self._output.finish(w)
        if self.job.rank == 0:
            text = f"objective {losses.objective:.7g}, train accuracy {losses.train_accuracy:.4f}"
            if self._test_total:
                text += f", test loss {losses.test_loss:.6g}"
                text += f", test accuracy {losses.test_accuracy:.4f}"
            text += tell_test(self.job, w, self._held_out)
            about = f"{self._flags.method}, {self.job.size} workers, {losses.epoch} iterations"
            if not reached:
                text += "; --tolerance was not reached, raise --num_iterations"
            print(f"logistic: {about}: {text}", flush=True)

    def __enter__(self) -> Run:
        self._progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)
