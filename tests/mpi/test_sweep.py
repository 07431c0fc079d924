"""`diml sweep` over real MPI: the same table whatever dies, and going on where it was."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest

from diml.events import read_events
from tests.helpers.mpi import Finished, Running, run_mpi, start_mpi
from tests.mpi.test_logistic_allreduce import write_examples

SWEEP = ["-m", "diml.jobs.sweep"]
# A program without flags of its own; a step takes 50 ms, so that kills come in the middle.
SCRIPT = """
import sys, time
import numpy as np
import diml

x = float(sys.argv[1].partition("=")[2])
with diml.init() as job:
    version, total, _ = job.load_checkpoint()
    for step in range(version, 8):
        time.sleep(0.05)
        total = (total or 0.0) + float(job.allreduce(np.array([x * step + job.rank]))[0])
        job.checkpoint(total)
    assert x != 7, "seven is refused"
    job.event("result", values={"total": total, "size": job.size, "seed": job.settings.seed})
    print("nobody sees this")
"""
GRID = "--grid=x=" + ",".join(map(str, range(8)))


def _args(folder: Path, name: str, *more: object, metric: str = "total") -> list[object]:
    (folder / "job.py").write_text(SCRIPT)
    return [
        GRID, "--ranks-per-trial", 2, "--metric", metric, "--csv", folder / f"{name}.csv",
        "--quiet", *more, "--", folder / "job.py",
    ]  # fmt: skip


def _table(path: Path) -> list[dict[str, str]]:
    """The rows by trial, without their seconds; each trial once."""
    with path.open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: int(row["trial"]))
    assert [int(row["trial"]) for row in rows] == list(range(len(rows)))
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def _expected(x: int) -> float:
    return sum(2.0 * x * step + 1.0 for step in range(8))


def _check(rows: list[dict[str, str]]) -> None:
    assert len(rows) == 8
    for row in rows:
        x = int(row["x"])
        if x == 7:
            assert row["status"] == "failed" and "seven is refused" in row["reason"]
        else:
            assert row["status"] == "ok" and float(row["total"]) == _expected(x), row


def _until_begun(running: Running, log: Path, count: int) -> None:
    """Wait until so many trials have begun and one is under way."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and running.poll() is None:
        if log.exists():
            told = [e["status"] for e in read_events(log) if e["what"] == "trial"]
            if told.count("begun") >= count and told[-1] == "begun":
                return
        time.sleep(0.005)
    raise AssertionError("the trials did not begin\n" + running.stderr)


def test_a_table_with_and_without_deaths_and_after_the_end_of_mpirun(tmp_path: Path) -> None:
    calm = run_mpi(4, SWEEP, args=_args(tmp_path, "calm"), timeout_s=90).expect(0)
    rows = _table(tmp_path / "calm.csv")
    _check(rows)
    assert "sweep: 8 trials, 7 ok" in calm.stdout and "trial 0 --x=0" in calm.stdout
    assert "nobody" not in calm.stdout

    for dies, spares in ((3, 1), (0, 0)):
        log = tmp_path / f"{dies}.jsonl"
        args = _args(tmp_path, f"killed{dies}", "--events", log, "--spares", spares)
        with start_mpi(4 + spares, SWEEP, args=args) as running:
            _until_begun(running, log, 3)
            time.sleep(0.15)
            assert running.kill(running.ranks()[dies].pid)
            running.wait(timeout_s=90).expect(0)
        lost = [e["lost"] for e in read_events(log) if e["what"] == "repair"]
        assert lost[0] == [dies], lost
        assert _table(tmp_path / f"killed{dies}.csv") == rows

    log, path = tmp_path / "ended.jsonl", tmp_path / "ended.csv"
    with start_mpi(4, SWEEP, args=_args(tmp_path, "ended", "--events", log)) as running:
        _until_begun(running, log, 4)
        for process in running.leftovers():
            running.kill(process.pid)
        assert running.wait(timeout_s=30).returncode != 0
    before = path.read_bytes()
    done = before.count(b"\n") - 1
    assert 0 < done < 8
    path.write_bytes(before + b"7,7,0,12.")  # cut off in the middle of a line
    log.unlink()
    run_mpi(4, SWEEP, args=_args(tmp_path, "ended", "--events", log), timeout_s=90).expect(0)
    begun = [e for e in read_events(log) if e["what"] == "trial" and e["status"] == "begun"]
    assert len(begun) == 8 - done and path.read_bytes().startswith(before)
    assert _table(path) == rows
    # All is there: nothing is run, the file stays as it is.
    whole = path.read_bytes()
    run_mpi(4, SWEEP, args=_args(tmp_path, "ended"), timeout_s=60).expect(0)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("drill", ["0,0,0,0,inside", "1,1,1,0,checkpoint"])
def test_a_death_at_a_meeting_changes_nothing(tmp_path: Path, drill: str) -> None:
    log = tmp_path / "log.jsonl"
    args = _args(tmp_path, "out", "--events", log, "--spares", 1, "--drill", drill)
    run_mpi(3, SWEEP, args=args, timeout_s=90).expect(0)
    assert [e["what"] for e in read_events(log)].count("drill") == 1
    _check(_table(tmp_path / "out.csv"))


