"""The parameter server as a worker's program sees it: tables, clocks, and waiting.

Owns the public calls, the checks of what a caller gives, and every wait with its deadline. Must
not know how servers store or recover anything: that is the cores' business. A call that meets a
death recovers and goes on; the hook of `diml.ps.node` sends again what has to be.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diml.checkpoint.codec import decode, encode
from diml.errors import DeadlineExceeded, Misuse, PeerFailed
from diml.kernels.rows import first_outside
from diml.ps.client_core import ClientCore
from diml.ps.consistency import Consistency
from diml.ps.message import Ids, Rows, Send, text_of
from diml.ps.port import Port
from diml.ps.rules import rule_of
from diml.ps.tables import TableSpec, same_definition, spec_of_init

# An MPI message counts its bytes in an int.
_MESSAGE_BYTES_MAX = 2**31 - 2**20
_WHO_TIMEOUT_S = 5.0

Drill = Callable[[int, int, str], None]
Event = Callable[..., None]


class Table:
    """Rows of parameters spread over the servers. Made by `ParameterServer.table`."""

    def __init__(self, server: ParameterServer, spec: TableSpec) -> None:
        self._server, self._spec = server, spec

    name = property(lambda self: self._spec.name, doc="Its name.")
    rows = property(lambda self: self._spec.rows, doc="Number of rows.")
    cols = property(lambda self: self._spec.cols, doc="Numbers in a row.")
    dtype = property(lambda self: self._spec.numpy_dtype, doc="NumPy dtype of the rows.")

    def get(self, ids: ArrayLike) -> NDArray[Any]:
        """Rows as (len(ids), cols), the caller's own: with all updates that the bound on
        staleness demands, and all of this worker's.

        Waits for slower workers where the bound demands it. Raises Misuse for ids that are not
        whole numbers in 0..rows-1, DeadlineExceeded naming who is late.
        """
        return self._server.read(self._spec, self._checked_ids(ids))

    def inc(self, ids: ArrayLike, deltas: ArrayLike) -> None:
        """Add `deltas` (len(ids), cols) to rows; ids may repeat. Visible here at once, to others
        once this worker's clock has ended. Both arrays are copied.

        Raises Misuse for bad ids, another shape, or numbers that the table's dtype cannot hold.
        """
        checked = self._checked_ids(ids)
        self._server.write(self._spec, checked, self._checked_deltas(checked, deltas))

    def _checked_ids(self, ids: ArrayLike) -> Ids:
        array = np.asarray(ids)
        if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
            raise Misuse(
                f"table {self.name!r}: ids are {array.dtype} of shape {array.shape}, "
                "not a list of whole numbers"
            )
        checked = np.ascontiguousarray(array, np.int64)
        bad = first_outside(checked, self.rows)
        if bad >= 0:
            raise Misuse(f"table {self.name!r} has rows 0..{self.rows - 1}, not {array[bad]}")
        if len(checked) * (8 + self.cols * self.dtype.itemsize) > _MESSAGE_BYTES_MAX:
            raise Misuse(f"table {self.name!r}: {len(checked)} rows are too many for one call")
        return checked

    def _checked_deltas(self, ids: Ids, deltas: ArrayLike) -> NDArray[Any]:
        array = np.asarray(deltas)
        if array.shape != (len(ids), self.cols):
            raise Misuse(
                f"table {self.name!r}: deltas have shape {array.shape}, "
                f"not {(len(ids), self.cols)} for {len(ids)} rows of {self.cols}"
            )
        if not np.can_cast(array.dtype, self.dtype, "same_kind"):
            raise Misuse(f"table {self.name!r}: {array.dtype} deltas for rows of {self.dtype}")
        if self._server.reject_nonfinite and not np.isfinite(array).all():
            rows = np.unique(ids[~np.isfinite(array).all(axis=1)])
            some = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
            raise Misuse(f"table {self.name!r}: updates that are not finite, of rows {some}")
        return array


class ParameterServer:
    """One worker's access to all tables. Made by `job.parameter_server`.

    Attributes:
        worker, workers: this worker's index, and how many there are.
        local: after a replacement, the newest state given to `clock(local=...)` up to
            `clock_now`; else None.
        local_clock: the clock that `local` is of.
        staleness_seen: how many reads have seen which staleness.
        reject_nonfinite: whether updates with NaN or infinity are refused.
    """

    def __init__(
        self,
        port: Port,
        core: ClientCore,
        workers: int,
        *,
        deadline_s: float,
        seed: int,
        reject_nonfinite: bool,
        drill: Drill,
        event: Event,
    ) -> None:
        self._port, self._core = port, core
        self._deadline_s, self._seed = deadline_s, seed
        self._drill, self._event = drill, event
        self._tables: dict[int, Table] = {}
        self._calls = 0
        self._closed = False
        self.worker, self.workers = core.worker, workers
        self.reject_nonfinite = reject_nonfinite
        self.staleness_seen: Counter[int] = Counter()
        self.local: Any = None
        self.local_clock = 0

    def open(self) -> None:
        """Learn where to go on; called once, by the node. Raises Misuse if workers disagree."""
        request, sends = self._core.open()
        self._ask(request, sends, "opening the parameter server")
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
        **options: float,
    ) -> Table:
        """The table of that name, made if it is not there; every worker may ask for it.

        Args:
            init: "zeros", a number, ("uniform", low, high) or ("normal", mean, deviation); drawn
                by seed, table and row, whatever the number of servers and workers.
            rule, options: what the server does with an update (see `diml.ps.rules`).
            seed: default: that of the job.

        Raises Misuse if it is there with another definition, naming both.
        """
        spec = TableSpec(
            name, rows, cols, str(np.dtype(dtype)), spec_of_init(init),
            self._seed if seed is None else seed, rule, tuple(sorted(options.items())),
        )  # fmt: skip
        rule_of(spec)
        if spec.id in self._tables:
            same_definition(self._core.specs[spec.id], spec)
            return self._tables[spec.id]
        request, sends = self._core.define(spec)
        self._ask(request, sends, f"making table {name!r}")
        self._core.defined(spec, request)
        self._tables[spec.id] = Table(self, spec)
        return self._tables[spec.id]

    def read(self, spec: TableSpec, ids: Ids) -> Rows:
        """Rows of checked ids; `Table.get` is the public way."""
        self._begin_call()
        request, sends, pieces = self._core.get(spec, ids)
        self._ask(request, sends, f"reading table {spec.name!r}")
        rows, slowest = self._core.rows_of(spec, ids, request, pieces)
        staleness = max(0, self._core.clock - slowest)
        assert self._core.consistency.readable(self._core.clock, slowest), f"stale by {staleness}"
        self.staleness_seen[staleness] += 1
        self._end_call()
        return rows

    def write(self, spec: TableSpec, ids: Ids, deltas: Rows) -> None:
        """Remember a checked update; `Table.inc` is the public way."""
        self._begin_call()
        self._core.update(spec, ids, deltas)
        self._end_call()

    def clock(self, local: Any = None, wait: bool = False) -> None:
        """End this worker's clock: its updates go to the servers, atomically with its own state.

        Waits only for a slow acknowledgement of earlier clocks (one under BSP, staleness + 2
        under SSP), or with `wait` until the servers have acknowledged this one too.

        Args:
            local: this worker's own state (see `job.checkpoint` for what it may hold); a
                replacement finds it as `ps.local`.
        """
        state = None if local is None else encode(local, "local")
        self._begin_call()
        self._wait(lambda: self._core.may_clock, "clock()", self._core.behind)
        self._post(self._core.finish_clock(state))
        if wait:
            self._wait(lambda: self._core.all_acknowledged, "clock()", self._core.behind)
        self._drill(self._core.clock - 1, self._calls, "after")
        self._calls = 0

    def barrier(self) -> None:
        """Wait until every worker has finished as many clocks as this one: from then on reads
        here see all of their updates. Raises Misuse if updates wait for a `clock()`."""
        self._refuse_pending("barrier()")
        self._begin_call()
        request, sends = self._core.synchronise()
        self._ask(request, sends, "barrier()")
        self._core.answers(request)
        self._end_call()

    def close(self) -> None:
        """See every update to its acknowledgement. Idempotent; called when the job ends.

        Raises Misuse if updates would be lost because no `clock()` has sent them.
        """
        if self._closed:
            return
        self._refuse_pending("the end of the job")
        self._wait(lambda: self._core.all_acknowledged, "the last clock", self._core.behind)
        self._closed = True
        seen = {str(staleness): n for staleness, n in sorted(self.staleness_seen.items())}
        self._event("staleness", bound=self.consistency.staleness, reads=seen)

    def _refuse_pending(self, what: str) -> None:
        names = self._core.has_pending
        if names:
            tables = ", ".join(map(repr, names))
            raise Misuse(f"{what} while updates of {tables} still wait for a clock()")

    # Calls and waits -------------------------------------------------------------------------

    def _begin_call(self) -> None:
        self._drill(self._core.clock, self._calls, "entry")

    def _end_call(self) -> None:
        self._drill(self._core.clock, self._calls, "after")
        self._calls += 1

    def _post(self, sends: list[Send]) -> None:
        """Send; after a death the hook has sent again what was not."""
        try:
            self._port.post(sends)
            self._drill(self._core.clock, self._calls, "inside")
        except PeerFailed:
            self._port.recover()

    def _ask(self, request: int, sends: list[Send], what: str) -> None:
        """Send a question and wait for all its answers."""
        self._post(sends)
        core = self._core
        self._wait(lambda: core.done(request), what, lambda: core.silent(request))

    def _wait(self, ready: Callable[[], bool], what: str, silent: Callable[[], list[int]]) -> None:
        """Take what comes until `ready`. `silent` says which servers are waited for."""
        begun = 0.0
        while not ready():
            if not self._take(1.0):
                begun = begun or time.monotonic()
                if time.monotonic() - begun > self._deadline_s:
                    raise DeadlineExceeded(self._late(what, silent()))

    def _take(self, timeout_s: float) -> bool:
        """Handle the next message; False if none came in time. Recovers from a death."""
        try:
            found = self._port.receive(timeout_s)
        except PeerFailed:
            self._port.recover()
            return True
        if found is not None:
            self._core.handle(found[0].number, found[1])
        return found is not None

    def _late(self, what: str, servers: list[int]) -> str:
        """An error's words: what the silent servers wait for, as far as they still say."""
        where = f"{what} of worker {self.worker} at clock {self._core.clock}"
        request, sends = self._core.ask_who_is_late(servers)
        self._post(sends)
        end = time.monotonic() + min(_WHO_TIMEOUT_S, self._deadline_s)
        while not self._core.done(request) and time.monotonic() < end:
            self._take(0.1)
        answers = self._core.answers(request)
        words = [f"server {s} waits for {text_of(answers[s])}" for s in sorted(answers)]
        words += [f"server {s} does not answer" for s in servers if s not in answers]
        return f"{where} waited {self._deadline_s:g} s: {'; '.join(words)}"
