"""What a caller may give: ids, keys and updates, checked before anything is sent.

Owns the words of a refusal: each names the table and the rows at fault. Pure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diml.errors import Misuse
from diml.kernels.rows import any_outside
from diml.ps.message import Ids
from diml.ps.tables import TableSpec


def checked_ids(spec: TableSpec, ids: ArrayLike) -> Ids:
    """Row numbers as a contiguous int64 array (m,). Raises Misuse."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise Misuse(
            f"table {spec.name!r}: ids are {array.dtype} of shape {array.shape}, "
            "not a list of whole numbers"
        )
    checked = np.ascontiguousarray(array, np.int64)
    if any_outside(checked, spec.rows):
        bad = array[(checked < 0) | (checked >= spec.rows)][0]
        raise Misuse(f"table {spec.name!r} has rows 0..{spec.rows - 1}, not {bad}")
    if len(checked) > spec.ids_max:
        raise Misuse(f"table {spec.name!r}: {len(checked)} rows are too many for one call")
    return checked


def checked_updates(
    spec: TableSpec, ids: Ids, updates: ArrayLike, reject_nonfinite: bool
) -> NDArray[Any]:
    """Updates of checked ids as an array (len(ids), cols) for the table. Raises Misuse."""
    array = np.asarray(updates)
    if array.shape not in ((len(ids), spec.cols), (len(ids), spec.width)):
        raise Misuse(
            f"table {spec.name!r}: updates have shape {array.shape}, "
            f"not {(len(ids), spec.cols)} for {len(ids)} rows of {spec.cols}"
        )
    same = array.dtype == spec.numpy_dtype
    if not same and not np.can_cast(array.dtype, spec.numpy_dtype, "same_kind"):
        raise Misuse(f"table {spec.name!r}: {array.dtype} updates for rows of {spec.dtype}")
    if reject_nonfinite and not np.isfinite(array).all():
        rows = np.unique(ids[~np.isfinite(array).all(axis=1)])
        some = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        raise Misuse(f"table {spec.name!r}: updates that are not finite, of rows {some}")
    return array
