"""SIGKILLs from outside at random moments, over MF, logistic regression and counting programs.

`DIML_PS_KILLS` sets how many in all (default 18; `make soak`: 100). Without staleness the result
has the bits of the run without deaths; with it, a table of integers tells that each update was
applied exactly once. Every kill falls between 5 % and 95 % of its run, the next one after the
repair; some take a worker and a server at once.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tests.drills import ps_short
from tests.drills.ps_kills import Killer
from tests.helpers.mpi import Finished, run_mpi, start_mpi

KILLS = int(os.environ.get("DIML_PS_KILLS", "18"))
KILLS_A_RUN = 3
RUNS = -(-KILLS // KILLS_A_RUN)
WORKERS = 3
ONCE = "every update once"


@dataclass(frozen=True)
class Program:
    """A job to be disturbed: its command, how far it goes, how far it is, what it came to.

    Attributes:
        replicas: of the servers' rows; where there are none only workers are killed.
    """

    command: Sequence[str]
    args: Callable[[Path], list[object]]
    steps: int
    done: Callable[[Path, str], int]
    result: Callable[[Path, Finished], object]
    replicas: int = 1


def _lines_of_losses(folder: Path, stdout: str) -> int:
    path = folder / "out.loss"
    return path.read_text().count("\n") - 1 if path.exists() else 0


def _files(*names: str) -> Callable[[Path, Finished], object]:
    return lambda folder, finished: [(folder / name).read_bytes() for name in names]


def _digest(folder: Path, finished: Finished) -> object:
    lines = re.findall(r"digest (\d+) wrong (\d+)", finished.stdout)
    assert len(lines) == WORKERS and all(wrong == "0" for _, wrong in lines), finished.report()
    return {digest for digest, _ in lines}


def _counted(folder: Path, finished: Finished) -> object:
    _digest(folder, finished)
    return ONCE


def _count_args(staleness: int) -> Callable[[Path], list[object]]:
    return lambda folder: ["--clocks", 120, "--pause", 0.01, "--staleness", staleness]


def _mf_args(folder: Path) -> list[object]:
    rng = np.random.default_rng(0)
    cells = rng.permutation(600 * 200)[:20_000]
    values = rng.normal(size=20_000)
    lines = [f"{c // 200} {c % 200} {v:.6g}\n" for c, v in zip(cells, values, strict=True)]
    (folder / "ratings").write_text("".join(lines))
    flags = ["--K", 8, "--lambda", 0.05, "--update", "adagrad", "--num_iterations", 250]
    return ["--datafile", folder / "ratings", "--output_prefix", folder / "out", "--quiet", *flags]


def _logistic_args(folder: Path) -> list[object]:
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(900):
        cells = " ".join(f"{c + 1}:{rng.normal():.6g}" for c in np.sort(rng.permutation(60)[:8]))
        lines.append(f"{rng.integers(0, 2)} {cells}\n")
    (folder / "x.svm").write_text("".join(lines))
    flags = ["--method", "sync-sgd", "--batch_size", 60, "--num_epochs", 150, "--l2", 0.01]
    return ["--datafile", folder / "x.svm", "--output_prefix", folder / "out", "--quiet", *flags]


def _short_args(folder: Path) -> list[object]:
    return ["--clocks", SHORT]


def _short_clocks(folder: Path, stdout: str) -> int:
    return ps_short.TELL_EVERY * stdout.count("clock ")


COUNT = ["-m", "tests.drills.ps_count"]
# Clocks of some hundred microseconds.
SHORT = 8_000
SHORT_COMMAND = ["-m", "tests.drills.ps_short"]
PROGRAMS = {
    "mf": Program(
        ["-m", "diml.jobs.mf"], _mf_args, 250, _lines_of_losses, _files("out.L", "out.R")
    ),
    "logistic": Program(
        ["-m", "diml.jobs.logistic"], _logistic_args, 150, _lines_of_losses, _files("out.w")
    ),
    "count": Program(COUNT, _count_args(0), 120, lambda _, out: out.count("\nclock "), _digest),
    "stale": Program(COUNT, _count_args(3), 120, lambda _, out: out.count("\nclock "), _counted),
    "short": Program(SHORT_COMMAND, _short_args, SHORT, _short_clocks, _counted),
    "alone": Program(SHORT_COMMAND, _short_args, SHORT, _short_clocks, _counted, replicas=0),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], object]:
    """The result of a program without deaths, by name; each is run once, but for those whose
    bits may differ."""
    results: dict[str, object] = dict.fromkeys(("stale", "short", "alone"), ONCE)

    def result(name: str) -> object:
        if name not in results:
            folder, program = tmp_path_factory.mktemp(name), PROGRAMS[name]
            env = {"DIML_SERVERS": "1"}
            finished = run_mpi(
                WORKERS + 1, program.command, args=program.args(folder), env=env, timeout_s=120
            ).expect(0)
            results[name] = program.result(folder, finished)
        return results[name]

    return result


@dataclass(frozen=True)
class Storm:
    """What is to happen to a job.

    Attributes:
        both: the first strike takes a worker and a server at once.
        moments: the steps at which to strike.
    """

    seed: int
    program: Program
    servers: int
    both: bool
    moments: Sequence[int]

    @classmethod
    def drawn(cls, seed: int) -> Storm:
        """The storm of a seed; the same program every so many seeds."""
        rng = random.Random(seed)
        program = list(PROGRAMS.values())[seed % len(PROGRAMS)]
        # Of several servers rows come the long way.
        servers = 1 if program.command is SHORT_COMMAND else rng.choice((1, 2))
        # A worker and its server at once, where another server or the standby has its rows.
        both = rng.random() < 0.25 and program.replicas > 0
        first, last = program.steps * 6 // 100, program.steps * 50 // 100
        return cls(
            seed, program, servers, both, sorted(rng.sample(range(first, last), KILLS_A_RUN))
        )


def strike(storm: Storm, folder: Path) -> tuple[Finished, Killer]:
    """Run the program and kill; fewer are killed if it comes to its end before."""
    program, rng = storm.program, random.Random(storm.seed)
    roles = ("worker", "worker", "server") if program.replicas else ("worker",)
    # One for each seat, and the standby of a single server.
    spares = KILLS_A_RUN + storm.both + (storm.servers == 1)
    env = {
        "DIML_SERVERS": str(storm.servers),
        "DIML_SPARES": str(spares),
        "DIML_PS_REPLICAS": str(program.replicas),
        "DIML_EVENTS": str(folder / "events"),
    }
    n = WORKERS + storm.servers + spares
    with start_mpi(n, program.command, args=program.args(folder), env=env) as running:
        killer = Killer(running, folder / "events", rng)

        def done() -> int:
            return program.done(folder, running.stdout)

        for moment in storm.moments:
            if not killer.wait_until(lambda moment=moment: done() >= moment):
                break
            one = (rng.choice(roles),)
            whom = ("worker", "server") if storm.both and not killer.killed else one
            if not killer.strike(whom, done):
                break
        return running.wait(timeout_s=120).expect(0), killer


@pytest.mark.parametrize("seed", range(RUNS))
def test_random_kills(seed: int, undisturbed: Callable[[str], object], tmp_path: Path) -> None:
    storm, name = Storm.drawn(seed), list(PROGRAMS)[seed % len(PROGRAMS)]
    steps = storm.program.steps
    # On a busy machine a job may be over before it was hit: then once more, and earlier.
    for attempt in range(4):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        finished, killer = strike(storm, folder)
        assert storm.program.result(folder, finished) == undisturbed(name), killer.killed
        struck = len(killer.killed) >= KILLS_A_RUN
        if struck and all(0.05 * steps <= step <= 0.95 * steps for step in killer.steps):
            print(f"{name}, {storm.servers} servers: {', '.join(killer.killed)} of {steps}")
            return
        storm = replace(storm, moments=[max(steps * 6 // 100, m // 2) for m in storm.moments])
    raise AssertionError(f"the job was over before it was hit: {killer.killed} of {steps}")
