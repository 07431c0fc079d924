"""Matrix factorization by cyclic coordinate descent: a second program on `schedule`/`push`/`pull`.

Minimises Σ (a_ij − l_iᵀr_j)² + λ(‖L‖² + ‖R‖²) over the known entries (Yu et al. 2012, CCD++): for
each component k in turn, all of l_·k given r_·k, then all of r_·k given l_·k, both in closed form.

A variable is one such turn (2k: component k of L, 2k + 1: of R), so any policy schedules them;
`cyclic` in blocks of one is CCD. Each worker holds any part of the entries and all of L and R:
push sums numerators and denominators over its own entries, pull divides the totals.
Invariant: the objective never rises; residuals are made anew from the data at every checkpoint.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.data.triplets import Triplets
from diml.errors import Misuse
from diml.kernels import ccd as kernels
from diml.strads.program import Program

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Factorization(Program):
    """CCD matrix factorization.

    Args:
        entries: this worker's known entries. shape: of the whole matrix.
        rank: K. decay: λ. passes: over all components.
        listener: called with (passes, squared error sum, objective) after each pass.

    After the run `L` is (K, n_rows), `R` (K, n_cols), the same on all workers.
    """

    def __init__(
        self,
        entries: Triplets,
        shape: tuple[int, int],
        rank: int,
        *,
        decay: float,
        passes: int,
        seed: int = 0,
        listener: Any = None,
    ) -> None:
        if rank < 1 or decay < 0.0 or passes < 0:
            raise Misuse(f"K ≥ 1, λ ≥ 0 and passes ≥ 0 are needed, not {rank}, {decay}, {passes}")
        self.variables = 2 * rank
        self.entries = entries
        self.decay = decay
        self.passes = passes
        self.listener = listener
        draw = np.random.default_rng(seed)
        self.R = draw.uniform(0.0, 1.0, (rank, shape[1])) / np.sqrt(rank)
        self.L = draw.uniform(0.0, 1.0, (rank, shape[0])) / np.sqrt(rank)
        self._residual = np.empty(len(entries))
        self._turns = 0
        self._told = 0

    def start(self, saved: dict[str, Any] | None) -> None:
        if saved is not None:
            self.L, self.R = np.array(saved["L"]), np.array(saved["R"])
            self._turns, self._told = saved["turns"], saved["told"]
        entries = self.entries
        kernels.residuals(
            entries.rows, entries.cols, entries.values, self.L, self.R, self._residual
        )

    def model(self) -> dict[str, Any]:
        return {"L": self.L, "R": self.R, "turns": self._turns, "told": self._told}

    def _sides(self, turn: int) -> tuple[Integers, Integers, Floats, Floats]:
        """(places that move, places that do not, what moves, what does not) of a turn."""
        k, right = divmod(int(turn), 2)
        rows, cols = self.entries.rows, self.entries.cols
        if right:
            return cols, rows, self.R[k], self.L[k]
        return rows, cols, self.L[k], self.R[k]

    def push(self, block: Integers) -> Floats:
        """(2, length) numerators and denominators of each turn in the block, one after another."""
        parts = []
        for turn in block:
            mine, other, own, fixed = self._sides(turn)
            sums = np.zeros((2, len(own)))
            kernels.component_sums(mine, other, self._residual, own, fixed, sums)
            parts.append(sums.reshape(-1))
        return np.concatenate(parts)

    def pull(self, block: Integers, result: Floats) -> Floats:
        moved = np.empty(len(block))
        at = 0
        for place, turn in enumerate(block):
            mine, other, own, fixed = self._sides(turn)
            top, bottom = result[at : at + 2 * len(own)].reshape(2, -1)
            at += 2 * len(own)
            bottom = bottom + self.decay
            fresh = np.divide(top, bottom, out=np.zeros(len(own)), where=bottom > 0.0)
            step = fresh - own
            kernels.move_component(mine, other, self._residual, step, fixed)
            own += step
            moved[place] = np.abs(step).sum()
            self.work += sum(self.L.shape[1:]) + sum(self.R.shape[1:])
        self._turns += len(block)
        return moved

    def finished(self) -> bool:
        done = self._turns // self.variables
        while self._told < done:
            self._told = done
            square = self.job.allreduce(np.array([self._residual @ self._residual]), "sum")[0]
            size = float((self.L**2).sum() + (self.R**2).sum())
            if self.listener is not None:
                self.listener(done, float(square), float(square) + self.decay * size)
        return done >= self.passes
