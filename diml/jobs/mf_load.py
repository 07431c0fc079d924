"""Where the entries of matrix factorization come from: files or a plan, read by all workers.

Owns which worker reads what, and what is held out of training. Must not know how entries are
shared out or trained on.

Each worker parses a part of a text file, and the parts are exchanged. Nobody keeps what was
exchanged: a replacement, and everyone when somebody dies meanwhile, reads the whole file by
itself. Invariant: the entries and their order are the same either way, on any number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from diml.data.files import files_of
from diml.data.planted import Planted, planted
from diml.data.triplets import Triplets, check_whole, read_triplets
from diml.errors import Misuse
from diml.jobs.mf_data import Entries, Ratings, joined

# Ids are int32 in memory.
_MOST = 2**31 - 1


class Crew(Protocol):
    """The workers that read together (`diml.job.Job`)."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def gather_once(self, array: npt.NDArray[Any]) -> npt.NDArray[Any] | None: ...


@dataclass(frozen=True)
class Source:
    """Where ratings come from, and what is held out of training.

    Attributes:
        datafile: a file, a directory of files, or a pattern (`part-*.txt`) of several.
        plan: what to generate instead.
        test: held-out entries, named in the same way.
        test_fraction: hold out this share of the entries of `datafile`.
        format, one_based: as `read_triplets` takes them.
    """

    datafile: str | None
    plan: Planted | None
    test: str | None = None
    test_fraction: float = 0.0
    format: str = "auto"
    one_based: bool = False
    seed: int = 0


class _Matrix(NamedTuple):
    entries: Entries
    n_rows: int
    n_cols: int


def load(source: Source, crew: Crew | None = None) -> Ratings:
    """Read or generate ratings. The same on every rank. Raises Misuse for bad input.

    Args:
        crew: the workers that do this together; None reads alone.
    """
    if source.plan is not None:
        known = _narrow(planted(source.plan))
    else:
        assert source.datafile is not None
        known = _read_all(source.datafile, source, crew)
    train, n_rows, n_cols = known
    test = joined([])
    if source.test is not None:
        held_out = _read_all(source.test, source, crew)
        test = held_out.entries
        n_rows, n_cols = max(n_rows, held_out.n_rows), max(n_cols, held_out.n_cols)
    if source.test_fraction > 0:
        random = np.random.Generator(np.random.Philox(key=[source.seed % 2**64, 1]))
        chosen = random.random(len(train.values)) < source.test_fraction
        train, test = train.take(~chosen), train.take(chosen)
    if not len(train.values):
        raise Misuse("no entry is left to train on: lower --test_fraction")
    return Ratings(train, test, n_rows, n_cols, source.plan.noise if source.plan else None)


def _read_all(name: str, source: Source, crew: Crew | None) -> _Matrix:
    """All files of a name, one after the other."""
    read = [_read(path, source, crew) for path in files_of(name)]
    if len(read) == 1:
        return read[0]
    rows, cols = max(one.n_rows for one in read), max(one.n_cols for one in read)
    return _Matrix(joined([one.entries for one in read]), rows, cols)


def _read(path: str, source: Source, crew: Crew | None) -> _Matrix:
    if crew is not None and crew.size > 1:
        together = _read_together(path, source, crew)
        if together is not None:
            return together
    return _narrow(
        read_triplets(path, one_based=source.one_based, format=source.format, most=_MOST)
    )


def _read_together(path: str, source: Source, crew: Crew) -> _Matrix | None:
    """Each worker reads a part, all get all. None where somebody died meanwhile.

    Raises Misuse on every worker alike, for the first bad line of the file.
    """
    wrong = b""
    mine = _Matrix(joined([]), 0, 0)
    promised = None
    try:
        read = read_triplets(
            path,
            crew.rank,
            crew.size,
            one_based=source.one_based,
            format=source.format,
            most=_MOST,
        )
        mine, promised = _narrow(read), read.promised
    except Misuse as error:
        wrong = str(error).encode()
    told = -1 if promised is None else min(promised, 2**62)
    head = np.array([len(mine.entries.values), mine.n_rows, mine.n_cols, told, len(wrong)])
    heads = crew.gather_once(head.astype(np.int64))
    wrongs = crew.gather_once(np.frombuffer(wrong, np.uint8))
    if heads is None or wrongs is None:
        return None
    counts, n_rows, n_cols, tolds, lengths = heads.reshape(crew.size, -1).T
    if lengths.any():
        first = int(lengths[np.flatnonzero(lengths)[0]])
        raise Misuse(wrongs[:first].tobytes().decode())
    check_whole(path, int(counts.sum()), None if tolds[0] < 0 else int(tolds[0]))
    gathered = [crew.gather_once(array) for array in mine.entries]
    if any(array is None for array in gathered):
        return None
    rows, cols, values = gathered
    assert rows is not None and cols is not None and values is not None
    return _Matrix(Entries(rows, cols, values), int(n_rows.max()), int(n_cols.max()))


def _narrow(read: Triplets) -> _Matrix:
    entries = Entries(read.rows.astype(np.int32), read.cols.astype(np.int32), read.values)
    return _Matrix(entries, read.n_rows, read.n_cols)
