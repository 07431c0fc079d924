"""What matrix factorization trains on: the known entries, and a worker's share of them.

Owns the way from known entries to the blocks that one worker works through. Every worker knows
all entries and keeps its share, so that a replacement makes the same share again without asking
anyone. Must not know files, the parameter server or the update rules.

Invariant: a row belongs to one worker, a column to one block, both chosen by entry counts alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diml.data.cells import CELL_ROWS, own_cells, own_col_entries
from diml.data.partition import balanced
from diml.kernels.mf_grid import dealt, ranges

Ids = npt.NDArray[np.int64]


class Entries(NamedTuple):
    """Known entries: int32 ids and float32 values, each of shape (n,)."""

    rows: npt.NDArray[np.int32]
    cols: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]

    def take(self, chosen: npt.NDArray[np.bool_] | Ids) -> Entries:
        """The entries at these places."""
        return Entries(self.rows[chosen], self.cols[chosen], self.values[chosen])


def joined(parts: list[Entries]) -> Entries:
    """Parts one after the other; empty arrays where there are none."""
    if not parts:
        none = np.empty(0, np.int32)
        return Entries(none, none.copy(), np.empty(0, np.float32))
    rows, cols, values = zip(*parts, strict=True)
    return Entries(np.concatenate(rows), np.concatenate(cols), np.concatenate(values))


@dataclass(frozen=True)
class Facts:
    """What stays known of a matrix once its entries are shared out.

    Attributes:
        mean: of the training values.
        noise: the planted noise, None for real data.
        row_ids, col_ids: int64 (n_rows,), (n_cols,), the id in the user's data of each row and
            column of the model; None where they are the same.
    """

    n_rows: int
    n_cols: int
    train_entries: int
    test_entries: int
    mean: float
    noise: float | None = None
    row_ids: Ids | None = None
    col_ids: Ids | None = None


@dataclass(frozen=True)
class Ratings:
    """A matrix to factorize, in memory. What `load` of `diml.jobs.mf_load` gives has this face."""

    train: Entries
    test: Entries
    n_rows: int
    n_cols: int
    noise: float | None = None

    @cached_property
    def col_entries(self) -> Ids:
        """Training entries of each column: int64 (n_cols,)."""
        return _counts(self.train.cols, self.n_cols)

    @property
    def most_blocks(self) -> int:
        """Into how many blocks columns can be cut."""
        return self.n_cols

    @property
    def fingerprint(self) -> str:
        """Tells this data set from others: sizes and a checksum of all entries."""
        crc = 0
        for array in (*self.train, *self.test):
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return f"{self.n_rows}x{self.n_cols}x{len(self.train.values)} {crc:08x}"

    def row_groups(self, workers: int, rows_max: int) -> int:
        """Into how many groups each worker's rows must be cut so that none has more rows."""
        owner = balanced(_counts(self.train.rows, self.n_rows), workers)
        return -(-int(np.bincount(owner).max()) // rows_max)

    def share(self, worker: int, workers: int, layout: Layout, seed: int) -> Share:
        """The part of one worker, in blocks."""
        return share_of(self, worker, workers, layout, seed)

    def facts(self) -> Facts:
        """The matrix without its entries."""
        mean = float(self.train.values.mean(dtype=np.float64))
        counts = len(self.train.values), len(self.test.values)
        return Facts(self.n_rows, self.n_cols, *counts, mean, self.noise)


@dataclass(frozen=True)
class Block:
    """What a worker does in one clock. Column ids in the entries are places in `cols`, row ids
    count from `rows.start`.

    Attributes:
        rows: the places in `Share.row_ids` of the rows that the entries have.
        cols: int64 (m,), rising: the columns that the entries have.
        col_entries: int64 (m,), the training entries here in each of them.
        source: gives the training entries, a piece at a time, as often as it is called. Under
            `Layout.threads` they come in the order in which threads never meet.
        test: held-out entries whose row and column both have training entries.
        cold: held-out entries whose row or column has none: no factor knows them.
    """

    rows: slice
    cols: Ids
    col_entries: Ids
    source: Callable[[], Iterator[Entries]]
    test: Entries
    cold: Entries

    def __len__(self) -> int:
        """Number of training entries."""
        return int(self.col_entries.sum())

    def pieces(self) -> Iterator[Entries]:
        """The training entries in the order in which they are worked through.

        The arrays of a piece are valid until the next one is asked for; with several threads, until
        the next after those that go together.
        """
        return self.source()

    @property
    def train(self) -> Entries:
        """All training entries at once, copied: for tests and benchmarks."""
        return joined([Entries(a.copy(), b.copy(), c.copy()) for a, b, c in self.pieces()])


@dataclass(frozen=True)
class Share:
    """One worker's part of the ratings.

    Attributes:
        row_ids: int64 (own rows,), rising.
        row_entries: int64 (own rows,), training entries of each.
        all_col_entries: int64 (n_cols,), training entries of each column on all workers.
        blocks: by block of columns, then by group of own rows.
        row_groups: groups of own rows.
    """

    worker: int
    workers: int
    row_ids: Ids
    row_entries: Ids
    all_col_entries: Ids
    blocks: tuple[Block, ...]
    row_groups: int = 1

    def block_at(self, clock: int) -> Block:
        """The block of a clock: a Latin square of workers and clocks.

        Worker p starts p * blocks / workers further on, so a block of columns comes to the next
        worker blocks / workers turns after this one had it; once that is staleness + 1 or more,
        every read of a column sees all that others did to it. A turn is a clock for each group of
        own rows.
        """
        blocks = len(self.blocks) // self.row_groups
        turn, group = divmod(clock, self.row_groups)
        block = (turn + self.worker * blocks // self.workers) % blocks
        return self.blocks[block * self.row_groups + group]


@dataclass(frozen=True)
class Layout:
    """How an iteration is cut: into so many blocks of columns, shuffled inside cells or not.

    Attributes:
        whole: a block lists all of its columns, on every worker alike, not only those in which
            this worker has entries: then blocks of R can travel.
        row_groups: a worker's rows are cut too, into so many groups.
        rows_max: of how many rows at most; 0 for no limit.
        threads: a worker's compute threads.
    """

    blocks: int
    shuffled: bool
    whole: bool = False
    row_groups: int = 1
    rows_max: int = 0
    threads: int = 1

    @property
    def clocks(self) -> int:
        """Clocks of an iteration: one for each block and group."""
        return self.blocks * self.row_groups


def choose_layout(
    workers: int,
    staleness: int,
    col_entries: Ids,
    eta: float,
    blocks: int | None = None,
    most: int | None = None,
) -> Layout:
    """Cut an iteration so that it cannot diverge for want of clocks.

    Deltas of one clock add up: where P workers each move a column nearly to its optimum, their sum
    overshoots P-fold. A column with n entries moves by about 2 eta n of the way in an iteration.
    Where that stays below 1 even (staleness + 1)-fold, the whole matrix is one block in row order,
    as in Petuum. Else there are workers x (staleness + 1) blocks, in which no two workers meet
    (see `Share.block_at`), and entries are shuffled inside their cells: steps are large enough for
    the order to matter, and consecutive entries of one row would wait for each other.

    Args:
        col_entries: training entries of each column.
        eta: the first step size.
        blocks: the number of blocks where the caller has chosen it.
        most: into how many blocks columns can be cut; None: as many as there are columns.
    """
    unseen = staleness + 1 if workers > 1 else 1
    gentle = 2 * eta * int(col_entries.max()) * unseen <= 1
    if blocks is None:
        blocks = 1 if gentle or workers == 1 else min(workers * unseen, most or len(col_entries))
    return Layout(blocks, shuffled=not gentle)


def share_of(ratings: Ratings, worker: int, workers: int, layout: Layout, seed: int) -> Share:
    """This worker's rows and blocks."""
    blocks = layout.blocks
    train, test = ratings.train, ratings.test
    row_entries = _counts(train.rows, ratings.n_rows)
    col_entries = ratings.col_entries
    owner = balanced(row_entries, workers)
    block_of = balanced(col_entries, blocks)
    row_ids = np.flatnonzero(owner == worker)
    row_place = np.zeros(ratings.n_rows, np.int32)
    row_place[row_ids] = np.arange(len(row_ids), dtype=np.int32)

    test = test.take(owner[test.rows] == worker)
    mine = own_col_entries(train.rows, train.cols, owner, worker, ratings.n_cols)
    used = (mine > 0) | layout.whole
    used[test.cols] = True
    block_cols = [np.flatnonzero(used & (block_of == block)) for block in range(blocks)]
    col_place = np.zeros(ratings.n_cols, np.int32)
    for ids in block_cols:
        col_place[ids] = np.arange(len(ids), dtype=np.int32)

    mixer = (seed * workers + worker) % 2**64
    rows, cols, values, ends = own_cells(
        *train, owner, worker, row_place, block_of, col_place, blocks, mixer
    )
    warm = (row_entries[test.rows] > 0) & (col_entries[test.cols] > 0)
    test_block = block_of[test.cols]
    test = Entries(row_place[test.rows], col_place[test.cols], test.values)
    groups = np.arange(layout.row_groups + 1) * len(row_ids) // layout.row_groups
    made = []
    for block, (first, last) in enumerate(pairwise(ends)):
        entries = Entries(rows[first:last], cols[first:last], values[first:last])
        if not layout.shuffled:
            entries = entries.take(np.lexsort((entries.cols, entries.rows)))
        here = test_block == block
        for low, high in pairwise(groups.tolist()):
            parts = [entries, test.take(here & warm), test.take(here & ~warm)]
            own, ids = slice(low, high), block_cols[block]
            counts = mine[ids]
            if layout.row_groups > 1:
                parts = [_within(part, own) for part in parts]
                counts = _counts(parts[0].cols, len(ids))
            made.append(_block(own, ids, counts, parts, layout.threads))
    counts = row_entries[row_ids]
    return Share(worker, workers, row_ids, counts, col_entries, tuple(made), layout.row_groups)


def _block(rows: slice, cols: Ids, counts: Ids, parts: list[Entries], threads: int) -> Block:
    """A block whose entries are in memory: one piece, or one for each cell of a thread.

    `counts` are entries by column, `parts` training entries and held-out ones, warm and cold.
    """
    entries, warm, cold = parts
    pieces = [entries]
    if threads > 1:
        own = rows.stop - rows.start
        groups = -(-own // (threads * CELL_ROWS)) or 1
        cut = ranges(_counts(entries.rows, own), counts, threads, groups)
        dealt_out = dealt(*entries, *cut, threads, groups)
        pieces = [Entries(*cell) for cell in dealt_out]
    return Block(rows, cols, counts, lambda: iter(pieces), warm, cold)


def _within(entries: Entries, rows: slice) -> Entries:
    """The entries of a range of rows, which count from its start."""
    start = np.int32(rows.start)
    own = (entries.rows >= start) & (entries.rows < rows.stop)
    found = entries.take(own)
    return found._replace(rows=found.rows - start)


def _counts(ids: npt.NDArray[np.int32], size: int) -> Ids:
    return np.bincount(ids, minlength=size).astype(np.int64, copy=False)
