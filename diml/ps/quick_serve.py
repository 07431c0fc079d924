"""The short way of an answer: the rows that a plain GET asks for, from its bytes to its answer's.

Owns a short cut through `ServerCore.handle` for a read of one dense table that can be answered at
once. Pure. Must not know how bytes travel. Invariant: what it returns and what it does to the
server is what the long way does; whatever it does not expect it leaves untouched, for the long way.
"""

from __future__ import annotations

import numpy as np

from diml.ps.message import CODES, HEADER_BYTES, Bytes
from diml.ps.serve_words import answer_read, table_asked
from diml.ps.server_core import ServerCore


def quick_answer(server: ServerCore | None, data: Bytes) -> Bytes | None:
    """The bytes of the answer to a message, or None if that takes the long way."""
    if server is None or (key := table_asked(data)) < 0 or not server.answers_at_once:
        return None
    table = server.shard.tables.get(key)
    count = len(data) - HEADER_BYTES >> 3
    if table is None or count > table.quick_rows:
        return None
    values = table.values
    buffer = np.empty(HEADER_BYTES + count * values.shape[1] * values.itemsize, np.uint8)
    worker = answer_read(
        data, server.shard.ledger, server.lag_clocks, values, table.low, CODES[values.dtype], buffer
    )
    if worker < 0:
        return None
    server.acknowledged_by_answer(worker)
    return buffer
