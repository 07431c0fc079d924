"""Entries on their way from text to a block file, in files that nobody else reads.

Owns their form there: three arrays, one after the other. Must not know what the entries' order
means, nor where the files are and when they go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import numpy as np
import numpy.typing as npt

from diml.data.blockfile import read_into, write

Ids32 = npt.NDArray[np.int32]
Chunk = tuple[Ids32, Ids32, npt.NDArray[np.float32]]
"""Rows, columns and values of some entries."""


class Spool:
    """Chunks of entries in a file, in the order in which they came."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._counts: list[int] = []

    def append(self, chunk: Chunk) -> None:
        for array in chunk:
            self._file.write(array.data)
        self._counts.append(len(chunk[0]))

    def chunks(self) -> Iterator[Chunk]:
        self._file.seek(0)
        for count in self._counts:
            yield (
                np.frombuffer(self._file.read(4 * count), np.int32),
                np.frombuffer(self._file.read(4 * count), np.int32),
                np.frombuffer(self._file.read(4 * count), np.float32),
            )


class Buckets:
    """Entries by their final number, in a file: all rows, all columns, all values."""

    def __init__(self, file: IO[bytes], entries: int) -> None:
        self._file, self._entries = file.fileno(), entries

    def put(self, first: int, chunk: Chunk) -> None:
        """Write entries from number `first` on."""
        for place, array in enumerate(chunk):
            write(self._file, array.view(np.uint8).data, self._offset(place, first))

    def get(self, first: int, count: int) -> Chunk:
        """Read entries back."""
        ids = np.empty(count, np.int32), np.empty(count, np.int32)
        chunk = (*ids, np.empty(count, np.float32))
        for place, array in enumerate(chunk):
            read_into(self._file, array, self._offset(place, first))
        return chunk

    def _offset(self, place: int, first: int) -> int:
        return 4 * (place * self._entries + first)
