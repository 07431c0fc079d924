"""Where the entries of matrix factorization come from: files or a plan, read by all workers.

Owns which worker reads what, and what is held out of training. Must not know how entries are
shared out or trained on.

Each worker parses a part of a text file, and the parts are exchanged. Nobody keeps what was
exchanged: a replacement, and everyone when somebody dies meanwhile, reads the whole file by
itself. Of pieces on the nodes' own disks (`--pieces`) each is parsed by the workers that see it,
and who cannot see all takes the copy in the memory of the node (`diml.jobs.mf_pieces`).
Invariant: the entries and their order are the same either way, on any number of workers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from diml.data.convert import Order
from diml.data.files import check_same_files, files_of
from diml.data.offsets import Offsets, read_offsets
from diml.data.planted import Planted, planted
from diml.data.triplets import Triplets, check_whole, read_triplets
from diml.errors import Misuse, Resumable
from diml.jobs import mf_pieces
from diml.jobs.mf_blocks import beside, given_blocks, made_blocks
from diml.jobs.mf_data import Entries, Ratings, joined
from diml.jobs.mf_stored import Stored
from diml.world import marker

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
        seed: of what is held out.
        offsetsfile: Petuum's offsets of `datafile`, or its block file.
        memory_bytes: resident memory of a process that entries may fill up: what is beyond stays
            on disk. None for no limit.
        pieces: how many files the data are in all, of which each node may hold its own: `datafile`
            then names those that a node holds. None: every node sees the same files.
    """

    datafile: str | None
    plan: Planted | None
    test: str | None = None
    test_fraction: float = 0.0
    format: str = "auto"
    one_based: bool = False
    seed: int = 0
    offsetsfile: str | None = None
    memory_bytes: int | None = None
    pieces: int | None = None


class _Matrix(NamedTuple):
    entries: Entries
    n_rows: int
    n_cols: int


def load(source: Source, crew: Crew | None = None) -> Ratings | Stored:
    """Read or generate ratings. The same on every rank. Raises Misuse for bad input.

    Args:
        crew: the workers that do this together; None reads alone.

    Raises Resumable where somebody died meanwhile and this process cannot see all pieces.
    """
    if crew is not None:
        shared = source.datafile if source.pieces is None else None
        check_same_files(crew, shared, source.test, source.offsetsfile)
    if source.plan is not None:
        if source.memory_bytes is not None or source.offsetsfile is not None:
            raise Misuse("--memory-limit and --offsetsfile go with --datafile")
        train, n_rows, n_cols = _narrow(planted(source.plan))
    elif source.pieces is not None:
        train, n_rows, n_cols = _read_pieces(source, source.pieces, crew)
    else:
        assert source.datafile is not None
        blocks = given_blocks(source.datafile, source.offsetsfile)
        if blocks is not None and source.test_fraction > 0:
            raise Misuse(f"{blocks.path}: hold out with `diml convert --test_fraction` already")
        offsets = None
        if blocks is None and source.offsetsfile is not None:
            offsets = read_offsets(source.offsetsfile)
        if blocks is None and source.memory_bytes is not None:
            blocks = made_blocks(_order(source, offsets, source.memory_bytes))
        if blocks is not None:
            held_out = None if source.test is None else _read_all(source.test, source, crew)
            return Stored(blocks, held_out, source.memory_bytes)
        train, n_rows, n_cols = _read_all(source.datafile, source, crew, offsets)
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


def _order(source: Source, offsets: Offsets | None, memory_bytes: int) -> Order:
    assert source.datafile is not None
    return beside(
        source.datafile,
        test_fraction=source.test_fraction,
        seed=source.seed,
        format=source.format,
        one_based=source.one_based,
        offsets=offsets,
        # Beside what the process is already, and the text that is parsed.
        memory_bytes=memory_bytes // 4,
    )


