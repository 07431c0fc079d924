"""What matrix factorization trains on: the known entries, and a worker's share of them.

Owns the way from files (or a planted matrix) to the blocks that one worker works through. Every
worker reads everything and keeps its share, so that a replacement makes the same share again
without asking anyone. Must not know the parameter server or the update rules.

Invariant: a row belongs to one worker, a column to one block, both chosen by entry counts alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from diml.data.cells import own_cells, own_col_entries
from diml.data.partition import balanced
from diml.data.planted import Planted, planted
from diml.data.triplets import Triplets, read_triplets
from diml.errors import Misuse

_MOST_ROWS = 2**31 - 1


class Entries(NamedTuple):
    """Known entries: int32 ids and float32 values, each of shape (n,)."""

    rows: npt.NDArray[np.int32]
    cols: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]

    def take(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Entries:
        """The entries at these places."""
        return Entries(self.rows[chosen], self.cols[chosen], self.values[chosen])


@dataclass(frozen=True)
class Facts:
    """What stays known of a matrix once its entries are shared out.

    `mean` is that of the training values; `noise` the planted noise, None for real data.
    """

    n_rows: int
    n_cols: int
    train_entries: int
    test_entries: int
    mean: float
    noise: float | None


@dataclass(frozen=True)
class Ratings:
    """A matrix to factorize."""

    train: Entries
    test: Entries
    n_rows: int
    n_cols: int
    noise: float | None = None

    def facts(self) -> Facts:
        """The matrix without its entries."""
        mean = float(self.train.values.mean(dtype=np.float64))
        counts = len(self.train.values), len(self.test.values)
        return Facts(self.n_rows, self.n_cols, *counts, mean, self.noise)


@dataclass(frozen=True)
class Source:
    """Where ratings come from: a file or a plan, and what is held out of training."""

    datafile: str | None
    plan: Planted | None
    test: str | None = None
    test_fraction: float = 0.0
    format: str = "auto"
    one_based: bool = False
    seed: int = 0


def load(source: Source) -> Ratings:
    """Read or generate ratings. The same on every rank. Raises Misuse for bad input."""
    known = _known(source)
    held_out = None
    if source.test is not None:
        held_out = read_triplets(source.test, one_based=source.one_based, format=source.format)
    n_rows = max(known.n_rows, held_out.n_rows if held_out else 0)
    n_cols = max(known.n_cols, held_out.n_cols if held_out else 0)
    for what, size in (("row", n_rows), ("column", n_cols)):
        if size > _MOST_ROWS:
            name = source.datafile if size == max(known.n_rows, known.n_cols) else source.test
            raise Misuse(f"{name}: {what} id {size - 1} is too large: below {_MOST_ROWS} is read")
    train, test = _narrow(known), _narrow(held_out) if held_out else _narrow(known).take(_none())
    if source.test_fraction > 0:
        random = np.random.Generator(np.random.Philox(key=[source.seed % 2**64, 1]))
        chosen = random.random(len(train.values)) < source.test_fraction
        train, test = train.take(~chosen), train.take(chosen)
    if not len(train.values):
        raise Misuse("no entry is left to train on: lower --test_fraction")
    return Ratings(train, test, n_rows, n_cols, source.plan.noise if source.plan else None)


def _known(source: Source) -> Triplets:
    if source.plan is not None:
        return planted(source.plan)
    assert source.datafile is not None
    return read_triplets(source.datafile, one_based=source.one_based, format=source.format)


def _narrow(read: Triplets) -> Entries:
    return Entries(read.rows.astype(np.int32), read.cols.astype(np.int32), read.values)


def _none() -> npt.NDArray[np.int64]:
    return np.empty(0, np.int64)


class Block(NamedTuple):
    """What a worker does in one clock. Column ids in the entries are places in `cols`.

    Attributes:
        cols: int64 (m,), rising: the columns that the entries have.
        col_entries: int64 (m,), this worker's training entries in each of them.
        train: in the order in which they are worked through.
        test: held-out entries whose row and column both have training entries.
        cold: held-out entries whose row or column has none: no factor knows them.
    """

    cols: npt.NDArray[np.int64]
    col_entries: npt.NDArray[np.int64]
    train: Entries
    test: Entries
    cold: Entries


@dataclass(frozen=True)
class Share:
    """One worker's part of the ratings. Row ids in its blocks are places in `row_ids`.

    Attributes:
        row_ids: int64 (own rows,), rising.
        row_entries: int64 (own rows,), training entries of each.
        all_col_entries: int64 (n_cols,), training entries of each column on all workers.
    """

    worker: int
    workers: int
    row_ids: npt.NDArray[np.int64]
    row_entries: npt.NDArray[np.int64]
    all_col_entries: npt.NDArray[np.int64]
    blocks: tuple[Block, ...]

    def block_at(self, clock: int) -> Block:
        """The block of a clock: a Latin square of workers and clocks.

        Worker p starts p * blocks / workers further on, so a block comes to the next worker
        blocks / workers clocks after this one had it; once that is staleness + 1 or more, every
        read of a column sees all that others did to it.
        """
        blocks = len(self.blocks)
        return self.blocks[(clock + self.worker * blocks // self.workers) % blocks]


@dataclass(frozen=True)
class Layout:
    """How an iteration is cut: into so many blocks, one a clock, shuffled inside cells or not.

    With `whole` a block lists all of its columns, on every worker alike, not only those in which
    this worker has entries: then blocks of R can travel.
    """

    blocks: int
    shuffled: bool
    whole: bool = False


def choose_layout(
    workers: int,
    staleness: int,
    col_entries: npt.NDArray[np.int64],
    eta: float,
    blocks: int | None = None,
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
    """
    unseen = staleness + 1 if workers > 1 else 1
    gentle = 2 * eta * int(col_entries.max()) * unseen <= 1
    if blocks is None:
        blocks = 1 if gentle or workers == 1 else min(workers * unseen, len(col_entries))
    return Layout(blocks, shuffled=not gentle)


def share_of(ratings: Ratings, worker: int, workers: int, layout: Layout, seed: int) -> Share:
    """This worker's rows and blocks."""
    blocks = layout.blocks
    train, test = ratings.train, ratings.test
    row_entries = np.bincount(train.rows, minlength=ratings.n_rows).astype(np.int64, copy=False)
    col_entries = np.bincount(train.cols, minlength=ratings.n_cols).astype(np.int64, copy=False)
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
    made = []
    for block, (first, last) in enumerate(pairwise(ends)):
        ids = block_cols[block]
        entries = Entries(rows[first:last], cols[first:last], values[first:last])
        if not layout.shuffled:
            entries = entries.take(np.lexsort((entries.cols, entries.rows)))
        here = test_block == block
        made.append(Block(ids, mine[ids], entries, test.take(here & warm), test.take(here & ~warm)))
    return Share(worker, workers, row_ids, row_entries[row_ids], col_entries, tuple(made))
