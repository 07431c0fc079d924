"""The Lasso where there are far more rows than columns: one pass for X̃ᵀX̃, then no data.

All workers hold the p × p inner products G, which are summed over chunks of rows: each chunk's
columns are gathered, and a worker multiplies its own columns with all. After that a round costs
p² at most. The correlations are c = c₀ − G(β − β₀), where c₀ was computed from the data at β₀.

Owns G and the reference (β₀, c₀). The last answer of a run is certified from the data itself, and
that certificate becomes the next reference where it says that rounding in G has spoilt the answer;
the other answers of a path are certified from G, which is exact to rounding in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.kernels.lasso_tall import inner_products
from diml.strads.block import solve_products
from diml.strads.columns import Columns, DenseColumns
from diml.strads.lasso_base import LassoBase
from diml.strads.lasso_problem import Certificate, Floats, Integers, centre, certify
from diml.strads.policy import Policy

_COLUMNS_MOST = 1000
_ROWS_PER_COLUMN_LEAST = 20
_CHUNK_NUMBERS = 4_000_000
_FINAL = 0.3  # a block is solved to this part of the goal


def is_tall(held: Columns) -> bool:
    """Whether inner products of all columns are the way: the same answer on all workers."""
    return (
        isinstance(held, DenseColumns)
        and held.total <= _COLUMNS_MOST
        and held.rows >= _ROWS_PER_COLUMN_LEAST * held.total
    )


class LassoTall(LassoBase):
    """Solve the Lasso from the inner products of all columns."""

    combine = "gather"

    def _first_start(self) -> None:
        super()._first_start()
        self._gram = self._inner_products()
        self._mark_reference(None if len(self._ids) else self._c)

    def model(self) -> dict[str, Any]:
        reference = {"gram": self._gram, "at": self._at_beta, "c": self._at_c}
        return super().model() | {"reference": reference | {"half": self._at_half}}

    def _restore(self, saved: dict[str, Any]) -> None:
        super()._restore(saved)
        reference = saved["reference"]
        self._gram = np.array(reference["gram"])
        self._at_beta, self._at_c = np.array(reference["at"]), np.array(reference["c"])
        self._at_half = np.array(reference["half"])

    def _settle(self) -> None:
        """Nothing but G and the reference is kept."""

    def _distrust(self) -> None:
        """The last answer is certified from the data when it is measured."""

    def _inner_products(self) -> Floats:
        held = self._own.held
        assert isinstance(held, DenseColumns)
        p, rows = held.total, held.rows
        every = np.arange(held.count)
        mean, scale = self._own.means(every), self._own.scales(every)
        alone = self.job.size == 1
        if alone and not self._intercept and held.X.dtype == np.float64:
            own = inner_products(held.X.astype(np.float64, copy=False))
        else:
            own = np.zeros((held.count, p))
            step = max(1, _CHUNK_NUMBERS // p)
            for start in range(0, rows, step):
                part = held.X[start : start + step].T - mean[:, None]
                if alone:
                    own += inner_products(part.T)
                else:
                    everything = self.job.allgather(part)
                    own += part @ everything.T
                    self.bytes += everything.nbytes
        self.work += p * rows
        own /= np.outer(scale, self.job.allgather(scale))
        gram: Floats = self.job.allgather(own).copy()
        void = self.job.allgather(self._own.square) == 0.0
        gram[void] = 0.0
        gram[:, void] = 0.0
        return gram

    def _mark_reference(self, own: Floats | None = None) -> None:
        """Make the present coefficients β₀, and compute c₀, ½‖r‖² and rᵀy from the data.

        Args:
            own: this worker's part of c₀, where it is known already.
        """
        if own is None:
            self._residual()
            own = np.empty(self._own.held.count)
            self._own.correlate(self._r, own)
        self.visits += self.variables
        self.work += self._entries
        self._at_c = self.job.allgather(own).copy()
        sums = np.array([0.5 * float(self._r @ self._r), float(self._r @ self._y)])
        self._at_half = self.job.broadcast(sums).copy()
        self._at_beta = self._dense_beta()

    def _residual(self) -> None:
        mine = self._mine(self._ids)
        local = self._ids[mine] - self._own.held.first
        r = self._y.copy() if self.job.rank == 0 else np.zeros(len(self._y))
        self._own.held.subtract(local, self._beta[mine] / self._own.scales(local), r)
        self._r = self.job.allreduce(r, "sum")
        if self._intercept:
            self._r = self._r.copy()
            centre(self._r)

    def _dense_beta(self) -> Floats:
        beta = np.zeros(self.variables)
        beta[self._ids] = self._beta
        return beta

    def _measure(self) -> Certificate:
        certificate = self._from_products()
        last = self._at == len(self._lambdas) - 1
        if last and certificate.gap <= self._tol and (self._dense_beta() != self._at_beta).any():
            self._mark_reference()
            certificate = self._from_products()
        return certificate

    def _from_products(self) -> Certificate:
        beta = self._dense_beta()
        step = beta - self._at_beta
        moved = self._gram @ step
        c = self._at_c - moved
        half0, r_y0 = (float(v) for v in self._at_half)
        half = max(half0 - float(step @ self._at_c) + 0.5 * float(step @ moved), 0.0)
        c_y = self._at_c + self._gram @ self._at_beta
        r_y = r_y0 - float(step @ c_y)
        bound, ridge = self._penalty
        optimal = c - ridge * beta
        top = float(np.abs(optimal).max())
        off = np.abs(optimal[self._ids] - bound * np.sign(self._beta))
        violation = max(0.0, top - bound, float(off.max(initial=0.0)))
        told = np.array([half, r_y, top, violation, float(self._late())])
        half, r_y, top, violation, late = (float(v) for v in self.job.broadcast(told))
        self._out_of_time = late > 0.0
        self._kkt = violation / len(self._y)
        self._c_all, self._half = c, half
        half += self._penalty.square(self._beta)
        return certify(half, r_y, bound, top, float(np.abs(self._beta).sum()))

    def schedule(self, policy: Policy) -> Integers:
        return np.arange(self.variables)

    def push(self, block: Integers) -> NDArray[np.uint8]:
        return np.empty(0, np.uint8)

    def pull(self, block: Integers, result: NDArray[np.uint8]) -> None:
        """Minimise over all columns on worker 0 and send what it found."""
        answer = np.empty(self.variables + 1)
        if self.job.rank == 0:
            beta, c = self._dense_beta(), self._c_all.copy()
            square = np.ascontiguousarray(np.diag(self._gram))
            square0 = 2.0 * self._half
            visits = solve_products(
                self._gram, square, self._penalty, _FINAL * self._tol, square0, beta, c
            )
            answer = np.concatenate([beta, [visits]])
        answer = self.job.broadcast(answer)
        self._ids = np.flatnonzero(answer[:-1])
        self._beta = answer[self._ids].copy()
        self.visits += int(answer[-1])
        self.work += int(answer[-1]) * self.variables
        self._round_of_lambda += 1
