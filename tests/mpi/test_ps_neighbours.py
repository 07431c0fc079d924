"""Commits that a server hands over to its replica in memory: they are used, and outlive it."""

from __future__ import annotations

import pytest

from diml.world.lending import lend
from tests.helpers.mpi import run_mpi

# The processes of this job that have lent memory mapped are counted by the worker.
PROGRAM = """
import os
from pathlib import Path
import numpy as np
import diml

def parent(pid):
    return (pid / "stat").read_text().rpartition(")")[2].split()[1]

def sharing():
    mine = parent(Path("/proc/self"))
    count = 0
    for pid in Path("/proc").glob("[0-9]*"):
        try:
            count += parent(pid) == mine and "memfd:diml-lent" in (pid / "maps").read_text()
        except OSError:
            continue
    return count

with diml.init() as job:
    ps = job.parameter_server(staleness=STALENESS)
    table = ps.table("t", 40_000, 32)
    ids = np.random.default_rng(1).permutation(40_000)[:20_000]
    deltas = np.arange(20_000 * 32, dtype=np.float32).reshape(20_000, 32)
    shared = 0
    for clock in range(ps.clock_now, 12):
        rows = table.get(ids)
        assert (rows == clock * deltas).all(), clock
        table.inc(ids, deltas)
        if REPEATED:
            table.inc(ids[:100], deltas[:100] * 0)
        ps.clock()
        shared = max(shared, sharing())
    ps.barrier()
    assert (table.get(ids) == 12 * deltas).all()
    print("shared by", shared)
"""


@pytest.mark.skipif(lend() is None, reason="no memory without a name here")
@pytest.mark.parametrize(
    ("staleness", "repeated", "drill"),
    [(0, False, "1,4,0,0"), (0, True, "1,4,0,0,inside 1,8,0,1,after"), (1, False, "1,6,0,0,after")],
)
def test_updates_handed_over_in_memory_outlive_their_server(
    staleness: int, repeated: bool, drill: str
) -> None:
    program = PROGRAM.replace("STALENESS", str(staleness)).replace("REPEATED", str(repeated))
    env = {"DIML_SERVERS": "1", "DIML_SPARES": "3", "DIML_DRILL": drill}
    finished = run_mpi(5, program, env=env, timeout_s=90).expect(0)
    assert "shared by 2" in finished.stdout, finished.report()
    assert "did not fire" not in finished.stderr, finished.report()
