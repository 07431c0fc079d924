"""Factorizations that were stopped: killed whole, gone on with, on other workers, refused."""

from __future__ import annotations

import csv
import re
import signal
from pathlib import Path

import pytest

from tests.helpers import kept
from tests.helpers.mpi import Finished, Running, run_mpi

JOB = ["-m", "diml.jobs.mf"]
SMALL = ("--generate", "400x300x20000", "--K", 5, "--seed", 3, "--bias", "--update", "adagrad")
ENGINES = pytest.mark.parametrize("engine", ["rotate", "ps"])


def mf(engine: str, workers: int, *args: object) -> Finished:
    n = workers + (engine == "ps")
    return run_mpi(n, JOB, args=("--engine", engine, *args), timeout_s=120)


def held_out(finished: Finished) -> float:
    found = re.search(r"^held-out RMSE +([0-9.]+)$", finished.stdout, re.MULTILINE)
    assert found, finished.report()
    return float(found[1])


def losses(path: Path) -> list[dict[str, str]]:
    """The lines of a loss file without their times."""
    lines = csv.DictReader(path.read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]


@ENGINES
def test_a_job_that_is_killed_whole_is_resumed_to_the_same_end(tmp_path: Path, engine: str) -> None:
    args = (*SMALL, "--num_iterations", 300, "--eval_every", 20, "--loss_file")
    calm = mf(engine, 2, *args, tmp_path / "calm").expect()
    saved = ("--checkpoint-dir", tmp_path / "kept", "--checkpoint-every", "0.05")
    events = tmp_path / "events"
    # In clocks of the parameter server an iteration is two.
    stop_at = {"rotate": 200, "ps": 400}
    # Rank 1 stops in its tracks, so that the job is there to be killed.
    stop = ("--drill", f"1,{stop_at[engine]},0,0,entry,STOP", "--events", events)
    again = ("--engine", engine, *args, tmp_path / "loss", *saved, *stop)

    def stopped() -> bool:
        return events.exists() and '"what":"drill"' in events.read_text()

    directory = tmp_path / "kept" / ("ps" if engine == "ps" else "")
    for _ in range(3):  # until it is the disk that was fast enough
        events.unlink(missing_ok=True)
        (tmp_path / "loss").unlink(missing_ok=True)
        with Running(2 + (engine == "ps"), JOB, args=again) as running:
            running.wait_until(stopped, "the moment to be killed", timeout_s=90)
            running.kill(running.pid, signal.SIGKILL)
            for rank in running.ranks().values():
                running.kill(rank.pid, signal.SIGKILL)
            running.wait(timeout_s=30, allow_hang=True)
        if kept.newest(directory):
            break
    assert 0 < len(losses(tmp_path / "loss")) < 15
    resumed = mf(engine, 2, *args, tmp_path / "loss", *saved, "--resume", "must").expect()
    assert held_out(resumed) == held_out(calm)
    assert losses(tmp_path / "loss") == losses(tmp_path / "calm")


@ENGINES
def test_another_number_of_workers_goes_on_and_other_data_are_refused(
    tmp_path: Path, engine: str
) -> None:
    saved = ("--checkpoint-dir", tmp_path / "kept", "--checkpoint-every", "0.001")
    first = mf(
        engine, 3, *SMALL, "--num_iterations", 5, *saved, "--loss_file", tmp_path / "three"
    ).expect()
    more = ("--num_iterations", 6, *saved, "--resume", "must", "--loss_file", tmp_path / "two")
    second = mf(engine, 2, *SMALL, *more).expect()
    # The disk may lag behind the iterations; what it had is not computed again.
    assert losses(tmp_path / "two")[:1] == losses(tmp_path / "three")[:1]
    assert len(losses(tmp_path / "two")) == 6
    assert held_out(second) == pytest.approx(held_out(first), rel=0.05)
    other = ("--generate", "400x300x20001", *SMALL[2:])
    refused = mf(engine, 2, *other, *more).expect(2)
    assert "its data is" in refused.stderr
    assert refused.stderr.count("\n") == 1, refused.report()
