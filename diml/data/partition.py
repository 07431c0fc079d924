"""Who gets which rows: shares of equal entries, also where a few rows have most of them.

Pure: counts in, owners out. Must not know what the rows are for. Invariant: the same counts give
the same owners on every rank; nothing is random.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit


def balanced(counts: npt.NDArray[np.int64], parts: int) -> npt.NDArray[np.int32]:
    """Share rows among parts so that the parts have nearly equal sums of counts.

    Longest processing time first (Graham 1969): rows in order of falling count, each to the part
    that has least so far. No part has more than mean + (1 - 1/parts) * counts.max(). Among parts
    of equal load the one with fewer rows takes it, so that rows without entries are spread too.

    Args:
        counts: int64 (n,), entries of each row, >= 0.
        parts: at least 1.

    Returns:
        int32 (n,), the part of each row, 0..parts-1.
    """
    order = np.argsort(-counts, kind="stable")
    owners = np.empty(len(counts), np.int32)
    _assign(counts, order, owners, np.zeros(parts, np.int64), np.zeros(parts, np.int64))
    return owners


@njit(cache=True, nogil=True)
def _assign(
    counts: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    owners: npt.NDArray[np.int32],
    loads: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
) -> None:
    for row in order:
        least = 0
        for part in range(1, loads.shape[0]):
            if loads[part] < loads[least] or (
                loads[part] == loads[least] and rows[part] < rows[least]
            ):
                least = part
        owners[row] = least
        loads[least] += counts[row]
        rows[least] += 1
