"""A parameter server in memory, with one thread a worker, as stale as the bound allows.

A read in clock c has the updates of all workers stamped up to c - s - 1 and its own, and nothing
else: the worst case of SSP, and so the same at every run. A worker that dies (`Death`) is replaced
by one that starts anew with the clock and the local state that were kept, as in `diml.ps`.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from diml.ps.tables import TableSpec, first_values, spec_of_init

_DEADLINE_S = 120.0


class Death(Exception):
    """Ends a worker's thread as SIGKILL would."""


class Stop(Exception):
    """Ends a worker's thread for good, once its checkpoint is kept."""


@dataclass
class Resumed:
    """The checkpoint that a run goes on from."""

    clock: int
    locals: list[Any]


def _add(values: npt.NDArray[Any], ids: npt.NDArray[np.int64], deltas: npt.NDArray[Any]) -> None:
    """Add rows as a server does: infinity less infinity is NaN, and no warning."""
    with np.errstate(invalid="ignore", over="ignore"):
        np.add.at(values, ids, deltas)


class FakeTable:
    """One table: first values and every update as (stamp, worker, ids, deltas)."""

    def __init__(self, spec: TableSpec) -> None:
        self.spec = spec
        self.folded = first_values(spec, 0, spec.rows).astype(np.float64)
        self.updates: dict[tuple[int, int], list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]] = {}

    def fold(self, before: int) -> None:
        """Fold in, for good, the updates stamped before this clock."""
        for stamp, worker in sorted(key for key in self.updates if key[0] < before):
            for ids, deltas in self.updates.pop((stamp, worker)):
                _add(self.folded, ids, deltas)

    def read(self, worker: int, clock: int, staleness: int) -> npt.NDArray[Any]:
        values = self.folded.copy()
        for stamp, source in sorted(self.updates):
            if stamp <= clock - staleness - 1 or source == worker:
                for ids, deltas in self.updates[stamp, source]:
                    _add(values, ids, deltas)
        with np.errstate(over="ignore"):
            return values.astype(self.spec.dtype)


class FakeServers:
    """The servers of one job; `run` starts its workers."""

    def __init__(self, workers: int, staleness: int = 0, seed: int = 0) -> None:
        self.workers, self.staleness, self.seed = workers, staleness, seed
        self.tables: dict[str, FakeTable] = {}
        self.clocks = [0] * workers
        self.locals: list[Any] = [None] * workers
        self.changed = threading.Condition()
        self.failed: BaseException | None = None
        self.resumed: Resumed | None = None
        self.stop_at = -1
        self.checkpoints: set[int] = set()
        self.kept: dict[int, Any] = {}

    def again(self, workers: int, staleness: int) -> FakeServers:
        """Servers that go on from the checkpoint at which these were stopped."""
        after = FakeServers(workers, staleness, self.seed)
        after.tables, clock = copy.deepcopy(self.tables), self.stop_at
        for table in after.tables.values():
            table.fold(clock + 1)
        after.clocks = [clock] * workers
        after.resumed = Resumed(clock, [self.kept[worker] for worker in range(self.workers)])
        if workers == self.workers:
            after.locals = copy.deepcopy(after.resumed.locals)
        return after

    def run(self, main: Callable[[FakeClient], None]) -> None:
        """Run `main` on every worker, anew after each of its deaths."""
        threads = [
            threading.Thread(target=self._work, args=(main, worker), daemon=True)
            for worker in range(self.workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_DEADLINE_S * 2)
        if self.failed is not None:
            raise self.failed
        assert not any(thread.is_alive() for thread in threads), "a worker hangs"

    def _work(self, main: Callable[[FakeClient], None], worker: int) -> None:
        try:
            while True:
                client = FakeClient(self, worker)
                try:
                    return main(client)
                except Death:
                    continue
                except Stop:
                    return None
        except BaseException as error:  # handed to the test
            with self.changed:
                self.failed = self.failed or error
                self.changed.notify_all()


class FakeClient:
    """What a worker sees: the parts of `diml.ps` that matrix factorization uses."""

    def __init__(self, servers: FakeServers, worker: int) -> None:
        self._servers = servers
        self.worker, self.workers = worker, servers.workers
        self.clock_now = servers.clocks[worker]
        self.staleness_seen: Counter[int] = Counter()
        self.local = copy.deepcopy(servers.locals[worker])
        self._pending: dict[str, list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]] = {}

    def table(self, name: str, *, rows: int, cols: int, dtype: str, init: Any) -> FakeHandle:
        spec = TableSpec(name, rows, cols, dtype, spec_of_init(init), self._servers.seed)
        with self._servers.changed:
            known = self._servers.tables.setdefault(name, FakeTable(spec))
        assert known.spec == spec
        return FakeHandle(self, name)

    def read(self, name: str, ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        servers = self._servers
        with servers.changed:
            met = servers.changed.wait_for(
                lambda: servers.failed or min(servers.clocks) >= self.clock_now - servers.staleness,
                _DEADLINE_S,
            )
            assert met, "a read waits for ever"
            assert servers.failed is None, "another worker failed"
            table = servers.tables[name]
            values = table.read(self.worker, self.clock_now, servers.staleness)
        for own_ids, deltas in self._pending.get(name, []):
            _add(values, own_ids, deltas.astype(values.dtype))
        return values[ids]

    def add(self, name: str, ids: npt.NDArray[np.int64], deltas: npt.NDArray[Any]) -> None:
        spec = self._servers.tables[name].spec
        assert deltas.shape == (len(ids), spec.cols)
        assert deltas.dtype == spec.dtype
        self._pending.setdefault(name, []).append((ids.copy(), deltas.copy()))

    @property
    def resumed(self) -> Any:
        return self._servers.resumed

    def checkpoint(self, local: Any = None) -> None:
        servers = self._servers
        servers.checkpoints.add(self.clock_now)
        if self.clock_now == servers.stop_at:
            servers.kept[self.worker] = copy.deepcopy(local())
            raise Stop

    def clock(self, local: Any = None) -> None:
        servers = self._servers
        with servers.changed:
            for name, updates in self._pending.items():
                servers.tables[name].updates[self.clock_now, self.worker] = updates
            self._pending = {}
            servers.locals[self.worker] = copy.deepcopy(local)
            self.clock_now += 1
            servers.clocks[self.worker] = self.clock_now
            for table in servers.tables.values():
                table.fold(min(servers.clocks) - servers.staleness)
            servers.changed.notify_all()


class FakeHandle:
    """A table as one worker has it."""

    def __init__(self, client: FakeClient, name: str) -> None:
        self._client, self._name = client, name

    def get(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        return self._client.read(self._name, ids)

    def inc(self, ids: npt.NDArray[np.int64], deltas: npt.NDArray[Any]) -> None:
        self._client.add(self._name, ids, deltas)
