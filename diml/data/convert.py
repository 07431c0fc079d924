"""From text to the file of `diml.data.blockfile`, once, in bounded memory.

Owns how rows and columns are grouped and in which order entries come. Pure but for its files.

The text is parsed once, into a spool beside the result; the spool is counted, then dealt into
buckets of neighbouring cells that each fit into memory, in a second file beside the result; then
each bucket is sorted, shuffled and written as places.
Invariants: the result depends on the entries, their order and the seed only, not on the memory
that was given; what is held out is what the job holds out of the same text with the same seed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from diml.data.blockfile import PLACE_BYTES, BlockFile, Facts, Writer
from diml.data.files import files_of
from diml.data.grid import count_cells, count_ids, deal, settle
from diml.data.offsets import Offsets
from diml.data.partition import balanced
from diml.data.spool import Buckets, Chunk, Ids32, Spool
from diml.data.triplets import Triplets, read_chunks, read_triplets
from diml.errors import Misuse

_MOST = 2**31 - 1
_ENTRY_BYTES = 12
# What a chunk or a bucket takes while it is sorted, over its bytes in the file.
_SORTING = 4
_CHUNK = 1 << 19
# Rows and columns should come often enough in a cell to be worth fetching into the cache.
_OFTEN = 4
_ROW_GROUPS, _COL_GROUPS = (64, 256), (16, 256)
# Cells are counted in int32, and each has 16 bytes in the index that every reader keeps.
_CELLS_MAX = 1 << 22
# What is kept of each row and each column on the way.
_BOOKS_BYTES = 64
_DEFAULT_MEMORY = 256 << 20

Ids64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """What to convert, and how.

    Attributes:
        source: a file, a directory of files, or a pattern.
        target: the file to be made.
        test: held-out entries, named as the source.
        test_fraction: hold out this share of the source instead.
        seed: of what is held out, and of the order inside cells.
        row_groups, col_groups: how finely rows and columns are cut; None: by the data.
        memory_bytes: about as much is used, counters for rows and columns not included.
        format, one_based, offsets: as `read_chunks` takes them.
    """

    source: str
    target: Path
    test: str | None = None
    test_fraction: float = 0.0
    seed: int = 0
    row_groups: int | None = None
    col_groups: int | None = None
    memory_bytes: int = _DEFAULT_MEMORY
    format: str = "auto"
    one_based: bool = False
    offsets: Offsets | None = None


def convert(order: Order, chunks: Iterable[Triplets] | None = None) -> BlockFile:
    """Make the file. Raises Misuse for bad input or a place that cannot be written to.

    Args:
        chunks: the entries, if they are not to come from the files of `order.source`, which is
            then only a name.
    """
    try:
        with _beside(order, "spool") as file, _beside(order, "buckets") as dealt:
            spool = Spool(file)
            survey = _survey(order, spool, _parsed(order) if chunks is None else chunks)
            buckets = Buckets(dealt, survey.facts.entries)
            writer = Writer(order.target, survey.facts)
            try:
                _write_all(order, spool, buckets, survey, writer)
                writer.finish()
            finally:
                writer.discard()
    except OSError as error:
        raise Misuse(f"{order.target}: cannot write it: {error.strerror or error}") from None
    return BlockFile(order.target)


@contextlib.contextmanager
def _beside(order: Order, what: str) -> Iterator[IO[bytes]]:
    """A file beside the result that goes when it is closed."""
    path = order.target.with_name(f".{order.target.name}.{what}")
    try:
        with open(path, "w+b") as file:
            yield file
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


class _Counter:
    """How often each id comes; grows with the largest one."""

    def __init__(self) -> None:
        self.counts = np.zeros(0, np.int64)
        self.size = 0

    def widen(self, size: int, name: str) -> None:
        """Have room for ids below `size`. Raises Misuse where memory cannot have it."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if _BOOKS_BYTES * size > memory:
            raise Misuse(
                f"{name}: an id of {size - 1} is too large for this machine: ids are numbers from "
                "0 on without large gaps"
            )
        self.size = max(self.size, size)
        if size > len(self.counts):
            grown = np.zeros(max(size, 2 * len(self.counts)), np.int64)
            grown[: len(self.counts)] = self.counts
            self.counts = grown

    def add(self, ids: Ids32) -> None:
        count_ids(ids, self.counts)


@dataclass(frozen=True)
class _Survey:
    """What is known before the first entry is written."""

    facts: Facts
    row_counts: Ids64
    col_counts: Ids64
    row_group: Ids32
    col_group: Ids32
    test: Chunk


