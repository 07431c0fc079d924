"""The row cache against a dumb twin: what it returns is what it was last given."""

from __future__ import annotations

import numpy as np
import pytest

from diml.ps.cache import RowCache
from diml.ps.tables import TableSpec


@pytest.mark.parametrize("limit", [0, 1, 5, 50])
@pytest.mark.parametrize("pushing", [False, True])
def test_what_is_kept_is_what_was_given(limit: int, pushing: bool) -> None:
    spec = TableSpec("t", 20, 3, "float64")
    cache = RowCache(spec, 2, limit, pushing)
    rng = np.random.default_rng(limit)
    twin: dict[int, tuple[np.ndarray, int]] = {}
    pushed = [0, 0]
    hits = 0
    for clock in range(1, 400):
        ids = rng.permutation(20)[: rng.integers(1, 8)]
        found = cache.find(ids, clock - 30)
        for i, hit, awaited in zip(ids, found.hit, found.awaited, strict=True):
            if hit:
                hits += 1
                rows, stamp = cache.read(np.array([i]))
                assert np.array_equal(rows[0], twin[int(i)][0])
                owner = int(i >= 10)
                assert stamp == max(twin[int(i)][1], pushed[owner])
                assert awaited == (stamp < clock - 30) and (pushing or not awaited)
        server = int(rng.integers(0, 2))
        own = np.sort(ids[(ids >= 10) == server])
        rows = rng.normal(size=(len(own), 3))
        kept = pushed[server] <= clock
        cache.keep(server, own, rows, clock)
        if kept:
            twin.update({int(i): (row.copy(), clock) for i, row in zip(own, rows, strict=True)})
        deltas = rng.normal(size=(len(ids), 3))
        cache.add(ids, deltas)
        for i, delta in zip(ids, deltas, strict=True):
            if int(i) in twin:
                twin[int(i)] = (twin[int(i)][0] + delta, twin[int(i)][1])
        if pushing and clock % 7 == 0:
            rows = rng.normal(size=(len(own), 3))
            cache.replace(own, rows, clock)
            cache.pushed[server] = pushed[server] = clock
            for i, row in zip(own, rows, strict=True):
                twin[int(i)] = (row.copy(), clock)
    assert hits > 20
    cache.drop()
    assert not cache.find(np.arange(20), 0).hit.any()


def test_rows_read_before_a_push_are_not_taken_for_newer() -> None:
    cache = RowCache(TableSpec("t", 4, 1), 1, 0, True)
    cache.pushed[0] = 5
    cache.keep(0, np.array([1]), np.ones((1, 1), np.float32), 4)
    assert not cache.find(np.array([1]), 0).hit.any()


def test_a_row_in_use_outlives_others() -> None:
    cache = RowCache(TableSpec("t", 100, 1), 1, 4, False)
    for i in range(50):
        cache.keep(0, np.array([i]), np.full((1, 1), i, np.float32), i)
        if i > 0:
            cache.keep(0, np.array([0]), np.zeros((1, 1), np.float32), i)
    assert cache.find(np.array([0]), 0).hit.all()
