"""Matrix factorization on the parameter server: python -m diml.jobs.mf.

Owns the command line, the order of the steps, and what worker 0 reports. The data are mf_data's,
the model mf_model's, the course of the training mf_train's, the files mf_output's.
"""

from __future__ import annotations

import math
import os
import re
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import diml
from diml.data.parse import parse_lines
from diml.data.planted import Planted
from diml.data.triplets import FORMATS
from diml.errors import DimlError, Misuse
from diml.jobs.flags import JobParser, at_least, job_parser, parse, real, run_job
from diml.jobs.mf_data import Entries, Facts, Layout, Ratings, choose_layout
from diml.jobs.mf_load import Source, load
from diml.jobs.mf_model import INITS, UPDATES, Rule
from diml.jobs.mf_output import LossFile, check_writable, write_factor
from diml.jobs.mf_train import Course, Evaluation, Tables, Training
from diml.kernels import mf as kernels
from diml.report.progress import Progress

# A held-out RMSE up to so many times the planted noise meets the noise floor: what is estimated
# from finite data can come near the noise, not down to it.
FLOOR_MARGIN = 1.05
DEFAULT_STEP = {"petuum": 0.5, "nnz": 0.5, "adagrad": 0.05}
_PLANTED = "12000x3000x2500000"
_ROWS_AT_ONCE = 1 << 16
# What a worker notes of each row and column of the whole matrix while it takes its share.
_BOOKS_BYTES = 64


def _planted_size(text: str) -> tuple[int, ...]:
    if not re.fullmatch("[0-9]+x[0-9]+x[0-9]+", text):
        raise ArgumentTypeError(f"{text!r} is not ROWSxCOLSxENTRIES")
    return tuple(map(int, text.split("x")))


def parser() -> JobParser:
    """The job's command line."""
    made = job_parser("mf", "Matrix factorization M ~ L R by stochastic gradient descent.")
    add, tune = made.add_argument, made.tuning.add_argument
    add("--datafile", metavar="FILE", help="known entries: `row col value` lines or MatrixMarket")
    add(
        "--generate",
        type=_planted_size,
        metavar="ROWSxCOLSxENTRIES",
        nargs="?",
        const=_planted_size(_PLANTED),
        help=f"train on planted data instead (default {_PLANTED})",
    )
    add("--K", type=at_least(1), default=100, help="the rank (default 100)")
    add("--num_iterations", type=at_least(1), default=100, help="passes (default 100)")
    add("--output_prefix", metavar="PREFIX", help="write PREFIX.L, PREFIX.R and PREFIX.loss")
    add("--loss_file", metavar="FILE", help="where the losses go (default PREFIX.loss)")
    add("--lambda", type=real(least=0), default=0.0, help="the regularizer (default 0)")
    add("--staleness", type=at_least(0), default=0, help="clocks that a read may lack (default 0)")
    step = "x of the step x(y+t)^-z (default 0.5); adagrad: the step itself (default 0.05)"
    add("--init_step_size", type=real(above=0), help=step)
    add("--step_size_offset", type=real(above=0), default=100.0, help="y (default 100)")
    add("--step_size_pow", type=real(least=0), default=0.5, help="z (default 0.5)")
    add("--test", metavar="FILE", help="held-out entries")
    share = real(least=0, most=0.99)
    add("--test_fraction", type=share, help="hold out this share (default 0; generated: 0.05)")
    add("--bias", action="store_true", help="learn the mean and row and column biases as well")
    add("--update", choices=UPDATES, default="petuum", help="the update rule (default petuum)")
    add("--init", choices=INITS, default="scaled", help="scaled (default) or petuum: U[-1,1)")
    add("--format", choices=FORMATS, default="auto", help="of the files (default auto)")
    add("--one_based", action="store_true", help="ids in text files begin at 1")
    tune("--eval_every", type=at_least(1), default=1, help="iterations between evaluations")
    tune("--num_clocks_per_iter", type=at_least(1), help="column blocks (default: by the data)")
    tune("--planted_rank", type=at_least(1), default=8, help="of generated data (default 8)")
    tune("--planted_noise", type=real(least=0), default=0.5, help="its noise (default 0.5)")
    tune("--planted_skew", type=real(least=0), default=0.0, help="its power law (default 0)")
    return made


@dataclass(frozen=True)
class Plan:
    """A checked command line."""

    source: Source
    rule: Rule
    flags: Namespace
    prefix: str | None
    loss_file: Path | None

    @property
    def outputs(self) -> list[Path]:
        """All files that will be written."""
        factors = [Path(f"{self.prefix}.{name}") for name in "LR"] if self.prefix else []
        return factors + ([self.loss_file] if self.loss_file else [])


