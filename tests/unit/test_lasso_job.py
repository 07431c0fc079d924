"""The Lasso job in one process: flags, files out, and what it refuses before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from diml.errors import Misuse
from diml.jobs.flags import parse
from diml.jobs.lasso import check, grid_of, load, parser, policy_name, signs
from diml.jobs.lasso_model import write_coefficients
from diml.jobs.lasso_output import LOG_HEADER, Log, write_path
from diml.strads.lasso_problem import Round, Solution

FILE = ["--x", "some"]
ANSWER = Solution(0.5, 1e-9, 1e-8, 2.0, np.array([1, 4]), np.array([0.1, -2.5]), 3.25, True, 7)


def flags_of(*arguments: str) -> Any:
    return parse(parser(), arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lambda", "1"], "either --data_xfile FILE or --generate"),
        ([*FILE, "--generate", "tall"], "either --data_xfile FILE or --generate"),
        ([*FILE, "--lambda", "1", "--lambda-ratio", "0.1"], "not both"),
        ([*FILE, "--path_output", "p.npz"], "goes with --path"),
        ([*FILE, "--output", "/no/such/place/c.npz"], "no directory"),
        ([*FILE, "--lambda", "nan"], "not a finite number"),
        ([*FILE, "--lambda-ratio", "-1"], "not above 0"),
        ([*FILE, "--path", "1"], "not a whole number from 2 on"),
        ([*FILE, "--weight_sampling", "perhaps"], "not true or false"),
        ([*FILE, "--lamda", "1"], "--lamda"),
        ([*FILE, "--cv", "5", "--lambda", "1"], "--cv chooses lambda"),
        ([*FILE, "--cv", "5", "--policy", "cyclic"], "policy working-set"),
        ([*FILE, "--cv_output", "x.npz"], "goes with --cv"),
        ([*FILE, "--cv", "1"], "not a whole number from 2 on"),
        ([*FILE, "--l1_ratio", "1.5"], "above 1"),
    ],
)
def test_bad_flags_are_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(Misuse, match=words) as caught:
        check(flags_of(*arguments))
    assert "\n" not in str(caught.value)


def test_strads_flags_choose_the_policy() -> None:
    assert policy_name(flags_of(*FILE)) == "working-set"
    assert policy_name(flags_of(*FILE, "--weight_sampling", "false")) == "random"
    assert policy_name(flags_of(*FILE, "--weight-sampling=true")) == "priority"
    both = ["--weight_sampling", "true", "--check_interference", "true"]
    assert policy_name(flags_of(*FILE, *both)) == "priority+dependency"
    assert policy_name(flags_of(*FILE, *both, "--policy", "cyclic")) == "cyclic"
    old = ["--data_xfile", "x", "--data_yfile", "y", "--outputfile_coeff", "c", "--machfile", "m"]
    assert flags_of(*old, "--scheduler", "2", "--threads", "4").output == "c"


def test_lambdas_come_from_flags() -> None:
    grid = grid_of(flags_of(*FILE, "--lambda", "0.3"))
    assert grid.resolve(1.0).tolist() == [0.3]
    assert grid_of(flags_of(*FILE)).resolve(2.0).tolist() == [0.2]
    path = grid_of(flags_of(*FILE, "--path", "3", "--lambda-ratio", "0.01")).resolve(5.0)
    np.testing.assert_allclose(path, [5.0, 0.5, 0.05])
    path = grid_of(flags_of(*FILE, "--path", "3", "--lambda", "0.05")).resolve(5.0)
    np.testing.assert_allclose(path, [5.0, 0.5, 0.05])


def test_each_worker_loads_its_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    X = np.arange(28.0).reshape(4, 7)
    np.savez(path, X=X, y=np.arange(4.0))
    flags = flags_of("--x", str(path), "--columns", "7")
    parts = [load(flags, rank, 3, seed=0) for rank in range(3)]
    assert [held.count for held, _, _ in parts] == [3, 2, 2]
    assert all(copy is None for _, copy, _ in parts)
    flags = flags_of("--x", str(path), "--data", "replicated")
    held, copy, _ = load(flags, 1, 3, seed=0)
    assert copy is not None and (held.count, copy.count) == (2, 7)
    with pytest.raises(Misuse, match="--samples says 5, but X has 4"):
        load(flags_of("--x", str(path), "--samples", "5"), 0, 1, seed=0)


def test_coefficients_are_written_whole(tmp_path: Path) -> None:
    write_coefficients(tmp_path / "c.npz", ANSWER, 6)
    with np.load(tmp_path / "c.npz") as held:
        assert held["coef"].tolist() == [0.0, 0.1, 0.0, 0.0, -2.5, 0.0]
        assert (held["intercept"], held["gap"], held["lambda"]) == (3.25, 1e-9, 0.5)
    write_coefficients(tmp_path / "c.mtx", ANSWER, 6)
    row = scipy.io.mmread(tmp_path / "c.mtx").toarray()
    np.testing.assert_array_equal(row, [[0.0, 0.1, 0.0, 0.0, -2.5, 0.0]])
    write_path(tmp_path / "p.npz", [ANSWER, ANSWER], 6)
    with np.load(tmp_path / "p.npz") as held:
        assert held["shape"].tolist() == [6, 2] and held["indptr"].tolist() == [0, 2, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.mtx", "c.npz", "p.npz"]


def test_a_resumed_log_has_each_round_once(tmp_path: Path) -> None:
    def line(number: int, seconds: float) -> Round:
        return Round(number, seconds, 0.1, 1.0, 2.0, 3, 4, 5)

    first = Log(tmp_path / "log")
    for number in range(4):
        first(line(number, float(number)))
    resumed = Log(tmp_path / "log")
    for number in (2, 3, 4):
        resumed(line(number, 10.0 + number))
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == LOG_HEADER
    assert [part.split(",")[0] for part in lines[1:]] == ["0", "1", "2", "3", "4"]
    assert [float(part.split(",")[1]) for part in lines[1:]] == [0.0, 1.0, 12.0, 13.0, 14.0]


def test_two_classes_become_signs_and_others_are_refused() -> None:
    found, labels = signs(np.array([0.0, 3.0, 0.0]))
    np.testing.assert_array_equal(found, [-1.0, 1.0, -1.0])
    assert labels == (0.0, 3.0)
    for labels in ([1.0, 1.0], [0.0, 1.0, 2.0]):
        with pytest.raises(Misuse, match="two classes in y"):
            signs(np.array(labels))
