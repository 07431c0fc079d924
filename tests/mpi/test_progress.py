"""Progress: plain lines at intervals, a live line on a terminal, nothing when quiet."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diml.events import read_events
from diml.report.progress import Progress, terminal_width
from tests.helpers.mpi import CHECKOUT, mpirun, run_mpi, start_mpi

STEPS = """
    from diml.report.progress import Progress
    with Progress("demo", 40) as progress:
        for step in range(41):
            progress.update(step, rmse=1 / (1 + step))
            if step == 20:
                progress.note("worker 1 died")
"""


def test_plain_lines_come_at_intervals_and_tell_the_time_left() -> None:
    stream, now = io.StringIO(), 0.0
    with Progress("mf", 10, stream=stream, every_s=5, clock=lambda: now) as progress:
        for step in range(11):
            now = 2.0 * step
            progress.update(step, rmse=0.123456, rate="3 M/s")
        progress.note("that was it")
    assert stream.getvalue().splitlines() == [
        "mf: 0/10 (0 %)  rmse 0.1235  rate 3 M/s",
        "mf: 3/10 (30 %)  rmse 0.1235  rate 3 M/s  14 s left",
        "mf: 6/10 (60 %)  rmse 0.1235  rate 3 M/s  8 s left",
        "mf: 9/10 (90 %)  rmse 0.1235  rate 3 M/s  2 s left",
        "mf: 10/10 (100 %)  rmse 0.1235  rate 3 M/s",
        "that was it",
    ]


def test_a_replacement_reckons_with_its_own_steps_only() -> None:
    stream, now = io.StringIO(), 100.0
    with Progress("mf", 100, stream=stream, every_s=0, clock=lambda: now) as progress:
        progress.update(50)
        now = 110.0
        progress.update(60)
    assert stream.getvalue().splitlines()[-1] == "mf: 60/100 (60 %)  40 s left"


def test_quiet_prints_nothing() -> None:
    stream = io.StringIO()
    with Progress("mf", 2, quiet=True, stream=stream) as progress:
        progress.update(2, loss=0.5)
        progress.note("a repair")
    assert stream.getvalue() == ""


def _on_a_terminal(command: list[str], env: dict[str, str]) -> str:
    """What a program writes to a terminal of its own (80 columns)."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env):
        os.close(theirs)
        written = b""
        # Linux says by an error that the other side has closed.
        with contextlib.suppress(OSError):
            while block := os.read(ours, 4096):
                written += block
    os.close(ours)
    return written.decode()


@pytest.mark.parametrize("launched", [False, True])
def test_a_terminal_gets_one_live_line(launched: bool, tmp_path: Path) -> None:
    program = tmp_path / "steps.py"
    program.write_text("\n".join(line[4:] for line in STEPS.splitlines()))
    launcher = [str(mpirun()), "-n", "1"] if launched else []
    command = [*launcher, sys.executable, str(program)]
    env = {
        **os.environ,
        "TERM": "xterm",
        "PYTHONPATH": str(CHECKOUT),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    written = _on_a_terminal(command, env)
    assert "40/40" in written
    assert "worker 1 died\r\n" in written
    assert "\x1b[2K" in written  # the line was drawn over, not repeated below
    assert written.count("\n") <= 4


def test_many_values_take_lines_of_their_own_not_the_steps_place(tmp_path: Path) -> None:
    program = tmp_path / "many.py"
    program.write_text(
        "from diml.report.progress import Progress\n"
        "with Progress('logistic lbfgs', 500) as progress:\n"
        "    values = {f'value of kind {at}': 0.123456 for at in range(6)}\n"
        "    progress.update(500, **values)\n"
    )
    env = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(CHECKOUT)}
    written = _on_a_terminal([sys.executable, str(program)], env)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    last = shown.rpartition("500/500")[2]
    assert "…" not in last and last.count("0.1235") == 6, shown


