"""The MPI calls of the collectives whose shape is not known to all beforehand.

Owns how a broadcast and an allgather announce what they carry: a header first, in one message
with what is small. Must not know logs, failures or recovery. Every buffer that MPI is shown is
put into `held` before, so that the caller can keep it if the call fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diml.allreduce.log import Pool, Result, shifted
from diml.allreduce.operation import Array, Reduction
from diml.allreduce.wire import (
    HEADER_BYTES,
    INLINE_BYTES,
    Bytes,
    Header,
    flat,
    pickled,
    size_of,
    unpack,
)
from diml.errors import Mismatch

if TYPE_CHECKING:
    from diml.world.link import Link

_TAG = 2


def reduce(link: Link, pool: Pool, how: Reduction, send: Array, held: list[Any]) -> Result:
    """Allreduce `send` (C-contiguous) into a pooled buffer.

    Where the caller's function raises, at rank 0, which applies it, the result is an object on all
    ranks: the words of the error, and at rank 0 the error itself as its value.
    """
    result = pool.take(send.dtype, send.shape)
    held += [send, result]
    if how.function is None:
        assert how.mpi_op is not None
        link.allreduce(send.view(how.view), result.owner.view(how.view), how.mpi_op)
        return result
    function, errors = how.function, list[Exception]()

    def fold(total: Array, part: Array) -> Array:
        try:
            return total if errors else function(total, part)
        except Exception as error:
            errors.append(error)
            return total

    link.allreduce_custom(send, result.owner, fold)
    words = link.broadcast_object(repr(errors[0]) if errors else "", 0)
    if words:
        failed = pickled(words)
        result = Result("object", failed, len(failed))
        result.value = errors[0] if errors else None
    return result


def parcel(value: Array | bytes) -> tuple[Header, Bytes]:
    """Header and memory of an array, or of an object's pickle."""
    if isinstance(value, bytes):
        return Header(None, (), len(value)), np.frombuffer(value, np.uint8)
    array = np.ascontiguousarray(value).reshape(value.shape)
    return Header(array.dtype, array.shape, array.nbytes), flat(array)


def broadcast(
    link: Link, pool: Pool, value: Array | bytes | None, root: int, held: list[Any]
) -> Result:
    """Give the root's array or pickle to all; `value` is None elsewhere."""
    head = np.zeros(HEADER_BYTES + INLINE_BYTES, np.uint8)
    payload = None
    if value is not None:
        header, payload = parcel(value)
        head[:HEADER_BYTES] = np.frombuffer(header.pack(), np.uint8)
        if header.nbytes <= INLINE_BYTES:
            head[HEADER_BYTES : HEADER_BYTES + header.nbytes] = payload
    held.append(head)
    link.broadcast(head, root)
    header = unpack(head)
    result, memory = _memory_for(pool, header)
    if header.nbytes <= INLINE_BYTES:
        memory[...] = head[HEADER_BYTES : HEADER_BYTES + header.nbytes]
    else:
        if payload is not None:
            memory[...] = payload
        held.append(memory)
        link.broadcast(memory, root)
    if header.dtype is None:
        result.owner = memory.tobytes()
    return result


def allgather(link: Link, pool: Pool, value: Array | bytes, held: list[Any]) -> Result:
    """Join everyone's arrays along their first axis, or list everyone's pickles.

    Raises Mismatch, alike on all ranks, if the values do not go together.
    """
    mine, payload = parcel(value)
    heads = np.empty(link.size * HEADER_BYTES, np.uint8)
    head = np.frombuffer(mine.pack(), np.uint8)
    held += [head, heads, payload]
    link.allgatherv(head, heads, [HEADER_BYTES] * link.size)
    headers = [unpack(one) for one in heads.reshape(link.size, HEADER_BYTES)]
    result, memory = _memory_for(pool, _joined(headers))
    counts = [header.nbytes for header in headers]
    held.append(memory)
    link.allgatherv(payload, memory, counts)
    if mine.dtype is None:
        ends = np.cumsum(counts).tolist()
        owner = [memory[end - n : end].tobytes() for end, n in zip(ends, counts, strict=True)]
        return Result("objects", owner, size_of(owner))
    return result


def shift(link: Link, value: Array | bytes, by: int, held: list[Any]) -> Result:
    """Give everyone's array or pickle to the rank `by` further on the ring."""
    header, payload = parcel(value)
    to, source = (link.rank + by) % link.size, (link.rank - by) % link.size
    head = np.frombuffer(header.pack(), np.uint8)
    their_head = np.empty(HEADER_BYTES, np.uint8)
    held += [head, their_head, payload]
    link.sendrecv(head, to, their_head, source, _TAG)
    theirs = unpack(their_head)
    memory = np.empty(theirs.nbytes, np.uint8)
    held.append(memory)
    link.sendrecv(payload, to, memory, source, _TAG)
    if theirs.dtype is None:
        return shifted(value, memory.tobytes())
    return shifted(value, memory.view(theirs.dtype).reshape(theirs.shape))


def _memory_for(pool: Pool, header: Header) -> tuple[Result, Bytes]:
    """A result of the announced kind, and the flat bytes to fill."""
    if header.dtype is None:
        return Result("object", b"", header.nbytes), np.empty(header.nbytes, np.uint8)
    result = pool.take(header.dtype, header.shape)
    return result, flat(result.owner)


def _joined(headers: list[Header]) -> Header:
    """What all values are together: one array, or objects."""
    first = headers[0]
    nbytes = sum(header.nbytes for header in headers)
    for rank, header in enumerate(headers):
        fits = header.dtype == first.dtype and header.shape[1:] == first.shape[1:]
        if not fits or len(header.shape) != len(first.shape):
            words = [
                "an object" if h.dtype is None else f"{h.dtype} {h.shape}" for h in (first, header)
            ]
            raise Mismatch(f"allgather: rank 0 gives {words[0]}, rank {rank} gives {words[1]}")
    if first.dtype is None:
        return Header(None, (), nbytes)
    length = sum(header.shape[0] for header in headers)
    return Header(first.dtype, (length, *first.shape[1:]), nbytes)
