"""k-means kernels against plain NumPy, dense against sparse, and its reading of files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from diml.errors import Misuse
from diml.jobs.kmeans import dense_rows, edges, generated, read_rows
from diml.kernels.kmeans import assign_dense, assign_sparse, nearer_dense, nearer_sparse


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_assignment_is_that_of_numpy(dtype: str) -> None:
    rng = np.random.default_rng(0)
    X = np.round(rng.normal(size=(5000, 6)), 2).astype(dtype) * (rng.random((5000, 6)) < 0.5)
    X = X.astype(dtype)
    centres = rng.normal(size=(7, 6))
    distances = ((X.astype(np.float64)[:, None] - centres) ** 2).sum(axis=2)
    for form in ("dense", "sparse"):
        labels, sums, counts = np.full(5000, -1, np.int32), np.zeros((7, 6)), np.zeros(7)
        if form == "dense":
            inertia = assign_dense(X, centres, labels, sums, counts)
        else:
            csr = sparse.csr_matrix(X)
            arrays = (csr.indptr.astype(np.int64), csr.indices.astype(np.int32), csr.data)
            inertia = assign_sparse(*arrays, centres, labels, sums, counts)
        chosen = distances[np.arange(5000), labels]
        assert np.allclose(chosen, distances.min(axis=1), rtol=1e-4, atol=1e-5)
        assert inertia == pytest.approx(distances.min(axis=1).sum(), rel=1e-5)
        assert np.array_equal(counts, np.bincount(labels, minlength=7))
        for c in range(7):
            assert np.allclose(sums[c], X[labels == c].astype(np.float64).sum(axis=0))


def test_nearer_keeps_the_smaller_distance() -> None:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(50, 4))
    csr = sparse.csr_matrix(X)
    arrays = (csr.indptr.astype(np.int64), csr.indices.astype(np.int32), csr.data)
    for form in ("dense", "sparse"):
        held = np.full(50, np.inf)
        for centre in (X[3], X[7]):
            total = (
                nearer_dense(X, centre, held)
                if form == "dense"
                else nearer_sparse(*arrays, centre, held)
            )
        want = np.minimum(((X - X[3]) ** 2).sum(axis=1), ((X - X[7]) ** 2).sum(axis=1))
        assert np.allclose(held, want, atol=1e-12)
        assert total == pytest.approx(want.sum())


def test_generated_rows_do_not_depend_on_the_number_of_workers() -> None:
    whole = generated(150_000, 3, 4, 7, 0, 1).dense
    parts = [generated(150_000, 3, 4, 7, part, 3).dense for part in range(3)]
    assert whole is not None
    assert np.array_equal(np.concatenate([part for part in parts if part is not None]), whole)


@pytest.mark.parametrize("kind", ["npy", "npz", "svm"])
def test_reading(kind: str, tmp_path: Path) -> None:
    X = np.array([[1.0, 0.0], [0.0, 2.5], [3.0, 4.0], [0.0, 0.0], [5.0, 0.0]])
    path = tmp_path / f"points.{kind}"
    if kind == "npy":
        np.save(path, X)
    elif kind == "npz":
        sparse.save_npz(path, sparse.csc_matrix(X))
    else:
        path.write_text("1 1:1\n0 2:2.5\n1 1:3 2:4\n0\n1 1:5\n")
    for part in range(2):
        rows = read_rows(path, part, 2)
        first, last = edges(5, part, 2)
        assert (rows.total, rows.columns, rows.count) == (5, 2, last - first)
        assert np.array_equal([rows.row(i) for i in range(rows.count)], X[first:last])


@pytest.mark.parametrize("content", ["missing", "nan", "flat", "cut"])
def test_bad_files_are_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "points.npy"
    if content == "nan":
        np.save(path, np.array([[1.0], [np.nan]]))
    elif content == "flat":
        np.save(path, np.ones(3))
    elif content == "cut":
        np.save(path, np.ones((9, 9)))
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(
        Misuse, match=r"points\.npy.*truncated" if content == "cut" else r"points\.npy"
    ):
        read_rows(path, 0, 1)


def test_values_whose_squares_are_infinite_are_refused() -> None:
    for dtype, large in (("float64", 1e200), ("float32", 1e19)):
        rows = dense_rows(np.array([[0.0, 1.0], [large, 0.0]], dtype), 0, 1)
        with pytest.raises(Misuse, match="its square is infinite"):
            rows.check_size("points.npy")
        dense_rows(np.array([[0.0, 1e15]], dtype), 0, 1).check_size("points.npy")
