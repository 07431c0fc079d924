"""The rows that one server owns, with all that must survive with them.

Owns the content of a shard: rows, state of the rules, the ledger of what was applied, and the
workers' own states; how updates change it, what a replica must be told, and how the last clock is
taken back. Pure. Must not know who talks to whom.

Invariants: equal (version, closed) of two living copies of a shard means equal content. The
ledger names for each worker the first (clock, n) that has not been applied, and only ever names
later ones, but for `revert`. A worker's own states are kept from the newest one that all servers
have acknowledged, because a replacement never goes on from an earlier clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diml.kernels.rows import next_clock
from diml.ps.message import NO_IDS, Bytes, Ids, Kind, Message, blob_rows, text_of, text_rows
from diml.ps.rules import try_rule
from diml.ps.sparse_shard import SparseShard
from diml.ps.table_shard import Saved, TableShard
from diml.ps.tables import TableSpec, row_range, same_definition

Tree: TypeAlias = dict[str, Any]

# Columns of the ledger: the first (clock, n) not applied, and the worker's acknowledged clocks.
CLOCK, N, ACKNOWLEDGED = 0, 1, 2


class Closing(NamedTuple):
    """What the end of a clock does to one table: its updates in their order, and, where somebody
    wants to know, the rows that they change, each once. `whole`: nobody has to, because the only
    update can go to the replica as it is."""

    table: TableShard
    messages: list[Message]
    fresh: Ids
    whole: bool = False


@dataclass(slots=True)
class Shard:
    """Shard `index` of `shards`, for `workers` workers.

    Attributes:
        track: whether changes are remembered, for a replica to be told.
        push: whether changes are remembered, to be pushed to readers.
        undoable: whether the last closed clock can be taken back (there are other servers).
        version: counts changes of the content; a replica holds the version it was last told.
        config: the consistency model that the workers opened with, or "".
        ledger: (workers, 3) int64: see CLOCK, N, ACKNOWLEDGED.
        locals: by worker, its own states by clock.
        resumed: by worker of the run that this one goes on from, its state.
    """

    index: int
    shards: int
    workers: int
    track: bool = False
    push: bool = False
    undoable: bool = False
    version: int = 0
    config: str = ""
    ledger: NDArray[np.int64] = field(init=False)
    locals: dict[int, dict[int, Bytes]] = field(init=False)
    tables: dict[int, TableShard] = field(init=False, default_factory=dict)
    resumed: dict[int, Bytes] = field(init=False, default_factory=dict)
    _undo: list[Saved] | None = field(init=False, default=None)
    _new_tables: list[int] = field(init=False, default_factory=list)
    _new_locals: list[tuple[int, int]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = np.zeros((self.workers, 3), np.int64)
        self.locals = {worker: {} for worker in range(self.workers)}

    @property
    def closed(self) -> int:
        """Clocks that every worker has finished."""
        clocks: list[int] = self.ledger[:, CLOCK].tolist()
        return min(clocks)

    def define(self, spec: TableSpec) -> bool:
        """Make a table; False if it is there already. Raises Misuse if it is another one."""
        known = self.tables.get(spec.id)
        if known is not None:
            same_definition(known.spec, spec)
            return False
        try_rule(spec)
        kind = SparseShard if spec.sparse else TableShard
        self.tables[spec.id] = kind(spec, *row_range(spec.rows, self.index, self.shards))
        if self.track:
            self._new_tables.append(spec.id)
        return True

    def _keep(self, worker: int, clock: int, blob: Bytes) -> None:
        """Remember a worker's own state as it was after so many clocks."""
        self.locals[worker][clock] = blob
        if self.track:
            self._new_locals.append((worker, clock))

    def _forget(self) -> None:
        """Drop the states that no replacement can need."""
        for worker, states in self.locals.items():
            if len(states) < 2:
                continue
            acknowledged = self.ledger[worker, ACKNOWLEDGED]
            newest = max((clock for clock in states if clock <= acknowledged), default=-1)
            for clock in [clock for clock in states if clock < newest]:
                del states[clock]

    def local_at(self, worker: int, clock: int) -> tuple[int, Bytes] | None:
        """The newest state of a worker that is no newer than `clock`, with its clock."""
        fitting = [at for at in self.locals[worker] if at <= clock]
        return (max(fitting), self.locals[worker][max(fitting)]) if fitting else None

    # Updates ---------------------------------------------------------------------------------

    def apply(self, message: Message, last: bool) -> None:
        """Apply one UPDATE or LOCAL at once; `last` if the worker finishes its clock with it."""
        worker = message.worker
        if message.kind is Kind.LOCAL:
            self._keep(worker, message.clock + 1, message.values.reshape(-1))
        elif len(message.ids):
            table = self.tables[message.table]
            if self.track:
                table.for_replica.mark(message.ids)
            if self.push:
                table.for_readers.mark(message.ids)
            table.apply(message.ids, message.values)
        self._count(message, last)

    def _count(self, message: Message, last: bool) -> None:
        """Note in the ledger that an update has been applied."""
        clock, n = (message.clock + 1, 0) if last else (message.clock, message.n + 1)
        acknowledged = max(int(self.ledger[message.worker, ACKNOWLEDGED]), message.mark)
        self.ledger[message.worker] = (clock, n, acknowledged)
        self._forget()

    def begin_apply(self, message: Message, last: bool) -> list[Closing]:
        """As `apply`, of which `apply_clock` has yet to do what is returned; nothing is done, and
        returned, for what cannot be passed on as it is."""
        if self.push or not len(message.ids) or not self.tables[message.table].adds:
            return []
        self._count(message, last)
        return [Closing(self.tables[message.table], [message], NO_IDS, whole=True)]

    def took(self, updates: int) -> None:
        """So many have been applied to rows and ledger without this shard (`diml.ps.serve_words`),
        each a change of its own."""
        self.version += updates
        self._forget()

    def end_clock(self, updates: Iterable[Message], alone: bool = False) -> list[Closing]:
        """One clock of all workers, in worker order and each worker's in turn: ledger and own
        states as they are at its end, and what `apply_clock` has yet to do with each table.
        `alone`: there are no other changes since a replica was told."""
        by_table: dict[int, list[Message]] = {}
        for message in updates:
            if message.mark > self.ledger[message.worker, ACKNOWLEDGED]:
                self.ledger[message.worker, ACKNOWLEDGED] = message.mark
            if message.kind is Kind.LOCAL:
                self._keep(message.worker, message.clock + 1, message.values.reshape(-1))
            elif len(message.ids):
                by_table.setdefault(message.table, []).append(message)
        next_clock(self.ledger, CLOCK, N)
        self._forget()
        if alone and len(by_table) == 1 and not self.undoable:
            ((key, messages),) = by_table.items()
            if len(messages) == 1 and self.tables[key].adds:
                return [Closing(self.tables[key], messages, NO_IDS, whole=True)]
        closing = []
        for key in sorted(by_table):
            table, messages, fresh = self.tables[key], by_table[key], NO_IDS
            if self.track or self.undoable:
                marked = [table.for_replica.mark(message.ids) for message in messages]
                fresh = marked[0] if len(marked) == 1 else np.concatenate(marked)
                if not self.track:
                    table.for_replica.take()
            closing.append(Closing(table, messages, fresh))
        return closing

    def passed_on(self, closing: list[Closing]) -> list[Message]:
        """The updates of a clock as a replica can apply them by itself, if that is as good as to
        tell it the rows that they change: if none of these is changed twice. Else nothing."""
        for table, messages, fresh, whole in closing:
            updates = sum(len(message.ids) for message in messages)
            if not (whole or (table.adds and updates == len(fresh))):
                return []
        parts = []
        for table, messages, _, whole in closing:
            if not whole:
                table.for_replica.take()
            parts += [m._replace(kind=Kind.PASSED, flags=0, shard=self.index) for m in messages]
        return parts

    def apply_clock(self, closing: list[Closing]) -> None:
        """Change the rows as `end_clock` has said."""
        self._undo = [] if self.undoable else None
        for table, messages, fresh, _ in closing:
            if self._undo is not None:
                self._undo.append(table.saved(fresh))
            table.apply_clock(messages)

    @property
    def revertible(self) -> bool:
        """Whether the last clock can be taken back."""
        return self._undo is not None

    def revert(self) -> None:
        """Take the last closed clock back: rows, ledger and the workers' states of its end."""
        assert self._undo is not None, f"shard {self.index} cannot take clock {self.closed} back"
        for saved in reversed(self._undo):
            table = self.tables[saved.table]
            table.put(saved.ids, saved.values)
            table.put_state(saved.ids, saved.state)
            table.steps = saved.steps
        for states in self.locals.values():
            states.pop(self.closed, None)
        self.ledger[:, CLOCK] -= 1
        self._undo = None

    # What a replica is told ------------------------------------------------------------------

    def changes(self, passed_on: Sequence[Message] = ()) -> list[Message]:
        """The messages that bring a replica from the last commit to this one; COMMIT is last.
        `passed_on` are among them."""
        parts = [
            *passed_on,
            *(
                Message(
                    Kind.TABLE, shard=self.index, values=text_rows(self.tables[key].spec.to_json())
                )
                for key in self._new_tables
            ),
        ]
        for key in sorted(self.tables):
            parts += self._changed_rows(self.tables[key])
        for worker, clock in self._new_locals:
            if clock in self.locals[worker]:
                blob = blob_rows(self.locals[worker][clock])
                parts.append(Message(Kind.KEEP, worker, clock, shard=self.index, values=blob))
        self.forget_changes()
        ledger, config = self.ledger.reshape(-1).copy(), text_rows(self.config)
        commit = Message(Kind.COMMIT, shard=self.index, ids=ledger, values=config)
        return [*parts, commit._replace(mark=self.version)]

    def _changed_rows(self, table: TableShard) -> list[Message]:
        ids = table.for_replica.take()
        if not len(ids):
            return []
        parts = [table.rows_message(Kind.ROWS, table.values, ids, self.index)]
        if table.rule.slots:
            parts.append(table.rows_message(Kind.RULE, table.state, ids, self.index))
        return parts

    def forget_changes(self) -> None:
        """Start anew what a replica is to be told: it has everything so far."""
        self._new_tables, self._new_locals = [], []
        for table in self.tables.values():
            table.for_replica.take()

    def install(self, parts: list[Message], between: Callable[[], object] = lambda: None) -> None:
        """Bring a replica up to a commit; `parts` end with COMMIT. Calls `between` now and then."""
        commit = parts[-1]
        ledger = commit.ids.reshape(-1, 3)
        closes = int(ledger[:, CLOCK].min()) > self.closed
        if closes:
            self._undo = [] if self.undoable else None
        for part in parts[:-1]:
            self._install(part, closes, between)
        self.ledger[:] = ledger
        self.version = commit.mark
        self.config = text_of(commit)
        self._forget()

    def _install(self, part: Message, closes: bool, between: Callable[[], object]) -> None:
        if part.kind is Kind.TABLE:
            self.define(TableSpec.from_json(text_of(part)))
            return
        if part.kind is Kind.KEEP:
            self._keep(part.worker, part.clock, part.values.reshape(-1))
            return
        table = self.tables[part.table]
        if part.kind is Kind.ROWS:
            if closes and self._undo is not None:
                self._undo.append(table.saved(part.ids))
            table.put(part.ids, part.values)
            table.steps = part.clock
        elif part.kind is Kind.PASSED:
            if closes and self._undo is not None:
                self._undo.append(table.saved(part.ids))
            table.install(part.ids, part.values, between)
        else:
            assert part.kind is Kind.RULE, f"a replica cannot install {part}"
            table.put_state(part.ids, part.values)

    # Whole, for a transfer -------------------------------------------------------------------

    def to_tree(self) -> Tree:
        """All of it but the undo, as a state tree (see `diml.checkpoint.codec`)."""
        return {
            "place": (self.index, self.shards, self.workers),
            "version": self.version,
            "config": self.config,
            "ledger": self.ledger,
            "locals": self.locals,
            "resumed": self.resumed,
            "tables": [table.tree() for table in self.tables.values()],
        }

    @classmethod
    def from_tree(cls, tree: Tree) -> Shard:
        """A shard of its own like the one that `to_tree` described."""
        index, shards, workers = tree["place"]
        shard = cls(index, shards, workers, version=tree["version"], config=tree["config"])
        shard.ledger[:] = tree["ledger"]
        for worker, states in tree["locals"].items():
            shard.locals[worker] = {clock: blob.copy() for clock, blob in states.items()}
        shard.resumed = {worker: blob.copy() for worker, blob in tree["resumed"].items()}
        for item in tree["tables"]:
            spec = TableSpec.from_json(item["spec"])
            shard.define(spec)
            shard.tables[spec.id].load(item)
        return shard
