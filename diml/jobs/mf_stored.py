"""Ratings in a file of `diml convert`: each worker reads its own cells, and keeps what fits.

Owns which groups of the file belong to whom, and which blocks stay in memory under
`--memory-limit`. Must not know how the file is read (`diml.data.stream`) or made.

The model's ids are those of the file, where the rows of a worker and the columns of a block are
neighbours. Invariant: what a worker does, and in which order, does not depend on the limit.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from diml.data.blockfile import TEST, BlockFile
from diml.data.grid import count_ids
from diml.data.partition import cut
from diml.data.stream import BUFFER_BYTES, Part, Stream
from diml.errors import Misuse
from diml.jobs.mf_data import Block, Entries, Facts, Ids, Layout, Share
from diml.kernels.mf_grid import dealt, ranges

_ENTRY_BYTES = 12


class Stored:
    """A matrix to factorize, on disk, with the face of `diml.jobs.mf_data.Ratings`."""

    def __init__(
        self,
        file: BlockFile,
        test: tuple[Entries, int, int] | None = None,
        memory_bytes: int | None = None,
    ) -> None:
        """Take an open file.

        Args:
            test: held-out entries by the ids of the user's data, and the shape that these need;
                None for those in the file.
            memory_bytes: resident memory of this process that blocks may fill up; None holds all.
        """
        self._file, self._memory_bytes = file, memory_bytes
        self.n_rows, self.n_cols = file.facts.n_rows, file.facts.n_cols
        if test is not None:
            self.n_rows, self.n_cols = max(self.n_rows, test[1]), max(self.n_cols, test[2])
            self._test = self._renumbered(test[0])
        else:
            self._test = Entries(*(file.read(name) for name in TEST))

    @property
    def fingerprint(self) -> str:
        """Tells this data set, in this order, from others."""
        return self._file.fingerprint

    @property
    def most_blocks(self) -> int:
        """Into how many blocks columns can be cut."""
        return self._file.facts.col_groups

    @cached_property
    def col_entries(self) -> Ids:
        """Training entries of each column: int64 (n_cols,)."""
        return _widened(self._file.read("col_entries"), self.n_cols)

    def facts(self) -> Facts:
        """The matrix without its entries."""
        facts = self._file.facts
        ids = (
            np.concatenate([self._file.read(name), np.arange(known, size)])
            for name, known, size in (
                ("row_ids", facts.n_rows, self.n_rows),
                ("col_ids", facts.n_cols, self.n_cols),
            )
        )
        counts = facts.entries, len(self._test.values)
        return Facts(self.n_rows, self.n_cols, *counts, facts.mean, None, *ids)

    def share(self, worker: int, workers: int, layout: Layout, seed: int) -> Share:
        """The part of one worker, in blocks that list all their columns.

        All of it is read once, so damage is found here. The order of the entries is the file's,
        whatever `seed`. Raises Misuse where the file has too few groups.
        """
        facts = self._file.facts
        for what, groups, wanted in (
            ("row", facts.row_groups, workers),
            ("column", facts.col_groups, layout.blocks),
        ):
            if wanted > groups:
                raise Misuse(
                    f"{self._file.path}: {groups} {what} groups cannot be dealt out in {wanted}: "
                    f"convert it with --{what[:3]}_groups {wanted} or more"
                )
        rows = self._edges("row", self.n_rows, workers)
        first, end = int(rows.ids[worker]), int(rows.ids[worker + 1])
        row_entries = _widened(self._file.read("row_entries"), self.n_rows)
        test = self._test.take((self._test.rows >= first) & (self._test.rows < end))
        known = (row_entries[test.rows] > 0) & (self.col_entries[test.cols] > 0)
        stream, room = Stream(self._file), self._room()
        cols = self._edges("col", self.n_cols, layout.blocks)
        cuts = self._row_cuts(rows, worker, layout.rows_max)
        # Others may have more groups: the last ones are empty here.
        cuts += [cuts[-1]] * (layout.row_groups + 1 - len(cuts))
        blocks = []
        for (left, right), col_part in zip(pairwise(cols.ids.tolist()), cols.parts, strict=True):
            for (low_group, low), (high_group, high) in pairwise(cuts):
                part = Part((low_group, high_group), col_part)
                counts = row_entries[low:high], np.zeros(right - left, np.int64)
                source, room = _source(stream, part, *counts, room, layout.threads)
                here = (test.rows >= low) & (test.rows < high)
                here &= (test.cols >= left) & (test.cols < right)
                warm, cold = (
                    Entries(found.rows - np.int32(low), found.cols - np.int32(left), found.values)
                    for found in (test.take(here & known), test.take(here & ~known))
                )
                own = slice(low - first, high - first)
                blocks.append(Block(own, np.arange(left, right), counts[1], source, warm, cold))
        ids, entries = np.arange(first, end), row_entries[first:end]
        made = tuple(blocks), layout.row_groups
        return Share(worker, workers, ids, entries, self.col_entries, *made)

    def row_groups(self, workers: int, rows_max: int) -> int:
        """Into how many groups each worker's rows must be cut so that none has more rows.

        Raises Misuse where a group of the file has more already.
        """
        rows = self._edges("row", self.n_rows, workers)
        return max(len(self._row_cuts(rows, worker, rows_max)) - 1 for worker in range(workers))

    def _row_cuts(self, rows: _Edges, worker: int, rows_max: int) -> list[tuple[int, int]]:
        """Where a worker's rows are cut, as (group of the file, row); 0 for no limit."""
        ends = self._file.read("row_ends")
        ends[-1] = self.n_rows
        first, end = int(rows.groups[worker]), int(rows.groups[worker + 1])
        cuts = [first]
        for group in range(first, end):
            if not rows_max or ends[group + 1] - ends[cuts[-1]] <= rows_max:
                continue
            if group > cuts[-1]:
                cuts.append(group)
            if ends[group + 1] - ends[group] > rows_max:
                raise Misuse(
                    f"{self._file.path}: a group has {ends[group + 1] - ends[group]} rows, more "
                    f"than {rows_max}: convert it with more --row_groups"
                )
        return [(group, int(ends[group])) for group in [*cuts, end]]

    def _edges(self, side: str, size: int, parts: int) -> _Edges:
        """Cut the groups of one side into parts of about equal entries; the last one has what is
        not in the file."""
        ends = self._file.read(f"{side}_ends")
        entries = np.concatenate([[0], np.cumsum(self._file.read(f"{side}_entries"))])
        groups = cut(entries[ends], parts)
        ids = ends[groups]
        ids[-1] = size
        return _Edges(groups, ids)

    def _room(self) -> int | None:
        """Bytes that blocks may keep in memory; None for as many as there are."""
        if self._memory_bytes is None:
            return None
        with open("/proc/self/statm", encoding="ascii") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return self._memory_bytes - resident - BUFFER_BYTES

    def _renumbered(self, test: Entries) -> Entries:
        """Held-out entries with the ids of the file; what it does not have keeps its id."""
        places = []
        for name, known, size, ids in (
            ("row_ids", self._file.facts.n_rows, self.n_rows, test.rows),
            ("col_ids", self._file.facts.n_cols, self.n_cols, test.cols),
        ):
            place = np.arange(size, dtype=np.int32)
            place[self._file.read(name)] = np.arange(known, dtype=np.int32)
            places.append(place[ids])
        return Entries(places[0], places[1], test.values)


