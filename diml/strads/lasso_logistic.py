"""The logistic loss under an l1 penalty: the working set of the Lasso, another loss over the block.

Minimises n⁻¹Σ log(1 + exp(−t_i(x_iᵀβ + b))) + λ(ρ‖β‖₁ + ½(1−ρ)‖β‖²) for labels t_i = ±1. Rounds,
columns and checkpoints are `LassoProgram`'s; r_i = t_i/(1 + exp(t_i z_i)) takes the residual's
place. b is not part of the state: it is the best one for β, found anew from the data.

Certificate: the dual point is s·r/n, s = min(1, Λ/‖Xᵀr‖∞), with the dual Σ of entropies. With an
intercept it must sum to 0: r is made to by scaling down the side, t = 1 or −1, that is ahead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.errors import Misuse
from diml.kernels.lasso_block import dense_block, sparse_block
from diml.kernels.lasso_logistic import (
    best_intercept,
    logistic_dual,
    logistic_residual,
    solve_logistic,
)
from diml.strads.lasso_problem import Certificate, Floats, Integers, centre
from diml.strads.lasso_program import LassoProgram


class LassoLogistic(LassoProgram):
    """Solve the logistic Lasso by blocks that are minimised to a gap.

    Args: those of `LassoBase`, with `y` (n,) of labels 1 and −1, both of them there. The goal is
        gap ≤ tol·log 2, log 2 being the loss of no model at all.
    """

    def __init__(self, held: Any, y: Floats, *args: Any, **options: Any) -> None:
        check_labels(y)
        # r at β = 0 with the best b is t/2 − mean(t/2): what the base calls the response.
        super().__init__(held, 0.5 * y, *args, **options)
        self._t = np.array(y, np.float64)
        self._tol = max(self._stop.tol, 1e-15) * np.log(2.0) * len(y)
        self._loss = 0.0
        self._b = 0.0

    def _remargin(self) -> None:
        """Set z = X̃β + b with the best b for β, from the data."""
        z = self._applied(1.0)
        if self._intercept:
            centre(z)
            self._b = best_intercept(self._t, z)
            z += self._b
        self._z = z

    def _residual(self) -> None:
        self._remargin()
        fresh = np.empty(len(self._t))
        self._loss = logistic_residual(self._t, self._z, fresh)
        if self._intercept:
            ahead = fresh > 0.0
            up, down = float(fresh[ahead].sum()), -float(fresh[~ahead].sum())
            if up > 0.0 and down > 0.0:
                fresh[ahead] *= min(1.0, down / up)
                fresh[~ahead] *= min(1.0, up / down)
        self._r = fresh

    def _sums(self) -> list[float]:
        return []

    def _certificate(self, top: float, sums: list[float]) -> Certificate:
        bound = self._penalty.bound
        s = 1.0 if top <= bound else bound / top
        square = self._penalty.square(self._beta)
        primal = self._loss + bound * float(np.abs(self._beta).sum()) + square
        dual = logistic_dual(self._r, s) - s * s * square
        # Worker 0's for all: others' sums may differ in the last bits.
        primal, dual = (float(v) for v in self.job.broadcast(np.array([primal, dual])))
        return Certificate(primal - dual, primal)

    def _intercept_at(self, shift: float) -> float:
        return self._b - shift if self._intercept else 0.0

    def _share_products(self, ids: Integers) -> None:
        """A weighted loss has no use for inner products."""

    def _solve_block(self, block: Integers, goal: float, beta: Floats) -> NDArray[np.int64]:
        store, slots = self._store, self._store.slots(block)
        z = self._z.copy()
        if store.sparse:
            columns = sparse_block(*store.sparse_block(slots))
        else:
            columns = dense_block(store.dense_block(slots))
        _, visits = solve_logistic(columns, self._t, *self._penalty, self._intercept, goal, beta, z)
        return np.array([visits, visits * (store.entries // max(len(store.ids), 1) + 1), 0, 1])


def check_labels(y: Floats) -> None:
    """Raises Misuse for labels that are not 1 and −1, or all alike."""
    bad = np.flatnonzero(np.abs(y) != 1.0)
    if len(bad):
        raise Misuse(f"labels must be 1 and -1, but row {bad[0]} has {y[bad[0]]:g}")
    if len(y) and (y == y[0]).all():
        raise Misuse(f"all labels are {y[0]:g}: two classes are needed")
