"""Rabit's whole recovery matrix on 10 ranks and 10,000 elements, bit for bit.

Rabit counts two operations a broadcast (size, then payload), DiML one. Its sequence numbers are
translated: the death before a broadcast's second half becomes one inside the broadcast. A tuple
whose rank has died before at an earlier place cannot fire, in Rabit neither: its trial number is
1 by then. These are listed with each case and must be reported as such.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from diml.drill import Drill, parse_drill
from tests.helpers.mpi import run_mpi

RANKS, ELEMENTS = 10, 10_000


@dataclass(frozen=True)
class Case:
    """One line of Rabit's test list; `idle` are the tuples that cannot fire."""

    program: str
    mock: str
    idle: str = ""


DIE_SAME = "0,0,1,0 1,1,1,0 0,1,1,0 4,1,1,0 9,1,1,0"
DIE_HARD = "0,0,1,0 1,1,1,0 1,1,1,1 0,1,1,0 4,1,1,0 9,1,1,0 8,1,2,0 4,1,3,0"
CASES = {
    "model_recover": Case("model", "0,0,1,0 1,1,1,0"),
    "model_recover_die_same": Case("model", DIE_SAME, "0,1,1,0"),
    "model_recover_die_hard": Case("model", DIE_HARD, "0,1,1,0 4,1,3,0"),
    "local_recover": Case("local", f"{DIE_SAME} 1,1,1,1", "0,1,1,0"),
    "lazy_recover_die_same": Case("lazy", DIE_SAME, "0,1,1,0"),
    "lazy_recover_die_hard": Case("lazy", DIE_HARD, "0,1,1,0 4,1,3,0"),
    "ringallreduce": Case("model", ""),
}


def translated(mock: str) -> Drill:
    """A tuple of Rabit's mock engine (rank, version, seqno, ntrial) in our sequence numbers."""
    rank, version, seqno, trial = map(int, mock.split(","))
    if seqno == 0:
        return Drill(rank, version, 0, trial)
    broadcast, half = divmod(seqno - 1, 2)
    assert broadcast < 4, "the broadcasts have the seqnos 1 to 8"
    return Drill(rank, version, 1 + broadcast, trial, "inside" if half else "entry")


@pytest.mark.parametrize("name", CASES)
def test_rabits_matrix(name: str) -> None:
    case = CASES[name]
    drills = [translated(mock) for mock in case.mock.split()]
    idle = {translated(mock) for mock in case.idle.split()}
    flags = [word for drill in drills for word in ("--drill", str(drill))]
    job = ["-m", "diml.jobs.drill", "--program", case.program, "--ndata", str(ELEMENTS)]
    deaths = len(drills) - len(idle)
    finished = run_mpi(
        RANKS + deaths, [*job, "--spares", str(deaths), *flags], timeout_s=240
    ).expect(0)
    out = finished.stdout
    assert "identical to the run without failures: yes" in out, finished.report()
    unfired = {parse_drill(text) for text in re.findall(r"did not fire: (\S+)", out)}
    assert unfired == idle
    assert f"{deaths} deaths" in out, finished.report()


def test_the_python_program_of_rabits_matrix_with_its_deaths() -> None:
    # Rabit's pylocal case passes no tuples on, so that nobody dies in it; here they do.
    program = """
        import numpy as np
        from diml.allreduce import rabit
        rabit.init()
        rank, n = rabit.get_rank(), rabit.get_world_size()
        data = np.ones(10) * rank
        version, model, local = rabit.load_checkpoint(True)
        if version == 0:
            model, local = np.zeros(10), np.ones(10)
        for i in range(version, 3):
            model = rabit.allreduce(data + model + local, rabit.SUM)
            local[:] = i
            rabit.checkpoint(model, local)
        want = 0
        for held in (1, 0, 1):
            want = n * (want + held) + n * (n - 1) // 2
        assert (model == want).all(), (model, want)
        rabit.tracker_print("right")
        rabit.finalize()
    """
    drills = "0,0,0,0 1,1,0,0 4,1,0,0 9,1,0,0 1,1,0,1 0,2,0,1"
    spares = len(drills.split())
    env = {"DIML_SPARES": str(spares), "DIML_DRILL": drills}
    finished = run_mpi(RANKS + spares, program, env=env, timeout_s=240).expect(0)
    assert finished.stdout.count("right") == RANKS
