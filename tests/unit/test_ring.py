"""Replicas go to other ranks, to other hosts where there are any, and each rank holds as many."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diml.checkpoint.ring import Ring


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.integers(0, 4))
def test_placement(hosts: list[str], replicas: int) -> None:
    ring = Ring.of(hosts, replicas)
    copies = min(replicas, len(hosts) - 1)
    load: Counter[int] = Counter()
    for owner in range(len(hosts)):
        holders = [ring.holder(owner, replica) for replica in range(copies)]
        assert owner not in holders
        assert len(set(holders)) == copies
        load.update(holders)
        for replica, holder in enumerate(holders):
            assert ring.source(holder, replica) == owner
            assert owner in ring.held_by(holder)
        # One copy is on another host whenever every rank can have that at the same time.
        if copies and Counter(hosts).most_common(1)[0][1] * 2 <= len(hosts):
            assert hosts[holders[0]] != hosts[owner]
    assert all(load[rank] == copies for rank in range(len(hosts)))


def test_one_host_is_the_ring_of_rabit() -> None:
    ring = Ring.of(["h"] * 5, 2)
    assert [ring.holder(4, replica) for replica in (0, 1)] == [0, 1]
    assert ring.held_by(0) == (0, 4, 3)


@pytest.mark.parametrize("per_host", [1, 4])
def test_as_many_hosts_as_copies(per_host: int) -> None:
    hosts = [f"h{rank // per_host}" for rank in range(3 * per_host)]
    ring = Ring.of(hosts, 2)
    for owner in range(len(hosts)):
        places = {hosts[owner], *(hosts[ring.holder(owner, r)] for r in (0, 1))}
        assert len(places) == 3
