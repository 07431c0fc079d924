"""The short way of a read or an update: plain arrays, one dense table, one server.

Owns a short cut through `ClientCore.get` and `rows_of`, and through the checks of an update: what a
question looks like is kept from one read to the next, and the answer becomes rows without a message
in between; an update goes into the bytes of its message at once. Pure. Must not know how bytes
travel. Invariant: what it returns and what it does to the core is what the long way does; whatever
it does not expect it leaves untouched, for the long way.
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
from diml.ps.tables import TableSpec
from diml.ps.words import write_update

_INT64, _BYTE = np.dtype(np.int64), np.dtype(np.uint8)


class Quick:
    """Reads and updates of one dense table of which one server has all rows.

    Attributes:
        spec, server: the table, and who has its rows.
        rows, cols, code: how many rows and columns the table has, and its dtype in a message.
        frame: the bytes of the question; MPI's from when it is sent until the answer has come.
        ids: what the question asks for, (m,), in its frame.
        room_bytes: how long the answer will be.
    """

    def __init__(self, core: ClientCore, spec: TableSpec) -> None:
        self._core, self.spec, self.server = core, spec, Address("server", 0)
        self._writing = core.writing_of(spec)
        self._dtype, self.code = spec.numpy_dtype, CODES[spec.numpy_dtype]
        self._lag_clocks = core.consistency.lag_clocks
        self.rows, self.cols = spec.rows, spec.cols
        self._row_bytes = spec.cols * self._dtype.itemsize
        self._update_bytes = 8 + self._row_bytes
        self._rows_max = QUICK_BYTES // self._row_bytes
        # As a message has it.
        self._table = spec.id
        self.ids: Ids = NO_IDS
        self.frame, self.room_bytes = np.empty(HEADER_BYTES, np.uint8), 0
        # How many rows the question asks for; none has been written yet.
        self._count = -1

    @classmethod
    def of(cls, core: ClientCore, spec: TableSpec) -> Quick | None:
        """None for a table whose reads are more than one question to one server."""
        writing = core.writing_of(spec)
        plain = writing.cache is None and writing.echo is None and not spec.sparse
        return cls(core, spec) if plain and core.servers == 1 and not core.pushing else None

    def ready(self, ids: ArrayLike) -> Ids | None:
        """The ids of a question as `write_question` takes them, which the frame has room for; None
        if there are none to ask for, or many. Raises Misuse for bad ids."""
        plain = ids if _are_plain(ids) else checked_ids(self.spec, ids)
        count = len(plain)
        if count != self._count:
            if not 0 < count <= self._rows_max:
                return None
            self.frame, self.ids, _ = frame(count, 0, 0, _BYTE)
            write_get(self.frame, self._core.worker, 0, count, self._table, 0)
            self._count, self.room_bytes = count, HEADER_BYTES + count * self._row_bytes
        return plain

    def shown(self, data: Bytes, slowest: int, mark: int, n: int) -> tuple[Rows, int]:
        """The rows (m, cols) in the bytes of the answer to the question `questions.next`, as the
        program sees them, and their staleness. The other numbers are `read_answer`'s."""
        core = self._core
        staleness = core.clock - slowest
        if staleness < 0:
            staleness = 0
        assert staleness <= self._lag_clocks, f"a read {staleness} stale"
        core.answered_at_once(0, mark, n)
        values: Rows = np.ndarray((self._count, self.cols), self._dtype, data, HEADER_BYTES)
        if self._writing.pending:
            values = self._writing.shown(self.ids, values, False)
        return values, staleness

    def update(self, ids: ArrayLike, deltas: ArrayLike) -> Bytes | None:
        """An update's copy in its frame (see `write_update`); None if it takes a closer look."""
        if not (
            _are_plain(ids)
            and type(deltas) is np.ndarray
            and deltas.dtype is self._dtype
            and deltas.flags.carray
            and deltas.shape == (count := len(ids), self.cols)
            and 0 < count <= self._rows_max
        ):
            return None
        buffer = np.empty(HEADER_BYTES + count * self._update_bytes, np.uint8)
        worker, code = self._core.worker, self.code
        if not write_update(buffer, ids, deltas, self.rows, worker, self._table, code):
            return None
        return buffer


def _are_plain(ids: ArrayLike) -> TypeGuard[NDArray[Any]]:
    """Whether it is a list of ids as it goes into a message."""
    return type(ids) is np.ndarray and ids.dtype is _INT64 and ids.ndim == 1 and ids.flags.carray
