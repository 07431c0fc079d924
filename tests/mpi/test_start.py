"""A process that is lost before the job has begun: an end with a reason, never a hang."""

from __future__ import annotations

import pytest

from tests.helpers.mpi import run_mpi

PROGRAM = """
import os, signal, subprocess, time
import diml

if os.environ["OMPI_COMM_WORLD_RANK"] == "{rank}":
    {before}
    time.sleep({wait_s})
    {how}
diml.init()
"""
_KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
_LOST = "diml: a process was lost before the job had begun"
# No Python code runs in MPI_Init, which all are in by then.
_LATER = """subprocess.Popen(["sh", "-c", f"sleep {}; kill -9 {os.getpid()}"])"""


@pytest.mark.parametrize(
    ("rank", "before", "how", "words"),
    [
        (1, "from mpi4py import MPI", _KILLED, "diml: a process was lost during the start"),
        (
            1,
            "from mpi4py import MPI",
            "time.sleep(99)",
            "diml: waited 3 s for all processes to come",
        ),
        (1, "pass", "time.sleep(99)", "diml: waited 3 s for all processes to come"),
        (1, "pass", _KILLED, _LOST),
        (0, "pass", _KILLED, _LOST),
        (2, _LATER, "time.sleep(99)", _LOST),
    ],
    ids=[
        "killed",
        "stuck",
        "stuck-before-mpi",
        "killed-before-mpi",
        "the-first-killed",
        "others-in-mpi",
    ],
)
def test_others_do_not_wait_for_ever(rank: int, before: str, how: str, words: str) -> None:
    # Who is slow to start is not to be taken for one that is stuck.
    deadline_s = "3" if "3 s" in words else "30"
    env = {"DIML_DEADLINE": deadline_s, "DIML_FROZEN_DEADLINE": "3"}
    # During the start: not before the others are through with MPI's own.
    wait_s = 3.0 if "during" in words else 0.5
    program = PROGRAM.format(rank=rank, before=before.replace("{}", "1"), how=how, wait_s=wait_s)
    ended = run_mpi(3, program, env=env, timeout_s=60).expect(1)
    assert not ended.leftovers, ended.report()
    assert ended.stderr.count("diml: ") <= 1 and words in ended.stderr, ended.report()
