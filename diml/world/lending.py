"""Memory that a process shares with others of its host: what it hands over there is theirs at once.

Owns the blocks of such memory, who still uses them, and a list by borrower of what was handed over.
Must not know MPI nor what the bytes mean. Invariants: what has been handed over is the borrower's,
whatever becomes of its owner; several arrays are handed over together or not at all; a block is
given out again only when nobody looks at it any more, neither its owner nor any borrower.

The memory has no name: a borrower reaches it through the owner's descriptor. A block is used by its
owner as long as the array of it lives, and by a borrower as long as its flag is set: the owner sets
it, and the borrower clears it once his own last array of it is gone. Each number in it has one
writer, and a list's count is written after its entries. Other processes must see that in the same
order, which x86 promises.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import secrets
import weakref
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

BORROWERS_MAX = 8
# What a borrower has not taken yet, at most: who comes to lag further behind must be waited for.
LIST_MAX = 32
_NAME = "diml-lent"
_TOKEN_BYTES = 16
_BLOCKS_MAX = 512
# By borrower: arrays handed over, arrays taken; and for each of the latest block, start, length.
_COUNTS, _ENTRIES, _FLAGS = 64, 64 + 16 * BORROWERS_MAX, 64 + (16 + 24 * LIST_MAX) * BORROWERS_MAX
_FIRST = -(-(_FLAGS + _BLOCKS_MAX * BORROWERS_MAX) // 4096) * 4096
# Address space only: pages that nobody has written take no memory.
_CAPACITY_BYTES = 256 << 20
_BLOCK_BYTES_MIN = 1 << 12
_HANDED, _TAKEN = 0, 1


class Offer(NamedTuple):
    """Where a borrower finds an owner's memory; the token tells that it is the right one."""

    pid: int
    descriptor: int
    token: bytes


class _Layout:
    """The numbers at the beginning of the memory."""

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        counts = np.frombuffer(memory, np.int64, 2 * BORROWERS_MAX, _COUNTS)
        entries = np.frombuffer(memory, np.int64, 3 * LIST_MAX * BORROWERS_MAX, _ENTRIES)
        flags = np.frombuffer(memory, np.uint8, _BLOCKS_MAX * BORROWERS_MAX, _FLAGS)
        self.counts = counts.reshape(BORROWERS_MAX, 2)
        self.entries = entries.reshape(BORROWERS_MAX, LIST_MAX, 3)
        self.flags = flags.reshape(_BLOCKS_MAX, BORROWERS_MAX)


class _Block:
    """A part of the memory; `array` is what its owner was given of it last."""

    __slots__ = ("array", "key", "number", "start")

    def __init__(self, number: int, start: int) -> None:
        self.number, self.start = number, start
        self.array: weakref.ref[Bytes] | None = None
        self.key = 0


class Lender:
    """Memory as its owner sees it."""

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        """`memory` is full of zeros."""
        self.memory = memory
        self._layout = _Layout(memory)
        self._by_size: dict[int, list[_Block]] = {}
        self._by_array: dict[int, _Block] = {}
        self._blocks, self._end = 0, _FIRST

    def room(self, length: int) -> Bytes | None:
        """An array of so many bytes that nobody uses; None where the memory is full."""
        size = max(_BLOCK_BYTES_MIN, 1 << max(length - 1, 0).bit_length())
        block = self._free(size)
        if block is None:
            return None
        if self._by_array.get(block.key) is block:
            del self._by_array[block.key]
        array: Bytes = np.frombuffer(self.memory, np.uint8, length, block.start)
        block.array, block.key = weakref.ref(array), id(array)
        self._by_array[block.key] = block
        return array

    def _free(self, size: int) -> _Block | None:
        blocks = self._by_size.setdefault(size, [])
        # From the first one on: what was used a moment ago is still in a cache.
        for block in blocks:
            if self._unused(block):
                return block
        if self._end + size > len(self.memory) or self._blocks == _BLOCKS_MAX:
            return None
        block = _Block(self._blocks, self._end)
        self._blocks, self._end = self._blocks + 1, self._end + size
        blocks.append(block)
        return block

    def _unused(self, block: _Block) -> bool:
        held = block.array is not None and block.array() is not None
        return not (held or any(self._layout.flags[block.number].tolist()))

    def hand_over(self, arrays: Sequence[Bytes], borrower: int) -> bool:
        """Give a borrower (a number below `BORROWERS_MAX`) these arrays, to which nobody writes
        from now on: those that `room` gave as they are, others as copies. False, and nothing is
        given, if there is no room for them, or he has not taken what he was given before."""
        layout = self._layout
        handed, taken = layout.counts[borrower].tolist()
        if handed + len(arrays) - taken > LIST_MAX:
            return False
        given = []
        for array in arrays:
            block = self._by_array.get(id(array))
            if block is None or block.array is None or block.array() is not array:
                copy = self.room(len(array))
                if copy is None:
                    return False
                copy[:] = array
                block, array = self._by_array[id(copy)], copy
            given.append((block, array))
        for number, (block, array) in enumerate(given, handed):
            layout.flags[block.number, borrower] = 1
            layout.entries[borrower, number % LIST_MAX] = block.number, block.start, len(array)
        layout.counts[borrower, _HANDED] = handed + len(given)
        return True


class Borrowed:
    """Memory of another process as a borrower sees it."""

    def __init__(self, memory: mmap.mmap | bytearray, borrower: int) -> None:
        self._memory, self._borrower = memory, borrower
        self._layout = _Layout(memory)
        self._counts = self._layout.counts[borrower]

    @property
    def waiting(self) -> bool:
        """Whether something was handed over that has not been taken."""
        return bool(self._counts.item(_HANDED) != self._counts.item(_TAKEN))

    def take(self) -> list[Bytes]:
        """What was handed over since the last time, in that order. Each block is the owner's again
        when the last array of it is gone here."""
        handed, taken = self._counts.tolist()
        arrays = []
        for number in range(taken, handed):
            block, start, length = self._layout.entries[self._borrower, number % LIST_MAX].tolist()
            array: Bytes = np.frombuffer(self._memory, np.uint8, length, start)
            give_back = weakref.finalize(array, _clear, self._layout.flags, block, self._borrower)
            give_back.atexit = False
            arrays.append(array)
        self._counts[_TAKEN] = handed
        return arrays


def _clear(flags: Bytes, block: int, borrower: int) -> None:
    flags[block, borrower] = 0


def lend() -> tuple[Lender, Offer] | None:
    """New memory of this process to be lent, and where others find it; None where there is no
    such memory or where its order of writes is not kept."""
    if not hasattr(os, "memfd_create") or platform.machine() != "x86_64":
        return None
    try:
        descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _CAPACITY_BYTES)
        memory = mmap.mmap(descriptor, _CAPACITY_BYTES)
    except OSError:
        return None
    lender = Lender(memory)
    weakref.finalize(lender, os.close, descriptor)
    token = secrets.token_bytes(_TOKEN_BYTES)
    memory[:_TOKEN_BYTES] = token
    return lender, Offer(os.getpid(), descriptor, token)


def borrow(offer: Offer, borrower: int) -> Borrowed | None:
    """The memory that was offered; None if it cannot be reached from here, as from another host or
    from a container of its own."""
    path = f"/proc/{offer.pid}/fd/{offer.descriptor}"
    with contextlib.suppress(OSError, ValueError):
        # To open what happens to have this number elsewhere could have effects of its own.
        if not os.readlink(path).startswith(f"/memfd:{_NAME}"):
            return None
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            memory = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
        if memory[:_TOKEN_BYTES] == offer.token:
            return Borrowed(memory, borrower)
    return None
