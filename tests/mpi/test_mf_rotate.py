"""Factorization by rotation as a user runs it: kills, stops, resumed on other workers, refusals."""

from __future__ import annotations

import csv
import re
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.mpi import Finished, Running, run_mpi

JOB = ["-m", "diml.jobs.mf"]
SMALL = ("--generate", "400x300x20000", "--K", 5, "--seed", 3, "--bias", "--update", "adagrad")
TIMEOUT_S = 120.0


def mf(n: int | None, *args: object) -> Finished:
    return run_mpi(n, JOB, args=("--engine", "rotate", *args), timeout_s=TIMEOUT_S)


def held_out(finished: Finished) -> float:
    found = re.search(r"^held-out RMSE +([0-9.]+)$", finished.stdout, re.MULTILINE)
    assert found, finished.report()
    return float(found[1])


def losses(path: Path) -> list[dict[str, str]]:
    """The lines of a loss file without their times."""
    lines = csv.DictReader(path.read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]


def test_kills_leave_the_bits_as_they_were(tmp_path: Path) -> None:
    args = (*SMALL, "--num_iterations", 8, "--output_prefix")
    mf(4, *args, tmp_path / "calm").expect()
    deaths = ("1,2,3,0", "2,2,3,0,inside", "0,5,0,0", "3,6,2,0,checkpoint", "1,7,1,1")
    drills = [word for death in deaths for word in ("--drill", death)]
    stormy = mf(4 + 5, *args, tmp_path / "stormy", "--spares", 5, *drills).expect()
    assert "recovery " in stormy.stdout
    for suffix in "LR":
        one, two = (tmp_path / f"{name}.{suffix}" for name in ("calm", "stormy"))
        assert one.read_bytes() == two.read_bytes()
    assert losses(tmp_path / "calm.loss") == losses(tmp_path / "stormy.loss")
    assert len(losses(tmp_path / "calm.loss")) == 8


def test_a_job_that_is_killed_whole_is_resumed_to_the_same_end(tmp_path: Path) -> None:
    args = (*SMALL, "--num_iterations", 300, "--eval_every", 20, "--loss_file")
    calm = mf(2, *args, tmp_path / "calm").expect()
    kept = ("--checkpoint-dir", tmp_path / "kept", "--checkpoint-every", "0.05")
    events = tmp_path / "events"
    # Rank 1 stops in its tracks, so that the job is there to be killed.
    stop = ("--drill", "1,200,0,0,entry,STOP", "--events", events)
    again = ("--engine", "rotate", *args, tmp_path / "loss", *kept, *stop)
    with Running(2, JOB, args=again) as running:
        while not (events.exists() and '"what":"drill"' in events.read_text()):
            assert running.poll() is None
            time.sleep(0.02)
        running.kill(running.pid, signal.SIGKILL)
        for rank in running.ranks().values():
            running.kill(rank.pid, signal.SIGKILL)
        running.wait(timeout_s=30, allow_hang=True)
    assert len(losses(tmp_path / "loss")) == 10
    assert list((tmp_path / "kept").glob("*/rank-*.json"))
    resumed = mf(2, *args, tmp_path / "loss", *kept, "--resume", "must").expect()
    assert held_out(resumed) == held_out(calm)
    assert losses(tmp_path / "loss") == losses(tmp_path / "calm")


def test_another_number_of_workers_goes_on_and_other_data_are_refused(tmp_path: Path) -> None:
    kept = ("--checkpoint-dir", tmp_path / "kept", "--checkpoint-every", "0.001")
    first = mf(3, *SMALL, "--num_iterations", 5, *kept, "--loss_file", tmp_path / "three").expect()
    more = ("--num_iterations", 6, *kept, "--resume", "must", "--loss_file", tmp_path / "two")
    second = mf(2, *SMALL, *more).expect()
    assert losses(tmp_path / "two")[:3] == losses(tmp_path / "three")[:3]
    assert len(losses(tmp_path / "two")) == 6
    assert held_out(second) == pytest.approx(held_out(first), rel=0.05)
    other = ("--generate", "400x300x20001", *SMALL[2:])
    refused = mf(2, *other, *more).expect(2)
    assert "its data is" in refused.stderr
    assert refused.stderr.count("\n") == 1, refused.report()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--servers 1", "--engine rotate has no servers"),
        ("--staleness 2", "go with --engine ps"),
        ("--auto_step --eval_every 2", "leave out --eval_every"),
    ],
)
def test_flags_that_mean_nothing_are_refused(flags: str, message: str) -> None:
    done = mf(2, *SMALL, *flags.split()).expect(2)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.report()
