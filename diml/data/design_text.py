"""Design matrices in text: libsvm and MatrixMarket. Each part keeps its own columns only.

Owns chunks, line numbers, headers and what a bad file is told; the grammar of a line is
`design_parse`'s. A file is read twice: to count the entries of each column, from which all parts
derive the same ranges, and to fill this part's range.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from diml.data import design_parse as parse
from diml.data.design_part import DensePart, SparsePart, balance, canonical
from diml.data.files import check_unpacked
from diml.errors import Misuse

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_CHUNK_BYTES = 1 << 23
# Counts, places and index pointers while a file is read, the model and its gradient afterwards.
_BYTES_OF_A_COLUMN = 64
_SHOWN = 40
_WRONG = {
    parse.BAD_NUMBER: "a value is not a finite number",
    parse.BAD_PAIR: "expected `column:value` pairs after the first number",
    parse.NOT_RISING: "column numbers must rise along a line",
    parse.FIELDS: "wrong number of fields",
    parse.INFINITE: "a value is too large for float64",
}


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Whole lines of a file, and how many lines come before them."""

    text: NDArray[np.uint8]
    lines_before: int


def _chunks(path: Path, skip_lines: int = 0) -> Iterator[_Chunk]:
    """The file's bytes in pieces that end at line ends, after the first `skip_lines` lines."""
    with path.open("rb") as file:
        for _ in range(skip_lines):
            file.readline()
        lines = skip_lines
        check_unpacked(path, file.peek(8))
        while block := file.read(_CHUNK_BYTES):
            block += file.readline()
            yield _Chunk(np.frombuffer(block, np.uint8), lines)
            lines += block.count(b"\n")


def _refuse(path: Path, chunk: _Chunk, start: int, wrong: int) -> NoReturn:
    before = chunk.text[:start].tobytes().count(b"\n")
    line = chunk.text[start : start + 200].tobytes().split(b"\n")[0].decode("utf-8", "replace")
    shown = line if len(line) <= _SHOWN else line[:_SHOWN] + "…"
    number = chunk.lines_before + before + 1
    raise Misuse(f"{path}:{number}: {_WRONG[wrong]}: {shown.strip()!r}")


# ---------------------------------------------------------------------------------- libsvm


def read_libsvm(path: Path, part: int, parts: int) -> tuple[SparsePart, Floats]:
    """(this part's columns, y). Columns count from 1, or from 0 where a column 0 is used."""
    counts = np.zeros(0, np.int64)
    labels = []
    rows = 0
    for label, _, cols, _ in _libsvm(path):
        counts = _counted(path, counts, cols)
        labels.append(label)
        rows += len(label)
    if rows == 0:
        raise Misuse(f"{path}: no data lines")
    base = 0 if len(counts) and counts[0] else 1
    counts = counts[base:]
    fill = _Fill(counts, part, parts)
    at = 0
    for label, lengths, cols, values in _libsvm(path):
        row = np.repeat(np.arange(at, at + len(label)), lengths)
        fill.add(row, cols - base, values)
        at += len(label)
    return replace(fill.part(rows), base=base), np.concatenate(labels)


@dataclass(frozen=True, slots=True)
class Rows:
    """A libsvm file by rows: CSR arrays, the labels, and the number of its first column.

    labels is float64 (n,), NaN where a line has none; indptr int64 (n + 1,); cols int64 and data
    float64 (entries,), columns counted from 0; `base` is 1, or 0 where a column 0 is used.
    """

    labels: Floats
    indptr: Integers
    cols: Integers
    data: Floats
    base: int


def read_libsvm_rows(path: Path, base: int | None = None, bare: bool = False) -> Rows:
    """All rows. Raises Misuse, naming file and line, for what is not libsvm.

    Args:
        base: the number of the first column, where it is known; None to find it as said above.
        bare: lines without a label are read as well.
    """
    chunks = list(_libsvm(path, bare))
    if not sum(len(chunk[0]) for chunk in chunks):
        raise Misuse(f"{path}: no data lines")
    labels = np.concatenate([chunk[0] for chunk in chunks])
    lengths, cols = (np.concatenate([chunk[i] for chunk in chunks]) for i in (1, 2))
    data = np.concatenate([chunk[3] for chunk in chunks])
    least = 0 if len(cols) and cols.min() == 0 else 1
    if base is None:
        base = least
    if least < base:
        raise Misuse(f"{path}: there is a column 0, but columns count from {base}")
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Rows(labels, indptr, cols - base, data, base)


