"""The Lasso under the published policies: every worker updates its own variables of a block once.

push: the worker's new coefficients, from the residual that all share, and what they do to it.
pull: the sum of both over the workers. All variables of a block move from one stale residual
("jacobi"), or one after the other within a worker's part ("sweep"; with one worker that is exact
coordinate descent). The gap is measured, and the residual made anew from the data, whenever as
many columns have been visited as there are.

Owns the guard against divergence: where the objective rises above that of β = 0, the run goes back
to the best coefficients measured and halves the policy's block, or ends, as it was told. Must not
know how blocks are picked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.errors import DimlError
from diml.kernels.lasso_block import dense_block, sparse_block
from diml.kernels.lasso_step import step_block
from diml.strads.block import Penalty
from diml.strads.lasso_base import LassoBase
from diml.strads.lasso_problem import Floats, Integers, centre
from diml.strads.policy import Policy
from diml.strads.store import Batch

_CANDIDATES_STORED = 4_000_000  # entries of columns kept for correlations


class Diverged(DimlError):
    """The objective grew above that of all coefficients at zero. The message says what to do."""


class LassoBlocks(LassoBase):
    """Solve the Lasso by one update per variable of a block ("jacobi" or "sweep").

    Args beside those of `LassoBase`:
        policy: the policy it runs under, whose block is halved after a divergence.
        on_divergence: "halve" or "stop" (raise `Diverged`).
    """

    combine = "sum"
    measuring_is_scheduling = False
    patience = 1_000_000_000  # slow progress is these policies' way: only the limits end a run

    def __init__(
        self, *args: Any, policy: Policy, on_divergence: str = "halve", **options: Any
    ) -> None:
        super().__init__(*args, **options)
        if self._whole is not None:
            self._own = self._whole  # every worker answers for all columns
            self._c = self._own.first
        self._policy = policy
        self._sequential = policy.update == "sweep"
        self._on_divergence = on_divergence
        self._full = np.zeros(self.variables)
        self._visited = self.variables
        self._ceiling = 0.5 * float(self._y @ self._y)
        self._best = (np.inf, np.empty(0, np.int64), np.empty(0))

    def _settle(self) -> None:
        self._full[:] = 0.0
        self._full[self._ids] = self._beta
        super()._settle()

    def _residual(self) -> None:
        self._ids = np.flatnonzero(self._full)
        self._beta = self._full[self._ids]
        mine = self._mine(self._ids)
        local = self._ids[mine] - self._own.held.first
        moved = np.zeros(len(self._y))
        self._own.held.subtract(local, self._beta[mine] / self._own.scales(local), moved)
        self._r = self._y + self.job.allreduce(moved, "sum")
        if self._intercept:
            centre(self._r)

    def model(self) -> dict[str, Any]:
        self._ids = np.flatnonzero(self._full)
        self._beta = self._full[self._ids]
        extra = {"visited": self._visited, "best": list(self._best), "seen": list(self.divergences)}
        return super().model() | extra

    def _restore(self, saved: dict[str, Any]) -> None:
        super()._restore(saved)
        self._visited = saved["visited"]
        self._best = (saved["best"][0], saved["best"][1], saved["best"][2])
        self.divergences = [tuple(pair) for pair in saved["seen"]]

    def finished(self) -> bool:
        if self._visited < self.variables:
            return False
        self._visited = 0
        self._residual()
        self._forget()
        objective = 0.5 * float(self._r @ self._r)
        if self._at < len(self._lambdas):
            objective += self._penalty.bound * float(np.abs(self._beta).sum())
            objective += self._penalty.square(self._beta)
        objective = float(self.job.broadcast(np.array([objective]))[0])
        if not objective <= 1.01 * self._ceiling:
            self._retreat()
        elif objective < self._best[0]:
            self._best = (objective, self._ids, self._beta)
        at = self._at
        done = super().finished()
        if self._at != at:
            self._best = (np.inf, self._ids, self._beta)
        return done

    @property
    def whole(self) -> bool:  # type: ignore[override]  # a fact of the data, not of the class
        return self._whole is not None

    def _retreat(self) -> None:
        """After a divergence: back to the best coefficients, with smaller blocks."""
        size = getattr(self._policy, "block", 0)
        self.divergences.append((self.rounds, size))
        if self._on_divergence == "stop" or not self._policy.halve():
            cause = f"blocks of {size} variables" if size > 1 else "blocks from outdated residuals"
            mend = "smaller blocks (--schedule_size)" if size > 1 else "a shorter --pipeline"
            raise Diverged(
                f"diverged after {self.rounds} rounds with {cause}: take {mend}, or the policy "
                "working-set, which cannot"
            )
        self._full[:] = 0.0
        self._full[self._best[1]] = self._best[2]
        self._residual()

    def push(self, block: Integers) -> Floats:
        """(len(block) + n,): how far this worker's variables move, and r with them."""
        mine = self._mine(block)
        batch = self._batch(self._own, block[mine])
        beta = self._full[batch.ids]
        r = self._r.copy()
        shift = _step(batch, self._penalty, self._sequential, beta, r)
        part = np.zeros(len(block) + len(r))
        part[: len(block)][mine] = beta - self._full[batch.ids]
        part[len(block) :] = r - shift - self._r
        return part

    def pull(self, block: Integers, result: Floats) -> Floats:
        moved = result[: len(block)].copy()
        self._full[block] += moved
        self._r = self._r + result[len(block) :]
        self.visits += len(block)
        self._visited += len(block)
        self._round_of_lambda += 1
        self.work += len(block) * (self._entries // self.variables + 1)
        self.bytes += result.nbytes
        return moved

    def correlations(self, candidates: Integers) -> NDArray[np.float64]:
        """|x̃_iᵀx̃_j| / (‖x̃_i‖‖x̃_j‖) of all pairs, their columns gathered from their holders."""
        self._store.trim(candidates[:0], _CANDIDATES_STORED)
        self._accept(self.job.allgather(self._encoded(candidates)))
        slots = self._store.slots(candidates)
        norm = np.sqrt(self._store.square[slots])
        norm[norm == 0.0] = 1.0
        correlation: Floats = np.abs(self._store.inner(slots)) / np.outer(norm, norm)
        return correlation


def _step(batch: Batch, penalty: Penalty, sequential: bool, beta: Floats, r: Floats) -> float:
    packed = batch.packed
    if packed.indices is None:
        columns = dense_block(packed.values, batch.square)
    else:
        indptr = np.concatenate([[0], np.cumsum(packed.lengths)])
        columns = sparse_block(indptr, packed.indices, packed.values, batch.mean, batch.square)
    return float(step_block(columns, *penalty, sequential, beta, r))
