"""The parameter server as a worker's program sees it: clocks, and the making of tables and vectors.

Owns the public calls but for those of a table and of a vector (`diml.ps.table`, `diml.ps.kv`). Must
not know how servers store or recover anything, nor how messages travel: that is the cores' and the
session's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diml.checkpoint.codec import decode, encode
from diml.errors import Misuse
from diml.ps.consistency import Consistency
from diml.ps.kv import KeyValues
from diml.ps.message import Bytes
from diml.ps.private import ThreadCache
from diml.ps.rules import rule_of
from diml.ps.saves import Resumed, Saves
from diml.ps.session import Session
from diml.ps.table import Table
from diml.ps.tables import TableSpec, same_definition, spec_of_init

Event = Callable[..., None]


class ParameterServer:
    """One worker's access to all tables. Made by `job.parameter_server`.

    Threads of one worker may call tables and vectors; they take turns, and their updates go with
    the worker's next `clock()`, which one thread calls for all. Where bits matter, let the order
    of updates be fixed.

    Attributes:
        worker, workers: this worker's index, and how many there are.
        local: after a replacement, the newest state given to `clock(local=...)` up to
            `clock_now`; else None.
        local_clock: the clock that `local` is of.
        staleness_seen: how many reads have seen which staleness.
        reject_nonfinite: whether updates with NaN or infinity are refused.
        thread_caches: those of this worker's threads, flushed at each clock in this order.
    """

    def __init__(
        self,
        session: Session,
        workers: int,
        seed: int,
        reject_nonfinite: bool,
        event: Event,
        saves: Saves | None = None,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        self._session, self._core = session, session.core
        self._saves, self._committed = saves, committed
        self._seed, self._event = seed, event
        self._tables: dict[int, Table | KeyValues] = {}
        self._closed = False
        self.worker, self.workers = session.core.worker, workers
        self.reject_nonfinite = reject_nonfinite
        self.staleness_seen: Counter[int] = session.seen
        self.thread_caches: list[ThreadCache] = []
        self.local: Any = None
        self.local_clock = 0

    def open(self) -> None:
        """Learn where to go on; called once, by the node. Raises Misuse if workers disagree."""
        request, sends = self._core.open()
        self._session.ask(request, sends, "opening the parameter server")
        found = self._core.opened(request)
        if found is not None:
            self.local_clock = found[0]
            self.local = decode(found[1], copy=True)

    def __enter__(self) -> ParameterServer:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing: the job itself sees the updates to their end."""

    @property
    def consistency(self) -> Consistency:
        """The model, and its bound on staleness."""
        return self._core.consistency

    @property
    def clock_now(self) -> int:
        """Clocks that this worker has finished: after a replacement, where to go on."""
        return self._core.clock

    def table(
        self,
        name: str,
        rows: int,
        cols: int,
        dtype: str = "float32",
        init: Any = "zeros",
        rule: str = "add",
        seed: int | None = None,
        sparse: bool = False,
        **options: float,
    ) -> Table:
        """The table of that name, made if it is not there; every worker may ask for it.

        Args:
            init: "zeros", a number, ("uniform", low, high) or ("normal", mean, deviation); drawn
                by seed, table and row, whatever the number of servers and workers.
            rule, options: what the server does with an update (see `diml.ps.rules`).
            seed: default: that of the job.
            sparse: keep only cells that were updated; see `get_sparse` and `inc_sparse`.

        Raises Misuse if it is there with another definition, naming both.
        """
        spec = self._spec(name, rows, cols, dtype, init, rule, seed, options, sparse)
        found = self._there(spec) or Table(self, self._session, spec)
        if not isinstance(found, Table):
            raise Misuse(f"{name!r} is a key-value vector, not a table")
        self._tables[spec.id] = found
        return found

    def kv(
        self,
        name: str,
        size: int,
        width: int = 1,
        dtype: str = "float32",
        init: Any = "zeros",
        rule: str = "sgd",
        seed: int | None = None,
        **options: float,
    ) -> KeyValues:
        """The key-value vector of that name: keys 0..size-1, `width` numbers each; else as
        `table`. Raises Misuse where the name is a table's."""
        spec = self._spec(name, size, width, dtype, init, rule, seed, options)
        found = self._there(spec, cached=False) or KeyValues(
            self._session, spec, self.reject_nonfinite, self.staleness_seen
        )
        if not isinstance(found, KeyValues):
            raise Misuse(f"{name!r} is a table, not a key-value vector")
        self._tables[spec.id] = found
        return found

    def _spec(
        self, name: str, rows: int, cols: int, dtype: Any, init: Any, rule: str,
        seed: int | None, options: dict[str, float], sparse: bool = False,
    ) -> TableSpec:  # fmt: skip
        """A definition, checked here before any server hears of it."""
        seed = self._seed if seed is None else seed
        # NumPy's whole numbers, as of `ids.max() + 1`, are as good as Python's.
        rows, cols, seed = (int(x) if isinstance(x, np.integer) else x for x in (rows, cols, seed))
        numbers = tuple(sorted(options.items()))
        try:
            type_name = str(np.dtype(dtype))
        except TypeError:
            type_name = str(dtype)  # which the definition refuses
        start = spec_of_init(init)
        spec = TableSpec(name, rows, cols, type_name, start, seed, rule, numbers, sparse)
        rule_of(spec)
        return spec

    def _there(self, spec: TableSpec, cached: bool = True) -> Table | KeyValues | None:
        """What this worker has under the name already; where nothing, the servers make it."""
        if spec.id in self._tables:
            same_definition(self._core.specs[spec.id], spec)
            return self._tables[spec.id]
        request, sends = self._core.define(spec)
        self._session.ask(request, sends, f"making table {spec.name!r}")
        self._core.defined(spec, request, cached)
        return None

    def clock(self, local: Any = None, wait: bool = False) -> None:
        """End this worker's clock: its updates go to the servers, atomically with its own state.

        Waits only for a slow acknowledgement of earlier clocks (one under BSP, staleness + 2
        under SSP), or with `wait` until the servers have acknowledged this one too.

        Args:
            local: this worker's own state (see `job.checkpoint` for what it may hold); a
                replacement finds it as `ps.local`.
        """
        plain = local is None and not wait and not self.thread_caches
        if not (plain and self._session.end_clock()):
            self._end_clock(None if local is None else encode(local, "local"), wait)
        self._committed()

    def _end_clock(self, state: Bytes | None, wait: bool) -> None:
        core = self._core
        with self._session as session:
            for cache in self.thread_caches:
                cache.flush(core.update)
            if not core.all_acknowledged:
                session.take_all()
            if not core.may_clock:
                session.wait(lambda: core.may_clock, "clock()", core.behind)
            session.post(core.finish_clock(state))
            session.strike_inside()
            if wait:
                session.wait(lambda: core.all_acknowledged, "clock()", core.behind)

    def checkpoint(self, local: Any = None) -> None:
        """Come to a durable checkpoint, if the job keeps any (`--checkpoint-dir`, `diml run`).

        Every worker calls this at the same clocks, right after `clock()`. Where none is due it
        costs a message to a server and back. One that is due is decided for all alike; then the
        workers wait for the slowest, the servers copy their rows, and files are written while the
        job goes on. A stop signal (USR1, TERM) makes one at once and ends the job, status 75.

        Args:
            local: this worker's own state, or a function that makes it, called only if needed.
                None: the state given to the `clock(local=...)` that has just ended.

        Raises Misuse if rows were updated since `clock()`.
        """
        if self._saves is None:
            return
        if not self._clock_is_empty:
            raise Misuse("checkpoint() while updates wait for a clock(): call it right after one")
        self._saves.checkpoint(local)

    def go_to(self, clock: int) -> None:
        """Go on at an earlier clock than the servers have; called by the job. Raises Misuse if
        they are not as far."""
        if clock > self.clock_now:
            raise Misuse(
                f"the checkpoint of the collectives was made at clock {clock} of the parameter "
                f"server, whose rows are of clock {self.clock_now}: they do not go together"
            )
        self._core.clock = clock

    def save_now(self, write: Sequence[bool]) -> bool:
        """Have the rows of this clock written to these places; called by the job, on all workers
        at one clock. Whether they are written."""
        assert self._saves is not None
        if not self._clock_is_empty:
            raise Misuse("job.checkpoint() while updates wait for a clock()")
        return self._saves.save_now(write)

    @property
    def _clock_is_empty(self) -> bool:
        waiting = any(cache.waiting for cache in self.thread_caches)
        return self._core.clock_is_empty and not waiting

    @property
    def resumed(self) -> Resumed | None:
        """The durable checkpoint that this run goes on from; None where it began anew."""
        return self._saves.resumed if self._saves is not None else None

    def barrier(self) -> None:
        """Wait until every worker has finished as many clocks as this one: from then on reads
        here see all of their updates. Raises Misuse if updates wait for a `clock()`."""
        self._refuse_pending("barrier()")
        with self._session as session:
            session.post(self._core.send_held())
            request, sends = self._core.synchronise()
            session.ask(request, sends, "barrier()")
            self._core.synchronised(request)

    def close(self) -> None:
        """See every update to its acknowledgement. Idempotent; called when the job ends.

        Raises Misuse if updates would be lost because no `clock()` has sent them.
        """
        if self._closed:
            return
        self._refuse_pending("the end of the job")
        core = self._core
        self._session.post(core.send_held())
        self._session.wait(lambda: core.all_acknowledged, "the last clock", core.behind)
        self._closed = self._session.over = True
        seen = {str(staleness): n for staleness, n in sorted(self.staleness_seen.items())}
        bound = None if self.consistency.model == "asp" else self.consistency.staleness
        self._event("staleness", bound=bound, reads=seen)

    def _refuse_pending(self, what: str) -> None:
        names = self._core.has_pending
        if not names and any(cache.waiting for cache in self.thread_caches):
            raise Misuse(f"{what} while updates of threads still wait for a clock()")
        if names:
            tables = ", ".join(map(repr, names))
            raise Misuse(f"{what} while updates of {tables} still wait for a clock()")
