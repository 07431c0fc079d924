"""Factorization by rotation as a user runs it: kills, refusals."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from diml.events import read_events
from tests.helpers.mpi import Finished, run_mpi

JOB = ["-m", "diml.jobs.mf"]
SMALL = ("--generate", "400x300x20000", "--K", 5, "--seed", 3, "--bias", "--update", "adagrad")
TIMEOUT_S = 120.0


def mf(n: int | None, *args: object) -> Finished:
    return run_mpi(n, JOB, args=("--engine", "rotate", *args), timeout_s=TIMEOUT_S)


def losses(path: Path) -> list[dict[str, str]]:
    """The lines of a loss file without their times."""
    lines = csv.DictReader(path.read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]


def test_kills_leave_the_bits_as_they_were(tmp_path: Path) -> None:
    args = (*SMALL, "--num_iterations", 8, "--output_prefix")
    mf(4, *args, tmp_path / "calm").expect()
    deaths = ("1,2,3,0", "2,2,3,0,inside", "0,5,0,0", "3,6,2,0,checkpoint", "1,7,1,1")
    drills = [word for death in deaths for word in ("--drill", death)]
    events = tmp_path / "events"
    drills += ["--events", str(events)]
    stormy = mf(4 + 5, *args, tmp_path / "stormy", "--spares", 5, *drills).expect()
    assert "recovery " in stormy.stdout
    for suffix in "LR":
        one, two = (tmp_path / f"{name}.{suffix}" for name in ("calm", "stormy"))
        assert one.read_bytes() == two.read_bytes()
    assert losses(tmp_path / "calm.loss") == losses(tmp_path / "stormy.loss")
    assert len(losses(tmp_path / "calm.loss")) == 8
    log = read_events(events)
    balance = {event["rank"]: event for event in log if event["what"] == "balance"}
    assert sorted(balance) == [0, 1, 2, 3]
    assert all(0.7 < told["imbalance"] < 1.5 for told in balance.values())
    assert all(1 <= told["clocks_imbalance"] < 1.6 for told in balance.values())
    assert {event["rank"] for event in log if event["what"] == "work"} == {0, 1, 2, 3}


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


def test_deaths_between_checkpoints_far_apart_leave_the_bits_too(tmp_path: Path) -> None:
    # Rows of so many numbers take longer to keep than to train on: every 8th iteration is kept.
    args = ("--generate", "6000x3000x60000", "--K", 100, "--num_iterations", 11, "--quiet")
    mf(2, *args, "--output_prefix", tmp_path / "calm.npz").expect()
    drills = ("--drill", "1,0,11,0", "--drill", "0,1,6,0", "--spares", 2)
    events = tmp_path / "events"
    stormy = ("--output_prefix", tmp_path / "stormy.npz", *drills, "--events", events)
    mf(4, *args, *stormy).expect()
    deaths = [event["version"] for event in read_events(events) if event["what"] == "drill"]
    assert sorted(deaths) == [0, 1]
    one, two = (tmp_path / f"{name}.npz" for name in ("calm", "stormy"))
    assert one.read_bytes() == two.read_bytes()
