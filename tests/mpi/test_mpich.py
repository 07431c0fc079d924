"""The same programs under an MPI without fault tolerance: a killed rank means a relaunch (R6)."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from tests.helpers.mpi import CHECKOUT, Running, run_mpi, start_mpi
from tests.mpi.test_durable import answer
from tests.mpi.test_run import PROGRAM, STEPS, memory_of, starts

# `pip install --no-deps --prefix build/mpich mpich`: a second MPI beside the environment's own.
MPICH = CHECKOUT / "build" / "mpich"
pytestmark = pytest.mark.skipif(
    not (MPICH / "bin" / "mpiexec").exists(), reason=f"no MPICH in {MPICH} (.ci/run puts it there)"
)
ENV = {
    "MPI4PY_MPIABI": "mpich",
    "MPI4PY_LIBMPI": str(MPICH / "lib" / "libmpi.so.12"),
    "LD_LIBRARY_PATH": str(MPICH / "lib"),
}


def start(tmp_path: Path, **env: str) -> Running:
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    launcher = ["--mpirun", str(MPICH / "bin" / "mpiexec")]
    job = ["program.py", str(STEPS), "0.0", "local"]
    command = ["-m", "diml.cli", "run", "-n", "2", *launcher, "--", *job]
    return start_mpi(None, command, env=ENV | env, cwd=tmp_path)


def test_a_killed_rank_means_a_relaunch_from_the_memory_of_the_node(tmp_path: Path) -> None:
    version = run_mpi(
        None, "from mpi4py import MPI; print(MPI.Get_library_version())", env=ENV, timeout_s=60
    )
    assert "MPICH" in version.expect(0).stdout
    with start(tmp_path) as running:
        wanted = answer(running.wait(timeout_s=120).expect(0))
    gate = tmp_path / "gate"
    with start(tmp_path, TEST_HOLD=f"12:{gate}") as running:
        running.wait_for("^at 12$", timeout_s=90)
        memory = memory_of(running)
        running.kill(running.ranks()[1].pid)
        gate.touch()
        done = running.wait(timeout_s=120).expect(0)
    assert answer(done) == wanted and starts(done)[-1] >= 10, done.report()
    assert done.stderr.count("started again") == 1
    assert not memory.exists() and not os.path.exists(tmp_path / "core")
