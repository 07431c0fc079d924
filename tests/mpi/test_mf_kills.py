"""The showpiece with any of its processes killed, two in a run: the same bits as without.

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
# Ranks are counted workers first, then the server, then the spares.
NAMES = {**{rank: f"worker {rank}" for rank in range(WORKERS)}, 4: "the server", 5: "a spare"}


def showpiece(folder: Path, spares: int, *more: object) -> list[dict[str, str]]:
    """Run it; the lines of its loss file without their times."""
    args = ["--generate", "--K", 8, "--update", "adagrad", "--lambda", 0.02, "--quiet"]
    args += ["--num_iterations", ITERATIONS, "--spares", spares, "--output_prefix", folder / "out"]
    args += ["--events", folder / "events", *more]
    done = run_mpi(WORKERS + 1 + spares, ["-m", "diml.jobs.mf"], args=args, timeout_s=150).expect()
    assert "noise floor    met" in done.stdout, done.report()
    lines = list(csv.DictReader((folder / "out.loss").read_text().splitlines()))
    assert [int(line["iteration"]) for line in lines] == list(range(1, ITERATIONS + 1))
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """The run without deaths."""
    folder = tmp_path_factory.mktemp("calm")
    return folder, showpiece(folder, 1)


def schedule() -> list[list[tuple[int, int]]]:
    """(rank, clock) of the kills of each run: the ranks in their turn, between 5 % and 95 %."""
    chance = random.Random(20)
    ranks = [(0, 4, 5, 2, 1, 3)[kill % 6] for kill in range(KILLS)]
    kills = [(rank, chance.randint(CLOCKS // 20 + 1, 19 * CLOCKS // 20 - 1)) for rank in ranks]
    return [kills[first : first + 2] for first in range(0, KILLS, 2)]


@pytest.mark.parametrize("kills", schedule())
def test_deaths_leave_the_result_as_it_was(
    tmp_path: Path, calm: tuple[Path, list[dict[str, str]]], kills: list[tuple[int, int]]
) -> None:
    folder, expected = calm
    drills = [word for rank, clock in kills for word in ("--drill", f"{rank},{clock},0,0")]
    found = showpiece(tmp_path, 2, *drills)
    events = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    struck = [event["version"] for event in events if event["what"] == "drill"]
    assert sorted(struck) == sorted(clock for _, clock in kills)
    lost = {uid for event in events if event["what"] == "repair" for uid in event["lost"]}
    assert lost == {rank for rank, _ in kills}
    print(" and ".join(f"{NAMES[rank]} at clock {clock} of {CLOCKS}" for rank, clock in kills))
    assert found == expected
    for name in ("out.L", "out.R"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
