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


def cut(ends: npt.NDArray[np.int64], parts: int) -> npt.NDArray[np.int64]:
    """Cut neighbouring groups into parts with nearly equal sums, none of them without a group.

    Args:
        ends: int64 (groups + 1,), the sums of the groups before each one; `ends[-1]` is all.
        parts: at most as many as groups.

    Returns:
        int64 (parts + 1,): part p has the groups from the p-th of these numbers up to the next.
    """
    groups = len(ends) - 1
    assert 1 <= parts <= groups
    wanted = ends[-1] * np.arange(parts + 1) / parts
    cuts: npt.NDArray[np.int64] = np.searchsorted(ends, wanted).clip(1, groups)
    cuts -= wanted - ends[cuts - 1] < ends[cuts] - wanted
    cuts[0], cuts[-1] = 0, groups
    for part in range(1, parts):
        cuts[part] = np.clip(cuts[part], cuts[part - 1] + 1, groups - parts + part)
    return cuts


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
