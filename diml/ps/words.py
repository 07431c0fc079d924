"""The messages of small reads and updates as compiled code reads and writes them.

Owns the place of each field of the header (`diml.ps.message`) in words of 32 bits; a test holds
the two against one another. Pure. Must not know who asks whom, nor how bytes travel. Arrays of
bytes that come in are C-contiguous and hold at least a header.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from diml.ps.message import FORMAT, HEADER_BYTES, MAGIC, Bytes, Ids, Kind, Rows

_HEADER_WORDS = 16
# Fields of 64 bits take two words.
_MAGIC, _KIND, _WORKER, _CLOCK, _MARK, _IDS, _ROWS, _N = 0, 1, 2, 3, 5, 7, 9, 11
_WIDTH, _TABLE, _SHARD_AND_FILTERS, _REQUEST = 12, 13, 14, 15
_MAGIC_WORD = int.from_bytes(MAGIC, "little")
_GET, _VALUES = int(Kind.GET), int(Kind.VALUES)
_LAST_BYTE = 24

Words = NDArray[np.uint32]


@njit(cache=True, nogil=True, inline="always")
def _long(words: Words, at: int) -> int:
    return int(np.int64(np.uint64(words[at]) | np.uint64(words[at + 1]) << np.uint64(32)))


@njit(cache=True, nogil=True, inline="always")
def _set_long(words: Words, at: int, value: int) -> None:
    words[at] = np.uint32(value & 0xFFFFFFFF)
    words[at + 1] = np.uint32((value >> 32) & 0xFFFFFFFF)


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
    words = frame[:HEADER_BYTES].view(np.uint32)
    _set_long(words, _CLOCK, clock)
    words[_REQUEST] = np.uint32(request)
    return True


@njit(cache=True, nogil=True)
def read_answer(
    data: Bytes, request: int, code: int, rows: int, width: int, clock: int, n: int
) -> tuple[int, int, int]:
    """Clock of the slowest worker, mark and n of a VALUES that answers this question with so many
    rows and knows of nothing from (clock, n) on; (-1, 0, 0) for any other message."""
    words = data[:HEADER_BYTES].view(np.uint32)
    kind = words[_KIND]
    expected = _VALUES | code << 8 | FORMAT << _LAST_BYTE
    mark, its_n = _long(words, _MARK), int(words[_N])
    if (
        words[_MAGIC] != _MAGIC_WORD
        or kind != expected
        or words[_REQUEST] != request
        or words[_SHARD_AND_FILTERS] >> 16
        or _long(words, _ROWS) != rows
        or words[_WIDTH] != width
        or mark > clock
        or (mark == clock and its_n > n)
    ):
        return -1, 0, 0
    return _long(words, _CLOCK), mark, its_n


@njit(cache=True, nogil=True)
def table_asked(data: Bytes) -> int:
    """The table of a GET, or -1 if it is any other message, or asks for more than rows."""
    if data.shape[0] < HEADER_BYTES:
        return -1
    words = data[:HEADER_BYTES].view(np.uint32)
    if (
        words[_MAGIC] != _MAGIC_WORD
        or words[_KIND] != _GET | FORMAT << _LAST_BYTE
        or words[_SHARD_AND_FILTERS] >> 16
        or _long(words, _ROWS) != 0
        or words[_WIDTH] != 0
        or data.shape[0] != HEADER_BYTES + 8 * _long(words, _IDS)
        or _long(words, _IDS) == 0
    ):
        return -1
    return int(words[_TABLE])


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
    asked, words = data[:HEADER_BYTES].view(np.uint32), out[:HEADER_BYTES].view(np.uint32)
    ids = data[HEADER_BYTES:].view(np.int64)
    worker, closed = np.int64(asked[_WORKER]), ledger[:, 0].min()
    if worker >= ledger.shape[0] or closed < _long(asked, _CLOCK) - lag_clocks:
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
    words[_MAGIC] = _MAGIC_WORD
    words[_KIND] = _VALUES | code << 8 | FORMAT << _LAST_BYTE
    words[_WORKER] = worker
    _set_long(words, _CLOCK, closed)
    _set_long(words, _MARK, ledger[worker, 0])
    _set_long(words, _ROWS, ids.shape[0])
    words[_N], words[_WIDTH] = ledger[worker, 1], width
    words[_REQUEST] = asked[_REQUEST]
    return int(worker)


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
