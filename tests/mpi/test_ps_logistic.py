"""The logistic job over real MPI: near the optimum both ways, same bits after deaths."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.losses import loss_lines
from tests.helpers.mpi import Finished, run_mpi, start_mpi

JOB = ["-m", "diml.jobs.logistic"]


def _write(path: Path) -> None:
    """600 examples of a planted model with noise."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=12)
    lines = []
    for _ in range(600):
        cols = np.sort(rng.choice(12, 5, replace=False))
        x = rng.normal(size=5)
        label = int(rng.random() < 1 / (1 + np.exp(-x @ w[cols])))
        lines.append(
            f"{label} " + " ".join(f"{c + 1}:{v:.9g}" for c, v in zip(cols, x, strict=True))
        )
    path.write_text("\n".join(lines) + "\n")


def _run(path: Path, name: str, *args: object, drills: str = "", spares: int = 0) -> Finished:
    return run_mpi(
        4 + spares,
        JOB,
        args=[
            *("--datafile", path / "x.svm", "--output_prefix", path / name, "--l2", 0.01),
            *("--batch_size", 20, "--num_epochs", 12, "--quiet", *args),
        ],
        env={"DIML_SERVERS": "1", "DIML_SPARES": str(spares), "DIML_DRILL": drills},
        timeout_s=90,
    ).expect(0)


def _objectives(path: Path) -> list[float]:
    """Column by epoch, after the check that each epoch stands once."""
    lines = loss_lines(path)
    assert [int(line[0]) for line in lines] == list(range(13))
    return [float(line[3]) for line in lines]


def test_both_methods_come_near_the_optimum_and_deaths_change_nothing(tmp_path: Path) -> None:
    _write(tmp_path / "x.svm")
    sync = ("--method", "sync-sgd", "--rule", "sgd")
    _run(tmp_path, "sync", *sync)
    _run(tmp_path, "async", "--method", "async-sgd")
    drills = "0,30,1,0 3,60,0,0"
    _run(tmp_path, "killed", *sync, drills=drills, spares=3)
    assert (tmp_path / "sync.w").read_bytes() == (tmp_path / "killed.w").read_bytes()
    losses, killed = (_objectives(tmp_path / f"{name}.loss") for name in ("sync", "killed"))
    assert losses == killed
    best = _optimum(tmp_path / "x.svm")
    for name in ("sync", "async"):
        end = _objectives(tmp_path / f"{name}.loss")[-1]
        assert best - 1e-9 <= end < best + 0.01, (name, end, best)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    _write(tmp_path / "x.svm")
    sync = ("--method", "sync-sgd", "--client_worker_threads", 2, "--num_epochs", 80)
    args = ["--datafile", tmp_path / "x.svm", "--batch_size", 20, "--quiet", *sync]
    env = {"DIML_SERVERS": "1"}
    whole = [*args, "--output_prefix", tmp_path / "whole"]
    run_mpi(3, JOB, args=whole, env=env, timeout_s=150).expect(0)
    cut = [*args, "--output_prefix", tmp_path / "cut", "--checkpoint-dir", tmp_path / "kept"]
    # A worker stops in its tracks at clock 200 of 1200, so that the job is there to be told.
    held = {"DIML_DRILL": "0,200,0,0,entry,STOP", "DIML_FROZEN_DEADLINE": "100"}
    with start_mpi(3, JOB, args=cut, env=env | held) as running:
        worker = running.wait_until_stopped(0, timeout_s=90)
        running.kill(running.pid, signal.SIGUSR1)
        running.kill(worker, signal.SIGCONT)
        stopped = running.wait(timeout_s=60)
    assert stopped.returncode == 75 and "stopped in good order" in stopped.stderr, stopped.report()
    run_mpi(4, JOB, args=cut, env={"DIML_SERVERS": "2"}, timeout_s=150).expect(0)
    assert (tmp_path / "whole.w").read_bytes() == (tmp_path / "cut.w").read_bytes()
    columns = [
        [line.split(",")[0::2] for line in (tmp_path / f"{name}.loss").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    assert columns[0] == columns[1]


def _optimum(path: Path) -> float:
    """The least objective, by Newton steps."""
    rows = [line.split() for line in path.read_text().splitlines()]
    y = np.array([float(row[0]) for row in rows])
    X = np.zeros((len(rows), 12))
    for i, row in enumerate(rows):
        for cell in row[1:]:
            c, v = cell.split(":")
            X[i, int(c) - 1] = float(v)
    w = np.zeros(12)
    for _ in range(30):
        p = 1 / (1 + np.exp(-X @ w))
        g = X.T @ (p - y) / len(y) + 0.01 * w
        H = (X.T * (p * (1 - p))) @ X / len(y) + 0.01 * np.eye(12)
        w -= np.linalg.solve(H, g)
    z = X @ w
    return float(np.mean(np.log1p(np.exp(z)) - y * z) + 0.005 * w @ w)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--datafile", "/nowhere"], "/nowhere: no such file"),
        (["--datafile", "x", "--batch_size", "0"], "batch_size"),
        (["--datafile", "x", "--method", "magic"], "magic"),
    ],
)
def test_bad_calls_end_with_one_line(args: list[str], words: str) -> None:
    finished = run_mpi(3, JOB, args=args, env={"DIML_SERVERS": "1"}, timeout_s=60)
    assert finished.returncode == 2, finished.report()
    lines = [line for line in finished.stderr.splitlines() if "diml:" in line]
    assert len(lines) == 1 and words in lines[0], finished.report()
