"""`--chaos` on a real job: processes are killed at random, the job ends with the same bits."""

from __future__ import annotations

import re

from tests.helpers.mpi import run_mpi


def test_a_job_outlives_random_kills_and_the_cost_is_told() -> None:
    words = ["--chaos", "0.5", "--for", "3", "--workers", "3", "--spares", "1", "--seed", "2", "--"]
    words += ["diml.jobs.drill", "--program", "local", "--rounds", "700", "--ndata", "300"]
    finished = run_mpi(None, ["-m", "diml.jobs.drill"], args=words, timeout_s=180).expect(0)
    out = finished.stdout
    assert "identical to the run without failures: yes" in out, finished.report()
    kills = re.findall(
        r"(?m)^ +\d+ +at +[\d.]+ s +(worker \d|a spare) +whole again after +(.+)$", out
    )
    assert kills, finished.report()
    assert not [after for _, after in kills if after.startswith("never")], out
    counted = re.search(r"(?m)^(\d+) killed in .* s apart: (\d+) repaired inside the job", out)
    assert counted and int(counted[1]) == len(kills), out
    assert re.search(r"(?m)^time lost +[\d.]+ m?s \([\d.]+ %\)$", out)
    assert "result         exit status 0" in out
