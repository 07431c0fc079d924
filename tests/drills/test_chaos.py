"""`--chaos` on a real job: processes are killed at random, the job ends with the same bits."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from tests.helpers.mpi import Running, run_mpi

LONG = """
import time
import numpy as np
import diml

with diml.init() as job:
    version, total, _ = job.load_checkpoint()
    for step in range(version, 3000):
        total = job.allreduce(np.ones(3))
        job.checkpoint(total)
        if job.rank == 0 and step == version + 3:
            print("at work", flush=True)
        time.sleep(0.02)
"""


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


def test_told_to_stop_it_takes_its_job_along(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(LONG)
    words = ["--chaos", "600", "--workers", "2", "--", str(tmp_path / "job.py")]
    env = {"DIML_CHECKPOINT_DIR": str(tmp_path / "kept")}
    with Running(None, ["-m", "diml.jobs.drill"], args=words, env=env) as job:
        job.wait_for("at work", timeout_s=60)
        job.kill(job.pid, signal.SIGTERM)
        finished = job.wait(timeout_s=60).expect(75)
    assert "stopped in good order" in finished.stderr, finished.report()
    assert "result         exit status 75" in finished.stdout, finished.report()
