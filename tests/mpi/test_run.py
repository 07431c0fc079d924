"""`diml run` over real MPI: a lost job goes on from the memory of the node; a stop ends in 75."""

from __future__ import annotations

import re
import signal
import textwrap
from pathlib import Path

import pytest

from tests.helpers.mpi import Finished, Running, start_mpi
from tests.mpi.test_durable import PROGRAM, answer

STEPS = 30


def start(tmp_path: Path, pause_s: float, *words: str, **env: str) -> Running:
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    job = ["program.py", str(STEPS), str(pause_s), "local"]
    command = ["-m", "diml.cli", "run", "-n", "2", *words, "--", *job]
    return start_mpi(None, command, env=env, cwd=tmp_path)


def undisturbed(tmp_path: Path) -> str:
    with start(tmp_path, 0.0) as running:
        return answer(running.wait(timeout_s=120).expect(0))


def starts(finished: Finished) -> list[int]:
    return [int(v) for v in re.findall(r"^from (\d+)$", finished.stdout, re.MULTILINE)]


def kill_mpirun(running: Running) -> None:
    """End mpirun and all its ranks, as a lost node does; diml run itself stays."""
    for process in running.leftovers():
        if process.pid != running.pid:
            running.kill(process.pid)


def memory_of(running: Running) -> Path:
    """The folder in the node's memory that this run was given."""
    pid = running.ranks()[0].pid
    words = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return Path(next(w for w in words if w.startswith("DIML_NODE_MEMORY=")).partition("=")[2])


def test_a_lost_job_goes_on_from_the_memory_of_the_node(tmp_path: Path) -> None:
    wanted = undisturbed(tmp_path)
    gate = tmp_path / "gate"
    with start(tmp_path, 0.0, TEST_HOLD=f"12:{gate}") as running:
        running.wait_for("^at 12$", timeout_s=90)
        memory = memory_of(running)
        assert list(memory.iterdir()) and memory.stat().st_mode & 0o077 == 0
        kill_mpirun(running)
        gate.touch()
        done = running.wait(timeout_s=120).expect(0)
    assert answer(done) == wanted
    assert len(starts(done)) == 2 and starts(done)[1] >= 10, done.report()
    last = max(int(v) for v in re.findall(r"^at (\d+)$", done.stdout.split("\nfrom ")[1], re.M))
    assert last == STEPS
    assert "the job was lost" in done.stderr and "started again" in done.stderr
    assert not memory.exists()


# `diml run` whose memory of the node is a folder of the test's own: runs of other tests, which may
# go on beside it, would remove there what it looks for.
WITH_ITS_OWN_MEMORY = """
    import sys
    from pathlib import Path
    from diml.cli import main
    from diml.world import node_memory

    for function in (node_memory.new_folder, node_memory.sweep):
        function.__defaults__ = (Path(sys.argv[1]),)
    sys.exit(main(sys.argv[2:]))
"""


def test_what_a_killed_run_has_left_in_memory_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    (tmp_path / "memory").mkdir()

    def begin(pause_s: float) -> Running:
        job = ["program.py", str(STEPS), str(pause_s), "local"]
        words = [tmp_path / "memory", "run", "-n", "2", "--", *job]
        return start_mpi(None, WITH_ITS_OWN_MEMORY, args=words, cwd=tmp_path)

    with begin(0.3) as running:
        running.wait_for("^at 3$", timeout_s=90)
        memory = memory_of(running)
        running.kill(running.pid)
        kill_mpirun(running)
        running.wait(timeout_s=20)
    assert memory.parent == tmp_path / "memory" and memory.exists()
    with begin(0.0) as running:
        done = running.wait(timeout_s=90).expect(0)
    assert f"removed {memory}" in done.stderr and not memory.exists()


CRASHING = """
    import os, signal, sys
    import diml

    with diml.init() as job:
        version, model, local = job.load_checkpoint()
        if job.rank == 0:
            with open("starts", "a") as starts:  # mpirun dies with what it has to print
                print("from", version, file=starts)
        for step in range(version, 9):
            job.barrier()
            if job.rank == 0 and step == int(sys.argv[1]):
                os.kill(os.getppid(), signal.SIGKILL)  # mpirun
                os.kill(os.getpid(), signal.SIGKILL)
            job.checkpoint(step)
"""