def plan_of(flags: Namespace, seed: int) -> Plan:
    """Check the flags against each other. Raises Misuse."""
    if (flags.datafile is None) == (flags.generate is None):
        raise Misuse("give either --datafile FILE or --generate")
    if flags.test is not None and (flags.test_fraction is not None or flags.generate):
        raise Misuse("--test goes with --datafile and without --test_fraction")
    planted, fraction = None, flags.test_fraction or 0.0
    if flags.generate:
        rows, cols, entries = flags.generate
        hidden = (flags.planted_rank, flags.planted_noise, flags.planted_skew)
        planted = Planted(rows, cols, entries, *hidden, seed)
        fraction = 0.05 if flags.test_fraction is None else fraction
    files = (flags.test, fraction, flags.format, flags.one_based)
    rule = Rule(
        k=flags.K,
        update=flags.update,
        decay=vars(flags)["lambda"],
        init_step_size=flags.init_step_size or DEFAULT_STEP[flags.update],
        step_size_offset=flags.step_size_offset,
        step_size_pow=flags.step_size_pow,
        biased=flags.bias,
        init=flags.init,
        seed=seed,
    )
    losses = flags.loss_file or (flags.output_prefix and f"{flags.output_prefix}.loss")
    source = Source(flags.datafile, planted, *files, seed)
    return Plan(source, rule, flags, flags.output_prefix, Path(losses) if losses else None)


class Report:
    """What worker 0 says while the job runs: the loss file, the progress line, and the end."""

    def __init__(
        self,
        training: Training,
        course: Course,
        plan: Plan,
        updates: int,
        event: Callable[..., None],
    ) -> None:
        """`updates` is the number of training entries, `event` writes into the event log."""
        self._training, self._course, self._updates = training, course, updates
        self._losses = LossFile(plan.loss_file) if plan.loss_file else None
        quiet = bool(plan.flags.quiet)
        self._progress = Progress("mf", course.iterations, quiet=quiet, event=event)
        self._reported = 0
        self.last: Evaluation | None = None

    def at_clock(self, clock: int) -> None:
        """Report the evaluations that have become readable. Raises DimlError for a NaN."""
        found = self._training.evaluations(self._course.readable(clock, self._reported))
        for evaluation in found:
            if self._losses is not None:
                self._losses.append([evaluation])
            if not math.isfinite(evaluation.loss):
                raise DimlError(
                    f"the loss is {evaluation.loss} after iteration {evaluation.iteration}: lower "
                    "the step size (divide --init_step_size by 10)"
                )
            self._reported, self.last = evaluation.iteration, evaluation
            shown = {"train_RMSE": evaluation.train_rmse, "held-out_RMSE": evaluation.test_rmse}
            shown = {name: value for name, value in shown.items() if not math.isnan(value)}
            self._progress.update(evaluation.iteration, **shown, rate=f"{self.rate:.3g} M/s")

    @property
    def rate(self) -> float:
        """Million updates a second up to the last evaluation."""
        if self.last is None or self.last.seconds <= 0:
            return 0.0
        return self._updates * self.last.iteration / self.last.seconds / 1e6

    def close(self) -> None:
        """End the progress line and the loss file."""
        self._progress.__exit__(None, None, None)
        if self._losses is not None:
            self._losses.close()

    def summary(self, workers: int, noise: float | None, repairs: Sequence[float]) -> str:
        """The result in words. `repairs` are the seconds that each took."""
        assert self.last is not None
        end = self.last
        lines = [f"train RMSE     {end.train_rmse:.4g}"]
        if not math.isnan(end.test_rmse):
            lines.append(f"held-out RMSE  {end.test_rmse:.4g}")
        work = f"{end.iteration} iterations of {self._updates:,} entries in {end.seconds:.2f} s"
        lines.append(f"updates        {self.rate:.1f} M/s ({work}, {workers} workers)")
        if noise and not math.isnan(end.test_rmse):
            ratio = end.test_rmse / noise
            met = "met" if ratio <= FLOOR_MARGIN else "NOT met"
            floor = f"{met}: held-out RMSE is {ratio:.3f} x the planted noise {noise:g}"
            lines.append(f"noise floor    {floor} (at most {FLOOR_MARGIN} x)")
        if repairs:
            took = ", ".join(f"{1000 * seconds:.0f} ms" for seconds in repairs)
            lines.append(f"recovery       {len(repairs)} x, the job was whole again after {took}")
        return "\n".join(lines)


def factor_rows(table: Any, rows: int) -> Iterator[npt.NDArray[Any]]:
    """All rows of a table, a chunk at a time."""
    for low in range(0, rows, _ROWS_AT_ONCE):
        yield table.get(np.arange(low, min(low + _ROWS_AT_ONCE, rows)))


