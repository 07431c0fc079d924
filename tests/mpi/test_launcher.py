"""The end of mpirun is the end of its processes, whatever they are at."""

from __future__ import annotations

import signal

from tests.helpers import processes
from tests.helpers.mpi import start_mpi

PROGRAM = """
import os, time
import diml

with diml.init(servers=1, spares=1) as job:
    job.parameter_server().table("R", 10, 2)
    print("begun", flush=True)
    while True:
        time.sleep(0.1)
"""


def test_no_process_outlives_a_killed_mpirun() -> None:
    with start_mpi(3, PROGRAM) as running:
        running.wait_for("begun", timeout_s=60)
        assert len(running.ranks()) == 3
        assert running.kill(running.pid, signal.SIGKILL)
        left = processes.wait_until_gone(running.mark, within_s=30)
        assert not left, left
