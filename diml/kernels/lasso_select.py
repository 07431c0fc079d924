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