@pytest.mark.parametrize(("step", "where"), [(0, "its beginning"), (5, "version")])
def test_a_crash_loop_is_given_up(tmp_path: Path, step: int, where: str) -> None:
    """With 1, though there is a checkpoint: a batch script puts a job that leaves with 75 back."""
    (tmp_path / "program.py").write_text(textwrap.dedent(CRASHING))
    command = ["-m", "diml.cli", "run", "-n", "2", "--", "program.py", str(step)]
    kept = {"DIML_CHECKPOINT_DIR": str(tmp_path / "kept")}
    with start_mpi(None, command, env=kept, cwd=tmp_path) as running:
        done = running.wait(timeout_s=120).expect(1)
    assert done.stderr.count("started again") == 1, done.report()
    assert f"twice without getting beyond {where}" in done.stderr and "given up" in done.stderr
    first, again = (tmp_path / "starts").read_text().splitlines()
    assert first == "from 0" and again == f"from {step}", done.report()


FACTORIZE = ["diml.jobs.mf", "--generate", "9000x6000x300000", "--K", "8", "--quiet"]


@pytest.mark.parametrize("engine", ["rotate", "ps"])
def test_factorization_goes_on_from_the_memory_of_the_node(tmp_path: Path, engine: str) -> None:
    iterations = 60  # of which the last 54 are time enough to see the first six

    def factorize(name: str) -> Running:
        (tmp_path / name).mkdir()
        flags = ["--engine", engine, "--num_iterations", str(iterations), "--update", "adagrad"]
        command = ["run", "-n", "2", "--", *FACTORIZE, *flags, "--output_prefix", f"{name}/out"]
        return start_mpi(None, ["-m", "diml.cli", *command], cwd=tmp_path)

    def told(name: str) -> list[str]:
        path = tmp_path / name / "out.loss"
        return path.read_text().splitlines()[1:] if path.exists() else []

    with factorize("calm") as running:
        running.wait(timeout_s=150).expect(0)
    with factorize("lost") as running:
        running.wait_until(lambda: told("lost"), "an iteration", timeout_s=90)
        rank = running.ranks()[0].pid
        running.wait_until(lambda: len(told("lost")) >= 6, "six iterations", timeout_s=90)
        # Stopped first: finding the others takes time, in which the job would come to its end.
        assert running.kill(rank, signal.SIGSTOP)
        kill_mpirun(running)
        done = running.wait(timeout_s=150).expect(0)
    assert done.stderr.count("started again") == 1, done.report()
    for name in ("out.L", "out.R"):
        assert (tmp_path / "lost" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()
    # Every iteration stands there once, in its order.
    assert [int(line.split(",")[0]) for line in told("lost")] == list(range(1, iterations + 1))


def test_a_signal_ends_it_in_good_order_and_the_next_run_goes_on(tmp_path: Path) -> None:
    wanted = undisturbed(tmp_path)
    directory = {"DIML_CHECKPOINT_DIR": str(tmp_path / "kept")}
    with start(tmp_path, 0.2, **directory) as running:
        running.wait_for("^at 5$", timeout_s=90)
        running.kill(running.pid, signal.SIGTERM)
        stopped = running.wait(timeout_s=90).expect(75)
    assert "stopped in good order" in stopped.stderr
    with start(tmp_path, 0.0, **directory) as running:
        done = running.wait(timeout_s=90).expect(0)
    assert answer(done) == wanted and starts(done)[0] >= 5


def test_an_error_of_the_program_is_not_tried_again(tmp_path: Path) -> None:
    with start_mpi(
        None,
        ["-m", "diml.cli", "run", "-n", "2", "--", "diml.jobs.mf", "--datafile", "absent"],
        cwd=tmp_path,
    ) as running:
        done = running.wait(timeout_s=90).expect(2)
    assert "started again" not in done.stderr and "absent" in done.stderr
