"""Readers of design matrices: what they read, in parts, and what they refuse in one line."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
from numpy.typing import NDArray

from diml.data import design_text
from diml.data.design import read_design, read_response
from diml.data.design_part import DensePart, SparsePart, balance
from diml.errors import Misuse

X = scipy.sparse.random(30, 17, density=0.3, format="csc", rng=np.random.default_rng(5))
Y = np.random.default_rng(6).normal(size=30)


def write_libsvm(path: Path) -> Path:
    rows = X.tocsr()
    with path.open("w") as file:
        for i in range(30):
            row = rows[i]
            pairs = " ".join(
                f"{j + 1}:{v!r}"
                for j, v in sorted(zip(row.indices, row.data.tolist(), strict=True))
            )
            file.write(f"{Y[i].item()!r} {pairs}\n")
    return path


def write_npz(path: Path, **more: Any) -> Path:
    parts = {"data": X.data, "indices": X.indices, "indptr": X.indptr, "shape": X.shape}
    np.savez(path, format=np.array("csc"), y=Y, **(parts | more))
    return path


def write_hdf5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["data"], file["indices"], file["indptr"] = X.data, X.indices, X.indptr
        file.attrs["shape"] = X.shape
        file["y"] = Y
    return path


def write_matrixmarket(path: Path) -> Path:
    scipy.io.mmwrite(path, X)
    scipy.io.mmwrite(path.with_name("y.mtx"), Y[:, None])
    return path


def together(parts: list[SparsePart | DensePart]) -> NDArray[np.float64]:
    """The parts side by side, checked to follow each other."""
    blocks = []
    at = 0
    for part in parts:
        assert part.first == at
        if isinstance(part, DensePart):
            block = np.asarray(part.X, np.float64)
        else:
            shape = (part.rows, len(part.indptr) - 1)
            matrix = scipy.sparse.csc_matrix((part.data, part.indices, part.indptr), shape)
            assert matrix.has_sorted_indices
            block = matrix.toarray()
        at += block.shape[1]
        blocks.append(block)
    return np.hstack(blocks)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kind", ["libsvm", "npz", "hdf5", "matrixmarket", "dense", "array"])
def test_each_format_gives_the_matrix_in_parts(
    tmp_path: Path, kind: str, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(design_text, "_CHUNK_BYTES", 200)
    y_path = None
    if kind == "libsvm":
        path = write_libsvm(tmp_path / "x.svm")
    elif kind == "npz":
        path = write_npz(tmp_path / "x.npz")
    elif kind == "hdf5":
        path = write_hdf5(tmp_path / "x.h5")
    elif kind == "matrixmarket":
        path = write_matrixmarket(tmp_path / "x.mtx")
        y_path = tmp_path / "y.mtx"
    elif kind == "dense":
        path = tmp_path / "x.npz"
        np.savez(path, X=X.toarray(), y=Y)
    else:
        path = tmp_path / "x.mtx"
        scipy.io.mmwrite(path, X.toarray(), precision=17)
        y_path = tmp_path / "y.npy"
        np.save(y_path, Y)
    read = [read_design(path, y_path, part, parts) for part in range(parts)]
    np.testing.assert_allclose(together([x for x, _ in read]), X.toarray(), rtol=1e-15)
    for _, y in read:
        np.testing.assert_allclose(y, Y, rtol=1e-15)
    assert all(x.total == 17 for x, _ in read)


def test_csr_npz_and_doubled_entries_are_read(tmp_path: Path) -> None:
    rows = X.tocsr()
    path = tmp_path / "x.npz"
    write_npz(path, data=rows.data, indices=rows.indices, indptr=rows.indptr)
    with np.load(path) as held:
        parts = dict(held)
    np.savez(path, **(parts | {"format": np.array("csr")}))
    np.testing.assert_allclose(together([read_design(path)[0]]), X.toarray())
    twice = tmp_path / "t.mtx"
    twice.write_text("%%MatrixMarket matrix coordinate real general\n2 2 3\n2 1 1\n1 1 5\n2 1 2\n")
    (tmp_path / "y").write_text("1\n2\n")
    np.testing.assert_array_equal(
        together([read_design(twice, tmp_path / "y")[0]]), [[5.0, 0.0], [3.0, 0.0]]
    )


def test_rows_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "x.npz",
        data=np.array([1.0, 2.0, 3.0]),
        indices=np.array([2, 0, 2]),
        indptr=np.array([0, 3]),
        shape=np.array([3, 1]),
        y=np.arange(3.0),
    )
    part, _ = read_design(tmp_path / "x.npz")
    assert isinstance(part, SparsePart)
    assert part.indices.tolist() == [0, 2] and part.data.tolist() == [2.0, 4.0]


def test_float32_stays_and_zero_based_columns_are_seen(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz", data=X.data.astype(np.float32))
    part = read_design(path)[0]
    assert isinstance(part, SparsePart) and part.data.dtype == np.float32
    zero = tmp_path / "z.svm"
    zero.write_text("1 0:2 3:4\n-1 1:1e-3 # end\n")
    part, y = read_design(zero)
    np.testing.assert_array_equal(together([part]), [[2, 0, 0, 4], [0, 1e-3, 0, 0]])
    assert y.tolist() == [1.0, -1.0]


def test_parts_hold_about_equally_many_entries() -> None:
    counts = (10_000 / np.arange(1, 2001)).astype(np.int64)
    edges = balance(counts, 4)
    held = [int((counts[a:b] + 4).sum()) for a, b in pairwise(edges)]
    assert max(held) < 1.3 * min(held) + counts.max()
    assert balance(np.array([5], np.int64), 3).tolist()[-1] == 1


MM = "%%MatrixMarket matrix coordinate real general\n"
BAD = {
    "no pair": ("1 1:2\n2 3\n", ":2: expected `column:value`"),
    "nan": ("1 1:2\n\n2 1:nan\n", ":3: a value is not a finite number"),
    "infinite": ("1 1:1e999\n", ":1: a value is too large"),
    "label": ("one 1:2\n", ":1: a value is not a finite number"),
    "falling": ("1 2:1 1:1\n", ":1: column numbers must rise"),
    "digits": ("1 ٣:1\n", ":1: expected `column:value`"),
    "blank": ("\n# nothing\n", "no data lines"),
    "empty": ("", "the file is empty"),
    "ragged": (MM + "2 2 2\n1 1 1\n1 2\n", ":4: wrong number of fields"),
    "truncated": (MM + "2 2 3\n1 1 1\n", "1 entries, but the header promises 3"),
    "outside": (MM + "2 2 1\n3 1 1\n", "row 3, column 1 of a 2 × 2 matrix"),
    "complex": (MM.replace("real", "complex") + "1 1 1\n1 1 1 1\n", ":1: only real general"),
    "no size": (MM, "ends before its size line"),
    "bad size": (MM + "2 two 1\n", ":2: bad size line"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_text_is_refused_by_file_and_line(tmp_path: Path, case: str) -> None:
    text, words = BAD[case]
    path = tmp_path / "bad.data"
    path.write_text(text)
    (tmp_path / "y.txt").write_text("1\n2\n")
    with pytest.raises(Misuse) as caught:
        read_design(path, tmp_path / "y.txt")
    message = str(caught.value)
    assert str(path) in message and words in message and "\n" not in message


def test_bad_binary_is_refused(tmp_path: Path) -> None:
    whole = write_npz(tmp_path / "x.npz").read_bytes()
    cases: list[tuple[bytes | None, dict[str, Any], str]] = [
        (whole[: len(whole) // 2], {}, "not a readable"),
        (None, {"data": np.where(X.data == X.data[3], np.nan, X.data)}, "NaN or infinity in data"),
        (None, {"indptr": X.indptr[:-1]}, "indptr does not fit"),
        (None, {"indices": X.indices + 30}, "row number is outside"),
        (None, {"y": Y[:-1]}, "29 values of y for 30 rows"),
        (None, {"data": X.data[:-2]}, "shorter than its header"),
    ]
    for raw, more, words in cases:
        path = tmp_path / "bad.npz"
        if raw is not None:
            path.write_bytes(raw)
        else:
            parts = {"data": X.data, "indices": X.indices, "indptr": X.indptr, "y": Y}
            np.savez(path, shape=X.shape, **(parts | more))
        with pytest.raises(Misuse, match=words):
            read_design(path)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"X": np.ones(3)}, "X must have two dimensions, not 1"),
        ({"X": np.ones((3, 2, 2))}, "X must have two dimensions, not 3"),
        ({"data": np.ones((2, 2))}, "data must have one dimension"),
        ({"shape": np.array([np.inf, 2.0])}, "shape holds what is not a whole number"),
        ({"indices": np.array([0.0, 0.5])}, "indices holds what is not a whole number"),
        ({"indptr": np.array([0.0, np.nan, 2.0])}, "indptr holds what is not a whole number"),
        ({"indices": np.array([b"a", b"b"])}, "indices holds what is not a whole number"),
        ({"format": "csr", "indices": np.array([0, 7])}, "a column number is outside"),
        ({"format": "csr", "indptr": np.array([0, 1, 9])}, "fewer entries than indptr says"),
        ({"format": "csr", "indptr": np.array([0, 1])}, "indptr does not fit 2 rows"),
        ({"format": "bsr"}, "in bsr form; store it as csc"),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "h5"])
def test_arrays_that_do_not_fit_together_are_refused(
    arrays: dict[str, Any], words: str, kind: str, tmp_path: Path
) -> None:
    whole = {"data": np.ones(2), "indices": np.arange(2), "indptr": np.arange(3), "shape": (2, 2)}
    held = {"y": np.ones(2), **(arrays if "X" in arrays else {**whole, **arrays})}
    path = tmp_path / f"x.{kind}"
    if kind == "npz":
        np.savez(path, **held)
    else:
        with h5py.File(path, "w") as file:
            file.attrs["format"] = held.pop("format", "csc")
            for name, value in held.items():
                file[name] = value
    with pytest.raises(Misuse, match=words):
        read_design(path)


def test_a_sparse_form_without_pointers_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    scipy.sparse.save_npz(path, scipy.sparse.coo_matrix(np.eye(3)))
    with pytest.raises(Misuse, match="in coo form; store it as csc"):
        read_design(path)


def test_a_group_in_the_place_of_an_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file.create_group("X")
    with pytest.raises(Misuse, match="X is a group, not an array"):
        read_design(path)


def test_columns_beyond_the_memory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.svm"
    path.write_text("1 1:1\n0 99999999999:1\n")
    with pytest.raises(Misuse, match="99999999999 columns are more"):
        read_design(path)
    path.write_text("%%MatrixMarket matrix coordinate real general\n2 99999999999 1\n1 1 1\n")
    with pytest.raises(Misuse, match="99999999999 columns are more"):
        read_design(path)


def test_missing_files_and_missing_y_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="No such file"):
        read_design(tmp_path / "none")
    path = write_matrixmarket(tmp_path / "x.mtx")
    with pytest.raises(Misuse, match="there is no y in it"):
        read_design(path)
    np.save(tmp_path / "y.npy", np.array([1.0, np.nan]))
    with pytest.raises(Misuse, match="NaN"):
        read_response(tmp_path / "y.npy")
