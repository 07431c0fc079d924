"""What a server does with each message: decide, and say what to send. Pure.

Owns the order of things at one shard: what is buffered, applied, replicated, acknowledged and
shown. Must not know MPI, time or how rows are stored. The driver calls `handle` for each message
from a worker, `committed` for each answer of a replica, and `flush` whenever nothing is waiting
(and now and then where that never comes). An answer to a GET acknowledges by the way.

Invariants (design: "The parameter server, exactly once"): between the first change after a commit
and the last replica's COMMITTED nothing is acknowledged or shown, so whatever a worker has seen
survives this server. While a commit is on its way, messages wait in `_deferred`, so that rows
and ledger cannot move between the two, but for updates of a clock that the replicas are told of
themselves (`_close`). Each (worker, clock, n) is applied once.
"""

from __future__ import annotations

import json
from collections import deque

import numpy as np
from numpy.typing import NDArray

from diml.errors import Misuse
from diml.ps.consistency import Consistency, parse_consistency
from diml.ps.message import (
    NO_IDS,
    Address,
    Flag,
    Kind,
    Message,
    Send,
    blob_rows,
    text_of,
    text_rows,
    whole,
)
from diml.ps.saving import Nowhere, Saving, Storage
from diml.ps.serve_words import AT_ONCE, BY_CLOCK, LEFT
from diml.ps.shard import CLOCK, Closing, Shard
from diml.ps.tables import TableSpec

# Access by name, or to a set, costs as much as what is done with a message's kind.
_WHO, _GET, _UPDATE, _LOCAL = Kind.WHO, Kind.GET, Kind.UPDATE, Kind.LOCAL
_OF_SAVING = frozenset({Kind.CHECK, Kind.SAVE, Kind.RECALL})
# From so many bytes of rows on an update is passed on by itself to a replica that is near.
LEAST_BYTES = 1 << 16


