"""The Lasso as a model-parallel program whose blocks are updated exactly.

Each round the columns of the block that are not stored yet are gathered by every worker (push),
worker 0 minimises over the block with all other coefficients fixed and broadcasts the result, and
every worker makes its residual anew from the data (pull). Then all columns' correlations with that
residual, each worker's from its own columns, give the certificate and the next violators.

Owns rounds, the path over λ and what is checkpointed. Must not know how a block is chosen or
solved, nor files. Invariants: what steers the run (violators, coefficients, the decision to stop)
was gathered or broadcast, so workers on unlike machines do not drift apart; the residual is never
a running sum; after a checkpoint the store starts empty on all workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.errors import DimlError
from diml.kernels.lasso_select import above
from diml.strads.block import solve
from diml.strads.columns import Columns, Packed
from diml.strads.lasso_problem import (
    Certificate,
    Floats,
    Grid,
    Integers,
    Solution,
    Standard,
    Stop,
    certify,
    check_grid,
    check_shapes,
    is_sparse,
)
from diml.strads.policy import worst
from diml.strads.program import Program
from diml.strads.store import Batch, Store, decode, encode

_NEAR = 0.8  # columns with |c_j| above this part of Λ are told to the policy
_INNER, _FINAL = 0.03, 0.3  # a block is solved to this part of the gap, or of the goal
_STORE_BLOCKS = 3  # stored entries allowed, in blocks ...
_STORE_LEAST = 1_000_000  # ... or in entries
_STALLED = 8  # rounds without a better gap until the run says it cannot do better


@dataclass(frozen=True, slots=True)
class Round:
    """What one round looked like, for logs: all totals count from the start of the run."""

    round: int
    seconds: float
    lam: float
    gap: float
    objective: float
    nonzeros: int
    visits: int
    bytes: int


class LassoProgram(Program):
    """Solve the Lasso for each λ of a grid, the largest first, each from the one before.

    Args:
        held: this worker's columns. y: all of the response, (n,) float64.
        grid, stop: which λ, and how well.
        listener: called on every worker after each round (worker 0 writes its log there).

    After the run `solutions` holds one `Solution` a λ, the same on all workers.
    """

    combine = "gather"

    def __init__(
        self,
        held: Columns,
        y: Floats,
        grid: Grid,
        stop: Stop,
        *,
        intercept: bool = True,
        standardise: bool = False,
        start_from: tuple[Integers, Floats] | None = None,
        listener: Callable[[Round], None] | None = None,
    ) -> None:
        check_shapes(held, y)
        check_grid(grid)
        self.variables = held.total
        self.solutions: list[Solution] = []
        self.visits = 0
        self.bytes = 0
        self._grid = grid
        self._stop = stop
        self._intercept = intercept
        self._listener = listener
        self._own = Standard(held, intercept, standardise)
        self._sparse = is_sparse(held)
        self._store = Store(held.rows, self._sparse)
        self._y_mean = float(y.mean()) if intercept else 0.0
        self._y = y - self._y_mean
        self._tol = max(stop.tol, 1e-15) * float(self._y @ self._y)
        self._r = self._y.copy()
        self._c = np.empty(held.count)
        self._start_from = start_from
        self._unsent: Batch | None = None

    # ------------------------------------------------------------------ start and checkpoints

    def start(self, saved: dict[str, Any] | None) -> None:
        self._store.clear()
        self._best_gap = np.inf
        self._stalled = 0
        if saved is None:
            self._first_start()
        else:
            self._restore(saved)
        self._gather(self._ids)
        self._residual()
        self._measured = False

    def _first_start(self) -> None:
        held = self._own.held
        self._ids, self._beta = np.empty(0, np.int64), np.empty(0)
        self._c[:] = 0.0
        self._own.correlate(self._r, self._c)
        top = float(np.abs(self._c).max()) if held.count else 0.0
        flat = float(self._own.square.max()) if held.count else 0.0
        top, flat = (float(v) for v in self.job.allreduce(np.array([top, flat]), "max"))
        sums = np.array([held.count, int(held.entries().sum())], np.int64)
        self._entries = int(self.job.allreduce(sums, "sum")[1])
        self._flat = flat == 0.0
        self.lambda_max = top / held.rows
        self._lambdas = self._grid.resolve(self.lambda_max)
        self._at = 0
        self._round_of_lambda = 0
        self._began = float(self.job.broadcast(np.array([time.time()]))[0])
        if self._start_from is not None:
            ids, values = self._start_from
            scale = np.zeros(len(ids))
            mine = self._mine(ids)
            scale[mine] = self._own.scales(ids[mine] - held.first)
            scale = self.job.allreduce(scale, "sum")
            self._ids, self._beta = ids, values * scale

    def model(self) -> dict[str, Any]:
        return {
            "ids": self._ids,
            "beta": self._beta,
            "lambdas": self._lambdas,
            "lambda_max": self.lambda_max,
            "at": self._at,
            "round_of_lambda": self._round_of_lambda,
            "began": self._began,
            "entries": self._entries,
            "flat": self._flat,
            "visits": self.visits,
            "bytes": self.bytes,
            "solutions": [solution.pack() for solution in self.solutions],
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        self._ids = np.array(saved["ids"])
        self._beta = np.array(saved["beta"])
        self._lambdas = np.array(saved["lambdas"])
        self.lambda_max = saved["lambda_max"]
        self._at = saved["at"]
        self._round_of_lambda = saved["round_of_lambda"]
        self._began = saved["began"]
        self._entries = saved["entries"]
        self._flat = saved["flat"]
        self.visits = saved["visits"]
        self.bytes = saved["bytes"]
        self.solutions = [Solution(*fields) for fields in saved["solutions"]]

    @property
    def flat(self) -> bool:
        """Whether no column can be used: all are empty (or constant, with an intercept)."""
        return self._flat

    # ------------------------------------------------------------------ columns and residual

    def _batch(self, ids: Integers) -> Batch:
        """Those of the columns `ids` that this worker holds, as x̃."""
        own = self._own
        first = own.held.first
        local = ids[self._mine(ids)] - first
        packed = own.held.take(local)
        scale, mean = own.scales(local), own.means(local)
        if self._sparse:
            if len(own.scale):
                values = packed.values / np.repeat(scale, packed.lengths)
                packed = Packed(packed.lengths, packed.indices, values)
        elif self._intercept or len(own.scale):
            values = (packed.values - mean[:, None]) / scale[:, None]
            packed = Packed(packed.lengths, None, values)
        return Batch(local + first, packed, mean / scale, scale, own.square[local])

    def push(self, block: Integers) -> NDArray[np.uint8]:
        """This worker's columns of the block that are not stored yet."""
        batch = self._batch(self._store.missing(block))
        if self.job.size == 1:
            self._unsent = batch
            return np.empty(0, np.uint8)
        return encode(batch)

    def _accept(self, data: NDArray[np.uint8]) -> None:
        self.bytes += len(data)
        batches = decode(data, self._own.held.rows, self._sparse)
        for batch in [self._unsent] if self._unsent is not None else batches:
            self._store.add(batch)
        self._unsent = None

    def _gather(self, ids: Integers) -> None:
        if len(ids):
            self._accept(self.job.allgather(self.push(ids)))

    def _residual(self) -> None:
        """r = y − X̃β from the data, centred where there is an intercept."""
        self._r[:] = self._y
        if len(self._ids):
            self._store.subtract(self._store.slots(self._ids), self._beta, self._r)
            if self._intercept:
                self._r -= self._r.mean()

    # ------------------------------------------------------------------ the round

    def finished(self) -> bool:
        """Measure, and go on to the next λ while the gap is small enough."""
        while self._at < len(self._lambdas):
            certificate = self._measure()
            self._gap = certificate.gap
            if self._listener is not None:
                self._listener(self._report(certificate))
            converged = certificate.gap <= self._tol
            if not (converged or self._hopeless(certificate.gap)):
                return False
            self._record(certificate, converged)
        return True

    def _hopeless(self, gap: float) -> bool:
        """Whether to give up on this λ: out of rounds or time, or no better gap for long."""
        if not np.isfinite(gap):
            raise DimlError("the Lasso diverged: its objective is not a number")
        if gap < 0.9 * self._best_gap:
            self._best_gap, self._stalled = gap, 0
        else:
            self._stalled += 1
        late = self._out_of_time or self._round_of_lambda >= self._stop.rounds_max
        return late or self._stalled >= _STALLED

    def _measure(self) -> Certificate:
        """Correlations and certificate at the present coefficients and λ."""
        bound = self._bound
        if not self._measured:
            self._own.correlate(self._r, self._c)
            self.visits += self.variables
            self.work += self._entries
            self._measured = True
        self._near, top = above(self._c, _NEAR * bound)
        overdue = self.job.rank == 0 and self._late()
        told = np.array([top, self._violation(top), overdue], np.float64)
        top, kkt, late = (float(v) for v in self.job.allreduce(told, "max"))
        self._out_of_time = late > 0.0
        self._kkt = kkt / len(self._y)
        l1 = float(np.abs(self._beta).sum())
        half = 0.5 * float(self._r @ self._r)
        return certify(half, float(self._r @ self._y), bound, top, l1)

    @property
    def _bound(self) -> float:
        """Λ = nλ at the present λ."""
        return float(self._lambdas[self._at]) * len(self._y)

    def _mine(self, ids: Integers) -> NDArray[np.bool_]:
        first = self._own.held.first
        return (ids >= first) & (ids < first + self._own.held.count)

    def _violation(self, top: float) -> float:
        """This worker's worst violation: |c_j| over Λ anywhere, c_j ≠ Λ sign β_j where β_j ≠ 0."""
        mine = self._mine(self._ids)
        c = self._c[self._ids[mine] - self._own.held.first]
        off = np.abs(c - self._bound * np.sign(self._beta[mine]))
        return max(0.0, top - self._bound, float(off.max(initial=0.0)))

    def _late(self) -> bool:
        limit = self._stop.seconds_max
        return limit is not None and time.time() - self._began > limit

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
        answer = np.empty(len(block) + 2)
        if self.job.rank == 0:
            goal = max(_INNER * self._gap, _FINAL * self._tol)
            visits, entries = solve(self._store, block, self._bound, goal, beta, self._r)
            answer = np.concatenate([beta, [visits, entries]])
        answer = self.job.broadcast(answer, 0)
        self.visits += int(answer[-2])
        self.work += int(answer[-1])
        beta = answer[:-2]
        live = np.flatnonzero(beta)
        self._ids, self._beta = block[live], beta[live].copy()
        self._residual()
        self._measured = False
        self._round_of_lambda += 1
        allowed = _STORE_BLOCKS * int(self._store.entries_of(block).sum())
        self._store.trim(block, max(allowed, _STORE_LEAST))

    # ------------------------------------------------------------------ results

    def _record(self, certificate: Certificate, converged: bool) -> None:
        """Keep the answer at the present λ, on the scale of X, and go on to the next."""
        slots = self._store.slots(self._ids)
        values = self._beta / self._store.scale[slots]
        rows = len(self._y)
        intercept = self._y_mean - float(self._store.mean[slots] @ self._beta)
        self.solutions.append(
            Solution(
                float(self._lambdas[self._at]),
                certificate.gap / rows,
                self._kkt,
                certificate.primal / rows,
                self._ids,
                values,
                intercept,
                converged,
                self._round_of_lambda,
            )
        )
        self._at += 1
        self._round_of_lambda = 0
        self._best_gap, self._stalled = np.inf, 0

    def _report(self, certificate: Certificate) -> Round:
        rows = len(self._y)
        return Round(
            self.rounds,
            time.time() - self._began,
            float(self._lambdas[self._at]),
            certificate.gap / rows,
            certificate.primal / rows,
            len(self._ids),
            self.visits,
            self.bytes,
        )
