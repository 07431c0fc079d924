"""Files of a factorization: Petuum's text, NumPy's .npz, HDF5; one writer, one reader.

Owns the formats and which suffix means which. Must not know how the factors came about: the value
of the model at (i, j) is L_i . R_j, whatever the columns of L and R stand for.

    PREFIX.L, PREFIX.R   text: a line for each row, numbers of 6 digits with spaces between
    NAME.npz             arrays L and R, float32
    NAME.h5, NAME.hdf5   datasets L and R, float32

Invariants: files are whole or absent, and L goes with R (both are written beside their places, then
renamed); what is read is two
finite matrices of one width, or Misuse names the file (and the line). A text that was cut off in a
line is noticed by its end, HDF5 whose bytes have changed by a checksum.
"""

from __future__ import annotations

import os
import warnings
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diml.data.written import Hdf5, whole
from diml.errors import Misuse

Chunks = Iterable[npt.NDArray[Any]]
_HDF5 = (".h5", ".hdf5")
_HDF5_ROWS = 4096  # that have one checksum
_BAD_NPZ = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


@dataclass(frozen=True)
class Factors:
    """A model: left (rows, k) and right (columns, k), float32."""

    left: npt.NDArray[np.float32]
    right: npt.NDArray[np.float32]


def factor_files(name: str) -> list[Path]:
    """The files that a model of this name has."""
    if Path(name).suffix in (".npz", *_HDF5):
        return [Path(name)]
    return [Path(f"{name}.{side}") for side in "LR"]


def write_factors(name: str, left: Chunks, right: Chunks) -> None:
    """Write a model; what the name means is said above. Raises Misuse where it cannot be.

    Args:
        left, right: arrays (rows, k), one after the other.
    """
    paths = factor_files(name)
    with whole(*paths) as beside:
        if paths[0].suffix == ".npz":
            with open(beside[0], "wb") as file:
                np.savez(file, L=_whole(left), R=_whole(right))
        elif paths[0].suffix in _HDF5:
            with Hdf5(beside[0]) as held:
                for side, chunks in (("L", left), ("R", right)):
                    _append(held, side, chunks)
        else:
            for path, chunks in zip(beside, (left, right), strict=True):
                _write_text(path, chunks)


def read_factors(name: str) -> Factors:
    """Read a model. Raises Misuse, naming the file, where there is none or it is damaged."""
    suffix = Path(name).suffix
    if suffix in _HDF5:
        left, right = _read_hdf5(Path(name))
    elif suffix == ".npz":
        left, right = _read_npz(Path(name))
    else:
        left, right = (_read_text(path) for path in factor_files(name))
    for side, factor in (("L", left), ("R", right)):
        if factor.ndim != 2 or not factor.size or factor.dtype.kind not in "fiu":
            raise Misuse(f"{name}: {side} is not a matrix of numbers")
        bad = ~(np.abs(factor) <= np.finfo(np.float32).max).all(axis=1)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise Misuse(f"{name}: row {row} of {side} has a number that is not finite in float32")
    if left.shape[1] != right.shape[1]:
        raise Misuse(
            f"{name}: L has {left.shape[1]} columns, R has {right.shape[1]}: not of one model"
        )
    return Factors(left.astype(np.float32), right.astype(np.float32))


def _whole(chunks: Chunks) -> npt.NDArray[np.float32]:
    return np.concatenate([np.asarray(chunk, np.float32) for chunk in chunks])


def _append(held: Hdf5, side: str, chunks: Chunks) -> None:
    """Write chunks into a dataset that grows with them."""
    made = None
    for chunk in chunks:
        k = chunk.shape[1]
        held.make_room(4 * k * (len(chunk) + 2 * _HDF5_ROWS))
        if made is None:
            shape: dict[str, Any] = {"maxshape": (None, k), "chunks": (_HDF5_ROWS, k)}
            made = held.file.create_dataset(side, (0, k), "<f4", fletcher32=True, **shape)
        first = len(made)
        made.resize(first + len(chunk), axis=0)
        made[first:] = chunk


def _write_text(path: Path, chunks: Chunks) -> None:
    with open(path, "w", encoding="ascii") as file:
        for chunk in chunks:
            line = " ".join(["%.6g"] * chunk.shape[1]) + "\n"
            file.writelines(line % tuple(row) for row in chunk.tolist())


def _read_text(path: Path) -> npt.NDArray[Any]:
    try:
        with open(path, "rb") as whole:
            if whole.seek(0, os.SEEK_END):
                whole.seek(-1, os.SEEK_END)
                if whole.read() != b"\n":
                    # A number that lost its last digits is another number.
                    raise Misuse(f"{path}: cut off: its last line has no end")
        with open(path, encoding="ascii") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty file: the matrix will be refused
            rows = np.loadtxt(file, np.float32, comments=None, ndmin=2)
    except OSError as error:
        raise Misuse(f"{path}: cannot read it: {error.strerror or error}") from None
    except ValueError:
        raise Misuse(_first_bad_line(path)) from None
    return rows


def _first_bad_line(path: Path) -> str:
    """What is wrong with a text that NumPy cannot read, by its line."""
    width = None
    with open(path, encoding="ascii", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            fields = line.split()
            try:
                for field in fields:
                    float(field)
            except ValueError:
                return f"{path}, line {number}: not numbers with spaces between"
            if fields and width not in (None, len(fields)):
                return f"{path}, line {number}: {len(fields)} numbers, {width} before"
            width = len(fields) or width
    return f"{path}: not a matrix of numbers"


def _read_npz(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return file["L"], file["R"]
    except OSError as error:
        raise Misuse(f"{path}: cannot read it: {error.strerror or error}") from None
    except (*_BAD_NPZ, ValueError, KeyError, TypeError, AttributeError):
        raise Misuse(f"{path}: damaged, or without arrays L and R") from None


def _read_hdf5(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    import h5py

    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise Misuse(f"{path}: cannot read it: {error.strerror or error}") from None
    try:
        with h5py.File(path, "r", locking=False) as file:
            return file["L"][()], file["R"][()]
    except (OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError):
        raise Misuse(f"{path}: damaged, or without datasets L and R") from None
