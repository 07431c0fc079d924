"""Rows of a parameter shard: find, add, mark and check them in single passes over memory.

Owns the loops that touch every row of a message. Knows arrays only: no tables, no messages.
`base` is the shard's first id, so that row `ids[i] - base` of the shard is meant. Invariant:
whatever the ids are, nothing outside of the arrays is read or written: ids come in messages, and
memory that was damaged or given out too early must end in IndexError and not in another table's
rows. (Rows before the one at fault may have changed by then.) All kernels release the interpreter
lock.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

Rows: TypeAlias = NDArray[Any]
Ids: TypeAlias = NDArray[np.int64]


@njit(cache=True, nogil=True, inline="always")
def place_of(row_id: int, base: int, rows: int) -> int:
    """Where a row is among the `rows` from `base` on. Raises IndexError if it is not there."""
    row = row_id - base
    if row < 0 or row >= rows:
        raise IndexError("a message names a row that is not in this shard")
    return row


@njit(cache=True, nogil=True, inline="always")
def check_rows(ids: Ids, rows: Rows, width: int) -> None:
    """Raise IndexError unless there is a row of so many numbers for each id."""
    if rows.shape[0] < ids.shape[0] or rows.shape[1] < width:
        raise IndexError("a message has fewer rows than ids, or rows that are too short")


@njit(cache=True, nogil=True)
def scatter_add(values: Rows, base: int, ids: Ids, deltas: Rows) -> None:
    """values[ids - base] += deltas, one after the other: ids may repeat. Shapes (n, w), (m, w)."""
    check_rows(ids, deltas, values.shape[1])
    for i in range(ids.shape[0]):
        row = place_of(ids[i], base, values.shape[0])
        for k in range(values.shape[1]):
            values[row, k] += deltas[i, k]


@njit(cache=True, nogil=True)
def scatter(values: Rows, base: int, ids: Ids, rows: Rows) -> None:
    """values[ids - base] = rows. Shapes (n, w) and (m, w)."""
    check_rows(ids, rows, values.shape[1])
    for i in range(ids.shape[0]):
        row = place_of(ids[i], base, values.shape[0])
        for k in range(values.shape[1]):
            values[row, k] = rows[i, k]


@njit(cache=True, nogil=True)
def mark_new(flags: NDArray[np.uint8], base: int, ids: Ids, new: Ids) -> int:
    """Flag the rows of `ids`; write those that were not flagged before into `new`; their number."""
    count = 0
    for i in range(ids.shape[0]):
        row = place_of(ids[i], base, flags.shape[0])
        if flags[row] == 0:
            flags[row] = 1
            new[count] = ids[i]
            count += 1
    return count


@njit(cache=True, nogil=True)
def unmark(flags: NDArray[np.uint8], base: int, ids: Ids) -> None:
    """Take the flags of rows away."""
    for i in range(ids.shape[0]):
        flags[place_of(ids[i], base, flags.shape[0])] = 0


@njit(cache=True, nogil=True)
def sum_by_row(slots: NDArray[np.int64], base: int, ids: Ids, deltas: Rows, sums: Rows) -> None:
    """sums[slots[ids - base]] += deltas, where `slots` gives each row of the shard its place."""
    check_rows(ids, deltas, sums.shape[1])
    for i in range(ids.shape[0]):
        place = place_of(slots[place_of(ids[i], base, slots.shape[0])], 0, sums.shape[0])
        for k in range(sums.shape[1]):
            sums[place, k] += deltas[i, k]


@njit(cache=True, nogil=True)
def next_clock(ledger: Ids, clock: int, n: int) -> None:
    """ledger[:, clock] += 1 and ledger[:, n] = 0, in a third of NumPy's time."""
    for worker in range(ledger.shape[0]):
        ledger[worker, clock] += 1
        ledger[worker, n] = 0


@njit(cache=True, nogil=True)
def any_outside(ids: Ids, rows: int) -> bool:
    """Whether an id is not in 0..rows-1. Looks at all of them: a loop without an exit is several
    times as fast."""
    outside = False
    for i in range(ids.shape[0]):
        outside |= (ids[i] < 0) | (ids[i] >= rows)
    return outside


@njit(cache=True, nogil=True)
def first_unsorted(ids: Ids) -> int:
    """Index of the first id that is not greater than the one before it, or -1."""
    for i in range(1, ids.shape[0]):
        if ids[i] <= ids[i - 1]:
            return i
    return -1


@njit(cache=True, nogil=True)
def cache_put(
    slots: Ids,
    owner: Ids,
    values: Rows,
    stamps: Ids,
    used: NDArray[np.uint8],
    hand: int,
    ids: Ids,
    rows: Rows,
    stamp: int,
) -> int:
    """Keep rows in a cache: slots[id] is a row's place or -1, owner[place] its id or -1.

    A full cache gives up the first place from `hand` on that was not used since the hand last
    passed (CLOCK). Returns the new hand.
    """
    check_rows(ids, rows, values.shape[1])
    for i in range(ids.shape[0]):
        place = slots[place_of(ids[i], 0, slots.shape[0])]
        if place < 0:
            while used[hand] != 0:
                used[hand] = 0
                hand = (hand + 1) % owner.shape[0]
            place = hand
            hand = (hand + 1) % owner.shape[0]
            if owner[place] >= 0:
                slots[owner[place]] = -1
            owner[place] = ids[i]
            slots[ids[i]] = place
        used[place] = 1
        stamps[place] = stamp
        for k in range(values.shape[1]):
            values[place, k] = rows[i, k]
    return hand


@njit(cache=True, nogil=True)
def cache_add(slots: Ids, values: Rows, ids: Ids, deltas: Rows) -> None:
    """Add to the rows that are in the cache."""
    check_rows(ids, deltas, values.shape[1])
    for i in range(ids.shape[0]):
        place = slots[place_of(ids[i], 0, slots.shape[0])]
        if place >= 0:
            for k in range(values.shape[1]):
                values[place, k] += deltas[i, k]
