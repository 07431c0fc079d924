"""The state of a Lasso run: what it starts from, what checkpoints keep, what outlives it.

Owns start, checkpointed state and the outcome. How a run is measured is `lasso_base`'s, what a
round does its subclasses'. Invariant: what is not checkpointed follows from the data and from what
is, so that a replacement stands where the others stand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.errors import Misuse
from diml.strads.columns import Columns
from diml.strads.lasso_problem import (
    LARGEST,
    TOO_SMALL,
    Floats,
    Grid,
    Integers,
    Round,
    Solution,
    Standard,
    Stop,
    check_grid,
    check_shapes,
    is_sparse,
    mean_of,
)
from diml.strads.program import Program
from diml.strads.store import Store


class LassoState(Program):
    """What a Lasso run knows, and how it comes by it.

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
        self._y_mean = mean_of(y) if intercept else 0.0
        self._y = y - self._y_mean
        self._own = Standard(held, self._y, intercept, standardise)
        self._tol = max(stop.tol, 1e-15) * float(self._y @ self._y)
        self._r = self._y.copy()
        self._c = self._own.first  # X̃ᵀr: of y until the first round
        self._start_from = start_from
        self._whole = None
        if copy is not None:
            self._whole = Standard(copy, self._y, intercept, standardise)

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
        told = np.array([top, flat, self._own.faint], np.float64)
        top, flat, faint = (float(v) for v in self.job.allreduce(told, "max"))
        if flat == 0.0 and faint:
            raise Misuse(f"X is too small: {TOO_SMALL}")
        sums = np.array([held.count, int(held.entries().sum())], np.int64)
        self._entries = int(self.job.allreduce(sums, "sum")[1])
        self._flat = flat == 0.0
        self.lambda_max = top / held.rows / self._l1_ratio
        self._lambdas = self._grid.resolve(self.lambda_max)
        if not np.isfinite(self._lambdas).all() or self._lambdas[0] > LARGEST / held.rows:
            raise Misuse("lambda is too large: times the number of rows it is infinite")
        self._at = 0
        self._round_of_lambda = 0
        self._began = float(self.job.broadcast(np.array([time.time()]))[0])
        if self._start_from is not None:
            ids, values = self._start_from
            beta = values * self._scales_means(ids)[0]
            # A column that cannot be used (here; it may have been elsewhere) stays at 0.
            used = self._usable(ids)
            self._ids, self._beta = ids[used], beta[used]
        self._untouched = len(self._ids) == 0

    def _scales_means(self, ids: Integers) -> tuple[Floats, Floats]:
        """s_j and m_j of `ids`, from the workers that hold them."""
        both = np.zeros((2, len(ids)))
        mine = self._mine(ids)
        local = ids[mine] - self._own.held.first
        both[0, mine], both[1, mine] = self._own.scales(local), self._own.means(local)
        both = self.job.allreduce(both, "sum")
        return both[0], both[1]

    def _usable(self, ids: Integers) -> NDArray[np.bool_]:
        """Which of `ids` are not empty (or constant, with an intercept)."""
        used = np.zeros(len(ids))
        mine = self._mine(ids)
        used[mine] = self._own.square[ids[mine] - self._own.held.first] > 0.0
        return np.asarray(self.job.allreduce(used, "max") > 0.0)

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

    def _mine(self, ids: Integers) -> NDArray[np.bool_]:
        first = self._own.held.first
        return (ids >= first) & (ids < first + self._own.held.count)
