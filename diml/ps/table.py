"""A table as a worker's program sees it: reading rows, and updating them.

Owns the public calls of one table. Must not know how messages travel, nor how anything is decided.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diml.errors import Misuse
from diml.ps.checks import checked_ids, checked_updates
from diml.ps.private import ThreadCache
from diml.ps.quick import Quick
from diml.ps.session import Session
from diml.ps.sparse import cells_of, matrix_of
from diml.ps.tables import TableSpec

if TYPE_CHECKING:
    import scipy.sparse as sp

    from diml.ps.client import ParameterServer


class Table:
    """Rows of parameters spread over the servers. Made by `ParameterServer.table`."""

    def __init__(self, server: ParameterServer, session: Session, spec: TableSpec) -> None:
        self._server, self._session, self._spec = server, session, spec
        self._reading = f"reading table {spec.name!r}"
        self._quick = Quick.of(session.core, spec) if session.has_wire else None

    @property
    def name(self) -> str:
        """Its name."""
        return self._spec.name

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._spec.rows

    @property
    def cols(self) -> int:
        """Numbers in a row."""
        return self._spec.cols

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy dtype of the rows."""
        return self._spec.numpy_dtype

    def get(self, ids: ArrayLike) -> NDArray[Any]:
        """Rows as (len(ids), cols), the caller's own: with all updates that the bound on
        staleness demands, and all of this worker's (rule "add").

        Waits for slower workers where the bound demands it. Raises Misuse for ids that are not
        whole numbers in 0..rows-1, DeadlineExceeded naming who is late.
        """
        quick = self._quick
        rows = self._session.read(quick, ids, self._reading) if quick is not None else None
        return self._fetched(ids) if rows is None else rows

    def _fetched(self, ids: ArrayLike) -> NDArray[Any]:
        """As `get`, the long way."""
        spec = self._spec
        if spec.sparse:
            return np.asarray(self.get_sparse(ids).toarray())
        with self._session as session:
            if session.core.pushing:
                session.take_all()
            request, sends = session.core.get(spec, checked_ids(spec, ids))
            session.ask(request, sends, self._reading)
            rows, staleness = session.core.rows_of(request)
            session.seen[staleness] += 1
        return rows

    def inc(self, ids: ArrayLike, deltas: ArrayLike) -> None:
        """Give `deltas` (len(ids), cols) to the rule of rows; ids may repeat. With rule "add"
        visible here at once; to others once this worker's clock has ended. Both are copied.

        Raises Misuse for bad ids, another shape, or whole numbers that the table's dtype cannot
        hold; a float64 beyond float32 becomes infinite, which `reject_nonfinite` refuses.
        """
        quick = self._quick
        if quick is not None and not self._server.reject_nonfinite:
            buffer = quick.update(ids, deltas)
            if buffer is not None and self._session.update(quick, buffer):
                return
        spec = self._spec
        if spec.sparse:
            self.inc_sparse(ids, np.asarray(deltas))
            return
        checked = checked_ids(spec, ids)
        array = checked_updates(spec, checked, deltas, self._server.reject_nonfinite)
        with self._session as session:
            session.core.update(spec, checked, array)

    def get_sparse(self, ids: ArrayLike) -> sp.csr_array:
        """As `get`, of a table made with `sparse=True`: a SciPy matrix (len(ids), cols).

        Raises as `get`, and Misuse for a table that is not sparse.
        """
        spec, session = self._sparse_spec(), self._session
        checked = checked_ids(spec, ids)
        with session:
            request, sends = session.core.get(spec, np.unique(checked))
            session.ask(request, sends, self._reading)
            cells, values, staleness = session.core.cells_of(request)
            session.seen[staleness] += 1
        return matrix_of(spec, checked, cells, values)

    def inc_sparse(self, ids: ArrayLike, deltas: Any) -> None:
        """As `inc`, of a table made with `sparse=True`: `deltas` is a SciPy matrix, or an array,
        (len(ids), cols); only cells that it stores are sent."""
        spec = self._sparse_spec()
        cells, values = cells_of(spec, ids, deltas, self._server.reject_nonfinite)
        with self._session as session:
            session.core.update(spec, cells, values)

    def _sparse_spec(self) -> TableSpec:
        if not self._spec.sparse:
            raise Misuse(f"table {self.name!r} is dense: it was not made with sparse=True")
        return self._spec

    def thread_cache(self) -> ThreadCache:
        """A cache of this table for one compute thread: its updates wait there, without a lock,
        until `ps.clock()` flushes them; the thread must rest meanwhile. A program that compares
        bits makes its threads' caches in a fixed order.

        Raises Misuse if the table's rule is another than "add".
        """
        if self._spec.rule != "add" or self._spec.sparse:
            raise Misuse(f"table {self.name!r}: threads gather dense updates of rule 'add' only")
        cache = ThreadCache(self._spec, self.get, self._server.reject_nonfinite)
        self._server.thread_caches.append(cache)
        return cache
