"""The world on real MPI: seats refilled, hung ranks fenced, one end for all."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from diml.events import read_events
from tests.helpers import processes
from tests.helpers.mpi import Finished, run_mpi, start_mpi

# Sums that depend on every rank, committed at each step; right only if nobody is lost or doubled.
STEPS = 12
SUMS = f"""
import os, sys, time
import numpy as np
import diml

with diml.init() as job:
    version, total, _ = job.load_checkpoint()
    if version == 0:
        total = np.zeros(3)
    for step in range(version, {STEPS}):
        if job.rank == 1 and step == 5 and job.incarnation == 0:
            exec(os.environ.get("AT_FIVE", ""))
        total = total + job.allreduce(np.arange(3.0) + job.rank + step, "sum")
        job.checkpoint(total)
    print("total", job.rank, job.size, *total.astype(int), flush=True)
"""


def _totals(size: int) -> list[str]:
    ranks, steps = range(size), range(STEPS)
    total = [sum(i + rank + step for rank in ranks for step in steps) for i in range(3)]
    return [f"total {rank} {size} {' '.join(map(str, total))}" for rank in ranks]


def _run(n: int, events: Path, timeout_s: float = 60, **env: str) -> Finished:
    settings = {"DIML_EVENTS": str(events), "DIML_SPARES": "0", **env}
    return run_mpi(n, SUMS, timeout_s=timeout_s, env=settings)


def _assert_right(finished: Finished, size: int) -> None:
    finished.expect(0)
    printed = [line for line in finished.stdout.splitlines() if line.startswith("total")]
    assert sorted(printed) == _totals(size), finished.report()


def _events(path: Path, what: str) -> list[dict[str, object]]:
    return [event for event in read_events(path) if event["what"] == what]


@pytest.mark.parametrize(
    ("drills", "spares"),
    [
        ("1,5,0,0", 1),
        ("0,5,0,0", 1),  # the leader
        ("0,5,0,0 1,5,0,0", 2),  # both at once
        ("1,5,0,0 1,6,0,1", 2),  # the replacement too
        ("1,5,0,0,inside", 1),
    ],
)
def test_spares_take_the_dead_ones_seats(tmp_path: Path, drills: str, spares: int) -> None:
    log = tmp_path / "events"
    finished = _run(3 + spares, log, DIML_SPARES=str(spares), DIML_DRILL=drills)
    _assert_right(finished, 3)
    assert len(_events(log, "drill")) == len(drills.split())
    assert not _events(log, "join")


def test_without_a_spare_a_new_process_is_spawned(tmp_path: Path) -> None:
    log = tmp_path / "events"
    finished = _run(3, log, DIML_DRILL="1,5,0,0")
    _assert_right(finished, 3)
    assert [event["rank"] for event in _events(log, "join")] == [1]


def test_a_new_process_that_dies_while_it_starts_is_tried_again(tmp_path: Path) -> None:
    log = tmp_path / "events"
    env = {"DIML_EVENTS": str(log), "DIML_SPARES": "0", "DIML_DRILL": "1,5,0,0"}
    with start_mpi(3, SUMS, env=env) as running:

        def spawned() -> list[int]:
            return [p.pid for p in processes.find(running.mark) if "-Xdiml_spawned" in p.command]

        running.wait_until(spawned, "a new process", timeout_s=30)
        time.sleep(0.15)
        assert all(running.kill(pid) for pid in spawned())
        # Not noticed, it would be waited for until the job is given up after a minute.
        finished = running.wait(timeout_s=40)
    _assert_right(finished, 3)


def test_all_but_one_rank_die_at_once(tmp_path: Path) -> None:
    log = tmp_path / "events"
    drills = "0,5,0,0 1,5,0,0 2,5,0,0"
    finished = _run(7, log, DIML_SPARES="3", DIML_DRILL=drills)
    _assert_right(finished, 4)
    assert len(_events(log, "drill")) == 3


def test_the_hot_spare_of_a_job_started_without_one(tmp_path: Path) -> None:
    log = tmp_path / "events"
    wait = "time.sleep(4)"  # the leader's thread has time to start the spare
    finished = _run(3, log, AT_FIVE=wait, DIML_SPARES="auto", DIML_DRILL="1,6,0,0")
    _assert_right(finished, 3)
    assert len(_events(log, "join")) == 1


def test_a_job_that_may_not_spawn_ends_and_names_the_dead(tmp_path: Path) -> None:
    finished = _run(3, tmp_path / "events", DIML_ON_FAILURE="spare", DIML_DRILL="1,5,0,0")
    finished.expect(1)
    assert finished.stderr.count("\n") == 1
    assert "worker 1 died" in finished.stderr


def test_a_frozen_rank_is_killed_and_replaced(tmp_path: Path) -> None:
    log = tmp_path / "events"
    stop = "import signal; os.kill(os.getpid(), signal.SIGSTOP)"
    finished = _run(4, log, AT_FIVE=stop, DIML_SPARES="1", DIML_FROZEN_DEADLINE="2")
    _assert_right(finished, 3)
    assert {event["fenced"] for event in _events(log, "fence")} == {1}


def test_a_rank_that_ends_with_a_status_of_its_own_is_not_waited_for(tmp_path: Path) -> None:
    # As a library does that calls exit(): Open MPI reports no death.
    log = tmp_path / "events"
    finished = _run(3, log, AT_FIVE="os._exit(7)", DIML_FROZEN_DEADLINE="2").expect(7)
    assert finished.stderr.count("process 1 has ended, which MPI does not report") == 1


@pytest.mark.parametrize("rank", [2, 3])
def test_an_interrupt_of_a_server_or_a_spare_ends_all(rank: int) -> None:
    program = """
    import time
    import diml
    with diml.init() as job, job.parameter_server() as ps:
        print("here", flush=True)
        for _ in range(4000):
            time.sleep(0.01)
            ps.clock()
    """
    env = {"DIML_SERVERS": "1", "DIML_SPARES": "1"}
    with start_mpi(4, program, env=env) as job:
        job.wait_for("here", timeout_s=40)
        assert job.kill(job.ranks()[rank].pid, signal.SIGINT)
        assert job.wait(timeout_s=20).expect(130).stderr.count("Traceback") == 0


def test_an_interrupt_of_a_worker_that_waits_to_leave_ends_all() -> None:
    program = """
    import time
    import diml
    with diml.init() as job:
        if job.rank == 1:
            time.sleep(4)
        else:
            print("leaving", flush=True)
    """
    with start_mpi(2, program) as job:
        job.wait_for("leaving", timeout_s=40)
        assert job.kill(job.ranks()[0].pid, signal.SIGINT)
        assert job.wait(timeout_s=30).expect(130).stderr.count("Traceback") == 0


def test_a_rank_in_an_endless_loop_on_a_host_of_its_own_ends_the_job() -> None:
    # Nobody can see it, let alone kill it.
    program = """
    import os, time
    import diml.world.host as host
    host.host_identity = lambda: "host " + os.environ["OMPI_COMM_WORLD_RANK"]
    import numpy as np
    import diml
    with diml.init() as job:
        job.allreduce(np.ones(2))
        while job.rank == 1:
            time.sleep(1)
        job.allreduce(np.ones(2))
    """
    env = {"DIML_DEADLINE": "5", "DIML_FROZEN_DEADLINE": "2"}
    done = run_mpi(3, program, env=env, timeout_s=60)
    assert done.returncode == 1, done.report()
    assert "waited 5 s for everyone's arrival at the repair; giving up" in done.stderr


def test_a_rank_in_an_endless_loop_is_killed_and_replaced(tmp_path: Path) -> None:
    log = tmp_path / "events"
    env = {"DIML_DEADLINE": "6", "DIML_FROZEN_DEADLINE": "3"}
    finished = _run(4, log, AT_FIVE="while True: pass", DIML_SPARES="1", **env)
    _assert_right(finished, 3)
    fences = _events(log, "fence")
    assert {event["fenced"] for event in fences} == {1}
    assert "late" in str(fences[0]["reason"])


def test_a_rank_that_says_it_is_busy_is_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "events"
    busy = "job.busy(60); time.sleep(6)"
    env = {"DIML_DEADLINE": "4", "DIML_FROZEN_DEADLINE": "3"}
    _assert_right(_run(3, log, AT_FIVE=busy, **env), 3)
    assert not _events(log, "fence")


@pytest.mark.parametrize(
    ("what", "status", "line"),
    [
        ("raise ValueError('boom')", 1, "ValueError: boom"),
        ("from diml.errors import Misuse; raise Misuse('row 3: bad')", 2, "diml: row 3: bad"),
        ("sys.exit(3)", 3, ""),
        ("diml.init()", 2, "diml: diml.init was called twice in one process"),
        ("raise KeyboardInterrupt", 130, ""),
    ],
)
def test_an_error_of_one_rank_ends_all_and_is_said_once(
    tmp_path: Path, what: str, status: int, line: str
) -> None:
    finished = _run(3, tmp_path / "events", AT_FIVE=what).expect(status)
    assert finished.stderr.strip().splitlines()[-1:] == ([line] if line else [])
    assert finished.stderr.count("Traceback") == (status == 1)
    assert not finished.leftovers


def test_the_program_goes_on_after_the_block_and_its_status_counts() -> None:
    program = "import diml\nwith diml.init() as job: pass\nprint('after')\nraise SystemExit(7)"
    finished = run_mpi(3, program, timeout_s=40, env={"DIML_SPARES": "1"}).expect(7)
    assert finished.stdout.split() == ["after", "after"]


def test_a_job_runs_on_a_communicator_that_the_caller_brings() -> None:
    program = """
    from mpi4py import MPI
    import numpy as np
    import diml

    half = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank % 2, 0)
    with diml.init(comm=half) as job:
        print(job.size, int(job.allreduce(np.array([MPI.COMM_WORLD.rank]), "sum")[0]))
    """
    finished = run_mpi(4, program, timeout_s=40).expect(0)
    assert sorted(finished.stdout.splitlines()) == ["2 2", "2 2", "2 4", "2 4"]


@pytest.mark.parametrize("settings", [{"DIML_SERVERS": "3"}, {"DIML_SPARES": "9"}])
def test_too_few_processes_are_refused_with_one_line(settings: dict[str, str]) -> None:
    finished = run_mpi(3, "import diml\nwith diml.init(): pass", timeout_s=40, env=settings)
    finished.expect(2)
    assert finished.stderr.count("\n") == 1
    assert "too few" in finished.stderr


def test_memory_that_mpi_was_shown_outlives_a_failed_call() -> None:
    program = """
        import gc, weakref
        import numpy as np
        from mpi4py import MPI
        from diml.errors import PeerFailed
        from diml.world.link import Link

        shown = []

        class Broken:
            def __getattr__(self, name):
                if name == "Set_errhandler" or name.startswith("Get_"):
                    return lambda *_: 2 * name.endswith("size")
                def fail(*arrays):
                    for array in arrays:
                        if isinstance(array, np.ndarray):
                            shown.append(weakref.ref(array if array.base is None else array.base))
                    raise MPI.Exception(MPI.ERR_OTHER)
                return fail

        link = Link(Broken())
        a, b = np.ones(3), np.ones(3)
        for call in (
            lambda: link.allreduce_custom(a, b, np.add),
            lambda: link.allgather_objects("a"),
            lambda: link.broadcast_object("a", 0),
        ):
            del shown[:]
            try:
                call()
                raise AssertionError("no failure")
            except PeerFailed:
                pass
            gc.collect()
            assert shown and all(ref() is not None for ref in shown), call
        print("kept")
    """
    assert run_mpi(None, program, timeout_s=30).expect(0).stdout == "kept\n"
