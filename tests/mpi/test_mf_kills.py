"""The showpiece with any one of its processes killed: the same bits as without.

`DIML_MF_KILLS` sets how many kills (default: one of worker 0, the server, the spare and another
worker; `make soak`: 20).
"""

from __future__ import annotations

import csv
import json
import os
import random
from pathlib import Path

import pytest

from tests.helpers.mpi import run_mpi

WORKERS, BLOCKS, ITERATIONS = 4, 4, 20
CLOCKS = BLOCKS * ITERATIONS
KILLS = int(os.environ.get("DIML_MF_KILLS", "4"))
# Ranks are counted workers first, then the server, then the spare.
NAMES = {**{rank: f"worker {rank}" for rank in range(WORKERS)}, 4: "the server", 5: "the spare"}


def showpiece(folder: Path, *more: object) -> list[dict[str, str]]:
    """Run it; the lines of its loss file without their times."""
    args = ["--generate", "--K", 8, "--update", "adagrad", "--lambda", 0.02, "--quiet"]
    args += ["--num_iterations", ITERATIONS, "--spares", 1, "--output_prefix", folder / "out"]
    args += ["--events", folder / "events", *more]
    done = run_mpi(6, ["-m", "diml.jobs.mf"], args=args, timeout_s=150).expect()
    assert "noise floor    met" in done.stdout, done.report()
    lines = list(csv.DictReader((folder / "out.loss").read_text().splitlines()))
    assert [int(line["iteration"]) for line in lines] == list(range(1, ITERATIONS + 1))
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """The run without deaths."""
    folder = tmp_path_factory.mktemp("calm")
    return folder, showpiece(folder)


def schedule() -> list[tuple[int, int]]:
    """(rank, clock) of each kill: the ranks in their turn, between 5 % and 95 %."""
    chance = random.Random(20)
    ranks = [(0, 4, 5, 2, 1, 3)[kill % 6] for kill in range(KILLS)]
    return [(rank, chance.randint(CLOCKS // 20 + 1, 19 * CLOCKS // 20 - 1)) for rank in ranks]


@pytest.mark.parametrize(("rank", "clock"), schedule())
def test_one_death_leaves_the_result_as_it_was(
    tmp_path: Path, calm: tuple[Path, list[dict[str, str]]], rank: int, clock: int
) -> None:
    folder, expected = calm
    found = showpiece(tmp_path, "--drill", f"{rank},{clock},0,0")
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    drills = [event for event in events if event["what"] == "drill"]
    assert [drill["version"] for drill in drills] == [clock]
    assert any(event["what"] == "repair" for event in events)
    print(f"{NAMES[rank]} killed at clock {clock} of {CLOCKS}")
    assert found == expected
    for name in ("out.L", "out.R"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
