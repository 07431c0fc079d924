"""The messages of small reads and updates as a worker's compiled code reads and writes them.

Pure. Must not know whom it asks, nor how bytes travel. Arrays of bytes that come in are
C-contiguous and hold at least a header.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from diml.ps.header_words import (
    CLOCK,
    CODE_BIT,
    FILTERS_BIT,
    FORMAT_BITS,
    KIND,
    MAGIC_AT,
    MAGIC_WORD,
    MARK,
    REQUEST,
    ROWS,
    SHARD_AND_FILTERS,
    WIDTH,
    N,
    long_at,
    set_long,
    words_of,
)
from diml.ps.message import Bytes, Ids, Kind, Rows

_VALUES = int(Kind.VALUES)


@njit(cache=True, nogil=True)
def ask_again(frame: Bytes, known: Ids, ids: Ids, clock: int, request: int) -> bool:
    """Make a GET that was sent before ask for the same ids at another clock; False, and nothing
    is done, if `ids` are others than those in it, `known`."""
    if known.shape[0] != ids.shape[0]:
        return False
    apart = 0
    for i in range(ids.shape[0]):
        apart |= known[i] ^ ids[i]
    if apart != 0:
        return False
    words = words_of(frame)
    set_long(words, CLOCK, clock)
    words[REQUEST] = np.uint32(request)
    return True


@njit(cache=True, nogil=True)
def read_answer(
    data: Bytes, request: int, code: int, rows: int, width: int, clock: int, n: int
) -> tuple[int, int, int]:
    """Clock of the slowest worker, mark and n of a VALUES that answers this question with so many
    rows and knows of nothing from (clock, n) on; (-1, 0, 0) for any other message."""
    words = words_of(data)
    kind = words[KIND]
    expected = _VALUES | code << CODE_BIT | FORMAT_BITS
    mark, its_n = long_at(words, MARK), int(words[N])
    if (
        words[MAGIC_AT] != MAGIC_WORD
        or kind != expected
        or words[REQUEST] != request
        or words[SHARD_AND_FILTERS] >> FILTERS_BIT
        or long_at(words, ROWS) != rows
        or words[WIDTH] != width
        or mark > clock
        or (mark == clock and its_n > n)
    ):
        return -1, 0, 0
    return long_at(words, CLOCK), mark, its_n


@njit(cache=True, nogil=True)
def copy_update(ids: Ids, values: Rows, rows: int, its_ids: Ids, its_values: Rows) -> bool:
    """Copy an update, (m,) and (m, cols), into its frame; False if an id is not in 0..rows-1."""
    outside = False
    for i in range(ids.shape[0]):
        outside |= (ids[i] < 0) | (ids[i] >= rows)
        its_ids[i] = ids[i]
    for i in range(values.shape[0]):
        for k in range(values.shape[1]):
            its_values[i, k] = values[i, k]
    return not outside
