"""What a soak runs: DiML's jobs as users run them, and a program of collectives drawn by a seed.

Owns the arguments and the files that a run writes. Must not know who is killed. Each job has few
variants, so that the run without deaths of most of them is made once for many runs with deaths.
"""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# Collectives of every kind, of lengths on both sides of MPI's eager limit, drawn anew for each
# version; every byte of every result goes into what each rank writes at its end.
COLLECTIVES = """
    import random, sys, time, zlib
    import numpy as np
    import diml

    SEED, STEPS, KEEPS, PREFIX = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    LENGTHS = (1, 7, 500, 5_000, 60_000)
    KINDS = ("plain", "plain", "op", "prepare", "custom", "out", "root", "root object", "gather",
             "gather objects", "shift", "shift object", "start", "start", "start", "barrier")
    # Of every other seed mostly shifts, so that several are under way when somebody dies.
    KINDS += ("start",) * (40 if SEED % 2 else 0)
    OPS = ("sum", "prod", "max", "min", "bitor")

    def folded(state, came):
        digest = zlib.crc32(np.ascontiguousarray(came).tobytes()) / 2**32
        return np.cos(state + digest + np.resize(np.asarray(came, float), state.size))

    def step(job, version, mine, common):
        chance, moving = np.random.default_rng((SEED, version)), []
        for _ in range(int(chance.integers(4, 16))):
            time.sleep(random.random() * 0.004)
            n, kind = int(chance.choice(LENGTHS)), chance.choice(KINDS)
            root, by = int(chance.integers(job.size)), int(chance.choice((1, 1, -1, 2, job.size)))
            op, first = OPS[int(chance.integers(5))], bool(chance.integers(2))
            a, same = np.resize(mine, n), None
            if kind == "plain":
                same = job.allreduce(a)
            elif kind == "op":
                whole = op == "bitor" or first
                same = job.allreduce((a * 1000).astype("i4") if whole else a.astype("f4"), op)
            elif kind == "prepare":
                buffer = np.empty(n)
                same = job.allreduce(buffer, "sum", prepare=lambda b, a=a: np.copyto(b, a * 3))
            elif kind == "custom":
                same = job.allreduce(a, lambda x, y: 0.75 * x - y)
            elif kind == "out":
                same = job.allreduce(a, "max", out=np.empty(n))
            elif kind == "root":
                same = job.broadcast(a if job.rank == root else None, root)
            elif kind == "root object":
                thing = {"array": a, "rank": root} if job.rank == root else None
                same = job.broadcast(thing, root)["array"]
            elif kind == "gather":
                same = job.allgather(a[: max(1, n - 3 * job.rank)])
            elif kind == "gather objects":
                same = np.concatenate(job.allgather({"a": list(a[:5])}["a"]))
            elif kind == "shift":
                mine = folded(mine, job.shift(np.resize(mine, n + job.rank), by))
            elif kind == "shift object":
                mine = folded(mine, job.shift((job.rank, a.tobytes()), by)[0] + 1.0)
            elif kind == "start":
                moving.append(job.start_shift(a, by))
                mine = np.sin(mine + 1)
            else:
                job.barrier()
            if same is not None:
                common, mine = folded(common, same), folded(mine, same)
            while moving and (len(moving) > 4 or first):
                mine = folded(mine, moving.pop(0).wait())
                first = False
        for one in moving:
            mine = folded(mine, one.wait())
        return mine, common

    with diml.init() as job:
        shared = job.allreduce(np.arange(3.0) + job.rank)
        version, common, mine = job.load_checkpoint()
        common = shared + np.arange(3.0) if common is None else common
        for version in range(version, STEPS):
            if mine is None or KEEPS == "model":
                mine = np.cos(np.arange(50.0) * (job.rank + 1) + common.sum())
            mine, common = step(job, version, mine, common)
            if KEEPS == "local":
                job.checkpoint(common, mine)
            else:
                # What only this rank had goes into what all have.
                common = folded(common, job.allgather(mine[:2]))
                job.checkpoint(common, lazy=version % 3 != 0)
        with open(f"{PREFIX}.{job.rank}", "w") as file:
            file.write(f"{mine.tobytes().hex()} {common.tobytes().hex()}")
"""


@dataclass(frozen=True)
class Case:
    """One job with its arguments; "FOLDER" in a word is where its files go, "DATA" where its
    input lies."""

    job: str
    words: tuple[str, ...]
    workers: int
    servers: int
    files: tuple[str, ...]
    """The files that it writes into FOLDER."""

    def program(self) -> str | list[str]:
        """What mpirun starts, without its arguments."""
        return COLLECTIVES if self.job == "collectives" else ["-m", f"diml.jobs.{self._module()}"]

    def _module(self) -> str:
        return self.job.partition(" ")[0]


