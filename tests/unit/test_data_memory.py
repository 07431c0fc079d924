"""Arrays that begin at a cache line, and that what rotation trains on does."""

from __future__ import annotations

import numpy as np
import pytest

from diml.data.memory import aligned, aligned_like
from diml.data.planted import Planted
from diml.jobs.mf_data import Layout
from diml.jobs.mf_load import Source, load
from diml.jobs.mf_model import Model, Rule


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (7, 5), (300, 32)])
@pytest.mark.parametrize("dtype", ["f4", "i8", "u1", "U3"])
def test_copies_begin_at_a_line(shape: tuple[int, ...], dtype: str) -> None:
    # Views that begin anywhere, and in another order in memory.
    source = np.arange(10_000).astype(dtype)[3:][: int(np.prod(shape))].reshape(shape).T
    copy = aligned(source)
    if copy.size:
        assert copy.ctypes.data % 64 == aligned_like(source).ctypes.data % 64 == 0
    assert copy.dtype == source.dtype and copy.shape == source.shape
    assert copy.flags.c_contiguous and copy.flags.writeable
    assert np.array_equal(copy, source)


def test_rows_of_a_model_begin_at_lines_also_after_a_checkpoint() -> None:
    ratings = load(Source(None, Planted(60, 40, 2000, seed=1), test_fraction=0.2, seed=1))
    share = ratings.share(0, 1, Layout(1, shuffled=True), 0)
    for seed in range(4):
        model = Model(Rule(k=32, seed=seed), share, 0.0, ratings.n_rows)
        assert model.left.ctypes.data % 64 == 0
        model.restore(model.state())
        assert model.left.ctypes.data % 64 == 0
