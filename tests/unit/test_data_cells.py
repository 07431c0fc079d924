"""Cells: each own entry once, in its cell, at random inside it, the same at every call."""

from __future__ import annotations

import numpy as np
import pytest

from diml.data import cells


@pytest.mark.parametrize("blocks", [1, 4])
def test_entries_come_by_block_and_cell_each_once(blocks: int) -> None:
    random = np.random.default_rng(3)
    n, n_rows, n_cols = 50_000, 40_000, 9000
    rows = random.integers(0, n_rows, n).astype(np.int32)
    cols = random.integers(0, n_cols, n).astype(np.int32)
    values = np.arange(n, dtype=np.float32)
    owner = (np.arange(n_rows) % 3 != 0).astype(np.int32)
    row_place = (np.cumsum(owner) - 1).clip(0).astype(np.int32)
    col_block = (np.arange(n_cols) % blocks).astype(np.int32)
    col_place = (np.arange(n_cols) // blocks).astype(np.int32)
    maps = (owner, 1, row_place, col_block, col_place, blocks)
    out = cells.own_cells(rows, cols, values, *maps, 7)  # type: ignore[arg-type]
    found_rows, found_cols, found_values, ends = out

    own = owner[rows] == 1
    source = found_values.astype(np.int64)
    assert np.array_equal(np.sort(source), np.flatnonzero(own))
    assert np.array_equal(found_rows, row_place[rows[source]])
    assert np.array_equal(found_cols, col_place[cols[source]])
    block = np.repeat(np.arange(blocks), np.diff(ends))
    assert np.array_equal(block, col_block[cols[source]])
    place = np.stack([block, found_rows // cells.CELL_ROWS, found_cols // cells.CELL_COLS])
    number = np.ravel_multi_index(tuple(place), (blocks, 100, 100))
    assert (np.diff(number) >= 0).all()
    assert len(np.unique(number)) > blocks

    inside = np.diff(source)[np.diff(number) == 0]
    assert 0.4 < (inside > 0).mean() < 0.6
    again = cells.own_cells(rows, cols, values, *maps, 7)  # type: ignore[arg-type]
    other = cells.own_cells(rows, cols, values, *maps, 8)  # type: ignore[arg-type]
    assert np.array_equal(again[2], found_values)
    assert not np.array_equal(other[2], found_values)


def test_every_order_of_a_cell_is_as_likely() -> None:
    ids = np.zeros(3, np.int32)
    values = np.arange(3, dtype=np.float32)
    one = np.zeros(1, np.int32)
    seen = [
        tuple(cells.own_cells(ids, ids, values, one, 0, one, one, one, 1, seed)[2].tolist())
        for seed in range(1200)
    ]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert counts.min() > 140


def test_columns_are_counted_among_own_rows_only() -> None:
    rows, cols = np.array([0, 1, 1, 2], np.int32), np.array([4, 4, 2, 0], np.int32)
    owner = np.array([1, 0, 0], np.int32)
    assert cells.own_col_entries(rows, cols, owner, 0, 5).tolist() == [1, 0, 1, 0, 1]
