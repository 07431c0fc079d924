"""Fingerprints of matrices that lie in pieces: the same however they are cut into pieces.

Owns the sum that tells one data set from another, for durable checkpoints to be refused to a run
on other data. It is no proof against forgery. Pure.

The fingerprint of an entry is a mixture of its row, its column and the bits of its value (as
float64); that of a piece is the sum of its entries' modulo 2^64, and the sum over the pieces is
the matrix's. Zeros count only where they are stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diml.errors import Misuse

# Odd constants of splitmix64, and the golden ratio: each bit of an entry moves many of the sum.
_GOLDEN, _MIX_1, _MIX_2 = (
    np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_CHUNK = 1 << 20
_MODULUS = 1 << 64


def of_csr(indptr: NDArray[Any], indices: NDArray[Any], data: NDArray[Any], first: int = 0) -> int:
    """Of rows in CSR form (or of columns in CSC form), of which the first is number `first`."""
    total = 0
    for start in range(0, len(data), _CHUNK):
        stop = min(start + _CHUNK, len(data))
        major = np.searchsorted(indptr, np.arange(start, stop), side="right") - 1 + first
        total += _sum(major, indices[start:stop], data[start:stop])
    return total % _MODULUS


def of_dense(array: NDArray[Any], first: int = 0) -> int:
    """Of rows (m, n), or of a vector (m,), of which the first is number `first`."""
    if array.size == 0:
        return 0
    rows = array.reshape(len(array), -1)
    total, step = 0, max(1, _CHUNK // max(1, rows.shape[1]))
    columns = np.arange(rows.shape[1])
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        major = np.arange(start, start + len(piece))[:, None] + first
        total += _sum(major, columns, piece)
    return total % _MODULUS


def of_entries(rows: NDArray[Any], cols: NDArray[Any], values: NDArray[Any]) -> int:
    """Of entries (m,) at (rows, cols), in any order."""
    total = 0
    for start in range(0, len(values), _CHUNK):
        piece = slice(start, start + _CHUNK)
        total += _sum(rows[piece], cols[piece], values[piece])
    return total % _MODULUS


def together(pieces: Iterable[int]) -> str:
    """Of a matrix, as text, from those of its pieces."""
    return f"{sum(pieces) % _MODULUS:016x}"


class Workers(Protocol):
    """Who holds the pieces (`diml.job.Job`)."""

    @property
    def rank(self) -> int: ...
    def allgather(self, value: Any) -> Any: ...


def of_all(workers: Workers, mine: int) -> list[int]:
    """Of every worker's piece, by rank. Collective.

    Raises Misuse on a replacement whose piece is not the one of the worker whose place it takes.
    """
    told: list[int] = workers.allgather(mine)
    if told[workers.rank] != mine:
        raise Misuse(
            f"worker {workers.rank} was replaced where its part of the data is another: put the "
            "same files on all nodes"
        )
    return told


def _sum(major: NDArray[Any], minor: NDArray[Any], values: NDArray[Any]) -> int:
    x = np.ascontiguousarray(values, np.float64).view(np.uint64)
    x = x + (major.astype(np.uint64) * _MIX_1 + minor.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return int(np.sum(x ^ (x >> np.uint64(31)), dtype=np.uint64))
