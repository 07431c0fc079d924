"""Batch scripts on a real Slurm: ranks and a node lost, the wall time reached, two jobs at once."""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diml.world.batch import Job, script
from diml.world.hosts import expand_counts
from tests.batch import cluster
from tests.batch.cluster import Cluster
from tests.helpers.mpi import CHECKOUT, start_mpi
from tests.mpi.test_durable import PROGRAM

# .ci/run says that there must be one: then its absence is a failure with the same reason.
MISSING = cluster.missing()
NEEDED = os.environ.get("DIML_TEST_NEEDS_SLURM") == "1"
pytestmark = pytest.mark.skipif(bool(MISSING) and not NEEDED, reason=MISSING)
STEPS = 30


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    assert not MISSING, MISSING
    # Directly below /tmp: the launcher's socket paths have a length limit.
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder:
        Path(folder, "program.py").write_text(textwrap.dedent(PROGRAM))
        with cluster.running(Path(folder)) as running:
            yield running


def submit(slurm: Cluster, name: str, pause_s: float, *options: str, spares: int = 1) -> int:
    """Submit the program of the durable checkpoints by a script rendered as a user's is."""
    command = f"program.py {STEPS} {pause_s} local"
    job = Job(name, "A test", (command,), workers=3, spares=spares, minutes=5)
    path = slurm.folder / f"{name}.sbatch"
    # The program takes no flags: its settings come by variables.
    text = script("slurm", job).replace(' \\\n  --checkpoint-dir "$checkpoints" "$@"', "")
    variables = 'export DIML_CHECKPOINT_DIR="$checkpoints" DIML_CHECKPOINT_EVERY=0.1'
    path.write_text(text.replace("# Never srun", f"{variables}\n# Never srun"))
    return slurm.submit(path, options=options)


@pytest.fixture(scope="module")
def wanted(slurm: Cluster) -> str:
    """The answer of the run that nothing happens to."""
    return answer(slurm.finish(submit(slurm, "calm", 0.0, spares=0)))


@pytest.fixture(scope="module", autouse=True)
def at_the_wall(slurm: Cluster) -> int:
    """A job whose time is too short. It sleeps mostly, so it runs beside the first tests.

    Slurm looks every 30 s whose time is nearly over, and warns this one when it looks first.
    """
    kept = f"--export=ALL,DIML_CHECKPOINTS={slurm.local}/kept"
    return submit(slurm, "wall", 1.2, "--time=1", "--signal=B:USR1@30", kept)


def answer(text: str) -> str:
    found = re.findall(r"^answer (\d+)$", text, re.MULTILINE)
    assert len(found) == 1, text
    return str(found[0])


def test_the_drill_survives_two_deaths(slurm: Cluster) -> None:
    job = slurm.submit(CHECKOUT / "jobs" / "slurm" / "drill.sbatch", "--ndata", "100")
    text = slurm.finish(job)
    assert "2 deaths" in text and "identical to the run without failures: yes" in text, text


def test_factorization_runs_from_its_script(slurm: Cluster) -> None:
    (slurm.folder / "ratings.txt").write_text(
        "".join(f"{i} {j} {i % 3 + j % 3}\n" for i in range(30) for j in range(30))
    )
    path = CHECKOUT / "jobs" / "slurm" / "mf.sbatch"
    job = slurm.submit(path, "--K", "3", "--num_iterations", "3")
    text = slurm.finish(job)
    assert "held-out RMSE" in text and (slurm.folder / "mf.L").exists(), text


def test_a_plain_mpirun_deals_the_ranks_out_over_the_nodes(slurm: Cluster) -> None:
    path = slurm.folder / "plain.sbatch"
    path.write_text(
        "#!/bin/bash\nmpirun -n 6 sh -c 'echo rank $PMIX_RANK on $(hostname); sleep 1'\n"
    )
    job = slurm.submit(path, options=("-N2", "--ntasks-per-node=4"))
    said = re.compile(r"^rank \d on \S+\n", re.MULTILINE)
    slurm.wait_until(lambda: len(said.findall(slurm.output(job))) == 6, job, "six ranks")
    # Where ranks are no MPI programs mpirun has been seen to wait for ever after their end.
    slurm.ask("scancel", str(job))
    slurm.wait_until(lambda: slurm.ended(job), job, "the end")
    text = slurm.output(job)
    assert [text.count(f" on {node}\n") for node in cluster.NODES] == [3, 3], text


