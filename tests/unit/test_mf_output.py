"""The files of matrix factorization, and its command line up to `diml.init`."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from diml.errors import Misuse
from diml.jobs.flags import parse
from diml.jobs.mf import check_size, servers_for
from diml.jobs.mf_data import Facts
from diml.jobs.mf_evaluation import Evaluation
from diml.jobs.mf_flags import parser, plan_of
from diml.jobs.mf_model import Rule
from diml.jobs.mf_output import LossFile, check_writable
from diml.jobs.mf_product import filled, nearest_to
from diml.jobs.mf_report import Report
from diml.report.progress import Progress
from tests.unit.mf_cases import run, sample


def evaluation(iteration: int, test: float = math.nan) -> Evaluation:
    return Evaluation(iteration, 0.5 * iteration, 1 / iteration, test, 3.0, 2.0, 0.25)


def test_a_loss_file_has_a_header_and_a_line_an_iteration(tmp_path: Path) -> None:
    path = tmp_path / "losses"
    losses = LossFile(path)
    losses.append([evaluation(1), evaluation(2, test=0.75)])
    written = path.read_text()  # before it is closed: every line is flushed
    losses.close()
    assert written.splitlines() == [
        "iteration,seconds,train_rmse,test_rmse,objective,loss,eval_seconds",
        "1,0.5000,1,,3,2,0.2500",
        "2,1.0000,0.5,0.75,3,2,0.2500",
    ]
    assert path.read_text() == written


def test_a_replaced_worker_0_leaves_each_iteration_once(tmp_path: Path) -> None:
    path = tmp_path / "losses"
    files: list[Report] = []

    def reporter() -> Callable[[Sequence[Evaluation]], None]:
        files.append(Report(path, 81, Progress("mf", 8, quiet=True)))
        return partial(files[-1].tell, pace={})

    deaths = ((0, 0), (0, 3), (0, 6))
    run(sample(), Rule(k=3), workers=2, iterations=8, deaths=deaths, reporter=reporter)
    for file in files:
        file.close()
    assert len(files) == 4
    lines = list(csv.DictReader(path.read_text().splitlines()))
    assert [int(line["iteration"]) for line in lines] == list(range(1, 9))


def test_unwritable_outputs_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    check_writable([tmp_path / "fine"])
    assert not (tmp_path / "fine").exists()
    (tmp_path / "old").write_text("kept")
    check_writable([tmp_path / "old"])
    assert (tmp_path / "old").read_text() == "kept"
    for bad in (tmp_path / "absent" / "x", tmp_path):
        with pytest.raises(Misuse, match=str(bad)):
            check_writable([bad])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "either --datafile"),
        ("--datafile x --generate", "either --datafile"),
        ("--datafile x --K 0", "'0' is not a whole number from 1 on"),
        ("--datafile x --test y --test_fraction 0.1", "--test goes with"),
        ("--generate --test y", "--test goes with"),
        ("--datafile x --lambda -1", "below 0"),
        ("--datafile x --init_step_size 0", "not above 0"),
        ("--datafile x --init_step_size nan", "not a finite number"),
        ("--datafile x --test_fraction 1", "above 0.99"),
        ("--datafile x --update sgd", "invalid choice"),
        ("--generate 5x5", "is not ROWSxCOLSxENTRIES"),
        ("--generate 0x5x5", "rows = 0"),
        ("--datafile x --no-such-flag", "no-such-flag"),
        ("--datafile x --num_iterations 0", "from 1 on"),
    ],
)
def test_bad_command_lines_are_refused_in_one_line(line: str, message: str) -> None:
    with pytest.raises(Misuse, match=message) as caught:
        plan_of(parse(parser(), line.split()), seed=0)
    assert "\n" not in str(caught.value)


def test_petuums_flags_in_both_spellings() -> None:
    line = "--datafile x --K 3 --num_iterations 7 --output-prefix p --staleness 5 --lambda 0.1 "
    line += "--init-step-size 0.25 --step_size_offset 10 --step-size-pow 0.75 --seed 3"
    plan = plan_of(parse(parser(), line.split()), seed=3)
    assert plan.rule == Rule(3, "petuum", 0.1, 0.25, 10.0, 0.75, seed=3)
    assert [str(path) for path in plan.outputs] == ["p.L", "p.R", "p.loss"]
    assert plan.rule.eta(2) == pytest.approx(0.25 * 12**-0.75)


def test_factors_that_cannot_fit_are_refused() -> None:
    with pytest.raises(Misuse, match="large gaps"):
        check_size(Facts(2**31 - 1, 2**31 - 1, 1, 1, 0.0, None), Rule(k=3), workers=4)


def test_rows_that_no_entry_moved_are_written_near_the_mean() -> None:
    chance = np.random.default_rng(5)
    other = chance.normal(1, 0.1, (50, 4))
    cold = nearest_to(3.5, iter([other[:20], other[20:]]))
    assert np.abs(other @ cold - 3.5).mean() < 0.2
    rows = np.array([[0, 0, 0, 0], [1, 0, 0, 2]], np.float32)
    np.testing.assert_array_equal(filled(rows, cold), [cold, [1, 0, 0, 2]])


def test_rotation_takes_no_servers() -> None:
    assert servers_for(["--datafile", "x"]) == 1
    assert servers_for(["--datafile", "x", "--engine", "rotate"]) == 0
