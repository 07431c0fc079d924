"""The generated ratings have the rank, the noise and the skew that they promise."""

from __future__ import annotations

import numpy as np
import pytest

from diml.data.planted import Planted, planted
from diml.errors import Misuse


def test_the_same_seed_gives_the_same_entries() -> None:
    plan = Planted(50, 30, 1000, seed=4)
    first, second = planted(plan), planted(plan)
    assert np.array_equal(first.rows, second.rows)
    assert np.array_equal(first.values, second.values)
    assert not np.array_equal(first.values, planted(Planted(50, 30, 1000, seed=5)).values)
    assert (first.n_rows, first.n_cols, len(first)) == (50, 30, 1000)


def test_without_noise_the_rank_is_the_planted_one() -> None:
    entries = planted(Planted(20, 15, 20_000, rank=3, noise=0.0))
    matrix = np.full((20, 15), np.nan)
    matrix[entries.rows, entries.cols] = entries.values
    assert not np.isnan(matrix).any()
    singular = np.linalg.svd(matrix, compute_uv=False)
    assert singular[2] > 0.1
    assert singular[3] < 1e-4


def test_noise_and_signal_have_their_sizes() -> None:
    clear = planted(Planted(300, 200, 100_000, noise=0.0, seed=1))
    noisy = planted(Planted(300, 200, 100_000, noise=0.5, seed=1))
    assert np.array_equal(clear.rows, noisy.rows)
    assert np.std(clear.values) == pytest.approx(1.0, rel=0.1)
    assert np.std(noisy.values - clear.values) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("skew", [0.0, 0.8, 1.0, 1.5])
def test_skew_makes_heavy_rows(skew: float) -> None:
    entries = planted(Planted(1000, 1000, 200_000, skew=skew))
    counts = np.sort(np.bincount(entries.rows, minlength=1000))[::-1]
    weights = (np.arange(1000) + 10.0) ** -skew
    expected = 200_000 * weights[:50].sum() / weights.sum()
    assert counts[:50].sum() == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("bad", [{"rows": 0}, {"rank": 0}, {"noise": -1.0}, {"skew": np.nan}])
def test_impossible_plans_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(Misuse, match=next(iter(bad))):
        Planted(**{"rows": 5, "cols": 5, "entries": 5, **bad})  # type: ignore[arg-type]
