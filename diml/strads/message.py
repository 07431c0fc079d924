"""Messages between the scheduling worker and the others, as bytes. Pure.

TASK     scheduler → worker: results that the worker lacks, then a block to compute
RESULT   worker → scheduler: what it computed
END      scheduler → worker: the last results; the segment is over

Layout: int64 kind, task, results; then for each result its block, its values and the time
(float64) to ask `finished` at; then the task's block (TASK) or values (RESULT). An array is int64
length, then its 8-byte items. Invariant: `decode(encode(m)) == m`; a message of another length is
refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.errors import CorruptState

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

TASK, RESULT, END = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Pulled:
    """A result that has been applied: its block, its values, and worker 0's time when it asked
    `finished` after it (0 where it did not)."""

    block: Integers
    values: Floats
    asked: float


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `block` is empty but in TASK, `values` but in RESULT."""

    kind: int
    task: int = 0
    results: tuple[Pulled, ...] = ()
    block: Integers = field(default_factory=lambda: np.empty(0, np.int64))
    values: Floats = field(default_factory=lambda: np.empty(0))


def encode(message: Message) -> NDArray[np.uint8]:
    parts: list[NDArray[Any]] = [
        np.array([message.kind, message.task, len(message.results)], np.int64)
    ]

    def put(array: NDArray[Any], dtype: type) -> None:
        parts.append(np.array([len(array)], np.int64))
        parts.append(np.ascontiguousarray(array, dtype))

    for result in message.results:
        put(result.block, np.int64)
        put(result.values, np.float64)
        parts.append(np.array([result.asked], np.float64))
    put(message.block, np.int64)
    put(message.values, np.float64)
    return np.concatenate([part.view(np.uint8) for part in parts])


def decode(data: NDArray[np.uint8]) -> Message:
    """Raises CorruptState for bytes that `encode` did not make."""
    if len(data) % 8 or len(data) < 40:
        raise CorruptState(f"a message of {len(data)} bytes between schedulers and workers")
    words = np.ascontiguousarray(data).view(np.int64)
    at = 3

    def take(dtype: type) -> NDArray[Any]:
        nonlocal at
        length = int(words[at]) if at < len(words) else -1
        end = at + 1 + length
        if length < 0 or end > len(words):
            raise CorruptState("a message between schedulers and workers is cut short")
        array: NDArray[Any] = words[at + 1 : end].view(dtype)
        at = end
        return array

    results = []
    for _ in range(int(words[2])):
        block, values = take(np.int64), take(np.float64)
        results.append(Pulled(block, values, float(words[at : at + 1].view(np.float64)[0])))
        at += 1
    block, values = take(np.int64), take(np.float64)
    if at != len(words):
        raise CorruptState("a message between schedulers and workers is too long")
    return Message(int(words[0]), int(words[1]), tuple(results), block, values)
