"""A tape: messages from one process to another of its host, in order, in memory that both see.

Owns the place of each record, and the two counts that say what is written and what is read. Must
not know what records say. Invariants: a record is whole before it counts as written, so that it is
its reader's from then on, whatever becomes of its writer; nothing is written over before it counts
as read. Each count has one writer. Records begin at multiples of 8 and are in one piece.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from diml.ps.message import Bytes, Ids

# Room for some 150 updates of a hundred rows, of more time than a standby sleeps between two looks.
TAPE_BYTES = 1 << 21
# Words of 64 bits: the counts, of bytes since the beginning, in lines of their own.
_WRITTEN, _READ = 0, 8
_RING = 128
# Before a record: its length, or that the next one is at the beginning again.
_LENGTH_BYTES, _BEGIN_AGAIN = 8, -1


def _fence_code(_typing: Any) -> Any:
    def code(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.fence("acq_rel")
        return context.get_dummy_value()

    return types.void(), code


# What stands before it happens before what stands after it, also as others see it.
_fence: Any = intrinsic(_fence_code)


@njit(cache=True, nogil=True)
def _counts(tape: Bytes) -> Ids:
    return tape[:_RING].view(np.int64)


@njit(cache=True, nogil=True)
def _copy(data: Bytes, out: Bytes) -> None:
    """As `out[:] = data`, by words: several times as fast."""
    whole = data.shape[0] & -8
    words, out_words = data[:whole].view(np.int64), out[:whole].view(np.int64)
    for i in range(words.shape[0]):
        out_words[i] = words[i]
    for i in range(whole, data.shape[0]):
        out[i] = data[i]


@njit(cache=True, nogil=True)
def append(tape: Bytes, data: Bytes) -> bool:
    """Write a record; False, and nothing is written, where there is no room for it."""
    counts, ring = _counts(tape), tape[_RING:]
    room, length = ring.shape[0], data.shape[0]
    written, size = counts[_WRITTEN], _LENGTH_BYTES + (length + 7 & -8)
    at = written % room
    skipped = room - at if size > room - at else 0
    if written + skipped + size - counts[_READ] > room:
        return False
    _fence()
    if skipped:
        ring[at : at + _LENGTH_BYTES].view(np.int64)[0] = _BEGIN_AGAIN
        at = 0
    start = at + _LENGTH_BYTES
    ring[at:start].view(np.int64)[0] = length
    _copy(data, ring[start : start + length])
    _fence()
    counts[_WRITTEN] = written + skipped + size
    return True


@njit(cache=True, nogil=True)
def first(tape: Bytes) -> Bytes:
    """The first record that is not read, of those that there are."""
    counts, ring = _counts(tape), tape[_RING:]
    at = counts[_READ] % ring.shape[0]
    length = ring[at : at + _LENGTH_BYTES].view(np.int64)[0]
    if length == _BEGIN_AGAIN:
        counts[_READ] += ring.shape[0] - at
        at, length = 0, ring[:_LENGTH_BYTES].view(np.int64)[0]
    start = at + _LENGTH_BYTES
    return ring[start : start + length]


@njit(cache=True, nogil=True)
def drop_first(tape: Bytes, length: int) -> None:
    """Count the first record, of so many bytes, as read."""
    _fence()
    _counts(tape)[_READ] += _LENGTH_BYTES + (length + 7 & -8)


@njit(cache=True, nogil=True)
def written(tape: Bytes) -> int:
    """How far it is written."""
    count = _counts(tape)[_WRITTEN]
    _fence()
    return int(count)


@njit(cache=True, nogil=True)
def read(tape: Bytes) -> int:
    """How far it is read."""
    return int(_counts(tape)[_READ])


def clear(tape: Bytes) -> None:
    """Make memory a tape on which nothing is written yet."""
    tape[:_RING] = 0
