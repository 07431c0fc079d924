"""A worker's account of its work: how much, how long, how much of it waiting, who is slowest.

Owns the `work` events of a job, and what a progress line says of the workers' pace. Must not know
what the units are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from diml.ps.table import Table

T = TypeVar("T")
_TELL_EVERY_S = 0.1
_WORKERS_MAX = 4096


class Logs(Protocol):
    """What has an event log: `diml.Job`."""

    def event(self, what: str, **fields: Any) -> None: ...


class Account:
    """Made by every worker when its data are in memory."""

    def __init__(self, job: Logs, unit: str) -> None:
        """`unit` names what is counted, in the plural: "examples", "rows"."""
        self._job, self._unit = job, unit
        self._begun = time.perf_counter()
        self._told = -float("inf")
        self.units = 0
        self.waited_s = 0.0
        self._busy_told_s = 0.0
        self.pace: dict[str, str] = {}

    def waiting(self, call: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Make a call that waits for others; its time counts as waiting."""
        begun = time.perf_counter()
        result = call(*arguments, **named)
        self.waited_s += time.perf_counter() - begun
        return result

    def busy(self, worker: int, workers: int) -> npt.NDArray[np.float64]:
        """(workers,) zeros, but for this worker's place: its seconds of work, waiting not counted,
        since the last call. To be summed over the workers and given to `compare`."""
        seconds = time.perf_counter() - self._begun - self.waited_s
        row = np.zeros(workers)
        row[worker] = seconds - self._busy_told_s
        self._busy_told_s = seconds
        return row

    def compare(self, busy: npt.NDArray[np.float64]) -> None:
        """Know all workers' seconds of work over the same steps: `pace` tells the slowest."""
        if len(busy) > 1 and busy.sum() > 0:
            slowest = int(busy.argmax())
            ratio = float(busy[slowest] / busy.mean())
            self.pace["slowest"] = f"worker {slowest} ({ratio:.2f} x the mean)"

    def tell(self, last: bool = False) -> None:
        """Write the account into the event log: now and then, and at the end."""
        now = time.perf_counter()
        if not last and now - self._told < _TELL_EVERY_S:
            return
        self._told = now
        self._job.event(
            "work", units=self.units, unit=self._unit,
            seconds=now - self._begun, waited_s=self.waited_s,
        )  # fmt: skip


class Server(Protocol):
    """A worker's side of the parameter server: `diml.ps.ParameterServer`."""

    @property
    def worker(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def staleness_seen(self) -> Mapping[int, int]: ...


class SharedPace:
    """The workers' seconds of work, by way of the servers: where workers make no collectives."""

    def __init__(self, ps: Server, make: Callable[..., Table], account: Account) -> None:
        """`make` is `ps.table`. The table is of one size, so that a run can go on with another
        number of workers."""
        self._ps, self.account = ps, account
        self._table = make("pace", rows=_WORKERS_MAX, cols=1, dtype="float64", init="zeros")
        self._heard = np.zeros(ps.workers)

    def tell(self) -> None:
        """Every worker, at the same clocks: add the seconds since the last call."""
        if self._ps.workers > 1:
            busy = self.account.busy(self._ps.worker, self._ps.workers)
            self._table.inc(np.array([self._ps.worker]), busy[[self._ps.worker], None])

    def hear(self) -> None:
        """The worker that shows the progress: compare what has come since the last call."""
        if self._ps.workers > 1:
            total = self._table.get(np.arange(self._ps.workers))[:, 0]
            self.account.compare(total - self._heard)
            self._heard = total
        self.account.pace["staleness"] = str(max(self._ps.staleness_seen, default=0))