def write_factors(prefix: str, tables: Tables, rule: Rule, facts: Facts) -> None:
    """Write PREFIX.L and PREFIX.R, whose product is the model.

    With biases a row of L is (L_i, mean + b_i, 1) and one of R is (R_j, 1, c_j). Without, a row or
    column that has no training entries is written so that its products come as near to the
    training mean, which is predicted there, as K numbers can bring them.
    """
    left = factor_rows(tables.left, facts.n_rows)
    right = factor_rows(tables.right, facts.n_cols)
    if rule.biased:
        mean, k = facts.mean, rule.k
        left = (np.insert(rows + mean * (np.arange(k + 1) == k), k + 1, 1, 1) for rows in left)
        sides = factor_rows(tables.side, facts.n_cols)
        pairs = zip(right, sides, strict=True)
        right = (np.column_stack([rows, np.ones(len(rows)), side[:, 0]]) for rows, side in pairs)
    else:
        cold_row = nearest_to(facts.mean, factor_rows(tables.right, facts.n_cols))
        cold_col = nearest_to(facts.mean, factor_rows(tables.left, facts.n_rows))
        left = (filled(rows, cold_row) for rows in left)
        right = (filled(rows, cold_col) for rows in right)
    write_factor(Path(f"{prefix}.L"), left)
    write_factor(Path(f"{prefix}.R"), right)


def nearest_to(mean: float, chunks: Iterator[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
    """The vector x (k,) that least squares finds for x . row = mean over all rows but zeros."""
    gram: Any = 0.0
    total: Any = 0.0
    for rows in chunks:
        wide = rows.astype(np.float64)
        gram = gram + wide.T @ wide
        total = total + wide.sum(axis=0)
    solution: npt.NDArray[np.float64] = np.linalg.lstsq(gram, mean * total)[0]
    return solution


def filled(rows: npt.NDArray[Any], cold: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The rows, with `cold` where all is zero: no training entry has ever moved those."""
    untouched = np.all(rows == 0, axis=1, keepdims=True)
    return np.where(untouched, cold, rows)


def check_size(facts: Facts, rule: Rule, workers: int) -> None:
    """Raise Misuse where the matrix cannot fit, as after one id that is far too large."""
    needed = (4 * rule.k + _BOOKS_BYTES * workers) * (facts.n_rows + facts.n_cols)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise Misuse(
            f"a matrix of {facts.n_rows} x {facts.n_cols} with K = {rule.k} needs {needed >> 20} "
            f"MiB on {workers} workers, this machine has {memory >> 20}: ids are numbers from 0 on "
            "without large gaps"
        )


def warm_up() -> None:
    """Compile what a worker runs, or load it from the cache: a spare too takes over at once."""
    kernels.warm_up()
    parse_lines(np.frombuffer(b"0 0 1", np.uint8), *(np.empty(1, t) for t in ("i8", "i8", "f4")))
    one = np.zeros(1, np.int32)
    entries = Entries(one, one, np.ones(1, np.float32))
    Ratings(entries, entries, 1, 1).share(0, 1, Layout(1, shuffled=True), seed=0)


def train(job: diml.Job, plan: Plan) -> None:
    """Load, train and report. Every worker comes here; so does a replacement, from the start."""
    flags, rule = plan.flags, plan.rule
    if job.rank == 0:
        check_writable(plan.outputs)
    ratings = load(plan.source, job)
    facts = ratings.facts()
    check_size(facts, rule, job.size)
    origin = time.time()
    ps = job.parameter_server(staleness=flags.staleness)
    wanted = flags.num_clocks_per_iter
    layout = choose_layout(ps.workers, flags.staleness, ratings.col_entries, rule.eta(0), wanted)
    share = ratings.share(ps.worker, ps.workers, layout, rule.seed)
    del ratings
    course = Course(flags.num_iterations, layout.blocks, flags.staleness, flags.eval_every)
    tables = Tables.of(ps.table, rule, facts, course, keep_left=plan.prefix is not None)
    training = Training(ps, tables, course, facts, share, rule, origin)
    if ps.worker != 0:
        training.run(lambda clock: None)
        return
    report = Report(training, course, plan, facts.train_entries, job.event)
    try:
        training.run(report.at_clock)
        report.at_clock(course.end)
    finally:
        report.close()
    if plan.prefix is not None:
        write_factors(plan.prefix, tables, rule, facts)
    print(report.summary(ps.workers, facts.noise, job.repairs), flush=True)


def servers_for(arguments: Sequence[str]) -> int:
    """How many servers the job takes where it is not told."""
    return 1


def main(arguments: Sequence[str]) -> int:
    """Run the job with these command-line arguments; its exit status."""
    flags = parse(parser(), arguments)
    warm_up()
    with diml.init(flags=vars(flags), servers=1) as job:
        train(job, plan_of(flags, job.settings.seed))
    return 0


if __name__ == "__main__":
    run_job(main)
