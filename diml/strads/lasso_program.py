"""The Lasso as a model-parallel program whose blocks are solved exactly.

Each round the columns of the block that are not stored yet are gathered by every worker (push),
worker 0 minimises over the block with all other coefficients fixed and broadcasts the result, and
every worker makes its residual anew from the data (pull). Then all columns' correlations with that
residual, each worker's from its own columns, give the certificate and the next violators.

Owns the exchange of columns and of coefficients. Must not know how a block is chosen or solved.
Invariants: the residual is never a running sum; after a checkpoint the store starts empty on all
workers; coefficients are those that worker 0 sent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diml.strads.block import solve
from diml.strads.lasso_base import LassoBase
from diml.strads.lasso_problem import Floats, Integers, centre
from diml.strads.policy import worst
from diml.strads.products import Products

_INNER, _FINAL = 0.01, 0.3  # a block is solved to this part of the gap, or of the goal ...
_NEAR_END = 10.0  # ... once the first is less than so many goals
_STORE_BLOCKS = 3  # stored entries allowed, in blocks ...
_STORE_LEAST = 1_000_000  # ... or in entries


class LassoProgram(LassoBase):
    """Solve the Lasso by blocks that are minimised to a gap (policies that say "solve")."""

    combine = "gather"

    def _settle(self) -> None:
        self._products = Products(keep=self.job.rank == 0)
        if len(self._ids):
            self._accept(self.job.allgather(self._encoded(self._ids)))
        super()._settle()

    def _residual(self) -> None:
        fresh = self._y.copy()
        if len(self._ids):
            self._store.subtract(self._store.slots(self._ids), self._beta, fresh)
            if self._intercept:
                centre(fresh)
        self._r = fresh

    def push(self, block: Integers) -> NDArray[np.uint8]:
        """This worker's columns of the block that are not stored yet."""
        return self._encoded(block)

    def support(self) -> Integers:
        return self._ids

    def violations(self, most: int) -> tuple[Integers, Floats]:
        """Columns outside the support with |c_j| near Λ or above, and |c_j|."""
        ids = self._near + self._own.held.first
        other = ~np.isin(ids, self._ids)
        ids, scores = ids[other], np.abs(self._c[self._near[other]])
        if self.job.size == 1:
            return ids, scores
        if len(ids) > most:
            chosen = worst(ids, scores, most)
            ids, scores = chosen, np.abs(self._c[chosen - self._own.held.first])
        pairs = self.job.allgather(np.column_stack([ids.astype(np.float64), scores]))
        self.bytes += pairs.nbytes
        return pairs[:, 0].astype(np.int64), pairs[:, 1].copy()

    def pull(self, block: Integers, result: NDArray[np.uint8]) -> None:
        """Minimise over the block, whose columns came in; then make the residual anew."""
        self._accept(result)
        beta = np.zeros(len(block))
        beta[np.searchsorted(block, self._ids)] = self._beta
        answer, before = np.empty(len(block) + 4), self._r
        over = False
        while not over:
            self._share_products()
            if self.job.rank == 0:
                goal = _INNER * self._gap
                goal = goal if goal > _NEAR_END * self._tol else _FINAL * self._tol
                spent = self._solve_block(block, goal, beta)
                answer = np.concatenate([beta, spent])
            answer = self.job.broadcast(answer, 0)
            beta = answer[:-4].copy()
            self.visits += int(answer[-4])
            self.work += int(answer[-3])
            self._products.spend(int(answer[-2]))
            over = answer[-1] != 0.0
            live = np.flatnonzero(beta)
            self._ids, self._beta = block[live], beta[live]
            self._residual()
        self._drift += float(np.linalg.norm(self._r - before))
        self._round_of_lambda += 1
        allowed = _STORE_BLOCKS * int(self._store.entries_of(block).sum())
        self._store.trim(block, max(allowed, _STORE_LEAST))
        self._products.retain(self._store)

    def _solve_block(self, block: Integers, goal: float, beta: Floats) -> NDArray[np.int64]:
        """Minimise over the block to a gap of `goal`, `beta` in place. Returns what it cost."""
        r = self._r.copy()
        return np.array(solve(self._store, self._products, block, self._penalty, goal, beta, r))

    def _share_products(self) -> None:
        """Compute inner products of the non-zero columns, each worker some, when that pays."""
        if not self._sparse:
            return
        products, job = self._products, self.job
        fresh = products.wanted(self._store, self._ids)
        if len(fresh) == 0:
            return
        rows = products.rows(self._store, fresh, job.rank, job.size)
        if job.size > 1:
            rows = job.allgather(rows)
            self.bytes += rows.nbytes
        products.add(fresh, rows)
        self.work += rows.size
