"""Messages between the scheduling worker and the others, as bytes. Pure.

TASK     scheduler → worker: results that the worker lacks, then a block to compute
RESULT   worker → scheduler: what it computed
END      scheduler → worker: the last results; the segment is over

Layout: int64 kind, task, results; then for each result its block, its values and the time
(float64) to ask `finished` at; then the task's block (TASK) or values (RESULT). An array is its
dtype (8 characters), int64 dimensions and extents, then its bytes up to a multiple of 8.

Invariants: `decode(encode(m)) == m`; a message of another length is refused; what is decoded is
read-only, as the results of collectives are: the scheduler hands the same values on to others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.errors import CorruptState, Misuse

Integers = NDArray[np.int64]

TASK, RESULT, END = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Pulled:
    """A result that has been applied: its block, its values, and worker 0's time when it asked
    `finished` after it (0 where it did not)."""

    block: Integers
    values: NDArray[Any]
    asked: float


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `block` is empty but in TASK, `values` but in RESULT."""

    kind: int
    task: int = 0
    results: tuple[Pulled, ...] = ()
    block: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    values: NDArray[Any] = field(default_factory=lambda: np.empty(0))


def encode(message: Message) -> NDArray[np.uint8]:
    """Raises Misuse for values that are no numbers."""
    parts: list[NDArray[Any]] = [
        np.array([message.kind, message.task, len(message.results)], np.int64)
    ]

    def put(given: NDArray[Any]) -> None:
        array = np.ascontiguousarray(given).reshape(np.shape(given))
        if array.dtype.kind not in "biufc":
            raise Misuse(f"push gives numbers, not an array of dtype {array.dtype}")
        parts.append(np.frombuffer(array.dtype.str.encode().ljust(8), np.int64))
        parts.append(np.array([array.ndim, *array.shape], np.int64))
        parts.append(array.reshape(-1))
        if rest := -array.nbytes % 8:
            parts.append(np.zeros(rest, np.uint8))

    for result in message.results:
        put(result.block)
        put(result.values)
        parts.append(np.array([result.asked], np.float64))
    put(message.block)
    put(message.values)
    return np.concatenate([part.view(np.uint8) for part in parts])


def decode(data: NDArray[np.uint8]) -> Message:
    """Raises CorruptState for bytes that `encode` did not make."""
    if len(data) % 8 or len(data) < 56:
        raise CorruptState(f"a message of {len(data)} bytes between schedulers and workers")
    words = np.ascontiguousarray(data).view(np.int64)
    words.flags.writeable = False
    at = 3

    def take(count: int) -> Integers:
        nonlocal at
        if not 0 <= count <= len(words) - at:
            raise CorruptState("a message between schedulers and workers is cut short")
        at += count
        return words[at - count : at]

    def take_array() -> NDArray[Any]:
        dtype = np.dtype(take(1).tobytes().decode("ascii").strip())
        shape = tuple(take(int(take(1)[0])).tolist())
        size = math.prod(shape)
        flat = take(-(-size * dtype.itemsize // 8)).view(np.uint8)
        return flat[: size * dtype.itemsize].view(dtype).reshape(shape)

    try:
        results = []
        for _ in range(int(words[2])):
            block, values = take_array(), take_array()
            results.append(Pulled(block, values, float(take(1).view(np.float64)[0])))
        block, values = take_array(), take_array()
    except (ValueError, TypeError, UnicodeDecodeError):
        raise CorruptState("a message between schedulers and workers is damaged") from None
    if at != len(words):
        raise CorruptState("a message between schedulers and workers is too long")
    return Message(int(words[0]), int(words[1]), tuple(results), block, values)
