"""Factorizations that were stopped: killed whole, gone on with, on other workers, refused."""

from __future__ import annotations

import csv
import re
import signal
from pathlib import Path

import pytest

from tests.helpers.mpi import Finished, run_mpi, start_mpi

JOB = ["-m", "diml.jobs.mf"]
SMALL = ("--generate", "400x300x20000", "--K", 5, "--seed", 3, "--bias", "--update", "adagrad")
ALONE = {"DIML_SPARES": "0"}
ENGINES = pytest.mark.parametrize("engine", ["rotate", "ps"])


# Worker 0 tells how far the job is; at iteration 200 of 300 it waits for a checkpoint on the disk,
# and to be killed, unless it is resumed from there ("-").
HELD = """
    import sys, time
    from pathlib import Path
    from diml.jobs import mf
    from diml.jobs.flags import run_job
    from diml.report.progress import Progress
    from tests.helpers import kept

    shelf, whole = sys.argv.pop(1), Progress.update

    def update(progress, done, **values):
        whole(progress, done, **values)
        if done >= 200 and shelf != "-":
            kept.wait_for(1, Path(shelf))
            print("held", flush=True)
            time.sleep(1000)

    Progress.update = update
    run_job(mf.main)
"""


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
    directory = tmp_path / "kept"
    saved = ("--checkpoint-dir", directory, "--checkpoint-every", "0.01")
    again = ("--engine", engine, *args, tmp_path / "loss", *saved)
    n = 2 + (engine == "ps")
    shelf = directory / ("ps" if engine == "ps" else "")
    with start_mpi(n, HELD, args=(shelf, *again), env=ALONE) as running:
        running.wait_for("^held$", timeout_s=90)
        running.kill(running.pid, signal.SIGKILL)
        for rank in running.ranks().values():
            running.kill(rank.pid, signal.SIGKILL)
        running.wait(timeout_s=30, allow_hang=True)
    assert 0 < len(losses(tmp_path / "loss")) < 15
    more = ("-", *again, "--resume", "must")
    resumed = run_mpi(n, HELD, args=more, env=ALONE, timeout_s=120).expect()
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
