"""Allreduce, parameter server and STRADS in one job: a rank of each role killed, no bit changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.mpi import run_mpi

PROGRAM = [
    *["-m", "diml.jobs.combined", "--rows", "1500", "--clocks", "24", "--servers", "1"],
    *["--checkpoint_work", "20000"],
]


def solve(folder: Path, ranks: int, *flags: str) -> dict[str, Any]:
    output = folder / "out.npz"
    run_mpi(ranks, [*PROGRAM, "--output", str(output), *flags], timeout_s=120).expect(0)
    with np.load(output) as held:
        return dict(held)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return solve(tmp_path_factory.mktemp("reference"), 5, "--spares", "1")


def test_the_parts_do_what_they_are_there_for(reference: dict[str, Any]) -> None:
    assert reference["rmse"] < 0.45
    assert (np.flatnonzero(reference["coef"])[:3] == [0, 1, 2]).all()


# Ranks: workers 0 … 2, the server 3, then spares. With a parameter server a drill's version is its
# clock, until STRADS commits.
@pytest.mark.parametrize(
    "drills",
    [
        ["0,0,2,0", "3,9,1,0", "2,15,2,0", "1,3,2,0"],
        ["3,4,0,0", "1,20,1,0", "0,2,1,0"],
    ],
)
def test_a_rank_of_each_role_dies(
    tmp_path: Path, drills: list[str], reference: dict[str, Any]
) -> None:
    events = tmp_path / "events"
    flags = [word for drill in drills for word in ("--drill", drill)]
    answer = solve(tmp_path, 9, *flags, "--spares", "5", "--events", str(events))
    assert events.read_text().count('"what":"drill"') >= 2
    for name, value in reference.items():
        np.testing.assert_array_equal(answer[name], value, err_msg=name)
