"""The cells of one sparse table in one shard: only those that were ever updated take memory.

Owns cells by their number, row·cols + column, in ascending order. To its shard it is a table whose
rows are single cells; only reads are by row. Pure. Invariant: a cell that is not there is zero, and
a zero is not shown, so that taking an update back needs no removal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.kernels import rows as kernels
from diml.ps.message import Bytes, Fill, Ids, Kind, Message, Rows, frame
from diml.ps.rules import rule_of
from diml.ps.table_shard import Saved, TableShard, Touched
from diml.ps.tables import TableSpec


class TouchedCells(Touched):
    """Cells that have changed since they were last told to somebody."""

    def __init__(self) -> None:
        self._cells = np.empty(0, np.int64)

    def mark(self, ids: Ids) -> Ids:
        """Remember cells as changed; returns those that were not yet."""
        new = np.setdiff1d(ids, self._cells)
        if len(new):
            self._cells = np.union1d(self._cells, new)
        return new

    def take(self) -> Ids:
        """The changed cells, each once; they are forgotten here."""
        cells, self._cells = self._cells, np.empty(0, np.int64)
        return cells


class SparseShard(TableShard):
    """The cells of the rows [low, high): keys (n,) ascending, values (n, 1), state (n, slots)."""

    def __init__(self, spec: TableSpec, low: int, high: int) -> None:
        self.spec, self.low, self.high = spec, low, high
        self.rule = rule_of(spec)
        self._numbers = self.rule.numbers
        self.keys = np.empty(0, np.int64)
        self.values: Rows = np.zeros((0, 1), spec.numpy_dtype)
        self.state: Rows = np.zeros((0, self.rule.slots), spec.numpy_dtype)
        self.steps = self.quick_rows = 0
        self.for_replica = TouchedCells()
        self.for_readers = TouchedCells()

    def _places(self, cells: Ids) -> Ids:
        """Where cells are; those that are new are made, as zeros."""
        places = np.searchsorted(self.keys, cells)
        known = np.zeros(len(cells), np.bool_)
        inside = places < len(self.keys)
        known[inside] = self.keys[places[inside]] == cells[inside]
        if known.all():
            return places
        new = np.unique(cells[~known])
        at = np.searchsorted(self.keys, new)
        self.keys = np.insert(self.keys, at, new)
        self.values = np.insert(self.values, at, 0, axis=0)
        self.state = np.insert(self.state, at, 0, axis=0)
        return np.searchsorted(self.keys, cells)

    def _spans(self, ids: Ids) -> Ids:
        """The places of all cells of rows, in the order of the rows."""
        cols = self.spec.cols
        starts = np.searchsorted(self.keys, ids * cols)
        lengths = np.searchsorted(self.keys, (ids + 1) * cols) - starts
        ends = np.cumsum(lengths)
        shift = np.repeat(starts - ends + lengths, lengths)
        return shift + np.arange(len(shift))

    def rows_message(self, kind: Kind, array: Rows, ids: Ids, shard: int) -> Message:
        """The message that gives a replica cells of values or state."""
        buffer, its_ids, rows = frame(len(ids), len(ids), array.shape[1], array.dtype)
        its_ids[:] = ids
        rows[:] = array[self._places(ids)]
        return Message(
            kind, clock=self.steps, table=self.spec.id, ids=its_ids, values=rows, shard=shard,
            frame=buffer,
        )  # fmt: skip

    def answer_frame(self, ids: Ids) -> tuple[Bytes, Ids, Rows, Fill | None]:
        """The cells of the rows that a worker reads, but for zeros."""
        places = self._spans(ids)
        places = places[self.values[places, 0] != 0]
        buffer, cells, values = frame(len(places), len(places), 1, self.values.dtype)
        cells[:] = self.keys[places]
        values[:] = self.values[places]
        return buffer, cells, values, None

    def saved(self, ids: Ids) -> Saved:
        """A copy of cells as they are now."""
        places = self._places(ids)
        return Saved(self.spec.id, ids, self.values[places], self.state[places], self.steps)

    def put(self, ids: Ids, values: Rows) -> None:
        """Set cells."""
        places = self._places(ids)
        self.values[places] = values

    def put_state(self, ids: Ids, state: Rows) -> None:
        """Set the rule's state of cells."""
        places = self._places(ids)
        self.state[places] = state

    def apply(self, ids: Ids, updates: Rows) -> None:
        """One step of the rule."""
        self.steps += 1
        places = self._places(ids)
        self.rule.kernel(self.values, self.state, 0, places, updates, self.steps, self._numbers)

    def _apply_sum(self, messages: list[Message]) -> None:
        cells, places = np.unique(
            np.concatenate([message.ids for message in messages]), return_inverse=True
        )
        sums = np.zeros((len(cells), 1), self.values.dtype)
        values = np.concatenate([message.values for message in messages])
        kernels.scatter_add(sums, 0, places, values)
        self.apply(cells, sums)

    def tree(self) -> dict[str, Any]:
        """All of it, as a state tree."""
        return {**super().tree(), "keys": self.keys}

    def load(self, tree: dict[str, Any]) -> int:
        """Take the cells that another shard's tree and this one share; the number of rows."""
        keys: NDArray[np.int64] = tree["keys"]
        cols = self.spec.cols
        first, last = np.searchsorted(keys, (self.low * cols, self.high * cols))
        self.put(keys[first:last], tree["values"][first:last])
        self.put_state(keys[first:last], tree["state"][first:last])
        self.steps = max(self.steps, tree["steps"])
        return max(0, min(self.high, int(tree["high"])) - max(self.low, int(tree["low"])))
