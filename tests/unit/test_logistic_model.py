"""A logistic model's files and measures, and `diml predict` on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.datasets import dump_svmlight_file
from sklearn.metrics import log_loss as their_log_loss
from sklearn.metrics import roc_auc_score

from diml.cli import main
from diml.errors import Misuse
from diml.jobs.logistic_data import load
from diml.jobs.logistic_model import Model, auc, log_loss, probabilities, read_model, write_model

CHANCE = np.random.default_rng(11)


@pytest.mark.parametrize("values", [3, 50, 10**6], ids=["ties", "some ties", "no ties"])
def test_the_measures_are_those_of_scikit_learn(values: int) -> None:
    for n in (2, 7, 4000):
        y = np.zeros(n)
        y[CHANCE.permutation(n)[: max(1, n // 3)]] = 1.0
        z = (CHANCE.integers(0, values, n) + y) / values * 8 - 4
        assert auc(y, z) == pytest.approx(roc_auc_score(y, z), abs=1e-12)
        assert log_loss(y, z) == pytest.approx(their_log_loss(y, probabilities(z)), rel=1e-9)
    assert np.isnan(auc(np.ones(3), np.arange(3.0)))


def test_extreme_margins_stay_finite() -> None:
    z = np.array([-1e4, -40.0, 0.0, 40.0, 1e4])
    found = probabilities(z)
    np.testing.assert_allclose(found, [0, np.exp(-40), 0.5, 1, 1], rtol=1e-12)
    assert log_loss(np.array([1.0, 0, 0, 1, 0]), z) == pytest.approx((2e4 + np.log(2)) / 5)


@pytest.mark.parametrize("name", ["model", "model.npz", "model.h5"])
@pytest.mark.parametrize("intercept", [False, True])
def test_a_model_comes_back(tmp_path: Path, name: str, intercept: bool) -> None:
    model = Model(CHANCE.normal(size=9), intercept, (-1.0, 2.5), 0)
    write_model(str(tmp_path / name), model)
    again = read_model(str(tmp_path / name))
    digits = 1e-8 if name == "model" else 0.0
    np.testing.assert_allclose(again.weights, model.weights, rtol=digits)
    assert (again.intercept, again.labels, again.base) == (intercept, (-1.0, 2.5), 0)
    assert [p.name for p in tmp_path.iterdir()] == ["model.w" if name == "model" else name]
    assert len(np.loadtxt(tmp_path / "model.w")) == 9 if name == "model" else True


@pytest.mark.parametrize("intercept", [False, True])
def test_predict_writes_probabilities_and_tells_both_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], intercept: bool
) -> None:
    X = sp.random(300, 12, 0.3, "csr", random_state=CHANCE)
    w = CHANCE.normal(size=12 + intercept)
    z = X @ w[:12] + (w[12] if intercept else 0.0)
    y = np.where(CHANCE.random(300) < 1 / (1 + np.exp(-z)), 1, -1)
    data, bare, model = tmp_path / "x.svm", tmp_path / "bare.svm", str(tmp_path / "m.npz")
    dump_svmlight_file(X, y, str(data), zero_based=False)
    write_model(model, Model(w, intercept, (-1.0, 1.0)))
    assert main(["predict", model, str(data), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    expected = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(np.loadtxt(tmp_path / "out"), expected, rtol=1e-6)
    words = f"AUC {roc_auc_score(y, z):.6f}, log-loss {their_log_loss(y, expected):.6f}"
    assert said.err == f"{words} over 300 labelled rows\n" and said.out == ""
    # Without labels: the same probabilities, and nothing to measure.
    lines = [line.split(" ", 1)[1] for line in data.read_text().splitlines() if " " in line]
    bare.write_text("\n".join(lines) + "\n")
    assert main(["predict", model, str(bare)]) == 0
    said = capsys.readouterr()
    told = expected[np.diff(X.indptr) > 0]
    np.testing.assert_allclose([float(line) for line in said.out.split()], told, rtol=1e-6)
    assert said.err == ""


def test_columns_never_trained_count_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(str(tmp_path / "m"), Model(np.array([1.0, -2.0, 0.5]), True))
    data = tmp_path / "x.svm"
    data.write_text("1 1:1\n0 2:1 3:9\n0\n")
    assert main(["predict", str(tmp_path / "m"), str(data)]) == 0
    said = capsys.readouterr()
    expected = probabilities(np.array([1.5, -1.5, 0.5]))
    np.testing.assert_allclose([float(line) for line in said.out.split()], expected, rtol=1e-8)
    assert "columns beyond the 2 of the training data" in said.err


@pytest.mark.parametrize(
    ("model", "data", "flags", "message"),
    [
        ("m.npz", "1 1:1\n1 x\n", "", "x.svm:2: expected `column:value`"),
        ("m.npz", "1 1:1\n7 1:1\n", "", "x.svm: label 7; the model was trained on 0 and 1"),
        ("m.npz", "1 0:1\n", "", "x.svm: there is a column 0, but columns count from 1"),
        ("m.npz", "", "", "x.svm: the file is empty"),
        ("m.npz", "1 1:1\n", "--one-based", "--one_based are of factorizations"),
        ("m.npz", "1 1:1\n", "-o {folder}/none/out", "cannot write it"),
        ("cut.npz", "1 1:1\n", "", "cut.npz: damaged"),
        ("text", "1 1:1\n", "", "text.w, line 3: not a number"),
        ("bare", "1 1:1\n", "", "bare.w, line 1: not the facts"),
        ("short", "1 1:1\n", "", "short.w: cut off: 2 weights of 3"),
        ("digits", "1 1:1\n", "", "digits.w: cut off"),
        ("none", "1 1:1\n", "", "none.L: cannot read it"),
        ("nan", "1 1:1\n", "", "nan.w: a weight is not finite"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
    model: str, data: str, flags: str, message: str,
) -> None:  # fmt: skip
    write_model(str(tmp_path / "m.npz"), Model(np.ones(2)))
    whole = (tmp_path / "m.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:-400])
    facts = "# logistic: {} weights, labels 0.0 1.0, columns from 1, no intercept\n"
    (tmp_path / "text.w").write_text(facts.format(2) + "1\nx\n")
    (tmp_path / "nan.w").write_text(facts.format(1) + "nan\n")
    (tmp_path / "short.w").write_text(facts.format(3) + "1\n2\n")
    (tmp_path / "digits.w").write_text(facts.format(2) + "1\n2.5")
    (tmp_path / "bare.w").write_text("1\n2\n")
    (tmp_path / "x.svm").write_text(data)
    words = flags.format(folder=tmp_path).split()
    assert main(["predict", str(tmp_path / model), str(tmp_path / "x.svm"), *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1, said


@pytest.mark.parametrize("name", ["model.npz", "model.h5"])
def test_changed_bytes_are_noticed(tmp_path: Path, name: str) -> None:
    model = Model(CHANCE.normal(size=50))
    write_model(str(tmp_path / name), model)
    whole = (tmp_path / name).read_bytes()
    at = whole.index(model.weights.tobytes())
    for place in range(at, at + 400, 37):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(Misuse, match=f"{name}: "):
            read_model(str(tmp_path / name))


def test_a_test_file_takes_labels_and_first_column_from_the_training(tmp_path: Path) -> None:
    train, test = tmp_path / "train", tmp_path / "test"
    train.write_text("-1 0:1 2:3\n1 1:1\n")
    test.write_text("1 1:5 2:7\n1 2:4\n")
    like = load(train, intercept=False)
    assert like.labels == (-1.0, 1.0) and like.base == 0
    told = load(test, intercept=False, like=like)
    assert told.y.tolist() == [1.0, 1.0]
    assert told.X.toarray().tolist() == [[0, 5, 7], [0, 0, 4]]
    test.write_text("0 1:5\n")
    with pytest.raises(Exception, match="label 0, where there are -1 and 1 only"):
        load(test, intercept=False, like=like)
