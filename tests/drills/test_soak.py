"""A short soak: jobs of each kind with kills from outside at random moments.

`make soak N=200` draws as many runs as are asked for, of more jobs. The seeds here stand for small
ones with two strikes each; seats are filled by spares and by processes that are started for them.
A run that was over before anything was hit is no run: `Soak.run` fails.
"""

from __future__ import annotations

import pytest

from tests.drills.soak import Soak

RUNS = (
    ("mf rotate", 2041),
    ("lasso", 2001),
    ("combined", 2047),
    ("collectives", 2005),
    ("collectives", 2014),
    ("lasso tall", 3111),
    ("logistic", 3086),
    ("kmeans", 3096),
    ("ccd", 3111),
    ("mf ps", 3090),
)


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory) -> Soak:
    """What keeps the runs without deaths."""
    return Soak(tmp_path_factory.mktemp("soak"))


@pytest.mark.parametrize(("job", "seed"), RUNS)
def test_killed_at_random_moments_it_writes_the_same_files(soak: Soak, job: str, seed: int) -> None:
    print(soak.run(seed, job)[0])
