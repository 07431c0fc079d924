"""k-means on Allreduce: Lloyd's iterations from a k-means++ start, on dense or sparse rows.

    mpirun -n 4 python -m diml.jobs.kmeans --datafile points.npy --k 10 --output out/points

Every worker holds a range of rows; the centres are the model, one checkpoint an iteration. A
worker that is brought back needs nothing but them. Objective: Σ_i min_c |x_i − c|². A centre that
loses all its rows stays where it is. Start: Arthur and Vassilvitskii, k-means++ (SODA 2007).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diml.data import fingerprint
from diml.data.files import check_same_files
from diml.data.outputs import check_writable
from diml.data.written import whole
from diml.errors import Misuse
from diml.jobs.account import Account
from diml.jobs.flags import JobParser, at_least, check_files, job_parser, parse, real, run_job
from diml.report.progress import Progress

if TYPE_CHECKING:
    from diml.job import Job

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """The rows of one worker: dense (n, d), or CSR arrays with d columns.

    Attributes:
        dense: the rows, or None.
        sparse: (indptr, indices, data), or None.
        count, columns: n and d.
        total: rows of all workers.
        first: number of the first row.
    """

    dense: NDArray[np.floating[Any]] | None
    sparse: tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.floating[Any]]] | None
    count: int
    columns: int
    total: int
    first: int

    def fingerprint(self) -> int:
        """Of these rows (see `diml.data.fingerprint`)."""
        if self.dense is not None:
            return fingerprint.of_dense(self.dense, self.first)
        assert self.sparse is not None
        return fingerprint.of_csr(*self.sparse, self.first)

    def check_size(self, name: str) -> None:
        """Raises Misuse where distances between these rows are beyond the numbers there are."""
        values = self.sparse[2] if self.sparse is not None else self.dense
        assert values is not None
        largest = max(float(values.max(initial=0.0)), -float(values.min(initial=0.0)))
        # Rows of float32 are multiplied as they are; a centre is at most as far out as a row.
        if largest * largest * self.columns > float(np.finfo(values.dtype).max) / 8:
            raise Misuse(f"{name}: a value is too large: its square is infinite")

    def row(self, index: int) -> Floats:
        """One row, dense, float64."""
        if self.dense is not None:
            return np.asarray(self.dense[index], np.float64)
        assert self.sparse is not None
        indptr, indices, data = self.sparse
        part = slice(indptr[index], indptr[index + 1])
        full = np.zeros(self.columns)
        full[indices[part]] = data[part]
        return full


def edges(total: int, part: int, parts: int) -> tuple[int, int]:
    """The range of rows of one worker out of `parts`."""
    return total * part // parts, total * (part + 1) // parts


def read_rows(path: Path, part: int, parts: int) -> Rows:
    """This worker's rows of a file: .npy (dense), or libsvm, MatrixMarket, .npz, HDF5.

    Of .npy only these rows are read; of the others, which are stored by column or as text, all is
    read and these rows are kept. Raises Misuse for what cannot be read.
    """
    from diml.data import design_binary, design_text

    try:
        with path.open("rb") as file:
            head = file.read(14)
    except OSError as error:
        raise Misuse(f"{path}: {error.strerror}") from None
    if head.startswith(b"\x93NUMPY"):
        return _npy_rows(path, part, parts)
    design: Any
    if head.startswith(b"PK"):
        design, _ = design_binary.read_npz(path, 0, 1)
    elif head.startswith(b"\x89HDF"):
        design, _ = design_binary.read_hdf5(path, 0, 1)
    elif head.startswith(b"%%MatrixMarket"):
        design = design_text.read_matrixmarket(path, 0, 1)
    else:
        design, _ = design_text.read_libsvm(path, 0, 1)
    if hasattr(design, "X"):
        return dense_rows(np.ascontiguousarray(design.X), part, parts)
    return sparse_rows(design, part, parts)


def _npy_rows(path: Path, part: int, parts: int) -> Rows:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError) as error:
        reason = "truncated" if "mmap length" in str(error) else error
        raise Misuse(f"{path}: {reason}") from None
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise Misuse(f"{path}: {array.dtype} {array.shape} is not a table of numbers")
    rows = dense_rows(array, part, parts)
    assert rows.dense is not None
    if not np.isfinite(rows.dense).all():
        wrong = int(np.flatnonzero(~np.isfinite(rows.dense).all(axis=1))[0])
        row = edges(len(array), part, parts)[0] + wrong
        raise Misuse(f"{path}: row {row} holds a value that is not finite")
    return rows


def dense_rows(array: NDArray[Any], part: int, parts: int) -> Rows:
    """Keep this worker's rows of an array; whole numbers become float64."""
    first, last = edges(len(array), part, parts)
    kind = array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)
    mine = np.ascontiguousarray(array[first:last], kind)
    return Rows(mine, None, last - first, array.shape[1], len(array), first)


