"""Kernels that take ids from messages: no id and no shape makes them leave their arrays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from diml.kernels import rows as kernels
from diml.ps.message import Kind, Message
from diml.ps.shard import Shard
from diml.ps.tables import TableSpec

ROWS, WIDTH, BASE = 5, 3, 10
Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


def _flags() -> NDArray[np.uint8]:
    return np.zeros(ROWS, np.uint8)


def _slots() -> Ids:
    return np.arange(ROWS)


def _cache_put(values: Floats, ids: Ids, rows: Floats) -> None:
    used = _flags()
    kernels.cache_put(
        np.full(ROWS, -1), np.full(ROWS, -1), values, _slots(), used, 0, ids - BASE, rows, 1
    )


KERNELS: dict[str, Callable[[Floats, Ids, Floats], object]] = {
    "scatter_add": lambda values, ids, rows: kernels.scatter_add(values, BASE, ids, rows),
    "scatter": lambda values, ids, rows: kernels.scatter(values, BASE, ids, rows),
    "sum_by_row": lambda values, ids, rows: kernels.sum_by_row(_slots(), BASE, ids, rows, values),
    "cache_add": lambda values, ids, rows: kernels.cache_add(_slots(), values, ids - BASE, rows),
    "cache_put": _cache_put,
}
BAD = (BASE - 1, BASE + ROWS, -1, 0, 2**62, -(2**62), 2**63 - 1, -(2**63))


@pytest.mark.parametrize("name", list(KERNELS))
def test_rows_that_are_not_there_are_refused(name: str) -> None:
    around = np.zeros((3 * ROWS, WIDTH))
    values = around[ROWS : 2 * ROWS]
    KERNELS[name](values, np.array([BASE, BASE + ROWS - 1]), np.ones((2, WIDTH)))
    for bad in BAD:
        with pytest.raises(IndexError):
            KERNELS[name](values, np.array([BASE + 2, bad]), np.ones((2, WIDTH)))
    for shape in ((1, WIDTH), (2, WIDTH - 1)):
        with pytest.raises(IndexError):
            KERNELS[name](values, np.array([BASE, BASE + 1]), np.ones(shape))
    assert not around[:ROWS].any() and not around[2 * ROWS :].any()


@pytest.mark.parametrize("bad", BAD)
def test_marks_of_rows_that_are_not_there_are_refused(bad: int) -> None:
    around = np.zeros(3 * ROWS, np.uint8)
    flags, ids = around[ROWS : 2 * ROWS], np.array([BASE, bad])
    with pytest.raises(IndexError):
        kernels.mark_new(flags, BASE, ids, np.empty(2, np.int64))
    with pytest.raises(IndexError):
        kernels.unmark(flags, BASE, ids)
    assert not around.any()


@njit
def add_one(w: Floats, state: Floats, g: Floats, t: int, options: Floats) -> None:
    w += g


@pytest.mark.parametrize("rule", ["add", "sgd", "adagrad", "adarevision", "ftrl", "user"])
def test_a_server_refuses_updates_of_rows_that_are_not_its_own(rule: str) -> None:
    """Of two servers the second: an id of the first one's rows is as wrong as one of nobody's."""
    name = f"{__name__}:add_one" if rule == "user" else rule
    spec = TableSpec("t", 2 * ROWS, WIDTH, "float64", rule=name)
    shard = Shard(1, 2, 1)
    shard.define(spec)
    shard.track = rule == "add"
    for bad in (0, ROWS - 1, 2 * ROWS, -1):
        message = Message(
            Kind.UPDATE, table=spec.id, ids=np.array([bad]), values=np.ones((1, spec.width))
        )
        with pytest.raises(IndexError):
            shard.apply(message, last=False)
        assert not shard.tables[spec.id].values.any()
