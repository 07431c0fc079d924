"""`diml predict`: what a model says of data, whichever job has trained it.

Owns the command line, and the predictions of regressions; those of a factorization are
`diml.jobs.mf_predict`'s. Must not know how models are stored or trained.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diml.data.design import read_rows
from diml.data.design_text import Rows
from diml.data.files import files_of
from diml.errors import Misuse
from diml.jobs import mf_predict
from diml.jobs.command import Command
from diml.jobs.lasso_model import holds_coefficients, read_coefficients
from diml.jobs.logistic_model import (
    Floats,
    Model,
    auc,
    holds_model,
    log_loss,
    probabilities,
    read_model,
)

_ABOUT = "Write what a model says of data: of pairs for a factorization, of rows for a regression."


def main(arguments: Sequence[str]) -> int:
    """Predict; returns 0. Raises Misuse for bad flags and bad input."""
    parser = Command("predict", _ABOUT)
    mf_predict.common(parser, "PREFIX that a job wrote its model to, or its .npz or .h5 file")
    data = "factorization: lines `row col`, or `row col value`; regression: rows of libsvm, "
    data += "labelled or not, MatrixMarket, .npz or HDF5"
    parser.add_argument("data", metavar="DATA", help=data)
    flags = parser.parse_args(arguments)
    mf_predict.check_output(flags, flags.data)
    if holds_model(flags.model):
        return _score(flags, read_model(flags.model), True)
    if holds_coefficients(flags.model):
        return _score(flags, *read_coefficients(flags.model))
    return mf_predict.predict(flags)


def _score(flags: Namespace, model: Model, classes: bool) -> int:
    """Write a line for each row: the probability of the higher label, without classes x·w."""
    if flags.one_based or flags.format != "auto":
        raise Misuse("--format and --one_based are of factorizations: these data tell themselves")
    labels, margins, strange = [], [], 0
    wide = len(model.weights) - model.intercept
    with mf_predict.output(flags.output) as file:
        for path in files_of(flags.data):
            rows = _rows(Path(path), model, classes)
            found = model.margins(rows.indptr, rows.cols, rows.data)
            shown = probabilities(found) if classes else found
            file.writelines(f"{value:.9g}\n" for value in shown.tolist())
            labels.append(rows.labels)
            margins.append(found)
            strange = max(strange, int(rows.cols.max(initial=-1)) + 1)
    if strange > wide:
        text = f"columns beyond the {wide} of the training data count for nothing"
        print(f"diml predict: {text}", file=sys.stderr)
    _tell(model if classes else None, np.concatenate(labels), np.concatenate(margins))
    return 0


def _rows(path: Path, model: Model, classes: bool) -> Rows:
    if not path.is_file():
        raise Misuse(f"{path}: no such file")
    rows = read_rows(path, len(model.weights) - model.intercept, model.base)
    told = rows.labels[~np.isnan(rows.labels)]
    foreign = told[~np.isin(told, model.labels)]
    if classes and len(foreign):
        low, high = model.labels
        raise Misuse(f"{path}: label {foreign[0]:g}; the model was trained on {low:g} and {high:g}")
    return rows


def _tell(model: Model | None, labels: Floats, margins: Floats) -> None:
    """How good the predictions are over the rows that have a label, of a model of classes or not:
    AUC and log-loss, or RMSE and R²."""
    told = ~np.isnan(labels)
    if not told.any():
        return
    labels, margins = labels[told], margins[told]
    if model is not None:
        y = (labels == model.labels[1]).astype(np.float64)
        text = f"AUC {auc(y, margins):.6f}, log-loss {log_loss(y, margins):.6f}"
    else:
        squares, spread = np.sum((labels - margins) ** 2), np.sum((labels - labels.mean()) ** 2)
        text = f"RMSE {(squares / len(labels)) ** 0.5:.6g}"
        text += f", R² {1 - squares / spread:.6f}" if spread else ""
    print(f"{text} over {len(labels):,} labelled rows", file=sys.stderr)
