"""Reading together under mpirun, also when a worker dies while the parts are exchanged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diml.jobs.mf_load import Source, load
from diml.world import marker
from tests.helpers.mpi import run_mpi
from tests.unit.test_mf_load import entries_file

PROGRAM = """
    import os, signal, sys
    import diml
    from diml.jobs.mf_load import Source, load

    with diml.init() as job:
        calls = 0
        gather = job.gather_once

        def gather_or_die(array):
            global calls
            calls += 1
            if job.rank == 1 and job.incarnation == 0 and calls == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return gather(array)

        job.gather_once = gather_or_die
        ratings = load(Source(sys.argv[1], None, test_fraction=0.1), job)
        total = job.allreduce(float(ratings.train.values.sum()), "sum")
        print(f"[{job.rank}: {ratings.fingerprint}]", flush=True)
"""


@pytest.mark.parametrize("deadly", [0, 1, 4, 6])
def test_all_have_the_same_entries(tmp_path: Path, deadly: int) -> None:
    path = entries_file(tmp_path)
    done = run_mpi(4, PROGRAM, args=(path, deadly), env={"DIML_SPARES": "1"}, timeout_s=60)
    done.expect()
    expected = load(Source(str(path), None, test_fraction=0.1)).fingerprint
    found = re.findall(r"\[(\d): (.*)\]", done.stdout)
    assert sorted(found) == [(str(rank), expected) for rank in range(3)], done.report()


PIECES = """
    import os, signal, sys
    import diml
    from diml.jobs.mf_load import Source, load

    folder = sys.argv[1]
    with diml.init() as job:
        # A process that takes the place of worker 1 sits where worker 0 does.
        node = job.rank % 2 if job.incarnation == 0 else 0
        os.chdir(f"{folder}/n{node}")
        ratings = load(Source("part-*", None, pieces=3), job)
        if job.rank == 1 and job.incarnation == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        total = job.allreduce(float(ratings.train.values.sum()), "sum")
        print(f"[{job.rank}: {ratings.fingerprint}]", flush=True)
"""


@pytest.mark.parametrize("in_memory", [True, False])
def test_who_takes_over_on_another_node_has_the_pieces_from_its_memory_or_none(
    tmp_path: Path, in_memory: bool
) -> None:
    texts = []
    for number, node in enumerate(["n0", "n1", "n0"]):
        (tmp_path / node).mkdir(exist_ok=True)
        path = entries_file(tmp_path / node, f"part-{number}", 100 + number)
        texts.append(path.read_text())
    (tmp_path / "whole").write_text("".join(texts))
    env = {"DIML_SPARES": "1"}
    if in_memory:
        env[marker.MEMORY] = str(tmp_path / "memory")
    done = run_mpi(4, PIECES, args=(tmp_path,), env=env, timeout_s=60)
    if not in_memory:
        done.expect(75)
        assert done.stderr.count("has part-0, part-2 of the 3 pieces, and no copy") == 1
        return
    done.expect(0)
    expected = load(Source(str(tmp_path / "whole"), None)).fingerprint
    found = re.findall(r"\[(\d): (.*)\]", done.stdout)
    assert sorted(found) == [(str(rank), expected) for rank in range(3)], done.report()


def test_the_first_node_may_be_without_any_piece(tmp_path: Path) -> None:
    program = """
        import os, sys
        from diml.jobs import mf
        from diml.jobs.flags import run_job
        os.chdir(f"{sys.argv.pop(1)}/n{os.environ['OMPI_COMM_WORLD_RANK']}")
        run_job(mf.main)
    """
    (tmp_path / "n0").mkdir()
    (tmp_path / "n1").mkdir()
    for number in range(2):
        entries_file(tmp_path / "n1", f"part-{number}", 100 + number)
    job = "--datafile part-* --engine rotate --K 2 --num_iterations 1 --init_step_size 0.001"
    job += " --output_prefix out --pieces"
    done = run_mpi(2, program, args=(tmp_path, *job.split(), 2), timeout_s=60).expect(0)
    assert (tmp_path / "n0" / "out.L").exists(), done.report()
    done = run_mpi(2, program, args=(tmp_path, *job.split(), 3), timeout_s=60).expect(2)
    assert len(done.stderr.splitlines()) == 1, done.report()
    assert "part-*: --pieces 3, but there are 2 (" in done.stderr
