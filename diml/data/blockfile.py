"""The file of `diml convert`: known entries in HDF5, cut into cells that are read one by one.

Owns the format. Must not know who trains on the entries, nor how they came into their order.

Rows and columns are renumbered so that those of one group are neighbours: rows of group g are
row_ends[g] .. row_ends[g + 1] - 1, columns likewise. A cell is what a group of rows has in a group
of columns; cells stand by column group, then row group, and cell x has the entries cell_ends[x] ..
cell_ends[x + 1] - 1 of the datasets `places` and `values`. An entry's place tells its row and its
column, both counted from the beginning of their group: row << col_bits | col. All datasets are
contiguous and plain, so HDF5 is needed to make the file, not to read it: the first 4096 bytes,
which HDF5 leaves to the user, hold in JSON where each dataset lies and a CRC-32 of all but the
entries. Each cell has a checksum of its own (see `diml.data.grid`).

Invariants: the head is written last, so a file is whole or has none; whatever is damaged ends as
Misuse that names the file, never as other entries.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diml.errors import Misuse

HEAD_BYTES = 4096
ENTRIES = ("places", "values")
TEST = ("test_rows", "test_cols", "test_values")
_FAMILY = b'{"diml-blocks": '
_MAGIC = _FAMILY + b"3, "
_HEX = 8
_COL_BITS_MAX = 32
_READ_BYTES = 1 << 24
# Read what the page cache has, and do not wait for the disk: not known to every C library.
_AT_ONCE = getattr(os, "RWF_NOWAIT", None)
_DTYPES = {
    **dict.fromkeys(("test_rows", "test_cols"), "<i4"),
    **dict.fromkeys(("values", "test_values"), "<f4"),
    **dict.fromkeys(("row_ids", "col_ids", "row_entries", "col_entries"), "<i8"),
    **dict.fromkeys(("row_ends", "col_ends", "cell_ends"), "<i8"),
    "cell_checks": "<u8",
}
_NUMBERS = ("n_rows", "n_cols", "entries", "test_entries", "row_groups", "col_groups", "seed")
_FACTS = (*_NUMBERS, "col_bits", "place_bytes")
PLACE_BYTES = (2, 4, 8)

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Facts:
    """What the head says of the matrix.

    Attributes:
        n_rows, n_cols: its shape.
        entries, test_entries: known entries to train on, and held out.
        row_groups, col_groups: how it is cut.
        col_bits: of a place, those that tell the column.
        place_bytes: width of a place.
        seed: of the order of the entries and of what is held out.
        test_fraction: the share of the source that was held out.
        one_based: whether the ids of a text source were read as beginning at 1.
        mean: of the values to train on.
        source: the files that were converted: names and lengths.
    """

    n_rows: int
    n_cols: int
    entries: int
    test_entries: int
    row_groups: int
    col_groups: int
    col_bits: int
    place_bytes: int
    seed: int
    test_fraction: float
    one_based: bool
    mean: float
    source: str

    def counts(self) -> dict[str, int]:
        """Length of each dataset."""
        groups = {"row_ends": self.row_groups + 1, "col_ends": self.col_groups + 1}
        cells = self.row_groups * self.col_groups
        return {
            **dict.fromkeys(ENTRIES, self.entries),
            **dict.fromkeys(TEST, self.test_entries),
            "row_ids": self.n_rows,
            "row_entries": self.n_rows,
            "col_ids": self.n_cols,
            "col_entries": self.n_cols,
            **groups,
            "cell_ends": cells + 1,
            "cell_checks": cells,
        }

    def dtype(self, name: str) -> np.dtype[Any]:
        """Of a dataset."""
        return np.dtype(f"<u{self.place_bytes}" if name == "places" else _DTYPES[name])


def is_block_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of these, or any other HDF5 file, going by its first bytes."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(_MAGIC))
    except OSError:
        return False
    return head.startswith((_FAMILY, b"\x89HDF\r\n\x1a\n"))


class Writer:
    """A file in the making, beside its place. `put` what it has, then `finish`."""

    def __init__(self, path: Path, facts: Facts) -> None:
        """Lay the file out. Raises Misuse if it cannot be written."""
        import h5py  # not at the top: reading these files does without it

        self.path, self.facts = path, facts
        self._beside = path.with_name(f".{path.name}.part")
        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_layout(h5py.h5d.CONTIGUOUS)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        # The same data give the same file, and so the same fingerprint, whenever it is made.
        early.set_obj_track_times(False)
        self._offsets = {}
        try:
            with h5py.File(self._beside, "w", userblock_size=HEAD_BYTES, locking=False) as file:
                for name, count in facts.counts().items():
                    kind = h5py.h5t.py_create(facts.dtype(name))
                    space = h5py.h5s.create_simple((count,))
                    made = h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=early)
                    self._offsets[name] = int(made.get_offset()) if count else 0
            self._file = os.open(self._beside, os.O_RDWR)
        except OSError as error:
            raise Misuse(f"{path}: cannot write it: {error.strerror or error}") from None

    def put(self, name: str, first: int, data: npt.NDArray[Any]) -> None:
        """Write a part of a dataset, from place `first` on. Raises OSError."""
        data = np.ascontiguousarray(data, self.facts.dtype(name))
        assert first >= 0 and first + len(data) <= self.facts.counts()[name]
        write(self._file, data.view(np.uint8).data, self._offsets[name] + first * data.itemsize)

    def finish(self) -> None:
        """Write the head and give the file its name."""
        crc = _outline(self._file, self._offsets, self.facts)
        write(self._file, memoryview(_head_text(self.facts, self._offsets, crc)), 0)
        os.fsync(self._file)
        os.close(self._file)
        self._beside.replace(self.path)

    def discard(self) -> None:
        """Remove what has not been finished."""
        if self._beside.exists():
            os.close(self._file)
            self._beside.unlink()


class BlockFile:
    """A file that is read; what it says is checked once, its cells whenever they are read."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open it. Raises Misuse if it is damaged, cut short, or none of these."""
        self.path = Path(path)
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise Misuse(f"{path}: cannot read it: {error.strerror or error}") from None
        self.facts, self.offsets, self.crc = self._head()
        if _outline(self._file, self.offsets, self.facts) != self.crc:
            raise _damaged(self.path, "its checksum differs")
        self._check()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    @property
    def descriptor(self) -> int:
        """The open file, for `os.preadv`."""
        return self._file

    @property
    def fingerprint(self) -> str:
        """Tells this data set, in this order, from others."""
        facts = self.facts
        return f"{facts.n_rows}x{facts.n_cols}x{facts.entries} {self.crc:08x}"

    @cached_property
    def row_ends(self) -> Ids:
        return self.read("row_ends")

    @cached_property
    def col_ends(self) -> Ids:
        return self.read("col_ends")

    @cached_property
    def cell_ends(self) -> Ids:
        return self.read("cell_ends")

    @cached_property
    def cell_checks(self) -> npt.NDArray[np.uint64]:
        return self.read("cell_checks")

    def read(self, name: str, first: int = 0, count: int | None = None) -> npt.NDArray[Any]:
        """A dataset, or a part of it. Raises Misuse if the file has become shorter."""
        whole = self.facts.counts()[name]
        data = np.empty(whole - first if count is None else count, self.facts.dtype(name))
        try:
            read_into(self._file, data, self.offsets[name] + first * data.itemsize)
        except OSError as error:
            raise _damaged(self.path, str(error)) from None
        return data

    def _head(self) -> tuple[Facts, dict[str, int], int]:
        head = os.pread(self._file, HEAD_BYTES, 0)
        if head.startswith(_FAMILY) and not head.startswith(_MAGIC):
            raise Misuse(
                f"{self.path}: blocks in the format of another version: make it again with "
                "`diml convert`"
            )
        if not head.startswith(_MAGIC):
            raise Misuse(f"{self.path}: not a file of `diml convert`, or not a whole one")
        try:
            content = json.loads(head[: head.index(b"\n")])
            facts = Facts(**content["facts"])
            offsets = {str(name): int(at) for name, at in content["offsets"].items()}
            crc = int(content["crc32"], 16)
        except (ValueError, TypeError, KeyError, AttributeError, UnicodeDecodeError):
            raise _damaged(self.path, "its head makes no sense") from None
        try:
            good = _head_text(facts, offsets, crc) == head
        except (ValueError, TypeError):
            good = False
        if not good or any(type(getattr(facts, name)) is not int for name in _FACTS):
            raise _damaged(self.path, "its head makes no sense")
        if facts.place_bytes not in PLACE_BYTES or not 0 <= facts.col_bits <= _COL_BITS_MAX:
            raise _damaged(self.path, "its head makes no sense")
        size = os.fstat(self._file).st_size
        for name, count in facts.counts().items():
            end = offsets.get(name, size) + count * facts.dtype(name).itemsize
            if count < 0 or end > size:
                raise _damaged(self.path, f"it is cut short, {name} should end at byte {end}")
        return facts, offsets, crc

    def _check(self) -> None:
        """Ends must rise to what they count: everything else is read by them."""
        ends = ("row_ends", "n_rows"), ("col_ends", "n_cols"), ("cell_ends", "entries")
        for name, total in ends:
            found = getattr(self, name)
            whole = found[0] == 0 and found[-1] == getattr(self.facts, total)
            if not whole or (np.diff(found) < 0).any():
                raise _damaged(self.path, f"{name} makes no sense")


