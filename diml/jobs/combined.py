"""All three ways in one job: python -m diml.jobs.combined, an example on generated data.

A response depends on which tokens a row has (through a hidden vector for each token) and on a few
of many dense features. One `diml.init`, five steps:

  scale     Allreduce: means and deviations of the dense features, each worker from its rows
  embed     parameter server: a vector for each token by SGD, on what the tokens explain
  head      STRADS: a Lasso on the scaled features and the rows' mean vectors, sharded by columns
  measure   Allreduce: root mean squared error on rows that were left out
  write     worker 0: the model

Owns the order of the steps and the example's data and loss. Which step a replacement goes on at is
`job.parts`' and the parameter server's to know. With staleness 0 a run with deaths ends with the
bits of one without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import diml
from diml.data.outputs import check_writable
from diml.jobs.flags import JobParser, at_least, check_files, job_parser, parse, real, run_job
from diml.strads.columns import columns_of
from diml.strads.lasso import solve_lasso
from diml.strads.lasso_problem import Grid, Solution, Stop

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_TOKENS_A_ROW = 6
_HELD_OUT = 5  # every fifth row
_NOISE = 0.1
_BATCHES = 4  # clocks in one pass over a worker's rows


@dataclass(frozen=True, slots=True)
class Rows:
    """tokens (n, 6) ids; dense (n, q) features on scales of their own; y (n,)."""

    tokens: Integers
    dense: Floats
    y: Floats

    def some(self, picked: Integers) -> Rows:
        return Rows(self.tokens[picked], self.dense[picked], self.y[picked])


def planted(count: int, vocabulary: int, features: int, seed: int) -> Rows:
    """Rows whose response is explained by hidden vectors of tokens and by 3 of the features."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, vocabulary, (count, _TOKENS_A_ROW))
    scales = draw.uniform(0.1, 50.0, features)
    dense = draw.normal(size=(count, features)) * scales + 3.0 * scales
    worth = draw.normal(size=vocabulary)
    y = worth[tokens].mean(axis=1) + _NOISE * draw.normal(size=count)
    y += (dense[:, :3] / scales[:3]) @ np.array([0.3, -0.3, 0.2])
    return Rows(tokens, dense, y)


def parser() -> JobParser:
    """The job's command line."""
    made = job_parser("combined", "Allreduce, parameter server and STRADS in one job: an example.")
    add = made.add_argument
    add("--rows", type=at_least(50), default=8000, help="rows of generated data (default 8000)")
    add("--vocabulary", type=at_least(2), default=200, help="tokens (default 200)")
    add("--features", type=at_least(3), default=60, help="dense features (default 60)")
    add("--K", type=at_least(1), default=8, help="numbers in a token's vector (default 8)")
    add("--clocks", type=at_least(0), default=80, help="clocks of the embeddings (default 80)")
    add("--step", type=real(above=0), default=2.0, help="step size of the embeddings (2)")
    add("--lambda_ratio", type=real(above=0), default=0.005, help="the head's λ, in λmax (0.005)")
    add("--output", metavar="FILE", help="coefficients, vectors and error, .npz")
    made.tuning.add_argument(
        "--checkpoint_work", type=at_least(1), default=1_000_000, help="between the head's saves"
    )
    return made


def scaling(job: diml.Job, mine: Rows) -> dict[str, Any]:
    """(means, deviations) of the features over all workers' rows, and the mean of y."""
    shifted = np.concatenate([mine.dense, mine.y[:, None]], axis=1)
    count = job.allreduce(np.array([float(len(shifted))]), "sum")[0]
    mean = job.allreduce(shifted.sum(axis=0), "sum") / count
    square = job.allreduce(((shifted - mean) ** 2).sum(axis=0), "sum") / count
    return {"mean": mean[:-1], "deviation": np.sqrt(square[:-1]), "y": float(mean[-1])}


