"""A thread's own cache of one table: updates are gathered without a lock, and go at the clock.

Owns what one of a worker's compute threads has not flushed. Must not know servers: what is flushed
takes the way of the worker's own updates. Invariant: the worker flushes its threads' caches in the
order in which they were made, so that the bits do not depend on which thread came first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import ArrayLike, NDArray

from diml.ps.checks import checked_ids, checked_updates
from diml.ps.message import Ids, Rows
from diml.ps.pending import Pending
from diml.ps.tables import TableSpec


class ThreadCache:
    """One thread's view of a table with rule "add". Made by `Table.thread_cache`.

    It is for one thread: nothing is locked but the read of rows that the worker shares.
    """

    def __init__(
        self, spec: TableSpec, read: Callable[[ArrayLike], NDArray[Any]], reject_nonfinite: bool
    ) -> None:
        self._spec, self._read, self._reject_nonfinite = spec, read, reject_nonfinite
        self._pending = Pending(spec.cols, spec.numpy_dtype)

    def get(self, ids: ArrayLike) -> NDArray[Any]:
        """Rows as `Table.get` gives them, with what this thread has added since the clock."""
        checked = checked_ids(self._spec, ids)
        rows = self._read(checked)
        if self._pending:
            self._pending.overlay(checked, rows)
        return rows

    def inc(self, ids: ArrayLike, deltas: ArrayLike) -> None:
        """As `Table.inc`; seen by this thread at once, by the others after `ps.clock()`."""
        checked = checked_ids(self._spec, ids)
        self._pending.add(
            checked, checked_updates(self._spec, checked, deltas, self._reject_nonfinite)
        )

    def flush(self, update: Callable[[TableSpec, Ids, Rows], None]) -> None:
        """Hand over all that was added. Called by the worker while this thread rests."""
        if self._pending:
            self._pending.merge()
        for segment in self._pending.take():
            update(self._spec, segment.ids, segment.values)

    @property
    def waiting(self) -> bool:
        """Whether anything was added since the last flush."""
        return bool(self._pending)
