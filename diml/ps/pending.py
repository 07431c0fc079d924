"""A worker's updates of one table that it has not sent yet: the open clock's write log. Pure.

Owns the order of a worker's own updates and how it reads its own writes. Must not know servers.
Invariant: what `overlay` adds is what the servers will add once the clock is sent; merging
depends only on the sequence of calls, so that a replayed clock gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diml.kernels import rows as kernels
from diml.ps.cache import RowCache
from diml.ps.message import HEADER_BYTES, Bytes, Ids, Message, Rows, frame
from diml.ps.rules import Rule, rule_of
from diml.ps.tables import TableSpec

_INT64 = np.dtype(np.int64)
# More than so many calls are merged into one: a message each would cost more than the merge.
_SEGMENTS_MAX = 16


class Segment(NamedTuple):
    """Updates of some rows, in the wire buffer that they will be sent in."""

    ids: Ids
    values: Rows
    buffer: Bytes


class Pending:
    """The updates of one table since the last clock.

    Attributes:
        framed: the only one, as long as nobody has looked into it: the bytes of its message.
    """

    def __init__(self, cols: int, dtype: np.dtype[Any]) -> None:
        self._cols, self._dtype = cols, dtype
        self.framed: Bytes | None = None
        self._segments: list[Segment] = []
        self._merged = False

    def __bool__(self) -> bool:
        return self.framed is not None or bool(self._segments)

    def add(self, ids: Ids, values: NDArray[Any]) -> None:
        """Remember an update; both arrays are copied. Shapes (m,) and (m, cols)."""
        if not len(ids):
            return
        buffer, its_ids, its_values = frame(len(ids), len(ids), self._cols, self._dtype)
        its_ids[:] = ids
        its_values[:] = values
        self.keep(Segment(its_ids, its_values, buffer))

    def keep(self, segment: Segment) -> None:
        """Remember an update that is in its frame already."""
        self._unframe()
        self._segments.append(segment)
        self._merged = False
        if len(self._segments) > _SEGMENTS_MAX:
            self.merge()

    def keep_framed(self, buffer: Bytes) -> None:
        """As `keep`, of the bytes of a message (`diml.ps.words.write_update`)."""
        if self.framed is None and not self._segments:
            self.framed = buffer
        else:
            self.keep(self._segment(buffer))

    def _unframe(self) -> None:
        if self.framed is not None:
            self._segments, self.framed = [self._segment(self.framed)], None
            self._merged = False

    def _segment(self, buffer: Bytes) -> Segment:
        """What is in the bytes of a message."""
        cols, dtype = self._cols, self._dtype
        count = (len(buffer) - HEADER_BYTES) // (8 + cols * dtype.itemsize)
        start = HEADER_BYTES + 8 * count
        its_ids: Ids = np.ndarray(count, _INT64, buffer, HEADER_BYTES)
        return Segment(its_ids, np.ndarray((count, cols), dtype, buffer, start), buffer)

    def overlay(self, ids: Ids, rows: Rows) -> None:
        """Add the pending updates of `ids` to `rows`, in place."""
        self.merge()
        own = self._segments[0]
        places = np.minimum(np.searchsorted(own.ids, ids), len(own.ids) - 1)
        hits = np.flatnonzero(own.ids[places] == ids)
        if len(hits):
            kernels.scatter_add(rows, 0, hits, own.values[places[hits]])

    def take(self) -> list[Segment]:
        """The updates in the order in which they were made; they are no longer pending."""
        self._unframe()
        segments, self._segments = self._segments, []
        return segments

    def peek(self) -> list[Segment]:
        """What is pending, left there."""
        self._unframe()
        return list(self._segments)

    def merge(self) -> None:
        """Make one segment of all, with each row once and in the order of ids."""
        self._unframe()
        if self._merged:
            return
        ids = np.concatenate([segment.ids for segment in self._segments])
        unique, places = np.unique(ids, return_inverse=True)
        buffer, its_ids, sums = frame(len(unique), len(unique), self._cols, self._dtype)
        its_ids[:] = unique
        sums[:] = 0
        start = 0
        for segment in self._segments:
            end = start + len(segment.ids)
            kernels.scatter_add(sums, 0, places[start:end], segment.values)
            start = end
        self._segments = [Segment(its_ids, sums, buffer)]
        self._merged = True


@dataclass(slots=True)
class Writing:
    """A worker's side of one table: its rule, and its updates of the open clock."""

    spec: TableSpec
    rule: Rule
    pending: Pending
    echo: Rows | None
    """By row, the state that was read with it and goes back with its next update."""
    cache: RowCache | None
    """Rows from earlier reads; only where this worker's own updates can be added to them."""
    significance: float = 0.0
    """Rows all of whose numbers have changed by less stay here until they have changed by more."""
    open: bool = False
    """Whether the open clock has updates, besides what earlier ones have held back."""
    held_bytes: int = 0
    """What has not been sent, of each clock."""

    @classmethod
    def of(cls, spec: TableSpec, cache: RowCache | None, significance: float = 0.0) -> Writing:
        """Nothing written yet. Raises Misuse if the table's rule is not to be had here."""
        rule = rule_of(spec)
        echo = np.zeros((spec.rows, spec.cols), spec.numpy_dtype) if rule.echo else None
        kept = cache if rule.additive else None
        least = significance if rule.additive else 0.0
        return cls(spec, rule, Pending(spec.width, spec.numpy_dtype), echo, kept, least)

    def add(self, ids: Ids, values: Rows) -> None:
        """An update of the open clock, seen at once by this worker's own reads; one of no rows is
        none."""
        if not len(ids):
            return
        self.open = True
        self.pending.add(ids, values)
        if self.cache is not None:
            self.cache.add(ids, values)

    def keep_framed(self, buffer: Bytes) -> None:
        """As `add` of the bytes of a message, for a table that has no cache."""
        self.open = True
        self.pending.keep_framed(buffer)

    def take_framed(self) -> Bytes | None:
        """The bytes of the message that is all of `segments`; None, and nothing is taken, if these
        are anything else."""
        pending, rule = self.pending, self.rule
        framed = pending.framed
        if framed is None or not rule.additive or self.echo is not None or self.significance > 0:
            return None
        self.open, pending.framed = False, None
        return framed

    def pushed(self, message: Message, unapplied: list[Message]) -> None:
        """Take pushed rows into the cache; `unapplied` are own updates that they lack."""
        if self.cache is None or not len(message.ids):
            return
        rows = message.values.copy()
        own = Pending(self.spec.cols, rows.dtype)
        for update in unapplied:
            own.add(update.ids, update.values)
        for segment in self.pending.peek():
            own.add(segment.ids, segment.values)
        if own:
            own.overlay(message.ids, rows)
        self.cache.replace(message.ids, rows, message.clock)

    def segments(self) -> list[Segment]:
        """What is pending, as it goes to the servers: one step of a rule that does not add."""
        self.open = False
        if not self.pending:
            return []
        if self.significance > 0:
            return self._significant()
        if not self.rule.additive:
            self.pending.merge()
        if self.echo is None:
            return self.pending.take()
        return [self.with_echo(segment) for segment in self.pending.take()]

    def _significant(self) -> list[Segment]:
        """Of what is pending, the rows that have changed enough; the others stay."""
        self.pending.merge()
        (whole,) = self.pending.take()
        enough = np.abs(whole.values).max(axis=1) >= self.significance
        self.pending.add(whole.ids[~enough], whole.values[~enough])
        self.held_bytes += int((~enough).sum()) * (8 + whole.values.itemsize * self.spec.width)
        sent = Pending(self.spec.width, whole.values.dtype)
        sent.add(whole.ids[enough], whole.values[enough])
        return sent.take()

    def with_echo(self, segment: Segment) -> Segment:
        """A segment as the table's rule wants it."""
        if self.echo is None:
            return segment
        cols = self.spec.cols
        buffer, ids, values = frame(len(segment.ids), len(segment.ids), 2 * cols, self.echo.dtype)
        ids[:] = segment.ids
        values[:, :cols] = segment.values
        values[:, cols:] = self.echo[ids]
        return Segment(ids, values, buffer)

    def shown(self, ids: Ids, rows: Rows, known: bool) -> Rows:
        """Rows as the program sees them: its own pending updates added, unless the server has
        them already (`known`), and state kept back."""
        if self.echo is not None:
            self.echo[ids] = rows[:, self.spec.cols :]
            return np.ascontiguousarray(rows[:, : self.spec.cols])
        if self.pending and self.rule.additive and not known:
            self.pending.overlay(ids, rows)
        return rows
