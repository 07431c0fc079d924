"""Cross-validation, the logistic loss and the estimators on several ranks, under kills too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.mpi import run_mpi

JOB = ["-m", "diml.jobs.lasso", "--generate", "neighbours"]


def data(path: Path, classes: bool) -> list[str]:
    rng = np.random.default_rng(8)
    X = rng.normal(size=(200, 40))
    y = X[:, 0] - 2.0 * X[:, 3] + rng.normal(size=200)
    np.savez(path, X=X, y=(y > 0).astype(float) if classes else y)
    return ["-m", "diml.jobs.lasso", "--x", str(path), "--tol", "1e-9"]


def solve(tmp_path: Path, ranks: int, program: list[str], *more: str) -> dict[str, Any]:
    output = tmp_path / "out.npz"
    run_mpi(ranks, [*program, "--output", str(output), *more], timeout_s=120).expect(0)
    with np.load(output) as held:
        return dict(held)


@pytest.mark.parametrize("classes", [False, True])
def test_cross_validation_chooses_one_lambda_on_any_number_of_ranks(
    tmp_path: Path, classes: bool
) -> None:
    program = [*data(tmp_path / "x.npz", classes), "--cv", "4", "--path", "20"]
    program += ["--loss", "logistic"] if classes else []
    alone = solve(tmp_path, 1, program)
    three = solve(tmp_path, 3, program, "--cv_output", str(tmp_path / "cv.npz"))
    killed = solve(
        tmp_path, 5, program, "--spares", "2", "--drill", "2,0,0,0", "--drill", "0,0,3,0",
        "--checkpoint_work", "20000",
    )  # fmt: skip
    assert alone["lambda"] == three["lambda"] == killed["lambda"]
    np.testing.assert_allclose(three["coef"], alone["coef"], atol=1e-6)
    np.testing.assert_array_equal(three["coef"], killed["coef"])
    with np.load(tmp_path / "cv.npz") as held:
        errors, lambdas = held["errors"], held["lambda"]
    assert errors.shape == (4, 20)
    assert lambdas[np.argmin(errors.mean(axis=0))] == three["lambda"]


def test_the_logistic_loss_survives_kills(tmp_path: Path) -> None:
    flags = ["--loss", "logistic", "--path", "6", "--lambda_ratio", "0.02"]
    program = [*data(tmp_path / "x.npz", True), *flags, "--checkpoint_work", "5000"]
    three = solve(tmp_path, 3, program)
    drills = ["--drill", "0,1,1,0", "--drill", "1,2,2,0", "--drill", "0,3,0,1", "--spares", "3"]
    killed = solve(tmp_path, 6, program, *drills)
    np.testing.assert_array_equal(three["coef"], killed["coef"])
    assert three["gap"] <= 1e-9 and np.count_nonzero(three["coef"]) > 2
    alone = solve(tmp_path, 1, program)
    np.testing.assert_allclose(alone["coef"], three["coef"], atol=1e-5)


CHECKS = """
import warnings
import diml
from sklearn.utils.estimator_checks import check_estimator
from diml.strads import ElasticNet, LassoCV, SparseLogistic

warnings.simplefilter("ignore")
with diml.init() as job:
    # What Lasso is besides ElasticNet, whose `fit` it has, one process is asked (tests/unit).
    for model in (ElasticNet(alpha=0.1, job=job),
                  SparseLogistic(alpha=0.01, job=job), LassoCV(n_alphas=5, job=job)):
        check_estimator(model)
        if job.rank == 0:
            print("PASSED", type(model).__name__)
"""


def test_scikit_learn_s_checks_pass_on_two_ranks() -> None:
    pytest.importorskip("sklearn")
    done = run_mpi(2, CHECKS, timeout_s=200).expect(0)
    assert done.stdout.count("PASSED") == 3, done.stdout


CUT = """
import numpy as np
import diml
from diml.strads.columns import columns_of
from diml.strads.lasso import solve_lasso
from diml.strads.lasso_problem import Grid, Stop

rng = np.random.default_rng(1)
X = rng.normal(size=(60, 90))
y = X[:, :8].sum(axis=1) + rng.normal(size=60)
with diml.init() as job:
    program = solve_lasso(columns_of(X, job.rank, job.size), y, Grid(ratios=(0.05,)), Stop(1e-4),
                          job=job, block_entries=600, checkpoint_work=100_000)
    if job.rank == 0:
        answer = program.solutions[0]
        print("ANSWER", answer.converged, len(answer.ids), answer.values.tolist())
"""


def test_blocks_that_are_cut_down_survive_a_kill() -> None:
    def answer(ranks: int, drills: str) -> str:
        env = {"DIML_DRILL": drills, "DIML_SPARES": str(ranks - 3)}
        done = run_mpi(ranks, CUT, env=env, timeout_s=100).expect(0)
        assert "did not fire" not in done.stderr, done.report()
        said = done.stdout.splitlines()
        return next(line for line in said if line.startswith("ANSWER True"))

    reference = answer(3, "")
    assert int(reference.split()[2]) > 10
    assert answer(5, "1,1,2,0 0,2,1,0") == reference
