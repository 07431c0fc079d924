"""A short soak: kills from outside at random times (`make soak N=200` for a long one)."""

from __future__ import annotations

import pytest

from tests.drills.soak import run_once

RUNS = 8


@pytest.mark.parametrize("seed", range(RUNS))
def test_killed_at_random_times_the_job_ends_with_the_same_bits(seed: int) -> None:
    run_once(1000 + seed)
