"""Reading together under mpirun, also when a worker dies while the parts are exchanged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diml.jobs.mf_load import Source, load
from tests.helpers.mpi import run_mpi
from tests.unit.test_mf_load import entries_file

PROGRAM = """
    import os, signal, sys
    import diml
    from diml.jobs.mf_load import Source, load

    with diml.init() as job:
        calls = 0
        gather = job.gather_once

        def gather_or_die(array):
            global calls
            calls += 1
            if job.rank == 1 and job.incarnation == 0 and calls == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return gather(array)

        job.gather_once = gather_or_die
        ratings = load(Source(sys.argv[1], None, test_fraction=0.1), job)
        total = job.allreduce(float(ratings.train.values.sum()), "sum")
        print(f"[{job.rank}: {ratings.fingerprint}]", flush=True)
"""


@pytest.mark.parametrize("deadly", [0, 1, 4, 6])
def test_all_have_the_same_entries(tmp_path: Path, deadly: int) -> None:
    path = entries_file(tmp_path)
    done = run_mpi(4, PROGRAM, args=(path, deadly), env={"DIML_SPARES": "1"}, timeout_s=60)
    done.expect()
    expected = load(Source(str(path), None, test_fraction=0.1)).fingerprint
    found = re.findall(r"\[(\d): (.*)\]", done.stdout)
    assert sorted(found) == [(str(rank), expected) for rank in range(3)], done.report()
