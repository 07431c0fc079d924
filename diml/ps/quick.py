"""The short way of a read or an update: plain arrays, one dense table, one server.

Owns a short cut through `ClientCore.get` and `rows_of`, and through the checks of an update: the
question's frame is kept from one read to the next, for a program mostly asks for rows that it has
asked for before, and the answer becomes rows without a message in between. Pure. Must not know how
bytes travel. Invariant: what it returns and what it does to the core is what the long way does;
whatever it does not expect it leaves untouched, for the long way.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diml.ps.checks import checked_ids
from diml.ps.client_core import ClientCore
from diml.ps.message import (
    CODES,
    HEADER_BYTES,
    NO_IDS,
    QUICK_BYTES,
    Address,
    Bytes,
    Ids,
    Rows,
    frame,
    write_get,
)
from diml.ps.pending import Segment
from diml.ps.tables import TableSpec
from diml.ps.words import ask_again, copy_update, read_answer

_INT64, _BYTE = np.dtype(np.int64), np.dtype(np.uint8)
_NO_ROOM = np.empty(0, np.uint8)


class Quick:
    """Reads and updates of one dense table of which one server has all rows.

    Attributes:
        spec, server: the table, and who has its rows.
        ids: what was asked for last, (m,); it changes with the next question.
        room: where the answer to the last question fits, nobody else's.
    """

    def __init__(self, core: ClientCore, spec: TableSpec) -> None:
        self._core, self.spec, self.server = core, spec, Address("server", 0)
        self._writing = core.writing_of(spec)
        self._dtype, self._code = spec.numpy_dtype, CODES[spec.numpy_dtype]
        self._lag_clocks = core.consistency.lag_clocks
        self._cols = spec.cols
        self._row_bytes = spec.cols * self._dtype.itemsize
        self._rows_max = QUICK_BYTES // self._row_bytes
        self.ids: Ids = NO_IDS
        self._frame, self.room = np.empty(HEADER_BYTES, np.uint8), _NO_ROOM

    @classmethod
    def of(cls, core: ClientCore, spec: TableSpec) -> Quick | None:
        """None for a table whose reads are more than one question to one server."""
        writing = core.writing_of(spec)
        plain = writing.cache is None and writing.echo is None and not spec.sparse
        return cls(core, spec) if plain and core.servers == 1 else None

    def question(self, ids: ArrayLike) -> Bytes | None:
        """The bytes that ask for rows, MPI's until the answer has come; None if there are none to
        ask for, or many. Raises Misuse for bad ids."""
        core = self._core
        request = core.questions.next
        if not (_are_plain(ids) and ask_again(self._frame, self.ids, ids, core.clock, request)):
            checked = checked_ids(self.spec, ids)
            self._frame, self.ids, _ = frame(len(checked), 0, 0, _BYTE)
            self.ids[:] = checked
            write_get(self._frame, core.worker, core.clock, len(checked), self.spec.id, request)
        count = len(self.ids)
        if not 0 < count <= self._rows_max:
            return None
        self.room = np.empty(HEADER_BYTES + count * self._row_bytes, np.uint8)
        return self._frame

    def answer(self, data: Bytes) -> tuple[Rows, int] | None:
        """The rows (m, cols) in the bytes of a message and their staleness; None if it is any other
        message than the answer to the question."""
        if len(data) != len(self.room):
            return None
        core, rows = self._core, len(self.ids)
        # A server that has more than was sent: see `ClientCore.handle`.
        slowest, mark, n = read_answer(
            data, core.questions.next, self._code, rows, self._cols, core.clock, core.n
        )
        if slowest < 0:
            return None
        values: Rows = np.ndarray((rows, self._cols), self._dtype, data, HEADER_BYTES)
        staleness = max(0, core.clock - slowest)
        assert staleness <= self._lag_clocks, f"a read {staleness} stale"
        core.answered_at_once(0, mark, n)
        if self._writing.pending:
            values = self._writing.shown(self.ids, values, False)
        return values, staleness

    def segment(self, ids: ArrayLike, deltas: ArrayLike) -> Segment | None:
        """An update's copy in its frame; None if it takes a closer look."""
        if not (
            _are_plain(ids)
            and type(deltas) is np.ndarray
            and deltas.dtype is self._dtype
            and deltas.flags.carray
            and deltas.shape == (len(ids), self._cols)
            and 0 < len(ids) <= self._rows_max
        ):
            return None
        buffer, its_ids, its_values = frame(len(ids), len(ids), self._cols, self._dtype)
        if not copy_update(ids, deltas, self.spec.rows, its_ids, its_values):
            return None
        return Segment(its_ids, its_values, buffer)


def _are_plain(ids: ArrayLike) -> TypeGuard[NDArray[Any]]:
    """Whether it is a list of ids as it goes into a message."""
    return type(ids) is np.ndarray and ids.dtype is _INT64 and ids.ndim == 1 and ids.flags.carray
