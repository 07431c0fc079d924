"""The messages of small reads and updates as a worker's compiled code reads and writes them.

Pure. Must not know whom it asks, nor how bytes travel. Arrays that come in are C-contiguous, and
those of bytes hold at least a header.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from diml.ps.header_words import (
    CLOCK,
    CODE_BIT,
    FILTERS_BIT,
    FLAGS_BIT,
    FORMAT_BITS,
    IDS,
    KIND,
    MAGIC_AT,
    MAGIC_WORD,
    MARK,
    REQUEST,
    ROWS,
    SHARD_AND_FILTERS,
    TABLE,
    WIDTH,
    WORKER,
    N,
    long_at,
    set_long,
    words_of,
)
from diml.ps.message import HEADER_BYTES, Bytes, Flag, Ids, Kind, Rows

_VALUES = int(Kind.VALUES)
_ACK = int(Kind.ACK) | FORMAT_BITS
_LAST_UPDATE = int(Kind.UPDATE) | Flag.LAST << FLAGS_BIT | FORMAT_BITS


@njit(cache=True, nogil=True)
def write_question(frame: Bytes, ids: Ids, rows: int, clock: int, request: int) -> bool:
    """Make a GET ask for these ids, as many as it has asked for before, at another clock. False if
    one of them is not in 0..rows-1: then the GET is not to be sent."""
    its_ids = frame[HEADER_BYTES:].view(np.int64)
    outside = its_ids.shape[0] != ids.shape[0]
    for i in range(min(ids.shape[0], its_ids.shape[0])):
        outside |= (ids[i] < 0) | (ids[i] >= rows)
        its_ids[i] = ids[i]
    words = words_of(frame)
    set_long(words, CLOCK, clock)
    words[REQUEST] = np.uint32(request)
    return not outside


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
def is_plain_ack(data: Bytes) -> bool:
    """Whether a message is an ACK. Nobody has to look at one that comes before an answer, which
    acknowledges as much."""
    if data.shape[0] != HEADER_BYTES:
        return False
    words = words_of(data)
    plain = words[SHARD_AND_FILTERS] >> FILTERS_BIT == 0
    return bool(words[MAGIC_AT] == MAGIC_WORD and words[KIND] == _ACK and plain)


@njit(cache=True, nogil=True)
def write_update(
    frame: Bytes, ids: Ids, values: Rows, rows: int, worker: int, table: int, code: int
) -> bool:
    """Write an update, (m,) and (m, cols), that ends its clock into its frame, all but for the
    clock (`stamp_update`); False if an id is not in 0..rows-1."""
    count, width = values.shape
    start = HEADER_BYTES + 8 * count
    its_ids = frame[HEADER_BYTES:start].view(np.int64)
    # By two indices; by one the loop takes three times as long.
    its_values = frame[start:].view(values.dtype).reshape(count, width)
    outside = False
    for i in range(count):
        outside |= (ids[i] < 0) | (ids[i] >= rows)
        its_ids[i] = ids[i]
    for i in range(count):
        for k in range(width):
            its_values[i, k] = values[i, k]
    words = words_of(frame)
    words[:] = 0
    words[MAGIC_AT] = MAGIC_WORD
    words[KIND] = _LAST_UPDATE | code << CODE_BIT
    words[WORKER] = np.uint32(worker)
    set_long(words, IDS, count)
    set_long(words, ROWS, count)
    words[WIDTH], words[TABLE] = width, np.uint32(table)
    return not outside


@njit(cache=True, nogil=True)
def stamp_update(frame: Bytes, clock: int, mark: int, n: int) -> None:
    """Write into an update when it was made."""
    words = words_of(frame)
    set_long(words, CLOCK, clock)
    set_long(words, MARK, mark)
    words[N] = np.uint32(n)
