"""Arrays that begin at a cache line.

Owns their allocation. Where rows are a multiple of a line long, none of them, and no load of a
vector, then lies across one line more than it must; NumPy's large arrays begin 16 bytes behind one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LINE_BYTES = 64


def aligned_like(array: NDArray[Any]) -> NDArray[Any]:
    """An uninitialised C-contiguous array of this shape and dtype."""
    memory = np.empty(array.nbytes + _LINE_BYTES, np.uint8)
    first = -memory.ctypes.data % _LINE_BYTES
    return memory[first : first + array.nbytes].view(array.dtype).reshape(array.shape)


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """A C-contiguous copy, writable."""
    copy = aligned_like(array)
    copy[...] = array
    return copy
