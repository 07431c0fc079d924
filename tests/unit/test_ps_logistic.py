"""Logistic regression's arithmetic and data against plain NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from diml.errors import DimlError, Misuse
from diml.jobs.logistic import Output, parser, rule_options
from diml.jobs.logistic_data import Examples, Minibatches, load, share_of, widened
from diml.jobs.logistic_train import Gradient, check_finite
from diml.kernels.logistic import gradient_sum, loss_and_hits


def _problem() -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = sp.random(40, 7, 0.4, format="csr", rng=rng)
    return X, (rng.random(40) < 0.5).astype(float), rng.normal(size=7) * 3


def test_gradient_and_loss_are_their_formulas() -> None:
    X, y, w = _problem()
    z = X @ w
    g = np.zeros(7)
    gradient_sum(X.indptr, X.indices, X.data, y, w, g)
    assert g == pytest.approx(X.T @ (1 / (1 + np.exp(-z)) - y))
    loss, hits = loss_and_hits(X.indptr, X.indices, X.data, y, w)
    assert loss == pytest.approx(np.log1p(np.exp(z)).sum() - y @ z)
    assert hits == ((z > 0) == (y == 1)).sum()
    far, _ = loss_and_hits(X.indptr, X.indices, X.data * 1e4, y, w)
    assert np.isfinite(far)


def test_every_row_is_in_one_minibatch_of_an_epoch(tmp_path: Path) -> None:
    X, y, _ = _problem()
    path = tmp_path / "x.svm"
    lines = []
    for i in range(40):
        row = X[[i]]
        cells = sorted(zip(row.indices, row.data, strict=True))
        lines.append(f"{2 * y[i] - 1:g} " + " ".join(f"{c + 1}:{v:.17g}" for c, v in cells))
    path.write_text("\n".join(lines) + "\n")
    examples = load(path, intercept=True)
    assert set(examples.y) == {0.0, 1.0} and examples.X.shape == (40, 8)
    assert (examples.X[:, 7].toarray() == 1).all()
    wide = widened(examples, 10, True)
    assert (wide.X[:, 9].toarray() == 1).all() and wide.X[:, 7:9].nnz == 0
    shares = [share_of(examples, w, 3) for w in range(3)]
    assert np.array_equal(sp.vstack([s.X for s in shares]).toarray(), examples.X.toarray())
    batches, again = (Minibatches(shares[1], 4, 7, 1) for _ in range(2))
    seen = [batches.at(clock) for clock in range(8)]
    for epoch in (seen[:4], seen[4:]):
        assert sum(len(batch.y) for batch in epoch) == len(shares[1].y)
        total = sum(batch.data.sum() for batch in epoch)
        assert total == pytest.approx(shares[1].X.data.sum())
    late = again.at(6)
    assert np.array_equal(late.keys, seen[6].keys) and np.array_equal(late.data, seen[6].data)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 1:1e200\n0 2:1\n", "a value is too large: 1e\\+200"),
        ("1 1:2\n1 2:1\n", "1 different labels"),
        ("0 1:1\n1 x:2\n", ":2:"),
        ("", "no data"),
    ],
)
def test_bad_examples_are_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.svm"
    path.write_text(text)
    with pytest.raises(Misuse, match=words):
        load(path, intercept=False)
    with pytest.raises(Misuse, match="no such file"):
        load(tmp_path / "missing", intercept=False)


def test_threads_share_a_minibatch() -> None:
    X, y, w = _problem()
    batch = Minibatches(Examples(X, y, 40), 1, 0, 0).at(0)
    alone, three = (Gradient(threads).of(batch, w[batch.keys]) for threads in (1, 3))
    assert three == pytest.approx(alone) and np.abs(alone).max() > 0
    assert (three == Gradient(3).of(batch, w[batch.keys])).all()


def test_steps_and_penalties_are_those_of_the_mean() -> None:
    words = ["--datafile", "x", "--l1", "0.5"]
    flags = parser().parse_args([*words, "--rule", "sgd", "--init_step_size", "3"])
    assert rule_options(flags, 10)["step_size"] == pytest.approx(0.3)
    assert rule_options(flags, 10)["l1"] == pytest.approx(5)
    # AdaGrad's step does not hang on the scale of the gradients.
    assert rule_options(parser().parse_args(words), 10) == {"step_size": 1.0, "l1": 5.0, "l2": 0.0}


def test_losses_with_other_columns_are_not_gone_on_with(tmp_path: Path) -> None:
    X, y, _ = _problem()
    (tmp_path / "m.loss").write_text("epoch,seconds,train_loss\n0,0.1,0.7\n")
    train = Examples(X, y, 40, (-1.0, 1.0), 1)
    with pytest.raises(Misuse, match=r"m\.loss has other columns: give another prefix"):
        Output(str(tmp_path / "m"), train, intercept=False).begin(fresh=False)


def test_a_loss_that_is_not_finite_ends_with_what_to_do() -> None:
    check_finite(np.array([1e308]), 3)
    for bad in (np.nan, np.inf):
        with pytest.raises(DimlError, match="not finite after 3 epochs: lower the step") as raised:
            check_finite(np.array([0.0, bad]), 3)
        assert raised.value.exit_status == 1
