"""Design matrices and responses on disk: each worker reads the columns that it will hold.

    design, y = read_design("train.svm", part=job.rank, parts=job.size)

Owns which reader reads what. Must not know MPI or what the data are for. Formats: libsvm,
MatrixMarket (coordinate or array), `.npz` (as `scipy.sparse.save_npz` writes it, or dense under
"X"), HDF5 (data, indices, indptr and shape of a CSC matrix, or dense "X"). `y` is in the libsvm
file, under "y" in the others, or in a file of its own.

Invariant: what a worker holds in memory is its own columns, n values of y and one chunk of the
file; text is read twice, first to count, then to fill.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import scipy  # its `sparse` is imported at its first use: a tenth of a second
from numpy.typing import NDArray

from diml.data import design_binary, design_text
from diml.data.design_part import DensePart, SparsePart
from diml.errors import Misuse

Floats = NDArray[np.float64]


def read_design(
    x_path: str | os.PathLike[str],
    y_path: str | os.PathLike[str] | None = None,
    part: int = 0,
    parts: int = 1,
) -> tuple[SparsePart | DensePart, Floats]:
    """Read this part's columns of X, and all of y.

    Args:
        y_path: a file with y alone; None where y is in X's file.

    Raises:
        Misuse: a file that is missing, of no known format, ragged, truncated, with a value that is
            not a finite number, or without y; the one line names file, line and what is wrong.
    """
    kind = _kind(Path(x_path))
    design: SparsePart | DensePart
    y: Floats | None = None
    if kind == "npz":
        design, y = design_binary.read_npz(Path(x_path), part, parts)
    elif kind == "hdf5":
        design, y = design_binary.read_hdf5(Path(x_path), part, parts)
    elif kind == "matrixmarket":
        design = design_text.read_matrixmarket(Path(x_path), part, parts)
    else:
        design, y = design_text.read_libsvm(Path(x_path), part, parts)
    if y_path is not None:
        y = read_response(y_path)
    if y is None:
        raise Misuse(f"{x_path}: there is no y in it: name a file with y")
    rows = design.rows if isinstance(design, SparsePart) else len(design.X)
    if rows != len(y):
        source = y_path if y_path is not None else x_path
        raise Misuse(f"{source}: {len(y)} values of y for {rows} rows of X")
    return design, y


def read_rows(path: Path, columns: int, base: int) -> design_text.Rows:
    """A file's rows for a model of so many columns, with what there is of y: NaN where it lacks.

    Args:
        base: the number of the model's first column where that is a libsvm file's to say; its rows
            may have fewer columns than the model, and more.

    Raises:
        Misuse: as `read_design`; another number of columns in the other formats.
    """
    kind = _kind(path)
    if kind == "libsvm":
        return design_text.read_libsvm_rows(path, base, bare=True)
    design: SparsePart | DensePart
    y: Floats | None = None
    if kind == "npz":
        design, y = design_binary.read_npz(path, 0, 1)
    elif kind == "hdf5":
        design, y = design_binary.read_hdf5(path, 0, 1)
    elif kind == "matrixmarket":
        design = design_text.read_matrixmarket(path, 0, 1)
    else:
        raise Misuse(f"{path}: an array alone: rows are libsvm, MatrixMarket, .npz or HDF5")
    if design.total != columns:
        raise Misuse(f"{path}: {design.total} columns, those of the model are {columns}")
    if isinstance(design, SparsePart):
        rows = design.rows
        X = scipy.sparse.csc_matrix((design.data, design.indices, design.indptr), (rows, columns))
    else:
        rows, X = len(design.X), design.X
    if y is not None and len(y) != rows:
        raise Misuse(f"{path}: {len(y)} values of y for {rows} rows of X")
    csr = scipy.sparse.csr_matrix(X)
    labels = np.full(rows, np.nan) if y is None else y
    places = csr.indptr.astype(np.int64), csr.indices.astype(np.int64)
    return design_text.Rows(labels, *places, csr.data.astype(np.float64), base)


def read_response(path: str | os.PathLike[str]) -> Floats:
    """y from a file of its own: MatrixMarket, .npy, .npz or HDF5 ("y"), or one number a line.

    Raises:
        Misuse: as `read_design`.
    """
    kind = _kind(Path(path))
    if kind in ("npz", "npy", "hdf5"):
        return design_binary.read_vector(Path(path), kind)
    if kind == "matrixmarket":
        return design_text.read_matrixmarket_vector(Path(path))
    return design_text.read_numbers(Path(path))


def _kind(path: Path) -> str:
    """The format, by the first bytes and not by the name."""
    try:
        with path.open("rb") as file:
            head = file.read(14)
    except OSError as error:
        raise Misuse(f"{path}: {error.strerror}") from None
    if not head:
        raise Misuse(f"{path}: the file is empty")
    if head.startswith(b"PK"):
        return "npz"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"\x89HDF"):
        return "hdf5"
    return "matrixmarket" if head.lower() == b"%%matrixmarket" else "libsvm"
