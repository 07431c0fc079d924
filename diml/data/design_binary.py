"""Design matrices in `.npz` and HDF5: a part reads the slices of the arrays that it holds.

Owns array names and what a bad file is told. A CSC matrix is read slice by slice; a CSR one, or a
dense one in C order, is read whole and cut.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from diml.data.design_part import DensePart, SparsePart, balance, canonical
from diml.errors import Misuse

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_READ = ("csc", "csr")  # forms of sparse matrices
_READ_BYTES = 1 << 22
_WHOLE_MAX = 2.0**53  # of a float type that tells each whole number from the next

# Reads entries start … end (None: to the end) of a named array.
_Reader = Callable[[str, int, "int | None"], NDArray[Any]]


def read_npz(path: Path, part: int, parts: int) -> tuple[SparsePart | DensePart, Floats | None]:
    """(this part's columns, y or None). Sparse: data, indices, indptr, shape and format, as
    `scipy.sparse.save_npz` names them; dense: X."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}

            def read(name: str, start: int, end: int | None) -> NDArray[Any]:
                return _member(archive, name, start, end)

            y = _finite(path, "y", read("y", 0, None)) if "y" in names else None
            if "X" in names:
                return _dense(path, archive, part, parts), y
            kind = "csc"
            if "format" in names:
                kind = _text(np.load(path, allow_pickle=False)["format"])
            if kind in _READ and not {"data", "indices", "indptr", "shape"} <= names:
                raise Misuse(f"{path}: neither X nor data, indices, indptr, shape are in it")
            return _sparse(path, read, kind, part, parts), y
    except (zipfile.BadZipFile, EOFError, ValueError, OSError) as error:
        raise Misuse(f"{path}: not a readable .npz file: {error}") from None


def _member(archive: zipfile.ZipFile, name: str, start: int, end: int | None) -> NDArray[Any]:
    """Entries start … end of a stored array, without reading what follows."""
    with archive.open(f"{name}.npy") as file:
        shape, fortran, dtype = _header(file, name)
        count = int(np.prod(shape))
        if len(shape) == 1:
            count = (shape[0] if end is None else end) - start
            file.seek(start * dtype.itemsize, 1)
        out = _fill(file, name, count, dtype)
        return out if len(shape) == 1 else out.reshape(shape, order="F" if fortran else "C")


def _header(file: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, whether in Fortran order, dtype) of the array that a file begins with."""
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0
    if version >= (2, 0):
        header = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    return shape, fortran, dtype


def _fill(file: Any, name: str, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The next `count` items, in an array of their own: one over bytes would be read-only, which
    kernels compile anew for."""
    out = np.empty(count, dtype)
    raw = out.view(np.uint8)
    at = 0
    while at < len(raw):
        got = np.frombuffer(file.read(min(_READ_BYTES, len(raw) - at)), np.uint8)
        if len(got) == 0:
            raise ValueError(f"{name} is shorter than its header says")
        raw[at : at + len(got)] = got
        at += len(got)
    return out


def read_hdf5(path: Path, part: int, parts: int) -> tuple[SparsePart | DensePart, Floats | None]:
    """The same from an HDF5 file; `shape` may be a dataset or an attribute of the file."""
    import h5py  # not at the top: it costs every rank of every job a third of a second

    try:
        with h5py.File(path, "r") as file:
            y = _finite(path, "y", _array(path, file, "y")[()]) if "y" in file else None
            if "X" in file:
                shape = _array(path, file, "X").shape
                rows, total = _table(path, shape)
                edges = balance(np.full(total, rows, np.int64), parts)
                first, last = int(edges[part]), int(edges[part + 1])
                X = _finite(path, "X", file["X"][:, first:last], keep=True)
                return DensePart(total, first, np.asfortranarray(X)), y
            if not {"data", "indices", "indptr"} <= set(file):
                raise Misuse(f"{path}: neither X nor data, indices, indptr are in it")

            def read(name: str, start: int, end: int | None) -> NDArray[Any]:
                if name == "shape" and name not in file:
                    if name not in file.attrs:
                        raise ValueError("there is no shape in it")
                    return np.asarray(file.attrs[name])
                return np.asarray(_array(path, file, name)[start:end])

            kind = _text(file.attrs.get("format", "csc"))
            return _sparse(path, read, kind, part, parts), y
    except (OSError, KeyError, ValueError) as error:
        raise Misuse(f"{path}: not a readable HDF5 file: {error}") from None


def _sparse(path: Path, read: _Reader, kind: str, part: int, parts: int) -> SparsePart:
    if kind not in _READ:
        raise Misuse(f"{path}: a sparse matrix in {kind} form; store it as csc")
    rows, total = (int(size) for size in _whole(path, "shape", read("shape", 0, None)))
    indptr = _whole(path, "indptr", read("indptr", 0, None)).astype(np.int64)
    if kind == "csr":
        indices = _whole(path, "indices", read("indices", 0, None))
        values = _flat(path, "data", read("data", 0, None))
        _check_pointers(path, indptr, rows, "rows")
        _check_inside(path, "column", indices, total)
        if len(indices) < indptr[-1] or len(values) < indptr[-1]:
            raise Misuse(f"{path}: truncated: fewer entries than indptr says")
        csc = scipy.sparse.csr_matrix((values, indices, indptr), shape=(rows, total)).tocsc()
        indptr = csc.indptr.astype(np.int64)
        arrays = {"data": csc.data, "indices": csc.indices}

        def read(name: str, start: int, end: int | None) -> NDArray[Any]:
            return np.asarray(arrays[name][start:end])

    _check_pointers(path, indptr, total, "columns")
    edges = balance(np.diff(indptr), parts)
    first, last = int(edges[part]), int(edges[part + 1])
    start, end = int(indptr[first]), int(indptr[last])
    data = _finite(path, "data", _flat(path, "data", read("data", start, end)), keep=True)
    indices = _whole(path, "indices", read("indices", start, end))
    _check_inside(path, "row", indices, rows)
    if len(indices) != end - start or len(data) != end - start:
        raise Misuse(f"{path}: truncated: fewer entries than indptr says")
    own = indptr[first : last + 1] - start
    part_read = SparsePart(rows, total, first, own, indices.astype(np.int32, copy=False), data)
    return canonical(part_read)


def _array(path: Path, file: Any, name: str) -> Any:
    """An array of an HDF5 file. Raises Misuse where the name is a group's."""
    if not hasattr(file[name], "shape"):
        raise Misuse(
            f"{path}: {name} is a group, not an array; a sparse matrix is data, indices, indptr "
            "and shape at the top of the file"
        )
    return file[name]


def _table(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 2:
        raise Misuse(f"{path}: X must have two dimensions, not {len(shape)}")
    return shape[0], shape[1]


def _flat(path: Path, name: str, values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim != 1:
        raise Misuse(f"{path}: {name} must have one dimension, not {values.ndim}")
    return values


def _whole(path: Path, name: str, values: NDArray[Any]) -> NDArray[Any]:
    """`values` if they are a row of whole numbers, of a float type maybe."""
    _flat(path, name, values)
    whole = values.dtype.kind in "iu" or (
        values.dtype.kind == "f"
        and bool((values == np.floor(values)).all() and (np.abs(values) <= _WHOLE_MAX).all())
    )
    if not whole:
        raise Misuse(f"{path}: {name} holds what is not a whole number")
    return values


def _check_pointers(path: Path, indptr: Integers, count: int, kind: str) -> None:
    if len(indptr) != count + 1 or indptr[0] != 0 or (np.diff(indptr) < 0).any():
        form = {"rows": "csr", "columns": "csc"}[kind]
        raise Misuse(
            f"{path}: indptr does not fit {count} {kind} (`format` says {form}; without it, csc is "
            "read)"
        )


def _check_inside(path: Path, kind: str, numbers: NDArray[Any], count: int) -> None:
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= count):
        raise Misuse(f"{path}: a {kind} number is outside 0 … {count - 1}")


def _dense(path: Path, archive: zipfile.ZipFile, part: int, parts: int) -> DensePart:
    """This part's columns of X: read alone in Fortran order, cut out of rows in C order."""
    with archive.open("X.npy") as file:
        shape, fortran, dtype = _header(file, "X")
        rows, total = _table(path, shape)
        edges = balance(np.full(total, rows, np.int64), parts)
        first, last = int(edges[part]), int(edges[part + 1])
        if fortran:
            file.seek(first * rows * dtype.itemsize, 1)
            own = _fill(file, "X", rows * (last - first), dtype)
            own = own.reshape(rows, last - first, order="F")
        else:
            own = np.empty((rows, last - first), dtype, order="F")
            step = max(1, _READ_BYTES // max(1, total * dtype.itemsize))
            for start in range(0, rows, step):
                count = min(step, rows - start)
                chunk = _fill(file, "X", count * total, dtype).reshape(count, total)
                own[start : start + count] = chunk[:, first:last]
    return DensePart(total, first, np.asfortranarray(_finite(path, "X", own, keep=True)))


def read_vector(path: Path, kind: str) -> Floats:
    """y from .npy, .npz or HDF5 (under "y", or the only array there is)."""
    try:
        if kind == "npy":
            return _finite(path, "y", np.load(path, allow_pickle=False))
        if kind == "hdf5":
            import h5py

            with h5py.File(path, "r") as file:
                return _finite(path, "y", _array(path, file, _only(path, list(file)))[()])
        with np.load(path, allow_pickle=False) as archive:
            return _finite(path, "y", archive[_only(path, list(archive))])
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise Misuse(f"{path}: cannot be read: {error}") from None


def _only(path: Path, names: list[str]) -> str:
    if "y" in names:
        return "y"
    if len(names) == 1:
        return names[0]
    raise Misuse(f"{path}: no y among {', '.join(names) or 'nothing'}")


def _finite(path: Path, name: str, values: NDArray[Any], keep: bool = False) -> NDArray[Any]:
    """`values` as float64 (`keep`: float32 stays), one-dimensional where it is y."""
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        raise Misuse(f"{path}: {name} is not numbers")
    if np.iscomplexobj(values):
        raise Misuse(f"{path}: {name} is complex")
    kept = values.dtype in (np.float32, np.float64) and keep
    real = values if kept else values.astype(np.float64)
    if not np.isfinite(real).all():
        raise Misuse(f"{path}: NaN or infinity in {name}")
    return real.reshape(-1) if name == "y" else real


def _text(value: Any) -> str:
    plain = value.item() if isinstance(value, np.ndarray) else value
    return plain.decode() if isinstance(plain, bytes) else str(plain)
