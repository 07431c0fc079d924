"""What is known of an allreduce before it is called again: no call works it out twice.

Owns the plan of each (op, dtype, shape). Must not know when or whether the call is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diml.allreduce.log import Result
from diml.allreduce.operation import Array, Kind, Reduction, signature


class Plan:
    """All that is known in advance of an allreduce of one op, dtype and shape."""

    __slots__ = ("op", "shelf", "signature", "view")

    def __init__(self, how: Reduction, shape: tuple[int, ...], shelf: list[Result]) -> None:
        self.signature = signature(Kind.ALLREDUCE, how.code, shape)
        self.shelf = shelf
        self.op = how.mpi_op
        self.view = how.view


def native(array: Any) -> Array:
    """As an array in native byte order (a copy only where it is not)."""
    source = np.asarray(array)
    return source if source.dtype.isnative else source.astype(source.dtype.newbyteorder("="))