def _read_all(
    name: str, source: Source, crew: Crew | None, offsets: Offsets | None = None
) -> _Matrix:
    """All files of a name, one after the other."""
    paths = files_of(name)
    if offsets is not None and len(paths) != 1:
        raise Misuse(f"{offsets.path}: offsets go with one file, {name} is {len(paths)}")
    how = {**_how(source), "offsets": offsets}
    return _stacked([_read(path, how, crew) for path in paths])


def _how(source: Source) -> dict[str, Any]:
    """Arguments of `read_triplets`."""
    return {"one_based": source.one_based, "format": source.format, "most": _MOST}


def _stacked(read: list[_Matrix]) -> _Matrix:
    """The entries of several files, one file after the other."""
    if len(read) == 1:
        return read[0]
    rows, cols = max(one.n_rows for one in read), max(one.n_cols for one in read)
    return _Matrix(joined([one.entries for one in read]), rows, cols)


def _read_pieces(source: Source, pieces: int, crew: Crew | None) -> _Matrix:
    """All pieces by name, whoever sees them."""
    name = source.datafile
    assert name is not None
    if source.memory_bytes is not None or source.offsetsfile is not None:
        raise Misuse("--memory-limit and --offsetsfile take one file: leave out --pieces")
    folder = os.environ.get(marker.MEMORY)
    asked = name, pieces, source.one_based, source.format
    copy = mf_pieces.Copy(Path(folder) if folder else None, asked)
    if crew is not None and crew.size > 1:
        found = mf_pieces.survey(name, pieces, crew, bool(copy))
        if found is not None and not found.copied:
            read = [
                _read_together(one.path, _how(source), crew, one.readers) for one in found.pieces
            ]
            whole = [matrix for matrix in read if matrix is not None]
            if len(whole) == pieces:
                matrix = _stacked(whole)
                if found.scattered:
                    copy.keep(matrix.entries, (matrix.n_rows, matrix.n_cols))
                return matrix
    seen = mf_pieces.here(name)
    if len(seen) == pieces:
        return _stacked([_narrow(read_triplets(path, **_how(source))) for path in seen.values()])
    kept = copy.read()
    if kept is not None:
        return _Matrix(kept[0], *kept[1])
    where = f"{os.uname().nodename} has {', '.join(seen) or 'none'} of the {pieces} pieces"
    if crew is None or crew.size == 1:
        raise Misuse(f"{name}: {where}")
    raise Resumable(
        f"{name}: {where}, and no copy of the data in its memory (`diml run` keeps one): a worker "
        "that died cannot be replaced here; start the job again"
    )


def _read(path: str, how: dict[str, Any], crew: Crew | None) -> _Matrix:
    """One file; `how` are the arguments of `read_triplets`."""
    if crew is not None and crew.size > 1:
        together = _read_together(path, how, crew, range(crew.size))
        if together is not None:
            return together
    return _narrow(read_triplets(path, **how))


def _read_together(
    path: str, how: dict[str, Any], crew: Crew, readers: Sequence[int]
) -> _Matrix | None:
    """Each of the readers, ranks in order, reads a part; all get all.

    None where somebody died meanwhile. Raises Misuse on every worker alike, for the first bad
    line of the file.
    """
    wrong = b""
    mine = _Matrix(joined([]), 0, 0)
    promised = None
    try:
        if crew.rank in readers:
            read = read_triplets(path, readers.index(crew.rank), len(readers), **how)
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
    told = int(tolds[readers[0]])
    check_whole(path, int(counts.sum()), None if told < 0 else told)
    gathered = [crew.gather_once(array) for array in mine.entries]
    if any(array is None for array in gathered):
        return None
    rows, cols, values = gathered
    assert rows is not None and cols is not None and values is not None
    return _Matrix(Entries(rows, cols, values), int(n_rows.max()), int(n_cols.max()))


def _narrow(read: Triplets) -> _Matrix:
    entries = Entries(read.rows.astype(np.int32), read.cols.astype(np.int32), read.values)
    return _Matrix(entries, read.n_rows, read.n_cols)