class ServerCore:
    """The server of one shard.

    Args:
        shard: its content.
        replicas: who must hold every change before it is shown; empty: nobody.
        resume: by worker, the clock where a process that opens as that worker goes on.
        storage: where snapshots of it go.
        not_before: no snapshot is made at an earlier clock.
    """

    def __init__(
        self,
        shard: Shard,
        replicas: tuple[Address, ...],
        resume: tuple[int, ...],
        storage: Storage | None = None,
        not_before: int = 0,
    ) -> None:
        self.shard = shard
        self._saving = Saving(shard, storage or Nowhere(), not_before, bool(replicas))
        self.replicas = replicas
        self.near = False  # whether the replica holds at once what it is told
        self._resume = resume
        self._consistency: Consistency | None = None
        # ESSP: by worker and table, flags of the rows that it reads; the clock of the last push.
        self._readers: dict[tuple[int, int], NDArray[np.bool_]] = {}
        self._pushed = shard.closed
        self._configure()
        self._staged = False
        self._waiting: set[Address] = set()
        # What replicas are to be told at once, and what of it is yet to be done to the rows here.
        self._commits: list[Send] = []
        self._closing: list[Closing] = []
        self._deferred: deque[Message] = deque()
        self._parked: list[Message] = []
        self._replies: list[Send] = []
        # By worker, whether it has yet to be told what is applied.
        self.owed = bytearray(shard.workers)
        # Whether a worker has said that it waits for its acknowledgement.
        self._awaited = False
        self._workers = [Address("worker", worker) for worker in range(shard.workers)]
        # BSP: the open clock's updates by worker, the next n of each, and who has finished it.
        self._buffers: list[list[Message]] = [[] for _ in range(shard.workers)]
        self._finished: set[int] = set()

    def _configure(self) -> None:
        if self.shard.config:
            self._consistency = parse_consistency(self.shard.config, 0)
        buffered = self._consistency is not None and self._consistency.buffered
        self.shard.track = bool(self.replicas)
        self.shard.push = self._consistency is not None and self._consistency.model == "essp"
        self.shard.undoable = buffered and self.shard.shards > 1

    # Messages of workers ---------------------------------------------------------------------

    def handle(self, message: Message) -> list[Send]:
        """Take a worker's message; returns what can be sent at once."""
        if message.kind is _WHO:
            late = Message(Kind.LATE, request=message.request, values=text_rows(self._late()))
            return [Send(self._workers[message.worker], late)]
        if self._waiting:
            self._deferred.append(message)
            return []
        self._process(message)
        return self._released()

    def _process(self, message: Message) -> None:
        kind = message.kind
        if kind is _GET:
            self._parked.append(message)
        elif kind is _UPDATE or kind is _LOCAL:
            assert self._consistency is not None, f"{message} before OPEN"
            if self._consistency.buffered:
                self._buffer(message)
            else:
                self._apply(message)
        elif kind in _OF_SAVING:
            for question, answer in self._saving.handle(message):
                self._reply(question, answer)
            if self._saving.mirror is not None:
                self._replies += [Send(replica, self._saving.mirror) for replica in self.replicas]
                self._saving.mirror = None
        else:
            self._set_up(message)

    def _set_up(self, message: Message) -> None:
        """OPEN and DEFINE: idempotent, refused where they contradict what is there."""
        try:
            if message.kind is Kind.OPEN:
                reply = self._open(message)
            else:
                assert message.kind is Kind.DEFINE, f"a server cannot handle {message}"
                if self.shard.define(TableSpec.from_json(text_of(message))):
                    self._stage()
                reply = Message(Kind.DEFINED)
        except Misuse as error:
            reply = Message(Kind.REFUSED, values=text_rows(str(error)))
        self._reply(message, reply)

    def _open(self, message: Message) -> Message:
        config = str(json.loads(text_of(message))["consistency"])
        if not self.shard.config:
            self.shard.config = config
            self._configure()
            self._stage()
        elif self.shard.config != config:
            raise Misuse(
                f"worker {message.worker} opens the parameter server with consistency {config}, "
                f"another worker with {self.shard.config}"
            )
        clock = self._resume[message.worker]
        local = self.shard.local_at(message.worker, clock)
        if local is None:
            return Message(Kind.OPENED, clock=clock)
        return Message(Kind.OPENED, clock=clock, n=local[0], values=blob_rows(local[1]))

    def _apply(self, message: Message) -> None:
        """SSP and ASP: apply at once what was not applied, and remember who to acknowledge."""
        worker, last = message.worker, bool(message.flags & Flag.LAST)
        clock, n, _ = self.shard.ledger[worker].tolist()
        if last or message.flags & Flag.ACK:
            self.owed[worker] = True
            self._awaited = self._awaited or bool(message.flags & Flag.ACK)
        if (message.clock, message.n) < (clock, n):
            if not (last and message.clock == clock):
                return
            # A replacement that reads fresher rows may send less; its clock ends all the same, and
            # its own state (LOCAL) is that of the clock.
            message = message._replace(ids=NO_IDS, n=n)
        assert message.clock == clock, f"{message} leaves out clocks from {clock} on"
        large = self.near and not self._staged and message.values.nbytes >= LEAST_BYTES
        self._stage()
        if large and (closing := self.shard.begin_apply(message, last)):
            self._closing = closing
            self._commits += self._commit(self.shard.passed_on(closing))
        else:
            self.shard.apply(message, last)

    def _buffer(self, message: Message) -> None:
        """BSP: keep until all workers have finished the clock, then apply all in worker order."""
        worker, closed = message.worker, self.shard.closed
        if message.clock < closed:
            self.owed[worker] = True
            return
        assert message.clock == closed, f"{message} at clock {closed}"
        assert worker not in self._finished, f"{message} after the end of the clock"
        self._buffers[worker].append(message)
        if not message.flags & Flag.LAST:
            return
        self._finished.add(worker)
        if len(self._finished) == self.shard.workers:
            self._close([message for buffer in self._buffers for message in buffer])
            self._buffers = [[] for _ in range(self.shard.workers)]
            self._finished = set()
            self.owed[:] = b"\1" * self.shard.workers

    def _close(self, updates: list[Message]) -> None:
        """Apply a clock; where the updates themselves can go to the replicas, once they are on
        their way, so that both are done at the same time."""
        alone = not self._staged
        self._stage()
        closing = self.shard.end_clock(updates, alone and bool(self.replicas))
        passed_on = self.shard.passed_on(closing) if self.replicas and alone else []
        if not passed_on:
            self.shard.apply_clock(closing)
            return
        self._closing = closing
        self._commits += self._commit(passed_on)

    # Commits ---------------------------------------------------------------------------------

    def _stage(self) -> None:
        """The content changes: nothing is shown before the next commit."""
        if not self._staged:
            self._staged = True
            self.shard.version += 1
        if not self.replicas:
            self._staged = False

    def flush(self) -> list[Send]:
        """Start to replicate what has changed since the last commit, if anything has; else say
        the acknowledgements that no answer has carried."""
        self.settle()
        if self._waiting:
            return []
        if not self._staged:
            return self._acknowledgements() if any(self.owed) else []
        return self._commit([])

    def _commit(self, passed_on: list[Message]) -> list[Send]:
        """Tell the replicas what has changed, and wait for them."""
        self._staged = False
        self._waiting = set(self.replicas)
        parts = self.shard.changes(passed_on)
        return [Send(replica, part) for replica in self.replicas for part in parts]

    def settle(self) -> None:
        """Do to the rows what the replicas have been told of already."""
        if self._closing:
            closing, self._closing = self._closing, []
            self.shard.apply_clock(closing)

    def committed(self, replica: Address, version: int) -> list[Send]:
        """A replica holds a commit. Once all do, it is shown, and what waited is taken up."""
        assert version == self.shard.version, f"{replica} committed {version}"
        self.settle()
        self._waiting.discard(replica)
        if self._waiting:
            return []
        sends = self._released()
        if self._deferred or self._awaited:
            sends += self._acknowledgements()
        if self._deferred:
            # Before what waited changes rows.
            sends = [Send(to, whole(message)) for to, message in sends]
        while self._deferred and not self._waiting:
            self._process(self._deferred.popleft())
        return sends + self._released()

    def _reply(self, request: Message, reply: Message) -> None:
        to = self._workers[request.worker]
        if reply.request != request.request:
            reply = reply._replace(request=request.request)
        self._replies.append(Send(to, reply))

    def _released(self) -> list[Send]:
        """All that may be said now: nothing to workers while a change is not safe yet."""
        if self._staged or self._waiting:
            commits, self._commits = self._commits, []
            return commits
        if self.shard.push and self.shard.closed > self._pushed:
            self._replies += self._pushes()
        if not self._parked and not self._replies:
            return []
        parked, self._parked = self._parked, []
        for message in parked:
            exact = message.flags & Flag.EXACT
            if self.readable(message.clock, self.shard.closed, exact):
                self._reply(message, self._values(message))
            else:
                self._parked.append(message)
        sends, self._replies = self._replies, []
        return sends

    def _pushes(self) -> list[Send]:
        """The clock has moved: what changed of the rows that each worker reads. The last message
        to a worker tells it that it has all up to this clock."""
        closed = self._pushed = self.shard.closed
        fresh = {key: table.for_readers.take() for key, table in self.shard.tables.items()}
        sends = []
        for worker, to in enumerate(self._workers):
            own = {key: flags for (reader, key), flags in self._readers.items() if reader == worker}
            if not own:
                continue
            clock, n, _ = self.shard.ledger[worker].tolist()
            messages = []
            for key, flags in own.items():
                table = self.shard.tables[key]
                ids = fresh[key][flags[fresh[key] - table.low]]
                if len(ids):
                    rows = table.rows_message(Kind.PUSHED, table.values, ids, 0)
                    messages.append(rows._replace(worker=worker, clock=closed, n=n, mark=clock))
            if not messages:
                messages = [Message(Kind.PUSHED, worker, closed, n, mark=clock)]
            messages[-1] = messages[-1]._replace(flags=Flag.LAST)
            sends += [Send(to, message) for message in messages]
        return sends

    def _acknowledgements(self) -> list[Send]:
        workers = [worker for worker, owed in enumerate(self.owed) if owed]
        self.owed[:] = bytes(len(self.owed))
        self._awaited = False
        ledger = self.shard.ledger
        return [
            Send(self._workers[worker], Message(Kind.ACK, worker, *ledger[worker, :2].tolist()))
            for worker in workers
        ]

    def readable(self, clock: int, closed: int, exact: int = Flag.NONE) -> bool:
        """Whether a read at `clock` may be answered once all have finished `closed` clocks."""
        if exact:
            return closed >= clock
        assert self._consistency is not None, "a read before OPEN"
        return self._consistency.readable(clock, closed)

    @property
    def answers_at_once(self) -> bool:
        """Whether nothing stands before the answer to a read (see `diml.ps.quick_serve`)."""
        before = self._staged or self._waiting or self._parked or self._replies or self._closing
        return not (before or self.shard.push or self._consistency is None)

    @property
    def updates_at_once(self) -> int:
        """Where that is so, what can be done with an update that the replica holds already (see
        `diml.ps.serve_words`)."""
        if self.shard.undoable:
            return LEFT
        assert self._consistency is not None, "an update before OPEN"
        if not self._consistency.buffered:
            return AT_ONCE
        return LEFT if self.shard.workers > 1 or self._buffers[0] else BY_CLOCK

    @property
    def lag_clocks(self) -> int:
        """Clocks by which a read may be ahead of the slowest worker."""
        assert self._consistency is not None, "a read before OPEN"
        return self._consistency.lag_clocks

    def _values(self, message: Message) -> Message:
        """The rows that a GET asks for, stamped with the clock of the slowest worker."""
        worker = message.worker
        # The answer says what an acknowledgement would.
        self.owed[worker] = False
        clock, n, _ = self.shard.ledger[worker].tolist()
        closed, request = self.shard.closed, message.request
        if not len(message.ids):
            return Message(Kind.VALUES, worker, closed, n, mark=clock, request=request)
        table = self.shard.tables[message.table]
        if self.shard.push and not table.spec.sparse:
            nobody = np.zeros(table.high - table.low, np.bool_)
            flags = self._readers.setdefault((worker, message.table), nobody)
            flags[message.ids - table.low] = True
        buffer, ids, rows, fill = table.answer_frame(message.ids)
        return Message(
            Kind.VALUES, worker, closed, n, 0, ids, rows, mark=clock, request=request,
            frame=buffer, fill=fill,
        )  # fmt: skip

    @property
    def may_linger(self) -> bool:
        """Whether a flush would only say acknowledgements that nobody is known to wait for: the
        answer to a question that comes soon says them without a message of their own."""
        pressing = self._staged or self._closing or self._awaited
        return any(self.owed) and not pressing

    # For those who watch ---------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing waits for a replica or for a flush."""
        return not self._waiting and not self._staged and not any(self.owed)

    def _late(self) -> str:
        """Who keeps the others waiting, in words."""
        if self._waiting:
            return ", ".join(f"{place.role} {place.number}" for place in sorted(self._waiting))
        clocks = [int(clock) for clock in self.shard.ledger[:, CLOCK]]
        if self._consistency is not None and self._consistency.buffered:
            clocks = [clock + (worker in self._finished) for worker, clock in enumerate(clocks)]
        slow = [worker for worker, clock in enumerate(clocks) if clock == min(clocks)]
        return f"worker {', '.join(map(str, slow))} at clock {min(clocks)}"
