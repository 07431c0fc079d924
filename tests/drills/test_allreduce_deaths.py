"""Deaths in hard places: neighbours on the ring, rank 0, nearly everyone, spares, no spare left."""

from __future__ import annotations

import pytest

from tests.helpers.mpi import Finished, run_mpi


def drill(
    processes: int, spares: int, *drills: str, program: str = "local", more: tuple[str, ...] = ()
) -> Finished:
    """Run the recovery drill on small data."""
    flags = [word for text in drills for word in ("--drill", text)]
    job = ["-m", "diml.jobs.drill", "--program", program, "--ndata", "1000"]
    return run_mpi(processes, [*job, "--spares", str(spares), *flags, *more], timeout_s=120)


def assert_recovered(finished: Finished, deaths: int, unfired: int = 0) -> None:
    finished.expect(0)
    assert "identical to the run without failures: yes" in finished.stdout, finished.report()
    assert f"{deaths} deaths" in finished.stdout, finished.report()
    assert finished.stdout.count("did not fire: ") == unfired, finished.report()


# The local program: max, broadcasts from ranks 0, 1, 2, (3), sum, checkpoint.
# Several deaths a run, so that few jobs have to be started. A rank that is to die in the repair of
# another's death may not have left the collective before it: of two drills with a bar one strikes.
RECOVERED = {
    "neighbours on the ring at once": ("1,1,1,0", "2,1,1,0", "4,2,0,0", "0,2,0,0"),
    "replacements": ("0,0,2,0", "0,0,2,1", "1,1,4,0", "1,1,2,1"),
    "inside and after": ("3,0,0,0,inside", "1,1,0,0,inside", "4,2,6,0,after"),
    "around a checkpoint": ("2,0,7,0", "2,1,7,1,checkpoint", "3,2,7,0,checkpoint"),
    "in the load, before a checkpoint": ("2,0,0,0", "2,0,0,1,load", "3,0,3,0"),
    "survivor and newcomer in one repair": (
        *("1,1,1,0", "3,1,0,0,repair|3,1,1,0,repair", "1,0,0,1,repair"),
    ),
}


@pytest.mark.parametrize("name", RECOVERED)
def test_recovered(name: str) -> None:
    deaths = RECOVERED[name]
    drills = "|".join(deaths).split("|")
    assert_recovered(drill(5 + 4, 4, *drills), len(deaths), len(drills) - len(deaths))


def test_two_die_at_once_and_no_spare_is_left() -> None:
    # The processes that are started for them join in one repair.
    finished = drill(4, 0, "1,1,1,0", "2,1,1,0")
    assert_recovered(finished, 2)
    assert finished.stdout.count(" respawn ") == 2, finished.report()


def test_all_that_mpirun_started_die_one_after_the_other() -> None:
    # The last one is replaced by a process that was itself started to replace another.
    finished = drill(2, 0, "1,0,2,0", "0,1,2,0", "1,2,2,1", "0,3,1,1", more=("--rounds", "4"))
    assert_recovered(finished, 4)
    assert finished.stdout.count(" respawn ") == 4, finished.report()


def test_all_but_one_rank_die() -> None:
    drills = [f"{rank},1,2,0" for rank in (0, 1, 3)]
    assert_recovered(drill(4 + 3, 3, *drills, program="model"), 3)


def test_three_neighbours_are_one_too_many_for_two_replicas() -> None:
    drills = [f"{rank},1,1,0" for rank in (1, 2, 3)]
    # Whoever has not come there when the first one dies does so in the repair, before it is done.
    drills += [f"{rank},1,0,0,repair" for rank in (1, 2, 3)]
    finished = drill(6 + 3, 3, *drills).expect(1)
    assert "the local state of rank 1 (version 1) is lost" in finished.stderr
    assert "all 2 ranks that held its replicas have died" in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1, finished.report()
    assert "identical" not in finished.stdout


