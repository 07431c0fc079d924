"""What a collective is: its kind, its signature, and what it takes.

Owns the checks of operations and dtypes and the hash that must agree on all ranks. Must not know
MPI or the log. Invariant: equal calls have equal signatures in every process of a run (only
integers are hashed, so that the hash does not depend on the process).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diml.allreduce.log import Site
from diml.allreduce.protocol import HASH_MASK
from diml.errors import Misuse

Array: TypeAlias = NDArray[Any]
Reducer: TypeAlias = "str | Callable[[Array, Array], Any]"


class Kind(IntEnum):
    """What ranks can ask for together."""

    ALLREDUCE = 1
    BROADCAST = 2
    ALLGATHER = 3
    BARRIER = 4
    LOAD = 5
    CHECKPOINT = 6
    LOCAL_CHECKPOINT = 7
    EXIT = 8
    SHIFT = 9


@dataclass(frozen=True, slots=True)
class Request:
    """One rank's wish, as far as the protocol is concerned.

    Attributes:
        kind: what it is.
        signature: hash of all that must agree among the ranks.
        site: who calls.
        synchronising: no rank can finish before all have begun.
        by: of a shift, how many ranks further the value goes.
        sent: of a shift, what this rank gives: an array, or the bytes of an object.
        details: what must agree beside the kind, for the words of a mismatch.
    """

    kind: Kind
    signature: int
    site: Site
    synchronising: bool = True
    by: int | None = None
    sent: Any = None
    details: tuple[object, ...] = ()

    def __str__(self) -> str:
        """The call site, and what is called there."""
        words = [getattr(one, "__name__", str(one)) for one in self.details]
        return f"{self.site} ({' '.join([self.kind.name.lower(), *words])})"


def signature(kind: Kind, *numbers: int | tuple[int, ...]) -> int:
    """Hash the kind of a call and what must agree of its arguments; 62 bits, never negative."""
    return hash((int(kind), *numbers)) & HASH_MASK


@dataclass(frozen=True, slots=True)
class Reduction:
    """How an allreduce of one dtype is carried out.

    Attributes:
        code: the part of the signature that stands for op and dtype.
        mpi_op: MPI's operation, or None where `function` is applied instead.
        function: of two arrays, elementwise or not.
        view: the dtype that MPI is shown (bool goes as uint8).
    """

    code: tuple[int, ...]
    mpi_op: str | None
    function: Callable[[Array, Array], Any] | None
    view: np.dtype[Any]


_OPS = ("sum", "prod", "max", "min", "bitor")
_FUNCTIONS: dict[str, Callable[[Array, Array], Any]] = {
    "sum": np.add,
    "prod": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}
# Kinds of dtype (NumPy's letters) on which an operation means something.
_KINDS = {"sum": "iufc", "prod": "biufc", "max": "biuf", "min": "biuf", "bitor": "biu"}
# On bytes that are 0 or 1 these are what the operation means for truth values.
_ON_BOOL = {"prod": "min", "max": "max", "min": "min", "bitor": "bitor"}


def reduction(op: Reducer, dtype: np.dtype[Any]) -> Reduction:
    """Settle how `op` is applied to arrays of `dtype` (in native byte order).

    Raises Misuse for an unknown operation, for a dtype that is not numeric, and for what has no
    meaning: max and min of complex numbers, bitor of floats, the sum of truth values.
    """
    if dtype.kind not in "biufc" or not dtype.isnative:
        raise Misuse(f"allreduce takes numeric arrays, not dtype {dtype}")
    if callable(op):
        name = f"{getattr(op, '__module__', '')}.{getattr(op, '__qualname__', type(op).__name__)}"
        return Reduction(
            (len(_OPS), zlib.crc32(name.encode()), dtype.num), None, _folding(op), dtype
        )
    if op not in _OPS:
        raise Misuse(f"allreduce knows {', '.join(_OPS)} or a function of two arrays, not {op!r}")
    if dtype.kind not in _KINDS[op]:
        hint = "; convert it to an integer first" if dtype.kind == "b" else ""
        raise Misuse(f"allreduce: {op} is not defined for dtype {dtype}{hint}")
    code = (_OPS.index(op), dtype.num)
    if dtype.kind == "b":
        return Reduction(code, _ON_BOOL[op], None, np.dtype(np.uint8))
    if dtype == np.float16:
        # MPI has no half precision.
        return Reduction(code, None, _FUNCTIONS[op], dtype)
    return Reduction(code, op, None, dtype)


def _folding(function: Callable[[Array, Array], Any]) -> Callable[[Array, Array], Array]:
    """The caller's function, its result checked and never in the memory of its second argument,
    which holds the next rank's array in the next step."""

    def fold(total: Array, part: Array) -> Array:
        result = np.asarray(function(total, part))
        fits = np.can_cast(result.dtype, total.dtype, "same_kind")
        if result.shape != total.shape or not fits:
            raise Misuse(
                f"allreduce: the function gives {result.dtype} {result.shape}, "
                f"the arrays are {total.dtype} {total.shape}"
            )
        return result.copy() if np.may_share_memory(result, part) else result

    return fold
