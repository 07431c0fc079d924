"""The Lasso as a model-parallel program whose blocks are solved exactly.

Each round the columns of the block that are not stored yet are gathered by every worker (push),
worker 0 minimises over the block with all other coefficients fixed and broadcasts the result, and
every worker makes its residual anew from the data (pull). Then all columns' correlations with that
residual, each worker's from its own columns, give the certificate and the next violators.

A block of more entries than a worker's fair share of the data (and than 2 million) is cut down to
its worst violators; the rest of the support then stays as it is for that round, and the residual is
made by all workers together. So copies never need more memory than the data do.

Owns the exchange of columns and of coefficients, and that limit. Must not know how a block is
chosen or solved. Invariants: the residual is never a running sum; after a checkpoint the store
starts empty on all workers; coefficients are those that worker 0 sent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.strads.block import solve
from diml.strads.lasso_base import LassoBase
from diml.strads.lasso_problem import Floats, Integers, centre
from diml.strads.policy import Policy, worst
from diml.strads.products import Products

_INNER, _FINAL = 0.01, 0.3  # a block is solved to this part of the gap, or of the goal ...
_NEAR_END = 10.0  # ... once the first is less than so many goals
_STORE_BLOCKS = 3  # stored entries allowed, in blocks ...
_STORE_LEAST = 1_000_000  # ... or in entries
_BLOCK_LEAST = 2_000_000  # entries that a block may always have
_PATIENCE_CUT = 500  # measurements without a better gap, where blocks are cut ...
_FINAL_CUT = 0.01  # ... and solved at once to this part of the goal: many make up the whole gap


class LassoProgram(LassoBase):
    """Solve the Lasso by blocks that are minimised to a gap (policies that say "solve")."""

    combine = "gather"

    def __init__(self, *args: Any, block_entries: int | None = None, **options: Any) -> None:
        """Args beside those of `LassoBase`: block_entries, the limit if it is not the usual one."""
        super().__init__(*args, **options)
        self._block_entries = block_entries

    @property
    def _entries_most(self) -> int:
        return self._block_entries or max(_BLOCK_LEAST, self._entries // self.job.size)

    def _settle(self) -> None:
        self._products = Products(keep=self.job.rank == 0, parts=self.job.size)
        self.patience = type(self).patience
        longest = int(self._own.held.entries().max(initial=0))
        self._longest = int(self.job.allreduce(np.array([longest], np.int64), "max")[0])
        if len(self._ids) and len(self._fitting(self._ids)) == len(self._ids):
            self._accept(self.job.allgather(self._encoded(self._ids)))
        super()._settle()

    def _fitting(self, ids: Integers) -> Integers:
        """Those of `ids`, rising, that a block can hold: all, or the worst violators."""
        most = self._entries_most
        if len(ids) * self._longest <= most:
            return ids
        mine = ids[self._mine(ids)]
        local = mine - self._own.held.first
        beta = np.zeros(self.variables)
        beta[self._ids] = self._beta
        bound, ridge = self._penalty
        c = self._c[local] - ridge * beta[mine]
        off = np.where(
            beta[mine] != 0.0, np.abs(c - bound * np.sign(beta[mine])), np.abs(c) - bound
        )
        rows = np.column_stack([mine, self._own.held.entries()[local], off])
        rows = self.job.allgather(rows.astype(np.float64))
        if rows[:, 1].sum() <= most:
            return ids
        order = np.lexsort((rows[:, 0], -rows[:, 2]))
        count = int(np.searchsorted(np.cumsum(rows[order, 1]), most, side="right"))
        self.patience = _PATIENCE_CUT
        return np.sort(rows[order[: max(count, 1)], 0].astype(np.int64))

    def schedule(self, policy: Policy) -> Integers:
        return self._fitting(policy.next_block(self))

    def _residual(self) -> None:
        self._r = self._y + self._applied(-1.0)
        if self._intercept and len(self._ids):
            centre(self._r)

    def _applied(self, sign: float) -> Floats:
        """sign · X̃β, (n,), from the data; not centred."""
        z = np.zeros(len(self._y))
        if len(self._store.missing(self._ids)):
            mine = self._mine(self._ids)
            local = self._ids[mine] - self._own.held.first
            self._own.held.subtract(local, -sign * self._beta[mine] / self._own.scales(local), z)
            return np.array(self.job.allreduce(z, "sum"))
        if len(self._ids):
            self._store.subtract(self._store.slots(self._ids), -sign * self._beta, z)
        return z

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
        inside = np.isin(self._ids, block)
        still = self._ids[~inside], self._beta[~inside]
        beta = np.zeros(len(block))
        beta[np.searchsorted(block, self._ids[inside])] = self._beta[inside]
        answer, before = np.empty(len(block) + 4), self._r
        over = False
        while not over:
            self._share_products(block[beta != 0.0])
            if self.job.rank == 0:
                goal = _INNER * self._gap
                if self.patience == _PATIENCE_CUT:
                    goal = _FINAL_CUT * self._tol
                elif goal <= _NEAR_END * self._tol:
                    goal = _FINAL * self._tol
                spent = self._solve_block(block, goal, beta)
                answer = np.concatenate([beta, spent])
            answer = self.job.broadcast(answer, 0)
            beta = answer[:-4].copy()
            self.visits += int(answer[-4])
            self.work += int(answer[-3])
            self._products.spend(int(answer[-2]))
            over = answer[-1] != 0.0
            live = np.flatnonzero(beta)
            ids = np.concatenate([still[0], block[live]])
            order = np.argsort(ids)
            self._ids, self._beta = ids[order], np.concatenate([still[1], beta[live]])[order]
            self._residual()
        self._drift += float(np.linalg.norm(self._r - before))
        self._round_of_lambda += 1
        size = int(self._store.entries_of(block).sum())
        allowed = max(_STORE_BLOCKS * size, _STORE_LEAST)
        self._store.trim(block, max(size, min(allowed, self._entries_most)))
        self._products.retain(self._store)

    def _solve_block(self, block: Integers, goal: float, beta: Floats) -> NDArray[np.int64]:
        """Minimise over the block to a gap of `goal`, `beta` in place. Returns what it cost."""
        r = self._r.copy()
        return np.array(solve(self._store, self._products, block, self._penalty, goal, beta, r))

    def _share_products(self, ids: Integers) -> None:
        """Compute inner products of the columns `ids`, each worker some, when that pays."""
        if not self._sparse:
            return
        products, job = self._products, self.job
        fresh = products.wanted(self._store, ids)
        if len(fresh) == 0:
            return
        rows = products.part(self._store, fresh, job.rank)
        if job.size > 1:
            rows = job.allreduce(rows)
            self.bytes += rows.nbytes
        products.add(fresh, rows)
        self.work += rows.size