def _parsed(order: Order) -> Iterator[Triplets]:
    """The entries of the source."""
    how: dict[str, Any] = {"one_based": order.one_based, "format": order.format}
    for path in files_of(order.source):
        yield from read_chunks(path, most=_MOST, offsets=order.offsets, **how)


def _survey(order: Order, spool: Spool, chunks: Iterable[Triplets]) -> _Survey:
    """See everything once: training entries go to the spool, held-out ones are kept."""
    rows, cols = _Counter(), _Counter()
    random = np.random.Generator(np.random.Philox(key=[order.seed % 2**64, 1]))
    held_out: list[Chunk] = []
    entries, total = 0, 0.0
    for read in chunks:
        rows.widen(read.n_rows, order.source)
        cols.widen(read.n_cols, order.source)
        chunk = (read.rows.astype(np.int32), read.cols.astype(np.int32), read.values)
        if order.test_fraction > 0:
            chosen = random.random(len(read)) < order.test_fraction
            held_out.append(_taken(chunk, chosen))
            chunk = _taken(chunk, ~chosen)
        rows.add(chunk[0])
        cols.add(chunk[1])
        entries += len(chunk[2])
        total += float(chunk[2].sum(dtype=np.float64))
        spool.append(chunk)
    if order.test is not None:
        for path in files_of(order.test):
            test = read_triplets(path, one_based=order.one_based, format=order.format, most=_MOST)
            rows.widen(test.n_rows, path)
            cols.widen(test.n_cols, path)
            held_out.append((test.rows.astype(np.int32), test.cols.astype(np.int32), test.values))
    if not entries:
        raise Misuse("no entry is left to train on: lower --test_fraction")
    nothing = (np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))
    kept_rows, kept_cols, kept_values = zip(nothing, *held_out, strict=True)
    test_entries = np.concatenate(kept_rows), np.concatenate(kept_cols), np.concatenate(kept_values)
    row_groups = order.row_groups or _groups(entries, cols.size, *_ROW_GROUPS)
    col_groups = order.col_groups or _groups(entries, rows.size, *_COL_GROUPS)
    row_groups, col_groups = min(row_groups, rows.size), min(col_groups, cols.size)
    if row_groups * col_groups > _CELLS_MAX:
        raise Misuse(f"{row_groups} x {col_groups} cells are more than {_CELLS_MAX}")
    row_counts, col_counts = rows.counts[: rows.size], cols.counts[: cols.size]
    groups = balanced(row_counts, row_groups), balanced(col_counts, col_groups)
    row_bits, col_bits = (int(np.bincount(group).max() - 1).bit_length() for group in groups)
    facts = Facts(
        n_rows=rows.size,
        n_cols=cols.size,
        entries=entries,
        test_entries=len(test_entries[0]),
        row_groups=row_groups,
        col_groups=col_groups,
        col_bits=col_bits,
        place_bytes=next(width for width in PLACE_BYTES if row_bits + col_bits <= 8 * width),
        seed=order.seed,
        test_fraction=order.test_fraction,
        one_based=order.one_based,
        mean=total / entries,
        source=name_and_length(files_of(order.source)),
    )
    return _Survey(facts, row_counts, col_counts, *groups, test_entries)


