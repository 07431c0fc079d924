"""The MPI test helper itself: output, status, deadlines, stacks of all ranks, nothing left."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.helpers import mpi, processes
from tests.helpers.mpi import run_mpi, start_mpi

HELLO = """
    from mpi4py import MPI
    import sys
    rank = MPI.COMM_WORLD.Get_rank()
    print(f"hello {rank} {MPI.COMM_WORLD.allreduce(rank)} {sys.argv[1:]}", flush=True)
"""

HANG = """
    import subprocess, sys
    from mpi4py import MPI
    def waits_for_a_message_that_nobody_sends():
        # A child of a rank inherits the rank's variables and outlives it.
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("ready", flush=True)
        MPI.COMM_WORLD.recv(source=(rank + 1) % MPI.COMM_WORLD.Get_size())
    rank = MPI.COMM_WORLD.Get_rank()
    waits_for_a_message_that_nobody_sends()
"""


def test_output_status_and_arguments_come_back() -> None:
    done = run_mpi(3, HELLO, args=["a", 1], timeout_s=60).expect(0)
    assert sorted(done.stdout.split("\n"))[1:] == [f"hello {r} 3 ['a', '1']" for r in range(3)]
    assert run_mpi(2, "raise SystemExit(7)", timeout_s=60).returncode == 7


def test_without_launcher_and_by_module() -> None:
    done = run_mpi(None, ["-c", "print('alone')"], timeout_s=60).expect(0)
    assert done.stdout == "alone\n"
    with pytest.raises(AssertionError, match="exit status 3"):
        run_mpi(None, "raise SystemExit(3)", timeout_s=60).expect(0)


def test_hang_shows_every_rank_and_leaves_nothing() -> None:
    with start_mpi(3, HANG) as job:
        job.wait_for(r"(ready\s+){3}", timeout_s=60)
        pids = [process.pid for process in job.ranks().values()]
        assert len(pids) == 3
        with pytest.raises(AssertionError) as failure:
            job.wait(timeout_s=0.5)
        assert job.leftovers() == []
    text = str(failure.value)
    assert "HUNG" in text
    assert text.count("waits_for_a_message_that_nobody_sends") == 3
    for rank, pid in enumerate(pids):
        assert f"pid {pid} (rank {rank} of" in text
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()


def test_stopped_rank_is_shown_and_ended() -> None:
    with start_mpi(2, HANG) as job:
        job.wait_for(r"(ready\s+){2}", timeout_s=60)
        assert job.kill(job.ranks()[1].pid, signal.SIGSTOP)
        done = job.wait(timeout_s=0.5, allow_hang=True)
    assert done.hung
    assert done.stacks.count("waits_for_a_message_that_nobody_sends") == 2
    assert "state T" in done.stacks


SURVIVORS = """
    import os
    from mpi4py import MPI
    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)
    rank = MPI.COMM_WORLD.Get_rank()
    print("ready", flush=True)
    try:
        MPI.COMM_WORLD.recv(source=1)
    except MPI.Exception as error:
        dead = error.Get_error_class() == MPI.ERR_PROC_FAILED
        print(f"rank {rank} saw the death: {dead}", flush=True)
    os._exit(0)
"""


def test_a_killed_rank_is_seen_by_the_others_and_the_job_ends_well() -> None:
    with start_mpi(3, SURVIVORS) as job:
        job.wait_for(r"(ready\s+){3}", timeout_s=60)
        assert job.kill(job.ranks()[1].pid)
        done = job.wait(timeout_s=60).expect(0)
    seen = sorted(line for line in done.stdout.splitlines() if line.startswith("rank"))
    assert seen == [f"rank {rank} saw the death: True" for rank in (0, 2)]


def test_stacks_without_py_spy_come_from_the_fault_handler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_spy", lambda pid: None)
    with start_mpi(2, HANG) as job:
        job.wait_for(r"(ready\s+){2}", timeout_s=60)
        done = job.wait(timeout_s=0.5, allow_hang=True)
    assert done.stderr.count("in waits_for_a_message_that_nobody_sends") == 2


def test_process_left_behind_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi, "_LEAVE_S", 0.5)
    daemon = """
        import subprocess, sys
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                         start_new_session=True)
    """
    with start_mpi(None, daemon) as job:
        with pytest.raises(AssertionError, match="left behind: pid"):
            job.wait(timeout_s=60)
        assert job.leftovers() == []


def test_kill_hits_only_own_processes() -> None:
    with start_mpi(None, "import time; time.sleep(600)") as job:
        assert not job.kill(1, 0)
        assert job.kill(job.pid)
        deadline = time.monotonic() + 10
        while job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert job.poll() == -signal.SIGKILL
        assert not job.kill(job.pid)


def test_pattern_that_never_comes_fails_with_output() -> None:
    with (
        start_mpi(None, "print('something else')") as job,
        pytest.raises(AssertionError, match="something else"),
    ):
        job.wait_for("hello", timeout_s=30)
