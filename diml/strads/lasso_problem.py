"""The Lasso as all policies see it: data of this worker, response, λ, optimality, results.

Minimises ½n⁻¹‖y − Xβ − b‖² + λ‖β‖₁ over a sequence of λ. Each worker holds a range of columns and
all of y and of the residual r. Columns are used as x̃_j = (x_j − m_j)/s_j, with m_j = 0 without an
intercept and s_j = 1 without standardisation; internally Λ = nλ and c_j = x̃_jᵀr.

Owns certificates: gap and KKT violation come from r and c computed from the data in float64, with
the dual point s·r/n, s = min(1, Λ/‖c‖∞). Must not know which variables are picked, nor how.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.errors import Misuse
from diml.strads.columns import Columns, SparseColumns

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

LARGEST = float(np.finfo(np.float64).max)
TOO_SMALL = "the squares of its values are 0 in float64; multiply it by a power of ten"
_FAINT = 1e-150  # numbers below it have squares of few digits or none


@dataclass(frozen=True, slots=True)
class Grid:
    """Which λ to solve for: `lambdas` as given, or ratios of λmax (the smallest λ that gives 0).

    Exactly one of them is set; both are used in falling order. With `path`, that many values from
    λmax to the smallest of `lambdas` (just that one where it is above λmax).
    """

    lambdas: tuple[float, ...] = ()
    ratios: tuple[float, ...] = ()
    path: int = 0

    def resolve(self, lambda_max: float) -> Floats:
        values = self.lambdas or tuple(ratio * lambda_max for ratio in self.ratios)
        if self.path and min(values) < lambda_max:
            values = tuple(np.geomspace(lambda_max, min(values), self.path).tolist())
        return np.sort(np.array(values, np.float64))[::-1].copy()


@dataclass(frozen=True, slots=True)
class Stop:
    """When to stop.

    Attributes:
        tol: gap ≤ tol·‖y‖²/n, y centred if there is an intercept.
        rounds_max: rounds for each λ.
        seconds_max: for the whole run; None for no limit.

    Raises:
        Misuse: `tol` is negative or not finite, or there would be no round.
    """

    tol: float = 1e-6
    rounds_max: int = 1_000_000
    seconds_max: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tol) and self.tol >= 0.0):
            raise Misuse(f"tol must be a finite number from 0 on, not {self.tol:g}")
        if self.rounds_max < 1:
            raise Misuse(f"max_iter must be 1 or more, not {self.rounds_max}")


@dataclass(frozen=True, slots=True)
class Solution:
    """The answer at one λ.

    Attributes:
        lam: λ. gap: duality gap. kkt: worst violation of the optimality conditions.
        objective: primal value. ids, values: non-zero coefficients on the scale of X.
        intercept: b. converged: whether the gap reached the tolerance. rounds: rounds spent.
    """

    lam: float
    gap: float
    kkt: float
    objective: float
    ids: Integers
    values: Floats
    intercept: float
    converged: bool
    rounds: int

    def dense(self, count: int) -> Floats:
        coef = np.zeros(count)
        coef[self.ids] = self.values
        return coef

    def pack(self) -> list[Any]:
        return [getattr(self, name) for name in self.__slots__]


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
    solved: int = 0  # values of λ


@dataclass(frozen=True, slots=True)
class Certificate:
    """Unscaled by n: gap = P − D and P for ½‖r‖² + Λ‖β‖₁."""

    gap: float
    primal: float


def certify(half: float, r_y: float, bound: float, top: float, l1: float) -> Certificate:
    """Gap and objective from half = ½‖r‖², r_y = rᵀy, Λ = bound, top = ‖c‖∞ and l1 = ‖β‖₁."""
    s = 1.0 if top <= bound else bound / top
    primal = half + bound * l1
    return Certificate(primal - (s * r_y - s * s * half), primal)


def centre(r: Floats) -> None:
    """Take the mean away, twice: what rounding leaves of a large mean is not small."""
    r -= r.mean()
    r -= r.mean()


def mean_of(y: Floats) -> float:
    """The mean, with what rounding left of it: a constant y minus its mean is 0."""
    mean = float(y.mean())
    return mean + float((y - mean).mean())


class Standard:
    """This worker's columns together with the means and scales that make them x̃.

    Attributes:
        held: the columns. mean: (p_own,) or empty. scale: (p_own,) or empty.
        square: (p_own,) ‖x̃_j‖²; 0 for columns that are empty or constant, which are never used.
        first: (p_own,) X̃ᵀy, found in the same pass over the data.
        faint: whether no column can be used, though not all is zero: the squares are.
    """

    def __init__(self, held: Columns, y: Floats, intercept: bool, standardise: bool) -> None:
        self.held = held
        with np.errstate(over="ignore", invalid="ignore"):
            square = y @ y
            if not np.isfinite(square):
                raise Misuse("y contains NaN or infinity, or values whose squares are infinite")
        if square < np.finfo(np.float64).tiny and y.any():
            raise Misuse(f"y is too small: {TOO_SMALL}")
        self.mean, self.square, self.first = held.moments(intercept, y)
        if not np.isfinite(self.square).all():
            raise Misuse("X contains NaN or infinity, or values whose squares are infinite")
        floor = np.zeros(held.count)
        if intercept:
            # What rounding leaves of a constant column.
            floor = held.rows * (16.0 * np.finfo(np.float64).eps * self.mean) ** 2
        void = self.square <= floor
        self.void = np.flatnonzero(void)
        self.square[void] = 0.0
        self.faint = bool(void.all()) and 0.0 < held.largest() < _FAINT
        self.scale = np.empty(0)
        if standardise:
            self.scale = np.sqrt(self.square / held.rows)
            self.scale[void] = 1.0
            self.square /= self.scale**2
        self._standardised(y, self.first)

    def correlate(self, r: Floats, out: Floats) -> None:
        """out = X̃ᵀr; r is centred where there is an intercept."""
        self.held.correlate(r, out)
        self._standardised(r, out)

    def _standardised(self, r: Floats, out: Floats) -> None:
        """Turn Xᵀr into X̃ᵀr."""
        if len(self.mean):
            # r is centred to rounding only, which columns far from zero would magnify.
            out -= self.mean * r.sum()
        if len(self.scale):
            out /= self.scale
        if len(self.void):
            out[self.void] = 0.0

    def correlate_some(self, local: Integers, r: Floats) -> Floats:
        """x̃_jᵀr of some columns, with the bits that `correlate` gives."""
        out = np.empty(len(local))
        self.held.correlate_some(local, r, out)
        if len(self.mean):
            out -= self.mean[local] * r.sum()
        if len(self.scale):
            out /= self.scale[local]
        out[self.square[local] == 0.0] = 0.0
        return out

    def scales(self, local: Integers) -> Floats:
        return self.scale[local] if len(self.scale) else np.ones(len(local))

    def means(self, local: Integers) -> Floats:
        return self.mean[local] if len(self.mean) else np.zeros(len(local))


def check_shapes(held: Columns, y: Floats) -> None:
    """Refuse data that no Lasso can be fitted to.

    Raises:
        Misuse: n ≠ len(y), no rows, or no columns.
    """
    if held.rows != len(y):
        raise Misuse(f"X has {held.rows} rows but y has {len(y)} values")
    if held.rows == 0 or held.total == 0:
        raise Misuse(f"X is empty: {held.rows} rows, {held.total} columns")


def check_grid(grid: Grid) -> None:
    """Raises Misuse for a λ or a ratio that is not a positive finite number."""
    for value in (*grid.lambdas, *grid.ratios):
        if not (math.isfinite(value) and value > 0.0):
            raise Misuse(f"lambda must be a positive number, not {value:g}")


def is_sparse(held: Columns) -> bool:
    return isinstance(held, SparseColumns)
