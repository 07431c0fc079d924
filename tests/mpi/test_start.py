"""A process that is lost before the job has begun: an end with a reason, never a hang."""

from __future__ import annotations

import pytest

from tests.helpers.mpi import run_mpi

PROGRAM = """
import os, signal, time
import diml

if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
    {before}
    time.sleep(0.5)
    {how}
diml.init()
"""
_KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.mark.parametrize(
    ("before", "how", "words"),
    [
        ("from mpi4py import MPI", _KILLED, "diml: a process was lost during the start"),
        ("from mpi4py import MPI", "time.sleep(99)", "diml: waited 3 s for all processes to come"),
        ("pass", _KILLED, "diml: a process was lost before the job had begun"),
    ],
    ids=["killed", "stuck", "killed-before-mpi"],
)
def test_others_do_not_wait_for_ever(before: str, how: str, words: str) -> None:
    env = {"DIML_DEADLINE": "3", "DIML_FROZEN_DEADLINE": "3"}
    program = PROGRAM.format(before=before, how=how)
    ended = run_mpi(3, program, env=env, timeout_s=60).expect(1)
    assert ended.stderr.count("diml: ") <= 1 and words in ended.stderr, ended.report()
