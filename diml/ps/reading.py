"""A read under way: what was asked for, and how its answers become rows.

Owns the putting together of rows from servers, the worker's own pending updates, and the cache.
Pure. Must not know who waits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diml.kernels.rows import scatter_add
from diml.ps.cache import Found
from diml.ps.message import Ids, Message, Rows
from diml.ps.pending import Writing
from diml.ps.tables import Piece, TableSpec


class Reading(NamedTuple):
    """A `get` under way: what was asked for, of which servers, and what the cache had."""

    spec: TableSpec
    ids: Ids
    pieces: list[Piece]
    found: Found | None


def assemble_cells(
    reading: Reading, replies: dict[int, Message], writing: Writing, clock: int
) -> tuple[Ids, Rows, int]:
    """The cells, ascending, and their values (m, 1) that a worker at `clock` sees of rows of a
    sparse table; and the clock of the slowest worker as of the oldest of them."""
    spec, dtype = reading.spec, reading.spec.numpy_dtype
    cells, values = [np.empty(0, np.int64)], [np.empty((0, 1), dtype)]
    for piece in reading.pieces:
        reply = replies[piece.server]
        cells.append(reply.ids)
        values.append(reply.values.reshape(-1, 1))
        # As with dense rows: a server that is ahead has this clock's updates already.
        if writing.pending and writing.rule.additive and reply.mark <= clock:
            writing.pending.merge()
            (own,) = writing.pending.peek()
            asked = np.isin(own.ids // spec.cols, piece.ids)
            cells.append(own.ids[asked])
            values.append(own.values[asked])
    unique, places = np.unique(np.concatenate(cells), return_inverse=True)
    sums = np.zeros((len(unique), 1), dtype)
    scatter_add(sums, 0, places, np.concatenate(values))
    return unique, sums, min((reply.clock for reply in replies.values()), default=clock)


def assemble(
    reading: Reading, replies: dict[int, Message], writing: Writing, clock: int
) -> tuple[Rows, int]:
    """The rows (len(ids), cols) that a worker at `clock` sees, and the clock of the slowest
    worker as of the oldest of them; what was fetched is kept for later reads."""
    spec, ids, pieces, found = reading
    parts: list[Rows] = []
    to_keep: list[tuple[Piece, Rows, int]] = []
    for piece in pieces:
        reply = replies[piece.server]
        # A server that is ahead has this clock's updates from a former life of this worker.
        known = reply.mark > clock
        parts.append(writing.shown(piece.ids, reply.values, known))
        if writing.cache is not None and not known:
            to_keep.append((piece, parts[-1], reply.clock))
    if len(pieces) == 1:
        rows = parts[0]
    else:
        rows = np.empty((sum(map(len, parts)), spec.cols), spec.numpy_dtype)
        for piece, part in zip(pieces, parts, strict=True):
            rows[piece.places] = part
    slowest = min((reply.clock for reply in replies.values()), default=clock)
    if found is not None and found.hit.any():
        assert writing.cache is not None
        fetched, rows = rows, np.empty((len(ids), spec.cols), spec.numpy_dtype)
        rows[~found.hit] = fetched
        rows[found.hit], stamp = writing.cache.read(ids[found.hit])
        slowest = min(slowest, stamp)
    for piece, part, stamp in to_keep:
        assert writing.cache is not None
        writing.cache.keep(piece.server, piece.ids, part, stamp)
    return rows, slowest
