"""What a server does with small reads and updates of one dense table, from bytes to bytes.

Owns the compiled twin of `ServerCore.handle` for the messages that are most of a program's: which
of them it takes, what that does to rows and ledger, and what the answer says. Pure: arrays in,
arrays out. Must not know how bytes travel, nor where the arrays come from (`diml.ps.quick_serve`).

Invariants: what it does is what the long way does, bit for bit; a message that it leaves for the
long way has changed nothing. Arrays of bytes are C-contiguous and begin at a multiple of 8.
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
    Words,
    long_at,
    set_long,
    words_of,
)
from diml.ps.message import HEADER_BYTES, Bytes, Flag, Ids, Kind, Rows
from diml.ps.tape import append, drop_first, first, read

_GET = int(Kind.GET) | FORMAT_BITS
_UPDATE, _LAST = int(Kind.UPDATE) | FORMAT_BITS, Flag.LAST << FLAGS_BIT
_VALUES = int(Kind.VALUES) | FORMAT_BITS
_ANY_CODE = 0xFF << CODE_BIT

# What the numbers that go with the arrays are: the table, the first row that is here, the most rows
# of a read, the clocks by which one may be ahead of the slowest worker, the code of the dtype; what
# is done with updates; and, said by `take`, the updates taken, those of them that had rows, and the
# other table that was meant.
TABLE_ID, LOW, ROWS_MAX, LAG_CLOCKS, CODE, UPDATES, TAKEN, STEPS, MEANT = range(9)
NUMBERS = 9
# What is done with updates: nothing; applied at once; applied where they are all of a clock.
LEFT, AT_ONCE, BY_CLOCK = 0, 1, 2

# What `take` has come to, where that is no answer: done; for the long way; of another table.
DONE, OTHER, ANOTHER_TABLE = 0, -1, -2


@njit(cache=True, nogil=True)
def take(
    data: Bytes, numbers: Ids, values: Rows, ledger: Ids, owed: Bytes, out: Bytes, tape: Bytes
) -> int:
    """See to one message: the length of its answer, in `out`, or DONE, OTHER or ANOTHER_TABLE.

    `values` (n, cols) are the table's rows from LOW on; `ledger` is the shard's; `owed` has a flag
    for each worker that has yet to be told what is applied; `out` has room for QUICK_BYTES.
    """
    if data.shape[0] < HEADER_BYTES:
        return OTHER
    words = words_of(data)
    kind, count = words[KIND], long_at(words, IDS)
    if (
        words[MAGIC_AT] != MAGIC_WORD
        or words[SHARD_AND_FILTERS] >> FILTERS_BIT
        or words[WORKER] >= ledger.shape[0]
        or count < 0
        or count > data.shape[0] >> 3
    ):
        return OTHER
    if kind == _GET:
        return _answer(data, words, count, numbers, values, ledger, owed, out)
    if kind & ~(_ANY_CODE | _LAST) == _UPDATE and numbers[UPDATES] != LEFT:
        return _update(data, words, count, numbers, values, ledger, owed, tape)
    return OTHER


@njit(cache=True, nogil=True)
def follow(
    tape: Bytes, upto: int, most: int, numbers: Ids, values: Rows, ledger: Ids, owed: Bytes
) -> int:
    """Do to a copy what was done at its server: what stands on a tape up to here, or not much more
    than `most` bytes of it. DONE, or what `take` says of the first record that is not taken."""
    none, begun = tape[:0], read(tape)
    while read(tape) < min(upto, begun + most):
        data = first(tape)
        words = words_of(data)
        done = _update(data, words, long_at(words, IDS), numbers, values, ledger, owed, none)
        if done != DONE:
            return int(done)
        drop_first(tape, data.shape[0])
    return DONE


@njit(cache=True, nogil=True)
def _answer(
    data: Bytes, asked: Words, count: int, numbers: Ids, values: Rows, ledger: Ids, owed: Bytes,
    out: Bytes,
) -> int:  # fmt: skip
    """Write the answer to a GET, if it may be given now."""
    if (
        count == 0
        or long_at(asked, ROWS) != 0
        or asked[WIDTH] != 0
        or data.shape[0] != HEADER_BYTES + 8 * count
    ):
        return OTHER
    if asked[TABLE] != numbers[TABLE_ID]:
        numbers[MEANT] = asked[TABLE]
        return ANOTHER_TABLE
    worker, closed = np.int64(asked[WORKER]), ledger[:, 0].min()
    if count > numbers[ROWS_MAX] or closed < long_at(asked, CLOCK) - numbers[LAG_CLOCKS]:
        return OTHER
    ids, low, width = data[HEADER_BYTES:].view(np.int64), numbers[LOW], values.shape[1]
    if not _all_here(ids, low, values.shape[0]):
        return OTHER
    length = HEADER_BYTES + count * width * values.itemsize
    # By two indices; by one the loop takes three times as long.
    rows = out[HEADER_BYTES:length].view(values.dtype).reshape(count, width)
    for i in range(count):
        row = ids[i] - low
        for k in range(width):
            rows[i, k] = values[row, k]
    words = words_of(out)
    words[:] = 0
    words[MAGIC_AT] = MAGIC_WORD
    words[KIND] = _VALUES | numbers[CODE] << CODE_BIT
    words[WORKER] = worker
    set_long(words, CLOCK, closed)
    set_long(words, MARK, ledger[worker, 0])
    set_long(words, ROWS, count)
    words[N], words[WIDTH] = ledger[worker, 1], width
    words[REQUEST] = asked[REQUEST]
    owed[worker] = 0
    return int(length)


@njit(cache=True, nogil=True)
def _update(
    data: Bytes, words: Words, count: int, numbers: Ids, values: Rows, ledger: Ids, owed: Bytes,
    tape: Bytes,
) -> int:  # fmt: skip
    """Apply an UPDATE, if it is the next one of its worker and nothing else waits for it, and there
    is room for it on the tape."""
    worker, last = np.int64(words[WORKER]), words[KIND] & _LAST != 0
    clock, n, width = long_at(words, CLOCK), np.int64(words[N]), values.shape[1]
    if clock != ledger[worker, 0] or n < ledger[worker, 1]:
        return OTHER
    if numbers[UPDATES] == BY_CLOCK and not last:
        return OTHER
    if count:
        if words[TABLE] != numbers[TABLE_ID]:
            numbers[MEANT] = words[TABLE]
            return ANOTHER_TABLE
        start = HEADER_BYTES + 8 * count
        if (
            words[KIND] >> CODE_BIT & 0xFF != numbers[CODE]
            or long_at(words, ROWS) != count
            or words[WIDTH] != width
            or data.shape[0] != start + count * width * values.itemsize
        ):
            return OTHER
        ids, low = data[HEADER_BYTES:start].view(np.int64), numbers[LOW]
        if not _all_here(ids, low, values.shape[0]) or not _told(tape, data):
            return OTHER
        deltas = data[start:].view(values.dtype).reshape(count, width)
        for i in range(count):
            row = ids[i] - low
            for k in range(width):
                values[row, k] += deltas[i, k]
        numbers[STEPS] += 1
    elif (
        data.shape[0] != HEADER_BYTES
        or long_at(words, ROWS) != 0
        or words[WIDTH] != 0
        or not _told(tape, data)
    ):
        return OTHER
    ledger[worker, 0], ledger[worker, 1] = (clock + 1, 0) if last else (clock, n + 1)
    ledger[worker, 2] = max(ledger[worker, 2], long_at(words, MARK))
    if last:
        owed[worker] = 1
    numbers[TAKEN] += 1
    return DONE


@njit(cache=True, nogil=True)
def _told(tape: Bytes, data: Bytes) -> bool:
    """Whether the replica, if there is one, has what is to be applied."""
    return tape.shape[0] == 0 or append(tape, data)


@njit(cache=True, nogil=True, inline="always")
def _all_here(ids: Ids, low: int, rows: int) -> bool:
    """Whether all ids are among `rows` from `low` on. A loop without an exit is faster."""
    outside = False
    for i in range(ids.shape[0]):
        outside |= (ids[i] < low) | (ids[i] >= low + rows)
    return not outside
