"""Workers that do not work on the same data say so, and end, before they train on any."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.mpi import run_mpi
from tests.mpi.test_logistic_allreduce import write_examples

# Worker 1 sees another file than the others under one name.
JOBS = """
    import os, sys
    from diml.jobs import kmeans, lasso, logistic
    from diml.jobs.flags import run_job
    job, *sys.argv[1:], here, there = sys.argv[1:]
    os.chdir(there if os.environ["OMPI_COMM_WORLD_RANK"] == "1" else here)
    run_job({"kmeans": kmeans, "lasso": lasso, "logistic": logistic}[job].main)
"""


@pytest.mark.parametrize(
    ("processes", "job"),
    [
        (2, "kmeans --datafile x.svm --k 2"),
        (2, "lasso --data_xfile x.svm --lambda 0.01"),
        (3, "logistic --method sync-sgd --datafile x.svm"),
    ],
)
def test_other_files_under_one_name_are_no_answer(processes: int, job: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    text = write_examples(tmp_path / "here" / "x.svm").read_text()
    # Of the same length, for those who would notice other sizes only; SGD hung for want of rows.
    other = "\n".join(text.splitlines()[:400]) if "sgd" in job else text[:-2] + "9\n"
    (tmp_path / "there" / "x.svm").write_text(other)
    args = [*job.split(), tmp_path / "here", tmp_path / "there"]
    done = run_mpi(processes, JOBS, args=args, timeout_s=60).expect(2)
    words = "diml: x.svm: worker 1 sees other files there than worker 0"
    assert done.stderr.startswith(words), done.report()
    assert len(done.stderr.strip().splitlines()) == 1, done.report()


def test_other_facts_of_the_job_are_found_before_a_commit() -> None:
    program = """
        import diml
        with diml.init() as job:
            job.identify(data=f"file {job.rank}")
            job.load_checkpoint()
            job.checkpoint(0)
            print("committed", flush=True)
    """
    done = run_mpi(2, program, timeout_s=60).expect(1)
    assert "do not work on the same: data is file" in done.stderr and not done.stdout