class _Edges(NamedTuple):
    """Where parts begin and end, int64 (parts + 1,): as groups, and as ids."""

    groups: Ids
    ids: Ids

    @property
    def parts(self) -> list[tuple[int, int]]:
        """The groups of each part."""
        return list(pairwise(self.groups.tolist()))


def _source(
    stream: Stream, part: Part, row_entries: Ids, counts: Ids, room: int | None, threads: int
) -> tuple[Callable[[], Iterator[Entries]], int | None]:
    """The source of a block, and the bytes left: its first pieces are kept, as many as fit.

    Its entries by column are added to `counts`; `row_entries` are those of its rows, in all blocks.
    """
    kept: deque[Entries] = deque()
    more = False
    for rows, cols, values in stream.pieces(part, check=True):
        count_ids(cols, counts)
        size = len(values) * _ENTRY_BYTES
        more = more or (room is not None and size > room)
        if not more:
            kept.append(Entries(rows.copy(), cols.copy(), values.copy()))
            room = None if room is None else room - size
    deal = _dealer(row_entries, counts, threads)
    # Dealt out piece by piece, as from disk: the same order.
    skip = len(kept)
    dealt_out = list(deal(_drained(kept)))
    if not more:
        return lambda: iter(dealt_out), room

    def source() -> Iterator[Entries]:
        rest = (Entries(*piece) for piece in stream.pieces(part, check=False, skip=skip))
        return chain(dealt_out, deal(rest))

    return source, room


def _drained(pieces: deque[Entries]) -> Iterator[Entries]:
    """The pieces, each let go as it is taken: in memory they are not twice."""
    while pieces:
        yield pieces.popleft()


def _dealer(
    row_entries: Ids, col_entries: Ids, threads: int
) -> Callable[[Iterator[Entries]], Iterator[Entries]]:
    """What makes of each piece the cells that threads can work on together."""
    if threads == 1:
        return lambda pieces: pieces
    cut = ranges(row_entries, col_entries, threads)

    def deal(pieces: Iterator[Entries]) -> Iterator[Entries]:
        return (Entries(*cell) for piece in pieces for cell in dealt(*piece, *cut, threads))

    return deal


def _widened(counts: Ids, size: int) -> Ids:
    """Counts with zeros for the ids that only held-out entries have."""
    return np.concatenate([counts, np.zeros(size - len(counts), np.int64)])
