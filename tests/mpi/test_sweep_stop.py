"""`diml sweep` and the signals of a batch system; a failure in the set-up of a trial's own job."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.helpers.mpi import run_mpi, start_mpi
from tests.mpi.test_sweep import SWEEP, _args, _check, _table, _until_begun


@pytest.mark.parametrize("keeps", [False, True])
def test_told_to_stop_it_leaves_with_75_and_goes_on(tmp_path: Path, keeps: bool) -> None:
    """Whether the trial under way takes the signal over, since it keeps checkpoints, or not."""
    log = tmp_path / "log.jsonl"
    args = _args(tmp_path, "out", "--events", log, "--spares", 1)
    if keeps:
        script = tmp_path / "job.py"
        folder = f"checkpoint_dir=__import__('pathlib').Path('{tmp_path}')"
        folder += " / sys.argv[1].strip('-')"
        script.write_text(script.read_text().replace("diml.init()", f"diml.init({folder})"))
    with start_mpi(5, SWEEP, args=args) as running:
        _until_begun(running, log, 4)
        assert running.kill(running.pid, signal.SIGUSR1)
        ended = running.wait(timeout_s=60).expect(75)
    said = "stopped by SIGUSR1; what is finished is in"
    assert ended.stderr.count(said) == 1 and "Traceback" not in ended.stderr, ended.report()
    before = _table(tmp_path / "out.csv") if not keeps else []
    assert all(row["status"] == "ok" for row in before)
    run_mpi(5, SWEEP, args=args, timeout_s=90).expect(0)
    _check(_table(tmp_path / "out.csv"))


def test_a_failure_on_one_rank_in_the_set_up_of_a_trial_frees_the_others(tmp_path: Path) -> None:
    """As when a process dies inside MPI_Comm_dup: some of the others hear of it, some wait."""
    script = """
import os, sys
from pathlib import Path
from mpi4py import MPI
import diml
from diml.world import repair

class Broken:
    def __init__(self, comm):
        self.comm = comm
    def Dup(self):
        raise MPI.Exception(MPI.ERR_PROC_FAILED)
    def __getattr__(self, name):
        return getattr(self.comm, name)

once = Path(sys.argv[0]).with_name("once")
if sys.argv[1] == "--x=1" and os.environ["OMPI_COMM_WORLD_RANK"] == "2" and not once.exists():
    once.touch()
    from diml.world import start
    first = start.first_footing
    start.first_footing = lambda comm, membership: first(Broken(comm), membership)
    try:
        diml.init()
    finally:
        start.first_footing = first
with diml.init() as job:
    job.event("result", values={"size": job.size})
"""
    (tmp_path / "job.py").write_text(script)
    args = ["--grid", "x=0,1,2", "--ranks-per-trial", 4, "--metric", "size", "--csv"]
    args += [tmp_path / "out.csv", "--quiet", "--", tmp_path / "job.py"]
    run_mpi(4, SWEEP, args=args, timeout_s=60).expect(0)
    assert [row["status"] for row in _table(tmp_path / "out.csv")] == ["ok"] * 3
    assert (tmp_path / "once").exists()