def test_each_node_gets_what_it_has_slots_for_and_the_doctor_finds_all_fine(
    slurm: Cluster,
) -> None:
    """Seven tasks on two nodes are six and one; by nodes, mpirun would make four and three."""
    (slurm.folder / "where.py").write_text(
        "import os, diml\nwith diml.init() as job:\n    print(f'on {os.uname().nodename};')\n"
    )
    path = slurm.folder / "uneven.sbatch"
    run = "diml run -n 7 -- where.py"
    path.write_text(
        f"#!/bin/bash\n#SBATCH -o %x-%j.out\necho =$SLURM_TASKS_PER_NODE=\ndiml doctor\n{run}\n"
    )
    text = slurm.finish(slurm.submit(path, options=("-N2", "-n7")))
    assert "\nall fine\n" in text, text
    granted = expand_counts(text.split("=")[1])
    assert [text.count(f"on {node};") for node in cluster.NODES] == granted, text


def test_two_jobs_side_by_side(slurm: Cluster, wanted: str) -> None:
    options = ("--nodes=2", "--ntasks-per-node=2")
    jobs = [submit(slurm, f"pair{number}", 0.05, *options) for number in range(2)]
    for job in jobs:
        assert answer(slurm.finish(job)) == wanted


ITERATIONS = 150
# Which node's disk has which pieces of the ratings.
PIECES = {"part-0": "n2", "part-1": "n1", "part-2": "n2"}


def factorize(slurm: Cluster, name: str, engine: str = "rotate", drill: str = "") -> int:
    """Submit a factorization of the pieces; its checkpoints stay on the disks of the nodes.

    A drill with the signal STOP holds it at one place until the rank is told to go on.
    """
    servers = 0 if engine == "rotate" else 2
    flags = f"--K 3 --num_iterations {ITERATIONS} --engine {engine} --output_prefix {name} --quiet"
    data = f"--datafile '{slurm.local}/part-*' --pieces {len(PIECES)}"
    command = f"diml.jobs.mf {data} {flags}"
    job = Job(name, "A test", (command,), workers=3, spares=2, servers=servers, minutes=5)
    path = slurm.folder / f"{name}.sbatch"
    path.write_text(script("slurm", job))
    kept = f"--export=ALL,DIML_CHECKPOINTS={slurm.local}/{name}"
    held = {"DIML_DRILL": drill, "DIML_FROZEN_DEADLINE": "300"} if drill else {}
    return slurm.submit(path, "--checkpoint-every", "0.2", options=(kept,), env=held)


def told(slurm: Cluster, name: str) -> list[int]:
    """The iterations that a factorization has told its losses of."""
    path = slurm.folder / f"{name}.loss"
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    return [int(line.split(",")[0]) for line in lines]


def wait_for_iteration(slurm: Cluster, job: int, name: str, iteration: int) -> None:
    deadline = time.monotonic() + 360
    while len(told(slurm, name)) < iteration:
        assert time.monotonic() < deadline and not slurm.ended(job), slurm.report(job)
        time.sleep(0.05)


def status_of(pid: int, name: str) -> str:
    """A line of what the system tells of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return text.partition(f"\n{name}:")[2].partition("\n")[0].strip()


Reference = Callable[[str], tuple[bytes, bytes]]


@pytest.fixture(scope="module")
def factors(slurm: Cluster) -> Reference:
    """By engine, L and R of one file with all pieces' lines, here, without Slurm and failures."""
    lines = [f"{i} {j} {i * j % 5}\n" for i in range(40) for j in range(30)]
    for number, (name, node) in enumerate(PIECES.items()):
        piece = lines[number * 400 : (number + 1) * 400]
        (slurm.disk(node) / name).write_text("".join(piece))
    (slurm.folder / "whole.txt").write_text("".join(lines))

    @functools.cache
    def calm(engine: str) -> tuple[bytes, bytes]:
        flags = f"--engine {engine} --K 3 --num_iterations {ITERATIONS} --quiet"
        output = ["--output_prefix", f"calm-{engine}"]
        command = ["-m", "diml.jobs.mf", "--datafile", "whole.txt", *flags.split(), *output]
        with start_mpi(3 + (engine == "ps"), command, cwd=slurm.folder) as running:
            running.wait(timeout_s=120).expect(0)
        return factors_of(slurm, f"calm-{engine}")

    return calm