def embedded(job: diml.Job, mine: Rows, response: float, flags: Any) -> Floats:
    """(vocabulary, K) vectors: SGD on the mean over a row's tokens of e·a against y."""
    with job.parameter_server(staleness=0) as ps:
        small = ("normal", 0.0, 0.3)
        vectors = ps.table("vectors", flags.vocabulary, flags.K, "float64", init=small)
        head = ps.table("direction", 1, flags.K, "float64", init=small)
        target = mine.y - response
        while ps.clock_now < flags.clocks:
            batch = np.arange(ps.clock_now % _BATCHES, len(target), _BATCHES)
            ids, places = np.unique(mine.tokens[batch], return_inverse=True)
            places = places.reshape(len(batch), _TOKENS_A_ROW)
            rows, direction = vectors.get(ids), head.get(np.zeros(1, np.int64))[0]
            mean = rows[places].mean(axis=1)
            off = target[batch] - mean @ direction
            rate = flags.step / (len(batch) * ps.workers)
            change = np.zeros_like(rows)
            np.add.at(change, places, (off[:, None] * direction)[:, None, :])
            seen = np.bincount(places.ravel(), minlength=len(ids))[:, None] / len(batch)
            vectors.inc(ids, rate * change / np.maximum(seen, 1e-12) / _TOKENS_A_ROW)
            head.inc(np.zeros(1, np.int64), rate * (off @ mean)[None, :])
            ps.clock()
        ps.barrier()
        return np.array(vectors.get(np.arange(flags.vocabulary)))


def design_of(rows: Rows, scale: dict[str, Any], vectors: Floats) -> Floats:
    """(n, features + K): scaled features, then the mean vector of a row's tokens."""
    dense = (rows.dense - scale["mean"]) / scale["deviation"]
    return np.concatenate([dense, vectors[rows.tokens].mean(axis=1)], axis=1)


def solve_head(job: diml.Job, design: Floats, y: Floats, flags: Any) -> Solution:
    """The sparse head; each worker holds some of the columns."""
    program = solve_lasso(
        columns_of(design, job.rank, job.size),
        y,
        Grid(ratios=tuple(np.geomspace(0.5, flags.lambda_ratio, 8))),
        Stop(1e-8),
        job=job,
        checkpoint_work=flags.checkpoint_work,
    )
    return program.solutions[-1]


def servers_for(arguments: Sequence[str]) -> int:
    """Servers that the job takes where `--servers` is not given."""
    return 1


def main(arguments: Sequence[str]) -> int:
    flags = parse(parser(), arguments)
    if flags.output:
        check_writable(Path(flags.output))
    check_files(flags, (flags.output or None,), ())
    with diml.init(flags=vars(flags), servers=servers_for(arguments)) as job:
        told = ("rows", "vocabulary", "features", "K", "clocks", "step", "lambda_ratio")
        job.identify(**{name: vars(flags)[name] for name in told})
        rows = planted(flags.rows, flags.vocabulary, flags.features, job.settings.seed)
        every = np.arange(flags.rows)
        fit, out = rows.some(every[every % _HELD_OUT > 0]), rows.some(every[::_HELD_OUT])
        mine = fit.some(np.arange(job.rank, len(fit.y), job.size))
        scale = job.parts.once("scale", lambda: scaling(job, mine))
        vectors = job.parts.once("embed", lambda: embedded(job, mine, scale["y"], flags))
        answer = solve_head(job, design_of(fit, scale, vectors), fit.y, flags)

        share = out.some(np.arange(job.rank, len(out.y), job.size))
        coef = answer.dense(flags.features + flags.K)
        off = share.y - design_of(share, scale, vectors) @ coef - answer.intercept
        total = job.allreduce(np.array([off @ off, float(len(off))]), "sum")
        rmse = float(np.sqrt(total[0] / total[1]))
        if job.rank == 0:
            dense = int((answer.ids < flags.features).sum())
            job.log(f"held-out RMSE {rmse:.4f} (noise {_NOISE})  gap {answer.gap:.2g}  "
                    f"features used {dense} of {flags.features}")  # fmt: skip
            if flags.output:
                np.savez(
                    flags.output, coef=coef, intercept=answer.intercept, vectors=vectors, rmse=rmse
                )
    return 0


if __name__ == "__main__":
    run_job(main)