@pytest.mark.parametrize("size", [1, 2])
def test_a_trial_that_kills_its_ranks_is_given_up(tmp_path: Path, size: int) -> None:
    script = "import os, sys, time, signal, diml\n"
    script += "with diml.init() as job:\n    job.barrier()\n"
    script += "    if sys.argv[1] == '--x=1' and job.rank == job.size - 1:\n"
    script += "        os.kill(os.getpid(), signal.SIGKILL)\n"
    script += "    job.barrier()\n    job.event('result', values={'size': job.size})\n"
    (tmp_path / "job.py").write_text(script)
    args = ["--grid", "x=0,1,2", "--ranks-per-trial", size, "--metric", "size", "--csv"]
    args += [tmp_path / "out.csv", "--quiet", "--", tmp_path / "job.py"]
    run_mpi(2, SWEEP, args=args, timeout_s=120).expect(0)
    rows = _table(tmp_path / "out.csv")
    assert [row["status"] for row in rows] == ["ok", "lost", "ok"]
    assert rows[1]["reason"] == "ranks died in each of 4 tries"


def test_jobs_of_each_kind_and_failed_trials_are_rows(tmp_path: Path) -> None:
    data = write_examples(tmp_path / "x.svm")
    words = ["diml.jobs.logistic", "--datafile", data, "--test", data, "--num_epochs", 2]
    words += ["--num_iterations", 5, "--output_prefix", tmp_path / "m{trial}"]
    grid = ["--grid", "method=lbfgs,sync-sgd", "--grid", "l2=0.01,-1", "--grid", "intercept"]
    for metric in ("test_AUC", "nothing"):
        out = ["--metric", metric, "--maximize", "--csv", tmp_path / f"{metric}.csv", "--quiet"]
        args = ["--ranks-per-trial", 2, *grid, *out, "--", *words]
        told = run_mpi(4, SWEEP, args=args, timeout_s=120).expect(2 * (metric == "nothing"))
        rows = _table(tmp_path / f"{metric}.csv")
        assert len(rows) == 8
        for row in rows:
            if row["l2"] == "-1":
                assert row["status"] == "misuse" and "'-1' is below 0" in row["reason"]
            elif metric == "nothing":
                assert row["status"] == "no metric" and "test_auc" in row["reason"]
            else:
                assert row["status"] == "ok" and float(row[metric]) > 0.7
                assert (tmp_path / f"m{row['trial']}.w").exists()
        assert ("best" in told.stdout) == (metric != "nothing")


def _refused(finished: Finished, words: str) -> None:
    finished.expect(2)
    assert words in finished.stderr and finished.stderr.count("\n") == 1, finished.report()


@pytest.mark.parametrize(
    ("flags", "job", "words"),
    [
        ("--grid l3=1", "diml.jobs.logistic --datafile x", "unrecognized arguments: --l3=1"),
        ("--grid l1=-1", "diml.jobs.logistic --datafile x", "--l1: '-1' is below 0"),
        ("--grid l1=1", "diml.jobs.nothing", "there is no job diml.jobs.nothing"),
        ("--grid l1=1 --ranks-per-trial 3", "diml.jobs.logistic --datafile x", "4 workers do not"),
        ("--grid l1=1", "diml.jobs.logistic --datafile none", "every trial was refused: none: no"),
    ],
)
def test_misuse_is_one_line_and_status_2(flags: str, job: str, words: str, tmp_path: Path) -> None:
    out = ["--metric", "objective", "--csv", tmp_path / "out.csv", "--quiet"]
    args = [*flags.split(), *out, "--", *job.split()]
    _refused(run_mpi(4, SWEEP, args=args, timeout_s=60), words)


def test_a_metric_that_no_trial_has_is_misuse(tmp_path: Path) -> None:
    args = _args(tmp_path, "out", metric="nothing")
    _refused(
        run_mpi(2, SWEEP, args=args, timeout_s=60), "no trial had the metric nothing: the job tells"
    )


def test_the_table_of_another_sweep_is_refused(tmp_path: Path) -> None:
    run_mpi(None, ["-m", "diml.cli", "sweep"], timeout_s=60, args=[
        "--grid", "x=1,2", "--metric", "total", "--csv", tmp_path / "a.csv", "--quiet", "--",
        *_args(tmp_path, "a")[-1:],
    ]).expect(0)  # fmt: skip
    before = (tmp_path / "a.csv").read_bytes()
    assert before.count(b"ok") == 2
    _refused(run_mpi(2, SWEEP, args=_args(tmp_path, "a"), timeout_s=60), "of another sweep")
    args = _args(tmp_path, "a", metric="size")
    _refused(run_mpi(2, SWEEP, args=args, timeout_s=60), "its columns are others")
    assert (tmp_path / "a.csv").read_bytes() == before


def test_diml_sweep_starts_and_restarts_by_itself(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    words = ["-m", "diml.cli", "sweep", "-n", "2", "--max-restarts", "5"]
    with start_mpi(None, words, args=_args(tmp_path, "out", "--events", log)) as running:
        _until_begun(running, log, 3)
        lost = [running.kill(process.pid) for process in running.ranks().values()]
        assert lost == [True, True]
        ended = running.wait(timeout_s=120).expect(0)
    assert "started again" in ended.stderr, ended.report()
    _check(_table(tmp_path / "out.csv"))
