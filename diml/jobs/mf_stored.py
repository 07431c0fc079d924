"""Ratings in a file of `diml convert`: each worker reads its own cells, and keeps what fits.

Owns which groups of the file belong to whom, and which blocks stay in memory under
`--memory-limit`. Must not know how the file is read (`diml.data.stream`) or made.

The model's ids are those of the file, where the rows of a worker and the columns of a block are
neighbours. Invariant: what a worker does, and in which order, does not depend on the limit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from diml.data.blockfile import BlockFile
from diml.data.grid import count_ids
from diml.data.partition import cut
from diml.data.stream import BUFFER_BYTES, Part, Stream
from diml.errors import Misuse
from diml.jobs.mf_data import Block, Entries, Facts, Ids, Layout, Share

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
            self._test = Entries(*(file.read(f"test_{name}") for name in Entries._fields))

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
        low, high = int(rows.ids[worker]), int(rows.ids[worker + 1])
        row_entries = _widened(self._file.read("row_entries"), self.n_rows)[low:high]
        test = self._test.take((self._test.rows >= low) & (self._test.rows < high))
        known = (row_entries[test.rows - low] > 0) & (self.col_entries[test.cols] > 0)
        stream, room = Stream(self._file), self._room()
        cols = self._edges("col", self.n_cols, layout.blocks)
        own = int(rows.groups[worker]), int(rows.groups[worker + 1])
        blocks = []
        for block in range(layout.blocks):
            left, right = int(cols.ids[block]), int(cols.ids[block + 1])
            part = Part(own, (int(cols.groups[block]), int(cols.groups[block + 1])))
            source, counts, room = _source(stream, part, right - left, room)
            here = (test.cols >= left) & (test.cols < right)
            warm, cold = (
                Entries(found.rows - np.int32(low), found.cols - np.int32(left), found.values)
                for found in (test.take(here & known), test.take(here & ~known))
            )
            blocks.append(Block(np.arange(left, right), counts, source, warm, cold))
        ids = np.arange(low, high)
        return Share(worker, workers, ids, row_entries, self.col_entries, tuple(blocks))

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


def _source(
    stream: Stream, part: Part, n_cols: int, room: int | None
) -> tuple[Callable[[], Iterator[Entries]], Ids, int | None]:
    """The source of a block, its entries by column, and the bytes left: it is kept if it fits."""
    counts = np.zeros(n_cols, np.int64)
    size = stream.count(part) * _ENTRY_BYTES
    keeps = room is None or size <= room
    kept = []
    for rows, cols, values in stream.pieces(part):
        count_ids(cols, counts)
        if keeps:
            kept.append(Entries(rows.copy(), cols.copy(), values.copy()))
    if keeps:
        return lambda: iter(kept), counts, None if room is None else room - size
    return lambda: (Entries(*piece) for piece in stream.pieces(part)), counts, room


def _widened(counts: Ids, size: int) -> Ids:
    """Counts with zeros for the ids that only held-out entries have."""
    return np.concatenate([counts, np.zeros(size - len(counts), np.int64)])
