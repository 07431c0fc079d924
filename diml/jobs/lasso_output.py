"""What the Lasso job writes beside its coefficients: the path, and a line for each measurement.

Owns file formats; that of the coefficients is `lasso_model`'s. Files appear whole (written beside,
then renamed), except the log, which grows by a flushed line. Must not know how the Lasso is solved.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.data.written import refused, whole
from diml.strads.lasso_problem import Round, Solution

LOG_HEADER = "round,seconds,lambda,gap,objective,nonzeros,column_visits,bytes"


class Log:
    """One CSV line for each measurement. A replacement, or a resumed run, goes on with the file:
    what stands in it from its first round on is written anew, so each round stands once."""

    def __init__(self, path: Path, every: int = 1) -> None:
        self._path = path
        self._every = every
        self._open = False

    def __call__(self, line: Round) -> None:
        if not self._open:
            self._begin(line.round)
            self._open = True
        if line.round % self._every:
            return
        text = (
            f"{line.round},{line.seconds:.6f},{line.lam!r},{line.gap!r},{line.objective!r},"
            f"{line.nonzeros},{line.visits},{line.bytes}\n"
        )
        try:
            with self._path.open("a") as file:
                file.write(text)
        except OSError as error:
            raise refused(self._path, error) from None

    def _begin(self, first: int) -> None:
        kept = [LOG_HEADER]
        if first > 0 and self._path.exists():
            for line in self._path.read_text().splitlines()[1:]:
                number = line.partition(",")[0]
                if number.isdigit() and int(number) < first and line.count(",") == 7:
                    kept.append(line)
        write_whole(self._path, ("\n".join(kept) + "\n").encode())


def write_path(path: Path, answers: Sequence[Solution], count: int) -> None:
    """`.npz` with lambda, gap, kkt, objective, intercept, nonzeros (each (N,)) and the (p, N)
    coefficients as data, indices, indptr, shape, format of a CSC matrix."""
    coefs = {
        "data": np.concatenate([a.values for a in answers]),
        "indices": np.concatenate([a.ids for a in answers]),
        "indptr": np.concatenate([[0], np.cumsum([len(a.ids) for a in answers])]),
        "shape": np.array([count, len(answers)]),
        "format": np.array("csc"),
    }
    numbers = {
        "lambda": np.array([a.lam for a in answers]),
        "gap": np.array([a.gap for a in answers]),
        "kkt": np.array([a.kkt for a in answers]),
        "objective": np.array([a.objective for a in answers]),
        "intercept": np.array([a.intercept for a in answers]),
    }
    write_whole(path, _npz(coefs | numbers | {"nonzeros": np.diff(coefs["indptr"])}))


def write_cv(path: Path, lambdas: NDArray[np.float64], errors: NDArray[np.float64]) -> None:
    """`.npz` with lambda (N,) and errors (folds, N)."""
    write_whole(path, _npz({"lambda": lambdas, "errors": errors}))


def _npz(fields: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **fields)
    return buffer.getvalue()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file. Raises Misuse where it cannot be."""
    with whole(path) as (beside,):
        beside.write_bytes(content)
