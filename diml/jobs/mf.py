"""Matrix factorization: python -m diml.jobs.mf.

Owns the order of the steps from the data to the files. The flags are mf_flags', the data mf_load's
and mf_data's, the model mf_model's, the training mf_train's (parameter server) and mf_rotate's,
what is said mf_report's, the files mf_output's.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import diml
from diml.data.outputs import special
from diml.data.parse import parse_lines
from diml.data.stream import warm_up as warm_up_stream
from diml.errors import Misuse
from diml.jobs import mf_files, mf_pieces
from diml.jobs.account import Account, SharedPace
from diml.jobs.flags import check_files, parse, run_job
from diml.jobs.mf_careful import CarefulTraining
from diml.jobs.mf_course import Course, blocks_within
from diml.jobs.mf_data import Entries, Facts, Layout, Ratings, Share, choose_layout
from diml.jobs.mf_evaluation import Evaluation
from diml.jobs.mf_flags import Plan, parser, plan_of, servers_of
from diml.jobs.mf_left import LeftWithBias
from diml.jobs.mf_load import load
from diml.jobs.mf_model import Rule
from diml.jobs.mf_output import check_writable
from diml.jobs.mf_product import Factors, Held, product
from diml.jobs.mf_report import Report
from diml.jobs.mf_rotate import Passes, Rotation, blocks_of
from diml.jobs.mf_stored import Stored
from diml.jobs.mf_train import Tables, Training
from diml.kernels import mf as kernels
from diml.kernels import mf_grid
from diml.report.progress import Progress

# What a worker notes of each row and column of the whole matrix while it takes its share.
_BOOKS_BYTES = 64


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
    mf_grid.warm_up()
    ids, values = np.empty(1, np.int64), np.empty(1, np.float32)
    parse_lines(np.frombuffer(b"0 0 1", np.uint8), ids, ids.copy(), values, False)
    one = np.zeros(1, np.int32)
    entries = Entries(one, one, np.ones(1, np.float32))
    Ratings(entries, entries, 1, 1).share(0, 1, Layout(1, shuffled=True), seed=0)
    warm_up_stream()


def train(job: diml.Job, plan: Plan) -> None:
    """Load, train and report. Every worker comes here; so does a replacement, from the start."""
    if job.rank == 0:
        check_writable(plan.outputs)
        flags = plan.flags
        # The losses are written to what is there, a pipe maybe; all else appears by rename.
        writes = [one for one in plan.outputs if one != plan.loss_file or not special(one)]
        read: list[str | None] = [flags.datafile, flags.test, flags.offsetsfile]
        if flags.pieces is not None:
            # This node may hold none of them.
            read[:1] = mf_pieces.here(flags.datafile).values()
        check_files(flags, writes, read)
    ratings = load(plan.source, job)
    facts = ratings.facts()
    check_size(facts, plan.rule, job.size)
    if job.settings.checkpoint_dir is not None:
        model = {"K": plan.rule.k, "update": plan.rule.update, "bias": plan.rule.biased}
        place = "the servers" if plan.flags.ps_row_cache_size else "the workers"
        job.identify(data=ratings.fingerprint, engine=plan.flags.engine, L=place, **model)
    report = None
    if job.rank == 0:
        progress = Progress.of(job, "mf", plan.flags.num_iterations)
        report = Report(plan.loss_file, facts.train_entries, progress)
    engine = rotate if plan.flags.engine == "rotate" else with_servers
    try:
        ended = engine(job, plan, ratings, facts, report)
    finally:
        if report is not None:
            report.close()
    if report is not None:
        print(report.summary(job.size, facts.noise, job.repairs, ended), flush=True)


def tell_balance(job: diml.Job, share: Share, facts: Facts) -> None:
    """Write into the event log how evenly the entries are dealt out, as far as this worker sees.

    No collective: what it gave would die with the workers, whose other state is at the servers.
    """
    if job.settings.events is None:
        return
    clocks = [len(share.block_at(clock)) for clock in range(len(share.blocks))]
    entries, mean = sum(clocks), max(facts.train_entries / job.size, 1.0)
    most = max(clocks) * len(clocks) / max(entries, 1)
    job.event("balance", entries=entries, imbalance=entries / mean, clocks_imbalance=most)


def with_servers(
    job: diml.Job, plan: Plan, ratings: Ratings | Stored, facts: Facts, report: Report | None
) -> str:
    """Train with R on the parameter server; why it ended early, or nothing."""
    flags, rule = plan.flags, plan.rule
    origin = time.time()
    cache = flags.ps_row_cache_size
    ps = job.parameter_server(staleness=flags.staleness, any_workers=True, row_cache_size=cache)
    layout = layout_of(flags, rule, ratings, ps.workers)
    share = ratings.share(ps.worker, ps.workers, layout, rule.seed)
    tell_balance(job, share, facts)
    del ratings
    course = Course(flags.num_iterations, layout.clocks, flags.staleness, flags.eval_every)
    keep_left = plan.prefix is not None

    def tables_of(halvings: int) -> Tables:
        return Tables.of(ps.table, rule, facts, course, keep_left, cache > 0, halvings)

    account = Account(job, "updates")
    pace = SharedPace(ps, ps.table, account)
    about = ps, tables_of, course, facts, share, rule, origin, plan.goal, pace, layout.threads
    training = CarefulTraining(*about) if flags.auto_step else Training(*about)

    def tell(evaluations: Sequence[Evaluation]) -> None:
        assert report is not None
        report.tell(evaluations, account.pace)

    training.run(tell if report is not None else None, job.event)
    tables = training.tables
    if report is not None and plan.prefix is not None:
        left: Any = tables.left
        if tables.rows is not None:
            left = LeftWithBias(tables.rows) if rule.biased else tables.rows.left
        factors = Factors(left, tables.right, tables.side)
        mf_files.write_factors(plan.prefix, *product(factors, rule, facts, cache))
    return training.ended


def layout_of(flags: Namespace, rule: Rule, ratings: Ratings | Stored, workers: int) -> Layout:
    """How an iteration on the parameter server is cut. Raises Misuse where the file cannot be."""
    cache, wanted, groups = flags.ps_row_cache_size, flags.num_clocks_per_iter, 1
    if cache:
        least = workers * (flags.staleness + 1) if workers > 1 else 1
        wanted = blocks_within(cache, ratings.col_entries, least)
        if ratings.most_blocks < wanted:
            raise Misuse(
                f"--ps_row_cache_size {cache} takes {wanted} blocks of columns, the file has "
                f"{ratings.most_blocks}: convert it with --col_groups {wanted} or more"
            )
        groups = ratings.row_groups(workers, cache)
    cut = wanted, ratings.most_blocks
    layout = choose_layout(workers, flags.staleness, ratings.col_entries, rule.eta(0), *cut)
    threads = flags.client_worker_threads
    return replace(layout, row_groups=groups, rows_max=cache, threads=threads)


def rotate(
    job: diml.Job, plan: Plan, ratings: Ratings | Stored, facts: Facts, report: Report | None
) -> str:
    """Train by rotation; why it ended early, or nothing."""
    flags, rule = plan.flags, plan.rule
    origin = time.time()
    blocks = blocks_of(job.size, ratings.most_blocks)
    layout = Layout(blocks, True, whole=True, threads=flags.client_worker_threads)
    share = ratings.share(job.rank, job.size, layout, rule.seed)
    tell_balance(job, share, facts)
    del ratings
    passes = Passes(flags.num_iterations, flags.eval_every, plan.goal, flags.auto_step)
    training = Rotation(job, facts, share, rule, passes, origin, layout.threads)

    def tell(evaluations: Sequence[Evaluation]) -> None:
        if report is not None:
            report.tell(evaluations, training.account.pace)

    training.run(tell)
    if plan.prefix is not None:
        factors = training.factors()
        if factors is not None:
            held = Factors(*map(Held, factors))
            mf_files.write_factors(plan.prefix, *product(held, rule, facts))
    return training.ended


def __getattr__(name: str) -> Any:
    # Fetched when it is asked for: it takes SciPy, which training has no need of.
    if name == "MatrixFactorization":
        from diml.jobs.mf_estimator import MatrixFactorization

        return MatrixFactorization
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def servers_for(arguments: Sequence[str]) -> int:
    """How many servers the job takes where it is not told."""
    return servers_of(parse(parser(), arguments))


def main(arguments: Sequence[str]) -> int:
    """Run the job with these command-line arguments; its exit status."""
    flags = parse(parser(), arguments)
    warm_up()
    with diml.init(flags=vars(flags), servers=servers_of(flags)) as job:
        train(job, plan_of(flags, job.settings.seed))
    return 0


if __name__ == "__main__":
    run_job(main)
