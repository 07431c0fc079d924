"""A server's part in durable checkpoints: whether one is made at a clock, and when all are there.

Owns the meeting of the workers at a checkpoint. Must not know files or time: it is lent a storage.

Server 0 decides once for each clock, when the first worker asks, and says the same to all; then
every worker goes to every server, and a server copies its shard when the last one has come. No
worker goes on before, so the shard holds all updates of the clocks before this one, and no other.

Invariant: a repair ends every meeting, and no clock that any worker had reached by then is decided
for, or some would wait for others who are past it.

A decision is a number: bit 0, the job stops; bit 1 + i, the checkpoint goes to place i.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from diml.checkpoint.codec import decode
from diml.ps.message import Bytes, Flag, Ids, Kind, Message, blob_rows
from diml.ps.shard import Shard
from diml.ps.snapshot import Snapshot

STOP = 1
# Decisions are kept for so many clocks: a worker further behind was not waited for.
_DECISIONS_MAX = 64


class Storage(Protocol):
    """Where a process keeps snapshots."""

    def due(self, stop: bool) -> int:
        """The decision for a clock that is asked about now."""

    def store(self, decision: int, snapshot: Snapshot, mirrored: bool) -> Bytes | None:
        """Copy a snapshot, and begin to write it where the decision says. Returns what a replica
        is to keep (`mirrored`: there is one), if anything."""

    def mirror(self, message: Message, shards: int) -> None:
        """Keep what the server of another shard, of so many, has written in its node's memory."""

    def confirm(self, clocks: Ids) -> None:
        """Every server has written the snapshots of these clocks, by place."""

    def written(self) -> Ids:
        """The newest clock that this process has written, by place."""

    def busy(self) -> bool:
        """Whether anything is still being written."""


class Nowhere:
    """The storage of a job that keeps no durable checkpoints."""

    def due(self, stop: bool) -> int:
        return 0

    def store(self, decision: int, snapshot: Snapshot, mirrored: bool) -> Bytes | None:
        raise AssertionError("no snapshot was decided for")

    def mirror(self, message: Message, shards: int) -> None:
        raise AssertionError("no snapshot was decided for")

    def confirm(self, clocks: Ids) -> None:
        return

    def written(self) -> Ids:
        return np.empty(0, np.int64)

    def busy(self) -> bool:
        return False


class Saving:
    """The meetings at one server; nothing is decided for clocks before `not_before`.

    Attributes:
        mirror: what the replicas are to keep of a snapshot that was just made.
    """

    def __init__(
        self, shard: Shard, storage: Storage, not_before: int, mirrored: bool = False
    ) -> None:
        """`mirrored`: the shard has replicas."""
        self._shard, self._storage, self._not_before = shard, storage, not_before
        self._mirrored = mirrored
        self.mirror: Message | None = None
        self._decided: dict[int, int] = {}
        self._come: dict[int, Message] = {}

    def handle(self, message: Message) -> list[tuple[Message, Message]]:
        """Take CHECK, SAVE or RECALL; returns (question, answer) for all that can be answered."""
        if message.kind is Kind.CHECK:
            asks_how_far = message.flags & Flag.EXACT
            n = self._storage.busy() if asks_how_far else self._decide(message)
            reply = Message(Kind.CHECKED, n=int(n), ids=self._storage.written())
            return [(message, reply)]
        if message.kind is Kind.RECALL:
            blob = self._shard.resumed.get(message.n)
            reply = Message(Kind.RECALLED)
            return [(message, reply if blob is None else reply._replace(values=blob_rows(blob)))]
        self._come[message.worker] = message
        saved = Message(Kind.SAVED, ids=self._storage.written())
        if passed := self._passed():
            return [(question, saved) for question in passed]
        if len(self._come) < self._shard.workers:
            return []
        questions, self._come = self._come, {}
        self._storage.confirm(message.ids)
        # Workers that do clocks again, the updates of which are here already, have no rows to keep.
        if message.clock == self._shard.closed:
            snapshot = self._snapshot(message.clock, questions)
            blob = self._storage.store(message.n, snapshot, self._mirrored)
            if blob is not None:
                self.mirror = Message(
                    Kind.MIRROR, clock=message.clock, n=message.n, ids=message.ids,
                    values=blob_rows(blob), shard=self._shard.index,
                )  # fmt: skip
        return [(question, saved) for question in questions.values()]

    def _passed(self) -> list[Message]:
        """Those who wait at a clock that another worker has left behind: nobody will come there.
        They are told to go on; what other servers may have written of that clock is not whole."""
        newest = max(question.clock for question in self._come.values())
        passed = [question for question in self._come.values() if question.clock < newest]
        for question in passed:
            del self._come[question.worker]
        return passed

    def _decide(self, message: Message) -> int:
        clock, decided = message.clock, self._decided
        if clock not in decided:
            if clock < max(self._not_before, *decided, 0):
                return 0
            decided[clock] = self._storage.due(bool(message.flags & Flag.STOP))
            if len(decided) > _DECISIONS_MAX:
                del decided[next(iter(decided))]
        return decided[clock]

    def _snapshot(self, clock: int, questions: dict[int, Message]) -> Snapshot:
        """The shard as it is, with the states that the workers brought or sent with this clock."""
        shard, states = self._shard, {}
        facts: dict[str, str] = {}
        for worker, question in questions.items():
            brought = decode(question.values.reshape(-1))
            facts = brought["facts"]
            state = brought["local"]
            if state is None:
                state = shard.locals[worker].get(clock)
            if state is not None and worker % shard.shards == shard.index:
                states[worker] = state
        return Snapshot(shard, clock, states, facts)