def sparse_rows(design: Any, part: int, parts: int) -> Rows:
    """Keep this worker's rows of a matrix in CSC form."""
    from scipy.sparse import csc_matrix

    shape = (design.rows, design.total)
    whole = csc_matrix((design.data, design.indices, design.indptr), shape=shape)
    first, last = edges(design.rows, part, parts)
    mine = whole.tocsr()[first:last]
    parts_of = (mine.indptr.astype(np.int64), mine.indices.astype(np.int32), mine.data)
    return Rows(None, parts_of, last - first, design.total, design.rows, first)


def generated(rows: int, columns: int, k: int, seed: int, part: int, parts: int) -> Rows:
    """Normal clouds (deviation 1) around k planted centres (deviation 10); seeded by row range."""
    planted = np.random.default_rng([seed, 1]).normal(0.0, 10.0, (k, columns))
    first, last = edges(rows, part, parts)
    chunk = 65_536
    pieces = []
    for start in range(first - first % chunk, last, chunk):
        rng = np.random.default_rng([seed, 2, start])
        cloud = planted[rng.integers(0, k, chunk)] + rng.normal(0.0, 1.0, (chunk, columns))
        pieces.append(cloud[max(first - start, 0) : last - start].astype(np.float32))
    mine = np.concatenate(pieces) if pieces else np.empty((0, columns), np.float32)
    return Rows(mine, None, last - first, columns, rows, first)


def start(job: Job, rows: Rows, k: int, seed: int) -> Floats:
    """k-means++: each next centre is a row drawn with probability ∝ its squared distance."""
    from diml.kernels.kmeans import nearer_dense, nearer_sparse

    rng = np.random.default_rng([seed, 3])
    distances = np.full(rows.count, np.inf)
    centres = np.empty((k, rows.columns))
    totals = job.allgather(np.array([rows.count], np.float64))
    for c in range(k):
        mark = rng.random() * totals.sum()
        ends = np.cumsum(totals)
        owner = min(int(np.searchsorted(ends, mark, side="right")), job.size - 1)
        while owner and not totals[owner]:
            owner -= 1
        chosen = None
        if job.rank == owner:
            weights = np.ones(rows.count) if c == 0 else distances
            rest = mark - (ends[owner] - totals[owner])
            index = int(np.searchsorted(np.cumsum(weights), rest, side="right"))
            chosen = rows.row(min(index, rows.count - 1))
        centres[c] = job.broadcast(chosen, owner)
        if rows.dense is not None:
            total = nearer_dense(rows.dense, centres[c], distances)
        else:
            assert rows.sparse is not None
            total = nearer_sparse(*rows.sparse, centres[c], distances)
        totals = job.allgather(np.array([total]))
    return centres


def iterate(
    job: Job, rows: Rows, centres: Floats, labels: NDArray[np.int32], account: Account
) -> tuple[Floats, float]:
    """One iteration of Lloyd: the new centres, and the objective of the old ones."""
    from diml.kernels.kmeans import assign_dense, assign_sparse

    k, d = centres.shape
    # One collective: sums, counts, objective, and everybody's seconds of work.
    packed = np.zeros(k * d + k + 1 + job.size)
    objective = k * d + k
    sums, counts = packed[: k * d].reshape(k, d), packed[k * d : k * d + k]
    if rows.dense is not None:
        packed[objective] = assign_dense(rows.dense, centres, labels, sums, counts)
    else:
        assert rows.sparse is not None
        packed[objective] = assign_sparse(*rows.sparse, centres, labels, sums, counts)
    account.units += rows.count
    packed[objective + 1 :] = account.busy(job.rank, job.size)
    merged = account.waiting(job.allreduce, packed)
    account.compare(merged[objective + 1 :])
    sums, counts = merged[: k * d].reshape(k, d), merged[k * d : k * d + k]
    moved = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1.0)[:, None], centres)
    return moved, float(merged[objective])


