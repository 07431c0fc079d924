"""Petuum's text offsets file: the shape of a matrix, and where blocks of its text file begin.

Owns the format: `rows columns entries` on the first line, then byte offsets, separated by white
space, each the beginning of a line. Invariant: offsets that do not fit the data are refused; none
is passed over.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from diml.errors import Misuse

_MOST = 2**63 - 1
_SHOWN = 40


@dataclass(frozen=True)
class Offsets:
    """What an offsets file says: the shape, the number of entries, the beginnings of blocks."""

    path: Path
    n_rows: int
    n_cols: int
    entries: int
    starts: tuple[int, ...]


def read_offsets(path: str | os.PathLike[str]) -> Offsets:
    """Read an offsets file. Raises Misuse, naming file and line, where it makes no sense."""
    path = Path(path)
    shape: list[int] = []
    starts: list[int] = []
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                found = [_number(word, path, number) for word in line.split()]
                if not shape:
                    shape = found
                    if found and (len(found) != 3 or 0 in found):
                        raise _wrong(path, number, "not a line `rows columns entries`", line)
                    continue
                for start in found:
                    if starts and start <= starts[-1]:
                        raise _wrong(path, number, "the offsets do not rise", line)
                    starts.append(start)
    except OSError as error:
        raise Misuse(f"{path}: cannot read it: {error.strerror or error}") from None
    if not shape:
        raise Misuse(f"{path}: the line `rows columns entries` is missing")
    if not starts or starts[0] != 0:
        raise Misuse(f"{path}: its first offset is not 0: what stands before it would be left out")
    return Offsets(path, shape[0], shape[1], shape[2], tuple(starts))


def check_offsets(offsets: Offsets, data: str | os.PathLike[str]) -> None:
    """Raise Misuse, naming the offset, unless each is the beginning of a line of the data."""
    try:
        with open(data, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for start in offsets.starts:
                if start >= size or (start and os.pread(file.fileno(), 1, start - 1) != b"\n"):
                    raise Misuse(f"{offsets.path}: no line of {data} begins at byte {start}")
    except OSError as error:
        raise Misuse(f"{data}: cannot read it: {error.strerror or error}") from None


def _number(word: bytes, path: Path, line: int) -> int:
    # isdigit of bytes knows ASCII only; a limit on the length keeps int() from long work.
    if not word.isdigit() or len(word) > len(str(_MOST)) or int(word) > _MOST:
        raise _wrong(path, line, "not whole numbers from 0 on", word)
    return int(word)


def _wrong(path: Path, line: int, what: str, text: bytes) -> Misuse:
    return Misuse(
        f"{path}, line {line}: {what}: {text.decode('utf-8', 'replace').strip()[:_SHOWN]!r}"
    )
