"""A shard as it goes to the disk, and shards made anew from what was read there.

Owns the content of the pieces. Pure. Must not know files. Invariant: rows that are not in the
pieces are an error, never initial values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from diml.checkpoint.manifest import Identity
from diml.errors import CorruptState
from diml.ps.message import Bytes
from diml.ps.shard import ACKNOWLEDGED, CLOCK, Shard
from diml.ps.tables import TableSpec

Tree = dict[str, Any]


class Snapshot(NamedTuple):
    """What a server keeps at a checkpoint: its shard (not copied), the clock, the states of the
    workers that are at home here, and the facts that tell the job from others."""

    shard: Shard
    clock: int
    states: Mapping[int, Bytes]
    facts: Mapping[str, str]

    def to_tree(self) -> Tree:
        """The piece of this server, as a state tree."""
        tables = [table.tree() for table in self.shard.tables.values()]
        return {"tables": tables, "locals": dict(self.states)}

    def outline(self) -> Tree:
        """The piece that only the first server writes."""
        return {"workers": self.shard.workers, "uses_local": bool(self.states)}


@dataclass(frozen=True, slots=True)
class Origin:
    """The checkpoint that a run goes on from.

    Attributes:
        clock: clocks that every worker had finished.
        workers: how many wrote it.
        uses_local: whether they had states of their own.
        identity: whose it is.
    """

    clock: int
    workers: int
    uses_local: bool
    identity: Identity


class Assembly:
    """A shard of this run, made of the pieces of a checkpoint."""

    def __init__(self, shard: Shard, origin: Origin) -> None:
        self.shard, self._origin = shard, origin
        self._missing: dict[int, int] = {}
        shard.ledger[:, CLOCK] = shard.ledger[:, ACKNOWLEDGED] = origin.clock
        shard.version = 1

    def add(self, tree: Tree) -> None:
        """Take what this shard needs of a server's piece; it is copied."""
        shard = self.shard
        for item in tree["tables"]:
            spec = TableSpec.from_json(item["spec"])
            if shard.define(spec):
                self._missing[spec.id] = shard.tables[spec.id].high - shard.tables[spec.id].low
            self._missing[spec.id] -= shard.tables[spec.id].load(item)
        for worker, state in tree["locals"].items():
            if worker % shard.shards == shard.index:
                shard.resumed[worker] = state.copy()

    def finish(self) -> Shard:
        """The whole shard. Raises CorruptState, naming the table, if rows were in no piece."""
        shard, origin = self.shard, self._origin
        for key, missing in self._missing.items():
            if missing:
                spec = shard.tables[key].spec
                raise CorruptState(f"{missing} rows of table {spec.name!r} are in no piece of it")
        if origin.workers == shard.workers:
            for worker, state in shard.resumed.items():
                shard.locals[worker] = {origin.clock: state}
        return shard
