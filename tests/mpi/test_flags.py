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
