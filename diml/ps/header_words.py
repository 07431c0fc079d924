"""The header of a message (`diml.ps.message`) as compiled code sees it: words of 32 bits.

Owns the place of each field in words; a test holds the two against one another. Pure. Must not know
who says what to whom.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from diml.ps.message import FORMAT, HEADER_BYTES, MAGIC, Bytes

# Fields of 64 bits take two words.
MAGIC_AT, KIND, WORKER, CLOCK, MARK, IDS, ROWS, N = 0, 1, 2, 3, 5, 7, 9, 11
WIDTH, TABLE, SHARD_AND_FILTERS, REQUEST = 12, 13, 14, 15
MAGIC_WORD = int.from_bytes(MAGIC, "little")
# The first word after the magic: kind, dtype code, flags and format, a byte each.
CODE_BIT, FLAGS_BIT, FILTERS_BIT = 8, 16, 16
FORMAT_BITS = FORMAT << 24

Words = NDArray[np.uint32]


@njit(cache=True, nogil=True, inline="always")
def words_of(data: Bytes) -> Words:
    """The words of a message's header."""
    return data[:HEADER_BYTES].view(np.uint32)


@njit(cache=True, nogil=True, inline="always")
def long_at(words: Words, at: int) -> int:
    """A field of 64 bits."""
    return int(np.int64(np.uint64(words[at]) | np.uint64(words[at + 1]) << np.uint64(32)))


@njit(cache=True, nogil=True, inline="always")
def set_long(words: Words, at: int, value: int) -> None:
    """Write a field of 64 bits."""
    words[at] = np.uint32(value & 0xFFFFFFFF)
    words[at + 1] = np.uint32((value >> 32) & 0xFFFFFFFF)
