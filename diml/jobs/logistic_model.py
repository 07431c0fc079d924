"""A trained logistic regression: its files, its probabilities, and how good they are.

Owns the formats and which suffix means which, and the two measures, AUC and log-loss. Must not
know how the weights came about.

    PREFIX.w             text: a first line of facts behind a `#`, then a weight a line (9 digits)
    NAME.npz             arrays weights (d,), intercept, labels (2,), base; float64 and bool
    NAME.h5, NAME.hdf5   datasets of the same names

The facts: how many weights there are, the two labels of the training file (the higher one is what
the probability is of), the number of its first column, and whether the last weight is the
intercept.

Invariants: a file is whole or absent (written beside its place, then renamed); what is read is a
finite vector, or Misuse names the file (and the line). A text that was cut off is noticed by the
count and by its end, HDF5 whose bytes have changed by a checksum.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.data.written import Hdf5, whole
from diml.errors import Misuse

Floats = NDArray[np.float64]
HDF5 = (".h5", ".hdf5")
_NAMES = ("weights", "intercept", "labels", "base")
_FACTS = re.compile(
    r"# logistic: (\d+) weights, labels (\S+) (\S+), columns from ([01]), (no )?intercept\n"
)


@dataclass(frozen=True, slots=True)
class Model:
    """P(label = labels[1]) = 1 / (1 + exp(-x·w)).

    Attributes:
        weights: float64 (d,); with `intercept` the last one is the constant term.
        labels: the lower and the higher label of the training file.
        base: the number of the first column in the training file, 0 or 1.
    """

    weights: Floats
    intercept: bool = False
    labels: tuple[float, float] = (0.0, 1.0)
    base: int = 1

    def margins(self, indptr: NDArray[Any], cols: NDArray[Any], data: Floats) -> Floats:
        """x·w of CSR rows, float64 (n,); columns beyond the model's count as never seen."""
        wide = len(self.weights) - self.intercept
        known = cols < wide
        terms = np.zeros(len(cols) + 1)
        terms[:-1][known] = data[known] * self.weights[cols[known]]
        # A sum for each row on its own: differences of running sums would lose digits.
        sums = np.add.reduceat(terms, indptr[:-1])
        sums[np.diff(indptr) == 0] = 0.0
        return sums + self.weights[-1] if self.intercept else sums


def probabilities(margins: Floats) -> Floats:
    """1 / (1 + exp(-z)) without overflow, float64 (n,)."""
    small = np.exp(-np.abs(margins))
    return np.where(margins >= 0, 1.0, small) / (1.0 + small)


def log_loss(y: Floats, margins: Floats) -> float:
    """Mean of log(1 + e^z) - y z, y 0 or 1: minus the mean log-likelihood."""
    return float(np.mean(np.logaddexp(0.0, margins) - y * margins))


def auc(y: Floats, scores: Floats) -> float:
    """Area under the ROC curve: how often a 1 scores above a 0, ties counting half.

    Mann and Whitney's statistic from mid-ranks. NaN where y, float64 (n,), has one value only.
    """
    ones = float(np.count_nonzero(y > 0.5))
    zeros = len(y) - ones
    if not ones or not zeros:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2.0
    above = float(midranks[place][y > 0.5].sum()) - ones * (ones + 1) / 2.0
    return above / (ones * zeros)


def model_file(name: str) -> Path:
    """The file of the model of this name."""
    return Path(name if Path(name).suffix in (".npz", *HDF5) else f"{name}.w")


def write_model(name: str, model: Model) -> None:
    """Write a model; what the name means is said above. Raises Misuse where it cannot be."""
    path = model_file(name)
    parts = {key: np.asarray(getattr(model, key)) for key in _NAMES}
    with whole(path) as (beside,):
        if path.suffix == ".npz":
            with open(beside, "wb") as file:
                np.savez(file, **parts)  # type: ignore[arg-type]  # its stub takes no dict of arrays
        elif path.suffix in HDF5:
            with Hdf5(beside) as held:
                for key, value in parts.items():
                    check = {"fletcher32": True} if value.ndim else {}
                    held.make_room(value.nbytes)
                    held.file.create_dataset(key, data=value, **check)
        else:
            low, high = model.labels
            words = f"{len(model.weights)} weights, labels {low!r} {high!r}"
            words += f", columns from {model.base}"
            last = "intercept" if model.intercept else "no intercept"
            with open(beside, "w", encoding="ascii") as text:
                text.write(f"# logistic: {words}, {last}\n")
                np.savetxt(text, model.weights, "%.9g")


def holds_model(name: str) -> bool:
    """Whether the files of this name are those of a logistic regression."""
    path = model_file(name)
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as held:
                return "weights.npy" in held.namelist()
        if path.suffix in HDF5:
            import h5py

            with h5py.File(path, "r", locking=False) as file:
                return "weights" in file
    except (OSError, zipfile.BadZipFile):
        return False
    return path.is_file()


def read_model(name: str) -> Model:
    """Read a model. Raises Misuse, naming the file, where there is none or it is damaged."""
    path = model_file(name)
    readers: dict[str, Callable[[Path], Model]] = {".npz": _read_npz, ".w": _read_text}
    try:
        model = readers.get(path.suffix, _read_hdf5)(path)
    except Misuse:
        raise
    except OSError as error:
        raise Misuse(f"{path}: cannot read it: {error.strerror or error}") from None
    except Exception:  # what a damaged archive raises is not said by its libraries
        raise Misuse(f"{path}: damaged, or no model of logistic regression") from None
    if model.weights.ndim != 1 or len(model.weights) <= model.intercept:
        raise Misuse(f"{path}: holds no weights")
    if not np.isfinite(model.weights).all():
        raise Misuse(f"{path}: a weight is not finite")
    return model


def _read_text(path: Path) -> Model:
    with open(path, encoding="ascii", errors="replace") as file:
        facts = _FACTS.fullmatch(file.readline())
        if facts is None:
            raise Misuse(f"{path}, line 1: not the facts of a model of logistic regression")
        weights, line = [], "\n"
        for number, line in enumerate(file, start=2):
            try:
                weights.append(float(line))
            except ValueError:
                raise Misuse(f"{path}, line {number}: not a number") from None
    if len(weights) != int(facts[1]) or not line.endswith("\n"):
        raise Misuse(f"{path}: cut off: {len(weights)} weights of {facts[1]}")
    labels = float(facts[2]), float(facts[3])
    return Model(np.array(weights), facts[5] is None, labels, int(facts[4]))


def _read_npz(path: Path) -> Model:
    with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
        return _model(*(file[key] for key in _NAMES))


def _read_hdf5(path: Path) -> Model:
    import h5py

    with open(path, "rb"):
        pass  # says what is wrong in the system's words, where it cannot be opened at all
    with h5py.File(path, "r", locking=False) as file:
        return _model(*(file[key][()] for key in _NAMES))


def _model(weights: Any, intercept: Any, labels: Any, base: Any) -> Model:
    low, high = (float(label) for label in labels)
    return Model(np.asarray(weights, np.float64), bool(intercept), (low, high), int(base))
