"""`diml predict` and `diml recommend`: what a finished factorization says.

Owns the scores of pairs, the order of recommendations and the command line of the latter. Must not
know how models are trained or stored (`diml.jobs.mf_files`).
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from diml.data.blockfile import BlockFile, is_block_file
from diml.data.files import files_of
from diml.data.outputs import check_apart
from diml.data.stream import Part, Stream
from diml.data.triplets import FORMATS, Within, read_triplets
from diml.data.written import whole
from diml.errors import Misuse
from diml.jobs.command import Command
from diml.jobs.flags import at_least
from diml.jobs.mf_files import Factors, read_factors

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]
_AT_ONCE = 1 << 16


def values_at(factors: Factors, rows: Ids, cols: Ids) -> Scores:
    """The model's values L_i . R_j at pairs of ids: float64 (n,)."""
    values = np.empty(len(rows))
    for low in range(0, len(rows), _AT_ONCE):
        part = slice(low, low + _AT_ONCE)
        left, right = factors.left[rows[part]], factors.right[cols[part]]
        values[part] = np.einsum("nk,nk->n", left, right, dtype=np.float64)
    return values


def best(factors: Factors, row: int, count: int, known: Ids) -> tuple[Ids, Scores]:
    """The columns with the highest values in a row, and these values; equal ones by rising id.

    Args:
        known: columns that are left out.
    """
    scores = factors.right.astype(np.float64) @ factors.left[row].astype(np.float64)
    open_ids = np.setdiff1d(np.arange(len(scores)), known, assume_unique=False)
    candidates = scores[open_ids]
    if count < len(candidates):
        # All that are as good as the last one stay, so that ties are broken by id alone.
        bar = np.partition(candidates, len(candidates) - count)[len(candidates) - count]
        open_ids = open_ids[candidates >= bar]
    order = np.lexsort((open_ids, -scores[open_ids]))[:count]
    return open_ids[order], scores[open_ids[order]]


def predict(flags: Namespace) -> int:
    """Score the pairs of a file; returns 0. Raises Misuse for bad input."""
    factors = read_factors(flags.model)
    within = Within(len(factors.left), len(factors.right), flags.model)
    squares, count, first = 0.0, 0, int(flags.one_based)
    with output(flags.output) as file:
        for path in files_of(flags.data):
            read = read_triplets(
                path, one_based=flags.one_based, format=flags.format, within=within
            )
            found = values_at(factors, read.rows, read.cols)
            file.writelines(
                f"{i + first} {j + first} {v:.6g}\n"
                for i, j, v in zip(
                    read.rows.tolist(), read.cols.tolist(), found.tolist(), strict=True
                )
            )
            told = ~np.isnan(read.values)
            squares += float(np.sum((found - read.values)[told] ** 2))
            count += int(told.sum())
    if count:
        print(f"RMSE {(squares / count) ** 0.5:.6g} over {count:,} values", file=sys.stderr)
    return 0


def recommend(arguments: Sequence[str]) -> int:
    """Print the best columns of rows; returns 0. Raises Misuse for bad flags and bad input."""
    parser = Command("recommend", "Print the columns that a factorization values most in a row.")
    common(parser, "PREFIX of PREFIX.L and PREFIX.R, or a .npz or .h5 file")
    rows = "a row; repeatable (default: all rows)"
    parser.add_argument("--row", type=at_least(0), action="append", metavar="ID", help=rows)
    parser.add_argument("--top", type=at_least(1), default=10, help="how many (default 10)")
    known = "leave out the columns that a row has in this file (the data it was trained on)"
    parser.add_argument("--datafile", metavar="FILE", help=known)
    flags = parser.parse_args(arguments)
    check_output(flags, flags.datafile)
    factors = read_factors(flags.model)
    within = Within(len(factors.left), len(factors.right), flags.model)
    first = int(flags.one_based)
    wanted = range(within.n_rows) if flags.row is None else [row - first for row in flags.row]
    for row in wanted:
        if not 0 <= row < within.n_rows:
            last = within.n_rows - 1 + first
            raise Misuse(f"--row {row + first}: {flags.model} has rows {first}..{last}")
    known_rows, known_cols = np.empty(0, np.int64), np.empty(0, np.int64)
    if flags.datafile is not None:
        known_rows, known_cols = _known(flags.datafile, flags.format, flags.one_based, within)
    order = np.argsort(known_rows, kind="stable")
    known_rows, known_cols = known_rows[order], known_cols[order]
    with output(flags.output) as file:
        for row in wanted:
            low, high = np.searchsorted(known_rows, (row, row + 1))
            cols, scores = best(factors, row, flags.top, known_cols[low:high])
            file.writelines(
                f"{row + first} {col + first} {score:.6g}\n"
                for col, score in zip(cols.tolist(), scores.tolist(), strict=True)
            )
    return 0


def check_output(flags: Namespace, data: str | None) -> None:
    """Raises Misuse where the output would take the place of the model or of the data."""
    model = [flags.model, *(f"{flags.model}.{end}" for end in ("L", "R", "w"))]
    check_apart((flags.output,), (*model, data))


def common(parser: Command, model: str) -> None:
    """The flags that both commands have; `model` is the help of their first word."""
    parser.add_argument("model", metavar="MODEL", help=model)
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="(default: stdout)")
    parser.add_argument("--format", choices=FORMATS, default="auto", help="(default auto)")
    parser.add_argument("--one_based", action="store_true", help="ids begin at 1")


def _known(name: str, format: str, one_based: bool, within: Within) -> tuple[Ids, Ids]:
    """Rows and columns of all entries of a data file, held-out ones of a block file too."""
    if is_block_file(name):
        file = BlockFile(name)
        if file.facts.n_rows > within.n_rows or file.facts.n_cols > within.n_cols:
            raise Misuse(f"{name}: not the data of {within.name}, which is smaller")
        whole = Part((0, file.facts.row_groups), (0, file.facts.col_groups))
        places = [(file.read("test_rows"), file.read("test_cols"))]
        for rows, cols, _ in Stream(file).pieces(whole, check=True):
            places.append((rows.copy(), cols.copy()))
        all_rows, all_cols = map(np.concatenate, zip(*places, strict=True))
        return file.read("row_ids")[all_rows], file.read("col_ids")[all_cols]
    read = [
        read_triplets(path, one_based=one_based, format=format, within=within)
        for path in files_of(name)
    ]
    return np.concatenate([one.rows for one in read]), np.concatenate([one.cols for one in read])


@contextmanager
def output(path: Path | None) -> Iterator[TextIO]:
    """The file, whole or not at all, or stdout."""
    if path is None:
        yield sys.stdout
        return
    with whole(path) as (beside,), open(beside, "w", encoding="ascii") as file:
        yield file