def factors_of(slurm: Cluster, name: str) -> tuple[bytes, bytes]:
    assert told(slurm, name) == list(range(1, ITERATIONS + 1))
    return (slurm.folder / f"{name}.L").read_bytes(), (slurm.folder / f"{name}.R").read_bytes()


def test_srun_is_refused_with_the_command_that_works(slurm: Cluster) -> None:
    command = ["srun", "-N2", "-n2", "--mpi=none", "python", "program.py", "1", "0", "local"]
    done = subprocess.run(
        command, env=slurm.env, cwd=slurm.folder, capture_output=True, text=True, timeout=360
    )
    assert done.returncode == 2 and "mpirun -n 2 python program.py 1 0 local" in done.stderr


def test_killed_on_each_node_and_requeued_it_ends_right_from_the_disks_of_the_nodes(
    slurm: Cluster, factors: Reference
) -> None:
    """Pieces and checkpoints lie on each node's own disk: no node sees them all."""
    # The third worker stops in its tracks; whoever dies, dies before or then.
    job = factorize(slurm, "pieces", drill=f"2,{ITERATIONS // 10},0,0,entry,STOP")
    wait_for_iteration(slurm, job, "pieces", 2)
    third = slurm.ranks("n1", "diml.jobs.mf")[1]
    for node in cluster.NODES:
        os.kill(slurm.ranks(node, "diml.jobs.mf")[0], signal.SIGKILL)
    slurm.wait_until(lambda: "T" in status_of(third, "State"), job, "the third worker stops")
    slurm.ask("scancel", "--signal=USR1", "--batch", str(job))
    told = 1 << signal.SIGUSR1 - 1
    slurm.wait_until(lambda: int(status_of(third, "ShdPnd"), 16) & told, job, "it is told to stop")
    os.kill(third, signal.SIGCONT)
    text = slurm.finish(job, timeout_s=280)
    assert "stopped in good order" in text and "back to the queue" in text, text
    assert "started again" not in text and factors_of(slurm, "pieces") == factors("rotate"), text
    ranks = [{path.name for path in slurm.disk(n).glob("pieces/*/*.h5")} for n in cluster.NODES]
    assert all(ranks) and not ranks[0] & ranks[1], ranks


def test_at_the_wall_time_it_goes_back_to_the_queue_and_ends_right(
    slurm: Cluster, wanted: str, at_the_wall: int
) -> None:
    text = slurm.finish(at_the_wall, timeout_s=300)
    assert "stopped in good order" in text and "back to the queue" in text, text
    found = [int(version) for version in re.findall(r"^from (\d+)$", text, re.MULTILINE)]
    assert answer(text) == wanted and len(found) > 1 and found[1] > 0, text
    # The jobs before this one have ended, so what is there now was left behind.
    assert not [*slurm.in_memory("n1"), *slurm.in_memory("n2")]


def test_a_lost_node_is_left_behind_though_it_had_pieces_of_the_data(
    slurm: Cluster, factors: Reference
) -> None:
    """It had a worker and a server as well, and the replica of the other's rows."""
    wanted = factors("ps")
    job = factorize(slurm, "left", "ps")
    wait_for_iteration(slurm, job, "left", 1)
    ranks = slurm.ranks("n2", "diml.jobs.mf")
    wait_for_iteration(slurm, job, "left", ITERATIONS // 10)
    # Ends everything on the second node; until all that is found the job must not come to its end.
    os.kill(ranks[0], signal.SIGSTOP)
    lost = slurm.processes("slurmd", "-N n2") + slurm.processes("prted")
    for pid in lost + ranks:
        os.kill(pid, signal.SIGKILL)
    try:
        left = "going on without n2"
        slurm.wait_until(lambda: left in slurm.output(job), job, left)
        # Slurm finds it out by itself, later; until then the job would stay COMPLETING.
        slurm.ask("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=lost")
        text = slurm.finish(job, timeout_s=280)
    finally:
        slurm.start_node("n2")
    assert "never said it was done" in text and "going on without n2" in text, text
    assert factors_of(slurm, "left") == wanted, text
