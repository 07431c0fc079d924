"""The model of matrix factorization on one worker: its rows of L, the steps, the sums.

Owns what happens between a `get` and an `inc`. Must not know the parameter server: columns come
in as arrays and are changed in place. The arithmetic itself is `diml.kernels.mf`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from diml.data.memory import aligned
from diml.jobs.mf_data import Block, Share
from diml.jobs.mf_team import Team
from diml.kernels import mf as kernels
from diml.ps.tables import TableSpec, first_values

Floats = npt.NDArray[np.float32]
UPDATES = ("petuum", "nnz", "adagrad")
INITS = ("scaled", "petuum")
_ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Rule:
    """How the model learns.

    Attributes:
        k: the rank, columns of L and R.
        update: petuum, nnz or adagrad (see `diml.kernels.mf`).
        decay: lambda.
        init_step_size, step_size_offset, step_size_pow: eta of iteration t (from 0) is
            init (offset + t)^(-pow); adagrad, which lowers its steps itself, has eta = init.
        biased: learn a bias of each row and column on top of the mean.
        init: "scaled": L is U[0, 1) / sqrt(k), R is 0; "petuum": both are U[-1, 1).
        seed: of the start values of L, which depend on it and on the row only.
    """

    k: int
    update: str = "petuum"
    decay: float = 0.0
    init_step_size: float = 0.5
    step_size_offset: float = 100.0
    step_size_pow: float = 0.5
    biased: bool = False
    init: str = "scaled"
    seed: int = 0

    def eta(self, iteration: int) -> float:
        """Step size of an iteration, counted from 0."""
        if self.update == "adagrad":
            return self.init_step_size
        offset = self.step_size_offset + iteration
        return float(self.init_step_size * offset**-self.step_size_pow)

    @property
    def left_start(self) -> tuple[str | float, ...]:
        """Distribution of the start values of L."""
        if self.init == "petuum":
            return ("uniform", -1.0, 1.0)
        return ("uniform", 0.0, self.k**-0.5)

    @property
    def right_start(self) -> tuple[str | float, ...]:
        """Distribution of the start values of R.

        Zero under "scaled": directions that the data do not need then die out exponentially,
        held by L alone, where two factors of one size would shrink them as 1 / t only.
        """
        return ("uniform", -1.0, 1.0) if self.init == "petuum" else ("zeros",)

    @property
    def side_cols(self) -> int:
        """Numbers that a column has besides its row of R: its bias, its accumulator."""
        return int(self.biased) + int(self.update == "adagrad")


class Columns(NamedTuple):
    """The columns of a block: right float32 (m, k), side float32 (m, side_cols)."""

    right: npt.NDArray[np.float32]
    side: npt.NDArray[np.float32]


class Sums(NamedTuple):
    """What an evaluation adds up over blocks and workers, float64.

    squares: of the training errors; held_out: of the test errors; penalty: what lambda multiplies
    in the objective, so that squares + lambda * penalty is what the update rule descends.
    """

    squares: float = 0.0
    held_out: float = 0.0
    penalty: float = 0.0

    def plus(self, other: Sums) -> Sums:
        """The sums of both."""
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


class Model:
    """One worker's rows: left float32 (own rows, k), row_bias and row_sum float32 (own rows,).

    Where own rows are cut into groups (`Share.row_groups`) it has those of one group at a time.
    `halvings` is how often the step was halved because it was too large.
    """

    def __init__(
        self, rule: Rule, share: Share, mean: float, n_rows: int, threads: int = 1
    ) -> None:
        """Start values. `mean` is that of all training values; `threads` compute together."""
        self.rule, self.share = rule, share
        self._mean = np.float32(mean)
        self._team = Team(threads)
        self.halvings = 0
        self._start = TableSpec("L", n_rows, rule.k, init=rule.left_start, seed=rule.seed)
        self._held = slice(0, 0)
        self.left = np.empty((0, rule.k), np.float32)
        self.row_bias, self.row_sum = np.empty(0, np.float32), np.empty(0, np.float32)
        if share.row_groups == 1:
            self.begin()

    def begin(self) -> None:
        """Give all own rows their start values."""
        count = len(self.share.row_ids)
        left = aligned(_rows_of(self._start, self.share.row_ids))
        self.hold(slice(0, count), left, np.zeros((count, self.rule.side_cols), np.float32))

    def hold(self, rows: slice, left: Floats, side: Floats) -> None:
        """Go on with these own rows: left (n, k), changed in place; side (n, side_cols), copied.

        Rows without training entries become 0.
        """
        self._held, self.left = rows, left
        left[self._entries == 0] = 0
        bias, total = self._unpacked(side)
        zeros = np.zeros(len(left), np.float32)
        self.row_bias = bias.copy() if self.rule.biased else zeros
        self.row_sum = total.copy() if self.rule.update == "adagrad" else zeros.copy()

    @property
    def row_side(self) -> Floats:
        """What stands beside the rows at hand, float32 (n, side_cols)."""
        there = [self.row_bias] * self.rule.biased + [self.row_sum] * (
            self.rule.update == "adagrad"
        )
        return np.stack(there, axis=1) if there else np.empty((len(self.left), 0), np.float32)

    @property
    def _entries(self) -> npt.NDArray[np.int64]:
        """Training entries of the rows at hand."""
        return self.share.row_entries[self._held]

    def state(self) -> dict[str, Any]:
        """What a replacement of this worker needs."""
        rows = {"left": self.left, "row_bias": self.row_bias, "row_sum": self.row_sum}
        return {**rows, "halvings": self.halvings}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.left = aligned(state["left"])
        self.row_bias = np.array(state["row_bias"], np.float32)
        self.row_sum = np.array(state["row_sum"], np.float32)
        self.halvings = state["halvings"]

    def descend(self, block: Block, columns: Columns, iteration: int) -> None:
        """One pass over the block's training entries: changes own rows and `columns` in place."""
        rule = self.rule
        bias, total = self._unpacked(columns.side)
        factors = (self.left, columns.right, self.row_bias, bias)
        model: tuple[Any, ...] = (*factors, rule.biased, self._mean)
        decay = np.float32(rule.decay)
        kernel: Any
        last: tuple[Any, ...]
        if rule.update == "petuum":
            kernel, last = kernels.sgd_petuum, (decay,)
        elif rule.update == "nnz":
            entries = self.share.all_col_entries[block.cols].clip(1).astype(np.float32)
            row_decay = (rule.decay / self._entries.clip(1)).astype(np.float32)
            kernel, last = kernels.sgd_nnz, (row_decay, decay / entries)
        else:
            kernel, last = kernels.sgd_adagrad, (decay, self.row_sum, total)
        eta2 = np.float32(2 * rule.eta(iteration) * 0.5**self.halvings)
        self._team.work(kernel, block.pieces(), *model, eta2, *last)
        if rule.biased:
            columns.side[:, 0] = bias
        if rule.update == "adagrad":
            columns.side[:, -1] = total

    def sums(self, block: Block, columns: Columns) -> Sums:
        """The block's part of the sums; without what own rows add to the penalty."""
        bias, _ = self._unpacked(columns.side)
        biased = self.rule.biased
        factors = (self.left, columns.right, self.row_bias, bias)
        model: tuple[Any, ...] = (*factors, biased, self._mean)
        held_out = kernels.squared_error(*block.test, *model)
        cold = block.cold.values - self._mean
        if biased:
            cold = cold - self.row_bias[block.cold.rows] - bias[block.cold.cols]
        weights = block.col_entries.astype(np.float64)
        if self.rule.update == "nnz":
            weights /= self.share.all_col_entries[block.cols].clip(1)
        penalty = kernels.weighted_square(columns.right, weights)
        if biased:
            penalty += float(weights @ bias.astype(np.float64) ** 2)
        return Sums(
            sum(self._team.work(kernels.squared_error, block.pieces(), *model)),
            held_out + float(np.sum(np.square(cold, dtype=np.float64))),
            penalty,
        )

    def row_penalty(self) -> float:
        """What the rows at hand add to the penalty."""
        entries = self._entries
        weight = (entries > 0 if self.rule.update == "nnz" else entries).astype(np.float64)
        penalty: float = kernels.weighted_square(self.left, weight)
        if self.rule.biased:
            penalty += float(weight @ self.row_bias.astype(np.float64) ** 2)
        return penalty

    def _unpacked(self, side: Floats) -> tuple[Floats, Floats]:
        """Bias and accumulator of each column, contiguous; empty where the rule has none."""
        none = np.empty(0, np.float32)
        bias = np.ascontiguousarray(side[:, 0]) if self.rule.biased else none
        total = np.ascontiguousarray(side[:, -1]) if self.rule.update == "adagrad" else none
        return bias, total


def meeting(
    target: npt.NDArray[np.int32], source: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Places in `target` and in `source` that hold the same id; ids are unique in each."""
    _, to, of = np.intersect1d(target, source, assume_unique=True, return_indices=True)
    return to, of


def start_of_right(rule: Rule, cols: npt.NDArray[np.int64], n_cols: int) -> npt.NDArray[np.float32]:
    """Start values of these rows of R, then what stands beside them: float32, flat."""
    flat = np.zeros(len(cols) * (rule.k + rule.side_cols), np.float32)
    spec = TableSpec("R", n_cols, rule.k, init=rule.right_start, seed=rule.seed)
    flat[: len(cols) * rule.k] = _rows_of(spec, cols).reshape(-1)
    return flat


def _rows_of(spec: TableSpec, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """First values of these rows (rising ids), made range by range so that few are held at once."""
    made = np.empty((len(ids), spec.cols), np.float32)
    for low in range(0, spec.rows, _ROWS_AT_ONCE):
        high = min(low + _ROWS_AT_ONCE, spec.rows)
        first, last = np.searchsorted(ids, (low, high))
        if first < last:
            made[first:last] = first_values(spec, low, high)[ids[first:last] - low]
    return made
