"""Pick out the columns that matter from a vector of correlations, in one pass."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(cache=True, nogil=True)
def above(values: NDArray[np.float64], threshold: float) -> tuple[NDArray[np.int64], float]:
    """(places with |value| > threshold in rising order, max |value|; NaN if any value is NaN)."""
    count = 0
    top = 0.0
    broken = False
    for value in values:
        size = abs(value)
        if size > threshold:
            count += 1
        if size > top:
            top = size
        broken |= np.isnan(value)
    places = np.empty(count, np.int64)
    at = 0
    for j in range(len(values)):
        if abs(values[j]) > threshold:
            places[at] = j
            at += 1
    return places, np.nan if broken else top


@numba.njit(cache=True, nogil=True)
def unsure(
    values: NDArray[np.float64],
    seen: NDArray[np.float64],
    square: NDArray[np.float64],
    drift: float,
    threshold: float,
) -> NDArray[np.int64]:
    """Columns whose correlation may exceed `threshold` by now, in rising order.

    values[j] = x_jᵀr was right when the residual had moved by seen[j] in total; since then it has
    moved by at most drift − seen[j], so |x_jᵀr| ≤ |values[j]| + ‖x_j‖(drift − seen[j]). A column
    computed at the present residual is sure.
    """
    count = 0
    places = np.empty(len(values), np.int64)
    for j in range(len(values)):
        moved = drift - seen[j]
        if moved > 0.0 and not abs(values[j]) + np.sqrt(square[j]) * moved < threshold:
            places[count] = j
            count += 1
    return places[:count].copy()
