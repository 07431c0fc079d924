"""Processes that no Python code can reach: fenced where they are late, ended where the job ends."""

from __future__ import annotations

from tests.helpers.mpi import run_mpi

PROGRAM = """
import re
import numpy as np
import diml

with diml.init(spares=0) as job:
    version, total, _ = job.load_checkpoint()
    for step in range(version, 4):
        total = job.allreduce(np.ones(3) if total is None else total)
        if step == 2 and job.rank == 1 and job.incarnation == 0:
            re.match("(a+)+$", "a" * 64 + "b")  # keeps the interpreter for years
        {others}
        job.checkpoint(total)
    if job.rank == 0:
        print(total[0])
"""


def test_a_rank_that_keeps_the_interpreter_is_late_and_replaced() -> None:
    env = {"DIML_DEADLINE": "3", "DIML_FROZEN_DEADLINE": "3"}
    ended = run_mpi(3, PROGRAM.format(others=""), env=env, timeout_s=60).expect(0)
    assert ended.stdout.split() == ["81.0"] and not ended.leftovers, ended.report()


def test_it_does_not_outlive_a_job_that_ends_in_error() -> None:
    program = PROGRAM.format(others="if step == 2: raise ValueError(job.rank)")
    ended = run_mpi(3, program, timeout_s=60).expect(1)
    assert "ValueError: " in ended.stderr and not ended.leftovers, ended.report()
