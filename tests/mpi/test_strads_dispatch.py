"""Blocks handed out one by one under real mpirun: kills at any moment change no bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.mpi import run_mpi, start_mpi

PROGRAM = [
    *["-m", "diml.jobs.lasso", "--generate", "neighbours", "--policy", "priority+dependency"],
    *["--data", "replicated", "--pipeline", "3", "--schedule_size", "16"],
    *["--checkpoint-work", "60000", "--max_iter", "1500"],
]


def answer(path: Path) -> NDArray[np.float64]:
    with np.load(path) as held:
        return np.append(held["coef"], [held["gap"], held["intercept"]])


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float64]:
    """What one process computes with the same pipeline."""
    path = tmp_path_factory.mktemp("reference") / "c.npz"
    run_mpi(1, [*PROGRAM, "--output", str(path)], timeout_s=100).expect(0)
    return answer(path)


def test_three_ranks_equal_one(tmp_path: Path, reference: NDArray[np.float64]) -> None:
    path = tmp_path / "c.npz"
    run_mpi(3, [*PROGRAM, "--output", str(path)], timeout_s=100).expect(0)
    np.testing.assert_array_equal(answer(path), reference)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_kill_between_two_meetings(
    tmp_path: Path, victim: int, reference: NDArray[np.float64]
) -> None:
    """SIGKILL to the scheduler (0) or a worker while blocks are under way."""
    path, log, events = tmp_path / "c.npz", tmp_path / "log", tmp_path / "events"
    files = ["--output", str(path), "--log", str(log), "--events", str(events)]
    with start_mpi(4, [*PROGRAM, *files, "--spares", "1"]) as job:
        job.wait_until(log.exists, "the first meeting", timeout_s=60)
        pid = job.ranks()[victim].pid
        job.wait_until(lambda: log.read_text().count("\n") > 2, "two meetings", timeout_s=60)
        assert job.kill(pid)
        job.wait(timeout_s=120).expect(0)
    np.testing.assert_array_equal(answer(path), reference)
    assert '"what":"repair"' in events.read_text().replace(" ", "")


def test_the_time_that_is_over_is_worker_0_s(tmp_path: Path) -> None:
    program = [*PROGRAM[:-1], "1000000000", "--max_seconds", "0.7", "--path", "3"]
    done = run_mpi(3, program, timeout_s=60).expect(0)
    assert "the gap did not reach the tolerance" in done.stdout


# Replaces each variable by its successor; a worker of its own accord dies or hangs in a push.
COUNTING = """
import os, signal, sys, time
import numpy as np
import diml
from diml.strads import Program, run
from diml.strads.policy import Cyclic


class Counting(Program):
    variables, whole, pushed = 64, True, 0

    def start(self, saved):
        self.b = np.zeros(64) if saved is None else saved["b"]

    def push(self, block):
        self.pushed += 1
        if me == 2 and job.incarnation == 0 and self.pushed == 4:
            if sys.argv[1] == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1000)
        return self.b[block][:, None] + [[1.0]]

    def pull(self, block, result):
        self.b[block] = result[:, 0]
        self.work += len(block)

    def finished(self):
        return self.rounds >= 200

    def model(self):
        return {"b": self.b}


with diml.init() as job:
    me = job.rank

    def train():
        program = Counting()
        run(job, program, policy=Cyclic(64, 4), checkpoint_work=250)
        return float(program.b.sum()), float(program.b.max()), job.size

    print(job.elastic(train))
"""


def test_a_worker_that_hangs_in_a_push_is_replaced() -> None:
    env = {"DIML_DEADLINE": "6", "DIML_FROZEN_DEADLINE": "2", "DIML_SPARES": "1"}
    done = run_mpi(4, COUNTING, args=["hang"], env=env, timeout_s=90).expect(0)
    assert done.stdout.splitlines() == ["(800.0, 13.0, 3)"] * 3


def test_fewer_workers_begin_again() -> None:
    done = run_mpi(
        4, COUNTING, args=["die"], env={"DIML_ON_FAILURE": "shrink"}, timeout_s=90
    ).expect(0)
    said = [line for line in done.stdout.splitlines() if line.startswith("(")]
    assert said == ["(800.0, 13.0, 3)"] * 3
