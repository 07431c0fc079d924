"""What every Lasso program shares: the columns that travel, the certificate, results, the λ grid.

Minimises ½n⁻¹‖y − Xβ − b‖² + λ(ρ‖β‖₁ + ½(1−ρ)‖β‖²) for each λ of a grid, the largest first, each
from the one before. ρ = 1, the default, is the Lasso; below it is the elastic net. Owns measuring
and recording; the state is `lasso_state`'s. Must not know which variables a round updates, nor how.
Invariants: the certificate is computed from a residual made anew from the data; what steers the run
(gap, time over, next λ) came out of a collective, so that workers on unlike machines do not drift
apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diml.errors import DimlError
from diml.kernels.lasso_select import above, unsure
from diml.strads.block import Penalty
from diml.strads.columns import Packed
from diml.strads.lasso_problem import (
    Certificate,
    Integers,
    Round,
    Solution,
    Standard,
    certify,
)
from diml.strads.lasso_state import LassoState
from diml.strads.store import Batch, decode, encode

_MOST = 0.7  # of the columns: from here on all are correlated in one pass
_NEAR = 0.8  # columns with |c_j| above this part of Λ are told to the policy


class LassoBase(LassoState):
    """Measurements of a Lasso run (for arguments see `LassoState`); subclasses say what a round
    does."""

    measuring_is_scheduling = True  # whether a pass over all columns counts as visits
    patience = 8  # measurements without a better gap until it says that it cannot do better

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
        half = 0.5 * float(self._r @ self._r) + self._penalty.square(self._beta)
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
