"""A bad flag under a real launcher: one line from all ranks together, exit status 2."""

from __future__ import annotations

import pytest

from tests.helpers.mpi import run_mpi

PROGRAM = """
    from diml.jobs.flags import job_parser, parse, run_job
    run_job(lambda arguments: parse(job_parser("x", "A job"), arguments) and None)
"""


@pytest.mark.parametrize("n", [None, 1, 4])
def test_an_unknown_flag_is_one_line_on_any_number_of_ranks(n: int | None) -> None:
    done = run_mpi(n, PROGRAM, args=["--wrong"], timeout_s=60).expect(2)
    assert done.stderr.startswith("diml: unrecognized arguments: --wrong (see python -m")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_help_is_printed_once() -> None:
    done = run_mpi(3, PROGRAM, args=["--help"], timeout_s=60).expect(0)
    assert done.stdout.count("usage: ") == 1


@pytest.mark.parametrize("late", [0, 1, 3])
def test_the_line_comes_however_late_a_rank_is(late: int) -> None:
    program = f"""
        import os, time
        from diml.errors import Misuse
        from diml.jobs.flags import run_job
        def main(arguments):
            if os.environ["OMPI_COMM_WORLD_RANK"] == "{late}":
                time.sleep(1)
            raise Misuse("no such file")
        run_job(main)
    """
    done = run_mpi(4, program, timeout_s=60).expect(2)
    assert done.stderr == "diml: no such file\n"


def test_an_error_of_one_rank_alone_is_said_by_that_rank() -> None:
    program = """
        import os, time
        from diml.world import launch
        launch._PATIENCE_S = 0.5
        if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
            launch.say_once("no such file here", os.environ)
            os.mkdir("said")
        while not os.path.exists("said"):
            time.sleep(0.01)
    """
    assert run_mpi(3, program, timeout_s=60).expect(0).stderr == "no such file here\n"


def test_a_drill_of_a_rank_that_is_not_there_is_refused() -> None:
    """It would never strike, and the user believe that the job has survived it."""
    program = ["-m", "diml.jobs.drill", "--spares", "1", "--drill"]
    done = run_mpi(3, program, args=["3,1,0,0"], timeout_s=60).expect(2)
    assert done.stderr == "diml: drill 3,1,0,0,entry,KILL: the ranks are 0 to 2\n"
