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
    if not same:
        array = _converted(spec, ids, array)
    if reject_nonfinite and not np.isfinite(array).all():
        rows = np.unique(ids[~np.isfinite(array).all(axis=1)])
        some = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        raise Misuse(f"table {spec.name!r}: updates that are not finite, of rows {some}")
    return array


def check_options(row_cache_size: object, significance: object, buffered: bool) -> None:
    """Refuse options of the parameter server that cannot be; `buffered`: BSP. Raises Misuse."""
    rows = row_cache_size
    if rows is not None and not (isinstance(rows, int) and rows >= 0):
        raise Misuse(f"a row cache of {rows!r} rows cannot be")
    number = isinstance(significance, int | float)
    if not number or not significance >= 0 or (significance and buffered):  # type: ignore[operator]
        raise Misuse(f"significance {significance!r} goes with staleness, and is not negative")


def _converted(spec: TableSpec, ids: Ids, array: NDArray[Any]) -> NDArray[Any]:
    """Updates in the table's own dtype. Raises Misuse for whole numbers beyond its range."""
    dtype = spec.numpy_dtype
    if dtype.kind == "i" and array.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        bad = (array < limits.min) | (array > limits.max)
        if bad.any():
            row = ids[bad.any(axis=1)][0]
            number = array[bad][0]
            raise Misuse(f"table {spec.name!r}: {number} for row {row} is too large for {dtype}")
    with np.errstate(over="ignore"):  # float64 beyond float32 is infinite, which may be refused
        return array.astype(dtype)
