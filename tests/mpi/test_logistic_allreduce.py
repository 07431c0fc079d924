"""Logistic regression on collectives over real MPI: the optimum, and the same bits after deaths."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from diml.events import read_events
from tests.helpers.losses import loss_lines
from tests.helpers.mpi import CHECKOUT, Finished, run_mpi

DATA = CHECKOUT.parent / "shared/data/logistic"
JOB = ["-m", "diml.jobs.logistic"]
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")


def write_examples(path: Path) -> Path:
    """500 examples of a planted model with noise."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=15)
    lines = []
    for _ in range(500):
        cols = np.sort(rng.choice(15, 6, replace=False))
        x = rng.normal(size=6)
        label = int(rng.random() < 1 / (1 + np.exp(-x @ w[cols])))
        cells = (f"{c + 1}:{v:.9g}" for c, v in zip(cols, x, strict=True))
        lines.append(f"{label} " + " ".join(cells))
    path.write_text("\n".join(lines) + "\n")
    return path


def _run(n: int, *args: object, drills: str = "", spares: int = 0) -> Finished:
    env = {"DIML_SPARES": str(spares), "DIML_DRILL": drills}
    return run_mpi(n + spares, JOB, args=[*args, "--quiet"], env=env, timeout_s=120).expect(0)


def _losses(path: Path) -> list[list[str]]:
    """The loss file without its seconds, after the check that each iteration stands once."""
    lines = loss_lines(path)
    assert [int(line[0]) for line in lines] == list(range(len(lines)))
    return [line[2:-1] for line in lines]


@pytest.mark.parametrize("method", ["lbfgs", "admm"])
def test_who_runs_out_of_iterations_says_so(method: str, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "x.svm")
    words = "--tolerance was not reached, raise --num_iterations"
    args = ["--datafile", data, "--method", method, "--l2", "1e-2"]
    assert words in _run(1, *args, "--num_iterations", "2").stdout
    assert words not in _run(1, *args, "--tolerance", "1e-2").stdout


@pytest.mark.parametrize(
    ("method", "drills"),
    [("lbfgs", "1,2,1,0 0,5,0,0 1,6,1,1,inside"), ("admm", "0,3,1,0 1,5,1,0,inside")],
)
def test_deaths_change_neither_weights_nor_losses(method: str, drills: str, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "x.svm")
    args = ["--method", method, "--datafile", data, "--l1", "1e-3", "--l2", "1e-3"]
    args += ["--num_iterations", "9"]
    _run(2, *args, "--output_prefix", tmp_path / "calm")
    events = tmp_path / "events.jsonl"
    told = ["--output_prefix", tmp_path / "killed", "--events", events]
    _run(2, *args, *told, drills=drills, spares=len(drills.split()))
    struck = [e for e in read_events(events) if e["what"] == "drill"]
    assert len(struck) == len(drills.split()), struck
    assert (tmp_path / "calm.w").read_bytes() == (tmp_path / "killed.w").read_bytes()
    calm, killed = (_losses(tmp_path / f"{name}.loss") for name in ("calm", "killed"))
    assert calm == killed and len(calm) == 10
    assert float(calm[-1][1]) < float(calm[0][1])


@pytest.mark.parametrize("method", ["lbfgs", "admm"])
def test_losses_of_a_run_started_again_go_on_where_they_were(method: str, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "x.svm")
    args = ["--method", method, "--datafile", data, "--l2", "1e-3"]
    kept = ["--checkpoint-dir", tmp_path / "kept", "--checkpoint-every", "0.000001"]
    _run(1, *args, "--num_iterations", "9", "--output_prefix", tmp_path / "calm")
    for iterations in ("4", "9"):
        told = ["--num_iterations", iterations, "--output_prefix", tmp_path / "again"]
        _run(1, *args, *kept, *told)
    assert _losses(tmp_path / "calm.loss") == _losses(tmp_path / "again.loss")
    _run(1, *args, "--num_iterations", "3", "--output_prefix", tmp_path / "again")
    assert len(_losses(tmp_path / "again.loss")) == 4, "a fresh run begins anew"


