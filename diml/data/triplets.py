"""Sparse matrices of known entries, from `row col value` text or MatrixMarket coordinate files.

Owns files, byte ranges, line numbers and what a bad file is told; the grammar of a line is
`diml.data.parse`'s. Must not know MPI: a caller with several ranks gives each its part.

Invariants: a line belongs to the part in which its first byte lies, so parts cut anywhere give
each line exactly once. Every line is validated. An entry that stands twice is kept twice (two
observations of one cell). Ids are 0-based inside, whatever the file has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from diml.data import parse
from diml.data.files import check_unpacked
from diml.data.offsets import Offsets, check_offsets
from diml.errors import Misuse

FORMATS = ("auto", "text", "matrixmarket")
_CHUNK_BYTES = 1 << 24
_BANNER = b"%%MatrixMarket"
_BOM = b"\xef\xbb\xbf"
_SHOWN = 40
_SIDES = ("row", "column")
_WRONG = {
    parse.FEW_FIELDS: "fewer than the three fields `row col value`",
    parse.MANY_FIELDS: "more than the three fields `row col value`",
    parse.BAD_ROW: "the row id is not a whole number from 0 on",
    parse.BAD_COL: "the column id is not a whole number from 0 on",
    parse.HUGE_ROW: "the row id is too large",
    parse.HUGE_COL: "the column id is too large",
    parse.BAD_VALUE: "the value is not a finite number",
    parse.INFINITE_VALUE: "the value is too large for float32",
}


@dataclass(frozen=True)
class Triplets:
    """Known entries of an n_rows x n_cols matrix, in file order.

    Attributes:
        rows, cols: int64 (entries,), 0-based.
        values: float32 (entries,), finite.
        n_rows, n_cols: the shape: as a MatrixMarket header gives it, else one more than the
            largest id that was read.
        promised: the entries of the whole file as its header gives them; None without a header.
    """

    rows: npt.NDArray[np.int64]
    cols: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]
    n_rows: int
    n_cols: int
    promised: int | None = None

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class _Layout:
    """Where the entries of a file begin, its first id, and what `where` promises of them."""

    start: int = 0
    first_id: int = 0
    shape: tuple[int, int] | None = None
    entries: int | None = None
    where: str = "the header"
    pairs: bool = False


@dataclass(frozen=True)
class Within:
    """The shape of something that entries speak of, and its name."""

    n_rows: int
    n_cols: int
    name: str


def read_triplets(
    path: str | os.PathLike[str],
    part: int = 0,
    parts: int = 1,
    *,
    one_based: bool = False,
    format: str = "auto",
    most: int = 2**63 - 1,
    offsets: Offsets | None = None,
    within: Within | None = None,
) -> Triplets:
    """Read the lines that begin in the part-th of `parts` equal byte ranges of a file.

    Args:
        path: text with a line `row col value` for each entry, separated by spaces or tabs, with
            LF or CRLF; empty lines and lines that begin with # or % are passed over. Or
            MatrixMarket "coordinate real|integer general".
        one_based: ids of a text file begin at 1 (those of MatrixMarket always do).
        format: "auto" takes a file for MatrixMarket when it begins with %%MatrixMarket.
        most: ids (0-based) from this one on are refused.
        offsets: Petuum's offsets of this file, which give the shape of a text file.
        within: what the entries must fit into; they may then lack their value, which is NaN.

    Raises:
        Misuse: the file cannot be read, has no entries (see `check_whole`), or has a bad line: one
            line of text with file, line number and what is wrong.
    """
    chunks = list(
        _read(
            path,
            part,
            parts,
            one_based=one_based,
            format=format,
            most=most,
            offsets=offsets,
            within=within,
        )
    )
    rows = np.concatenate([chunk.rows for chunk in chunks])
    cols = np.concatenate([chunk.cols for chunk in chunks])
    values = np.concatenate([chunk.values for chunk in chunks])
    n_rows, n_cols = (max(chunk.n_rows for chunk in chunks), max(chunk.n_cols for chunk in chunks))
    read = Triplets(rows, cols, values, n_rows, n_cols, chunks[0].promised)
    if parts == 1:
        check_whole(path, len(read), read.promised)
    return read


def read_chunks(path: str | os.PathLike[str], **how: Any) -> Iterator[Triplets]:
    """Read a whole file chunk by chunk, in bounded memory; arguments and errors as above."""
    entries, promised = 0, None
    for chunk in _read(path, 0, 1, **how):
        entries, promised = entries + len(chunk), chunk.promised
        yield chunk
    check_whole(path, entries, promised)


def _read(
    name: str | os.PathLike[str],
    part: int,
    parts: int,
    *,
    one_based: bool = False,
    format: str = "auto",
    most: int = 2**63 - 1,
    offsets: Offsets | None = None,
    within: Within | None = None,
) -> Iterator[Triplets]:
    """The entries of a part, a chunk at a time; at least one chunk, though it be empty."""
    path = Path(name)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            layout = _layout(path, file, one_based, format, offsets)
            if within is not None:
                layout = _inside(path, layout, within)
            if layout.shape is not None and max(layout.shape) > most:
                raise Misuse(
                    f"{path}: {layout.where} gives a size that is too large: {layout.shape}"
                )
            begin, end = max(layout.start, size * part // parts), size * (part + 1) // parts
            nothing = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
            shape = layout.shape or (0, 0)
            yield Triplets(*nothing, *shape, layout.entries)
            for rows, cols, values in _parsed(path, file, begin, end, layout, most):
                shape = layout.shape or (_extent(rows), _extent(cols))
                yield Triplets(rows, cols, values, *shape, layout.entries)
    except OSError as error:
        raise Misuse(f"{path}: cannot read it: {error.strerror or error}") from None


def _inside(path: Path, layout: _Layout, within: Within) -> _Layout:
    """The layout of a file whose entries must fit. Raises Misuse where its header denies it."""
    shape = within.n_rows, within.n_cols
    if layout.shape is not None and (layout.shape[0] > shape[0] or layout.shape[1] > shape[1]):
        raise Misuse(f"{path}: its size is {layout.shape}, that of {within.name} is {shape}")
    return replace(layout, shape=shape, where=within.name, pairs=True)


def check_whole(path: str | os.PathLike[str], entries: int, promised: int | None) -> None:
    """Raise Misuse where a file has no entries in all, or not as many as its header promises.

    `read_triplets` does it for a whole file; who reads in parts calls this with their sum.
    """
    if not entries:
        raise Misuse(f"{path}: no entries in it")
    if promised not in (None, entries):
        raise Misuse(f"{path}: {promised} entries are promised for it, it has {entries}")


def _extent(ids: npt.NDArray[np.int64]) -> int:
    return int(ids.max()) + 1 if len(ids) else 0


def _parsed(
    path: Path, file: BinaryIO, begin: int, end: int, layout: _Layout, most: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    """The entries of the lines that begin in [begin, end), a chunk at a time."""
    shortest = parse.SHORTEST_PAIR if layout.pairs else parse.SHORTEST_LINE
    room = (_CHUNK_BYTES + 1) // shortest + 1
    rows, cols = np.empty(room, np.int64), np.empty(room, np.int64)
    values = np.empty(room, np.float32)
    sizes = layout.shape or (most, most)
    for start, lines in _whole_lines(path, file, begin, end, layout.start):
        text = np.frombuffer(lines, np.uint8)
        count, bad, wrong = parse.parse_lines(text, rows, cols, values, layout.pairs)
        if wrong:
            raise _bad_line(path, file, start + bad, _WRONG[wrong])
        for ids, what, size in zip((rows[:count], cols[:count]), _SIDES, sizes, strict=True):
            ids -= layout.first_id
            outside = np.flatnonzero((ids < 0) | (ids >= size))
            if len(outside):
                where = start + _offset_of_entry(lines, int(outside[0]))
                huge = layout.shape is None and ids[outside[0]] >= 0
                too_large = f"the {what} id is too large: below {most} is read"
                raise _bad_line(path, file, where, too_large if huge else _outside(layout))
        yield rows[:count].copy(), cols[:count].copy(), values[:count].copy()


def _outside(layout: _Layout) -> str:
    if layout.shape is None:
        return "an id 0 in data whose ids begin at 1"
    first = layout.first_id
    rows, cols = (f"{first}..{size - 1 + first}" for size in layout.shape)
    return f"an id outside {rows} x {cols}, the size in {layout.where}"


def _whole_lines(
    path: Path, file: BinaryIO, begin: int, end: int, floor: int
) -> Iterator[tuple[int, bytes]]:
    """Cut the lines that begin in [begin, end) into chunks: (offset of the first line, bytes)."""
    if begin > floor:
        file.seek(begin - 1)
        begin += len(_line(path, file, begin - 1)) - 1
    file.seek(begin)
    while begin < end:
        chunk = file.read(min(_CHUNK_BYTES, end - begin))
        if not chunk:
            return
        if begin + len(chunk) >= end and not chunk.endswith(b"\n"):
            chunk += _line(path, file, begin + len(chunk))
        cut = chunk.rfind(b"\n") + 1 or len(chunk)
        if begin + len(chunk) < end and not chunk.endswith(b"\n"):
            if b"\n" not in chunk:
                raise _bad_line(path, file, begin, f"a line of more than {_CHUNK_BYTES} bytes")
            chunk = chunk[:cut]
            file.seek(begin + cut)
        yield begin, chunk
        begin += len(chunk)


def _line(path: Path, file: BinaryIO, offset: int) -> bytes:
    """The rest of the line that the file stands in, with its newline if it has one."""
    line = file.readline(_CHUNK_BYTES)
    if len(line) == _CHUNK_BYTES:
        raise _bad_line(path, file, offset, f"a line of more than {_CHUNK_BYTES} bytes")
    return line


def _offset_of_entry(lines: bytes, entry: int) -> int:
    """Where in `lines` the line of the entry-th entry begins."""
    at = 0
    for line in lines.splitlines(keepends=True):
        bare = line.strip()
        if bare and bare[:1] not in (b"#", b"%"):
            if entry == 0:
                break
            entry -= 1
        at += len(line)
    return at


def _bad_line(path: Path, file: BinaryIO, offset: int, wrong: str) -> Misuse:
    """The error for the line that holds byte `offset`, with its number and its text."""
    file.seek(0)
    number, left = 1, offset
    while left > 0:
        block = file.read(min(_CHUNK_BYTES, left))
        if not block:
            break
        number += block.count(b"\n")
        left -= len(block)
    text = file.readline(4 * _SHOWN).decode("utf-8", "replace").strip()
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
    return Misuse(f"{path}, line {number}: {wrong}: {shown!r}")


def _layout(
    path: Path, file: BinaryIO, one_based: bool, format: str, offsets: Offsets | None
) -> _Layout:
    """Look at the head of a file. Raises Misuse for a header that is not understood."""
    if format not in FORMATS:
        raise Misuse(f"format {format!r} is none of {', '.join(FORMATS)}")
    head = file.readline(1024)
    check_unpacked(path, head)
    marked = head[: len(_BANNER)].lower() == _BANNER.lower()
    if format == "text" or (format == "auto" and not marked):
        if head.startswith(_BOM):
            raise Misuse(f"{path}, line 1: it begins with a byte order mark; save it without one")
        if offsets is None:
            return _Layout(first_id=1 if one_based else 0)
        check_offsets(offsets, path)
        shape = offsets.n_rows, offsets.n_cols
        return _Layout(0, 1 if one_based else 0, shape, offsets.entries, str(offsets.path))
    banner = head.decode("latin-1").lower().split()
    good = banner[1:3] == ["matrix", "coordinate"] and len(banner) == 5
    if not good or banner[0] != _BANNER.decode().lower():
        raise Misuse(
            f"{path}, line 1: not a header `%%MatrixMarket matrix coordinate real general`"
        )
    if banner[3] not in ("real", "integer") or banner[4] != "general":
        raise Misuse(f"{path}, line 1: of MatrixMarket only real or integer and general is read")
    number = 1
    while line := file.readline(_CHUNK_BYTES):
        number += 1
        if line.strip() and not line.lstrip().startswith(b"%"):
            fields = line.split()
            if len(fields) != 3 or not all(field.isdigit() for field in fields):
                raise Misuse(f"{path}, line {number}: not a size line `rows columns entries`")
            n_rows, n_cols, entries = map(int, fields)
            return _Layout(file.tell(), 1, (n_rows, n_cols), entries)
    raise Misuse(f"{path}: the line with its size is missing")
