"""A rating matrix whose answer is known: low rank plus noise of a known size.

Pure: a seed in, the same entries out on every rank. Must not know who trains on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from diml.data.triplets import Triplets
from diml.errors import Misuse

_CHUNK = 1 << 18
_HEAD = 10.0


@dataclass(frozen=True)
class Planted:
    """What to plant: M = U V^T + noise at `entries` random cells of a rows x cols matrix.

    U and V are normal with standard deviation rank**-0.25, so that the entries of U V^T have
    variance 1. `noise` is the standard deviation of the normal noise: no model can have a
    held-out RMSE below it. Rows and columns are drawn with probability ~ (x + 10)**-skew, x being
    a random order of them (0: all alike). A cell may be drawn twice. Raises Misuse.
    """

    rows: int
    cols: int
    entries: int
    rank: int = 8
    noise: float = 0.5
    skew: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rows", "cols", "entries", "rank"):
            if getattr(self, name) < 1:
                raise Misuse(f"planted matrix: {name} = {getattr(self, name)} is not positive")
        for name in ("noise", "skew"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise Misuse(f"planted matrix: {name} = {getattr(self, name)} is not >= 0")


def planted(plan: Planted) -> Triplets:
    """Generate the entries: Triplets with shape (plan.rows, plan.cols)."""
    random = np.random.Generator(np.random.Philox(plan.seed))
    scale = plan.rank**-0.25
    u = random.standard_normal((plan.rows, plan.rank), np.float32) * np.float32(scale)
    v = random.standard_normal((plan.cols, plan.rank), np.float32) * np.float32(scale)
    rows = _draw(random, plan.rows, plan.entries, plan.skew)
    cols = _draw(random, plan.cols, plan.entries, plan.skew)
    values = random.standard_normal(plan.entries, np.float32) * np.float32(plan.noise)
    for start in range(0, plan.entries, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        values[chunk] += np.einsum("nk,nk->n", u[rows[chunk]], v[cols[chunk]])
    return Triplets(rows, cols, values, plan.rows, plan.cols)


def _draw(random: np.random.Generator, size: int, count: int, skew: float) -> npt.NDArray[np.int64]:
    """`count` ids below `size`; place x of a random order has weight (x + 10)**-skew."""
    low, high = _HEAD, _HEAD + size
    uniform = random.random(count)
    power = 1.0 - skew
    if abs(power) < 1e-9:
        place = low * (high / low) ** uniform
    else:
        place = (low**power + uniform * (high**power - low**power)) ** (1.0 / power)
    order = random.permutation(size)
    ids: npt.NDArray[np.int64] = order[np.minimum((place - low).astype(np.int64), size - 1)]
    return ids
