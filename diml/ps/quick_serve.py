"""The short way of an answer: the rows that a plain GET asks for, from its bytes to its answer's.

Owns a short cut through `ServerCore.handle` for a read of one dense table that can be answered at
once. Pure. Must not know how bytes travel. Invariant: what it returns and what it does to the
server is what the long way does; whatever it does not expect it leaves untouched, for the long way.
"""

from __future__ import annotations

import numpy as np

from diml.ps.message import HEADER_BYTES, PLAIN, Bytes, Kind, frame, read_header, write_values
from diml.ps.server_core import ServerCore
from diml.ps.shard import N

_GET, _INT64 = int(Kind.GET), np.dtype(np.int64)


def quick_answer(server: ServerCore | None, data: Bytes) -> Bytes | None:
    """The bytes of the answer to a message, or None if that takes the long way."""
    if len(data) < HEADER_BYTES or server is None or not server.answers_at_once:
        return None
    (magic, kind, _, flags, version, worker, clock, _, count, rows, _, width, key, _, filters,
     request) = read_header(data)  # fmt: skip
    if kind != _GET or flags or filters or not count or (magic, version) != PLAIN:
        return None
    shard = server.shard
    table = shard.tables.get(key)
    if table is None or count > table.quick_rows or rows or width:
        return None
    closed = shard.closed
    if not server.readable(clock, closed) or len(data) != HEADER_BYTES + 8 * count:
        return None
    ids = np.ndarray(count, _INT64, data, HEADER_BYTES)
    buffer, _, values = frame(0, count, table.spec.cols, table.spec.numpy_dtype)
    table.gather(ids, values)
    server.acknowledged_by_answer(worker)
    its_clock, its_n = shard.ledger[worker, : N + 1].tolist()
    write_values(buffer, worker, closed, its_n, values, its_clock, request)
    return buffer
