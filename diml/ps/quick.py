"""The short way of a read: the rows of one server, when nothing is in the way.

Owns a short cut through `ClientCore.get` and `rows_of`: the question's frame is kept from one read
to the next, for a program mostly asks for rows that it has asked for before, and the answer becomes
rows without a message in between. Pure. Must not know how bytes travel. Invariant: what it returns
and what it does to the core is what the long way does; whatever it does not expect it leaves
untouched, for the long way.
"""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
from numpy.typing import ArrayLike

from diml.kernels.rows import same_ids
from diml.ps.checks import checked_ids
from diml.ps.client_core import ClientCore
from diml.ps.message import (
    CODES,
    HEADER_BYTES,
    NO_IDS,
    PLAIN,
    QUICK_BYTES,
    Address,
    Bytes,
    Ids,
    Kind,
    Rows,
    frame,
    read_header,
    write_get,
)
from diml.ps.tables import TableSpec

_VALUES, _INT64, _BYTE = int(Kind.VALUES), np.dtype(np.int64), np.dtype(np.uint8)


class QuickReads:
    """Reads of one dense table of which one server has all rows.

    Attributes:
        spec, server: the table, and who has its rows.
        ids: what was asked for last, (m,); it changes with the next question.
    """

    def __init__(self, core: ClientCore, spec: TableSpec) -> None:
        self._core, self.spec, self.server = core, spec, Address("server", 0)
        self._writing = core.writing_of(spec)
        self._dtype, self._code = spec.numpy_dtype, CODES[spec.numpy_dtype]
        self._bound = None if core.consistency.model == "asp" else core.consistency.staleness
        self._row_bytes = spec.cols * self._dtype.itemsize
        self._rows_max = QUICK_BYTES // self._row_bytes
        self.ids: Ids = NO_IDS
        self._frame = np.empty(0, np.uint8)

    @classmethod
    def of(cls, core: ClientCore, spec: TableSpec) -> QuickReads | None:
        """None for a table whose reads are more than one question to one server."""
        writing = core.writing_of(spec)
        plain = writing.cache is None and writing.echo is None and not spec.sparse
        return cls(core, spec) if plain and core.servers == 1 else None

    def question(self, ids: ArrayLike) -> Bytes | None:
        """The bytes that ask for rows, MPI's until the answer has come; None if there are none to
        ask for, or many. Raises Misuse for bad ids."""
        core, known = self._core, self.ids
        if not (_is_plain(ids) and same_ids(known, ids)):
            checked = checked_ids(self.spec, ids)
            self._frame, known, _ = frame(len(checked), 0, 0, _BYTE)
            known[:] = checked
            self.ids = known
        if not 0 < len(known) <= self._rows_max:
            return None
        write_get(
            self._frame, core.worker, core.clock, len(known), self.spec.id, core.questions.next
        )
        return self._frame

    def answer(self, data: Bytes) -> tuple[Rows, int] | None:
        """The rows (m, cols) in the bytes of a message and their staleness; None if it is any other
        message than the answer to the question."""
        if len(data) < HEADER_BYTES:
            return None
        core, spec = self._core, self.spec
        (magic, kind, code, _, version, _, slowest, mark, _, rows, n, width, _, _, filters,
         request) = read_header(data)  # fmt: skip
        if kind != _VALUES or request != core.questions.next or (magic, version) != PLAIN:
            return None
        if filters or code != self._code or rows != len(self.ids) or width != spec.cols:
            return None
        # A server that has more than was sent: see `ClientCore.handle`.
        if (mark, n) > (core.clock, core.n) or len(data) != HEADER_BYTES + rows * self._row_bytes:
            return None
        values = np.ndarray((rows, width), self._dtype, data, HEADER_BYTES)
        staleness = max(0, core.clock - slowest)
        assert self._bound is None or staleness <= self._bound, f"a read {staleness} stale"
        core.answered_at_once(0, mark, n)
        if self._writing.pending:
            values = self._writing.shown(self.ids, values, False)
        return values, staleness


def _is_plain(ids: ArrayLike) -> TypeGuard[Ids]:
    """Whether it is a list of ids as it goes into a message."""
    return (
        type(ids) is np.ndarray and ids.dtype == _INT64 and ids.ndim == 1 and ids.flags.c_contiguous
    )