def read_into(file: int, data: npt.NDArray[Any], offset: int) -> None:
    """Fill a contiguous array from a file. Raises OSError where the file ends too early."""
    view, done = data.view(np.uint8).data, 0
    while done < data.nbytes:
        got = os.preadv(file, [view[done : done + _READ_BYTES]], offset + done)
        if got == 0:
            raise OSError(f"it ends at byte {offset + done}")
        done += got


def read_cached(file: int, data: npt.NDArray[Any], offset: int) -> bool:
    """Fill a contiguous array from a file if the page cache has all of it; whether it had.

    False too where the system or the file system cannot tell.
    """
    if _AT_ONCE is None:
        return False
    try:
        return os.preadv(file, [data.view(np.uint8).data], offset, _AT_ONCE) == data.nbytes
    except OSError:
        return False


def damaged_cell(path: Path, facts: Facts, cell: int) -> Misuse:
    """The error for a cell whose checksum or ids are wrong."""
    col_group, row_group = divmod(cell, facts.row_groups)
    return _damaged(path, f"the entries of row group {row_group}, column group {col_group} differ")


def _damaged(path: Path, what: str) -> Misuse:
    return Misuse(f"{path}: damaged ({what}): make it again with `diml convert`")


def _head_text(facts: Facts, offsets: Mapping[str, int], crc: int) -> bytes:
    """The one text of a head, so that any other one is a damaged one."""
    body = {"facts": vars(facts), "offsets": dict(offsets), "crc32": f"{crc:0{_HEX}x}"}
    text = _MAGIC + json.dumps(body)[1:].encode() + b"\n"
    if len(text) > HEAD_BYTES:
        raise ValueError("the head is too long")
    return text.ljust(HEAD_BYTES, b"\0")


def _outline(file: int, offsets: Mapping[str, int], facts: Facts) -> int:
    """CRC-32 of what the head says, and of all bytes of the file but the entries and the head."""
    skipped = sorted(
        (offsets[name], facts.entries * facts.dtype(name).itemsize) for name in ENTRIES
    )
    # Offsets too: of another part of the file all other bytes would be as they should be.
    crc = zlib.crc32(json.dumps([vars(facts), dict(offsets)]).encode())
    position, size = HEAD_BYTES, os.fstat(file).st_size
    for start, length in (*skipped, (size, 0)):
        while position < start:
            data = os.pread(file, min(_READ_BYTES, start - position), position)
            if not data:
                return -1
            crc = zlib.crc32(data, crc)
            position += len(data)
        position = max(position, start + length)
    return crc


def write(file: int, view: memoryview, offset: int) -> None:
    """Write all of it at this offset."""
    done = 0
    while done < len(view):
        done += os.pwrite(file, view[done : done + _READ_BYTES], offset + done)