def _variant(job: str, chance: random.Random) -> tuple[str, int, tuple[str, ...]]:
    """(arguments, servers, files) of one of the job's variants."""
    pick = chance.choice
    # Text would show six digits of a number.
    model = "--output_prefix FOLDER/out.npz --loss_file FOLDER/out.loss"
    if job == "mf rotate":
        update = pick(("--update adagrad --bias", "--update nnz --init_step_size 0.05"))
        many = f"--K {pick((3, 8, 32))} --num_iterations 150 {update}"
        made = f"--engine rotate --generate {pick(('600x400x30000', '3000x2000x40000'))}"
        return f"{made} {many} {model}", 0, ("out.npz", "out.loss")
    if job == "mf ps":
        servers, K = pick((1, 2)), pick((4, 32))
        rows = pick(("", "--ps_row_cache_size 300"))
        made = f"--generate 800x600x20000 --K {K} --update adagrad --num_iterations 25 {rows}"
        return f"{made} {model}", servers, ("out.npz", "out.loss")
    if job == "lasso":
        policy = pick(
            (
                "--policy working-set",
                "--x DATA/x.svm --loss logistic --path 20",
                "--policy cyclic --max_iter 120",
                "--policy priority+dependency --max_iter 120 --schedule_size 16",
                "--policy priority+dependency --max_iter 200 --data replicated --pipeline 1",
            )
        )
        made = policy if "--x" in policy else f"--generate neighbours --path 6 {policy}"
        made += " --lambda_ratio 0.05 --checkpoint_work 60000"
        return f"{made} --path_output FOLDER/out.npz", 0, ("out.npz",)
    if job == "lasso tall":
        made = f"--x DATA/tall.npz --path {pick((30, 60))} --tol 1e-9 --checkpoint_work 300000"
        return f"{made} --path_output FOLDER/out.npz", 0, ("out.npz",)
    if job == "logistic":
        method, servers = pick(
            (
                ("lbfgs --l2 0.0001 --tolerance 1e-12", 0),
                ("lbfgs --l1 0.0002 --tolerance 1e-12", 0),
                ("admm --l2 0.001 --num_iterations 60 --tolerance 1e-12", 0),
                ("sync-sgd --l2 0.001 --batch_size 20 --num_epochs 8", 1),
                ("sync-sgd --rule ftrl --l1 0.001 --batch_size 20 --num_epochs 8", 2),
            )
        )
        made = f"--datafile DATA/x.svm --method {method} --intercept"
        return f"{made} --output_prefix FOLDER/out", servers, ("out.w", "out.loss")
    if job == "kmeans":
        made = f"--generate {pick((20000, 60000))} --columns 30 --k {pick((10, 60))}"
        made += " --num_iterations 80 --tolerance 1e-15"
        return f"{made} --output FOLDER/out", 0, ("out.C", "out.labels")
    if job == "ccd":
        made = f"--datafile DATA/cells.txt --K {pick((4, 10))} --num_iterations 30"
        return f"{made} --checkpoint_work 30000 --output_prefix FOLDER/out", 0, ("out.L", "out.R")
    if job == "combined":
        made = f"--rows 1500 --clocks {pick((24, 60))} --checkpoint_work 20000"
        return f"{made} --output FOLDER/out.npz", pick((1, 2)), ("out.npz",)
    return f"{pick((1, 2, 3, 4, 5, 6))} 25 {pick(('local', 'model'))} FOLDER/out", 0, ()


JOBS = (
    *("mf rotate", "mf ps", "lasso", "lasso tall", "logistic", "kmeans", "ccd", "combined"),
    "collectives",
)


def drawn(job: str, chance: random.Random) -> Case:
    """A case of that job."""
    words, servers, files = _variant(job, chance)
    workers = chance.choice((2, 3) if servers else (2, 3, 4))
    if not files:
        files = tuple(f"out.{rank}" for rank in range(workers))
    return Case(job, tuple(words.split()), workers, servers, files)


def write_data(folder: Path) -> None:
    """The input of those jobs that do not make their own."""
    chance = np.random.default_rng(0)
    X = chance.normal(size=(20_000, 30)) + 3.0
    y = X[:, 0] - X[:, 5] + 0.1 * X[:, 7] + chance.normal(size=len(X))
    np.savez(folder / "tall.npz", X=X, y=y)
    worth = chance.normal(size=200)
    with (folder / "x.svm").open("w") as file:
        for _ in range(3000):
            columns = np.sort(chance.choice(200, 15, replace=False))
            x = chance.normal(size=15)
            label = int(chance.random() < 1 / (1 + np.exp(-x @ worth[columns])))
            cells = zip(columns, x, strict=True)
            file.write(f"{label} " + " ".join(f"{c + 1}:{v:.9g}" for c, v in cells) + "\n")
    left, right = chance.normal(size=(300, 4)), chance.normal(size=(200, 4))
    with (folder / "cells.txt").open("w") as file:
        for cell in np.sort(chance.choice(300 * 200, 12_000, replace=False)):
            row, column = divmod(int(cell), 200)
            file.write(f"{row} {column} {left[row] @ right[column]:.6g}\n")


def contents(case: Case, folder: Path) -> dict[str, object]:
    """What a run has written: each file's bytes, of a table of losses all but the times."""
    found: dict[str, object] = {}
    for name in case.files:
        data = (folder / name).read_bytes()
        found[name] = data
        if name.endswith(".loss"):
            lines = csv.DictReader(data.decode().splitlines())
            found[name] = [
                {k: v for k, v in line.items() if not k.endswith("seconds")} for line in lines
            ]
    return found