def test_a_pipe_gets_plain_lines_under_mpirun() -> None:
    with start_mpi(1, STEPS, env={"TERM": "xterm"}) as job:
        done = job.wait(timeout_s=60).expect(0)
    lines = done.stderr.splitlines()
    assert lines[0].startswith("demo: 0/40 (0 %)")
    assert lines[-1].startswith("demo: 40/40 (100 %)")
    assert "\x1b" not in done.stderr
    assert done.stdout == ""


def test_no_terminal_without_a_fitting_stream() -> None:
    assert terminal_width(io.StringIO(), {"TERM": "xterm"}) is None
    assert terminal_width(sys.__stderr__ or sys.stderr, {"TERM": "dumb"}) is None


def test_each_repair_is_noted_once() -> None:
    stream, took = io.StringIO(), [0.053]
    with Progress("mf", 3, stream=stream, every_s=100, repairs=lambda: took) as progress:
        progress.update(1)
        took.append(1.25)
        progress.update(2)
        progress.update(3)
    notes = [line for line in stream.getvalue().splitlines() if "whole again" in line]
    assert notes == [
        "mf: a process was lost, the job was whole again after 53 ms",
        "mf: repair 2, the job was whole again after 1.2 s",
    ]


def _examples(path: Path) -> Path:
    rng = np.random.default_rng(3)
    rows = (f"{n % 2} 1:{rng.normal() + n % 2:.4f} 2:{rng.normal():.4f}\n" for n in range(200))
    path.write_text("".join(rows))
    return path


JOBS = {
    "kmeans": ["--generate", "400", "--k", "5", "--tolerance", "0", "--num_iterations", "9"],
    "lbfgs": ["--method", "lbfgs", "--l2", "1e-3"],
    "sgd": ["--method", "sync-sgd", "--batch_size", "25", "--num_epochs", "4"],
    "mf": ["--generate", "400x300x20000", "--num_iterations", "6", "--update", "adagrad"],
}


@pytest.mark.parametrize("name", JOBS)
def test_one_rank_tells_how_far_a_job_is_and_of_its_repair(name: str, tmp_path: Path) -> None:
    job = name if name in ("kmeans", "mf") else "logistic"
    words = [*JOBS[name], "--spares", "1", "--drill", "1,2,0,0"]
    if job == "logistic":
        words += ["--datafile", str(_examples(tmp_path / "x.svm"))]
    servers = job == "mf" or name == "sgd"
    logs = {"events": tmp_path / "e.jsonl", "prometheus": tmp_path / "m.prom"}
    words += [word for flag, path in logs.items() for word in (f"--{flag}", str(path))]
    words += ["--tensorboard", str(tmp_path / "boards")]
    finished = run_mpi(4 + servers, ["-m", f"diml.jobs.{job}"], args=words, timeout_s=120)
    finished.expect(0)
    lines = [line for line in finished.stderr.splitlines() if line.startswith(job)]
    told = [int(match[1]) for line in lines if (match := re.search(r": (\d+)/\d+ \(", line))]
    assert told and told == sorted(set(told)), finished.stderr
    assert sum("whole again after" in line for line in lines) == 1, finished.stderr
    events = read_events(logs["events"])
    progress = [event for event in events if event["what"] == "progress"]
    assert {(e["role"], e["rank"]) for e in progress} == {("worker", 0)}
    assert re.match(r"worker [012] \(\d+\.\d\d x the mean\)", progress[-1]["values"]["slowest"])
    assert servers == ("staleness" in progress[-1]["values"])
    shown = dict(re.findall(r"(?m)^diml_(\w+)\{[^}]*\} (\S+)$", logs["prometheus"].read_text()))
    assert int(shown["done_steps"]) == progress[-1]["done"]
    assert int(shown["repairs_total"]) == 1
    boards = list((tmp_path / "boards").iterdir())
    assert len(boards) == 1 and boards[0].stat().st_size > 200
    if job != "mf":
        workers = {e["rank"] for e in events if e["what"] == "work" and e["units"] > 0}
        assert workers == {0, 1, 2}
