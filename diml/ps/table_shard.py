"""The rows of one table in one shard: how they are read, changed, and marked as changed.

Owns rows and the state of their rule. Pure. Must not know ledgers, clocks or who asks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from diml.kernels import rows as kernels
from diml.ps.message import NO_IDS, QUICK_BYTES, Bytes, Fill, Ids, Kind, Message, Rows, frame
from diml.ps.pieces import LEAST_BYTES
from diml.ps.rules import rule_of
from diml.ps.tables import TableSpec, first_values

# A part of what a replica has time for: some 20 microseconds.
_PART_ROWS = 2000


class Saved(NamedTuple):
    """Rows of one table as they were before the last clock."""

    table: int
    ids: Ids
    values: Rows
    state: Rows
    steps: int


class Touched:
    """Rows of [low, high) that have changed since they were last told to somebody."""

    def __init__(self, low: int, high: int) -> None:
        self._low = low
        self._flags = np.zeros(high - low, np.uint8)
        self._ids: list[Ids] = []

    def mark(self, ids: Ids) -> Ids:
        """Remember rows as changed; returns those that were not yet."""
        new = np.empty(len(ids), np.int64)
        new = new[: kernels.mark_new(self._flags, self._low, ids, new)]
        if len(new):
            self._ids.append(new)
        return new

    @property
    def none(self) -> bool:
        """Whether nothing has changed."""
        return not self._ids

    def take(self) -> Ids:
        """The changed rows, each once; they are forgotten here."""
        if not self._ids:
            return np.empty(0, np.int64)
        ids = self._ids[0] if len(self._ids) == 1 else np.concatenate(self._ids)
        kernels.unmark(self._flags, self._low, ids)
        self._ids = []
        return ids


class TableShard:
    """The rows [low, high) of one table: values (n, cols), state (n, slots·cols), step count."""

    def __init__(self, spec: TableSpec, low: int, high: int) -> None:
        self.spec, self.low, self.high = spec, low, high
        self.rule = rule_of(spec)
        self._numbers = self.rule.numbers
        self.values: Rows = first_values(spec, low, high)
        self.state: Rows = np.zeros((high - low, self.rule.slots * spec.cols), spec.numpy_dtype)
        self.steps = 0
        row_bytes = spec.cols * spec.numpy_dtype.itemsize
        # How many may be read by the short way.
        self.quick_rows = 0 if self.rule.echo else QUICK_BYTES // row_bytes
        self.for_replica = Touched(low, high)
        self.for_readers = Touched(low, high)

    @property
    def adds(self) -> bool:
        """Whether an update says by itself, without the rows, what becomes of these."""
        return self.rule.additive and not self.spec.sparse

    def rows_message(self, kind: Kind, array: Rows, ids: Ids, shard: int) -> Message:
        """The message that gives a replica the rows `ids` of values or state."""
        buffer, its_ids, rows = frame(len(ids), len(ids), array.shape[1], array.dtype)
        its_ids[:] = ids
        _take(array, self.low, ids, rows)
        return Message(
            kind, clock=self.steps, table=self.spec.id, ids=its_ids, values=rows, shard=shard,
            frame=buffer,
        )  # fmt: skip

    def answer_frame(self, ids: Ids) -> tuple[Bytes, Ids, Rows, Fill | None]:
        """The rows that a worker reads, with the state that it is to bring back if the rule
        wants that: gathered straight into the frame of their message. It knows their ids. Many
        rows are gathered when the message leaves (`Fill`), before any of them changes."""
        cols = self.spec.cols
        buffer, _, rows = frame(0, len(ids), self.rule.wire_cols(cols), self.values.dtype)
        if self.rule.echo:
            rows[:, :cols] = self.values[ids - self.low]
            rows[:, cols:] = self.state[ids - self.low, :cols]
        elif rows.nbytes < LEAST_BYTES:
            _take(self.values, self.low, ids, rows)
        else:
            return buffer, NO_IDS, rows, partial(self._gather, ids, rows)
        return buffer, NO_IDS, rows, None

    def _gather(self, ids: Ids, rows: Rows, low: int, high: int) -> None:
        self.gather(ids[low:high], rows[low:high])

    def gather(self, ids: Ids, out: Rows) -> None:
        """The rows that a worker reads, where no state goes with them, into `out`."""
        _take(self.values, self.low, ids, out)

    def saved(self, ids: Ids) -> Saved:
        """A copy of rows as they are now."""
        values = np.empty((len(ids), self.values.shape[1]), self.values.dtype)
        state = np.empty((len(ids), self.state.shape[1]), self.state.dtype)
        _take(self.values, self.low, ids, values)
        _take(self.state, self.low, ids, state)
        return Saved(self.spec.id, ids, values, state, self.steps)

    def put(self, ids: Ids, values: Rows) -> None:
        """Set rows."""
        kernels.scatter(self.values, self.low, ids, values)

    def put_state(self, ids: Ids, state: Rows) -> None:
        """Set the rule's state of rows."""
        kernels.scatter(self.state, self.low, ids, state)

    def apply(self, ids: Ids, updates: Rows) -> None:
        """One step of the rule."""
        self.steps += 1
        rule, numbers = self.rule, self._numbers
        rule.kernel(self.values, self.state, self.low, ids, updates, self.steps, numbers)

    def install(self, ids: Ids, updates: Rows, between: Callable[[], object]) -> None:
        """As `apply` with a rule that adds, in short parts with `between` called after each."""
        self.steps += 1
        rule, numbers, steps = self.rule, self._numbers, self.steps
        for low in range(0, len(ids), _PART_ROWS):
            part = slice(low, low + _PART_ROWS)
            rule.kernel(self.values, self.state, self.low, ids[part], updates[part], steps, numbers)
            between()

    def apply_clock(self, messages: list[Message]) -> None:
        """One clock's updates in the order given: one by one if the rule adds, else their sum."""
        if self.rule.additive:
            for message in messages:
                self.apply(message.ids, message.values)
        else:
            self._apply_sum(messages)

    def _apply_sum(self, messages: list[Message]) -> None:
        ids = np.unique(np.concatenate([message.ids for message in messages]))
        slots = np.zeros(self.high - self.low, np.int64)
        slots[ids - self.low] = np.arange(len(ids))
        cols = self.spec.cols
        sums = np.zeros((len(ids), self.rule.wire_cols(cols)), self.values.dtype)
        for message in messages:
            kernels.sum_by_row(
                slots, self.low, message.ids, message.values[:, :cols], sums[:, :cols]
            )
        if self.rule.echo:
            # All workers of a clock have read the same rows: nothing came between.
            sums[:, cols:] = self.state[ids - self.low, :cols]
        self.apply(ids, sums)

    def tree(self) -> dict[str, Any]:
        """All of it, as a state tree (see `diml.checkpoint.codec`)."""
        return {
            "spec": self.spec.to_json(),
            "low": self.low,
            "high": self.high,
            "values": self.values,
            "state": self.state,
            "steps": self.steps,
        }

    def load(self, tree: dict[str, Any]) -> int:
        """Take the rows that another shard's tree and this one share; their number."""
        low, high = max(self.low, int(tree["low"])), min(self.high, int(tree["high"]))
        self.steps = max(self.steps, tree["steps"])
        if low >= high:
            return 0
        here = slice(low - self.low, high - self.low)
        there = slice(low - tree["low"], high - tree["low"])
        self.values[here] = tree["values"][there]
        self.state[here] = tree["state"][there]
        return high - low


def _take(array: Rows, low: int, ids: Ids, out: Rows) -> None:
    """Gather rows of a shard; `clip` spares NumPy a check that the sender has made already, and
    the method a microsecond that `np.take` costs in Python."""
    if out.size:
        array.take(ids - low if low else ids, 0, out, "clip")
