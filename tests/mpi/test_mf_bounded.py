"""Workers that hold few rows of L and R, and compute with threads: deaths, a resumed run."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from diml.events import read_events
from tests.helpers.mpi import Finished, run_mpi

SMALL = ("--generate", "400x300x20000", "--K", 5, "--seed", 3, "--bias", "--update", "adagrad")
BOUNDED = (*SMALL, "--ps_row_cache_size", 70, "--client_worker_threads", 2, "--quiet")


def mf(n: int, *args: object) -> Finished:
    return run_mpi(n, ["-m", "diml.jobs.mf"], args=(*BOUNDED, *args), timeout_s=120)


def losses(path: Path) -> list[dict[str, str]]:
    """The lines of a loss file without their times."""
    lines = csv.DictReader(path.read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines]


def test_deaths_leave_the_bits_and_the_disk_has_all_rows(tmp_path: Path) -> None:
    args = ("--num_iterations", 4, "--output_prefix")
    calm = ("--checkpoint-dir", tmp_path / "kept", "--checkpoint-every", "0.001")
    mf(3, *args, tmp_path / "calm", *calm).expect()
    # 5 blocks of columns x 3 groups of rows: 60 clocks. A worker, the server, the other worker.
    deaths = ("1,13,0,0", "2,29,0,0", "0,44,0,0")
    drills = [word for death in deaths for word in ("--drill", death)]
    stormy = mf(3 + 3, *args, tmp_path / "stormy", "--spares", 3, *drills).expect()
    assert "recovery       3 x" in stormy.stdout, stormy.report()
    for suffix in ("L", "R"):
        one, two = (tmp_path / f"{name}.{suffix}" for name in ("calm", "stormy"))
        assert one.read_bytes() == two.read_bytes()
    assert losses(tmp_path / "calm.loss") == losses(tmp_path / "stormy.loss")

    more = ("--num_iterations", 6, *calm, "--resume", "must", "--loss_file", tmp_path / "more")
    mf(4, *more).expect()
    found = [float(line["test_rmse"]) for line in losses(tmp_path / "more")]
    before = [float(line["test_rmse"]) for line in losses(tmp_path / "calm.loss")]
    assert len(found) == 6
    # The disk may lag behind the iterations; what it had is not computed again.
    assert found[0] == before[0]
    assert found[3] == pytest.approx(before[3], rel=0.05)
    assert found[5] < found[0]


def test_a_halved_step_survives_deaths(tmp_path: Path) -> None:
    args = (*SMALL[:-2], "--num_iterations", 4, "--init_step_size", 400, "--auto_step", "--quiet")
    args += ("--output_prefix",)
    job = ["-m", "diml.jobs.mf"]
    run_mpi(3, job, args=(*args, tmp_path / "calm"), timeout_s=120).expect()
    # A worker while it goes back, the server later on.
    drills = ("--drill", "1,3,0,0", "--drill", "2,12,0,0", "--spares", 2)
    events = ("--events", tmp_path / "events")
    run_mpi(5, job, args=(*args, tmp_path / "stormy", *drills, *events), timeout_s=120).expect()
    halved = [event for event in read_events(tmp_path / "events") if event["what"] == "halved"]
    assert len({event["halvings"] for event in halved}) > 1
    assert losses(tmp_path / "calm.loss") == losses(tmp_path / "stormy.loss")
    assert len(losses(tmp_path / "calm.loss")) == 4
    for suffix in ("L", "R"):
        one, two = (tmp_path / f"{name}.{suffix}" for name in ("calm", "stormy"))
        assert one.read_bytes() == two.read_bytes()