def train(job: Job, rows: Rows, k: int, iterations: int, tolerance: float) -> dict[str, Any]:
    """Iterate until the objective falls by no more than `tolerance` of itself.

    Returns the model: centres (k, d), iteration, inertia (objective), done.
    """
    version, model, _ = job.load_checkpoint()
    if version == 0:
        centres = start(job, rows, k, job.settings.seed or 0)
        model = {"centres": centres, "iteration": 0, "inertia": float("inf"), "done": False}
        job.checkpoint(model)
    labels = np.full(rows.count, -1, np.int32)
    account = Account(job, "rows")
    with Progress.of(job, "kmeans", iterations) as progress:
        while model["iteration"] < iterations and not model["done"]:
            centres, inertia = iterate(job, rows, model["centres"], labels, account)
            # Only of what the checkpoint holds, so that a worker that comes back decides alike.
            # Where no row changes its centre the gain is exactly 0.
            done = model["inertia"] - inertia <= tolerance * inertia
            iteration = model["iteration"] + 1
            model = {"centres": centres, "iteration": iteration, "inertia": inertia, "done": done}
            progress.update(iteration, objective=inertia, **account.pace)
            account.waiting(job.checkpoint, model)
            account.tell()
    account.tell(last=True)
    final: dict[str, Any] = model
    return final


def parser() -> JobParser:
    """The job's command line."""
    made = job_parser("kmeans", "k-means (Lloyd, k-means++) on Allreduce.")
    add = made.add_argument
    add("--datafile", type=Path, help="npy, npz, libsvm, MatrixMarket or HDF5")
    add("--generate", type=at_least(1), metavar="ROWS", help="planted clouds")
    add("--columns", type=at_least(1), default=20, help="of --generate (default 20)")
    add("--k", type=at_least(1), default=8, help="number of centres (default 8)")
    add("--num_iterations", type=at_least(0), default=100, help="at most (default 100)")
    add(
        "--tolerance",
        type=real(least=0.0),
        default=1e-6,
        help="least relative gain to go on (default 1e-6)",
    )
    add("--output", type=Path, metavar="PREFIX", help="write PREFIX.C, PREFIX.labels")
    return made


def main(arguments: Sequence[str]) -> int | None:
    """Cluster the rows of a file, or of planted clouds."""
    flags = parse(parser(), arguments)
    if (flags.datafile is None) == (flags.generate is None):
        raise Misuse("give either --datafile or --generate")
    prefix = flags.output
    names = [Path(f"{prefix}.{name}") for name in ("C", "labels") if prefix is not None]
    for name in names:
        check_writable(name)
    check_files(flags, names, (flags.datafile,))
    import diml

    with diml.init(flags=vars(flags)) as job:
        # Where ranks are lost for good, those that are left share the rows out anew.
        job.elastic(lambda: _cluster(job, flags))
    return 0


def _cluster(job: Job, flags: argparse.Namespace) -> None:
    """Read this rank's rows, train, and write the results."""
    if flags.generate is not None:
        seed = job.settings.seed or 0
        rows = generated(flags.generate, flags.columns, flags.k, seed, job.rank, job.size)
    else:
        check_same_files(job, flags.datafile)
        rows = read_rows(flags.datafile, job.rank, job.size)
    if rows.columns == 0:
        raise Misuse(f"{flags.datafile}: its rows have no columns")
    rows.check_size(f"{flags.datafile}")
    if rows.total < flags.k:
        raise Misuse(f"--k {flags.k}: there are only {rows.total} rows")
    data = fingerprint.together(fingerprint.of_all(job, rows.fingerprint()))
    job.identify(data=f"{rows.total}x{rows.columns} {data}", k=flags.k)
    model = train(job, rows, flags.k, flags.num_iterations, flags.tolerance)
    if flags.output is not None:
        labels = np.full(rows.count, -1, np.int32)
        iterate(job, rows, model["centres"], labels, Account(job, "rows"))
        everyone = job.allgather(labels)
        if job.rank == 0:
            with whole(*(Path(f"{flags.output}.{end}") for end in ("C", "labels"))) as beside:
                np.savetxt(beside[0], model["centres"], fmt="%.9g")
                np.savetxt(beside[1], everyone, fmt="%d")
    if job.rank == 0:
        job.log(f"{model['iteration']} iterations, objective {model['inertia']:.9g}")


if __name__ == "__main__":
    run_job(main)
