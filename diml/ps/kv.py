"""Key-value vectors: push, pull and wait, over the same shards as tables.

Owns timestamps and callbacks. A vector of `size` keys is a table of that many rows; each server
holds one range of keys, all of equal length. Must not know how servers store anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diml.errors import Misuse
from diml.kernels.rows import first_unsorted
from diml.ps.checks import checked_ids, checked_updates
from diml.ps.message import Ids
from diml.ps.session import Session
from diml.ps.tables import TableSpec

# More unacknowledged pushes than these make a push wait: their memory is bounded.
_PUSHES_MAX = 64

Callback = Callable[[NDArray[Any] | None], None]


class _Push(NamedTuple):
    stamp: tuple[int, int]


class _Pull(NamedTuple):
    request: int


class KeyValues:
    """A vector with one number, or `width` numbers, a key. Made by `ParameterServer.kv`."""

    def __init__(
        self, session: Session, spec: TableSpec, reject_nonfinite: bool, seen: Counter[int]
    ) -> None:
        self._session, self._spec = session, spec
        self._reject_nonfinite, self._staleness_seen = reject_nonfinite, seen
        self._open: dict[int, list[_Push | _Pull]] = {}
        self._callbacks: dict[int, Callback] = {}
        self._next = 0

    def push(self, keys: ArrayLike, updates: ArrayLike, callback: Callback | None = None) -> int:
        """Send updates of keys to the table's rule; returns a timestamp for `wait`.

        Under BSP they are sent with this worker's `clock()`, and count as done until then; else
        at once. keys (m,) int64, sorted and each once; updates (m,), or (m, width). Both arrays
        are copied. Raises Misuse, naming the vector and the keys, for anything else.
        """
        with self._session:
            self._settle()
            return self._stamped(self._pushed(keys, updates), callback)

    def pull(self, keys: ArrayLike) -> NDArray[Any]:
        """The values of keys, (m,) or (m, width), under the bound on staleness; waits.

        Under BSP a worker's own pushes are seen, by rule "add", at once; else after `clock()`.
        """
        result = self.wait(self.pull_later(keys))
        assert result is not None
        return result

    def pull_later(self, keys: ArrayLike, callback: Callback | None = None) -> int:
        """Ask for the values of keys, whole numbers (n,); `wait` returns them, as `pull` does, by
        the timestamp."""
        with self._session as session:
            self._settle()
            stamp = self._stamped([self._pulled(keys)], callback)
            session.strike_inside()
            return stamp

    def push_pull(
        self, keys: ArrayLike, updates: ArrayLike, callback: Callback | None = None
    ) -> int:
        """Push updates, (n, width), to keys, (n,), then ask for the same keys: one timestamp, for
        which `wait` returns the values."""
        with self._session:
            self._settle()
            parts = [*self._pushed(keys, updates), self._pulled(keys)]
            return self._stamped(parts, callback)

    def wait(self, stamp: int) -> NDArray[Any] | None:
        """Wait until a timestamp's push is acknowledged by the servers, and its values are here.

        Returns the values, or None for a push, or for a timestamp that was waited for before.
        Raises Misuse for a timestamp that was never given out.
        """
        with self._session.turn:
            return self._waited(stamp)

    def _waited(self, stamp: int) -> NDArray[Any] | None:
        if not isinstance(stamp, int | np.integer) or not 0 <= stamp < self._next:
            raise Misuse(f"{self._spec.name!r} has given out no timestamp {stamp!r}")
        result: NDArray[Any] | None = None
        session, core = self._session, self._session.core
        for part in self._open.pop(stamp, []):
            if isinstance(part, _Push):
                sent = partial(core.sent.has_all, part.stamp)
                session.wait(sent, f"a push to {self._spec.name!r}", core.behind)
            else:
                session.answered(part.request, f"a pull of {self._spec.name!r}")
                rows, staleness = core.rows_of(part.request)
                self._staleness_seen[staleness] += 1
                result = rows[:, 0] if self._spec.cols == 1 else rows
        callback = self._callbacks.pop(stamp, None)
        if callback is not None:
            callback(result)
        return result

    # Parts -----------------------------------------------------------------------------------

    def _checked_keys(self, keys: ArrayLike) -> Ids:
        # A copy: a pull may be under way when the caller changes its own array.
        checked = checked_ids(self._spec, keys).copy()
        bad = first_unsorted(checked)
        if bad >= 0:
            raise Misuse(
                f"{self._spec.name!r}: keys must be sorted and each stand once; "
                f"{checked[bad]} follows {checked[bad - 1]}"
            )
        return checked

    def _pushed(self, keys: ArrayLike, updates: ArrayLike) -> list[_Push | _Pull]:
        checked, array = self._checked_keys(keys), np.asarray(updates)
        if self._spec.cols == 1 and array.ndim == 1:
            array = array.reshape(-1, 1)
        array = checked_updates(self._spec, checked, array, self._reject_nonfinite)
        core = self._session.core
        if core.consistency.buffered:
            core.update(self._spec, checked, array)
            return []
        self._session.wait(lambda: core.sent.most <= _PUSHES_MAX, "a push", core.behind)
        stamp, sends = core.push(self._spec, checked, array)
        self._session.post(sends)
        self._session.strike_inside()
        return [_Push(stamp)]

    def _pulled(self, keys: ArrayLike) -> _Pull:
        checked = self._checked_keys(keys)
        request, sends = self._session.core.get(self._spec, checked)
        self._session.post(sends)
        return _Pull(request)

    def _stamped(self, parts: list[_Push | _Pull], callback: Callback | None) -> int:
        stamp, self._next = self._next, self._next + 1
        self._open[stamp] = parts
        if callback is not None:
            self._callbacks[stamp] = callback
        return stamp

    def _settle(self) -> None:
        """Take what has come; call back whoever is done; forget finished pushes."""
        self._session.take_all()
        core = self._session.core
        for stamp, parts in list(self._open.items()):
            finished = all(
                core.sent.has_all(part.stamp)
                if isinstance(part, _Push)
                else core.questions.done(part.request)
                for part in parts
            )
            pushes_only = all(isinstance(part, _Push) for part in parts)
            if finished and (pushes_only or stamp in self._callbacks):
                self.wait(stamp)