def test_everyone_is_lost_before_the_replacements_have_loaded() -> None:
    # Two ranks: the one survivor dies before the newcomer has fetched the model.
    drills = ("0,1,1,0", "1,1,0,0,repair", "1,1,1,0,repair")
    finished = drill(2 + 2, 2, *drills, program="model", more=("--replicas", "1")).expect(1)
    assert "gone" in finished.stderr
    assert "identical" not in finished.stdout


@pytest.mark.parametrize("servers", [0, 1])
def test_all_workers_die_at_once(servers: int) -> None:
    # Nobody is left to tell the spares; and a server does not know what the workers have lost.
    program = f"""
        import os, signal, diml
        with diml.init(spares=2, servers={servers}) as job:
            job.load_checkpoint()
            job.checkpoint(1, job.rank)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    finished = run_mpi(2 + 2 + servers, program, timeout_s=60).expect(1)
    assert "all state is gone" in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1, finished.report()


def test_a_spare_dies_while_idle() -> None:
    program = """
        import os, signal, sys, numpy as np, diml
        with diml.init(spares=2, drills="1,0,30,0") as job:
            job.load_checkpoint()
            for i in range(60):
                if i == 10 and job.rank == 0:
                    os.kill(int(open("spare.pid").read()), signal.SIGKILL)
                total = job.allreduce(np.full(10, i))
            print(job.rank, job.incarnation, total[0])
    """
    program = program.replace(
        "        with diml.init",
        '        if os.environ["OMPI_COMM_WORLD_RANK"] == "4":\n'
        '            open("spare.pid", "w").write(str(os.getpid()))\n'
        "        with diml.init",
    )
    finished = run_mpi(5, program, timeout_s=60).expect(0)
    lines = sorted(finished.stdout.splitlines())
    assert lines == ["0 0 177", "1 1 177", "2 0 177"], finished.report()


def test_a_rank_that_always_dies_at_one_place_is_not_brought_back_for_ever() -> None:
    program = """
        import os, signal, numpy as np, diml
        with diml.init(spares=6) as job:
            job.load_checkpoint()
            for i in range(10):
                if i == 3 and job.rank == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                job.allreduce(np.ones(3))
    """
    finished = run_mpi(3 + 6, program, timeout_s=90).expect(1)
    assert "rank 1 died 4 times in a row at version 0, collective 3" in finished.stderr


def test_a_replay_that_diverges_is_named() -> None:
    program = """
        import numpy as np, diml
        with diml.init(spares=1, drills="1,0,3,0") as job:
            job.load_checkpoint()
            for i in range(5):
                if job.incarnation and i == 2:
                    job.allreduce(np.ones(4), "max")
                else:
                    job.allreduce(np.ones(4))
            print("finished", flush=True)
    """
    finished = run_mpi(4, program, timeout_s=60).expect(1)
    assert "finished" not in finished.stdout
    assert "program.py:7" in finished.stderr
    assert "program.py:9" in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1, finished.report()


# Rank 3 dies when the lengths are known and the values are not: Open MPI's Allgatherv then returns
# success on ranks 1 and 2, with nothing received.
HALF_AN_ALLGATHER = """
import os, signal
import numpy as np
import diml
from diml.world.link import Link

with diml.init() as job:
    version, _, _ = job.load_checkpoint()
    for step in range(version, 6):
        if step == 4 and job.rank == 3 and job.incarnation == 0:
            whole, calls = Link.allgatherv, []

            def half(self, *arguments):
                calls.append(1)
                if len(calls) == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                whole(self, *arguments)

            Link.allgatherv = half
        parts = job.allgather(np.full(3, 10 * step + job.rank))
        wanted = np.repeat(10 * step + np.arange(job.size), 3)
        assert (parts == wanted).all(), (step, job.rank, parts)
        job.checkpoint(step)
    print("right", job.rank, job.epoch, flush=True)
"""


def test_an_allgather_that_mpi_wrongly_calls_a_success_is_done_again() -> None:
    finished = run_mpi(5, HALF_AN_ALLGATHER, env={"DIML_SPARES": "1"}, timeout_s=60).expect(0)
    said = sorted(line for line in finished.stdout.splitlines() if line.startswith("right"))
    assert said == [f"right {rank} 1" for rank in range(4)]
