"""The coefficients that the Lasso job found: their files, written and read.

Owns the formats and which name means which:

    NAME.npz     arrays coef (p,), intercept, gap, kkt, lambda, base, labels (none or two)
    other names  a 1 × p MatrixMarket matrix; the rest stands in its comments, a word and a value

base is the number of the first column in the training file, labels are the two classes of the
logistic loss. Must not know how the Lasso is solved. Invariants: a file appears whole; what is read
is a finite vector, or Misuse names the file.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from diml.data.design_part import SparsePart
from diml.data.design_text import read_matrixmarket
from diml.errors import Misuse
from diml.jobs.lasso_output import write_whole
from diml.jobs.logistic_model import Model
from diml.strads.lasso_problem import Solution

_BANNER = b"%%MatrixMarket"
Labels = tuple[float, float]


def write_coefficients(
    path: Path, answer: Solution, count: int, base: int = 1, labels: Labels | None = None
) -> None:
    """Write the coefficients of `count` columns; `labels`: of the logistic loss."""
    facts: dict[str, Any] = {
        "intercept": float(answer.intercept),
        "lambda": float(answer.lam),
        "gap": float(answer.gap),
        "kkt": float(answer.kkt),
    }
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        fields: dict[str, Any] = {"coef": answer.dense(count), "base": base, "labels": labels or ()}
        np.savez(buffer, **fields, **facts)
    else:
        lines = [f"{name} {value!r}" for name, value in {**facts, "base": base}.items()]
        lines += [] if labels is None else ["labels {!r} {!r}".format(*labels)]
        places = np.zeros(len(answer.ids), np.int64), answer.ids
        row = scipy.sparse.coo_matrix((answer.values, places), shape=(1, count))
        scipy.io.mmwrite(buffer, row, comment="\n".join(lines), precision=17)
    write_whole(path, buffer.getvalue())


def holds_coefficients(name: str) -> bool:
    """Whether this file is one of coefficients."""
    try:
        with open(name, "rb") as file:
            text = file.read(len(_BANNER)) == _BANNER
        if text:
            return True
        with zipfile.ZipFile(name) as held:
            return "coef.npy" in held.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def read_coefficients(name: str) -> tuple[Model, bool]:
    """The model, its intercept the last weight, and whether it has classes (the logistic loss).

    Raises Misuse, naming the file, where there is none or it is damaged.
    """
    try:
        with open(name, "rb") as file:
            text = file.read(len(_BANNER)) == _BANNER
        found = _read_text(name) if text else _read_npz(name)
        labels = tuple(float(label) for label in found["labels"])
        weights = np.append(np.ravel(found["coef"]), found["intercept"]).astype(np.float64)
        base = int(found["base"])
    except OSError as error:
        raise Misuse(f"{name}: cannot read it: {error.strerror or error}") from None
    except Misuse:
        raise
    except Exception:  # what a damaged archive raises is not said by its libraries
        raise Misuse(f"{name}: damaged, or not the coefficients of the Lasso job") from None
    if not np.isfinite(weights).all() or len(labels) not in (0, 2) or base not in (0, 1):
        raise Misuse(f"{name}: damaged: a number in it cannot be")
    classes = (labels[0], labels[1]) if labels else (0.0, 1.0)
    return Model(weights, True, classes, base), bool(labels)


def _read_npz(name: str) -> dict[str, Any]:
    with open(name, "rb") as raw, np.load(raw, allow_pickle=False) as file:
        return {key: file[key] for key in ("coef", "intercept", "base", "labels")}


def _read_text(name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"labels": ()}
    lines = Path(name).read_text("ascii").splitlines(keepends=True)
    if not lines[-1].endswith("\n"):
        # A number that lost its last digits is another number.
        raise Misuse(f"{name}: cut off: its last line has no end")
    for line in lines:
        if line[0] == "%":
            word, *values = line[1:].split()
            if word == "labels":
                found[word] = values
            elif word in ("intercept", "base"):
                (found[word],) = map(float, values)
    # Not SciPy's reader: a file that is cut off can take it down with the process.
    row = read_matrixmarket(Path(name), 0, 1)
    if not isinstance(row, SparsePart) or row.rows != 1:
        raise Misuse(f"{name}: not one row of coefficients")
    coef = np.zeros(row.total)
    coef[np.repeat(np.arange(row.total), np.diff(row.indptr))] = row.data
    return {**found, "coef": coef}