@pytest.mark.parametrize(("method", "n"), [("lbfgs", 2), ("sync-sgd", 3)])
def test_predict_measures_what_the_job_has_measured(method: str, n: int, tmp_path: Path) -> None:
    data = write_examples(tmp_path / "x.svm")
    log, name = tmp_path / "events.jsonl", str(tmp_path / "model.npz")
    args = ["--method", method, "--datafile", data, "--test", data, "--intercept", "--l2", "1e-3"]
    told = ["--num_epochs", "5", "--output_prefix", name, "--events", log]
    said = _run(n, *args, *told).stdout
    measured = re.search(r"test AUC (\S+), test log-loss (\S+)$", said, re.MULTILINE)
    assert measured, said
    words = ["-m", "diml.cli", "predict", name, str(data), "-o", str(tmp_path / "out")]
    predicted = run_mpi(None, words, timeout_s=60).expect(0)
    assert predicted.stderr.startswith(f"AUC {measured[1]}, log-loss {measured[2]} over 500")
    (result,) = [e["values"] for e in read_events(log) if e["what"] == "result"]
    assert f"{result['test AUC']:.6f}" == measured[1] and result["test AUC"] > 0.75
    chances = np.loadtxt(tmp_path / "out")
    assert len(chances) == 500 and 0 < chances.min() < chances.max() < 1


@needs_data
def test_lbfgs_reaches_the_loss_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    from diml.jobs.logistic_data import load

    a9a = load(DATA / "a9a", intercept=False)
    weight = 1 / a9a.total
    args = ["--method", "lbfgs", "--datafile", DATA / "a9a", "--test", DATA / "a9a.t"]
    finished = _run(2, *args, "--l2", weight, "--output_prefix", tmp_path / "out")
    accuracy = re.search(r"test accuracy ([\d.]+)", finished.stdout)
    assert accuracy and float(accuracy[1]) >= 0.845, finished.report()
    ours = float(_losses(tmp_path / "out.loss")[-1][1])
    solver = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-8, max_iter=2000)
    w = solver.fit(a9a.X, a9a.y).coef_[0]
    z = a9a.X @ w
    theirs = float(np.mean(np.logaddexp(0, z) - a9a.y * z) + 0.5 * weight * w @ w)
    assert ours == pytest.approx(theirs, abs=1e-6)


def _accuracy(processes: int, method: str, train: str, test: str, *more: object) -> float:
    args = ["--method", method, "--datafile", DATA / train, "--test", DATA / test]
    finished = _run(processes, *args, *more)
    match = re.search(r"test accuracy ([\d.]+)", finished.stdout)
    assert match, finished.report()
    return float(match[1])


CENSUS, MUSHROOMS = ("a9a", "a9a.t"), ("agaricus.txt.train", "agaricus.txt.test")


@needs_data
def test_admm_on_the_census_and_both_on_mushrooms() -> None:
    assert _accuracy(2, "admm", *CENSUS, "--num_iterations", 15) >= 0.845
    for method in ("lbfgs", "admm"):
        flags = ["--l2", 1e-5, "--num_iterations", 25, "--rho", 1e-4]
        assert _accuracy(2, method, *MUSHROOMS, *flags) >= 0.999


@needs_data
@pytest.mark.parametrize("method", ["sync-sgd", "async-sgd"])
def test_sgd_on_the_census_and_on_mushrooms(method: str) -> None:
    # Two workers and a server. Epochs enough that the order in which the workers happen to arrive
    # does not matter; the default number is enough where there is one worker.
    assert _accuracy(3, method, *CENSUS, "--num_epochs", 5) >= 0.845
    assert _accuracy(3, method, *MUSHROOMS, "--num_epochs", 30) >= 0.999
    assert _accuracy(1, method, *MUSHROOMS) >= 0.999
