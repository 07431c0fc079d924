"""Rows of L that live on the servers, for a worker that is not to hold all of its own.

Owns how a group of own rows comes and goes (`--ps_row_cache_size`). Must not know columns or
clocks. Nobody else changes a worker's rows, so it reads what it wrote, whatever the staleness; and
as they are on the servers, a replacement and a durable checkpoint need nothing else of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from diml.data.memory import aligned_like
from diml.jobs.account import Account
from diml.jobs.mf_data import Block, Facts
from diml.jobs.mf_model import Floats, Model, Rule


class Table(Protocol):
    """A table of the parameter server."""

    def get(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[Any]: ...
    def inc(self, ids: npt.NDArray[np.int64], deltas: npt.NDArray[Any]) -> None: ...


class RowTables(NamedTuple):
    """L (n_rows, k), and what stands beside it (n_rows, side_cols): biases, accumulators."""

    left: Table
    side: Table | None

    @classmethod
    def of(cls, make: Callable[..., Any], rule: Rule, facts: Facts) -> RowTables:
        """Make or look up the tables. `make` is `ps.table`."""
        rows, width = facts.n_rows, rule.side_cols
        return cls(
            make("L", rows=rows, cols=rule.k, dtype="float32", init=rule.left_start),
            make("L_side", rows=rows, cols=width, dtype="float32", init="zeros") if width else None,
        )


class ServedRows:
    """The group of own rows that a worker's model has at hand."""

    def __init__(self, tables: RowTables, model: Model, account: Account) -> None:
        self._tables, self._model, self._account = tables, model, account
        self._ids = np.empty(0, np.int64)
        self._before = np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)

    def fetch(self, block: Block) -> None:
        """Let the model have the rows of a block."""
        rule, self._ids = self._model.rule, self._model.share.row_ids[block.rows]
        left: Floats = aligned_like(np.empty((len(self._ids), rule.k), np.float32))
        side: Floats = np.empty((len(self._ids), rule.side_cols), np.float32)
        if len(self._ids):
            left[...] = self._account.waiting(self._tables.left.get, self._ids)
        if len(self._ids) and self._tables.side is not None:
            side[...] = self._tables.side.get(self._ids)
        self._before = left.copy(), side
        self._model.hold(block.rows, left, side)

    def give(self) -> None:
        """Add to the servers' rows what the model has changed since `fetch`."""
        if not len(self._ids):
            return
        left, side = self._before
        self._tables.left.inc(self._ids, self._model.left - left)
        if self._tables.side is not None:
            self._tables.side.inc(self._ids, self._model.row_side - side)


class LeftWithBias:
    """What the result is read from: rows of L and their biases, as one table."""

    def __init__(self, tables: RowTables) -> None:
        self._tables = tables

    def get(self, ids: npt.NDArray[np.int64]) -> Floats:
        """Rows (len(ids), k + 1)."""
        assert self._tables.side is not None
        return np.column_stack([self._tables.left.get(ids), self._tables.side.get(ids)[:, :1]])
