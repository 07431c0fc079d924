"""The Lasso job under real mpirun: the same answer on any number of ranks and after any death."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from diml.data.design_planted import Planted, neighbour_correlated
from tests.helpers.mpi import run_mpi

JOB = ["-m", "diml.jobs.lasso"]
# Small enough to be quick, long enough for several checkpoints: 12 values of lambda.
PATH = ["--path", "12", "--lambda-ratio", "0.05"]
OFTEN = ["--checkpoint-work", "60000"]


def write_sparse(path: Path, planted: Planted) -> Path:
    X = scipy.sparse.csc_matrix(planted.X)
    parts = {"data": X.data, "indices": X.indices, "indptr": X.indptr, "shape": X.shape}
    np.savez(path, y=planted.y, **parts)
    return path


@pytest.fixture(scope="module")
def design(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`--generate neighbours` as a file, which each rank reads sooner than it generates it."""
    return write_sparse(tmp_path_factory.mktemp("design") / "x.npz", neighbour_correlated())


def solve(design: Path, output: Path, ranks: int, *more: str) -> dict[str, Any]:
    program = [*JOB, "--x", str(design), *PATH, *OFTEN, "--path_output", str(output), *more]
    done = run_mpi(ranks, program, timeout_s=150)
    assert done.returncode == 0, done
    with np.load(output) as held:
        return dict(held)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    fields = ("data", "indices", "indptr", "intercept", "gap")
    return all(np.array_equal(one[field], other[field]) for field in fields)


@pytest.fixture(scope="module")
def reference(design: Path) -> dict[str, Any]:
    """The answer of one undisturbed run."""
    return solve(design, design.with_name("reference.npz"), 3)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_gives_the_same_answer(
    tmp_path: Path, ranks: int, design: Path, reference: dict[str, Any]
) -> None:
    answer = solve(design, tmp_path / "out.npz", ranks)
    np.testing.assert_array_equal(answer["indices"], reference["indices"])
    np.testing.assert_array_equal(answer["indptr"], reference["indptr"])
    np.testing.assert_allclose(answer["objective"], reference["objective"], rtol=1e-10)
    if ranks == 2:
        output = tmp_path / "replicated.npz"
        assert same(answer, solve(design, output, 2, "--data", "replicated"))


def test_a_published_policy_runs_on_several_ranks(tmp_path: Path) -> None:
    flags = ["--policy", "priority+dependency", "--max_iter", "200", "--schedule_size", "16"]
    done = run_mpi(3, [*JOB, "--generate", "neighbours", *flags], timeout_s=100)
    assert done.returncode == 0, done
    assert "the gap did not reach the tolerance" in done.stdout


def test_ten_random_kills_change_no_bit(
    tmp_path: Path, design: Path, reference: dict[str, Any]
) -> None:
    """Any rank may be hit, rank 0, which solves the blocks, too."""
    draw = random.Random(1)
    places = [(rank, version) for rank in range(3) for version in range(5)]
    died: dict[int, int] = {}
    drills = []
    for rank, version in sorted(draw.sample(places, 10), key=lambda place: place[1]):
        drills += ["--drill", f"{rank},{version},{draw.randrange(4)},{died.get(rank, 0)}"]
        died[rank] = died.get(rank, 0) + 1
    events = tmp_path / "events"
    flags = [*drills, "--spares", "10", "--events", str(events), "--log", str(tmp_path / "log")]
    answer = solve(design, tmp_path / "killed.npz", 13, *flags)
    assert same(reference, answer)
    what = [json.loads(line)["what"] for line in events.read_text().splitlines()]
    assert what.count("drill") == 10, what
    rounds = [line.partition(",")[0] for line in (tmp_path / "log").read_text().splitlines()[1:]]
    assert [int(r) for r in rounds] == sorted(int(r) for r in rounds)


def test_files_of_each_format_give_one_answer(tmp_path: Path) -> None:
    planted = neighbour_correlated(60, 80)
    sparse, dense = write_sparse(tmp_path / "x.npz", planted), tmp_path / "d.npz"
    np.savez(dense, X=scipy.sparse.csc_matrix(planted.X).toarray(), y=planted.y)
    coefs = []
    for path in (sparse, dense):
        output = tmp_path / "coef.npz"
        program = [*JOB, "--x", str(path), "--lambda_ratio", "0.1", "--tol", "1e-10"]
        done = run_mpi(2, [*program, "--output", str(output)], timeout_s=60)
        assert done.returncode == 0, done
        coefs.append(np.load(output)["coef"])
    np.testing.assert_allclose(coefs[0], coefs[1], atol=1e-6)


def test_tall_data_survive_a_death(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(5000, 12)) + 3.0
    np.savez(tmp_path / "x.npz", X=X, y=X[:, 0] - X[:, 5] + rng.normal(size=5000))
    coefs = []
    for ranks, flags in ((1, []), (2, []), (3, ["--spares", "1", "--drill", "0,0,3,0"])):
        output = tmp_path / "coef.npz"
        program = [*JOB, "--x", str(tmp_path / "x.npz"), "--path", "5", *flags]
        done = run_mpi(ranks, [*program, "--output", str(output)], timeout_s=60)
        assert done.returncode == 0, done
        coefs.append(np.load(output)["coef"])
    np.testing.assert_allclose(coefs[0], coefs[1], rtol=1e-9)
    np.testing.assert_array_equal(coefs[1], coefs[2])


BAD: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "short y": ({"y": np.ones(3)}, [], "3 values of y for 4 rows"),
    "zero": ({"X": np.zeros((4, 2))}, [], "all zero"),
    "lambda": ({}, ["--lambda", "0"], "not above 0"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_one_line_and_status_2(tmp_path: Path, case: str) -> None:
    change, flags, words = BAD[case]
    path = tmp_path / "x.npz"
    np.savez(path, **({"X": np.arange(8.0).reshape(4, 2), "y": np.arange(4.0)} | change))
    done = run_mpi(2, [*JOB, "--x", str(path), *flags], timeout_s=60)
    said = [line for line in done.stderr.splitlines() if line.startswith("diml:")]
    assert done.returncode == 2, done
    assert len(said) == 1 and words in said[0], done.stderr
    assert "Traceback" not in done.stderr
