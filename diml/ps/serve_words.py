"""The messages of small reads and updates as a server's compiled code reads and writes them.

Pure. Must not know whom it answers, nor how bytes travel. Arrays of bytes that come in are
C-contiguous.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from diml.ps.header_words import (
    CLOCK,
    CODE_BIT,
    FILTERS_BIT,
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
from diml.ps.message import HEADER_BYTES, Bytes, Ids, Kind, Rows

_GET, _VALUES = int(Kind.GET), int(Kind.VALUES)


@njit(cache=True, nogil=True)
def table_asked(data: Bytes) -> int:
    """The table of a GET, or -1 if it is any other message, or asks for more than rows."""
    if data.shape[0] < HEADER_BYTES:
        return -1
    words = words_of(data)
    if (
        words[MAGIC_AT] != MAGIC_WORD
        or words[KIND] != _GET | FORMAT_BITS
        or words[SHARD_AND_FILTERS] >> FILTERS_BIT
        or long_at(words, ROWS) != 0
        or words[WIDTH] != 0
        or data.shape[0] != HEADER_BYTES + 8 * long_at(words, IDS)
        or long_at(words, IDS) == 0
    ):
        return -1
    return int(words[TABLE])


@njit(cache=True, nogil=True)
def answer_read(
    data: Bytes, ledger: Ids, lag_clocks: int, values: Rows, low: int, code: int, out: Bytes
) -> int:
    """Write the answer to a GET of rows (see `table_asked`) into `out`, (header + rows,); returns
    the worker that asked.

    `values` are the table's rows from `low` on, `code` is that of their dtype. Columns 0 and 1 of
    the ledger are each worker's clock and n. Returns -1, and nothing is to be sent, if the GET is
    more than `lag_clocks` ahead of the slowest worker, or names what is not there.
    """
    asked, words = words_of(data), words_of(out)
    ids = data[HEADER_BYTES:].view(np.int64)
    worker, closed = np.int64(asked[WORKER]), ledger[:, 0].min()
    if worker >= ledger.shape[0] or closed < long_at(asked, CLOCK) - lag_clocks:
        return -1
    width = values.shape[1]
    # By two indices; by one the loop takes three times as long.
    rows = out[HEADER_BYTES:].view(values.dtype).reshape(ids.shape[0], width)
    for i in range(ids.shape[0]):
        row = ids[i] - low
        if row < 0 or row >= values.shape[0]:
            return -1
        for k in range(width):
            rows[i, k] = values[row, k]
    words[:] = 0
    words[MAGIC_AT] = MAGIC_WORD
    words[KIND] = _VALUES | code << CODE_BIT | FORMAT_BITS
    words[WORKER] = worker
    set_long(words, CLOCK, closed)
    set_long(words, MARK, ledger[worker, 0])
    set_long(words, ROWS, ids.shape[0])
    words[N], words[WIDTH] = ledger[worker, 1], width
    words[REQUEST] = asked[REQUEST]
    return int(worker)
