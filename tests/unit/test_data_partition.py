"""Shares of equal entries under skew, the same on every rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diml.data.partition import balanced


@given(counts=st.lists(st.integers(0, 1000), min_size=1, max_size=60), parts=st.integers(1, 9))
def test_no_part_is_above_grahams_bound(counts: list[int], parts: int) -> None:
    array = np.array(counts, np.int64)
    owners = balanced(array, parts)
    loads = np.bincount(owners, weights=array, minlength=parts)
    assert len(loads) == parts
    assert loads.max() <= array.sum() / parts + (1 - 1 / parts) * array.max() + 1e-9


@pytest.mark.parametrize("parts", [2, 3, 4, 16])
def test_power_law_rows_are_balanced_within_one_percent(parts: int) -> None:
    counts = (1e6 / np.arange(1, 20_001) ** 0.9).astype(np.int64)
    np.random.default_rng(1).shuffle(counts)
    loads = np.bincount(balanced(counts, parts), weights=counts)
    assert loads.max() <= 1.01 * max(loads.mean(), counts.max())


def test_rows_without_entries_are_spread() -> None:
    owners = balanced(np.zeros(12, np.int64), 4)
    assert np.bincount(owners).tolist() == [3, 3, 3, 3]


def test_the_same_counts_give_the_same_owners() -> None:
    counts = np.random.default_rng(2).integers(0, 9, 500)
    assert np.array_equal(balanced(counts, 5), balanced(counts.copy(), 5))
