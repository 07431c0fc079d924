"""Functions that reduce: what they raise reaches all ranks, and is replayed as results are."""

from __future__ import annotations

from tests.helpers.mpi import run_mpi

PROGRAM = """
import os, signal
import numpy as np
import diml
from diml.errors import Misuse

def fails(a, b):
    raise KeyError("of the function")

def shrinks(a, b):
    return a[:1]

def digits(a, b):
    return 10 * a + b

said = set()
with diml.init() as job:
    version, total, _ = job.load_checkpoint()
    for step in range(version, 4):
        for function in (fails, shrinks):
            try:
                job.allreduce(np.arange(3.0), function)
            except (KeyError, Misuse) as error:
                said.add(f"{type(error).__name__}: {error}")
        if step == 2 and job.rank == 1 and job.incarnation == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        total = job.allreduce(np.array([job.rank + 1]), digits)
        job.checkpoint(total)
    said = job.allgather(sorted(said))
    if job.rank == 0:
        print(int(total[0]), *said, sep="\\n")
    job.allreduce(np.arange(3.0), fails)
"""


def test_what_a_function_raises_is_raised_by_all_and_replayed() -> None:
    env = {"DIML_DEADLINE": "20"}
    ended = run_mpi(3, PROGRAM, env=env, timeout_s=60).expect(1)
    total, first, *others = ended.stdout.splitlines()
    assert total == "123" and "KeyError: 'of the function'" in first, ended.report()
    assert "Misuse: allreduce: the function gives float64 (1,)" in first
    words = "Misuse: allreduce: the function failed on rank 0: KeyError('of the function')"
    assert len(others) == 2 and all(words in other for other in others), ended.report()
    assert ended.stderr.count("Traceback") == 1 and "in fails" in ended.stderr, ended.report()
