"""A program that changes its working folder: its replacement is found where the job began."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.mpi import run_mpi

PROGRAM = """
import os
import diml

with diml.init() as job:
    os.chdir("/")
    version, _, _ = job.load_checkpoint()
    for step in range(version, 3):
        job.barrier()
        job.checkpoint(step)
    job.log(f"incarnation {job.incarnation}")
"""


def test_a_replacement_starts_where_the_job_began(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(PROGRAM)
    env = {"DIML_DRILL": "1,1,0,0", "DIML_SPARES": "0"}
    ended = run_mpi(2, ["-u", "job.py"], cwd=tmp_path, env=env, timeout_s=60).expect(0)
    assert "[1] incarnation 1" in ended.stdout, ended.report()
