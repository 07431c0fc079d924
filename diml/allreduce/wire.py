"""The bytes in which results and checkpoints travel between ranks.

Owns two formats: fixed headers for the collectives whose shape only one rank knows (broadcast,
allgather), and whole payloads for recovery, which go through the checksummed codec. Must not know
MPI. Objects are pickled; pickles pass from rank to rank of one run only, never through a file.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diml.allreduce.log import Record, Result
from diml.checkpoint import codec
from diml.errors import Misuse

Array: TypeAlias = NDArray[Any]
Bytes: TypeAlias = NDArray[np.uint8]

DIMENSIONS_MAX = 32
# form (1 array, 0 object), dimensions, dtype, bytes of the payload, shape
_HEADER = struct.Struct(f"<BB14sQ{DIMENSIONS_MAX}Q")
HEADER_BYTES = _HEADER.size
# A payload of up to so many bytes travels in the same message as its header.
INLINE_BYTES = 1024 - HEADER_BYTES
_KINDS = frozenset("biufcmMSU")
_DTYPE_BYTES = 14


@dataclass(frozen=True, slots=True)
class Header:
    """What is announced: an array of some dtype and shape, or the pickle of an object."""

    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    nbytes: int

    def pack(self) -> bytes:
        """The header in its HEADER_BYTES."""
        text = b"" if self.dtype is None else self.dtype.str.encode()
        extents = (*self.shape, *(0,) * (DIMENSIONS_MAX - len(self.shape)))
        form = 0 if self.dtype is None else 1
        return _HEADER.pack(form, len(self.shape), text, self.nbytes, *extents)


def unpack(data: Bytes) -> Header:
    """Read a header."""
    form, dimensions, text, nbytes, *extents = _HEADER.unpack_from(data.data)
    dtype = np.dtype(text.rstrip(b"\0").decode()) if form else None
    return Header(dtype, tuple(extents[:dimensions]), nbytes)


def travels_as_array(value: object) -> bool:
    """Whether a value is sent as raw memory; all else is pickled."""
    return (
        type(value) is np.ndarray
        and value.dtype.kind in _KINDS
        and value.ndim <= DIMENSIONS_MAX
        and len(value.dtype.str) <= _DTYPE_BYTES
    )


def flat(array: Array) -> Bytes:
    """The memory of a C-contiguous array as bytes."""
    return array.reshape(-1).view(np.uint8)


def pickled(value: object) -> bytes:
    """An object as bytes. Raises Misuse if it cannot be pickled."""
    try:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise Misuse(f"a {type(value).__name__} cannot be sent to other ranks: {error}") from error


def value_of(result: Result) -> Any:
    """What the caller of a collective gets; objects are made anew at each call."""
    if result.form == "array":
        return result.value
    if result.form == "object":
        return pickle.loads(result.owner)
    if result.form == "shift":
        return pickle.loads(result.value) if isinstance(result.value, bytes) else result.value
    if result.form == "objects":
        return [pickle.loads(item) for item in result.owner]
    return None


def wrap(payload: Any) -> Bytes:
    """A payload of recovery as one checksummed buffer.

    Payloads are: a list of Records, an encoded state (uint8), a text, or None.
    """
    if not isinstance(payload, list):
        return codec.encode({"plain": payload})
    fields = [
        (r.signature, r.site, r.result.form, r.result.owner, r.clock, r.early) for r in payload
    ]
    return codec.encode({"records": fields})


def unwrap(buffer: Bytes) -> Any:
    """Read what `wrap` wrote. Raises CorruptState if it is damaged."""
    tree = codec.decode(buffer)
    if "plain" in tree:
        return tree["plain"]
    records = []
    for signature, site, form, owner, clock, early in tree["records"]:
        nbytes = owner.nbytes if form == "array" else size_of(owner)
        records.append(Record(signature, site, Result(form, owner, nbytes), clock, early))
    return records


def size_of(owner: Any) -> int:
    """Bytes of pickles that a result holds."""
    if owner is None:
        return 0
    return len(owner) if isinstance(owner, bytes) else sum(len(item) for item in owner)