def _groups(entries: int, others: int, least: int, most: int) -> int:
    """Into how many groups to cut rows (or columns), given the number of columns (rows)."""
    return int(np.clip(entries // (_OFTEN * max(others, 1)), least, most))


def _write_all(
    order: Order, spool: Spool, buckets: Buckets, survey: _Survey, writer: Writer
) -> None:
    """Fill every dataset of the file."""
    facts = survey.facts
    row_ids, row_place = _renumbered(survey.row_group)
    col_ids, col_place = _renumbered(survey.col_group)
    counts = np.zeros(facts.row_groups * facts.col_groups, np.int64)
    grid = (survey.row_group, survey.col_group, facts.row_groups)
    for rows, cols, _ in spool.chunks():
        count_cells(rows, cols, *grid, counts)
    ends = _ends(counts)
    groups = (
        _ends(np.bincount(survey.row_group, minlength=facts.row_groups)),
        _ends(np.bincount(survey.col_group, minlength=facts.col_groups)),
    )
    for name, data in (
        ("row_ids", row_ids),
        ("col_ids", col_ids),
        ("row_entries", survey.row_counts[row_ids]),
        ("col_entries", survey.col_counts[col_ids]),
        ("row_ends", groups[0]),
        ("col_ends", groups[1]),
        ("cell_ends", ends),
        ("test_rows", row_place[survey.test[0]]),
        ("test_cols", col_place[survey.test[1]]),
        ("test_values", survey.test[2]),
    ):
        writer.put(name, 0, data)
    room = max(1, order.memory_bytes // (_SORTING * _ENTRY_BYTES))
    first_cells = _bucketed(ends, room)
    starts = ends[first_cells].copy()
    bucket_of = np.repeat(
        np.arange(len(first_cells), dtype=np.int32), np.diff([*first_cells, len(counts)])
    )
    for rows, cols, values in spool.chunks():
        for low in range(0, len(rows), _CHUNK):
            part = slice(low, low + _CHUNK)
            r, c = rows[part], cols[part]
            cells = survey.col_group[c] * facts.row_groups + survey.row_group[r]
            dealt = _dealt(
                (row_place[r], col_place[c], values[part]), bucket_of[cells], len(starts)
            )
            _append(buckets, dealt, starts)
    tops = [*first_cells[1:].tolist(), len(counts)]
    for low, high in zip(first_cells.tolist(), tops, strict=True):
        _settle_bucket(buckets, writer, (low, high), ends, groups, order.seed)


def _settle_bucket(
    buckets: Buckets,
    writer: Writer,
    cells: tuple[int, int],
    ends: Ids64,
    groups: tuple[Ids64, Ids64],
    seed: int,
) -> None:
    """Sort and shuffle the entries of the cells low .. high - 1; write them and their checksums."""
    low, high = cells
    facts = writer.facts
    first, count = int(ends[low]), int(ends[high] - ends[low])
    entries = buckets.get(first, count)
    row_group, col_group = (
        np.searchsorted(group, ids, side="right") - 1
        for group, ids in zip(groups, entries[:2], strict=True)
    )
    cell = (col_group * facts.row_groups + row_group - low).astype(np.int32)
    del row_group, col_group
    places = np.empty(count, facts.dtype("places"))
    inside = ends[low : high + 1] - first
    values, checks = settle(entries, cell, inside, low, groups, places, facts.col_bits, seed)
    writer.put("places", first, places)
    writer.put("values", first, values)
    writer.put("cell_checks", low, checks)


def _dealt(chunk: Chunk, buckets: Ids32, count: int) -> tuple[Chunk, Ids64]:
    """A chunk in order of its buckets, and where each bucket begins and ends in it."""
    ends = _ends(np.bincount(buckets, minlength=count))
    rows, cols, values = chunk
    out = np.empty_like(rows), np.empty_like(cols), np.empty_like(values)
    deal(rows, cols, values, buckets, ends[:-1].copy(), *out)
    return out, ends


def _append(buckets: Buckets, dealt: tuple[Chunk, Ids64], starts: Ids64) -> None:
    """Write each bucket's part of a chunk where the bucket goes on; moves `starts`."""
    chunk, ends = dealt
    for bucket in np.flatnonzero(np.diff(ends)).tolist():
        part = slice(int(ends[bucket]), int(ends[bucket + 1]))
        rows, cols, values = chunk
        buckets.put(int(starts[bucket]), (rows[part], cols[part], values[part]))
        starts[bucket] += part.stop - part.start


def _bucketed(ends: Ids64, room: int) -> Ids64:
    """First cells of runs of cells with at most `room` entries each, or of one cell alone."""
    firsts, cell = [], 0
    while cell < len(ends) - 1:
        firsts.append(cell)
        fits = int(np.searchsorted(ends, ends[cell] + room, side="right")) - 1
        cell = max(cell + 1, min(fits, len(ends) - 1))
    return np.array(firsts, np.int64)


def _renumbered(group: Ids32) -> tuple[Ids64, Ids32]:
    """The old id of each new one, group by group; and the new id of each old one."""
    old = np.argsort(group, kind="stable").astype(np.int64, copy=False)
    new = np.empty(len(old), np.int32)
    new[old] = np.arange(len(old), dtype=np.int32)
    return old, new


def _ends(counts: npt.NDArray[np.integer]) -> Ids64:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _taken(chunk: Chunk, chosen: npt.NDArray[np.bool_]) -> Chunk:
    rows, cols, values = chunk
    return rows[chosen], cols[chosen], values[chosen]


def name_and_length(paths: list[str]) -> str:
    """What the file says of its sources: names and lengths in bytes."""
    lengths = [_length(path) for path in paths]
    known = "; ".join(f"{Path(a).name} {b}" for a, b in zip(paths[:8], lengths, strict=False))
    # The head of the file has little room: of many files the first ones and the sums must do.
    return (known if len(paths) <= 8 else f"{len(paths)} files, {sum(lengths)}: {known}")[:1000]


def _length(path: str) -> int:
    with contextlib.suppress(OSError):
        return os.stat(path).st_size
    return -1  # reading it will say what is wrong
