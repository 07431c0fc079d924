"""`diml predict`: what a model says of data, whichever job has trained it.

Owns the command line, and the predictions of logistic regression; those of a factorization are
`diml.jobs.mf_predict`'s. Must not know how models are stored or trained.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diml.data.design_text import Rows, read_libsvm_rows
from diml.data.files import files_of
from diml.errors import Misuse
from diml.jobs import mf_predict
from diml.jobs.command import Command
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
    data = "factorization: lines `row col`, or `row col value`; regression: libsvm, labelled or not"
    parser.add_argument("data", metavar="DATA", help=data)
    flags = parser.parse_args(arguments)
    mf_predict.check_output(flags, flags.data)
    if holds_model(flags.model):
        return _classify(flags)
    return mf_predict.predict(flags)


def _classify(flags: Namespace) -> int:
    """Write the probability of the higher label, a line for each row."""
    if flags.one_based or flags.format != "auto":
        raise Misuse("--format and --one_based are of factorizations: the data are libsvm here")
    model = read_model(flags.model)
    labels, margins, strange = [], [], 0
    with mf_predict.output(flags.output) as file:
        for path in files_of(flags.data):
            rows = _rows(Path(path), model)
            found = model.margins(rows.indptr, rows.cols, rows.data)
            file.writelines(f"{p:.9g}\n" for p in probabilities(found).tolist())
            labels.append(rows.labels)
            margins.append(found)
            strange = max(strange, int(rows.cols.max(initial=-1)) + 1)
    wide = len(model.weights) - model.intercept
    if strange > wide:
        text = f"columns beyond the {wide} of the training data count for nothing"
        print(f"diml predict: {text}", file=sys.stderr)
    _tell(model, np.concatenate(labels), np.concatenate(margins))
    return 0


def _rows(path: Path, model: Model) -> Rows:
    if not path.is_file():
        raise Misuse(f"{path}: no such file")
    rows = read_libsvm_rows(path, model.base, bare=True)
    told = rows.labels[~np.isnan(rows.labels)]
    foreign = told[~np.isin(told, model.labels)]
    if len(foreign):
        low, high = model.labels
        raise Misuse(f"{path}: label {foreign[0]:g}; the model was trained on {low:g} and {high:g}")
    return rows


def _tell(model: Model, labels: Floats, margins: Floats) -> None:
    """AUC and log-loss over the rows that have a label."""
    told = ~np.isnan(labels)
    if not told.any():
        return
    y = (labels[told] == model.labels[1]).astype(np.float64)
    text = f"AUC {auc(y, margins[told]):.6f}, log-loss {log_loss(y, margins[told]):.6f}"
    print(f"{text} over {len(y):,} labelled rows", file=sys.stderr)
