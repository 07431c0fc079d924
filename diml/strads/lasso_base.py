"""What every Lasso program shares: this worker's columns, the certificate, results, the λ grid.

Minimises ½n⁻¹‖y − Xβ − b‖² + λ(ρ‖β‖₁ + ½(1−ρ)‖β‖²) for each λ of a grid, the largest first, each
from the one before. ρ = 1, the default, is the Lasso; below it is the elastic net. Owns start,
checkpointed state, measuring and recording. Must not know which variables a round updates, nor how.
Invariants: the certificate is computed from a residual made anew from the data; what steers the run
(gap, time over, next λ) came out of a collective, so that workers on unlike machines do not drift
apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.errors import DimlError, Misuse
from diml.kernels.lasso_select import above, unsure
from diml.strads.block import Penalty
from diml.strads.columns import Columns, Packed
from diml.strads.lasso_problem import (
    Certificate,
    Floats,
    Grid,
    Integers,
    Round,
    Solution,
    Standard,
    Stop,
    certify,
    check_grid,
    check_shapes,
    is_sparse,
)
from diml.strads.program import Program
from diml.strads.store import Batch, Store, decode, encode

_MOST = 0.7  # of the columns: from here on all are correlated in one pass
_NEAR = 0.8  # columns with |c_j| above this part of Λ are told to the policy


class LassoBase(Program):
    """State and measurements of a Lasso run; subclasses say what a round does.

    Args:
        held: this worker's columns. y: all of the response, (n,) float64.
        grid, stop: which λ, and how well.
        l1_ratio: ρ, in (0, 1].
        start_from: (ids, coefficients on the scale of X) to begin with.
        copy: all columns, where every worker has them: then none are sent.
        listener: called on every worker after each round (worker 0 writes its log there).

    After the run `solutions` holds one `Solution` a λ, the same on all workers, and `divergences`
    the (round, block size) of each divergence that was mended.
    """

    measuring_is_scheduling = True  # whether a pass over all columns counts as visits
    patience = 8  # measurements without a better gap until it says that it cannot do better

    def __init__(
        self,
        held: Columns,
        y: Floats,
        grid: Grid,
        stop: Stop,
        *,
        intercept: bool = True,
        standardise: bool = False,
        l1_ratio: float = 1.0,
        start_from: tuple[Integers, Floats] | None = None,
        listener: Callable[[Round], None] | None = None,
        copy: Columns | None = None,
    ) -> None:
        check_shapes(held, y)
        check_grid(grid)
        if not 0.0 < l1_ratio <= 1.0:
            raise Misuse(f"the l1 ratio must be above 0 and at most 1, not {l1_ratio:g}")
        self.variables = held.total
        self.solutions: list[Solution] = []
        self.divergences: list[tuple[int, int]] = []
        self.visits = 0
        self.bytes = 0
        self._grid = grid
        self._stop = stop
        self._intercept = intercept
        self._l1_ratio = l1_ratio
        self._listener = listener
        self._sparse = is_sparse(held)
        self._store = Store(held.rows, self._sparse)
        self._y_mean = float(y.mean()) if intercept else 0.0
        self._y = y - self._y_mean
        self._own = Standard(held, self._y, intercept, standardise)
        self._tol = max(stop.tol, 1e-15) * float(self._y @ self._y)
        self._r = self._y.copy()
        self._c = self._own.first  # X̃ᵀr: of y until the first round
        self._start_from = start_from
        self._whole = None
        if copy is not None:
            self._whole = Standard(copy, self._y, intercept, standardise)

    # ------------------------------------------------------------------ start and checkpoints

    def start(self, saved: dict[str, Any] | None) -> None:
        self._best_gap, self._stalled = np.inf, 0
        self._drift = 0.0
        self._untouched = False  # whether all correlations are those of the present residual
        self._store.clear()
        if saved is None:
            self._first_start()
        else:
            self._restore(saved)
        self._settle()

    def _settle(self) -> None:
        """Make what is not checkpointed: called at the start and after every checkpoint."""
        self._residual()
        self._forget()
        if self._untouched:
            self._seen[:] = 0.0
            self._untouched = False

    def _forget(self) -> None:
        """Take no correlation for known any more."""
        self._drift = 0.0
        self._seen = np.full(self._own.held.count, -np.inf)

    def _distrust(self) -> None:
        """Take no correlation for known that was not computed at the present residual."""
        self._seen[self._seen < self._drift] = -np.inf

    def _residual(self) -> None:
        """Set `_r` to y − X̃β from the data, centred where there is an intercept."""
        raise NotImplementedError

    def _first_start(self) -> None:
        held = self._own.held
        self._ids, self._beta = np.empty(0, np.int64), np.empty(0)
        top = float(np.abs(self._c).max()) if held.count else 0.0
        flat = float(self._own.square.max()) if held.count else 0.0
        top, flat = (float(v) for v in self.job.allreduce(np.array([top, flat]), "max"))
        sums = np.array([held.count, int(held.entries().sum())], np.int64)
        self._entries = int(self.job.allreduce(sums, "sum")[1])
        self._flat = flat == 0.0
        self.lambda_max = top / held.rows / self._l1_ratio
        self._lambdas = self._grid.resolve(self.lambda_max)
        self._at = 0
        self._round_of_lambda = 0
        self._began = float(self.job.broadcast(np.array([time.time()]))[0])
        if self._start_from is not None:
            ids, values = self._start_from
            self._ids, self._beta = ids, values * self._scales_means(ids)[0]
        self._untouched = len(self._ids) == 0

    def _scales_means(self, ids: Integers) -> tuple[Floats, Floats]:
        """s_j and m_j of `ids`, from the workers that hold them."""
        both = np.zeros((2, len(ids)))
        mine = self._mine(ids)
        local = ids[mine] - self._own.held.first
        both[0, mine], both[1, mine] = self._own.scales(local), self._own.means(local)
        both = self.job.allreduce(both, "sum")
        return both[0], both[1]

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

    def outcome(self) -> dict[str, Any]:
        return {
            "lambda_max": self.lambda_max,
            "flat": self._flat,
            "visits": self.visits,
            "bytes": self.bytes,
            "solutions": [solution.pack() for solution in self.solutions],
            "divergences": [list(pair) for pair in self.divergences],
        }

    def recall(self, outcome: dict[str, Any]) -> None:
        self.lambda_max, self._flat = outcome["lambda_max"], outcome["flat"]
        self.visits, self.bytes = outcome["visits"], outcome["bytes"]
        self.solutions = [Solution(*fields) for fields in outcome["solutions"]]
        self.divergences = [(pair[0], pair[1]) for pair in outcome["divergences"]]

    @property
    def flat(self) -> bool:
        """Whether no column can be used: all are empty (or constant, with an intercept)."""
        return self._flat

    # ------------------------------------------------------------------ columns and residual

    def _batch(self, own: Standard, ids: Integers) -> Batch:
        """Those of the columns `ids` that `own` holds, as x̃."""
        first = own.held.first
        local = ids[(ids >= first) & (ids < first + own.held.count)] - first
        packed = own.held.take(local)
        scale, mean = own.scales(local), own.means(local)
        if self._sparse:
            if len(own.scale):
                values = packed.values / np.repeat(scale, packed.lengths)
                packed = Packed(packed.lengths, packed.indices, values)
        elif self._intercept or len(own.scale):
            values = (packed.values - mean[:, None]) / scale[:, None]
            packed = Packed(packed.lengths, None, values)
        return Batch(local + first, packed, mean / scale, own.square[local])

    def _encoded(self, ids: Integers) -> NDArray[np.uint8]:
        """This worker's columns among those of `ids` that are not stored yet, to be gathered.

        Where the worker has all columns itself they go straight to the store.
        """
        missing = self._store.missing(ids)
        if self._whole is not None or self.job.size == 1:
            self._store.add(self._batch(self._whole or self._own, missing))
            return np.empty(0, np.uint8)
        return encode(self._batch(self._own, missing))

    def _accept(self, data: NDArray[np.uint8]) -> None:
        """Store the columns that all workers' `_encoded` gave."""
        self.bytes += len(data)
        for batch in decode(data, self._own.held.rows, self._sparse):
            self._store.add(batch)

    # ------------------------------------------------------------------ the round

    def finished(self) -> bool:
        """Measure, and go on to the next λ while the gap is small enough."""
        while self._at < len(self._lambdas):
            certificate = self._measure()
            self._gap = certificate.gap
            if self._listener is not None:
                self._listener(self._report(certificate))
            converged = certificate.gap <= self._tol
            if converged and self._at == len(self._lambdas) - 1:
                # The last answer is certified from every column, not from bounds.
                self._distrust()
                certificate = self._measure()
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
        return late or self._stalled >= self.patience

    def _measure(self) -> Certificate:
        """Correlations and certificate at the present coefficients and λ."""
        bound, ridge = self._penalty
        self._correlate(_NEAR * bound)
        mine = self._mine(self._ids)
        places, beta = self._ids[mine] - self._own.held.first, self._beta[mine]
        raw = self._c[places]
        self._c[places] -= ridge * beta
        self._near, top = above(self._c, _NEAR * bound)
        off = np.abs(self._c[places] - bound * np.sign(beta))
        self._c[places] = raw
        violation = max(0.0, top - bound, float(off.max(initial=0.0)))
        overdue = self.job.rank == 0 and self._late()
        told = np.array([top, violation, overdue, *self._sums()], np.float64)
        top, violation, late, *sums = (float(v) for v in self.job.allreduce(told, "max"))
        self._out_of_time = late > 0.0
        self._kkt = violation / len(self._y)
        return self._certificate(top, sums)

    def _sums(self) -> list[float]:
        """What the certificate needs beside ‖c‖∞: none negative, worker 0's and 0 on the others
        (their sums may differ in the last bits)."""
        if self.job.rank != 0:
            return [0.0, 0.0, 0.0]
        half = 0.5 * float(self._r @ self._r)
        half += 0.5 * self._penalty.ridge * float(self._beta @ self._beta)
        r_y = float(self._r @ self._y)
        return [half, max(r_y, 0.0), max(-r_y, 0.0)]

    def _certificate(self, top: float, sums: list[float]) -> Certificate:
        half, plus, minus = sums
        l1 = float(np.abs(self._beta).sum())
        return certify(half, plus - minus, self._penalty.bound, top, l1)

    def _correlate(self, threshold: float) -> None:
        """Bring up to date all correlations that may exceed `threshold`; the others do not.

        What is left out is proven to be below it at the present residual, from how far that has
        moved (`unsure`). This takes the place of gap-safe screening (Fercoq, Gramfort & Salmon
        2015), whose ball of radius √(2·gap) around the residual holds the optimal one, and is at
        least as safe: a column is never dropped, only not visited this time, so the certificate is
        that of the whole problem in each round, and the last one visits every column anyway.
        """
        own = self._own
        slack = threshold * (1.0 - 1e-9)
        live = self._ids[self._mine(self._ids)] - own.held.first
        live = live[self._seen[live] < self._drift]
        self._seen[live] = -np.inf  # the violation of what is not zero is told exactly
        places = unsure(self._c, self._seen, own.square, self._drift, slack)
        if len(places) > _MOST * own.held.count:
            own.correlate(self._r, self._c)
            self._seen[:] = self._drift
        elif len(places):
            self._c[places] = own.correlate_some(places, self._r)
            self._seen[places] = self._drift
        if self.measuring_is_scheduling:
            self.visits += self.variables
        self.work += self._entries

    @property
    def _penalty(self) -> Penalty:
        """Λ = nλρ and μ = nλ(1 − ρ) at the present λ."""
        whole = float(self._lambdas[self._at]) * len(self._y)
        return Penalty(whole * self._l1_ratio, whole * (1.0 - self._l1_ratio))

    def _mine(self, ids: Integers) -> NDArray[np.bool_]:
        first = self._own.held.first
        return (ids >= first) & (ids < first + self._own.held.count)

    def _late(self) -> bool:
        limit = self._stop.seconds_max
        return limit is not None and self.now - self._began > limit

    # ------------------------------------------------------------------ results

    def _record(self, certificate: Certificate, converged: bool) -> None:
        """Keep the answer at the present λ, on the scale of X, and go on to the next."""
        scale, mean = self._scales_means(self._ids)
        values = self._beta / scale
        rows = len(self._y)
        intercept = self._intercept_at(float(mean @ values))
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

    def _intercept_at(self, shift: float) -> float:
        """b on the scale of X; `shift` is Σ m_j β_j there."""
        return self._y_mean - shift

    def _report(self, certificate: Certificate) -> Round:
        rows = len(self._y)
        return Round(
            self.rounds,
            self.now - self._began,
            float(self._lambdas[self._at]),
            certificate.gap / rows,
            certificate.primal / rows,
            len(self._ids),
            self.visits,
            self.bytes,
            self._at,
        )
