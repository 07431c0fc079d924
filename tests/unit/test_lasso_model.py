"""`diml predict` on the coefficients that the Lasso's job writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.datasets import dump_svmlight_file
from sklearn.metrics import log_loss, r2_score, roc_auc_score

from diml.cli import main
from diml.errors import Misuse
from diml.jobs.lasso import load, parser
from diml.jobs.lasso_model import read_coefficients, write_coefficients
from diml.strads.lasso_problem import Solution

CHANCE = np.random.default_rng(5)
X = sp.random(80, 6, 0.4, "csr", random_state=CHANCE)
COEF = np.array([0.0, 1.5, 0.0, -2.0, 0.25, 0.0])
ANSWER = Solution(0.5, 0.0, 0.0, 2.0, np.flatnonzero(COEF), COEF[COEF != 0], 0.75, True, 7)
MARGINS = X @ COEF + 0.75
Y = MARGINS + CHANCE.normal(size=80)


@pytest.mark.parametrize("name", ["c.npz", "c.mtx"])
@pytest.mark.parametrize("base", [0, 1])
def test_values_of_a_libsvm_file_whose_columns_count_from_where_they_did_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, base: int
) -> None:
    model, data = str(tmp_path / name), tmp_path / "x.svm"
    write_coefficients(Path(model), ANSWER, 6, base)
    # No row has the first column, so the file does not tell what the columns count from.
    rest = sp.csr_matrix(X.multiply(np.arange(6) > 0))
    dump_svmlight_file(rest, Y, str(data), zero_based=base == 0)
    assert main(["predict", model, str(data)]) == 0
    said = capsys.readouterr()
    found = [float(line) for line in said.out.split()]
    np.testing.assert_allclose(found, rest @ COEF + 0.75, rtol=1e-8)
    rmse = np.mean((Y - found) ** 2) ** 0.5
    assert said.err == f"RMSE {rmse:.6g}, R² {r2_score(Y, found):.6f} over 80 labelled rows\n"


@pytest.mark.parametrize("name", ["c.npz", "c.mtx"])
def test_probabilities_where_the_loss_was_logistic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    model, data = str(tmp_path / name), tmp_path / "x.npz"
    write_coefficients(Path(model), ANSWER, 6, labels=(2.0, 7.0))
    labels = np.where(Y > 0.75, 7.0, 2.0)
    np.savez(data, X=X.toarray(), y=labels)
    assert main(["predict", model, str(data)]) == 0
    said = capsys.readouterr()
    found = [float(line) for line in said.out.split()]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-MARGINS)), rtol=1e-8)
    auc, loss = roc_auc_score(labels, found), log_loss(labels, found)
    assert said.err == f"AUC {auc:.6f}, log-loss {loss:.6f} over 80 labelled rows\n"
    np.savez(data, X=X.toarray(), y=Y)
    with pytest.raises(Misuse, match="trained on 2 and 7"):
        _misuse(["predict", model, str(data)], capsys)


def test_a_matrix_of_another_width_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = str(tmp_path / "c.npz"), tmp_path / "x.npz"
    write_coefficients(Path(model), ANSWER, 6)
    sp.save_npz(data, X[:, :5])
    with pytest.raises(Misuse, match="5 columns, those of the model are 6"):
        _misuse(["predict", model, str(data)], capsys)


@pytest.mark.parametrize("name", ["c.npz", "c.mtx"])
def test_damaged_coefficients_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_coefficients(path, ANSWER, 6, labels=(0.0, 1.0))
    whole = path.read_bytes()
    for cut in range(20, len(whole) - 1, 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(Misuse, match=name):
            read_coefficients(str(path))


def test_the_job_knows_what_columns_count_from(tmp_path: Path) -> None:
    for base in (0, 1):
        path = tmp_path / f"{base}.svm"
        dump_svmlight_file(X, Y, str(path), zero_based=base == 0)
        flags = parser().parse_args(["--data_xfile", str(path), "--data", "replicated"])
        for rank in (0, 1):
            held, copy, _ = load(flags, rank, 2, seed=0)
            assert [part.base for part in (held, copy)] == [base, base]  # type: ignore[union-attr]


def _misuse(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Run `diml` with words it must refuse, and raise its refusal."""
    assert main(words) == 2
    raise Misuse(capsys.readouterr().err)