def _libsvm(path: Path, bare: bool = False) -> Iterator[tuple[Floats, Integers, Integers, Floats]]:
    """(labels, entries of each row, columns, values) of each chunk."""
    for chunk in _chunks(path):
        size = len(chunk.text)
        labels, lengths = np.empty(size // 2 + 1), np.empty(size // 2 + 1, np.int64)
        cols, values = np.empty(size // 4 + 1, np.int64), np.empty(size // 4 + 1)
        rows, count, start, wrong = parse.parse_libsvm(
            chunk.text, labels, lengths, cols, values, bare
        )
        if wrong:
            _refuse(path, chunk, start, wrong)
        # Copies: the arrays have room for the shortest lines that there may be.
        yield (
            labels[:rows].copy(),
            lengths[:rows].copy(),
            cols[:count].copy(),
            values[:count].copy(),
        )


def check_columns(path: Path, columns: int) -> None:
    """Raises Misuse where the least that a run needs, vectors of so many numbers, fits nowhere."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if columns * _BYTES_OF_A_COLUMN > memory:
        raise Misuse(f"{path}: {columns} columns are more than this host has memory for")


def _counted(path: Path, counts: Integers, cols: Integers) -> Integers:
    """`counts` plus how often each column stands in `cols`, grown to the largest column."""
    if len(cols):
        check_columns(path, int(cols.max()))
    fresh = np.bincount(cols, minlength=len(counts))
    fresh[: len(counts)] += counts
    return fresh.astype(np.int64)


class _Fill:
    """Collects the entries of one part's columns into CSC arrays of the final size."""

    def __init__(self, counts: Integers, part: int, parts: int) -> None:
        edges = balance(counts, parts)
        self._first, self._last = int(edges[part]), int(edges[part + 1])
        self._total = len(counts)
        own = counts[self._first : self._last]
        self._indptr = np.concatenate([[0], np.cumsum(own)]).astype(np.int64)
        self._next = self._indptr[:-1].copy()
        self._indices = np.empty(self._indptr[-1], np.int32)
        self._data = np.empty(self._indptr[-1])

    def add(self, rows: Integers, cols: Integers, values: Floats) -> None:
        """Take the entries that are in this part's columns, in the order given."""
        own = np.flatnonzero((cols >= self._first) & (cols < self._last))
        order = own[np.argsort(cols[own], kind="stable")]
        local = cols[order] - self._first
        starts = np.searchsorted(local, local, side="left")
        place = self._next[local] + (np.arange(len(local)) - starts)
        self._indices[place] = rows[order]
        self._data[place] = values[order]
        np.add.at(self._next, local, 1)

    def part(self, rows: int) -> SparsePart:
        return SparsePart(rows, self._total, self._first, self._indptr, self._indices, self._data)


# ---------------------------------------------------------------------------- MatrixMarket


@dataclass(frozen=True, slots=True)
class _Header:
    """What a MatrixMarket header promises: lines it takes, shape, entries, fields of a line."""

    lines: int
    coordinate: bool
    pattern: bool
    rows: int
    cols: int
    entries: int


def _header(path: Path) -> _Header:
    with path.open("rb") as file:
        words = file.readline().decode("utf-8", "replace").lower().split()
        lines = 1
        while (line := file.readline()).startswith(b"%") or line.strip() == b"":
            lines += 1
            if not line:
                raise Misuse(f"{path}:{lines}: the file ends before its size line")
    if len(words) != 5 or words[1] != "matrix" or words[2] not in ("coordinate", "array"):
        raise Misuse(f"{path}:1: not the banner of a MatrixMarket matrix")
    if words[3] not in ("real", "integer", "double", "pattern") or words[4] != "general":
        raise Misuse(f"{path}:1: only real general matrices are read, not {' '.join(words[3:])}")
    sizes = line.split()
    coordinate = words[2] == "coordinate"
    if len(sizes) != (3 if coordinate else 2) or not all(size.isdigit() for size in sizes):
        raise Misuse(f"{path}:{lines + 1}: bad size line {line.decode('utf-8', 'replace')!r}")
    numbers = [int(size) for size in sizes]
    entries = numbers[2] if coordinate else numbers[0] * numbers[1]
    pattern = words[3] == "pattern"
    return _Header(lines + 1, coordinate, pattern, numbers[0], numbers[1], entries)


def _numbers(path: Path, skip_lines: int, fields: int) -> Iterator[Floats]:
    """(lines, fields) numbers of each chunk."""
    for chunk in _chunks(path, skip_lines):
        out = np.empty((len(chunk.text) // (2 * fields) + 1, fields))
        count, start, wrong = parse.parse_numbers(chunk.text, fields, out)
        if wrong:
            _refuse(path, chunk, start, wrong)
        yield out[:count]


def _coordinates(path: Path, header: _Header) -> Iterator[tuple[Integers, Integers, Floats]]:
    """0-based (rows, columns, values) of each chunk, checked against the header."""
    seen = 0
    for numbers in _numbers(path, header.lines, 2 if header.pattern else 3):
        places = numbers[:, :2]
        size = (header.rows, header.cols)
        bad = (places < 1) | (places > size) | (places != np.floor(places))
        if bad.any():
            place = int(np.flatnonzero(bad.any(axis=1))[0])
            row, col = places[place]
            raise Misuse(
                f"{path}: entry {seen + place + 1} (after line {header.lines}) is at row {row:g}, "
                f"column {col:g} of a {header.rows} × {header.cols} matrix"
            )
        seen += len(numbers)
        whole = places.astype(np.int64) - 1
        values = np.ones(len(numbers)) if header.pattern else numbers[:, 2].copy()
        yield whole[:, 0], whole[:, 1], values
    if seen != header.entries:
        raise Misuse(f"{path}: {seen} entries, but the header promises {header.entries}")


def read_matrixmarket(path: Path, part: int, parts: int) -> SparsePart | DensePart:
    """This part's columns; entries that stand twice are summed."""
    header = _header(path)
    check_columns(path, max(header.cols, header.rows))
    if not header.coordinate:
        return _read_array(path, header, part, parts)
    counts = np.zeros(header.cols, np.int64)
    for _, cols, _ in _coordinates(path, header):
        counts += np.bincount(cols, minlength=header.cols)
    fill = _Fill(counts, part, parts)
    for rows, cols, values in _coordinates(path, header):
        fill.add(rows, cols, values)
    return canonical(fill.part(header.rows))


def _read_array(path: Path, header: _Header, part: int, parts: int) -> DensePart:
    edges = balance(np.full(header.cols, header.rows, np.int64), parts)
    first, last = int(edges[part]), int(edges[part + 1])
    flat = np.empty((last - first) * header.rows)
    at = -first * header.rows
    seen = 0
    for numbers in _numbers(path, header.lines, 1):
        values = numbers[:, 0]
        low, high = max(at, 0), min(at + len(values), len(flat))
        if low < high:
            flat[low:high] = values[low - at : high - at]
        at += len(values)
        seen += len(values)
    if seen != header.entries:
        raise Misuse(f"{path}: {seen} values, but the header promises {header.entries}")
    return DensePart(header.cols, first, flat.reshape((header.rows, last - first), order="F"))


def read_matrixmarket_vector(path: Path) -> Floats:
    """A one-column (or one-row) MatrixMarket matrix as a vector."""
    header = _header(path)
    if 1 not in (header.rows, header.cols):
        raise Misuse(f"{path}: y must be one column, not {header.rows} × {header.cols}")
    if not header.coordinate:
        return np.asarray(_read_array(path, header, 0, 1).X, np.float64).reshape(-1)
    y = np.zeros(header.rows * header.cols)
    for rows, cols, values in _coordinates(path, header):
        np.add.at(y, np.maximum(rows, cols), values)
    return y


def read_numbers(path: Path) -> Floats:
    """One number a line."""
    return np.concatenate([numbers[:, 0] for numbers in _numbers(path, 0, 1)])
