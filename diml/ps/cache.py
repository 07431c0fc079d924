"""Rows that a worker keeps from earlier reads, for as long as the bound on staleness allows.

Owns which rows are kept, and since which clock. Pure. Must not know servers beyond their numbers.
Invariant: a kept row holds every update that its stamp promises and all of this worker's own: a
row's stamp is the slowest worker's clock when it was read or, where the server pushes what has
changed (ESSP), the server's last push, if that is later.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diml.kernels import rows as kernels
from diml.ps.message import Ids, Rows
from diml.ps.tables import TableSpec, row_bounds


class Found(NamedTuple):
    """What of a list of ids is in the cache: by id, whether it may be read from there (`hit`) and
    whether that must wait for its server's next push (`awaited`, a part of `hit`)."""

    hit: NDArray[np.bool_]
    awaited: NDArray[np.bool_]


class RowCache:
    """Rows of one table; at most `limit` of them (0: all). Evicts by CLOCK.

    Attributes:
        pushed: by server, the clock of its last push; 0 where servers do not push.
    """

    def __init__(self, spec: TableSpec, servers: int, limit: int, pushing: bool) -> None:
        places = min(limit, spec.rows) if limit else spec.rows
        self._bounds = row_bounds(spec.rows, servers)
        self._pushing = pushing
        self._slots = np.full(spec.rows, -1, np.int64)
        self._owner = np.full(places, -1, np.int64)
        self._values = np.zeros((places, spec.cols), spec.numpy_dtype)
        self._stamps = np.zeros(places, np.int64)
        self._used = np.zeros(places, np.uint8)
        self._hand = 0
        self.pushed = np.zeros(servers, np.int64)

    def find(self, ids: Ids, least: int) -> Found:
        """Look rows up that must not be older than the clock `least`."""
        places = self._slots[ids]
        kept = places >= 0
        fresh = kept & (self._stamps_of(ids, places) >= least)
        return Found(kept, kept & ~fresh) if self._pushing else Found(fresh, ~kept & kept)

    def _stamps_of(self, ids: Ids, places: Ids) -> Ids:
        stamps = self._stamps[places]
        if self._pushing:
            owners = np.searchsorted(self._bounds, ids, side="right") - 1
            stamps = np.maximum(stamps, self.pushed[owners])
        return stamps

    def servers_of(self, ids: Ids) -> list[int]:
        """The servers that hold rows."""
        owners = np.searchsorted(self._bounds, ids, side="right") - 1
        return [int(server) for server in np.unique(owners)]

    def read(self, ids: Ids) -> tuple[Rows, int]:
        """Kept rows (a copy), and the earliest of their stamps."""
        places = self._slots[ids]
        self._used[places] = 1
        return self._values[places], int(self._stamps_of(ids, places).min())

    def keep(self, server: int, ids: Ids, rows: Rows, stamp: int) -> None:
        """Keep rows of a server that were read at a stamp, own updates added.

        Not if the server has pushed since: these rows may lack what it has pushed.
        """
        if self.pushed[server] > stamp:
            return
        self._hand = kernels.cache_put(
            self._slots, self._owner, self._values, self._stamps, self._used, self._hand, ids,
            rows, stamp,
        )  # fmt: skip

    def add(self, ids: Ids, deltas: Rows) -> None:
        """This worker's own update."""
        kernels.cache_add(self._slots, self._values, ids, deltas)

    def replace(self, ids: Ids, rows: Rows, stamp: int) -> None:
        """Rows that a server has pushed: those that are kept change, others stay away."""
        places = self._slots[ids]
        kept = places >= 0
        self._values[places[kept]] = rows[kept]
        self._stamps[places[kept]] = stamp

    def drop(self) -> None:
        """Forget everything: after a repair nobody pushes any more."""
        self._slots[:] = -1
        self._owner[:] = -1
        self._used[:] = 0
        self.pushed[:] = 0
